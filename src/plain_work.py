"""A stage that is one piece of work: its processor is started once, and again where it fails and may be retried.

Above stage_work; the engine imports it when the first such stage must run.
"""
from __future__ import annotations

import json
import os

import checkpoints
import control_totals
import durable_files
import recorded_outputs
import stage_outputs
from primitives import remove_quietly
from stage_work import StageWork, Trial, last_words

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List, Optional, Tuple

    from attempts import AttemptResult
    from model import Checkpoint, Decision
    from scheduler import Flow
    Json = Dict[str, Any]


class PlainWork(StageWork):
    """A stage without forEach and chunks."""

    is_attempting = False
    said = ""               # of the last attempt, if it failed
    checkpoint: Optional[Checkpoint] = None     # from which the next attempt resumes

    def do(self, decision: Decision) -> Flow:
        """Run attempts until one succeeds or none is left, then record how it ended; a flow that returns the StageResult."""
        self.reasons = list(decision.reasons)
        self._prepare(decision)
        trial = self._new_trial()
        self.checkpoint = self.facts.checkpoint if decision.action == "RESUME" else None
        yield from self._try(trial, decision.line_offset, self.checkpoint is not None)
        # Of the last attempt also what the records keep nothing else of.
        self.exit_code, failure = trial.exit_code, trial.failure + self.said
        outputs: List[Json] = []
        self.run.durability.flush_if_due()
        if not failure:
            failure, outputs = self._check_outputs()
        if not failure:
            self._take_reported(trial)
            failure = self._judge(outputs)
        if failure:
            return self._give_up(failure, trial.stopped)
        return self._succeed(outputs)

    def _new_trial(self) -> Trial:
        name, material = self.stage.name, self.facts.material
        return Trial(name=name, subject=name, key=self.key, inputs=material.inputs, stamps=material.stamps, folder=self.folder,
                     log=os.path.join(self.run.log_folder(), name), token=self.lock.token, counts_path=self.store.path("counts_%s.json" % name),
                     progress_path=checkpoints.progress_path(self.store, name), rank=(self.rank,))

    # --- attempts

    def _make_ready(self, trial: Trial, slot: int, offset: int, is_resume: bool) -> None:
        self.attempts, self.is_attempting = trial.attempts, True
        durable_files.make_folder(self.folder, self.store.commit)       # an attempt before may have removed it
        if self.checkpoint is not None:
            self._cut_to(self.checkpoint)
        self.console.event("RESUME" if is_resume else "START", trial.subject, " from line %d" % offset if is_resume else "", attempt=trial.attempts)

    def _write_inputs(self, trial: Trial, slot: int) -> str:
        path: str = self.store.path("inputs_%s.json" % self.stage.name)
        # Its reader is not there yet.
        durable_files.write_new(path, json.dumps(trial.inputs, ensure_ascii=False).encode("utf-8"), durable=False)
        return path

    def _note_attempt(self, trial: Trial, result: AttemptResult) -> AttemptResult:
        self.is_attempting = False
        result = super()._note_attempt(trial, result)
        self.said = last_words(trial.failure, result)
        return result

    def _note_evidence(self, trial: Trial, result: AttemptResult) -> None:
        self.tries.append({"startedAt": trial.began, "durationMs": int(result.duration_s * 1000), "exitCode": result.exit_code})
        super()._note_evidence(trial, result)

    def row(self, expected_s: Optional[float]) -> Optional[Tuple[Any, ...]]:
        """Return what the live view shows of the attempt under way (live_view.Row), None between attempts."""
        if not self.is_attempting:
            return None
        import stage_progress
        seen = stage_progress.read_progress(checkpoints.progress_path(self.store, self.stage.name)) if self.stage.checkpoint else None
        done, total, lines = (seen.done_bytes, seen.total_bytes, seen.lines) if seen is not None else (None, None, None)
        return self.stage.name, self.attempts, done, total, None, None, self.started, expected_s, lines

    # --- its checkpoint

    def _next_start(self, trial: Trial) -> Tuple[int, bool]:
        """Resume from the checkpoint of the failed attempt if it left one, else clear what it left."""
        found = self._read_checkpoint() if self.stage.checkpoint else None
        self.checkpoint = found if found is not None and found.resumable else None
        if self.checkpoint is not None:
            return self.checkpoint.line_offset, True
        if found is not None and found.problem:
            self._note("checkpoint not used: %s" % found.problem)
        checkpoints.set_aside(self.store, self.stage)
        self.earlier.clear_leftovers(self.baseline)
        return 0, False

    def _read_checkpoint(self) -> Optional[Checkpoint]:
        record = {"stage": self.stage.name, "idempotencyKey": self.key, "bootId": self.run.boot, "lastStatus": "failed", "baseline": self.baseline}
        return checkpoints.read_checkpoint(self.store, self.stage, record, self.key, self.run.boot,
                                           lambda: recorded_outputs.outputs_of_others(self.run.root, self.stage.output_dir, {self.stage.name}))

    def _drop_checkpoint(self, trial: Trial) -> None:
        checkpoints.set_aside(self.store, self.stage)

    def _cut_to(self, found: Checkpoint) -> None:
        """Bring the outputs to the state for which a checkpoint stands: an attempt adds to them. Raises: OSError."""
        checkpoints.take_up(self.store, self.stage)
        if not found.complete:
            stage_outputs.cut_to_checkpoint(self.folder, found.outputs)
        stage_outputs.remove_parts(self.folder, self.stage.name, set() if found.complete else set(found.outputs))

    # --- the end

    def _take_reported(self, trial: Trial) -> None:
        """Take the counts that the processor reported: in the file of counts, else with its checkpoint."""
        counts, self.counts_problem = control_totals.read_counts(trial.counts_path)
        self.counts = counts if counts is not None else checkpoints.progress_of(self.store, self.stage).get("counts", {})
        remove_quietly(trial.counts_path)
        if self.counts_problem:
            self._note("the counts that it reported are not used: %s" % self.counts_problem)
