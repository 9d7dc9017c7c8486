"""Outcomes of stages that become durable in groups: how rarely a run waits for the device, and what is known when the power goes before."""
from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import tempfile
from types import SimpleNamespace

import attempts
import durability
import durable_files
import ledger_export
import pytest
import state_store
from state_store import StateStore

from conftest import KILLED, RUNNER, wait_until
from test_crash import TOLD, Case, appending, break_at, chain_problems, changed, check_after_boot, leftovers, no_warm_one_stays, results, told  # noqa: F401

posix_only = pytest.mark.skipif(os.name == "nt", reason="breaks the runner by signals")
MAKE = "for one in inputs or ['o']:\n    open(os.path.join(out, os.path.basename(one)), 'w').close()\n"
KEPT = "state/.stage_%s.json.before"


# --- how often the device is waited for

SYNCS = """
import os, runpy, sys
sys.path.insert(0, %r)
import durable_files, file_systems, run_records, state_store
file_systems.keeps_order = lambda device: %s
durable_files.FLUSH_S = run_records.RECORD_S = 1e9        # only when many files wait, and at the end
real = durable_files._flush, durable_files.sync_file_systems, state_store.StateStore.write_stage
def flush(descriptor):
    print("sync", flush=True)
    return real[0](descriptor)
def flush_all(folders):
    done = real[1](folders)
    if done:
        print("sync", flush=True)
    return done
def write_stage(self, stage, record):
    print("write", record["lastStatus"], flush=True)
    return real[2](self, stage, record)
durable_files._flush, durable_files.sync_file_systems, state_store.StateStore.write_stage = flush, flush_all, write_stage
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("is_ordered", [True, False], ids=["ordered", "not ordered"])
@pytest.mark.parametrize("is_first", [True, False], ids=["cold", "again"])
def test_how_often_a_tiny_stage_waits_for_the_device(project, is_first, is_ordered):
    """For "running", so that after a power cut it is known what an attempt has left; for its outcome only where that may be lost otherwise."""
    project.write("in/a.txt", "x")
    project.spec(*[{"processor": project.processor("make", MAKE), "inputs": ["in/a.txt"]}] * 20)
    if not is_first:
        project.ok()
        project.write("in/a.txt", "changed")
    done = subprocess.run([sys.executable, "-c", SYNCS % (str(RUNNER.parent), is_ordered), str(RUNNER), "--pipeline", str(project.path("pipeline.json"))],
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=project.environment(), timeout=120)
    lines = done.stdout.decode("utf-8").splitlines()
    steps = [line for line in lines if line.startswith(("sync", "write "))]
    first, last = steps.index("write running"), len(steps) - steps[::-1].index("write ok")
    outcome = ["write ok"] if is_ordered else ["write ok", "sync"]
    assert done.returncode == 0 and steps[first:last] == (["write running", "sync", *outcome] * 20)[:last - first] and last - first >= 59, lines


@pytest.mark.skipif(not os.path.isdir("/dev/shm") or not os.access("/dev/shm", os.W_OK), reason="needs a second file system")
@pytest.mark.parametrize("is_elsewhere", [True, False])
def test_on_another_file_system_the_record_of_a_begin_is_there_with_its_name_before_the_first_attempt(project, is_elsewhere, monkeypatch):
    """No two file systems keep the order of what is done on both: outputs might be there, and nothing that tells of an attempt."""
    monkeypatch.setattr("test_crash.TOLD", TOLD.replace("run_records.RECORD_S", "durable_files.FLUSH_S = 1e9\nrun_records.RECORD_S", 1))    # nothing is synced because it took long
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        assert os.stat(folder).st_dev != os.stat(str(project.root)).st_dev
        if is_elsewhere:
            project.path("data").symlink_to(folder)
        project.spec({"processor": project.processor("make", MAKE)})
        lines = told(project)
        assert ("sync state" in lines[lines.index("write s1 running"):lines.index("write s1 ok")]) == is_elsewhere, lines


# --- while a processor is at work

@pytest.mark.parametrize("order", ["listed", "graph"])
def test_what_is_done_is_on_the_disk_while_the_next_stage_is_at_work(project, order, monkeypatch):
    """However late the second begins: what is kept of the first goes with nothing but a look while processors are at work."""
    monkeypatch.setattr("test_crash.TOLD", TOLD.replace("run_records.RECORD_S = run_records.RECORD_SHARE = 0", "run_records.RECORD_S = 1e9\ndurable_files.Commit.is_due = lambda self: False"))
    body = "kept, end = %r, time.monotonic() + 60\nwhile os.path.exists(kept):\n    time.sleep(0.01)\n    assert time.monotonic() < end\n"
    project.spec({"processor": project.processor("make", MAKE)}, {"processor": project.processor("waits", body % str(project.path(KEPT % "s1")) + MAKE), "needs": ["s1"]}, order=order)
    lines = told(project)
    at_work = lines[lines.index("write s2 running"):lines.index("write s2 ok")]
    assert {"sync state", "sync s1"} <= set(at_work), lines


def test_a_long_stages_begin_has_its_name_on_the_disk_while_it_is_at_work(project):
    project.spec({"processor": project.processor("long", "end = time.monotonic() + 60\nwhile not os.path.exists('synced'):\n    time.sleep(0.01)\n    assert time.monotonic() < end\n" + MAKE)})
    code = ("import runpy, sys\nsys.path.insert(0, %r)\nimport durable_files, state_store\nreal, begun = durable_files.sync_folder, []\n"
            "def sync(path):\n    real(path)\n    if begun and path.endswith('state'):\n        open('synced', 'w').close()\n"
            "write = state_store.StateStore.write_stage\ndef write_stage(self, stage, record):\n    write(self, stage, record)\n    begun.append(stage)\n"
            "durable_files.sync_folder, state_store.StateStore.write_stage = sync, write_stage\nsys.argv = sys.argv[1:]\nrunpy.run_path(sys.argv[0], run_name='__main__')\n" % str(RUNNER.parent))
    done = subprocess.run([sys.executable, "-c", code, str(RUNNER), "--pipeline", str(project.path("pipeline.json"))], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, env=project.environment(), cwd=str(project.root), timeout=120)
    assert done.returncode == 0, done.stdout


WAITS = "end = time.monotonic() + 60\nwhile not os.path.exists(%r) and os.path.basename(os.getcwd()) == 'fails':\n    time.sleep(0.01)\n    assert time.monotonic() < end\n"


@posix_only
@pytest.mark.parametrize("kind", ["plain", "tasks"])
def test_a_device_that_fails_meanwhile_is_told_when_those_at_work_have_ended_and_these_are_not_believed(tmp_path, kind):
    """A failed sync of a whole file system does not say which file it was about: it may have been theirs, and is told once."""
    more, order = ({}, "listed") if kind == "plain" else ({"forEach": "data/input/*.txt"}, "graph")

    def waiting(project):
        project.write("data/input/a.txt", "x\n")
        project.spec({"name": "one", "processor": project.processor("make", MAKE), "outputDir": "data/one"},
                     {"name": "two", "processor": project.processor("waits", WAITS % str(tmp_path / "fails.hit") + MAKE), "outputDir": "data/two", **more},
                     {"name": "three", "processor": "bin/make.py", "outputDir": "data/three", "needs": ["two"]}, order=order)
        return []

    case = Case(waiting, tmp_path)
    project = case.fresh("fails")
    where, done = break_at(project, "EIO", 1, [], only=["fsync state/stage_one.json"])
    assert where and done.code == 5 and "[DONE] two" in done.out and "[START] three" not in done.out, done
    error, = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert os.strerror(errno.EIO) in error and "stage_one.json" in error
    again = project.ok("--run-id", "again")
    assert "[START] one" in again.out and "[START] two" in again.out
    assert results(project) == results(case.expected) and chain_problems(project) == []
    assert not project.exists(KEPT % "one") and not project.exists("data/two/.two.lost")


FAILS_AND_DIES = """
import errno, os, runpy, sys
sys.path.insert(0, os.path.dirname(sys.argv[1]))
import durability, durable_files
sync, write_marker = durable_files._sync_path, durability.Durability.write_marker
def fails(path):
    if path.endswith('data/one/o') and not os.path.exists('failed'):
        open('failed', 'w').close()
        raise OSError(errno.EIO, os.strerror(errno.EIO), path)
    sync(path)
def dies(self, stage, key):
    if self.is_unsound:
        os.kill(os.getpid(), 9)
    write_marker(self, stage, key)
durable_files._sync_path, durability.Durability.write_marker = fails, dies
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name='__main__')
"""


@posix_only
@pytest.mark.parametrize("kind", ["plain", "tasks", "chunks"])
def test_a_stage_at_work_when_a_sync_failed_is_not_believed_if_the_run_dies_once_it_has_ended(project, kind):
    project.write("data/input/a.txt", "".join("%d\n" % number for number in range(2000)))
    wait = "end = time.monotonic() + 20\nwhile not os.path.exists(%r):\n    time.sleep(0.01)\n    assert time.monotonic() < end\n" % str(project.path("failed"))
    last = "sys.stdout.write(sys.stdin.read())\n" if kind == "chunks" else "open(os.path.join(out, 'o'), 'w').write('x')\n"
    more = {"plain": {}, "tasks": {"forEach": ["data/input/*.txt"]}, "chunks": {"inputs": ["data/input/a.txt"], "chunks": {"bytes": 1 << 20, "filter": True}}}[kind]
    project.spec({"name": "one", "processor": project.processor("make", "open(os.path.join(out, 'o'), 'w')\n"), "outputDir": "data/one"},
                 {"name": "two", "processor": project.processor("waits", wait + last), "outputDir": "data/two", **more}, order="graph")
    done = subprocess.run([sys.executable, "-c", FAILS_AND_DIES, str(RUNNER), "--jobs", "2"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          env=project.environment(), cwd=str(project.root), timeout=120)
    assert done.returncode == KILLED and project.json("state/stage_two.json")["lastStatus"] == "ok" and b"[NOTE]" not in done.stdout, done.stdout
    again = project.ok()
    assert {"plain": "[START] two\n", "tasks": "[START] two (1 task: 1 to do, 0 up to date)\n", "chunks": "to do, 0 done)\n"}[kind] in again.out, again
    assert not project.exists("data/two/.two.lost") and "[SKIP] two" in project.ok().out


# --- the power goes before

@posix_only
@pytest.mark.parametrize("make", [appending, changed], ids=lambda make: make.__name__)
def test_of_a_dead_run_what_is_recorded_is_on_the_disk_before_the_next_one_says_so(make, tmp_path):
    """That run only skips the stage, and its entry names the success of the dead one."""
    project = Case(make, tmp_path).fresh("n001")
    assert break_at(project, "kill", 1, [], only=["replace data/one/.one.done"])[0]
    tmp_path.joinpath("n001.hit").unlink()
    where, _ = break_at(project, "kill", 1, [], "next", only=["fsync state/stage_one.json", "write state/ledger.jsonl"])
    assert where == "fsync state/stage_one.json"


@posix_only
def test_what_a_run_skips_that_a_living_one_has_not_synced_is_on_the_disk_at_its_end(tmp_path):
    """Else the power may take the record, and what came into the folder after that run had ended well would count as left by the attempt."""
    def two(project):
        project.write("data/input/a.txt", "x\n")
        project.spec({"name": "one", "processor": project.processor("make", MAKE), "outputDir": "data/one"},
                     {"name": "two", "processor": project.processor("waits", "open('began', 'w').close()\nwhile not os.path.exists('go'):\n    time.sleep(0.01)\n"), "outputDir": "data/two"})
        project.write("go", "")
        return []

    project = Case(two, tmp_path).fresh("n001")
    project.path("go").unlink()
    settings = {"runner": str(RUNNER), "root": str(project.root), "action": "none", "at": 0, "hit": str(tmp_path / "none"), "boot": None, "outputs": []}
    (tmp_path / "fault.json").write_text(json.dumps(settings), encoding="utf-8")
    driver = ("import sys\nsys.path[:0] = %r\nimport durable_files\ndurable_files.FLUSH_S = 1e9\nimport fault\nfault.main()\n" % [str(RUNNER.parent), str(RUNNER.parent.parent / "tests" / "drivers")])
    living = subprocess.Popen([sys.executable, "-c", driver, str(tmp_path / "fault.json"), "--pipeline", str(project.path("pipeline.json"))], stdin=subprocess.DEVNULL,
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=project.environment(), cwd=str(project.root))
    try:
        wait_until(lambda: project.exists("began"))
        assert project.exists(KEPT % "one")
        where, done = break_at(project, "kill", 1, ["--only", "one"], "skips", only=["fsync state/stage_one.json"])
        assert where and "[SKIP] one" in done.out, done
    finally:
        project.write("go", "")
        assert living.wait(60) == 0
    assert not project.exists(KEPT % "one")


@posix_only
@pytest.mark.parametrize("action", ["early", "late"])
def test_what_a_dead_run_has_kept_costs_nobody_a_file(tmp_path, action):
    """It tells of another attempt, before which there was less in the folder."""
    def foreign(project):
        arguments = changed(project)
        project.write("data/one/mine.txt", "x")
        running = dict(project.json("state/stage_one.json"), lastStatus="running", baseline={"./": []}, token="")
        project.write(KEPT % "one", json.dumps(running))
        return arguments

    case = Case(foreign, tmp_path)
    for number, step in enumerate(("replace data/one/.one.done", "fsync state/stage_one.json", "replace state/stage_one.json")):
        project = case.fresh("n%03d" % number)
        where, done = break_at(project, action, 1, [], only=[step])
        check_after_boot(case)(project, where, done)
        assert project.read("data/one/mine.txt") == "x", step


def lost(project, damage=b"", stage="s1"):
    """Leave the outcome of a stage as a power cut does: its content is not there, and "running" is kept; leave also what the attempt has made."""
    record = project.json("state/stage_%s.json" % stage)
    running = {**{name: value for name, value in record.items() if name not in ("left", "previous")}, "lastStatus": "running", "outputs": [], "token": "",
               "baseline": {"./": []}, "endedAt": None}
    project.write(KEPT % stage, json.dumps(running))
    project.write("state/stage_%s.json" % stage, damage)


def made(project):
    project.write("in/a.txt", "x\n")
    project.spec({"processor": project.processor("append", "with open(out + '/list', 'a') as file:\n    file.write('made\\n')\n"), "inputs": ["in/*.txt"]},
                 {"name": "other", "processor": project.processor("make", MAKE)})
    project.ok("--run-id", "first")


@pytest.mark.parametrize("damage", [b"", bytes(700), b'{"schema": 1,\n"stage": "s1",\n', bytes(4096) + b'"outputs": []}'], ids=["empty", "zeros", "begin", "end"])
def test_a_stage_whose_outcome_the_power_took_is_cleared_and_done_again(project, damage):
    made(project)
    lost(project, damage)
    done = project.ok("--run-id", "next")
    assert "[NOTE] s1: leftovers of an unfinished attempt: removed list" in done.out and project.read("data/s1/list") == "made\n", done
    assert project.json("state/run_next.json")["stages"][0]["reason"] == "last run died" and not project.exists(KEPT % "s1")
    assert "[SKIP] s1" in project.ok("--run-id", "last").out
    assert project.ok("verify", "--outputs").code == 0


@pytest.mark.parametrize("kept", [b"", b"\0", b"[]", b'{"schema": 1}'], ids=["empty", "zeros", "a list", "no record"])
def test_what_was_kept_and_is_damaged_itself_is_damage(project, kept):
    made(project)
    lost(project)
    project.write(KEPT % "s1", kept)
    done = project.run()
    assert done.code == 5 and "state/stage_s1.json is" in done.err and "set aside as state/stage_s1.json.corrupt-" in done.err, done
    project.ok()
    assert not project.exists(KEPT % "s1") and "[SKIP] s1" in project.ok().out


def test_what_was_kept_beside_a_whole_record_says_nothing(project):
    """A run that died has left it, or a power cut has brought it back."""
    made(project)
    data = project.path("state/stage_s1.json").read_bytes()
    lost(project, data)
    assert "[SKIP] s1" in project.ok().out and project.path("state/stage_s1.json").read_bytes() == data
    project.ok("verify", "--outputs")
    project.ok("--force", "s1")
    assert not project.exists(KEPT % "s1")


@posix_only
def test_a_failed_sync_and_then_a_power_cut_undo_the_attempt_and_not_what_was_there_before(tmp_path):
    def thrice(project):
        processor = project.processor("add", "with open(out + '/list', 'a') as file:\n    file.write(open(inputs[0]).read())\n")
        project.spec({"name": "one", "processor": processor, "inputs": ["in/a.txt"], "outputDir": "data/one"})
        for text in ("1", "2"):
            project.write("in/a.txt", text)
            project.ok()
        project.write("in/a.txt", "3")
        return []

    project = Case(thrice, tmp_path).fresh("n001")
    where, done = break_at(project, "EIO", 1, [], only=["fsync state/stage_one.json"])
    assert where and done.code == 5 and project.exists(KEPT % "one") and project.exists("data/one/.one.lost"), done
    project.write("state/stage_one.json", b"")
    _, done = break_at(project, "none", 0, [], "again", boot="another-boot")
    assert done.code == 0 and project.read("data/one/list") == "123" and not project.exists("data/one/.one.lost"), done


@posix_only
@pytest.mark.parametrize("boot", ["another-boot", None], ids=["restarted", "not restarted"])
def test_what_was_kept_is_of_no_use_once_the_record_has_come_from_the_disk(tmp_path, boot):
    """It would be years old, and tell of less in the folder, should the record be damaged one day."""
    project = Case(appending, tmp_path).fresh("n001")
    assert break_at(project, "kill", 1, [], only=["replace data/one/.one.done"])[0]
    for run_id in ("closes", "skips"):
        _, done = break_at(project, "none", 0, [], run_id, boot=boot)
        # The run that restores the marker writes the record anew, on the disk at once.
        assert "[SKIP] one" in done.out and not project.exists(KEPT % "one"), done


@pytest.mark.parametrize("words, codes, text", [
    (["status"], (0,), "died"), (["plan"], (0,), "last run died"), (["history", "s1"], (0,), ""),
    (["gc", "--keep-runs", "1"], (0,), ""), (["clean", "s1", "--yes"], (0,), ""), (["reset", "s1", "--yes"], (0,), ""), (["accept", "s1", "--yes"], (1, 2), ""),
    (["--dry-run"], (0,), "last run died"), (["report", "first"], (0,), "")], ids=lambda value: " ".join(value) if isinstance(value, list) else None)
def test_commands_get_on_with_an_outcome_that_the_power_took(project, words, codes, text):
    made(project)
    lost(project)
    done = project.run(*words, cwd=str(project.root))
    assert done.code in codes and text in done.out and "corrupt" not in done.out + done.err, done
    project.ok()
    assert not project.exists(KEPT % "s1") and project.read("data/s1/list") == "made\n"
    project.ok("verify", "--outputs")


@posix_only
def test_verify_tells_of_an_outcome_that_the_power_took(tmp_path):
    project = Case(appending, tmp_path).fresh("n001")
    where, _ = break_at(project, "late", 1, [], only=["fsync state/stage_one.json"])
    assert where and project.path("state/stage_one.json").read_bytes().strip(b"\0") == b""
    done = project.run("verify", "--outputs")
    assert done.code == 0 and "note: state/stage_one.json had not come to the disk when the power went; what was recorded before it counts" in done.out, done
    project.ok("--run-id", "next")
    assert "power" not in project.ok("verify", "--outputs").out


@posix_only
def test_reset_that_is_killed_leaves_no_damage(project, tmp_path):
    made(project)
    lost(project)
    settings = {"runner": str(RUNNER), "root": str(project.root), "action": "kill", "at": 1, "hit": str(tmp_path / "hit"), "boot": None, "outputs": [], "only": ["unlink state/*stage_s1.json*"]}
    for number in (1, 2):
        (tmp_path / "fault.json").write_text(json.dumps(dict(settings, at=number)), encoding="utf-8")
        subprocess.run([sys.executable, str(RUNNER.parent.parent / "tests" / "drivers" / "fault.py"), str(tmp_path / "fault.json"), "reset", "s1", "--yes", "--pipeline",
                        str(project.path("pipeline.json"))], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=project.environment(), timeout=60)
        assert len((tmp_path / "hit").read_text(encoding="utf-8").splitlines()) == number
        project.ok("status")
    project.ok()
    assert not project.exists(KEPT % "s1") and project.read("data/s1/list") == "made\n"


@pytest.mark.parametrize("is_restarted", [True, False])
def test_written_in_place_an_output_is_not_believed_by_its_times_after_a_restart(project, is_restarted):
    """Of a file whose size stays, the disk may have the new content and the old times. After a mere kill the times are true, and large files are not read for it."""
    project.write("in/a.txt", "1")
    body = "path = out + '/sum'\nbefore = open(path).read() if os.path.exists(path) else '00'\nwith open(path, 'w') as file:\n    file.write('%02d' % (int(before) + int(open(inputs[0]).read())))\n"
    project.spec({"processor": project.processor("add", body), "inputs": ["in/a.txt"]})
    project.ok()
    project.write("in/a.txt", "2")
    project.write("data/s1/sum", "77")
    found = os.lstat(str(project.path("data/s1/sum")))
    record = project.json("state/stage_s1.json")
    record.update(lastStatus="running", bootId="another" if is_restarted else record["bootId"], token="", baseline={"./": [], "sum": [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev]})
    project.write("state/stage_s1.json", json.dumps(record))
    done = project.ok()
    assert ("leftovers of an unfinished attempt: removed sum" in done.out) == is_restarted and project.read("data/s1/sum") == ("02" if is_restarted else "79"), done


@posix_only
def test_after_a_restart_a_link_that_nobody_has_touched_stays(project):
    project.write("in/a.txt", "1")
    body = "day = 'day' + open(inputs[0]).read()\nopen(out + '/' + day, 'w').close()\nif day == 'day1':\n    os.symlink(day, out + '/first')\n"
    project.spec({"processor": project.processor("make", body), "inputs": ["in/a.txt"]})
    project.ok()
    baseline = {path.name: [getattr(path.lstat(), "st_" + name) for name in ("size", "mtime_ns", "ctime_ns", "ino", "dev")] for path in project.path("data/s1").glob("[!.]*")}
    record = dict(project.json("state/stage_s1.json"), lastStatus="running", bootId="another", token="", baseline=dict(baseline, **{"./": []}))
    project.write("state/stage_s1.json", json.dumps(record))
    project.write("in/a.txt", "2")
    done = project.ok()
    assert os.path.islink(str(project.path("data/s1/first"))) and project.exists("data/s1/day1") and "leftovers" not in done.out, done


@posix_only
def test_a_skipped_stage_whose_output_cannot_be_synced_is_not_believed(tmp_path):
    """A second sync would report success for pages that are lost."""
    case = Case(appending, tmp_path)
    project = case.fresh("n001")
    assert break_at(project, "kill", 1, [], only=["fsync data/one/list.txt"])[0]
    where, done = break_at(project, "EIO", 1, [], "skips", only=["fsync data/one/list.txt"])
    assert where and done.code == 5 and "[SKIP] one" in done.out, done
    again = project.ok("--run-id", "again")
    assert "[START] one" in again.out and results(project) == results(case.expected), again


# --- the parts

def flat(status, **more):
    return dict({"stage": "s", "lastStatus": status, "idempotencyKey": "k", "keyParts": {}, "outputs": []}, **more)


def store_in(folder):
    store = StateStore(str(folder))
    store.prepare()
    store.in_groups = True
    store.write_stage("s", flat("running"))
    store.commit.flush()
    return store


def test_what_is_durable_is_kept_until_the_next_is(tmp_path):
    store, kept = store_in(tmp_path), tmp_path / (KEPT % "s")
    running = (tmp_path / "state" / "stage_s.json").read_bytes()
    store.write_stage("s", flat("ok"))
    assert store.stage("s")["lastStatus"] == "ok" and kept.read_bytes() == running and store.commit.seconds_left() is not None
    store.commit.flush()
    assert not kept.exists() and store.commit.seconds_left() is None


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.EEXIST, 0])
def test_where_nothing_can_be_kept_an_outcome_is_durable_at_once(tmp_path, monkeypatch, code):
    store, synced = store_in(tmp_path), []

    def refuse(*args, **more):
        raise OSError(code, os.strerror(code))
    if code:
        monkeypatch.setattr(os, "link", refuse)
    else:
        store.in_groups = False         # names may come to the disk in any order
    monkeypatch.setattr(durable_files, "sync_file", synced.append)
    store.write_stage("s", flat("ok"))
    assert len(synced) == 1 and not (tmp_path / (KEPT % "s")).exists() and str(tmp_path / "state" / "stage_s.json") not in store.commit.files


def test_after_a_failed_sync_what_was_kept_stays(tmp_path, monkeypatch):
    store = store_in(tmp_path)
    store.write_stage("s", flat("ok"))

    def refuse(path):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    with monkeypatch.context() as patch:
        patch.setattr(durable_files, "_sync_path", refuse)
        with pytest.raises(OSError):
            store.commit.flush()
    store.commit.files.clear()
    store.commit.flush()
    assert (tmp_path / (KEPT % "s")).exists()
    store.sync_stage("s")
    store.commit.flush()
    assert (tmp_path / (KEPT % "s")).exists()           # a second sync tells nothing
    synced = []
    monkeypatch.setattr(durable_files, "sync_file", synced.append)
    store.write_stage("s", flat("failed"))
    assert len(synced) == 1 and not (tmp_path / (KEPT % "s")).exists()


def test_what_another_run_keeps_since_is_not_removed(tmp_path):
    """It has taken the stage after this run had done it and before this run has synced it."""
    one, two = store_in(tmp_path), StateStore(str(tmp_path))
    one.write_stage("s", flat("ok"))
    two.in_groups = True
    two.write_stage("s", flat("running", attempts=2))
    two.write_stage("s", flat("ok"))
    one.commit.flush()
    assert json.loads((tmp_path / (KEPT % "s")).read_text(encoding="utf-8"))["attempts"] == 2
    two.commit.flush()
    assert not (tmp_path / (KEPT % "s")).exists()


def test_what_is_written_is_due_a_second_after_the_last_flush(tmp_path):
    now = [100.0]
    store = store_in(tmp_path)
    store.commit = durable_files.Commit(lambda: now[0])
    store.commit.files["gone"] = None
    assert store.commit.seconds_left() is None          # outputs wait for the end of a stage, or of a run
    for begin in (100.0, 107.0):
        store.write_stage("s", flat("running"))
        now[0] = begin + 0.25
        assert store.commit.seconds_left() == 0.75 and not store.commit.is_due()
        now[0] = begin + 1.5
        assert store.commit.seconds_left() == 0.0
        now[0] = begin + 7.0
        store.commit.flush()
        assert store.commit.seconds_left() is None


def test_content_and_name_of_an_outcome_come_to_the_disk_before_what_was_kept_goes(tmp_path, monkeypatch):
    store, steps = store_in(tmp_path), []
    store.write_stage("s", flat("ok"))
    for word, name in (("content", "_sync_path"), ("names", "sync_folder"), ("gone", "remove_quietly")):
        monkeypatch.setattr(durable_files, name, lambda path, word=word: steps.append("%s %s" % (word, os.path.basename(path))))
    store.commit.flush()
    assert steps == ["content stage_s.json", "names state", "gone .stage_s.json.before"]


@pytest.mark.parametrize("damage", [b"[]", b'{"schema": 1, "stage": "s"}', b'{"schema": 99}'], ids=["a list", "no record", "newer"])
def test_a_record_that_is_whole_and_wrong_is_damage_whatever_was_kept(tmp_path, damage):
    """No power cut leaves such: somebody has written it, and it must be told."""
    store = store_in(tmp_path)
    store.write_stage("s", flat("ok"))
    (tmp_path / "state" / "stage_s.json").write_bytes(damage)
    with pytest.raises(state_store.StateError):
        store.stage("s")


@pytest.mark.parametrize("data, kept, expected", [
    (b"{}", b'{"a": 1}', b"{}"), (b"", b'{"a": 1}', b'{"a": 1}'), (bytes(9), b'{"a": 1}', b'{"a": 1}'), (b"", None, b""), (None, b'{"a": 1}', None)])
def test_an_export_holds_what_was_kept_of_a_record_that_the_power_took(tmp_path, data, kept, expected):
    store = store_in(tmp_path)
    (tmp_path / "state" / "stage_s.json").unlink()
    for name, content in (("stage_s.json", data), (".stage_s.json.before", kept)):
        if content is not None:
            (tmp_path / "state" / name).write_bytes(content)
    assert ledger_export._stage_records(store) == ({} if expected is None else {"stage_s.json": expected})


class Waiting:
    """Signals that are waited for: how long at most. The second wait is ended by one."""
    number = count = 0
    has_child_ended = False

    def __init__(self):
        self.limits = []

    def wait(self, descriptors, limit, *more):
        self.limits.append(limit)
        self.number = len(self.limits) - 1
        return []


@pytest.mark.parametrize("due, limit, expected", [(0.25, 50.0, 0.25), (50.0, 0.25, 0.25), (None, 50.0, 50.0)])
def test_while_nothing_ends_what_is_due_is_done_in_time(due, limit, expected):
    """Also while a stage waits for its next attempt."""
    pool, asked = attempts.Pool(Waiting(), None, threads=False), []
    pool.upkeep = lambda: asked.append(due) or due
    pool.wait(limit)
    assert pool.signals.limits and all(0 <= one <= expected for one in pool.signals.limits) and pool.signals.limits[0] > expected - 0.2 and len(asked) == len(pool.signals.limits)


def test_while_a_long_file_is_read_nothing_is_synced():
    """A failed sync would count for what is read, and whoever reads does not hear of it."""
    pool, asked = attempts.Pool(Waiting(), None, threads=False), []
    pool.upkeep = lambda: asked.append(1)
    pool.keep_going(0.0)
    pool.running.append(SimpleNamespace(ending=SimpleNamespace(seconds_left=lambda: None, look=lambda: None, put_off=lambda seconds: None), started=0.0, reader=-1, server=None,
                                        network=None, launch=SimpleNamespace(feeder=None), has_news=False, descriptors=lambda: [], has_ended=lambda: False))
    pool.seen -= 1000
    pool.attend()
    assert pool.signals.limits and not asked


def test_the_first_error_is_told_not_one_that_came_of_it():
    def work_with(error, left=0.0):
        def flush():
            flushed.append(left)
            raise error
        flushed = []
        commit = SimpleNamespace(files={}, seconds_left=lambda: left, flush=flush)
        run = SimpleNamespace(root="", store=SimpleNamespace(commit=commit), scheduler=SimpleNamespace(error=None), digests=SimpleNamespace(files={}),
                              selected=[], result_at=[], flushed=flushed)
        return run, durability.Durability(run)
    first, second = OSError(errno.ENOSPC, "full"), OSError(errno.EIO, "broken")
    run, work = work_with(second)
    assert work.keep_up() is None and run.scheduler.error is second and work.is_unsound
    run.scheduler.error = first
    assert work.keep_up() is None and run.scheduler.error is first and run.flushed == [0.0, 0.0]
    run, work = work_with(second, 0.5)
    assert work.keep_up() == 0.5 and not run.flushed and not work.is_unsound
