"""Where a stage is at work alone: its lock, its output folder, and nothing left of launchers of dead runs.

Above stage_locks, stage_order, planning and launch_lease, below the engine, whose Run has one WorkPlaces.

    take(): stage lock -> output folder, the outermost of the pipeline's around it -> left launches ended -> ... -> leave()
"""
from __future__ import annotations

import os

import planning
import stage_locks
import stage_order

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Dict, List, Set

    from engine import Run
    from model import StageSpec
    from scheduler import Flow


class WorkPlaces:
    """What one run holds of locks and output folders. What take() does not get, it does not keep in part, whatever it raises."""

    def __init__(self, run: Run) -> None:
        """*run*: the engine's Run."""
        self.run = run
        self.folder_locks = stage_locks.FolderLocks(run.root)
        self.entered: Dict[str, Set[str]] = {}      # output folders that this run holds: who is at work there

    def new_lock(self, stage: StageSpec) -> stage_locks.StageLock:
        """Return a stage's lock, not acquired."""
        import process_tree
        run = self.run
        return stage_locks.StageLock(run.root, stage.name, run.options.run_id, run.boot, run.clock, process_tree)

    def take(self, stage: StageSpec, lock: stage_locks.StageLock, token: str) -> Flow:
        """A flow that takes a stage's lock and its output folder, and returns True, False if a signal came first. token: of its
        dead owner's attempt.

        Raises: LockHeld, OSError.
        """
        clock, signals = self.run.clock, self.run.signals
        deadline = clock.monotonic() + stage.lock_wait_s
        while not signals.number:
            try:
                lock.acquire(0, token)
            except stage_locks.WaitStopped:
                break
            except stage_locks.LockHeld:
                if clock.monotonic() >= deadline:
                    raise
            else:
                return (yield from self._enter_folder(stage, lock, deadline)) and (yield from self._end_launched(stage, lock))
            import scheduler
            yield scheduler.Pause(stage_locks.LOCK_POLL_S)
        return False

    def leave(self, stage: StageSpec, lock: stage_locks.StageLock, is_free: bool = True) -> None:
        """Give all back; is_free: nothing of the stage runs any more, else its lock stays until that has ended."""
        self._leave_folder(stage)
        if is_free:
            lock.release()
        else:
            lock.abandon()

    def neighbours(self, stage: StageSpec) -> List[StageSpec]:
        """Return the other stages of the pipeline whose output folder is this one's, lies in it, or holds it."""
        found: List[StageSpec] = planning.folders_of(self.run.spec, self.run.store).neighbours(stage)
        return found

    def may_be_beside(self, stage: StageSpec) -> bool:
        """Tell whether another stage may be at work in a stage's folder at the same time: now, or in a run that was killed, of
        which no record knows."""
        spec = self.run.spec
        others = [other.name for other in self.neighbours(stage) if stage_order.may_share(stage, other)] if spec.order == "graph" else []
        if not others:
            return False
        in_turn = stage_order.between(spec.stages, stage.name, "") | stage_order.between(spec.stages, "", stage.name)
        return not in_turn.issuperset(others)

    def close(self) -> None:
        """Let go of the folders that are still held."""
        self.folder_locks.close()

    def _enter_folder(self, stage: StageSpec, stage_lock: stage_locks.StageLock, deadline: float) -> Flow:
        """A flow that returns True when no other run, of whatever pipeline, is at work in the stage's output folder, False as
        take().

        Within this run the engine decides who may be. Another run knows nothing of what ours has just made there: it would clear
        it away, or take it for its own.
        """
        run = self.run
        folder = planning.folders_of(run.spec, run.store).outermost(stage)
        try:
            while folder not in self.entered and not self.folder_locks.try_acquire(folder):
                if run.signals.number:
                    stage_lock.release()
                    return False
                if run.clock.monotonic() >= deadline:
                    raise stage_locks.LockHeld(
                        "stage %s: another run is at work in, around or below %s, where this stage writes; wait, or raise lock.waitSeconds" % (
                            stage.name, folder))
                import scheduler
                yield scheduler.Pause(stage_locks.LOCK_POLL_S)
        except (stage_locks.LockHeld, OSError):
            stage_lock.release()
            raise
        self.entered.setdefault(folder, set()).add(stage.name)
        return True

    def _leave_folder(self, stage: StageSpec) -> None:
        for folder, inside in list(self.entered.items()):
            inside.discard(stage.name)
            if not inside:
                self.folder_locks.release(folder)
                del self.entered[folder]

    def _end_launched(self, stage: StageSpec, lock: stage_locks.StageLock) -> Flow:
        """A flow that returns True when nothing that could get in its way runs any more, on any machine, that launchers of dead
        runs started, False as take()."""
        run = self.run
        if not os.path.isdir(os.path.join(run.store.folder, "launch")):
            return True
        import launch_lease
        import scheduler
        deadline = run.clock.monotonic() + launch_lease.PATIENCE_S
        is_free = False
        try:
            while True:
                left = launch_lease.end_left_behind(run.root, stage.name, stage.output_dir, run.names_in_spec(), run.works)
                if not left or run.clock.monotonic() >= deadline or run.signals.number:
                    break
                yield scheduler.Pause(launch_lease.POLL_S)
            is_free = not left
            if left and not run.signals.number:
                raise launch_lease.still_runs(stage.name, left)
        finally:
            if not is_free:
                self.leave(stage, lock)
        return is_free
