"""A stage of several tasks that must run, under its lock: the tasks side by side, each with attempts of its own.

Above the leaves and below the runner, which imports it for a stage with `forEach` or `chunks`.

    Task -> attempts in a private folder -> published by rename -> a line in the task log -> stage record, marker

Each task has its own folder as PIPELINE_OUTPUT_DIR, below <outputDir>/.<stage>.tasks. What it made is hashed, renamed into place, and
then entered in the log: a kill before the line leaves a task that is done again, over what it has published. A failed task
does not stop the others; the stage fails in the end and names them.
"""
from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import sys
from collections import namedtuple

import attempts
import checkpoints
import control_totals
import file_digests
import spec_checks
import stage_outputs
import stage_work
import state_store
import task_files
import task_log
import task_look
from model import ALL_OF_LOG, sha256
from primitives import remove_quietly, replace, unlink
from scheduler import Attempting, Next, Pause, Spawn, slots_for

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, FrozenSet, Iterable, List, Optional, Sequence, Set, Tuple

    from model import Decision, Facts, StageResult, StageSpec
    from scheduler import Flow
    from stage_locks import StageLock
    Json = Dict[str, Any]
    Output = Tuple[str, int, str]

SHOWN_FAILURES = 10         # of failed tasks whose last output is shown
AHEAD = 2                   # tasks that are prepared for each that runs
FULL_DISKS = 3          # tasks that fail one after another for a full disk: then no more are started
FULL = tuple(getattr(errno, name) for name in ("ENOSPC", "EDQUOT") if hasattr(errno, name))
IN_THE_WAY = (errno.EISDIR, errno.ENOTDIR, errno.ENOTEMPTY, errno.EEXIST)
SETTLE_BYTES = 1 << 20      # outputs from here on are hashed only when their signature can be kept
FOLDER_NAME_LENGTH = 20
COUNTS_ENDING = ".counts.json"  # behind the name of a task's folder
SYNC_S = 5.0                # between two syncs: what a power cut takes back is done again, what is left is verified


class Task(namedtuple("Task", "number name key inputs folder variables stamps bytes_in stdin", defaults=(None,))):
    """One of several tasks of a stage.

    name: for people and in the log. inputs: paths for its command line, relative to the root. folder: its private one. variables:
    what its environment has besides the stage's. stamps: {path: signature} of what must not change meanwhile.
    """

    __slots__ = ()


class Trial:
    """A task under way: what its attempts have come to so far."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.folder = task.folder
        self.attempts = 0
        self.started = 0.0
        self.network: Any = None
        self.log_path, self.token = "", ""
        self.failure = ""
        self.is_machines = False        # the fault of the machine or of the processor, not of the task's file
        self.stopped = False
        self.exit_code: Optional[int] = None
        self.outputs: List[Output] = []
        self.published: List[Output] = []   # of these, what has its name already
        self.counts: Json = {}


def staging_root(folder: str, stage: str) -> str:
    """Return where the private folders of a stage's tasks are: on the file system of its outputs, hidden from globs."""
    return os.path.join(folder, ".%s.tasks" % stage)


def folder_name(name: str, key: str) -> str:
    """Return the name of a task's folder: another key, another folder."""
    return sha256(("%s\0%s" % (key, name)).encode("utf-8")).hexdigest()[:FOLDER_NAME_LENGTH]


def _link_problem(folder: str, name: str) -> str:
    """Return why the output *name* in a task's private folder would lead elsewhere in its place, or "": the folder goes with the task."""
    full = os.path.join(folder, name)
    if not os.path.islink(full):
        return ""
    target = os.readlink(full)
    leads_inside = os.path.normpath(os.path.join(os.path.dirname(full), target)).startswith(folder + os.sep)
    if leads_inside == os.path.isabs(target):
        how = "a name beside it, not the whole path" if leads_inside else "the whole path"
        return "output %s is a link to %s, which would lead elsewhere once the output is in its place; let it lead to %s" % (name, target, how)
    return ""


def _fixed_folder(pattern: str) -> str:
    """Return the folder in which a glob begins to look."""
    parts = pattern.split("/")
    return "/".join(parts[:next((place for place, part in enumerate(parts) if file_digests.has_wildcard(part)), len(parts) - 1)]) or "."


def _tells_of_full_disk(said: bytes) -> bool:
    """Tell whether the last words of a processor are of a full disk: who has removed what did not fit leaves it with room again."""
    return any(os.strerror(number).encode("utf-8", "replace") in said for number in FULL)


def _as_the_system_has_it(name: str) -> str:
    """Return a name as two names of one file are equal, where case may not matter."""
    return name.casefold() if sys.platform in ("win32", "darwin") else name


def _write(path: str, data: bytes) -> None:
    """Write a file in place: read by one slot's processor only, which is not there yet.

    Not emptied first: a file that was is written out to the disk when it is closed (ext4, auto_da_alloc), for each task anew.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
    try:
        state_store.write_all(descriptor, data)
        os.ftruncate(descriptor, len(data))
    finally:
        os.close(descriptor)


def _empty(folder: str) -> None:
    """Remove all that is in a folder."""
    with os.scandir(folder) as entries:
        for entry in entries:
            state_store.remove_tree(entry.path) if entry.is_dir(follow_symlinks=False) else unlink(entry.path)


class TasksWork(stage_work.StageWork):
    """What stages of several tasks have in common."""

    def __init__(self, run: Any, stage: StageSpec, lock: StageLock, facts: Facts) -> None:
        super().__init__(run, stage, lock, facts)
        self.staging = staging_root(self.folder, stage.name)
        self.progress_folder = self.store.path(task_files.progress_name(stage.name))
        self.task_log = task_log.TaskLog(self.store.folder, stage.name)
        self.total = self.up_to_date = self.vanished = 0
        self.done: List[str] = []
        self.failed: Dict[str, str] = {}
        self.full_disks = 0             # tasks that failed one after another while the disk was full
        self.machine_faults: Dict[str, str] = {}        # of these, what maxFailedTasks does not allow
        self.is_stopped = False
        self.no_outputs: List[str] = []             # what tasks made that is none for its name: the first few
        self.totals: Json = {}                      # number, bytes and digest of all outputs, once all are there
        self.server: Any = None                     # forks Python processors
        self.is_without_server = False
        self._inputs_here: Optional[Set[str]] = None    # those of the inputs that lie in the output folder
        self._variables: Optional[Dict[str, str]] = None
        self._evidence_file: Any = None
        self._evidence_digest = sha256()
        self._evidence_bytes = 0

    # --- the log

    def _open_log(self) -> None:
        self.task_log.open(self._write_log)

    def _write_log(self, path: str, data: bytes) -> None:
        state_store.write_atomic(path, data, self.store.commit)

    def _enter(self, entry: task_log.Entry) -> None:
        """Write a task's line to the log, and to the evidence of this run."""
        line = self.task_log.append(entry)
        self.store.commit.files[self.task_log.path] = None
        if self._evidence_file is None:
            state_store.make_folder(self.run.log_folder(), self.store.commit)
            self._evidence_file = open(self._evidence_path(), "wb")
        state_store.naming(self._evidence_file.name, lambda: self._evidence_file.write(line))
        self._evidence_digest.update(line)
        self._evidence_bytes += len(line)

    def _evidence_path(self) -> str:
        path: str = os.path.join(self.run.log_folder(), self.stage.name + ".tasks.jsonl")
        return path

    def _close_logs(self) -> None:
        self.task_log.compact_if_due(self._write_log)
        self.task_log.close()
        if self._evidence_file is not None:
            path = self._evidence_path()
            state_store.naming(path, self._evidence_file.close)
            self.store.commit.files[path] = None
            self.logs.append({"path": os.path.relpath(path, self.run.root).replace(os.sep, "/"), "bytes": self._evidence_bytes, "sha256": self._evidence_digest.hexdigest()})

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
                        yield Spawn(task.name, self._task(Trial(task)))
                        under_way += 1
                    if not under_way:
                        break
                    under_way -= 1              # of whatever comes: a task that has ended, or its error
                    _, trial = yield Next()
                    self._note_trial(trial)
                    if error is None and self.run.clock.monotonic() - self.store.commit.since >= SYNC_S:
                        self.run.flush()
                except Exception as raised:
                    error = error or raised
        finally:
            self._stop_server()
        if error is not None:
            raise error
        self._tell_of_no_outputs(self.no_outputs, "they are thrown away")
        self.is_stopped = self.is_stopped or not is_all and bool(self.run.signals.number)

    def row(self, expected_s: Optional[float]) -> Optional[Tuple[Any, ...]]:
        """Return what the live view shows: tasks that have come to their end, of all."""
        ended = self.up_to_date + len(self.done) + len(self.failed)
        return (self.stage.name, 1, None, None, ended, self.total, self.started, None) if self.total else None

    def _note_trial(self, trial: Trial) -> None:
        name = trial.task.name
        self.attempts += trial.attempts
        if trial.stopped:
            self.is_stopped = True
        elif trial.failure:
            self.failed[name] = trial.failure
            if trial.is_machines:
                self.machine_faults[name] = trial.failure
                self.full_disks += bool(self._full_disk_text())
            self.exit_code = self.exit_code if self.exit_code is not None else trial.exit_code
            self.console.event("FAIL", "%s %s" % (self.stage.name, name), ": " + trial.failure)
        else:
            self.done.append(name)
            self.full_disks = 0

    def _task(self, trial: Trial) -> Flow:
        """A flow that returns the trial when its task has come to its end."""
        stage, task = self.stage, trial.task
        offset, is_resume = self._start_of(trial, "running")
        while True:
            result = yield Attempting(lambda slot: self._begin_attempt(trial, slot, offset, is_resume), (self.rank, task.number),     # noqa: B023
                                      stage.local_resources.get("cpuCores", 1), stage.local_resources.get("memoryMB", 0), stage.name)
            result = self._note_attempt(trial, result)
            if not trial.failure:
                self._finish_task(trial)
            if not trial.failure or trial.stopped or not result.failure or self.survivors or trial.failure.startswith((NETWORK_FAULT, UNCLOSED)):
                break
            if not stage_work.is_worth_retrying(stage.retry, trial.attempts, result.exit_code):
                break
            delay = stage_work.retry_delay_ms(stage.retry, self.run.spec.name, "%s/%s" % (stage.name, task.name), trial.attempts) / 1000.0
            self.console.event("RETRY", "%s %s" % (stage.name, task.name), " attempt %d/%d: %s; next in %.2fs" % (trial.attempts, stage.retry.attempts, trial.failure, delay))
            yield Pause(delay)
            if self.run.signals.number:
                trial.stopped = True
                break
            offset, is_resume = self._start_of(trial, "failed")
        if not trial.stopped:
            self._enter(self._entry(trial))
        return trial

    def _entry(self, trial: Trial) -> task_log.Entry:
        """Return what the log says of a task; one that failed keeps what an earlier version of it has made, and what it has published itself."""
        task, before = trial.task, self.task_log.entries.get(trial.task.name)
        outputs = tuple(trial.outputs)
        if trial.failure:
            new = {path for path, _, _ in trial.published}
            outputs = tuple([one for one in (before.outputs if before is not None else ()) if one[0] not in new] + trial.published)
        return task_log.Entry(task.name, task.key, "failed" if trial.failure else "ok", outputs, trial.counts, task.bytes_in, trial.attempts,
                              int((self.run.clock.monotonic() - trial.started) * 1000), trial.failure, "%s/%d" % (self.run.options.run_id, self.run.invocation))

    # --- one task

    def _progress_path(self, task: Task) -> str:
        path: str = os.path.join(self.progress_folder, os.path.basename(task.folder) + ".json")
        return path

    def _start_of(self, trial: Trial, last_status: str) -> Tuple[int, bool]:
        """Return (line offset, whether to resume) after making the task's folder ready."""
        task = trial.task
        if self.stage.checkpoint and os.path.isdir(task.folder):
            record = {"idempotencyKey": task.key, "bootId": self._boot_of(trial), "lastStatus": last_status, "baseline": {}, "stage": self.stage.name}
            found = checkpoints.checkpoint_at(self._progress_path(task), task.folder, record, task.key, self.run.boot)
            if found is not None and found.resumable:
                if not found.complete:
                    stage_outputs.cut_to_checkpoint(task.folder, found.outputs)
                stage_outputs.remove_parts(task.folder, self.stage.name, set() if found.complete else set(found.outputs))
                return found.line_offset, True
        self._clear(trial)
        return 0, False

    def _drop_unsynced(self, record: Optional[Json]) -> None:
        """Before "running" is recorded under today's boot: after a restart, remove the checkpoints that nobody has synced."""
        if record is None or not self.stage.checkpoint or record.get("bootId") == self.run.boot:
            return
        try:
            names = os.listdir(self.progress_folder)
        except OSError:
            return
        for name in names:
            path = os.path.join(self.progress_folder, name)
            progress, _ = checkpoints.read_progress(path) if name.endswith(".json") else ({"durable": True}, "")
            if progress is None or progress.get("durable") is not True:
                remove_quietly(path)

    def _boot_of(self, trial: Trial) -> str:
        """Return the boot under which a checkpoint was made."""
        record = self.facts.record
        return str(record.get("bootId")) if not trial.attempts and record is not None else str(self.run.boot)

    def _clear(self, trial: Trial) -> None:
        """Remove what there is of a task's folder and checkpoint."""
        if os.path.lexists(trial.folder):
            state_store.remove_tree(trial.folder)
        if self.stage.checkpoint:
            path = self._progress_path(trial.task)
            remove_quietly(path)
            remove_quietly(checkpoints.whole_path(path))

    def _clear_folders(self, kept: Set[str]) -> None:
        """Remove the private folders and checkpoints of tasks but those named."""
        for top in (self.staging, self.progress_folder):
            try:
                names = os.listdir(top)
            except OSError:
                continue
            for name in names:
                if name.split(".")[0] not in kept:
                    full = os.path.join(top, name)
                    state_store.remove_tree(full) if stage_outputs.is_folder(full) else unlink(full)

    def _begin_attempt(self, trial: Trial, slot: int, offset: int, is_resume: bool) -> Any:
        """Count the attempt, now that there is room for it, and return as _launch_task()."""
        if not trial.attempts:
            trial.started = self.run.clock.monotonic()      # now, and not when it began to wait for room
        trial.attempts += 1
        return self._launch_task(trial, slot, offset, is_resume)

    def _launch_task(self, trial: Trial, slot: int, offset: int, is_resume: bool) -> Any:
        """Return what to start, and the watch over its use of the network; or the result of an attempt that cannot be."""
        stage, run, task = self.stage, self.run, trial.task
        if is_resume:
            self.console.event("RESUME", "%s %s" % (stage.name, task.name), " from line %d" % offset)
        self._make_ready(trial, slot)
        remove_quietly(task.folder + COUNTS_ENDING)     # an earlier attempt's say nothing of this one
        short = self._space_problem() or stage_work.cmd_problem(stage.processor, task.inputs)
        if short:
            return attempts.AttemptResult(None, short, False, 0.0, 0.0, 0, b"", [], [])
        token = "%s.%d.%d" % (self.lock.token, task.number + 1, trial.attempts)
        trial.log_path = os.path.join(self._log_folder(), "%d.%d.log" % (task.number + 1, trial.attempts))
        trial.network = run.network.attempt("%s %s" % (stage.name, task.name), trial.log_path[:-len("log")] + "network", self.console)
        env = self._task_environment(trial, token, slot, offset, is_resume)
        env.update(trial.network.environment(stage.env))
        argv = stage_work.command_line(run.root, stage, task.inputs)
        echo = (lambda data: self.console.stream("%s %s" % (stage.name, task.name), data)) if run.options.verbose else None
        launch = attempts.Launch(argv, env, run.root, trial.log_path, token, self.lock.descriptor, self.lock.guard, stage.timeout_s, stage.grace_s,
                                 stage.resources, echo, True, slot=slot)
        launch, network = stage_work.launched_elsewhere(self._how(task, launch), run, stage, trial.network)
        self.argv = self.argv or launch.argv
        trial.token = token
        return launch, network

    def _how(self, task: Task, launch: attempts.Launch) -> attempts.Launch:
        """Return the launch with what else it needs: the stage's fork server, for Python."""
        if not self.stage.fork_server or self.stage.launcher or self.total < 2 or spec_checks.program_kind(self.stage.processor) != "python" or self.is_without_server:
            return launch
        import fork_client
        if self.server is not None and self.server.is_dead and any(one.launch.server is self.server for one in self.run.pool.running + self.run.pool.unclear):
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
                self.console.event("NOTE", self.stage.name, ": %s; each task is started by itself" % died)
                self.is_without_server = True
                return launch
            self.server = server
            self.run.pool.others.add(server.pid)
        return launch._replace(server=self.server)

    def _stop_server(self) -> None:
        if self.server is not None:
            self.run.pool.retire(self.server)      # an error in one flow leaves others' attempts at work
            self.server = None

    def _make_ready(self, trial: Trial, slot: int) -> None:
        """Make the folder that the attempt writes to."""
        os.makedirs(trial.folder, exist_ok=True)

    def _log_folder(self) -> str:
        folder: str = os.path.join(self.run.log_folder(), self.stage.name)
        if folder not in self.run.made_folders:
            state_store.make_folder(folder, self.store.commit)
            self.run.made_folders.add(folder)
        return folder

    def _task_environment(self, trial: Trial, token: str, slot: int, offset: int, is_resume: bool) -> Dict[str, str]:
        stage, task = self.stage, trial.task
        if self._variables is None:
            self._variables = self._base_environment()
        inputs_file = self.store.path(task_files.inputs_name(stage.name, slot))
        state_store.naming(inputs_file, lambda: _write(inputs_file, json.dumps(task.inputs, ensure_ascii=False).encode("utf-8")))
        env = dict(self._variables, PIPELINE_OUTPUT_DIR=trial.folder.replace("/", os.sep), PIPELINE_LINE_OFFSET=str(offset), PIPELINE_ATTEMPT=str(trial.attempts),
                   PIPELINE_INPUTS_FILE=inputs_file, PIPELINE_ATTEMPT_TOKEN=token, PIPELINE_KEY=task.key,
                   PIPELINE_COUNTS_FILE=task.folder + COUNTS_ENDING, **task.variables)
        if is_resume:
            env["PIPELINE_RESUME"] = "1"
        if trial.attempts <= stage.simulate_fail_attempts:
            env["PIPELINE_SIMULATED_FAIL"] = "1"
        if stage.checkpoint:
            os.makedirs(self.progress_folder, exist_ok=True)
            env["PIPELINE_PROGRESS_FILE"] = self._progress_path(task)
            env["PIPELINE_LINE_INTERVAL"] = str(stage.line_interval)
        elif not stage.launcher and stage.chunks is None:
            env["PIPELINE_SYNC"] = "runner"     # of what is in the private folder nothing counts until the runner has synced it, many at once
        return env

    def _note_attempt(self, trial: Trial, result: attempts.AttemptResult) -> attempts.AttemptResult:
        """Take over how an attempt ended; return that, with what a machine far away told of it."""
        self.console.end_stream("%s %s" % (self.stage.name, trial.task.name))
        unclosed = ""
        if trial.network is not None:
            result, unclosed = self._after_launch(result, trial.network, trial.token)
        self.cpu_s += result.cpu_s
        self.max_rss = max(self.max_rss, result.max_rss_bytes)
        trial.exit_code, trial.stopped, trial.failure, trial.is_machines = result.exit_code, result.stopped, result.failure, False
        for note in result.notes:
            self.console.event("NOTE", "%s %s" % (self.stage.name, trial.task.name), ": " + note)
        if result.survivors:
            self.survivors += result.survivors
            trial.failure = attempts.survivors_text(result.survivors)
        if trial.network is not None and result.log is not None:
            if result.log[0]:
                self.logs.append({"path": os.path.relpath(trial.log_path, self.run.root).replace(os.sep, "/"), "bytes": result.log[0], "sha256": result.log[1],
                                  "task": trial.task.name})
            self.refusals += trial.network.recorded()
            fault = trial.network.fault() if self.stage.network_attempts == "fail" else ""
            if (fault or unclosed) and not result.stopped:
                self.is_offline_fault = trial.is_machines = True
                trial.failure = "; ".join(one for one in (fault, trial.failure) if one)
        trial.failure = trial.failure or stage_work.changed_file(self.run.root, trial.task.stamps)
        trial.is_machines = trial.is_machines or bool(trial.failure and not trial.stopped and (
            result.is_machines or result.failure.startswith(attempts.NOT_STARTED) or self._full_disk_text() or _tells_of_full_disk(result.tail)))
        if trial.failure and not trial.stopped and len(self.failed) < SHOWN_FAILURES:
            self.console.tail(result.tail, "%s %s" % (self.stage.name, trial.task.name))
        return result

    def _finish_task(self, trial: Trial) -> None:
        """Take what a task has made; a failure of this is the task's."""
        raise NotImplementedError

    def _list_made(self, trial: Trial) -> List[str]:
        """Return the files that a task has left in its folder, sorted, and note what is none for its name."""
        try:
            there = stage_outputs.list_folder(trial.folder)
        except PermissionError as error:
            trial.failure = trial.failure or "%s (it must be able to list what it leaves)" % error
            return []
        trial.failure = trial.failure or stage_work.unfinished_text(there, self.stage.name)
        if len(self.no_outputs) <= stage_work.SHOWN_NAMES:
            self.no_outputs += ["%s of %s" % (name, trial.task.name) for name in stage_outputs.no_outputs(stage_outputs.NOTHING, there)]
        return sorted(there.files)

    def _made(self, trial: Trial) -> List[str]:
        """Return the files that a task made and that count as its outputs; sets the trial's failure if one is missing."""
        if not stage_outputs.is_folder(trial.folder):
            trial.failure = trial.failure or "its folder for outputs is not there any more, or is a link"
            return []
        names = self._list_made(trial)
        if self.stage.outputs is not None:
            for pattern in self.stage.outputs:
                if not any(file_digests.path_matches(name, pattern) for name in names):
                    trial.failure = trial.failure or "declared output %s was not made" % pattern
            names = [name for name in names if any(file_digests.path_matches(name, pattern) for pattern in self.stage.outputs)]
        for name in names:
            if not file_digests.is_unicode(name):
                trial.failure = stage_work.NOT_UTF_8 % ascii(name)
        for folder in sorted({os.path.dirname(name) for name in names if "/" in name}):
            if not os.access(os.path.join(trial.folder, folder), os.W_OK | os.X_OK):
                trial.failure = trial.failure or "it leaves the folder %s without the right to write in it, so nothing can be taken out of it" % folder
        return names

    def _input_problem(self, name: str) -> str:
        """Return why *name* may not be an output of a stage with these inputs, or ""."""
        if self._inputs_here is None:
            start = self.stage.output_dir + "/"
            self._inputs_here = {_as_the_system_has_it(path[len(start):]) for path in self._all_inputs() if path.startswith(start)}
        if _as_the_system_has_it(name) not in self._inputs_here:
            return ""
        return "it makes %s/%s, which the stage reads; an output must not take the place of an input" % (self.stage.output_dir, name)

    def _all_inputs(self) -> Iterable[str]:
        inputs: List[str] = self.facts.material.inputs
        return inputs

    def _take_counts(self, trial: Trial) -> None:
        """Take the counts that the processor reported: in the file of counts, else with its checkpoint. None where they are needed: a failure."""
        self._read_counts(trial)
        missing = control_totals.missing_counts(self.stage, trial.counts)
        if missing and trial.task.bytes_in and not trial.failure:      # in an empty file there is nothing to count
            trial.failure = control_totals.missing_text(self.stage, missing)

    def _read_counts(self, trial: Trial) -> None:
        path = trial.task.folder + COUNTS_ENDING
        counts, problem = control_totals.read_counts(path)
        if problem:
            self.console.event("NOTE", "%s %s" % (self.stage.name, trial.task.name), ": the counts that it reported are not used: %s" % problem)
        if counts is not None or problem:
            remove_quietly(path)
        if counts is not None or not self.stage.checkpoint:
            trial.counts = counts or {}
            return
        progress, _ = checkpoints.read_progress(self._progress_path(trial.task))
        if progress is not None:
            trial.counts = progress.get("counts", {})

    # --- the end

    def _summary(self) -> Json:
        return {"total": self.total, "ok": len(self.done), "skipped": self.up_to_date, "failed": len(self.failed), "vanished": self.vanished}

    def _failure_text(self) -> str:
        """Return why the stage fails for its tasks' sake, or ""."""
        told, what = self.failed, "failed"
        if len(self.failed) <= self.stage.max_failed_tasks:
            told, what = self.machine_faults, "failed for what maxFailedTasks does not allow, as it is not the fault of their files"
        if not told:
            return ""
        shown = ["%s (%s)" % one for one in sorted(told.items())[:stage_work.SHOWN_NAMES]]
        more = ["and %d more" % (len(told) - len(shown))] if len(told) > len(shown) else []
        left = self.total - self.up_to_date - len(self.done) - len(self.failed)
        not_started = "; the disk is full, so %d more were not started" % left if left and self.full_disks >= FULL_DISKS else ""
        return "%d of %d tasks %s: %s%s" % (len(told), self.total, what, "; ".join(shown + more), not_started)

    def _evidence(self) -> Json:
        return dict(super()._evidence(), tasks=dict(self._summary(), **self.totals))


NETWORK_FAULT = "it tried to use the network"
UNCLOSED = "the network cannot be closed"       # where a launched task must have it closed


class FileTasksWork(TasksWork):
    """A stage of one task for each file of `forEach`."""

    def __init__(self, run: Any, stage: StageSpec, lock: StageLock, facts: Facts) -> None:
        super().__init__(run, stage, lock, facts)
        self.owner_of: Dict[str, str] = {}          # target path, case folded -> the task that makes it, by the log
        self.open: Set[str] = set()                 # tasks in the log that are yet to say what they make now
        self.foreign: Dict[str, str] = {}
        self.ready_folders: Set[str] = set()        # those of the slots
        self.died_at_ns = 0                         # when the last run began, if it died: by the file system's clock
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
            self.console.event("NOTE", self.stage.name, ": %d file%s%s" % (len(facts.left), "" if len(facts.left) == 1 else "s", task_look.left_text(facts)[1:]))
        yield from self._run_tasks(self._tasks(facts, places))
        return self._end(facts)

    def _begin(self, facts: task_look.Tasks, places: List[int]) -> None:
        """Marker away, "running" recorded, what dead tasks left cleared; in this order."""
        state_store.make_folder(self.folder, self.store.commit)
        state_store.remove_durably(self.run.marker(self.stage), self.store.commit)
        self.task_log = facts.log if facts.log is not None else task_look.load_log(self.store, self.stage.name)
        self.keys = facts.keys or [task_look.task_key(facts.common, path, digest) for path, digest in zip(facts.paths, facts.digests)]
        self.total, self.up_to_date, self.vanished = len(facts.paths), len(facts.paths) - len(places), len(facts.gone)
        self._forget_old_folder()
        self._note_death()
        self._drop_unsynced(self.facts.record)
        self._write_record("running", "")
        self._forget_lost()
        self._clear_staging(facts)
        self._open_log()
        self.foreign = self._foreign_outputs()
        alive = set(facts.paths) | {path for path, _ in facts.left}
        for name, entry in self.task_log.entries.items():
            if name in alive:
                self.owner_of.update((output[0].casefold(), name) for output in entry.outputs)
        self.open = {facts.paths[place] for place in places if facts.paths[place] in self.task_log.entries}
        self._welcome_back(facts.paths)
        if self.stage.checkpoint:
            self.run.flush()

    def _welcome_back(self, paths: Sequence[str]) -> None:
        """What was kept of a file that was gone is its task's again, where the file is back, as it was."""
        for name in paths:
            entry = self.task_log.entries.get(name)
            if entry is not None and entry.status == "kept" and name not in self.open:
                self._enter(entry._replace(status="ok"))

    def _forget_old_folder(self) -> None:
        """The log's paths are below the outputDir of the record: before that is another, they go, as files of somebody else may be called so."""
        if self.moved_from:
            self.task_log.compact(self._write_log)
            self.run.flush()
            self._tell_of_move()

    def _note_death(self) -> None:
        record = self.facts.record
        if record is not None and record["lastStatus"] == "running" and not self.moved_from:
            self.died_at_ns = os.stat(self.store.path("stage_%s.json" % self.stage.name)).st_mtime_ns

    def _tell_of_unrecorded(self) -> None:
        """Name the files that have come since a run began that died, and are of no task: it may have published them without living to write it down.

        Most of what it published so its task makes again. This is what a task left whose file is called otherwise now, say. It may be
        somebody else's as well, so it stays.
        """
        if not self.died_at_ns:
            return
        new = [path for path, signature in self._of_no_task() if signature[2] >= self.died_at_ns]
        if new:
            self.console.event("NOTE", self.stage.name, ": of no task, and newer than the begin of the run that died: %s; look whether they may go" % task_look.shown(
                "%s/%s" % (self.stage.output_dir, path) for path in new))

    def _of_no_task(self) -> List[Tuple[str, Any]]:
        """Return (path, signature) of the files in the output folder that no task has made, nor another stage, and that the stage does not read."""
        known = {path for entry in self.task_log.entries.values() for path, _, _ in entry.outputs} | set(self.foreign)
        found = stage_outputs.list_folder(self.folder).files
        return sorted((path, signature) for path, signature in found.items() if path not in known and not self._input_problem(path))

    def _see_to_lost(self, facts: task_look.Tasks) -> None:
        """After lines of the task log were lost: name what no task of now has made; with `prune`, remove of it what is known to have been made here."""
        if not facts.has_lost or self.is_stopped or self.moved_from:
            return
        made = {one["path"]: one["sha256"] for one in self.previous}
        for table in task_files.load(task_look.cache_path(self.store, self.stage.name))[1][1:]:
            made.update((path, digest) for path, digest in zip(table.paths, table.digests) if digest)
        left: List[str] = []
        removed: List[str] = []
        for path, _ in self._of_no_task():
            is_ours = self.stage.prune and not self.failed and path.casefold() not in self.owner_of and made.get(path) and file_digests.read_content(os.path.join(self.folder, path))[1] == made[path]
            (removed if is_ours else left).append(path)
        for path in removed:
            self._remove_output(path)
        for names, what in ((removed, "removed what no task makes any more"), (left, "of no task, and left there")):
            if names:
                self.console.event("NOTE", self.stage.name, ": lines of its task log were lost; %s: %s" % (what, task_look.shown("%s/%s" % (self.stage.output_dir, path) for path in names)))

    def _tell_of_former(self) -> None:
        """Name what the stage made when it was not yet one of tasks, and these do not make: nothing looks after it any more."""
        record = self.facts.record
        if record is None or record.get("tasks"):
            return
        mine = {path for path, _, _ in self._outputs()}
        left = [one["path"] for one in self.previous if one["path"] not in mine and os.path.lexists(os.path.join(self.folder, one["path"]))]
        if left:
            self.console.event("NOTE", self.stage.name, ": made before the stage had tasks, and recorded no more: %s" % task_look.shown(sorted(left)))

    def _forget_lost(self) -> None:
        """After a sync that failed: no line counts any more, on the disk, before the file goes that says so."""
        lost = state_store.lost_path(self.run.root, self.stage.output_dir, self.stage.name)
        if os.path.lexists(lost):
            self.task_log.entries = {name: entry._replace(key="") for name, entry in self.task_log.entries.items()}
            self.task_log.compact(self._write_log)
            self.run.flush()
            state_store.remove_durably(lost, self.store.commit)

    def _clear_staging(self, facts: task_look.Tasks) -> None:
        """Remove the private folders that no task of now can go on in."""
        goes_on = self.stage.checkpoint and self.stage.name not in self.run.options.force
        self._clear_folders({folder_name(facts.paths[place], self.keys[place]) for place in facts.todo} if goes_on else set())

    def _tasks(self, facts: task_look.Tasks, places: List[int]) -> Iterable[Task]:
        shared = self.facts.material
        for place in places:
            path, key = facts.paths[place], self.keys[place]
            stamp = task_files.signature_at(facts.packed, place)
            yield Task(place, path, key, [path] + shared.inputs, os.path.join(self.staging, folder_name(path, key)),
                       {"PIPELINE_TASK": path}, dict(shared.stamps, **{path: stamp}), stamp[0])

    def _make_ready(self, trial: Trial, slot: int) -> None:
        """A task with checkpoints has a folder of its own; others take turns in one for each slot, for making and removing folders is slow."""
        if not self.stage.checkpoint:
            trial.folder = os.path.join(self.staging, "slot%d" % slot)
        is_folder = stage_outputs.is_folder(trial.folder)
        if trial.folder in self.ready_folders and is_folder:
            _empty(trial.folder)
        else:
            if not is_folder and os.path.lexists(trial.folder):
                unlink(trial.folder)     # a task has put something in its place; what a link leads to is not ours
            os.makedirs(trial.folder, exist_ok=True)
            if not self.stage.checkpoint:
                self.ready_folders.add(trial.folder)

    def _clear(self, trial: Trial) -> None:
        if self.stage.checkpoint:
            super()._clear(trial)       # else the folder is the slot's, and perhaps another task's by now

    def _task(self, trial: Trial) -> Flow:
        why = self.facts.tasks.unfit.get(trial.task.name)
        if not why:
            return (yield from super()._task(trial))
        trial.started, trial.failure = self.run.clock.monotonic(), why
        self._enter(self._entry(trial))
        return trial

    # --- publishing

    def _finish_task(self, trial: Trial) -> None:
        """Hash what the task made and rename it into place; what an earlier version of it made and this one did not goes."""
        task, names = trial.task, self._made(trial)
        problem = trial.failure or next((why for why in map(lambda name: self._target_problem(task, name), names) if why), "")
        if problem:
            trial.failure = problem
            return
        self._take_counts(trial)
        if trial.failure:
            return
        for name in names:
            size, digest = self._hash_output(os.path.join(trial.folder, name))
            trial.failure = "output %s cannot be read" % name if size < 0 else _link_problem(trial.folder, name)
            if trial.failure:
                return
            trial.outputs.append((name, size, digest))
        before = self.task_log.entries.get(task.name)
        try:
            for output in trial.outputs:
                self._claim(task.name, output[0])
                self._publish(trial.folder, output[0], output[2])
                trial.published.append(output)
            for path, _, _ in before.outputs if before is not None else ():
                if not self._is_taken(path, task.name) and not stage_outputs.is_among(self.folder, path, names):
                    self._remove_output(path)
        except OSError as error:
            trial.failure = self._publish_problem(error)
            if not trial.failure:
                raise
            trial.outputs = []
            return
        self._clear(trial)

    def _publish_problem(self, error: OSError) -> str:
        """Return what about the place of an output kept it from being renamed there, "" if that is no fault of the task's."""
        path = os.path.relpath(os.fsdecode(error.filename2 or error.filename or self.folder), self.run.root).replace(os.sep, "/")
        if error.errno == errno.EXDEV:
            return "%s would lie on another file system than %s, and an output is renamed into its place; let all of the output folder lie on one" % (path, self.stage.output_dir)
        return "%s is in the way of its output: %s; remove it, or give the output another name" % (path, error.strerror) if error.errno in IN_THE_WAY else ""

    def _hash_output(self, full: str) -> Tuple[int, str]:
        """Return (bytes, SHA-256); a large file is hashed only when no later write can hide behind its time stamp."""
        try:
            stat = os.lstat(full)
        except OSError:
            return -1, ""
        if stat.st_size >= SETTLE_BYTES:
            now, device = self.run.digests.file_system_time()
            if not file_digests.is_settled(file_digests.signature(stat), now, device):
                self.run.clock.wait(1.5 * file_digests.FRESH_NS / 1e9)
        return file_digests.output_content(full, self.run.digests.heed)

    def _target_problem(self, task: Task, name: str) -> str:
        """Return why a task may not make *name*, or ""."""
        problem = self._input_problem(name)
        if problem:
            return problem
        owner = self._holder(task.name, name.casefold())
        if owner and owner not in self.open:
            theirs = next(path for path, _, _ in self.task_log.entries[owner].outputs if path.casefold() == name.casefold())
            case = "" if theirs == name else ", but for the case of letters, which many systems do not tell apart"
            return "it makes %s/%s, which task %s makes%s; each task must make files of its own" % (self.stage.output_dir, name, owner, case)
        if name in self.foreign:
            return self._foreign_text("it makes", name, self.foreign[name])
        return ""

    def _holder(self, task: str, target: str) -> str:
        """Return which other task the log says has made *target*, or ""."""
        owner = self.owner_of.get(target, task)
        entry = self.task_log.entries.get(owner) if owner != task else None
        return owner if entry is not None and any(output[0].casefold() == target for output in entry.outputs) else ""

    def _enter(self, entry: task_log.Entry) -> None:
        super()._enter(entry)
        if entry.status == "ok" and entry.key:
            self.open.discard(entry.task)

    def _is_taken(self, path: str, task: str) -> bool:
        """Tell whether what lies at *path*, and *task* has made, is another task's by now.

        Names that differ in case only may be of one task only, for many systems do not tell them apart; where they are two files, each is its maker's still.
        """
        owner = self.owner_of.get(path.casefold(), task)
        entry = self.task_log.entries.get(owner) if owner != task else None
        theirs = next((other for other, _, _ in entry.outputs if other.casefold() == path.casefold()), path) if entry is not None else path
        return owner != task and not self._are_two_files(path, theirs)

    def _are_two_files(self, path: str, other: str) -> bool:
        """Tell whether two names that differ in case at most are two files here."""
        one, two = os.path.join(self.folder, path), os.path.join(self.folder, other)
        if path == other or not os.path.lexists(one):
            return False
        return not os.path.lexists(two) or not os.path.samestat(os.lstat(one), os.lstat(two))

    def _claim(self, task: str, name: str) -> None:
        """Let a task have *name*; what another that is to be done anew has made there is not its own any more, nor is it up to date.

        In the log before the file is exchanged: no path may be that of two tasks, else the one would remove what the other made.
        """
        target = name.casefold()
        owner = self._holder(task, target)
        entry = self.task_log.entries[owner] if owner else None
        if entry is not None and not any(self._are_two_files(path, name) for path, _, _ in entry.outputs if path.casefold() == target):
            self._enter(entry._replace(key="", outputs=tuple(output for output in entry.outputs if output[0].casefold() != target)))
        self.owner_of[target] = task

    def _publish(self, folder: str, name: str, digest: str) -> None:
        source, target = os.path.join(folder, name), os.path.join(self.folder, name)
        parent = os.path.dirname(target)
        if parent not in self.run.made_folders:
            state_store.make_folder(parent, self.store.commit)
            self.run.made_folders.add(parent)
        replace(source, target)
        self.store.commit.files[target] = None
        self.store.commit.folders[parent] = None
        stat = os.lstat(target)
        if stat.st_size >= SETTLE_BYTES and stat.st_mtime_ns < stat.st_ctime_ns - file_digests.FRESH_NS:
            self.made.add(name, task_files.plain(file_digests.signature(stat)), digest)

    def _all_inputs(self) -> Iterable[str]:
        return [*self.facts.tasks.paths, *super()._all_inputs()]

    def _remove_output(self, path: str) -> None:
        state_store.remove_durably(os.path.join(self.folder, path), self.store.commit)

    # --- the end

    def _end(self, facts: task_look.Tasks) -> StageResult:
        self._see_to_gone(facts)
        self._let_go_of_taken()
        self._tell_of_unrecorded()
        self._see_to_lost(facts)
        self._tell_of_former()
        failure = "interrupted" if self.is_stopped else attempts.survivors_text(self.survivors) if self.survivors else self._failure_text()
        if not failure and self.failed:
            self._drop_failed_outputs()
        table, wrong = self._check_all(facts)
        if wrong and not failure:
            failure = "not what its task made: %s" % task_look.shown("%s (%s)" % one for one in sorted(wrong.items()))
        self._close_logs()
        self._sync_older(facts, table)
        self.run.flush()                # all that the record vouches for is on the disk
        if not self.is_stopped and not self.survivors and os.path.isdir(self.staging):
            shutil.rmtree(self.staging, ignore_errors=True)
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
            missing = control_totals.missing_counts(self.stage, entry.counts) if entry.status == "ok" and entry.bytes_in and entry.task not in self.open else []
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
                    full = os.path.join(self.folder, path)
                    self.store.commit.files[full] = self.store.commit.folders[os.path.dirname(full)] = None
                place += 1

    def _listed(self, most: int = task_look.LISTED_OUTPUTS) -> List[Json]:
        """Return the outputs as records list them, none where they are more than *most*."""
        outputs = self._outputs()
        return [{"path": path, "bytes": size, "sha256": digest} for path, size, digest in sorted(outputs)] if len(outputs) <= most else []

    def _see_to_gone(self, facts: task_look.Tasks) -> None:
        """Tell of files that are not there any more; with `prune`, remove what their tasks made.

        Not where a whole folder is missing: it may only not be mounted.
        """
        if not facts.gone or self.is_stopped:
            return
        missing = [folder for folder in map(_fixed_folder, self.stage.for_each) if not os.path.isdir(os.path.join(self.run.root, folder))]
        if self.stage.prune and missing:
            self.console.event("NOTE", self.stage.name, ": the folder %s is missing: nothing is pruned" % missing[0])
            return
        changed = self._prune(facts.gone, facts.wrong)
        self.console.event("NOTE", self.stage.name, ": %d file%s gone: %s; %s%s" % (
            len(facts.gone), " is" if len(facts.gone) == 1 else "s are", task_look.shown(facts.gone),
            "outputs removed" if self.stage.prune else "outputs kept (\"prune\": true removes them)",
            ", but for what is not any more as it was made: %s" % task_look.shown(changed) if changed else ""))

    def _keep(self, entry: task_log.Entry, wrong: FrozenSet[str]) -> List[str]:
        """Note that the file of a task is gone, and what it made is kept; return the paths of what is not any more as it was made: that is nobody's now."""
        if entry.status == "failed":        # what it made before it failed has not been looked at
            wrong = wrong | {path for path, size, digest in entry.outputs if not self._is_as_made(path, size, digest)}
        lost = [path for path, _, _ in entry.outputs if path in wrong and not self._is_taken(path, entry.task)]
        self._keep_of(entry, tuple(output for output in entry.outputs if output[0] not in wrong))
        return lost

    def _keep_of(self, entry: task_log.Entry, outputs: Sequence[Output]) -> None:
        """Note what is kept of a file that is gone. Of what failed, or is not whole any more, the task is done anew should the file come back."""
        is_whole = entry.status in task_log.GOOD and len(outputs) == len(entry.outputs)
        self._enter(entry._replace(status="kept", key=entry.key if is_whole else "", outputs=tuple(outputs)))

    def _prune(self, gone: Sequence[str], wrong: FrozenSet[str]) -> List[str]:
        """Note that files are gone, and with `prune` remove what their tasks made; return the paths of what somebody has changed since: that stays."""
        changed: List[str] = []
        for name in gone:
            entry = self.task_log.entries[name]
            if not self.stage.prune:
                changed += self._keep(entry, wrong)
                continue
            for path, size, digest in entry.outputs:
                if self._is_taken(path, name) or not os.path.lexists(os.path.join(self.folder, path)):
                    continue
                if self._is_as_made(path, size, digest):
                    self._remove_output(path)
                else:
                    changed.append(path)
            self._enter(entry._replace(status="gone", outputs=(), run="%s/%d" % (self.run.options.run_id, self.run.invocation)))
        return changed

    def _is_as_made(self, path: str, size: int, digest: str) -> bool:
        """Tell whether an output is what its task made. Raises: OSError where a file cannot be read: then nobody knows, and nothing is entered."""
        full = os.path.join(self.folder, path)
        if os.path.lexists(full) and (os.path.islink(full) or stat.S_ISREG(os.lstat(full).st_mode)):
            return file_digests.read_content(full) == (size, digest)
        return False

    def _let_go_of_taken(self) -> None:
        """What is kept of a file that is gone is not its own any more, once the task of another file (it was renamed, say) makes it."""
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
        self._write_record("ok", "", outputs=listed)
        self.run.caches.update(task_look.cache_of(self.store, self.stage, self.facts._replace(tasks=facts._replace(outputs=table, is_cached=False)),
                                                  self._output_digest(), self.run.boot, ""))
        if not self.failed:
            self.run.write_marker(self.stage, self.key)
        self.console.event("DONE", self.stage.name, " in %.3fs (%d task%s%s)" % (
            self._duration_s(), len(self.done), "" if len(self.done) == 1 else "s", ", %d failed and allowed" % len(self.failed) if self.failed else ""))
        return self._result("ok", "; ".join(self.reasons), outputs=listed, bytes_out=sum(size for _, size, _ in outputs))

    def _output_digest(self) -> str:
        return task_log.output_digest(self._outputs())

    def _write_record(self, status: str, error: str, outputs: Optional[List[Json]] = None, counts: Optional[Json] = None) -> None:
        record = self._record(status, error, self.previous if outputs is None else outputs, counts)
        if status == "ok":
            made = self._outputs()
            self.totals = {"outputs": len(made), "outputBytes": sum(size for _, size, _ in made), "outputsSha256": self._output_digest()}
        record["tasks"] = dict(self._summary(), **self.totals)
        record.update(self.more_of_record)
        if status != "ok":
            record["token"] = self.lock.token
            record.update({"refused": self.refused} if self.refused else {})
        self.store.write_stage(self.stage.name, record)
