"""JSON and SHA-256 without the imports that show in the time of a run in which nothing changed.

Under all other modules: it imports nothing of ours. The package json loads the module re, and hashlib loads OpenSSL; small values
need neither. The interpreter's own parts of them are used where they are there, the packages where not.
"""
from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import hashlib
    from typing import Any, Callable, Iterable, Iterator, Optional, Tuple

BULK_BYTES = 1 << 18        # from here on, the quicker implementation is worth its import
BLANKS = " \t\n\r"          # of JSON


def sha256(data: bytes = b"", size: int = 0) -> hashlib._Hash:
    """Return a SHA-256 object fed with *data*; *size* is how many bytes it is going to see.

    Small things are hashed by the interpreter's own module. Big files are worth OpenSSL: it uses the processor's instructions.
    """
    if max(size, len(data)) < BULK_BYTES:
        try:
            if sys.version_info >= (3, 12):
                from _sha2 import sha256 as make
            else:
                from _sha256 import sha256 as make  # type: ignore[import-not-found, unused-ignore]
            return make(data)  # type: ignore[no-any-return, unused-ignore]
        except ImportError:
            pass                # another implementation of Python, or a build without it
    import hashlib
    return hashlib.sha256(data)


class Ready:
    """A JSON array whose text is made already: thousands of entries of a record that are the same in each run.

    pretty: as it stands in a record, one level deep. canonical: as it is hashed; "" where it never is.
    """

    __slots__ = ("pretty", "canonical")

    def __init__(self, pretty: str, canonical: str = "") -> None:
        self.pretty, self.canonical = pretty, canonical

    def __iter__(self) -> Iterator[Any]:
        return iter(loads(self.pretty))


def ready_array(pretty: Iterable[str], canonical: Iterable[str] = ()) -> Ready:
    """Return the array of entries whose texts are given: those of pretty(entry, 2), and of compact(entry, True)."""
    shown, hashed = ",\n  ".join(pretty), ",".join(canonical)
    return Ready("[\n  %s\n ]" % shown if shown else "[]", "[%s]" % hashed)


def _make_encoder(sort: bool) -> Callable[[Any], str]:
    try:
        from _json import encode_basestring, make_encoder
    except ImportError:
        import json
        return json.JSONEncoder(sort_keys=sort, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode
    encode = make_encoder(None, _refuse, encode_basestring, None, ":", ",", sort, False, False)
    return lambda value: "".join(encode(value, 0))


def _refuse(value: Any) -> Any:
    raise TypeError("%s is no JSON value" % type(value).__name__)


_PLAIN, _SORTED = _make_encoder(False), _make_encoder(True)


def compact(value: Any, sort: bool = False) -> str:
    """Return JSON without blanks, not escaped to ASCII; sort: with the keys in order. Raises: ValueError for NaN; TypeError."""
    if isinstance(value, dict) and any(type(one) is Ready for one in value.values()):
        names = sorted(value) if sort else list(value)
        return "{%s}" % ",".join("%s:%s" % (_PLAIN(name), value[name].canonical if type(value[name]) is Ready else compact(value[name], sort)) for name in names)
    return _SORTED(value) if sort else _PLAIN(value)


def pretty(value: Any, level: int = 0) -> str:
    """Return JSON for people, one blank for each level; *level* is how deep the value stands. The text is that of json.dumps(indent=1)."""
    if type(value) is Ready:
        return value.pretty
    if isinstance(value, dict) and value:
        start, space = "{", "\n" + " " * (level + 1)
        parts = ["%s%s: %s" % (space, _PLAIN(name) if isinstance(name, str) else '"%s"' % _PLAIN(name), pretty(one, level + 1)) for name, one in value.items()]
        return start + ",".join(parts) + "\n" + " " * level + "}"
    if isinstance(value, (list, tuple)) and value:
        space = "\n" + " " * (level + 1)
        return "[" + ",".join([space + pretty(one, level + 1) for one in value]) + "\n" + " " * level + "]"
    return _PLAIN(value)


class _Rules:
    """What the interpreter's scanner of JSON asks for; the same as in json.loads()."""

    strict = True
    object_hook = object_pairs_hook = None
    parse_float, parse_int = float, int
    parse_constant = {"-Infinity": float("-inf"), "Infinity": float("inf"), "NaN": float("nan")}.__getitem__
    memo: Any = {}


def _make_scanner() -> Optional[Callable[[str, int], Tuple[Any, int]]]:
    try:
        from _json import make_scanner
    except ImportError:
        return None
    return make_scanner(_Rules)     # type: ignore[arg-type, no-any-return, unused-ignore]


_SCAN = _make_scanner()


def loads(text: str) -> Any:
    """Return the value of a JSON text. Raises: ValueError; RecursionError."""
    if _SCAN is None:
        import json
        return json.loads(text)
    body = text.strip(BLANKS)
    try:
        value, end = _SCAN(body, 0)
    except StopIteration:
        raise ValueError("not JSON") from None
    if end != len(body):
        raise ValueError("more than one JSON value")
    return value
