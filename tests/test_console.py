"""What a run prints: the stable lines, only failures (--quiet), processors' output (--verbose), one JSON object per event."""
from __future__ import annotations

import errno
import io
import json
import os
import re
import types

import pytest

import live_view
import log_events
from console import Console
from model import STATUSES


class Clock:
    def monotonic(self):
        return 0.0

    def time(self):
        return 1700000000.25


def made(quiet=False, log_format="text"):
    shown = Console(io.StringIO(), io.StringIO(), Clock())
    shown.configure(types.SimpleNamespace(quiet=quiet, log_format=log_format, run_id="r1"))
    return shown


def speak(shown):
    """Say one thing of each kind."""
    shown.line("[OFFLINE] kernel: network closed for this run (seccomp, probed)")
    shown.event("START", "s")
    shown.stream("s", b"hello\npart")
    shown.end_stream("s")
    shown.tail(b"one\ntwo\n", "s")
    shown.event("RETRY", "s", " attempt 1/2: exit code 1; next in 0.10s")
    shown.warnings(["bin/x.py:1: ctypes"])
    shown.tail(b"three\n", "s")
    shown.event("FAIL", "s", ": exit code 1")
    shown.error("error: two\nlines")
    shown.line("[LEDGER] head 2: 9f3a-77c1")
    shown.summary("r1", "failed", dict(dict.fromkeys(STATUSES, 0), failed=1, notRun=1), 1.26)
    return shown.out.getvalue(), shown.err.getvalue()


def test_the_stable_lines():
    out, err = speak(made())
    assert out == ("[OFFLINE] kernel: network closed for this run (seccomp, probed)\n[START] s\ns | hello\ns | part\n[RETRY] s attempt 1/2: exit code 1; next in 0.10s\n"
                   "[FAIL] s: exit code 1\n[LEDGER] head 2: 9f3a-77c1\nRun r1 state: failed (0 ok, 0 skipped, 1 failed, 1 not run) in 1.3s\n")
    assert err == "    | one\n    | two\n[OFFLINE] warning: bin/x.py:1: ctypes\n    | three\nerror: two\nlines\n"


def test_quiet_shows_failures_only_and_only_the_output_of_the_last_attempt():
    out, err = speak(made(quiet=True))
    assert out == "[FAIL] s: exit code 1\nRun r1 state: failed (0 ok, 0 skipped, 1 failed, 1 not run) in 1.3s\n"
    assert err == "    | three\nerror: two\nlines\n"


def test_quiet_says_nothing_of_what_succeeds_in_the_end():
    shown = made(quiet=True)
    shown.tail(b"try again\n", "s")
    shown.event("DONE", "s", " in 0.100s")
    shown.tail(b"of t\n", "t")
    shown.event("FAIL", "t", ": exit code 1")
    shown.summary("r1", "completed", dict.fromkeys(STATUSES, 0), 1.0)
    assert (shown.out.getvalue(), shown.err.getvalue()) == ("[FAIL] t: exit code 1\n", "    | of t\n")


@pytest.mark.parametrize("quiet", [False, True])
def test_every_event_is_a_json_object(quiet):
    out, err = speak(made(quiet, "json"))
    events = [json.loads(line) for line in out.splitlines()]
    assert all(list(one)[:3] == ["time", "event", "run"] and one["time"] == "2023-11-14T22:13:20.250Z" and one["run"] == "r1" for one in events)
    kinds = ["offline", "start", "output", "output", "tail", "tail", "retry", "warning", "tail", "fail", "error", "ledger", "summary"]
    assert [one["event"] for one in events] == (["tail", "fail", "error", "summary"] if quiet else kinds)
    assert err == "error: two\nlines\n"
    assert {key: value for key, value in events[-1].items() if key not in ("time", "event", "run")} == {
        "state": "failed", "ok": 0, "skipped": 0, "failed": 1, "interrupted": 0, "waiting": 0, "notRun": 1, "durationMs": 1260}


@pytest.mark.parametrize("kind, text, fields", [
    ("START", "", {}), ("START", " (3 tasks: 2 to do, 1 up to date)", {"text": "3 tasks: 2 to do, 1 up to date"}), ("RESUME", " from line 12", {"line": 12}), ("SKIP", " (up to date: key 1 (x))", {"reason": "up to date: key 1 (x)"}),
    ("RETRY", " attempt 1/3: exit code 75; next in 0.20s", {"attempt": 1, "attempts": 3, "reason": "exit code 75", "delayMs": 200}),
    ("RETRY", " attempt 1/3: a; next in b; next in 1.05s", {"attempt": 1, "attempts": 3, "reason": "a; next in b", "delayMs": 1050}),
    ("DONE", " in 12.345s", {"durationMs": 12345}), ("DONE", " in 12.345s (3 tasks)", {"durationMs": 12345, "text": "(3 tasks)"}),
    ("FAIL", ": exit code 1: x", {"reason": "exit code 1: x"}), ("STOP", ": interrupted", {"reason": "interrupted"}), ("NOTE", ": two\nlines", {"text": "two\nlines"}),
    ("WAITING", " (inputs still grow)", {"text": "(inputs still grow)"}), ("DONE", " somehow", {"text": "somehow"})])
def test_fields_of_events(kind, text, fields):
    assert log_events.event_of(kind, "s", text) == dict({"event": kind.lower(), "stage": "s"}, **fields)
    assert log_events.event_of(kind, "s a task", text) == dict({"event": kind.lower(), "stage": "s", "task": "a task"}, **fields)


@pytest.mark.parametrize("line, event", [
    ("[LEDGER] head 12: 9f3a-77c1", {"event": "ledger", "head": "12: 9f3a-77c1"}), ("[LEDGER] a torn line", {"event": "ledger", "text": "a torn line"}),
    ("[OFFLINE] stage s: x", {"event": "offline", "text": "stage s: x"}), ("plain", {"event": "message", "text": "plain"})])
def test_events_of_lines(line, event):
    assert log_events.event_of_line(line) == event


def test_json_lines_are_ascii_and_one_line_each():
    shown = made(log_format="json")
    shown.event("FAIL", "größe", ": \u2028 two\nlines \ud800", exitCode=3)
    line = shown.out.getvalue()
    assert line.isascii() and line.count("\n") == 1 and line.endswith("\n")
    assert json.loads(line)["exitCode"] == 3 and json.loads(line)["reason"] == "\u2028 two\nlines \ud800"


def test_the_output_of_several_stages_is_kept_apart():
    shown = made()
    shown.stream("a", b"one ")
    shown.stream("b", b"two ")
    shown.stream("a", b"more\r\nrest of a")
    shown.stream("b", "größe\n".encode("utf-8")[:4])
    shown.stream("b", "größe\n".encode("utf-8")[4:])
    shown.end_stream("a")
    shown.stream("b", b"rest of b")
    shown.end_stream("b")
    assert shown.out.getvalue() == "a | one more\nb | two größe\na | rest of a\nb | rest of b\n"
    shown.end_stream("b")
    assert shown.out.getvalue().count("rest") == 2


def test_a_line_without_end_is_shown_in_pieces():
    shown = made()
    for _ in range(9):
        shown.stream("a", b"x" * 10000)
    assert shown.out.getvalue() == "a | %s\n" % ("x" * 70000)


class Unwritable(io.StringIO):
    """A stream whose every flush fails, as from Python 3.14 on after a full disk: what could not be written is tried again."""

    number = errno.ENOSPC

    def flush(self):
        raise OSError(self.number, os.strerror(self.number))


def test_bytes_that_a_full_disk_takes_are_noted_once_and_a_reader_who_is_gone_is_told_of():
    shown = Console(Unwritable(), io.StringIO(), Clock())
    shown.put_bytes(b"{}\n")
    shown.settle()
    assert shown.lost == os.strerror(errno.ENOSPC) and shown.err.getvalue() == ""
    shown = Console(Unwritable(), io.StringIO(), Clock())
    shown.out.number = errno.EPIPE
    with pytest.raises(BrokenPipeError):
        shown.put_bytes(b"{}\n")
    assert shown.lost == ""


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


@pytest.mark.parametrize("environ, colored", [({"TERM": "xterm"}, True), ({"TERM": "dumb"}, False), ({"TERM": "xterm", "NO_COLOR": "1"}, False)])
def test_colours_only_on_terminals_that_may_have_them(monkeypatch, environ, colored):
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(live_view, "enable_terminal", lambda: True)
    shown = Console(Terminal(), io.StringIO(), Clock())
    shown.configure(types.SimpleNamespace(quiet=False, log_format="text", run_id="r"))
    shown.event("FAIL", "s", ": \x1b[2J")
    assert shown.out.getvalue() == ("\x1b[31m[FAIL]\x1b[0m s: \\x1b[2J\n" if colored else "[FAIL] s: \\x1b[2J\n")


# --- the real program

@pytest.fixture
def mixed(project):
    """One stage that succeeds, one that succeeds the second time, one that fails; each prints."""
    project.write("in.txt", "x\n")
    project.processor("p", "name = os.environ['PIPELINE_STAGE_NAME']\nprint(name, 'größe', flush=True)\nsys.stderr.write('no line end')\n"
                           "sys.exit(3 if name == 'c' or (name == 'b' and os.environ['PIPELINE_ATTEMPT'] == '1') else 0)")
    stage = {"processor": "bin/p.py", "inputs": ["in.txt"]}
    project.spec(dict(stage, name="a"), dict(stage, name="b", retry={"attempts": 2, "baseDelayMs": 0}), dict(stage, name="c"))
    return project


def test_json_events_of_a_run(mixed):
    done = mixed.run("--run-id", "r", "--log-format", "json", "--verbose")
    events = [json.loads(line) for line in done.out.splitlines()]
    assert done.code == 1 and all(one["run"] == "r" and re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", one["time"]) for one in events), done
    of_stages = [(one["event"], one["stage"]) for one in events if one.get("stage") and one["event"] not in ("output", "tail")]
    assert of_stages == [("start", "a"), ("done", "a"), ("start", "b"), ("retry", "b"), ("start", "b"), ("done", "b"), ("start", "c"), ("fail", "c")]
    assert [one["attempt"] for one in events if one["event"] == "start"] == [1, 1, 2, 1]
    assert [one["text"] for one in events if one["event"] == "output" and one["stage"] == "a"] == ["a größe", "no line end"]
    assert events[-1]["event"] == "summary" and (events[-1]["ok"], events[-1]["failed"], events[-1]["state"]) == (2, 1, "failed")
    assert events[-2]["event"] == "ledger" and done.err == ""
    again = [json.loads(line) for line in mixed.run("--run-id", "r", "--log-format=json").out.splitlines()]
    assert [(one["stage"], "reason" in one) for one in again if one["event"] == "skip"] == [("a", True), ("b", True)]


def test_the_delay_before_a_retry_is_told_to_programs_in_full(project):
    """Its line rounds it to hundredths of a second."""
    delays = {4: "0.00", 126: "0.13"}
    body = "sys.exit(75 if os.environ['PIPELINE_ATTEMPT'] == '1' else 0)\n"
    project.spec(*[{"name": "s%d" % ms, "processor": project.processor("p", body), "outputDir": "data/%d" % ms,
                    "retry": {"attempts": 2, "baseDelayMs": ms}} for ms in delays])
    events = [json.loads(line) for line in project.ok("--log-format", "json").out.splitlines()]
    assert [(one["stage"], one["attempt"], one["attempts"], one["delayMs"]) for one in events if one["event"] == "retry"] == [("s4", 1, 2, 4), ("s126", 1, 2, 126)]
    project.processor("p", body + "# anew\n")
    lines = [line for line in project.ok().steps if line.startswith("[RETRY]")]
    assert lines == ["[RETRY] s%d attempt 1/2: exit code 75; next in %ss" % one for one in delays.items()]


def test_what_stops_the_program_before_a_run_begins_is_one_event_unless_the_command_line_is_wrong(mixed):
    mixed.write("pipeline.json", '{"name": "x", "stages": [{"name": "a"}, {"name": "a"}]}')
    done = mixed.run("--log-format", "json")
    event, = map(json.loads, done.out.splitlines())
    assert done.code == 2 and event["event"] == "error" and event["text"] + "\n" == done.err and "stages[1]" in done.err, done
    done = mixed.run("--log-format", "json", "--bogus")
    assert done.code == 2 and done.out == "" and "unknown option --bogus" in done.err, done


@pytest.mark.parametrize("keys", [{"forEach": "in/*.txt"}, {"inputs": ["in/*.txt"], "chunks": {"bytes": 2}}], ids=["forEach", "chunks"])
def test_the_end_of_a_stage_of_tasks_tells_how_many_it_did(project, keys):
    for name in "ab":
        project.write("in/%s.txt" % name, "x\n")
    project.processor("copy", "from processor_kit import lines\nlines(str.upper, os.path.basename(inputs[0]))\n")
    project.spec(dict(keys, name="s", processor="bin/copy.py"))
    done, = [one for one in map(json.loads, project.ok("--log-format", "json").out.splitlines()) if one["event"] == "done"]
    assert done["text"] == ("(2 chunks)" if "chunks" in keys else "(2 tasks)") and done["durationMs"] > 0


def test_quiet_run(mixed):
    done = mixed.run("--run-id", "r", "--quiet")
    assert done.code == 1
    assert re.sub(r"in \d+\.\ds", "in Ns", done.out) == "[FAIL] c: exit code 3: no line end\nRun r state: failed (2 ok, 0 skipped, 1 failed) in Ns\n"
    assert done.err == "    | c größe\n    | no line end\n"
    done = mixed.run("--run-id", "s", "--quiet", "--until", "b")
    assert (done.code, done.out, done.err) == (0, "", "")


def test_verbose_run_of_several_stages(mixed):
    done = mixed.run("--run-id", "r", "--verbose")
    assert [line for line in done.out.splitlines() if " | " in line] == [
        "a | a größe", "a | no line end", "b | b größe", "b | no line end", "b | b größe", "b | no line end", "c | c größe", "c | no line end"]


def test_quiet_and_verbose_exclude_each_other(mixed):
    mixed.knows_scans = False
    done = mixed.run("--quiet", "--verbose")
    assert done.code == 2 and "--quiet prints failures only, --verbose everything" in done.err and not mixed.exists("state")
