"""One owner per stage, and per run id.

A leaf. A stage is held by a kernel lock on the permanent file locks/.<stage>.guard: a dead owner holds nothing, and no
age is ever guessed. The folder locks/<stage>.lock with owner.json is what people see; it is made and removed only under
the kernel lock. The guard file holds a nonce while the folder is ours, so that after a kill between the two steps our
folder is told from a stranger's, which is never removed. The processors inherit the lock's descriptor: while one
of them lives, the stage is held, whatever became of its runner.

`processes` is the leaf process_tree, handed in because leaves do not import each other; `clock` has monotonic(),
time() and wait(seconds).
"""
from __future__ import annotations

import errno
import os
import sys
import time

from primitives import (
    GUESSED_BOOT, HELD_BEGINS, close_quietly, folded, loads, naming, open_descriptor, open_file,
    patiently, pretty, remove_quietly, replace, rmtree, sha256, unlink, whose_text)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List, Optional, Sequence
    Json = Dict[str, Any]

LOCK_POLL_S = 0.02
CHANGE_S = 1.0              # how long a change of owners may take; waited for even by those who do not wait for an owner
LOCK_BYTE = 1 << 30         # Windows locks bytes, mandatorily: one far behind the guard file's content
HELD_BYTES = (errno.EACCES, 36, 0)  # how Windows says that they are another's; 36: its EDEADLOCK, 0: Wine, which gives no reason
SHARED = 0o2020             # of a folder's mode: its group may write into it, and gets what is made there
FOLDERS_NAME = ".folders"   # in locks/: the file whose bytes stand for output folders
FOLDER_BYTES = 64           # of each folder: so many runs may be at work below it at once
OWN_NAMES = ("owner.json", ".owner.json.tmp")   # in a lock folder
# What Finder and Explorer leave in a folder that somebody looks into, macOS on file systems of others, and NFS and FUSE for a file that is
# still open.
LITTER, LITTER_BEGINS = (".DS_Store", "Thumbs.db", "desktop.ini"), ("._", *HELD_BEGINS)
UNSHARED = "; it works by another path to this folder, which does not share locks: wait for it, then use one path"


class LockHeld(Exception):
    """Somebody else holds what is asked for; str() says who, and what to do."""

    exit_code = 4


class WaitStopped(Exception):
    """A signal asked the runner to stop while it waited for somebody else."""


def try_kernel_lock(descriptor: int) -> bool:
    """Take the exclusive lock of an open file without waiting. Raises: OSError where the file system has no locks."""
    if sys.platform == "win32":
        return _try_lock_on_windows(descriptor, LOCK_BYTE, 1)
    import fcntl
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


def try_lock_bytes(descriptor: int, first: int, count: int) -> bool:
    """Take the exclusive lock of bytes of an open file, which need not be there, without waiting. Raises: as try_kernel_lock().

    It is the process's own: no child inherits it, and on POSIX closing any descriptor of the file gives it up.
    """
    if sys.platform == "win32":
        return _try_lock_on_windows(descriptor, first, count)
    import fcntl
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, count, first)
    except (BlockingIOError, PermissionError):
        return False
    return True


def _try_lock_on_windows(descriptor: int, first: int, count: int) -> bool:
    import msvcrt
    os.lseek(descriptor, first, os.SEEK_SET)
    try:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, count)  # type: ignore[attr-defined]
    except OSError as error:
        if error.errno in HELD_BYTES:
            return False
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK)) from error      # a share of WSL, say: it has no such call
    return True


def unlock_bytes(descriptor: int, first: int, count: int) -> None:
    """Give up what try_lock_bytes() took."""
    if sys.platform == "win32":
        import msvcrt
        os.lseek(descriptor, first, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_UNLCK, count)
    else:
        import fcntl
        fcntl.lockf(descriptor, fcntl.LOCK_UN, count, first)


def guard_path(root: str, stage: str) -> str:
    """Return the path of the file by whose kernel lock a stage is held."""
    return os.path.join(root, "locks", "." + stage + ".guard")


def open_guard(path: str) -> int:
    """Open a guard file, creating it where it is missing; it is never removed. Raises: OSError.

    A new one that root makes is the folder owner's, who is to work with it afterwards; where the folder's group may write into that, it
    may open the file, too. Nobody else may: who may open it, may hold it.
    """
    flags = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    try:
        return open_descriptor(path, flags)
    except FileNotFoundError:
        pass
    folder = os.stat(os.path.dirname(path))
    try:
        # From birth, where the file gets the folder's group by itself (setgid): a kill may come before any chmod.
        descriptor = open_descriptor(path, flags | os.O_CREAT | os.O_EXCL, 0o660 if folder.st_mode & SHARED == SHARED else 0o600)
    except FileExistsError:
        return open_descriptor(path, flags)     # another one was quicker
    if sys.platform != "win32":
        try:
            _hand_over(descriptor, folder)
        except OSError:
            pass                        # a file system without owners, or one that is root's elsewhere: it stays ours
    return descriptor


def _hand_over(descriptor: int, folder: os.stat_result) -> None:
    """Give a new file to those to whom its folder belongs. Not one that was there: it may be a link to anything."""
    if os.geteuid() == 0:
        os.fchown(descriptor, folder.st_uid, folder.st_gid)
    if folder.st_mode & 0o020:
        if os.fstat(descriptor).st_gid != folder.st_gid:
            os.fchown(descriptor, -1, folder.st_gid)
        os.fchmod(descriptor, 0o660)    # whatever the umask


def read_owner(folder: str) -> Json:
    """Return what owner.json in a lock folder says, or {} when it says nothing that this runner writes."""
    return read_owner_file(os.path.join(folder, "owner.json"))


def read_owner_file(path: str) -> Json:
    """Return what a file says of an owner, or {} when it says nothing that this runner writes."""
    try:
        with open_file(path) as file:
            owner = loads(file.read(1 << 16).decode("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    ours = isinstance(owner, dict) and isinstance(owner.get("pid"), int) and all(
        isinstance(owner.get(key), str) and owner[key] for key in ("token", "bootId"))
    return owner if ours else {}


def owner_text(owner: Json) -> str:
    if not owner:
        return "an owner that has not said who it is"
    elsewhere = owner.get("host") == host_name() and not _is_from_here(owner)
    return "pid %s%s on %s (%s, since %s)" % (owner.get("pid"), " of another container or pid namespace" if elsewhere else "", owner.get("host"),
                                              owner.get("command") or "run %s" % owner.get("runId"), owner.get("since"))


def _is_from_here(owner: Json) -> bool:
    """Tell whether an owner's pid means here what it means to the owner: a container has its own, though it may share host name and folder.

    One that has not said where its pid comes from is taken to be of here, if its host is.
    """
    return owner.get("host") == host_name() and (not owner.get("pidNamespace") or owner["pidNamespace"] == pid_namespace())


def owner_is_dead(owner: Json, boot: str, processes: Any) -> bool:
    """Tell whether the owner that *owner* names is certainly gone; on another host, or in another container, nothing is certain."""
    if not owner or not _is_from_here(owner):
        return False
    if owner.get("bootId") != boot and not (boot.startswith(GUESSED_BOOT) and owner["bootId"].startswith(GUESSED_BOOT)):
        # Where boots are guessed, a process is started at a time of day, and by that alone it is told.
        return True
    return not processes.is_alive(owner["pid"], owner.get("processStart"))


def lives_here(owner: Json, boot: str, processes: Any) -> bool:
    """Tell whether the owner that *owner* names is certainly another process that lives on this machine, whoever has its lock.

    It works by another path to the folder that does not share locks, such as a second mount by a file system in user space.
    """
    return bool(owner and owner.get("processStart") and _is_from_here(owner) and owner["bootId"] == boot
                and owner["pid"] != os.getpid() and processes.is_alive(owner["pid"], owner["processStart"], if_untold=False))


def owner_now(token: str, run_id: str, boot: str, clock: Any, processes: Any) -> Json:
    """Return what this process says of itself as an owner."""
    return {"schema": 1, "pid": os.getpid(), "processStart": processes.start_time(os.getpid()), "host": host_name(),
            "pidNamespace": pid_namespace(), "bootId": boot, "runId": run_id, "token": token,
            "since": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(clock.time()))}


def was_left_by_another_host(root: str, stage: str, owner: Json) -> bool:
    """Tell whether an owner on another host, or in another container, is gone all the same: the guard file names its lock folder, and
    nobody holds it.

    Whoever takes the stage goes by that, too. The guard is locked, shared, for a moment; acquire() lets moments pass. On Windows:
    False.
    """
    if sys.platform == "win32" or _is_from_here(owner):
        return False
    import fcntl
    try:
        with open_file(guard_path(root, stage), 0) as file:
            fcntl.flock(file.fileno(), fcntl.LOCK_SH | fcntl.LOCK_NB)
            return bool(file.read(64).decode("ascii", "replace").strip() == owner.get("token"))
    except OSError:
        return False


def host_name() -> str:
    return os.uname().nodename if hasattr(os, "uname") else os.environ.get("COMPUTERNAME", "")


def pid_namespace() -> str:
    """Return what tells in which of the numberings of processes our pid is ours (Linux: each container has one), "" where there is but
    one, or nobody tells."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def new_token() -> str:
    return os.urandom(8).hex()


class StageLock:
    """The lock of one stage; descriptor is the guard file's, to be inherited by the stage's processors."""

    def __init__(self, root: str, stage: str, run_id: str, boot: str, clock: Any, processes: Any, is_run: bool = True) -> None:
        """*run_id*: of the run that wants it; where it is no run, the name of the command."""
        self.root, self.stage, self.run_id, self.boot, self.clock, self.processes = root, stage, run_id, boot, clock, processes
        self.is_run = is_run
        self.folder = os.path.join(root, "locks", stage + ".lock")
        self.guard = guard_path(root, stage)
        self.descriptor = -1
        self.token = ""
        self.since = 0.0

    def holder(self) -> Optional[Json]:
        """Return the living owner of the stage, None if nobody holds it; takes nothing."""
        if not os.path.isdir(self.folder):
            return None
        owner = read_owner(self.folder)
        is_gone = not owner or owner_is_dead(owner, self.boot, self.processes) or was_left_by_another_host(self.root, self.stage, owner)
        return None if is_gone else owner

    def is_free(self) -> bool:
        """Tell whether nobody holds the stage, without taking it; what a dead owner left of its lock folder is removed.

        False also where processes that it left do not end: who then takes the stage is told of them.
        """
        self.descriptor = open_guard(self.guard)
        try:
            if not try_kernel_lock(self.descriptor):
                return False
            self._folder_is_free("")        # a stranger's stays where it is: a skip is no business of its maker
            return True
        except LockHeld:
            return False
        finally:
            self.abandon()

    def acquire(self, wait_s: float, dead_token: str = "") -> None:
        """Take the stage, after the last process of a dead owner is gone.

        dead_token: of the attempt that the stage record calls running, if it does. On return the guard file is
        locked, locks/<stage>.lock/owner.json names us. Raises: LockHeld after wait_s seconds; WaitStopped; OSError.
        """
        self.since = self.clock.monotonic()
        deadline = self.since + wait_s
        self.descriptor = open_guard(self.guard)
        try:
            while not try_kernel_lock(self.descriptor):
                self._wait_for_owner(deadline)
            while not self._folder_is_free(dead_token):
                if self.clock.monotonic() >= deadline:
                    owner = read_owner(self.folder)
                    if lives_here(owner, self.boot, self.processes):
                        raise LockHeld("stage %s is held by %s" % (self.stage, owner_text(owner)) + UNSHARED)
                    raise LockHeld(_not_ours_text("stage %s: %s" % (self.stage, self.folder), owner, self.folder) or self._in_the_way_text(owner))
                self._wait()
            self._make_folder()
        except BaseException as error:
            self.abandon()
            if isinstance(error, OSError) and error.filename is None:
                raise OSError(error.errno, error.strerror, self.guard) from error
            raise

    def _wait_for_owner(self, deadline: float) -> None:
        """Wait a moment for the kernel lock; end what a dead owner left behind, for that is what holds it."""
        owner = read_owner(self.folder)
        dead = owner_is_dead(owner, self.boot, self.processes)
        if dead and owner.get("bootId") == self.boot:
            self.processes.end_of_dead_owner(owner.get("token", ""), self.guard, owner["pid"], self.root)
        # Whoever has not said who it is has taken the lock a moment ago, or looks whether it is free; the dead leave it.
        patience = CHANGE_S if dead or not owner else 0.0
        if self.clock.monotonic() >= max(deadline, self.since + patience):
            raise LockHeld("stage %s is held by %s%s" % (self.stage, owner_text(owner), ", dead, whose processes would not end" if dead else ""))
        self._wait()

    def _wait(self) -> None:
        self.clock.wait(LOCK_POLL_S)
        signals = getattr(self.clock, "signals", None)
        if signals is not None and signals.number:
            raise WaitStopped("stopped while waiting for the lock of stage %s" % self.stage)

    def _folder_is_free(self, dead_token: str) -> bool:
        """Under the kernel lock: tell whether the folder is gone, removing what a dead owner left of its own."""
        nonce = self._read_nonce()
        if dead_token and not os.path.isdir(self.folder):
            self._end_left_behind(dead_token, 0)
        if not os.path.lexists(self.folder):
            return True
        owner = read_owner(self.folder)
        if lives_here(owner, self.boot, self.processes):
            return False
        if not self._is_ours(owner, nonce):
            return False
        self._end_left_behind(owner.get("token", nonce), owner.get("pid", 0))
        if dead_token:
            self._end_left_behind(dead_token, 0)
        return self._remove_folder() or self._holds_litter_only()

    def _is_ours(self, owner: Json, nonce: str) -> bool:
        """Tell whether the lock folder, of which nobody has the kernel lock, was made by this runner."""
        if owner:
            return owner.get("token") == nonce or owner_is_dead(owner, self.boot, self.processes)
        names = {name for name in _names_in(self.folder) if not _is_litter(name)}
        return names.issubset(OWN_NAMES) and (bool(nonce) or bool(names)
                                              and all(_is_blank(os.path.join(self.folder, name)) for name in names))

    def _holds_litter_only(self) -> bool:
        """Tell whether nothing keeps the folder from being removed but what nobody has put there: then it is used as it is."""
        names = _names_in(self.folder)
        return bool(names) and all(map(_is_litter, names)) and not os.path.islink(self.folder)

    def _in_the_way_text(self, owner: Json) -> str:
        """Return why the lock folder that is in our way is not removed, and what to do."""
        folder = "stage %s: the folder locks/%s.lock" % (self.stage, self.stage)
        if self._is_ours(owner, self._read_nonce()) and all(name in OWN_NAMES or _is_litter(name) for name in _names_in(self.folder)):
            from model import OPEN_ELSEWHERE
            return "%s of a run that is over cannot be removed; %s" % (folder, OPEN_ELSEWHERE)
        return "%s was made by something else than this runner; if nothing uses it, remove it with: unlock %s" % (folder, self.stage)

    def _end_left_behind(self, token: str, pid: int) -> None:
        left = self.processes.end_of_dead_owner(token, self.guard if pid else "", pid, self.root)
        if left:
            raise LockHeld("stage %s: processes of a dead run would not end: %s; end them, then run again" % (self.stage, left))

    def _make_folder(self) -> None:
        self.token = new_token()
        self._write_nonce(self.token)
        try:
            os.mkdir(self.folder)
        except FileExistsError:
            if not self._holds_litter_only():
                raise
        owner = owner_now(self.token, self.run_id, self.boot, self.clock, self.processes)
        if not self.is_run:
            owner["command"] = self.run_id          # earlier runners know nothing but runId
        # Not synced: it means nothing after a restart of the machine, which ends every process that it tells of.
        path = os.path.join(self.folder, "owner.json")
        temporary = os.path.join(self.folder, ".owner.json.tmp")
        with open(temporary, "xb") as file:
            file.write(pretty(owner).encode("utf-8", "backslashreplace") + b"\n")
        replace(temporary, path)

    def _remove_folder(self) -> bool:
        for name in OWN_NAMES:
            remove_quietly(os.path.join(self.folder, name))
        is_gone = _is_removed(self.folder)
        if not is_gone:
            for name in filter(_is_litter, _names_in(self.folder)):
                remove_quietly(os.path.join(self.folder, name))
            is_gone = _is_removed(self.folder)
        if is_gone:                     # else somebody put a file into it: theirs, not ours to remove
            self._write_nonce("")
        return is_gone

    def release(self) -> None:
        """Give the stage back: folder gone, then the kernel lock, by closing only.

        Never LOCK_UN: it would free the lock also for a processor that still holds the descriptor.
        """
        if self.descriptor < 0:
            return
        try:
            self._remove_folder()
        except OSError as error:
            raise OSError(error.errno, error.strerror, self.guard) from error
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Close without removing the folder, as where processes of the stage still live and hold the lock with us."""
        # The number first: another file may get it at once, whatever closing says. That fails where a mount has died; then the first
        # error is what counts.
        descriptor, self.descriptor = self.descriptor, -1
        close_quietly(descriptor)

    def _read_nonce(self) -> str:
        os.lseek(self.descriptor, 0, os.SEEK_SET)
        return os.read(self.descriptor, 64).decode("ascii", "replace").strip()

    def _write_nonce(self, nonce: str) -> None:
        os.lseek(self.descriptor, 0, os.SEEK_SET)
        if nonce:
            # The size first: unlike data it is journalled in order with the folder's name (but on btrfs, see _is_blank()), so
            # that after a power cut there may be zeros instead of the nonce, but never a folder of ours without either.
            os.ftruncate(self.descriptor, len(nonce))
            os.write(self.descriptor, nonce.encode("ascii"))
        else:
            os.ftruncate(self.descriptor, 0)


def _not_ours_text(what: str, owner: Json, folder: str) -> str:
    """Return who left a lock folder that another account keeps us from removing, and what to do, "" where that is not so."""
    whose = whose_text(folder)
    return "%s was left by %s, and %s" % (what, owner_text(owner), whose) if whose else ""


def _is_removed(folder: str) -> bool:
    """Remove a folder if it is empty; tell whether it is gone."""
    try:
        patiently(lambda: os.rmdir(folder))
    except FileNotFoundError:
        pass
    except OSError:
        return False
    return True


def _is_litter(name: str) -> bool:
    """Tell whether nobody has put a file of that name anywhere: who looks into a folder leaves it there (Finder, Explorer), or a file server does."""
    return name in LITTER or name.startswith(LITTER_BEGINS)


def _is_blank(path: str) -> bool:
    """Tell whether a file has no content but zeros, as only a power cut leaves one of ours: btrfs can bring its name to the disk,
    and the guard's, without theirs."""
    try:
        with open_file(path) as file:
            return not file.read(1 << 16).strip(b"\0")
    except OSError:
        return False


def _names_in(folder: str) -> List[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return ["?"]


class FileLock:
    """A kernel lock on locks/.<name>, for what has no folder to be seen: a run id, the head of the chain of runs."""

    def __init__(self, root: str, name: str, clock: Any) -> None:
        self.path = os.path.join(root, "locks", "." + name)
        self.clock = clock
        self.descriptor = -1

    def try_acquire(self) -> bool:
        """Tell whether it is ours now. Raises: OSError, where the file system has no locks, too."""
        self.descriptor = open_guard(self.path)
        is_ours = False
        try:
            is_ours = try_kernel_lock(self.descriptor)
        except OSError as error:
            raise OSError(error.errno, error.strerror, self.path) from error
        finally:
            if not is_ours:
                self.release()
        return is_ours

    def acquire(self, wait_s: float, message: str) -> None:
        """Raises: LockHeld with *message* after wait_s seconds; OSError.

        Where others only look whether somebody lives, it is theirs for moments: wait_s is then CHANGE_S.
        """
        deadline = self.clock.monotonic() + wait_s
        while not self.try_acquire():
            if self.clock.monotonic() >= deadline:
                raise LockHeld(message)
            self.clock.wait(LOCK_POLL_S)

    def tell_owner(self, owner: Json) -> None:
        """Write into the file, which is ours, who we are; it stays there, and means nothing once we are dead. Raises: OSError."""
        try:
            os.ftruncate(self.descriptor, 0)
            os.lseek(self.descriptor, 0, os.SEEK_SET)
            os.write(self.descriptor, pretty(owner).encode("utf-8", "backslashreplace"))
        except OSError as error:
            raise OSError(error.errno, error.strerror, self.path) from error

    def release(self) -> None:
        if self.descriptor >= 0:
            descriptor, self.descriptor = self.descriptor, -1
            close_quietly(descriptor)


class FolderLocks:
    """Which output folders one run is at work in, for the runs of all pipelines below the root.

    Bytes of one file are locked, so that no folder needs a file: all FOLDER_BYTES of the folder itself, one of each folder around
    it. So nobody else is at work in it, around it or below it, while others work beside it.
    """

    def __init__(self, root: str) -> None:
        self.path = os.path.join(root, "locks", FOLDERS_NAME)
        self.descriptor = -1
        # Folder around ours: [the byte of it that we hold, in how many of our folders' names it is].
        self.around: Dict[str, List[int]] = {}

    def try_acquire(self, folder: str) -> bool:
        """Tell whether *folder* (relative to the root, forward slashes) is ours now; it must not be yet. Raises: OSError, where
        the file system has no locks, too."""
        try:
            return self._try_acquire(folder)
        except OSError as error:
            raise OSError(error.errno, error.strerror, self.path) from error

    def _try_acquire(self, folder: str) -> bool:
        if self.descriptor < 0:
            self.descriptor = open_guard(self.path)
        taken: List[str] = []
        for outer in _folders_around(folder):
            if not self._enter(outer):
                break
            taken.append(outer)
        else:
            if try_lock_bytes(self.descriptor, _first_byte(folder), FOLDER_BYTES):
                return True
        self._leave(taken)
        return False

    def release(self, folder: str) -> None:
        """Give *folder* up. After close() it has been: by then, stages that an error has cut short are still let go of."""
        if self.descriptor >= 0:
            with naming(self.path):
                unlock_bytes(self.descriptor, _first_byte(folder), FOLDER_BYTES)
                self._leave(_folders_around(folder))

    def close(self) -> None:
        """Give all up."""
        if self.descriptor >= 0:
            descriptor, self.descriptor = self.descriptor, -1
            close_quietly(descriptor)
            self.around.clear()

    def _enter(self, outer: str) -> bool:
        if outer not in self.around:
            first = _first_byte(outer)
            byte = next((byte for byte in range(first, first + FOLDER_BYTES) if try_lock_bytes(self.descriptor, byte, 1)), -1)
            if byte < 0:
                return False
            self.around[outer] = [byte, 0]
        self.around[outer][1] += 1
        return True

    def _leave(self, folders: Sequence[str]) -> None:
        for outer in folders:
            self.around[outer][1] -= 1
            if not self.around[outer][1]:
                unlock_bytes(self.descriptor, self.around.pop(outer)[0], 1)


def _folders_around(folder: str) -> List[str]:
    parts = folder.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts))]


def _first_byte(folder: str) -> int:
    """Return where the bytes of a folder begin, below 2 GiB, as Windows wants; two folders at work at once hardly ever share
    them, and would only wait."""
    return int(sha256(folded(folder).encode("utf-8", "surrogateescape")).hexdigest()[:6], 16) * FOLDER_BYTES


def unlock(root: str, stage: str, boot: str, clock: Any, processes: Any) -> str:
    """Remove the lock folder of *stage*, whoever made it; return what was done. Raises: LockHeld while it is held."""
    lock = StageLock(root, stage, "", boot, clock, processes)
    try:
        os.lstat(lock.folder)
    except FileNotFoundError:
        return "stage %s is not locked" % stage
    lock.descriptor = open_guard(lock.guard)
    try:
        is_held = not try_kernel_lock(lock.descriptor)
        owner = read_owner(lock.folder)
        if is_held and owner_is_dead(owner, boot, processes) and owner["bootId"] == boot:
            raise LockHeld("stage %s: its owner, %s, is dead, but something that it started still works and holds the lock; the next run "
                           "ends that, and takes the stage" % (stage, owner_text(owner)))
        if is_held or lives_here(owner, boot, processes):
            raise LockHeld("stage %s is held by %s; a lock in use is not removed" % (stage, owner_text(owner)))
        if os.path.islink(lock.folder) or not os.path.isdir(lock.folder):
            unlink(lock.folder)
        else:
            try:
                rmtree(lock.folder)
            except PermissionError as error:
                told = OSError(error.errno, error.strerror, lock.folder)    # which names the last name on the way only
                told.remedy = _not_ours_text("; it", owner, lock.folder)    # type: ignore[attr-defined]
                raise told from error
        lock._write_nonce("")
        return "removed locks/%s.lock%s" % (stage, ", left by " + owner_text(owner) if owner else "")
    finally:
        lock.abandon()
