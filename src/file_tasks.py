"""A stage of one task for each file of `forEach`: what its tasks made is published by rename, and what became of files that are gone.

Above the leaves and below the runner, which imports it for such a stage.

    Task -> its outputs, hashed -> claimed in the task log -> renamed into place -> a line in the task log -> stage record, marker

A kill before the line leaves a task that is done again, over what it has published. No path is that of two tasks. What an
earlier version of a file made, and its task makes no more, goes; what is of no task stays, and is named.
"""
from __future__ import annotations

import errno
import os
import shutil
import stat

import control_totals
import durable_files
import file_digests
import file_systems
import foreign_outputs
import recorded_outputs
import stage_outputs
import stage_work
import task_files
import task_log
import task_look
import task_work
from console import describe_os_error
from model import ALL_OF_LOG
from primitives import HELD_BEGINS, as_here, folded, is_junction, is_link, is_there, replace, unlink
from spec_loading import plain_path
from task_work import Task, TasksWork, TaskTrial, folder_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, FrozenSet, Iterable, List, Optional, Sequence, Set, Tuple

    from engine import Run
    from model import Decision, Facts, StageResult, StageSpec
    from scheduler import Flow
    from stage_locks import StageLock
    Json = Dict[str, Any]
    Output = Tuple[str, int, str]

SETTLE_BYTES = 1 << 20      # outputs from here on are hashed only when their signature can be kept


def _link_problem(folder: str, name: str, kept: Set[str]) -> str:
    """Return why the output *name* in a task's private folder would lead elsewhere in its place, or "". kept: outputs and their
    folders, as by as_here(); of private folders nothing else stays."""
    full = os.path.join(folder, name)
    if not is_link(full):
        return ""
    text, private, way = plain_path(os.readlink(full)), os.path.realpath(folder), ""
    target = os.path.join(os.path.dirname(full), text)
    place = os.path.normpath(os.path.join(os.path.realpath(os.path.dirname(target)), os.path.basename(target)))
    if not place.startswith(os.path.dirname(private) + os.sep):
        way = "" if os.path.isabs(text) else "the whole path"
    elif os.path.isabs(text):
        way = "a name beside it, not the whole path"
    else:
        inner = os.path.normpath(os.path.join(os.path.dirname(name), text)).replace(os.sep, "/")
        links = [one for one in stage_outputs.folders_of(inner) if is_link(os.path.join(folder, one))]
        needed = [place[len(private) + 1:].replace(os.sep, "/")] + links
        if inner.startswith("../") or os.path.lexists(target) and not kept.issuperset(map(as_here, needed)):
            way = "one of its outputs"
    return "output %s is a link to %s, which would lead elsewhere once the output is in its place; let it lead to %s" % (name, text, way) if way else ""


def _fixed_folder(pattern: str) -> str:
    """Return the folder in which a glob begins to look."""
    parts = pattern.split("/")
    return "/".join(parts[:next((place for place, part in enumerate(parts) if file_digests.has_wildcard(part)), len(parts) - 1)]) or "."


def _mounts(root: str, facts: task_look.Tasks) -> List[str]:
    """Return where that is mounted on which the files of tasks lie, none where all lie where *root* does."""
    here = task_files.plain([os.stat(root).st_dev])[0]
    devices = facts.packed[task_files.FIELDS - 1::task_files.FIELDS]
    folders = {os.path.dirname(path) for path, device in zip(facts.paths, devices) if device != here}
    return file_systems.mounts_of(root, folders.union(os.path.dirname(path) for path, _ in facts.left))


def _empty(folder: str) -> None:
    """Remove all that is in a folder, but for what somebody has open, see durable_files.clear_tree()."""
    with os.scandir(folder) as entries:
        for entry in entries:
            is_folder = entry.is_dir(follow_symlinks=False) and not is_junction(entry)
            if is_folder:
                durable_files.clear_tree(entry.path)
            elif not entry.name.startswith(HELD_BEGINS):
                unlink(entry.path)


def _is_of_files(record: Json) -> bool:
    """Tell whether a record is of a stage with forEach."""
    return "tasks" in record["keyParts"]


class FileTasksWork(TasksWork):
    """A stage of one task for each file of `forEach`."""

    def __init__(self, run: Run, stage: StageSpec, lock: StageLock, facts: Facts) -> None:
        super().__init__(run, stage, lock, facts)
        self.owner_of: Dict[str, str] = {}          # target path, case folded -> the task that makes it, by the log
        self.open: Set[str] = set()                 # tasks in the log that are yet to say what they make now
        # Outputs that were removed as their file is gone, and of which tasks had been made, too.
        self.pruned_inputs: List[str] = []
        self.ready_folders: Set[str] = set()        # those of the slots
        self.restamped: Dict[str, List[int]] = {}   # of files of tasks, see stage_work.restamped()
        self.died_at_ns = 0                         # when the last run began, if it died: by the file system's clock
        self.is_pruned = stage.prune                # False as long as something of files that are gone is left for a later run
        self.mounts: List[str] = []                 # on which the files of tasks lie
        self.others_folders: Optional[Set[str]] = None  # see recorded_outputs.folders_of_others()
        self.made = task_files.FileTable()          # outputs of this run, with signatures that no later write can hide behind

    def do(self, decision: Decision) -> Flow:
        """Run the tasks that are not done, then record how the stage ended; a flow that returns the StageResult."""
        self.reasons = list(decision.reasons)
        facts = self.facts.tasks
        is_forced = self.stage.name in self.run.options.force
        places = list(range(len(facts.paths))) if is_forced or not self.stage.idempotent else facts.todo
        self._begin(facts, places)
        self.console.event("START", self.stage.name, " (%d task%s: %d to do, %d up to date)" % (
            self.total, "" if self.total == 1 else "s", len(places), self.up_to_date))
        if facts.left:
            self._note(task_look.left_count_text(facts))
        yield from self._run_tasks(self._tasks(facts, places))
        return self._end(facts)

    def _begin(self, facts: task_look.Tasks, places: List[int]) -> None:
        """Marker away, "running" recorded, what dead tasks left cleared; in this order."""
        durable_files.make_folder(self.folder, self.store.commit)
        durable_files.remove_durably(self.marker, self.store.commit)
        self.task_log = facts.log if facts.log is not None else task_look.load_log_of_files(self.store, self.stage.name, self.facts.record)
        self.keys = facts.keys or [task_look.task_key(facts.common, path, digest) for path, digest in zip(facts.paths, facts.digests)]
        self.total, self.up_to_date, self.vanished = len(facts.paths), len(facts.paths) - len(places), len(facts.gone)
        self._forget_what_is_not_believed(facts)
        self._clear_what_was_plain()
        self._note_death()
        self._drop_unsynced(self.facts.record)
        if facts.lost and not self.earlier.moved_from:
            # For the next run, if this one does not come to its end.
            self.more_of_record = dict(self.more_of_record, logLost=True)
        if len(places) > len(facts.todo) and self.task_log.entries:
            self._forget_keys()         # done once more, without need: what this run does not come to is for the next one
        self.mounts = _mounts(self.run.root, facts)
        self._record_mounts({*self.mounts, *self._recorded_mounts()})
        self.others.look()
        self.earlier.leave_out(self.others.seen)
        self._write_record("running", "")
        self._forget_lost()
        self._clear_staging(facts)
        if self.earlier.has_cleared:
            self._stamp_anew()
            stamps = {facts.paths[place]: task_files.signature_at(facts.packed, place) for place in places}
            digests = {facts.paths[place]: facts.digests[place] for place in places}
            self.restamped = stage_work.restamped(self.run.root, stamps, digests, self.run.digests.heed)
        self._open_log()
        self._drop_spoilt(facts)
        alive = set(facts.paths) | {path for path, _ in facts.left}
        for name, entry in self.task_log.entries.items():
            if name in alive:
                self.owner_of.update((folded(output[0]), name) for output in entry.outputs)
        self.open = {facts.paths[place] for place in places if facts.paths[place] in self.task_log.entries}
        self._leave_to_others(facts.gone)
        self._welcome_back(facts.paths)
        # A power cut must not leave lines of this run beside the record of the last one, which then does not vouch for them.
        self.run.durability.flush()

    def _leave_to_others(self, gone: Sequence[str]) -> None:
        """What another stage has recorded since is no output any more of a task that is done anew, or whose file is gone: it
        would be removed."""
        left: List[str] = []
        for name in [*sorted(self.open), *gone] if self.others.seen else ():
            entry = self.task_log.entries[name]
            taken = [path for path, _, _ in entry.outputs if path in self.others.seen]
            if taken:
                left += taken
                self._enter(entry._replace(key="", outputs=tuple(output for output in entry.outputs if output[0] not in self.others.seen)))
        if left:
            self.earlier.tell_of_taken(sorted(left), self.others.seen)

    def _drop_spoilt(self, facts: task_look.Tasks) -> None:
        """What was made of files that are left for a later run, and is not as recorded, goes: it is made again with its file."""
        removed: List[str] = []
        for name in task_look.spoilt_of_left(facts):
            entry = self.task_log.entries[name]
            removed += [path for path, _, _ in entry.outputs if path not in self.others.seen]
            self._enter(entry._replace(key="", outputs=()))
        for path in removed:
            self._remove_output(path)
        if removed:
            self._note("not what was recorded, removed, and made again when the files left for a later run have settled: %s" % task_look.shown(removed))

    def _welcome_back(self, paths: Sequence[str]) -> None:
        """What was kept of a file that was gone is its task's again, where the file is back, as it was."""
        for name in paths:
            entry = self.task_log.entries.get(name)
            if entry is not None and entry.status == "kept" and name not in self.open:
                self._enter(entry._replace(status="ok"))

    def _forget_what_is_not_believed(self, facts: task_look.Tasks) -> None:
        """What is forgotten of the log must be gone from the disk before a new record vouches for the log.

        Its paths are below the outputDir of the record: where that is another now, files of somebody else may be called so.
        """
        is_of_chunks = self.task_log.lines > 1 and not self.task_log.entries
        if self.earlier.moved_from or facts.lost == task_look.ANOTHER or is_of_chunks:
            self.task_log.compact(self._write_log)
            self.run.durability.flush()
        if self.earlier.moved_from:
            self.earlier.tell_of_move()

    def _clear_what_was_plain(self) -> None:
        """What an attempt left that did not finish, when the stage had no tasks yet: none of these would ever look after it."""
        if self.facts.record is not None and not _is_of_files(self.facts.record):
            self.earlier.clear_leftovers(self.earlier.unfinished())

    def _note_death(self) -> None:
        record = self.facts.record
        if record is not None and record["lastStatus"] == "running" and not self.earlier.moved_from:
            self.died_at_ns = os.stat(self.store.path("stage_%s.json" % self.stage.name)).st_mtime_ns

    def _tell_of_unrecorded(self) -> None:
        """Name the files that have come since a run began that died, and are of no task: it may have published them without
        living to write it down.

        Most of what it published so its task makes again. This is what a task left whose file is called otherwise now, say. It
        may be somebody else's as well, so it stays.
        """
        if not self.died_at_ns:
            return
        new = [path for path, signature in self._of_no_task() if signature[2] >= self.died_at_ns]
        if new:
            self._note("of no task, and newer than the begin of the run that died: %s; look whether they may go" % task_look.shown(
                "%s/%s" % (self.stage.output_dir, path) for path in new))

    def _of_no_task(self) -> List[Tuple[str, Any]]:
        """Return (path, signature) of the files in the output folder that no task has made, nor another stage, and that the stage
        does not read."""
        known = {path for entry in self.task_log.entries.values() for path, _, _ in entry.outputs} | set(self.others.seen)
        found = stage_outputs.list_folder(self.folder).files
        return sorted((path, signature) for path, signature in found.items() if path not in known and not self._input_problem(path))

    def _see_to_lost(self, facts: task_look.Tasks) -> None:
        """Where the task log does not name all that was made: name what no task of now has made; with `prune`, remove of it what
        is known to have been made here."""
        if not facts.lost or self.is_stopped or self.earlier.moved_from:
            return
        made = {one["path"]: one["sha256"] for one in self.earlier.outputs}
        for table in task_files.load(task_look.cache_path(self.store, self.stage.name))[1][1:]:
            made.update((path, digest) for path, digest in zip(table.paths, table.digests) if digest)
        left: List[str] = []
        removed: List[str] = []
        # Else it may be of a file that is only not here now.
        may_remove = self.stage.prune and not self.failed and not facts.left and not self._missing()
        for path, _ in self._of_no_task():
            is_ours = may_remove and folded(path) not in self.owner_of and made.get(path) and file_digests.read_content(
                os.path.join(self.folder, path))[1] == made[path]
            (removed if is_ours else left).append(path)
        for path in removed:
            self._remove_output(path)
        for names, what in ((removed, "removed what no task makes any more"), (left, "of no task, and left there")):
            if names:
                self._note("%s; %s: %s" % (facts.lost, what, task_look.shown("%s/%s" % (self.stage.output_dir, path) for path in names)))

    def _tell_of_former(self) -> None:
        """Name what the stage made when it was not yet one of tasks, and these do not make: nothing looks after it any more."""
        record = self.facts.record
        if record is None or _is_of_files(record) and record["lastStatus"] == "ok":
            return
        mine = {path for path, _, _ in self._outputs()}
        left = [one["path"] for one in self.earlier.outputs if one["path"] not in mine and os.path.lexists(os.path.join(self.folder, one["path"]))]
        if left:
            self._note("made before the stage had tasks, and recorded no more: %s" % task_look.shown(sorted(left)))

    def _forget_lost(self) -> None:
        """After a sync that failed: no line counts any more, on the disk, before the file goes that says so."""
        lost = self.earlier.lost_path()
        if is_there(lost):
            self._forget_keys()
            durable_files.remove_durably(lost, self.store.commit)

    def _forget_keys(self) -> None:
        """Let no task count as done, on the disk, too."""
        self.task_log.entries = {name: entry._replace(key="") for name, entry in self.task_log.entries.items()}
        self.task_log.compact(self._write_log)
        self.run.durability.flush()

    def _clear_staging(self, facts: task_look.Tasks) -> None:
        """Remove the private folders that no task of now can go on in."""
        goes_on = self.stage.checkpoint and self.stage.name not in self.run.options.force
        self._clear_folders({folder_name(facts.paths[place], self.keys[place]) for place in facts.todo} if goes_on else set())

    def _content(self) -> Dict[str, str]:
        tasks = self.facts.tasks
        return {**super()._content(), **dict(zip(tasks.paths, tasks.digests))}

    def _tasks(self, facts: task_look.Tasks, places: List[int]) -> Iterable[Task]:
        shared = self.facts.material
        for place in places:
            path, key = facts.paths[place], self.keys[place]
            stamp = self.restamped.get(path) or task_files.signature_at(facts.packed, place)
            yield Task(place, path, key, [path] + shared.inputs, os.path.join(self.staging, folder_name(path, key)),
                       {"PIPELINE_TASK": path}, dict(shared.stamps, **{path: stamp}), stamp[0])

    def _make_ready(self, trial: TaskTrial, slot: int, offset: int, is_resume: bool) -> None:
        """A task with checkpoints has a folder of its own; others take turns in one for each slot, for making and removing
        folders is slow."""
        if not self.stage.checkpoint:
            trial.folder = os.path.join(self.staging, "slot%d" % slot)
        is_folder = stage_outputs.is_folder(trial.folder)
        if trial.folder in self.ready_folders and is_folder:
            task_work.take_rights(trial.folder)     # the task before may have failed, and nobody has looked at what it left
            _empty(trial.folder)
        else:
            if not is_folder and is_there(trial.folder):
                unlink(trial.folder)     # a task has put something in its place; what a link leads to is not ours
            super()._make_ready(trial, slot, offset, is_resume)
            if not self.stage.checkpoint:
                self.ready_folders.add(trial.folder)

    def _clear(self, trial: TaskTrial) -> None:
        if self.stage.checkpoint:
            super()._clear(trial)       # else the folder is the slot's, and perhaps another task's by now

    def _task(self, task: Task) -> Flow:
        why = self.facts.tasks.unfit.get(task.name)
        if not why:
            return (yield from super()._task(task))
        trial = self._new_trial(task)
        trial.started, trial.failure = self.run.clock.monotonic(), why
        self._enter(self._entry(trial))
        return trial

    # --- publishing

    def _finish(self, trial: TaskTrial) -> None:
        """Hash what the task made and rename it into place; what an earlier version of it made and this one did not goes."""
        task, names = trial.task, self._made(trial)
        problem = trial.failure or next((why for why in map(lambda name: self._target_problem(task, name), names) if why), "")
        if problem:
            # Names that clash: no file is to blame, and which of two tasks comes first is chance.
            trial.is_machines, trial.failure = trial.is_machines or not trial.failure, problem
            return
        self._take_counts(trial)
        if trial.failure:
            return
        kept = {as_here(name) for name in names}.union(*map(stage_outputs.folders_of, map(as_here, names)))
        for name in names:
            size, digest = self._hash_output(os.path.join(trial.folder, name))
            trial.failure = "output %s cannot be read" % name if size < 0 else _link_problem(trial.folder, name, kept)
            if trial.failure:
                return
            trial.outputs.append((name, size, digest))
        # First: after a kill between two renames, the processor would be told by it that nothing is left to be done.
        if self.stage.checkpoint:
            self._drop_checkpoint(trial)
            if not self.store.in_groups or stage_outputs.identity(trial.folder)[1:] != self.run.state_device():
                durable_files.sync_folder_if_there(self.progress_folder)        # names come to the disk in any order
        try:
            earlier = self._make_way(task.name, names)
            for output in trial.outputs:
                self._claim(task.name, output[0])
                self._publish(trial.folder, output[0], output[2])
                trial.published.append(output)
            for path in stage_outputs.not_among(self.folder, earlier, names):
                if not self._is_taken(path, task.name):
                    self._remove_output(path)
        except OSError as error:
            trial.failure = self._publish_problem(error)
            if not trial.failure and not stage_work.is_of_place(error, self.folder, self.run.root):
                raise
            if not trial.failure:
                trial.is_machines, trial.failure = True, describe_os_error(error)
            return
        self._clear(trial)

    def _make_way(self, task: str, names: Sequence[str]) -> List[str]:
        """Remove what an earlier version of a task has made where this one has a folder for its file, or a file for its folder;
        return what else that made.

        First the file, then its name in the log: of a kill in between is left that something is missing, and the task is done anew.
        """
        entry = self.task_log.entries.get(task)
        if entry is None:
            return []
        folders, files = {folder for name in names for folder in stage_outputs.folders_of(name)}, set(names)
        crossed = {path for path, _, _ in entry.outputs if path in folders or not files.isdisjoint(stage_outputs.folders_of(path))}
        for path in sorted(crossed):
            if not self._is_taken(path, task) and not stage_outputs.is_folder(os.path.join(self.folder, path)):
                self._remove_output(path)
                self._remove_empty(stage_outputs.folders_of(path))
        kept = tuple(output for output in entry.outputs if output[0] not in crossed)
        if crossed:
            self._enter(entry._replace(key="", outputs=kept))
        return [path for path, _, _ in kept]

    def _publish_problem(self, error: OSError) -> str:
        """Return what about the place of an output kept it from being renamed there, "" if that is no fault of the task's."""
        path = os.path.relpath(os.fsdecode(error.filename2 or error.filename or self.folder), self.run.root).replace(os.sep, "/")
        if error.errno == errno.EXDEV:
            return "%s would lie on another file system than %s, and an output is renamed into its place; let all of the output folder lie on one" % (
                path, self.stage.output_dir)
        return task_work.in_the_way(path, error)

    def _hash_output(self, full: str) -> Tuple[int, str]:
        """Return (bytes, SHA-256); a large file is hashed only when no later write can hide behind its time stamp."""
        try:
            found = os.lstat(full)
        except OSError:
            return -1, ""
        if found.st_size >= SETTLE_BYTES:
            now, device = self.run.digests.file_system_time()
            if not file_digests.is_settled(file_digests.signature(found), now, device):
                self.run.clock.wait(1.5 * file_digests.FRESH_NS / 1e9)
        return file_digests.output_content(full, self.run.digests.heed)

    def _target_problem(self, task: Task, name: str) -> str:
        """Return why a task may not make *name*, or ""."""
        problem = self._input_problem(name)
        if problem:
            return problem
        owner = self._holder(task.name, folded(name))
        if owner and owner not in self.open:
            theirs = next(path for path, _, _ in self.task_log.entries[owner].outputs if folded(path) == folded(name))
            return "it makes %s/%s, which task %s makes%s; each task must make files of its own" % (self.stage.output_dir,
                name, owner, foreign_outputs.but_for(name, theirs))
        return self.others.problem("it makes", name)

    def _holder(self, task: str, target: str) -> str:
        """Return which other task the log says has made *target*, or ""."""
        owner = self.owner_of.get(target, task)
        entry = self.task_log.entries.get(owner) if owner != task else None
        return owner if entry is not None and any(folded(output[0]) == target for output in entry.outputs) else ""

    def _enter(self, entry: task_log.Entry) -> None:
        super()._enter(entry)
        if entry.status == "ok" and entry.key:
            self.open.discard(entry.task)

    def _is_taken(self, path: str, task: str) -> bool:
        """Tell whether what lies at *path*, and *task* has made, is another task's by now.

        Names that differ in case only may be of one task only, for many systems do not tell them apart; where they are two files,
        each is its maker's still.
        """
        owner = self.owner_of.get(folded(path), task)
        entry = self.task_log.entries.get(owner) if owner != task else None
        theirs = next((other for other, _, _ in entry.outputs if folded(other) == folded(path)), path) if entry is not None else path
        return owner != task and not self._are_two_files(path, theirs)

    def _are_two_files(self, path: str, other: str) -> bool:
        """Tell whether two names that differ in case at most are two files here."""
        one, two = os.path.join(self.folder, path), os.path.join(self.folder, other)
        if path == other or not is_there(one):
            return False
        return not is_there(two) or not file_systems.is_one_file(one, two)

    def _claim(self, task: str, name: str) -> None:
        """Let a task have *name*; what another that is to be done anew has made there is not its own any more, nor is it up to
        date.

        In the log before the file is exchanged: no path may be that of two tasks, else the one would remove what the other made.
        """
        target = folded(name)
        owner = self._holder(task, target)
        entry = self.task_log.entries[owner] if owner else None
        if entry is not None and not any(self._are_two_files(path, name) for path, _, _ in entry.outputs if folded(path) == target):
            self._enter(entry._replace(key="", outputs=tuple(output for output in entry.outputs if folded(output[0]) != target)))
        self.owner_of[target] = task

    def _publish(self, folder: str, name: str, digest: str) -> None:
        source, target = os.path.join(folder, name), os.path.join(self.folder, name)
        parent = os.path.dirname(target)
        if parent not in self.run.made_folders:
            durable_files.make_folder(parent, self.store.commit)
            self.run.made_folders.add(parent)
        replace(source, target)
        self.store.commit.add_file(target)
        found = os.lstat(target)
        if found.st_size >= SETTLE_BYTES and found.st_mtime_ns < found.st_ctime_ns - file_digests.FRESH_NS:
            self.made.add(name, task_files.plain(file_digests.signature(found)), digest)

    def _paths_and_inodes(self) -> Tuple[List[str], List[int]]:
        facts, (paths, inodes) = self.facts.tasks, super()._paths_and_inodes()
        left = [path for path, _ in facts.left]     # for a later run
        return [*facts.paths, *left, *paths], [*facts.packed[task_files.INODE::task_files.FIELDS],
                                               *task_files.signatures(self.run.root, left)[task_files.INODE::task_files.FIELDS], *inodes]

    def _remove_output(self, path: str) -> None:
        """Remove an output, and the folders that it was the last one in: they would be in the way of an output that is called so.
        These, too, where it is gone already: a kill may have come in between."""
        full = os.path.join(self.folder, path)
        if is_there(full):
            durable_files.remove_durably(full, self.store.commit)
        if "/" not in path or recorded_outputs.link_on_the_way(self.folder, path):
            return
        if self.others_folders is None:
            self.others_folders = recorded_outputs.folders_of_others(self.run.spec, self.stage.name, self.stage.output_dir)
        others = self.others_folders if self.others.are_beside() else self.others_folders - {""}
        self._remove_empty(one[:-1] for one in stage_outputs.own_folders([one + "/" for one in stage_outputs.folders_of(path)], others))

    def _remove_empty(self, folders: Iterable[str]) -> None:
        for folder in sorted(folders, reverse=True):
            full = os.path.join(self.folder, folder)
            if durable_files.remove_empty_folder(full, self.store.commit):
                self.run.made_folders.discard(full)

    # --- the end

    def _end(self, facts: task_look.Tasks) -> StageResult:
        self._see_to_gone(facts)
        self._let_go_of_taken()
        self._tell_of_unrecorded()
        self._see_to_lost(facts)
        self._tell_of_former()
        failure = stage_work.with_change("" if self.is_stopped else self._changed_unseen(), self._failure() or self._pruned_text())
        if not failure and self.failed:
            self._drop_failed_outputs()
        table, wrong = self._check_all(facts)
        if wrong and not failure:
            failure = "not what its task made: %s" % task_look.shown("%s (%s)" % one for one in sorted(wrong.items()))
        self._close_logs()
        self._sync_older(facts, table)
        self.run.durability.flush()                # all that the record vouches for is on the disk
        if not self.is_stopped and not self.survivors:
            self._clear_staging_of_ended()
        finished = [entry for entry in self.task_log.entries.values() if entry.status in task_log.GOOD and entry.task not in self.open]
        done = [entry for entry in finished if entry.status == "ok"]
        self.counts = task_log.sum_counts(entry.counts for entry in done) or self._none_counted(any(entry.bytes_in for entry in done))
        kept = [entry for entry in finished if entry.status == "kept" and entry.outputs]
        is_known = all(entry.key for entry in kept)     # else only a part of what was counted is there
        self._note_in_outputs(task_log.sum_counts([self.counts] + [entry.counts for entry in kept]) if is_known else {})
        failure = failure or self._uncounted() or self._judge_all()
        if failure:
            return self._give_up(failure, self.is_stopped)
        return self._succeed_with(facts, table)

    def _clear_staging_of_ended(self) -> None:
        """Remove the private folders, but for those of failed tasks that the next run can go on in."""
        places = task_work.names_in(self.progress_folder) if self.failed and self.stage.checkpoint else []
        kept = {name.split(".")[0] for name in places if name.endswith(".json")}
        if kept:
            self._clear_folders(kept)
        else:
            shutil.rmtree(self.staging, ignore_errors=True)

    def _judge_all(self) -> str:
        """As _judge(), of what all tasks have made."""
        if not control_totals.is_judged(self.stage):
            return ""
        failure = self._judge(self._listed(most=len(self._outputs())))
        if len(self.refused) > task_look.LISTED_OUTPUTS:
            self.refused = ALL_OF_LOG
        return failure

    def _uncounted(self) -> str:
        """Return that a task of an earlier run reported no counts, where they are needed now, or ""."""
        for entry in self.task_log.entries.values():
            missing = control_totals.missing_counts(self.stage, entry.counts) if entry.status == "ok" and entry.bytes_in else []
            if missing:
                return "task %s: %s; --force %s does all tasks anew" % (entry.task, control_totals.missing_text(self.stage, missing), self.stage.name)
        return ""

    def _sync_older(self, facts: task_look.Tasks, table: task_files.FileTable) -> None:
        """Let what earlier runs made be synced too, unless it is known to be: they may have been killed before they did it."""
        this_run, place = "%s/%d" % (self.run.options.run_id, self.run.invocation), 0
        synced = facts.synced.digests_of(table.paths, table.packed)
        for entry in self.task_log.entries.values():
            for path, _, digest in entry.outputs if entry.status in task_log.GOOD else ():
                if entry.run != this_run and synced[place] != digest:
                    self.store.commit.add_file(os.path.join(self.folder, path))
                place += 1

    def _listed(self, most: int = task_look.LISTED_OUTPUTS) -> List[Json]:
        """Return the outputs as records list them, none where they are more than *most*."""
        outputs = self._outputs()
        return [{"path": path, "bytes": size, "sha256": digest} for path, size, digest in sorted(outputs)] if len(outputs) <= most else []

    def _see_to_gone(self, facts: task_look.Tasks) -> None:
        """Tell of files that are not there any more; with `prune`, remove what their tasks made.

        Not where a whole folder is missing, or what was mounted: it may only not be mounted now.
        """
        if not facts.gone or self.is_stopped:
            return
        missing = self._missing()
        if self.stage.prune and missing:
            entries = [self.task_log.entries[name] for name in facts.gone]
            changed = [path for entry in entries if any(output[0] in facts.wrong for output in entry.outputs)
                       for path in self._keep(entry, facts.wrong)]
            self._note("%s: nothing is pruned%s" % (
                missing, "; not any more as it was made, and nobody's now: %s" % task_look.shown(changed) if changed else ""))
            self.is_pruned = False          # the next run must look again
            return
        is_recorded = any(self.task_log.entries[name].outputs for name in facts.gone)
        changed = self._prune(facts.gone, facts.wrong)
        self._note("%d file%s gone: %s; %s%s" % (
            len(facts.gone), " is" if len(facts.gone) == 1 else "s are", task_look.shown(facts.gone),
            ("outputs removed" if is_recorded else "no outputs of it are recorded") if self.stage.prune
            else "outputs kept (\"prune\": true removes them)",
            ", but for what is not any more as it was made: %s" % task_look.shown(changed) if changed else ""))

    def _missing(self) -> str:
        """Return which folder in which a glob begins is not there, or on which nothing is mounted any more, or "": nothing of it
        counts as gone."""
        for folder in map(_fixed_folder, self.stage.for_each):
            if not os.path.isdir(os.path.join(self.run.root, folder)):
                return "the folder %s is missing" % folder
        for folder in self._recorded_mounts() if self.stage.name not in self.run.options.force else ():
            if not os.path.ismount(os.path.join(self.run.root, folder)):
                return "nothing is mounted on %s any more, where files of tasks were (mount it; if it is to stay so: --force %s)" % (folder, self.stage.name)
        return ""

    def _recorded_mounts(self) -> List[str]:
        found: List[str] = self.facts.record.get("mounts", []) if self.facts.record is not None else []
        return found

    def _record_mounts(self, mounts: Iterable[str]) -> None:
        """Let the record say what must be mounted when files of tasks are missed."""
        self.more_of_record = {**self.more_of_record, "mounts": sorted(mounts)}
        if not self.more_of_record["mounts"]:
            del self.more_of_record["mounts"]

    def _missed_mounts(self, facts: task_look.Tasks) -> List[str]:
        """Return what the last record says must be mounted, as long as something is kept of files that are gone."""
        alive = set(facts.paths) | {path for path, _ in facts.left}
        is_kept = any(entry.outputs for name, entry in self.task_log.entries.items() if name not in alive)
        return self._recorded_mounts() if is_kept else []

    def _keep(self, entry: task_log.Entry, wrong: FrozenSet[str]) -> List[str]:
        """Note that the file of a task is gone, and what it made is kept; return the paths of what is not any more as it was
        made: that is nobody's now."""
        if entry.status == "failed":        # what it made before it failed has not been looked at
            wrong = wrong | {path for path, size, digest in entry.outputs if not self._is_as_made(path, size, digest)}
        lost = [path for path, _, _ in entry.outputs if path in wrong and not self._is_taken(path, entry.task)]
        self._keep_of(entry, tuple(output for output in entry.outputs if output[0] not in wrong))
        return lost

    def _keep_of(self, entry: task_log.Entry, outputs: Sequence[Output]) -> None:
        """Note what is kept of a file that is gone. Of what failed, or is not whole any more, the task is done anew should the
        file come back."""
        is_whole = entry.status in task_log.GOOD and len(outputs) == len(entry.outputs)
        self._enter(entry._replace(status="kept", key=entry.key if is_whole else "", outputs=tuple(outputs)))

    def _prune(self, gone: Sequence[str], wrong: FrozenSet[str]) -> List[str]:
        """Note that files are gone, and with `prune` remove what their tasks made; return the paths of what somebody has changed
        since: that stays."""
        changed: List[str] = []
        read = set(self.facts.tasks.paths) if self.stage.prune else set()
        for name in gone:
            entry = self.task_log.entries[name]
            if not self.stage.prune:
                changed += self._keep(entry, wrong)
                continue
            for path, size, digest in entry.outputs:
                if self._is_taken(path, name):
                    continue
                is_behind_link = recorded_outputs.link_on_the_way(self.folder, path)    # there anything may lie, an archive, say
                if is_there(os.path.join(self.folder, path)) and (is_behind_link or not self._is_as_made(path, size, digest)):
                    changed.append(path + (" (behind a link)" if is_behind_link else ""))
                    continue
                self._remove_output(path)
                if "%s/%s" % (self.stage.output_dir, path) in read:
                    self.pruned_inputs.append(path)
            self._enter(entry._replace(status="gone", outputs=(), run="%s/%d" % (self.run.options.run_id, self.run.invocation)))
        return changed

    def _pruned_text(self) -> str:
        """Return why what was made of a pruned output is no success, or ""."""
        inputs = ["%s/%s" % (self.stage.output_dir, path) for path in self.pruned_inputs]
        return "%s%s, which an earlier forEach of this stage had made and prune has removed; run again" % (
            stage_work.CHANGED, task_look.shown(inputs)) if inputs else ""

    def _is_as_made(self, path: str, size: int, digest: str) -> bool:
        """Tell whether an output is what its task made. Raises: OSError where a file cannot be read: then nobody knows, and
        nothing is entered."""
        full = os.path.join(self.folder, path)
        if is_there(full) and (is_link(full) or stat.S_ISREG(os.lstat(full).st_mode)):
            return file_digests.read_content(full) == (size, digest)
        return False

    def _let_go_of_taken(self) -> None:
        """What is kept of a file that is gone is not its own any more, once the task of another file (it was renamed, say) makes
        it."""
        for entry in [one for one in self.task_log.entries.values() if one.status == "kept"]:
            own = [output for output in entry.outputs if not self._is_taken(output[0], entry.task)]
            if len(own) < len(entry.outputs):
                self._keep_of(entry, own)

    def _drop_failed_outputs(self) -> None:
        """Failures are allowed: what these tasks made of an earlier version of their files must not pass for today's."""
        for name in self.failed:
            entry = self.task_log.entries[name]
            for path, _, _ in entry.outputs:
                self._remove_output(path)
            if entry.outputs:
                self._enter(entry._replace(outputs=()))

    def _check_all(self, facts: task_look.Tasks) -> Tuple[task_files.FileTable, Dict[str, str]]:
        """Look at every output once more, for what is recorded must be there; the table is the next run's cache."""
        return task_look.check_outputs(self.folder, self._outputs(), facts.outputs.joined(self.made), self.run.digests)

    def _outputs(self) -> List[Output]:
        return task_log.outputs_of(self.task_log.entries)

    def _succeed_with(self, facts: task_look.Tasks, table: task_files.FileTable) -> StageResult:
        self.exit_code = 0
        outputs, listed = self._outputs(), self._listed()
        self._record_mounts({*self.mounts, *self._missed_mounts(facts)})
        self._write_record("ok", "", outputs=listed)
        self.run.records.caches.update(task_look.cache_of(self.store, self.stage, self.facts._replace(tasks=facts._replace(outputs=table, is_cached=False)),
                                                  self._output_digest(), self.run.boot, "", self.is_pruned))
        if not self.failed:
            self.run.durability.write_marker(self.stage, self.key)
        self.console.event("DONE", self.stage.name, " in %.3fs (%d task%s%s)" % (
            self._duration_s(), len(self.done), "" if len(self.done) == 1 else "s",
            ", %d failed and allowed" % len(self.failed) if self.failed else ""))
        return self._result("ok", "; ".join(self.reasons), outputs=listed, bytes_out=sum(size for _, size, _ in outputs))

    def _output_digest(self) -> str:
        return task_log.output_digest(self._outputs())

    def _write_record(self, status: str, error: str, outputs: Optional[List[Json]] = None) -> None:
        record = self._record(status, error, self.earlier.outputs if outputs is None else outputs)
        if status == "ok":
            made = self._outputs()
            self.totals = {"outputs": len(made), "outputBytes": sum(size for _, size, _ in made), "outputsSha256": self._output_digest()}
        record["tasks"] = dict(self._summary(), **self.totals)
        record.update(self.more_of_record)
        if status == "ok":
            record.pop("logLost", None)
        else:
            record["token"] = self.lock.token
            record.update({"refused": self.refused} if self.refused else {})
        self._put_record(record)
