"""What every attempt of a stage is given, what keeps one from being started, and what the machine tells on which a launcher ran it.

Above processor_call; for the stages at work (stage_work).
"""
from __future__ import annotations

import json
import os
import sys

import attempts
import environment
import processor_call
import stage_records

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, Optional, Sequence, Tuple

    from engine import Run
    from model import Material, StageSpec
    Json = Dict[str, Any]

BYTECODE_BYTES = 16 << 20   # of free space, as for the runner's own: with less, a processor's bytecode might be cut short
# What is no UTF-8 text comes out of a filter in Python as it went in: "backslashreplace" would change it, without a word.
FILTERS_ENCODING = "utf-8:surrogateescape"
NO_REPORT = "%sthe task left no report %s: %s"


def _is_short_of_space(folder: str) -> bool:
    """Tell whether bytecode that Python caches beside the files of *folder* might be cut short; it would be taken for whole ever
    after."""
    try:
        found = os.statvfs(folder)
    except (AttributeError, OSError):
        return False                    # Windows
    return found.f_bavail * found.f_frsize < BYTECODE_BYTES


class StageCalls:
    """How the processor of one stage is called. *folder*: its outputs'; *material*: what its key is made of; *record*: the stage's,
    of its last run."""

    def __init__(self, run: Run, stage: StageSpec, folder: str, material: Material, record: Optional[Json]) -> None:
        self.run, self.stage, self.folder, self.material, self.record = run, stage, folder, material, record
        self.nodes: Dict[str, Json] = {}        # where attempts ran that a launcher started, and how the network was closed there
        # Why what Python has cached of the modules cannot be used; None: not looked at yet.
        self.bytecode: Optional[str] = None

    # --- what it is given

    def base_environment(self) -> Dict[str, str]:
        """Return the variables that are the same for all attempts."""
        stage, run = self.stage, self.run
        if stage.pass_env not in run.inherited:
            run.inherited[stage.pass_env] = environment.base_environment(stage.pass_env, os.environ)
        inherited = run.inherited[stage.pass_env]
        if stage.chunks is not None and stage.chunks.is_filter:
            inherited = dict(inherited, PYTHONIOENCODING=FILTERS_ENCODING)
        env = environment.with_own(inherited, stage.env)
        is_tight = _is_short_of_space(os.path.join(run.root, os.path.dirname(stage.processor)))
        if (sys.dont_write_bytecode or is_tight) and not os.environ.get("PYTHONDONTWRITEBYTECODE"):
            env.setdefault("PYTHONDONTWRITEBYTECODE", "1")      # this runner's own doing: little space, or python -B
        env.update(PIPELINE_STAGE_NAME=stage.name, PIPELINE_RUN_ID=run.options.run_id, PIPELINE_ROOT=run.root,
                   # As in the key: their order tells nothing.
                   PIPELINE_PARAMS=json.dumps(stage.params, ensure_ascii=False, sort_keys=True))
        return env

    def variables_of(self, attempt: int, offset: int, is_resume: bool, token: str, inputs_file: str) -> Dict[str, str]:
        """Return the variables of attempt number *attempt*, of the stage or of one of its tasks."""
        found = {"PIPELINE_LINE_OFFSET": str(offset), "PIPELINE_ATTEMPT": str(attempt), "PIPELINE_INPUTS_FILE": inputs_file,
                 "PIPELINE_ATTEMPT_TOKEN": token}
        if is_resume:
            found["PIPELINE_RESUME"] = "1"
        if attempt <= self.stage.simulate_fail_attempts:
            found["PIPELINE_SIMULATED_FAIL"] = "1"
        if self.stage.checkpoint:
            found["PIPELINE_LINE_INTERVAL"] = str(self.stage.line_interval)
        return found

    # --- what keeps it from being started

    def problem(self, inputs: Sequence[str]) -> Tuple[str, bool]:
        """Return (why no attempt can be started with these inputs or "", whether that is the machine's fault or the processor's,
        not theirs)."""
        machines = self._space_problem() or self._bytecode_problem() or processor_call.overflow_problem(
            self.run.root, self.stage.processor, self.stage.args, [path for path, _ in self.material.parts["modules"]] + self.material.watched,
            inputs)
        return machines or processor_call.cmd_problem(self.stage.processor, inputs), bool(machines)

    def _bytecode_problem(self) -> str:
        """Return why the processor might be given an earlier text of a module, or "". Looked at once: a module that changes later
        fails the attempt."""
        if self.bytecode is None:
            modules = self._modules()
            self.bytecode = self._drop_bytecode(modules) if modules else ""
        return self.bytecode

    def _modules(self) -> Dict[str, str]:
        """Return {path: digest} of what bytecode may be cached of."""
        parts = self.material.parts
        return {path: digest for path, digest in [*parts["modules"], *parts["watch"]] if path.endswith(".py")}

    def _drop_bytecode(self, modules: Dict[str, str]) -> str:
        """Remove what is cached of modules that may be another text's: by its times, or as neither the stage's last run nor another
        stage in this one had the text of now. Return why that cannot be, or ""."""
        import stale_bytecode
        prefix = self.base_environment().get("PYTHONPYCACHEPREFIX", "")
        before, looked = stage_records.last_code(self.record), self.run.bytecode
        doubted = {path for path, digest in modules.items() if digest not in (before.get(path), looked.get((prefix, path)))}
        problem = stale_bytecode.drop(self.run.root, modules, prefix, doubted)
        if not problem:
            looked.update({(prefix, path): digest for path, digest in modules.items()})
        return problem

    def bytecode_facts(self) -> Json:
        """Return what the record of a stage that has ended well says of its modules' bytecode."""
        return {"bytecodeKey": self.material.key} if self._modules() and not self._bytecode_problem() else {}

    def _space_problem(self) -> str:
        wanted = self.stage.resources.get("minFreeDiskMB", 0)
        if not wanted:
            return ""
        import shutil
        free = shutil.disk_usage(self.folder).free
        return "" if free >= wanted << 20 else "%d bytes free in %s, resources.minFreeDiskMB asks for %d" % (
            free, self.stage.output_dir, wanted << 20)

    # --- what its machine tells

    def with_node_report(self, result: attempts.AttemptResult, network: Any, token: str) -> Tuple[attempts.AttemptResult, str]:
        """Take in what a launched task told of its machine; return the result, and why the network could not be closed there, or
        "".

        Success is believed only with the word that the last process of this very attempt is gone there.
        """
        if not self.stage.launcher or result.exit_code is None:
            return result, ""
        told, failure, unclosed = network.take_node_report(), result.failure, ""
        is_told, is_cut = told.is_whole and told.token == token, result.stopped or result.is_timeout
        if told.host:
            place = self.nodes.setdefault("%s %s" % (told.host, sorted(told.kernel.items())),
                                          {"host": told.host, "kernel": told.kernel, "attempts": 0})
            place["attempts"] += 1
        if told.why and not result.stopped:
            failure, unclosed = told.why, told.why if told.is_unclosed else ""
            result = result._replace(is_machines=True)
        elif not is_told and not is_cut:
            failure = NO_REPORT % (failure + "; " if failure else "", os.path.relpath(network.node_report(), self.run.root).replace(os.sep, "/"),
                                   "the launcher or the machine failed" if failure
                                   else "the launcher came back before the task had ended, or did not run the words after it, or the machines do not share the root")
            result = result._replace(is_machines=True)
        elif not failure and told.exit_code:
            failure = "%s, which the launcher did not give back" % attempts.exit_text(told.exit_code)
            result = result._replace(exit_code=told.exit_code)
        if is_told and told.stopped_by and failure and not is_cut:
            failure += "; its machine's engine has stopped it (signal %d)" % told.stopped_by
            result = result._replace(is_machines=True)
        return result._replace(failure=failure, cpu_s=told.cpu_s or result.cpu_s, max_rss_bytes=told.max_rss_bytes or result.max_rss_bytes), unclosed

    def evidence(self) -> Json:
        """Return what the run record says of the launcher, {} without one."""
        if not self.stage.launcher:
            return {}
        return {"launcher": {"words": list(self.stage.launcher), "limits": "left to the launcher", "nodes": list(self.nodes.values())}}
