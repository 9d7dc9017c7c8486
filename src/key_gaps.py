"""What a stage names, and its key does not know: a file that it reads so may change, and the stage is skipped all the same.

    args, env, params of a stage -> files below the root that neither `inputs` nor `watch` names -> lines for `validate`
    paths of a stage -> those that mean something else than they seem to -> the same

A guess from names only: what a program opens by itself is seen by nobody. Nothing is read but folders, nothing is written.
"""
from __future__ import annotations

import os
import re

import file_digests

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Iterator, List, Tuple

    from model import StageSpec

LONGEST_NAME = 1024         # characters: no longer text is taken for a path
MODULE_ENDINGS = (".py", ".so", ".pyd")
_UNEXPANDED = re.compile(r"~|.*\$(\{|[A-Za-z_])", re.DOTALL)


def find_gaps(root: str, stage: StageSpec) -> List[str]:
    """Return a line for each file, or folder of modules, of *root* that the stage names and its key does not know."""
    lines = []
    for place, text in _texts(stage):
        for path in dict.fromkeys(_below(root, word) for word in (text, text.partition("=")[2])):
            if path and os.path.isfile(os.path.join(root, path)) and not _is_known(stage, path):
                lines.append("%s names %s, which is not in the key: a change of it runs nothing; add it to watch, or to inputs" % (place, path))
    for word in stage.env.get("PYTHONPATH", "").split(os.pathsep):
        path = _below(root, word)
        patterns = [path + "/**/*" + ending for ending in MODULE_ENDINGS] if path else []
        gaps = [pattern for pattern in patterns if any(not _is_known(stage, module) for module in file_digests.expand(root, pattern))]
        if gaps:
            lines.append("env.PYTHONPATH names %s, whose modules are not in the key: a change of them runs nothing; add %s to watch" % (
                path, ", ".join(gaps)))
    return lines


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
    yield from _inside("params", stage.params)


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


def _is_known(stage: StageSpec, path: str) -> bool:
    """Tell whether the key knows the file, or the stage itself makes it."""
    patterns = stage.inputs + stage.for_each + stage.watch
    own = stage.output_dir.rstrip("/") + "/"
    return path == stage.processor or path.startswith(own) or any(file_digests.path_matches(path, pattern) for pattern in patterns)
