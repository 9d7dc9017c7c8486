"""A stage's turn in a run: looked at, locked, looked at once more, and then skipped or done.

Above planning and work_places, below the engine, which makes a StageTurn of each stage for which the index does not answer.

    flow(): look -> SKIP, or not begun | run opened, lock -> look again -> SKIP, SEAL, or not begun | stage_work -> StageResult
"""
from __future__ import annotations

import os

import durable_files
import planning
import run_ledger
import stage_locks
import stage_records
from file_digests import ReadingStopped
from model import Looked, StageResult

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, Optional, Tuple

    from engine import Run
    from model import Decision, Facts, StageSpec
    from scheduler import Flow
    from stage_work import StageWork
    Json = Dict[str, Any]

NOT_BEGUN = {"FAIL": "failed", "WAITING": "waiting"}      # decision -> what becomes of the stage


class StageTurn:
    """One stage in one invocation of a run."""

    def __init__(self, run: Run, stage: StageSpec) -> None:
        """*run*: the engine's Run."""
        self.run, self.stage = run, stage

    def flow(self) -> Flow:
        """A flow that returns the StageResult; one that waits for nothing is a stage that has not to be run."""
        run = self.run
        try:
            return (yield from self._flow())
        except ReadingStopped:
            return self._not_begun("interrupted", run.clock_text() or "interrupted while its inputs were read")
        except BaseException as error:
            run.unfit[self.stage.name] = error
            raise

    def _flow(self) -> Flow:
        run, stage = self.run, self.stage
        decision, facts = self._look(is_brief=True)
        if decision.action in NOT_BEGUN:
            return self._not_begun(NOT_BEGUN[decision.action], "; ".join(decision.reasons))
        if decision.action == "SKIP" and not self._needs_tidying() and self._is_unlocked():
            return self._skipped(decision, facts)
        token = stage_records.dead_token(facts.record)
        del decision, facts                     # of very many tasks: before they are looked at again
        run.open()
        lock = run.places.new_lock(stage)
        try:
            if not (yield from run.places.take(stage, lock, token)):
                return self._not_begun("interrupted", "%s while waiting for the lock of stage %s" % (run.signals.text(), stage.name))
        except stage_locks.LockHeld as error:
            if not run.options.keep_going:
                raise
            run.held.add(stage.name)
            return self._not_begun("failed", str(error))
        return (yield from self._locked(lock))

    def _locked(self, lock: stage_locks.StageLock) -> Flow:
        """As flow(), under the stage's lock, which is given back at the end, as its output folder is."""
        run, stage = self.run, self.stage
        is_free = True
        try:
            decision, facts = self._look()      # somebody else may have finished it while we waited
            if decision.action in NOT_BEGUN:
                return self._not_begun(NOT_BEGUN[decision.action], "; ".join(decision.reasons))
            if decision.action == "SEAL":
                # It may have had no outputs.
                durable_files.make_folder(os.path.join(run.root, stage.output_dir), run.store.commit)
                run.durability.write_marker(stage, facts.material.key)
            if decision.action in ("SKIP", "SEAL"):
                self._tidy()
                skipped = self._skipped(decision, facts)
                if decision.action == "SEAL":       # after the marker: whoever removes it from now on means it
                    run.store.write_stage(stage.name, dict(facts.record, markerRestored=True))
                return skipped
            if run.signals.number:
                return self._not_begun("interrupted", run.signals.text())
            self._tell_of_namesake(facts.record)
            work = self._new_work(lock, facts)
            run.add_work(work)
            try:
                result = yield from work.do(decision)
            except OSError as error:
                result = work.failed_by(error)
                if result is None:
                    raise
            is_free = not work.survivors
            if result.status == "ok" and stage.chunks is None:
                self._tidy()
            return result
        finally:
            run.places.leave(stage, lock, is_free)

    def _look(self, is_brief: bool = False) -> Tuple[Decision, Facts]:
        """is_brief: see planning.observe(); under the lock all is looked at."""
        run, digests = self.run, self.run.digests
        digests.used.clear()
        digests.folders.clear()                 # an earlier stage may have made or removed a module
        # Not later: what an attempt has made is read to its end.
        usual, digests.heed = digests.heed, run.heed_stop
        try:
            return planning.look_at(run.spec, self.stage, digests, run.store, run.boot, self.stage.name in run.options.force, self._now_ns, is_brief)
        finally:
            digests.heed = usual

    def _now_ns(self, device: int) -> int:
        """Return what time it is by the clock that stamps files on a device, as far as that can be had."""
        now, own = self.run.digests.file_system_time()
        return now if device == own else int(self.run.clock.time() * 1e9)

    def _is_unlocked(self) -> bool:
        """Tell whether nobody holds the stage's lock, nor has died with it."""
        has_folder = os.path.isdir(os.path.join(self.run.root, "locks", self.stage.name + ".lock"))
        return not has_folder or bool(self.run.places.new_lock(self.stage).is_free())

    def _new_work(self, lock: stage_locks.StageLock, facts: Facts) -> StageWork:
        if self.stage.for_each:
            import file_tasks
            return file_tasks.FileTasksWork(self.run, self.stage, lock, facts)
        if self.stage.chunks is not None:
            import chunk_work
            return chunk_work.ChunkTasksWork(self.run, self.stage, lock, facts)
        import plain_work
        return plain_work.PlainWork(self.run, self.stage, lock, facts)

    def _needs_tidying(self) -> bool:
        """Tell whether there are chunks of a finished stage that a kill has left, or the stage has kept while its spec said
        so."""
        stage = self.stage
        is_to_go = not stage.for_each and (stage.chunks is None or not stage.chunks.keep)
        return is_to_go and os.path.isdir(os.path.join(self.run.root, stage.output_dir, ".%s.tasks" % stage.name))

    def _tidy(self) -> None:
        if self._needs_tidying():
            import chunk_work
            chunk_work.tidy(self.run.root, self.stage, self.run.store)

    # --- what is told of it

    def _tell_of_namesake(self, record: Optional[Json]) -> None:
        """Say that the stage's record is another pipeline's: two that take turns do all their work again each time."""
        run = self.run
        if record is not None and record.get("pipeline") not in (None, run.spec.name):
            run.console.event("NOTE", self.stage.name, ": its record is of pipeline %s, and is replaced; if that is another one, and not this one renamed, "
                              "one of the two needs another name for its stage" % record["pipeline"])

    def _not_begun(self, status: str, why: str) -> StageResult:
        """Say why nothing is done with the stage, in which nothing was touched."""
        self.run.console.event({"waiting": "WAIT", "interrupted": "STOP"}.get(status, "FAIL"), self.stage.name, ": " + why)
        return StageResult.of(self.stage.name, status, why)

    def _skipped(self, decision: Decision, facts: Facts) -> StageResult:
        run, stage, record, material = self.run, self.stage, facts.record, facts.material
        reason = "; ".join(decision.reasons)
        run.console.event("SKIP", stage.name, " (%s)" % reason)
        run.store.sync_stage(stage.name, record.get("bootId", run.boot) != run.boot)
        if facts.tasks is None:                 # the others are never in the index
            run.looked[stage.name] = Looked(list(dict.fromkeys(material.inputs + material.watched)), material.seen,
                                            [path for path, _ in material.parts["modules"]], run.digests.stamps())
        evidence = {"madeBy": {"runId": record.get("lastRunId"), "invocation": record.get("lastInvocation")}}
        if facts.tasks is not None:
            import task_look
            evidence["tasks"] = task_look.skipped_summary(facts)
            run.records.caches.update(task_look.cache_of(run.store, stage, facts, record["tasks"]["outputsSha256"], run.boot, run.boot, stage.prune))
        return StageResult.of(stage.name, "skipped", reason, bytes_in=material.input_bytes, key=material.key, evidence=evidence,
                              bytes_out=run_ledger.output_bytes(record), outputs=record["outputs"], counts=record.get("counts", {}))
