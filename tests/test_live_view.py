"""The lines of running stages: their cells, percent, rates, time left; what is on the screen, and what is left there at the end."""
from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT  # noqa: F401

import console
import live_view
import stage_progress
import text_table
from live_view import LiveView, Rates, Row, render
from text_table import columns, cut, display_width, pad

POSIX = sys.platform != "win32"


# --- cells

@pytest.mark.parametrize("text, width", [
    ("", 0), ("abc", 3), ("größe", 5), ("gro\u0308ße", 5), ("日本語", 6), ("ｱｲｳ", 3), ("ＡＢ", 4), ("a\u200bb", 2), ("e\u0301\u0301", 1), ("한국", 4), ("🙂", 2)])
def test_display_width(text, width):
    assert display_width(text) == width


@pytest.mark.parametrize("text, width, expected", [
    ("abcdef", 6, "abcdef"), ("abcdef", 5, "abcd~"), ("abcdef", 1, "~"), ("abcdef", 0, ""), ("日本語", 6, "日本語"), ("日本語", 5, "日本~"), ("日本語", 4, "日~"),
    ("日本語", 2, "~"), ("o\u0308o\u0308o\u0308", 2, "o\u0308~"), ("", 0, "")])
def test_cut(text, width, expected):
    assert cut(text, width) == expected and display_width(expected) <= max(width, 0)


def test_pad_counts_cells():
    assert pad("日", 4) == "日  " and pad("abcd", 2) == "abcd"


def test_columns_leave_out_what_is_empty_and_what_does_not_fit():
    rows = [["NAME", "STATE", "EMPTY", "MORE"], ["日本語", "ok", "", "x"], ["a", "failed", "", ""]]
    assert columns(rows) == ["NAME    STATE   MORE", "日本語  ok      x", "a       failed"]
    assert columns(rows, 15, (3,)) == ["NAME    STATE", "日本語  ok", "a       failed"]
    assert columns(rows, 12, (3,)) == ["NAME  STATE", "日~   ok", "a     failed"]
    assert columns([["NAME", "X"]]) == ["NAME"]


@pytest.mark.parametrize("seconds, text", [
    (None, ""), (0, "0.00 s"), (0.126, "0.13 s"), (9.999, "10.0 s"), (59.99, "59.9 s"), (60, "1 min 00 s"), (125.4, "2 min 05 s"), (3599.7, "1 h 00 min"),
    (7380, "2 h 03 min"), (90 * 3600, "3 d 18 h")])
def test_duration_text(seconds, text):
    assert text_table.duration_text(seconds) == text


@pytest.mark.parametrize("seconds, text", [(None, ""), (-1, "0 s"), (59, "59 s"), (60, "1 min"), (3600, "1 h"), (86400, "24 h"), (172800, "2 d")])
def test_age_text(seconds, text):
    assert text_table.age_text(seconds) == text


# --- progress files

@pytest.mark.parametrize("found, expected", [
    ({"lineOffset": 5}, (None, None, 5)), ({"lineOffset": 5, "byteOffset": 20, "bytesTotal": 80}, (20, 80, 5)),
    ({"byteOffset": 20, "inputIndex": 0, "bytesTotal": 80}, (20, 80, None)), ({"byteOffset": 20, "inputIndex": 1, "bytesTotal": 80}, (None, 80, None)),
    ({"byteOffset": 20, "inputIndex": 1, "bytesDone": 70, "bytesTotal": 80}, (70, 80, None)), ({"bytesDone": 90, "bytesTotal": 80}, (80, 80, None)),
    ({"bytesDone": True, "bytesTotal": "80", "lineOffset": -1}, (None, None, None))])
def test_what_a_progress_file_says(tmp_path, found, expected):
    (tmp_path / "p.json").write_bytes(json.dumps(found).encode("ascii"))
    seen = stage_progress.read_progress(str(tmp_path / "p.json"))
    assert (seen.done_bytes, seen.total_bytes, seen.lines) == expected


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"7", b"\xff", b"[" * 100000])
def test_a_progress_file_that_says_nothing(tmp_path, data):
    (tmp_path / "p.json").write_bytes(data)
    assert stage_progress.read_progress(str(tmp_path / "p.json")) is None
    assert stage_progress.read_progress(str(tmp_path)) is None


@pytest.mark.parametrize("done, total, expected", [(0, 100, 0), (1, 3, 33), (99999, 100000, 99), (7, 7, 100), (5, 0, None), (None, 5, None), (5, None, None), (9, 7, 100)])
def test_percent(done, total, expected):
    assert stage_progress.percent(done, total) == expected


@pytest.mark.parametrize("done, total, rate, elapsed, expected_s, left", [
    (50, 100, 10.0, 5, None, 5.0), (50, 100, None, 5, 20.0, 15.0), (None, None, None, 5, 20.0, 15.0), (None, None, None, 25, 20.0, None),
    (None, None, None, 5, None, None), (50, 100, 10.0, 5, 900.0, 5.0), (100, 100, 10.0, 5, None, 0.0)])
def test_seconds_left(done, total, rate, elapsed, expected_s, left):
    assert stage_progress.seconds_left(done, total, rate, elapsed, expected_s) == left


def test_task_counts_of_a_record_and_while_tasks_are_done(tmp_path):
    log = tmp_path / "tasks_s.jsonl"
    record = {"lastRunId": "r", "lastInvocation": 2, "tasks": {"total": 5, "ok": 0, "skipped": 2, "failed": 0, "vanished": 0}}
    assert stage_progress.task_counts(None, str(log), False) is None
    assert stage_progress.task_counts({"lastStatus": "ok"}, str(log), True) is None
    assert stage_progress.task_counts(record, str(log), True) == stage_progress.task_counts(record, str(log), False) == {"done": 2, "failed": 0, "total": 5}
    lines = [{"task": "a", "status": "ok", "run": "r/1"}, {"task": "b", "status": "failed", "run": "r/2"}, {"task": "b", "status": "ok", "run": "r/2"}, [],
             {"task": "c", "status": "failed", "run": "r/2"}]
    log.write_bytes(b"".join(json.dumps(line, separators=(",", ":")).encode("ascii") + b"\n" for line in lines) + b'nonsense "run":"r/2"\n{"task":"d","status":"ok","run":"r/2"')
    assert stage_progress.task_counts(record, str(log), True) == {"done": 3, "failed": 1, "total": 5}
    assert stage_progress.task_counts(dict(record, lastStatus="running"), str(log), False) == {"done": 3, "failed": 1, "total": 5}      # its runner died
    assert stage_progress.task_counts(dict(record, lastStatus="interrupted"), str(log), False) == {"done": 2, "failed": 0, "total": 5}  # it has counted itself
    assert stage_progress.task_counts(dict(record, tasks={"total": 0}), str(log), True) == {"done": 1, "failed": 1, "total": 0}
    assert stage_progress.task_counts(dict(record, tasks={"total": 0}), str(log), False) is None
    assert stage_progress.task_outcomes(str(log)) == {"a": "ok", "b": "ok", "c": "failed"}


# --- lines, pure

def row(**known):
    values = dict(stage="copy", attempt=1, done_bytes=None, total_bytes=None, tasks_done=None, tasks_total=None, started=0.0, expected_s=None, lines=None)
    return Row(**dict(values, **known))


MB = 1000000


@pytest.mark.parametrize("known, rate, width, expected", [
    # by the bytes, with a bar where there is room
    (dict(done_bytes=25 * MB, total_bytes=100 * MB), (5.0 * MB, "B"), 100, "copy       25%  [####............]  5.0 MB/s  15s left"),
    (dict(done_bytes=25 * MB, total_bytes=100 * MB), (5.0 * MB, "B"), 80, "copy       25%  5.0 MB/s  15s left"),
    (dict(done_bytes=25 * MB, total_bytes=100 * MB, attempt=3), (5.0 * MB, "B"), 80, "copy       25%  5.0 MB/s  15s left  attempt 3"),
    (dict(done_bytes=25 * MB, total_bytes=100 * MB, attempt=3), (5.0 * MB, "B"), 42, "copy       25%  5.0 MB/s  15s left"),
    (dict(done_bytes=25 * MB, total_bytes=100 * MB, attempt=3), (5.0 * MB, "B"), 35, "copy       25%  15s left"),
    (dict(done_bytes=25 * MB, total_bytes=100 * MB, attempt=3), (5.0 * MB, "B"), 22, "copy       25%"),
    (dict(done_bytes=25 * MB, total_bytes=100 * MB, attempt=3), (5.0 * MB, "B"), 8, "co~"),
    # no rate yet: by what it took before; nothing known: how long it has been running
    (dict(done_bytes=1, total_bytes=100, expected_s=70.0), (None, "B"), 80, "copy        1%  1:00 left"),
    (dict(expected_s=70.0), (None, "lines"), 80, "copy      1:00 left"),
    (dict(expected_s=7.0), (None, "lines"), 80, "copy      10s so far"),
    (dict(), (None, ""), 80, "copy      10s so far"),
    (dict(lines=7), (450.4, "lines"), 80, "copy      450 lines/s  10s so far"),
    # tasks
    (dict(tasks_done=3, tasks_total=12), (0.5, "tasks"), 80, "copy       25%  3/12 tasks  0.5 tasks/s  18s left"),
    (dict(tasks_done=3, tasks_total=12, done_bytes=5), (2.0 * MB, "B"), 80, "copy       25%  3/12 tasks  2.0 MB/s  10s so far"),
    (dict(tasks_done=3, tasks_total=12, done_bytes=90 * MB, total_bytes=100 * MB), (2.0 * MB, "B"), 80, "copy       90%  3/12 tasks  2.0 MB/s  5s left"),
    # names: long, wide, combining
    (dict(stage="a_stage_with_a_very_long_name_that_takes_all"), (None, ""), 40, "a_stage_with_a_very_lo~  10s so far"),
    (dict(stage="日本語の名前", done_bytes=5, total_bytes=10), (None, "B"), 80, "日本語の名前   50%  10s so far"),
    (dict(stage="日本語の名前", done_bytes=5, total_bytes=10), (None, "B"), 20, "日本語の~   50%"),
    (dict(stage="gro\u0308ße\u0301", done_bytes=5, total_bytes=10), (None, "B"), 80, "gro\u0308ße\u0301      50%  10s so far")])
def test_render(known, rate, width, expected):
    line, = render([row(**known)], width, 10.0, [rate])
    assert line == expected
    assert display_width(line) <= max(1, width - live_view.MARGIN)


@pytest.mark.parametrize("width", range(1, 130, 3))
def test_no_line_is_ever_wider_than_the_terminal(width):
    rows = [row(stage="日本語" * 9, attempt=12, done_bytes=10 ** 12, total_bytes=10 ** 13, tasks_done=99999, tasks_total=100000), row(stage="x", lines=3)]
    for line in render(rows, width, 1e6, [(123456789.0, "B"), (1e9, "lines")]):
        assert display_width(line) < max(2, width)


def test_everything_stands_in_columns():
    rows = [row(stage="a", done_bytes=1, total_bytes=2), row(stage="日本語の名前"), row(stage="c", done_bytes=9, total_bytes=9, attempt=2)]
    assert render(rows, 80, 10.0, [(1e7, "B"), (5.0, "lines"), (None, "B")]) == [
        "a              50%    10.0 MB/s  0s left",
        "日本語の名前        5.0 lines/s  10s so far",
        "c             100%               10s so far  attempt 2"]
    assert render(rows, 40, 10.0, [(1e7, "B"), (5.0, "lines"), (None, "B")]) == [
        "a              50%  0s left", "日本語の名前        10s so far", "c             100%  10s so far"]
    assert render([], 40, 10.0) == []


@pytest.mark.parametrize("rate, unit, text", [(None, "B", ""), (5e6, "B", "5.0 MB/s"), (99999, "B", "100.0 kB/s"), (12.34, "lines", "12 lines/s"), (1.26, "tasks", "1.3 tasks/s")])
def test_rate_text(rate, unit, text):
    assert live_view.rate_text(rate, unit) == text


def test_a_rate_is_of_what_was_seen_lately():
    rates = Rates()
    assert rates.of(row(done_bytes=500, total_bytes=10 ** 6), 100.0) == (None, "B")         # a resume begins with what others have read
    assert rates.of(row(done_bytes=600, total_bytes=10 ** 6), 100.5) == (None, "B")         # too little seen
    assert rates.of(row(done_bytes=900, total_bytes=10 ** 6), 102.0) == (200.0, "B")
    assert rates.of(row(done_bytes=900, total_bytes=10 ** 6), 113.0) == (0 or None, "B")    # nothing for long
    assert rates.of(row(done_bytes=100, total_bytes=10 ** 6, attempt=2), 113.0) == (None, "B")
    assert rates.of(row(lines=100), 0.0) == (None, "lines") and rates.of(row(lines=300), 2.0) == (100.0, "lines")
    rates.keep([row(attempt=2)])
    assert {key[:2] for key in rates.seen} == {("copy", 2)}


# --- the screen

class Clock:
    now = 0.0

    def monotonic(self):
        return self.now

    def time(self):
        return 0.0


class Screen:
    """What a terminal of some width shows of what was written: enough of one for what the live view uses."""

    def __init__(self, width=80):
        self.width, self.lines, self.row, self.column, self.colors = width, [[]], 0, 0, 0

    def feed(self, text):
        for token in re.findall(r"\x1b\[[0-9;]*[A-Za-z]|[\s\S]", text):
            if token.startswith("\x1b["):
                self.escape(token)
            elif token == "\r":
                self.column = 0
            elif token == "\n":
                self.to(self.row + 1, 0)
            else:
                if self.column + display_width(token) > self.width:
                    self.to(self.row + 1, 0)
                line = self.lines[self.row]
                line[self.column:self.column + 1] = [token]
                self.column += 1
        return self

    def escape(self, token):
        if token.endswith("m"):
            self.colors += 1
        elif token.endswith("A"):
            self.row -= int(token[2:-1])
            assert self.row >= 0
        elif token.endswith("J"):
            del self.lines[self.row][self.column:], self.lines[self.row + 1:]
        else:
            raise AssertionError("unexpected sequence %r" % token)

    def to(self, line, column):
        self.row, self.column = line, column
        while len(self.lines) <= line:
            self.lines.append([])

    @property
    def text(self):
        return "\n".join("".join(line) for line in self.lines)


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


def view_of(width=80, height=24, color=False):
    stream, clock = Terminal(), Clock()
    size = [width, height]
    return LiveView(stream, clock, lambda: tuple(size), color), stream, clock, size


def test_lines_are_drawn_over_those_drawn_before_and_cleared():
    view, stream, clock, _ = view_of()
    stream.write("[START] a\n")
    view.draw([row(stage="a"), row(stage="b")])
    clock.now = 3.0
    view.draw([row(stage="a"), row(stage="b")])
    assert Screen().feed(stream.getvalue()).text == "[START] a\na         3s so far\nb         3s so far"
    stream.write(view.around("[DONE] b in 3s\n"))
    view.forget("b")
    view.draw([row(stage="a")])
    assert Screen().feed(stream.getvalue()).text == "[START] a\n[DONE] b in 3s\na         3s so far"
    view.clear()
    view.clear()
    assert Screen().feed(stream.getvalue()).text == "[START] a\n[DONE] b in 3s\n"
    assert Screen().feed(stream.getvalue()).colors == 0


def test_what_a_narrower_terminal_has_broken_into_several_lines_is_erased():
    view, stream, _, size = view_of(width=60)
    view.draw([row(stage="a" * 40), row(stage="b" * 40)])
    width = view.drawn[0]
    size[0] = 30                        # the terminal breaks each line in two
    before = len(stream.getvalue())
    view.clear()
    assert width > 30 and stream.getvalue()[before:] == "\r\x1b[3A\x1b[J"


def test_never_more_lines_than_the_terminal_has():
    view, stream, _, _ = view_of(height=5)
    view.draw([row(stage="s%d" % number) for number in range(9)])
    assert Screen().feed(stream.getvalue()).text.splitlines() == ["s0        0s so far", "s1        0s so far", "and 7 more"]


def test_colours_do_not_count_as_cells():
    view, stream, _, _ = view_of(color=True)
    view.draw([row(stage="a")])
    assert stream.getvalue() == "\x1b[36ma         0s so far\x1b[0m" and view.drawn == [len("a         0s so far")]


def test_an_encoding_without_the_ellipsis():
    stream = Terminal()
    stream.encoding = "cp850"
    assert LiveView(stream, Clock(), lambda: (80, 24), False).mark == "~"
    assert view_of()[0].mark == "\u2026"


@pytest.mark.parametrize("is_terminal, environ, enabled, capable", [
    (True, {}, True, True), (True, {"TERM": "xterm"}, True, True), (True, {"TERM": "dumb"}, True, False), (False, {}, True, False), (True, {}, False, False)])
def test_where_lines_are_redrawn(is_terminal, environ, enabled, capable):
    stream = Terminal() if is_terminal else io.StringIO()
    assert live_view.is_capable(stream, environ, lambda: enabled) is capable


@pytest.mark.parametrize("environ, color", [({}, True), ({"NO_COLOR": ""}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": "0"}, False)])
def test_no_color(environ, color):
    assert live_view.wants_color(environ) is color


class Kernel:
    """The console functions of Windows: a mode that can be set, or not."""

    def __init__(self, mode, can_set=1):
        self.mode, self.can_set = mode, can_set

    def GetStdHandle(self, number):
        assert number == -11
        return 7

    def GetConsoleMode(self, handle, pointer):
        if self.mode is None:
            return 0
        pointer._obj.value = self.mode
        return 1

    def SetConsoleMode(self, handle, mode):
        self.mode = mode if self.can_set else self.mode
        return self.can_set


@pytest.mark.parametrize("kernel, enabled, mode", [(Kernel(3), True, 7), (Kernel(7), True, 7), (Kernel(3, 0), False, 3), (Kernel(None), False, None), (object(), False, None)])
def test_windows_consoles_are_asked_to_understand(kernel, enabled, mode):
    assert live_view.enable_terminal("win32", kernel) is enabled
    assert getattr(kernel, "mode", None) == mode
    assert live_view.enable_terminal("linux", None) is True


def test_a_view_that_cannot_be_drawn_does_not_end_the_run(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(live_view, "enable_terminal", lambda: True)      # Windows asks the console of the tests
    shown = console.Console(Terminal(), io.StringIO(), Clock())
    assert shown.wants_ticks()
    shown.out.close()
    shown.tick(lambda: [row()])
    assert not shown.wants_ticks()
    shown.close()
    shown = console.Console(Terminal(), io.StringIO(), Clock())
    shown.tick(lambda: 1 // 0)
    shown.line("goes on")
    assert not shown.wants_ticks() and shown.out.getvalue() == "goes on\n"


def test_ticks_are_few_and_ask_for_rows_only_when_due(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(live_view, "enable_terminal", lambda: True)
    clock, asked = Clock(), []
    shown = console.Console(Terminal(), io.StringIO(), clock)
    for step in range(10):
        clock.now = step / 8            # eight times a second
        shown.tick(lambda: asked.append(clock.now) or [row(stage="s")])
    assert asked == [0, 0.25, 0.5, 0.75, 1.0]
    plain = console.Console(io.StringIO(), io.StringIO(), clock)
    plain.tick(lambda: asked.append("plain"))
    assert "plain" not in asked and not plain.wants_ticks() and plain.out.getvalue() == ""


def test_errors_are_written_above_the_lines(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    both = Terminal()
    shown = console.Console(both, both, Clock())
    shown.tick(lambda: [row(stage="s")])
    shown.err = type("Err", (), {"write": both.write, "flush": both.flush})()
    shown.error("two\nlines")
    shown.event("NOTE", "s", ": said of it")
    assert Screen().feed(both.getvalue()).text == "two\nlines\n[NOTE] s: said of it\n"      # its own line waits for the next tick


# --- the real program on a terminal of its own

WAITS = """
progress = os.environ["PIPELINE_PROGRESS_FILE"]
open(progress + ".x", "w").write(json.dumps({"lineOffset": 1, "bytesDone": 50, "bytesTotal": 200}))
os.replace(progress + ".x", progress)
print("said to nobody", flush=True)
while not os.path.exists("go"):
    time.sleep(0.02)
open(out + "/o", "w").write("x")
sys.exit(1 if os.path.exists("fail") else 0)
"""


class OnTerminal:
    """The real program on a pseudo terminal."""

    def __init__(self, project, *arguments, width=70, **env):
        import fcntl
        import pty
        import struct
        import termios
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
        environ = project.environment(**dict({"TERM": "xterm", "NO_COLOR": "1", "COLUMNS": None, "LINES": None}, **env))
        self.process = subprocess.Popen(project.argv(*arguments), stdin=slave, stdout=slave, stderr=slave, env=environ, start_new_session=True)
        os.close(slave)
        self.seen, self.width = "", width

    def until(self, text):
        """Read until the screen shows *text*, or, for None, until the end."""
        while text is None or text not in self.screen().text:
            try:
                data = os.read(self.master, 4096)
            except OSError:
                data = b""              # Linux: nobody has it open any more
            if not data:
                break
            self.seen += data.decode("utf-8", "replace").replace("\r\n", "\n")
        assert text is None or text in self.screen().text, self.seen
        return self.screen()

    def screen(self):
        return Screen(self.width).feed(self.seen)

    def end(self):
        self.until(None)
        os.close(self.master)
        return self.process.wait(60)


def waiting(project):
    project.write("in.txt", "x\n")
    project.spec({"processor": project.processor("p", WAITS), "inputs": ["in.txt"], "checkpoint": {"enabled": True}, "name": "slow_one"})
    return project


@pytest.mark.skipif(not POSIX, reason="pseudo terminals")
def test_a_running_stage_has_a_line_on_a_terminal_and_nothing_stays(project):
    run = OnTerminal(waiting(project), "--run-id", "r")
    screen = run.until(" 25%  ")
    assert re.search(r"(?m)^slow_one   25%  \d+s so far$", screen.text), screen.text
    project.write("go", "")
    assert run.end() == 0
    lines = run.screen().text.splitlines()
    assert [line for line in lines if not line.startswith(("[OFFLINE]", "[LEDGER]"))][:1] == ["[START] slow_one"] and "so far" not in run.screen().text, run.seen
    assert re.fullmatch(r"Run r state: completed \(1 ok, 0 skipped, 0 failed\) in \d+\.\ds", lines[-1]) and run.screen().colors == 0
    assert "\x1b[?25l" not in run.seen          # the cursor is never hidden, so a kill cannot leave it so


@pytest.mark.skipif(not POSIX, reason="pseudo terminals")
def test_a_narrow_terminal_and_colours(project):
    run = OnTerminal(waiting(project), "--run-id", "r", width=24, NO_COLOR=None)
    line = run.until(" 25%").text.splitlines()[-1]
    assert line == "slow_one   25%"
    assert "\x1b[36m[START]\x1b[0m slow_one" in run.seen and "\x1b[36m%s" % line in run.seen
    project.write("go", "")
    assert run.end() == 0 and run.screen().text.splitlines()[-1] != line


@pytest.mark.skipif(not POSIX, reason="pseudo terminals")
def test_the_line_is_gone_after_a_failure_and_after_ctrl_c(project):
    project.write("fail", "")
    run = OnTerminal(waiting(project), "--run-id", "r")
    run.until("25%")
    project.write("go", "")
    assert run.end() == 1
    assert "    | said to nobody\n[FAIL] slow_one: exit code 1: said to nobody\n" in run.screen().text and "so far" not in run.screen().text, run.seen
    os.unlink(str(project.path("go")))
    run = OnTerminal(project, "--run-id", "s")
    run.until("25%")
    run.process.send_signal(2)
    assert run.end() == 130
    assert "[STOP] slow_one: interrupted\n" in run.screen().text and "so far" not in run.screen().text, run.seen


@pytest.mark.skipif(not POSIX, reason="pseudo terminals")
@pytest.mark.parametrize("arguments, env", [(["--quiet"], {}), (["--log-format", "json"], {}), ([], {"TERM": "dumb"})], ids=["quiet", "json", "dumb"])
def test_where_no_lines_are_drawn(project, arguments, env):
    project.write("go", "")
    run = OnTerminal(waiting(project), "--run-id", "r", *arguments, **env)
    assert run.end() == 0 and "\x1b" not in run.seen and "25%" not in run.seen


def test_nothing_is_drawn_while_another_job_of_the_shell_has_the_terminal(monkeypatch):
    view, stream, clock, _ = view_of()
    stream.fileno = lambda: 1
    owner = [8]
    monkeypatch.setattr(os, "getpgrp", lambda: 7, raising=False)
    monkeypatch.setattr(os, "tcgetpgrp", lambda descriptor: owner[0], raising=False)
    clock.now = 3.0
    assert not view.is_due()
    owner[0] = 7
    assert view.is_due()
    stream.fileno = lambda: (_ for _ in ()).throw(OSError(25, "not a terminal"))
    assert view.is_due()
