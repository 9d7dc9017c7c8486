"""The commands for looking: status, history, logs, explain. They only read, also while a run is going on.

Above the leaves, run_history, stage_logs and stage_explanation. What is damaged or gone is said in a line, and the rest is shown.

    records, ledger, lock folders, and what a run would decide now (look) -> a JSON value -> its text, or with --json itself
"""
from __future__ import annotations

import calendar
import json
import os
import time

import live_view
import run_history
import stage_explanation
import stage_locks
import stage_logs
import stage_markers
import stage_order
import stage_waits
import stage_progress
import stage_records
import state_store
from console import printable
from model import EXIT_OK, Decision, UsageError
from primitives import is_integer, milliseconds, open_file
from text_table import age_text, columns, count_text, duration_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

    from console import Console
    from model import Clock, Facts, Options, PipelineSpec, StageSpec
    Json = Dict[str, Any]
    Look = Callable[[StageSpec], Tuple[Decision, Optional[Facts]]]

SCHEMA = 1                  # of each JSON document
STATUS_RUNS = 10            # shown, unless --last says otherwise
HISTORY_RUNS = 20
READ_RUNS = 100             # looked at for the series of stages
SHOWN_REASONS = 3           # of a stage, in the table
RUNNING_NOW = "running now"
DIED = "last run died"      # as the stage's record alone tells
WORDS = {"neverRun": "never run", "notRun": "not run"}
OUTPUT_STATES = {"missing": "output %s missing", "changed": "output %s changed", "unreadable": "output %s cannot be read"}     # as problems tell them
NEXT = {"RUN": "would run", "SKIP": "up to date", "SEAL": "up to date", "FAIL": "would fail", "PENDING": "waits"}


def do(spec: PipelineSpec, options: Options, console: Console, clock: Clock, stages: Sequence[StageSpec], look: Look) -> int:
    """Do the command; return 0 whatever the state of the pipeline is: whoever scripts reads --json, or asks `plan` or a run.

    stages: those to look at. look(stage) decides as a run would, without writing. Raises: UsageError.
    """
    try:
        return _do(spec, options, console, clock, stages, look)
    except BrokenPipeError:
        return EXIT_OK                  # `logs x | head`: whoever read has seen enough


def _do(spec: PipelineSpec, options: Options, console: Console, clock: Clock, stages: Sequence[StageSpec], look: Look) -> int:
    if options.command == "logs":
        return _logs(spec, options, console, clock)
    if options.command == "explain":
        found = explain_stage(spec, stages[0], look, clock)
        text = explain_lines(found, clock.time())
    elif options.command == "history":
        found = history_of(spec, stages[0].name if options.operands else None, options.last_runs or HISTORY_RUNS)
        text = history_lines(found, _width(console))
    else:
        found = status_of(spec, stages, look, clock.time(), options.last_runs or STATUS_RUNS)
        text = status_lines(found, clock.time(), _width(console))
    _put(console, found, text, options.as_json)
    return EXIT_OK


def _put(console: Console, found: Json, text: List[str], as_json: bool) -> None:
    if as_json:
        # ASCII, so that it does not depend on the encoding of stdout.
        console.out.write(json.dumps(dict({"schema": SCHEMA}, **found), indent=1) + "\n")
        return
    for line in text:
        console.line(line)


def _width(console: Console) -> Optional[int]:
    """Return how many cells a line may have; None where nobody sees it on a terminal."""
    try:
        return live_view.terminal_size(console.out)[0] if console.out.isatty() else None
    except (AttributeError, ValueError):
        return None


# --- status ----------------------------------------------------------------------------------------------------------

def status_of(spec: PipelineSpec, stages: Sequence[StageSpec], look: Look, now: float, runs: int) -> Json:
    """Return the document of `status`: each stage, then the last runs, newest first."""
    owners = run_history.holders(spec.root)
    records = {stage.name: run_history.read_stage(spec.root, stage.name) for stage in stages}
    tolerant = _tolerant(look, owners, records)
    found = [_stage_status(spec, stage, decision, records[stage.name], owners.get(stage.name), now)
             for stage, decision, _ in stage_order.planned(spec.stages, stages, tolerant, spec.order == "graph", stage_waits.edges_of(spec))]
    past, problems = run_history.newest_runs(spec.root, runs)
    return {"pipeline": spec.name, "version": spec.version, "root": spec.root.replace(os.sep, "/"), "stages": found,
            "runs": [_run_json(run) for run in past], "problems": [problem for _, problem in records.values() if problem] + problems}


def _tolerant(look: Look, owners: Dict[str, Json], records: Dict[str, Tuple[Optional[Json], str]]) -> Look:
    """Return *look* without its exceptions, and without reading files that a living run is about to write or has just written."""
    living = {owner.get("runId") for owner in owners.values() if not owner.get("command")}

    def tolerant(stage: StageSpec) -> Tuple[Decision, Optional[Facts]]:
        record, _ = records.get(stage.name, (None, ""))
        if stage.name in owners:
            return Decision("RUN", ["held by " + stage_locks.owner_text(owners[stage.name])], 0, ""), None
        if record is not None and record["lastStatus"] == "ok" and record.get("lastRunId") in living:
            return Decision("SKIP", ["finished by run %s, which goes on" % record["lastRunId"]], 0, ""), None
        try:
            return look(stage)
        except (state_store.StateError, OSError) as error:
            why = "%s: %s" % (os.fsdecode(error.filename or "?"), error.strerror) if isinstance(error, OSError) else str(error)
            return Decision("FAIL", [why], 0, ""), None
    return tolerant


def _stage_status(spec: PipelineSpec, stage: StageSpec, decision: Decision, read: Tuple[Optional[Json], str], owner: Optional[Json],
                  now: float) -> Json:
    record, problem = read
    status = status_word(record, problem, decision.action, owner is not None)
    state = os.path.join(spec.root, "state")
    found: Json = {"stage": stage.name, "status": status, "action": decision.action, "reasons": _reasons(decision, record),
                   "lineOffset": decision.line_offset if decision.action == "RESUME" else None,
                   "holder": {name: owner.get(name) for name in ("pid", "host", "runId", "since")} if owner else None,
                   "tasks": stage_progress.task_counts(record, os.path.join(state, "tasks_%s.jsonl" % stage.name), owner is not None),
                   "percent": None, "problem": problem or None, **_work_json(spec.root, stage, record, owner, now)}
    if owner is not None:
        seen = stage_progress.read_progress(os.path.join(state, "progress_%s.json" % stage.name)) if stage.checkpoint else None
        tasks = found["tasks"]
        found["percent"] = stage_progress.percent(tasks["done"], tasks["total"]) if tasks else (
            stage_progress.percent(seen.done_bytes, seen.total_bytes) if seen is not None else None)
    return found


def _reasons(decision: Decision, record: Optional[Json]) -> List[str]:
    """Return why a run would do so: of a stage that only its run's record knows the end of, with that end."""
    has_end = decision.reasons == [DIED] and record is not None and record["lastStatus"] != "running"
    return [stage_records.last_run_text(record)] if has_end and record is not None else list(decision.reasons)


def _work_json(root: str, stage: StageSpec, record: Optional[Json], owner: Optional[Json], now: float) -> Json:
    """Return what a stage record says of the last run; of one that is at work on it, or died at it, how often it has tried, by its logs, and
    of one at work how long."""
    found = _record_json(record, now)
    if found["endedAt"] is None and found["lastRunId"] and found["lastInvocation"]:
        found["attempts"] = max(found["attempts"] or 0, run_history.attempts_begun(root, found["lastRunId"], found["lastInvocation"], stage.name))
    if found["endedAt"] is None and owner is not None:
        started = _seconds(found["startedAt"])
        found["durationMs"] = max(0, int((now - started) * 1000)) if started is not None else None
    return found


def _record_json(record: Optional[Json], now: float) -> Json:
    """Return what a stage record says of the last run: None for what is not known."""
    known = record or {}
    duration, ended = known.get("lastDurationSec"), _seconds(known.get("endedAt"))
    return {"lastRunId": known.get("lastRunId"), "lastInvocation": known.get("lastInvocation"), "startedAt": known.get("startedAt"),
            "endedAt": known.get("endedAt"), "durationMs": milliseconds(duration) if known.get("endedAt") else None,
            "attempts": known.get("attempts"), "lastError": known.get("lastError"), "outputs": _output_count(known),
            "outputsAgeSec": max(0, int(now - ended)) if ended is not None and known.get("lastStatus") == "ok" else None,
            "counts": known.get("counts") or {}}


def _output_count(record: Json) -> int:
    """Return how many outputs a record tells of; of very many tasks, their log lists them."""
    tasks = record.get("tasks")
    counted = tasks.get("outputs") if isinstance(tasks, dict) else None
    return counted if isinstance(counted, int) else len(record.get("outputs") or ())


def status_word(record: Optional[Json], problem: str, action: str, is_held: bool) -> str:
    """Return one word for a stage: ok, stale, pending, failed, interrupted, died, running, neverRun or damaged."""
    if is_held:
        return "running"
    if problem:
        return "damaged"
    if record is None:
        return "neverRun"
    last = str(record["lastStatus"])
    if last == "ok":
        return {"SKIP": "ok", "SEAL": "ok", "PENDING": "pending"}.get(action, "stale")
    return "died" if last == "running" else last


def status_lines(found: Json, now: float, width: Optional[int]) -> List[str]:
    """Return the text of `status`; width: of the terminal, None without one."""
    rows = [["STAGE", "STATUS", "DONE", "LAST RUN", "WHEN", "TOOK", "TRIES", "OUTPUTS"]]
    for one in found["stages"]:
        ended = _seconds(one["endedAt"] or one["startedAt"])
        rows.append([one["stage"], WORDS.get(one["status"], one["status"]), _done_text(one), one["lastRunId"] or "",
                     age_text(now - ended) + " ago" if ended is not None else "", duration_text(_s(one["durationMs"])),
                     str(one["attempts"] or ""), age_text(one["outputsAgeSec"]) + " old" if one["outputsAgeSec"] is not None else ""])
    table = columns(rows, width, (3, 6, 7, 5, 4))
    lines = [table[0]]
    for line, one in zip(table[1:], found["stages"]):
        lines += [line] + ["    " + text for text in [_next_text(one)] if text]
    return lines + [""] + run_lines(found, width) + _problem_lines(found["problems"])


def _done_text(one: Json) -> str:
    """Return how far a stage of several tasks, or a running one, is."""
    tasks, share = one["tasks"], one["percent"]
    text = "%d/%s" % (tasks["done"], tasks["total"] or "?") if tasks else ""
    if tasks and tasks["failed"]:
        text += ", %d failed" % tasks["failed"]
    return " ".join(part for part in (text, "%d%%" % share if share is not None else "") if part)


def _next_text(one: Json) -> str:
    """Return why a stage would run, or who works on it; "" where there is nothing to do."""
    why = "; ".join(one["reasons"][:SHOWN_REASONS])
    more = len(one["reasons"]) - SHOWN_REASONS
    why += " and %d more" % more if more > 0 else ""
    if one["holder"]:
        return why
    if one["action"] in ("SKIP", "SEAL"):
        return ""
    if one["action"] == "PENDING":
        return why
    return "%s: %s" % (next_word(one["action"], one["lineOffset"]), why)


def next_word(action: str, line_offset: Optional[int]) -> str:
    """Return what a run would do, for people."""
    return "would resume from line %d" % (line_offset or 0) if action == "RESUME" else NEXT.get(action, action.lower())


def _problem_lines(problems: List[str]) -> List[str]:
    return ["[PROBLEM] " + problem for problem in problems]


# --- runs ------------------------------------------------------------------------------------------------------------

def _run_json(run: run_history.PastRun) -> Json:
    counted = not run.problem
    return {"runId": run.run_id, "invocation": run.invocation, "pipeline": run.pipeline or None, "state": run.state, "startedAt": run.started_at or None, "endedAt": run.ended_at or None,
            "durationMs": run.duration_ms, "ok": run.count("ok") if counted else None, "skipped": run.count("skipped") if counted else None,
            "failed": run.count("failed") if counted else None,
            "interrupted": run.count("interrupted") if counted else None, "notRun": run.count("notRun") if counted else None,
            "waiting": run.count("waiting") if counted else None,
            "problem": run.problem or None}


def run_lines(found: Json, width: Optional[int]) -> List[str]:
    """Return the table of the runs of a document, in their order; those of other pipelines below the same root are named."""
    runs, pipeline = found["runs"], found["pipeline"]
    if not runs:
        return [] if found["problems"] else ["no runs yet"]     # there may be some, where not all can be read
    rows = [["RUN", "STATE", "STARTED", "TOOK", "OK", "SKIPPED", "FAILED", "PIPELINE", ""]]
    for run in runs:
        name = run["runId"] + (" (call %d)" % run["invocation"] if run["invocation"] > 1 else "")
        counts = ["" if run[kind] is None else str(run[kind]) for kind in ("ok", "skipped", "failed")]
        rows.append([name, run["state"], _moment(run["startedAt"]), duration_text(_s(run["durationMs"]))] + counts + [
            run["pipeline"] if run["pipeline"] not in (None, pipeline) else "", run["problem"] or ""])
    return columns(rows, width, (8, 5, 4, 3, 7, 6))


# --- history ---------------------------------------------------------------------------------------------------------

def history_of(spec: PipelineSpec, stage: Optional[str], limit: int) -> Json:
    """Return the document of `history`, of one stage or of the runs: oldest first, and which stages were slow the last time."""
    past, problems = run_history.newest_runs(spec.root, max(READ_RUNS, limit))
    series = run_history.durations_ms(past)
    known = [one.name for one in spec.stages]
    slow = [_slow_json(name, values) for name, values in series.items() if name in known and stage in (None, name) and run_history.is_slow(values)]
    found: Json = {"pipeline": spec.name, "slow": slow, "problems": problems}
    if stage is None:
        return dict(found, runs=[_run_json(run) for run in reversed(past[:limit])])
    entries = [_entry_json(run, entry) for run, entry in run_history.stage_series(past, stage)][-limit:]
    values = series.get(stage, [])
    return dict(found, stage=stage, entries=entries, medianMs=run_history.median(values), successes=len(values), examined=len(past))


def _slow_json(stage: str, values: List[int]) -> Json:
    return {"stage": stage, "durationMs": values[-1], "medianMs": run_history.median(values[:-1]), "earlier": len(values) - 1}


def _entry_json(run: run_history.PastRun, entry: Json) -> Json:
    counts = entry.get("counts")
    return {"runId": run.run_id, "invocation": run.invocation, "startedAt": run.started_at or None, "status": entry.get("status"), "reason": entry.get("reason"),
            "attempts": entry.get("attempts"), "durationMs": entry.get("durationMs"), "bytesIn": entry.get("bytesIn"),
            "bytesOut": entry.get("bytesOut"),
            "counts": counts if isinstance(counts, dict) else {}, "tasks": entry.get("tasks")}


def history_lines(found: Json, width: Optional[int]) -> List[str]:
    """Return the text of `history`."""
    if "entries" not in found:
        lines = run_lines(found, width)
    elif not found["entries"]:
        text, count = "no run has worked on stage %s", found["examined"]
        if count >= READ_RUNS:          # there may be older ones
            text = "none of the %d newest runs has worked on stage %%s; --last %d looks at more" % (count, 10 * count)
        lines = [text % found["stage"]] if found["examined"] or not found["problems"] else []
    else:
        lines = _entry_lines(found["entries"], width)
        if found["successes"]:
            lines.append("median %s of %d success%s" % (duration_text(_s(found["medianMs"])), found["successes"],
                                                        "" if found["successes"] == 1 else "es"))
    lines += ["[SLOW] %s took %s the last time, %s is the median of the %d before" % (
        one["stage"], duration_text(_s(one["durationMs"])), duration_text(_s(one["medianMs"])), one["earlier"]) for one in found["slow"]]
    return lines + _problem_lines(found["problems"])


def _entry_lines(entries: List[Json], width: Optional[int]) -> List[str]:
    rows = [["RUN", "OUTCOME", "RUN STARTED", "TOOK", "TRIES", "READ", "WRITTEN", "REJECTED", "TASKS", "BYTES IN", "BYTES OUT"]]
    for one in entries:
        tasks = one["tasks"] if isinstance(one["tasks"], dict) else {}
        duration = one["durationMs"] if is_integer(one["durationMs"]) else None
        rows.append([one["runId"], WORDS.get(one["status"], str(one["status"])), _moment(one["startedAt"]), duration_text(_s(duration)), str(one["attempts"] or "")]
                    + [count_text(one["counts"].get(kind)) for kind in ("read", "written", "rejected")]
                    + ["%d/%d" % (tasks.get("ok", 0) + tasks.get("skipped", 0), tasks["total"]) if tasks.get("total") else "",
                       count_text(one["bytesIn"]), count_text(one["bytesOut"])])
    return columns(rows, width, (9, 10, 2, 8, 4, 6, 5, 7))


# --- logs ------------------------------------------------------------------------------------------------------------

def _logs(spec: PipelineSpec, options: Options, console: Console, clock: Clock) -> int:
    stage = options.operands[0]
    if options.follow and options.as_json:
        raise UsageError("--follow shows text as it comes; leave --json out")

    def put(line: str) -> None:
        # Not console.line(), which would spell out tabs; nothing else gets past harmless().
        console.out.write(line + "\n")
        console.out.flush()

    if options.follow:
        stage_logs.follow(spec.root, stage, options.run, put, clock.wait, spec.name)
        return EXIT_OK
    found = stage_logs.marked(spec.root, stage, stage_logs.find(spec.root, stage, options.run))
    if options.as_json:
        _put(console, _logs_json(spec.root, stage, found), [], True)
        return EXIT_OK
    stage_logs.show(spec.root, found, put)
    if found.note or not found.logs:
        console.line(found.note or "run %s has no log of stage %s" % (found.run_id, stage))
    return EXIT_OK


def _logs_json(root: str, stage: str, found: stage_logs.Found) -> Json:
    logs = []
    for log in found.logs:
        text, problem = "", None
        try:
            with open_file(os.path.join(root, log.path)) as file:
                text = file.read().decode("utf-8", "replace")
        except OSError as error:
            problem = error.strerror
        logs.append({"path": log.path, "number": log.number or None, "task": log.task or None, "status": log.status or None, "attempt": log.attempt,
                     "notInRecord": log.is_unnamed, "text": text, "problem": problem})
    return {"stage": stage, "runId": found.run_id or None, "invocation": found.invocation or None, "logs": logs, "note": found.note or None}


# --- explain ---------------------------------------------------------------------------------------------------------

def explain_stage(spec: PipelineSpec, stage: StageSpec, look: Look, clock: Clock) -> Json:
    """Return the document of `explain`: the parts of the key then and now, and what would follow."""
    owners = run_history.holders(spec.root)
    record, problem = run_history.read_stage(spec.root, stage.name)
    tolerant = _tolerant(look, {name: owner for name, owner in owners.items() if name != stage.name}, {})
    decision, facts, waits = Decision("FAIL", [], 0, ""), None, []
    for one, decided, seen in stage_order.planned(spec.stages, spec.stages, tolerant, spec.order == "graph", stage_waits.edges_of(spec)):
        if one.name == stage.name:
            decision, facts = decided, seen
            break
    if decision.action == "PENDING":
        waits = list(decision.reasons)
        decision, facts = tolerant(stage)
    owner = owners.get(stage.name)
    if owner is not None and decision.reasons == [DIED]:
        decision = decision._replace(reasons=[RUNNING_NOW])         # it has not: it is at work
    old = record["keyParts"] if record is not None else None
    new = facts.material.parts if facts is not None and not facts.material.missing else None
    word = status_word(record, problem, "PENDING" if waits else decision.action, owner is not None)
    return {
        "pipeline": spec.name, "stage": stage.name, "status": word, "action": decision.action, "reasons": _reasons(decision, record), "waitsFor": waits,
        "lineOffset": decision.line_offset if decision.action == "RESUME" else None, "discard": decision.discard or None,
        "holder": stage_locks.owner_text(owner) if owner is not None else None, "problem": problem or None,
        "recordedKey": record["idempotencyKey"] if record is not None else None, "key": (facts.material.key or None) if facts is not None else None,
        "parts": [part._asdict() for part in stage_explanation.compare(old, new)],
        "marker": _marker_json(spec, stage, record, problem), "outputs": _outputs_json(spec.root, record, facts),
        "checkpoint": _checkpoint_json(spec, stage, facts),
        **{name: value for name, value in _work_json(spec.root, stage, record, owner, clock.time()).items() if name != "outputs"}}


def _marker_json(spec: PipelineSpec, stage: StageSpec, record: Optional[Json], problem: str) -> Json:
    path = stage_markers.marker_path(spec.root, stage.output_dir, stage.name)
    key = stage_markers.read_marker(path)
    if key in (None, stage_markers.UNREADABLE, stage_markers.BARRED):
        state = "missing" if key is None else "unreadable"
    elif problem:
        state = "notCompared"           # the record cannot be read
    else:
        state = "stands" if record is not None and key == record["idempotencyKey"] else "otherKey"
    return {"path": os.path.relpath(path, spec.root).replace(os.sep, "/"), "state": state}


def _recorded_outputs(root: str, record: Json) -> List[Tuple[str, int, str]]:
    """Return (path, bytes, SHA-256) of the recorded outputs; of a stage with many tasks from its task log, none if that cannot be
    read."""
    found = {one["path"]: (one["path"], one["bytes"], one["sha256"]) for one in record["outputs"]}
    if stage_records.outputs_are_logged(record):
        import task_log
        try:
            found.update((one[0], one) for one in task_log.find_outputs(os.path.join(root, "state"), record["stage"]) or [])
        except (OSError, task_log.Damaged):
            pass                # what is wrong with it is among the reasons
        return sorted(found.values())
    return list(found.values())


def _outputs_json(root: str, record: Optional[Json], facts: Optional[Facts]) -> List[Json]:
    """Return the recorded outputs; state: same, one of OUTPUT_STATES, or notVerified where the last run was no success."""
    if record is None:
        return []
    is_verified = facts is not None and record["lastStatus"] == "ok" and not facts.material.missing
    # Of tasks, only the first problems are named.
    is_looked_at = facts is None or (bool(record["outputs"]) if facts.tasks is None else not facts.output_problems)
    unsure = "same" if is_looked_at else "notVerified"
    problems = set(facts.output_problems) if facts is not None else set()
    found = []
    for path, size, digest in _recorded_outputs(root, record):
        state = next((state for state, text in OUTPUT_STATES.items() if text % path in problems), unsure)
        found.append({"path": path, "bytes": size, "sha256": digest, "state": state if is_verified else "notVerified"})
    return found


def _checkpoint_json(spec: PipelineSpec, stage: StageSpec, facts: Optional[Facts]) -> Optional[Json]:
    """Return what the progress file says, None without one or where checkpoints are off."""
    path = os.path.join(spec.root, "state", "progress_%s.json" % stage.name)
    if not stage.checkpoint or not os.path.lexists(path):
        return None
    seen = stage_progress.read_progress(path)
    judged = facts.checkpoint if facts is not None else None
    if seen is None:
        return {"lineOffset": None, "complete": False, "percent": None, "counts": {}, "usable": False, "problem": "it cannot be read"}
    is_complete = judged.complete if judged is not None else seen.is_complete       # of a run that died, not all marks count
    return {"lineOffset": seen.lines, "complete": is_complete, "percent": stage_progress.percent(seen.done_bytes, seen.total_bytes), "counts": seen.counts,
            "usable": judged.resumable if judged is not None else False, "problem": (judged.problem or None) if judged is not None else None}


def explain_lines(found: Json, now: float) -> List[str]:
    """Return the text of `explain`."""
    ended = _seconds(found["endedAt"])
    lines = ["stage %s: %s" % (found["stage"], WORDS.get(found["status"], found["status"]))]
    if found["lastRunId"]:
        took = "took" if ended is not None else "at work for"
        lines.append("last run: %s%s%s, %d attempt%s" % (
            found["lastRunId"], ", ended %s ago" % age_text(now - ended) if ended is not None else "",
            ", %s %s" % (took, duration_text(_s(found["durationMs"]))) if found["durationMs"] is not None else "",
            found["attempts"] or 0, "" if found["attempts"] == 1 else "s"))
    if found["holder"]:
        lines.append("held by " + found["holder"])
    if found["problem"]:
        lines.append("[PROBLEM] " + found["problem"])
    lines.append("key: %s recorded, %s today" % (_short(found["recordedKey"]), _short(found["key"])))
    lines += stage_explanation.lines([stage_explanation.Part(**part) for part in found["parts"]])
    words = {"otherKey": "of another key", "unreadable": "cannot be read", "notCompared": "not compared"}
    lines.append("marker: %s (%s)" % (words.get(found["marker"]["state"], found["marker"]["state"]), found["marker"]["path"]))
    lines += _output_lines(found["outputs"], found["status"]) + _checkpoint_lines(found["checkpoint"])
    why = "; ".join(found["reasons"])
    if found["waitsFor"]:
        lines.append("%s, which may change its inputs; as they are now:" % "; ".join(found["waitsFor"]))
    if found["action"] in ("SKIP", "SEAL") or found["reasons"] == [RUNNING_NOW]:
        lines.append(why)
    else:
        lines.append("%s: %s" % (next_word(found["action"], found["lineOffset"]), why))
    return lines


def _short(key: Optional[str]) -> str:
    return key[:stage_explanation.DIGEST_DIGITS] if key else "none"


def _output_lines(outputs: List[Json], status: str) -> List[str]:
    if not outputs:
        return ["outputs: not known" if status == "damaged" else "outputs: none recorded"]
    wrong = [one for one in outputs if one["state"] in OUTPUT_STATES]
    if outputs[0]["state"] == "notVerified":
        why = "not all are as recorded, or not looked at, see below" if status == "stale" else "the last run was no success"
        return ["outputs: %d recorded, not verified: %s" % (len(outputs), why)]
    return ["outputs: %d recorded, %s" % (len(outputs), "%d not as recorded" % len(wrong) if wrong else "all verified")] + [
        "  %-8s %s" % (one["state"], one["path"]) for one in wrong]


def _checkpoint_lines(checkpoint: Optional[Json]) -> List[str]:
    if checkpoint is None:
        return ["checkpoint: none"]
    if checkpoint["complete"]:
        return ["checkpoint: complete, %s lines" % checkpoint["lineOffset"]]
    place = "line %s%s" % (checkpoint["lineOffset"], ", %d%%" % checkpoint["percent"] if checkpoint["percent"] is not None else "")
    return ["checkpoint: %s%s" % (place, "; not used: %s" % checkpoint["problem"] if checkpoint["problem"] else "")]


# --- times -----------------------------------------------------------------------------------------------------------

def _seconds(text: Any) -> Optional[float]:
    """Return an ISO 8601 UTC time of a record as seconds since the epoch, None if it is none."""
    try:
        return calendar.timegm(time.strptime(text[:19], "%Y-%m-%dT%H:%M:%S")) + float(text[19:].rstrip("Z") or 0)
    except (TypeError, ValueError):
        return None


def _moment(text: Optional[str]) -> str:
    return "" if not text else printable(text[:19].replace("T", " ") + "Z")


def _s(milliseconds: Optional[int]) -> Optional[float]:
    return None if milliseconds is None else milliseconds / 1000.0
