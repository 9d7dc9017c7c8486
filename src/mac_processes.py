"""What macOS tells of processes, by calls of its C library.

A leaf, loaded on macOS only. From the headers libproc.h, sys/proc_info.h and sys/sysctl.h. Every call goes through `libc`, which tests
replace. Not by ps: it is setuid, and the sandbox that closes the network (offline_guard) lets nobody start such programs
(forbidden-exec-sugid).
"""
from __future__ import annotations

import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, List, Optional, Tuple

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
