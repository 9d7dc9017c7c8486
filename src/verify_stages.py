"""The stage records and the logs of tasks, which runs replace as they go, against what the records of the runs commit to.

Above history_files, ledger_chain and verify_history; only task_log is imported late. Goes with ledger_verify to another machine.

    StageRecords    state/stage_<stage>.json    read before the run records, compared after them
    TaskLogs        state/tasks_<stage>.jsonl   the same lines that the runs wrote; the outputs that a run record commits to
"""
from __future__ import annotations

import io

from history_files import STAGE_SHAPE, Unreadable, files_of, names_text, read_regular, run_text, shape_problem
from ledger_chain import Finding
from primitives import BEFORE
from verify_history import Book, LedgerIndex, Made, StageResults, is_key_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Container, Dict, List, Optional, Set, Tuple
    Json = Dict[str, Any]
    RunKey = Tuple[str, int]        # run id and invocation


NOT_MADE = "%s did not make this stage"


class StageRecords:
    """The records of stages, beside those of the runs that they name as their makers.

    EDITED: the two contradict each other, or an older record was put back. RENAMED: it is of another stage. UNLISTED: no run of
    the ledger made it. MALFORMED: it is not of the form that runs write.
    """

    def __init__(self, book: Book, index: LedgerIndex, results: StageResults) -> None:
        self.book, self.index, self.results = book, index, results
        self.records: Dict[str, Json] = {}              # stage -> stage record
        self.wrong: Set[str] = set()                    # stages whose record is not as runs left it

    def load(self) -> None:
        """Read the stage records, few, before the run records, many: so it is known what to keep of these."""
        for name in sorted(self.book.names):
            if not (name.startswith("stage_") and name.endswith(".json")):
                continue
            try:
                record = self._load(name)
                problem = shape_problem(record, STAGE_SHAPE)
                if problem:
                    raise Unreadable("its %s is not of the form that runs write" % problem)
            except FileNotFoundError:
                continue
            except Unreadable as error:
                self.book.find("MALFORMED", "state/" + name, str(error), ("", 0))
                continue
            if name != "stage_%s.json" % record["stage"]:
                self.book.find("RENAMED", "state/" + name, "holds the record of stage %s" % record["stage"], maker_of(record))
                continue
            self.records[record["stage"]] = record
            self.results.wanted.add(maker_of(record) + (record["stage"],))

    def _load(self, name: str) -> Json:
        """Return a stage record; for one that a power cut took what was durable before it. Raises: FileNotFoundError,
        Unreadable."""
        kept = BEFORE % name
        try:
            return self.book.load(name, self.book.loose)
        except Unreadable:
            if kept not in self.book.names:
                raise
            self.book.notes.append("state/%s had not come to the disk when the power went; what was recorded before it counts" % name)
        return self.book.load(kept, self.book.loose)

    def check(self, intact: Container[RunKey]) -> None:
        """Compare the stage records with what the runs made; intact: runs whose record is as the ledger has it."""
        for stage, record in sorted(self.records.items()):
            run = maker_of(record)
            if run in self.book.doubtful or run in self.index.open:
                continue
            wrong = self._problem(stage, record, run, run in intact)
            if wrong is not None:
                self.wrong.add(stage)
                self.book.find(wrong[0], "state/stage_%s.json" % stage, wrong[1], run)
        made = {mark[2] for mark, one in self.results.made.items() if one.has_parts and self.book.concerns(mark[:2])}
        gone = sorted(stage for stage in made if "stage_%s.json" % stage not in self.book.names)
        if gone:
            self.book.notes.append("no stage record of %s: reset, or removed; the run records tell all the same" % names_text(gone))

    def _problem(self, stage: str, record: Json, run: RunKey, is_intact: bool) -> Optional[Tuple[str, str]]:
        """Return (kind, what is wrong) with a stage record beside the records of the runs, None if nothing is."""
        if run not in self.index.ends:
            return "UNLISTED", "it says that %s made it, which no entry has" % run_text(run)
        if not is_key_of(record["keyParts"], record["idempotencyKey"]):
            return "EDITED", "keyParts: they are not those of its idempotencyKey"
        made = self.results.made.get(run + (stage,))
        if run in self.index.pruned and not is_intact:
            return "EDITED", "an older record was put back: gc has pruned the record of %s, and it prunes none that a stage record names" % run_text(
                run)
        if made is None or not made.has_parts:
            strange = self._strange(stage, run, made) if is_intact and not self.index.chain.findings else ""
            if strange:
                return "EDITED", "lastRunId: " + strange
            if record["lastStatus"] != "ok" or not is_intact:
                # The run died or failed before its record could tell; nothing is skipped for such a record.
                return None
            if made is not None:
                self.book.notes.append("state/stage_%s.json says ok, the record of %s says %s: nothing vouches for its outputs" % (
                    stage, run_text(run), made.status))
                return None
            return "EDITED", "lastRunId: " + NOT_MADE % run_text(run)
        return self._contradiction(stage, record, run, made)

    def _strange(self, stage: str, run: RunKey, made: Optional[Made]) -> str:
        """Return why a stage record cannot be of *run*, of whose work its own record does not tell, "" where it may be.

        It may be of one that died, or that an error ended.
        """
        begin, later = self.results.last_begin.get(stage, (0, run))
        if begin > self.index.ends[run].seq:
            return "%s did not make this stage last, %s made it later" % (run_text(run), run_text(later))
        if self.index.ends[run].closed_by is not None:
            return ""
        may_be = made is not None and run in self.index.begins and (made.status in ("failed", "interrupted") or made.is_unclear)
        return "" if may_be else NOT_MADE % run_text(run)

    def _contradiction(self, stage: str, record: Json, run: RunKey, made: Made) -> Optional[Tuple[str, str]]:
        """Return (kind, where) a stage record differs from what its run made, None if it does not."""
        status, tasks = record["lastStatus"], record.get("tasks")
        if made.pipeline != record["pipeline"]:
            return "EDITED", "pipeline: %s ran %s" % (run_text(run), made.pipeline or "one that its record does not name")
        if status != made.status and (made.status == "ok" or status != "running"):
            return "EDITED", "lastStatus: it says %s, the record of %s says %s" % (status, run_text(run), made.status)
        if record["idempotencyKey"] not in self.index.keys_after(run, made, stage):
            return "EDITED", "idempotencyKey: the record of %s has another" % run_text(run)
        if made.status == "ok" and files_of(record["outputs"]) != made.outputs:
            return "EDITED", "outputs: the record of %s has others" % run_text(run)
        tasks_digest = tasks.get("outputsSha256") if isinstance(tasks, dict) else ""
        if made.status == "ok" and made.tasks_digest and str(tasks_digest) != made.tasks_digest:
            return "EDITED", "tasks: by the record of %s they made other outputs" % run_text(run)
        begin, later = self.results.last_begin[stage]
        if begin > self.index.ends[run].seq:
            return "EDITED", "an older record was put back: it is of %s, and %s made the stage later" % (run_text(run), run_text(later))
        return None

    def committed(self, stage: str) -> Optional[Tuple[RunKey, Made]]:
        """Return (run, what it made) where a sound stage record names a run that has committed to the outputs in the task log."""
        record = self.records.get(stage)
        if record is None or record["lastStatus"] != "ok" or stage in self.wrong:
            return None
        run = maker_of(record)
        made = self.results.made.get(run + (stage,))
        if made is None or made.status != "ok" or not made.tasks_digest or run in self.book.doubtful:
            return None
        return (run, made) if self.index.forgotten.get(stage, 0) <= made.end else None


class TaskLogs:
    """The logs of tasks of the stages with forEach, of which later runs rely on each line.

    EDITED: a line is not what the run that it names wrote, or the outputs are not those that the stage's maker has committed to.
    UNLISTED: a line names a run that the ledger does not know. DELETED: the log is gone. MALFORMED: it cannot be used.
    """

    def __init__(self, book: Book, index: LedgerIndex, results: StageResults, stages: StageRecords, written: Dict[str, Dict[str, str]]) -> None:
        """written: stage -> {run, as task logs name it: the sealed lines that it wrote}, filled by then."""
        self.book, self.index, self.results = book, index, results
        self.stages, self.written = stages, written
        # Stage -> (outputs that its task log lists, their digest), None where that cannot be used.
        self.listed: Dict[str, Optional[Tuple[List[Tuple[str, int, str]], str]]] = {}

    def check(self) -> None:
        """A task log is whole, says of a task what the run that it names wrote, as far as that run's lines are still there, and
        lists the outputs to which the run that made the stage last has committed."""
        committed = {stage: self.stages.committed(stage) for stage in {*self.written, *self.stages.records}}
        stages = sorted(stage for stage, found in committed.items() if found is not None or stage in self.written)
        task_log = self._reader() if stages else None       # else this verifier needs no more than its other files
        if task_log is None:
            return
        runs = {"%s/%d" % run: run for run in [*self.index.ends, *self.index.open]}
        for stage in stages:
            self._check_stage(stage, committed[stage], task_log, runs)

    def _check_stage(self, stage: str, committed: Optional[Tuple[RunKey, Made]], task_log: Any, runs: Dict[str, RunKey]) -> None:
        """Check the log of one stage; runs: those that the ledger knows, as task logs name them."""
        before = len(self.book.findings)
        lines = self._read(stage, task_log, committed[0] if committed is not None else ("", 0))
        if lines and stage in self.written:
            try:
                strange = task_log.strange_lines(lines, self.written[stage], lambda text: self.index.is_accepted_after(stage, runs.get(text)))
                self._check_lines(stage, strange, runs)
            except OSError:
                pass                    # what a run wrote went a moment ago
            except task_log.Damaged as error:
                self.book.find("MALFORMED", "state/" + task_log.log_name(stage), str(error), ("", 0))
        if committed is not None and len(self.book.findings) == before and not self._may_be_ahead(stage, *committed):
            self._check_listed(stage, *committed)

    def _check_lines(self, stage: str, strange: List[Tuple[str, str, bool]], runs: Dict[str, RunKey]) -> None:
        """Report lines of a task log that no run has written."""
        name = "state/tasks_%s.jsonl" % stage
        unlisted: Dict[str, List[str]] = {}
        doubtful = {"%s/%d" % run for run in self.book.doubtful}
        for task, text, is_sealed in strange:
            if text in doubtful:
                continue                # what is wrong there has been told
            if text not in runs:
                unlisted.setdefault(text, []).append(task)
            elif is_sealed:
                self.book.find("EDITED", name, "the line of task %s is not what run %s wrote" % (task, text), runs[text])
        for text, tasks in sorted(unlisted.items()):
            self.book.find("UNLISTED", name, "%s of run %s, which is not in the ledger: %s" % (
                "the line of 1 task is" if len(tasks) == 1 else "the lines of %d tasks are" % len(tasks), text, names_text(tasks)))

    def _may_be_ahead(self, stage: str, run: RunKey, made: Made) -> bool:
        """Tell whether a later run may have written to a task log without recording it: one is at work, or has died since the
        stage was made, or found as it was made."""
        looked = max(made.end, self.results.looked.get(run + (stage,), 0))
        return bool(self.index.open) or any(entry.closed_by is not None and entry.seq > looked for entry in self.index.ends.values())

    def _read(self, stage: str, task_log: Any, run: RunKey) -> List[bytes]:
        """Return the lines of a task log, none of one that is not there or cannot be used; `listed` has what it lists then."""
        name, lines = "state/" + task_log.log_name(stage), []
        self.listed[stage] = None
        try:
            lines = list(io.BytesIO(read_regular(self.book.folder.path(name))))
            self.listed[stage] = task_log.listed(lines, stage)
        except FileNotFoundError:
            self.listed[stage] = task_log.listed([], stage)         # reset, or of a runner that chunked and tidied
        except (OSError, Unreadable, task_log.Damaged) as error:
            self.book.find("MALFORMED", name, _fault_of_log(error), run)
            return []
        return lines

    def _check_listed(self, stage: str, run: RunKey, made: Made) -> None:
        """Report a task log that lists other outputs than a run has committed to; once."""
        name, found = "state/tasks_%s.jsonl" % stage, self.listed[stage]
        if found is None or found[1] == made.tasks_digest:
            return
        finding = ("EDITED", name, "its outputs are not those that %s recorded of stage %s" % (run_text(run), stage))
        if not found[0] and not self.book.lexists(name):
            finding = ("DELETED", name, "it is gone; %s recorded that tasks of stage %s have made outputs" % (run_text(run), stage))
        if Finding(*finding) not in self.book.findings:
            self.book.find(*finding, run)

    def outputs_of(self, stage: str, run: RunKey, made: Made) -> List[Tuple[str, int, str]]:
        """Return the outputs that a stage's task log lists, if they are those that the run's record commits to."""
        task_log = self._reader() if made.tasks_digest else None
        if task_log is None:
            return []
        if stage not in self.listed:
            self._read(stage, task_log, run)
        self._check_listed(stage, run, made)
        found = self.listed[stage]
        return found[0] if found is not None else []

    def _reader(self) -> Any:
        """Return the module that reads task logs, None where the verifier was carried without it, which is told once."""
        try:
            import task_log
        except ImportError:
            note = "task logs are not compared with what runs wrote, nor the outputs that only they list: task_log.py is not beside this program"
            self.book.notes += [note] if note not in self.book.notes else []
            return None
        return task_log


def maker_of(record: Json) -> RunKey:
    """Return the run that a stage record says made the stage last."""
    return record["lastRunId"], record["lastInvocation"]


def _fault_of_log(error: Exception) -> str:
    """Return what is wrong with a task log that cannot be used."""
    if isinstance(error, OSError):
        return "it cannot be read: %s" % (error.strerror or error)
    return "it %s" % error if isinstance(error, Unreadable) else str(error)
