"""A stage of several tasks that must run, under its lock: the tasks side by side, each with attempts of its own.

Above the leaves and below the runner, which imports it for a stage with `forEach` or `chunks`.

    Task -> attempts in a private folder -> what it made is taken over (file_tasks, chunk_work) -> a line in the task log

Each task has its own folder as PIPELINE_OUTPUT_DIR, below <outputDir>/.<stage>.tasks. A kill before the line leaves a task that
is done again. A failed task does not stop the others; the stage fails in the end and names them.
"""
from __future__ import annotations

import errno
import json
import os
from collections import namedtuple

import attempts
import checkpoints
import control_totals
import durable_files
import file_digests
import files_read
import spec_checks
import stage_outputs
import stage_work
import task_files
import task_log
from model import SHOWN_NAMES, remedy_of, sha256
from primitives import is_there, naming, remove_quietly, storable, unlink
from scheduler import Next, Spawn, slots_for

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, Iterable, List, Optional, Set, Tuple

    from engine import Run
    from model import Checkpoint, Facts, StageResult, StageSpec
    from scheduler import Flow
    from stage_locks import StageLock
    Json = Dict[str, Any]
    Output = Tuple[str, int, str]

SHOWN_FAILURES = 10         # of failed tasks whose last output is shown
AHEAD = 2                   # tasks that are prepared for each that runs
FULL_DISKS = 3          # tasks that fail one after another for a full disk: then no more are started
FULL = tuple(getattr(errno, name) for name in ("ENOSPC", "EDQUOT") if hasattr(errno, name))
IN_THE_WAY = (errno.EISDIR, errno.ENOTDIR, errno.ENOTEMPTY, errno.EEXIST)     # of renaming an output into its place
FOLDER_NAME_LENGTH = 20
COUNTS_ENDING = ".counts.json"  # behind the name of a task's folder
SYNC_S = 5.0                # between two syncs: what a power cut takes back is done again, what is left is verified


class Task(namedtuple("Task", "number name key inputs folder variables stamps bytes_in stdin", defaults=(None,))):
    """One of several tasks of a stage.

    name: for people and in the log. inputs: paths for its command line, relative to the root. folder: its private one. variables:
    what its environment has besides the stage's. stamps: {path: signature} of what must not change meanwhile.
    """

    __slots__ = ()


class TaskTrial(stage_work.Trial):
    """A task under way. folder: where it works; its own, or that of the slot that it has for now."""

    is_log_lazy = True

    def __init__(self, task: Task, **more: Any) -> None:
        super().__init__(key=task.key, inputs=task.inputs, stamps=task.stamps, folder=task.folder, counts_path=task.folder + COUNTS_ENDING, **more)
        self.task = task
        self.compared = (task.name,)        # what all tasks share is compared once for all, see _changed_unseen()
        self.outputs: List[Output] = []
        self.published: List[Output] = []   # of these, what has its name already
        self.full_disk = ""                 # how little room there was when the last attempt had failed, "" if that may not be why
        self.counts: Json = {}


def staging_root(folder: str, stage: str) -> str:
    """Return where the private folders of a stage's tasks are: on the file system of its outputs, hidden from globs."""
    return os.path.join(folder, ".%s.tasks" % stage)


def folder_name(name: str, key: str) -> str:
    """Return the name of a task's folder: another key, another folder."""
    return sha256(("%s\0%s" % (key, name)).encode("utf-8")).hexdigest()[:FOLDER_NAME_LENGTH]


def names_in(folder: str) -> List[str]:
    """Return the names of what is in a folder, none where it cannot be listed."""
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _tells_of_full_disk(said: bytes) -> bool:
    """Tell whether the last words of a processor are of a full disk: who has removed what did not fit leaves it with room
    again."""
    return any(os.strerror(number).encode("utf-8", "replace") in said for number in FULL)


def in_the_way(path: str, error: OSError) -> str:
    """Return that what lies at *path* kept an output from being renamed there, "" if that was something else."""
    remedy = "; remove it, or give the output another name" if error.errno in IN_THE_WAY else remedy_of(error)
    is_told = error.errno in IN_THE_WAY or error.errno == errno.EBUSY
    return "%s is in the way of its output: %s%s" % (path, error.strerror, remedy) if is_told else ""


def _write(path: str, data: bytes) -> None:
    """Write a file in place: read by one slot's processor only, which is not there yet.

    Not emptied first: a file that was is written out to the disk when it is closed (ext4, auto_da_alloc), for each task anew.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
    with naming(path):
        try:
            durable_files.write_all(descriptor, data)
            os.ftruncate(descriptor, len(data))
        finally:
            os.close(descriptor)


def take_rights(folder: str) -> None:
    """Give ourselves back all rights on a private folder: a processor may have copied those of another folder to it (cp -a)."""
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        try:
            os.chmod(folder, 0o700)
        except OSError:
            pass                        # whoever needs them says what is wrong


class TasksWork(stage_work.StageWork):
    """What stages of several tasks have in common."""

    def __init__(self, run: Run, stage: StageSpec, lock: StageLock, facts: Facts) -> None:
        super().__init__(run, stage, lock, facts)
        self.staging = staging_root(self.folder, stage.name)
        self.progress_folder = self.store.path(task_files.progress_name(stage.name))
        self._of_shared = ""            # what made_from() says of what tasks share
        self._found_progress: Optional[Dict[str, List[str]]] = None     # name of a task's folder -> of its files of progress
        self.task_log = task_log.TaskLog(self.store.folder, stage.name)
        self.total = self.up_to_date = self.vanished = 0
        self.done: List[str] = []
        self.failed: Dict[str, str] = {}
        self.full_disks = 0             # tasks that failed one after another while the disk was full
        self.met_full_disk = ""         # what was said of the disk then: their folders are gone when the stage has failed
        self.machine_faults: Dict[str, str] = {}        # of these, what maxFailedTasks does not allow
        self.is_stopped = False
        self.no_outputs: List[str] = []             # what tasks made that is none for its name: the first few
        self.totals: Json = {}                      # number, bytes and digest of all outputs, once all are there
        self.server: Any = None                     # forks Python processors
        self.is_without_server = False
        self._files_read: Optional[files_read.FilesRead] = None
        self._of_all_tasks: Optional[Dict[str, str]] = None     # variables
        self._evidence_file: Any = None
        self._evidence_digest = sha256()
        self._evidence_bytes = 0
        self._unevidenced = 0                       # lines of the task log that the evidence lacks

    # --- the log

    def _open_log(self) -> None:
        self.task_log.open(self._write_log)

    def _write_log(self, path: str, data: bytes) -> None:
        durable_files.write_atomic(path, data, self.store.commit)

    def _enter(self, entry: task_log.Entry) -> None:
        """Write a task's line to the log, and to the evidence of this run."""
        line = self.task_log.append(entry)
        self._unevidenced += 1
        self.store.commit.files[self.task_log.path] = None
        if self._evidence_file is None:
            durable_files.make_folder(self.run.log_folder(), self.store.commit)
            self._evidence_file = open(self._evidence_path(), "wb")
        with naming(self._evidence_file.name):
            self._evidence_file.write(line)
        self._evidence_digest.update(line)
        self._evidence_bytes += len(line)
        self._unevidenced -= 1

    def _evidence_path(self) -> str:
        path: str = os.path.join(self.run.log_folder(), self.stage.name + ".tasks.jsonl")
        return path

    def _close_logs(self) -> None:
        self.task_log.compact_if_due(self._write_log)
        self.task_log.close()
        if self._evidence_file is not None:
            path = self._evidence_path()
            with naming(path):
                self._evidence_file.close()
            self._note_log(path, self._evidence_bytes, self._evidence_digest.hexdigest())

    def cut_short(self, status: str, why: str) -> StageResult:
        """As of all stages. The evidence is named only if it is whole: a log in which lines are missing would pass for an edited
        one."""
        file = self._evidence_file
        try:
            self.task_log.close()
            if file is not None and not file.closed:
                file.close()
                if not self._unevidenced:
                    self._note_log(file.name, self._evidence_bytes, self._evidence_digest.hexdigest())
        except OSError:
            pass
        return super().cut_short(status, why)

    def _subject(self, task: str) -> str:
        """Return how a task is named in what is told of it: the stage's name, a blank, its own."""
        return "%s %s" % (self.stage.name, task)

    # --- side by side

    def _run_tasks(self, tasks: Iterable[Task]) -> Flow:
        """A flow that runs tasks, some at a time, until all have ended or a signal came.

        Raises what one of them raised, after those under way have come to their end: the stage's lock is held for as long.
        """
        waiting, under_way, is_all = iter(tasks), 0, False
        most = self.run.jobs() * AHEAD
        error: Optional[Exception] = None
        try:
            while True:
                try:
                    while under_way < most and error is None and not self.run.signals.number and not self.survivors and self.full_disks < FULL_DISKS:
                        task = next(waiting, None)
                        if task is None:
                            is_all = True
                            break
                        yield Spawn(task.name, self._task(task))
                        under_way += 1
                    if not under_way:
                        break
                    under_way -= 1              # of whatever comes: a task that has ended, or its error
                    _, trial = yield Next()
                    self._note_trial(trial)
                    if error is None and self.run.clock.monotonic() - self.store.commit.since >= SYNC_S:
                        self.run.durability.flush()
                except Exception as raised:
                    error = error or raised
        finally:
            self._stop_server()
        if error is not None:
            raise error
        self._tell_of_no_outputs(self.no_outputs, "they are thrown away")
        self.is_stopped = self.is_stopped or not is_all and bool(self.run.signals.number)

    def row(self, expected_s: Optional[float]) -> Optional[Tuple[Any, ...]]:
        """Return what the live view shows: tasks that have come to their end, of all. What earlier runs took tells nothing: they
        had other tasks to do."""
        ended = self.up_to_date + len(self.done) + len(self.failed)
        return (self.stage.name, 1, None, None, ended, self.total, self.started, None) if self.total else None

    def _note_trial(self, trial: TaskTrial) -> None:
        name = trial.task.name
        if trial.stopped:
            self.is_stopped = True
        elif trial.failure:
            self.failed[name] = trial.failure
            if trial.is_machines:
                self.machine_faults[name] = trial.failure
                self.full_disks += bool(trial.full_disk)
                self.met_full_disk = trial.full_disk or self.met_full_disk
            self.exit_code = self.exit_code if self.exit_code is not None else trial.exit_code
            self.console.event("FAIL", self._subject(name), ": " + trial.failure)
        else:
            self.done.append(name)
            self.full_disks = 0

    def _task(self, task: Task) -> Flow:
        """A flow that returns the trial when its task has come to its end."""
        trial = self._new_trial(task)
        try:
            yield from self._try(trial, *self._start_of(trial, "running"))
        finally:
            self.attempts += trial.attempts
        if trial.failure and not trial.stopped:
            self._forget_refused(trial)
        if not trial.stopped:
            self._enter(self._entry(trial))
        return trial

    def _new_trial(self, task: Task) -> TaskTrial:
        name, number = self.stage.name, str(task.number + 1)
        return TaskTrial(task, name="%s/%s" % (name, task.name), subject=self._subject(task.name), log=os.path.join(self.run.log_folder(), task_log.log_folder_name(name), number),
                         token="%s.%s" % (self.lock.token, number), progress_path=self._progress_path(task), rank=(self.rank, task.number), group=name)

    def _entry(self, trial: TaskTrial) -> task_log.Entry:
        """Return what the log says of a task; one that failed keeps what an earlier version of it has made, and what it has
        published itself."""
        task, before = trial.task, self.task_log.entries.get(trial.task.name)
        outputs = tuple(trial.outputs)
        if trial.failure:
            new = {path for path, _, _ in trial.published}
            outputs = tuple([one for one in (before.outputs if before is not None else ()) if one[0] not in new] + trial.published)
        return task_log.Entry(task.name, task.key, "failed" if trial.failure else "ok", outputs, trial.counts, task.bytes_in, trial.attempts,
                              int((self.run.clock.monotonic() - trial.started) * 1000), storable(trial.failure),
                              "%s/%d" % (self.run.options.run_id, self.run.invocation))

    def _changed_unseen(self) -> str:
        """Return which file that tasks share has changed without a sign of it, or "": what this run's tasks made does not count
        then."""
        stamps = self.facts.material.stamps
        unsure = {path: stamp for path, stamp in stamps.items() if file_digests.is_unsure(stamp, stamp)} if self.done else {}
        changed = stage_work.changed_file(self.run.root, unsure, self._is_as_read)
        this_run = "%s/%d" % (self.run.options.run_id, self.run.invocation)
        for entry in list(self.task_log.entries.values()) if changed else ():
            if entry.run == this_run:
                self._enter(entry._replace(key=""))
        return changed

    # --- one task

    def _progress_path(self, task: Task) -> str:
        """Return the path of a task's progress file: where a file that it is made from is not the very one any more, another, see
        checkpoints.made_from()."""
        made_from = self._made_from(task) if self.stage.checkpoint else ""
        path: str = os.path.join(self.progress_folder, "%s.%s.json" % (os.path.basename(task.folder), made_from))
        return path

    def _made_from(self, task: Task) -> str:
        own, shared = task.variables["PIPELINE_TASK"], self.facts.material
        if not self._of_shared:
            others = set(shared.inputs) if self.stage.chunks is not None else set()     # of which a chunk reads but one
            self._of_shared = checkpoints.made_from({path: stamp for path, stamp in shared.stamps.items() if path not in others})[0]
        of_own = checkpoints.made_from({own: task.stamps[own]})[0]
        return sha256((self._of_shared + of_own).encode("ascii")).hexdigest()[:FOLDER_NAME_LENGTH]

    def _outdated_progress(self, trial: TaskTrial) -> List[str]:
        """Return the paths of the progress files that a task has left which was made from other files."""
        if self._found_progress is None:
            self._found_progress = {}
            for name in names_in(self.progress_folder):
                self._found_progress.setdefault(name.split(".")[0], []).append(name)
        own = {os.path.basename(one) for one in (trial.progress_path, checkpoints.whole_path(trial.progress_path))}
        names = self._found_progress.get(os.path.basename(trial.task.folder), [])
        return [os.path.join(self.progress_folder, name) for name in sorted(names) if name not in own]

    def _next_start(self, trial: TaskTrial) -> Tuple[int, bool]:
        return self._start_of(trial, "failed")

    def _start_of(self, trial: TaskTrial, last_status: str) -> Tuple[int, bool]:
        """Return (line offset, whether to resume) after making the task's folder ready."""
        task = trial.task
        if self.stage.checkpoint and os.path.isdir(task.folder):
            found = self._checkpoint_of(trial, last_status)
            if found is not None and found.resumable:
                if not found.complete:
                    stage_outputs.cut_to_checkpoint(task.folder, found.outputs)
                stage_outputs.remove_parts(task.folder, self.stage.name, set() if found.complete else set(found.outputs))
                return found.line_offset, True
            problem = found.problem if found is not None else checkpoints.TOUCHED if self._outdated_progress(trial) else ""
            if problem:
                self.console.event("NOTE", trial.subject, ": checkpoint not used: " + problem)
        self._clear(trial)
        return 0, False

    def _checkpoint_of(self, trial: TaskTrial, last_status: str) -> Optional[Checkpoint]:
        record = {"idempotencyKey": trial.key, "bootId": self._boot_of(trial), "lastStatus": last_status, "baseline": {}, "stage": self.stage.name}
        return checkpoints.checkpoint_at(trial.progress_path, trial.task.folder, record, trial.key, self.run.boot)

    def _forget_refused(self, trial: TaskTrial) -> None:
        """After the last attempt, which failed: the next run does not know that, and would hear that nothing is left to be done."""
        found = self._checkpoint_of(trial, "failed") if self.stage.checkpoint else None
        if found is not None and found.complete:
            self._drop_checkpoint(trial)

    def _drop_checkpoint(self, trial: TaskTrial) -> None:
        durable_files.remove_durably(trial.progress_path, self.store.commit)    # what it stands for goes before the next attempt

    def _drop_unsynced(self, record: Optional[Json]) -> None:
        """Before "running" is recorded under today's boot: after a restart, or where nobody knows of when they are, remove the
        checkpoints that nobody has synced."""
        if not self.stage.checkpoint or record is not None and record.get("bootId") == self.run.boot:
            return
        dropped = 0
        for name in names_in(self.progress_folder):
            path = os.path.join(self.progress_folder, name)
            progress, _ = checkpoints.read_progress(path) if name.endswith(".json") else ({"durable": True}, "")
            if progress is None or progress.get("durable") is not True:
                remove_quietly(path)
                dropped += 1
        if dropped:
            self._note("%d checkpoint%s of tasks not used: not synced, and %s" % (
                dropped, "" if dropped == 1 else "s", "the machine has been restarted since" if record is not None else "no record says in which boot they were made"))

    def _boot_of(self, trial: TaskTrial) -> str:
        """Return the boot under which a checkpoint was made, "" if nobody knows."""
        record = self.facts.record if not trial.attempts else {"bootId": self.run.boot}
        return str(record.get("bootId")) if record is not None else ""

    def _clear(self, trial: TaskTrial) -> None:
        """Remove what there is of a task's folder and checkpoint."""
        if is_there(trial.folder):
            durable_files.clear_tree(trial.folder)
        if self.stage.checkpoint:
            for one in (trial.progress_path, checkpoints.whole_path(trial.progress_path), *self._outdated_progress(trial)):
                remove_quietly(one)

    def _clear_folders(self, kept: Set[str]) -> None:
        """Remove the private folders and checkpoints of tasks but those named."""
        for top in (self.staging, self.progress_folder):
            for name in names_in(top):
                if name.split(".")[0] not in kept:
                    self.earlier.has_cleared = True
                    full = os.path.join(top, name)
                    durable_files.clear_tree(full) if stage_outputs.is_folder(full) else unlink(full)

    def _how(self, trial: TaskTrial, launch: attempts.Launch) -> attempts.Launch:
        """As of all stages, with the stage's fork server, for Python."""
        if not self.stage.fork_server or self.stage.launcher or self.total < 2 or spec_checks.program_kind(
            self.stage.processor) != "python" or self.is_without_server:
            return launch
        import fork_client
        if self.server is not None and self.server.is_dead and any(one.launch.server is self.server
                                                                   for one in self.run.pool.running + self.run.pool.unclear):
            return launch               # the pool still reads what the tasks of the dead one have left in its pipes
        if self.server is None or self.server.is_dead:
            self._stop_server()
            self.is_without_server = bool(fork_client.why_not(launch.env))
            if self.is_without_server:
                return launch
            server = fork_client.ForkServer(self.run.root, launch.argv[1], *fork_client.code_of(self.run.digests, self.stage.processor))
            try:
                server.start(launch.env, self.lock.token, self.lock.descriptor, slots_for(self.run.jobs()))
            except fork_client.ServerDied as died:
                self._note("%s; each task is started by itself" % died)
                self.is_without_server = True
                return launch
            self.server = server
            self.run.pool.others.add(server.pid)
        return launch._replace(server=self.server)

    def _stop_server(self) -> None:
        if self.server is not None:
            self.run.pool.retire(self.server)      # an error in one flow leaves others' attempts at work
            self.server = None

    def _begin_attempt(self, trial: TaskTrial, slot: int, offset: int, is_resume: bool) -> Any:
        """As of all stages. A private folder that cannot be made is this task's failure: others may find room, or rights."""
        try:
            return super()._begin_attempt(trial, slot, offset, is_resume)
        except OSError as error:
            path = os.fsdecode(error.filename or "")
            if not (path + os.sep).startswith(self.staging + os.sep):
                raise
            trial.network = None        # nothing was started
            shown = os.path.relpath(path, self.run.root).replace(os.sep, "/")
            return attempts.not_begun("cannot make %s: %s%s" % (shown, error.strerror, remedy_of(error)))._replace(is_machines=True)

    def _make_ready(self, trial: TaskTrial, slot: int, offset: int, is_resume: bool) -> None:
        """Make the folder that the attempt writes to."""
        os.makedirs(trial.folder, exist_ok=True)
        if is_resume:
            self.console.event("RESUME", trial.subject, " from line %d" % offset)

    def _variables(self) -> Dict[str, str]:
        if self._of_all_tasks is None:
            self._of_all_tasks = super()._variables()
        return self._of_all_tasks

    def _environment(self, trial: TaskTrial, slot: int, offset: int, is_resume: bool) -> Dict[str, str]:
        env = super()._environment(trial, slot, offset, is_resume)
        env.update(trial.task.variables)
        if self.stage.checkpoint:
            os.makedirs(self.progress_folder, exist_ok=True)
        elif not self.stage.launcher and self.stage.chunks is None:
            # Of what is in the private folder nothing counts until the runner has synced it, many at once.
            env["PIPELINE_SYNC"] = "runner"
        return env

    def _write_inputs(self, trial: TaskTrial, slot: int) -> str:
        path: str = self.store.path(task_files.inputs_name(self.stage.name, slot))
        with naming(path):
            _write(path, json.dumps(trial.inputs, ensure_ascii=False).encode("utf-8"))
        return path

    def _note_argv(self, argv: List[str]) -> None:
        self.argv = self.argv or argv       # of the first, to show how they were all called

    def _note_attempt(self, trial: TaskTrial, result: attempts.AttemptResult) -> attempts.AttemptResult:
        result = super()._note_attempt(trial, result)
        is_judged = bool(trial.failure) and not trial.stopped
        trial.full_disk = self._full_disk_text() if is_judged else ""       # what it wrote is still there
        trial.is_machines = trial.is_machines or is_judged and bool(result.is_machines or trial.full_disk or _tells_of_full_disk(result.tail))
        return result

    def _failure_of(self, result: attempts.AttemptResult) -> str:
        """As of all attempts, with the last line that it printed: of many tasks only that is seen of each."""
        failure = super()._failure_of(result)
        return failure + stage_work.last_words(failure, result)

    def _note_evidence(self, trial: TaskTrial, result: attempts.AttemptResult) -> None:
        if result.log[0]:
            self._note_log(trial.log_path, *result.log, task=trial.task.name)
        self.refusals += trial.network.recorded()

    def _shows_output(self) -> bool:
        return len(self.failed) < SHOWN_FAILURES

    def _list_made(self, trial: TaskTrial) -> List[str]:
        """Return the files that a task has left in its folder, sorted, and note what is none for its name; sets the trial's failure
        if they cannot be listed."""
        if not stage_outputs.is_folder(trial.folder):
            trial.failure = trial.failure or "its folder for outputs is not there any more, or is a link"
            return []
        take_rights(trial.folder)
        try:
            there = stage_outputs.list_folder(trial.folder)
        except PermissionError as error:
            trial.failure = trial.failure or "%s (it must be able to list what it leaves)" % error
            return []
        trial.failure = trial.failure or stage_work.unfinished_text(there, self.stage.name)
        if len(self.no_outputs) <= SHOWN_NAMES:
            self.no_outputs += ["%s of %s" % (name, trial.task.name) for name in stage_outputs.no_outputs(stage_outputs.NOTHING, there)]
        return sorted(there.files)

    def _made(self, trial: TaskTrial) -> List[str]:
        """Return the files that a task made and that count as its outputs; sets the trial's failure if one is missing."""
        names = self._list_made(trial)
        if self.declared is not None:
            for pattern in self.declared.unmatched(names)[:1]:
                trial.failure = trial.failure or "declared output %s was not made" % pattern
            names = list(filter(self.declared.matches, names))
        for name in names:
            if not file_digests.is_unicode(name):
                trial.failure = stage_work.NOT_UTF_8 % ascii(name)
        for folder in sorted({os.path.dirname(name) for name in names if "/" in name}):
            if not os.access(os.path.join(trial.folder, folder), os.W_OK | os.X_OK):
                trial.failure = trial.failure or "it leaves the folder %s without the right to write in it, so nothing can be taken out of it" % folder
        return names

    def _input_problem(self, name: str) -> str:
        """Return why *name* may not be an output of a stage with these inputs, or ""."""
        if self._files_read is None:
            self._files_read = files_read.FilesRead(self.run.root, self.stage.output_dir, *self._paths_and_inodes())
        own = "%s/%s" % (self.stage.output_dir, name)
        path = self._files_read.name_of(name)
        return "it makes %s, which the stage reads%s; an output must not take the place of an input" % (
            own, "" if path == own else " as %s" % path) if path else ""

    def _paths_and_inodes(self) -> Tuple[List[str], List[int]]:
        """Return what the stage reads: inputs, watched files, code."""
        stamps = self.facts.material.stamps
        return list(stamps), [stamp[task_files.INODE] for stamp in stamps.values()]

    def _take_counts(self, trial: TaskTrial) -> None:
        """Take the counts that the processor reported: in the file of counts, else with its checkpoint. None where they are
        needed: a failure."""
        problem = self._read_counts(trial)
        missing = control_totals.missing_counts(self.stage, trial.counts)
        if missing and trial.task.bytes_in and not trial.failure:      # in an empty file there is nothing to count
            trial.failure = control_totals.missing_text(self.stage, missing, problem)

    def _read_counts(self, trial: TaskTrial) -> str:
        """Take what was reported as the trial's; return why the file in which the processor did so cannot be used, or ""."""
        path = trial.counts_path
        counts, problem = control_totals.read_counts(path)
        if problem:
            self.console.event("NOTE", trial.subject, ": the counts that it reported are not used: %s" % problem)
        if counts is not None or problem:
            remove_quietly(path)
        if counts is not None or not self.stage.checkpoint:
            trial.counts = counts or {}
            return problem
        progress, _ = checkpoints.read_progress(trial.progress_path)
        if progress is not None:
            trial.counts = progress.get("counts", {})
        return problem

    # --- the end

    def _give_up(self, failure: str, stopped: bool) -> StageResult:
        is_told = stopped or self._full_disk_text()
        return super()._give_up(failure if is_told else failure + self.met_full_disk, stopped)

    def _judge(self, outputs: List[Json]) -> str:
        """As of all stages; of many tasks none is done again for that, for a laxer limit or a file more may settle it."""
        failure = super()._judge(outputs)
        return failure and "%s; the tasks stay done and are judged again by the next run: --force %s does them anew" % (failure, self.stage.name)

    def _summary(self) -> Json:
        return {"total": self.total, "ok": len(self.done), "skipped": self.up_to_date, "failed": len(self.failed), "vanished": self.vanished}

    def _failure(self) -> str:
        """Return why the stage fails, or ""."""
        if self.is_stopped:
            return "interrupted"
        return attempts.survivors_text(self.survivors) if self.survivors else self._failure_text()

    def _failure_text(self) -> str:
        """Return why the stage fails for its tasks' sake, or ""."""
        told, what = self.failed, "failed"
        if len(self.failed) <= self.stage.max_failed_tasks:
            told, what = self.machine_faults, "failed for what maxFailedTasks does not allow, as it may be no fault of their files"
        if not told:
            return ""
        shown = ["%s (%s)" % one for one in sorted(told.items())[:SHOWN_NAMES]]
        more = ["and %d more" % (len(told) - len(shown))] if len(told) > len(shown) else []
        left = self.total - self.up_to_date - len(self.done) - len(self.failed)
        not_started = "; the disk is full, so %d more were not started" % left if left and self.full_disks >= FULL_DISKS else ""
        return "%d of %d tasks %s: %s%s" % (len(told), self.total, what, "; ".join(shown + more), not_started)

    def _evidence(self) -> Json:
        return dict(super()._evidence(), tasks=dict(self._summary(), **self.totals))
