"""What the user sees: stable lines, plain messages.

A leaf, but for the values of model.
"""
from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, List

    from model import Decision, StageResult


def printable(text: str) -> str:
    """Return *text* without what could steer a terminal or break a line: control characters, lone surrogates."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def describe_os_error(error: OSError) -> str:
    """Return one line: path, cause, and for a full disk the free bytes."""
    import errno
    path = os.fsdecode(error.filename) if error.filename is not None else ""
    line = "%s: %s" % (path or "the runner's own files", error.strerror or error)
    if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", -1)):
        return "%s (%s); free some space and run again" % (line, free_space_text(path or "."))
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return line + "; the runner must be able to write state/, locks/ and the output folders below the root"
    return line


def free_space_text(path: str) -> str:
    """Return "N bytes free on the file system of FOLDER", for the nearest folder that exists."""
    import shutil
    folder = os.path.abspath(path)
    while not os.path.isdir(folder) and folder != os.path.dirname(folder):
        folder = os.path.dirname(folder)
    try:
        return "%d bytes free on the file system of %s" % (shutil.disk_usage(folder).free, folder)
    except OSError:
        return "free bytes unknown"


class Console:
    """What the user sees: one stable line per event on stdout, errors on stderr.

    A closed pipe or a full disk under stdout does not stop a run: the records tell all the same.
    """

    def __init__(self, out: Any = None, err: Any = None) -> None:
        self.out = out or sys.stdout or open(os.devnull, "w", encoding="utf-8")
        self.err = err or sys.stderr or open(os.devnull, "w", encoding="utf-8")
        self.partial = b""
        self.streamed = ""
        self.warned: List[str] = []
        for stream in (self.out, self.err):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")

    def event(self, kind: str, stage: str, text: str = "") -> None:
        self.line("[%s] %s%s" % (kind, stage, text))

    def line(self, text: str) -> None:
        self._write(self.out, printable(text) + "\n")

    def lines(self, text: str) -> None:
        """Print whole lines that are printable already."""
        self._write(self.out, text)

    def error(self, text: str) -> None:
        """Print a message, which may have several lines, on stderr."""
        for line in text.split("\n"):
            self._write(self.err, printable(line) + "\n")

    def warnings(self, lines: List[str]) -> None:
        self.warned += lines
        for line in lines:
            self.error("[OFFLINE] warning: %s" % line)

    def tail(self, data: bytes) -> None:
        """Show the last lines of a failed attempt's output."""
        for line in data.decode("utf-8", "replace").splitlines()[-10:]:
            self.error("    | " + line)

    def plan(self, stage: str, decision: Decision, holder: str) -> None:
        where = " from line %d" % decision.line_offset if decision.action == "RESUME" else ""
        reasons = list(decision.reasons) + (["checkpoint not used: " + decision.discard] if decision.discard else []) + ([holder] if holder else [])
        action = {"SEAL": "SKIP"}.get(decision.action, decision.action)
        self.line("%-7s %s%s (%s)" % (action, stage, where, "; ".join(reasons)))

    def stream(self, stage: str, data: bytes) -> None:
        """Print whole lines of a processor's output, the stage's name before each."""
        self.streamed = stage
        *lines, self.partial = (self.partial + data).split(b"\n")
        if len(self.partial) > 65536:
            lines.append(self.partial)
            self.partial = b""
        for line in lines:
            self.line("%s | %s" % (stage, line.decode("utf-8", "replace").rstrip("\r")))

    def end_stream(self) -> None:
        if self.partial:
            self.stream(self.streamed, b"\n")

    def summary(self, run_id: str, state: str, results: List[StageResult], duration_s: float) -> None:
        count = {status: sum(1 for one in results if one.status == status) for status in ("ok", "skipped", "failed", "interrupted")}
        self.counts(run_id, state, count["ok"], count["skipped"], count["failed"] + count["interrupted"], duration_s)

    def counts(self, run_id: str, state: str, ok: int, skipped: int, failed: int, duration_s: float) -> None:
        """Print the last line of a run."""
        self.line("Run %s state: %s (%d ok, %d skipped, %d failed) in %.1fs" % (run_id, state, ok, skipped, failed, duration_s))

    def _write(self, stream: Any, text: str) -> None:
        try:
            stream.write(text)
            stream.flush()
        except (OSError, ValueError):
            pass


def open_missing_streams() -> None:
    """Put the null device where the caller closed standard input, output or error.

    Else the next file to be opened, a lock or a record, would get that number, and whatever is printed would go into it.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


def silence_closed_streams() -> None:
    """Keep the interpreter from complaining at exit about a stdout that nobody reads any more."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
