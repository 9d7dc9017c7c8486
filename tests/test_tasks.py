"""Stages of one task per file: only what is new is done, a bad file does not stop the others, nothing is published twice."""
from __future__ import annotations

import collections
import errno
import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import types
from array import array

import pytest

import chunk_files
import file_digests
import file_systems
import file_tasks
import pipeline_runner
import planning
import spec_loading
import stage_keys
import stage_outputs
import state_store
import task_files
import task_log
import task_look
import task_work
from conftest import ROOT, RUNNER, run_without_might, settle, wait_until

UPPER = """#!/bin/sh
echo "$PIPELINE_TASK" >> "$PIPELINE_ROOT/count"
grep -q bad "$1" && { echo "a bad file" >&2; exit 3; }
tr a-z A-Z < "$1" > "$PIPELINE_OUTPUT_DIR/${1##*/}"
"""
posix_only = pytest.mark.skipif(os.name == "nt", reason="shell scripts, links, rights, or names that are no text there")
UPPER_ON_WINDOWS = """import os, sys
path, name = sys.argv[1], os.path.basename(sys.argv[1])
with open(os.environ["PIPELINE_ROOT"] + "/count", "ab") as file:
    file.write((os.environ["PIPELINE_TASK"] + "\\n").encode("utf-8"))
with open(path, "rb") as file:
    data = file.read()
if b"bad" in data:
    print("a bad file", file=sys.stderr)
    sys.exit(3)
with open(os.environ["PIPELINE_OUTPUT_DIR"] + "/" + name, "wb") as file:
    file.write(data.upper())
"""


@pytest.fixture
def upper(project):
    """Three files, and a stage `up` that writes each in upper case."""
    for name in "abc":
        project.write("in/%s.txt" % name, "line of %s\n" % name)
    if os.name == "nt":
        project.write("bin/up.py", UPPER_ON_WINDOWS)
        write = project.write
        project.write = lambda name, *rest, **more: pytest.skip("a shell script") if name.endswith(".sh") else write(name, *rest, **more)
    else:
        project.write("bin/up.sh", UPPER, executable=True)
    project.stage = {"name": "up", "processor": "bin/up.py" if os.name == "nt" else "bin/up.sh", "forEach": "in/*.txt", "outputDir": "out"}
    project.spec(project.stage)
    return project


def respec(project, **changes):
    project.stage.update(changes)
    project.spec(project.stage)


def observed(project):
    spec = spec_loading.load_pipeline(str(project.path("pipeline.json")))
    store = state_store.StateStore(str(project.root), writable=False)
    return task_look.observe_tasks(spec, spec.stages[0], file_digests.Digests(str(project.root), "boot"), store, "boot")


def count(project):
    names = project.read("count").split() if project.exists("count") else []
    if names:
        project.path("count").unlink()
    return sorted(name[3:-4] for name in names)


def outputs(project):
    return {path.name: path.read_bytes().decode() for path in sorted(project.path("out").iterdir()) if not path.name.startswith(".")}


def entries(project, stage="up"):
    log = task_log.TaskLog(str(project.path("state")), stage)
    log.load()
    return log.entries


# --- what is done ----------------------------------------------------------------------------------------------------

def test_before_the_lock_only_what_is_not_certain_is_looked_at_closely(upper):
    """That a stage must run is known from its key; its tasks, log and outputs are looked at once, under the lock."""
    spec = pipeline_runner.load_pipeline(str(upper.path("pipeline.json")))

    def look(is_brief, boot="boot"):
        digests, store = file_digests.Digests(str(upper.root), boot, keep=False), state_store.StateStore(str(upper.root), writable=False)
        decision, facts = planning.look_at(spec, spec.stages[0], digests, store, boot, False, None, is_brief)
        return decision.action, facts.tasks.certain, facts.tasks.log is not None, decision.reasons[0]
    assert look(True)[:3] == ("RUN", True, False) and look(False) == ("RUN", False, True, "no record of an earlier run")
    upper.ok()
    # The cache is of another boot, so nothing is certain; where its outputs were synced in time, as they may be on Windows, it counts all the same.
    assert look(True)[:3] == look(False)[:3] and look(True)[:2] == ("SKIP", False) and (look(True)[2] or sys.platform == "win32")
    upper.write("in/b.txt", "changed\n")
    assert look(True)[:3] == ("RUN", True, False) and look(False)[3] == "1 task changed"
    upper.ok()
    upper.path("out/a.txt").unlink()
    assert look(True)[:3] == ("RUN", False, True)
    record = upper.json("state/stage_up.json")
    upper.write("state/stage_up.json", json.dumps(dict(record, lastStatus="running")))
    assert look(True)[:3] == ("RUN", True, False)


def test_each_file_is_a_task_and_only_new_and_changed_files_are_done(upper):
    done = upper.ok("--run-id", "r1")
    assert done.steps[:2] == ["[START] up (3 tasks: 3 to do, 0 up to date)", done.steps[1]] and done.steps[1].startswith("[DONE] up in "), done
    assert count(upper) == ["a", "b", "c"] and outputs(upper) == {"%s.txt" % name: "LINE OF %s\n" % name.upper() for name in "abc"}
    again = upper.ok("--run-id", "r2")
    assert again.steps[0].startswith("[SKIP] up (up to date: key ") and again.steps[0].endswith(" unchanged, 3 tasks, 3 outputs verified)"), again
    upper.write("in/b.txt", "changed\n")
    upper.write("in/d.txt", "new\n")
    plan = upper.ok("plan")
    assert plan.steps == ["RUN     up (1 task new; 1 task changed)"], plan
    upper.ok("--run-id", "r3")
    assert count(upper) == ["b", "d"] and outputs(upper)["b.txt"] == "CHANGED\n" and outputs(upper)["d.txt"] == "NEW\n"
    record = upper.json("state/stage_up.json")
    assert record["tasks"]["total"] == 4 and record["tasks"]["ok"] == 2 and record["tasks"]["skipped"] == 2
    assert [one["path"] for one in record["outputs"]] == ["a.txt", "b.txt", "c.txt", "d.txt"]
    assert upper.json("state/run_r3.json")["stages"][0]["tasks"] == record["tasks"] and record["tasks"]["outputs"] == 4
    assert not upper.exists("out/.up.tasks") and upper.exists("out/.up.done")
    assert upper.ok("verify", "--outputs").out.endswith(": ok\n")


def test_a_touched_file_is_read_again_and_nothing_is_done(upper):
    upper.ok()
    os.utime(str(upper.path("in/a.txt")))
    count(upper)
    assert "[SKIP] up" in upper.ok().out and count(upper) == []


@pytest.mark.parametrize("change", ["args", "processor", "common"])
def test_what_all_tasks_share_is_part_of_each_key(upper, change):
    upper.write("common.txt", "x\n")
    respec(upper, inputs=["common.txt"])
    upper.ok()
    count(upper)
    if change == "args":
        respec(upper, params={"x": 1})
    elif change == "processor":
        upper.write("bin/up.sh", UPPER + "# more\n", executable=True)
    else:
        upper.write("common.txt", "y\n")
    upper.ok()
    assert count(upper) == ["a", "b", "c"]


def test_the_processor_gets_its_file_first_then_what_is_common(upper):
    upper.write("common.txt", "x\n")
    body = ("open(out + '/' + os.path.basename(inputs[0]), 'w').write(json.dumps([sys.argv[1:], inputs, os.environ['PIPELINE_TASK'],"
            " os.environ['PIPELINE_STAGE_NAME'], os.path.basename(os.path.dirname(out))]))")
    respec(upper, processor=upper.processor("tell", body), inputs=["common.txt"], args=["-x"])
    upper.ok()
    assert json.loads(outputs(upper)["b.txt"]) == [["-x", "in/b.txt", "common.txt"], ["in/b.txt", "common.txt"], "in/b.txt", "up", ".up.tasks"]


@pytest.mark.parametrize("change, redone", [
    (lambda project: project.write("out/a.txt", "spoilt\n"), ["a"]),
    (lambda project: project.path("out/a.txt").unlink(), ["a"]),
    (lambda project: project.path("out/.up.done").unlink(), []),
    (lambda project: project.write("state/files_up.bin", b"garbage"), None),
    (lambda project: project.path("state/files_up.bin").unlink(), None),
    (lambda project: project.path("state/stage_up.json").unlink(), []),
], ids=["output changed", "output removed", "marker removed", "cache damaged", "cache removed", "record removed"])
def test_a_skip_is_never_wrong_and_a_finished_task_never_done_again(upper, change, redone):
    upper.ok()
    count(upper)
    change(upper)
    done = upper.ok()
    assert count(upper) == (redone or []) and ("[SKIP]" in done.out) == (redone is None), done
    assert len(outputs(upper)) == 3 and outputs(upper)["a.txt"] == "LINE OF A\n" and "[SKIP]" in upper.ok().out


def test_a_torn_line_costs_its_task_only(upper):
    respec(upper)
    upper.ok("--jobs", "1")
    count(upper)
    log = upper.path("state/tasks_up.jsonl")
    log.write_bytes(log.read_bytes()[:-20])
    upper.path("out/.up.done").unlink()
    upper.ok()
    assert count(upper) == ["c"] and set(entries(upper)) == {"in/a.txt", "in/b.txt", "in/c.txt"}


def test_a_damaged_log_is_set_aside_and_said(upper):
    upper.ok()
    log = upper.path("state/tasks_up.jsonl")
    log.write_bytes(log.read_bytes().replace(b'"status":"ok"', b'"status":"no"', 1))
    done = upper.run()
    assert done.code == 5 and "state/tasks_up.jsonl is damaged (line 2 is not as it was written); it was set aside" in done.err, done
    assert "but for the 2 tasks whose lines are whole" in done.err, done
    count(upper)
    upper.ok()
    assert len(count(upper)) == 1 and list(upper.path("state").glob("tasks_up.jsonl.corrupt-*"))


def test_a_cache_that_may_not_be_believed_is_no_reason_to_skip(upper):
    """Told to read all anew, and after a restart of the machine, nothing is known of the outputs: they are read."""
    upper.ok()
    assert "[SKIP] up" in upper.ok("--rehash").out
    upper.write("out/a.txt", "spoilt\n")
    upper.path("out/b.txt").unlink()
    assert upper.ok("plan").steps == ["RUN     up (2 tasks with outputs that are not what was recorded)"]
    count(upper)
    assert "[SKIP] up" not in upper.ok("--rehash").out and count(upper) == ["a", "b"]
    fault = [sys.executable, str(ROOT / "tests" / "drivers" / "fault.py"), str(upper.write("settings.json", json.dumps(
        {"runner": str(RUNNER), "root": str(upper.root), "action": "none", "at": 0, "hit": "", "boot": "another-boot", "outputs": []})))]
    for _ in range(2):          # what the first run after a restart has read, the second may believe
        done = subprocess.run(fault + ["--pipeline", str(upper.path("pipeline.json"))], stdout=subprocess.PIPE, check=True)
        assert b"[SKIP] up" in done.stdout and b"3 outputs verified" in done.stdout
        upper.write("out/a.txt", "spoilt\n")
        done = subprocess.run(fault + ["--pipeline", str(upper.path("pipeline.json"))], stdout=subprocess.PIPE, check=True)
        assert b"[START] up (3 tasks: 1 to do, 2 up to date)" in done.stdout and count(upper) == ["a"]


def test_forced_all_tasks_are_done_again(upper):
    upper.ok()
    count(upper)
    upper.ok("--force", "up")
    assert count(upper) == ["a", "b", "c"]


def test_without_idempotency_all_tasks_are_done_in_each_run(upper):
    respec(upper, idempotency={"enabled": False})
    for _ in range(3):
        upper.ok()
        assert count(upper) == ["a", "b", "c"]
        settle(upper.path("out/c.txt"))         # what the cache says of it may be believed
        upper.ok("--rehash")
        assert count(upper) == ["a", "b", "c"]
        assert upper.ok("plan").steps == ["RUN     up (idempotency is disabled)"]


def test_what_was_known_of_the_inputs_before_a_restart_is_not_believed_after_it(upper):
    """A power cut may have taken back what a file held, and left its times."""
    upper.ok()
    settle(upper.path("in/c.txt"))
    upper.ok()
    path = str(upper.path("state/files_up.bin"))
    about, tables = task_files.load(path)
    true, tables[0].digests[0] = tables[0].digests[0], "0" * 64
    for boot, expected in (("boot", "0" * 64), ("another", true)):
        upper.write("state/files_up.bin", task_files.save(tables, dict(about, bootIn=boot)))
        assert observed(upper).tasks.digests[0] == expected


def test_an_older_record_of_the_same_key_does_not_vouch_for_what_was_made_since(upper):
    upper.write("bin/up.sh", UPPER + "cat \"$PIPELINE_ROOT/undeclared\" >> \"$PIPELINE_OUTPUT_DIR/${1##*/}\"\n", executable=True)
    upper.write("undeclared", "1\n")
    upper.ok()
    upper.write("undeclared", "2\n")
    old = upper.read("state/stage_up.json")
    upper.ok("--force", "up")
    settle(upper.path("out/c.txt"))
    upper.ok("--rehash")
    upper.write("state/stage_up.json", old)
    count(upper)
    done = upper.ok()
    assert count(upper) == ["a", "b", "c"] and "[SKIP]" not in done.out, done
    assert "[SKIP] up" in upper.ok().out


def test_no_file_at_all(upper):
    respec(upper, forEach=["none/*.txt"])
    done = upper.run()
    assert done.code == 1 and "[FAIL] up: input none/*.txt: no file matches" in done.out, done
    respec(upper, allowNoInputs=True)
    assert "[START] up (0 tasks: 0 to do, 0 up to date)" in upper.ok().out
    assert "[SKIP] up" in upper.ok().out


# --- failures --------------------------------------------------------------------------------------------------------

def test_one_bad_file_fails_its_task_and_the_others_go_on(upper):
    upper.write("in/b.txt", "bad\n")
    done = upper.run("--run-id", "r")
    assert done.code == 1 and set(outputs(upper)) == {"a.txt", "c.txt"}, done
    assert "[FAIL] up in/b.txt: exit code 3" in done.out and "    | a bad file" in done.err
    assert "[FAIL] up: 1 of 3 tasks failed: in/b.txt (exit code 3: a bad file)" in done.out
    assert upper.json("state/stage_up.json")["lastError"] == "1 of 3 tasks failed: in/b.txt (exit code 3: a bad file)"
    assert upper.json("state/stage_up.json")["tasks"]["failed"] == 1 and not upper.exists("out/.up.done")
    count(upper)
    assert upper.run().code == 1 and count(upper) == ["b"]
    upper.write("in/b.txt", "good\n")
    upper.ok()
    assert count(upper) == ["b"] and outputs(upper)["b.txt"] == "GOOD\n"


def test_some_failures_may_be_allowed_but_are_never_taken_for_done(upper):
    upper.ok()
    count(upper)
    upper.write("in/b.txt", "bad\n")
    respec(upper, maxFailedTasks=1)
    done = upper.ok()
    assert "1 failed and allowed" in done.out and set(outputs(upper)) == {"a.txt", "c.txt"}, "what b.txt was must not pass for today's"
    assert count(upper) == ["b"] and not upper.exists("out/.up.done")
    again = upper.ok()
    assert "[SKIP]" not in again.out and count(upper) == ["b"], again
    upper.write("in/c.txt", "bad too\n")
    assert upper.run().code == 1


def test_what_another_task_has_spoilt_since_it_was_made_fails_the_stage_and_is_made_anew(upper):
    upper.write("bin/up.sh", UPPER + 'if test "${1##*/}" = c.txt && test -e spoil; then\n'
                "while test ! -e out/a.txt; do sleep 0.02; done\necho spoilt >> out/a.txt\nfi\n", executable=True)
    upper.write("spoil", "")
    done = upper.run("--jobs", "1")
    assert done.code == 1 and "[FAIL] up: not what its task made: a.txt (changed)\n" in done.out and not upper.exists("out/.up.done"), done
    upper.path("spoil").unlink()
    count(upper)
    upper.ok()
    assert count(upper) == ["a"] and outputs(upper)["a.txt"] == "LINE OF A\n"


def test_what_a_failed_task_had_made_and_was_removed_is_nobodys_any_more(upper):
    respec(upper, maxFailedTasks=1)
    upper.ok()
    upper.write("in/b.txt", "bad\n")
    upper.ok()
    upper.path("in/b.txt").unlink()
    done = upper.ok()
    assert "1 file is gone: in/b.txt; outputs kept" in done.out and "as it was made" not in done.out, done


def test_a_file_that_is_gone_is_reported_and_its_outputs_go_only_with_prune(upper):
    upper.ok()
    upper.path("in/b.txt").unlink()
    done = upper.ok()
    assert '[NOTE] up: 1 file is gone: in/b.txt; outputs kept ("prune": true removes them)' in done.out and "b.txt" in outputs(upper), done
    assert "[SKIP]" in upper.ok().out
    respec(upper, prune=True)
    upper.path("in/c.txt").unlink()
    done = upper.ok()
    assert "2 files are gone: in/b.txt, in/c.txt; outputs removed" in done.out and set(outputs(upper)) == {"a.txt"}, done
    assert "[SKIP]" in upper.ok().out


def test_a_file_that_failed_and_was_taken_away_is_tried_again_when_it_comes_back(upper):
    upper.ok()
    upper.write("in/b.txt", "bad\n")
    assert upper.run().code == 1
    upper.path("in/b.txt").rename(upper.path("b.txt"))
    assert "1 file is gone: in/b.txt; outputs kept" in upper.ok().out
    upper.path("b.txt").rename(upper.path("in/b.txt"))
    count(upper)
    done = upper.run()
    assert done.code == 1 and "[FAIL] up in/b.txt: exit code 3" in done.out and count(upper) == ["b"], done


@pytest.mark.parametrize("how", ["removed", "edited"])
def test_what_was_kept_of_a_file_that_is_gone_and_is_not_any_more_as_it_was_made_is_let_go_of(upper, how):
    upper.ok()
    upper.path("in/b.txt").unlink()
    upper.ok()
    if how == "removed":
        upper.path("out/b.txt").unlink()
    else:
        upper.write("out/b.txt", "mine now\n")
    done = upper.ok()
    assert "[SKIP]" not in done.out and "1 file is gone: in/b.txt; outputs kept" in done.out and ", but for what is not any more as it was made: b.txt" in done.out, done
    assert upper.exists("out/b.txt") == (how == "edited")
    assert "[SKIP] up (up to date: " in upper.ok().out and upper.run("verify", "--outputs").code == 0
    upper.write("in/a.txt", "other\n")
    assert "[DONE]" in upper.ok().out
    if how == "edited":
        assert upper.read("out/b.txt") == "mine now\n"


@pytest.mark.skipif(sys.platform == "win32", reason="no such names")
def test_a_file_called_like_the_glob_hides_no_other(upper):
    """A shell makes it from `> in/*.txt` where nothing matches."""
    upper.ok()
    upper.write("in/*.txt", "oops\n")
    respec(upper, prune=True)
    done = upper.ok()
    assert "gone" not in done.out and set(outputs(upper)) == {"a.txt", "b.txt", "c.txt", "*.txt"}, done


def test_a_line_of_the_log_that_was_forged_with_its_output_is_not_believed(upper):
    """Its checksum is no secret; what the record says of all outputs together is under the ledger's hashes."""
    upper.ok()
    upper.write("out/b.txt", "forged\n")
    path = str(upper.path("state/tasks_up.jsonl"))
    log = task_log.TaskLog(os.path.dirname(path), "up")
    log.load()
    log.open(lambda path, data: upper.write("state/tasks_up.jsonl", data))
    log.append(log.entries["in/b.txt"]._replace(outputs=(("b.txt", 7, file_digests.output_content(str(upper.path("out/b.txt")))[1]),)))
    log.close()
    upper.write("in/a.txt", "other\n")
    count(upper)
    done = upper.ok()
    assert count(upper) == ["a", "b", "c"] and outputs(upper)["b.txt"] == "LINE OF B\n", done
    assert "its task log is not the one that its record vouches for" in upper.json("state/run_%s.json" % upper.json("state/stage_up.json")["lastRunId"])["stages"][0]["reason"]


@pytest.mark.parametrize("prune", [False, True])
def test_a_record_that_is_older_than_the_task_log_costs_one_run_of_all_tasks_and_leaves_nothing_unnamed(upper, prune):
    """Put back from a backup, say. What the log says is not believed then, and forgotten on the disk, too: or it would be found to be another's each time."""
    respec(upper, prune=prune)
    upper.ok()
    old = upper.read("state/stage_up.json")
    for name in "abc":
        upper.write("in/%s.txt" % name, "new line of %s\n" % name)
    upper.ok()
    settle(upper.path("out/a.txt"))
    upper.ok()                  # from now on it is known what was in it
    upper.path("in/a.txt").unlink()
    if not prune:
        upper.ok()              # what was made of it is kept
    upper.write("state/stage_up.json", old)
    count(upper)
    done = upper.ok()
    assert count(upper) == ["b", "c"] and "its task log is not the one" in upper.json("state/run_%s.json" % upper.json("state/stage_up.json")["lastRunId"])["stages"][0]["reason"], done
    what = "removed what no task makes any more" if prune else "of no task, and left there"
    assert "[NOTE] up: its task log is not the one that its record vouches for; %s: out/a.txt\n" % what in done.out, done
    assert "outputs removed" not in done.out and ("1 file is gone: in/a.txt; no outputs of it are recorded\n" in done.out) == prune, done
    assert sorted(outputs(upper)) == (["b.txt", "c.txt"] if prune else ["a.txt", "b.txt", "c.txt"])
    for _ in range(2):
        assert "[SKIP] up" in upper.ok("--rehash").out
    assert upper.run("verify", "--outputs").code == 0


def test_what_lost_lines_leave_is_seen_to_though_the_first_run_after_it_is_killed(upper):
    respec(upper, prune=True)
    upper.ok()
    settle(upper.path("out/a.txt"))
    upper.ok()
    log = upper.path("state/tasks_up.jsonl")
    log.write_bytes(b"".join(line for line in log.read_bytes().splitlines(True) if b"in/a.txt" not in line))
    upper.path("in/a.txt").unlink()
    upper.write("in/b.txt", "another\n")
    upper.write("bin/up.sh", UPPER + 'kill -9 $PPID; sleep 600\n', executable=True)
    assert upper.run().code == -signal.SIGKILL
    upper.write("bin/up.sh", UPPER, executable=True)
    done = upper.ok()
    assert "[NOTE] up: lines of its task log were lost; removed what no task makes any more: out/a.txt\n" in done.out, done
    assert sorted(outputs(upper)) == ["b.txt", "c.txt"] and "logLost" not in upper.json("state/stage_up.json")


def test_what_lost_lines_leave_is_not_removed_by_a_run_that_is_stopped_before_its_tasks_have_made_it_anew(upper):
    upper.write("bin/up.sh", UPPER.replace("grep -q bad", "while test -e wait; do sleep 0.02; done; grep -q bad"), executable=True)
    respec(upper, prune=True)
    upper.ok()
    settle(upper.path("out/c.txt"))
    upper.ok()
    log = upper.path("state/tasks_up.jsonl")
    log.write_bytes(log.read_bytes().splitlines(True)[0])
    upper.path("count").unlink()
    upper.write("wait", "")
    run = upper.start("--jobs", "1")
    wait_for(upper, "count")
    run.terminate()
    out, err = run.communicate(timeout=60)
    assert run.returncode == 143 and b"of no task" not in out and b"removed" not in out and len(outputs(upper)) == 3, (out, err)


@pytest.mark.parametrize("why", ["unmounted", "left"])
def test_nothing_is_pruned_for_a_log_that_is_anothers_where_files_are_only_not_here_now(upper, why):
    upper.write("more/d.txt", "line of d\n")
    respec(upper, forEach=["in/*.txt", "more/*.txt"], allowNoInputs=True, prune=True)
    upper.ok()
    settle(upper.path("out/d.txt"))
    upper.ok()
    log = upper.path("state/tasks_up.jsonl").read_bytes()
    upper.write("in/a.txt", "another\n")
    upper.ok()
    upper.path("state/tasks_up.jsonl").write_bytes(log)
    if why == "unmounted":
        upper.path("more").rename(upper.path("away"))
    else:
        respec(upper, settleSec=600)
        for name in ("in/a.txt", "in/b.txt", "in/c.txt"):
            os.utime(str(upper.path(name)), (1, 1))
        upper.write("more/d.txt", "line of d, and one more\n")
    done = upper.ok()
    assert "its task log is not the one that its record vouches for; of no task, and left there: out/d.txt" in done.out, done
    assert upper.read("out/d.txt") == "LINE OF D\n"


@posix_only
def test_inputs_that_do_not_fit_the_command_line_are_no_fault_of_a_file(upper):
    folder = "common/" + "x" * 240
    for number in range(4500):
        upper.write("%s/%d.txt" % (folder, number), "")
    respec(upper, inputs=["common/**"], maxFailedTasks=9)
    done = upper.run()
    assert done.code == 1 and "3 of 3 tasks failed for what maxFailedTasks does not allow" in done.out and "4501 inputs are too many for a command line" in done.out, done
    watched = upper.write("watched.txt", "PIPELINE_INPUTS_FILE")
    respec(upper, watch=["watched.txt"])
    upper.ok()
    watched.write_text("nothing", encoding="utf-8")
    assert upper.run().code == 1
    respec(upper, args=["-c", ": $PIPELINE_INPUTS_FILE"], processor="/bin/sh", maxFailedTasks=0)
    upper.ok()


@posix_only
def test_links_that_lead_nowhere_are_told_of_where_there_is_nothing_else(upper):
    for name in "abc":
        upper.path("in/%s.txt" % name).unlink()
        upper.path("in/%s.txt" % name).symlink_to("nowhere")
    done = upper.run()
    assert done.code == 1 and done.out.count("is a link that leads nowhere: mount or make what it names") == 6 and "no file matches" not in done.out, done


DEADLY = """#!/bin/sh
[ -n "$PIPELINE_TASK" ] || { cat "$@" > "$PIPELINE_OUTPUT_DIR/all"; exit; }
[ -e "$PIPELINE_ROOT/die" ] && [ "$PIPELINE_TASK" = in/b.txt ] && { kill -9 $PPID; sleep 600; }
cat "$PIPELINE_ROOT/outside" > "$PIPELINE_OUTPUT_DIR/${1##*/}"
"""


@pytest.mark.parametrize("how", ["--force", "idempotency"])
def test_what_is_done_once_more_without_need_is_all_done_though_a_kill_comes_between(upper, how):
    upper.write("bin/up.sh", DEADLY, executable=True)
    upper.write("outside", "old")
    upper.ok()
    upper.write("outside", "new")
    upper.write("die", "")
    if how == "idempotency":
        respec(upper, idempotency={"enabled": False})
    assert upper.run("--jobs", "1", *(["--force", "up"] if how == "--force" else [])).code == -signal.SIGKILL
    upper.path("die").unlink()
    respec(upper, idempotency={"enabled": True})
    upper.ok()
    assert [upper.read("out/%s.txt" % name) for name in "abc"] == ["new"] * 3


def test_what_the_stage_made_when_it_had_no_tasks_is_named_though_the_first_run_with_tasks_was_killed(upper):
    upper.write("bin/up.sh", DEADLY, executable=True)
    upper.write("outside", "new")
    upper.stage.pop("forEach")
    respec(upper, inputs=["in/*.txt"])
    upper.ok()
    upper.write("die", "")
    upper.stage.pop("inputs")
    respec(upper, forEach="in/*.txt")
    assert upper.run("--jobs", "1").code == -signal.SIGKILL
    upper.path("die").unlink()
    assert "[NOTE] up: made before the stage had tasks, and recorded no more: all\n" in upper.ok().out
    assert "[NOTE]" not in upper.ok("--force", "up").out and upper.exists("out/all")


@pytest.mark.parametrize("chunks", [None, {"bytes": 2}])
def test_the_checkpoints_of_kept_chunks_go_with_them(project, chunks):
    project.write("in/a.txt", "a\nb\nc\n")
    stage = {"name": "up", "processor": project.processor("kit", "from processor_kit import lines\nlines(str.upper, 'all.k')\n"), "inputs": ["in/*.txt"],
             "outputDir": "out", "checkpoint": {"enabled": True}}
    project.spec(dict(stage, chunks={"bytes": 2, "keepChunks": True}))
    project.ok()
    assert list(project.path("state/progress_up~tasks").iterdir())
    project.spec(dict(stage, chunks=chunks))
    project.ok()
    assert not project.exists("state/progress_up~tasks") and project.read("out/all.k") == "A\nB\nC\n"


def test_what_was_forgotten_is_not_believed_after_a_kill(upper):
    """The record of a run that died vouches for no log in particular, so the log itself must have forgotten it by then."""
    upper.ok()
    old = upper.read("state/stage_up.json")
    upper.write("in/a.txt", "new\n")
    upper.ok()
    upper.write("state/stage_up.json", old)
    upper.write("bin/up.sh", UPPER + 'kill -9 $PPID; sleep 600\n', executable=True)
    assert upper.run("--jobs", "1").code == -signal.SIGKILL        # a second task might count itself later
    upper.write("bin/up.sh", UPPER, executable=True)
    count(upper)
    upper.ok()
    assert count(upper) == ["a", "b", "c"]


def test_what_a_stage_made_before_it_had_tasks_is_named(upper):
    upper.processor("plain", "open(os.path.join(out, 'a.txt'), 'w').close()\nopen(os.path.join(out, 'old'), 'w').close()\n")
    upper.spec(dict({name: value for name, value in upper.stage.items() if name != "forEach"}, processor="bin/plain.py"))
    upper.ok()
    upper.spec(upper.stage)
    done = upper.ok()
    assert "[NOTE] up: made before the stage had tasks, and recorded no more: old\n" in done.out and upper.exists("out/old"), done
    upper.write("in/a.txt", "other\n")
    assert "recorded no more" not in upper.ok().out


def test_what_a_task_has_published_before_something_was_in_the_way_is_known(upper):
    """It is removed with what else the task has made, and not left for good."""
    upper.processor("two", "stem = os.path.basename(inputs[0])\nopen(os.path.join(out, stem + '.a'), 'w').close()\nos.makedirs(os.path.join(out, stem + '.b'))\n"
                    "open(os.path.join(out, stem + '.b', 'x'), 'w').close()\n")
    upper.write("out/b.txt.b", "a file where a folder should come to be")
    respec(upper, processor="bin/two.py", prune=True)
    done = upper.run()
    assert done.code == 1 and "out/b.txt.b is in the way of its output" in done.out and upper.exists("out/b.txt.a"), done
    upper.path("in/b.txt").unlink()
    assert "outputs removed" in upper.ok().out and not upper.exists("out/b.txt.a") and upper.exists("out/a.txt.a")


def test_what_a_task_has_published_over_its_earlier_output_before_it_failed_is_known_once(upper):
    upper.processor("two", "stem = os.path.join(out, os.path.basename(inputs[0]))\nopen(stem + '.a', 'w').write(open(inputs[0]).read())\nos.makedirs(stem + '.b')\n"
                    "open(os.path.join(stem + '.b', 'x'), 'w').close()\n")
    respec(upper, processor="bin/two.py", prune=True)
    upper.ok()
    upper.write("in/b.txt", "another line\n")
    upper.path("out/b.txt.b/x").unlink()
    upper.path("out/b.txt.b").rmdir()
    upper.write("out/b.txt.b", "a file where a folder was")
    assert upper.run().code == 1 and upper.read("out/b.txt.a") == "another line\n"
    assert sorted(path for path, _, _ in entries(upper)["in/b.txt"].outputs) == ["b.txt.a", "b.txt.b/x"]
    upper.path("in/b.txt").unlink()
    assert "1 file is gone: in/b.txt; outputs removed\n" in upper.ok().out and not upper.exists("out/b.txt.a")


def test_an_input_in_the_output_folder_is_not_told_of_as_of_no_task(upper):
    for name in "abc":
        upper.write("out/%s.src" % name, "line of %s\n" % name)
    upper.write("bin/up.sh", UPPER.replace("${1##*/}\"", "${1##*/}.up\""), executable=True)
    respec(upper, forEach="out/*.src")
    upper.ok()
    log = upper.path("state/tasks_up.jsonl")
    log.write_bytes(b"".join(line for line in log.read_bytes().splitlines(True) if b"out/a.src" not in line))
    upper.write("out/b.src", "another\n")
    upper.write("out/mine", "mine\n")
    assert "[NOTE] up: lines of its task log were lost; of no task, and left there: out/mine\n" in upper.ok().out


@pytest.mark.parametrize("said", [True, False])
def test_a_full_disk_is_no_files_fault_though_the_processor_has_made_room_again(upper, said):
    upper.ok()
    upper.processor("full", "'bad' in open(inputs[0]).read() and sys.exit(%s)\nopen(os.path.join(out, os.path.basename(inputs[0])), 'w').close()\n" % (
        "str(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))" if said else "1"))
    upper.write("bin/full.py", "import errno\n" + upper.read("bin/full.py"))
    upper.write("in/b.txt", "bad\n")
    respec(upper, processor="bin/full.py", maxFailedTasks=1)
    done = upper.run()
    assert done.code == int(said) and ("as it may be no fault of their files: in/b.txt" in done.out) == said and upper.exists("out/b.txt") == said, done


@pytest.mark.parametrize("more", [{"forEach": "in/*.txt"}, {"inputs": ["in/a.txt"], "chunks": {"bytes": 4, "filter": True}}], ids=["tasks", "chunks"])
def test_no_input_is_overwritten(upper, more):
    """The next run would take for an input what this one made of it."""
    upper.write("bin/filter.sh", "#!/bin/sh\ntr a-z A-Z\n", executable=True)
    if "chunks" in more:
        upper.stage.pop("forEach")
    respec(upper, processor="bin/filter.sh" if "chunks" in more else "bin/up.sh", outputDir="in", **more)
    done = upper.run()
    assert done.code == 1 and "it makes in/a.txt, which the stage reads; an output must not take the place of an input" in done.out, done
    assert upper.read("in/a.txt") == "line of a\n" and not [name for name in os.listdir(str(upper.path("in"))) if name.endswith(".part")]


IN_CHUNKS = {"processor": "bin/filter.sh", "inputs": ["in/*.txt"], "chunks": {"bytes": 4, "filter": True}}


@pytest.mark.parametrize("more, output_dir, link, read_as", [
    ({}, "out", ("in", "out"), "in/a.txt"),
    (IN_CHUNKS, "out", ("in", "out"), "in/a.txt"),
    ({"forEach": "fresh/*.txt"}, "in", ("in", "fresh"), "fresh/a.txt"),
    ({"forEach": "fresh/*.txt"}, "in", ("in/a.txt", "fresh/a.txt"), "fresh/a.txt"),
    ({"inputs": ["in/*.txt", "fresh/b.txt"]}, "real", ("real", "fresh"), "fresh/b.txt"),
    ({"forEach": "in/b.txt", "watch": ["in/b.txt"]}, "out", ("in", "out"), "in/b.txt"),
    ({"watch": ["out/a.txt"]}, "out", None, ""),
], ids=["tasks", "chunks", "inputs' folder", "one file", "what all share", "watched", "watched there"])
def test_no_input_is_overwritten_under_another_name(upper, more, output_dir, link, read_as):
    upper.write("bin/filter.sh", "#!/bin/sh\ntr a-z A-Z\n", executable=True)
    for name in ("real/b.txt", "out/a.txt") if link is None or "real" in link else ():
        upper.write(name, "line of it\n")
    if link is not None:
        if "/" in link[1]:
            os.mkdir(str(upper.path("fresh")))
        os.symlink(str(upper.path(link[0])), str(upper.path(link[1])))
    if "chunks" in more:
        upper.stage.pop("forEach")
    respec(upper, outputDir=output_dir, **more)
    own = "%s/%s" % (output_dir, os.path.basename(read_as or "a.txt"))
    before = upper.read(own)
    done = upper.run()
    told = "it makes %s, which the stage reads%s; an output must not take the place of an input" % (own, read_as and " as " + read_as)
    assert done.code == 1 and told in done.out and upper.read(own) == before, done


def test_an_output_that_is_a_link_to_an_input_is_made_again(upper):
    upper.write("bin/up.sh", '#!/bin/sh\nln -s "$PIPELINE_ROOT/$1" "$PIPELINE_OUTPUT_DIR/${1##*/}"\n', executable=True)
    for _ in range(2):
        upper.ok("--force", "up")
    assert upper.read("out/a.txt") == "line of a\n"


@pytest.mark.parametrize("is_edited_at_once", [False, True])
def test_a_file_that_was_renamed_and_makes_the_same_output_is_not_held_up_by_the_one_that_is_gone(upper, is_edited_at_once):
    """The processor names its output by the beginning of the file's name."""
    upper.processor("stem", "name = os.path.basename(os.environ['PIPELINE_TASK'])\nopen(os.path.join(out, name[0]), 'w').write(open(os.path.join('in', name)).read())\n")
    respec(upper, processor="bin/stem.py", forEach="in/*")
    upper.ok()
    upper.path("in/b.txt").rename(upper.path("in/b.csv"))
    if not is_edited_at_once:
        upper.ok()
    upper.write("in/b.csv", "edited\n")
    assert "[DONE]" in upper.ok().out and upper.read("out/b") == "edited\n"
    assert "[SKIP]" in upper.ok().out
    upper.write("bin/stem.py", upper.read("bin/stem.py").replace("name[0]", "name[0] + name[0]"))
    upper.ok()
    assert upper.exists("out/bb") and not upper.exists("out/b") and "[SKIP]" in upper.ok().out


@pytest.mark.parametrize("more, is_killed", [({}, False), ({"maxFailedTasks": 1}, False), ({"prune": True}, False), ({}, True)], ids=["plain", "a failure", "prune", "killed"])
def test_another_output_folder_is_not_taken_for_the_one_of_before(upper, more, is_killed):
    """The log's paths are below the old folder: files of the same names in the new one are somebody's."""
    upper.ok()
    for name in "ab":
        upper.write("out2/%s.txt" % name, "mine\n")
    respec(upper, processor=upper.processor("other", "os.kill(os.getppid(), 9)\n__import__('time').sleep(30)\n"), outputDir="out2", forkServer=False, **more)
    told = upper.run().out if is_killed else ""
    upper.processor("other", "'bad' in open(inputs[0]).read() and sys.exit(3)\nopen(os.path.join(out, os.path.basename(inputs[0]) + '.new'), 'w').close()\n")
    if "maxFailedTasks" in more:
        upper.write("in/b.txt", "bad\n")
    if "prune" in more:
        upper.path("in/b.txt").unlink()
    told += upper.ok().out
    assert "[NOTE] up: its outputDir was out: what it made there is left there\n" in told, told
    assert upper.read("out2/a.txt") == upper.read("out2/b.txt") == "mine\n" and set(outputs(upper)) == {"a.txt", "b.txt", "c.txt"}
    assert upper.exists("out2/a.txt.new") and upper.run("verify", "--outputs").code == 0
    assert "maxFailedTasks" in more or "[SKIP]" in upper.ok().out


NAMED = "import sys\nname, text = open(os.environ['PIPELINE_TASK']).read().split()\nif text == 'bad':\n    sys.exit(3)\nopen(os.path.join(out, name), 'w').write(text)\n"


@pytest.fixture
def named(upper):
    """Each file says how its output is called, and what is in it."""
    upper.processor("named", NAMED)
    respec(upper, processor="bin/named.py")
    for name in "abc":
        upper.write("in/%s.txt" % name, "%s 1" % name)
    upper.ok("--jobs", "1")
    return upper


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_tasks_that_are_done_anew_may_exchange_the_names_of_their_outputs(named, jobs):
    for name, other in ("ab", "bc", "ca"):
        named.write("in/%s.txt" % name, "%s 2%s" % (other, name))
    named.ok("--jobs", jobs)
    assert outputs(named) == {"a": "2c", "b": "2a", "c": "2b"}
    assert "[SKIP]" in named.ok().out


def test_a_name_is_not_taken_from_a_task_that_is_up_to_date_or_has_made_it_already(named):
    named.write("in/a.txt", "b 2")
    done = named.run()
    assert done.code == 1 and "[FAIL] up in/a.txt: it makes out/b, which task in/b.txt makes" in done.out, done
    named.write("in/b.txt", "b 2")
    done = named.run("--jobs", "1")
    assert done.code == 1 and "[FAIL] up in/b.txt: it makes out/b, which task in/a.txt makes" in done.out and outputs(named) == {"b": "2", "c": "1"}, done
    assert {name: [path for path, _, _ in entry.outputs] for name, entry in entries(named).items()} == {"in/a.txt": ["b"], "in/b.txt": [], "in/c.txt": ["c"]}


def test_names_of_very_many_outputs_are_compared_once_each(tmp_path, monkeypatch):
    looked = []
    monkeypatch.setattr(stage_outputs, "folded", lambda name: looked.append(name) or name)
    paths = ["old-%d" % number for number in range(100)]
    assert stage_outputs.not_among(str(tmp_path), paths, ["new-%d" % number for number in range(100)]) == paths and len(looked) == 200


@posix_only
def test_an_output_whose_name_changed_its_case_is_not_removed_as_the_old_one(tmp_path, named):
    """Where the file system takes no heed of case both names are one file: here, a second link to it."""
    (tmp_path / "NAME").write_text("x")
    assert stage_outputs.not_among(str(tmp_path), ["name"], ["NAME"]) == ["name"]   # that one is not there
    os.link(str(tmp_path / "NAME"), str(tmp_path / "name"))
    assert stage_outputs.not_among(str(tmp_path), ["name", "NAME"], ["NAME"]) == []
    assert stage_outputs.not_among(str(tmp_path), ["name"], ["other"]) == ["name"]
    named.write("in/a.txt", "A 2")
    named.ok()
    assert outputs(named) == {"A": "2", "b": "1", "c": "1"}


def test_two_tasks_may_take_what_a_third_that_is_yet_to_be_done_anew_has_made(upper):
    body = "for name in open(inputs[0]).read().split():\n    open(os.path.join(out, name), 'w').write(inputs[0])\n"
    respec(upper, processor=upper.processor("make", body))
    for names in (["a.o", "b.o", "p.o q.o"], ["p.o", "q.o", "r.o"]):
        for name, text in zip("abc", names):
            upper.write("in/%s.txt" % name, text)
        upper.ok("--jobs", "1")
    assert outputs(upper) == {"p.o": "in/a.txt", "q.o": "in/b.txt", "r.o": "in/c.txt"} and "[SKIP] up" in upper.ok().out


def test_what_was_taken_from_a_task_that_then_fails_stays_and_is_not_undone_with_it(named):
    respec(named, maxFailedTasks=1)
    named.write("in/a.txt", "b 2")
    named.write("in/b.txt", "a bad")
    done = named.ok("--jobs", "1")
    assert "1 failed and allowed" in done.out and outputs(named) == {"b": "2", "c": "1"}, done
    named.write("in/b.txt", "b 1")      # what its record was about when a.txt took b from it
    done = named.run("--jobs", "1")
    assert done.code == 1 and "1 to do, 2 up to date" in done.out and "it makes out/b, which task in/a.txt makes" in done.out and outputs(named) == {"b": "2", "c": "1"}, done


def test_a_task_whose_output_was_taken_is_not_up_to_date_when_its_file_is_again_what_it_was(named):
    """The runner is killed after a.txt has taken b, and before b.txt has come to its end."""
    named.processor("named", NAMED + "if text == 'wait':\n    import time\n    open('waits', 'w').close()\n    time.sleep(60)\n")
    named.write("in/b.txt", "b 1")
    named.ok("--jobs", "1")
    named.write("in/a.txt", "b 2")
    named.write("in/b.txt", "a wait")
    lines = named.read("state/tasks_up.jsonl").count('"task":"in/a.txt"')
    assert lines
    with named.start("--jobs", "1") as process:
        wait_until(lambda: named.exists("waits") and named.read("state/tasks_up.jsonl").count('"task":"in/a.txt"') > lines, "the line of a.txt, and b.txt under way")
        process.kill()
    named.write("in/b.txt", "b 1")
    done = named.run("--jobs", "1")
    assert done.code == 1 and "[FAIL] up in/b.txt: it makes out/b, which task in/a.txt makes" in done.out and named.read("out/b") == "2", done


def test_part_files_of_the_kit_and_what_was_there_before_are_not_told_of():
    before = stage_outputs.Folder({}, ["old.part"], {".old": [1], ".changed": [1]}, [])
    now = stage_outputs.Folder({}, ["d/x~other~1f.part", "new.part", "old.part"], {".old": [1], ".changed": [2], "d/.new": [1]}, [])
    assert stage_outputs.no_outputs(before, now) == [".changed", "d/.new", "new.part"]


@pytest.mark.skipif(sys.platform == "win32", reason="shell scripts")
def test_what_is_not_the_fault_of_a_file_is_not_allowed_by_max_failed_tasks(upper):
    """The outputs of tasks that may fail are removed: not for the sake of a program that cannot be started."""
    upper.ok()
    before = outputs(upper)
    upper.write("bin/none.sh", "#!/no/such/interpreter\n", executable=True)
    respec(upper, processor="bin/none.sh", maxFailedTasks=100)
    done = upper.run()
    assert done.code == 1 and " of 3 tasks failed for what maxFailedTasks does not allow, as it may be no fault of their files: in/a.txt (cannot start " in done.out, done
    assert outputs(upper) == before


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel layer of Linux")
def test_a_task_that_tries_the_network_is_not_allowed_by_max_failed_tasks(upper):
    knock = "try:\n    __import__('soc' + 'ket').create_connection(('127.0.0.1', 9), 1)\nexcept OSError:\n    pass\nopen(out + '/' + os.path.basename(os.environ['PIPELINE_TASK']), 'w')\n"
    upper.spec({"processor": upper.processor("knock", knock), "forEach": "in/*", "maxFailedTasks": 100}, offline={"layers": ["kernel", "hook"]})
    done = upper.run()
    assert done.code == 6 and "does not allow" in done.out and "it tried to use the network" in done.out, done


def test_only_faults_of_the_machine_are_named_where_failures_are_allowed():
    work = task_work.TasksWork.__new__(task_work.TasksWork)
    work.failed, work.machine_faults, work.total = {"in/a": "exit code 1", "in/b": "exit code 2"}, {"in/b": "exit code 2"}, 3
    work.stage = collections.namedtuple("Stage", "max_failed_tasks")(5)
    work.up_to_date, work.done, work.full_disks = 0, [], 2
    assert work._failure_text() == "1 of 3 tasks failed for what maxFailedTasks does not allow, as it may be no fault of their files: in/b (exit code 2)"
    work.full_disks = 3
    assert work._failure_text().endswith("in/b (exit code 2); the disk is full, so 1 more were not started")
    work.machine_faults = {}
    assert work._failure_text() == ""


@pytest.mark.parametrize("moment", [-300_000_000, 9_300_000_000], ids=["1960", "2264"])
@pytest.mark.parametrize("more", [{"forEach": ["in/*"]}, {"inputs": ["in/a.txt"]}, {"forEach": ["in/*"], "chunks": {"bytes": 4}}], ids=["tasks", "one", "chunks"])
def test_files_of_any_time_are_done_and_skipped(project, moment, more):
    """Nanoseconds since 1970 are negative before it, and from 2262 on they do not fit into 63 bits."""
    project.write("in/a.txt", "aa\nbb\n")
    os.utime(str(project.path("in/a.txt")), (moment, moment))
    body = "name = out + '/' + os.path.basename(inputs[0])\nopen(name, 'w').write('o')\nos.utime(name, (%d, %d))\n" % (moment, moment)
    project.spec(dict({"processor": project.processor("p", body)}, **more) if "chunks" not in more else
                 {"processor": project.processor("cat", "sys.stdout.buffer.write(sys.stdin.buffer.read())\n"), "inputs": ["in/a.txt"], "chunks": {"bytes": 4, "filter": True}})
    project.ok("plan")
    project.ok()
    for _ in range(3):
        assert "[SKIP] s1" in project.ok().out
    project.ok("status")


@pytest.mark.parametrize("text", ["a person's\n", "not ours.\n"], ids=["longer", "as long"])
def test_prune_leaves_what_somebody_has_changed_since(upper, text):
    respec(upper, prune=True)
    upper.ok()
    upper.path("in/b.txt").unlink()
    upper.write("out/b.txt", text)
    done = upper.ok()
    assert "[NOTE] up: 1 file is gone: in/b.txt; outputs removed, but for what is not any more as it was made: b.txt\n" in done.out, done
    assert outputs(upper)["b.txt"] == text


NAMED_BY_CONTENT = """
name = out + '/' + open(inputs[0]).read().strip()
os.makedirs(os.path.dirname(name), exist_ok=True)
open(name, 'w').write('made of ' + inputs[0])
"""


@pytest.fixture
def in_folders(upper):
    """Each file says what its output is called: that of a lies in a folder."""
    for name, text in (("a", "sub/low/a"), ("b", "b"), ("c", "sub/c")):
        upper.write("in/%s.txt" % name, text)
    respec(upper, processor=upper.processor("named", NAMED_BY_CONTENT), prune=True)
    upper.ok()
    return upper


def test_an_empty_folder_that_a_kill_has_left_is_not_in_the_way(in_folders):
    """Of the removal of what a task makes no more, the file was removed, and its folders were not."""
    in_folders.path("out/sub/low/a").unlink()
    in_folders.write("in/a.txt", "sub/low")
    in_folders.ok()
    assert in_folders.read("out/sub/low") == "made of in/a.txt"


def test_a_folder_that_prune_leaves_empty_goes_and_is_in_nobodys_way(in_folders):
    in_folders.path("in/a.txt").unlink()
    in_folders.ok()
    assert not in_folders.exists("out/sub/low") and in_folders.exists("out/sub/c")
    in_folders.write("in/b.txt", "sub/low")
    in_folders.ok()
    assert in_folders.read("out/sub/low") == "made of in/b.txt"


def test_a_folder_that_is_another_stages_stays_though_it_is_empty(in_folders):
    in_folders.write("bin/none.sh", "#!/bin/sh\n", executable=True)
    in_folders.spec(in_folders.stage, {"name": "other", "processor": "bin/none.sh", "outputDir": "out/sub/low"})
    in_folders.path("in/a.txt").unlink()
    in_folders.ok("--only", "up")
    assert os.listdir(str(in_folders.path("out/sub/low"))) == []


@posix_only
def test_prune_removes_nothing_behind_a_link_that_came_in_the_place_of_a_folder(in_folders):
    """What was made may have been moved to an archive."""
    os.rename(str(in_folders.path("out/sub")), str(in_folders.path("archive")))
    os.symlink("../archive", str(in_folders.path("out/sub")))
    in_folders.path("in/a.txt").unlink()
    done = in_folders.ok()
    assert "1 file is gone: in/a.txt; outputs removed, but for what is not any more as it was made: sub/low/a (behind a link)\n" in done.out, done
    assert in_folders.read("archive/low/a") == "made of in/a.txt"


def test_nothing_is_pruned_while_the_whole_folder_is_missing(upper):
    respec(upper, prune=True, allowNoInputs=True)
    upper.ok()
    upper.path("in").rename(upper.path("elsewhere"))
    done = upper.ok()
    assert "[NOTE] up: the folder in is missing: nothing is pruned" in done.out and len(outputs(upper)) == 3, done
    upper.path("elsewhere").rename(upper.path("in"))
    count(upper)
    upper.ok()
    assert count(upper) == [] and len(outputs(upper)) == 3


@pytest.mark.parametrize("damage", ["missing", "changed"])
def test_an_output_of_a_gone_file_that_is_not_as_it_was_made_is_no_failure_where_nothing_is_pruned(upper, damage):
    respec(upper, prune=True, forEach=["in/*.txt", "late/*.txt"], allowNoInputs=True)
    upper.path("late").mkdir()
    upper.ok()
    upper.path("late").rmdir()
    upper.path("in/a.txt").unlink()
    upper.path("out/a.txt").unlink() if damage == "missing" else upper.write("out/a.txt", "a person's\n")
    done = upper.ok()
    assert "[NOTE] up: the folder late is missing: nothing is pruned; not any more as it was made, and nobody's now: a.txt\n" in done.out, done
    upper.path("in/b.txt").unlink()
    upper.ok()
    upper.path("late").mkdir()
    done = upper.ok()
    assert "outputs removed" in done.out and set(outputs(upper)) == {"c.txt"} | ({"a.txt"} if damage == "changed" else set()), done
    assert "[SKIP] up" in upper.ok().out
    upper.ok("verify", "--outputs")


def test_a_stage_that_has_read_what_it_prunes_itself_has_not_succeeded(upper):
    """Its glob finds by now what it made once: what another run of the stage would leave out must not be counted by those behind it."""
    body = "open(out + '/' + os.environ['P'] + os.path.basename(os.environ['PIPELINE_TASK']), 'w').write(open(os.environ['PIPELINE_TASK']).read())\n"
    upper.processor("each", body)
    upper.processor("sum", "open(out + '/sum', 'w').write(''.join(open(one).read() for one in inputs))\n")

    def spec(folder, first, second):
        upper.spec({"name": "one", "processor": "bin/each.py", "forEach": "in/*.txt", "outputDir": folder, "env": {"P": first}, "outputs": [first + "*"], "prune": True},
                   {"name": "two", "processor": "bin/each.py", "forEach": "%s/%s*" % (folder, first), "outputDir": "d", "env": {"P": second}, "outputs": [second + "*"],
                    "prune": True},
                   {"name": "sum", "processor": "bin/sum.py", "inputs": ["d/%s*" % second], "outputDir": "s"})

    spec("a", "x_", "y_")
    upper.ok()
    whole = upper.read("s/sum")
    spec("d", "y_", "z_")
    done = upper.run()
    assert done.code == 1 and "[FAIL] two: input changed during the run: d/y_x_a.txt, d/y_x_b.txt" in done.out and "prune has removed; run again" in done.out, done
    upper.ok()
    assert upper.read("s/sum") == whole and "[SKIP] two" in upper.ok().out
    upper.ok("verify", "--outputs")


@pytest.mark.parametrize("runs", [1, 2])
def test_what_was_not_pruned_as_the_folder_was_missing_is_pruned_when_it_is_there_and_empty(upper, runs):
    respec(upper, prune=True, allowNoInputs=True)
    upper.ok()
    upper.path("in").rename(upper.path("elsewhere"))
    for _ in range(runs):
        assert "[NOTE] up: the folder in is missing: nothing is pruned" in upper.ok().out and len(outputs(upper)) == 3
    upper.path("in").mkdir()
    done = upper.ok()
    assert "[NOTE] up: 3 files are gone: in/a.txt, in/b.txt, in/c.txt; outputs removed" in done.out and not outputs(upper), done
    assert "[SKIP] up" in upper.ok().out


@posix_only
def test_nothing_is_pruned_while_the_folder_cannot_be_listed(upper):
    respec(upper, prune=True, allowNoInputs=True)
    upper.ok()
    upper.path("in").rename(upper.path("elsewhere"))
    upper.path("in").symlink_to("in")
    done = upper.run()
    assert done.code == 1 and "[FAIL] up: input in is a link that leads nowhere" in done.out and len(outputs(upper)) == 3, done
    upper.path("in").unlink()
    upper.path("elsewhere").rename(upper.path("in"))
    count(upper)
    upper.ok()
    assert count(upper) == [] and len(outputs(upper)) == 3


@posix_only
def test_a_link_that_leads_nowhere_is_not_passed_over(upper):
    upper.path("in/d.txt").symlink_to("nowhere")
    done = upper.run()
    assert done.code == 1 and "[FAIL] up in/d.txt: input in/d.txt is a link that leads nowhere" in done.out, done
    assert count(upper) == ["a", "b", "c"]
    assert observed(upper).material.input_bytes == 3 * len("line of a\n")


@posix_only
def test_a_file_that_cannot_be_read_fails_its_own_task_only(upper):
    upper.ok()
    count(upper)
    upper.write("in/a.txt", "another\n")
    upper.path("in/b.txt").chmod(0)
    plan = run_without_might(upper, "plan")
    assert plan.stdout == "RUN     up (1 task changed; 1 file cannot be used (cannot read in/b.txt: Permission denied))\n", plan.stdout
    done = run_without_might(upper)
    assert done.returncode == 1, done.stdout
    assert "[START] up (3 tasks: 2 to do, 1 up to date)" in done.stdout and "[FAIL] up in/b.txt: cannot read in/b.txt: Permission denied" in done.stdout
    assert "1 of 3 tasks failed: in/b.txt (cannot read in/b.txt: Permission denied)" in done.stdout
    assert count(upper) == ["a"]
    assert outputs(upper) == {"a.txt": "ANOTHER\n", "b.txt": "LINE OF B\n", "c.txt": "LINE OF C\n"}
    assert upper.run("verify").code == 0
    upper.path("in/b.txt").chmod(0o644)
    upper.ok()
    assert count(upper) == ["b"]
    assert "[SKIP]" in upper.ok().out


@posix_only
def test_files_that_cannot_be_read_may_be_allowed_to_fail_and_are_tried_again_and_not_pruned(upper):
    respec(upper, maxFailedTasks=1, prune=True)
    upper.ok()
    upper.path("in/b.txt").chmod(0)
    for _ in range(2):
        done = run_without_might(upper)
        assert done.returncode == 0 and ", 1 failed and allowed)" in done.stdout and "gone" not in done.stdout, done.stdout
        assert sorted(outputs(upper)) == ["a.txt", "c.txt"]
    upper.path("in/c.txt").chmod(0)
    assert run_without_might(upper).returncode == 1
    upper.path("in/b.txt").chmod(0o644)
    upper.path("in/c.txt").chmod(0o644)
    upper.ok()
    assert sorted(outputs(upper)) == ["a.txt", "b.txt", "c.txt"]


def test_what_a_task_would_have_done_with_a_file_that_cannot_be_read_is_not_accepted(upper):
    upper.ok()
    upper.write("bin/up.sh", UPPER + "# as before\n", executable=True)
    upper.path("in/b.txt").chmod(0)
    done = run_without_might(upper, "accept", "up", "--reason", "a comment")
    assert done.returncode == 2 and "1 file of its tasks is new, changed or failed (in/b.txt)" in done.stdout, done.stdout


@posix_only
@pytest.mark.skipif(sys.platform == "darwin", reason="its file systems have UTF-8 names only")
def test_a_name_that_is_not_utf_8_fails_its_own_task_only(upper):
    path = os.fsencode(str(upper.path("in"))) + b"/caf\xe9.txt"
    with open(path, "w") as file:
        file.write("au lait\n")
    done = upper.run()
    assert done.code == 1, done
    assert "[FAIL] up in/caf\\udce9.txt: input 'in/caf\\udce9.txt': the name is not UTF-8 text here; rename it" in done.out, done
    assert count(upper) == ["a", "b", "c"]
    assert upper.run("verify").code == 0
    os.rename(path, os.fsencode(str(upper.path("in"))) + b"/cafe.txt")
    done = upper.ok()
    assert count(upper) == ["cafe"] and "1 file is gone: in/caf\\udce9.txt" in done.out, done
    assert "[SKIP]" in upper.ok().out


@posix_only
@pytest.mark.skipif(sys.platform == "darwin", reason="its file systems have UTF-8 names only")
def test_a_name_that_is_not_utf_8_is_not_taken_for_that_of_a_file_that_is_done(upper):
    """The two are one task, which fails as long as both are there."""
    settle(upper.write("in/caf\\udce9.txt", "really called so\n"))
    upper.ok()
    settle(upper.path("out/caf\\udce9.txt"))
    upper.ok()                  # from now on it is known what was in it
    with open(os.fsencode(str(upper.path("in"))) + b"/caf\xe9.txt", "w") as file:
        file.write("au lait\n")
    for _ in range(2):
        assert upper.run().code == 1


def test_a_file_that_changes_while_it_is_read_fails_its_own_task_only(upper, monkeypatch):
    """Driven here, for what a run reads it reads too fast to write into."""
    look = file_digests.hash_file

    def write_meanwhile(path, heed):
        digest, signature = look(path, heed)
        return digest, [] if path.endswith("b.txt") else signature

    monkeypatch.setattr(file_digests, "hash_file", write_meanwhile)
    facts = observed(upper)
    assert facts.tasks.unfit == {"in/b.txt": "in/b.txt changes while it is read; run again when it is complete"}
    assert facts.tasks.digests[1] == "" and all(facts.tasks.digests[place] for place in (0, 2)) and facts.tasks.todo == [0, 1, 2]


def test_large_files_of_tasks_are_read_side_by_side_and_each_gets_its_own_digest(upper, monkeypatch):
    monkeypatch.setattr(stage_keys, "LARGE_BYTES", 10)
    side_by_side, seen = chunk_files.side_by_side, []
    monkeypatch.setattr(chunk_files, "side_by_side", lambda function, items, **how: seen.append(list(items)) or side_by_side(function, items, 2, **how))
    upper.write("in/b.txt", "small\n")
    hash_file, read = file_digests.hash_file, []
    monkeypatch.setattr(file_digests, "hash_file", lambda path, heed: read.append(os.path.basename(path)) or hash_file(path, heed))
    facts = observed(upper)
    assert seen == [[0, 2]] and sorted(one for one in read if one.endswith(".txt")) == ["a.txt", "b.txt", "c.txt"]
    assert facts.tasks.digests == [hashlib.sha256(upper.path(path).read_bytes()).hexdigest() for path in ("in/a.txt", "in/b.txt", "in/c.txt")]


def test_what_is_in_the_way_of_an_output_is_named(upper):
    upper.path("out/b.txt").mkdir(parents=True)
    done = upper.run()
    assert done.code == 1 and "[FAIL] up in/b.txt: out/b.txt is in the way of its output: Is a directory; remove it, or give the output another name" in done.out, done


def test_what_a_task_leaves_that_is_no_output_for_its_name_is_named_before_it_is_thrown_away(upper):
    upper.write("bin/up.sh", UPPER + 'cp "$1" "$PIPELINE_OUTPUT_DIR/.hid"\n', executable=True)
    done = upper.ok("--jobs", "1")
    assert done.out.count("no outputs") == 1, done
    assert ("[NOTE] up: made .hid of in/a.txt, .hid of in/b.txt, .hid of in/c.txt; "
            "names that begin with a dot or end in .part are no outputs: they are thrown away\n") in done.out, done
    assert "[NOTE]" not in upper.ok().out


def test_what_a_chunk_leaves_that_is_no_output_for_its_name_is_named(upper):
    upper.write("bin/up.sh", UPPER + 'echo "$PIPELINE_CHUNK_START" > "$PIPELINE_OUTPUT_DIR/x.part"\n', executable=True)
    upper.spec({"name": "up", "processor": "bin/up.sh", "inputs": ["in/a.txt"], "chunks": {"bytes": 99}, "outputDir": "out"})
    done = upper.ok()
    assert "[NOTE] up: made x.part of in/a.txt#1; names that begin with a dot or end in .part are no outputs: they are thrown away\n" in done.out, done
    assert done.out.count("[NOTE]") == 1, done       # the folder in which its chunks are is the runner's


def test_two_tasks_with_one_target_are_refused(upper):
    upper.write("bin/up.sh", '#!/bin/sh\ncp "$1" "$PIPELINE_OUTPUT_DIR/same.txt"\n', executable=True)
    done = upper.run("--jobs", "1")
    assert done.code == 1 and "[FAIL] up in/b.txt: it makes out/same.txt, which task in/a.txt makes; each task must make files of its own" in done.out, done
    assert outputs(upper) == {"same.txt": "line of a\n"}
    respec(upper, maxFailedTasks=3)     # which of them is first is chance, and no file's fault
    done = upper.run()
    assert done.code == 1 and "2 of 3 tasks failed for what maxFailedTasks does not allow" in done.out, done
    upper.write("bin/up.sh", '#!/bin/sh\n[ "$1" = in/a.txt ] && name=other.txt || name=Other.txt\ncp "$1" "$PIPELINE_OUTPUT_DIR/$name"\n', executable=True)
    done = upper.run("--jobs", "1")
    assert "it makes out/Other.txt, which task in/a.txt makes, but for the case of letters, which many systems do not tell apart; each task" in done.out, done


AS_MACOS_COMPARES = """
import os, runpy, sys
sys.path.insert(0, sys.argv.pop(1))
import primitives
primitives.composed.__defaults__ = primitives.folded.__defaults__ = (True,)
sys.argv[0] = os.path.join(sys.path[0], "pipeline_runner.py")
runpy.run_path(sys.argv[0], run_name="__main__")
"""
# What Windows says of names that differ in case only: what is asked for by one is found by the other.
AS_WINDOWS_FINDS = """
import os, runpy, sys
sys.path.insert(0, sys.argv.pop(1))
import primitives
real = os.lstat
def lstat(path, **more):
    try:
        return real(path, **more)
    except FileNotFoundError:
        folder, name = os.path.split(path)
        alike = [one for one in os.listdir(folder or ".") if one.casefold() == name.casefold()]
        if not alike:
            raise
        return real(os.path.join(folder, alike[0]), **more)
os.lstat, primitives.as_here = lstat, primitives.folded
sys.argv[0] = os.path.join(sys.path[0], "pipeline_runner.py")
runpy.run_path(sys.argv[0], run_name="__main__")
"""


# What exfat-fuse says of them: the same, but each spelling has a number of its own.
AS_EXFAT_FUSE_FINDS = AS_WINDOWS_FINDS.replace("        return real(os.path.join(folder, alike[0]), **more)", """
        found = list(real(os.path.join(folder, alike[0]), **more))
        return os.stat_result([found[0], 1 << 40, *found[2:]])
import file_systems
file_systems.doubt_of = lambda device: file_systems.BY_ITS_TIMES""").replace(", primitives.as_here = lstat, primitives.folded", " = lstat")


def run_as(project, script, *args):
    """Run the program in a process that a script has made like one on another system."""
    project.write("as_another.py", script)
    argv = project.argv(*args)
    done = subprocess.run([sys.executable, str(project.path("as_another.py")), str(RUNNER.parent)] + argv[argv.index(str(RUNNER)) + 1:], stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120, env=dict(os.environ, PYTHONIOENCODING="utf-8"))
    return types.SimpleNamespace(code=done.returncode, out=done.stdout.decode())


@posix_only
def test_two_tasks_with_one_target_but_for_an_accent_are_refused_on_macos(upper):
    upper.write("bin/up.sh", "#!/bin/sh\n[ \"$1\" = in/a.txt ] && name=$(printf 'e\\314\\201.txt') || name=$(printf '\\303\\251.txt')\n"
                'cp "$1" "$PIPELINE_OUTPUT_DIR/$name"\n', executable=True)
    done = run_as(upper, AS_MACOS_COMPARES, "--jobs", "1")
    assert done.code == 1 and "it makes out/\u00e9.txt, which task in/a.txt makes, but for how an accent is written, which many systems" in done.out, done
    assert outputs(upper) == {"e\u0301.txt": "line of a\n"}


def test_a_task_may_not_make_what_belongs_to_another_stage(upper):
    upper.spec({"name": "first", "processor": "bin/stage_copy.py", "inputs": ["in/a.txt"], "outputDir": "out"}, upper.stage)
    done = upper.run()
    assert done.code == 1 and "it makes out/a.txt, which belongs to stage first; a file belongs to one stage" in done.out, done
    upper.spec({"name": "first", "processor": "bin/stage_copy.py", "inputs": ["in/a.txt"], "outputDir": "out"}, dict(upper.stage, maxFailedTasks=2))
    done = upper.run()              # no fault of the file's
    assert done.code == 1 and "1 of 3 tasks failed for what maxFailedTasks does not allow" in done.out, done


ONE_FILE_BUT_FOR_CASE = "%s out/a.txt, which belongs to stage first, but for the case of letters, which many systems do not tell apart; a file belongs to one stage (if first"


def tells_case(folder):
    (folder / "case").touch()
    return not (folder / "CASE").exists()


@pytest.fixture
def beside(upper):
    """A stage `first` that has made out/A.txt, before `up`, which makes out/a.txt."""
    upper.write("other/A.txt", "of the first\n")
    for name in "bc":
        upper.path("in/%s.txt" % name).unlink()
    upper.first = {"name": "first", "processor": "bin/stage_copy.py", "inputs": ["other/A.txt"], "outputDir": "out"}
    upper.spec(upper.first)
    upper.ok()
    return upper


@pytest.mark.parametrize("script, how, done", [(AS_WINDOWS_FINDS, {}, "it makes"), (AS_EXFAT_FUSE_FINDS, {}, "it makes"),
                                              (AS_WINDOWS_FINDS, {"forEach": [], "inputs": ["in/a.txt"], "chunks": {"bytes": 99}}, "changed")], ids=["files", "numbers", "chunks"])
def test_what_another_stage_has_made_is_not_replaced_under_a_name_that_is_the_same_but_for_the_case(beside, tmp_path, script, how, done):
    if how:
        beside.write("bin/up.sh", UPPER + ": PIPELINE_CHUNK_START\n", executable=True)
    beside.spec(beside.first, {key: value for key, value in dict(beside.stage, **how).items() if value})
    found = run_as(beside, script)
    assert found.code == 1 and ONE_FILE_BUT_FOR_CASE % done in found.out, found.out
    assert outputs(beside) == {"A.txt": "of the first\n"}
    found = beside.run()                # on a file system that tells them apart, they are two files
    if tells_case(tmp_path):
        assert found.code == 0 and outputs(beside) == {"A.txt": "of the first\n", "a.txt": "LINE OF A\n"}, found
        beside.ok("verify", "--outputs")
    else:
        assert found.code == 1 and outputs(beside) == {"A.txt": "of the first\n"}, found


def test_a_name_that_is_anothers_but_for_the_case_is_not_taken_while_that_file_is_not_there(beside):
    beside.path("out/A.txt").unlink()
    beside.spec(beside.first, beside.stage)
    found = run_as(beside, AS_WINDOWS_FINDS, "--only", "up")
    assert found.code == 1 and ONE_FILE_BUT_FOR_CASE % "it makes" in found.out and outputs(beside) == {}, found.out


def test_a_task_does_not_write_over_its_input_in_a_folder_that_a_glob_has_found_in_other_case(upper):
    upper.write("Out/a.txt", "line of a\n")
    respec(upper, forEach="O*/*.txt")
    done = run_as(upper, AS_WINDOWS_FINDS)
    assert done.code == 1 and "[FAIL] up Out/a.txt: it makes out/a.txt, which the stage reads; an output must not take the place of an input" in done.out, done
    assert upper.read("Out/a.txt") == "line of a\n"


@pytest.mark.skipif(sys.platform == "win32", reason="files whose names differ in case")
@pytest.mark.parametrize("doubt, other, there, is_one", [
    ("", "cd/A.txt", "cd/a.txt", False), (file_systems.BY_ITS_TIMES, "cd/A.txt", "cd/a.txt", True), (file_systems.BY_ITS_TIMES, "cd/A.txt", "cd/a.txt cd/A.txt", False),
    (file_systems.BY_ITS_TIMES, "CD/a.txt", "cd/a.txt", True), (file_systems.BY_ITS_TIMES, "CD/a.txt", "cd/a.txt CD/a.txt", False)])
def test_two_spellings_with_numbers_of_their_own_are_two_files_only_if_both_are_listed(tmp_path, monkeypatch, doubt, other, there, is_one):
    """So it is on exfat-fuse; a run there removed what it had just made, of an input that was called otherwise but for the case."""
    for path in there.split():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).touch()
    if len(os.listdir(str(tmp_path))) + len(os.listdir(str(tmp_path / "cd"))) < len(there.split()) + 1:
        pytest.skip("here they are one file")
    real, found = os.lstat, list(os.lstat(str(tmp_path / "cd/a.txt")))
    known = {str(tmp_path / "cd/a.txt"): 1, str(tmp_path / other): 2}
    monkeypatch.setattr(os, "lstat", lambda path, **more: os.stat_result([found[0], known[path], *found[2:]]) if path in known else real(path, **more))
    monkeypatch.setattr(file_systems, "doubt_of", lambda device: doubt)
    assert file_tasks.FileTasksWork._are_two_files(types.SimpleNamespace(folder=str(tmp_path)), other, "cd/a.txt") is not is_one
    assert stage_outputs.not_among(str(tmp_path), [other], ["cd/a.txt"]) == ([] if is_one else [other])


def until(holds, process):
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.02)


WATCHED = """
import os, runpy, sys
real, told, failing = os.fsync, open(sys.argv[1], "w"), sys.argv[2]
def fsync(descriptor):
    path = os.readlink("/proc/self/fd/%d" % descriptor)
    told.write(path + "\\n")
    told.flush()
    if failing and path.endswith(failing):
        raise OSError(5, "Input/output error")
    real(descriptor)
os.fsync = fsync
sys.argv = sys.argv[3:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def synced(project, failing="", code=0):
    """Run the real program; return (what it printed, names of what it synced in out). The sync of *failing* fails."""
    told = project.root.parent / "synced"
    done = subprocess.run([sys.executable, "-c", WATCHED, str(told), failing, str(RUNNER), "--pipeline", str(project.path("pipeline.json"))],
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=120)
    assert done.returncode == code, done
    return done.stdout.decode("utf-8"), {os.path.basename(path) for path in told.read_text().splitlines() if os.path.basename(os.path.dirname(path)) == "out"}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="names of descriptors are Linux's")
def test_after_a_sync_that_failed_all_tasks_are_done_again(upper):
    upper.write("bin/up.sh", UPPER.replace("grep -q bad", "while test -e wait; do sleep 0.02; done; grep -q bad"))
    out, _ = synced(upper, failing="/out/b.txt", code=5)
    assert "[DONE]" not in out
    upper.write("wait", "")
    upper.path("count").unlink()
    process = upper.start()
    until(lambda: upper.json("state/stage_up.json")["lastStatus"] == "running" and not upper.exists("out/.up.lost") and upper.exists("count"), process)
    process.kill()                      # before any of them is done again
    process.communicate(timeout=60)
    upper.path("wait").unlink()
    assert "[START] up (3 tasks: 3 to do, 0 up to date)" in upper.ok().out and not upper.exists("out/.up.lost")
    assert "[SKIP] up" in upper.ok().out


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="names of descriptors are Linux's")
def test_what_a_killed_run_has_made_and_not_synced_is_synced_by_the_next(upper):
    upper.write("bin/up.sh", UPPER.replace("grep -q bad", "while test -e wait && test \"${1##*/}\" = c.txt; do sleep 0.02; done; grep -q bad"))
    upper.write("wait", "")
    process = upper.start("--jobs", "3")
    until(lambda: len(entries(upper)) == 2, process)
    process.kill()
    process.communicate(timeout=60)
    upper.path("wait").unlink()
    out, names = synced(upper)
    assert "(3 tasks: 1 to do, 2 up to date)" in out and {"a.txt", "b.txt", "c.txt"} <= names
    upper.write("in/d.txt", "d\n")
    out, names = synced(upper)
    assert "(4 tasks: 1 to do, 3 up to date)" in out and "d.txt" in names and not {"a.txt", "b.txt"} & names


def test_what_was_lost_is_not_sealed_where_the_run_died_before_it_was_recorded(upper):
    upper.ok("--run-id", "r")
    spec = spec_loading.load_pipeline(str(upper.path("pipeline.json")))
    upper.write("state/run_r.json", json.dumps(dict(upper.json("state/run_r.json"), stages=[])))
    upper.path("out/.up.done").rename(upper.path("gone"))
    assert task_look.decide_tasks(spec.stages[0], observed(upper), False).action == "SEAL"
    upper.path("gone").rename(upper.path("out/.up.lost"))
    facts = observed(upper)
    decision = task_look.decide_tasks(spec.stages[0], facts, False)
    assert (decision.action, decision.reasons, facts.tasks.todo) == ("RUN", ["the outputs could not be brought to the disk"], [0, 1, 2])


SYNCS = """
real, synced = os.fsync, []
def fsync(descriptor):
    synced.append(descriptor)
    real(descriptor)
os.fsync = fsync
from processor_kit import lines, open_output
with open_output(os.path.basename(inputs[0]) + ".more") as file:
    file.write("more")
try:
    lines(str.upper, os.path.basename(inputs[0]))
finally:
    print("syncs: %s" % ("some" if synced else "none"))
"""


@posix_only
@pytest.mark.parametrize("stage, said", [
    ({"forEach": "data/in/*.txt"}, "none"), ({"forEach": "data/in/*.txt", "checkpoint": {"enabled": True}}, "some"),
    ({"forEach": "data/in/*.txt", "launcher": ["/usr/bin/env"]}, "some"), ({"inputs": ["data/in/a.txt"]}, "some")], ids=["task", "checkpoint", "launched", "stage"])
def test_the_kit_leaves_syncing_to_the_runner_where_nothing_counts_on_it_earlier(project, stage, said):
    project.write("data/in/a.txt", "a\n")
    project.write("bin/processor_kit.py", (ROOT / "bin" / "processor_kit.py").read_text(encoding="utf-8"))
    project.spec(dict({"processor": project.processor("up", SYNCS)}, **stage))
    project.ok("--run-id", "r")
    log = "".join(path.read_text(encoding="utf-8") for path in sorted(project.path("state/logs/r").rglob("*.log")))
    assert "syncs: %s" % said in log
    assert project.path("data/s1/a.txt").read_text(encoding="utf-8") == "A\n" and project.path("data/s1/a.txt.more").read_text(encoding="utf-8") == "more"


def test_a_task_is_tried_again_by_itself(upper):
    respec(upper, retry={"attempts": 2, "baseDelayMs": 0}, simulateFailAttempts=1,
           processor=upper.processor("flaky", "if 'PIPELINE_SIMULATED_FAIL' in os.environ: sys.exit(75)\nopen(out + '/' + os.path.basename(inputs[0]), 'w').write('x')"))
    done = upper.ok()
    assert done.out.count("[RETRY] up in/") == 3 and "[RETRY] up in/a.txt attempt 1/2: exit code 75" in done.out, done
    assert len(outputs(upper)) == 3 and upper.json("state/stage_up.json")["attempts"] == 6


def test_a_task_that_fails_over_a_file_that_changed_is_not_tried_again_in_this_run(upper):
    """It would be done under the key of the file as it was."""
    upper.write("bin/up.sh", UPPER.replace("grep -q bad", "grep -q grows \"$1\" && { echo more >> \"$1\"; exit 3; }; grep -q bad"), executable=True)
    upper.write("in/b.txt", "grows\n")
    respec(upper, retry={"attempts": 3, "baseDelayMs": 0})
    done = upper.run()
    assert done.code == 1 and "[FAIL] up in/b.txt: input changed during the run: in/b.txt; exit code 3" in done.out and "[RETRY]" not in done.out, done
    assert count(upper) == ["a", "b", "c"]


def test_declared_outputs_are_wanted_of_each_task_and_others_are_not_published(upper):
    upper.write("bin/up.sh", UPPER + 'echo x > "$PIPELINE_OUTPUT_DIR/temporary"\n', executable=True)
    respec(upper, outputs=["*.txt"])
    upper.ok()
    assert set(outputs(upper)) == {"a.txt", "b.txt", "c.txt"}
    respec(upper, outputs=["*.csv"])
    done = upper.run()
    assert done.code == 1 and "declared output *.csv was not made" in done.out, done


def test_what_an_earlier_version_of_a_task_made_and_this_one_does_not_goes(upper):
    upper.write("bin/up.sh", '#!/bin/sh\nread -r name < "$1"\ncp "$1" "$PIPELINE_OUTPUT_DIR/$name"\n', executable=True)
    for name in "abc":
        upper.write("in/%s.txt" % name, name + "1\n")
    upper.ok()
    upper.write("in/b.txt", "b2\n")
    upper.ok()
    assert set(outputs(upper)) == {"a1", "b2", "c1"}


@pytest.mark.parametrize("then", ["pass", "sys.exit(3)"])
def test_a_task_that_tries_the_network_is_named_and_not_tried_again(upper, then):
    if not sys.platform.startswith("linux"):
        pytest.skip("the kernel layer is of Linux")
    body = ("import importlib\n"
            "if inputs[0].endswith('b.txt'):\n"
            "    try: getattr(importlib.import_module('soc' + 'ket'), 'soc' + 'ket')()\n"
            "    except OSError: %s\n"
            "open(out + '/' + os.path.basename(inputs[0]), 'w').write('x')\n" % then)
    respec(upper, processor=upper.processor("net", body), retry={"attempts": 3, "baseDelayMs": 1})
    upper.spec(upper.stage, offline={"allow": ["soc" + "ket"]})
    done = upper.run("--jobs", "2")
    assert done.code == 6 and "[FAIL] up in/b.txt: it tried to use the network" in done.out and "[RETRY]" not in done.out, done
    assert "[FAIL] up in/a.txt" not in done.out and "[FAIL] up in/c.txt" not in done.out, done


# --- stopped, and gone on with ---------------------------------------------------------------------------------------

WAITS = """#!/bin/sh
echo "$PIPELINE_TASK" >> "$PIPELINE_ROOT/count"
case "$1" in *b.txt) if [ ! -e "$PIPELINE_ROOT/go" ]; then touch "$PIPELINE_ROOT/waits"; exec sleep 600; fi;; esac
cp "$1" "$PIPELINE_OUTPUT_DIR"
"""


def wait_for(project, *names):
    deadline = time.monotonic() + 60
    while not all(project.exists(name) for name in names):
        assert time.monotonic() < deadline, names
        time.sleep(0.01)


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143), (getattr(signal, "SIGKILL", signal.SIGTERM), -9)])
def test_stopped_in_the_middle_the_finished_tasks_are_not_done_again(upper, number, code):
    upper.write("bin/up.sh", WAITS, executable=True)
    run = upper.start("--jobs", "1")
    wait_for(upper, "waits")
    wait_until(lambda: "in/a.txt" in upper.read("state/tasks_up.jsonl"))    # the next task is started before the one that ended is recorded
    run.send_signal(number)
    run.communicate(timeout=60)
    assert run.returncode == code
    upper.write("go", "")
    upper.ok()
    assert count(upper) == ["a", "b", "b", "c"] and len(outputs(upper)) == 3


RESUMABLE = """
offset, progress = int(os.environ["PIPELINE_LINE_OFFSET"]), os.environ["PIPELINE_PROGRESS_FILE"]
name = os.path.basename(inputs[0])
lines = open(inputs[0]).read().splitlines(True)
for number in range(offset, len(lines)):
    with open(out + "/" + name, "a", newline="") as file:
        file.write(lines[number])
    open(progress + ".x", "w").write(json.dumps({"lineOffset": number + 1, "outputs": {name: os.path.getsize(out + "/" + name)}, "durable": True}))
    os.replace(progress + ".x", progress)
    if number == 0 and name == "b.txt" and not os.path.exists(os.environ["PIPELINE_ROOT"] + "/go"):
        open(os.environ["PIPELINE_ROOT"] + "/waits", "w")
        time.sleep(600)
"""


def test_a_killed_task_resumes_from_its_own_checkpoint(upper):
    upper.write("in/b.txt", "one\ntwo\n")
    respec(upper, processor=upper.processor("res", RESUMABLE), checkpoint={"enabled": True})
    run = upper.start("--jobs", "1")
    wait_for(upper, "waits")
    run.kill()
    run.communicate(timeout=60)
    upper.write("go", "")
    done = upper.ok()
    assert "[RESUME] up in/b.txt from line 1" in done.out and outputs(upper)["b.txt"] == "one\ntwo\n", done
    assert list(upper.path("state/progress_up~tasks").iterdir()) == []


def test_reset_forgets_the_checkpoints_of_killed_tasks(upper):
    respec(upper, processor=upper.processor("res", RESUMABLE), checkpoint={"enabled": True})
    upper.write("in/b.txt", "one\ntwo\n")
    run = upper.start("--jobs", "1")
    wait_for(upper, "waits")
    wait_until(lambda: "in/a.txt" in upper.read("state/tasks_up.jsonl"))    # the next task is started before the checkpoint of the one that ended goes
    run.kill()
    run.communicate(timeout=60)

    def of_the_stage():
        return [path.name for path in upper.path("state").iterdir() if "_up" in path.name]
    assert len(list(upper.path("state/progress_up~tasks").iterdir())) == 1 and any(name.startswith("inputs_up~") for name in of_the_stage())
    done = upper.ok("reset", "up", "--yes")
    assert of_the_stage() == [] and "forgot state/progress_up~tasks" in done.out.splitlines() and not upper.path("out/.up.tasks").exists()
    upper.write("go", "")
    assert "[RESUME]" not in upper.ok().out and outputs(upper)["b.txt"] == "one\ntwo\n"


def test_a_link_that_leads_nowhere_is_an_output_like_another(upper):
    upper.write("bin/up.sh", UPPER + 'ln -s nowhere "$PIPELINE_OUTPUT_DIR/${1##*/}.link"\n', executable=True)
    upper.ok()
    assert os.readlink(str(upper.path("out/b.txt.link"))) == "nowhere" and upper.json("state/stage_up.json")["tasks"]["outputs"] == 6
    count(upper)
    assert "[SKIP] up" in upper.ok().out and "[SKIP] up" in upper.ok("--rehash").out
    assert count(upper) == []
    upper.path("out/b.txt.link").unlink()
    assert "[DONE] up" in upper.ok().out and count(upper) == ["b"]
    upper.path("out/b.txt.link").unlink()
    upper.path("out/b.txt.link").symlink_to("elsewhere")
    assert "[DONE] up" in upper.ok().out and count(upper) == ["b"] and os.readlink(str(upper.path("out/b.txt.link"))) == "nowhere"


# --- the fork server -------------------------------------------------------------------------------------------------

def test_with_and_without_the_fork_server_the_same_is_made(upper):
    upper.write("bin/other.py", "WORD = 'x'\n")
    upper.write("bin/kit.py", "import os\nfrom processor_kit import inputs, lines\nfrom other import WORD\nlines(lambda line: WORD + line, os.path.basename(inputs()[0]))\n")
    respec(upper, processor="bin/kit.py", forkServer=False)
    for name in range(12):
        upper.write("in/n%02d.txt" % name, "%d\n" % name)
    upper.ok()
    fresh = outputs(upper)
    respec(upper, forkServer=True)
    done = upper.ok("--force", "up")
    assert outputs(upper) == fresh and len(fresh) == 15, done


# --- the log and the cache, by themselves ----------------------------------------------------------------------------

def entry(name, status="ok", key="k", made=(("a", 1, "d"),)):
    return task_log.Entry(name, key, status, tuple(made), {"read": 1}, 1, 1, 1, "", "r/1")


def store(path, data):
    with open(path, "wb") as file:
        file.write(data)


def open_log(folder):
    log = task_log.TaskLog(str(folder), "s")
    log.load()
    log.open(store)
    return log


def test_the_last_line_of_a_task_counts(tmp_path):
    log = open_log(tmp_path)
    for one in (entry("x"), entry("y"), entry("x", "failed")):
        log.append(one)
    log.close()
    again = open_log(tmp_path)
    assert again.entries == {"x": entry("x", "failed"), "y": entry("y")} and again.lines == 4


@pytest.mark.parametrize("number", [errno.EFBIG, errno.ENOSPC, 0])
def test_a_line_of_which_only_a_part_fits_is_taken_off_and_the_error_is_the_real_one(tmp_path, monkeypatch, number):
    """A write that meets a limit writes what fits, and says nothing of it: the next one does. 0: there is room for the rest after all."""
    log = open_log(tmp_path)
    log.append(entry("x"))
    before, write, parts = log.size, os.write, []

    def write_a_part(descriptor, data):
        parts.append(len(data))
        if len(parts) == 2 and number:
            raise OSError(number, os.strerror(number))
        return write(descriptor, data[:9] if len(parts) == 1 else data)
    monkeypatch.setattr(os, "write", write_a_part)
    if number:
        with pytest.raises(OSError) as caught:
            log.append(entry("y"))
        assert (caught.value.errno, caught.value.filename) == (number, log.path)
    else:
        log.append(entry("y"))
    log.close()
    size = (tmp_path / "tasks_s.jsonl").stat().st_size
    assert size == (before if number else log.size) and set(open_log(tmp_path).entries) == ({"x"} if number else {"x", "y"})


@pytest.mark.parametrize("cut", [1, 5, 60])
def test_a_torn_end_is_cut_off_and_gone_on_from(tmp_path, cut):
    log = open_log(tmp_path)
    log.append(entry("x"))
    size = log.size
    line = log.append(entry("y"))
    log.close()
    path = tmp_path / "tasks_s.jsonl"
    path.write_bytes(path.read_bytes()[:-cut] + bytes(7))
    log = open_log(tmp_path)
    assert set(log.entries) == {"x"} and log.size == size and path.stat().st_size == size
    log.append(entry("y"))
    log.close()
    assert path.read_bytes().endswith(line) and set(open_log(tmp_path).entries) == {"x", "y"}


def test_a_hole_left_by_a_power_cut_costs_what_was_in_it(tmp_path):
    log = open_log(tmp_path)
    for name in "xyz":
        log.append(entry(name))
    log.close()
    path = tmp_path / "tasks_s.jsonl"
    lines = path.read_bytes().splitlines(True)
    lines[2] = bytes(len(lines[2]) - 1) + b"\n"
    path.write_bytes(b"".join(lines))
    log = open_log(tmp_path)
    assert set(log.entries) == {"x", "z"} and b"\0" not in path.read_bytes()


@pytest.mark.parametrize("number", [0, 1, 2])
def test_any_other_damage_is_told(tmp_path, number):
    log = open_log(tmp_path)
    for name in "xyz":
        log.append(entry(name))
    log.close()
    path = tmp_path / "tasks_s.jsonl"
    lines = path.read_bytes().splitlines(True)
    lines[number] = lines[number].replace(b'"s', b'"S', 1)
    path.write_bytes(b"".join(lines))
    with pytest.raises(task_log.Damaged, match="line %d is not as it was written" % (number + 1)):
        open_log(tmp_path)


@pytest.mark.parametrize("path", ["../../victim", "/victim", "a/../../victim"])
def test_an_output_that_does_not_lie_in_the_output_folder_is_damage(tmp_path, path):
    """Somebody who can make sums may have written it; `prune`, clean and reset remove what is listed."""
    log = open_log(tmp_path)
    log.append(entry("x"))
    log.append(entry("y")._replace(outputs=((path, 1, "0" * 64),)))
    log.close()
    with pytest.raises(task_log.Damaged, match="does not lie in the output folder"):
        open_log(tmp_path)
    assert set(task_log.salvaged(str(tmp_path / "tasks_s.jsonl"), "s").entries) == {"x"}
    (tmp_path / "other").mkdir()
    log = open_log(tmp_path / "other")
    log.append(entry("z")._replace(outputs=(("a..b/\u00e9..", 1, "0" * 64),)))
    log.close()
    assert set(open_log(tmp_path / "other").entries) == {"z"}


def test_lines_that_a_crash_has_damaged_are_not_strange_and_others_that_no_run_has_sealed_are(tmp_path):
    log = task_log.TaskLog(str(tmp_path), "s")
    log.open(lambda path, data: (tmp_path / "tasks_s.jsonl").write_bytes(data))
    sealed = tmp_path / "sealed"
    sealed.write_bytes(log.append(task_log.Entry("a", "k", "ok", (("a.o", 1, "0" * 64),), {}, 1, 1, 1, "", "r/1")))
    log.close()
    with open(log.path, "ab") as file:
        file.write(bytes(40) + b"\n" + b'{"task":"b","key')
    assert task_log.strange_lines((tmp_path / "tasks_s.jsonl").read_bytes().splitlines(True), {"r/1": str(sealed)}, lambda run: False) == []
    sealed.write_bytes(b"")
    assert task_log.strange_lines((tmp_path / "tasks_s.jsonl").read_bytes().splitlines(True), {"r/1": str(sealed)}, lambda run: False) == [("a", "r/1", True)]


@pytest.mark.parametrize("change, is_strange", [
    ({"outputs": (("a.o", 1, "0" * 64),)}, False), ({"outputs": ()}, False), ({"outputs": (("a.o", 1, "2" * 64),)}, True), ({"error": "another"}, True)])
def test_of_a_file_that_is_gone_only_what_its_run_has_made_may_be_kept(tmp_path, change, is_strange):
    made = task_log.Entry("a", "k", "ok", (("a.o", 1, "0" * 64), ("a.p", 2, "1" * 64)), {}, 1, 1, 1, "", "r/1")
    log = task_log.TaskLog(str(tmp_path), "s")
    log.open(lambda path, data: (tmp_path / "tasks_s.jsonl").write_bytes(data))
    log.append(made._replace(status="kept", **change))
    log.close()
    sealed = tmp_path / "sealed"
    sealed.write_bytes(task_log.line_of(made))
    assert task_log.strange_lines((tmp_path / "tasks_s.jsonl").read_bytes().splitlines(True), {"r/1": str(sealed)}, lambda run: False) == ([("a", "r/1", True)] if is_strange else [])


def test_a_log_of_superseded_lines_is_written_anew(tmp_path):
    log = open_log(tmp_path)
    for number in range(task_log.MIN_DEAD_LINES + 5):
        log.append(entry("x", key=str(number)))
    log.append(entry("gone", "gone"))
    log.compact_if_due(store)
    assert log.lines == 2 and set(open_log(tmp_path).entries) == {"x"} and open_log(tmp_path).entries["x"].key == str(number)


def test_a_log_of_tasks_that_are_gone_is_written_anew(tmp_path):
    """With `prune` and names that never come again, a year of nights would else stay in it."""
    log = open_log(tmp_path)
    for number in range(task_log.MIN_DEAD_LINES // 2 + 1):
        log.append(entry(str(number)))
        log.append(entry(str(number), "gone"))
    log.append(entry("here"))
    log.compact_if_due(store)
    assert log.lines == 2 and set(open_log(tmp_path).entries) == {"here"}


def test_the_cache_comes_back_as_it_was_and_damaged_as_nothing(tmp_path):
    (tmp_path / "a").write_text("x")
    packed = task_files.signatures(str(tmp_path), ["a", "missing"])
    table = task_files.FileTable(["a", "missing"], packed, ["d" * 64, ""])
    data = task_files.save([table, task_files.FileTable()], {"boot": "b"})
    path = tmp_path / "cache"
    path.write_bytes(data)
    about, (first, second) = task_files.load(str(path))
    assert about["boot"] == "b" and (first.paths, first.packed, first.digests) == (table.paths, packed, table.digests) and second.paths == []
    assert first.digest_of("a", task_files.signature_at(packed, 0)) == "d" * 64 and first.digest_of("a", [0] * 5) == ""
    assert not first.is_unchanged(["a", "missing"], packed)         # one digest is not known
    for place in range(0, len(data), 7):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1:])
        broken = task_files.load(str(path))
        assert broken == ({}, []) or broken[0].get("sum") == about["sum"]       # a change in the head that tells of nothing else
        path.write_bytes(data[:place])
        assert task_files.load(str(path)) == ({}, [])


def test_later_entries_of_a_table_count(tmp_path):
    table = task_files.FileTable(["a"], task_files.signatures(str(tmp_path), ["a"]), ["1"])
    other = task_files.FileTable()
    other.add("a", [1, 2, 3, 4, 5], "2")
    assert table.joined(other).digest_of("a", [1, 2, 3, 4, 5]) == "2"


@pytest.mark.parametrize("blocks", [1, 2, 64])
@pytest.mark.parametrize("asked", [(0, 1, 2, 3, 4, 5, 6), (0, 1, 2), (), (1, 0), (0, 2, 4), (0, 1, 2, 3, 4, 5, 6, 9)], ids=str)
def test_many_files_are_looked_up_as_one(monkeypatch, blocks, asked):
    monkeypatch.setattr(task_files, "BLOCK", blocks)
    table = task_files.FileTable()
    for number in range(7):
        table.add("f%d" % number, [number] * 5, "" if number == 4 else "digest %d" % number)
    made = task_files.FileTable()
    made.add("f1", [10] * 5, "made 1")
    made.add("f3", [3] * 5, "made 3")
    paths = ["f%d" % number for number in asked]
    for known in (table, table.joined(made), made, task_files.FileTable()):
        for changed in (set(), {0}, {1, 3}, set(range(10))):
            packed = array("q", [number + 9 * (number in changed) for number in asked for _ in range(5)])
            wanted = [known.digest_of(path, task_files.signature_at(packed, place)) for place, path in enumerate(paths)]
            assert known.digests_of(paths, packed) == wanted


def test_a_log_of_many_lines_is_read_as_one_of_few(monkeypatch):
    entries = [task_log.Entry("in/%d" % (number % 7), "key %d" % number, "ok", (("o%d" % number, 1, "d"),), {}, 1, 1, 1, "", "r/1") for number in range(10)]
    data = task_log.header_of("s") + b"".join(task_log.line_of(one) for one in entries)

    def read(data):
        return task_log.read_log(io.BytesIO(data), "s")
    whole = read(data)
    assert whole[1:] == (11, len(data), False) and whole[0] == {one.task: one for one in entries}
    for lines in (1, 3, 10):
        monkeypatch.setattr(task_log, "BATCH_LINES", lines)
        assert read(data) == whole
        assert read(data + b"torn") == whole
        with pytest.raises(task_log.Damaged, match="line 11 is not"):
            read(data[:-20] + b"?" + data[-19:])
        with pytest.raises(task_log.Damaged, match="begins with"):
            read(task_log.line_of(entries[0]) + data)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="what a process has used is measured differently elsewhere")
@pytest.mark.parametrize("fork_server", [True, False])
def test_the_processor_time_of_all_tasks_is_added_up_and_the_largest_of_them_is_told(upper, fork_server):
    body = ("held = b'x' * (96 << 20 if inputs[0].endswith('a.txt') else 1)\n"
            "while time.process_time() < 0.3:\n    pass\nopen(os.path.join(out, os.path.basename(inputs[0])), 'w').close()\n")
    respec(upper, processor=upper.processor("burn", body), forkServer=fork_server)
    upper.ok("--run-id", "r", "--jobs", "1")
    found, = upper.json("state/metrics_r.json")["stages"]
    assert 0.8 <= found["cpuSec"] < 60 and found["maxRssBytes"] >= 96 << 20, found


def test_how_long_a_task_took_is_without_the_wait_for_room(upper):
    upper.write("bin/up.sh", "#!/bin/sh\nsleep 0.3\ntouch \"$PIPELINE_OUTPUT_DIR/${1##*/}\"\n", executable=True)
    upper.ok("--jobs", "1", "--run-id", "r")
    long_ms = [entry.duration_ms for entry in entries(upper).values()]
    whole_ms = upper.json("state/run_r.json")["stages"][0]["durationMs"]
    assert len(long_ms) == 3 and all(one >= 300 for one in long_ms) and sum(long_ms) < 1.5 * whole_ms, (long_ms, whole_ms)     # the next one starts while the last is entered


# --- files that go and come back ---------------------------------------------------------------------------------------

@pytest.mark.parametrize("prune", [False, True])
def test_what_was_made_of_a_file_that_was_gone_for_a_while_is_its_own_again(upper, prune):
    respec(upper, prune=prune)
    upper.ok()
    upper.path("in/b.txt").rename(upper.path("hold"))
    upper.ok()
    upper.path("hold").rename(upper.path("in/b.txt"))
    count(upper)
    upper.ok("--run-id", "back")
    assert count(upper) == (["b"] if prune else []) and entries(upper)["in/b.txt"].status == "ok"
    found, = upper.json("state/run_back.json")["stages"]
    assert (found["bytesOut"], found["tasks"]["outputs"]) == (30, 3), found
    upper.write("out/b.txt", "spoilt\n")
    upper.ok()
    assert count(upper) == ["b"] and outputs(upper)["b.txt"] == "LINE OF B\n"
    upper.ok("verify", "--outputs")


@pytest.mark.parametrize("act", ["spoil", "take"])
def test_what_was_not_whole_when_its_file_was_gone_is_made_anew_when_the_file_is_back(upper, act):
    upper.ok()
    upper.path("in/b.txt").rename(upper.path("hold"))
    if act == "spoil":
        upper.write("out/b.txt", "spoilt\n")
    else:
        upper.write("bin/up.sh", UPPER.replace("${1##*/}", "b.txt"), executable=True)
        upper.path("in/a.txt").unlink()
        upper.path("in/c.txt").rename(upper.path("in/x.txt"))
    upper.ok()
    assert entries(upper)["in/b.txt"].key == "" and entries(upper)["in/b.txt"].outputs == ()
    if act == "take":
        upper.path("in/x.txt").unlink()
        upper.path("out/b.txt").unlink()
    upper.path("hold").rename(upper.path("in/b.txt"))
    count(upper)
    upper.ok()
    assert count(upper) == ["b"] and outputs(upper)["b.txt"] == "LINE OF B\n"


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="names that differ in case are one file")
@pytest.mark.parametrize("case", ["prune", "keep", "failed and allowed"])
def test_a_name_that_differs_in_case_from_an_old_one_leaves_nothing_of_nobody(upper, case):
    for name in "bc":
        upper.path("in/%s.txt" % name).unlink()
    respec(upper, prune=case != "keep", maxFailedTasks=3)
    if case == "failed and allowed":
        upper.path("in/a.txt").rename(upper.path("in/A.txt"))
        upper.ok()
        upper.write("in/A.txt", "bad\n")
        upper.write("in/a.txt", "line of a\n")
        wanted = {"a.txt": "LINE OF A\n"}
    else:
        upper.ok()
        upper.path("in/a.txt").rename(upper.path("in/A.txt"))
        wanted = {"A.txt": "LINE OF A\n", **({"a.txt": "LINE OF A\n"} if case == "keep" else {})}
    upper.ok("--jobs", "1")
    recorded = {path for entry in entries(upper).values() if entry.status in task_log.GOOD for path, _, _ in entry.outputs}
    assert outputs(upper) == wanted and recorded == set(wanted)
    upper.ok("verify", "--outputs")


def test_prune_that_is_asked_for_later_removes_what_was_kept_whatever_the_cache_says(upper):
    upper.ok()
    upper.path("in/b.txt").unlink()
    upper.ok()
    upper.ok()
    respec(upper, prune=True)
    assert "1 file gone (in/b.txt)" in upper.ok("plan").out
    assert "1 file is gone: in/b.txt; outputs removed" in upper.ok().out and sorted(outputs(upper)) == ["a.txt", "c.txt"]
    assert "[SKIP] up" in upper.ok().out


@pytest.mark.parametrize("how", ["missing", "changed"])
def test_what_a_task_made_before_it_failed_and_its_file_went_is_looked_at_before_it_is_kept(upper, how):
    upper.ok()
    upper.write("in/b.txt", "bad\n")
    if how == "missing":
        upper.path("out/b.txt").unlink()
    else:
        upper.write("out/b.txt", "spoilt\n")
    assert upper.run().code == 1
    upper.path("in/b.txt").unlink()
    assert "but for what is not any more as it was made: b.txt" in upper.ok().out and "[SKIP] up" in upper.ok().out


@pytest.mark.parametrize("number", [10, 11])
def test_the_bytes_of_many_outputs_are_told_of_a_skipped_stage_and_of_one_that_a_killed_run_had_finished(upper, number):
    for one in range(number - 3):
        upper.write("in/%02d.txt" % one, "line of _\n")
    upper.write("bin/wait.sh", "#!/bin/sh\ntouch \"$PIPELINE_ROOT/waits\"\nexec sleep 600\n", executable=True)
    upper.spec(upper.stage, {"name": "waits", "processor": "bin/wait.sh", "outputDir": "waits.d"})
    with upper.start("--run-id", "killed") as process:
        wait_until(lambda: upper.exists("waits"))
        process.kill()
        process.communicate()
    upper.ok("--run-id", "skips", "--only", "up")
    for run in ("killed", "skips"):
        found = upper.json("state/run_%s.json" % run)["stages"][0]
        assert (found["stage"], found["bytesIn"], found["bytesOut"]) == ("up", 10 * number, 10 * number), found
    assert upper.json("state/metrics_skips.json")["stages"][0]["bytesOut"] == 10 * number
    upper.ok("verify", "--outputs")


# --- what tasks do to their folders, and errors while others are at work ----------------------------------------------

@pytest.mark.parametrize("fork_server", [True, False])
@pytest.mark.parametrize("act, why", [
    ("shutil.rmtree(out)", "not there any more"),
    ("shutil.rmtree(out); open(out, 'w').close()", "not there any more"),
    ("shutil.rmtree(out); os.symlink(os.environ['PIPELINE_ROOT'] + '/theirs', out)", "is a link")], ids=["removed", "a file", "a link"])
def test_a_task_that_spoils_its_own_folder_fails_alone_and_nothing_else_is_touched(upper, act, why, fork_server):
    upper.write("theirs/precious.txt", "precious")
    upper.write("theirs/.hid/more.txt", "more")
    script = upper.processor("spoil", "import shutil\nif os.environ['PIPELINE_TASK'] == 'in/a.txt':\n    %s\nelse:\n    open(out + '/' + os.path.basename(inputs[0]), 'w').write('made')\n" % act)
    respec(upper, processor=script, forkServer=fork_server)
    done = upper.run("--jobs", "1")
    assert done.code == 1 and "[FAIL] up in/a.txt: " in done.out and why in done.out, done
    assert outputs(upper) == {"b.txt": "made", "c.txt": "made"}
    assert upper.read("theirs/precious.txt") == "precious" and upper.read("theirs/.hid/more.txt") == "more"


@posix_only
@pytest.mark.parametrize("target, why", [
    ("out + '/c.txt'", "let it lead to a name beside it, not the whole path"), ("'../../../in/c.txt'", "let it lead to the whole path"),
    ("os.path.realpath(out + '/c.txt')", "let it lead to a name beside it, not the whole path"),
    ("'../' + os.path.basename(out) + '/c.txt'", "let it lead to one of its outputs"), ("'.data'", "let it lead to one of its outputs"),
    ("'sub/c.part'", "let it lead to one of its outputs"), ("'way/c.part'", "let it lead to one of its outputs"),
    ("os.path.basename(inputs[0])", ""), ("os.environ['PIPELINE_ROOT'] + '/in/c.txt'", ""), ("'./sub'", ""), ("'way/c.txt'", "")], ids=[
        "inside", "outside", "by another name", "back in", "no output", "none below", "none by a link", "beside", "whole", "a folder", "by a link"])
def test_a_link_that_would_lead_elsewhere_in_its_place_fails_its_task(upper, target, why):
    """The output folder is a link itself."""
    os.mkdir(str(upper.path("real")))
    os.symlink("real", str(upper.path("out")))
    respec(upper, processor=upper.processor("links", """
open(out + '/' + os.path.basename(inputs[0]), 'w').write('made')
if os.environ['PIPELINE_TASK'] == 'in/c.txt':
    os.mkdir(out + '/sub')
    os.symlink('sub', out + '/way')
    for name in ('.data', 'sub/c.part', 'sub/c.txt'):
        open(out + '/' + name, 'w').write('made')
    os.symlink(%s, out + '/latest')
""" % target))
    done = upper.run("--jobs", "1")
    if why:
        assert done.code == 1 and "[FAIL] up in/c.txt: output latest is a link to " in done.out and why in done.out, done
        assert outputs(upper) == {"a.txt": "made", "b.txt": "made"}
    else:
        assert done.code == 0 and os.path.exists(str(upper.path("out/latest"))), done


FULL = """
import atexit, os, runpy, sys
real, name = os.replace, sys.argv[1]
def replace(source, target, **more):
    if os.fspath(target).endswith(name):
        raise OSError(28, "No space left on device", target)
    return real(source, target, **more)
os.replace = replace
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@posix_only
@pytest.mark.parametrize("jobs", ["1", "2"])
@pytest.mark.parametrize("fork_server", [True, False])
def test_a_full_disk_for_one_task_lets_those_at_work_end_and_be_recorded(upper, jobs, fork_server):
    script = upper.processor("slow", "import time\nif os.environ['PIPELINE_TASK'] != 'in/a.txt':\n    time.sleep(0.3)\nopen(out + '/' + os.path.basename(inputs[0]), 'w').write('made')\n")
    respec(upper, processor=script, forkServer=fork_server)
    argv = [sys.executable, "-c", FULL, "/out/a.txt", str(RUNNER), "--pipeline", str(upper.path("pipeline.json")), "--jobs", jobs]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=120)
    assert done.returncode == 5 and b"Traceback" not in done.stderr and b"No space left" in done.stderr, done
    begun = {"in/b.txt"} if jobs == "2" or fork_server else set()
    assert begun <= {name for name, entry in entries(upper).items() if entry.status == "ok"}
    assert "3 tasks" in upper.ok().out and outputs(upper) == {"%s.txt" % name: "made" for name in "abc"}


SLOW_HASH = """
import os, runpy, sys, time
sys.path.insert(0, os.path.dirname(sys.argv[1]))
import file_digests
real = file_digests.output_content
def output_content(path, *heed):
    if os.path.basename(path) == "a.txt":
        time.sleep(1.5)
    return real(path, *heed)
file_digests.output_content = output_content
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_what_the_runner_spends_on_a_large_output_counts_for_no_time_limit(upper):
    script = upper.processor("talk", "print('x' * 400000)\nopen(out + '/' + os.path.basename(inputs[0]), 'w').write('made')\n")
    respec(upper, processor=script, timeoutSec=1)
    done = subprocess.run([sys.executable, "-c", SLOW_HASH, str(RUNNER), "--pipeline", str(upper.path("pipeline.json")), "--jobs", "1"],
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=120)
    assert done.returncode == 0 and b"timeout" not in done.stdout, done


def test_a_log_with_a_second_header_is_damaged(upper):
    upper.ok()
    path = upper.path("state/tasks_up.jsonl")
    data = path.read_bytes()
    path.write_bytes(data[:data.index(b"\n") + 1] + data)
    upper.write("in/d.txt", "new\n")
    done = upper.run()
    assert done.code == 5 and "tells of no task" in done.err + done.out and "Traceback" not in done.err, done
    assert "1 to do, 3 up to date" in upper.ok().out


@posix_only
@pytest.mark.parametrize("declared", [None, ["x.rejects.jsonl"]])
def test_the_header_of_an_input_that_is_called_like_rejects_stays_once(upper, declared):
    text = "header\nl1\nl2\nl3\n"
    upper.write("in/a.rejects.jsonl", text)
    stage = {"name": "cut", "processor": "/bin/cat", "inputs": ["in/*.jsonl"], "outputDir": "out", "chunks": {"bytes": 3, "filter": True, "headerLines": 1}}
    upper.spec(dict(stage, outputs=declared) if declared else stage)
    upper.ok()
    assert outputs(upper) == {declared[0] if declared else "a.rejects.jsonl": text}
    upper.processor("copy", "import processor_kit\nprocessor_kit.lines(lambda line: line, processor_kit.output_name('{name}'))\n")
    upper.spec(dict(stage, processor="bin/copy.py", outputDir="kit", chunks={"bytes": 3, "headerLines": 1}))
    upper.ok()
    assert upper.read("kit/a.rejects.jsonl") == text


@posix_only
def test_each_output_of_chunks_keeps_a_header_though_another_input_has_more_of_it(upper):
    upper.write("in/a.txt", "Name")
    upper.write("in/b.txt", "name\nx\n")
    upper.write("in/c.txt", "")
    upper.spec({"name": "cut", "processor": "/bin/cat", "inputs": ["in/*.txt"], "outputDir": "out", "chunks": {"bytes": 1, "filter": True, "headerLines": 1}})
    upper.ok()
    assert outputs(upper) == {"a.txt": "Name", "b.txt": "name\nx\n", "c.txt": ""}


# As long as there is a file `glitch`, it does otherwise with the chunks that begin so.
GLITCH = """
import os
from processor_kit import lines, output_name
if os.path.exists("glitch") and os.environ["PIPELINE_CHUNK_START"] in %r:
    lines(lambda line: %s, %s)
else:
    lines(str.upper, output_name("{name}"))
"""


@pytest.mark.parametrize("checkpoint", [False, True], ids=["", "checkpoint"])
@pytest.mark.parametrize("header_lines, starts, line, name, why, again", [
    (1, ["4"], "None", "'a.txt'", "the output has 0 of the 1 header lines", 1),
    (1, ["4"], "'x' + line", "'a.txt'", "its first 1 lines are not those of the chunks before", 2),     # which are right, nobody knows
    (0, ["0", "2", "4", "6"], "line", "'other'", "declared output out/a.txt was not made", 4),
], ids=["short", "another", "undeclared"])
def test_chunks_whose_outputs_cannot_be_joined_are_done_again_by_the_next_run(project, checkpoint, header_lines, starts, line, name, why, again):
    project.write("in/a.txt", "h\na\nb\nc\n")
    project.write("bin/glitch.py", GLITCH % (starts, line, name))
    project.write("glitch", "")
    project.spec({"name": "cut", "processor": "bin/glitch.py", "inputs": ["in/a.txt"], "outputDir": "out", "outputs": ["a.txt"],
                  "chunks": dict({"bytes": 1}, **({"headerLines": 1} if header_lines else {})), "checkpoint": {"enabled": checkpoint}})
    done = project.run()
    assert done.code == 1 and why in done.out, done
    project.path("glitch").unlink()
    assert "RUN     cut (last run failed: " in project.ok("plan").out
    done = project.ok()
    assert " %d to do, " % again in done.out and "[RESUME]" not in done.out and project.read("out/a.txt") == "H\nA\nB\nC\n", done


def test_a_processor_may_use_the_kit_through_a_module_of_its_own(upper):
    upper.write("bin/by.py", "import helper\nhelper.work()\n")
    upper.write("bin/helper.py", "from processor_kit import lines, output_name\ndef work():\n    lines(str.upper, output_name('{name}'))\n")
    upper.spec({"name": "up", "processor": "bin/by.py", "inputs": ["in/a.txt"], "outputDir": "out", "chunks": {"bytes": 1}})
    upper.ok()
    upper.write("bin/helper.py", "def work():\n    pass\n")
    assert "bin/by.py does not look at PIPELINE_CHUNK_START" in upper.run().out


@pytest.mark.skipif(sys.platform == "win32", reason="how long a name may be")
def test_the_file_for_a_filters_output_is_named_where_it_cannot_be_made(upper):
    name = "x" * 300
    upper.spec({"name": "up", "processor": "/bin/cat", "inputs": ["in/a.txt"], "outputDir": "out", "outputs": [name], "chunks": {"bytes": 4096, "filter": True}})
    done = upper.run()
    assert done.code == 1 and re.search("cannot start /bin/cat: out/.up.tasks/[0-9a-f]+/%s: File name too long; " % name, done.out), done


@posix_only
def test_kept_chunks_go_when_the_stage_is_none_of_chunks_any_more(upper):
    upper.spec({"name": "up", "processor": "/bin/cat", "inputs": ["in/*.txt"], "outputDir": "out", "chunks": {"bytes": 4096, "filter": True, "keepChunks": True}})
    upper.ok()
    assert upper.exists("out/.up.tasks") and upper.exists("state/tasks_up.jsonl")
    upper.spec({"name": "up", "processor": upper.processor("all", "open(os.path.join(out, 'all'), 'w').close()\n"), "inputs": ["in/*.txt"], "outputDir": "out"})
    upper.ok()
    assert not upper.exists("out/.up.tasks") and not upper.exists("state/tasks_up.jsonl")
    assert "[SKIP] up" in upper.ok().out


@posix_only
@pytest.mark.parametrize("where", ["old", "linked", "deeper"])
def test_kept_chunks_go_when_the_output_folder_is_another(upper, where):
    """Nothing uses them any more; what lies behind a link may be somebody else's."""
    kept = {"name": "up", "processor": "/bin/cat", "inputs": ["in/*.txt"], "outputDir": "top/old", "chunks": {"bytes": 4096, "filter": True, "keepChunks": True}}
    upper.spec(kept)
    upper.ok()
    assert os.listdir(upper.path("top/old/.up.tasks"))
    upper.write("top/old/.other.tasks/x", "of another stage")
    if where == "linked":
        upper.path("top").rename(upper.path("elsewhere"))
        upper.path("top").symlink_to("elsewhere")
    upper.spec(dict(kept, outputDir="top/old/new" if where == "deeper" else "new"))
    done = upper.ok()
    assert "[NOTE] up: its outputDir was top/old: what it made there is left there\n" in done.out, done
    assert upper.exists("top/old/.up.tasks") == (where == "linked") and upper.exists("top/old/.other.tasks/x") and upper.exists("top/old/a.txt")
    assert os.listdir(upper.path("top/old/new/.up.tasks" if where == "deeper" else "new/.up.tasks"))
    assert "[SKIP] up" in upper.ok().out


@posix_only
def test_kept_chunks_that_cannot_be_removed_from_the_old_output_folder_are_named(upper):
    kept = {"name": "up", "processor": "/bin/cat", "inputs": ["in/*.txt"], "outputDir": "old", "chunks": {"bytes": 4096, "filter": True, "keepChunks": True}}
    upper.spec(kept)
    upper.ok()
    upper.spec(dict(kept, outputDir="new"))
    upper.path("old").chmod(0o555)
    try:
        done = run_without_might(upper)
    finally:
        upper.path("old").chmod(0o755)
    assert done.returncode == 0 and "[NOTE] up: old/.up.tasks is of no use any more, and cannot be removed; remove it: " in done.stdout, done.stdout


def test_the_damaged_log_of_a_stage_is_no_fault_of_one_before_it_in_the_same_folder(upper):
    """Of so many outputs only the log tells; the stage whose log it is comes later, and sets it aside."""
    for number in range(task_look.LISTED_OUTPUTS + 1):
        upper.write("in/f%d.txt" % number, "x\n")
    upper.write("bin/one.sh", '#!/bin/sh\ncp in/f0.txt "$PIPELINE_OUTPUT_DIR/one.dat"\n', executable=True)
    upper.write("bin/each.sh", '#!/bin/sh\ncp "$PIPELINE_TASK" "$PIPELINE_OUTPUT_DIR/"\n', executable=True)
    upper.spec({"name": "one", "processor": "bin/one.sh", "inputs": ["in/f0.txt"], "outputDir": "out"}, dict(upper.stage, processor="bin/each.sh"))
    upper.ok()
    log = upper.path("state/tasks_up.jsonl")
    data = log.read_bytes()
    log.write_bytes(data[:len(data) // 2] + b"#" + data[len(data) // 2 + 1:])
    upper.write("out/one.dat", "damaged\n")
    done = upper.run()
    assert done.code == 5 and "[DONE] one" in done.out and "state/tasks_up.jsonl is damaged" in done.err and upper.read("out/one.dat") == "x\n", done
    done = upper.ok()
    assert "[SKIP] one" in done.out and "[DONE] up" in done.out, done


@posix_only
def test_a_damaged_log_of_chunks_is_set_aside_as_that_of_files(upper):
    upper.spec({"name": "cut", "processor": "/bin/cat", "inputs": ["in/*.txt"], "outputDir": "out", "chunks": {"bytes": 4096, "filter": True, "keepChunks": True}})
    upper.ok()
    path = upper.path("state/tasks_cut.jsonl")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    upper.write("in/a.txt", "line of a\nmore\n")
    done = upper.run()
    assert done.code == 5 and "is damaged" in done.err + done.out and "Traceback" not in done.err, done
    upper.ok()
    assert outputs(upper)["a.txt"] == "line of a\nmore\n"


# --- after the task log was lost -------------------------------------------------------------------------------------

@pytest.mark.parametrize("files", [3, 15])
@pytest.mark.parametrize("prune", [False, True])
def test_what_no_task_makes_any_more_is_not_forgotten_with_the_task_log(upper, files, prune):
    """A power cut takes the log, or a restore; the next stage would read what the gone file has left."""
    for number in range(files - 3):
        upper.write("in/%d.txt" % number, "line\n")
    respec(upper, prune=prune)
    upper.ok("--run-id", "r1")
    upper.ok()                          # now the digests of all outputs are kept
    upper.write("out/readme.md", "somebody's own")
    for name in ("in/a.txt", "state/tasks_up.jsonl"):
        upper.path(name).unlink()
    done = upper.ok("--run-id", "r2")
    if prune:
        assert "[NOTE] up: lines of its task log were lost; removed what no task makes any more: out/a.txt\n" in done.out, done
        assert "[NOTE] up: lines of its task log were lost; of no task, and left there: out/readme.md\n" in done.out
    else:
        assert "[NOTE] up: lines of its task log were lost; of no task, and left there: out/a.txt, out/readme.md\n" in done.out, done
    assert ("a.txt" in outputs(upper)) is not prune and "readme.md" in outputs(upper) and len(outputs(upper)) == files + (0 if prune else 1)
    assert "lost" not in upper.ok().out


def test_after_a_loss_nothing_is_removed_that_was_changed_or_while_a_task_fails(upper):
    respec(upper, prune=True)
    upper.ok("--run-id", "r1")
    upper.write("out/a.txt", "changed by hand")
    for name in ("in/a.txt", "in/c.txt", "state/tasks_up.jsonl"):
        upper.path(name).unlink()
    upper.write("in/b.txt", "bad\n")
    assert "of no task, and left there: out/a.txt, out/b.txt, out/c.txt" in upper.run("--run-id", "r2").out
    assert sorted(outputs(upper)) == ["a.txt", "b.txt", "c.txt"]


@posix_only
def test_a_stage_that_was_cut_short_counts_what_it_did_and_nothing_else(upper):
    """Neither attempts that waited for a place, nor what an earlier run has counted of the files."""
    body = ("task = os.environ['PIPELINE_TASK']\nopen(out + '/' + os.path.basename(task), 'w').write('x')\n"
            "with open(os.environ['PIPELINE_COUNTS_FILE'], 'w') as file:\n    json.dump({'read': 1}, file)\n"
            "while os.path.exists('hold') and task == 'in/b.txt':\n    open('held', 'w').close()\n    time.sleep(0.01)\n")
    respec(upper, processor=upper.processor("held", body))
    upper.ok("--run-id", "r1")
    assert upper.json("state/metrics_r1.json")["stages"][0]["counts"] == {"read": 3}
    upper.write("hold", "")
    with upper.start("--run-id", "r2", "--force", "up", "--jobs", "1") as process:
        wait_until(lambda: upper.exists("held"))
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    found, = upper.json("state/metrics_r2.json")["stages"]
    assert (found["attempts"], found["tasks"]["ok"], found["counts"]) == (2, 1, {"read": 1}), found


@posix_only
@pytest.mark.skipif(not os.path.isdir("/dev/shm") or os.stat("/dev/shm").st_dev == os.stat("/tmp").st_dev, reason="wants a second file system")
def test_an_output_on_another_file_system_fails_its_task_and_no_more(upper, tmp_path_factory):
    with tempfile.TemporaryDirectory(dir="/dev/shm") as elsewhere:
        upper.path("out").mkdir()
        upper.path("out/sub").symlink_to(elsewhere)
        respec(upper, processor=upper.processor("deep", "os.makedirs(out + '/sub', exist_ok=True)\nopen(out + '/sub/' + os.path.basename(inputs[0]), 'w').write('x')\n"))
        upper.spec(upper.stage, {"name": "other", "processor": "bin/stage_copy.py", "inputs": ["in/a.txt"], "outputDir": "other"})
        done = upper.run("--keep-going")
        assert done.code == 1 and "[FAIL] up in/a.txt: out/sub/a.txt would lie on another file system than out, and an output is renamed into its place; " in done.out, done
        assert "[DONE] other" in done.out and os.listdir(elsewhere) == []


@posix_only
@pytest.mark.parametrize("keep", [False, True])
def test_the_joined_output_of_an_input_that_is_gone_is_told_of(upper, keep):
    upper.spec({"name": "up", "processor": "/usr/bin/tr", "args": ["a-z", "A-Z"], "inputs": ["in/*.txt"], "outputDir": "out", "chunks": {"bytes": 1000, "filter": True, "keepChunks": keep}})
    upper.ok("--run-id", "r1")
    upper.path("in/b.txt").unlink()
    assert "[NOTE] up: not remade by this run, still recorded: b.txt\n" in upper.ok("--run-id", "r2").out
    assert sorted(outputs(upper)) == ["a.txt", "b.txt", "c.txt"]


SORTING = """from processor_kit import Reject, lines, output_name

def sort(line):
    if line.startswith("bad"):
        raise Reject("bad")
    return line

lines(sort, output_name("%s"))
lines(sort, output_name("%s"))
"""


@pytest.mark.parametrize("more", [{"inputs": ["in/*.txt"]}, {"inputs": ["in/*.txt"], "chunks": {"bytes": 8}}, {"inputs": ["in/*.txt"], "chunks": {"bytes": 8, "keepChunks": True}}],
                         ids=["whole", "chunks", "kept"])
def test_what_was_set_aside_goes_when_the_input_is_corrected(upper, more):
    """With chunks, too: a stage that reads the rejects would deliver the corrected record for ever."""
    upper.write("bin/sort.py", SORTING % ("all", "sub/all"))
    upper.write("in/a.txt", "one\ntwo\nbad\nthree\n")
    upper.spec(dict(more, name="up", processor="bin/sort.py", outputDir="out"))
    upper.ok()
    names = {"all", "all.rejects.jsonl", "sub/all", "sub/all.rejects.jsonl"}
    assert {one["path"] for one in upper.json("state/stage_up.json")["outputs"]} == names
    upper.write("out/other.rejects.jsonl", "of nobody")
    upper.write("in/a.txt", "one\ntwo\nfixed\nthree\n")
    done = upper.ok()
    assert "still recorded" not in done.out and {one["path"] for one in upper.json("state/stage_up.json")["outputs"]} == {"all", "sub/all"}, done
    assert sorted(os.listdir(upper.path("out/sub"))) == ["all"] and {name for name in os.listdir(upper.path("out")) if not name.startswith(".")} == {"sub", "all", "other.rejects.jsonl"}
    assert "[SKIP] up" in upper.ok().out
    upper.ok("verify", "--outputs")


@pytest.mark.parametrize("more", [{"forEach": "in/*.txt"}, {"inputs": ["in/*.txt"], "chunks": {"bytes": 8}}, {"inputs": ["in/*.txt"], "chunks": {"bytes": 8, "keepChunks": True}}],
                         ids=["forEach", "chunks", "kept"])
def test_what_was_set_aside_of_another_input_stays(upper, more):
    """With its output: where the input is as it was, or is gone."""
    upper.write("bin/sort.py", SORTING % ("{name}.o", "{name}.p"))
    for name in "abc":
        upper.write("in/%s.txt" % name, "one\ntwo\nbad\nthree\n")
    upper.spec(dict(more, name="up", processor="bin/sort.py", outputDir="out"))
    upper.ok()
    rejects = {"%s.txt.%s.rejects.jsonl" % (name, kind) for name in "abc" for kind in "op"}
    assert rejects < set(outputs(upper))
    upper.write("in/a.txt", "one\ntwo\nfixed\nthree\n")
    upper.path("in/c.txt").unlink()
    upper.ok()
    found = outputs(upper)
    assert {name for name in found if name.endswith(".jsonl")} == {name for name in rejects if name[0] != "a"}
    assert found["a.txt.o"] == found["a.txt.p"] == "one\ntwo\nfixed\nthree\n" and found["c.txt.o"] == "one\ntwo\nthree\n"
    assert "[SKIP] up" in upper.ok().out
    upper.ok("verify", "--outputs")


def test_what_another_stage_calls_like_rejects_is_not_taken_for_what_was_set_aside(upper):
    upper.write("bin/sort.py", SORTING % ("all", "sub/all"))
    upper.spec({"name": "up", "processor": "bin/sort.py", "inputs": ["in/*.txt"], "outputDir": "out", "outputs": ["all", "sub/all"], "chunks": {"bytes": 8}},
               {"name": "next", "processor": upper.processor("next", "open(out + '/all.rejects.jsonl', 'w').write('of next')\n"), "outputDir": "out", "outputs": ["all.rejects.jsonl"]})
    upper.ok()
    upper.write("in/a.txt", "another\n")
    upper.ok()
    assert upper.read("out/all.rejects.jsonl") == "of next"


@posix_only
def test_what_chunks_copied_is_not_taken_for_what_was_set_aside(upper):
    """It is the joined output of an input that is gone."""
    upper.write("bin/copy.py", "import processor_kit\nprocessor_kit.copy_files()\n")
    upper.write("in/a.txt.rejects.jsonl", "{}\n")
    upper.spec({"name": "up", "processor": "bin/copy.py", "inputs": ["in/a*"], "outputDir": "out", "chunks": {"bytes": 8}})
    upper.ok()
    upper.path("in/a.txt.rejects.jsonl").unlink()
    assert "[NOTE] up: not remade by this run, still recorded: a.txt.rejects.jsonl\n" in upper.ok().out
    assert set(outputs(upper)) == {"a.txt", "a.txt.rejects.jsonl"}


@pytest.mark.parametrize("encoding, made", [(None, b"GR\xfc\xdfE N\xc3\x84CHTE"), ("latin-1", b"GR\xdcSSE N\xc3\xa4CHTE")])
def test_a_filter_in_python_that_reads_text_changes_no_bytes_that_are_not_utf_8(project, encoding, made):
    project.write("in/a.txt", b"gr\xfc\xdfe n\xc3\xa4chte")
    project.spec({"processor": project.processor("p", "sys.stdout.write(sys.stdin.read().upper())\n"), "inputs": ["in/a.txt"], "outputDir": "out",
                  "env": {"PYTHONIOENCODING": encoding} if encoding else {}, "chunks": {"bytes": 100, "filter": True}})
    project.ok()
    assert project.path("out/a.txt").read_bytes() == made


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script")
@pytest.mark.parametrize("does, why", [
    ('rm -f "$PIPELINE_OUTPUT_DIR"/*', "a.txt, which takes its standard output, is not there any more"),
    ('rm -rf "$PIPELINE_OUTPUT_DIR"', "a.txt, which takes its standard output, is not there any more"),
    ('mv "$PIPELINE_OUTPUT_DIR"/a.txt "$PIPELINE_OUTPUT_DIR"/b.txt', "a.txt, which takes its standard output, is not there any more"),
    ('mkfifo "$PIPELINE_OUTPUT_DIR"/f', "output f is no regular file"),
    ('ln -s a.txt "$PIPELINE_OUTPUT_DIR"/f', "output f is no regular file")], ids=["removed", "with its folder", "renamed", "pipe", "link"])
def test_a_filter_that_lays_hands_on_its_output_fails_its_chunk(project, does, why):
    """Its lines would be missing in the joined output, or a pipe would be read for ever."""
    project.write("in/a.txt", "one\ntwo\nthree\n")
    body = '#!/bin/sh\nx=$(cat); echo "$x"; case $x in two) %s;; esac\n'
    project.write("bin/p.sh", body % does, executable=True)
    project.spec({"processor": "bin/p.sh", "inputs": ["in/a.txt"], "outputDir": "out", "chunks": {"bytes": 4, "filter": True}})
    done = project.run()
    assert done.code == 1 and why in done.out and not project.exists("out/a.txt"), done
    project.write("bin/p.sh", body % "true", executable=True)
    project.ok()
    assert project.read("out/a.txt") == "one\ntwo\nthree\n"


@pytest.mark.parametrize("does", ["shutil.rmtree(out)", "os.rename(out, out + '2'), os.symlink(out + '2', out)"], ids=["removed", "a link"])
def test_a_chunk_whose_folder_is_gone_is_not_taken_for_one_without_lines(project, does):
    project.write("in/a.txt", "one\ntwo\nthree\n")
    body = ("import processor_kit, shutil\nprocessor_kit.lines(str.upper, processor_kit.output_name('{name}'))\n"
            "if open(out + '/a.txt').read().startswith('TWO'):\n    %s\n")
    project.spec({"processor": project.processor("p", body % does), "inputs": ["in/a.txt"], "outputDir": "out", "chunks": {"bytes": 4}})
    done = project.run()
    assert done.code == 1 and "its folder for outputs is not there any more, or is a link" in done.out and not project.exists("out/a.txt"), done
    project.processor("p", body % "pass")
    project.ok()
    assert project.read("out/a.txt") == "ONE\nTWO\nTHREE\n"


# --- a stage that is done otherwise than before

MANY = 11           # more outputs than a record lists


def make_many(upper):
    for number in range(MANY):
        upper.write("in/%02d.txt" % number, "x%d\n" % number)
    upper.spec(dict(upper.stage, prune=True))
    upper.ok()


def as_plain(upper, body, **more):
    upper.processor("plain", body)
    upper.spec(dict({name: value for name, value in upper.stage.items() if name not in ("forEach", "prune")}, inputs=["in/*.txt"], processor="bin/plain.py", **more))


def test_what_was_made_before_a_failure_is_the_stages_as_its_log_has_it(upper):
    """The record of the run that failed lists what the run before has made."""
    upper.ok()
    upper.write("in/a.txt", "another line\n")
    upper.write("in/d.txt", "new\n")
    upper.write("in/e.txt", "bad\n")
    assert upper.run().code == 1 and len(upper.json("state/stage_up.json")["outputs"]) == 3
    assert "outputs: 4 recorded, " in upper.ok("explain", "up").out
    other = upper.processor("other", "open(out + '/d.txt', 'a').close()\nos.utime(out + '/d.txt', (1, 1))\n")
    upper.spec(upper.stage, {"name": "other", "processor": other, "outputDir": "out"})
    assert "changed out/d.txt, which belongs to stage up" in upper.run("--only", "other").out
    found = upper.ok("clean", "up").out
    assert all("would remove out/%s.txt (" % name in found for name in "abcd") and "kept" not in found, found


def test_what_a_stage_made_before_it_had_tasks_is_known_while_these_have_not_ended_well(upper):
    as_plain(upper, "open(out + '/all', 'w').write('made')\n")
    upper.ok()
    upper.write("in/e.txt", "bad\n")
    upper.spec(upper.stage)
    assert upper.run().code == 1
    found = upper.ok("clean", "up").out
    assert "would remove out/all (" in found and "would remove out/a.txt (" in found, found


def test_what_tasks_made_is_named_once_the_stage_has_none_any_more(upper):
    make_many(upper)
    as_plain(upper, "open(os.path.join(out, 'all'), 'w').close()\n")
    assert [one["state"] for one in json.loads(upper.ok("explain", "up", "--json").out)["outputs"]] == ["notVerified"] * (MANY + 3)
    done = upper.ok()
    assert "[NOTE] up: not remade by this run, still recorded: 00.txt, 01.txt, 02.txt, 03.txt, 04.txt and 9 more\n" in done.out, done
    assert len(upper.json("state/stage_up.json")["outputs"]) == MANY + 4
    upper.path("out/10.txt").unlink()
    assert "output 10.txt missing" in upper.ok("plan").out


def test_what_a_task_log_says_counts_only_if_the_record_vouches_for_it(upper):
    make_many(upper)
    old = upper.read("state/tasks_up.jsonl")
    upper.write("in/new.txt", "x\n")
    upper.ok()
    upper.write("state/tasks_up.jsonl", old)
    as_plain(upper, "open(os.path.join(out, 'all'), 'w').close()\n")
    assert "still recorded" not in upper.ok().out


def test_outputs_that_are_in_the_log_of_former_tasks_only_are_not_accepted(upper):
    make_many(upper)
    as_plain(upper, "pass")
    upper.path("out/00.txt").unlink()
    done = upper.run("accept", "up", "--reason", "same")
    assert done.code == 2 and "accept up: it had forEach when its outputs were made, and they are recorded of its tasks only; run it" in done.err, done


@pytest.mark.parametrize("chunks_fail", [False, True])
def test_a_stage_of_chunks_that_becomes_one_of_files(upper, chunks_fail):
    """The log of chunks, and what they made, must not pass for that of files."""
    make_many(upper)
    body = "assert os.environ.get('PIPELINE_CHUNK_START')\n" + ("sys.exit(3)\n" if chunks_fail else "open(os.path.join(out, 'all'), 'w').write('x')\n")
    as_plain(upper, body, chunks={"bytes": 1000})
    assert upper.run().code == (1 if chunks_fail else 0)
    upper.path("in/10.txt").unlink()
    upper.spec(dict(upper.stage, prune=True))
    done = upper.ok()
    left = "10.txt" if chunks_fail else "10.txt, all"
    assert "gone" not in done.out and "[NOTE] up: made before the stage had tasks, and recorded no more: %s\n" % left in done.out, done
    assert "#" not in upper.read("state/tasks_up.jsonl") and "[SKIP] up" in upper.ok().out


@pytest.mark.parametrize("more", [{}, {"chunks": {"bytes": 1000}}])
def test_what_was_spoilt_of_former_tasks_is_undone_and_not_sealed_as_good(upper, more):
    make_many(upper)
    upper.write("out/00.txt", "spoilt")
    as_plain(upper, "assert not %r or os.environ['PIPELINE_CHUNK_START']\nopen(os.path.join(out, 'all'), 'w').close()\n" % bool(more), **more)
    done = upper.ok()
    assert "[NOTE] up: not what was recorded: removed 00.txt; run " in done.out and not upper.exists("out/00.txt"), done
    assert len(upper.json("state/stage_up.json")["outputs"]) == MANY + 3
    upper.ok("verify", "--outputs")


def test_what_tasks_made_before_one_failed_is_known_to_the_stage_that_follows(upper):
    make_many(upper)
    upper.write("in/00.txt", "fail\n")
    upper.write("bin/up.sh", "#!/bin/sh\ncase $1 in *00*) exit 4;; esac\n" + UPPER.partition("\n")[2], executable=True)
    assert upper.run().code == 1
    as_plain(upper, "for name in sorted(os.listdir(out)):\n    if name.endswith('.txt'):\n        open(os.path.join(out, name), 'a').write('tail')\nsys.exit(os.path.exists('fail'))\n")
    upper.write("fail", "")
    assert upper.run().code == 1
    upper.path("fail").unlink()
    upper.ok()
    assert upper.read("out/01.txt") == "X1\ntail"
