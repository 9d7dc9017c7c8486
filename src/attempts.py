"""One attempt: start a processor, watch it, keep its output, end its whole tree, say how it went.

A leaf. `processes` is the leaf process_tree, handed in because leaves do not import each other.

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

from model import FOR_WINDOWS, remedy_of, sha256
from primitives import BATCH_ENDINGS, open_descriptor, open_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple, Union

CMD_SPLITS = frozenset(" \t,;=")    # at these cmd.exe takes a new word to begin
LOG_HEAD_BYTES = 16 << 20   # of an attempt's output kept from its beginning ...
LOG_TAIL_BYTES = 1 << 20    # ... and from its end; what is between is counted and dropped
SHOWN_TAIL_BYTES = 4096     # of a failed attempt's output, shown on the console
READ_BYTES = 1 << 16
DRAIN_S = 2.0               # how long a pipe may stay open after the last process of an attempt is gone
ATTEND_S = 0.05             # who reads a long file looks after the attempts so often
AWAY_S = 0.2                # a runner that was away for longer gives the time back to the attempts
NOT_STARTED = "cannot start"        # how a failure begins whose program never ran
TIMEOUT = "timeout after %g s"
INTERRUPTED = "interrupted"
FORCE_S = 2.0               # what a killed process may take to be gone
TIME_UP = -1                # in place of a signal's number: the clock asks to stop
POLL_S = 0.2                # Windows: between two looks at the clock and at signals
LONGEST_WAIT_S = 86400.0    # at once; poll() takes 24 days at most
TICK_S = 0.25               # between two looks of whoever shows the progress
CREATE_NEW_PROCESS_GROUP = 0x200    # Windows: so that CTRL_BREAK reaches the processor and not the runner


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
    is_machines: it is known to be no fault of the files at work: the program could not be started, or the machine far away or its
    launcher failed. is_timeout: its time was over.
    """

    __slots__ = ()


def not_begun(failure: str, stopped: bool = False) -> AttemptResult:
    """Return the result of an attempt of which nothing was started."""
    return AttemptResult(None, failure, stopped, 0.0, 0.0, 0, b"", [], [])


class Signals:
    """The signals that ask the runner to stop, noted instead of raised; also the alarm that a child has ended.

    number: the first one that came, or 0; count: how many came. A signal that was ignored at the start (nohup, a shell's
    background) stays ignored. The end of the time that a run has (stop_time, a stop_times.StopTime or None) looks like a signal
    of number TIME_UP.
    """

    def __init__(self, stop_time: Any = None) -> None:
        self.came = 0
        self.count = 0
        self.stop_time = stop_time
        self.pipe: Tuple[int, int] = (-1, -1)

    @property
    def number(self) -> int:
        if not self.came and self.stop_time is not None and self.stop_time.seconds_left() <= 0:
            self._note(TIME_UP, None)
        return self.came

    def text(self) -> str:
        """Return why the run is to stop."""
        return "stopped by the clock (%s)" % self.stop_time.text if self.number == TIME_UP else INTERRUPTED

    def install(self) -> None:
        """Take over SIGINT, SIGTERM, SIGHUP (Windows: SIGBREAK) for this process, though whoever started it had them blocked.
        Main thread only."""
        taken = set()
        for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK"):
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._note)
                taken.add(number)
        if sys.platform != "win32":
            self.pipe = os.pipe()
            for descriptor in self.pipe:
                os.set_blocking(descriptor, False)
            signal.signal(signal.SIGCHLD, lambda number, frame: None)
            signal.set_wakeup_fd(self.pipe[1], warn_on_full_buffer=False)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, taken | {signal.SIGCHLD})

    def _note(self, number: int, frame: Any) -> None:
        self.came = self.came or number
        self.count += 1

    def wait(self, descriptors: Sequence[int], seconds: Optional[float], writable: Sequence[int] = ()) -> List[int]:
        """Wait until one of *descriptors* can be read or one of *writable* written, a signal comes, or *seconds* are over; return
        which."""
        if self.stop_time is not None and not self.came:
            if self.number:
                return []               # it came now, and whoever waits sees it by the count
            pause_s = self.stop_time.pause_s()
            seconds = pause_s if seconds is None else min(seconds, pause_s)
        seconds = None if seconds is None else min(seconds, LONGEST_WAIT_S)
        if self.pipe[0] < 0:
            time.sleep(POLL_S if seconds is None else min(seconds, POLL_S))
            return []
        import select
        poll = select.poll()
        for descriptor in (self.pipe[0], *descriptors):
            poll.register(descriptor, select.POLLIN)
        for descriptor in writable:
            poll.register(descriptor, select.POLLOUT)
        ready = [descriptor for descriptor, _ in poll.poll(None if seconds is None else max(0, int(seconds * 1000 + 0.999)))]
        if self.pipe[0] in ready:
            try:
                os.read(self.pipe[0], 4096)
            except BlockingIOError:
                pass
        return [descriptor for descriptor in ready if descriptor != self.pipe[0]]


class AttemptLog:
    """An attempt's output on disk, within limits: its beginning, its end, and how much was left out between.

    size and digest are of what is in the file.

    A log that cannot be written (full disk) does not stop the attempt: the pipe must go on being emptied.
    """

    def __init__(self, path: str, echo: Optional[Callable[[bytes], None]] = None, is_lazy: bool = False) -> None:
        """is_lazy: there is no file before there is output."""
        self.path, self.echo = path, echo
        self.total = 0
        self.head_left = LOG_HEAD_BYTES
        self.tail = bytearray()
        self.last = b""
        self.problem = ""
        self.size, self.digest = 0, sha256()
        self.file: Any = None if is_lazy else open(path, "wb", buffering=0)

    def feed(self, data: bytes) -> None:
        self.total += len(data)
        self.last = (self.last + data)[-SHOWN_TAIL_BYTES:]
        if self.echo is not None:
            self.echo(data)
        head = data[:self.head_left]
        self.head_left -= len(head)
        self._write(head)
        self.tail += data[len(head):]
        if len(self.tail) > 2 * LOG_TAIL_BYTES:
            del self.tail[:-LOG_TAIL_BYTES]

    def close(self) -> None:
        dropped = self.total - LOG_HEAD_BYTES - min(len(self.tail), LOG_TAIL_BYTES)
        if dropped > 0:
            self._write(b"\n[... %d bytes left out ...]\n" % dropped)
        self._write(bytes(self.tail[-LOG_TAIL_BYTES:]))
        if self.file is not None:
            self.file.close()

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view and not self.problem:
            try:
                if self.file is None:
                    self.file = open(self.path, "wb", buffering=0)
                count = self.file.write(view)
                self.size += count
                self.digest.update(view[:count])
                view = view[count:]
            except OSError as error:
                self.problem = "the log is incomplete: %s" % error.strerror


class Attempt:
    """An attempt that has been started: `result` is there when its last process is gone."""

    def __init__(self, launch: Launch, network: Any, log: AttemptLog, traits: Any) -> None:
        self.launch, self.network, self.log, self.traits = launch, network, log, traits
        self.pid = 0
        self.process: Any = None
        self.reader, self.is_open = -1, False
        self.tree: Any = None
        self.job: Any = None
        self.thread: Any = None             # where there is one for each attempt: it reads the output ...
        self.done: Any = None               # ... and this event says that the processor has ended
        self.ending: Any = None
        self.cores: List[int] = []          # those that it may use, where it declares how many
        self.notes: List[str] = []
        self.is_forked = False              # by a fork server, whose child it is
        self.is_over = False                # of one that a fork server has started: its end was told
        self.problem = ""                   # why it fails, whatever its exit code
        self.exit_code: Optional[int] = None    # once the processor has ended: negative for a signal
        self.cpu_s, self.max_rss_bytes = 0.0, 0
        self.started = time.monotonic()
        self.result: Optional[AttemptResult] = None

    def note_end(self, status: int, cpu_s: float, max_rss_bytes: int) -> None:
        """Take what wait4() tells of the processor."""
        self.exit_code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else -os.WTERMSIG(status)
        self.cpu_s, self.max_rss_bytes = cpu_s, max_rss_bytes
        if self.process is not None:
            self.process.returncode = self.exit_code    # reaped by wait4, for the sake of its resource usage

    def finish(self, failure: str, survivors: List[int]) -> None:
        """Set the result."""
        self.log.close()
        if self.log.problem:
            self.notes.append(self.log.problem)
        reason = (self.ending.reason if self.ending is not None else "") or self.problem
        failure = reason or failure
        self.result = AttemptResult(self.exit_code, failure, reason == INTERRUPTED, time.monotonic() - self.started, self.cpu_s, self.max_rss_bytes,
                                    self.log.last, self.notes, survivors, (self.log.size, self.log.digest.hexdigest()),
                                    failure.startswith(NOT_STARTED),
                                    self.ending is not None and self.ending.is_timeout)


class Pool:
    """The attempts under way: one thread watches them all (POSIX), or one thread each (Windows).

    Whoever waits keeps them going: output is read, time limits are kept, refused network calls are answered. A process
    that an attempt left behind without any sign of whose it is (no session, no token, orphaned) is ended when nobody
    else can be its owner; until then `is_draining` asks to start nothing new.
    """

    def __init__(self, signals: Signals, processes: Any, guardian: Any, others: Sequence[int] = (), threads: bool = sys.platform == "win32") -> None:
        """others: children of this process that have nothing to do with attempts. threads: one for each attempt, as Windows needs
        it."""
        self.signals, self.processes, self.guardian = signals, processes, guardian
        self.others = set(others)
        self.threads = threads
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

    @property
    def is_draining(self) -> bool:
        return bool(self.unclear)

    def start(self, launch: Launch, network: Any = None) -> Attempt:
        """Start an attempt; one that cannot be started has ended at once. Raises: OSError when its log cannot be created."""
        traits = self.processes.Traits(launch.token, 0, launch.guard_path, os.getpid())
        attempt = Attempt(launch, network, AttemptLog(launch.log_path, launch.echo, launch.is_log_lazy), traits)
        if launch.launcher is not None:
            return self._start_elsewhere(attempt)
        self.guardian.watch(traits)         # before the start: the runner may die at any moment after it
        if not self._fork(attempt):
            try:
                attempt.process, attempt.reader, attempt.job = _start(launch, self.processes)
            except OSError as error:
                if launch.feeder is not None:
                    launch.feeder.close()
                attempt.finish(_not_started_text(launch, error), [])
                self.guardian.release(traits)
                self.ended.append(attempt)
                return attempt
            attempt.pid = attempt.process.pid
        attempt.is_open = True
        self._watch(attempt)
        return attempt

    def _start_elsewhere(self, attempt: Attempt) -> Attempt:
        """Start a launcher. The guardian is not told: it kills, and a launcher must be asked. The limits are the launcher's
        business."""
        try:
            attempt.process = attempt.tree = attempt.launch.launcher()
        except OSError as error:
            attempt.finish(_not_started_text(attempt.launch, error), [])
            self.ended.append(attempt)
            return attempt
        attempt.reader, attempt.is_open = attempt.process.output, True
        attempt.ending = Ending(attempt.launch, attempt.tree, self.signals)
        self.running.append(attempt)
        return attempt

    def _fork(self, attempt: Attempt) -> bool:
        """Let the stage's fork server start it, if there is one, it is ready and does not decline."""
        launch, server = attempt.launch, attempt.launch.server
        if server is None or server.is_dead:
            return False
        try:
            if not server.is_ready():
                return False            # not yet: what would wait for it is started in the usual way
            attempt.pid = server.launch(launch.slot, launch.argv, launch.env, launch.folder)
        except (server.Declined, server.ServerDied):
            return False
        attempt.reader = server.readers[launch.slot]
        attempt.is_forked = True
        return True

    def _watch(self, attempt: Attempt) -> None:
        launch = attempt.launch
        self.guardian.watch(attempt.traits._replace(session=attempt.pid))
        if attempt.network is not None:
            attempt.network.began(attempt.pid, launch.token)
        attempt.tree = self.processes.Tree(attempt.pid, launch.token, attempt.job, self.others,
                                           lambda: [(one.pid, one.launch.token) for one in self.running if one is not attempt and one.pid])
        attempt.tree.is_child = not attempt.is_forked
        attempt.cores = self._free_cores(launch.resources)
        attempt.notes += apply_resources(attempt.pid, launch.resources, attempt.cores)
        attempt.ending = Ending(launch, attempt.tree, self.signals)
        self.running.append(attempt)
        if self.threads:
            _start_thread(attempt)
        else:
            os.set_blocking(attempt.reader, False)

    def _free_cores(self, resources: Dict[str, int]) -> List[int]:
        """Return on which processor cores an attempt may run."""
        if "cpuCores" not in resources or not hasattr(os, "sched_getaffinity"):
            return []
        return pick_cores(sorted(os.sched_getaffinity(0)), [core for one in self.running for core in one.cores], resources["cpuCores"], os.getpid())

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
        at_work = [one.launch.server for one in self.running + self.unclear if one.is_forked]
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
        if any(one.launch.server.has_news for one in self.running if one.is_forked):
            left = 0.0                  # ends that came with the answer to a launch: nothing more may come to be read
        if not self.threads:
            feeders = {one.launch.feeder.descriptor: one for one in self.running if one.launch.feeder is not None
                       and one.launch.feeder.descriptor >= 0}
            ready = self.signals.wait(self._descriptors(), left, list(feeders))
            _feed([feeders[one] for one in ready if one in feeders])
            self._read_ready(ready)
        elif self.running:
            self.running[0].done.wait(POLL_S if left is None else min(left, POLL_S))
        else:
            self.signals.wait([], left)
        for attempt in list(self.running):
            if self._has_ended(attempt):
                self._end(attempt)
            else:
                attempt.ending.look()
        if self.tick is not None:
            self.tick()
        self.seen = time.monotonic()

    def _descriptors(self) -> List[int]:
        found = {one.reader for one in self.running if one.is_open}
        found.update(one.launch.server.descriptor for one in self.running if one.is_forked)
        found.update(one.network.descriptor for one in self.running if one.network is not None and one.network.descriptor >= 0)
        found.update(one.process.descriptor for one in self.running if one.launch.launcher is not None)
        return list(found)

    def _read_ready(self, ready: List[int]) -> None:
        for attempt in self.running:
            if attempt.reader in ready:
                attempt.is_open = _read_some(attempt.reader, attempt.log)
        for server in {one.launch.server for one in self.running if one.is_forked}:
            if server.descriptor in ready or server.has_news:
                self._hear(server)
        # A refused network call waits for its answer from here: whoever makes one is named, and nobody needs a thread.
        teller = next((one.network for one in self.running if one.network is not None and one.network.descriptor in ready), None)
        if teller is not None:
            teller.take()

    def _hear(self, server: Any) -> None:
        """Take what a fork server tells of its tasks' ends."""
        of = {one.pid: one for one in self.running if one.launch.server is server and one.is_forked}
        for end in server.ends():
            if end.pid in of:
                of[end.pid].note_end(end.status, end.cpu_s, end.max_rss_bytes)
                of[end.pid].is_over = True
        if server.is_dead:
            for attempt in of.values():
                if not attempt.is_over:
                    # The system kills them with the server; worth another attempt, as any other kill.
                    attempt.problem, attempt.exit_code, attempt.is_over = server.reason, -signal.SIGKILL, True

    def _has_ended(self, attempt: Attempt) -> bool:
        if self.threads:
            if attempt.done.is_set() and attempt.job is not None:
                attempt.cpu_s, attempt.max_rss_bytes = attempt.job.usage()
            return bool(attempt.done.is_set())
        if attempt.launch.launcher is not None:
            attempt.exit_code = attempt.process.take_end()
            attempt.cpu_s, attempt.max_rss_bytes = attempt.process.cpu_s, attempt.process.max_rss_bytes
            return attempt.exit_code is not None
        if attempt.is_forked:
            return attempt.is_over
        pid, status, usage = os.wait4(attempt.pid, os.WNOHANG)
        if pid:
            attempt.note_end(status, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024))
        return bool(pid)

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
        if attempt.is_forked:
            _read_all(attempt.reader, attempt.log)
        elif self.threads:
            attempt.thread.join(DRAIN_S)
            if not attempt.thread.is_alive():
                os.close(attempt.reader)
        else:
            _drain(attempt.reader, attempt.is_open, attempt.log)
            os.close(attempt.reader)
        if attempt.launch.feeder is not None:
            if self.threads:
                _feed([attempt])        # a thread has fed it: only now is it asked how that went
            attempt.launch.feeder.close()
        if attempt.job is not None:
            attempt.job.close()
        if attempt.network is not None:
            attempt.network.close()
        if not survivors:
            self.guardian.release(attempt.traits)
        if attempt.launch.launcher is not None:
            _tell_of_launcher(attempt)
        attempt.finish(exit_text(attempt.exit_code), survivors)
        self.ended.append(attempt)


def run_attempt(launch: Launch, signals: Signals, processes: Any, guardian: Any, others: Sequence[int] = (), network: Any = None) -> AttemptResult:
    """Run one attempt to its end and that of its last process.

    others: children of this process that have nothing to do with the attempt. network: who is told when the
    processor is refused the network (network_watch.AttemptNetwork). On disk afterwards: the log. Never raises
    for what a processor does. Raises: OSError when the log cannot be created.
    """
    pool = Pool(signals, processes, guardian, others)
    attempt = pool.start(launch, network)
    while attempt.result is None:
        pool.wait()
    return attempt.result


def survivors_text(survivors: Sequence[Any]) -> str:
    """Return what is said of an attempt after which some processes could not be ended."""
    return "processes would not end: %s" % ", ".join(map(str, survivors))


def _start(launch: Launch, processes: Any) -> Tuple[Any, int, Any]:
    """Start the processor in a session (Windows: job) of its own; return it, the end of its output, and the job."""
    import subprocess       # here, because a run in which nothing must be started needs only Signals of this module
    reader, writer = os.pipe()
    job, process, output = None, None, -1
    options: Dict[str, Any] = {}
    try:
        if sys.platform == "win32":
            job = processes.Job(memory_bytes=launch.resources.get("memoryMB", 0) << 20)
            options["creationflags"] = CREATE_NEW_PROCESS_GROUP | processes.CREATE_SUSPENDED
        else:
            options["start_new_session"] = True
            options["pass_fds"] = (launch.lock_descriptor,) if launch.lock_descriptor >= 0 else ()
        if launch.output_path:
            output = open_descriptor(launch.output_path,
                                     os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0), 0o666)
        given = subprocess.DEVNULL if launch.stdin is None else launch.stdin
        process = subprocess.Popen(_as_started(launch.argv), stdin=given if launch.feeder is None else launch.feeder.reader,
                                   stdout=output if launch.output_path else writer, stderr=writer,
                                   cwd=launch.folder, env=launch.env, close_fds=True, **options)
        if launch.feeder is not None:
            launch.feeder.started()
        if job is not None:
            job.take(int(process._handle))
    except BaseException:
        os.close(reader)
        if process is not None:
            process.kill()              # on Windows it is suspended, and in no job that would end it
        if job is not None:
            job.close()
        raise
    finally:
        os.close(writer)
        if output >= 0:
            os.close(output)
    return process, reader, job


def _as_started(argv: List[str]) -> Union[str, List[str]]:
    """Return the command as Popen takes it: of a batch file of Windows the line for cmd.exe, in which words are quoted at which
    it would split them.

    That is at , ; = too, which list2cmdline() leaves bare; and a path with & would be two commands. What no quotes help against
    is refused before, see spec_checks.taken_by_cmd(). Source: the form of the line is that of Rust's standard library
    (std::process, for CVE-2024-24576).
    """
    if sys.platform != "win32" or not argv[0].lower().endswith(BATCH_ENDINGS):
        return argv
    shell = os.path.join(os.environ.get("SystemRoot", "C:\\Windows"), "System32", "cmd.exe")
    words = [_quoted(argv[0])] + [_quoted(word) if CMD_SPLITS.intersection(word) or not word else word for word in argv[1:]]
    return '"%s" /e:ON /v:OFF /d /c "%s"' % (shell, " ".join(words))


def _quoted(word: str) -> str:
    """Return a word in quotes; programs of Windows take a backslash before the last one for part of it."""
    return '"%s%s"' % (word, "\\" * (len(word) - len(word.rstrip("\\"))))


def _not_started_text(launch: Launch, error: OSError) -> str:
    name, where, path = launch.argv[0], "", os.path.join(launch.folder, launch.argv[0])
    if launch.launcher is not None:
        where = ": %s" % error.filename if error.filename else ""       # the lease, or the pipe for its output
        path = "" if where else _launcher_path(launch)
        name = "the launcher " + name
    hint, first = "", _first_line(path)
    if getattr(error, "winerror", None) and error.errno == 8:
        hint = "; Windows starts no such file: %s" % FOR_WINDOWS
    elif getattr(error, "errno", None) == 8:    # ENOEXEC
        hint = "; a byte order mark stands before its first line: save it without" if first.startswith(
            b"\xef\xbb\xbf") else "; a script needs a first line such as #!/bin/sh"
    elif isinstance(error, FileNotFoundError) and (launch.launcher is None or os.path.exists(path)):
        hint = missing_hint(first, launch.folder)
    elif launch.launcher is not None and isinstance(error, PermissionError) and os.path.isfile(path) and not os.access(path, os.X_OK):
        hint = "; chmod +x it"
    return "%s %s%s: %s%s" % (NOT_STARTED, name, where, error.strerror or str(error), hint or remedy_of(error))


def _launcher_path(launch: Launch) -> str:
    """Return the file that a launcher's first word means, "" if there is none on its PATH."""
    import shutil
    word = launch.argv[0]
    return os.path.join(launch.folder, word) if "/" in word else shutil.which(word, path=launch.env.get("PATH")) or ""


def missing_hint(first_line: bytes, folder: str, windows: bool = sys.platform == "win32") -> str:
    """Return why a program that is there may not be found. folder: the working folder, of which Windows takes no more than 258
    characters."""
    if windows:
        return "; the path of the root is too long for a working folder: let it be shorter" if len(folder) >= 258 else ""
    if first_line.endswith(b"\r\n"):
        return "; its first line ends with a carriage return (CRLF): save it with plain line ends"
    name = interpreter_of(first_line)
    if not name:
        return "; the program, or a loader that it needs, may be missing"
    is_there = os.path.exists(os.path.join(folder, name))
    return "; its first line names %s, which %s" % (name, "cannot be started itself" if is_there else "is not there: install it, or name another")


def interpreter_of(first_line: bytes) -> str:
    """Return the program that a script's first line names (#!), "" if none."""
    words = first_line[2:].split() if first_line.startswith(b"#!") else []
    return os.fsdecode(words[0]) if words else ""


def _tell_of_launcher(attempt: Attempt) -> None:
    """Note what is known of a launcher's end, and is not known of other processors'."""
    launched = attempt.process
    if launched.was_cut:
        attempt.notes.append(
            "the launcher did not end in time when it was asked to, and was killed: look whether its job is still in the queue of the cluster")
    if not launched.is_begun and attempt.ending.reason and attempt.ending.reason != INTERRUPTED:
        attempt.ending.reason += "; the task had not begun: its launcher was still waiting"


def _first_line(path: str) -> bytes:
    try:
        with open_file(path) as file:
            return bytes(file.readline(1000))
    except OSError:
        return b""


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


class Ending:
    """When and how an attempt is told to end: politely at its time limit or on a signal, by force after the grace.

    A second signal (Ctrl-C again) is the end of the grace. A fork server that does not tell of the end even then (its task may
    have stopped it) is killed.
    """

    def __init__(self, launch: Launch, tree: Any, signals: Signals) -> None:
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
            self.reason = TIMEOUT % self.launch.timeout_s if self.is_timeout else INTERRUPTED
            self.tree.ask_to_stop()
            self.at, is_late = time.monotonic() + self.launch.grace_s, False
        if self.reason and (is_late or self.signals.count > 1):
            if self.is_forced and is_late and self.launch.server is not None and not self.tree.is_child:
                self.launch.server.kill()
            if is_late or not self.is_forced:
                self.at = time.monotonic() + max(self.launch.grace_s, FORCE_S)
            self.is_forced = True
            self.tree.end()


def _read_some(reader: int, log: AttemptLog) -> bool:
    """Read what is there; tell whether the pipe is still open."""
    try:
        data = os.read(reader, READ_BYTES)
    except BlockingIOError:
        return True
    log.feed(data)
    return bool(data)


def _read_all(reader: int, log: AttemptLog) -> None:
    """Read what is there, from a pipe whose other end stays open."""
    while True:
        try:
            data = os.read(reader, READ_BYTES)
        except BlockingIOError:
            return
        if not data:
            return
        log.feed(data)


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


def _drain(reader: int, is_open: bool, log: AttemptLog) -> None:
    """Read to the end of the pipe, but not for ever: a process that would not go may hold it open."""
    import select
    deadline = time.monotonic() + DRAIN_S
    while is_open and time.monotonic() < deadline:
        if not select.select([reader], [], [], 0.05)[0]:
            continue
        is_open = _read_some(reader, log)


def _start_thread(attempt: Attempt) -> None:
    """Windows: nobody can wait for pipes and processes at once there, so one thread reads to the end, and one waits."""
    import threading

    def read() -> None:
        while True:
            try:
                data = os.read(attempt.reader, READ_BYTES)
            except OSError:
                return
            if not data:
                return
            attempt.log.feed(data)

    def wait() -> None:
        attempt.exit_code = attempt.process.wait()
        attempt.done.set()

    attempt.done = threading.Event()
    attempt.thread = threading.Thread(target=read, daemon=True)
    attempt.thread.start()
    threading.Thread(target=wait, daemon=True).start()


# --- resources -------------------------------------------------------------------------------------------------------

def unenforced(resources: Dict[str, int], platform: str = sys.platform) -> List[str]:
    """Return the resource keys that this system cannot enforce."""
    able = {"linux": {"cpuCores", "memoryMB", "nice", "minFreeDiskMB"}, "win32": {"memoryMB", "minFreeDiskMB"}}
    return sorted(set(resources) - able.get("linux" if platform.startswith("linux") else platform, {"nice", "minFreeDiskMB"}))


def pick_cores(allowed: Sequence[int], in_use: Sequence[int], count: int, start: int) -> List[int]:
    """Return *count* of the allowed processor cores, or all if there are fewer: those first that are in use least often.

    start: any number; of cores that are in use equally often it says with which to begin, so that two runners of one
    machine do not all begin with the first.
    """
    first = start % len(allowed)
    return sorted((*allowed[first:], *allowed[:first]), key=in_use.count)[:count]


def apply_resources(pid: int, resources: Dict[str, int], cores: Sequence[int] = ()) -> List[str]:
    """Limit a process that has just been started, and what it will start, cpuCores to those *cores*; return what could not be
    done.

    Done from outside, right after the start: a preexec_fn would make every start slower and may deadlock.
    """
    notes = ["resources.%s cannot be enforced on %s" % (name, sys.platform) for name in unenforced(resources)]
    values: Dict[str, Any] = dict(resources, cpuCores=cores)
    for name, act in (("nice", _set_nice), ("memoryMB", _set_memory), ("cpuCores", _set_cores)):
        if name in resources and name not in unenforced(resources) and sys.platform != "win32":
            try:
                act(pid, values[name])
            except ProcessLookupError:
                pass                    # it has ended already
            except (OSError, ValueError, OverflowError) as error:
                notes.append("resources.%s could not be set: %s" % (name, error))
    return notes


def _set_nice(pid: int, value: int) -> None:
    os.setpriority(os.PRIO_PROCESS, pid, value)


def _set_memory(pid: int, value: int) -> None:
    import resource
    hard = resource.prlimit(pid, resource.RLIMIT_AS)[1]
    resource.prlimit(pid, resource.RLIMIT_AS, (value << 20, hard))


def _set_cores(pid: int, cores: Sequence[int]) -> None:
    os.sched_setaffinity(pid, cores)
