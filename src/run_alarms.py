"""The command that a pipeline wants after its runs: onFailure or onSuccess, with the run record on stdin.

Above the leaves and below the runner. It is run like a processor: below the guard of the network, its output in
a log, its whole tree ended after a minute at the latest. It comes after the run's last record and cannot change it: whatever goes
wrong with it is one line.
"""
from __future__ import annotations

import os
from collections import namedtuple

import attempts
import durable_files
import environment
import processor_call
import stage_locks
import state_store
from model import EXIT_OK, EXIT_STOPPED
from primitives import open_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict

    from engine import Run
    Json = Dict[str, Any]

TIME_LIMIT_S, GRACE_S = 60.0, 5.0


class Command(namedtuple("Command", "name processor args")):
    """What to run: name is the key of the pipeline file; the rest as of a stage."""

    __slots__ = ()


def after_run(run: Run, code: int) -> None:
    """Run the command for a run that ends with exit code *code*, if there is one. Never raises. *run* is the runner's Run.

    A run that stops as planned, by the clock or for inputs that are still arriving, is neither a failure nor a success.
    """
    name, words = {EXIT_OK: ("onSuccess", run.spec.on_success), EXIT_STOPPED: ("", ())}.get(code, ("onFailure", run.spec.on_failure))
    if not words:
        return
    try:
        run.prepare_alarm()
        failure = _run_command(run, Command(name, words[0], words[1:]), code)
    except Exception as error:          # the outcome of the run must stand, whatever this is
        failure = getattr(error, "strerror", None) or str(error) or type(error).__name__
    if failure:
        run.console.event("NOTE", name, ": %s; the run stays as it is" % failure)


def _run_command(run: Run, command: Command, code: int) -> str:
    """Return why the command failed, or ""."""
    record = run.records.final or run.records.of_state(run.state_of(code))
    folder = run.log_folder()
    durable_files.make_folder(folder, run.store.commit)
    log_path = os.path.join(folder, command.name + ".log")
    token = stage_locks.new_token()
    network = run.guards.network.attempt(command.name, os.path.join(folder, command.name + ".network"), run.console)
    env = environment.base_environment(None, os.environ)
    env.update(network.environment({}), PIPELINE_RUN_ID=run.options.run_id, PIPELINE_RUN_STATE=record["state"], PIPELINE_ROOT=run.root,
               PIPELINE_ATTEMPT_TOKEN=token)
    with _readable(run, record) as stdin:
        launch = attempts.Launch(processor_call.command_line(run.root, command, []), env, run.root, log_path, token, -1, "", TIME_LIMIT_S, GRACE_S,
                                 {}, None, stdin=stdin)
        result = attempts.run_attempt(launch, run.signals, run.guards.guardian, run.guards.others, network)
    shown = os.path.relpath(log_path, run.root).replace(os.sep, "/")
    reasons = [network.fault()] * bool(network.fault()) + [result.failure] * bool(result.failure)
    if result.survivors:
        reasons.append(attempts.survivors_text(result.survivors))
    return "%s; its output: %s" % ("; ".join(reasons), shown) if reasons else ""


def _readable(run: Run, record: Json) -> Any:
    """Return the run record as an open file: that on the disk, or a temporary one where it could not be written."""
    if run.records.final is not None:
        return open_file(run.store.path("run_%s.json" % run.options.run_id))
    import tempfile
    file = tempfile.TemporaryFile()
    file.write(state_store.record_json(record))
    file.seek(0)
    return file
