"""What a processor may import: inputs, resume, atomic output, counts, exit codes; with or without the runner.

A line processor is a few lines:

    from processor_kit import lines

    def shout(line):
        return line.upper()         # the line with its end; None drops it, Reject("why") sets it aside

    lines(shout, "result.txt", one_to_one=True)

    inputs ──> _Source ──> function ──> _Part: NAME~STAGE~TOKEN.part ──rename──> NAME
                  │ position               │ sizes
                  └───> _Saver: progress file, after the parts were synced <──┘

What holds at any instruction:

    the final file     is whole and of one run; it changes by one rename
    the progress file  vouches only for bytes that were synced before it was written (on a thread of its own, for the
                       position at which that began); it says "publishing" before the first rename
    a resume           cuts the parts to the vouched bytes and goes on at the vouched byte of the input; whatever
                       cannot be trusted starts from zero and says why

A checkpoint is due when PIPELINE_LINE_INTERVAL lines were done since the last one began, none is under way, and twice
the time that the last one took has passed (at least 0.05 s, at most 5 s), looked at after each block or batch of lines.
A batch of lines is as long as the function does in about 0.02 s, so that slow functions are not hidden in it.

A chunk is a part of one input, at line ends: PIPELINE_CHUNK_START and PIPELINE_CHUNK_END in bytes. lines(), blocks() and
copy_files() then see the lines in it only, behind those before PIPELINE_CHUNK_HEADER_END, which every chunk sees first. Line
numbers and byteOffset stay those of the whole input. Counts are of the chunk; the header counts in the first one only.

Exit codes: 0 done, 1 error (one line on stderr), 75 simulated failure (at import, before anything else), 143 SIGTERM
and 130 SIGINT (block finished, checkpoint written).
"""
from __future__ import annotations

import _thread
import codecs
import io
import itertools
import json
import os
import signal
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import IO, Any, Callable, Dict, Iterator, List, NoReturn, Optional, Set, Tuple, TypeVar
    Result = TypeVar("Result")

SCHEMA = 1
READ_BYTES = 64 << 10           # one read: from 128 KiB each temporary needs fresh pages, which took half the speed
BLOCK_LIMIT = 1 << 20           # blocks(): a longer line comes in pieces
LINE_LIMIT = 2 << 20            # lines(): str.upper() needs up to 12 bytes for each character, and 64 MiB must do
COPY_BYTES = 1 << 20
LONG_NAME_BYTES = 191           # of an output's name and the stage's together: a name may have 255, and the token of an attempt needs some
GROUP_BYTES = 1 << 20           # outputs are written in groups of results
GROUP_LIMIT = 256               # results in a group: writev() takes 1024 on Linux, 16 at least anywhere
GROUPS_UNDER_WAY = 3
DENSE_BYTES = 64                # the shortest stretch that is decoded as not ASCII in one go
BATCH_S = 0.02                  # what a batch of lines should take at most
PAUSE_MIN_S, PAUSE_MAX_S = 0.05, 5.0
SHARING_S = 2.0                 # Windows: how long another program (virus scanner, indexer) may hold a file
LONGEST_FOLDER, LONGEST_PATH = 247, 259     # characters that Windows takes unless LongPathsEnabled is set
SHARING_ERRORS = (5, 32, 33)    # access denied, sharing violation, lock violation
FEW_INODES = 64                 # of fewer an error tells: another file may not fit, for want of one
STATEFUL = ("utf-7", "iso2022", "hz")   # encodings in which a byte's meaning depends on earlier lines
EXIT_ERROR, EXIT_SIMULATED, EXIT_SIGNAL = 1, 75, 128
OPEN_FLAGS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)


class Reject(Exception):
    """Raise it in a line function to set the record aside, with the reason, in NAME.rejects.jsonl."""


class _Problem(Exception):
    """An expected error: its text is the one line for stderr."""


class _Restart(Exception):
    """The progress cannot be resumed: its text says why."""


# === 1. Messages =====================================================================================================

_own_pid = os.getpid()          # the process that this was imported by; the fork server puts that of the task here


def _is_worker() -> bool:
    """Tell whether this is a child process of multiprocessing; who has not imported that is none."""
    process: Any = sys.modules.get("multiprocessing.process")
    return process is not None and process.parent_process() is not None


def _is_child() -> bool:
    return os.getpid() != _own_pid or _is_worker()


def _is_aside() -> bool:
    """Tell whether this is not the main thread of the main process: then nobody need ask how it ended."""
    threading: Any = sys.modules.get("threading")
    return _is_child() or threading is not None and threading.current_thread() is not threading.main_thread()


_locks: Dict[Tuple[int, str], Any] = {}


def _lock(what: str) -> Any:
    """Return this process's lock for *what*: a forked child must not wait for a thread that it does not have."""
    return _locks.setdefault((os.getpid(), what), _thread.RLock())


def _tell(descriptor: int, text: str) -> None:
    # What was printed before comes before it, and the last line is the reason. Not of a forked child: its parent prints that, too.
    for stream in (sys.stdout, sys.stderr) if os.getpid() == _own_pid or _is_worker() else ():
        try:
            stream.flush()
        except Exception:
            pass                        # closed, or none
    # Straight to the descriptor: a reader that went away must neither stop the work nor change the exit code.
    try:
        os.write(descriptor, (text + "\n").encode("utf-8", "backslashreplace"))
    except OSError:
        pass


def _say(text: str) -> None:
    _tell(1, text)


def fail(message: str) -> NoReturn:
    """Print *message* as one line on stderr and exit with 1, from any thread.

    In a pool of threads or processes it ends the task, and the processor when that asks for the result; in a child process
    it ends the child with 1. So ask for the results, and for the exitcode of a child.
    """
    _tell(2, message)
    _exit(EXIT_ERROR)


class _Exit(SystemExit):
    """An end with an error. Who catches it, as a pool of threads does for whoever asks for the result, may go on."""


class _WorkerExit(_Exit, Exception):
    """The same in a child of multiprocessing: Pool answers a task with an Exception only; of another end its map() would never hear."""


def _exit(code: int) -> NoReturn:
    threading: Any = sys.modules.get("threading")
    if threading is not None and threading.current_thread() is not threading.main_thread() and threading.excepthook is not _end_with_thread:
        threading.excepthook, _hooks[:] = _end_with_thread, [threading.excepthook]
    raise (_WorkerExit if _is_worker() else _Exit)(code)


_hooks: List[Any] = []          # what was called for threads before


def _end_with_thread(args: Any) -> None:
    """A thread that ends with a SystemExit ends without a word; what has failed in it would be taken for done."""
    if isinstance(args.exc_value, _Exit):
        os._exit(int(args.exc_value.code or 0))
    _hooks[0](args)


if os.environ.get("PIPELINE_SIMULATED_FAIL") == "1":
    _tell(2, "simulated failure (PIPELINE_SIMULATED_FAIL=1)")
    raise SystemExit(EXIT_SIMULATED)


def _trouble(doing: str, path: str, error: OSError) -> _Problem:
    import errno
    text = "cannot %s %s: %s" % (doing, path, error.strerror or error)
    if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", None)):
        text += " (%s): make room and run again; what was published before stays valid" % _free_space(path)
    if sys.platform == "win32" and isinstance(error, FileNotFoundError):
        text += _length_hint(os.path.abspath(path))
    if sys.platform == "win32" and isinstance(error, PermissionError):
        text += "; another program may have it open: close it there, and run again"
    return _Problem(text)


def _length_hint(path: str) -> str:
    """Return what to do about a path that Windows cannot find for its length, "" for others."""
    if len(path) <= LONGEST_PATH and len(os.path.dirname(path)) <= LONGEST_FOLDER:
        return ""
    return "; the path has %d characters, and Windows takes no more than %d, of a folder %d: let the root or the name be shorter, or set LongPathsEnabled" % (
        len(path), LONGEST_PATH, LONGEST_FOLDER)


def _free_space(path: str) -> str:
    import shutil
    folder = os.path.dirname(path) or "."
    try:
        text = "%d bytes free there" % shutil.disk_usage(folder).free
        found: Any = os.statvfs(folder) if hasattr(os, "statvfs") else None     # not on Windows
    except OSError:
        return "unknown bytes free there"
    if found is None or not found.f_files or found.f_favail >= FEW_INODES:      # none at all: they are not counted
        return text
    return "%s, but %s inode%s: each file needs one" % (text, found.f_favail or "no", "s" if found.f_favail > 1 else "")


# === 2. Environment ==================================================================================================

class _Attempt:
    """What the environment says about this attempt; the only place that reads PIPELINE_*."""

    def __init__(self) -> None:
        get = os.environ.get
        script = os.path.splitext(os.path.basename(sys.argv[0]))[0]
        self.stage = get("PIPELINE_STAGE_NAME") or "".join(c if c.isalnum() else "_" for c in script) or "processor"
        self.folder = output_dir()
        self.key = get("PIPELINE_KEY", "")
        self.token = get("PIPELINE_ATTEMPT_TOKEN") or os.urandom(8).hex()
        self.progress = get("PIPELINE_PROGRESS_FILE") or None
        self.counts = get("PIPELINE_COUNTS_FILE") or None
        self.line_offset = _whole_number("PIPELINE_LINE_OFFSET", "0", 0)
        self.interval = _whole_number("PIPELINE_LINE_INTERVAL", "1000", 1)
        self.resumes = self.line_offset > 0 or get("PIPELINE_RESUME") == "1"

    def part_name(self, final: str) -> str:
        return "%s%s.part" % (self.start_of_parts(final), self.token)

    def start_of_parts(self, final: str) -> str:
        """Return how the part files of *final* begin: with its name, or with a digest of it where that leaves no room for the rest."""
        folder, slash, last = final.rpartition("/")
        if len(os.fsencode(last + self.stage)) > LONG_NAME_BYTES:
            digest = _new_digest(0)
            digest.update(os.fsencode(last))
            last = digest.hexdigest()[:32]
        return "%s%s%s~%s~" % (folder, slash, last, self.stage)

    def is_part(self, name: str, final: str) -> bool:
        """Tell whether *name* is a part file of *final* that this stage made, in whichever attempt."""
        start = self.start_of_parts(final)
        return name.startswith(start) and name.endswith(".part") and not set(name[len(start):]) & set("~/\\")


def _whole_number(name: str, default: str, least: int) -> int:
    text = os.environ.get(name) or default
    if not (text.isascii() and text.isdigit() and len(text) < 19 and int(text) >= least):
        raise _Problem("%s must be a whole number from %d, got %r" % (name, least, text))
    return int(text)


def _input_list() -> Optional[List[str]]:
    path = os.environ.get("PIPELINE_INPUTS_FILE")
    if not path:
        return None
    try:
        with open(path, "rb") as file:
            found = json.loads(file.read().decode("utf-8"))
    except OSError as error:
        raise _trouble("read", path, error) from error
    except ValueError as error:
        raise _Problem("%s: not a JSON list of inputs: %s" % (path, error)) from error
    if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
        raise _Problem("%s: not a JSON list of inputs" % path)
    return found


def _split_arguments() -> Tuple[List[str], List[str]]:
    """Return (arguments, inputs); by hand, options or all before "--" are arguments and the rest are inputs."""
    given, listed = sys.argv[1:], _input_list()
    if listed is not None:
        last = given[len(given) - len(listed):]     # "-x" is given as "./-x", so that nobody takes it for an option
        fits = len(given) >= len(listed) and all(one in (path, "./" + path) for one, path in zip(last, listed))
        return (given[:len(given) - len(listed)] if fits else given), listed
    if "--" in given:
        cut = given.index("--")
        return given[:cut], given[cut + 1:]
    cut = next((i for i, text in enumerate(given) if not text.startswith("-")), len(given))
    return given[:cut], given[cut:]


def inputs() -> List[str]:
    """Return the inputs in order, relative to the working directory (PIPELINE_INPUTS_FILE, else the command line)."""
    return _checked(_split_arguments)[1]


def arguments() -> List[str]:
    """Return what the command line holds before the inputs."""
    return _checked(_split_arguments)[0]


def chunk() -> Optional[Tuple[int, int, int]]:
    """Return (start, end, end of the header) of this chunk of the only input, in bytes; None when the inputs are whole.

    lines(), blocks() and copy_files() keep to it by themselves. Who opens inputs() must read what is before the end of
    the header, then what is from start to end.
    """
    return _checked(lambda: _chunk(_split_arguments()[1]))


def _chunk(paths: List[str]) -> Optional[Tuple[int, int, int]]:
    names = ("PIPELINE_CHUNK_START", "PIPELINE_CHUNK_END", "PIPELINE_CHUNK_HEADER_END")
    if not any(os.environ.get(name) for name in names):
        return None
    if len(paths) != 1:
        raise _Problem("%s: a chunk is a part of one input, got %d inputs" % (names[0], len(paths)))
    path, size = paths[0], _size_of(paths[0])
    header_end = _whole_number(names[2], "0", 0)
    start, end = _whole_number(names[0], str(header_end), 0), _whole_number(names[1], str(size), 0)
    if not header_end <= start <= end <= size:
        raise _Problem("%s has %d bytes: the chunk from %d to %d with a header of %d is not in it"
                       % (path, size, start, end, header_end))
    for name, offset in zip(names, (start, end, header_end)):
        if 0 < offset < size and not _is_line_end(path, offset):
            raise _Problem("%s: byte %d of %s is not the end of a line" % (name, offset, path))
    return start, end, header_end


def params() -> Dict[str, Any]:
    """Return the stage's params (PIPELINE_PARAMS); an empty dict without any."""
    text = os.environ.get("PIPELINE_PARAMS") or "{}"
    try:
        found = json.loads(text)
    except ValueError as error:
        fail("PIPELINE_PARAMS is not JSON: %s" % error)
    if not isinstance(found, dict):
        fail("PIPELINE_PARAMS must be a JSON object")
    return found


def _own_inputs() -> List[str]:
    """Return what lines(), blocks() and copy_files() read: of a task its own file, else all inputs."""
    task, paths = os.environ.get("PIPELINE_TASK"), _split_arguments()[1]
    return [task] if task and task in paths else paths


def output_name(pattern: str = "{name}") -> str:
    """Return *pattern* with the base name of this task's file (else of the first input) put in: {name}, {stem}, {ext}.

    Of "in/a.csv.gz" these are "a.csv.gz", "a.csv" and ".gz". So each task of a stage with forEach has an output of its own.
    """
    paths = _checked(_own_inputs)
    if not paths:
        fail("output_name(%r): there is no input to name an output after" % pattern)
    name = os.path.basename(paths[0])
    stem, ext = os.path.splitext(name)
    known = {"name": name, "stem": stem, "ext": ext}
    found, *pieces = pattern.split("{")         # once, from left to right: a file may be called "{ext}.csv"
    for piece in pieces:
        word, brace, rest = piece.partition("}")
        found += known[word] + rest if brace and word in known else "{" + piece
    return found


def output_dir() -> str:
    """Return the output directory, absolute (PIPELINE_OUTPUT_DIR, else the working directory)."""
    return os.path.abspath(os.environ.get("PIPELINE_OUTPUT_DIR") or os.curdir)


def _checked(function: Callable[[], Result]) -> Result:
    """Call *function*; turn an expected error into one line and exit code 1."""
    try:
        return function()
    except _Problem as problem:
        fail(str(problem))


# === 3. Durable files ================================================================================================

def _runner_syncs() -> bool:
    """Tell whether the runner makes the outputs durable before it counts on them; a progress file counts on them earlier."""
    return os.environ.get("PIPELINE_SYNC") == "runner" and not os.environ.get("PIPELINE_PROGRESS_FILE")


def _sync(descriptor: int) -> None:
    """Make a file's content durable. Never called again after an error: the kernel may have marked lost pages clean."""
    if not _runner_syncs():
        _sync_now(descriptor)


def _sync_now(descriptor: int) -> None:
    if sys.platform == "darwin":
        import fcntl
        try:
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)      # fsync alone leaves data in the drive's cache there
            return
        except OSError:
            pass                                            # not every file system has it
    os.fsync(descriptor)


def _sync_folder(path: str) -> None:
    if sys.platform == "win32" or _runner_syncs():
        return                                              # folders cannot be opened there
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            _sync_now(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        import errno
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):    # some network file systems cannot sync folders
            raise _trouble("sync the folder", path, error) from error


def _patiently(doing: str, path: str, call: Callable[[], Any]) -> Any:
    """Call *call*; on Windows again, for a while, as long as another program holds the file."""
    deadline = time.monotonic() + SHARING_S
    while True:
        try:
            return call()
        except FileNotFoundError:
            raise
        except OSError as error:
            number = getattr(error, "winerror", None)       # the C library's calls do not tell it
            is_held = number in SHARING_ERRORS or sys.platform == "win32" and number is None and isinstance(error, PermissionError)
            if not is_held or time.monotonic() > deadline:
                raise _trouble(doing, path, error) from error
            time.sleep(0.02)


def _replace(source: str, target: str) -> None:
    try:
        _patiently("publish", target, lambda: _though_read_only(target, lambda: os.replace(source, target)))
    except FileNotFoundError as error:
        raise _trouble("publish", target, error) from error


def _remove(path: str) -> None:
    try:
        _patiently("remove", path, lambda: _though_read_only(path, lambda: os.unlink(path)))
    except FileNotFoundError:
        pass


def _though_read_only(path: str, call: Callable[[], Any]) -> None:
    """Do what Windows alone forbids with a file whose attribute says that it may only be read: that goes first."""
    try:
        call()
    except PermissionError as error:
        if sys.platform == "win32" and os.path.isdir(path) and not os.path.islink(path):
            raise IsADirectoryError(21, "Is a directory", path) from error    # a file that is held is told of in the same words
        if sys.platform != "win32" or not _may_only_be_read(path):
            raise
        os.chmod(path, 0o600)
        call()


def _may_only_be_read(path: str) -> bool:
    import stat
    try:
        mode = os.lstat(path).st_mode
    except OSError:
        return False
    return stat.S_ISREG(mode) and not mode & stat.S_IWRITE


def _write_all(descriptor: int, data: bytes, path: str) -> None:
    try:
        done = os.write(descriptor, data)
        if done < len(data):
            rest = memoryview(data)
            while done < len(data):
                done += os.write(descriptor, rest[done:])
    except OSError as error:
        raise _trouble("write", path, error) from error


def _write_progress(path: str, record: Dict[str, Any], durable: bool = True, output: str = "") -> None:
    """Replace the progress file, or that of the counts: old or new as a whole; with *durable* on the disk on return.

    output: of whose progress; its name until then is its own, as a child process, which knows nothing of others, may be at the same.
    """
    with _lock("progress"):
        _replace_progress(path, record, durable, output)


def _replace_progress(path: str, record: Dict[str, Any], durable: bool, output: str) -> None:
    folder, name = os.path.split(path)
    if output:
        digest = _new_digest(0)
        digest.update(os.fsencode(output))
        name += "." + digest.hexdigest()[:16]   # not the process's number: the next attempt finds what a kill has left
    temporary = os.path.join(folder, ".%s.tmp" % name)
    _remove(temporary)                                      # a leftover of a kill; O_EXCL then refuses planted links
    data = json.dumps(record, ensure_ascii=True).encode("ascii") + b"\n"
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | OPEN_FLAGS, 0o666)
        try:
            _write_all(descriptor, data, temporary)
            if durable:
                _sync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise _trouble("write", temporary, error) from error
    _replace(temporary, path)
    if durable:
        _sync_folder(folder or os.curdir)


def _new_digest(size: int) -> Any:
    """Return a SHA-256 object for what is written to a part; *size*: about how many bytes it will see.

    For little the interpreter's own, as loading OpenSSL takes longer than that; for more OpenSSL's, which is several times as quick.
    """
    if size < GROUP_BYTES:
        try:
            if sys.version_info >= (3, 12):
                from _sha2 import sha256
            else:
                from _sha256 import sha256  # type: ignore[import-not-found]
            return sha256()
        except ImportError:
            pass                        # another Python
    import hashlib
    return hashlib.sha256()


def _digest_of(path: str, size: int, total: int) -> Any:
    """Return the digest of the first *size* bytes of a file, to be gone on with; *total*: as for _new_digest(). Raises: _Problem."""
    digest = _new_digest(total)
    try:
        with open(path, "rb", buffering=0) as file:
            while size > 0:
                block = file.read(min(size, GROUP_BYTES))
                if not block:
                    break               # shorter by now: then it is another's
                digest.update(block)
                size -= len(block)
    except OSError as error:
        raise _trouble("read", path, error) from error
    return digest


def _write_group(descriptor: int, group: List[bytes], path: str, digest: Any = None) -> None:
    """Write all of *group* with one call where the system can; then it is in *digest*."""
    if not group:
        return
    done, total = 0, sum(map(len, group))
    try:
        if len(group) > 1 and hasattr(os, "writev"):
            done = os.writev(descriptor, group)
    except OSError as error:
        raise _trouble("write", path, error) from error
    if done < total:
        _write_all(descriptor, b"".join(group)[done:] if len(group) > 1 else group[0], path)
    if digest is not None:
        for data in group:
            digest.update(data)


class _Writer:
    """A thread that writes to one file while the next text is computed: the system call does not need the interpreter."""

    def __init__(self, descriptor: int, path: str, digest: Any) -> None:
        import queue
        import threading
        self.descriptor, self.path, self.digest = descriptor, path, digest
        self.groups: queue.SimpleQueue[Optional[List[bytes]]] = queue.SimpleQueue()
        self.room: queue.SimpleQueue[Optional[_Problem]] = queue.SimpleQueue()
        self.under_way = 0
        self.thread = threading.Thread(target=self._run, daemon=True)
        try:
            self.thread.start()
        except RuntimeError as error:
            raise _Problem("%s; allow this user more processes (ulimit -u)" % error) from None

    def _run(self) -> None:
        for group in iter(self.groups.get, None):
            try:
                _write_group(self.descriptor, group, self.path, self.digest)
                self.room.put(None)
            except _Problem as problem:
                self.room.put(problem)
            except Exception as error:
                self.room.put(_Problem("cannot write %s: %r" % (self.path, error)))

    def put(self, group: List[bytes]) -> None:
        self.wait(GROUPS_UNDER_WAY - 1)
        self.groups.put(group)
        self.under_way += 1

    def wait(self, most: int = 0) -> None:
        """Wait until at most *most* groups are unwritten. Raises: _Problem of an earlier group."""
        while self.under_way > most:
            problem = self.room.get()
            self.under_way -= 1
            if problem is not None:
                raise problem

    def end(self) -> None:
        self.groups.put(None)
        self.thread.join()


_made: Set[str] = set()         # outputs that this process has published


def _vouch_whole(name: str, part: str) -> None:
    """Note, beside the checkpoint, that *part* is published as *name* in one piece: a resume need neither cut nor undo it.

    [name, bytes, time of change in ns]: whoever adds to the file afterwards makes another of it. The line is added to a
    file of its own, as threads and children may publish at the same time; without it, a resume starts from zero.
    """
    path = os.environ.get("PIPELINE_PROGRESS_FILE")
    if not path:
        return
    try:
        descriptor = os.open(os.path.splitext(path)[0] + ".whole", os.O_WRONLY | os.O_CREAT | os.O_APPEND | OPEN_FLAGS, 0o666)
        try:
            found = os.stat(part)
            os.write(descriptor, json.dumps([name, found.st_size, found.st_mtime_ns]).encode("ascii") + b"\n")
        finally:
            os.close(descriptor)
    except OSError:
        pass


_under_way: Dict[str, Tuple[int, str, str]] = {}    # output -> (process, part, name) of each that is being written
_spelled: Dict[str, str] = {}   # output, as names are equal that may be one file -> the output as this process has called it first
_known: Dict[str, Dict[str, Set[str]]] = {}     # folder -> how the names of part files begin -> those that were there when it was listed, or were made since


def _is_under_way(target: str) -> bool:
    """Tell whether this process is writing *target*, or one that has forked it still does."""
    pid, path, _ = _under_way.get(target, (0, "", ""))
    return pid == os.getpid() or bool(pid) and os.path.lexists(path)


def _refuse_second(target: str, name: str) -> None:
    if _is_under_way(target):
        raise _second(name)


def _refuse_another_spelling(target: str) -> None:
    """Of two names that differ in case only the second would take the place of the first, where both are one file."""
    first = _spelled.setdefault(_folded(target), target)
    if first != target and _is_same_file(first, target):
        raise _Problem("%s and %s are one file here, and this processor has written the first already: rename one" % (first, target))


def _second(name: str) -> _Problem:
    return _Problem("%s is being written already by this processor: name another output" % name)


def _hold(descriptor: int) -> bool:
    """Lock a part against the other processes of this attempt, which know nothing of it; False when one of them holds it.

    It is free again when close() says so, however many children have inherited it, or its process dies. Windows removes no open file anyway.
    """
    if sys.platform != "win32":
        import fcntl
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            pass                        # a file system without locks
    return True


def _let_go_of(descriptor: int) -> None:
    if sys.platform != "win32":
        import fcntl
        try:
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        except OSError:
            pass


def _remove_own(path: str, final: str) -> None:
    """Remove a part that this attempt has left; one that another process of it is writing stays. Raises: _Problem."""
    try:
        descriptor = -1 if sys.platform == "win32" else os.open(path, os.O_WRONLY | OPEN_FLAGS)
    except OSError:
        descriptor = -1                 # a link, or gone
    try:
        if descriptor >= 0 and not _hold(descriptor):
            raise _second(final)
        _remove(path)                   # while it is held: who has just made it finds that it is gone
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def _parts_in(folder: str) -> Dict[str, Set[str]]:
    """Return {how they begin: names} of the part files in *folder*, which is listed once: there may be thousands of outputs."""
    if folder not in _known:
        found: Dict[str, Set[str]] = {}
        try:
            names = os.listdir(folder)
        except FileNotFoundError:
            names = []
        except OSError as error:
            raise _trouble("list", folder, error) from error
        for name in names:
            if name.endswith(".part"):
                found.setdefault(name[:name.rfind("~") + 1], set()).add(name)
        _known[folder] = found
    return _known[folder]


class _Part:
    """A part file, open for appending. *size* is what it has once flush() returned, synced or not; *digest* is of that, where checkpoints want it.

    Its output is under way, so that nobody else here writes it, until let_go().
    """

    def __init__(self, folder: str, name: str, final: str, vouched: Optional[int] = None, digest: Any = None) -> None:
        self.name, self.final, self.digest = name, final, digest
        self.path, self.target = os.path.join(folder, name), os.path.join(folder, final)
        self.size = vouched or 0
        self.is_new = vouched is None
        self.waiting: List[bytes] = []
        self.waiting_bytes = 0
        self.writer: Optional[_Writer] = None       # only for outputs above GROUP_BYTES
        own = os.path.basename(name)
        with _lock("parts"):
            _refuse_second(self.target, final)
            _refuse_another_spelling(self.target)
            _under_way[self.target] = (os.getpid(), self.path, final)
            _known.get(os.path.dirname(self.path), {}).setdefault(own[:own.rfind("~") + 1], set()).add(own)
        try:
            self.descriptor = self._opened("create" if vouched is None else "go on in", vouched)
        except _Problem:
            self.let_go()
            raise

    def _opened(self, doing: str, vouched: Optional[int]) -> int:
        try:
            if vouched is None:
                os.makedirs(os.path.dirname(self.path), exist_ok=True)
            create = os.O_CREAT | os.O_EXCL if vouched is None else 0
            descriptor: int = _patiently(doing, self.path, lambda: os.open(self.path, os.O_WRONLY | create | OPEN_FLAGS, 0o666))
            if not _hold(descriptor) or vouched is None and self._is_removed(descriptor):
                os.close(descriptor)
                raise _second(self.final)
            if vouched is not None:
                os.ftruncate(descriptor, vouched)
                os.lseek(descriptor, vouched, os.SEEK_SET)
            return descriptor
        except OSError as error:
            raise _trouble(doing, self.path, error) from error

    def _is_removed(self, descriptor: int) -> bool:
        """Tell whether another process has removed it again, before it was held; some file systems count no links."""
        found = os.fstat(descriptor)
        return not found.st_nlink and _identity(self.path) != (found.st_ino, found.st_size, found.st_mtime_ns)

    def let_go(self) -> None:
        """Its output may be written anew: it is published, or will not be."""
        with _lock("parts"):
            _under_way.pop(self.target, None)

    def write(self, data: bytes) -> None:
        """Take *data*; it is in the file after flush(), whose errors may come up here too."""
        self.size += len(data)
        self.waiting.append(data)
        self.waiting_bytes += len(data)
        if self.waiting_bytes >= GROUP_BYTES or len(self.waiting) >= GROUP_LIMIT:
            if self.writer is None:
                self.writer = _Writer(self.descriptor, self.path, self.digest)
            self.writer.put(self.waiting)
            self.waiting, self.waiting_bytes = [], 0

    def flush(self) -> None:
        """Return when all that was taken is in the file. Raises: _Problem."""
        if self.writer is not None:
            self.writer.wait()
        waiting, self.waiting, self.waiting_bytes = self.waiting, [], 0
        _write_group(self.descriptor, waiting, self.path, self.digest)

    def sync(self) -> None:
        """Make all that was written so far durable, the file's name included."""
        try:
            _sync(self.descriptor)
        except OSError as error:
            raise _trouble("sync", self.path, error) from error
        if self.is_new:
            _sync_folder(os.path.dirname(self.path))
            self.is_new = False

    def close(self) -> None:
        if self.writer is not None:
            self.writer.end()                       # before its descriptor goes to another file
            self.writer = None
        if self.descriptor >= 0:
            descriptor, self.descriptor = self.descriptor, -1
            _let_go_of(descriptor)
            try:
                os.close(descriptor)
            except OSError as error:                # a full disk of a file server may be told as late as this
                raise _trouble("write", self.path, error) from error

    def discard(self) -> None:
        """Remove it; in a thread or a child, where an error may be lost, it stays, and the runner finds what is not finished."""
        try:
            self.close()
            if not _is_aside():
                _remove(self.path)
        finally:
            self.let_go()

    def leave(self) -> None:
        """Close it where it is: a resume goes on in it, or the runner finds that it is not finished."""
        try:
            self.close()
        finally:
            self.let_go()


def _remove_stale(attempt: _Attempt, finals: Tuple[str, ...], keep: Set[str]) -> None:
    """Remove the part files that earlier attempts of this stage left for *finals*, but those named in *keep* and what is under way."""
    kept = {os.path.join(attempt.folder, name) for name in keep}
    for final in finals:
        folder, own = os.path.split(os.path.join(attempt.folder, attempt.part_name(final)))
        with _lock("parts"):
            if _is_under_way(os.path.join(attempt.folder, final)):
                continue
            names = _parts_in(folder).get(own[:own.rfind("~") + 1], set())
            if os.path.lexists(os.path.join(folder, own)):
                names.add(own)                      # of a child process, which the listing may not know
            for name in sorted(names):
                path = os.path.join(folder, name)
                if path not in kept:
                    if name == own:
                        _remove_own(path, final)
                    else:
                        _remove(path)           # an earlier attempt's, whose processes have been ended
                    names.discard(name)


def _check_output_name(name: str, platform: str = sys.platform) -> str:
    """Return *name* with forward slashes; what is a folder or a drive on Windows only is part of a name elsewhere, as of a file from there."""
    if not isinstance(name, str):
        raise _Problem("output name %r must be text" % (name,))
    is_windows = platform == "win32"
    pieces = (name.replace("\\", "/") if is_windows else name).split("/")
    if not name or os.path.isabs(name) or is_windows and ":" in name or ".." in pieces or "" in pieces or pieces[-1] == "." or "\0" in name:
        raise _Problem("output name %r must be a path below the output directory" % name)
    if is_windows and any(map(_is_no_name_on_windows, pieces)):
        raise _Problem("output name %r is none on Windows: it is a device's, ends with a dot or blank, or has a sign that names must not have" % name)
    try:
        name.encode("utf-8") if is_windows else os.fsencode(name)       # half a character is a name on Windows, but of no output of a stage
    except UnicodeEncodeError:
        raise _Problem("output name %r cannot be written in the file system's encoding, %s: name it otherwise, or run in a UTF-8 locale or with PYTHONUTF8=1"
                       % (name, sys.getfilesystemencoding())) from None
    return "/".join(piece for piece in pieces if piece != ".")


def _is_no_name_on_windows(piece: str) -> bool:
    """Tell whether Windows would take a part of a path for a device, which swallows all that is written, or drop its end."""
    first = piece.split(".")[0].rstrip(" ").lower()
    numbers = tuple("0123456789\u00b9\u00b2\u00b3")
    is_device = first in ("con", "prn", "aux", "nul", "conin$", "conout$") or first[:3] in ("com", "lpt") and first[3:] in numbers
    return is_device or piece != "." and piece.endswith((".", " ")) or any(sign < " " or sign in '<>"|?*' for sign in piece)


# === 4. Reading ======================================================================================================

class _Source:
    """The inputs, read as blocks of whole lines; its state is a position only, so any block boundary is a checkpoint.

    position: (index of the input, byte offset in it); lines: lines done over all inputs. Each call of fill() puts
    the next block into *buffer[:filled]*; advance() moves behind what was done with it. A chunk with a header is read
    as two inputs, which are parts of one file.
    """

    def __init__(self, paths: List[str], limit: int) -> None:
        self.chunk, self.limit = _chunk(paths), limit
        spans = _spans(paths, self.chunk)
        self.paths, self.starts, self.ends = ([path for path, _, _ in spans], [start for _, start, _ in spans],
                                              [end for _, _, end in spans])
        self.sizes = [end - start for _, start, end in spans]
        self.index = self.lines = self.filled = 0
        self.offset = self._start()
        self.repeats = len(spans) == 2 and self.chunk is not None and self.chunk[0] > self.chunk[2]
        self.repeated = 0                   # lines of a header that counts in another chunk
        self.is_whole = True                # the block ends at a line's end, or at the input's
        self.buffer = bytearray(READ_BYTES)
        self.file: Optional[Any] = None
        # What to take from *lines* for the line number in the input; None: not counted yet.
        self.lines_before: Optional[int] = None if self.offset else 0

    def start_at(self, index: int, offset: int, lines: int) -> None:
        self.index, self.offset, self.lines = index, offset, lines
        self.lines_before = None
        if self.repeats:
            self.repeated = _count_ends(self.paths[0], self.ends[0] if index else offset)

    def _start(self) -> int:
        return self.starts[self.index] if self.index < len(self.starts) else 0

    def is_repeated(self) -> bool:
        """Tell whether the position is in a header that counts in another chunk."""
        return self.repeats and self.index == 0

    def bytes_done(self) -> int:
        return sum(self.sizes[:self.index]) + self.offset - self._start()

    def name(self) -> str:
        return self.paths[self.index]

    def line_number(self) -> int:
        """Return the number, within its input and from 1, of the line at the position."""
        if self.lines_before is None:
            self.lines_before = self.lines - _count_ends(self.name(), self.offset)
        return self.lines - self.lines_before + 1

    def fill(self) -> bool:
        """Read the next block; False when all inputs are done. Raises: _Problem."""
        while self.index < len(self.paths):
            try:
                if self.file is None:
                    self.file = open(self.name(), "rb", buffering=0)
                if self._read(self.file):
                    return True
                self._end_input(self.file)
            except OSError as error:
                raise _trouble("read", self.name(), error) from error
        return False

    def _read(self, file: Any) -> bool:
        # The read starts again behind the last whole line: nothing is carried over from block to block.
        file.seek(self.offset)
        most = READ_BYTES if self.chunk is None else min(READ_BYTES, self.ends[self.index] - self.offset)
        filled = file.readinto(memoryview(self.buffer)[:most])
        self.filled = self.buffer.rfind(b"\n", 0, filled) + 1
        self.is_whole = True
        if not self.filled:
            self._read_long(file, filled)
        return bool(filled)

    def _read_long(self, file: Any, filled: int) -> None:
        """Go on reading until the line ends, the input ends, or the limit is reached."""
        last = self.ends[self.index]
        while True:
            if filled == len(self.buffer) and filled < self.limit:
                self.buffer.extend(bytes(min(len(self.buffer), self.limit - filled)))
            more = file.readinto(memoryview(self.buffer)[filled:None if self.chunk is None else last - self.offset])
            end = self.buffer.find(b"\n", filled, filled + more) + 1
            filled += more
            if end or not more:
                self.filled = end or filled
                # At the limit readinto() had no room: that says nothing about the input's end.
                size = os.fstat(file.fileno()).st_size
                self.is_whole = bool(end) or self.offset + filled >= (size if self.chunk is None else min(size, last))
                return

    def _end_input(self, file: Any) -> None:
        if self.offset > self._start():
            file.seek(self.offset - 1)
            self.lines += file.read(1) != b"\n"     # an unterminated last line is a line
        file.close()
        self.file, self.index = None, self.index + 1
        self.offset = self._start()
        self.lines_before = None if self.offset else self.lines

    def advance(self, count: int, ends: int) -> None:
        self.offset += count
        self.lines += ends
        if self.repeats and self.index == 0:
            self.repeated += ends


def _spans(paths: List[str], chunk: Optional[Tuple[int, int, int]]) -> List[Tuple[str, int, int]]:
    """Return what is to be read of the inputs, in order: (path, start, end)."""
    if chunk is None:
        return [(path, 0, _size_of(path)) for path in paths]
    start, end, header_end = chunk
    return ([(paths[0], 0, header_end)] if header_end else []) + [(paths[0], start, end)]


def _size_of(path: str) -> int:
    import stat
    try:
        found = os.stat(path)
    except OSError as error:
        raise _trouble("read the input", path, error) from error
    if not stat.S_ISREG(found.st_mode):
        raise _Problem("cannot read the input %s: not a regular file" % path)
    return found.st_size


def _count_ends(path: str, length: int) -> int:
    """Return the number of line ends in the first *length* bytes of *path*."""
    ends = 0
    try:
        with open(path, "rb", buffering=0) as file:
            while length > 0:
                block = file.read(min(length, READ_BYTES))
                if not block:
                    break
                ends += block.count(b"\n")
                length -= len(block)
    except OSError as error:
        raise _trouble("read", path, error) from error
    return ends


def _offset_of_line(path: str, count: int) -> Tuple[int, int]:
    """Return (lines, bytes) of the first *count* terminated lines of *path*; when there are fewer, (lines, anything)."""
    lines = offset = 0
    try:
        with open(path, "rb", buffering=0) as file:
            while lines < count:
                block = file.read(READ_BYTES)
                ends = block.count(b"\n")
                if not block or lines + ends >= count:
                    break
                lines, offset = lines + ends, offset + len(block)
            file.seek(offset)
            end, block = 0, file.read(READ_BYTES)
            while lines < count:
                found = block.find(b"\n", end) + 1
                if not found:
                    break
                lines, end = lines + 1, found
    except OSError as error:
        raise _trouble("read", path, error) from error
    return lines, offset + end


def _is_line_end(path: str, offset: int) -> bool:
    try:
        with open(path, "rb", buffering=0) as file:
            file.seek(offset - 1)
            return file.read(1) == b"\n"
    except OSError as error:
        raise _trouble("read", path, error) from error


def _ends_open(path: str) -> bool:
    """Tell whether the last line of *path* has no line end."""
    try:
        with open(path, "rb", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 1))
            return file.read(1) not in (b"", b"\n")
    except OSError as error:
        raise _trouble("read", path, error) from error


# === 5. Text =========================================================================================================

class _Codec:
    """Bytes to text and back, for encodings in which every byte below 0x80 is its ASCII character."""

    def __init__(self, encoding: str, errors: str) -> None:
        try:
            self.encoding, self.errors = codecs.lookup(encoding).name, errors
            codecs.lookup_error(errors)
            known = bytes(range(128)).decode(encoding) == "".join(map(chr, range(128))) and "\n".encode(encoding) == b"\n"
        except (LookupError, UnicodeError, TypeError) as error:
            raise _Problem("encoding %r, errors %r: %s" % (encoding, errors, error)) from error
        if not known or self.encoding.startswith(STATEFUL):
            raise _Problem("encoding %r does not keep lines apart as bytes: convert the input to utf-8" % encoding)
        self.stretch = DENSE_BYTES

    def whole(self, data: Any) -> str:
        try:
            return codecs.decode(data, self.encoding, self.errors)
        except TypeError as error:
            raise self._unfit(error) from error

    def _unfit(self, error: TypeError) -> _Problem:
        """Some ways to handle errors are for writing only."""
        return _Problem("encoding %r, errors %r: %s" % (self.encoding, self.errors, error))

    def piece(self, data: Any) -> Tuple[str, int]:
        """Return the whole characters at the start of *data* and the bytes that they take."""
        decoder = codecs.getincrementaldecoder(self.encoding)(self.errors)
        try:
            text = decoder.decode(data)
        except TypeError as error:
            raise self._unfit(error) from error
        return text, len(data) - len(decoder.getstate()[0])

    def texts(self, buffer: bytearray, end: int) -> Iterator[Tuple[str, int]]:
        """Yield (text, where it ends in *buffer*), all in whole lines.

        ASCII lines come apart from the others: one "é" makes str.upper() and its like some four times slower for
        the whole text. How much is taken as "the others" grows while they are dense.
        """
        start, view = 0, memoryview(buffer)
        while start < end:
            try:
                yield codecs.ascii_decode(view[start:end])[0], end
                return
            except UnicodeDecodeError as error:
                first = start + error.start
            cut = buffer.rfind(b"\n", start, first) + 1 or start
            self.stretch = min(self.stretch * 4, BLOCK_LIMIT) if cut - start < self.stretch else DENSE_BYTES
            if cut > start:
                yield codecs.ascii_decode(view[start:cut])[0], cut
            start = buffer.find(b"\n", min(first + self.stretch, end), end) + 1 or end
            yield self.whole(view[cut:start]), start

    def bytes_of(self, text: str) -> bytes:
        return text.encode(self.encoding, self.errors)


# === 6. Progress and resume ==========================================================================================

class _Saver:
    """Writes checkpoints, one at a time, on a thread: syncing 100 MB must not hold up the next 100 MB."""

    def __init__(self, attempt: _Attempt, output: str) -> None:
        self.path, self.interval, self.output = attempt.progress, attempt.interval, output
        self.lines = 0                      # lines done when the last checkpoint began
        self.pause_s = self.began_s = 0.0
        self.thread: Optional[Any] = None
        self.problem: Optional[_Problem] = None

    def is_due(self, lines: int) -> bool:
        if self.path is None or lines - self.lines < self.interval or time.monotonic() - self.began_s < self.pause_s:
            return False
        return self.thread is None or not self.thread.is_alive()

    def start(self, lines: int, record: Dict[str, Any], parts: List[_Part]) -> None:
        """Begin a checkpoint that vouches for *record*: the sizes as they are now, whatever is written meanwhile."""
        import threading
        self.wait()
        self.lines, self.began_s = lines, time.monotonic()
        thread = threading.Thread(target=self._run, args=(record, parts))
        try:
            thread.start()
            self.thread = thread
        except RuntimeError:
            self._run(record, parts)        # the system allows no further thread: then this one waits

    def _run(self, record: Dict[str, Any], parts: List[_Part]) -> None:
        try:
            self.save(record, parts)
        except _Problem as problem:
            self.problem = problem          # raised in the main thread, by wait()
        except Exception as error:
            self.problem = _Problem("checkpoint failed: %r" % error)
        took = time.monotonic() - self.began_s
        self.pause_s = min(PAUSE_MAX_S, max(PAUSE_MIN_S, 2 * took))

    def save(self, record: Dict[str, Any], parts: List[_Part]) -> None:
        for part in parts:
            part.sync()
        if self.path is not None:
            _write_progress(self.path, record, output=self.output)

    def wait(self) -> None:
        """Wait for the checkpoint under way. Raises: _Problem when it, or one before it, failed."""
        if self.thread is not None:
            self.thread.join()
            self.thread = None
        if self.problem is not None:
            raise self.problem


def _read_progress(attempt: _Attempt) -> Dict[str, Any]:
    """Return the progress to resume; where none is kept, or hand-written, only {"lineOffset": N}. Raises: _Restart."""
    if attempt.progress is None:
        return {"lineOffset": attempt.line_offset}
    try:
        if not os.path.isfile(attempt.progress) and os.path.lexists(attempt.progress):
            raise ValueError("it is no file")       # a pipe would be waited for
        with open(attempt.progress, "rb") as file:
            record = json.loads(file.read(8 << 20).decode("utf-8"))
    except FileNotFoundError:
        # A call beside this one began anew, and removed it: what there is of this output is an earlier run's.
        raise _Restart("there is no checkpoint any more") from None
    except (OSError, ValueError, RecursionError) as error:
        raise _Restart("%s is damaged: %s" % (attempt.progress, error)) from error
    if not isinstance(record, dict):
        raise _Restart("%s holds no JSON object" % attempt.progress)
    _need_numbers(record, "lineOffset")
    if record.get("key", attempt.key) != attempt.key:
        raise _Restart("the checkpoint belongs to another key")
    if attempt.line_offset and record["lineOffset"] != attempt.line_offset:
        raise _Restart("the checkpoint stands at line %d, PIPELINE_LINE_OFFSET at %d"
                       % (record["lineOffset"], attempt.line_offset))
    return record if "outputs" in record else {"lineOffset": record["lineOffset"]}


def _need_numbers(record: Dict[str, Any], *names: str) -> None:
    for name in names:
        value = record.get(name)
        # true is an int to Python, but no number of lines or bytes
        if type(value) is not int or value < 0:
            raise _Restart("%s in the checkpoint must be a whole number, got %r" % (name, value))


def _check_record(record: Dict[str, Any], attempt: _Attempt, finals: Tuple[str, ...], source: _Source) -> None:
    """Raise _Restart unless *record* is one that this kit wrote for these outputs and inputs."""
    if record.get("schema") != SCHEMA or record.get("stage") != attempt.stage or "key" not in record:
        raise _Restart("the checkpoint is of another version or stage")
    _need_numbers(record, "inputIndex", "byteOffset", "bytesTotal")
    outputs, publish, counts = record["outputs"], record.get("publish"), record.get("counts")
    if not isinstance(outputs, dict) or not isinstance(publish, dict) or not isinstance(counts, dict) or not isinstance(record.get("digests"), dict):
        raise _Restart("outputs, publish, digests and counts in the checkpoint must be objects")
    _need_numbers(counts, "written", "rejected")
    final_names = list(publish.values())
    if set(outputs) != set(publish) or final_names.count(finals[0]) != 1 or final_names.count(finals[1]) > 1:
        raise _Restart("the checkpoint names other outputs")
    for name, final in publish.items():
        _need_numbers(outputs, name)
        if final not in finals or not attempt.is_part(name, final):
            raise _Restart("the checkpoint names a foreign part file: %s" % name)
    index, offset = record["inputIndex"], record["byteOffset"]
    if record["bytesTotal"] != sum(source.sizes) or index > len(source.paths):
        raise _Restart("the inputs are not those of the checkpoint")
    if record.get("chunk") != (None if source.chunk is None else list(source.chunk)):
        raise _Restart("the checkpoint is of another chunk")
    least, most = (source.starts[index], source.ends[index]) if index < len(source.paths) else (0, 0)
    if offset > most:
        raise _Restart("the checkpoint stands behind the end of the input")
    if offset < least:
        raise _Restart("the checkpoint stands before the chunk")
    if record.get("open"):
        raise _Restart("the checkpoint does not say how much of %s it stands for" % record["open"])


def _regular_size(path: str) -> int:
    """Return the size of *path*; -1 when it is no regular file (a link is none)."""
    import stat
    try:
        found = os.lstat(path)
    except OSError:
        return -1
    return found.st_size if stat.S_ISREG(found.st_mode) else -1


def _rejects_name(output: str) -> str:
    return output + ".rejects.jsonl"


def _identity(path: str) -> Optional[Tuple[int, int, int]]:
    try:
        found = os.lstat(path)
    except OSError:
        return None                     # not there, or with a name that is too long for it
    return found.st_ino, found.st_size, found.st_mtime_ns


def _publish(folder: str, publish: Dict[str, str], output: str, before: Any, is_begun: bool = False) -> None:
    """Rename the parts, remove rejects of an earlier run, and make that durable.

    before: what _identity() said of the rejects when the work began. is_begun: some parts may have been renamed already.
    """
    for name, final in publish.items():
        if not is_begun or os.path.lexists(os.path.join(folder, name)):
            _replace(os.path.join(folder, name), os.path.join(folder, final))
    rejects = os.path.join(folder, _rejects_name(output))
    if _rejects_name(output) not in (*publish.values(), *_made) and before is not None and _identity(rejects) == before:
        _remove(rejects)
    _sync_folder(os.path.dirname(os.path.join(folder, output)))


# === 7. One run over the inputs ======================================================================================

_calls: Dict[str, Any] = {}     # output -> number of the next call of lines() or blocks() for it: a checkpoint is of one of them


class _Work:
    """A run of lines() or blocks(): position, parts, counts and checkpoints together."""

    def __init__(self, function: Callable[[str], Any], output: str, one_to_one: bool, codec: _Codec, limit: int) -> None:
        self.function, self.one_to_one, self.codec = function, one_to_one, codec
        self.attempt = _Attempt()
        self.output = _check_output_name(output)
        self.finals = (self.output, _rejects_name(self.output))
        self.rejects_before = _identity(os.path.join(self.attempt.folder, self.finals[1]))
        self.call = next(_calls.setdefault(self.output, itertools.count()))
        self.source = _Source(_own_inputs(), limit)
        self.saver = _Saver(self.attempt, self.output)
        self.parts: Dict[str, _Part] = {}           # final name -> part
        self.written = self.rejected = 0
        self.pid = os.getpid()                      # a child that the function forks has no part in this
        self.batch = 1                              # lines handed to the function before the clock is looked at
        self.signal = 0
        self.around = self.open_beside()            # it gets its text from all lines, and a resume would begin it anew

    # --- start ---

    def open(self) -> bool:
        """Resume or start from zero; False when nothing is left to do."""
        _refuse_second(os.path.join(self.attempt.folder, self.output), self.output)
        for path in self.source.paths:
            if any(_is_same_file(path, os.path.join(self.attempt.folder, final)) for final in self.finals):
                raise _Problem("%s is both input and output of this stage: name another output" % path)
        if self.attempt.resumes:
            try:
                return self._resume()
            except _Restart as why:
                _say("starting from zero: %s" % why)
        if self.attempt.progress is not None:
            _remove(self.attempt.progress)      # before the parts: it must never name what is being written anew
        self._open_parts({}, {}, {})
        return True

    def _open_parts(self, publish: Dict[str, str], sizes: Dict[str, int], digests: Dict[str, Any]) -> None:
        _remove_stale(self.attempt, self.finals, set(publish))
        for name, final in publish.items():
            self.parts[final] = _Part(self.attempt.folder, name, final, sizes[name], digests[name])
        self.part(self.output)

    def _resume(self) -> bool:
        record = _read_progress(self.attempt)
        if "outputs" not in record:
            self._resume_by_hand(record["lineOffset"])
            return True
        _check_record(record, self.attempt, self.finals, self.source)
        if record.get("call", 0) != self.call:
            raise _Restart("the checkpoint is of another call of lines() or blocks()")
        if record.get("complete") is True or record.get("publishing") is True:
            self._complete(record)
            return False
        digests = {}
        for name, size in record["outputs"].items():
            path = os.path.join(self.attempt.folder, name)
            there = _regular_size(path)
            if there < size:
                raise _Restart("part file %s %s" % (name, "is missing" if there < 0 else "is shorter than the checkpoint says"))
            digests[name] = _digest_of(path, size, sum(self.source.sizes))
            if digests[name].hexdigest() != record["digests"].get(name):
                raise _Restart("part file %s is not what it was at the checkpoint" % name)
        self._open_parts(record["publish"], record["outputs"], digests)
        self.written, self.rejected = record["counts"]["written"], record["counts"]["rejected"]
        self.source.start_at(record["inputIndex"], record["byteOffset"], record["lineOffset"])
        self.saver.lines = self.source.lines
        _say("resuming from line %d" % self.source.lines)
        return True

    def _complete(self, record: Dict[str, Any]) -> None:
        """Finish a publishing that was cut short, or see that a complete one still stands."""
        finished = record.get("complete") is True
        for name, final in record["publish"].items():
            path = os.path.join(self.attempt.folder, name)
            if finished or _regular_size(path) < 0:
                path = os.path.join(self.attempt.folder, final)
            size = _regular_size(path)
            if size != record["outputs"][name] or _digest_of(path, size, size).hexdigest() != record["digests"].get(name):
                raise _Restart("%s is not what the checkpoint published" % final)
        _made.add(self.output)              # as publish() does
        if finished:
            _report_counts(self.attempt.counts, record["counts"])
            _say("already complete")
            return
        _remove_stale(self.attempt, self.finals, set(record["publish"]))
        _publish(self.attempt.folder, record["publish"], self.output, self.rejects_before, is_begun=True)
        record.update(publishing=False, complete=True)
        self.saver.save(record, [])
        _report_counts(self.attempt.counts, record["counts"])
        _say("completed the publishing of %s" % self.output)

    def _resume_by_hand(self, count: int) -> None:
        """Keep the first *count* lines of the existing output and skip as many of the inputs. Raises: _Restart."""
        if self.source.chunk is not None:
            raise _Restart("a line number alone cannot be resumed in a chunk")
        if not self.one_to_one:
            raise _Restart("a line number alone can be resumed only with one_to_one=True")
        position = self._position_of_line(count)
        old = os.path.join(self.attempt.folder, self.output)
        if os.path.lexists(os.path.join(self.attempt.folder, self.finals[1])):
            raise _Restart("%s exists: the lines of input and output do not correspond" % self.finals[1])
        if _regular_size(old) < 0:
            raise _Restart("there is no %s to take the first %d lines from" % (self.output, count))
        lines, length = _offset_of_line(old, count)
        if lines < count:
            raise _Restart("%s has only %d whole lines of %d" % (self.output, lines, count))
        self._open_parts({}, {}, {})
        _copy_into(self.parts[self.output], old, length)
        self.source.start_at(position[0], position[1], count)
        self.saver.lines = self.written = count
        _say("resuming from line %d, with the first lines of the existing %s" % (count, self.output))

    def _position_of_line(self, count: int) -> Tuple[int, int]:
        left = count
        for index, path in enumerate(self.source.paths):
            lines, offset = _offset_of_line(path, left)
            left -= lines
            if not left:
                return index, offset
            if index + 1 < len(self.source.paths) and _ends_open(path):
                # Its last line and the next input's first make one line in the output.
                raise _Restart("the last line of %s has no line end" % path)
        if left:
            raise _Restart("the inputs have fewer than %d whole lines" % count)
        return 0, 0

    # --- progress ---

    def part(self, final: str) -> _Part:
        if final not in self.parts:
            digest = _new_digest(sum(self.source.sizes)) if self.attempt.progress is not None else None
            self.parts[final] = _Part(self.attempt.folder, self.attempt.part_name(final), final, digest=digest)
        return self.parts[final]

    def open_beside(self) -> Set[str]:
        """Return the outputs that are being written beside those of this call: how far they are, a checkpoint cannot say."""
        own = {part.target for part in self.parts.values()}
        with _lock("parts"):
            return {name for target, (_, _, name) in _under_way.items() if target not in own and _is_under_way(target)}

    def record(self, **flags: bool) -> Dict[str, Any]:
        """Return the progress at this position, with all output up to it in the parts (not yet synced)."""
        source, parts = self.source, self.parts.values()
        for part in parts:
            part.flush()
        read = source.lines - source.repeated
        written = read - self.rejected if self.one_to_one else self.written
        found = {"schema": SCHEMA, "stage": self.attempt.stage, "key": self.attempt.key, "lineOffset": source.lines,
                 "call": self.call, "inputIndex": source.index, "byteOffset": source.offset,
                 "bytesTotal": sum(source.sizes), "bytesDone": source.bytes_done(),
                 "outputs": {part.name: part.size for part in parts}, "publish": {part.name: part.final for part in parts},
                 "digests": {part.name: part.digest.hexdigest() for part in parts if part.digest is not None},
                 "counts": {"read": read, "written": written, "rejected": self.rejected},
                 "open": sorted(self.around | self.open_beside()), "durable": True, "publishing": False, "complete": False}
        if source.chunk is not None:
            found["chunk"] = list(source.chunk)
        found.update(flags)
        return found

    def pause(self) -> bool:
        """Checkpoint when one is due; True when a signal asks to stop. Called where the position is exact."""
        if self.saver.problem is not None:
            raise self.saver.problem
        if self.saver.is_due(self.source.lines):
            self.saver.start(self.source.lines, self.record(), list(self.parts.values()))
        return self.signal != 0

    def stop(self) -> NoReturn:
        self.saver.wait()
        if self.saver.path is not None:
            self.saver.save(self.record(), list(self.parts.values()))
            _say("stopped at line %d, checkpoint written" % self.source.lines)
        raise SystemExit(EXIT_SIGNAL + self.signal)

    def publish(self) -> None:
        """Make the outputs final: sync, say so in the progress, rename, say that too."""
        self.saver.wait()
        self.saver.save(self.record(publishing=True), list(self.parts.values()))
        for part in self.parts.values():
            part.close()                        # Windows renames no open file
        for final, part in self.parts.items():
            _vouch_whole(final, part.path)
        _made.add(self.output)              # not its rejects: those go when it is made anew
        _publish(self.attempt.folder, {part.name: part.final for part in self.parts.values()}, self.output, self.rejects_before)
        last = self.record(complete=True)
        self.saver.save(last, [])
        _report_counts(self.attempt.counts, last["counts"])     # of the whole, whatever was resumed
        for part in self.parts.values():
            part.let_go()
        self.parts = {}

    def close(self) -> None:
        """Leave nothing under way; without a progress file nobody can resume the parts, so they are discarded."""
        if os.getpid() != self.pid:
            return
        if self.saver.thread is not None:
            self.saver.thread.join()
        for part in self.parts.values():
            try:
                if self.saver.path is None:
                    part.discard()
                else:
                    part.leave()
            except (_Problem, OSError):
                pass                            # the next start removes it; what ended this one must be heard instead

    # --- errors ---

    def blame(self, line: int, text: str) -> _Problem:
        return _Problem("%s:%d: %s" % (self.source.name(), self.source.line_number() + line, text))

    def blame_decoding(self, error: UnicodeDecodeError, start: int) -> _Problem:
        line = self.source.buffer.count(b"\n", 0, start + error.start)
        return self.blame(line, "byte 0x%02x is not %s: convert the file, or name its encoding or errors=\"surrogateescape\""
                          % (error.object[error.start], self.codec.encoding))

    def blame_function(self, line: int, error: BaseException) -> NoReturn:
        """Name the place, then show the traceback: it is the processor's own code that failed."""
        if isinstance(error, SystemExit):
            raise error                         # a _WorkerExit, and said already
        import traceback
        _tell(2, str(self.blame(line, "the processor failed here: %s: %s" % (type(error).__name__, error))))
        _tell(2, "".join(traceback.format_exception(type(error), error, error.__traceback__)).rstrip())
        _exit(EXIT_ERROR)


def _is_same_file(one: str, other: str) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False


def _copy_into(part: _Part, path: str, length: int) -> None:
    try:
        with open(path, "rb", buffering=0) as file:
            while length > 0:
                block = file.read(min(length, COPY_BYTES))
                if not block:
                    raise _Problem("%s became shorter while it was read" % path)
                part.write(block)
                length -= len(block)
    except OSError as error:
        raise _trouble("read", path, error) from error


def _watch_signals(work: Any) -> Dict[int, Any]:
    """Let SIGTERM and SIGINT only leave a note: the block under way is finished first. Returns what was done with them before."""
    before: Dict[int, Any] = {}
    own = os.getpid()

    def note(number: int, frame: Any) -> None:
        if os.getpid() != own:                  # a forked child, as of a pool, is not at this work
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        work.signal = signal.SIGINT if number == signal.SIGINT else signal.SIGTERM
    for name in ("SIGTERM", "SIGINT", "SIGBREAK"):
        if hasattr(signal, name):
            try:
                before[getattr(signal, name)] = signal.signal(getattr(signal, name), note)
            except ValueError:
                break                           # not the main thread: signals are somebody else's business
    return before


def _unwatch_signals(before: Dict[int, Any]) -> None:
    for number, handler in before.items():
        signal.signal(number, handler if handler is not None else signal.SIG_DFL)


def _heed(work: Any) -> None:
    """End the processor if a signal was noted, once none is any more: while the outputs were published; nothing more is begun."""
    if work.signal:
        raise SystemExit(EXIT_SIGNAL + work.signal)


def _run(feed: Callable[[_Work], None], function: Callable[[str], Any], output: str, one_to_one: bool,
         encoding: str, errors: str, limit: int) -> None:
    work, before = None, {}
    try:
        if not callable(function):
            raise _Problem("lines() and blocks() take the function first, then the name of the output; got %r" % (function,))
        work = _Work(function, output, one_to_one, _Codec(encoding, errors), limit)
        before = _watch_signals(work)
        if work.open():
            while not work.pause() and work.source.fill():
                feed(work)
            if work.signal:
                work.stop()
            work.publish()
    except _Problem as problem:
        fail(str(problem))
    except SystemExit as end:
        if end.code or work is None or os.getpid() != work.pid:
            raise
        fail("%s: the function for lines or blocks ended the processor with exit code 0; its output is not whole" % work.output)
    finally:
        if work is not None:
            work.close()
        _unwatch_signals(before)
    _heed(work)


# === 8. Blocks and lines =============================================================================================

def blocks(function: Callable[[str], str], output: str, *, one_to_one: bool = False, encoding: str = "utf-8",
           errors: str = "strict") -> None:
    r"""Write function(text) for all text of the inputs to *output*; text is whole lines.

    Mostly 64 KiB, which is fastest; a longer line comes whole up to 1 MiB, beyond that in pieces cut between
    characters. ASCII lines come apart from others. Only "\n" ends a line. *one_to_one* promises one output line per
    input line, which lets a hand-written line number resume; "written" otherwise counts the line ends written.
    On return *output* is published and durable. Exits (see the module) on errors and on SIGTERM.
    """
    _run(_feed_block, function, output, one_to_one, encoding, errors, BLOCK_LIMIT)


def _feed_block(work: _Work) -> None:
    source, codec = work.source, work.codec
    if not source.is_whole:
        try:
            text, used = codec.piece(memoryview(source.buffer)[:source.filled])
        except UnicodeDecodeError as error:
            raise work.blame_decoding(error, 0) from error
        _write_block(work, [_result_of_block(work, text, 0)], used, 0)
        return
    ends, results, end = 0, [], 0
    try:
        for text, end in codec.texts(source.buffer, source.filled):    # noqa: B007 (the error below needs it)
            results.append(_result_of_block(work, text, ends))
            ends += text.count("\n")
    except UnicodeDecodeError as error:
        raise work.blame_decoding(error, end) from error
    _write_block(work, results, source.filled, ends)


def _write_block(work: _Work, results: List[bytes], used: int, ends: int) -> None:
    work.parts[work.output].write(results[0] if len(results) == 1 else b"".join(results))
    work.source.advance(used, ends)
    if not work.one_to_one and not work.source.is_repeated():
        work.written += sum(data.count(b"\n") for data in results)


def _result_of_block(work: _Work, text: str, line: int) -> bytes:
    try:
        result = work.function(text)
    except Exception as error:
        work.blame_function(line, error)
    if not isinstance(result, str):
        raise work.blame(line, "the block function returned %s, not str" % type(result).__name__)
    return _encoded(work, result, line)


def _encoded(work: _Work, text: str, line: int) -> bytes:
    try:
        return work.codec.bytes_of(text)
    except UnicodeEncodeError as error:
        raise work.blame(line, "the result cannot be written as %s: %s" % (work.codec.encoding, error.reason)) from error


def lines(function: Callable[[str], Optional[str]], output: str, *, one_to_one: bool = False, encoding: str = "utf-8",
          errors: str = "strict") -> None:
    r"""Write function(line) for each line of the inputs to *output*.

    A line comes with its end as it stands in the file, "\n" or "\r\n", the last one perhaps without; only "\n" ends a
    line. None drops it; Reject("why") sets it aside in *output*.rejects.jsonl. *one_to_one* promises one output line
    per input line (rejects apart), which lets a hand-written line number resume. On return the files are published
    and durable. Exits (see the module) on errors, on SIGTERM, and on a line above 2 MiB.
    """
    _run(_feed_lines, function, output, one_to_one, encoding, errors, LINE_LIMIT)


def _feed_lines(work: _Work) -> None:
    source, start = work.source, 0
    if not source.is_whole:
        raise work.blame(0, "line longer than %d MiB: use blocks() of processor_kit for such files" % (LINE_LIMIT >> 20))
    try:
        text = work.codec.whole(memoryview(source.buffer)[:source.filled])
    except UnicodeDecodeError as error:
        raise work.blame_decoding(error, 0) from error
    rows = [text] if source.filled > READ_BYTES else list(io.StringIO(text, newline="\n"))
    done = 0
    while done < len(rows):
        batch = rows[done:done + work.batch] if done or work.batch < len(rows) else rows
        began = time.monotonic()
        data = _results_of_lines(work, batch)
        end = source.filled if done + len(batch) == len(rows) else _after_lines(source.buffer, start, len(batch))
        work.parts[work.output].write(data)
        # An unterminated last line is counted where the input ends, see _Source.
        source.advance(end - start, len(batch) - (not batch[-1].endswith("\n")))
        start, done = end, done + len(batch)
        _fit_batch(work, time.monotonic() - began)
        if done < len(rows) and work.pause():
            return


def _fit_batch(work: _Work, took_s: float) -> None:
    if took_s > BATCH_S:
        work.batch = max(1, work.batch // 4)
    elif took_s < BATCH_S / 4 and work.batch < READ_BYTES:
        work.batch *= 2


def _after_lines(buffer: bytearray, start: int, count: int) -> int:
    for _ in range(count):
        start = buffer.index(b"\n", start) + 1
    return start


def _results_of_lines(work: _Work, batch: List[str]) -> bytes:
    """Return the output of *batch*; write its rejects."""
    results: List[Any] = []
    refused: List[Tuple[int, str]] = []
    function, keep, rows = work.function, results.append, iter(batch)
    while True:
        try:
            for row in rows:
                keep(function(row))
            break
        except Reject as reject:
            refused.append((len(results), str(reject)))
            keep(None)
        except Exception as error:
            work.blame_function(len(results), error)
    if refused and not work.source.is_repeated():
        _set_aside(work, batch, refused)
    return _joined(work, results, len(refused))


def _set_aside(work: _Work, batch: List[str], refused: List[Tuple[int, str]]) -> None:
    first, found = work.source.line_number(), []
    for index, reason in refused:
        record = {"input": work.source.name(), "line": first + index, "reason": reason, "record": batch[index]}
        try:
            found.append((json.dumps(record, ensure_ascii=False) + "\n").encode("utf-8"))
        except UnicodeEncodeError:
            found.append((json.dumps(record) + "\n").encode("ascii"))       # bytes that were not text, as \udcXX
    work.part(work.finals[1]).write(b"".join(found))
    work.rejected += len(refused)


def _encoded_one_by_one(work: _Work, results: List[Any]) -> List[bytes]:
    pieces = []
    for line, result in enumerate(results):
        if result is not None and not isinstance(result, str):
            raise work.blame(line, "the line function returned %s, not str or None" % type(result).__name__)
        if result is not None:
            pieces.append(_encoded(work, result, line))
    return pieces


def _joined(work: _Work, results: List[Any], refused: int) -> bytes:
    try:
        data, kept = work.codec.bytes_of("".join(results)), len(results)
    except (TypeError, UnicodeEncodeError):
        pieces = _encoded_one_by_one(work, results)     # some are None, or one is wrong: only now worth a look at each
        data, kept = b"".join(pieces), len(pieces)
    if work.one_to_one and kept + refused < len(results):
        raise work.blame(0, "a line from here on was dropped, but the processor declares one_to_one=True")
    if not work.source.is_repeated():
        work.written += kept
    return data


# === 9. Whole files and other outputs ================================================================================

class _Signal:
    signal = 0


def copy_files() -> None:
    """Copy each input's content into the output directory, under its base name; of a chunk, header and chunk.

    Each copy is durable before it replaces an older file of that name. Exits with 1 when two names are the same
    ignoring case, or an input is its own target; then nothing was written.
    """
    _checked(_copy_files)


def _copy_files() -> None:
    attempt, paths, stop = _Attempt(), _own_inputs(), _Signal()
    before = _watch_signals(stop)
    try:
        _copy_all(attempt, paths, stop)
    finally:
        _unwatch_signals(before)
    _heed(stop)


def _folded(name: str, macos: bool = sys.platform == "darwin") -> str:
    """Return a name as two names are equal that may be one file: case tells nothing on some systems, nor does how an accent is written on macOS."""
    if not macos or name.isascii():
        return name.casefold()
    import unicodedata
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _copy_all(attempt: _Attempt, paths: List[str], stop: _Signal) -> None:
    names: Dict[str, str] = {}
    for path in paths:
        _size_of(path)
        name = os.path.basename(path)
        other = names.setdefault(_folded(name), path)
        if other is not path:
            raise _Problem("%s and %s would both be copied to %s: rename one" % (other, path, name))
        if _is_same_file(path, os.path.join(attempt.folder, name)):
            raise _Problem("%s is already in the output directory: choose another outputDir" % path)
    _remove_stale(attempt, tuple(os.path.basename(path) for path in paths), set())
    chunk = _chunk(paths)
    for path in paths:
        _copy_file(attempt, path, _spans([path], chunk) if chunk is not None else [(path, 0, sys.maxsize)], stop)
    if paths:
        _sync_folder(attempt.folder)


def _copy_file(attempt: _Attempt, path: str, spans: List[Tuple[str, int, int]], stop: _Signal) -> None:
    name = os.path.basename(path)
    part = _Part(attempt.folder, attempt.part_name(name), name)
    part.is_new = False                         # the folder is synced once, after the last file
    try:
        try:
            file = open(path, "rb", buffering=0)
        except OSError as error:
            raise _trouble("read", path, error) from error
        with file:
            for _, start, end in spans:
                file.seek(start)
                done = _copy_by_kernel(file.fileno(), part, end - start, stop)
                _copy_rest(file, part, path, end - start - done, stop)
                part.flush()                    # what the kernel copies next goes behind it
        if stop.signal:
            raise SystemExit(EXIT_SIGNAL + stop.signal)
        part.sync()
        part.close()
        _made.add(name)
        _vouch_whole(name, part.path)
        _replace(part.path, part.target)
        part.let_go()
    except BaseException:
        part.discard()
        raise


def _copy_by_kernel(source: int, part: _Part, length: int, stop: _Signal) -> int:
    """Copy as far as the kernel does it alone (or shares the blocks), at most *length*; whatever it leaves, _copy_rest does."""
    call, copied = getattr(os, "copy_file_range", None), 0
    while call is not None and copied < length and not stop.signal:
        try:
            done = call(source, part.descriptor, min(COPY_BYTES * 8, length - copied))
        except OSError:
            break                               # another file system, an old kernel, a full disk: the write will tell
        if not done:
            break
        part.size += done
        copied += done
    return copied


def _copy_rest(file: Any, part: _Part, path: str, length: int, stop: _Signal) -> None:
    while length and not stop.signal:
        try:
            block = file.read(min(COPY_BYTES, length))
        except OSError as error:
            raise _trouble("read", path, error) from error
        if not block:
            return
        part.write(block)
        length -= len(block)


class open_output:
    """Open *name* below the output directory for writing, as a context manager; text is UTF-8 without newline changes.

    When the block ends well the file is durable (or the runner makes it so, PIPELINE_SYNC) and replaces an older one by
    rename; when it raises, nothing changes.
    """

    def __init__(self, name: str, binary: bool = False) -> None:
        self.name, self.binary = name, binary

    def __enter__(self) -> IO[Any]:
        def begin() -> Any:
            attempt, name = _Attempt(), _check_output_name(self.name)
            _remove_stale(attempt, (name,), set())
            self.part, self.pid = _Part(attempt.folder, attempt.part_name(name), name), os.getpid()
            self.progress = _identity(os.environ.get("PIPELINE_PROGRESS_FILE", ""))
            raw = open(self.part.descriptor, "wb", closefd=False)
            return raw if self.binary else io.TextIOWrapper(raw, encoding="utf-8", newline="")
        self.file: IO[Any] = _checked(begin)
        return self.file

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if kind is None:
            _checked(self._publish)
            return
        if os.getpid() != self.pid:
            return                              # a forked child: the part is its parent's
        try:
            self.file.close()                   # before its descriptor: a late flush would hit whatever has that number
        except OSError:
            pass
        if kind is GeneratorExit:
            self.part.leave()
            return                              # nobody wanted the rest: the part stays, and the runner finds what is not finished
        self._discard()
        if kind is SystemExit and not error.code:
            fail("%s: left with exit code 0 before it was whole; it is not published" % self.name)

    def _discard(self) -> None:
        try:
            if self._is_counted_on():
                _say("removing the checkpoint: %s, which it counts on, is not whole" % self.name)
                _remove(os.environ["PIPELINE_PROGRESS_FILE"])   # first: a resume would take what is discarded for done
            self.part.discard()
        except (_Problem, OSError):
            pass                                # the next start removes it

    def _is_counted_on(self) -> bool:
        """Tell whether the processor itself has written a checkpoint since this was opened: a resume from there would begin it anew.

        One of lines() or blocks() names what was open. What threads and children publish is no part of the main thread's text.
        """
        path = os.environ.get("PIPELINE_PROGRESS_FILE", "")
        if _is_aside() or _identity(path) in (None, self.progress) or _regular_size(path) < 0:
            return False
        try:
            with open(path, "rb") as file:
                record = json.loads(file.read(8 << 20).decode("utf-8"))
        except (OSError, ValueError, RecursionError):
            return False                        # nobody resumes from it
        return isinstance(record, dict) and "open" not in record

    def _publish(self) -> None:
        try:
            try:
                self.file.close()
            except OSError as error:
                raise _trouble("write", self.part.path, error) from error
            self.part.sync()
            self.part.close()
            _made.add(self.part.final)
            if not self._is_counted_on():
                _vouch_whole(self.part.final, self.part.path)
            _replace(self.part.path, self.part.target)
            self.part.let_go()
        except _Problem:
            self._discard()
            raise
        _sync_folder(os.path.dirname(self.part.target))


_reported: Dict[str, int] = {}      # what PIPELINE_COUNTS_FILE says so far: of all that this processor does


def _report_counts(path: Optional[str], counts: Dict[str, int]) -> None:
    """Add *counts* to those that the runner finds when the processor has ended; those of a child would replace its parent's."""
    if _is_child():
        return
    with _lock("counts"):
        for name in ("read", "written", "rejected"):
            _reported[name] = _reported.get(name, 0) + counts.get(name, 0)
        if path:
            _write_progress(path, _reported, durable=False)     # after a power cut the attempt is made again


_counts: Dict[str, int] = {}        # of count(): a processor of its own kind has no other place for them


def count(read: int = 0, written: int = 0, rejected: int = 0) -> None:
    """Add to the record counts, for processors that use neither lines() nor blocks() (those count by themselves).

    They reach the runner when the processor ends, through PIPELINE_COUNTS_FILE; a checkpoint is left alone. A processor
    that resumes by itself counts what it did before, too. What a child process counts is not known to its parent.
    """
    for name, more in (("read", read), ("written", written), ("rejected", rejected)):
        if not isinstance(more, int):
            fail("count(%s=%r): must be a whole number" % (name, more))
    with _lock("counts"):
        if not _counts:
            import atexit
            atexit.register(_save_counts)
        for name, more in (("read", read), ("written", written), ("rejected", rejected)):
            _counts[name] = _counts.get(name, 0) + int(more)


def _save_counts() -> None:
    try:
        _report_counts(os.environ.get("PIPELINE_COUNTS_FILE"), _counts)
    except _Problem as problem:
        _tell(2, str(problem))
