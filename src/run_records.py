"""What a run says of itself: its record, while it is at work and at its end, its metrics, and the caches that it leaves.

Above known_stages and run_ledger, below the engine, whose Run has one RunRecords.

    write_running() before the first stage is touched, and now and then -> seal(): digests, metrics, record, ledger entry, monitoring
"""
from __future__ import annotations

import sys

import durable_files
import known_stages
import run_ledger
import state_store
from console import describe_os_error
from model import VERSION, StageResult
from primitives import storable
from state_store import utc_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, List, Optional

    from durable_files import Commit
    from engine import Run
    Json = Dict[str, Any]

RECORD_S = 1.0              # a running run's record is written at most so often: it may name thousands of stages
RECORD_SHARE = 20           # ... and takes at most this part of the time
DEAR_BYTES = 64 << 20       # files of so many bytes are not hashed again after a kill


class RunRecords:
    """The records of one invocation.

    final: the run record, once it is sealed; metrics: what the metrics file says, once it is written; caches: {path: bytes} of
    stages of many tasks, to be written at the end.
    """

    def __init__(self, run: Run) -> None:
        """*run*: the engine's Run."""
        self.run = run
        self.final: Optional[Json] = None
        self.metrics: Json = {}
        self.caches: Dict[str, bytes] = {}
        self.pause_s = RECORD_S
        self.written = 0.0              # when the run record was last written
        self.stamp: Any = None          # and what it looked like then

    def of_state(self, state: str, stages: Optional[List[Json]] = None) -> Json:
        """Return the run record as it would be written now. stages: their entries, if not those of all that have ended."""
        run, ended = self.run, state != "running"
        duration_ms = int((run.clock.monotonic() - run.started) * 1000)
        is_part = not ended and len(run.selected) < len(run.spec.stages)       # who follows a log must know to what it never comes
        return {
            "runId": run.options.run_id, "invocation": run.invocation, "pipeline": run.spec.name, "version": run.spec.version,
            "specSha256": run.spec.sha256, "state": state, "startedAt": utc_text(run.started_utc),
            "endedAt": utc_text(run.clock.time()) if ended else None, "durationMs": duration_ms if ended else None,
            "stages": self._entries(stage_entry) if stages is None else stages, "isolation": run.isolation,
            "python": "%s %d.%d.%d" % ((sys.implementation.name,) + sys.version_info[:3]), "os": sys.platform, "runner": VERSION, **run.about,
            **({"selected": [stage.name for stage in run.selected]} if is_part else {})}

    def _entries(self, entry_of: Callable[[StageResult], Json]) -> Any:
        """Return the stages' entries for the run record or the metrics; with known stages, as a text made of ready ones."""
        run = self.run
        return [entry_of(result) for result in run.results] if run.known is None else run.known.entries(
            run.result_at, entry_of, entry_of is metrics_entry)

    # --- while the run is at work

    def is_due(self, result: StageResult) -> bool:
        """Tell whether the record was last written long enough ago. Not after each stage: what it lacks after a kill is told by
        the stage records, but of a stage of which that would be too much."""
        evidence = result.evidence
        return bool(self.run.clock.monotonic() - self.written >= self.pause_s) or run_ledger.is_much(
            evidence.get("logs", ()), evidence.get("networkRefusals", ()))

    def write_running(self, is_brief: bool = False) -> None:
        """Write the record of a run that goes on; is_brief: without the stages for which the index answered, of which there may
        be thousands."""
        run = self.run
        if not is_brief:
            run.durability.flush()                 # markers and logs that it speaks of are on the disk before it
        began = run.clock.monotonic()
        stages = [stage_entry(result) for result in run.results if result is not known_stages.KNOWN] if is_brief else None
        name = "run_%s.json" % run.options.run_id
        if self.stamp is not None and durable_files.stamp_of(run.store.path(name)) not in (self.stamp, None):
            return                                  # another run has closed this one as dead, which the ledger has; seal() will say so
        run.store.write(name, self.of_state("running", stages))
        self.stamp = durable_files.stamp_of(run.store.path(name))
        self.written = run.clock.monotonic()
        self.pause_s = max(RECORD_S, RECORD_SHARE * (self.written - began))     # it grows with the number of stages

    def save_dear_digests(self) -> None:
        """Store the digests taken if they were of many bytes: a kill shall not have them taken again."""
        if self.run.digests.unsaved_bytes >= DEAR_BYTES:
            with run_ledger.Held(self.run.ledger):
                self._write_digests()

    # --- at its end

    def seal(self, state: str) -> Json:
        """Write digests, metrics, the run record and its entry in the ledger, and tell the monitoring; return the record. Durable
        on return."""
        record = self.of_state(state)
        self.run.ledger.end(record, lambda: self._write_last(record), lambda: self._tell_monitoring(record))
        self.final = record
        return record

    def own_success(self, name: str) -> Optional[Json]:
        """Return the record of a stage if it says that this run has finished it, else None."""
        run = self.run
        try:
            record = state_store.StateStore(run.root, writable=False).stage(name)
        except (OSError, state_store.StateError):
            return None
        maker = (run.options.run_id, run.invocation, "ok")
        is_own = record is not None and (record.get("lastRunId"), record.get("lastInvocation"), record["lastStatus"]) == maker
        return record if is_own else None

    def _write_last(self, record: Json) -> None:
        """Write what only a finished run writes, and its digest into the run record; under the lock of the ledger."""
        self._write_digests()
        self.metrics = self._metrics()
        record["metrics"] = self.run.store.write_metrics(self.run.options.run_id, self.metrics)

    def _metrics(self) -> Json:
        run, count = self.run, self.run.counts()
        return {
            "runId": run.options.run_id, "invocation": run.invocation, "timestamp": utc_text(run.clock.time()), "totalStages": len(run.selected),
            "okStages": count["ok"], "skippedStages": count["skipped"], "failedStages": count["failed"] + count["interrupted"],
            "durationSec": round(run.clock.monotonic() - run.started, 6),
            "stages": self._entries(metrics_entry)}

    def _tell_monitoring(self, record: Json) -> None:
        """Refresh state/metrics.prom, append to --openlineage; what goes wrong there is a note and changes nothing."""
        import prometheus_text
        run = self.run
        looked_at = run.known.looked_at(run.result_at) if run.known is not None else None
        if looked_at is None or not prometheus_text.update(run.store, record, self.metrics, run.known.index.names,
                                                           {place: metrics_entry(result) for place, result in looked_at.items()}):
            prometheus_text.emit(run.store, record, self.metrics, run.spec, run.console)
        if run.options.open_lineage:
            import open_lineage
            open_lineage.emit(run.store, record, self.metrics, run.options.open_lineage, run.console)

    # --- caches

    def _write_digests(self) -> None:
        """Under the lock of the ledger, because other runs write the digests too."""
        digests = self.run.digests
        for path, data in self.caches.items():
            self._write_cache(path, data)
        self.caches.clear()
        if digests.changed:
            self._write_cache(digests.path, digests.to_bytes(), self.run.store.commit)
            digests.changed = False

    def _write_cache(self, path: str, data: bytes, commit: Optional[Commit] = None) -> None:
        """Write what only saves work: what goes wrong is a note. Durable with *commit*, once that is flushed."""
        try:
            durable_files.write_atomic(path, data, commit, durable=commit is not None)
        except OSError as error:
            self.run.console.line("[NOTE] a cache is not written: " + describe_os_error(error))


def metrics_entry(result: StageResult) -> Json:
    """Return a stage's part of the metrics."""
    return {"stage": result.name, "status": result.status, "durationSec": round(result.duration_s, 6), "attempts": result.attempts,
            "cpuSec": round(result.cpu_s, 6), "maxRssBytes": result.max_rss_bytes, "bytesIn": result.bytes_in,
            "bytesOut": result.bytes_out, "counts": result.counts,
            **({"tasks": result.evidence["tasks"]} if "tasks" in result.evidence else {})}


def stage_entry(result: StageResult) -> Json:
    """Return a stage's part of the run record; no floats, so that its canonical form is beyond doubt.

    The reason may name a file whose name is not UTF-8.
    """
    entry = {"stage": result.name, "status": result.status, "reason": storable(result.reason), "attempts": result.attempts,
             "durationMs": int(result.duration_s * 1000), "exitCode": result.exit_code, "key": result.key,
             "bytesIn": result.bytes_in, "bytesOut": result.bytes_out, "counts": result.counts}
    if result.status not in ("skipped", "notRun", "waiting"):
        entry["outputs"] = result.outputs       # a skipped stage's stand in the record of the run that made them
    entry.update(result.evidence)
    return entry
