"""Broken at every durable step: killed, refused by the file system, cut off from power. Then run again, and compare.

drivers/fault.py runs the real program and breaks it at step N, for N = 1, 2, 3 ... until a run comes through; nothing in
the program knows of it. Whatever N, the next run must end in what an undisturbed run ends in.
"""
from __future__ import annotations

import compileall
import errno
import itertools
import json
import os
import random
import re
import select
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import durable_files
import ledger_format
import pytest

from conftest import KILLED, ROOT, RUNNER, Done, Project, settle, text_of

posix_only = pytest.mark.skipif(os.name == "nt", reason="syncs folders, which Windows does not")

WARM = ROOT / "tests" / "drivers" / "warm.py"
FAULT = ROOT / "tests" / "drivers" / "fault.py"
WORKERS = 2
# Without fork each run takes ten times as long; each stage of a run has some twenty steps.
STRIDE = 1 if os.name == "posix" else int(os.environ.get("TEST_STRIDE", "9"))
OUTPUTS = ["data/one", "data/two"]
# Of a stage record: what tells of the run and of the one before it.
RUN_FIELDS = ("lastDurationSec", "startedAt", "endedAt", "lastRunId", "lastInvocation", "previous", "markerRestored", "logs", "networkRefusals")
# Processors that know nothing of all this. Shell scripts, because they start ten times as fast.
APPENDER = """#!/bin/sh
for path in "$@"; do
    while read -r line; do echo "seen $line" >> "$PIPELINE_OUTPUT_DIR/list.txt"; done < "$path"
done
"""
FLAKY = """#!/bin/sh
cd "$PIPELINE_OUTPUT_DIR" || exit 1
echo first > list.txt
echo half > list.txt.tmp~
[ "$PIPELINE_ATTEMPT" = 1 ] && exit 75
echo second >> list.txt
rm list.txt.tmp~
"""


# Adds to its output and notes after the second line how far it is, without the kit.
NOTES = """#!/bin/sh
[ -e "$PIPELINE_PROGRESS_FILE" ] && cp "$PIPELINE_PROGRESS_FILE" found.json
number=0
while read -r line; do
    number=$((number + 1))
    [ $number -le "${PIPELINE_LINE_OFFSET:-0}" ] && continue
    echo "seen $line" >> "$PIPELINE_OUTPUT_DIR/list.txt"
    [ $number = 2 ] && echo '{"lineOffset": 2, "outputs": {"list.txt": 14}}' > "$PIPELINE_PROGRESS_FILE"
    [ $number = 3 ] && [ -e data/input/.dies ] && exit 9
done < "$1"
exit 0
"""
# The same for Windows, where no script starts fast.
HEAD = "import os, shutil, sys\nname = os.path.join(os.environ['PIPELINE_OUTPUT_DIR'], 'list.txt')\n"
FOR_WINDOWS = {
    APPENDER: """
for path in sys.argv[1:]:
    with open(path) as lines:
        for line in lines:
            with open(name, "a", newline="\\n") as out:
                out.write("seen " + line)
""", FLAKY: """
with open(name, "w", newline="\\n") as out, open(name + ".tmp~", "w") as half:
    out.write("first\\n")
if os.environ["PIPELINE_ATTEMPT"] == "1":
    sys.exit(75)
with open(name, "a", newline="\\n") as out:
    out.write("second\\n")
os.unlink(name + ".tmp~")
""", NOTES: """
progress = os.environ["PIPELINE_PROGRESS_FILE"]
if os.path.exists(progress):
    shutil.copy(progress, "found.json")
with open(sys.argv[1]) as lines:
    for number, line in enumerate(lines, 1):
        if number <= int(os.environ.get("PIPELINE_LINE_OFFSET") or 0):
            continue
        with open(name, "a", newline="\\n") as out:
            out.write("seen " + line)
        if number == 2:
            with open(progress, "w") as note:
                note.write('{"lineOffset": 2, "outputs": {"list.txt": 14}}')
        if number == 3 and os.path.exists("data/input/.dies"):
            sys.exit(9)
"""}


# --- the projects that are broken ------------------------------------------------------------------------------------

def script(project, name, text):
    if os.name == "nt":
        name, text = name[:-len("sh")] + "py", HEAD + FOR_WINDOWS[text]
    project.write("bin/" + name, text, executable=True)
    return "bin/" + name


def kit(project):
    """The demo's two stages: a copy, then a line processor with checkpoints."""
    project.write("data/input/a.txt", "grün\nblau\nrot\n")
    project.spec(
        {"name": "one", "processor": "bin/stage_copy.py", "inputs": ["data/input/*.txt"], "outputDir": "data/one"},
        {"name": "two", "processor": "bin/stage_upper.py", "inputs": ["data/one/*.txt"], "outputDir": "data/two", "outputs": ["result.txt"],
         "checkpoint": {"enabled": True, "lineInterval": 1}})
    return []


def appending(project):
    """A processor that knows nothing of all this and appends to its output by path, over nothing."""
    project.write("data/input/a.txt", "x\ny\nz\n")
    project.spec({"name": "one", "processor": script(project, "append.sh", APPENDER), "inputs": ["data/input/*.txt"], "outputDir": "data/one"})
    return []


def noting(project):
    """A checkpoint written by hand, after which the processor ends well."""
    project.write("data/input/a.txt", "x\ny\nz\nu\n")
    project.spec({"name": "one", "processor": script(project, "notes.sh", NOTES), "inputs": ["data/input/*.txt"], "outputDir": "data/one",
                  "checkpoint": {"enabled": True}})
    return []


def changed(project):
    """As appending() over an earlier success, after its input changed: what was there must be there once."""
    arguments = appending(project)
    project.ok("--run-id", "before")
    project.write("data/input/a.txt", "x\ny\nz\nanother\n")
    return arguments


def forced(project):
    """A forced rerun whose first attempt fails after it wrote, over an earlier success."""
    project.write("data/input/a.txt", "x\ny\n")
    project.spec({"name": "one", "processor": script(project, "flaky.sh", FLAKY), "inputs": ["data/input/*.txt"], "outputDir": "data/one",
                  "outputs": ["list.txt"], "retry": {"attempts": 2, "baseDelayMs": 0}})
    project.ok("--run-id", "before")
    return ["--force", "one"]


def unchanged(project):
    """A run in which every stage is skipped."""
    kit(project)
    project.ok("--run-id", "before")
    return []


class Warm:
    """A Python with the runner loaded that is forked for each run: drivers/warm.py. One for each thread of a sweep."""

    idle = []

    def __init__(self):
        self.process = subprocess.Popen([sys.executable, str(WARM), str(RUNNER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    @classmethod
    def run(cls, program, arguments, printed):
        """Run "runner" or "fault" with *arguments*; what it prints goes to *printed*.out and .err."""
        if os.name == "nt":             # which has no fork
            argv = [sys.executable, str(RUNNER if program == "runner" else FAULT), *arguments]
            done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=120)
            return Done(argv, done.returncode, text_of(done.stdout), text_of(done.stderr))
        request = {"argv": [program, *arguments], "out": printed + ".out", "err": printed + ".err"}
        warm = cls.idle.pop() if cls.idle else cls()
        try:
            code = warm.answer(request)
        except BaseException:
            warm.process.kill()
            raise
        cls.idle.append(warm)
        texts = [Path(request[name]).read_bytes().decode("utf-8", "replace") for name in ("out", "err")]
        return Done([program, *arguments], code, *texts)

    def answer(self, request):
        self.process.stdin.write(json.dumps(request).encode("utf-8") + b"\n")
        self.process.stdin.flush()
        assert select.select([self.process.stdout], [], [], 120)[0], "still running after 120 s: %r" % request
        line = self.process.stdout.readline()
        assert line, "the warm Python ended itself with %s" % self.process.wait()
        return int(line)

    def close(self):
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


@pytest.fixture(autouse=True, scope="module")
def no_warm_one_stays():
    yield
    while Warm.idle:
        Warm.idle.pop().close()


class WarmProject(Project):
    """A project whose runs are forks of a warm Python."""

    def run(self, *arguments):
        done = Warm.run("runner", [*arguments, "--pipeline", str(self.root / "pipeline.json")], str(self.root))
        assert "Traceback" not in done.err, done
        return done


class Case:
    """A project ready to be broken, in a folder to be copied, and what an undisturbed run makes of it."""

    def __init__(self, make, folder):
        self.folder = folder
        self.template = Project(folder / "template")
        self.arguments = make(self.template)
        self.template.remember_scans()
        compileall.compile_dir(str(self.template.path("bin")), quiet=2)         # copies keep the times by which it is believed
        self.expected = self.fresh("undisturbed", Project)
        self.expected.ok("--run-id", "whole", *self.arguments)

    def fresh(self, name, kind=WarmProject):
        """Return a copy; times of files are kept, for the processor's is part of the key."""
        copy = kind.__new__(kind)
        copy.root = self.folder / name
        shutil.copytree(self.template.root, copy.root)
        return copy


def break_at(project, action, at, arguments, run_id="broken", boot=None, **settings):
    """Run the program broken at step *at*; return (what was broken: "call path", or ""; the finished command)."""
    hit = project.root.parent / (project.root.name + ".hit")
    settings = dict({"runner": str(RUNNER), "root": str(project.root), "action": action, "at": at, "hit": str(hit), "boot": boot, "outputs": OUTPUTS}, **settings)
    name = project.root.parent / (project.root.name + ".json")
    name.write_text(json.dumps(settings), encoding="utf-8")
    done = Warm.run("fault", [str(name), "--pipeline", str(project.root / "pipeline.json"), "--run-id", run_id, *arguments], str(project.root))
    return hit.read_text(encoding="utf-8").splitlines()[0] if hit.exists() else "", done


def sweep(case, action_of, check, slack=0, **settings):
    """Break a fresh copy at N = 1, 2, 3 ... until two come through; check(project, where, done) each. Return the N's.

    slack: by how many the number of steps may differ from run to run, where several processors end in any order, or the
    clock of the file system is asked more than once.
    """
    numbers, problems, covered, through = itertools.count(1, STRIDE), [], [], []

    def work():
        for at in iter(lambda: None if len(through) > 1 or problems else next(numbers), None):
            project = case.fresh("n%03d" % at)
            try:
                where, done = break_at(project, action_of(at), at, case.arguments, **settings)
                if where:
                    covered.append(at)
                    check(project, where, done)
                    shutil.rmtree(project.root)
                else:
                    assert done.code == 0, done
                    through.append(at)
            except BaseException as error:
                problems.append("N = %d: %s\n%r" % (at, locals().get("where"), error))

    workers = [threading.Thread(target=work) for _ in range(WORKERS)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not problems, "\n".join(problems)
    assert set(covered) >= set(range(1, max(covered) + 1 - slack, STRIDE)) and len(covered) > 5 // STRIDE
    print("broken at N = 1 to %d" % len(covered))
    return len(covered)


# --- what must hold afterwards ---------------------------------------------------------------------------------------

def results(project):
    """Return what a user keeps: outputs and markers (their keys), stage records without what belongs to the run."""
    found = {}
    for path in sorted(project.root.joinpath("data").rglob("*")):
        if path.is_file():
            name = str(path.relative_to(project.root))
            found[name] = json.loads(path.read_bytes())["key"] if name.endswith(".done") else path.read_bytes()
    for path in sorted(project.root.glob("state/stage_*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        found[path.name] = {key: value for key, value in record.items() if key not in RUN_FIELDS}
    for path in sorted(project.root.glob("state/progress_*.json")):
        found[path.name] = json.loads(re.sub(r"~[0-9a-f.]+\.part", "~TOKEN.part", path.read_text(encoding="utf-8")))
    return found


def leftovers(project):
    """What was kept of a record by a run that died stays until the stage runs again, and is none."""
    found = [str(path.relative_to(project.root)) for path in project.root.rglob("*") if path.name.endswith((".tmp", ".part", ".lock", ".tmp~"))]
    return found + [str(path.relative_to(project.root)) for path in project.root.glob("state/*.corrupt-*")]


def chain_problems(project):
    """Return what is wrong with the chain of runs: each sealed record follows one that is there, nobody is "running"."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in project.root.glob("state/run_*.json")]
    problems = ["%s is running" % one["runId"] for one in records if one["state"] == "running"]
    problems += ["%s: wrong hash" % one["runId"] for one in records if one.get("runHash") != ledger_format.run_hash(one)]
    hashes = [one.get("runHash") for one in records]
    before = sorted(str(one.get("prevRunHash")) for one in records)
    entries = [json.loads(line) for line in project.path("state/ledger.jsonl").read_bytes().splitlines()]
    head = entries[-1]["lastRunHash"]
    if [one["runHash"] for one in entries if one["event"] == "end"][-1] != head or entries[-1]["open"]:
        problems.append("the ledger ends with %s" % entries[-1])
    if head not in hashes or before != sorted(str(one) for one in [None] + [one for one in hashes if one != head]):
        problems.append("broken chain: head %s, %s" % (head, [(one["runId"], one.get("prevRunHash"), one.get("runHash")) for one in records]))
    return problems


def check_recovery(case, with_third=True):
    """Return a check: the next run ends in the undisturbed result, the one after it skips all, nothing is left over."""
    expected = results(case.expected)

    def check(project, where, done):
        # A forced stage that was broken is unfinished: the plain run after it must take it up by itself.
        # Every other time under the dead run's own id, which goes on with it.
        again = project.ok("--run-id", "again" if at_of(project) % 2 else "broken")
        third = project.ok("--run-id", "third") if with_third else again
        assert not with_third or third.out.count("[SKIP]") == len(third.steps) - 1 > 0, (done, again, third)
        assert results(project) == expected, (done, again)
        assert leftovers(project) == [], (done, again, third)
        assert chain_problems(project) == [], (done, again, third)

    return check


# --- the sweeps ------------------------------------------------------------------------------------------------------

# The probe of the file system's clock is swept once, with the run that skips everything; a temporary file empty,
# filled and synced once, with the appending processor.
NO_CLOCK = ["* state/.clock.tmp"]
NO_WRITES = NO_CLOCK + ["write *.tmp", "fsync *.tmp"]


@pytest.mark.parametrize("make, ignored, ordered", [(kit, NO_WRITES, True), (appending, NO_CLOCK, True), (noting, NO_WRITES, True), (changed, NO_WRITES, True), (forced, NO_WRITES, False), (unchanged, [], True)],
                         ids=lambda value: getattr(value, "__name__", ""))
def test_killed_before_any_step_the_next_run_ends_as_an_undisturbed_one(make, ignored, ordered, tmp_path):
    case = Case(make, tmp_path)

    def check(project, where, done):
        assert done.code == KILLED, done
        recovered(project, where, done)

    recovered = check_recovery(case)
    sweep(case, lambda at: "kill", check, slack=12 if make is unchanged else 0, ignore=ignored, ordered=ordered)      # four probes of the clock


@pytest.mark.parametrize("make, ignored, actions", [
    (kit, NO_CLOCK + ["open *.tmp", "write *.tmp"], ("ENOSPC", "EIO", "EACCES")), (changed, NO_WRITES, ("ENOSPC+",))],
    ids=["kit", "full"])
def test_refused_by_the_file_system_a_run_says_so_in_one_line_and_the_next_is_right(make, ignored, actions, tmp_path):
    case = Case(make, tmp_path)
    expected = results(case.expected)

    def check(project, where, done):
        name = actions[at_of(project) % len(actions)]
        assert "Traceback" not in done.err and "internal error" not in done.err and "own files" not in done.out + done.err, done
        if done.code == 0:
            # What is only tidied, or looked at, may be refused; then the run is a right one.
            # A rename, the last step of all, needs no space. The file for monitoring and a cache are a note, and nothing else.
            noted = {"metrics.prom": "[NOTE] state/metrics.prom was not written", "digests.json": "[NOTE] a cache is not written"}
            # What cannot be kept of a record makes the next one durable at once. On Windows somebody may have a file open for a moment.
            assert os.name == "nt" and name == "EACCES" or where.startswith(("unlink ", "rmdir ")) or where.endswith(".json.before") or name.endswith("+") and where in ("replace state/run_broken.json", "replace state/metrics.prom") or any(
                file in where and note in done.out + done.err for file, note in noted.items()), (where, done)
            assert results(project) == expected, done
        else:
            # Without rights in an output folder its stage has failed; from all else the run does not go on.
            is_place = name == "EACCES" and (where.split()[-1] + "/").startswith("data/")
            assert done.code == (1 if is_place else 5), (where, done)
            reason = os.strerror(getattr(errno, name.rstrip("+")))
            lines = [line for line in (done.out if is_place else done.err).splitlines() if line.startswith("[FAIL] " if is_place else "error: ")]
            assert len(lines) == 1 and reason in lines[0] and str(project.root) in lines[0], done
            assert ("bytes free" in lines[0]) == name.startswith("ENOSPC"), done
        recovered(project, where, done)

    recovered = check_recovery(case, with_third=False)
    sweep(case, lambda at: actions[at % len(actions)], check, ignore=ignored)


def at_of(project):
    return int(project.root.name[1:])


@pytest.mark.parametrize("make, action, ordered", [(appending, "late", True), (appending, "late", False), (noting, "late", True), (changed, "early", True), (changed, "late", True)],
                         ids=lambda value: getattr(value, "__name__", value))
def test_after_a_power_cut_nothing_is_believed_that_was_not_on_the_disk(make, action, ordered, tmp_path):
    case = Case(make, tmp_path)
    sweep(case, lambda at: action, check_after_boot(case), ignore=NO_WRITES + ["unlink locks/*"], ordered=ordered)


def check_after_boot(case):
    expected = results(case.expected)

    def check(project, where, done):
        _, again = break_at(project, "none", 0, [], "again", boot="another-boot")
        assert again.code == 0, (done, again)
        _, third = break_at(project, "none", 0, [], "third", boot="another-boot")
        found = results(project)
        for name in found:
            if name.startswith("stage_"):
                found[name]["bootId"] = expected[name]["bootId"]
        assert found == expected, (done, again)
        assert third.out.count("[SKIP]") == len(third.steps) - 1 > 0, (done, again, third)
        assert leftovers(project) == [] and chain_problems(project) == [], (done, again, third)

    return check


def test_outputs_of_a_run_that_died_before_it_synced_them_are_synced_before_they_are_vouched_for(tmp_path):
    case = Case(appending, tmp_path)
    project = case.fresh("late")
    where, _ = break_at(project, "kill", 1, [], only=["fsync data/one/list.txt"])
    assert where
    settle(project.path("data/one/list.txt"))
    # This run skips the stage and keeps the output's digest. Then the power goes: what it did not sync is lost.
    _, skipped = break_at(project, "late", 0, [], "skips", startSynced=False)
    assert "[SKIP] one" in skipped.out
    check_after_boot(case)(project, "", skipped)


PRINTER = """#!/bin/sh
echo "$PIPELINE_STAGE prints"
cat "$@" > "$PIPELINE_OUTPUT_DIR/list.txt"
"""
FOR_WINDOWS[PRINTER] = """
print("it prints")
with open(name, "wb") as out:
    for path in sys.argv[1:]:
        with open(path, "rb") as file:
            out.write(file.read())
"""


def printing(project):
    """Two stages whose processors print something."""
    project.write("data/input/a.txt", "x\n")
    processor = script(project, "print.sh", PRINTER)
    project.spec({"name": "one", "processor": processor, "inputs": ["data/input/*.txt"], "outputDir": "data/one"},
                 {"name": "two", "processor": processor, "inputs": ["data/one/*.txt"], "outputDir": "data/two"},
                 {"name": "each", "processor": processor, "forEach": "data/input/*.txt", "outputDir": "data/each"})
    return []


def test_after_a_power_cut_the_logs_are_what_the_records_say(tmp_path):
    project = Case(printing, tmp_path).fresh("logs")
    break_at(project, "late", 0, [], outputs=["state/logs", *OUTPUTS])
    _, again = break_at(project, "none", 0, [], "again", boot="another-boot")
    done = project.run("verify")
    assert again.code == 0 and done.code == 0 and "no longer there" not in done.out, (again, done)


@posix_only
def test_the_name_of_a_runs_record_is_on_the_disk_before_the_next_run_is_entered(tmp_path):
    """A power cut may take it back, and the run after it gives it again, as long as its entry is the last one."""
    case = Case(changed, tmp_path)
    hits = [break_at(case.fresh("n%d" % at), "kill", at, [], only=["fsync state", "write state/ledger.jsonl"])[0] for at in (1, 2)]
    assert hits == ["fsync state", "write state/ledger.jsonl"]


@pytest.mark.parametrize("name", ["data/one/list.txt", pytest.param("data/one", marks=posix_only)])
def test_a_stage_whose_outputs_could_not_be_synced_is_not_believed(name, tmp_path):
    case = Case(changed, tmp_path)
    project = case.fresh("n001")
    where, done = break_at(project, "EIO", 1, [], only=["fsync " + name])
    assert where and done.code == 5, done
    # What is in memory may be right, yet a second sync would tell nothing about what is on the disk.
    again = project.ok("--run-id", "again")
    assert "[START] one" in again.out and results(project) == results(case.expected), again


def test_an_error_before_anything_was_done_is_not_taken_for_the_success_of_an_earlier_run(tmp_path):
    project = Case(printing, tmp_path).fresh("earlier")
    project.ok("--run-id", "first")
    where, done = break_at(project, "EIO", 1, ["--force", "one"], only=["unlink data/one/.one.done"])
    assert where and done.code == 5, done
    entry = project.json("state/run_broken.json")["stages"][0]
    assert (entry["stage"], entry["status"]) == ("one", "failed") and entry["reason"], entry


def failing(project):
    project.spec({"name": "one", "processor": project.processor("fail", "sys.exit(3)\n"), "outputDir": "data/one"})
    return ["--keep-going"]


def test_a_failure_that_cannot_be_recorded_stays_the_first_cause(tmp_path):
    project = Project(tmp_path / "root")
    failing(project)
    where, done = break_at(project, "ENOSPC", 2, [], only=["replace state/stage_one.json"])
    assert where and done.code == 1 and "[FAIL] one: exit code 3; and not recorded: " in done.out, done
    assert "[FAIL] one: exit code 3" in project.run("--run-id", "again").out


def with_checkpoint(project):
    """Two stages, of which the second has all that was done before on the disk before it is begun."""
    printing(project)
    spec = project.json("pipeline.json")
    spec["stages"] = [spec["stages"][0], dict(spec["stages"][1], checkpoint={"enabled": True})]
    project.write("pipeline.json", json.dumps(spec))
    return []


def test_what_could_not_be_synced_is_not_synced_again_and_the_run_is_recorded_as_failed(tmp_path):
    """A second sync would fail as the first did, or tell nothing about what is on the disk."""
    project = Case(with_checkpoint, tmp_path).fresh("failed")
    where, done = break_at(project, "EIO+", 1, [], only=["fsync data/one/list.txt"])
    assert where and done.code == 5 and "data/one/list.txt" in done.err.replace(os.sep, "/"), done
    assert project.json("state/run_broken.json")["state"] == "failed", done
    assert "[START] one" in project.ok("--run-id", "again").out


def test_an_input_that_nobody_synced_is_read_again_after_a_restart(tmp_path):
    case = Case(appending, tmp_path)
    project = case.fresh("inputs")
    project.ok("--run-id", "first")
    settle(project.path("data/input/a.txt"))
    break_at(project, "late", 0, [], "cut", outputs=["data/input"], startSynced=False)
    assert project.path("data/input/a.txt").read_bytes() == bytes(6)
    _, same_boot = break_at(project, "none", 0, [], "same")
    assert "[SKIP] one" in same_boot.out, same_boot         # the signature does not tell: only the boot id can
    _, other = break_at(project, "none", 0, [], "other", boot="another-boot")
    assert "[START] one" in other.out and "input data/input/a.txt changed" in project.json("state/run_other.json")["stages"][0]["reason"], other


@pytest.mark.parametrize("make", [kit, changed], ids=lambda make: make.__name__)
def test_killed_again_and_again_while_it_recovers(make, tmp_path):
    case = Case(make, tmp_path)
    random_ = random.Random(7)
    recovered = check_recovery(case)
    for number in range(8):
        project = case.fresh("n%03d" % number)
        deaths = []
        while len(deaths) < 4:
            where, done = break_at(project, "kill", random_.randrange(8, 60), case.arguments, "k%d" % len(deaths), ignore=NO_WRITES)
            if not where:
                break
            deaths.append((where, done))
        recovered(project, "", deaths)


# --- several runs at once --------------------------------------------------------------------------------------------

COUNTED = """#!/bin/sh
echo "$PIPELINE_STAGE_NAME" >> "$PIPELINE_ROOT/count"
sleep 0.1
cat "$@" > "$PIPELINE_OUTPUT_DIR/all.txt"
"""
FOR_WINDOWS[COUNTED] = """
import time
with open(os.path.join(os.environ["PIPELINE_ROOT"], "count"), "a") as count:
    count.write(os.environ["PIPELINE_STAGE_NAME"] + "\\n")
time.sleep(0.1)
""" + FOR_WINDOWS[PRINTER].replace("name, ", "name.replace('list', 'all'), ")


def counted(project, wait_s):
    project.write("data/input/a.txt", "x\ny\n")
    common = {"processor": script(project, "counted.sh", COUNTED), "lock": {"waitSeconds": wait_s}, "passEnv": ["HOME"]}
    project.spec(dict(common, name="one", inputs=["data/input/*.txt"], outputDir="data/one"),
                 dict(common, name="two", inputs=["data/one/*.txt"], outputDir="data/two"))


@pytest.mark.parametrize("wait_s, allowed", [(60, {0}), (0, {0, 4})])
def test_of_ten_runs_at_once_each_stage_is_run_by_one(wait_s, allowed, project):
    counted(project, wait_s)
    runs = [project.start("--run-id", "r%d" % number) for number in range(10)]
    ends = [(run.communicate(timeout=100), run.returncode) for run in runs]
    assert {code for _, code in ends} <= allowed and any(code == 0 for _, code in ends), ends
    for (out, err), code in ends:
        assert (b"is held by pid" in err) == (code == 4), (out, err)
    project.ok("--run-id", "last")
    assert sorted(project.read("count").split()) == ["one", "two"], ends
    assert project.read("data/two/all.txt") == "x\ny\n"
    assert leftovers(project) == [] and chain_problems(project) == []


# --- the order in which things come to the disk

TOLD = """
import os, runpy, sys
sys.path.insert(0, %r)
import durable_files, file_systems, run_records, state_store
file_systems.keeps_order = lambda device: True
run_records.RECORD_S = run_records.RECORD_SHARE = 0     # after each stage, however slow the disk is
real_write, real_stage, real_sync = state_store.StateStore.write, state_store.StateStore.write_stage, durable_files.sync_folder
def write(self, name, record):
    waiting = [os.path.relpath(path, self.root) for path in [*self.commit.files, *self.commit.removed]]
    print("write", name, [one["status"] for one in record.get("stages", [])], waiting, flush=True)
    return real_write(self, name, record)
def write_stage(self, stage, record):
    print("write", stage, record["lastStatus"], flush=True)
    return real_stage(self, stage, record)
def sync_folder(path):
    print("sync", os.path.basename(path), flush=True)
    return real_sync(path)
state_store.StateStore.write, state_store.StateStore.write_stage, durable_files.sync_folder = write, write_stage, sync_folder
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def told(project, *arguments):
    """Run the program, which tells of the records that it writes with what is not on the disk yet, and of the folders that it syncs."""
    done = subprocess.run([sys.executable, "-c", TOLD % str(RUNNER.parent), str(RUNNER), "--pipeline", str(project.path("pipeline.json")), *arguments],
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=project.environment(), timeout=60)
    return [line for line in done.stdout.decode("utf-8").splitlines() if line.startswith(("write ", "sync "))]


def test_the_record_of_a_run_under_way_speaks_only_of_what_is_on_the_disk(project):
    """Its name may be there seconds before the markers and logs of its stages, which then count as removed or edited by somebody."""
    project.spec(*[{"processor": project.processor("say", "print('hello')\nopen(out + '/o', 'w').close()\n")}] * 3)
    lines = [line for line in told(project, "--run-id", "r", "--jobs", "1") if line.startswith("write run_r.json ['ok'")]
    assert lines[:2] == ["write run_r.json ['ok'] []", "write run_r.json ['ok', 'ok'] []"], lines


def test_what_an_attempt_left_is_gone_from_the_disk_before_the_success_is_recorded(project):
    body = "if os.environ['PIPELINE_ATTEMPT'] == '1':\n    os.mkdir(out + '/sub')\n    open(out + '/sub/junk', 'w').close()\n    sys.exit(75)\nopen(out + '/o', 'w').close()\n"
    project.spec({"processor": project.processor("twice", body), "retry": {"attempts": 2, "baseDelayMs": 0, "jitterMs": 0}})
    lines = told(project, "--run-id", "r")
    before = lines[:next(place for place, line in enumerate(lines) if line.startswith("write s1 ok"))]
    assert "sync s1" in before[next(place for place, line in enumerate(before) if line.startswith("write s1 running")):], lines


def test_clean_says_so_on_the_disk_before_it_removes_and_all_is_gone_from_there_at_its_end(project):
    project.spec({"processor": project.processor("make", "open(out + '/o', 'w').close()\n")})
    project.ok()
    lines = told(project, "clean", "s1", "--yes")
    said = lines[next(place for place, line in enumerate(lines) if line.startswith("write stage_s1.json")):]
    assert "sync s1" in said and "sync state" in said[:said.index("sync s1")], lines


def test_what_is_done_is_on_the_disk_in_good_time_and_with_the_folders_that_name_it(project, monkeypatch):
    """A run may take days, and a power cut comes without notice."""
    monkeypatch.setitem(globals(), "TOLD", TOLD.replace("run_records.RECORD_S = run_records.RECORD_SHARE = 0", "durable_files.FLUSH_S = 0"))
    project.spec(*[{"processor": project.processor("make", "print('said')\nos.makedirs(out + '/sub', exist_ok=True)\nopen(out + '/sub/o', 'w').close()\n")}] * 2)
    lines = told(project, "--run-id", "r")
    first, running, done = (lines.index("write %s" % text) for text in ("s1 ok", "s2 running", "s2 ok"))
    assert {"sync s1", "sync sub"} <= set(lines[first:running]), lines      # outputs and marker of the first one
    assert "sync r" in lines[running:done], lines                           # the log of the second one's attempt, before its outputs are read


def test_what_gc_removes_is_gone_from_the_disk_at_its_end(project):
    project.spec({"processor": project.processor("say", "print('x')\n")})
    for run_id in ("a", "b"):
        project.ok("--run-id", run_id, "--force", "s1")
    assert "sync logs" in told(project, "gc", "--keep-runs", "1", "--yes") and not project.exists("state/logs/a")


def test_what_is_not_as_recorded_is_gone_from_the_disk_before_the_next_success_is_recorded(project):
    project.write("more", "")
    body = "os.makedirs(out + '/sub', exist_ok=True)\nopen(out + '/o', 'w').close()\nif os.path.exists('more'):\n    open(out + '/sub/more', 'w').close()\n"
    project.spec({"processor": project.processor("make", body)})
    project.ok()
    project.path("more").unlink()
    project.write("data/s1/sub/more", "edited")
    lines = told(project, "--run-id", "r")
    assert not project.exists("data/s1/sub/more")
    assert {"sync s1", "sync sub"} & set(lines[:next(place for place, line in enumerate(lines) if line.startswith("write s1 ok"))]), lines


def test_what_reset_clears_is_gone_from_the_disk_before_the_record_that_told_of_it(project):
    project.spec({"processor": project.processor("half", "open(out + '/junk', 'w').close()\nsys.exit(1)\n")})
    assert project.run().code == 1 and project.exists("data/s1/junk")
    lines = told(project, "reset", "s1", "--yes")
    assert not project.exists("data/s1/junk") and not project.exists("state/stage_s1.json")
    assert lines.index("sync s1") < max(place for place, line in enumerate(lines) if line == "sync state"), lines


def test_removals_are_on_the_disk_before_the_files_that_tell_of_them(tmp_path, monkeypatch):
    commit, done = durable_files.Commit(), []
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "gone").write_text("x")
    (tmp_path / "log").write_text("it is gone")
    assert durable_files.remove_durably(str(tmp_path / "out" / "gone"), commit)
    commit.files[str(tmp_path / "log")] = commit.folders[str(tmp_path)] = None
    monkeypatch.setattr(durable_files, "sync_folder", lambda path: done.append(os.path.basename(path)))
    monkeypatch.setattr(durable_files, "_sync_path", lambda path: done.append(os.path.basename(path)))
    commit.flush()
    assert done == ["out", "log", tmp_path.name] and not (commit.files or commit.folders or commit.removed)


def test_a_file_whose_folder_is_a_file_by_now_needs_no_sync(tmp_path):
    commit = durable_files.Commit()
    (tmp_path / "out").write_text("")
    commit.add_file(str(tmp_path / "out" / "gone"))
    commit.flush()
    assert not commit.files and not commit.folders
