"""The fork server: a Python with the standard library modules of one stage loaded, forked for each of its tasks.

    python src/fork_server.py REQUESTS REPLIES PADDING      (descriptors; started by fork_client, of no use to people)

    setup line -> modules loaded -> "ready" | "unusable"
    request line -> checks -> fork -> "started PID" | "declined WHY"        (what is declined is started as a process of its own)
    a child's end -> "ended PID ..."; before that, by the child, if it could not be made like a fresh process: "unprepared PID ..."
    end of the requests: the runner is gone or has closed it -> children killed, end

Started fresh, not forked from the runner: nothing of the runner's memory (the ledger's keys) is in it. Single-threaded, so that
forking is safe. Holds what a task needs and no more: scripts and modules are cached as code, never as modules that were run,
and a file that changes is read again. It never writes to 1 and 2, which are there so that sys.stdout is made for a pipe.
"""
from __future__ import annotations

import os
import sys

STARTUP = frozenset(sys.modules)        # what any fresh Python of this environment has loaded

import gc  # noqa: E402
import json  # noqa: E402
import select  # noqa: E402
import signal  # noqa: E402
import time  # noqa: E402
import warnings  # noqa: E402
from importlib.machinery import SourceFileLoader  # noqa: E402

import forked_task  # noqa: E402

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List, Optional, Sequence, Set, Tuple
    Json = Dict[str, Any]
    Signature = Tuple[int, int, int, int]

READ_BYTES = 1 << 16
RACY_NS = 50_000_000        # a file that changed this short a time ago may change again and look the same: it is not cached
TOKEN_VARIABLE, FAIL_VARIABLE = "PIPELINE_ATTEMPT_TOKEN", "PIPELINE_SIMULATED_FAIL"
LINUX = sys.platform.startswith("linux")
# Loaded ahead if the stage's Python files import them. Left out is what starts threads or processes, opens something, talks to
# a terminal, or notes about this process what forked_task does not renew.
LOADABLE = frozenset("""
    abc argparse array ast base64 binascii bisect bz2 calendar codecs collections colorsys configparser contextlib copy csv ctypes dataclasses
    datetime decimal difflib enum errno fcntl filecmp fnmatch fractions functools gc getopt getpass glob graphlib grp gzip hashlib heapq hmac html
    importlib inspect io ipaddress itertools json keyword linecache locale logging lzma marshal math mimetypes mmap numbers operator os pathlib
    pickle pkgutil platform posixpath pprint pwd queue quopri random re reprlib resource sched secrets select selectors shelve shlex shutil signal
    sqlite3 stat statistics string stringprep struct subprocess tarfile tempfile textwrap threading time timeit token tokenize traceback types typing
    unicodedata uuid warnings weakref xml zipfile zipimport zlib zoneinfo""".split())


class Declined(Exception):
    """This task is to be started as a process of its own; str() says why."""


def signature(path: str) -> Signature:
    """Return what tells one content of a file from another. Raises: OSError."""
    found = os.stat(path)
    return found.st_mtime_ns, found.st_size, found.st_ino, found.st_ctime_ns


def is_settled(found: Signature) -> bool:
    """Tell whether the last change is long enough ago to be seen in the signature of the next."""
    return time.time_ns() - max(found[0], found[3]) > RACY_NS


def judge_as_usual() -> None:
    """Let the interpreter forget the filters of a catch of warnings: it keeps those by which it judged last, and judges by them
    when it ends."""
    with warnings.catch_warnings(record=True):
        try:
            warnings.warn_explicit("", UserWarning, "", 0)
        except UserWarning:
            pass                        # judged all the same


# --- code ------------------------------------------------------------------------------------------------------------

class CodeReader(SourceFileLoader):
    """Reads a module's code as its import would, but writes no bytecode: that is left to the first task."""

    lacks_bytecode = False

    def _cache_bytecode(self, *arguments: Any) -> None:
        self.lacks_bytecode = True


class Codes:
    """Code objects of scripts and of the modules beside them; what a task imports is executed anew, but not read anew."""

    def __init__(self, modules: Sequence[str]) -> None:
        self.modules = list(modules)
        self.known: Dict[str, Tuple[Signature, Any, bytes]] = {}
        self.tried: Dict[str, Signature] = {}
        self.instead: Dict[str, Any] = {}       # path -> what is executed there the next time

    def script(self, path: str) -> Tuple[Any, bytes]:
        """Return (code, source) of a script; code None if compiling it warns. Raises: Declined."""
        try:
            now = signature(path)
            if path in self.known and self.known[path][0] == now:
                return self.known[path][1:]
            with open(path, "rb") as file:
                source = file.read()
            code = self._quietly(lambda: compile(source, path, "exec", dont_inherit=True))
            if is_settled(now) and signature(path) == now:
                self._keep(path, now, code, source)
        except (OSError, SyntaxError, ValueError, MemoryError, RecursionError) as error:
            raise Declined("%s: %s" % (path, error)) from None
        return code, source

    def refresh(self) -> None:
        """Read the modules that have changed; one without bytecode is left to the first task, which then writes it."""
        for path in self.modules:
            try:
                now = signature(path)
                if path in self.known and self.known[path][0] == now:
                    continue
                self.known.pop(path, None)
                reader = CodeReader("module", path)
                code = self._quietly(lambda reader=reader: reader.get_code("module"))
                is_turn_of_task = reader.lacks_bytecode and not sys.dont_write_bytecode and self.tried.get(path) != now
                self.tried[path] = now
                if code is not None and not is_turn_of_task and is_settled(now) and signature(path) == now:
                    self._keep(path, now, code, b"")
            except (OSError, ImportError, SyntaxError, ValueError, EOFError, RecursionError):
                pass                    # whoever imports it meets the error

    def _quietly(self, make: Any) -> Any:
        """Return what make() makes, None if it warns: a fresh process would warn each time."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            made = make()
        if caught:
            judge_as_usual()
        return None if caught else made

    def _keep(self, path: str, now: Signature, code: Any, source: bytes) -> None:
        self.known[path] = (now, code, source)
        gc.freeze()

    def serve_imports(self) -> None:
        """Let the loader of source files take code from here while the file is what it was."""
        original, known, instead = SourceFileLoader.get_code, self.known, self.instead

        def get_code(loader: Any, fullname: str) -> Any:
            if loader.path in instead:
                return instead.pop(loader.path)
            kept = known.get(loader.path)
            if kept is not None and type(loader) is SourceFileLoader:
                try:
                    if signature(loader.path) == kept[0]:
                        return kept[1]
                except OSError:
                    pass
            return original(loader, fullname)

        # A traceback leaves out what is importlib's around a module that cannot be compiled; with a stranger among it, it would
        # not.
        get_code.__code__ = get_code.__code__.replace(co_filename=original.__code__.co_filename)
        SourceFileLoader.get_code = get_code    # type: ignore[method-assign, assignment, unused-ignore]


# --- modules ---------------------------------------------------------------------------------------------------------

class Modules:
    """The standard library modules loaded ahead, and whether a fresh process would find the same ones."""

    def __init__(self, script: str) -> None:
        folder = os.path.dirname(os.__file__)
        self.library = tuple({folder + os.sep, os.path.realpath(folder) + os.sep})
        # What comes before the standard library on a task's sys.path: the script's folder, then the stage's own PYTHONPATH.
        self.folders = [os.path.dirname(os.path.realpath(script))]
        for path in sys.path[1:]:
            if path + os.sep in self.library:
                break
            self.folders.append(path)
        self.seen: Dict[str, Tuple[Optional[Signature], Set[str]]] = {}

    def load(self, names: Sequence[str]) -> None:
        """Import those of *names* that may be loaded ahead."""
        local = {name.partition(".")[0] for folder in self.folders for name in _listing(folder)}
        for name in sorted(set(names)):
            parent = name.rpartition(".")[0]
            if name.partition(".")[0] not in LOADABLE - local or (parent
                                                                  and not hasattr(sys.modules.get(parent), "__path__")) or name.endswith("__main__"):
                continue
            before = set(sys.modules)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                try:
                    __import__(name)
                except Exception:
                    caught.append(None)     # type: ignore[arg-type]
            if caught:                  # it is the task that is to warn, or to fail
                judge_as_usual()
                for added in set(sys.modules) - before:
                    del sys.modules[added]

    def names(self) -> Set[str]:
        """Return the top names of what is loaded here and not in a fresh Python."""
        return {name.partition(".")[0] for name in set(sys.modules) - STARTUP} - set(forked_task.OWN_MODULES)

    def problem(self) -> str:
        """Return which file a fresh process would load in the place of a module that is loaded here, or ""."""
        for folder in self.folders:
            try:
                now: Optional[Signature] = signature(folder)
            except OSError:
                now = None
            if folder not in self.seen or self.seen[folder][0] != now or (now is not None and not is_settled(now)):
                self.seen[folder] = (now, self._shadows(folder) if now is not None else set())
            if self.seen[folder][1]:
                return "%s hides modules of the standard library: %s" % (folder, ", ".join(sorted(self.seen[folder][1])))
        return ""

    def _shadows(self, folder: str) -> Set[str]:
        return {name.partition(".")[0] for name in _listing(folder)} & self.names()


def _listing(folder: str) -> List[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []                       # not there, or a file (zip)


# --- the kit ---------------------------------------------------------------------------------------------------------

class Kit:
    """processor_kit, executed once for all tasks, as long as its file is what it was.

    A task gets it when its own search for the module ends at this very file; until then it is not among its modules.
    """

    def __init__(self, codes: Codes, paths: Sequence[str], library: Tuple[str, ...]) -> None:
        self.codes, self.path, self.library = codes, paths[0] if paths else "", library
        self.name = os.path.splitext(os.path.basename(self.path))[0]
        self.loaded: Optional[Signature] = None
        self.module: Any = None

    def load(self) -> bool:
        """Execute it, once its code is at hand; tell whether that was now. Not by an import: what that finds may be another
        file."""
        if self.loaded is not None or self.path not in self.codes.known:
            return False
        self.loaded, code, _ = self.codes.known[self.path]
        module = sys.modules[self.name] = type(sys)(self.name)
        module.__file__ = self.path
        try:
            exec(code, module.__dict__)
            self.module = module
        except Exception:               # it is the task that is to fail
            pass
        finally:
            del sys.modules[self.name]
        forked_task.forget_folders(self.library)
        gc.freeze()
        return True

    def serve_import(self) -> None:
        """Let the loader of source files take the module from here, once in a task: who imports it again executes it again.

        What it then executes is nothing; a frame of ours around it would show in the tracebacks of other modules.
        """
        original, nothing = SourceFileLoader.create_module, compile("", self.path, "exec", dont_inherit=True)

        def create_module(loader: Any, spec: Any) -> Any:
            kept = self.module
            if kept is None or type(loader) is not SourceFileLoader or (loader.path, spec.name) != (self.path, self.name) or not self._is_as_it_was():
                return original(loader, spec)
            self.module = None
            self.codes.instead[self.path] = nothing
            kept._own_pid = os.getpid()         # it was executed in the server
            for name in ("__loader__", "__file__", "__cached__"):
                vars(kept).pop(name, None)      # the import system sets them, each that this version of Python has
            return kept

        SourceFileLoader.create_module = create_module  # type: ignore[method-assign, assignment, unused-ignore]

    def _is_as_it_was(self) -> bool:
        try:
            return FAIL_VARIABLE not in os.environ and signature(self.path) == self.loaded
        except OSError:
            return False


# --- the server ------------------------------------------------------------------------------------------------------

class Server:
    """The loop; serve() returns in a child only, with its task."""

    refusal = ""                    # why no task may be forked, whatever is asked

    def __init__(self, requests: int, replies: int, setup: Json) -> None:
        self.requests, self.replies = requests, replies
        self.slots: List[int] = setup["slots"]
        self.codes, self.modules = Codes(setup["modules"]), Modules(setup["script"])
        self.modules.load(setup["imports"])
        self.kit = Kit(self.codes, setup["kit"], self.modules.library)
        self.living: Set[int] = set()
        self.pending = b""
        self.alarm, ring = os.pipe()
        for descriptor in (self.alarm, ring):
            os.set_blocking(descriptor, False)
        libc, title = _system()
        handlers = {number: signal.getsignal(number) for number in forked_task.IGNORED + (signal.SIGCHLD,)}
        self.before = forked_task.Before(handlers, signal.pthread_sigmask(signal.SIG_BLOCK, []), [requests, self.alarm, ring] + self.slots, replies, os.getpid(),
                                         frozenset(), self.modules.library, libc, title)
        for number in forked_task.IGNORED:
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(ring, warn_on_full_buffer=False)

    def unusable(self) -> str:
        """Return why no task can be run by this process, or ""."""
        threads = len(os.listdir("/proc/self/task")) if LINUX else 1 + sys.modules["_thread"]._count()
        return "the interpreter starts with %d threads" % threads if threads != 1 else self.modules.problem()

    def serve(self) -> Optional[forked_task.Task]:
        """Fork for each request and tell of each end; None when the requests have ended, a task in a child."""
        self.codes.serve_imports()
        self.kit.serve_import()
        self.before = self.before._replace(modules=frozenset(sys.modules))
        forked_task.forget_folders(self.modules.library)
        gc.collect()
        gc.freeze()
        poll = select.poll()
        for descriptor in (self.requests, self.alarm):
            poll.register(descriptor, select.POLLIN)
        while True:
            ready = [descriptor for descriptor, _ in poll.poll()]
            if self.alarm in ready:
                os.read(self.alarm, READ_BYTES)
                self._tell_ends()
            if self.requests in ready:
                data = os.read(self.requests, READ_BYTES)
                if not data:
                    return None
                *lines, self.pending = (self.pending + data).split(b"\n")
                for line in lines:
                    task = self._launch(json.loads(line))
                    if task is not None:
                        return task

    def _launch(self, request: List[Any]) -> Optional[forked_task.Task]:
        """Fork for a request, or decline it; return its task in the child."""
        slot, argv, env, folder = request
        pid = -1
        try:
            task = self._prepare(argv, env, folder, slot)
            # Blocked: a signal that reaches the child before it has its own handlers is kept for it.
            signal.pthread_sigmask(signal.SIG_BLOCK, self.before.handlers)
            try:
                pid = os.fork()
            finally:
                if pid:
                    signal.pthread_sigmask(signal.SIG_SETMASK, self.before.mask)
        except (Declined, OSError) as problem:
            self.tell("declined", str(problem))
        if pid == 0:
            return task
        if pid > 0:
            self.living.add(pid)
            self.tell("started", pid)
        return None

    def _prepare(self, argv: List[str], env: Dict[str, Optional[str]], folder: str, slot: int) -> forked_task.Task:
        """Return the task. Raises: Declined, OSError."""
        problem = self.refusal or self.modules.problem()
        if problem:
            raise Declined(problem)
        if os.path.dirname(os.path.realpath(argv[1])) != self.modules.folders[0]:
            raise Declined("%s lies in another folder than the stage's processor" % argv[1])
        code, source = self.codes.script(argv[1])
        self.codes.refresh()
        if self.kit.load():
            self.before = self.before._replace(modules=frozenset(sys.modules))
        os.chdir(folder)
        return forked_task.Task(argv, env, folder, self.slots[slot], code, source)

    def _tell_ends(self) -> None:
        while self.living:
            pid, status, usage = os.wait4(-1, os.WNOHANG)
            if not pid:
                return
            self.living.discard(pid)
            rss = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
            self.tell("ended", pid, status, usage.ru_utime + usage.ru_stime, rss)

    def tell(self, *words: Any) -> None:
        """Send one reply."""
        os.write(self.replies, json.dumps(words).encode("ascii") + b"\n")

    def end_children(self) -> None:
        """Kill what still lives, with the sessions."""
        import process_traits
        import process_tree
        process_tree.send(self.living, signal.SIGKILL)
        traits = [process_traits.Traits("", pid, "", 0) for pid in self.living]
        if traits:
            process_tree.end_members(traits)


def _system() -> Tuple[Any, Any]:
    """Return (libc, Title) where they are to be had: Linux, and an interpreter with ctypes. Calls keep the interpreter's lock."""
    if not LINUX:
        return None, None
    try:
        import ctypes
        libc = ctypes.PyDLL(None)
        libc.prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
        libc.exit.argtypes = [ctypes.c_int]
        return libc, forked_task.Title.find(TOKEN_VARIABLE)
    except (ImportError, OSError, AttributeError):
        return None, None


def _read_setup(requests: int) -> Json:
    line = b""
    while not line.endswith(b"\n"):
        data = os.read(requests, 1)         # what follows belongs to the loop
        if not data:
            os._exit(0)
        line += data
    found: Json = json.loads(line)
    return found


def main(requests: int, replies: int) -> None:
    """Be the server; or, in a child, be a fresh process and run its script."""
    gc.disable()
    server = Server(requests, replies, _read_setup(requests))
    problem = server.refusal = server.unusable()
    server.tell(*(("unusable", problem) if problem else ("ready",)))
    task = None
    try:
        task = server.serve()
    except (OSError, ValueError):           # the runner has gone in the middle of a line or of a reply
        if os.getpid() != server.before.server_pid:
            raise
    if task is None:
        server.end_children()
        os._exit(0)
    before = server.before          # the server's objects are left alone: freeing them would copy the pages that they lie in
    try:
        forked_task.restore(task, before)
    except BaseException as error:
        forked_task.not_restored(error, before)
    forked_task.run(task, before)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
