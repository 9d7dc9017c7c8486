#!/usr/bin/env python3
"""Run a pipeline of batch stages so that a kill, a power cut or a full disk loses nothing and doubles nothing.

    python src/pipeline_runner.py --pipeline pipeline.json --run-id demo1

Needs Python 3.8 or newer and its standard library, nothing else. Data flows one way:

    argv -> PipelineSpec -> Decision (run, skip, resume; with reasons) -> attempts -> stage record -> run record -> exit code

A processor that fails is a result, not an exception; exceptions mean that the runner cannot go on, and only
main() catches them. Sections stand bottom-up, each uses only those above it:

     1 Constants      3 State        5 Engine
     2 Spec           4 Planning     6 Command line

This file is compiled anew at each start, the modules beside it are cached as bytecode: what a run in which nothing
changed does not need stands there, and so does what is a concern of its own. They never import this file. `primitives` (JSON,
SHA-256) and `model` (the values and errors) may be imported by all; leaves import nothing else of ours; what stands on them may also import what
is named before it.

    leaves   spec_checks  spec_source  file_digests  path_signs  state_store  stage_locks  stage_outputs  process_tree  attempts
             environment  import_scan  hook_log  node_report  ledger_format  log_events  text_table  stage_progress
             task_log  task_files  chunk_files  forked_task (what makes a forked process like a fresh one)  starter_texts
             svg_shapes  control_totals  arrivals  stop_times
    on them  launch_lease (may a launched task run, and does it)  node_exec (such a task on its machine)  offline_guard
             launch_helper (starts launchers)  live_view (lines of the running stages)  console (what the user sees)
             command_line  program_scan (what is scanned)  fork_server  fork_client  stage_keys (what a stage depends on)
             stage_order (what comes before what)  reasons (why it must run)  run_ledger  run_history (runs as the ledger
             and the records tell)  seal_keys  network_watch (the guard of a run)  task_look (what a stage of many tasks
             has to do)  scheduler (which attempt is started when)  stage_work (a stage that must run, under its lock:
             attempts, retries, checks, records)  task_work (the same, of several tasks)  chunk_work (the same, of parts
             of files)  run_alarms (commands after a run)  acceptance  provenance  ledger_verify  evidence_verify
             ledger_export  ledger_commands  starters (init, new-stage)  run_pruning (gc)  housekeeping (clean, reset)
             stage_logs  stage_explanation  look_commands (status, history, logs, explain)  prometheus_text  open_lineage
             (both: what monitoring reads)  quick_index  quick_run (nothing changed)  known_stages  index_writer
             pipeline_graph  run_report (what a report says)
             report_html  report_commands
"""
from __future__ import annotations

import os
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, List, Optional, Sequence, Set, Tuple

    from scheduler import Flow
    Json = Dict[str, Any]

_HERE = os.path.dirname(os.path.abspath(__file__))
BYTECODE_BYTES = 16 << 20   # of free space; with less, nobody here caches bytecode


def _guard_bytecode(folder: str) -> None:
    """Cache no bytecode on a disk that may fill up: Python takes a file that was cut short for whole, and fails at each later start."""
    try:
        found = os.statvfs(folder)
    except (AttributeError, OSError):
        return                      # Windows
    if found.f_bavail * found.f_frsize < BYTECODE_BYTES:
        sys.dont_write_bytecode = True      # and so for processors, see stage_work


if __name__ == "__main__":
    _guard_bytecode(_HERE)
if _HERE not in sys.path:
    sys.path.insert(0, _HERE)       # our modules are found also when this file is imported as src.pipeline_runner

import _signal  # type: ignore[import-not-found]  # noqa: E402

if __name__ == "__main__" and _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)     # until main() can say so in one line

from console import Console, describe_os_error, open_missing_streams, silence_closed_streams  # noqa: E402

_STARTED = time.monotonic()
_FOUND: Any = None              # what the index says: quick_run.Found, None, or the error that the quick run ended with
if __name__ == "__main__":
    open_missing_streams()
    import quick_run
    _FOUND = quick_run.attempt(sys.argv[1:])    # before the rest is loaded: where nothing changed, it is not needed
    if isinstance(_FOUND, int):
        silence_closed_streams()
        raise SystemExit(_FOUND)

import command_line  # noqa: E402
import environment  # noqa: E402
import run_ledger  # noqa: E402
import spec_checks  # noqa: E402
import stage_locks  # noqa: E402
import state_store  # noqa: E402
from file_digests import Digests, resolve  # noqa: E402
from model import (  # noqa: E402
    EXIT_FAILED, EXIT_INTERNAL, EXIT_OFFLINE, EXIT_OK, EXIT_STATE, EXIT_STOPPED, Chunks, Clock, Decision, Facts, Material, Offline,
    OfflineError, Options, PipelineSpec, Retry, SpecError, StageResult, StageSpec, UsageError, sha256)
from program_scan import check_offline, runner_digest  # noqa: E402
from stage_keys import compute_idempotency_key, gather_material, output_problems  # noqa: E402, F401
from state_store import StateStore, utc_text  # noqa: E402

# === 1. Constants ====================================================================================================

VERSION = "0.1.0"
MAX_SPEC_BYTES = 8 << 20
RECORD_SHARE = 20           # ... and takes at most this part of the time
RECORD_S = 1.0              # a running run's record is written at most so often: it may name thousands of stages
DEAR_BYTES = 64 << 20       # files of so many bytes are not hashed again after a kill
SHOWN_CHANGES = 5           # of the reasons why a stage runs, on one line
EXIT_TEMPFAIL = 75          # EX_TEMPFAIL of sysexits.h: the processor asks for a retry


# === 2. Spec =========================================================================================================
# text -> JSON value -> checked value -> PipelineSpec. Where in the text a problem stands is looked up only when there
# is one.

def load_pipeline(path: str, root: Optional[str] = None) -> PipelineSpec:
    """Read and check a pipeline file.

    root defaults to the folder of the file. Raises: SpecError with every problem that the file has; UsageError
    when it cannot be read.
    """
    shown = os.fspath(path)
    try:
        with open(shown, "rb") as file:
            data = file.read(MAX_SPEC_BYTES + 1)
    except OSError as error:
        raise UsageError("%s: cannot read the pipeline file: %s; name it with --pipeline FILE%s" % (
            shown, error.strerror, "; init DIR writes a first one" if isinstance(error, FileNotFoundError) else "")) from None
    full = os.path.abspath(shown)
    root = os.path.abspath(root if root is not None else os.path.dirname(full))
    text = _decode_spec(data, shown)
    value, document = _parse_spec(text)
    problems = spec_checks.Problems()
    checked = None
    if document is None or document.complete:
        checked = spec_checks.check_pipeline(value, root, command_line.nearest, problems)
    stages = tuple(_build_stage(one) for one in checked["stages"]) if checked is not None else ()
    if checked is not None and checked["order"] == "graph":
        _check_cycles(stages, problems)
    if checked is None or problems.found or document is not None:
        raise SpecError("\n".join(_problem_lines(shown, text, document, problems)))
    offline, key_file = checked["offline"], checked["seal"].get("keyFile", "")
    return PipelineSpec(checked["name"], checked["version"], checked["description"],
                        Offline(tuple(offline.get("allow", ())), offline.get("require", "scan"), offline.get("strict", False), tuple(offline["layers"])),
                        os.path.join(root, os.path.expanduser(key_file)) if key_file else "",
                        stages, full, root, sha256(data).hexdigest(),
                        checked["order"], tuple(checked["onFailure"]), tuple(checked["onSuccess"]))


def _check_cycles(stages: Sequence[StageSpec], problems: spec_checks.Problems) -> None:
    """Report a cycle of stages that need one another, by `needs` or by files."""
    import stage_order
    cycle = stage_order.find_cycle(stage_order.edges(stages))
    if cycle:
        place = next(place for place, stage in enumerate(stages) if stage.name == cycle[0])
        problems.add(("stages", place), "needs itself by what it reads or needs: %s" % " <- ".join(cycle))


def _decode_spec(data: bytes, shown: str) -> str:
    if len(data) > MAX_SPEC_BYTES:
        raise SpecError("%s:1:1: larger than %d bytes; split the pipeline" % (shown, MAX_SPEC_BYTES))
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = len(data[data.rfind(b"\n", 0, error.start) + 1:error.start].decode("utf-8", "replace")) + 1
        raise SpecError("%s:%d:%d: byte 0x%02x is not UTF-8; save the file as UTF-8" % (shown, line, column, data[error.start])) from None


def _parse_spec(text: str) -> Tuple[Any, Any]:
    """Return (value, None) for flawless JSON, else (value, Document) from the parser that knows positions."""
    try:
        return spec_checks.strict_json(text), None
    except (ValueError, RecursionError, MemoryError):
        pass
    import spec_source
    document = spec_source.parse(text)
    return document.value, document if document.problems else None


def _problem_lines(shown: str, text: str, document: Any, problems: spec_checks.Problems) -> List[str]:
    import spec_source
    document = document or spec_source.parse(text)
    lines = [(line, column, path, message) for line, column, path, message in document.problems]
    for path, message in problems.found:
        position = document.key_position(path) if message.startswith("unknown key") else document.position(path)
        lines.append((position[0], position[1], path, message))
    lines.sort(key=lambda one: one[:2])
    return ["%s:%d:%d: %s%s" % (shown, line, column, spec_source.path_text(path) + ": " if path else "", message)
            for line, column, path, message in lines]


def _build_stage(merged: Json) -> StageSpec:
    retry = merged["retry"]
    codes = retry["exitCodes"]
    return StageSpec(
        merged["name"], merged["processor"], tuple(merged["args"]), tuple(merged["inputs"]), merged["allowNoInputs"],
        merged["outputDir"], None if merged["outputs"] is None else tuple(merged["outputs"]), merged["params"],
        merged["env"], None if merged["passEnv"] is None else tuple(merged["passEnv"]), tuple(merged["watch"]),
        tuple(merged["needs"]), merged["idempotency"]["enabled"], merged["idempotency"]["processor"] == "mtime",
        merged["checkpoint"]["enabled"], merged["checkpoint"]["lineInterval"],
        Retry(retry["attempts"], retry["baseDelayMs"], retry["maxDelayMs"], retry["jitterMs"], None if codes is None else tuple(codes)),
        merged["timeoutSec"], merged["graceSec"], merged["lock"]["waitSeconds"], merged["resources"], merged["simulateFailAttempts"],
        merged["networkAttempts"], tuple(merged["forEach"]), merged["maxFailedTasks"], merged["prune"], _build_chunks(merged["chunks"]),
        tuple(merged["launcher"]), merged["forkServer"], merged["settleSec"], merged["reconcile"], merged["maxRejects"])


def _build_chunks(chunks: Optional[Json]) -> Optional[Chunks]:
    if chunks is None:
        return None
    return Chunks(chunks["bytes"], chunks.get("keepChunks", False), chunks.get("filter", False), chunks.get("headerLines", 0))


# === 3. State ========================================================================================================

def save_stage_state(name: str, record: Json, root: str = ".") -> None:
    """Write state/stage_<name>.json below *root*, durably. Raises: UsageError for a bad name; OSError."""
    _save_record("stage_%s.json", name, record, root)


def save_run_state(run_id: str, record: Json, root: str = ".") -> None:
    """Write state/run_<id>.json below *root*, durably. Raises: UsageError for a bad run id; OSError."""
    _save_record("run_%s.json", run_id, record, root)


def _save_record(pattern: str, name: str, record: Json, root: str) -> None:
    problem = spec_checks.name_problem(name)
    if problem:
        raise UsageError("%s %s" % (spec_checks.shown_value(name), problem))
    store = StateStore(os.path.abspath(root))
    store.prepare()
    store.write(pattern % name, record)
    store.commit.flush()


def observe(spec: PipelineSpec, stage: StageSpec, digests: Digests, store: StateStore, boot: str, left: Sequence[Tuple[str, str]] = ()) -> Facts:
    """Look at all that the decision about a stage depends on; write nothing. Raises: StateError.

    left: (path, why) of files of `forEach` that are left for a later run.
    """
    if stage.for_each:
        import task_look
        return task_look.observe_tasks(spec, stage, digests, store, boot, left)
    material = gather_material(spec, stage, digests, store)
    record = store.stage(stage.name)
    if material.missing:
        return Facts(material, record, None, [], None, False)
    marker = state_store.read_marker(state_store.marker_path(spec.root, stage.output_dir, stage.name))
    problems = output_problems(digests, stage, record) if record is not None and record["lastStatus"] == "ok" else []
    if marker is None and os.path.lexists(state_store.lost_path(spec.root, stage.output_dir, stage.name)):
        problems.append("the outputs could not be brought to the disk")
    facts = Facts(material, record, marker, problems, None, False)
    if not reasons_to_run(stage, facts):
        return facts
    if stage.checkpoint and os.path.lexists(store.path("progress_%s.json" % stage.name)):
        import stage_work
        facts = facts._replace(checkpoint=stage_work.read_checkpoint(store, stage, record, material.key, boot))
    if record is not None and record["lastStatus"] == "ok" and marker is None and not problems:
        facts = facts._replace(sealable=state_store.died_before_marker(store, stage.name, record))
    return facts


def folders_of(spec: PipelineSpec, store: StateStore) -> Any:
    """Return the stages by output folder, made once in a run."""
    if "folders" not in store.memo:
        import stage_order
        store.memo["folders"] = stage_order.Folders(spec.stages)
    return store.memo["folders"]


def makers_of(spec: PipelineSpec, stage: StageSpec, inputs: Sequence[str], store: StateStore) -> List[Tuple[str, str, Json]]:
    """Return (name, output folder, record) of the other stages in whose folders *inputs* lie. Raises: StateError."""
    found = []
    for other in folders_of(spec, store).holders({os.path.dirname(path) for path in inputs}):
        record = store.stage(other.name) if other.name != stage.name else None
        if record is not None:
            found.append((other.name, other.output_dir, record))
    return found


def inputs_and_makers(spec: PipelineSpec, stage: StageSpec, facts: Facts, store: StateStore) -> Tuple[List[Sequence[str]], List[Tuple[str, str, Json]]]:
    """Return (path and SHA-256 of all that the stage reads, those of its tasks included; the records of who may have made them)."""
    inputs: List[Sequence[str]] = list(facts.material.parts["inputs"])
    if facts.tasks is not None:
        inputs += zip(facts.tasks.paths, facts.tasks.digests)
    return inputs, makers_of(spec, stage, [path for path, _ in inputs], store)


def look_at(spec: PipelineSpec, stage: StageSpec, digests: Digests, store: StateStore, boot: str, forced: bool, now_ns: Any) -> Tuple[Decision, Facts]:
    """Observe and decide, inputs that are still arriving and control totals included. now_ns: see arrivals.unsettled()."""
    left: List[Tuple[str, str]] = []
    if stage.settle_s:
        import arrivals
        inputs, files = resolve(spec.root, stage.inputs)[0], resolve(spec.root, stage.for_each)[0]
        left = arrivals.still_arriving(spec.root, stage, files, makers_of(spec, stage, files, store), now_ns)
        waiting = arrivals.still_arriving(spec.root, stage, inputs, makers_of(spec, stage, inputs, store), now_ns)
        if waiting or left and len(left) == len(files):
            return Decision("WAITING", [arrivals.waiting_text(stage, waiting + left)], 0, ""), Facts(Material("", {}, [], [], [], {}, 0), None, None, [], None, False)
    facts = observe(spec, stage, digests, store, boot, left)
    decision = decide(stage, facts, forced)
    if decision.action in ("RUN", "RESUME"):
        import control_totals
        refused = control_totals.refused_inputs(*inputs_and_makers(spec, stage, facts, store))
        return (Decision("FAIL", refused, 0, "") if refused else decision), facts
    if decision.action in ("SKIP", "SEAL") and (stage.reconcile or stage.max_rejects is not None):
        decision = judge_again(spec, stage, decision, facts, store)
    return decision, facts


def judge_again(spec: PipelineSpec, stage: StageSpec, decision: Decision, facts: Facts, store: StateStore) -> Decision:
    """Judge the recorded counts of a stage that is up to date: what the spec asks of them may have become stricter since."""
    import control_totals
    counts = facts.record.get("counts") or {}
    missing = ["usable counts"] if control_totals.counts_problem(counts) else control_totals.missing_counts(stage, counts)
    if missing:
        return Decision("RUN", ["its record has no count of %s, which is asked for now" % " and ".join(missing)], 0, "")
    expected, _ = control_totals.expected_read(*inputs_and_makers(spec, stage, facts, store))
    paths = ["%s/%s" % (stage.output_dir, one["path"]) for one in facts.record["outputs"]]
    why = control_totals.judge(stage, counts, expected, paths)
    return Decision("FAIL", ["%s; recorded by run %s" % (why, facts.record.get("lastRunId"))], 0, "") if why else decision


# === 4. Planning: what must run, and why (pure) ======================================================================

def decide(stage: StageSpec, facts: Facts, forced: bool) -> Decision:
    """Decide what to do with a stage from what was observed; the reasons are for people."""
    if facts.material.missing:
        return Decision("FAIL", facts.material.missing, 0, "")
    if facts.tasks is not None:
        import task_look
        return task_look.decide_tasks(stage, facts, forced)
    found = facts.checkpoint
    if forced:
        return Decision("RUN", ["forced"], 0, "the stage was forced" if found is not None and not found.complete else "")
    reasons = reasons_to_run(stage, facts)
    if not reasons:
        return Decision("SKIP", ["up to date: key %s unchanged, %d output%s verified" % (
            facts.material.key[:12], len(facts.record["outputs"]), "" if len(facts.record["outputs"]) == 1 else "s")], 0, "")
    if facts.sealable and reasons == [NO_MARKER]:
        return Decision("SEAL", ["up to date: finished by run %s, which died before it wrote the marker; marker restored" % facts.record.get("lastRunId")], 0, "")
    if found is None:
        return Decision("RUN", reasons, 0, "")
    if found.problem:
        return Decision("RUN", reasons, 0, "" if found.complete else found.problem)
    if found.resumable:
        return Decision("RESUME", reasons, found.line_offset, "")
    return Decision("RUN", reasons, 0, "")


NO_MARKER = "marker missing"


def reasons_to_run(stage: StageSpec, facts: Facts) -> List[str]:
    """Return why the stage is not up to date, [] if it is; the first kind of reason hides the others."""
    record = facts.record
    if record is None:
        return ["no record of an earlier run"]
    if record["idempotencyKey"] != facts.material.key:
        import reasons
        changes = reasons.key_changes(record["keyParts"], facts.material.parts) or ["key changed"]
        more = len(changes) - SHOWN_CHANGES
        return changes[:SHOWN_CHANGES] + (["and %d more changes" % more] if more > 0 else [])
    if record["lastStatus"] != "ok":
        return ["last run %s" % {"running": "died", "interrupted": "was interrupted"}.get(record["lastStatus"], "failed: %s" % record.get("lastError"))]
    if record.get("cleaned"):
        return ["its outputs were removed by clean"]
    if not stage.idempotent:
        return ["idempotency is disabled"]
    found = list(facts.output_problems)
    if facts.marker_key is None:
        found.append(NO_MARKER)
    elif facts.marker_key != facts.material.key:
        found.append("the marker is of another key")
    return found


def select_stages(spec: PipelineSpec, options: Options) -> List[StageSpec]:
    """Return the stages that --only, --from and --until leave. Raises: UsageError for an unknown name."""
    names = [stage.name for stage in spec.stages]
    for name in sorted(options.force | options.only) + [one for one in (options.first, options.last) if one]:
        if name not in names:
            near = command_line.nearest(name, names)
            raise UsageError("no stage is named %s%s" % (spec_checks.shown_value(name), "; did you mean %s?" % near if near else "; there are: %s" % ", ".join(names)))
    first = names.index(options.first) if options.first else 0
    last = names.index(options.last) if options.last else len(names) - 1
    if first > last:
        raise UsageError("--from %s comes after --until %s" % (options.first, options.last))
    return [stage for place, stage in enumerate(spec.stages) if first <= place <= last and (not options.only or stage.name in options.only)]


def override_params(spec: PipelineSpec, params: Json) -> PipelineSpec:
    """Return the spec with --set values in each stage that has such a param. Raises: UsageError if none has."""
    known = sorted({name for stage in spec.stages for name in stage.params})
    for name in params:
        if name not in known:
            near = command_line.nearest(name, known)
            raise UsageError("--set %s: no stage has a param of that name; %s" % (
                name, "did you mean %s?" % near if near else "there are: %s" % ", ".join(known) if known else "give it a value in the params of a stage first"))
    stages = [stage._replace(params={**stage.params, **{name: value for name, value in params.items() if name in stage.params}}) for stage in spec.stages]
    return spec._replace(stages=tuple(stages))


# === 5. Engine =======================================================================================================

class Run:
    """One invocation of a run: the stages in order, their records, the run record.

    Order of the durable steps of a stage: lock, read state and decide again, marker removed, checkpoint of other work
    set aside, record "running" with the key, attempts, whole tree ended, outputs checked and hashed, stage record, marker.
    A kill between any two leaves what the next run can tell from a finished stage.
    """

    def __init__(self, spec: PipelineSpec, options: Options, console: Console, clock: Clock, known: Any = None) -> None:
        """*known* is a known_stages.KnownStages: the stages that the index answers for; None if it says nothing."""
        self.spec, self.options, self.console, self.clock = spec, options, console, clock
        self.root = spec.root
        self.selected = select_stages(spec, options)
        self.boot = state_store.boot_id()
        self.store = StateStore(spec.root, now=clock.time)
        self.digests = Digests(spec.root, self.boot, rehash=options.rehash)
        self.ledger = new_ledger(spec, options, self.store, clock)
        self.result_of: Dict[str, StageResult] = {}
        self.stop_time: Any = None
        self.final: Optional[Json] = None       # the run record, once it is sealed
        self.invocation = 1
        self.is_open = False
        self.signals: Any = None
        self.guardian: Any = None
        self.network: Any = None        # the guard, once the network is closed
        self.known = known
        self.looked: Dict[str, List[str]] = {}      # of skipped stages, the files that the decision was made of
        self.record_pause_s = RECORD_S
        self.recorded = 0.0             # when the run record was last written
        self.metrics: Json = {}         # what the metrics file says, once it is written
        self.launches: Any = None       # starts the launchers, if a stage has one
        self.pool: Any = None           # the attempts under way
        self.scheduler: Any = None      # once an attempt must be started
        self.works: Dict[str, Any] = {} # stages at work
        self.made_folders: Set[str] = set()     # that need not be looked for again
        self.expected: Any = None       # how long each stage took before, once the live view has asked
        self.caches: Dict[str, bytes] = {}      # of stages of many tasks, to be written at the end
        self.unfit = ""                 # the stage from which the runner could not go on

    @property
    def results(self) -> List[StageResult]:
        """What became of the stages so far, in the order listed."""
        return [self.result_of[stage.name] for stage in self.selected if stage.name in self.result_of]

    def run(self) -> int:
        """Run the selected stages; return the exit code. Raises what the runner cannot go on from, records written."""
        self.started, self.started_utc = self.clock.monotonic(), self.clock.time()
        if self.options.stop_by or self.options.stop_after_s:
            import stop_times
            self.stop_time = stop_times.of_options(self.options, self.clock)
        nothing = {"method": "none", "why": "no processor was started"}
        self.isolation: Json = {"scan": self._scan(), "kernel": nothing, "hook": "none"}
        self.idle_isolation = dict(self.isolation)
        if self.spec.offline.require == "kernel":
            self._close_network()       # fails before anything is written
        self.store.prepare()
        self.begun = self.process_begin()
        lock = stage_locks.FileLock(self.root, self.options.run_id + ".run", self.clock)
        is_known = os.path.lexists(lock.path)       # nobody removes it: the id has been used
        lock.acquire(0, run_ledger.ID_IN_USE % self.options.run_id)
        code = EXIT_FAILED
        try:
            self.ledger.prepare()
            self.invocation = run_ledger.next_invocation(self.ledger, self.options.run_id, is_known)
            self._tell_healed()
            for stage in self.selected if self.known is None else self.known.not_covered(self.selected):
                self.store.stage(stage.name)        # damaged state is found before any work is done
            code = self._run_to_its_record()
            return code
        finally:
            self._alarm(code)
            if self.guardian is not None:
                self.guardian.close()
            if self.launches is not None:
                self.launches.close()
            lock.release()

    def _run_to_its_record(self) -> int:
        try:
            code = self._run_stages()
        except BaseException as error:
            self._finish_after(error)
            raise
        try:
            self._finish(code)
        except OSError as error:
            if code == EXIT_OK:
                raise
            self.console.error("error: " + describe_os_error(error))    # a failed stage stays the first cause
        return code

    def _alarm(self, code: int) -> None:
        """Run the command that the spec wants after a run that ended so; whatever it does, the outcome stays."""
        if self.spec.on_failure or self.spec.on_success:
            import run_alarms
            run_alarms.after_run(self, code)

    def _scan(self) -> Json:
        """Look for uses of the network, and at the runner itself; return what the record says of the scan. Raises: OfflineError."""
        if self.known is not None:      # the index holds only while all that is scanned is what it was
            self.console.warnings(self.known.about["warnings"])
            self.about = self.known.about["about"]
            return dict(self.known.about["scan"])
        scan = check_offline(self.spec, self.digests, self.console)
        self.about = {"host": stage_locks.host_name(), "user": environment.user_name(), "runnerSha256": runner_digest(self.digests)}
        return scan

    def process_begin(self) -> Tuple[int, int, int]:
        """Return when this process began, in ns, by the clock of the file system and by ours, and the file system's device."""
        now, device = self.digests.file_system_time()
        elapsed = int((time.monotonic() - _STARTED) * 1e9)
        return now - elapsed, time.time_ns() - elapsed, device

    def _run_stages(self) -> int:
        import stage_order
        order = stage_order.Order(self.selected, self.spec.order == "graph", self._may_share)
        code = EXIT_OK
        while True:
            code = self._begin_stages(order, code)
            ended = self.scheduler.ended() if self.scheduler is not None else None
            if ended is None:
                break
            code = self._stage_ended(order, ended[0], ended[1], code)
        for stage in self.selected:
            if stage.name not in self.result_of:
                self.result_of[stage.name] = StageResult.of(stage.name, "notRun", self._why_not_run(order, stage.name))
        statuses = {result.status for result in self.results}
        if code == EXIT_STOPPED and statuses <= {"ok", "skipped"}:
            return EXIT_OK              # the time was over when all was done
        return code or (EXIT_STOPPED if "waiting" in statuses else EXIT_OK)

    def _why_not_run(self, order: Any, name: str) -> str:
        blocker = first = order.blocked.get(name)
        while first in order.blocked:
            first = order.blocked[first]
        if blocker is None:
            return self._clock_text() or "the run ended before it"
        is_waiting = first in self.result_of and self.result_of[first].status == "waiting"
        return "waits for %s" % blocker if is_waiting else "stage %s did not end well" % blocker

    def _begin_stages(self, order: Any, code: int) -> int:
        """Begin all stages that may start now; return the exit code so far."""
        while not self._is_ending(code):
            if self.known is not None and self._take_known(order):
                continue
            stage = order.next()
            if stage is None:
                break
            if not self._has_room(stage):
                order.put_back(stage)
                break
            flow = self._stage_flow(stage)
            try:
                wish = next(flow)
            except StopIteration as stop:
                code = self._stage_ended(order, stage.name, stop.value, code)
            except BaseException as error:
                if self.scheduler is None or not self.scheduler.alive:
                    raise
                self.scheduler.error = error        # raised when those at work have come to their end
            else:
                self._scheduler().take(stage.name, flow, wish)
                self.scheduler.step()
        return code or self._stopped()

    def _take_known(self, order: Any) -> bool:
        """Take the next stages that the index answers for, in one go; tell whether there were some."""
        place = order.next_place()
        results = self.known.answers(place, self.is_open) if place is not None else []
        if results:
            self.console.lines(self.known.lines(results))
            self.result_of.update((result.name, result) for result in results)
            order.go_on_at(place + len(results))
        return bool(results)

    def _is_ending(self, code: int) -> bool:
        """Tell whether no further stage is begun: the running ones come to their end."""
        is_failing = self.scheduler is not None and self.scheduler.error is not None
        return bool(is_failing or self._stopped() or code and not self.options.keep_going)

    def _has_room(self, stage: StageSpec) -> bool:
        if self.scheduler is None or not self.scheduler.alive:
            return True
        memory = stage.local_resources.get("memoryMB", 0)
        return bool(self.scheduler.free_cores() >= stage.local_resources.get("cpuCores", 1) and self.scheduler.has_memory(memory))

    def _may_share(self, one: StageSpec, other: StageSpec) -> bool:
        """Tell whether two stages may be at work at once: what a stage without declared outputs makes is found by looking at its folder."""
        if one.outputs is not None and other.outputs is not None:
            return True
        mine, theirs = one.output_dir + "/", other.output_dir + "/"
        return not (mine.startswith(theirs) or theirs.startswith(mine))

    def _stage_ended(self, order: Any, name: str, result: StageResult, code: int) -> int:
        """Note how a stage has ended; return the exit code so far: the first cause decides."""
        self.result_of[name] = result
        self.works.pop(name, None)
        order.ended(name, result.status in ("ok", "skipped"))
        if self.is_open and self.clock.monotonic() - self.recorded >= self.record_pause_s:
            self._write_run("running")              # not after each stage: what it lacks after a kill is told by the stage records
        if self.store.commit.is_due():
            self.flush()
        return code or {"failed": EXIT_OFFLINE if result.is_offline_fault else EXIT_FAILED, "interrupted": self._stopped()}.get(result.status, EXIT_OK)

    def _scheduler(self) -> Any:
        """Return the scheduler; made when the first attempt is to be started, after the guardian."""
        if self.scheduler is None:
            import attempts
            import process_tree
            import scheduler
            self.pool = self.clock.pool = attempts.Pool(self.signals, process_tree, self.guardian, self.others)
            if self.console.wants_ticks():
                self.pool.tick = lambda: self.console.tick(self._rows)
            self.scheduler = scheduler.Scheduler(self.pool, self.jobs(), self.options.max_memory_mb)
        return self.scheduler

    def jobs(self) -> int:
        """Return how many processors may run at once."""
        return self.options.jobs or environment.usable_cpus()

    def _rows(self) -> List[Any]:
        """Return what the live view shows of the stages at work."""
        if self.expected is None:
            import run_history
            self.expected = run_history.expected_durations(self.root)
        rows = [work.row(self.expected.get(name)) for name, work in self.works.items()]
        return [row for row in rows if row is not None]

    def folder_neighbours(self, stage: StageSpec) -> List[StageSpec]:
        """Return the other stages of the pipeline whose output folder is this one's, lies in it, or holds it."""
        found: List[StageSpec] = folders_of(self.spec, self.store).neighbours(stage)
        return found

    def flush(self) -> None:
        """Make all that was done durable. If that fails, what is on the disk is anybody's guess: no stage of this run stays done."""
        held = list(self.store.commit.files)
        try:
            self.store.commit.flush()
            for path in held:                   # the digests of these files outlive a restart from now on
                self.digests.vouch(path[len(self.root):].replace(os.sep, "/").lstrip("/"))
        except OSError:
            for stage in self.selected:
                if stage.name in self.works or stage.name in self.result_of and self.result_of[stage.name].status == "ok":
                    state_store.mark_lost(self.root, stage.output_dir, stage.name, bool(stage.for_each))
            self.store.commit.files.clear()     # a second sync would report success for pages that are lost
            self.digests.files.clear()
            raise

    def _stopped(self) -> int:
        """Return the exit code of a run that a signal or the clock has asked to stop, 0 if none has."""
        number = int(self.signals.number) if self.signals is not None else 0
        if number > 0:
            return 128 + number
        is_over = number < 0 or self.stop_time is not None and self.stop_time.seconds_left() <= 0
        return EXIT_STOPPED if is_over else 0

    def _clock_text(self) -> str:
        """Return that, and by which option, the clock has stopped the run, "" if it has not."""
        return "stopped by the clock (%s)" % self.stop_time.text if self.stop_time is not None and self._stopped() == EXIT_STOPPED else ""

    # --- one stage

    def _stage_flow(self, stage: StageSpec) -> Flow:
        """A flow that returns the StageResult; one that waits for nothing is a stage that has not to be run."""
        known: Optional[StageResult] = self.known.answer(stage.name, self.is_open) if self.known is not None else None
        if known is not None:
            self.console.lines(self.known.lines([known]))
            return known
        try:
            result = yield from self._run_stage(stage)
            return result
        except BaseException:
            self.unfit = self.unfit or stage.name
            raise

    def _run_stage(self, stage: StageSpec) -> Flow:
        decision, facts = self._look(stage)
        if decision.action in ("FAIL", "WAITING"):
            return self._not_begun(stage, decision)
        if decision.action == "SKIP":
            is_locked = os.path.isdir(os.path.join(self.root, "locks", stage.name + ".lock"))
            if not self._needs_tidying(stage) and (not is_locked or self._new_lock(stage).is_free()):
                return self._skipped(stage, decision, facts)
        self._open()
        lock = self._new_lock(stage)
        if not (yield from self._acquire(stage, lock, dead_token(facts.record))):
            return self._stopped_before(stage, "%s while waiting for the lock of stage %s" % (self.signals.text(), stage.name))
        is_free = True
        try:
            decision, facts = self._look(stage)     # somebody else may have finished it while we waited
            if decision.action in ("FAIL", "WAITING"):
                return self._not_begun(stage, decision)
            if decision.action == "SEAL":
                self.write_marker(stage, facts.material.key)
            if decision.action in ("SKIP", "SEAL"):
                if self._needs_tidying(stage):
                    import chunk_work
                    chunk_work.tidy(self.root, stage, self.store)
                return self._skipped(stage, decision, facts)
            if self.signals.number:
                return self._stopped_before(stage, self.signals.text())
            work = self._new_work(stage, lock, facts)
            result = yield from work.do(decision)
            is_free = not work.survivors
            return result
        finally:
            if is_free:
                lock.release()
            else:
                lock.abandon()

    def _needs_tidying(self, stage: StageSpec) -> bool:
        """Tell whether a kill after the end of the stage has left its chunks."""
        chunks = stage.chunks
        return chunks is not None and not chunks.keep and os.path.isdir(os.path.join(self.root, stage.output_dir, ".%s.tasks" % stage.name))

    def _acquire(self, stage: StageSpec, lock: stage_locks.StageLock, token: str) -> Flow:
        """A flow that takes a stage's lock and returns True, False if a signal came first. Raises: LockHeld, OSError."""
        deadline = self.clock.monotonic() + stage.lock_wait_s
        while not self.signals.number:
            try:
                lock.acquire(0, token)
            except stage_locks.WaitStopped:
                break
            except stage_locks.LockHeld:
                if self.clock.monotonic() >= deadline:
                    raise
            else:
                return (yield from self._end_launched(stage, lock))
            import scheduler
            yield scheduler.Pause(stage_locks.LOCK_POLL_S)
        return False

    def _end_launched(self, stage: StageSpec, lock: stage_locks.StageLock) -> Flow:
        """A flow that returns True when nothing runs any more, on any machine, that launchers of dead runs started, False as _acquire()."""
        if not os.path.isdir(os.path.join(self.store.folder, "launch")):
            return True
        import launch_lease
        import scheduler
        deadline = self.clock.monotonic() + launch_lease.PATIENCE_S
        left = launch_lease.end_left_behind(self.root, stage.name)
        while left and self.clock.monotonic() < deadline and not self.signals.number:
            yield scheduler.Pause(launch_lease.POLL_S)
            left = launch_lease.end_left_behind(self.root, stage.name)
        if left:
            lock.release()
            if not self.signals.number:
                raise launch_lease.still_runs(stage.name, left)
        return not left

    def _new_work(self, stage: StageSpec, lock: stage_locks.StageLock, facts: Facts) -> Any:
        import stage_work
        if stage.for_each:
            import task_work
            work: Any = task_work.FileTasksWork(self, stage, lock, facts)
        elif stage.chunks is not None:
            import chunk_work
            work = chunk_work.ChunkTasksWork(self, stage, lock, facts)
        else:
            work = stage_work.StageWork(self, stage, lock, facts)
        work.rank = self.selected.index(stage)
        for other in self.works.values():
            other.beside.add(stage.name)
            work.beside.add(other.stage.name)
        self.works[stage.name] = work
        return work

    def _look(self, stage: StageSpec) -> Tuple[Decision, Facts]:
        self.digests.used.clear()
        return look_at(self.spec, stage, self.digests, self.store, self.boot, stage.name in self.options.force, self._now_ns)

    def _now_ns(self, device: int) -> int:
        """Return what time it is by the clock that stamps files on a device, as far as that can be had."""
        now, own = self.digests.file_system_time()
        return now if device == own else int(self.clock.time() * 1e9)

    def inputs_and_makers(self, stage: StageSpec, facts: Facts) -> Tuple[List[Sequence[str]], List[Tuple[str, str, Json]]]:
        """Return what the stage reads and who may have made it, see the function of that name."""
        return inputs_and_makers(self.spec, stage, facts, self.store)

    def _new_lock(self, stage: StageSpec) -> stage_locks.StageLock:
        import process_tree
        return stage_locks.StageLock(self.root, stage.name, self.options.run_id, self.boot, self.clock, process_tree)

    def _not_begun(self, stage: StageSpec, decision: Decision) -> StageResult:
        """Say why nothing is done with a stage, in which nothing was touched."""
        why, is_waiting = "; ".join(decision.reasons), decision.action == "WAITING"
        self.console.event("WAIT" if is_waiting else "FAIL", stage.name, ": " + why)
        return StageResult.of(stage.name, "waiting" if is_waiting else "failed", why)

    def _stopped_before(self, stage: StageSpec, why: str) -> StageResult:
        self.console.event("FAIL", stage.name, ": " + why)
        return StageResult.of(stage.name, "interrupted", why)

    def _skipped(self, stage: StageSpec, decision: Decision, facts: Facts) -> StageResult:
        reason = "; ".join(decision.reasons)
        self.console.event("SKIP", stage.name, " (%s)" % reason)
        outputs = facts.record["outputs"]
        self.looked[stage.name] = facts.material.inputs + facts.material.watched
        evidence = {"madeBy": {"runId": facts.record.get("lastRunId"), "invocation": facts.record.get("lastInvocation")}}
        if facts.tasks is not None:
            import task_look
            evidence["tasks"] = task_look.skipped_summary(facts)
            self.caches.update(task_look.cache_of(self.store, stage, facts, facts.record["tasks"]["outputsSha256"], self.boot, self.boot))
        return StageResult.of(stage.name, "skipped", reason, bytes_in=facts.material.input_bytes, key=facts.material.key, evidence=evidence,
                              bytes_out=sum(one["bytes"] for one in outputs), outputs=outputs, counts=facts.record.get("counts", {}))

    def marker(self, stage: StageSpec) -> str:
        """Return the path of the stage's marker."""
        path: str = state_store.marker_path(self.root, stage.output_dir, stage.name)
        return path

    def write_marker(self, stage: StageSpec, key: str) -> None:
        marker = {"schema": state_store.SCHEMA_VERSION, "stage": stage.name, "key": key, "runId": self.options.run_id, "at": utc_text(self.clock.time())}
        path = self.marker(stage)
        state_store.write_atomic(path, state_store.record_json(marker), durable=False)
        self.store.commit.files[path] = None        # synced with the group: one that a power cut took counts as none
        self.store.commit.folders[os.path.dirname(path)] = None

    # --- the run's own records

    def _open(self) -> None:
        """Before the first stage is touched: note the run as begun, start the guardian, adopt orphans from now on.

        A run in which every stage is skipped never comes here: it leaves its record at the end, and nothing before.
        """
        if self.is_open:
            return
        if self.spec.offline.require != "kernel":
            self._close_network()
        import attempts
        self.signals = self.clock.signals = attempts.Signals(self.stop_time)
        self.signals.install()
        self.ledger.begin(self.options.run_id, self.invocation, self.spec.name)
        self._tell_healed()
        self._write_run("running")
        self.is_open = True
        self._guard_processes()

    def _guard_processes(self) -> None:
        """Start the guardian, adopt orphans from now on."""
        import process_tree
        self.others: List[int] = process_tree.own_children() if process_tree.LINUX else []
        self.guardian = process_tree.Guardian()
        self.guardian.start()
        process_tree.become_subreaper()

    def prepare_alarm(self) -> None:
        """Make ready for a processor after the run's end: network closed, processes guarded, signals noted anew."""
        if self.network is None:
            self._close_network()
        if self.guardian is None:
            self._guard_processes()
        import attempts
        self.signals = attempts.Signals()
        self.signals.install()

    def _close_network(self) -> None:
        """Close the network for this process and all that it will start, and say how. Raises: OfflineError where it must be had."""
        import network_watch
        if any(stage.launcher for stage in self.selected):
            import launch_helper
            self.launches = launch_helper.LaunchHelper()
            self.isolation["launcher"] = launch_helper.ISOLATION
        self.network = network_watch.NetworkWatch(self.spec.offline, self.root)
        self.isolation.update(self.network.isolation())
        if self.launches is not None and self.network.status.method == "outer":
            self.isolation["launcher"] += "; a runner around this one has closed the network for the launchers, too"
        if self.spec.offline.require == "kernel" and not self.network.is_closed:
            raise OfflineError("\"offline\": the kernel must close the network, and cannot here: %s; nothing was run" % self.network.status.why)
        self.console.line("[OFFLINE] " + self.network.text())

    def _tell_healed(self) -> None:
        for note in self.ledger.notes:
            self.console.line("[LEDGER] " + note)
        self.ledger.notes.clear()

    def save_dear_digests(self) -> None:
        """Store the digests taken if they were of many bytes: a kill shall not have them taken again."""
        if self.digests.unsaved_bytes >= DEAR_BYTES:
            with run_ledger.Held(self.ledger):
                self._write_digests()

    def _write_digests(self) -> None:
        """Under the lock of the ledger, because other runs write the digests too."""
        for path, data in self.caches.items():
            try:
                state_store.write_atomic(path, data, durable=False)
            except OSError as error:
                self.console.line("[NOTE] a cache is not written: " + describe_os_error(error))
        self.caches.clear()
        if self.digests.changed:
            state_store.write_atomic(self.digests.path, self.digests.to_bytes(), self.store.commit)
            self.digests.changed = False

    def log_folder(self) -> str:
        """Return this invocation's folder for logs: state/logs/<run>, and below it /<n> from the second call on."""
        parts = [self.store.folder, "logs", self.options.run_id] + ([str(self.invocation)] if self.invocation > 1 else [])
        folder: str = os.path.join(*parts)
        return folder

    def _run_record(self, state: str) -> Json:
        ended = state != "running"
        duration_ms = int((self.clock.monotonic() - self.started) * 1000)
        return {
            "runId": self.options.run_id, "invocation": self.invocation, "pipeline": self.spec.name, "version": self.spec.version,
            "specSha256": self.spec.sha256, "state": state, "startedAt": utc_text(self.started_utc),
            "endedAt": utc_text(self.clock.time()) if ended else None, "durationMs": duration_ms if ended else None,
            "stages": self._entries(stage_entry), "isolation": self.isolation,
            "python": "%s %d.%d.%d" % ((sys.implementation.name,) + sys.version_info[:3]), "os": sys.platform, "runner": VERSION, **self.about}

    def _entries(self, entry_of: Callable[[StageResult], Json]) -> Any:
        """Return the stages' entries for the run record or the metrics; with known stages, as a text made of ready ones."""
        return [entry_of(result) for result in self.results] if self.known is None else self.known.entries(self.results, entry_of, entry_of is metrics_entry)

    def _write_run(self, state: str) -> None:
        began = self.clock.monotonic()
        self.store.write("run_%s.json" % self.options.run_id, self._run_record(state))
        self.recorded = self.clock.monotonic()
        self.record_pause_s = max(RECORD_S, RECORD_SHARE * (self.recorded - began))     # it grows with the number of stages

    def _finish(self, code: int) -> None:
        """Write the metrics, the digests and the sealed run record; on return everything is durable."""
        state = self.state_of(code)
        store = self.store
        outputs = [stage.output_dir + "/" + output["path"] for stage in self.selected for output in self.result_of[stage.name].outputs]
        for path in outputs:
            if not self.digests.is_vouched(path):       # a skipped stage's maker may have died before it synced them
                store.commit.files[os.path.join(self.root, path)] = None
        self.flush()
        for path in outputs:
            self.digests.vouch(path)
        record = self._run_record(state)
        self.ledger.end(record, lambda: self._write_last(record), lambda: self._tell_monitoring(record))
        self.final = record
        self._tell_healed()
        self.console.line("[LEDGER] head " + self.ledger.head_text())
        if state == "interrupted" and self._clock_text():
            self.console.line("[STOP] " + self._clock_text())
        self.console.summary(self.options.run_id, state, self.results, self.clock.monotonic() - self.started)
        if code == EXIT_OK and self.looked:
            import index_writer
            index_writer.save(self, record, stage_entry, metrics_entry)

    def state_of(self, code: int) -> str:
        """Return the state of a run that ends with an exit code."""
        if code == EXIT_STOPPED and not self._stopped():
            return "waiting"        # inputs were not settled; nothing was cut short
        return {EXIT_OK: "completed", EXIT_STOPPED: "interrupted"}.get(code, "interrupted" if code > 128 else "failed")

    def unsealed_record(self, code: int) -> Json:
        """Return what the run record would say of a run that could not write it."""
        return self._run_record(self.state_of(code))

    def _write_last(self, record: Json) -> None:
        """Write what only a finished run writes, and its digest into the run record; under the lock of the ledger."""
        self._write_digests()
        self.metrics = self._metrics()
        data = self.store.write("metrics_%s.json" % self.options.run_id, self.metrics, "metrics.json")
        record["metrics"] = {"bytes": len(data), "sha256": sha256(data).hexdigest()}

    def _tell_monitoring(self, record: Json) -> None:
        """Refresh state/metrics.prom, append to --openlineage; what goes wrong there is a note and changes nothing."""
        import prometheus_text
        looked_at = self.known.looked_at(self.results) if self.known is not None else None
        if looked_at is None or not prometheus_text.update(self.store, record, self.metrics, self.known.index.names,
                                                           {place: metrics_entry(result) for place, result in looked_at.items()}):
            prometheus_text.emit(self.store, record, self.metrics, self.spec, self.options, self.console)
        if self.options.open_lineage:
            import open_lineage
            open_lineage.emit(self.store, record, self.metrics, self.spec, self.options, self.console)

    def _finish_after(self, error: BaseException) -> None:
        """Say in the records what stopped the run, as far as they can still be written; *error* itself goes on to main."""
        why = describe_os_error(error) if isinstance(error, OSError) else str(error) or type(error).__name__
        if self.unfit:
            self.console.event("FAIL", self.unfit, ": " + why.split("\n")[0])
            self.result_of[self.unfit] = StageResult.of(self.unfit, "failed", why)
        for stage in self.selected:
            self.result_of.setdefault(stage.name, StageResult.of(stage.name, "notRun", "the run ended before it"))
        try:
            self._finish(EXIT_FAILED)
        except (OSError, state_store.StateError, stage_locks.LockHeld):
            pass                        # the same fault again, most likely; what is on disk is a run that died

    def _metrics(self) -> Json:
        statuses = [one.status for one in self.results]
        count = {status: statuses.count(status) for status in ("ok", "skipped", "failed", "interrupted")}
        return {
            "runId": self.options.run_id, "invocation": self.invocation, "timestamp": utc_text(self.clock.time()), "totalStages": len(self.selected),
            "okStages": count["ok"], "skippedStages": count["skipped"], "failedStages": count["failed"] + count["interrupted"],
            "durationSec": round(self.clock.monotonic() - self.started, 6),
            "stages": self._entries(metrics_entry)}


def metrics_entry(result: StageResult) -> Json:
    """Return a stage's part of the metrics."""
    return {"stage": result.name, "status": result.status, "durationSec": round(result.duration_s, 6), "attempts": result.attempts,
            "cpuSec": round(result.cpu_s, 6), "maxRssBytes": result.max_rss_bytes, "bytesIn": result.bytes_in,
            "bytesOut": result.bytes_out, "counts": result.counts,
            **({"tasks": result.evidence["tasks"]} if "tasks" in result.evidence else {})}


def stage_entry(result: StageResult) -> Json:
    """Return a stage's part of the run record; no floats, so that its canonical form is beyond doubt."""
    entry = {"stage": result.name, "status": result.status, "reason": result.reason, "attempts": result.attempts,
             "durationMs": int(result.duration_s * 1000), "exitCode": result.exit_code, "key": result.key,
             "bytesIn": result.bytes_in, "bytesOut": result.bytes_out, "counts": result.counts}
    if result.status not in ("skipped", "notRun", "waiting"):
        entry["outputs"] = result.outputs       # a skipped stage's stand in the record of the run that made them
    entry.update(result.evidence)
    return entry


def dead_token(record: Optional[Json]) -> str:
    """Return the token of the attempt that a stage record calls running: under the stage's lock its runner is dead."""
    return str(record.get("token", "")) if record is not None and record["lastStatus"] == "running" else ""


def new_ledger(spec: PipelineSpec, options: Options, store: StateStore, clock: Clock) -> run_ledger.RunLedger:
    """Return the ledger of the root, with the key that seals it, if one is given; *store* gets its locks. Raises: KeyProblem."""
    def lock(name: str) -> stage_locks.FileLock:
        return stage_locks.FileLock(spec.root, name, clock)

    store.lock = lock
    key_file = options.key or spec.seal_key
    sealer = None
    if key_file:
        import seal_keys
        sealer = seal_keys.Sealer(store, key_file)
    return run_ledger.RunLedger(store, lock, sealer)


# --- the plan: the same decisions, nothing written

def print_plan(spec: PipelineSpec, options: Options, console: Console, clock: Clock) -> int:
    """Print what a run would do with each stage, and why; write nothing at all."""
    import stage_order
    boot = state_store.boot_id()
    digests = Digests(spec.root, boot, keep=False, rehash=options.rehash)
    check_offline(spec, digests, console)
    for stage, decision, _ in stage_order.planned(spec.stages, select_stages(spec, options), looker(spec, options, digests)):
        holder = holder_text(spec, stage, boot, clock)
        console.plan(stage.name, decision._replace(reasons=["running now"]) if holder and decision.reasons == ["last run died"] else decision, holder)
    return EXIT_OK


def looker(spec: PipelineSpec, options: Options, digests: Optional[Digests] = None) -> Callable[[StageSpec], Tuple[Decision, Facts]]:
    """Return what decides about a stage as a run would now, and writes nothing. What it returns raises: StateError, OSError."""
    boot = state_store.boot_id()
    store = StateStore(spec.root, writable=False)
    known = digests if digests is not None else Digests(spec.root, boot, keep=False, rehash=options.rehash)

    def look(stage: StageSpec) -> Tuple[Decision, Facts]:
        return look_at(spec, stage, known, store, boot, stage.name in options.force, lambda device: int(Clock().time() * 1e9))
    return look


def holder_text(spec: PipelineSpec, stage: StageSpec, boot: str, clock: Clock) -> str:
    """Return who holds the stage now, or ""."""
    if not os.path.isdir(os.path.join(spec.root, "locks", stage.name + ".lock")):
        return ""
    import process_tree
    owner = stage_locks.StageLock(spec.root, stage.name, "", boot, clock, process_tree).holder()
    return "held by " + stage_locks.owner_text(owner) if owner else ""


# === 6. Command line =================================================================================================

def main(argv: Optional[Sequence[str]] = None) -> int:
    """Do what the command line says; return the exit code. Never raises but for --help's sake nothing is printed twice.

    Imported and called, a run is done by a child process: taking over signals and orphans is not for a guest.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    console = Console()
    if _signal.getsignal(_signal.SIGINT) == _signal.SIG_DFL and __name__ == "__main__":
        _signal.signal(_signal.SIGINT, _signal.default_int_handler)
    try:
        if isinstance(_FOUND, BaseException):
            raise _FOUND
        options = command_line.parse_command_line(arguments)
        if options.command == "run":
            console.configure(options)
        if options.command == "run" and __name__ != "__main__":
            return _run_in_child(arguments, console)
        return _dispatch(options, console)
    except KeyboardInterrupt:
        console.error("interrupted")
        return 130
    except OSError as error:
        console.error("error: " + describe_os_error(error))
        return EXIT_STATE
    except Exception as error:
        code = getattr(error, "exit_code", None)
        if code is not None:
            console.error("%s%s" % ("" if code == EXIT_OFFLINE or isinstance(error, SpecError) else "error: ", error))
            return int(code)
        import traceback
        console.error("internal error, please report it:\n" + traceback.format_exc().rstrip())
        return EXIT_INTERNAL
    finally:
        console.close()
        silence_closed_streams()


def _dispatch(options: Options, console: Console) -> int:
    if options.command in ("help", "version"):
        console.out.write(command_line.USAGE if options.command == "help" else "pipeline_runner %s\n" % VERSION)
        return EXIT_OK
    if options.command in ("verify", "export", "evidence", "new-key"):
        import ledger_commands
        return ledger_commands.do(options, console)
    if options.command in ("init", "new-stage"):
        import starters
        return starters.do(options, console, load_pipeline)
    known = _known_stages()
    spec = known.spec if known is not None else override_params(load_pipeline(options.pipeline, options.root), options.params)
    if options.command == "plan":
        return print_plan(spec, options, console, Clock())
    if options.command == "validate":
        check_offline(spec, Digests(spec.root, state_store.boot_id(), keep=False), console)
        select_stages(spec, options)
        console.line("%s: ok (%d stage%s)" % (options.pipeline, len(spec.stages), "" if len(spec.stages) == 1 else "s"))
        return EXIT_OK
    if options.command == "scan":
        import program_scan
        return program_scan.print_scan(spec, Digests(spec.root, state_store.boot_id(), keep=False), options.operands, console)
    if options.command in ("status", "history", "logs", "explain"):
        import look_commands
        stages = select_stages(spec, options._replace(only=options.only | frozenset(options.operands)))
        return look_commands.do(spec, options, console, Clock(), stages, looker(spec, options))
    if options.command in ("report", "graph"):
        import report_commands
        return report_commands.do(spec, options, console, Clock())
    if options.command in ("clean", "gc", "reset"):
        import housekeeping
        stages = select_stages(spec, options._replace(only=options.only | frozenset(options.operands)))
        return housekeeping.do(spec, stages, options, console, Clock(), new_ledger)
    if options.command == "unlock":
        return _unlock(spec, options, console)
    if options.command == "accept":
        return _accept(spec, options, console, Clock())
    return Run(spec, options, console, Clock(), known).run()


def _known_stages() -> Any:
    """Return what the index has told of this very command line, None if nothing that can be used."""
    if _FOUND is None:
        return None
    import known_stages
    known = known_stages.KnownStages(_FOUND)
    return known if known.spec is not None else None


def _accept(spec: PipelineSpec, options: Options, console: Console, clock: Clock) -> int:
    """Take a stage as up to date though its key changed: its record gets today's key, the ledger says who did it and why."""
    import acceptance
    import process_tree
    boot, name = state_store.boot_id(), options.operands[0]
    stage, = select_stages(spec, options._replace(only=frozenset((name,))))
    store = StateStore(spec.root, now=clock.time)
    ledger = new_ledger(spec, options, store, clock)
    digests = Digests(spec.root, boot, keep=False)
    check_offline(spec, digests, console)
    store.prepare()
    lock = stage_locks.StageLock(spec.root, name, "accept", boot, clock, process_tree)
    lock.acquire(stage.lock_wait_s, dead_token(store.stage(name)))
    try:
        facts = observe(spec, stage, digests, store, boot)
        ledger.prepare()
        done = acceptance.accept(ledger, stage, spec, facts, options.reason, clock)
    finally:
        lock.release()
    console.line(done)
    for note in ledger.notes:
        console.line("[LEDGER] " + note)
    console.line("[LEDGER] head " + ledger.head_text())
    return EXIT_OK


def _unlock(spec: PipelineSpec, options: Options, console: Console) -> int:
    import process_tree
    for name in options.operands:
        select_stages(spec, options._replace(only=frozenset((name,))))
        console.line(stage_locks.unlock(spec.root, name, state_store.boot_id(), Clock(), process_tree))
    return EXIT_OK


def _run_in_child(arguments: List[str], console: Console) -> int:
    import subprocess
    done = subprocess.run([sys.executable, os.path.abspath(__file__)] + arguments, stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    console.out.write(done.stdout.decode("utf-8", "replace"))
    console.err.write(done.stderr.decode("utf-8", "replace"))
    return done.returncode


if __name__ == "__main__":
    raise SystemExit(main())
