"""Which inputs are still arriving: those that grow, or changed a moment ago by the clock of the file system that they are on.

A leaf. Nobody tells when a delivery is complete; what has not changed for "settleSec"
is taken as complete; on Windows only what nobody has open for writing, either. What a stage of the pipeline made is complete by its record, and is not waited for.
"""
from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, Iterable, List, Sequence, Tuple

    from model import StageSpec
    Json = Dict[str, Any]

SHOWN_NAMES = 3
GENERIC_READ = 0x80000000
SHARE_READ_OR_DELETE = 0x1 | 0x4
OPEN_EXISTING = 3
SHARING_VIOLATION = 32


def unsettled(root: str, paths: Sequence[str], settle_s: float, now_ns: Callable[[int], int]) -> List[Tuple[str, str]]:
    """Return (path, why) of the files that have not been left alone for *settle_s* seconds, in the order of *paths*.

    now_ns(device) tells what time it is by the clock that stamps files on a device. A time of modification that lies in the
    future says nothing (copied, or set by hand): then the time of the last change of the file's entry is asked, which nobody can
    set. A file that is not there any more is left to whoever reads it.
    """
    found = []
    clocks: Dict[int, int] = {}     # device -> its time, asked once
    for path in paths:
        full = os.path.join(root, path)
        try:
            stat = os.stat(full)
        except OSError:
            continue
        if stat.st_dev not in clocks:
            clocks[stat.st_dev] = now_ns(stat.st_dev)
        now = clocks[stat.st_dev]
        changed = stat.st_mtime_ns if stat.st_mtime_ns <= now else stat.st_ctime_ns
        age_s = (now - changed) / 1e9
        if age_s < 0:
            found.append((path, "%s has a time of change in the future (the clock was set back): touch it, or wait" % path))
        elif age_s < settle_s:
            found.append((path, "%s changed %d s ago" % (path, age_s)))
        elif settle_s > 0 and sys.platform == "win32" and is_being_written(full):
            found.append((path, "%s: another program is still writing it" % path))
    return found


def is_being_written(full: str, api: Any = None) -> bool:
    """Tell whether somebody has a file open for writing, or for himself alone, on Windows.

    There its modification time may stay what it was until all who write it have closed it (Microsoft, WriteFile). Whoever opens it and
    lets nobody write it meanwhile gets a sharing violation; any other error tells nothing of that.
    """
    import ctypes
    api = _windows_api() if api is None else api
    handle = api.CreateFileW(full, GENERIC_READ, SHARE_READ_OR_DELETE, None, OPEN_EXISTING, 0, None)
    if handle in (None, ctypes.c_void_p(-1).value):
        return bool(api.last_error() == SHARING_VIOLATION)
    api.CloseHandle(ctypes.c_void_p(handle))
    return False


def _windows_api() -> Any:
    import ctypes
    api = ctypes.WinDLL("kernel32", use_last_error=True)    # type: ignore[attr-defined]
    api.last_error = ctypes.get_last_error                  # type: ignore[attr-defined]
    api.CreateFileW.restype = ctypes.c_void_p
    return api


def still_arriving(root: str, stage: StageSpec, inputs: Sequence[str], makers: Iterable[Tuple[str, str, Json]],
                   now_ns: Callable[[int], int]) -> List[Tuple[str, str]]:
    """Return (path, why) of those of a stage's *inputs* that it has to wait for.

    makers: (stage, output folder, stage record) of the other stages: what they have recorded is as long as they wrote it.
    """
    made = {"%s/%s" % (folder, one["path"]): one["bytes"] for _, folder, record in makers if record.get("lastStatus") == "ok"
            for one in record["outputs"]}
    paths = [path for path in inputs if path not in made or _size_of(root, path) != made[path]]
    return unsettled(root, paths, stage.settle_s, now_ns)


def waiting_text(stage: StageSpec, found: Sequence[Tuple[str, str]]) -> str:
    """Return what is said of inputs that are still arriving."""
    more = len(found) - SHOWN_NAMES
    shown = "; ".join(why for _, why in found[:SHOWN_NAMES])
    return "inputs not settled: %s%s; settleSec %g" % (shown, "; and %d more" % more if more > 0 else "", stage.settle_s)


def _size_of(root: str, path: str) -> int:
    try:
        return os.path.getsize(os.path.join(root, path))
    except OSError:
        return -1
