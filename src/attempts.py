"""One attempt: start a processor, watch it, keep its output, end its whole tree, say how it went.

A leaf. `processes` is the leaf process_tree, handed in because leaves do not import each other.

    Launch -> run_attempt() -> AttemptResult

One thread does everything on POSIX: it waits for output, for the processor's end, for signals to the runner and for the
clock at once, through a pipe into which the interpreter writes each signal's number. Windows cannot wait for pipes;
there a thread reads the output.
"""
from __future__ import annotations

import os
import signal
import sys
import time
from collections import namedtuple

from model import sha256

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

LOG_HEAD_BYTES = 16 << 20   # of an attempt's output kept from its beginning ...
LOG_TAIL_BYTES = 1 << 20    # ... and from its end; what is between is counted and dropped
SHOWN_TAIL_BYTES = 4096     # of a failed attempt's output, shown on the console
READ_BYTES = 1 << 16
DRAIN_S = 2.0               # how long a pipe may stay open after the last process of an attempt is gone
POLL_S = 0.2                # Windows: between two looks at the clock and at signals
CREATE_NEW_PROCESS_GROUP = 0x200    # Windows: so that CTRL_BREAK reaches the processor and not the runner


class Launch(namedtuple("Launch", "argv env folder log_path token lock_descriptor guard_path timeout_s grace_s resources echo stdin", defaults=(None,))):
    """What to start: argv and env complete, folder the working directory; echo(bytes) sees the output as it comes, or None.

    stdin: a file open for reading, None for an empty one.
    """

    __slots__ = ()


class AttemptResult(namedtuple("AttemptResult", "exit_code failure stopped duration_s cpu_s max_rss_bytes tail notes survivors log", defaults=(None,))):
    """How an attempt ended.

    exit_code: the processor's, negative for a signal, None if it never started. failure: why it failed, "" if it did not.
    stopped: True if a signal to the runner ended it. tail: the last bytes of its output. notes: what to tell the user.
    survivors: processes that would not go. log: (bytes, SHA-256) of the log file, None if there is none.
    """

    __slots__ = ()


TIME_UP = -1                # in place of a signal's number: the clock asks to stop


class Signals:
    """The signals that ask the runner to stop, noted instead of raised; also the alarm that a child has ended.

    number: the first one that came, or 0; count: how many came. A signal that was ignored at the start (nohup, a shell's
    background) stays ignored. The end of the time that a run has (stop_time, a stop_times.StopTime or None) looks like a signal of number
    TIME_UP.
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

    @number.setter
    def number(self, value: int) -> None:
        self.came = value

    def text(self) -> str:
        """Return why the run is to stop."""
        return "stopped by the clock (%s)" % self.stop_time.text if self.number == TIME_UP else INTERRUPTED

    def install(self) -> None:
        """Take over SIGINT, SIGTERM, SIGHUP (Windows: SIGBREAK) for this process. Main thread only."""
        for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK"):
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._note)
        if sys.platform != "win32":
            self.pipe = os.pipe()
            for descriptor in self.pipe:
                os.set_blocking(descriptor, False)
            signal.signal(signal.SIGCHLD, lambda number, frame: None)
            signal.set_wakeup_fd(self.pipe[1], warn_on_full_buffer=False)

    def _note(self, number: int, frame: Any) -> None:
        self.came = self.came or number
        self.count += 1

    def wait(self, descriptors: Sequence[int], seconds: Optional[float]) -> List[int]:
        """Wait until one of *descriptors* can be read, a signal comes, or *seconds* are over; return the readable ones."""
        if self.stop_time is not None and not self.came:
            pause_s = self.stop_time.pause_s()
            seconds = pause_s if seconds is None else min(seconds, pause_s)
        if self.pipe[0] < 0:
            time.sleep(POLL_S if seconds is None else min(seconds, POLL_S))
            return []
        import select
        poll = select.poll()
        for descriptor in (self.pipe[0], *descriptors):
            poll.register(descriptor, select.POLLIN)
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

    def __init__(self, path: str, echo: Optional[Callable[[bytes], None]] = None) -> None:
        self.echo = echo
        self.total = 0
        self.head_left = LOG_HEAD_BYTES
        self.tail = bytearray()
        self.last = b""
        self.problem = ""
        self.size, self.digest = 0, sha256()
        self.file: Any = open(path, "wb", buffering=0)

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
        self.file.close()

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view and not self.problem:
            try:
                count = self.file.write(view)
                self.size += count
                self.digest.update(view[:count])
                view = view[count:]
            except OSError as error:
                self.problem = "the log is incomplete: %s" % error.strerror


def run_attempt(launch: Launch, signals: Signals, processes: Any, guardian: Any, others: Sequence[int] = (), network: Any = None) -> AttemptResult:
    """Run one attempt to its end and that of its last process.

    others: children of this process that have nothing to do with the attempt. network: who is told when the
    processor is refused the network (network_watch.AttemptNetwork). On disk afterwards: the log. Never raises
    for what a processor does. Raises: OSError when the log cannot be created.
    """
    log = AttemptLog(launch.log_path, launch.echo)
    traits = processes.Traits(launch.token, 0, launch.guard_path, os.getpid())
    guardian.watch(traits)              # before the start: the runner may die at any moment after it
    started = time.monotonic()
    try:
        try:
            process, reader, job = _start(launch, processes)
        except OSError as error:
            return _not_started(launch, error, time.monotonic() - started)
        guardian.watch(traits._replace(session=process.pid))
        tree = processes.Tree(process.pid, launch.token, job, others)
        notes = apply_resources(process.pid, launch.resources)
        watch = _watch_threads if sys.platform == "win32" else _watch
        code, reason, usage, survivors = watch(launch, process, reader, tree, signals, log, network)
        if job is not None:
            job.close()
    finally:
        log.close()
    if not survivors:
        guardian.release(traits)
    if log.problem:
        notes.append(log.problem)
    failure = reason or exit_text(code)
    return AttemptResult(code, failure, reason == INTERRUPTED, time.monotonic() - started, usage[0], usage[1], log.last, notes, survivors, (log.size, log.digest.hexdigest()))


INTERRUPTED = "interrupted"


def _start(launch: Launch, processes: Any) -> Tuple[Any, int, Any]:
    """Start the processor in a session (Windows: job) of its own; return it, the end of its output, and the job."""
    import subprocess       # here, because a run in which nothing must be started needs only Signals of this module
    reader, writer = os.pipe()
    job = None
    options: Dict[str, Any] = {}
    try:
        if sys.platform == "win32":
            job = processes.Job(memory_bytes=launch.resources.get("memoryMB", 0) << 20)
            options["creationflags"] = CREATE_NEW_PROCESS_GROUP | processes.CREATE_SUSPENDED
        else:
            options["start_new_session"] = True
            options["pass_fds"] = (launch.lock_descriptor,) if launch.lock_descriptor >= 0 else ()
        process = subprocess.Popen(launch.argv, stdin=subprocess.DEVNULL if launch.stdin is None else launch.stdin, stdout=writer, stderr=writer,
                                   cwd=launch.folder, env=launch.env, close_fds=True, **options)
        if job is not None:
            job.take(int(process._handle))
    except BaseException:
        os.close(reader)
        raise
    finally:
        os.close(writer)
    return process, reader, job


def _not_started(launch: Launch, error: OSError, duration_s: float) -> AttemptResult:
    reason = error.strerror or str(error)
    hint = ""
    if getattr(error, "errno", None) == 8:      # ENOEXEC
        hint = "; a script needs a first line such as #!/bin/sh"
    elif isinstance(error, FileNotFoundError):
        hint = "; the program that its first line names may be missing"
    return AttemptResult(None, "cannot start %s: %s%s" % (launch.argv[0], reason, hint), False, duration_s, 0.0, 0, b"", [], [], (0, sha256().hexdigest()))


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


def _watch(launch: Launch, process: Any, reader: int, tree: Any, signals: Signals, log: AttemptLog, network: Any) -> Tuple[int, str, Tuple[float, int], List[int]]:
    """POSIX: wait for the end of the processor, stop it when time or a signal asks, end its tree, read what is left.

    A refused network call waits for its answer from here: whoever makes one is named, and nobody needs a thread.
    """
    os.set_blocking(reader, False)
    told = [network.descriptor] if network is not None and network.descriptor >= 0 else []
    ending = Ending(launch, tree, signals)
    is_open, status, usage = True, None, None
    try:
        while status is None:
            ready = signals.wait(told + [reader] if is_open else told, ending.seconds_left())
            if reader in ready:
                is_open = _read_some(reader, log)
            if told and told[0] in ready:
                network.take()
            pid, raw, used = os.wait4(process.pid, os.WNOHANG)
            if pid:
                status, usage = raw, used
            else:
                ending.look()
        if network is not None:
            network.finish()            # before those are killed who wait for an answer
        survivors = tree.end()
        _drain(reader, is_open, log)
    finally:
        os.close(reader)
    code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else -os.WTERMSIG(status)
    process.returncode = code           # reaped here, by wait4, for the sake of its resource usage
    assert usage is not None
    return code, ending.reason, (usage.ru_utime + usage.ru_stime, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)), survivors


class Ending:
    """When and how an attempt is told to end: politely at its time limit or on a signal, by force after the grace.

    A second signal (Ctrl-C again) is the end of the grace.
    """

    def __init__(self, launch: Launch, tree: Any, signals: Signals) -> None:
        self.launch, self.tree, self.signals = launch, tree, signals
        self.reason = ""
        self.at: Optional[float] = None if launch.timeout_s is None else time.monotonic() + launch.timeout_s

    def seconds_left(self) -> Optional[float]:
        return None if self.at is None else max(0.0, self.at - time.monotonic())

    def look(self) -> None:
        """Do what is due."""
        is_late = self.at is not None and time.monotonic() >= self.at
        if not self.reason and (self.signals.number or is_late):
            self.reason = INTERRUPTED if self.signals.number else "timeout after %g s" % self.launch.timeout_s
            self.tree.ask_to_stop()
            self.at, is_late = time.monotonic() + self.launch.grace_s, False
        if self.reason and (is_late or self.signals.count > 1):
            self.tree.end()
            self.at = time.monotonic() + self.launch.grace_s


def _read_some(reader: int, log: AttemptLog) -> bool:
    """Read what is there; tell whether the pipe is still open."""
    try:
        data = os.read(reader, READ_BYTES)
    except BlockingIOError:
        return True
    log.feed(data)
    return bool(data)


def _drain(reader: int, is_open: bool, log: AttemptLog) -> None:
    """Read to the end of the pipe, but not for ever: a process that would not go may hold it open."""
    import select
    deadline = time.monotonic() + DRAIN_S
    while is_open and time.monotonic() < deadline:
        if not select.select([reader], [], [], 0.05)[0]:
            continue
        is_open = _read_some(reader, log)


def _watch_threads(launch: Launch, process: Any, reader: int, tree: Any, signals: Signals, log: AttemptLog, network: Any) -> Tuple[int, str, Tuple[float, int], List[int]]:
    """Windows: the same with a thread that reads, and short waits."""
    import subprocess
    import threading

    def pump() -> None:
        while True:
            try:
                data = os.read(reader, READ_BYTES)
            except OSError:
                return
            if not data:
                return
            log.feed(data)

    thread = threading.Thread(target=pump, daemon=True)
    thread.start()
    ending = Ending(launch, tree, signals)
    while True:
        left = ending.seconds_left()
        try:
            code = process.wait(POLL_S if left is None else min(POLL_S, left + 0.001))
            break
        except subprocess.TimeoutExpired:
            ending.look()
    survivors = tree.end()
    if network is not None:
        network.finish()
    thread.join(DRAIN_S)
    if not thread.is_alive():
        os.close(reader)
    return code, ending.reason, (0.0, 0), survivors


# --- resources -------------------------------------------------------------------------------------------------------

def unenforced(resources: Dict[str, int], platform: str = sys.platform) -> List[str]:
    """Return the resource keys that this system cannot enforce."""
    able = {"linux": {"cpuCores", "memoryMB", "nice", "minFreeDiskMB"}, "win32": {"memoryMB", "minFreeDiskMB"}}
    return sorted(set(resources) - able.get("linux" if platform.startswith("linux") else platform, {"nice", "minFreeDiskMB"}))


def apply_resources(pid: int, resources: Dict[str, int]) -> List[str]:
    """Limit a process that has just been started, and what it will start; return what could not be done.

    Done from outside, right after the start: a preexec_fn would make every start slower and may deadlock.
    """
    notes = ["resources.%s cannot be enforced on %s" % (name, sys.platform) for name in unenforced(resources)]
    for name, act in (("nice", _set_nice), ("memoryMB", _set_memory), ("cpuCores", _set_cores)):
        if name in resources and name not in unenforced(resources) and sys.platform != "win32":
            try:
                act(pid, resources[name])
            except ProcessLookupError:
                pass                    # it has ended already
            except (OSError, ValueError) as error:
                notes.append("resources.%s could not be set: %s" % (name, error))
    return notes


def _set_nice(pid: int, value: int) -> None:
    os.setpriority(os.PRIO_PROCESS, pid, value)


def _set_memory(pid: int, value: int) -> None:
    import resource
    hard = resource.prlimit(pid, resource.RLIMIT_AS)[1]
    resource.prlimit(pid, resource.RLIMIT_AS, (value << 20, hard))


def _set_cores(pid: int, value: int) -> None:
    allowed = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(pid, allowed[:value])
