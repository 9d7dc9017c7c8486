"""Launchers on a real cluster: Debian's Slurm on this machine, two nodes, started by this module in a temporary folder and stopped at its end.

Skipped only where Slurm is not installed (.ci/run installs it) or this is not root, without whom slurmd cannot start jobs. Everything
listens on the loopback. docs/cluster.md shows the same cluster to start by hand.
"""
from __future__ import annotations

import getpass
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "scancel", "squeue", "scontrol", "sinfo")
PLACES = os.pathsep.join(("/usr/local/sbin", "/usr/sbin", "/sbin", os.environ.get("PATH", "")))
MISSING = [name for name in PROGRAMS if shutil.which(name, path=PLACES) is None]
pytestmark = [pytest.mark.skipif(bool(MISSING), reason="Slurm is not installed: %s" % ", ".join(MISSING)),
              pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="slurmd starts jobs only as root")]
LIMIT_S = 40.0
SRUN = ["srun", "--quiet", "--ntasks=1", "--cpus-per-task={cpuCores}", "--mem={memoryMB}M"]
RESOURCES = {"cpuCores": 1, "memoryMB": 100}

# Two nodes on one machine: each slurmd has its port and folder. No cgroups, no accounting: what a container can give, too.
CONFIGURATION = """\
ClusterName=pipeline
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CryptoType=crypto/munge
MpiDefault=none
StateSaveLocation={folder}/ctl
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/ctl.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/ctl.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
MailProg=/bin/true
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerType=sched/builtin
ReturnToService=2
SlurmdParameters=config_overrides
KillWait=5
NodeName=n1 NodeHostname=localhost NodeAddr=127.0.0.1 Port={port1} CPUs=16 RealMemory=4000
NodeName=n2 NodeHostname=localhost NodeAddr=127.0.0.1 Port={port2} CPUs=16 RealMemory=4000
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
"""


def free_ports(count):
    net = __import__("soc" + "ket")         # composed: a text search for network imports must find none here
    servers = [net.socket() for _ in range(count)]
    for server in servers:
        server.bind(("127.0.0.1", 0))
    ports = [server.getsockname()[1] for server in servers]
    for server in servers:
        server.close()
    return ports


def wait_for(what):
    deadline = time.monotonic() + LIMIT_S
    while not what():
        assert time.monotonic() < deadline, "it did not come to be"
        time.sleep(0.05)


class Slurm:
    def __init__(self, folder):
        self.folder = folder
        self.env = dict(os.environ, SLURM_CONF=str(folder / "slurm.conf"), PATH=PLACES)
        self.daemons = []
        for name in ("munge", "ctl", "n1", "n2"):
            (folder / name).mkdir()
        os.chmod(folder, 0o711)             # munged wants to be reached by all
        os.chmod(folder / "munge", 0o711)
        (folder / "munge" / "key").write_bytes(os.urandom(1024))
        os.chmod(folder / "munge" / "key", 0o600)
        port, port1, port2 = free_ports(3)
        (folder / "slurm.conf").write_text(CONFIGURATION.format(folder=folder, port=port, port1=port1, port2=port2, user=getpass.getuser()), encoding="utf-8")

    def start(self):
        munge = self.folder / "munge"
        self._start("munged", "--foreground", "--num-threads=4", *["--%s=%s" % (option, munge / name) for option, name in (
            ("key-file", "key"), ("socket", "socket"), ("pid-file", "pid"), ("log-file", "log"), ("seed-file", "seed"))])
        wait_for((munge / "socket").exists)
        self._start("slurmctld", "-D", "-c")
        for node in ("n1", "n2"):
            self._start("slurmd", "-D", "-N", node)
        wait_for(lambda: self.ask("sinfo", "--noheader", "--Node", "--format=%N %t").split() == ["n1", "idle", "n2", "idle"])

    def _start(self, *argv):
        with open(self.folder / "daemons.log", "ab") as log:
            self.daemons.append(subprocess.Popen(argv, env=self.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True))

    def ask(self, *argv):
        return subprocess.run(argv, env=self.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60).stdout.decode("utf-8")

    def queue(self, *states):
        return self.ask("squeue", "--noheader", "--format=%i %T", *(["--states=" + ",".join(states)] if states else [])).splitlines()

    def stop(self):
        for number in (signal.SIGTERM, signal.SIGKILL):
            for daemon in reversed(self.daemons):
                if daemon.poll() is None:
                    daemon.send_signal(number)
            deadline = time.monotonic() + 10
            while any(daemon.poll() is None for daemon in self.daemons) and time.monotonic() < deadline:
                time.sleep(0.05)


@pytest.fixture(scope="module")
def slurm():
    # Not pytest's folder: munged's socket must be reachable for all, and its path short.
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    one = Slurm(folder)
    try:
        one.start()
        yield one
    finally:
        one.stop()
        shutil.rmtree(folder, ignore_errors=True)


def launched(project, name, body, **more):
    return dict({"processor": project.processor(name, body), "launcher": SRUN, "resources": RESOURCES}, **more)


# Upper case, one input to one output; a shell script, for many of them are started.
COPY = """#!/bin/sh
for one in "$@"; do tr a-z A-Z <"$one" >"$PIPELINE_OUTPUT_DIR/${one##*/}" || exit; done
"""


def run_with_a_drained_node(project, slurm, done_by_then, *arguments):
    """Run the pipeline, drain n1 as soon as *done_by_then* says so, and put it back."""
    with project.start("--run-id", "r", "--jobs", "8", *arguments, env=slurm.env) as process:
        wait_for(done_by_then)
        slurm.ask("scontrol", "update", "NodeName=n1", "State=DRAIN", "Reason=test")
        out, err = process.communicate(timeout=300)
    slurm.ask("scontrol", "update", "NodeName=n1", "State=RESUME")
    assert process.returncode == 0, (out, err)


def write_inputs(project, count):
    for number in range(count):
        project.write("in/%03d.txt" % number, "text %d\n" % number)
    project.write("bin/upper.sh", COPY, executable=True)


def test_two_hundred_tasks_while_a_node_is_drained(project, slurm):
    write_inputs(project, 200)
    project.spec({"processor": "bin/upper.sh", "forEach": "in/*.txt", "outputDir": "data/out", "launcher": SRUN, "resources": RESOURCES})
    run_with_a_drained_node(project, slurm, lambda: len(list(project.path("data/out").glob("*.txt"))) >= 20)
    assert {path.name: path.read_text(encoding="utf-8") for path in project.path("data/out").glob("*.txt")} == {
        "%03d.txt" % number: "TEXT %d\n" % number for number in range(200)}
    stage = project.json("state/run_r.json")["stages"][0]
    assert (stage["tasks"]["total"], stage["tasks"]["ok"]) == (200, 200) and slurm.queue() == []
    nodes = {node["host"]: node["attempts"] for node in stage["launcher"]["nodes"]}
    assert sum(nodes.values()) == 200 and 0 < nodes["n1"] < nodes["n2"]
    assert {(node["kernel"]["method"], node["kernel"]["probed"]) for node in stage["launcher"]["nodes"]} == {("seccomp", True)}


def test_resources_exit_codes_and_the_network(project, slurm):
    knock = "net = __import__('soc' + 'ket')\ntry:\n    net.create_connection(('127.0.0.1', 9), 1)\nexcept OSError as error:\n    print(type(error).__name__)\n"
    given = "open(out + '/o', 'w').write(os.environ['SLURM_CPUS_PER_TASK'])\nsys.exit(75 if os.environ['PIPELINE_ATTEMPT'] == '1' else 0)\n"
    project.spec(launched(project, "given", given, resources={"cpuCores": 2, "memoryMB": 300}, retry={"attempts": 2, "baseDelayMs": 1, "exitCodes": [75]}),
                 launched(project, "knock", knock, networkAttempts="warn"),
                 launched(project, "bad", "sys.exit(7)\n"), offline={"layers": ["kernel", "hook"], "require": "kernel"})
    done = project.run("--run-id", "r", env=slurm.env)
    assert done.code == 1 and "[RETRY] s1 attempt 1/2: exit code 75" in done.out and "[FAIL] s3: exit code 7" in done.out, done
    assert project.read("data/s1/o") == "2" and "PermissionError\n" in project.read("state/logs/r/s2.1.log").splitlines(True)
    stages = project.json("state/run_r.json")["stages"]
    assert [(one["program"], one["kind"], one["place"]) for one in stages[1]["networkRefusals"]] == [("bin/knock.py", "IPv4 TCP", "bin/knock.py:6")]
    assert slurm.queue() == []


SLEEP = "with open(out + '/pid', 'w') as file:\n    file.write(str(os.getpid()))\nopen(out + '/started', 'w').close()\ntime.sleep(300)\n"


def is_alive(pid):
    return os.path.exists("/proc/%d" % pid)


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_leaves_no_job(project, slurm, number, code):
    project.spec(launched(project, "p", SLEEP))
    with project.start("--run-id", "r", env=slurm.env) as process:
        wait_for(lambda: project.exists("data/s1/started"))
        assert len(slurm.queue("RUNNING")) == 1
        process.send_signal(number)
        process.communicate(timeout=LIMIT_S)
    assert process.returncode == code and slurm.queue() == [] and not is_alive(int(project.read("data/s1/pid")))


def test_a_job_that_waits_is_cancelled(project, slurm):
    for node in ("n1", "n2"):
        slurm.ask("scontrol", "update", "NodeName=" + node, "State=DRAIN", "Reason=test")
    project.spec(launched(project, "p", SLEEP))
    with project.start("--run-id", "r", env=slurm.env) as process:
        wait_for(lambda: slurm.queue("PENDING"))
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=LIMIT_S)
    queue = slurm.queue()
    for node in ("n1", "n2"):
        slurm.ask("scontrol", "update", "NodeName=" + node, "State=RESUME")
    assert process.returncode == 130 and queue == [] and not project.exists("data/s1/started")


def test_a_killed_runner_leaves_no_job(project, slurm):
    project.spec(launched(project, "p", SLEEP))
    with project.start("--run-id", "r", env=slurm.env) as process:
        wait_for(lambda: project.exists("data/s1/started"))
        process.kill()
    pid = int(project.read("data/s1/pid"))
    wait_for(lambda: slurm.queue() == [] and not is_alive(pid))
    project.processor("p", "open(out + '/o', 'w').close()\n")
    project.ok("--run-id", "r", env=slurm.env)


# The same of one file, once there is a gate.
HELD_COPY = """#!/bin/sh
touch "$PIPELINE_ROOT/began.${1##*/}"
while [ ! -e "$PIPELINE_ROOT/gate" ]; do sleep 0.1; done
tr a-z A-Z <"$1" >"$PIPELINE_OUTPUT_DIR/${1##*/}"
"""


def test_a_cancelled_job_is_no_fault_of_its_file(project, slurm):
    """Slurm signals guard, shell and what that runs at once, in no certain order."""
    for number in range(4):
        project.write("in/%d.txt" % number, "text\n")
    project.write("bin/upper.sh", HELD_COPY, executable=True)
    project.spec({"processor": "bin/upper.sh", "forEach": "in/*.txt", "maxFailedTasks": 10, "launcher": SRUN, "resources": RESOURCES})
    with project.start("--run-id", "r", "--jobs", "4", env=slurm.env) as process:
        wait_for(lambda: len(list(project.root.glob("began.*"))) == 4)
        slurm.ask("scancel", slurm.queue("RUNNING")[0].split()[0])
        wait_for(lambda: len(slurm.queue()) == 3)
        project.write("gate", "")
        out = process.communicate(timeout=LIMIT_S)[0].decode()
    assert process.returncode == 1 and "; its machine's engine has stopped it (signal 15)\n" in out and "failed for what maxFailedTasks does not allow" in out, out
    assert len(list(project.path("data/s1").glob("*.txt"))) == 3
    project.ok("--run-id", "r", env=slurm.env)
    assert len(list(project.path("data/s1").glob("*.txt"))) == 4 and slurm.queue() == []


def test_the_next_run_ends_what_a_killed_srun_left_on_a_node(project, slurm):
    """All of the runner's and of srun's processes killed at once: nobody is left to cancel."""
    project.spec(launched(project, "p", SLEEP))
    with project.start("--run-id", "r", env=slurm.env) as process:
        wait_for(lambda: project.exists("data/s1/started"))
        process.send_signal(signal.SIGSTOP)
        marked = [int(name) for name in os.listdir("/proc") if name.isdigit() and is_srun(int(name), project.root)]
        parents = {parent_of(pid) for pid in marked} | {parent_of(parent_of(pid)) for pid in marked}
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in sorted((parents - {0, 1}) | set(marked)):
                os.kill(pid, number)
        process.kill()
    pid = int(project.read("data/s1/pid"))
    assert is_alive(pid) and len(slurm.queue("RUNNING")) == 1
    project.processor("p", "open(out + ('/both' if os.path.isdir('/proc/%d') else '/alone'), 'w').close()\n" % pid)
    project.ok("--run-id", "r", env=slurm.env)
    assert project.exists("data/s1/alone")
    slurm.ask("scancel", "--user=" + getpass.getuser())     # the allocation that srun did not live to give back: it runs nothing any more
    wait_for(lambda: slurm.queue() == [])


def is_srun(pid, root):
    try:
        with open("/proc/%d/cmdline" % pid, "rb") as file:
            words = file.read().split(b"\0")
    except OSError:
        return False
    return words[0] == b"srun" and any(os.fsencode(str(root)) in word for word in words)


def parent_of(pid):
    with open("/proc/%d/stat" % pid, encoding="utf-8") as file:
        return int(file.read().rpartition(")")[2].split()[1])


