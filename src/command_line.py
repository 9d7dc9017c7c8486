"""The command line, taken apart: argv -> Options. Errors name what is meant most likely.

Not argparse: importing and building it shows in the time of a run in which nothing changed.
"""
from __future__ import annotations

import os
import time

from model import Options, UsageError
from spec_checks import name_problem, shown_value, strict_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, FrozenSet, List, Optional, Sequence, Set
    Json = Dict[str, Any]

USAGE = """\
usage: pipeline_runner.py [COMMAND] [OPTIONS]

Run the stages of a pipeline in order. What is up to date is skipped, what was interrupted is resumed.

commands
  (none)                run the pipeline
  plan                  say what a run would do with each stage, and why; write nothing
  validate              check the pipeline file and the processors; run nothing
  unlock STAGE          remove the lock folder of a stage that nobody holds

options
  --pipeline FILE       the pipeline file (default: pipeline.json in the working directory)
  --root DIR            what relative paths are relative to (default: the folder of the pipeline file)
  --run-id ID           name of the run (default: the UTC time and a random tail); the same id again continues it
  --force STAGE         run this stage from the start though it is up to date; may be given several times
  --only STAGE          run only this stage; may be given several times
  --from STAGE          begin with this stage
  --until STAGE         end with this stage
  --set NAME=VALUE      another value for a param, for this run (JSON, else text); may be given several times
  --rehash              read all files anew, whatever the stored digests say
  --dry-run             the same as the command plan
  --verbose             show the processors' output
  --version, --help

exit codes
  0 completed  1 a stage failed  2 bad usage or spec  3 internal error  4 lock held  5 state damaged or not writable
  6 offline guard  130 interrupted (Ctrl-C)  143 terminated
"""
VALUED = ("--pipeline", "--root", "--run-id", "--force", "--only", "--from", "--until", "--set")
FLAGS = ("--rehash", "--dry-run", "--verbose", "--version", "--help", "-h")
COMMANDS = ("run", "plan", "validate", "unlock")


def parse_command_line(argv: Sequence[str]) -> Options:
    """Return the options of a command line; --help and --version come back as commands. Raises: UsageError."""
    values: Dict[str, List[str]] = {name: [] for name in VALUED}
    flags, words = set(), []
    queue = list(argv)
    while queue:
        word = queue.pop(0)
        name, equals, value = word.partition("=")
        if name in VALUED:
            if not equals and not queue:
                raise UsageError("%s needs a value; see --help" % name)
            values[name].append(value if equals else queue.pop(0))
        elif word in FLAGS:
            flags.add(word)
        elif word.startswith("-"):
            near = nearest(name, VALUED + FLAGS)
            raise UsageError("unknown option %s; %s" % (word, "did you mean %s?" % near if near else "see --help"))
        else:
            words.append(word)
    return _options(values, flags, words)


def _options(values: Dict[str, List[str]], flags: Set[str], words: List[str]) -> Options:
    command = words.pop(0) if words else "run"
    if flags & {"--help", "-h"}:
        command = "help"
    elif "--version" in flags:
        command = "version"
    elif command not in COMMANDS:
        near = nearest(command, COMMANDS)
        raise UsageError("unknown command %s; %s" % (command, "did you mean %s?" % near if near else "see --help"))
    elif command == "run" and "--dry-run" in flags:
        command = "plan"
    if (command == "unlock") != bool(words) and command not in ("help", "version"):
        raise UsageError("unlock needs the name of a stage" if command == "unlock" else "%s takes no further words, got: %s; see --help" % (command, " ".join(words)))
    for name in ("--pipeline", "--root", "--run-id", "--from", "--until"):
        if len(values[name]) > 1:
            raise UsageError("%s was given twice" % name)
    single = {name: (found[-1] if found else None) for name, found in values.items()}
    run_id = single["--run-id"]
    if run_id is not None and name_problem(run_id):
        raise UsageError("--run-id %s: %s" % (shown_value(run_id), name_problem(run_id)))
    return Options(command, words, single["--pipeline"] or "pipeline.json", single["--root"],
                   run_id or time.strftime("%Y%m%dT%H%M%SZ-", time.gmtime()) + os.urandom(3).hex(),
                   _names(values["--force"]), _names(values["--only"]), single["--from"], single["--until"],
                   _settings(values["--set"]), "--rehash" in flags, "--verbose" in flags)


def _names(values: List[str]) -> FrozenSet[str]:
    return frozenset(name for value in values for name in value.split(",") if name)


def _settings(values: List[str]) -> Json:
    settings: Json = {}
    for value in values:
        name, equals, text = value.partition("=")
        if not name or not equals:
            raise UsageError("--set %s: must be NAME=VALUE" % value)
        try:
            settings[name] = strict_json(text)
        except (ValueError, RecursionError):
            settings[name] = text
    return settings


def nearest(word: str, known: Sequence[str]) -> Optional[str]:
    """Return the known word that *word* was meant for, most likely, or None."""
    import spec_source
    return spec_source.nearest(word, known)
