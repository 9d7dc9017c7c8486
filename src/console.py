"""What the user sees: stable lines, plain messages, and on a terminal the lines of the running stages.

Above the leaves. What a run in which nothing changed does not need is loaded when it is needed: the live view, JSON.
"""
from __future__ import annotations

import os
import sys
import time

from primitives import is_terminal, prepare_stream

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, List, Sequence, Tuple

    from model import Decision, Options

FEW_INODES = 64             # fewer are free after a failure: most likely that is why
FULL_BYTES = 64 << 10       # the same of bytes: what a writer that found no room leaves is less than a few blocks
PARTIAL_BYTES = 65536       # of an unfinished line of a processor's output, before it is shown as it is
COLORS = {"FAIL": "31", "STOP": "33", "RETRY": "33", "DONE": "32", "START": "36", "RESUME": "36", "SKIP": "2", "NOTE": "33", "WAITING": "33"}


def printable(text: str) -> str:
    """Return *text* without what could steer a terminal or break a line: control characters, lone surrogates."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def describe_os_error(error: OSError) -> str:
    """Return one line: path, cause, and for a full disk the free bytes."""
    import errno
    # Of a renaming the place, if what is to be renamed is there. Python names some files by descriptor.
    name = error.filename2 if error.filename2 is not None and error.errno != errno.ENOENT else error.filename
    path = os.fsdecode(name) if isinstance(name, (str, bytes)) else ""
    if not path and error.errno == errno.ENOENT and not _has_current_folder():
        return "the current folder is not there any more; go to another one (cd) and run again"
    unnamed = "no process could be started" if error.errno == errno.EAGAIN else "the runner's own files, or the standard output"
    line = "%s: %s" % (path or unnamed, error.strerror or error)
    if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", -1)):
        return "%s%s; free some space and run again" % (line, " (%s)" % free_space_text(path) if path else "")
    remedy: str = getattr(error, "remedy", "")      # of whoever raised it
    if remedy:
        return line + remedy
    from model import OPEN_ELSEWHERE, remedy_of
    remedy = remedy_of(error) or (_whose(path) if error.errno in (errno.EACCES, errno.EPERM) and error.strerror == os.strerror(error.errno) else "")
    if not remedy and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        remedy = "; the runner must be able to write state/, locks/ and the output folders below the root%s%s" % (
            "" if error.errno == errno.EROFS else ", and to read all else there",
            ". Or " + OPEN_ELSEWHERE if sys.platform == "win32" else "")       # open() says the same there for both
    return line + remedy


def _whose(path: str) -> str:
    """Return to whom a file of locks/ or state/ that may not be written belongs, or its folder, and what to do; else ""."""
    from primitives import whose_text
    if not {"locks", "state"} & set(os.path.abspath(path).split(os.sep)[-6:]):
        return ""
    its = whose_text(path)
    of_folder = "" if its else whose_text(os.path.dirname(path))
    return "; it " + its if its else "; its folder " + of_folder if of_folder else ""


def _has_current_folder() -> bool:
    try:
        return bool(os.getcwd())
    except OSError:
        return False


def free_space_text(path: str) -> str:
    """Return "N bytes free on the file system of FOLDER", for the nearest folder that exists."""
    import shutil
    folder = os.path.abspath(path)
    while not os.path.isdir(folder) and folder != os.path.dirname(folder):
        folder = os.path.dirname(folder)
    try:
        return "%d bytes%s free on the file system of %s" % (shutil.disk_usage(folder).free, _inodes_text(folder), folder)
    except OSError:
        return "free bytes unknown"


def full_disk_text(folder: str) -> str:
    """Return how little is left for files in *folder*, of bytes or of inodes, or "" while a failure may not be for that."""
    import shutil
    try:
        is_full = shutil.disk_usage(folder).free < FULL_BYTES or _inodes_text(folder)
    except OSError:
        return ""
    return "the disk is full: " + free_space_text(folder) if is_full else ""


def _inodes_text(folder: str) -> str:
    """Return that a file system has room for no further file, or for few, "" while it has, or where that is not counted.

    Few: what the run has removed since it failed has made room again.
    """
    if not hasattr(os, "statvfs"):
        return ""                       # Windows
    found = os.statvfs(folder)
    left = str(found.f_favail) if found.f_favail else "no"
    return ", but %s inode%s (each file needs one)," % (left, "s" if found.f_favail > 1
                                                        else "") if found.f_files and found.f_favail < FEW_INODES else ""


class Console:
    """What the user sees: one stable line per event on stdout, errors on stderr.

    A closed pipe or a full disk under stdout does not stop a run: the records tell all the same. On a terminal tick()
    keeps a line per running stage below the stable lines; close() takes them away.
    """

    def __init__(self, out: Any = None, err: Any = None, clock: Any = time) -> None:
        """*clock* has monotonic() and time()."""
        self.out = out or sys.stdout or open(os.devnull, "w", encoding="utf-8")
        self.err = err or sys.stderr or open(os.devnull, "w", encoding="utf-8")
        self.clock = clock
        self.is_quiet, self.is_json, self.is_colored = False, False, False
        self.run_id = ""
        self.partial: Dict[str, bytes] = {}     # stage -> the unfinished last line of its output
        self.tails: Dict[str, List[str]] = {}   # quiet: stage -> what is shown if it fails in the end
        self.view: Any = None                   # the LiveView; False: there is none
        self.lock: Any = None                   # over what is drawn: where each attempt has a thread, they write, too
        self.warned: List[str] = []
        self.lost = ""                          # why something that was to be kept of stdout is lost
        for stream in (self.out, self.err):
            prepare_stream(stream)

    def configure(self, options: Options) -> None:
        """Take over how a run is to be shown: --quiet, --log-format, the run's id; colours on a terminal."""
        self.is_quiet, self.is_json = options.quiet, options.log_format == "json"
        self.run_id = options.run_id
        if not self.is_json and is_terminal(self.out):
            import live_view
            self.is_colored = live_view.is_capable(self.out, os.environ, live_view.enable_terminal) and live_view.wants_color(os.environ)

    # --- a run's events

    def event(self, kind: str, stage: str, text: str = "", **more: Any) -> None:
        """Tell what happened to a stage, or to one of its tasks ("STAGE TASK"). *more*: fields that only the JSON form has."""
        if self.is_quiet and kind not in ("FAIL", "STOP"):
            return
        if self.view:
            self.view.forget(stage)
        for line in self.tails.pop(stage, []):
            self._tell_tail(stage, line)
        if self.is_json:
            import log_events
            self._put_event(dict(log_events.event_of(kind, stage, text), **more))
            return
        line = printable("[%s] %s%s" % (kind, stage, text))
        if self.is_colored and kind in COLORS:
            line = "\x1b[%sm[%s]\x1b[0m%s" % (COLORS[kind], kind, line[len(kind) + 2:])
        self._write(self.out, line + "\n")

    def line(self, text: str) -> None:
        """Print a line that is of no stage."""
        if self.is_quiet:
            return
        if self.is_json:
            import log_events
            self._put_event(log_events.event_of_line(text))
            return
        self._write(self.out, printable(text) + "\n")

    def lines(self, text: str) -> None:
        """Print whole lines that are printable already."""
        self._write(self.out, text)

    def error(self, text: str) -> None:
        """Print a message, which may have several lines, on stderr."""
        if self.is_json:
            self._put_event({"event": "error", "text": text})
        for line in text.split("\n"):
            self._write(self.err, printable(line) + "\n")

    def warnings(self, lines: List[str]) -> None:
        self.warned += lines
        for line in lines:
            if self.is_json and not self.is_quiet:
                self._put_event({"event": "warning", "text": line})
            elif not self.is_quiet:
                self.error("[OFFLINE] warning: %s" % line)

    def tail(self, data: bytes, stage: str) -> None:
        """Show the last lines of a failed attempt's output; with --quiet only if the stage fails in the end."""
        lines = data.decode("utf-8", "replace").splitlines()[-10:]
        if self.is_quiet:
            self.tails[stage] = lines
            return
        for line in lines:
            self._tell_tail(stage, line)

    def _tell_tail(self, stage: str, line: str) -> None:
        if self.is_json:
            self._put_event({"event": "tail", "text": line}, stage)
        else:
            self.error("    | " + line)

    def plan(self, stage: str, decision: Decision, holder: str) -> None:
        where = " from line %d" % decision.line_offset if decision.action == "RESUME" else ""
        reasons = list(decision.reasons) + (["checkpoint not used: " + decision.discard] if decision.discard else []) + ([holder] if holder else [])
        action = {"SEAL": "SKIP"}.get(decision.action, decision.action)
        self.line("%-7s %s%s (%s)" % (action, stage, where, "; ".join(reasons)))

    def stream(self, stage: str, data: bytes) -> None:
        """Print whole lines of a processor's output, the stage's name before each; the rest waits for its end."""
        *lines, rest = (self.partial.get(stage, b"") + data).split(b"\n")
        if len(rest) > PARTIAL_BYTES:
            lines.append(rest)
            rest = b""
        self.partial[stage] = rest
        for line in lines:
            text = line.decode("utf-8", "replace").rstrip("\r")
            if self.is_json and not self.is_quiet:
                self._put_event({"event": "output", "text": text}, stage)
            else:
                self.line("%s | %s" % (stage, text))

    def end_stream(self, stage: str) -> None:
        """Print what is left of the output of *stage*."""
        if self.partial.get(stage):
            self.stream(stage, b"\n")
        self.partial.pop(stage, None)

    def summary(self, run_id: str, state: str, count: Dict[str, int], duration_s: float) -> None:
        """Print how a run has ended. count: stages by status, of all statuses."""
        self.close()
        if self.is_quiet and state == "completed":
            return
        if self.is_json:
            self._put_event({"event": "summary", "run": run_id, "state": state, "ok": count["ok"], "skipped": count["skipped"], "failed": count["failed"],
                             "interrupted": count["interrupted"], "waiting": count["waiting"], "notRun": count["notRun"],
                             "durationMs": int(duration_s * 1000)})
            return
        self.counts(run_id, state, count["ok"], count["skipped"], count["failed"], duration_s,
                    ((count["interrupted"], "interrupted"), (count["waiting"], "waiting"), (count["notRun"], "not run")))

    def counts(self, run_id: str, state: str, ok: int, skipped: int, failed: int, duration_s: float, others: Sequence[Tuple[int, str]] = ()) -> None:
        """Print the last line of a run, as text. others: counts and their words, of which those that are 0 are left out."""
        more = "".join(", %d %s" % one for one in others if one[0])
        self._write(self.out, printable("Run %s state: %s (%d ok, %d skipped, %d failed%s) in %.1fs" % (
            run_id, state, ok, skipped, failed, more, duration_s)) + "\n")

    # --- the lines of the running stages

    def wants_ticks(self) -> bool:
        """Tell whether tick() would show anything, so that whoever waits for processors wakes up for it."""
        if self.view is None:
            self.view = False
            if not (self.is_quiet or self.is_json) and is_terminal(self.out):
                import live_view
                if live_view.is_capable(self.out, os.environ, live_view.enable_terminal):
                    import threading
                    self.lock = threading.RLock()
                    self.view = live_view.LiveView(
                        self.out, self.clock, lambda: live_view.terminal_size(self.out), live_view.wants_color(os.environ))
        return bool(self.view)

    def tick(self, rows: Callable[[], Sequence[Sequence[Any]]]) -> None:
        """Draw the running stages anew, if it is time to; *rows* is called only then. See live_view.Row. Never fails a run."""
        if not self.wants_ticks() or not self.view.is_due():
            return
        with self.lock:
            try:
                self.view.draw(rows())
            except Exception:           # whatever it is: what is only to be looked at must not end a run
                self.view = False

    def close(self) -> None:
        """Take the lines of the running stages off the screen."""
        if self.view:
            try:
                self.view.clear()
            except (OSError, ValueError):
                self.view = False

    # --- writing

    def _put_event(self, event: Dict[str, Any], subject: str = "") -> None:
        import log_events
        if subject:
            event = dict({"event": event["event"]}, **dict(log_events.subject_of(subject), **event))
        self._write(self.out, log_events.event_line(event, self.run_id, self.clock.time()))

    def _write(self, stream: Any, text: str) -> None:
        if self.lock is None:
            self._put(stream, text)
            return
        with self.lock:
            self._put(stream, text)

    def _put(self, stream: Any, text: str) -> None:
        try:
            if self.view and stream is self.out:
                text = self.view.around(text)
            elif self.view and self.view.drawn:
                self._write_beside(stream, text)
                return
            stream.write(text)
            stream.flush()
        except (OSError, ValueError) as error:
            self._note_lost(stream, error)

    def put_bytes(self, data: bytes) -> None:
        """Write ASCII text to stdout byte for byte. Raises: OSError where nobody reads it any more; what a full disk loses is noted."""
        raw = getattr(self.out, "buffer", None)
        try:
            if raw is not None:
                self.out.flush()
                raw.write(data)
            else:
                self.out.write(data.decode("ascii"))
            self.out.flush()
        except OSError as error:
            self._note_lost(self.out, error)
            if not self.lost:
                raise

    def settle(self) -> None:
        """Write what was printed past line(), and note if it is lost."""
        try:
            self.out.flush()
        except (OSError, ValueError) as error:
            self._note_lost(self.out, error)

    def _note_lost(self, stream: Any, error: Exception) -> None:
        import errno
        number = getattr(error, "errno", None) or 0
        if stream is self.out and number in (errno.ENOSPC, getattr(errno, "EDQUOT", -1), errno.EFBIG, errno.EIO):
            self.lost = os.strerror(number)     # else nobody reads any more

    def _write_beside(self, stream: Any, text: str) -> None:
        """Write to another stream that most likely is the same terminal: the drawn lines make room meanwhile."""
        self.out.write(self.view.erase())
        self.out.flush()
        stream.write(text)
        stream.flush()
        self.out.write(self.view.paint())
        self.out.flush()


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


def leave(code: int) -> None:
    """End the process with exit code *code*; return where something waits for its end: a call registered for it, a thread, a
    profiler.

    Taking the interpreter apart, and freeing the memory of many stages piece by piece, would show.
    """
    import atexit
    silence_closed_streams()
    calls, threads = getattr(atexit, "_ncallbacks", None), sys.modules.get("threading")
    is_watched = any(name in sys.modules for name in ("cProfile", "profile", "trace", "bdb"))
    if calls is not None and calls() == 0 and (threads is None or threads.active_count() == 1) and not is_watched:
        os._exit(code)
