"""The ledger as users meet it: verify, accept, seals, evidence, and several pipelines below one root at once."""
from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile

import pipeline_runner
import pytest
import run_ledger
from conftest import RUNNER

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="POSIX calls")


def one_stage(project, body="open(out + '/o.txt', 'w').write('made')\n", **top):
    project.write("in.txt", "x\n")
    project.spec({"processor": project.processor("work", body), "inputs": ["in.txt"]}, **top)
    return project


def ledger(project):
    return [json.loads(line) for line in project.path("state/ledger.jsonl").read_bytes().decode("utf-8").splitlines()]


def new_key(project, tmp_path, *flags):
    path = tmp_path / "seal key"
    done = project.ok("new-key", str(path), *flags)
    assert re.search(r"seal key: key [0-9a-f]{16} \((hmac|forward)\)", done.out), done
    return str(path)


# --- verify ----------------------------------------------------------------------------------------------------------

def test_verify_says_so_when_all_is_well_and_names_what_is_not(project):
    one_stage(project).ok("--run-id", "a")
    head = re.search(r"\[LEDGER\] head (.+)", project.ok("--run-id", "b").out).group(1)
    done = project.ok("verify", "--outputs", "--anchor", head)
    assert done.out == "verify: 3 entries, 2 runs, head %s: ok\n" % head and done.err == "", done
    project.write("data/s1/o.txt", "other")
    project.ok("verify")
    done = project.run("verify", "--outputs")
    assert done.code == 5 and done.out.startswith("[OUTPUT-CHANGED] data/s1/o.txt: "), done
    project.write("state/run_a.json", project.read("state/run_a.json").replace('"attempts": 1', '"attempts": 2'))
    done = project.run("verify")
    assert done.code == 5 and done.out.startswith("[EDITED] state/run_a.json: "), done


def test_verify_needs_no_pipeline_file_and_writes_nothing(project, tmp_path):
    one_stage(project).ok("--run-id", "a")
    project.path("pipeline.json").unlink()
    before = project.snapshot()
    argv = [sys.executable, str(RUNNER), "verify", "--root", str(project.root), "--outputs"]
    done = subprocess.run(argv, cwd=str(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60)
    assert done.returncode == 0 and b": ok" in done.stdout, done
    assert project.snapshot() == before


@pytest.mark.parametrize("arguments, message", [
    (("verify", "--anchor", "12"), "--anchor"), (("verify", "--anchor", "1: xyz"), "--anchor"), (("verify", "--key", "no such file"), "no such file"),
    (("verify", "unknown-run"), "unknown-run"), (("--anchor", "1: " + "0" * 32), "--anchor goes with verify"), (("verify", "--forward"), "--forward goes with new-key"),
    (("accept",), "accept needs the name of one stage"), (("accept", "s1"), "accept needs --reason TEXT"), (("accept", "s1", "--reason", " "), "accept needs --reason TEXT"),
    (("accept", "s2", "--reason", "x"), "no stage is named"), (("export",), "export needs the id of one run"), (("export", "a", "--format", "spdx"), "--format \"spdx\": must be in-toto"),
    (("export", "none"), "none"), (("evidence", "none"), "none"), (("evidence", "../a"), "../a"), (("new-key",), "new-key needs"), (("--key", "no such file"), "no such file"),
    (("verify", "--outputs=x"), "unknown option --outputs")], ids=lambda value: " ".join(value) if isinstance(value, tuple) else "")
def test_bad_usage_is_one_clear_line(project, arguments, message):
    one_stage(project).ok("--run-id", "a")
    before = project.snapshot()
    done = project.run(*arguments)
    assert done.code in (2, 5) and message in done.err + done.out and len((done.err + done.out).splitlines()) <= 2, done
    assert project.snapshot() == before


# --- accept ----------------------------------------------------------------------------------------------------------

def test_accept_takes_a_finished_stage_as_it_is_and_hides_nothing(project):
    one_stage(project).ok("--run-id", "a")
    old = project.json("state/stage_s1.json")
    project.write("bin/work.py", project.read("bin/work.py") + "# a comment\n")
    assert "RUN     s1 (processor bin/work.py changed)" in project.ok("plan").out
    before = project.path("data/s1/o.txt").stat().st_mtime_ns
    done = project.ok("accept", "s1", "--reason", "a comment, größer")
    assert done.out.startswith("[ACCEPT] s1: processor bin/work.py changed (a comment, größer)\n[LEDGER] head 3: "), done
    assert project.path("data/s1/o.txt").stat().st_mtime_ns == before
    assert "SKIP    s1" in project.ok("plan").out and "[SKIP] s1" in project.ok("--run-id", "b").out
    entry = ledger(project)[2]
    new = project.json("state/stage_s1.json")
    assert (entry["event"], entry["stage"], entry["oldKey"], entry["newKey"], entry["reason"]) == ("accept", "s1", old["idempotencyKey"], new["idempotencyKey"], "a comment, größer")
    assert entry["changes"] == ["processor bin/work.py changed"] and entry["user"] and entry["host"] and entry["pipeline"] == "test"
    assert new["idempotencyKey"] != old["idempotencyKey"] and new["outputs"] == old["outputs"] and new["lastRunId"] == "a"
    assert ": ok" in project.ok("verify", "--outputs").out
    assert project.json("state/run_b.json")["stages"][0]["madeBy"] == {"runId": "a", "invocation": 1}
    project.write("in.txt", "changed\n")           # accepted is what was, not what comes
    assert "[DONE] s1" in project.ok("--run-id", "c").out
    assert ": ok" in project.ok("verify", "--outputs").out


@pytest.mark.parametrize("case, message", [
    ("never run", "it has not been finished: no record of a run"), ("failed", "it has not been finished: its last run failed"), ("unchanged", "its key is unchanged"),
    ("output changed", "output o.txt changed; run it"), ("no marker", "its marker is missing"), ("no input", "input in.txt")])
def test_accept_refuses_what_is_more_than_a_key(project, case, message):
    one_stage(project, "open(out + '/o.txt', 'w').write('made')\nsys.exit(int(os.environ.get('BAD', '0')))\n")
    if case != "never run":
        project.run("--run-id", "a", env={"BAD": "1" if case == "failed" else "0"})
    if case == "output changed":
        project.write("data/s1/o.txt", "other")
    if case == "no marker":
        project.path("data/s1/.s1.done").unlink()
    if case == "no input":
        project.path("in.txt").unlink()
    if case != "unchanged":
        project.write("bin/work.py", project.read("bin/work.py") + "# a comment\n")
    before = {name: data for name, data in project.snapshot().items() if name.startswith(("state", "data"))}
    done = project.run("accept", "s1", "--reason", "x")
    assert done.code == 2 and message in done.err and len(done.err.splitlines()) == 1, done
    assert {name: data for name, data in project.snapshot().items() if name.startswith(("state", "data"))} == before


def test_an_acceptance_of_very_many_changes_is_an_entry_that_verify_reads(project, monkeypatch):
    project.spec({"processor": project.processor("p", "open(out + '/o', 'w').close()\n"), "params": {"a": 1, "b": 1}})
    project.ok()
    project.spec({"processor": "bin/p.py", "params": {"a": 2, "b": 2}})
    monkeypatch.setattr(run_ledger, "LIST_BYTES", 1)
    assert pipeline_runner.main(["accept", "s1", "--reason", "x", "--pipeline", str(project.path("pipeline.json"))]) == 0
    changes = json.loads(project.path("state/ledger.jsonl").read_bytes().splitlines()[-1])["changes"]
    digest = hashlib.sha256(b'["params.a 1 -> 2","params.b 1 -> 2"]').hexdigest()
    assert changes == ["params.a 1 -> 2", "and 1 more; the SHA-256 of all is " + digest]
    project.ok("verify")


def test_accept_of_tasks_that_were_allowed_to_fail_says_so(project):
    project.write("in/a.txt", "a")
    project.spec({"name": "up", "processor": project.processor("work", "sys.exit(1)\n"), "forEach": "in/*.txt", "outputDir": "data/up", "maxFailedTasks": 1})
    project.ok()
    assert "some of its tasks failed, and were allowed to; run it" in project.run("accept", "up", "--reason", "x").err


@pytest.mark.parametrize("other", ["", "new", "changed", "gone"])
def test_accept_of_a_stage_of_tasks_takes_what_all_share(project, other):
    for name in "abc":
        project.write("in/%s.txt" % name, name)
    body = "open(os.path.join(out, os.path.basename(sys.argv[1])), 'w').write(open(sys.argv[1]).read().upper())\n"
    project.spec({"name": "up", "processor": project.processor("work", body), "forEach": "in/*.txt", "outputDir": "data/up"})
    project.ok("--run-id", "a")
    old = project.json("state/stage_up.json")["idempotencyKey"]
    project.write("bin/work.py", project.read("bin/work.py") + "# a comment\n")
    if other == "gone":
        project.path("in/b.txt").unlink()
    elif other:
        project.write("in/%s.txt" % ("b" if other == "changed" else "d"), "other")
    before = {name: data for name, data in project.snapshot().items() if name.startswith(("state", "data"))}
    done = project.run("accept", "up", "--reason", "x")
    if other:
        said = {"new": "1 file of its tasks is new, changed or failed (in/d.txt)", "changed": "1 file of its tasks is new, changed or failed (in/b.txt)",
                "gone": "1 file gone (in/b.txt): run it"}[other]
        assert done.code == 2 and said in done.err and len(done.err.splitlines()) == 1, done
        assert {name: data for name, data in project.snapshot().items() if name.startswith(("state", "data"))} == before
        return
    assert done.code == 0 and done.out.startswith("[ACCEPT] up: processor bin/work.py changed (x)\n"), done
    assert "SKIP    up" in project.ok("plan").out and "[SKIP] up" in project.ok("--run-id", "b").out
    assert project.json("state/stage_up.json")["idempotencyKey"] != old and ": ok" in project.ok("verify", "--outputs").out
    project.write("in/d.txt", "d")
    assert "[START] up (4 tasks: 1 to do, 3 up to date)" in project.ok("--run-id", "c").out
    assert ": ok" in project.ok("verify", "--outputs").out


TOTALS = ("from processor_kit import Reject, lines\ndef check(line):\n    if line == 'bad\\n':\n        raise Reject('it is bad')\n    return line\n"
          "lines(check, 'o.txt')\n")


def refused(project, said, *arguments):
    """Assert that accept refuses with these words and writes nothing."""
    before = {name: data for name, data in project.snapshot().items() if name.startswith(("state", "data"))}
    done = project.run("accept", *arguments, "--reason", "x")
    assert done.code == 2 and said in done.err and len(done.err.splitlines()) == 1 and not done.out, done
    assert {name: data for name, data in project.snapshot().items() if name.startswith(("state", "data"))} == before


@pytest.mark.parametrize("kind", ["inputs", "forEach"])
def test_accept_takes_no_stage_with_an_input_that_control_totals_refused(project, kind):
    project.write("in.txt", "1\n2\n")
    project.write("bin/one.py", TOTALS)
    one = {"name": "one", "processor": "bin/one.py", "inputs": ["in.txt"], "outputDir": "data/one", "maxRejects": "1%"}
    two = {"name": "two", "processor": "bin/stage_copy.py", kind: ["data/one/*.txt"], "outputDir": "data/two"}
    project.spec(one, two)
    project.ok("--run-id", "a")
    project.write("in.txt", "1\nbad\n")
    assert project.run("--run-id", "b").code == 1
    said = "input data/one/o.txt is not accepted: stage one failed: 1 of 2 records rejected, more than maxRejects 1%"
    assert "FAIL    two (%s" % said in project.ok("plan", "--only", "two").out
    refused(project, "error: accept two: " + said, "two")
    project.spec(dict(one, maxRejects="50%"), two)
    assert "[DONE] two" in project.ok("--run-id", "c").out and project.read("data/two/o.txt") == "1\n"


@pytest.mark.parametrize("kind, named", [("inputs", "a"), ("forEach", "a"), ("forEach", "ab")])
def test_accept_waits_for_no_input_that_is_still_arriving(project, kind, named):
    for name in named:
        project.write("in/%s.txt" % name, "old\n")
        os.utime(str(project.path("in/%s.txt" % name)), (1e9, 1e9))
    project.spec({"name": "s", "processor": "bin/stage_copy.py", kind: ["in/*.txt"], "outputDir": "data/s", "settleSec": 100000})
    project.ok("--run-id", "a")
    project.write("bin/stage_copy.py", project.read("bin/stage_copy.py") + "# a comment\n")
    project.write("in/a.txt", "old\nmore\n")
    refused(project, "error: accept s: inputs not settled: in/a.txt changed ", "s")
    project.write("in/a.txt", "old\n")
    os.utime(str(project.path("in/a.txt")), (1e9, 1e9))
    assert "[ACCEPT] s" in project.ok("accept", "s", "--reason", "a comment").out and "[SKIP] s" in project.ok("--run-id", "b").out


def test_accept_takes_no_stage_whose_control_totals_would_fail_then(project):
    project.write("in.txt", "1\n2\n")
    project.write("bin/one.py", TOTALS)
    stages = [{"name": name, "processor": "bin/one.py", "inputs": [path], "outputDir": "data/" + name, "reconcile": True}
              for name, path in (("one", "in.txt"), ("two", "data/one/o.txt"))]
    project.spec(*stages)
    project.ok("--run-id", "a")
    project.write("in.txt", "1\n2\n3\n")
    project.ok("--run-id", "b", "--only", "one")
    said = "control totals: read 2, but the stages that made its inputs wrote 3; recorded by run a; --force two makes it again\n"
    refused(project, "error: accept two: " + said, "two")
    assert "[DONE] two" in project.ok("--run-id", "c").out
    # A change that leaves the totals as they are is taken as ever.
    project.write("bin/one.py", TOTALS + "# a comment\n")
    for name in ("one", "two"):
        assert "[ACCEPT] " + name in project.ok("accept", name, "--reason", "a comment").out
    done = project.ok("--run-id", "d")
    assert "[SKIP] one" in done.out and "[SKIP] two" in done.out, done


def test_accept_takes_no_stage_without_the_counts_that_are_asked_for_now(project):
    one_stage(project).ok("--run-id", "a")
    project.spec({"processor": project.processor("work", "# a comment\n"), "inputs": ["in.txt"], "maxRejects": 1})
    refused(project, "error: accept s1: its record has no count of rejected, which is asked for now; run it", "s1")


def test_a_recorded_success_that_its_totals_refuse_now_is_told_how_it_is_made_again(project):
    project.write("in.txt", "1\nbad\n")
    project.write("bin/one.py", TOTALS)
    stage = {"name": "one", "processor": "bin/one.py", "inputs": ["in.txt"], "outputDir": "data/one"}
    project.spec(stage)
    project.ok("--run-id", "a")
    project.spec(dict(stage, maxRejects=0))
    done = project.run("--run-id", "b")
    assert done.code == 1 and "; recorded by run a; --force one makes it again\n" in done.out, done
    refused(project, "; recorded by run a; --force one makes it again\n", "one")


def test_accept_waits_for_the_owner_of_the_stage(project):
    one_stage(project, "open(out + '/o.txt', 'w').write('made')\nopen('started', 'w')\nwhile not os.path.exists('go'):\n    time.sleep(0.01)\n", defaults={"lock": {"waitSeconds": 0}})
    process = project.start("--run-id", "a")
    while not project.exists("started"):
        assert process.poll() is None
        time.sleep(0.01)
    done = project.run("accept", "s1", "--reason", "x")
    assert done.code == 4 and "stage s1 is held by pid %d" % process.pid in done.err, done
    project.write("go", "")
    process.communicate(timeout=60)


# --- seals -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("flags", [(), ("--forward",)], ids=["hmac", "forward"])
def test_a_sealed_history_is_verified_with_its_first_key(project, tmp_path, flags):
    key = new_key(project, tmp_path, *flags)
    first = tmp_path / "first.key"
    first.write_bytes(open(key, "rb").read())
    first.chmod(0o600)
    one_stage(project, seal={"keyFile": key})
    for run_id in "abc":
        project.ok("--run-id", run_id)
    assert [one["seal"]["mode"] for one in ledger(project)] == ["forward" if flags else "hmac"] * 4
    assert ": ok" in project.ok("verify", "--key", str(first)).out
    project.path("state/ledger.jsonl").write_bytes(b"".join(project.path("state/ledger.jsonl").read_bytes().splitlines(True)[:3]))
    project.path("state/run_c.json").unlink()
    done = project.run("verify", "--key", str(first))
    assert done.code == 5 and "[TRUNCATED]" in done.out, done


@pytest.mark.parametrize("words", [("--run-id", "next"), ("gc", "--keep-runs", "1", "--yes"), ("reset", "s1", "--yes")], ids=lambda words: words[0].strip("-"))
def test_who_has_lost_a_forward_key_puts_its_first_copy_back(project, tmp_path, words):
    key = new_key(project, tmp_path, "--forward")
    first = tmp_path / "first.key"
    shutil.copy(key, str(first))            # as the program says
    one_stage(project, seal={"keyFile": key})
    for run_id in "abc":
        project.ok("--run-id", run_id)
    shutil.copy(str(first), key)
    done = project.ok(*words)
    assert done.out.count("seal key was an old copy of the key file, at 0: brought up to 4, as the ledger is") == 1, done
    assert first.read_bytes().split()[4] not in open(key, "rb").read()
    assert "old copy" not in project.ok("--run-id", "last").out
    assert ": ok" in project.ok("verify", "--key", str(first)).out


def test_who_has_lost_the_key_for_good_begins_anew_as_the_message_says(project, tmp_path):
    """Nothing of the old history is left to be found, and it is verified where it was put; the old outputs are made again."""
    for name in "xyz":
        project.write("in/%s.txt" % name, name)
    project.spec({"name": "each", "processor": project.processor("each", "open(os.path.join(out, os.path.basename(inputs[0])), 'w').write('made')\n"),
                  "forEach": "in/*.txt", "outputDir": "data/each"},
                 {"name": "all", "processor": project.processor("all", "open(out + '/o', 'w').write('%d' % len(inputs))\n"), "inputs": ["data/each/*.txt"]})
    lost = new_key(project, tmp_path)
    project.ok("--run-id", "a", "--key", lost)
    os.rename(lost, lost + " of the auditor")
    key = new_key(project, tmp_path)
    project.path("in/z.txt").unlink()
    done = project.run("--key", key)
    assert done.code == 5 and "give the right key file; if it is lost, move the whole of state/ to another folder and run with a new key: all stages run again" in done.err, done
    old = tmp_path / "old"
    old.mkdir()
    project.path("state").rename(old / "state")
    done = project.ok("--run-id", "b", "--key", key)
    assert "[DONE] each" in done.out and "[DONE] all" in done.out and "new ledger" not in done.out, done
    assert project.read("data/s2/o") == "3"         # what no stage makes anew is found by a glob, as the pages say
    done = project.ok("verify", "--key", key, "--outputs")
    assert "note: 1 file beside outputs that no stage's last success has made: data/each/z.txt\n" in done.out and "[" not in done.out, done
    project.write("in/x.txt", "changed")
    project.ok("--run-id", "c", "--key", key)
    project.ok("gc", "--keep-runs", "1", "--yes", "--key", key)
    project.ok("verify", "--key", key, "--outputs")
    project.ok("verify", "--root", str(old), "--key", lost + " of the auditor")


def test_a_sealed_ledger_takes_no_unsealed_run(project, tmp_path):
    key = new_key(project, tmp_path)
    one_stage(project).ok("--run-id", "a", "--key", key)
    before = project.path("state/ledger.jsonl").read_bytes()
    done = project.run("--run-id", "b")
    assert done.code == 5 and "is sealed with key" in done.err and "--key FILE" in done.err and len(done.err.splitlines()) == 1, done
    assert project.path("state/ledger.jsonl").read_bytes() == before and not project.exists("state/run_b.json")
    project.ok("--run-id", "b", "--key", key)
    assert project.run("accept", "s1", "--reason", "x").code == 5


@pytest.mark.parametrize("case, told", [
    ("unsealed", "is sealed with key"), ("other key", "give the right key file"), ("no key", "cannot read the key file"), ("cut off", "was cut off or replaced")])
def test_plan_and_validate_tell_that_the_ledger_lets_no_run_begin(project, tmp_path, case, told):
    key = new_key(project, tmp_path)
    one_stage(project).ok("--run-id", "a", "--key", key)
    for words in (["plan", "--key", key], ["validate", "--key", key]):
        assert "[NOTE]" not in project.ok(*words).out
    if case == "cut off":
        lines = project.path("state/ledger.jsonl").read_bytes().splitlines(True)
        project.path("state/ledger.jsonl").write_bytes(b"".join(lines[:-1]))
    other = str(tmp_path / "other")
    if case == "other key":
        project.ok("new-key", other)
    given = {"unsealed": [], "cut off": ["--key", key]}.get(case, ["--key", other])
    why = project.run("--run-id", "b", *given).err.strip()
    assert told in why and why.startswith("error: "), why
    before = project.snapshot()
    for words in (["plan"], ["validate"]):
        done = project.ok(*words, *given)
        assert "[NOTE] a run here would be refused: %s\n" % why[len("error: "):] in done.out, done
    assert project.snapshot() == before


@posix_only
def test_an_open_key_file_is_refused_before_anything_is_written(project, tmp_path):
    key = new_key(project, tmp_path)
    os.chmod(key, 0o644)
    one_stage(project, seal={"keyFile": key})
    project.remember_scans()
    before = project.snapshot()
    done = project.run()
    assert done.code == 2 and "chmod 600 it" in done.err and project.snapshot() == before, done


# --- several pipelines at once, kills --------------------------------------------------------------------------------

def test_concurrent_runs_of_several_pipelines_append_without_loss(project):
    project.write("in.txt", "x\n")
    for number in range(3):
        project.spec({"name": "s%d" % number, "outputDir": "data/p%d" % number, "processor": "bin/stage_copy.py", "inputs": ["in.txt"]}, name="p%d" % number)
        project.path("pipeline.json").rename(project.path("p%d.json" % number))
    project.remember_scans()
    processes = []
    for turn in range(5):
        for number in range(3):
            argv = [sys.executable, str(RUNNER), "--pipeline", str(project.path("p%d.json" % number)), "--run-id", "r%d-%d" % (turn, number), "--force", "s%d" % number]
            processes.append(subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT))
    for process in processes:
        out = process.communicate(timeout=120)[0]
        assert process.returncode in (0, 4), out.decode()      # 4: the stage was held longer than the run waits
    found = ledger(project)
    assert [one["seq"] for one in found] == list(range(1, len(found) + 1))
    ended = {one["runId"] for one in found if one["event"] == "end"}
    assert ended == {"r%d-%d" % (turn, number) for turn in range(5) for number in range(3)} and found[-1]["open"] == {}
    assert ": ok" in project.ok("verify").out


def test_a_killed_run_is_in_the_ledger_with_what_it_finished(project):
    project.write("in.txt", "x\n")
    project.spec({"name": "first", "processor": "bin/stage_copy.py", "inputs": ["in.txt"]},
                 {"name": "second", "processor": project.processor("p", "open('started', 'w').write(str(os.getppid()))\ntime.sleep(60)\n")})
    process = project.start("--run-id", "dead")
    while not project.exists("started"):
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.communicate(timeout=60)
    done = project.ok("verify")
    assert "note: " in done.out and "dead" in done.out, done
    project.spec({"name": "first", "processor": "bin/stage_copy.py", "inputs": ["in.txt"]})
    project.ok("--run-id", "next")
    assert [(one["event"], one["runId"], one.get("state"), one.get("closedBy")) for one in ledger(project)] == [
        ("begin", "dead", None, None), ("end", "dead", "interrupted", "next"), ("end", "next", "completed", None)]
    record = project.json("state/run_dead.json")
    assert record["stages"][0]["status"] == "ok" and record["stages"][0]["outputs"][0]["path"] == "in.txt"
    assert project.json("state/run_next.json")["stages"][0]["madeBy"] == {"runId": "dead", "invocation": 1}
    assert ": ok" in project.ok("verify", "--outputs").out


def test_a_torn_last_line_is_healed_and_said(project):
    one_stage(project).ok("--run-id", "a")
    with open(str(project.path("state/ledger.jsonl")), "ab") as file:
        file.write(b'{"at":"20')
    assert "note: " in project.ok("verify").out
    done = project.ok("--run-id", "b")
    assert "[LEDGER] state/ledger.jsonl: a torn last line of 9 bytes, left by a crash, is cut off" in done.out, done
    assert ledger(project)[-1]["torn"] == 9 and ": ok" in project.ok("verify").out


@pytest.mark.parametrize("how", ["damaged", "removed"])
def test_a_lost_record_is_found_and_its_number_is_not_given_again(project, how):
    one_stage(project).ok("--run-id", "a")
    if how == "damaged":
        project.write("state/run_a.json", "{")
        assert project.run("--run-id", "a").code == 5
    else:
        project.path("state/run_a.json").unlink()
    project.ok("--run-id", "a")
    assert project.json("state/run_a.json")["invocation"] == 2
    done = project.run("verify")
    assert done.code == 5 and done.out.startswith("[DELETED] state/run_a"), done
    assert len([line for line in done.out.splitlines() if line.startswith("[")]) <= 2, done


# --- evidence over the air gap ---------------------------------------------------------------------------------------

def test_evidence_is_verified_elsewhere_by_python_alone(project, tmp_path):
    one_stage(project).ok("--run-id", "a")
    project.ok("--run-id", "b")
    zipped = str(tmp_path / "evidence.zip")
    project.ok("evidence", "a", "-o", zipped)
    there = tmp_path / "anderswo ü"
    with zipfile.ZipFile(zipped) as archive:
        archive.extractall(str(there))
    done = subprocess.run([sys.executable, "-I", "verify.py"], cwd=str(there), env={}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60)
    assert done.returncode == 0 and b"verify: evidence of run a: ok" in done.stdout, done
    record = there / "records" / "run_a.json"
    record.write_bytes(record.read_bytes().replace(b'"attempts": 1', b'"attempts": 2'))
    done = subprocess.run([sys.executable, "-I", "verify.py"], cwd=str(there), env={}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60)
    assert done.returncode == 5 and b"[EDITED] records/run_a.json" in done.stdout, done


def test_provenance_is_exported(project, tmp_path):
    one_stage(project).ok("--run-id", "a")
    statement = json.loads(project.ok("export", "a").out)
    assert statement["_type"] == "https://in-toto.io/Statement/v1" and statement["predicateType"] == "https://slsa.dev/provenance/v1"
    assert [one["name"] for one in statement["subject"]] == ["data/s1/o.txt"]
    project.ok("export", "a", "--format", "in-toto", "--output", str(tmp_path / "a.json"))
    assert json.loads((tmp_path / "a.json").read_bytes()) == statement


def test_a_full_disk_under_the_key_file_is_named(project, tmp_path):
    """A forward key that cannot be replaced: one line that names its file; the next run goes on."""
    key = new_key(project, tmp_path, "--forward")
    first = tmp_path / "first.key"
    first.write_bytes(open(key, "rb").read())
    first.chmod(0o600)
    one_stage(project).ok("--run-id", "a", "--key", key)
    os.mkdir(key + ".new")                  # stands for any reason why the new key cannot be written
    done = project.run("--run-id", "b", "--key", key)
    assert done.code in (2, 5) and "seal key.new" in done.err and len(done.err.splitlines()) == 1, done
    os.rmdir(key + ".new")
    project.ok("--run-id", "c", "--key", key)
    assert ": ok" in project.ok("verify", "--key", str(first)).out


def test_a_seal_that_no_run_takes_is_refused_by_validate(project):
    project.spec({"processor": "bin/stage_copy.py", "allowNoInputs": True}, seal={"keyFile": "keys/key"})
    for words in (["validate"], []):
        done = project.run(*words)
        assert done.code == 2 and done.err.count("\n") == 1 and "the key lies below the root, and a copy of the folder would carry it; keep it elsewhere" in done.err, done


def test_a_key_below_the_root_is_not_made(project, tmp_path):
    project.spec({"processor": "bin/stage_copy.py"})
    before = project.snapshot()
    for words in (["--pipeline", "pipeline.json"], ["--root", "."], []):
        done = subprocess.run([sys.executable, str(RUNNER), "new-key", "keys.key", "--forward", *words], cwd=str(project.root), stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60)
        assert done.returncode == 2 and b"keys.key: the key lies below the root, and a copy" in done.stderr, done
    assert project.snapshot() == before
    done = subprocess.run([sys.executable, str(RUNNER), "new-key", "keys.key"], cwd=str(tmp_path), timeout=60)
    assert done.returncode == 0 and (tmp_path / "keys.key").is_file()       # no root is there


def test_an_empty_file_in_the_place_of_a_key_is_told_as_what_a_kill_has_left(project):
    for text, told in (("", "is there already, and empty: a new-key that was killed may have left it; remove it and run again"), ("x", "is there already; a key is never overwritten")):
        project.write("../key", text)
        done = project.run("new-key", str(project.path("../key")))
        assert done.code == 2 and done.err.endswith(told + "\n"), done


@pytest.mark.parametrize("tail", [b"\n", b"  \n\n", b"\0\0\0}\n"])
def test_every_reader_of_the_ledger_leaves_out_what_the_next_run_cuts_off(project, tail):
    project.spec({"processor": project.processor("p", "open(out + '/o', 'w').close()\n")})
    project.ok("--run-id", "a")
    project.ok("--run-id", "b", "--force", "s1")
    whole = project.path("state/ledger.jsonl").read_bytes()
    project.path("state/ledger.jsonl").write_bytes(whole + tail)
    for command in (["verify"], ["history"], ["status"], ["gc", "--keep-runs", "1"], ["export", "b", "-o", str(project.path("e.json"))],
                    ["evidence", "b", "-o", str(project.path("e.zip"))]):
        done = project.ok(*command)
        assert "[PROBLEM]" not in done.out + done.err, done
    project.ok("gc", "--keep-runs", "1", "--yes")
    assert project.path("state/ledger.jsonl").read_bytes().startswith(whole + b"{")
