"""Looking at a pipeline: status, history, logs, explain. On every state that it can be in, and without writing anything."""
from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
from conftest import RUNNER, run_without_might

import look_commands
import model
import pipeline_runner
import planning
import run_history
import stage_explanation
import stage_locks
import stage_logs
import stage_progress
from look_commands import status_word

POSIX = sys.platform != "win32"
COMMANDS = (["status"], ["history"], ["history", "b"], ["logs", "b"], ["explain", "b"])
PROCESSOR = """
name = os.environ["PIPELINE_STAGE_NAME"]
print("log of", name, "\\x1b[31mred\\tx", flush=True)
if os.path.exists("fail-" + name):
    sys.exit(3)
while os.path.exists("wait-" + name):
    time.sleep(0.02)
open(out + "/o", "w").write("made by " + name)
"""


@pytest.fixture
def pipeline(project):
    """Two stages, b after a; the files fail-NAME and wait-NAME make them fail and wait."""
    project.write("in.txt", "x\n")
    project.processor("p", PROCESSOR)
    project.spec({"name": "a", "processor": "bin/p.py", "inputs": ["in.txt"], "params": {"day": 1}},
                 {"name": "b", "processor": "bin/p.py", "inputs": ["data/s1/o"]})
    return project


def called(project, *words):
    """Do a command in this process, which is as good for what only reads, and quicker; return (code, stdout, stderr)."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = pipeline_runner.main([*words, "--pipeline", str(project.path("pipeline.json"))])
    return code, out.getvalue(), err.getvalue()


def look(project, *words):
    """Do a command, which must succeed and write nothing; return what it printed."""
    before = project.snapshot()
    code, out, err = called(project, *words)
    assert (code, err) == (0, ""), (words, out, err)
    assert project.snapshot() == before, words
    return out


def document(project, *words):
    """Return the JSON document of a command."""
    out = look(project, *words, "--json")
    assert out.isascii()
    found = json.loads(out)
    assert found["schema"] == 1
    return found


def stages_of(project):
    return {one["stage"]: one for one in document(project, "status")["stages"]}


def states(project):
    return {name: (one["status"], one["action"]) for name, one in stages_of(project).items()}


class running:
    """A run that waits in stage b; ended on leaving."""

    def __init__(self, project, run_id="live"):
        self.project = project
        project.write("wait-b", "")
        self.process = project.start("--run-id", run_id)

    def __enter__(self):
        log = self.project.path("state/logs/live/b.1.log")
        until(lambda: log.exists() and b"log of b" in log.read_bytes())
        return self

    def go_on(self):
        self.project.path("wait-b").unlink()

    def __exit__(self, *_):
        if self.project.exists("wait-b") and self.process.poll() is None:
            self.go_on()                # not after a kill: its processor would finish before it is ended
        self.process.communicate(timeout=60)


def until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# --- on each state of a pipeline

def test_a_fresh_project(pipeline):
    assert states(pipeline) == {"a": ("neverRun", "RUN"), "b": ("neverRun", "PENDING")}
    assert look(pipeline, "status").splitlines() == [
        "STAGE  STATUS", "a      never run", "    would run: no record of an earlier run", "b      never run", "    waits for a", "", "no runs yet"]
    assert look(pipeline, "history") == "no runs yet\n" and look(pipeline, "history", "a") == "no run has worked on stage a\n"
    assert look(pipeline, "logs", "a") == "stage a has never run\n" and look(pipeline, "logs", "a", "--follow") == "stage a has never run\n"
    assert look(pipeline, "explain", "a").endswith("would run: no record of an earlier run\n")
    assert document(pipeline, "logs", "a")["logs"] == [] and document(pipeline, "history", "a")["entries"] == []
    assert not pipeline.exists("state") and not pipeline.exists("locks")


def test_what_is_up_to_date(pipeline):
    pipeline.ok("--run-id", "r")
    found = stages_of(pipeline)
    assert {name: (one["status"], one["action"], one["lastRunId"], one["attempts"], one["holder"]) for name, one in found.items()} == {
        "a": ("ok", "SKIP", "r", 1, None), "b": ("ok", "SKIP", "r", 1, None)}
    assert all(0 < one["durationMs"] < 60000 and 0 <= one["outputsAgeSec"] < 600 for one in found.values())
    heading, first, second, *_ = look(pipeline, "status").splitlines()
    assert heading.split() == ["STAGE", "STATUS", "LAST", "RUN", "WHEN", "TOOK", "TRIES", "OUTPUTS"]
    assert re.fullmatch(r"a +ok +r +\d+ s ago +\d\.\d\d s +1 +\d+ s old", first) and second.startswith("b ")
    pipeline.ok("--run-id", "s")
    runs = document(pipeline, "status")["runs"]
    assert [(run["runId"], run["state"], run["ok"], run["skipped"], run["failed"]) for run in runs] == [("s", "completed", 0, 2, 0), ("r", "completed", 2, 0, 0)]
    assert [run["runId"] for run in document(pipeline, "history")["runs"]] == ["r", "s"]
    assert [run["runId"] for run in document(pipeline, "status", "--last", "1")["runs"]] == ["s"]
    assert [one["runId"] for one in document(pipeline, "history", "b")["entries"]] == ["r"]         # a skip is no work
    assert re.search(r"(?m)^s +completed +\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ +\d\.\d\d s +0 +2 +0$", look(pipeline, "status"))


def test_runs_of_another_pipeline_below_the_same_root_are_named(pipeline):
    pipeline.ok("--run-id", "r")
    pipeline.write("pipeline.json", json.dumps(dict(pipeline.json("pipeline.json"), name="other")))
    assert re.search(r"(?m)^RUN .* PIPELINE$", look(pipeline, "status")) and re.search(r"(?m)^r +completed .* test$", look(pipeline, "history"))
    assert document(pipeline, "status")["runs"][0]["pipeline"] == "test"


def test_what_is_stale_and_why(pipeline):
    pipeline.ok("--run-id", "r")
    pipeline.write("in.txt", "other\n")
    assert states(pipeline) == {"a": ("stale", "RUN"), "b": ("pending", "PENDING")}
    assert "    would run: input in.txt changed\n" in look(pipeline, "status")
    assert states(pipeline)["b"] == ("pending", "PENDING")
    pipeline.path("in.txt").unlink()
    assert "    would fail: input in.txt: there is no such file\n" in look(pipeline, "status")
    pipeline.write("in.txt", "x\n")
    pipeline.path("data/s1/o").write_text("tampered")
    assert "    would run: output o changed\n" in look(pipeline, "status", "--only", "a")


def test_a_failed_stage(pipeline):
    pipeline.write("fail-b", "")
    pipeline.run("--run-id", "r")
    found = stages_of(pipeline)
    why = "exit code 3: log of b \x1b[31mred\tx"
    assert (found["b"]["status"], found["b"]["lastError"], found["b"]["reasons"]) == ("failed", why, ["last run failed: " + why])
    assert document(pipeline, "status")["runs"][0]["failed"] == 1
    assert "failed" in look(pipeline, "history", "b") and "median" not in look(pipeline, "history", "b")
    assert look(pipeline, "logs", "b") == "==> run r, attempt 1: state/logs/r/b.1.log\nlog of b \\x1b[31mred\tx\n"
    assert look(pipeline, "explain", "b").endswith("would run: last run failed: exit code 3: log of b \\x1b[31mred\\tx\n")


@pytest.mark.skipif(not POSIX, reason="signals")
def test_while_a_run_is_going_on(pipeline):
    with running(pipeline) as live:
        before = pipeline.snapshot()
        found = stages_of(pipeline)
        assert (found["a"]["status"], found["a"]["reasons"]) == ("ok", ["finished by run live, which goes on"])
        assert (found["b"]["status"], found["b"]["holder"]["pid"], found["b"]["holder"]["runId"]) == ("running", live.process.pid, "live")
        assert "    held by pid %d on " % live.process.pid in look(pipeline, "status")
        assert [(run["runId"], run["state"]) for run in document(pipeline, "history")["runs"]] == [("live", "running")]
        assert "log of b" in look(pipeline, "logs", "b") and "held by pid" in look(pipeline, "explain", "b")
        found = document(pipeline, "explain", "b")
        assert (found["status"], found["reasons"], found["attempts"]) == ("running", ["running now"], 1) and found["durationMs"] is not None
        out = look(pipeline, "explain", "b")
        assert out.endswith("\nrunning now\n") and ", 1 attempt\n" in out and ", at work for " in out and "would run" not in out, out
        assert pipeline.snapshot() == before
        live.process.kill()
        live.process.wait(60)
    assert states(pipeline)["b"] == ("died", "RUN")
    assert [(run["runId"], run["state"]) for run in document(pipeline, "history")["runs"]] == [("live", "open")]
    assert "last run died" in look(pipeline, "status")


def test_a_killed_run_is_told_of_alike_by_all_commands_also_when_the_next_one_has_closed_it(project):
    """Its attempts are in its logs only. The run that closes it fails the stage before it begins: the stage's record stays that of the killed one."""
    body = "if os.environ['PIPELINE_ATTEMPT'] != '3':\n    sys.exit(75)\nprint('here', flush=True)\ntime.sleep(60)\n"
    project.spec({"name": "l", "processor": project.processor("p", body), "inputs": ["in.txt"], "retry": {"attempts": 5, "baseDelayMs": 1}})
    project.write("in.txt", "x")
    project.kill_once_logged("state/logs/k1/l.3.log", b"here", "--run-id", "k1")
    project.write("state/logs/k1/l.\u00b2.log", "")        # a digit, to Python, but no number

    def told():
        explained = document(project, "explain", "l")
        entries = document(project, "history", "l")["entries"]
        stage = stages_of(project)["l"]
        assert stage["durationMs"] is None and ", 3 attempts\n" in look(project, "explain", "l")
        return [(one["status"], one["attempts"]) for one in (stage, explained)], [(one["runId"], one["status"], one["attempts"]) for one in entries]
    assert told() == ([("died", 3)] * 2, [("k1", "died", 3)])
    project.path("in.txt").unlink()
    assert project.run("--run-id", "k2").code == 1
    assert [(run["runId"], run["state"]) for run in document(project, "history")["runs"]] == [("k1", "interrupted"), ("k2", "failed")]
    assert told() == ([("died", 3)] * 2, [("k1", "died", 3), ("k2", "failed", 0)])


def test_the_records_of_the_stages_are_read_once_for_all_runs_that_died(pipeline, monkeypatch):
    """There may be thousands of both."""
    pipeline.ok("--run-id", "r")
    whole = pipeline.json("state/run_r.json")
    for number in range(5):
        name = "d%d" % number
        pipeline.write("state/run_%s.json" % name, json.dumps(dict(whole, runId=name, state="interrupted", endedAt=None, durationMs=None, stages=[])))
    read, real = [], run_history._read_record
    monkeypatch.setattr(run_history, "_read_record", lambda root, name: (read.append(name), real(root, name))[1])
    runs, _ = run_history.newest_runs(str(pipeline.root), 10)
    assert len(runs) == 6 and sorted(name for name in read if name.startswith("stage_")) == ["stage_a.json", "stage_b.json"]


def test_damaged_records_are_named_and_the_rest_is_shown(pipeline):
    pipeline.ok("--run-id", "r")
    pipeline.ok("--run-id", "s", "--force", "a,b")
    pipeline.write("state/run_s.json", "{ torn")
    pipeline.write("state/stage_b.json", "nonsense")
    assert states(pipeline) == {"a": ("ok", "SKIP"), "b": ("damaged", "FAIL")}
    out = look(pipeline, "status")
    assert "[PROBLEM] state/stage_b.json is damaged (not JSON); a run would set it aside\n" in out and "[PROBLEM] state/run_s.json is damaged" in out
    runs = document(pipeline, "status")["runs"]
    assert [(run["runId"], run["state"], run["ok"], bool(run["problem"])) for run in runs] == [("s", "completed", None, True), ("r", "completed", 2, False)]
    assert [one["runId"] for one in document(pipeline, "history", "a")["entries"]] == ["r"] and "run_s.json" in look(pipeline, "history", "a")
    logs = document(pipeline, "logs", "b")             # the newest run that has any
    assert logs["runId"] == "s" and "log of b" in logs["logs"][0]["text"] and "stage_b.json" in logs["note"]
    found = document(pipeline, "explain", "b")
    assert found["status"] == "damaged" and found["parts"] == [] and "damaged" in found["reasons"][0] and "[PROBLEM]" in look(pipeline, "explain", "b")


@pytest.mark.parametrize("odd", ["x", {"a": [1]}, "\0"], ids=ascii)
def test_what_is_of_another_type_in_a_record_is_shown_as_not_known(project, odd):
    """A field at a time, of the record of a stage and of its entry in that of its run."""
    project.write("in.txt", "x")
    project.processor("p", PROCESSOR)
    project.spec({"name": "b", "processor": "bin/p.py", "forEach": "in.txt"})
    project.ok("--run-id", "r")
    for name in ("stage_b.json", "run_r.json"):
        whole = project.json("state/" + name)
        part = whole if name == "stage_b.json" else whole["stages"][0]
        for place, fields in [(part, list(part)), (part["tasks"], ["ok", "total"]), (part["outputs"][0], ["path"]), (whole, ["runId", "startedAt"])]:
            for field in set(fields) - {"schema"}:
                before = place.get(field)
                place[field] = odd
                project.write("state/" + name, json.dumps(whole))
                place[field] = before
                for words in (*COMMANDS, ["status", "--json"], ["report", "-o", str(project.path("r.html"))]):
                    code, out, err = called(project, *words)
                    assert code in (0, 2) and "Traceback" not in out + err, (field, words, out, err)
        project.write("state/" + name, json.dumps(whole))


def test_missing_records_and_a_damaged_ledger(pipeline):
    pipeline.ok("--run-id", "r")
    pipeline.ok("--run-id", "s")
    pipeline.path("state/run_r.json").unlink()
    out = look(pipeline, "history")
    assert re.search(r"(?m)^r +completed .* its record is gone$", out) and "[PROBLEM]" not in out
    data = pipeline.path("state/ledger.jsonl").read_bytes().splitlines(True)
    pipeline.write("state/ledger.jsonl", b"".join(data[:-1]) + b"garbage\n" + data[-1][:40])
    assert [run["runId"] for run in document(pipeline, "history")["runs"]] == ["r", "s"]        # s by its record
    assert "[PROBLEM] state/ledger.jsonl: 1 damaged line left out" in look(pipeline, "status")
    pipeline.path("state/ledger.jsonl").unlink()
    assert [run["runId"] for run in document(pipeline, "history")["runs"]] == ["s"]
    for command in ("history", "status"):
        assert "[PROBLEM] state/ledger.jsonl is missing: the runs are shown as their records tell, for which nothing vouches\n" in look(pipeline, command)
    pipeline.write("state/ledger.jsonl", "")
    assert "[PROBLEM] state/ledger.jsonl has no entry: the runs are shown as their records tell" in look(pipeline, "status")
    pipeline.ok("--run-id", "t")
    assert "[PROBLEM] state/ledger.jsonl does not have 1 of the finished runs: it was cut off, or begun anew; `verify` tells more\n" in look(pipeline, "status")
    assert [run["runId"] for run in document(pipeline, "history")["runs"]] == ["s", "t"]
    shutil.rmtree(str(pipeline.path("state")))
    for words in COMMANDS:
        look(pipeline, *words)


def test_a_run_that_ends_while_the_ledger_is_read_is_not_missed_in_it(pipeline, monkeypatch):
    pipeline.ok("--run-id", "r")
    before = pipeline.read("state/ledger.jsonl")
    pipeline.ok("--run-id", "s")
    after = pipeline.read("state/ledger.jsonl")
    pipeline.write("state/ledger.jsonl", before)
    real = run_history._runs_by_time
    monkeypatch.setattr(run_history, "_runs_by_time", lambda *arguments: (pipeline.write("state/ledger.jsonl", after), real(*arguments))[1])
    runs, problems = run_history.newest_runs(str(pipeline.root), 9)
    assert [one.run_id for one in runs] == ["s", "r"] and problems == []


def test_the_order_of_runs_is_that_of_the_ledger_though_a_clock_was_wrong_once():
    def run(name, ended, state="completed"):
        return run_history.PastRun(name, 1, "p", state, ended, ended if state == "completed" else "", 1, {}, [], "")
    ledger = [run("n3", "2026-01-04"), run("future", "2036-01-01"), run("n1", "2026-01-02")]
    others = [run("now", "2026-01-05", "running"), run("lost", "2026-01-03"), run("oldest", "1999")]
    assert [one.run_id for one in run_history._merged(ledger, others)] == ["now", "n3", "future", "lost", "n1", "oldest"]


@pytest.mark.skipif(not POSIX or os.geteuid() == 0 and not os.path.exists("/usr/bin/setpriv"), reason="needs a user that may not write")
def test_on_a_folder_that_cannot_be_written(pipeline):
    pipeline.ok("--run-id", "r")
    folders = [path for path in [pipeline.root, *pipeline.root.rglob("*")] if path.is_dir()]
    for path in folders:
        path.chmod(0o555)
    drop = ["setpriv", "--bounding-set", "-all", "--inh-caps", "-all"] if os.geteuid() == 0 else []
    try:
        for words in COMMANDS:
            done = subprocess.run(drop + pipeline.argv(*words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60)
            assert (done.returncode, done.stderr) == (0, b""), done
    finally:
        for path in folders:
            path.chmod(0o755)


@contextlib.contextmanager
def shut(path):
    """As what another user keeps for himself."""
    mode = path.stat().st_mode & 0o7777
    path.chmod(0)
    try:
        yield
    finally:
        path.chmod(mode)


@pytest.mark.skipif(not POSIX, reason="rights")
@pytest.mark.parametrize("path, reason, marker, output", [
    ("data/s1/.s1.done", "the marker cannot be read", "cannot be read", "all verified"), ("data/s1/in.txt", "output in.txt cannot be read", "stands", "1 not as recorded\n  unreadable in.txt")])
def test_what_may_not_be_read_is_not_called_missing_or_of_another_key_and_a_run_makes_it_anew(project, path, reason, marker, output):
    project.write("data/in.txt", "x\n")
    project.spec({"processor": "bin/stage_copy.py", "inputs": ["data/in.txt"]})
    project.ok()
    with shut(project.path(path)):
        told = run_without_might(project, "plan").stdout
        assert told == "RUN     s1 (%s)\n" % reason, told
        told = run_without_might(project, "explain", "s1").stdout
        assert "marker: %s (data/s1/.s1.done)\noutputs: 1 recorded, %s\n" % (marker, output) in told and told.endswith("would run: %s\n" % reason), told
        done = run_without_might(project)
        assert done.returncode == 0 and "[DONE] s1" in done.stdout, done
    assert "[SKIP] s1" in project.ok().out


@pytest.mark.skipif(not POSIX, reason="rights")
@pytest.mark.parametrize("how", [{"inputs": ["data/in.txt"]}, {"forEach": "data/in.txt"}])
def test_an_output_folder_that_may_not_be_looked_into_is_named_and_fails_the_stage_only(project, how):
    project.write("data/in.txt", "x\n")
    project.spec(dict({"processor": "bin/stage_copy.py"}, **how), {"processor": "bin/stage_copy.py", "inputs": ["data/in.txt"]})
    project.ok()
    why = "cannot look into its output folder data/s1: the rights for that are missing"
    with shut(project.path("data/s1")):
        assert "FAIL    s1 (%s)\n" % why in run_without_might(project, "plan").stdout
        done = run_without_might(project, "--keep-going")
        assert done.returncode == 1 and "[FAIL] s1: %s\n" % why in done.stdout and "[SKIP] s2" in done.stdout, done
        told = run_without_might(project, "explain", "s1").stdout
        assert "marker: cannot be read (data/s1/.s1.done)\noutputs: 1 recorded, 1 not as recorded\n  unreadable in.txt\n" in told, told
        assert told.endswith("would fail: %s\n" % why) and " removed " not in told, told
        assert run_without_might(project, "--only", "s2").returncode == 0


@pytest.mark.skipif(not POSIX, reason="rights")
def test_where_the_records_may_not_be_read_nothing_is_said_to_be_absent(project):
    project.write("data/in.txt", "x\n")
    project.spec({"processor": "bin/stage_copy.py", "inputs": ["data/in.txt"]})
    project.ok()
    problem = "[PROBLEM] state/ledger.jsonl cannot be read: Permission denied\n"
    with shut(project.path("state")):
        told = run_without_might(project, "explain", "s1").stdout
        assert "marker: not compared (data/s1/.s1.done)\noutputs: not known\n" in told and "[PROBLEM] state/stage_s1.json: Permission denied\n" in told, told
        assert [run_without_might(project, *words).stdout for words in (["history"], ["history", "s1"])] == [problem] * 2
        told = run_without_might(project, "status").stdout
        assert "no runs" not in told and told.endswith(problem), told
        done = run_without_might(project, "validate")
        assert done.returncode == 0 and done.stdout.endswith("pipeline.json: ok (1 stage)\n"), done
        assert "[NOTE] a run here would be refused: " in done.stdout and "state/ledger.jsonl: Permission denied" in done.stdout, done


def test_what_cannot_be_looked_at(pipeline):
    pipeline.ok("--run-id", "r")
    for words, message in (
            (["history", "c"], "no stage is named"), (["logs", "c"], "no stage is named"), (["explain", "aa"], "did you mean a?"),
            (["logs", "a", "--run", "nix"], "there is no run nix; the last ones are: r"), (["logs", "a", "--run", "../r"], "there is no run ../r"),
            (["logs", "a", "--follow", "--json"], "leave --json out"), (["logs"], "logs needs the name of one stage"), (["status", "--last", "0"], "--last"),
            (["status", "a"], "status takes no further words"), (["plan", "--json"], "--json goes with")):
        code, out, err = called(pipeline, *words)
        assert (code, out) == (2, "") and message in err and err.count("\n") == 1, (words, err)


@pytest.mark.parametrize("is_pruned", [False, True])
def test_a_run_is_asked_for_by_its_own_name_where_the_file_system_answers_to_others(pipeline, is_pruned):
    pipeline.ok("--run-id", "night")
    if is_pruned:
        pipeline.path("state/run_night.json").unlink()      # its logs are left
    elif not pipeline.exists("state/run_NIGHT.json"):
        os.link(str(pipeline.path("state/run_night.json")), str(pipeline.path("state/run_NIGHT.json")))
    for words in (["logs", "a", "--run", "NIGHT"], ["logs", "a", "--follow", "--run", "NIGHT"], ["report", "NIGHT"]):
        code, out, err = called(pipeline, *words)
        assert (code, out, err) == (2, "", "error: there is no run NIGHT; there is a run night\n"), words
    assert not os.path.exists("report_NIGHT.html")
    for words in (["logs", "a", "--run", "night"], ["report", "night", "-o", str(pipeline.path("r.html"))]):
        assert called(pipeline, *words)[0] == 0, words


@pytest.mark.skipif(not POSIX, reason="Windows knows no mark of what can be executed")
@pytest.mark.parametrize("is_gone", [True, False])
def test_commands_that_start_no_processor_do_without_it(project, is_gone):
    project.processor("p", "open(out + '/o', 'w').write('x')\n")
    project.write("bin/tool", "#!/bin/sh\necho x > \"$PIPELINE_OUTPUT_DIR/o\"\n", executable=True)
    project.write("in.txt", "x\n")
    project.spec({"name": "a", "processor": "bin/p.py", "inputs": ["in.txt"]}, {"name": "b", "processor": "bin/tool", "inputs": ["data/s1/o"]},
                 {"name": "c", "processor": "bin/tool", "forEach": ["data/s1/*"]}, onFailure=["bin/tool"])
    project.ok("--run-id", "r1")
    if is_gone:
        project.path("bin/p.py").unlink()
        project.path("bin/tool").unlink()
    else:
        project.path("bin/tool").chmod(0o644)
    for words in COMMANDS + (["explain", "a"], ["explain", "c"], ["logs", "a"], ["report", "-o", "../r.html"], ["graph"], ["clean"], ["gc", "--keep-runs", "1"],
                             ["export", "r1"], ["evidence", "r1", "-o", "../e.zip"], ["verify", "--outputs"], ["reset", "b"], ["reset", "--yes", "b"]):
        done = project.ok(*words, cwd=str(project.root))
        names = {"status": ["p.py"], "explain": ["p.py" if words[-1:] == ["a"] else "tool"]}.get(words[0], [])
        assert all(("bin/%s: No such file" % name in done.out) == is_gone for name in names), done
    for words in ([], ["plan"], ["validate"], ["scan"], ["accept", "a", "--reason", "x"]):
        done = project.run(*words)
        assert done.code == 2 and ("there is no file" if is_gone else "is not executable") in done.err, done


def test_the_real_program_looks_too(pipeline):
    pipeline.ok("--run-id", "r")
    before = pipeline.snapshot()
    done = pipeline.ok("status", "--json")
    assert done.err == "" and [one["status"] for one in json.loads(done.out)["stages"]] == ["ok", "ok"] and pipeline.snapshot() == before


# --- history

def past(run_id, *entries, **known):
    record = {"runId": run_id, "invocation": 1, "pipeline": "test", "startedAt": "2026-01-01T00:00:00.000Z", "durationMs": 1, "stages": list(entries)}
    return run_history._past_run("", record, "completed", list)._replace(**known)


def entry(duration_ms, stage="s", status="ok", **more):
    return dict({"stage": stage, "status": status, "durationMs": duration_ms}, **more)


@pytest.mark.parametrize("values, expected", [([], None), ([3], 3), ([9, 1, 5], 5), ([1, 2, 4, 9], 3)])
def test_median(values, expected):
    assert run_history.median(values) == expected


@pytest.mark.parametrize("durations, slow", [
    ([], False), ([900], False), ([100, 100, 900], False), ([100, 100, 100, 300], True), ([100, 100, 100, 299], False), ([100, 900, 100, 100, 300], True),
    ([300, 100, 100, 100], False), ([10, 10, 10, 100], False), ([10, 10, 10, 110], True), ([0, 0, 0, 0], False)])
def test_a_stage_that_took_three_times_as_long(durations, slow):
    assert run_history.is_slow(durations) is slow


def test_series_are_of_successes_oldest_first():
    runs = [past("c", entry(30), entry(1, "t")), past("b", entry(20, status="failed")), past("a", entry(10), {"stage": 7}, entry("x")), past("z", entry(0, status="skipped"))]
    assert run_history.durations_ms(runs) == {"s": [10, 30], "t": [1]}
    assert [(run.run_id, one["durationMs"]) for run, one in run_history.stage_series(runs, "s")][:1] == [("a", 10)]
    assert [run.run_id for run, _ in run_history.stage_series(runs, "s")] == ["a", "a", "b", "c"]


def test_history_shows_counts_and_warns(pipeline):
    """Records as runs would have left them: four quick ones and a slow one."""
    pipeline.ok("--run-id", "r0")
    record, ledger = pipeline.json("state/run_r0.json"), pipeline.read("state/ledger.jsonl")
    last = json.loads(ledger.splitlines()[-1])
    for number, duration in enumerate((1000, 1100, 900, 1000, 3500), 1):
        name = "r%d" % number
        entries = [dict(one, durationMs=duration, counts={"read": 1234567, "written": number, "rejected": 0}, tasks={"total": 4, "ok": 3}) for one in record["stages"]]
        pipeline.write("state/run_%s.json" % name, json.dumps(dict(record, runId=name, stages=entries)))
        ledger += json.dumps(dict(last, runId=name, seq=last["seq"] + number)) + "\n"
    pipeline.write("state/ledger.jsonl", ledger)
    out = look(pipeline, "history", "b")
    assert "[SLOW] b took 3.50 s the last time, 1.00 s is the median of the 5 before\n" in out and "[SLOW] a" not in out
    assert re.search(r"(?m)^r5 +ok +\S+ \S+ +3\.50 s +1 +1,234,567 +5 +0 +3/4 +\d+ +\d+$", out), out
    assert "median 1.00 s of 6 successes\n" in out
    found = document(pipeline, "history")
    assert [(one["stage"], one["durationMs"], one["medianMs"]) for one in found["slow"]] == [("a", 3500, 1000), ("b", 3500, 1000)]
    assert [run["runId"] for run in found["runs"]] == ["r%d" % number for number in range(6)]
    assert document(pipeline, "history", "b", "--last", "2")["entries"][0]["runId"] == "r4"
    assert run_history.expected_durations(str(pipeline.root))["b"] == 1.0
    assert run_history.expected_durations(str(pipeline.root) + "/nowhere") == {}


def test_history_of_a_stage_does_not_take_the_runs_that_it_examines_for_all(pipeline):
    """Records as a hundred nights would have left them in which nothing was to be done."""
    pipeline.ok("--run-id", "worked")
    pipeline.ok("--run-id", "idle")
    record, ledger = pipeline.json("state/run_idle.json"), pipeline.read("state/ledger.jsonl")
    last = json.loads(ledger.splitlines()[-1])
    for number in range(99):
        pipeline.write("state/run_idle%d.json" % number, json.dumps(dict(record, runId="idle%d" % number)))
        ledger += json.dumps(dict(last, runId="idle%d" % number, seq=last["seq"] + 1 + number)) + "\n"
    pipeline.write("state/ledger.jsonl", ledger)
    assert look(pipeline, "history", "a") == "none of the 100 newest runs has worked on stage a; --last 1000 looks at more\n"
    assert look(pipeline, "history", "a", "--last", "1000").splitlines()[1].split()[:2] == ["worked", "ok"]
    assert [document(pipeline, "history", "a", "--last", last)["examined"] for last in ("1", "100", "101", "1000")] == [100, 100, 101, 101]


def test_a_run_that_gc_removed_is_told_from_one_whose_record_is_lost(pipeline):
    for run in ("made", "r", "s"):         # the first is kept: it made the outputs
        pipeline.ok("--run-id", run)
    pipeline.ok("gc", "--keep-runs", "1", "--yes")
    pipeline.path("state/run_s.json").unlink()
    out = look(pipeline, "status")
    assert [re.search(r"(?m)^%s +completed .*  (\S.*)$" % run, out).group(1) for run in ("r", "s")] == ["removed by gc", "its record is gone"], out
    ledger = pipeline.read("state/ledger.jsonl")
    for damage in ('"removed":5,"was":[[', '"removed":[["r",[1],"x"],['):
        pipeline.write("state/ledger.jsonl", ledger.replace('"removed":[[', damage))
        assert "its record is gone" in called(pipeline, "history")[1]


def test_what_gc_removes_while_the_history_is_read_is_removed_by_gc(pipeline, monkeypatch):
    for run in ("made", "r", "s"):
        pipeline.ok("--run-id", run)
    real, acts = run_history.read_run, [lambda: pipeline.ok("gc", "--keep-runs", "1", "--yes")]
    monkeypatch.setattr(run_history, "read_run", lambda *arguments: (acts and acts.pop()(), real(*arguments))[1])
    runs, problems = run_history.newest_runs(str(pipeline.root), 9)
    assert [(one.run_id, one.problem) for one in runs] == [("s", ""), ("r", "removed by gc"), ("made", "")] and problems == []


def test_a_run_without_its_record_started_when_the_ledger_says(pipeline):
    """Not when it ended; and where nothing had to run, no start was entered."""
    for run in ("r", "r", "s", "idle", "last"):
        pipeline.write("in.txt", pipeline.read("in.txt") + ("" if run in ("idle", "last") else "x\n"))
        pipeline.ok("--run-id", run)
    pipeline.ok("gc", "--keep-runs", "1", "--yes")
    for name in ("run_r.json", "run_r.1.json", "run_s.json", "run_idle.json"):
        if pipeline.exists("state/" + name):
            pipeline.path("state/" + name).unlink()
    entries = [json.loads(line) for line in pipeline.read("state/ledger.jsonl").splitlines()]
    begins = [one for one in entries if one["event"] == "begin"]
    for day, one in enumerate(begins, 1):
        one["at"] = "2026-01-0%dT10:00:00.000Z" % day
    assert [(one["runId"], one["invocation"]) for one in begins] == [("r", 1), ("r", 2), ("s", 1)]
    pipeline.write("state/ledger.jsonl", "".join(json.dumps(one) + "\n" for one in entries))
    started = ["2026-01-01T10:00:00.000Z", "2026-01-02T10:00:00.000Z", "2026-01-03T10:00:00.000Z", None]
    for last in (99, 5, 4, 3, 2):           # also where the start stands before all that is shown
        runs = document(pipeline, "history", "--last", str(last))["runs"]
        assert [run["startedAt"] for run in runs[:-1]] == started[-last + 1:] and all(run["problem"] and run["endedAt"] for run in runs[:-1]), runs
    rows = look(pipeline, "history").splitlines()[1:5]
    assert [re.findall("[0-9-]{10} [0-9:]{8}Z", row) for row in rows] == [["2026-01-0%d 10:00:00Z" % day] for day in (1, 2, 3)] + [[]], rows


def test_of_many_runs_only_the_newest_records_are_read(tmp_path, monkeypatch):
    state = tmp_path / "state"
    state.mkdir()
    with open(str(state / "ledger.jsonl"), "w", encoding="utf-8") as file:
        for number in range(3000):
            file.write(json.dumps({"event": "end", "runId": "r%d" % number, "invocation": 1, "open": {}, "state": "completed", "at": "2026-01-01T00:00:00Z", "pad": "x" * 90}) + "\n")
    for number in (2998, 2999):
        (state / ("run_r%d.json" % number)).write_text(json.dumps({"schema": 1, "runId": "r%d" % number, "invocation": 1, "stages": []}), encoding="utf-8")
    read, parsed = [], []
    monkeypatch.setattr(run_history, "_entry_of", lambda line, real=run_history._entry_of: parsed.append(line) or real(line))
    monkeypatch.setattr(run_history, "_read_record", lambda root, name, real=run_history._read_record: read.append(name) or real(root, name))
    monkeypatch.setattr(run_history, "record_files", lambda folder: pytest.fail("the folder is not searched"))
    runs, problems = run_history.newest_runs(str(tmp_path), 4)
    assert [run.run_id for run in runs] == ["r2999", "r2998", "r2997", "r2996"] and problems == []
    assert [run.problem for run in runs] == ["", "", "its record is gone", "its record is gone"]
    assert {name.split(".")[0] for name in read} == {"run_r2999", "run_r2998", "run_r2997", "run_r2996"} and len(parsed) == 4 + 4 + 5     # once more for what gc removed since, and for when they began, and one that tells that none was open


@pytest.mark.parametrize("size", [1, 7, 64, 1 << 16])
def test_the_ledger_is_read_backwards_in_blocks(tmp_path, monkeypatch, size):
    monkeypatch.setattr(run_history, "BLOCK_BYTES", size)
    path = tmp_path / "l"
    path.write_bytes(b"one\ntwo, longer\n\nthree\ntorn")
    assert list(run_history._lines_from_end(str(path), [])) == [(b"torn", False), (b"three", True), (b"two, longer", True), (b"one", True)]
    path.write_bytes(b"")
    assert list(run_history._lines_from_end(str(path), [])) == []


# --- logs

def test_logs_of_every_attempt_of_a_named_run_and_of_a_call(pipeline):
    pipeline.write("fail-b", "")
    spec = pipeline.json("pipeline.json")
    spec["stages"][1]["retry"] = {"attempts": 2, "baseDelayMs": 0}
    pipeline.write("pipeline.json", json.dumps(spec))
    pipeline.run("--run-id", "r")
    pipeline.run("--run-id", "r")
    pipeline.path("fail-b").unlink()
    pipeline.ok("--run-id", "s")
    headings = [line for line in look(pipeline, "logs", "b", "--run", "r").splitlines() if line.startswith("==>")]
    assert headings == ["==> run r, call 2, attempt 1: state/logs/r/2/b.1.log", "==> run r, call 2, attempt 2: state/logs/r/2/b.2.log"]
    assert look(pipeline, "logs", "b").splitlines()[0] == "==> run s, attempt 1: state/logs/s/b.1.log"
    assert look(pipeline, "logs", "a", "--run", "s") == "the stage was up to date then; its outputs are of run r\n"
    found = document(pipeline, "logs", "b", "--run", "r")
    assert (found["runId"], found["invocation"], [log["attempt"] for log in found["logs"]]) == ("r", 2, [1, 2])
    assert found["logs"][0]["text"] == "log of b \x1b[31mred\tx" + os.linesep
    shutil.rmtree(str(pipeline.path("state/logs")))
    assert look(pipeline, "logs", "b") == "run s has no log of stage b\n"


def test_a_log_that_the_run_record_does_not_name_is_marked(pipeline):
    pipeline.ok("--run-id", "r")
    heading = "==> run r, attempt %d%s: state/logs/r/b.%d.log"
    pipeline.write("state/logs/r/b.2.log", "all well\n")
    pipeline.write("state/logs/r/b/7.1.log", "all well\n")
    wanted = [heading % (1, "", 1), heading % (2, " (not in the run record)", 2), "==> run r, task 7, attempt 1 (not in the run record): state/logs/r/b/7.1.log"]
    for words in (["logs", "b"], ["logs", "b", "--run", "r"], ["logs", "b", "--follow"]):
        assert [line for line in look(pipeline, *words).splitlines() if line.startswith("==>")] == wanted
    assert [log["notInRecord"] for log in document(pipeline, "logs", "b")["logs"]] == [False, True, True]
    record = pipeline.json("state/run_r.json")
    for changes in ({"state": "running", "endedAt": None}, {"stages": [dict(one, status="failed") for one in record["stages"]]},
                    {"stages": [dict(one, recovered=True) for one in record["stages"]]}, {"stages": []}):
        pipeline.write("state/run_r.json", json.dumps(dict(record, **changes)))
        assert "not in the run record" not in look(pipeline, "logs", "b")


@pytest.mark.parametrize("words", [(), ("--json",), ("--follow",)], ids=" ".join)
def test_logs_of_a_run_that_gc_removed(pipeline, words):
    for run in ("one", "two", "two", "three", "four"):
        pipeline.ok("--run-id", run, "--force", "a,b")
    pipeline.ok("gc", "--keep-runs", "1", "--yes")
    for run in ("one", "two", "three"):
        assert called(pipeline, "logs", "b", "--run", run, *words)[::2] == (2, "error: the logs of run %s were removed by gc\n" % run)
    assert called(pipeline, "logs", "b", "--run", "five", *words)[2] == "error: there is no run five; the last ones are: four, three, two, two, one\n"
    for run in ("a\nb", "a*b"):         # to Windows no file's name
        done = called(pipeline, "logs", "b", "--run", run, *words)
        assert done[0] == 2 and done[2].startswith("error: there is no run %s; the last ones are: " % run.replace("\n", "\\n")), done
    assert "log of b" in look(pipeline, "logs", "b", "--run", "four", *words)
    pipeline.ok("--run-id", "two", "--force", "a,b")
    assert "log of b" in look(pipeline, "logs", "b", "--run", "two", *words)       # it has run again since
    pipeline.path("state/run_four.json").unlink()
    shutil.rmtree(str(pipeline.path("state/logs/four")))
    assert called(pipeline, "logs", "b", "--run", "four", *words)[2] == "error: run four has neither a record nor logs\n"


def test_logs_of_tasks_the_failed_first(tmp_path):
    for name in ("r/s/1.1.log", "r/s/2.1.log", "r/s/10.1.log", "r/s/10.2.log", "r/s/x.log", "r/s.1.log", "r/s.1.1.log", "r/st.1.log", "r/s.1.network", "r/3/s/1.1.log"):
        path = tmp_path / "state" / "logs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x", encoding="utf-8")
    names = {"s/2.1.log": "data/b", "s/10.1.log": "data/j", "s/10.2.log": "data/j"}
    stage = {"stage": "s", "status": "failed", "logs": [{"path": "state/logs/r/" + path, "task": task} for path, task in names.items()] + [{"path": "no task"}, 7]}
    (tmp_path / "state" / "run_r.json").write_text(json.dumps({"schema": 1, "runId": "r", "invocation": 1, "stages": [7, stage]}), encoding="utf-8")
    outcomes = tmp_path / "state" / "logs" / "r" / "s.tasks.jsonl"
    outcomes.write_text('{"task":"data/b","status":"ok"}\n{"task":"data/j","status":"failed"}\n', encoding="utf-8")
    logs = stage_logs.logs_of(str(tmp_path), "s", "r", 1)
    assert [log.path[len("state/logs/r/"):] for log in logs] == ["s.1.log", "s/10.1.log", "s/10.2.log", "s/1.1.log", "s/2.1.log"]
    assert stage_logs.heading(stage_logs.Found("r", 1, logs, ""), logs[2]) == "==> run r, task 10 data/j (failed), attempt 2: state/logs/r/s/10.2.log"
    assert stage_logs.heading(stage_logs.Found("r", 1, logs, ""), logs[3]) == "==> run r, task 1, attempt 1: state/logs/r/s/1.1.log"
    outcomes.unlink()                   # what the task log says of this very run is as good
    (tmp_path / "state" / "tasks_s.jsonl").write_text('{"task":"data/b","status":"failed","run":"r/1"}\n{"task":"data/j","status":"failed","run":"r/2"}\n', encoding="utf-8")
    assert [log.path[len("state/logs/r/"):] for log in stage_logs.logs_of(str(tmp_path), "s", "r", 1)][1] == "s/2.1.log"
    (tmp_path / "state" / "run_r.json").unlink()
    assert [log.number for log in stage_logs.logs_of(str(tmp_path), "s", "r", 1)] == [0, 1, 2, 10, 10]
    assert stage_logs.logs_of(str(tmp_path), "s", "r", 1, False) == stage_logs.logs_of(str(tmp_path), "s", "r", 1)
    assert [log.path for log in stage_logs.logs_of(str(tmp_path), "s", "r", 3)] == ["state/logs/r/3/s/1.1.log"]
    assert [log.path for log in stage_logs.logs_of(str(tmp_path), "s.1", "r", 1)] == ["state/logs/r/s.1.1.log"]


def test_a_stage_of_tasks(project):
    for name in "abc":
        project.write("in/" + name, name)
    project.spec({"processor": project.processor("p", "name = os.environ['PIPELINE_TASK'][-1]\nprint('task', name, end='')\nopen(out + '/' + name, 'w').close()\n"
                                                 "sys.exit(3 if name == 'b' else 0)"), "forEach": ["in/*"], "forkServer": False})
    done = project.run("--run-id", "r", "--verbose")
    assert [line for line in done.out.splitlines() if " | " in line and line.startswith("s1 ")] and "s1 in/b | task b\n" in done.out, done
    found = stages_of(project)["s1"]
    assert (found["status"], found["tasks"]) == ("failed", {"done": 2, "failed": 1, "total": 3})
    assert re.search(r"(?m)^s1 +failed +2/3, 1 failed +r ", look(project, "status"))
    assert re.search(r"(?m)^r +failed .* 2/3 ", look(project, "history", "s1"))
    assert look(project, "logs", "s1").splitlines()[:2] == ["==> run r, task 2 in/b (failed), attempt 1: state/logs/r/s1/2.1.log", "task b"]
    assert [(log["number"], log["task"], log["status"]) for log in document(project, "logs", "s1")["logs"]] == [(2, "in/b", "failed"), (1, "in/a", "ok"), (3, "in/c", "ok")]
    project.write("in/d", "d")
    out = look(project, "explain", "s1")
    assert "  changed  tasks.count: 3 -> 4\n" in out and '  same     tasks.forEach: ["in/*"]\n' in out
    events = [json.loads(line) for line in project.run("--run-id", "s", "--log-format", "json").out.splitlines()]
    assert [(one["stage"], one.get("task")) for one in events if one["event"] in ("tail", "fail")] == [("s1", "in/b"), ("s1", "in/b"), ("s1", None)]
    assert project.ok("verify").out.endswith(": ok\n")


@pytest.mark.parametrize("line, text", [
    (b"plain", "plain"), (b"tab\there", "tab\there"), (b"\x1b]0;title\x07x", "\\x1b]0;title\\x07x"), (b"10%\r20%\r\n", "10%\\r20%"), ("größe".encode("utf-8"), "größe"),
    (b"\xff", "\ufffd"), (b"\xc2\x9b2J", "\\x9b2J"), ("a\u202eb".encode("utf-8"), "a\\u202eb")])
def test_logs_cannot_steer_a_terminal(line, text):
    assert stage_logs.harmless(line) == text


def test_a_growing_log_is_read_in_whole_lines(tmp_path):
    path, shown = tmp_path / "log", []
    reader = stage_logs.Reader(str(path))
    reader.read(shown.append, False)
    path.write_bytes(b"one\ntw")
    reader.read(shown.append, False)
    assert shown == ["one"]
    with open(str(path), "ab") as file:
        file.write(b"o\nrest" + b"x" * stage_logs.LINE_BYTES)
    reader.read(shown.append, False)
    assert shown[1:] == ["two", "rest" + "x" * (stage_logs.LINE_BYTES - 4)]
    reader.read(shown.append, True)
    assert shown[3:] == ["xxxx"]


@pytest.mark.skipif(not POSIX, reason="signals")
def test_following_a_stage_to_its_end(pipeline):
    with running(pipeline) as live:
        before = pipeline.snapshot()
        follower = pipeline.start("logs", "b", "--follow", bufsize=0)
        assert follower.stdout.readline() == b"==> run live, attempt 1: state/logs/live/b.1.log\n"
        assert follower.stdout.readline() == b"log of b \\x1b[31mred\tx\n"
        assert pipeline.snapshot() == before
        assert follower.poll() is None
        live.go_on()
        out, err = follower.communicate(timeout=60)
        assert (follower.returncode, out, err) == (0, b"", b"")
        assert live.process.wait(60) == 0


@pytest.mark.skipif(not POSIX, reason="signals")
def test_following_begins_while_a_run_is_open_that_holds_no_stage(pipeline):
    pipeline.write("wait-a", "")
    with running_in_a(pipeline) as process:
        process.kill()                  # begun and not ended, as between two stages
        process.wait(60)
    waits, shown = [], []

    def wait(_):
        waits.append(1)
        if len(waits) == 2:
            assert pipeline.run("--run-id", "live").code == 0

    stage_logs.follow(str(pipeline.root), "b", None, shown.append, wait)
    assert shown == ["==> run live, call 2, attempt 1: state/logs/live/2/b.1.log", "log of b \\x1b[31mred\tx"] and len(waits) == 2


@pytest.mark.skipif(not POSIX, reason="signals")
def test_following_after_a_run_that_died_before_the_stage_shows_the_log_of_the_run_before(pipeline):
    pipeline.ok("--run-id", "whole")
    pipeline.write("in.txt", "y\n")
    pipeline.write("wait-a", "")
    with running_in_a(pipeline) as process:
        process.kill()
        process.wait(60)
    shown = []
    stage_logs.follow(str(pipeline.root), "b", None, shown.append, lambda _: None)
    assert shown == ["==> run whole, attempt 1: state/logs/whole/b.1.log", "log of b \\x1b[31mred\tx"]


@pytest.mark.skipif(not POSIX, reason="signals")
def test_following_a_stage_that_has_not_begun_and_ctrl_c(pipeline):
    pipeline.write("wait-a", "")
    with running_in_a(pipeline) as process:
        follower = pipeline.start("logs", "b", "--follow")
        stopped = pipeline.start("logs", "a", "--follow", bufsize=0)
        assert stopped.stdout.readline().startswith(b"==> run live, attempt 1") and stopped.stdout.readline().startswith(b"log of a")
        stopped.send_signal(signal.SIGINT)
        out, err = stopped.communicate(timeout=60)
        assert (stopped.returncode, out, err) == (130, b"", b"interrupted\n")
        assert follower.poll() is None
        pipeline.path("wait-a").unlink()
        out, err = follower.communicate(timeout=60)
        assert follower.returncode == 0 and out.decode("utf-8").splitlines() == ["==> run live, attempt 1: state/logs/live/b.1.log", "log of b \\x1b[31mred\tx"], (out, err)
        assert process.wait(60) == 0


@pytest.mark.skipif(not POSIX, reason="signals")
@pytest.mark.parametrize("words, name", [(["--only", "a"], "test"), ([], "other")], ids=["stages", "pipeline"])
def test_a_run_that_never_comes_to_the_stage_is_not_waited_for(pipeline, monkeypatch, words, name):
    """One of other stages only, or of another pipeline below the same root."""
    pipeline.ok("--run-id", "whole")
    pipeline.write("in.txt", "y\n")
    pipeline.write("pipeline.json", pipeline.read("pipeline.json").replace('"name": "test"', '"name": "%s"' % name))
    pipeline.write("wait-a", "")
    shown, last, waits, real = [], [], [], run_history.read_run
    with running_in_a(pipeline, *words):
        stage_logs.follow(str(pipeline.root), "b", None, shown.append, lambda _: pytest.fail("it waits"), "test")
        # As if it had just begun, and its record came later:
        monkeypatch.setattr(run_history, "read_run", lambda root, run, *more: real(root, run, *more) if waits or run != "live" else (None, ""))
        stage_logs.follow(str(pipeline.root), "b", None, last.append, waits.append, "test")
    assert last == shown == ["==> run whole, attempt 1: state/logs/whole/b.1.log", "log of b \\x1b[31mred\tx"] and len(waits) == 1
    assert "selected" not in pipeline.json("state/run_live.json")


@pytest.mark.parametrize("words", [["clean", "b", "--yes"], ["reset", "b", "--yes"], ["accept", "b", "--reason", "x"]], ids=lambda words: words[0])
def test_what_holds_a_stage_and_is_no_run_is_not_followed_and_called_what_it_is(pipeline, monkeypatch, words):
    pipeline.ok("--run-id", "r")
    real, seen = stage_locks.StageLock._make_folder, []

    def made(lock):
        real(lock)
        if lock.stage == "b":
            seen.extend([called(pipeline, "logs", "b", "--follow"), called(pipeline, "explain", "b")[1], json.loads(called(pipeline, "status", "--json")[1])])
    monkeypatch.setattr(stage_locks.StageLock, "_make_folder", made)
    called(pipeline, *words)
    logs, explained, status = seen
    assert logs == (0, "==> run r, attempt 1: state/logs/r/b.1.log\nlog of b \\x1b[31mred\tx\n", "")
    assert " (%s, since " % words[0] in explained
    assert status["stages"][1]["holder"]["runId"] is None and [one["state"] for one in status["runs"]] == ["completed"]


class running_in_a:
    """A run that waits in stage a."""

    def __init__(self, project, *words):
        self.project, self.process = project, project.start("--run-id", "live", *words)

    def __enter__(self):
        log = self.project.path("state/logs/live/a.1.log")
        until(lambda: log.exists() and b"log of a" in log.read_bytes())
        return self.process

    def __exit__(self, *_):
        if self.project.exists("wait-a"):
            self.project.path("wait-a").unlink()
        self.process.communicate(timeout=60)


# --- explain

@pytest.mark.parametrize("text, expected", [("1970-01-01T00:00:01.250Z", 1.25), ("1970-01-01T00:00:01Z", 1.0), ("1970-01-01", None), (None, None), ("1970-01-01T00:00:01+02:00", None)])
def test_times_of_records_have_their_milliseconds(text, expected):
    assert look_commands._seconds(text) == expected


@pytest.mark.parametrize("count", [10, 11])
def test_explain_knows_the_outputs_of_many_tasks(project, count):
    """Of more than ten the record has only how many; they stand in the task log."""
    for number in range(count):
        project.write("in/%02d.txt" % number, "x")
    project.spec({"processor": project.processor("p", "open(out + '/' + os.path.basename(inputs[0]), 'w')\n"), "forEach": "in/*"})
    project.ok()
    assert "\noutputs: %d recorded, all verified\n" % count in look(project, "explain", "s1")
    assert [one["path"] for one in document(project, "explain", "s1")["outputs"]] == ["%02d.txt" % number for number in range(count)]
    project.path("data/s1/03.txt").unlink()
    assert "outputs: %d recorded, not verified: not all are as recorded, or not looked at, see below\n" % count in look(project, "explain", "s1")
    project.write("state/tasks_s1.jsonl", "damaged\n")
    assert "damaged" in look(project, "explain", "s1")


def test_explain_part_by_part(pipeline):
    pipeline.ok("--run-id", "r")
    out = look(pipeline, "explain", "a")
    assert "  same     params.day: 1\n" in out and "  changed" not in out and "outputs: 1 recorded, all verified\n" in out
    assert "marker: stands (data/s1/.a.done)\n" in out and re.search(r"(?m)^up to date: key ", out)
    pipeline.write("in.txt", "other\n")
    pipeline.path("data/s1/.a.done").unlink()
    found = document(pipeline, "explain", "a", "--set", "day=2")
    changed = {part["part"]: (part["state"], part["old"], part["new"]) for part in found["parts"] if part["state"] != "same"}
    assert set(changed) == {"params.day", "inputs.in.txt"} and changed["params.day"] == ("changed", 1, 2)
    assert found["marker"] == {"path": "data/s1/.a.done", "state": "missing"} and found["recordedKey"] != found["key"]
    assert [one["state"] for one in found["outputs"]] == ["same"] and found["checkpoint"] is None
    out = look(pipeline, "explain", "a", "--set", "day=2")
    assert "  changed  params.day: 1 -> 2\n" in out and re.search(r"(?m)^  changed  inputs\.in\.txt: [0-9a-f]{12} -> [0-9a-f]{12}$", out)
    assert out.endswith("would run: input in.txt changed; params.day 1 -> 2\n")
    assert look(pipeline, "explain", "b").splitlines()[-2].startswith("waits for a, which may change its inputs")
    pipeline.path("data/s1/o").unlink()
    assert "outputs: 1 recorded, 1 not as recorded\n  missing  o\n" in look(pipeline, "explain", "a")


def test_explain_a_checkpoint(project):
    project.write("in.txt", "x\n" * 10)
    project.spec({"processor": project.processor("p", "open(os.environ['PIPELINE_PROGRESS_FILE'], 'w').write(json.dumps({'lineOffset': 4, 'bytesDone': 8, 'bytesTotal': 20,"
                                                 " 'outputs': {}}))\nsys.exit(1)"), "inputs": ["in.txt"], "checkpoint": {"enabled": True}})
    project.run("--run-id", "r")
    found = document(project, "explain", "s1")
    assert (found["action"], found["lineOffset"], found["checkpoint"]["percent"], found["checkpoint"]["usable"]) == ("RESUME", 4, 40, True)
    out = look(project, "explain", "s1")
    assert "checkpoint: line 4, 40%\n" in out and out.endswith("would resume from line 4: last run failed: exit code 1\n")
    assert "    would resume from line 4: last run failed: exit code 1\n" in look(project, "status")
    project.write("in.txt", "y\n")
    assert "checkpoint: line 4, 40%; not used: it was made under another key\n" in look(project, "explain", "s1")
    project.write("state/progress_s1.json", "[")
    assert "checkpoint: line None; not used: it cannot be read\n" in look(project, "explain", "s1")


OLD = {"keyVersion": 1, "processor": {"path": "bin/p.py", "sha256": "a" * 64, "mtimeNs": 10 ** 18}, "modules": [], "args": [], "params": {"x": 1, "gone": 2}, "passEnv": None,
       "inputs": [["a", "1" * 64], ["b", "2" * 64]], "watch": []}


def parts(old, new):
    return {part.part: part.state for part in stage_explanation.compare(old, new)}


def test_compare_parts():
    new = dict(OLD, processor=dict(OLD["processor"], sha256="b" * 64), params={"x": 1.0, "more": 3}, passEnv={"HOME": "digest"}, inputs=[["b", "2" * 64], ["c", "3" * 64]], forEach=["d/*"])
    assert parts(OLD, new) == {
        "keyVersion": "same", "processor.path": "same", "processor.sha256": "changed", "processor.mtimeNs": "same", "args": "same", "params.x": "changed", "params.more": "added",
        "params.gone": "removed", "passEnv.HOME": "added", "inputs.b": "same", "inputs.c": "added", "inputs.a": "removed", "forEach": "added"}
    assert set(parts(None, OLD).values()) == {"added"} and set(parts(OLD, None).values()) == {"removed"} and parts(None, None) == {}
    swapped = dict(OLD, inputs=OLD["inputs"][::-1])
    assert parts(OLD, swapped)["inputs"] == "changed" and parts(OLD, swapped)["inputs.a"] == "same" and "inputs" not in parts(OLD, OLD)


def test_lines_of_parts():
    many = dict(OLD, inputs=[["f%d" % number, "%064d" % number] for number in range(50)])
    lines = stage_explanation.lines(stage_explanation.compare(many, dict(many, inputs=[["f0", "f" * 64]] + many["inputs"][1:], passEnv={"HOME": "secret digest"})))
    assert [line for line in lines if "inputs" in line] == ["  changed  inputs.f0: 000000000000 -> ffffffffffff", "  same     inputs: 49 files"]
    assert "  same     processor.mtimeNs: 2001-09-09T01:46:40.000Z" in lines and "  added    passEnv.HOME" in lines


# --- words, and tasks

@pytest.mark.parametrize("last, problem, action, held, word", [
    ("ok", "", "SKIP", False, "ok"), ("ok", "", "SEAL", False, "ok"), ("ok", "", "RUN", False, "stale"), ("ok", "", "FAIL", False, "stale"), ("ok", "", "PENDING", False, "pending"),
    ("failed", "", "RUN", False, "failed"), ("failed", "", "PENDING", False, "failed"), ("interrupted", "", "RESUME", False, "interrupted"), ("waiting", "", "RUN", False, "waiting"),
    ("running", "", "RUN", False, "died"), ("running", "", "RUN", True, "running"), (None, "", "RUN", False, "neverRun"), (None, "bad", "FAIL", False, "damaged"), (None, "", "RUN", True, "running")])
def test_status_words(last, problem, action, held, word):
    assert status_word(None if last is None else {"lastStatus": last}, problem, action, held) == word


@pytest.mark.skipif(not POSIX, reason="locks a file by flock")
def test_a_dead_run_of_another_machine_is_not_running_here(pipeline, monkeypatch):
    """Its folder was copied; the kernel lock tells, as it tells whoever would run."""
    pipeline.ok("--run-id", "r")
    owner = {"pid": os.getpid(), "processStart": "1", "token": "abc", "bootId": "b", "runId": "r", "host": "another"}
    pipeline.write("locks/a.lock/owner.json", json.dumps(owner))
    pipeline.write("locks/.a.guard", "abc")
    spec = pipeline_runner.load_pipeline(str(pipeline.path("pipeline.json")))

    def is_held():
        held = "running" == stages_of(pipeline)["a"]["status"]
        assert held is bool(planning.holder_text(spec, spec.stages[0], "b", model.Clock()))
        return held
    assert not is_held()
    import fcntl
    with open(str(pipeline.path("locks/.a.guard"))) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert is_held()
    pipeline.write("locks/.a.guard", "of another folder")
    assert is_held()                    # a stranger's folder: no run takes it for its own
    pipeline.path("locks/.a.guard").unlink()
    assert is_held()


def test_the_tasks_of_a_stage_are_counted(pipeline):
    pipeline.ok("--run-id", "r")
    record = pipeline.json("state/stage_a.json")
    pipeline.write("state/stage_a.json", json.dumps(dict(record, tasks={"total": 200, "ok": 150, "skipped": 48, "failed": 2, "vanished": 0})))
    assert stages_of(pipeline)["a"]["tasks"] == {"done": 198, "failed": 2, "total": 200}
    assert re.search(r"(?m)^a +ok +198/200, 2 failed +r ", look(pipeline, "status"))


def test_holders_are_the_living_ones(tmp_path, monkeypatch):
    for stage, owner in (("a", {"pid": 1, "token": "t", "bootId": "b", "runId": "r"}), ("b", {"pid": 2, "token": "t", "bootId": "b", "runId": "s"}), ("c", {}), ("d", None)):
        folder = tmp_path / "locks" / (stage + ".lock")
        folder.mkdir(parents=True)
        if owner is not None:
            (folder / "owner.json").write_text(json.dumps(owner), encoding="utf-8")
    (tmp_path / "locks" / ".a.guard").write_text("", encoding="utf-8")
    monkeypatch.setattr(stage_locks, "owner_is_dead", lambda owner, boot, processes: owner["pid"] == 1)
    assert set(run_history.holders(str(tmp_path))) == {"b"}
    assert run_history.holders(str(tmp_path / "nowhere")) == {}
    assert stage_progress.task_outcomes(str(tmp_path / "nowhere")) == {}


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")
@pytest.mark.parametrize("words", [("plan",), ("status",), ("status", "--json"), ("history",), ("graph",), ("explain", "a"), ("validate",), ("--help",), ("export", "r")])
def test_what_was_asked_for_and_could_not_be_written_is_told(pipeline, words):
    pipeline.ok("--run-id", "r")
    argv = [sys.executable, str(RUNNER), *words] + ([] if words[0] == "--help" else ["--pipeline", str(pipeline.path("pipeline.json"))])
    with open("/dev/full", "wb") as full:
        done = subprocess.run(argv, stdout=full, stderr=subprocess.PIPE, env=pipeline.environment(), timeout=60)
    said = done.stderr.decode()
    assert done.returncode == 5 and "standard output: No space left on device" in said and said.count("\n") == 1, said


def test_a_run_that_has_just_begun_has_no_record_yet(tmp_path):
    (tmp_path / "state").mkdir()
    entry = {"event": "begin", "runId": "r1", "invocation": 1, "open": {"r1": 1}, "at": "2026-01-01T00:00:00Z"}
    (tmp_path / "state" / "ledger.jsonl").write_bytes(json.dumps(entry).encode("ascii") + b"\n")
    runs, problems = run_history.newest_runs(str(tmp_path), 4)
    assert [(run.run_id, run.state, run.problem) for run in runs] == [("r1", "open", "it has no record yet")] and problems == []


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_a_signal_when_all_is_done_is_no_traceback(project):
    """The command has ended, and only the interpreter's own end is left."""
    project.spec({"processor": "bin/stage_copy.py"})
    code = ("import os, runpy, signal, sys\nsys.path.insert(0, os.path.dirname(sys.argv[1]))\nimport console\nreal, calls = console.silence_closed_streams, []\n"
            "def late():\n    os.kill(os.getpid(), signal.SIGTERM)\n    real()\nconsole.silence_closed_streams = late\n"
            "sys.argv = sys.argv[1:]\nrunpy.run_path(sys.argv[0], run_name='__main__')\n")
    done = subprocess.run([sys.executable, "-c", code] + project.argv("status")[1:], env=project.environment(), stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60)
    assert done.returncode in (0, -15) and done.stderr == b"" and b"no runs yet" in done.stdout, done


@pytest.mark.skipif(not os.path.isdir("/dev/fd"), reason="pipes by name")
def test_a_pipeline_file_and_a_key_may_come_by_a_pipe(project):
    """Of those that the user names it is his business that they end; a password store gives a key so."""
    project.spec({"processor": "bin/stage_copy.py"})
    key = str(project.path("../key"))
    project.ok("new-key", key)
    project.ok("--key", key)
    for words, name in ((["validate", "--root", str(project.root), "--pipeline", "/dev/stdin"], str(project.path("pipeline.json"))),
                        (["verify", "--root", str(project.root), "--key", "/dev/stdin"], key)):
        with open(name, "rb") as file:
            done = subprocess.run([sys.executable, str(RUNNER), *words], env=project.environment(), input=file.read(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60)
        assert done.returncode == 0, done


@pytest.mark.parametrize("seconds", ["1e308", "1e999", "NaN"])
def test_a_duration_with_which_nobody_can_reckon_ends_no_command(pipeline, seconds):
    pipeline.ok("--run-id", "r")
    name = next(one.name for one in pipeline.path("state").iterdir() if one.name.startswith("stage_"))
    text = pipeline.read("state/" + name)
    pipeline.write("state/" + name, re.sub(r'("lastDurationSec": )[0-9.]+', r"\g<1>" + seconds, text))
    for words in (["status"], ["explain", name[len("stage_"):-len(".json")]], ["history"]):
        assert pipeline.run(*words).code in (0, 5), words
