"""Whether the programs of a pipeline could start, told from their first bytes: for `validate`, which starts nothing.

    stages, their launchers, onFailure, onSuccess -> the file of each -> what certainly keeps it from starting, or may -> (place in the spec, words)

Certain is what the system refuses whatever its settings are. What another machine or another PATH may have, or a stage may make
first, is only noted.
"""
from __future__ import annotations

import os
import shutil
import sys
import warnings

from model import FOR_WINDOWS
from primitives import open_file
from scan_shell import SHELLS
from spec_checks import program_kind
from spec_values import shown_value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, Iterator, List, Optional, Set, Tuple

    from model import PipelineSpec, StageSpec
    Verdict = Tuple[bool, str]          # (is certain, words)

LARGEST_SOURCE = 8 << 20
FIRST_BYTES = 4096


def find_problems(spec: PipelineSpec) -> Iterator[Tuple[Tuple[Any, ...], bool, str]]:
    """Yield (place in the spec, whether it is certain, words) for each program that cannot start, or may not."""
    seen: Dict[Tuple[str, str], List[Verdict]] = {}
    launchers: Set[Tuple[str, str]] = set()
    path = os.environ.get("PATH", "")
    made = tuple(stage.output_dir + "/" for stage in spec.stages)
    for number, stage in enumerate(spec.stages):
        key = stage.processor, stage.env.get("PATH", path)
        if key not in seen:
            seen[key] = list(judge(spec.root, *key))
        for is_certain, words in seen[key]:
            yield ("stages", number, "processor"), is_certain and not stage.launcher and not stage.processor.startswith(made), words
        for is_certain, words in _judge_launcher(spec.root, stage, key[1], launchers):
            yield ("stages", number, "launcher", 0), is_certain and not os.path.normpath(stage.launcher[0]).startswith(made), words
    for name, command in (("onFailure", spec.on_failure), ("onSuccess", spec.on_success)):
        for is_certain, words in judge(spec.root, command[0], path) if command else ():
            yield (name, 0), is_certain, words


def judge(root: str, program: str, path: str, windows: bool = sys.platform == "win32") -> Iterator[Verdict]:
    """Yield what keeps a program below *root* from starting; of those elsewhere, which are the system's, nothing."""
    kind, full = program_kind(program), os.path.join(root, program)
    if os.path.isabs(program) or kind == "powershell":
        return
    data = _read(full, LARGEST_SOURCE if kind == "python" else FIRST_BYTES)
    if data is not None:
        yield from _in_words(program, _judge_source(data) if kind == "python" else _judge_for_windows(program, data) if windows
                             else _judge_file(data, root, path))


def _judge_launcher(root: str, stage: StageSpec, path: str, seen: Set[Tuple[str, str]]) -> Iterator[Verdict]:
    """Yield what keeps a stage's launcher, if it is given with a path, from starting; nothing for one of *seen*, to which it is
    added.

    The system starts it as it is, whatever its ending. Which one of a mere name is found, depends on the machine.
    """
    if not stage.launcher or (stage.launcher[0], path) in seen or sys.platform == "win32":
        return
    seen.add((stage.launcher[0], path))
    import launch_helper
    word = launch_helper.launcher_words(stage.launcher[:1], stage.resources)[0]
    full = os.path.join(root, word)
    data = _read(full, FIRST_BYTES) if "/" in word else None
    if "/" in word and not os.path.lexists(full):
        yield not os.path.isabs(word), "there is no file %s" % word     # of another path it may be there where the runs are
    elif data is not None and not os.access(full, os.X_OK):
        yield True, "%s is not executable; chmod +x it" % word
    elif data is not None:
        yield from _in_words(word, _judge_file(data, root, path))


def _read(full: str, count: int) -> Optional[bytes]:
    try:
        with open_file(full) as file:
            return bytes(file.read(count))
    except OSError:
        return None                     # one may be allowed to run what one may not read


def _in_words(program: str, verdicts: Iterator[Verdict]) -> Iterator[Verdict]:
    for is_certain, words in verdicts:
        yield is_certain, "%s cannot start: %s" % (shown_value(program), words) if is_certain else "%s: %s" % (shown_value(program), words)


def _judge_source(data: bytes) -> Iterator[Verdict]:
    if b"\0" in data:
        # Older Pythons run what stands before it, and all run what is behind the source in an archive.
        yield False, "it is no Python source, as there is a null byte in it"
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compile(data, "", "exec", 0, True)
    except SyntaxError as error:
        if len(data) < LARGEST_SOURCE:
            yield True, "line %d is no Python %d.%d source: %s" % (error.lineno or 1, sys.version_info[0], sys.version_info[1], error.msg)
    except (ValueError, OverflowError, RecursionError, MemoryError):
        pass                            # the scan tells of it


def _judge_for_windows(program: str, data: bytes) -> Iterator[Verdict]:
    """Yield what keeps a file from starting on Windows: programs begin with MZ, whatever they are called; batch files are known
    by their ending."""
    if not data.startswith(b"MZ") and not program.lower().endswith((".bat", ".cmd", ".com")):
        yield True, "Windows starts no such file; " + FOR_WINDOWS


def _judge_file(data: bytes, root: str, path: str) -> Iterator[Verdict]:
    """Yield what keeps a file from starting on a POSIX system, which looks at its first bytes."""
    first = data.split(b"\n", 1)[0] + b"\n"
    if not data:
        yield True, "it is empty"
    elif data.startswith(b"\xef\xbb\xbf#!"):
        yield True, "a byte order mark stands before its first line; save it without"
    elif data.startswith(b"#!"):
        yield from _judge_first_line(first, root, path)
    elif b"\0" not in data:             # programs hold some; what else the system may run, nobody knows here
        yield True, "a script needs a first line such as #!/bin/sh"


def _judge_first_line(first: bytes, root: str, path: str) -> Iterator[Verdict]:
    words = [os.fsdecode(word) for word in first[2:].split()]
    if not words:
        yield True, "its first line names no program; write one such as #!/bin/sh"
        return
    program = os.path.basename(words[0])
    is_env = program == "env"
    if first.endswith(b"\r\n"):
        refuses = program in SHELLS or program.startswith("python")     # an option with such a sign in it; perl passes over it
        yield len(words) == 1 or refuses or is_env and words[1] != "-S", "its first line ends with a carriage return (CRLF); save it with plain line ends"
    elif not os.path.exists(os.path.join(root, words[0])):
        yield True, "its first line names %s, which is not there; install it, or name another" % words[0]
    elif is_env:
        name = next((word for word in words[1:] if word != "-S" and "=" not in word), "")
        if name and not name.startswith("-") and not shutil.which(name, path=path):
            yield False, "its first line asks for %s, which is not on PATH here; install it, or the stage fails" % name
