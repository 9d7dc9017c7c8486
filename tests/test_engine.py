"""Whole small pipelines through the real program."""
from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, RUNNER, Done, Project, text_of

LOAD = "imp" + "ort "            # composed: no file of the repository spells such an import
NET = "soc" + "ket"


def look(root):
    return {str(path): (path.lstat().st_mtime_ns, path.read_bytes() if path.is_file() else None) for path in sorted(root.rglob("*")) if "__pycache__" not in path.parts}


# --- the demo pipeline of the repository

def copy_of_the_repository(root):
    """Copy what the demo needs, its own runner included, without what runs have left behind."""
    for name in ("src", "bin"):
        shutil.copytree(str(ROOT / name), str(root / name), ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(str(ROOT / "data" / "input"), str(root / "data" / "input"))
    shutil.copy2(str(ROOT / "pipeline.json"), str(root / "pipeline.json"))
    return root


def demo(root, *arguments):
    """Run the command of the README in the folder itself."""
    argv = [sys.executable, "src/pipeline_runner.py", "--pipeline", "pipeline.json", *arguments]
    done = subprocess.run(argv, cwd=str(root), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=120)
    return Done(argv, done.returncode, text_of(done.stdout), text_of(done.stderr))


@pytest.fixture(scope="module")
def demo_once(tmp_path_factory):
    """The demo after its first run, and what that printed."""
    root = copy_of_the_repository(tmp_path_factory.mktemp("demo") / "saubere kopie ß")
    return root, demo(root, "--run-id", "demo1")


@pytest.fixture
def demo_root(demo_once, tmp_path):
    shutil.copytree(str(demo_once[0]), str(tmp_path / "kopie"))
    return tmp_path / "kopie"


def upper_of_all_inputs():
    return "".join(path.read_bytes().decode("utf-8").upper() for path in sorted((ROOT / "data" / "input").glob("*.txt"))).encode("utf-8")


def test_the_demos_first_run(demo_once):
    root, done = demo_once
    assert done.code == 0, done
    lines = done.steps
    assert [line.split(" in ")[0] for line in lines[:5]] == ["[START] stage_copy", "[DONE] stage_copy", "[START] stage_upper",
                                                            "[RETRY] stage_upper attempt 1/3: exit code 75; next", "[START] stage_upper"], done
    assert "next in 0.10s" in lines[3] and lines[5].startswith("[DONE] stage_upper in ")
    assert lines[6].startswith("Run demo1 state: completed (2 ok, 0 skipped, 0 failed) in ") and len(lines) == 7
    assert (root / "data" / "output" / "result.txt").read_bytes() == upper_of_all_inputs()
    for path in (ROOT / "data" / "input").glob("*.txt"):
        assert (root / "data" / "work" / path.name).read_bytes() == path.read_bytes()
    for name in ("state/run_demo1.json", "state/metrics_demo1.json", "state/stage_stage_copy.json", "state/stage_stage_upper.json", "data/work/.stage_copy.done", "data/output/.stage_upper.done"):
        assert json.loads((root / name).read_bytes().decode("utf-8")), name
    assert json.loads((root / "state" / "stage_stage_upper.json").read_bytes().decode("utf-8"))["attempts"] == 2


def test_the_demos_second_run(demo_root):
    before = (demo_root / "data" / "output" / "result.txt").stat().st_mtime_ns
    done = demo(demo_root, "--run-id", "demo1")
    assert done.code == 0 and done.err == "", done
    lines = done.steps
    assert len(lines) == 3 and lines[0].startswith("[SKIP] stage_copy (up to date: key ") and lines[1].startswith("[SKIP] stage_upper (up to date: key "), done
    assert "1 output verified)" in lines[1] and "completed (0 ok, 2 skipped, 0 failed)" in lines[2]
    assert (demo_root / "data" / "output" / "result.txt").stat().st_mtime_ns == before


@pytest.mark.parametrize("old_output", ["whole", "cut in a line", "cut after a line", "one line", "empty", "missing"])
def test_the_demos_resume_from_a_hand_written_checkpoint(demo_root, old_output):
    result = demo_root / "data" / "output" / "result.txt"
    whole = result.read_bytes()
    lines = whole.splitlines(keepends=True)
    if old_output == "missing":
        result.unlink()
    else:
        result.write_bytes({"whole": whole, "cut in a line": whole[:len(whole) // 2], "cut after a line": b"".join(lines[:5]), "one line": lines[0], "empty": b""}[old_output])
    (demo_root / "state" / "progress_stage_upper.json").write_text('{"lineOffset": 1}')
    (demo_root / "data" / "output" / ".stage_upper.done").unlink()
    assert "RESUME  stage_upper from line 1 (" in demo(demo_root, "--dry-run").out
    done = demo(demo_root, "--run-id", "demo1")
    assert done.code == 0 and "[SKIP] stage_copy (" in done.out and "[RESUME] stage_upper from line 1\n" in done.out and "[DONE] stage_upper" in done.out, done
    assert result.read_bytes() == whole == upper_of_all_inputs()
    assert (demo_root / "data" / "output" / ".stage_upper.done").exists()
    assert demo(demo_root, "--run-id", "demo1").out.count("[SKIP]") == 2
    assert sorted(path.name for path in (demo_root / "data" / "output").iterdir()) == [".stage_upper.done", "result.txt"]


def test_the_demo_after_a_change_of_its_input(demo_root):
    text = demo_root / "data" / "input" / "sample.txt"
    text.write_bytes(text.read_bytes() + "Eine Zeile mehr: Grüße.\n".encode("utf-8"))
    assert demo(demo_root, "plan").out == "RUN     stage_copy (input data/input/sample.txt changed)\nPENDING stage_upper (waits for stage_copy)\n"
    assert demo(demo_root).code == 0
    assert (demo_root / "data" / "output" / "result.txt").read_bytes().endswith("EINE ZEILE MEHR: GRÜSSE.\n".encode("utf-8"))


# --- stages in order

def test_a_failing_stage_stops_the_run(project):
    project.write("data/in.txt", "x")
    project.spec({"processor": "bin/stage_copy.py", "inputs": ["data/in.txt"]}, {"processor": project.processor("bad", "print('why')\nsys.exit(3)\n")},
                 {"processor": "bin/stage_copy.py", "inputs": ["data/in.txt"]}, {"processor": "bin/stage_copy.py", "inputs": ["data/in.txt"]})
    done = project.run("--run-id", "r")
    assert done.code == 1 and "[FAIL] s2: exit code 3: why\n" in done.out and "s3" not in done.out, done
    record = project.json("state/run_r.json")
    assert [(one["stage"], one["status"]) for one in record["stages"]] == [("s1", "ok"), ("s2", "failed"), ("s3", "notRun"), ("s4", "notRun")]
    assert record["stages"][2]["reason"] == "the run ended before it" and record["state"] == "failed"
    assert not project.exists("state/stage_s3.json") and not project.exists("data/s3")
    project.processor("bad", "open(out + '/o', 'w').write('o')\n")
    done = project.ok("--run-id", "r")
    assert "[SKIP] s1" in done.out and done.out.count("[DONE]") == 3, done


def test_nothing_of_a_failed_stage_is_taken_for_an_output(project):
    project.spec({"processor": project.processor("half", "open(out + '/half.txt', 'w').write('half')\nopen(out + '/x.part', 'w')\nif os.path.exists('bad'):\n    sys.exit(1)\n")})
    project.write("bad", "")
    assert project.run().code == 1
    assert not project.exists("data/s1/.s1.done")
    assert project.run().code == 1
    project.path("bad").unlink()
    done = project.ok()
    assert "[NOTE] s1: leftovers of an unfinished attempt: removed half.txt\n" in done.out, done
    assert project.read("data/s1/half.txt") == "half"


def test_what_earlier_runs_had_recorded_is_named_when_it_is_removed(project):
    """A processor's memory in the output folder, that grows from run to run: it is not what the inputs alone make."""
    body = ("path = out + '/history'\nold = open(path).read() if os.path.exists(path) else ''\nopen(path, 'w').write(open(inputs[0]).read() + old)\n"
            "sys.exit(os.path.exists('bad'))\n")
    project.spec({"processor": project.processor("grow", body), "inputs": ["in.txt"]})
    for run in ("1", "2"):
        project.write("in.txt", run)
        project.ok("--run-id", run)
    project.write("in.txt", "3")
    project.write("bad", "")
    assert project.run().code == 1 and project.read("data/s1/history") == "321"
    project.path("bad").unlink()
    done = project.ok("--run-id", "4")
    assert "[NOTE] s1: leftovers of an unfinished attempt: removed history; an earlier run had recorded history\n" in done.out, done
    assert project.read("data/s1/history") == "3"
    project.write("data/s1/history", "by hand")
    done = project.ok()
    assert "[NOTE] s1: not what was recorded: removed history; run 4 had recorded history\n" in done.out, done


@pytest.mark.parametrize("code, retry, attempts", [
    (75, {"attempts": 3}, 3), (1, {"attempts": 3}, 3), (1, {}, 1), (75, {}, 1), (7, {"attempts": 3, "exitCodes": [75]}, 1), (75, {"attempts": 3, "exitCodes": [75]}, 3),
    (75, {"attempts": 3, "exitCodes": [7]}, 1), (7, {"attempts": 3, "exitCodes": [7, 8]}, 3), (7, {"attempts": 3, "exitCodes": []}, 1), (75, {"attempts": 3, "exitCodes": None}, 3),
])
def test_which_exit_codes_are_worth_a_retry(project, code, retry, attempts):
    project.spec({"processor": project.processor("bad", "open('tries', 'a').write(os.environ['PIPELINE_ATTEMPT'])\nsys.exit(%d)\n" % code), "retry": dict(retry, baseDelayMs=0)})
    done = project.run()
    assert done.code == 1 and project.read("tries") == "123"[:attempts], done
    assert done.out.count("[RETRY]") == attempts - 1 and "[FAIL] s1: exit code %d\n" % code in done.out
    assert project.json("state/stage_s1.json")["attempts"] == attempts


def test_a_retry_succeeds_and_clears_what_the_failed_attempt_left(project):
    project.spec({"processor": project.processor("third", "open(out + '/log.txt', 'a').write(os.environ['PIPELINE_ATTEMPT'])\nsys.exit(75 if os.environ['PIPELINE_ATTEMPT'] != '3' else 0)\n"),
                  "retry": {"attempts": 3, "baseDelayMs": 1, "maxDelayMs": 1}})
    done = project.ok()
    assert done.out.count("[RETRY] s1 attempt") == 2 and "attempt 2/3: exit code 75; next in 0.00s" in done.out, done
    assert project.read("data/s1/log.txt") == "3"


def test_simulated_failures(project):
    project.spec({"processor": project.processor("seen", "sys.exit(75 if os.environ.get('PIPELINE_SIMULATED_FAIL') == '1' else 0)\n"), "simulateFailAttempts": 2,
                  "retry": {"attempts": 3, "baseDelayMs": 0}})
    assert project.ok().out.count("[RETRY]") == 2


# --- what a processor gets

def test_the_processors_environment_and_arguments(project):
    project.write("data/a b.txt", "x")
    body = ("json.dump({'env': {k: v for k, v in os.environ.items() if k.startswith('PIPELINE_')}, 'argv': sys.argv[1:], 'cwd': os.getcwd(), 'stdin': sys.stdin.read(), 'inputs': inputs,\n"
            " 'mode': os.environ.get('MODE'), 'dropped': [k for k in ('HTTPS_PROXY', 'SSH_AUTH_SOCK', 'LD_PRELOAD', 'PYTHONPATH', 'PIPELINE_FOREIGN') if os.environ.get(k, '').rpartition(os.sep)[2] not in ('', 'python_hook')]}, open(out + '/seen.json', 'w'))\n")
    project.spec({"processor": project.processor("see", body), "inputs": ["data/*.txt"], "args": ["-v", "--x=ä"], "params": {"tag": "2024", "n": [1, None]}, "env": {"MODE": "fast"},
                  "checkpoint": {"enabled": True, "lineInterval": 7}})
    project.ok("--run-id", "r", env={"HTTPS_PROXY": "http://x", "SSH_AUTH_SOCK": "/x", "PYTHONPATH": str(project.root), "PIPELINE_FOREIGN": "1"})
    seen = project.json("data/s1/seen.json")
    env = seen["env"]
    assert seen["argv"] == ["-v", "--x=ä", "data/a b.txt"] and seen["inputs"] == ["data/a b.txt"]
    assert os.path.samefile(seen["cwd"], str(project.root)) and seen["stdin"] == "" and seen["mode"] == "fast" and seen["dropped"] == []
    assert (env["PIPELINE_STAGE_NAME"], env["PIPELINE_LINE_OFFSET"], env["PIPELINE_RUN_ID"], env["PIPELINE_ATTEMPT"], env["PIPELINE_LINE_INTERVAL"]) == ("s1", "0", "r", "1", "7")
    assert env["PIPELINE_OUTPUT_DIR"] == os.path.join(str(project.root), "data", "s1") and env["PIPELINE_ROOT"] == str(project.root)
    assert env["PIPELINE_PROGRESS_FILE"] == os.path.join(str(project.root), "state", "progress_s1.json") and os.path.isabs(env["PIPELINE_PROGRESS_FILE"])
    assert json.loads(env["PIPELINE_PARAMS"]) == {"tag": "2024", "n": [1, None]}
    assert "PIPELINE_SIMULATED_FAIL" not in env


def test_without_a_checkpoint_there_is_no_progress_file(project):
    project.spec({"processor": project.processor("see", "open(out + '/o', 'w').write(str('PIPELINE_PROGRESS_FILE' in os.environ))\n")})
    project.ok()
    assert project.read("data/s1/o") == "False"


def test_pass_env_leaves_only_the_basics_and_what_it_lists(project):
    project.spec({"processor": project.processor("see", "open(out + '/o', 'w').write(' '.join(sorted(k for k in os.environ if k in ('PATH', 'DEMO_A', 'DEMO_B', 'OTHER'))))\n"), "passEnv": ["DEMO_A", "X*"]})
    project.ok(env={"DEMO_A": "1", "DEMO_B": "2", "OTHER": "3"})
    assert project.read("data/s1/o") == "DEMO_A PATH"


@pytest.mark.skipif(sys.platform == "win32", reason="shell scripts")
def test_a_program_that_is_no_python(project):
    project.write("bin/tool", "#!/bin/sh\ncat \"$1\" > \"$PIPELINE_OUTPUT_DIR/copy.txt\"\n", executable=True)
    project.write("data/in.txt", "von der Schale\n")
    project.spec({"processor": "bin/tool", "inputs": ["data/in.txt"]})
    project.ok()
    assert project.read("data/s1/copy.txt") == "von der Schale\n"


@pytest.mark.skipif(sys.platform == "win32", reason="shell scripts")
@pytest.mark.parametrize("text, hint", [("echo no first line\n", "a script needs a first line such as #!/bin/sh"), ("#!/no/such/interpreter\n", "; its first line names /no/such/interpreter, which is not there: install it, or name another"),
                                        ("#!/bin/sh\r\n:\r\n", "its first line ends with a carriage return (CRLF): save it with plain line ends"),
                                        ("\ufeff#!/bin/sh\n", "a byte order mark stands before its first line: save it without")])
def test_a_program_that_cannot_be_started(project, text, hint):
    project.write("bin/tool", text, executable=True)
    project.spec({"processor": "bin/tool", "retry": {"attempts": 3}})
    done = project.run("--run-id", "r")
    assert done.code == 1 and "[FAIL] s1: cannot start " in done.out and hint in done.out and "RETRY" not in done.out, done
    assert project.json("state/run_r.json")["stages"][0]["exitCode"] is None


def test_a_time_limit(project):
    project.spec({"processor": project.processor("slow", "time.sleep(300)\n"), "timeoutSec": 0.3, "graceSec": 1})
    done = project.run()
    assert done.code == 1 and "[FAIL] s1: timeout after 0.3 s\n" in done.out, done


def test_free_disk_space_is_asked_for_before_the_start(project):
    project.spec({"processor": "bin/stage_copy.py", "resources": {"minFreeDiskMB": 1 << 40}, "retry": {"attempts": 5, "baseDelayMs": 1}})
    done = project.run()
    assert done.code == 1 and "bytes free in data/s1, resources.minFreeDiskMB asks for %d" % (1 << 60) in done.out and "RETRY" not in done.out, done


@pytest.mark.parametrize("wanted", [{"resources": {"minFreeDiskMB": 1}}, {}], ids=["space asked for", "plain"])
def test_an_output_folder_that_an_attempt_has_removed_is_made_anew_for_the_next(project, wanted):
    body = "if os.environ['PIPELINE_ATTEMPT'] == '1':\n    __import__('shutil').rmtree(out)\n    sys.exit(7)\nopen(out + '/o', 'w').close()\n"
    project.spec(dict({"processor": project.processor("p", body), "retry": {"attempts": 2, "baseDelayMs": 1}}, **wanted))
    project.ok("--run-id", "r")
    assert [one["path"] for one in project.json("state/stage_s1.json")["outputs"]] == ["o"]
    assert "[SKIP] s1" in project.ok().out


def test_no_stage_is_left_locked_and_no_temporary_file_behind(project):
    project.write("data/in.txt", "x")
    project.spec({"processor": "bin/stage_copy.py", "inputs": ["data/in.txt"]}, {"processor": project.processor("bad", "sys.exit(1)\n")})
    project.run()
    names = [str(path.relative_to(project.root)) for path in project.root.rglob("*")]
    assert not [name for name in names if name.endswith((".tmp", ".part", ".lock"))], names


# --- the offline guard's scan

def guarded(project, files, **top):
    project.write("data/in.txt", "x")
    for name, text in files.items():
        project.write(name, text)
    project.spec({"processor": "bin/work.py", "inputs": ["data/in.txt"]}, **top)
    return project


NETWORK = {
    "the processor": ({"bin/work.py": "\n\n" + LOAD + NET + "\n"}, "bin/work.py:3: "),
    "from": ({"bin/work.py": "fr" + "om " + "url" + "lib.request " + "imp" + "ort urlopen\n"}, "bin/work.py:1: "),
    "a module of the processor": ({"bin/work.py": LOAD + "near\n", "bin/near.py": "x = 1\n" + LOAD + "asyn" + "cio\n"}, "bin/near.py:2: "),
    "a program that no stage names": ({"bin/work.py": "", "bin/unused/other.py": LOAD + "http.cl" + "ient\n"}, "bin/unused/other.py:1: "),
    "by name": ({"bin/work.py": "__imp" + "ort__('" + NET + "')\n"}, "bin/work.py:1: "),
    "importlib": ({"bin/work.py": LOAD + "importlib\nimportlib." + "imp" + "ort_module('" + "requ" + "ests')\n"}, "bin/work.py:2: "),
}


@pytest.mark.parametrize("how", NETWORK)
@pytest.mark.parametrize("words", [[], ["plan"], ["validate"]])
def test_a_finding_stops_before_anything_is_written(project, how, words):
    files, place = NETWORK[how]
    guarded(project, files)
    project.knows_scans = False
    before = look(project.root)
    done = project.run(*words)
    assert done.code == 6 and done.out == "", done
    assert "[OFFLINE] " + place in done.err and "nothing was run" in done.err and '"allow"' in done.err, done
    assert look(project.root) == before and not project.exists("state")


def test_every_finding_is_named_with_its_module(project):
    guarded(project, {"bin/work.py": LOAD + NET + "\n" + LOAD + "asyn" + "cio\n", "bin/other.py": LOAD + "s" + "sl\n"})
    lines = project.run().err.splitlines()
    assert [line.split(": ")[0] for line in lines if line.startswith("[OFFLINE]")] == ["[OFFLINE] bin/other.py:1", "[OFFLINE] bin/work.py:1", "[OFFLINE] bin/work.py:2"], lines
    assert NET in lines[1] and "asyn" + "cio" in lines[2]


def test_what_to_write_to_let_findings_through_is_said(project):
    guarded(project, {"bin/work.py": LOAD + "asyn" + "cio\n", "bin/other.py": LOAD + NET + "\n" + LOAD + "asyn" + "cio\n"}, offline={"allow": ["ftp" + "lib"]})
    told = project.run("validate").err.splitlines()[-1]
    allow = '"offline": {"allow": ["ftp%s", "asyn%s", "%s"]}' % ("lib", "cio", NET)
    assert told == "nothing was run; remove what uses the network (no stage uses bin/other.py, but all Python files below bin/ are scanned), or let it through with " + allow
    guarded(project, {}, **json.loads("{%s}" % allow))
    project.ok("validate")


def test_an_allowed_module_is_let_through_and_noted(project):
    guarded(project, {"bin/work.py": LOAD + "asyn" + "cio\nimport os\nopen(os.environ['PIPELINE_OUTPUT_DIR'] + '/o', 'w')\n"}, offline={"allow": ["asyn" + "cio"]})
    project.ok("--run-id", "r")
    assert project.json("state/run_r.json")["isolation"]["scan"]["allow"] == ["asyn" + "cio"]
    guarded(project, {}, offline={"allow": [NET]})
    assert project.run().code == 6


def test_comments_and_strings_do_not_count(project):
    guarded(project, {"bin/work.py": "# " + LOAD + NET + "\nX = '" + LOAD + NET + "'\nimport os\nopen(os.environ['PIPELINE_OUTPUT_DIR'] + '/o', 'w')\n"})
    done = project.ok()
    assert "OFFLINE" not in done.err, done


def test_a_finding_is_found_again_from_the_cache(project):
    guarded(project, {"bin/work.py": "import os\nopen(os.environ['PIPELINE_OUTPUT_DIR'] + '/o', 'w')\n"})
    project.ok()
    project.write("bin/work.py", LOAD + NET + "\n")
    assert [project.run().code for _ in range(2)] == [6, 6]


def test_what_cannot_be_judged_is_warned_of_and_does_not_stop(project):
    guarded(project, {"bin/work.py": "import ctypes\nimport os\nopen(os.environ['PIPELINE_OUTPUT_DIR'] + '/o', 'w')\n"})
    done = project.ok()
    assert "[OFFLINE] warning: bin/work.py:1: " in done.err, done


def test_a_finding_in_the_runners_own_folder(tmp_path):
    root = copy_of_the_repository(tmp_path / "kopie")
    (root / "src" / "planted.py").write_text(LOAD + NET + "\n", encoding="utf-8")
    before = look(root)
    done = demo(root)
    assert done.code == 6 and "planted.py:1: " in done.err, done
    assert look(root) == before


def test_an_absolute_processor_outside_the_root_is_scanned(project, tmp_path):
    outside = tmp_path / "outside.py"
    outside.write_text(LOAD + NET + "\n", encoding="utf-8")
    project.spec({"processor": str(outside)})
    done = project.run()
    assert done.code == 6 and "outside.py:1: " in done.err, done
    outside.write_text("import os\nopen(os.environ['PIPELINE_OUTPUT_DIR'] + '/o', 'w').write('x')\n", encoding="utf-8")
    project.ok()
    assert project.read("data/s1/o") == "x"


def test_the_project_fixture_runs_the_repositorys_own_processors(project):
    assert isinstance(project, Project) and project.exists("bin/processor_kit.py")


# --- what would make the runner wait, or be taken for something else

@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with names")
@pytest.mark.parametrize("kind", [{"inputs": ["in/*.txt"]}, {"forEach": "in/*.txt"}])
def test_a_pipe_among_the_outputs_fails_the_stage_and_nobody_waits_for_it(project, kind):
    project.write("in/a.txt", "a\n")
    project.processor("make", "open(os.path.join(out, 'o'), 'w').write('x')\nos.path.exists('no pipe') or os.mkfifo(os.path.join(out, 'pipe'))\n")
    project.spec(dict({"processor": "bin/make.py"}, **kind))
    done = project.run(timeout=60)
    assert done.code == 1 and "[FAIL] s1: " in done.out and "pipe" in done.out, done
    project.write("no pipe", "")
    assert "[DONE] s1" in project.ok().out and project.read("data/s1/o") == "x" and not project.exists("data/s1/pipe")


@pytest.mark.parametrize("seconds", [2592000, 1e308])
def test_a_time_limit_may_be_longer_than_a_system_call_waits(project, seconds):
    project.write("data/in.txt", "x\n")
    project.spec({"processor": "bin/stage_copy.py", "inputs": ["data/in.txt"], "timeoutSec": seconds})
    assert "[DONE] s1" in project.ok("--stop-after", "600h").out


def test_an_input_is_no_option_of_the_processor(project):
    project.write("-r", "x\n")
    project.write("a.txt", "x\n")
    project.processor("tell", "json.dump(sys.argv[1:], open(os.path.join(out, 'argv.json'), 'w'))\n")
    project.spec({"processor": "bin/tell.py", "inputs": ["-r", "a.txt"], "args": ["-x"]})
    project.ok()
    assert project.json("data/s1/argv.json") == ["-x", "./-r", "a.txt"]


def test_the_order_of_params_tells_a_processor_nothing(project):
    project.processor("tell", "open(os.path.join(out, 'params'), 'w').write(os.environ['PIPELINE_PARAMS'])\n")
    project.spec({"processor": "bin/tell.py", "params": {"b": 1, "a": {"d": 2, "c": 3}}})
    project.ok()
    assert project.read("data/s1/params") == '{"a": {"c": 3, "d": 2}, "b": 1}'


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux has such names")
def test_a_root_that_is_no_text_is_refused_by_one_line(tmp_path):
    root = os.path.join(os.fsencode(str(tmp_path)), b"bad\xff")
    os.mkdir(root)
    with open(os.path.join(root, b"pipeline.json"), "w", encoding="utf-8") as file:
        file.write('{"name": "p", "stages": [{"name": "a", "processor": "/bin/true", "outputDir": "out"}]}')
    before = os.listdir(root)
    done = subprocess.run([sys.executable, RUNNER], cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (2, b"", 1) and b"the folder's path is not UTF-8 text here" in done.stderr, done
    assert os.listdir(root) == before


def test_a_python_that_is_too_old_is_told_so_in_one_line():
    code = "import runpy, sys; sys.version_info = (3, 7, 16); runpy.run_path(%r, run_name='__main__')" % str(RUNNER)
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60, check=False)
    assert (done.returncode, done.stdout, text_of(done.stderr)) == (2, b"", "error: Python 3.7 is too old: Python 3.8 or newer is needed\n"), done


@pytest.mark.parametrize("ended", ["ok", "failed", "killed"])
def test_another_output_folder_is_not_taken_for_the_one_of_before(project, ended):
    """What the record tells of lies in the old folder: of the same names in the new one nothing is the stage's."""
    end = {"ok": "", "failed": "sys.exit(3)", "killed": "os.kill(os.getppid(), 9)\n__import__('time').sleep(30)"}[ended]
    stage = {"processor": project.processor("p", "open(out + '/a', 'w').write('made')\n" + end + "\n"), "outputDir": "out"}
    project.spec(stage)
    done = project.run()
    assert (done.code == 0) == (ended == "ok") and project.read("out/a") == "made"
    project.write("out2/a", "mine")
    project.write("out2/b", "mine, too")
    project.processor("p", "open(out + '/c', 'w').write('made')\n")
    project.spec(dict(stage, outputDir="out2"))
    done = project.ok()
    assert "[NOTE] s1: its outputDir was out: what it made there is left there\n" in done.out, done
    assert project.read("out2/a") == "mine" and project.read("out2/b") == "mine, too" and project.read("out2/c") == "made" and project.read("out/a") == "made"
    assert [one["path"] for one in project.json("state/stage_s1.json")["outputs"]] == ["c"]
    assert "[SKIP] s1" in project.ok().out and project.run("verify", "--outputs").code == 0


def test_an_output_folder_that_was_renamed_is_told_of_as_it_is(project):
    project.write("data/in.txt", "x")
    stage = {"processor": "bin/stage_copy.py", "inputs": ["data/in.txt"]}
    project.spec(dict(stage, outputDir="out"))
    project.ok()
    project.path("out").rename(project.path("moved"))
    project.spec(dict(stage, outputDir="moved"))
    done = project.ok()
    assert "[NOTE] s1: its outputDir was out, which is not there any more; what is in moved already counts as nobody's: see whether it may go\n" in done.out, done



def test_what_a_stage_that_is_not_in_the_spec_has_recorded_is_no_leftover(project):
    """A run is killed, its stage gives way to another with the same folder, and comes back."""
    dying = {"name": "s", "processor": project.processor("die", "open(out + '/a', 'w').write('half')\nos.kill(os.getppid(), 9)\n__import__('time').sleep(30)\n"), "outputDir": "out"}
    project.spec(dying)
    assert project.run().code != 0 and project.exists("out/a")
    project.spec({"name": "x", "processor": project.processor("other", "open(out + '/b', 'w').write('whole')\n"), "outputDir": "out"})
    project.ok()
    project.processor("die", "open(out + '/c', 'w').write('whole')\n")
    project.spec(dying)
    done = project.ok()
    assert "leftovers of an unfinished attempt: removed a\n" in done.out and project.read("out/b") == "whole", done
    assert [one["path"] for one in project.json("state/stage_s.json")["outputs"]] == ["c"] and project.run("verify", "--outputs").code == 0


def test_a_processor_that_removes_its_output_folder_has_failed(project):
    project.spec({"name": "s", "processor": project.processor("away", "import shutil; shutil.rmtree(out)\n"), "outputDir": "data/out"})
    for run in ("r1", "r2"):
        done = project.run("--run-id", run)
        assert done.code == 1 and "[START] s" in done.out and "[FAIL] s: its output folder data/out is not there any more" in done.out, done
        assert project.json("state/stage_s.json")["lastStatus"] == "failed" and "RUN     s" in project.ok("plan").out
    project.processor("away", "")
    project.ok("--run-id", "r3")
    assert "[SKIP] s" in project.ok("--run-id", "r4").out


def test_the_folder_of_a_stage_without_outputs_is_made_again_for_its_marker(project):
    project.spec({"name": "s", "processor": project.processor("none", ""), "outputDir": "data/out"})
    project.ok("--run-id", "r1")
    shutil.rmtree(str(project.path("data/out")))
    project.write("state/run_r1.json", json.dumps(dict(project.json("state/run_r1.json"), stages=[])))       # as if it had died before the marker
    done = project.ok("--run-id", "r2")
    assert "which died before it wrote the marker; marker restored" in done.out and project.exists("data/out/.s.done") and "[SKIP] s" in project.ok("--run-id", "r3").out, done


@pytest.mark.parametrize("closer", ["another run", "the same again"])
def test_a_marker_that_is_removed_after_a_dead_run_was_closed_is_not_restored(project, closer):
    """Whoever removes it wants the stage to be run again, or from a checkpoint written by hand."""
    project.processor("quick", "import processor_kit as kit\nwith kit.open_output('o') as file:\n    file.write('x')\n")
    project.processor("slow", "if not os.path.exists('go'):\n    print('at work', flush=True)\n    time.sleep(60)\n")
    project.spec({"name": "a", "processor": "bin/quick.py", "outputDir": "data/a"}, {"name": "b", "processor": "bin/slow.py", "outputDir": "data/b"})
    project.kill_once_logged("state/logs/r1/b.1.log", b"at work", "--run-id", "r1")
    project.write("go", "")
    done = project.ok("--run-id", "r2" if closer == "another run" else "r1")
    assert "[SKIP] a" in done.out and "restored" not in done.out
    project.path("data/a/.a.done").unlink()
    assert "RUN     a (marker missing)" in project.ok("plan").out
    assert "[START] a" in project.ok("--run-id", "r3").out


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_a_parameter_that_is_longer_than_the_system_takes_is_told_of(project):
    project.spec({"name": "s", "processor": project.processor("none", ""), "params": {"x": "a" * 200000}})
    done = project.run()
    assert done.code == 1 and "Argument list too long; Linux takes 128 KiB in one argument or variable, `args`, `params` and `env` of the stage among them" in done.out, done


def test_files_are_opened_with_an_encoding(project):
    project.spec({"processor": project.processor("p", "open(os.path.join(out, 'o'), 'wb').close()\n"), "passEnv": ["HOME"]})
    done = project.run(env={"PYTHONWARNDEFAULTENCODING": "1", "PYTHONWARNINGS": "error::EncodingWarning" if sys.version_info >= (3, 10) else ""})
    assert (done.code, done.err) == (0, ""), done


def test_a_stage_of_another_pipeline_that_has_the_same_name_is_told_of(project):
    stage = {"name": "s", "processor": project.processor("p", "open(out + '/o', 'w').close()\n"), "outputDir": "data/a"}
    project.spec(stage, name="one")
    assert "its record is of" not in project.ok().out
    project.spec(dict(stage, outputDir="data/b"), name="two")
    assert "[NOTE] s: its record is of pipeline one, and is replaced; if that is another one, and not this one renamed, one of the two needs another name for its stage\n" in project.ok().out
    assert "its record is of" not in project.ok("--force", "s").out


@pytest.mark.skipif(sys.platform == "win32", reason="the path is left as it is there")
def test_a_root_by_a_link_that_leads_elsewhere_during_a_run_stays_the_one_that_it_led_to(project, tmp_path):
    """A new release is put in place by exchanging the link `current`."""
    project.write("data/in.txt", "old\n")
    current, other = tmp_path / "current", tmp_path / "other"
    switch = "os.symlink(%r, %r)\nos.replace(%r, %r)\n" % (str(other), str(tmp_path / "new"), str(tmp_path / "new"), str(current))
    copy = "open(os.path.join(out, 'o'), 'w').write(open(inputs[0]).read())\n"
    project.spec({"processor": project.processor("switch", switch + copy), "inputs": ["data/in.txt"]},
                 {"processor": project.processor("copy", copy), "inputs": ["data/s1/o"]})
    shutil.copytree(str(project.root), str(other))
    (other / "data/in.txt").write_text("new\n")
    shutil.copytree(str(RUNNER.parent), str(project.path("src")), ignore=shutil.ignore_patterns("__pycache__"))     # the other has no module to load
    project.remember_scans()
    current.symlink_to(project.root)
    argv = [sys.executable, str(current / "src" / RUNNER.name), "--pipeline", str(current / "pipeline.json"), "--run-id", "r"]
    assert subprocess.run(argv, stdin=subprocess.DEVNULL, timeout=120).returncode == 0
    assert os.readlink(str(current)) == str(other) and not (other / "state").exists()
    assert project.read("data/s2/o") == "old\n" and project.exists("state/run_r.json")
    project.ok("verify", "--outputs")
    assert "2 skipped" in project.ok().out
