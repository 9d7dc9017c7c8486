"""A long history written directly in the format of the records: to make one with the runner would take hours.

Only for measuring; what the runner really writes is tested on histories that it made.
"""
from __future__ import annotations

import hashlib
import json
import os

from ledger_format import canonical_json, entry_hash, entry_line, run_hash, stage_key

STAGES = ("fetch", "report")


def digest_of(data):
    return hashlib.sha256(data).hexdigest()


def put(root, path, data):
    full = os.path.join(root, *path.split("/"))
    os.makedirs(os.path.dirname(full), exist_ok=True)
    with open(full, "wb") as file:
        file.write(data)
    return {"path": path, "bytes": len(data), "sha256": digest_of(data)}


class History:
    """A root with a ledger that grows by whole runs."""

    def __init__(self, root):
        self.root, self.last, self.lines = root, None, []

    def append(self, event, run_id, **more):
        last = self.last
        entry = {"schema": 1, "seq": last["seq"] + 1 if last else 1, "prevHash": last["hash"] if last else None, "event": event,
                 "at": "2026-01-01T00:00:00.000Z", "runId": run_id, "invocation": 1, "pipeline": "long",
                 "lastRunHash": more.get("runHash") or (last["lastRunHash"] if last else None), "open": {run_id: 1} if event == "begin" else {}, **more}
        entry["hash"] = entry_hash(entry)
        self.last = entry
        self.lines.append(entry_line(entry))

    def stage(self, run_id, name, output):
        """Write one stage's log and record; return its entry in the run record."""
        source = digest_of(run_id.encode())
        parts = {"keyVersion": 1, "pipeline": "long", "stage": name, "outputDir": "data/" + name, "outputs": None,
                 "processor": {"path": "bin/%s.py" % name, "sha256": digest_of(name.encode()), "mtimeNs": 1700000000123456789},
                 "modules": [["bin/kit.py", digest_of(b"kit")]], "args": [], "params": {"day": run_id, "rate": 0.5}, "env": {}, "passEnv": None,
                 "inputs": [["data/in/%s.txt" % run_id, source]], "watch": []}
        recorded = dict(parts, params=canonical_json(parts["params"]).decode(), processor=dict(parts["processor"], mtimeNs="1700000000123456789"))
        record = {"schema": 1, "stage": name, "pipeline": "long", "lastStatus": "ok", "idempotencyKey": stage_key(parts), "keyParts": parts,
                  "outputs": [output], "lastRunId": run_id, "lastInvocation": 1}
        put(self.root, "state/stage_%s.json" % name, json.dumps(record, indent=1).encode())
        log = put(self.root, "state/logs/%s/%s.1.log" % (run_id, name), b"read 10 lines of %s\n" % run_id.encode())
        return {"stage": name, "status": "ok", "reason": "", "attempts": 1, "durationMs": 5, "exitCode": 0, "key": stage_key(parts), "bytesIn": 1, "bytesOut": 1,
                "counts": {}, "keyParts": recorded, "argv": ["python", "bin/%s.py" % name], "outputs": [output], "logs": [log], "networkRefusals": [],
                "inputs": [{"path": path, "bytes": 1, "sha256": sha} for path, sha in parts["inputs"]]}

    def run(self, run_id):
        self.append("begin", run_id)
        stages = []
        for name in STAGES:
            output = put(self.root, "data/%s/%s.txt" % (name, run_id), run_id.encode())
            stages.append(self.stage(run_id, name, dict(output, path="%s.txt" % run_id)))
        metrics = put(self.root, "state/metrics_%s.json" % run_id, json.dumps({"runId": run_id, "durationSec": 0.01}).encode())
        record = {"schema": 1, "runId": run_id, "invocation": 1, "pipeline": "long", "version": "", "specSha256": digest_of(b"spec"), "state": "completed",
                  "startedAt": "2026-01-01T00:00:00.000Z", "endedAt": "2026-01-01T00:00:01.000Z", "durationMs": 1000, "stages": stages,
                  "metrics": {"bytes": metrics["bytes"], "sha256": metrics["sha256"]}, "prevRunHash": self.last["lastRunHash"]}
        record["runHash"] = run_hash(record)
        put(self.root, "state/run_%s.json" % run_id, json.dumps(record, indent=1).encode())
        self.append("end", run_id, state="completed", runHash=record["runHash"])

    def finish(self):
        put(self.root, "state/ledger.jsonl", b"".join(self.lines))


def make(root, runs):
    """Write a history of so many runs of two stages each."""
    history = History(str(root))
    for number in range(runs):
        history.run("r%06d" % number)
    history.finish()
