"""Whether many paths are what they were: five numbers a path.

A leaf. What a skip depends on is remembered as the signs of paths; a path whose sign is the same has not been touched, and nothing
needs to be read. A sign is what lstat tells, so a link is itself; who means what is behind it signs that, too (look=os.stat).
Loops over tens of thousands of paths stand here, and are written for speed; numbers are a list, or a view of stored bytes (no module
array: it loads collections).
"""
from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, List, Optional, Sequence, Union
    Numbers = Union[List[int], memoryview]

WIDTH = 5                   # numbers in a sign: modification time and change time in ns, inode, bytes, device
ABSENT = (-1, -1, -1, -1, -1)
UNKNOWN = (-2, -2, -2, -2, -2)      # could not be looked at, or not kept in 64 bits: equals nothing
SHARE_FROM = 6000           # paths; from here on a second process takes half: looking holds the interpreter's lock
LIMIT = 1 << 63


def sign(paths: Sequence[str], look: Callable[[str], os.stat_result] = os.lstat) -> List[int]:
    """Return the signs of *paths*, WIDTH numbers each; what is not there is ABSENT."""
    numbers: List[int] = []
    for path in paths:
        try:
            stat = look(path)
            found = (stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, stat.st_size, stat.st_dev)
            if not all(-LIMIT < one < LIMIT for one in found):
                found = UNKNOWN
        except (FileNotFoundError, NotADirectoryError):
            found = ABSENT
        except (OSError, ValueError):
            found = UNKNOWN
        numbers += found
    return numbers


def changed(paths: Sequence[str], signs: Numbers, first: int = 0, last: Optional[int] = None,
            look: Callable[[str], os.stat_result] = os.lstat) -> List[int]:
    """Return which of paths[first:last] are not what *signs* (of all paths) say, as places in *paths*."""
    last = len(paths) if last is None else last
    found = []
    known = signs[WIDTH * first:WIDTH * last]
    number = iter(known if isinstance(known, list) else known.tolist())
    for place, mtime, ctime, inode, size, device in zip(range(first, last), number, number, number, number, number):
        try:
            stat = look(paths[place])
            if (stat.st_mtime_ns != mtime or stat.st_ctime_ns != ctime or stat.st_ino != inode or stat.st_size != size or stat.st_dev != device):
                found.append(place)
        except (FileNotFoundError, NotADirectoryError):
            if mtime != -1 or device != -1:
                found.append(place)
        except (OSError, ValueError):
            found.append(place)
    return found


def changed_shared(paths: Sequence[str], signs: Numbers) -> List[int]:
    """The same over all paths; of very many, a forked process looks at the second half.

    Only for a process without threads, and before it starts others.
    """
    count = len(paths)
    if count < SHARE_FROM or not sys.platform.startswith("linux") or len(os.sched_getaffinity(0)) < 2:
        return changed(paths, signs)
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        _answer(writer, paths, signs, count // 2)
    os.close(writer)
    found = changed(paths, signs, 0, count // 2)
    with open(reader, "rb") as file:
        told = file.read()
    status = os.waitpid(child, 0)[1]
    if status:                          # it was killed, or there was no memory for it
        return found + changed(paths, signs, count // 2)
    return found + [int(one) for one in told.split()]


def _answer(writer: int, paths: Sequence[str], signs: Numbers, first: int) -> Any:
    """In the child: look at the second half, tell, end without the parent's clean-up."""
    code = 1
    try:
        data = b" ".join(b"%d" % place for place in changed(paths, signs, first))
        while data:
            data = data[os.write(writer, data):]
        code = 0
    finally:
        os._exit(code)
