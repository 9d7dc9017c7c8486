"""What earlier work on a stage has left in its output folder, and how that is put right before an attempt builds on it.

Above recorded_outputs and foreign_outputs; for the stages at work (stage_work, file_tasks). Nothing here writes a record: what
is undone is synced before the caller writes one.
"""
from __future__ import annotations

import os

import checkpoints
import durable_files
import file_digests
import recorded_outputs
import spec_values
import stage_markers
import stage_outputs
import stage_records
from console import describe_os_error
from model import shown_names
from primitives import is_link, is_there

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List, Mapping, Optional, Sequence

    from engine import Run
    from foreign_outputs import ForeignOutputs
    from model import StageSpec
    Json = Dict[str, Any]


class EarlierOutputs:
    """What the record of a stage tells of its output folder, and what is there of it.

    outputs: those that the record vouches for, as it lists them, less what has been undone or let go of since. moved_from: the
    outputDir under which they were made, "" if it is today's; then outputs is empty. has_cleared: whether any file was removed, or cut.
    """

    def __init__(self, run: Run, stage: StageSpec, folder: str, record: Optional[Json], others: ForeignOutputs) -> None:
        self.run, self.stage, self.folder, self.record, self.others = run, stage, folder, record, others
        self.moved_from = stage_records.made_elsewhere(record, stage.output_dir)
        self.outputs = self._vouched(record) if record is not None and not self.moved_from else []
        self.has_cleared = False
        self.is_of_success = record is None or record["lastStatus"] == "ok"     # else of one before the work that did not end well

    def _vouched(self, record: Json) -> List[Json]:
        """Return the outputs that the record vouches for, also if the stage was one of forEach then, with too many for the
        record.

        A stage of forEach asks its task log for what is only there.
        """
        if not stage_records.outputs_are_logged(record) or self.stage.for_each:
            return list(record["outputs"])
        import task_look
        return stage_records.with_listed(record, task_look.vouched_outputs(self.run.store, record))

    def _note(self, text: str) -> None:
        self.run.console.event("NOTE", self.stage.name, ": " + text)

    # --- of an attempt that did not finish

    def unfinished(self) -> Optional[Json]:
        """Return the listing from before the unfinished work that the stage record tells of, None if there is none."""
        return recorded_outputs.unfinished_baseline(self.record, self.folder) if not self.moved_from else None

    def doubted(self, baseline: Optional[Json]) -> Optional[Json]:
        """Return a baseline in which, after a restart of the machine, recorded files count as changed: one that the unfinished
        attempt wrote in place may have other content on the disk, and its old times."""
        if baseline is None or (self.record or {}).get("bootId") == self.run.boot:
            return baseline
        files = [one["path"] for one in self.outputs if one["path"] in baseline and not is_link(os.path.join(self.folder, one["path"]))]
        return {**baseline, **{path: [] for path in files}}

    def clear_leftovers(self, baseline: Optional[Json]) -> None:
        """Before a start from zero: make the outputs what they were before the attempt that did not finish, durably."""
        checkpoints.forget_published(self.run.store, self.stage)
        done = ["removed %s" % path for path in stage_outputs.remove_parts(self.folder, self.stage.name, set())]
        if baseline is not None:
            recorded = {one["path"]: (one["bytes"], one["sha256"]) for one in self.outputs}
            there = stage_outputs.list_folder(self.folder)
            done += stage_outputs.clear_leftovers(self.folder, there, baseline, recorded, self.others.possible(there), file_digests.hash_prefix,
                                                  recorded_outputs.folders_of_others(self.run.spec, self.stage.name, self.stage.output_dir))
        if done:
            self.has_cleared = True
            recorded_outputs.sync_below(self.folder)
            self._note("leftovers of an unfinished attempt: %s%s" % (shown_names(done, between="; "), self._lost_text(done, "an earlier run")))

    # --- of a success

    def lost_path(self) -> str:
        """Return the path of the file that says that a sync failed after the success, so that it is not believed."""
        return stage_markers.lost_path(self.run.root, self.stage.output_dir, self.stage.name)

    def is_as_recorded(self, output: Json) -> bool:
        """Tell whether an output is there, with the size and the content recorded."""
        try:
            found = self.run.digests.of_output("%s/%s" % (self.stage.output_dir, output["path"]))
        except (OSError, file_digests.FileChanged):
            return False
        return bool(found == (output["bytes"], output["sha256"]))

    def undo_success(self) -> None:
        """The outputs are not what the recorded success made: an attempt must not build on what is left of it.

        All of it is undone after a restart of the machine or a failed sync, for more may be lost than was seen; else, and where work has
        failed since, only what differs. What another stage of the pipeline has recorded since (this one's name was out of use for a while, say) is
        not ours to undo.
        """
        record = self.record or {}      # none where the state folder is gone, and a lost success is still marked
        self._let_go_of(self.others.owners() if self.outputs else {})
        before = {one["path"]: one for one in record.get("previous", [])}
        everything = self.is_of_success and (record.get("bootId") != self.run.boot or is_there(self.lost_path()))
        gone = self.outputs if everything else [one for one in self.outputs if not self.is_as_recorded(one)]
        names = [one["path"] for one in gone]
        done = stage_outputs.undo_outputs(self.folder, names, {path: (one["bytes"], one["sha256"]) for path, one in before.items()},
                                          file_digests.hash_prefix)
        self.outputs = [before.get(one["path"], one) if one["path"] in names else one
                     for one in self.outputs if one["path"] not in names or one["path"] in before]
        if done:
            self.has_cleared = True
            recorded_outputs.sync_below(self.folder)
            maker = "run %s" % record.get("lastRunId") if self.is_of_success else "an earlier run"
            self._note("not what was recorded: %s%s" % (shown_names(done, between="; "), self._lost_text(done, maker, names)))

    def _lost_text(self, done: Sequence[str], run: str, names: Optional[Sequence[str]] = None) -> str:
        """Return which of the outputs (*names*, else those recorded) that *run* had recorded are removed now: what had grown in
        them from run to run is gone."""
        recorded = names if names is not None else [one["path"] for one in self.outputs]
        gone = set(done)
        lost = [path for path in recorded if "removed %s" % path in gone]
        return "; %s had recorded %s" % (run, shown_names(lost)) if lost else ""

    def _let_go_of(self, foreign: Mapping[str, str]) -> None:
        """Record no more what other stages have recorded, too. foreign: see ForeignOutputs.owners()."""
        taken = [one["path"] for one in self.outputs if one["path"] in foreign]
        self.leave_out(foreign)
        if taken:
            self.tell_of_taken(taken, foreign)

    def leave_out(self, foreign: Mapping[str, str]) -> None:
        """As of now the record vouches no more for what other stages have recorded."""
        self.outputs = [one for one in self.outputs if one["path"] not in foreign]

    def tell_of_taken(self, paths: List[str], foreign: Mapping[str, str]) -> None:
        """Say that paths which the stage had recorded are another's now."""
        self._note("left to stage %s, by which it is recorded, too: %s" % (", ".join(sorted({foreign[path] for path in paths})), shown_names(paths)))

    # --- in another folder

    def tell_of_move(self) -> None:
        """Say what becomes of the outputs that were made under another outputDir, if they were."""
        if not self.moved_from:
            return
        self._remove_old_tasks()
        is_there = os.path.lexists(os.path.join(self.run.root, self.moved_from))
        self._note("its outputDir was %s%s" % (self.moved_from, ": what it made there is left there" if is_there else (
            ", which is not there any more; what is in %s already counts as nobody's: see whether it may go" % self.stage.output_dir)))
        left = recorded_outputs.leftovers(self.run.root, self.record)
        if left:
            self._note("an attempt there that did not finish has left files that may be half written: %s; see whether they may go" %
                       shown_names(left))

    def _remove_old_tasks(self) -> None:
        """Remove the private folders of tasks from where the outputs were: nothing uses them any more, and kept chunks are as
        large as the outputs.

        Before a record names the new place: after a kill the next run comes here again. What lies behind a link may be anything,
        and is left alone.
        """
        path = "%s/.%s.tasks" % (self.moved_from, self.stage.name)
        full = os.path.join(self.run.root, *path.split("/"))
        if spec_values.path_problem(path) or recorded_outputs.link_on_the_way(self.run.root, path + "/x") or not os.path.isdir(full):
            return
        self.has_cleared = True
        try:
            durable_files.remove_tree(full)
        except OSError as error:
            self._note("%s is of no use any more, and cannot be removed; remove it: %s" % (path, describe_os_error(error)))
        else:
            self.run.store.commit.removed[os.path.dirname(full)] = None
