#!/usr/bin/env python3
"""Whether the history under state/ still is what the runs wrote: every record, log and output against the ledger.

    python ledger_verify.py [RUN...] [--root DIR] [--anchor HEAD]... [--key FILE] [--outputs]

Above the verify_ modules and ledger_chain. Reads only. From the outside in:

    anchors, key  ->  ledger.jsonl (chain, seals, ledger.end)               ledger_chain, LedgerIndex of verify_history
                  ->  run records (runHash, prevRunHash), metrics, logs     verify_runs
                  ->  stage records and their keys, logs of tasks           verify_stages
                  ->  with --outputs also the outputs                       verify_outputs

The ledger is walked in the order of its numbers, so that one broken link is one finding. A record is known by its digest,
not by its file name: that tells renamed from edited. What a crash may leave is a note and no finding.

Of the runner's files another machine needs, beside this one, history_files.py, ledger_chain.py, ledger_format.py, model.py,
primitives.py, task_log.py, verify_history.py, verify_outputs.py, verify_runs.py and verify_stages.py.
"""
from __future__ import annotations

import os
import sys
from collections import namedtuple

_HERE = os.path.dirname(os.path.abspath(__file__))
if _HERE not in sys.path:
    sys.path.insert(0, _HERE)       # a copy carried elsewhere is run with -I, too

from history_files import END_SHAPE, Unreadable, count_text, run_text, shape_problem, shown  # noqa: E402
from ledger_chain import END, LEDGER, Chain, KeyRing, Seals, check_anchors  # noqa: E402
from ledger_format import head_text, key_id, parse_key  # noqa: E402
from model import EXIT_OK, EXIT_STATE, EXIT_USAGE, UsageError  # noqa: E402
from primitives import prepare_stream  # noqa: E402
from verify_history import Book, LedgerIndex, Owners, StageResults  # noqa: E402
from verify_outputs import Outputs  # noqa: E402
from verify_runs import RunContents, RunRecords  # noqa: E402
from verify_stages import StageRecords, TaskLogs  # noqa: E402

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, Iterable, List, Optional, Sequence, Set, Tuple
    Json = Dict[str, Any]
    Key = Tuple[str, str, int, bytes]

TRIES = 4                       # a run may be writing while we read

USAGE = """\
usage: ledger_verify.py [RUN...] [--root DIR] [--anchor HEAD]... [--key FILE] [--outputs]

Check the history below DIR/state (default: the working directory). RUN: only these runs, and the whole ledger.
  --anchor HEAD   a head noted earlier, "12: 9f3a-77c1-..."; finds a ledger that was cut off or written anew
  --key FILE      the key file that sealed the ledger (forward mode: the first one)
  --outputs       also read every output that the newest runs made
exit codes: 0 nothing found, 5 findings, 2 bad usage
"""


class Report(namedtuple("Report", "findings notes entries runs head")):
    """findings: [Finding]; notes: [text]; entries and runs (that have ended): how many; head: of the last entry, or ""."""

    __slots__ = ()


# --- one pass --------------------------------------------------------------------------------------------------------

class Verification:
    """One pass over a root: the ledger, and then in turn all that its entries vouch for."""

    def __init__(self, root: str, run_ids: Iterable[str], outputs: bool, known: Optional[Dict[str, Any]] = None) -> None:
        """outputs: whether to read these, too; known: of an earlier look at them."""
        self.with_outputs = outputs
        self.book = Book(root, run_ids)
        self.chain = Chain()
        self.index = LedgerIndex(self.chain, self.book)
        results = StageResults(Owners(self.book.folder), outputs)
        self.contents = RunContents(self.book, self.index, results)
        self.runs = RunRecords(self.book, self.index, self.contents)
        self.stages = StageRecords(self.book, self.index, results)
        self.task_logs = TaskLogs(self.book, self.index, results, self.stages, self.contents.logs.of_tasks)
        self.outputs = Outputs(self.book, self.index, results, self.stages, self.task_logs, known)

    def run(self, anchors: Sequence[str], key: Optional[Key]) -> None:
        """Check all there is. Raises: UsageError for a run that nothing here knows."""
        try:
            self.book.names = set(os.listdir(self.book.state))
        except FileNotFoundError:
            pass
        except OSError as error:
            self.book.find("MALFORMED", "state", "cannot be read: %s" % (error.strerror or error))
        records = sorted(name for name in self.book.names if name.startswith("run_") and name.endswith(".json"))
        if not self._read_ledger(records, anchors, key):
            if not self.book.findings:
                self._check_operands(records)
            return
        self.index.fill()
        self._check_operands(records)
        self.stages.load()
        self.runs.check(records)
        self.contents.check_skips()
        self.stages.check(self.runs.homes)
        self.task_logs.check()
        if self.with_outputs:
            self.outputs.check()
        self._note_what_is_open_or_gone()

    def _note_what_is_open_or_gone(self) -> None:
        """Note what there is no finding about: runs that have not ended, and what went as the ledger says or may go."""
        notes = self.book.notes
        for run in self.index.open:
            if self.book.concerns(run):
                notes.append("%s has begun and not ended: it is going on, or it died and the next run closes it" % run_text(run))
        if self.runs.pruned_met:
            notes.append("%s pruned by gc, as the ledger says" % counted(self.runs.pruned_met, "run record", "was", "were"))
        if self.outputs.cleaned_met:
            notes.append("%s removed by clean, as the ledger says" % counted(self.outputs.cleaned_met, "output", "was", "were"))
        if self.contents.logs.missing:
            notes.append("%s no longer there" % counted(self.contents.logs.missing, "log", "is", "are"))

    def _read_ledger(self, records: List[str], anchors: Sequence[str], key: Optional[Key]) -> bool:
        """Read and check the ledger; tell whether there is one to compare records with."""
        is_read = True
        try:
            self.chain.read(os.path.join(self.book.state, LEDGER))
        except FileNotFoundError:
            is_read = False
            told = self._told_without_ledger(records, key)
            if told:
                self.book.find("DELETED", "state/" + LEDGER, "there is none, but " + told)
            else:
                self.book.notes.append("nothing to verify: no run has left a record below %s" % self.book.folder.root)
        except Unreadable as error:
            is_read = False
            self.book.find("MALFORMED", "state/" + LEDGER, str(error))
        self.book.findings += self.chain.findings
        self.book.notes += self.chain.notes
        if is_read:
            seals = Seals(self.chain, KeyRing(key) if key is not None else None, self._read_end())
            seals.check(END in self.book.names)
            self.book.findings += seals.findings
            self.book.notes += seals.notes
        self.book.findings += check_anchors(self.chain.entries, anchors) if is_read or anchors else []
        return is_read

    def _told_without_ledger(self, records: List[str], key: Optional[Key]) -> str:
        """Return what shows that there was a ledger, "" if nothing does: each run enters its begin before it touches a stage."""
        stages = [name for name in self.book.names if name.startswith("stage_") and name.endswith(".json")]
        end = self._read_end()
        if records or END in self.book.names and (end is None or end.get("begins") is not True or end["seq"]):
            return count_text(len(records), "run record") if records else "a state/" + END
        if stages:
            return "%s of stages that runs have made" % count_text(len(stages), "record")
        return "the key given has sealed %s" % count_text(key[2], "entry") if key is not None and key[2] else ""

    def _read_end(self) -> Optional[Json]:
        try:
            end = self.book.load(END, self.book.exact)
            name = shape_problem(end, END_SHAPE)
            if name:
                raise Unreadable("its %s is not of the form that runs write" % name)
        except FileNotFoundError:
            return None
        except Unreadable as error:
            self.book.find("MALFORMED", "state/" + END, str(error))
            return None
        return end

    def _check_operands(self, records: List[str]) -> None:
        for run_id in sorted(self.book.run_ids - self.index.run_ids()):
            if not any(name == "run_%s.json" % run_id for name in records):
                raise UsageError("no run is named %s; the runs stand in state/%s" % (shown(run_id), LEDGER))

    def report(self) -> Report:
        entries = self.chain.entries
        sound = [entry for entry in entries if entry.sound]
        head = head_text({"seq": sound[-1].seq, "hash": sound[-1].hash}) if sound else ""
        aside = sorted(name for name in self.book.names if name.startswith(LEDGER + ".corrupt-")) if self.book.findings else []
        notes = ["state/%s was set aside as damaged: the entries of earlier runs stand there" % name for name in aside]
        return Report(self.book.findings, self.book.notes + notes, len(entries), len(self.index.ends), head)


def counted(count: int, what: str, verb: str, verbs: str) -> str:
    return "%s %s" % (count_text(count, what), verb if count == 1 else verbs)


# --- the command -----------------------------------------------------------------------------------------------------

def verify(root: str, run_ids: Iterable[str] = (), anchors: Sequence[str] = (), key: Any = None, outputs: bool = False) -> Report:
    """Check the history below *root*; write nothing.

    key: the content of a key file (bytes), or what parse_key() made of it. While a run is writing, what looks like a finding
    may be half a change: then all is read again, but for outputs with the same signature, which are read once. Raises: UsageError
    for an unknown run, a text that is no head, no key.
    """
    parsed = _parsed_key(key) if isinstance(key, (bytes, str)) else key
    names = list(run_ids)
    known: Dict[str, Any] = {}
    lasting: Optional[Set[str]] = None
    for _ in range(TRIES):
        before = _stamp(root)
        check = Verification(root, names, outputs, known)
        check.run(anchors, parsed)
        findings = check.book.findings
        if not findings or _stamp(root) == before:
            return check.report()
        found = set(map(str, findings))
        lasting = found if lasting is None else lasting & found
    # What was never found at rest counts if it was found each time: a run that writes makes another appearance each time.
    check.book.findings = [one for one in findings if str(one) in (lasting or ())]
    passed = len(findings) - len(check.book.findings)
    if passed:
        check.book.notes.append("runs were writing all the while; %s that did not last %s left out: verify again when none is at work" % (
            count_text(passed, "finding"), "was" if passed == 1 else "were"))
    return check.report()


def _stamp(root: str) -> List[int]:
    """Return what changes when a run writes below state/."""
    stamp = []
    for name in ("state", os.path.join("state", LEDGER)):
        try:
            status = os.stat(os.path.join(root, name))
            stamp += [status.st_mtime_ns, status.st_size]
        except OSError:
            stamp += [0, 0]
    return stamp


def _parsed_key(data: Any) -> Key:
    try:
        text = data if isinstance(data, str) else data.decode("ascii")
    except UnicodeDecodeError:
        text = ""
    key = parse_key(text)
    if key is None or (key[0] == "hmac" or key[2] == 0) and key_id(key[3]) != key[1]:
        raise UsageError("it is no key file, or a damaged one")
    return key


def print_report(report: Report, write: Callable[[str], Any]) -> int:
    """Write the findings, the notes and one closing line; return the exit code."""
    for finding in report.findings:
        write("%s\n" % (str(finding),))
    for note in report.notes:
        write("note: %s\n" % shown(note))
    extent = "%s, %s" % (count_text(report.entries, "entry"), count_text(report.runs, "run"))
    if report.findings:
        write("verify: %s in %s\n" % (count_text(len(report.findings), "finding"), extent))
        return EXIT_STATE
    write("verify: %s%s: ok\n" % (extent, ", head " + report.head if report.head else ""))
    return EXIT_OK


def read_key(path: str) -> Key:
    """Return the key of a key file. Raises: UsageError."""
    try:
        with open(path, "rb") as file:      # a pipe, too: a password store may give it
            return _parsed_key(file.read(4096))
    except OSError as error:
        raise UsageError("--key %s: cannot be read: %s" % (shown(path), error.strerror or error)) from None
    except UsageError as error:
        raise UsageError("--key %s: %s" % (shown(path), error)) from None


def parse_arguments(argv: Sequence[str]) -> Json:
    """Return {"runs", "anchors", "roots", "keys", "outputs"} of a command line. Raises: UsageError."""
    found: Json = {"runs": [], "--anchor": [], "--root": [], "--key": [], "outputs": False}
    queue = list(argv)
    while queue:
        word = queue.pop(0)
        name, equals, value = word.partition("=")
        if name in ("--anchor", "--root", "--key"):
            if not equals and not queue:
                raise UsageError("%s needs a value" % name)
            found[name].append(value if equals else queue.pop(0))
        elif word == "--outputs":
            found["outputs"] = True
        elif word.startswith("-"):
            raise UsageError("unknown option %s; see --help" % shown(word))
        else:
            found["runs"].append(word)
    for name in ("--root", "--key"):
        if len(found[name]) > 1:
            raise UsageError("%s was given twice" % name)
    return found


def main(argv: Sequence[str]) -> int:
    """Do what the command line says; return the exit code, also to who has closed standard output."""
    out = sys.stdout or open(os.devnull, "w", encoding="utf-8")
    for stream in (out, sys.stderr):
        prepare_stream(stream)
    if {"--help", "-h"} & set(argv):
        out.write(USAGE)
        return EXIT_OK
    try:
        found = parse_arguments(argv)
        root = found["--root"][0] if found["--root"] else os.getcwd()
        if not os.path.isdir(root):
            raise UsageError("--root %s: there is no such folder" % shown(root))
        key = read_key(found["--key"][0]) if found["--key"] else None
        return print_report(verify(root, found["runs"], found["--anchor"], key, found["outputs"]), out.write)
    except UsageError as error:
        if sys.stderr is not None:
            sys.stderr.write("error: %s\n" % error)
        return EXIT_USAGE


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
