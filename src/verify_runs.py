"""The run records, and the metrics and logs that they name, against what the ledger's entries commit to.

Above history_files, ledger_chain and verify_history; goes with ledger_verify to another machine.

    RunRecords      entries -> the files that hold the records, by digest: intact, renamed, edited, gone, asked for by nobody
    RunContents     an intact record -> what it says of its run, its metrics, its stages (StageResults) and what it skipped
    RunLogs         the logs that it names, and those that lie there unnamed
"""
from __future__ import annotations

import json
import os
from collections import namedtuple

from history_files import Unreadable, digest_of, is_text, parse_object, read_regular, run_record_problem, run_text
from ledger_chain import LEDGER, Entry
from ledger_format import run_hash
from primitives import is_integer
from verify_history import Book, LedgerIndex, StageResults, is_key_of, is_log_of_tasks

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, Iterable, List, Optional, Set, Tuple
    Json = Dict[str, Any]
    RunKey = Tuple[str, int]        # run id and invocation

PENDING = ".run.json.tmp"


class Stray(namedtuple("Stray", "record digest problem")):
    """A run record that was read and is not the one expected under its name; record None: it is none at all."""

    __slots__ = ()


# --- the files -------------------------------------------------------------------------------------------------------

class RunRecords:
    """Which file holds the record that each end entry commits to. Each is read once; what is not in its place is looked for by
    its digest.

    EDITED, MALFORMED: another content stands under its name. RENAMED: it stands under another one. DELETED: it is nowhere, and
    gc did not prune it. UNLISTED: a record that no entry commits to, or a copy.
    """

    def __init__(self, book: Book, index: LedgerIndex, contents: RunContents) -> None:
        """contents: is given each record that is as its entry has it."""
        self.book, self.index, self.contents = book, index, contents
        self.strays: Dict[str, Stray] = {}              # files that are not what was expected under their names
        self.told: Set[str] = set()                     # those of them that need no further word
        self.placed: Dict[str, RunKey] = {}             # files that hold an intact record, and of which run
        self.homes: Dict[RunKey, str] = {}              # the same, looked at from the run
        self.pruned_met = 0

    def check(self, records: List[str]) -> None:
        """Find the record of each run that has ended; records: the files that are named like one."""
        unmet = [entry for entry in self.index.ends.values() if entry.run_hash is not None and not self._meet(entry)]
        for name in records:
            if name not in self.placed:
                self._read(name)
        by_digest = {self.strays[name].digest: name for name in sorted(self.strays, reverse=True) if self.strays[name].digest}
        unmet = [entry for entry in unmet if not self._meet_pending(entry) and not self._meet_elsewhere(entry, by_digest)]
        for entry in unmet:
            self._report_unmet(entry)
        self._vouch(by_digest)
        for name in sorted(self.strays):
            if name not in self.placed and name not in self.told:
                self._report_stray(name, self.strays[name])
        self._report_misplaced()

    def _report_misplaced(self) -> None:
        """Report the record of an earlier call under a run id that stands where that of the newest belongs, and tell of the newest
        under the name that it gets before the next call begins."""
        for name, run in sorted(self.placed.items()):
            if name == "run_%s.%d.json" % run and run[1] == self.index.newest_call.get(run[0]) and self.book.concerns(run):
                self.book.notes.append("state/%s is the record of the newest call of run %s: the next one died before it began, or somebody has renamed it" % (
                    name, run[0]))
            newest = run[0], self.index.newest_call.get(run[0], 0)
            if name == "run_%s.json" % run[0] and newest != run and self.homes.get(newest, name) != name:
                self.book.find("RENAMED", "state/" + name, "invocation %d stands in place of the newest, which is in state/%s" % (
                    run[1], self.homes[newest]), run)

    def _names_of(self, run: RunKey) -> List[str]:
        """Return the files that may hold a run's record, the likeliest first."""
        names = ["run_%s.json" % run[0], "run_%s.%d.json" % run]
        return names if run[1] == self.index.newest_call.get(run[0]) else names[::-1]

    def _read(self, name: str) -> Stray:
        """Return what a file holds; read on the first call."""
        if name not in self.strays:
            try:
                record = self.book.load(name, self.book.exact)
                self.strays[name] = Stray(record, run_hash(record), "")
            except FileNotFoundError:
                self.strays[name] = Stray(None, "", "was there a moment ago")
            except Unreadable as error:
                self.strays[name] = Stray(None, "", str(error))
            except (ValueError, RecursionError):
                self.strays[name] = Stray(None, "", "is no record: it cannot be hashed")
        return self.strays[name]

    def _meet(self, entry: Entry) -> bool:
        """Tell whether a run's record is in its place, and take what it says."""
        for name in self._names_of(entry.run):
            if name in self.book.names and name not in self.placed and self._read(name).digest == entry.run_hash:
                self._place(name, entry)
                return True
        return False

    def _place(self, name: str, entry: Entry) -> None:
        record = self.strays.pop(name).record
        self.placed[name] = entry.run
        self.homes[entry.run] = name
        self.contents.take(record, entry, "state/" + name)

    def _meet_pending(self, entry: Entry) -> bool:
        """A kill between the last entry and the rename leaves the record under its temporary name."""
        if PENDING not in self.book.names or entry is not self.index.chain.entries[-1] or self._read(PENDING).digest != entry.run_hash:
            return False
        self._place(PENDING, entry)
        names = [name for name in self._names_of(entry.run) if name in self.strays]
        self.told.update(name for name in names if _is_running(self.strays[name], entry.run))
        self.book.notes.append("state/%s is the record of %s: a kill came before it got its name, the next run gives it" % (
            PENDING, run_text(entry.run)))
        return True

    def _meet_elsewhere(self, entry: Entry, by_digest: Dict[str, str]) -> bool:
        """Tell whether a run's record has another name."""
        name = by_digest.get(entry.run_hash)
        if name is None or name in self.placed:
            return False
        self.book.find("RENAMED", "state/" + name, "holds the record of %s, which belongs in state/%s" % (
            run_text(entry.run), self._names_of(entry.run)[0]), entry.run)
        self._place(name, entry)
        return True

    def _report_unmet(self, entry: Entry) -> None:
        """Report a committed record that is nowhere: another content under its name, or nothing."""
        if self._is_pruned(entry.run):
            self.pruned_met += self.book.concerns(entry.run)
            return
        self.book.doubtful.add(entry.run)
        copy = ""
        for name in self._names_of(entry.run):
            stray = self.strays.get(name)
            if stray is None or name in self.told:
                copy = copy or self._copy_text(name)
                continue
            content = _run_of(stray.record)
            if content in self.index.open:
                continue                    # of a later call under the same id, which goes on
            self.told.add(name)
            if content in self.homes and run_hash(stray.record) == self.index.ends[content].run_hash:
                copy = "; a copy of the record of %s stands in its place" % run_text(content)
                continue
            if entry.sound:
                self.book.find("MALFORMED" if stray.problem else "EDITED", "state/" + name, _edit_text(stray, entry), entry.run)
            return
        if entry.sound:
            self.book.find("DELETED", "state/" + self._names_of(entry.run)[0], "the record of %s that entry %d committed is gone%s" % (
                run_text(entry.run), entry.seq, copy), entry.run)

    def _is_pruned(self, run: RunKey) -> bool:
        """Tell whether gc has removed a run's record and nothing stands in its place but those of calls that go on."""
        if run not in self.index.pruned:
            return False
        names = [name for name in self._names_of(run) if name in self.strays and name not in self.told]
        return all(_run_of(self.strays[name].record) in self.index.open for name in names)

    def _copy_text(self, name: str) -> str:
        run = self.placed.get(name)
        return "; the record of %s stands in its place" % run_text(run) if run is not None else ""

    def _vouch(self, by_digest: Dict[str, str]) -> None:
        """Find the records whose own entry is missing while what comes later, an entry or a record, names their digest."""
        queue = [entry.last_run_hash for entry in self.index.chain.entries if entry.sound] + self.contents.followed
        for digest in queue:
            name = by_digest.get(digest) if digest is not None else None
            if name is None or name in self.placed or name in self.told or run_record_problem(self.strays[name].record):
                continue
            record = self.strays[name].record
            run = (record["runId"], record["invocation"])
            if run in self.homes:
                continue                    # a copy
            self.told.add(name)
            self.book.doubtful.add(run)
            queue.append(record["prevRunHash"])
            self.book.notes.append("state/%s: its own entry is missing from the ledger, later ones vouch for it" % name)

    def _report_stray(self, name: str, stray: Stray) -> None:
        """Report a file that nothing in the ledger asks for."""
        run = _run_of(stray.record)
        if stray.problem or run is None:
            self.book.find("MALFORMED", "state/" + name, stray.problem or "is not the record of a run", ("", 0))
        elif run in self.index.open and name in self._names_of(run) and _is_running(stray, run):
            return
        elif run in self.homes and run_hash(stray.record) == self.index.ends[run].run_hash:
            self.book.find("UNLISTED", "state/" + name, "a copy of state/%s" % self.homes[run], run)
        elif name == PENDING:
            self.book.notes.append("state/%s is the record of %s, which a kill kept out of the ledger; the next run removes it" % (
                name, run_text(run)))
        else:
            self.book.doubtful.add(run)
            self.book.find("UNLISTED", "state/" + name, "no entry commits this record of %s" % run_text(run), run)


# --- what an intact record says --------------------------------------------------------------------------------------

class RunContents:
    """What a record says that is the one its entry commits to; what it says of stages goes to StageResults.

    MALFORMED: it is not of the form that runs write. EDITED: it does not fit its entry, the metrics, or the key of a stage that
    it made or skipped. DELETED: its metrics are gone. UNLISTED: it skipped what no run of the ledger has made.
    """

    def __init__(self, book: Book, index: LedgerIndex, results: StageResults) -> None:
        """results: filled by take()."""
        self.book, self.index, self.results = book, index, results
        self.logs = RunLogs(book, index)
        self.followed: List[str] = []                   # digests of the records that intact ones say they were sealed after

    def take(self, record: Json, entry: Entry, name: str) -> None:
        """Check an intact record and take down what it says of stages; name: of its file, below the root."""
        problem = run_record_problem(record)
        if problem:
            self.book.doubtful.add(entry.run)
            self.book.find("MALFORMED", name, "its %s is not of the form that runs write" % problem, entry.run)
            return
        said = (record["runId"], record["invocation"])
        if entry.sound and (said, record["state"]) != (entry.run, entry.state):
            self.book.find("EDITED", "state/%s:%d" % (LEDGER, entry.line), "entry %d says %s, %s; its record %s says %s, %s" % (
                entry.seq, run_text(entry.run), entry.state, name, run_text(said), record["state"]), entry.run)
        if entry.sound and record["prevRunHash"] is not None:
            self.followed.append(record["prevRunHash"])
        if record.get("runHash") != entry.run_hash:
            self.book.find("EDITED", name, "its runHash is not the one that entry %d committed; the rest of it is" % entry.seq, entry.run)
        if entry.sound and self.index.before.get(entry.seq, record["prevRunHash"]) != record["prevRunHash"]:
            self.book.find("EDITED", name, "its prevRunHash is not the digest of the record that was sealed before it", entry.run)
        if self.book.concerns(entry.run):
            self._check_metrics(record, entry, name)
            self._check_stages(record, entry, name)
        begin = self.index.begins.get(entry.run, entry.seq)
        is_cut = record["state"] != "completed" and not any(one["status"] in ("failed", "interrupted") for one in record["stages"])
        for one in record["stages"]:
            self.results.take(one, entry, begin, name, is_cut)

    def _check_stages(self, record: Json, entry: Entry, name: str) -> None:
        """Check the keys of the stages that the run worked on, and their logs."""
        for one in record["stages"]:
            if one["status"] != "skipped":
                parts = one.get("keyParts")
                if parts is not None and not _is_recorded_key(parts, one.get("key") or ""):
                    self.book.find("EDITED", name, "stage %s: its key is not that of its parts" % one["stage"], entry.run)
                self.logs.check_named(one, entry.run, name)
        if entry.sound and entry.closed_by is None:
            self.logs.check_unnamed(record, entry, name)

    def _check_metrics(self, record: Json, entry: Entry, name: str) -> None:
        """The metrics of the newest call under a run id are still there; those of earlier calls were replaced."""
        metrics = record.get("metrics")
        if entry.run in self.index.pruned or entry.invocation != self.index.newest_call[entry.run_id] or entry.run_id in {run[0] for run in self.index.open}:
            return
        path = "state/metrics_%s.json" % entry.run_id
        if metrics is None:
            if path[len("state/"):] in self.book.names:
                self.book.notes.append("nothing vouches for %s: %s does not name it; a run that died may have written it" % (path, name))
            return
        try:
            is_its_own = digest_of(self.book.folder.path(path)) == (metrics["bytes"], metrics["sha256"])
            if not is_its_own and name == "state/run_%s.%d.json" % entry.run and self._is_of_later(path, entry):
                self.book.notes.append("%s is of a call that died before its end was entered" % path)
            elif not is_its_own:
                self.book.find("EDITED", path, "it is not the one that %s names" % name, entry.run)
        except FileNotFoundError:
            self.book.find("DELETED", path, "%s names it" % name, entry.run)
        except Unreadable as error:
            self.book.find("MALFORMED", path, str(error), entry.run)

    def _is_of_later(self, path: str, entry: Entry) -> bool:
        """Tell whether metrics are of the next call under the run id, which wrote them before its entry."""
        try:
            said = parse_object(read_regular(self.book.folder.path(path)), self.book.loose)
        except (OSError, Unreadable):
            return False
        return (said.get("runId"), said.get("invocation")) == (entry.run_id, entry.invocation + 1)

    def check_skips(self) -> None:
        """A skipped stage was made by a run that the ledger has, under the key of the skip."""
        if self.index.chain.findings:
            return                          # where entries are missing, so are makers
        for (stage, run_id, invocation, key, _), (name, skipper) in sorted(self.results.skips.items()):
            run = (run_id, invocation)
            if run in self.book.doubtful or run in self.index.open:
                continue
            made = self.results.made.get(run + (stage,))
            if run not in self.index.ends:
                self.book.find("UNLISTED", name, "stage %s was skipped as made by %s, which no entry has" % (stage, run_text(run)), skipper)
            elif made is not None and made.has_parts and key not in self.index.keys_after(run, made, stage):
                self.book.find("EDITED", name, "stage %s was skipped under another key than that under which %s made it" % (
                    stage, run_text(run)), skipper)


class RunLogs:
    """The logs of runs. EDITED: not as the record says. UNLISTED: it should name it and does not. One that is gone is a note."""

    def __init__(self, book: Book, index: LedgerIndex) -> None:
        self.book, self.index = book, index
        self.missing = 0
        self.of_tasks: Dict[str, Dict[str, str]] = {}   # stage -> {run, as task logs name it: the sealed lines that it wrote}

    def check_named(self, one: Json, run: RunKey, name: str) -> None:
        """Compare the logs of a stage with what the record *name* of its run says of them."""
        for log in one.get("logs") or []:
            try:
                path = self.book.folder.path(log["path"])
            except Unreadable as error:
                self.book.find("MALFORMED", name, "stage %s: its log %s %s" % (one["stage"], log["path"], error), run)
                continue
            try:
                if digest_of(path) != (log["bytes"], log["sha256"]):
                    self.book.find("EDITED", log["path"], "the log is not the one that %s names" % name, run)
                elif is_log_of_tasks(log["path"], one["stage"]):
                    self.of_tasks.setdefault(one["stage"], {})["%s/%d" % run] = path
            except FileNotFoundError:
                self.missing += 1
            except Unreadable as error:
                self.book.find("MALFORMED", log["path"], "the log %s" % error, run)

    def check_unnamed(self, record: Json, entry: Entry, name: str) -> None:
        """Report what lies among the logs of a run as one of a stage that ended well in it or was skipped, and its record does not
        name.

        Of another stage an attempt may have ended without being noted. In earlier versions a stage that is called as a number
        shared its folder of logs with a call.
        """
        named = {one["stage"]: {log["path"] for log in one.get("logs") or []} for one in record["stages"] if not one["stage"].isdigit()
                 and (one["status"] == "skipped" or one["status"] == "ok" and isinstance(one.get("logs"), list) and not one.get("recovered"))}
        if not named or len(self.index.spellings.get(entry.run_id.casefold(), ())) > 1:
            return
        folder = "state/logs/%s%s" % (entry.run_id, "/%d" % entry.invocation if entry.invocation > 1 else "")
        for stage, path in self._logs_in(folder, named):
            if path not in named[stage]:
                self.book.find("UNLISTED", path, "the log is none of those of stage %s that %s names" % (stage, name), entry.run)

    def _logs_in(self, folder: str, stages: Iterable[str]) -> List[Tuple[str, str]]:
        """Return (stage, path) of what is called like a log of one of these stages in the folder of a call, sorted."""
        found: List[Tuple[str, str]] = []
        for name, is_folder, _ in self._entries_of(folder):
            stage, number = name[:-len(".log")].rpartition(".")[::2] if name.endswith(".log") else (name, "")
            if is_folder and name in stages:        # of its tasks; one that is empty may be of a disk that was full
                found += [(name, "%s/%s/%s" % (folder, name, log)) for log, _, size in self._entries_of("%s/%s" % (folder, name))
                          if size and _is_number(log[:-len(".log")].partition(".")[::2]) and log.endswith(".log")]
            elif stage in stages and not is_folder and _is_number([number]):
                found.append((stage, "%s/%s" % (folder, name)))
            elif name.endswith(".tasks.jsonl") and name[:-len(".tasks.jsonl")] in stages and not is_folder:
                found.append((name[:-len(".tasks.jsonl")], "%s/%s" % (folder, name)))
        return sorted(found)

    def _entries_of(self, folder: str) -> List[Tuple[str, bool, int]]:
        """Return (name, whether it is a folder, bytes) of what is in a folder of logs; what of it cannot be read is told where a
        record names it."""
        try:
            with os.scandir(self.book.folder.path(folder)) as entries:
                return [(one.name, one.is_dir(follow_symlinks=False), one.stat(follow_symlinks=False).st_size) for one in entries]
        except (OSError, Unreadable):
            return []


def _run_of(record: Optional[Json]) -> Optional[RunKey]:
    """Return the run of which a file says that it holds the record, None if it says none."""
    if record is None or not is_text(record.get("runId")) or not is_integer(record.get("invocation")):
        return None
    return record["runId"], record["invocation"]


def _is_running(stray: Stray, run: RunKey) -> bool:
    return stray.record is not None and stray.record.get("state") == "running" and _run_of(stray.record) == run


def _edit_text(stray: Stray, entry: Entry) -> str:
    """Return what is wrong with a file in the place of the record that *entry* committed."""
    if stray.problem.startswith("cannot be read"):
        return "%s; whether it is what entry %d committed cannot be told" % (stray.problem, entry.seq)
    if stray.problem:
        return "%s; entry %d committed another record" % (stray.problem, entry.seq)
    if stray.record.get("state") == "running":
        return "it says running, but entry %d ended %s" % (entry.seq, run_text(entry.run))
    text = "the record is not the one that entry %d committed" % entry.seq
    return text + " (its runHash was made anew)" if stray.record.get("runHash") == stray.digest else text


def _is_number(texts: Iterable[str]) -> bool:
    return all(text.isascii() and text.isdigit() for text in texts)


def _is_recorded_key(parts: Json, key: str) -> bool:
    """Tell whether *key* is that of its parts as a run record holds them.

    There params are JSON text and the processor's time is a text, for neither a fraction nor a number above 2^53 is
    hashed. Variables are digests: with them nobody can tell, and True is returned.
    """
    if parts.get("env") != {}:
        return True
    try:
        processor = dict(parts["processor"])
        if "mtimeNs" in processor:
            processor["mtimeNs"] = int(processor["mtimeNs"])
        return is_key_of(dict(parts, params=json.loads(parts["params"]), processor=processor), key)
    except (ValueError, TypeError, KeyError, RecursionError):
        return False
