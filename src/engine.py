"""The engine: one invocation of a run, its stages in order and what becomes of each.

Above all other modules but commands, which reads the command line and the spec and starts it. What is done with one stage is in
stage_turn, whom it must wait for in work_places; what the run writes of itself is in run_records, what it syncs in durability.
"""
from __future__ import annotations

import os
import sys
import time

import durability
import environment
import file_systems
import known_stages
import planning
import quick_index
import run_ledger
import run_records
import stage_locks
import stage_order
import stage_waits
import state_store
import stop_requests
import work_places
from console import Console, describe_os_error
from file_digests import Digests, ReadingStopped
from model import (
    EXIT_FAILED, EXIT_INTERRUPTED, EXIT_LOCKED, EXIT_OFFLINE, EXIT_OK, EXIT_STOPPED, STATUSES, Clock, Facts, Looked, Options, PipelineSpec,
    StageResult, StageSpec)
from primitives import is_there
from program_scan import check_offline, runner_digest
from state_store import StateStore

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Set, Tuple

    import attempts
    import run_guards
    import run_signals
    import scheduler
    import stage_work
    import stop_times
    from scheduler import Flow
    Json = Dict[str, Any]

MOMENT_S = 0.01             # processors that take no longer are waited for with nothing else to do
LATER: Any = None           # what a run in which nothing is started never has


class Run:
    """One invocation of a run: the stages in order, and its outcome."""

    def __init__(self, spec: PipelineSpec, options: Options, console: Console, clock: Clock, process_began: float, known: Any = None) -> None:
        """process_began: by time.monotonic(). *known* is a known_stages.KnownStages: the stages that the index answers for; None
        if it says nothing."""
        self.spec, self.options, self.console, self.clock, self.known = spec, options, console, clock, known
        self.root = spec.root
        self.selected = planning.select_stages(spec, options)
        # What it stands on.
        self.boot = state_store.boot_id()
        self.store = StateStore(spec.root, now=clock.time)
        self.digests = Digests(spec.root, self.boot, rehash=options.rehash)
        self.waits = stage_waits.Waits(spec, self.digests)
        self.order = stage_order.Order(self.selected, spec.order == "graph", stage_order.may_share, None if known is None else known.needs, self.waits.edges)
        self.digests.heed = self._attend
        self.ledger = new_ledger(spec, options, self.store, clock)
        self.run_lock = stage_locks.FileLock(spec.root, options.run_id + ".run", clock)
        self.records = run_records.RunRecords(self)
        self.durability = durability.Durability(self)
        self.places = work_places.WorkPlaces(self)
        # What its records say of it.
        self.process_began = process_began
        self.started = self.started_utc = 0.0       # by the clock that only goes forward, and by the other
        self.begun: Tuple[int, int, int] = LATER    # as process_begin(), before anything was looked at
        self.invocation = 1
        self.about: Json = LATER                    # host, user, the runner's digest
        self.isolation: Json = {}                   # how the network is closed
        self.idle_isolation: Json = {}              # the same of a run that starts nothing
        # What is there only once something must be started.
        self.is_open = False
        self.signals: run_signals.Signals = LATER
        self.guards: run_guards.RunGuards = LATER
        self.pool: attempts.Pool = LATER            # the attempts under way
        self.scheduler: scheduler.Scheduler = LATER
        self.inherited: Dict[Any, Dict[str, str]] = {}      # passEnv -> what processors get of the own environment
        # (PYTHONPYCACHEPREFIX, module) -> digest of the text that the bytecode cached of it is of.
        self.bytecode: Dict[Tuple[str, str], str] = {}
        self.expected: Optional[Dict[str, float]] = None    # how long each stage took before, once the live view has asked
        self.names: Optional[Set[str]] = None       # of all stages of the spec, once somebody has asked
        self.made_folders: Set[str] = set()         # that need not be looked for again
        # How far it has come.
        self.works: Dict[str, stage_work.StageWork] = {}    # stages at work
        self.result_at: List[Optional[StageResult]] = [None] * len(self.selected)   # of each stage selected, once it has ended
        self.looked: Dict[str, Looked] = {}         # of skipped stages, what the decision was made of
        self.scanned: Dict[str, List[int]] = {}     # signatures of what was scanned, and of the runner's own files
        self.held: Set[str] = set()                 # stages that another run has, and this one goes on without
        self.unfit: Dict[str, BaseException] = {}   # stages from which the runner could not go on, and why
        self.stop_time: Optional[stop_times.StopTime] = None

    @property
    def results(self) -> List[StageResult]:
        """What became of the stages so far, in the order listed."""
        return [result for result in self.result_at if result is not None]

    def _put(self, name: str, result: StageResult) -> None:
        self.result_at[self.order.place[name]] = result

    def _fill(self, why: Callable[[str], str]) -> None:
        """Say of the stages that have not been begun why that is so."""
        for place, result in enumerate(self.result_at):
            if result is None:
                name = self.selected[place].name
                self.result_at[place] = StageResult.of(name, "notRun", why(name))

    def counts(self) -> Dict[str, int]:
        """Return {status: how many stages so far ended so}, of all statuses."""
        known = known_stages.KNOWN      # there may be thousands
        statuses = [result.status for result in self.result_at if result is not None and result is not known]
        count = {status: statuses.count(status) for status in STATUSES}
        count[known.status] += self.result_at.count(known)
        return count

    def run(self) -> int:
        """Run the selected stages; return the exit code. Raises what the runner cannot go on from, records written."""
        self.started, self.started_utc = self.clock.monotonic(), self.clock.time()
        if self.options.stop_by or self.options.stop_after_s:
            import stop_times
            self.stop_time = stop_times.of_options(self.options, self.clock)
        nothing = {"method": "none", "why": "no processor was started"}
        self.isolation = {"scan": self._scan(), "kernel": nothing, "hook": "none"}
        self.idle_isolation = dict(self.isolation)
        if self.spec.offline.require == "kernel":
            self.guarded().close_network()      # fails before anything is written
        self.store.prepare()
        self.begun = self.process_begin()
        lock = self.run_lock
        is_known = is_there(lock.path)       # nobody removes it: the id has been used
        lock.acquire(stage_locks.CHANGE_S, run_ledger.ID_IN_USE % self.options.run_id)
        code = EXIT_FAILED
        try:
            self.ledger.prepare()
            self.invocation = run_ledger.next_invocation(self.ledger, self.options.run_id, is_known)
            self.ledger.tell(self.console.line)
            for place in range(len(self.selected)) if self.known is None else sorted(self.known.stale):
                self.store.stage(self.selected[place].name)     # damaged state is found before any work is done
            for name, doubt in planning.unfinished_makers(self.spec, self.selected, self.digests):
                self.console.event("NOTE", name, ": " + doubt)
            code = self._run_to_its_record()
            return code
        finally:
            self._alarm(code)
            if self.guards is not None:
                self.guards.close()
            self.places.close()
            self.digests.close()
            lock.release()

    def _run_to_its_record(self) -> int:
        try:
            code = self._run_stages()
        except BaseException as error:
            stop_requests.silence()
            self._finish_after(error)
            raise
        try:
            self._finish(code)
        except Exception as error:
            if code == EXIT_OK or not _is_expected(error):
                raise
            self.console.error("error: " + _why(error))     # a failed stage stays the first cause
        return code

    def _alarm(self, code: int) -> None:
        """Run the command that the spec wants after a run that ended so; whatever it does, the outcome stays."""
        if self.spec.on_failure or self.spec.on_success:
            import run_alarms
            run_alarms.after_run(self, code)

    def _scan(self) -> Json:
        """Look for uses of the network, and at the runner itself; return what the record says of the scan. Raises:
        OfflineError."""
        if self.known is not None:      # the index holds only while all that is scanned is what it was
            self.console.warnings(self.known.about["warnings"])
            self.about = self.known.about["about"]
            return dict(self.known.about["scan"])
        scan = check_offline(self.spec, self.digests, self.console)
        self.about = {"host": stage_locks.host_name(), "user": environment.user_name(), "runnerSha256": runner_digest(self.digests)}
        self.scanned = self.digests.stamps()
        return scan

    def process_begin(self) -> Tuple[int, int, int]:
        """Return when this process began, in ns, by the clock of the file system and by ours, and the file system's device."""
        now, device = self.digests.file_system_time()
        elapsed = int((time.monotonic() - self.process_began) * 1e9)
        return now - elapsed, time.time_ns() - elapsed, device

    def _run_stages(self) -> int:
        code: int = EXIT_OK
        ended: Optional[Tuple[str, StageResult]] = None
        while True:
            try:
                if ended is not None:
                    code = self._stage_ended(ended[0], ended[1], code)
                code = self._begin_stages(code)
            except BaseException as error:  # noqa: B902 (raised when those at work have come to their end)
                self._put_off(error)
            ended = self.scheduler.ended() if self.scheduler is not None else None
            if ended is None:
                break
        self._fill(self._why_not_run)
        count = self.counts()
        if code == EXIT_STOPPED and count["ok"] + count["skipped"] == len(self.selected):
            return EXIT_OK              # the time was over when all was done
        return code or (EXIT_STOPPED if count["waiting"] else EXIT_OK)

    def _why_not_run(self, name: str) -> str:
        blocked = self.order.blocked
        blocker = first = blocked.get(name)
        while first in blocked:
            first = blocked[first]
        if blocker is None:
            return self.clock_text() or "the run ended before it"
        result = self.result_at[self.order.place[first]]
        is_waiting = result is not None and result.status == "waiting"
        return "waits for %s" % blocker if is_waiting else "stage %s did not end well" % blocker

    def _begin_stages(self, code: int) -> int:
        """Begin all stages that may start now; return the exit code so far."""
        order = self.order
        while not self._is_ending(code):
            if self.known is not None and self._take_known():
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
                code = self._stage_ended(stage.name, stop.value, code)
            else:
                self._scheduler().take(stage.name, flow, wish)
                self.scheduler.step()
        return code or self.stopped()

    def _put_off(self, error: BaseException) -> None:
        """Let the scheduler raise an error once all have come to their end that are at work, or have ended and are yet to be recorded;
        the first cause decides. Raised at once before there is anything at work."""
        if self.scheduler is None:
            raise error
        self.scheduler.error = self.scheduler.error or error

    def _take_known(self) -> bool:
        """Take the next stages that the index answers for, in one go; tell whether there were some."""
        if self.order.is_graph:
            places = self.known.up_to_date(self.order.take_fresh(known_stages.BLOCK), self.is_open)
        else:
            first = self.order.next_place()
            places = range(first, self.known.up_to_date_from(first, self.is_open)) if first is not None else ()
        if places:
            self._skip_known(places)
            self.order.skipped(places)
        return bool(places)

    def _skip_known(self, places: Sequence[int]) -> None:
        """Skip stages for which the index answers."""
        for first, last in quick_index.ranges(places):
            self.console.lines(self.known.index.lines_of(first, last))
            self.result_at[first:last] = [known_stages.KNOWN] * (last - first)

    def _is_ending(self, code: int) -> bool:
        """Tell whether no further stage is begun: the running ones come to their end."""
        is_failing = self.scheduler is not None and self.scheduler.error is not None
        return bool(is_failing or self.stopped() or code and not self.options.keep_going)

    def _has_room(self, stage: StageSpec) -> bool:
        return self.scheduler is None or not self.scheduler.alive or self.scheduler.has_room(*stage.room)

    def _stage_flow(self, stage: StageSpec) -> Flow:
        """A flow that returns the StageResult; one that waits for nothing is a stage that has not to be run."""
        place = self.order.place[stage.name]
        if self.known is not None and self.known.up_to_date([place], self.is_open):
            self._skip_known([place])
            return self.result_at[place]
        import stage_turn
        return (yield from stage_turn.StageTurn(self, stage).flow())

    def add_work(self, work: stage_work.StageWork) -> None:
        """Note a stage as at work, beside those that already are."""
        name = work.stage.name
        work.rank = self.order.place[name]
        for other in self.works.values():
            other.others.beside.add(name)
            work.others.beside.add(other.stage.name)
        self.works[name] = work

    def looked_at(self) -> Iterator[Tuple[StageSpec, StageResult]]:
        """Yield the stages that have ended, but for those that the index answered for."""
        for stage, result in zip(self.selected, self.result_at):
            if result is not None and result is not known_stages.KNOWN:
                yield stage, result

    def _stage_ended(self, name: str, result: StageResult, code: int) -> int:
        """Note how a stage has ended; return the exit code so far: the first cause decides."""
        self._put(name, result)
        self.works.pop(name, None)
        self.order.ended(name, result.status in ("ok", "skipped"))
        if self.is_open and self.records.is_due(result):
            self.records.write_running()
        self.durability.flush_if_due()
        failed = EXIT_OFFLINE if result.is_offline_fault else EXIT_LOCKED if name in self.held else EXIT_FAILED
        return code or {"failed": failed, "interrupted": self.stopped()}.get(result.status, EXIT_OK)

    def _scheduler(self) -> Any:
        """Return the scheduler; made when the first attempt is to be started, after the guardian."""
        if self.scheduler is None:
            import attempts
            import scheduler
            self.pool = self.clock.pool = attempts.Pool(self.signals, self.guards.guardian, self.guards.others)
            self.pool.upkeep = self.durability.keep_up
            if self.console.wants_ticks():
                self.pool.tick = lambda: self.console.tick(self._rows)
            if self.known is not None:
                self._settle_soon(self.pool.tick)
            self.scheduler = scheduler.Scheduler(self.pool, self.jobs(), self.options.max_memory_mb)
        return self.scheduler

    def _settle_soon(self, tick: Any) -> None:
        """Once processors have been at work for MOMENT_S, do what a shorter run can do without: copy the index, and tell in the
        record of the stages for which it answers. tick: what is to be called at all later times."""
        import attempts
        began = self.clock.monotonic()

        def settle() -> None:
            if self.clock.monotonic() - began < MOMENT_S:
                return
            self.pool.tick, self.pool.tick_s = tick, attempts.TICK_S
            self.known.index.keep()
            try:
                self.records.write_running()
            except (OSError, state_store.StateError) as error:
                if self.durability.is_unsound:
                    self._put_off(error)
                # Else it says less than it could until the next time; a damaged index is told at the end.

        self.pool.tick, self.pool.tick_s = settle, MOMENT_S

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

    def state_device(self) -> List[int]:
        """Return on which file system the records are, as a listing tells of a folder's."""
        if "device" not in self.store.memo:
            self.store.memo["device"] = [os.stat(self.store.folder).st_dev]
        return list(self.store.memo["device"])

    # --- what stops it

    def stopped(self) -> int:
        """Return the exit code of a run that a signal or the clock has asked to stop, 0 if none has."""
        number = int(self.signals.number) if self.signals is not None else 0
        if number > 0:
            return 128 + number
        is_over = number < 0 or self.stop_time is not None and self.stop_time.seconds_left() <= 0
        return EXIT_STOPPED if is_over else 0

    def clock_text(self) -> str:
        """Return that, and by which option, the clock has stopped the run, "" if it has not."""
        return "stopped by the clock (%s)" % self.stop_time.text if self.stop_time is not None and self.stopped() == EXIT_STOPPED else ""

    def heed_stop(self) -> None:
        """Raise ReadingStopped when a signal or the clock asks to stop: to read huge inputs may take hours."""
        if self.stopped():
            raise ReadingStopped
        self._attend()

    def _attend(self) -> None:
        """Look after the attempts under way, while a long file is read."""
        if self.pool is not None:
            self.pool.attend()

    def expected_read(self, stage: StageSpec, facts: Facts) -> Tuple[Optional[int], str, str]:
        """Return how many records the stage should have read, see the function of that name."""
        return planning.expected_read(self.spec, stage, facts, self.store)

    # --- the run's own records

    def open(self) -> None:
        """Before the first stage is touched: note the run as begun, start the guardian, adopt orphans from now on.

        A run in which every stage is skipped never comes here: it leaves its record at the end, and nothing before.
        """
        if self.is_open:
            return
        self.guarded().close_network()
        import run_signals
        self.signals = self.clock.signals = run_signals.Signals(self.stop_time)
        self.signals.install()
        import process_tree
        self.run_lock.tell_owner(stage_locks.owner_now("run", self.options.run_id, self.boot, self.clock, process_tree))
        self.store.in_groups = file_systems.keeps_order(*self.state_device())
        self.ledger.begin(self.options.run_id, self.invocation, self.spec.name)
        self.ledger.tell(self.console.line)
        self.records.write_running(is_brief=True)     # _settle_soon() brings the rest
        self.is_open = True
        self.guards.watch_processes()

    def guarded(self) -> run_guards.RunGuards:
        """Return the guards of the run's processes; what they set up is up to the caller."""
        if self.guards is None:
            import run_guards
            self.guards = run_guards.RunGuards(self)
        return self.guards

    def prepare_alarm(self) -> None:
        """Make ready for a processor after the run's end: network closed, processes guarded, signals noted anew."""
        self.guarded().close_network()
        self.guards.watch_processes()
        import run_signals
        self.signals = run_signals.Signals()
        self.signals.install()

    def names_in_spec(self) -> Set[str]:
        """Return the names of all stages, selected or not; there may be thousands, and each that is begun asks."""
        if self.names is None:
            self.names = {stage.name for stage in self.spec.stages}
        return self.names

    def _tell_of_former(self) -> None:
        """Name what stages that the spec has no more have left, where one of today's reads it."""
        if self.names_in_spec().issuperset(self.store.stage_names()):
            return
        import housekeeping
        for note in housekeeping.notes_on_former(self.spec):
            self.console.line("[NOTE] " + note)

    def log_folder(self) -> str:
        """Return this invocation's folder for logs: state/logs/<run>, and below it /<n> from the second call on."""
        parts = [self.store.folder, "logs", self.options.run_id] + ([str(self.invocation)] if self.invocation > 1 else [])
        folder: str = os.path.join(*parts)
        return folder

    def _finish(self, code: int) -> None:
        """Write the metrics, the digests and the sealed run record; on return everything is durable."""
        state = self.state_of(code)
        self.durability.sync_outputs()
        record = self.records.seal(state)
        if self.known is None:          # the spec is another than last time, or nobody knows
            self._tell_of_former()
        self.ledger.tell(self.console.line, with_head=True)
        if state == "interrupted" and self.clock_text():
            self.console.line("[STOP] " + self.clock_text())
        self.console.summary(self.options.run_id, state, self.counts(), self.clock.monotonic() - self.started)
        stop_requests.silence()
        if code == EXIT_OK and self.looked:
            import index_writer
            index_writer.save(self, record, run_records.stage_entry, run_records.metrics_entry)

    def state_of(self, code: int) -> str:
        """Return the state of a run that ends with an exit code."""
        if code == EXIT_STOPPED and not self.stopped():
            return "waiting"        # inputs were not settled; nothing was cut short
        return {EXIT_OK: "completed", EXIT_STOPPED: "interrupted"}.get(code, "interrupted" if code > 128 else "failed")

    def _finish_after(self, error: BaseException) -> None:
        """Say in the records what stopped the run, as far as they can still be written; *error* itself goes on to main."""
        # By a signal before the first attempt, from which on they are taken over.
        is_stopped = isinstance(error, KeyboardInterrupt)
        why = "interrupted" if is_stopped else _why(error)
        for name in dict.fromkeys([*self.unfit, *self.works]):      # and those that it has left at work
            own = self.unfit.get(name)
            is_cut = own is None or isinstance(own, KeyboardInterrupt)
            self._end_unfit(name, "interrupted" if is_cut else "failed", why if own is None or is_cut else _why(own))
        self._fill(lambda _: "the run ended before it")
        try:
            self._finish(getattr(error, "exit_code", EXIT_INTERRUPTED) if is_stopped else EXIT_FAILED)
        except Exception as again:      # the same fault again, most likely; what is on disk is a run that died
            if not _is_expected(again):
                raise

    def _end_unfit(self, name: str, status: str, why: str) -> None:
        """Tell what became of a stage from which the runner could not go on: with all that it has done so far."""
        work, result = self.works.get(name), StageResult.of(name, status, why)
        try:
            if work is not None:
                record = self.records.own_success(name)
                result = work.cut_short(status, why) if record is None else work.recovered(record, why)
        except Exception as again:      # of a read: less is said, and the first error goes on to main
            if not _is_expected(again):
                raise
        label = {"ok": "NOTE", "interrupted": "STOP"}.get(result.status, "FAIL")
        self.console.event(label, name, ": " + result.reason.split("\n")[0])
        self._put(name, result)


def _is_expected(error: Exception) -> bool:
    """Tell whether an error is of the world or one that we raise, not a fault of the program."""
    return isinstance(error, (OSError, MemoryError)) or hasattr(error, "exit_code")


def _why(error: BaseException) -> str:
    return describe_os_error(error) if isinstance(error, OSError) else str(error) or type(error).__name__


def load_for_stages() -> None:
    """Load what a stage needs that must be run; each is loaded when it is needed, too."""
    if sys.platform.startswith("linux"):
        import ctypes  # noqa: F401
        import resource  # noqa: F401
    import attempts  # noqa: F401
    import network_watch  # noqa: F401
    import plain_work  # noqa: F401
    import reasons  # noqa: F401
    import run_guards  # noqa: F401
    import scheduler  # noqa: F401
    import stage_turn  # noqa: F401
    import subprocess  # noqa: F401


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
