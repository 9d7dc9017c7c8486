"""How far a running stage is, from what its processor and its tasks have written so far.

A leaf; only reads, and believes nothing: whatever is not what it should be is as good as absent.
"""
from __future__ import annotations

import json
import os
from collections import namedtuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, Optional, Tuple
    Json = Dict[str, Any]

PROGRESS_BYTES = 8 << 20    # a progress file larger than this is not read for its numbers


class Progress(namedtuple("Progress", "done_bytes total_bytes lines is_complete counts")):
    """What a progress file says; done_bytes and total_bytes are None where it does not."""

    __slots__ = ()


def read_progress(path: str) -> Optional[Progress]:
    """Return what the progress file at *path* says, None if there is none that can be read."""
    try:
        with open(path, "rb") as file:
            found = json.loads(file.read(PROGRESS_BYTES).decode("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return progress_of(found)


def progress_of(found: Any) -> Optional[Progress]:
    """Return the numbers of a progress record.

    `bytesDone` counts over all inputs; `byteOffset` is of one input, and says as much only while that is the first.
    """
    if not isinstance(found, dict):
        return None
    total, done = _number(found, "bytesTotal"), _number(found, "bytesDone")
    if done is None and _number(found, "inputIndex") in (None, 0):
        done = _number(found, "byteOffset")
    if total is not None and done is not None:
        done = min(done, total)
    counts = found.get("counts")
    return Progress(done, total, _number(found, "lineOffset"), found.get("complete") is True, counts if isinstance(counts, dict) else {})


def _number(found: Json, name: str) -> Optional[int]:
    value = found.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def percent(done: Optional[int], total: Optional[int]) -> Optional[int]:
    """Return whole percent, never 100 before all is done; None where that is not known."""
    if not total or done is None:
        return None
    return min(100, done * 100 // total)


def seconds_left(done: Optional[float], total: Optional[float], rate: Optional[float], elapsed_s: float, expected_s: Optional[float]) -> Optional[float]:
    """Return how long it may still take: by the rate (per second), else by how long it took before; None if nobody knows."""
    if done is not None and total and rate:
        return max(0.0, (total - done) / rate)
    if expected_s is not None and elapsed_s < expected_s:
        return expected_s - elapsed_s
    return None


def task_outcomes(path: str) -> Dict[str, str]:
    """Return {task: its last status} as the task log at *path* tells; what cannot be read is left out."""
    found: Dict[str, str] = {}
    try:
        with open(path, "rb") as file:
            for line in file:
                task, status = _task_of(line)
                if status:
                    found[task] = status
    except OSError:
        pass
    return found


def _task_of(line: bytes) -> Tuple[str, str]:
    try:
        entry = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return "", ""                   # torn by a crash, or being written right now
    if not isinstance(entry, dict):
        return "", ""
    task = next((entry[name] for name in ("number", "task", "index") if isinstance(entry.get(name), (int, str))), "")
    status = entry.get("status")
    return str(task), status if isinstance(status, str) else ""


def task_counts(record: Optional[Json], log_path: str, is_running: bool) -> Optional[Dict[str, int]]:
    """Return {"done", "failed", "total"} of a stage of several tasks, None for a stage that is one; total 0: not known yet."""
    tasks = record.get("tasks") if record is not None else None
    numbers = {name: value for name, value in tasks.items() if isinstance(value, int)} if isinstance(tasks, dict) else {}
    if is_running and os.path.exists(log_path):
        statuses = list(task_outcomes(log_path).values())
        done = sum(1 for one in statuses if one in ("ok", "skipped"))
        failed = sum(1 for one in statuses if one == "failed")
        return {"done": done, "failed": failed, "total": max(numbers.get("total", 0), 0)} if statuses or numbers else None
    if not numbers.get("total"):
        return None
    return {"done": numbers.get("ok", 0) + numbers.get("skipped", 0), "failed": numbers.get("failed", 0), "total": numbers["total"]}
