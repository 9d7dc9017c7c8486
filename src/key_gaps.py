"""What a stage names, and its key does not know: a file that it reads so may change, and the stage is skipped all the same.

    args, env, launcher, params of a stage -> files below the root that neither `inputs` nor `watch` names -> lines for `validate`
    paths of a stage -> those that mean something else than they seem to -> the same

A guess from names only: what a program opens by itself is seen by nobody. Nothing is read but folders, nothing is written.
"""
from __future__ import annotations

import os
import re

import file_digests

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, FrozenSet, Iterator, List, Sequence, Tuple

    from model import StageSpec

LONGEST_NAME = 1024         # characters: no longer text is taken for a path
MODULE_ENDINGS = (".py", ".so", ".pyd")
SEARCHED = ("env.PATH", "env.PYTHONPATH")       # folders of programs, and of modules, of which is told below
ROOTS = ("$PIPELINE_ROOT/", "${PIPELINE_ROOT}/")
OWN_FOLDERS = ("bin", "src", "state", "locks")      # a word that is called so means something else, most likely
_UNEXPANDED = re.compile(r"~|.*\$(\{|[A-Za-z_])", re.DOTALL)


def find_gaps(root: str, stage: StageSpec, made: Sequence[str] = (), others: Sequence[str] = ()) -> List[str]:
    """Return a line for each file, glob or folder of *root* that the stage names and its key does not know. *made*: the output
    folders of all stages. *others*: further files that need no line, as the modules that the processor imports."""
    lines, known = [], _Known(root, stage, others)
    for place, text in _texts(stage):
        for path in filter(None, dict.fromkeys(_below(root, word) for word in _words(text))):
            if os.path.isfile(os.path.join(root, path)) and path not in known or _is_unknown_glob(root, known, path):
                lines.append("%s names %s, which is not in the key: a change of it runs nothing; add it to watch, or to inputs" % (place, path))
            elif place not in SEARCHED and not place.startswith("launcher[") and _is_unknown_folder(root, known, path, made):
                lines.append("%s names the folder %s, whose files are not in the key: a change of them runs nothing; add %s/** to watch" % (place, path, path))
    for word in stage.env.get("PYTHONPATH", "").split(os.pathsep):
        path = _below(root, word)
        patterns = [path + "/**/*" + ending for ending in MODULE_ENDINGS] if path else []
        gaps = [pattern for pattern in patterns if any(module not in known for module in file_digests.expand(root, pattern))]
        if gaps:
            lines.append("env.PYTHONPATH names %s, whose modules are not in the key: a change of them runs nothing; add %s to watch" % (
                path, ", ".join(gaps)))
    return lines


class _Known:
    """Which files the key of a stage knows, or the stage itself makes."""

    def __init__(self, root: str, stage: StageSpec, others: Sequence[str]) -> None:
        self.root, self.stage, self.others = root, stage, others
        self.patterns = list(stage.inputs + stage.for_each + stage.watch)
        self._found: Dict[str, FrozenSet[str]] = {}

    def __contains__(self, path: str) -> bool:
        own = self.stage.output_dir.rstrip("/") + "/"
        return path == self.stage.processor or path in self.others or path.startswith(own) or any(
            file_digests.path_matches(path, pattern) and ("**" not in pattern or path in self._files_of(pattern)) for pattern in self.patterns)

    def names_some_below(self, start: str) -> bool:
        """Tell whether a path or glob leads below a folder, given with a slash."""
        return any(pattern.startswith(start) or file_digests.path_matches(start + "x", pattern) and (
            "**" not in pattern or any(path.startswith(start) for path in self._files_of(pattern))) for pattern in self.patterns)

    def _files_of(self, pattern: str) -> FrozenSet[str]:
        """Return the files of a glob with `**`, which goes through no hidden folder and no link, whatever their paths look like."""
        if pattern not in self._found:
            try:
                self._found[pattern] = frozenset(file_digests.expand(self.root, pattern))
            except OSError:
                self._found[pattern] = frozenset()      # a run would fail by it
        return self._found[pattern]


def find_misreadings(root: str, stage: StageSpec) -> List[str]:
    """Return a line for each path of the stage that a shell would read otherwise, or that names the output folder a second
    time."""
    lines = []
    texts = [("outputDir", "", stage.output_dir)] + [("%s[%d]" % (key, number), below, text) for key, below, paths in (
        ("inputs", "", stage.inputs), ("forEach", "", stage.for_each), ("watch", "", stage.watch),
        ("outputs", stage.output_dir + "/", stage.outputs or ())) for number, text in enumerate(paths)]
    for place, below, text in texts:
        if _UNEXPANDED.match(text) and not file_digests.expand(root, below + text) and not os.path.isdir(os.path.join(root, below + text)):
            lines.append("%s is %s: ~ and $VARS are not expanded; write the path itself" % (place, text))
    own = stage.output_dir.rstrip("/") + "/"
    for number, text in enumerate(stage.outputs or ()):
        if text.startswith(own) and not os.path.isdir(os.path.join(root, own, own)):
            lines.append("outputs[%d] is %s, which means %s%s: outputs are relative to outputDir; write %s" % (
                number, text, own, text, text[len(own):]))
    return lines


def _texts(stage: StageSpec) -> Iterator[Tuple[str, str]]:
    """Yield (place, text) of each text with which the stage could tell its processor of a file."""
    for number, text in enumerate(stage.args):
        yield "args[%d]" % number, text
    for name, text in stage.env.items():
        yield "env.%s" % name, text
    for number, text in enumerate(stage.launcher):
        yield "launcher[%d]" % number, text
    yield from _inside("params", stage.params)


def _unrooted(word: str) -> str:
    """Return a path as it is below the root, which it may name first."""
    return next((word[len(start):] for start in ROOTS if word.startswith(start)), word)


def _words(text: str) -> List[str]:
    """Return what in a text may be a path: all of it, what is behind its first "=", and each of a list."""
    found = [text, text.partition("=")[2]]
    return [_unrooted(word) for word in found + [part for one in found for part in re.split("[,%s]" % os.pathsep, one)]]


def _is_unknown_glob(root: str, known: _Known, path: str) -> bool:
    """Tell whether a path is a glob, in a folder that is there or at the top with an ending, and names a file that the key does not
    know."""
    first, slash, _ = path.partition("/")
    if not file_digests.has_wildcard(path) or (file_digests.has_wildcard(first) or not os.path.isdir(os.path.join(root, first)) if slash
                                               else not path.rpartition(".")[2].isalnum()):
        return False
    try:
        return any(found not in known for found in file_digests.expand(root, path))
    except OSError:
        return False


def _is_unknown_folder(root: str, known: _Known, path: str, made: Sequence[str]) -> bool:
    """Tell whether a path is a folder with files of which the key knows none; not where a stage may write."""
    start = path.rstrip("/") + "/"
    others = [folder.rstrip("/") + "/" for folder in (*OWN_FOLDERS, known.stage.output_dir, *made)]
    if any(other.startswith(start) or start.startswith(other) for other in others) or known.names_some_below(start):
        return False
    return any(not file_digests.is_hidden(name) for _, _, names in os.walk(os.path.join(root, path)) for name in names)


def _inside(place: str, value: Any) -> Iterator[Tuple[str, str]]:
    if isinstance(value, str):
        yield place, value
    elif isinstance(value, dict):
        for name, one in value.items():
            yield from _inside("%s.%s" % (place, name), one)
    elif isinstance(value, list):
        for number, one in enumerate(value):
            yield from _inside("%s[%d]" % (place, number), one)


def _below(root: str, word: str) -> str:
    """Return the path that *word* would be, relative to *root*, with "/"; "" for what is no path below it."""
    if not word or len(word) > LONGEST_NAME:
        return ""
    try:
        path = os.path.relpath(os.path.join(root, word), root).replace(os.sep, "/")
    except ValueError:
        return ""               # Windows: on another drive
    return "" if path.split("/")[0] in (".", "..") else path
