"""The records under state/: their fields, the chain of runs, damage, a full disk, a read-only root."""
from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import types

import pytest
from conftest import KILLED, ROOT, RUNNER, Project, wait_until

import console
import durable_files
import environment
import ledger_format
import model
import pipeline_runner
import primitives
import state_store
from model import UsageError

POSIX = sys.platform != "win32"
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
HASH = re.compile(r"[0-9a-f]{64}")


def one_stage(project, body="open(out + '/o.txt', 'w').write('made')\n", **stage):
    project.write("data/in.txt", "x\n")
    project.spec(dict({"processor": project.processor("work", body), "inputs": ["data/in.txt"]}, **stage), version="2.1")
    return project


def own_hash(record):
    """Recompute a run record's hash from section 8 alone: SHA-256 of the canonical JSON without runHash."""
    rest = {key: value for key, value in record.items() if key != "runHash"}
    return hashlib.sha256(b"run\0" + json.dumps(rest, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode("utf-8")).hexdigest()


def ledger(project):
    """Return the entries of the ledger."""
    return [json.loads(line) for line in project.path("state/ledger.jsonl").read_bytes().decode("utf-8").splitlines()]


def floats_in(value):
    if isinstance(value, dict):
        return [one for inner in value.values() for one in floats_in(inner)]
    if isinstance(value, list):
        return [one for inner in value for one in floats_in(inner)]
    return [value] if isinstance(value, float) else []


def chained(project):
    """Check every run record's hash and that they form one chain; return [(runId, invocation, state)] from first to last."""
    records = {}
    for path in project.path("state").glob("run_*.json"):
        record = json.loads(path.read_bytes().decode("utf-8"))
        assert record["runHash"] == own_hash(record), path
        assert record["runHash"] not in records
        records[record["runHash"]] = record
    last = ledger(project)[-1]["lastRunHash"]
    order = []
    while last is not None:
        record = records.pop(last)
        order.append((record["runId"], record["invocation"], record["state"]))
        last = record["prevRunHash"]
    assert not records, "not in the chain: %s" % [one["runId"] for one in records.values()]
    return order[::-1]


# --- fields

def test_the_run_record(project):
    one_stage(project).ok("--run-id", "r1")
    record = project.json("state/run_r1.json")
    output = {"path": "o.txt", "bytes": 4, "sha256": hashlib.sha256(b"made").hexdigest()}
    stage = record["stages"][0]
    assert (stage["stage"], stage["status"], stage["reason"], stage["attempts"], stage["exitCode"], stage["bytesIn"], stage["bytesOut"], stage["counts"], stage["outputs"]) == (
        "s1", "ok", "no record of an earlier run", 1, 0, 2, 4, {}, [output])
    assert stage["key"] == project.json("state/stage_s1.json")["idempotencyKey"]
    assert (record["runId"], record["invocation"], record["pipeline"], record["version"], record["state"], record["schema"]) == ("r1", 1, "test", "2.1", "completed", 1)
    assert TIME.fullmatch(record["startedAt"]) and TIME.fullmatch(record["endedAt"]) and record["startedAt"] <= record["endedAt"]
    assert isinstance(record["durationMs"], int) and 0 <= record["durationMs"] < 60000
    assert record["isolation"]["scan"]["files"] > 10 and set(record["isolation"]) == {"scan", "kernel", "hook", "asRoot"}
    if sys.platform.startswith("linux"):
        assert record["isolation"]["kernel"] == {"method": "seccomp", "reports": True, "probed": True, "strict": False}
        assert record["isolation"]["hook"] == "reports file and line"
    assert record["user"] == environment.user_name() and HASH.fullmatch(record["runnerSha256"])
    assert record["python"] == "%s %d.%d.%d" % ((sys.implementation.name,) + sys.version_info[:3]) and record["os"] == sys.platform
    assert record["host"] and record["runner"] == pipeline_runner.VERSION
    assert record["specSha256"] == hashlib.sha256(project.path("pipeline.json").read_bytes()).hexdigest()
    assert record["prevRunHash"] is None and record["runHash"] == own_hash(record)
    assert floats_in(record) == []                       # a float has no one text, and this record is hashed


def test_the_stage_record(project):
    one_stage(project).ok("--run-id", "r1")
    record = project.json("state/stage_s1.json")
    assert (record["stage"], record["lastStatus"], record["attempts"], record["lastError"], record["lastRunId"], record["lastInvocation"], record["schema"]) == (
        "s1", "ok", 1, None, "r1", 1, 1)
    assert HASH.fullmatch(record["idempotencyKey"]) and record["keyParts"]["stage"] == "s1"
    assert record["outputs"] == [{"path": "o.txt", "bytes": 4, "sha256": hashlib.sha256(b"made").hexdigest()}]
    assert isinstance(record["lastDurationSec"], float) and record["lastDurationSec"] > 0
    assert TIME.fullmatch(record["startedAt"]) and TIME.fullmatch(record["endedAt"])
    marker = project.json("data/s1/.s1.done")
    assert (marker["stage"], marker["key"], marker["runId"], marker["schema"]) == ("s1", record["idempotencyKey"], "r1", 1) and TIME.fullmatch(marker["at"])


def test_the_stage_record_of_a_failure(project):
    one_stage(project, "sys.exit(7)\n", retry={"attempts": 2, "baseDelayMs": 0})
    assert project.run("--run-id", "r1").code == 1
    record = project.json("state/stage_s1.json")
    assert (record["lastStatus"], record["attempts"], record["lastError"], record["outputs"]) == ("failed", 2, "exit code 7", [])
    run = project.json("state/run_r1.json")
    assert (run["state"], run["stages"][0]["status"], run["stages"][0]["exitCode"], run["stages"][0]["attempts"], run["stages"][0]["reason"]) == (
        "failed", "failed", 7, 2, "exit code 7")


def test_the_metrics(project):
    project.write("data/in.txt", "a\nb\n")
    project.spec({"name": "copy", "processor": "bin/stage_copy.py", "inputs": ["data/in.txt"]},
                 {"name": "up", "processor": "bin/stage_upper.py", "inputs": ["data/s1/in.txt"], "checkpoint": {"enabled": True}},
                 {"name": "bad", "processor": project.processor("bad", "sys.exit(1)\n")}, {"name": "late", "processor": "bin/stage_copy.py"})
    project.ok("--until", "copy")
    assert project.run("--run-id", "r1").code == 1
    metrics = project.json("state/metrics_r1.json")
    assert [metrics[name] for name in ("runId", "totalStages", "okStages", "skippedStages", "failedStages", "schema", "invocation")] == ["r1", 4, 1, 1, 1, 1, 1]
    assert TIME.fullmatch(metrics["timestamp"]) and isinstance(metrics["durationSec"], float)
    copy, up, bad, late = metrics["stages"]
    assert [one["status"] for one in metrics["stages"]] == ["skipped", "ok", "failed", "notRun"]
    assert set(up) == {"stage", "status", "durationSec", "attempts", "cpuSec", "maxRssBytes", "bytesIn", "bytesOut", "counts"}
    assert (up["stage"], up["attempts"], up["bytesIn"], up["bytesOut"], up["counts"]) == ("up", 1, 4, 4, {"read": 2, "written": 2, "rejected": 0})
    if POSIX:
        assert 0 < up["cpuSec"] < 60 and 1 << 20 < up["maxRssBytes"] < 1 << 30
    assert (copy["attempts"], late["attempts"], bad["attempts"]) == (0, 0, 1)


def test_every_file_under_state_carries_a_schema_version_and_ends_its_last_line(project):
    project.write("data/in.txt", "a\n")
    project.spec({"processor": "bin/stage_upper.py", "inputs": ["data/in.txt"], "checkpoint": {"enabled": True}})
    project.ok("--run-id", "r1")
    project.ok("--run-id", "r1")
    names = {path.name for path in project.path("state").iterdir() if path.is_file()}
    assert {"run_r1.json", "run_r1.1.json", "metrics_r1.json", "stage_s1.json", "progress_s1.json", "ledger.jsonl", "digests.json"} <= names
    caches = {name for name in names if name.startswith("index_")}
    for name in names - caches - {"inputs_s1.json", "ledger.jsonl", "metrics.prom"}:     # forms of others: a bare list, lines, Prometheus
        assert project.json("state/" + name)["schema"] == 1, name
    assert {one["schema"] for one in ledger(project)} == {1}
    assert not [name for name in names if name.endswith(".tmp")]


def test_text_is_stored_as_readable_utf8(project):
    project.write("data/größe.txt", "x")
    project.spec({"processor": "bin/stage_copy.py", "inputs": ["data/größe.txt"], "params": {"name": "Jürgen"}})
    project.ok("--run-id", "r1")
    assert "größe.txt" in project.read("state/stage_s1.json") and "Jürgen" in project.read("state/stage_s1.json")
    chained(project)


# --- the chain

def test_the_chain_over_runs_that_completed_failed_were_interrupted_and_killed(project):
    one_stage(project, "if os.path.exists('hang'):\n    open('inside', 'w').close()\n    time.sleep(300)\nsys.exit(3 if os.path.exists('fail') else 0)\n",
              idempotency={"enabled": False}, graceSec=1)
    project.ok("--run-id", "good")
    project.write("fail", "")
    assert project.run("--run-id", "bad").code == 1
    project.path("fail").unlink()
    project.write("hang", "")
    for run_id, number in (("stopped", signal.SIGTERM), ("killed", signal.SIGKILL if POSIX else signal.SIGTERM)):
        process = project.start("--run-id", run_id)
        deadline = time.monotonic() + 60
        while not project.exists("inside"):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.01)
        process.send_signal(number)
        process.communicate(timeout=60)
        project.path("inside").unlink()
    project.path("hang").unlink()
    assert project.json("state/run_killed.json")["state"] == "running"
    project.ok("--run-id", "after")
    assert chained(project) == [("good", 1, "completed"), ("bad", 1, "failed"), ("stopped", 1, "interrupted"), ("killed", 1, "interrupted"), ("after", 1, "completed")]
    killed = project.json("state/run_killed.json")
    assert killed["endedAt"] is None and killed["state"] == "interrupted"
    # On Windows the signal ends it there and then.
    assert [one["status"] for one in project.json("state/run_stopped.json")["stages"]] == (["interrupted"] if POSIX else [])


def test_the_chain_over_skipped_runs(project):
    one_stage(project)
    for number in range(4):
        project.ok("--run-id", "r%d" % number)
    assert chained(project) == [("r%d" % number, 1, "completed") for number in range(4)]


def test_an_edited_record_is_seen_in_its_hash(project):
    one_stage(project).ok("--run-id", "r1")
    record = project.json("state/run_r1.json")
    for change in ({"state": "failed"}, {"durationMs": record["durationMs"] + 1}, {"stages": []}, {"prevRunHash": "0" * 64}):
        assert own_hash(dict(record, **change)) != record["runHash"]


# --- one run id, several times

def test_the_same_run_id_twice_keeps_the_earlier_record_and_logs(project):
    one_stage(project, "print('attempt of', open(inputs[0]).read())\nopen(out + '/o', 'w').write('o')\n")
    project.ok("--run-id", "r")
    first = project.read("state/run_r.json")
    project.write("data/in.txt", "y\n")
    project.ok("--run-id", "r")
    assert project.read("state/run_r.1.json") == first
    assert project.json("state/run_r.json")["invocation"] == 2
    assert "attempt of x" in project.read("state/logs/r/s1.1.log") and "attempt of y" in project.read("state/logs/r/2/s1.1.log")
    project.ok("--run-id", "r")
    assert project.json("state/run_r.2.json")["stages"][0]["status"] == "ok" and project.json("state/run_r.json")["stages"][0]["status"] == "skipped"
    assert chained(project) == [("r", 1, "completed"), ("r", 2, "completed"), ("r", 3, "completed")]


def test_a_run_id_whose_record_would_fall_on_anothers(project):
    one_stage(project)
    project.ok("--run-id", "r")
    project.ok("--run-id", "r")                         # state/run_r.1.json is the first call's
    before = project.snapshot()
    done = project.run("--run-id", "r.1")
    assert done.code == 2 and "state/run_r.1.json belongs to run r; choose another run id" in done.err, done
    after = project.snapshot()
    assert {name: after[name] for name in before} == before


def test_an_unfinished_call_under_the_same_id_is_closed(project):
    one_stage(project, "open('inside', 'w').close()\nif os.path.exists('hang'):\n    time.sleep(300)\n", idempotency={"enabled": False})
    project.write("hang", "")
    process = project.start("--run-id", "r")
    deadline = time.monotonic() + 60
    while not project.exists("inside"):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.communicate(timeout=60)
    project.path("hang").unlink()
    project.ok("--run-id", "r")
    assert chained(project) == [("r", 1, "interrupted"), ("r", 2, "completed")]


@pytest.mark.parametrize("arguments", [("--run-id", "r2"), ("clean", "--yes")])
def test_a_look_at_a_run_id_by_somebody_else_is_no_living_run(project, arguments):
    """A driver lets the kernel lock of run ids be held for the first two looks."""
    one_stage(project)
    project.ok("--run-id", "r")
    driver = project.write("driver.py", "import os, runpy, sys\nrunner = sys.argv[1]\nsys.path.insert(0, os.path.dirname(runner))\nimport stage_locks\n"
                                        "real, looks = stage_locks.FileLock.try_acquire, []\n"
                                        "def busy(lock):\n    looks.extend([1] * lock.path.endswith('.run'))\n    return real(lock) if len(looks) not in (1, 2) else False\n"
                                        "stage_locks.FileLock.try_acquire = busy\nimport atexit\natexit.register(lambda: print(len(looks), 'looks', flush=True))\n"
                                        "sys.argv[:] = sys.argv[1:]\nrunpy.run_path(runner, run_name='__main__')\n")
    for change in ((), ("changed\n",)):
        for text in change:
            project.write("data/in.txt", text)
        argv = project.argv(*arguments)
        done = subprocess.run([argv[0], str(driver)] + argv[1:], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60)
        assert done.returncode == 0 and int(done.stdout.split(b"\n")[-2].split()[0]) >= 3, done


def test_two_living_runs_with_one_id(project):
    one_stage(project, "open('inside', 'w').close()\nwhile not os.path.exists('gate'):\n    time.sleep(0.01)\n")
    process = project.start("--run-id", "r")
    try:
        deadline = time.monotonic() + 60
        while not project.exists("inside"):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.01)
        wait_until(lambda: not project.exists("state/.stage_s1.json.before"), "its record's coming to the disk")
        before = project.snapshot()
        done = project.run("--run-id", "r")
        assert done.code == 4 and "run id r is in use, by a living run or by gc; wait for it or choose another --run-id" in done.err, done
        assert project.snapshot() == before
    finally:
        project.write("gate", "")
        process.communicate(timeout=60)
    assert process.returncode == 0
    assert chained(project) == [("r", 1, "completed")]


# --- damage

GARBAGE = {
    "truncated": lambda data: data[:len(data) // 2], "empty": lambda data: b"", "zeros": lambda data: b"\0" * len(data), "not UTF-8": lambda data: b"\xff" + data,
    "a list": lambda data: b"[1, 2]", "a number": lambda data: b"7", "null": lambda data: b"null", "no schema": lambda data: b"{}", "schema is text": lambda data: b'{"schema": "1"}',
    "schema is true": lambda data: b'{"schema": true}', "deep": lambda data: b"[" * 100000,
}


@pytest.fixture(scope="module")
def finished_once(tmp_path_factory):
    made = one_stage(Project(tmp_path_factory.mktemp("state") / "fertig lauf"))
    made.ok("--run-id", "r")
    return made


@pytest.fixture
def finished(finished_once, tmp_path):
    """A copy of its own of a project with one stage after the run r."""
    shutil.copytree(str(finished_once.root), str(tmp_path / "kopie"))
    copy = Project.__new__(Project)
    copy.root = tmp_path / "kopie"
    return copy


@pytest.mark.parametrize("name, kind", [("stage_s1.json", kind) for kind in GARBAGE]
                         + [(name, kind) for name in ("run_r.json",) for kind in ("truncated", "empty", "a list", "no schema")])
def test_damaged_records_are_set_aside_and_said_so_and_the_next_run_works(finished, name, kind):
    project = finished
    data = GARBAGE[kind](project.path("state/" + name).read_bytes())
    project.write("state/" + name, data)
    done = project.run("--run-id", "r")
    assert done.code == 5, done
    found = re.search(r"state/(%s) (?:is damaged|is not a record)[^\n]*it was set aside as state/(%s\.corrupt-\S+?); run again" % (name, name), done.err)
    assert found, done
    assert project.path("state/" + found.group(2)).read_bytes() == data
    assert project.ok("--run-id", "r").out.count("Run r state: completed") == 1
    assert project.path("state/" + found.group(2)).read_bytes() == data
    assert project.read("data/s1/o.txt") == "made"


@pytest.mark.parametrize("run_id", ["r", "later"])
def test_a_record_damaged_after_a_kill_is_told_by_whoever_closes_the_dead_run(project, run_id):
    body = "if os.path.exists(%r):\n    os.kill(os.getppid(), 9)\n    time.sleep(60)\n" % str(project.path("deadly"))
    project.spec({"name": "s1", "processor": project.processor("p", body)})
    project.write("deadly", "")
    assert project.run("--run-id", "r").code == KILLED
    project.path("deadly").unlink()
    project.write("state/stage_s1.json", b"[]")
    done = project.run("--run-id", run_id)
    assert done.code == 5 and "state/stage_s1.json is not a record of this runner; it was set aside as state/stage_s1.json.corrupt-" in done.err, done
    project.ok("--run-id", run_id)


def test_a_damaged_record_of_a_stage_that_is_no_more_stops_no_other_stage(project):
    one_stage(project, "sys.exit(7)")
    assert project.run().code == 1
    project.write("state/stage_gone.json", b"\0")
    done = project.run()
    assert done.code == 1 and "[FAIL] s1: exit code 7" in done.out, done
    one_stage(project)
    project.ok()
    assert project.path("state/stage_gone.json").read_bytes() == b"\0"


@pytest.mark.parametrize("stages", [None, 5, [1], {}, "x"], ids=str)
def test_a_run_record_of_another_form_is_set_aside_by_who_asks_whether_its_marker_was_written(finished, stages):
    project = finished
    project.write("state/run_r.json", json.dumps(dict(project.json("state/run_r.json"), stages=stages)))
    project.path("data/s1/.s1.done").unlink()
    assert "state/run_r.json is damaged (its stages are of another form); a run would set it aside" in project.run("plan").err
    done = project.run()
    assert done.code == 5 and "state/run_r.json is damaged (its stages are of another form); it was set aside as state/run_r.json.corrupt-" in done.err, done
    assert "[DONE] s1" in project.ok().out


@pytest.mark.parametrize("changes", [{"lastInvocation": "1"}, {"lastInvocation": [1]}, {"lastRunId": "\0"}, {"lastRunId": {}}], ids=str)
def test_a_stage_record_that_names_no_run_is_no_witness_that_its_marker_was_written(finished, changes):
    project = finished
    project.write("state/stage_s1.json", json.dumps(dict(project.json("state/stage_s1.json"), **changes)))
    project.path("data/s1/.s1.done").unlink()
    assert "[DONE] s1" in project.ok().out


BAD_STAGE = {
    "another stage": {"stage": "s2"}, "unknown status": {"lastStatus": "fine"}, "no status": {"lastStatus": None}, "no key": {"idempotencyKey": None}, "parts are a list": {"keyParts": []},
    "outputs are an object": {"outputs": {}}, "outputs hold text": {"outputs": ["o.txt"]}, "bytes are text": {"outputs": [{"path": "o.txt", "bytes": "4", "sha256": "0"}]},
    "an output outside": {"outputs": [{"path": "../../etc/passwd", "bytes": 4, "sha256": "0"}]}, "an absolute output": {"outputs": [{"path": "/etc/passwd", "bytes": 4, "sha256": "0"}]},
    "parts of another form": {"idempotencyKey": "0" * 64, "keyParts": {"inputs": 5}}, "parts of yet another form": {"idempotencyKey": "0" * 64, "keyParts": {"params": [1], "inputs": [[1]]}},
    "a processor of another form": {"idempotencyKey": "0" * 64, "keyParts": {"processor": 5}},
}


@pytest.mark.parametrize("kind", BAD_STAGE)
def test_stage_records_of_a_wrong_form_are_damaged_too(finished, kind):
    project = finished
    project.write("state/stage_s1.json", json.dumps(dict(project.json("state/stage_s1.json"), **BAD_STAGE[kind])))
    done = project.run("--run-id", "r2")
    assert done.code == 5 and "state/stage_s1.json is damaged (" in done.err and ".corrupt-" in done.err, done
    project.ok("--run-id", "r3")


@pytest.mark.parametrize("change", [{"open": []}, {"open": {"r": "x"}}, {"open": {"../x": 1}}, {"open": {"r9": 1}}, {"runId": 5}, {"seq": "1"}, {"event": None}, {"runHash": None}])
def test_a_last_entry_of_a_wrong_form_never_ends_in_an_internal_error(finished, change):
    project = finished
    last = dict(ledger(project)[-1], **change)
    last["hash"] = ledger_format.entry_hash(last)
    project.write("state/ledger.jsonl", ledger_format.entry_line(last))
    done = project.run("--run-id", "r2")
    assert done.code in (0, 5), done
    if done.code == 5:
        assert "state/ledger.jsonl: the last entry is damaged" in done.err and ".corrupt-" in done.err, done
        project.ok("--run-id", "r3")


@pytest.mark.parametrize("name", ["stage_s1.json", "run_r.json"])
def test_records_of_a_newer_runner_are_refused_and_left_alone(finished, name):
    project = finished
    data = json.dumps(dict(project.json("state/" + name), schema=99)).encode()
    project.write("state/" + name, data)
    done = project.run("--run-id", "r")
    assert done.code == 5 and "state/%s was written by a newer runner (schema 99, this one knows 1); use that one" % name in done.err, done
    assert project.path("state/" + name).read_bytes() == data


def test_damage_is_found_before_any_work(project):
    project.write("data/in.txt", "x")
    project.spec({"processor": project.processor("one", "open(out + '/o', 'w').write('1')\n"), "inputs": ["data/in.txt"]}, {"processor": "bin/stage_copy.py", "inputs": ["data/in.txt"]})
    project.write("state/stage_s2.json", "{")
    assert project.run().code == 5
    assert not project.exists("data/s1")


@pytest.mark.parametrize("name", ["inputs_s1.json", "metrics_r.json", "progress_s1.json"])
@pytest.mark.parametrize("kind", ["empty", "a list", "zeros"])
def test_what_is_only_an_output_of_the_runner_is_written_anew(project, name, kind):
    one_stage(project, checkpoint={"enabled": True}).ok("--run-id", "r")
    project.write("state/" + name, GARBAGE[kind](b"{}"))
    project.ok("--run-id", "r")
    project.ok("--run-id", "r", "--force", "s1")


@pytest.mark.parametrize("name", ["env", "ledger"])
def test_no_name_of_a_stage_is_in_the_way_of_the_runners_own_locks(project, name):
    """The secret for the variables is made by the first run, while the stage has its lock."""
    project.spec({"name": name, "processor": project.processor("make", "open(out + '/o', 'w').close()\n"), "env": {"X": "1"}})
    assert "[DONE] %s " % name in project.ok().out


@pytest.mark.parametrize("data", [b"", b"short"])
def test_a_damaged_secret_is_set_aside(project, data):
    """An empty key would make the digests of variables' values guessable."""
    one_stage(project, passEnv=["DEMO_*"]).ok("--run-id", "r1", env={"DEMO_A": "1"})
    project.write("state/env.key", data)
    done = project.run("--run-id", "r2", env={"DEMO_A": "1"})
    assert done.code == 5 and "state/env.key is damaged" in done.err and ".corrupt-" in done.err, done
    done = project.ok("--run-id", "r3", env={"DEMO_A": "1"})
    assert len(project.path("state/env.key").read_bytes()) == 32
    assert "[DONE] s1" in done.out


@pytest.mark.skipif(os.name == "nt", reason="links need a right on Windows, which has no pipes among files")
@pytest.mark.parametrize("make, told", [
    (lambda path: os.symlink("not-mounted", path), "state/env.key is a link that leads nowhere: mount what it leads to, or remove the link, and run again"),
    (lambda path: os.mkfifo(path), "state/env.key: it is a pipe or a device, no file"), (os.mkdir, "state/env.key: Is a directory; a file belongs there: move the folder away")])
def test_a_secret_that_is_no_file_is_told_in_a_line(project, make, told):
    one_stage(project, passEnv=["DEMO_*"]).ok("--run-id", "r1", env={"DEMO_A": "1"})
    project.path("state/env.key").unlink()
    make(str(project.path("state/env.key")))
    for words in ((), ("--force", "s1")):
        done = project.run(*words, env={"DEMO_A": "1"}, timeout=30)
        assert done.code == 5 and told in done.err and done.err.count("\n") == 1, done
    done = project.run("plan", env={"DEMO_A": "1"}, timeout=30)
    assert "state/env.key" in done.out + done.err, done
    assert os.path.lexists(str(project.path("state/env.key")))


def test_two_files_set_aside_within_a_second_keep_apart(tmp_path):
    store = state_store.StateStore(str(tmp_path), now=lambda: 0.0)
    store.prepare()
    for text in ("first", "second", "third"):
        (tmp_path / "state" / "stage_a.json").write_text(text)
        with pytest.raises(state_store.StateError):
            store.read("stage_a.json")
    kept = sorted(path.name for path in (tmp_path / "state").glob("*.corrupt-*"))
    assert kept == ["stage_a.json.corrupt-19700101T000000Z", "stage_a.json.corrupt-19700101T000000Z-2", "stage_a.json.corrupt-19700101T000000Z-3"]
    assert (tmp_path / "state" / kept[2]).read_text() == "third"


# --- the public functions

def test_save_run_state_and_save_stage_state(tmp_path):
    root = str(tmp_path / "neue wurzel")
    os.mkdir(root)
    pipeline_runner.save_run_state("r1", {"runId": "r1", "größe": 1}, root)
    pipeline_runner.save_stage_state("copy", {"stage": "copy", "outputs": []}, root)
    run = json.loads((tmp_path / "neue wurzel" / "state" / "run_r1.json").read_bytes().decode("utf-8"))
    assert run == {"schema": 1, "runId": "r1", "größe": 1}
    assert json.loads((tmp_path / "neue wurzel" / "state" / "stage_copy.json").read_bytes().decode("utf-8")) == {"schema": 1, "stage": "copy", "outputs": []}
    pipeline_runner.save_run_state("r1", {"runId": "r1"}, root)
    assert sorted(os.listdir(os.path.join(root, "state"))) == ["run_r1.json", "stage_copy.json"]


@pytest.mark.parametrize("name", ["", "../x", "a/b", "nul", "x" * 65, "a\n"])
def test_save_refuses_names_that_are_no_file_names(tmp_path, name):
    for save in (pipeline_runner.save_run_state, pipeline_runner.save_stage_state):
        with pytest.raises(UsageError):
            save(name, {}, str(tmp_path))
    assert os.listdir(str(tmp_path)) == []


def test_write_atomic_leaves_the_old_whole_when_it_fails(tmp_path):
    path = tmp_path / "record"
    path.write_text("old")
    durable_files.write_atomic(str(path), b"new")
    assert path.read_bytes() == b"new" and os.listdir(str(tmp_path)) == ["record"]
    target = tmp_path / "folder"
    target.mkdir()
    with pytest.raises(OSError) as caught:
        durable_files.write_atomic(str(target), b"x")
    assert caught.value.filename == str(target)
    assert sorted(os.listdir(str(tmp_path))) == ["folder", "record"]


@pytest.mark.skipif(not POSIX, reason="links need a privilege there")
def test_write_atomic_does_not_follow_what_was_planted_under_its_temporary_name(tmp_path):
    (tmp_path / "victim").write_text("untouched")
    (tmp_path / ".record.tmp").symlink_to("victim")
    durable_files.write_atomic(str(tmp_path / "record"), b"new")
    assert (tmp_path / "victim").read_text() == "untouched" and (tmp_path / "record").read_bytes() == b"new"


@pytest.mark.parametrize("seconds, text", [(0, "1970-01-01T00:00:00.000Z"), (1.9996, "1970-01-01T00:00:01.999Z"), (1700000000.25, "2023-11-14T22:13:20.250Z")])
def test_times_are_utc_with_milliseconds_and_z(seconds, text):
    assert state_store.utc_text(seconds) == text


def test_canonical_json():
    assert ledger_format.canonical_json({"b": [1, None, True], "a": "ü\n"}) == '{"a":"ü\\n","b":[1,null,true]}'.encode("utf-8")
    with pytest.raises(ValueError):
        ledger_format.canonical_json(float("nan"))


# --- disks that are full or read-only, in a mount namespace of their own

def in_namespace(script, folder):
    """Run a shell script (with $ROOT, $PY and $RUNNER) in a mount namespace of its own; skip where that is not allowed."""
    if sys.platform != "linux":
        pytest.skip("mount namespaces are Linux's")
    for unshare in (["unshare", "-m"], ["unshare", "-rm"]):
        try:
            if subprocess.run(unshare + ["sh", "-c", "mount -t tmpfs -o size=64k tmpfs /mnt"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0:
                break
        except OSError:
            pass
    else:
        pytest.skip("mount namespaces are not allowed here")
    env = dict(os.environ, ROOT=str(folder), PY=sys.executable, RUNNER=str(RUNNER), LC_ALL="C.UTF-8")
    done = subprocess.run(unshare + ["sh", "-c", textwrap.dedent(script)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120, env=env)
    text = done.stdout.decode("utf-8", "replace")
    assert "internal error" not in text, text
    # "== name: code" lines between the outputs of the commands
    found = {}
    for block in re.split(r"(?m)^== ", text)[1:]:
        head, _, rest = block.partition("\n")
        name, _, code = head.partition(": ")
        found[name] = (int(code), rest)
    return found, text


RUN = 'out=$("$PY" "$RUNNER" --pipeline "$ROOT/pipeline.json" 2>&1); echo "== %s: $?"; echo "$out"\n'


@pytest.mark.parametrize("mounted", ["$ROOT/in/A", "$ROOT/../volume"], ids=["below the root", "through a link"])
def test_nothing_is_pruned_while_what_lay_on_another_file_system_is_not_mounted(project, mounted):
    """The folder on which it was mounted is there, and empty."""
    project.write("in/B/b.txt", "b")
    project.spec({"processor": "bin/stage_copy.py", "forEach": "in/*/*.txt", "prune": True})
    found, text = in_namespace('M="%s"; mkdir -p "$M"; [ -d "$ROOT/in/A" ] || ln -s "$M" "$ROOT/in/A"\nmount -t tmpfs -o size=64k tmpfs "$M" || exit 9\n' % mounted
                               + 'echo a > "$M/a.txt"\n' + RUN % "first" + 'umount "$M"\n' + RUN % "none" + RUN % "still"
                               + RUN.replace("--pipeline", "--force s1 --pipeline") % "forced", project.root)
    name = "in/A" if "in/A" in mounted else os.path.realpath(str(project.root.parent / "volume"))
    told = "[NOTE] s1: nothing is mounted on %s any more, where files of tasks were (mount it; if it is to stay so: --force s1): nothing is pruned\n" % name
    assert all(told in found[one][1] for one in ("none", "still")) and {code for code, _ in found.values()} == {0}, text
    assert "[NOTE] s1: 1 file is gone: in/A/a.txt; outputs removed" in found["forced"][1], text
    assert "mounts" not in project.json("state/stage_s1.json"), text


def test_a_read_only_root_is_a_clear_error(project):
    one_stage(project)
    found, text = in_namespace('mount --bind "$ROOT" "$ROOT" && mount -o remount,bind,ro "$ROOT" || exit 9\n' + RUN % "readonly"
                               + 'mount -o remount,bind,rw "$ROOT"\n' + RUN % "after", project.root)
    code, out = found["readonly"]
    assert code == 5 and "Read-only file system" in out and str(project.path("state")) in out and "must be able to write" in out, text
    assert found["after"][0] == 0, text


def test_a_read_only_output_folder_is_a_clear_error(project):
    one_stage(project)
    project.path("data/s1").mkdir()
    found, text = in_namespace('cd "$ROOT"; mount --bind data/s1 data/s1 && mount -o remount,bind,ro data/s1 || exit 9\n' + RUN % "readonly"
                               + 'umount data/s1\n' + RUN % "after", project.root)
    code, out = found["readonly"]
    assert code in (1, 5) and "Read-only file system" in out and "data/s1" in out, text
    assert found["after"][0] == 0 and project.read("data/s1/o.txt") == "made", text


@pytest.mark.parametrize("kind", [{"forEach": "in/*"}, {"inputs": ["in/*"], "chunks": {"bytes": 100, "filter": True}, "processor": "/bin/cat"}], ids=["tasks", "chunks"])
def test_an_output_that_is_mounted_by_itself_fails_its_stage_alone_with_a_remedy(project, kind):
    """As a single file is in a container: nothing can be renamed into its place."""
    project.write("in/a.txt", "new\n")
    project.write("out/a.txt", "old\n")
    body = "open(out + '/' + os.path.basename(inputs[0]), 'w').write(open(inputs[0]).read())\n"
    project.spec(dict({"name": "one", "processor": project.processor("copy", body), "outputDir": "out"}, **kind),
                 {"name": "two", "processor": "bin/stage_copy.py", "inputs": ["in/*"], "outputDir": "other"})
    run = RUN.replace("pipeline.json\"", "pipeline.json\" --keep-going")
    found, text = in_namespace('cd "$ROOT"; mount --bind out/a.txt out/a.txt || exit 9\n' + run % "mounted" + "umount out/a.txt\n" + run % "after", project.root)
    code, out = found["mounted"]
    assert code == 1 and "out/a.txt is in the way of its output: Device or resource busy; if it is mounted by itself, mount its folder instead; " in out, text
    assert "[DONE] two" in out and found["after"][0] == 0 and project.read("out/a.txt") == "new\n", text


def test_no_bytecode_is_cached_where_it_may_be_cut_short(project):
    project.write("data/in.txt", "x")
    project.write("bin/helper.py", "NAME = 'o'\n")
    project.spec({"processor": project.processor("p", "import helper\nopen(os.path.join(out, helper.NAME), 'w').close()\n"), "inputs": ["data/in.txt"],
                  "passEnv": ["PYTHON*"]})
    found, text = in_namespace('unset PYTHONDONTWRITEBYTECODE; mkdir "$ROOT/installed" && mount -t tmpfs -o size=8m tmpfs "$ROOT/installed" || exit 9\n'
                               'cp "$(dirname "$RUNNER")"/*.py "$ROOT/installed"; mkdir "$ROOT/installed/python_hook"; cp "$(dirname "$RUNNER")"/python_hook/*.py "$ROOT/installed/python_hook"\n'
                               'RUNNER="$ROOT/installed/pipeline_runner.py"\n' + RUN % "short" + 'find "$ROOT" -name "*.pyc"\n'
                               'mount -o remount,size=64m "$ROOT/installed"\n' + RUN % "enough" + 'find "$ROOT/installed" -name "console*.pyc"\n', project.root)
    assert [found[name][0] for name in ("short", "enough")] == [0, 0], text
    assert "[SKIP] s1" in found["enough"][1]       # it is no part of the key
    assert text.count(".pyc") == 1 and "/installed/__pycache__/console." in text, text


@pytest.mark.skipif(sys.platform == "win32", reason="there is no limit of file sizes")
def test_no_bytecode_is_cached_under_a_limit_of_file_sizes(project):
    """Python would write what fits, and take it for whole."""
    project.write("data/in.txt", "x")
    project.spec({"processor": project.processor("p", "open(os.path.join(out, 'o'), 'w').close()\n"), "inputs": ["data/in.txt"]})
    shutil.copytree(str(ROOT / "src"), str(project.path("runner")), ignore=shutil.ignore_patterns("__pycache__"))
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    for limit in ("1000", "unlimited"):
        done = subprocess.run(["sh", "-c", "ulimit -f %s; exec \"$@\"" % limit, "sh", sys.executable, str(project.path("runner/pipeline_runner.py")),
                               "--pipeline", str(project.path("pipeline.json"))], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60, check=False)
        assert done.returncode == 0, done
        assert project.exists("runner/__pycache__") == (limit == "unlimited")


def test_no_bytecode_of_a_processors_modules_is_cached_where_it_may_be_cut_short(project):
    project.write("data/in.txt", "x")
    project.write("bin/helper.py", "NAME = 'o'\n")
    project.spec({"processor": project.processor("p", "import helper\nopen(os.path.join(out, helper.NAME), 'w').close()\n"), "inputs": ["data/in.txt"]})
    found, text = in_namespace('unset PYTHONDONTWRITEBYTECODE; mkdir "$ROOT/installed" "$ROOT/keep"; cp -r "$(dirname "$RUNNER")"/. "$ROOT/installed"\n'
                               'RUNNER="$ROOT/installed/pipeline_runner.py"; cp "$ROOT"/bin/*.py "$ROOT/keep" && mount -t tmpfs -o size=8m tmpfs "$ROOT/bin" && cp "$ROOT"/keep/* "$ROOT/bin" || exit 9\n'
                               + RUN % "short" + 'find "$ROOT/bin" -name "*.pyc"\nrm -r "$ROOT/data/s1"; mount -o remount,size=64m "$ROOT/bin"\n'
                               + RUN % "enough" + 'find "$ROOT/bin" -name "*.pyc"\n', project.root)
    assert [found[name][0] for name in ("short", "enough")] == [0, 0], text
    assert text.count(".pyc") == 1 and "/bin/__pycache__/helper." in text.partition("== enough")[2], text


def test_a_full_disk_under_the_runners_own_state(project):
    one_stage(project)
    found, text = in_namespace('mkdir "$ROOT/state" && mount -t tmpfs -o size=512k tmpfs "$ROOT/state" || exit 9\n'
                               'head -c 1000000 /dev/zero > "$ROOT/state/ballast" 2>/dev/null\n' + RUN % "full" + 'rm "$ROOT/state/ballast"\n' + RUN % "after", project.root)
    code, out = found["full"]
    assert code == 5 and re.search(r"error: %s/state/\S+: No space left on device \(0 bytes free on the file system of [^)]*state\); free some space and run again" % re.escape(str(project.root)), out), text
    assert found["after"][0] == 0 and "completed (1 ok" in found["after"][1], text
    assert project.read("data/s1/o.txt") == "made"


FILL = ("try:\n    with open(out + '/o.txt', 'wb') as file:\n        for _ in range(100):\n            file.write(b'x' * 10000)\n            file.flush()\n"
        "except OSError as error:\n    sys.exit('cannot write: %s' % error)\n")


def test_a_disk_without_room_for_another_file_is_told_so(project):
    one_stage(project)
    found, text = in_namespace('mkdir "$ROOT/state" && mount -t tmpfs -o nr_inodes=4 tmpfs "$ROOT/state" || exit 9\n' + RUN % "full", project.root)
    code, out = found["full"]
    assert code == 5 and re.search(r"No space left on device \([1-9][0-9]* bytes, but no inode \(each file needs one\), free on the file system of [^)]*state\); free some space", out), text


@pytest.mark.parametrize("limit, text", [("size=64m,nr_inodes=1", r"[1-9]\d* bytes free there, but no inode: each file needs one"), ("size=64k", "0 bytes free there")])
def test_the_kit_tells_what_a_full_disk_has_no_room_for(project, limit, text):
    project.write("data/in.txt", "x" * 100000)
    project.write("bin/processor_kit.py", (ROOT / "bin" / "processor_kit.py").read_text(encoding="utf-8"))
    project.write("bin/copy.py", "from processor_kit import copy_files\ncopy_files()\n")
    project.spec({"processor": "bin/copy.py", "inputs": ["data/in.txt"]})
    found, out = in_namespace('mkdir "$ROOT/data/s1" && mount -t tmpfs -o %s tmpfs "$ROOT/data/s1" || exit 9\n' % limit + RUN % "full", project.root)
    assert found["full"][0] == 1 and re.search(r"No space left on device \(%s\): make room and run again" % text, out), out


def test_a_program_on_a_file_system_that_runs_none_is_told_so(project):
    project.write("keep/p", "#!/bin/sh\n", executable=True)
    project.spec({"processor": "keep/p"})
    found, text = in_namespace('mount --bind "$ROOT/keep" "$ROOT/keep" && mount -o remount,bind,noexec "$ROOT/keep" || exit 9\n' + RUN % "noexec", project.root)
    code, out = found["noexec"]
    assert code == 2 and '"keep/p" is not executable by this user, or lies on a file system that runs no programs (noexec)' in out, text


def test_a_full_disk_is_not_allowed_by_max_failed_tasks(project):
    """Else a night on which the disk is full would be ok, and remove what is there of earlier ones."""
    project.write("in/a", "a")
    project.spec({"processor": project.processor("fill", FILL), "forEach": ["in/*"], "maxFailedTasks": 9})
    found, text = in_namespace('mkdir -p "$ROOT/data/s1" && mount -t tmpfs -o size=512k tmpfs "$ROOT/data/s1" || exit 9\n' + RUN % "full", project.root)
    code, out = found["full"]
    assert code == 1 and "[FAIL] s1: 1 of 1 tasks failed for what maxFailedTasks does not allow, as it may be no fault of their files: in/a (exit code 1: " in out, text


@pytest.mark.parametrize("limit", ["nr_inodes=7", "size=512k"])
def test_a_full_disk_that_the_processor_says_nothing_of_is_not_allowed_by_max_failed_tasks(project, limit):
    """Many file systems (ext4) run out of inodes before they run out of bytes."""
    for name in "abcdefgh":
        project.write("in/" + name, name)
    project.write("bin/c.sh", '#!/bin/sh\nhead -c 200000 /dev/zero 2>/dev/null > "$PIPELINE_OUTPUT_DIR/${1##*/}" || exit 1\n', executable=True)
    project.spec({"processor": "bin/c.sh", "forEach": ["in/*"], "maxFailedTasks": 8})
    found, text = in_namespace('mkdir -p "$ROOT/data/s1" && mount -t tmpfs -o size=64m,%s tmpfs "$ROOT/data/s1" || exit 9\n' % limit
                               + RUN.replace(" 2>&1", " --jobs 1 2>&1") % "full", project.root)
    code, out = found["full"]
    assert code == 1 and re.search(r"\[FAIL\] s1: \d of 8 tasks failed for what maxFailedTasks does not allow, .*; the disk is full: \d+ bytes", out), text
    assert ("(each file needs one), free on the file system of" in out) == (limit == "nr_inodes=7"), text


def test_a_full_disk_that_the_last_attempt_did_not_meet_is_no_reason(project):
    project.write("in/a", "a")
    body = FILL.replace("sys.exit('cannot write: %s' % error)", "sys.exit(75)").replace("range(100)", "range(1000)")
    project.spec({"processor": project.processor("fill", "if os.environ['PIPELINE_ATTEMPT'] == '2':\n    sys.exit(3)\n" + body), "forEach": ["in/*"], "maxFailedTasks": 9,
                  "retry": {"attempts": 2, "baseDelayMs": 1}})
    found, text = in_namespace('mkdir -p "$ROOT/data/s1" && mount -t tmpfs -o size=4m tmpfs "$ROOT/data/s1" || exit 9\n' + RUN % "full", project.root)
    code, out = found["full"]
    assert code == 0 and "[RETRY] s1 in/a attempt 1/2: exit code 75" in out and "1 failed and allowed" in out, text


def test_a_failed_stage_stays_the_first_cause_though_the_ledger_cannot_be_written(project):
    one_stage(project, "open('state/ledger.jsonl', 'ab').write(b'{\\n')\nsys.exit(%d)\n" % 7)
    done = project.run("--run-id", "r")
    assert done.code == 1 and "[FAIL] s1: exit code 7" in done.out, done
    assert "error: state/ledger.jsonl" in done.err and "Traceback" not in done.err, done
    one_stage(project, "open('state/ledger.jsonl', 'ab').write(b'{\\n')\n")
    done = project.run("--run-id", "r2")
    assert done.code == 5 and "error: state/ledger.jsonl" in done.err, done


def test_a_full_disk_under_a_processor_is_a_failed_stage(project):
    one_stage(project, FILL)
    found, text = in_namespace('mkdir -p "$ROOT/data/s1" && mount -t tmpfs -o size=64k tmpfs "$ROOT/data/s1" || exit 9\n' + RUN % "full"
                               + 'mount -o remount,size=4m "$ROOT/data/s1"\n' + RUN % "after", project.root)
    code, out = found["full"]
    assert code == 1, text
    assert re.search(r"\[FAIL\] s1: exit code 1: cannot write: .*; the disk is full: 0 bytes free on the file system of \S.*data/s1", out), text
    assert found["after"][0] == 0, text


def test_a_full_disk_under_both_is_the_processors_fault_first(project):
    """One small disk for all: the processor fills it, and then the runner cannot write its records either."""
    one_stage(project, FILL, )
    found, text = in_namespace('cp -r "$ROOT" "$ROOT.copy" && mount -t tmpfs -o size=400k tmpfs "$ROOT" && cp -r "$ROOT.copy/." "$ROOT" || exit 9\n' + RUN % "full"
                               + 'mount -o remount,size=8m "$ROOT"\n' + RUN % "after" + RUN % "again"
                               + 'cp "$ROOT"/state/run_*.json "$ROOT.copy"; ls -A "$ROOT/state" "$ROOT/data/s1"', project.root)
    code, out = found["full"]
    assert code == 1 and "bytes free on the file system of" in out and "[FAIL] s1: exit code 1" in out, text
    assert found["after"][0] == 0 and "[DONE] s1" in found["after"][1], text
    assert found["again"][0] == 0 and "[SKIP] s1" in found["again"][1], text
    assert ".tmp" not in found["again"][1], text


def test_what_the_system_takes_in_small_parts_is_written_whole(tmp_path, monkeypatch):
    write, path = os.write, str(tmp_path / "file")
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, bytes(data[:3])))
    for data in (b"0123456789", memoryview(b"0123456789"), [b"01234", b"", memoryview(b"56789")]):
        durable_files.write_atomic(path, data)
        with open(path, "rb") as file:
            assert file.read() == b"0123456789"
        os.unlink(path)


@pytest.mark.skipif(sys.platform == "win32", reason="named pipes")
@pytest.mark.parametrize("name, code", [("metrics.prom", 0), ("digests.json", 0), ("stage_s1.json", 5), ("ledger.jsonl", 5), ("tasks_s2.jsonl", 5), ("files_s2.bin", 0),
                                        ("index_pipeline.json", 0)])
def test_a_pipe_in_the_place_of_a_state_file_is_not_waited_for(project, name, code):
    project.write("in/a", "x")
    work = project.processor("work", "open(out + '/o', 'w').close()\n")
    project.spec({"processor": work}, {"processor": work, "forEach": "in/*"})
    project.ok()
    if project.path("state/" + name).exists():
        project.path("state/" + name).unlink()
    os.mkfifo(str(project.path("state/" + name)))
    project.write("in/a", "y")
    done = project.run()
    assert done.code == code and (code == 0 or "state/%s: it is a pipe or a device, no file" % name in done.err and done.err.count("\n") == 1), done


@pytest.mark.skipif(sys.platform == "win32", reason="symbolic links")
def test_a_ledger_that_is_a_link_is_not_to_be_thrown_away(project):
    one_stage(project)
    project.ok()
    project.path("state/ledger.jsonl").rename(project.path("elsewhere"))
    project.path("state/ledger.jsonl").symlink_to("../elsewhere")
    done = project.run()
    assert done.code == 5 and "it is a symbolic link, which is not followed here, or one that leads to itself: put the file that is meant in its place" in done.err, done


def test_an_error_below_a_folder_or_of_an_open_file_names_the_path(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", "1.txt")
    monkeypatch.setattr(shutil, "rmtree", refuse)
    with pytest.raises(PermissionError) as caught:
        durable_files.remove_tree(str(tmp_path / "up" / ".up.tasks"))
    assert caught.value.filename == str(tmp_path / "up" / ".up.tasks")
    with pytest.raises(OSError) as caught, primitives.naming("state/x"):
        os.close(999999)
    assert caught.value.filename == "state/x" and caught.value.errno == errno.EBADF


@pytest.mark.skipif(not hasattr(os, "statvfs"), reason="no inodes are counted here")
@pytest.mark.parametrize("files, left, text", [(100, 0, ", but no inode (each file needs one),"), (100, 1, ", but 1 inode (each file needs one),"),
                                               (100, 63, ", but 63 inodes (each file needs one),"), (100, 64, ""), (0, 0, "")])
def test_few_inodes_are_told_of(monkeypatch, files, left, text):
    monkeypatch.setattr(os, "statvfs", lambda folder: types.SimpleNamespace(f_files=files, f_favail=left))
    assert console._inodes_text("/") == text


@pytest.mark.parametrize("bytes_left, inodes_left, is_full", [(1 << 30, 1 << 20, False), (100_000, 1 << 20, False), (1000, 1 << 20, True), (1 << 30, 0, True), (1 << 30, 63, True)])
def test_a_disk_is_full_without_bytes_or_without_inodes(monkeypatch, bytes_left, inodes_left, is_full):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: types.SimpleNamespace(free=bytes_left))
    monkeypatch.setattr(os, "statvfs", lambda folder: types.SimpleNamespace(f_files=1 << 21, f_favail=inodes_left), raising=False)
    text = console.full_disk_text("/")
    assert text.startswith("the disk is full: %d bytes" % bytes_left) == is_full and bool(text) == is_full and ("inode" in text) == (inodes_left < 64)


def test_a_mount_that_does_not_answer_is_told_as_that_and_not_as_a_file(tmp_path, monkeypatch):
    def gone(path, *more, **options):
        raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN), path)

    (tmp_path / "state").mkdir()
    real = os.stat
    monkeypatch.setattr(os, "stat", lambda path, *more, **options: (gone if str(path).endswith("state") else real)(path, *more, **options))
    with pytest.raises(OSError) as raised:
        durable_files.make_folder(str(tmp_path / "state"), durable_files.Commit())
    monkeypatch.undo()
    assert raised.value.errno == errno.ENOTCONN and model.remedy_of(raised.value) == "; what is mounted there does not answer any more: mount it again"
    for number in (errno.ENOTCONN, errno.ELOOP):        # names that Windows gives them
        monkeypatch.setitem(errno.errorcode, number, "WSA" + errno.errorcode[number].replace("WSA", ""))
        assert model.remedy_of(OSError(number, "")), number
