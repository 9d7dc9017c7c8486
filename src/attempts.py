"""Attempts: a processor is started and watched, its output kept, its whole tree ended; then it is said how it went.

Above process_start, process_limits, process_tree, attempt_output and run_signals.

    Launch -> Pool.start() ... Pool.wait() -> Attempt, with its AttemptResult

One thread does everything on POSIX, for all attempts under way: it waits for output, for a processor's end, for signals
to the runner and for the clock at once, through a pipe into which the interpreter writes each signal's number. Windows
cannot wait for pipes; there threads read the output and wait for the end.
"""
from __future__ import annotations

import _thread
import os
import signal
import sys
import time
from collections import namedtuple

import attempt_output
import process_limits
import process_start
import process_traits
import process_tree
import run_signals

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, List, Optional, Sequence

ATTEND_S = 0.05             # who reads a long file looks after the attempts so often
AWAY_S = 0.2                # a runner that was away for longer gives the time back to the attempts
TIMEOUT = "timeout after %g s"
FORCE_S = 2.0               # what a killed process may take to be gone
TICK_S = 0.25               # between two looks of whoever shows the progress
NOBODY = -1                 # no process has this number
SPARE = 32                  # file descriptors that are kept for a start, for looking after attempts, and for what is done after their end
EACH = 8                    # one attempt has fewer


class Launch(namedtuple("Launch", "argv env folder log_path token lock_descriptor guard_path timeout_s grace_s resources echo is_log_lazy "
                               "feeder output_path server slot launcher stdin", defaults=(False, None, "", None, 0, None, None))):
    """What to start: argv and env complete, folder the working directory; echo(bytes) sees the output as it comes, or None.

    is_log_lazy: a processor that prints nothing leaves no log file. feeder: gives its standard input (chunk_files.Feeder).
    output_path: a file for its standard output, which else goes to the log. server, slot: a fork_client.ForkServer to ask first,
    and which of its pipes. launcher: starts it elsewhere and returns a launch_helper.Launched; None for a processor that is
    started here. stdin: a file open for reading, where there is no feeder; None for an empty one.
    """

    __slots__ = ()


class AttemptResult(namedtuple("AttemptResult", "exit_code failure stopped duration_s cpu_s max_rss_bytes tail notes survivors log is_machines is_timeout",
                               defaults=(None, False, False))):
    """How an attempt ended.

    exit_code: the processor's, negative for a signal, None if it never started. failure: why it failed, "" if it did not.
    stopped: True if a signal to the runner ended it. tail: the last bytes of its output. notes: what to tell the user.
    survivors: processes that would not go. log: (bytes, SHA-256) of the log file, None if there is none.
    is_machines: it is known to be no fault of the files at work: the program could not be started, its fork server died, or the
    machine far away or its launcher failed. is_timeout: its time was over.
    """

    __slots__ = ()


def not_begun(failure: str, stopped: bool = False) -> AttemptResult:
    """Return the result of an attempt of which nothing was started."""
    return AttemptResult(None, failure, stopped, 0.0, 0.0, 0, b"", [], [])


def survivors_text(survivors: Sequence[Any]) -> str:
    """Return what is said of an attempt after which some processes could not be ended."""
    return "processes would not end: %s" % ", ".join(map(str, survivors))


def exit_text(code: Optional[int]) -> str:
    """Return why an exit code is a failure, or ""."""
    if code == 0:
        return ""
    if code is not None and code < 0:
        try:
            return "ended by %s" % signal.Signals(-code).name
        except ValueError:
            return "ended by signal %d" % -code
    return "exit code %s" % code


# --- the kinds of attempts -------------------------------------------------------------------------------------------

class Attempt:
    """An attempt of a processor that is a child of this process; `result` is there when its last process is gone."""

    server: Any = None                      # the fork server that has started it
    is_guarded = True                       # the guardian knows of it, and it is the head of a tree of processes

    def __init__(self, launch: Launch, network: Any, log: attempt_output.AttemptLog, traits: Any) -> None:
        self.launch, self.network, self.log, self.traits = launch, network, log, traits
        self.pid = 0
        self.process: Any = None
        self.reader, self.is_open = -1, False
        self.tree: Any = None
        self.job: Any = None
        self.ending: Any = None
        self.cores: List[int] = []          # those that it may use, where it declares how many
        self.notes: List[str] = []
        self.problem = ""                   # why it fails, whatever its exit code
        self.is_machines = False            # that problem is known to be no fault of the files at work
        self.exit_code: Optional[int] = None    # once the processor has ended: negative for a signal
        self.cpu_s, self.max_rss_bytes = 0.0, 0
        self.started = time.monotonic()
        self.result: Optional[AttemptResult] = None

    def start(self) -> None:
        """Start the processor. Raises: OSError."""
        self.process, self.reader, self.job = process_start.start(self.launch)
        self.pid, self.is_open = self.process.pid, True

    def begin_reading(self) -> None:
        """Make ready for its output to be read."""
        os.set_blocking(self.reader, False)

    @property
    def has_news(self) -> bool:
        """Whether something is to be looked at that no descriptor tells of."""
        return False

    def descriptors(self) -> List[int]:
        """Return what must be waited for."""
        found = [self.reader] if self.is_open else []
        return found + [self.network.descriptor] if self.network is not None and self.network.descriptor >= 0 else found

    def read(self) -> None:
        """Take over what it has printed, once its descriptor says that there is something."""
        self.is_open = attempt_output.read_some(self.reader, self.log)

    def has_ended(self) -> bool:
        """Tell whether the processor has ended; then its exit code is known, and what it took."""
        pid, status, usage = os.wait4(self.pid, os.WNOHANG)
        if pid:
            self.note_end(status, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024))
        return bool(pid)

    def note_end(self, status: int, cpu_s: float, max_rss_bytes: int) -> None:
        """Take what wait4() tells of the processor."""
        self.exit_code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else -os.WTERMSIG(status)
        self.cpu_s, self.max_rss_bytes = cpu_s, max_rss_bytes
        if self.process is not None:
            self.process.returncode = self.exit_code    # reaped by wait4, for the sake of its resource usage

    def close(self) -> None:
        """After its last process has gone: take the rest of its output, give back what it had."""
        self._close_output()
        if self.launch.feeder is not None:
            self.launch.feeder.close()
        if self.job is not None:
            self.job.close()
        if self.network is not None:
            self.network.close()

    def _close_output(self) -> None:
        attempt_output.drain(self.reader, self.is_open, self.log)
        os.close(self.reader)

    def finish(self, failure: str, survivors: List[int]) -> None:
        """Set the result."""
        self.log.close()
        if self.log.problem:
            self.notes.append(self.log.problem)
        reason = (self.ending.reason if self.ending is not None else "") or self.problem
        failure = reason or failure
        self.result = AttemptResult(self.exit_code, failure, reason == run_signals.INTERRUPTED, time.monotonic() - self.started, self.cpu_s, self.max_rss_bytes,
                                    self.log.last, self.notes, survivors, (self.log.size, self.log.digest.hexdigest()),
                                    failure.startswith(process_start.NOT_STARTED) or self.is_machines and failure == self.problem,
                                    self.ending is not None and self.ending.is_timeout)


class ThreadedAttempt(Attempt):
    """As Windows needs it: nobody can wait for pipes and processes at once there, so one thread reads to the end, and one waits."""

    thread: Any = None                      # it reads the output ...
    done: Any = None                        # ... this event says that the processor has ended ...
    news: Any = None                        # ... and then this one, its pool's, that one of its attempts has

    def begin_reading(self) -> None:
        import threading
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()
        threading.Thread(target=self._wait, daemon=True).start()

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self.reader, attempt_output.READ_BYTES)
            except OSError:
                return
            if not data:
                return
            self.log.feed(data)

    def _wait(self) -> None:
        self.exit_code = self.process.wait()
        self.done.set()
        self.news.set()

    def has_ended(self) -> bool:
        if self.done.is_set() and self.job is not None:
            self.cpu_s, self.max_rss_bytes = self.job.usage()
        return bool(self.done.is_set())

    def _close_output(self) -> None:
        self.thread.join(attempt_output.DRAIN_S)
        if not self.thread.is_alive():
            os.close(self.reader)
        if self.launch.feeder is not None:
            _feed([self])               # a thread has fed it: only now is it asked how that went


class ForkedAttempt(Attempt):
    """An attempt of a processor that the stage's fork server has started, whose child it is."""

    is_over = False                         # its end was told

    def start(self) -> None:
        """Let the server start it. Raises: Declined, ServerDied and NoAnswer of the server."""
        server = self.server = self.launch.server
        self.reader, self.is_open = server.readers[self.launch.slot], True
        self.pid = server.launch(self.launch.slot, self.launch.argv, self.launch.env, self.launch.folder)

    def note_death(self) -> None:
        """Its server has died, and with it, by the system, the processor; worth another attempt, as any other kill."""
        self.problem, self.exit_code, self.is_over = self.server.reason, -signal.SIGKILL, True
        self.is_machines = True

    def note_told_end(self, end: Any) -> None:
        """Take what the server tells of the end (fork_client.End)."""
        self.note_end(end.status, end.cpu_s, end.max_rss_bytes)
        if end.problem is not None:
            self.problem, self.exit_code = process_start.not_prepared_text(self.launch, end.problem), None
        self.is_over = True

    @property
    def has_news(self) -> bool:
        return self.is_over or bool(self.server.has_news)   # a server that died at its start; ends that came with the answer to a launch

    def descriptors(self) -> List[int]:
        return [*super().descriptors(), self.server.descriptor]

    def has_ended(self) -> bool:
        return self.is_over

    def _close_output(self) -> None:
        attempt_output.read_all(self.reader, self.log)      # the pipe is the next one's


class LaunchedAttempt(Attempt):
    """An attempt of a launcher, which starts the processor elsewhere. The guardian is not told: it kills, and a launcher must be
    asked. The limits are the launcher's business."""

    is_guarded = False

    def start(self) -> None:
        """Start the launcher. Raises: OSError."""
        self.process = self.tree = self.launch.launcher()
        self.reader, self.is_open = self.process.output, True

    @property
    def has_news(self) -> bool:
        return self.process.code is not None    # its end came with that of another, or while it was told to stop

    def descriptors(self) -> List[int]:
        return [*super().descriptors(), self.process.descriptor]

    def has_ended(self) -> bool:
        self.exit_code = self.process.take_end()
        self.cpu_s, self.max_rss_bytes = self.process.cpu_s, self.process.max_rss_bytes
        return self.exit_code is not None

    def close(self) -> None:
        super().close()
        if self.process.was_cut:
            self.notes.append(
                "the launcher did not end in time when it was asked to, and was killed: look whether its job is still in the queue of the cluster")
        if not self.process.is_begun and self.ending.reason and self.ending.reason != run_signals.INTERRUPTED:
            self.ending.reason += "; the task had not begun: its launcher was still waiting"


def _feed(fed: List[Attempt]) -> None:
    """Move what fits into the standard inputs of these attempts; one whose input cannot be read fails."""
    feeders = [attempt.launch.feeder for attempt in fed]
    if not feeders:
        return
    try:
        type(feeders[0]).pump_together(feeders)
    except OSError as error:
        for attempt in fed:
            if attempt.launch.feeder.path == error.filename:
                attempt.problem = "its input cannot be read: %s: %s" % (error.filename, error.strerror)
                attempt.launch.feeder.close()


class Ending:
    """When and how an attempt is told to end: politely at its time limit or on a signal, by force after the grace.

    A second signal (Ctrl-C again) is the end of the grace. A fork server that does not tell of the end even then (its task may
    have stopped it) is killed.
    """

    def __init__(self, launch: Launch, tree: Any, signals: run_signals.Signals) -> None:
        self.launch, self.tree, self.signals = launch, tree, signals
        self.reason = ""
        self.is_timeout = False
        self.is_forced = False
        self.at: Optional[float] = None if launch.timeout_s is None else time.monotonic() + launch.timeout_s

    def seconds_left(self) -> Optional[float]:
        return None if self.at is None else max(0.0, self.at - time.monotonic())

    def put_off(self, seconds: float) -> None:
        if self.at is not None:
            self.at += seconds

    def look(self) -> None:
        """Do what is due."""
        is_late = self.at is not None and time.monotonic() >= self.at
        if not self.reason and (self.signals.number or is_late):
            self.is_timeout = not self.signals.number
            self.reason = TIMEOUT % self.launch.timeout_s if self.is_timeout else run_signals.INTERRUPTED
            self.tree.ask_to_stop()
            self.at, is_late = time.monotonic() + self.launch.grace_s, False
        if self.reason and (is_late or self.signals.count > 1):
            if self.is_forced and is_late and self.launch.server is not None and not self.tree.is_child:
                self.launch.server.kill()
            if is_late or not self.is_forced:
                self.at = time.monotonic() + max(self.launch.grace_s, FORCE_S)
            self.is_forced = True
            self.tree.end()


# --- all that are under way ------------------------------------------------------------------------------------------

class Pool:
    """The attempts under way: one thread watches them all (POSIX), or one thread each (Windows).

    Whoever waits keeps them going: output is read, time limits are kept, refused network calls are answered. A process
    that an attempt left behind without any sign of whose it is (no session, no token, orphaned) is ended when nobody
    else can be its owner; until then `is_draining` asks to start nothing new, as it does while file descriptors are short.
    """

    def __init__(self, signals: run_signals.Signals, guardian: Any, others: Sequence[int] = (), threads: bool = sys.platform == "win32") -> None:
        """others: children of this process that have nothing to do with attempts. threads: one for each attempt, as Windows needs
        it."""
        self.signals, self.guardian = signals, guardian
        self.others = set(others)
        self.threads = threads
        self.news: Any = None           # an event: one of the attempts with threads has ended
        if threads:
            import threading
            self.news = threading.Event()
        self.tick: Optional[Callable[[], None]] = None      # called some times a second, to show progress ...
        self.tick_s = TICK_S            # ... after so long at the latest
        # Does what is due now; returns after how long something will be, None: nothing.
        self.upkeep: Optional[Callable[[], Optional[float]]] = None
        self.running: List[Attempt] = []
        self.unclear: List[Attempt] = []    # ended, but for processes that may be somebody else's
        self.ended: List[Attempt] = []
        self.retired: List[Any] = []        # servers that end with the last attempt that they have started
        self.seen = time.monotonic()        # when the attempts were last looked after
        self.thread = _thread.get_ident()
        if sys.platform != "win32":
            import resource  # noqa: F401 (wait4() loads it by itself, when no descriptor may be left to do so)

    @property
    def is_draining(self) -> bool:
        return bool(self.unclear) or self._is_short()

    def _is_short(self) -> bool:
        """Tell whether one more attempt could take a file descriptor that those under way need, to keep a log or to be ended."""
        if not self.running or sys.platform == "win32":
            return False
        import resource
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if limit < 0 or limit >= EACH * (len(self.running) + 1) + 2 * SPARE:
            return False
        wanted = SPARE + sum(one.log.file is None for one in self.running)
        found: List[int] = []
        try:
            while len(found) < wanted:
                found.append(os.open(os.devnull, os.O_RDONLY))
        except OSError:
            return True
        finally:
            for descriptor in found:
                os.close(descriptor)
        return False

    def start(self, launch: Launch, network: Any = None) -> Attempt:
        """Start an attempt; one that cannot be started has ended at once. Raises: OSError when its log cannot be created."""
        traits = process_traits.Traits(launch.token, 0, launch.guard_path, os.getpid())
        given = launch, network, attempt_output.AttemptLog(launch.log_path, launch.echo, launch.is_log_lazy), traits
        if launch.launcher is not None:
            return self._begin(LaunchedAttempt(*given))
        self.guardian.watch(traits)         # before the start: the runner may die at any moment after it
        return self._forked(given) or self._begin(self._threaded(given) if self.threads else Attempt(*given))

    def _threaded(self, given: Any) -> ThreadedAttempt:
        attempt = ThreadedAttempt(*given)
        attempt.news = self.news
        return attempt

    def _forked(self, given: Any) -> Optional[Attempt]:
        """Let the stage's fork server start an attempt, if there is one, it is ready and does not decline; None if not."""
        server = given[0].server
        if server is None or server.is_dead:
            return None
        attempt = ForkedAttempt(*given)
        try:
            if not server.is_ready():
                return None             # not yet: what would wait for it is started in the usual way
            attempt.start()
        except server.NoAnswer:
            attempt.note_death()        # it may have been forked: only what is ended like any other may be done again
        except (server.Declined, server.ServerDied):
            return None
        self._watch(attempt)
        return attempt

    def _begin(self, attempt: Attempt) -> Attempt:
        """Start and watch an attempt, or say why it cannot be started."""
        try:
            attempt.start()
        except OSError as error:
            if attempt.launch.feeder is not None:
                attempt.launch.feeder.close()
            attempt.finish(process_start.not_started_text(attempt.launch, error), [])
            self._release(attempt)
            self.ended.append(attempt)
        else:
            self._watch(attempt)
        return attempt

    def _watch(self, attempt: Attempt) -> None:
        if attempt.is_guarded:
            self._guard(attempt)
        attempt.ending = Ending(attempt.launch, attempt.tree, self.signals)
        self.running.append(attempt)
        attempt.begin_reading()

    def _guard(self, attempt: Attempt) -> None:
        """Note a processor that has just been started as the head of a tree of processes, and limit it; of one that nobody can
        name, what it has left counts as its tree."""
        launch = attempt.launch
        self.guardian.watch(attempt.traits._replace(session=attempt.pid))
        if attempt.network is not None:
            attempt.network.began(attempt.pid or NOBODY, launch.token)
        attempt.tree = process_tree.Tree(attempt.pid, launch.token, attempt.job, self.others,
                                         lambda: [(one.pid, one.launch.token) for one in self.running if one is not attempt and one.is_guarded])
        attempt.tree.is_child = attempt.server is None
        attempt.tree.leader_is_gone = not attempt.pid
        if not attempt.pid:
            return
        attempt.cores = self._free_cores(launch.resources)
        attempt.notes += process_limits.apply_resources(attempt.pid, launch.resources, attempt.cores)

    def _release(self, attempt: Attempt) -> None:
        """The guardian has nothing to do with it any more."""
        if attempt.is_guarded:
            self.guardian.release(attempt.traits)

    def _free_cores(self, resources: Dict[str, int]) -> List[int]:
        """Return on which processor cores an attempt may run."""
        if "cpuCores" not in resources or not hasattr(os, "sched_getaffinity"):
            return []
        return process_limits.pick_cores(sorted(os.sched_getaffinity(0)), [core for one in self.running for core in one.cores], resources["cpuCores"], os.getpid())

    def wait(self, seconds: Optional[float] = None) -> List[Attempt]:
        """Return the attempts that have ended, waiting for the first one, a signal, or *seconds* at most; while none is looked
        at, there is upkeep."""
        self.pump(seconds, self.upkeep)
        ended, self.ended = self.ended, []
        return ended

    def pump(self, seconds: Optional[float] = None, upkeep: Optional[Callable[[], Optional[float]]] = None) -> None:
        """Keep the attempts going until one has ended, a signal has come, or for *seconds*; what ended is for wait()."""
        deadline = None if seconds is None else time.monotonic() + seconds
        was = self.signals.count
        while not self.ended:
            left = None if deadline is None else deadline - time.monotonic()
            # A signal may also have come just before, when whoever asks had looked for one already.
            if not self.running and (left is None or left <= 0 or self.signals.count != was or self.signals.number):
                return
            due = upkeep() if upkeep is not None else None
            self._step(left if due is None else due if left is None else min(left, due))
            if deadline is not None and time.monotonic() >= deadline:
                return

    def keep_going(self, seconds: float) -> None:
        """Keep the attempts going for *seconds*; for whoever must wait a moment for something else."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self._step(deadline - time.monotonic())

    def attend(self) -> None:
        """Look after the attempts without waiting, if nobody has for a while; for the thread that made this pool, while it reads
        a long file.

        Else their pipes would fill up, and they would stand still. What ends is for wait().
        """
        if self.running and time.monotonic() - self.seen >= ATTEND_S and _thread.get_ident() == self.thread:
            self._step(0.0)

    def retire(self, server: Any) -> None:
        """Close a server, at once or when the last attempt that it has started has ended."""
        self.retired.append(server)
        self._close_retired()

    def _close_retired(self) -> None:
        at_work = [one.server for one in self.running + self.unclear]
        for server in [one for one in self.retired if one not in at_work]:
            self.retired.remove(server)
            server.close()
            self.others.discard(server.pid)

    def _forgive(self) -> None:
        """Count for no time limit what the runner spent on something else (a large output to hash): nobody read what processors
        wrote."""
        now = time.monotonic()
        if now - self.seen >= AWAY_S:
            for one in self.running:
                one.ending.put_off(now - max(self.seen, one.started))

    def _step(self, seconds: Optional[float]) -> None:
        self._forgive()
        limits = [one.ending.seconds_left() for one in self.running] + [seconds, self.tick_s if self.tick is not None else None]
        left = min([limit for limit in limits if limit is not None], default=None)
        if any(one.has_news for one in self.running):
            left = 0.0                  # nothing more may come to be read
        if not self.threads:
            feeders = {one.launch.feeder.descriptor: one for one in self.running if one.launch.feeder is not None
                       and one.launch.feeder.descriptor >= 0}
            ready = self.signals.wait(list({one for attempt in self.running for one in attempt.descriptors()}), left, list(feeders))
            _feed([feeders[one] for one in ready if one in feeders])
            self._read_ready(ready)
        elif self.running:
            self.news.wait(run_signals.POLL_S if left is None else min(left, run_signals.POLL_S))
            self.news.clear()           # before they are looked at: what ends from here on sets it again
        else:
            self.signals.wait([], left)
        for attempt in list(self.running):
            if attempt.has_ended():
                self._end(attempt)
            else:
                attempt.ending.look()
        if self.signals.has_child_ended:
            self.signals.has_child_ended = False
            process_tree.reap_orphans(self.others.union(one.pid for one in self.running))
        if self.tick is not None:
            self.tick()
        self.seen = time.monotonic()

    def _read_ready(self, ready: List[int]) -> None:
        for attempt in self.running:
            if attempt.reader in ready:
                attempt.read()
        for server in {one.server for one in self.running if one.server is not None}:
            if server.descriptor in ready or server.has_news:
                self._hear(server)
        # A refused network call waits for its answer from here: whoever makes one is named, and nobody needs a thread.
        teller = next((one.network for one in self.running if one.network is not None and one.network.descriptor in ready), None)
        if teller is not None:
            teller.take()

    def _hear(self, server: Any) -> None:
        """Take what a fork server tells of its tasks' ends."""
        of = {one.pid: one for one in self.running if isinstance(one, ForkedAttempt) and one.server is server}
        for end in server.ends():
            if end.pid in of:
                of[end.pid].note_told_end(end)
        if server.is_dead:
            for attempt in of.values():
                if not attempt.is_over:
                    attempt.note_death()

    def _end(self, attempt: Attempt) -> None:
        """The processor has ended: so must all that it started."""
        if attempt.network is not None:
            attempt.network.finish()        # before those are killed who wait for an answer
        attempt.tree.leader_is_gone = True
        survivors = attempt.tree.end()
        self.running.remove(attempt)
        if attempt.tree.unclear:
            self.unclear.append(attempt)
        else:
            self._close(attempt, survivors)
        if not self.running:
            for one in self.unclear:
                self._close(one, one.tree.end())
            self.unclear = []
        self._close_retired()

    def _close(self, attempt: Attempt, survivors: List[int]) -> None:
        attempt.close()
        if not survivors:
            self._release(attempt)
        attempt.finish(exit_text(attempt.exit_code), survivors)
        self.ended.append(attempt)


def run_attempt(launch: Launch, signals: run_signals.Signals, guardian: Any, others: Sequence[int] = (), network: Any = None) -> AttemptResult:
    """Run one attempt to its end and that of its last process.

    others: children of this process that have nothing to do with the attempt. network: who is told when the
    processor is refused the network (network_watch.AttemptNetwork). On disk afterwards: the log. Never raises
    for what a processor does. Raises: OSError when the log cannot be created.
    """
    pool = Pool(signals, guardian, others)
    attempt = pool.start(launch, network)
    while attempt.result is None:
        pool.wait()
    return attempt.result
