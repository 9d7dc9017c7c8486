"""The values that flow through the runner, and the errors that stop it.

Under all other modules but primitives. The values are named tuples, not dataclasses: importing dataclasses shows in the time of a
run in which nothing changed. Records on disk are made from them at the edge only.
"""
from __future__ import annotations

import time
from collections import namedtuple

from primitives import sha256 as sha256

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Sequence, Tuple

VERSION = "0.1.0"           # of the runner
EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_INTERNAL, EXIT_LOCKED, EXIT_STATE, EXIT_OFFLINE, EXIT_STOPPED = range(8)
EXIT_INTERRUPTED = 130      # by Ctrl-C, as shells have it: 128 and the signal's number
SHOWN_NAMES = 5             # of many, on one line
FOR_WINDOWS = "name an .exe, .bat, .cmd, .py or .ps1 file, or the interpreter by its absolute path with the script as its first argument"
ALL_OF_LOG = "those of the task log"        # in place of the outputs that control totals refuse, where a record cannot list them


class Terminated(KeyboardInterrupt):
    """SIGTERM, or another signal that asks to stop, where nobody has taken it over yet: told as Ctrl-C is."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.exit_code = 128 + number


def shown_names(names: Sequence[str], between: str = ", ") -> str:
    """Return names as a text, of many the first few."""
    return between.join(names[:SHOWN_NAMES]) + (" and %d more" % (len(names) - SHOWN_NAMES) if len(names) > SHOWN_NAMES else "")


OPEN_ELSEWHERE = "another program (backup, virus scanner, editor) may have it open: close it and run again"
UNMOUNTED = "; what is mounted there does not answer any more: mount it again"
REMEDIES = {            # for errors of the system, by name: not every system has each
    "EBUSY": "; if it is mounted by itself, mount its folder instead; if another program has it open, close it",
    "ENOTEMPTY": "; " + OPEN_ELSEWHERE,     # on NFS and FUSE, what somebody has open is not removed before it is closed
    "EISDIR": "; a file belongs there: move the folder away",
    "ENOTDIR": "; a folder belongs there, not a file or a link that leads nowhere: mount what it leads to, or move it away",
    "EAGAIN": "; allow this user more processes (ulimit -u), or run with fewer --jobs",
    "ENOMEM": "; allow this user more memory (ulimit -v), or run with fewer --jobs",
    "EMFILE": "; allow this user more open files (ulimit -n), or run with fewer --jobs",
    "ENFILE": "; allow the system more open files, or run when less is going on",
    "EFBIG": "; allow this user larger files (ulimit -f)",
    "E2BIG": "; Linux takes 128 KiB in one argument or variable, `args`, `params` and `env` of the stage among them: put the rest into a file, and watch it",
    "EIO": "; the disk, or the machine that it is mounted from, fails: see the system's log",
    "ENOTCONN": UNMOUNTED, "ESTALE": UNMOUNTED, "EHOSTDOWN": UNMOUNTED,
    "ENOLCK": "; this file system has no locks: put the project on one that has, or this folder alone by a mount (mount --bind)",
    "ENAMETOOLONG": "; let the root or the names of stages and files be shorter",
    "ELOOP": "; it is a symbolic link, which is not followed here, or one that leads to itself: put the file that is meant in its place"}


def remedy_of(error: OSError) -> str:
    """Return what to do about an error of the system, to be put behind what it says; "" if that is plain or not known."""
    import errno
    # ERROR_SHARING_VIOLATION, ERROR_LOCK_VIOLATION: to Python, as if rights were missing.
    if getattr(error, "winerror", None) in (32, 33):
        return "; " + OPEN_ELSEWHERE
    name = errno.errorcode.get(error.errno or 0, "")
    return REMEDIES.get(name[3:] if name.startswith("WSA") else name, "")       # on Windows some have only this name


class RunnerError(Exception):
    """The runner cannot go on; str() is for the user, exit_code is the process's."""

    exit_code = EXIT_INTERNAL


class UsageError(RunnerError):
    exit_code = EXIT_USAGE


class SpecError(RunnerError):
    """The spec has problems: all of them, a line each, `file:line:column: place: what is wrong and what is right`."""

    exit_code = EXIT_USAGE


class OfflineError(RunnerError):
    exit_code = EXIT_OFFLINE


class Retry(namedtuple("Retry", "attempts base_delay_ms max_delay_ms jitter_ms exit_codes")):
    """How often and when to try again; exit_codes: the only codes worth it, or None for any."""

    __slots__ = ()


class Chunks(namedtuple("Chunks", "size_bytes keep is_filter header_lines")):
    """How the inputs of a stage are cut at line ends: bytes of a chunk, whether they stay, whether the processor is a filter."""

    __slots__ = ()


class StageSpec(namedtuple("StageSpec", (
        "name processor args inputs allow_no_inputs output_dir outputs params env pass_env watch needs idempotent "
        "processor_mtime checkpoint line_interval retry timeout_s grace_s lock_wait_s resources simulate_fail_attempts "
        "network_attempts for_each max_failed_tasks prune chunks launcher fork_server settle_s reconcile max_rejects"),
        defaults=((), 0, False, None, (), True, 0, False, None))):
    """One stage of the spec, defaults filled in; paths relative to the root; outputs and pass_env None if not given.

    for_each: globs, each file of which is a task; () for a stage that is one task. chunks: Chunks or None.
    launcher: words put before each processor. max_rejects: a number of records, a share as "1%", or None.
    """

    __slots__ = ()

    @property
    def room(self) -> Tuple[int, int]:
        """(cores, MB of memory) that an attempt takes up of this machine: of what a launcher starts, nothing but a place among --jobs."""
        return (1, 0) if self.launcher else (self.resources.get("cpuCores", 1), self.resources.get("memoryMB", 0))


class Offline(namedtuple("Offline", "allow require strict layers")):
    """What the spec asks of the offline guard: modules let through the scan, the layer that must be had, the layers wanted."""

    __slots__ = ()


class PipelineSpec(namedtuple("PipelineSpec", "name version description offline seal_key stages path root sha256 order on_failure on_success",
                              defaults=("listed", (), ()))):
    """A checked pipeline file; path and root absolute, sha256 of the file's bytes; seal_key: path of the key file, or "".

    order: "listed" or "graph". on_failure, on_success: commands to run after the run, () for none.
    """

    __slots__ = ()


class Decision(namedtuple("Decision", "action reasons line_offset discard")):
    """What to do with a stage, and why.

    action: RUN, SKIP, RESUME (at line_offset), FAIL (its inputs are not there, or its recorded counts are not accepted), PENDING
    (an earlier stage comes first), WAITING (inputs not settled), SEAL (a dead run left everything but the marker). discard: why
    an existing checkpoint is not used, or "".
    """

    __slots__ = ()


class Material(namedtuple("Material", "key parts inputs watched missing stamps input_bytes seen", defaults=(frozenset(),))):
    """What a stage would work on now: key and parts, files, what is missing, signatures to compare after the attempt; seen: on
    what else it depends which files there are."""

    __slots__ = ()


class Looked(namedtuple("Looked", "files seen modules stamps")):
    """What the decision to skip a stage was made of: its inputs and watched files, on what else it depends which these are, its
    processor's modules, {path: signature} of all that was read."""

    __slots__ = ()


class Checkpoint(namedtuple("Checkpoint", "line_offset outputs finals publishing complete problem resumable")):
    """A progress file as read: outputs maps paths to vouched bytes; problem: why it cannot be used, or "".

    resumable: there is no problem, and there is work to go on with.
    """

    __slots__ = ()


class Facts(namedtuple("Facts", "material record marker_key output_problems checkpoint sealable tasks", defaults=(None,))):
    """All that decide() looks at. marker_key: the key in the marker, None without one. checkpoint: None without one.

    tasks: task_look.Tasks of a stage of one task per file.
    """

    __slots__ = ()


STATUSES = ("ok", "skipped", "failed", "interrupted", "waiting", "notRun")


class StageResult(namedtuple("StageResult",
                             "name status reason attempts duration_s cpu_s max_rss_bytes bytes_in bytes_out counts key outputs exit_code evidence is_offline_fault")):
    """What a run did with a stage; status is one of STATUSES.

    evidence: further fields of its entry in the run record. is_offline_fault: it failed because it tried to use the network.
    """

    __slots__ = ()

    @classmethod
    def of(cls, name: str, status: str, reason: str, **known: Any) -> StageResult:
        """Return a result in which nothing was done but what is *known*."""
        empty = cls(name, status, reason, 0, 0.0, 0.0, 0, 0, 0, {}, "", [], None, {}, False)
        return empty._replace(**known)


class Options(namedtuple("Options", (
        "command operands pipeline root run_id force only first last params rehash verbose anchors key outputs format output "
        "reason forward jobs max_memory_mb keep_going stop_by stop_after_s quiet log_format open_lineage as_json run follow yes "
        "keep_runs keep_days kind last_runs"), defaults=((), None, False, "", None, None, False, None, None, False, None, None, False, "text", None,
                                               False, None, False, False, None, None, "lines", None))):
    """The command line, taken apart: force and only are sets of stage names, params {name: value} of --set.

    jobs, max_memory_mb, keep_runs, keep_days, last_runs: numbers or None. stop_by: "HH:MM" of the local clock, or None. format:
    "" for the command's own default. From anchors to forward, and from as_json on: what belongs to some commands only.
    """

    __slots__ = ()


class Clock:
    """Time as the engine sees it. Tests pass another one."""

    def __init__(self, signals: Any = None) -> None:
        self.signals = signals
        self.pool: Any = None       # of attempts that must be kept going meanwhile

    def monotonic(self) -> float:
        return time.monotonic()

    def time(self) -> float:
        return time.time()

    def wait(self, seconds: float) -> None:
        """Let a moment pass, to its end: whoever waits for a lock would else ask for it without a pause once a signal has
        come."""
        if self.pool is not None:
            self.pool.keep_going(seconds)
        else:
            time.sleep(seconds)
