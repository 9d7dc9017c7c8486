"""Where a command may write the file that it was asked for: not over what the runner, or a pipeline, lives by.

Above the leaves.
"""
from __future__ import annotations

import os
import stat

import file_digests
from model import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional, Sequence

    from model import StageSpec

OWN_FOLDERS = ("state", "locks", "src", "bin")


def checked(path: str, option: str, root: str, spec_path: str, stages: Sequence[StageSpec] = (), is_appended: bool = False) -> str:
    """Return where to write for *path*: links are followed, as a shell would. *option*: how the user named it. is_appended: nothing is replaced.

    Raises: UsageError where the file would replace the pipeline file, a record or program of the runner, or something that is no
    file (a device, a pipe), and, with *stages*, where it would be taken for an input or an output.
    """
    full = os.path.realpath(path)
    problem = _kind(full, is_appended) or _place(full, os.path.realpath(root), os.path.realpath(spec_path), stages)
    if problem:
        raise UsageError("%s %s; choose another place with %s FILE" % (path, problem, option))
    return full


def _place(full: str, root: str, spec_path: str, stages: Sequence[StageSpec]) -> str:
    if os.path.normcase(full) == os.path.normcase(spec_path):
        return "is the pipeline file"
    below = _below(full, root)
    if below is None:
        return ""
    if below.split("/")[0] in OWN_FOLDERS:
        return "is in a folder of the runner's own"
    for stage in stages:
        if below.startswith(stage.output_dir + "/"):
            return "is in the output folder of stage %s" % stage.name
        for pattern in stage.inputs + stage.for_each + stage.watch:
            if file_digests.path_matches(below, pattern):
                return "would be an input of stage %s (%s)" % (stage.name, pattern)
    return ""


def _kind(full: str, is_appended: bool) -> str:
    """Return what is wrong with what stands at a path, "" for a file or nothing."""
    try:
        mode = os.stat(full).st_mode
    except OSError:
        return ""
    if stat.S_ISDIR(mode):
        return "is a folder"
    return "" if stat.S_ISREG(mode) or is_appended else "is a device or a pipe, no file"


def _below(full: str, root: str) -> Optional[str]:
    return os.path.relpath(full, root).replace(os.sep, "/") if full.startswith(root.rstrip(os.sep) + os.sep) else None
