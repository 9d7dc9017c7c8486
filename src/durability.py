"""What a run has made durable, in groups, and what is not to be believed once a sync has failed.

Above file_digests and state_store, below the engine, whose Run has one Durability.

    outputs, logs, records written -> store.commit -> flush(): synced as a group -> digests vouched for
"""
from __future__ import annotations

import os

import durable_files
import stage_markers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Container, Optional

    from engine import Run
    from model import StageResult, StageSpec


class Durability:
    """What one run syncs, and the markers that say what is finished.

    is_unsound: a sync has failed. Of one for a whole file system nobody knows what it was about, so nothing that ends from then
    on is believed.
    """

    def __init__(self, run: Run) -> None:
        """*run*: the engine's Run."""
        self.run, self.commit = run, run.store.commit
        self.is_unsound = False

    def flush(self) -> None:
        """Make all that was done durable. If that fails, what is on the disk is anybody's guess: no stage of this run stays
        done. Raises: OSError."""
        held = dict(self.commit.files)
        digests = self.run.digests
        try:
            self.commit.flush()
            for path in held:                   # the digests of these files outlive a restart from now on
                digests.vouch(path[len(self.run.root):].replace(os.sep, "/").lstrip("/"))
        except OSError:
            self._lose_faith(held)
            self.commit.files.clear()           # a second sync would report success for pages that are lost
            digests.files.clear()
            raise

    def flush_if_due(self) -> None:
        """As flush(), if what is held has waited long enough, or is much."""
        if self.commit.is_due():
            self.flush()

    def keep_up(self) -> Optional[float]:
        """While processors are at work: make durable what must not wait for their end; return after how long there will be
        something, None: nothing."""
        left: Optional[float] = self.commit.seconds_left()
        if left == 0:
            try:
                self.flush()
            except OSError as error:
                scheduler = self.run.scheduler
                scheduler.error = scheduler.error or error      # raised when those at work have come to their end
            left = None
        return left

    def sync_outputs(self) -> None:
        """Make durable all that the stages' results name: a skipped stage's maker may have died before it synced them."""
        run = self.run
        for stage, result in run.looked_at():
            for output in result.outputs:
                path = stage.output_dir + "/" + output["path"]
                if not run.digests.is_vouched(path):
                    self.commit.files[self._held_as(path)] = None
        self.flush()

    def write_marker(self, stage: StageSpec, key: str) -> None:
        """Say that a stage is finished, or, after a failed sync, that it is not to be believed."""
        run = self.run
        if self.is_unsound:
            stage_markers.mark_lost(run.root, stage.output_dir, stage.name, True)
            return
        path = stage_markers.marker_path(run.root, stage.output_dir, stage.name)
        durable_files.write_atomic(path, stage_markers.marker_bytes(stage.name, key, run.options.run_id, run.clock.time()), durable=False)
        self.commit.add_file(path)      # synced with the group: one that a power cut took counts as none

    def _lose_faith(self, held: Container[str]) -> None:
        """Mark as lost what this run has done or is at, before any record says that it ended well; and each skipped stage of which
        something was *held*."""
        run = self.run
        self.is_unsound = True
        for stage, result in zip(run.selected, run.result_at):
            if stage.name in run.works or result is not None and (result.status == "ok" or self._is_among(held, stage, result)):
                stage_markers.mark_lost(run.root, stage.output_dir, stage.name, bool(stage.for_each) or stage.name in run.works)

    def _is_among(self, paths: Container[str], stage: StageSpec, result: StageResult) -> bool:
        """Tell whether an output of a stage that was skipped is among *paths*: whoever made it has not lived to sync it."""
        return any(self._held_as(stage.output_dir + "/" + output["path"]) in paths for output in result.outputs)

    def _held_as(self, path: str) -> str:
        """Return by which name Commit.add_file() holds a file of the project."""
        return durable_files.held_as(os.path.join(self.run.root, path))
