"""What a process forked from the fork server does to be like a fresh Python, how it runs its script, and how it ends.

A leaf, in the fork server's process and its children only; the runner never imports it.

    restore() -> run(): script's code in a new __main__ -> quick end | the interpreter's own end

A fresh process takes its state from the system and the interpreter's start; here the same is put back by hand. What a child
changes is its own: the server and its other children are other processes.
"""
from __future__ import annotations

import gc
import io
import os
import signal
import sys
import types
import weakref
from collections import namedtuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, Iterable, List, NoReturn, Optional, Tuple

PR_SET_PDEATHSIG = 1            # linux/prctl.h
# By the server only.
IGNORED = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
HOOK_EVENT = "pipeline.attempt"     # python_hook/sitecustomize.py listens for it: the attempt's own file
EXIT_NOT_RESTORED = 70          # a child that could not be made like a fresh process
SHOWN_CHARACTERS = 200          # of the reason: a reply must fit into what a pipe takes at once, as others write to it, too
HAS_COLLECTOR = 1 << 14         # of a class: Py_TPFLAGS_HAVE_GC
# Of what is suspended, how the names of its frame, None when it has come to its end, and of its code begin.
SUSPENDED = {types.GeneratorType: "gi", types.CoroutineType: "cr", types.AsyncGeneratorType: "ag"}
OWN_MODULES = ("forked_task", "process_table", "process_traits", "process_tree")


class Task(namedtuple("Task", "argv env folder slot code source")):
    """One script to run: argv complete; env: where it differs from the server's, None for what is not set; slot: descriptor of
    its output.

    code: the compiled script, or None: *source* (bytes) is compiled in the child, so that it is the child that warns.
    """

    __slots__ = ()


class Before(namedtuple("Before", "handlers mask descriptors replies server_pid modules library libc title")):
    """What the server knew at its own start: handlers {signal: handler} and mask to be put back, descriptors to close, that of the
    replies, its pid, names of the modules that it has loaded, folders of the standard library, libc or None, Title or None."""

    __slots__ = ()


class Title:
    """The words and the token that the system shows of a process (/proc/PID/cmdline, /proc/PID/environ), to be written over.

    Both lie in this process's own memory, where the kernel put them when the server was started. The offline guard
    names programs by the first, the search for an attempt's processes looks for the second.
    """

    def __init__(self, words: Tuple[int, int], token: Tuple[int, int]) -> None:
        """Both: (address, bytes)."""
        self.words, self.token = words, token

    @classmethod
    def find(cls, token_name: str) -> Optional[Title]:
        """Return it, or None where it is not sure to be right (Linux only)."""
        import ctypes
        try:
            with open("/proc/self/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
            start, end, env_start, env_end = (int(one) for one in fields[45:49])
            shown = []
            for name in ("cmdline", "environ"):
                with open("/proc/self/" + name, "rb") as file:
                    shown.append(file.read())
        except (OSError, ValueError):
            return None
        if [end - start, env_end - env_start] != [len(one) for one in shown] or not start or not env_start:
            return None
        if [ctypes.string_at(start, end - start), ctypes.string_at(env_start, env_end - env_start)] != shown:
            return None
        place = (b"\0" + shown[1]).find(b"\0" + token_name.encode() + b"=")
        if place < 0:
            return None
        place += len(token_name) + 1
        return cls((start, end - start), (env_start + place, shown[1].index(b"\0", place) - place))

    def write(self, argv: Iterable[str], token: str) -> None:
        """Show these words and this token, as far as there is room."""
        import ctypes
        words = b"".join(os.fsencode(one) + b"\0" for one in argv)
        for (address, room), text in ((self.words, words[:self.words[1] - 1]), (self.token, os.fsencode(token)[:self.token[1]])):
            ctypes.memmove(address, text.ljust(room, b"\0"), room)


def forget_folders(library: Tuple[str, ...]) -> None:
    """Drop the import system's listings of all folders but those of the standard library: a fresh process lists them anew."""
    for path in [path for path in sys.path_importer_cache if not in_library(path + os.sep, library)]:
        del sys.path_importer_cache[path]


def in_library(path: str, library: Tuple[str, ...]) -> bool:
    """Tell whether a file belongs to the standard library; site-packages may lie below its folder."""
    return path.startswith(library) and os.sep + "site-packages" + os.sep not in path and os.sep + "dist-packages" + os.sep not in path


# --- like a fresh process --------------------------------------------------------------------------------------------

def restore(task: Task, before: Before) -> None:
    """Make this forked process what a fresh `python script.py` is when its script begins."""
    _leave_the_server(before)
    _open_streams(task, before.descriptors)
    if before.title is not None:
        before.title.write(task.argv, task.env["PIPELINE_ATTEMPT_TOKEN"])
    for name, value in task.env.items():
        if value is not None:
            os.environ[name] = value
        else:
            os.environ.pop(name, None)
    sys.audit(HOOK_EVENT, os.environ.get("PIPELINE_HOOK_LOG", ""))
    sys.argv = list(task.argv[1:])
    if hasattr(sys, "orig_argv"):
        sys.orig_argv = list(task.argv)
    sys.path[0] = os.path.dirname(os.path.realpath(sys.argv[0]))
    for name in OWN_MODULES:
        sys.modules.pop(name, None)
    _renew_modules()
    gc.enable()
    os.close(before.replies)        # last: what fails until here is told
    signal.pthread_sigmask(signal.SIG_SETMASK, before.mask)


def _leave_the_server(before: Before) -> None:
    """Be a session of one's own, with the signals of a fresh process, ended by the system when the server is killed."""
    os.setsid()
    signal.set_wakeup_fd(-1)
    for number, handler in before.handlers.items():
        signal.signal(number, handler)
    if before.libc is not None:
        before.libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != before.server_pid:
            os._exit(EXIT_NOT_RESTORED)         # it was killed before the call


def _open_streams(task: Task, descriptors: Iterable[int]) -> None:
    """Put the task's output to 1 and 2, the null device to 0, and close all that is the server's but the replies.

    Opened anew where the system can: the flags of a description (O_NONBLOCK) would be shared with the tasks to come.
    """
    try:
        output = os.open("/proc/self/fd/%d" % task.slot, os.O_WRONLY)
    except OSError:
        output = os.dup(task.slot)
        os.set_blocking(output, True)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.close(null)
    for descriptor in descriptors:
        os.close(descriptor)


def _renew_modules() -> None:
    """Renew what modules of the standard library note about the process when they are loaded."""
    threading = sys.modules.get("threading")
    if threading is not None and hasattr(threading.main_thread(), "_set_native_id"):
        threading.main_thread()._set_native_id()
    logging: Any = sys.modules.get("logging")
    if logging is not None and hasattr(logging, "_startTime"):
        import time
        logging._startTime = time.time_ns() if isinstance(logging._startTime, int) else time.time()


def _new_main(script: str) -> Any:
    """Return a module __main__ as `python script` makes it, in the place of the server's."""
    from importlib.machinery import SourceFileLoader
    old = vars(sys.modules["__main__"])
    module = type(sys)("__main__")
    made: Dict[str, Any] = {"__annotations__": {}, "__builtins__": sys.modules["builtins"], "__file__": script, "__cached__": None}
    vars(module).update((name, value) for name, value in made.items() if name in old)
    module.__loader__ = SourceFileLoader("__main__", script)
    sys.modules["__main__"] = module
    return module


# --- running and ending ----------------------------------------------------------------------------------------------

def run(task: Task, before: Before) -> None:
    """Run the script in a new __main__; return or raise what the interpreter's own end is to deal with, or end here.

    That end takes several times as long as everything else, since it takes apart all that the server has loaded. So what
    ends without an error is ended here, when all that it would notice has been done.
    """
    own_file = sys._getframe().f_code.co_filename
    code = task.code if task.code is not None else compile(task.source, sys.argv[0], "exec", dont_inherit=True)
    space = vars(_new_main(sys.argv[0]))
    try:
        exec(code, space)
        status: Any = 0
    except SystemExit as end:
        status = 0 if end.code is None else end.code
        if type(status) is not int or not 0 <= status <= 255:
            raise
        end.__traceback__ = end.__context__ = end.__cause__ = None
    except BaseException:
        _hide_server_frames(own_file)
        raise
    del space, code
    # As Python does at a script's end, before it waits for threads and calls what waits for the end.
    for stream in (sys.stderr, sys.stdout):
        try:
            stream.flush()
        except Exception:
            pass                        # met again at the end
    if _may_end_quickly(before):
        _end_quickly(status, before)
    if status:
        raise SystemExit(status)


def _hide_server_frames(own_file: str) -> None:
    """Let the traceback begin with the script's own frame, whichever hook prints it."""
    hook = sys.excepthook

    def show(kind: Any, error: Any, trace: Any) -> None:
        while trace is not None and trace.tb_next is not None and trace.tb_frame.f_code.co_filename in (own_file, server_file):
            trace = trace.tb_next
        sys.last_traceback = error.__traceback__ = trace
        hook(kind, error, trace)

    server_file = sys._getframe(2).f_code.co_filename
    sys.excepthook = show


def _may_end_quickly(before: Before) -> bool:
    """Tell whether nothing is there but what _end_quickly() knows to end: no extension module from elsewhere, no developer's
    mode."""
    if sys.flags.dev_mode or sys.flags.inspect:
        return False
    files = [getattr(module, "__file__", None) for name, module in list(sys.modules.items()) if name not in before.modules]
    return not any(isinstance(file, str) and not file.endswith((".py", ".pyc")) and not in_library(file, before.library) for file in files)


def _end_quickly(status: int, before: Before) -> None:
    """End as the interpreter does: threads joined, exit handlers run, streams flushed, the script's objects finalised.

    Returns when something is there that only the interpreter's own end can deal with; doing it twice does no harm.
    """
    import atexit
    try:
        if "threading" in sys.modules:
            sys.modules["threading"]._shutdown()
        if sys.modules["_thread"]._count():
            return                      # daemon threads: they must be stopped first
        atexit._run_exitfuncs()
        _flush(sys.stdout, sys.stderr)
    except BaseException:               # printed by whoever raised it, or by the second try
        return
    if _may_see_the_end(before.library):
        return
    _drop_modules(before)
    try:
        _flush(sys.stdout, sys.stderr)
    except BaseException:
        return
    if before.libc is not None:
        before.libc.exit(status)        # with what C code has registered
    os._exit(status)


def _may_see_the_end(library: Tuple[str, ...]) -> bool:
    """Tell whether code of the script or of its modules may be run by the end itself: of a generator that is suspended, of an
    object with __del__.

    The interpreter runs it when modules and builtins are partly gone; what fails there must not succeed here.
    """
    try:
        found = gc.get_objects()        # but the server's
        kinds = {type(one) for one in found}
        if any([_is_own(kind, library) for kind in kinds]):
            return True
        telling = {kind for kind in kinds if kind in SUSPENDED or issubclass(kind, type)}
        for one in [one for one in found if type(one) in telling]:
            name = SUSPENDED.get(type(one))
            if name is None:            # objects that the collector does not know: their class must do
                if not one.__flags__ & HAS_COLLECTOR and _is_own(one, library):
                    return True
            elif getattr(one, name + "_frame") and not in_library(getattr(one, name + "_code").co_filename, library):
                return True
        return False
    except Exception:                   # a class that is like no other
        return True


def _is_own(kind: type, library: Tuple[str, ...]) -> bool:
    """Tell whether something of the script's or of its modules' is called at the end of objects of this class; C code may call
    what the class has made its own."""
    end = [vars(base)["__del__"] for base in kind.__mro__ if "__del__" in vars(base)]
    if not end:
        return False
    code = getattr(end[0], "__code__", None)
    file = getattr(sys.modules.get(kind.__module__), "__file__", None)
    return code is not None and not in_library(code.co_filename, library) or kind.__module__ == "__main__" or (
        isinstance(file, str) and not in_library(file, library))


def _flush(*streams: Any) -> None:
    for stream in streams:
        if stream is not None and not stream.closed:
            stream.flush()


def _drop_modules(before: Before) -> None:
    """Let go of the script's modules, as the interpreter does: first all at once, then name by name what somebody still holds."""
    _flush_files()
    held: List[Any] = []
    for name in [name for name in sys.modules if name == "__main__" or name not in before.modules]:
        module: Any = sys.modules[name]
        file = getattr(module, "__file__", None)
        if name == "__main__" or (isinstance(file, str) and not in_library(file, before.library)):
            if isinstance(module, type(sys)):
                held.append(weakref.ref(module))
            sys.modules[name] = None    # type: ignore[assignment]
    module = None
    gc.collect()
    living = [module for module in (reference() for reference in reversed(held)) if module is not None]
    for module in living:
        _clear(vars(module))
    if living:
        living, module = [], None
        gc.collect()
    _flush_files()


def _flush_files() -> None:
    """Write what unclosed files hold: the collector may close a file's inner half first, and a module that lives on here may hold
    one."""
    for one in gc.get_objects():
        if issubclass(type(one), (io.TextIOWrapper, io.BufferedWriter, io.BufferedRandom)):
            try:
                one.flush()
            except Exception:
                pass                    # closed, most of them


def _clear(space: Dict[str, Any]) -> None:
    private = [name for name in space if isinstance(name, str) and name[:1] == "_" and name[1:2] != "_"]
    for name in private + [name for name in space if isinstance(name, str) and name != "__builtins__"]:
        space[name] = None


def not_restored(error: BaseException, before: Before) -> NoReturn:
    """End a child that could not be made like a fresh process; tell the runner why. The exit code says nothing: a script may have
    the same."""
    try:
        import json
        why = str(getattr(error, "strerror", None) or error or type(error).__name__)[:SHOWN_CHARACTERS]
        os.write(before.replies, json.dumps(["unprepared", os.getpid(), getattr(error, "errno", None) or 0, why]).encode("ascii") + b"\n")
    finally:
        os._exit(EXIT_NOT_RESTORED)
