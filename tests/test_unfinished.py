"""A processor that ends well and has not finished its work, and a checkpoint that does not stand for all outputs: neither is taken."""
from __future__ import annotations

import os

import pytest

posix_only = pytest.mark.skipif(os.name == "nt", reason="POSIX signals, fork and pipes")
STAGES = {"stage": {"inputs": ["data/in/*.txt"]}, "tasks": {"forEach": "data/in/*.txt"}}
CHECKPOINT = {"enabled": True, "lineInterval": 1}
LATE_EXIT = """
done = [0]
def shout(line):
    done[0] += 1
    time.sleep(0.01)
    if line == "last\\n":
        %s
    return line.upper()
lines(shout, "o.txt")
"""


def kit(project, body, **stage):
    """A stage with a processor that uses the kit."""
    project.spec(dict({"name": "s1", "processor": project.processor("p", "from processor_kit import *\n" + body), "outputDir": "data/s1"}, **stage))


@pytest.fixture
def root(project):
    project.write("data/in/a.txt", "first\n")
    return project


@pytest.mark.parametrize("checkpoint", [{"enabled": False}, CHECKPOINT], ids=["plain", "checkpoint"])
@pytest.mark.parametrize("kind", STAGES)
@pytest.mark.parametrize("ends", ["sys.exit(0)", "os._exit(0)"])
def test_an_end_with_exit_code_0_in_the_middle_is_no_success(root, kind, checkpoint, ends):
    """What yesterday's run made would be recorded for today's input."""
    kit(root, LATE_EXIT % ends, checkpoint=checkpoint, outputs=["o.txt"], reconcile=True, **STAGES[kind])
    root.ok()
    root.write("data/in/a.txt", "second\nlast\n")
    for _ in range(2):
        done = root.run()
        assert done.code == 1 and "[DONE]" not in done.out and "[SKIP]" not in done.out, done
        assert "exit code 0" in done.out or "exit code 1" in done.out and "ended the processor with exit code 0; its output is not whole" in done.out + done.err, done
    root.write("data/in/a.txt", "second\n")
    root.ok()
    assert root.read("data/s1/o.txt") == "SECOND\n"


@pytest.mark.parametrize("body", [
    "with open_output('o.txt') as file:\n    file.write('half')\n    sys.exit(0)\n",
    "file = open_output('o.txt').__enter__()\nfile.write('half')\n",
    "import threading\nthread = threading.Thread(target=lines, args=(str.upper, 'o.txt'))\nthread.start()\nthread.join()\n",
    "def fork(line):\n    child = os.fork()\n    if not child:\n        sys.exit(0)\n    os.waitpid(child, 0)\n    os.unlink(os.path.join(out, [name for name in os.listdir(out) if name.endswith('.part')][0]))\n    return line\nlines(fork, 'o.txt')\n",
    "def inner(line):\n    lines(str.upper, 'o.txt')\n    return line\nlines(inner, 'o.txt')\n",
], ids=["in open_output", "never closed", "in a thread", "part gone", "nested"])
def test_other_ways_to_leave_an_output_unfinished(root, body):
    root.write("data/in/a.txt", b"first\xff\n" if "threading" in body else b"first\n")
    root.write("data/s1/o.txt", "of yesterday")
    if "fork" in body and os.name == "nt":
        pytest.skip("no fork here")
    kit(root, body, **STAGES["stage"])
    done = root.run()
    assert done.code == 1 and "[FAIL] s1: " in done.out and "Traceback" not in done.out + done.err, done
    assert root.read("data/s1/o.txt") == "of yesterday" or "nested" in body or "inner" in body


@posix_only
def test_a_forked_child_leaves_the_output_and_the_counts_alone(root):
    kit(root, "def fork(line):\n    child = os.fork()\n    if not child:\n        count(read=7)\n        sys.exit(0)\n    os.waitpid(child, 0)\n    return line.upper()\n"
              "lines(fork, 'o.txt')\n", reconcile=True, **STAGES["stage"])
    root.ok()
    assert root.read("data/s1/o.txt") == "FIRST\n" and root.json("state/stage_s1.json")["counts"] == {"read": 1, "written": 1, "rejected": 0}


# --- checkpoints that do not say all ---------------------------------------------------------------------------------

APPENDING = """
first = int(os.environ["PIPELINE_LINE_OFFSET"])
for number, line in enumerate(open(inputs[0], encoding="utf-8"), 1):
    if number > first:
        for name in ("o.txt", "p.txt"):
            with open(os.path.join(out, name), "a") as file:
                file.write(line)
        if number == 2:
            json.dump(%s, open(os.environ["PIPELINE_PROGRESS_FILE"], "w"))
        if number == 4 and not os.path.exists(%r):
            open(%r, "w").close()
            os.kill(os.getpid(), 9)
"""


@posix_only
@pytest.mark.parametrize("kind", STAGES)
@pytest.mark.parametrize("retried", [False, True])
@pytest.mark.parametrize("progress, told", [
    ('{"lineOffset": 2}', "o.txt"), ('{"lineOffset": 2, "outputs": {"o.txt": 4}}', "p.txt"), ('{"lineOffset": 2, "outputs": {"o.txt": 4, "./p.txt": 4}}', "")])
def test_an_output_of_which_the_checkpoint_says_nothing_is_not_added_to_twice(root, kind, retried, progress, told):
    root.write("data/in/a.txt", "1\n2\n3\n4\n5\n")
    seen = str(root.path("seen"))
    root.spec(dict({"name": "s1", "processor": root.processor("p", APPENDING % (progress, seen, seen)), "outputDir": "data/s1", "checkpoint": CHECKPOINT,
                    "retry": {"attempts": 1 + retried, "baseDelayMs": 1}}, **STAGES[kind]))
    out = root.run().out
    out += "" if retried else root.ok().out
    assert [root.read("data/s1/%s.txt" % name) for name in "op"] == ["1\n2\n3\n4\n5\n"] * 2, out
    if kind == "stage":
        assert ("[RESUME]" in out) is (not told)
        assert not told or retried or "checkpoint not used: it does not say how much of %s it stands for: name each output in its \"outputs\"" % told in out, out


@posix_only
@pytest.mark.parametrize("where", ["before", "after"])
def test_an_output_that_the_kit_publishes_as_a_whole_does_not_stand_in_the_way_of_a_resume(root, where):
    root.write("data/in/a.txt", "".join("%d\n" % number for number in range(50)))
    seen = str(root.path("seen"))
    whole = "with open_output('head.txt') as file:\n    file.write('whole')\n"
    killing = "\n        if not os.path.exists(%r):\n            open(%r, 'w').close()\n            os.kill(os.%s(), 9)\n            time.sleep(60)\n" % (
        seen, seen, "getpid" if where == "before" else "getppid")
    body = "def slow(line):\n    time.sleep(0.005)\n    if %s:" + killing + "    return line\n"
    if where == "before":
        body = whole + body % "line == '40\\n'" + "lines(slow, 'o.txt')\n"
    else:
        body = body % "False" + "lines(slow, 'o.txt')\n" + whole + "if True:" + killing
    kit(root, body, checkpoint=CHECKPOINT, retry={"attempts": 2, "baseDelayMs": 1}, **STAGES["stage"])
    done = root.ok() if where == "before" else root.run() and root.ok()
    assert "[RESUME] s1 from line" in done.out and "starting from zero" not in done.out, done
    assert root.read("data/s1/head.txt") == "whole" and root.read("data/s1/o.txt") == root.read("data/in/a.txt")


# --- pipes in the place of files --------------------------------------------------------------------------------------

@posix_only
@pytest.mark.parametrize("kind", STAGES)
@pytest.mark.parametrize("variable", ["PIPELINE_COUNTS_FILE", "PIPELINE_PROGRESS_FILE"])
@pytest.mark.parametrize("code", [0, 75])
def test_a_pipe_where_a_report_should_be_is_not_waited_for(root, kind, variable, code):
    body = "path = os.environ[%r]\nif not os.path.exists(path):\n    os.mkfifo(path)\nopen(out + '/o.txt', 'w').close()\nsys.exit(%d)\n" % (variable, code)
    root.spec(dict({"name": "s1", "processor": root.processor("p", body), "outputDir": "data/s1", "checkpoint": CHECKPOINT,
                    "retry": {"attempts": 2, "baseDelayMs": 1}}, **STAGES[kind]))
    for command in ((), ("status",), ("plan",), ("explain", "s1"), ()):
        done = root.run(*command, timeout=60)
        assert done.code == (1 if code and not command else 0), done


# --- tasks that count nothing ----------------------------------------------------------------------------------------

@pytest.mark.parametrize("asked", [{"reconcile": True}, {"maxRejects": 0}, {"maxRejects": "1%"}])
def test_each_task_must_report_its_counts_where_they_are_needed(root, asked):
    root.write("data/in/b.txt", "lost\n")
    body = "if %s:\n    json.dump({'read': 1, 'written': 1, 'rejected': 0}, open(os.environ['PIPELINE_COUNTS_FILE'], 'w'))\nopen(os.path.join(out, os.path.basename(inputs[0])), 'w').close()\n"
    stage = dict({"name": "s1", "processor": root.processor("p", body % "'a.txt' in inputs[0]"), "forEach": "data/in/*.txt", "outputDir": "data/s1"}, **asked)
    root.spec(stage)
    done = root.run()
    assert done.code == 1 and "[FAIL] s1 data/in/b.txt: %s needs the counts of the processor, and it reported no " % next(iter(asked)) in done.out, done
    root.spec({key: value for key, value in stage.items() if key not in asked})
    root.ok()
    root.spec(stage)
    root.write("data/in/a.txt", "changed\n")
    done = root.run()
    assert done.code == 1 and "[FAIL] s1: task data/in/b.txt: " in done.out and "--force s1 does all tasks anew" in done.out, done
    root.processor("p", body % "True")
    root.ok("--force", "s1")
