"""A processor that ends well and has not finished its work, and a checkpoint that does not stand for all outputs: neither is taken."""
from __future__ import annotations

import json
import os

import checkpoints
import durable_files
import pytest
from conftest import KILLED

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


ONE = "def one(*rest):\n    with open_output('o.txt') as file:\n        file.write('half')\n        %s\n"
PROCESSES = "import multiprocessing\nprocesses = multiprocessing.get_context('fork')\n"
LOST = {
    "thread": ONE % "raise ValueError('no')" + "import threading\nthread = threading.Thread(target=one)\nthread.start()\nthread.join()\n",
    "pool of threads": ONE % "fail('no')" + "from concurrent.futures import ThreadPoolExecutor\nwith ThreadPoolExecutor(1) as pool:\n    pool.submit(one)\n",
    "child": ONE % "raise ValueError('no')" + PROCESSES + "child = processes.Process(target=one)\nchild.start()\nchild.join()\n",
    "forked": ONE % "fail('no')" + "child = os.fork()\nif not child:\n    one()\nos.waitpid(child, 0)\n",
    "lines in a child": PROCESSES + "child = processes.Process(target=lines, args=(int, 'o.txt'))\nchild.start()\nchild.join()\n",
    "copy in a thread": "import threading\nthread = threading.Thread(target=copy_files)\nthread.start()\nthread.join()\n",
}


@posix_only
@pytest.mark.parametrize("kind", STAGES)
@pytest.mark.parametrize("how", LOST)
def test_an_error_in_a_thread_or_a_child_that_nobody_asks_for_is_no_success(root, kind, how):
    root.write("data/in/a.txt", "1\n")
    failing = "import processor_kit\ndef refuse(*rest):\n    raise ValueError('no')\nreal, processor_kit._copy_rest = processor_kit._copy_rest, refuse\n" if "copy" in how else ""
    kit(root, failing + LOST[how], retry={"attempts": 2, "baseDelayMs": 1}, timeoutSec=60, **STAGES[kind])
    done = root.run()
    assert done.code == 1 and "[DONE]" not in done.out and "an output that is not finished" in done.out, done
    kit(root, "copy_files()\nwith open_output('o.txt') as file:\n    file.write('whole')\n", **STAGES[kind])
    root.ok()
    assert root.read("data/s1/o.txt") == "whole" and not list(root.path("data/s1").rglob("*.part"))


@posix_only
@pytest.mark.parametrize("how", ["threading.Thread", "processes.Process"])
def test_an_output_that_failed_in_a_thread_or_a_child_may_be_made_anew(root, how):
    kit(root, PROCESSES + "import threading\n" + ONE % "raise ValueError('no')" + "other = %s(target=one)\nother.start()\nother.join()\n"
        "with open_output('o.txt') as file:\n    file.write('whole')\n" % how, **STAGES["stage"])
    root.ok()
    assert root.read("data/s1/o.txt") == "whole" and not list(root.path("data/s1").rglob("*.part"))


SECOND = """
opened, refused = processes.Event(), processes.Event()
def first():
    with open_output("o.txt") as file:
        file.write("head ")
        file.flush()
        opened.set()
        assert refused.wait(30)
        file.write("tail")
def second():
    assert opened.wait(30)
    try:
        %s
    finally:
        refused.set()
def half():
    with open_output("o.txt") as file:
        file.write("half")
        raise ValueError("no")
other, *more = [processes.Process(target=each) for each in %s]
for child in (other, *more):
    child.start()
%s
for child in (other, *more):
    child.join()
assert other.exitcode == 1
"""


@posix_only
@pytest.mark.parametrize("call", ["half()", "lines(str.upper, 'o.txt')"])
@pytest.mark.parametrize("starts", [("(second, first)", ""), ("(second,)", "first()")], ids=["a sibling", "the parent"])
def test_what_another_process_of_the_processor_is_writing_is_not_opened_a_second_time(root, starts, call):
    """The first one published the half that the second had written."""
    kit(root, PROCESSES + SECOND % (call, *starts), timeoutSec=60, **STAGES["stage"])
    done = root.ok("--verbose")
    assert "o.txt is being written already by this processor: name another output" in done.out, done
    assert root.read("data/s1/o.txt") == "head tail"


@posix_only
def test_a_part_that_another_process_has_removed_before_it_was_held_is_not_written(root):
    kit(root, """
import processor_kit
hold = processor_kit._hold
def late(descriptor):
    processor_kit._hold = hold
    other = os.fork()
    if not other:
        os.unlink([one.path for one in os.scandir(output_dir()) if one.name.endswith(".part")][0])
        os._exit(0)
    os.waitpid(other, 0)
    return hold(descriptor)
processor_kit._hold = late
lines(str.upper, "o.txt")
""", **STAGES["stage"])
    done = root.run()
    assert done.code == 1 and "o.txt is being written already by this processor: name another output" in done.out, done


@posix_only
def test_what_a_child_still_inherits_may_be_made_anew_when_it_has_failed(root):
    kit(root, PROCESSES + """
over = processes.Event()
def one():
    with open_output("o.txt") as file:
        if not os.fork():
            over.wait(30)
            os._exit(0)
        raise ValueError("no")
other = processes.Process(target=one)
other.start()
other.join()
lines(str.upper, "o.txt")
over.set()
""", timeoutSec=60, **STAGES["stage"])
    root.ok()
    assert root.read("data/s1/o.txt") == "FIRST\n"


POOL = """
import multiprocessing, sys
%s
def no_such(number):
    %s
if __name__ == "__main__":
    with multiprocessing.get_context(%r).Pool(2) as pool:
        %s
"""


@pytest.mark.parametrize("start", [pytest.param("fork", marks=posix_only), "spawn"])
@pytest.mark.parametrize("fails, said", [("fail('no number %d' % number)", "no number 7"), ("lines(str.upper, '../o.txt')", "output name '../o.txt' must be a path below the output directory"),
                                         ("lines(fail, 'o.txt')", "first")])
def test_a_failure_in_a_pool_of_processes_is_the_processors(root, start, fails, said):
    """Pool answers a task with an Exception only: map() waited for ever."""
    root.processor("p", "from processor_kit import *\n" + POOL % ("", fails, start, "pool.map(no_such, [7], 1)"))
    root.spec({"processor": "bin/p.py", "forEach": "data/in/*.txt", "timeoutSec": 60})
    done = root.run()
    assert done.code == 1 and "exit code 1: " + said in done.out and "Traceback" not in done.out + done.err and done.err.count(said) == 1, done


@posix_only
def test_a_failure_in_a_pool_of_processes_may_be_caught_by_whoever_asks_for_it(root):
    kit(root, POOL % ("bad = 0", "fail('this one')", "fork", "for one in [pool.apply_async(no_such, (number,)) for number in range(3)]:\n            try:\n                one.get()\n"
                      "            except SystemExit as end:\n                bad += end.code\n    with open_output('o.txt') as file:\n        file.write(str(bad))\n"), timeoutSec=60, **STAGES["stage"])
    root.ok()
    assert root.read("data/s1/o.txt") == "3"


@posix_only
def test_a_child_process_that_fails_says_so_once_and_ends_with_1(root):
    kit(root, PROCESSES + "child = processes.Process(target=fail, args=('no',))\nchild.start()\nchild.join()\nwith open_output('o.txt') as file:\n    file.write(str(child.exitcode))\n",
        **STAGES["stage"])
    done = root.ok()
    assert root.read("data/s1/o.txt") == "1" and done.err.splitlines().count("no") + done.out.splitlines().count("no") <= 1 and "Traceback" not in done.out, done


@posix_only
def test_a_forked_child_leaves_the_output_and_the_counts_alone(root):
    kit(root, "def fork(line):\n    child = os.fork()\n    if not child:\n        count(read=7)\n        sys.exit(0)\n    assert os.waitpid(child, 0)[1] == 0\n    return line.upper()\n"
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


@pytest.mark.parametrize("more, published, problem", [({}, "", "p"), ({"whole": ["./p"]}, "", ""), ({}, '["./p", 4, 700]\n', ""), ({}, '["p", 4, 700', "p"),
                                                      ({}, '["p", 3, 700]\n', "p"), ({}, '["p", 4, 800]\n', "p"), ({}, '["q", 4, 700]\n', "p"), ({}, '"p"\n', "p")])
def test_what_is_made_in_one_piece_is_named_in_the_checkpoint_or_beside_it(tmp_path, more, published, problem):
    for name in ("o", "p"):
        (tmp_path / "out" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "out" / name).write_bytes(b"1234")
        os.utime(str(tmp_path / "out" / name), ns=(700, 700))      # NTFS tells hundreds
    (tmp_path / "progress.json").write_text(json.dumps(dict({"lineOffset": 2, "outputs": {"o": 4}}, **more)))
    (tmp_path / "progress.whole").write_text(published)
    record = {"stage": "s1", "idempotencyKey": "k", "bootId": "b", "lastStatus": "failed", "baseline": {}}
    found = checkpoints.checkpoint_at(str(tmp_path / "progress.json"), str(tmp_path / "out"), record, "k", "b")
    assert found.resumable is not bool(problem) and (" much of %s " % problem in found.problem if problem else not found.problem)
    assert checkpoints.checkpoint_at(str(tmp_path / "progress.json"), str(tmp_path / "out"), record, "k", "b", of_others=lambda: {"p"}).resumable


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


# --- what must go on working ------------------------------------------------------------------------------------------

PUBLISHING = {
    "threads": "from concurrent.futures import ThreadPoolExecutor\nlines(str.upper, 'o.txt')\nwith ThreadPoolExecutor(4) as pool:\n    list(pool.map(whole, range(30)))\n",
    "forked pool": "import multiprocessing\nlines(str.upper, 'o.txt')\nif __name__ == '__main__':\n    with multiprocessing.get_context('fork').Pool(4) as pool:\n        pool.map(whole, range(30), 1)\n",
    "forked in the function": "def each(line):\n    child = os.fork()\n    if not child:\n        whole(int(line))\n        os._exit(0)\n    os.waitpid(child, 0)\n    return line.upper()\nlines(each, 'o.txt')\n",
}


@posix_only
@pytest.mark.parametrize("how", PUBLISHING)
def test_outputs_may_be_published_by_threads_and_children_beside_a_checkpoint(root, how):
    root.write("data/in/a.txt", "".join("%d\n" % number for number in range(30)))
    kit(root, "def whole(number):\n    with open_output('t%d.txt' % number) as file:\n        file.write('x')\n" + PUBLISHING[how], checkpoint=CHECKPOINT, timeoutSec=60, **STAGES["stage"])
    root.ok()
    assert [root.read("data/s1/t%d.txt" % number) for number in range(30)] == ["x"] * 30
    assert not root.exists("state/progress_s1.whole")


HALF_WAY = """
import signal
def each(line):
    number = int(line)
    if number %% 3 == 0:
        with open_output("t%%d.txt" %% number) as file:
            file.write("x")
    if number in (10, 20) and not os.path.exists(%r + str(number)):
        open(%r + str(number), "w").close()
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(60)
    time.sleep(0.003)
    return line
if not os.path.exists(os.path.join(output_dir(), "head.txt")):
    with open_output("head.txt") as file:
        file.write("once")
lines(each, "o.txt")
"""


@posix_only
@pytest.mark.parametrize("kind", STAGES)
def test_a_resume_goes_on_whatever_the_kit_has_published_in_one_piece(root, kind):
    """Before, inside and between: none of it stands in the way, also not at the second resume."""
    root.write("data/in/a.txt", "".join("%d\n" % number for number in range(30)))
    seen = str(root.path("seen"))
    kit(root, HALF_WAY % (seen, seen), checkpoint=CHECKPOINT, **STAGES[kind])
    assert root.run("--run-id", "r").code == KILLED
    assert root.run("--run-id", "r").code == KILLED
    done = root.ok("--run-id", "r")
    assert "[RESUME] s1" in done.out and "starting from zero" not in done.out and "not used" not in done.out, done
    assert root.read("data/s1/o.txt") == root.read("data/in/a.txt") and root.read("data/s1/head.txt") == "once"
    assert sorted(os.listdir(str(root.path("data/s1")))) == sorted([".s1.done", "head.txt", "o.txt"] + ["t%d.txt" % number for number in range(0, 30, 3)])


@posix_only
def test_what_another_stage_has_made_in_the_folder_stands_in_no_resumes_way(root):
    root.write("data/in/a.txt", "1\n2\n3\n4\n")
    seen = str(root.path("seen"))
    kit(root, "def each(line):\n    if line == '3\\n' and not os.path.exists(%r):\n        while not os.path.exists(os.environ['PIPELINE_PROGRESS_FILE']):\n            time.sleep(0.01)\n"
              "        open(%r, 'w').close()\n        os.kill(os.getppid(), 9)\n        time.sleep(60)\n    time.sleep(0.01)\n    return line\n"
              "lines(each, 'o.txt')\n" % (seen, seen), checkpoint=CHECKPOINT, **STAGES["stage"])
    spec = root.json("pipeline.json")
    spec["stages"].append({"name": "b", "processor": root.processor("b", "open(out + '/b.txt', 'w').write('b')\n"), "outputDir": "data/s1"})
    root.spec(*spec["stages"])
    assert root.run("--only", "s1").code == KILLED
    root.ok("--only", "b")
    done = root.ok()
    assert "[RESUME] s1 from line" in done.out and root.read("data/s1/o.txt") == "1\n2\n3\n4\n" and root.read("data/s1/b.txt") == "b", done


@posix_only
@pytest.mark.parametrize("kind", STAGES)
def test_the_part_of_a_dead_attempt_is_no_unfinished_output_of_a_resumed_one(root, kind):
    seen = str(root.path("seen"))
    kit(root, "lines(str.upper, 'o.txt')\nwith open_output('report-%%d.txt' %% time.time_ns()) as file:\n    if not os.path.exists(%r):\n        open(%r, 'w').close()\n"
              "        os.kill(os.getppid(), 9)\n        time.sleep(60)\n" % (seen, seen), checkpoint=CHECKPOINT, **STAGES[kind])
    assert root.run("--run-id", "r").code == KILLED
    done = root.ok("--run-id", "r")
    assert "[RESUME] s1" in done.out and root.read("data/s1/o.txt") == "FIRST\n", done
    assert [name for name in os.listdir(str(root.path("data/s1"))) if name.endswith(".part")] == []


@posix_only
@pytest.mark.parametrize("kind", STAGES)
@pytest.mark.parametrize("side", ["with open_output('side') as side:",
                                  "with open_output('side') as head:\n    head.write('head:')\nwith open(out + '/side', 'a') as side:"])
def test_a_checkpoint_does_not_stand_for_what_is_filled_beside_its_lines(root, kind, side):
    root.write("data/in/a.txt", "".join("%d\n" % number for number in range(100)))
    seen = str(root.path("seen"))
    kit(root, "def both(line):\n    side.write(line)\n    side.flush()\n    if line == '50\\n' and not os.path.exists(%r):\n        open(%r, 'w').close()\n"
              "        os.kill(os.getppid(), 9)\n        os.kill(os.getpid(), 9)\n    time.sleep(0.004)\n    return line\n%s\n    lines(both, 'o.txt')\n"
        % (seen, seen, side), checkpoint={"enabled": True, "lineInterval": 5}, retry={"attempts": 2, "baseDelayMs": 1}, **STAGES[kind])
    root.run()
    done = root.ok()
    assert "[RESUME]" not in done.out and root.read("data/s1/side").replace("head:", "") == root.read("data/s1/o.txt") == root.read("data/in/a.txt"), done


BESIDE = """
import signal
progress, seen, calls = os.environ["PIPELINE_PROGRESS_FILE"], os.path.join(os.environ["PIPELINE_ROOT"], "seen-" + os.path.basename(inputs()[0])), []
def cut(here):
    if here != %(where)r or os.path.exists(seen):
        return
    while not os.path.exists(progress):
        time.sleep(0.002)
    open(seen, "w").close()
    %(end)s
def stop():
    told, before = [], signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, lambda *how: (told.append(1), before(*how) if callable(before) else os._exit(143)))
    os.kill(os.getppid(), signal.SIGTERM)
    while not told:
        time.sleep(0.002)
def die():
    os.kill(os.getppid(), 9)
    os.kill(os.getpid(), 9)
def each(text):
    calls.append(1)
    for one in (side, more):
        one.write(text)
        one.flush()
    if len(calls) == 3:
        cut("in the function")
    return text
with open_output(output_name("side-{name}")) as side, open_output(output_name("sub/{name}")) as more:
    %(feed)s(each, output_name())
    cut("behind it")
cut("published")
"""
CUTS = [("stage", "lines", "in the function", "os._exit(75)"), ("stage", "lines", "in the function", "fail('so')"), ("stage", "blocks", "in the function", "stop()"),
        ("stage", "lines", "behind it", "stop()"), ("stage", "lines", "behind it", "die()"), ("stage", "lines", "published", "die()"),
        ("tasks", "lines", "in the function", "fail('so')"), ("tasks", "lines", "in the function", "stop()"), ("tasks", "lines", "behind it", "fail('so')"),
        ("tasks", "blocks", "published", "die()"), ("served", "lines", "in the function", "fail('so')"), ("chunks", "lines", "behind it", "fail('so')")]


@posix_only
@pytest.mark.parametrize("kind, feed, where, end", CUTS, ids=["-".join(one) for one in CUTS])
def test_no_line_is_lost_in_what_is_open_around_lines_however_that_ends(root, kind, feed, where, end):
    """Left as a part, discarded, published: a resume would begin it anew, without the lines that are done."""
    root.write("data/in/a.txt", "".join("%099d\n" % number for number in range(2000)))
    stage = {"served": dict(STAGES["tasks"], forkServer=True), "chunks": dict(STAGES["stage"], chunks={"bytes": 1 << 20})}.get(kind, STAGES.get(kind))
    if kind == "served":
        root.write("data/in/b.txt", "one\n")
    kit(root, BESIDE % {"where": where, "end": end, "feed": feed}, checkpoint={"enabled": True, "lineInterval": 1},
        retry={"attempts": 2 if "75" in end or kind in ("tasks", "served") else 1, "baseDelayMs": 1}, **stage)
    out = root.run().out + root.ok().out
    assert "[RESUME]" not in out and "starting from zero" not in out, out
    assert kind != "stage" or "[NOTE] s1: checkpoint not used: it does not say how much of side-a.txt it stands for" in out, out
    assert [root.read("data/s1/" + name) for name in ("side-a.txt", "sub/a.txt", "a.txt")] == [root.read("data/in/a.txt")] * 3, out


OWN = """
first, seen = int(os.environ["PIPELINE_LINE_OFFSET"]), os.path.join(os.environ["PIPELINE_ROOT"], "seen")
def once(end, *given):
    if not os.path.exists(seen):
        open(seen, "w").close()
        end(*given)
def die():
    os.kill(os.getppid(), 9)
    os.kill(os.getpid(), 9)
with open_output("o.txt") as file:
    for number, line in enumerate(open(inputs()[0]), 1):
        if number > first:
            file.write(line)
        if number == 2:
            json.dump(%s, open(os.environ["PIPELINE_PROGRESS_FILE"], "w"))
        if number == 3:
            %s
%s
"""


@posix_only
@pytest.mark.parametrize("kind", STAGES)
@pytest.mark.parametrize("progress, inside, after", [
    ("{'lineOffset': 2}", "once(fail, 'so')", ""), ("{'lineOffset': 2}", "", "once(die)"), ("{'lineOffset': 2, 'complete': True}", "once(die)", "")],
    ids=["discarded", "published", "complete"])
def test_a_checkpoint_that_a_processor_writes_itself_does_not_stand_for_what_it_has_open(root, kind, progress, inside, after):
    root.write("data/in/a.txt", "1\n2\n3\n4\n")
    kit(root, "import json\n" + OWN % (progress, inside or "pass", after), checkpoint=CHECKPOINT, retry={"attempts": 2, "baseDelayMs": 1}, **STAGES[kind])
    out = root.run().out
    out += "" if "fail" in inside else root.ok().out
    assert root.read("data/s1/o.txt") == "1\n2\n3\n4\n" and "[RESUME]" not in out and "[DONE] s1" in out, out


@posix_only
@pytest.mark.parametrize("kind", STAGES)
def test_what_the_function_opens_and_fails_to_bring_to_its_end_leaves_the_checkpoint_as_it_is(root, kind):
    root.write("data/in/a.txt", "1\n2\n3\n4\n")
    kit(root, "seen, progress = os.path.join(os.environ['PIPELINE_ROOT'], 'seen'), os.environ['PIPELINE_PROGRESS_FILE']\ndef each(line):\n"
              "    with open_output('t' + line.strip()) as file:\n        file.write(line)\n        if line == '3\\n' and not os.path.exists(seen):\n"
              "            while not os.path.exists(progress):\n                time.sleep(0.002)\n            open(seen, 'w').close()\n            fail('so')\n"
              "    return line\nlines(each, 'o.txt')\n", checkpoint=CHECKPOINT, retry={"attempts": 2, "baseDelayMs": 1}, **STAGES[kind])
    done = root.ok()
    assert "[RESUME] s1" in done.out, done
    assert [root.read("data/s1/" + name) for name in ("o.txt", "t1", "t3", "t4")] == ["1\n2\n3\n4\n", "1\n", "3\n", "4\n"]


@posix_only
@pytest.mark.parametrize("kind", STAGES)
def test_a_generator_that_nobody_asks_for_the_rest_leaves_no_whole_output(root, kind):
    kit(root, "def tee():\n    with open_output('o.txt') as file:\n        for line in open(inputs()[0]):\n            file.write(line)\n            yield line\nnext(tee())\n",
        **STAGES[kind])
    failed = root.run()
    assert failed.code == 1 and "an output that is not finished" in failed.out + failed.err, failed
    assert not os.path.exists(str(root.path("data/s1/o.txt")))


@posix_only
@pytest.mark.parametrize("kind", STAGES)
def test_a_link_to_a_pipe_is_not_opened_to_sync_it(root, kind):
    os.mkfifo(str(root.path("pipe")))
    kit(root, "os.symlink(%r, os.path.join(output_dir(), 'link'))\n" % str(root.path("pipe")), **STAGES[kind])
    root.ok(timeout=30)


CUT_SHORT = """
gate = os.path.join(os.environ["PIPELINE_ROOT"], "gate-" + os.path.basename(inputs()[0]))
with open(os.path.join(out, output_name()), "a") as file:
    for line, text in enumerate(open(inputs()[0])):
        if line < int(os.environ["PIPELINE_LINE_OFFSET"]):
            continue
        file.write(text)
        file.flush()
        with open(os.environ["PIPELINE_PROGRESS_FILE"], "w") as progress:
            json.dump({"lineOffset": line + 1, "outputs": {output_name(): file.tell()}}, progress)
        if os.path.exists(gate):
            os.remove(gate)
            os.kill(os.getppid(), 9)
            os.kill(os.getpid(), 9)
"""


@posix_only
@pytest.mark.parametrize("restarted", [False, True])
def test_a_checkpoint_of_before_a_restart_is_not_believed_after_a_run_that_did_not_come_to_it(root, restarted):
    for name in "abcd":                     # a run looks at a few tasks ahead of those that run
        root.write("data/in/%s.txt" % name, "1\n2\n3\n")
    kit(root, CUT_SHORT, checkpoint=CHECKPOINT, forkServer=False, **STAGES["tasks"])
    root.write("gate-d.txt", "")
    assert root.run("--jobs", "1").code == KILLED
    record = root.json("state/stage_s1.json")
    if restarted:
        root.write("state/stage_s1.json", json.dumps(dict(record, bootId="an earlier one")))
    for name in "abc":
        root.write("data/in/%s.txt" % name, "1\n2\n3\n4\n")
    root.write("gate-a.txt", "")
    assert root.run("--jobs", "1").code == KILLED
    done = root.ok("--jobs", "1")
    assert ("[RESUME] s1 data/in/d.txt" in done.out) is not restarted and "[RESUME] s1 data/in/a.txt" in done.out, done


@posix_only
@pytest.mark.parametrize("force", [False, True])
def test_a_forced_task_starts_from_zero(root, force):
    root.write("data/in/a.txt", "1\n2\n3\n")
    kit(root, CUT_SHORT, checkpoint=CHECKPOINT, forkServer=False, **STAGES["tasks"])
    root.write("gate-a.txt", "")
    assert root.run().code == KILLED
    done = root.ok(*(["--force", "s1"] if force else []))
    assert ("[RESUME]" in done.out) is not force and root.read("data/s1/a.txt") == "1\n2\n3\n", done


def test_a_module_that_an_earlier_stage_has_just_made_is_seen(root):
    root.write("data/in/a.txt", "")
    make = root.processor("make", "if open('data/in/a.txt').read():\n    open(out + '/extra.py', 'w').write('VALUE = 5')\nopen(out + '/base.py', 'a').close()\n")
    root.write("proc/plugins/base.py", "")
    root.write("proc/main.py", "import os\nfrom plugins import base\ntry:\n    from plugins.extra import VALUE\nexcept ImportError:\n    VALUE = 0\n"
                               "open(os.environ['PIPELINE_OUTPUT_DIR'] + '/o', 'w').write(str(VALUE))\n")
    root.spec({"name": "s1", "processor": make, "inputs": ["data/in/a.txt"], "outputDir": "proc/plugins"},
              {"name": "s2", "processor": "proc/main.py", "needs": ["s1"], "outputDir": "data/s2"})
    root.ok()
    root.write("data/in/a.txt", "x")
    root.ok("--rehash")                     # the long way: no index
    assert root.read("data/s2/o") == "5"


def test_a_folder_that_is_gone_has_no_names_to_sync(tmp_path):
    commit = durable_files.Commit()
    commit.folders.update(dict.fromkeys([str(tmp_path / "gone"), str(tmp_path)]))
    commit.flush()
    assert not commit.folders


def test_an_empty_file_has_nothing_to_count(root):
    root.write("data/in/b.txt", "")
    kit(root, "with open_output(output_name()) as file:\n    for line in open(inputs()[0]):\n        file.write(line)\n        count(read=1, written=True, rejected=False)\n",
        reconcile=True, maxRejects=0, **STAGES["tasks"])
    root.ok()
    root.write("data/in/c.txt", "x\n")
    root.ok()
    assert root.json("state/stage_s1.json")["counts"] == {"read": 2, "written": 2, "rejected": 0}


def test_a_failure_in_a_thread_may_be_caught_by_whoever_asks_for_it(root):
    kit(root, "from concurrent.futures import ThreadPoolExecutor\nbad = 0\nwith ThreadPoolExecutor(2) as pool:\n    for one in [pool.submit(fail, 'this one') for _ in range(3)]:\n"
              "        try:\n            one.result()\n        except SystemExit:\n            bad += 1\nwith open_output('o.txt') as file:\n    file.write(str(bad))\n", **STAGES["stage"])
    root.ok()
    assert root.read("data/s1/o.txt") == "3"


def test_a_way_to_handle_errors_is_asked_only_where_there_is_one(root):
    kit(root, "import codecs\ncodecs.register_error('mine', lambda error: fail('bad byte'))\nlines(str.upper, 'o.txt', errors='mine')\n"
              "lines(str.upper, 'p.txt', encoding='latin-1', errors='xmlcharrefreplace')\n", **STAGES["stage"])
    root.ok()
    assert root.read("data/s1/o.txt") == root.read("data/s1/p.txt") == "FIRST\n"


@pytest.mark.parametrize("body", [
    "lines(str.upper, 'a.rejects.jsonl')\nlines(str.lower, 'a')\n",
    "copy_files()\nlines(str.lower, 'a')\n",
    "with open_output('./a.rejects.jsonl') as file:\n    file.write('mine')\nlines(str.lower, 'a')\n",
], ids=["lines before", "a copy", "a name with a dot"])
def test_what_this_processor_has_made_itself_is_no_old_rejects(root, body):
    root.write("data/in/a.rejects.jsonl", "first\n")
    root.write("data/in/b", "first\n")
    kit(root, body, checkpoint={"enabled": False}, inputs=["data/in/b", "data/in/a.rejects.jsonl"])
    root.ok()
    assert root.exists("data/s1/a") and root.exists("data/s1/a.rejects.jsonl")
    kit(root, "lines(str.lower, 'a')\n", checkpoint={"enabled": False}, inputs=["data/in/b"])
    root.ok()
    assert not root.exists("data/s1/a.rejects.jsonl")       # that of an earlier run goes


@posix_only
def test_what_an_attempt_that_was_killed_has_made_itself_is_no_old_rejects(root):
    kit(root, """
lines(str.lower, "x.rejects.jsonl")
if not os.path.exists("data/killed"):
    open("data/killed", "w").close()
    os.kill(os.getppid(), 9)
    os.kill(os.getpid(), 9)
lines(str.upper, "x")
""", checkpoint=CHECKPOINT, **STAGES["stage"])
    assert root.run().code == KILLED
    done = root.ok("--verbose")
    assert "already complete" in done.out and (root.read("data/s1/x"), root.read("data/s1/x.rejects.jsonl")) == ("FIRST\n", "first\n"), done


@posix_only
def test_a_second_call_is_made_when_a_kill_comes_right_after_the_first(root):
    body = "lines(str.upper, 'o.txt')\nif not os.path.exists('data/killed'):\n    open('data/killed', 'w').close()\n    os.kill(os.getppid(), 9)\n    os.kill(os.getpid(), 9)\nlines(str.lower, 'o.txt')\n"
    root.write("data/in/a.txt", "Aa\n")
    kit(root, body, checkpoint=CHECKPOINT, **STAGES["stage"])
    assert root.run().code == KILLED
    assert "[RESUME] s1" in root.ok().out
    assert root.read("data/s1/o.txt") == "aa\n"


@posix_only
def test_a_call_that_is_left_out_the_second_time_does_not_count(root):
    root.write("data/in/a.txt", "".join("line %d\n" % number for number in range(50)))
    body = ("def slow(line):\n    if line == 'line 40\\n' and not os.path.exists('data/killed'):\n        open('data/killed', 'w').close()\n        time.sleep(0.3)\n        os.kill(os.getpid(), 9)\n"
            "    time.sleep(0.01)\n    return line.upper()\nif not os.path.exists(output_dir() + '/first.txt'):\n    lines(str.upper, 'first.txt')\nlines(slow, 'o.txt')\n")
    kit(root, body, checkpoint=CHECKPOINT, retry={"attempts": 2, "baseDelayMs": 1, "maxDelayMs": 1, "jitterMs": 0}, **STAGES["stage"])
    done = root.ok("--verbose")
    assert "resuming from line" in done.out and "starting from zero" not in done.out, done
    assert root.read("data/s1/o.txt") == root.read("data/in/a.txt").upper()


def test_an_input_whose_name_begins_like_an_option_is_no_argument(root):
    root.write("-x.txt", "x\n")
    kit(root, "with open_output('o.txt') as file:\n    file.write(repr((arguments(), inputs())))\n", inputs=["-x.txt", "data/in/a.txt"], args=["--flag"])
    root.ok()
    assert root.read("data/s1/o.txt") == "(['--flag'], ['-x.txt', 'data/in/a.txt'])"


@posix_only
@pytest.mark.parametrize("call", ["lines(str.upper, 'o.txt')", "copy_files()"])
def test_a_signal_while_the_outputs_are_published_ends_the_processor_behind_them(root, call):
    body = ("import processor_kit, signal\nreplace = processor_kit._replace\ndef interrupted(source, target):\n    replace(source, target)\n"
            "    os.kill(os.getpid(), signal.SIGTERM)\nprocessor_kit._replace = interrupted\n%s\nopen('data/after', 'w').close()\n" % call)
    kit(root, body, checkpoint={"enabled": False}, **STAGES["stage"])
    done = root.run()
    assert done.code == 1 and "exit code 143" in done.out and not root.exists("data/after"), done


@posix_only
@pytest.mark.parametrize("call", ["lines(str.upper, 'o.txt')", "copy_files()"])
def test_a_signal_behind_the_last_look_for_one_is_heeded(root, call):
    body = ("import processor_kit, signal\nunwatch = processor_kit._unwatch_signals\ndef interrupted(before):\n    os.kill(os.getpid(), signal.SIGTERM)\n"
            "    unwatch(before)\nprocessor_kit._unwatch_signals = interrupted\n%s\nopen('data/after', 'w').close()\n" % call)
    kit(root, body, checkpoint={"enabled": False}, **STAGES["stage"])
    done = root.run()
    assert done.code == 1 and "exit code 143" in done.out and not root.exists("data/after"), done


def test_lines_of_many_threads_may_write_their_checkpoints(root):
    root.write("data/in/a.txt", "".join("line %d\n" % number for number in range(300)))
    kit(root, "from concurrent.futures import ThreadPoolExecutor\ndef one(number):\n    lines(str.upper, 'o%d.txt' % number)\n"
              "with ThreadPoolExecutor(8) as pool:\n    list(pool.map(one, range(24)))\n", checkpoint=CHECKPOINT, **STAGES["stage"])
    root.ok()
    assert {root.read("data/s1/o%d.txt" % number) for number in range(24)} == {root.read("data/in/a.txt").upper()}


@posix_only
def test_lines_of_children_may_write_their_checkpoints(root):
    """Each in the middle of it while the other one writes and names its own."""
    kit(root, PROCESSES + """
import processor_kit
turns = processes.Barrier(2)
def one(name):
    replace = processor_kit._replace
    def together(source, target):
        if target == os.environ["PIPELINE_PROGRESS_FILE"]:
            turns.wait(30)
        replace(source, target)
        if target == os.environ["PIPELINE_PROGRESS_FILE"]:
            turns.wait(30)
    processor_kit._replace = together
    lines(str.upper, name)
children = [processes.Process(target=one, args=(name,)) for name in ("o.txt", "p.txt")]
for child in children:
    child.start()
for child in children:
    child.join()
sys.exit(sum(child.exitcode for child in children))
""", checkpoint=dict(CHECKPOINT, lineInterval=1000), timeoutSec=60, **STAGES["stage"])
    root.ok()
    assert root.read("data/s1/o.txt") == root.read("data/s1/p.txt") == "FIRST\n"
    assert [name for name in os.listdir(str(root.path("state"))) if name.endswith(".tmp")] == []


def test_a_progress_file_of_many_gigabytes_is_not_read(tmp_path):
    path = tmp_path / "progress_s1.json"
    path.write_bytes(b"{")
    os.truncate(str(path), 40 << 30)        # it takes no room
    assert checkpoints.read_progress(str(path)) == (None, "it is larger than %d bytes" % checkpoints.MAX_BYTES)
