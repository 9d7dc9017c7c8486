"""onFailure and onSuccess: when they run, what they get, and that nothing they do changes the run."""
from __future__ import annotations

import os
import subprocess
import sys

import process_table
import pytest

# Writes what it was given beside the pipeline file.
ALARM = """import json, os, sys
record = json.loads(sys.stdin.buffer.read().decode("utf-8"))
names = ("PIPELINE_RUN_ID", "PIPELINE_RUN_STATE", "PIPELINE_ROOT", "PIPELINE_STAGE_NAME")
seen = {"args": sys.argv[1:], "record": record, "env": {name: os.environ.get(name) for name in names}, "cwd": os.getcwd(), "secret": os.environ.get("SSH_AUTH_SOCK")}
with open("alarm-%s.json" % sys.argv[1], "w", encoding="utf-8") as file:
    json.dump(seen, file)
print("said something")
"""


def with_alarms(project, *stages, **top):
    project.write("bin/alarm.py", ALARM)
    project.spec(*stages, **dict({"onFailure": ["bin/alarm.py", "bad", "two words"], "onSuccess": ["bin/alarm.py", "good"]}, **top))


def copying(project):
    project.write("data/in.txt", "x")
    return {"processor": "bin/stage_copy.py", "inputs": ["data/in.txt"]}


def test_after_a_success_with_the_sealed_record(project):
    with_alarms(project, copying(project))
    done = project.ok("--run-id", "r", env={"SSH_AUTH_SOCK": "/x"})
    seen = project.json("alarm-good.json")
    assert seen["record"] == project.json("state/run_r.json") and seen["record"]["runHash"] and "[NOTE]" not in done.out
    assert seen["args"] == ["good"] and seen["secret"] is None and os.path.samefile(seen["cwd"], str(project.root))
    assert seen["env"] == {"PIPELINE_RUN_ID": "r", "PIPELINE_RUN_STATE": "completed", "PIPELINE_ROOT": str(project.root), "PIPELINE_STAGE_NAME": None}
    assert project.read("state/logs/r/onSuccess.log") == "said something\n" and not project.exists("alarm-bad.json")
    project.ok("verify")


def test_after_a_run_that_started_no_processor_too_and_not_after_plan_and_validate(project):
    with_alarms(project, copying(project))
    project.ok()
    project.path("alarm-good.json").unlink()
    project.ok("plan")
    project.ok("validate")
    assert not project.exists("alarm-good.json")
    done = project.ok("--run-id", "again")
    assert "[SKIP] s1" in done.out and project.json("alarm-good.json")["record"]["runId"] == "again"


def test_after_a_failure_and_after_one_before_any_work(project):
    with_alarms(project, {"processor": project.processor("bad", "sys.exit(3)\n")})
    assert project.run("--run-id", "r").code == 1
    seen = project.json("alarm-bad.json")
    assert seen["args"] == ["bad", "two words"] and seen["env"]["PIPELINE_RUN_STATE"] == "failed" and seen["record"] == project.json("state/run_r.json")
    project.write("state/stage_s1.json", "{")
    assert project.run("--run-id", "q").code == 5
    seen = project.json("alarm-bad.json")
    assert (seen["record"]["runId"], seen["record"]["state"]) == ("q", "failed")


def test_not_after_a_run_that_waits_as_planned(project):
    with_alarms(project, dict(copying(project), settleSec=3600))
    assert project.run().code == 7 and not project.exists("alarm-bad.json") and not project.exists("alarm-good.json")


@pytest.mark.skipif(os.name == "nt", reason="os.kill() ends a process there, which cannot tell of it any more")
def test_after_a_signal(project):
    with_alarms(project, {"processor": project.processor("kills", "import signal\nos.kill(os.getppid(), signal.SIGTERM)\nwhile True:\n    time.sleep(1)\n"), "graceSec": 0})
    assert project.run("--run-id", "r").code == 143
    assert project.json("alarm-bad.json")["env"]["PIPELINE_RUN_STATE"] == "interrupted"


def test_one_that_fails_changes_nothing_and_is_one_line(project):
    with_alarms(project, copying(project), onSuccess=["bin/alarm.py", "good"])
    project.write("bin/alarm.py", "import sys\nsys.exit(9)\n")
    done = project.ok("--run-id", "r")
    assert [line for line in done.out.splitlines() if line.startswith("[NOTE]")] == [
        "[NOTE] onSuccess: exit code 9; its output: state/logs/r/onSuccess.log; the run stays as it is"]
    assert project.json("state/run_r.json")["state"] == "completed"
    project.ok("verify")


def test_programs_of_any_kind_and_one_that_cannot_start(project):
    name, body, broken = "bin/alarm.sh", "#!/bin/sh\ncat > got.json\n", "bin/alarm.sh"
    if os.name == "nt":
        copy = '@"%s" -c "import sys; open(\'got.json\', \'wb\').write(sys.stdin.buffer.read())"\r\n' % sys.executable
        name, body, broken = "bin/alarm.cmd", copy, "bin/alarm.exe"
    project.write(name, body, executable=True)
    project.spec(copying(project), onSuccess=[name])
    project.ok("--run-id", "r")
    assert project.json("got.json") == project.json("state/run_r.json")
    project.write(broken, "#!/no/such/interpreter\n", executable=True)
    project.spec(copying(project), onSuccess=[broken])
    assert "[NOTE] onSuccess: cannot start " in project.ok().out


@pytest.mark.skipif(os.name == "nt", reason="POSIX sessions")
def test_its_whole_tree_is_ended_and_it_has_a_time_limit(project):
    # A driver sets the limit; the grandchild would hold the pipe for ever.
    project.write("bin/alarm.py", "import os, subprocess, sys, time\nchild = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(1000)'], start_new_session=True)\n"
                                  "open('pid', 'w').write(str(child.pid))\ntime.sleep(1000)\n")
    project.spec(copying(project), onSuccess=["bin/alarm.py"])
    driver = project.write("driver.py", "import os, runpy, sys\nrunner = sys.argv[1]\nsys.path.insert(0, os.path.dirname(runner))\nimport run_alarms\n"
                                        "run_alarms.TIME_LIMIT_S, run_alarms.GRACE_S = 1.0, 0.1\n"
                                        "sys.argv[:] = sys.argv[1:]\nrunpy.run_path(runner, run_name='__main__')\n")
    argv = project.argv("--run-id", "r")
    done = subprocess.run([argv[0], str(driver)] + argv[1:], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60)
    assert done.returncode == 0 and b"[NOTE] onSuccess: timeout after 1 s" in done.stdout, done
    if project.exists("pid"):
        assert not process_table.is_alive(int(project.read("pid")), None)


def test_it_is_below_the_guard_of_the_network(project):
    network = "soc" + "ket"
    project.write("bin/alarm.py", "import importlib\nmodule = importlib.import_module('soc' + 'ket')\n"
                                  "try:\n    getattr(module, 'soc' + 'ket')().connect(('192.0.2.1', 9))\nexcept OSError as error:\n    print('refused', error)\n")
    project.spec(copying(project), onSuccess=["bin/alarm.py"], offline={"allow": [network]})
    project.ok()
    done = project.ok("--run-id", "r")           # nothing to run but the alarm
    assert "refused" in project.read("state/logs/r/onSuccess.log") and "[NOTE] onSuccess: it tried to use the network" in done.out, done


def test_it_is_checked_and_scanned_as_processors_are(project):
    project.spec(copying(project), onFailure=["bin/none.py"])
    assert 'onFailure[0]: there is no file "bin/none.py"' in project.run("validate").err
    project.spec(copying(project), onFailure=["../x.py"])
    assert "onFailure[0]: must not leave the root" in project.run("validate").err
    project.write("tool/alarm.py", "imp" + "ort soc" + "ket\n")
    project.spec(copying(project), onSuccess=["tool/alarm.py"])
    project.knows_scans = False
    done = project.run()
    assert done.code == 6 and "tool/alarm.py:1: " in done.err and not project.exists("state")
