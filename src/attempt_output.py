"""What an attempt prints: read from its pipe, kept on disk within limits. A leaf."""
from __future__ import annotations

import os
import time

from model import sha256

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Optional

LOG_HEAD_BYTES = 16 << 20   # of an attempt's output kept from its beginning ...
LOG_TAIL_BYTES = 1 << 20    # ... and from its end; what is between is counted and dropped
SHOWN_TAIL_BYTES = 4096     # of a failed attempt's output, shown on the console
READ_BYTES = 1 << 16
DRAIN_S = 2.0               # how long a pipe may stay open after the last process of an attempt is gone


class AttemptLog:
    """An attempt's output on disk, within limits: its beginning, its end, and how much was left out between.

    size and digest are of what is in the file.

    A log that cannot be written (full disk) does not stop the attempt: the pipe must go on being emptied.
    """

    def __init__(self, path: str, echo: Optional[Callable[[bytes], None]] = None, is_lazy: bool = False) -> None:
        """is_lazy: there is no file before there is output."""
        self.path, self.echo = path, echo
        self.total = 0
        self.head_left = LOG_HEAD_BYTES
        self.tail = bytearray()
        self.last = b""
        self.problem = ""
        self.size, self.digest = 0, sha256()
        self.file: Any = None if is_lazy else open(path, "wb", buffering=0)

    def feed(self, data: bytes) -> None:
        self.total += len(data)
        self.last = (self.last + data)[-SHOWN_TAIL_BYTES:]
        if self.echo is not None:
            self.echo(data)
        head = data[:self.head_left]
        self.head_left -= len(head)
        self._write(head)
        self.tail += data[len(head):]
        if len(self.tail) > 2 * LOG_TAIL_BYTES:
            del self.tail[:-LOG_TAIL_BYTES]

    def close(self) -> None:
        dropped = self.total - LOG_HEAD_BYTES - min(len(self.tail), LOG_TAIL_BYTES)
        if dropped > 0:
            self._write(b"\n[... %d bytes left out ...]\n" % dropped)
        self._write(bytes(self.tail[-LOG_TAIL_BYTES:]))
        try:
            if self.file is not None:
                self.file.close()
        except OSError as error:        # a file server's, late: what it was told before is not there
            self._note(error)

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view and not self.problem:
            try:
                if self.file is None:
                    self.file = open(self.path, "wb", buffering=0)
                count = self.file.write(view)
                self.size += count
                self.digest.update(view[:count])
                view = view[count:]
            except OSError as error:
                self._note(error)

    def _note(self, error: OSError) -> None:
        self.problem = self.problem or "the log is incomplete: %s" % error.strerror


def read_some(reader: int, log: AttemptLog) -> bool:
    """Read what is there; tell whether the pipe is still open."""
    try:
        data = os.read(reader, READ_BYTES)
    except BlockingIOError:
        return True
    log.feed(data)
    return bool(data)


def read_all(reader: int, log: AttemptLog) -> None:
    """Read what is there, from a pipe whose other end stays open."""
    while True:
        try:
            data = os.read(reader, READ_BYTES)
        except BlockingIOError:
            return
        if not data:
            return
        log.feed(data)


def drain(reader: int, is_open: bool, log: AttemptLog) -> None:
    """Read to the end of the pipe, but not for ever: a process that would not go may hold it open."""
    import select
    deadline = time.monotonic() + DRAIN_S
    poll = select.poll()                # select() knows no descriptor above 1023
    poll.register(reader, select.POLLIN)
    while is_open and time.monotonic() < deadline:
        if not poll.poll(50):
            continue
        is_open = read_some(reader, log)
