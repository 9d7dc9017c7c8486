"""The lines of the running stages, redrawn in place below the stable lines of a terminal.

Above the leaf text_table. What is drawn is computed by render(), which is pure; LiveView knows what is on the screen.

    rows of the engine -> rates (LiveView) -> render() -> lines -> one write: old lines erased, new ones drawn

The cursor is never hidden and stands at the end of the last line: a runner that is killed or stopped (Ctrl-Z) leaves a
terminal that works.
"""
from __future__ import annotations

import os
import sys
from collections import namedtuple

from stage_progress import percent, seconds_left
from text_table import cut, display_width, pad

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

DRAW_S = 0.25               # between two draws, at least
RATE_S = 10.0               # a rate is of about the last so many seconds ...
RATE_MIN_S = 1.0            # ... and not told before so much is known
MARGIN = 5                  # cells left free at the right: a terminal echoes ^C there, and must not break the line for it
NAME_CELLS = 24             # of a stage's name, where the line is short of room
NAME_LEAST = 8
BAR_CELLS = 16
BAR_FROM = 90               # terminals from this width on have a bar


class Row(namedtuple("Row", "stage attempt done_bytes total_bytes tasks_done tasks_total started expected_s lines", defaults=(None,))):
    """One running stage; None for what is not known. started: of the monotonic clock. lines: done by the attempt so far."""

    __slots__ = ()


def render(rows: Sequence[Row], width: int, now: float, rates: Sequence[Tuple[Optional[float], str]] = (), mark: str = "~") -> List[str]:
    """Return a line for each row, each MARGIN less than *width* cells.

    rates: (per second, "B", "lines" or "tasks") for each row. Where there is not enough room the lines lose their bar, then
    attempt, rate and tasks; the time left and the percent go last.
    """
    fields = [_fields(row, now, *(rates[place] if place < len(rates) else (None, ""))) for place, row in enumerate(rows)]
    cells = {kind: max([len(found[kind]) for found in fields], default=0) for kind in SHOWN}
    names = max([display_width(row.stage) for row in rows] + [NAME_LEAST])
    width = max(1, width - MARGIN)
    kept = [kind for kind in SHOWN if cells[kind] and not (kind == "bar" and width < BAR_FROM - MARGIN)]
    for kind in DROPPED:
        if kind in kept and _room(kept, cells, width) < min(names, NAME_CELLS, max(NAME_LEAST, width // 3)):
            kept.remove(kind)
    room = max(1, min(names, _room(kept, cells, width)))
    return [cut("  ".join([pad(cut(row.stage, room, mark), room)] + [_in_column(kind, found[kind], cells[kind]) for kind in kept]).rstrip(), width, mark)
            for row, found in zip(rows, fields)]


def _room(kept: Sequence[str], cells: Dict[str, int], width: int) -> int:
    """Return how many cells are left for the names."""
    return width - sum(2 + cells[kind] for kind in kept)


def _in_column(kind: str, text: str, cells: int) -> str:
    return text.ljust(cells) if kind in ("bar", "left", "attempt") else text.rjust(cells)


def _fields(row: Row, now: float, rate: Optional[float], unit: str) -> Dict[str, str]:
    """Return what there is to say of a row, by kind."""
    elapsed = max(0.0, now - row.started)
    by_bytes = row.done_bytes is not None and bool(row.total_bytes)
    done, total = (row.done_bytes, row.total_bytes) if by_bytes or not row.tasks_total else (row.tasks_done or 0, row.tasks_total)
    share = percent(done, total)
    is_its_rate = unit == ("B" if by_bytes or not row.tasks_total else "tasks")
    left = seconds_left(done, total, rate if is_its_rate else None, elapsed, row.expected_s)
    return {
        "percent": "" if share is None else "%3d%%" % share,
        "bar": "" if share is None else "[" + "#" * (share * BAR_CELLS // 100) + "." * (BAR_CELLS - share * BAR_CELLS // 100) + "]",
        "tasks": "%d/%d tasks" % (row.tasks_done or 0, row.tasks_total) if row.tasks_total else "",
        "rate": rate_text(rate, unit),
        "attempt": "attempt %d" % row.attempt if row.attempt > 1 else "",
        "left": "%s left" % short_time(left) if left is not None else "%s so far" % short_time(elapsed)}


SHOWN = ("percent", "bar", "tasks", "rate", "left", "attempt")      # order on the line
DROPPED = ("bar", "attempt", "rate", "tasks", "left", "percent")    # order in which they go


def rate_text(rate: Optional[float], unit: str) -> str:
    """Return "12.3 MB/s", "450 lines/s"; "" where none is known."""
    if rate is None:
        return ""
    if unit != "B":
        return ("%.1f %s/s" if rate < 10 else "%.0f %s/s") % (rate, unit)
    return "%.1f MB/s" % (rate / 1e6) if rate >= 1e5 else "%.1f kB/s" % (rate / 1e3)


def short_time(seconds: float) -> str:
    """Return whole seconds as 12s, 3:05 or 2:03:05."""
    whole = int(seconds + 0.5)
    if whole < 60:
        return "%ds" % whole
    minutes, rest = divmod(whole, 60)
    return "%d:%02d" % (minutes, rest) if minutes < 60 else "%d:%02d:%02d" % (minutes // 60, minutes % 60, rest)


class Rates:
    """How fast each row advances, from what was seen of it lately.

    Only what was seen counts: a resumed attempt begins with bytes that it has not read.
    """

    def __init__(self) -> None:
        self.seen: Dict[Tuple[Any, ...], List[Tuple[float, int]]] = {}

    def of(self, row: Row, now: float) -> Tuple[Optional[float], str]:
        """Note the state of *row*; return (per second or None, unit)."""
        unit, value = _advance(row)
        if value is None:
            return None, unit
        key = (row.stage, row.attempt, unit)
        seen = self.seen.setdefault(key, [])
        if seen and value < seen[-1][1]:
            del seen[:]                     # it began anew
        seen.append((now, value))
        while len(seen) > 2 and now - seen[1][0] >= RATE_S:
            del seen[0]
        elapsed, gained = now - seen[0][0], value - seen[0][1]
        return (gained / elapsed if elapsed >= RATE_MIN_S and gained > 0 else None), unit

    def keep(self, rows: Sequence[Row]) -> None:
        """Forget what does not run any more."""
        living = {(row.stage, row.attempt) for row in rows}
        self.seen = {key: value for key, value in self.seen.items() if key[:2] in living}


def _advance(row: Row) -> Tuple[str, Optional[int]]:
    if row.done_bytes is not None:
        return "B", row.done_bytes
    if row.tasks_total:
        return "tasks", row.tasks_done
    return "lines", row.lines


class LiveView:
    """What is on the screen below the stable lines.

    stream: a terminal. clock: has monotonic(). size() returns (columns, lines) of the terminal as they are now.
    """

    def __init__(self, stream: Any, clock: Any, size: Callable[[], Tuple[int, int]], color: bool) -> None:
        self.stream, self.clock, self.size, self.color = stream, clock, size, color
        self.rates = Rates()
        self.stages: List[str] = []         # of the lines, as computed last
        self.lines: List[str] = []
        self.drawn: List[int] = []          # the widths of the lines that are on the screen
        self.due = 0.0
        self.mark = "\u2026" if "utf" in (getattr(stream, "encoding", None) or "").lower() else "~"

    def is_due(self) -> bool:
        """Tell whether enough time has passed since the last draw, and the terminal is ours: not a shell's that has put us in the
        background."""
        return bool(self.clock.monotonic() >= self.due and not is_in_background(self.stream))

    def draw(self, rows: Sequence[Sequence[Any]]) -> None:
        """Draw the state of the running stages over the state drawn before; nothing for no rows."""
        now = self.clock.monotonic()
        self.due = now + DRAW_S
        made = [Row(*row) for row in rows]
        rates = [self.rates.of(row, now) for row in made]
        self.rates.keep(made)
        width, height = self.size()
        shown = max(1, height - 2)          # never so many that the terminal scrolls them away
        self.stages = [row.stage for row in made[:shown]]
        self.lines = render(made[:shown], width, now, rates, self.mark)
        if len(made) > shown:
            self.stages[-1], self.lines[-1] = "", "and %d more" % (len(made) - shown + 1)
        self.stream.write(self.erase() + self.paint())
        self.stream.flush()

    def forget(self, stage: str) -> None:
        """Leave out the line of *stage* from the next time on that anything is written: something else is said of it now."""
        if stage in self.stages:
            place = self.stages.index(stage)
            del self.stages[place], self.lines[place]

    def clear(self) -> None:
        """Take the lines off the screen, and forget them."""
        self.stages, self.lines = [], []
        if self.drawn:
            self.stream.write(self.erase())
            self.stream.flush()

    def around(self, text: str) -> str:
        """Return *text*, whole stable lines, so that it is written above what is on the screen."""
        return self.erase() + text + self.paint()

    def erase(self) -> str:
        """Return what takes the drawn lines away. A terminal that got narrower has broken them into several."""
        if not self.drawn:
            return ""
        width = max(1, self.size()[0])
        height = sum(max(1, -(-cells // width)) for cells in self.drawn)
        self.drawn = []
        return "\r" + ("\x1b[%dA" % (height - 1) if height > 1 else "") + "\x1b[J"

    def paint(self) -> str:
        """Return what draws the lines as they were computed last."""
        width = self.size()[0]
        lines = [cut(line, max(1, width - MARGIN), self.mark) for line in self.lines]    # it may have got narrower since
        self.drawn = [display_width(line) for line in lines]
        return "\n".join("\x1b[36m%s\x1b[0m" % line if self.color else line for line in lines)


# --- what a terminal can do ------------------------------------------------------------------------------------------

def is_capable(stream: Any, environ: Any, enable: Callable[[], bool]) -> bool:
    """Tell whether lines can be redrawn on *stream*; enable() switches that on where it is not (Windows)."""
    try:
        is_terminal = stream.isatty()
    except (AttributeError, ValueError):
        return False
    return bool(is_terminal and environ.get("TERM") != "dumb" and enable())


def is_in_background(stream: Any) -> bool:
    """Tell whether another group of processes has the terminal now."""
    try:
        return bool(os.tcgetpgrp(stream.fileno()) != os.getpgrp())
    except (AttributeError, OSError, ValueError):
        return False                    # Windows; no terminal of ours


def wants_color(environ: Any) -> bool:
    """Tell whether a terminal may get colours. Source: no-color.org."""
    return not environ.get("NO_COLOR")


def enable_terminal(platform: str = sys.platform, api: Any = None) -> bool:
    """Make the console understand escape sequences (Windows; elsewhere it does); tell whether it does now."""
    if platform != "win32":
        return True
    try:
        import ctypes
        kernel = api if api is not None else getattr(ctypes, "windll").kernel32  # noqa: B009
        handle = kernel.GetStdHandle(-11)                       # STD_OUTPUT_HANDLE
        mode = ctypes.c_ulong()
        if not kernel.GetConsoleMode(handle, ctypes.byref(mode)):
            return False
        return bool(kernel.SetConsoleMode(handle, mode.value | 4))      # ENABLE_VIRTUAL_TERMINAL_PROCESSING
    except (ImportError, AttributeError, OSError):
        return False


def terminal_size(stream: Any) -> Tuple[int, int]:
    """Return (columns, lines) of the terminal behind *stream* as they are now: exported COLUMNS would be those of long ago."""
    import shutil
    try:
        found = os.get_terminal_size(stream.fileno())
        if found.columns > 0 and found.lines > 0:
            return found.columns, found.lines
    except (AttributeError, OSError, ValueError):
        pass
    fallback = shutil.get_terminal_size()
    return fallback.columns, fallback.lines
