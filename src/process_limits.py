"""Limits of a processor: the cores that it may use, its memory, its priority. A leaf."""
from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List, Sequence


def unenforced(resources: Dict[str, int], platform: str = sys.platform) -> List[str]:
    """Return the resource keys that this system cannot enforce."""
    able = {"linux": {"cpuCores", "memoryMB", "nice", "minFreeDiskMB"}, "win32": {"memoryMB", "minFreeDiskMB"}}
    return sorted(set(resources) - able.get("linux" if platform.startswith("linux") else platform, {"nice", "minFreeDiskMB"}))


def pick_cores(allowed: Sequence[int], in_use: Sequence[int], count: int, start: int) -> List[int]:
    """Return *count* of the allowed processor cores, or all if there are fewer: those first that are in use least often.

    start: any number; of cores that are in use equally often it says with which to begin, so that two runners of one
    machine do not all begin with the first.
    """
    first = start % len(allowed)
    return sorted((*allowed[first:], *allowed[:first]), key=in_use.count)[:count]


def apply_resources(pid: int, resources: Dict[str, int], cores: Sequence[int] = ()) -> List[str]:
    """Limit a process that has just been started, and what it will start, cpuCores to those *cores*; return what could not be
    done.

    Done from outside, right after the start: a preexec_fn would make every start slower and may deadlock.
    """
    notes = ["resources.%s cannot be enforced on %s" % (name, sys.platform) for name in unenforced(resources)]
    values: Dict[str, Any] = dict(resources, cpuCores=cores)
    for name, act in (("nice", _set_nice), ("memoryMB", _set_memory), ("cpuCores", _set_cores)):
        if name in resources and name not in unenforced(resources) and sys.platform != "win32":
            try:
                act(pid, values[name])
            except ProcessLookupError:
                pass                    # it has ended already
            except (OSError, ValueError, OverflowError) as error:
                notes.append("resources.%s could not be set: %s" % (name, error))
    return notes


def _set_nice(pid: int, value: int) -> None:
    os.setpriority(os.PRIO_PROCESS, pid, value)


def _set_memory(pid: int, value: int) -> None:
    import resource
    hard = resource.prlimit(pid, resource.RLIMIT_AS)[1]
    resource.prlimit(pid, resource.RLIMIT_AS, (value << 20, hard))


def _set_cores(pid: int, cores: Sequence[int]) -> None:
    os.sched_setaffinity(pid, cores)
