"""The commands that tidy up: clean (outputs of stages), reset (what is known of stages), gc (records and logs of old runs).

Above the leaves and below the runner. Each lists what it would do, and does it only with --yes; under the locks of the stages;
entered in the ledger before anything is touched, so that a kill leaves an entry that promised more than was done, and never a
change that nobody owns up to. Doing it again finishes it.

    clean   ledger entry, stage record ("cleaned"), marker, outputs, what is private to a former stage, folders that are empty now
    reset   ledger entry, marker, stage record, checkpoint and what else state/ holds of the stage
"""
from __future__ import annotations

import contextlib
import functools
import os
from collections import namedtuple

import durable_files
import process_tree
import recorded_outputs
import run_ledger
import stage_locks
import stage_markers
import stage_records
import state_store
import task_files
import task_log
from file_digests import Digests, FileChanged, has_wildcard, path_matches, signature
from model import EXIT_OK, StageSpec, shown_names
from primitives import BEFORE, is_there
from recorded_outputs import link_on_the_way
from spec_values import name_problem, path_problem
from stage_order import Folders, candidates
from stage_waits import edges_of
from stage_outputs import is_folder, list_folder, own_folders, own_parts, with_rights
from state_store import StateError, StateStore, utc_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Set, Tuple

    from console import Console
    from model import Clock, Options, PipelineSpec
    from run_ledger import RunLedger
    Json = Dict[str, Any]

SHOWN_NAMES = 20
# What state/ holds of a stage beside its record; %s is its name.
STATE_FILES = ("progress_%s.json", "progress_%s.json.old", "progress_%s.whole", "counts_%s.json", "inputs_%s.json", "tasks_%s.jsonl", "files_%s.bin")


class Cleaning(namedtuple("Cleaning", "stage record remove keep left private")):
    """What clean would do with a stage: remove [(path, its entry in the record, signature)], keep [(path, why)]; where no next
    run will, undo what is left [path] of an attempt that did not finish, and remove what was never an output [path]: part files,
    folders of tasks. Paths below the root."""

    __slots__ = ()


def do(spec: PipelineSpec, stages: List[StageSpec], options: Options, console: Console, clock: Clock, new_ledger: Callable[..., RunLedger]) -> int:
    """Do one of the commands; return the exit code. Raises: errors with exit_code; OSError.

    stages: those named, or all. new_ledger: the runner's function of that name.
    """
    if options.command == "gc":
        import run_pruning
        return run_pruning.gc(spec, options, console, clock, new_ledger)
    if options.yes:
        _do_locked(spec, stages, options, console, clock, new_ledger)
        return EXIT_OK
    store = StateStore(spec.root, writable=False, now=clock.time)
    if options.command == "clean":
        for stage in stages:
            _show(look(spec, stage, store), "would remove", console)
    else:
        for stage in stages:
            _show_left(_leftovers(spec, _sound_record(store, stage.name)), console)
            names = forgotten(spec, stage, _sound_record(store, stage.name))
            for name in names[:SHOWN_NAMES]:
                console.line("would forget %s" % name)
            if len(names) > SHOWN_NAMES:
                console.line("would forget %d more files of stage %s" % (len(names) - SHOWN_NAMES, stage.name))
    console.line("%s: nothing was done: give --yes" % options.command)
    return EXIT_OK


def former_stages(spec: PipelineSpec, names: Sequence[str]) -> List[StageSpec]:
    """Return those of the named stages that are not in the pipeline any more and whose records it has left; of each only name and
    output folder are set."""
    store, known = StateStore(spec.root, writable=False), {stage.name for stage in spec.stages}
    found = [_former(spec, store, name) for name in dict.fromkeys(names) if not name_problem(name) and name not in known]
    return [stage for stage in found if stage is not None]


def _former(spec: PipelineSpec, store: StateStore, name: str) -> Optional[StageSpec]:
    record = store.stage(name)
    if record is None or record.get("pipeline") != spec.name or not isinstance(record["keyParts"].get("outputDir"), str):
        return None
    return StageSpec._make([None] * len(StageSpec._fields))._replace(name=name, output_dir=record["keyParts"]["outputDir"])


def notes_on_former(spec: PipelineSpec) -> List[str]:
    """Return a text for each stage that is not in the pipeline any more, and whose outputs, recorded of no stage of now, are
    still there for one to read."""
    store, mine = StateStore(spec.root, writable=False), {stage.name for stage in spec.stages}
    former: List[StageSpec] = []
    try:
        names = store.stage_names()
    except PermissionError:
        names = []
    for name in names:
        try:
            stage = None if name in mine else _former(spec, store, name)
        except (StateError, OSError):
            continue                # damaged, or not for us to read: it vouches for nothing
        former += [stage] if stage is not None else []
    notes = []
    for stage, readers in _possible_readers(spec, former):
        made = [*_paths_made(stage, store), *_leftovers(spec, _sound_record(store, stage.name))]
        paths = [path for path in dict.fromkeys(made) if os.path.lexists(os.path.join(spec.root, path))]
        reads = [reader.name for reader in readers if any(_is_read(reader, path) for path in paths)] if paths else []
        taken = {path for other in spec.stages if reads and _is_near(other, stage) for path in _paths_made(other, store)}
        left = [path for path in paths if path not in taken]
        reads = [reader.name for reader in readers if any(_is_read(reader, path) for path in left)] if taken else reads
        if reads:
            notes.append("stage %s is not in the pipeline file any more; what it made is still there, and %s reads it: %s; \"clean %s\" removes it" % (
                stage.name, shown_names(reads), shown_names(left), stage.name))
    return notes


def _possible_readers(spec: PipelineSpec, former: List[StageSpec]) -> Iterator[Tuple[StageSpec, List[StageSpec]]]:
    """Yield each former stage with those of now that look into its output folder."""
    folders = Folders(former)
    readers: List[Dict[str, StageSpec]] = [{} for _ in former]
    for stage in spec.stages if former else ():
        for pattern in stage.inputs + stage.watch + stage.for_each:
            for place in candidates(folders, pattern):
                readers[place][stage.name] = stage
    yield from ((stage, list(found.values())) for stage, found in zip(former, readers) if found)


def _paths_made(stage: StageSpec, store: StateStore) -> List[str]:
    """Return the recorded outputs of a stage, paths below the root; none where the record is damaged, for it vouches for
    nothing."""
    try:
        record = store.stage(stage.name)
        folder = _worked_in(stage, record)
        return ["%s/%s" % (folder, path) for path in recorded_outputs.recorded_paths(store, record)]
    except (StateError, task_log.Damaged, OSError):
        return []


def _is_read(stage: StageSpec, path: str) -> bool:
    return any(pattern == path or has_wildcard(pattern) and path_matches(path, pattern) for pattern in stage.inputs + stage.watch + stage.for_each)


def _do_locked(spec: PipelineSpec, stages: List[StageSpec], options: Options, console: Console, clock: Clock,
               new_ledger: Callable[..., RunLedger]) -> None:
    store = StateStore(spec.root, now=clock.time)
    if not os.path.isdir(store.folder):
        console.line("%s: no run has left anything below %s" % (options.command, spec.root))
        return
    store.prepare()
    ledger = new_ledger(spec, options, store, clock)
    locks = _lock_all(spec, stages, options, store, clock)
    try:
        ledger.prepare()
        act = _clean if options.command == "clean" else _reset
        done = [act(spec, stage, store, ledger, console) for stage in stages]
        store.commit.flush()
    finally:
        for lock in locks:
            lock.release()
    ledger.tell(console.line, with_head=any(done))


def _lock_all(spec: PipelineSpec, stages: List[StageSpec], options: Options, store: StateStore, clock: Clock) -> List[stage_locks.StageLock]:
    """Hold the stages, and for clean also those that may be reading their outputs now. Raises: LockHeld, with none held, for
    clean also if a run of the pipeline is at work."""
    names = {stage.name for stage in stages}
    makers = edges_of(spec) if options.command == "clean" else {}
    wanted = [one for one in spec.stages if one.name in names or names.intersection(makers.get(one.name, ()))]
    wanted += [one for one in stages if one not in spec.stages]     # a former one
    boot, held = state_store.boot_id(), []
    try:
        for stage in wanted:
            lock = stage_locks.StageLock(spec.root, stage.name, options.command, boot, clock, process_tree, is_run=False)
            lock.acquire(0, _dead_token(store, stage.name))
            held.append(lock)
        if options.command == "clean":
            _check_nobody_is_at_work(spec, clock)
    except BaseException:
        for lock in held:
            lock.release()
        raise
    return held


def _check_nobody_is_at_work(spec: PipelineSpec, clock: Clock) -> None:
    """Raises: LockHeld if a run of the pipeline is at work: what it has made, or found up to date, it still counts on. To be
    asked with the stages' locks held, so that a run that starts later finds them locked."""
    for name in sorted(os.listdir(os.path.join(spec.root, "locks"))):
        if not (name.startswith(".") and name.endswith(".run")):
            continue
        lock = stage_locks.FileLock(spec.root, name[1:], clock)
        try:
            lock.acquire(stage_locks.CHANGE_S, "")
            lock.release()
            continue
        except stage_locks.LockHeld:
            pass
        run_id = name[1:-len(".run")]
        try:
            record = StateStore(spec.root, writable=False).read("run_%s.json" % run_id)
        except StateError:
            record = None
        if record is None or record.get("pipeline") == spec.name:
            raise stage_locks.LockHeld("run %s is at work, and may still count on what is to be removed; run clean again when it has ended" % run_id)


def _dead_token(store: StateStore, name: str) -> str:
    """As stage_records.dead_token(); "" for a record that is damaged."""
    return stage_records.dead_token(_sound_record(store, name))


# --- clean -----------------------------------------------------------------------------------------------------------

def look(spec: PipelineSpec, stage: StageSpec, store: StateStore) -> Cleaning:
    """Find what the record of a stage says that it made: what still is that may go, the rest is kept. Raises: StateError."""
    record = store.stage(stage.name)
    remove: List[Tuple[str, Json, List[int]]] = []
    keep: List[Tuple[str, str]] = []
    owners = _other_owners(spec, stage, store)
    digests = Digests(spec.root, "", keep=False, rehash=True)
    folder = _worked_in(stage, record)
    stranger = _stranger(spec, record)
    for output in _recorded(stage, store, record):
        path = "%s/%s" % (folder, output["path"])
        if not is_there(os.path.join(spec.root, path)):
            continue
        stamp = _stamp(spec, path)
        why = stranger or link_on_the_way(spec.root, path) or ("stage %s has recorded it, too" % owners[path] if path in owners else "")
        why = why or _change(digests, path, output)
        if why:
            keep.append((path, why))
        else:
            remove.append((path, output, stamp))
    tasks = "%s/.%s.tasks" % (folder, stage.name)
    if stage.chunks is not None and stage.chunks.keep and is_folder(os.path.join(spec.root, tasks)):     # not of a former stage
        keep.append((tasks, "keepChunks: an input that grew redoes its tail only; `reset %s` removes it" % stage.name))
    if record is None or stranger or any(other.name == stage.name for other in spec.stages):
        return Cleaning(stage, record, remove, keep, [], [])
    return Cleaning(stage, record, remove, keep, _leftovers(spec, record), [path for one in _private(spec, stage, record) for path in one])


def _worked_in(stage: StageSpec, record: Optional[Json]) -> str:
    """Return the output folder that the record of a stage tells of; the spec may have given it another since."""
    return stage_records.made_elsewhere(record, stage.output_dir) or stage.output_dir


def _stranger(spec: PipelineSpec, record: Optional[Json]) -> str:
    """Return what is said of a record of another pipeline, "" of any other."""
    return "" if record is None or record.get("pipeline") in (None, spec.name) else "recorded by pipeline %s" % record["pipeline"]


def _recorded(stage: StageSpec, store: StateStore, record: Optional[Json]) -> List[Json]:
    """Return the outputs that are recorded: in the stage record, of very many tasks in their log."""
    if record is None or not stage_records.outputs_are_logged(record):
        return list(record["outputs"]) if record is not None else []
    import task_look
    return stage_records.with_listed(record, task_look.logged_outputs(store, stage.name))


def _other_owners(spec: PipelineSpec, stage: StageSpec, store: StateStore) -> Dict[str, str]:
    found: Dict[str, str] = {}
    for other in spec.stages:
        if _is_near(other, stage) and other.name != stage.name:
            record = store.stage(other.name)
            folder = _worked_in(other, record)
            try:
                found.update(("%s/%s" % (folder, path), other.name) for path in recorded_outputs.recorded_paths(store, record))
            except task_log.Damaged as problem:
                raise StateError("state/%s is damaged (%s): nobody can tell what of it may go; a run sets it aside" % (
                    task_log.log_name(other.name), problem)) from None
    return found


def _is_near(one: StageSpec, other: StageSpec) -> bool:
    """Tell whether the output folder of a stage is another's, lies in it, or holds it."""
    return bool((one.output_dir + "/").startswith(other.output_dir + "/") or (other.output_dir + "/").startswith(one.output_dir + "/"))


def _stamp(spec: PipelineSpec, path: str) -> List[int]:
    """Return the signature of an output, [] if it cannot be looked at."""
    try:
        return signature(os.lstat(os.path.join(spec.root, path)))
    except OSError:
        return []


def _change(digests: Digests, path: str, output: Json) -> str:
    try:
        found = digests.of_output(path)
    except FileChanged:
        return "it is changing now"
    except OSError as error:
        return "it cannot be read: %s" % (error.strerror or error)
    return "" if found == (output["bytes"], output["sha256"]) else "it is not what the stage made"


def _leftovers(spec: PipelineSpec, record: Optional[Json]) -> List[str]:
    """Return what an attempt has left that did not finish, paths below the root; nothing behind links."""
    folder = stage_records.made_elsewhere(record, "")
    if record is None or link_on_the_way(spec.root, folder + "/x"):
        return []
    return recorded_outputs.leftovers(spec.root, record, recorded_outputs.declared_beside(spec, record))


def _sound_record(store: StateStore, name: str) -> Optional[Json]:
    """Return the record of a stage, None where it is damaged, too; it stays where it is."""
    try:
        return StateStore(store.root, writable=False).stage(name)
    except StateError:
        return None


def _show_left(left: List[str], console: Console) -> None:
    if left:
        console.line("would clear what an attempt left that did not finish: %s" % shown_names(left))


def _clear_left(spec: PipelineSpec, record: Json, console: Console) -> None:
    done = recorded_outputs.clear_leftovers(spec, record)
    if done:
        console.line("leftovers of an unfinished attempt of stage %s: %s" % (record["stage"], shown_names(done, between="; ")))


def _alone_where(left: List[str], spec: PipelineSpec, record: Optional[Json]) -> Any:
    """Hold the folder in which something is *left*."""
    return recorded_outputs.alone_in(spec.root, stage_records.made_elsewhere(record, "")) if left else contextlib.nullcontext()


def _show(found: Cleaning, word: str, console: Console) -> None:
    for path, output, _ in found.remove[:SHOWN_NAMES]:
        console.line("%s %s (%d byte%s)" % (word, path, output["bytes"], "s" * (output["bytes"] != 1)))
    if len(found.remove) > SHOWN_NAMES:
        console.line("%s %d more outputs of stage %s" % (word, len(found.remove) - SHOWN_NAMES, found.stage.name))
    for path in found.private:
        console.line("%s %s" % (word, path))
    for path, why in found.keep:
        console.line("kept %s: %s" % (path, why))
    if found.record is None:
        console.line("stage %s: no record, so nothing is known to be its" % found.stage.name)
    elif found.left and word == "would remove":
        _show_left(found.left, console)
    elif found.record["lastStatus"] != "ok" and found.record.get("left") and not found.left:
        console.line("stage %s: what its last run left is no output yet, and is kept; its next run clears it" % found.stage.name)


def _clean(spec: PipelineSpec, stage: StageSpec, store: StateStore, ledger: RunLedger, console: Console) -> bool:
    """Remove the outputs of one stage; tell whether there was anything to do. The caller holds its lock."""
    found = look(spec, stage, store)
    folders = _folders(spec, stage, None if _stranger(spec, found.record) else found.record)
    markers = [stage_markers.marker_path(spec.root, folder, stage.name) for folder in folders]
    markers = [path for path in markers if is_there(path)]
    if found.record is None or not (found.remove or markers or found.left or found.private):
        if found.record is not None and found.record.get("cleaned"):
            _remove_empty_folders(spec, stage, found.record, store)     # a kill came before
        _show(found, "removed", console)
        return False
    with _alone_where(found.left, spec, found.record):
        _do_clean(spec, found, markers, store, ledger, console)
    return True


def _do_clean(spec: PipelineSpec, found: Cleaning, markers: List[str], store: StateStore, ledger: RunLedger, console: Console) -> None:
    stage = found.stage
    maker = {"runId": found.record.get("lastRunId"), "invocation": found.record.get("lastInvocation")}
    at = utc_text(store.now())
    for number, part in enumerate(run_ledger.in_parts([path for path, _ in found.keep])):
        more = {"removed": 0, "continued": True} if number else {"removed": len(found.remove)}
        ledger.note("clean", spec.name, {"stage": stage.name, "madeBy": maker, "kept": part, **more})
    store.write("stage_%s.json" % stage.name, dict(found.record, cleaned=dict(run_ledger.who(), at=at)))
    store.commit.flush()
    for marker in markers:
        durable_files.remove_durably(marker, store.commit)
    if found.left:
        _clear_left(spec, found.record, console)
    output_dir, ours = _worked_in(stage, found.record), _own_folders(spec, stage, found.record, store)
    digests = Digests(spec.root, "", keep=False, rehash=True)
    changed: List[Tuple[str, str]] = []
    for path, output, stamp in found.remove:
        full = os.path.join(spec.root, path)
        # While the others were looked at, which may take long. A further name (hard link) that went has changed the status only.
        why = _change(digests, path, output) if is_there(full) and _stamp(spec, path) != stamp else ""
        if why:
            changed.append((path, why))
        else:
            with_rights(os.path.join(spec.root, output_dir), path[len(output_dir) + 1:], ours, durable_files.remove_durably, full, store.commit)
    for path in found.private:
        _remove(os.path.join(spec.root, path), store)
    _remove_empty_folders(spec, stage, found.record, store)
    names = {path for path, _ in changed}
    _show(found._replace(remove=[one for one in found.remove if one[0] not in names], keep=found.keep + changed), "removed", console)


def _own_folders(spec: PipelineSpec, stage: StageSpec, record: Optional[Json], store: StateStore) -> List[str]:
    """Return the folders of recorded outputs, see _made_folders(), whose rights may be changed for what is to be removed there."""
    return own_folders(_made_folders(stage, record, store), recorded_outputs.folders_of_others(spec, stage.name, _worked_in(stage, record)))


def _made_folders(stage: StageSpec, record: Optional[Json], store: StateStore) -> List[str]:
    """Return the folders below the output folder that hold recorded outputs, each as "PATH/", before those that they lie in."""
    folders: Set[str] = set()
    for output in _recorded(stage, store, record):
        parts = output["path"].split("/")
        folders.update("/".join(parts[:count]) + "/" for count in range(1, len(parts)))
    return sorted(folders, key=lambda one: -one.count("/"))


def _remove_empty_folders(spec: PipelineSpec, stage: StageSpec, record: Optional[Json], store: StateStore) -> None:
    """Remove the folders below the output folder that held recorded outputs and hold nothing now; the output folder itself
    stays."""
    output_dir, ours = _worked_in(stage, record), _own_folders(spec, stage, record, store)
    full = os.path.join(spec.root, output_dir)
    for folder in [one[:-1] for one in _made_folders(stage, record, store)]:
        if link_on_the_way(spec.root, "%s/%s/x" % (output_dir, folder)):
            continue
        durable_files.remove_empty_folder(os.path.join(full, folder), store.commit, functools.partial(with_rights, full, folder, ours, os.rmdir))


# --- reset -----------------------------------------------------------------------------------------------------------

def _folders(spec: PipelineSpec, stage: StageSpec, record: Optional[Json]) -> List[str]:
    """Return the output folders in which there may be something of a stage: that of the spec, and the one that its record tells
    of; none behind a link."""
    folders = dict.fromkeys((stage.output_dir, _worked_in(stage, record)))
    return [folder for folder in folders if not path_problem(folder) and not link_on_the_way(spec.root, folder + "/x")]


def forgotten(spec: PipelineSpec, stage: StageSpec, record: Optional[Json]) -> List[str]:
    """Return what reset removes, paths below the root, of that what is there, in that order; *record* is that of the stage.

    The marker first: without it nothing is skipped. The record last: after a kill it still tells that there is something to
    remove, and where.
    """
    files = ["%s/.%s.done" % (folder, stage.name)
             for folder in _folders(spec, stage, record)] + ["state/" + pattern % stage.name for pattern in STATE_FILES]
    state = os.path.join(spec.root, "state")
    files += ["state/" + name for name in (task_files.names_of_inputs(state, stage.name) if os.path.isdir(state) else ())]
    folders, parts = _private(spec, stage, record)
    folders = [name for name in ["state/" + task_files.progress_name(stage.name)] if is_folder(os.path.join(spec.root, name))] + folders    # of tasks
    # A stage may be named a, another one a.json: what is a file of the one is a folder of the other.
    def those_there(names: Sequence[str]) -> List[str]:
        return [name for name in names if is_there(os.path.join(spec.root, name)) and not is_folder(os.path.join(spec.root, name))]
    return those_there(files) + folders + parts + those_there(
        ["state/" + pattern % stage.name for pattern in ("stage_%s.json", BEFORE % "stage_%s.json")])


def _private(spec: PipelineSpec, stage: StageSpec, record: Optional[Json]) -> Tuple[List[str], List[str]]:
    """Return (the folders of a stage's tasks, its part files), paths below the root."""
    own = _folders(spec, stage, record)
    tasks = ["%s/.%s.tasks" % (folder, stage.name) for folder in own]
    parts = ["%s/%s" % (folder, path) for folder in own for path in own_parts(list_folder(os.path.join(spec.root, folder)).parts, stage.name)]
    return [path for path in tasks if is_folder(os.path.join(spec.root, path))], list(dict.fromkeys(parts))


def _reset(spec: PipelineSpec, stage: StageSpec, store: StateStore, ledger: RunLedger, console: Console) -> bool:
    """Forget one stage; tell whether there was anything to forget. The caller holds its lock."""
    record = _sound_record(store, stage.name)
    names = forgotten(spec, stage, record)
    if not names:
        console.line("stage %s: nothing is known of it" % stage.name)
        return False
    left = _leftovers(spec, record)
    with _alone_where(left, spec, record):
        ledger.note("reset", spec.name, {"stage": stage.name})
        if record is not None and left:
            _clear_left(spec, record, console)
        _forget(spec, names, store, console)
    return True


def _forget(spec: PipelineSpec, names: Sequence[str], store: StateStore, console: Console) -> None:
    for name in names:
        _remove(os.path.join(spec.root, name), store)
        console.line("forgot %s" % name)
    store.commit.flush()


def _remove(full: str, store: StateStore) -> None:
    """Remove a file, or a folder with all that is in it: the checkpoints and the private folders of tasks."""
    if is_folder(full):
        durable_files.remove_tree(full)
        store.commit.folders[os.path.dirname(full)] = None
    else:
        durable_files.remove_durably(full, store.commit)
