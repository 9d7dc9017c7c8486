"""What a value in a pipeline file may be: texts, names, numbers, paths, commands.

A leaf. Each check takes (value, path, problems), returns the clean value, or adds a problem at its path and returns None.
"""
from __future__ import annotations

import json
import os
import sys

from primitives import is_integer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple
    Json = Dict[str, Any]
    Path = Tuple[Any, ...]

MAX_DEPTH = 64              # of nesting: far above any real spec, far below what exhausts a parser
DEVICE_NAMES = frozenset("con prn aux nul conin$ conout$".split() + ["%s%s" % (name, n) for name in ("com", "lpt") for n in "0123456789\u00b9\u00b2\u00b3"])
NOT_IN_NAMES = ':"<>|'      # on Windows, where "a:b" is a hidden stream of the file "a"; * and ? are globs
RUNNER_FOLDERS = ("state", "locks", "src", "bin")
LAUNCHER_NAMES = ("cpuCores", "memoryMB")
NAME_CHARACTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")
ESCAPED = {"\b": "b", "\f": "f", "\n": "n", "\r": "r", "\t": "t"}     # a character -> the letter of its escape in JSON


def strict_json(text: str) -> Any:
    """Return the value of flawless JSON: no duplicate keys, NaN, endless numbers, lone surrogates, deep nesting.

    Raises: ValueError, RecursionError, MemoryError; which of these, and where, is for spec_source to find out.
    """
    if "\\ud" in text or "\\uD" in text:
        raise ValueError("a surrogate may be alone")
    value = json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_refuse_number,
                       parse_float=_finite_number, parse_int=_short_number)
    if not _is_shallow(value):
        raise ValueError("nested too deeply")
    return value


def _unique_keys(pairs: List[Tuple[str, Any]]) -> Json:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("duplicate key")
    return value


def _refuse_number(text: str) -> Any:
    raise ValueError(text)


def _finite_number(text: str) -> float:
    number = float(text)
    if number - number != 0.0:
        raise ValueError(text)
    return number


def _short_number(text: str) -> int:
    if len(text.lstrip("-")) > 18:
        raise ValueError(text)
    return int(text)


def _is_shallow(value: Any) -> bool:
    """Tell whether nesting stays within the limit, without recursion."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [inner for one in level if isinstance(one, (dict, list)) for inner in (one.values() if isinstance(one, dict) else one)]
        if not level:
            return True
    return False


class Problems:
    """The problems found so far: (path, message) pairs, path a tuple of keys and indexes."""

    def __init__(self) -> None:
        self.found: List[Tuple[Path, str]] = []
        self.nearest: Callable[[str, Sequence[str]], Optional[str]] = lambda word, known: None

    def add(self, path: Path, message: str) -> None:
        self.found.append((path, message))


def shown_value(value: Any) -> str:
    """Return a value as short JSON for a message."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def check_text(value: Any, path: Path, problems: Problems) -> Any:
    if isinstance(value, str) and "\0" not in value:
        return value
    return problems.add(path, "must be text%s, got %s" % (" without NUL" if isinstance(value, str) else "", shown_value(value)))


def check_texts(value: Any, path: Path, problems: Problems) -> Any:
    if not isinstance(value, list):
        return problems.add(path, "must be a list of texts, got %s" % shown_value(value))
    return [check_text(one, path + (index,), problems) for index, one in enumerate(value)]


def name_problem(value: Any) -> str:
    """Return what is wrong with a stage name or run id, or ""."""
    if not isinstance(value, str) or not value or len(value) > 64 or value[0] in "._-" or not NAME_CHARACTERS.issuperset(value):
        return "must be 1 to 64 of the characters A-Z a-z 0-9 . _ - and begin with a letter or digit"
    if value.endswith("."):
        return "must not end with a dot (Windows drops it)"
    if value.split(".")[0].lower() in DEVICE_NAMES:
        return "is a device name on Windows; choose another"
    return ""


def check_name(value: Any, path: Path, problems: Problems) -> Any:
    problem = name_problem(value)
    return problems.add(path, "%s, got %s" % (problem, shown_value(value))) if problem else value


def whole_number(least: int, most: Optional[int] = None) -> Callable[..., Any]:
    def check(value: Any, path: Path, problems: Problems) -> Any:
        if is_integer(value) and value >= least and (most is None or value <= most):
            return value
        bounds = ">= %d" % least if most is None else "from %d to %d" % (least, most)
        return problems.add(path, "must be an integer %s, got %s" % (bounds, shown_value(value)))
    return check


def number_from_zero(exclusive: bool = False) -> Callable[..., Any]:
    def check(value: Any, path: Path, problems: Problems) -> Any:
        if (is_integer(value) or isinstance(value, float)) and (value > 0 if exclusive else value >= 0):
            return value
        return problems.add(path, "must be a number %s 0, got %s" % (">" if exclusive else ">=", shown_value(value)))
    return check


def check_boolean(value: Any, path: Path, problems: Problems) -> Any:
    return value if isinstance(value, bool) else problems.add(path, "must be true or false, got %s" % shown_value(value))


def check_object(value: Any, path: Path, problems: Problems, example: str = "") -> Any:
    return value if isinstance(value, dict) else problems.add(path,
        "must be an object%s, got %s" % (" such as " + example if example else "", shown_value(value)))


def one_of(*choices: str) -> Callable[..., Any]:
    def check(value: Any, path: Path, problems: Problems) -> Any:
        if isinstance(value, str) and value in choices:
            return value
        return problems.add(path, "must be one of %s, got %s" % (", ".join(map(shown_value, choices)), shown_value(value)))
    return check


def path_problem(value: str) -> str:
    """Return what is wrong with a path or glob that must stay below the root, or ""."""
    if not value or not value.isprintable():
        return "must be a path without control characters"
    if "\\" in value:
        return "must be written with forward slashes"
    if value[0] == "/" or (len(value) > 1 and value[1] == ":"):
        return "must be relative to the root (the folder of the pipeline file), not absolute"
    parts = value.split("/")
    if ".." in parts:
        return "must not leave the root with '..'"
    if any(part.rstrip(". ") != part and part != "." for part in parts):
        return "has a part that ends with a dot or blank (Windows drops it)"
    if any(part.split(".")[0].rstrip(" ").lower() in DEVICE_NAMES for part in parts):
        return "names a Windows device"
    if sys.platform == "win32" and any(sign in value for sign in NOT_IN_NAMES):
        return "has one of the signs %s, which Windows does not allow in names" % " ".join(NOT_IN_NAMES)
    return ""


def normal_path(value: str) -> str:
    """Return a relative path without '.' parts and doubled or trailing slashes."""
    return "/".join(part for part in value.split("/") if part not in ("", ".")) or "."


def check_path(value: Any, path: Path, problems: Problems) -> Any:
    if check_text(value, path, problems) is None:
        return None
    problem = path_problem(value)
    return problems.add(path, "%s, got %s%s" % (problem, shown_value(value), _escape_hint(value))) if problem else normal_path(value)


def _escape_hint(value: str) -> str:
    """Return what to write where JSON took the backslashes of a path for escapes, or ""."""
    meant = "".join("/" + letter if letter else one for one, letter in ((one, ESCAPED.get(one)) for one in value))
    return "; a backslash begins an escape in JSON: write %s" % shown_value(meant.replace("\\", "/")) if meant != value else ""


def check_paths(value: Any, path: Path, problems: Problems) -> Any:
    if not isinstance(value, list):
        return problems.add(path, "must be a list of paths and globs, got %s" % shown_value(value))
    return [check_path(one, path + (index,), problems) for index, one in enumerate(value)]


def check_path_or_paths(value: Any, path: Path, problems: Problems) -> Any:
    """Check one path or glob, or a list of at least one; the clean value is always a list."""
    if isinstance(value, str):
        return [check_path(value, path, problems)]
    if isinstance(value, list) and not value:
        return problems.add(path, "must name at least one file or glob, or be left out")
    return check_paths(value, path, problems)


def check_command(value: Any, path: Path, problems: Problems) -> Any:
    """Check a program and its arguments, as a list of texts: no shell takes it apart."""
    if not isinstance(value, list) or not value or value[0] == "":
        return problems.add(path, "must be a list of texts, the program first, got %s" % shown_value(value))
    return check_texts(value, path, problems)


def check_launcher(value: Any, path: Path, problems: Problems) -> Any:
    """Check the words before a processor; {name} stands for a resource of the stage, doubled braces for braces."""
    words = [] if value == [] else check_command(value, path, problems)
    for place, word in enumerate(words or []):
        if isinstance(word, str) and launcher_names(word) is None:
            problems.add(path + (place,), "knows {%s}; a brace is written twice, got %s" % ("}, {".join(LAUNCHER_NAMES), shown_value(word)))
    return words


def launcher_names(word: str) -> Optional[List[str]]:
    """Return the resources that a launcher's word names, None if its braces are not in order."""
    names: List[str] = []
    rest = word
    while rest:
        place = min([rest.find(brace) for brace in "{}" if brace in rest], default=-1)
        if place < 0:
            return names
        rest = rest[place:]
        name = next((one for one in LAUNCHER_NAMES if rest.startswith("{%s}" % one)), "")
        if rest[:2] not in ("{{", "}}") and not name:
            return None
        names += [name] if name else []
        rest = rest[len(name) + 2:]
    return names


def check_max_rejects(value: Any, path: Path, problems: Problems) -> Any:
    if value is None or is_integer(value) and value >= 0:
        return value
    share = value[:-1] if isinstance(value, str) and value.endswith("%") else ""
    if share and share.count(".") <= 1 and share.replace(".", "").isdigit() and share.isascii() and float(share) <= 100:
        return value
    return problems.add(path, "must be an integer >= 0 or a share such as \"1%%\", got %s" % shown_value(value))


def check_output_globs(value: Any, path: Path, problems: Problems) -> Any:
    if isinstance(value, list) and not value:
        return problems.add(path, "must name at least one output, or be left out")
    clean = check_paths(value, path, problems)
    for index, one in enumerate(clean or ()):
        if any(name != "." and name.startswith(".") or name.endswith(".part") for name in (one or "").split("/")):
            problems.add(path + (index,),
                         "names that begin with a dot or end in .part are no outputs; give it another name, got %s" % shown_value(value[index]))
    return clean


def check_output_folder(value: Any, path: Path, problems: Problems) -> Any:
    clean = check_path(value, path, problems)
    if clean is None:
        return None
    top = clean.split("/")[0].lower()
    if clean == "." or top in RUNNER_FOLDERS:
        return problems.add(path, "must be a folder below the root other than %s, got %s" % (", ".join(RUNNER_FOLDERS), shown_value(value)))
    return clean


def check_processor(value: Any, path: Path, problems: Problems) -> Any:
    if check_text(value, path, problems) is None:
        return None
    if os.path.isabs(value):
        return value
    return check_path(value, path, problems)


def check_variables(value: Any, path: Path, problems: Problems) -> Any:
    """Check an object of environment variables; those of the runner's contract cannot be set."""
    if check_object(value, path, problems) is None:
        return None
    for name, text in value.items():
        if not name or "=" in name or "\0" in name:
            problems.add(path + (name,), "is not a name for an environment variable")
        elif name.upper().startswith("PIPELINE_"):
            problems.add(path + (name,), "is the runner's own (PIPELINE_*); choose another name")
        check_text(text, path + (name,), problems)
    return value


def check_exit_codes(value: Any, path: Path, problems: Problems) -> Any:
    if value is None:
        return None
    if not isinstance(value, list) or not all(is_integer(one) and 1 <= one <= 255 for one in value):
        return problems.add(path, "must be null or a list of integers from 1 to 255, got %s" % shown_value(value))
    return value
