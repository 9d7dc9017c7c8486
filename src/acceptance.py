"""Taking a stage as up to date whose key changed for a harmless cause, in the open: the ledger says who, why and what changed.

Above the leaves and below the runner.

Order of the durable steps: ledger entry, task log (a stage with forEach), marker, stage record. After a kill between two of them
the same command goes through; a run instead makes the stage again, or records it where its tasks have their keys: nothing is
hidden.
"""
from __future__ import annotations

import arrivals
import durable_files
import reasons
import run_ledger
import stage_markers
import stage_records
import task_look
from ledger_format import canonical_json, stage_key
from model import UsageError, sha256
from task_log import GOOD

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, List, Tuple

    from model import Clock, Decision, Facts, PipelineSpec, StageSpec
    from run_ledger import RunLedger
    Json = Dict[str, Any]


def accept(ledger: RunLedger, stage: StageSpec, spec: PipelineSpec, facts: Facts, decision: Decision,
           judge: Callable[[], Tuple[str, str]], reason: str, clock: Clock) -> str:
    """Give a finished stage today's key; return what to tell the user. The caller holds the stage's lock.

    decision: what a run would do with the stage now. judge: tells what a run would say of its control totals once it has today's
    key (planning.totals_again); asked where nothing else is in the way.
    On disk afterwards: a ledger entry, the stage record and the marker with the new key; of a stage with forEach each task's
    line, too. Raises: UsageError where there is nothing to accept, or more than the key has changed.
    """
    problem = "; ".join(decision.reasons) if decision.action in ("FAIL", "WAITING") else _problem(facts) or _problem_of_tasks(stage, facts)
    if not problem:
        missing, refused = judge()
        problem = missing + "; run it" if missing else refused
    if problem:
        raise UsageError("accept %s: %s" % (stage.name, problem))
    store, record, key = ledger.store, facts.record, facts.material.key
    changes = reasons.key_changes(record["keyParts"], facts.material.parts) or ["key changed"]
    first, *rest = run_ledger.in_parts(changes)
    more = ["and %d more; the SHA-256 of all is %s" % (sum(map(len, rest)), sha256(canonical_json(changes)).hexdigest())] if rest else []
    entry = {"stage": stage.name, "oldKey": record["idempotencyKey"], "newKey": key, "changes": first + more, "reason": reason}
    ledger.note("accept", spec.name, entry)
    if facts.tasks is not None:
        keys = dict(zip(facts.tasks.paths, facts.tasks.keys))
        log = facts.tasks.log
        log.entries = {name: one._replace(key=keys.get(name, one.key)) for name, one in log.entries.items()}
        log.compact(lambda path, data: durable_files.write_atomic(path, data, store.commit))
    marker = stage_markers.marker_bytes(stage.name, key, record.get("lastRunId"), clock.time())
    durable_files.write_atomic(stage_markers.marker_path(spec.root, stage.output_dir, stage.name), marker, store.commit)
    # A marker of today's key can be accepted again, one of the old key beside today's record could not.
    store.commit.flush()
    store.write("stage_%s.json" % stage.name, {**record, "idempotencyKey": key, "keyParts": facts.material.parts})
    store.commit.flush()
    return "[ACCEPT] %s: %s (%s)" % (stage.name, "; ".join(changes), reason)


def _problem(facts: Facts) -> str:
    """Return why there is nothing to accept, or ""."""
    record = facts.record
    if facts.material.missing:
        return "; ".join(facts.material.missing)
    if record is None or record["lastStatus"] != "ok":
        return "it has not been finished: %s; run it" % ("no record of a run" if record is None else "its last run " + record["lastStatus"])
    if facts.marker_key is None and (record.get("tasks") or {}).get("failed"):
        return "some of its tasks failed, and were allowed to; run it"
    if facts.marker_key is None or facts.marker_key not in (record["idempotencyKey"], facts.material.key):
        return "its marker is missing or of another key; run it"
    if facts.tasks is None and stage_records.outputs_are_logged(record):
        return "it had forEach when its outputs were made, and they are recorded of its tasks only; run it"
    if facts.output_problems:
        return "%s; run it" % "; ".join(facts.output_problems)
    if record["idempotencyKey"] == facts.material.key and facts.marker_key == facts.material.key:
        return "its key is unchanged; there is nothing to accept"
    return ""


def _problem_of_tasks(stage: StageSpec, facts: Facts) -> str:
    """Return which tasks have more to them than what all share, or "": only that can be accepted for all at once."""
    tasks = facts.tasks
    if tasks is None:
        return ""
    if tasks.left:
        return arrivals.waiting_text(stage, tasks.left)
    before = stage_key({name: value for name, value in facts.record["keyParts"].items() if name != "tasks"})
    others: List[str] = []
    for place in tasks.todo:
        path, entry = tasks.paths[place], tasks.log.entries.get(tasks.paths[place])
        if entry is None or entry.status not in GOOD or entry.key != task_look.task_key(before, path, tasks.digests[place]):
            others.append(path)
    if others:
        return "%d file%s of its tasks %s new, changed or failed (%s): take %s away until it is accepted, or run it" % (
            len(others), *(("", "is", task_look.shown(others), "it") if len(others) == 1 else ("s", "are", task_look.shown(others), "them")))
    return "%s: run it" % "; ".join(tasks.why) if tasks.gone else ""
