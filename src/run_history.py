"""What happened: the runs, newest first, as the ledger and the run records tell.

Above the leaves. Only reads, and goes on without what is damaged or gone: the ledger is read from its end and only as far
as needed, so that the last ten of ten thousand runs cost ten records.

    state/ledger.jsonl (from its end) -> RunName -> state/run_<id>.json -> PastRun
    state/run_*.json (by their times)  ↗  for what the ledger does not tell
"""
from __future__ import annotations

import functools
import json
import os
import sys
from collections import namedtuple

import run_ledger
import stage_locks
import state_store
from ledger_format import is_unwritten
from primitives import is_integer, milliseconds, naming, open_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, Iterator, List, Optional, Set, Tuple
    Json = Dict[str, Any]
    Records = Callable[[], List[Json]]      # of all stages, read once, when they are first asked for

BLOCK_BYTES = 1 << 16       # of the ledger, read at once
SLOW_FACTOR = 3             # the last duration is told when it is so many times the median of the earlier ones ...
SLOW_LEAST_MS = 100         # ... and so much longer: below that it is noise
EARLIER_LEAST = 3           # of so many earlier ones at least
IDLE = ("skipped", "notRun", None)      # statuses of stages that were not worked on
GONE = "its record is gone"
# Of which type is what is shown of a stage's record, or of its entry in that of a run.
FORMS: Dict[str, Any] = {
    **dict.fromkeys(("stage", "pipeline", "status", "reason", "lastError", "lastRunId", "startedAt", "endedAt"), str),
    **dict.fromkeys(("attempts", "lastInvocation", "durationMs", "bytesIn", "bytesOut"), int), "lastDurationSec": (int, float),
    "counts": dict, "tasks": dict}
EXPECTED_RUNS = 10          # looked at for how long a stage may take


class RunName(namedtuple("RunName", "run_id invocation state ended_at pipeline")):
    """A run as the ledger names it; state "open", ended_at and pipeline "" for one that has begun and not ended."""

    __slots__ = ()


class PastRun(namedtuple("PastRun", "run_id invocation pipeline state started_at ended_at duration_ms statuses worked problem")):
    """A run; several pipelines may share a root. statuses: {status: number of stages}; worked: the entries of the stages that
    were worked on (there may be very many others); problem: why there is no record to go by, or "".

    state: completed, failed, interrupted; running while its process is seen; open: begun, not ended, nothing of it is seen.
    """

    __slots__ = ()

    def count(self, *statuses: str) -> int:
        """Return how many stages ended in one of *statuses*."""
        return sum(self.statuses.get(status, 0) for status in statuses)


# --- which runs there were -------------------------------------------------------------------------------------------

def newest_runs(root: str, limit: int) -> Tuple[List[PastRun], List[str]]:
    """Return (at most *limit* runs, newest first; what could not be read, a line each)."""
    problems: List[str] = []
    names, pruned = _names_in_ledger(root, limit, problems)
    stages: Records = functools.lru_cache(maxsize=None)(lambda: _stage_records(root))
    runs = [_run_of(root, one, problems, (one.run_id, one.invocation) in pruned, stages) for one in names]
    if any(one.problem == GONE for one in runs):        # gc, or the end of a run, may have come since the ledger was read
        pruned = _names_in_ledger(root, limit, [])[1]
        runs = [_run_of(root, name, problems, (name.run_id, name.invocation) in pruned, stages) if one.problem == GONE else one
                for name, one in zip(names, runs)]
    runs = _with_starts(root, runs)
    if len(runs) < limit:
        others = _runs_by_time(root, limit - len(runs), {(one.run_id, one.invocation) for one in runs}, problems, stages)
        lacking = _not_in_ledger(root, others) if runs else 0
        if lacking:
            problems.append("state/%s does not have %d of the finished runs: it was cut off, or begun anew; `verify` tells more" % (
                run_ledger.NAME, lacking))
        runs = _merged(runs, others)
    if runs and not names and not any("cannot be read" in problem for problem in problems):
        why = "has no entry" if os.path.lexists(os.path.join(root, "state", run_ledger.NAME)) else "is missing"
        problems.append("state/%s %s: the runs are shown as their records tell, for which nothing vouches" % (run_ledger.NAME, why))
    return runs, problems


def _not_in_ledger(root: str, others: List[PastRun]) -> int:
    """Return how many of these runs have ended and have no entry, also now: one may have ended since the ledger was read."""
    ended = {(one.run_id, one.invocation) for one in others if one.ended_at}
    return len(ended - {(one.run_id, one.invocation) for one in _names_in_ledger(root, sys.maxsize, [])[0]}) if ended else 0


def _merged(runs: List[PastRun], others: List[PastRun]) -> List[PastRun]:
    """Put runs that only records tell of among those of the ledger, by time; its own order stays, for a clock may have been
    wrong. Newest first."""
    merged: List[PastRun] = []
    rest = sorted(others, key=_time_of, reverse=True)
    for run in runs:
        while rest and _time_of(rest[0]) > _time_of(run):
            merged.append(rest.pop(0))
        merged.append(run)
    return merged + rest


def _time_of(run: PastRun) -> Tuple[bool, str]:
    return run.state in ("running", "open"), run.ended_at or run.started_at


def _names_in_ledger(root: str, limit: int, problems: List[str]) -> Tuple[List[RunName], Set[Tuple[str, int]]]:
    """Return (the open runs and the last that ended, (run id, call) of those that gc removed since)."""
    names: List[RunName] = []
    pruned: Set[Tuple[str, int]] = set()
    is_newest, damaged = True, 0
    path = os.path.join(root, "state", run_ledger.NAME)
    for line, is_whole in _lines_from_end(path, problems):
        entry = _entry_of(line)
        if entry is None:
            # A torn last line is a crash's, or is being written.
            damaged += is_whole and not (is_newest and is_unwritten(line))
            continue
        if is_newest:
            is_newest = False
            names += [RunName(run_id, invocation, "open", "", "") for run_id, invocation in sorted(entry["open"].items())]
        if entry["event"] == "gc":
            removed = entry.get("removed")
            pruned.update((one[0], one[1]) for one in (removed if isinstance(removed, list) else ())
                          if isinstance(one, list) and len(one) == 3 and run_ledger.is_file_stem(one[0]) and isinstance(one[1], int))
        elif entry["event"] == "end":
            names.append(RunName(entry["runId"], entry["invocation"], str(entry.get("state")), _text(entry.get("at")), _text(entry.get("pipeline"))))
        if len(names) >= limit:
            break
    if damaged:
        problems.append("state/%s: %d damaged line%s left out; `verify` tells more" % (run_ledger.NAME, damaged, "" if damaged == 1 else "s"))
    return names[:limit], pruned


def gone_text(root: str, run_id: str) -> str:
    """Return what became of a run that has neither a record nor logs, as the ledger tells; "" if it does not know the run."""
    names, pruned = _names_in_ledger(root, sys.maxsize, [])
    if any(one[0] == run_id for one in pruned):
        return "the logs of run %s were removed by gc" % run_id
    return "run %s has neither a record nor logs" % run_id if any(one.run_id == run_id for one in names) else ""


def _with_starts(root: str, runs: List[PastRun]) -> List[PastRun]:
    """Return runs of the ledger with when they began from there, where no record tells."""
    unmet = {(one.run_id, one.invocation) for one in runs if not one.started_at}
    started = _starts_in_ledger(root, unmet) if unmet else {}
    return [one if one.started_at else one._replace(started_at=started.get((one.run_id, one.invocation), "")) for one in runs]


def _starts_in_ledger(root: str, unmet: Set[Tuple[str, int]]) -> Dict[Tuple[str, int], str]:
    """Return {run: when it began}, reading no further than these runs may stand; *unmet* is used up.

    A run in which nothing had to run has entered its end only: it was not open after the entry before that.
    """
    started: Dict[Tuple[str, int], str] = {}
    ended: Set[Tuple[str, int]] = set()
    for line, _ in _lines_from_end(os.path.join(root, "state", run_ledger.NAME), []):
        entry = _entry_of(line)
        if entry is None:
            continue
        run = (entry["runId"], entry["invocation"])
        ended &= set(entry["open"].items())
        if entry["event"] == "begin" and run in unmet | ended:
            started[run] = _text(entry.get("at"))
            unmet.discard(run)
            ended.discard(run)
        elif entry["event"] == "end" and run in unmet:
            unmet.discard(run)
            ended.add(run)
        if not unmet and not ended:
            break
    return started


def _runs_from_end(root: str) -> Iterator[Tuple[str, int]]:
    """Yield (run id, call) as the ledger has them: the open runs, then those that ended, the last one first."""
    is_newest = True
    for line, _ in _lines_from_end(os.path.join(root, "state", run_ledger.NAME), []):
        entry = _entry_of(line)
        if entry is None:
            continue
        if is_newest:
            yield from sorted(entry["open"].items())
        if entry["event"] == "end":
            yield entry["runId"], entry["invocation"]
        is_newest = False


def _entry_of(line: bytes) -> Optional[Json]:
    try:
        entry = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    is_good = isinstance(entry, dict) and isinstance(entry.get("event"), str) and run_ledger.is_file_stem(entry.get("runId")) and isinstance(
        entry.get("invocation"), int) and isinstance(entry.get("open"), dict) and all(
            run_ledger.is_file_stem(name) and isinstance(number, int) for name, number in entry["open"].items())
    return entry if is_good else None


def _lines_from_end(path: str, problems: List[str]) -> Iterator[Tuple[bytes, bool]]:
    """Yield (line, whether it has its end) from the last to the first, reading blocks from the end."""
    try:
        file = open_file(path)
    except FileNotFoundError:
        return
    except OSError as error:
        problems.append("state/%s cannot be read: %s" % (run_ledger.NAME, error.strerror))
        return
    with naming(path), file:
        place = file.seek(0, os.SEEK_END)
        rest, is_whole = b"", False
        while place > 0:
            start = max(0, place - BLOCK_BYTES)
            file.seek(start)
            parts = (file.read(place - start) + rest).split(b"\n")
            place, rest = start, parts[0]
            for line in reversed(parts[1:]):
                if line:
                    yield line, is_whole
                is_whole = True
        if rest:
            yield rest, is_whole


def _run_of(root: str, name: RunName, problems: List[str], is_pruned: bool, stages: Records) -> PastRun:
    record, problem = read_run(root, name.run_id, name.invocation)
    if record is None:
        if problem:
            problems.append(problem)
        return PastRun(name.run_id, name.invocation, name.pipeline, _state_of(root, name.state, name.run_id), "", name.ended_at, None, {}, [],
                       problem or ("removed by gc" if is_pruned else "it has no record yet" if name.state == "open" else GONE))
    return _past_run(root, record, name.state if name.state != "open" else "running", stages)


def _past_run(root: str, record: Json, state: str, stages: Records) -> PastRun:
    told = record["stages"] if isinstance(record.get("stages"), list) else []
    entries = [sound(one) for one in told if isinstance(one, dict)]
    shown = _state_of(root, "open" if state == "running" else state, record["runId"])
    if shown in ("running", "open") or is_closed_as_dead(record):
        known = {one.get("stage") for one in entries}
        entries = entries + [one for one in _entries_of(root, stages(), record["runId"], record["invocation"], shown == "running")
                             if one["stage"] not in known]
    statuses = [one["status"] for one in entries if one.get("status")]
    duration = record.get("durationMs")
    return PastRun(record["runId"], record["invocation"], _text(record.get("pipeline")), shown, _text(record.get("startedAt")),
                   _text(record.get("endedAt")), duration if is_integer(duration) else None,
                   {status: statuses.count(status) for status in set(statuses)}, [one for one in entries if one.get("status") not in IDLE], "")


def sound(record: Json) -> Json:
    """Return a stage's record, or its entry in that of a run, with None for each value of another type than the runner writes: of
    that nothing is known. What is no number among counts and tasks is left out."""
    kept: Json = {name: value if name not in FORMS or isinstance(value, FORMS[name]) and not isinstance(value, bool) else None
                  for name, value in record.items()}
    if "lastRunId" in kept and not run_ledger.is_file_stem(kept["lastRunId"]):
        kept["lastRunId"] = None
    for name in ("counts", "tasks"):
        if kept.get(name):
            kept[name] = {key: value for key, value in kept[name].items() if is_integer(value) or key == "outputsSha256" and isinstance(value, str)}
    return kept


def is_closed_as_dead(record: Json) -> bool:
    """Tell whether a later run has written the end of this one: when it died nobody knows, and what it worked on stages tell."""
    return record.get("state") == "interrupted" and record.get("endedAt") is None


def entries_of_stages(root: str, run_id: str, invocation: int, lives: bool) -> List[Json]:
    """Return entries of the stages that a run works on or has finished, by their own records: the run's record lags behind, or
    its runner died: what it was at work on then has died, too."""
    return _entries_of(root, _stage_records(root), run_id, invocation, lives)


def _stage_records(root: str) -> List[Json]:
    """Return the records of the stages, without those that cannot be read."""
    names = sorted(name for name in _listed(os.path.join(root, "state")) if name.startswith("stage_") and name.endswith(".json"))
    return [sound(record) for record in (_read_record(root, name)[0] for name in names) if record is not None]


def _entries_of(root: str, records: List[Json], run_id: str, invocation: int, lives: bool) -> List[Json]:
    found = []
    for record in records:
        if (record.get("lastRunId"), record.get("lastInvocation", 1)) != (run_id, invocation):
            continue
        seconds: Any = record.get("lastDurationSec")
        status = _text(record.get("lastStatus"))
        is_over = status != "running"
        found.append({"stage": _text(record.get("stage")), "status": status if is_over or lives else "died", "reason": _text(record.get("lastError")),
                      "attempts": record.get("attempts") if is_over else attempts_begun(root, run_id, invocation, _text(record.get("stage"))),
                      "startedAt": record.get("startedAt"), "counts": record.get("counts"), "tasks": record.get("tasks"),
                      "outputs": record.get("outputs"), "durationMs": milliseconds(seconds) if is_over else None})
    return found


def log_folder(root: str, run_id: str, invocation: int) -> str:
    """Return the folder of the logs of one call of a run."""
    return os.path.join(root, "state", "logs", run_id, *([str(invocation)] if invocation > 1 else []))


def attempts_begun(root: str, run_id: str, invocation: int, stage: str) -> int:
    """Return how many attempts of a stage a run has begun, by their logs: the stage's record is written before the first one."""
    try:
        names = os.listdir(log_folder(root, run_id, invocation))
    except OSError:
        return 0
    begun = [name[len(stage) + 1:-len(".log")] for name in names if name.startswith(stage + ".") and name.endswith(".log")]
    return max([int(number) for number in begun if number.isdecimal()], default=0)


def _state_of(root: str, state: str, run_id: str) -> str:
    if state != "open":
        return state
    return "running" if run_id in living_runs(root) else "open"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _runs_by_time(root: str, limit: int, known: Any, problems: List[str], stages: Records) -> List[PastRun]:
    """Return the runs that only their records tell of (their ledger was set aside, say), newest first."""
    runs: List[PastRun] = []
    for _, name in sorted(record_files(os.path.join(root, "state")), reverse=True):
        if len(runs) >= limit:
            break
        record, problem = _read_record(root, name)
        if record is not None and run_ledger.is_file_stem(record.get("runId")) and is_integer(record.get("invocation")):
            if (record["runId"], record["invocation"]) not in known:
                runs.append(_past_run(root, record, str(record.get("state")), stages))
        elif problem and problem not in problems:
            problems.append(problem)
    return runs


def record_files(folder: str) -> List[Tuple[int, str]]:
    """Return (time of writing in ns, name) of the run records in a folder, [] if it cannot be listed."""
    try:
        with os.scandir(folder) as entries:
            return [(entry.stat().st_mtime_ns, entry.name) for entry in entries if entry.name.startswith("run_") and entry.name.endswith(".json")]
    except OSError:
        return []


def record_names(root: str) -> List[str]:
    """Return the names of the run records, those of the newest runs first.

    What ended later by the ledger is newer, whatever its file's time says: the clock may have been wrong for a while. What the
    ledger does not know goes by that time.
    """
    times = {name: written for written, name in record_files(os.path.join(root, "state"))}
    places: Dict[str, int] = {}
    seen: Set[str] = set()
    newer = ""
    for run_id, invocation in _runs_from_end(root):
        if len(places) == len(times):
            break
        name = "run_%s.%d.json" % (run_id, invocation) if run_id in seen else "run_%s.json" % run_id
        seen.add(run_id)
        if name in times and name not in places:
            times[name] = min(times[name], times[newer]) if newer else times[name]
            places[name] = -len(places)
            newer = name
    return sorted(times, key=lambda name: (times[name], places.get(name, 0), name), reverse=True)


def read_run(root: str, run_id: str, invocation: Optional[int] = None) -> Tuple[Optional[Json], str]:
    """Return (the record of a run, or None; what is wrong with it, or ""); without *invocation* that of its last call."""
    problem = ""
    names = ["run_%s.json" % run_id] + (["run_%s.%d.json" % (run_id, invocation)] if invocation is not None else [])
    for name in names:
        record, why = _read_record(root, name)
        problem = problem or why
        if record is not None and record.get("runId") == run_id and is_integer(record.get("invocation")) and invocation in (
            None, record["invocation"]):
            return record, ""
    return None, problem


def other_spelling(root: str, run_id: str) -> str:
    """Return the id of a run that is called *run_id* but for capital and small letters, where none is called just so; else "".

    Its files are found under both names where a file system does not tell them apart: its record says what it is called.
    """
    record, _ = _read_record(root, "run_%s.json" % run_id)
    names: List[Any] = []
    if record is not None:
        names = [record.get("runId")]
    else:
        state = os.path.join(root, "state")
        names = [name[len("run_"):-len(".json")] for name in _listed(state) if name.startswith("run_")
                 and name.endswith(".json")] + _listed(os.path.join(state, "logs"))
    others = [name for name in names if isinstance(name, str) and name.casefold() == run_id.casefold()]
    return "" if run_id in others else (others + [""])[0]


def _listed(folder: str) -> List[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _read_record(root: str, name: str) -> Tuple[Optional[Json], str]:
    try:
        return state_store.StateStore(root, writable=False).read(name), ""
    except (state_store.StateError, OSError) as error:
        return None, "state/%s: %s" % (name, error.strerror) if isinstance(error, OSError) else str(error)


def read_stage(root: str, stage: str) -> Tuple[Optional[Json], str]:
    """Return (the record of a stage, or None; what is wrong with it, or "")."""
    try:
        record = state_store.StateStore(root, writable=False).stage(stage)
        record = sound(record) if record is not None else None
        return _with_end(root, record) if record is not None and record["lastStatus"] == "running" else record, ""
    except (state_store.StateError, OSError) as error:
        return None, "state/stage_%s.json: %s" % (stage, error.strerror) if isinstance(error, OSError) else str(error)


def _with_end(root: str, record: Json) -> Json:
    """Return the record of a stage at work, with the end of that which its run's record tells: the runner could not go on, on a
    full disk, say, and has ended in good order."""
    told, _ = read_run(root, _text(record.get("lastRunId")), record.get("lastInvocation"))
    if told is None or told.get("state") == "running" or is_closed_as_dead(told) or not isinstance(told.get("stages"), list):
        return record
    entry = next((sound(one) for one in told["stages"] if isinstance(one, dict) and one.get("stage") == record["stage"]), {})
    if entry.get("status") not in ("failed", "interrupted"):
        return record
    duration: Any = entry.get("durationMs")
    tasks = {"tasks": entry["tasks"]} if isinstance(entry.get("tasks"), dict) else {}
    return dict(record, **tasks, lastStatus=entry["status"], lastError=_text(entry.get("reason")), attempts=entry.get("attempts"), endedAt=told.get("endedAt"),
                lastDurationSec=duration / 1000.0 if is_integer(duration) else None)


# --- who works now ---------------------------------------------------------------------------------------------------

def holders(root: str) -> Dict[str, Json]:
    """Return {stage: what its living holder says of itself}, from the lock folders; takes none of them.

    A command that is no run (clean, say) has no runId here, but `command`.
    """
    try:
        names = [name for name in os.listdir(os.path.join(root, "locks")) if name.endswith(".lock") and not name.startswith(".")]
    except OSError:
        return {}
    found = {name[:-5]: stage_locks.read_owner(os.path.join(root, "locks", name)) for name in names}
    if not any(found.values()):
        return {}
    import process_tree
    boot = state_store.boot_id()
    return {stage: dict(owner, runId=None) if owner.get("command") else owner for stage, owner in found.items()
            if owner and not stage_locks.owner_is_dead(owner, boot, process_tree) and not stage_locks.was_left_by_another_host(root, stage, owner)}


def living_runs(root: str) -> List[str]:
    """Return the ids of the runs that hold a stage now."""
    return sorted({str(owner.get("runId")) for owner in holders(root).values() if not owner.get("command")})


# --- series ----------------------------------------------------------------------------------------------------------

def stage_series(runs: List[PastRun], stage: str) -> List[Tuple[PastRun, Json]]:
    """Return (run, the stage's entry in it) where the stage was worked on, oldest first; skips are no work."""
    found = []
    for run in reversed(runs):
        for entry in run.worked:
            if entry.get("stage") == stage:
                found.append((run, entry))
    return found


def durations_ms(runs: List[PastRun]) -> Dict[str, List[int]]:
    """Return {stage: durations of its successes, oldest first}."""
    found: Dict[str, List[int]] = {}
    for run in reversed(runs):
        for entry in run.worked:
            duration = entry.get("durationMs")
            if entry.get("status") == "ok" and not entry.get("recovered") and isinstance(entry.get("stage"), str) and is_integer(duration):
                found.setdefault(entry["stage"], []).append(duration)
    return found


def median(values: List[int]) -> Optional[int]:
    """Return the middle value, of two middle ones the mean (rounded down); None for none."""
    ordered = sorted(values)
    half = len(ordered) // 2
    if not ordered:
        return None
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) // 2


def is_slow(durations: List[int]) -> bool:
    """Tell whether the last of *durations* (in ms, oldest first) is much longer than the earlier ones let expect."""
    *earlier, last = durations or [0]
    usual = median(earlier)
    return len(earlier) >= EARLIER_LEAST and usual is not None and last >= SLOW_FACTOR * usual and last - usual >= SLOW_LEAST_MS


def expected_durations(root: str) -> Dict[str, float]:
    """Return {stage: seconds that it took lately, the median}, for a guess of the time left; never raises."""
    try:
        series = durations_ms(newest_runs(root, EXPECTED_RUNS)[0])
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return {stage: (median(values) or 0) / 1000.0 for stage, values in series.items()}
