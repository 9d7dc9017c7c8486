"""What a stage depends on, part by part: as it was when it ran last, and as it is today.

Above the leaves. Pure.
"""
from __future__ import annotations

from collections import namedtuple

from ledger_format import canonical_json
from spec_values import shown_value
from state_store import utc_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List, Optional, Tuple
    Json = Dict[str, Any]

PLAIN = ("keyVersion", "pipeline", "stage", "outputDir", "outputs")     # first, in this order
FILES = ("modules", "inputs", "watch")                                  # lists of [path, SHA-256]
VALUES = ("params", "env", "passEnv")                                   # {name: value}
DIGEST_DIGITS = 12                                                      # of a SHA-256 as shown
SHOWN_SAME = 5              # files of a list that are shown though they are the same; of more, how many there are


class Part(namedtuple("Part", "part state old new")):
    """One part of a key: state same, changed, added or removed; old and new as stored, None where there is none.

    part: a name with dots, as "processor.sha256", "params.day", "inputs.data/in.txt".
    """

    __slots__ = ()


def compare(old: Optional[Json], new: Optional[Json]) -> List[Part]:
    """Return every part of two sets of key parts; either may be None: never run, or not known today."""
    before, after = _flat(old), _flat(new)
    names = list(after) + [name for name in before if name not in after]
    names.sort(key=_place)
    parts = []
    for name in names:
        if old is None or new is None:
            state = "added" if old is None else "removed"
        elif name not in before:
            state = "added"
        elif name not in after:
            state = "removed"
        else:
            state = "same" if canonical_json(before[name]) == canonical_json(after[name]) else "changed"
        parts.append(Part(name, state, before.get(name), after.get(name)))
    return parts + _orders(old, new)


def _flat(parts: Optional[Json]) -> Dict[str, Any]:
    """Return key parts as {name with dots: value}; kinds that this module does not know are values as they stand."""
    flat: Dict[str, Any] = {}
    for name, value in (parts or {}).items():
        if name in FILES:
            flat.update(("%s.%s" % (name, path), digest) for path, digest in value or [])
        elif name in VALUES or isinstance(value, dict):
            flat.update(("%s.%s" % (name, key), one) for key, one in (value or {}).items())
        else:
            flat[name] = value
    return flat


def _place(name: str) -> Tuple[int, str]:
    top = name.partition(".")[0]
    order = PLAIN + ("processor", "modules", "args") + VALUES
    rest = {"inputs": len(order) + 1, "watch": len(order) + 2}
    return (order.index(top) if top in order else rest.get(top, len(order)), "")       # what came in an order keeps it


def _orders(old: Optional[Json], new: Optional[Json]) -> List[Part]:
    """Return the lists of files that are the same but for their order, which counts."""
    if old is None or new is None:
        return []
    found = []
    for name in FILES:
        before, after = old.get(name) or [], new.get(name) or []
        if before != after and sorted(before) == sorted(after):
            found.append(Part(name, "changed", [path for path, _ in before], [path for path, _ in after]))
    return found


# --- for people ------------------------------------------------------------------------------------------------------

def lines(parts: List[Part]) -> List[str]:
    """Return a line for each part, but of many files that are the same only their number."""
    shown: List[str] = []
    same: Dict[str, List[Part]] = {}
    for part in parts:
        top = part.part.partition(".")[0]
        if top in FILES and part.state == "same":
            same.setdefault(top, []).append(part)
    for part in parts:
        top = part.part.partition(".")[0]
        if part.state == "same" and len(same.get(top, ())) > SHOWN_SAME:
            if part is same[top][0]:
                shown.append(_line("same", top, "%d files" % len(same[top])))
            continue
        shown.append(_line(part.state, part.part, _text(part)))
    return shown


def _line(state: str, name: str, text: str) -> str:
    return "  %-8s %s%s" % (state, name, ": " + text if text else "")


def _text(part: Part) -> str:
    if part.part.startswith("passEnv."):
        return ""                       # digests of values, which say nothing to people
    old, new = value_text(part.part, part.old), value_text(part.part, part.new)
    return {"same": new, "added": new, "removed": old}.get(part.state, "%s -> %s" % (old, new))


def value_text(name: str, value: Any) -> str:
    """Return the value of a part for people: digests short, times as times."""
    top = name.partition(".")[0]
    if name == "processor.mtimeNs" and isinstance(value, int):
        return utc_text(value / 1e9)
    if isinstance(value, str) and (name.endswith(".sha256") or (top in FILES and "." in name)):
        return value[:DIGEST_DIGITS]
    return value if name == "processor.path" and isinstance(value, str) else shown_value(value)
