"""Run the runner as a program and break it at the N-th durable step, from outside: no hook in the code under test.

    python fault.py SETTINGS.json ARGUMENT...

SETTINGS.json: {"runner": path of pipeline_runner.py, "root": the project, "action": see below, "at": N (from 1),
"hit": file that is made when step N was reached, "boot": boot id to pretend or null, "outputs": output folders,
"startSynced": whether the outputs that are there at the start are on the disk,
"ordered": whether the runner takes the file system for one that keeps the order of names (true), as it is broken here,
"only": ["call path", ...] with * and ?: nothing else is a step; "ignore": likewise, these are none,
"looks": whether stat and lstat are steps, too (false)}

    kill        killed before step N
    ENOSPC ...  OSError before step N, the errno of that name; with a "+" behind the name from step N on
    early       a power cut before step N (0: after the last one): names as of the last fsync
    late        the same, but every name is on the disk; data that nobody synced is zeros, times unchanged; also the end of
                a file that is only appended to

A step is a call that changes what is on the disk below the root (or makes it durable), made by the runner's own
process. File systems keep the order of names, so any fsync makes every earlier rename, creation and removal durable.
"""
import atexit
import builtins
import errno
import fnmatch
import json
import os
import runpy
import shutil
import stat
import sys

KILL = 9                # Windows has no signal of that name; there it is the exit code


class Disk:
    """What a power cut would leave of the output folders and of the names below state/ and locks/."""

    def __init__(self, root, outputs, start_synced):
        self.root = root
        self.outputs = [spelled(os.path.join(root, folder)) for folder in outputs]
        self.synced = {}                    # path -> (inode, bytes that are surely on the disk)
        self.undo = []                      # since the last fsync: (path, bytes before or None); a new folder: (path, "folder")
        self.unsynced = {}                  # of the runner's own files: path -> size that was set, not only written
        self.appended = {}                  # of those that are only appended to: path -> bytes that are surely on the disk
        if start_synced:
            for path in self.files():
                self.note_synced(path)
        self.note_names()

    def files(self):
        for top in self.outputs:
            for folder, _, names in os.walk(top):
                for name in names:
                    yield os.path.join(folder, name)

    def note_synced(self, path):
        with open(path, "rb") as file:
            self.synced[path] = (os.stat(path).st_ino, file.read())

    def note_names(self):
        self.undo = []
        self.named = {path: read(path) for path in self.files()}

    def before_change(self, *paths):
        for path in paths:
            self.undo.append((path, read(path)))

    def cut(self, early):
        stamps = {}
        for path, size in self.unsynced.items():
            if os.path.isfile(path):
                put(path, bytes(size))
        for path, size in self.appended.items():
            data = read(path)
            if data is not None:
                put(path, data[:size] + bytes(max(0, len(data) - size)))
        if early:
            for path, data in reversed(self.undo):
                if data == "folder":
                    if os.path.isdir(path):
                        shutil.rmtree(path)
                else:
                    put(path, data)
            for path in list(self.files()):
                if path not in self.named:
                    os.unlink(path)
            for path, data in self.named.items():
                put(path, data)
        for path in list(self.files()):
            before = os.stat(path)
            data = read(path)
            inode, safe = self.synced.get(path, (0, b""))
            kept = safe if data.startswith(safe) else b""
            if os.path.basename(path).startswith("."):
                continue                    # markers are synced before they get their name
            if kept != data:
                put(path, kept + bytes(len(data) - len(kept)))
                os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
                stamps[os.path.relpath(path, self.root)] = before, os.stat(path)
        self.keep_stamps(stamps)

    def keep_stamps(self, stamps):
        """A real power cut brings no new change time: make the cache of digests see none."""
        store = os.path.join(self.root, "state", "digests.json")
        if not os.path.exists(store):
            return
        cache = json.loads(read(store).decode())
        for path, (before, after) in stamps.items():
            entry = cache["files"].get(path)
            if entry is not None and entry[:5] == signature(before):
                entry[:5] = signature(after)
        put(store, json.dumps(cache).encode())


def spelled(path):
    """Return a path as all are spelled here: on Windows the runner's have slashes of both kinds."""
    return os.path.normpath(os.fspath(path))


def signature(found):
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev]


def read(path):
    try:
        with open(path, "rb") as file:
            return file.read()
    except (FileNotFoundError, NotADirectoryError):
        return None


def put(path, data):
    """Set a file's content without the wrapped calls, in place; None removes it."""
    if data is None:
        if os.path.lexists(path):
            REAL["unlink"](path)
        return
    if read(path) != data and os.path.isdir(os.path.dirname(path)):
        with REAL["open_file"](path, "r+b" if os.path.exists(path) else "wb") as file:      # in place: the inode stays
            file.truncate(0)
            file.write(data)


NAMES = ("replace", "rename", "mkdir", "unlink", "remove", "rmdir", "truncate", "ftruncate", "fsync", "write", "open", "close", "link", "symlink", "chmod", "utime")
REAL = {name: getattr(os, name) for name in NAMES}
REAL.update(open_file=builtins.open, stat=os.stat, lstat=os.lstat)


class Fault:
    """The wrapped calls, counted."""

    def __init__(self, settings):
        self.root = os.path.realpath(settings["root"]) + os.sep
        self.action, self.at, self.hit = settings["action"], settings["at"], settings["hit"]
        self.owner = os.getpid()
        self.count = 0
        self.paths = {}                     # descriptor -> path
        self.disk = None
        self.only, self.ignored = settings.get("only", ["*"]), settings.get("ignore", [])
        self.are_looks_steps, self.is_stepping = settings.get("looks", False), False
        if self.action in ("early", "late"):
            self.disk = Disk(settings["root"], settings["outputs"], settings.get("startSynced", True))

    def step(self, call, path, by_path):
        """Count a call; break here if this is the one. by_path: the real call would name the path in its error."""
        if os.getpid() != self.owner or not os.path.realpath(os.path.dirname(path)).startswith(self.root[:-1]):
            return
        text = "%s %s" % (call, os.path.relpath(path, self.root).replace(os.sep, "/"))
        if any(fnmatch.fnmatchcase(text, one) for one in self.ignored) or not any(fnmatch.fnmatchcase(text, one) for one in self.only):
            return
        self.count += 1
        lasting = self.action.endswith("+") and self.count >= self.at
        if self.count != self.at and not lasting:
            return
        with REAL["open_file"](self.hit, "a", encoding="utf-8") as file:
            file.write(text + "\n")
        if self.action == "kill":
            os.kill(self.owner, KILL)
        if self.disk is not None:
            self.cut()
        number = getattr(errno, self.action.rstrip("+"))
        if lasting and number == errno.ENOSPC and call in ("unlink", "rmdir", "remove", "ftruncate", "truncate", "replace", "rename"):
            return                          # a full disk lets things be removed and renamed
        raise OSError(number, os.strerror(number), *([path] if by_path else []))

    def cut(self):
        self.disk.cut(self.action == "early")
        os.kill(self.owner, KILL)

    def changes(self, *paths):
        if self.disk is not None and os.getpid() == self.owner:
            self.disk.before_change(*[path for path in paths if not any(path.startswith(top + os.sep) for top in self.disk.outputs)])

    def install(self):
        for name in ("replace", "rename", "link", "symlink"):
            setattr(os, name, self.two_paths(name))
        for name in ("mkdir", "unlink", "remove", "rmdir", "truncate", "chmod", "utime"):
            setattr(os, name, self.one_path(name))
        for name in ("fsync", "ftruncate", "write"):
            setattr(os, name, self.descriptor(name))
        os.open, os.close, builtins.open = self.os_open, self.os_close, self.open_file
        if self.are_looks_steps:
            os.stat, os.lstat = self.look("stat"), self.look("lstat")

    def look(self, name):
        def call(path, *more, **options):
            if not self.is_stepping and isinstance(path, (str, os.PathLike)):
                self.is_stepping = True         # to find out where a path leads takes looks, too
                try:
                    self.step(name, os.fspath(path), True)
                finally:
                    self.is_stepping = False
            return REAL[name](path, *more, **options)
        return call

    def two_paths(self, name):
        def call(source, target, **more):
            self.step(name, os.fspath(target), True)
            self.changes(spelled(source), spelled(target))
            result = REAL[name](source, target, **more)
            if self.disk is not None and spelled(source) in self.disk.unsynced:
                self.disk.unsynced[spelled(target)] = self.disk.unsynced.pop(spelled(source))
            return result
        return call

    def one_path(self, name):
        def call(path, *more, **options):
            self.step(name, os.fspath(path), True)
            if name in ("unlink", "remove"):
                self.changes(spelled(path))
            result = REAL[name](path, *more, **options)
            if name == "mkdir" and self.disk is not None:
                self.disk.undo.append((spelled(path), "folder"))
            return result
        return call

    def descriptor(self, name):
        def call(descriptor, *more):
            path = self.paths.get(descriptor)
            if path is not None:
                self.step(name, path, False)
            result = REAL[name](descriptor, *more)
            if self.disk is not None and path in self.disk.appended:
                if name == "fsync" or name == "ftruncate" and more[0] < self.disk.appended[path]:
                    self.disk.appended[path] = os.fstat(descriptor).st_size
            elif self.disk is not None and path is not None and name in ("write", "ftruncate"):
                self.disk.unsynced[path] = more[0] if name == "ftruncate" else self.disk.unsynced.get(path, 0)
            if path is not None and name == "fsync" and self.disk is not None and os.getpid() == self.owner:
                if stat.S_ISREG(os.fstat(descriptor).st_mode) and any(path.startswith(top + os.sep) for top in self.disk.outputs) and os.path.exists(path):
                    self.disk.note_synced(path)
                self.disk.unsynced.pop(path, None)
                self.disk.note_names()
            return result
        return call

    def os_open(self, path, flags, *more, **options):
        if flags & os.O_CREAT:
            self.step("open", os.fspath(path), True)
            if not os.path.lexists(path):
                self.changes(spelled(path))
        descriptor = REAL["open"](path, flags, *more, **options)
        if os.path.realpath(os.fspath(path)).startswith(self.root[:-1]):
            self.paths[descriptor] = spelled(path)
            if self.disk is not None and flags & os.O_APPEND:
                self.disk.appended.setdefault(spelled(path), os.fstat(descriptor).st_size)
        return descriptor

    def os_close(self, descriptor):
        self.paths.pop(descriptor, None)
        return REAL["close"](descriptor)

    def open_file(self, path, mode="r", *more, **options):
        if isinstance(path, (str, os.PathLike)) and set(mode) & set("wax+"):
            self.step("open", os.fspath(path), True)
            if self.disk is not None and os.getpid() == self.owner:
                self.changes(spelled(path))
                self.disk.unsynced[spelled(path)] = 0
        return REAL["open_file"](path, mode, *more, **options)


def main(run=None):
    """Break the runner; run: a function that runs it with sys.argv, if it is loaded already."""
    with open(sys.argv[1], encoding="utf-8") as file:
        settings = json.load(file)
    runner = settings["runner"]
    sys.path.insert(0, os.path.dirname(runner))
    if settings.get("boot"):
        import state_store
        state_store.boot_id = lambda: settings["boot"]
    import file_systems
    file_systems.keeps_order = lambda device: settings.get("ordered", True)
    fault = Fault(settings)
    if settings["action"] != "none":
        fault.install()
    sys.argv[:] = [runner] + sys.argv[2:]
    atexit.register(int)                # the end of the run is to be seen here: the runner ends the process itself where nobody waits for its end
    try:
        if run is None:
            runpy.run_path(runner, run_name="__main__")
        else:
            run()
    finally:
        if fault.disk is not None and fault.at == 0:
            fault.disk.cut(fault.action == "early")


if __name__ == "__main__":
    main()
