"""The outputs that lie on the disk, against what the runs have recorded that their stages made.

Above history_files, verify_history and verify_stages; goes with ledger_verify to another machine.

    newest success of each stage -> its outputs -> of two stages that made one file the later -> removed, passed on, changed?
"""
from __future__ import annotations

import os
from collections import namedtuple

from history_files import Unreadable, count_text, digest_of, names_text, run_text, shown
from verify_history import Book, LedgerIndex, Made, StageResults
from verify_stages import StageRecords, TaskLogs, maker_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, Iterator, List, Optional, Set, Tuple
    RunKey = Tuple[str, int]        # run id and invocation

REJECTS = ".rejects.jsonl"      # what the processor kit sets aside beside an output; it goes when the output is made anew without


class Output(namedtuple("Output", "end size digest run stage")):
    """A file as its stage made it; end: number of the entry that ended the run."""

    __slots__ = ()


class Outputs:
    """The outputs that the newest success of each stage left.

    OUTPUT-CHANGED: one is gone, or another content or a link lies there. MALFORMED: its path leads out of the root.
    """

    def __init__(self, book: Book, index: LedgerIndex, results: StageResults, stages: StageRecords, task_logs: TaskLogs,
                 known: Optional[Dict[str, Any]] = None) -> None:
        """known: {path of an output: (its signature, (bytes, SHA-256))}, of an earlier look; filled."""
        self.book, self.index, self.results = book, index, results
        self.stages, self.task_logs, self.owners = stages, task_logs, results.owners
        self.known = known if known is not None else {}
        self.skipped: List[str] = []                    # stages of which nobody knows what lies there
        self.forgotten: List[str] = []                  # those that reset has forgotten
        self.cleaned_met = 0

    def check(self) -> None:
        """Read every output that the newest success of its stage left; of two stages that made one file the later one owns it,
        though it makes it no more."""
        outputs, folders = self._collect()
        for path, output in sorted(outputs.items()):
            self._check_output(path, output)
        self._tell_of_strangers(folders, set(outputs))
        if self.forgotten:
            self.book.notes.append("outputs not compared, for reset has forgotten them, as the ledger says: %s" % names_text(self.forgotten))
        if self.skipped:
            self.book.notes.append("outputs not compared, for no later success is recorded of %s" % names_text(self.skipped))

    def _collect(self) -> Tuple[Dict[str, Output], Set[str]]:
        """Return the outputs to compare by path, and the output folders of which all is known that runs have made."""
        outputs: Dict[str, Output] = {}
        known: Set[str] = set()
        unknown: Set[str] = set()
        for stage, (run, pipeline, made) in sorted(self.results.newest.items()):
            is_settled = made.status == "ok" and self._is_settled(pipeline, stage, run, made)
            if not is_settled or self.index.forgotten.get(stage, 0) > made.end:
                (self.forgotten if is_settled else self.skipped).append(stage)
                unknown.add(made.folder)
                continue
            known.add(made.folder)
            for path, size, digest in made.outputs or self.task_logs.outputs_of(stage, run, made):
                full = made.folder + "/" + path
                outputs[full] = max(outputs.get(full, Output(0, 0, "", run, "")), Output(made.end, size, digest, run, stage))
        return outputs, known - unknown

    def _check_output(self, path: str, output: Output) -> None:
        seq, kept = self.index.cleaned.get((output.run, output.stage), (0, ()))
        # Else somebody has put it there: of a later run that has not ended well the caller would know.
        if seq and path not in kept and not self.book.lexists(path):
            self.cleaned_met += self.book.concerns(output.run)
        elif self.book.concerns(output.run):
            wrong = self._problem(path, output)
            if wrong is not None and not self._is_passed_on(path, output):
                self.book.find(wrong[0], path, wrong[1], output.run)

    def _tell_of_strangers(self, folders: Set[str], made: Set[str]) -> None:
        """Name the files beside outputs that no stage's last success has made: a stage whose glob finds one reads it, too."""
        found: List[str] = []
        for folder in sorted({path.rpartition("/")[0] for path in made}):
            if not folders.isdisjoint(at_or_above(folder)):
                found += [path for path in self._files_of(folder) if path not in made]
        if found and not self.book.run_ids:
            self.book.notes.append("%s beside outputs that no stage's last success has made: %s" % (
                count_text(len(found), "file"), names_text([shown(path) for path in found])))

    def _files_of(self, folder: str) -> List[str]:
        """Return the files in a folder that a glob may find, sorted."""
        try:
            with os.scandir(os.path.join(self.book.folder.root, folder)) as entries:
                names = sorted(entry.name for entry in entries if entry.is_file() and not entry.name.startswith(".")
                               and not entry.name.endswith(".part"))
        except OSError:
            return []                   # what is missing there has been told
        return ["%s/%s" % (folder, name) for name in names]

    def _is_settled(self, pipeline: str, stage: str, run: RunKey, made: Made) -> bool:
        """Tell whether nothing that may have touched the outputs came after *run*.

        A run that died may have, and so may one whose record cannot be trusted, or whose end the ledger does not have. A stage record
        that was edited tells nothing.
        """
        record = self.stages.records.get(stage) if stage not in self.stages.wrong else None
        if record is not None and maker_of(record) not in self.index.ends:
            return False
        if record is not None and record["pipeline"] == pipeline and maker_of(record) not in self.book.doubtful and not self._failed_first(record):
            return maker_of(record) == run and record["lastStatus"] == "ok"
        return not any(entry.pipeline == pipeline and entry.seq > made.end and (entry.closed_by is not None or entry.run in self.book.doubtful)
                       for entry in self.index.ends.values())

    def _failed_first(self, record: Any) -> bool:
        """Tell whether the run that a stage record names has failed before it began the stage, by its own record; of such a run
        no stage record is."""
        made = self.results.made.get(maker_of(record) + (record["stage"],))
        return (made is not None and not made.has_parts and made.status in ("failed", "interrupted")
                and self.index.ends[maker_of(record)].closed_by is None)

    def _is_passed_on(self, path: str, output: Output) -> bool:
        """Tell whether another stage has made *path* since: what became of it is not this stage's.

        So it is after a stage was renamed. With an output goes what was set aside beside it: nobody made that anew, it is only
        gone.
        """
        paths = [path]
        if path.endswith(REJECTS) and not self.book.lexists(path):
            paths.append(path[:-len(REJECTS)])
        return self.owners.has_another(paths, output.end, output.stage)

    def _problem(self, path: str, output: Output) -> Optional[Tuple[str, str]]:
        """Return (kind, what is wrong) with an output, None if it is as it was made."""
        wanted, run, stage = (output.size, output.digest), output.run, output.stage
        try:
            link = self.book.folder.link(path)
            if link == wanted:
                return None
            full = self.book.folder.path(path)
        except Unreadable as error:
            return "OUTPUT-CHANGED" if "link" in str(error) else "MALFORMED", "an output of stage %s, %s: it %s" % (stage, run_text(run), error)
        try:
            if link is None and self._digest_of(full) == wanted:
                return None
            return "OUTPUT-CHANGED", "it is not what stage %s of %s made" % (stage, run_text(run))
        except FileNotFoundError:
            return "OUTPUT-CHANGED", "missing; stage %s of %s made it" % (stage, run_text(run))
        except Unreadable as error:
            return "OUTPUT-CHANGED", "it %s; stage %s of %s made it" % (error, stage, run_text(run))

    def _digest_of(self, full: str) -> Tuple[int, str]:
        """Return (bytes, SHA-256) of a file; of one with the same signature as at an earlier look it is not taken again."""
        try:
            state = os.lstat(full)
        except OSError:
            return digest_of(full)      # which says what is wrong with it
        stamp = (state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino, state.st_dev)
        if self.known.get(full, ((), None))[0] != stamp:
            self.known[full] = stamp, digest_of(full)
        return self.known[full][1]      # type: ignore[no-any-return]


def at_or_above(folder: str) -> Iterator[str]:
    """Yield a relative folder and those that hold it."""
    while folder:
        yield folder
        folder = folder.rpartition("/")[0]
