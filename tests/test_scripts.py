"""The scripts around the runner: run_tests.sh, run_tests.ps1, tests/run_all.py, .ci/run, and the files of the demo.

run_tests.sh and .ci/run are run in copies whose pytest and runner are small stand-ins, installed from a local wheel:
no test here starts the test suite again or needs a network.
"""
from __future__ import annotations

import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import unicodedata
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
import run_all  # noqa: E402

POSIX_ONLY = pytest.mark.skipif(os.name != "posix", reason="a shell script")
NEEDS_GIT = pytest.mark.skipif(shutil.which("git") is None, reason="no git here")
VENV_BIN = "Scripts" if sys.platform == "win32" else "bin"

STAND_IN_PYTEST = """
import os, sys
print("stand-in pytest", sys.prefix, os.getcwd(), sys.argv[1:])
sys.exit(int(os.environ.get("STAND_IN_EXIT", "0")))
"""


# === Helpers ===

def clean_environment(**changes):
    """Return the environment without what would reach into a stand-in's Python, pip or git, plus *changes*."""
    left_out = ("PYTHON", "PIP_", "GIT_", "COV_", "COVERAGE_", "PYTEST_", "RUN_TESTS_", "VIRTUAL_ENV")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(left_out)}
    environment.update(PIP_NO_INDEX="1", GIT_CONFIG_GLOBAL=os.devnull, GIT_CONFIG_NOSYSTEM="1")
    environment.update(changes)
    return environment


def run(command, cwd, **changes):
    """Run *command* and return it completed; everything is printed for a failing test."""
    done = subprocess.run([str(word) for word in command], cwd=str(cwd), env=clean_environment(**changes),
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    done.stdout = done.stdout.decode("utf-8", "replace")
    done.stderr = done.stderr.decode("utf-8", "replace")
    print(done.args, "->", done.returncode, "\n" + done.stdout, done.stderr)
    return done


def write_wheel(folder):
    """Write a wheel of the distribution "standin" that installs the stand-in pytest module."""
    with zipfile.ZipFile(str(folder / "standin-1.0-py3-none-any.whl"), "w") as wheel:
        wheel.writestr("pytest.py", STAND_IN_PYTEST)
        wheel.writestr("standin-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: standin\nVersion: 1.0\n")
        wheel.writestr("standin-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("standin-1.0.dist-info/RECORD",
                       "pytest.py,,\nstandin-1.0.dist-info/METADATA,,\nstandin-1.0.dist-info/WHEEL,,\nstandin-1.0.dist-info/RECORD,,\n")


def copy_scripts(project):
    """Make *project* a folder with the test scripts and requirements that the stand-in wheel satisfies."""
    (project / "tests").mkdir(parents=True)
    for name in ("run_tests.sh", "pyproject.toml", "tests/run_all.py"):
        shutil.copy(str(ROOT / name), str(project / name))
    (project / "requirements-dev.txt").write_text("standin\n", encoding="utf-8")
    return project


class Project:
    """A copy of the scripts, and where its stand-in wheel lies."""

    def __init__(self, base):
        self.root = copy_scripts(base / "pröjekt é x")
        self.wheels = base / "wheels"
        self.wheels.mkdir()
        write_wheel(self.wheels)
        self.elsewhere = base

    def tests(self, *arguments, **changes):
        """Run the tests of this project from another folder, through the script where there is a shell for it."""
        changes.setdefault("PIP_FIND_LINKS", str(self.wheels))
        if os.name == "posix":
            changes.setdefault("PYTHON", sys.executable)
            return run([self.root / "run_tests.sh", *arguments], self.elsewhere, **changes)
        return run([sys.executable, self.root / "tests" / "run_all.py", *arguments], self.elsewhere, **changes)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A project whose first run is over."""
    project = Project(tmp_path_factory.mktemp("made"))
    project.first = project.tests()
    return project


@pytest.fixture
def bare(tmp_path, monkeypatch):
    """run_all, pointed at an empty project."""
    monkeypatch.setattr(run_all, "ROOT", str(tmp_path))
    monkeypatch.setattr(run_all, "VENV", str(tmp_path / ".venv"))
    monkeypatch.setattr(run_all, "DISCARDED", str(tmp_path / ".venv.old"))
    monkeypatch.setattr(run_all, "STAMP", str(tmp_path / ".venv" / "run_tests.stamp"))
    monkeypatch.setattr(run_all, "UNFINISHED", str(tmp_path / ".venv" / "run_tests.unfinished"))
    monkeypatch.setattr(run_all, "SIDE_BY_SIDE", str(tmp_path / ".venv" / "side_by_side"))
    return tmp_path


# === run_tests.sh and tests/run_all.py ===

def test_first_run_makes_the_environment_and_runs_everything_with_coverage(made):
    assert made.first.returncode == 0
    assert "creating .venv" in made.first.stdout
    assert "installing requirements-dev.txt" in made.first.stdout
    # prefix and working directory: the environment beside the script, in the script's folder
    assert "stand-in pytest %s %s [" % (made.root / ".venv", made.root) in made.first.stdout
    assert "--cov-fail-under=90" in made.first.stdout
    assert "--cov-branch" in made.first.stdout


@pytest.mark.skipif(sys.version_info < (3, 10), reason="a process does not know its own command line while it starts")
@pytest.mark.parametrize("script, is_measured", [("src/runner.py", True), ("bin/stage.py", False), ("src/bin.py", True)])
def test_coverage_measures_no_processor(made, script, is_measured):
    path = made.elsewhere / script
    path.parent.mkdir(exist_ok=True)
    path.write_text("import os\nprint(os.environ.get('COVERAGE_PROCESS_CONFIG'))\n", encoding="utf-8")
    python = made.root / ".venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    done = run([python, "-B", path, "bin/x.py"], made.elsewhere, COVERAGE_PROCESS_CONFIG="settings")
    assert done.stdout == ("settings\n" if is_measured else "None\n")


@pytest.mark.parametrize("code", [0, 1, 5])
def test_later_runs_install_nothing_and_pass_the_exit_code_on(made, code):
    done = made.tests(STAND_IN_EXIT=str(code), PIP_FIND_LINKS=str(made.elsewhere / "no such folder"))
    assert done.returncode == code
    assert "run_tests:" not in done.stdout


def test_arguments_reach_pytest_whole_and_a_selection_has_no_coverage_floor(made):
    done = made.tests("tests/test_ä.py", "-k", "one or two")
    assert "'tests/test_ä.py', '-k', 'one or two']" in done.stdout
    assert "'--no-cov'" in done.stdout
    assert "--cov-fail-under" not in done.stdout


def test_changed_requirements_are_installed_and_a_failed_installation_is_tried_again(made):
    requirements = made.root / "requirements-dev.txt"
    requirements.write_text("standin\nnot-there-at-all\n", encoding="utf-8")
    failed = made.tests()
    requirements.write_text("standin>=1\n", encoding="utf-8")
    mended = made.tests()
    assert failed.returncode == 70
    assert "run_tests: pip could not install requirements-dev.txt" in failed.stderr
    assert "stand-in" not in failed.stdout
    assert mended.returncode == 0
    assert "installing" in mended.stdout and "rebuilding" not in mended.stdout


@POSIX_ONLY
def test_a_kill_while_the_environment_is_made_is_mended_by_the_next_run(tmp_path):
    project = Project(tmp_path)
    # "python -m venv" finds this module first: it leaves a part of the work and kills the script.
    killer = project.root / "venv.py"
    killer.write_text("import os, signal, sys\nos.mkdir(os.path.join(sys.argv[1], 'bin'))\n"
                      "os.kill(os.getppid(), signal.SIGKILL)\n", encoding="utf-8")
    killed = project.tests()
    killer.unlink()
    mended = project.tests(STAND_IN_EXIT="1")
    assert killed.returncode == -9
    assert "rebuilding .venv: it was left half-made" in mended.stdout
    assert mended.returncode == 1
    assert not (project.root / ".venv.old").exists()


@POSIX_ONLY
def test_an_environment_of_another_interpreter_is_rebuilt(tmp_path):
    project = Project(tmp_path)
    python = project.root / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\necho CPython 3.6.1 x86_64 /opt/old\n", encoding="utf-8")
    python.chmod(0o755)
    (project.root / ".venv" / "pyvenv.cfg").write_text("home = /opt/old/bin\n", encoding="utf-8")
    (project.root / "venv.py").write_text("import sys\nsys.exit(9)\n", encoding="utf-8")
    done = project.tests()
    assert "rebuilding .venv: it was made by CPython 3.6.1 x86_64 /opt/old, this is " in done.stdout
    assert done.returncode == 70
    assert "-m venv" in done.stderr and "exit code 9" in done.stderr
    assert not python.exists()


def test_what_makes_an_environment_unusable(bare):
    wanted = run_all.identity_of(sys.executable)
    assert wanted.startswith(sys.implementation.name.replace("cpython", "CPython"))
    folder = bare / ".venv"
    folder.mkdir()
    assert "no virtual environment" in run_all.why_unusable(wanted)
    (folder / "pyvenv.cfg").write_text("", encoding="utf-8")
    assert "cannot be started" in run_all.why_unusable(wanted)
    (folder / "run_tests.unfinished").write_text("", encoding="utf-8")
    assert "half-made" in run_all.why_unusable(wanted)


@POSIX_ONLY
def test_an_environment_without_pip_is_unusable_unless_it_is_stamped(bare):
    python = bare / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    (bare / ".venv" / "pyvenv.cfg").write_text("", encoding="utf-8")
    python.write_text('#!/bin/sh\n[ "$2" = -c ] && echo me\n', encoding="utf-8")
    python.chmod(0o755)
    assert run_all.why_unusable("me") == "it has no working pip"
    (bare / ".venv" / "run_tests.stamp").write_text("", encoding="utf-8")
    assert run_all.why_unusable("me") is None


def test_a_linked_environment_is_unlinked_not_emptied(bare):
    target = bare / "elsewhere"
    target.mkdir()
    (target / "kept").write_text("", encoding="utf-8")
    try:
        (bare / ".venv").symlink_to(target, target_is_directory=True)
    except OSError:
        pytest.skip("no right to make links")
    run_all.discard_venv()
    assert (target / "kept").exists()
    assert sorted(os.listdir(str(bare))) == ["elsewhere"]


def test_a_python_without_the_modules_for_environments_gets_one_clear_line(tmp_path):
    project = Project(tmp_path)
    (project.root / "tests" / "ensurepip.py").write_text("raise ImportError('gone', name='ensurepip')\n", encoding="utf-8")
    done = project.tests()
    assert done.returncode == 70
    assert re.fullmatch(r"run_tests: .* has no ensurepip module.*apt install python3\.\d+-venv\)\r?\n", done.stderr)
    assert not (project.root / ".venv").exists()


def test_a_folder_that_takes_no_files_gets_one_clear_line(bare, monkeypatch, capsys):
    monkeypatch.setattr(run_all, "ROOT", str(bare / "missing"))
    assert run_all.main([]) == 70
    assert re.fullmatch(r"run_tests: cannot write to .*missing \(.*\); copy the folder .*\n", capsys.readouterr().err)


@POSIX_ONLY
@pytest.mark.parametrize("kind", ["missing", "too old"])
def test_a_chosen_interpreter_that_is_none_gets_one_clear_line(tmp_path, kind):
    project = Project(tmp_path)
    python = tmp_path / "some python"
    if kind == "too old":
        python.write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")     # what the version check makes of it
        python.chmod(0o755)
    done = project.tests(PYTHON=str(python))
    assert done.returncode == 70
    assert done.stderr == "run_tests: PYTHON=%s is not a Python 3.8 or newer that can be started\n" % python


@pytest.mark.parametrize("arguments, selects", [
    ([], False),
    (["-v"], False),
    (["-vv", "-x", "-rA", "--tb=short", "--durations=5", "--maxfail=2"], False),
    (["--cov-report=html"], False),
    (["tests/test_spec.py"], True),
    (["-k", "cycle"], True),
    (["-v", "--lf"], True),
    (["--collect-only"], True),
])
def test_which_arguments_count_as_a_selection(arguments, selects):
    assert run_all.selects_tests(arguments) is selects


def test_python_38_gets_coverage_settings_without_the_option_that_it_would_warn_about(bare):
    (bare / ".venv").mkdir()
    old = Path(run_all.coverage_settings((3, 8))).read_text(encoding="utf-8").splitlines()
    new = Path(run_all.coverage_settings((3, 9))).read_text(encoding="utf-8").splitlines()
    assert [line for line in new if line not in old] == ['patch = ["subprocess"]']
    assert "branch = true" in old


# === A whole run: several pytest processes side by side ===

# Its modules say in a line of JSON what pytest is to print, with which exit code, and whether it is to stay.
SIDE_PYTEST = """
import json, os, sys, time
open(os.environ["COVERAGE_FILE"], "w").close()
print("stand-in pytest", sys.argv[1:], flush=True)
for name in [word for word in sys.argv if word.startswith("tests/")]:
    with open(name, encoding="utf-8") as file:
        does = json.load(file)
    print(does.get("prints", ""), flush=True)
    if "stays" in does:
        with open(does["stays"], "w") as file:
            file.write("%d\\n" % os.getpid())
        time.sleep(60)
sys.exit(does.get("code", 0))
"""
SIDE_COVERAGE = """
import os, sys
print("stand-in coverage", [os.path.basename(word) for word in sys.argv[1:]], flush=True)
sys.exit(2 if "report" in sys.argv and os.path.exists("little") else 0)
"""


@pytest.fixture
def side(bare, monkeypatch):
    """run_all, pointed at a project whose pytest and coverage are stand-ins; call it to write a test module."""
    monkeypatch.setattr(run_all, "SETTINGS", str(bare / "pyproject.toml"))
    monkeypatch.setattr(run_all, "venv_python", lambda: sys.executable)     # which finds the stand-ins in its folder
    monkeypatch.setattr(run_all, "prepare", lambda: None)
    monkeypatch.setattr(run_all.signal, "signal", lambda *arguments: None)
    for name in os.environ.keys() - clean_environment().keys():             # one that measures would bring the real coverage
        monkeypatch.delenv(name)
    (bare / ".venv").mkdir()
    (bare / "tests").mkdir()
    (bare / "pytest.py").write_text(SIDE_PYTEST, encoding="utf-8")
    (bare / "coverage.py").write_text(SIDE_COVERAGE, encoding="utf-8")

    def module(name, **does):
        (bare / "tests" / (name + ".py")).write_text(json.dumps(does), encoding="utf-8")

    module.root = bare
    return module


def test_a_whole_run_shows_each_group_whole_and_ends_with_the_sum(side, capfd):
    side("test_a", prints="12 passed, 1 skipped in 3.21s")
    side("test_b", prints="FAILED tests/test_b.py::test_x - no\n==== 1 failed, 3 passed, 2 warnings in 61.00s (0:01:01) ====", code=1)
    side("test_c", prints="no tests ran in 0.01s", code=5)
    code = run_all.main(["-v", "--jobs", "3"])
    lines = capfd.readouterr().out.splitlines()
    assert code == 1
    assert re.fullmatch(r"run_tests: 1 failed, 15 passed, 1 skipped, 2 warning in \d+ s", lines[-1])
    assert lines[-2] == "FAILED tests/test_b.py::test_x - no"
    for name in ("test_a", "test_b", "test_c"):
        head = [number for number, line in enumerate(lines) if re.fullmatch(r"run_tests: group \d of 3: " + name, line)]
        assert len(head) == 1 and "'-v', 'tests/%s.py']" % name in lines[head[0] + 1]
    combined = [line for line in lines if line.startswith("stand-in coverage ['combine'")]
    assert len(combined) == 1 and all("'coverage.%d'" % number in combined[0] for number in range(3))
    assert any(line.startswith("stand-in coverage ['report'") and "--fail-under=90" in line for line in lines)


@pytest.mark.parametrize("little", [False, True])
def test_too_little_coverage_fails_a_whole_run(side, little):
    side("test_a")
    side("test_b")
    if little:
        (side.root / "little").write_text("", encoding="utf-8")
    assert run_all.main(["--jobs=2"]) == (1 if little else 0)


@pytest.mark.parametrize("arguments", [["--jobs", "1"], ["--jobs=2", "-k", "x"], ["--jobs=2", "-x"], ["--jobs=2", "-s"], ["--jobs=2", "--cov-report=html"]])
def test_one_process_where_several_would_mean_something_else(side, monkeypatch, arguments):
    side("test_a")
    side("test_b")
    started = []
    monkeypatch.setattr(run_all, "run", lambda command: started.append(command) or 0)
    assert run_all.main(arguments) == 0
    assert len(started) == 1 and not any(word.startswith("--jobs") for word in started[0])


@pytest.mark.parametrize("arguments, variable, jobs", [
    (["-v"], "3", 3), (["--jobs", "2", "-v"], "3", 2), (["--jobs=1", "-v"], "", 1)])
def test_how_many_at_once_can_be_said(monkeypatch, arguments, variable, jobs):
    monkeypatch.setenv("RUN_TESTS_JOBS", variable)
    assert run_all.jobs_of(arguments) == (jobs, ["-v"])


def test_as_many_at_once_as_processors_may_be_used_but_not_more_than_four(monkeypatch):
    monkeypatch.delenv("RUN_TESTS_JOBS", raising=False)
    for cpus, jobs in ((1, 1), (2, 2), (64, 4)):
        monkeypatch.setattr(run_all, "usable_cpus", lambda cpus=cpus: cpus)
        assert run_all.jobs_of([]) == (jobs, [])


@pytest.mark.parametrize("arguments, variable", [(["--jobs"], "2"), (["--jobs=0"], ""), (["--jobs", "two"], ""), (["--jobs="], "2"), ([], "-1")])
def test_a_number_of_processes_that_is_none_gets_one_clear_line(side, monkeypatch, arguments, variable, capsys):
    monkeypatch.setenv("RUN_TESTS_JOBS", variable)
    monkeypatch.setattr(run_all, "run", lambda command: 0)
    assert run_all.main(arguments) == 70
    assert re.fullmatch(r"run_tests: --jobs \(or RUN_TESTS_JOBS\) takes a number from 1 to 99, not .*\n", capsys.readouterr().err)


def test_modules_are_dealt_out_evenly_the_longest_first(bare, monkeypatch):
    (bare / "tests").mkdir()
    for name, size in (("test_a", 10), ("test_b", 6), ("test_c", 5), ("test_slow", 1)):
        (bare / "tests" / (name + ".py")).write_bytes(b"#" * size)
    monkeypatch.setattr(run_all, "BYTES_PER_SECOND", 1)
    monkeypatch.setattr(run_all, "SECONDS", {"test_slow": 12})
    groups = run_all.deal(run_all.test_modules(), 2)
    assert [group.modules for group in groups] == [["tests/test_slow.py", "tests/test_c.py"], ["tests/test_a.py", "tests/test_b.py"]]
    assert [group.weight for group in groups] == [17, 16]
    assert len(run_all.deal(run_all.test_modules(), 9)) == 4


@pytest.mark.parametrize("codes, code", [([0, 0], 0), ([0, 5], 0), ([5, 5], 5), ([0, 2, 1], 2), ([5, 1], 1), ([0, -9], -9)])
def test_the_first_failure_decides_and_a_group_without_tests_is_none(codes, code):
    assert run_all.overall(codes) == code


def test_weights_are_given_for_modules_that_are_there():
    names = {path.stem for path in (ROOT / "tests").glob("test_*.py")}
    assert set(run_all.SECONDS) <= names


@POSIX_ONLY
@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_a_whole_run_that_is_stopped_leaves_no_process(side, number):
    stays = [str(side.root / name) for name in ("one", "two")]
    for name in stays:
        os.mkfifo(name)
        side("test_" + os.path.basename(name), stays=name)
    code = ("import sys; sys.path.insert(0, %r); import run_all as r; r.ROOT = %r; r.VENV = r.ROOT + '/.venv'; r.SIDE_BY_SIDE = r.VENV + '/x'\n"
            "r.prepare, r.venv_python, r.GRACE_S = lambda: None, lambda: sys.executable, 0\nsys.exit(r.main(['--jobs=2']))"
            % (str(ROOT / "tests"), str(side.root)))
    with subprocess.Popen([sys.executable, "-c", code], env=clean_environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        pids = []
        for name in stays:
            with open(name, encoding="ascii") as file:      # opens when pytest does: both are under way
                pids.append(int(file.read()))
        process.send_signal(getattr(signal, number))
        shown = process.communicate(timeout=60)[0].decode("utf-8")
    assert process.returncode == 130
    assert shown.count("run_tests: interrupted: ") == 2
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@POSIX_ONLY
@pytest.mark.parametrize("name", ["run_tests.sh", ".ci/run", ".ci/windows"])
def test_shell_scripts_can_be_started(name):
    path = ROOT / name
    assert path.stat().st_mode & stat.S_IXUSR
    assert b"\r" not in path.read_bytes()
    shell = "bash" if "bash" in path.read_text(encoding="utf-8").splitlines()[0] else "sh"
    assert run([shell, "-n", path], ROOT).returncode == 0


# === run_tests.ps1: by reading, since PowerShell may be missing ===

@pytest.fixture(scope="module")
def powershell():
    """The statements of run_tests.ps1, without comments."""
    lines = (ROOT / "run_tests.ps1").read_bytes().decode("ascii").splitlines()
    return "\n".join(line for line in lines if not line.lstrip().startswith("#"))


def test_powershell_script_uses_nothing_that_51_lacks(powershell):
    assert not re.search(r"&&|\|\||\?\?|\?\.|\s\?\s|\$IsWindows|-AsHashtable", powershell)


def test_powershell_script_keeps_errors_of_programs_apart_from_its_own(powershell):
    assert "$ErrorActionPreference = 'Continue'" in powershell
    assert "$PSNativeCommandUseErrorActionPreference = $false" in powershell
    # "$?" is false after any write to a redirected stderr in 5.1; only the exit code tells.
    assert "$?" not in powershell


def test_powershell_script_passes_arguments_and_exit_code_on(powershell):
    last = powershell.strip().splitlines()[-2:]
    assert last == ["& $Python @Prefix $RunAll @args", "exit $LASTEXITCODE"]
    assert not re.search(r"(?im)^\s*(param|\[CmdletBinding)", powershell.split("function")[0])


def test_powershell_script_looks_for_python_in_order(powershell):
    candidates = ("if ($env:PYTHON)", "Test-Python 'py' @('-3')", "Test-Python 'python3'", "Test-Python 'python' ")
    places = [powershell.index(text) for text in candidates]
    assert places == sorted(places)


def test_powershell_script_is_balanced(powershell):
    bare_text = re.sub(r"'[^'\n]*'|\"[^\"\n]*\"", "", powershell)
    for opening, closing in ("{}", "()", "[]"):
        assert bare_text.count(opening) == bare_text.count(closing)
    assert "'" not in bare_text and '"' not in bare_text


def test_powershell_probe_needs_no_quoting_and_tells_versions_apart(powershell):
    probe = re.search(r"^\$Probe = '(.*)'$", powershell, re.M).group(1)
    assert not set(probe) & set("\"'<>|&^%`$")
    assert run([sys.executable, "-c", probe], ROOT).returncode == 0
    for version, code in (((2, 7), 1), ((3, 7), 1), ((3, 8), 0), ((3, 13), 0), ((4, 0), 0)):
        asked = "import sys\nsys.version_info = %r\n" % (version,) + probe
        assert run([sys.executable, "-c", asked], ROOT).returncode == code


def test_both_scripts_start_the_same_file_and_describe_the_same_options():
    shell = (ROOT / "run_tests.sh").read_text(encoding="utf-8")
    power = (ROOT / "run_tests.ps1").read_text(encoding="ascii")
    rule = re.compile(r"# Extra arguments go.*?run_all\.py\.\n", re.S)
    assert rule.search(shell).group() == rule.search(power).group()
    described = rule.search(shell).group()
    for option in ("-v", "-q", "-x", "-s", "-l", "-r", "--tb=", "--durations=", "--maxfail=", "--color=", "--cov"):
        assert option in described
        assert not run_all.selects_tests([option])


# === .ci/run ===

STAND_IN_RUNNER = """
import os, sys
again = os.path.exists("state/seen")
open("state/seen", "w").close()
with open("data/output/result.txt", "w") as file:
    file.write("X")
print(os.getcwd())
for stage in ("stage_copy", "stage_upper"):
    print(("[SKIP] %s (same)" if again and MODE != "noskip" else "[RETRY] %s a\\n[DONE] " + stage + " b") % stage)
sys.exit(6 if again and MODE == "fail" else 0)
"""


def ci_project(base, mode="good", tests_code=0, windows_code=0):
    """Make a repository whose tests, runner and .ci/windows are stand-ins."""
    project = base / "repo"
    for folder in (".ci", "src", "data/work", "data/output", "state", "locks"):
        (project / folder).mkdir(parents=True)
    for folder in ("data/work", "data/output", "state", "locks"):
        (project / folder / ".gitkeep").write_text("", encoding="utf-8")
    for name in ("run", "packages"):
        shutil.copy(str(ROOT / ".ci" / name), str(project / ".ci" / name))
    (project / ".ci" / "windows").write_text("echo 'windows of the stand-in'\nexit %d\n" % windows_code, encoding="utf-8")
    shutil.copy(str(ROOT / ".gitignore"), str(project / ".gitignore"))
    (project / "run_tests.sh").write_text("#!/bin/sh\necho 'tests of the stand-in'\nexit %d\n" % tests_code, encoding="utf-8")
    (project / "run_tests.sh").chmod(0o755)
    (project / "src" / "pipeline_runner.py").write_text("MODE = %r\n" % mode + STAND_IN_RUNNER, encoding="utf-8")
    return project


def ci(project, **changes):
    """Run .ci/run of *project* from another folder, with a temporary folder of its own."""
    temporary = project.parent / "temporary"
    temporary.mkdir()
    # Slurm is there, as far as the script can tell: a test installs nothing on the machine.
    slurm = project.parent / "slurm"
    slurm.mkdir()
    for name in ("srun", "slurmd"):
        (slurm / name).write_text("#!/bin/sh\n", encoding="utf-8")
        (slurm / name).chmod(0o755)
    path = str(slurm) + os.pathsep + os.environ["PATH"]
    done = run(["bash", project / ".ci" / "run"], project.parent, TMPDIR=str(temporary), PYTHON=sys.executable, PATH=path, **changes)
    assert os.listdir(str(temporary)) == []
    return done


@POSIX_ONLY
@pytest.mark.parametrize("mode, tests_code, windows_code, code, said", [
    ("good", 0, 0, 0, "all well"),
    ("good", 3, 0, 3, "the tests failed"),
    ("fail", 0, 0, 6, "the demo's second run failed"),
    ("noskip", 0, 0, 1, "the demo did not print: [SKIP] stage_copy"),
    ("good", 0, 7, 7, "what ran by Python for Windows failed"),
    ("good", 0, 75, 0, "Python for Windows has proved nothing here"),
])
def test_ci_stops_at_the_first_failing_step_with_its_code(tmp_path, mode, tests_code, windows_code, code, said):
    project = ci_project(tmp_path, mode, tests_code, windows_code)
    (project / "state" / "seen").write_text("left by a run: no part of a clean copy", encoding="utf-8")
    done = ci(project)
    assert done.returncode == code
    assert said in done.stdout + done.stderr
    assert "tests of the stand-in" in done.stdout and ("windows of the stand-in" in done.stdout) == (mode == "good" and tests_code == 0)


@POSIX_ONLY
@NEEDS_GIT
def test_ci_takes_the_committed_state_and_wants_it_clean_afterwards(tmp_path):
    project = ci_project(tmp_path)
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "all"]):
        assert run(["git", "-c", "user.name=t", "-c", "user.email=t@localhost", *command], project).returncode == 0
    (project / "run_tests.sh").write_text("not committed\n", encoding="utf-8")
    done = ci(project)
    assert done.returncode == 0
    assert "clone of " in done.stdout and "uncommitted changes" in done.stdout
    where = [line for line in done.stdout.splitlines() if line.startswith(str(tmp_path))][0]
    assert " " in where and not all(ord(letter) < 128 for letter in where)


# === What git keeps and leaves out ===

@NEEDS_GIT
def test_git_ignores_what_runs_leave_and_keeps_the_folders(tmp_path):
    shutil.copy(str(ROOT / ".gitignore"), str(tmp_path / ".gitignore"))
    assert run(["git", "init", "-q"], tmp_path).returncode == 0
    left = ["data/work/sample.txt", "data/output/result.txt", "data/output/.stage_upper.done", "state/run_demo1.json",
            "state/logs/demo1/stage_copy.1.log", "locks/.stage_copy.guard", "locks/stage_copy.lock/owner.json",
            ".venv/pyvenv.cfg", ".venv.old/x", "src/__pycache__/a.pyc", ".pytest_cache/x", ".coverage", ".coverage.host.1.x",
            "htmlcov/index.html", "bench/work/big.txt"]
    kept = ["data/input/sample.txt", "data/work/.gitkeep", "data/output/.gitkeep", "state/.gitkeep", "locks/.gitkeep",
            "src/pipeline_runner.py", "bench/bench.py", "tests/test_scripts.py", "pipeline.json", ".ci/run"]
    for name in left + kept:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("", encoding="utf-8")
    shown = run(["git", "status", "--porcelain", "-uall"], tmp_path).stdout.splitlines()
    assert sorted(line[3:] for line in shown) == sorted(kept + [".gitignore"])


@NEEDS_GIT
def test_git_gives_every_text_lf_endings(tmp_path):
    shutil.copy(str(ROOT / ".gitattributes"), str(tmp_path / ".gitattributes"))
    assert run(["git", "init", "-q"], tmp_path).returncode == 0
    names = ["data/input/sample.txt", "run_tests.ps1", "run_tests.sh", "src/a.py", "tests/golden/report.html"]
    shown = run(["git", "check-attr", "eol", "--", *names], tmp_path).stdout.splitlines()
    assert shown == [name + ": eol: lf" for name in names]


@pytest.mark.parametrize("folder", ["data/work", "data/output", "state", "locks"])
def test_folders_of_a_run_are_there_in_a_fresh_copy(folder):
    assert (ROOT / folder / ".gitkeep").is_file()


# === The demo's files ===

def test_the_demo_has_two_stages_that_show_retry_checkpoint_and_skip():
    spec = json.loads((ROOT / "pipeline.json").read_text(encoding="utf-8"))
    copy, upper = spec["stages"]
    assert (copy["name"], upper["name"]) == ("stage_copy", "stage_upper")
    assert copy["inputs"] == ["data/input/*.txt"] and copy["outputDir"] == "data/work"
    assert upper["inputs"] == ["data/work/*.txt"] and upper["outputDir"] == "data/output"
    assert upper["outputs"] == ["result.txt"] and upper["needs"] == ["stage_copy"]
    assert upper["checkpoint"] == {"enabled": True, "lineInterval": 10}
    assert 0 < upper["simulateFailAttempts"] < upper["retry"]["attempts"]


def test_the_sample_is_a_readable_text_of_many_alphabets():
    raw = (ROOT / "data" / "input" / "sample.txt").read_bytes()
    text = raw.decode("utf-8")
    assert b"\r" not in raw and text.endswith("\n") and not text.endswith("\n\n")
    assert 38 <= text.count("\n") <= 44
    assert max(map(len, text.splitlines())) <= 100
    alphabets = {unicodedata.name(letter).split()[0] for letter in text if letter.isalpha()}
    assert {"LATIN", "GREEK", "CYRILLIC", "CJK", "HIRAGANA"} <= alphabets
    # Letters that become two in upper case: the result is not as long as the input.
    assert "ß" in text and "ﬁ" in text


def test_every_module_that_is_imported_is_counted_by_the_coverage():
    # Coverage lists only files that were started: one that no test touches would not lower the total.
    names = sorted(path.stem for path in (ROOT / "src").glob("*.py"))
    code = "import sys; sys.path.insert(0, %r); [__import__(name) for name in %r]" % (str(ROOT / "src"), names)
    # With the environment as it is: this process is to be measured.
    done = subprocess.run([sys.executable, "-c", code], stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert (done.returncode, done.stdout) == (0, b"")


def test_requirements_name_nothing_but_pytest_and_its_coverage():
    lines = (ROOT / "requirements-dev.txt").read_text(encoding="utf-8").splitlines()
    names = {re.match(r"[A-Za-z0-9-]+", line).group() for line in lines if line and not line.startswith("#")}
    assert names == {"pytest", "pytest-cov"}
