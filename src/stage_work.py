"""A stage that must run: from the removal of its marker to the new one, under its lock.

Above the leaves, checkpoints and scheduler; the engine imports it when the first stage must run.

    Decision -> StageWork.do() -> attempts (retried, resumed) -> outputs checked and hashed -> stage record, marker -> StageResult

Order of the durable steps: marker removed, checkpoint of other work set aside, leftovers cleared, record "running" with
the key, attempts, whole tree ended, outputs checked and hashed, stage record, marker. A kill between any two leaves what
the next run can tell from a finished stage.
"""
from __future__ import annotations

import json
import os
import sys

import attempts
import checkpoints
import control_totals
import earlier_outputs
import environment
import file_digests
import foreign_outputs
import processor_call
import recorded_outputs
import run_ledger
import stage_outputs
import state_store
import task_files
from console import describe_os_error, full_disk_text
from model import StageResult, sha256, shown_names
from primitives import remove_quietly
from scheduler import Attempting, Pause
from state_store import utc_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, Iterable, List, Optional, Sequence, Set, Tuple

    from engine import Run
    from model import Checkpoint, Decision, Facts, Retry, StageSpec
    from scheduler import Flow
    from stage_locks import StageLock
    Json = Dict[str, Any]

BYTECODE_BYTES = 16 << 20   # of free space, as for the runner's own: with less, a processor's bytecode might be cut short
NOT_UTF_8 = "output %s: the name is not valid UTF-8, so no record can name it; have the processor give it another"
CHANGED = "input changed during the run: "
NO_REPORT = "%sthe task left no report %s: %s"
STATUS_ONLY = " (its rights or the number of its links, or its time was put back; a processor must copy an input, not link it)"


def unfinished_text(there: stage_outputs.Folder, stage: str) -> str:
    """Return that a processor that ended well has left an output of the kit half done, or ""."""
    parts = stage_outputs.own_parts(there.parts, stage)
    return "it ended with exit code 0 and left %s, an output that is not finished: what the processor kit opens must be brought to its end" % parts[0] if parts else ""


def _is_short_of_space(folder: str) -> bool:
    """Tell whether bytecode that Python caches beside the files of *folder* might be cut short; it would be taken for whole ever after."""
    try:
        found = os.statvfs(folder)
    except (AttributeError, OSError):
        return False                    # Windows
    return found.f_bavail * found.f_frsize < BYTECODE_BYTES


def changed_file(root: str, stamps: Dict[str, List[int]]) -> str:
    """Return what is said of the first file that has not the signature any more that it had, "" if all have."""
    for path, stamp in stamps.items():
        try:
            now = file_digests.signature(os.stat(os.path.join(root, path)))
        except OSError:
            now = []
        if now != stamp and task_files.plain(now) != task_files.plain(stamp):   # of a task, the stamp comes from an array
            return "%s%s%s" % (CHANGED, path, STATUS_ONLY if file_digests.is_same_but_status(stamp, now) else "")
    return ""


def with_change(changed: str, failure: str) -> str:
    """Return why something failed, or "". A change of its input comes first: a processor that met it has failed in its own words."""
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

class StageWork:
    """A stage that must run, under its lock: from the removal of the marker to the new one."""

    def __init__(self, run: Run, stage: StageSpec, lock: StageLock, facts: Facts) -> None:
        """*run* is the runner's Run: spec, options, root, store, digests, console, clock, signals, guardian, boot."""
        self.run, self.stage, self.lock, self.facts = run, stage, lock, facts
        self.reasons: List[str] = []
        self.store, self.console = run.store, run.console
        self.folder = os.path.join(run.root, stage.output_dir)
        self.others = foreign_outputs.ForeignOutputs(run, stage, self.folder)
        self.key = facts.material.key
        self.earlier = earlier_outputs.EarlierOutputs(run, stage, self.folder, facts.record, self.others)
        self.baseline: Json = {}        # from before this key's first attempt: what changed since is ours
        self.found = stage_outputs.NOTHING  # in the folder before this run's attempts: what others own must still be that
        self.survivors: List[int] = []
        self.attempts = 0
        self.cpu_s, self.max_rss = 0.0, 0
        self.exit_code: Optional[int] = None
        self.logs: List[Json] = []      # path, bytes and digest of each attempt's
        self.tries: List[Json] = []     # start, duration and exit code of each attempt
        self.refusals: List[Json] = []  # what the attempts tried to do with the network
        self.network_fault = ""         # of the last attempt: why it fails, if it does
        self.is_offline_fault = False
        self.nodes: Dict[str, Json] = {}    # where attempts ran that a launcher started, and how the network was closed there
        self.is_attempting = False
        self.argv: List[str] = []
        self.counts: Json = {}          # what the processor reported
        self.refused: Any = []          # outputs that the control totals did not accept
        self.more_of_record: Json = {}
        self.log_path, self.token, self.began = "", "", ""
        self.bytecode: Optional[str] = None     # why what Python has cached of the modules cannot be used; None: not looked at yet
        self.network: Any = None        # the watch over the attempt under way
        self.rank = 0                   # the stage's place: the lower, the earlier its attempts are started
        self.started_utc = utc_text(run.clock.time())
        self.started = run.clock.monotonic()
        self.ended: Optional[float] = None

    def do(self, decision: Decision) -> Flow:
        """Run attempts until one succeeds or none is left, then record how it ended; a flow that returns the StageResult."""
        self.reasons = list(decision.reasons)
        self._prepare(decision)
        failure, stopped = yield from self._attempts(decision)
        if self.store.commit.is_due():
            self.run.flush()
        if not failure:
            failure, outputs = self._check_outputs()
        if not failure:
            self._take_reported()
            failure = self._judge(outputs)
        if failure:
            return self._give_up(failure, stopped)
        return self._succeed(outputs)

    def _prepare(self, decision: Decision) -> None:
        """Marker away, other work's checkpoint aside, leftovers cleared, "running" recorded; in this order."""
        state_store.make_folder(self.folder, self.store.commit)
        state_store.remove_durably(self.run.marker(self.stage), self.store.commit)
        unfinished = self.earlier.unfinished()
        if decision.action == "RUN":
            if decision.discard:
                self._note("checkpoint not used: %s" % decision.discard)
            checkpoints.set_aside(self.store, self.stage)
            self.earlier.clear_leftovers(self.earlier.doubted(unfinished))
            unseen = [] if self.facts.record is None or self.facts.record["outputs"] else self.earlier.made     # of a task log: nobody has looked at them yet
            is_of_success = self.facts.record is None or self.facts.record["lastStatus"] == "ok"
            if self.facts.output_problems and is_of_success or not all(map(self.earlier.is_as_recorded, unseen)):
                self.earlier.undo_success()
            # Of an attempt: cleared already, and what was there before it has nothing to do with a sync that failed since.
            state_store.remove_durably(self.earlier.lost_path(), self.store.commit)
            self.earlier.tell_of_move()
        old = unfinished if self._is_same_work() else None
        self.found = stage_outputs.list_folder(self.folder)
        self.baseline = old if old is not None else self.found.baseline()
        self._write_record("running", "")
        self.run.records.save_dear_digests()
        if self.stage.checkpoint or self.found.itself[1:] != self.run.state_device():
            self.run.flush()    # a checkpoint is worth nothing without the record of its key; and two file systems keep no order of names

    def _note(self, text: str) -> None:
        self.console.event("NOTE", self.stage.name, ": " + text)

    def _is_same_work(self) -> bool:
        record = self.facts.record
        return record is not None and record["lastStatus"] != "ok" and record["idempotencyKey"] == self.key

    # --- attempts

    def _attempts(self, decision: Decision) -> Flow:
        """A flow that returns (why the stage failed or "", whether a signal stopped it)."""
        retry, stage = self.stage.retry, self.stage
        offset, is_resume = decision.line_offset, decision.action == "RESUME"
        while True:
            self.attempts += 1
            result = yield from self._attempt(offset, is_resume)
            self.cpu_s += result.cpu_s
            self.max_rss = max(self.max_rss, result.max_rss_bytes)
            self.exit_code = result.exit_code
            self.survivors = result.survivors
            for note in result.notes:
                self._note(note)
            changed = "" if result.stopped and result.failure else self._changed_inputs()
            failure = with_change(changed, result.failure)
            if self.network_fault and not result.stopped:
                self.is_offline_fault = True
                self.console.tail(result.tail, stage.name)
                return "; ".join([self.network_fault] + ([failure] if failure else [])), False      # another attempt would try it again
            if result.survivors:
                return attempts.survivors_text(result.survivors), False
            if not failure or result.stopped:
                return failure, result.stopped
            self.console.tail(result.tail, stage.name)
            if changed or not result.failure or not is_worth_retrying(retry, self.attempts, result.exit_code):
                return failure, False
            delay = retry_delay_ms(retry, self.run.spec.name, stage.name, self.attempts) / 1000.0
            self.console.event("RETRY", stage.name, " attempt %d/%d: %s; next in %.2fs" % (self.attempts, retry.attempts, failure, delay))
            yield Pause(delay)
            if self.run.signals.number:
                return "interrupted", True
            offset, is_resume = self._next_start()

    def _next_start(self) -> Tuple[int, bool]:
        """After a failed attempt: resume from its checkpoint if it left one, else clear what it left."""
        found = self._read_checkpoint("failed") if self.stage.checkpoint else None
        if found is not None and found.resumable:
            return found.line_offset, True
        if found is not None and found.problem:
            self._note("checkpoint not used: %s" % found.problem)
        checkpoints.set_aside(self.store, self.stage)
        self.earlier.clear_leftovers(self.baseline)
        return 0, False

    def _read_checkpoint(self, status: str) -> Optional[Checkpoint]:
        record = {"idempotencyKey": self.key, "bootId": self.run.boot, "lastStatus": status, "baseline": self.baseline}
        return checkpoints.read_checkpoint(self.store, self.stage, record, self.key, self.run.boot,
                                           lambda: recorded_outputs.outputs_of_others(self.run.root, self.stage.output_dir, {self.stage.name}))

    def _cut_to_checkpoint(self) -> None:
        found = self._read_checkpoint("running")
        if found is None or found.problem:
            return
        if not found.complete:
            stage_outputs.cut_to_checkpoint(self.folder, found.outputs)
        stage_outputs.remove_parts(self.folder, self.stage.name, set() if found.complete else set(found.outputs))

    def _attempt(self, offset: int, is_resume: bool) -> Flow:
        """A flow that returns the AttemptResult of one attempt."""
        resources = self.stage.local_resources
        self.network = None
        result = yield Attempting(lambda slot: self._launch(offset, is_resume), (self.rank,), resources.get("cpuCores", 1), resources.get("memoryMB", 0))
        self.is_attempting = False
        self.console.end_stream(self.stage.name)
        if self.network is not None:
            self.tries.append({"startedAt": self.began, "durationMs": int(result.duration_s * 1000), "exitCode": result.exit_code})
            self._note_log(self.log_path, *result.log)
            result, unclosed = self._after_launch(result, self.network, self.token)
            self.refusals += self.network.recorded()
            self.network_fault = unclosed or (self.network.fault() if self.stage.network_attempts == "fail" else "")
        return result

    def _note_log(self, path: str, size: int, digest: str, **more: str) -> None:
        """Name a log in the records; on the disk before these are, for else a power cut leaves one that is not as they say."""
        self.logs.append({"path": os.path.relpath(path, self.run.root).replace(os.sep, "/"), "bytes": size, "sha256": digest, **more})
        if size:
            self.store.commit.add_file(path)

    def _launch(self, offset: int, is_resume: bool) -> Any:
        """Return what to start, and the watch over its use of the network; or the result of an attempt that cannot be."""
        stage, run = self.stage, self.run
        if is_resume:
            self._cut_to_checkpoint()
        self.console.event("RESUME" if is_resume else "START", stage.name, " from line %d" % offset if is_resume else "", attempt=self.attempts)
        self.is_attempting = True
        inputs = self.facts.material.inputs
        short = self._space_problem() or self._bytecode_problem() or processor_call.cmd_problem(stage.processor, inputs) or self._overflow_problem(inputs)
        if short:
            return attempts.not_begun(short)
        inputs_file = self.store.path("inputs_%s.json" % stage.name)
        state_store.write_new(inputs_file, json.dumps(inputs, ensure_ascii=False).encode("utf-8"), durable=False)     # its reader is not there yet
        state_store.make_folder(run.log_folder(), self.store.commit)
        remove_quietly(self._counts_file())        # an earlier attempt's say nothing of this one
        token = self.token = "%s.%d" % (self.lock.token, self.attempts)
        self.log_path = os.path.join(run.log_folder(), "%s.%d.log" % (stage.name, self.attempts))
        self.network = run.network.attempt(stage.name, self.log_path[:-len("log")] + "network", self.console)
        env = self._environment(offset, is_resume, token, inputs_file)
        env.update(self.network.environment(stage.env))
        self.argv = processor_call.command_line(run.root, stage, inputs)
        self.began = utc_text(run.clock.time())
        launch = attempts.Launch(
            self.argv, env, run.root, self.log_path, token, self.lock.descriptor, self.lock.guard, stage.timeout_s, stage.grace_s, stage.resources,
            (lambda data: self.console.stream(stage.name, data)) if run.options.verbose else None)
        launch, network = processor_call.launched_elsewhere(launch, run, stage, self.network)
        self.argv = launch.argv
        return launch, network

    def _after_launch(self, result: Any, network: Any, token: str) -> Tuple[Any, str]:
        """Take in what a launched task told of its machine; return the result, and why the network could not be closed there, or "".

        Success is believed only with the word that the last process of this very attempt is gone there.
        """
        if not self.stage.launcher or result.exit_code is None:
            return result, ""
        told, failure, unclosed = network.take_node_report(), result.failure, ""
        is_told, is_timeout = told.is_whole and told.token == token, failure.startswith(attempts.TIMEOUT % (self.stage.timeout_s or 0))
        if told.host:
            place = self.nodes.setdefault("%s %s" % (told.host, sorted(told.kernel.items())), {"host": told.host, "kernel": told.kernel, "attempts": 0})
            place["attempts"] += 1
        if told.why and not result.stopped:
            failure, unclosed = told.why, told.why if told.is_unclosed else ""
        elif not is_told and not result.stopped and not is_timeout:
            failure = NO_REPORT % (failure + "; " if failure else "", os.path.relpath(network.node_report(), self.run.root).replace(os.sep, "/"),
                                   "the launcher or the machine failed" if failure else "the launcher came back before the task had ended, or did not run the words after it, or the machines do not share the root")
            result = result._replace(is_machines=True)
        elif not failure and told.exit_code:
            failure = "%s, which the launcher did not give back" % attempts.exit_text(told.exit_code)
            result = result._replace(exit_code=told.exit_code)
        if is_told and told.stopped_by and failure and not result.stopped and not is_timeout:
            failure += "; its machine's engine has stopped it (signal %d)" % told.stopped_by
            result = result._replace(is_machines=True)
        return result._replace(failure=failure, cpu_s=told.cpu_s or result.cpu_s, max_rss_bytes=told.max_rss_bytes or result.max_rss_bytes), unclosed

    def row(self, expected_s: Optional[float]) -> Optional[Tuple[Any, ...]]:
        """Return what the live view shows of the attempt under way (live_view.Row), None between attempts."""
        if not self.is_attempting:
            return None
        import stage_progress
        seen = stage_progress.read_progress(checkpoints.progress_path(self.store, self.stage.name)) if self.stage.checkpoint else None
        done, total, lines = (seen.done_bytes, seen.total_bytes, seen.lines) if seen is not None else (None, None, None)
        return self.stage.name, self.attempts, done, total, None, None, self.started, expected_s, lines

    def _base_environment(self) -> Dict[str, str]:
        """Return the variables that are the same for all attempts."""
        stage, run = self.stage, self.run
        if stage.pass_env not in run.inherited:
            run.inherited[stage.pass_env] = environment.base_environment(stage.pass_env, os.environ)
        env = environment.with_own(run.inherited[stage.pass_env], stage.env)
        is_tight = _is_short_of_space(os.path.join(run.root, os.path.dirname(stage.processor)))
        if (sys.dont_write_bytecode or is_tight) and not os.environ.get("PYTHONDONTWRITEBYTECODE"):
            env.setdefault("PYTHONDONTWRITEBYTECODE", "1")      # this runner's own doing: little space, or python -B
        env.update(PIPELINE_STAGE_NAME=stage.name, PIPELINE_RUN_ID=run.options.run_id, PIPELINE_ROOT=run.root,
                   PIPELINE_PARAMS=json.dumps(stage.params, ensure_ascii=False, sort_keys=True))    # as in the key: their order tells nothing
        return env

    def _environment(self, offset: int, is_resume: bool, token: str, inputs_file: str) -> Dict[str, str]:
        env = self._base_environment()
        env.update(PIPELINE_OUTPUT_DIR=self.folder.replace("/", os.sep), PIPELINE_KEY=self.key, PIPELINE_COUNTS_FILE=self._counts_file(),
                   **self._attempt_variables(self.attempts, offset, is_resume, token, inputs_file))
        if self.stage.checkpoint:
            env["PIPELINE_PROGRESS_FILE"] = checkpoints.progress_path(self.store, self.stage.name)
        return env

    def _attempt_variables(self, number: int, offset: int, is_resume: bool, token: str, inputs_file: str) -> Dict[str, str]:
        """Return the variables of attempt number *number*, of the stage or of one of its tasks."""
        found = {"PIPELINE_LINE_OFFSET": str(offset), "PIPELINE_ATTEMPT": str(number), "PIPELINE_INPUTS_FILE": inputs_file, "PIPELINE_ATTEMPT_TOKEN": token}
        if is_resume:
            found["PIPELINE_RESUME"] = "1"
        if number <= self.stage.simulate_fail_attempts:
            found["PIPELINE_SIMULATED_FAIL"] = "1"
        if self.stage.checkpoint:
            found["PIPELINE_LINE_INTERVAL"] = str(self.stage.line_interval)
        return found

    def _overflow_problem(self, inputs: Sequence[str]) -> str:
        material = self.facts.material
        return processor_call.overflow_problem(self.run.root, self.stage.processor, self.stage.args, [path for path, _ in material.parts["modules"]] + material.watched, inputs)

    def _bytecode_problem(self) -> str:
        """Return why the processor might be given an earlier text of a module, or "". Looked at once: a module that changes later fails the attempt."""
        if self.bytecode is None:
            material = self.facts.material
            modules = [path for path, _ in material.parts["modules"]] + [path for path in material.watched if path.endswith(".py")]
            import stale_bytecode
            self.bytecode = stale_bytecode.drop(self.run.root, modules, self._base_environment().get("PYTHONPYCACHEPREFIX", "")) if modules else ""
        return self.bytecode

    def _space_problem(self) -> str:
        wanted = self.stage.resources.get("minFreeDiskMB", 0)
        if not wanted:
            return ""
        import shutil
        free = shutil.disk_usage(self.folder).free
        return "" if free >= wanted << 20 else "%d bytes free in %s, resources.minFreeDiskMB asks for %d" % (free, self.stage.output_dir, wanted << 20)

    def _changed_inputs(self) -> str:
        """Return which file of the key is not what it was when the key was computed, or ""."""
        return changed_file(self.run.root, self.facts.material.stamps)

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
        changed = stage_outputs.changed_since(self.baseline, now)
        foreign = self.others.owners()
        for path in sorted(set(now) | set(before)):
            if path in foreign and foreign[path] not in self.others.beside and now.get(path) != before.get(path):
                return self.others.text("changed" if path in now else "removed", path, foreign[path]), []
        names = set(changed)
        if self.stage.outputs is not None:
            names = {path for path in now if any(file_digests.path_matches(path, pattern) for pattern in self.stage.outputs)}
            problem = next((why for why in (self._not_made(pattern, names - set(foreign), changed) for pattern in self.stage.outputs) if why), "")
            if problem:
                return problem, []
        kept = sorted(one["path"] for one in self.earlier.made if one["path"] in now and one["path"] not in changed and one["path"] not in foreign)
        if kept and (self.attempts or self.stage.chunks is not None):      # kept chunks are joined anew without an attempt
            self._note("not remade by this run, still recorded: %s" % shown_names(kept))
        self._tell_of_no_outputs(stage_outputs.no_outputs(self.found, there), "they are neither recorded nor undone after a kill")
        names.update(kept)
        return self._hash_outputs(sorted(names - set(foreign)))

    def _not_made(self, pattern: str, names: Set[str], changed: Iterable[str]) -> str:
        """Return why a declared output does not count as made, or ""; *names* are there, *changed* was made since the work on this key began."""
        def is_among(paths: Iterable[str]) -> bool:
            return any(file_digests.path_matches(path, pattern) for path in paths)

        if is_among(path for path in changed if path in names):
            return ""
        if not is_among(names):
            return "declared output %s/%s was not made" % (self.stage.output_dir, pattern)
        is_unsure = sys.platform == "win32" or self.stage.launcher      # there a file that was written anew may look as it did before
        if not self.attempts or is_unsure:
            return ""
        return "declared output %s/%s was not made: what is there is older than this run; remove it, let the processor write it each time, or do not declare it" % (
            self.stage.output_dir, pattern)

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

    def _take_reported(self) -> None:
        """Take the counts that the processor reported: in the file of counts, else with its checkpoint."""
        counts, problem = control_totals.read_counts(self._counts_file())
        self.counts = counts if counts is not None else checkpoints.progress_of(self.store, self.stage).get("counts", {})
        remove_quietly(self._counts_file())
        if problem:
            self._note("the counts that it reported are not used: %s" % problem)

    def _judge(self, outputs: List[Json]) -> str:
        """Return why the control totals of the stage's counts refuse its outputs, or ""."""
        if not control_totals.is_judged(self.stage):
            return ""
        missing = control_totals.missing_counts(self.stage, self.counts)
        expected, why, refused = self.run.expected_read(self.stage, self.facts)
        if why and not missing and not refused:
            self._note("what it read is not compared with what was written before: %s" % why)
        paths = ["%s/%s" % (self.stage.output_dir, one["path"]) for one in outputs]
        failure = control_totals.missing_text(self.stage, missing) if missing else refused or control_totals.judge(self.stage, self.counts, expected, paths)
        self.refused = outputs if failure else []
        return failure

    def _none_counted(self, was_read: bool) -> Json:
        """Return the counts where no task has reported any: zeros, for the judgement, if there was nothing to read."""
        return dict(control_totals.NOTHING) if control_totals.is_judged(self.stage) and not was_read else {}

    def _note_in_outputs(self, counts: Json) -> None:
        """Note the counts of what is in the outputs, {} if nobody knows, where they are others than those of what was done: for whoever reads them."""
        if counts != self.counts:
            self.more_of_record = dict(self.more_of_record, inOutputs=counts)

    def _counts_file(self) -> str:
        path: str = self.store.path("counts_%s.json" % self.stage.name)
        return path

    def _succeed(self, outputs: List[Json]) -> StageResult:
        self._complete_checkpoint()
        checkpoints.forget_published(self.store, self.stage)
        stage_outputs.remove_parts(self.folder, self.stage.name, set())
        self._write_record("ok", "", outputs=outputs)
        self.run.write_marker(self.stage, self.key)
        self.console.event("DONE", self.stage.name, " in %.3fs" % self._duration_s())
        return self._result("ok", "; ".join(self.reasons), outputs=outputs, bytes_out=sum(one["bytes"] for one in outputs))

    def _give_up(self, failure: str, stopped: bool) -> StageResult:
        status = "interrupted" if stopped else "failed"
        failure = self.run.signals.text() if stopped else failure
        failure += self._full_disk_text()
        try:
            self._write_record(status, failure)
        except OSError as error:        # the first cause decides; without this record the next run takes ours for dead
            failure += "; and not recorded: " + describe_os_error(error)
        self.console.event("STOP" if stopped else "FAIL", self.stage.name, ": " + failure)
        return self._result(status, failure)

    def _full_disk_text(self) -> str:
        """Return how little space is left where the outputs go, or "" while it may not be that."""
        text = full_disk_text(self.folder)
        return "; " + text if text else ""

    def _complete_checkpoint(self) -> None:
        checkpoints.complete(self.store, self.stage, self.key)

    def _write_record(self, status: str, error: str, outputs: Optional[List[Json]] = None) -> None:
        record = self._record(status, error, self.earlier.made if outputs is None else outputs)
        if status == "ok":
            # What a power cut may take back while the outputs are not on the disk yet.
            made = {one["path"] for one in record["outputs"]}
            record["previous"] = [one for one in self.earlier.made if one["path"] in made]
        else:
            record["baseline"] = self.baseline
            if status != "running" and not self.survivors:
                record["left"] = stage_outputs.list_folder(self.folder).new_since(self.baseline)
            if self.refused:
                record["refused"] = self.refused        # no other stage takes them as inputs
            record["token"] = self.lock.token
        self.store.write_stage(self.stage.name, dict(record, **self.more_of_record))

    def _record(self, status: str, error: str, outputs: List[Json]) -> Json:
        if status != "running":
            self.ended = self.run.clock.monotonic()
        return {
            "stage": self.stage.name, "pipeline": self.run.spec.name, "lastStatus": status, "attempts": self.attempts,
            "idempotencyKey": self.key, "keyParts": self.facts.material.parts,
            "outputs": outputs, "counts": self.counts, "bytesIn": self.facts.material.input_bytes,
            "lastDurationSec": round(self._duration_s(), 6), "lastError": error or None, "lastRunId": self.run.options.run_id,
            "lastInvocation": self.run.invocation, "startedAt": self.started_utc, "endedAt": None if status == "running" else utc_text(self.run.clock.time()),
            "bootId": self.run.boot}

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
                "startedAt": self.started_utc, "tries": self.tries, "logs": self.logs, "networkRefusals": self.refusals, **self._launcher_evidence()}

    def _launcher_evidence(self) -> Json:
        if not self.stage.launcher:
            return {}
        return {"launcher": {"words": list(self.stage.launcher), "limits": "left to the launcher", "nodes": list(self.nodes.values())}}
