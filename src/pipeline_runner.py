#!/usr/bin/env python3
"""Run a pipeline of batch stages so that a kill, a power cut or a full disk loses nothing and doubles nothing.

    python src/pipeline_runner.py --pipeline pipeline.json --run-id demo1

Needs Python 3.8 or newer and its standard library, nothing else. Data flows one way:

    argv -> PipelineSpec -> Decision (run, skip, resume; with reasons) -> attempts -> stage record -> run record -> exit code

A processor that fails is a result, not an exception; exceptions mean that the runner cannot go on, and only
main() catches them. Sections stand bottom-up, each uses only those above it:

     1 Constants      2 Spec      3 State      4 Command line

The stages are decided about in `planning` and run in `engine`. This file is compiled anew at each start, the modules beside it are cached
as bytecode: what a run in which nothing changed does not need stands there, and so does what is a concern of its own. They never import this file. `primitives` (JSON,
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
             of files)  run_alarms (commands after a run)  acceptance  provenance  key_gaps (what it does not know)
             ledger_verify  evidence_verify  ledger_export  ledger_commands  starters (init, new-stage)  run_pruning (gc)
             housekeeping (clean, reset)  stage_logs  stage_explanation  look_commands (status, history, logs, explain)
             prometheus_text  open_lineage (both: what monitoring reads)  quick_index  quick_run (nothing changed)
             known_stages  index_writer  pipeline_graph  run_report (what a report says)  report_html  report_commands
             planning (what must be done with each stage, and why)  engine (a run)
"""
import os
import sys
import time

# Python 2 and 3.6 must be able to read this file to get as far as here: types stand in comments, nothing is raised "from".
if sys.version_info < (3, 8):
    sys.stderr.write("error: Python %d.%d is too old: Python 3.8 or newer is needed\n" % sys.version_info[:2])
    sys.exit(2)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List, Optional, Sequence, Tuple  # noqa: F401

    from model import Options  # noqa: F401

    Json = Dict[str, Any]

_HERE = os.path.dirname(os.path.abspath(__file__))
BYTECODE_BYTES = 16 << 20   # of free space; with less, nobody here caches bytecode


def _guard_bytecode(folder):
    # type: (str) -> None
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

from console import Console, describe_os_error, leave, open_missing_streams, silence_closed_streams  # noqa: E402


def _prepare(index, pipeline, root):
    # type: (Any, str, str) -> Any
    """Load what a run needs in which something changed; return its known_stages.KnownStages. The garbage collection is off from here on."""
    import gc
    gc.disable()
    import engine
    import known_stages
    engine.load_for_stages()
    return known_stages.KnownStages(index, pipeline, root)


_STARTED = time.monotonic()
# What the index says: quick_run.Found, None, or the error that the quick run ended with.
_FOUND = None                   # type: Any
if __name__ == "__main__":
    open_missing_streams()
    import quick_run
    _FOUND = quick_run.attempt(sys.argv[1:], _prepare)  # before the rest is loaded: where nothing changed, it is not needed
    if isinstance(_FOUND, int):
        leave(_FOUND)
        raise SystemExit(_FOUND)

import command_line  # noqa: E402
import planning  # noqa: E402
import spec_checks  # noqa: E402
import state_store  # noqa: E402
from file_digests import Digests, is_unicode  # noqa: E402
from model import (  # noqa: E402
    EXIT_INTERNAL, EXIT_OFFLINE, EXIT_OK, EXIT_STATE, VERSION, Chunks, Clock, Offline, PipelineSpec, Retry, SpecError,
    StageSpec, UsageError, sha256)
from program_scan import check_offline  # noqa: E402
from stage_keys import compute_idempotency_key  # noqa: E402, F401
from state_store import StateStore  # noqa: E402

# === 1. Constants ====================================================================================================

MAX_SPEC_BYTES = 8 << 20


# === 2. Spec =========================================================================================================
# text -> JSON value -> checked value -> PipelineSpec. Where in the text a problem stands is looked up only when there
# is one.

def load_pipeline(path, root=None):
    # type: (str, Optional[str]) -> PipelineSpec
    """Read and check a pipeline file.

    root defaults to the folder of the file. Raises: SpecError with every problem that the file has; UsageError
    when it cannot be read.
    """
    shown = os.fspath(path)
    try:
        with open(shown, "rb") as file:
            data = file.read(MAX_SPEC_BYTES + 1)
    except OSError as error:
        raise UsageError("%s: cannot read the pipeline file: %s; name it with --pipeline FILE%s" % (  # noqa: B904
            shown, error.strerror, "; init DIR writes a first one" if isinstance(error, FileNotFoundError) else ""))
    full = os.path.abspath(shown)
    root = os.path.abspath(root if root is not None else os.path.dirname(full))
    if not is_unicode(root):
        raise UsageError("%s: the folder's path is not UTF-8 text here; rename it, or run with PYTHONUTF8=1 if it is" % ascii(root))
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


def _check_cycles(stages, problems):
    # type: (Sequence[StageSpec], spec_checks.Problems) -> None
    """Report a cycle of stages that need one another, by `needs` or by files."""
    import stage_order
    cycle = stage_order.find_cycle(stage_order.edges(stages))
    if cycle:
        place = next(place for place, stage in enumerate(stages) if stage.name == cycle[0])
        problems.add(("stages", place), "needs itself by what it reads or needs: %s" % " <- ".join(cycle))


def _decode_spec(data, shown):
    # type: (bytes, str) -> str
    if len(data) > MAX_SPEC_BYTES:
        raise SpecError("%s:1:1: larger than %d bytes; split the pipeline" % (shown, MAX_SPEC_BYTES))
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = len(data[data.rfind(b"\n", 0, error.start) + 1:error.start].decode("utf-8", "replace")) + 1
        raise SpecError("%s:%d:%d: byte 0x%02x is not UTF-8; save the file as UTF-8" % (shown, line, column, data[error.start]))  # noqa: B904


def _parse_spec(text):
    # type: (str) -> Tuple[Any, Any]
    """Return (value, None) for flawless JSON, else (value, Document) from the parser that knows positions."""
    try:
        return spec_checks.strict_json(text), None
    except (ValueError, RecursionError, MemoryError):
        pass
    import spec_source
    document = spec_source.parse(text)
    return document.value, document if document.problems else None


def _problem_lines(shown, text, document, problems):
    # type: (str, str, Any, spec_checks.Problems) -> List[str]
    import spec_source
    document = document or spec_source.parse(text)
    lines = [(line, column, path, message) for line, column, path, message in document.problems]
    for path, message in problems.found:
        position = document.key_position(path) if message.startswith("unknown key") else document.position(path)
        lines.append((position[0], position[1], path, message))
    lines.sort(key=lambda one: one[:2])
    return ["%s:%d:%d: %s%s" % (shown, line, column, spec_source.path_text(path) + ": " if path else "", message)
            for line, column, path, message in lines]


def _build_stage(merged):
    # type: (Json) -> StageSpec
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


def _build_chunks(chunks):
    # type: (Optional[Json]) -> Optional[Chunks]
    if chunks is None:
        return None
    return Chunks(chunks["bytes"], chunks.get("keepChunks", False), chunks.get("filter", False), chunks.get("headerLines", 0))


# === 3. State ========================================================================================================

def save_stage_state(name, record, root="."):
    # type: (str, Json, str) -> None
    """Write state/stage_<name>.json below *root*, durably. Raises: UsageError for a bad name; OSError."""
    _save_record("stage_%s.json", name, record, root)


def save_run_state(run_id, record, root="."):
    # type: (str, Json, str) -> None
    """Write state/run_<id>.json below *root*, durably. Raises: UsageError for a bad run id; OSError."""
    _save_record("run_%s.json", run_id, record, root)


def _save_record(pattern, name, record, root):
    # type: (str, str, Json, str) -> None
    problem = spec_checks.name_problem(name)
    if problem:
        raise UsageError("%s %s" % (spec_checks.shown_value(name), problem))
    store = StateStore(os.path.abspath(root))
    store.prepare()
    store.write(pattern % name, record)
    store.commit.flush()


# === 4. Command line =================================================================================================

def main(argv=None):
    # type: (Optional[Sequence[str]]) -> int
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


def _dispatch(options, console):
    # type: (Options, Console) -> int
    if options.command in ("help", "version"):
        console.out.write(command_line.USAGE if options.command == "help" else "pipeline_runner %s\n" % VERSION)
        return EXIT_OK
    if options.command in ("verify", "export", "evidence", "new-key"):
        import ledger_commands
        return ledger_commands.do(options, console)
    if options.command in ("init", "new-stage"):
        import starters
        return starters.do(options, console, load_pipeline)
    known, spec = _known_or_loaded(options)
    if options.command == "plan":
        return planning.print_plan(spec, options, console, Clock())
    if options.command == "validate":
        check_offline(spec, Digests(spec.root, state_store.boot_id(), keep=False), console)
        planning.select_stages(spec, options)
        _tell_of_gaps(spec, console)
        console.line("%s: ok (%d stage%s)" % (options.pipeline, len(spec.stages), "" if len(spec.stages) == 1 else "s"))
        return EXIT_OK
    if options.command == "scan":
        import program_scan
        return program_scan.print_scan(spec, Digests(spec.root, state_store.boot_id(), keep=False), options.operands, console)
    if options.command in ("status", "history", "logs", "explain"):
        import look_commands
        stages = planning.select_stages(spec, options._replace(only=options.only | frozenset(options.operands)))
        return look_commands.do(spec, options, console, Clock(), stages, planning.looker(spec, options))
    if options.command in ("report", "graph"):
        import report_commands
        return report_commands.do(spec, options, console, Clock())
    if options.command in ("clean", "gc", "reset"):
        import engine
        import housekeeping
        stages = planning.select_stages(spec, options._replace(only=options.only | frozenset(options.operands)))
        return housekeeping.do(spec, stages, options, console, Clock(), engine.new_ledger)
    if options.command == "unlock":
        return _unlock(spec, options, console)
    if options.command == "accept":
        return _accept(spec, options, console, Clock())
    import engine
    return engine.Run(spec, options, console, Clock(), _STARTED, known).run()


def _tell_of_gaps(spec, console):
    # type: (PipelineSpec, Console) -> None
    """Print what the stages name and their keys do not know."""
    import key_gaps
    for stage in spec.stages:
        for gap in key_gaps.find_gaps(spec.root, stage):
            console.line("[NOTE] %s: %s" % (stage.name, gap))


def _known_or_loaded(options):
    # type: (Options) -> Tuple[Any, PipelineSpec]
    """Return (what the index tells of the stages or None, the spec). What they hold stays to the end: nobody looks for garbage in it."""
    import gc
    gc.disable()
    try:
        known = _known_stages()
        return known, known.spec if known is not None else planning.override_params(load_pipeline(options.pipeline, options.root), options.params)
    finally:
        gc.freeze()
        gc.enable()


def _known_stages():
    # type: () -> Any
    """Return what the index has told of this very command line, None if nothing that can be used."""
    if _FOUND is None:
        return None
    known = _FOUND.prepared
    known.stale = set(_FOUND.stale)
    return known if known.spec is not None else None


def _accept(spec, options, console, clock):
    # type: (PipelineSpec, Options, Console, Clock) -> int
    """Take a stage as up to date though its key changed: its record gets today's key, the ledger says who did it and why."""
    import acceptance
    import engine
    import process_tree
    import stage_locks
    boot, name = state_store.boot_id(), options.operands[0]
    stage, = planning.select_stages(spec, options._replace(only=frozenset((name,))))
    store = StateStore(spec.root, now=clock.time)
    ledger = engine.new_ledger(spec, options, store, clock)
    digests = Digests(spec.root, boot, keep=False)
    check_offline(spec, digests, console)
    store.prepare()
    lock = stage_locks.StageLock(spec.root, name, "accept", boot, clock, process_tree)
    lock.acquire(stage.lock_wait_s, engine.dead_token(store.stage(name)))
    try:
        facts = planning.observe(spec, stage, digests, store, boot)
        ledger.prepare()
        done = acceptance.accept(ledger, stage, spec, facts, options.reason, clock)
    finally:
        lock.release()
    console.line(done)
    for note in ledger.notes:
        console.line("[LEDGER] " + note)
    console.line("[LEDGER] head " + ledger.head_text())
    return EXIT_OK


def _unlock(spec, options, console):
    # type: (PipelineSpec, Options, Console) -> int
    import process_tree
    import stage_locks
    for name in options.operands:
        planning.select_stages(spec, options._replace(only=frozenset((name,))))
        console.line(stage_locks.unlock(spec.root, name, state_store.boot_id(), Clock(), process_tree))
    return EXIT_OK


def _run_in_child(arguments, console):
    # type: (List[str], Console) -> int
    import subprocess
    done = subprocess.run([sys.executable, os.path.abspath(__file__)] + arguments, stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    console.out.write(done.stdout.decode("utf-8", "replace"))
    console.err.write(done.stderr.decode("utf-8", "replace"))
    return done.returncode


if __name__ == "__main__":
    _CODE = main()
    leave(_CODE)
    raise SystemExit(_CODE)
