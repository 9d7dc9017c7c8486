"""Durable files, and the records under state/.

A leaf. Everything here is written so that a kill at any instruction leaves the old or the new, whole, and so that what
is durable is durable in order: first the content, then the name. Names are made durable in groups (Commit), and so are
the outcomes of stages, content and name: the record "running" is kept beside them until then.
"""
from __future__ import annotations

import errno
import os
import stat
import sys
import time

from primitives import (
    BEFORE, GUESSED_BOOT, by_fields, compact, digest_of, is_integer, is_junction, is_link, is_there, leads_out, loads, naming,
    open_descriptor, open_file, pretty_bytes, pretty_pieces, refuse_too_long, remove_quietly, replace, rmtree, unlink)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, Iterable, List, Optional, Tuple, Union

    from primitives import Piece
    Json = Dict[str, Any]
    Data = Union[Piece, List[Piece]]

SCHEMA_VERSION = 1          # of every file under state/ ; a newer one is refused, not guessed at
GROUP_FILES = 512           # names and files that are made durable together, at most
MANY_FILES = 64             # from here on, by one call for the whole file system
FLUSH_S = 1.0
# Of opening what is to be synced: it is gone, a link (its name is the folder's, what it leads to none of ours), a socket.
NO_CONTENT = (errno.ENOENT, errno.ELOOP, errno.ENXIO)
SECRET_BYTES = 32
WAIT_S = 30                 # for locks that are held for moments; a longer wait is a fault of the file system
CLEANED = "its outputs were removed by clean"      # why a stage must run whose record says so


class StateError(Exception):
    """A record cannot be used; str() names the file, what is wrong, and what to do."""

    exit_code = 5


def sync_file(descriptor: int) -> None:
    """Flush a file to the device; on macOS fsync stops at the drive's cache, F_FULLFSYNC does not.

    A failure is never retried: the kernel may have marked the lost pages clean.
    """
    _flush(descriptor)


def _flush(descriptor: int) -> None:
    if sys.platform == "darwin":
        import fcntl
        try:
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
            return
        except OSError:
            pass                        # file systems without it: plain fsync is all there is
    os.fsync(descriptor)


def sync_folder(path: str) -> None:
    """Make names in a folder durable (POSIX; Windows has no such call and needs none for NTFS metadata)."""
    if sys.platform == "win32":
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _sync_as_far_as_it_can(path, descriptor, _flush)
    finally:
        os.close(descriptor)


class Commit:
    """Names and files that must be durable before the run may end, flushed in groups.

    What it holds is already in place for any reader and survives a kill; only a power cut could undo it, and then
    the older state is found, complete.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.folders: Dict[str, None] = {}
        self.files: Dict[str, None] = {}
        self.removed: Dict[str, None] = {}      # folders out of which something went
        self.kept: Dict[str, Any] = {}          # what is of no use any more once all this is durable, and what it looked like
        self.is_timed = False                   # it must not wait for the end of whatever is at work
        self.clock = clock
        self.since = clock()

    def add_file(self, path: str) -> None:
        """Let a file's content be made durable, and its name."""
        self.files[path] = self.folders[os.path.dirname(path)] = None

    def is_due(self) -> bool:
        return len(self.folders) + len(self.removed) + len(self.files) >= GROUP_FILES or self.clock() - self.since >= FLUSH_S

    def seconds_left(self) -> Optional[float]:
        """Return when to flush while nothing else happens, None for not at all."""
        return max(0.0, self.since + FLUSH_S - self.clock()) if self.is_timed else None

    def flush(self) -> None:
        """Sync all folders out of which something went, then all files, then the other folders. Raises: OSError, with what failed
        still held.

        In this order, as a file may say that something is gone: btrfs brings a removal to the disk with its folder only. What was
        kept for the case that the power goes before is removed then; after a failure it stays.
        """
        kept, self.kept = self.kept, {}
        self._sync()
        for path, stamp in kept.items():
            if _stamp_of(path) == stamp:        # another run may have kept its own there since
                remove_quietly(path)
        self.since, self.is_timed = self.clock(), False

    def _sync(self) -> None:
        folders = {*self.folders, *self.removed}
        if len(self.files) + len(folders) > MANY_FILES and sync_file_systems({os.path.dirname(path) for path in self.files} | folders):
            self.files.clear()          # far cheaper than one call for each of very many
            self.folders.clear()
            self.removed.clear()
        for paths, sync in ((self.removed, _sync_folder_if_there), (self.files, _sync_path), (self.folders, _sync_folder_if_there)):
            if sys.platform == "darwin":
                _sync_on_mac(paths)
            else:
                for path in paths:
                    sync(path)
            paths.clear()


def sync_file_systems(folders: Iterable[str]) -> bool:
    """Make all that was written on the file systems of *folders* durable, names included; False where there is no such call.

    Source: syncfs(2), Linux; from 5.8 on it reports errors. Raises: OSError.
    """
    if not sys.platform.startswith("linux") or _kernel() < [5, 8]:
        return False
    import ctypes
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "syncfs"):
        return False
    done = set()
    for folder in sorted(folders):
        try:
            descriptor = os.open(folder or ".", os.O_RDONLY | os.O_NONBLOCK)
        except (FileNotFoundError, NotADirectoryError):
            continue                    # removed since
        try:
            device = os.fstat(descriptor).st_dev
            if device not in done and libc.syncfs(descriptor):
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), folder)
            done.add(device)
        finally:
            os.close(descriptor)
    return True


def _kernel() -> List[int]:
    """Return the first two numbers of the release of the kernel, [] if they cannot be told."""
    return [int(part) for part in os.uname().release.split("-")[0].split(".")[:2] if part.isdigit()]


def _open_to_sync(path: str, windows: bool = sys.platform == "win32") -> int:
    """Open a file whose content is to be flushed: on Windows for writing, and the attribute of one that may only be read goes for
    that moment.

    Elsewhere a pipe that has come in its place is opened as well, without waiting for who writes into it: see _is_to_sync().
    """
    if not windows:
        return os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    if is_link(path):
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)     # as O_NOFOLLOW has it
    mode = os.stat(path).st_mode
    if mode & 0o200:
        return open_descriptor(path, os.O_RDWR)
    os.chmod(path, 0o600)
    try:
        return open_descriptor(path, os.O_RDWR)
    finally:
        os.chmod(path, mode & 0o777)


def _is_to_sync(descriptor: int) -> bool:
    """Tell whether an open file has content on a disk; a pipe or a device that has come in the place of an output has none, and
    is no output."""
    mode = os.fstat(descriptor).st_mode
    return stat.S_ISREG(mode) or stat.S_ISDIR(mode)


def _sync_folder_if_there(path: str) -> None:
    try:
        sync_folder(path)
    except (FileNotFoundError, NotADirectoryError):
        pass                            # removed since: whoever counts on what was in it looks for it


def _sync_on_mac(paths: Iterable[str]) -> None:
    """Flush files and folders to their drives one by one, then each drive once: asked to, it writes all that it holds.

    Source: fsync(2) and fcntl(2) of macOS, F_FULLFSYNC. Raises: OSError.
    """
    drives: Dict[int, Tuple[str, int]] = {}
    try:
        for path in paths:
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | (0 if os.path.isdir(path) else os.O_NOFOLLOW))
            except OSError as error:
                if error.errno in (errno.ENOTDIR, *NO_CONTENT) or isinstance(error, PermissionError):
                    continue            # as in _sync_path()
                raise
            if not _is_to_sync(descriptor):
                os.close(descriptor)
            elif drives.setdefault(os.fstat(descriptor).st_dev, (path, descriptor))[1] != descriptor:
                try:
                    _sync_as_far_as_it_can(path, descriptor, os.fsync)
                finally:
                    os.close(descriptor)
        for path, descriptor in drives.values():
            _sync_as_far_as_it_can(path, descriptor, _flush)
    finally:
        for _, descriptor in drives.values():
            os.close(descriptor)


def _sync_as_far_as_it_can(path: str, descriptor: int, sync: Callable[[int], None]) -> None:
    try:
        sync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):        # some network file systems cannot sync folders
            raise OSError(error.errno, error.strerror, path) from error


def _sync_path(path: str) -> None:
    try:
        descriptor = _open_to_sync(path)
    except OSError as error:
        if error.errno in NO_CONTENT or isinstance(error, PermissionError):
            return                      # removed since, or not readable by us: the record's own check will tell
        raise
    try:
        if _is_to_sync(descriptor):
            sync_file(descriptor)
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from error
    finally:
        os.close(descriptor)


def write_atomic(path: str, data: Data, commit: Optional[Commit] = None, durable: bool = True, temporary: str = "",
                 mode: int = 0o666) -> None:
    """Replace *path* with *data*, bytes or pieces of them, so that a reader sees all of the old or all of the new.

    Durable on return: file and folder are synced (folder: POSIX only); with *commit*, the folder when it flushes.
    durable=False is for files that mean nothing after a restart. The temporary file has one fixed name beside the
    target, because each target has one writer at a time (its lock's owner): a dead writer's is simply replaced. Targets
    that are written but once share a *temporary* name under a common lock, or a dead writer's would stay for ever.
    Raises: OSError; then no temporary file is left, and *path* is unchanged, unless only the last step failed, the sync
    of the folder: then it is replaced, and whether that outlives a power cut is open.
    """
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, ".%s.tmp" % (temporary or name))
    try:
        write_new(temporary, data, durable, mode)
        replace(temporary, path)
        if durable and commit is None:
            sync_folder(folder or ".")
        elif durable and commit is not None:
            commit.folders[folder] = None
    except OSError as error:
        remove_quietly(temporary)
        raise OSError(error.errno, error.strerror, path) from error


def write_new(path: str, data: Data, durable: bool = True, mode: int = 0o666) -> None:
    """Write a new file, replacing a dead writer's of the same name; with *durable* its content is on the disk on return."""
    try:
        descriptor = _create_new(path, mode)
        try:
            write_all(descriptor, data)
            if durable:
                sync_file(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from error     # the calls on descriptors name no file


def _create_new(path: str, mode: int) -> int:
    """Open a new file for writing; never follow or overwrite what somebody planted under its name."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    try:
        return os.open(path, flags, mode)
    except FileExistsError:
        unlink(path)
        return open_descriptor(path, flags, mode)


def write_all(descriptor: int, data: Data) -> None:
    """Write bytes, or a list of pieces one after the other, to an open file, whole. Raises: OSError; then a part may be
    written."""
    for piece in data if isinstance(data, list) else [data]:
        view = memoryview(piece)
        while view:
            view = view[os.write(descriptor, view):]


def remove_tree(path: str) -> None:
    """Remove a folder and all in it, folders that may not be written in, too.

    Raises: OSError that names the folder; of what is in it the system tells the last name only.
    """
    try:
        rmtree(path)
    except FileNotFoundError as error:
        refuse_too_long(os.fsdecode(error.filename or path))
        raise
    except PermissionError:
        _open_folders(path)
        try:
            rmtree(path)
        except OSError as error:
            raise OSError(error.errno, error.strerror, path) from error


def _open_folders(path: str) -> None:
    """Give ourselves all rights on a folder and those in it, as far as they are ours, on Windows on the files, too."""
    folders = [path]
    while folders:
        current = folders.pop()
        try:
            os.chmod(current, 0o700)
            with os.scandir(current) as entries:
                for entry in entries:
                    if is_junction(entry):
                        continue        # what lies behind it is not ours
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    elif sys.platform == "win32":
                        os.chmod(entry.path, 0o600)     # what may only be read is not removed there
        except OSError:
            pass                        # removing it says what is wrong


def remove_durably(path: str, commit: Commit) -> bool:
    """Remove *path* if it is there; tell whether it was."""
    try:
        unlink(path)
    except FileNotFoundError:
        return False
    commit.removed[os.path.dirname(path)] = None
    return True


def remove_empty_folder(path: str, commit: Commit) -> bool:
    """Remove a folder if nothing is in it; tell whether it is gone."""
    try:
        os.rmdir(path)
    except OSError:
        return False
    commit.folders.pop(path, None)          # what was to be synced there is gone with it
    commit.removed[os.path.dirname(path)] = None
    return True


def make_folder(path: str, commit: Commit) -> None:
    """Create *path* and its parents where they are missing."""
    if os.path.isdir(path):
        return
    parent = os.path.dirname(path)
    if parent and parent != path:
        make_folder(parent, commit)
    try:
        os.mkdir(path)
    except FileExistsError:
        if os.path.isdir(path):
            return
        if not os.path.islink(path):
            os.stat(path)               # a mount that does not answer any more says so itself
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path) from None
    commit.folders[parent or "."] = None


def record_json(value: Any) -> bytes:
    """Return the readable form in which records are stored: indented UTF-8 with a last newline."""
    return pretty_bytes(value)


def utc_text(seconds: float) -> str:
    """Return seconds since the epoch as ISO 8601 UTC with milliseconds and Z."""
    whole, thousandths = divmod(int(seconds * 1000), 1000)
    return "%s.%03dZ" % (time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole)), thousandths)


def new_run_id() -> str:
    """Return the id of a run that was given none: the UTC time and a random tail."""
    return time.strftime("%Y%m%dT%H%M%SZ-", time.gmtime()) + os.urandom(3).hex()


def boot_id() -> str:
    """Return a text that is another one after each start of the machine.

    Linux and macOS tell. Elsewhere it is guessed, "start-N", from the time of the start in minutes: after a step of the
    clock it is another one, too, and what was not synced before counts as lost: digests are taken anew, checkpoints dropped.
    """
    try:
        with open("/proc/sys/kernel/random/boot_id", "rb") as file:    # a file of text would have its codec looked up and loaded
            return file.read().decode("ascii").strip()
    except OSError:
        pass
    if sys.platform == "darwin":
        told = _mac_boot_id()
        if told:
            return told
    if sys.platform == "win32":
        import ctypes
        ctypes.windll.kernel32.GetTickCount64.restype = ctypes.c_ulonglong
        up_s = ctypes.windll.kernel32.GetTickCount64() / 1000.0
    else:
        up_s = time.monotonic()         # most often since the start of the machine
    return "%s%d" % (GUESSED_BOOT, round((time.time() - up_s) / 60))


def _mac_boot_id() -> str:
    """Return what macOS calls this start, a UUID; "" where it tells none. Its monotonic clock stands still while the machine
    sleeps."""
    import ctypes
    text, size = ctypes.create_string_buffer(64), ctypes.c_size_t(64)
    try:
        failed = ctypes.CDLL(None).sysctlbyname(b"kern.bootsessionuuid", text, ctypes.byref(size), None, ctypes.c_size_t(0))
    except (AttributeError, OSError):
        return ""
    return "" if failed else text.value.decode("ascii", "replace").strip()


class StateStore:
    """The records under state/ of one root. Reads refuse what is damaged; writes are atomic and grouped by `commit`."""

    def __init__(self, root: str, writable: bool = True, now: Callable[[], float] = time.time) -> None:
        self.root = root
        self.folder = os.path.join(root, "state")
        self.writable = writable
        self.now = now
        self.memo: Dict[str, Any] = {}      # what need not be found out twice in a run
        self.lock: Optional[Callable[[str], Any]] = None    # makes the kernel lock of a given name, where several runs may write
        self.commit = Commit()
        # The content of outcomes, too, is synced with the group; only where the file system keeps the order of names.
        self.in_groups = False

    def path(self, name: str) -> str:
        return os.path.join(self.folder, name)

    def prepare(self) -> None:
        """Create state/ and locks/ where they are missing."""
        make_folder(self.folder, self.commit)
        make_folder(os.path.join(self.root, "locks"), self.commit)

    def read(self, name: str) -> Optional[Json]:
        """Return a record, None if there is none. Raises: StateError; the damaged file is then set aside."""
        data = self._data(name)
        return None if data is None else self._checked(name, *_parsed(data))

    def _checked(self, name: str, record: Any, problem: str) -> Json:
        if not problem and record["schema"] > SCHEMA_VERSION:
            raise StateError("state/%s was written by a newer runner (schema %d, this one knows %d); use that one" % (name,
                record["schema"], SCHEMA_VERSION))
        if problem:
            raise StateError("state/%s %s; %s" % (name, problem, self.set_aside(name)))
        return record       # type: ignore[no-any-return]

    def _data(self, name: str) -> Optional[bytes]:
        path = self.path(name)
        try:
            with naming(path), open_file(path) as file:
                data: bytes = file.read()
                return data
        except FileNotFoundError:
            return None

    def set_aside(self, name: str) -> str:
        """Rename a damaged file to NAME.corrupt-<time>; return what to tell the user."""
        if not self.writable:
            return "a run would set it aside"
        aside = "%s.corrupt-%s" % (name, time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(self.now())))
        count = 1
        while is_there(self.path(aside)):
            count += 1
            aside = "%s-%d" % (aside.rpartition("Z")[0] + "Z", count)
        replace(self.path(name), self.path(aside))
        sync_folder(self.folder)
        return "it was set aside as state/%s; run again to do the work anew without it" % aside

    def write(self, name: str, record: Json, temporary: str = "") -> List[Piece]:
        """Store a record, return its bytes in pieces: on the disk on return, its name when `commit` is flushed. temporary: as in
        write_atomic()."""
        pieces = pretty_pieces(dict({"schema": SCHEMA_VERSION}, **record))
        write_atomic(self.path(name), pieces, self.commit, temporary=temporary)
        return pieces

    def write_metrics(self, run_id: str, metrics: Json) -> Json:
        """Store the metrics of a run that ends; return what its record says of them."""
        pieces = self.write("metrics_%s.json" % run_id, metrics, "metrics.json")
        return {"bytes": sum(map(len, pieces)), "sha256": digest_of(pieces)}

    def write_stage(self, stage: str, record: Json) -> None:
        """Store a stage's record, a line for each field. A name that is not UTF-8, of what a failed attempt has left, stands
        there in JSON's own escapes.

        "running" is as durable as by write(). An outcome is seen by any reader on return and, where `in_groups`, durable with the
        next flush of `commit`, content and name; if the power goes before, stage() finds "running", as after a kill.
        """
        name = "stage_%s.json" % stage
        data = by_fields(dict({"schema": SCHEMA_VERSION}, **record)).encode("utf-8", "backslashreplace")
        is_kept = self.in_groups and record["lastStatus"] != "running" and self._keep(name)
        write_atomic(self.path(name), data, self.commit, durable=not is_kept)
        self.commit.is_timed = True
        if is_kept:
            self.commit.add_file(self.path(name))
        else:
            # Of a run that died: from now on it would tell of what has been done since.
            remove_quietly(self.path(BEFORE % name))

    def _keep(self, name: str) -> bool:
        """Keep a record, which is durable, beside the next one until `commit` is flushed; False where that cannot be: then that
        must be durable at once.

        What a run has kept that died stays as it is, for whether the record itself is durable nobody knows then.
        """
        kept = self.path(BEFORE % name)
        try:
            os.link(self.path(name), kept)
        except OSError:
            return False
        self.commit.kept[kept] = _stamp_of(kept)
        return True

    def sync_stage(self, stage: str, is_of_earlier_boot: bool = False) -> None:
        """Make a stage record durable with the next flush of `commit` if the run that wrote it may have died, or may die, before
        that did so.

        What was kept beside it stays: if a sync of that run has failed, a second one would tell nothing. is_of_earlier_boot: the
        record has been read, whole, and was written before the machine was started; so it comes from the disk, and what was kept
        is of no use any more.
        """
        name = "stage_%s.json" % stage
        if is_of_earlier_boot:
            remove_quietly(self.path(BEFORE % name))
        elif is_there(self.path(BEFORE % name)):
            self.commit.add_file(self.path(name))

    def stage_names(self) -> List[str]:
        """Return the names of the stages that have a record, sorted."""
        names = os.listdir(self.folder) if os.path.isdir(self.folder) else []
        return sorted(name[len("stage_"):-len(".json")] for name in names if name.startswith("stage_") and name.endswith(".json"))

    def stage(self, stage: str) -> Optional[Json]:
        """Return a stage's record, None if there is none; for an outcome that the power took before it was durable what was kept
        beside it.

        Raises: StateError, as read() does.
        """
        name = "stage_%s.json" % stage
        data = self._data(name)
        if data is None:
            return None
        found, problem = _parsed(data)
        kept = self._data(BEFORE % name) if found is None else None
        record = self._checked(name, *((found, problem) if kept is None else _parsed(kept)))
        problem = stage_record_problem(record, stage)
        if problem:
            raise StateError("state/%s is damaged (%s); %s" % (name, problem, self.set_aside(name)))
        return record

    def secret(self) -> bytes:
        """Return the random key for digests of variables' values, made on first use (state/env.key, mode 0600)."""
        path = self.path("env.key")
        try:
            with open(path, "rb") as file:
                secret = file.read()
            if len(secret) == SECRET_BYTES:
                return secret
            raise StateError("state/env.key is damaged; %s" % self.set_aside("env.key"))    # a short key can be guessed
        except FileNotFoundError:
            if not self.writable:
                return b""
        except PermissionError as error:
            if not self.writable:
                raise OSError(error.errno,
                              "only who runs the pipeline may read it, so nobody else can tell whether a stage with passEnv is up to date",
                              path) from error
            raise
        guard = self.lock("env.guard") if self.lock is not None else None
        if guard is not None:
            guard.acquire(WAIT_S, "state/env.key is held by another run for %d s; run again" % WAIT_S)
        try:
            if not is_there(path):      # of several runs at once, one makes it for all
                # From birth: a kill may come before any chmod.
                write_atomic(path, os.urandom(SECRET_BYTES), self.commit, mode=0o600)
        finally:
            if guard is not None:
                guard.release()
        return self.secret()


def _stamp_of(path: str) -> Any:
    """Return what tells a file from another one of its name, None where there is none."""
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _parsed(data: bytes) -> Tuple[Any, str]:
    """Return (what the JSON text of a record says, None if it is none; what is wrong with it or "")."""
    try:
        record = loads(data.decode("utf-8"))
    except (ValueError, RecursionError):
        return None, "is damaged (not JSON)"
    is_record = isinstance(record, dict) and is_integer(record.get("schema"))
    return record, "" if is_record else "is not a record of this runner"


def made_elsewhere(record: Optional[Json], output_dir: str) -> str:
    """Return the folder in which are the outputs that a stage record tells of, if that is not *output_dir*, the stage's of now;
    else ""."""
    folder = record["keyParts"].get("outputDir") if record is not None else None
    return folder if isinstance(folder, str) and folder != output_dir else ""


def last_run_text(record: Json) -> str:
    """Return how the last run of a stage that is not done came to its end, as a reason to run it."""
    return "last run %s" % {"running": "died", "interrupted": "was interrupted"}.get(record["lastStatus"], "failed: %s" % record.get("lastError"))


def outputs_are_logged(record: Json) -> bool:
    """Tell whether a stage record leaves its outputs to the task log: they are too many for it, or of tasks of a run that has not
    ended well."""
    return not record["outputs"] and bool((record.get("tasks") or {}).get("outputs") or is_of_unfinished_tasks(record))


def is_of_unfinished_tasks(record: Json) -> bool:
    """Tell whether a stage record is of forEach and of a run that has not ended well: what was made, the task log alone tells."""
    return record["lastStatus"] != "ok" and "tasks" in record["keyParts"]


def dead_token(record: Optional[Json]) -> str:
    """Return the token of the attempt that a stage record calls running: under the stage's lock its runner is dead."""
    return str(record.get("token", "")) if record is not None and record["lastStatus"] == "running" else ""


def stage_record_problem(record: Json, stage: str) -> str:
    """Return what in a stage record cannot be worked with, or ""."""
    if record.get("stage") != stage:
        return "it names the stage %s" % compact(record.get("stage"))
    if record.get("lastStatus") not in ("running", "ok", "failed", "interrupted"):
        return "lastStatus is %s" % compact(record.get("lastStatus"))
    if not isinstance(record.get("idempotencyKey"), str) or not isinstance(record.get("keyParts"), dict):
        return "its key is missing"
    if not _are_key_parts(record["keyParts"]):
        return "the parts of its key are of another form"
    if not _is_output_list(record.get("outputs")) or not _is_output_list(record.get("previous", [])):
        return "its outputs are not a list of path, bytes, sha256"
    return ""


def _are_key_parts(parts: Json) -> bool:
    """Tell whether the parts of a key can be compared with others; what is missing may be missing."""
    for part in ("modules", "inputs", "watch"):
        files = parts.get(part) or []
        if not isinstance(files, list) or not all(isinstance(one, list) and len(one) == 2 and all(isinstance(text, str) for text in one)
                                                  for one in files):
            return False
    folder = parts.get("outputDir")
    if isinstance(folder, str) and leads_out(folder):
        return False
    return all(isinstance(parts.get(part) or {}, dict) for part in ("processor", "params", "env", "passEnv"))


def _is_output_list(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(one, dict) and isinstance(one.get("path"), str) and is_integer(one.get("bytes")) and isinstance(one.get("sha256"), str)
        and not leads_out(one["path"]) for one in value)


def find_run(store: StateStore, run_id: str, invocation: int) -> Optional[Json]:
    """Return the record of one invocation of a run: the latest, or an earlier one kept beside it."""
    for name in ("run_%s.json" % run_id, "run_%s.%d.json" % (run_id, invocation)):
        record = store.read(name)
        if record is not None and record.get("runId") == run_id and record.get("invocation") == invocation:
            return record
    return None


def died_before_marker(store: StateStore, stage: str, record: Json) -> bool:
    """Tell whether the run that finished the stage came to its end between the stage record and the run record.

    The marker is written between these two: where the run record knows of the success, somebody removed the marker.
    """
    run = find_run(store, str(record.get("lastRunId")), record.get("lastInvocation", 0))
    return run is not None and not any(
        one.get("stage") == stage and one.get("status") == "ok" and not one.get("recovered") for one in run.get("stages", []))


def marker_bytes(stage: str, key: str, run_id: Optional[str], now: float) -> bytes:
    """Return what a stage's marker holds."""
    return record_json({"schema": SCHEMA_VERSION, "stage": stage, "key": key, "runId": run_id, "at": utc_text(now)})


def read_marker(path: str) -> Optional[str]:
    """Return the key in a stage's marker, "" for a marker that is not ours, None without one.

    One whose content did not reach the disk whole, as only a power cut leaves it, is none.
    """
    try:
        with open_file(path) as file:
            data = file.read(1 << 16)
        marker = loads(data.decode("utf-8"))
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    except OSError:
        return ""
    key = marker.get("key") if isinstance(marker, dict) else None
    return key if isinstance(key, str) else ""


def lost_path(root: str, output_dir: str, stage: str) -> str:
    """Return where the marker goes of a stage whose outputs could not be synced."""
    return os.path.join(root, output_dir, ".%s.lost" % stage)


def mark_lost(root: str, output_dir: str, stage: str, is_of_tasks: bool) -> None:
    """Take a finished stage's marker away, as far as the file system still lets us; a rename needs no space.

    Where a stage of tasks has no marker yet, an empty file says the same of the tasks that are done.
    """
    marker, lost = marker_path(root, output_dir, stage), lost_path(root, output_dir, stage)
    try:
        replace(marker, lost)
    except OSError as error:
        is_refused = not isinstance(error, FileNotFoundError)      # a marker that is only removed counts as one that was not written yet
        if is_of_tasks or is_refused:
            try:
                write_new(lost, b"", durable=False)
            except OSError:
                pass
        remove_quietly(marker)


def marker_path(root: str, output_dir: str, stage: str) -> str:
    """Return where the marker of a finished stage stands."""
    return os.path.join(root, output_dir, ".%s.done" % stage)
