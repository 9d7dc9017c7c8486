"""The log of a stage's tasks: an append-only line for each task that came to its end, each with a checksum.

A leaf; goes with ledger_verify to another machine.

    state/tasks_<stage>.jsonl     the last line of a task says what became of it

A line is written when the task is finished, whole or not at all for any reader; syncs are grouped, so a power cut may take
the end: what it left of it is cut off (`torn`), and the tasks are done again. Tasks that were superseded are dropped
when the log is written anew (compact()), which is done when they are the most.
"""
from __future__ import annotations

import json
import os
import sys
import zlib
from collections import namedtuple

from model import sha256
from primitives import is_there, leads_out, naming, open_descriptor, open_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, Iterable, List, Optional, Set, Tuple
    Json = Dict[str, Any]

SCHEMA_VERSION = 1
BATCH_LINES = 1000          # turned into entries at once: their JSON takes several times the room
MIN_DEAD_LINES = 1000       # a log is not written anew for fewer superseded lines
GOOD = ("ok", "kept")
# In a line without one of these no path leads out of its folder (elsewhere than on Windows): most are read at no cost.
SUSPECT = (b"..", b'["/', b"\\u00")
SUM = b',"sum":"%08x"}'
SUM_BYTES = len(SUM % 0)


class Entry(namedtuple("Entry", "task key status outputs counts bytes_in attempts duration_ms error run")):
    """What became of a task.

    status: ok; failed (outputs are then what an earlier version of it made); kept (ok, but its file is not there any more); gone
    (not there any more, and its outputs were removed). outputs: (path, bytes, SHA-256) each, paths relative to where the task's
    outputs go. run: "id/invocation".
    """

    __slots__ = ()


class Damaged(Exception):
    """A log holds what no crash leaves; str() says what."""


def log_name(stage: str) -> str:
    return "tasks_%s.jsonl" % stage


def log_folder_name(stage: str) -> str:
    """Return the name, in a call's folder of logs, of that for what the tasks of a stage printed: the stage's own, where that
    cannot be another call's folder (digits alone) or a file of another stage."""
    return stage + "~tasks" if stage.isdigit() or stage.endswith((".log", ".jsonl")) else stage


def line_of(entry: Entry) -> bytes:
    """Return an entry's line."""
    body = json.dumps(entry._asdict(), ensure_ascii=True, separators=(",", ":")).encode("ascii")[:-1]
    return body + SUM % zlib.crc32(body) + b"\n"


def header_of(stage: str) -> bytes:
    body = json.dumps({"schema": SCHEMA_VERSION, "stage": stage}, separators=(",", ":")).encode("ascii")[:-1]
    return body + SUM % zlib.crc32(body) + b"\n"


def is_whole(line: bytes) -> bool:
    """Tell whether a line, without its end, is as it was written."""
    body = line[:-SUM_BYTES]
    return len(line) > SUM_BYTES and line[-SUM_BYTES:] == SUM % zlib.crc32(body)


def read_log(lines: Iterable[bytes], stage: str) -> Tuple[Dict[str, Entry], int, int, bool]:
    """Return ({task: its last entry}, whole lines, bytes of these, whether lines between were lost to a power cut).

    lines: with their ends; the last may lack it. Raises: Damaged.
    """
    entries: Dict[str, Entry] = {}
    good: List[bytes] = []
    count, size, place, is_holed = 0, 0, 0, False
    for number, line in enumerate(lines, 1):
        place += len(line)
        if line.endswith(b"\n") and is_whole(line[:-1]):
            count += 1
            size = place
            if count == 1:
                _check_header(line[:-1], stage)
            else:
                good.append(line[:-1])
            if len(good) == BATCH_LINES:
                _add_entries(entries, good)
                good.clear()
        elif line.endswith(b"\n") and b"\0" not in line:
            raise Damaged("line %d is not as it was written" % number)
        else:
            is_holed = is_holed or line.endswith(b"\n")
    _add_entries(entries, good)
    return entries, count, size, is_holed


def _check_header(line: bytes, stage: str) -> None:
    if _parsed(line) != {"schema": SCHEMA_VERSION, "stage": stage, "sum": line[-10:-2].decode("ascii")}:
        raise Damaged("it begins with what this runner does not write: %s" % line[:80].decode("ascii", "replace"))


def _parsed(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):    # somebody has made a sum for it
        raise Damaged("a line is no JSON, though its sum fits") from None


def salvaged(path: str, stage: str) -> TaskLog:
    """Return a log with the entries of all lines of a damaged one that are as they were written."""
    log = TaskLog(os.path.dirname(path), stage)
    with open(path, "rb") as file:
        lines = [line[:-1] for line in file.read().splitlines(True) if line.endswith(b"\n") and is_whole(line[:-1])]
    for line in lines:
        if line.startswith(b'{"task":'):
            try:
                _add_entries(log.entries, [line])
            except Damaged:
                pass                        # whole, but of another form
    return log


def _add_entries(entries: Dict[str, Entry], lines: List[bytes]) -> None:
    same: Dict[str, str] = {}           # texts that thousands of entries have in common
    none: Json = {}                     # counts of those that counted nothing
    text = b"[" + b",".join(lines) + b"]"
    is_suspect = sys.platform == "win32" or any(sign in text for sign in SUSPECT)
    for one in _parsed(text):
        if "task" not in one:
            # The header once more, where logs were put together.
            raise Damaged("a line tells of no task: %s" % str(one)[:80])
        try:
            status, run = (same.setdefault(one[name], one[name]) for name in ("status", "run"))
            entries[one["task"]] = Entry(one["task"], one["key"], status, tuple(map(tuple, one["outputs"])), one["counts"] or none,
                                         one["bytes_in"], one["attempts"], one["duration_ms"], one["error"], run)
            is_foreign = is_suspect and any(leads_out(path) for path, _, _ in one["outputs"])
        except (KeyError, TypeError, ValueError, AttributeError):
            raise Damaged("a line is of another form: %s" % str(one)[:80]) from None
        if is_foreign:                  # who removes what a log lists must not be led elsewhere
            del entries[one["task"]]
            raise Damaged("a line names an output that does not lie in the output folder: %s" % str(one)[:80])


class TaskLog:
    """The log of one stage, under the stage's lock. entries: {task: its last Entry}."""

    def __init__(self, folder: str, stage: str) -> None:
        self.path = os.path.join(folder, log_name(stage))
        self.stage = stage
        self.entries: Dict[str, Entry] = {}
        self.lines = self.size = 0
        self.torn = 0               # bytes behind the last whole line
        self.is_holed = False
        self.descriptor = -1

    def load(self) -> None:
        """Read the log; nothing is written. Raises: Damaged, OSError."""
        try:
            with open_file(self.path) as file:
                self.entries, self.lines, self.size, self.is_holed = read_log(file, self.stage)
                self.torn = file.tell() - self.size
        except FileNotFoundError:
            return

    def open(self, write_atomic: Callable[[str, bytes], None]) -> None:
        """Make ready to append: what a crash left behind the last whole line goes. Raises: OSError."""
        if self.size == 0 or self.is_holed:
            self.compact(write_atomic)
        flags = os.O_WRONLY | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        self.descriptor = open_descriptor(self.path, flags)
        if self.torn:
            os.ftruncate(self.descriptor, self.size)
            self.torn = 0

    def append(self, entry: Entry) -> bytes:
        """Write an entry's line and return it; not synced. Raises: OSError; then the log is as it was, or torn."""
        line, written = line_of(entry), 0
        try:
            while written < len(line):      # after a part of it, only the next write tells what forbids the rest
                written += os.write(self.descriptor, line[written:])
        except OSError as error:
            if written:
                self._cut_back()
            raise OSError(error.errno, error.strerror, self.path) from error
        self.entries[entry.task] = entry
        self.size += len(line)
        self.lines += 1
        return line

    def _cut_back(self) -> None:
        """Take a torn line off; where that fails, too, the next open() does it."""
        try:
            os.ftruncate(self.descriptor, self.size)
        except OSError:
            pass

    def compact_if_due(self, write_atomic: Callable[[str, bytes], None]) -> None:
        """Write the log anew where most of its lines are superseded, or of tasks that are gone."""
        kept = sum(entry.status != "gone" for entry in self.entries.values())
        if self.lines - kept > MIN_DEAD_LINES + kept:
            self.compact(write_atomic)

    def compact(self, write_atomic: Callable[[str, bytes], None]) -> None:
        """Write the log anew, a line for each task but those that are gone."""
        self.close()
        kept = {task: entry for task, entry in self.entries.items() if entry.status != "gone"}
        data = header_of(self.stage) + b"".join(map(line_of, kept.values()))
        write_atomic(self.path, data)
        self.entries, self.lines, self.size, self.torn, self.is_holed = kept, 1 + len(kept), len(data), 0, False

    def close(self) -> None:
        if self.descriptor >= 0:
            descriptor, self.descriptor = self.descriptor, -1
            with naming(self.path):
                os.close(descriptor)    # what it says is not synced yet: a file server's late error counts


def output_digest(outputs: Iterable[Tuple[str, int, str]]) -> str:
    """Return one SHA-256 (hex) over (path, bytes, SHA-256) of outputs, whatever their order."""
    text = "\n".join(sorted("%s\0%d\0%s" % one for one in outputs))
    return sha256(b"outputs\0" + text.encode("utf-8")).hexdigest()


def sum_counts(all_counts: Iterable[Json]) -> Json:
    """Return the counts of tasks added up, name by name."""
    total: Json = {}
    for counts in all_counts:
        for name, count in counts.items():
            total[name] = total.get(name, 0) + count
    return total


def find_outputs(folder: str, stage: str) -> Optional[List[Tuple[str, int, str]]]:
    """Return what the log says a stage's tasks have made, None without a log. Raises: Damaged, OSError."""
    log = TaskLog(folder, stage)
    if not is_there(log.path):
        return None
    log.load()
    return outputs_of(log.entries)


def outputs_of(entries: Dict[str, Entry]) -> List[Tuple[str, int, str]]:
    """Return the outputs of all tasks that ended well."""
    return [output for entry in entries.values() if entry.status in GOOD for output in entry.outputs]


def listed(lines: Iterable[bytes], stage: str) -> Tuple[List[Tuple[str, int, str]], str]:
    """Return (what the lines of a log say that a stage's tasks have made, its digest). Raises: Damaged."""
    outputs = outputs_of(read_log(lines, stage)[0])
    try:
        if all([type(part) for part in one] == [str, int, str] for one in outputs):
            return outputs, output_digest(outputs)
    except UnicodeEncodeError:
        pass
    raise Damaged("a line is of another form: its outputs")


def strange_lines(lines: Iterable[bytes], sealed: Dict[str, str], is_accepted: Callable[[str], bool]) -> List[Tuple[str, str, bool]]:
    """Return [(task, run, whether the run has a sealed log)] of those *lines* of a log that no sealed one has.

    sealed: {run, as lines name it: the lines that it wrote, as a file which a record commits}. Left out are lines without a key,
    for their task is done anew, and lines that a crash has damaged or torn, for the runner believes none. A later run's line of what is
    kept of a file that is gone names the run that made it. The key may be another one for runs of which is_accepted() says so.
    Raises: Damaged, OSError.
    """
    known: Set[bytes] = set()
    for one in sealed.values():
        with open_file(one) as file:
            known.update(file.read().splitlines(True))
    others = [line for line in list(lines)[1:] if line not in known and line.endswith(b"\n") and is_whole(line[:-1])]
    strange = [_parsed(line) for line in others]
    for value in strange:
        if not isinstance(value, dict) or not isinstance(value.get("run"), str) or not isinstance(value.get("task"), str):
            raise Damaged("a line is of another form: %s" % str(value)[:80])
    written: Dict[Tuple[str, str], List[Json]] = {(value["task"], value["run"]): [] for value in strange}
    for value in map(_parsed, known if others else ()):
        if not isinstance(value, dict) or not isinstance(value.get("outputs"), list):
            raise Damaged("what a run wrote of it is of another form: %s" % str(value)[:80])
        same = written.get((str(value.get("task")), str(value.get("run"))))
        if same is not None:            # few, most often: all of a log of 100,000 tasks would take much room
            same.append(value)
    found = []
    for value in strange:
        same = written[value["task"], value["run"]]
        if value.get("key") != "" and not any(_is_of(one, value, is_accepted(value["run"])) for one in same):
            found.append((value["task"], value["run"], value["run"] in sealed))
    return found


def _is_of(written: Json, value: Json, is_accepted: bool) -> bool:
    """Tell whether a line says what was written, but for what later runs change in it: the key where another was accepted, and
    what is kept of a file that is gone."""
    differing = {name for name in value if name != "sum" and value[name] != written.get(name)}
    if value.get("status") == "kept" and written.get("status") in GOOD and all(one in written["outputs"] for one in value["outputs"]):
        differing -= {"status", "outputs"}
    return differing <= ({"key"} if is_accepted else set())
