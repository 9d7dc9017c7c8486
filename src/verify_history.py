"""What one pass of the verifier knows: its findings, what the ledger says of the runs, what their records say of stages.

Above history_files and ledger_chain; goes with ledger_verify to another machine.

    Book            the root, what is wrong below it (findings) and what is only worth knowing (notes)
    LedgerIndex     entries -> runs that began, ended, are open; keys accepted; what was pruned, cleaned, forgotten
    StageResults    run records -> what was made, and what was skipped as made by which run
    Owners          run records, logs of tasks -> the stage that made a file last
"""
from __future__ import annotations

import json
import os
from collections import namedtuple

from history_files import Folder, Unreadable, decoder, files_of, is_text, parse_object, read_regular, run_text
from ledger_chain import LEDGER, Chain, Entry, Finding
from ledger_format import stage_key
from model import sha256

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, Iterable, List, Optional, Set, Tuple
    Json = Dict[str, Any]
    RunKey = Tuple[str, int]        # run id and invocation
    Mark = Tuple[str, int, str]     # run id, invocation and stage: one stage of one run


# --- what is found ---------------------------------------------------------------------------------------------------

class Book:
    """The root, its state/ and what was found there: findings, of what is not as the runs left it, and notes of the rest."""

    def __init__(self, root: str, run_ids: Iterable[str]) -> None:
        """run_ids: the RUN operands, none for all runs."""
        self.folder = Folder(root)
        self.state = os.path.join(self.folder.root, "state")
        self.names: Set[str] = set()                    # of the files in state/
        self.run_ids = frozenset(run_ids)
        self.findings: List[Finding] = []
        self.notes: List[str] = []
        self.doubtful: Set[RunKey] = set()              # runs with a finding of their own: nothing is built on them
        self.exact, self.loose = decoder(floats=False), decoder(floats=True)

    def find(self, kind: str, name: str, detail: str, run: Optional[RunKey] = None) -> None:
        """Report; with RUN operands only what concerns these runs (run None: the ledger, which concerns all)."""
        if run is None or self.concerns(run):
            self.findings.append(Finding(kind, name, detail))

    def concerns(self, run: RunKey) -> bool:
        return not self.run_ids or run[0] in self.run_ids

    def load(self, name: str, parser: json.JSONDecoder) -> Json:
        """Return a record of state/. Raises: FileNotFoundError, Unreadable."""
        return parse_object(read_regular(os.path.join(self.state, name)), parser)

    def lexists(self, path: str) -> bool:
        """As os.path.lexists() of a path below the root: what cannot be looked at counts as gone, and is told as such."""
        return os.path.lexists(os.path.join(self.folder.root, path))


# --- what the ledger says --------------------------------------------------------------------------------------------

class LedgerIndex:
    """What the entries say, by run and by stage."""

    def __init__(self, chain: Chain, book: Book) -> None:
        self.chain, self.book = chain, book
        self.begins: Dict[RunKey, int] = {}             # run -> number of the entry with which it began
        self.ends: Dict[RunKey, Entry] = {}
        self.open: Dict[RunKey, None] = {}
        self.newest_call: Dict[str, int] = {}           # run id -> its last invocation
        self.spellings: Dict[str, Set[str]] = {}        # run ids that some file systems take for one
        self.before: Dict[int, Optional[str]] = {}      # number of an end entry -> prevRunHash that its record must have
        self.accepts: List[Entry] = []
        self.pruned: Dict[RunKey, str] = {}             # run -> digest of its record, which gc has removed
        self.cleaned: Dict[Tuple[RunKey, str], Any] = {}        # (run, stage) -> (number of the entry, paths that clean has kept)
        self.forgotten: Dict[str, int] = {}             # stage -> number of the entry by which reset forgot it last

    def fill(self) -> None:
        """Collect what the entries say; a finding is what one says against another before it."""
        previous: Optional[Entry] = None
        for entry in self.chain.entries:
            if entry.event == "begin":
                self.begins.setdefault(entry.run, entry.seq)
            elif entry.event == "accept":
                self.accepts.append(entry)
            elif entry.event == "gc" and entry.sound:
                self._take_pruned(entry)
            elif entry.event == "clean" and entry.sound:
                self._take_cleaned(entry)
            elif entry.event == "reset" and entry.sound:
                self.forgotten[entry.kept_house] = entry.seq
            elif entry.event == "end":
                self._take_end(entry)
                if previous is not None and previous.sound and previous.seq == entry.seq - 1 or previous is None and entry.seq == 1:
                    self.before[entry.seq] = previous.last_run_hash if previous is not None else None
            previous = entry
        for run_id, _ in [*self.begins, *self.ends]:
            self.spellings.setdefault(run_id.casefold(), set()).add(run_id)
        if previous is not None:
            self.open = {(run_id, number): None for run_id, number in sorted(previous.open.items())}
        for run_id, number in self.open:
            self.newest_call[run_id] = max(number, self.newest_call.get(run_id, 0))

    def _take_end(self, entry: Entry) -> None:
        if entry.run in self.ends and entry.sound:
            self.book.find("MALFORMED", "state/%s:%d" % (LEDGER, entry.line), "entry %d ends %s a second time; entry %d did" % (
                entry.seq, run_text(entry.run), self.ends[entry.run].seq))
        else:
            self.ends[entry.run] = entry
            self.newest_call[entry.run_id] = max(entry.invocation, self.newest_call.get(entry.run_id, 0))

    def _take_cleaned(self, entry: Entry) -> None:
        """Take down which outputs clean has kept; very many stand in several entries."""
        run, stage, kept, is_continued = entry.kept_house
        before = self.cleaned.get((run, stage), (0, ()))[1] if is_continued else ()
        self.cleaned[run, stage] = entry.seq, kept.union(before)

    def _take_pruned(self, entry: Entry) -> None:
        """Take down which records gc has removed: those of runs that had ended, by the digest that their entries committed."""
        line = "state/%s:%d" % (LEDGER, entry.line)
        for run, digest in entry.kept_house.items():
            if run in self.ends and self.ends[run].run_hash == digest:
                self.pruned[run] = digest
            elif not self.chain.findings:
                self.book.find("MALFORMED", line, "entry %d prunes a record of %s that no entry before it committed" % (entry.seq, run_text(run)))

    def run_ids(self) -> Set[str]:
        """Return the ids of all runs that the ledger knows."""
        return {run_id for runs in (self.ends, self.begins, self.open) for run_id, _ in runs}

    def is_accepted_after(self, stage: str, run: Optional[RunKey]) -> bool:
        """Tell whether people have accepted another key of *stage* since *run* began."""
        return run in self.begins and any(entry.seq > self.begins[run] and entry.accept[0] == stage for entry in self.accepts)

    def keys_after(self, run: RunKey, made: Made, stage: str) -> List[str]:
        """Return the key of what a run made, and those that people have accepted for it since, perhaps before the run had
        ended."""
        keys, begin = [made.key], self.begins.get(run, made.end)
        for entry in self.accepts:
            if entry.seq > begin and entry.accept[0] == stage and entry.accept[1] in keys:
                keys.append(entry.accept[2])
        return keys


# --- what the run records say of stages ------------------------------------------------------------------------------

class Made(namedtuple("Made", "status key pipeline has_parts folder outputs end tasks_digest is_unclear", defaults=("", False))):
    """What a run record says of a stage that the run worked on; end: number of the entry that ended the run.

    has_parts: it says of what the key was made, as it does of all work that it tells of. is_unclear: it says not run, but an error
    ended the run, and earlier runners said so of the stage at work, too.
    tasks_digest: of the outputs of a stage with forEach, which its task log lists; of many it alone does.
    """

    __slots__ = ()


class StageResults:
    """What the records of runs say of stages, taken down in any order of the runs."""

    def __init__(self, owners: Owners, with_outputs: bool) -> None:
        """owners: filled, too, if outputs are to be compared."""
        self.owners, self.with_outputs = owners, with_outputs
        self.wanted: Set[Mark] = set()                  # of which the outputs are kept, for a stage record to be compared with
        self.made: Dict[Mark, Made] = {}
        # Stage -> (run, pipeline, what it made): a stage is one, however its pipeline is called.
        self.newest: Dict[str, Tuple[RunKey, str, Made]] = {}
        self.last_begin: Dict[str, Tuple[int, RunKey]] = {}     # stage -> entry with which the last run began that worked on it
        self.looked: Dict[Mark, int] = {}               # what was made -> entry with which the last run began that found it so
        # (stage, run id and invocation of its maker, key, pipeline) -> (record that says so first, its run)
        self.skips: Dict[Tuple[str, str, int, str, str], Tuple[str, RunKey]] = {}

    def take(self, one: Json, entry: Entry, begin: int, name: str, is_cut: bool) -> None:
        """Take down what a run record says of a stage. entry, begin: that ended the run, number of that which began it; name: of
        the record; is_cut: by it no stage has failed, and the run has."""
        if one["status"] == "skipped":
            self._take_skipped(one, entry, begin, name)
        else:
            self._take_worked(one, entry, begin, is_cut)

    def _take_skipped(self, one: Json, entry: Entry, begin: int, name: str) -> None:
        maker = one.get("madeBy")
        if maker is not None:
            run = maker["runId"], maker["invocation"]
            self.skips.setdefault((one["stage"], *run, one.get("key") or "", entry.pipeline), (name, entry.run))
            mark = (*run, one["stage"])
            self.looked[mark] = max(self.looked.get(mark, 0), begin)

    def _take_worked(self, one: Json, entry: Entry, begin: int, is_cut: bool) -> None:
        stage, parts, tasks = one["stage"], one.get("keyParts"), one.get("tasks")
        mark = entry.run + (stage,)
        folder = str(parts.get("outputDir", "")) if parts is not None else ""
        made = Made(one["status"], one.get("key") or "", entry.pipeline, parts is not None, folder, None, entry.seq,
                    is_unclear=is_cut and one["status"] == "notRun")
        if isinstance(tasks, dict) and is_text(tasks.get("outputsSha256")):
            made = made._replace(tasks_digest=tasks["outputsSha256"])
        if self.with_outputs or mark in self.wanted:
            made = made._replace(outputs=files_of(one.get("outputs") or []))
        self.made[mark] = made if mark in self.wanted else made._replace(outputs=None)
        if parts is None:
            return
        self.last_begin[stage] = max(self.last_begin.get(stage, (0, entry.run)), (begin, entry.run))
        if self.with_outputs:
            if stage not in self.newest or self.newest[stage][2].end < entry.seq:
                self.newest[stage] = entry.run, entry.pipeline, made
            self.owners.take(folder, made.outputs if made.status == "ok" else (), entry.seq, stage)
            for log in one.get("logs") or []:
                if is_log_of_tasks(log["path"], stage):
                    self.owners.take_later(entry.seq, stage, folder, log)


class Owners:
    """Which stage made a file last, of all that run records and the logs of their tasks tell."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self._last: Dict[str, Tuple[int, str]] = {}     # path of an output -> (end, stage) of the last run known to have made it
        # (end, stage, output folder, log) of what tasks have made, not read yet: few are ever asked for.
        self._logs: List[Tuple[int, str, str, Json]] = []

    def take(self, folder: str, outputs: Iterable[Any], seq: int, stage: str) -> None:
        """Take down that a stage made *outputs* below *folder*, by a run that ended with entry *seq*."""
        for output in outputs:
            path = "%s/%s" % (folder, output[0])
            self._last[path] = max(self._last.get(path, (0, "")), (seq, stage))

    def take_later(self, seq: int, stage: str, folder: str, log: Json) -> None:
        """Take down that its tasks made what *log* lists, which is read when somebody asks."""
        self._logs.append((seq, stage, folder, log))

    def has_another(self, paths: Iterable[str], end: int, stage: str) -> bool:
        """Tell whether another stage made one of *paths* after the entry *end*."""
        while self._logs:
            self._take_listed(*self._logs.pop())
        return any(seq > end and other != stage for seq, other in [self._last.get(path, (0, "")) for path in paths])

    def _take_listed(self, seq: int, stage: str, folder: str, log: Json) -> None:
        """Take down what tasks have made by the list of a run, if that is as its record has it; what is wrong with it was
        told."""
        try:
            data = read_regular(self.folder.path(log["path"]))
            if (len(data), sha256(data).hexdigest()) == (log["bytes"], log["sha256"]):
                for line in data.splitlines():
                    self.take(folder, json.loads(line.decode("utf-8"))["outputs"], seq, stage)
        except (OSError, Unreadable, ValueError, LookupError, TypeError, RecursionError):
            pass


def is_log_of_tasks(path: str, stage: str) -> bool:
    """Tell whether a log of a stage lists what its tasks have made, beside those of what they printed."""
    return path.endswith("/%s.tasks.jsonl" % stage)


def is_key_of(parts: Json, key: str) -> bool:
    """Tell whether *key* is that of its parts as a stage record holds them."""
    try:
        return stage_key(parts) == key
    except (ValueError, TypeError, RecursionError):
        return False
