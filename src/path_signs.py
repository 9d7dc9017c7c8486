"""Whether many paths are what they were: five numbers a path.

A leaf. What a skip depends on is remembered as the signs of paths; a path whose sign is the same has not been touched, and
nothing needs to be read. A sign is what lstat tells, so a link is itself; who means what is behind it signs that, too
(look=os.stat). Loops over tens of thousands of paths stand here, and are written for speed; numbers are a list, or a view of
stored bytes (no module array: it loads collections).
"""
from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, List, Optional, Protocol, Sequence, Tuple, Union
    Numbers = Union[List[int], memoryview]

    class Paths(Protocol):      # a list, or what makes one of a part only
        def __getitem__(self, places: slice) -> Sequence[str]: ...

WIDTH = 5                   # numbers in a sign: modification time and change time in ns, inode, bytes, device
ABSENT = (-1, -1, -1, -1, -1)
UNKNOWN = (-2, -2, -2, -2, -2)      # could not be looked at, or its times not kept in 64 bits: equals nothing
SHARE_FROM = 1500           # paths; from here on a second process takes a part: looking holds the interpreter's lock
PART = 128                  # paths that it tells of at once
BLOCK = 64                  # paths looked at in one go
LIMIT = 1 << 63
SPREAD = 0x9E3779B97F4A7C15


def in_63_bits(number: int) -> int:
    """Return an inode or a device as a sign has it. From Python 3.12 on Windows tells devices of 64 bits, and of ReFS inodes of
    128."""
    return number if -LIMIT < number < LIMIT else (number ^ (number >> 64) * SPREAD) & (LIMIT - 1)


def sign(paths: Sequence[str], look: Callable[[str], os.stat_result] = os.lstat) -> List[int]:
    """Return the signs of *paths*, WIDTH numbers each; what is not there is ABSENT."""
    numbers: List[int] = []
    for path in paths:
        try:
            stat = look(path)
            found = _numbers(stat)
            if not all(-LIMIT < one < LIMIT for one in found):
                found = UNKNOWN
        except (FileNotFoundError, NotADirectoryError):
            found = ABSENT
        except (OSError, ValueError):
            found = UNKNOWN
        numbers += found
    return numbers


def changed(paths: Paths, signs: Numbers, first: int = 0, last: Optional[int] = None,
            look: Callable[[str], os.stat_result] = os.lstat, prefix: str = "") -> List[int]:
    """Return which of paths[first:last] are not what *signs* (of all paths) say, as places in *paths*. prefix: goes before each
    path."""
    last = len(signs) // WIDTH if last is None else last
    found: List[int] = []
    get = _getter() if last - first > BLOCK else None
    for start in range(first, last, BLOCK):
        end = min(start + BLOCK, last)
        full = [prefix + path for path in paths[start:end]] if prefix else paths[start:end]
        block = signs[WIDTH * start:WIDTH * end]
        number = iter(block if isinstance(block, list) else block.tolist())
        known = list(zip(number, number, number, number, number))
        try:                            # no line of Python for each path, as long as all is as it was
            if get and list(map(get, map(look, full))) == known:
                continue
        except (OSError, ValueError):
            pass
        found += [start + place for place, (path, sign) in enumerate(zip(full, known)) if not _is_same(path, sign, look)]
    return found


def _getter() -> Callable[[os.stat_result], Any]:
    try:
        from _operator import attrgetter    # what operator takes it from; to load that would show
    except ImportError:
        from operator import attrgetter
    return attrgetter("st_mtime_ns", "st_ctime_ns", "st_ino", "st_size", "st_dev")


def _numbers(stat: os.stat_result) -> Tuple[int, int, int, int, int]:
    return stat.st_mtime_ns, stat.st_ctime_ns, in_63_bits(stat.st_ino), stat.st_size, in_63_bits(stat.st_dev)


def _is_same(path: str, known: Tuple[int, ...], look: Callable[[str], os.stat_result]) -> bool:
    try:
        return _numbers(look(path)) == known
    except (FileNotFoundError, NotADirectoryError):
        return known == ABSENT
    except (OSError, ValueError):
        return False


def changed_shared(paths: Paths, signs: Numbers, root: str, meanwhile: Callable[[], Any] = lambda: None,
                   first: int = 0, last: Optional[int] = None, upon_change: Callable[[], Any] = lambda: None) -> List[int]:
    """The same of paths relative to *root*, sorted; of very many, a forked process looks at a part, where that is possible.

    That process begins at the end, this one at the beginning, after meanwhile(), which is called in any case; where they
    meet depends on which has more to do. upon_change() is called when the first change is found while there is such a process:
    for what must be done then and need not wait. When it returns, that process is gone.
    """
    prefix = _prefix(root)
    last = len(signs) // WIDTH if last is None else last
    reader, child = _fork_looker(paths, signs, prefix, first, last) if last - first >= SHARE_FROM and _may_fork() else (-1, 0)
    if not child:
        meanwhile()
        return changed(paths, signs, first, last, prefix=prefix)
    try:
        meanwhile()
        return _meet(reader, paths, signs, prefix, first, last, upon_change)
    finally:
        os.close(reader)
        try:
            os.kill(child, 9)
            os.waitpid(child, 0)
        except (ProcessLookupError, ChildProcessError):
            pass                        # somebody has waited for it already


def _prefix(root: str) -> str:
    """Return what goes before a path below *root*: nothing where we stand there, as the kernel has less to walk then."""
    try:
        return "" if os.getcwd() == root else os.path.join(root, "")
    except OSError:
        return os.path.join(root, "")       # our folder has been removed


def _fork_looker(paths: Paths, signs: Numbers, root: str, first: int, last: int) -> Tuple[int, int]:
    """Return (descriptor of what the second process tells, its pid); (-1, 0) if the system allows no further process."""
    try:
        reader, writer = os.pipe()
    except OSError:
        return -1, 0
    try:
        child = os.fork()
    except OSError:
        os.close(reader)
        os.close(writer)
        return -1, 0
    if not child:
        os.close(reader)                # or it would wait for ever for somebody to read, once the parent is dead
        _answer(writer, paths, signs, root, first, last)
    os.close(writer)
    return reader, child


def _may_fork() -> bool:
    """Tell whether another process would help, and be safe: with threads it might find a lock held for ever; where its end is
    ignored, its number might be another's by then."""
    if not sys.platform.startswith("linux"):
        return False
    from _signal import SIG_IGN, SIGCHLD, getsignal  # type: ignore[import-not-found]
    try:
        return getsignal(SIGCHLD) != SIG_IGN and len(os.sched_getaffinity(0)) > 1 and len(os.listdir("/proc/self/task")) == 1
    except OSError:
        return False                    # /proc is not mounted


def _answer(writer: int, paths: Paths, signs: Numbers, root: str, first: int, last: int) -> Any:
    """In the child: look at part after part from the end on, tell of each, end without the parent's clean-up."""
    try:
        from _signal import SIG_IGN, SIGHUP, SIGINT, SIGTERM, signal  # what `signal` loads would show
        for number in (SIGHUP, SIGINT, SIGTERM):
            signal(number, SIG_IGN)     # the parent's handlers are the parent's
        os.chdir(root or os.curdir)     # the kernel has less to walk
        for end in range(last, first, -PART):
            start = max(first, end - PART)
            data = b"%d %s\n" % (start, b" ".join(b"%d" % place for place in changed(paths, signs, start, end)))
            while data:
                data = data[os.write(writer, data):]
    finally:
        os._exit(0)


def _meet(reader: int, paths: Paths, signs: Numbers, prefix: str, first: int, last: int, upon_change: Callable[[], Any]) -> List[int]:
    """In the parent: look at part after part until all are looked at by one of the two; alone if the child was killed, or had no
    memory."""
    found: List[int] = []
    torn, is_shared, is_told = b"", True, False
    while first < last:
        if found and not is_told:
            is_told = True
            upon_change()
        if is_shared:
            os.set_blocking(reader, last - first <= PART)       # the child is at the last part
            try:
                data = os.read(reader, 1 << 16)
                is_shared = bool(data)
                *lines, torn = (torn + data).split(b"\n")
                for line in lines:
                    last, *places = map(int, line.split())
                    found += places
                continue
            except BlockingIOError:
                pass                    # nothing new
        end = min(first + PART, last)
        found += changed(paths, signs, first, end, prefix=prefix)
        first = end
    return sorted(set(found))
