"""What Windows has for the processes of an attempt: Job Objects, CTRL_BREAK, and when a process was started.

A leaf, loaded on Windows only. From the documentation of the Win32 API. Every call goes through `api`, which tests replace.
"""
from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, List, Optional, Tuple

JOB_LIMIT_KILL_ON_CLOSE = 0x2000
JOB_LIMIT_PROCESS_MEMORY = 0x0100
JOB_ACCOUNTING = 1
JOB_PROCESS_IDS = 3
JOB_EXTENDED_LIMITS = 9
TICKS_PER_S = 10_000_000    # of the system's times
PROCESS_QUERY_LIMITED = 0x1000
CREATE_SUSPENDED = 0x4
STILL_ACTIVE = 259
ACCESS_DENIED = 5
MORE_DATA = 234             # the answer has not room for all, and holds what it has room for
MOST_PIDS = 1000
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


def start_time(pid: int) -> Optional[str]:
    """Return when a process was created, in ticks; None when there is none of that pid. Raises: PermissionError for another account's."""
    import ctypes
    api = windows_api()
    handle = api.OpenProcess(PROCESS_QUERY_LIMITED, False, pid)
    if not handle:
        if api.last_error() == ACCESS_DENIED:
            raise PermissionError("process %d is another account's" % pid)
        return None
    times = [ctypes.c_ulonglong() for _ in range(4)]
    code = ctypes.c_ulong()
    try:
        ok = api.GetProcessTimes(ctypes.c_void_p(handle), *[ctypes.byref(one) for one in times])
        api.GetExitCodeProcess(ctypes.c_void_p(handle), ctypes.byref(code))
    finally:
        api.CloseHandle(ctypes.c_void_p(handle))
    return str(times[0].value) if ok and code.value == STILL_ACTIVE else None


def ask_group(pid: int) -> bool:
    """Send CTRL_BREAK to the process group of *pid*; return whether that could be: a service has no console.

    Not by os.kill(): where it cannot send CTRL_BREAK it leaves an exception behind though it returns, and CPython raises that
    later, anywhere (posixmodule.c, os_kill_impl).
    """
    return bool(windows_api().GenerateConsoleCtrlEvent(CTRL_BREAK, pid))


def job_of_this_process(api: Any = None) -> Optional[Job]:
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
            if self.handle:
                self.close()
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
        """Begin the end of every process of the job: one that has a write under way, say, lives until that is done."""
        self.api.TerminateJobObject(self.handle, 1)

    def pids(self) -> List[int]:
        """Return the processes of the job that have not ended, or many of very many; none where the system does not tell."""
        import ctypes
        found = job_process_ids(MOST_PIDS)
        is_told = self.api.QueryInformationJobObject(self.handle, JOB_PROCESS_IDS, ctypes.byref(found), ctypes.sizeof(found), None)
        return list(found.pids[:min(found.listed, MOST_PIDS)]) if is_told or self.api.last_error() == MORE_DATA else []

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


def job_process_ids(count: int) -> Any:
    """Return a JOBOBJECT_BASIC_PROCESS_ID_LIST with room for *count* processes."""
    import ctypes

    class ProcessIds(ctypes.Structure):
        _fields_ = [("assigned", ctypes.c_uint32), ("listed", ctypes.c_uint32), ("pids", ctypes.c_size_t * count)]

    return ProcessIds()


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
