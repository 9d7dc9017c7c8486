"""What a stage leaves in its output folder: finding it, clearing what an interrupted attempt left, cutting to a checkpoint.

Above the leaf file_systems. A listing maps the path of each file below the output folder to its signature. The listing from before a key's
first attempt, with the folders, is the baseline: what is new or changed since is the stage's output, or, if the attempt did
not finish, its leftovers. Names that begin with a dot (markers are such) and *.part files are neither; what else of these an
attempt makes is told of, for nobody may take it for an output.
"""
from __future__ import annotations

import os
from collections import namedtuple

import file_systems
from primitives import LONGEST_PATH, folded, is_junction, is_link, is_there, refuse_too_long, truncate, unlink

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Container, Dict, Iterable, List, Optional, Set, Tuple
    Listing = Dict[str, List[int]]

# Of the hidden names that are the runner's: markers, private folders of tasks.
RUNNER_ENDINGS = (".done", ".done.tmp", ".lost", ".tasks")
ITSELF = "./"           # in a baseline that knows of folders
NO_OUTPUT = "names that begin with a dot or end in .part are no outputs"


class Folder(namedtuple("Folder", "files parts hidden folders itself", defaults=((),))):
    """What is in an output folder. files, hidden: listings; hidden of what begins with a dot, folders unopened, but for what is
    the runner's.

    parts: the *.part files, sorted. folders: each as "<path>/", one before what is in it. itself: inode and device of the folder,
    empty where it is not there. All paths with forward slashes.
    """
    __slots__ = ()

    def baseline(self) -> Listing:
        """Return the files and, without a signature, the folders, with the output folder itself: what is not among these later is
        new."""
        return {**self.files, ITSELF: list(self.itself), **{path: [] for path in self.folders}}

    def new_since(self, baseline: Listing) -> List[str]:
        """Return the files that are new or changed and the folders that are new, sorted."""
        return sorted(changed_since(baseline, self.files) + [path for path in self.folders if path not in baseline])


NOTHING = Folder({}, [], {}, [])


def is_folder(path: str) -> bool:
    """Tell whether there is a folder at *path*, not a link to one."""
    return os.path.isdir(path) and not is_link(path)


def list_folder(folder: str) -> Folder:
    """Return what is in *folder* and below.

    A signature is size, mtime_ns, ctime_ns, inode, device, as of the link itself where it is one.
    """
    files: Listing = {}
    hidden: Listing = {}
    parts: List[str] = []
    found: List[str] = []
    folders = [("", folder)]
    while folders:
        prefix, current = folders.pop()
        try:
            entries = list(os.scandir(current))
        except FileNotFoundError:
            if prefix:
                refuse_too_long(current)
            continue
        for entry in entries:
            path = prefix + entry.name
            if entry.name.endswith(".part"):
                parts.append(path)
            elif entry.name.startswith("."):
                if not entry.name.endswith(RUNNER_ENDINGS):
                    _note(hidden, path, entry.path)
            elif entry.is_dir(follow_symlinks=False) and not is_junction(entry):
                folders.append((path + "/", entry.path))
                found.append(path + "/")
            else:
                _note(files, path, entry.path)
    return Folder(files, sorted(parts), hidden, found, identity(folder))


def identity(folder: str) -> List[int]:
    """Return inode and device of a folder, [] where it is not there."""
    try:
        found = os.stat(folder)
    except OSError:
        return []
    return [found.st_ino, found.st_dev]


def as_of_now(baseline: Listing, there: Folder) -> Listing:
    """Return a baseline of an earlier run as it is today, if the folder has been copied or mounted anew since.

    Then inode, device and change time of each file are others, too, and a file is what it was if its size and time are.
    """
    if not baseline.get(ITSELF) or not there.itself or baseline[ITSELF] == there.itself:
        return baseline
    return {path: there.files[path] if path in there.files and there.files[path][:2] == stamp[:2] else stamp for path, stamp in baseline.items()}


def _note(listing: Listing, path: str, full: str) -> None:
    """Add a file to a listing, unless it has gone since its folder was read: a stage at work beside may rename or remove what is its
    own."""
    try:
        stat = os.lstat(full)   # not of a directory's entry: on Windows that lacks inode and device
    except FileNotFoundError:
        refuse_too_long(full, LONGEST_PATH)
        return
    listing[path] = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, stat.st_dev]


def changed_since(baseline: Listing, now: Listing) -> List[str]:
    """Return the paths that are new or changed, sorted."""
    return sorted(path for path, stamp in now.items() if baseline.get(path) != stamp)


def no_outputs(before: Folder, now: Folder) -> List[str]:
    """Return what was made or changed that is no output for its name, sorted; part files of the processor kit are none of
    these."""
    parts = [path for path in now.parts if "~" not in path.split("/")[-1] and path not in before.parts]
    return sorted(changed_since(before.hidden, now.hidden) + parts)


def not_among(folder: str, paths: Iterable[str], names: Iterable[str]) -> List[str]:
    """Return those of *paths* that are none of the files *names*, on file systems that take no heed of case neither."""
    alike: Dict[str, List[str]] = {}
    for name in names:
        alike.setdefault(folded(name), []).append(name)
    return [path for path in paths if not _is_among(folder, path, alike.get(folded(path), []))]


def _is_among(folder: str, path: str, alike: List[str]) -> bool:
    if path in alike:
        return True
    full = os.path.join(folder, path)
    return bool(alike) and os.path.lexists(full) and any(file_systems.is_one_file(full, os.path.join(folder, one)) for one in alike)


def own_parts(parts: List[str], stage: str) -> List[str]:
    """Return the part files that the processor kit made for *stage*: <file>~<stage>~<token>.part"""
    return [path for path in parts if path.split("/")[-1].split("~")[-2:-1] == [stage]]


def leftovers(baseline: Listing, recorded: Container[str], foreign: Container[str], there: Folder) -> List[str]:
    """Return the files that clear_leftovers() would undo: not those of other stages, nor what was there before and is
    nobody's."""
    return [path for path in changed_since(baseline, there.files) if path not in foreign and (path not in baseline or path in recorded)]


def clear_leftovers(folder: str, there: Folder, baseline: Listing, recorded: Dict[str, Tuple[int, str]], foreign: Set[str],
                    prefix_digest: Callable[[str, int], str], others: Set[str]) -> List[str]:
    """Undo what an attempt that did not finish has done to *folder*; return what was done, a text for each file.

    New files are removed, and new folders that are empty then: a processor that makes its folders must be able to make
    them again. A folder of the stage's own that may only be read is written to all the same. A changed file is cut back to what the stage
    record says when its beginning still is that (an appending processor), otherwise removed if it is the stage's own; files of
    *foreign* stages are left alone, and what was there before and is nobody's is only named.
    there: what is in it, as of before *foreign* was told: what comes later is not looked at, and may be a stage's that is at
    work beside. recorded: {path: (bytes, SHA-256)} of the last success. others: the output folders of other stages, below this
    one or it itself (""): an empty folder in these may be theirs.
    """
    done = []
    ours = own_folders(there.folders, others)
    for path in leftovers(baseline, recorded, foreign, there):
        done += with_rights(folder, path, ours, _bring_back, os.path.join(folder, path), path, recorded.get(path), prefix_digest)
    for path in reversed(ours if ITSELF in baseline else []):
        if path not in baseline and _remove_empty(folder, path, ours):
            done.append("removed %s" % path)
    return done + ["%s, which was there before and is of no stage, may be half written, and stays" % path
                   for path in changed_since(baseline, there.files) if path in baseline and path not in recorded and path not in foreign]


def folders_of(path: str) -> Set[str]:
    """Return the folders in which a path lies: of a/b/c, a and a/b."""
    parts = path.split("/")
    return {"/".join(parts[:count]) for count in range(1, len(parts))}


def own_folders(folders: Iterable[str], others: Set[str]) -> List[str]:
    """Return those *folders*, each as "PATH/", that neither are, nor hold, nor lie in an output folder of *others*, see
    clear_leftovers()."""
    return [path for path in folders if not any(path.startswith(one) or one.startswith(path) for one in others)]


def with_rights(folder: str, path: str, ours: List[str], act: Callable[..., Any], *given: Any) -> Any:
    """Do act(*given) to *path* below *folder*; where the folder that it is in refuses that, and is one of *ours*, with more rights
    on it meanwhile."""
    try:
        return act(*given)
    except PermissionError:
        parent = path.rstrip("/").rpartition("/")[0] + "/"
        if parent not in ours:
            raise
    full = os.path.join(folder, parent)
    mode = os.stat(full).st_mode & 0o7777
    os.chmod(full, mode | 0o700)
    try:
        return act(*given)
    finally:
        os.chmod(full, mode)


def _remove_empty(folder: str, path: str, ours: List[str]) -> bool:
    try:
        with_rights(folder, path, ours, os.rmdir, os.path.join(folder, path))
    except OSError:
        return False
    return True


def undo_outputs(folder: str, outputs: List[str], before: Dict[str, Tuple[int, str]], prefix_digest: Callable[[str, int], str]) -> List[str]:
    """Return *outputs*, which are not what their record says, to what was *before* it; return what was done.

    A file whose beginning still is what was there before is cut back to it, any other is removed: nothing is built on
    what a power cut or somebody else has made of it.
    """
    done = []
    for path in outputs:
        full = os.path.join(folder, path)
        if not is_there(full) or is_folder(full):
            continue                    # a folder in its place was made by somebody else, and may hold what is theirs
        done += _bring_back(full, path, before.get(path), prefix_digest)
    return done


def _bring_back(full: str, path: str, wanted: Optional[Tuple[int, str]], prefix_digest: Callable[[str, int], str]) -> List[str]:
    """Cut a file back to *wanted* (bytes, SHA-256) if it still begins with that, else remove it; return what was done."""
    if wanted is not None and not is_link(full) and os.path.getsize(full) >= wanted[0] and prefix_digest(full, wanted[0]) == wanted[1]:
        if os.path.getsize(full) == wanted[0]:
            return []
        truncate(full, wanted[0])
        return ["cut %s back to %d bytes" % (path, wanted[0])]
    unlink(full)
    return ["removed %s" % path]


def remove_parts(folder: str, stage: str, keep: Set[str]) -> List[str]:
    """Remove the stage's part files but those in *keep*; return their paths."""
    gone = []
    for path in own_parts(list_folder(folder).parts, stage):
        if path not in keep:
            unlink(os.path.join(folder, path))
            gone.append(path)
    return gone


def cut_problem(folder: str, outputs: Dict[str, int], is_publishing: bool, finals: Dict[str, str]) -> str:
    """Return why a checkpoint's outputs are not there any more as it vouches for them, or "".

    While publishing, a part may have become its final file, of just that size.
    """
    for path, size in outputs.items():
        full = os.path.join(folder, path)
        if os.path.isfile(full) and not os.path.islink(full):
            if os.path.getsize(full) < size:
                return "%s is shorter than the checkpoint vouches for" % path
            continue
        final = os.path.join(folder, finals.get(path, ""))
        if not (is_publishing and path in finals and os.path.isfile(final) and os.path.getsize(final) == size):
            return "%s is missing" % path
    return ""


def cut_to_checkpoint(folder: str, outputs: Dict[str, int]) -> None:
    """Cut each output to the bytes that the checkpoint vouches for: a kill may have left more. Raises: OSError."""
    for path, size in outputs.items():
        full = os.path.join(folder, path)
        if is_there(full) and os.path.getsize(full) > size:
            truncate(full, size)
