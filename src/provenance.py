"""What a run used and made, read from its record alone: files, makers, and an in-toto statement. Pure.

A leaf. The runner exports with it, and the verifier in an evidence zip computes with the same text what must stand there.

    run record + the records of the runs that made the outputs of its skipped stages
        -> involved()       the stage entries that tell of work, each with the record that holds it
        -> statement()      in-toto Statement v1, predicate SLSA provenance v1

Records are material from elsewhere: record_problem() tells first whether one has the form that the rest relies on, and
member_problem() whether a path out of one may become a name in a zip or below a folder.
"""
from __future__ import annotations

import json
import re

from ledger_format import stage_key

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, Iterable, List, Optional, Set, Tuple
    Json = Dict[str, Any]
    RunKey = Tuple[str, int]        # run id, invocation

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:offline-pipeline-runner:run:1"
BUILDER_ID = "urn:offline-pipeline-runner:builder:1"
ANNOTATION = "offlinePipelineRunner_use"    # <vendor>_<field>, as both specifications ask of names that are not theirs
LOG_FOLDER = "state/logs/"
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")
DIGEST = re.compile(r"[0-9a-f]{64}")
DRIVE = re.compile(r"[A-Za-z]:")
SLEWED_S, SLEPT_S = 60, 86400       # a clock is put right by so much in small steps; so much of its time a run may have slept with its machine


class NoStatement(Exception):
    """A run of which no statement can be made; str() says why, and names the record that is missing."""


# --- JSON and forms -----------------------------------------------------------------------------------------------------------

def parse_strictly(data: bytes) -> Any:
    """Return the JSON value of UTF-8 text in which no name stands twice in an object and each number is one.

    What two readers may take for two different things proves nothing. Raises: ValueError, RecursionError.
    """
    return json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse, parse_float=_finite)


def _unique(pairs: List[Tuple[str, Any]]) -> Json:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a name stands in an object twice")
    return value


def _refuse(constant: str) -> None:
    raise ValueError("%s is no number" % constant)      # NaN and the like are no JSON


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        _refuse(text)
    return value


def fits(value: Any, form: Any) -> bool:
    """Tell whether a JSON value has a form.

    A form is a type, a pattern for texts, None, [form of each], (form, form ...) for a list of so many, {name: form} with
    "name?" for what may be missing (other names are allowed), or a frozenset of forms of which one must fit.
    """
    if isinstance(form, frozenset):
        return any(fits(value, one) for one in form)
    if isinstance(form, re.Pattern):
        return isinstance(value, str) and form.fullmatch(value) is not None
    if isinstance(form, list):
        return isinstance(value, list) and all(fits(one, form[0]) for one in value)
    if isinstance(form, tuple):
        return isinstance(value, list) and len(value) == len(form) and all(map(fits, value, form))
    if isinstance(form, dict):
        return isinstance(value, dict) and all(
            fits(value[name.rstrip("?")], one) if name.rstrip("?") in value else name.endswith("?") for name, one in form.items())
    return value is None if form is None else isinstance(value, form) and not (form is int and isinstance(value, bool))


FILE = {"path": str, "sha256": DIGEST}
SIZED = {"path": str, "sha256": DIGEST, "bytes": int}
PAIRS = [(str, DIGEST)]
KEY_PARTS = {"outputDir": str, "processor": FILE, "modules?": PAIRS, "inputs?": PAIRS, "watch?": PAIRS, "args?": [str], "params?": str,
             "tasks?": {"sha256": DIGEST}}
STAGE = {"stage": str, "status": str, "key?": frozenset([str, None]), "keyParts?": KEY_PARTS,
         "inputs?": [FILE], "outputs?": [SIZED], "logs?": [SIZED], "tasks?": {"outputs?": int, "outputBytes?": int, "outputsSha256?": DIGEST},
         "madeBy?": {"runId": frozenset([str, None]), "invocation": frozenset([int, None])}}
WHEN = frozenset([TIME, None])
RECORD = {"schema": int, "runId": str, "invocation": int, "pipeline": str, "state": str, "runHash": DIGEST, "stages": [STAGE],
          "startedAt?": WHEN, "endedAt?": WHEN, "specSha256?": DIGEST, "metrics?": {"bytes": int, "sha256": DIGEST},
          "runner?": str, "runnerSha256?": DIGEST, "python?": str, "os?": str, "host?": str, "isolation?": dict}


def record_problem(record: Any) -> str:
    """Return what keeps a sealed run record from being worked with, or ""."""
    if not isinstance(record, dict):
        return "is not a run record"
    if record.get("state") == "running" or "runHash" not in record:
        return "is not sealed: its run has not ended"
    wrong = [name.rstrip("?") for name, form in RECORD.items() if not fits(record, {name: form})]
    if wrong:
        return "is not of the form of a run record (%s)" % ", ".join(wrong)
    return "is of a newer form (schema %d); use the runner that wrote it" % record["schema"] if record["schema"] != 1 else ""


def member_problem(name: str) -> str:
    """Return why a path may not become the name of a member of a zip, or "": it must stay below any folder on any system."""
    parts = name.split("/")
    if name.startswith(("/", "\\")) or any(DRIVE.match(part) for part in parts):
        return "is an absolute path, or names a drive"
    if "\\" in name or any(ord(c) < 32 or ord(c) == 127 for c in name):
        return "holds a backslash or a control character"
    if not name or any(part in ("", ".", "..") for part in parts):
        return "has an empty part, . or .."
    return ""


# --- what a run used and made ----------------------------------------------------------------------------------------

def run_key(record: Json) -> RunKey:
    """Return what names a record: (run id, invocation)."""
    return record["runId"], record["invocation"]


def finished_at(record: Json) -> Optional[str]:
    """Return when a run ended. Where its times show that the clock was set meanwhile, that is so long after the start as it took."""
    started, took = record.get("startedAt"), record.get("durationMs")
    ended: Optional[str] = record.get("endedAt")
    if not (started and ended and isinstance(took, int)):
        return ended
    try:
        told = later(started, took)
        begin, end, expected = map(_moment, (started, ended, told))
    except (ValueError, OverflowError):
        return ended                    # no time of this calendar
    off_s = (end - expected).total_seconds()
    return ended if begin <= end and -SLEWED_S <= off_s <= SLEPT_S else told


def later(utc: str, milliseconds: int) -> str:
    """Return a time as records have it, some milliseconds later. Raises: ValueError, OverflowError."""
    import datetime
    moment = _moment(utc) + datetime.timedelta(milliseconds=milliseconds)
    return "%s.%03dZ" % (moment.isoformat()[:19], moment.microsecond // 1000)


def _moment(utc: str) -> Any:
    """Return a time as records have it, to the millisecond. Raises: ValueError."""
    import datetime
    whole, _, fraction = utc.rstrip("Z").partition(".")
    return datetime.datetime.strptime(whole, "%Y-%m-%dT%H:%M:%S").replace(microsecond=1000 * int((fraction + "000")[:3]))


def pruned_runs(entries: Iterable[Json]) -> Dict[RunKey, int]:
    """Return {run whose record gc has removed: number of the ledger's entry that says so}."""
    listed = [(entry["seq"], one) for entry in entries if entry["event"] == "gc" for one in _listed(entry.get("removed"))]
    return {(one[0], one[1]): seq for seq, one in listed if isinstance(one, list) and len(one) == 3 and isinstance(one[0], str)
            and isinstance(one[1], int)}


def _listed(value: Any) -> List[Any]:
    return value if isinstance(value, list) else []


def makers(record: Json) -> Dict[str, RunKey]:
    """Return {stage: the run that made its outputs} for the skipped stages of a record."""
    named = [(one["stage"], one["madeBy"]) for one in record["stages"] if one["status"] == "skipped" and "madeBy" in one]
    return {stage: (by["runId"], by["invocation"]) for stage, by in named if None not in (by["runId"], by["invocation"])}


def stage_of(record: Optional[Json], stage: str) -> Optional[Json]:
    """Return what a record says of a stage that it worked on, None if it did not."""
    for one in record["stages"] if record else ():
        if one["stage"] == stage and "keyParts" in one:
            return one      # type: ignore[no-any-return]
    return None


def involved(run_id: str, records: Dict[RunKey, Json]) -> List[Tuple[Json, Json]]:
    """Return [(record, stage entry)] of the work that a run's results rest on.

    That is every stage that its invocations worked on, and for a skipped one the work of the run that made its
    outputs. What that run did besides is its own affair. Makers without a record are left out.
    """
    found: Dict[Tuple[RunKey, str], Tuple[Json, Json]] = {}
    for key in sorted(records):
        if key[0] != run_id:
            continue
        for one in records[key]["stages"]:
            maker = records[key] if "keyParts" in one else records.get(makers(records[key]).get(one["stage"], ("", 0)))
            work = stage_of(maker, one["stage"])
            if maker is not None and work is not None:
                found[(run_key(maker), one["stage"])] = (maker, work)
    return [found[key] for key in sorted(found)]


def files_used(work: Json) -> List[Tuple[str, str, str]]:
    """Return [(role, path, sha256)] of all that a stage read: processor, modules, inputs, watched files."""
    parts = work["keyParts"]
    files = [("processor", parts["processor"]["path"], parts["processor"]["sha256"])]
    for role, name in (("module", "modules"), ("input", "inputs"), ("watched", "watch")):
        files += [(role, path, digest) for path, digest in parts.get(name) or []]
    return files


def results(record: Json, records: Dict[RunKey, Json]) -> List[Tuple[Json, Json]]:
    """Return [(record, stage entry)] of the work behind a run's outputs. Raises: NoStatement, where it is not known."""
    found = []
    for one in record["stages"]:
        if one["status"] not in ("ok", "skipped"):
            continue
        key = run_key(record) if one["status"] == "ok" else makers(record).get(one["stage"])
        if key is None:
            raise NoStatement("run %s skipped stage %s, and its record does not say which run made the outputs" % (
                record["runId"], one["stage"]))
        maker = record if key == run_key(record) else records.get(key)
        work = stage_of(maker, one["stage"])
        if maker is None or work is None or work["status"] != "ok":
            raise NoStatement("stage %s was made by run %s (invocation %d), and the record of that run %s" % (
                one["stage"], key[0], key[1], "is missing" if maker is None else "does not say so"))
        found.append((maker, work))
    return found


def subjects(work: List[Tuple[Json, Json]]) -> List[Json]:
    """Return the outputs of stages as in-toto subjects: named from the root, sorted, each once.

    Those of a stage of so many tasks that its record does not list them are one: outputs:<stage>, by the digest of all.
    """
    found: Dict[str, Json] = {}
    for _, one in work:
        folder, tasks = one["keyParts"]["outputDir"], one.get("tasks") or {}
        for output in one.get("outputs") or []:
            path = "%s/%s" % (folder, output["path"])
            found[path] = _resource(path, output["sha256"])
        if tasks.get("outputs") and not one.get("outputs"):
            name = "outputs:" + one["stage"]
            found[name] = _resource(name, tasks["outputsSha256"],
                                    use={"digestOf": "path, bytes and SHA-256 of each of %d files in %s" % (tasks["outputs"], folder)})
    return [found[path] for path in sorted(found)]


# --- the statement ---------------------------------------------------------------------------------------------------

def statement(record: Json, records: Dict[RunKey, Json], file_digests: Dict[RunKey, str], entry: Json, entry_digest: str) -> Json:
    """Return an in-toto Statement v1 with an SLSA provenance v1 predicate on the outputs of a run.

    *records* holds those of the runs that made what it skipped, *file_digests* the SHA-256 of the files of all these
    records, *entry* is the run's end in the ledger, *entry_digest* the SHA-256 of its line. A run that failed has a
    statement on what it finished; internalParameters say how it ended. Raises: NoStatement.
    Source: in-toto attestation framework, spec v1.0 (Statement, ResourceDescriptor); SLSA v1.0, provenance.
    """
    made = results(record, records)
    subject = subjects(made)
    if not subject:
        raise NoStatement("run %s has no outputs: a statement would be about nothing" % record["runId"])
    work = made + [(record, one) for one in record["stages"] if "keyParts" in one and one["status"] != "ok"]
    return {"_type": STATEMENT_TYPE, "subject": subject, "predicateType": PREDICATE_TYPE,
            "predicate": {"buildDefinition": _definition(record, work, subject),
                          "runDetails": _details(record, work, file_digests, entry, entry_digest)}}


def earlier_forms(value: Json, record: Json) -> List[Tuple[str, Optional[Json]]]:
    """Return [(how it differs, the statement)] as earlier runners made it of *record*, the newest form first; None: they made none.

    Whoever verifies a bundle that was put away long ago has today's verifier, perhaps.
    """
    def is_of_tasks(one: Json) -> bool:
        return bool(one["name"].startswith(("inputs:", "outputs:")))

    details = value["predicate"]["runDetails"]
    if "finishedOn" in details["metadata"]:
        details = dict(details, metadata=dict(details["metadata"], finishedOn=record["endedAt"]))
    by_clock = dict(value, predicate=dict(value["predicate"], runDetails=details))
    subject = [one for one in value["subject"] if not is_of_tasks(one)]
    definition = value["predicate"]["buildDefinition"]
    dependencies = [one for one in definition["resolvedDependencies"] if not is_of_tasks(one)]
    predicate = dict(by_clock["predicate"], buildDefinition=dict(definition, resolvedDependencies=dependencies))
    return [("as runners made it before: it ends when the clock said, which was set meanwhile", by_clock),
            ("as runners made it at first: it does not name the files of many tasks; the records do",
             dict(by_clock, subject=subject, predicate=predicate) if subject else None)]


def statement_text(value: Json) -> bytes:
    """Return the one byte form of a statement: ASCII, so that no console and no editor changes it."""
    return (json.dumps(value, indent=2, ensure_ascii=True, allow_nan=False) + "\n").encode("ascii")


def _resource(name: str, digest: str, media_type: str = "", use: Optional[Json] = None) -> Json:
    """Return a ResourceDescriptor; the values of annotations are objects, as spec v1.0 has it."""
    found: Json = {"name": name, "digest": {"sha256": digest}}
    if media_type:
        found["mediaType"] = media_type
    if use:
        found["annotations"] = {ANNOTATION: use}
    return found


def _definition(record: Json, work: List[Tuple[Json, Json]], subject: List[Json]) -> Json:
    stages = {}
    for _, one in work:
        parts = one["keyParts"]
        stages[one["stage"]] = {"args": parts.get("args") or [], "params": _params(parts.get("params") or "{}")}
    inside = {"invocation": record["invocation"], "state": record["state"]}
    inside.update((name, record[name]) for name in ("version", "python", "os", "host", "isolation") if name in record)
    return {"buildType": BUILD_TYPE,
            "externalParameters": {"pipeline": record["pipeline"], "runId": record["runId"],
                                   "stages": {name: stages[name] for name in sorted(stages)}},
            "internalParameters": inside,
            "resolvedDependencies": _dependencies(record, work, subject)}


def _params(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse, parse_float=_finite)
    except (ValueError, RecursionError):
        return text


def _dependencies(record: Json, work: List[Tuple[Json, Json]], subject: List[Json]) -> List[Json]:
    """Return each file that was used, once, with what for; an output that a later stage read is marked as a subject."""
    uses: Dict[Tuple[str, str], Set[Tuple[str, str]]] = {}
    if "specSha256" in record:
        uses[("spec:" + record["pipeline"], record["specSha256"])] = set()
    for maker, one in work:
        used = files_used(one)
        if "specSha256" in maker:
            used.append(("spec", "spec:" + maker["pipeline"], maker["specSha256"]))
        tasks = one["keyParts"].get("tasks")
        if tasks:
            used.append(("input", "inputs:" + one["stage"], tasks["sha256"]))      # of all files of forEach, path and SHA-256
        for role, path, digest in used:
            uses.setdefault((path, digest), set()).add((role, one["stage"]))
    made = {(one["name"], one["digest"]["sha256"]) for one in subject}
    found = []
    for path, digest in sorted(uses):
        what = uses[(path, digest)]
        use: Json = {"roles": sorted({role for role, _ in what} or {"spec"}), "stages": sorted({stage for _, stage in what})}
        if (path, digest) in made:
            use["subject"] = True
        found.append(_resource(path, digest, use=use))
    return found


def _details(record: Json, work: List[Tuple[Json, Json]], file_digests: Dict[RunKey, str], entry: Json, entry_digest: str) -> Json:
    builder: Json = {"id": BUILDER_ID}
    use: Json = {"digestOf": "names and contents of the runner's sources"}
    if record.get("runner"):
        builder["version"] = {"offline-pipeline-runner": record["runner"]}
    if record.get("runnerSha256"):
        builder["builderDependencies"] = [_resource("runner", record["runnerSha256"], use=use)]
    metadata = {"invocationId": "%s/%d/%s" % (record["runId"], record["invocation"], record["runHash"])}
    for name, moment in (("startedOn", record.get("startedAt")), ("finishedOn", finished_at(record))):
        if moment:
            metadata[name] = moment
    logs = {one["path"]: one["sha256"] for maker, stage in work for one in stage.get("logs") or []}
    byproducts = [_resource(path, logs[path], "text/plain", {"roles": ["log"]}) for path in sorted(logs)]
    told = {run_key(maker): maker for maker, _ in work + [(record, record)]}
    for key in sorted(told):
        use = {"roles": ["run record"], "runHash": told[key]["runHash"]}
        byproducts.append(_resource("run-record:%s/%d" % key, file_digests[key], "application/json", use))
    use = {"roles": ["ledger entry"], "seq": entry["seq"], "hash": entry["hash"]}
    byproducts.append(_resource("ledger-entry:%d" % entry["seq"], entry_digest, "application/json", use))
    return {"builder": builder, "metadata": metadata, "byproducts": byproducts}


# --- accepted keys, and stage records --------------------------------------------------------------------------------

def accepted_keys(work: Json, entries: List[Json]) -> List[Any]:
    """Return the key of a stage's work, and the keys that were accepted in its place since, in the order of the ledger."""
    keys = [work.get("key")]
    for one in entries:
        if (one.get("event"), one.get("stage")) == ("accept", work["stage"]) and one.get("oldKey") in keys:
            keys.append(one.get("newKey"))
    return keys


def skips_without_ground(record: Json, records: Dict[RunKey, Json], entries: List[Json]) -> List[str]:
    """Return the stages that a run skipped under a key that neither their maker had nor anybody accepted before."""
    found = []
    for one in record["stages"]:
        maker = records.get(makers(record).get(one["stage"], ("", 0)))
        work = stage_of(maker, one["stage"])
        if maker is not None and work is not None and one.get("key") not in accepted_keys(work, entries):
            found.append(one["stage"])
    return found


def stage_record_problem(stage: Json, records: Dict[RunKey, Json], entries: List[Json]) -> Optional[str]:
    """Return what in a stage record differs from the run record that it names, "" if nothing does.

    None if that run is not among *records*, or ended before its record could tell of the stage, or the stage is at work.
    *entries* are those of the ledger: an accepted key stands in for the recorded one.
    """
    try:
        maker = records.get((stage.get("lastRunId", ""), stage.get("lastInvocation", 0)))
        work = stage_of(maker, stage.get("stage", ""))
        if maker is None or stage.get("lastStatus") == "running":
            return None
        if stage_key(stage["keyParts"]) != stage.get("idempotencyKey"):
            return "keyParts are not those of its idempotencyKey"
        if work is None and stage.get("lastStatus") != "ok" and _may_lack(maker, stage["stage"]):
            return None
        if work is None:
            return "names run %s, whose record says nothing of this stage" % maker["runId"]
        keys = accepted_keys(work, entries)      # also the earlier: a kill may come between the entry and the stage record
        if stage.get("lastStatus") != work["status"]:
            return "lastStatus is not what run %s recorded" % maker["runId"]
        if stage.get("idempotencyKey") not in keys:
            return "idempotencyKey is not what run %s recorded" % maker["runId"]
        if work["status"] == "ok" and _plain(stage.get("outputs")) != _plain(work.get("outputs") or []):
            return "outputs are not what run %s recorded" % maker["runId"]
        if work["status"] == "ok" and _task_outputs(stage) != _task_outputs(work):
            return "tasks have not made what run %s recorded" % maker["runId"]
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
        return "is not of the form of a stage record"
    return ""


def _may_lack(maker: Json, stage: str) -> bool:
    """Tell whether a run may have worked on a stage of which its record does not tell so: it died, or an error ended it."""
    told = [one["status"] for one in maker["stages"] if one["stage"] == stage]
    return maker.get("endedAt") is None or maker["state"] in ("failed", "interrupted") and bool(told) and "skipped" not in told


def _task_outputs(stage: Json) -> List[Any]:
    tasks = stage.get("tasks") or {}
    return [tasks.get(name) for name in ("outputs", "outputBytes", "outputsSha256")]


def _plain(outputs: Any) -> List[Tuple[str, int, str]]:
    return sorted((one["path"], one["bytes"], one["sha256"]) for one in outputs)
