"""What the system tells of processes: which there are, whether one lives and since when, whose child it is.

Above mac_processes and windows_jobs. Linux reads /proc, macOS has calls of its own, Windows too; elsewhere ps is asked. What a system cannot
tell is not guessed.
"""
from __future__ import annotations

import errno
import os
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, List, Optional, Tuple

    import mac_processes

LINUX = sys.platform.startswith("linux")
MACOS = sys.platform == "darwin"
WINDOWS = sys.platform == "win32"
UNTOLD = "untold"
LOOKS_S = 10.0                  # how long the system is asked again that has not the means to tell
LOOK_PAUSE_S = 0.005
# What else may not be there: the means to look. It says nothing of the process, so it is looked at again.
SHORT = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM))
GONE = frozenset((errno.ENOENT, errno.ESRCH, errno.EACCES, errno.EPERM))    # or not ours
UNREAD = ("?", 0, 0, UNTOLD)    # of a process of which nothing more can be read now

_MAC: List[Optional[mac_processes.Mac]] = []


def read_stat(pid: int) -> Optional[Tuple[str, int, int, str]]:
    """Return (state, parent, session, start time in ticks since boot) of *pid* from /proc, None when it is gone, UNREAD if the
    system cannot tell now.

    On macOS the group stands for the session, and the time is of the day.
    """
    mac = asked_mac()
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
    if LINUX or asked_mac() is not None:
        stat = read_stat(pid)
        if stat is None and _is_there(pid, if_ours=False):
            return UNTOLD
        return None if stat is None or stat[0] in "ZX" else stat[3]
    if WINDOWS:
        import windows_jobs
        try:
            return windows_jobs.start_time(pid)
        except PermissionError:
            return UNTOLD
    return _ps_start_time(pid, run_ps)


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


def run_ps(arguments: List[str]) -> str:
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


def _told(look: Callable[[], Any]) -> Any:
    """Return what a look at all of them tells; while only the means for it are missing, look again. Raises: OSError."""
    deadline = 0.0
    while True:
        try:
            return look()
        except OSError as error:
            now = time.monotonic()
            deadline = deadline or now + LOOKS_S
            if error.errno not in SHORT or now > deadline:
                raise
        time.sleep(LOOK_PAUSE_S)


def table() -> Dict[int, Tuple[str, int, int, str]]:
    mac, table = asked_mac(), {}
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


def tells_all() -> bool:
    """Tell whether the system lists all processes, with their parents: Linux, where /proc is mounted."""
    return LINUX and os.path.exists("/proc/self/stat")


def own_children() -> List[int]:
    """Return the pids of this process's children, zombies included (Linux).

    The kernel's list is used where it exists; it is complete for children that do not exit meanwhile, and a
    child that exits needs no ending. Raises: OSError if the system cannot tell for long.
    """
    try:
        found: List[int] = _told(_listed_children)
        return found
    except OSError as error:
        taken_for_no(error)
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


def taken_for_no(error: OSError) -> bool:
    """Take an error of a look at a process for "no": it is gone, or not ours. Raises: the error, if all that it says is that the means
    are missing. No other: with a stranger's process it might be there for ever."""
    if error.errno in SHORT:
        raise error
    return False


def asked_mac() -> Optional[mac_processes.Mac]:
    """Return what asks macOS; None elsewhere, and where there are no such calls."""
    if not MACOS:
        return None
    if not _MAC:
        try:
            import mac_processes
            _MAC.append(mac_processes.Mac())
        except (AttributeError, ImportError, OSError):      # ImportError: a Python without ctypes
            _MAC.append(None)
    return _MAC[0]
