"""Records of stages that become durable in groups: how rarely a run waits for the device, and what is known when the power goes before."""
from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import tempfile

import pytest
import state_store
from state_store import StateStore

from conftest import RUNNER
from test_crash import Case, appending, break_at, changed, check_after_boot, chain_problems, leftovers, no_warm_one_stays, results, told  # noqa: F401

posix_only = pytest.mark.skipif(os.name == "nt", reason="breaks the runner by signals")
MAKE = "for one in inputs or ['o']:\n    open(os.path.join(out, os.path.basename(one)), 'w').close()\n"


# --- how often the device is waited for

SYNCS = """
import os, runpy, sys
sys.path.insert(0, %r)
import file_systems, run_records, state_store
file_systems.keeps_order = lambda device: True
state_store.FLUSH_S = run_records.RECORD_S = 1e9        # only when many files wait, and at the end
real = state_store._flush, state_store.sync_file_systems, state_store.StateStore.write_stage
def flush(descriptor):
    print("sync", flush=True)
    return real[0](descriptor)
def flush_all(folders):
    done = real[1](folders)
    if done:
        print("sync", flush=True)
    return done
def write_stage(self, stage, record, **more):
    print("write", record["lastStatus"], flush=True)
    return real[2](self, stage, record, **more)
state_store._flush, state_store.sync_file_systems, state_store.StateStore.write_stage = flush, flush_all, write_stage
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("is_first", [True, False], ids=["cold", "again"])
def test_tiny_stages_do_not_wait_for_the_device_one_by_one(project, is_first):
    project.write("in/a.txt", "x")
    project.spec(*[{"processor": project.processor("make", MAKE), "inputs": ["in/a.txt"]}] * 20)
    if not is_first:
        project.ok()
        project.write("in/a.txt", "changed")
    done = subprocess.run([sys.executable, "-c", SYNCS % str(RUNNER.parent), str(RUNNER), "--pipeline", str(project.path("pipeline.json"))],
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=project.environment(), timeout=120)
    lines = done.stdout.decode("utf-8").splitlines()
    steps = [line for line in lines if line.startswith(("sync", "write "))]
    first, last = steps.index("write running"), len(steps) - steps[::-1].index("write ok")
    assert done.returncode == 0 and steps[first:last] == ["write running", "write ok"] * 20, lines


@pytest.mark.parametrize("about, at_once", [
    ("nothing there", False), ("the same again", False), ("in folders", False), ("a file of nobody's", True), ("a folder of nobody's", True), ("a checkpoint", True),
    ("another stage in the folder", True), ("another stage below", True), ("the last run failed", True), ("chunks", True), ("tasks", True), ("tasks before", True),
    ("another folder before", True), ("a launcher", True), ("an output was changed", True)])
def test_the_record_of_a_begin_is_on_the_disk_at_once_where_nothing_else_tells_what_was_there(project, about, at_once):
    project.write("in/a.txt", "x\n")
    stage = {"processor": project.processor("make", "# PIPELINE_CHUNK_START\n" + MAKE), "inputs": ["in/*.txt"]}
    others, before = [], None
    if about == "the same again":
        before = [stage]
    elif about == "in folders":
        stage["processor"] = project.processor("deep", "os.makedirs(out + '/a/b', exist_ok=True)\nopen(out + '/a/b/o', 'w').close()\n")
        before = [stage]
    elif about == "a file of nobody's":
        project.write("data/s1/mine.txt", "x")
    elif about == "a folder of nobody's":
        project.path("data/s1/sub").mkdir(parents=True)
    elif about == "a checkpoint":
        stage["checkpoint"] = {"enabled": True}
    elif about == "another stage in the folder":
        others = [dict(stage, name="other", outputDir="data/s1")]
    elif about == "another stage below":
        others = [dict(stage, name="other", outputDir="data/s1/sub")]
    elif about == "the last run failed":
        before = [dict(stage, processor=project.processor("fail", "sys.exit(1)\n"))]
    elif about == "chunks":
        stage["chunks"] = {"bytes": 100}
    elif about in ("tasks", "tasks before"):
        one = {name: value for name, value in stage.items() if name != "inputs"}
        stage, before = (dict(one, forEach="in/*.txt"), None) if about == "tasks" else (stage, [dict(one, forEach="in/*.txt")])
    elif about == "another folder before":
        before = [dict(stage, outputDir="data/old")]
    elif about == "a launcher":
        stage["launcher"] = ["env"]
    elif about == "an output was changed":
        before = [stage]
    if before:
        project.spec(*before)
        project.run()
    if about == "an output was changed":
        project.write("data/s1/a.txt", "edited")
    project.spec(stage, *others)
    lines = [line for line in told(project, "--force", "s1", "--only", "s1") if line.startswith("write s1 ")]
    assert lines == ["write s1 running" + " at once" * at_once, "write s1 ok"]


def test_what_an_earlier_run_began_in_an_empty_folder_is_no_word_for_this_one(project):
    """Of a run that died: whether the folder was empty then says nothing of now."""
    project.spec({"processor": project.processor("make", MAKE)})
    project.write("data/s1/.s1.begun", "")
    assert "write s1 running at once" in told(project) and not project.exists("data/s1/.s1.begun")


@pytest.mark.skipif(not os.path.isdir("/dev/shm") or not os.access("/dev/shm", os.W_OK), reason="needs a second file system")
@pytest.mark.parametrize("is_first", [True, False], ids=["cold", "again"])
def test_on_another_file_system_the_record_of_a_begin_is_there_with_its_name_before_the_first_attempt(project, is_first):
    """No two file systems keep the order of what is done on both: outputs might be there, and nothing that tells of an attempt."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        assert os.stat(folder).st_dev != os.stat(str(project.root)).st_dev
        project.path("data").symlink_to(folder)
        project.spec({"processor": project.processor("make", MAKE)})
        if not is_first:
            project.ok()
        lines = told(project, "--force", "s1")
        begun = lines.index("write s1 running at once")
        assert "sync state" in lines[begun:lines.index("write s1 ok")], lines


# --- while a processor is at work

def test_a_long_stage_is_on_the_disk_while_it_is_at_work(project):
    body = ("kept = [os.path.join('state', '.stage_s1.json.before'), os.path.join(out, '.s1.begun')]\nassert all(map(os.path.exists, kept))\nend = time.monotonic() + 60\n"
            "while any(map(os.path.exists, kept)):\n    time.sleep(0.01)\n    assert time.monotonic() < end\n" + MAKE)
    project.spec({"processor": project.processor("waits", body)})
    lines = told(project)
    assert "write s1 ok" in lines and "sync state" in lines[lines.index("write s1 running"):lines.index("write s1 ok")], lines


@posix_only
def test_a_device_that_fails_meanwhile_is_told_when_those_at_work_have_ended(tmp_path):
    def waiting(project):
        project.write("data/input/a.txt", "x\n")
        body = "end = time.monotonic() + 60\nwhile not os.path.exists(%r %% os.path.basename(os.getcwd())) and os.path.basename(os.getcwd()) == 'fails':\n    time.sleep(0.01)\n    assert time.monotonic() < end\n"
        processor = project.processor("waits", body % str(tmp_path / "%s.hit") + MAKE)
        project.spec({"name": "one", "processor": processor, "outputDir": "data/one"}, {"name": "two", "processor": processor, "outputDir": "data/two"})
        return []

    case = Case(waiting, tmp_path)
    project = case.fresh("fails")
    where, done = break_at(project, "EIO", 1, [], only=["fsync state/stage_one.json"])
    assert where and done.code == 5 and "[DONE] one" in done.out and "[START] two" not in done.out, done
    error, = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert os.strerror(errno.EIO) in error and "stage_one.json" in error
    project.ok("--run-id", "again")
    assert results(project) == results(case.expected) and chain_problems(project) == []


# --- the power goes before

@posix_only
@pytest.mark.parametrize("make", [appending, changed], ids=lambda make: make.__name__)
def test_of_a_dead_run_what_is_recorded_is_on_the_disk_before_the_next_one_says_so(make, tmp_path):
    """That run only skips the stage, and its entry names the success of the dead one."""
    case = Case(make, tmp_path)
    project = case.fresh("n001")
    assert break_at(project, "kill", 1, [], only=["replace data/one/.one.done"])[0]
    tmp_path.joinpath("n001.hit").unlink()
    where, _ = break_at(project, "kill", 1, [], "next", only=["fsync state/stage_one.json", "write state/ledger.jsonl"])
    assert where == "fsync state/stage_one.json"
    project.ok("--run-id", "last")
    assert leftovers(project) == [] and results(project) == results(case.expected)


def lost(project, before=None, stage="s1"):
    """Leave the record of *stage* as a power cut does: its content is not there; *before*: what was durable."""
    project.write("state/stage_%s.json" % stage, b"")
    project.write("state/.stage_%s.json.before" % stage, b"" if before is None else before)


def half_done(project, is_first):
    """A stage that was at work when the power went, over an earlier success or over nothing."""
    project.write("in/a.txt", "x\n")
    project.spec({"processor": project.processor("append", "with open(out + '/list', 'a') as file:\n    file.write('made\\n')\n"), "inputs": ["in/*.txt"]},
                 {"name": "other", "processor": project.processor("make", MAKE)})
    before = None
    project.ok("--run-id", "first", *["--only", "other"] * is_first)
    if not is_first:
        before = project.path("state/stage_s1.json").read_bytes()
        project.path("data/s1/.s1.done").unlink()
    project.write("in/a.txt", "changed\n")
    with open(str(project.path("data/s1/list")) if not is_first else str(project.write("data/s1/list", "")), "ab") as file:
        file.write(bytes(3))
    project.write("data/s1/other/half", "hal")
    if is_first:
        project.write("data/s1/.s1.begun", "")
    lost(project, before)


@pytest.mark.parametrize("damage", [b"", bytes(700), b'{"schema": 1,\n"stage": "s1",\n', bytes(4096) + b'"outputs": []}'], ids=["empty", "zeros", "begin", "end"])
@pytest.mark.parametrize("is_first", [True, False], ids=["cold", "again"])
def test_a_stage_whose_record_the_power_took_is_cleared_and_done_again(project, is_first, damage):
    half_done(project, is_first)
    project.write("state/stage_s1.json", damage)
    done = project.ok("--run-id", "next")
    assert "[NOTE] s1: leftovers of an unfinished attempt" in done.out, done
    assert project.read("data/s1/list") == "made\n" * (1 if is_first else 2) and not project.exists("data/s1/other")
    assert project.json("state/run_next.json")["stages"][0]["reason"] == "last run died with the machine"
    assert not project.exists("state/.stage_s1.json.before") and not project.exists("data/s1/.s1.begun")
    assert "[SKIP] s1" in project.ok("--run-id", "last").out
    assert project.ok("verify", "--outputs").code == 0


def test_in_another_folder_nothing_is_cleared_for_a_record_that_the_power_took(project):
    """Where the stage was at work, nobody knows then; and what is in the new folder is somebody's."""
    half_done(project, True)
    spec = project.json("pipeline.json")
    spec["stages"][0]["outputDir"] = "elsewhere"
    project.write("pipeline.json", json.dumps(spec))
    project.write("elsewhere/mine", "x")
    project.ok()
    assert project.read("elsewhere/mine") == "x" and project.read("data/s1/other/half") == "hal"


def test_what_was_kept_of_unfinished_work_tells_of_it(project):
    """Its record was made durable before its first attempt; the outcome was not."""
    project.spec({"processor": project.processor("fail", "open(out + '/junk', 'w').close()\nsys.exit(3)\n")})
    project.write("data/s1/mine", "x")
    assert project.run().code == 1
    record = project.json("state/stage_s1.json")
    running = json.dumps({**{name: value for name, value in record.items() if name != "left"}, "lastStatus": "running"}).encode("utf-8")
    lost(project, running)
    project.processor("fail", MAKE)
    done = project.ok()
    assert "leftovers of an unfinished attempt: removed junk" in done.out and project.exists("data/s1/mine"), done


def foreign(project):
    """A stage that has run before, in a folder with a file of nobody's; beside its record is what a dead run has kept."""
    arguments = changed(project)
    project.write("data/one/mine.txt", "x")
    project.write("state/.stage_one.json.before", project.read("state/stage_one.json"))
    return arguments


@posix_only
@pytest.mark.parametrize("action", ["early", "late"])
@pytest.mark.parametrize("step", ["replace data/one/.one.done", "fsync state/stage_one.json", "unlink state/.stage_one.json.before"])
def test_what_a_dead_run_has_kept_costs_nobody_a_file(tmp_path, action, step):
    """It tells of a success; the work since began where there was more."""
    case = Case(foreign, tmp_path)
    project = case.fresh("n001")
    where, done = break_at(project, action, 1, [], only=[step])
    assert where, done
    check_after_boot(case)(project, where, done)
    assert project.read("data/one/mine.txt") == "x"


@pytest.mark.parametrize("kept", [b"\0", b"[]", b'{"schema": 1}'], ids=["zeros", "a list", "no record"])
def test_what_was_kept_and_is_damaged_itself_is_damage(project, kept):
    project.spec({"processor": project.processor("make", MAKE)})
    project.ok()
    lost(project, kept)
    done = project.run()
    assert done.code == 5 and "state/stage_s1.json is" in done.err and "set aside as state/stage_s1.json.corrupt-" in done.err, done
    project.ok()
    assert not project.exists("state/.stage_s1.json.before") and "[SKIP] s1" in project.ok().out


def test_what_was_kept_beside_a_whole_record_says_nothing(project):
    """A run that died has left it, or a power cut has brought it back."""
    project.spec({"processor": project.processor("make", MAKE)})
    project.ok()
    project.write("state/.stage_s1.json.before", "")
    assert "[SKIP] s1" in project.ok().out
    project.ok("--force", "s1")
    assert not project.exists("state/.stage_s1.json.before")


@pytest.mark.parametrize("is_first", [True, False], ids=["cold", "again"])
def test_verify_tells_of_a_record_that_the_power_took_and_compares_no_outputs_of_its_stage(project, is_first):
    half_done(project, is_first)
    done = project.ok("verify", "--outputs")
    assert "note: state/stage_s1.json had not come to the disk when the power went; the next run of s1 will do its work again" in done.out, done
    assert ("outputs not compared, for no later success is recorded of s1" in done.out) != is_first, done
    project.ok()
    assert "power" not in project.ok("verify", "--outputs").out


@pytest.mark.parametrize("is_first", [True, False], ids=["cold", "again"])
@pytest.mark.parametrize("words, codes, text", [
    (["status"], (0,), "s1"), (["status", "--json"], (0,), '"s1"'), (["plan"], (0,), "last run died with the machine"), (["history"], (0,), ""), (["history", "s1"], (0,), ""),
    (["report", "--run-id", "first"], (0, 2), ""), (["verify"], (0,), ""), (["gc", "--keep-runs", "1"], (0,), ""), (["clean", "s1"], (0,), ""), (["reset", "s1", "--yes"], (0,), ""),
    (["accept", "s1", "--yes"], (1, 2), ""), (["export", "--out", "box.zip"], (0, 2, 5), ""), (["--dry-run"], (0,), "last run died with the machine")], ids=lambda value: " ".join(value) if isinstance(value, list) else None)
def test_commands_get_on_with_a_record_that_the_power_took(project, is_first, words, codes, text):
    half_done(project, is_first)
    done = project.run(*words, cwd=str(project.root))
    assert done.code in codes and text in done.out and "corrupt" not in done.out + done.err, done
    project.ok()
    assert not project.path("state").joinpath(".stage_s1.json.before").exists()


def test_reset_leaves_nothing_of_what_was_kept(project):
    half_done(project, True)
    project.ok("reset", "s1", "--yes")
    assert [path.name for path in project.path("state").glob("*s1*")] + [path.name for path in project.path("state").glob(".*s1*")] == []
    assert not project.exists("data/s1/.s1.begun")


# --- the parts

def store_with(tmp_path, record=None):
    store = StateStore(str(tmp_path))
    store.prepare()
    if record is not None:
        store.write("stage_s.json", record)
    store.commit.flush()
    store.in_groups = True
    return store


def begun_in(folder):
    (folder / ".begun").write_bytes(b"")
    return str(folder / ".begun")


def flat(status, **more):
    return dict({"stage": "s", "lastStatus": status, "idempotencyKey": "k", "keyParts": {}, "outputs": []}, **more)


@pytest.mark.parametrize("old", [None, flat("ok", attempts=7)], ids=["none", "one"])
def test_what_is_durable_is_kept_until_the_next_is(tmp_path, old):
    store = store_with(tmp_path, old)
    kept = tmp_path / "state" / ".stage_s.json.before"
    data = (tmp_path / "state" / "stage_s.json").read_bytes() if old else b""
    begun = "" if old else begun_in(tmp_path)
    for status in ("running", "ok"):
        store.write_stage("s", flat(status), begun=begun)
        assert store.stage("s")["lastStatus"] == status and kept.read_bytes() == data
    assert store.commit.seconds_left() is not None
    store.commit.flush()
    assert not kept.exists() and store.commit.seconds_left() is None


def test_the_first_record_is_durable_at_once_where_nothing_says_that_there_was_none(tmp_path, monkeypatch):
    store, synced = store_with(tmp_path), []
    monkeypatch.setattr(state_store, "sync_file", synced.append)
    store.write_stage("s", flat("running"))
    assert len(synced) == 1 and not (tmp_path / "state" / ".stage_s.json.before").exists()


@pytest.mark.parametrize("is_first", [True, False], ids=["cold", "again"])
@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.EXDEV])
def test_where_files_cannot_be_linked_a_record_is_durable_at_once(tmp_path, monkeypatch, code, is_first):
    store = store_with(tmp_path, None if is_first else flat("ok"))

    def refuse(*args, **more):
        raise OSError(code, os.strerror(code))
    synced = []
    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(state_store, "sync_file", synced.append)
    store.write_stage("s", flat("running"), begun=begun_in(tmp_path) if is_first else "")
    assert len(synced) == 1 and not (tmp_path / "state" / ".stage_s.json.before").exists()
    assert str(tmp_path / "state" / "stage_s.json") not in store.commit.files


def test_after_a_failed_sync_what_was_kept_stays(tmp_path, monkeypatch):
    store = store_with(tmp_path)
    store.write_stage("s", flat("running"), begun=begun_in(tmp_path))

    def refuse(path):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    with monkeypatch.context() as patch:
        patch.setattr(state_store, "_sync_path", refuse)
        with pytest.raises(OSError):
            store.commit.flush()
    store.commit.files.clear()
    store.commit.flush()
    assert (tmp_path / "state" / ".stage_s.json.before").exists()
    synced = []
    monkeypatch.setattr(state_store, "sync_file", synced.append)
    store.write_stage("s", flat("ok"))          # whether the one before is on the disk, nobody knows
    assert len(synced) == 1
    store.commit.flush()
    assert not (tmp_path / "state" / ".stage_s.json.before").exists()


def test_what_a_living_run_has_kept_is_not_a_dead_ones(tmp_path):
    store = store_with(tmp_path)
    for stage, run_id in (("s", "dead"), ("t", "living")):
        store.write_stage(stage, dict(flat("running"), stage=stage, lastRunId=run_id, lastInvocation=1), begun=begun_in(tmp_path))
    store.commit.kept.clear()
    store.settle(("dead", 1))
    store.commit.flush()
    assert sorted(name for name in os.listdir(str(tmp_path / "state")) if name.endswith(".before")) == [".stage_t.json.before"]
