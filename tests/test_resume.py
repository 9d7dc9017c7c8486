"""Interrupted for real: the runner, its guardian, the processor, all at once; then the output is that of one run.

Processors that break the run do it themselves where the moment matters (they kill their parent at a certain line), so
that nothing depends on luck. Those that write on after their runner's death show that they are ended first.
"""
from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

from conftest import KILLED, ROOT, RUNNER, Done, Project, settle, text_of

LINES = 40
WHOLE = "".join("line %d\n" % number for number in range(1, LINES + 1))
posix_only = pytest.mark.skipif(os.name == "nt", reason="daemons, shell scripts and signals of POSIX")
linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


# --- helpers ---------------------------------------------------------------------------------------------------------

def wait_until(condition, what, limit_s=60.0):
    """Poll until condition() is true; return its value. Fails after limit_s seconds."""
    deadline = time.monotonic() + limit_s
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < deadline, "not within %g s: %s" % (limit_s, what)
        time.sleep(0.002)


def living(project, marker=None):
    """Return {pid: command line} of the processes that were started for the project's stages (Linux)."""
    wanted = ("PIPELINE_ROOT=%s\0" % project.root).encode() if marker is None else marker
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open("/proc/%s/%s" % (name, "environ" if marker is None else "cmdline"), "rb") as file:
                    text = file.read()
                with open("/proc/%s/stat" % name, "rb") as file:
                    state = file.read().rpartition(b")")[2].split()[0]
            except OSError:
                continue
            if wanted in text and state not in b"ZX":
                found[int(name)] = text
    return found


def kill(pid):
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def kill_run(run, project=None):
    """SIGKILL the runner; with *project* its guardian before it."""
    if project is not None:
        marker = str(project.root / "pipeline.json").encode()
        guardians = [pid for pid in living(project, marker) if pid != run.pid]
        assert len(guardians) == 1, guardians
        kill(guardians[0])
    run.kill()
    run.wait(timeout=60)
    run.stdout.close()
    run.stderr.close()


def lines_in(project, name="data/s1/list.txt"):
    try:
        return project.path(name).read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def check_one_run(project, expected=WHOLE, name="data/s1/list.txt", arguments=()):
    """Run again at once: the output is that of one run, stays so when no process of the old one can live, and is skipped."""
    again = project.ok("--run-id", "again", *arguments)
    assert project.read(name) == expected, again
    if sys.platform.startswith("linux"):
        wait_until(lambda: not living(project), "the end of every process of the stage")
    assert project.read(name) == expected, again
    third = project.ok("--run-id", "third", *arguments)
    assert third.out.count("[SKIP]") == len(third.steps) - 1 > 0, third
    assert project.read(name) == expected, third
    assert project.json("state/run_first.json")["state"] == "interrupted"
    assert [path.name for path in project.path("locks").iterdir() if not path.name.startswith(".")] == []
    return again


# --- writers that outlive their runner -------------------------------------------------------------------------------

# Each appends one line per 0.02 s and re-opens its file by path each time; where a file "hang" lies in the root, it takes
# that away at line 10 and stays there.
APPEND = ("import os, sys, time\n"
          "hang = os.path.join(os.environ['PIPELINE_ROOT'], 'hang')\n"
          "for number in range(1, %d):\n"
          "    with open(os.path.join(os.environ['PIPELINE_OUTPUT_DIR'], 'list.txt'), 'a') as file:\n"
          "        file.write('line %%d\\n' %% number)\n"
          "    time.sleep(0.02)\n"
          "    if number == 10 and os.path.exists(hang):\n"
          "        os.unlink(hang)\n"
          "        time.sleep(120)\n" % (LINES + 1))
CHILD = """
import subprocess
code = %r
child = subprocess.Popen([sys.executable, "-c", code], start_new_session=%r, close_fds=%r)
sys.exit(child.wait())
"""
DAEMON = """
code = %r
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)
        os.closerange(3, 100)
        os.execv(sys.executable, [sys.executable, "-c", code])
    os._exit(0)
os.wait()
while True:                                     # until the daemon is through
    try:
        if open(os.path.join(out, "list.txt")).read().count("\\n") >= %d:
            break
    except FileNotFoundError:
        pass
    time.sleep(0.02)
""" % (APPEND, LINES)
SHELL = """#!/bin/sh
number=1
while [ $number -le %d ]; do
    echo "line $number" >> "$PIPELINE_OUTPUT_DIR/list.txt"
    sleep 0.02
    number=$((number + 1))
done
""" % LINES


def appender(project, kind, **stage):
    """Write the spec of one stage that appends LINES lines in the way *kind* names."""
    if kind == "shell":
        project.write("bin/append.sh", SHELL, executable=True)
        program = "bin/append.sh"
    else:
        bodies = {"itself": APPEND, "grandchild": CHILD % (APPEND, False, True), "own session": CHILD % (APPEND, True, True), "daemon": DAEMON}
        program = project.processor("append", bodies[kind])
    project.spec(dict({"processor": program, "lock": {"waitSeconds": 60}}, **stage))


@pytest.mark.parametrize("kind", ["itself", "grandchild", "own session", pytest.param("daemon", marks=posix_only), pytest.param("shell", marks=posix_only)])
def test_the_runner_alone_is_killed_while_a_stage_appends(kind, project):
    appender(project, kind)
    run = project.start("--run-id", "first")
    wait_until(lambda: lines_in(project) >= 5, "five lines")
    kill_run(run)
    check_one_run(project)


@linux_only
@pytest.mark.parametrize("kind, hangs", [("grandchild", True), ("own session", True), ("daemon", True), ("daemon", False)])
def test_the_runner_and_its_guardian_are_killed_while_a_stage_appends(kind, hangs, project):
    appender(project, kind, lock={"waitSeconds": 20})
    if hangs:
        project.write("hang", "")
    run = project.start("--run-id", "first")
    wait_until(lambda: lines_in(project) >= 5 and not project.exists("hang"), "some lines")
    kill_run(run, project)
    assert living(project)                      # nobody is left to end them but the next run
    check_one_run(project)


@linux_only
@pytest.mark.parametrize("kind", ["itself", "daemon"])
def test_when_the_runner_dies_its_processes_are_ended_without_another_run(kind, project):
    appender(project, kind)
    run = project.start("--run-id", "first")
    wait_until(lambda: lines_in(project) >= 2, "two lines")
    kill_run(run)
    wait_until(lambda: not living(project), "the end of every process of the stage")
    assert lines_in(project) < LINES
    check_one_run(project)


@linux_only
def test_what_a_processor_leaves_behind_does_not_write_after_its_success(project):
    program = project.processor("leave", "import subprocess\n"
                                "open(os.path.join(out, 'list.txt'), 'w').write('done\\n')\n"
                                "code = 'import os, sys, time; time.sleep(0.3); open(sys.argv[1], \"a\").write(\"late\\\\n\")'\n"
                                "subprocess.Popen([sys.executable, '-c', code, os.path.join(out, 'list.txt')], start_new_session=True)\n")
    project.spec({"processor": program})
    project.ok("--run-id", "first")
    assert not living(project) and project.read("data/s1/list.txt") == "done\n"


# --- killed at a certain line, by the processor itself -----------------------------------------------------------------

# Appends its inputs' lines to list.txt; before line number @LINE@, the first time, it does @DEED@.
BREAKING = """
flag = os.path.join(os.environ["PIPELINE_ROOT"], "broken")
number = 0
for path in inputs:
    for line in open(path, encoding="utf-8"):
        number += 1
        if number == @LINE@ and not os.path.exists(flag):
            open(flag, "w").close()
            @DEED@
        with open(os.path.join(out, "list.txt"), "a", encoding="utf-8") as file:
            file.write(line)
if number < @LINE@ and not os.path.exists(flag):
    open(flag, "w").close()
    @DEED@
"""
KILL_RUNNER = "os.kill(os.getppid(), 9); time.sleep(60)"
KILL_ITSELF = "os.kill(os.getpid(), 9)"


def breaking(project, line, deed, **stage):
    """Write the spec of one stage that does *deed* before line number *line*, once."""
    program = project.processor("breaking", BREAKING.replace("@LINE@", str(line)).replace("@DEED@", deed))
    project.write("data/input/a.txt", "one\ntwo\nthree\n")
    project.spec(dict({"processor": program, "inputs": ["data/input/a.txt"], "lock": {"waitSeconds": 60}}, **stage))


@pytest.mark.parametrize("line", [1, 2, 3, 4])
def test_killed_by_its_processor_at_any_line(line, project):
    breaking(project, line, KILL_RUNNER)
    assert project.run("--run-id", "first").code == KILLED
    check_one_run(project, "one\ntwo\nthree\n")


def test_what_an_interrupted_rerun_appended_to_an_earlier_success_is_cut_off(project):
    breaking(project, 2, KILL_RUNNER)
    project.write("broken", "")
    project.ok("--run-id", "zero")
    project.path("broken").unlink()
    project.write("data/input/a.txt", "four\nfive\n")
    assert project.run("--run-id", "first").code == KILLED
    assert project.read("data/s1/list.txt") == "one\ntwo\nthree\nfour\n"
    again = check_one_run(project, "one\ntwo\nthree\nfour\nfive\n")     # what an undisturbed rerun makes
    size = len(os.linesep.join(["one", "two", "three", ""]))
    assert "[NOTE] s1: leftovers of an unfinished attempt: cut list.txt back to %d bytes" % size in again.out


def test_the_input_changes_while_the_stage_is_interrupted(project):
    breaking(project, 3, KILL_RUNNER)
    assert project.run("--run-id", "first").code == KILLED
    project.write("data/input/a.txt", "four\nfive\n")
    check_one_run(project, "four\nfive\n")


@pytest.mark.parametrize("deed, why", [(KILL_ITSELF, "ended by SIGKILL" if os.name == "posix" else "exit code 9"), ("sys.exit(75)", "exit code 75"), ("raise SystemExit(3)", "exit code 3")])
def test_what_a_failed_attempt_left_does_not_get_into_the_retry(deed, why, project):
    breaking(project, 3, "open(os.path.join(out, 'list.txt.tmp1'), 'w').close(); os.makedirs(os.path.join(out, 'sub')); "
             "open(os.path.join(out, 'sub', '.hidden'), 'w').close(); open(os.path.join(out, 'sub', 'x'), 'w').close(); " + deed,
             retry={"attempts": 2, "baseDelayMs": 0})
    done = project.ok()
    assert "[RETRY] s1 attempt 1/2: %s; next in 0.00s" % why in done.out, done
    assert project.read("data/s1/list.txt") == "one\ntwo\nthree\n"
    assert [one["path"] for one in project.json("state/stage_s1.json")["outputs"]] == ["list.txt"]
    assert not project.exists("data/s1/list.txt.tmp1") and not project.exists("data/s1/sub/x")


def test_what_a_failed_run_left_does_not_get_into_the_next(project):
    breaking(project, 3, "open(os.path.join(out, 'more.txt'), 'w').close(); sys.exit(3)")
    assert project.run("--run-id", "zero").code == 1
    assert project.read("data/s1/list.txt") == "one\ntwo\n"
    project.ok()
    assert project.read("data/s1/list.txt") == "one\ntwo\nthree\n" and not project.exists("data/s1/more.txt")


def test_what_somebody_put_into_the_output_folder_after_a_failure_is_theirs(project):
    breaking(project, 3, "open(os.path.join(out, 'more.txt'), 'w').close(); sys.exit(3)")
    assert project.run("--run-id", "zero").code == 1
    project.write("data/s1/notes.txt", "do not lose this\n")
    project.ok()
    assert project.read("data/s1/notes.txt") == "do not lose this\n"
    assert project.read("data/s1/list.txt") == "one\ntwo\nthree\n" and not project.exists("data/s1/more.txt")
    assert [one["path"] for one in project.json("state/stage_s1.json")["outputs"]] == ["list.txt"]


def test_killed_while_waiting_for_a_retry(project):
    breaking(project, 3, "sys.exit(75)", retry={"attempts": 2, "baseDelayMs": 60000, "maxDelayMs": 60000})
    run = project.start("--run-id", "first")
    seen = b""
    while b"[RETRY]" not in seen:
        piece = os.read(run.stdout.fileno(), 4096)
        assert piece, seen
        seen += piece
    kill_run(run)
    check_one_run(project, "one\ntwo\nthree\n")


def test_the_digest_of_a_large_input_outlives_a_kill(project):
    """To read it again may take hours."""
    with open(project.write("data/input/big", ""), "ab") as file:
        file.truncate(65 << 20)
    settle(project.path("data/input/big"))
    project.spec({"processor": project.processor("die", KILL_RUNNER + "\n"), "inputs": ["data/input/big"]})
    assert project.run().code == KILLED and "data/input/big" in project.read("state/digests.json")


def test_killed_while_a_big_output_is_hashed(project):
    program = project.processor("big", "with open(os.path.join(out, 'big'), 'ab') as file:\n"
                                "    file.truncate(os.path.getsize(file.name) + (400 << 20))\n"
                                "open(os.path.join(os.environ['PIPELINE_ROOT'], 'pid'), 'w').write(str(os.getpid()))\n")
    project.spec({"processor": program})
    run = project.start("--run-id", "first")
    wait_until(lambda: project.exists("pid") and project.read("pid"), "the processor's last act")
    pid = int(project.read("pid"))

    def is_gone():
        import process_table
        return not process_table.is_alive(pid, None)

    wait_until(is_gone, "the processor's end")
    kill_run(run)
    assert project.json("state/stage_s1.json")["lastStatus"] == "running"
    project.ok("--run-id", "again")
    assert project.path("data/s1/big").stat().st_size == 400 << 20
    assert "[SKIP] s1" in project.ok().out


# --- checkpoints -----------------------------------------------------------------------------------------------------

# A processor of its own kind: goes on at the given line, vouches for whole lines after each, dies where told.
CHECKPOINTED = """
done = int(os.environ["PIPELINE_LINE_OFFSET"])
stop = json.loads(os.environ["PIPELINE_PARAMS"]).get("stop")
target = os.path.join(out, "list.txt")
if not done and os.path.exists(target):
    os.unlink(target)
flag = os.path.join(os.environ["PIPELINE_ROOT"], "broken")
lines = open(inputs[0], encoding="utf-8").read().splitlines(True)
for number, line in enumerate(lines[done:], done + 1):
    with open(target, "a", encoding="utf-8") as file:
        file.write(line)
    if number % 2 == 0:
        progress = {"lineOffset": number, "outputs": {"list.txt": os.path.getsize(target)}}
        progress.update(json.loads(os.environ["PIPELINE_PARAMS"]).get("more", {}))
        with open(os.environ["PIPELINE_PROGRESS_FILE"] + ".new", "w") as file:
            file.write(json.dumps(progress))
        os.replace(file.name, os.environ["PIPELINE_PROGRESS_FILE"])
    if number == stop and not os.path.exists(flag):
        open(flag, "w").close()
        sys.exit(3)
"""
SEVEN = "a\nb\nc\nd\ne\nf\ng\n"


def checkpointed(project, **params):
    """Write the spec and run it: it fails after line 5, its checkpoint stands at line 4."""
    program = project.processor("checkpointed", CHECKPOINTED)
    project.write("data/input/a.txt", SEVEN)
    project.spec({"processor": program, "inputs": ["data/input/a.txt"], "checkpoint": {"enabled": True, "lineInterval": 1}, "params": dict({"stop": 5}, **params)})
    assert project.run("--run-id", "first").code == 1
    assert project.read("data/s1/list.txt") == "a\nb\nc\nd\ne\n" and project.json("state/progress_s1.json")["lineOffset"] == 4


def after(project, boot=None):
    """Run once more, perhaps after a restart of the machine; the result must be right whatever is done."""
    settings = project.root.parent / "settings.json"
    settings.write_text(json.dumps({"runner": str(RUNNER), "root": str(project.root), "action": "none", "at": 0, "hit": "", "boot": boot, "outputs": []}), encoding="utf-8")
    argv = [sys.executable, str(ROOT / "tests" / "drivers" / "fault.py"), str(settings), "--pipeline", str(project.root / "pipeline.json"), "--run-id", "after"]
    ended = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60)
    done = Done(argv, ended.returncode, text_of(ended.stdout), text_of(ended.stderr))
    assert done.code == 0, done
    assert project.read("data/s1/list.txt") == project.read("data/input/a.txt"), done
    return done.out


def test_an_output_is_cut_to_the_vouched_bytes_before_a_resume(project):
    checkpointed(project)
    assert "[RESUME] s1 from line 4\n" in after(project)


def test_what_somebody_put_beside_the_outputs_after_a_failure_stands_in_no_resumes_way(project):
    checkpointed(project)
    assert project.json("state/stage_s1.json")["lastStatus"] == "failed"
    project.write("data/s1/notes.txt", "do not lose this\n")
    assert "[RESUME] s1 from line 4\n" in after(project) and project.read("data/s1/notes.txt") == "do not lose this\n"


def test_a_checkpoint_within_the_first_line_is_resumed(project):
    """No line is done yet, but bytes are, and they may be gigabytes."""
    body = ("if os.environ.get('PIPELINE_RESUME'):\n    assert os.environ['PIPELINE_LINE_OFFSET'] == '0'\n    open(out + '/list.txt', 'a').write('second half')\n    sys.exit()\n"
            "open(out + '/list.txt', 'w').write('first half, and more')\n"
            "open(os.environ['PIPELINE_PROGRESS_FILE'], 'w').write(json.dumps({'lineOffset': 0, 'outputs': {'list.txt': 12}}))\nsys.exit(3)\n")
    project.spec({"processor": project.processor("long", body), "checkpoint": {"enabled": True}})
    assert project.run().code == 1
    assert "[RESUME] s1 from line 0\n" in project.ok().out and project.read("data/s1/list.txt") == "first half, second half"


def test_of_a_stage_with_declared_outputs_nothing_else_stands_in_a_resumes_way(project):
    body = CHECKPOINTED.replace("sys.exit(3)", "open(os.path.join(out, 'seen.tmp'), 'w').close()\n        sys.exit(3)")
    project.write("data/input/a.txt", SEVEN)
    project.spec({"processor": project.processor("checkpointed", body), "inputs": ["data/input/a.txt"], "outputs": ["list.txt"], "checkpoint": {"enabled": True}, "params": {"stop": 5}})
    assert project.run().code == 1 and project.exists("data/s1/seen.tmp")
    assert "[RESUME] s1 from line 4\n" in after(project)


def test_a_retry_resumes_too(project):
    program = project.processor("checkpointed", CHECKPOINTED)
    project.write("data/input/a.txt", SEVEN)
    project.spec({"processor": program, "inputs": ["data/input/a.txt"], "checkpoint": {"enabled": True}, "params": {"stop": 5}, "retry": {"attempts": 2, "baseDelayMs": 0}})
    done = project.ok()
    assert "[RESUME] s1 from line 4\n" in done.out and project.read("data/s1/list.txt") == SEVEN


def test_an_output_shorter_than_vouched_discards_the_checkpoint(project):
    checkpointed(project)
    os.truncate(project.path("data/s1/list.txt"), 7)
    out = after(project)
    assert "[NOTE] s1: checkpoint not used: list.txt is shorter than the checkpoint vouches for\n" in out and "[START] s1\n" in out


def test_an_output_that_is_gone_discards_the_checkpoint(project):
    checkpointed(project)
    project.path("data/s1/list.txt").unlink()
    assert "[NOTE] s1: checkpoint not used: list.txt is missing\n" in after(project)


def test_a_checkpoint_of_another_key_is_set_aside(project):
    checkpointed(project)
    old = project.read("state/progress_s1.json")
    project.write("data/input/a.txt", SEVEN.upper())
    out = after(project)
    assert "[NOTE] s1: checkpoint not used: it was made under another key\n" in out and "[START] s1\n" in out
    assert project.read("state/progress_s1.json.old") == old


@pytest.mark.parametrize("text, why", [
    ("{\"lineOffset\": 4", "it is damaged"), pytest.param("[" * 200000, "it is damaged", id="deep"),
    ("{\"lineOffset\": 4, \"whole\": [1]}", "its whole outputs are not paths"), ("{\"lineOffset\": 4, \"whole\": {}}", "its whole outputs are not paths"),
    ("[4]", "it is not an object"),
    ("{\"lineOffset\": -1}", "its lineOffset is -1"),
    ("{\"lineOffset\": true}", "its lineOffset is true"),
    ("{\"lineOffset\": 4, \"outputs\": {\"../../pipeline.json\": 0}}", "its outputs are not paths below the output folder"),
    ("{\"lineOffset\": 4, \"outputs\": {\"list.txt\": \"8\"}}", "its outputs are not numbers of bytes"),
    ("{\"lineOffset\": 4, \"outputs\": {\"list.txt\": 8}, \"publish\": {\"list.txt\": \"../../pipeline.json\"}}", "its outputs are not paths below the output folder"),
    ("{\"lineOffset\": 4, \"key\": \"another\"}", "it was made under another key"),
])
def test_a_checkpoint_that_cannot_be_used_is_said_so(text, why, project):
    checkpointed(project)
    project.write("state/progress_s1.json", text)
    out = after(project)
    assert "[NOTE] s1: checkpoint not used: %s\n" % why in out and "[START] s1\n" in out
    assert project.json("pipeline.json")["name"] == "test"


@pytest.mark.parametrize("taken", [{"inputs": ["data/in/*.txt"]}, {"forEach": "data/in/*.txt"}], ids=["stage", "tasks"])
def test_a_processor_that_leaves_a_strange_checkpoint_and_ends_well_has_ended_well(project, taken):
    project.write("data/in/a.txt", "a")
    body = "open(os.environ['PIPELINE_PROGRESS_FILE'], 'w').write('[' * 200000)\nopen(out + '/made', 'w').close()\n"
    project.spec(dict({"name": "s1", "processor": project.processor("p", body), "checkpoint": {"enabled": True}}, **taken))
    project.ok()
    assert "[SKIP] s1" in project.ok().out


@pytest.mark.parametrize("more, resumes", [({}, False), ({"durable": False}, False), ({"durable": "yes"}, False), ({"durable": True}, True)])
def test_only_a_durable_checkpoint_outlives_a_power_cut(more, resumes, project):
    checkpointed(project, more=more)
    out = after(project, boot="another-boot")
    if resumes:
        assert "[RESUME] s1 from line 4\n" in out
    else:
        assert "[NOTE] s1: checkpoint not used: it was not synced and the machine has been restarted since\n" in out


@posix_only
def test_a_stage_that_a_signal_ended_behind_its_last_step_does_nothing_again(project):
    body = ("if os.environ.get('PIPELINE_RESUME'):\n    sys.exit()\nopen(out + '/o', 'w').write('all')\n"
            "json.dump({'lineOffset': 1, 'outputs': {'o': 3}, 'complete': True}, open(os.environ['PIPELINE_PROGRESS_FILE'], 'w'))\n"
            "open('ready', 'w').close()\ntime.sleep(60)\n")
    project.spec({"processor": project.processor("slow", body), "checkpoint": {"enabled": True}})
    with project.start("--run-id", "r") as process:
        wait_until(lambda: project.exists("ready"), "the last step")
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == 143 and project.json("state/stage_s1.json")["lastStatus"] == "interrupted"
    assert "[RESUME] s1 from line 1\n" in project.ok().out and project.read("data/s1/o") == "all"


def test_a_finished_stage_is_not_resumed_from_its_checkpoint(project):
    checkpointed(project)
    after(project)
    progress = project.json("state/progress_s1.json")
    assert progress["complete"] is progress["finished"] is True and progress["lineOffset"] == 6
    project.path("data/s1/.s1.done").unlink()
    assert "[START] s1\n" in project.ok().out and project.read("data/s1/list.txt") == SEVEN


# --- the demo's resumable stage --------------------------------------------------------------------------------------

def upper(project, text):
    project.write("data/input/a.txt", text)
    project.spec({"name": "stage_upper", "processor": "bin/stage_upper.py", "inputs": ["data/input/a.txt"], "outputDir": "data/output",
                  "outputs": ["result.txt"], "checkpoint": {"enabled": True, "lineInterval": 1000}, "lock": {"waitSeconds": 60}})


@pytest.mark.parametrize("kept, said", [
    (None, "[RESUME] stage_upper from line 3\n"),       # the old output whole
    (3, "[RESUME] stage_upper from line 3\n"),          # just the lines that the number speaks of
    (2, "[RESUME] stage_upper from line 3\n"),          # too few: the kit starts from zero and says so
    (0, "[RESUME] stage_upper from line 3\n"),
])
def test_a_hand_written_line_number_is_resumed(kept, said, project):
    text = "".join("zeile %d grün\n" % number for number in range(1, 11))
    upper(project, text)
    project.ok("--run-id", "first")
    result = project.path("data/output/result.txt")
    if kept is not None:
        result.write_bytes("".join(text.upper().splitlines(True)[:kept]).encode("utf-8"))
    project.write("state/progress_stage_upper.json", json.dumps({"lineOffset": 3}))
    project.path("data/output/.stage_upper.done").unlink()
    done = project.ok("--run-id", "again")
    assert said in done.out and project.read("data/output/result.txt") == text.upper(), done
    log = project.read("state/logs/again/stage_upper.1.log")
    assert ("starting from zero" in log) == (kept in (0, 2)), log
    assert "[SKIP] stage_upper" in project.ok().out


@linux_only
def test_twenty_kills_at_random_moments_and_the_result_is_that_of_one_run(project):
    """200,000 lines; each kill comes a random number of polls after the progress file moved on, or after the start."""
    random_ = random.Random(20)
    text = "".join("%06d the quick brown fox jümps over the lazy dog, %s\n" % (number, "äb" * (number % 97)) for number in range(200_000))
    upper(project, text)
    kills, durable, resumed, complete, force = 0, 0, 0, False, ()
    while kills < 20:
        run = project.start("--run-id", "k%d" % kills, *force)
        target = durable + random_.choice([1, 1, 20_000])
        victims = random_.choice(["runner", "processor", "both", "guardian too"])
        killed, fresh = kill_at(project, run, target, victims)
        out = fresh.decode()
        if durable and not force and not complete:
            assert "[RESUME] stage_upper from line %d\n" % durable in out, (kills, durable, out)
            resumed += 1
        force = ()
        if killed:
            kills += 1
            assert is_complete(project) or position(project) >= durable     # what was seen before the kill is not lost
            durable, complete = position(project), is_complete(project)
        else:
            assert run.returncode in (0, KILLED) and project.read("data/output/result.txt") == text.upper()
            durable, complete, force = 0, False, ("--force", "stage_upper")      # it came through: from the beginning again
    done = project.ok("--run-id", "last")
    assert project.read("data/output/result.txt") == text.upper(), done
    print("resumed %d times" % resumed)
    assert resumed >= 5
    assert "[SKIP] stage_upper" in project.ok("--run-id", "skip").out
    assert sorted(os.listdir(project.path("data/output"))) == [".stage_upper.done", "result.txt"]


def position(project):
    """Return the line of the checkpoint of the unfinished stage; 0 without one."""
    try:
        progress = project.json("state/progress_stage_upper.json")
    except FileNotFoundError:
        return 0
    return 0 if progress["complete"] else progress["lineOffset"]


def is_complete(project):
    return project.exists("state/progress_stage_upper.json") and project.json("state/progress_stage_upper.json")["complete"]


def kill_at(project, run, target, victims):
    """Kill *victims* when the checkpoint has reached line *target*; return (whether the stage was still unfinished, the runner's stdout)."""
    try:
        wait_until(lambda: run.poll() is not None or (position(project) >= target and project.exists("state/stage_stage_upper.json")), "progress")
        processors = list(living(project))
        if victims == "guardian too":
            for pid in living(project, str(project.root / "pipeline.json").encode()):
                kill(pid)
        if victims in ("runner", "both"):
            run.kill()
        if victims in ("processor", "both"):
            for pid in processors:
                kill(pid)
        out, _ = run.communicate(timeout=60)
    finally:
        run.kill()
    wait_until(lambda: not living(project) or victims == "guardian too", "the end of every process of the stage")
    for pid in living(project):
        kill(pid)
    return project.json("state/stage_stage_upper.json")["lastStatus"] != "ok", out


# --- the project is copied after a kill

def test_in_a_copy_of_the_project_nothing_that_was_there_counts_as_made_by_the_attempt(project, tmp_path):
    """Inode, device and change time of each file are others there."""
    project.write("data/in.txt", "one\n")
    body = "text = open(inputs[0]).read()\nif text != 'two\\n':\n    open(out + '/r.txt', 'w').write(text)\nelif os.path.exists('kill'):\n    os.kill(os.getppid(), 9)\n    time.sleep(60)\n"
    project.spec({"name": "lazy", "processor": project.processor("lazy", body), "inputs": ["data/in.txt"], "outputDir": "out", "outputs": ["r.txt"]},
                 {"name": "plain", "processor": "bin/lazy.py", "inputs": ["data/in.txt"], "outputDir": "out2"})
    project.write("out2/mine.txt", "mine")
    project.ok()
    project.write("data/in.txt", "two\n")
    project.write("kill", "")
    for name in ("lazy", "plain"):
        assert project.run("--only", name).code == KILLED
    project.path("kill").unlink()
    copy = Project(tmp_path / "copy")
    shutil.rmtree(str(copy.root), ignore_errors=True)
    shutil.copytree(str(project.root), str(copy.root), symlinks=True)
    for here in (copy, project):
        done = here.run("--keep-going")
        said = "declared output out/r.txt was not made: what is there is older than this run"
        if sys.platform == "win32":     # there a file that was written anew may look as it did before, so it is no failure
            said = "[NOTE] lazy: not remade by this run, still recorded: r.txt\n"
        assert done.code == int(sys.platform != "win32") and said in done.out and "[DONE] plain" in done.out, done
        assert [one["path"] for one in here.json("state/stage_plain.json")["outputs"]] == ["r.txt"]


def test_in_a_copy_of_the_project_a_checkpoint_is_gone_on_with(project, tmp_path):
    """The other file in the output folder, of which the checkpoint says nothing, is not the attempt's there either."""
    program = project.processor("checkpointed", CHECKPOINTED.replace("sys.exit(3)", KILL_RUNNER))
    project.write("data/input/a.txt", SEVEN)
    project.write("data/s1/mine.txt", "mine")
    project.spec({"processor": program, "inputs": ["data/input/a.txt"], "checkpoint": {"enabled": True, "lineInterval": 1}, "params": {"stop": 5}})
    assert project.run().code == KILLED and project.json("state/progress_s1.json")["lineOffset"] == 4
    copy = Project(tmp_path / "copy")
    shutil.rmtree(str(copy.root))
    shutil.copytree(str(project.root), str(copy.root), symlinks=True)
    done = copy.ok()
    assert "[RESUME] s1 from line 4" in done.out and "checkpoint not used" not in done.out, done
    assert copy.read("data/s1/list.txt") == SEVEN and [one["path"] for one in copy.json("state/stage_s1.json")["outputs"]] == ["list.txt"]
