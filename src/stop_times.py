"""When a run has to stop: --stop-by, a time of the day on the local clock, and --stop-after, a length of time.

A leaf. The time of the day is looked up once, as a point in time, and compared with the wall clock at each look, so that a
clock that is set meanwhile counts as it stands then. The length of time is measured by the monotonic clock.
"""
from __future__ import annotations

import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Optional

    from model import Options

MINUTE_S = 60
SEARCH_MINUTES = 26 * 60    # the longest day: 24 hours, and what a change of clocks adds
LOOK_S = 10.0               # the longest sleep between two looks at the wall clock, which may be set meanwhile


def next_time(text: str, now: float, local: Callable[[float], Any] = time.localtime) -> float:
    """Return the next moment after *now* (seconds since the epoch) at which the local clock shows *text*, "HH:MM".

    A run that starts at 06:00:00 or a moment later means 06:00 of tomorrow. Where clocks are set forward over that time, the
    moment at which they are; where they are set back, it comes twice, and the first that is still to come is meant.
    """
    hours, _, minutes = text.partition(":")
    wanted = int(hours) * 60 + int(minutes)
    shown = local(now)
    before = shown.tm_hour * 60 + shown.tm_min
    moment = now - shown.tm_sec - now % 1       # the beginning of the minute
    for _ in range(SEARCH_MINUTES):
        moment += MINUTE_S
        shown = local(moment)
        minute = shown.tm_hour * 60 + shown.tm_min
        if minute == wanted or _is_between(before, wanted, minute):
            return float(moment)
        before = minute
    raise ValueError("no local time %s after %s" % (text, now))


def _is_between(before: int, wanted: int, after: int) -> bool:
    """Tell whether the clock has jumped forward over *wanted* from one minute to the next, perhaps over midnight."""
    day = 24 * 60
    jump = (after - before) % day
    return 1 < jump < day // 2 and 0 < (wanted - before) % day < jump


class StopTime:
    """The moment at which a run must stop; text says which option set it. clock has time() and monotonic()."""

    def __init__(self, clock: Any, stop_by: Optional[str], stop_after_s: Optional[float], local: Callable[[float], Any] = time.localtime) -> None:
        self.clock = clock
        self.by = None if stop_by is None else next_time(stop_by, clock.time(), local)
        self.by_text = "--stop-by %s" % stop_by
        self.after = None if stop_after_s is None else clock.monotonic() + stop_after_s
        self.after_text = "--stop-after %s" % _length_text(stop_after_s or 0)
        self.text = ""

    def seconds_left(self) -> float:
        """Return how long the run may go on, 0.0 when it may not; the first end that has come stays the reason."""
        left = []
        if self.after is not None:
            left.append((self.after - self.clock.monotonic(), self.after_text))
        if self.by is not None:
            left.append((self.by - self.clock.time(), self.by_text))
        least, text = min(left)
        if self.text or least <= 0:
            self.text = self.text or text
            return 0.0
        return float(least)

    def pause_s(self) -> float:
        """Return how long to sleep at most before the next look."""
        return min(self.seconds_left(), LOOK_S) if self.by is not None else self.seconds_left()


def of_options(options: Options, clock: Any) -> Optional[StopTime]:
    """Return when a run with these options has to stop, None if never."""
    return None if options.stop_by is None and options.stop_after_s is None else StopTime(clock, options.stop_by, options.stop_after_s)


def _length_text(seconds: float) -> str:
    for unit, size in (("h", 3600), ("m", 60)):
        if seconds and seconds % size == 0:
            return "%d%s" % (seconds // size, unit)
    return "%ds" % seconds
