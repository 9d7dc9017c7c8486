"""What records say of the files in output folders: outputs of a success, leftovers of an attempt that did not finish, of this stage or of others.

Above the leaves. A stage that is run again clears its leftovers itself (earlier_outputs); who takes its record away must do so,
for without it nobody can tell a file that is half written from one that somebody has put there.
"""
from __future__ import annotations

import contextlib
import os

import durable_files
import file_digests
import stage_locks
import stage_outputs
import stage_records
import state_store
from primitives import is_link

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import AbstractSet, Any, Dict, Iterator, List, Optional, Set, Tuple

    from model import PipelineSpec
    from state_store import StateStore
    Json = Dict[str, Any]


# --- of a success ----------------------------------------------------------------------------------------------------

def recorded_paths(store: StateStore, record: Optional[Json]) -> List[str]:
    """Return the outputs of a stage as its record has them, or, where that leaves them to it, its task log."""
    if record is None:
        return []
    if not stage_records.outputs_are_logged(record):
        return _listed(record)
    import task_log
    logged = [path for path, _, _ in task_log.find_outputs(store.folder, record["stage"]) or []]
    return list(dict.fromkeys([*logged, *_listed(record)]))


def believed_paths(store: StateStore, record: Optional[Json]) -> List[str]:
    """As recorded_paths(), but nothing of a damaged task log: it vouches for nothing, and its own stage sets it aside when its
    turn comes."""
    if record is None or not stage_records.outputs_are_logged(record):
        return recorded_paths(store, record)
    import task_log
    try:
        return recorded_paths(store, record)
    except task_log.Damaged:
        return _listed(record)


def _listed(record: Json) -> List[str]:
    return [output["path"] for output in record["outputs"]]


def outputs_of_others(root: str, output_dir: str, besides: Set[str]) -> Set[str]:
    """Return what is recorded of stages other than *besides*, in this spec or not, as paths below *output_dir*."""
    ours = output_dir + "/"
    return {path[len(ours):] for folder, paths in _made_by_others(root, besides)
            for path in ["%s/%s" % (folder, one) for one in paths] if path.startswith(ours)}


def folders_of_others(spec: PipelineSpec, stage: str, output_dir: str) -> Set[str]:
    """Return the output folders of other stages, in the spec or recorded, as paths below *output_dir* that end in "/"; "" for it
    and what it lies in."""
    ours = output_dir + "/"
    found = {other.output_dir + "/" for other in spec.stages if other.name != stage}
    found |= {folder + "/" for folder, _ in _made_by_others(spec.root, {stage, *(other.name for other in spec.stages)})}
    return {"" if ours.startswith(one) else one[len(ours):] for one in found if one.startswith(ours) or ours.startswith(one)}


def _made_by_others(root: str, besides: Set[str]) -> Iterator[Tuple[str, List[str]]]:
    """Yield (output folder, paths below it) of what is recorded of stages other than *besides*."""
    import task_log
    store = state_store.StateStore(root, writable=False)
    for name in store.stage_names():
        if name in besides:
            continue
        try:
            record = store.stage(name)
            paths = recorded_paths(store, record)
        except (state_store.StateError, task_log.Damaged, OSError, ValueError):
            continue                # damaged: it vouches for nothing
        yield stage_records.made_elsewhere(record, ""), paths


# --- of an attempt that did not finish -------------------------------------------------------------------------------

def unfinished_baseline(record: Optional[Json], folder: str) -> Optional[Json]:
    """Return the listing of *folder* from before the unfinished work that a stage record tells of, None if there is none."""
    baseline = record.get("baseline") if record is not None and record["lastStatus"] != "ok" else None
    if record is None or not isinstance(baseline, dict):
        return None
    left, there = record.get("left"), stage_outputs.list_folder(folder)
    baseline = stage_outputs.as_of_now(baseline, there)
    if isinstance(left, list):
        # It came to its end and said what it left: anything else somebody has put there since, and it is theirs.
        baseline = {**baseline, **{path: stamp for path, stamp in there.baseline().items() if path not in left}}
    return baseline


def declared_beside(spec: PipelineSpec, record: Json) -> Set[str]:
    """Return what, in the folder of a recorded stage, only stages have declared that may be at work beside it: paths below the
    folder.

    A run that was killed may have had them at work at once, and no record knows: what they have made for a checkpoint is theirs.
    """
    stage = next((one for one in spec.stages if one.name == record["stage"]), None)
    if spec.order != "graph" or stage is None or stage.outputs is None or stage_records.made_elsewhere(record, stage.output_dir):
        return set()
    ours, found = stage.output_dir + "/", set()
    folders = [(one.output_dir + "/", one.outputs) for one in spec.stages if one.outputs and one.name != stage.name]
    others = [(theirs, file_digests.Patterns(globs)) for theirs, globs in folders if ours.startswith(theirs) or theirs.startswith(ours)]
    own = file_digests.Patterns(stage.outputs)
    for path in stage_outputs.list_folder(os.path.join(spec.root, stage.output_dir)).files if others else ():
        full = ours + path
        if not own.matches(path) and any(full.startswith(theirs) and globs.matches(full[len(theirs):]) for theirs, globs in others):
            found.add(path)
    return found


def leftovers(root: str, record: Optional[Json], spared: AbstractSet[str] = frozenset()) -> List[str]:
    """Return what the unfinished work that a stage record tells of has left new or changed, and no other stage has recorded:
    paths below the root.

    spared: paths below the output folder that are left alone.
    """
    output_dir = stage_records.made_elsewhere(record, "")
    folder = os.path.join(root, output_dir)
    baseline = unfinished_baseline(record, folder) if output_dir else None
    if baseline is None or record is None:
        return []
    foreign = outputs_of_others(root, output_dir, {record["stage"]}) | spared
    return ["%s/%s" % (output_dir, path) for path in
            stage_outputs.leftovers(baseline, {one["path"] for one in record["outputs"]}, foreign, stage_outputs.list_folder(folder))]


def clear_leftovers(spec: PipelineSpec, record: Json) -> List[str]:
    """Undo what the unfinished work that a stage record tells of has left; return what was done. Durable on return.

    The caller holds the stage, and is alone_in() its folder. Raises: OSError.
    """
    output_dir = stage_records.made_elsewhere(record, "")
    folder = os.path.join(spec.root, output_dir)
    baseline = unfinished_baseline(record, folder)
    if baseline is None:
        return []
    recorded = {one["path"]: (one["bytes"], one["sha256"]) for one in record["outputs"]}
    there = stage_outputs.list_folder(folder)
    foreign = outputs_of_others(spec.root, output_dir, {record["stage"]}) | declared_beside(spec, record)
    done = stage_outputs.clear_leftovers(folder, there, baseline, recorded, foreign, file_digests.hash_prefix,
                                         folders_of_others(spec, record["stage"], output_dir))
    if done:
        sync_below(folder)
    return done


@contextlib.contextmanager
def alone_in(root: str, output_dir: str) -> Iterator[None]:
    """Hold an output folder against the runs of all pipelines below the root. Raises: LockHeld while one is at work in it;
    OSError."""
    locks = stage_locks.FolderLocks(root)
    try:
        if not locks.try_acquire(output_dir):
            raise stage_locks.LockHeld("a run is at work in %s, where an attempt that did not finish has left files; wait for it" % output_dir)
        yield
    finally:
        locks.close()


def link_on_the_way(root: str, path: str) -> str:
    """Return which folder on the way to *path* is a link: what lies behind it may be anything, and is left alone."""
    parts = path.split("/")
    for count in range(1, len(parts)):
        folder = "/".join(parts[:count])
        full = os.path.join(root, folder)
        if is_link(full):
            return "%s is a %s" % (folder, "symbolic link" if os.path.islink(full) else "junction")
    return ""


def sync_below(folder: str) -> None:
    """What was cleared must not come back with a power cut, beside a record of success: btrfs brings a removal to the disk with
    its folder only."""
    for one, _, _ in os.walk(folder):
        durable_files.sync_folder_if_there(one)     # a stage at work beside may have removed it
