"""One huge file as chunks: where to cut it, what is in the chunks, feeding them to a filter, joining what came out.

Without state of its own: everything follows from the files.

    input ── cut() ──> ranges ── hash_ranges() ──> SHA-256 of each
                         │
                         └── Feeder ──> stdin of a filter ──> one output file for each chunk
                                                                   │
    NAME <── publish() ── NAME~STAGE~TOKEN.part <── Joiner ────────┘

"\\n" ends a line, nothing else: "\\r\\n" is never cut apart. A boundary depends on the content and the size of a chunk only,
and is found by seeking. So a file that only grew keeps all its chunks but the last.
"""
from __future__ import annotations

import errno
import os
import sys
import time
from collections import namedtuple

import durable_files
from environment import usable_cpus
from model import sha256
from primitives import close_quietly, go_on, naming, open_descriptor, remove_quietly, replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    import threading
    from typing import Any, Callable, Container, Dict, Iterable, List, Optional, Sequence, Set, Tuple, TypeVar
    Range = Tuple[int, int]
    Item = TypeVar("Item")
    Result = TypeVar("Result")

BLOCK_BYTES = 1 << 20           # one read; from 256 KiB down the calls show, and 1 MiB stays in the processor's cache
SEEK_BYTES = 1 << 14            # the first look for a line end
PIPE_BYTES = 1 << 20            # what Linux grants to everybody; the reader then works on while the runner does other things
SETPIPE_SZ = 1031               # F_SETPIPE_SZ: the module fcntl names it only from Python 3.10 on
HEED_S = 0.05                   # who waits for threads that read looks after the attempts so often
NAP_LEAST_S, NAP_MOST_S = 0.0001, 0.001
REJECTS = ".rejects.jsonl"      # what the processor kit sets aside: made of records, so it has no header lines
NAME_BYTES = 255                # in a name; a part whose name would be longer is called by a digest
NO_SENDFILE = (errno.EINVAL, errno.ENOSYS, errno.ENOTSOCK, errno.EOPNOTSUPP)


class ChunkError(Exception):
    """The outputs of the chunks cannot be joined; str() names chunk, file and remedy. chunks: the numbers of those to be done again."""

    def __init__(self, chunks: List[int], text: str) -> None:
        super().__init__(text)
        self.chunks = chunks


class Cut(namedtuple("Cut", "header_end header_lines header_ends chunks")):
    """How one input is cut: bytes, lines and line ends of its header, and [(start, end)] of its chunks behind that.

    header_ends is smaller than header_lines when the input ends within its header, without a line end.
    """

    __slots__ = ()


class Header(namedtuple("Header", "source lines ends is_whole")):
    """What a chunk was given as header: the number of its input, lines, line ends, and whether these are as many as were asked
    for."""

    __slots__ = ()


# --- cutting

def cut(path: str, size_bytes: int, header_lines: int = 0, heed: Callable[[], None] = go_on) -> Cut:
    """Cut a file at line ends into chunks of about *size_bytes*.

    Boundary k is the first line end at or after byte header_end + k * size_bytes; the last one is the end of the file,
    with or without a line end. No chunk is empty, except that a file without any line behind its header is one empty
    chunk: its processor runs, and its output exists. heed: called before each look at the file. Raises: OSError; what heed()
    raises.
    """
    with open(path, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        header_end, lines, ends = _find_header(file, header_lines)
        chunks: List[Range] = []
        start = header_end
        while start < size:
            # The next multiple behind the last boundary: those within one long line are all the same boundary.
            count = (start - header_end) // size_bytes + 1
            end = _line_end(file, header_end + count * size_bytes, size, heed)
            chunks.append((start, end))
            start = end
    return Cut(header_end, lines, ends, chunks or [(header_end, header_end)])


def _find_header(file: Any, wanted: int) -> Tuple[int, int, int]:
    """Return (bytes, lines, line ends) of the first *wanted* lines of *file*; fewer where it has fewer."""
    offset = ends = 0
    block = b"\n"
    while ends < wanted:
        last, block = block, file.read(BLOCK_BYTES)
        if not block:
            return offset, ends + (last[-1:] != b"\n"), ends
        at = 0
        while ends < wanted:
            found = block.find(b"\n", at) + 1
            if not found:
                at = len(block)
                break
            at, ends = found, ends + 1
        offset += at
    return offset, ends, ends


def _line_end(file: Any, least: int, size: int, heed: Callable[[], None]) -> int:
    """Return the end of the first line that ends at or behind byte *least* (from 1), at most *size*."""
    at, step = least - 1, SEEK_BYTES
    while at < size:
        heed()
        file.seek(at)
        block = file.read(min(step, size - at))
        if not block:
            break                       # it became shorter: whoever compares its signature will tell
        found = block.find(b"\n")
        if found >= 0:
            return int(at + found + 1)
        at, step = at + len(block), min(step * 4, BLOCK_BYTES)
    return size


def headers(cuts: Sequence[Cut], wanted: int) -> List[Header]:
    """Return what each chunk was given as header of *wanted* lines, for all chunks of all inputs in order."""
    return [Header(number, one.header_lines, one.header_ends, one.header_ends == wanted) for number, one in enumerate(cuts) for _ in one.chunks]


# --- digests

def side_by_side(function: Callable[[Item, bytearray], Result], items: Sequence[Item], threads: int = 0, heed: Callable[[], None] = go_on) -> List[Result]:
    """Return [function(item, buffer)] in the order of *items*, done by several threads (0: one for each CPU at hand).

    Worth it for what leaves the interpreter to others, as reading and hashing do. Each thread has one buffer of
    BLOCK_BYTES. heed: called all the while by the thread that waits for the others, which only it may look after attempts.
    Raises: what heed() raises, else the error of the first item that has one; the others are then left.
    """
    import threading
    count = min(threads or usable_cpus(), len(items))
    results: List[Any] = [None] * len(items)
    errors: Dict[int, BaseException] = {}
    rest = iter(range(len(items)))

    def work() -> None:
        buffer = bytearray(BLOCK_BYTES)
        for index in rest:              # the interpreter hands out each number once
            if errors:
                return
            try:
                results[index] = function(items[index], buffer)
            except BaseException as error:
                errors[index] = error

    workers = [threading.Thread(target=work, daemon=True) for _ in range(count)] if count > 1 else []
    for worker in workers:
        worker.start()
    if not workers:
        work()
    for worker in workers:
        while worker.is_alive():
            try:
                worker.join(HEED_S)
                if not errors:
                    heed()
            except BaseException as error:
                errors[-1] = error      # before all others; whoever is at work ends that
    if errors:
        raise errors[min(errors)]
    return results


def hash_ranges(path: str, ranges: Sequence[Range], heed: Callable[[], None] = go_on) -> List[str]:
    """Return the SHA-256 of each [start, end) of a file, several at a time.

    heed: called after each block, in any of the threads. Raises: OSError, also when the file is shorter; what heed() raises.
    """
    return side_by_side(lambda one, buffer: _hash_range(path, one[0], one[1], buffer, heed), ranges, heed=heed)


def _hash_range(path: str, start: int, end: int, buffer: bytearray, heed: Callable[[], None] = go_on) -> str:
    """Return the SHA-256 of [start, end) of a file."""
    left, view = end - start, memoryview(buffer)
    digest = sha256(size=left)
    with open(path, "rb", buffering=0) as file:
        file.seek(start)
        while left:
            count = file.readinto(view[:left])
            if not count:
                raise _shorter(path)
            digest.update(view[:count])
            left -= count
            heed()
    return digest.hexdigest()


def _shorter(path: str) -> OSError:
    return OSError(errno.EIO, "the file became shorter while it was read", path)


# --- feeding a filter

class Feeder:
    """Gives the header and one chunk of a file to the standard input of a filter.

    Start the filter with stdin=reader, then call started(). Wait until *descriptor* can be written, then call pump()
    (or pump_all()), until it says that all is done. Where pipes cannot be waited for (Windows) a thread does the work,
    *descriptor* is -1, and pump() only looks.
    A filter that stops reading early, as `head` does, is no error: its exit code tells what it thinks of that.
    The kernel moves the pages of the file itself where it can (sendfile), nothing is copied through this process.
    """

    def __init__(self, path: str, header_end: int, start: int, end: int, threaded: bool = sys.platform == "win32") -> None:
        self.path = path
        self.ranges = [(first, last) for first, last in ((0, header_end), (start, end)) if first < last]
        self.file = open(path, "rb", buffering=0)
        try:
            self.reader, self.descriptor = os.pipe()
        except OSError:
            self.file.close()
            raise
        self.pipe_bytes = _widen(self.descriptor)
        self.by_kernel = hasattr(os, "sendfile") and not threaded
        self.pending = memoryview(b"")      # read, not yet written; only without sendfile
        self.nap_s = NAP_LEAST_S
        self.moved = 0                      # bytes of the last pump()
        self.problem: Optional[OSError] = None
        self.thread: Optional[threading.Thread] = None
        self.threaded = threaded
        if not threaded:
            os.set_blocking(self.descriptor, False)

    def started(self) -> None:
        """Say that the filter runs: its end of the pipe is closed here."""
        os.close(self.reader)
        self.reader = -1
        if self.threaded:
            import threading
            target, self.descriptor = self.descriptor, -1
            self.thread = threading.Thread(target=self._run, args=(target,), daemon=True)
            self.thread.start()

    def pump(self) -> bool:
        """Move what fits into the pipe; tell whether all is done. Never blocks. Raises: OSError naming the input."""
        if self.thread is not None:
            is_over = not self.thread.is_alive()        # first: its last deed may be to note a problem
            if self.problem is not None:
                raise self.problem
            return is_over
        self.moved = 0
        try:
            if self.ranges or self.pending:
                self.moved = self._move(self.descriptor)
        except BlockingIOError:
            return False
        except OSError as error:
            if not _reader_left(error):
                self.close()
                raise error if error.filename else OSError(error.errno, error.strerror, self.path) from error
            self.ranges, self.pending = [], memoryview(b"")
        if self.ranges or self.pending:
            return False
        self.close()
        return True

    def close(self) -> None:
        """Close what is open: the filter sees the end of its input. Safe to call again."""
        descriptors, self.reader, self.descriptor = (self.reader, self.descriptor), -1, -1
        for descriptor in descriptors:
            if descriptor >= 0:
                os.close(descriptor)
        if self.thread is None:
            self.file.close()               # else the thread is still reading it

    def _move(self, target: int) -> int:
        if self.by_kernel:
            start, end = self.ranges[0]
            try:
                done = os.sendfile(target, self.file.fileno(), start, min(end - start, 1 << 30))
            except OSError as error:
                if error.errno not in NO_SENDFILE:
                    raise
                self.by_kernel = False      # macOS: only to what this project has none of; some file systems: not at all
            else:
                self._advance(done)
                return done
        if not self.pending:
            start, end = self.ranges[0]
            self.file.seek(start)
            block = self.file.read(min(end - start, BLOCK_BYTES))
            self._advance(len(block))
            self.pending = memoryview(block)
        done = os.write(target, self.pending)
        self.pending = self.pending[done:]
        return done

    def _advance(self, count: int) -> None:
        if not count:
            raise _shorter(self.path)
        start, end = self.ranges[0]
        self.ranges[:1] = [(start + count, end)] if start + count < end else []

    def _run(self, target: int) -> None:
        try:
            while self.ranges or self.pending:
                self._move(target)
        except OSError as error:
            if not _reader_left(error):
                self.problem = error if error.filename else OSError(error.errno, error.strerror, self.path)
        finally:
            try:
                self.file.close()
            finally:
                os.close(target)            # last: a filter that has seen the end may be gone before anything else is done here


def _reader_left(error: OSError) -> bool:
    return error.errno == errno.EPIPE or (sys.platform == "win32" and error.errno == errno.EINVAL)


def _widen(descriptor: int) -> int:
    """Make a pipe as wide as the system lets us; return what it takes, as far as that is known."""
    try:
        import fcntl
        return fcntl.fcntl(descriptor, SETPIPE_SZ, PIPE_BYTES) if sys.platform == "linux" else 1 << 16
    except (ImportError, OSError):
        return 1 << 16                      # this user's pipes are wide enough already


def pump_all(feeders: Iterable[Feeder], nap: Callable[[float], None] = time.sleep) -> List[Feeder]:
    """Pump each of *feeders*, which can be written to; return those that are done.

    Ends with a nap of at most 1 ms when all of them had little room: a pipe is writable as soon as the filter has
    taken one page, and one wake-up for each page would cost more than the work. Raises: OSError naming an input.
    """
    feeders = list(feeders)
    done = [one for one in feeders if one.pump()]
    naps = []
    for one in feeders:
        if one.moved > one.pipe_bytes // 2:
            one.nap_s = max(NAP_LEAST_S, one.nap_s / 2)
        elif one.moved < one.pipe_bytes // 4:
            one.nap_s = min(NAP_MOST_S, one.nap_s * 1.5)
            naps.append(one.nap_s)
    if feeders and len(naps) == len(feeders) and not done:
        nap(min(naps))
    return done


Feeder.pump_together = staticmethod(pump_all)  # type: ignore[attr-defined]     # for a pool that knows feeders only by what they do


# --- joining

class Joiner:
    """Joins what the chunks have put out, each name for itself, in the order of the chunks, on a thread of its own.

    add() each chunk when it is done, in any order: chunk k is appended when 0 to k are there. finish() waits and returns
    what the joined files hold; publish() gives them their names. Until then they are NAME~STAGE~TOKEN.part in *folder*,
    which a kill leaves behind and nobody goes on with: the chunks are still there, and joining starts again.
    headers: what each chunk was given as header (headers()), or () for none. Of each name one header stays: the first whole
    one, without any the longest; the others lose as many lines as they were given. NAME.rejects.jsonl has no header,
    unless it is one of with_header: of outputs that are called so because their input is.
    """

    def __init__(self, folder: str, stage: str, token: str, total: int, headers: Sequence[Header] = (),
                 with_header: Container[str] = ()) -> None:
        import queue
        import threading
        self.folder, self.stage, self.token, self.total = folder, stage, token, total
        self.headers, self.with_header = headers, with_header
        self.joined: Dict[str, List[Any]] = {}          # name -> [SHA-256 object, bytes]
        self.kept: Set[str] = set()                     # names that have their header
        # Other names -> line ends, lines, file and input of the longest header, which is all of it.
        self.short: Dict[str, Tuple[int, int, str, int]] = {}
        self.seen: Dict[Tuple[str, int], str] = {}      # (name, input) -> digest of the header in its chunks' outputs
        self.cut_of: Set[int] = set()                   # inputs whose header, which their first chunk counts, was cut
        self.commit = durable_files.Commit()            # the folders in which it has made some ...
        self.made_folders: List[str] = []               # ... which are these, outer ones first
        self.problem: Optional[BaseException] = None
        self.stopped = self.is_published = False
        self.queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def add(self, index: int, outputs: Dict[str, str]) -> None:
        """Say that chunk *index* (from 0) is done: {name: path of its output}. A name that it lacks is empty there."""
        self.queue.put((index, outputs))

    @property
    def cut_lines(self) -> int:
        """How many header lines that were counted are in no joined file."""
        lines = {header.source: header.lines for header in self.headers}
        return sum(lines[source] for source in self.cut_of)

    def is_done(self) -> bool:
        """Tell whether finish() returns at once."""
        return not self.thread.is_alive()

    def finish(self) -> Dict[str, Tuple[str, int]]:
        """Return {name: (SHA-256, bytes)} when all chunks are joined and on the disk.

        Raises: ChunkError; OSError naming the file. Then no part is left.
        """
        self.thread.join()
        if self.problem is not None:
            self._remove_parts()
            raise self.problem
        return {name: (digest.hexdigest(), size) for name, (digest, size) in self.joined.items()}

    def publish(self) -> None:
        """Rename all parts to their names, durably. Raises: OSError."""
        for name in self.joined:
            part, target = self._part(name), os.path.join(self.folder, name)
            try:
                replace(part, target)
            except OSError as error:
                raise OSError(error.errno, error.strerror, target) from error
        self.is_published = True
        for folder in {os.path.dirname(os.path.join(self.folder, name)) for name in self.joined}.union(self.commit.folders):
            durable_files.sync_folder(folder)

    def stop(self) -> None:
        """Give up: end the thread and remove the parts."""
        self.stopped = True
        self.queue.put(None)
        self.thread.join()
        self._remove_parts()

    def _part(self, name: str) -> str:
        folder, slash, last = name.rpartition("/")
        ending = "~%s~%s.part" % (self.stage, self.token)
        if len(os.fsencode(last + ending)) > NAME_BYTES:
            last = sha256(os.fsencode(last)).hexdigest()[:32]
        return os.path.join(self.folder, folder + slash + last + ending)

    def _remove_parts(self) -> None:
        for name in self.joined:
            remove_quietly(self._part(name))
        for folder in reversed(self.made_folders):
            durable_files.remove_empty_folder(folder, self.commit)

    def _run(self) -> None:
        try:
            waiting: Dict[int, Dict[str, str]] = {}
            buffer = bytearray(BLOCK_BYTES)
            for index in range(self.total):
                while index not in waiting:
                    found = self.queue.get()
                    if found is None:
                        return
                    waiting[found[0]] = found[1]
                for name, path in sorted(waiting.pop(index).items()):
                    self._append(index, name, path, buffer)
                if self.stopped:
                    return
            for name, (_, _, path, source) in sorted(self.short.items()):
                if name not in self.kept:
                    self.cut_of.discard(source)
                    self._append_from(0, name, path, buffer)
            for name in self.joined:
                self._sync(self._part(name))
        except BaseException as error:
            self.problem = error            # raised by finish()

    def _append(self, index: int, name: str, path: str, buffer: bytearray) -> None:
        is_rejects = name.endswith(REJECTS) and name not in self.with_header
        self._append_from(self._skip(index, name, path) if self.headers and not is_rejects else 0, name, path, buffer)

    def _append_from(self, start: int, name: str, path: str, buffer: bytearray) -> None:
        part, is_new = self._part(name), name not in self.joined
        with open(path, "rb", buffering=0) as source:
            source.seek(start)
            target = self._open(part, is_new)
            try:
                if is_new:
                    self.joined[name] = [sha256(size=BLOCK_BYTES), 0]
                self._copy(source, path, target, part, self.joined[name], buffer)
            finally:
                with naming(part):
                    os.close(target)

    def _open(self, part: str, is_new: bool) -> int:
        # Opened anew for each chunk: a stage may have more outputs than a process may have descriptors.
        flags = os.O_WRONLY | os.O_APPEND | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)
        if is_new:
            self._make_folder(os.path.dirname(part))
            flags |= os.O_CREAT | os.O_EXCL
        return open_descriptor(part, flags, 0o666)

    def _make_folder(self, folder: str) -> None:
        if not os.path.isdir(folder):
            self._make_folder(os.path.dirname(folder))
            durable_files.make_folder(folder, self.commit)
            self.made_folders.append(folder)

    def _copy(self, source: Any, path: str, target: int, part: str, joined: List[Any], buffer: bytearray) -> None:
        """Copy the rest of *source*, hashing on the way: a second read for the digest, or a second thread, costs more."""
        view, name = memoryview(buffer), path
        try:
            while not self.stopped:
                name = path
                count = source.readinto(buffer)
                if not count:
                    return
                joined[0].update(view[:count])
                joined[1] += count
                name = part
                durable_files.write_all(target, view[:count])
        except OSError as error:
            raise OSError(error.errno, error.strerror, name) from error

    def _sync(self, part: str) -> None:
        descriptor = open_descriptor(part, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
        try:
            durable_files.sync_file(descriptor)
        except OSError as error:
            raise OSError(error.errno, error.strerror, part) from error
        finally:
            close_quietly(descriptor)

    def _note_cut(self, index: int) -> None:
        """Note that a header was cut, if this chunk is the one that counts it: the first of its input."""
        source = self.headers[index].source
        if index == 0 or self.headers[index - 1].source != source:
            self.cut_of.add(source)

    def _skip(self, index: int, name: str, path: str) -> int:
        """Return the bytes of the header that this output must lose, after checks that it is the header."""
        header = self.headers[index]
        if not header.lines:
            return 0
        with open(path, "rb", buffering=0) as source:
            length, lines, _ = _find_header(source, header.lines)
            size = os.fstat(source.fileno()).st_size
        where = "chunk %d of %d, %s" % (index + 1, self.total, path)
        if lines < header.lines:
            raise ChunkError([index], "%s: the output has %d of the %d header lines: with headerLines a processor must write one line "
                             "for each of them first" % (where, lines, header.lines))
        digest = _hash_range(path, 0, length, bytearray(min(length, BLOCK_BYTES)))
        if self.seen.setdefault((name, header.source), digest) != digest:
            # Else lines that are no header would be lost without a word.
            alike = [number for number in range(index + 1) if self.headers[number].source == header.source]
            raise ChunkError(alike, "%s: its first %d lines are not those of the chunks before: with headerLines a processor must write "
                             "the header lines first, and the same for each chunk" % (where, header.lines))
        if name in self.kept:
            self._note_cut(index)
            return length
        if header.is_whole or size > length:
            self.kept.add(name)
            return 0
        self._note_cut(index)
        self.short[name] = max(self.short.get(name, (0, 0, "", 0)), (header.ends, header.lines, path, header.source), key=lambda one: one[:2])
        return length
