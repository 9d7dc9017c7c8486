"""A stage that must run, under its lock: what all such stages have in common. From the removal of the marker to the new one.

Above the leaves, earlier_outputs, stage_calls and scheduler; below plain_work and task_work, which say what the work consists of.

    Decision -> do() -> trials (attempts, retried, resumed) -> outputs checked and hashed -> stage record, marker -> StageResult

Order of the durable steps: marker removed, checkpoint of other work set aside, leftovers cleared, record "running" with
the key, attempts, whole tree ended, outputs checked and hashed, stage record, marker. A kill between any two leaves what
the next run can tell from a finished stage.
"""
from __future__ import annotations

import errno
import os
import sys

import attempts
import checkpoints
import control_totals
import durable_files
import earlier_outputs
import environment
import file_digests
import foreign_outputs
import processor_call
import run_ledger
import run_signals
import stage_calls
import stage_markers
import stage_outputs
import task_files
from console import describe_os_error, full_disk_text
from model import StageResult, sha256, shown_names
from primitives import remove_quietly, storable
from scheduler import Attempting, Pause
from state_store import utc_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Container, Dict, List, Optional, Set, Tuple

    from engine import Run
    from model import Decision, Facts, Retry, StageSpec
    from scheduler import Flow
    from stage_locks import StageLock
    Json = Dict[str, Any]
    AnyTrial = Any      # a Trial, or what a class of stages makes of it

NOT_UTF_8 = "output %s: the name is not valid UTF-8, so no record can name it; have the processor give it another"
CHANGED = "input changed during the run: "
SHOWN_WORDS = 200           # characters of the last line of a failed attempt's output
OF_ONE_PLACE = frozenset(getattr(errno, name, -1) for name in (     # of the folder that an error names, not of disk or machine
    "EACCES", "EPERM", "EROFS", "ENOTDIR", "EISDIR", "ELOOP", "ENAMETOOLONG", "ENOTEMPTY", "EEXIST", "EBUSY", "EXDEV", "ESTALE", "ENOTCONN", "EHOSTDOWN"))
STATUS_ONLY = " (its rights or the number of its links, or its time was put back; a processor must copy an input, not link it)"


def unfinished_text(there: stage_outputs.Folder, stage: str) -> str:
    """Return that a processor that ended well has left an output of the kit half done, or ""."""
    parts = stage_outputs.own_parts(there.parts, stage)
    return "it ended with exit code 0 and left %s, an output that is not finished: what the processor kit opens must be brought to its end" % (
        parts[0]) if parts else ""


def is_of_place(error: OSError, folder: str, root: str) -> bool:
    """Tell whether an error is of something in *folder*, or of what leads to it below *root*: other folders may be well."""
    names = [os.path.abspath(os.fsdecode(name)) for name in (error.filename2, error.filename) if isinstance(name, (str, bytes))]
    folder, root = os.path.abspath(folder), os.path.abspath(root)
    return error.errno in OF_ONE_PLACE and any((name + os.sep).startswith(folder + os.sep) or folder.startswith(name + os.sep) and name != root
                                               and name.startswith(root) for name in names)


def last_words(failure: str, result: attempts.AttemptResult) -> str:
    """Return the last line that an attempt printed, ": " before it, to be put behind why it failed; "" where that tells more than
    its exit code."""
    if not result.exit_code or not failure.endswith("exit code %d" % result.exit_code):
        return ""
    lines = [line.strip() for line in result.tail.decode("utf-8", "replace").splitlines() if line.strip()]
    return ": " + (lines[-1] if len(lines[-1]) <= SHOWN_WORDS else lines[-1][:SHOWN_WORDS] + " ...") if lines else ""


def changed_file(root: str, stamps: Dict[str, List[int]], is_as_read: Callable[[str, List[int]], bool],
                 compared: Optional[Container[str]] = None) -> str:
    """Return what is said of the first file that has not the signature any more that it had, "" if all have.

    Where a signature does not tell, is_as_read(path, signature of now) does; of files that have theirs, of those in *compared*
    alone, if given. A file that was only numbered anew gets its new signature.
    """
    for path, stamp in stamps.items():
        try:
            now = file_digests.signature(os.stat(os.path.join(root, path)))
        except OSError:
            now = []
        # Of a task, the stamp comes from an array.
        before, plain = (now, now) if now == stamp else (task_files.plain(stamp), task_files.plain(now))
        is_same = plain == before
        if now and file_digests.is_unsure(before, plain) and (not is_same or compared is None or path in compared):
            is_same = is_as_read(path, now)
            stamps[path] = now if is_same else stamp
        if not is_same:
            return "%s%s%s" % (CHANGED, path, STATUS_ONLY if file_digests.is_same_but_status(stamp, now) else "")
    return ""


def restamped(root: str, stamps: Dict[str, List[int]], digests: Dict[str, str], heed: Callable[[], None]) -> Dict[str, List[int]]:
    """Return the signatures of now of the files of which nothing but the status has changed since they had *stamps*, and that are
    still what *digests* say of them: who can have changed one since the key was computed is not known, so each is read again."""
    found = {}
    for path, stamp in stamps.items():
        full = os.path.join(root, path)
        try:
            if not file_digests.is_same_but_status(task_files.plain(stamp), task_files.plain(file_digests.signature(os.stat(full)))):
                continue
            digest, now = file_digests.hash_file(full, heed)
        except OSError:
            continue
        if now and digest == digests.get(path):
            found[path] = now
    return found


def with_change(changed: str, failure: str) -> str:
    """Return why something failed, or "". A change of its input comes first: a processor that met it has failed in its own
    words."""
    return failure if not changed or failure.startswith(CHANGED) else "; ".join([changed] + ([failure] if failure else []))


# --- retries (pure) --------------------------------------------------------------------------------------------------

def retry_delay_ms(retry: Retry, pipeline: str, stage: str, attempt: int) -> int:
    """Return how long to wait after failed attempt number *attempt* (from 1), in ms.

    min(maxDelayMs, baseDelayMs * 2^(attempt-1)) plus a jitter in [0, jitterMs] that depends only on the names and the
    attempt: many machines spread out, and a run can be foretold.
    """
    base = min(retry.max_delay_ms, retry.base_delay_ms << min(attempt - 1, 62))
    digest = sha256(("%s\0%s\0%d" % (pipeline, stage, attempt)).encode("utf-8")).digest()
    return int(base + int.from_bytes(digest[:8], "big") % (retry.jitter_ms + 1))


def is_worth_retrying(retry: Retry, attempt: int, exit_code: Optional[int]) -> bool:
    """Tell whether to try again after attempt number *attempt*; exit_code None: the processor never started."""
    if exit_code is None or attempt >= retry.attempts:
        return False
    return retry.exit_codes is None or exit_code in retry.exit_codes


# --- the work --------------------------------------------------------------------------------------------------------

class Trial:
    """The attempts at one piece of work, a whole stage or one of its tasks: what is given to them, and what they have come to so
    far.

    name: on it depends how long is waited between attempts. subject: what it is called in what is told. log and token: paths of
    logs and tokens of attempts begin so, and a number follows. counts_path, progress_path: of the files in which the processor may
    report.
    """

    is_log_lazy = False                     # an attempt that prints nothing leaves no log
    compared: Optional[Container[str]] = None   # see changed_file()

    def __init__(self, *, name: str, subject: str, key: str, inputs: List[str], stamps: Dict[str, List[int]], folder: str,
                 log: str, token: str, counts_path: str, progress_path: str, rank: Tuple[int, ...], group: Any = None) -> None:
        self.name, self.subject, self.key, self.inputs, self.stamps, self.folder = name, subject, key, inputs, stamps, folder
        self.log_start, self.token_start, self.counts_path, self.progress_path = log, token, counts_path, progress_path
        self.rank, self.group = rank, group
        self.attempts = 0
        self.started = 0.0              # of the first attempt, by the run's clock
        self.began = ""                 # of the latest attempt, in UTC
        self.network: Any = None        # the watch over it; None if it was not started
        self.log_path, self.token = "", ""
        self.failure = ""
        self.is_machines = False        # the fault of the machine, the processor or the spec, not of the inputs
        # Another attempt would find the same: an input that has changed, a network that is not for it.
        self.is_final = False
        self.stopped = False
        self.exit_code: Optional[int] = None


class StageWork:
    """A stage that must run, under its lock: from the removal of the marker to the new one.

    What stages have in common, whether they are one piece of work (plain_work) or several (task_work): how a trial is made, what
    is recorded, and how it ends.
    """

    def __init__(self, run: Run, stage: StageSpec, lock: StageLock, facts: Facts) -> None:
        """*run*: the engine's Run."""
        self.run, self.stage, self.lock, self.facts = run, stage, lock, facts
        self.reasons: List[str] = []
        self.store, self.console = run.store, run.console
        self.folder = os.path.join(run.root, stage.output_dir)
        self.marker = stage_markers.marker_path(run.root, stage.output_dir, stage.name)
        self.declared = None if stage.outputs is None else file_digests.Patterns(stage.outputs)
        self.others = foreign_outputs.ForeignOutputs(run, stage, self.folder)
        self.key = facts.material.key
        self.earlier = earlier_outputs.EarlierOutputs(run, stage, self.folder, facts.record, self.others)
        self.calls = stage_calls.StageCalls(run, stage, self.folder, facts.material, facts.record)
        self.made_from: List[str] = []  # what a checkpoint of this run's attempts is bound to besides the key
        self.baseline: Json = {}        # from before this key's first attempt: what changed since is ours
        self.found = stage_outputs.NOTHING  # in the folder before this run's attempts: what others own must still be that
        self.survivors: List[int] = []
        self.attempts = 0
        self.cpu_s, self.max_rss = 0.0, 0
        self.exit_code: Optional[int] = None
        self.logs: List[Json] = []      # path, bytes and digest of each attempt's
        self.tries: List[Json] = []     # start, duration and exit code of each attempt
        self.refusals: List[Json] = []  # what the attempts tried to do with the network
        self.is_offline_fault = False
        self.argv: List[str] = []
        self.counts: Json = {}          # what the processor reported
        self.counts_problem = ""        # why the file in which it did so cannot be used
        self.refused: Any = []          # outputs that the control totals did not accept
        self.more_of_record: Json = {}
        self.content: Optional[Dict[str, str]] = None   # what _content() says, once somebody has asked
        self.rank = 0                   # the stage's place: the lower, the earlier its attempts are started
        self.is_recorded = False        # that it is at work
        self.started_utc = utc_text(run.clock.time())
        self.started = run.clock.monotonic()
        self.ended: Optional[float] = None

    def do(self, decision: Decision) -> Flow:
        """Do the work, then record how it ended; a flow that returns the StageResult."""
        raise NotImplementedError

    def failed_by(self, error: OSError) -> Optional[StageResult]:
        """Return the result of a stage that *error*, which ended do(), lets fail, as its output folder is not as it must be; None
        if more than this stage is concerned."""
        if not is_of_place(error, self.folder, self.run.root):
            return None
        failure = describe_os_error(error)
        result = self.cut_short("failed", failure)
        if self.is_recorded:
            return self._give_up(failure, False)
        self.console.event("FAIL", self.stage.name, ": " + failure)
        return result

    def row(self, expected_s: Optional[float]) -> Optional[Tuple[Any, ...]]:
        """Return what the live view shows of it (live_view.Row), None for nothing."""
        raise NotImplementedError

    def _prepare(self, decision: Decision) -> None:
        """Marker away, other work's checkpoint aside, leftovers cleared, "running" recorded; in this order."""
        durable_files.make_folder(self.folder, self.store.commit)
        durable_files.remove_durably(self.marker, self.store.commit)
        unfinished = self.earlier.unfinished()
        if decision.action == "RUN":
            if decision.discard:
                self._note("checkpoint not used: %s" % decision.discard)
            checkpoints.set_aside(self.store, self.stage)
            self.earlier.clear_leftovers(self.earlier.doubted(unfinished))
            # Those of a task log, and those that an attempt which did not end well has left alone: nobody has looked at them yet.
            # (After a mere kill the times tell.)
            is_seen = self.facts.record is None or self.facts.record["outputs"] and self.facts.record["lastStatus"] in ("ok", "running")
            unseen = [] if is_seen else self.earlier.outputs
            if self.facts.output_problems and self.earlier.is_of_success or not all(map(self.earlier.is_as_recorded, unseen)):
                self.earlier.undo_success()
            # Of an attempt: cleared already, and what was there before it has nothing to do with a sync that failed since.
            durable_files.remove_durably(self.earlier.lost_path(), self.store.commit)
            self.earlier.tell_of_move()
        if self.earlier.has_cleared:
            self._stamp_anew()
        record = self.facts.record
        is_same_work = record is not None and record["lastStatus"] != "ok" and record["idempotencyKey"] == self.key
        old = unfinished if is_same_work else None
        self.found = stage_outputs.list_folder(self.folder)
        self.baseline = old if old is not None else self.found.baseline()
        self.made_from = checkpoints.made_from(self.facts.material.stamps) if self.stage.checkpoint else []
        self._write_record("running", "")
        self.run.records.save_dear_digests()
        if self.stage.checkpoint or self.found.itself[1:] != self.run.state_device():
            # A checkpoint is worth nothing without the record of its key; and two file systems keep no order of names.
            self.run.durability.flush()

    def _stamp_anew(self) -> None:
        """Take the signatures of the key's files anew where clearing has changed their status: of what was cleared, some may have
        been further names (hard links) of them, and that is no change of an input."""
        material = self.facts.material
        material.stamps.update(restamped(self.run.root, material.stamps, self._content(), self.run.digests.heed))

    def _content(self) -> Dict[str, str]:
        """Return {path: digest} of the key's files."""
        parts = self.facts.material.parts
        return dict([*parts["inputs"], *parts["watch"], *parts["modules"], (parts["processor"]["path"], parts["processor"]["sha256"])])

    def _note(self, text: str) -> None:
        self.console.event("NOTE", self.stage.name, ": " + text)

    def _note_log(self, path: str, size: int, digest: str, **more: str) -> None:
        """Name a log in the records; on the disk before these are, for else a power cut leaves one that is not as they say."""
        self.logs.append({"path": os.path.relpath(path, self.run.root).replace(os.sep, "/"), "bytes": size, "sha256": digest, **more})
        if size:
            self.store.commit.add_file(path)

    # --- attempts

    def _try(self, trial: Trial, offset: int, is_resume: bool) -> Flow:
        """A flow that makes attempts until one succeeds or none is left; how it ended is in the trial."""
        retry, (cores, memory_mb) = self.stage.retry, self.stage.room
        while True:
            trial.network = None
            result = yield Attempting(lambda slot: self._begin_attempt(trial, slot, offset, is_resume), trial.rank,     # noqa: B023
                                      cores, memory_mb, trial.group)
            result = self._note_attempt(trial, result)
            if not trial.failure:
                self._finish(trial)
            is_over = not trial.failure or trial.stopped or trial.is_final or not result.failure or self.survivors
            if is_over or not is_worth_retrying(retry, trial.attempts, result.exit_code):
                return
            delay_ms = retry_delay_ms(retry, self.run.spec.name, trial.name, trial.attempts)
            delay_s = delay_ms / 1000.0
            self.console.event("RETRY", trial.subject, " attempt %d/%d: %s; next in %.2fs" % (trial.attempts, retry.attempts, trial.failure, delay_s),
                               delayMs=delay_ms)
            yield Pause(delay_s)
            if self.run.signals.number:
                trial.stopped, trial.failure = True, run_signals.INTERRUPTED
                return
            offset, is_resume = self._next_start(trial)

    def _begin_attempt(self, trial: AnyTrial, slot: int, offset: int, is_resume: bool) -> Any:
        """Now that there is room for an attempt: return what to start, and the watch over its use of the network; or the result
        of one that cannot be."""
        stage, run = self.stage, self.run
        if not trial.attempts:
            trial.started = run.clock.monotonic()
        trial.attempts += 1
        self._make_ready(trial, slot, offset, is_resume)
        remove_quietly(trial.counts_path)       # an earlier attempt's say nothing of this one
        problem, is_machines = self.calls.problem(trial.inputs)
        if problem:
            return attempts.not_begun(problem)._replace(is_machines=is_machines)
        trial.token, trial.log_path = "%s.%d" % (trial.token_start, trial.attempts), "%s.%d.log" % (trial.log_start, trial.attempts)
        self._make_log_folder(os.path.dirname(trial.log_path))
        trial.network = run.guards.network.attempt(trial.subject, trial.log_path[:-len("log")] + "network", self.console)
        env = self._environment(trial, slot, offset, is_resume)
        env = environment.with_own(env, trial.network.environment(stage.env))
        trial.began = utc_text(run.clock.time())
        echo = (lambda data: self.console.stream(trial.subject, data)) if run.options.verbose else None
        launch = attempts.Launch(processor_call.command_line(run.root, stage, trial.inputs), env, run.root, trial.log_path, trial.token, self.lock.descriptor,
                                 self.lock.guard, stage.timeout_s, stage.grace_s, stage.resources, echo, trial.is_log_lazy, slot=slot)
        launch, network = processor_call.launched_elsewhere(self._how(trial, launch), run, stage, trial.network)
        self._note_argv(launch.argv)
        return launch, network

    def _make_ready(self, trial: AnyTrial, slot: int, offset: int, is_resume: bool) -> None:
        """Bring to the state in which an attempt begins what it will find, and say that it begins."""
        raise NotImplementedError

    def _make_log_folder(self, folder: str) -> None:
        if folder not in self.run.made_folders or not os.path.isdir(folder):    # somebody may tidy up there meanwhile
            durable_files.make_folder(folder, self.store.commit)
            self.run.made_folders.add(folder)

    def _environment(self, trial: AnyTrial, slot: int, offset: int, is_resume: bool) -> Dict[str, str]:
        """Return the variables of the attempt that is about to begin, but for those that close the network; its file of inputs is
        written."""
        env = dict(self._variables(), PIPELINE_OUTPUT_DIR=trial.folder.replace("/", os.sep), PIPELINE_KEY=trial.key,
                   PIPELINE_COUNTS_FILE=trial.counts_path)
        env.update(self.calls.variables_of(trial.attempts, offset, is_resume, trial.token, self._write_inputs(trial, slot)))
        if self.stage.checkpoint:
            env["PIPELINE_PROGRESS_FILE"] = trial.progress_path
        return env

    def _variables(self) -> Dict[str, str]:
        """Return the variables that are the same for all attempts."""
        return self.calls.base_environment()

    def _write_inputs(self, trial: AnyTrial, slot: int) -> str:
        """Write the list of inputs for the processor that is about to begin; return the path of the file."""
        raise NotImplementedError

    def _how(self, trial: AnyTrial, launch: attempts.Launch) -> attempts.Launch:
        """Return the launch with what else it needs."""
        return launch

    def _note_argv(self, argv: List[str]) -> None:
        self.argv = argv

    def _note_attempt(self, trial: AnyTrial, result: attempts.AttemptResult) -> attempts.AttemptResult:
        """Take over how an attempt ended; return that, with what a machine far away told of it."""
        self.console.end_stream(trial.subject)
        unclosed = ""
        if trial.network is not None:
            result, unclosed = self.calls.with_node_report(result, trial.network, trial.token)
        self.cpu_s += result.cpu_s
        self.max_rss = max(self.max_rss, result.max_rss_bytes)
        self.survivors += result.survivors
        for note in result.notes:
            self.console.event("NOTE", trial.subject, ": " + note)
        if trial.network is not None:
            self._note_evidence(trial, result)
        tried = self._network_fault(trial)
        fault = "" if result.stopped else tried
        is_offline_fault = bool(fault or unclosed) and not result.stopped
        self.is_offline_fault = self.is_offline_fault or is_offline_fault
        was_cut = result.stopped and bool(result.failure)       # then nothing is read, as everybody waits for the end
        changed = changed_file(self.run.root, trial.stamps, (lambda path, now: True) if was_cut else self._is_as_read, trial.compared)
        if self.stage.checkpoint and (changed or tried or is_offline_fault):
            self._drop_checkpoint(trial)
        changed = "" if was_cut else changed
        failure = attempts.survivors_text(result.survivors) if result.survivors else with_change(changed, self._failure_of(result))
        trial.failure = "; ".join(one for one in (fault, failure) if one)
        trial.exit_code, trial.stopped = result.exit_code, result.stopped
        trial.is_final, trial.is_machines = bool(changed) or is_offline_fault, is_offline_fault
        if trial.failure and not trial.stopped and self._shows_output():
            self.console.tail(result.tail, trial.subject)
        return result

    def _drop_checkpoint(self, trial: AnyTrial) -> None:
        """Let nobody resume from what an attempt has left that met what it should not have: with the lines that are done, its
        failure would be forgotten."""
        raise NotImplementedError

    def _network_fault(self, trial: AnyTrial) -> str:
        """Return why an attempt fails for what it tried to do with the network, or ""."""
        is_judged = trial.network is not None and self.stage.network_attempts == "fail"
        return str(trial.network.fault()) if is_judged else ""

    def _failure_of(self, result: attempts.AttemptResult) -> str:
        """Return why an attempt failed, "" if it did not."""
        return str(result.failure)

    def _note_evidence(self, trial: AnyTrial, result: attempts.AttemptResult) -> None:
        """Name what an attempt has left for the auditor: its log, and what it tried to do with the network."""
        self._note_log(trial.log_path, *result.log)
        self.refusals += trial.network.recorded()

    def _shows_output(self) -> bool:
        """Tell whether the last output of an attempt that has failed is shown."""
        return True

    def _finish(self, trial: AnyTrial) -> None:
        """Take what an attempt that ended well has made; a failure of this is the trial's."""

    def _next_start(self, trial: AnyTrial) -> Tuple[int, bool]:
        """After a failed attempt: return (line offset, whether to resume) for the next, and clear what it must not find."""
        raise NotImplementedError

    def _changed_inputs(self) -> str:
        """Return which file of the key is not what it was when the key was computed, as far as its signature tells, or ""."""
        return changed_file(self.run.root, self.facts.material.stamps, self._is_as_read, ())

    def _is_as_read(self, path: str, now: List[int]) -> bool:
        """Tell whether a file of signature *now* is still what the key says of it, by reading it."""
        if self.content is None:
            self.content = self._content()
        try:
            digest, stamp = file_digests.hash_file(os.path.join(self.run.root, path), self.run.digests.heed)
        except OSError:
            return False
        if stamp != now or digest != self.content.get(path):
            return False
        if path in self.facts.material.stamps:      # for tasks that are yet to begin
            self.facts.material.stamps[path] = stamp
        return True

    # --- the end

    def _check_outputs(self) -> Tuple[str, List[Json]]:
        """Return (what is wrong with the outputs or "", the outputs as recorded)."""
        if not os.path.isdir(self.folder):
            return "its output folder %s is not there any more" % self.stage.output_dir, []
        there = stage_outputs.list_folder(self.folder)
        unfinished = unfinished_text(there, self.stage.name)
        if unfinished:
            return unfinished, []
        now, before = there.files, self.found.files
        changed = set(stage_outputs.changed_since(self.baseline, now))
        foreign = self.others.owners()
        for path in sorted(set(now) | set(before)):
            if path in foreign and foreign[path] not in self.others.beside and now.get(path) != before.get(path):
                return self.others.text("changed" if path in now else "removed", path, foreign[path]), []
        names = set(changed)
        if self.declared is not None:
            names = set(filter(self.declared.matches, now))
            problem = self._not_made(self.declared, names - set(foreign), changed)
            if problem:
                return problem, []
        kept = sorted(one["path"] for one in self.earlier.outputs if one["path"] in now and one["path"] not in changed and one["path"] not in foreign)
        if kept and (self.attempts or self.stage.chunks is not None):      # kept chunks are joined anew without an attempt
            self._note("not remade by this run, still recorded: %s" % shown_names(kept))
        if not self.others.are_beside():        # it may be theirs
            self._tell_of_no_outputs(stage_outputs.no_outputs(self.found, there), "they are neither recorded nor undone after a kill")
        return self._hash_outputs(sorted(names.union(kept) - set(foreign)))

    def _not_made(self, declared: file_digests.Patterns, names: Set[str], changed: Set[str]) -> str:
        """Return why the first declared output that does not count as made does not, or ""; *names* are there, *changed* was made
        since the work on this key began."""
        not_now = declared.unmatched(names & changed)
        not_there = set(declared.unmatched(names)) if not_now else set()
        # There a file that was written anew may look as it did before.
        is_unsure = sys.platform == "win32" or self.stage.launcher
        for pattern in not_now:
            if pattern in not_there:
                return "declared output %s/%s was not made" % (self.stage.output_dir, pattern)
            if self.attempts and not is_unsure:
                return "declared output %s/%s was not made: what is there is older than this run; remove it, let the processor write it each time, or do not declare it" % (
                    self.stage.output_dir, pattern)
        return ""

    def _tell_of_no_outputs(self, names: List[str], what_becomes: str) -> None:
        if names:
            self._note("made %s; %s: %s" % (shown_names(names), stage_outputs.NO_OUTPUT, what_becomes))

    def _hash_outputs(self, names: List[str]) -> Tuple[str, List[Json]]:
        outputs = []
        for name in names:
            path = "%s/%s" % (self.stage.output_dir, name)
            if not file_digests.is_unicode(name):
                return NOT_UTF_8 % ascii(name), []
            self.run.digests.forget(path)
            try:
                size, digest = self.run.digests.of_output(path)
            except (OSError, file_digests.FileChanged) as error:
                return "output %s cannot be read: %s" % (name, error), []
            self.store.commit.add_file(os.path.join(self.folder, name))
            outputs.append({"path": name, "bytes": size, "sha256": digest})
        return "", outputs

    def _judge(self, outputs: List[Json]) -> str:
        """Return why the control totals of the stage's counts refuse its outputs, or ""."""
        if not control_totals.is_judged(self.stage):
            return ""
        missing = control_totals.missing_counts(self.stage, self.counts)
        expected, why, refused = self.run.expected_read(self.stage, self.facts)
        if why and not missing and not refused:
            self._note("what it read is not compared with what was written before: %s" % why)
        paths = ["%s/%s" % (self.stage.output_dir, one["path"]) for one in outputs]
        failure = control_totals.missing_text(self.stage, missing, self.counts_problem) if missing else refused or control_totals.judge(self.stage, self.counts, expected, paths)
        self.refused = outputs if failure else []
        return failure

    def _none_counted(self, was_read: bool) -> Json:
        """Return the counts where no task has reported any: zeros, for the judgement, if there was nothing to read."""
        return dict(control_totals.NOTHING) if control_totals.is_judged(self.stage) and not was_read else {}

    def _note_in_outputs(self, counts: Json) -> None:
        """Note the counts of what is in the outputs, {} if nobody knows, where they are others than those of what was done: for
        whoever reads them."""
        if counts != self.counts:
            self.more_of_record = dict(self.more_of_record, inOutputs=counts)

    def _succeed(self, outputs: List[Json]) -> StageResult:
        self._finish_checkpoint()
        checkpoints.forget_published(self.store, self.stage)
        stage_outputs.remove_parts(self.folder, self.stage.name, set())
        self._write_record("ok", "", outputs=outputs)
        self.run.durability.write_marker(self.stage, self.key)
        self.console.event("DONE", self.stage.name, " in %.3fs%s" % (self._duration_s(), self._done_text()))
        return self._result("ok", "; ".join(self.reasons), outputs=outputs, bytes_out=sum(one["bytes"] for one in outputs))

    def _done_text(self) -> str:
        """Return how many tasks were done, for the line that tells the end of a stage; "" where there are none."""
        return ""

    def _give_up(self, failure: str, stopped: bool) -> StageResult:
        status = "interrupted" if stopped else "failed"
        if stopped:
            failure = "; ".join([self.run.signals.text()] + ([attempts.survivors_text(self.survivors)] if self.survivors else []))
        failure += self._full_disk_text()
        try:
            self._write_record(status, failure)
        except OSError as error:        # the first cause decides; without this record the next run takes ours for dead
            failure += "; and not recorded: " + describe_os_error(error)
        self.console.event("STOP" if stopped else "FAIL", self.stage.name, ": " + failure)
        return self._result(status, failure)

    def cut_short(self, status: str, why: str) -> StageResult:
        """Return the result of work that the runner cannot bring to its end; the stage's record is left as that of one at work.

        Where it has not got that far, the record is an earlier run's, and no run record may say that this run has made the stage.
        """
        return self._result(status, why) if self.is_recorded else StageResult.of(self.stage.name, status, why)

    def recovered(self, record: Json, why: str) -> StageResult:
        """Return the result of work of which *record* says that it has ended well, though the runner could not go on from there.

        The next run restores the marker: then nothing that this run leaves may say that the stage has failed.
        """
        known = run_ledger.recovered_entry(self.store, record)
        result = self._result("ok", "finished and recorded; then the runner could not go on: " + why, outputs=known["outputs"],
                              bytes_out=known["bytesOut"], counts=known["counts"])
        return result._replace(evidence={**result.evidence, **{name: known[name] for name in ("recovered", "hadMarker", "tasks") if name in known}})

    def _full_disk_text(self) -> str:
        """Return how little space is left where the outputs go, or "" while it may not be that."""
        text = full_disk_text(self.folder)
        return "; " + text if text else ""

    def _finish_checkpoint(self) -> None:
        checkpoints.finish(self.store, self.stage, self.key)

    def _write_record(self, status: str, error: str, outputs: Optional[List[Json]] = None) -> None:
        record = self._record(status, error, self.earlier.outputs if outputs is None else outputs)
        if status == "ok":
            # What a power cut may take back while the outputs are not on the disk yet.
            made = {one["path"] for one in record["outputs"]}
            record["previous"] = [one for one in self.earlier.outputs if one["path"] in made]
        else:
            record["baseline"] = self.baseline
            if status != "running" and not self.survivors:
                record["left"] = stage_outputs.list_folder(self.folder).new_since(self.baseline)
            if self.refused:
                record["refused"] = self.refused        # no other stage takes them as inputs
            if self.made_from:
                record["madeFrom"] = self.made_from
            record["token"] = self.lock.token
        self._put_record(dict(record, **self.more_of_record))

    def _put_record(self, record: Json) -> None:
        self.store.write_stage(self.stage.name, record)
        self.is_recorded = True

    def _record(self, status: str, error: str, outputs: List[Json]) -> Json:
        if status != "running":
            self.ended = self.run.clock.monotonic()
        return {
            "stage": self.stage.name, "pipeline": self.run.spec.name, "lastStatus": status, "attempts": self.attempts,
            "idempotencyKey": self.key, "keyParts": self.facts.material.parts,
            "outputs": outputs, "counts": self.counts, "bytesIn": self.facts.material.input_bytes,
            "lastDurationSec": round(self._duration_s(), 6), "lastError": storable(error) or None, "lastRunId": self.run.options.run_id,
            "lastInvocation": self.run.invocation, "startedAt": self.started_utc, "endedAt": None if status == "running"
            else utc_text(self.run.clock.time()),
            "bootId": self.run.boot,
            **({**self.calls.bytecode_facts(), **run_ledger.kept_evidence(self.logs, self.refusals)} if status == "ok" else {})}

    def _duration_s(self) -> float:
        """Return how long the stage has been at work, or was: all who tell tell the same."""
        return float((self.run.clock.monotonic() if self.ended is None else self.ended) - self.started)

    def _result(self, status: str, reason: str, **known: Any) -> StageResult:
        return StageResult.of(self.stage.name, status, reason, attempts=self.attempts, duration_s=self._duration_s(), cpu_s=self.cpu_s,
                              max_rss_bytes=self.max_rss, bytes_in=self.facts.material.input_bytes, key=self.key, exit_code=self.exit_code,
                              evidence=self._evidence(), is_offline_fault=self.is_offline_fault, **{"counts": self.counts, **known})

    def _evidence(self) -> Json:
        """Return what the run record says of how the stage was run."""
        parts = run_ledger.recorded_parts(self.store, self.facts.material.parts)
        sizes = self.facts.material.stamps
        return {"keyParts": parts, "argv": self.argv, "inputs": [{"path": path, "bytes": sizes[path][0], "sha256": digest} for path, digest in parts["inputs"]],
                "startedAt": self.started_utc, "tries": self.tries, "logs": self.logs, "networkRefusals": self.refusals, **self.calls.evidence()}

