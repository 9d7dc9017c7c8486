"""The logs of a stage's processors: which there are, and following them while they grow.

Above the leaves and run_history. Only reads.

    state/logs/<run>/<stage>.<attempt>.log                  a stage that is one task
    state/logs/<run>/<stage>/<number>.<attempt>.log         a task of several, if it printed something; for a stage whose name is a
                                                            number, or ends in .log or .jsonl, in <stage>~tasks/ (not in runs by
                                                            earlier versions)
    state/logs/<run>/<stage>.tasks.jsonl                    what became of the run's tasks
    state/logs/<run>/<n>/...                                the same of the n-th call under that run id

Which task a number is, the run record says: there the log has its task's name.
"""
from __future__ import annotations

import os
from collections import namedtuple

import run_history
import stage_progress
import task_log
from console import printable
from model import UsageError
from primitives import open_file
from spec_values import NAME_CHARACTERS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple
    Json = Dict[str, Any]

READ_BYTES = 1 << 16
LINE_BYTES = 1 << 16        # a longer line is shown in pieces
POLL_S = 0.2                # between two looks at logs that are followed
UNSEEN_POLLS = 10           # so often nobody may hold any stage before a run that has not ended is given up
SEARCHED_OPEN = 20          # runs that may be open at once
SEARCHED_RUNS = 200         # the newest, where no record says which run was the stage's last


class Log(namedtuple("Log", "path number task attempt status is_unnamed", defaults=(False,))):
    """One log; path below the root, with forward slashes.

    number: of the task, 0 for a stage that is one. task: its name, status: what became of it; "" if not known. is_unnamed: whether
    the run has ended, and its record, which names the logs of the stage, does not name this one.
    """

    __slots__ = ()


class Found(namedtuple("Found", "run_id invocation logs note")):
    """The logs of a stage in one call of a run, in the order to show them. note: what to tell besides, or ""."""

    __slots__ = ()


# --- finding ---------------------------------------------------------------------------------------------------------

def find(root: str, stage: str, run_id: Optional[str], name_tasks: bool = True) -> Found:
    """Return the logs of *stage* in its last run, or in run *run_id*. Raises: UsageError for a run that is not known.

    name_tasks: say what the tasks are and what became of them, the failed ones first; else by number.
    """
    if run_id is not None:
        return _of_run(root, stage, run_id, name_tasks)
    record, problem = run_history.read_stage(root, stage)
    if record is not None and isinstance(record.get("lastRunId"), str):
        invocation = record.get("lastInvocation")
        invocation = invocation if isinstance(invocation, int) else 1
        return Found(record["lastRunId"], invocation, logs_of(root, stage, record["lastRunId"], invocation, name_tasks), problem)
    if not problem:
        return Found("", 0, [], "stage %s has never run" % stage)
    for run in run_history.newest_runs(root, SEARCHED_RUNS)[0]:
        logs = logs_of(root, stage, run.run_id, run.invocation)
        if logs:
            return Found(run.run_id, run.invocation, logs, problem)
    return Found("", 0, [], problem)


def _of_run(root: str, stage: str, run_id: str, name_tasks: bool) -> Found:
    record, problem = run_history.read_run(root, run_id) if _is_plain(run_id) else (None, "")
    folder = os.path.join(root, "state", "logs", run_id)
    other = run_history.other_spelling(root, run_id) if record is None and _is_plain(run_id) else ""
    if other:
        raise UsageError("there is no run %s; there is a run %s" % (printable(run_id), other))
    if record is None and not problem and not (_is_plain(run_id) and os.path.isdir(folder)):
        gone = run_history.gone_text(root, run_id)
        if gone:
            raise UsageError(gone)
        known = [run.run_id for run in run_history.newest_runs(root, 5)[0]]
        raise UsageError("there is no run %s%s" % (printable(run_id), "; the last ones are: %s" % ", ".join(known) if known else ""))
    for invocation in sorted(_calls(folder), reverse=True):
        logs = logs_of(root, stage, run_id, invocation, name_tasks)
        if logs:
            return Found(run_id, invocation, logs, problem)
    return Found(run_id, record["invocation"] if record is not None else 1, [], problem or _why_none(record, stage))


def marked(root: str, stage: str, found: Found) -> Found:
    """Mark the logs that the record of a run does not name, though the stage ended well in it or was skipped: of another an
    attempt may have ended without being noted.

    A task's log without content may be of a disk that was full; a stage that is called as a number shared its folder with a call in earlier versions.
    """
    record = run_history.read_run(root, found.run_id, found.invocation)[0] if found.logs and not stage.isdigit() else None
    if record is None or not record.get("endedAt"):         # it is at work, or it died
        return found
    for entry in _entries(record, stage):
        logs = entry.get("logs") if entry.get("status") != "skipped" else []
        if entry.get("status") in ("ok", "skipped") and isinstance(logs, list) and not entry.get("recovered"):
            named = {log.get("path") for log in logs if isinstance(log, dict) and isinstance(log.get("path"), str)}
            return found._replace(logs=[log._replace(is_unnamed=log.path not in named and not (log.number and not _size(os.path.join(root, log.path))))
                                        for log in found.logs])
    return found


def _is_plain(name: str) -> bool:
    # Of what Windows takes for no file's name it does not say that it is not there.
    return bool(name) and NAME_CHARACTERS.issuperset(name) and not name.startswith(".")


def _why_none(record: Optional[Json], stage: str) -> str:
    """Return why a run has no logs of a stage, as its record tells."""
    for entry in _entries(record, stage):
        made_by = entry.get("madeBy")
        if isinstance(made_by, dict) and made_by.get("runId"):
            return "the stage was up to date then; its outputs are of run %s" % made_by["runId"]
        status = "not run" if entry.get("status") == "notRun" else entry.get("status")
        return "the stage was %s then: %s" % (status, entry.get("reason") or "no reason is recorded")
    return ""


def _entries(record: Optional[Json], stage: str) -> List[Json]:
    """Return the entries that a run record, whatever it holds, has of a stage: one, or none."""
    stages = record.get("stages") if record is not None else None
    return [one for one in (stages if isinstance(stages, list) else []) if isinstance(one, dict) and one.get("stage") == stage]


def _calls(folder: str) -> List[int]:
    try:
        return [1] + [int(name) for name in os.listdir(folder) if name.isdigit() and name.isascii()]
    except OSError:
        return [1]


def logs_of(root: str, stage: str, run_id: str, invocation: int, name_tasks: bool = True) -> List[Log]:
    """Return the logs of *stage* in one call of a run: by attempt; of tasks, the failed ones first. name_tasks: as in find()."""
    folder = "state/logs/%s%s" % (run_id, "/%d" % invocation if invocation > 1 else "")
    logs = [Log("%s/%s" % (folder, name), 0, "", attempt, "") for name, attempt in _numbered(os.path.join(root, folder), stage)]
    logs.sort(key=lambda log: log.attempt)
    tasks = _tasks(root, _task_folder(root, folder, stage))
    if not tasks:
        return logs
    if not name_tasks:
        return logs + sorted(tasks, key=lambda log: (log.number, log.attempt))
    names = _task_names(root, stage, run_id, invocation)
    statuses = stage_progress.task_outcomes(os.path.join(root, folder, stage + ".tasks.jsonl")) or stage_progress.task_outcomes(
        os.path.join(root, "state", "tasks_%s.jsonl" % stage), "%s/%d" % (run_id, invocation))
    tasks = [log._replace(task=names.get(log.path, ""), status=statuses.get(names.get(log.path, ""), "")) for log in tasks]
    tasks.sort(key=lambda log: (log.status != "failed", log.number, log.attempt))
    return logs + tasks


def _task_names(root: str, stage: str, run_id: str, invocation: int) -> Dict[str, str]:
    """Return {path of a log: the task's name} as the run record says; a run that still works on the stage has not said it yet."""
    record, _ = run_history.read_run(root, run_id, invocation)
    found: Dict[str, str] = {}
    for entry in _entries(record, stage):
        logs = entry.get("logs")
        for log in logs if isinstance(logs, list) else []:
            if isinstance(log, dict) and isinstance(log.get("path"), str) and isinstance(log.get("task"), str):
                found[log["path"]] = log["task"]
    return found


def _numbered(folder: str, stem: str) -> Iterator[Tuple[str, int]]:
    """Yield (name, number) of the files <stem>.<number>.log in a folder."""
    try:
        names = os.listdir(folder)
    except OSError:
        return
    for name in names:
        middle = name[len(stem) + 1:-len(".log")]
        if name.startswith(stem + ".") and name.endswith(".log") and middle.isascii() and middle.isdigit():
            yield name, int(middle)


def _task_folder(root: str, folder: str, stage: str) -> str:
    """Return where in the folder of a call the logs of a stage's tasks are. Earlier versions took a stage's name for it even where it is
    a number, as that of a later call's folder is."""
    own = "%s/%s" % (folder, task_log.log_folder_name(stage))
    is_early = not os.path.isdir(os.path.join(root, own)) and os.path.isfile(os.path.join(root, folder, stage + ".tasks.jsonl"))
    return "%s/%s" % (folder, stage) if is_early else own


def _tasks(root: str, folder: str) -> List[Log]:
    try:
        names = os.listdir(os.path.join(root, folder))
    except OSError:
        return []
    found = []
    for name in names:
        number, _, attempt = name[:-len(".log")].partition(".")
        if name.endswith(".log") and name.isascii() and number.isdigit() and attempt.isdigit():
            found.append(Log("%s/%s" % (folder, name), int(number), "", int(attempt), ""))
    return found


# --- showing ---------------------------------------------------------------------------------------------------------

def harmless(line: bytes) -> str:
    """Return a line of a log as text that cannot steer a terminal; tabs stay."""
    text = line.decode("utf-8", "replace").rstrip("\r\n")
    return text if text.isprintable() else "\t".join(printable(part) for part in text.split("\t"))


def heading(found: Found, log: Log) -> str:
    """Return the line above a log."""
    call = ", call %d" % found.invocation if found.invocation > 1 else ""
    name, status = " " + printable(log.task) if log.task else "", " (%s)" % log.status if log.status else ""
    task = ", task %d%s%s" % (log.number, name, status) if log.number else ""
    unnamed = " (not in the run record)" if log.is_unnamed else ""
    return "==> run %s%s%s, attempt %d%s: %s" % (found.run_id, call, task, log.attempt, unnamed, log.path)


class Reader:
    """Shows what has come to a log since the last time, whole lines only until it is said to be complete."""

    def __init__(self, path: str) -> None:
        self.path, self.offset, self.rest = path, 0, b""

    def read(self, show: Callable[[str], None], is_complete: bool) -> None:
        """Call show() with each new line. Raises: OSError but where the file is gone."""
        try:
            with open_file(self.path) as file:
                file.seek(self.offset)
                for block in iter(lambda: file.read(READ_BYTES), b""):
                    self.offset += len(block)
                    *lines, self.rest = (self.rest + block).split(b"\n")
                    for line in lines:
                        show(harmless(line))
                    while len(self.rest) >= LINE_BYTES:
                        show(harmless(self.rest[:LINE_BYTES]))
                        self.rest = self.rest[LINE_BYTES:]
        except FileNotFoundError:
            return
        if is_complete and self.rest:
            show(harmless(self.rest))
            self.rest = b""


def show(root: str, found: Found, put: Callable[[str], None]) -> None:
    """Give each log to put(), line by line, under its heading."""
    for log in found.logs:
        put(heading(found, log))
        _read(Reader(os.path.join(root, log.path)), put, True)


def follow(root: str, stage: str, run_id: Optional[str], put: Callable[[str], None], wait: Callable[[float], None], pipeline: str = "") -> None:
    """Show what is there and what comes, until the stage ends in the run that works on it (or, before it began, that run).

    Where nothing works on it, what is there is all. pipeline: whose runs come to the stage, "" for those of any below the root.
    """
    readers: Dict[str, Reader] = {}
    shown: List[str] = []
    followed, seen, unseen = "", "", 0
    while True:
        run = _working_run(root, stage, run_id, pipeline)       # asked first: what is written before the end is still shown
        unseen = 0 if run else unseen + 1
        seen = run or seen
        followed = run or followed or _open_run(root, stage, run_id, pipeline)
        goes_on = bool(run) or (bool(followed) and unseen <= UNSEEN_POLLS and _is_open(root, followed) and _may_come(root, stage, followed, pipeline))
        found = find(root, stage, followed or run_id, False)
        found = found if goes_on else marked(root, stage, found)
        for place, log in enumerate(found.logs):
            reader = readers.setdefault(log.path, Reader(os.path.join(root, log.path)))
            is_complete = not goes_on or (not log.number and place < len(found.logs) - 1)
            if _size(reader.path) <= reader.offset and not (is_complete and (reader.rest or log.path not in shown)):
                continue
            if shown[-1:] != [log.path]:
                put(heading(found, log))
                shown.append(log.path)
            _read(reader, put, is_complete)
        if not goes_on:
            if not shown and not (seen and found.note):
                found = marked(root, stage, find(root, stage, run_id, False))       # the run was a dead one, or never came to the stage
                show(root, found, put)
            if not found.logs and found.note:
                put(found.note)
            return
        wait(POLL_S)


def _read(reader: Reader, put: Callable[[str], None], is_complete: bool) -> None:
    try:
        reader.read(put, is_complete)
    except OSError as error:
        put("    (cannot be read: %s)" % error.strerror)


def _size(path: str) -> int:
    try:
        return os.path.getsize(path)
    except OSError:
        return 0


def _working_run(root: str, stage: str, run_id: Optional[str], pipeline: str) -> str:
    """Return the run from which more may come, or "".

    The holder of the stage's lock tells. Before a run has come to the stage, it is the holder of another stage.
    """
    owners = {name: str(owner.get("runId")) for name, owner in run_history.holders(root).items() if not owner.get("command")}
    if stage in owners and run_id in (None, owners[stage]):
        return owners[stage]
    return next((run for run in owners.values() if run_id in (None, run) and _may_come(root, stage, run, pipeline)), "")


def _is_open(root: str, run_id: str) -> bool:
    """Tell whether the ledger says that a run has begun and not ended; between two stages it holds none."""
    return run_id in _open_runs(root)


def _open_run(root: str, stage: str, run_id: Optional[str], pipeline: str) -> str:
    """Return a run of which the ledger says that it has begun and not ended and that may still come to the stage, or ""."""
    return next((one for one in _open_runs(root) if run_id in (None, one) and _may_come(root, stage, one, pipeline)), "")


def _open_runs(root: str) -> List[str]:
    return [one.run_id for one in run_history.newest_runs(root, 1 + SEARCHED_OPEN)[0] if one.state in ("running", "open")]


def _may_come(root: str, stage: str, run_id: str, pipeline: str) -> bool:
    """Tell whether a living run is not through with the stage, and has it: a run of another pipeline, or of other stages only, never
    comes to it.

    It is through where its own record has an entry of the stage, or the stage's record names the run.
    """
    run, _ = run_history.read_run(root, run_id)
    if run is None:
        return True                     # it has begun a moment ago
    selected = run.get("selected")
    if pipeline not in ("", run.get("pipeline")) or (isinstance(selected, list) and stage not in selected) or _entries(run, stage):
        return False
    record, _ = run_history.read_stage(root, stage)
    return record is None or record["lastStatus"] == "running" or (record.get("lastRunId"), record.get("lastInvocation")) != (run_id, run["invocation"])
