"""What a launched task tells of the machine that it ran on: whether the network was closed there, who tried to use it, what it cost.

A leaf; the same file writes there and reads here. The report lies beside the attempt's log. Each refused call is added at once;
when the last process of the task is gone, the whole is written anew in one step, so that no processor has the last word.
A report without that last step is read for its refusals, and proves nothing else. It is read like any hostile input.
"""
from __future__ import annotations

import json
import os
from collections import namedtuple

from primitives import read_hostile, remove_quietly, replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, Optional
    Json = Dict[str, Any]

MAX_BYTES = 1 << 20
MAX_REFUSALS = 100          # different ones; the rest is one entry
MAX_TEXT = 1000
OTHERS = ("(others)", "further kinds", False)
REFUSAL = {"program": str, "pid": int, "kind": str, "counted": bool, "count": int}
END = {"token": str, "host": str, "kernel": dict, "why": str, "isUnclosed": bool, "cpuUs": int, "maxRssBytes": int, "exitCode": int, "stoppedBy": int,
       "refusals": list}


class Told(namedtuple("Told", "is_whole token host kernel why is_unclosed cpu_s max_rss_bytes refusals exit_code stopped_by",
                      defaults=(False, "", "", {}, "", False, 0.0, 0, (), 0, 0))):
    """A report as read.

    is_whole: the task's last process was gone when it was written. token: of the attempt. kernel: as in run records. why: why the
    task was not started, "" if it was; is_unclosed: because the network could not be closed. refusals: dicts with program, pid,
    kind, counted, count. exit_code: the processor's, 128+n for a signal; 0 if it was not started. stopped_by: the signal with
    which somebody else than the runner asked it to stop, 0 if nobody did.
    """

    __slots__ = ()


class NodeReport:
    """A report that is being written. A report that cannot be written is a report that is missing: whoever reads it draws the
    conclusion, and whoever writes it says why."""

    def __init__(self, path: str, token: str) -> None:
        self.path, self.token = path, token
        self.refusals: Dict[Any, Json] = {}

    def add(self, program: str, pid: int, kind: str, counted: bool) -> bool:
        """Note a refused call; tell whether it is the first of its kind."""
        key = (program[:MAX_TEXT], kind, counted)
        if key not in self.refusals and len(self.refusals) >= MAX_REFUSALS:
            key = OTHERS
        known = self.refusals.setdefault(key, {"program": key[0], "pid": pid, "kind": key[1], "counted": counted, "count": 0})
        known["counted"] = known["counted"] or counted
        known["count"] += 1
        if known["count"] == 1:
            self._append(known)
        return bool(known["count"] == 1)

    def end(self, host: str, kernel: Json, why: str = "", cpu_us: int = 0, max_rss_bytes: int = 0, is_unclosed: bool = False, exit_code: int = 0,
            stopped_by: int = 0) -> str:
        """Write the whole report in the place of what was added; return why it could not be written, or ""."""
        temporary = self.path + ".tmp"
        value = {"token": self.token, "host": host, "kernel": kernel, "why": why, "isUnclosed": is_unclosed, "cpuUs": cpu_us, "maxRssBytes": max_rss_bytes,
                 "exitCode": exit_code, "stoppedBy": stopped_by, "refusals": list(self.refusals.values())}
        try:
            if os.path.lexists(temporary):
                os.unlink(temporary)
            _write(temporary, os.O_EXCL, {"end": value})
            replace(temporary, self.path)
        except OSError as error:
            remove_quietly(temporary)
            return "cannot write the report %s: %s" % (self.path, error.strerror or error)
        return ""

    def _append(self, value: Json) -> None:
        try:
            _write(self.path, os.O_APPEND, value)
        except OSError:
            pass                        # at the end the whole is written, or it is said why not


def _write(path: str, flags: int, value: Json) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | flags | getattr(os, "O_NOFOLLOW", 0), 0o600)
    with open(descriptor, "wb") as file:
        file.write(json.dumps(value, ensure_ascii=True).encode("ascii") + b"\n")
        file.flush()
        os.fsync(descriptor)            # another machine reads it


def read(path: str) -> Told:
    """Return what the report at *path* tells; nothing, not whole, where there is none that can be read."""
    values = [_value(line) for line in read_hostile(path, MAX_BYTES).split(b"\n")]
    end = values[0].get("end") if values[0] is not None and len(values) == 2 and not values[1] else None
    if end is None:
        return Told(refusals=tuple(one for one in values if _has(one, REFUSAL)))
    if not _has(end, END) or not all(_has(one, REFUSAL) for one in end["refusals"]) or not isinstance(end["kernel"].get("method"), str):
        return Told()
    return Told(True, end["token"], end["host"], end["kernel"], end["why"], end["isUnclosed"], end["cpuUs"] / 1e6, end["maxRssBytes"],
                tuple(end["refusals"]), end["exitCode"], end["stoppedBy"])


def _has(value: Any, form: Dict[str, Any]) -> bool:
    return isinstance(value, dict) and all(type(value.get(name)) is kind for name, kind in form.items())


def _value(line: bytes) -> Optional[Json]:
    try:
        value = json.loads(line.decode("ascii"))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
