"""What the Python hook wrote down: which line of which program reached for the network.

A leaf: a file in, notes out. The file is written by processors, and so is read like any hostile input.
"""
from __future__ import annotations

import json
from collections import namedtuple

from primitives import read_hostile

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, List, Optional, Sequence

SIZE_LIMIT = 1 << 20        # bytes that are read of a file
MAX_LINE = 8 << 10          # bytes; the hook's own lines are shorter
MAX_NUMBER = 1 << 32        # of a process: Windows has some beyond 2^31
LOOK_UP = "a name look-up"  # the kind of a note that is of no socket


class Note(namedtuple("Note", "pid kind event place program")):
    """One attempt: *kind* as the kernel layer names it, or LOOK_UP; *event* Python's; *place* as "bin/fetch.py:3" or ""."""

    __slots__ = ()
    if TYPE_CHECKING:
        pid: int
        kind: str
        event: str
        place: str
        program: str


def read_notes(path: str, size_limit: int = SIZE_LIMIT) -> List[Note]:
    """Return the notes in a hook's file, in the order of writing; lines that are none are left out.

    Texts hold no lone surrogates, but may hold control characters. No file, one that cannot be read, or something
    else in its place (a link, a pipe) has no notes.
    """
    notes = [_note(line) for line in read_hostile(path, size_limit).split(b"\n") if len(line) <= MAX_LINE]
    return [one for one in notes if one is not None]


def place_of(notes: Sequence[Note], pid: int, kind: str) -> str:
    """Return where a process tried to open a socket of this kind, as "bin/fetch.py:3": the last note counts.

    Without one of that kind (the socket was opened by a look-up's own code, say) it is the last of the process; else "".
    """
    own = [one for one in notes if one.pid == pid]
    of_kind = [one for one in own if one.kind == kind]
    return (of_kind or own)[-1].place if own else ""


def _note(line: bytes) -> Optional[Note]:
    value: Any
    try:
        value = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict):
        return None
    numbers: List[Any] = [value.get(name) for name in ("pid", "line")]
    texts: List[Any] = [value.get(name) for name in ("kind", "event", "file", "program")]
    if not all(type(one) is int and 0 <= one < MAX_NUMBER for one in numbers) or not all(isinstance(one, str) and one for one in texts):
        return None
    pid, number = numbers
    kind, event, file, program = [one.encode("utf-8", "backslashreplace").decode("utf-8") for one in texts]
    return Note(pid, kind, event, "%s:%d" % (file, number) if number else "", program)
