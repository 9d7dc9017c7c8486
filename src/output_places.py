"""Where a command may write the file that it was asked for: not over what the runner, or a pipeline, lives by.

Above the leaves.
"""
from __future__ import annotations

import os
import re
import stat
import sys

import file_digests
import stage_locks
from durable_files import sync_file, sync_folder
from ledger_format import KEY_WORD
from model import UsageError
from primitives import as_here, close_quietly, remove_quietly, replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Optional, Sequence, Tuple

    from model import StageSpec

RANDOM_BYTES = 8
TRIES = 10                  # to make a temporary file that is locked before anybody looks at it
OWN_FOLDERS = ("state", "locks", "src", "bin")


def checked(path: str, option: str, root: str, spec_path: str, stages: Sequence[StageSpec] = (), is_appended: bool = False) -> str:
    """Return where to write for *path*: links are followed, as a shell would. *option*: how the user named it. is_appended:
    nothing is replaced.

    Raises: UsageError where the file would replace the pipeline file, a record or program of the runner, or something that is no
    file (a device, a pipe), and, with *stages*, where it would be taken for an input or an output.
    """
    full = os.path.realpath(path)
    problem = "names a folder" if path.endswith(("/", os.sep)) else _kind(path, is_appended) or _place(full,
        os.path.realpath(root), os.path.realpath(spec_path), stages) or _program(full, root, stages)
    if problem:
        raise UsageError("%s %s; choose another place with %s FILE" % (path, problem, option))
    return full


def _place(full: str, root: str, spec_path: str, stages: Sequence[StageSpec]) -> str:
    if as_here(full) == as_here(spec_path):
        return "is the pipeline file"
    below = _below(full, root)
    if below is None:
        return ""
    if as_here(below).split("/")[0] in OWN_FOLDERS:
        return "is in a folder of the runner's own"
    for stage in stages:
        if as_here(below).startswith(as_here(stage.output_dir) + "/"):
            return "is in the output folder of stage %s" % stage.name
        for pattern in stage.inputs + stage.for_each + stage.watch:
            if file_digests.path_matches(below, pattern):
                return "would be an input of stage %s (%s)" % (stage.name, pattern)
    return ""


def _program(full: str, root: str, stages: Sequence[StageSpec]) -> str:
    """Return whose processor, launcher or module a path is: they may lie outside of bin/, and even of the root."""
    for stage in stages:
        for word in (stage.processor, *stage.launcher[:1]):
            program = os.path.realpath(os.path.join(root, word))
            if as_here(full) == as_here(program):
                return "is a program of stage %s" % stage.name
        folder = os.path.dirname(os.path.realpath(os.path.join(root, stage.processor)))
        if full.endswith(".py") and as_here(full).startswith(as_here(folder) + os.sep):
            return "lies where stage %s has its modules" % stage.name
    return ""


def _kind(path: str, is_appended: bool) -> str:
    """Return what is wrong with what stands at a path, or where a link there leads to, "" for a file or nothing."""
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISREG(mode):
            with open(path, "rb") as file:
                if file.read(len(KEY_WORD) + 1) == KEY_WORD.encode("ascii") + b" ":
                    return "is a key that seals a ledger"
    except OSError:
        return ""
    if stat.S_ISDIR(mode):
        return "is a folder"
    return "" if stat.S_ISREG(mode) or is_appended and stat.S_ISCHR(mode) else "is a device or a pipe, no file"


def _below(full: str, root: str) -> Optional[str]:
    above = root.rstrip(os.sep) + os.sep        # perhaps not written as here: not all systems tell case apart
    return full[len(above):].replace(os.sep, "/") if as_here(full[:len(above)]) == as_here(above) else None


# --- writing there ---------------------------------------------------------------------------------------------------

def write_whole(path: str, write: Callable[[Any], Any]) -> None:
    """Let write(file) make the content of *path*; whoever reads sees all of the old or all of the new. Any number of calls at
    once: the last one's stays.

    Durable on return. What was there before keeps its mode. Until then it is .NAME.RANDOM.tmp beside it, under a lock of its own;
    what dead calls have left so is removed. Raises: OSError, what write() raises; then nothing has changed, and nothing is left.
    """
    folder, name = os.path.split(os.path.abspath(path))
    temporary = ""
    try:
        descriptor, temporary = _create_locked(folder, name)
        try:
            _remove_dead(folder, name, temporary)
            with os.fdopen(os.dup(descriptor), "w+b") as file:
                write(file)
                file.flush()
            _keep_mode(path, temporary)
            sync_file(descriptor)
            if sys.platform != "win32":     # there, an open file can be neither renamed nor removed
                replace(temporary, path)
        finally:
            close_quietly(descriptor)
        if sys.platform == "win32":
            replace(temporary, path)
        sync_folder(folder)
    except OSError as error:
        remove_quietly(temporary)
        raise _told(error, path, temporary) from error
    except BaseException:
        remove_quietly(temporary)
        raise


def _told(error: OSError, path: str, temporary: str) -> OSError:
    """Return the error with the name of the target, and with a remedy where another place would help."""
    is_ours = not temporary or error.filename in (None, temporary)
    told = OSError(error.errno, error.strerror or str(error), path if is_ours else error.filename)
    if is_ours or os.path.dirname(os.fsdecode(error.filename)) == os.path.dirname(path):
        told.remedy = "; choose another place with -o FILE"     # type: ignore[attr-defined]
    return told


def _create_locked(folder: str, name: str) -> Tuple[int, str]:
    """Open a new file that no other call takes for a dead one's; return its descriptor and path."""
    for count in range(1, TRIES + 1):
        # Not by the number of the process: containers may have the same.
        path = os.path.join(folder, ".%s.%s.tmp" % (name, os.urandom(RANDOM_BYTES).hex()))
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0), 0o666)
        try:
            is_ours = stage_locks.try_kernel_lock(descriptor)
        except OSError:
            is_ours = True              # a file system without locks: nobody removes it
        os.lseek(descriptor, 0, os.SEEK_SET)
        if count == TRIES or is_ours and os.path.lexists(path):
            break                       # locked or not, after so many turns: then it is only not known for a living one's
        os.close(descriptor)            # somebody took it for a dead one's, before the lock
        remove_quietly(path)
    return descriptor, path


def _remove_dead(folder: str, name: str, own: str) -> None:
    """Remove what calls that are dead have left beside a target."""
    pattern = re.compile(r"\.%s\.[0-9a-f]{%d}\.tmp" % (re.escape(name), 2 * RANDOM_BYTES))
    for other in os.listdir(folder):
        path = os.path.join(folder, other)
        if path == own or not pattern.fullmatch(other):
            continue
        try:
            descriptor = os.open(path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0))
            try:
                is_dead = stage_locks.try_kernel_lock(descriptor)
                if is_dead and sys.platform != "win32":
                    remove_quietly(path)
            finally:
                os.close(descriptor)
            if is_dead:
                remove_quietly(path)
        except OSError:
            pass                        # not ours to remove, or gone


def _keep_mode(path: str, temporary: str) -> None:
    try:
        mode = stat.S_IMODE(os.stat(path).st_mode)
        if sys.platform != "win32":
            os.chmod(temporary, mode)
    except OSError:
        pass                            # nothing there, or not ours
