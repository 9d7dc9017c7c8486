"""The offline guard in runs of the real program: the network is closed, and who tries to use it is named.

Processors reach for a listener of the test's own on the loopback, where nothing may arrive.
"""
from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap

import pytest
from conftest import ROOT, RUNNER

import offline_guard

linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel layer of Linux")
# The name of the module is composed: a plain text search for network imports must find none here.
MODULE = "soc" + "ket"
net = __import__(MODULE)
NO_SCAN = {"layers": ["kernel", "hook"]}
CLOSED = "[OFFLINE] kernel: network closed for this run (seccomp, probed)"


@pytest.fixture
def listener():
    """A listener on the loopback; nothing may have come when the test ends."""
    with net.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        server.setblocking(False)
        yield server.getsockname()[1]
        with pytest.raises(BlockingIOError):
            server.accept()


def knock(port, host="127.0.0.1"):
    """Python source that connects to the listener, whatever comes of it."""
    return "import %s as net\ntry:\n    net.create_connection(('%s', %d), 5).sendall(b'x')\nexcept OSError as error:\n    print('swallowed', error)\n" % (MODULE, host, port)


def attempts_in(done):
    """Return {(stage, program, kind, place)} of the lines that name an attempt."""
    pattern = r"\[OFFLINE\] stage (\S+): (.+) \(pid \d+\) tried to open (.+?): refused(?: \((.+:\d+)\))?"
    return {match.groups() for match in (re.fullmatch(pattern, line) for line in done.out.splitlines()) if match}


def refusals(project, run_id="r", stage=0):
    return project.json("state/run_%s.json" % run_id)["stages"][stage]["networkRefusals"]


# --- an attempt is refused, named, recorded, and fails the stage ------------------------------------------------------

@linux_only
def test_an_attempt_is_refused_and_named_though_its_error_is_swallowed(project, listener):
    project.spec({"name": "fetch", "processor": project.processor("fetch", knock(listener) + "open(out + '/o', 'w').write('x')\n")}, offline=NO_SCAN)
    done = project.run("--run-id", "r")
    assert done.code == 6 and done.out.splitlines()[0] == CLOSED, done
    line = 4 + knock(listener)[:knock(listener).index("net.create")].count("\n")
    assert attempts_in(done) == {("fetch", "bin/fetch.py", "IPv4 TCP", "bin/fetch.py:%d" % line)}
    assert "[FAIL] fetch: it tried to use the network: bin/fetch.py: IPv4 TCP (bin/fetch.py:%d)" % line in done.out
    entry, = refusals(project)
    assert (entry["program"], entry["kind"], entry["place"], entry["count"], entry["counted"]) == ("bin/fetch.py", "IPv4 TCP", "bin/fetch.py:%d" % line, 1, True)
    record = project.json("state/run_r.json")
    assert record["state"] == "failed" and record["stages"][0]["status"] == "failed"
    assert project.json("state/stage_fetch.json")["lastError"].startswith("it tried to use the network")
    assert project.run("--run-id", "again").code == 6          # not done, and not resumed as if it were


@linux_only
def test_a_stage_that_a_signal_ended_is_interrupted_whatever_it_had_tried(project, listener):
    project.spec({"processor": project.processor("p", knock(listener) + "os.kill(os.getppid(), 2)\ntime.sleep(60)\n")}, offline=NO_SCAN)
    done = project.run("--run-id", "r")
    assert done.code == 130 and len(attempts_in(done)) == 1 and len(refusals(project)) == 1, done
    assert project.json("state/stage_s1.json")["lastStatus"] == "interrupted"


@linux_only
@pytest.mark.parametrize("way", ["child", "own session", "shell", "thread", "module"])
def test_whoever_tries_is_named_also_below_the_processor(project, listener, way):
    project.write("bin/inner.py", knock(listener))
    shell = "exec 3<>/dev/tcp/127.0.0.1/%d" % listener
    bodies = {
        "child": ("import subprocess\nsubprocess.run([sys.executable, 'bin/inner.py'])\n", "bin/inner.py"),
        "own session": ("import subprocess\nsubprocess.run(['setsid', 'nohup', sys.executable, 'bin/inner.py'])\n", "bin/inner.py"),
        "shell": ("import subprocess\nsubprocess.run(['bash', '-c', %r])\n" % shell, "bash -c"),
        "thread": ("import threading\ndef work():\n%s\none = threading.Thread(target=work)\none.start()\none.join()\n" % textwrap.indent(knock(listener), "    "), "bin/outer.py"),
        "module": ("import inner\n", "bin/outer.py")}
    body, program = bodies[way]
    project.spec({"processor": project.processor("outer", body)}, offline=NO_SCAN)
    done = project.run("--run-id", "r")
    assert done.code == 6, done
    (stage, named, kind, place), = attempts_in(done)
    assert (stage, named, kind) == ("s1", program, "IPv4 TCP"), done
    assert (place or "").rpartition(":")[0] == {"shell": "", "thread": "bin/outer.py"}.get(way, "bin/inner.py"), done


STATIC = """
#include <arpa/inet.h>
#include <sys/%s.h>
int main(int n, char **words) {
    struct sockaddr_in to = {AF_INET, htons(atoi(words[1])), {htonl(0x7f000001)}};
    int one = socket(AF_INET, SOCK_STREAM, 0);
    if (one >= 0 && !connect(one, (void *)&to, sizeof to)) write(one, "x", 1);
    return 0;
}
""" % MODULE


@linux_only
@pytest.mark.skipif(shutil.which("gcc") is None, reason="no compiler to make a static binary with")
def test_a_static_binary_is_refused_and_named(project, listener, tmp_path):
    (tmp_path / "tool.c").write_text("#include <stdlib.h>\n#include <unistd.h>\n" + STATIC, encoding="utf-8")
    project.path("bin").mkdir(exist_ok=True)
    subprocess.run(["gcc", "-static", "-w", "-o", str(project.path("bin/tool")), str(tmp_path / "tool.c")], check=True)
    project.spec({"processor": "bin/tool", "args": [str(listener)]})
    done = project.run("--run-id", "r")
    assert done.code == 6 and attempts_in(done) == {("s1", "bin/tool", "IPv4 TCP", None)}, done


@linux_only
def test_a_processor_that_fails_for_it_ends_with_the_guards_code_and_is_not_tried_again(project, listener):
    body = "import %s as net\ntry:\n    net.create_connection(('127.0.0.1', %d))\nexcept OSError as error:\n    sys.exit(str(error))\n" % (MODULE, listener)
    project.spec({"processor": project.processor("p", body), "retry": {"attempts": 3, "baseDelayMs": 0}}, {"processor": "bin/stage_copy.py"}, offline=NO_SCAN)
    done = project.run("--run-id", "r")
    assert done.code == 6 and "; exit code 1" in done.out and "[RETRY]" not in done.out, done
    assert "Permission denied" in done.err          # its own last words are shown
    assert [one["status"] for one in project.json("state/run_r.json")["stages"]] == ["failed", "notRun"]


@linux_only
@pytest.mark.parametrize("where", ["offline", "defaults", "stage"])
def test_attempts_may_be_a_warning_only(project, listener, where):
    stage = {"processor": project.processor("p", knock(listener) + "open(out + '/o', 'w').write('x')\n")}
    offline, defaults = dict(NO_SCAN), {}
    {"offline": offline, "defaults": defaults, "stage": stage}[where]["networkAttempts"] = "warn"
    project.spec(stage, offline=offline, defaults=defaults)
    done = project.ok("--run-id", "r")
    assert len(attempts_in(done)) == 1 and len(refusals(project)) == 1 and "[DONE] s1" in done.out, done
    assert "[SKIP] s1" in project.ok().out


@linux_only
def test_many_attempts_are_one_line_and_one_entry(project):
    body = "import %s as net\nfor _ in range(500):\n    try:\n        net.socket()\n    except OSError:\n        pass\n" % MODULE
    project.spec({"processor": project.processor("p", body)}, offline=NO_SCAN)
    done = project.run("--run-id", "r")
    assert done.code == 6 and len(attempts_in(done)) == 1, done
    entry, = refusals(project)
    assert entry["count"] == 500


@linux_only
def test_a_ring_is_refused_and_told_but_is_no_attempt(project):
    body = "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\nassert libc.syscall(425, 8, None) == -1 and ctypes.get_errno() == 13\nopen(out + '/o', 'w').write('x')\n"
    project.spec({"processor": project.processor("p", body)})
    done = project.ok("--run-id", "r")
    assert re.search(r"\[OFFLINE\] stage s1: bin/p\.py \(pid \d+\) tried to use io_uring: refused \(not counted", done.out), done
    entry, = refusals(project)
    assert (entry["kind"], entry["counted"]) == ("io_uring", False)


@linux_only
def test_strict_closes_unix_sockets_too(project, tmp_path):
    path = str(tmp_path / "daemon")
    with net.socket(net.AF_UNIX) as daemon:
        daemon.bind(path)
        daemon.listen()
        body = "import %s as net\ntry:\n    net.socket(net.AF_UNIX).connect(%r)\n    how = 'open'\nexcept PermissionError:\n    how = 'closed'\nnet.socketpair()\nopen(out + '/o', 'w').write(how)\n" % (MODULE, path)
        for offline, how in ((dict(NO_SCAN), "open"), (dict(NO_SCAN, strict=True), "closed")):
            project.spec({"processor": project.processor("p", body)}, offline=offline)
            done = project.ok("--force", "s1", "--run-id", how)
            assert project.read("data/s1/o") == how, done
            kernel = project.json("state/run_%s.json" % how)["isolation"]["kernel"]
            assert kernel["strict"] == (how == "closed") and ("strict" in done.out.splitlines()[0]) == (how == "closed")
    project.path("bin/p.py").unlink()
    project.spec({"processor": "bin/stage_copy.py", "allowNoInputs": True}, offline="strict")
    assert "(seccomp, strict, probed)" in project.ok().out


# --- what must go on working -----------------------------------------------------------------------------------------

ORDINARY = """
import concurrent.futures, getpass, multiprocessing, sqlite3, subprocess
net, loops = __import__("soc" + "ket"), __import__("asyn" + "cio")

def square(x):
    return x * x

async def add():
    await loops.sleep(0)
    process = await loops.create_subprocess_exec(sys.executable, "-c", "print('hello')", stdout=subprocess.PIPE)
    return (await process.communicate())[0]

if __name__ == "__main__":
    for method in multiprocessing.get_all_start_methods():
        with multiprocessing.get_context(method).Pool(2) as pool:
            assert pool.map(square, [2, 3]) == [4, 9], method
    with concurrent.futures.ProcessPoolExecutor(2) as pool, concurrent.futures.ThreadPoolExecutor(2) as threads:
        assert list(pool.map(square, [2])) == list(threads.map(square, [2])) == [4]
    base = sqlite3.connect(os.path.join(out, "base.sqlite"))
    base.execute("create table t (x)")
    base.close()
    assert getpass.getuser()
    upper = [sys.executable, "-c", "import sys; sys.stdout.write(sys.stdin.read().upper())"]
    assert subprocess.run(upper, input=b"pipe", stdout=subprocess.PIPE).stdout == b"PIPE"
    one, other = net.socketpair()
    one.sendall(b"x")
    assert other.recv(1) == b"x"
    assert loops.new_event_loop().run_until_complete(add()).split() == [b"hello"]
"""


@pytest.mark.parametrize("layers", [["kernel", "hook"], ["hook"], ["kernel"]], ids="+".join)
def test_what_processors_do_without_a_network_still_works(project, layers):
    project.write("bin/ordinary.py", "import os, sys\nout = os.environ['PIPELINE_OUTPUT_DIR']\n" + ORDINARY)
    project.spec({"processor": "bin/ordinary.py", "timeoutSec": 100}, offline={"layers": layers})
    done = project.ok("--run-id", "r")
    assert refusals(project) == [] and "tried" not in done.out, done


# --- the hook, where there is no kernel layer ------------------------------------------------------------------------

def test_the_hook_refuses_and_names_where_there_is_no_kernel_layer(project, listener):
    host = "192.0.2.1" if sys.platform == "win32" else "127.0.0.1"      # the hook lets the loopback pass there
    project.spec({"name": "fetch", "processor": project.processor("fetch", knock(listener, host))}, offline={"layers": ["hook"]})
    done = project.run("--run-id", "r")
    assert done.code == 6 and "advisory" in done.out.splitlines()[0], done
    (stage, program, kind, place), = attempts_in(done)
    assert (stage, program, kind) == ("fetch", "bin/fetch.py", "IPv4 TCP") and place.startswith("bin/fetch.py:")
    isolation = project.json("state/run_r.json")["isolation"]
    assert isolation["kernel"]["method"] == "none" and isolation["hook"].startswith("advisory")


def test_a_stage_s_own_folder_of_modules_goes_with_the_hook_however_it_is_spelled(project):
    """To Windows it is one variable: of two spellings a process gets one, and either the hook or the folder would be lost."""
    project.write("lib/far.py", "")
    project.spec({"processor": project.processor("p", "import far\n" + knock(9, "192.0.2.1")), "env": {"PythonPath" if sys.platform == "win32" else "PYTHONPATH": "lib"}},
                 offline={"layers": ["hook"]})
    done = project.run()
    assert done.code == 6 and len(attempts_in(done)) == 1, done


def test_a_look_up_is_refused_by_the_hook(project):
    body = "import %s as net\ntry:\n    net.getaddrinfo('host.invalid', 80)\nexcept OSError:\n    pass\n" % MODULE
    project.spec({"processor": project.processor("p", body)}, offline={"layers": ["hook"]})
    done = project.run("--run-id", "r")
    assert done.code == 6 and re.search(r"\[OFFLINE\] stage s1: bin/p\.py \(pid \d+\) tried a name look-up: refused \(bin/p\.py:6\)", done.out), done


def test_without_any_layer_nothing_is_claimed(project):
    project.spec({"processor": "bin/stage_copy.py", "allowNoInputs": True}, offline={"layers": ["scan"]})
    done = project.ok("--run-id", "r")
    assert done.out.splitlines()[0] == "[OFFLINE] kernel layer: none (left out by offline.layers); nothing refuses the network to a processor"
    isolation = project.json("state/run_r.json")["isolation"]
    assert (isolation["kernel"]["method"], isolation["kernel"]["probed"], isolation["hook"]) == ("none", False, "none")


def test_a_run_that_starts_nothing_claims_nothing(project):
    project.spec({"processor": "bin/stage_copy.py", "allowNoInputs": True})
    project.ok()
    done = project.ok("--run-id", "r")
    assert "[OFFLINE]" not in done.out and project.json("state/run_r.json")["isolation"]["kernel"] == {"method": "none", "why": "no processor was started"}


# --- a kernel that does not let itself be asked ----------------------------------------------------------------------

WITHOUT_SECCOMP = """
import ctypes, os, struct, sys
# What some containers do: seccomp(2) is refused. A filter of our own does it here, put in place by prctl.
number = int(sys.argv[1])
program = [(0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, 0x00050000 | 1), (0x06, 0, 0, 0x7FFF0000)]
raw = b"".join(struct.pack("=HBBI", *one) for one in program)
buffer = ctypes.create_string_buffer(raw, len(raw))
head = ctypes.create_string_buffer(struct.pack("@HP", len(program), ctypes.addressof(buffer)))
libc = ctypes.CDLL(None)
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, head, 0, 0) == 0
os.execv(sys.executable, [sys.executable] + sys.argv[2:])
"""


def run_without_seccomp(project, *arguments):
    number = offline_guard.ABIS[os.uname().machine].seccomp
    argv = [sys.executable, "-c", WITHOUT_SECCOMP, str(number)] + project.argv(*arguments)[1:]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


@linux_only
@pytest.mark.skipif(os.uname().machine not in offline_guard.ABIS if hasattr(os, "uname") else True, reason="another kind of machine")
@pytest.mark.parametrize("offline", [{"require": "kernel"}, "strict", {"strict": True}], ids=str)
def test_a_level_that_cannot_be_had_fails_closed_and_writes_nothing(project, offline):
    project.spec({"processor": "bin/stage_copy.py", "allowNoInputs": True}, offline=offline)
    project.knows_scans = False
    before, folders = project.snapshot(), sorted(project.root.rglob("*"))
    code, out, err = run_without_seccomp(project)
    assert code == 6 and "the kernel must close the network, and cannot here: " in err and "nothing was run" in err, (out, err)
    assert "Traceback" not in err and project.snapshot() == before and sorted(project.root.rglob("*")) == folders
    project.ok()            # the same where it can be had


@linux_only
def test_where_it_cannot_be_had_and_is_not_required_the_hook_takes_over_and_says_so(project, listener):
    project.spec({"processor": project.processor("p", knock(listener))}, offline={"allow": [MODULE]})
    code, out, err = run_without_seccomp(project, "--run-id", "r")
    assert code == 6 and out.startswith("[OFFLINE] hook: Python processors are refused the network (advisory: other programs are not); kernel layer: none (") and "IPv4 TCP" in out, (out, err)
    assert project.json("state/run_r.json")["isolation"]["kernel"]["probed"] is False


@linux_only
def test_a_run_inside_a_run_is_closed_by_the_outer_one_which_names_who_tries(project, tmp_path, listener):
    inner = tmp_path / "inner"
    (inner / "bin").mkdir(parents=True)
    (inner / "bin" / "p.py").write_text(knock(listener), encoding="utf-8")
    (inner / "pipeline.json").write_text(json.dumps({"name": "inner", "offline": NO_SCAN, "stages": [{"name": "i", "processor": "bin/p.py", "outputDir": "data"}]}), encoding="utf-8")
    body = "import subprocess\nsys.exit(subprocess.call([sys.executable, %r, '--pipeline', %r, '--run-id', 'i']))\n" % (str(RUNNER), str(inner / "pipeline.json"))
    project.spec({"name": "outer", "processor": project.processor("outer", body)}, offline=NO_SCAN)
    done = project.run("--run-id", "r")
    assert done.code == 6 and {one[0] for one in attempts_in(done)} == {"outer"}, done
    log = project.read("state/logs/r/outer.1.log")
    assert "closed already by a runner around this one" in log and "it tried to use the network" in log, log


# --- the scan as a command -------------------------------------------------------------------------------------------

def test_scan_lists_what_a_run_would_refuse(project):
    project.spec({"processor": project.processor("p", "import %s\n" % MODULE)})
    before = project.snapshot()
    done = project.run("scan")
    assert done.code == 6 and done.out.startswith("[REFUSED] bin/p.py:4: imports the network module %s\nscan: " % MODULE), done
    assert re.search(r"scan: \d+ files, 1 refused, 0 warnings\n$", done.out) and project.snapshot() == before
    project.spec({"processor": "bin/p.py"}, offline={"allow": [MODULE]})
    assert " 0 refused" in project.ok("scan").out


def test_scan_of_given_files(project, tmp_path):
    project.spec({"processor": "bin/stage_copy.py"})
    (tmp_path / "a.py").write_text("import ctypes\n", encoding="utf-8")
    (tmp_path / "tool").write_bytes(b"\x7fELF\0\0")
    done = project.ok("scan", str(tmp_path / "a.py"), str(tmp_path / "tool"))
    assert "[WARNING] %s:1: " % (tmp_path / "a.py") in done.out and "scan: 2 files, 0 refused, 2 warnings" in done.out, done
    assert project.run("scan", str(tmp_path / "none.py")).code == 2


def test_a_binary_is_no_warning_of_a_run(project):
    project.write("bin/tool", b"\x7fELF\0\0", executable=True)
    project.spec({"processor": "bin/tool"}, {"processor": "bin/stage_copy.py", "allowNoInputs": True})
    assert "bin/tool:1:" in project.ok("scan").out
    done = project.run("--only", "s2")
    assert done.code == 0 and done.err == "", done


def test_scans_are_remembered_by_content(project):
    project.spec({"processor": "bin/stage_copy.py", "allowNoInputs": True})
    project.ok()
    scans = project.json("state/digests.json")["scans"]
    assert len(scans) > len(list((ROOT / "src").glob("*.py")))
    project.write("bin/moved.py", project.path("bin/stage_copy.py").read_bytes())
    project.ok()
    assert set(project.json("state/digests.json")["scans"]) == set(scans)      # a copy of what was scanned needs no scan
