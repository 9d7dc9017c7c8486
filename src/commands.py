"""What each command of the command line does: argv -> Options -> the room that does it -> exit code."""
from __future__ import annotations

import os
import sys

import command_line
import planning
import spec_values
import stage_locks
import stage_records
import state_store
import stop_requests
from console import Console, describe_os_error, silence_closed_streams
from file_digests import Digests
from model import EXIT_INTERNAL, EXIT_INTERRUPTED, EXIT_OFFLINE, EXIT_OK, EXIT_STATE, VERSION, Clock, Options, PipelineSpec, SpecError
from program_scan import check_offline, local_modules, print_scan
from spec_loading import load_pipeline, refuse
from state_store import StateStore

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, List, Tuple

# What they print only tells of what was done.
ACTS = ("accept", "evidence", "init", "new-key", "new-stage", "report", "unlock")
# They start no processor, and work where it is not: in a copy of the folder on another machine.
NEED_NO_PROGRAMS = ("clean", "explain", "gc", "graph", "history", "logs", "report", "reset", "status", "unlock")
RUNNER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "pipeline_runner.py")


def execute(arguments: List[str], started: float, found: Any, is_program: bool) -> int:
    """Do what the command line says; return the exit code. Raises nothing: what goes wrong is told in a line.

    started: time.monotonic() of the program's start. found: what the index says (quick_run.Found, or None), or the error
    that the quick run ended with. is_program: this process is ours; to a guest's, signals and orphans are left.
    """
    console = Console()
    if is_program:
        stop_requests.heed()
    try:
        code = _do(arguments, console, started, found, is_program)
        stop_requests.silence()
        return code
    except KeyboardInterrupt as error:
        stop_requests.silence()
        console.error("interrupted")
        return getattr(error, "exit_code", EXIT_INTERRUPTED)
    finally:
        if is_program:
            stop_requests.leave()
        console.close()
        silence_closed_streams()


def _do(arguments: List[str], console: Console, started: float, found: Any, is_program: bool) -> int:
    """As execute(), but for a request to stop. Raises: KeyboardInterrupt."""
    try:
        if isinstance(found, BaseException):
            raise found
        options = command_line.parse_command_line(arguments)
        if options.command == "run":
            console.configure(options)
            if not is_program:
                return _run_in_child(arguments, console)
        ended = _dispatch(options, console, started, found)
        console.settle()
        if console.lost and options.command != "run":       # a run's records tell all the same
            is_done = options.yes or options.output is not None or options.command in ACTS
            console.error("error: standard output: %s; %s" % (console.lost, "what was asked for was done, and is told of in part" if is_done
                                                              else "what was asked for is not whole"))
            return ended if is_done else ended or EXIT_STATE
        return ended
    except OSError as error:
        console.error("error: " + describe_os_error(error))
        return EXIT_STATE
    except Exception as error:
        if isinstance(error, MemoryError) or "can't start new thread" in str(error):
            console.error("error: not enough memory, or threads; allow this user more (ulimit -v, ulimit -u), or run with fewer --jobs")
            return EXIT_STATE
        if isinstance(error, ImportError) and error.path and not error.path.endswith(".py"):     # the system did not open it, or not load it
            console.error("error: a part of Python cannot be loaded, of which the runner needs a working one: %s" % error)
            return EXIT_STATE
        code = getattr(error, "exit_code", None)
        if code is not None:
            console.error("%s%s" % ("" if code == EXIT_OFFLINE or isinstance(error, SpecError) else "error: ", error))
            return int(code)
        import traceback
        console.error("internal error, please report it:\n" + traceback.format_exc().rstrip())
        return EXIT_INTERNAL


def _dispatch(options: Options, console: Console, started: float, found: Any) -> int:
    if options.command in ("help", "version"):
        console.out.write("pipeline_runner %s\n" % VERSION if options.command == "version" else command_line.usage_of("".join(options.operands)))
        return EXIT_OK
    if options.command in ("verify", "export", "evidence", "new-key"):
        import ledger_commands
        return ledger_commands.do(options, console)
    if options.command in ("init", "new-stage"):
        import starters
        return starters.do(options, console, load_pipeline)
    known, spec = _known_or_loaded(options, found)
    if options.command == "plan":
        _tell_of_refusal(spec, options, console)
        return planning.print_plan(spec, options, console, Clock())
    if options.command == "validate":
        return _validate(spec, options, console)
    if options.command == "scan":
        return print_scan(spec, Digests(spec.root, state_store.boot_id(), keep=False), options.operands, console)
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
        former = housekeeping.former_stages(spec, options.operands) if options.command != "gc" else []
        named = options.only | frozenset(options.operands) - {stage.name for stage in former}
        stages = planning.select_stages(spec, options._replace(only=named)) + former if named or not former else former
        return housekeeping.do(spec, stages, options, console, Clock(), engine.new_ledger)
    if options.command == "unlock":
        return _unlock(spec, options, console)
    if options.command == "accept":
        return _accept(spec, options, console, Clock())
    if options.open_lineage:
        import output_places
        output_places.checked(options.open_lineage, "--openlineage", spec.root, spec.path, spec.stages, True)
    import engine
    return engine.Run(spec, options, console, Clock(), started, known).run()


def _validate(spec: PipelineSpec, options: Options, console: Console) -> int:
    notes = _check_starts(spec, options)
    digests = Digests(spec.root, state_store.boot_id(), keep=False)
    check_offline(spec, digests, console)
    planning.select_stages(spec, options)
    if spec.seal_key:
        import seal_keys
        seal_keys.check_place(spec.seal_key, spec.root)
    for note in notes:
        console.line("[NOTE] " + note)
    _tell_of_gaps(spec, digests, console)
    _tell_of_refusal(spec, options, console)
    console.line("%s: ok (%d stage%s)" % (options.pipeline, len(spec.stages), "" if len(spec.stages) == 1 else "s"))
    return EXIT_OK


def _check_starts(spec: PipelineSpec, options: Options) -> List[str]:
    """Return notes on programs that may not start. Raises: SpecError with those that certainly cannot."""
    import program_starts
    problems, notes = spec_values.Problems(), []
    for place, is_certain, words in program_starts.find_problems(spec):
        if is_certain:
            problems.add(place, words)
        else:
            notes.append("%s: %s" % (spec.stages[place[1]].name if place[0] == "stages" else place[0], words))
    if problems.found:
        refuse(options.pipeline, problems)
    return notes


def _tell_of_gaps(spec: PipelineSpec, digests: Digests, console: Console) -> None:
    """Print what the stages name and their keys do not know, paths that mean another thing, and what they read that another may
    write at the same time."""
    import housekeeping
    import key_gaps
    import stage_waits
    for name, doubt in stage_waits.Waits(spec).doubtful_reads(spec.stages):
        console.line("[NOTE] %s: %s" % (name, doubt))
    made, own = [stage.output_dir for stage in spec.stages], os.path.relpath(spec.path, spec.root).replace(os.sep, "/")
    modules = {processor: local_modules(digests, processor) for processor in {stage.processor for stage in spec.stages}}
    for stage in spec.stages:
        for gap in key_gaps.find_gaps(spec.root, stage, made, [own, *modules[stage.processor]]) + key_gaps.find_misreadings(spec.root, stage):
            console.line("[NOTE] %s: %s" % (stage.name, gap))
    for note in housekeeping.notes_on_former(spec):
        console.line("[NOTE] " + note)


def _tell_of_refusal(spec: PipelineSpec, options: Options, console: Console) -> None:
    """Print why the ledger would let no run begin here and now: a key file that is missing, or is not the one that sealed it."""
    import engine
    try:
        engine.new_ledger(spec, options, StateStore(spec.root, writable=False), Clock()).look()
    except OSError as error:
        console.line("[NOTE] a run here would be refused: %s" % describe_os_error(error))
    except Exception as error:
        if not hasattr(error, "exit_code"):     # StateError, KeyProblem
            raise
        console.line("[NOTE] a run here would be refused: %s" % error)


def _known_or_loaded(options: Options, found: Any) -> Tuple[Any, PipelineSpec]:
    """Return (what the index tells of the stages or None, the spec). What they hold stays to the end: nobody looks for garbage in
    it."""
    import gc
    gc.disable()
    try:
        known = _known_stages(found)
        return known, known.spec if known is not None else planning.override_params(_load(options), options.params)
    finally:
        gc.freeze()
        gc.enable()


def _load(options: Options) -> PipelineSpec:
    return load_pipeline(options.pipeline, options.root, needs_programs=options.command not in NEED_NO_PROGRAMS)


def _known_stages(found: Any) -> Any:
    """Return what the index has told of this very command line, None if nothing that can be used."""
    if found is None:
        return None
    known = found.prepared
    known.stale = set(found.stale)
    return known if known.spec is not None and _waits_as_before(known) else None


def _waits_as_before(known: Any) -> bool:
    """Tell whether what the index knows of a graph's order still holds: a link may have been switched to what another stage makes."""
    if known.needs is None:
        return True
    import stage_waits
    return stage_waits.Waits(known.spec).has_same_links(known.links, [known.spec.stages[place] for place in sorted(known.stale)])


def _accept(spec: PipelineSpec, options: Options, console: Console, clock: Clock) -> int:
    """Take a stage as up to date though its key changed: its record gets today's key, the ledger says who did it and why."""
    import acceptance
    import engine
    import process_tree
    boot, name = state_store.boot_id(), options.operands[0]
    stage, = planning.select_stages(spec, options._replace(only=frozenset((name,))))
    store = StateStore(spec.root, now=clock.time)
    ledger = engine.new_ledger(spec, options, store, clock)
    digests = Digests(spec.root, boot, keep=False)
    check_offline(spec, digests, console)
    store.prepare()
    lock = stage_locks.StageLock(spec.root, name, "accept", boot, clock, process_tree, is_run=False)
    lock.acquire(stage.lock_wait_s, stage_records.dead_token(store.stage(name)))
    try:
        decision, facts = planning.look_at(spec, stage, digests, store, boot, False, lambda device: int(clock.time() * 1e9))
        ledger.prepare()
        done = acceptance.accept(ledger, stage, spec, facts, decision, lambda: planning.totals_again(spec, stage, facts, store),
                                 options.reason, clock)
    finally:
        lock.release()
    console.line(done)
    ledger.tell(console.line, with_head=True)
    return EXIT_OK


def _unlock(spec: PipelineSpec, options: Options, console: Console) -> int:
    import process_tree
    for name in options.operands:
        planning.select_stages(spec, options._replace(only=frozenset((name,))))
        console.line(stage_locks.unlock(spec.root, name, state_store.boot_id(), Clock(), process_tree))
    return EXIT_OK


def _run_in_child(arguments: List[str], console: Console) -> int:
    import subprocess
    done = subprocess.run([sys.executable, RUNNER] + arguments, stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    for stream, data in ((console.out, done.stdout), (console.err, done.stderr)):
        stream.write(data.decode("utf-8", "replace").replace(os.linesep, "\n"))     # which the stream writes as the system does
    return done.returncode
