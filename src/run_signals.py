"""The signals that ask a run to stop, noted instead of raised, and the wait for them beside descriptors. A leaf."""
from __future__ import annotations

import os
import signal
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, List, Optional, Sequence, Tuple

INTERRUPTED = "interrupted"
TIME_UP = -1                # in place of a signal's number: the clock asks to stop
POLL_S = 0.2                # Windows: between two looks at the clock and at signals
LONGEST_WAIT_S = 86400.0    # at once; poll() takes 24 days at most


class Signals:
    """The signals that ask the runner to stop, noted instead of raised; also the alarm that a child has ended.

    number: the first one that came, or 0; count: how many came. A signal that was ignored at the start (nohup, a shell's
    background) stays ignored. The end of the time that a run has (stop_time, a stop_times.StopTime or None) looks like a signal
    of number TIME_UP.
    """

    def __init__(self, stop_time: Any = None) -> None:
        self.came = 0
        self.count = 0
        self.stop_time = stop_time
        self.pipe: Tuple[int, int] = (-1, -1)
        self.has_child_ended = False    # since whoever asks has set it back

    @property
    def number(self) -> int:
        if not self.came and self.stop_time is not None and self.stop_time.seconds_left() <= 0:
            self._note(TIME_UP, None)
        return self.came

    def text(self) -> str:
        """Return why the run is to stop."""
        return "stopped by the clock (%s)" % self.stop_time.text if self.number == TIME_UP else INTERRUPTED

    def install(self) -> None:
        """Take over SIGINT, SIGTERM, SIGHUP (Windows: SIGBREAK) for this process, though whoever started it had them blocked.
        Main thread only."""
        taken = set()
        for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK"):
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._note)
                taken.add(number)
        if sys.platform != "win32":
            self.pipe = os.pipe()
            for descriptor in self.pipe:
                os.set_blocking(descriptor, False)
            signal.signal(signal.SIGCHLD, lambda number, frame: None)
            signal.set_wakeup_fd(self.pipe[1], warn_on_full_buffer=False)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, taken | {signal.SIGCHLD})

    def _note(self, number: int, frame: Any) -> None:
        self.came = self.came or number
        self.count += 1

    def wait(self, descriptors: Sequence[int], seconds: Optional[float], writable: Sequence[int] = ()) -> List[int]:
        """Wait until one of *descriptors* can be read or one of *writable* written, a signal comes, or *seconds* are over; return
        which."""
        if self.stop_time is not None and not self.came:
            if self.number:
                return []               # it came now, and whoever waits sees it by the count
            pause_s = self.stop_time.pause_s()
            seconds = pause_s if seconds is None else min(seconds, pause_s)
        seconds = None if seconds is None else min(seconds, LONGEST_WAIT_S)
        if self.pipe[0] < 0:
            time.sleep(POLL_S if seconds is None else min(seconds, POLL_S))
            return []
        import select
        poll = select.poll()
        for descriptor in (self.pipe[0], *descriptors):
            poll.register(descriptor, select.POLLIN)
        for descriptor in writable:
            poll.register(descriptor, select.POLLOUT)
        ready = [descriptor for descriptor, _ in poll.poll(None if seconds is None else max(0, int(seconds * 1000 + 0.999)))]
        if self.pipe[0] in ready:
            try:
                if signal.SIGCHLD in os.read(self.pipe[0], 4096):
                    self.has_child_ended = True
            except BlockingIOError:
                pass
        return [descriptor for descriptor in ready if descriptor != self.pipe[0]]
