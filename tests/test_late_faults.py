"""Faults of the disk between two durable steps: what is said afterwards is true, and the next run heals it.

A driver lets a call of the runner fail, or ends the runner there.
"""
from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys

import pytest

import run_ledger
import seal_keys
import state_store
from conftest import KILLED, run_without_might, settle

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the drivers look at /proc")
DRIVER = """
import errno, os, runpy, sys
runner = sys.argv[1]
sys.path.insert(0, os.path.dirname(runner))
real_open, real_close, real_replace, real_fsync, real_ftruncate = os.open, os.close, os.replace, os.fsync, os.ftruncate

def path_of(descriptor):
    return os.readlink("/proc/self/fd/%%d" %% descriptor)

def fail(number, path):
    raise OSError(number, os.strerror(number), path)
%s
sys.argv[:] = sys.argv[1:]
runpy.run_path(runner, run_name="__main__")
"""
NO_SPACE_FOR_MARKER = """
def refuse(path, *more, **named):
    if str(path).endswith(".done.tmp"):
        fail(errno.ENOSPC, path)
    return real_open(path, *more, **named)
os.open = refuse
"""


# A file that somebody has open, as FUSE and NFS remove it; "" for a name under which it stays.
HELD_OPEN = """
def hide(path, *, dir_fd=None):
    folder, name = os.path.split(os.fspath(path))
    if name == %r:
        os.rename(path, os.path.join(folder, ".fuse_hidden1"), src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
    elif name.startswith(".fuse_hidden") or name == %r:
        fail(errno.EBUSY, path)
    else:
        real_unlink(path, dir_fd=dir_fd)
real_unlink, os.unlink = os.unlink, hide
"""


def driven(project, fault, *arguments):
    """Run the program with a fault; return (exit code, its output)."""
    driver = project.write("driver.py", DRIVER % fault)
    argv = project.argv(*arguments)
    done = subprocess.run([argv[0], str(driver)] + argv[1:], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120)
    return done.returncode, done.stdout.decode("utf-8", "replace")


def copying(project, **stage):
    project.write("in/a.txt", "a\n")
    project.write("in/b.txt", "b\n")
    body = "for path in inputs:\n    open(os.path.join(out, os.path.basename(path)), 'w').write(open(path).read())\n"
    return dict({"name": "c", "processor": project.processor("copy", body), "outputDir": "out/c"}, **stage)


def joining(project):
    body = "open(out + '/o', 'w').write(''.join(open(path).read() for path in inputs))\nif os.path.exists(%r):\n    os.kill(os.getppid(), 9)\n    time.sleep(60)\n" % str(project.path("deadly"))
    return {"name": "z", "processor": project.processor("join", body), "inputs": ["out/c/*"], "outputDir": "out/z"}


def check_said(project, run_id):
    """verify, evidence and export hold, and see it when somebody changes an output afterwards."""
    project.ok("verify", "--outputs")
    project.ok("evidence", run_id, "-o", str(project.path("../evidence.zip")))
    project.ok("export", run_id, "-o", str(project.path("../export.json")))
    project.write("out/c/a.txt", "tampered")
    assert project.run("verify", "--outputs").code == 5


@pytest.mark.parametrize("kind", [{"inputs": ["in/*"]}, {"forEach": "in/*"}], ids=["stage", "tasks"])
def test_a_stage_that_a_killed_run_had_finished_is_vouched_for(project, kind):
    for number in range(12 if "forEach" in kind else 0):      # more than a record lists
        project.write("in/%d.txt" % number, "x")
    project.spec(copying(project, **kind), joining(project))
    project.write("deadly", "")
    assert project.run("--run-id", "f").code == KILLED
    project.path("deadly").unlink()
    assert "[SKIP] c" in project.ok("--run-id", "g").out
    check_said(project, "g")


@pytest.mark.parametrize("most", [100, 0], ids=["few logs", "many logs"])
@pytest.mark.parametrize("kind, log", [({"inputs": ["in/*"]}, "c.1.log"), ({"forEach": "in/*"}, "c/1.1.log")], ids=["stage", "tasks"])
def test_the_logs_of_a_stage_that_a_killed_run_had_finished_are_vouched_for(project, kind, log, most):
    """However soon the kill comes after it: what the stage record does not keep is in the run record by then."""
    stage = copying(project, forkServer=False, **kind)
    project.write(stage["processor"], "print('at work')\n" + project.read(stage["processor"]))
    project.spec(stage, joining(project))
    project.write("deadly", "")
    code, said = driven(project, "import run_ledger, run_records\nrun_ledger.MOST_KEPT, run_records.RECORD_S = %d, 1e9\n" % most, "--run-id", "f")
    assert code == KILLED and ("logs" in project.json("state/stage_c.json")) == bool(most), said
    project.path("deadly").unlink()
    assert "[SKIP] c" in project.ok("--run-id", "g").out
    told, = [one for one in project.json("state/run_f.json")["stages"] if one["stage"] == "c"]
    assert bool(told.get("recovered")) == bool(most) and "state/logs/f/" + log in [one["path"] for one in told["logs"]], told
    project.ok("verify")
    project.write("state/logs/f/" + log, "edited")
    done = project.run("verify")
    assert done.code == 5 and "EDITED" in done.out and log in done.out, done


def test_of_a_run_that_died_with_the_machine_only_the_logs_count_that_are_on_the_disk(tmp_path):
    store = state_store.StateStore(str(tmp_path))
    logs = [{"path": "state/logs/f/" + name, "bytes": 2, "sha256": hashlib.sha256(b"x\n").hexdigest()} for name in ("whole", "torn", "gone")]
    (tmp_path / "state/logs/f").mkdir(parents=True)
    (tmp_path / logs[0]["path"]).write_bytes(b"x\n")
    (tmp_path / logs[1]["path"]).write_bytes(b"\0\0")
    record = {"stage": "s", "idempotencyKey": "k", "keyParts": {}, "outputs": [], "logs": [*logs, 7, {"path": "../x"}], "networkRefusals": [{"count": 1}]}
    here, later = (run_ledger.recovered_entry(store, dict(record, bootId=boot)) for boot in (state_store.boot_id(), "earlier"))
    assert here["logs"] == logs and later["logs"] == logs[:1] and here["networkRefusals"] == later["networkRefusals"] == [{"count": 1}]


@pytest.mark.parametrize("kind", [{"inputs": ["in/*"]}, {"forEach": "in/*"}], ids=["stage", "tasks"])
def test_a_stage_whose_marker_could_not_be_written_is_vouched_for(project, kind):
    project.spec(copying(project, **kind), joining(project))
    code, said = driven(project, NO_SPACE_FOR_MARKER, "--run-id", "f")
    assert code == 5 and "No space left on device" in said and "Traceback" not in said, said
    told, = [one for one in project.json("state/run_f.json")["stages"] if one["stage"] == "c"]
    assert told["status"] == "ok" and told["recovered"] and not told["hadMarker"] and "No space left" in told["reason"] and len(told["outputs"]) == 2, told
    metrics = project.json("state/metrics_f.json")
    assert (metrics["okStages"], metrics["failedStages"], metrics["stages"][0]["status"]) == (1, 0, "ok") and "state: failed (1 ok, 0 skipped, 0 failed" in said, metrics
    assert "[NOTE] c: finished and recorded" in said and "[FAIL] c" not in said, said
    project.ok("verify")
    done = project.ok("--run-id", "g")
    assert "[SKIP] c" in done.out and "marker restored" in done.out, done
    marker = project.path("out/c/.c.done")
    text = marker.read_bytes()
    marker.unlink()                     # whoever does that to the one that was restored means it
    assert "RUN     c (marker missing" in project.ok("plan").out
    marker.write_bytes(text)
    check_said(project, "g")


@pytest.mark.parametrize("kind", [{"inputs": ["in/*"]}, {"forEach": "in/*"}], ids=["stage", "tasks"])
def test_a_stage_that_could_not_even_be_recorded_as_at_work_was_not_made_by_that_run(project, kind):
    project.spec(copying(project, **kind))
    project.ok("--run-id", "f")
    project.write("in/a.txt", "other\n")
    code, said = driven(project, NO_SPACE_FOR_MARKER.replace(".done.tmp", "stage_c.json.tmp"), "--run-id", "g")
    assert code == 5 and "[FAIL] c" in said and "No space left on device" in said, said
    project.ok("verify")
    project.ok("--run-id", "h")
    check_said(project, "h")


def test_an_error_as_late_as_the_closing_of_the_ledger_changes_nothing(project):
    project.spec(copying(project, inputs=["in/*"]))
    fault = "def late(descriptor):\n    path = path_of(descriptor)\n    real_close(descriptor)\n    if path.endswith('ledger.jsonl'):\n        fail(errno.EIO, path)\nos.close = late\n"
    code, said = driven(project, fault, "--run-id", "f")
    assert code == 0, said
    check_said(project, "f")


def test_a_mount_that_dies_during_a_run_is_told_of_in_a_line_that_names_a_file(project, tmp_path):
    """Closing what lies there fails, too: it must not hide the first error, nor keep the rest from being given back."""
    dead = str(tmp_path / "dead")
    project.spec({"processor": project.processor("last", "open(out + '/o', 'w').close()\nopen(%r, 'w').close()\n" % dead)})
    fault = ("root, dead = %r, %r\nis_dead = lambda path: path.startswith(root) and os.path.exists(dead)\n"
             "def close(descriptor):\n    path = path_of(descriptor)\n    real_close(descriptor)\n    fail(errno.ENOTCONN, None) if is_dead(path) else None\n"
             "def refuse(real):\n    return lambda path, *more, **named: fail(errno.ENOTCONN, path) if is_dead(str(path)) else real(path, *more, **named)\n"
             "os.close, os.open, os.replace = close, refuse(real_open), refuse(real_replace)\n") % (str(project.root), dead)
    code, said = driven(project, fault, "--run-id", "f")
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert code == 1 and "Traceback" not in said and len(errors) == 1, said
    assert errors[0].startswith("error: %s" % project.root) and errors[0].endswith("mount it again"), said
    os.unlink(dead)
    project.ok("--run-id", "f")


def test_a_log_whose_closing_fails_ends_no_run(project):
    """As a file server has it whose disk is full: only then it tells."""
    project.spec({"processor": project.processor("talk", "print('hello', flush=True)\nopen(out + '/o', 'w').close()\n")})
    fault = ("import attempt_output, io\nclass Late(io.FileIO):\n    def close(self):\n        was_open = not self.closed\n        super().close()\n"
             "        fail(errno.ENOSPC, None) if was_open else None\n"
             "attempt_output.open = lambda path, mode, buffering: Late(path, mode)\n")
    code, said = driven(project, fault, "--run-id", "f")
    assert code == 0 and "[NOTE] s1: the log is incomplete: No space left on device\n" in said, said
    project.ok("verify", "--outputs")


def test_a_lock_folder_of_which_somebody_has_a_file_open_keeps_no_run_from_working(project):
    project.spec(copying(project, inputs=["in/*"]))
    for number in range(3):
        code, said = driven(project, HELD_OPEN % ("owner.json", ""), *(["--force", "c"] if number == 1 else []))
        assert code == 0 and ("[DONE] c" if number < 2 else "[SKIP] c") in said and os.listdir(str(project.path("locks/c.lock"))) == [".fuse_hidden1"], said
    assert "[SKIP] c" in project.ok().out and not project.exists("locks/c.lock")


def test_a_lock_folder_of_ours_that_cannot_be_removed_is_not_called_a_strangers(project):
    project.spec(copying(project, inputs=["in/*"], lock={"waitSeconds": 0}))
    assert driven(project, HELD_OPEN % ("", "owner.json"))[0] == 0
    code, said = driven(project, HELD_OPEN % ("", "owner.json"), "--force", "c")
    assert code == 4 and "the folder locks/c.lock of a run that is over cannot be removed; another program" in said, said
    project.ok("--force", "c")


def test_an_old_chunk_that_somebody_has_open_fails_no_stage(project):
    stage = copying(project, processor=shutil.which("tr"), args=["a-z", "A-Z"], inputs=["in/*"], chunks={"bytes": 100, "filter": True, "keepChunks": True})
    project.spec(stage)
    project.ok()
    project.spec(dict(stage, args=["a-z", "B-ZA"]))
    code, said = driven(project, HELD_OPEN % ("a.txt", ""))
    left = sorted(project.path("out/c").rglob(".fuse_hidden1"))
    assert code == 0 and project.read("out/c/a.txt") == "B\n" and len(left) == 1, (said, left)
    assert code == 0 and sorted(os.listdir(str(left[0].parent))) == [".fuse_hidden1"]
    project.spec(stage)                     # the same chunks as at first, and their folders
    code, said = driven(project, HELD_OPEN % ("a.txt", ""))
    assert code == 0 and project.read("out/c/a.txt") == "A\n", said
    project.spec(dict(stage, args=["a-z", "B-ZA"]))
    project.ok()
    assert not list(project.path("out/c").rglob(".fuse_hidden1"))


def test_an_end_of_which_nobody_knows_whether_it_stands_is_named_by_the_next_run(project):
    """The entry's sync fails, and so does taking it back."""
    project.spec(copying(project, inputs=["in/*"]))
    fault = ("syncs = []\ndef refuse(descriptor):\n    if path_of(descriptor).endswith('ledger.jsonl'):\n        syncs.append(1)\n        if len(syncs) == 2:\n            fail(errno.EIO, None)\n"
             "    real_fsync(descriptor)\ndef stuck(descriptor, size):\n    fail(errno.EROFS, None) if path_of(descriptor).endswith('ledger.jsonl') else real_ftruncate(descriptor, size)\n"
             "os.fsync = os.fdatasync = refuse\nos.ftruncate = stuck\n")
    code, said = driven(project, fault, "--run-id", "f")
    assert code == 5 and "ledger.jsonl" in said and "Traceback" not in said, said
    project.ok("--run-id", "g")
    project.ok("verify", "--outputs")


def test_an_output_that_cannot_be_read_is_not_pruned_and_not_given_up(project):
    """Taken for changed by somebody, it would stay for good, and be read by the next stage."""
    project.spec(copying(project, forEach="in/*", prune=True), joining(project))
    project.ok("--run-id", "f")
    project.path("in/b.txt").unlink()
    fault = "import file_digests\nreal = file_digests.read_content\nfile_digests.read_content = lambda full, *heed: fail(errno.EIO, full) if full.endswith('b.txt') else real(full, *heed)\n"
    code, said = driven(project, fault, "--run-id", "g")
    assert code == 5 and "out/c/b.txt: Input/output error" in said, said
    project.ok("--run-id", "h")
    assert not project.exists("out/c/b.txt") and project.read("out/z/o") == "a\n"


NO_PLACE = """
def replace(source, path, **more):
    if str(path).endswith("/out/c/b.txt"):
        fail(errno.ENOSPC, path)
    return real_replace(source, path, **more)
os.replace = replace
"""
NO_RECORD = """
def refuse(path, *more, **named):
    if "stage_c.json" in str(path) and os.path.exists(os.path.join(os.path.dirname(path), "../out/c/b.txt")):
        fail(errno.ENOSPC, path)
    return real_open(path, *more, **named)
os.open = refuse
"""


@pytest.mark.parametrize("kind, fault, attempts, logs", [
    ({"inputs": ["in/*"]}, NO_RECORD, 1, ["c.1.log"]),
    ({"forEach": "in/*"}, NO_PLACE, 2, ["1.1.log", "2.1.log", "c.tasks.jsonl"]),
    ({"forEach": "in/*"}, NO_RECORD, 2, ["1.1.log", "2.1.log", "c.tasks.jsonl"]),
], ids=["stage", "tasks", "later"])
def test_what_a_stage_has_done_before_the_runner_could_not_go_on_is_told(project, kind, fault, attempts, logs):
    stage = copying(project, forkServer=False, **kind)
    project.write(stage["processor"], "print('at work')\n" + project.read(stage["processor"]))
    project.spec(stage)
    code, said = driven(project, fault, "--run-id", "f", "--jobs", "1")
    assert code == 5 and "[FAIL] c: " in said and "No space left on device" in said, said
    told, = project.json("state/run_f.json")["stages"]
    assert told["status"] == "failed" and told["attempts"] == attempts and told["durationMs"] > 0 and told["key"] and told["bytesIn"] == 4, told
    assert sorted(os.path.basename(one["path"]) for one in told["logs"]) == logs, told
    done = project.ok("status")
    assert done.out.splitlines()[1].split()[1] == "failed" and "last run died" not in done.out, done
    assert "last run died" not in project.ok("explain", "c").out
    project.ok("verify")
    project.ok("--run-id", "g")
    check_said(project, "g")


DIE_BEFORE = "def die(source, target, **more):\n    if target.replace(os.sep, '/').endswith('/out/c/' + %r):\n        os._exit(9)\n    return real_replace(source, target, **more)\nos.replace = die\n"


@pytest.mark.parametrize("is_killed", [False, True])
@pytest.mark.parametrize("first, second", [("x", "x/y"), ("x/y/z", "x"), ("x/y", "x/y/z")])
def test_a_task_may_make_a_folder_where_it_made_a_file_and_the_other_way_round(project, is_killed, first, second):
    body = "made = out + '/' + open(inputs[0]).read()\nos.makedirs(os.path.dirname(made), exist_ok=True)\nopen(made, 'w').close()\n"
    project.write("in/a", first)
    project.spec({"name": "c", "processor": project.processor("p", body), "forEach": "in/*", "outputDir": "out/c"})
    project.ok()
    project.write("in/a", second)
    if is_killed:
        assert driven(project, DIE_BEFORE % second)[0] == 9
    assert "[DONE] c" in project.ok().out
    assert [path.relative_to(project.path("out/c")).as_posix() for path in project.path("out/c").rglob("*") if path.is_file() and ".c." not in path.as_posix()] == [second]
    assert "[SKIP] c" in project.ok().out
    project.ok("verify")


BY_CHUNK = "name = %r[int(os.environ['PIPELINE_CHUNK_START']) // 2]\nos.makedirs(os.path.dirname(out + '/' + name), exist_ok=True)\nopen(out + '/' + name, 'w').close()\n"


@pytest.mark.parametrize("names, why", [
    (["x/y", "x/y"], "out/c/x is in the way of its output: "), (["y", "y/x"], "its chunks make y and y/x: a file and a folder of one name\n")], ids=["taken", "both"])
def test_chunks_whose_outputs_find_no_place_fail_their_stage_only(project, names, why):
    other = dict(copying(project), name="d", inputs=["in/*"], outputDir="out/d")
    project.write("in/a.txt", "1\n2\n")
    project.write("out/c/x", "somebody's")
    project.spec({"name": "c", "processor": project.processor("p", BY_CHUNK % names), "inputs": ["in/a.txt"], "outputDir": "out/c", "chunks": {"bytes": 2}}, other)
    done = project.run("--keep-going", "--jobs", "1")
    assert done.code == 1 and "[FAIL] c: " + why in done.out and "[DONE] d" in done.out, done
    assert sorted(os.listdir(str(project.path("out/c")))) == [".c.tasks", "x"]


NO_FOLDER = """
real_mkdir = os.mkdir
def refuse(path, *more):
    if ".c.tasks" in str(path):
        fail(errno.ENOSPC, path)
    real_mkdir(path, *more)
os.mkdir = refuse
"""


@pytest.mark.parametrize("kind", [{"forEach": "in/*"}, {"inputs": ["in/*"], "chunks": {"bytes": 1, "filter": True}}], ids=["tasks", "chunks"])
def test_a_private_folder_that_cannot_be_made_fails_its_stage_only(project, kind):
    one, two = copying(project, forkServer=False, **kind), dict(copying(project), name="d", inputs=["in/*"], outputDir="out/d")
    if "chunks" in kind:
        one["processor"] = "/bin/cat"
    project.spec(one, two)
    code, said = driven(project, NO_FOLDER, "--keep-going", "--jobs", "1")
    assert code == 1 and "[FAIL] c in/a.txt" in said and ": cannot make out/c/.c.tasks: No space left on device" in said and "[DONE] d" in said, said
    project.ok()


def test_nothing_is_left_of_joining_that_failed_beside_a_chunk_that_failed(project):
    """The joiner has ended by itself then. The last chunk waits, so that it has; where it has not, it is stopped."""
    project.write("in/a.txt", "h\n1\n2\n3\n")
    body = ("start = int(os.environ['PIPELINE_CHUNK_START'])\n"
            "if start == 6:\n    time.sleep(0.3)\n    sys.exit(3)\nopen(out + '/o.txt', 'w').write('h\\n1\\n' if start == 2 else 'another header\\n2\\n')\n")
    project.spec({"name": "c", "processor": project.processor("p", body), "inputs": ["in/a.txt"], "outputDir": "out/c", "chunks": {"bytes": 2, "headerLines": 1}})
    done = project.run("--jobs", "1")
    assert done.code == 1 and "exit code 3" in done.out, done
    assert [name for name in os.listdir(str(project.path("out/c"))) if name.endswith(".part")] == []


# --- commands that were killed and are given again -------------------------------------------------------------------

@pytest.mark.parametrize("kind", [{"inputs": ["in/*"]}, {"forEach": "in/*"}, {"inputs": ["in/*"], "chunks": {"bytes": 1}}], ids=["stage", "tasks", "chunks"])
@pytest.mark.parametrize("where", [".c.done", "stage_c.json"])
def test_an_accept_that_was_killed_goes_through_when_it_is_given_again(project, kind, where):
    stage = copying(project, **kind)
    stage["processor"] = project.processor("copy", "from processor_kit import lines, output_name\nlines(str, output_name() if %r else 'o')\n" % ("forEach" in kind))
    project.spec(stage)
    project.ok()
    os.utime(str(project.path("bin/copy.py")), (1, 1))
    fault = "def kill(source, target):\n    os._exit(9) if target.endswith(%r) else real_replace(source, target)\nos.replace = kill\n" % where
    code, said = driven(project, fault, "accept", "c", "--reason", "moved")
    assert code == 9, said
    assert "[ACCEPT] c: " in project.ok("accept", "c", "--reason", "moved").out
    assert "[SKIP] c" in project.ok().out
    project.ok("verify", "--outputs")


def test_a_new_stage_that_was_killed_is_made_whole_when_it_is_given_again(project):
    project.spec(copying(project, inputs=["in/*"]))
    fault = "def kill(source, target):\n    os._exit(9) if target.endswith('test_stage_n1.py') else real_replace(source, target)\nos.replace = os.rename = kill\nos.link = kill\n"
    code, said = driven(project, fault, "new-stage", "n1")
    assert code == 9 and project.exists("tests"), said
    project.ok("new-stage", "n1")
    assert project.exists("tests/__init__.py") and project.exists("tests/test_stage_n1.py")
    project.write("tests/own.py", "")
    project.path("tests/__init__.py").unlink()
    project.ok("new-stage", "n2")
    assert not project.exists("tests/__init__.py")      # somebody else's folder by now


def test_a_folder_of_modules_that_cannot_be_listed_is_no_empty_one(project):
    """Else the modules beside a processor would be missing in its key, and be there again in the next run."""
    project.spec(copying(project, inputs=["in/*"]))
    fault = ("real = os.listdir\ndef refuse(folder='.'):\n    if str(folder).endswith('/bin'):\n        fail(errno.EIO, folder)\n    return real(folder)\nos.listdir = refuse\n")
    code, said = driven(project, fault, "--run-id", "f")
    assert code == 5 and "bin: Input/output error" in said and "Traceback" not in said, said


NO_END = """
def refuse(source, path, **named):
    if str(path).endswith("ledger.end"):
        fail(errno.ENOSPC, path)
    return real_replace(source, path, **named)
os.replace = refuse
"""
KILL_BEFORE = NO_END.replace("fail(errno.ENOSPC, path)", "os.kill(os.getpid(), 9)")
KILL_AFTER = NO_END.replace("fail(errno.ENOSPC, path)", "real_replace(source, path), os.kill(os.getpid(), 9)")


@pytest.mark.parametrize("mode", ["hmac", "forward"])
@pytest.mark.parametrize("first, second", [(NO_END, NO_END), (KILL_BEFORE, KILL_BEFORE), (KILL_BEFORE, KILL_AFTER), (NO_END, KILL_BEFORE)],
                         ids=["full disk twice", "killed twice", "killed before and after", "full disk and killed"])
def test_a_new_sealed_ledger_whose_end_cannot_be_noted_twice_is_gone_on_with(project, tmp_path, mode, first, second):
    """A second entry without ledger.end would be taken for what is left of a ledger that was cut off, for good."""
    project.spec(copying(project, inputs=["in/*"]))
    key, first_key = str(tmp_path / "seal.key"), str(tmp_path / "first.key")
    seal_keys.make_key_file(key, mode)
    shutil.copy(key, first_key)
    for run_id, fault in (("f", first), ("g", second)):
        code, said = driven(project, fault, "--run-id", run_id, "--key", key)
        assert code == 5 and "ledger.end: No space left on device" in said if fault == NO_END else code == KILLED, said
        assert "ok" in project.ok("verify", "--key", first_key).out.splitlines()[-1]
    project.ok("--run-id", "h", "--key", key)
    assert [json.loads(line)["seq"] for line in project.read("state/ledger.jsonl").splitlines()][-1] == project.json("state/ledger.end")["seq"]
    assert "note" not in project.ok("verify", "--key", first_key).out


def test_a_pipe_in_the_place_of_an_output_that_waits_to_be_synced_stops_nothing(project):
    """Made by the stage after it; opened as if it were a file, the run would wait for who writes into it, deaf to signals."""
    project.processor("a", "open(out + '/x.txt', 'w').write('1')\n")
    project.processor("b", "os.unlink('data/a/x.txt')\nos.mkfifo('data/a/x.txt')\n")
    project.spec({"name": "a", "processor": "bin/a.py", "outputDir": "data/a"}, {"name": "b", "processor": "bin/b.py", "outputDir": "data/b"})
    done = project.ok()
    assert "[DONE] b" in done.out, done
    done = project.ok("--only", "a")
    assert "[DONE] a" in done.out and project.read("data/a/x.txt") == "1", done


# --- a stage at work beside, in the same folder ----------------------------------------------------------------------

BESIDE = """
class Entries:
    def __init__(self, found):
        self.found = iter(found)
    def __iter__(self):
        return self
    def __next__(self):
        return next(self.found)
    def __enter__(self):
        return self
    def __exit__(self, *how):
        pass
    def close(self):
        pass

def scan(folder="."):
    folder = os.path.realpath(folder)
    paths = [os.path.join(folder, name) for name in (".late.tmp", "late.txt")] if folder.endswith("/out") else []
    for path in paths:
        open(path, "w").close()
    if paths:
        os.makedirs(os.path.join(folder, "late"), exist_ok=True)
        seen.append(os.path.join(folder, "stays-%%d.txt" %% len(seen)))
        open(seen[-1], "w").close()
    found = list(real_scandir(folder))
    for path in paths:
        os.unlink(path)
    if folder.endswith("/late"):
        os.rmdir(folder)
    return Entries(found)
seen, real_scandir, os.scandir = [], os.scandir, scan
"""


def test_what_a_stage_beside_removes_while_the_folder_is_listed_is_no_fault_and_what_it_makes_meanwhile_is_not_undone(project):
    body = "open(out + '/mine.txt', 'w').close()\nsys.exit(os.environ['PIPELINE_ATTEMPT'] == '1')\n"
    project.write("in/a.txt", "a\n")
    project.spec({"name": "a", "processor": project.processor("a", body), "inputs": ["in/*"], "outputDir": "out", "outputs": ["mine.txt"], "retry": {"attempts": 2, "baseDelayMs": 1}},
                 {"name": "b", "processor": project.processor("b", ""), "inputs": ["in/*"], "outputDir": "out", "outputs": ["*-*.txt"]}, order="graph")
    code, said = driven(project, BESIDE.replace("%%", "%"), "--only", "a")
    assert code == 0 and "leftovers of an unfinished attempt: removed mine.txt\n" in said and "[NOTE] a: made" not in said, said
    made = sorted(int(name[6:-4]) for name in os.listdir(str(project.path("out"))) if name.startswith("stays-"))
    assert made == list(range(len(made))) and made, made


# --- a stage at work while files are read for the key of the next ---------------------------------------------------

READS = """
import chunk_files, file_digests, stage_keys, time
chunk_files.usable_cpus, stage_keys.LARGE_BYTES, real_hash = lambda: 2, 1, file_digests.hash_file
def read(path, *heed):
    if "/big/" in path:
        open("reading", "w").close()
        deadline = time.monotonic() + 20
        while not os.path.exists("printed"):
            assert time.monotonic() < deadline, "the stage at work stands still"
            time.sleep(0.01)
    return real_hash(path, *heed)
file_digests.hash_file = read
"""


def test_a_stage_that_prints_goes_on_while_several_large_files_are_read_for_the_key_of_the_next(project):
    for name in ("in/a.txt", "big/a.txt", "big/b.txt"):
        project.write(name, "x\n")
    prints = "while not os.path.exists('reading'):\n    time.sleep(0.01)\nprint('x' * 200000, flush=True)\nopen('printed', 'w').close()\n"
    project.spec({"name": "s", "processor": project.processor("s", ""), "inputs": ["in/*"], "outputDir": "out/s"},
                 {"name": "a", "processor": project.processor("a", prints), "inputs": ["in/*"], "outputDir": "out/a"},
                 {"name": "b", "processor": project.processor("b", ""), "inputs": ["big/*"], "outputDir": "out/b", "needs": ["s"]}, order="graph")
    code, said = driven(project, "os.chdir(%r)\n" % str(project.root) + READS, "--jobs", "2")
    assert code == 0, said


KINDS = {"plain": {"inputs": ["data/in/*.txt"]}, "tasks": {"forEach": "data/in/*.txt"}, "chunks": {"inputs": ["data/in/*.txt"], "chunks": {"bytes": 100}}}


def two_stages(project, kind):
    """Write a pipeline of two stages that copy, in folders of which the first one's may be closed."""
    project.write("data/in/a.txt", "first\n")
    copy = {"processor": "bin/stage_copy.py"}
    project.spec(dict(copy, name="s1", outputDir="out/s1", **KINDS[kind]), dict(copy, name="s2", inputs=["data/in/*.txt"]))


def run_closed(project, folder):
    """Run by a user who may not write in a folder; return what the run says, which is told without a word of verify's."""
    path = project.path(folder)
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(0o555)
    try:
        done = run_without_might(project, "--keep-going")
    finally:
        path.chmod(0o755)
    assert done.returncode == 1 and "Traceback" not in done.stdout and project.ok("verify", "--outputs").err == "", done
    return done.stdout


@pytest.mark.parametrize("kind", KINDS)
def test_an_output_folder_that_cannot_be_made_fails_its_stage_only(project, kind):
    two_stages(project, kind)
    said = run_closed(project, "out")
    assert "[FAIL] s1: %s: Permission denied; the runner must be able to write" % project.path("out/s1") in said
    assert "[DONE] s2" in said and "(1 ok, 0 skipped, 1 failed)" in said
    assert "(1 ok, 1 skipped, 0 failed)" in project.ok().out and project.read("out/s1/a.txt") == "first\n"


@pytest.mark.parametrize("kind", KINDS)
def test_an_output_folder_that_may_not_be_written_any_more_fails_its_stage_only(project, kind):
    two_stages(project, kind)
    project.ok()
    project.write("data/in/a.txt", "second\n")
    said = run_closed(project, "out/s1")
    assert "[FAIL] s1: %s/" % project.path("out/s1") in said and "[DONE] s2" in said and "(1 ok, 0 skipped, 1 failed)" in said
    assert "(1 ok, 1 skipped, 0 failed)" in project.ok().out and project.read("out/s1/a.txt") == "second\n"


def test_a_folder_into_which_a_task_may_not_publish_fails_that_task_only(project):
    for name in ("a", "b"):
        project.write("data/in/%s.txt" % name, name)
    body = "name = os.path.basename(inputs[0])\nos.makedirs(out + '/of_' + name)\nopen(out + '/of_' + name + '/made', 'w').close()\n"
    project.spec({"name": "s1", "processor": project.processor("p", body), "forEach": "data/in/*.txt", "outputDir": "out/s1", "maxFailedTasks": 1},
                 {"name": "s2", "processor": "bin/stage_copy.py", "inputs": ["data/in/*.txt"]})
    said = run_closed(project, "out/s1/of_a.txt")
    assert "[FAIL] s1 data/in/a.txt: %s/of_a.txt/made: Permission denied; " % project.path("out/s1") in said and "[DONE] s2" in said
    assert project.exists("out/s1/of_b.txt/made") and not project.exists("out/s1/of_a.txt/made")
    assert project.ok().code == 0 and project.exists("out/s1/of_a.txt/made")


# --- beside others at work

AT_WORK = """print('at work', flush=True)
end = time.monotonic() + 60
while not os.path.exists(%r):
    time.sleep(0.01)
    assert time.monotonic() < end
open(out + '/o', 'w').write('x')
"""
NO_RUNNING_RECORD = """
import run_records
run_records.RECORD_S = 0.0
def refuse(path, *more, **named):
    if "run_f.json" in str(path) and os.path.exists("out/a/.a.done") and not os.path.exists("failed"):
        real_close(real_open("failed", os.O_CREAT | os.O_WRONLY))
        fail(errno.ENOSPC, path)
    return real_open(path, *more, **named)
os.open = refuse
"""


def test_an_error_at_the_end_of_a_stage_waits_for_those_at_work(project, monkeypatch):
    monkeypatch.chdir(project.root)
    project.spec({"name": "a", "processor": project.processor("quick", "open(out + '/o', 'w').write('x')\n"), "outputDir": "out/a"},
                 {"name": "b", "processor": project.processor("waits", AT_WORK % "failed"), "outputDir": "out/b"},
                 {"name": "c", "processor": "bin/quick.py", "needs": ["a"], "outputDir": "out/c"}, order="graph")
    code, said = driven(project, NO_RUNNING_RECORD, "--run-id", "f", "--jobs", "2")
    assert code == 5 and "run_f.json: No space left on device" in said and "[DONE] b" in said and "[START] c" not in said, said
    assert [one["status"] for one in project.json("state/run_f.json")["stages"]] == ["ok", "ok", "notRun"]
    assert "[SKIP] b" in project.ok().out


SYNC_FAILS = """
def sync(descriptor):
    frame = sys._getframe()
    while frame is not None and not os.path.exists("failed"):
        if frame.f_code.co_name == "settle":
            real_close(real_open("failed", os.O_CREAT | os.O_WRONLY))
            fail(errno.EIO, path_of(descriptor))
        frame = frame.f_back
    real_fsync(descriptor)
os.fsync = sync
"""


def test_a_failed_sync_of_what_a_run_with_an_index_puts_off_is_told(project, monkeypatch):
    monkeypatch.chdir(project.root)
    project.write("in.txt", "1")
    project.spec({"name": "a", "processor": project.processor("quick", "open(out + '/o', 'w').write('x')\n"), "outputDir": "out/a"},
                 {"name": "b", "processor": project.processor("waits", "if open('in.txt').read() == '2':\n    " + AT_WORK.replace("\n", "\n    ").rstrip(" ") % "failed"),
                  "inputs": ["in.txt"], "outputDir": "out/b"})
    project.ok()
    settle(project.path("out/b/.b.done"))
    assert "[SKIP] b" in project.ok().out and any(name.startswith("index_") for name in os.listdir("state"))
    project.write("in.txt", "2")
    code, said = driven(project, SYNC_FAILS, "--run-id", "f")
    assert code == 5 and "Input/output error" in said and "[DONE] b" in said, said
    assert project.json("state/run_f.json")["state"] == "failed" and "[START] b" in project.ok().out


TWO_AT_ONCE = """
import attempts
real_wait = attempts.Pool.wait
def wait(self, *more):
    ended = []
    while len(ended) < 2 and not os.path.exists("both"):
        ended += real_wait(self)
    return ended if ended else real_wait(self, *more)
attempts.Pool.wait = wait
"""


def test_a_stage_that_has_ended_when_the_next_one_cannot_be_begun_is_recorded(project):
    """Its end was seen with another's, after which that next one was looked at."""
    project.spec({"name": "a", "processor": project.processor("damages", "open('state/stage_c.json', 'w').write('{')\n"), "outputDir": "out/a"},
                 {"name": "b", "processor": project.processor("quick", "open(out + '/o', 'w').write('x')\n"), "outputDir": "out/b"},
                 {"name": "c", "processor": "bin/quick.py", "needs": ["a"], "outputDir": "out/c"}, order="graph")
    code, said = driven(project, TWO_AT_ONCE, "--run-id", "f", "--jobs", "2")
    assert code == 5 and "state/stage_c.json is damaged" in said and "[DONE] b" in said, said
    assert [one["status"] for one in project.json("state/run_f.json")["stages"]] == ["ok", "ok", "failed"]


NO_OUTCOME = """
def refuse(path, *more, **named):
    name = os.path.basename(str(path))
    if name in (".stage_a.json.tmp", ".stage_b.json.tmp") and os.path.exists("out/%s/o" % name[7]):
        fail(errno.ENOSPC, path)
    return real_open(path, *more, **named)
os.open = refuse
"""
NO_WAITING = "import attempts\nattempts.Pool.wait = lambda self, *more: fail(errno.ENOMEM, 'the pool')\n"


@pytest.mark.parametrize("fault, status, why", [(NO_OUTCOME, "failed", "stage_%s.json"), (NO_WAITING, "interrupted", "the pool")], ids=["records", "pool"])
def test_of_each_stage_that_the_runner_could_not_bring_to_its_end_is_told_what_it_has_done(project, monkeypatch, fault, status, why):
    monkeypatch.chdir(project.root)
    body = "print('at work', flush=True)\nopen('at ' + os.path.basename(out), 'w')\n" + AT_WORK
    project.spec(*[{"name": name, "processor": project.processor(name, body % ("at " + other)), "outputDir": "out/" + name}
                   for name, other in ("ab", "ba")], order="graph")
    code, said = driven(project, fault, "--run-id", "f", "--jobs", "2")
    assert code == 5 and said.count("[%s] " % {"failed": "FAIL", "interrupted": "STOP"}[status]) == 2, said
    told = project.json("state/run_f.json")["stages"]
    assert [one["status"] for one in told] == [status] * 2 and all(one["attempts"] == 1 and one["key"] for one in told), told
    for one in told:
        assert why.replace("%s", one["stage"]) in one["reason"], one
    project.ok("--run-id", "g")
