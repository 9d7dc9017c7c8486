"""Processes of an attempt: what they get, how they are watched, limited and ended, and that none is left."""
from __future__ import annotations

import ctypes
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import pytest
from conftest import PATIENCE_S, as_user, settle, wait_until, without_coverage

ROOT = Path(__file__).resolve().parent.parent
RUNNER = ROOT / "src" / "pipeline_runner.py"
sys.path.insert(0, str(ROOT / "src"))

import attempt_output  # noqa: E402
import attempts  # noqa: E402
import chunk_files  # noqa: E402
import environment  # noqa: E402
import model  # noqa: E402
import path_signs  # noqa: E402
import process_limits  # noqa: E402
import process_start  # noqa: E402
import process_table  # noqa: E402
import process_traits  # noqa: E402
import process_tree  # noqa: E402
import run_signals  # noqa: E402
import stage_locks  # noqa: E402
import stop_requests  # noqa: E402
import windows_jobs  # noqa: E402
from guardian import Guardian, guard_loop, highest_descriptor  # noqa: E402
from process_traits import Traits  # noqa: E402

LINUX = sys.platform.startswith("linux")
posix_only = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
linux_only = pytest.mark.skipif(not LINUX, reason="reads /proc")
windows_only = pytest.mark.skipif(sys.platform != "win32", reason="jobs and console events of Windows")


def is_gone(pid) -> bool:
    return process_table.start_time(int(pid)) is None


def processes_of(project) -> list:
    """Return the living processes that were started for a stage of this project, by their environment."""
    mark = os.fsencode("\0PIPELINE_ROOT=%s\0" % project.root)
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and not is_gone(name):
            try:
                if mark in b"\0" + Path("/proc/%s/environ" % name).read_bytes():
                    found.append(int(name))
            except OSError:
                pass
    return found


def spec_of(project, body, **stage):
    """One stage with a Python processor of this body and one small input."""
    project.write("in.txt", "x\n")
    project.spec(dict({"processor": project.processor("p", body), "inputs": ["in.txt"]}, **stage))
    return project


def shell_of(project, body, **stage):
    project.write("in.txt", "x\n")
    project.write("bin/p.sh", "#!/bin/sh\n" + body, executable=True)
    project.spec(dict({"processor": "bin/p.sh", "inputs": ["in.txt"]}, **stage))
    return project


def started(project, *names, **options):
    """Start the program and return it when the processor has made these files below data/s1."""
    process = project.start("--run-id", "r", **options)
    wait_until(lambda: all(project.exists("data/s1/" + name) for name in names) or process.poll() is not None, "the processor's start")
    assert process.poll() is None, process.communicate()
    return process


def finish(process):
    out, err = (text.decode() for text in process.communicate(timeout=PATIENCE_S))
    return process.returncode, out, err


ASKS = """
import _thread, os, threading, time
def ask():
    while not os.path.exists(%r):
        time.sleep(0.01)
    _thread.interrupt_main()
threading.Thread(target=ask, daemon=True).start()
"""


@pytest.fixture
def asked(project, tmp_path) -> dict:
    """Return options of start(): the program is interrupted (SIGINT) once there is a file "stop". Windows sends one process alone no Ctrl-C."""
    (tmp_path / "asks").mkdir()
    (tmp_path / "asks" / "sitecustomize.py").write_text(ASKS % str(project.path("stop")), encoding="utf-8")
    return {"env": {"PYTHONPATH": str(tmp_path / "asks")}}


def log_of(project, attempt=1) -> bytes:
    return project.path("state/logs/r/s1.%d.log" % attempt).read_bytes()


# A processor's own small tools: say(name) makes a file at once whole; forever() works until it is ended.
TOOLS = """
import signal, subprocess
def say(name, text=""):
    open(out + "/." + name, "w").write(str(text))
    os.replace(out + "/." + name, out + "/" + name)
def forever():
    while True:
        open(out + "/o", "a").write("x")
        time.sleep(0.005)
def fork(work):
    pid = os.fork()
    if pid == 0:
        work()
        os._exit(0)
    return pid
"""


# --- what a processor gets -------------------------------------------------------------------------------------------

@linux_only
def test_a_processor_has_empty_stdin_one_pipe_for_output_and_only_the_locks_descriptor(project):
    spec_of(project, """
there = {}
for name in os.listdir("/proc/self/fd"):
    try:
        there[name] = os.readlink("/proc/self/fd/" + name)
    except OSError:
        pass
json.dump({"stdin": sys.stdin.read(), "fds": there, "group": os.getpgid(0) == os.getpid(), "session": os.getsid(0) == os.getpid(),
           "cwd": os.getcwd()}, open(out + "/o.json", "w"))
""")
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)        # a careless parent's descriptor must stop at the runner
    done = subprocess.run(project.argv("--run-id", "r"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, pass_fds=(writer,),
                          input=b"not for the processor\n", timeout=PATIENCE_S)
    os.close(reader)
    os.close(writer)
    assert done.returncode == 0, done
    got = project.json("data/s1/o.json")
    others = {path for name, path in got["fds"].items() if int(name) > 2}
    assert others == {str(project.path("locks/.s1.guard"))}, got
    assert got["fds"]["0"] == os.devnull and got["fds"]["1"] == got["fds"]["2"] and got["fds"]["1"].startswith("pipe:")
    assert (got["stdin"], got["group"], got["session"], got["cwd"]) == ("", True, True, str(project.root))


SHOW_ENVIRONMENT = "json.dump({'env': dict(os.environ), 'argv': sys.argv[1:]}, open(out + '/o.json', 'w'))\n"


def shown(project, **environment_of_runner):
    project.ok("--run-id", "r", env=environment_of_runner)
    return project.json("data/s1/o.json")


def test_the_variables_of_the_contract_are_complete_and_right(project):
    spec_of(project, SHOW_ENVIRONMENT, params={"limit": 10, "größe": [1]}, args=["-v", "two words"], env={"MINE": "ä b"},
            inputs=["in.txt", "data/in/*.txt"])
    project.write("data/in/b.txt", "")
    project.write("data/in/ä.txt", "")
    got = shown(project)
    env, inputs = got["env"], ["in.txt", "data/in/b.txt", "data/in/ä.txt"]
    stated = {name: value for name, value in env.items() if name.startswith("PIPELINE_")}
    token, key = stated.pop("PIPELINE_ATTEMPT_TOKEN"), stated.pop("PIPELINE_KEY")
    inputs_file, params = stated.pop("PIPELINE_INPUTS_FILE"), stated.pop("PIPELINE_PARAMS")
    assert (stated.pop("PIPELINE_HOOK"), os.path.basename(stated.pop("PIPELINE_HOOK_LOG"))) in (("report", "s1.1.network"), ("enforce", "s1.1.network"))
    assert stated == {
        "PIPELINE_STAGE_NAME": "s1", "PIPELINE_OUTPUT_DIR": str(project.path("data/s1")), "PIPELINE_LINE_OFFSET": "0",
        "PIPELINE_RUN_ID": "r", "PIPELINE_ATTEMPT": "1", "PIPELINE_ROOT": str(project.root),
        "PIPELINE_COUNTS_FILE": str(project.path("state/counts_s1.json"))}
    assert json.loads(params) == {"limit": 10, "größe": [1]} and env["MINE"] == "ä b"
    assert os.path.isabs(inputs_file) and json.loads(Path(inputs_file).read_text(encoding="utf-8")) == inputs
    assert got["argv"] == ["-v", "two words"] + inputs
    assert key == project.json("state/stage_s1.json")["idempotencyKey"] and token.endswith(".1")


def test_attempt_simulation_and_checkpoint_variables(project):
    spec_of(project, """
seen = {name: os.environ.get("PIPELINE_" + name) for name in ("ATTEMPT", "SIMULATED_FAIL", "PROGRESS_FILE", "LINE_INTERVAL")}
open(out + "/o", "a").write(json.dumps(seen) + "\\n")
print(json.dumps(seen))
sys.exit(75 if "PIPELINE_SIMULATED_FAIL" in os.environ else 0)
""", simulateFailAttempts=2, retry={"attempts": 3, "baseDelayMs": 1}, checkpoint={"enabled": True, "lineInterval": 7})
    project.ok("--run-id", "r", env={"PIPELINE_SIMULATED_FAIL": "1", "PIPELINE_LINE_OFFSET": "99"})
    progress = str(project.path("state/progress_s1.json"))
    assert [json.loads(log_of(project, attempt)) for attempt in (1, 2, 3)] == [
        {"ATTEMPT": str(attempt), "SIMULATED_FAIL": "1" if attempt < 3 else None, "PROGRESS_FILE": progress, "LINE_INTERVAL": "7"}
        for attempt in (1, 2, 3)]


DROPPED = ("http_proxy HTTPS_PROXY ALL_PROXY no_proxy SSH_AUTH_SOCK SSH_AGENT_PID GPG_AGENT_INFO DOCKER_HOST DBUS_SESSION_BUS_ADDRESS "
           "XDG_RUNTIME_DIR LD_PRELOAD LD_AUDIT LD_LIBRARY_PATH DYLD_INSERT_LIBRARIES BASH_ENV ENV PYTHONPATH PYTHONHOME PYTHONSTARTUP "
           "PYTHONSAFEPATH PYTHONUSERBASE PYTHONWARNINGS PYTHONINSPECT NODE_OPTIONS PERL5LIB RUBYOPT PIPELINE_RESUME PIPELINE_KEY "
           "PIPELINE_SIMULATED_FAIL").split()


@pytest.mark.parametrize("name", DROPPED)
def test_what_defeats_isolation_or_repeatability_is_dropped(name):
    for spelled in (name, name.lower(), name.upper()):
        assert spelled not in environment.base_environment(None, {spelled: "x", "KEPT": "1"})


def test_the_rest_is_kept_hashes_are_repeatable_and_the_stages_own_win():
    got = environment.with_own(environment.base_environment(None, {"A": "theirs", "B": "b", "PYTHONHASHSEED": "random", "MYSOCK": "s"}), {"A": "own", "PYTHONHASHSEED": "7"}, windows=False)
    assert got == {"A": "own", "B": "b", "MYSOCK": "s", "PYTHONHASHSEED": "7", "PYTHONIOENCODING": "utf-8:backslashreplace"}
    assert environment.base_environment(None, {})["PYTHONHASHSEED"] == "0"


@pytest.mark.parametrize("windows, env, names", [(True, {"Path": "own", "B": "b"}, ["MY_VAR"]), (False, {"PATH": "theirs", "Path": "own", "B": "b"}, [])])
def test_variables_that_differ_in_case_are_one_on_windows(windows, env, names):
    """There os.environ has capitals only, whatever the spec writes."""
    assert environment.with_own({"PATH": "theirs", "B": "b"}, {"Path": "own"}, windows) == env
    assert [environment.value_of({"A": "a", "PythonPath": "lib"}, name, windows) for name in ("A", "PYTHONPATH", "B")] == ["a", "lib" if windows else "", ""]
    assert environment.passed_names(["My_*"], ["MY_VAR", "OTHER", "PIPELINE_X"], windows) == names


def test_with_pass_env_only_the_basics_and_the_listed_pass():
    around = {"PATH": "/bin", "HOME": "/h", "LANG": "C", "LC_ALL": "C", "TZ": "UTC", "TMPDIR": "/t", "SYSTEMROOT": "c:", "USERNAME": "me", "ProgramFiles(x86)": "c:/p", "SECRET": "x", "DB_USER": "u",
              "DB_HOST": "h", "OTHER": "o", "EDITOR": "vi", "http_proxy": "p", "PIPELINE_RESUME": "1"}
    fixed = {"PYTHONHASHSEED": "0", "PYTHONIOENCODING": "utf-8:backslashreplace"}
    basics = {name: around[name] for name in "PATH HOME LANG LC_ALL TZ TMPDIR SYSTEMROOT USERNAME ProgramFiles(x86)".split()}
    assert environment.base_environment([], around) == dict(basics, **fixed)
    assert environment.base_environment(["DB_*", "OTHER"], around) == dict(basics, DB_USER="u", DB_HOST="h", OTHER="o", **fixed)
    everything = environment.base_environment(["*"], around)
    assert "SECRET" in everything and "PIPELINE_RESUME" not in everything


def test_passed_names_and_digests_tell_values_apart_and_do_not_show_them():
    around = {"A": "one", "B": "two", "PIPELINE_KEY": "k"}
    assert environment.passed_names(["*"], around) == ["A", "B"]
    first = environment.passed_digests(["A", "B"], around, b"key")
    assert set(first) == {"A", "B"} and first["A"] != first["B"] and "one" not in str(first)
    assert environment.passed_digests(["A"], {"A": "other"}, b"key")["A"] != first["A"]
    assert environment.passed_digests(["A"], around, b"another key")["A"] != first["A"]


def test_a_processor_gets_the_cleaned_environment(project, tmp_path):
    spec_of(project, SHOW_ENVIRONMENT)
    bad = {"HTTPS_PROXY": "http://p", "SSH_AUTH_SOCK": "/x", "BASH_ENV": "/x", "PYTHONWARNINGS": "ignore", "PIPELINE_RESUME": "1"}
    got = shown(project, KEPT="yes", **bad)["env"]
    assert not set(bad) & set(got) and got["KEPT"] == "yes" and got["PYTHONHASHSEED"] == "0"
    spec_of(project, SHOW_ENVIRONMENT, passEnv=["WANTED_*", "PIPELINE_*"])
    got = shown(project, KEPT="yes", WANTED_1="w", **bad)["env"]
    assert "KEPT" not in got and got["WANTED_1"] == "w" and "PIPELINE_RESUME" not in got and got["PATH"] == os.environ["PATH"]


def test_inputs_that_do_not_fit_the_command_line_come_by_file_alone(project):
    spec_of(project, "json.dump([sys.argv[1:], inputs], open(out + '/o.json', 'w'))", args=["first"], inputs=["data/in/**/*.txt"])
    names = ["data/in/%s/%s%04d.txt" % ("d" * 200, "ü" * 20, number) for number in range(4500)]
    for name in names:
        project.write(name, "")
    project.ok()
    argv, inputs = project.json("data/s1/o.json")
    assert sum(len(os.fsencode(name)) for name in names) > 1 << 20
    assert argv == ["first"] and inputs == names


# --- its output ------------------------------------------------------------------------------------------------------

# Starts the program from a small process: a child's peak memory counts from its parent's.
MEASURE = """
import json, os, subprocess, sys
process = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
out = process.stdout.read()
pid, status, usage = os.wait4(process.pid, 0)
print(json.dumps([status, usage.ru_maxrss, out.decode()]))
"""


def measured(project, *arguments):
    """Return (console, peak memory in KiB) of a run."""
    done = subprocess.run([sys.executable, "-S", "-c", MEASURE] + project.argv("--run-id", "r", *arguments), stdout=subprocess.PIPE, timeout=300)
    status, peak, out = json.loads(done.stdout)
    assert status == 0, (status, out)
    return out, peak


@linux_only
def test_a_flood_of_output_is_capped_on_disk_and_in_memory_and_blocks_nobody(project):
    flood = """
open(out + "/o", "w").write("x")
if os.environ["PIPELINE_STAGE_NAME"] == "s1":
    line = b"0123456" * 9 + b"\\n"
    os.write(1, b"THE BEGINNING\\n")
    for _ in range(1024):
        os.write(1, line * 1024)
    os.write(2, b"THE END\\n")
"""
    spec_of(project, flood)
    project.spec({"processor": "bin/p.py", "inputs": ["in.txt"]}, {"processor": "bin/p.py", "inputs": ["in.txt"]})
    _, quiet = measured(project, "--only", "s2")
    _, loud = measured(project, "--only", "s1")
    data = project.path("state/logs/r/2/s1.1.log").read_bytes()
    total, kept = 14 + (64 << 20) + 8, attempt_output.LOG_HEAD_BYTES + attempt_output.LOG_TAIL_BYTES
    notice = b"\n[... %d bytes left out ...]\n" % (total - kept)
    assert data.startswith(b"THE BEGINNING\n") and data.endswith(b"THE END\n") and len(data) == kept + len(notice)
    assert data[attempt_output.LOG_HEAD_BYTES:].startswith(notice)
    assert loud - quiet < 16 << 10, "the flood cost the runner %d KiB" % (loud - quiet)


@pytest.mark.parametrize("sizes", [[0], [5], [10], [11], [14], [15], [16], [40], [3] * 20, [1] * 40, [7, 9, 100]], ids=str)
def test_a_log_keeps_head_and_tail_whatever_the_pieces(tmp_path, monkeypatch, sizes):
    monkeypatch.setattr(attempt_output, "LOG_HEAD_BYTES", 10)
    monkeypatch.setattr(attempt_output, "LOG_TAIL_BYTES", 5)
    seen = []
    log = attempt_output.AttemptLog(str(tmp_path / "log"), seen.append)
    data, at = bytes(range(33, 33 + 90)) + bytes(range(33, 33 + 90)), 0
    for size in sizes:
        log.feed(data[at:at + size])
        at += size
    log.close()
    whole = data[:at]
    expected = whole if at <= 15 else whole[:10] + b"\n[... %d bytes left out ...]\n" % (at - 15) + whole[-5:]
    assert (tmp_path / "log").read_bytes() == expected and b"".join(seen) == whole and log.last == whole[-4096:]


def test_a_log_on_a_full_disk_is_told_and_the_output_goes_on_being_read(tmp_path):
    class Full:
        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

        def close(self):
            pass
    log = attempt_output.AttemptLog(str(tmp_path / "log"))
    log.file.close()
    log.file = Full()
    for _ in range(3):
        log.feed(b"abc")
    log.close()
    assert log.problem == "the log is incomplete: No space left on device" and log.last == b"abcabcabc" and log.total == 9


@pytest.mark.skipif(sys.platform == "win32" or not os.path.exists("/dev/full"), reason="no /dev/full")
def test_an_attempt_outlives_a_log_that_cannot_be_written(project):
    spec_of(project, "print('x' * 100000)\nopen(out + '/o', 'w').write('x')")
    project.path("state/logs/r").mkdir(parents=True)
    project.path("state/logs/r/s1.1.log").symlink_to("/dev/full")
    done = project.ok("--run-id", "r")
    assert "[NOTE] s1: the log is incomplete" in done.out and "[DONE] s1" in done.out, done


def test_verbose_streams_whole_lines_with_the_stages_name_and_no_control_characters(project):
    spec_of(project, """
os.write(1, "first ä\\n\\x1b[2Jboo\\x07\\rbar\\nlast".encode())
open(out + "/o", "w").write("x")
""")
    out = project.ok("--run-id", "r", "--verbose").out.splitlines()
    assert [line for line in out if "|" in line] == ["s1 | first ä", "s1 | \\x1b[2Jboo\\x07\\rbar", "s1 | last"]
    assert log_of(project) == "first ä\n\x1b[2Jboo\x07\rbar\nlast".encode()        # the file has it raw
    project.path("data/s1/o").unlink()
    assert not [line for line in project.ok("--run-id", "r2").out.splitlines() if "|" in line]


def test_verbose_shows_output_while_the_processor_works(project):
    spec_of(project, """
print("working", flush=True)
while not os.path.exists("go"):
    time.sleep(0.01)
open(out + "/o", "w").write("x")
""")
    process = project.start("--verbose")
    while not process.stdout.readline().startswith(b"[START]"):
        assert process.poll() is None
    assert process.stdout.readline().rstrip() == b"s1 | working"
    project.write("go", "")
    assert finish(process)[0] == 0


def test_a_failure_shows_its_last_lines(project):
    spec_of(project, "print('\\n'.join('line %d' % n for n in range(50)))\nprint('why \\x1b[1m')\nsys.exit(3)")
    done = project.run("--run-id", "r")
    assert done.code == 1 and "[FAIL] s1: exit code 3" in done.out, done
    assert done.err.splitlines() == ["    | line %d" % n for n in range(41, 50)] + ["    | why \\x1b[1m"]


# --- how it ends -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("code, text", [(0, ""), (1, "exit code 1"), (75, "exit code 75"), (None, "exit code None")])
def test_exit_text(code, text):
    assert attempts.exit_text(code) == text


@posix_only
def test_exit_text_names_signals():
    assert attempts.exit_text(-9) == "ended by SIGKILL" and attempts.exit_text(-200) == "ended by signal 200"


@posix_only
def test_a_processor_that_dies_of_a_signal_is_a_failed_stage(project):
    spec_of(project, "import signal\nos.kill(os.getpid(), signal.SIGSEGV)")
    done = project.run()
    assert done.code == 1 and "[FAIL] s1: ended by SIGSEGV" in done.out, done


@posix_only
@pytest.mark.parametrize("text, said", [("#!/no/such/interpreter\n", "; its first line names /no/such/interpreter, which is not there"),
                                        ("echo no first line\n", "a script needs a first line")])
def test_a_processor_that_cannot_be_started_is_a_failed_stage_without_retry(project, text, said):
    project.write("in.txt", "x\n")
    project.write("bin/p.sh", text, executable=True)
    project.spec({"processor": "bin/p.sh", "inputs": ["in.txt"], "retry": {"attempts": 3, "baseDelayMs": 1}})
    done = project.run()
    assert done.code == 1 and "cannot start" in done.out and said in done.out and "[RETRY]" not in done.out, done
    assert not project.exists("locks/s1.lock")


@linux_only
def test_a_timeout_asks_politely_and_the_answer_is_waited_for(project):
    shell_of(project, "trap 'echo polite > \"$PIPELINE_OUTPUT_DIR/polite\"; exit 0' TERM\nwhile :; do sleep 0.02; done\n", timeoutSec=1.5, graceSec=PATIENCE_S)
    done = project.run("--run-id", "r")
    assert done.code == 1 and "[FAIL] s1: timeout after 1.5 s" in done.out, done
    assert project.read("data/s1/polite") == "polite\n" and processes_of(project) == []
    assert project.json("state/stage_s1.json")["lastStatus"] == "failed"


@linux_only
def test_who_does_not_listen_is_ended_after_the_grace(project):
    spec_of(project, TOOLS + """
signal.signal(signal.SIGTERM, lambda *_: say("asked"))
fork(lambda: (signal.signal(signal.SIGTERM, signal.SIG_IGN), os.setsid(), say("child", os.getpid()), forever()))
say("pid", os.getpid())
forever()
""", timeoutSec=2, graceSec=0.5)
    begun = time.monotonic()
    done = project.run("--run-id", "r")
    assert done.code == 1 and "[FAIL] s1: timeout after 2 s" in done.out, done
    assert time.monotonic() - begun >= 2.5 and project.exists("data/s1/asked")
    assert is_gone(project.read("data/s1/pid")) and is_gone(project.read("data/s1/child")) and processes_of(project) == []


@linux_only
def test_a_timeout_is_retried_like_any_failure(project):
    spec_of(project, "if os.environ['PIPELINE_ATTEMPT'] == '1':\n    time.sleep(600)\nopen(out + '/o', 'w').write('x')\n",
            timeoutSec=2, graceSec=0, retry={"attempts": 2, "baseDelayMs": 1})
    done = project.ok("--run-id", "r")
    assert "[RETRY] s1 attempt 1/2: timeout after 2 s; next in 0.00s" in done.out and "[DONE]" in done.out, done


LISTENING = TOOLS + """
def stop(*_):
    say("polite")
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
fork(lambda: (os.setsid(), say("child", os.getpid()), forever()))
say("pid", os.getpid())
while True:
    time.sleep(0.005)
"""


# With a grandchild that outlives its parent, in a group of its own, so that no CTRL_BREAK reaches it.
ON_WINDOWS = """
import signal, subprocess
def say(name, text=""):
    open(out + "/." + name, "w").write(str(text))
    os.replace(out + "/." + name, out + "/" + name)
grandchild = "import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], stdout=subprocess.DEVNULL, creationflags=0x200).pid)"
say("child", subprocess.check_output([sys.executable, "-c", grandchild]).decode().strip())
"""
BREAKS = ON_WINDOWS + """
def stop(*_):
    say("polite")
    sys.exit(0)
signal.signal(signal.SIGBREAK, stop)
say("pid", os.getpid())
while True:
    time.sleep(0.005)
"""
BREAKS_NOT = BREAKS.replace("sys.exit(0)", "return")


@windows_only
@pytest.mark.parametrize("body, grace_s", [(BREAKS, PATIENCE_S), (BREAKS_NOT, 0.2)], ids=["at once", "never"])
def test_on_windows_too_an_interrupt_ends_the_run_wholly(project, asked, body, grace_s):
    spec_of(project, body, graceSec=grace_s)
    process = started(project, "pid", "child", **asked)
    pids = [project.read("data/s1/" + one) for one in ("pid", "child")]
    project.write("stop", "")
    got, out, err = finish(process)
    assert got == 130 and "[STOP] s1: interrupted" in out and "state: interrupted" in out, (got, out, err)
    assert all(map(is_gone, pids)), pids
    assert project.json("state/run_r.json")["state"] == "interrupted" and not project.exists("locks/s1.lock")


@windows_only
@pytest.mark.parametrize("body, code", [(BREAKS, 1), (BREAKS_NOT, 1), (ON_WINDOWS, 0)], ids=["at once", "never", "no limit"])
def test_the_end_of_an_attempt_is_that_of_its_job(project, body, code):
    limits = {} if code == 0 else {"timeoutSec": 3, "graceSec": 0.2}
    spec_of(project, body + "say('o')\n", **limits)
    done = project.run()
    assert done.code == code and ("timeout after 3 s" in done.out) is bool(limits), done
    assert is_gone(project.read("data/s1/child"))


@windows_only
def test_what_a_killed_runner_leaves_ends_with_it_and_the_next_run_goes_on(project):
    spec_of(project, BREAKS)
    process = started(project, "pid", "child")
    pids = [project.read("data/s1/" + one) for one in ("pid", "child")]
    process.kill()
    process.communicate()
    project.processor("p", "open(out + '/o', 'w').write('x')")
    done = project.ok("--run-id", "r2", timeout=PATIENCE_S)
    assert "[DONE] s1" in done.out and all(map(is_gone, pids)), done


@linux_only
@pytest.mark.parametrize("name, code", [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_ends_the_run_politely_and_wholly(project, name, code):
    spec_of(project, LISTENING, graceSec=PATIENCE_S)
    process = started(project, "pid", "child")
    pids = [project.read("data/s1/" + one) for one in ("pid", "child")]
    process.send_signal(getattr(signal, name))
    got, out, err = finish(process)
    assert got == code and "[STOP] s1: interrupted" in out and "state: interrupted" in out, (got, out, err)
    assert project.exists("data/s1/polite") and all(map(is_gone, pids)) and processes_of(project) == []
    assert project.json("state/run_r.json")["state"] == "interrupted" and project.json("state/stage_s1.json")["lastStatus"] == "interrupted"
    assert not project.exists("locks/s1.lock")


@linux_only
def test_a_second_ctrl_c_is_the_end_of_the_grace(project):
    spec_of(project, TOOLS + """
signal.signal(signal.SIGTERM, lambda *_: say("asked"))
say("pid", os.getpid())
forever()
""", graceSec=10 * PATIENCE_S)
    process = started(project, "pid")
    process.send_signal(signal.SIGINT)
    wait_until(lambda: project.exists("data/s1/asked"), "the polite request")
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    got, out, err = finish(process)
    assert got == 130 and "[STOP] s1: interrupted" in out, (got, out, err)
    assert is_gone(project.read("data/s1/pid")) and processes_of(project) == []


@linux_only
def test_a_run_with_hang_up_ignored_goes_on_as_nohup_wants(project):
    spec_of(project, TOOLS + """
say("pid", os.getpid())
while not os.path.exists("go"):
    time.sleep(0.005)
say("o", signal.getsignal(signal.SIGHUP) == signal.SIG_IGN)
""")
    process = started(project, "pid", preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    process.send_signal(signal.SIGHUP)
    project.write("go", "")
    got, out, err = finish(process)
    assert got == 0 and project.read("data/s1/o") == "True", (got, out, err)


def test_an_interrupt_during_the_delay_before_a_retry_ends_the_run(project, asked):
    spec_of(project, "sys.exit(75)", retry={"attempts": 2, "baseDelayMs": 10 ** 7, "maxDelayMs": 10 ** 7})
    process = project.start("--run-id", "r", **asked)
    while not process.stdout.readline().startswith(b"[RETRY]"):
        pass
    project.write("stop", "")
    got, out, err = finish(process)
    assert got == 130 and "[STOP] s1: interrupted" in out, (got, out, err)


def test_a_signal_between_the_look_for_one_and_the_wait_is_not_waited_out():
    """Nothing runs, and a delay before a retry is to be waited for: whoever waits is asked for again, and sees the signal."""
    def wait(*_):
        raise AssertionError("it waits")
    signals = types.SimpleNamespace(number=signal.SIGINT, count=1, wait=wait)
    attempts.Pool(signals, None).pump(600)


def test_a_stage_after_an_interrupt_is_not_run(project, asked):
    spec_of(project, BREAKS if sys.platform == "win32" else LISTENING, graceSec=PATIENCE_S)
    project.processor("q", "open(out + '/o', 'w').write('x')")
    project.spec({"processor": "bin/p.py", "inputs": ["in.txt"]}, {"processor": "bin/q.py", "inputs": ["in.txt"]})
    process = started(project, "pid", "child", **asked)
    project.write("stop", "")
    got, out, err = finish(process)
    assert got == 130 and not project.exists("data/s2/o"), (got, out, err)
    assert [one["status"] for one in project.json("state/run_r.json")["stages"]] == ["interrupted", "notRun"]


DAEMONS = {
    "a child": "fork(lambda: (say('child', os.getpid()), forever()))",
    "in a session of its own": "fork(lambda: (os.setsid(), say('child', os.getpid()), forever()))",
    "a daemon": """
def daemon():
    os.setsid()
    fork(lambda: (os.closerange(0, 1000), say('child', os.getpid()), forever()))
    os._exit(0)
os.waitpid(fork(daemon), 0)
""",
    "without its environment": "subprocess.Popen(['env', '-i', sys.executable, 'child.py', out], start_new_session=True)",
}


@linux_only
@pytest.mark.parametrize("how", DAEMONS.values(), ids=DAEMONS.keys())
@pytest.mark.parametrize("code", [0, 5])
def test_what_a_processor_leaves_running_is_ended_after_it(project, how, code):
    """Also one that holds standard output open: the run does not wait for it."""
    project.write("child.py", "import os, sys\nout = sys.argv[1]\nimport time\n" + TOOLS + "say('child', os.getpid())\nforever()\n")
    spec_of(project, TOOLS + how + """
while not os.path.exists(out + "/child"):
    time.sleep(0.005)
sys.exit(%d)
""" % code)
    done = project.run("--run-id", "r")
    assert done.code == (1 if code else 0), done
    assert is_gone(project.read("data/s1/child")) and processes_of(project) == []
    size = project.path("data/s1/o").stat().st_size
    if not code:
        assert {"path": "o", "bytes": size} == {key: value for key, value in project.json("state/stage_s1.json")["outputs"][1].items() if key != "sha256"}


# Orphans fall to the next one above that adopts them; nothing is left once that has let them go.
ORPHANS = """
adopter = os.getppid()
while %(program)r not in open("/proc/%%d/cmdline" %% adopter).read():
    adopter = int(open("/proc/%%d/stat" %% adopter).read().rpartition(")")[2].split()[1])
def children():
    return {int(pid) for task in os.listdir("/proc/%%d/task" %% adopter) for pid in open("/proc/%%d/task/%%s/children" %% (adopter, task)).read().split()}
before = children()
for _ in range(8):
    child = os.fork()
    if not child:
        os.fork()
        os._exit(0)
    os.waitpid(child, 0)
deadline = time.monotonic() + 20
while children() - before and time.monotonic() < deadline:
    time.sleep(0.01)
left = len(children() - before)
"""


@linux_only
@pytest.mark.parametrize("stage", [{"inputs": ["data/*.txt"]}, {"forEach": "data/*.txt", "forkServer": True}], ids=["plain", "served"])
def test_what_falls_to_the_runner_does_not_wait_for_the_end_of_the_attempt(project, stage):
    """As zombies they counted among the processes that their user may have."""
    project.write("data/a.txt", "")
    project.write("data/b.txt", "")
    project.spec(dict({"processor": project.processor("p", ORPHANS % {"program": "pipeline_runner.py"} + "sys.exit(left)\n"), "outputDir": "out"}, **stage))
    project.ok("--jobs", "1")


@linux_only
def test_only_those_are_reaped_for_whom_nobody_else_waits(tmp_path):
    assert drive(tmp_path, """
process_tree.reap_orphans(set())
children = []
for code in range(4):
    children.append(os.fork())
    if not children[-1]:
        os._exit(code)
for pid in children:
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
process_tree.reap_orphans(set(children[:1] + children[3:]))
print(process_table.own_children() == children[:1] + children[3:], [os.waitpid(pid, 0)[1] >> 8 for pid in children[:1] + children[3:]])
""") == "True [0, 3]\n"


@linux_only
def test_a_tree_that_forks_while_it_is_ended_is_ended(project):
    spec_of(project, TOOLS + """
def breed():
    os.setsid()
    for number in range(400):
        fork(lambda: time.sleep(600))
        time.sleep(0.001)
        if number == 20:
            say("breeding%d" % os.getpid())
    time.sleep(600)
fork(breed)
fork(breed)
while len(os.listdir(out)) < 2:
    time.sleep(0.001)
""")
    project.ok("--run-id", "r")
    assert processes_of(project) == []


# --- the runner alone is killed --------------------------------------------------------------------------------------

LEFT = {
    "a processor": TOOLS + "say('child', os.getpid())\nforever()\n",
    "a grandchild": TOOLS + "fork(lambda: (say('child', os.getpid()), forever()))\nforever()\n",
    "a grandchild whose parent is gone": TOOLS + "\n"
    "def orphan(parent):\n    while os.getppid() == parent:\n        time.sleep(0.001)\n    say('child', os.getpid())\n    forever()\n"
    "def parent():\n    me = os.getpid()\n    fork(lambda: orphan(me))\nos.waitpid(fork(parent), 0)\nforever()\n",
    "one in its own session": TOOLS + "fork(lambda: (os.setsid(), say('child', os.getpid()), forever()))\nforever()\n",
    "one that ignores signals": TOOLS + "for n in (1, 2, 15):\n    signal.signal(n, signal.SIG_IGN)\nsay('child', os.getpid())\nforever()\n",
}
CLOSED = "import os, sys, time\nos.closerange(3, 1000)\nout = sys.argv[1]\n" + TOOLS + "say('child', os.getpid())\nforever()\n"
CLEARED = "exec env -i sh -c 'echo $$ > \"$1/.child\"; mv \"$1/.child\" \"$1/child\"; while :; do echo x >> \"$1/o\"; sleep 0.01; done' sh \"$PIPELINE_OUTPUT_DIR\"\n"
LEFT_SHELLS = {
    "a shell script": "d=$PIPELINE_OUTPUT_DIR\necho $$ > \"$d/.child\"; mv \"$d/.child\" \"$d/child\"\nwhile :; do echo x >> \"$d/o\"; sleep 0.01; done\n",
    "a cleared processor": CLEARED,
    "a cleared processor without the lock, by its session": "exec env -i '%s' closed.py \"$PIPELINE_OUTPUT_DIR\"\n" % sys.executable,
    "a cleared child in another session, by the lock": "setsid " + CLEARED.replace("exec ", "") + "\n",
}


@linux_only
@pytest.mark.parametrize("how", list(LEFT) + list(LEFT_SHELLS))
def test_killing_the_runner_alone_ends_its_processors_at_once(project, how):
    if how in LEFT:
        spec_of(project, LEFT[how])
    else:
        project.write("closed.py", CLOSED)
        shell_of(project, LEFT_SHELLS[how])
    process = started(project, "child", "o")
    child = project.read("data/s1/child").strip()
    assert not is_gone(child)
    process.kill()
    wait_until(lambda: is_gone(child) and processes_of(project) == [], "the end of what the runner left")
    finish(process)
    size = project.path("data/s1/o").stat().st_size
    assert project.run("unlock", "s1").code == 0        # nobody holds the stage any more
    assert project.path("data/s1/o").stat().st_size == size


def test_on_windows_nothing_is_left_of_a_start_that_fails_half_way(monkeypatch, tmp_path):
    """The process is suspended then, and in no job: nobody would ever end it."""
    done = []

    class Popen:
        _handle = 7

        def __init__(self, *words, **options):
            done.append("started")

        def kill(self):
            done.append("killed")

    class Job:
        def __init__(self, memory_bytes):
            pass

        def take(self, handle):
            raise OSError(5, "Access is denied")

        def close(self):
            done.append("closed")
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(subprocess, "Popen", Popen)
    monkeypatch.setattr(windows_jobs, "Job", Job)
    launch = types.SimpleNamespace(argv=["p"], env={}, folder=str(tmp_path), resources={}, output_path="", stdin=None, feeder=None, lock_descriptor=-1)
    with pytest.raises(OSError, match="denied"):
        process_start.start(launch)
    assert done == ["started", "killed", "closed"]


# --- the guardian's loop ---------------------------------------------------------------------------------------------

def ended_by_loop(*notices):
    """Return what guard_loop ends after these notices, each written by itself."""
    reader, writer = os.pipe()
    for notice in notices:
        os.write(writer, notice)
    os.close(writer)
    ended = []
    guard_loop(reader, ended.append)
    os.close(reader)
    return ended


def test_the_guardian_ends_what_was_not_released():
    first, second = b"+\ttok1\t0\t77\t/l/.s.guard\0", b"+\ttok2\t12\t77\t/l/.t.guard\0"
    one, two = Traits("tok1", 0, "/l/.s.guard", 77), Traits("tok2", 12, "/l/.t.guard", 77)
    assert ended_by_loop() == []
    assert ended_by_loop(first) == [[one]]
    assert ended_by_loop(first, first.replace(b"\t0\t", b"\t55\t")) == [[one._replace(session=55)]]
    assert ended_by_loop(first, second, b"-\ttok1\t0\t0\t\0") == [[two]]
    assert ended_by_loop(first, b"-\ttok1\t0\t0\t\0") == []
    assert ended_by_loop(b"-\tunknown\t0\t0\t\0") == []
    assert ended_by_loop(first[:7], first[7:] + second[:3], second[3:]) == [[one, two]]       # notices cut anywhere
    assert ended_by_loop(first + second[:-1]) == [[one]]                                      # the runner died in a notice


@posix_only
def test_paths_with_tabs_line_ends_and_odd_bytes_reach_the_guardian():
    reader, writer = os.pipe()
    guardian = Guardian()
    guardian.pipe = writer
    traits = Traits("tok", 5, "/a\tb\nc/" + os.fsdecode(b"\xff"), 6)
    guardian.watch(traits)
    guardian.close()
    guardian.close()
    ended = []
    guard_loop(reader, ended.append)
    os.close(reader)
    assert ended == [[traits]]


def test_a_guardian_that_is_gone_cannot_stop_the_runner():
    reader, writer = os.pipe()
    os.close(reader)
    guardian = Guardian()
    guardian.watch(Traits("t", 0, "", 0))       # never started: nothing to tell
    guardian.pipe = writer
    guardian.watch(Traits("t", 0, "", 0))
    guardian.release(Traits("t", 0, "", 0))
    guardian.close()


DRIVER = "import json, os, signal, subprocess, sys, time\nsys.path.insert(0, %r)\nimport attempts, process_table, process_traits, process_tree, run_signals\nfrom guardian import Guardian\n" % str(ROOT / "src")


def drive(folder, body, **options) -> str:
    done = subprocess.run([sys.executable, "-c", DRIVER + body], cwd=str(folder), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, timeout=120, **options)
    assert done.returncode == 0, (done.returncode, done.stdout.decode(), done.stderr.decode())
    return done.stdout.decode()


@posix_only
def test_a_guardian_that_is_stopped_does_not_stop_the_runner_for_ever(tmp_path):
    text = drive(tmp_path, """
import guardian as module
module.PATIENCE_S = 0.1
guardian = Guardian(print)
guardian.start()
pid = guardian.pid
os.kill(pid, signal.SIGSTOP)
for number in range(5000):
    guardian.watch(process_traits.Traits("token%d" % number, 0, "/somewhere/" + "x" * 100, 1))
    guardian.release(process_traits.Traits("token%d" % number, 0, "", 0))
deadline = time.monotonic() + 30
while process_table.start_time(pid) is not None and time.monotonic() < deadline:
    time.sleep(0.01)
print(pid, process_table.start_time(pid))
""")
    said, told = text.splitlines()
    assert told.endswith(" None") and said.startswith("the guardian (pid %s) did not read what it was told for 0.1 s" % told.split()[0]), text


@posix_only
def test_a_guardian_that_has_no_time_to_read_is_waited_for():
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    said, ended = [], []
    guardian = Guardian(said.append)
    guardian.pipe = writer
    thread = threading.Timer(0.1, guard_loop, (reader, ended.append))
    thread.start()
    for number in range(3000):
        guardian.watch(Traits("token%d" % number, 0, "/somewhere/" + "x" * 100, 1))
    guardian.close()
    thread.join()
    os.close(reader)
    assert said == [] and [one.token for one in ended[0]] == ["token%d" % number for number in range(3000)]


@linux_only
def test_the_guardian_holds_nothing_of_the_runner_and_leaves_with_it(tmp_path):
    text = drive(tmp_path, """
before = set(os.listdir("/proc"))
lock = os.open("file", os.O_RDWR | os.O_CREAT)
os.set_inheritable(lock, True)
guardian = Guardian()
guardian.start()
guardian.start()
mine = open("/proc/self/cmdline", "rb").read()
def command(pid):
    try:
        return open("/proc/%s/cmdline" % pid, "rb").read()
    except OSError:
        return b""
found = [int(pid) for pid in os.listdir("/proc") if pid.isdigit() and int(pid) != os.getpid() and command(pid) == mine]
assert len(found) == 1, found
pid, = found
def settled():
    return sorted(os.listdir("/proc/%d/fd" % pid), key=int)
deadline = time.monotonic() + 30
while len(settled()) != 4 and time.monotonic() < deadline:
    time.sleep(0.005)
links = [os.readlink("/proc/%d/fd/%s" % (pid, name)) for name in settled()]
stat = process_table.read_stat(pid)
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    os.kill(pid, number)            # none of them stops it: it has work to do after the runner
children = process_table.own_children()
left = subprocess.Popen(["sleep", "600"], env=dict(os.environ, PIPELINE_ATTEMPT_TOKEN="tok.1"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
guardian.watch(process_traits.Traits("tok.1", 0, "", 0))
print(json.dumps([pid, left.pid, links, stat[1] != os.getpid(), stat[2] != os.getsid(0), children]), flush=True)
os._exit(0)
""")
    pid, left, links, no_child, own_session, children = json.loads(text)
    assert links[:3] == [os.devnull] * 3 and links[3].startswith("pipe:") and len(links) == 4
    assert no_child and own_session and children == []
    wait_until(lambda: is_gone(pid) and is_gone(left), "the end of the guardian and of what it had to end")


# --- a moment without the means to look ------------------------------------------------------------------------------

# The first look of each process at the one that `left` tells of finds that the system has no file to give.
RUNNER_IN_SHORT = """
import builtins, errno, os, runpy, sys
sys.path.insert(0, %r)
import process_table, process_traits
failed = []
def short(path, *more, **options):
    if not failed and os.path.exists("left") and path == "/proc/%%s/stat" %% builtins.open("left").read():
        failed.append(path)
        raise OSError(errno.ENFILE, os.strerror(errno.ENFILE), path)
    return builtins.open(path, *more, **options)
process_table.open = process_traits.open = short
sys.argv = sys.argv[1:]
sys.path.pop(0)
runpy.run_path(sys.argv[0], run_name="__main__")
""" % str(ROOT / "src")
LEAVES = TOOLS + """
def leave(pid):
    with open("left.part", "w") as file:
        file.write(str(pid))
    os.rename("left.part", "left")
"""


def started_in_short(project):
    driver = project.write("driver.py", RUNNER_IN_SHORT)
    python, *words = project.argv("--run-id", "r")
    return subprocess.Popen([python, str(driver), *words], cwd=str(project.root), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@linux_only
def test_what_cannot_be_looked_at_for_a_moment_is_ended_with_its_attempt(project):
    spec_of(project, LEAVES + "say('o')\nleave(subprocess.Popen(['sleep', '600'], start_new_session=True, env={}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).pid)\n")
    assert finish(started_in_short(project))[0] == 0
    try:
        assert is_gone(project.read("left"))
    finally:
        process_tree.send([int(project.read("left"))], signal.SIGKILL)


@linux_only
def test_what_cannot_be_looked_at_for_a_moment_is_ended_by_the_guardian(project):
    spec_of(project, LEAVES + "leave(os.getpid())\nforever()\n")
    runner = started_in_short(project)
    wait_until(lambda: project.exists("left"), "the processor's start")
    runner.kill()
    runner.communicate(timeout=PATIENCE_S)
    wait_until(lambda: is_gone(project.read("left")), "the processor's end")


class Failing:
    """Let looks at one process fail, so many times, -1: always. *looks*: words of a call and of what is below /proc/PID."""

    def __init__(self, monkeypatch, looks, error, times):
        self.pid, self.looks, self.error, self.times, self.lists = 0, looks, error, times, 0
        for name in ("listdir", "readlink", "stat"):
            monkeypatch.setattr(os, name, self.failing(name, getattr(os, name)))
        for module in (process_table, process_traits):
            monkeypatch.setattr(module, "open", self.failing("open", open), raising=False)

    def failing(self, name, call):
        def instead(path, *more, **options):
            self.lists += path == "/proc"
            start = "/proc/%d/" % self.pid
            if self.times and str(path).startswith(start) and "%s %s" % (name, str(path)[len(start):].split("/")[0]) in self.looks:
                self.times -= 1
                raise OSError(self.error, os.strerror(self.error), path)
            return call(path, *more, **options)
        return instead


@pytest.fixture
def left(tmp_path):
    """A process that carries a token only, one that holds a lock only, and one that does nothing of it: (process, Traits) each."""
    guard = str(tmp_path / "guard")
    descriptor = stage_locks.open_guard(guard)
    assert stage_locks.try_kernel_lock(descriptor)
    waits = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    env = {name: value for name, value in os.environ.items() if name != "PIPELINE_ATTEMPT_TOKEN"}
    made = [subprocess.Popen(waits, stdin=subprocess.PIPE, env=dict(env, PIPELINE_ATTEMPT_TOKEN="short.1")),
            subprocess.Popen(waits, stdin=subprocess.PIPE, env=env, pass_fds=(descriptor,)), subprocess.Popen(waits, stdin=subprocess.PIPE, env=env)]
    os.close(descriptor)
    yield list(zip(made, [("short", "", 0), ("", guard, os.getpid()), ("short", guard, os.getpid())]))
    for one in made:
        if one.poll() is None:
            one.kill()
        one.communicate()


@linux_only
@pytest.mark.parametrize("error", [errno.EMFILE, errno.ENFILE, errno.ENOMEM], ids=errno.errorcode.get)
@pytest.mark.parametrize("which, look", [(0, "open stat"), (0, "open environ"), (1, "open stat"), (1, "open environ"), (1, "listdir fd"), (1, "readlink fd"),
                                         (1, "stat fd"), (1, "open fdinfo")])
def test_a_dead_owners_process_is_ended_though_it_cannot_be_looked_at_for_a_moment(monkeypatch, left, which, look, error):
    failing = Failing(monkeypatch, [look], error, times=8)
    process, given = left[which]
    failing.pid = process.pid
    assert process_tree.end_of_dead_owner(*given) == [] and failing.times < 8
    failing.times = 0
    assert is_gone(process.pid)


@linux_only
@pytest.mark.parametrize("error", [errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.EIO], ids=errno.errorcode.get)
def test_a_strangers_process_that_lets_nobody_look_holds_nobody_up(monkeypatch, left, error):
    failing = Failing(monkeypatch, ["open environ", "listdir fd", "readlink fd"], error, times=-1)
    process, given = left[2]
    failing.pid = process.pid
    assert process_tree.end_of_dead_owner("nobody's", "", 0) == [] and failing.lists == 2      # for launchers, and for all
    assert process_tree.end_of_dead_owner(*given) == [] and [one.poll() is None for one, _ in left] == [False, False, True]


@linux_only
def test_who_cannot_be_looked_at_for_long_is_left_alone_and_told(monkeypatch, left):
    failing = Failing(monkeypatch, ["open environ"], errno.ENFILE, times=-1)
    process, unsure = left[0][0], set()
    failing.pid = process.pid
    wanted = [Traits("short", 0, "", 0)]
    assert process_tree.end_all(lambda: process_traits.members(wanted, unsure), limit_s=0.05, unsure=unsure) == [process.pid] and process.poll() is None
    failing.times = 0
    assert process_traits.members(wanted, unsure) == [process.pid] and unsure == set()


@linux_only
def test_an_orphan_of_which_nobody_can_tell_whose_it_is_may_be_a_siblings(monkeypatch, left):
    process, stranger = left[0][0], left[2][0]
    failing = Failing(monkeypatch, ["open environ"], errno.ENFILE, times=3)
    failing.pid = process.pid
    others = set(process_table.own_children()) - {process.pid, stranger.pid}
    tree = process_tree.Tree(GONE, "short.2", None, others, lambda: [(GONE + 1, "short.1")])
    tree.leader_is_gone = True
    assert tree.end() == [] and tree.unclear == [stranger.pid] and process.poll() is None
    monkeypatch.setattr(process_tree.end_all, "__defaults__", (0.05, 0, frozenset()))
    failing.times = -1
    assert tree.end() == [] and tree.unclear == sorted([process.pid, stranger.pid]) and process.poll() is None


@linux_only
def test_children_are_told_though_their_list_or_they_cannot_be_read_for_a_moment(tmp_path):
    assert drive(tmp_path, """
import builtins, errno
child = subprocess.Popen(["sleep", "600"])
real, left = os.listdir, {"list": 0, "stat": 0}
def fail(kind, number):
    if left[kind]:
        left[kind] -= 1
        raise OSError(number, os.strerror(number))
def listdir(path):
    if path.startswith("/proc/self/task"):
        fail("list", errno.EMFILE)
        if is_old:
            raise FileNotFoundError(errno.ENOENT, "old kernel", path)
    return real(path)
def opened(path, *more, **options):
    if path == "/proc/%d/stat" % child.pid:
        fail("stat", errno.ENFILE)
    return builtins.open(path, *more, **options)
os.listdir, process_table.open = listdir, opened
for is_old in (False, True):
    left.update(list=2, stat=1)
    assert process_table.own_children() == [child.pid], is_old
assert left == {"list": 0, "stat": 0}
child.kill()
print("ok")
""") == "ok\n"


# --- who is who ------------------------------------------------------------------------------------------------------

HIDDEN = """
import sys
sys.path.insert(0, %r)
import process_table, process_tree, stage_locks
other, gone = map(int, sys.argv[1:])
assert process_table.read_stat(other) is None and process_table.start_time(other) == process_table.UNTOLD
assert process_table.start_time(gone) is None and process_table.start_time(process_table.os.getpid()) not in (None, process_table.UNTOLD)
for pid, is_there in ((other, True), (gone, False)):
    owner = {"pid": pid, "processStart": "1", "token": "t", "bootId": "b", "host": stage_locks.host_name()}
    assert stage_locks.owner_is_dead(owner, "b", process_tree) is not is_there and not stage_locks.lives_here(owner, "b", process_tree)
print("told")
""" % str(ROOT / "src")


@linux_only
def test_another_accounts_process_that_proc_hides_is_there_and_untold():
    """hidepid=2: nothing of it is seen, and a living owner must not be taken for a dead one."""
    hide = ["unshare", "-m", "sh", "-c", "mount -t proc -o hidepid=2 proc /proc && exec \"$@\"", "sh"]
    words = as_user(0)
    if not shutil.which("unshare") or subprocess.run([*hide, "true"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode:
        pytest.skip("nothing may be mounted here")
    done = subprocess.run([*hide, *words, sys.executable, "-c", HIDDEN, str(os.getpid()), str(GONE)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60, env=without_coverage())
    assert done.stdout == b"told\n", done


@linux_only
def test_what_signals_tell_of_a_process_that_proc_does_not_show(monkeypatch):
    monkeypatch.setattr(process_table, "read_stat", lambda pid: None)
    for error, told in ((PermissionError(1, "no"), process_table.UNTOLD), (ProcessLookupError(3, "no"), None), (None, None)):
        def kill(pid, number, error=error):
            if error is not None:
                raise error
        monkeypatch.setattr(os, "kill", kill)
        assert process_table.start_time(4711) == told


@linux_only
def test_processes_are_told_by_pid_and_start(tmp_path):
    me = process_table.start_time(os.getpid())
    assert me and process_table.is_alive(os.getpid(), me) and process_table.is_alive(os.getpid(), None)
    assert not process_table.is_alive(os.getpid(), me + "0")
    child = subprocess.Popen([sys.executable, "-c", ""])
    wait_until(lambda: Path("/proc/%d/stat" % child.pid).read_text().split()[2] == "Z", "the child's end")
    assert process_table.start_time(child.pid) is None       # a zombie has ended
    child.wait()
    assert process_table.read_stat(child.pid) is None


@linux_only
def test_a_command_name_with_brackets_and_blanks_is_read(tmp_path):
    program = tmp_path / "a) S 1 (b"
    program.symlink_to("/bin/cat")
    child = subprocess.Popen([str(program)], stdin=subprocess.PIPE, start_new_session=True)
    wait_until(lambda: "a) S 1" in Path("/proc/%d/stat" % child.pid).read_text(), "the start")
    assert process_table.read_stat(child.pid)[1:3] == (os.getpid(), child.pid)
    child.communicate()


@linux_only
@pytest.mark.parametrize("root, is_ours", [("here", True), ("link", True), ("gone", True), ("", True), ("copy", False)])
def test_the_token_of_an_attempt_in_another_folder_is_that_of_a_copy(tmp_path, root, is_ours):
    for name in ("here", "copy"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to("here")
    env = dict(os.environ, PIPELINE_ATTEMPT_TOKEN="tok1.1", PIPELINE_ROOT=str(tmp_path / root) if root else "")
    with subprocess.Popen([sys.executable, "-c", "print(1, flush=True); input()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env) as process:
        process.stdout.readline()
        assert process_traits.members([Traits("tok1", 0, "", 0, str(tmp_path / "here"))]) == ([process.pid] if is_ours else [])
        assert process_traits.members([Traits("tok1", 0, "", 0)]) == [process.pid]
        process.communicate(b"\n")


@linux_only
def test_members_are_found_by_token_session_and_descent(tmp_path):
    waits = "import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', 'import sys; sys.stdin.read()'], env={%s}); print(p.pid, flush=True); p.wait()"
    def start(own, childs, **options):
        process = subprocess.Popen([sys.executable, "-c", waits % childs], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                   env=dict(os.environ, PIPELINE_ATTEMPT_TOKEN=own), **options)
        return process, int(process.stdout.readline())
    one, ones_child = start("tok1.1", "")
    two, twos_child = start("tok2.1", "'PIPELINE_ATTEMPT_TOKEN': 'tok2.1'", start_new_session=True)
    try:
        assert process_traits.has_token(one.pid, "tok1.1") and process_traits.has_token(one.pid, "tok1")
        assert not process_traits.has_token(one.pid, "tok2") and not process_traits.has_token(ones_child, "tok1")
        assert not process_traits.has_token(one.pid, "ok1.1")
        assert process_traits.members([Traits("tok1", 0, "", 0)]) == sorted([one.pid, ones_child])
        assert process_traits.members([Traits("", two.pid, "", 0)]) == sorted([two.pid, twos_child])
        assert process_traits.members([Traits("nobody's", 0, "", 0), Traits("", 0, "", 0)]) == []
        assert process_traits.members([Traits("tok1", 0, "", 0), Traits("tok2", 0, "", 0)]) == sorted([one.pid, ones_child, two.pid, twos_child])
    finally:
        for process in (one, two):
            process.communicate()


@posix_only
def test_end_all_gives_up_after_its_limit_and_says_who_would_not_go(monkeypatch):
    sent = []
    monkeypatch.setattr(process_tree, "send", lambda pids, number: sent.append((list(pids), number)))
    answers = [[5, 6], [6], []]
    assert process_tree.end_all(lambda: answers.pop(0)) == []
    assert [pids for pids, _ in sent] == [[5, 6], [6]] and {number for _, number in sent} == {getattr(signal, "SIGKILL", signal.SIGTERM)}
    assert process_tree.end_all(lambda: [7], limit_s=0.05) == [7]


@posix_only
def test_what_took_longer_to_find_than_the_limit_is_killed_all_the_same(monkeypatch):
    sent = []
    monkeypatch.setattr(process_tree, "send", lambda pids, number: sent.append(list(pids)))
    answers = [[5], []]
    assert process_tree.end_all(lambda: answers.pop(0), limit_s=-1) == [] and sent == [[5]]
    assert process_tree.end_all(lambda: [7], limit_s=-1) == [7] and sent == [[5], [7]]


@posix_only
def test_signals_to_those_who_are_gone_are_passed_over():
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    process_tree.send([gone.pid], signal.SIGTERM)
    process_tree.reap([gone.pid])


@linux_only
def test_own_children_with_and_without_the_kernels_list(tmp_path):
    assert drive(tmp_path, """
children = [subprocess.Popen(["sleep", "600"]) for _ in range(3)]
pids = sorted(child.pid for child in children)
assert sorted(process_table.own_children()) == pids
real = os.listdir
def listdir(path):
    if path.startswith("/proc/self/task"):
        raise FileNotFoundError(path)
    return real(path)
os.listdir = listdir
assert sorted(process_table.own_children()) == pids
for child in children:
    child.kill()
print("ok")
""") == "ok\n"


@linux_only
def test_children_that_are_not_of_the_attempt_are_left_alone(tmp_path):
    drive(tmp_path, """
other = subprocess.Popen(["sleep", "600"])
assert process_tree.become_subreaper()
mine = subprocess.Popen(["sh", "-c", "sleep 600 & sleep 600 & exit 3"], start_new_session=True)
tree = process_tree.Tree(mine.pid, "token", None, [other.pid])
try:
    assert tree.end() == [] and tree.living() == []
    assert mine.wait() in (3, -9)
    assert other.poll() is None, "a stranger was ended"
finally:
    other.kill()
""")


@linux_only
@pytest.mark.parametrize("children, tables, living", [
    ([[]], [], []),
    ([[100], [100]], [{}], []),                                         # a zombie that is not ours to reap
    ([[100], [100, 200]], [{}, {200: ("S", 1, 1, "1")}], [200]),        # it ended between the looks and left us a child
    ([[100], [200], [300], [300]], [{}, {}, {}], []),
    ([[100]], [{100: ("S", 1, 1, "1"), 101: ("S", 100, 1, "1"), 102: ("S", 101, 9, "1"), 7: ("S", 1, 7, "1")}], [100, 101, 102])], ids=str)
def test_what_falls_to_the_runner_while_it_looks_is_not_missed(monkeypatch, children, tables, living):
    monkeypatch.setattr(process_table, "own_children", lambda: children.pop(0))
    monkeypatch.setattr(process_table, "table", lambda: tables.pop(0))
    monkeypatch.setattr(process_tree, "reap", lambda pids: None)
    assert process_tree.Tree(100, "token").living() == living and children == tables == []


# --- systems that are not here: their logic with the calls replaced --------------------------------------------------

GONE = 2 ** 30      # no process has this number

@pytest.mark.parametrize("line, started", [("S    Mon Nov 23 10:00:00 2026   \n", "Mon Nov 23 10:00:00 2026"), ("Z+   Mon Nov 23 10:00:00 2026\n", None),
                                           ("", None), ("S\n", None), ("Ss   Mo 23 Nov 10:00:00 2026\n", "Mo 23 Nov 10:00:00 2026")])
def test_start_time_by_ps(line, started):
    asked = []

    def ps(arguments):
        asked.append(arguments)
        return line
    assert process_table._ps_start_time(GONE, ps) == started
    assert asked[0] == ["-o", "state=,lstart=", "-p", str(GONE)]


@posix_only
def test_where_ps_does_not_even_tell_of_us_a_process_that_is_there_is_not_taken_for_gone(monkeypatch):
    assert process_table._ps_start_time(os.getpid(), lambda arguments: "") == process_table.UNTOLD
    assert process_table._ps_start_time(GONE, lambda arguments: "") is None
    assert process_table._ps_start_time(os.getpid(), lambda arguments: "" if "state=,lstart=" in arguments else "%d\n" % os.getpid()) is None
    monkeypatch.setattr(process_table, "start_time", lambda pid: "now")
    assert process_table.is_alive(1, "now") and not process_table.is_alive(1, "then")
    assert process_table.is_alive(1, process_table.UNTOLD) and not process_table.is_alive(1, process_table.UNTOLD, if_untold=False)


def test_members_by_ps():
    me = os.getpid()
    groups = "  10   10 Ss\n  11   10 R+\n  12   12 S\n  13   10 Z\n %d   10 R\nstrange line here\n" % me
    commands = ("   20 /bin/x PIPELINE_ATTEMPT_TOKEN=tok.1 HOME=/\n   21 /bin/x PIPELINE_ATTEMPT_TOKEN=other\n"
                "   22 grep tok.1\n %d pytest PIPELINE_ATTEMPT_TOKEN=tok.1\n\nheader\n" % me)

    def ps(arguments):
        return groups if "pid=,pgid=,state=" in arguments else commands if "pid=,command=" in arguments and "-axEww" in arguments else "?"
    assert process_traits._ps_members([Traits("tok", 10, "", 0)], ps) == [10, 11, 20]
    assert process_traits._ps_members([Traits("tok.1", 0, "", 0)], ps) == [20]
    assert process_traits._ps_members([Traits("", 12, "", 0)], ps) == [12]
    assert process_traits._ps_members([Traits("", 0, "", 0)], ps) == []


def test_the_real_ps_or_its_absence(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert process_table.run_ps(["-o", "pid="]) == ""
    ps = tmp_path / "ps"
    ps.write_text("#!/bin/sh\necho \"$@\"; echo $LC_ALL $TZ; echo $SECRET\n")
    ps.chmod(0o755)
    monkeypatch.setenv("SECRET", "x")
    if sys.platform != "win32":
        assert process_table.run_ps(["-o", "pid="]) == "-o pid=\nC UTC0\n\n"


class FakeMac:
    """The calls of macOS's C library that tell of processes. table: {pid: (status, parent, group, start in s, in us, arguments and variables)}"""

    def __init__(self, table):
        self.table = table

    def proc_listpids(self, kind, of, buffer, size):
        assert (kind, of) == (1, 0) and size == len(buffer)
        data = b"".join(number.to_bytes(4, sys.byteorder) for number in [*self.table, 0])       # with the kernel's own
        ctypes.memmove(buffer, data, len(data))
        return len(data)

    def proc_pidinfo(self, pid, kind, argument, buffer, size):
        assert (kind, argument.value, size) == (3, 0, 136)
        if pid not in self.table:
            return 0
        status, parent, group, seconds, micros, _ = self.table[pid]
        fields = [(0, 4), (status, 4), (0, 4), (pid, 4), (parent, 4)] + [(501, 4)] * 7 + [(0, 48), (9, 4), (group, 4)] + [(0, 4)] * 4 + [(seconds, 8), (micros, 8)]
        data = b"".join(value.to_bytes(width, sys.byteorder) for value, width in fields)
        assert len(data) == size
        ctypes.memmove(buffer, data, size)
        return size

    def sysctl(self, name, count, buffer, size, new, new_size):
        assert list(name)[:2] == [1, 49] and count.value == 3 and size._obj.value == len(buffer) and new is None and not new_size.value
        if name[2] not in self.table:
            return -1
        data = self.table[name[2]][5]
        ctypes.memmove(buffer, data, len(data))
        size._obj.value = len(data)
        return 0


@pytest.fixture
def on_macos(monkeypatch):
    """Let process_table work as on macOS; return what puts the C library in its place."""
    def put(libc):
        monkeypatch.setattr(process_table, "_MAC", [])
        monkeypatch.setattr(ctypes, "CDLL", lambda name, **options: libc)
    monkeypatch.setattr(process_table, "LINUX", False)
    monkeypatch.setattr(process_table, "MACOS", True)
    monkeypatch.setattr(process_table, "WINDOWS", False)
    return put


def test_macos_tells_of_processes_by_calls_of_its_own(on_macos, monkeypatch):
    run, zombie, token = 2, 5, b"\3\0\0\0/bin/x\0\0\0x\0-v\0HOME=/\0PIPELINE_ATTEMPT_TOKEN=tok.1\0"
    on_macos(FakeMac({10: (run, 1, 10, 1700, 5, b""), 11: (run, 10, 10, 1701, 0, b""), 12: (run, 1, 12, 1702, 0, token), 13: (run, 12, 13, 1703, 0, b"\1\0\0\0y\0y\0"),
                      14: (zombie, 12, 10, 1704, 0, token), 15: (run, 1, 15, 1705, 0, b"\1\0\0\0z\0z\0NOT_PIPELINE_ATTEMPT_TOKEN=tok.1\0"),
                      os.getpid(): (run, 1, 10, 1706, 0, token)}))
    monkeypatch.setattr(process_table, "run_ps", None)
    assert process_traits.members([Traits("", 10, "", 0)]) == [10, 11]
    assert process_traits.members([Traits("tok", 0, "", 0)]) == [12, 13]              # the child of its child, whatever that has shed
    assert process_traits.members([Traits("other", 15, "/none", 12)]) == [15]
    assert process_traits.members([Traits("", 0, "", 0)]) == []
    assert process_table.start_time(10) == "1700.000005" and process_table.start_time(14) is None and process_table.start_time(GONE) is None
    assert process_table.is_alive(10, "1700.000005") and not process_table.is_alive(10, "1699.000005")


@posix_only
def test_on_macos_another_accounts_process_is_there_and_untold(on_macos, monkeypatch):
    def refuse(pid, number):
        raise PermissionError(errno.EPERM, "not yours")
    on_macos(FakeMac({}))
    assert process_table.start_time(os.getpid()) is None     # ours, and not told of: it has just ended
    monkeypatch.setattr(os, "kill", refuse)
    assert process_table.start_time(1) == process_table.UNTOLD


@pytest.mark.parametrize("has_ctypes", [True, False])
def test_a_macos_or_a_python_without_these_calls_asks_ps(has_ctypes, on_macos, monkeypatch):
    on_macos(types.SimpleNamespace())
    if not has_ctypes:
        monkeypatch.setitem(sys.modules, "ctypes", None)
    monkeypatch.setattr(process_table, "run_ps", lambda arguments: "10 10 S\n" if "pid=,pgid=,state=" in arguments else "S Mon Nov 23 10:00:00 2026\n")
    assert process_traits.members([Traits("", 10, "", 0)]) == [10] and process_table.start_time(10) == "Mon Nov 23 10:00:00 2026"


@posix_only
def test_macos_closes_descriptors_up_to_those_it_has_not_up_to_a_limit_that_may_be_none(on_macos, monkeypatch):
    monkeypatch.setattr(os, "listdir", lambda path: {"/dev/fd": ["0", "1", "700", "."]}[path])
    monkeypatch.setattr(os, "sysconf", lambda name: 2 ** 63 - 1)
    assert highest_descriptor() == 700


# The runner as on macOS: ps may not be started, as it is setuid and the network closed; the calls of macOS's C library are answered from /proc.
AS_ON_MACOS = """
import ctypes, os, runpy, struct, sys
src, calls = sys.argv[1:3]
sys.path.insert(0, src)
import process_table
class Libc:
    def __init__(self, real):
        self.real = real
    def __getattr__(self, name):
        return getattr(self.real, name)
class WithCalls(Libc):
    def proc_listpids(self, kind, of, buffer, size):
        data = b"".join(struct.pack("=i", int(name)) for name in os.listdir("/proc") if name.isdigit())
        ctypes.memmove(buffer, data, len(data))
        return len(data)
    def proc_pidinfo(self, pid, kind, argument, buffer, size):
        try:
            with open("/proc/%d/stat" % pid, "rb") as file:
                stat = file.read().rpartition(b")")[2].split()
        except OSError:
            return 0
        if stat[0] in b"ZX":
            return 0
        data = struct.pack("=12I16s32s5Ii2Q", 0, 2, 0, pid, int(stat[1]), *[0] * 7, b"", b"", 0, int(stat[2]), 0, 0, 0, 0, int(stat[19]), 0)
        ctypes.memmove(buffer, data, len(data))
        return len(data)
    def sysctl(self, name, count, buffer, size, new, new_size):
        try:
            with open("/proc/%d/environ" % name[2], "rb") as file:
                data = b"\\0" + file.read()
        except OSError:
            return -1
        ctypes.memmove(buffer, data, len(data))
        size._obj.value = len(data)
        return 0
real = ctypes.CDLL
libc = {"calls": WithCalls, "none": Libc}[calls](real(None, use_errno=True))
ctypes.CDLL = lambda name, **options: libc if name is None else real(name, **options)
process_table.LINUX, process_table.MACOS = False, True
process_table.run_ps = lambda arguments: ""
sys.argv[:3] = [os.path.join(src, "pipeline_runner.py")]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def as_on_macos(project, calls, *arguments):
    project.write("as_on_macos.py", AS_ON_MACOS)
    argv = project.argv(*arguments)
    return [sys.executable, str(project.path("as_on_macos.py")), str(ROOT / "src"), calls] + argv[argv.index(str(RUNNER)) + 1:]


LONG = """
subprocess.Popen(["sleep", "600"], start_new_session=True)
say("up", os.getpid())
forever()
"""


@linux_only
@pytest.mark.parametrize("calls", ["calls", "none"])
def test_on_macos_a_timeout_ends_the_processor_though_nobody_may_start_ps(project, calls):
    spec_of(project, TOOLS + LONG if calls == "calls" else TOOLS + "forever()\n", timeoutSec=1.5, graceSec=PATIENCE_S)
    done = subprocess.run(as_on_macos(project, calls, "--run-id", "r"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, timeout=PATIENCE_S)
    assert done.returncode == 1 and b"[FAIL] s1: timeout after 1.5 s" in done.stdout, done
    assert processes_of(project) == []


@linux_only
def test_on_macos_who_does_not_listen_is_killed_though_nobody_tells_of_him(project):
    spec_of(project, TOOLS + "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nsay('up')\nforever()\n", timeoutSec=1.5, graceSec=0.2)
    done = subprocess.run(as_on_macos(project, "none", "--run-id", "r"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, timeout=PATIENCE_S)
    assert done.returncode == 1 and b"[FAIL] s1: timeout after 1.5 s" in done.stdout and project.exists("data/s1/up"), done
    assert processes_of(project) == []


@linux_only
def test_on_macos_what_a_killed_runner_leaves_is_ended_and_a_living_one_is_not_called_dead(project):
    spec_of(project, TOOLS + "if os.environ['PIPELINE_RUN_ID'] != 'r3':\n" + "".join("    %s\n" % line for line in LONG.strip().splitlines()))
    process = subprocess.Popen(as_on_macos(project, "calls", "--run-id", "r"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL)
    wait_until(lambda: project.exists("data/s1/up") or process.poll() is not None, "the processor's start")
    other = subprocess.run(as_on_macos(project, "calls", "--run-id", "r2"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, timeout=PATIENCE_S)
    assert other.returncode == 4 and b"stage s1 is held by pid %d on" % process.pid in other.stderr and b"dead" not in other.stderr, other
    assert process.poll() is None and not is_gone(project.read("data/s1/up"))
    process.kill()
    process.communicate()
    wait_until(lambda: not processes_of(project), "the guardian's work")
    last = subprocess.run(as_on_macos(project, "calls", "--run-id", "r3"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, timeout=PATIENCE_S)
    assert last.returncode == 0, last


# The runner as in a folder that it was put into by chroot(2), where nobody has mounted /proc: that is not there, or empty.
WITHOUT_PROC = """
import builtins, os, runpy, sys
def refusing(call):
    def refuse(path, *rest, **options):
        if isinstance(path, str) and (path + "/").startswith("/proc/" if is_missing else "/proc/s"):
            raise FileNotFoundError(2, "No such file or directory", path)
        return [] if path == "/proc" else call(path, *rest, **options)
    return refuse
is_missing = sys.argv[1] == "missing"
for module, name in ((builtins, "open"), (os, "open"), (os, "listdir"), (os, "stat"), (os, "readlink")):
    setattr(module, name, refusing(getattr(module, name)))
sys.argv[:2] = []
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def without_proc(project, how, *arguments):
    project.write("without_proc.py", WITHOUT_PROC)
    argv = project.argv(*arguments)
    argv[argv.index(str(RUNNER)):argv.index(str(RUNNER))] = [str(project.path("without_proc.py")), how]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL)


@linux_only
@pytest.mark.parametrize("how", ["missing", "empty"])
@pytest.mark.parametrize("end", ["killed", "timeout"])
def test_without_proc_the_processor_ends_with_its_group_too(project, how, end):
    body = TOOLS + "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nsubprocess.Popen(['sleep', '600'])\nprint('up', flush=True)\nforever()\n"
    spec_of(project, body, **({"timeoutSec": 1.5, "graceSec": 0.2} if end == "timeout" else {}))
    process = without_proc(project, how, "--verbose")
    try:
        if end == "killed":             # once it has shown that, the runner has told the guardian of the group
            assert b"s1 | up\n" in process.stdout
            process.kill()
        out, err = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == (1 if end == "timeout" else -signal.SIGKILL) and (b"[FAIL] s1: timeout after 1.5 s" in out) == (end == "timeout"), (out, err)
        wait_until(lambda: not processes_of(project), "the end of all")
    finally:
        process.kill()
        process_tree.send(processes_of(project), signal.SIGKILL)


@linux_only
def test_without_proc_many_paths_are_looked_at_too(project):
    for number in range(path_signs.SHARE_FROM):
        project.write("data/in/%d" % number, "")
    project.spec({"processor": project.processor("p", "open(out + '/o', 'w').close()\n"), "inputs": ["data/in/*"]})
    project.ok()
    settle(project.write("younger", ""))
    project.ok()
    assert project.exists("state/index_pipeline.json")
    process = without_proc(project, "missing")
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0 and b"[SKIP] s1" in out, (out, err)


class FakeWindows:
    """The calls of kernel32 and ntdll that a job needs; each is noted, and succeeds unless told otherwise."""

    def __init__(self, **answers):
        self.calls, self.answers = [], answers

    def __getattr__(self, name):
        def call(*arguments):
            plain = tuple(one.value if isinstance(one, ctypes.c_void_p) else one for one in arguments)
            self.calls.append((name,) + plain)
            if name == "SetInformationJobObject":
                self.limits = arguments[2]._obj
            return self.answers.get(name, 77 if name == "CreateJobObjectW" else 1)
        return call


def test_a_job_that_gets_no_limits_is_closed():
    api = FakeWindows(SetInformationJobObject=0)
    with pytest.raises(OSError, match="refuses a job object"):
        windows_jobs.Job(api)
    assert api.calls[-1] == ("CloseHandle", 77)


def test_a_job_is_made_with_its_limits_takes_the_processor_and_ends_it():
    api = FakeWindows()
    job = windows_jobs.Job(api, memory_bytes=512 << 20)
    job.take(99)
    job.terminate()
    job.close()
    assert [call[0] for call in api.calls] == ["CreateJobObjectW", "SetInformationJobObject", "AssignProcessToJobObject", "NtResumeProcess",
                                              "TerminateJobObject", "CloseHandle"]
    assert api.calls[1][1:3] == (77, 9) and api.calls[1][4] == ctypes.sizeof(api.limits)
    assert (api.limits.basic.flags, api.limits.process_memory) == (0x2000 | 0x0100, 512 << 20)
    assert api.calls[2:] == [("AssignProcessToJobObject", 77, 99), ("NtResumeProcess", 99), ("TerminateJobObject", 77, 1), ("CloseHandle", 77)]


@pytest.mark.parametrize("is_told", [True, False])
def test_a_job_tells_what_its_processes_have_used(is_told):
    class Telling(FakeWindows):
        def QueryInformationJobObject(self, handle, kind, into, size, _):
            if kind == 1:
                into._obj.user, into._obj.kernel = 25_000_000, 5_000_000
            else:
                into._obj.peak_process = 9 << 20
            assert (handle.value, size) == (77, {1: 48, 9: 144}[kind])
            return is_told
    assert windows_jobs.Job(Telling()).usage() == ((3.0, 9 << 20) if is_told else (0.0, 0))


@pytest.mark.parametrize("rounds, error, is_said, limit_s, left", [
    (3, 0, True, 60, []), (99, 0, True, -1, [43, 44]), (3, 234, False, 60, []), (99, 234, False, -1, [43, 44]), (99, 5, False, 60, [])])
def test_on_windows_an_attempt_is_over_when_the_processes_of_its_job_are_gone(monkeypatch, rounds, error, is_said, limit_s, left):
    """TerminateJobObject() does not wait: a process of it may still finish a write."""
    class Slow(FakeWindows):
        asked = 0

        def QueryInformationJobObject(self, handle, kind, into, size, _):
            assert (handle.value, kind, size) == (77, 3, ctypes.sizeof(into._obj))
            self.asked += 1
            pids = [44, 42, 43] if self.asked < rounds else [42]
            into._obj.assigned, into._obj.listed, into._obj.pids[:len(pids)] = 3, len(pids), pids
            return is_said

        def last_error(self):
            return error
    monkeypatch.setattr(process_tree, "SWEEP_LIMIT_S", limit_s)
    api = Slow()
    assert process_tree.Tree(42, "token", windows_jobs.Job(api)).end() == left
    assert api.asked == (rounds if rounds == 3 else 1) and api.calls[2:] == [("TerminateJobObject", 77, 1)] * api.asked


@pytest.mark.skipif(ctypes.sizeof(ctypes.c_void_p) != 8, reason="sizes of 64-bit Windows")
def test_the_list_of_a_jobs_processes_has_the_layout_of_the_system():
    found = windows_jobs.job_process_ids(3)
    assert ctypes.sizeof(found) == 32 and (type(found).listed.offset, type(found).pids.offset) == (4, 8)


def test_a_job_without_a_memory_limit_only_ends_with_its_handle():
    api = FakeWindows()
    windows_jobs.Job(api)
    assert (api.limits.basic.flags, api.limits.process_memory) == (0x2000, 0)


@pytest.mark.parametrize("refused", ["CreateJobObjectW", "SetInformationJobObject"])
def test_a_refused_job_is_an_error(refused):
    with pytest.raises(OSError, match="job object"):
        windows_jobs.Job(FakeWindows(**{refused: 0}))


def test_a_processor_that_cannot_be_put_into_its_job_never_runs():
    api = FakeWindows(AssignProcessToJobObject=0)
    with pytest.raises(OSError, match="job object"):
        windows_jobs.Job(api).take(99)
    assert "NtResumeProcess" not in [call[0] for call in api.calls]


def on_windows(monkeypatch, api):
    """Let the modules of processes work as there, with *api* for the calls of the system."""
    monkeypatch.setattr(process_table, "LINUX", False)
    monkeypatch.setattr(process_table, "WINDOWS", True)
    monkeypatch.setattr(windows_jobs, "windows_api", lambda: api)


def guardian_on_windows(monkeypatch, api, version=(10, 0)):
    on_windows(monkeypatch, api)
    monkeypatch.setattr(sys, "getwindowsversion", lambda: version + (19045, 2, ""), raising=False)
    guardian = Guardian()
    guardian.start()
    return guardian


def test_on_windows_the_runner_is_in_a_job_itself_until_its_end(monkeypatch):
    """Else what it had created when it was killed, suspended and not yet in the job of its attempt, would stay for ever."""
    api = FakeWindows(GetCurrentProcess=-1)
    guardian = guardian_on_windows(monkeypatch, api)
    assert [call[0] for call in api.calls[:3]] == ["CreateJobObjectW", "SetInformationJobObject", "GetCurrentProcess"]
    assert api.calls[3:] == [("AssignProcessToJobObject", 77, ctypes.c_void_p(-1).value)] and api.limits.basic.flags == 0x2000
    guardian.close()
    assert [call[0] for call in api.calls[4:]] == ["SetInformationJobObject", "CloseHandle"] and api.limits.basic.flags == 0     # nor is it ended itself
    guardian.close()
    assert len(api.calls) == 6


def test_on_windows_a_job_that_would_end_the_runner_is_not_closed(monkeypatch):
    api = FakeWindows()
    guardian = guardian_on_windows(monkeypatch, api)
    api.answers["SetInformationJobObject"] = 0
    guardian.close()
    assert "CloseHandle" not in [call[0] for call in api.calls]


@pytest.mark.parametrize("refused, version, calls", [
    ("AssignProcessToJobObject", (10, 0), ["CreateJobObjectW", "SetInformationJobObject", "GetCurrentProcess", "AssignProcessToJobObject", "CloseHandle"]),
    ("CreateJobObjectW", (10, 0), ["CreateJobObjectW"]), ("", (6, 1), [])])
def test_on_windows_the_runner_goes_on_without_a_job_of_its_own(monkeypatch, refused, version, calls):
    """Jobs do not nest before Windows 8: in one of the runner's, no processor could have its own."""
    api = FakeWindows(**{refused: 0})
    guardian_on_windows(monkeypatch, api, version).close()
    assert [call[0] for call in api.calls] == calls


@pytest.mark.parametrize("has_console", [True, False])
def test_on_windows_a_group_is_asked_to_stop_and_ended_where_there_is_no_console(monkeypatch, has_console):
    """os.kill() must not ask: where it cannot, it leaves an exception behind that is raised later, outside of any try."""
    api, sent = FakeWindows(GenerateConsoleCtrlEvent=int(has_console)), []
    on_windows(monkeypatch, api)
    monkeypatch.setattr(os, "kill", lambda *what: sent.append(what))
    process_tree.Tree(42, "token").ask_to_stop()
    assert api.calls == [("GenerateConsoleCtrlEvent", 1, 42)] and sent == ([] if has_console else [(42, signal.SIGTERM)])


@pytest.mark.skipif(ctypes.sizeof(ctypes.c_void_p) != 8, reason="sizes of 64-bit Windows")
def test_job_limits_have_the_layout_of_the_system():
    limits = windows_jobs.job_limits(0x2100, 3)
    where = {name: getattr(type(limits), name).offset for name in ("basic", "io", "process_memory", "job_memory", "peak_process", "peak_job")}
    assert ctypes.sizeof(limits) == 144 and ctypes.sizeof(limits.basic) == 64
    assert where == {"basic": 0, "io": 64, "process_memory": 112, "job_memory": 120, "peak_process": 128, "peak_job": 136}
    assert type(limits.basic).flags.offset == 16


@pytest.mark.parametrize("code, ok, handle, error, started", [
    (259, 1, 5, 0, "123456789"), (0, 1, 5, 0, None), (259, 0, 5, 0, None), (259, 1, 0, 87, None), (259, 1, 0, 5, process_table.UNTOLD)])
def test_start_time_on_windows(monkeypatch, code, ok, handle, error, started):
    closed = []

    def times(process, created, *others):
        created._obj.value = 123456789
        return ok

    def exit_code(process, where):
        where._obj.value = code
        return 1
    api = types.SimpleNamespace(OpenProcess=lambda access, inherit, pid: handle if (access, pid) == (0x1000, 42) else 0, GetProcessTimes=times,
                                GetExitCodeProcess=exit_code, CloseHandle=lambda one: closed.append(one.value), last_error=lambda: error)
    on_windows(monkeypatch, api)
    assert process_table.start_time(42) == started
    assert closed == ([5] if handle else [])


def test_a_process_that_may_not_be_asked_is_there_and_may_be_another_than_the_owner(monkeypatch):
    """On Windows, one of another account: its stage is not free, and no lock is held for it that the system says is free."""
    api = types.SimpleNamespace(OpenProcess=lambda *_: 0, last_error=lambda: 5)
    on_windows(monkeypatch, api)
    owner = {"pid": 42, "token": "t", "bootId": "b", "host": stage_locks.host_name(), "processStart": "123456789"}
    assert process_table.is_alive(42, "123456789") and process_table.is_alive(42, None)
    assert not stage_locks.owner_is_dead(owner, "b", process_tree) and not stage_locks.lives_here(owner, "b", process_tree)


THREADS = """
attempts.Pool.__init__.__defaults__ = ((), True)
signals = run_signals.Signals()
process_tree.become_subreaper()
def run(body, timeout_s=None, grace_s=5, signals=signals, argv=None):
    launch = attempts.Launch(argv or [sys.executable, "-c", body], dict(os.environ, PIPELINE_ATTEMPT_TOKEN="t.1"), os.getcwd(), "log", "t.1", -1, "", timeout_s,
                             grace_s, {}, None)
    result = attempts.run_attempt(launch, signals, Guardian())
    return result, open("log", "rb").read()
"""


@linux_only
def test_the_watch_with_threads_run_for_real(tmp_path):
    """The way of Windows, on this system: output, exit codes, time limit, signals, a held pipe."""
    drive(tmp_path, THREADS + """
result, log = run("print('hello'); raise SystemExit(3)")
assert (result.exit_code, result.failure, result.stopped, log, result.tail) == (3, "exit code 3", False, b"hello\\n", b"hello\\n"), result
result, log = run("import os; os.write(1, b'x' * 300000)")
assert (result.exit_code, result.failure, len(log)) == (0, "", 300000), result
result, log = run("import time; print('up', flush=True); time.sleep(600)", timeout_s=1.0)
assert (result.exit_code, result.failure, log) == (-15, "timeout after 1 s", b"up\\n"), result
result, log = run("import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600)", timeout_s=1.0, grace_s=0.2)
assert (result.exit_code, result.failure, result.survivors) == (-9, "timeout after 1 s", []), result
result, log = run("import subprocess; subprocess.Popen(['sleep', '600'])")        # it holds the pipe
assert (result.exit_code, result.survivors) == (0, []), result
stopped = run_signals.Signals()
stopped.came = stopped.count = 1
result, log = run("import time; time.sleep(600)", signals=stopped)
assert result.stopped and result.failure == "interrupted" and result.exit_code == -15, result
result, log = run("", argv=["./no such program"])
assert result.exit_code is None and "cannot start ./no such program" in result.failure and log == b"", result
""")


@linux_only
def test_with_threads_the_end_of_any_attempt_ends_the_wait(tmp_path):
    """Not only that of the first one, which may take hours."""
    drive(tmp_path, THREADS + """
run_signals.POLL_S = 600
pool = attempts.Pool(signals, Guardian())
def start(name, body):
    return pool.start(attempts.Launch([sys.executable, "-S", "-c", body], dict(os.environ, PIPELINE_ATTEMPT_TOKEN=name), os.getcwd(), name, name, -1, "", None, 5, {}, None))
long = start("long", "import time; time.sleep(600)")
for name in ("one", "two"):
    short = start(name, "")
    assert pool.wait() == [short] and short.result.exit_code == 0, short.result
long.process.kill()
assert pool.wait() == [long]
""")


def test_without_a_pipe_for_signals_waits_are_short(monkeypatch):
    naps = []
    monkeypatch.setattr(attempts.time, "sleep", naps.append)
    signals = run_signals.Signals()
    assert signals.wait([], None) == signals.wait([], 60) == signals.wait([], 0.01) == []
    assert naps == [run_signals.POLL_S, run_signals.POLL_S, 0.01]


class FakeTree:
    def __init__(self):
        self.calls = []

    def ask_to_stop(self):
        self.calls.append("ask")

    def end(self):
        self.calls.append("end")


def ending(timeout_s=None, grace_s=3600.0):
    launch = attempts.Launch([], {}, "", "", "", -1, "", timeout_s, grace_s, {}, None)
    return attempts.Ending(launch, FakeTree(), run_signals.Signals())


def test_the_steps_of_an_ending(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(attempts.time, "monotonic", lambda: now[0])
    one = ending(10, 5)
    assert one.seconds_left() == 10
    one.look()
    assert one.tree.calls == [] and one.reason == ""
    now[0] += 10
    one.look()
    assert one.tree.calls == ["ask"] and one.reason == "timeout after 10 s" and one.seconds_left() == 5
    now[0] += 4
    one.look()
    assert one.tree.calls == ["ask"]
    now[0] += 1
    one.look()
    assert one.tree.calls == ["ask", "end"] and one.seconds_left() == 5
    assert ending().seconds_left() is None
    hasty = ending(0, 0)
    hasty.look()
    hasty.look()
    assert hasty.tree.calls == ["ask", "end"] and hasty.seconds_left() == attempts.FORCE_S     # the dead take a moment to go


@posix_only
@pytest.mark.parametrize("is_told, code, said", [(False, 143, b""), (True, -signal.SIGTERM, b"")])
def test_when_all_is_told_a_request_ends_what_is_left_of_the_process_as_any_other(is_told, code, said):
    program = ("import os, signal, sys\nsys.path.insert(0, %r)\nimport model, stop_requests\nstop_requests.heed()\n%s\n"
               "try:\n    os.kill(os.getpid(), signal.SIGTERM)\nexcept model.Terminated as error:\n    sys.exit(error.exit_code)\n") % (
                   os.path.dirname(stop_requests.__file__), "stop_requests.leave()" if is_told else "")
    done = subprocess.run([sys.executable, "-c", program], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=PATIENCE_S)
    assert (done.returncode, done.stdout) == (code, said)


@posix_only
def test_of_a_pipe_that_somebody_holds_open_no_end_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(attempt_output, "DRAIN_S", 0.0)
    reader, writer = os.pipe()
    os.write(writer, b"said")
    log = attempt_output.AttemptLog(str(tmp_path / "log"))
    thread = threading.Thread(target=attempt_output.drain, args=(reader, True, log), daemon=True)
    thread.start()
    thread.join(PATIENCE_S)
    assert not thread.is_alive()
    for descriptor in (reader, writer):
        os.close(descriptor)


@posix_only
def test_only_the_thread_that_made_a_pool_looks_after_its_attempts(tmp_path):
    guardian = types.SimpleNamespace(watch=lambda traits: None, release=lambda traits: None)
    pool = attempts.Pool(run_signals.Signals(), guardian, process_table.own_children() if LINUX else [])
    argv = [sys.executable, "-c", ""]
    one = pool.start(attempts.Launch(argv, dict(os.environ), str(tmp_path), str(tmp_path / "log"), "token", -1, "", None, 1, {}, None))
    os.waitid(os.P_PID, one.pid, os.WEXITED | os.WNOWAIT)
    for act, ended in ((lambda: on_a_thread(pool.attend), []), (pool.attend, [one])):
        pool.seen = 0.0
        act()
        assert pool.ended == ended


@posix_only
def test_no_attempt_is_given_time_that_was_over_before_it_was_started(tmp_path):
    """The runner was busy with something else, for hours perhaps, and nobody has lost anything by that."""
    pool = attempts.Pool(run_signals.Signals(), types.SimpleNamespace(watch=lambda traits: None, release=lambda traits: None),
                         process_table.own_children() if LINUX else [])
    pool.seen = time.monotonic() - 5000
    one = pool.start(attempts.Launch([sys.executable, "-c", ""], dict(os.environ), str(tmp_path), str(tmp_path / "log"), "token", -1, "", 1000.0, 1, {}, None))
    pool._forgive()
    assert one.ending.seconds_left() < 1001
    one.started -= 10000                # as if it had been at work all the time
    pool._forgive()
    assert one.ending.seconds_left() > 5000
    while one.result is None:
        pool.wait()
    assert one.result.failure == ""


@posix_only
def test_of_what_could_not_be_started_the_guardian_knows_nothing_any_more(tmp_path):
    """It would end whoever holds the lock of that stage, when this runner has come to its end and another may be at work."""
    watched = []
    guardian = types.SimpleNamespace(watch=watched.append, release=watched.remove)
    launch = attempts.Launch([str(tmp_path / "none")], {}, str(tmp_path), str(tmp_path / "log"), "token", -1, str(tmp_path / "guard"), None, 1, {}, None)
    assert attempts.run_attempt(launch, run_signals.Signals(), guardian).failure.startswith("cannot start ") and watched == []


def on_a_thread(act):
    thread = threading.Thread(target=act)
    thread.start()
    thread.join()


@posix_only
def test_of_several_attempts_only_the_one_whose_input_became_shorter_fails(tmp_path):
    fed = []
    for name, size in (("short.txt", 10), ("whole.txt", 8 << 20)):
        (tmp_path / name).write_bytes(b"x" * size)
        feeder = chunk_files.Feeder(str(tmp_path / name), 0, 0, 8 << 20)
        fed.append(types.SimpleNamespace(launch=types.SimpleNamespace(feeder=feeder), problem=""))
    short, whole = fed
    for _ in range(2):                  # the first time what is there of the short one, and as much of the other as a pipe takes
        attempts._feed([one for one in fed if one.launch.feeder.descriptor >= 0])
    assert str(tmp_path / "short.txt") in short.problem and short.launch.feeder.descriptor == -1
    assert whole.problem == "" and whole.launch.feeder.descriptor >= 0
    whole.launch.feeder.close()


def test_two_signals_at_once_do_not_wait_for_the_grace():
    one = ending()
    one.signals.came, one.signals.count = signal.SIGINT, 2
    one.look()
    assert one.tree.calls == ["ask", "end"] and one.reason == run_signals.INTERRUPTED


def test_a_server_that_tells_of_no_end_after_two_signals_is_killed(monkeypatch):
    now, killed = [100.0], []
    monkeypatch.setattr(attempts.time, "monotonic", lambda: now[0])
    one = ending(None, 5)
    one.launch, one.tree.is_child = one.launch._replace(server=types.SimpleNamespace(kill=lambda: killed.append(now[0]))), False
    one.signals.came, one.signals.count = signal.SIGINT, 2
    for _ in range(8):                  # whoever watches looks often
        one.look()
        now[0] += 1
    assert killed[:1] == [105.0]


def test_a_signal_after_the_timeout_keeps_the_first_cause():
    one = ending(0)
    one.look()
    one.signals.came, one.signals.count = signal.SIGTERM, 1
    one.look()
    assert one.reason == "timeout after 0 s" and one.tree.calls == ["ask"]


# --- resources -------------------------------------------------------------------------------------------------------

@linux_only
def test_limits_hold_for_the_processor_and_what_it_starts(project):
    spec_of(project, """
import resource, subprocess
try:
    bytearray(1 << 30)
    memory = "had"
except MemoryError:
    memory = "refused"
show = "import os, json; print(json.dumps([os.getpriority(os.PRIO_PROCESS, 0), len(os.sched_getaffinity(0))]))"
child = json.loads(subprocess.check_output([sys.executable, "-c", show]))
json.dump([memory, os.getpriority(os.PRIO_PROCESS, 0), len(os.sched_getaffinity(0)), child], open(out + "/o.json", "w"))
""", resources={"memoryMB": 512, "nice": 7, "cpuCores": 1})
    done = project.ok()
    assert project.json("data/s1/o.json") == ["refused", 7, 1, [7, 1]] and "[NOTE]" not in done.out, done


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2, reason="one core cannot be shared out")
def test_tasks_at_work_at_once_have_cores_of_their_own(project):
    """Each waits for the other's file, so that both are at work at once."""
    for name in "ab":
        project.write("data/in/%s.txt" % name, name)
    project.processor("cores", """
while len(os.sched_getaffinity(0)) > 1:         # the runner sets them once it has started the task
    time.sleep(0.01)
json.dump(sorted(os.sched_getaffinity(0)), open(os.path.join(%r, os.environ["PIPELINE_TASK"][-5]), "w"))
while len(os.listdir(%r)) < 2:
    time.sleep(0.01)
open(os.path.join(out, os.path.basename(os.environ["PIPELINE_TASK"])), "w").close()
""" % ((str(project.path("met")),) * 2))
    project.path("met").mkdir()
    project.spec({"name": "s1", "processor": "bin/cores.py", "forEach": "data/in/*.txt", "outputDir": "data/s1", "resources": {"cpuCores": 1}, "timeoutSec": 60})
    project.ok("--jobs", "2")
    one, other = project.json("met/a"), project.json("met/b")
    assert len(one) == len(other) == 1 and one != other


@pytest.mark.parametrize("in_use, count, start, picked", [
    ([], 1, 0, [2]), ([], 1, 1, [5]), ([], 2, 5, [7, 2]), ([2], 1, 0, [5]), ([2, 5, 7, 2], 2, 0, [5, 7]), ([2, 5], 2, 0, [7, 2]), ([], 9, 1, [5, 7, 2]),
])
def test_cores_are_shared_out(in_use, count, start, picked):
    assert process_limits.pick_cores([2, 5, 7], in_use, count, start) == picked


def test_too_little_free_space_fails_the_stage_with_both_numbers_and_starts_nothing(project):
    spec_of(project, "open(out + '/o', 'w').write('x')", resources={"minFreeDiskMB": 1 << 40}, retry={"attempts": 3, "baseDelayMs": 1})
    done = project.run()
    line, = [one for one in done.out.splitlines() if one.startswith("[FAIL]")]
    free, _, rest = line.partition("[FAIL] s1: ")[2].partition(" ")
    assert done.code == 1 and int(free) > 0 and rest == "bytes free in data/s1, resources.minFreeDiskMB asks for %d" % (1 << 60), done
    assert not project.exists("data/s1/o") and "[RETRY]" not in done.out
    spec_of(project, "open(out + '/o', 'w').write('x')", resources={"minFreeDiskMB": 1})
    project.ok()


@pytest.mark.parametrize("platform, left", [("linux", []), ("linux2", []), ("win32", ["cpuCores", "nice"]), ("darwin", ["cpuCores", "memoryMB"]),
                                            ("freebsd13", ["cpuCores", "memoryMB"])])
def test_what_a_system_cannot_enforce_is_known(platform, left):
    assert process_limits.unenforced({"cpuCores": 1, "memoryMB": 1, "nice": 1, "minFreeDiskMB": 1}, platform) == left
    assert process_limits.unenforced({}, platform) == []


@posix_only
def test_what_cannot_be_enforced_or_set_is_said(monkeypatch):
    def refuse(pid, value):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    def gone(pid, value):
        raise ProcessLookupError(errno.ESRCH, "No such process")

    def too_much(pid, value):
        raise OverflowError("Python int too large to convert to C int")
    monkeypatch.setattr(process_limits, "_set_nice", too_much)
    assert process_limits.apply_resources(0, {"nice": 1 << 40}) == ["resources.nice could not be set: Python int too large to convert to C int"]
    monkeypatch.setattr(process_limits, "unenforced", lambda resources: ["cpuCores"])
    monkeypatch.setattr(process_limits, "_set_nice", refuse)
    monkeypatch.setattr(process_limits, "_set_memory", gone)
    assert process_limits.apply_resources(0, {"cpuCores": 1, "nice": 1, "memoryMB": 1}) == [
        "resources.cpuCores cannot be enforced on %s" % sys.platform, "resources.nice could not be set: [Errno 1] Operation not permitted"]


@linux_only
def test_what_an_attempt_used_is_recorded(project):
    spec_of(project, "data = bytearray(64 << 20)\nend = time.process_time() + 0.2\nwhile time.process_time() < end: pass\nopen(out + '/o', 'w').write('x')")
    project.ok("--run-id", "r")
    stage, = project.json("state/metrics_r.json")["stages"]
    assert 0.2 <= stage["cpuSec"] < 20 and stage["maxRssBytes"] >= 64 << 20


# --- how many processors at once

V1, V2 = "4:memory:/a\n3:cpu,cpuacct:/job/step\n0::/\n", "0::/user.slice/job.service\n"


@pytest.mark.parametrize("files, quota", [
    ({}, None), ({"/proc/self/cgroup": "2:memory:/a\n"}, None),
    ({"/proc/self/cgroup": V2}, None), ({"/proc/self/cgroup": V2, "/sys/fs/cgroup/user.slice/job.service/cpu.max": "max 100000\n"}, None),
    ({"/proc/self/cgroup": V2, "/sys/fs/cgroup/user.slice/job.service/cpu.max": "150000 100000\n"}, 1.5),
    ({"/proc/self/cgroup": V2, "/sys/fs/cgroup/user.slice/job.service/cpu.max": "150000 100000\n", "/sys/fs/cgroup/user.slice/cpu.max": "50000 100000\n"}, 0.5),
    ({"/proc/self/cgroup": "0::/\n", "/sys/fs/cgroup/cpu.max": "300000 100000\n"}, 3.0),                   # as a container sees its own
    ({"/proc/self/cgroup": V2, "/sys/fs/cgroup/cpu.max": "300000 0\n"}, None), ({"/proc/self/cgroup": V2, "/sys/fs/cgroup/cpu.max": "what 100000\n"}, None),
    ({"/proc/self/cgroup": V1, "/sys/fs/cgroup/cpu/job/step/cpu.cfs_quota_us": "-1\n", "/sys/fs/cgroup/cpu/job/step/cpu.cfs_period_us": "100000\n"}, None),
    ({"/proc/self/cgroup": V1, "/sys/fs/cgroup/cpu/job/cpu.cfs_quota_us": "20000\n", "/sys/fs/cgroup/cpu/job/cpu.cfs_period_us": "10000\n"}, 2.0)])
def test_the_quota_of_the_control_group_is_read(files, quota):
    assert environment.cpu_quota(lambda path: files.get(path, "")) == quota


@pytest.mark.parametrize("cpus, quota, usable", [(8, None, 8), (8, 0.2, 1), (8, 1.5, 2), (8, 2.0, 2), (2, 16.0, 2)])
def test_no_more_processors_than_the_quota_allows(monkeypatch, cpus, quota, usable):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cpus)), raising=False)
    monkeypatch.setattr(environment, "cpu_quota", lambda: quota)
    assert environment.usable_cpus() == usable


def test_a_system_without_control_groups_has_no_quota(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert environment.usable_cpus() == 6 and environment._text_of("/no/such/file") == ""


# --- requests to stop, before a run's first attempt

def test_a_request_whose_exception_was_lost_does_not_silence_those_after_it(monkeypatch):
    """Python drops what is raised in a callback or in __del__; two that come at once are one all the same."""
    now = [100.0]
    monkeypatch.setattr(stop_requests.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(stop_requests, "_over", [])
    monkeypatch.setattr(stop_requests, "_asked_at", [])

    def asked():
        try:
            stop_requests._stop(signal.SIGTERM, None)
        except model.Terminated as error:
            return error.exit_code
        return 0

    assert [asked(), asked()] == [143, 0]
    now[0] += stop_requests.AT_ONCE_S
    assert [asked(), asked()] == [143, 0]
    now[0] += stop_requests.AT_ONCE_S
    stop_requests.silence()
    assert asked() == 0


# --- file descriptors ------------------------------------------------------------------------------------------------

@posix_only
def test_a_pipe_with_a_high_descriptor_is_read_to_its_end(tmp_path):
    """For select() it would be too high."""
    import resource
    if 0 <= resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 1200:
        pytest.skip("not so many files may be open here")
    code = ("import os, resource, sys\nsys.path.insert(0, %r)\nimport attempt_output\n"
            "resource.setrlimit(resource.RLIMIT_NOFILE, (1200, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))\n"
            "reader, writer = os.pipe()\nos.dup2(reader, 1100)\nos.write(writer, b'last words')\nos.close(writer)\n"
            "log = attempt_output.AttemptLog(%r)\nattempt_output.drain(1100, True, log)\nlog.close()\n")
    subprocess.run([sys.executable, "-c", code % (str(ROOT / "src"), str(tmp_path / "log"))], check=True, timeout=60)
    assert (tmp_path / "log").read_bytes() == b"last words"


@linux_only
def test_no_more_attempts_are_at_work_than_there_are_descriptors_for(project):
    for number in range(24):
        project.write("in/%d" % number, "")
    project.write("bin/p.sh", "#!/bin/sh\necho hello\nsleep 0.3\n: > \"$PIPELINE_OUTPUT_DIR/$(basename \"$1\")\"\n", executable=True)
    project.spec({"processor": "bin/p.sh", "forEach": "in/*"})
    argv = ["sh", "-c", "ulimit -n 56; exec \"$@\"", "sh", *project.argv("--jobs", "24")]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60, env=project.environment())
    assert done.returncode == 0 and len(list(project.path("data/s1").glob("[0-9]*"))) == 24, done
