"""The lease of a launched attempt: by it the machines that share the root know whether the attempt may run, and does.

Above the leaves and below the runner; the same file runs where the task does.

    state/launch/STAGE~TOKEN.N.lease    a line of JSON, made before the launcher starts. Whoever runs the task holds the kernel lock
                                        on it until its last process is gone; no file, no task. A line more says that the task has
                                        begun, or asks it to stop: a launcher that starts it again starts nothing.
    state/launch/STAGE~TOKEN.N.here     locked by who watches the launcher, until the launcher's last process is gone

A launcher may die and leave its task running, or waiting in the queue of a cluster: then only the lease tells. Who
starts the stage anew, or another that writes there, first takes every such lease and removes it: what still runs is waited for,
what was still to come finds no lease and does not start. This holds where locks reach across the machines, see docs/cluster.md.
"""
from __future__ import annotations

import errno
import json
import os
import time

import stage_locks
from primitives import open_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Container, Dict, List, Optional
    Json = Dict[str, Any]

SCHEMA = 1
FOLDER = os.path.join("state", "launch")
MAX_BYTES = 4 << 20         # of a lease: the command, its variables
STOP = b"stop\n"
BEGUN = b"begun\n"
PATIENCE_S = 30.0           # how long the next run waits for tasks of a dead one that have been asked to stop
POLL_S = 0.05


class LeaseProblem(Exception):
    """A task may not start; str() says why."""


def lease_path(root: str, stage: str, token: str) -> str:
    """Return the path of an attempt's lease; no stage has a ~ in its name."""
    return os.path.join(root, FOLDER, "%s~%s.lease" % (stage, token))


def here_path(lease: str) -> str:
    return lease[:-len("lease")] + "here"


def create(path: str, plan: Json) -> None:
    """Write a new lease with what the task must know. Raises: OSError."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    line = json.dumps(dict(plan, schema=SCHEMA), ensure_ascii=True).encode("ascii") + b"\n"
    if len(line) > MAX_BYTES - len(BEGUN):
        raise OSError(errno.E2BIG, "the command and its variables take more than %d bytes" % MAX_BYTES, path)
    for name, data in ((here_path(path), b""), (path, line)):
        descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), 0o600)
        with open(descriptor, "wb") as file:
            file.write(data)


class Held:
    """A lease in the hands of who runs the task; descriptor is to be inherited by its processes."""

    def __init__(self, path: str) -> None:
        """Raises: LeaseProblem when the task may not start here and now."""
        try:
            self.descriptor = os.open(path, os.O_RDWR | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0))
        except FileNotFoundError:
            raise LeaseProblem("the run that asked for this task is over") from None
        except OSError as error:
            raise LeaseProblem("cannot open %s: %s" % (path, error.strerror)) from None
        try:
            try:
                is_ours = stage_locks.try_kernel_lock(self.descriptor)
            except OSError as error:
                raise LeaseProblem("the file system of %s has no locks here: %s" % (os.path.dirname(path), error.strerror)) from None
            if not is_ours:
                raise LeaseProblem("the task runs already, or is being taken back")
            if not _is_same_file(self.descriptor, path):
                raise LeaseProblem("the run that asked for this task is over")
            head, _, rest = os.read(self.descriptor, MAX_BYTES).partition(b"\n")
            self.plan: Json = _plan(head, path)
            if rest:
                raise LeaseProblem("it has been started before: a launcher may start it once" if BEGUN in rest
                                   else "it was asked to stop before it started")
            self._begin(path)
            self.begun_bytes = len(head) + 1 + len(BEGUN)
        except BaseException:
            os.close(self.descriptor)
            raise

    def _begin(self, path: str) -> None:
        """Say for good, before anything is started, that the task has begun: its machine may crash, and the task be queued
        again."""
        try:
            os.write(self.descriptor, BEGUN)
            os.fsync(self.descriptor)
        except OSError as error:
            raise LeaseProblem("cannot write to %s: %s" % (path, error.strerror)) from None

    def is_stop_asked(self) -> bool:
        """Tell whether somebody wants the task to stop."""
        try:
            return os.fstat(self.descriptor).st_size > self.begun_bytes
        except OSError:
            return False                # a hiccup of the file system is no order


def _is_same_file(descriptor: int, path: str) -> bool:
    try:
        there, ours = os.stat(path), os.fstat(descriptor)
    except OSError:
        return False
    return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)


def _plan(head: bytes, path: str) -> Json:
    try:
        plan = json.loads(head.decode("ascii"))
    except ValueError:
        plan = None
    if not isinstance(plan, dict) or plan.get("schema") != SCHEMA:
        raise LeaseProblem("%s is not a lease that this program knows; all machines must use the same src/" % path)
    return plan


def ask_to_stop(path: str) -> bool:
    """Ask who runs the task to stop, or not to start; False where that cannot be asked: the lease is gone, the disk is full."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0))
        try:
            return os.fstat(descriptor).st_size > MAX_BYTES or os.write(descriptor, STOP) > 0
        finally:
            os.close(descriptor)        # a file server may tell only now
    except OSError:
        return False


def has_begun(path: str) -> bool:
    """Tell whether somebody has begun with the task, as far as its lease is there and tells."""
    try:
        with open_file(path) as file:
            return BEGUN in file.read(2 * MAX_BYTES).partition(b"\n")[2]
    except OSError:
        return False


def is_held(path: str) -> bool:
    """Tell whether somebody holds the file's lock; one that is not there is held by nobody. Raises: OSError."""
    descriptor = _try_lock(path)
    if descriptor is not None and descriptor >= 0:
        os.close(descriptor)
    return descriptor is None


def take_back(path: str, wait_s: float) -> bool:
    """End the lease: afterwards no process of its task runs, and none will. False if one would not go within *wait_s* seconds."""
    deadline = time.monotonic() + wait_s
    is_asked = False
    while True:
        descriptor = _try_lock(path)
        if descriptor is not None:
            break
        if not is_asked:
            is_asked = ask_to_stop(path)
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL_S)
    if descriptor >= 0:
        try:
            os.unlink(path)             # under its lock: who opened it meanwhile sees that it is gone
        finally:
            os.close(descriptor)
    return True


def is_left(path: str, wait_s: float) -> bool:
    """As take_back(), the other way round; what cannot be looked at may still run."""
    try:
        return not take_back(path, wait_s)
    except OSError:
        return True


def _try_lock(path: str) -> Optional[int]:
    """Return a descriptor that holds the lock, -1 if there is no such file, None if somebody else holds it."""
    try:
        descriptor = os.open(path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
    except FileNotFoundError:
        return -1
    if stage_locks.try_kernel_lock(descriptor):
        return descriptor
    os.close(descriptor)
    return None


def end_left_behind(root: str, stage: str, folder: str, known: Container[str], beside: Container[str] = ()) -> List[str]:
    """Ask what launched attempts of dead runs left on any machine to stop; return the leases of what still runs.

    Under the locks of the stage and its output folder. Taken back are the stage's own leases; those of others that write in,
    around or below *folder*, where by its lock no other run is at work; and those of stages that are not in *known*, the spec's,
    unless a run is at work on them. beside: the other stages at work in this run. Raises: OSError, for the stage's own.
    """
    left: List[str] = []
    at_work: Dict[str, bool] = {}
    for path in _leases(root):          # before a stage's lock is looked at: a run that takes it now makes new ones
        name = os.path.basename(path).partition("~")[0]
        if name in beside:
            continue
        if name != stage and not _writes_near(path, folder):
            if name not in at_work:
                at_work[name] = name in known or _is_at_work(root, name)
            if at_work[name]:
                continue
        try:
            if not (take_back(here_path(path), 0) and take_back(path, 0)):
                left.append(path)
        except OSError:
            if name == stage:
                raise                   # another's may be another user's, which it is for that user to take back
    return left


def _leases(root: str) -> List[str]:
    folder = os.path.join(root, FOLDER)
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    stems = {name.rpartition(".")[0] for name in names if "~" in name and name.endswith((".lease", ".here"))}
    return [os.path.join(folder, stem + ".lease") for stem in sorted(stems)]


def _is_at_work(root: str, stage: str) -> bool:
    """Tell whether a run holds the stage, of whatever pipeline, or that cannot be known."""
    try:
        return is_held(stage_locks.guard_path(root, stage))
    except OSError:
        return True


def _writes_near(path: str, folder: str) -> bool:
    """Tell whether a lease's attempt writes in, around or below *folder* (relative to the root); one that cannot be read starts
    nothing."""
    try:
        with open_file(path) as file:
            plan = json.loads(file.readline(MAX_BYTES).decode("ascii"))
        there = os.path.relpath(plan["environment"]["PIPELINE_OUTPUT_DIR"], plan["root"]).replace(os.sep, "/")
    except (OSError, ValueError, KeyError, TypeError):
        return False
    one, other = there.casefold() + "/", folder.casefold() + "/"        # on some systems, names that differ in case are the same
    return one.startswith(other) or other.startswith(one)


def still_runs(stage: str, leases: List[str]) -> stage_locks.LockHeld:
    """Return the error of a stage that cannot be started because of *leases*."""
    return stage_locks.LockHeld("stage %s: a task that a dead run launched still runs (%s); it was asked to stop; end it with the "
                                "means of your cluster, then run again" % (stage, os.path.basename(leases[0])))
