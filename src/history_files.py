"""Files of a history that may have been tampered with: read as regular files, no further than the root, and parsed with suspicion.

Above ledger_format, model and primitives; for ledger_chain, ledger_verify and what is between, which go to another machine, too.
"""
from __future__ import annotations

import json
import os
import stat

from ledger_format import MODES
from model import sha256
from primitives import close_quietly, is_integer, is_link, open_descriptor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, Iterable, List, Optional, Sequence, Tuple
    Json = Dict[str, Any]
    RunKey = Tuple[str, int]        # run id and invocation

MAX_RECORD_BYTES = 512 << 20    # of a record: some millions of outputs
BLOCK_BYTES = 1 << 20
SHOWN_NAMES = 8
SHOWN_CHARACTERS = 80
HEX = frozenset("0123456789abcdef")


class Unreadable(Exception):
    """A file cannot be used; str() is why, in few words."""


# --- texts -----------------------------------------------------------------------------------------------------------

def shown(text: str) -> str:
    """Return *text* without what could steer a terminal or break a line."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def numbers_text(first: int, last: int) -> str:
    return "entry %d" % first if first == last else "entries %d to %d" % (first, last)


def run_text(run: RunKey) -> str:
    return "run %s" % run[0] if run[1] == 1 else "run %s (invocation %d)" % run


def count_text(count: int, what: str) -> str:
    return "%d %s" % (count, what if count == 1 else what[:-1] + "ies" if what.endswith("y") else what + "s")


def names_text(names: List[str]) -> str:
    return ", ".join(names[:SHOWN_NAMES] + (["..."] if len(names) > SHOWN_NAMES else []))


# --- reading: regular files only, and no further than the root -------------------------------------------------------

def open_regular(path: str, limit: int) -> Tuple[int, int]:
    """Return (descriptor, bytes) of a regular file. Never waits for a pipe and follows no link.

    Raises: FileNotFoundError; Unreadable for anything else.
    """
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        if not hasattr(os, "O_NOFOLLOW") and os.path.islink(path):
            raise Unreadable("is a symbolic link, not a file")
        descriptor = open_descriptor(path, flags)
    except FileNotFoundError:
        raise
    except OSError as error:
        if os.path.islink(path):
            raise Unreadable("is a symbolic link, not a file") from None
        if os.path.isdir(path):
            raise Unreadable("is a folder, not a file") from None
        raise Unreadable("cannot be read: %s" % (error.strerror or error)) from None
    except ValueError:
        raise Unreadable("cannot be a file's name") from None
    status = os.fstat(descriptor)
    problem = ""
    if not stat.S_ISREG(status.st_mode):
        problem = "is a folder, not a file" if stat.S_ISDIR(status.st_mode) else "is not a regular file"
    elif status.st_size > limit:
        problem = "is larger than %d bytes, which no record is" % limit
    if problem:
        close_quietly(descriptor)
        raise Unreadable(problem)
    return descriptor, status.st_size


def read_regular(path: str) -> bytes:
    """Return the bytes of a regular file. Raises: FileNotFoundError, Unreadable."""
    descriptor, size = open_regular(path, MAX_RECORD_BYTES)
    try:
        data = os.read(descriptor, size + 1)
        while len(data) < size:
            more = os.read(descriptor, size - len(data))
            if not more:
                break
            data += more
        return data
    except OSError as error:
        raise Unreadable("cannot be read: %s" % (error.strerror or error)) from None
    finally:
        close_quietly(descriptor)


def digest_of(path: str) -> Tuple[int, str]:
    """Return (bytes, SHA-256) of a regular file. Raises: FileNotFoundError, Unreadable."""
    descriptor, size = open_regular(path, 1 << 62)
    digest, count = sha256(size=size), 0
    try:
        while True:
            block = os.read(descriptor, BLOCK_BYTES)
            if not block:
                return count, digest.hexdigest()
            digest.update(block)
            count += len(block)
    except OSError as error:
        raise Unreadable("cannot be read: %s" % (error.strerror or error)) from None
    finally:
        close_quietly(descriptor)


class Folder:
    """The root, and the way to what lies below it; remembers which folders were found to be inside."""

    def __init__(self, root: str) -> None:
        self.root = os.path.realpath(root)
        self.inside = self.root.rstrip(os.sep) + os.sep
        self.known: Dict[str, str] = {}

    def path(self, relative: str) -> str:
        """Return the real path of a file that a record names. Raises: Unreadable if it is not below the root."""
        full = self._place(relative)
        if os.path.islink(full):
            full = os.path.realpath(full)
            if not full.startswith(self.inside):
                raise Unreadable("leads out of the root by a symbolic link; it was not opened")
        return full

    def link(self, relative: str) -> Optional[Tuple[int, str]]:
        """Return (bytes, SHA-256) of a symbolic link as a stage's output: of its target's name; None if it is none. Raises:
        Unreadable, as path()."""
        full = self._place(relative)
        if not is_link(full):
            return None
        target = os.fsencode(os.readlink(full))
        return len(target), sha256(b"link\0" + target).hexdigest()

    def _place(self, relative: str) -> str:
        """Return where a file is that a record names, with no link on the way to it; it may be one itself."""
        parts = relative.split("/")
        is_windows_path = os.sep == "\\" and set(relative) & set("\\:")
        if relative.startswith("/") or ".." in parts or "\0" in relative or not parts[-1] or is_windows_path:
            raise Unreadable("is no path below the root; it was not opened")
        try:
            above = relative[:-len(parts[-1]) - 1]
            if above not in self.known:
                self.known[above] = os.path.realpath(os.path.join(self.root, above))
            full = os.path.join(self.known[above], parts[-1])
        except (ValueError, OSError):
            raise Unreadable("cannot be a file's name") from None
        if not full.startswith(self.inside):
            raise Unreadable("leads out of the root by a symbolic link; it was not opened")
        return full


# --- JSON ------------------------------------------------------------------------------------------------------------

def _unique(pairs: List[Tuple[str, Any]]) -> Json:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a name stands in an object twice")
    return value


def _refuse(text: str) -> Any:
    raise ValueError("%s is not a number that records hold" % text)


def decoder(floats: bool) -> json.JSONDecoder:
    """Return a parser that takes no name twice, no NaN, and numbers with a fraction only where they may be."""
    return json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse, parse_float=float if floats else _refuse)


def parse_object(data: bytes, parser: json.JSONDecoder) -> Json:
    """Return the object that *data* is. Raises: Unreadable."""
    try:
        value = parser.decode(data.decode("utf-8"))
    except UnicodeDecodeError:
        raise Unreadable("is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise Unreadable("is not JSON: %s in line %d" % (error.msg, error.lineno)) from None
    except RecursionError:
        raise Unreadable("is no record: nested too deeply") from None
    except ValueError as error:
        raise Unreadable("is no record: %s" % str(error)[:SHOWN_CHARACTERS]) from None
    if not isinstance(value, dict):
        raise Unreadable("is not a JSON object")
    return value


def is_digest(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 64 and HEX.issuperset(value)


def is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_files(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(one, dict) and is_text(one.get("path")) and is_integer(one.get("bytes")) and is_digest(one.get("sha256"))
        for one in value)


def _optional(test: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or value is ... or test(value)


def _nullable(test: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or test(value)


def shape_problem(value: Json, shape: Sequence[Tuple[str, Callable[[Any], bool]]]) -> str:
    """Return the first name whose value is not of its kind, or ""; a name that is not there counts as having the value
    Ellipsis."""
    for name, test in shape:
        if not test(value.get(name, ...)):
            return name
    return ""


def _is_seal(value: Any) -> bool:
    return isinstance(value, dict) and value.get("mode") in MODES and not shape_problem(value, SEAL_SHAPE)


def _is_open(value: Any) -> bool:
    return isinstance(value, dict) and all(is_integer(number) for number in value.values())


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def _is_maker(value: Any) -> bool:
    return isinstance(value, dict) and not shape_problem(value, MADE_BY_SHAPE)


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _is_removed(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(one, list) and len(one) == 3 and is_text(one[0]) and is_integer(one[1]) and is_digest(one[2]) for one in value)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(is_text(one) for one in value)


def _is_status(value: Any) -> bool:
    return value in ("running", "ok", "failed", "interrupted")


SEAL_SHAPE = (("keyId", is_text), ("mac", is_text), ("index", is_integer))
ENTRY_SHAPE = (("schema", is_integer), ("seq", is_integer), ("prevHash", _nullable(is_digest)), ("event", is_text), ("at", is_text),
               ("runId", is_text), ("invocation", is_integer), ("pipeline", is_text), ("lastRunHash", _nullable(is_digest)),
               ("open", _is_open), ("hash", is_digest), ("seal", _optional(_is_seal)))
EVENT_SHAPES = {"end": (("state", is_text), ("runHash", _nullable(is_digest)), ("closedBy", _optional(is_text))),
                "accept": (("stage", is_text), ("oldKey", is_text), ("newKey", is_text)),
                "gc": (("removed", _is_removed),), "clean": (("stage", is_text), ("madeBy", _is_maker), ("kept", _is_texts)),
                "reset": (("stage", is_text),)}
END_SHAPE = (("schema", is_integer), ("seq", is_integer), ("hash", is_digest), ("keyId", is_text), ("mode", is_text), ("mac", is_text))
RUN_SHAPE = (("schema", is_integer), ("runId", is_text), ("invocation", is_integer), ("stages", _is_list), ("state", is_text),
             ("prevRunHash", _nullable(is_digest)))
MADE_BY_SHAPE = (("runId", is_text), ("invocation", is_integer))
STAGE_RESULT_SHAPE = (("stage", is_text), ("status", is_text), ("key", _optional(is_text)), ("keyParts", _optional(_is_object)),
                      ("outputs", _optional(_is_files)), ("logs", _optional(_is_files)), ("madeBy", _optional(_is_maker)))
METRICS_SHAPE = (("bytes", is_integer), ("sha256", is_digest))
STAGE_SHAPE = (("schema", is_integer), ("stage", is_text), ("pipeline", is_text), ("lastStatus", _is_status),
               ("idempotencyKey", is_text), ("keyParts", _is_object), ("outputs", _is_files), ("lastRunId", is_text),
               ("lastInvocation", is_integer))


def run_record_problem(record: Json) -> str:
    """Return what in a run record is not of the form that runs write, or ""."""
    name = shape_problem(record, RUN_SHAPE)
    if name:
        return name
    for number, one in enumerate(record["stages"]):
        name = shape_problem(one, STAGE_RESULT_SHAPE) if isinstance(one, dict) else "it"
        if name:
            return "stages[%d]: %s" % (number, name)
    metrics = record.get("metrics")
    return "metrics" if metrics is not None and (not isinstance(metrics, dict) or shape_problem(metrics, METRICS_SHAPE)) else ""


def files_of(value: Iterable[Json]) -> List[Tuple[str, int, str]]:
    return sorted((one["path"], one["bytes"], one["sha256"]) for one in value)
