"""The command line, taken apart: argv -> Options. Errors name what is meant most likely.

Not argparse: importing and building it shows in the time of a run in which nothing changed.
"""
from __future__ import annotations

from model import Options, UsageError
from spec_values import name_problem, shown_value, strict_json
from state_store import new_run_id

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, FrozenSet, List, Optional, Sequence, Set
    Json = Dict[str, Any]

USAGE = """\
usage: pipeline_runner.py [COMMAND] [OPTIONS]

Run the stages of a pipeline in order. What is up to date is skipped, what was interrupted is resumed.

run
  (none), run           run the pipeline
  plan                  say what a run would do with each stage, and why; write nothing
  validate              check the pipeline file and the processors; run nothing
begin
  init DIR              write a working pipeline of your own into a new folder, with this runner in it
  new-stage NAME        write one stage more: a processor (--kind), its test, its entry in the pipeline file
look
  status                what each stage is like, why it would run next, and the last runs
  history [STAGE]       durations and counts over the runs; what took much longer than usual
  logs STAGE            what the stage's processors printed in its last run, or in --run ID; --follow: while it comes
  explain STAGE         all that the stage depends on, then and now
  report [RUN]          one HTML file about a run
  graph                 the graph of stages and files
keep order
  unlock STAGE...       remove the lock folder of a stage that nobody holds
  reset STAGE...        forget a stage's checkpoint and record
  clean [STAGE...]      list what the records say the stages made; delete it with --yes
  gc                    list old run records, metrics and logs; delete them with --yes
prove
  scan [FILE...]        search the programs for uses of the network; run nothing
  accept STAGE          take a stage as up to date whose key changed for a harmless cause; needs --reason
  verify [RUN...]       check the ledger, the records and the logs; with --outputs the outputs, too
  export RUN            write a run's provenance (in-toto Statement with SLSA provenance)
  evidence RUN          write all that proves a run into one zip file, with a verifier
  new-key FILE          make a key file to seal the ledger with (--forward: a key that evolves)

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
  --key FILE            the key file that seals the ledger; verify: to check the seals with
options of a run
  --jobs N              how many attempts may run at once (default: the CPUs that this process may use)
  --max-memory MB       start no attempt that would bring the declared memory of those running above this
  --keep-going          after a failure go on with the stages that do not need what failed
  --stop-by HH:MM       at this time of the day ask the processors to stop at their next checkpoint; exit 7
  --stop-after TIME     the same after 90s, 15m, 2h
  --verbose             show the processors' output
  --quiet               print failures only
  --log-format FORMAT   text (the default), or json: one JSON object for each event
  --openlineage FILE    append OpenLineage events to a file
options of other commands
  --json                status, history, logs, explain: one JSON document
  --run ID              logs: of this run
  --follow              logs: show what comes until the stage ends
  --last N              status, history: so many runs
  --format FORMAT       export: in-toto (the default); graph: mermaid (the default), dot, svg, json
  --output FILE, -o     export, evidence, report, graph: where to write
  --yes                 clean, gc, reset: do it
  --keep-runs N         gc: keep the last N runs
  --keep-days D         gc: keep the runs of the last D days
  --kind KIND           new-stage: lines (the default), blocks, files, shell
  --anchor HEAD         verify: a head noted earlier must be in the ledger; may be given several times
  --outputs             verify: the outputs must be what was recorded
  --reason TEXT         accept: why; it goes into the ledger
  --forward             new-key: each entry gets a key of its own, the old one is destroyed
  --version, --help

exit codes
  0 completed  1 a stage failed  2 bad usage or spec  3 internal error  4 lock held  5 state damaged, not writable or not verified
  6 offline guard  7 stopped by the clock, or inputs not settled  129 hung up  130 interrupted (Ctrl-C)  143 terminated
"""
MAY_BE_EMPTY = ("--set", "--reason", "--run-id")      # that each say themselves what they need
RECORDED = ("--set", "--reason")      # free text that ends in records
REPEATED = ("--force", "--only", "--set", "--anchor")
VALUED = REPEATED + ("--pipeline", "--root", "--run-id", "--from", "--until", "--key", "--format", "--output", "-o", "--reason", "--jobs", "--max-memory",
                     "--stop-by", "--stop-after", "--log-format", "--openlineage", "--run", "--last", "--keep-runs", "--keep-days", "--kind")
FLAGS = ("--rehash", "--dry-run", "--verbose", "--outputs", "--forward", "--keep-going", "--quiet", "--json", "--follow", "--yes", "--version",
         "--help", "-h")
# command -> (least, most words after it, what they are)
COMMANDS = {"run": (0, 0, ""), "plan": (0, 0, ""), "validate": (0, 0, ""), "unlock": (1, None, "the name of a stage"), "scan": (0, None, ""),
            "accept": (1, 1, "the name of one stage"), "verify": (0, None, ""), "export": (1, 1, "the id of one run"),
            "evidence": (1, 1, "the id of one run"), "new-key": (1, 1, "the file to make"),
            "status": (0, 0, ""), "history": (0, 1, "the name of one stage"), "logs": (1, 1, "the name of one stage"),
            "explain": (1, 1, "the name of one stage"), "report": (0, 1, "the id of one run"), "graph": (0, 0, ""),
            "clean": (0, None, ""), "gc": (0, 0, ""), "reset": (1, None, "the name of a stage"), "init": (1, 1, "the folder to make"),
            "new-stage": (1, 1, "the name of the stage")}
# options that belong to some commands only -> these
ONLY_WITH = {"--anchor": ("verify",), "--outputs": ("verify",), "--format": ("export", "graph"), "--output": ("export", "evidence", "report", "graph"),
             "--reason": ("accept",), "--forward": ("new-key",), "--json": ("status", "history", "logs", "explain"), "--run": ("logs",),
             "--last": ("status", "history"),
             "--run-id": ("run", "plan", "validate"),
             "--dry-run": ("run", "plan"), "--verbose": ("run", "plan"), "--only": ("run", "plan", "validate", "status", "clean"),
             "--from": ("run", "plan", "validate", "status", "clean"),
             "--until": ("run", "plan", "validate", "status", "clean"), "--force": ("run", "plan", "validate", "status", "explain"),
             "--follow": ("logs",), "--yes": ("clean", "gc", "reset"), "--keep-runs": ("gc",), "--keep-days": ("gc",), "--kind": ("new-stage",),
             **{name: ("run",) for name in ("--jobs", "--max-memory", "--keep-going", "--stop-by", "--stop-after", "--quiet", "--log-format",
                                            "--openlineage")}}
# taken by more, some everywhere, as a script may give all commands the same options; these are the commands for which they change something
OF_USE_WITH = {"--run-id": ("run",), "--verbose": ("run",),
               "--set": tuple(name for name in COMMANDS if name not in ("verify", "export", "evidence", "new-key", "init", "new-stage")),
               "--rehash": ("run", "plan", "status", "explain"), "--key": ("run", "plan", "validate", "verify", "accept", "clean", "gc", "reset"),
               **{name: tuple(one for one in COMMANDS if one not in ("init", "new-key")) for name in ("--pipeline", "--root")}}
INSTEAD = {("--run-id", "verify"): "; the runs are named by words: verify ID",
           ("--run-id", "logs"): "; of which run is said by --run", ("--run-id", "report"): "; the run is named by a word: report ID",
           ("--dry-run", "clean"): "; without --yes it removes nothing", ("--dry-run", "gc"): "; without --yes it removes nothing",
           ("--dry-run", "reset"): "; without --yes it removes nothing"}
FORMATS = {"export": ("in-toto",), "graph": ("mermaid", "dot", "svg", "json")}     # command -> its formats, the default first
LOG_FORMATS = ("text", "json")
KINDS = ("lines", "blocks", "files", "shell")


def usage_of(command: str) -> str:
    """Return the part of the usage that is about one command; all of it where there is none of that name."""
    head, _, rest = USAGE.partition("\noptions\n")
    owners = {**ONLY_WITH, **OF_USE_WITH}
    about = next((line for line in head.split("\n") if line.startswith("  ") and command in line[2:24].replace(",", "").split()), "")
    if not about or command not in COMMANDS:
        return USAGE
    shown = [line for line in rest.partition("\n\n")[0].split("\n") if line.startswith("  --") and command in owners.get(line.split()[0], ())]
    return "usage: pipeline_runner.py %s%s\n\n%s\n%s\nall commands, options and exit codes: pipeline_runner.py --help\n" % (
        about[2:24].rpartition(", ")[2].strip(), " [OPTIONS]" if shown else "", about, "\n".join(["\noptions"] + shown + [""]) if shown else "")


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
            if not equals and queue[0].partition("=")[0] in VALUED + FLAGS:
                raise UsageError("%s needs a value, got the option %s; a value that is called so is written %s=%s" % (name, queue[0], name, queue[0]))
            values[name].append(value if equals else queue.pop(0))
            if not values[name][-1] and name not in MAY_BE_EMPTY:
                raise UsageError("%s needs a value, got an empty one" % name)
        elif word in FLAGS:
            flags.add(word)
        elif word.startswith("-"):
            near = nearest(name, VALUED + FLAGS)
            raise UsageError("unknown option %s; %s" % (word, "did you mean %s?" % near if near else "see --help"))
        else:
            words.append(word)
    return _options(values, flags, words)


def _options(values: Dict[str, List[str]], flags: Set[str], words: List[str]) -> Options:
    is_named = bool(words)
    command = words.pop(0) if words else "run"
    if flags & {"--help", "-h"}:
        command, words = "help", [command] if is_named else []
    elif "--version" in flags:
        command = "version"
    elif command not in COMMANDS:
        near = nearest(command, tuple(COMMANDS))
        raise UsageError("unknown command %s; %s" % (command, "did you mean %s?" % near if near else "see --help"))
    values["--output"] += values.pop("-o")
    if command not in ("help", "version"):
        _check_words(command, words, bool(values["--only"] or values["--from"] or values["--until"]))
        _check_owned(command, values, flags)
        _check_recorded(values)
    if command == "run" and "--dry-run" in flags:
        command = "plan"
    for name in VALUED:
        if name not in REPEATED and len(values.get(name, ())) > 1:
            raise UsageError("%s was given twice" % name)
    single = {name: (found[-1] if found else None) for name, found in values.items()}
    run_id = single["--run-id"]
    if run_id is not None and name_problem(run_id):
        raise UsageError("--run-id %s: %s" % (shown_value(run_id), name_problem(run_id)))
    return Options(
        command=command, operands=words, pipeline=single["--pipeline"] or "pipeline.json", root=single["--root"], run_id=run_id or new_run_id(),
        force=_names("--force", values), only=_names("--only", values), first=single["--from"], last=single["--until"],
        params=_settings(values["--set"]), rehash="--rehash" in flags, verbose="--verbose" in flags, anchors=values["--anchor"], key=single["--key"],
        outputs="--outputs" in flags, format=single["--format"] or FORMATS.get(command, ("",))[0], output=single["--output"],
        reason=single["--reason"], forward="--forward" in flags, jobs=_number("--jobs", single, 1), max_memory_mb=_number("--max-memory", single, 1),
        keep_going="--keep-going" in flags, stop_by=_time_of_day(single["--stop-by"]), stop_after_s=_duration_s(single["--stop-after"]),
        quiet="--quiet" in flags, log_format=_choice("--log-format", single, LOG_FORMATS), open_lineage=single["--openlineage"],
        as_json="--json" in flags, run=single["--run"], follow="--follow" in flags, yes="--yes" in flags,
        keep_runs=_number("--keep-runs", single, 0), keep_days=_number("--keep-days", single, 0),
        kind=_choice("--kind", single, KINDS), last_runs=_number("--last", single, 1))


def _number(name: str, values: Dict[str, Optional[str]], least: int) -> Optional[int]:
    text = values[name]
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) >= least):
        raise UsageError("%s %s: must be a whole number from %d to 999999999" % (name, shown_value(text), least))
    return int(text)


def _choice(name: str, values: Dict[str, Optional[str]], choices: Sequence[str]) -> str:
    text = values[name]
    if text is not None and text not in choices:
        raise UsageError("%s %s: must be %s" % (name, shown_value(text), " or ".join(choices)))
    return text or choices[0]


def _time_of_day(text: Optional[str]) -> Optional[str]:
    """Check the HH:MM of --stop-by."""
    if text is None:
        return None
    hours, colon, minutes = text.partition(":")
    if not (colon and text.isascii() and hours.isdigit() and minutes.isdigit() and len(hours) <= 2 and len(minutes) == 2 and int(hours) < 24
            and int(minutes) < 60):
        raise UsageError("--stop-by %s: must be a time of the day, HH:MM" % shown_value(text))
    return text


def _duration_s(text: Optional[str]) -> Optional[float]:
    """Return the seconds of --stop-after: 90, 90s, 15m, 2h."""
    if text is None:
        return None
    unit = {"s": 1, "m": 60, "h": 3600}.get(text[-1:], 0)
    digits = text[:-1] if unit else text
    if not (digits.isascii() and digits.isdigit() and 0 < len(digits) < 8):
        raise UsageError("--stop-after %s: must be a whole number of seconds, or of s, m, h, as in 2h" % shown_value(text))
    return float(int(digits) * (unit or 1))


def _check_words(command: str, words: List[str], is_part: bool) -> None:
    least, most, what = COMMANDS[command]
    if "" in words:                 # $DIR that is not set; as a path it would be the current folder
        raise UsageError("%s: a word of the command line is empty%s" % (command, "; it takes %s" % what if what else ""))
    if len(words) < least:
        raise UsageError("%s needs %s" % (command, what))
    if most is not None and len(words) > most:
        raise UsageError("%s takes %s, got: %s; see --help" % (command, "no further words" if most == 0 else what, " ".join(words)))
    if command == "clean" and words and is_part:
        raise UsageError("clean: name the stages by words, or by --only, --from and --until; not by both")


def _check_owned(command: str, values: Dict[str, List[str]], flags: Set[str]) -> None:
    for name, commands in ONLY_WITH.items():
        if (values.get(name) or name in flags) and command not in commands:
            raise UsageError("%s goes with %s%s" % (name, " and ".join(commands), INSTEAD.get((name, command), "")))
    if {"--quiet", "--verbose"} <= set(flags):
        raise UsageError("--quiet prints failures only, --verbose everything; leave one of them out")
    if command == "accept" and not "".join(values["--reason"]).strip():
        raise UsageError("accept needs --reason TEXT: it goes into the ledger")
    for name in values["--format"]:
        if name not in FORMATS[command]:
            raise UsageError("--format %s: must be %s" % (shown_value(name), " or ".join(FORMATS[command])))


def _check_recorded(values: Dict[str, List[str]]) -> None:
    """Refuse text that no record can hold. Raises: UsageError."""
    for name in RECORDED:
        for text in values[name]:
            try:
                text.encode("utf-8")
            except UnicodeEncodeError:
                raise UsageError("%s %s: not UTF-8 text here; write it in UTF-8, or run with PYTHONUTF8=1 if it is" % (
                    name, shown_value(text))) from None


def _names(option: str, values: Dict[str, List[str]]) -> FrozenSet[str]:
    names = frozenset(name for value in values[option] for name in value.split(",") if name)
    if values[option] and not names:
        raise UsageError("%s %s: names no stage" % (option, values[option][0]))
    return names


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
