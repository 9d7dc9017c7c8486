"""The guardian: a small process outside the runner's session that ends the runner's processors when the runner dies.

Above process_tree. On Windows a job does that.

    the runner starts it -> tells it of each attempt, and of its end -> dies, however -> the kernel closes the pipe -> it ends what is left
"""
from __future__ import annotations

import os
import signal

import process_table
import process_tree
from process_traits import Traits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, List, Optional

    import windows_jobs

PATIENCE_S = 5.0                # how long a guardian may read nothing, with its pipe full of some hundred notices
MOST_DESCRIPTORS = 1 << 16      # are looked at where the system does not tell how many are open


class Guardian:
    """A small process outside the runner's session that ends the runner's processors when the runner dies (POSIX).

    It waits at the end of a pipe of which only the runner holds the other end: the kernel closes that end with
    the runner, however it dies. Started before the runner becomes a subreaper, so that it is nobody's child.

    On Windows there is a job instead that holds the runner, and so whatever it starts: what was not yet in the job of its attempt
    when the runner was killed would else stay suspended for ever, with its files open.
    """

    def __init__(self, say: Callable[[str], None] = lambda text: None) -> None:
        self.say = say
        self.pid, self.pipe = 0, -1
        self.job: Optional[windows_jobs.Job] = None

    def start(self) -> None:
        """Fork it (Windows: make the job)."""
        if process_table.WINDOWS:
            import windows_jobs
            self.job = self.job or windows_jobs.job_of_this_process()
        if process_table.WINDOWS or self.pipe >= 0:
            return
        read_end, write_end = os.pipe()
        answer, teller = os.pipe()
        pid = os.fork()
        if pid == 0:            # in the child: leave the session, then leave the family
            try:
                os.setsid()
                guardian = os.fork()
                if guardian == 0:
                    _be_guardian(read_end)
                os.write(teller, b"%d" % guardian)
            finally:
                os._exit(0)
        os.close(read_end)
        os.close(teller)
        os.waitpid(pid, 0)
        self.pid = int(os.read(answer, 32) or 0)
        os.close(answer)
        os.set_blocking(write_end, False)
        self.pipe = write_end

    def watch(self, traits: Traits) -> None:
        """Tell it of an attempt; told again with more known, the attempt is only known better."""
        self._tell("+", traits)

    def release(self, traits: Traits) -> None:
        """Tell it that no process of the attempt lives."""
        self._tell("-", traits)

    def close(self) -> None:
        """Let it go; it ends what it was told of and not released."""
        if self.job is not None:
            self.job.let_go()
            self.job = None
        if self.pipe >= 0:
            os.close(self.pipe)
            self.pipe = -1

    def _tell(self, sign: str, traits: Traits) -> None:
        if self.pipe < 0:
            return
        # A path may have line ends and, as the last field, tabs.
        line = "\t".join((sign, traits.token, str(traits.session), str(traits.lock_pid), traits.lock_path)) + "\0"
        data = os.fsencode(line)
        try:
            while data:
                try:
                    data = data[os.write(self.pipe, data):]
                except BlockingIOError:
                    if not self._has_room():
                        self._give_up()
                        return
        except OSError:
            pass                # a guardian that was killed cannot be told; the next run's sweep remains

    def _has_room(self) -> bool:
        """Wait for a guardian that had no time to read."""
        import select
        poll = select.poll()
        poll.register(self.pipe, select.POLLOUT)
        return bool(poll.poll(int(PATIENCE_S * 1000)))

    def _give_up(self) -> None:
        """Kill a guardian that does not read, as one that was stopped: what it would do when it wakes up is for attempts long past.

        It is there, else its pipe would be closed; so the number is its own.
        """
        if self.pid:
            process_tree.send([self.pid], signal.SIGKILL)
        self.close()
        self.say("the guardian (pid %d) did not read what it was told for %g s, and is given up: if this runner is killed, what it has started "
                 "may run on until the next run" % (self.pid, PATIENCE_S))


def _be_guardian(read_end: int) -> None:
    """In the guardian: hold nothing but the pipe, wait for the runner's end, clean up, leave."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.set_wakeup_fd(-1)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    # Every other descriptor must go: a lock's would keep the stage held, a pipe's would keep its reader waiting.
    os.closerange(3, read_end)
    os.closerange(read_end + 1, highest_descriptor() + 1)
    guard_loop(read_end, _end_of_dead_runner)


def _end_of_dead_runner(traits: List[Traits]) -> None:
    """End the attempts of a runner that has died this moment; where the system may not tell of all processes, the groups that the
    processors lead first."""
    if not process_table.tells_all():
        process_tree.send([-one.session for one in traits if one.session], signal.SIGKILL)
    process_tree.end_members(traits)


def highest_descriptor() -> int:
    """Return a number that no open descriptor of this process is above, as far as it can be told."""
    if not process_table.LINUX and not process_table.MACOS:
        return max(256, int(os.sysconf("SC_OPEN_MAX")))
    # Not by the limit on macOS: that may be none, which is 2^63 - 1, and no number of a descriptor.
    try:
        return max([int(name) for name in os.listdir("/proc/self/fd" if process_table.LINUX else "/dev/fd") if name.isdigit()] + [256])
    except FileNotFoundError:           # Linux without /proc
        return MOST_DESCRIPTORS


def guard_loop(read_end: int, end: Callable[[List[Traits]], Any]) -> None:
    """Read notices from *read_end* until the other end is closed, then call *end* with the attempts not released."""
    pending = b""
    watched: Dict[str, Traits] = {}
    while True:
        data = os.read(read_end, 65536)
        if not data:
            break
        *lines, pending = (pending + data).split(b"\0")
        for line in lines:
            sign, token, session, lock_pid, lock_path = os.fsdecode(line).split("\t", 4)
            if sign == "+":
                watched[token] = Traits(token, int(session), lock_path, int(lock_pid))
            else:
                watched.pop(token, None)
    if watched:
        end(list(watched.values()))
