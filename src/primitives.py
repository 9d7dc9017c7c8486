"""JSON and SHA-256 without the imports that show in the time of a run in which nothing changed, and files as all systems have them.

Under all other modules: it imports nothing of ours. The package json loads the module re, and hashlib loads OpenSSL; small values
need neither. The interpreter's own parts of them are used where they are there, the packages where not.
"""
from __future__ import annotations

import os
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    import hashlib
    from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple, Union
    Piece = Union[bytes, memoryview]

BULK_BYTES = 1 << 20        # hashed in all: from here on, the quicker implementation is worth its import
BEFORE = ".%s.before"        # a stage's record as it was last durable, beside one that may not be durable yet
GUESSED_BOOT = "start-"     # what a boot id begins with that the system has not told
SHARING_RETRY_S = 2.0       # Windows: scanners hold files open for moments
SHARING_ERRORS = (5, 32, 33)
BATCH_ENDINGS = (".bat", ".cmd")     # of programs that Windows gives to cmd.exe
LONGEST_FOLDER, LONGEST_PATH = 247, 259     # characters of a folder's path and of any, by the documentation of Windows (MAX_PATH)
MOUNT_POINT = 0xA0000003    # st_reparse_tag of a junction of Windows (mklink /J), and of a volume that is mounted in a folder
NOT_THERE = (2, 20, 36, 40, 62, 63)     # ENOENT, ENOTDIR, and ENAMETOOLONG and ELOOP of Linux and of macOS
# The system's own numbers, for the C library makes the same of a network that does not answer: ERROR_FILE_NOT_FOUND, PATH_NOT_FOUND,
# INVALID_NAME, BAD_PATHNAME, FILENAME_EXCED_RANGE, DIRECTORY (a file on the way) and CANT_RESOLVE_FILENAME (links in a circle).
NOT_THERE_ON_WINDOWS = (2, 3, 123, 161, 206, 267, 1921)
EACCES = 13                 # which the C library makes of each of these, without the system's own number
HELD_BEGINS = (".nfs", ".fuse_hidden")     # of the name that NFS and FUSE give a file that is removed while somebody has it open, until it is closed
BLANKS = " \t\n\r"          # of JSON
HOLE = "\0"                 # where a ready array goes; in JSON text this character is always escaped
PRETTY_END, COMPACT_END = b",\n  ", b","      # between two entries of a ready array, and after each of its pieces


def open_file(path: str, buffering: int = -1) -> Any:
    """Open a file for reading. Raises: OSError; for a pipe or a device, too, which would be waited for, for ever."""
    descriptor = open_descriptor(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0))
    try:
        kind = os.fstat(descriptor).st_mode & 0o170000
        if kind == 0o040000:
            raise IsADirectoryError(21, "Is a directory", path)
        if kind != 0o100000:
            raise OSError(22, "it is a pipe or a device, no file", path)
    except BaseException:
        close_quietly(descriptor)
        raise
    # From here on it is the file's to close: a signal that is heeded when open() returns has dropped the file already.
    return open(descriptor, "rb", buffering)


class naming:
    """A context in which an OSError that names no file names *path*: what works on an open file does not tell on which."""

    __slots__ = ("path",)

    def __init__(self, path: str) -> None:
        self.path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if isinstance(error, OSError) and error.filename is None:
            error.filename = self.path


def patiently(act: Callable[[], Any], wait: Callable[[float], None] = time.sleep, windows: bool = sys.platform == "win32") -> Any:
    """Return act(); on Windows try again for some 2 s while another program (a virus scanner) holds the file."""
    pause, waited = 0.01, 0.0
    while True:
        try:
            return act()
        except PermissionError as error:
            if not windows or not _is_held(error) or waited >= SHARING_RETRY_S:
                raise
        wait(pause)
        waited += pause
        pause = min(pause * 2, 0.25)


def _is_held(error: PermissionError) -> bool:
    """Tell whether an error of Windows may mean that another program holds the file."""
    number = getattr(error, "winerror", None)
    return number in SHARING_ERRORS or number is None and error.errno == EACCES


def open_descriptor(path: str, flags: int, mode: int = 0o777, windows: bool = sys.platform == "win32") -> int:
    """As os.open(), patiently; a folder is not waited for."""
    if not windows:
        return os.open(path, flags, mode)

    def act() -> int:
        try:
            return os.open(path, flags, mode)
        except PermissionError as error:
            _tell_of_folder(path, error)
            raise
    return int(patiently(act, windows=True))


def _tell_of_folder(path: str, error: PermissionError) -> None:
    """Raise IsADirectoryError if that is what Windows calls a lack of rights."""
    if os.path.isdir(path):
        raise IsADirectoryError(21, "Is a directory", path) from error


def read_hostile(path: str, limit: int, windows: bool = sys.platform == "win32") -> bytes:
    """Return the first *limit* bytes of a file that a processor may have replaced, b"" for what is no file or cannot be read.

    No link is followed, and no writer of a pipe waited for; a scanner that holds it is (Windows).
    """
    if windows and is_link(path):
        return b""                      # there is no O_NOFOLLOW
    try:
        descriptor = open_descriptor(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0),
                                     windows=windows)
    except (OSError, ValueError):
        return b""
    try:
        if os.fstat(descriptor).st_mode & 0o170000 == 0o100000:
            with open(descriptor, "rb", closefd=False) as file:
                return file.read(limit)
    except OSError:
        pass
    finally:
        close_quietly(descriptor)
    return b""


def real_folder(path: str) -> str:
    """Return the absolute path of a folder, without links: one on the way may lead elsewhere before the work is done.

    On Windows with them: without a drive letter that stands for a folder (subst, a mapped drive) it may be too long, or no program
    may start there.
    """
    return os.path.abspath(path) if sys.platform == "win32" else os.path.realpath(path)


def in_real_folder(path: str) -> str:
    """Return the path of a file, its folder's as by real_folder(); the file may be a link itself."""
    folder, name = os.path.split(path)
    return os.path.join(real_folder(folder or os.curdir), name)


def refuse_too_long(path: str, longest: int = LONGEST_FOLDER) -> None:
    """Raise OSError if a path that is not found may be too long: of such a one, too, Windows says that nothing is there."""
    if sys.platform == "win32" and len(os.path.abspath(path)) > longest:
        import errno
        raise OSError(errno.ENAMETOOLONG, "the path has %d characters, and Windows takes no more than %d unless LongPathsEnabled is set" % (
            len(os.path.abspath(path)), longest), path)


def replace(source: str, target: str, windows: bool = sys.platform == "win32") -> None:
    """As os.replace(), patiently; also where the target may only be read, as POSIX has it."""
    patiently(lambda: os.replace(source, target) if not windows else _though_read_only(target, lambda: os.replace(source, target)), windows=windows)


def unlink(path: str, windows: bool = sys.platform == "win32") -> None:
    """As os.unlink(), patiently; also what may only be read, as POSIX has it."""
    patiently(lambda: os.unlink(path) if not windows else _though_read_only(path, lambda: os.unlink(path)), windows=windows)


def _though_read_only(path: str, act: Callable[[], Any]) -> None:
    """Do what Windows forbids with a file whose attribute says that it may only be read: that goes first. A folder is not
    waited for, and is no file that is held: Windows says the same of both."""
    try:
        act()
    except PermissionError as error:
        if not is_link(path):
            _tell_of_folder(path, error)
        if not os.path.lexists(path) or os.path.islink(path) or os.lstat(path).st_mode & 0o200:
            raise                       # another file is held, or this one
        os.chmod(path, 0o600)
        act()


def rmtree(path: str, windows: bool = sys.platform == "win32") -> None:
    """As shutil.rmtree(), patiently. What is gone when its turn comes is removed, too: with "x", macOS removes its "._x" on FAT,
    exFAT and network volumes.

    Not on Windows, which says so of a path that is too long.
    """
    import shutil

    def note(call: Any, where: str, error: Any) -> None:
        error = error if isinstance(error, BaseException) else error[1]
        if windows or where == path or not isinstance(error, FileNotFoundError):
            raise error
    handler: Any = {"onexc" if sys.version_info >= (3, 12) else "onerror": note}
    patiently(lambda: shutil.rmtree(path, **handler))


def remove_quietly(path: str) -> None:
    try:
        unlink(path)
    except OSError:
        pass


def is_there(path: str) -> bool:
    """Tell whether there is something of that name, a link that leads nowhere, too. Raises: OSError where nobody knows: who
    acts on what is not there must not act on a disk that does not answer, as os.path.lexists() would let him."""
    try:
        os.lstat(path)
    except ValueError:                  # a name with a null character
        return False
    except OSError as error:
        if tells_absence(error):
            return False
        raise
    return True


def tells_absence(error: OSError) -> bool:
    """Tell whether a file that could not be opened or looked at is known not to be there."""
    number = getattr(error, "winerror", None)
    return number in NOT_THERE_ON_WINDOWS if number is not None else error.errno in NOT_THERE


def is_for_cmd(program: str) -> bool:
    """Tell whether Windows gives a program to cmd.exe: by its ending, behind which dots and blanks are none (CVE-2024-43402)."""
    return sys.platform == "win32" and program.rstrip(" .").lower().endswith(BATCH_ENDINGS)


def is_link(path: str) -> bool:
    """As os.path.islink(); a junction of Windows, to Python a folder, is a link, too: what lies behind it lies elsewhere."""
    if sys.platform != "win32":
        return os.path.islink(path)
    try:
        found = os.lstat(path)
    except (OSError, ValueError):
        return False
    return found.st_mode & 0o170000 == 0o120000 or getattr(found, "st_reparse_tag", 0) == MOUNT_POINT


def is_junction(entry: os.DirEntry[str]) -> bool:
    """Tell whether an entry of a folder is a junction. Only Windows has any, and there the system has told it with the entry."""
    return sys.platform == "win32" and getattr(entry.stat(follow_symlinks=False), "st_reparse_tag", 0) == MOUNT_POINT


def leads_out(path: str) -> bool:
    """Tell whether a path that a record names, with forward slashes, may lead out of the folder to which it is relative."""
    return path[:1] == "/" or ".." in path.split("/") or sys.platform == "win32" and ("\\" in path or ":" in path)


def close_quietly(descriptor: int) -> None:
    """Close what has been synced, or given up: an error now (a file server's, late) tells nothing."""
    try:
        os.close(descriptor)
    except OSError:
        pass


def account_name(number: int) -> str:
    """Return the name of the account of that number (POSIX), the number where it has none."""
    import pwd
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def whose_text(path: str) -> str:
    """Return "belongs to NAME", and what to do, for a file or folder of another account that keeps this one out, "" where that is not
    so, or nobody can tell."""
    if os.name != "posix" or not os.geteuid():
        return ""
    try:
        found = os.lstat(path)
    except OSError:
        return ""
    is_folder = found.st_mode & 0o170000 == 0o040000
    if found.st_uid == os.geteuid() or os.access(path, os.R_OK | os.W_OK | (os.X_OK if is_folder else 0)):
        return ""
    import shlex
    owner = account_name(found.st_uid)
    return "belongs to %s; %sas root: chown %s%s %s" % (owner, "run as %s, or, " % owner if found.st_uid else "", "-R " if is_folder else "",
                                                        account_name(os.geteuid()), shlex.quote(os.path.abspath(path)))


def go_on() -> None:
    """In place of whoever may ask, between two blocks of a long file, to stop; he would raise something."""


def truncate(path: str, size: int) -> None:
    """As os.truncate(), patiently."""
    patiently(lambda: os.truncate(path, size))


def composed(name: str, macos: bool = sys.platform == "darwin") -> str:
    """Return a name as two names are equal that macOS takes for one: it may write an accent as a sign of its own, or with its
    letter as one."""
    if not macos or name.isascii():
        return name
    import unicodedata
    return unicodedata.normalize("NFC", name)


def folded(name: str, macos: bool = sys.platform == "darwin") -> str:
    """Return a name as two names are equal that may be one file: on some systems case tells nothing, nor (composed()) how an
    accent is written."""
    return composed(composed(name, macos).casefold(), macos) if macos else name.casefold()


def as_here(name: str) -> str:
    """Return a name or path as two are equal that this system, as most often set up, takes for one."""
    return folded(name) if sys.platform in ("win32", "darwin") else name


def storable(text: str) -> str:
    """Return a text as a record can hold it: bytes of a name that are not UTF-8, in text halves of surrogate pairs, are spelled
    (\\udcff for ff)."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def prepare_stream(stream: Any) -> None:
    """Let a standard stream write every text, and in the same encoding from each of our programs."""
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(**stream_settings(is_terminal(stream), os.environ))


def stream_settings(is_terminal: bool, environ: Any, windows: bool = sys.platform == "win32") -> Dict[str, str]:
    """Return how a standard stream is to write. What Windows redirects to a file or a pipe is UTF-8, as everywhere else, unless
    PYTHONIOENCODING says otherwise."""
    is_utf_8 = windows and not is_terminal and not environ.get("PYTHONIOENCODING")
    return {"errors": "backslashreplace", **({"encoding": "utf-8"} if is_utf_8 else {})}


def is_terminal(stream: Any) -> bool:
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError):
        return False


def sha256(data: bytes = b"", size: int = 0) -> hashlib._Hash:
    """Return a SHA-256 object fed with *data*; *size* is how many bytes it is going to see.

    The first small things are hashed by the interpreter's own module. Who hashes more is served by OpenSSL: it uses the
    processor's instructions.
    """
    global _hashed
    _hashed += max(size, len(data))
    if _hashed < BULK_BYTES:
        try:
            if sys.version_info >= (3, 12):
                from _sha2 import sha256 as make
            else:
                from _sha256 import sha256 as make  # type: ignore[import-not-found, unused-ignore]
            return make(data)  # type: ignore[no-any-return, unused-ignore]
        except ImportError:
            pass                # another implementation of Python, or a build without it
    return load_openssl()(data)  # type: ignore[no-any-return]


def digest_of(pieces: Sequence[Piece], before: bytes = b"") -> str:
    """Return the SHA-256 (hex) of *before* and the pieces, as if they were joined."""
    digest = sha256(before, sum(map(len, pieces)))
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def load_openssl() -> Any:
    """Return OpenSSL's sha256(), loaded without the other digests that hashlib loads; hashlib's where Python is built without
    it."""
    try:
        from _hashlib import openssl_sha256
        return openssl_sha256
    except ImportError:
        import hashlib
        return hashlib.sha256


_hashed = 0                 # bytes, of this process; threads may lose some


class Ready:
    """A JSON array whose bytes are made already, in pieces: thousands of entries of a record that are the same in each run.

    pretty: as it stands in a record, one level deep. canonical: as it is hashed. A record has at most one, on its top level.
    """

    __slots__ = ("pretty", "canonical")

    def __init__(self, pretty: Sequence[Piece], canonical: Sequence[Piece] = ()) -> None:
        self.pretty, self.canonical = pretty, canonical

    def __iter__(self) -> Iterator[Any]:
        return iter(loads(b"".join(self.pretty).decode("utf-8")))


def ready_array(pretty: Sequence[Piece], canonical: Sequence[Piece] = ()) -> Ready:
    """Return the array of entries whose bytes are given: those of pretty(entry, 2) with PRETTY_END, of compact(entry, True) with
    COMPACT_END."""
    return Ready(_in_brackets(pretty, b"[\n  ", PRETTY_END, b"\n ]"), _in_brackets(canonical, b"[", COMPACT_END, b"]"))


def _in_brackets(pieces: Sequence[Piece], begin: bytes, entry_end: bytes, end: bytes) -> Sequence[Piece]:
    return [begin, *pieces[:-1], pieces[-1][:-len(entry_end)], end] if pieces else [b"[]"]


def _filled(text: str, value: Any, kind: str) -> List[Piece]:
    """Return the bytes of a record's text in pieces, those of its ready array where the text has a hole."""
    before, hole, after = text.partition(HOLE)
    if not hole:
        return [text.encode("utf-8")]
    ready, = (one for one in value.values() if type(one) is Ready)
    return [before.encode("utf-8"), *getattr(ready, kind), after.encode("utf-8")]


# What the interpreter's own JSON module uses is used here without it, for it takes longer to load than a short run may. None of
# it is promised: an interpreter that has it no more, or wants it called in another way, is served by the module.
UNFIT = (ImportError, AttributeError, TypeError)


def _make_encoder(sort: bool) -> Callable[[Any], str]:
    try:
        from _json import encode_basestring, make_encoder
        encode = make_encoder(None, _refuse, encode_basestring, None, ":", ",", sort, False, False)
        encode([], 0)
    except UNFIT:
        import json
        return json.JSONEncoder(sort_keys=sort, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode
    return lambda value: "".join(encode(value, 0))


def _make_text_encoder() -> Callable[[str], str]:
    try:
        from _json import encode_basestring
        return encode_basestring
    except ImportError:
        return _make_encoder(False)


def _make_indenter() -> Optional[Callable[[Any, int], Iterable[str]]]:
    """Return the interpreter's own encoder for people, None if it cannot indent: that of an older Python leaves the blanks
    out."""
    try:
        from _json import encode_basestring, make_encoder
        encode = make_encoder(None, _refuse, encode_basestring, " ", ": ", ",", False, False, False)  # type: ignore[arg-type, unused-ignore]
        return encode if "".join(encode([[1]], 1)) == "[\n  [\n   1\n  ]\n ]" else None
    except UNFIT:
        return None


def _refuse(value: Any) -> Any:
    raise TypeError("%s is no JSON value" % type(value).__name__)


_PLAIN, _SORTED, _TEXT, _INDENTED = _make_encoder(False), _make_encoder(True), _make_text_encoder(), _make_indenter()


def compact(value: Any, sort: bool = False) -> str:
    """Return JSON without blanks, not escaped to ASCII; sort: with the keys in order; HOLE for a ready array.

    Raises: ValueError for NaN; TypeError.
    """
    if isinstance(value, dict) and _has_ready(value):
        names = sorted(value) if sort else list(value)
        return "{%s}" % ",".join("%s:%s" % (_PLAIN(name), HOLE if type(value[name]) is Ready else compact(value[name], sort)) for name in names)
    return _SORTED(value) if sort else _PLAIN(value)


def pretty(value: Any, level: int = 0) -> str:
    """Return JSON for people, one blank for each level; *level* is how deep the value stands; HOLE for a ready array.

    The text is that of json.dumps(indent=1).
    """
    if _INDENTED is not None and not (isinstance(value, dict) and _has_ready(value)):
        return "".join(_INDENTED(value, level))
    return _pretty(value, level)


def _pretty(value: Any, level: int) -> str:
    if not value or not isinstance(value, (dict, list, tuple)):
        return HOLE if type(value) is Ready else _PLAIN(value)
    space = "\n" + " " * (level + 1)
    if isinstance(value, dict):
        parts = ["%s%s: %s" % (space, _TEXT(name) if isinstance(name, str) else '"%s"' % _PLAIN(name),
                               _TEXT(one) if type(one) is str else _pretty(one, level + 1)) for name, one in value.items()]
        return "{%s\n%s}" % (",".join(parts), " " * level)
    return "[%s\n%s]" % (",".join([space + _pretty(one, level + 1) for one in value]), " " * level)


def _has_ready(value: Any) -> bool:
    return any(type(one) is Ready for one in value.values())


def by_fields(record: Any) -> str:
    """Return an object as JSON with a line for each field, its value without blanks: made much sooner than the indented form."""
    return "{\n %s\n}\n" % ",\n ".join(["%s: %s" % (_TEXT(name), _PLAIN(value)) for name, value in record.items()])


def canonical_bytes(value: Any) -> bytes:
    """Return JSON without blanks, the keys in order, ready arrays in their places, UTF-8."""
    return b"".join(canonical_pieces(value))


def canonical_pieces(value: Any) -> List[Piece]:
    """The same, not joined: to be hashed."""
    return _filled(compact(value, True), value, "canonical")


def pretty_bytes(value: Any) -> bytes:
    """Return JSON for people, ready arrays in their places, with a last newline, UTF-8."""
    return b"".join(pretty_pieces(value))


def pretty_pieces(value: Any) -> List[Piece]:
    """The same, not joined: to be written."""
    return _filled(pretty(value) + "\n", value, "pretty")


def is_integer(value: Any) -> bool:
    """Tell whether a value of JSON is a whole number; in Python true and false are such, too."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_finite(value: Any) -> bool:
    """Tell whether a value of JSON is a number with which one can reckon: its reader takes NaN and 1e999, too."""
    return isinstance(value, (int, float)) and abs(value) < float("inf")


def milliseconds(seconds: Any) -> Optional[int]:
    """Return seconds as a record has them in ms, None where that is no number with which one can reckon."""
    return int(seconds * 1000) if is_finite(seconds) and is_finite(seconds * 1000) else None


class _Rules:
    """What the interpreter's scanner of JSON asks for; the same as in json.loads()."""

    strict = True
    object_hook = object_pairs_hook = array_hook = None
    parse_float, parse_int = float, int
    parse_constant = {"-Infinity": float("-inf"), "Infinity": float("inf"), "NaN": float("nan")}.__getitem__
    memo: Any = {}


def _make_scanner() -> Optional[Callable[[str, int], Tuple[Any, int]]]:
    try:
        from _json import make_scanner
        return make_scanner(_Rules)     # type: ignore[arg-type, no-any-return, unused-ignore]
    except UNFIT:
        return None


_SCAN = _make_scanner()


def loads(text: str) -> Any:
    """Return the value of a JSON text. Raises: ValueError; RecursionError."""
    if _SCAN is None:
        import json
        return json.loads(text)
    body = text.strip(BLANKS)
    try:
        value, end = _SCAN(body, 0)
    except StopIteration:
        raise ValueError("not JSON") from None
    if end != len(body):
        raise ValueError("more than one JSON value")
    return value
