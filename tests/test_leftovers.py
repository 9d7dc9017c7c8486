"""What an attempt leaves that is no file: empty folders, folders without rights; and what is gone that should be there."""
from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace
from unittest import mock

import pytest
import stage_outputs
from conftest import DROP, ROOT, RUNNER, opened_by, run_without_might, wait_until

import durable_files
import file_digests
import file_tasks
import model
import program_scan
import stage_cycles
import stage_work
from chunk_work import ChunkTasksWork
from scheduler import Next, Spawn
from task_work import TasksWork

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="rights of folders")
STAGES = {"stage": {"inputs": ["data/in/*.txt"]}, "tasks": {"forEach": "data/in/*.txt"}}


@pytest.fixture
def root(project):
    project.write("data/in/a.txt", "first\n")
    return project


@pytest.mark.parametrize("how", ["retry", "next run", "a file in it"])
def test_a_folder_that_a_failed_attempt_made_is_not_in_the_way_of_the_next(root, how):
    body = ("os.makedirs(out + '/part/deep')\nif %r == 'a file in it':\n    open(out + '/part/deep/x', 'w').close()\n"
            "if not os.path.exists('data/ready'):\n    open('data/ready', 'w').close()\n    sys.exit(9)\nopen(out + '/o', 'w').close()\n" % how)
    root.spec(dict({"name": "s1", "processor": root.processor("p", body), "outputDir": "data/s1", "retry": {"attempts": 2 if how == "retry" else 1, "baseDelayMs": 1}},
                   **STAGES["stage"]))
    root.path("data/s1/mine").mkdir(parents=True)       # it was there before
    if how != "retry":
        assert root.run().code == 1
    assert "removed part/" in root.ok().out
    assert root.path("data/s1/mine").is_dir() and root.path("data/s1/part/deep").is_dir()


READ_ONLY = ("os.makedirs(out + '/tree/sub/deep')\nfor name in ('tree/x', 'tree/sub/y', 'tree/sub/deep/z'):\n    open(out + '/' + name, 'w').close()\n"
             "for name in ('tree/sub/deep', 'tree/sub', 'tree'):\n    os.chmod(out + '/' + name, 0o555)\nif not os.path.exists('data/ready'):\n    sys.exit(9)\n")


@posix_only
@pytest.mark.parametrize("how", ["next run", "reset"])
def test_folders_that_may_only_be_read_are_cleared_if_the_attempt_made_them(root, how):
    root.spec(dict({"name": "s1", "processor": root.processor("p", READ_ONLY), "outputDir": "data/s1"}, **STAGES["stage"]))
    assert run_without_might(root).returncode == 1
    if how == "reset":
        done = run_without_might(root, "reset", "s1", "--yes")
        assert done.returncode == 0 and "removed tree/sub/deep/" in done.stdout and not root.exists("data/s1/tree"), done
    root.write("data/ready", "")
    done = run_without_might(root)
    assert done.returncode == 0 and ("removed tree/sub/deep/" in done.stdout) == (how == "next run"), done
    assert root.exists("data/s1/tree/sub/deep/z")


@posix_only
def test_a_folder_that_was_there_before_has_its_rights_again_when_it_is_cleared(root):
    body = "os.chmod(out + '/mine', 0o755)\nopen(out + '/mine/x', 'w').close()\nos.chmod(out + '/mine', 0o555)\nsys.exit(9)\n"
    root.spec(dict({"name": "s1", "processor": root.processor("p", body), "outputDir": "data/s1"}, **STAGES["stage"]))
    root.path("data/s1/mine").mkdir(parents=True)
    root.path("data/s1/mine").chmod(0o555)
    assert run_without_might(root).returncode == 1
    done = run_without_might(root, "reset", "s1", "--yes")
    assert done.returncode == 0 and "removed mine/x" in done.stdout, done
    assert root.path("data/s1/mine").stat().st_mode & 0o777 == 0o555 and os.listdir(str(root.path("data/s1/mine"))) == []


@posix_only
@pytest.mark.parametrize("how", ["next run", "next attempt", "reset"])
def test_a_folder_that_may_only_be_read_of_an_earlier_success_is_cleared(root, how):
    body = ("os.makedirs(out + '/a', exist_ok=True)\nos.chmod(out + '/a', 0o755)\nopen(out + '/a/f', 'w').write(str(os.path.exists('data/bad')))\nos.chmod(out + '/a', 0o555)\n"
            "if os.path.exists('data/bad') and os.environ['PIPELINE_ATTEMPT'] == '1':\n    sys.exit(9)\n")
    root.spec(dict({"name": "s1", "processor": root.processor("p", body), "outputDir": "data/s1", "retry": {"attempts": 2 if how == "next attempt" else 1, "baseDelayMs": 0}}, **STAGES["stage"]))
    assert run_without_might(root).returncode == 0
    root.write("data/bad", "")
    done = run_without_might(root, "--force", "s1")
    assert done.returncode == (0 if how == "next attempt" else 1), done
    if how == "reset":
        assert run_without_might(root, "reset", "s1", "--yes").returncode == 0 and not root.exists("data/s1/a/f")
    root.path("data/bad").unlink()
    assert run_without_might(root).returncode == 0 and root.exists("data/s1/a/f") and root.path("data/s1/a").stat().st_mode & 0o777 == 0o555


@posix_only
def test_an_output_that_cannot_be_put_into_its_place_is_named_by_that_place(root):
    """Not by where the task has made it; as also with a target that is immutable."""
    body = "os.mkdir(out + '/sub')\nopen(out + '/sub/o', 'w').close()\n"
    root.spec(dict({"name": "s1", "processor": root.processor("p", body), "outputDir": "data/s1"}, **STAGES["tasks"]))
    root.path("data/s1/sub").mkdir(parents=True)
    root.path("data/s1/sub").chmod(0o555)
    done = run_without_might(root)
    assert done.returncode == 1 and "a.txt: %s: Permission denied; the runner must be able to write" % root.path("data/s1/sub/o") in done.stdout, done
    root.path("data/s1/sub").chmod(0o755)
    root.ok()


def test_an_empty_folder_that_came_after_the_failure_is_somebody_elses(root):
    root.spec(dict({"name": "s1", "processor": root.processor("p", "if not os.path.exists('data/ready'):\n    os.mkdir(out + '/part')\n    sys.exit(9)\n"
                                                              "os.mkdir(out + '/part')\n"), "outputDir": "data/s1"}, **STAGES["stage"]))
    assert root.run().code == 1 and root.json("state/stage_s1.json")["left"] == ["part/"]
    root.path("data/s1/theirs").mkdir()
    root.write("data/ready", "")
    root.ok()
    assert root.path("data/s1/theirs").is_dir()


MAKES_FOLDER = "os.makedirs(out + '/part')\nif not os.path.exists('data/ready'):\n    sys.exit(9)\nopen(out + '/o', 'w').close()\n"


def test_empty_folders_stay_where_the_record_does_not_know_of_folders(root):
    """It was written by an earlier version: each folder would seem new."""
    root.spec(dict({"name": "s1", "processor": root.processor("p", MAKES_FOLDER.replace("makedirs(", "makedirs(exist_ok=True, name=")), "outputDir": "data/s1"}, **STAGES["stage"]))
    root.path("data/s1/mine").mkdir(parents=True)
    assert root.run().code == 1
    record = root.json("state/stage_s1.json")
    record.update(baseline={}, left=None)
    root.write("state/stage_s1.json", json.dumps(record))
    root.write("data/ready", "")
    root.ok()
    assert root.path("data/s1/mine").is_dir()


@pytest.mark.parametrize("where", ["below", "the same", "above"])
def test_empty_folders_of_another_stage_stay(root, where):
    theirs = {"below": "data/s1/b", "the same": "data/s1", "above": "data"}[where]
    made = root.path(theirs) / {"below": "spool", "the same": "spool", "above": "s1/spool"}[where]
    root.spec(dict({"name": "s1", "processor": root.processor("p", "if not os.path.exists('data/ready'):\n    sys.exit(9)\n"), "outputDir": "data/s1"}, **STAGES["stage"]))
    assert root.run().code == 1
    other = root.processor("q", "os.makedirs(%r, exist_ok=True)\nopen(out + '/made', 'w').close()\n" % str(made))
    root.write("q.json", json.dumps({"name": "q", "stages": [{"name": "b", "processor": other, "inputs": ["data/in/a.txt"], "outputDir": theirs}]}))
    subprocess.run([sys.executable, RUNNER, "--pipeline", "q.json"], cwd=str(root.root), check=True, stdout=subprocess.DEVNULL, timeout=60)
    record = root.json("state/stage_s1.json")
    root.write("state/stage_s1.json", json.dumps(dict(record, lastStatus="running", left=None)))       # as if the runner had died
    root.write("data/ready", "")
    root.ok()
    assert made.is_dir()


@posix_only
@pytest.mark.parametrize("kind", ["tasks", "chunks"])
def test_folders_without_rights_out_of_which_nothing_is_taken_do_no_harm(root, kind):
    stage = {"tasks": dict(STAGES["tasks"], outputs=["*.txt"]), "chunks": dict(STAGES["stage"], chunks={"bytes": 1024})}[kind]
    body = "# PIPELINE_CHUNK_START\nos.mkdir(out + '/sub')\nfor name in ('x.txt', 'sub/y.txt'):\n    open(out + '/' + name, 'w').close()\nos.chmod(out + '/sub', 0o555)\n"
    root.spec(dict({"name": "s1", "outputDir": "data/s1", "processor": root.processor("p", body)}, **stage))
    done = run_without_might(root)
    assert done.returncode == 0 and not root.exists("data/s1/.s1.tasks/" if kind == "chunks" else "none"), done


@posix_only
@pytest.mark.parametrize("rights, told", [("0o555", "leaves the folder sub without the right to write in it"), ("0o000", "must be able to list")])
def test_a_task_that_leaves_a_folder_without_rights_fails_alone(root, rights, told):
    root.write("data/in/b.txt", "x")
    root.spec(dict({"name": "s1", "outputDir": "data/s1", "processor": root.processor("p", "os.mkdir(out + '/sub')\nopen(out + '/sub/' + os.path.basename(inputs[0]), 'w').close()\n"
                    "if inputs[0].endswith('a.txt'):\n    os.chmod(out + '/sub', %s)\n" % rights)}, **STAGES["tasks"]))
    for _ in range(2):
        done = run_without_might(root, "--keep-going")
        assert done.returncode == 1 and "[FAIL] s1 data/in/a.txt: " in done.stdout and told in done.stdout, done
        assert root.exists("data/s1/sub/b.txt")
    root.processor("p", "os.mkdir(out + '/sub')\nopen(out + '/sub/' + os.path.basename(inputs[0]), 'w').close()\n")
    assert run_without_might(root).returncode == 0
    assert root.exists("data/s1/sub/a.txt")


@posix_only
@pytest.mark.parametrize("rights", ["0o555", "0o000"])
@pytest.mark.parametrize("ends", ["", "\n    sys.exit(7)"], ids=["ok", "failed"])
def test_a_task_may_leave_its_own_folder_without_rights(root, rights, ends):
    """As `cp -a` does of a folder that may only be read. The next task in the slot must be able to work in it, too."""
    for name in "bc":
        root.write("data/in/%s.txt" % name, "x")
    root.spec(dict({"name": "s1", "outputDir": "data/s1", "processor": root.processor("p", "open(out + '/' + os.path.basename(inputs[0]), 'w').close()\n"
                    "if inputs[0].endswith('a.txt'):\n    os.chmod(out, %s)%s\n" % (rights, ends))}, **dict(STAGES["tasks"], maxFailedTasks=1)))
    done = run_without_might(root, "--jobs", "1")
    assert done.returncode == 0 and done.stdout.count("[FAIL] ") == bool(ends) and ("exit code 7" in done.stdout) == bool(ends), done
    assert [name for name in "abc" if root.exists("data/s1/%s.txt" % name)] == (["b", "c"] if ends else ["a", "b", "c"])


def test_a_lost_success_without_a_record_is_made_again(root):
    root.spec(dict({"name": "s1", "outputDir": "data/s1", "processor": root.processor("p", "open(out + '/o', 'w').close()\n")}, **STAGES["stage"]))
    root.write("data/s1/.s1.lost", "")
    root.ok()
    assert not root.exists("data/s1/.s1.lost") and "[SKIP] s1" in root.ok().out


def test_a_filter_that_removes_its_input_fails_and_the_others_are_done(root):
    root.write("data/in/a.txt", "line\n" * 1000)
    root.write("data/in/b.txt", "fine\n")
    take = root.processor("take", "os.path.exists('data/in/a.txt') and os.unlink('data/in/a.txt')\nsys.stdout.write(sys.stdin.read())\n")
    root.spec({"name": "s1", "processor": take, "inputs": ["data/in/a.txt"], "outputDir": "data/s1", "chunks": {"bytes": 1024, "filter": True}},
              {"name": "s2", "processor": root.processor("q", "open(out + '/o', 'w').close()\n"), "inputs": ["data/in/b.txt"], "outputDir": "data/s2"})
    done = root.run("--keep-going", "--jobs", "1")
    assert done.code == 1 and "input changed during the run: data/in/a.txt" in done.out and "[DONE] s2" in done.out, done


# Changes the first input once its chunks are to be cut, as somebody might who rotates logs; called with what to do, and before which function.
WHILE_CUT = """
import os, runpy, sys
sys.path.insert(0, sys.argv.pop(1))
what, name = sys.argv.pop(1).split(":")
import chunk_files
real = getattr(chunk_files, name)
def meddling(path, *more, **options):
    if path.endswith("a.txt"):
        os.unlink(path) if what != "shorter" else os.truncate(path, 7)
        what == "folder" and os.mkdir(path)
    return real(path, *more, **options)
setattr(chunk_files, name, meddling)
sys.argv[0] = os.path.join(sys.path[0], "pipeline_runner.py")
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("how, keep", [("gone:cut", False), ("folder:cut", False), ("shorter:hash_ranges", True), ("gone:Feeder", False), ("folder:Feeder", False)])
def test_an_input_that_goes_or_shrinks_while_it_is_cut_fails_its_stage_alone(root, how, keep):
    root.write("data/in/a.txt", "line\n" * 1000)
    root.write("data/in/b.txt", "fine\n")
    upper = root.processor("upper", "sys.stdout.write(sys.stdin.read().upper())\n")
    root.spec({"name": "s1", "processor": upper, "inputs": ["data/in/a.txt"], "outputDir": "data/s1", "chunks": {"bytes": 1024, "filter": True, "keepChunks": keep}},
              {"name": "s2", "processor": root.processor("q", "open(out + '/o', 'w').close()\n"), "inputs": ["data/in/b.txt"], "outputDir": "data/s2"})
    driver = root.write("driver.py", WHILE_CUT)
    argv = [sys.executable, str(driver), str(ROOT / "src"), how, "--pipeline", str(root.path("pipeline.json")), "--keep-going", "--jobs", "1"]
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120)
    out = done.stdout.decode("utf-8", "replace")
    assert done.returncode == 1 and "input changed during the run: data/in/a.txt" in out and "[DONE] s2" in out and "the disk" not in out, out
    assert root.json("state/stage_s1.json")["lastStatus"] == "failed" and not root.exists("data/s1/a.txt")


@pytest.mark.parametrize("name, outputs", [(".a.txt", None), ("a.part", None), ("a.part", ["a.txt"])])
def test_a_filter_whose_output_would_be_none_for_its_name_starts_no_chunk(root, name, outputs):
    root.write("data/in/" + name, "line\n")
    upper = root.processor("upper", "sys.stdout.write(sys.stdin.read().upper())\n")
    stage = {"name": "s1", "processor": upper, "inputs": ["data/in/" + name], "outputDir": "data/s1", "chunks": {"bytes": 1024, "filter": True}}
    root.spec(dict(stage, outputs=outputs) if outputs else stage)
    done = root.run()
    if outputs:
        assert done.code == 0 and root.read("data/s1/a.txt") == "LINE\n", done
        return
    assert done.code == 1 and "would be called %s, and names that begin with a dot or end in .part are no outputs; name one in \"outputs\"" % name in done.out, done
    assert "[START]" not in done.out and "standard output" not in done.out, done


class OneStage(TasksWork):
    """What _run_tasks() needs, and no more."""

    def __init__(self):
        self.run = SimpleNamespace(jobs=lambda: 1, signals=SimpleNamespace(number=0), clock=SimpleNamespace(monotonic=lambda: 0.0))
        self.store = SimpleNamespace(commit=SimpleNamespace(since=0.0))
        self.survivors, self.noted, self.is_server_stopped, self.full_disks = [], [], False, 0
        self.no_outputs, self.is_stopped = [], False

    def _task(self, trial):
        yield

    def _note_trial(self, trial):
        self.noted.append(trial)

    def _stop_server(self):
        self.is_server_stopped = True


def test_an_error_in_one_task_waits_for_the_others_before_the_stage_ends():
    """The stage's lock is held until its flow ends: another run must not begin beside tasks that are at work."""
    stage = OneStage()
    flow = stage._run_tasks(SimpleNamespace(name=name, folder=name) for name in "abcdef")
    assert isinstance(next(flow), Spawn) and isinstance(flow.send(None), Spawn) and isinstance(flow.send(None), Next)
    assert isinstance(flow.throw(OSError("the disk")), Next) and not stage.is_server_stopped     # and nothing new is spawned
    with pytest.raises(OSError, match="the disk"):
        flow.send(("b", "trial of b"))
    assert stage.noted == ["trial of b"] and stage.is_server_stopped


def test_an_error_of_a_sync_waits_for_the_tasks_too():
    stage = OneStage()
    stage.run.durability = mock.Mock(**{"flush.side_effect": OSError("the disk")})
    flow = stage._run_tasks(SimpleNamespace(name=name, folder=name) for name in "abcdef")
    next(flow), flow.send(None), flow.send(None)
    stage.run.clock.monotonic = lambda: 1e9
    assert isinstance(flow.send(("a", "trial of a")), Next) and not stage.is_server_stopped
    with pytest.raises(OSError, match="the disk"):
        flow.send(("b", "trial of b"))
    assert stage.noted == ["trial of a", "trial of b"] and stage.run.durability.flush.call_count == 1


@pytest.mark.parametrize("number, count, is_stopped", [(15, 6, True), (0, 2, False), (0, 6, None)])
def test_a_signal_after_which_tasks_are_left_stops_the_stage_though_those_at_work_came_to_a_good_end(number, count, is_stopped):
    stage = OneStage()
    flow = stage._run_tasks(SimpleNamespace(name=name, folder=name) for name in "abcdef"[:count])
    next(flow), flow.send(None), flow.send(None)
    stage.run.signals.number = number
    wish = flow.send(("a", "trial of a"))
    if is_stopped is None:
        assert isinstance(wish, Spawn)
        return flow.close()
    with pytest.raises(StopIteration):
        flow.send(("b", "trial of b"))
    assert stage.is_stopped is is_stopped and stage.noted == ["trial of a", "trial of b"]


def test_after_three_tasks_in_a_row_that_met_a_full_disk_no_more_are_started():
    stage = OneStage()
    stage.failed, stage.machine_faults, stage.met_full_disk, stage.exit_code, stage.done = {}, {}, "", None, []
    stage.console, stage.stage, stage.up_to_date = mock.Mock(), SimpleNamespace(name="s1"), 0
    stage._note_trial = lambda trial: TasksWork._note_trial(stage, trial)
    flow = stage._run_tasks(SimpleNamespace(name="t%d" % number, folder="") for number in range(100))
    wish = next(flow)

    def end(**values):
        """Let tasks be spawned until the flow waits, then one end."""
        nonlocal wish
        spawned = 0
        while isinstance(wish, Spawn):
            spawned, wish = spawned + 1, flow.send(None)
        trial = SimpleNamespace(**{**dict(task=SimpleNamespace(name="t"), attempts=1, stopped=False, failure="", is_machines=False, full_disk="", exit_code=1), **values})
        wish = flow.send(("t", trial))
        return spawned
    met = {"failure": "no space", "is_machines": True, "full_disk": "the disk is full"}
    assert [end(**met), end(**met), end()] == [2, 1, 1]     # what could be written proves that there is room again
    assert [end(**met), end(**met), end(**met)] == [1, 1, 1]
    with pytest.raises(StopIteration):
        end(**met)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="what a process has open")
@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143), (getattr(signal, "SIGHUP", 1), 129)])
def test_a_signal_while_the_first_inputs_are_read_is_an_interruption(root, number, code):
    with open(str(root.path("data/in/big.txt")), "wb") as file:
        file.truncate(30 << 30)         # it takes no room, but time
    root.spec(dict({"name": "s1", "outputDir": "data/s1", "processor": root.processor("p", "open(out + '/o', 'w').close()\n")}, **STAGES["stage"]),
              onFailure=["bin/tell.py"])
    root.write("bin/tell.py", "import os\nopen('data/told', 'w').write(os.environ['PIPELINE_RUN_STATE'])\n")
    run = root.start("--run-id", "r1")
    wait_until(lambda: any(path.endswith("/big.txt") for path in opened_by(run.pid)))
    os.kill(run.pid, number)
    out = run.communicate(timeout=60)[0]
    record = root.json("state/run_r1.json")
    assert run.returncode == code and (record["state"], record["stages"][0]["status"]) == ("interrupted", "interrupted"), (run.returncode, out, record)
    assert root.read("data/told") == "interrupted"
    os.unlink(str(root.path("data/in/big.txt")))
    root.ok("--run-id", "r2")
    root.ok("verify")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="what a process has open")
@pytest.mark.parametrize("stage", [
    {"inputs": ["data/in/big.txt"]}, {"forEach": "data/in/*.txt"}, {"inputs": ["data/in/*.txt"]},
    {"inputs": ["data/in/big.txt"], "chunks": {"bytes": 1 << 28, "keepChunks": True}},
    {"inputs": ["data/in/big.txt"], "chunks": {"bytes": 1 << 28}}], ids=["one", "forEach", "several", "chunks", "cut"])
@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143), (0, 7)])
def test_a_request_to_stop_is_heeded_while_inputs_of_a_later_stage_are_read(root, stage, number, code):
    processor = root.processor("p", "assert 'PIPELINE_CHUNK_START'\nopen(out + '/o.' + os.path.basename(os.environ.get('PIPELINE_TASK', '')), 'w').close()\n")
    for name in ("big", "large"):
        with open(str(root.path("data/in/%s.txt" % name)), "wb") as file:
            file.truncate(40 << 30)         # it takes no room, but time
    if "chunks" in stage:                   # the file as a whole is known: its chunks are read
        if "keepChunks" in stage["chunks"]:     # what is read at length: without a line end, where to cut
            with open(str(root.path("data/in/big.txt")), "r+b") as file:
                for at in range(1 << 28, 40 << 30, 1 << 28):
                    file.seek(at)
                    file.write(b"\n")
        stamp = file_digests.signature(os.stat(str(root.path("data/in/big.txt"))))
        root.write("state/digests.json", json.dumps({"schema": 1, "files": {"data/in/big.txt": stamp + ["0" * 64, ""]}, "scans": {}}))
    root.spec({"name": "early", "outputDir": "data/early", "processor": processor}, dict(stage, name="late", outputDir="data/late", processor=processor))
    run = root.start("--run-id", "r1", *([] if number else ["--stop-after", "4s"]))
    wait_until(lambda: any(path.endswith("/big.txt") for path in opened_by(run.pid)))
    if number:
        os.kill(run.pid, number)
    out = run.communicate(timeout=60)[0].decode("utf-8")
    record = root.json("state/run_r1.json")
    assert run.returncode == code and record["state"] == "interrupted", (run.returncode, out)
    why = "stopped by the clock (--stop-after 4s)" if not number else "interrupted" if "chunks" in stage else "interrupted while its inputs were read"
    assert "[STOP] late: %s\n" % why in out and "[START] late" not in out and [one["status"] for one in record["stages"]] == ["ok", "interrupted"], out
    for name in ("big", "large"):
        root.write("data/in/%s.txt" % name, "x\n")
    out = root.ok("--run-id", "r2").out
    assert "[SKIP] early" in out and "[DONE] late" in out
    root.ok("verify")


@posix_only
def test_modules_beside_the_file_that_a_processors_link_leads_to_are_in_the_key(root):
    root.write("lib/helper.py", "VALUE = 1\n")
    root.write("lib/real.py", "import os, helper\nopen(os.environ['PIPELINE_OUTPUT_DIR'] + '/o', 'w').write(str(helper.VALUE))\n")
    root.path("bin").mkdir(exist_ok=True)
    root.path("bin/p.py").symlink_to("../lib/real.py")
    root.spec(dict({"name": "s1", "outputDir": "data/s1", "processor": "bin/p.py"}, **STAGES["stage"]))
    root.ok()
    assert "[SKIP] s1" in root.ok().out and "[SKIP] s1" in root.ok().out
    root.write("lib/helper.py", "VALUE = 22\n")
    root.ok()
    assert root.read("data/s1/o") == "22"
    root.write("lib/more.py", "")           # a new name there may hide a module: looked at by the index, too
    assert program_scan.script_folder(str(root.root), "bin/p.py", windows=False) == "lib"
    assert program_scan.script_folder(str(root.root), "bin/p.py", windows=True) == "bin"
    os.symlink(str(root.root.parent / "else.py"), str(root.path("bin/q.py")))
    assert program_scan.script_folder(str(root.root), "bin/q.py", windows=False) == os.path.realpath(str(root.root.parent))
    os.symlink("lib/real.py", str(root.path("top.py")))
    os.symlink("../top_real.py", str(root.path("bin/r.py")))
    assert program_scan.script_folder(str(root.root), "bin/r.py", windows=False) == ""


@posix_only
def test_a_tree_is_removed_though_a_file_takes_another_with_it(tmp_path, monkeypatch):
    """As on macOS where a file's attributes are a file beside it: ._NAME goes with NAME."""
    for name in ("x", "._x", "y", "._y"):
        (tmp_path / "top" / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "top" / "in" / name).write_text(name)
    unlink, scandir = os.unlink, os.scandir

    def with_attributes(name, **options):
        unlink(name, **options)
        folder, name = os.path.split(name)
        if not name.startswith("._"):
            unlink(os.path.join(folder, "._" + name), **options)
    monkeypatch.setattr(os, "unlink", with_attributes)
    monkeypatch.setattr(os, "scandir", lambda folder: contextlib.nullcontext(sorted(scandir(folder), key=lambda entry: entry.name, reverse=True)))
    durable_files.remove_tree(str(tmp_path / "top"))
    assert os.listdir(str(tmp_path)) == []
    with pytest.raises(FileNotFoundError):
        durable_files.remove_tree(str(tmp_path / "top"))


@posix_only
def test_a_tree_whose_folders_give_no_rights_is_removed(tmp_path):
    (tmp_path / "top" / "in").mkdir(parents=True)
    (tmp_path / "top" / "in" / "file").write_text("x")
    os.chmod(str(tmp_path / "top" / "in"), 0o000)
    os.chmod(str(tmp_path / "top"), 0o500)
    code = "import sys; sys.path.insert(0, sys.argv[1]); import durable_files; durable_files.remove_tree(sys.argv[2])"
    words = ["-c", code, str(ROOT / "src"), str(tmp_path / "top")]
    subprocess.run([sys.executable] + (["-c", DROP] if sys.platform.startswith("linux") else []) + words, check=True, timeout=60)
    assert not (tmp_path / "top").exists()


def test_an_input_that_changes_while_chunks_of_another_are_done_fails_the_stage(root):
    root.write("data/in/b.txt", "second\n")
    filter_ = root.processor("take", "text = sys.stdin.read()\nif text == 'second\\n':\n    open('data/in/a.txt', 'a').write('more\\n')\nsys.stdout.write(text)\n")
    root.spec({"name": "s1", "processor": filter_, "inputs": ["data/in/*.txt"], "outputDir": "data/s1", "chunks": {"bytes": 1024, "filter": True}})
    done = root.run("--jobs", "1")
    assert done.code == 1 and "input changed during the run: data/in/a.txt" in done.out and not root.exists("data/s1/b.txt"), done
    root.write("data/in/b.txt", "other\n")
    root.ok("--jobs", "1")


def test_a_chunk_is_compared_with_its_own_input_alone():
    work = ChunkTasksWork.__new__(ChunkTasksWork)
    stamps = {"p": [1], "a": [2], "b": [3]}
    work.facts, work._stamps_of = SimpleNamespace(material=SimpleNamespace(stamps=stamps, inputs=["a", "b"])), {}
    assert work._own_stamps("a") == {"p": [1], "a": [2]} and work._own_stamps("b") == {"p": [1], "b": [3]} and work._own_stamps("a") is work._own_stamps("a")


@pytest.mark.parametrize("count", [10, 11, 2000])
def test_long_lists_of_stages_are_cut_short_in_texts(count):
    names = ["s%d" % number for number in range(count)]
    shown = stage_cycles.shown_cycle(names)
    assert shown == names if count == 10 else shown == names[:7] + ["(%d more)" % (count - 9)] + names[-2:]
    assert model.shown_names(names) == "s0, s1, s2, s3, s4 and %d more" % (count - 5) and model.shown_names(names[:5]) == "s0, s1, s2, s3, s4"


def test_stages_that_were_not_run_are_counted(root):
    root.spec({"name": "a", "processor": root.processor("p", "sys.exit(3)\n"), "outputDir": "data/a"},
              *[{"name": "b%d" % number, "processor": "bin/p.py", "needs": ["a"], "outputDir": "data/b%d" % number} for number in range(7)])
    assert "(0 ok, 0 skipped, 1 failed, 7 not run)" in root.run("--keep-going").out


def test_a_plan_and_a_fault_name_the_first_of_many_stages(root):
    stage = {"processor": root.processor("p", "")}
    many = [dict(stage, name="b%d" % number, outputDir="data/b%d" % number) for number in range(12)]
    root.spec(*many, dict(stage, name="last", needs=[one["name"] for one in many], outputDir="data/last"))
    assert "PENDING last (waits for b0, b1, b2, b3, b4 and 7 more)\n" in root.ok("plan").out
    root.spec(*[dict(one, needs=["b%d" % ((number + 1) % 12)]) for number, one in enumerate(many)], order="graph")
    by_needs = root.run("validate")
    root.spec(*[dict(one, inputs=["data/b%d/x" % ((number + 1) % 12)], outputs=["x"]) for number, one in enumerate(many)], order="graph")
    by_files = root.run("validate")
    for refused in (by_needs, by_files):
        assert refused.code == 2 and all("(4 more)" in line for line in refused.err.splitlines()), refused


def test_in_a_copy_of_the_folder_a_file_is_what_it_was_only_if_size_and_time_are():
    before = {stage_outputs.ITSELF: [1, 1], "same": [5, 10, 11, 2, 1], "edited": [5, 10, 11, 3, 1], "longer": [5, 10, 11, 4, 1], "gone": [5, 10, 11, 5, 1]}
    there = stage_outputs.Folder({"same": [5, 10, 99, 7, 6], "edited": [5, 20, 99, 8, 6], "longer": [6, 10, 99, 9, 6]}, [], {}, [], [2, 6])
    assert stage_outputs.changed_since(stage_outputs.as_of_now(before, there), there.files) == ["edited", "longer"]
    here = there._replace(itself=[1, 1])        # no copy: the file was put there anew
    assert stage_outputs.changed_since(stage_outputs.as_of_now(before, here), here.files) == ["edited", "longer", "same"]


def test_a_folder_in_the_place_of_a_lost_output_is_left_to_whoever_made_it(tmp_path):
    (tmp_path / "o" / "theirs").mkdir(parents=True)
    assert stage_outputs.undo_outputs(str(tmp_path), ["o", "gone"], {}, file_digests.hash_prefix) == [] and (tmp_path / "o" / "theirs").is_dir()


def test_a_junction_that_a_failed_attempt_left_is_cleared_and_not_what_lies_behind_it(root, tmp_path, junctions):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "x.txt").write_bytes(b"theirs")
    body = "if not os.path.exists('data/ready'):\n    %s(%r, os.path.join(out, 'j'))\n    sys.exit(9)\n" % (junctions.make_call, str(tmp_path / "theirs"))
    root.spec(dict({"name": "s1", "processor": root.processor("p", body), "outputDir": "data/s1"}, **STAGES["stage"]))
    junctions.expect(root.path("data/s1/j"))
    assert junctions.run(root).code == 1 and root.json("state/stage_s1.json")["left"] == ["j"]
    root.write("data/ready", "")
    done = junctions.run(root)
    assert done.code == 0 and "removed j" in done.out and not os.path.lexists(str(root.path("data/s1/j"))), done
    assert (tmp_path / "theirs" / "x.txt").read_bytes() == b"theirs"


def test_a_recorded_junction_does_not_count_as_changed_after_a_restart(root, tmp_path, junctions):
    """As a link; the content of a file may be another one on the disk."""
    (tmp_path / "theirs").mkdir()
    junctions.expect(root.path("data/s1/j"))
    body = "if os.path.lexists(out + '/j'):\n    sys.exit(0 if os.path.exists('data/ready') else 9)\n%s(%r, os.path.join(out, 'j'))\n" % (junctions.make_call, str(tmp_path / "theirs"))
    stage = dict({"name": "s1", "processor": root.processor("p", body), "outputDir": "data/s1"}, **STAGES["stage"])
    root.spec(stage)
    assert junctions.run(root).code == 0
    root.write("data/in/a.txt", "second\n")
    assert junctions.run(root).code == 1
    root.write("state/stage_s1.json", json.dumps(dict(root.json("state/stage_s1.json"), bootId="another")))
    root.write("data/ready", "")
    done = junctions.run(root)
    assert done.code == 0 and "removed" not in done.out and os.path.lexists(str(root.path("data/s1/j"))), done


@pytest.mark.parametrize("is_there", [True, False])
def test_a_junction_that_a_task_made_goes_with_its_file(root, tmp_path, junctions, is_there):
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "x.txt").write_bytes(b"theirs")
    root.write("data/in/b.txt", "second\n")
    for folder in ("data/s1", "data/s1/.s1.tasks/slot0", "data/s1/.s1.tasks/slot1"):
        junctions.expect(root.path(folder) / "a.txt")
        junctions.expect(root.path(folder) / "b.txt")
    body = "%s(%r, os.path.join(out, os.path.basename(inputs[0])))\n" % (junctions.make_call, str(theirs))
    root.spec(dict({"name": "s1", "processor": root.processor("p", body), "outputDir": "data/s1", "prune": True}, **STAGES["tasks"]))
    assert junctions.run(root).code == 0
    if not is_there:
        shutil.rmtree(str(theirs))
    done = junctions.run(root)
    assert done.code == 0 and "[SKIP] s1" in done.out, done
    root.path("data/in/a.txt").unlink()
    done = junctions.run(root)
    assert done.code == 0 and sorted(name for name in os.listdir(str(root.path("data/s1"))) if name[0] != ".") == ["b.txt"], done
    assert not is_there or (theirs / "x.txt").read_bytes() == b"theirs"


def test_a_junction_of_a_task_that_leads_into_its_own_folder_is_no_output(root, junctions):
    """The folder goes with the task."""
    junctions.expect(root.path("data/s1/.s1.tasks/slot0/j"))
    body = "os.mkdir(os.path.join(out, 'deep'))\n%s(os.path.abspath(os.path.join(out, 'deep')), os.path.join(out, 'j'))\n" % junctions.make_call
    root.spec(dict({"name": "s1", "processor": root.processor("p", body), "outputDir": "data/s1"}, **STAGES["tasks"]))
    done = junctions.run(root)
    assert done.code == 1 and "output j is a link to " in done.out and "would lead elsewhere" in done.out, done


def test_a_junction_is_one_entry_of_its_folder(tmp_path, junctions):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "x.txt").write_bytes(b"theirs")
    junctions.make(tmp_path / "theirs", tmp_path / "out" / "j")
    junction = str(tmp_path / "out" / "j")
    found = stage_outputs.list_folder(str(tmp_path / "out"))
    assert (list(found.files), found.folders, stage_outputs.is_folder(junction)) == (["j"], [], False)
    assert file_digests.output_content(junction) == file_digests.read_content(junction) != (-1, "")
    assert stage_outputs.undo_outputs(str(tmp_path / "out"), ["j"], {"j": (0, hashlib.sha256().hexdigest())}, file_digests.hash_prefix) == ["removed j"]
    assert os.listdir(str(tmp_path / "out")) == [] and (tmp_path / "theirs" / "x.txt").read_bytes() == b"theirs"


def test_the_folder_of_a_task_is_emptied_through_no_junction(tmp_path, junctions, monkeypatch):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "x.txt").write_bytes(b"theirs")
    (tmp_path / "out" / "deep").mkdir(parents=True)
    junctions.make(tmp_path / "theirs", tmp_path / "out" / "j")
    removed, remove_tree = [], durable_files.remove_tree
    monkeypatch.setattr(durable_files, "remove_tree", lambda path: (removed.append(os.path.basename(path)), remove_tree(path)))
    file_tasks._empty(str(tmp_path / "out"))
    assert removed == ["deep"] and os.listdir(str(tmp_path / "out")) == [] and (tmp_path / "theirs" / "x.txt").exists()


def test_nothing_behind_a_junction_is_given_other_rights(tmp_path, junctions, monkeypatch):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "out" / "deep").mkdir(parents=True)
    junctions.make(tmp_path / "theirs", tmp_path / "out" / "j")
    changed = []
    monkeypatch.setattr(os, "chmod", lambda path, mode: changed.append(os.path.basename(path)))
    durable_files._open_folders(str(tmp_path / "out"))
    assert changed == ["out", "deep"]


@pytest.mark.skipif(sys.platform == "win32", reason="links")
def test_nothing_is_cut_through_a_link_in_the_place_of_an_output(tmp_path):
    (tmp_path / "out").mkdir()
    victim = tmp_path / "victim"
    victim.write_bytes(b"12345 and more")
    (tmp_path / "out" / "linked").symlink_to(victim)
    (tmp_path / "out" / "grown").write_bytes(b"12345 and more")
    before = {name: (5, hashlib.sha256(b"12345").hexdigest()) for name in ("linked", "grown")}
    done = stage_outputs.undo_outputs(str(tmp_path / "out"), ["grown", "linked"], before, file_digests.hash_prefix)
    assert done == ["cut grown back to 5 bytes", "removed linked"] and victim.read_bytes() == b"12345 and more"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["grown"]


@pytest.mark.skipif(sys.platform == "win32", reason="links")
@pytest.mark.parametrize("part, final, is_publishing, problem", [
    (5, None, False, ""), (7, None, False, ""), (4, None, False, "o~s~t.part is shorter than the checkpoint vouches for"), (4, 5, True, "o~s~t.part is shorter than the checkpoint vouches for"),
    (None, 5, True, ""), (None, 5, False, "o~s~t.part is missing"), (None, 6, True, "o~s~t.part is missing"), (None, None, True, "o~s~t.part is missing"),
    ("link", None, False, "o~s~t.part is missing")])
def test_an_output_that_is_not_as_its_checkpoint_vouches_for_is_no_place_to_go_on_from(tmp_path, part, final, is_publishing, problem):
    (tmp_path / "elsewhere").write_bytes(b"x" * 9)
    for name, size in (("o~s~t.part", part), ("o", final)):
        if size == "link":
            (tmp_path / name).symlink_to("elsewhere")
        elif size is not None:
            (tmp_path / name).write_bytes(b"x" * size)
    assert stage_outputs.cut_problem(str(tmp_path), {"o~s~t.part": 5}, is_publishing, {"o~s~t.part": "o"}) == problem


def test_of_the_part_files_of_several_stages_only_a_stages_own_go_and_none_that_is_kept(tmp_path):
    for name in ("a~s~1.part", "a~s~2.part", "a~other~1.part", "s.part", "sub~s~1.part", "b~s~1"):
        (tmp_path / name).write_bytes(b"")
    assert sorted(stage_outputs.remove_parts(str(tmp_path), "s", {"a~s~2.part"})) == ["a~s~1.part", "sub~s~1.part"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a~other~1.part", "a~s~2.part", "b~s~1", "s.part"]


def test_what_an_attempt_left_is_undone_and_nothing_of_others(tmp_path):
    for name in ("nobodys", "own"):
        (tmp_path / name).write_bytes(b"12345")
    baseline = stage_outputs.list_folder(str(tmp_path)).baseline()
    (tmp_path / "new" / "deep").mkdir(parents=True)
    for name in ("nobodys", "own", "foreign", "new/deep/f"):
        with open(str(tmp_path / name), "ab") as file:
            file.write(b" and more")
    done = stage_outputs.clear_leftovers(str(tmp_path), stage_outputs.list_folder(str(tmp_path)), baseline, {"own": (5, hashlib.sha256(b"12345").hexdigest())}, {"foreign"}, file_digests.hash_prefix, set())
    assert done == ["removed new/deep/f", "cut own back to 5 bytes", "removed new/deep/", "removed new/",
                    "nobodys, which was there before and is of no stage, may be half written, and stays"]
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"nobodys": b"12345 and more", "own": b"12345", "foreign": b" and more"}


def test_outputs_in_a_folder_whose_path_is_too_long_for_windows_are_not_overlooked(tmp_path, too_deep):
    with pytest.raises(OSError, match="characters, and Windows takes no more than 247 unless LongPathsEnabled is set") as told:
        stage_outputs.list_folder(str(tmp_path))
    assert told.value.filename == str(too_deep)
    assert stage_outputs.list_folder(str(too_deep / "none")).files == {}


def test_a_folder_that_cannot_be_removed_as_a_path_in_it_is_too_long_for_windows_is_told_so(tmp_path, too_deep, monkeypatch):
    def rmtree(path, **handler):
        raise FileNotFoundError(errno.ENOENT, "The system cannot find the path specified", filename)
    monkeypatch.setattr(shutil, "rmtree", rmtree)
    for filename, told in ((str(too_deep), "Windows takes no more than 247"), (str(tmp_path / "gone"), "cannot find the path")):
        with pytest.raises(OSError, match=told) as error:
            durable_files.remove_tree(str(tmp_path))
        assert error.value.filename == filename


def test_a_folder_whose_name_makes_it_no_output_is_not_looked_into(tmp_path):
    for name in ("d.part", ".hidden", "open"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "f").write_bytes(b"")
    found = stage_outputs.list_folder(str(tmp_path))
    assert (sorted(found.files), found.parts, sorted(found.hidden), found.folders) == (["open/f"], ["d.part"], [".hidden"], ["open/"])


# --- hard links to inputs --------------------------------------------------------------------------------------------

WHOLE = {"inputs": ["data/in/*.txt"]}
EACH = {"forEach": "data/in/*.txt", "inputs": ["data/shared.txt"]}


@posix_only
@pytest.mark.parametrize("how", ["failed", "stopped"])
@pytest.mark.parametrize("before, after, linked", [
    (WHOLE, WHOLE, "data/in/a.txt"), (dict(WHOLE, chunks={"bytes": 100}), dict(WHOLE, chunks={"bytes": 100}), "data/in/a.txt"),
    (EACH, EACH, "data/in/a.txt"), (EACH, EACH, "data/shared.txt"), (WHOLE, EACH, "data/in/a.txt")],
    ids=["stage", "chunks", "task", "shared", "became tasks"])
def test_a_hard_link_to_an_input_that_is_cleared_is_no_change_of_the_input(root, before, after, linked, how):
    root.write("data/shared.txt", "shared\n")
    end = "" if how == "failed" else "open('linked', 'w').close()\nwhile True:\n    time.sleep(0.01)\n"
    stage = {"name": "s1", "outputDir": "data/s1", "retry": {"attempts": 1}}
    root.spec(dict(stage, processor=root.processor("p", "# PIPELINE_CHUNK_START\nos.link(%r, out + '/x.txt')\n%s" % (linked, end)), **before))
    if how == "failed":
        done = root.run("--run-id", "a")
        assert done.code == 1 and "input changed during the run: %s (" % linked in done.out, done
    else:
        process = root.start("--run-id", "a")
        wait_until(root.path("linked").exists)
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=60)
        assert process.returncode == 143, out
    root.spec(dict(stage, processor=root.processor("p", "# PIPELINE_CHUNK_START\nopen(out + '/x.txt', 'w').write(open(%r).read())\n" % linked), **after))
    done = root.ok("--run-id", "b")
    assert "[DONE] s1" in done.out and root.path("data/s1/x.txt").stat().st_nlink == 1, done
    root.ok("--run-id", "c")
    assert "[SKIP] s1" in root.ok("--run-id", "d").out
    root.ok("verify", "--outputs")


@posix_only
def test_only_a_file_that_is_still_what_its_digest_says_gets_another_stamp(tmp_path):
    names = ("same", "linked", "written", "changed", "gone")
    for name in names:
        (tmp_path / name).write_bytes(b"content")
    stamps = {name: file_digests.signature(os.stat(str(tmp_path / name))) for name in names}
    digests = dict.fromkeys(names, hashlib.sha256(b"content").hexdigest())
    wait_until(lambda: _is_later(tmp_path, stamps))
    os.link(str(tmp_path / "linked"), str(tmp_path / "other"))
    for name, data in (("written", b"CONTENT"), ("changed", b"content and more")):
        (tmp_path / name).write_bytes(data)
        os.utime(str(tmp_path / name), ns=(stamps[name][1], stamps[name][1]))       # only its status tells
    (tmp_path / "gone").unlink()
    now = file_digests.signature(os.stat(str(tmp_path / "linked")))
    assert now != stamps["linked"] and stage_work.restamped(str(tmp_path), stamps, digests, lambda: None) == {"linked": now}


def _is_later(folder, stamps):
    """Tell whether the clock of the file system has gone on since the files of *stamps* were made."""
    (folder / "clock").write_bytes(b"")
    return (folder / "clock").stat().st_ctime_ns > max(stamp[2] for stamp in stamps.values())
