"""What a checkpoint may vouch for: made from the very files of now, by an attempt that was not refused, with all that it names still there."""
from __future__ import annotations

import json
import os
import subprocess
import sys

import checkpoints
import pytest

from conftest import KILLED, ROOT, without_coverage

linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel layer of Linux")
KINDS = {"stage": {"inputs": ["data/in/a.txt"]}, "task": {"forEach": "data/in/a.txt"}, "chunk": {"inputs": ["data/in/a.txt"], "chunks": {"bytes": 1000}}}
GOOD, BAD = "good1\ngood2\ngood3\n", "BAD_1\nBAD_2\nBAD_3\n"
CHECKPOINT = {"enabled": True, "lineInterval": 1}
STOP, KILL = "os.kill(os.getppid(), 15); time.sleep(60)", "os.kill(os.getppid(), 9); time.sleep(60)"

# A processor of its own kind: a checkpoint after each line, and behind the second one, the first time, @END@.
OWN = """
# PIPELINE_CHUNK_START
start, path, progress, is_first = int(os.environ["PIPELINE_LINE_OFFSET"]), sys.argv[1], os.environ["PIPELINE_PROGRESS_FILE"], not os.path.exists("seen")
def begin():
    @BEGIN@
if is_first:
    begin()
with open(out + "/o.txt", "a" if start else "w") as file:
    for number, line in enumerate(open(path).read().splitlines(True)[start:], start + 1):
        file.write(line)
        file.flush()
        with open(progress + ".new", "w") as new:
            json.dump({"lineOffset": number, "outputs": {"o.txt": file.tell()}}, new)
        os.replace(progress + ".new", progress)
        if number == 2 and is_first:
            open("seen", "w").close()
            @END@
"""


@pytest.fixture
def root(project):
    project.write("data/in/a.txt", GOOD)
    return project


def own(root, end, begin="pass", **stage):
    program = root.processor("own", OWN.replace("@END@", end).replace("@BEGIN@", begin))
    root.spec(dict({"name": "s1", "processor": program, "outputDir": "data/s1", "checkpoint": CHECKPOINT}, **stage))


def kit(root, body, **stage):
    root.spec(dict({"name": "s1", "processor": root.processor("p", "from processor_kit import *\n" + body), "outputDir": "data/s1", "checkpoint": CHECKPOINT}, **stage))


# --- the files that it was made from

@pytest.mark.parametrize("end, noted", [("sys.exit(3)", False), (STOP, os.name == "nt"), (KILL, True)], ids=["failed", "stopped", "killed"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_made_while_another_file_lay_in_the_inputs_place_is_not_resumed_once_the_right_one_is_back(root, kind, end, noted):
    """Of the same size; the key is the same again."""
    own(root, end, "open(path, 'r+').write(%r)" % BAD, **KINDS[kind])
    assert root.run().code in (1, 143, 15, KILLED) and root.read("data/in/a.txt") == BAD
    root.write("data/in/a.txt", GOOD)
    done = root.ok()
    assert "[RESUME]" not in done.out and root.read("data/s1/o.txt") == GOOD, done
    assert ("checkpoint not used: a file that it was made from has been written, replaced or touched since" in done.out) is noted, done


@pytest.mark.parametrize("touched", [None, "data/in/a.txt", "data/shared.txt"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_is_resumed_while_nothing_that_it_was_made_from_was_touched(root, kind, touched):
    root.write("data/shared.txt", "shared")
    own(root, KILL, watch=["data/shared.txt"], **KINDS[kind])
    assert root.run().code == KILLED
    if touched:
        os.utime(str(root.path(touched)))
    done = root.ok()
    assert ("[RESUME] s1" in done.out) is not touched and ("checkpoint not used: a file that it" in done.out) is bool(touched), done
    assert root.read("data/s1/o.txt") == GOOD


def test_a_chunk_does_not_depend_on_the_inputs_of_others(root):
    root.write("data/in/b.txt", GOOD)
    own(root, KILL, inputs=["data/in/*.txt"], chunks={"bytes": 1000})
    assert root.run("--jobs", "1").code == KILLED
    os.utime(str(root.path("data/in/b.txt")))
    done = root.ok()
    assert "[RESUME] s1 data/in/a.txt#1 from line 2" in done.out and root.read("data/s1/o.txt") == GOOD * 2, done


# --- attempts that were refused

@linux_only
@pytest.mark.parametrize("end", ["pass", "sys.exit(3)", STOP], ids=["ended well", "failed", "stopped"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_an_attempt_made_that_tried_to_use_the_network_is_not_gone_on_with(root, kind, end):
    knock = "__import__('ctypes').CDLL(None).__getattr__('soc' + 'ket')(2, 1, 0)"
    own(root, end, knock, **KINDS[kind])
    assert root.run().code in (6, 143)
    done = root.ok()
    assert "[RESUME]" not in done.out and root.read("data/s1/o.txt") == GOOD, done


JUDGING = "bad = []\ndef each(line):\n    bad.extend([line] if line == 'good2\\n' else [])\n    %s\n    return line\nlines(each, output_name())\nsys.exit(1 if bad else 0)\n"


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_processor_has_brought_to_its_end_and_then_refused_is_not_accepted_by_the_next_run(root, kind):
    kit(root, JUDGING % "pass", **KINDS[kind])
    for _ in range(2):
        done = root.run()
        assert done.code == 1 and "[RESUME]" not in done.out, done


def test_a_task_that_failed_has_failed_though_the_run_is_killed_before_the_others_end(root):
    root.write("data/in/b.txt", "slow\n")
    kit(root, JUDGING % "while line == 'slow\\n' and not os.path.exists('seen'):\n        if b'failed' in open('state/tasks_s1.jsonl', 'rb').read():\n"
                        "            open('seen', 'w').close()\n            os.kill(os.getppid(), 9)\n            time.sleep(60)\n        time.sleep(0.01)",
        forkServer=False, forEach="data/in/*.txt")
    assert root.run("--jobs", "2").code == KILLED
    done = root.run()
    assert done.code == 1 and "[FAIL] s1 data/in/a.txt: exit code 1" in done.out, done


@pytest.mark.parametrize("kind", ["task", "chunk"])
def test_a_checkpoint_of_a_task_that_nobody_has_synced_is_not_believed_where_no_record_says_in_which_boot_it_was_made(root, kind):
    own(root, KILL, **KINDS[kind])
    assert root.run().code == KILLED
    root.path("state/stage_s1.json").unlink()
    done = root.ok()
    assert "[NOTE] s1: 1 checkpoint of tasks not used: not synced, and no record says in which boot they were made" in done.out, done
    assert "[RESUME]" not in done.out and root.read("data/s1/o.txt") == GOOD, done


# --- what it names is gone

# Says with its progress file that it has brought its work to its end, and believes that the next time.
COMPLETE = """
# PIPELINE_CHUNK_START
progress = os.environ["PIPELINE_PROGRESS_FILE"]
if os.environ.get("PIPELINE_RESUME") == "1" and json.load(open(progress)).get("complete"):
    sys.exit(0)
with open(sys.argv[1], "rb") as file:
    file.seek(int(os.environ.get("PIPELINE_CHUNK_START", 0)))
    data = file.read(int(os.environ.get("PIPELINE_CHUNK_END", 1 << 20)) - int(os.environ.get("PIPELINE_CHUNK_START", 0)))
for name in ("head.txt", "o.txt"):
    with open(out + "/" + name, "wb") as file:
        file.write(data)
with open(progress, "w") as file:
    json.dump({"lineOffset": 3, "outputs": {"o.txt": len(data)}, "whole": ["head.txt"], "complete": True, "durable": True}, file)
"""
WITH_COUNT = "n = []\nlines(lambda line: n.append(line) or line, 'o.txt')\nif n:\n    with open(out + '/head.txt', 'w') as file:\n        file.write('%d lines' % len(n))\n"
DIES = """
import os, sys
sys.path.insert(0, %r)
import file_tasks
real, left = file_tasks.FileTasksWork._publish, [%d]
def die(*given):
    real(*given)
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), 9)
file_tasks.FileTasksWork._publish = die
import runpy
runpy.run_path(os.path.join(sys.path[0], "pipeline_runner.py"), run_name="__main__")
"""


@pytest.mark.parametrize("after", [1, 2])
@pytest.mark.parametrize("is_kit", [False, True], ids=["own", "kit"])
def test_a_task_killed_while_its_outputs_get_their_names_makes_all_of_them_again(root, is_kit, after):
    stage = {"forEach": "data/in/a.txt"}
    if is_kit:
        kit(root, WITH_COUNT, **stage)
    else:
        root.spec(dict({"name": "s1", "processor": root.processor("p", COMPLETE), "outputDir": "data/s1", "checkpoint": CHECKPOINT}, **stage))
    root.write("data/in/a.txt", "one\n")
    root.ok()
    root.write("data/in/a.txt", GOOD)
    argv = [sys.executable, "-c", DIES % (str(ROOT / "src"), after), "--pipeline", str(root.path("pipeline.json"))]
    assert subprocess.run(argv, cwd=str(root.root), env=without_coverage(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, timeout=60).returncode == KILLED
    root.ok()
    assert root.read("data/s1/o.txt") == GOOD and root.read("data/s1/head.txt") == ("3 lines" if is_kit else GOOD)
    assert sorted(one["path"] for one in root.json("state/stage_s1.json")["outputs"]) == ["head.txt", "o.txt"]


@pytest.mark.parametrize("name", ["o.txt", "head.txt"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_complete_checkpoint_does_not_count_where_an_output_that_it_names_is_gone(root, kind, name):
    end = "if not os.path.exists('seen'):\n    open('seen', 'w').close()\n    " + KILL
    root.spec(dict({"name": "s1", "processor": root.processor("p", COMPLETE + end), "outputDir": "data/s1", "checkpoint": CHECKPOINT}, **KINDS[kind]))
    assert root.run().code == KILLED
    for path in root.path("data/s1").rglob(name):
        path.unlink()
    done = root.ok()
    assert "checkpoint not used: %s is missing" % name in done.out and root.read("data/s1/" + name) == GOOD, done


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"x" * path.stat().st_size)], ids=["gone", "altered"])
def test_a_kept_chunk_that_is_not_as_it_was_made_is_made_again(root, damage):
    root.write("data/in/a.txt", GOOD * 20)
    root.spec({"name": "s1", "processor": root.processor("p", COMPLETE), "outputDir": "data/s1", "checkpoint": CHECKPOINT, "inputs": ["data/in/a.txt"],
               "chunks": {"bytes": 100, "keepChunks": True}})
    root.ok()
    for path in root.path("data/s1/.s1.tasks").rglob("o.txt"):
        damage(path)
    with open(str(root.path("data/in/a.txt")), "a") as file:
        file.write(GOOD)
    root.ok()
    assert root.read("data/s1/o.txt") == GOOD * 21


# --- and what must go on working

@pytest.mark.parametrize("more, begun, problem", [
    ({"open": []}, "o.txt.rejects.jsonl", False), ({"open": []}, "sub/p.rejects.jsonl", False), ({"open": []}, "side.txt", True),
    ({"open": []}, "side.txt.rejects.jsonl", True), ({}, "o.txt.rejects.jsonl", True), ({"open": ["o.txt.rejects.jsonl"]}, "o.txt.rejects.jsonl", True)])
def test_the_first_reject_behind_a_checkpoint_does_not_make_it_useless(tmp_path, more, begun, problem):
    """Where the kit says what was open then. What a child has open is in no list, so all else stays in doubt."""
    parts = {"o.txt~s1~t.1.part": "o.txt", "sub/p~s1~t.1.part": "sub/p"}
    for name in (*parts, begun + "~s1~t.1.part"):
        (tmp_path / "out" / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / "out" / name).write_bytes(b"1234")
    (tmp_path / "progress.json").write_text(json.dumps(dict({"lineOffset": 2, "outputs": dict.fromkeys(parts, 4), "publish": parts}, **more)))
    record = {"stage": "s1", "idempotencyKey": "k", "bootId": "b", "lastStatus": "failed", "baseline": {}}
    found = checkpoints.checkpoint_at(str(tmp_path / "progress.json"), str(tmp_path / "out"), record, "k", "b")
    assert found.resumable is not problem and (" much of %s " % begun in found.problem if problem else not found.problem)


CHILD = """
reading, writing = os.pipe()
child = os.fork()
if not child:
    os.close(writing)
    with open_output("side.txt") as side:
        for line in open(reading):
            side.write(line)
            side.flush()
    os._exit(0)
os.close(reading)
def each(line):
    os.write(writing, line.encode())
    if line == "50\\n" and not os.path.exists("seen"):
        while not os.path.exists(os.environ["PIPELINE_PROGRESS_FILE"]):
            time.sleep(0.002)
        open("seen", "w").close()
        os.kill(os.getppid(), 9)
        os.kill(child, 9)
        os.kill(os.getpid(), 9)
    time.sleep(0.003)
    return line
lines(each, "o.txt")
os.close(writing)
os.waitpid(child, 0)
"""


@pytest.mark.skipif(os.name == "nt", reason="fork")
@pytest.mark.parametrize("kind", ["stage", "task"])
def test_no_line_is_lost_in_what_a_child_process_has_open(root, kind):
    root.write("data/in/a.txt", "".join("%d\n" % number for number in range(60)))
    kit(root, CHILD, **KINDS[kind])
    assert root.run().code == KILLED
    done = root.ok()
    assert root.read("data/s1/side.txt") == root.read("data/s1/o.txt") == root.read("data/in/a.txt"), done


def test_a_task_that_failed_goes_on_from_its_checkpoint_in_the_next_run(root):
    root.write("data/in/b.txt", "")
    own(root, "sys.exit(3)", forEach="data/in/*.txt")
    root.processor("own", root.read("bin/own.py").replace("/o.txt", "/' + os.path.basename(path) + '").replace("o.txt", "' + os.path.basename(path) + '").replace('"', "'"))
    done = root.run("--jobs", "1")
    assert done.code == 1 and "[FAIL] s1 data/in/a.txt: exit code 3" in done.out, done
    assert len(list(root.path("data/s1/.s1.tasks").iterdir())) == 1
    done = root.ok()
    assert "[RESUME] s1 data/in/a.txt from line 2" in done.out and root.read("data/s1/a.txt") == GOOD and not root.exists("data/s1/.s1.tasks"), done
