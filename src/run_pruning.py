"""Pruning what old runs left: their records, metrics and logs, never the ledger's entries.

Above the leaves and below the runner. What is about to be removed is entered in the ledger first, each run by its number and the
digest that its own entry committed: so `verify` tells a pruned record from one that somebody made away with.

Order of the durable steps, for each batch: ledger entry, records, metrics, logs. A kill between two of them leaves files of
runs that the ledger calls pruned; the next gc removes them.
"""
from __future__ import annotations

import calendar
import json
import os
import stat
import time
from collections import namedtuple

import durable_files
import stage_locks
import state_store
import task_log
from ledger_format import entry_hash, found_hash, without_torn_end
from model import EXIT_OK, EXIT_STATE, UsageError
from primitives import is_integer, is_link, naming, open_file, whose_text
from run_ledger import NAME
from spec_values import name_problem
from state_store import StateError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, BinaryIO, Callable, Dict, Iterable, List, Optional, Set, Tuple

    from console import Console
    from model import Clock, Options, PipelineSpec
    from run_ledger import RunLedger
    from state_store import StateStore
    Json = Dict[str, Any]
    RunKey = Tuple[str, int]

BATCH_RUNS = 500            # entered and removed together: an entry of some 50 KB, which every later run reads
DAY_S = 86400
SHOWN_RUNS = 20
NOT_OURS = "may not be written by this user"


class History(namedtuple("History", "ends open pruned newest")):
    """The ledger as far as pruning needs it.

    ends: {run: its end entry}, oldest first. open: ids of runs that have begun and not ended. pruned: {run: runHash} of earlier
    calls of gc. newest: {run id: its last invocation}.
    """

    __slots__ = ()


class LedgerReader:
    """Reads the ledger, and later on from where it stopped: while gc is at work, it and others append to it."""

    def __init__(self, store: StateStore) -> None:
        self.path = store.path(NAME)
        self.file: Any = None           # which file has been read
        self._begin()

    def _begin(self) -> None:
        self.offset = self.number = 0
        self.last: Json = {"seq": 0, "hash": None, "open": {}}
        self.ends: Dict[RunKey, Json] = {}
        self.pruned: Dict[RunKey, str] = {}
        self.newest: Dict[str, int] = {}

    def read(self) -> History:
        """Return what the ledger says now. Raises: StateError where `verify` would find its chain broken; OSError."""
        try:
            file = open_file(self.path)
        except FileNotFoundError:
            self._begin()
        else:
            with naming(self.path), file:
                self._read(file)
        return History(self.ends, frozenset(self.last["open"]), self.pruned, self.newest)

    def _read(self, file: BinaryIO) -> None:
        found = os.fstat(file.fileno())
        if self.file != (found.st_dev, found.st_ino) or found.st_size < self.offset:
            self._begin()               # somebody has put another one there
            self.file = (found.st_dev, found.st_ino)
        file.seek(self.offset)
        for line in without_torn_end(line for line in file if line.endswith(b"\n")):
            self.number += 1
            self._take(line)
            self.offset += len(line)

    def _take(self, line: bytes) -> None:
        try:
            entry, last = json.loads(line.decode("utf-8")), self.last
            if entry["hash"] != entry_hash(entry) or (entry["seq"], entry["prevHash"]) != (last["seq"] + 1, last["hash"]):
                raise ValueError("it follows another one")
            run = (entry["runId"], entry["invocation"])
            if entry["event"] == "end" and not name_problem(run[0]) and is_integer(run[1]):
                self.ends[run] = entry
            elif entry["event"] == "gc":
                self.pruned.update({(one[0], one[1]): one[2] for one in entry["removed"] if (one[0], one[1]) in self.ends})
            if entry["event"] in ("begin", "end"):
                self.newest[run[0]] = max(run[1], self.newest.get(run[0], 0))
            self.last = dict(entry, open=dict(entry["open"]))
        except (AttributeError, IndexError, KeyError, TypeError, ValueError, RecursionError):
            raise StateError("state/%s:%d: the entry is not the one that follows; nothing is pruned: `verify` tells more" % (
                NAME, self.number)) from None


# --- what is kept (pure, but for the reading of records) -------------------------------------------------------------

def choose(history: History, needed: Set[RunKey], keep_runs: Optional[int], keep_days: Optional[int], now: float) -> List[RunKey]:
    """Return the runs whose records may go, oldest first.

    Kept are the newest *keep_runs*, those that ended in the last *keep_days* days (see _end_times), those that are *needed*, and all calls under
    the id of a run that is still open. Of a limit that is None nothing is kept for its sake.
    """
    runs = list(history.ends)
    newest = set(runs[-keep_runs:] if keep_runs else ())     # all, where there are fewer
    ended = _end_times(history.ends, now)
    chosen = []
    for run in runs:
        is_young = keep_days is not None and ended[run] > now - keep_days * DAY_S
        is_done = history.pruned.get(run) == history.ends[run].get("runHash")
        if not (run in newest or is_young or run in needed or run[0] in history.open or is_done):
            chosen.append(run)
    return chosen


def _end_times(ends: Dict[RunKey, Json], now: float) -> Dict[RunKey, float]:
    """Return {run: when it ended}, with a run never before one that ended earlier by the ledger: the clock may have been wrong.

    A time to come tells nothing: such a run counts as ended with the one before it; before all others, with the one after it.
    """
    seen, times = float("-inf"), []
    for end in ends.values():
        at = _seconds(end.get("at"))
        seen = max(seen, at) if at <= now else seen
        times.append(seen)
    first = next((one for one in times if one > float("-inf")), float("inf"))
    return {run: max(first, one) for run, one in zip(ends, times)}


def _seconds(text: Any) -> float:
    """Return the time of an entry as seconds since the epoch; one that cannot be read is in the future."""
    try:
        return float(calendar.timegm(time.strptime(str(text)[:19], "%Y-%m-%dT%H:%M:%S")))
    except ValueError:
        return float("inf")


def needed_runs(store: StateStore) -> Set[RunKey]:
    """Return the runs that present stage records name as their makers. Raises: StateError for a record that is damaged."""
    found: Set[RunKey] = set()
    for name in sorted(os.listdir(store.folder)):
        if name.startswith("stage_") and name.endswith(".json"):
            record = store.stage(name[6:-5])
            if record is not None:
                found.add((str(record.get("lastRunId")), int(record.get("lastInvocation") or 0)))
    return found


def makers_of_runs(store: StateStore, history: History, runs: Iterable[RunKey]) -> Set[RunKey]:
    """Return the runs that the records of *runs* name as makers of what they skipped: without them these prove nothing."""
    found: Set[RunKey] = set()
    for run in runs:
        _, record = _found(store, run, history.ends[run])
        stages = record.get("stages") if record is not None else None
        for one in stages if isinstance(stages, list) else []:
            maker = one.get("madeBy") if isinstance(one, dict) else None
            if isinstance(maker, dict) and is_integer(maker.get("invocation")):
                found.add((str(maker.get("runId")), maker["invocation"]))
    return found


def find_record(store: StateStore, run: RunKey, end: Json) -> str:
    """Return the name of the file that holds the record which the entry *end* committed, "" if none does."""
    return _found(store, run, end)[0]


def _found(store: StateStore, run: RunKey, end: Json) -> Tuple[str, Optional[Json]]:
    for name in ("run_%s.json" % run[0], "run_%s.%d.json" % run):
        record = _read(store, name)
        if record is not None and found_hash(record) == end.get("runHash"):
            return name, record
    return "", None


def _read(store: StateStore, name: str) -> Optional[Json]:
    """Return the record in a file, None where there is none. Raises: OSError where nobody can tell: what is needed must not pass
    for gone."""
    try:
        if not stat.S_ISREG(os.lstat(store.path(name)).st_mode):
            return None                     # a link or a pipe: no record
        with open_file(store.path(name)) as file:
            record = json.loads(file.read().decode("utf-8"))
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    except OSError as error:
        raise OSError(error.errno, "%s; nothing more is pruned" % error.strerror, store.path(name)) from error
    return record if isinstance(record, dict) else None


def files_of(store: StateStore, run: RunKey, history: History) -> List[str]:
    """Return the files below state/ that a run has beside its record: metrics of the newest call, its logs. Links are not
    followed."""
    is_newest = history.newest.get(run[0]) == run[1]
    names = ["metrics_%s.json" % run[0]] if is_newest and run[0] not in history.open else []
    folders = _log_folders(store, run, history)
    names += [name for folder in folders for name in _entries(store, folder) if not _is_first_calls(store, run, folder, name)]
    return [name for name in names if _mode(store, name) and not stat.S_ISDIR(_mode(store, name))]


def _has_empty_folders(store: StateStore, run: RunKey, history: History) -> bool:
    """Tell whether a folder of a run's logs still stands with nothing in it."""
    return any(os.path.isdir(store.path(folder)) and not os.listdir(store.path(folder)) for folder in _log_folders(store, run, history))


def _is_first_calls(store: StateStore, run: RunKey, folder: str, name: str) -> bool:
    """Tell whether a file in the folder of a later call is a log of the first call's: of the tasks of a stage whose name is the
    later call's number, by a version that gave these no folder of their own."""
    number, attempt = (name.rpartition("/")[2].split(".") + [""])[:2]
    has_own = _mode(store, "%s/%s" % (os.path.dirname(folder), task_log.log_folder_name(folder.rpartition("/")[2])))
    return (run[1] > 1 and folder == _log_folder(run) and number.isdecimal() and attempt.isdecimal() and bool(_mode(store, folder + ".tasks.jsonl"))
            and not has_own)


def _log_folders(store: StateStore, run: RunKey, history: History) -> List[str]:
    """Return the folders of a run's logs: its own, and below it those of its stages that have tasks; not those of other calls
    under its id."""
    folder = _log_folder(run)
    if any(is_link(store.path(part)) for part in _with_parents(folder)):
        return []
    calls = {str(number) for number in range(2, history.newest.get(run[0], 1) + 1)} if run[1] == 1 else set()
    below = [name for name in _entries(store, folder) if name.rpartition("/")[2] not in calls]
    return [folder] + [name for name in below if stat.S_ISDIR(_mode(store, name)) and not is_link(store.path(name))]


def _entries(store: StateStore, folder: str) -> List[str]:
    try:
        return ["%s/%s" % (folder, name) for name in sorted(os.listdir(store.path(folder)))]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _mode(store: StateStore, name: str) -> int:
    """Return the mode of what stands there, 0 if nothing does; a link is itself."""
    try:
        return os.lstat(store.path(name)).st_mode
    except FileNotFoundError:
        return 0


def _with_parents(folder: str) -> List[str]:
    parts = folder.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]


# --- the command -----------------------------------------------------------------------------------------------------

def gc(spec: PipelineSpec, options: Options, console: Console, clock: Clock, new_ledger: Callable[..., RunLedger]) -> int:
    """List what may go, with --yes remove it; return the exit code, EXIT_STATE where a run is kept as its files are another account's.

    Raises: UsageError without a limit; StateError, OSError.
    """
    if options.keep_runs is None and options.keep_days is None:
        raise UsageError("gc needs --keep-runs N or --keep-days D, or both: a run is kept if one of them keeps it")
    store = state_store.StateStore(spec.root, writable=options.yes, now=clock.time)
    reader = LedgerReader(store)
    history = reader.read()
    if not history.ends:
        console.line("gc: no run has ended here; nothing to prune")
        return EXIT_OK
    needed = needed_runs(store)
    old = choose(history, needed, options.keep_runs, options.keep_days, clock.time())
    kept = history.ends.keys() - set(old) - history.pruned.keys()
    makers = makers_of_runs(store, history, kept)
    chosen = [run for run in old if run not in makers]
    ready = {run: None for run in chosen if find_record(store, run, history.ends[run])}
    for run in chosen:
        if run not in ready:
            console.line("kept %s: no file holds the record that the ledger committed; `verify` tells more" % _run_text(run))
    left = [run for run in sorted(history.pruned) if _shut_folder(store, run, history) or files_of(store, run, history)
            or find_record(store, run, history.ends[run]) or _has_empty_folders(store, run, history)]
    if options.yes:
        return _remove(spec, options, store, reader, left + list(ready), clock, new_ledger, console)
    _list(list(ready), left, store, history, console)
    return EXIT_OK


def _list(runs: List[RunKey], left: List[RunKey], store: StateStore, history: History, console: Console) -> None:
    """left: runs that the ledger has as pruned, and of which a kill has kept something."""
    for run in left[:SHOWN_RUNS]:
        files = len(files_of(store, run, history)) + bool(find_record(store, run, history.ends[run]))
        console.line("would remove what an earlier gc has left of %s (%s)" % (_run_text(run), _counted(files, "file") if files else "empty folders"))
    if len(left) > SHOWN_RUNS:
        console.line("would remove what an earlier gc has left of %s more" % _counted(len(left) - SHOWN_RUNS, "run"))
    for run in runs[:SHOWN_RUNS]:
        console.line("would remove %s (ended %s; its record and %s)" % (_run_text(run), history.ends[run].get("at"),
                                                                        _counted(len(files_of(store, run, history)), "file")))
    if len(runs) > SHOWN_RUNS:
        console.line("would remove %s more" % _counted(len(runs) - SHOWN_RUNS, "run"))
    console.line("gc: %d of %d runs may go; nothing was removed: give --yes" % (len(runs), len(history.ends)))


def _counted(count: int, what: str) -> str:
    return "%d %s%s" % (count, what, "" if count == 1 else "s")


def _remove(spec: PipelineSpec, options: Options, store: StateStore, reader: LedgerReader, queue: List[RunKey], clock: Clock,
            new_ledger: Callable[..., RunLedger], console: Console) -> int:
    """As gc(). queue: first what an earlier gc has left, which is not entered again."""
    store.prepare()
    ledger = new_ledger(spec, options, store, clock)
    ledger.prepare()
    facts = {"keepRuns": options.keep_runs, "keepDays": options.keep_days}
    gone = files = 0
    code = EXIT_OK
    for start in range(0, len(queue), BATCH_RUNS):
        locked = _Locked(spec.root, queue[start:start + BATCH_RUNS], clock, console)
        with locked as batch:
            history = reader.read()     # once more: a call under one of the ids may have ended since
            batch = [run for run in batch if run[0] not in history.open]
            shut = [run for run in batch if _is_shut(store, run, history, console)]
            batch = [run for run in batch if run not in shut]
            code = EXIT_STATE if shut or locked.refused else code
            found = [run for run in batch if run not in history.pruned and find_record(store, run, history.ends[run])]
            if found:
                ledger.note("gc", spec.name, dict(facts, removed=[[run[0], run[1], history.ends[run]["runHash"]] for run in found]))
            for run in batch:
                if run in found or run in history.pruned:
                    files += _remove_files(store, run, history)
            gone += len(found)
            store.commit.flush()
    ledger.tell(console.line)
    console.line("gc: %s pruned, %s removed; what the ledger says of them stays" % (_counted(gone, "run"), _counted(files, "file")))
    ledger.tell(console.line, with_head=gone > 0)
    return code


def _is_shut(store: StateStore, run: RunKey, history: History, console: Console) -> bool:
    """Tell whether a run must be kept, and say so, as this user may not remove its logs."""
    folder = _shut_folder(store, run, history)
    if folder:
        console.line("kept %s: state/%s %s" % (_run_text(run), folder, whose_text(store.path(folder)) or NOT_OURS))
    return bool(folder)


def _shut_folder(store: StateStore, run: RunKey, history: History) -> str:
    """Return the folder of a run's logs out of which this user may remove nothing, "" if there is none."""
    try:
        folders = [folder for folder in _log_folders(store, run, history) if os.path.isdir(store.path(folder))]
    except PermissionError:
        return _log_folder(run)
    return next((folder for folder in folders if not os.access(store.path(folder), os.R_OK | os.W_OK | os.X_OK)), "")


class _Locked:
    """The run ids of a batch, held: nobody begins a call under one of them meanwhile. Yields the runs that could be held; refused:
    whether this user may not hold one."""

    def __init__(self, root: str, batch: List[RunKey], clock: Clock, console: Console) -> None:
        self.batch, self.console, self.refused = batch, console, False
        self.locks = {run_id: stage_locks.FileLock(root, run_id + ".run", clock) for run_id in sorted({run[0] for run in batch})}

    def __enter__(self) -> List[RunKey]:
        free = set()
        for run_id, lock in self.locks.items():
            try:
                if lock.try_acquire():
                    free.add(run_id)
                else:
                    self.console.line("kept run %s: its id is in use" % run_id)
            except PermissionError:
                self.refused = True
                self.console.line("kept run %s: locks/.%s.run %s" % (run_id, run_id, whose_text(lock.path) or NOT_OURS))
        return [run for run in self.batch if run[0] in free]

    def __exit__(self, *_: Any) -> None:
        for lock in self.locks.values():
            lock.release()


def _remove_files(store: StateStore, run: RunKey, history: History) -> int:
    """Remove the record of a run, then what it has beside it, and its empty log folders; return how many files."""
    name = find_record(store, run, history.ends[run])
    folders = _log_folders(store, run, history)[1:]
    count = int(bool(name) and durable_files.remove_durably(store.path(name), store.commit))
    for name in files_of(store, run, history):
        count += durable_files.remove_durably(store.path(name), store.commit)
    for folder in folders:
        durable_files.remove_empty_folder(store.path(folder), store.commit)
    for folder in reversed(_with_parents(_log_folder(run))[1:]):
        if not durable_files.remove_empty_folder(store.path(folder), store.commit):
            break                           # not there, or another call under the same id has logs in it
    return count


def _log_folder(run: RunKey) -> str:
    return "/".join(["logs", run[0]] + ([str(run[1])] if run[1] > 1 else []))


def _run_text(run: RunKey) -> str:
    return "run %s" % run[0] if run[1] == 1 else "run %s (invocation %d)" % run
