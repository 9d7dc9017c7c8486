"""The processes of an attempt: telling who they are, who still lives, and ending them all.

A leaf: the runner imports it when the first stage must run; it never imports the runner.

An attempt can be known by three traits, each inherited by whatever its processor starts:

    token     PIPELINE_ATTEMPT_TOKEN in the environment
    session   the processor leads a session of its own
    lock      the descriptor on which the stage's kernel lock is held

A process that sheds all three is still a child of the runner (Linux: child subreaper) while the runner lives.
Who ends what:

    the runner        after every attempt, whatever its exit      Tree.end()
    the guardian      when the runner dies, at once               Guardian, guard_loop()
    the next run      before it takes the stage over              end_of_dead_owner()
    Windows itself    when the last handle of a job closes        Job; the runner is in one too (Guardian), so that no processor is ever in none

Linux reads /proc, macOS has calls of its own (Mac), Windows Job Objects; elsewhere ps is asked. What a system cannot tell is not
guessed; there the group that the processor leads is ended.
"""
from __future__ import annotations

import errno
import os
import signal
import struct
import sys
import time
from collections import namedtuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import AbstractSet, Any, Callable, Dict, Iterable, List, Optional, Set, Tuple

TOKEN_VARIABLE = "PIPELINE_ATTEMPT_TOKEN"
ROOT_VARIABLE = "PIPELINE_ROOT"
LAUNCHER_VARIABLE = "PIPELINE_LAUNCHER"     # of a launcher (launch_helper)
LAUNCHER_S = 10.0               # how long a launcher may take to cancel what it started
UNTOLD = "untold"
LINUX = sys.platform.startswith("linux")
MACOS = sys.platform == "darwin"
WINDOWS = sys.platform == "win32"
PR_SET_CHILD_SUBREAPER = 36     # linux/prctl.h
MOST_DESCRIPTORS = 1 << 16      # are looked at where the system does not tell how many are open
SWEEP_LIMIT_S = 10.0            # a tree that forks faster than it is killed is given up, and said, after this
SWEEP_PAUSE_S = 0.005           # between two looks: a killed process needs a moment to go
SHOWN_UNSURE = 20               # without the means to look it may be every process of the system


class Traits(namedtuple("Traits", "token session lock_path lock_pid root", defaults=("",))):
    """What marks an attempt's processes: token prefix, session id (0: unknown), guard file, pid that took its lock.

    root: the folder that the token is of, where it was read in a record: a copy of the folder has the same records. "": any.
    """

    __slots__ = ()


# What else may not be there: the means to look. It says nothing of the process, so it is looked at again.
SHORT = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM))
GONE = frozenset((errno.ENOENT, errno.ESRCH, errno.EACCES, errno.EPERM))    # or not ours
UNREAD = ("?", 0, 0, UNTOLD)    # of a process of which nothing more can be read now


# --- who lives -------------------------------------------------------------------------------------------------------

def read_stat(pid: int) -> Optional[Tuple[str, int, int, str]]:
    """Return (state, parent, session, start time in ticks since boot) of *pid* from /proc, None when it is gone, UNREAD if the
    system cannot tell now.

    On macOS the group stands for the session, and the time is of the day.
    """
    mac = _mac()
    if mac is not None:
        return mac.stat(pid)
    try:
        with open("/proc/%d/stat" % pid, "rb") as file:
            # The command name may hold blanks and brackets: everything before the last ")" is skipped.
            fields = file.read().rpartition(b")")[2].split()
    except OSError as error:
        return None if error.errno in GONE else UNREAD
    return fields[0].decode(), int(fields[1]), int(fields[3]), fields[19].decode()


def start_time(pid: int) -> Optional[str]:
    """Return a text that, with *pid*, names one process of this boot; None when no such process lives (zombies do not).

    UNTOLD for one of another account on Windows and macOS, and on Linux where /proc hides those (hidepid), and where there is nobody to
    ask.
    """
    if LINUX or _mac() is not None:
        stat = read_stat(pid)
        if stat is None and _is_there(pid, if_ours=False):
            return UNTOLD
        return None if stat is None or stat[0] in "ZX" else stat[3]
    if WINDOWS:
        return _windows_start_time(pid)
    return _ps_start_time(pid, _run_ps)


def is_alive(pid: int, started: Optional[str], if_untold: bool = True) -> bool:
    """Tell whether the process that had *pid* and *started* still lives; a reused pid is another process.

    if_untold: what to say where there is a process of which the system does not tell us when it was started.
    """
    now = start_time(pid)
    if now is not None and UNTOLD in (now, started):
        return if_untold
    return now is not None and (started is None or now == started)


def _is_there(pid: int, if_ours: bool = True) -> bool:
    """Tell whether there is such a process, be it a zombie. if_ours: what to say of one to which we may send signals."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return if_ours


def _run_ps(arguments: List[str]) -> str:
    """Return what ps prints, or nothing where there is no ps."""
    import subprocess
    try:
        done = subprocess.run(["ps"] + arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.DEVNULL, timeout=10, env={"PATH": os.environ.get("PATH", "/bin:/usr/bin"),
                                                                          "LC_ALL": "C", "TZ": "UTC0"})
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.decode("utf-8", "replace")


def _ps_start_time(pid: int, ps: Callable[[List[str]], str]) -> Optional[str]:
    line = " ".join(ps(["-o", "state=,lstart=", "-p", str(pid)]).split())
    state, _, started = line.partition(" ")
    if not line and not ps(["-o", "pid=", "-p", str(os.getpid())]).strip():
        return UNTOLD if _is_there(pid) else None       # it does not even tell of us
    return started if started and not state.startswith("Z") else None


# --- who belongs to an attempt ---------------------------------------------------------------------------------------

def has_token(pid: int, token: str) -> bool:
    """Tell whether *pid* was started with a token that begins with *token* (Linux and macOS; other users' processes: False).

    Raises: OSError if the system cannot tell now.
    """
    return has_variable(pid, "%s=%s" % (TOKEN_VARIABLE, token))


def has_variable(pid: int, text: str) -> bool:
    """Tell whether a variable that *pid* was started with begins with *text*, "NAME=..." (Linux; macOS, but for programs of its
    own). Raises: OSError if the system cannot tell now."""
    return b"\0" + text.encode() in _variables(pid)


def _variables(pid: int) -> bytes:
    """Return the variables that *pid* was started with, a zero byte before each; b"" for a stranger. Raises: as has_variable()."""
    mac = _mac()
    if mac is not None:
        return mac.strings(pid)
    try:
        with open("/proc/%d/environ" % pid, "rb") as file:
            return b"\0" + file.read()
    except OSError as error:
        _no(error)
        return b""


def _is_of_another_root(pid: int, root: str) -> bool:
    """Tell whether a process works in another folder than *root*; one whose folder is gone may be of ours, which was moved. Raises: as
    has_variable()."""
    if not root:
        return False
    theirs = _variables(pid).partition(b"\0" + ROOT_VARIABLE.encode() + b"=")[2].partition(b"\0")[0]
    for seen_from in (b"/proc/%d/root" % pid, b"") if LINUX else (b"",):       # as it sees it: it may be in a container
        try:
            return bool(theirs) and not os.path.samestat(os.stat(seen_from + theirs), os.stat(root))
        except PermissionError:
            continue
        except OSError as error:
            return _no(error)
    return False


def _no(error: OSError) -> bool:
    """Take an error of a look at a process for "no": it is gone, or not ours. Raises: the error, if all that it says is that the means
    are missing. No other: with a stranger's process it might be there for ever."""
    if error.errno in SHORT:
        raise error
    return False


def holds_lock(pid: int, lock_path: str, lock_pid: int) -> bool:
    """Tell whether *pid* holds, by an inherited descriptor, the lock that *lock_pid* took on *lock_path* (Linux).

    A contender has the file open too, but holds nothing; a new owner holds a lock that it took itself: neither counts.
    Raises: OSError if the system cannot tell now.
    """
    try:
        guard = os.stat(lock_path)
        names = os.listdir("/proc/%d/fd" % pid) if pid != lock_pid else []
    except OSError as error:
        return _no(error)
    return any(_shows_lock(pid, name, os.path.basename(lock_path), guard, lock_pid) for name in names)


def _shows_lock(pid: int, name: str, lock_name: str, guard: os.stat_result, lock_pid: int) -> bool:
    """Tell it of one descriptor; one that is closed meanwhile says nothing about the others.

    By its name first, which the kernel knows: the file of a stranger may lie on a server that does not answer, and to look at it
    would wait for that.
    """
    try:
        if os.path.basename(os.readlink("/proc/%d/fd/%s" % (pid, name))) not in (lock_name, lock_name + " (deleted)"):
            return False
        there = os.stat("/proc/%d/fd/%s" % (pid, name))
        if (there.st_dev, there.st_ino) != (guard.st_dev, guard.st_ino):
            return False
        with open("/proc/%d/fdinfo/%s" % (pid, name), encoding="ascii") as file:
            return any(line.startswith("lock:") and "FLOCK" in line and str(lock_pid) in line.split() for line in file)
    except OSError as error:
        return _no(error)
    except ValueError:
        return False


def members(traits: Iterable[Traits], unsure: Optional[Set[int]] = None) -> List[int]:
    """Return the living processes that carry one of *traits*, and all their descendants; never this process itself.

    Those of which the system cannot tell now are put into *unsure*, and none else.
    """
    wanted = list(traits)
    doubts: Set[int] = set() if unsure is None else unsure
    doubts.clear()
    if WINDOWS:
        return []
    table = _process_table() if LINUX or _mac() is not None else {}
    if not table:
        return _ps_members(wanted, _run_ps)
    found = set()
    for pid, stat in table.items():
        told = _carries(pid, stat, wanted)
        if told is None:
            doubts.add(pid)
        elif told:
            found.add(pid)
    found = _with_descendants(found, table) - {os.getpid()}
    doubts -= found | {os.getpid()}
    return sorted(found)


def _told(look: Callable[[], Any]) -> Any:
    """Return what a look at all of them tells; while only the means for it are missing, look again. Raises: OSError."""
    deadline = 0.0
    while True:
        try:
            return look()
        except OSError as error:
            now = time.monotonic()
            deadline = deadline or now + SWEEP_LIMIT_S
            if error.errno not in SHORT or now > deadline:
                raise
        time.sleep(SWEEP_PAUSE_S)


def _process_table() -> Dict[int, Tuple[str, int, int, str]]:
    mac, table = _mac(), {}
    for pid in mac.pids() if mac is not None else _numbers():
        stat = read_stat(pid)
        if stat is not None and stat[0] not in "ZX":
            table[pid] = stat
    return table


def _numbers() -> List[int]:
    """Return the numbers of all processes (Linux); none where /proc is not mounted."""
    try:
        return [int(name) for name in _told(lambda: os.listdir("/proc")) if name.isdigit()]
    except FileNotFoundError:
        return []


def _tells_all() -> bool:
    """Tell whether the system lists all processes, with their parents: Linux, where /proc is mounted."""
    return LINUX and os.path.exists("/proc/self/stat")


def _carries(pid: int, stat: Tuple[str, int, int, str], wanted: Iterable[Traits]) -> Optional[bool]:
    """Tell whether a process carries one of these traits; None if the system cannot tell now."""
    is_untold = False
    for one in wanted:
        if one.session and stat[2] == one.session:
            return True
        is_untold = is_untold or bool(one.session) and stat == UNREAD
        try:
            if one.token and has_token(pid, one.token) and not _is_of_another_root(pid, one.root):
                return True
            if one.lock_path and holds_lock(pid, one.lock_path, one.lock_pid):
                return True
        except OSError:
            is_untold = True
    return None if is_untold else False


def _with_descendants(found: Set[int], table: Dict[int, Tuple[str, int, int, str]]) -> Set[int]:
    grown = True
    while grown:
        more = {pid for pid, stat in table.items() if stat[1] in found and pid not in found}
        found = found | more
        grown = bool(more)
    return found


def _ps_members(traits: List[Traits], ps: Callable[[List[str]], str]) -> List[int]:
    """Find them through ps: the group that a processor leads, and (-E, macOS) environments that show the token."""
    found = set()
    sessions = {one.session for one in traits if one.session}
    for line in ps(["-axo", "pid=,pgid=,state="]).splitlines():
        pid, group, state = (line.split() + ["", "", ""])[:3]
        if pid.isdigit() and group.isdigit() and int(group) in sessions and not state.startswith("Z"):
            found.add(int(pid))
    for line in ps(["-axEww", "-o", "pid=,command="]).splitlines():
        pid, _, command = line.strip().partition(" ")
        if pid.isdigit() and any("%s=%s" % (TOKEN_VARIABLE, one.token) in command for one in traits if one.token):
            found.add(int(pid))
    return sorted(found - {os.getpid()})


# --- ending them -----------------------------------------------------------------------------------------------------

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
        send(left, signal.SIGTERM if WINDOWS else signal.SIGKILL)
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
        asked = [pid for pid in asked if start_time(pid) is not None]


def _may_be_launcher(pid: int) -> bool:
    try:
        return has_variable(pid, LAUNCHER_VARIABLE + "=")
    except OSError:
        return True         # who is asked in vain is killed a moment later


def end_of_dead_owner(token: str, lock_path: str, lock_pid: int, root: str = "") -> List[int]:
    """End what a dead runner left behind; return the processes that would not go. root: as in Traits.

    Sessions are not asked: after the leader's death a session id may have been given to a stranger.
    """
    if WINDOWS:
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


def become_subreaper() -> bool:
    """Make orphaned descendants children of this process, so that none gets out of sight; False where that is not to be had.

    Source: prctl(2), PR_SET_CHILD_SUBREAPER (Linux 3.4).
    """
    if not LINUX:
        return False
    import ctypes
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        return bool(libc.prctl(PR_SET_CHILD_SUBREAPER, ctypes.c_ulong(1), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)) == 0)
    except (OSError, AttributeError):
        return False


def own_children() -> List[int]:
    """Return the pids of this process's children, zombies included (Linux).

    The kernel's list is used where it exists; it is complete for children that do not exit meanwhile, and a
    child that exits needs no ending. Raises: OSError if the system cannot tell for long.
    """
    try:
        found: List[int] = _told(_listed_children)
        return found
    except OSError as error:
        _no(error)
        me = os.getpid()
        stats = [(pid, read_stat(pid)) for pid in _numbers()]
        return [pid for pid, stat in stats if stat is not None and (_is_child(pid) if stat == UNREAD else stat[1] == me)]


def _listed_children() -> List[int]:
    children: List[int] = []
    for task in os.listdir("/proc/self/task"):
        with open("/proc/self/task/%s/children" % task, encoding="ascii") as file:
            children += [int(pid) for pid in file.read().split()]
    return children


def _is_child(pid: int) -> bool:
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except OSError:
        return False
    return True


class Tree:
    """The processes of one attempt, from the runner's side, while the runner lives.

    pid leads its own session (POSIX); others are pids of the runner's children that belong to somebody else; siblings()
    returns (pid, token) of the other attempts under way. leader_is_gone: pid has ended, and may be anybody's now.
    """

    def __init__(self, pid: int, token: str, job: Optional[Job] = None, others: Iterable[int] = (),
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
        if WINDOWS:
            return []
        if not LINUX:
            return members([self.traits])
        seen: Set[int] = set()
        self.unclear = []
        self.unsure.clear()
        while True:
            siblings = self.siblings()
            strays = {pid for pid in own_children() if pid not in self.others} - {pid for pid, _ in siblings}
            if not self.is_child and not self.leader_is_gone:
                strays.add(self.pid)
            if strays <= seen:
                return []               # all of them had ended before the last look, and left us nothing
            reap(pid for pid in strays if pid != self.pid)
            table = _process_table()
            roots = {pid for pid in strays if pid in table}
            if siblings:
                roots = self._ours(roots, table, siblings)
            found = _with_descendants(roots, table)
            if found:
                return sorted(found - {os.getpid()})
            # What ended between the two looks may have left us its children meanwhile: look again.
            seen |= strays

    def _ours(self, roots: Set[int], table: Dict[int, Tuple[str, int, int, str]], siblings: List[Tuple[int, str]]) -> Set[int]:
        """Return those of the orphans that carry a trait of ours, and note those that carry nobody's, or of which that cannot be
        told now."""
        theirs = [Traits(token, pid, "", 0) for pid, token in siblings]
        told = {pid: pid == self.pid or _carries(pid, table[pid], [self.traits]) for pid in roots}
        others = {pid: _carries(pid, table[pid], theirs) for pid, is_ours in told.items() if not is_ours}
        self.unclear = sorted(pid for pid, is_theirs in others.items() if is_theirs is False and told[pid] is False)
        self.unsure.clear()
        self.unsure.update(pid for pid, is_theirs in others.items() if not is_theirs and (is_theirs is None or told[pid] is None))
        return {pid for pid, is_ours in told.items() if is_ours}

    def ask_to_stop(self) -> None:
        """Send SIGTERM to every process of the attempt (Windows: CTRL_BREAK to its group)."""
        if WINDOWS:
            _ask_group(self.pid)
        else:
            send(self.living() or self._group(), signal.SIGTERM)

    def end(self) -> List[int]:
        """Kill every process of the attempt, daemonised grandchildren included; return those that would not go."""
        if self.job is not None:
            self.job.terminate()
            return []
        send(self._group(), signal.SIGKILL)
        left = end_all(self.living, not_reaped=self.pid, unsure=self.unsure)
        self.unclear = sorted({*self.unclear, *self.unsure})
        return [pid for pid in left if pid not in self.unsure]

    def _group(self) -> List[int]:
        """Return, for kill(2), the group that the processor leads, where the system may not tell of all. Until the leader is reaped
        it is ours."""
        return [] if WINDOWS or self.leader_is_gone or not self.is_child or _tells_all() else [-self.pid]


# --- the guardian ----------------------------------------------------------------------------------------------------

class Guardian:
    """A small process outside the runner's session that ends the runner's processors when the runner dies (POSIX).

    It waits at the end of a pipe of which only the runner holds the other end: the kernel closes that end with
    the runner, however it dies. Started before the runner becomes a subreaper, so that it is nobody's child.

    On Windows there is a job instead that holds the runner, and so whatever it starts: what was not yet in the job of its attempt
    when the runner was killed would else stay suspended for ever, with its files open.
    """

    def __init__(self) -> None:
        self.pipe = -1
        self.job: Optional[Job] = None

    def start(self) -> None:
        """Fork it (Windows: make the job)."""
        if WINDOWS:
            self.job = self.job or _job_of_this_process()
        if WINDOWS or self.pipe >= 0:
            return
        read_end, write_end = os.pipe()
        pid = os.fork()
        if pid == 0:            # in the child: leave the session, then leave the family
            try:
                os.setsid()
                if os.fork() == 0:
                    _be_guardian(read_end)
            finally:
                os._exit(0)
        os.close(read_end)
        os.waitpid(pid, 0)
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
        try:
            os.write(self.pipe, os.fsencode(line))
        except OSError:
            pass                # a guardian that was killed cannot be told; the next run's sweep remains


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
    if not _tells_all():
        send([-one.session for one in traits if one.session], signal.SIGKILL)
    end_members(traits)


def highest_descriptor() -> int:
    """Return a number that no open descriptor of this process is above, as far as it can be told."""
    if not LINUX and not MACOS:
        return max(256, int(os.sysconf("SC_OPEN_MAX")))
    # Not by the limit on macOS: that may be none, which is 2^63 - 1, and no number of a descriptor.
    try:
        return max([int(name) for name in os.listdir("/proc/self/fd" if LINUX else "/dev/fd") if name.isdigit()] + [256])
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


# --- macOS -----------------------------------------------------------------------------------------------------------
# From the headers libproc.h, sys/proc_info.h and sys/sysctl.h; it runs only there. Every call goes through `libc`, which tests
# replace. Not by ps: it is setuid, and the sandbox that closes the network (offline_guard) lets nobody start such programs
# (forbidden-exec-sugid).

PROC_ALL_PIDS = 1
PROC_PIDTBSDINFO = 3
BSD_INFO = struct.Struct("=12I16s32s5Ii2Q")     # struct proc_bsdinfo
BSD_STATUS, BSD_PARENT, BSD_GROUP, BSD_START = 1, 4, 15, 20
SZOMB = 5
CTL_KERN, KERN_PROCARGS2 = 1, 49
ARGUMENT_BYTES = 1 << 20    # of arguments and variables, at most (kern.argmax)


class Mac:
    """What macOS tells of processes: of those of this account. Raises: AttributeError where the C library has no such calls."""

    def __init__(self, libc: Any = None) -> None:
        import ctypes
        libc = libc or ctypes.CDLL(None, use_errno=True)
        self.list, self.info, self.sysctl = libc.proc_listpids, libc.proc_pidinfo, libc.sysctl
        self.buffer = ctypes.create_string_buffer(ARGUMENT_BYTES)

    def pids(self) -> List[int]:
        """Return the numbers of all processes."""
        size = self.list(PROC_ALL_PIDS, 0, self.buffer, ARGUMENT_BYTES)
        return [pid for pid, in struct.iter_unpack("=i", memoryview(self.buffer)[:max(0, size) // 4 * 4]) if pid > 0]

    def stat(self, pid: int) -> Optional[Tuple[str, int, int, str]]:
        """Return (state, parent, group, start) of a process, None for one that is gone or another account's."""
        import ctypes
        if self.info(pid, PROC_PIDTBSDINFO, ctypes.c_uint64(0), self.buffer, BSD_INFO.size) != BSD_INFO.size:
            return None
        told = BSD_INFO.unpack_from(self.buffer)
        return "Z" if told[BSD_STATUS] == SZOMB else "R", told[BSD_PARENT], told[BSD_GROUP], "%d.%06d" % told[BSD_START:]

    def strings(self, pid: int) -> bytes:
        """Return the arguments and variables that a process was started with, each after a zero byte. macOS keeps the variables
        of its own programs back."""
        import ctypes
        name, size = (ctypes.c_int * 3)(CTL_KERN, KERN_PROCARGS2, pid), ctypes.c_size_t(ARGUMENT_BYTES)
        if self.sysctl(name, ctypes.c_uint(3), self.buffer, ctypes.byref(size), None, ctypes.c_size_t(0)):
            return b""
        return memoryview(self.buffer)[:size.value].tobytes()


_MAC: List[Optional[Mac]] = []


def _mac() -> Optional[Mac]:
    """Return what asks macOS; None elsewhere, and where there are no such calls."""
    if not MACOS:
        return None
    if not _MAC:
        try:
            _MAC.append(Mac())
        except (AttributeError, ImportError, OSError):      # ImportError: a Python without ctypes
            _MAC.append(None)
    return _MAC[0]


# --- Windows ---------------------------------------------------------------------------------------------------------
# From the documentation of the Win32 API; it runs only there. Every call goes through `api`, which tests replace.

JOB_LIMIT_KILL_ON_CLOSE = 0x2000
JOB_LIMIT_PROCESS_MEMORY = 0x0100
JOB_ACCOUNTING = 1
JOB_EXTENDED_LIMITS = 9
TICKS_PER_S = 10_000_000    # of the system's times
PROCESS_QUERY_LIMITED = 0x1000
CREATE_SUSPENDED = 0x4
STILL_ACTIVE = 259
ACCESS_DENIED = 5
CTRL_BREAK = 1
JOBS_NEST_SINCE = (6, 2)    # Windows 8


def windows_api() -> Any:
    """Return kernel32 and ntdll with the signatures that this module uses."""
    import ctypes
    api = ctypes.WinDLL("kernel32", use_last_error=True)    # type: ignore[attr-defined]
    api.last_error = ctypes.get_last_error                  # type: ignore[attr-defined]
    api.CreateJobObjectW.restype = ctypes.c_void_p
    api.OpenProcess.restype = ctypes.c_void_p
    api.NtResumeProcess = ctypes.WinDLL("ntdll").NtResumeProcess    # type: ignore[attr-defined]
    return api


def _windows_start_time(pid: int, api: Any = None) -> Optional[str]:
    import ctypes
    api = api or windows_api()
    handle = api.OpenProcess(PROCESS_QUERY_LIMITED, False, pid)
    if not handle:
        return UNTOLD if api.last_error() == ACCESS_DENIED else None
    times = [ctypes.c_ulonglong() for _ in range(4)]
    code = ctypes.c_ulong()
    try:
        ok = api.GetProcessTimes(ctypes.c_void_p(handle), *[ctypes.byref(one) for one in times])
        api.GetExitCodeProcess(ctypes.c_void_p(handle), ctypes.byref(code))
    finally:
        api.CloseHandle(ctypes.c_void_p(handle))
    return str(times[0].value) if ok and code.value == STILL_ACTIVE else None


def _ask_group(pid: int) -> None:
    """Send CTRL_BREAK to the process group of *pid*; where that cannot be, as there is no console (a service), end the process.

    Not by os.kill(): where it cannot send CTRL_BREAK it leaves an exception behind though it returns, and CPython raises that
    later, anywhere (posixmodule.c, os_kill_impl).
    """
    if not windows_api().GenerateConsoleCtrlEvent(CTRL_BREAK, pid):
        send([pid], signal.SIGTERM)


def _job_of_this_process(api: Any = None) -> Optional[Job]:
    """Put this process into a job of which only it has a handle; None where the system refuses, or would then refuse the jobs of
    the attempts."""
    if sys.getwindowsversion()[:2] < JOBS_NEST_SINCE:       # type: ignore[attr-defined]
        return None
    try:
        job = Job(api)
    except OSError:
        return None
    if job.add(job.api.GetCurrentProcess()):
        return job
    job.close()
    return None


class Job:
    """A Windows Job Object whose processes end when its last handle closes, the runner's death included."""

    def __init__(self, api: Any = None, memory_bytes: int = 0) -> None:
        import ctypes
        self.api = api or windows_api()
        self.handle = ctypes.c_void_p(self.api.CreateJobObjectW(None, None))
        flags = JOB_LIMIT_KILL_ON_CLOSE | (JOB_LIMIT_PROCESS_MEMORY if memory_bytes else 0)
        limits = job_limits(flags, memory_bytes)
        if not self.handle or not self.api.SetInformationJobObject(
                self.handle, JOB_EXTENDED_LIMITS, ctypes.byref(limits), ctypes.sizeof(limits)):
            raise OSError("the system refuses a job object")

    def take(self, process_handle: int) -> None:
        """Put a process that was created suspended into the job, then let it run."""
        import ctypes
        if not self.add(process_handle):
            raise OSError("the system refuses to put the processor into its job object")
        self.api.NtResumeProcess(ctypes.c_void_p(process_handle))

    def add(self, process_handle: int) -> bool:
        """Put a process into the job, and with it whatever it starts from now on; return whether the system does so."""
        import ctypes
        return bool(self.api.AssignProcessToJobObject(self.handle, ctypes.c_void_p(process_handle)))

    def let_go(self) -> None:
        """Close the job without an end of its processes. Where the system refuses that, it stays open as long as this process
        lives."""
        import ctypes
        limits = job_limits(0, 0)
        if self.api.SetInformationJobObject(self.handle, JOB_EXTENDED_LIMITS, ctypes.byref(limits), ctypes.sizeof(limits)):
            self.close()

    def terminate(self) -> None:
        """End every process of the job."""
        self.api.TerminateJobObject(self.handle, 1)

    def usage(self) -> Tuple[float, int]:
        """Return (processor time in seconds, bytes of memory at the peak of its largest process) of all processes so far; zeros
        where the system does not tell."""
        import ctypes
        accounting, limits = job_accounting(), job_limits(0, 0)
        asked = [self.api.QueryInformationJobObject(self.handle, kind, ctypes.byref(into), ctypes.sizeof(into), None)
                 for kind, into in ((JOB_ACCOUNTING, accounting), (JOB_EXTENDED_LIMITS, limits))]
        cpu_s = (accounting.user + accounting.kernel) / TICKS_PER_S if asked[0] else 0.0
        return cpu_s, int(limits.peak_process) if asked[1] else 0

    def close(self) -> None:
        self.api.CloseHandle(self.handle)


def job_accounting() -> Any:
    """Return a JOBOBJECT_BASIC_ACCOUNTING_INFORMATION."""
    import ctypes

    class Accounting(ctypes.Structure):
        _fields_ = [("user", ctypes.c_int64), ("kernel", ctypes.c_int64), ("period_user", ctypes.c_int64), ("period_kernel", ctypes.c_int64),
                    ("faults", ctypes.c_uint32), ("processes", ctypes.c_uint32), ("active", ctypes.c_uint32), ("terminated", ctypes.c_uint32)]

    return Accounting()


def job_limits(flags: int, memory_bytes: int) -> Any:
    """Return a JOBOBJECT_EXTENDED_LIMIT_INFORMATION with *flags* and, when not 0, a memory limit per process."""
    import ctypes

    class Basic(ctypes.Structure):
        _fields_ = [("process_time", ctypes.c_int64), ("job_time", ctypes.c_int64), ("flags", ctypes.c_uint32),
                    ("least_set", ctypes.c_size_t), ("most_set", ctypes.c_size_t), ("most_processes", ctypes.c_uint32),
                    ("affinity", ctypes.c_size_t), ("priority", ctypes.c_uint32), ("scheduling", ctypes.c_uint32)]

    class Extended(ctypes.Structure):
        _fields_ = [("basic", Basic), ("io", ctypes.c_uint64 * 6), ("process_memory", ctypes.c_size_t),
                    ("job_memory", ctypes.c_size_t), ("peak_process", ctypes.c_size_t), ("peak_job", ctypes.c_size_t)]

    limits = Extended()
    limits.basic.flags = flags
    limits.process_memory = memory_bytes
    return limits
