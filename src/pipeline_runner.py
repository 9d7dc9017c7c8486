#!/usr/bin/env python3
"""Run a pipeline of batch stages so that a kill, a power cut or a full disk loses nothing and doubles nothing.

    python src/pipeline_runner.py --pipeline pipeline.json --run-id demo1

Needs Python 3.8 or newer and its standard library, nothing else. Data flows one way:

    argv -> PipelineSpec -> Decision (run, skip, resume; with reasons) -> attempts -> stage record -> run record -> exit code

A processor that fails is a result, not an exception; exceptions mean that the runner cannot go on, and only
main() catches them. Sections:

     1 Start      2 Functions for those who import it      3 The program

The spec is read in `spec_loading`, the stages are decided about in `planning` and run in `engine`. This file is compiled anew at each start, the
modules beside it are cached as bytecode: so nothing stands here that a run in which nothing changed does not need. They never import this file.
`primitives` (JSON, SHA-256) and `model` (the values and errors) may be imported by all; leaves import nothing else of ours; what stands on them
may also import what is named before it.

    leaves
        spec      spec_values  stage_cycles  spec_source  starter_texts
        disk      file_systems  path_signs  durable_files  stage_locks  stage_records  task_log  task_files  ledger_format
                  control_totals  arrivals
        process   mac_processes  windows_jobs  process_limits  attempt_output  run_signals  environment  stale_bytecode  stop_times
                  stop_requests (Ctrl-C and the like, where no attempt is under way)  forked_task (what makes a forked process like a fresh one)
        network   scan_shell  hook_log  node_report
        shown     log_events  text_table  stage_progress  svg_shapes
    on them
        spec      spec_checks (what a valid pipeline file is)
        files     stage_outputs  state_store (the records under state/)  stage_markers  file_digests  chunk_files  link_places (where links lead)  files_read (by which names)
        network   scan_windows  source_folding (what an expression stands for)  import_scan
        process   process_table (what lives)  process_traits (whose it is)  process_tree (ending all of an attempt)  guardian (when the runner dies)
                  process_start  attempts (processors at work)  launch_lease (may a launched task run, and does it)  node_exec (such a task on its machine)
                  offline_guard  launch_helper (starts launchers)
        shown     live_view (lines of the running stages)  console (what the user sees)
        records   recorded_outputs (what records say of output folders)
        words     command_line  program_scan (what is scanned)
        fork      fork_server  fork_client
        keys      stage_keys (what a stage depends on)  checkpoints  stage_order (what comes before what)  stage_waits (and by what
                  is on the disk)  spec_loading (the pipeline file)  reasons (why it must run)
        runs      run_ledger  run_history (runs as the ledger and the records tell)  seal_keys  network_watch (the guard of a run)
        at work   task_look (what a stage of many tasks has to do)  scheduler (which attempt is started when)  processor_call (its words)
                  foreign_outputs (what is another stage's)  earlier_outputs (what earlier work has left)  stage_calls (what each attempt is given)
                  stage_work (a stage that must run, under its lock: trials, checks, records)  plain_work (one piece of work)
                  task_work (several tasks)  file_tasks (of files)  chunk_work (of parts of files)  run_alarms (what is started after a run)
        audit     acceptance  provenance  key_gaps (files no key knows)  program_starts (can they start)  output_places (where what was asked
                  for may go)  history_files (read with suspicion)  ledger_chain  verify_history (what a pass knows)  verify_runs  verify_stages
                  verify_outputs  ledger_verify  evidence_verify  ledger_export  ledger_commands
        users     starters (init, new-stage)  run_pruning (gc)  housekeeping (clean, reset)  stage_logs  stage_explanation
                  look_commands (status, history, logs, explain)
        monitors  prometheus_text  open_lineage
        index     quick_index  quick_run (nothing changed)  known_stages  index_writer
        report    pipeline_graph  run_report (what a report says)  report_html  report_commands
        a run     planning (what must be done with each stage, and why)  run_records (what a run says of itself)  work_places (locks and folders
                  of the stages at work)  durability (what it syncs)  run_guards (what guards its processes)  stage_turn (what is done with
                  one stage)  engine
        all       commands (what each command does)
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
    from typing import Any, Dict, Optional, Sequence  # noqa: F401

    Json = Dict[str, Any]

# === 1. Start ========================================================================================================

_HERE = os.path.dirname(os.path.abspath(__file__))
if sys.platform != "win32":         # see primitives.real_folder()
    _HERE = os.path.realpath(_HERE)     # a link on the way may lead elsewhere before the last module is loaded
BYTECODE_BYTES = 16 << 20   # of free space; with less, nobody here caches bytecode


def _guard_bytecode(folder):
    # type: (str) -> None
    """Cache no bytecode on a disk that may fill up, or where the size of files is limited: Python takes a file that was cut short for whole, and
    fails at each later start."""
    try:
        found = os.statvfs(folder)
    except (AttributeError, OSError):
        return                      # Windows
    if found.f_bavail * found.f_frsize < BYTECODE_BYTES or _is_file_size_limited():
        sys.dont_write_bytecode = True      # and so for processors, see stage_calls


def _is_file_size_limited():
    # type: () -> bool
    """Tell whether files of this process are limited (ulimit -f) to less than any bytecode may need."""
    try:
        with open("/proc/self/limits", "rb") as file:       # quicker than to load `resource`
            limit = file.read().partition(b"Max file size")[2].split()[0]
        return limit.isdigit() and int(limit) < BYTECODE_BYTES
    except (OSError, IndexError):
        import resource
        return 0 <= resource.getrlimit(resource.RLIMIT_FSIZE)[0] < BYTECODE_BYTES


if __name__ == "__main__":
    _guard_bytecode(_HERE)
if _HERE not in sys.path:
    sys.path.insert(0, _HERE)       # our modules are found also when this file is imported as src.pipeline_runner

import _signal  # type: ignore[import-not-found]  # noqa: E402

if __name__ == "__main__" and _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)     # until main() can say so in one line

from console import leave, open_missing_streams  # noqa: E402


def _prepare(index, pipeline, root):
    # type: (Any, str, str) -> Any
    """Load what a run needs in which something changed; return its known_stages.KnownStages. The garbage collection is off from here on."""
    import gc
    gc.disable()
    import commands  # noqa: F401
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

# === 2. Functions for those who import it ============================================================================

import spec_values  # noqa: E402
from model import VERSION, UsageError  # noqa: E402, F401
from spec_loading import load_pipeline  # noqa: E402, F401
from stage_keys import compute_idempotency_key  # noqa: E402, F401
from state_store import StateStore  # noqa: E402


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
    problem = spec_values.name_problem(name)
    if problem:
        raise UsageError("%s %s" % (spec_values.shown_value(name), problem))
    store = StateStore(os.path.abspath(root))
    store.prepare()
    store.write(pattern % name, record)
    store.commit.flush()


# === 3. The program ==================================================================================================

def main(argv=None):
    # type: (Optional[Sequence[str]]) -> int
    """Do what the command line says; return the exit code. Raises nothing: what goes wrong is told in a line.

    Imported and called, a run is done by a child process: taking over signals and orphans is not for a guest.
    """
    import commands
    return commands.execute(list(sys.argv[1:] if argv is None else argv), _STARTED, _FOUND, __name__ == "__main__")


if __name__ == "__main__":
    _CODE = main()
    leave(_CODE)
    raise SystemExit(_CODE)
