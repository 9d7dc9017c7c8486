"""JSON text with positions: says where each value of a pipeline file stands, and all that is wrong with its syntax.

A leaf, imported only when something is wrong with the spec: json.loads reads a flawless file faster, but stops at the
first fault, lets duplicate keys and NaN through, and forgets lines. Data flow:

    text -> _Scanner (one pass, a stack of frames instead of recursion) -> Document: value, problems, position(path)

A path is a tuple of keys and list indexes, () being the whole. Lines and columns count from 1, columns in characters;
a line ends with LF, CR LF or a lone CR. Whatever the text, nothing here raises.
"""
from __future__ import annotations

import bisect
import difflib
import json
import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List, Optional, Sequence, Tuple
    Path = Tuple[Any, ...]
    Problem = Tuple[int, int, Path, str]        # line, column, path, message

MAX_DEPTH = 64                      # levels of { and [ : far above any real spec, and bounds the length of every path
MAX_DIGITS = 18                     # integers that every tool and every 64-bit reader holds exactly
MAX_PROBLEMS = 200                  # a file of another kind would otherwise list one problem for every word

SINGLE_QUOTES = "JSON knows double quotes only, not single ones"
_LINE_END = re.compile(r"\r\n|\n|\r")
_SPACE = re.compile(r"[ \t\n\r]*")
_PLAIN = re.compile(r"[^\"'\\\x00-\x1f\ud800-\udfff]+")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")
_NUMBER_LIKE = re.compile(r"[-+.\w]+")
_WORD = re.compile(r"[^\W\d][\w.-]*|\$[\w.-]*")
_HEX4 = re.compile(r"[0-9a-fA-F]{4}")
_COMMENT = re.compile(r"//[^\r\n]*|#[^\r\n]*|/\*.*?(?:\*/|\Z)", re.DOTALL)
_BRACKETS = re.compile(r'"(?:[^"\\\r\n]|\\.)*"?|[\[\]{}]')
_STRUCTURE = re.compile(r'[\s,:\[\]{}]*(?:"|\Z)')
_ESCAPES = {'"': '"', "\\": "\\", "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_LITERALS = {"true": True, "false": False, "null": None}
_MISSPELT = {"True": ("true", True), "False": ("false", False), "None": ("null", None), "TRUE": ("true", True),
             "FALSE": ("false", False), "NULL": ("null", None), "Null": ("null", None), "undefined": ("null", None)}
_NOT_NUMBERS = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}
_PATH_KEYS = ("processor", "outputDir", "inputs", "outputs", "watch", "forEach")
_QUOTES = "\u201c\u201d\u201e\u201f\u2018\u2019\u00ab\u00bb`"


# === Results and their helpers ===

class Document:
    """A parsed text: *value* (best effort), *problems* in the order of the text, and where each value stands.

    complete: the text could be read to its end, so that what is missing in *value* is missing in the text.
    """

    __slots__ = ("value", "problems", "complete", "_starts", "_values", "_keys")

    def __init__(self, value: Any, starts: List[int], values: Dict[Path, int], keys: Dict[Path, int]) -> None:
        self.value = value
        self.problems: List[Problem] = []
        self.complete = False
        self._starts = starts                   # offset at which each line begins
        self._values = values                   # path -> offset of the value
        self._keys = keys                       # path -> offset of the key, for members of objects only

    def position(self, path: Path) -> Tuple[int, int]:
        """Return (line, column) of the value at *path*, or of its nearest ancestor that exists."""
        path = tuple(path)
        while path and path not in self._values:
            path = path[:-1]
        return self._at(self._values.get(path, 0))

    def key_position(self, path: Path) -> Tuple[int, int]:
        """Return (line, column) of the key of the member at *path*; of the value where there is no key."""
        offset = self._keys.get(tuple(path))
        return self.position(path) if offset is None else self._at(offset)

    def offset(self, path: Path) -> int:
        """Return where in the text the value at *path* begins, in characters. Raises: KeyError where there is none."""
        return self._values[tuple(path)]

    def _at(self, offset: int) -> Tuple[int, int]:
        line = bisect.bisect_right(self._starts, offset)
        return line, offset - self._starts[line - 1] + 1


def path_text(path: Path) -> str:
    """Return a path as people write it: stages[2].retry.attempts, params["a b"]; "" for the whole."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += "[%d]" % part
        elif part.isidentifier():
            text += "." + part if text else part
        else:
            text += "[%s]" % _quoted(part)
    return text


def nearest(name: str, known: Sequence[str]) -> Optional[str]:
    """Return the known name that *name* was probably meant to be, or None; case, "_" and "-" hardly count."""
    if len(name) > 100:                         # difflib takes quadratic time
        return None
    plain = {_plain_name(one): one for one in reversed(known)}
    found = difflib.get_close_matches(_plain_name(name), list(plain), 1, 0.6)
    return plain[found[0]] if found else None


def _plain_name(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")


def _quoted(text: str) -> str:
    """Return text in double quotes, short, and printable on any terminal."""
    shown = json.dumps(text if len(text) <= 60 else text[:57] + "...", ensure_ascii=False)
    return "".join(one if one.isprintable() else "\\u%04x" % ord(one) for one in shown)


def parse(text: str) -> Document:
    """Parse JSON text and report every problem that can be told.

    After a fault the parser goes on where the meaning is clear; where it is not, it stops with what it has.
    Of duplicate keys the first counts. Positions do not count a byte-order mark, which editors do not show.
    """
    scanner = _Scanner(text[1:] if text.startswith("\ufeff") else text)
    if text.startswith("\ufeff"):
        scanner.report(0, (), "the file begins with a byte-order mark; save it as UTF-8 without one")
    scanner.run()
    starts = [0] + [match.end() for match in _LINE_END.finditer(scanner.text)]
    document = Document(scanner.root, starts, scanner.values, scanner.keys)
    document.complete = scanner.complete
    for offset, path, message in sorted(scanner.found, key=lambda one: one[0]):
        more = " (and %d more)" % (scanner.single_quoted - 1) if message == SINGLE_QUOTES and scanner.single_quoted > 1 else ""
        document.problems.append(document._at(offset) + (path, message + more))
    return document


# === The scanner ===

class _Stop(Exception):
    """The rest of the text cannot be told apart any more; or there are enough problems."""


class _Frame:
    """An object or a list that is still open."""

    __slots__ = ("path", "items", "start", "kept", "comma", "filled", "first_keys")

    def __init__(self, path: Path, items: Any, start: int, kept: bool) -> None:
        self.path = path
        self.items = items
        self.start = start                      # offset of the bracket
        self.kept = kept                        # False in the value of a duplicate key: the first one's positions count
        self.comma = -1                         # offset of a comma that awaits what follows it
        self.filled = False
        self.first_keys: Dict[str, int] = {}    # key -> offset of its first occurrence

    @property
    def closer(self) -> str:
        return "}" if isinstance(self.items, dict) else "]"


class _Scanner:
    """One pass over one text; afterwards root, found, values and keys hold the outcome."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.place = 0
        self.root: Any = None
        self.frames: List[_Frame] = []
        self.found: List[Tuple[int, Path, str]] = []
        self.values: Dict[Path, int] = {}
        self.keys: Dict[Path, int] = {}
        self.complete = False
        self.single_quoted = 0                  # texts; only the first is reported

    def run(self) -> None:
        try:
            if not self._space(()):
                self.report(0, (), "the file is empty; write an object: {...}")
                return
            self.root = self._value((), True)
            while self.frames:
                frame = self.frames[-1]
                if not self._space(frame.path):
                    self._report_unclosed()
                elif isinstance(frame.items, dict):
                    self._member(frame)
                else:
                    self._element(frame)
            if self._space(()):
                self._report_trailing()
            self.complete = True
        except _Stop:
            pass

    def report(self, offset: int, path: Path, message: str) -> None:
        if len(self.found) == MAX_PROBLEMS:
            self.found.append((offset, path, "and more; these are the first %d problems" % MAX_PROBLEMS))
            raise _Stop
        self.found.append((offset, path, message))

    def _stop(self, offset: int, path: Path, message: str) -> Any:
        self.report(offset, path, message)
        raise _Stop

    def _line(self, offset: int) -> int:
        return 1 + sum(1 for _ in _LINE_END.finditer(self.text, 0, offset))

    # --- what stands between values

    def _space(self, path: Path) -> str:
        """Go past white space and comments; return the next character, "" at the end of the text."""
        while True:
            match = _SPACE.match(self.text, self.place)
            self.place = match.end() if match else self.place
            mark = self.text[self.place:self.place + 1]
            comment = _COMMENT.match(self.text, self.place) if mark in ("/", "#") else None
            if comment:
                self.report(self.place, path, "JSON has no comments; remove it (a key that begins with \"x-\" may hold a note)")
                self.place = comment.end()
            elif mark and (mark.isspace() or mark in "\ufeff\u200b"):
                self.report(self.place, path, "U+%04X is no white space in JSON; use an ordinary space" % ord(mark))
                self.place += 1
            else:
                return mark

    def _report_unclosed(self) -> None:
        missing = "".join(frame.closer for frame in reversed(self.frames))
        last = self.frames[-1]
        self._stop(len(self.text.rstrip()), last.path, "the file ends too early: add %s here (the %s of line %d is still open)"
                   % (missing, self.text[last.start], self._line(last.start)))

    def _report_trailing(self) -> None:
        mark = self.text[self.place]
        if mark in "]}":
            self._stop(self.place, (), "this %s closes nothing; remove it" % mark)
        if mark == ",":
            self._stop(self.place, (), "a comma after the end of the value; remove it")
        self._stop(self.place, (), "text after the end of the value; remove it")

    def _between(self, frame: _Frame, mark: str, what: str) -> bool:
        """Deal with a comma or a closing bracket; return False when a member or an element begins here."""
        if mark == ",":
            if not frame.filled or frame.comma >= 0:
                self.report(self.place, frame.path, "a %s is missing before this comma; remove the comma" % what)
            frame.comma = self.place
            self.place += 1
            return True
        if mark in "]}":
            if frame.comma >= 0 and frame.filled:
                self.report(frame.comma, frame.path, "a comma before the closing %s; remove it" % mark)
            self._close(frame, mark)
            return True
        if frame.filled and frame.comma < 0:
            self._refuse_glued(frame)
            self.report(self.place, frame.path, "a comma is missing before this %s" % what)
        return False

    def _close(self, frame: _Frame, mark: str) -> None:
        self.frames.pop()
        if mark == frame.closer:
            self.place += 1
            return
        self.report(self.place, frame.path, "%s is missing before this %s (the %s of line %d is still open)"
                    % (frame.closer, mark, self.text[frame.start], self._line(frame.start)))
        if not any(outer.closer == mark for outer in self.frames):
            self.place += 1                     # a slip for the right bracket: nothing further out waits for this one

    def _refuse_glued(self, frame: _Frame) -> None:
        """Stop at a word right behind a closing quote: it is text with a bare quote in it, and all after it is askew."""
        if self.place and self.text[self.place - 1] == '"' and _WORD.match(self.text, self.place):
            self._stop(self.place - 1, frame.path, "the text ends at this quote; write \\\" for a quote inside text")

    # --- members and elements

    def _element(self, frame: _Frame) -> None:
        mark = self.text[self.place]
        if self._between(frame, mark, "value"):
            return
        path = frame.path + (len(frame.items),)
        if mark == ":":
            self._stop(self.place, path, "a colon in a list; put the members into an object: {...}")
        frame.comma, frame.filled = -1, True
        frame.items.append(self._value(path, frame.kept))

    def _member(self, frame: _Frame) -> None:
        mark = self.text[self.place]
        if self._between(frame, mark, "key"):
            return
        start = self.place
        key = self._key(frame, mark)
        path = frame.path + (key,)
        frame.comma, frame.filled = -1, True
        first = frame.first_keys.setdefault(key, start)
        kept = frame.kept and first == start
        if first != start:
            self.report(start, path, "duplicate key; the first %s is on line %d: remove one" % (_quoted(key), self._line(first)))
        elif kept:
            self.keys[path] = start
        value = self._member_value(path, kept, key)
        if first == start:
            frame.items[key] = value

    def _key(self, frame: _Frame, mark: str) -> str:
        if mark in "\"'":
            return self._string(frame.path, mark)
        word = _WORD.match(self.text, self.place)
        if word:
            self.report(self.place, frame.path, "a key must be in double quotes: %s" % _quoted(word.group()))
            self.place = word.end()
            return word.group()
        if mark == ":":
            self._stop(self.place, frame.path, "a key is missing before this colon")
        self._refuse_character(frame.path, mark, "a key in double quotes")
        return ""

    def _member_value(self, path: Path, kept: bool, key: str) -> Any:
        after_key = self.place
        mark = self._space(path)
        if mark in ("", ",", "}", "]"):
            self.report(after_key, path, "a colon and a value are missing after the key %s" % _quoted(key))
            return None
        if mark == ":":
            self.place += 1
        elif mark == "=":
            self.report(self.place, path, "a colon must follow the key, not =")
            self.place += 2 if self.text.startswith(("=>", "=="), self.place) else 1
        else:
            self.report(self.place, path, "a colon is missing before this value")
        after_colon = self.place
        if self._space(path) in ("", ",", "}", "]"):
            self.report(after_colon, path, "the value of the key %s is missing" % _quoted(key))
            return None
        return self._value(path, kept)

    # --- values: the place is at the first character; afterwards behind the last (containers: behind the bracket)

    def _value(self, path: Path, kept: bool) -> Any:
        mark = self.text[self.place]
        if kept:
            self.values[path] = self.place
        if mark in "{[":
            return self._open(path, kept, mark)
        if mark in "\"'":
            return self._string(path, mark)
        if mark.isdigit() or mark in "-+.":
            return self._number(path)
        word = _WORD.match(self.text, self.place)
        if word:
            return self._literal(path, word.group())
        return self._refuse_character(path, mark, "a value")

    def _open(self, path: Path, kept: bool, mark: str) -> Any:
        items: Any = {} if mark == "{" else []
        if len(self.frames) >= MAX_DEPTH:
            self.report(self.place, path[:4], "nested deeper than %d levels; flatten it" % MAX_DEPTH)
            self._skip_nested()
            return items
        self.frames.append(_Frame(path, items, self.place, kept))
        self.place += 1
        return items

    def _skip_nested(self) -> None:
        """Go past a value that is nested too deep: what it holds is not looked at."""
        depth = 0
        for match in _BRACKETS.finditer(self.text, self.place):
            mark = match.group()[0]
            depth += 1 if mark in "{[" else -1 if mark in "]}" else 0
            if depth == 0:
                self.place = match.end()
                return
        raise _Stop

    def _literal(self, path: Path, word: str) -> Any:
        start = self.place
        self.place += len(word)
        if word in _LITERALS:
            return _LITERALS[word]
        if word in _NOT_NUMBERS:
            return self._refuse_number(start, path, word)
        if word in _MISSPELT:
            right, value = _MISSPELT[word]
            self.report(start, path, "JSON spells it %s, not %s" % (right, word))
            return value
        self.report(start, path, "text must be in double quotes: %s" % _quoted(word))
        return word

    def _refuse_character(self, path: Path, mark: str, wanted: str) -> Any:
        if mark in _QUOTES:
            self._stop(self.place, path, "%s is no quote in JSON; use the straight double quote" % mark)
        self._stop(self.place, path, "%s stands where %s should" % (_quoted(mark), wanted))

    def _number(self, path: Path) -> Any:
        start = self.place
        match = _NUMBER_LIKE.match(self.text, start)
        token = match.group() if match else self.text[start]
        self.place += len(token)
        number = _NUMBER.fullmatch(token)
        if token in _NOT_NUMBERS:
            return self._refuse_number(start, path, token)
        if not number:
            self.report(start, path, "%s is no JSON number: %s" % (_quoted(token), _number_hint(token)))
            return None
        digits = len(token.lstrip("-"))
        if number.group(1) or number.group(2):
            value = float(token)
            if value in (float("inf"), float("-inf")):
                self.report(start, path, "the number is too large; the largest is about 1.8e308")
            return value
        if digits > MAX_DIGITS:
            remedy = "put it in double quotes" if "params" in path else "make it smaller"
            self.report(start, path, "an integer of %d digits, but only %d are exact everywhere; %s" % (digits, MAX_DIGITS, remedy))
        return int(token) if digits <= 300 else float(token)        # int() takes quadratic time, or refuses

    def _refuse_number(self, start: int, path: Path, word: str) -> float:
        self.report(start, path, "JSON has no %s; write a number or null" % word)
        return _NOT_NUMBERS[word]

    # --- strings

    def _string(self, path: Path, quote: str) -> str:
        start = self.place
        if quote == "'":
            self.single_quoted += 1
            if self.single_quoted == 1:         # who writes one so writes all so
                self.report(start, path, SINGLE_QUOTES)
        self.place += 1
        pieces: List[str] = []
        while True:
            match = _PLAIN.match(self.text, self.place)
            if match:
                pieces.append(match.group())
                self.place = match.end()
            mark = self.text[self.place:self.place + 1]
            if mark == quote:
                self.place += 1
                return "".join(pieces)
            if mark in ("", "\n", "\r") and self._is_unterminated():
                return self._close_string(start, path, pieces)
            pieces.append(self._escape(path) if mark == "\\" else self._odd_character(path, mark))

    def _odd_character(self, path: Path, mark: str) -> str:
        """Take one character that is a quote of the other kind, a control character or a lone surrogate."""
        if mark < " ":
            short = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}.get(mark, "\\u%04x" % ord(mark))
            self.report(self.place, path, "a control character (U+%04X) in text; write %s" % (ord(mark), short))
        elif mark not in "\"'":
            self.report(self.place, path, "half of a surrogate pair (U+%04X) in text; remove it" % ord(mark))
        self.place += 1
        return mark

    def _is_unterminated(self) -> bool:
        """Tell a forgotten quote from text over several lines: only brackets and commas stand before the next quote."""
        return _STRUCTURE.match(self.text, self.place) is not None or '"' not in self.text[self.place:]

    def _close_string(self, start: int, path: Path, pieces: List[str]) -> str:
        """End a string at the end of its line; a comma or bracket there was meant for the structure."""
        end = self.place
        while end > start + 1 and self.text[end - 1] in " \t,}]":
            end -= 1
        self.report(start, path, "the text is not closed on its line; add a double quote at its end")
        whole = "".join(pieces)
        cut = self.place - end
        self.place = end
        return whole[:len(whole) - cut] if cut else whole

    def _escape(self, path: Path) -> str:
        start = self.place
        mark = self.text[start + 1:start + 2]
        self.place += 2 if mark >= " " else 1   # a backslash at the end of a line does not swallow the line's end
        if mark in _ESCAPES:
            return _ESCAPES[mark]
        if mark == "u" and (_HEX4.match(self.text, self.place) or not _is_path(path)):
            return self._unicode_escape(start, path)
        shown = _quoted("\\" + mark).replace("\\\\", "\\")
        if _is_path(path) and mark >= " ":
            self.report(start, path, "%s is no escape in JSON; write /%s: a path has forward slashes" % (shown, mark))
            return "/" + mark
        self.report(start, path, "%s is no escape in JSON; write \\\\ for a backslash, or / in a path" % shown)
        return "\\" + mark if mark >= " " else "\\"

    def _unicode_escape(self, start: int, path: Path) -> str:
        digits = _HEX4.match(self.text, self.place)
        if not digits:
            self.report(start, path, "four hexadecimal digits must follow \\u")
            return "\\u"
        self.place += 4
        code = int(digits.group(), 16)
        second = _HEX4.match(self.text, self.place + 2) if self.text.startswith("\\u", self.place) else None
        if 0xD800 <= code < 0xDC00 and second and 0xDC00 <= int(second.group(), 16) < 0xE000:
            self.place += 6
            return chr(0x10000 + ((code - 0xD800) << 10) + int(second.group(), 16) - 0xDC00)
        if 0xD800 <= code < 0xE000:
            self.report(start, path, "half of a surrogate pair (\\u%04x); write both halves or the character itself" % code)
        return chr(code)


def _is_path(path: Path) -> bool:
    """Tell whether what stands there in a pipeline file is a path: that of a stage, or of a program that is run after the run."""
    below = path[2:] if path[:1] == ("stages",) else path[1:] if path[:1] == ("defaults",) else ()
    return bool(below) and below[0] in _PATH_KEYS or path in (("onFailure", 0), ("onSuccess", 0))


def _number_hint(token: str) -> str:
    body = token.lstrip("+-")
    if token.startswith("+"):
        return "remove the plus sign"
    if body[:2] in ("0x", "0X", "0b", "0o"):
        return "write it in decimal"
    if "_" in body:
        return "remove the underscores"
    if body[:1] == "0" and body[1:2].isdigit():
        return "remove the leading zeros"
    if body.startswith(".") or body.endswith(".") or ".e" in body.lower():
        return "digits must stand on both sides of the point"
    return "text must be in double quotes"
