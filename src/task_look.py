"""What a stage of one task per file would have to do: its files, their keys, what is done already. Writes nothing.

Above the leaves and below the runner, which imports it for a stage with `forEach`.

    globs -> files -> digests (the cache, or read) -> a key for each task -> the task log says which are done

A task's key binds what is common to all (processor, args, params ...) and its own file. The stage's key binds all tasks.
"""
from __future__ import annotations

import os
from collections import namedtuple

import durable_files
import file_digests
import stage_keys
import stage_markers
import stage_records
import state_store
import task_files
import task_log
from ledger_format import stage_key
from model import Decision, Facts, sha256
from primitives import is_link, is_there

TYPE_CHECKING = False
if TYPE_CHECKING:
    from array import array
    from typing import Any, Dict, Iterable, List, Optional, Sequence, Tuple

    from file_digests import Digests
    from model import PipelineSpec, StageSpec
    from state_store import StateStore
    Json = Dict[str, Any]

LISTED_OUTPUTS = 10       # a stage with more outputs has them in its task log only
SHOWN_TASKS = 5
LINES_LOST = "lines of its task log were lost"
ANOTHER = "its task log is not the one that its record vouches for"     # what it says is forgotten


class Tasks(namedtuple("Tasks", "paths digests packed keys common todo gone why table outputs log is_cached left synced certain wrong lost unfit",
                       defaults=(frozenset(), "", {}))):
    """The tasks of a stage as they are now.

    paths, digests, keys: of each; packed: signatures of the files. common: the key of what all share. todo: places of those to be
    done. gone: names in the log whose file is not there any more, if that is new, or what was kept of it is wrong now. why: why
    there is something to do, texts. table: FileTable of the inputs, to be kept. outputs: the same of what is done. synced: of
    these, what is known to be on the disk. left: (path, why) of files that are left for a later run. log: the TaskLog, loaded;
    None where nothing changed and nobody needs it. is_cached: the cache needs no writing.
    certain: the stage must run, and no more than that was looked at: neither at its tasks one by one, nor at what they made.
    wrong: paths of outputs that are not what the log says. lost: why the log does not name all that was made, "" where it does:
    LINES_LOST or ANOTHER. unfit: {path: why} of files that cannot be read; their digest is "", and their tasks fail without an
    attempt.
    """

    __slots__ = ()


def cache_path(store: StateStore, stage: str) -> str:
    return store.path("files_%s.bin" % stage)


def observe_tasks(spec: PipelineSpec, stage: StageSpec, digests: Digests, store: StateStore, boot: str, left: Sequence[Tuple[str, str]] = (),
                  is_brief: bool = False) -> Facts:
    """Return the Facts of a stage with forEach; write nothing. Raises: StateError.

    left: (path, why) of files that are left for a later run. is_brief: it is enough to know that the stage must run, where that
    is certain.
    """
    common = stage_keys.gather_material(spec, stage, digests, store)
    record = store.stage(stage.name)
    paths, problems, unfit = file_digests.look_for(spec.root, stage.for_each)
    if stage.allow_no_inputs:
        problems = [one for one in problems if not one.endswith((file_digests.NO_MATCH, file_digests.NO_FILE))]
    if common.missing or problems:
        return Facts(common._replace(missing=common.missing + problems), record, None, [], None, False)
    later = {path for path, _ in left}
    paths = [path for path in paths if path not in later] if later else paths
    about, tables = task_files.load(cache_path(store, stage.name))
    known = tables[0] if len(tables) == 2 and about.get("bootIn") == boot and digests.trusts_stored else task_files.FileTable()
    packed = task_files.signatures(spec.root, paths)
    if not unfit and known.is_unchanged(paths, packed):
        table, names = known, known.digests
    else:
        table, names = _hash_changed(spec.root, paths, packed, known, digests, unfit)
    marker = stage_markers.read_marker(stage_markers.marker_path(spec.root, stage.output_dir, stage.name))
    key_of_all = about["tasks"] if table is known and "tasks" in about else _key_of_all(paths, names)
    parts = dict(common.parts, tasks={"forEach": list(stage.for_each), "count": len(paths), "sha256": key_of_all})
    sizes = packed[::task_files.FIELDS]
    input_bytes = common.input_bytes + sum(sizes) + sizes.count(-1)     # -1: not there
    material = common._replace(key=stage_key(parts), parts=parts, input_bytes=input_bytes)
    made = tables[1] if len(tables) == 2 and about.get("bootOut") in ("", boot) and digests.trusts_stored else task_files.FileTable()
    facts = Facts(material, record, marker, [], None, False)
    if marker == stage_markers.BARRED:
        return facts._replace(output_problems=stage_keys.output_problems(digests, stage, record) if record is not None else [])
    synced = made if about.get("bootOut") == "" else task_files.FileTable()
    tasks = Tasks(paths, names, packed, [], common.key, [], [], [], table, made, None, table is known, tuple(left), synced, False, unfit=unfit)
    if is_brief and (record is None or record["lastStatus"] != "ok" or record["idempotencyKey"] != material.key):
        return facts._replace(tasks=tasks._replace(certain=True))
    is_lost = marker is None and is_there(stage_markers.lost_path(spec.root, stage.output_dir, stage.name))
    if is_lost:
        return _all_over(_look_at_each(spec, stage, store, facts, tasks, digests))
    is_of_log = len(tables) == 2 and made is tables[1] and about.get("log") == log_stamp(store, stage.name)
    if is_of_log and _is_all_done(facts, about, made, spec.root, stage, left):
        return facts._replace(tasks=tasks)
    return _look_at_each(spec, stage, store, facts, tasks, digests)


def _hash_changed(root: str, paths: List[str], packed: array[int], known: task_files.FileTable, digests: Digests,
                  unfit: Dict[str, str]) -> Tuple[task_files.FileTable, List[str]]:
    """Return (table of these files, the digest of each), reading those that the known table does not vouch for.

    Those that are large are read side by side. What cannot be read is put into *unfit*, with the reason, and has the digest "".
    """
    now, device = digests.file_system_time()
    table = task_files.FileTable(paths, packed, known.digests_of(paths, packed))
    every = ["" if path in unfit else digest for path, digest in zip(paths, table.digests)]

    def read(place: int, _: Any = None) -> None:
        path, stamp = paths[place], task_files.signature_at(packed, place)
        try:
            digest, after = file_digests.hash_file(os.path.join(root, path), digests.heed)
        except OSError as error:
            unfit[path] = "cannot read %s: %s" % (path, error.strerror)
            return
        if not after or task_files.plain(after) != stamp:
            unfit[path] = "%s changes while it is read; run again when it is complete" % path
            return
        every[place] = digest
        table.digests[place] = digest if file_digests.is_settled(stamp, now, device) else ""

    unread = [place for place, path in enumerate(paths) if not every[place] and path not in unfit]
    large = [place for place in unread if packed[place * task_files.FIELDS] >= stage_keys.LARGE_BYTES]
    if len(large) > 1:
        import chunk_files
        chunk_files.side_by_side(read, large, heed=digests.heed)
        unread = sorted(set(unread) - set(large))
    for place in unread:
        read(place)
    return table, every


def _key_of_all(paths: List[str], digests: List[str]) -> str:
    import hashlib
    text = "\0".join(paths) + "\0\0" + "\0".join(digests)
    return hashlib.sha256(b"tasks\0" + text.encode("utf-8")).hexdigest()


def task_key(common: str, path: str, digest: str) -> str:
    """Return the key of one task."""
    return sha256(("task\0%s\0%s\0%s" % (common, path, digest)).encode("utf-8")).hexdigest()


def _is_all_done(facts: Facts, about: Json, made: task_files.FileTable, root: str, stage: StageSpec, left: Sequence[Tuple[str, str]]) -> bool:
    """Tell whether the stage is recorded as done under this very key and every output has its known signature."""
    record, key = facts.record, facts.material.key
    if record is None or record["lastStatus"] != "ok" or record["idempotencyKey"] != key or facts.marker_key != key or not stage.idempotent:
        return False
    if about.get("left", []) != sorted(path for path, _ in left):
        return False        # what was left may be gone by now, and with the same key
    tasks = record.get("tasks") or {}
    if len(made.paths) != tasks.get("outputs"):
        return False
    if about.get("outputs") != tasks.get("outputsSha256") or about.get("prune") != stage.prune or tasks.get("failed") or "" in made.digests:
        return False
    return bool(task_files.signatures(os.path.join(root, stage.output_dir), made.paths) == made.packed)


def _look_at_each(spec: PipelineSpec, stage: StageSpec, store: StateStore, facts: Facts, tasks: Tasks, digests: Digests) -> Facts:
    log = load_log_of_files(store, stage.name, facts.record)
    outputs = task_log.outputs_of(log.entries)
    lost = LINES_LOST if len(outputs) < _stated_outputs(facts.record) else ANOTHER if _is_other_than_recorded(outputs, facts.record) else ""
    if not lost and facts.record is not None and facts.record.get("logLost"):
        lost = LINES_LOST               # a run that saw it did not live to see to what no task makes any more
    if lost == ANOTHER or stage_records.made_elsewhere(facts.record, stage.output_dir):
        forget_outputs(log)             # what they tell of is not in this folder, or nobody vouches for
        outputs = []
    folder = os.path.join(spec.root, stage.output_dir)
    keys = [task_key(tasks.common, path, digest) for path, digest in zip(tasks.paths, tasks.digests)]
    table, wrong = check_outputs(folder, outputs, tasks.outputs, digests)
    todo, why = _todo(tasks, keys, log, wrong)
    alive = set(tasks.paths) | {path for path, _ in tasks.left}
    known = ("gone",) if stage.prune else ("gone", "kept")
    gone = sorted(name for name, entry in log.entries.items() if name not in alive
                  and (entry.status not in known or any(output[0] in wrong for output in entry.outputs)))
    if lost == ANOTHER:
        why.insert(0, lost)
    if gone:
        why.append("%d file%s gone (%s)" % (len(gone), "" if len(gone) == 1 else "s", shown(gone)))
    problems = ["output %s %s" % one for one in list(wrong.items())[:SHOWN_TASKS]]
    facts = facts._replace(output_problems=problems, tasks=tasks._replace(keys=keys, todo=todo, gone=gone, why=why, outputs=table, log=log,
                                                                          is_cached=False, wrong=frozenset(wrong), lost=lost))
    spoilt = spoilt_of_left(facts.tasks)
    if spoilt:
        why.append("outputs of %d file%s left for a later run are not what was recorded" % (len(spoilt), "" if len(spoilt) == 1 else "s"))
    if _is_recorded(stage, facts) and facts.marker_key is None:
        facts = facts._replace(sealable=state_store.died_before_marker(store, stage.name, facts.record))
    return facts


def spoilt_of_left(tasks: Tasks) -> List[str]:
    """Return the files left for a later run of which what was made is not as the log says."""
    entries = tasks.log.entries if tasks.log is not None else {}
    return [path for path, _ in tasks.left if path in entries and any(output[0] in tasks.wrong for output in entries[path].outputs)]


def _todo(tasks: Tasks, keys: List[str], log: task_log.TaskLog, wrong: Dict[str, str]) -> Tuple[List[int], List[str]]:
    """Return (places of the tasks to be done, why, a text for each cause); of those that are done, *keys* gets the log's own
    text, held once."""
    todo, changed, new, spoilt, failed = [], 0, 0, 0, 0
    unfit = tasks.unfit
    for place, (path, key) in enumerate(zip(tasks.paths, keys)):
        entry = log.entries.get(path)
        if entry is not None and entry.status in task_log.GOOD and entry.key == key and not any(output[0] in wrong for output in entry.outputs):
            keys[place] = entry.key
            continue
        todo.append(place)
        if path in unfit:
            continue
        if entry is None:
            new += 1
        elif entry.key != key:
            changed += 1
        else:
            failed += entry.status == "failed"
            spoilt += entry.status in task_log.GOOD
    why = ["%d task%s %s" % (count, "" if count == 1 else "s", word) for count, word in (
        (new, "new"), (changed, "changed"), (failed, "failed last time"), (spoilt, "with outputs that are not what was recorded")) if count]
    if unfit:
        why.append("%d file%s cannot be used (%s)" % (len(unfit), "" if len(unfit) == 1 else "s", shown(why for _, why in sorted(unfit.items()))))
    return todo, why


def _is_other_than_recorded(outputs: Sequence[Tuple[str, int, str]], record: Optional[Json]) -> bool:
    """Tell whether a log names other outputs than the record of the success that it led to: somebody has changed it since.

    Not of one that has fewer: lines may be lost (a power cut, damage), and their tasks are done again.
    """
    stated = _stated_outputs(record)
    return record is not None and 0 <= stated <= len(outputs) and task_log.output_digest(outputs) != record["tasks"].get("outputsSha256")


def _stated_outputs(record: Optional[Json]) -> int:
    """Return how many outputs the record of a success states, -1 where there is none."""
    stated = record.get("tasks") if record is not None and record["lastStatus"] == "ok" else None
    return stated["outputs"] if isinstance(stated, dict) and isinstance(stated.get("outputs"), int) else -1


def forget_outputs(log: task_log.TaskLog) -> None:
    """Let no task of a log be done, nor have made anything; in memory only."""
    log.entries = {name: entry._replace(key="", outputs=()) for name, entry in log.entries.items()}


def _all_over(facts: Facts) -> Facts:
    """What was made could not be synced: what is read now may not be what is on the disk, so all tasks are done anew."""
    tasks = facts.tasks
    return facts._replace(sealable=False, tasks=tasks._replace(todo=list(range(len(tasks.paths))),
                                                               why=["the outputs could not be brought to the disk"]))


def _is_recorded(stage: StageSpec, facts: Facts) -> bool:
    """Tell whether the stage's record says that all of this has been done, and its outputs are there."""
    record, tasks = facts.record, facts.tasks
    if record is None or record["lastStatus"] != "ok" or record["idempotencyKey"] != facts.material.key or not stage.idempotent:
        return False
    return not tasks.todo and not tasks.gone and not tasks.wrong


def log_stamp(store: StateStore, stage: str) -> List[int]:
    """Return what changes when a stage's task log is written to, [] without one."""
    try:
        stat = os.stat(store.path(task_log.log_name(stage)))
    except OSError:
        return []
    return [stat.st_size, stat.st_mtime_ns]


def load_log(store: StateStore, stage: str) -> task_log.TaskLog:
    """Return a stage's task log as read.

    Raises: StateError; a damaged one is set aside, and its lines that are whole are kept in its place.
    """
    log = task_log.TaskLog(store.folder, stage)
    try:
        log.load()
    except task_log.Damaged as problem:
        name = task_log.log_name(stage)
        whole = task_log.salvaged(log.path, stage) if store.writable else None
        text = "state/%s is damaged (%s); %s" % (name, problem, store.set_aside(name))
        if whole is not None:
            whole.compact(lambda path, data: durable_files.write_atomic(path, data))
            text += ", but for the %d tasks whose lines are whole" % len(whole.entries)
        raise state_store.StateError(text) from None
    return log


def load_log_of_files(store: StateStore, stage: str, record: Optional[Json]) -> task_log.TaskLog:
    """As load_log(), without entries if the record says that it is a log of chunks: what these made is in the record. Raises: as
    load_log()."""
    log = load_log(store, stage)
    if record is not None and "chunks" in record["keyParts"]:
        log.entries = {}
    return log


def logged_outputs(store: StateStore, stage: str) -> List[Json]:
    """Return what a stage's task log says that its tasks have made, as records list outputs. Raises: as load_log()."""
    return [{"path": path, "bytes": size, "sha256": digest} for path, size, digest in task_log.outputs_of(load_log(store, stage).entries)]


def vouched_outputs(store: StateStore, record: Json) -> List[Json]:
    """Return what a stage's task log says that its tasks have made, if it is the log that *record* vouches for; else nothing.
    Raises: as load_log()."""
    if stage_records.is_of_unfinished_tasks(record) and not record.get("logLost"):
        return logged_outputs(store, record["stage"])
    if _stated_outputs(record) <= 0:
        return []
    outputs = logged_outputs(store, record["stage"])
    stated = task_log.output_digest((one["path"], one["bytes"], one["sha256"]) for one in outputs)
    return outputs if stated == record["tasks"].get("outputsSha256") else []


def check_outputs(folder: str, outputs: Sequence[Tuple[str, int, str]], known: task_files.FileTable,
                  digests: Digests) -> Tuple[task_files.FileTable, Dict[str, str]]:
    """Return (table of these outputs, {path: what is wrong}); read are those that the known table does not vouch for."""
    now, device = digests.file_system_time()
    paths = [path for path, _, _ in outputs]
    table = task_files.FileTable(paths, task_files.signatures(folder, paths))
    table.digests = known.digests_of(paths, table.packed)
    wrong: Dict[str, str] = {}
    for place, (path, size, digest) in enumerate(outputs):
        if table.digests[place] == digest:
            continue
        stamp = task_files.signature_at(table.packed, place)
        if stamp[0] < 0 and not is_link(os.path.join(folder, path)):
            wrong[path] = "missing"
        elif file_digests.output_content(os.path.join(folder, path), digests.heed) != (size, digest):
            wrong[path] = "changed"
        # A link that leads nowhere has the signature of a missing file: it is looked at each time.
        table.digests[place] = digest if stamp[0] >= 0 and path not in wrong and file_digests.is_settled(stamp, now, device) else ""
    return table, wrong


def decide_tasks(stage: StageSpec, facts: Facts, forced: bool) -> Decision:
    """Decide what to do with a stage of tasks from what was observed."""
    tasks, record = facts.tasks, facts.record
    if forced:
        return Decision("RUN", ["forced"], 0, "")
    if tasks.certain:
        return Decision("RUN", ["not what its record says"], 0, "")
    if tasks.log is None or _is_recorded(stage, facts) and facts.marker_key == facts.material.key:
        return Decision("SKIP", ["up to date: key %s unchanged, %d task%s, %d output%s verified%s" % (
            facts.material.key[:12], len(tasks.paths), "" if len(tasks.paths) == 1 else "s",
            len(tasks.outputs.paths), "" if len(tasks.outputs.paths) == 1 else "s", left_text(tasks))], 0, "")
    if facts.sealable:
        return Decision("SEAL", ["up to date: finished by run %s, which died before it wrote the marker; marker restored" % record.get("lastRunId")],
                        0, "")
    return Decision("RUN", reasons_of(stage, facts), 0, "")


def left_text(tasks: Tasks) -> str:
    """Return what is said of files that are left for a later run, "" if there are none."""
    return "; left for a later run: %s" % shown(why for _, why in tasks.left) if tasks.left else ""


def left_count_text(tasks: Tasks) -> str:
    """Return the same with how many they are, as a text of its own; there are some."""
    return "%d file%s%s" % (len(tasks.left), "" if len(tasks.left) == 1 else "s", left_text(tasks)[1:])


def reasons_of(stage: StageSpec, facts: Facts) -> List[str]:
    """Return why a stage of tasks is not up to date."""
    tasks, record = facts.tasks, facts.record
    if record is None:
        return ["no record of an earlier run"]
    if not tasks.log.lines and (record.get("tasks") or {}).get("total"):
        return ["its task log is missing"]
    import reasons
    changes = reasons.key_changes(record["keyParts"], facts.material.parts) if record["idempotencyKey"] != facts.material.key else []
    if record.get("cleaned") and not changes:
        return [stage_records.CLEANED]
    found: List[str] = changes[:SHOWN_TASKS] + tasks.why
    if not found and record["lastStatus"] != "ok":
        return [stage_records.last_run_text(record)]
    if not found and not stage.idempotent:
        return ["idempotency is disabled"]
    if not found and tasks.left and record["idempotencyKey"] != facts.material.key:
        return [left_count_text(tasks)]         # done earlier, and arriving again: the key is of fewer files
    if not found:
        found = [stage_markers.problem_text(facts.marker_key) if facts.marker_key != facts.material.key else "outputs verified anew"]
    return found


def skipped_summary(facts: Facts) -> Json:
    """Return what a run record says of the tasks of a stage that was skipped."""
    count = len(facts.tasks.paths)
    return {"total": count, "ok": 0, "skipped": count, "failed": 0, "vanished": 0}


def cache_of(store: StateStore, stage: StageSpec, facts: Facts, outputs_digest: str, boot: str, outputs_boot: str,
             is_pruned: bool) -> Dict[str, bytes]:
    """Return {path: bytes} of the cache file to be written, {} if it is as it should be.

    outputs_boot: "" if the outputs were synced. is_pruned: whether nothing is left of files that are gone.
    """
    tasks = facts.tasks
    if tasks.is_cached:
        return {}
    about = {"log": log_stamp(store, stage.name), "bootIn": boot, "bootOut": outputs_boot, "tasks": facts.material.parts["tasks"]["sha256"],
             "outputs": outputs_digest, "prune": is_pruned,
             **({"left": sorted(path for path, _ in tasks.left)} if tasks.left else {})}
    return {cache_path(store, stage.name): task_files.save([tasks.table, tasks.outputs], about)}


def shown(names: Iterable[str]) -> str:
    """Return the first few names, for one line."""
    listed = list(names)
    return ", ".join(listed[:SHOWN_TASKS]) + (", ..." if len(listed) > SHOWN_TASKS else "")
