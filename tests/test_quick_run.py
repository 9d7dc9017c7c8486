"""The index: a run in which nothing changed writes the same by the short way as by the long one, and is never wrong."""
from __future__ import annotations

import json
import marshal
import os
import select
import shutil
import subprocess
import sys
import threading
import time

import pytest
from conftest import KILLED, ROOT, RUNNER

import file_digests
import index_writer
import known_stages
import model
import path_signs
import pipeline_runner
import primitives
import quick_index
import quick_run
import stage_locks
import state_store

linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only there a second process looks")


def age(project):
    """Wait out the time within which two writes may carry one time stamp: the index believes nothing that is not older than its run."""
    time.sleep(3 * file_digests.FRESH_NS / 1e9)


def build(project, *stages, own_runner=False, **top):
    """Make a project whose index is there; return it."""
    project.write("data/a.txt", "one\n")
    project.write("data/b.txt", "two\n")
    project.write("src_here/keep.txt", "")
    if own_runner:
        shutil.copytree(ROOT / "src", project.path("runner"), ignore=shutil.ignore_patterns("__pycache__"))
    project.write("bin/helper.py", "WORD = 'x'\n")
    project.write("bin/helper.none-1.so", b"one")       # of another Python
    project.processor("work", "import helper\n[open(os.path.join(out, os.path.basename(one)), 'w').write(open(one).read() + helper.WORD) for one in inputs]\n")
    project.spec(*(stages or ({"processor": "bin/work.py", "inputs": ["data/*.txt"], "watch": ["src_here/keep.txt"], "passEnv": ["MINE_*"]},
                              {"processor": "bin/work.py", "inputs": ["data/s1/a.txt"]})), **top)
    run(project, "made")
    age(project)
    run(project, "indexed")
    assert project.exists("state/index_pipeline.json")
    return project


def runner_of(root):
    own = root / "runner" / "pipeline_runner.py"
    return str(own if own.exists() else RUNNER)


def run(project, run_id, *more, env=None):
    argv = [sys.executable, runner_of(project.root), "--pipeline", str(project.path("pipeline.json")), "--run-id", run_id, *more]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=120, env=project.environment(**(env or {})))
    assert b"Traceback" not in done.stderr, done
    return done.returncode, done.stdout.decode("utf-8"), done.stderr.decode("utf-8")


def found(project):
    """What the index says now: None, or the names of stages that must be looked at."""
    root, pipeline = str(project.root), str(project.path("pipeline.json"))
    answer = quick_run.look(pipeline, root, lambda *_: None)
    return None if answer is None else sorted(answer.index.names[place] for place in answer.stale)


# --- the same records

TIMES = {"startedAt", "endedAt", "durationMs", "timestamp", "durationSec", "runId", "prevRunHash", "runHash", "metrics", "at", "seq", "prevHash", "hash", "lastRunHash"}


def without_times(record):
    return [(name, value) for name, value in record.items() if name not in TIMES]


def test_both_ways_write_the_same(project):
    build(project)
    assert found(project) == []
    short = run(project, "short-way")
    long = run(project, "long-way", env={"PIPELINE_INDEX": "off"})
    assert short[0] == long[0] == 0 and short[2] == long[2]
    assert [line.split(" head ")[0].split(" in ")[0].replace("short", "long") for line in short[1].splitlines()] == [
        line.split(" head ")[0].split(" in ")[0] for line in long[1].splitlines()]
    one, other = project.json("state/run_short-way.json"), project.json("state/run_long-way.json")
    assert list(one) == list(other) and without_times(one) == without_times(other)
    one, other = project.json("state/metrics_short-way.json"), project.json("state/metrics_long-way.json")
    assert list(one) == list(other) and without_times(one) == without_times(other)
    for name in ("run_short-way.json", "metrics_short-way.json"):       # the text, too, is that of the one writer of records
        record = project.json("state/" + name)
        assert project.read("state/" + name) == json.dumps(record, indent=1, ensure_ascii=False) + "\n"
    ledger = [json.loads(line) for line in project.read("state/ledger.jsonl").splitlines()]
    assert without_times(ledger[-1]) == without_times(ledger[-2]) and ledger[-1]["prevHash"] == ledger[-2]["hash"]
    assert run_command(project, "verify", "--outputs")[0] == 0


def run_command(project, *words):
    argv = [sys.executable, runner_of(project.root), *words, "--pipeline", str(project.path("pipeline.json"))]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120)
    return done.returncode, done.stdout.decode("utf-8")


@pytest.mark.parametrize("more, not_loaded", [({"passEnv": ["MINE_*"]}, set()), ({}, {"re"})])
def test_the_short_way_is_taken_and_loads_little(project, more, not_loaded):
    build(project, dict({"processor": "bin/work.py", "inputs": ["data/*.txt"]}, **more))
    code = ("import sys; sys.argv = sys.argv[1:]; sys.path.insert(0, %r); import quick_run; code = quick_run.attempt(sys.argv, print); "
            "print('ended', code, *sorted(sys.modules))" % str(ROOT / "src"))
    argv = [sys.executable, "-S", "-c", code, "--pipeline", str(project.path("pipeline.json"))]
    done = subprocess.run(argv, stdout=subprocess.PIPE, check=True, timeout=60)
    ended, code, *loaded = done.stdout.decode("utf-8").splitlines()[-1].split()
    assert (ended, code) == ("ended", "0") and not {"json", "model", "spec_checks", "stage_keys", "import_scan", "hashlib", *not_loaded} & set(loaded)


@pytest.mark.parametrize("way", ["nothing changed", "one changed", "status", "refused"])
def test_the_process_ends_at_once_but_where_somebody_waits_for_its_end(project, way):
    build(project)
    if way == "one changed":
        project.write("data/a.txt", "another\n")
    words = {"status": ["status", "--pipeline", "pipeline.json"], "refused": ["--pipeline", "none.json"]}.get(way, ["--pipeline", "pipeline.json"])
    thread = "import threading; threading.Thread(target=lambda: threading.main_thread().join() or print('thread ends', flush=True)).start()"
    for waits, last in (("import atexit; atexit.register(print, 'at the end')", "at the end"), (thread, "thread ends"), ("import cProfile", ""), ("", "at once")):
        code = ("import os, runpy, sys, time\nsys.argv, end, own = sys.argv[1:], os._exit, os.getpid()\nos._exit = lambda code: (os.getpid() == own and os.write(1, b'at once\\n'), end(code))\n"
                "%s\nrunpy.run_path(sys.argv[0], run_name='__main__')" % waits)
        done = subprocess.run([sys.executable, "-S", "-c", code, str(RUNNER), *words], cwd=str(project.root), stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60,
                              env=project.environment())
        lines = done.stdout.decode("utf-8").splitlines()
        assert done.returncode == (2 if way == "refused" else 0) and lines.count("at once") == (not waits), done
        assert last in ("", *lines[-1:]), done
        if way == "one changed":
            project.write("data/a.txt", "another %s\n" % last)


@pytest.mark.skipif(os.name == "nt", reason="a shell closes the stream")
@pytest.mark.parametrize("redirection", [">&-", "2>&-", ">&- 2>&-"] + [">/dev/full"] * os.path.exists("/dev/full"))
def test_nothing_changed_and_nobody_listens(project, redirection):
    build(project)
    argv = ["sh", "-c", 'exec "$@" ' + redirection, "sh", sys.executable, str(RUNNER), "--pipeline", str(project.path("pipeline.json")), "--run-id", "unheard"]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60, env=project.environment())
    assert (done.returncode, done.stderr) == (0, b"") and project.json("state/run_unheard.json")["state"] == "completed"


def test_without_its_locks_folder_a_root_gets_a_new_one(project):
    build(project)
    shutil.rmtree(project.path("locks"))
    for run_id in ("one", "two"):
        code, out, err = run(project, run_id)
        assert (code, err) == (0, "") and out.count("[SKIP]") == 2 and project.exists("locks")


LOOKER = """
import os, sys
sys.path.insert(0, sys.argv[1])
import path_signs
path_signs.SHARE_FROM, path_signs.PART = 2, 64
paths = ["no such file %d" % number for number in range(20000)]
answer = path_signs._answer


def told(writer, *rest):
    os.close(os.dup(0))             # still there: what follows is written to nobody
    print(os.getpid(), flush=True)
    os.read(0, 1)                   # until the parent is dead
    answer(writer, *rest)
path_signs._answer = told
path_signs.changed_shared(paths, [0] * path_signs.WIDTH * len(paths), os.getcwd(), lambda: os.kill(os.getpid(), 9) if os.read(3, 1) else None)
"""


def is_alive(pid):
    try:
        with open("/proc/%d/stat" % pid, encoding="ascii", errors="replace") as file:
            return file.read().rpartition(") ")[2][0] != "Z"
    except FileNotFoundError:
        return False


@linux_only
def test_the_second_process_ends_when_the_first_is_killed(tmp_path):
    """Also with more to tell than a pipe takes: nobody will read it."""
    go, said = os.pipe()
    kill, dead = os.pipe()
    code = LOOKER.replace("os.read(3, 1)", "os.read(%d, 1)" % kill)
    run = subprocess.Popen([sys.executable, "-c", code, str(ROOT / "src")], stdin=go, stdout=subprocess.PIPE, pass_fds=[kill], cwd=str(tmp_path))
    try:
        child = int(run.stdout.readline())
        os.write(dead, b"x")
        assert run.wait(60) == KILLED
        os.write(said, b"x")
        deadline = time.monotonic() + 60
        while is_alive(child):
            assert time.monotonic() < deadline, "it still waits for a reader"
            time.sleep(0.01)
    finally:
        run.stdout.close()
        for descriptor in (go, said, kill, dead):
            os.close(descriptor)


@linux_only
def test_where_ends_of_processes_are_ignored_one_looks_alone(project):
    for number in range(path_signs.SHARE_FROM):
        project.write("data/many/%d.txt" % number, "")
    build(project, {"processor": "bin/work.py", "inputs": ["data/many/*.txt"]})
    code = "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"
    argv = [sys.executable, "-c", code, sys.executable, str(RUNNER), "--pipeline", str(project.path("pipeline.json"))]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60, env=project.environment())
    assert (done.returncode, done.stderr) == (0, b"") and b"[SKIP] s1" in done.stdout, done


def test_what_another_copy_of_the_runner_found_is_not_believed(project):
    """It may be of another version, with other rules; and the record says which runner decided."""
    build(project)
    shutil.copytree(ROOT / "src", project.path("runner"), ignore=shutil.ignore_patterns("__pycache__"))
    with open(project.path("runner/model.py"), "a", encoding="utf-8") as file:
        file.write("# another version\n")
    assert run(project, "by-another")[0] == 0
    made, indexed, other = (project.json("state/run_%s.json" % run_id)["runnerSha256"] for run_id in ("made", "indexed", "by-another"))
    assert made == indexed != other


def test_the_same_run_id_again_is_another_invocation(project):
    build(project)
    for number in (2, 3):
        assert run(project, "indexed")[0] == 0
        assert project.json("state/run_indexed.json")["invocation"] == number and project.exists("state/run_indexed.%d.json" % (number - 1))
    assert run_command(project, "verify")[0] == 0


# --- a skip is never wrong: all that the decision looks at

def rewrite_in_place(path, text):
    """Another content of the same size, under the same modification time: only the change time tells."""
    before = path.stat()
    with open(path, "r+", encoding="utf-8") as file:
        file.write(text)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


CHANGES = {
    "touch an input": lambda p: os.utime(p.path("data/a.txt")),
    "modify an input": lambda p: p.write("data/a.txt", "other\n"),
    "same size, same time": lambda p: rewrite_in_place(p.path("data/a.txt"), "ONE\n"),
    "replace an input": lambda p: (p.write("data/new.tmp", "1ne\n"), os.replace(p.path("data/new.tmp"), p.path("data/a.txt"))),
    "remove an input": lambda p: p.path("data/b.txt").unlink(),
    "a file that the glob matches": lambda p: p.write("data/c.txt", "three\n"),
    "an input becomes a link": lambda p: (p.path("data/a.txt").rename(p.path("kept")), p.path("data/a.txt").symlink_to(p.path("kept"))),
    "watched": lambda p: p.write("src_here/keep.txt", "now"),
    "remove an output": lambda p: p.path("data/s1/a.txt").unlink(),
    "edit an output": lambda p: rewrite_in_place(p.path("data/s1/b.txt"), "TWO"),
    "remove the marker": lambda p: p.path("data/s1/.s1.done").unlink(),
    "edit the marker": lambda p: p.write("data/s2/.s2.done", "{}"),
    "edit the stage record": lambda p: p.write("state/stage_s1.json", p.read("state/stage_s1.json").replace('"lastStatus": "ok"', '"lastStatus": "failed"')),
    "remove the stage record": lambda p: p.path("state/stage_s2.json").unlink(),
    "the spec": lambda p: p.write("pipeline.json", p.read("pipeline.json") + "\n"),
    "another spec": lambda p: p.write("pipeline.json", p.read("pipeline.json").replace('"name": "test"', '"name": "tess"')),
    "touch the processor": lambda p: os.utime(p.path("bin/work.py")),
    "edit the processor": lambda p: p.write("bin/work.py", p.read("bin/work.py") + "# more\n"),
    "edit a module": lambda p: p.write("bin/helper.py", "WORD = 'y'\n"),
    "a module that shadows an import": lambda p: p.write("bin/json.py", "import sys\nfrom os import *\nload = dumps = loads = lambda *a, **k: []\n"),
    "edit an extension module": lambda p: p.write("bin/helper.none-1.so", b"two"),
    "a program for the scan": lambda p: p.write("bin/deep/more.py", "import os\n"),
    "a program that the scan refuses": lambda p: p.write("bin/more.py", "import " + "soc" + "ket\n"),
    "the runner": lambda p: p.write("runner/reasons.py", p.read("runner/reasons.py") + "# more\n"),
    "a module more of the runner": lambda p: p.write("runner/more.py", '"""More."""\n'),
    "a lock folder": lambda p: p.path("locks/s1.lock").mkdir(),
}


@pytest.mark.parametrize("name", list(CHANGES))
def test_whatever_changes_is_decided_as_by_the_long_way(project, name):
    build(project, own_runner="runner" in name)
    CHANGES[name](project)
    assert "runner" in name or found(project) != []
    copy = shutil.copytree(project.root, project.root.parent / "copy", symlinks=True)
    code, out, err = run(project, "after-change")
    decisions = [line for line in out.splitlines() if line.startswith(("[SKIP]", "[START]", "[FAIL]"))]
    argv = [sys.executable, runner_of(copy), "--pipeline", str(copy / "pipeline.json"), "--run-id", "after-change"]
    env = project.environment(PIPELINE_INDEX="off")
    long = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=120, env=env)
    other = [line for line in long.stdout.decode("utf-8").splitlines() if line.startswith(("[SKIP]", "[START]", "[FAIL]"))]
    assert (code, decisions) == (long.returncode, other), (out, err, long)


@pytest.mark.parametrize("name", ["json.py", "json.none-1.so"])
def test_a_link_in_the_place_of_a_module_that_leads_nowhere_may_lead_to_one_later(project, name):
    project.write("tools/work.py", "import json, os\nopen(os.path.join(os.environ['PIPELINE_OUTPUT_DIR'], 'o'), 'w').close()\n")
    project.path("tools/" + name).symlink_to(project.path("later"))
    build(project, {"processor": "tools/work.py"})
    assert found(project) == []
    project.write("later", "")
    assert found(project) is None


def test_another_surrounding_is_not_believed(project, monkeypatch):
    build(project)
    import environment
    import stage_locks
    import state_store
    assert found(project) == []
    for target, name, value in ((state_store, "boot_id", "another"), (environment, "user_name", "somebody"), (stage_locks, "host_name", "elsewhere")):
        with monkeypatch.context() as patch:
            patch.setattr(target, name, lambda value=value: value)
            assert found(project) is None, name
    with monkeypatch.context() as patch:
        patch.setattr(sys, "version", "3.99")
        assert found(project) is None
    with monkeypatch.context() as patch:
        patch.setenv("MINE_NEW", "1")
        assert found(project) is None
    assert found(project) == []
    code, out, _ = run(project, "with-variable", env={"MINE_NEW": "1"})
    assert code == 0 and "[START] s1" in out and "[SKIP] s2" in out


def test_a_damaged_index_is_ignored(project):
    build(project)
    path = project.path("state/index_pipeline.json")
    whole = path.read_bytes()
    assert quick_index.from_bytes(whole) is not None
    for place in list(range(0, 200)) + list(range(200, len(whole), 37)):
        broken = bytearray(whole)
        broken[place] ^= 0x10
        path.write_bytes(broken)
        index = quick_index.load(str(path))
        assert index is None or not index.has_whole_texts(), place
        assert found(project) is None
    for size in (0, 1, 20, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert quick_index.load(str(path)) is None, size
    path.write_bytes(whole + b"x")
    assert quick_index.load(str(path)) is None
    code, out, err = run(project, "rebuilt-1")
    assert code == 0 and out.count("[SKIP]") == 2 and err == ""
    assert found(project) == []


def test_only_what_changed_is_looked_at_and_what_follows_from_it(project):
    build(project, *[{"name": "f%d" % n, "processor": "bin/work.py", "inputs": ["data/%s.txt" % name], "outputDir": "data/f%d" % n} for n, name in enumerate("abab")],
          {"name": "last", "processor": "bin/work.py", "inputs": ["data/f1/*.txt"]})
    project.write("data/b.txt", "changed\n")
    assert found(project) == ["f1", "f3"]
    code, out, _ = run(project, "partly")
    kinds = [line.split()[0] + line.split()[1] for line in out.splitlines() if line.startswith(("[SKIP]", "[DONE]"))]
    assert code == 0 and kinds == ["[SKIP]f0", "[DONE]f1", "[SKIP]f2", "[DONE]f3", "[DONE]last"]
    record = project.json("state/run_partly.json")
    assert [one["status"] for one in record["stages"]] == ["skipped", "ok", "skipped", "ok", "ok"]
    assert project.read("state/run_partly.json") == json.dumps(record, indent=1, ensure_ascii=False) + "\n"
    assert run_command(project, "verify", "--outputs")[0] == 0
    age(project)
    run(project, "indexed-again")
    assert found(project) == []
    record, before = project.json("state/run_indexed-again.json"), project.json("state/run_indexed.json")
    assert [one["stage"] for one in record["stages"]] == [one["stage"] for one in before["stages"]]
    run(project, "last-one")
    assert run_command(project, "verify", "--outputs")[0] == 0


def test_what_a_processor_did_to_the_inputs_of_later_stages_is_seen(project):
    """Not where it should write, but it did: the stages after it are looked at again."""
    project.processor("aside", "open(os.path.join(out, 'a'), 'w').close()\nopen('data/aside.txt', 'w').write(open(inputs[0]).read())\n")
    project.write("data/aside.txt", "one\n")
    build(project, {"processor": "bin/aside.py", "inputs": ["data/a.txt"]}, {"processor": "bin/work.py", "inputs": ["data/b.txt"]},
          {"processor": "bin/work.py", "inputs": ["data/aside.txt"]}, {"processor": "bin/work.py", "inputs": ["data/b.txt"]})
    run(project, "indexed-too")
    age(project)
    run(project, "indexed-all")
    assert found(project) == []
    project.write("data/a.txt", "changed\n")
    assert found(project) == ["s1"]
    code, out, err = run(project, "partly")
    kinds = [line.split()[0] + line.split()[1] for line in out.splitlines() if line.startswith(("[SKIP]", "[DONE]"))]
    assert (code, kinds) == (0, ["[DONE]s1", "[SKIP]s2", "[DONE]s3", "[SKIP]s4"]), err
    assert project.read("data/s3/aside.txt") == "changed\nx"


@pytest.mark.parametrize("gone", ["data/s1/a.txt", "data/s1/.s1.done", "state/stage_s1.json", "data/a.txt", "there/behind.txt", "own/work.py"])
def test_what_vanishes_while_a_run_goes_on_is_missed_by_the_next_one(project, gone):
    """After it was looked at and before it is signed: that it is not there is not what the decision was made of."""
    for name, text in (("data/a.txt", "one\n"), ("data/b.txt", "none"), ("there/behind.txt", "two\n")):
        project.write(name, text)
    project.path("data/link.txt").symlink_to("../there/behind.txt")
    project.write("own/work.py", project.path(project.processor("work", "for one in inputs:\n    open(os.path.join(out, os.path.basename(one)), 'w').write(open(one).read())\n")).read_text())
    remover = project.processor("remove", "name = open(inputs[0]).read()\nos.path.exists(name) and os.unlink(name)\nopen(out + '/o', 'w').close()\n")
    project.spec({"processor": "own/work.py", "inputs": ["data/a.txt", "data/link.txt"]}, {"processor": remover, "inputs": ["data/b.txt"]})
    run(project, "made")
    project.write("data/b.txt", gone)
    age(project)
    code, out, err = run(project, "removed")
    assert code == 0 and "[SKIP] s1" in out and "[DONE] s2" in out and not project.exists(gone), (out, err)
    code, out, err = run(project, "next")
    assert "[SKIP] s1" not in out, (out, err)
    assert code == 0 and project.read("data/s1/a.txt") == "one\n" or "data/a.txt" in out + err or "data/link.txt" in out + err or gone in out + err, (out, err)


def test_what_comes_into_a_folder_behind_a_junction_is_seen(project, tmp_path, junctions):
    """Its own time does not change with that: it is signed twice, as a link is."""
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "a.txt").write_bytes(b"a")
    junctions.make(tmp_path / "theirs", project.path("incoming"))
    body = "[open(os.path.join(out, os.path.basename(one)), 'w').close() for one in inputs]\n"
    project.spec({"name": "s1", "processor": project.processor("p", body), "inputs": ["incoming/*.txt"], "outputDir": "data/s1"})
    assert "[DONE] s1" in junctions.run(project).out
    age(project)
    assert "[SKIP] s1" in junctions.run(project).out and project.exists("state/index_pipeline.json")
    (tmp_path / "theirs" / "b.txt").write_bytes(b"b")
    done = junctions.run(project)
    assert "[DONE] s1" in done.out and project.exists("data/s1/b.txt"), done


@pytest.mark.parametrize("options", [["--force", "s1"], ["--only", "s1"], ["--rehash"], ["--verbose"], ["--set", "x=1"], ["plan"], ["--run-id", "con"], ["--run-id", "-x"],
                                     ["--jobs", "0"], ["--run-id", "a", "--run-id", "b"], ["--pipeline"], ["--key", "k"], ["--run-id="]])
def test_other_command_lines_go_the_long_way(options):
    assert quick_run.plain_options(options) is None


def test_plain_command_lines():
    assert quick_run.plain_options([]) == {"--pipeline": "pipeline.json"}
    assert quick_run.plain_options(["--pipeline=p", "--run-id", "demo1", "--root", "r", "--jobs", "2"]) == {
        "--pipeline": "p", "--run-id": "demo1", "--root": "r", "--jobs": "2"}


# --- signs

def test_signs_tell_what_changed(tmp_path):
    paths = [str(tmp_path / name) for name in ("a", "b", "absent")]
    for path in paths[:2]:
        with open(path, "w") as file:
            file.write("x")
    signs = path_signs.sign(paths)
    assert path_signs.changed(paths, signs) == []
    os.utime(paths[1])
    with open(paths[2], "w"):
        pass
    assert path_signs.changed(paths, signs) == [1, 2] and path_signs.changed(paths, signs, 2) == [2]
    os.unlink(paths[0])
    assert path_signs.changed(paths, signs) == [0, 1, 2]


LARGE = """import os
class Large:
    def __init__(self, found):
        self.found = found
    def __getattr__(self, name):
        value = getattr(self.found, name)
        return value | 7 << 70 if name == "st_ino" else value | 1 << 63 if name == "st_dev" else value
for name in ("stat", "lstat", "fstat"):
    setattr(os, name, lambda *path, real=getattr(os, name), **options: Large(real(*path, **options)))
"""


def test_devices_of_64_bits_and_inodes_of_128_have_an_index(project, tmp_path, monkeypatch):
    """Of such does Windows tell from Python 3.12 on: of every other volume, and on ReFS."""
    (tmp_path / "large").mkdir()
    (tmp_path / "large" / "sitecustomize.py").write_text(LARGE, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "large"))
    build(project, {"processor": "bin/stage_copy.py", "inputs": ["data/*.txt"]})
    code = "import sys; sys.path.insert(0, %r); import quick_run; print('ended', quick_run.attempt(sys.argv[1:], print))" % str(ROOT / "src")
    for end in ("ended 0", "ended <quick_run.Found "):
        done = subprocess.run([sys.executable, "-c", code, "--pipeline", str(project.path("pipeline.json"))], stdout=subprocess.PIPE, check=True, timeout=60)
        assert done.stdout.decode("utf-8").splitlines()[-1].startswith(end), done
        project.write("data/a.txt", "three\n")


def test_of_inodes_of_128_bits_both_halves_count():
    numbers = [folder << 64 | name for folder in range(40) for name in range(40)]
    kept = {path_signs.in_63_bits(number) for number in numbers}
    assert len(kept) == len(numbers) and 0 <= min(kept) and max(kept) < 1 << 63
    assert all(path_signs.in_63_bits(number) == number for number in kept)


def test_two_processes_see_what_one_sees(tmp_path, monkeypatch):
    paths = [str(number) for number in range(140)] + ["absent", "absent/too"]
    for path in paths[:140]:
        (tmp_path / path).touch()
    signs = path_signs.sign([str(tmp_path / path) for path in paths])
    for number in (3, 63, 64, 139):
        (tmp_path / str(number)).unlink()
    here, called = os.getcwd(), []
    assert path_signs.changed_shared(paths, signs, str(tmp_path)) == [3, 63, 64, 139]
    monkeypatch.setattr(path_signs, "SHARE_FROM", 2)
    assert path_signs.changed_shared(paths, signs, str(tmp_path), lambda: called.append(1)) == [3, 63, 64, 139]
    assert os.getcwd() == here and called == [1]
    (tmp_path / "absent").touch()
    assert path_signs.changed_shared(paths, signs, str(tmp_path)) == [3, 63, 64, 139, 140]
    for part in (1, 7, 64, 1000):       # where the two meet makes no difference
        monkeypatch.setattr(path_signs, "PART", part)
        assert path_signs.changed_shared(paths, signs, str(tmp_path)) == [3, 63, 64, 139, 140]
        assert path_signs.changed_shared(paths, signs, str(tmp_path), first=4, last=140) == [63, 64, 139]


@linux_only
@pytest.mark.parametrize("stands", ["in the root", "elsewhere"])
def test_the_second_process_does_its_part(tmp_path, monkeypatch, stands):
    """When it has all the time, nothing is left to the first."""
    paths = [str(number) for number in range(100)]
    signs = path_signs.sign([str(tmp_path / path) for path in paths])
    (tmp_path / "5").touch()
    monkeypatch.chdir(tmp_path if stands == "in the root" else tmp_path.parent)
    monkeypatch.setattr(path_signs, "SHARE_FROM", 2)
    monkeypatch.setattr(path_signs, "PART", 4)
    monkeypatch.setattr(path_signs, "_may_fork", lambda: True)
    looked, look, here = [], path_signs.changed, os.getpid()
    monkeypatch.setattr(path_signs, "changed", lambda *given, **more: (looked.append(os.getpid()), look(*given, **more))[1])
    assert path_signs.changed_shared(paths, signs, str(tmp_path), lambda: os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)) == [5]
    assert here not in looked


@linux_only
@pytest.mark.parametrize("changes", [[], [5], [5, 60, 99]])
def test_at_the_first_change_it_is_made_ready_for_a_run_while_the_second_process_looks(tmp_path, monkeypatch, changes):
    paths, calls = [str(number) for number in range(100)], []
    signs = path_signs.sign([str(tmp_path / path) for path in paths])
    for number in changes:
        (tmp_path / str(number)).touch()
    monkeypatch.setattr(path_signs, "SHARE_FROM", 2)
    monkeypatch.setattr(path_signs, "PART", 4)
    monkeypatch.setattr(path_signs, "_may_fork", lambda: True)
    look, here, (waits, tells) = path_signs.changed, os.getpid(), os.pipe()
    child = "/proc/self/task/%d/children" % here

    def look_late(*given, **more):
        if os.getpid() != here:         # the second process: or it might have looked at all before the first begins
            select.select([waits], [], [], 30)
        return look(*given, **more)

    def ready():
        with open(child, encoding="ascii") as file:
            calls.append(len(file.read().split()))
        os.write(tells, b"-")
    if not changes:
        os.write(tells, b"-")
    monkeypatch.setattr(path_signs, "changed", look_late)
    assert path_signs.changed_shared(paths, signs, str(tmp_path), upon_change=ready) == changes
    for end in (waits, tells):
        os.close(end)
    assert calls == [1] * bool(changes)


def test_a_run_is_made_ready_for_once_something_changed_and_only_then(project):
    build(project)
    told = []

    def prepare(*given):
        told.append(given)
        return "ready"
    root, pipeline = str(project.root), str(project.path("pipeline.json"))
    answer = quick_run.look(pipeline, root, prepare)
    assert told == [] and (answer.stale, answer.prepared) == (frozenset(), None)
    project.write("data/a.txt", "another\n")
    answer = quick_run.look(pipeline, root, prepare)
    assert told == [(answer.index, pipeline, root)] and (answer.stale, answer.prepared) == (frozenset([0]), "ready")


@linux_only
def test_an_index_cut_short_while_processors_are_at_work_ends_nothing(project):
    for number in range(7000):
        project.write("data/many/%s%d" % ("x" * 150, number), "")
    project.write("data/a.txt", "a")
    project.write("data/b.txt", "b")
    project.processor("count", "open(os.path.join(out, 'count'), 'w').write(str(len(inputs)))\n")
    project.processor("wait", "while not os.path.exists('gate'):\n    time.sleep(0.01)\nopen(os.path.join(out, 'o'), 'w')\n")
    project.processor("cut", "path, ended = 'state/index_pipeline.json', time.monotonic() + 30\n"
                      "while path in open('/proc/%d/maps' % os.getppid()).read():\n    assert time.monotonic() < ended, 'still mapped'\n    time.sleep(0.001)\n"
                      "os.path.exists(path) and os.truncate(path, 10)\nopen('gate', 'w')\nopen(os.path.join(out, 'o'), 'w')\n")
    project.spec(*({"processor": "bin/%s.py" % name, "inputs": [inputs]} for name, inputs in (("count", "data/many/*"), ("wait", "data/a.txt"), ("cut", "data/b.txt"))), order="graph")
    assert run(project, "made", "--jobs", "2")[0] == 0
    age(project)
    assert run(project, "indexed")[1].count("[SKIP]") == 3
    assert project.path("state/index_pipeline.json").stat().st_size >= quick_index.MAP_FROM
    project.path("gate").unlink()
    project.write("data/a.txt", "another a")
    project.write("data/b.txt", "another b")
    code, out, err = run(project, "cut", "--jobs", "2")
    assert (code, err) == (0, "") and "[SKIP] s1" in out and out.count("[DONE]") == 2
    assert len(project.json("state/run_cut.json")["stages"]) == 3


def test_a_folder_that_is_gone_is_no_place_to_stand_in(tmp_path, monkeypatch):
    def fail():
        raise FileNotFoundError(2, "gone")
    (tmp_path / "x").touch()
    monkeypatch.setattr(os, "getcwd", fail)
    assert path_signs.changed_shared(["x", "y"], path_signs.sign([str(tmp_path / "x")]) + list(path_signs.ABSENT), str(tmp_path)) == []


@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 128, 130])
def test_some_of_the_paths_are_read_without_the_others(count):
    paths = ["in/%d \udcff" % number for number in range(count)]
    read = quick_index.Paths(*index_writer.stored_paths(paths))
    for first in range(0, count + 1, 9):
        for last in (*range(first, count, 7), count):
            assert read[first:last] == paths[first:last]


def test_with_threads_one_process_looks_alone(tmp_path, monkeypatch):
    end = threading.Event()
    thread = threading.Thread(target=end.wait)
    thread.start()
    try:
        monkeypatch.setattr(path_signs, "SHARE_FROM", 1)
        monkeypatch.setattr(os, "fork", lambda: pytest.fail("forked"), raising=False)
        assert path_signs.changed_shared(["x", "y"], list(path_signs.ABSENT + path_signs.UNKNOWN), str(tmp_path)) == [1]
    finally:
        end.set()
        thread.join()


@pytest.mark.parametrize("call", ["fork", "pipe"])
def test_where_no_second_process_can_be_had_one_looks_alone(tmp_path, monkeypatch, call):
    def fail():
        raise BlockingIOError(11, "no more")
    monkeypatch.setattr(path_signs, "SHARE_FROM", 1)
    monkeypatch.setattr(path_signs, "_may_fork", lambda: True)
    monkeypatch.setattr(os, call, fail, raising=False)
    before = os.listdir("/proc/self/fd") if sys.platform.startswith("linux") else []
    assert path_signs.changed_shared(["x", "y"], list(path_signs.ABSENT + path_signs.UNKNOWN), str(tmp_path)) == [1]
    assert before == (os.listdir("/proc/self/fd") if sys.platform.startswith("linux") else [])


@pytest.mark.parametrize("told", [0, 1, 3])
def test_a_second_process_that_dies_costs_only_time(tmp_path, monkeypatch, told):
    """It tells of *told* parts, the last one torn."""
    paths = [str(number) for number in range(100)]
    for path in paths:
        (tmp_path / path).touch()
    signs = path_signs.sign([str(tmp_path / path) for path in paths])
    for number in (3, 88, 99):
        (tmp_path / str(number)).unlink()

    def answer(writer, *_):
        data = b"".join((b"96 99\n", b"92 \n", b"88 8")[:told])
        os.write(writer, data)
        os._exit(0)
    monkeypatch.setattr(path_signs, "SHARE_FROM", 2)
    monkeypatch.setattr(path_signs, "PART", 4)
    monkeypatch.setattr(path_signs, "_answer", answer)
    assert path_signs.changed_shared(paths, signs, str(tmp_path)) == [3, 88, 99]


def graph_of_five(project):
    """b reads what a makes, d what c makes; e is by itself. Listed so that none stands beside what it needs."""
    for name in "ace":
        project.write("in/%s.txt" % name, name + "\n")
    project.processor("work", "text = ''.join(open(one).read() for one in inputs)\n'bad' in text and sys.exit(3)\nopen(os.path.join(out, 'out.txt'), 'w').write(text)\n")
    inputs = {"b": "out/a/*", "d": "out/c/*", "a": "in/a.txt", "c": "in/c.txt", "e": "in/e.txt"}
    project.spec(*({"name": name, "processor": "bin/work.py", "inputs": [inputs[name]], "outputDir": "out/" + name, "outputs": ["out.txt"]} for name in "bdace"), order="graph")
    for run_id in ("made", "indexed"):
        done = run(project, run_id)
        assert done[0] == 0, done
        age(project)
    assert found(project) == []
    return project


def told(out):
    """Return {stage: what the run did with it}."""
    return {line.split()[1].rstrip(":"): line.split("]")[0][1:] for line in out.splitlines() if line.startswith(("[SKIP]", "[DONE]", "[FAIL]"))}


@pytest.mark.parametrize("changed, done", [("a", "ab"), ("e", "e"), ("ac", "abcd"), ("", "")])
def test_of_a_graph_only_what_changed_and_what_follows_from_it_is_run(project, changed, done):
    graph_of_five(project)
    for name in changed:
        project.write("in/%s.txt" % name, "other %s\n" % name)
    code, out, _ = run(project, "again")
    assert code == 0 and told(out) == {name: "DONE" if name in done else "SKIP" for name in "abcde"}
    entries = {one["stage"]: one["status"] for one in project.json("state/run_again.json")["stages"]}
    assert list(entries) == list("bdace") and entries == {name: "ok" if name in done else "skipped" for name in "abcde"}
    code, out, _ = run(project, "after", env={"PIPELINE_INDEX": "off"})
    assert code == 0 and told(out) == dict.fromkeys("abcde", "SKIP")


def test_of_a_graph_with_a_failure_the_others_are_skipped_all_the_same(project):
    graph_of_five(project)
    project.write("in/a.txt", "bad\n")
    code, out, _ = run(project, "again")
    assert code == 1 and told(out) == {"a": "FAIL", "c": "SKIP", "d": "SKIP", "e": "SKIP"}
    assert [(one["stage"], one["status"]) for one in project.json("state/run_again.json")["stages"]] == [
        ("b", "notRun"), ("d", "skipped"), ("a", "failed"), ("c", "skipped"), ("e", "skipped")]


def test_of_a_graph_a_stage_that_somebody_holds_is_looked_at(project):
    graph_of_five(project)
    project.path("locks/e.lock").mkdir()
    code, out, _ = run(project, "again")
    assert code == 0 and told(out) == dict.fromkeys("abcde", "SKIP") and "[START]" not in out


@pytest.mark.skipif(os.name != "posix", reason="links need a privilege there")
@pytest.mark.parametrize("link, led", [("latest", "out/%s"), ("latest/out.txt", "../out/%s/out.txt"), ("latest/out.txt", "")])
def test_a_link_that_leads_to_another_stage_makes_one_wait_for_that(project, link, led):
    """Which stages wait for which stands beside the index, and a link is not part of the pipeline file."""
    for name in "ab":
        project.write("in/%s.txt" % name, name + "\n")
    project.processor("work", "open(os.path.join(out, 'out.txt'), 'w').write(''.join(open(one).read() for one in inputs))\n")
    project.spec(*({"name": name, "processor": "bin/work.py", "inputs": [inputs], "outputDir": "out/" + name, "outputs": ["out.txt"]}
                   for name, inputs in (("r", "latest/out.txt"), ("a", "in/a.txt"), ("b", "in/b.txt"))), order="graph")
    place = project.path(link)
    if led:
        place.parent.mkdir(exist_ok=True)
        place.symlink_to(led % "a")
    else:
        project.write(link, "by hand\n")
    for run_id in ("made", "indexed"):
        assert run(project, run_id)[0] == 0
        age(project)
    assert found(project) == []
    place.unlink()
    place.symlink_to((led or "../out/%s/out.txt") % "b")
    project.write("in/b.txt", "new b\n")
    assert told(run(project, "switched")[1]) == {"a": "SKIP", "b": "DONE", "r": "DONE"} and project.read("out/r/out.txt") == "new b\n"


@pytest.mark.parametrize("few", [0, 100])
def test_stages_are_looked_at_again_by_their_places(project, monkeypatch, few):
    graph_of_five(project)
    monkeypatch.setattr(known_stages, "FEW", few)
    pipeline, root = str(project.path("pipeline.json")), str(project.root)
    known = known_stages.KnownStages(quick_run.look(pipeline, root, lambda *_: None).index, pipeline, root)
    assert known.up_to_date([0, 1, 4], False) == known.up_to_date([0, 1, 4], True) == [0, 1, 4] and known.up_to_date([], True) == []
    assert known.needs == {"b": ["a"], "d": ["c"]}
    assert known.up_to_date_from(0, True) == 5
    project.write("in/c.txt", "other\n")
    project.path("locks/d.lock").mkdir()
    assert known.up_to_date([1, 3], False) == [1, 3]
    assert known.up_to_date([0, 1, 2, 3, 4], True) == [0, 2, 4] and known.stale == {1, 3}
    assert known.up_to_date_from(0, True) == 1 and known.up_to_date_from(2, True) == 3 and known.up_to_date_from(4, False) == 5


@pytest.mark.skipif(os.name != "posix", reason="links need a privilege there")
def test_what_is_behind_links_is_looked_at_again_stage_by_stage(project):
    project.write("real/0.txt", "0")
    for number in (1, 2, 3):
        project.write("real/%d.txt" % number, "x")
        project.write("in/keep%d" % number, "")
        project.path("in/%d.txt" % number).symlink_to("../real/%d.txt" % number)
    build(project, *({"processor": "bin/work.py", "inputs": ["in/%d.txt" % number]} for number in (1, 2, 3)))
    pipeline, root = str(project.path("pipeline.json")), str(project.root)
    known = known_stages.KnownStages(quick_run.look(pipeline, root, lambda *_: None).index, pipeline, root)
    project.write("real/2.txt", "y")
    assert known.index.changed_among(root, [0, 2]) == set() and known.index.changed_among(root, [1]) == known.index.changed_among(root, [0, 1, 2]) == {1}


def test_a_large_index_is_mapped_until_something_changed(project, monkeypatch):
    build(project)
    path = str(project.path("state/index_pipeline.json"))
    monkeypatch.setattr(quick_index, "MAP_FROM", 1)
    mapped = quick_index.load(path, mapped=True)
    assert isinstance(mapped.source, bytes) == (not sys.platform.startswith("linux"))
    lines, signs = mapped.lines_of(0, 2), mapped.signs.tolist()
    mapped.keep()
    kept = mapped.source
    assert isinstance(kept, bytes) and kept == project.path("state/index_pipeline.json").read_bytes()
    assert mapped.lines_of(0, 2) == lines and mapped.signs.tolist() == signs and mapped.lines.obj is kept
    mapped.keep()
    assert mapped.source is kept and found(project) == []
    for size in (0, 1, 20):
        project.path("state/index_pipeline.json").write_bytes(kept[:size])
        assert quick_index.load(path, mapped=True) is None


@pytest.mark.parametrize("top", [{}, {"order": "graph"}], ids=["listed", "graph"])
@pytest.mark.parametrize("made", ["processor", "module", pytest.param("link", marks=linux_only)])
def test_a_stage_whose_program_an_earlier_stage_has_made_anew_is_not_skipped(project, made, top):
    project.write("data/word.txt", "one")
    project.write("data/in.txt", "x")
    use = "import os\nopen(os.path.join(os.environ['PIPELINE_OUTPUT_DIR'], 'o'), 'w').write(%s)\n"
    processor = "tools/tool.py"
    if made != "module":
        name, text = "tool.py", use % "'%s'"
    else:
        name, text = "table.py", "WORD = '%s'\n"
        project.write("tools/tool.py", "import table\n" + use % "table.WORD")
    project.write("tools/" + name, text % "none")
    if made == "link":
        processor = "bin/tool.py"
        project.path(processor).symlink_to("../tools/tool.py")
    project.processor("make", "open(os.path.join(out, %r), 'w').write(%r %% open(inputs[0]).read())\n" % (name, text))
    project.spec({"processor": "bin/make.py", "inputs": ["data/word.txt"], "outputDir": "tools"},
                 {"processor": processor, "inputs": ["data/in.txt"], "needs": ["s1"]}, **top)
    for run_id in ("made", "made2", "indexed"):
        assert run(project, run_id)[0] == 0
        age(project)
    assert run(project, "indexed2")[1].count("[SKIP]") == 2 and found(project) == []
    project.write("data/word.txt", "two")
    code, out, err = run(project, "r")
    assert (code, err) == (0, "") and out.count("[DONE]") == 2 and project.read("data/s2/o") == "two", out


def test_an_index_that_somebody_has_written_to_is_no_part_of_a_record(project, monkeypatch):
    build(project)
    path = str(project.path("state/index_pipeline.json"))
    monkeypatch.setattr(quick_index, "MAP_FROM", 1)
    known = known_stages.KnownStages(quick_index.load(path, mapped=True), str(project.path("pipeline.json")), str(project.root))
    is_mapped = not isinstance(known.index.source, bytes)
    with open(path, "r+b") as file:
        file.seek(-3, os.SEEK_END)
        file.write(b"xxx")
    known.index.keep()
    assert known.index.is_damaged == is_mapped
    if is_mapped:
        with pytest.raises(state_store.StateError, match="state/index_pipeline.json was changed by somebody"):
            known.entries([known_stages.KNOWN] * 2, dict, True)


def test_the_record_of_a_run_at_work_tells_of_the_stages_that_the_index_knew(project):
    project.write("data/a.txt", "a")
    project.write("data/b.txt", "b")
    project.processor("same", "open(os.path.join(out, 'o'), 'w')\n")
    project.processor("look", "path = 'state/run_looked.json'\nended = time.monotonic() + 30\n"
                      "while os.path.exists(path) and '\"skipped\"' not in open(path).read():\n    assert time.monotonic() < ended, 'not told'\n    time.sleep(0.01)\n"
                      "open(os.path.join(out, 'o'), 'w')\n")
    project.spec({"processor": "bin/same.py", "inputs": ["data/a.txt"]}, {"processor": "bin/look.py", "inputs": ["data/b.txt"]}, order="graph")
    assert run(project, "made")[0] == 0
    age(project)
    assert run(project, "indexed")[1].count("[SKIP]") == 2
    project.write("data/b.txt", "another b")
    code, out, err = run(project, "looked")
    assert (code, err) == (0, "") and "[SKIP] s1" in out and "[DONE] s2" in out
    assert [one["status"] for one in project.json("state/run_looked.json")["stages"]] == ["skipped", "ok"]


def test_the_checked_spec_comes_back_whole(project):
    """Value for value and type for type: what is the same for all stages is stored once, True is no 1."""
    build(project)
    each = {"processor": "bin/work.py", "inputs": ["data/*.txt"], "timeoutSec": 5}
    project.spec(dict(each, params={"n": 1}), dict(each, params={"n": True}),
                 dict(each, params={"n": 1.0}, chunks={"bytes": 4096}, retry={"attempts": 3, "exitCodes": [75]}))
    spec = pipeline_runner.load_pipeline(str(project.path("pipeline.json")))
    for whole in (spec, spec._replace(stages=spec.stages[:1])):
        again = known_stages.spec_from_plain(marshal.loads(marshal.dumps(known_stages.spec_to_plain(whole))))
        assert again == whole and repr(again) == repr(whole) and {type(stage) for stage in again.stages} == {model.StageSpec}


def test_a_checked_spec_that_is_not_the_one_of_the_index_is_not_taken(project):
    build(project)
    pipeline, root = str(project.path("pipeline.json")), str(project.root)
    index = quick_index.load(str(project.path("state/index_pipeline.json")))
    spec = known_stages.KnownStages(index, pipeline, root).spec
    assert spec is not None
    with open(known_stages.spec_path(root, pipeline), "rb") as file:
        plain, needs, links = marshal.loads(file.read())
    assert known_stages.spec_from_plain(plain) == spec
    with open(known_stages.spec_path(root, pipeline), "wb") as file:
        file.write(marshal.dumps((known_stages.spec_to_plain(spec._replace(name="another")), needs, links)))
    assert known_stages.KnownStages(index, pipeline, root).spec is None


def test_neither_the_index_nor_its_spec_is_written_while_another_run_writes_them(project):
    project.processor("work", "")
    project.spec({"processor": "bin/work.py"})
    run(project, "made")
    age(project)
    lock = stage_locks.FileLock(str(project.root), "index.files", model.Clock())
    assert lock.try_acquire()
    assert "[SKIP] s1" in run(project, "skipped")[1]
    lock.release()
    assert not project.exists("state/index_pipeline.json") and not project.exists("state/index_pipeline.json.spec")


def test_what_a_glob_depends_on(tmp_path):
    for name in ("a/x", "a/y"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "a/x/f.txt").write_text("")
    (tmp_path / "a/link").symlink_to("nowhere")
    seen = set()
    assert file_digests.expand(str(tmp_path), "a/*/f.txt", seen) == ["a/x/f.txt"]
    assert seen == {"a", "a/y/f.txt", "a/link"}
    seen = set()
    assert file_digests.expand(str(tmp_path), "a/**", seen) == ["a/link", "a/x/f.txt"] or seen >= {"a", "a/x", "a/y"}
    assert seen >= {"a", "a/x", "a/y", "a/link"}
    seen = set()
    assert file_digests.expand(str(tmp_path), "none.txt", seen) == [] and seen == {"none.txt"}
    assert file_digests.expand(str(tmp_path), "none/*.txt", seen) == [] and "none" in seen


# --- JSON without the package

@pytest.mark.parametrize("value", [{}, [], None, 1.5, "x", {"a": [1, {"b": None, "ü\n\"": [True, [], {}]}]}, {"1": {"2": [[]]}}, (1, (2,)), {1: {True: "a", None: []}}])
def test_json_is_that_of_the_package(value, monkeypatch):
    text = json.dumps(value, indent=1, ensure_ascii=False)
    assert primitives.pretty(value) == text and primitives.pretty(value, 2) == text.replace("\n", "\n  ")
    monkeypatch.setattr(primitives, "_INDENTED", None)      # as with a Python whose own encoder does not indent
    assert primitives.pretty(value) == text and primitives.pretty(value, 2) == text.replace("\n", "\n  ")
    if value != {1: {True: "a", None: []}}:     # keys of several kinds have no order
        assert primitives.compact(value, True) == json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert primitives.loads(json.dumps(value)) == json.loads(json.dumps(value))


@pytest.mark.parametrize("text", ["", "{", "[1,]", "1 2", "nul", "\ufeff1", '"\n"', "{} x"])
def test_bad_json_is_refused(text):
    with pytest.raises(ValueError):
        primitives.loads(text)


def test_ready_arrays_have_the_text_of_their_entries():
    entries = [{"a": 1}, {"b": [2]}]
    ready = primitives.ready_array([(primitives.pretty(one, 2) + ",\n  ").encode() for one in entries], [(primitives.compact(one, True) + ",").encode() for one in entries])
    assert list(ready) == entries and list(primitives.ready_array([])) == []
    for stages in (ready, entries):
        record, plain = {"x": "\0", "stages": stages, "b": 2}, {"x": "\0", "stages": entries, "b": 2}
        assert primitives.pretty_bytes(record) == json.dumps(plain, indent=1).encode() + b"\n"
        assert primitives.canonical_bytes(record) == json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()


EXCHANGES = {       # a stage, what is in the folder v when it is looked at, what is in the one that is there at the end of that run
    "input": ({"processor": "work.sh", "inputs": ["v/in/a.txt"]}, {"in/a.txt": "one"}, {"in/a.txt": "two"}),
    "glob": ({"processor": "work.sh", "inputs": ["v/in/*.txt"]}, {"in/a.txt": "one"}, {"in/a.txt": "two"}),
    "watched": ({"processor": "work.sh", "watch": ["v/a.txt"]}, {"a.txt": "one"}, {"a.txt": "two"}),
    "processor": ({"processor": "v/work.sh"}, {"work.sh": "#!/bin/sh\n:\n"}, {"work.sh": "#!/bin/sh\ntrue\n"}),
    "module": ({"processor": "tools/tool.py"}, {"pack/__init__.py": "N = 1\n"}, {"pack/__init__.py": "N = 2\n"}),
    "scanned": ({"processor": "work.sh"}, {"bin/idle.py": ""}, {"bin/idle.py": "import %s\n" % "socket"}),
    "pipeline": ({"processor": "work.sh"}, {}, {}),
}


@pytest.mark.skipif(os.name == "nt", reason="needs links, and scripts that name their interpreter")
@pytest.mark.parametrize("is_link", [True, False])
@pytest.mark.parametrize("kind", EXCHANGES)
def test_an_old_folder_put_in_the_place_of_another_while_a_run_goes_on_is_not_signed_as_what_was_read(project, kind, is_link):
    stage, before, after = EXCHANGES[kind]
    for folder, files in (("v1", before), ("v2", after)):
        for name, text in files.items():
            project.write("%s/%s" % (folder, name), text, executable=True)
        project.write(folder + "/bin/same.py", "")
    project.write("work.sh", "#!/bin/sh\n", executable=True)
    project.write("tools/tool.py", "#!%s\nimport pack\n" % sys.executable, executable=True)
    project.path("tools/pack").symlink_to("../v/pack")
    shutil.rmtree(project.path("bin"))
    project.path("bin").symlink_to("v/bin")
    project.spec(dict(stage, args=["other"]), EXCHANGING)
    project.path("pipeline.json").rename(project.path("v2/pipeline.json"))
    project.path("pipeline.json").symlink_to("v/pipeline.json")
    if is_link:
        project.path("v").symlink_to("v1")
    else:
        project.path("v1").rename(project.path("v"))
    project.spec(stage, EXCHANGING)
    if kind != "pipeline":
        shutil.copy2(project.path("v/pipeline.json"), project.path("v2/pipeline.json"))
    exchange(project, "os.remove('v'); os.symlink('v2', 'v')" if is_link else "os.rename('v', 'v1'); os.rename('v2', 'v')")
    code, out, _ = run(project, "next")
    assert code == 6 if kind == "scanned" else "[START] s1" in out


EXCHANGING = {"processor": "tools/do.py", "watch": ["now.txt"]}


def exchange(project, code, prepare=lambda: None):
    """Have *code* run in the stage EXCHANGING, behind one that has been skipped by then in a run that may write the index."""
    project.write("now.txt", "")
    project.write("tools/do.py", "#!%s\nimport os\nif open('now.txt').read():\n    %s\n" % (sys.executable, code), executable=True)
    assert run(project, "made")[0] == 0
    prepare()
    age(project)
    project.write("now.txt", "now")
    code, out, err = run(project, "exchanged")
    assert (code, err) == (0, "") and "[SKIP] s1" in out and "[DONE] s2" in out
    age(project)


@pytest.mark.skipif(os.name == "nt", reason="needs links, and scripts that name their interpreter")
@pytest.mark.parametrize("other", ["a", "b", ".s1.done"])
def test_an_output_folder_exchanged_while_a_run_goes_on_is_not_signed_as_what_was_verified(project, other):
    """*other* is another one, as old as the rest, in the folder that is put in its place: a file, a link, the marker."""
    project.processor("work", "[os.remove(os.path.join(out, one)) for one in os.listdir(out) if one in 'ab']\n"
                      "open(os.path.join(out, 'a'), 'w').close()\nos.symlink('a', os.path.join(out, 'b'))\n")
    project.spec({"processor": "bin/work.py"}, EXCHANGING)

    def prepare():
        shutil.copytree(project.path("data/s1"), project.path("v2"), symlinks=True, copy_function=os.link)
        project.path("v2/" + other).unlink()
        if other == "b":
            project.path("v2/b").symlink_to("./a")
        else:
            project.write("v2/" + other, "{}")
    exchange(project, "os.rename('data/s1', 'v1'); os.rename('v2', 'data/s1')", prepare)
    assert "[START] s1" in run(project, "next")[1]
