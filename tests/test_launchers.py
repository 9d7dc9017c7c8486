"""Stages whose processors a launcher starts elsewhere: words, exit codes, ends of every kind, the network, what records say.

The cluster is tests/fake_cluster.py; test_slurm does it with a real one.
"""
from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, without_coverage
from test_processes import ORPHANS, without_proc

import launch_helper
import launch_lease
import node_report
import stage_locks

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="launchers need fork")
linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel layer of Linux")
CLUSTER = str(Path(__file__).with_name("fake_cluster.py"))
NO_SCAN = {"layers": ["kernel", "hook"]}
LIMIT_S = 30.0
SLEEP = "open(out + '/started', 'w').close()\ntime.sleep(60)\n"


class Cluster:
    def __init__(self, folder):
        self.folder = folder
        folder.mkdir()
        self.node = subprocess.Popen([sys.executable, CLUSTER, "node", str(folder)])
        wait_for(lambda: (folder / "ready").exists())

    def words(self, *options):
        return [sys.executable, CLUSTER, "run", str(self.folder), *options]

    def queue(self):
        """The jobs that wait or run."""
        return sorted(path.name for path in self.folder.glob("job.*") if not path.name.endswith(".new"))

    def launches(self):
        path = self.folder / "launches"
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


@pytest.fixture
def cluster(tmp_path):
    one = Cluster(tmp_path / "spool")
    yield one
    (one.folder / "end").touch()
    one.node.wait(LIMIT_S)


def wait_for(what):
    deadline = time.monotonic() + LIMIT_S
    while not what():
        assert time.monotonic() < deadline, "it did not come to be"
        time.sleep(0.01)


def stages_of(project, run_id="r"):
    return project.json("state/run_%s.json" % run_id)["stages"]


def leases(project):
    folder = project.path("state/launch")
    return sorted(os.listdir(folder)) if folder.exists() else []


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open("/proc/%d/stat" % pid, encoding="utf-8") as file:
        return file.read().rpartition(")")[2].split()[0] != "Z"


# --- words -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("word, expected", [
    ("--mem={memoryMB}M", "--mem=100M"), ("{cpuCores}{cpuCores}", "22"), ("{{}}", "{}"), ("{{{cpuCores}}}", "{2}"), ("plain", "plain"), ("{{memoryMB}}", "{memoryMB}")])
def test_words_are_filled_from_resources(word, expected):
    assert launch_helper.launcher_words([word], {"cpuCores": 2, "memoryMB": 100}) == [expected]


def test_a_run_through_a_launcher(project, cluster):
    body = "print('hello')\nopen(out + '/o', 'w').write(os.environ['PIPELINE_STAGE_NAME'] + str(sys.argv[1:]) + os.getcwd() + str(os.environ.get('PIPELINE_LAUNCHER')))\n"
    project.spec({"processor": project.processor("p", body), "args": ["one"], "resources": {"cpuCores": 2, "memoryMB": 64},
                  "launcher": cluster.words("--cpus={cpuCores}", "--mem={memoryMB}M", "--{{x}}")})
    done = project.ok("--run-id", "r")
    assert "[START] s1" in done.out and "[DONE] s1" in done.out
    launch, = cluster.launches()
    lease = launch["words"][launch["words"].index("--lease") + 1]
    assert launch["words"] == ["--cpus=2", "--mem=64M", "--{x}", sys.executable, "-E", "-S", str(ROOT / "src" / "offline_guard.py"), "exec", "--lease", lease]
    assert project.read("data/s1/o") == "s1['one']%sNone" % project.root
    assert project.read("state/logs/r/s1.1.log") == "hello\n"
    assert leases(project) == [] and cluster.queue() == []
    record = project.json("state/run_r.json")
    assert record["isolation"]["launcher"] == launch_helper.ISOLATION
    stage = record["stages"][0]
    assert stage["argv"] == cluster.words() + launch["words"] and stage["keyParts"]["launcher"][-1] == "--{{x}}"
    assert stage["launcher"]["limits"] == "left to the launcher"
    assert [(one["attempts"], one["host"]) for one in stage["launcher"]["nodes"]] == [(1, os.uname().nodename)]
    # The memory of the Python behind the launcher is more than the limit would allow: nobody limited the launcher to it.
    again = project.ok("--run-id", "again")
    assert again.steps[0].startswith("[SKIP] s1") and len(cluster.launches()) == 1
    assert "launcher" not in project.json("state/run_again.json")["isolation"]


def test_the_words_are_part_of_the_key_and_a_stage_without_them_keeps_its_key(project, cluster):
    stage = {"processor": project.processor("p", "open(out + '/o', 'w').close()\n")}
    project.spec(stage)
    project.ok("--run-id", "plain")
    assert "launcher" not in stages_of(project, "plain")[0]["keyParts"] and "launcher" not in stages_of(project, "plain")[0]
    project.spec(dict(stage, launcher=cluster.words()))
    assert "launcher" in project.ok("plan").out
    project.ok("--run-id", "far")
    project.spec(dict(stage, launcher=cluster.words("-x")))
    assert project.ok("--run-id", "other").steps[0] == "[START] s1"


def test_exit_codes_pass_through_and_75_asks_for_another_attempt(project, cluster):
    body = "print('try', os.environ['PIPELINE_ATTEMPT'])\nsys.exit(75 if os.environ['PIPELINE_ATTEMPT'] == '1' else 0)\n"
    retry = {"attempts": 3, "baseDelayMs": 1, "exitCodes": [75]}
    project.spec({"processor": project.processor("p", body), "retry": retry, "launcher": cluster.words()},
                 {"processor": project.processor("q", "sys.exit(3)\n"), "retry": retry, "launcher": cluster.words()})
    done = project.run("--run-id", "r")
    assert done.code == 1 and "[RETRY] s1 attempt 1/3: exit code 75" in done.out and "[FAIL] s2: exit code 3" in done.out, done
    one, two = stages_of(project)
    assert (one["attempts"], one["status"], one["exitCode"], two["attempts"], two["exitCode"]) == (2, "ok", 0, 1, 3)
    assert [node["attempts"] for node in one["launcher"]["nodes"]] == [2]
    assert project.read("state/logs/r/s1.2.log") == "try 2\n"


def test_tasks_are_handed_out_side_by_side(project, cluster):
    """Each waits for the others to have begun: one after the other they would never end. Cores of the stages are not this machine's."""
    body = ("open(out + '/began', 'w').close()\nwhile not all(os.path.exists(out[:-1] + str(n) + '/began') for n in (1, 2, 3)):\n    time.sleep(0.01)\n")
    stage = {"processor": project.processor("p", body), "timeoutSec": 60, "resources": {"cpuCores": 64}, "launcher": cluster.words()}
    project.spec(stage, stage, stage, order="graph")
    project.ok("--run-id", "r", "--jobs", "3", "--max-memory", "1")
    assert len(cluster.launches()) == 3 and cluster.queue() == []


def test_tasks_of_files(project, cluster):
    """The third task asks for another attempt, the fourth fails: each of the others is done, once, and a rerun does one only."""
    for number in range(5):
        project.write("in/%d.txt" % number, "text %d" % number)
    body = ("text = open(inputs[0]).read()\nopen(out + '/' + os.path.basename(inputs[0]), 'w').write(text.upper())\n"
            "sys.exit({'text 2': 75 if os.environ['PIPELINE_ATTEMPT'] == '1' else 0, 'text 3': 9}.get(text, 0))\n")
    project.spec({"processor": project.processor("p", body), "forEach": "in/*.txt", "launcher": cluster.words(), "retry": {"attempts": 2, "exitCodes": [75], "baseDelayMs": 1}})
    done = project.run("--run-id", "r", "--jobs", "3")
    assert done.code == 1 and "[FAIL] s1 in/3.txt: exit code 9" in done.out and len(cluster.launches()) == 6, done
    stage = stages_of(project)[0]
    assert stage["tasks"] == {"total": 5, "ok": 4, "skipped": 0, "failed": 1, "vanished": 0}
    assert [one["attempts"] for one in stage["launcher"]["nodes"]] == [6]
    project.write("in/3.txt", "now good")
    project.ok("--run-id", "r")
    assert len(cluster.launches()) == 7 and project.read("data/s1/3.txt") == "NOW GOOD" and leases(project) == []


def test_chunks_of_a_file(project, cluster):
    project.write("in.txt", "".join("line %d\n" % number for number in range(100)))
    project.spec({"processor": "bin/stage_upper.py", "inputs": ["in.txt"], "chunks": {"bytes": 300}, "launcher": cluster.words()})
    project.ok("--run-id", "r", "--jobs", "3")
    made = [path for path in project.path("data/s1").iterdir() if not path.name.startswith(".")]
    assert [path.read_text(encoding="utf-8") for path in made] == [project.read("in.txt").upper()] and len(cluster.launches()) >= 3


# --- the network -----------------------------------------------------------------------------------------------------

@linux_only
def test_the_launcher_has_the_network_and_the_processor_has_not(project, cluster):
    body = "net = __import__('soc' + 'ket')\ntry:\n    net.socket()\nexcept OSError:\n    open(out + '/refused', 'w').close()\n"
    stage = {"processor": project.processor("p", body), "launcher": cluster.words()}
    project.spec(stage, dict(stage, networkAttempts="warn"), offline=NO_SCAN)
    done = project.run("--run-id", "r", "--only", "s1")
    assert done.code == 6 and "[OFFLINE] stage s1: bin/p.py (pid " in done.out and "tried to open IPv4 TCP: refused (bin/p.py:6)" in done.out, done
    assert [one["network"] for one in cluster.launches()] == [True]
    refusal, = stages_of(project)[0]["networkRefusals"]
    assert (refusal["program"], refusal["kind"], refusal["place"], refusal["counted"], refusal["count"]) == ("bin/p.py", "IPv4 TCP", "bin/p.py:6", True, 1)
    assert stages_of(project)[0]["launcher"]["nodes"][0]["kernel"] == {"method": "seccomp", "reports": True, "probed": True, "strict": False}
    project.ok("--run-id", "w", "--only", "s2")
    assert project.exists("data/s2/refused") and len(stages_of(project, "w")[0]["networkRefusals"]) == 1


def lease_for(root, close, *command, **more):
    path = launch_lease.lease_path(str(root), "s", "tok.1")
    launch_lease.create(path, dict({"stage": "s", "token": "tok.1", "root": str(root), "close": close, "command": list(command), "strict": False, "graceSec": 1,
                                    "report": str(root / "report"), "environment": {"PIPELINE_HOOK": "report"}}, **more))
    return path


# A machine on which the network cannot be closed.
IN_CHILD = """
import sys
sys.path.insert(0, %r)
import node_exec, offline_guard
offline_guard.close_network = lambda strict: (offline_guard.Status("none", False, False, False, "of a test"), None)
raise SystemExit(node_exec.run_leased(sys.argv[1], offline_guard))
"""


def run_where_it_cannot_be_closed(path):
    """In a process of its own: it takes over signals and orphans."""
    code = IN_CHILD % str(ROOT / "src")
    return subprocess.run([sys.executable, "-c", code, path], stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60)


def test_where_the_kernel_must_and_cannot_close_the_network_nothing_is_started(tmp_path):
    done = run_where_it_cannot_be_closed(lease_for(tmp_path, "must", "touch", str(tmp_path / "started")))
    assert done.returncode == 6 and not (tmp_path / "started").exists(), done
    told = node_report.read(str(tmp_path / "report"))
    assert told.is_whole and told.why.startswith("the network cannot be closed on") and told.kernel["method"] == "none"


@pytest.mark.parametrize("close", ["try", "no"])
def test_where_it_need_not_the_hook_enforces(tmp_path, close):
    done = run_where_it_cannot_be_closed(lease_for(tmp_path, close, "sh", "-c", "echo $PIPELINE_HOOK; exit 4"))
    assert (done.returncode, done.stdout) == (4, b"enforce\n"), done
    assert node_report.read(str(tmp_path / "report")).kernel["method"] == "none"


def test_a_stage_fails_with_6_where_its_node_cannot_close_the_network(project, cluster):
    # The launcher runs the words with another offline_guard: the one of a machine that cannot.
    project.write("src/offline_guard.py", "import sys\n" + IN_CHILD % str(ROOT / "src"))
    project.write("far.py", "import os, sys\nwords = sys.argv[1:]\nplace = next(i for i, one in enumerate(words) if one.endswith('offline_guard.py'))\n"
                  "words[place:place + 3] = [os.path.join(%r, 'src', 'offline_guard.py')]\nos.execv(words[0], words)\n" % str(project.root))
    project.spec({"processor": project.processor("p", "open(out + '/o', 'w').close()\n"), "launcher": [sys.executable, str(project.path("far.py"))],
                  "retry": {"attempts": 3, "baseDelayMs": 1}}, offline={"require": "kernel"})
    done = project.run("--run-id", "r")
    assert done.code == 6 and "the network cannot be closed on" in done.out and not project.exists("data/s1/o"), done
    stage, = stages_of(project)
    assert stage["attempts"] == 1 and project.json("state/stage_s1.json")["lastError"].count("the network cannot be closed on") == 1, stage


# --- the end ---------------------------------------------------------------------------------------------------------

def test_a_timeout_lets_the_processor_end_in_order(project, cluster):
    body = ("import signal\ndef stop(*_):\n    print('ended in order')\n    sys.exit(3)\nsignal.signal(signal.SIGTERM, stop)\n" + SLEEP)
    project.spec({"processor": project.processor("p", body), "timeoutSec": 1.5, "graceSec": 30, "launcher": cluster.words()})
    done = project.run("--run-id", "r")
    assert done.code == 1 and "[FAIL] s1: timeout after 1.5 s" in done.out and "ended in order" in project.read("state/logs/r/s1.1.log"), done
    assert cluster.queue() == [] and leases(project) == []


def test_a_processor_that_will_not_stop_is_cancelled_after_the_grace(project, cluster):
    body = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nopen(out + '/pid', 'w').write(str(os.getpid()))\n" + SLEEP
    project.spec({"processor": project.processor("p", body), "timeoutSec": 1.5, "graceSec": 0.1, "launcher": cluster.words()})
    assert project.run("--run-id", "r").code == 1
    assert cluster.queue() == [] and leases(project) == []


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_the_runner_leaves_no_job(project, cluster, number, code):
    project.spec({"processor": project.processor("p", SLEEP), "launcher": cluster.words()})
    with project.start("--run-id", "r") as process:
        wait_for(lambda: project.exists("data/s1/started"))
        process.send_signal(number)
        process.communicate(timeout=LIMIT_S)
    assert process.returncode == code and cluster.queue() == [] and leases(project) == []
    assert project.json("state/stage_s1.json")["lastStatus"] == "interrupted"


def test_a_job_that_waits_in_the_queue_is_cancelled(project, cluster):
    (cluster.folder / "hold").touch()
    project.spec({"processor": project.processor("p", SLEEP), "graceSec": 60, "launcher": cluster.words()})
    with project.start("--run-id", "r") as process:
        wait_for(cluster.queue)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=LIMIT_S)
    assert process.returncode == 130 and cluster.queue() == [] and leases(project) == [] and not project.exists("data/s1/started")


def test_a_killed_runner_leaves_no_job(project, cluster):
    project.spec({"processor": project.processor("p", SLEEP), "launcher": cluster.words()})
    with project.start("--run-id", "r") as process:
        wait_for(lambda: project.exists("data/s1/started"))
        process.kill()
    wait_for(lambda: cluster.queue() == [] and leases(project) == [])
    assert not is_alive(cluster.launches()[0]["pid"])
    project.processor("p", "open(out + '/o', 'w').close()\n")
    project.ok("--run-id", "r")


def family_of(pid):
    """The pids of a launcher, its minder and the helper: its ancestors but the first process of all."""
    found = []
    while pid > 1:
        found.append(pid)
        with open("/proc/%d/stat" % pid, encoding="utf-8") as file:
            pid = int(file.read().rpartition(")")[2].split()[1])
    return found[:3]


def kill_all(process, cluster):
    """Kill a run's processes on this machine, all at once; its task goes on."""
    family = family_of(cluster.launches()[0]["pid"])
    assert len(family) == 3
    process.send_signal(signal.SIGSTOP)
    for pid in reversed(family):
        os.kill(pid, signal.SIGKILL)
    process.kill()


SLEEP_KNOWN = "with open(out + '/pid', 'w') as file:\n    file.write(str(os.getpid()))\n" + SLEEP


def left_task(project, cluster, *more):
    """Leave the task of stage s1, which writes to data/s1, without anybody who watches it; return its pid."""
    project.spec({"processor": project.processor("p", SLEEP_KNOWN), "graceSec": 1, "launcher": cluster.words()}, *more)
    with project.start("--run-id", "r", "--only", "s1") as process:
        wait_for(lambda: project.exists("data/s1/started"))
        kill_all(process, cluster)
    pid = int(project.read("data/s1/pid"))
    assert is_alive(pid) and len(leases(project)) == 2
    return pid


def looks_for(project, path):
    """Return a processor that tells by a file whether the process, whose pid is in a file, is gone."""
    return project.processor("q", "try:\n    os.kill(int(open(%r).read()), 0)\nexcept ProcessLookupError:\n    open(out + '/alone', 'w').close()\n" % path)


@linux_only
def test_when_all_are_killed_the_next_run_ends_the_task_through_its_lease(project, cluster):
    project.write("pid", str(left_task(project, cluster)))
    project.spec({"processor": looks_for(project, "pid"), "launcher": cluster.words()})
    project.ok("--run-id", "r")
    assert project.exists("data/s1/alone") and leases(project) == []


@linux_only
@pytest.mark.parametrize("folder", ["data/s1", "data/s1/in", "data", "elsewhere"], ids=["its folder", "below", "around", "elsewhere"])
def test_when_all_are_killed_and_the_stage_is_in_the_spec_no_more_the_next_stage_ends_the_task(project, cluster, folder):
    """It was given another name, say. The next stage would write together with it what both write, and read what it writes."""
    project.write("pid", str(left_task(project, cluster)))
    project.spec({"name": "renamed", "processor": looks_for(project, "pid"), "outputDir": folder})
    project.ok("--run-id", "again")
    assert project.exists(folder + "/alone") and leases(project) == []


@linux_only
@pytest.mark.parametrize("folder", ["data/s1/in", "elsewhere"], ids=["below", "elsewhere"])
def test_a_task_of_another_stage_of_the_spec_is_ended_where_both_write(project, cluster, folder):
    other = {"name": "other", "processor": looks_for(project, "pid"), "outputDir": folder, "outputs": ["alone"]}
    pid = left_task(project, cluster, other)
    project.write("pid", str(pid))
    done = project.run("--run-id", "again", "--only", "other")
    assert done.code == (1 if folder == "elsewhere" else 0) and is_alive(pid) == (folder == "elsewhere"), done
    assert len(leases(project)) == (2 if folder == "elsewhere" else 0)
    project.processor("p", "open(out + '/o', 'w').close()\n")
    project.ok("--run-id", "last", "--only", "s1")
    assert leases(project) == [] and not is_alive(pid)


def test_a_task_of_a_stage_that_is_gone_and_does_not_end_keeps_others_from_its_folder(project):
    """A driver shortens how long it is waited for; this process is the task."""
    path = lease_for(project.root, "no", environment={"PIPELINE_OUTPUT_DIR": str(project.path("data/s1"))})
    held = launch_lease.Held(path)
    driver = project.write("driver.py", "import os, runpy, sys\nrunner = sys.argv[1]\nsys.path.insert(0, os.path.dirname(runner))\nimport launch_lease\n"
                                        "launch_lease.PATIENCE_S = 0.2\nsys.argv[:] = sys.argv[1:]\nrunpy.run_path(runner, run_name='__main__')\n")
    project.spec({"name": "renamed", "processor": project.processor("p", "open(out + '/o', 'w').close()\n"), "outputDir": "data/s1"})
    argv = project.argv("--run-id", "r")
    done = subprocess.run([argv[0], str(driver)] + argv[1:], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60)
    assert done.returncode == 4 and b"stage renamed: a task that a dead run launched still runs (s~tok.1.lease); it was asked to stop" in done.stdout, done
    assert held.is_stop_asked() and not project.exists("data/s1/o") and not project.exists("locks/renamed.lock")
    os.close(held.descriptor)
    project.ok("--run-id", "r")
    assert leases(project) == []


@linux_only
def test_a_task_of_a_run_that_dies_while_another_waits_for_its_folder_is_ended(project, cluster):
    project.spec({"processor": project.processor("p", SLEEP_KNOWN), "graceSec": 1, "launcher": cluster.words()})
    with project.start("--run-id", "r") as process:
        wait_for(lambda: project.exists("data/s1/started"))
        project.write("pid", project.read("data/s1/pid"))
        project.spec({"name": "renamed", "processor": looks_for(project, "pid"), "outputDir": "data/s1", "lock": {"waitSeconds": 60}})
        with project.start("--run-id", "again") as waiting:
            wait_for(lambda: project.exists("locks/renamed.lock/owner.json"))
            assert len(leases(project)) == 2 and b"stop" not in b"".join(project.path("state/launch/" + name).read_bytes()[-5:] for name in leases(project))
            kill_all(process, cluster)
            out, _ = waiting.communicate(timeout=2 * LIMIT_S)
    assert waiting.returncode == 0 and project.exists("data/s1/alone") and leases(project) == [], out


def test_a_live_run_of_another_pipeline_keeps_its_tasks(project, cluster):
    body = "open(out + '/started', 'w').close()\nwhile not os.path.exists('gate'):\n    time.sleep(0.01)\n"
    project.spec({"name": "far", "processor": project.processor("p", body), "outputDir": "data/far", "launcher": cluster.words()})
    with project.start("--run-id", "r") as process:
        try:
            wait_for(lambda: project.exists("data/far/started"))
            project.spec({"name": "mine", "processor": project.processor("q", "open(out + '/o', 'w').close()\n"), "outputDir": "data/mine", "launcher": cluster.words()}, name="second")
            project.ok("--run-id", "two")
            assert len(leases(project)) == 2
        finally:
            project.write("gate", "")
        out, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0 and b"[DONE] far" in out and b"asked to stop" not in out and leases(project) == [], out


@linux_only
def test_what_a_launcher_or_its_processor_orphans_does_not_wait_for_the_end(project):
    project.write("far.py", "import os, sys, time\n" + ORPHANS % {"program": "pipeline_runner.py"} + "if left:\n    sys.exit(9)\nos.execvp(sys.argv[1], sys.argv[1:])\n")
    project.spec({"processor": project.processor("p", ORPHANS % {"program": "offline_guard.py"} + "sys.exit(left)\n"), "launcher": [sys.executable, str(project.path("far.py"))]})
    project.ok()


@linux_only
def test_a_killed_minder_fails_the_attempt_and_leaves_no_job(project, cluster):
    project.spec({"processor": project.processor("p", SLEEP), "graceSec": 1, "launcher": cluster.words()})
    with project.start("--run-id", "r") as process:
        wait_for(lambda: project.exists("data/s1/started"))
        os.kill(family_of(cluster.launches()[0]["pid"])[1], signal.SIGKILL)
        out, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 1 and b"[FAIL] s1: ended by SIGKILL" in out and cluster.queue() == [], out


@linux_only
def test_with_minder_and_helper_killed_the_runner_itself_has_the_task_end_in_order(project, cluster):
    body = "import signal\nsignal.signal(signal.SIGTERM, lambda *_: (open('asked', 'w').close(), sys.exit(3)))\n" + SLEEP
    project.spec({"processor": project.processor("p", body), "launcher": cluster.words()})
    with project.start("--run-id", "r") as process:
        wait_for(lambda: project.exists("data/s1/started"))
        for pid in reversed(family_of(cluster.launches()[0]["pid"])[1:]):
            os.kill(pid, signal.SIGKILL)
        out, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 1 and b"[FAIL] s1: ended by SIGKILL" in out and b"would not end" not in out, out
    assert project.exists("asked") and cluster.queue() == [] and leases(project) == []


@linux_only
def test_with_the_helper_killed_what_runs_goes_on_and_nothing_more_is_started(project, cluster):
    project.write("data/in/1.txt", "1")
    project.write("data/in/2.txt", "2")
    body = "open('started', 'w').close()\nwhile not os.path.exists('gate'):\n    time.sleep(0.01)\nopen(os.path.join(out, os.path.basename(inputs[0])), 'w').close()\n"
    project.spec({"processor": project.processor("p", body), "forEach": "data/in/*.txt", "launcher": cluster.words(), "retry": {"attempts": 3}})
    with project.start("--run-id", "r", "--jobs", "1") as process:
        try:
            wait_for(lambda: project.exists("started"))
            os.kill(family_of(cluster.launches()[0]["pid"])[2], signal.SIGKILL)
        finally:
            project.write("gate", "")
        out, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 1 and b"the helper that starts launchers has died; run again: a new one must be started before" in out and b"[RETRY]" not in out, out
    assert project.exists("data/s1/1.txt") and not project.exists("data/s1/2.txt")
    project.ok("--run-id", "again")
    assert project.exists("data/s1/2.txt") and leases(project) == []


def kill_helper(cluster):
    """Kill the process that starts launchers; those that watch the launchers live on."""
    os.kill(family_of(cluster.launches()[0]["pid"])[2], signal.SIGKILL)


def end_of(process):
    """What a run says until it ends; one that does not is killed."""
    try:
        return process.communicate(timeout=LIMIT_S)[0]
    finally:
        process.kill()


IN_ORDER = "import signal\nsignal.signal(signal.SIGTERM, lambda *_: (print('ended in order'), sys.exit(0)))\n" + SLEEP


@linux_only
@pytest.mark.parametrize("how, code, said", [("time limit", 1, b"[FAIL] s1: timeout after 3 s"), ("ctrl-c", 130, b"[STOP] s1: interrupted")])
def test_with_the_helper_killed_time_limits_and_signals_reach_the_task(project, cluster, how, code, said):
    """It ends in order and with exit code 0, and is no success for that."""
    project.spec(dict({"processor": project.processor("p", IN_ORDER), "graceSec": 50, "launcher": cluster.words()}, **{"timeoutSec": 3} if how == "time limit" else {}))
    project.write("tmp/own", "")
    with project.start("--run-id", "r", env={"TMPDIR": str(project.path("tmp"))}) as process:
        wait_for(lambda: project.exists("data/s1/started"))
        kill_helper(cluster)
        if how == "ctrl-c":
            process.send_signal(signal.SIGINT)
        out = end_of(process)
    assert process.returncode == code and said in out and "ended in order" in project.read("state/logs/r/s1.1.log"), out
    assert cluster.queue() == [] and leases(project) == [] and os.listdir(str(project.path("tmp"))) == ["own"]


@linux_only
def test_with_the_helper_killed_a_job_that_waits_in_the_queue_is_cancelled(project, cluster):
    (cluster.folder / "hold").touch()
    project.spec({"processor": project.processor("p", SLEEP), "graceSec": 60, "launcher": cluster.words()})
    with project.start("--run-id", "r") as process:
        wait_for(cluster.queue)
        kill_helper(cluster)
        process.send_signal(signal.SIGINT)
        end_of(process)
    assert process.returncode == 130 and cluster.queue() == [] and leases(project) == []


@linux_only
def test_with_the_helper_killed_a_task_that_does_not_heed_is_ended_by_force(project, cluster):
    body = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + SLEEP
    project.spec({"processor": project.processor("p", body), "timeoutSec": 3, "graceSec": 0.1, "launcher": cluster.words()})
    with project.start("--run-id", "r") as process:
        wait_for(lambda: project.exists("data/s1/started"))
        kill_helper(cluster)
        out = end_of(process)
    assert process.returncode == 1 and b"[FAIL] s1: timeout after 3 s" in out and cluster.queue() == [] and leases(project) == [], out


@linux_only
@pytest.mark.parametrize("is_minder_killed", [False, True])
def test_where_the_lease_cannot_be_written_the_launcher_itself_is_asked(project, cluster, is_minder_killed):
    """As on a full disk: of the size that a file of theirs may have, the lease is already."""
    import resource
    project.spec({"processor": project.processor("p", SLEEP), "timeoutSec": 1.5, "graceSec": 50, "launcher": cluster.words()})
    with project.start("--run-id", "r") as process:
        wait_for(lambda: project.exists("data/s1/started"))
        _, minder, helper = family_of(cluster.launches()[0]["pid"])
        lease, = project.path("state/launch").glob("*.lease")
        for pid in (minder, helper):
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (lease.stat().st_size,) * 2)
        if is_minder_killed:
            os.kill(minder, signal.SIGKILL)
        out = end_of(process)
    assert process.returncode == 1 and (b"[FAIL] s1: ended by SIGKILL" if is_minder_killed else b"[FAIL] s1: timeout after 1.5 s\n") in out, out
    assert cluster.queue() == [] and leases(project) == []


@linux_only
def test_without_proc_a_time_limit_reaches_the_task(project):
    project.spec({"processor": project.processor("p", IN_ORDER), "graceSec": 50, "timeoutSec": 3, "launcher": ["/usr/bin/env"]})
    with without_proc(project, "missing", "--run-id", "r") as process:
        out = end_of(process)
    assert process.returncode == 1 and b"[FAIL] s1: timeout after 3 s" in out and "ended in order" in project.read("state/logs/r/s1.1.log"), out
    assert leases(project) == []


GATED = ("name = os.path.basename(inputs[0])\nopen('started.' + name, 'w').close()\nwhile not os.path.exists('gate.' + name):\n    time.sleep(0.01)\n"
         "open(os.path.join(out, name), 'w').close()\n")


@linux_only
def test_with_the_helper_killed_a_start_fails_at_once_while_another_task_is_at_work(project, cluster):
    """Which is not kept waiting, and is done well."""
    for name in "abc":
        project.write("in/" + name, name)
    project.spec({"processor": project.processor("p", GATED), "forEach": "in/*", "launcher": cluster.words()})
    with project.start("--run-id", "r", "--jobs", "2") as process:
        try:
            wait_for(lambda: project.exists("started.a") and project.exists("started.b"))
            kill_helper(cluster)
            project.write("gate.a", "")
            lines = []
            while not any("[FAIL]" in line for line in lines):
                lines.append(process.stdout.readline().decode())
                assert lines[-1], lines
        finally:
            project.write("gate.b", "")
        end_of(process)
    assert process.returncode == 1 and not project.exists("started.c") and project.exists("data/s1/b")
    assert lines[-1].startswith("[FAIL] s1 in/c: cannot start the launcher %s: the helper that starts launchers has died; run again: a new one must" % sys.executable)
    assert leases(project) == []
    project.write("gate.c", "")
    project.ok("--run-id", "again")


@linux_only
def test_with_the_helper_and_one_of_two_minders_killed_each_task_ends_in_order(project, cluster):
    for name in "ab":
        project.write("in/" + name, name)
    body = "import signal\nname = os.path.basename(inputs[0])\nsignal.signal(signal.SIGTERM, lambda *_: (open('asked.' + name, 'w').close(), sys.exit(3)))\nopen('started.' + name, 'w').close()\ntime.sleep(60)\n"
    project.spec({"processor": project.processor("p", body), "forEach": "in/*", "graceSec": 50, "launcher": cluster.words()})
    with project.start("--run-id", "r", "--jobs", "2") as process:
        wait_for(lambda: project.exists("started.a") and project.exists("started.b"))
        for pid in reversed(family_of(cluster.launches()[0]["pid"])[1:]):
            os.kill(pid, signal.SIGKILL)
        process.send_signal(signal.SIGINT)
        out = end_of(process)
    assert process.returncode == 130 and b"would not end" not in out, out
    assert project.exists("asked.a") and project.exists("asked.b") and cluster.queue() == [] and leases(project) == []


@linux_only
def test_a_daemon_of_the_processor_does_not_outlive_the_task(project, cluster):
    body = ("import subprocess\none = subprocess.Popen([sys.executable, '-c', 'import os, time; os.setsid(); time.sleep(60)'], env={}, close_fds=True)\n"
            "open(out + '/pid', 'w').write(str(one.pid))\n")
    project.spec({"processor": project.processor("p", body), "launcher": cluster.words()})
    project.ok("--run-id", "r")
    assert not is_alive(int(project.read("data/s1/pid")))


# --- launchers that are not what they should be ----------------------------------------------------------------------

def test_a_launcher_that_runs_the_words_twice_does_the_work_once_and_fails(project):
    """A job that is put into the queue again, say: what an appending processor makes would be double."""
    project.write("data/in.txt", "x\n")
    project.write("launch.sh", '#!/bin/sh\n"$@"\nexec "$@"\n', executable=True)
    project.spec({"processor": project.processor("p", "open(out + '/o', 'a').write(open(inputs[0]).read())\nopen('times', 'a').write('x')\n"), "inputs": ["data/in.txt"],
                  "launcher": [str(project.path("launch.sh"))]})
    done = project.run("--run-id", "r")
    assert done.code != 0 and project.read("times") == "x" and not project.exists("data/s1/.s1.done"), done
    assert "it has been started before: a launcher may start it once; nothing was started" in project.read("state/logs/r/s1.1.log")
    assert leases(project) == []


REQUEUE = """
import os, signal, subprocess, sys, time
first = subprocess.Popen(sys.argv[1:], start_new_session=True)
while not os.path.exists("begun") or not os.path.getsize("begun"):
    time.sleep(0.01)
os.killpg(first.pid, signal.SIGKILL)
first.wait()
os.execv(sys.argv[1], sys.argv[1:])
"""


def test_a_task_that_is_queued_again_after_its_machine_has_crashed_is_not_started_again(project):
    project.write("requeue.py", REQUEUE)
    project.spec({"processor": project.processor("p", "open(out + '/o', 'a').write('x')\nopen('begun', 'a').write('x')\nif len(open('begun').read()) < 2: time.sleep(60)\n"),
                  "launcher": [sys.executable, str(project.path("requeue.py"))]})
    done = project.run("--run-id", "r")
    assert done.code == 1 and project.read("begun") == "x" and not project.exists("data/s1/.s1.done"), done
    assert "it has been started before: a launcher may start it once; nothing was started" in project.read("state/logs/r/s1.1.log")


RELAY = """
import os, signal, subprocess, sys
task = subprocess.Popen(sys.argv[1:], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
while not os.path.exists("begun"):
    pass
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_task_whose_output_nobody_reads_any_more_is_asked_to_stop(project):
    """Its launcher, which passed its output on, was killed."""
    project.write("relay.py", RELAY)
    body = "import signal\nsignal.signal(signal.SIGTERM, lambda *_: (open('asked', 'w').close(), os._exit(3)))\nopen('begun', 'w').close()\ntime.sleep(60)\n"
    project.spec({"processor": project.processor("p", body), "graceSec": 50, "launcher": [sys.executable, str(project.path("relay.py"))]})
    done = project.run("--run-id", "r")
    assert done.code == 1 and "[FAIL] s1: ended by SIGKILL" in done.out and project.exists("asked") and leases(project) == [], done
    assert "left no report" not in done.out, done


def test_a_launcher_that_drops_variables_and_hands_its_words_to_a_shell_changes_nothing(project):
    """The shell gets what is this test's, and may have blanks (interpreter, runner, lease), as one word each; nothing else is there to be read anew."""
    plain = project
    plain.write("in/$HOME * `touch ran`;x.txt", "x")
    plain.write("launch.sh", "#!/bin/sh\nwords=\nfor word do\n  case $word in */*) word=\"'$word'\";; esac\n  words=\"$words $word\"\ndone\nexec env -i /bin/sh -c \"$words\"\n", executable=True)
    body = "open(out + '/o', 'w').write(repr([sys.argv[1:], os.environ.get('MODE'), os.environ['PIPELINE_STAGE_NAME']]))\n"
    plain.spec({"processor": plain.processor("p", body), "args": ["two  spaces", "p*", "$HOME"], "env": {"MODE": "strict"}, "inputs": ["in/*"],
                "launcher": [str(plain.path("launch.sh"))]})
    plain.ok()
    assert plain.read("data/s1/o") == repr([["two  spaces", "p*", "$HOME", "in/$HOME * `touch ran`;x.txt"], "strict", "s1"]) and not plain.exists("ran")


STOPPING = """
import os, signal, subprocess, sys, time
first = subprocess.Popen(sys.argv[1:])
while not os.path.exists("begun"):
    time.sleep(0.01)
os.unlink("begun")
first.send_signal(signal.SIGTERM)
raise SystemExit(first.wait() % 256)
"""


def test_a_task_that_the_engine_has_stopped_is_not_the_fault_of_its_file(project):
    project.write("in/a", "a")
    project.write("in/b", "b")
    project.write("stop.py", STOPPING)
    project.spec({"processor": project.processor("p", "open('begun', 'w').close()\ntime.sleep(60)\n"), "forEach": "in/*", "maxFailedTasks": 2,
                  "launcher": [sys.executable, str(project.path("stop.py"))]})
    done = project.run("--run-id", "r", "--jobs", "1")      # else one's begin might be taken for the other's
    assert done.code == 1 and "[FAIL] s1 in/a: exit code 143; its machine's engine has stopped it (signal 15)\n" in done.out, done
    assert "failed for what maxFailedTasks does not allow" in done.out, done


# As Slurm does, which signals all of a task at once: by the time the guard looks, the processor is gone, and its own signal noted.
STOPPING_ALL = """
import os, signal, subprocess, sys, time
def state_of(pid):
    with open("/proc/%d/stat" % pid) as file:
        return file.read().rpartition(")")[2].split()[0]
guard = subprocess.Popen(sys.argv[1:])
while not os.path.exists("begun"):
    time.sleep(0.01)
processor = int(open("begun").read())
os.unlink("begun")
for pid, number, state in ((guard.pid, signal.SIGSTOP, "T"), (processor, signal.SIGTERM, "Z")):
    os.kill(pid, number)
    while state_of(pid) != state:
        time.sleep(0.01)
guard.send_signal(signal.SIGTERM)
guard.send_signal(signal.SIGCONT)
raise SystemExit(guard.wait() % 256)
"""


@linux_only
def test_a_task_that_the_engine_has_stopped_together_with_its_guard_is_not_the_fault_of_its_file(project):
    project.write("in/a", "a")
    project.write("in/b", "b")
    project.write("stop.py", STOPPING_ALL)
    body = "with open('.begun', 'w') as file:\n    file.write(str(os.getpid()))\nos.rename('.begun', 'begun')\ntime.sleep(60)\n"
    project.spec({"processor": project.processor("p", body), "forEach": "in/*", "maxFailedTasks": 2, "launcher": [sys.executable, str(project.path("stop.py"))]})
    done = project.run("--run-id", "r", "--jobs", "1")
    assert done.code == 1 and "[FAIL] s1 in/a: exit code 143; its machine's engine has stopped it (signal 15)\n" in done.out, done
    assert "failed for what maxFailedTasks does not allow" in done.out, done


# How long a task's own signal is waited for, given in seconds.
PATIENT = """
import sys
sys.path.insert(0, %r)
import node_exec, offline_guard
node_exec.OWN_SIGNAL_S = float(sys.argv[2])
raise SystemExit(node_exec.run_leased(sys.argv[1], offline_guard))
"""


# A machine on which no more files can be opened, from the last step before the signals on.
WITHOUT_DESCRIPTORS = """
import os, resource, subprocess, sys
sys.path.insert(0, %r)
import node_exec, offline_guard, process_tree
def use_up():
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
process_tree.become_subreaper = use_up
raise SystemExit(node_exec.run_leased(sys.argv[1], offline_guard))
"""


def test_a_task_that_finds_no_descriptor_says_that_it_cannot_start(tmp_path):
    path = lease_for(tmp_path, "no", "touch", str(tmp_path / "started"))
    done = subprocess.run([sys.executable, "-c", WITHOUT_DESCRIPTORS % str(ROOT / "src"), path], stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60,
                          env=without_coverage())
    first, second = done.stderr.decode().splitlines()
    assert done.returncode == 126 and first == "[OFFLINE] cannot start touch on %s: Too many open files" % os.uname().nodename, done
    assert second == "[OFFLINE] cannot write the report %s: Too many open files" % (tmp_path / "report") and not (tmp_path / "started").exists()


def run_patiently(path, seconds):
    """In a process of its own, which is the guard."""
    return subprocess.run([sys.executable, "-c", PATIENT % str(ROOT / "src"), path, seconds], stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60)


@pytest.mark.parametrize("end, code", [("kill -TERM $$", 143), ("kill -HUP $$", 129), ("exit 143", 143)])
def test_the_signal_of_the_engine_may_come_after_the_processor_is_gone(tmp_path, end, code):
    """A child sees that the guard has taken the processor's end before it signals the guard."""
    script = "guard=$PPID; ( while kill -0 $$ 2>/dev/null; do sleep 0.01; done; kill -TERM $guard ) & %s" % end
    done = run_patiently(lease_for(tmp_path, "no", "sh", "-c", script), "50")
    told = node_report.read(str(tmp_path / "report"))
    assert (done.returncode, told.exit_code, told.stopped_by) == (code, code, signal.SIGTERM), done


@pytest.mark.parametrize("how", ["exit 0", "exit 3", "kill -KILL $$", "asked to stop"])
def test_a_task_that_no_engine_has_stopped_waits_for_no_signal(tmp_path, how):
    path = lease_for(tmp_path, "no", "sh", "-c", how if how != "asked to stop" else "echo stop >>'%s'; sleep 60" % launch_lease.lease_path(str(tmp_path), "s", "tok.1"))
    done = run_patiently(path, "1000")
    assert done.returncode == {"exit 0": 0, "exit 3": 3, "kill -KILL $$": 137}.get(how, 143), done
    assert node_report.read(str(tmp_path / "report")).stopped_by == 0


def test_what_a_killed_launcher_has_beside_it_may_cancel_its_job(project):
    """As srun's second process does. It is done when it has had its time, whatever that is; killed at once it never would be."""
    project.write("launch.sh", '#!/bin/sh\n( trap "" TERM; while kill -0 $$ 2>/dev/null; do sleep 0.05; done; sleep 0.5; touch cancelled ) &\necho $$ > pid\n"$@"\n', executable=True)
    project.spec({"processor": project.processor("p", "os.kill(int(open('pid').read()), 9)\ntime.sleep(60)\n"), "graceSec": 0, "launcher": [str(project.path("launch.sh"))]})
    done = project.run("--run-id", "r")
    assert done.code == 1 and "[FAIL] s1: ended by SIGKILL" in done.out and project.exists("cancelled"), done


@pytest.mark.parametrize("how, said", [("timeout", "[FAIL] s1: timeout after 1 s; the task had not begun: its launcher was still waiting"), ("ctrl-c", "[STOP] s1: interrupted")])
def test_a_launcher_that_does_not_cancel_is_told(project, how, said):
    """Its job may still be in the queue. A driver shortens the time that it has."""
    project.write("launch.sh", '#!/bin/sh\ntrap "" TERM\ntouch waiting\nwhile :; do sleep 0.05; done\n', executable=True)
    project.spec(dict({"processor": project.processor("p", ""), "graceSec": 0, "launcher": [str(project.path("launch.sh"))]}, **{"timeoutSec": 1} if how == "timeout" else {}))
    driver = project.write("driver.py", "import os, runpy, sys\nrunner = sys.argv[1]\nsys.path.insert(0, os.path.dirname(runner))\nimport process_tree\n"
                                        "process_tree.LAUNCHER_S = 0.2\nsys.argv[:] = sys.argv[1:]\nrunpy.run_path(runner, run_name='__main__')\n")
    argv = project.argv("--run-id", "r")
    with subprocess.Popen([argv[0], str(driver)] + argv[1:], stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        wait_for(lambda: project.exists("waiting"))
        if how == "ctrl-c":
            process.send_signal(signal.SIGINT)
        out = process.communicate(timeout=LIMIT_S)[0].decode()
    assert process.returncode == (1 if how == "timeout" else 130) and said in out, out
    assert "[NOTE] s1: the launcher did not end in time when it was asked to, and was killed: look whether its job is still in the queue" in out, out


@pytest.mark.parametrize("more", [{"forEach": ["in/*"]}, {"inputs": ["in/*"]}], ids=["tasks", "one"])
def test_a_launcher_that_loses_the_exit_code_makes_no_success(project, more):
    """A pipe behind srun, say: what a failed processor left would be taken for whole."""
    project.write("in/a", "a")
    project.write("launch.sh", '#!/bin/sh\n"$@"\nexit 0\n', executable=True)
    body = "open(out + '/o', 'w').write('par')\nsys.exit(75 if os.environ['PIPELINE_ATTEMPT'] == '1' else 5)\n"
    project.spec(dict({"processor": project.processor("p", body), "launcher": [str(project.path("launch.sh"))], "retry": {"attempts": 3, "baseDelayMs": 1, "exitCodes": [75]}}, **more))
    done = project.run("--run-id", "r")
    assert done.code == 1 and "attempt 1/3: exit code 75, which the launcher did not give back" in done.out and "exit code 5, which the launcher did not give back" in done.out, done
    assert "attempt 2/3" not in done.out and not project.exists("data/s1/o" if "forEach" in more else "data/s1/.s1.done"), done
    stage, = stages_of(project)
    assert [one["exitCode"] for one in stage["tries"]] == ([] if "forEach" in more else [75, 5]), stage["tries"]


@pytest.mark.parametrize("more", [{"forEach": ["in/*"]}, {"inputs": ["in/*"]}], ids=["tasks", "one"])
def test_a_machine_on_which_the_output_folder_is_not_there_starts_nothing(project, more):
    """The kit would make it there, and all that comes to be would be lost: the old outputs would go, and nobody would say so."""
    for name in "ab":
        project.write("in/" + name, name)
    folder = project.path("data/s1")
    project.write("launch.sh", '#!/bin/sh\n[ ! -e "%s" ] || { mv "%s" "%s.away"; "$@"; code=$?; mv "%s.away" "%s"; exit $code; }\nexec "$@"\n' % (project.path("away"), folder, folder, folder, folder),
                  executable=True)
    stage = dict({"processor": project.processor("p", "os.makedirs(out, exist_ok=True)\nopen(out + '/' + os.path.basename(inputs[0]), 'w').write(open(inputs[0]).read())\n"),
                  "launcher": [str(project.path("launch.sh"))]}, **more)
    if "forEach" in more:
        stage["maxFailedTasks"] = 9         # it is not the file's fault
    project.spec(stage)
    project.ok("--jobs", "1")
    project.write("in/a", "changed")
    project.write("away", "")
    done = project.run("--run-id", "r", "--jobs", "1")
    assert done.code == 1 and "is not there on %s: all machines must see the same files" % os.uname().nodename in done.out, done
    project.path("away").unlink()
    project.ok("--jobs", "1")
    assert project.read("data/s1/a") == "changed"


def test_a_launcher_that_runs_nothing_makes_no_success(project, cluster):
    project.spec({"processor": project.processor("p", ""), "launcher": cluster.words("--swallow")})
    done = project.run("--run-id", "r")
    assert done.code == 1 and "the task left no report state/logs/r/s1.1.node: the launcher came back before the task had ended" in done.out, done


def test_a_folder_in_the_place_of_a_report_is_no_report(project):
    project.write("launch.sh", '#!/bin/sh\n"$@"; code=$?\nrm state/logs/r/s1.1.node; mkdir state/logs/r/s1.1.node\nexit $code\n', executable=True)
    project.spec({"processor": project.processor("p", ""), "launcher": ["./launch.sh"]})
    done = project.run("--run-id", "r")
    assert done.code == 1 and "the task left no report state/logs/r/s1.1.node" in done.out, done


@pytest.mark.parametrize("how, code", [("exit 3", 1), ("kill -9 $$", 1), ("sleep 60", 0)], ids=["fails", "dies", "too slow"])
def test_a_launcher_that_fails_is_not_the_fault_of_a_file(project, how, code):
    """A node that died, a queue that is closed: the good output of an earlier version is not given up for it. A time limit is the file's."""
    for name in "ab":
        project.write("in/" + name, name)
    project.write("launch.sh", '#!/bin/sh\n[ -e "%s" ] && [ "$PIPELINE_TASK" = in/a ] || exec "$@"\n%s\n' % (project.path("away"), how), executable=True)
    project.spec({"processor": project.processor("p", "open(out + '/' + os.path.basename(inputs[0]), 'w').write(open(inputs[0]).read())\n"), "forEach": "in/*",
                  "launcher": [str(project.path("launch.sh"))], "maxFailedTasks": 9, "timeoutSec": 4, "graceSec": 0})
    project.ok()
    project.write("in/a", "other")
    project.write("in/b", "more")
    project.write("away", "")
    done = project.run("--run-id", "r")
    assert done.code == code and project.read("data/s1/b") == "more", done
    assert project.exists("data/s1/a") == bool(code), done
    assert ("; the task left no report state/logs/r/s1" in done.out and ": the launcher or the machine failed" in done.out) == bool(code), done
    assert ("timeout after" in done.out) != bool(code), done


def test_the_report_of_another_attempt_makes_no_success(project, cluster):
    project.spec({"processor": project.processor("p", "open(out + '/o', 'w').close()\n"), "launcher": cluster.words()})
    project.ok("--run-id", "r")
    report = project.read("state/logs/r/s1.1.node")
    project.write("state/logs/n/s1.1.node", report)
    project.write("data/s1/.s1.done", "")
    project.spec({"processor": "bin/p.py", "launcher": cluster.words("--swallow")})
    done = project.run("--run-id", "n")
    assert done.code == 1 and "the task left no report" in done.out, done


def test_a_launcher_that_is_not_there(project):
    project.spec({"processor": project.processor("p", ""), "launcher": ["no-such-launcher"]})
    done = project.run("--run-id", "r")
    assert done.code == 1 and "[FAIL] s1: cannot start the launcher no-such-launcher: No such file or directory\n" in done.out, done
    assert leases(project) == []


SPOILED = [
    ("#!/bin/sh\r\nexec \"$@\"\r\n", "its first line ends with a carriage return (CRLF)%s save it with plain line ends"),
    ("#!/no/such/shell\nexec \"$@\"\n", "its first line names /no/such/shell, which is not there%s install it, or name another"),
    ("exec \"$@\"\n", "a script needs a first line such as #!/bin/sh"), ("\ufeff#!/bin/sh\nexec \"$@\"\n", "a byte order mark stands before its first line%s save it without")]


@pytest.mark.parametrize("text, why", SPOILED, ids=["line ends", "interpreter", "no first line", "byte order mark"])
def test_a_launcher_that_cannot_be_started_is_explained_and_refused_by_validate(project, text, why):
    at_validate, at_run = why.replace("%s", ";"), why.replace("%s", ":")
    project.write("launch.sh", text, executable=True)
    for word in ("./launch.sh", str(project.path("launch.sh"))):
        project.spec({"processor": project.processor("p", "")}, {"processor": "bin/p.py"}, defaults={"launcher": [word]})
        done = project.run("validate")
        assert done.code == 2 and done.err.count("\n") == 1, done
        assert ": stages[0].launcher[0]: " in done.err and " cannot start: " in done.err and done.err.endswith(at_validate + "\n"), done
        done = project.run("--only", "s1")
        assert done.code == 1 and "[FAIL] s1: cannot start the launcher %s: " % word in done.out and "; %s\n" % at_run in done.out, done
    assert leases(project) == []


def test_a_launcher_that_is_not_executable_is_told_what_to_do(project):
    project.write("launch.sh", "#!/bin/sh\nexec \"$@\"\n")
    project.spec({"processor": project.processor("p", "pass"), "launcher": ["./launch.sh"]})
    done = project.run("validate")
    assert done.code == 2 and "launch.sh is not executable; chmod +x it" in done.err, done
    done = project.run()
    assert done.code == 1 and "[FAIL] s1: cannot start the launcher ./launch.sh: Permission denied; chmod +x it\n" in done.out, done


def test_a_launcher_that_is_not_there_is_refused_by_validate_where_the_root_says_so(project):
    """Elsewhere it may be there on the machine of the runs. What a stage makes comes in time."""
    project.spec({"processor": project.processor("p", "")}, {"processor": "bin/p.py", "launcher": ["bin/none"]}, {"processor": "bin/p.py", "launcher": ["data/s1/made"]})
    done = project.run("validate")
    assert done.code == 2 and done.err.endswith(": stages[1].launcher[0]: there is no file bin/none\n") and done.err.count("\n") == 1, done
    project.spec({"processor": "bin/p.py", "launcher": ["/no/such/launcher"]})
    assert "[NOTE] s1: there is no file /no/such/launcher\n" in project.ok("validate").out


def test_a_launcher_found_on_the_path_that_cannot_be_started_is_explained(project):
    """Which one of that name another machine has, validate does not know."""
    project.write("tools/submit", "#!/no/such/shell\n", executable=True)
    project.spec({"processor": project.processor("p", ""), "launcher": ["submit"], "env": {"PATH": str(project.path("tools"))}})
    project.ok("validate")
    done = project.run()
    assert done.code == 1 and "cannot start the launcher submit: No such file or directory; its first line names /no/such/shell, which is not there: install it" in done.out, done


@pytest.mark.parametrize("launcher, made", [("./data/s1/launch.sh", True), ("./{{x}}.sh", False)], ids=["made by a stage", "with a brace"])
def test_a_launcher_that_may_start_is_not_refused_by_validate(project, launcher, made):
    project.write("data/s1/launch.sh" if made else "{x}.sh", "" if made else "#!/bin/sh\nexec \"$@\"\n", executable=True)
    project.write("{{x}}.sh", "", executable=True)
    project.spec({"processor": project.processor("p", "")}, {"processor": "bin/p.py", "launcher": [launcher]})
    assert ("[NOTE] s2: \"./data/s1/launch.sh\" cannot start: it is empty" in project.ok("validate").out) == made


# --- leases ----------------------------------------------------------------------------------------------------------

def exec_leased(path):
    return subprocess.run([sys.executable, str(ROOT / "src" / "offline_guard.py"), "exec", "--lease", path],
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60)


@pytest.mark.parametrize("spoil, why", [
    (os.unlink, b"the run that asked for this task is over"), (launch_lease.ask_to_stop, b"it was asked to stop before it started"),
    (lambda path: Path(path).write_bytes(b"{}\n"), b"is not a lease that this program knows")])
def test_a_task_without_a_good_lease_does_not_start(tmp_path, spoil, why):
    path = lease_for(tmp_path, "no", "touch", str(tmp_path / "started"))
    spoil(path)
    done = exec_leased(path)
    assert done.returncode == 6 and why in done.stderr and not (tmp_path / "started").exists(), done


def test_a_lease_is_held_by_one_and_taken_back_when_it_is_free(tmp_path):
    path = lease_for(tmp_path, "no")
    held = launch_lease.Held(path)
    assert launch_lease.is_held(path) and not held.is_stop_asked()
    with pytest.raises(launch_lease.LeaseProblem, match="runs already"):
        launch_lease.Held(path)
    assert not launch_lease.take_back(path, 0) and held.is_stop_asked()
    assert launch_lease.end_left_behind(str(tmp_path), "other", "out", {"other", "s"}) == []
    for stage, known in (("s", {"s"}), ("other", {"other"})):
        assert launch_lease.end_left_behind(str(tmp_path), stage, "out", known) == [path]
    assert "still runs (s~tok.1.lease)" in str(launch_lease.still_runs("s", [path]))
    os.close(held.descriptor)
    assert launch_lease.end_left_behind(str(tmp_path), "s", "out", {"s"}) == [] and leases_in(tmp_path) == []


def test_that_a_task_has_begun_is_on_the_disk_before_it_is_started(tmp_path, monkeypatch):
    """Its machine may crash, and the engine queue it again."""
    path, synced, fsync = lease_for(tmp_path, "no"), [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (synced.append(os.fstat(descriptor).st_size), fsync(descriptor)))
    held = launch_lease.Held(path)
    assert launch_lease.has_begun(path) and synced == [os.path.getsize(path)]
    os.close(held.descriptor)


@pytest.mark.parametrize("written, folder, is_near", [
    ("data/a", "data/a", True), ("data/a/.s.tasks/1", "data/a", True), ("data", "data/a/b", True), ("data/a", "data/ab", False), ("data/ab", "data/a", False), ("Data/a", "data/A/b", True)])
def test_a_lease_of_a_stage_of_the_spec_is_taken_back_before_what_writes_near_it(tmp_path, written, folder, is_near):
    lease_for(tmp_path, "no", environment={"PIPELINE_OUTPUT_DIR": str(tmp_path / written)})
    assert launch_lease.end_left_behind(str(tmp_path), "other", folder, {"other", "s"}) == []
    assert (leases_in(tmp_path) == []) == is_near


def test_leases_of_a_stage_that_somebody_holds_are_left_alone_unless_our_folder_is_theirs(tmp_path):
    """Nobody else is at work in a folder that a run holds: what writes there is of a dead one, whoever has the stage of that name now."""
    path = lease_for(tmp_path, "no", environment={"PIPELINE_OUTPUT_DIR": str(tmp_path / "data" / "s")})
    (tmp_path / "locks").mkdir()
    guard = os.open(stage_locks.guard_path(str(tmp_path), "s"), os.O_RDWR | os.O_CREAT)
    assert stage_locks.try_kernel_lock(guard)
    assert launch_lease.end_left_behind(str(tmp_path), "other", "out", {"other"}) == []
    assert launch_lease.end_left_behind(str(tmp_path), "other", "data", {"other", "s"}, {"s"}) == []
    assert len(leases_in(tmp_path)) == 2 and b"stop" not in Path(path).read_bytes()
    assert launch_lease.end_left_behind(str(tmp_path), "other", "data", {"other"}) == [] and leases_in(tmp_path) == []
    lease_for(tmp_path, "no")
    os.close(guard)
    assert launch_lease.end_left_behind(str(tmp_path), "other", "out", {"other"}) == [] and leases_in(tmp_path) == []


@linux_only
def test_two_launched_stages_of_a_run_are_at_work_in_one_folder(project, cluster):
    """The second does not take the first's task for one that a dead run has left: it waits for it to be at work, and ends it not."""
    first = "open('first', 'w').close()\nwhile not os.path.exists('second'):\n    time.sleep(0.01)\nopen(out + '/a', 'w').close()\n"
    second = "while not os.path.exists('first'):\n    time.sleep(0.01)\nopen('second', 'w').close()\nopen(out + '/b', 'w').close()\n"
    project.spec({"name": "one", "processor": project.processor("p", first), "outputDir": "data/both", "outputs": ["a"], "launcher": cluster.words()},
                 {"name": "two", "processor": project.processor("q", second), "outputDir": "data/both", "outputs": ["b"], "launcher": cluster.words()}, order="graph")
    done = project.ok("--jobs", "2")
    assert "asked to stop" not in done.out and leases(project) == []


@pytest.mark.parametrize("known", [{"other"}, {"other", "s"}], ids=["not in the spec", "in the spec"])
def test_a_lease_of_another_stage_that_cannot_be_opened_stops_no_stage(tmp_path, known):
    """Another user's, say; here a link, which nobody follows, not even root."""
    path = lease_for(tmp_path, "no")
    os.rename(path, str(tmp_path / "there"))
    os.symlink(str(tmp_path / "there"), path)
    assert launch_lease.end_left_behind(str(tmp_path), "other", "out", known) == [] and os.path.islink(path)
    with pytest.raises(OSError):
        launch_lease.end_left_behind(str(tmp_path), "s", "out", {"s"})


def leases_in(root):
    return os.listdir(root / "state" / "launch")


# --- reports ---------------------------------------------------------------------------------------------------------

def test_a_report_has_the_last_word(tmp_path):
    report = node_report.NodeReport(str(tmp_path / "r"), "tok")
    assert report.add("p", 5, "IPv4 TCP", True) and not report.add("p", 6, "IPv4 TCP", True)
    told = node_report.read(str(tmp_path / "r"))
    assert not told.is_whole and [one["program"] for one in told.refusals] == ["p"]
    (tmp_path / "r").write_bytes(b"")           # a processor that wants to leave no trace
    report.end("n1", {"method": "seccomp"}, cpu_us=1500000)
    told = node_report.read(str(tmp_path / "r"))
    assert (told.is_whole, told.token, told.host, told.cpu_s) == (True, "tok", "n1", 1.5) and [(one["kind"], one["count"]) for one in told.refusals] == [("IPv4 TCP", 2)]


def test_why_a_report_cannot_be_written_is_in_the_log_of_the_attempt(project):
    """Here for a folder in its place, else for a full disk. Of what was written before nothing stays."""
    project.write("launch.sh", '#!/bin/sh\nmkdir state/logs/r/s1.1.node\nexec "$@"\n', executable=True)
    project.spec({"processor": project.processor("p", ""), "launcher": ["./launch.sh"]})
    done = project.run("--run-id", "r")
    assert done.code == 1 and "the task left no report state/logs/r/s1.1.node" in done.out, done
    assert project.read("state/logs/r/s1.1.log") == "[OFFLINE] cannot write the report %s: Is a directory\n" % project.path("state/logs/r/s1.1.node")
    assert [path.name for path in project.path("state/logs/r").glob("s1.1.node*")] == ["s1.1.node"]


def test_many_kinds_of_refusals_are_one_entry_at_last(tmp_path):
    report = node_report.NodeReport(str(tmp_path / "r"), "tok")
    for number in range(node_report.MAX_REFUSALS + 50):
        report.add("p%d" % number, 1, "IPv4 TCP", True)
    report.end("n1", {"method": "seccomp"})
    refusals = node_report.read(str(tmp_path / "r")).refusals
    assert len(refusals) == node_report.MAX_REFUSALS + 1 and refusals[-1]["count"] == 50 and refusals[-1]["counted"]


GOOD = {"token": "tok", "host": "n", "kernel": {"method": "seccomp"}, "why": "", "isUnclosed": False, "cpuUs": 1, "maxRssBytes": 1, "exitCode": 0, "stoppedBy": 0, "refusals": []}


@pytest.mark.parametrize("data", [
    b"", b"\n", b"x\n", b"[]\n", b'{"end": 1}\n', b'{"end": {}}\n', json.dumps({"end": GOOD}).encode() + b"\nmore\n", json.dumps({"end": GOOD}).encode(),
    json.dumps({"end": dict(GOOD, cpuUs=True)}).encode() + b"\n", json.dumps({"end": dict(GOOD, refusals=[1])}).encode() + b"\n",
    json.dumps({"end": dict(GOOD, kernel={})}).encode() + b"\n", b"\xff\n", b"[" * 100000 + b"\n"])
def test_a_report_that_is_none_proves_nothing(tmp_path, data):
    (tmp_path / "r").write_bytes(data)
    assert not node_report.read(str(tmp_path / "r")).is_whole


def test_a_pipe_link_or_folder_in_the_place_of_a_report(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "good").write_bytes(json.dumps({"end": GOOD}).encode() + b"\n")
    (tmp_path / "link").symlink_to(tmp_path / "good")
    assert node_report.read(str(tmp_path / "good")).is_whole
    assert not node_report.read(str(tmp_path / "pipe")).is_whole and not node_report.read(str(tmp_path / "link")).is_whole
    assert not node_report.read(str(tmp_path)).is_whole


# --- the helper, as a pool of attempts will use it -------------------------------------------------------------------

HELPER = """
import os, select, sys
sys.path.insert(0, %r)
import launch_helper, launch_lease
helper = launch_helper.LaunchHelper()
root, started = sys.argv[1], {}
for number in range(3):
    lease = launch_lease.lease_path(root, "s", "t.%%d" %% number)
    launch_lease.create(lease, {})
    one = helper.start(["sh", "-c", "echo out %%d; sleep 0.%%d; exit %%d" %% (number, 3 - number, number)], dict(os.environ), root, "t.%%d" %% number, lease)
    started[one.output] = one
output = {one: b"" for one in started}
left = set(started.values())
while left:
    ready, _, _ = select.select(list(started) + [helper.descriptor], [], [])
    for one in list(left):
        if one.take_end() is not None:
            left.remove(one)
    for descriptor in [one for one in ready if one in started]:
        data = os.read(descriptor, 100)
        output[descriptor] += data
        if not data:
            started.pop(descriptor)
print(sorted(output.values()))
helper.close()
"""


def test_folders_of_helpers_that_were_killed_go(tmp_path):
    old, held, new, other = (tmp_path / name for name in ("pipeline-launch-old", "pipeline-launch-held", "pipeline-launch-new", "somebody-elses"))
    for folder in (old, held, new, other):
        folder.mkdir()
        (folder / "1.output").touch()
        os.utime(str(folder), (1, 1) if folder is not new else None)
    (tmp_path / "pipeline-launch-link").symlink_to(other)
    descriptor = os.open(str(held), os.O_RDONLY)
    assert stage_locks.try_kernel_lock(descriptor)
    launch_helper.remove_abandoned(str(tmp_path))
    os.close(descriptor)
    assert sorted(os.listdir(str(tmp_path))) == ["pipeline-launch-held", "pipeline-launch-link", "pipeline-launch-new", "somebody-elses"]
    assert os.listdir(str(other)) == ["1.output"]


def test_a_folder_that_may_not_be_listed_or_locked_stops_no_launcher(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied")
    monkeypatch.setattr(launch_helper.os, "listdir", refuse)
    launch_helper.remove_abandoned(str(tmp_path))
    monkeypatch.undo()
    code = ("import sys\nsys.path.insert(0, %r)\nimport launch_helper, stage_locks\ndef refuse(descriptor):\n    raise OSError(37, 'No locks available')\n"
            "stage_locks.try_kernel_lock = refuse\nlaunch_helper.LaunchHelper().close()\n" % str(ROOT / "src"))
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_lease_that_would_be_cut_short_at_reading_is_not_made(tmp_path):
    path = launch_lease.lease_path(str(tmp_path), "s", "tok.1")
    with pytest.raises(OSError, match="the command and its variables take more than") as caught:
        launch_lease.create(path, {"environment": {"X": "x" * launch_lease.MAX_BYTES}})
    assert caught.value.errno == errno.E2BIG and caught.value.filename == path and leases_in(tmp_path) == []


def test_several_launches_at_once(tmp_path):
    done = subprocess.run([sys.executable, "-c", HELPER % str(ROOT / "src"), str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60)
    assert done.returncode == 0 and done.stdout == b"[b'out 0\\n', b'out 1\\n', b'out 2\\n']\n", done
    assert leases_in(tmp_path) == []


STOOD_STILL = """
import os, sys, time, types
sys.path.insert(0, %r)
import launch_helper, launch_lease
helper = launch_helper.LaunchHelper()
wait, passed = helper._wait, []
launch_helper.time = types.SimpleNamespace(monotonic=lambda: 1000.0 * len(passed) + time.monotonic())
def first_wait(seconds):                        # long ago, and the answer has come meanwhile or not
    passed.append(seconds)
    helper._wait = wait
    if sys.argv[2] == "this process":
        wait(60)
helper._wait = first_wait
lease = launch_lease.lease_path(sys.argv[1], "s", "t.1")
launch_lease.create(lease, {})
one = helper.start(["sh", "-c", "exit 7"], dict(os.environ), sys.argv[1], "t.1", lease)
while one.take_end() is None:
    wait(60)
print(one.code)
"""


@pytest.mark.parametrize("what", ["this process", "the machine"])
def test_a_launcher_is_started_though_the_runner_stood_still_meanwhile(tmp_path, what):
    done = subprocess.run([sys.executable, "-c", STOOD_STILL % str(ROOT / "src"), str(tmp_path), what], stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60)
    assert done.stdout == b"7\n" and leases_in(tmp_path) == [], done


HELD = """
import os, sys
sys.path.insert(0, %r)
import launch_helper, launch_lease
launch_helper.TASK_S = 0.1
helper = launch_helper.LaunchHelper()
lease = launch_lease.lease_path(sys.argv[1], "s", "t.1")
launch_lease.create(lease, {})
held = launch_lease.Held(lease)                 # this process is the task
one = helper.start(["true"], dict(os.environ), sys.argv[1], "t.1", lease)
while one.take_end() is None:
    helper._wait(10)
print(one.code, one.end(), held.is_stop_asked())
"""


def test_a_task_that_outlives_its_launcher_is_a_survivor(tmp_path):
    done = subprocess.run([sys.executable, "-c", HELD % str(ROOT / "src"), str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60)
    assert done.stdout == b"0 ['the task on its machine'] True\n", done
    assert sorted(leases_in(tmp_path)) == ["s~t.1.here", "s~t.1.lease"]


# Something happens to the helper or the minder of the first launch; the second goes well.
DISTURBED = """
import errno, os, signal, sys
sys.path.insert(0, %r)
import launch_helper, launch_lease
launch_helper.START_S = 600.0
root, forks, fork = sys.argv[1], [], os.fork
def fork_but_once():
    forks.append(1)
    if len(forks) == 3:                         # the runner's, the helper's from its family, the minder's
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    return fork()
if sys.argv[2] == "no process":
    os.fork = fork_but_once
start = launch_helper.Minder._start
def start_but_once(minder):
    if sys.argv[2] == "killed" and minder.command["number"] == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return start(minder)
launch_helper.Minder._start = start_but_once
helper = launch_helper.LaunchHelper()
for number in (1, 2):
    lease = launch_lease.lease_path(root, "s", "t.%%d" %% number)
    launch_lease.create(lease, {})
    here = launch_lease.here_path(lease)
    if sys.argv[2] == "no lock" and number == 1:
        os.unlink(here)
        os.mkdir(here)                          # nobody opens that, not even root
    try:
        one = helper.start(["sh", "-c", "exit 7"], dict(os.environ), root, "t.%%d" %% number, lease)
    except OSError as error:
        print(error.filename == here, error.strerror or error)
        if os.path.isdir(here):
            os.rmdir(here)
        continue
    while one.take_end() is None:
        helper._wait(60)
    print(one.code)
"""


@pytest.mark.parametrize("what, said", [
    ("no process", "False Resource temporarily unavailable"), ("killed", "False what watched the launcher ended before it had started; run again"), ("no lock", "True Is a directory")])
def test_a_launcher_that_nobody_can_watch_is_not_started_and_the_next_one_is(tmp_path, what, said):
    done = subprocess.run([sys.executable, "-c", DISTURBED % str(ROOT / "src"), str(tmp_path), what], stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60)
    assert done.stdout.decode() == said + "\n7\n" and leases_in(tmp_path) == [], done


def test_a_launcher_that_was_killed_leaves_no_task(project, cluster):
    project.spec({"processor": project.processor("p", SLEEP), "graceSec": 1, "launcher": cluster.words()})
    with project.start("--run-id", "r") as process:
        wait_for(lambda: project.exists("data/s1/started"))
        os.kill(cluster.launches()[0]["pid"], signal.SIGKILL)
        out, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 1 and b"[FAIL] s1: ended by SIGKILL" in out and leases(project) == [], out
    wait_for(lambda: cluster.queue() == [])


def test_the_helper_holds_nothing_of_the_runner(project, cluster):
    """A helper that kept a descriptor of the run's lock would keep the run id in use."""
    project.spec({"processor": project.processor("p", SLEEP), "launcher": cluster.words()})
    with project.start("--run-id", "r") as process:
        wait_for(lambda: project.exists("data/s1/started"))
        helper = family_of(cluster.launches()[0]["pid"])[2]
        links = [os.readlink("/proc/%d/fd/%s" % (helper, name)) for name in os.listdir("/proc/%d/fd" % helper) if name not in "012"]
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=LIMIT_S)
    # A newer libffi, on which ctypes stands, keeps its own file open.
    assert links and all(link.startswith("pipe:") or os.path.basename(link).startswith("libffi") for link in links), links
