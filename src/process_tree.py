"""Ending all processes of an attempt: those of a runner that lives, and what a dead one has left.

Above process_table and process_traits, which say who lives and who belongs to an attempt. The runner imports it when the first stage must run.
A process that sheds all traits of its attempt is still a child of the runner (Linux: child subreaper) while the runner lives.
Who ends what:

    the runner        after every attempt, whatever its exit      Tree.end()
    the guardian      when the runner dies, at once               guardian
    the next run      before it takes the stage over              end_of_dead_owner()
    Windows itself    when the last handle of a job closes        windows_jobs; the runner is in one too, so that no processor is ever in none

What a system cannot tell is not guessed; there the group that the processor leads is ended.
"""
from __future__ import annotations

import os
import signal
import time

import process_table
# For whoever gets this module handed in (stage_locks).
from process_table import is_alive, start_time  # noqa: F401
from process_traits import Traits, carries, has_variable, members, with_descendants

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import AbstractSet, Callable, Dict, Iterable, List, Optional, Set, Tuple

    import windows_jobs

LAUNCHER_VARIABLE = "PIPELINE_LAUNCHER"     # of a launcher (launch_helper)
LAUNCHER_S = 10.0               # how long a launcher may take to cancel what it started
PR_SET_CHILD_SUBREAPER = 36     # linux/prctl.h
SWEEP_LIMIT_S = 10.0            # a tree that forks faster than it is killed is given up, and said, after this
SWEEP_PAUSE_S = 0.005           # between two looks: a killed process needs a moment to go
MOST_ORPHANS = 1000             # whose exit status is taken at one look
SHOWN_UNSURE = 20               # without the means to look it may be every process of the system


def send(pids: Iterable[int], number: int) -> None:
    """Send signal *number* to each of *pids*; those that are gone or not ours are passed over."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except OSError:
            pass


def end_all(find: Callable[[], List[int]], limit_s: float = SWEEP_LIMIT_S, not_reaped: int = 0, unsure: AbstractSet[int] = frozenset()) -> List[int]:
    """Kill what *find* returns until it returns nothing; return those that would not go within *limit_s* seconds.

    They are killed once at least, however long it took to find them. The exit status of *not_reaped* is left for whoever waits
    for it. unsure: of whom *find* could not tell, as of its last look; they are not killed but looked at again, and count as left
    if that does not help.
    """
    deadline, is_tried = time.monotonic() + limit_s, False
    while True:
        left = find()
        if not (left or unsure) or is_tried and time.monotonic() > deadline:
            return sorted({*left, *unsure})
        send(left, signal.SIGTERM if process_table.WINDOWS else signal.SIGKILL)
        is_tried = True
        reap(pid for pid in left if pid != not_reaped)
        time.sleep(SWEEP_PAUSE_S)


def end_members(traits: Iterable[Traits]) -> List[int]:
    """Kill all members(); return those that would not go, and a few of those of whom the system could not tell for so long."""
    wanted = list(traits)
    unsure: Set[int] = set()
    left = end_all(lambda: members(wanted, unsure), unsure=unsure)
    return [pid for pid in left if pid not in unsure] + sorted(unsure)[:SHOWN_UNSURE]


def ask_launchers(traits: Iterable[Traits], limit_s: float) -> None:
    """Send SIGTERM to the launchers of a cluster among *traits*' processes, and wait until they are gone or *limit_s* is over.

    A launcher that is killed at once leaves what it started to run on, somewhere else (Linux; elsewhere nobody is found).
    """
    wanted = list(traits)
    deadline = time.monotonic() + limit_s
    unsure: Set[int] = set()
    found = members(wanted, unsure)
    while unsure and time.monotonic() < deadline:
        time.sleep(SWEEP_PAUSE_S)
        found = members(wanted, unsure)
    asked = [pid for pid in found if _may_be_launcher(pid)]
    send(asked, signal.SIGTERM)
    deadline = time.monotonic() + limit_s
    while asked and time.monotonic() < deadline:
        time.sleep(SWEEP_PAUSE_S)
        reap(asked)
        asked = [pid for pid in asked if process_table.start_time(pid) is not None]


def _may_be_launcher(pid: int) -> bool:
    try:
        return has_variable(pid, LAUNCHER_VARIABLE + "=")
    except OSError:
        return True         # who is asked in vain is killed a moment later


def end_of_dead_owner(token: str, lock_path: str, lock_pid: int, root: str = "") -> List[int]:
    """End what a dead runner left behind; return the processes that would not go. root: as in Traits.

    Sessions are not asked: after the leader's death a session id may have been given to a stranger.
    """
    if process_table.WINDOWS:
        return []               # the job object has done it when the runner's last handle closed
    traits = Traits(token, 0, lock_path, lock_pid, root)
    ask_launchers([traits], LAUNCHER_S)
    return end_members([traits])


def reap(pids: Iterable[int]) -> None:
    """Take the exit status of those *pids* that are our dead children (orphans fall to the subreaper)."""
    for pid in pids:
        try:
            os.waitpid(pid, os.WNOHANG)
        except OSError:
            pass


def reap_orphans(kept: AbstractSet[int]) -> None:
    """Take the exit status of our dead children but those *kept*, for whom somebody else waits; on Linux, where orphans fall to us.

    An attempt may leave thousands while it runs, and each counts among the processes that its user may have.
    """
    if not process_table.LINUX:
        return
    try:
        for _ in range(MOST_ORPHANS):
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)    # looks, and takes nothing
            if found is None:
                return
            if found.si_pid in kept:        # and hides those behind it
                reap(pid for pid in process_table.own_children() if pid not in kept)
                return
            reap([found.si_pid])
    except OSError:
        pass                            # no children at all, or no means to look for them now


def become_subreaper() -> bool:
    """Make orphaned descendants children of this process, so that none gets out of sight; False where that is not to be had.

    Source: prctl(2), PR_SET_CHILD_SUBREAPER (Linux 3.4).
    """
    if not process_table.LINUX:
        return False
    import ctypes
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        return bool(libc.prctl(PR_SET_CHILD_SUBREAPER, ctypes.c_ulong(1), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)) == 0)
    except (OSError, AttributeError):
        return False


class Tree:
    """The processes of one attempt, from the runner's side, while the runner lives.

    pid leads its own session (POSIX); others are pids of the runner's children that belong to somebody else; siblings()
    returns (pid, token) of the other attempts under way. leader_is_gone: pid has ended, and may be anybody's now.
    """

    def __init__(self, pid: int, token: str, job: Optional[windows_jobs.Job] = None, others: Iterable[int] = (),
                 siblings: Callable[[], List[Tuple[int, str]]] = lambda: []) -> None:
        self.pid = pid
        self.traits = Traits(token, pid, "", 0)
        self.job = job
        self.others = others if isinstance(others, set) else set(others)
        self.siblings = siblings
        self.leader_is_gone = False
        self.is_child = True            # the leader is our child; False: that of a fork server
        self.unclear: List[int] = []    # orphans that may be a sibling's as well as ours, as of the last look
        self.unsure: Set[int] = set()   # likewise; of these the system could not tell

    def living(self) -> List[int]:
        """Return the living processes of the attempt; the quick answer of the usual case is: no children at all."""
        if process_table.WINDOWS:
            return []
        if not process_table.LINUX:
            return members([self.traits])
        seen: Set[int] = set()
        self.unclear = []
        self.unsure.clear()
        while True:
            siblings = self.siblings()
            strays = {pid for pid in process_table.own_children() if pid not in self.others} - {pid for pid, _ in siblings}
            if not self.is_child and not self.leader_is_gone:
                strays.add(self.pid)
            if strays <= seen:
                return []               # all of them had ended before the last look, and left us nothing
            reap(pid for pid in strays if pid != self.pid)
            table = process_table.table()
            roots = {pid for pid in strays if pid in table}
            if siblings:
                roots = self._ours(roots, table, siblings)
            found = with_descendants(roots, table)
            if found:
                return sorted(found - {os.getpid()})
            # What ended between the two looks may have left us its children meanwhile: look again.
            seen |= strays

    def _ours(self, roots: Set[int], table: Dict[int, Tuple[str, int, int, str]], siblings: List[Tuple[int, str]]) -> Set[int]:
        """Return those of the orphans that carry a trait of ours, and note those that carry nobody's, or of which that cannot be
        told now."""
        theirs = [Traits(token, pid, "", 0) for pid, token in siblings]
        told = {pid: pid == self.pid or carries(pid, table[pid], [self.traits]) for pid in roots}
        others = {pid: carries(pid, table[pid], theirs) for pid, is_ours in told.items() if not is_ours}
        self.unclear = sorted(pid for pid, is_theirs in others.items() if is_theirs is False and told[pid] is False)
        self.unsure.clear()
        self.unsure.update(pid for pid, is_theirs in others.items() if not is_theirs and (is_theirs is None or told[pid] is None))
        return {pid for pid, is_ours in told.items() if is_ours}

    def ask_to_stop(self) -> None:
        """Send SIGTERM to every process of the attempt (Windows: CTRL_BREAK to its group)."""
        if process_table.WINDOWS:
            import windows_jobs
            if not windows_jobs.ask_group(self.pid):
                send([self.pid], signal.SIGTERM)
        else:
            send(self.living() or self._group(), signal.SIGTERM)

    def end(self) -> List[int]:
        """Kill every process of the attempt, daemonised grandchildren included; return those that would not go."""
        if self.job is not None:
            return self._end_job(self.job)
        send(self._group(), signal.SIGKILL)
        left = end_all(self.living, not_reaped=self.pid, unsure=self.unsure)
        self.unclear = sorted({*self.unclear, *self.unsure})
        return [pid for pid in left if pid not in self.unsure]

    def _end_job(self, job: windows_jobs.Job) -> List[int]:
        """The same on Windows, where they are gone only a while after they were told to; the leader is for whoever waits for it."""
        deadline = time.monotonic() + SWEEP_LIMIT_S
        while True:
            job.terminate()
            left = [pid for pid in job.pids() if pid != self.pid]
            if not left or time.monotonic() > deadline:
                return sorted(left)
            time.sleep(SWEEP_PAUSE_S)

    def _group(self) -> List[int]:
        """Return, for kill(2), the group that the processor leads, where the system may not tell of all. Until the leader is reaped
        it is ours."""
        return [] if process_table.WINDOWS or self.leader_is_gone or not self.is_child or process_table.tells_all() else [-self.pid]
