"""Text in columns, by the cells that it takes on a terminal, not by its characters.

A leaf. Also how numbers are told to people: durations, ages, bytes.
"""
from __future__ import annotations

import unicodedata

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, List, Optional, Sequence

GAP = "  "                  # between two columns


def display_width(text: str) -> int:
    """Return how many cells *text* takes: wide East Asian characters two, combining marks and other formats none."""
    if text.isascii():
        return len(text)
    return sum(_cells(c) for c in text)


def _cells(character: str) -> int:
    if unicodedata.combining(character) or unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in ("W", "F") else 1


def cut(text: str, width: int, mark: str = "~") -> str:
    """Return *text* in at most *width* cells; *mark*, one cell wide, stands for what was cut off."""
    if display_width(text) <= width:
        return text
    kept, used = [], 0
    for character in text:
        used += _cells(character)
        if used > width - 1:
            break
        kept.append(character)
    return "".join(kept) + mark if width > 0 else ""


def pad(text: str, width: int) -> str:
    """Return *text* with blanks up to *width* cells."""
    return text + " " * (width - display_width(text))


def columns(rows: Sequence[Sequence[str]], width: Optional[int] = None, droppable: Sequence[int] = ()) -> List[str]:
    """Return a line for each row, the first being the heading.

    Where the lines take more than *width* cells (None: there is no limit), the columns *droppable* are left out, one
    after the other, and then the first one is cut. A column without any content below its heading is left out always.
    """
    places = [place for place in range(len(rows[0])) if place == 0 or any(row[place] for row in rows[1:])]
    widths = [max(display_width(row[place]) for row in rows) for place in range(len(rows[0]))]
    for place in droppable:
        if width is not None and place in places and _total(places, widths) > width:
            places.remove(place)
    if width is not None and _total(places, widths) > width:
        widths[0] = max(4, widths[0] - (_total(places, widths) - width))
    return [GAP.join(pad(cut(row[place], widths[place]), widths[place]) for place in places).rstrip() for row in rows]


def _total(places: Sequence[int], widths: Sequence[int]) -> int:
    return sum(widths[place] for place in places) + len(GAP) * (len(places) - 1)


# --- numbers for people ----------------------------------------------------------------------------------------------

def duration_text(seconds: Optional[float]) -> str:
    """Return 0.12 s, 12.3 s, 5 min 20 s, 2 h 03 min, 4 d 02 h; "" for None."""
    if seconds is None:
        return ""
    if seconds < 60:
        return "%.2f s" % seconds if seconds < 9.995 else "%.1f s" % min(seconds, 59.9)
    whole = int(seconds + 0.5)
    if whole < 3600:
        return "%d min %02d s" % divmod(whole, 60)
    minutes = whole // 60
    if minutes < 48 * 60:
        return "%d h %02d min" % divmod(minutes, 60)
    return "%d d %02d h" % divmod(minutes // 60, 24)


def age_text(seconds: Optional[float]) -> str:
    """Return how long something is past, in its largest unit: 12 s, 5 min, 3 h, 2 d; "" for None."""
    if seconds is None:
        return ""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= (2 if unit == "d" else 1) * size:
            return "%d %s" % (seconds // size, unit)
    return "%d s" % max(0, int(seconds))


def count_text(number: Any) -> str:
    """Return a whole number with its thousands apart (1,234,567), "" for anything else."""
    return "{:,}".format(number) if isinstance(number, int) and not isinstance(number, bool) else ""
