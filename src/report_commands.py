"""The commands report and graph: where they read, where they write.

Above the leaves, and imported by the runner when one of them was asked for.
"""
from __future__ import annotations

import os

import output_places
import run_history
import run_ledger
import stage_locks
from model import EXIT_OK, UsageError
from spec_values import name_problem, shown_value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Optional

    from console import Console
    from model import Clock, Options, PipelineSpec


def do(spec: PipelineSpec, options: Options, console: Console, clock: Clock) -> int:
    """Do what the command line asks; return the exit code. Raises: UsageError, OSError."""
    return _report(spec, options, console, clock) if options.command == "report" else _graph(spec, options, console)


def _report(spec: PipelineSpec, options: Options, console: Console, clock: Clock) -> int:
    import report_html
    import run_report
    run_id = options.operands[0] if options.operands else None
    if run_id is not None:
        if name_problem(run_id):
            raise UsageError("report %s: %s" % (shown_value(run_id), name_problem(run_id)))
    report = run_report.gather(spec, run_id, clock.time(), lambda found: is_alive(spec.root, found, clock))
    path = options.output or "report_%s.html" % report.run_id
    _write(spec, path, report_html.page(report))
    console.line("%s: run %s, %s" % (path, report.run_id, report.state))
    for note in report.notes:
        console.line("[NOTE] " + note)
    return EXIT_OK


def _graph(spec: PipelineSpec, options: Options, console: Console) -> int:
    import pipeline_graph
    import stage_waits
    text = pipeline_graph.graph_text(spec, options.format, stage_waits.edges_of(spec))
    if options.output is None:
        data = text.encode("utf-8", "backslashreplace")
        stream = getattr(console.out, "buffer", None)
        if stream is not None:      # UTF-8 and plain newlines also where the console's own are others
            console.out.flush()
            stream.write(data)
            stream.flush()
        else:
            console.out.write(data.decode("utf-8"))
        return EXIT_OK
    _write(spec, options.output, text)
    console.line("%s: %d stage%s" % (options.output, len(spec.stages), "s" * (len(spec.stages) != 1)))
    return EXIT_OK


def _write(spec: PipelineSpec, path: str, text: str) -> None:
    data = text.encode("utf-8", "backslashreplace")
    output_places.write_whole(output_places.checked(path, "-o", spec.root, spec.path, spec.stages), lambda file: file.write(data))


def is_alive(root: str, run_id: str, clock: Any) -> Optional[bool]:
    """Tell whether the runner of a run lives: it holds the lock of its run id, or does so by another path.

    Who may not open that lock is told what `status` goes by: True while a stage is held, None where nothing of the run is seen.
    """
    lock = stage_locks.FileLock(root, run_id + ".run", clock)
    if not os.path.lexists(lock.path):
        return False
    try:
        if not lock.try_acquire():
            return True
    except OSError:
        return True if run_id in run_history.living_runs(root) or run_ledger.works_unseen(root, run_id) is not None else None
    lock.release()
    return run_ledger.works_unseen(root, run_id) is not None
