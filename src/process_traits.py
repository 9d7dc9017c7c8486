"""The processes of an attempt: by what they are known, and which carry it.

Above process_table. An attempt can be known by three traits, each inherited by whatever its processor starts:

    token     PIPELINE_ATTEMPT_TOKEN in the environment
    session   the processor leads a session of its own
    lock      the descriptor on which the stage's kernel lock is held

A process that sheds all three is still a child of the runner while that lives (process_tree).
"""
from __future__ import annotations

import os
from collections import namedtuple

import process_table

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Dict, Iterable, List, Optional, Set, Tuple

TOKEN_VARIABLE = "PIPELINE_ATTEMPT_TOKEN"
ROOT_VARIABLE = "PIPELINE_ROOT"


class Traits(namedtuple("Traits", "token session lock_path lock_pid root", defaults=("",))):
    """What marks an attempt's processes: token prefix, session id (0: unknown), guard file, pid that took its lock.

    root: the folder that the token is of, where it was read in a record: a copy of the folder has the same records. "": any.
    """

    __slots__ = ()


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
    mac = process_table.asked_mac()
    if mac is not None:
        return mac.strings(pid)
    try:
        with open("/proc/%d/environ" % pid, "rb") as file:
            return b"\0" + file.read()
    except OSError as error:
        process_table.taken_for_no(error)
        return b""


def _is_of_another_root(pid: int, root: str) -> bool:
    """Tell whether a process works in another folder than *root*; one whose folder is gone may be of ours, which was moved. Raises: as
    has_variable()."""
    if not root:
        return False
    theirs = _variables(pid).partition(b"\0" + ROOT_VARIABLE.encode() + b"=")[2].partition(b"\0")[0]
    for seen_from in (b"/proc/%d/root" % pid, b"") if process_table.LINUX else (b"",):       # as it sees it: it may be in a container
        try:
            return bool(theirs) and not os.path.samestat(os.stat(seen_from + theirs), os.stat(root))
        except PermissionError:
            continue
        except OSError as error:
            return process_table.taken_for_no(error)
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
        return process_table.taken_for_no(error)
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
        return process_table.taken_for_no(error)
    except ValueError:
        return False


def members(traits: Iterable[Traits], unsure: Optional[Set[int]] = None) -> List[int]:
    """Return the living processes that carry one of *traits*, and all their descendants; never this process itself.

    Those of which the system cannot tell now are put into *unsure*, and none else.
    """
    wanted = list(traits)
    doubts: Set[int] = set() if unsure is None else unsure
    doubts.clear()
    if process_table.WINDOWS:
        return []
    table = process_table.table() if process_table.LINUX or process_table.asked_mac() is not None else {}
    if not table:
        return _ps_members(wanted, process_table.run_ps)
    found = set()
    for pid, stat in table.items():
        told = carries(pid, stat, wanted)
        if told is None:
            doubts.add(pid)
        elif told:
            found.add(pid)
    found = with_descendants(found, table) - {os.getpid()}
    doubts -= found | {os.getpid()}
    return sorted(found)


def carries(pid: int, stat: Tuple[str, int, int, str], wanted: Iterable[Traits]) -> Optional[bool]:
    """Tell whether a process carries one of these traits; None if the system cannot tell now."""
    is_untold = False
    for one in wanted:
        if one.session and stat[2] == one.session:
            return True
        is_untold = is_untold or bool(one.session) and stat == process_table.UNREAD
        try:
            if one.token and has_token(pid, one.token) and not _is_of_another_root(pid, one.root):
                return True
            if one.lock_path and holds_lock(pid, one.lock_path, one.lock_pid):
                return True
        except OSError:
            is_untold = True
    return None if is_untold else False


def with_descendants(found: Set[int], table: Dict[int, Tuple[str, int, int, str]]) -> Set[int]:
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
