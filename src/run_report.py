"""What a report says of one run: gathered from the records, which are material: gone, damaged or edited ones are named, the rest is used.

Above the leaves, run_history and pipeline_graph. Only reads.

    state/run_<id>.json, metrics_<id>.json, stage_<name>.json, progress_<name>.json, tasks_<name>.jsonl, ledger.jsonl, logs
        -> gather() -> Report
"""
from __future__ import annotations

import json
import os
import time
from collections import namedtuple

import pipeline_graph
import provenance
import run_history
import run_ledger
import stage_progress
import stage_waits
from ledger_format import found_hash, head_text
from model import UsageError, sha256
from primitives import open_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

    from model import PipelineSpec
    Json = Dict[str, Any]

HISTORY_RUNS = 30           # earlier runs in a sparkline, at most
TAIL_BYTES, TAIL_LINES = 16 << 10, 40
SHOWN_TASKS = 20            # failed tasks that are listed for a stage
LOGGED_TASKS, TASK_LINES = 10, 10       # of so many of them the log is shown, with so many lines
LISTED_RECORDS = 2000       # newest run records that are looked through for the last run, and for the history
LAG_S = 1.0                 # times of files, the last signs of life of a run that died, may be so much behind
CUT_SHORT = ("running", "died")         # their times are told up to now, or to the last sign of life
WORKED = ("ok", "failed", "interrupted", *CUT_SHORT)


class Report(namedtuple("Report", (
        "pipeline description run_id invocation state started ended duration_s about stages totals isolation ledger history notes nodes edges generated"))):
    """A run as a report shows it. started, ended: seconds since the epoch or None. stages: [Stage]. totals: [Total].

    about: [(name, value)]. history: [(run id, state, seconds)] of the runs up to this one, the oldest first.
    notes: what is missing, damaged or does not fit.
    """

    __slots__ = ()


class Stage(namedtuple("Stage", (
        "name status reason spans duration_s attempts counts bytes_in bytes_out cpu_s rss_bytes outputs tasks failed_tasks logs progress history kept"))):
    """A stage of a run. spans: [(start, end, "ok" or "failed" or "running", text)] of its attempts, seconds from the run's start.

    counts, tasks: {name: number}. logs: [(path, text of its end, whether cut)] of what failed. progress: a text or "".
    history: [(seconds, failed)] over runs in which it was worked on. kept: (counts of what is in its outputs, whether that is
    certain).
    """

    __slots__ = ()


class Total(namedtuple("Total", "stage read written rejected inside before expected makers is_strict")):
    """A control total. inside: read - written - rejected. expected: what the makers wrote, None if that cannot be known.

    before: read - expected, None likewise; a stage that the run passed and that reconciles was not compared if it differs.
    is_strict: the spec asks that both are 0.
    """

    __slots__ = ()


# --- careful reading -------------------------------------------------------------------------------------------------

def read_json(path: str) -> Tuple[Any, str]:
    """Return (value or None, why it cannot be used or "")."""
    try:
        with open_file(path) as file:
            value = json.loads(file.read().decode("utf-8"))
    except FileNotFoundError:
        return None, "is missing"
    except OSError as error:
        return None, "cannot be read: %s" % error.strerror
    except (ValueError, RecursionError):
        return None, "is damaged (not JSON)"
    return (value, "") if isinstance(value, dict) else (None, "is damaged (not an object)")


def text_of(value: Any) -> str:
    return value if isinstance(value, str) else ""


def number_of(value: Any) -> float:
    """Return a finite number >= 0, 0 for anything else."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value if is_number and 0 <= value < 1e18 else 0


def numbers_of(value: Any) -> Dict[str, int]:
    found = value.items() if isinstance(value, dict) else ()
    return {str(name): int(number_of(count)) for name, count in found}


def objects_of(value: Any) -> List[Json]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def epoch(value: Any) -> Optional[float]:
    """Return seconds since the epoch of a time in a record, None if it is none."""
    import calendar
    if not isinstance(value, str) or not provenance.TIME.fullmatch(value):
        return None
    try:
        whole = calendar.timegm(time.strptime(value[:19], "%Y-%m-%dT%H:%M:%S"))
    except ValueError:
        return None
    return whole + float("0" + (value[19:].rstrip("Z") or ".0"))


# --- which run -------------------------------------------------------------------------------------------------------

def run_records(folder: str) -> Iterator[Tuple[str, Json]]:
    """Yield (name, record) of the run records that can be read, those of the newest runs first; at most LISTED_RECORDS."""
    for name in run_history.record_names(os.path.dirname(folder))[:LISTED_RECORDS]:
        record, problem = read_json(os.path.join(folder, name))
        if not problem:
            yield name, record


def find_run(folder: str, pipeline: str, run_id: Optional[str]) -> Tuple[str, Optional[Json], str]:
    """Return (run id, record or None, what is wrong with it or ""). Raises: UsageError where nothing is known of such a run."""
    if run_id is not None:
        other = run_history.other_spelling(os.path.dirname(folder), run_id)
        if other:
            raise UsageError("there is no run %s; there is a run %s" % (run_id, other))
        record, problem = read_json(os.path.join(folder, "run_%s.json" % run_id))
        traces = [os.path.join(folder, "logs", run_id), os.path.join(folder, "metrics_%s.json" % run_id)]
        if problem == "is missing" and not any(os.path.exists(path) for path in traces):
            raise UsageError("no record of run %s is in %s, or not any more; `history` lists the runs, and which gc has removed" % (run_id, folder))
        return run_id, record, "state/run_%s.json %s" % (run_id, problem) if problem else ""
    for _, record in run_records(folder):
        if record.get("pipeline") == pipeline and run_ledger.is_file_stem(record.get("runId")):
            return record["runId"], record, ""
    raise UsageError("no run of pipeline %s is recorded in %s; %s" % (pipeline, folder, _unread_text(folder) or "run it first"))


def _unread_text(folder: str) -> str:
    """Return which run record cannot be read, "" if none is like that."""
    names = sorted(name for name in (os.listdir(folder) if os.path.isdir(folder) else ()) if name.startswith("run_") and name.endswith(".json"))
    unread = ["%s %s" % (name, problem) for name, problem in ((name, read_json(os.path.join(folder, name))[1]) for name in names[:LISTED_RECORDS])
              if problem]
    return "%d run record%s cannot be read (%s)" % (len(unread), "" if len(unread) == 1 else "s", unread[0]) if unread else ""


# --- gathering -------------------------------------------------------------------------------------------------------

def gather(spec: PipelineSpec, run_id: Optional[str], now: float, is_alive: Callable[[str], Optional[bool]] = lambda run_id: True) -> Report:
    """Return all that is known of a run, of the last one for None. is_alive: tells whether a run's runner lives, None where nobody
    knows. Raises: UsageError where nothing is."""
    folder = os.path.join(spec.root, "state")
    run_id, found, problem = find_run(folder, spec.name, run_id)
    notes = [problem] if problem else []
    record: Json = found or {}
    invocation = int(number_of(record.get("invocation"))) or 1
    _check_record(run_id, record, notes)
    metrics, problem = read_json(os.path.join(folder, "metrics_%s.json" % run_id))
    if problem and record.get("state") != "running":
        notes.append("state/metrics_%s.json %s: no processor time and memory" % (run_id, problem))
    if not _has_own_metrics(folder, run_id, record):
        later = read_json(os.path.join(folder, "run_%s.json" % run_id))[0]
        if later is not None and text_of(later.get("runHash")) != text_of(record.get("runHash")):       # a call under the same id has come in between
            return gather(spec, run_id, now, is_alive)
        if later is not None:
            notes.append("state/metrics_%s.json was changed after the run: it does not fit the run record" % run_id)
    if metrics is not None and run_history.is_closed_as_dead(record) and not record.get("metrics"):
        notes.append("state/metrics_%s.json is not named by the run record: nothing vouches for processor time and memory" % run_id)
    measured = {text_of(one.get("stage")): one for one in objects_of((metrics or {}).get("stages"))}
    pipeline = text_of(record.get("pipeline")) or spec.name
    if pipeline != spec.name:
        notes.append("this is a run of pipeline %s, and %s is that of pipeline %s: no graph; give the file of %s with --pipeline" % (
            pipeline, os.path.basename(spec.path), spec.name, pipeline))
        spec = spec._replace(name=pipeline, description="", stages=())
    history = _history(folder, pipeline, record)
    started = epoch(record.get("startedAt"))
    entries = objects_of(record.get("stages"))
    if not entries and measured:
        notes.append("stages, durations and counts are those of the metrics: the run record does not have them")
        entries = [dict(one, durationMs=number_of(one.get("durationSec")) * 1000) for one in measured.values()]
    nodes, edges = pipeline_graph.graph_of(spec, stage_waits.edges_of(spec))
    state = text_of(record.get("state")) or "unknown"
    made = now
    is_closed = run_history.is_closed_as_dead(record)
    lives = is_alive(run_id) if state in ("running", "unknown") else not is_closed
    if is_closed or state == "running" and not lives:
        now = min(now, _last_sign(folder, run_id, invocation, is_closed) or now)
        notes.append("the runner of this run died, and a later run has closed it" if is_closed else
                     "no process of this run is found: most likely its runner has died, or it is between two stages" if lives is None else
                     "the runner of this run has died; the next run closes it, and resumes what can be resumed")
        notes[-1] += ". Times are those of its last sign of life"
        state = state if is_closed else "open" if lives is None else "died"
    ended = epoch(record.get("endedAt"))
    duration_s = _duration_s(record, started, ended, now)
    stages = _stages(folder, spec, run_id, invocation, record, _all_entries(spec, run_id, invocation, record, entries, bool(lives)), measured, history,
                     _Times(started, duration_s), now)
    status = {stage.name: stage.status for stage in stages}
    nodes = [node._replace(status=status.get(node.label, "unused") if node.kind == "stage" else "") for node in nodes]
    return Report(pipeline, spec.description, run_id, invocation, state, started, ended, duration_s,
                  _about(record), stages, _totals(spec, stages, edges),
                  record["isolation"] if isinstance(record.get("isolation"), dict) else {},
                  _ledger(folder, run_id, invocation, record, notes),
                  [(one[0], one[1], one[2]) for one in history if one[2] is not None], notes, nodes, edges, made)


def _last_sign(folder: str, run_id: str, invocation: int, is_closed: bool) -> float:
    """Return when a run that died last wrote anything, in seconds since the epoch; 0.0 if nothing of it is left. is_closed: its record was written
    by a later run."""
    root = os.path.dirname(folder)
    logs = run_history.log_folder(root, run_id, invocation)
    names = [] if is_closed else ["run_%s.json" % run_id]
    names += ["%s_%s.json" % (kind, one["stage"]) for one in run_history.entries_of_stages(root, run_id, invocation, False) for kind in ("stage", "progress")]
    paths = [os.path.join(folder, name) for name in names] + [os.path.join(logs, name) for name in (os.listdir(logs) if os.path.isdir(logs) else ())]
    return max([os.lstat(path).st_mtime for path in paths if os.path.lexists(path)], default=0.0)


def _duration_s(record: Json, started: Optional[float], ended: Optional[float], now: float) -> Optional[float]:
    if number_of(record.get("durationMs")):
        return float(record["durationMs"] / 1000)
    if started is None:
        return None
    if ended is not None:
        return max(0.0, ended - started)
    return max(0.0, now - started) if record.get("state") == "running" or run_history.is_closed_as_dead(record) else None


def _check_record(run_id: str, record: Json, notes: List[str]) -> None:
    """Note where a sealed record is not what its own hash says."""
    if "runHash" not in record:
        return
    if found_hash(record) != record["runHash"]:
        notes.append("state/run_%s.json was changed after the run: it does not fit its own hash; `verify` tells more" % run_id)


def _has_own_metrics(folder: str, run_id: str, record: Json) -> bool:
    """Tell whether the metrics that are there are not other ones than the record of the run names."""
    told = record.get("metrics")
    if not isinstance(told, dict) or not isinstance(told.get("sha256"), str):
        return True
    try:
        with open_file(os.path.join(folder, "metrics_%s.json" % run_id)) as file:
            data = file.read()
    except OSError:
        return True
    return bool(sha256(data).hexdigest() == told["sha256"])


def _history(folder: str, pipeline: str, record: Json) -> List[Tuple[str, str, Optional[float], Dict[str, Json]]]:
    """Return [(run id, state, seconds, {stage: entry})] of the runs of the pipeline up to this one, the oldest first."""
    found = []
    this = record.get("runId"), record.get("invocation")
    is_later = bool(record)             # than this one
    for _, one in run_records(folder):
        is_later = is_later and (one.get("runId"), one.get("invocation")) != this
        if one.get("pipeline") == pipeline and not is_later:
            duration = one.get("durationMs")
            entries = {text_of(entry.get("stage")): entry for entry in objects_of(one.get("stages"))}
            found.append((text_of(one.get("runId")), text_of(one.get("state")), number_of(duration) / 1000 if duration is not None
                          else None, entries))
            if len(found) >= HISTORY_RUNS:
                break
    return found[::-1]


def _about(record: Json) -> List[Tuple[str, str]]:
    names = (("version", "version"), ("host", "host"), ("user", "user"), ("runner", "runner"), ("python", "Python"), ("os", "system"),
             ("specSha256", "pipeline file"))
    return [(shown, text_of(record[name])[:12 if name == "specSha256" else None]) for name, shown in names if text_of(record.get(name))]


def _ledger(folder: str, run_id: str, invocation: int, record: Json, notes: List[str]) -> Dict[str, str]:
    """Return {"head": of the entry that ended the run, "hash": runHash, "sealed": ...}, {} where the ledger does not know it."""
    try:
        with open_file(os.path.join(folder, "ledger.jsonl")) as file:
            lines = file.read().splitlines()
    except OSError as error:
        notes.append("state/ledger.jsonl cannot be read: %s" % error.strerror)
        return {}
    mark = json.dumps(run_id, ensure_ascii=False).encode("utf-8", "replace")
    for line in reversed(lines):
        if mark not in line:
            continue
        try:
            entry = json.loads(line.decode("utf-8"))
            if (entry["runId"], entry["invocation"], entry["event"]) == (run_id, invocation, "end"):
                if "runHash" in record and entry.get("runHash") != record["runHash"]:
                    notes.append("the ledger has another hash for this run than its record; `verify` tells more")
                return {"head": head_text(entry), "hash": text_of(entry.get("runHash")),
                        "sealed": text_of((entry.get("seal") or {}).get("keyId"))}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue
    if record.get("state") not in ("running", None):
        notes.append("state/ledger.jsonl has no end of this run")
    return {}


# --- stages ----------------------------------------------------------------------------------------------------------

def _all_entries(spec: PipelineSpec, run_id: str, invocation: int, record: Json, entries: List[Json], lives: bool) -> List[Json]:
    """Return the entries of a run's stages, also of those that it worked on last, of which only their own records tell."""
    if record.get("state") not in ("running", None, "interrupted"):
        return entries
    known = {text_of(one.get("stage")) for one in entries}
    others = {one["stage"]: one for one in run_history.entries_of_stages(spec.root, run_id, invocation, lives) if one["stage"] not in known}
    place = {stage.name: number for number, stage in enumerate(spec.stages)}
    return entries + [others[name] for name in sorted(others, key=lambda name: (place.get(name, len(place)), name))]


def _stages(folder: str, spec: PipelineSpec, run_id: str, invocation: int, record: Json, entries: List[Json], measured: Dict[str, Json],
            history: List[Any], times: _Times, now: float) -> List[Stage]:
    found, clock = [], 0.0
    for one in entries:
        name, duration_s = text_of(one.get("stage")) or "?", number_of(one.get("durationMs")) / 1000
        spans = _spans(one, times, clock, now if one.get("status") in CUT_SHORT else None)
        clock = max([clock] + [span[1] for span in spans])
        numbers, tasks = measured.get(name, {}), numbers_of(one.get("tasks"))
        status = text_of(one.get("status")) or "unknown"
        earlier = [(number_of(entry.get("durationMs")) / 1000, entry.get("status") != "ok") for _, _, _, by_name in history
                   for entry in [by_name.get(name)] if entry is not None and entry.get("status") in WORKED]
        failed = _failed_tasks(folder, one, "%s/%d" % (run_id, invocation)) if tasks.get("failed") else []
        found.append(Stage(
            name, status, text_of(one.get("reason")), spans, duration_s or sum(span[1] - span[0] for span in spans),
            int(number_of(one.get("attempts"))), numbers_of(one.get("counts")),
            number_of(one.get("bytesIn")), number_of(one.get("bytesOut")), number_of(numbers.get("cpuSec")), number_of(numbers.get("maxRssBytes")),
            len(objects_of(one.get("outputs"))), tasks, failed,
            _task_tails(folder, one, failed) if failed
            else _log_tails(folder, run_id, invocation, name, one) if status in ("failed", "interrupted", *CUT_SHORT) else [],
            _progress(folder, name) if status in CUT_SHORT else "", earlier, _kept_counts(folder, run_id, invocation, one)))
    return found


def _kept_counts(folder: str, run_id: str, invocation: int, entry: Json) -> Tuple[Dict[str, int], bool]:
    """Return (the counts of what is in a stage's outputs, whether that is certain): only its record tells, until a later run
    replaces it."""
    made_by = entry["madeBy"] if isinstance(entry.get("madeBy"), dict) else {"runId": run_id, "invocation": invocation}
    name, counts = text_of(entry.get("stage")), numbers_of(entry.get("counts"))
    record = read_json(os.path.join(folder, "stage_%s.json" % name))[0] if not set(name) & set("/\\") else None
    if record is None or (record.get("lastRunId"), record.get("lastInvocation", 1)) != (made_by.get("runId"), made_by.get("invocation")):
        return counts, "tasks" not in entry
    return numbers_of(record["inOutputs"]) if "inOutputs" in record else counts, True


class _Times(namedtuple("_Times", "started duration_s")):
    """When a run began, in seconds since the epoch, and how long it took or takes; None each where the record does not tell."""

    __slots__ = ()

    def place(self, value: Any, after: float) -> float:
        """Return where on the run's time line a time in its record is; *after*, the end of what was before it, where it does not tell:
        it is none, or lies outside of the run, for the clock was set meanwhile."""
        moment = epoch(value)
        at = moment - self.started if moment is not None and self.started is not None else -1.0
        return after if at < 0 or self.duration_s is not None and at > self.duration_s + LAG_S else at


def _spans(entry: Json, times: _Times, clock: float, now: Optional[float]) -> List[Tuple[float, float, str, str]]:
    """Return the attempts of a stage in time; where the record does not tell when they began, one after the other."""
    if entry.get("status") not in WORKED:
        return []
    start = times.place(entry.get("startedAt"), clock)
    name = text_of(entry.get("stage"))
    if now is not None:
        status = text_of(entry.get("status"))
        return [(start, max(start, now - (times.started or now)), "failed" if status == "died" else status, "%s: %s" % (name, status))]
    tries = objects_of(entry.get("tries"))
    spans: List[Tuple[float, float, str, str]] = []
    for number, one in enumerate(tries, 1):
        long_s = number_of(one.get("durationMs")) / 1000
        at = times.place(one.get("startedAt"), spans[-1][1] if spans else start)
        is_ok = number == len(tries) and entry.get("status") == "ok"
        spans.append((at, at + long_s, "ok" if is_ok else "failed",
                      "%s, attempt %d of %d: %.3f s, exit code %s" % (name, number, len(tries), long_s, one.get("exitCode"))))
    long_s = number_of(entry.get("durationMs")) / 1000
    return spans or [(start, start + long_s, "ok" if entry.get("status") == "ok" else "failed", "%s: %.3f s" % (name, long_s))]


def _log_path(folder: str, entry: Json, end: str, task: Optional[str] = None) -> str:
    """Return the path of the last log in a stage's entry whose name has this end, and of that task if one is given; "" without
    one that lies where logs lie."""
    for one in reversed(objects_of(entry.get("logs"))):
        path = text_of(one.get("path"))
        if path.endswith(end) and task in (None, one.get("task")) and path.startswith(provenance.LOG_FOLDER) and not provenance.member_problem(path):
            return os.path.join(os.path.dirname(folder), *path.split("/"))
    return ""


def _task_tails(folder: str, entry: Json, failed: List[Tuple[str, str]]) -> List[Tuple[str, str, bool]]:
    """Return the ends of the logs of the first failed tasks' last attempts."""
    return [tail for task, _ in failed[:LOGGED_TASKS] for tail in _tail(folder, _log_path(folder, entry, ".log", task), TASK_LINES)]


def _log_tails(folder: str, run_id: str, invocation: int, name: str, entry: Json) -> List[Tuple[str, str, bool]]:
    """Return the end of the last attempt's log, [] without one; paths out of records are kept below state/logs."""
    path = _log_path(folder, entry, ".log")
    if not path and not set(name) & set("/\\"):
        base = run_history.log_folder(os.path.dirname(folder), run_id, invocation)
        path = os.path.join(base, "%s.%d.log" % (name, max(1, int(number_of(entry.get("attempts"))))))
    return _tail(folder, path, TAIL_LINES)


def _tail(folder: str, path: str, count: int) -> List[Tuple[str, str, bool]]:
    """Return [(path, last lines, whether more stands before them)] of a log, [] if it cannot be read."""
    try:
        with open_file(path) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL_BYTES))
            text = file.read().decode("utf-8", "replace").replace("\r\n", "\n")
    except (OSError, ValueError):
        return []
    lines = text.splitlines()
    shown = os.path.relpath(path, os.path.dirname(folder)).replace(os.sep, "/")
    return [(shown, "\n".join(lines[-count:]), size > TAIL_BYTES or len(lines) > count)]


def _failed_tasks(folder: str, entry: Json, run: str) -> List[Tuple[str, str]]:
    """Return [(task, why)] of tasks that failed in *run*, by its own task log, else by the stage's; damaged lines are left
    out."""
    found: Dict[str, Tuple[str, str]] = {}
    try:
        path = _log_path(folder, entry, ".tasks.jsonl") or os.path.join(folder, "tasks_%s.jsonl" % text_of(entry.get("stage")))
        with open_file(path) as file:
            for line in file:
                try:
                    one = json.loads(line.decode("utf-8"))
                except (ValueError, RecursionError):
                    continue
                if isinstance(one, dict) and text_of(one.get("task")):
                    found[one["task"]] = (text_of(one.get("status")) if one.get("run") == run else "", text_of(one.get("error")))
    except OSError:
        return []
    return [(task, why) for task, (status, why) in sorted(found.items()) if status == "failed"][:SHOWN_TASKS]


def _progress(folder: str, name: str) -> str:
    progress = stage_progress.read_progress(os.path.join(folder, "progress_%s.json" % name))
    if progress is None:
        return ""
    percent = stage_progress.percent(progress.done_bytes, progress.total_bytes)
    lines = "line %d" % (progress.lines or 0)
    return "%s, %d %%" % (lines, percent) if percent is not None else lines


def _totals(spec: PipelineSpec, stages: List[Stage], edges: List[Any]) -> List[Total]:
    """Return the control totals of the stages that count."""
    kept = {stage.name: stage.kept for stage in stages if stage.status in ("ok", "skipped")}
    strict = {stage.name for stage in spec.stages if stage.reconcile}
    makers = pipeline_graph.makers_of(edges)
    found = []
    for stage in stages:
        if "read" not in stage.counts:
            continue
        read, written, rejected = (stage.counts.get(name, 0) for name in ("read", "written", "rejected"))
        feeders = [name for name in makers.get(stage.name, ()) if name in kept]
        is_known = feeders and all("written" in kept[name][0] for name in feeders)
        expected = sum(kept[name][0]["written"] for name in feeders) if is_known else None
        was_passed = stage.name in strict and stage.status in ("ok", "skipped")
        if expected != read and (was_passed or not all(kept[name][1] for name in feeders)):
            expected = None
        found.append(Total(stage.name, read, written, rejected, read - written - rejected, None if expected is None else read - expected,
                           expected, feeders, stage.name in strict))
    return found
