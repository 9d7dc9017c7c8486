"""Stages of several tasks, and stages side by side, broken at every durable step with several processors under way."""
from __future__ import annotations

import json
import os

import pytest

from conftest import KILLED, ROOT
from test_crash import Case, at_of, break_at, chain_problems, leftovers, no_warm_one_stays, results, script, sweep  # noqa: F401

pytestmark = pytest.mark.skipif(os.name == "nt", reason="breaks the runner by signals and compares inodes")

# Says in a file beside the project that it ran, last of all.
UPPER = """#!/bin/sh
tr a-z A-Z < "$1" > "$PIPELINE_OUTPUT_DIR/${1##*/}" || exit 1
echo "${1##*/}" >> "$PIPELINE_ROOT/../count.${PIPELINE_ROOT##*/}"
"""
JOIN = """#!/bin/sh
cat "$@" > "$PIPELINE_OUTPUT_DIR/$PIPELINE_STAGE_NAME.txt"
"""
# What is not looked at again, or is swept in test_crash: the clock's probe, temporary files, lists of inputs, logs, the records of the run.
IGNORED = ["* state/.clock.tmp", "write *.tmp", "fsync *.tmp", "* state/.inputs_*", "* state/inputs_*", "* state/logs*", "* state/run_*", "* state/metrics_*",
           "* state/.run.json.tmp", "* state/.metrics*", "* state/.digests*", "* state/digests*", "* state/ledger*", "* locks*"]


SLACK = 4       # whether the second slot gets work, and so a folder, depends on which processor ends first


def files(project):
    """One task for each of three files, then a stage that joins what they made."""
    for name in ("a", "b", "c"):
        project.write("data/input/%s.txt" % name, "line of %s\n" % name)
    project.spec({"name": "one", "processor": script(project, "upper.sh", UPPER), "forEach": "data/input/*.txt", "outputDir": "data/one"},
                 {"name": "two", "processor": script(project, "join.sh", JOIN), "inputs": ["data/one/*.txt"], "outputDir": "data/two"})
    return ["--jobs", "2"]


def changed_files(project):
    """The same over an earlier success: one file changed, one is gone, one is new."""
    arguments = files(project)
    spec = project.json("pipeline.json")
    spec["stages"][0]["prune"] = True
    project.write("pipeline.json", json.dumps(spec))
    project.ok("--run-id", "before")
    project.write("data/input/a.txt", "another line\n")
    project.path("data/input/b.txt").unlink()
    project.write("data/input/d.txt", "line of d\n")
    return arguments


NAMED = """#!/bin/sh
read -r name < "$1"
tail -n +2 "$1" > "$PIPELINE_OUTPUT_DIR/$name" || exit 1
echo "${1##*/}" >> "$PIPELINE_ROOT/../count.${PIPELINE_ROOT##*/}"
"""


def exchanged(project):
    """Tasks whose outputs are called as their files say; over an earlier success the names of two are exchanged, and a third gets a new one."""
    arguments = files(project)
    spec = project.json("pipeline.json")
    spec["stages"][0]["processor"] = script(project, "named.sh", NAMED)
    project.write("pipeline.json", json.dumps(spec))
    for name in ("a", "b", "c"):
        project.write("data/input/%s.txt" % name, "%s.txt\nline of %s\n" % (name, name))
    project.ok("--run-id", "before")
    for name, new in ("ab", "ba", "cd"):
        project.write("data/input/%s.txt" % name, "%s.txt\nanother line of %s\n" % (new, name))
    return arguments


def chunks(project):
    """Four chunks of two files through a filter that knows nothing of us."""
    project.write("data/input/a.txt", "one\ntwo\nthree\n")
    project.write("data/input/b.txt", "four\nfive")
    project.spec({"name": "one", "processor": "/usr/bin/tr", "args": ["a-z", "A-Z"], "inputs": ["data/input/*.txt"], "outputs": ["all.txt"],
                  "outputDir": "data/one", "chunks": {"bytes": 6, "filter": True}})
    return ["--jobs", "2"]


def graph(project):
    """Two stages side by side in one folder, and one that needs both and is listed first."""
    project.write("data/input/a.txt", "a\n")
    project.write("data/input/b.txt", "b\n")
    join = script(project, "join.sh", JOIN)
    project.spec({"name": "last", "processor": join, "inputs": ["data/one/*.txt"], "outputDir": "data/two", "needs": ["left", "right"]},
                 {"name": "left", "processor": join, "inputs": ["data/input/a.txt"], "outputDir": "data/one", "outputs": ["left.txt"]},
                 {"name": "right", "processor": join, "inputs": ["data/input/b.txt"], "outputDir": "data/one", "outputs": ["right.txt"]}, order="graph")
    return ["--jobs", "2"]


# The same in Python, on the kit. The first waits until the stage's fork server is there, so that others are forked from it; they say so.
UPPER_PY = """
import os
import time
from processor_kit import lines, output_name

def is_served(pid):
    try:
        with open("/proc/%s/cmdline" % pid, "rb") as command, open("/proc/%s/environ" % pid, "rb") as variables, open("/proc/%s/status" % pid) as status:
            ignored = [line.split()[1] for line in status if line.startswith("SigIgn:")]
            return b"fork_server.py" in command.read() and root.encode() in variables.read() and int(ignored[0], 16) & 1   # SIGHUP, as soon as it serves
    except (OSError, IndexError):
        return False

def note(kind, text):
    with open("%s/../%s.%s" % (root, kind, os.path.basename(root)), "a") as file:
        file.write(text + "\\n")

root, name, end = os.environ["PIPELINE_ROOT"], output_name(), time.monotonic() + 10
while name == "a.txt" and time.monotonic() < end and not any(map(is_served, os.listdir("/proc"))):
    time.sleep(0.01)
if is_served(os.getppid()):
    note("forked", name)
try:
    lines(str.upper, name)
finally:
    note("count", name)
"""


def forked(project):
    """Tasks that are forked from a Python with the kit's code loaded."""
    arguments = files(project)
    for name in ("d", "e"):
        project.write("data/input/%s.txt" % name, "line of %s\n" % name)
    project.write("bin/processor_kit.py", (ROOT / "bin" / "processor_kit.py").read_text(encoding="utf-8"))
    spec = project.json("pipeline.json")
    spec["stages"][0]["processor"] = project.write("bin/upper.py", UPPER_PY) and "bin/upper.py"
    project.write("pipeline.json", json.dumps(spec))
    return arguments


def launched(project):
    """Tasks that a launcher starts, which here has but one machine."""
    arguments = files(project)
    spec = project.json("pipeline.json")
    spec["stages"][0]["launcher"] = [script(project, "launch.sh", '#!/bin/sh\nexec "$@"\n')]
    project.write("pipeline.json", json.dumps(spec))
    return arguments


def plain(found):
    """Return results without what depends on how many tasks were left to this run."""
    for name, record in found.items():
        if name.startswith("stage_"):
            record.pop("attempts")
            for field in ("ok", "skipped", "vanished"):
                record.get("tasks", {}).pop(field, None)
    return {name: value for name, value in found.items() if ".tasks/" not in name}


def finished_tasks(project):
    path = project.path("state/tasks_one.jsonl")
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    entries = [json.loads(line) for line in lines[1:]]
    return {entry["task"]: entry["key"] for entry in entries if entry["status"] == "ok"}


def times_run(project):
    path = project.root.parent / ("count." + project.root.name)
    names = path.read_text().split() if path.exists() else []
    return {name: names.count(name) for name in names}


def check_tasks(case, boot=None):
    expected = plain(results(case.expected))

    def run(project, run_id):
        if boot is None:
            return project.ok("--run-id", run_id)
        _, done = break_at(project, "none", 0, [], run_id, boot=boot)
        assert done.code == 0, done
        return done

    def check(project, where, done):
        # What could not be synced is done again: what is read may not be what is on the disk.
        before = {} if project.exists("data/one/.one.lost") else finished_tasks(project)
        counts = times_run(project)
        again = run(project, "again" if at_of(project) % 2 else "broken")
        if boot is None:
            for task in before:
                if finished_tasks(project).get(task) == before[task]:
                    name = task.rpartition("/")[2]
                    assert times_run(project).get(name) == counts.get(name), (task, done, again)
        third = None
        if at_of(project) % 3 == 0:     # that all is up to date then depends on the state, which is compared each time
            third = run(project, "third")
            assert third.out.count("[SKIP]") == len(third.steps) - 1 > 0, (done, again, third)
        found = plain(results(project))
        for name in found:
            if name.startswith("stage_"):
                found[name]["bootId"] = expected[name]["bootId"]
        assert found == expected, (done, again)
        assert leftovers(project) == [] and chain_problems(project) == [], (done, again, third)
        # Refused its removal, the empty folder of tasks stays until the stage runs again.
        stays = project.exists("data/one/.one.tasks")
        assert not stays or done.code != KILLED and where == "rmdir data/one/.one.tasks" and not os.listdir(project.path("data/one/.one.tasks")), (done, again, third)

    return check


@pytest.mark.parametrize("make", [files, changed_files, exchanged, chunks, graph, forked, launched], ids=lambda make: make.__name__)
def test_killed_with_several_tasks_under_way_the_next_run_ends_as_an_undisturbed_one(make, tmp_path):
    case = Case(make, tmp_path)
    assert make is not forked or (tmp_path / "forked.undisturbed").exists()
    recovered = check_tasks(case)

    def check(project, where, done):
        assert done.code == KILLED, done
        recovered(project, where, done)

    sweep(case, lambda at: "kill", check, slack=SLACK, ignore=IGNORED)


@pytest.mark.parametrize("make, only", [(changed_files, ["* state/tasks_*", "* data/one*", "* state/stage_*", "* state/.stage_*", "* state/files_*"]),
                                        (exchanged, ["* state/tasks_*", "* data/one/*.txt"])], ids=["changed", "exchanged"])
def test_a_full_disk_or_a_failing_one_is_said_and_the_next_run_is_right(make, only, tmp_path):
    case = Case(make, tmp_path)
    recovered = check_tasks(case)
    actions = ("ENOSPC", "EIO")

    def check(project, where, done):
        assert "Traceback" not in done.err and "internal error" not in done.err and "own files" not in done.out + done.err, done
        if done.code == 0:
            assert where.startswith(("unlink ", "rmdir ", "mkdir ")) or ".tasks" in where or where.endswith(("files_one.bin", ".json.before")), (where, done)      # of a cache; what is kept of a record
        else:
            assert done.code in (1, 5), done
        recovered(project, where, done)

    sweep(case, lambda at: actions[at % 2], check, slack=SLACK, only=only, ignore=IGNORED)


@pytest.mark.parametrize("make, action", [(files, "late"), (changed_files, "early"), (exchanged, "late"), (exchanged, "early")],
                         ids=["files", "changed", "exchanged-late", "exchanged-early"])
def test_after_a_power_cut_no_task_is_believed_that_was_not_on_the_disk(make, action, tmp_path):
    case = Case(make, tmp_path)
    sweep(case, lambda at: action, check_tasks(case, "another-boot"), slack=SLACK, ignore=IGNORED)


SORT_PY = """from processor_kit import Reject, lines

def sort(line):
    if line.startswith("bad"):
        raise Reject("bad")
    return line.upper()

lines(sort, "all.txt")
"""


def corrected_chunks(project):
    """Chunks over an earlier success that set a record aside, which has been corrected since."""
    project.write("bin/sort.py", SORT_PY)
    project.write("data/input/a.txt", "one\nbad\n")
    project.spec({"name": "one", "processor": "bin/sort.py", "inputs": ["data/input/*.txt"], "outputDir": "data/one", "chunks": {"bytes": 100}})
    project.ok("--run-id", "before")
    project.write("data/input/a.txt", "one\nfixed\n")
    return ["--jobs", "2"]


@pytest.mark.parametrize("action", ["kill", "early", "late", "EIO"])
def test_broken_while_old_rejects_go_the_next_run_is_right(tmp_path, action):
    case = Case(corrected_chunks, tmp_path)
    recovered = check_tasks(case, "another-boot" if action in ("early", "late") else None)
    seen = []

    def check(project, where, done):
        seen.append(where)
        recovered(project, where, done)
        assert sorted(path.name for path in project.path("data/one").iterdir()) == [".one.done", "all.txt"], where

    sweep(case, lambda at: action, check, slack=SLACK, only=["* data/one", "* data/one/all.txt*", "* state/stage_one.json", "* state/.stage_one.json*", "* data/one/.one.done"], ignore=IGNORED)
    assert "unlink data/one/all.txt.rejects.jsonl" in seen


def test_what_a_run_published_and_did_not_live_to_write_down_is_named(tmp_path):
    """Its file is called otherwise in the next run, so no task makes it again."""
    project = Case(files, tmp_path).fresh("one")
    where, _ = break_at(project, "kill", 1, ["--jobs", "1"], only=["write state/tasks_one.jsonl"])
    assert where == "write state/tasks_one.jsonl" and project.exists("data/one/a.txt")
    project.path("data/input/a.txt").rename(project.path("data/input/z.txt"))
    project.write("data/one/mine.txt", "from before")
    os.utime(str(project.path("data/one/mine.txt")), (1, 1))
    done = project.ok()
    note, = [line for line in done.out.splitlines() if "of no task" in line]
    assert note == "[NOTE] one: of no task, and newer than the begin of the run that died: data/one/a.txt, data/one/mine.txt; look whether they may go", done
    assert project.exists("data/one/a.txt") and "of no task" not in project.ok().out


def test_the_record_of_a_running_stage_is_on_the_disk_before_its_tasks_begin(tmp_path):
    """Beside the record of the last success, lines of this run would make its log another's. On some file systems an fsync brings no other names to the disk."""
    case = Case(changed_files, tmp_path)
    for at in range(1, 20):
        project = case.fresh("n%d" % at)
        where, _ = break_at(project, "kill", at, ["--jobs", "1"], only=["fsync state"])
        assert where
        if project.json("state/stage_one.json")["lastStatus"] == "running":
            break
    assert times_run(project) == {}, at


def test_a_kill_while_chunks_are_tidied_leaves_what_the_next_run_finds(tmp_path):
    """The folder goes last: where it is, the next run looks for the log, too."""
    project = Case(chunks, tmp_path).fresh("tidied")
    where, _ = break_at(project, "kill", 1, ["--jobs", "2"], only=["unlink state/tasks_one.jsonl"])
    assert where and project.exists("data/one/.one.tasks")
    project.ok("--run-id", "again")
    assert not project.exists("data/one/.one.tasks") and not project.exists("state/tasks_one.jsonl")


def moved_chunks(project):
    """Kept chunks of a stage whose output folder is another now."""
    project.spec({"name": "one", "processor": "/usr/bin/tr", "args": ["a-z", "A-Z"], "inputs": ["data/input/*.txt"], "outputDir": "data/before",
                  "chunks": {"bytes": 6, "filter": True, "keepChunks": True}})
    project.write("data/input/a.txt", "one\ntwo\nthree\n")
    project.ok("--run-id", "before")
    spec = project.json("pipeline.json")
    spec["stages"][0]["outputDir"] = "data/one"
    project.write("pipeline.json", json.dumps(spec))
    return ["--jobs", "2"]


def test_a_kill_while_the_chunks_in_the_old_output_folder_go_leaves_none_for_good(tmp_path):
    case, seen = Case(moved_chunks, tmp_path), []
    assert not case.expected.exists("data/before/.one.tasks") and case.expected.exists("data/before/a.txt")
    for at in range(1, 100):
        project = case.fresh("n%d" % at)
        where, done = break_at(project, "kill", at, case.arguments, only=["* data/before*", "* state/stage_one.json", "* state/.stage_one.json*"])
        if not where:
            break
        seen.append(where)
        project.ok("--run-id", "again")
        assert plain(results(project)).keys() == plain(results(case.expected)).keys() and not project.exists("data/before/.one.tasks"), where
    assert "rmdir data/before/.one.tasks" in seen and len(seen) > 4, seen
