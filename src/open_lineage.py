"""--openlineage FILE: the run and its stages as OpenLineage run events, one JSON object per line, appended when the run has ended.

    run record -> events(): START and COMPLETE, FAIL or ABORT for the run, and within it for each stage that was worked on
               -> append(): whole lines, in one write

Above the leaves: it imports state_store. Loaded only when the option is given. A skipped stage has no events: nothing was
done; the lineage of its outputs was told by the run that made them. Ids are UUIDs made from the namespace, run id,
invocation and stage, so that telling the same run twice names the same runs.
Source: OpenLineage 2-0-2 (RunEvent), its Naming.md (files: namespace "file", the absolute path as name), and the facets
named in SCHEMAS.
"""
from __future__ import annotations

import json
import os

import durable_files
from model import sha256
from primitives import open_descriptor
from provenance import finished_at, later

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List
    Json = Dict[str, Any]

SPEC = "https://openlineage.io/spec/"
EVENT_SCHEMA = SPEC + "2-0-2/OpenLineage.json#/$defs/RunEvent"
SCHEMAS = {     # facet -> its schema
    "parent": SPEC + "facets/1-0-1/ParentRunFacet.json#/$defs/ParentRunFacet",
    "errorMessage": SPEC + "facets/1-0-0/ErrorMessageRunFacet.json#/$defs/ErrorMessageRunFacet",
    "processing_engine": SPEC + "facets/1-1-0/ProcessingEngineRunFacet.json#/$defs/ProcessingEngineRunFacet",
    "jobType": SPEC + "facets/2-0-3/JobTypeJobFacet.json#/$defs/JobTypeJobFacet",
    "version": SPEC + "facets/1-0-0/DatasetVersionDatasetFacet.json#/$defs/DatasetVersionDatasetFacet",
}
PRODUCER = "urn:offline-pipeline-runner:"       # a URI, as the specification asks; the version follows
NAMESPACE_VARIABLE = "OPENLINEAGE_NAMESPACE"    # the name that OpenLineage's own clients read
ENDS = {"completed": "COMPLETE", "ok": "COMPLETE", "interrupted": "ABORT", "waiting": "ABORT"}      # all else is a FAIL


def emit(store: Any, record: Json, metrics: Json, path: str, console: Any) -> None:
    """Append the events of a run that has ended to the file at *path*. What goes wrong is one [NOTE] line."""
    try:
        namespace = os.environ.get(NAMESPACE_VARIABLE) or str(record.get("host") or "localhost")
        append(path, events(record, metrics["timestamp"], store.root, namespace))
    except Exception as error:      # a report about the run must not change its outcome
        console.line("[NOTE] --openlineage %s: nothing was appended: %s"
                     % (path, getattr(error, "strerror", None) or error))


def append(path: str, found: List[Json]) -> None:
    """Append events as lines, in one write where the system takes it; half a line of a dead writer is ended first.

    Raises: OSError; then the file is as long as it was, if nobody else has appended meanwhile.
    """
    data = b"".join(json.dumps(one, ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode("ascii") + b"\n" for one in found)
    descriptor = open_descriptor(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o666)
    try:
        size = os.fstat(descriptor).st_size
        if size:
            os.lseek(descriptor, size - 1, os.SEEK_SET)
            if os.read(descriptor, 1) != b"\n":
                data = b"\n" + data
        try:
            durable_files.write_all(descriptor, data)
        except OSError:
            if os.fstat(descriptor).st_size < size + len(data):
                os.ftruncate(descriptor, size)
            raise
    finally:
        os.close(descriptor)


def events(record: Json, ended: str, root: str, namespace: str) -> List[Json]:
    """Return the events of a run in the order of their times: the run's start, each stage's start and end, the run's end. Pure.

    record: a run record; ended: when it ended, for records of runs whose end nobody saw. A stage that began outside of the run, for
    the clock was set meanwhile, stands after the one before it.
    """
    producer = PRODUCER + str(record.get("runner") or "0")
    run_id = run_uuid(namespace, root, record["runId"], record["invocation"], "")
    name = record["pipeline"]
    engine = {"processing_engine": _facet("processing_engine", producer, version=str(record.get("runner") or "0"),
                                          name="offline-pipeline-runner")}
    error = "; ".join("%s: %s" % (one["stage"], one["reason"]) for one in record["stages"] if one["status"] in ("failed", "interrupted"))
    ended = finished_at(record) or ended
    whole = _pair(record["state"], record["startedAt"], ended, run_id, engine,
                  _job(namespace, name, "DAG", producer), [], [], error, producer)
    inside: List[Json] = []
    parent = _facet("parent", producer, run={"runId": run_id}, job={"namespace": namespace, "name": name})
    clock = record["startedAt"]
    for one in record["stages"]:
        if one["status"] not in ("ok", "failed", "interrupted") or "keyParts" not in one:
            continue
        start = one.get("startedAt") or clock
        start = start if record["startedAt"] <= start <= ended else clock
        clock = later(start, one.get("durationMs") or 0)
        made = (one.get("outputs") or []) if one["status"] == "ok" else []
        folder = "%s/%s" % (root, one["keyParts"]["outputDir"])
        inside += _pair(one["status"], start, clock, run_uuid(namespace, root, record["runId"], record["invocation"], one["stage"]),
                        {"parent": parent}, _job(namespace, "%s.%s" % (name, one["stage"]), "TASK", producer),
                        [_dataset(os.path.join(root, item["path"]), item, producer) for item in [*(one.get("inputs") or []), *_globs(one)]],
                        [_dataset("%s/%s" % (folder, item["path"]), item, producer) for item in made],
                        one["reason"] if one["status"] != "ok" else "", producer)
    inside.sort(key=lambda event: str(event["eventTime"]))      # stable: a start stays before its end
    return [whole[0]] + inside + [whole[1]]


def _globs(entry: Json) -> List[Json]:
    """Return what a stage of tasks has its files from, as inputs: the files may be very many."""
    tasks = entry["keyParts"].get("tasks") or {}
    return [{"path": pattern, "sha256": tasks.get("sha256")} for pattern in tasks.get("forEach") or [] if "sha256" in tasks]


def _pair(status: str, start: str, end: str, run_id: str, facets: Json, job: Json, inputs: List[Json], outputs: List[Json], error: str,
          producer: str) -> List[Json]:
    """Return the two events of one run."""
    last = dict(facets)
    if error:
        last["errorMessage"] = _facet("errorMessage", producer, message=error, programmingLanguage="unknown")
    common = {"job": job, "inputs": inputs, "producer": producer, "schemaURL": EVENT_SCHEMA}
    return [dict({"eventType": "START", "eventTime": start, "run": {"runId": run_id, "facets": facets}, "outputs": []}, **common),
            dict({"eventType": ENDS.get(status, "FAIL"), "eventTime": max(start, end), "run": {"runId": run_id, "facets": last},
                  "outputs": outputs}, **common)]


def _job(namespace: str, name: str, kind: str, producer: str) -> Json:
    return {"namespace": namespace, "name": name, "facets": {
        "jobType": _facet("jobType", producer, processingType="BATCH", integration="OFFLINE_PIPELINE_RUNNER", jobType=kind)}}


def _dataset(path: str, item: Json, producer: str) -> Json:
    full = os.path.normpath(path).replace(os.sep, "/").lstrip("/")      # C:/x is /C:/x, as in a URI
    return {"namespace": "file", "name": "/" + full,
            "facets": {"version": _facet("version", producer, datasetVersion="sha256:" + item["sha256"])}}


def _facet(facet: str, producer: str, **fields: Any) -> Json:
    return dict({"_producer": producer, "_schemaURL": SCHEMAS[facet]}, **fields)


def run_uuid(namespace: str, root: str, run_id: str, invocation: int, stage: str) -> str:
    """Return the UUID of a run, or of a stage's part in it; always the same for the same.

    Version 8 of RFC 9562 (the bits are ours): a version 5 would be cut from SHA-1.
    """
    named = "\0".join(("openlineage", namespace, root, run_id, str(invocation), stage)).encode("utf-8", "surrogatepass")
    digest = bytearray(sha256(named).digest()[:16])
    digest[6] = digest[6] & 0x0F | 0x80
    digest[8] = digest[8] & 0x3F | 0x80
    text = digest.hex()
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))
