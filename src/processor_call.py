"""How a processor is called: its words, which inputs fit among them, and the launcher that may stand before them.

Above spec_checks; for stage_calls, stage_work and run_alarms.
"""
from __future__ import annotations

import json
import os
import sys

import spec_checks
from primitives import is_for_cmd, open_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, List, Sequence, Tuple

    import attempts
    from engine import Run
    from model import StageSpec

CMD_BYTES = 6000            # of a batch file's inputs; cmd.exe takes 8191 characters of all
ARGUMENT_BYTES = 30_000 if sys.platform == "win32" else 1_000_000     # at most; Windows allows 32,767 characters
MENTION_BYTES = 1 << 20     # of a file in which the name of a variable is looked for, at once
INPUTS_FILE = "PIPELINE_INPUTS_FILE"


def command_line(root: str, stage: Any, inputs: Sequence[str]) -> List[str]:
    """Return the argument list for a processor: interpreter where it needs one, args, inputs if they fit."""
    program = os.path.join(root, stage.processor).replace("/", os.sep)      # commands of Windows take /x for an option
    kind = spec_checks.program_kind(stage.processor)
    if "%" in program and is_for_cmd(program):      # in quotes, too, cmd.exe replaces %NAME%
        program = os.path.join(os.curdir, stage.processor).replace("/", os.sep)
    start = [sys.executable, program] if kind == "python" else _powershell() + [program] if kind == "powershell" else [program]
    arguments = list(stage.args)
    if fits_command_line(inputs, stage.processor):
        arguments += ["./" + one if one.startswith("-") else one for one in inputs]      # a file, not an option
    return start + arguments


def fits_command_line(inputs: Sequence[str], processor: str = "") -> bool:
    """Tell whether these names can be arguments; with as many to spare, for what the processor starts itself is given them, too,
    and its environment."""
    most = min(CMD_BYTES if is_for_cmd(processor) else ARGUMENT_BYTES, _system_argument_bytes() // 2)
    return 4 * sum(map(len, inputs)) + 9 * len(inputs) <= most or sum(len(os.fsencode(one)) + 9 for one in inputs) <= most


def _system_argument_bytes() -> int:
    try:
        return os.sysconf("SC_ARG_MAX")
    except (AttributeError, ValueError, OSError):       # Windows has no such call
        return 2 * ARGUMENT_BYTES


def overflow_problem(root: str, processor: str, args: Sequence[str], others: Sequence[str], inputs: Sequence[str]) -> str:
    """Return why a processor cannot be given so many inputs, or "": it would be started without any, and not know of the file
    that lists them.

    others: files below *root* that it works with. Whether one reads that file is told from its name in their text, or in *args*.
    """
    if fits_command_line(inputs, processor) or any(INPUTS_FILE in one for one in args) or any(
            _mentions(os.path.join(root, path), INPUTS_FILE.encode("ascii")) for path in [processor, *others, *args]):
        return ""
    return ("%d inputs are too many for a command line, and %s does not look at %s, the file that lists them: read them there, "
            "use the kit, or make it a stage with forEach" % (len(inputs), processor, INPUTS_FILE))


def _mentions(path: str, text: bytes) -> bool:
    before = b""
    try:
        with open_file(path) as file:
            for block in iter(lambda: file.read(MENTION_BYTES), b""):
                if text in before + block:
                    return True
                before = block[-len(text):]
    except (OSError, ValueError):
        pass
    return False


def cmd_problem(processor: str, inputs: Sequence[str]) -> str:
    """Return why a batch file cannot be given these names, or ""."""
    bad = spec_checks.taken_by_cmd(processor, inputs)
    return "cmd.exe would not take the name %s as it is: rename the file, or let the processor be no batch file" % json.dumps(bad[0],
        ensure_ascii=False) if bad else ""


def _powershell() -> List[str]:
    import shutil
    return [shutil.which("pwsh") or shutil.which("powershell") or "powershell", "-NoProfile", "-NonInteractive", "-ExecutionPolicy",
            "Bypass", "-File"]


def launched_elsewhere(launch: attempts.Launch, run: Run, stage: StageSpec, network: Any) -> Tuple[attempts.Launch, Any]:
    """Return *launch* with the stage's launcher before it, if there is one, and the watch over its use of the network here.

    It is started by the helper; its lease is made then.
    """
    if not stage.launcher:
        return launch, network
    import launch_helper
    import launch_lease
    lease = launch_lease.lease_path(run.root, stage.name, launch.token)
    argv = launch_helper.launcher_words(stage.launcher, stage.resources) + launch_helper.task_words(os.path.dirname(os.path.abspath(__file__)), lease)

    def start() -> Any:
        launch_lease.create(lease, launch_helper.task_plan(stage, launch, run.root, run.spec.offline, network.node_report()))
        return run.guards.launches.start(argv, launch_helper.launcher_environment(launch.env, stage.env), run.root, launch.token, lease)

    return launch._replace(argv=argv, launcher=start), None     # the kernel of this machine has nothing to tell of another's
