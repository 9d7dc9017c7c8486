"""The command line: words, options, exit codes, streams; and the module imported by others."""
from __future__ import annotations

import errno
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import types

import pytest
from conftest import ROOT, RUNNER, Done, text_of

import command_line
import commands
import console
import pipeline_runner
import primitives
import process_start
from model import UsageError

POSIX = sys.platform != "win32"


def direct(*arguments, cwd=None, env=None, **options):
    """Run the real program with just these arguments."""
    argv = [sys.executable, str(RUNNER), *map(str, arguments)]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=120,
                          cwd=None if cwd is None else str(cwd), env=dict(os.environ, **(env or {})), **options)
    result = Done(argv, done.returncode, text_of(done.stdout), text_of(done.stderr))
    assert "Traceback" not in result.err, result
    return result


@pytest.fixture
def good(project):
    """One stage that copies one file."""
    project.write("data/größe.txt", "x\n")
    project.spec({"name": "copy", "processor": "bin/stage_copy.py", "inputs": ["data/größe.txt"], "params": {"day": 1}})
    return project


# --- help, version, usage errors

@pytest.mark.parametrize("words", [["--help"], ["-h"], ["--jobs", "3", "--help"], ["nonsense", "--help"], ["--version", "--help"]])
def test_help(tmp_path, words):
    done = direct(*words, cwd=tmp_path)
    assert (done.code, done.err) == (0, ""), done
    for text in ("usage: ", "--pipeline FILE", "--run-id ID", "--force STAGE", "--only STAGE", "--from STAGE", "--until STAGE", "--set NAME=VALUE", "--dry-run", "--rehash",
                 "validate", "plan", "unlock STAGE", "6 offline guard", "143"):
        assert text in done.out, text
    assert os.listdir(str(tmp_path)) == []


@pytest.mark.parametrize("words, usage, has, has_not", [
    (["status", "--help"], "status [OPTIONS]", ["--pipeline FILE", "--json ", "--last N", "--only STAGE"], ["--jobs", "--yes", "--key ", "logs STAGE", "exit codes\n"]),
    (["-h", "run", "--jobs", "2"], "run [OPTIONS]", ["(none), run ", "--jobs N", "--stop-by HH:MM", "--key FILE"], ["--json", "--kind"]),
    (["clean", "a", "b", "-h"], "clean [STAGE...] [OPTIONS]", ["--yes ", "--only STAGE"], ["--rehash"]),
    (["graph", "-h"], "graph [OPTIONS]", ["--output FILE, -o ", "--format FORMAT"], ["--anchor"]), (["init", "--help"], "init DIR\n", ["init DIR  "], ["options\n  --"])])
def test_help_of_a_command_is_what_belongs_to_it(tmp_path, words, usage, has, has_not):
    done = direct(*words, cwd=tmp_path)
    assert done.code == 0 and done.err == "" and done.out.startswith("usage: pipeline_runner.py " + usage) and "pipeline_runner.py --help\n" in done.out, done
    assert all("\n  " + one in done.out for one in has) and not any(one in done.out for one in has_not), done


def test_every_command_has_its_own_help():
    told = {name: command_line.usage_of(name) for name in command_line.COMMANDS}
    assert len(set(told.values())) == len(told) and command_line.USAGE not in told.values()
    for name, owners in command_line.ONLY_WITH.items():
        assert {one for one in told if "\n  %s " % name in told[one]} == set(command_line.OF_USE_WITH.get(name, owners)), name


def test_version(tmp_path):
    done = direct("--version", cwd=tmp_path)
    assert (done.code, done.out, done.err) == (0, "pipeline_runner %s\n" % pipeline_runner.VERSION, "")


@pytest.mark.parametrize("words, message", [
    (["--pipelin", "x"], "unknown option --pipelin; did you mean --pipeline?"),
    (["--runid=x"], "unknown option --runid=x; did you mean --run-id?"),
    (["--run_id", "x"], "unknown option --run_id; did you mean --run-id?"),
    (["--qqqqqq"], "unknown option --qqqqqq; see --help"),
    (["-v"], "unknown option -v"),
    (["valdate"], "unknown command valdate; did you mean validate?"),
    (["plna"], "unknown command plna; did you mean plan?"),
    (["xyzzy"], "unknown command xyzzy; see --help"),
    (["--pipeline"], "--pipeline needs a value"),
    (["--run-id"], "--run-id needs a value"),
    (["--force", "--pipeline", "p.json"], "--force needs a value, got the option --pipeline; a value that is called so is written --force=--pipeline"),
    (["--root", "--run-id=x"], "--root needs a value, got the option --run-id=x"),
    (["--set"], "--set needs a value"),
    (["--set", "day"], "--set day: must be NAME=VALUE"),
    (["--set", "=5"], "--set =5: must be NAME=VALUE"),
    (["--run-id", "a/b"], '--run-id "a/b": must be 1 to 64 of the characters'),
    (["--run-id", ""], '--run-id "": must be 1 to 64'),
    (["--run-id", ".."], '--run-id "..": must be 1 to 64'),
    (["--run-id", "nul"], '--run-id "nul": is a device name on Windows'),
    (["--run-id", "a\n"], '--run-id "a\\n": must be 1 to 64'),
    (["--run-id", "a", "--run-id", "b"], "--run-id was given twice"),
    (["--pipeline", "a", "--pipeline=b"], "--pipeline was given twice"),
    (["unlock"], "unlock needs the name of a stage"),
    (["plan", "stage"], "plan takes no further words, got: stage"),
    (["validate", "a", "b"], "validate takes no further words, got: a b"),
    (["--dry-run=yes"], "unknown option --dry-run=yes; did you mean --dry-run?"),
    # What would be taken for a limit must not be ignored.
    (["clean", "--only", "", "--yes"], "--only needs a value, got an empty one"), (["--force="], "--force needs a value, got an empty one"), (["--until", ""], "--until needs a value"),
    (["init", ""], "init: a word of the command line is empty; it takes the folder to make"), (["new-key", ""], "new-key: a word of the command line is empty"),
    (["scan", ""], "scan: a word of the command line is empty"), (["clean", "", "--yes"], "clean: a word of the command line is empty"),
    (["clean", "--only", ",", "--yes"], "--only ,: names no stage"), (["clean", "a", "--from", "b"], "by words, or by --only, --from and --until; not by both"),
    (["clean", "--dry-run", "--yes"], "--dry-run goes with run and plan; without --yes it removes nothing"), (["init", "x", "--dry-run"], "--dry-run goes with run and plan"),
    (["reset", "a", "--only", "b"], "--only goes with run and plan and validate and status and clean"), (["logs", "a", "--run-id", "r"], "; of which run is said by --run"),
    (["report", "--run-id", "r"], "; the run is named by a word: report ID"), (["verify", "--run-id", "r"], "; the runs are named by words: verify ID"),
    (["status", "--run-id", "r"], "--run-id goes with run and plan and validate"), (["gc", "--verbose"], "--verbose goes with run and plan"),
    (["plan", "--jobs", "2"], "--jobs goes with run"),
    (["gc", "--keep-runs", "1000000000"], '--keep-runs "1000000000": must be a whole number from 0 to 999999999'),
    (["gc", "--keep-days", "0.5"], '--keep-days "0.5": must be a whole number from 0 to 999999999'), (["--jobs", "0"], '--jobs "0": must be a whole number from 1 to'),
])
def test_usage_errors(tmp_path, capsys, words, message):
    """In the table by main() itself, which for these never gets as far as a run."""
    before = os.getcwd()
    os.chdir(str(tmp_path))
    try:
        code = pipeline_runner.main(words)
    finally:
        os.chdir(before)
    out, err = capsys.readouterr()
    assert (code, out) == (2, "") and err.startswith("error: ") and message in err and err.count("\n") == 1, err
    assert os.listdir(str(tmp_path)) == []


def test_usage_errors_of_the_real_program(tmp_path):
    done = direct("--pipelin", "x", cwd=tmp_path)
    assert (done.code, done.out, done.err) == (2, "", "error: unknown option --pipelin; did you mean --pipeline?\n")
    done = direct(cwd=tmp_path)
    assert done.code == 2 and "pipeline.json: cannot read the pipeline file: No such file or directory; name it with --pipeline FILE" in done.err, done
    assert os.listdir(str(tmp_path)) == []


@pytest.mark.parametrize("command", [[], ["plan"], ["status"], ["accept", "copy"]])
def test_text_that_no_record_can_hold_is_a_usage_error(good, command):
    """As a shell passes bytes that are not UTF-8."""
    good.ok("--run-id", "a")
    before = good.snapshot()
    words = [*command, *(["--reason", "caf\udce9"] if command[:1] == ["accept"] else ["--set", "day=caf\udce9"])]
    done = good.run(*words)
    said = 'error: %s "%s": not UTF-8 text here; write it in UTF-8, or run with PYTHONUTF8=1 if it is\n' % (words[-2], words[-1].replace("\udce9", "\\udce9"))
    assert (done.code, done.out, done.err) == (2, "", said) and good.snapshot() == before, done


@pytest.mark.parametrize("words, expected", [
    ([], ("run", "pipeline.json", None)), (["run"], ("run", "pipeline.json", None)), (["--pipeline=x.json", "--root", "r"], ("run", "x.json", "r")),
    (["plan", "--pipeline", "x"], ("plan", "x", None)), (["--pipeline", "x", "plan"], ("plan", "x", None)), (["--dry-run"], ("plan", "pipeline.json", None)),
    (["--version"], ("version", "pipeline.json", None)), (["--pipeline", "-odd-"], ("run", "-odd-", None)), (["--pipeline=a=b"], ("run", "a=b", None)),
])
def test_options(words, expected):
    found = command_line.parse_command_line(words)
    assert (found.command, found.pipeline, found.root) == expected


def test_options_that_may_be_given_several_times():
    found = command_line.parse_command_line(["--force", "a,b", "--force=c", "--only", "x", "--set", "n=1", "--set", 't="1"', "--set", "u=one", "--set", "v=a=b", "--set", "w=", "--set", "n=NaN"])
    assert (found.force, found.only) == ({"a", "b", "c"}, {"x"})
    assert found.params == {"n": "NaN", "t": "1", "u": "one", "v": "a=b", "w": ""}
    assert command_line.parse_command_line(["--set", 'p={"a": [1, null]}']).params == {"p": {"a": [1, None]}}
    assert command_line.parse_command_line(["--set", "p=" + "[" * 5000]).params["p"].startswith("[[")


def test_the_default_run_id_is_the_time_and_a_random_tail():
    first, second = (command_line.parse_command_line([]).run_id for _ in range(2))
    assert re.fullmatch(r"\d{8}T\d{6}Z-[0-9a-f]{6}", first) and first != second


def test_an_unknown_option_never_starts_a_run(good):
    good.knows_scans = False
    before = good.snapshot()
    assert good.run("--froce", "copy").code == 2
    assert good.snapshot() == before


# --- from anywhere, on odd paths

def test_from_other_working_directories(good, tmp_path):
    elsewhere = tmp_path / "anderswo"
    elsewhere.mkdir()
    done = direct("--run-id", "a", "--pipeline", good.path("pipeline.json"), cwd=elsewhere)
    assert done.code == 0 and good.read("data/s1/größe.txt") == "x\n", done
    assert os.listdir(str(elsewhere)) == []
    assert "[SKIP] copy" in direct(cwd=good.root).out                              # pipeline.json of the working directory
    assert "[SKIP] copy" in direct("--pipeline", "pipeline.json", cwd=good.root).out
    assert "[SKIP] copy" in direct("--pipeline", os.path.join("..", "pipeline.json"), cwd=good.path("data")).out
    assert "[SKIP] copy" in direct("plan", cwd=good.root).out.replace("SKIP    copy", "[SKIP] copy")


def test_root_with_a_pipeline_file_elsewhere(good, tmp_path):
    other = tmp_path / "andere wurzel é"
    shutil.copytree(str(good.root), str(other))
    done = direct("--pipeline", good.path("pipeline.json"), "--root", other)
    assert done.code == 0 and (other / "data" / "s1" / "größe.txt").exists(), done
    assert not good.exists("state") and not good.exists("data/s1")
    done = direct("--pipeline", good.path("pipeline.json"), "--root", os.path.relpath(str(other), str(tmp_path)), cwd=tmp_path)
    assert done.code == 0 and "[SKIP] copy" in done.out, done


def test_a_root_that_is_not_there(good, tmp_path):
    done = direct("--pipeline", good.path("pipeline.json"), "--root", tmp_path / "nirgends")
    assert done.code == 2 and done.err.startswith("error: --root ") and done.err.endswith("nirgends: there is no such folder\n"), done
    assert not (tmp_path / "nirgends").exists()


@pytest.mark.parametrize("name", ["with blank", "größe 日本", "-rf"] + (["quote'\"$(x)", "new\nline", "[x]*"] if POSIX else ["100% & (co)", "it's ^ $(x) %OS%", "[x] a;b,c=d"]))
def test_roots_of_any_name(tmp_path, name):
    root = tmp_path / name
    shutil.copytree(str(ROOT / "bin"), str(root / "bin"))
    (root / "in.txt").write_text("x\n")
    (root / "pipeline.json").write_text(json.dumps({"name": "p", "stages": [
        {"name": "up", "processor": "bin/stage_upper.py", "inputs": ["*.txt"], "outputDir": "out", "checkpoint": {"enabled": True}}]}))
    done = direct("--run-id", "r", cwd=root)
    assert done.code == 0 and (root / "out" / "result.txt").read_text() == "X\n", done
    assert "[SKIP] up" in direct("--pipeline", root / "pipeline.json").out


# --- streams

def test_stdout_closed_by_its_reader(good):
    """Nobody reads any more: the run goes on, and its records are complete."""
    good.spec(*[{"name": "s%d" % number, "processor": "bin/stage_copy.py", "inputs": ["data/größe.txt"]} for number in range(3)])
    process = good.start("--run-id", "r")
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait(60) == 0 and err == b"", err
    process.stderr.close()
    record = good.json("state/run_r.json")
    assert record["state"] == "completed" and [one["status"] for one in record["stages"]] == ["ok"] * 3


def run_with_stdout(project, path, *arguments, err=subprocess.PIPE):
    with open(path, "wb") as out:
        done = subprocess.run(project.argv(*arguments), stdin=subprocess.DEVNULL, stdout=out, stderr=err, timeout=120)
    return done.returncode, done.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has /dev/full")
def test_stdout_on_a_full_disk(good):
    code, err = run_with_stdout(good, "/dev/full", "--run-id", "r")
    assert code == 0 and b"Traceback" not in err and b"Exception" not in err, err
    assert good.json("state/run_r.json")["state"] == "completed"
    with open("/dev/full", "wb") as full:
        assert subprocess.run(good.argv("--run-id", "r2"), stdin=subprocess.DEVNULL, stdout=full, stderr=full, timeout=120).returncode == 0
        assert subprocess.run(good.argv("plan"), stdin=subprocess.DEVNULL, stdout=full, stderr=full, timeout=120).returncode == 5
        assert subprocess.run(good.argv("--bad"), stdin=subprocess.DEVNULL, stdout=full, stderr=full, timeout=120).returncode == 2


def with_closed(argv, closed):
    """Return the command that runs the program with these streams closed, for Windows (pythonw.exe has none) without a shell."""
    if POSIX:
        return ["sh", "-c", '"$@" ' + closed, "sh", *argv]
    closing = {"<&-": "os.close(0)\nsys.stdin = None\n", ">&-": "os.close(1)\nsys.stdout = None\n", "2>&-": "os.close(2)\nsys.stderr = None\n"}
    return [argv[0], "-c", PRETEND % "".join(closing[one] for one in closed.split()), *argv[1:]]


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&-", "<&- >&- 2>&-"])
def test_streams_that_were_never_open(good, closed):
    done = subprocess.run(with_closed(good.argv("--run-id", "r"), closed), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=120)
    assert done.returncode == 0 and b"Traceback" not in done.stderr, done
    assert good.json("state/run_r.json")["state"] == "completed"
    assert good.read("data/s1/größe.txt") == "x\n" and good.json("state/stage_copy.json")["lastStatus"] == "ok"


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_no_lock_or_record_gets_the_number_of_a_closed_stream(good):
    """Else whatever is printed to descriptor 1 or 2, by an interpreter that crashes say, would go into that file."""
    body = "found = [os.readlink('/proc/%d/fd/%d' % (os.getppid(), number)) for number in range(3)]\njson.dump(found, open(out + '/found.json', 'w'))\n"
    good.spec({"name": "look", "processor": good.processor("look", body)})
    subprocess.run(["sh", "-c", '"$@" <&- >&- 2>&-', "sh", *good.argv()], timeout=120, check=True)
    assert good.json("data/s1/found.json") == ["/dev/null"] * 3


@pytest.mark.parametrize("env", [{"LC_ALL": "C", "LANG": "C"}, {"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "latin-1"},
                                 {"LC_ALL": "POSIX"}], ids=["C", "ascii", "latin-1", "POSIX"])
def test_names_that_the_terminal_cannot_show(good, env):
    good.write("data/größe.txt", "x\n")
    good.spec({"name": "copy", "processor": "bin/stage_copy.py", "inputs": ["data/größe.txt", "data/日本*.txt"]})
    done = good.run(env=env)
    assert done.code == 1 and "[FAIL] copy: input data/" in done.out and ".txt: no file matches" in done.out, done
    good.spec({"name": "copy", "processor": "bin/stage_copy.py", "inputs": ["data/größe.txt"], "params": {"wort": "日本"}})
    assert good.run(env=env).code == 0
    assert good.read("data/s1/größe.txt") == "x\n"
    assert good.json("state/stage_copy.json")["keyParts"]["inputs"][0][0] == "data/größe.txt"
    assert "[SKIP] copy" in good.ok().out                       # the same key in another locale
    done = good.run("--pipeline", "nöne.json", env=env)
    assert done.code == 2, done


def test_control_characters_do_not_reach_the_terminal(good):
    good.processor("bad", "sys.stderr.write('\\x1b[31mred\\x1b[0m\\x07 \\r overwrite\\n')\nsys.exit(1)\n")
    good.spec({"name": "copy", "processor": "bin/bad.py"})
    done = good.run("--verbose")
    assert done.code == 1 and "\x1b" not in done.out + done.err and "\x07" not in done.out + done.err, done
    assert "\\x1b[31mred" in done.err
    assert console.printable("a\tb\u202e\ud800") == "a\\tb\\u202e\\ud800"


def test_verbose_streams_whole_lines_with_the_stages_name(good):
    good.spec({"name": "talk", "processor": good.processor("talk", "print('erste Zeile ä', flush=True)\nsys.stderr.write('zweite\\nohne Ende')\n")})
    done = good.ok("--verbose")
    assert "talk | erste Zeile ä\n" in done.out and "talk | zweite\n" in done.out and "talk | ohne Ende\n" in done.out, done
    assert "Zeile" not in good.ok("--force", "talk").out


def test_a_failure_shows_the_last_lines_of_the_output(good):
    good.spec({"name": "talk", "processor": good.processor("talk", "for n in range(50):\n    print('line', n)\nsys.exit(3)\n")})
    done = good.run("--run-id", "r")
    assert done.err.splitlines() == ["    | line %d" % number for number in range(40, 50)], done
    assert good.read("state/logs/r/talk.1.log").replace("\r", "").splitlines() == ["line %d" % number for number in range(50)]


# --- lines and exit codes

def test_the_lines_on_stdout_are_stable(good):
    good.spec({"name": "one", "processor": "bin/stage_copy.py", "inputs": ["data/größe.txt"], "simulateFailAttempts": 1, "retry": {"attempts": 3, "baseDelayMs": 1}},
              {"name": "two", "processor": good.processor("two", "sys.exit(9)\n")}, {"name": "three", "processor": "bin/stage_copy.py"})
    done = good.run("--run-id", "r")
    expected = [r"\[START\] one", r"\[RETRY\] one attempt 1/3: exit code 75; next in 0\.00s", r"\[START\] one", r"\[DONE\] one in \d+\.\d{3}s", r"\[START\] two", r"\[FAIL\] two: exit code 9",
                r"Run r state: failed \(1 ok, 0 skipped, 1 failed, 1 not run\) in \d+\.\ds"]
    lines = done.steps
    assert len(lines) == len(expected) and all(re.fullmatch(pattern, line) for pattern, line in zip(expected, lines)), done
    assert [line for line in done.out.splitlines() if line not in lines][-1].startswith("[LEDGER] head 2: ") and done.out.splitlines()[0].startswith("[OFFLINE] "), done


def hold(project, name):
    """Take the kernel lock of a stage as another runner would, with an owner that lives: this process."""
    import time

    import process_tree
    import stage_locks
    import state_store
    from model import Clock
    project.path("locks").mkdir(exist_ok=True)
    lock = stage_locks.StageLock(str(project.root), name, "other", state_store.boot_id(), Clock(), process_tree)
    lock.acquire(time.monotonic() + 1)
    return lock


def test_exit_codes(good):
    failing = good.processor("failing", "sys.exit(1)\n")
    assert good.ok("--run-id", "r").code == 0
    good.spec({"name": "bad", "processor": failing})
    assert good.run().code == 1
    assert good.run("--nonsense").code == 2
    good.spec({"name": "copy", "processor": "bin/stage_copy.py", "inputs": ["data/größe.txt"], "lock": {"waitSeconds": 0}})
    lock = hold(good, "copy")
    try:
        done = good.run("--force", "copy")
        assert done.code == 4 and "stage copy is held by pid %d on " % os.getpid() in done.err and "(run other, since " in done.err, done
        assert good.run("unlock", "copy").code == 4
    finally:
        lock.release()
    good.write("state/stage_copy.json", "{")
    assert good.run().code == 5
    good.processor("network", "imp" + "ort " + "soc" + "ket\n")
    good.spec({"name": "net", "processor": "bin/network.py"})
    assert good.run().code == 6


@pytest.mark.skipif(not POSIX, reason="signals")
@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143), (getattr(signal, "SIGHUP", 1), 129)])
def test_exit_codes_of_signals(good, number, code):
    import time
    good.spec({"name": "hang", "processor": good.processor("hang", "open('inside', 'w').close()\ntime.sleep(300)\n"), "graceSec": 1}, {"name": "late", "processor": "bin/stage_copy.py"})
    process = good.start("--run-id", "r")
    deadline = time.monotonic() + 60
    while not good.exists("inside"):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code and b"Traceback" not in err, (out, err)
    assert b"[STOP] hang: interrupted\n" in out and b"Run r state: interrupted (0 ok, 0 skipped, 0 failed, 1 interrupted, 1 not run)" in out
    record = good.json("state/run_r.json")
    assert record["state"] == "interrupted" and [one["status"] for one in record["stages"]] == ["interrupted", "notRun"]
    assert not good.exists("locks/hang.lock")


# Words "module:name.name:number,number": when that function is called for the first time, these signals come, all at once.
ASKED = """
import importlib, os, runpy, signal, sys
runner, count = sys.argv[1], int(sys.argv[2])
sys.path.insert(0, os.path.dirname(runner))
def watch(module, names, numbers):
    *path, name = names.split(".")
    owner = importlib.import_module(module)
    for one in path:
        owner = getattr(owner, one)
    real, waiting = getattr(owner, name), [int(number) for number in numbers.split(",")]
    def call(*values, **named):
        numbers, waiting[:] = set(waiting), []
        signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
        for number in numbers:
            os.kill(os.getpid(), number)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
        return real(*values, **named)
    setattr(owner, name, call)
for word in sys.argv[3:3 + count]:
    watch(*word.split(":"))
sys.argv[:] = [runner] + sys.argv[3 + count:]
runpy.run_path(runner, run_name="__main__")
"""
PARSE, TELL = "command_line:parse_command_line", "console:Console.error"
STAGES, FINISH, ALARM = "engine:Run._run_stages", "engine:Run._finish", "engine:Run._alarm"


def asked(project, words, *arguments, **env):
    """Run the program, and ask it to stop at these points."""
    python, runner, *rest = project.argv(*arguments)
    argv = [python, str(project.write("asked.py", ASKED)), runner, str(len(words)), *words, *rest]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=project.environment(**env), timeout=60)
    return done.returncode, done.stdout.decode("utf-8"), done.stderr.decode("utf-8")


@pytest.mark.skipif(not POSIX, reason="signals")
@pytest.mark.parametrize("words", [[PARSE + ":15,1"], [PARSE + ":2,15"], [PARSE + ":15", TELL + ":1"], [PARSE + ":15", TELL + ":15,2"], [PARSE + ":2", TELL + ":2"]],
                         ids=["term and hup", "int and term", "term, then hup", "term, then term and int", "ctrl-c twice"])
def test_several_requests_to_stop_a_command_are_one(good, words):
    """systemd with SendSIGHUP=yes sends two at once."""
    code, out, err = asked(good, words, "plan")
    assert code in {128 + int(number) for number in words[0].rpartition(":")[2].split(",")} and (out, err) == ("", "interrupted\n"), (code, out, err)


@pytest.mark.skipif(not POSIX, reason="signals")
@pytest.mark.parametrize("words", [[STAGES + ":15,1"], [STAGES + ":15", FINISH + ":1"], [STAGES + ":2", FINISH + ":15,2", TELL + ":1"]], ids=["at once", "in turn", "many"])
def test_several_requests_to_stop_a_run_before_its_first_attempt_are_one(good, words):
    good.write("bin/tell.py", "import os, signal\nasks = [signal.getsignal(one) == signal.SIG_IGN for one in (signal.SIGTERM, signal.SIGHUP)]\n"
                              "open('told', 'w').write('%s %s' % (os.environ['PIPELINE_RUN_STATE'], any(asks)))\n")
    good.spec({"name": "copy", "processor": "bin/stage_copy.py", "inputs": ["data/größe.txt"]}, onFailure=["bin/tell.py"])
    code, out, err = asked(good, words, "--run-id", "r")
    assert code in {128 + int(number) for number in words[0].rpartition(":")[2].split(",")} and "Run r state: interrupted (0 ok" in out and err == "interrupted\n", (code, out, err)
    assert good.json("state/run_r.json")["state"] == "interrupted" and good.read("told") == "interrupted False"
    good.ok("--run-id", "r2")
    good.ok("verify")


@pytest.mark.skipif(not POSIX, reason="signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_request_to_stop_after_the_summary_changes_nothing(good, number):
    good.ok("--run-id", "r")
    code, out, err = asked(good, ["%s:%d" % (ALARM, number)], "--run-id", "r2", PIPELINE_INDEX="off")
    assert (code, err) == (0, "") and "Run r2 state: completed (0 ok, 1 skipped" in out, (code, out, err)


def test_unlock(good):
    good.path("locks").mkdir()
    assert good.ok("unlock", "copy").out == "stage copy is not locked\n"
    good.write("locks/copy.lock/mine.txt", "not the runner's")
    good.spec({"name": "copy", "processor": "bin/stage_copy.py", "inputs": ["data/größe.txt"], "lock": {"waitSeconds": 0}})
    done = good.run()
    assert done.code == 4 and "locks/copy.lock was made by something else" in done.err and "unlock copy" in done.err, done
    assert good.exists("locks/copy.lock/mine.txt")
    assert good.ok("unlock", "copy").out == "removed locks/copy.lock\n"
    assert good.ok().code == 0
    done = good.run("unlock", "cop")
    assert done.code == 2 and 'no stage is named "cop"; did you mean copy?' in done.err, done


def test_unlock_before_anything_was_run(good):
    before = good.snapshot()
    assert good.ok("unlock", "copy").out == "stage copy is not locked\n"
    assert good.snapshot() == before and not good.exists("locks")


# --- imported

DRIVER = """
import json, os, signal, subprocess, sys
def handler(number, frame):
    pass
if hasattr(signal, "SIGUSR1"):
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGCHLD"):
        signal.signal(getattr(signal, name), handler)
child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
def state():
    names = [name for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGCHLD", "SIGBREAK") if hasattr(signal, name)]
    return [[str(signal.getsignal(getattr(signal, name))) for name in names], os.getcwd(), child.poll(), signal.set_wakeup_fd(-1), sorted(os.environ)]
before = state()
%s
code = runner.main(sys.argv[1:])
assert state() == before, (before, state())
if sys.platform == "linux":
    children = open("/proc/self/task/%%d/children" %% os.getpid()).read().split() if os.path.exists("/proc/self/task/%%d/children" %% os.getpid()) else [str(child.pid)]
    assert children == [str(child.pid)], children
child.communicate(b"\\n")
print("code %%d" %% code)
"""
IMPORTS = {"from the root": ("import src.pipeline_runner as runner", ROOT), "beside it": ("sys.path.insert(0, %r)\nimport pipeline_runner as runner" % str(ROOT / "src"), None)}


@pytest.mark.parametrize("how", IMPORTS)
def test_an_imported_main_works_in_a_child_and_leaves_its_caller_alone(good, tmp_path, how):
    text, cwd = IMPORTS[how]
    driver = tmp_path / "driver.py"
    driver.write_text(DRIVER % text, encoding="utf-8")
    env = dict(os.environ, PYTHONPATH=str(cwd)) if cwd else dict(os.environ)
    for words, code, expected in ((["--run-id", "r"], 0, "[DONE] copy"), (["--run-id", "r2"], 0, "[SKIP] copy"), (["plan"], 0, "SKIP    copy"), (["--only", "cop"], 2, "")):
        done = subprocess.run([sys.executable, str(driver), *words, "--pipeline", str(good.path("pipeline.json"))], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, cwd=str(cwd or tmp_path), env=env, timeout=120)
        out = text_of(done.stdout)
        assert done.returncode == 0 and out.endswith("code %d\n" % code) and expected in out, (out, text_of(done.stderr))
    assert good.json("state/run_r.json")["state"] == "completed"


def test_the_lines_of_a_run_in_a_child_end_once_on_windows(monkeypatch, tmp_path):
    """The child ends them as its system does, and so does the stream of its caller."""
    child = tmp_path / "child.py"
    child.write_text("import os\nos.write(1, b'one\\r\\ntwo\\r\\n')\nos.write(2, b'three\\r\\n')\n", encoding="utf-8")
    monkeypatch.setattr(commands, "RUNNER", str(child))
    monkeypatch.setattr(os, "linesep", "\r\n")
    streams = [io.TextIOWrapper(io.BytesIO(), "utf-8", newline="\r\n") for _ in range(2)]
    assert commands._run_in_child([], console.Console(*streams)) == 0
    for stream in streams:
        stream.flush()
    assert [stream.buffer.getvalue() for stream in streams] == [b"one\r\ntwo\r\n", b"three\r\n"]


def test_main_takes_the_arguments_of_the_process_by_default(good):
    code = "import sys; sys.path.insert(0, %r); import pipeline_runner; sys.exit(pipeline_runner.main())" % str(ROOT / "src")
    done = subprocess.run([sys.executable, "-c", code, "validate", "--pipeline", str(good.path("pipeline.json"))], stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60)
    assert done.returncode == 0 and b"ok (1 stage)" in done.stdout, done


@pytest.mark.parametrize("make, told", [
    (lambda root: (root / "state" / "ledger.jsonl").mkdir(parents=True), "ledger.jsonl: Is a directory; a file belongs there: move the folder away"),
    (lambda root: (root / "state").write_text(""), "state: Not a directory; a folder belongs there, not a file or a link that leads nowhere: mount what it leads to, or move it away"),
], ids=["a folder", "a file"])
def test_what_is_in_the_place_of_a_file_of_the_runner_is_said_with_a_remedy(good, make, told):
    make(good.root)
    good.knows_scans = False
    done = good.run()
    assert done.code == 5 and done.err.count("\n") == 1 and done.err.endswith(told + "\n"), done


# With something of the system as it is not here.
PRETEND = "import os, runpy, sys\n%s\ndel sys.argv[0]\nsys.path.insert(0, os.path.dirname(sys.argv[0]))\nrunpy.run_path(sys.argv[0], run_name='__main__')\n"


def pretending(project, what):
    argv = project.argv()
    return subprocess.run([argv[0], "-c", PRETEND % what, *argv[1:]], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          universal_newlines=True, encoding="utf-8", timeout=60)


@pytest.mark.skipif(not POSIX, reason="fork, and launchers")
@pytest.mark.parametrize("stage, what, told", [
    ({}, "def fork():\n    raise BlockingIOError(%d, os.strerror(%d))\nos.fork = fork" % (errno.EAGAIN, errno.EAGAIN),
     "no process could be started: %s; allow this user more processes (ulimit -u), or run with fewer --jobs" % os.strerror(errno.EAGAIN)),
    ({"launcher": ["nice"]}, "import tempfile\ntempfile._candidate_tempdir_list = lambda: ['/not there', '/nor there']",
     "launcher: No usable temporary directory found in ['/not there', '/nor there']; set TMPDIR to a folder that this user may write to, on this machine")],
    ids=["no process", "no temporary folder"])
def test_what_the_system_does_not_give_is_named(good, stage, what, told):
    spec = good.json("pipeline.json")
    spec["stages"][0].update(stage)
    good.write("pipeline.json", json.dumps(spec))
    done = pretending(good, what)
    assert done.returncode == 5 and done.stderr == "error: %s\n" % told and "[START]" not in done.stdout, done


RIGHTS = "the runner must be able to write state/, locks/ and the output folders below the root, and to read all else there"
OPEN = "another program (backup, virus scanner, editor) may have it open: close it and run again"


def test_errors_of_the_system_are_said_with_a_remedy():
    error = OSError(errno.EMFILE, os.strerror(errno.EMFILE), "x")
    assert console.describe_os_error(error).endswith("; allow this user more open files (ulimit -n), or run with fewer --jobs")
    assert console.describe_os_error(OSError(errno.EFBIG, "File too large", "x")) == "x: File too large; allow this user larger files (ulimit -f)"
    assert sys.platform == "win32" or console.describe_os_error(OSError(errno.EACCES, "Permission denied", "x")) == "x: Permission denied; " + RIGHTS
    assert console.describe_os_error(OSError(errno.EBADF, "Bad file descriptor", 15)) == "the runner's own files, or the standard output: Bad file descriptor"
    assert console.describe_os_error(OSError("no number")) == "the runner's own files, or the standard output: no number"
    assert console.describe_os_error(OSError(errno.ENOSPC, "full")) == "the runner's own files, or the standard output: full; free some space and run again"
    launch = types.SimpleNamespace(argv=["prog"], folder="", launcher=None, output_path="")
    assert process_start.not_started_text(launch, error) == "cannot start prog: %s; allow this user more open files (ulimit -n), or run with fewer --jobs" % os.strerror(errno.EMFILE)
    refused = OSError(errno.ENOEXEC, "%1 is not a valid Win32 application")
    refused.winerror = 193
    assert process_start.not_started_text(launch, refused) == (
        "cannot start prog: %1 is not a valid Win32 application; Windows starts no such file: name an .exe, .bat, .cmd, .py or .ps1 file, "
        "or the interpreter by its absolute path with the script as its first argument")


@pytest.mark.skipif(os.name == "nt", reason="no owners by number")
@pytest.mark.parametrize("name, mode, owner, told", [
    ("locks/.r.run", 0o600, 0, "it belongs to {root}; as root: chown {me} {path}"), ("state/a b.json", 0o600, 0, "it belongs to {root}; as root: chown {me} '{path}'"),
    ("locks/s.lock/", 0o755, 0, "it belongs to {root}; as root: chown -R {me} {path}"), ("state/logs/r/2/x", None, 0, "its folder belongs to {root}; as root: chown -R {me} {folder}"),
    ("locks/.r.run", 0o600, 54321, "it belongs to 54321; run as 54321, or, as root: chown {me} {path}"), ("locks/.r.run", 0o600, 1234567, RIGHTS), ("data/in.txt", 0o600, 0, RIGHTS)])
def test_of_a_file_of_the_runner_that_belongs_to_somebody_else_the_owner_is_named(tmp_path, monkeypatch, name, mode, owner, told):
    """As root leaves them, or another operator."""
    me, path = 1234567, tmp_path / name
    path.parent.mkdir(parents=True)
    if mode is not None and name.endswith("/"):
        path.mkdir()
    elif mode is not None:
        path.touch()
    theirs, look = str(path if mode is not None else path.parent), os.lstat
    monkeypatch.setattr(os, "geteuid", lambda: me)
    monkeypatch.setattr(os, "access", lambda there, wanted: str(there) != theirs)
    monkeypatch.setattr(os, "lstat", lambda there: os.stat_result([look(there).st_mode, 0, 0, 0, owner if str(there) == theirs else me, 0, 0, 0, 0, 0]))
    said = console.describe_os_error(PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path)))
    assert said == "%s: Permission denied; %s" % (path, told.format(root=primitives.account_name(0), me=me, path=path, folder=path.parent))


@pytest.mark.parametrize("code, remedy", [(32, OPEN), (33, OPEN), (5, RIGHTS + ". Or " + OPEN), (None, RIGHTS + ". Or " + OPEN)])
def test_a_file_that_another_program_holds_open_on_windows_is_not_told_to_lack_rights_only(monkeypatch, code, remedy):
    monkeypatch.setattr(sys, "platform", "win32")
    error = PermissionError(errno.EACCES, "Sharing violation", "x")
    error.winerror = code
    assert console.describe_os_error(error) == "x: Sharing violation; " + remedy


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("can't start new thread")])
def test_too_little_memory_is_said_in_one_line(good, capsys, monkeypatch, error):
    def broken(*arguments):
        raise error
    monkeypatch.setattr(commands, "_dispatch", broken)
    assert pipeline_runner.main(["validate"]) == 5
    assert capsys.readouterr().err == "error: not enough memory, or threads; allow this user more (ulimit -v, ulimit -u), or run with fewer --jobs\n"


def test_an_internal_error_is_said_to_be_one(good, capsys, monkeypatch):
    """Exit 3, and the place, so that it can be reported: nothing else may print a traceback."""
    def broken(*arguments):
        raise ZeroDivisionError("planted")
    monkeypatch.setattr(commands, "_dispatch", broken)
    assert pipeline_runner.main(["validate"]) == 3
    err = capsys.readouterr().err
    assert err.startswith("internal error, please report it:\n") and "ZeroDivisionError: planted" in err


def test_a_usage_error_is_an_exception_with_an_exit_code():
    with pytest.raises(UsageError) as caught:
        command_line.parse_command_line(["--nonsense"])
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("words, code", [(("verify",), 0), (("verify", "--help"), 0), (("verify", "nobody"), 2), (("plan",), 0), (("export", "r1"), 0), (("evidence", "r1"), 0), (("graph",), 0)],
                         ids=lambda value: "-".join(value) if isinstance(value, tuple) else str(value))
def test_who_closes_the_output_gets_the_exit_code(project, words, code):
    project.write("data/in.txt", "x")
    project.spec({"processor": "bin/stage_copy.py", "inputs": ["data/in.txt"]})
    project.ok("--run-id", "r1")
    for closed in (">&-", ">&- 2>&-"):
        done = subprocess.run(with_closed(project.argv(*words), closed), cwd=str(project.root), stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=120)
        assert done.returncode == code and b"Traceback" not in done.stderr, done


@pytest.mark.skipif(os.name == "nt", reason="a current folder cannot be removed there")
@pytest.mark.parametrize("words", [(), ("init", "new"), ("verify",)], ids=lambda words: "-".join(words) or "run")
def test_a_current_folder_that_is_gone_is_told_of(tmp_path, words):
    (tmp_path / "gone").mkdir()
    env = {name: value for name, value in os.environ.items() if not name.startswith("COV")}     # what measures coverage has a word to say there, too
    done = subprocess.run(["sh", "-c", 'cd "$0" && rmdir "$0" && exec "$@"', str(tmp_path / "gone"), sys.executable, str(RUNNER), *words], env=env,
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60)
    assert done.returncode == 5 and done.stderr == b"error: the current folder is not there any more; go to another one (cd) and run again\n", done
