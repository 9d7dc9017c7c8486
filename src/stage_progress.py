"""How far a running stage is, from what its processor and its tasks have written so far.

A leaf; only reads, and believes nothing: whatever is not what it should be is as good as absent.
"""
from __future__ import annotations

import json
from collections import namedtuple

from primitives import is_integer, open_file

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
        with open_file(path) as file:
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
    value: Any = found.get(name)
    return value if is_integer(value) and value >= 0 else None


def percent(done: Optional[int], total: Optional[int]) -> Optional[int]:
    """Return whole percent, never 100 before all is done; None where that is not known."""
    if not total or done is None:
        return None
    return min(100, done * 100 // total)


def seconds_left(done: Optional[float], total: Optional[float], rate: Optional[float], elapsed_s: float,
                 expected_s: Optional[float]) -> Optional[float]:
    """Return how long it may still take: by the rate (per second), else by how long it took before; None if nobody knows."""
    if done is not None and total and rate:
        return max(0.0, (total - done) / rate)
    if expected_s is not None and elapsed_s < expected_s:
        return expected_s - elapsed_s
    return None


def task_outcomes(path: str, run: str = "") -> Dict[str, str]:
    """Return {task: its last status} as the task log at *path* tells, with *run* ("id/invocation") only what that run has
    entered.

    What cannot be read is left out: a line torn by a crash, or being written right now.
    """
    mark = b'"run":%s' % json.dumps(run).encode("ascii")
    found: Dict[str, str] = {}
    try:
        with open(path, "rb") as file:
            for line in file:
                if run and mark not in line:
                    continue            # most lines, where a stage has many tasks: not worth parsing
                task, status = _task_of(line, run)
                if status:
                    found[task] = status
    except OSError:
        pass
    return found


def _task_of(line: bytes, run: str) -> Tuple[str, str]:
    try:
        entry = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return "", ""
    if not isinstance(entry, dict) or not isinstance(entry.get("task"), str) or not isinstance(entry.get("status"), str):
        return "", ""
    return (entry["task"], entry["status"]) if not run or entry.get("run") == run else ("", "")


def task_counts(record: Optional[Json], log_path: str, is_running: bool) -> Optional[Dict[str, int]]:
    """Return {"done", "failed", "total"} of a stage of several tasks, None for a stage that is one.

    While it is running, and after its runner died, its task log says what has come to its end since the record was written; total
    0: not known yet (chunks).
    """
    tasks = record.get("tasks") if record is not None else None
    if record is None or not isinstance(tasks, dict) or not (is_running or _number(tasks, "total")):
        return None
    done = (_number(tasks, "ok") or 0) + (_number(tasks, "skipped") or 0)
    failed = _number(tasks, "failed") or 0
    if is_running or record.get("lastStatus") == "running":
        statuses = list(task_outcomes(log_path, "%s/%s" % (record.get("lastRunId"), record.get("lastInvocation"))).values())
        done, failed = done + statuses.count("ok"), failed + statuses.count("failed")
    return {"done": done, "failed": failed, "total": _number(tasks, "total") or 0}
