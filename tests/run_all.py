"""Make or reuse .venv, install requirements-dev.txt into it, and run all tests with coverage.

The one piece of logic behind run_tests.sh and run_tests.ps1, which only look for a Python and start this file:

    interpreter -> .venv usable? -> (discard, create) -> installed? -> (install, stamp) -> pytest's exit code

A whole run is dealt out to several pytest processes side by side; their coverage is put together at the end.

    .venv/run_tests.stamp      the interpreter and the requirements' text that were installed, compared as content
    .venv/run_tests.unfinished stands while .venv is being made: a run that finds it starts over
    .venv/side_by_side         of the last whole run: what each pytest process printed, and its coverage
    .venv/**/a0_spared.pth     which processes coverage leaves alone
    .venv.old                  a discarded .venv on its way out
"""
from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType
    from typing import Dict, List, Optional, Tuple

COVERAGE_FLOOR_PERCENT = 90
EXIT_NOT_STARTED = 70           # no pytest code (0 to 5) and no shell code: the tests were not started
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
VENV = os.path.join(ROOT, ".venv")
DISCARDED = os.path.join(ROOT, ".venv.old")
STAMP = os.path.join(VENV, "run_tests.stamp")
UNFINISHED = os.path.join(VENV, "run_tests.unfinished")
SIDE_BY_SIDE = os.path.join(VENV, "side_by_side")
REQUIREMENTS = os.path.join(ROOT, "requirements-dev.txt")
SETTINGS = os.path.join(ROOT, "pyproject.toml")

# Options that neither choose nor leave out tests, so that the coverage floor still means something.
NEUTRAL_OPTIONS = ("-v", "-q", "-x", "-s", "-l", "--verbose", "--quiet", "--exitfirst", "--showlocals")
NEUTRAL_PREFIXES = ("-vv", "-r", "--tb=", "--durations=", "--maxfail=", "--color=", "--cov")

# Of these, the ones that only change what is shown: with them a whole run may be dealt out to several processes.
# -x and --maxfail= count failures of the whole run, -s shows output as it comes, --cov... means one set of data.
SHOWING_OPTIONS = ("-v", "-q", "-l", "--verbose", "--quiet", "--showlocals")
SHOWING_PREFIXES = ("-vv", "-r", "--tb=", "--durations=", "--color=")

MOST_JOBS = 4                   # more processes at once would compete for the disk
GROUPS_PER_JOB = 10             # so that a wrong weight leaves no processor idle for long
GRACE_S = 10                    # what pytest gets after Ctrl-C to end by itself
# Seconds that modules take, measured with coverage on a small machine, where the size of the file would mislead.
SECONDS: Dict[str, float] = {
    "test_crash": 100, "test_crash_tasks": 80, "test_ledger_verify": 30, "test_ledger_export": 30, "test_locks": 40, "test_state": 45,
    "test_keys": 25, "test_processors": 25, "test_scripts": 20, "test_resume": 20, "test_spec": 5, "test_source": 2,
}
BYTES_PER_SECOND = 2500         # the guess for all others

# Printed by the interpreter that runs this file and by the one in .venv; equal when one was made from the other.
IDENTITY_CODE = (
    "import os, platform, sys; print(ascii(' '.join((platform.python_implementation(), platform.python_version(),"
    " platform.machine(), os.path.normcase(os.path.realpath(sys.base_prefix)))))[1:-1])"
)

# Read by each Python process in .venv when it starts, before coverage's own line. Tests start thousands of processors; coverage takes
# four times as long to load as all else that one does, and what it would measure there, the kit, is measured in the tests' own processes.
UNMEASURED = (
    "import os, sys; os.path.basename(os.path.dirname(next((word for word in getattr(sys, 'orig_argv', ()) if word.endswith('.py')), '')))"
    " == 'bin' and os.environ.pop('COVERAGE_PROCESS_CONFIG', None)\n")


class CannotStart(Exception):
    """The tests cannot be started; the text is one line for the user."""


# === 1. What is there ===

def identity_of(python: str) -> str:
    """Return the identity that the interpreter *python* prints, or "" when it cannot be started."""
    # -I: the folder that the user stands in must not lend modules to the question.
    try:
        done = subprocess.run([python, "-I", "-c", IDENTITY_CODE], stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    except OSError:
        return ""
    return done.stdout.decode("ascii", "replace").strip() if done.returncode == 0 else ""


def has_pip(python: str) -> bool:
    """Return whether the interpreter *python* can install anything."""
    return subprocess.call([python, "-I", "-m", "pip", "--version"], stdin=subprocess.DEVNULL,
                           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) == 0


def venv_python() -> str:
    """Return the path of the interpreter inside .venv, whether or not it exists."""
    return os.path.join(VENV, "Scripts", "python.exe") if sys.platform == "win32" else os.path.join(VENV, "bin", "python")


def read_text(path: str) -> str:
    """Return the text of *path*, or "" when it cannot be read."""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except (OSError, UnicodeDecodeError):
        return ""


def why_unusable(wanted: str) -> Optional[str]:
    """Return why .venv must be made anew for the interpreter of identity *wanted*, or None when it can be used."""
    if os.path.exists(UNFINISHED):
        return "it was left half-made"
    if not os.path.isfile(os.path.join(VENV, "pyvenv.cfg")):
        return "it is no virtual environment"
    found = identity_of(venv_python())
    if not found:
        return "its Python cannot be started"
    if found != wanted:
        return "it was made by %s, this is %s" % (found, wanted)
    if not os.path.exists(STAMP) and not has_pip(venv_python()):
        return "it has no working pip"
    return None


# === 2. Making it right ===

def check_writable() -> None:
    """Raise CannotStart unless files can be made in the folder of the project."""
    probe = os.path.join(ROOT, ".run_tests.%d.tmp" % os.getpid())
    try:
        with open(probe, "w", encoding="utf-8"):
            pass
        os.unlink(probe)
    except OSError as error:
        raise CannotStart("cannot write to %s (%s); copy the folder to a place where you may write"
                          % (ROOT, error.strerror)) from error


def discard(path: str) -> None:
    """Remove *path*, whatever it is; a link goes, what it points to stays."""
    if os.path.islink(path) or os.path.isfile(path):
        os.unlink(path)
    elif os.path.isdir(path):
        shutil.rmtree(path)


def discard_venv() -> None:
    """Move .venv away and remove it: killed at any moment, nothing half-removed is left under that name."""
    discard(DISCARDED)
    os.rename(VENV, DISCARDED)
    discard(DISCARDED)


def create_venv() -> None:
    """Create .venv from the running interpreter; it counts as unfinished until it is stamped.

    Raises: CannotStart, when this Python comes without the modules that it takes.
    """
    try:
        import ensurepip  # noqa: F401  (Debian keeps it apart: without it an environment gets no pip)
        import venv  # noqa: F401
    except ImportError as error:
        raise CannotStart("%s has no %s module, which makes virtual environments (Debian, Ubuntu: apt install python%d.%d-venv)"
                          % (sys.executable, error.name, sys.version_info[0], sys.version_info[1])) from error
    os.mkdir(VENV)
    with open(UNFINISHED, "w", encoding="utf-8"):
        pass
    code = subprocess.call([sys.executable, "-m", "venv", VENV], stdin=subprocess.DEVNULL, cwd=ROOT)
    if code != 0:
        raise CannotStart("%s -m venv %s failed with exit code %d" % (sys.executable, VENV, code))


def install(stamp: str) -> None:
    """Install the requirements and write *stamp*, last, so that only a complete installation carries one."""
    with open(UNFINISHED, "w", encoding="utf-8"):
        pass
    code = subprocess.call([venv_python(), "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
                            "-r", REQUIREMENTS], stdin=subprocess.DEVNULL, cwd=ROOT)
    if code != 0:
        os.unlink(UNFINISHED)   # pip takes back what it could not finish; only a kill leaves a half
        raise CannotStart("pip could not install requirements-dev.txt (exit code %d); the first run needs a package index" % code)
    with open(STAMP, "w", encoding="utf-8", newline="\n") as file:
        file.write(stamp)
    os.unlink(UNFINISHED)


def leave_processors_unmeasured() -> None:
    """Let coverage measure no processor: no script in a folder bin/ (from Python 3.10 on; before it, all are)."""
    folder = sysconfig.get_path("purelib", "nt" if sys.platform == "win32" else "posix_prefix", {"base": VENV})
    path = os.path.join(folder, "a0_spared.pth")
    if read_text(path) != UNMEASURED:
        with open(path, "w", encoding="utf-8", newline="\n") as file:
            file.write(UNMEASURED)


def prepare() -> None:
    """Leave a .venv of the running interpreter with the requirements installed.

    Raises: CannotStart, OSError.
    """
    check_writable()
    wanted = identity_of(sys.executable)
    reason = why_unusable(wanted) if os.path.lexists(VENV) else None
    if reason:
        say("rebuilding .venv: " + reason)
        discard_venv()
    discard(DISCARDED)
    if not os.path.lexists(VENV):
        say("creating .venv with Python %s" % sys.version.split()[0])
        create_venv()
    stamp = wanted + "\n" + read_text(REQUIREMENTS)
    if read_text(STAMP) != stamp:
        say("installing requirements-dev.txt")
        install(stamp)
    leave_processors_unmeasured()


# === 3. Running the tests ===

def coverage_settings(version: Tuple[int, int]) -> str:
    """Return the path of the settings that the coverage of Python *version* understands; writes them if need be."""
    if version >= (3, 9):
        return SETTINGS
    kept = [line for line in read_text(SETTINGS).splitlines(True) if not line.startswith("patch = ")]
    path = os.path.join(VENV, "coverage.toml")
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.writelines(kept)
    return path


def selects_tests(arguments: List[str]) -> bool:
    """Return whether *arguments* for pytest may leave tests out, so that no coverage floor applies."""
    return any(word not in NEUTRAL_OPTIONS and not word.startswith(NEUTRAL_PREFIXES) for word in arguments)


def pytest_command(arguments: List[str]) -> List[str]:
    """Return the command line that runs the tests with the user's *arguments*."""
    command = [venv_python(), "-m", "pytest"]
    if selects_tests(arguments):
        command.append("--no-cov")
    else:
        # --cov-branch and the absolute path: programs started in other folders see neither this folder nor its settings.
        command += ["--cov", "--cov-branch", "--cov-config=" + coverage_settings(sys.version_info[:2]),
                    "--cov-report=term-missing:skip-covered", "--cov-fail-under=%d" % COVERAGE_FLOOR_PERCENT]
    return command + arguments


def run(command: List[str]) -> int:
    """Run *command* in the project's folder and return its exit code (POSIX: become it, and never return)."""
    os.chdir(ROOT)
    if os.name == "posix":
        # So that signals sent to the script reach pytest itself.
        os.execv(command[0], command)
    with subprocess.Popen(command) as process:
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:
                continue        # pytest got the same Ctrl-C and ends by itself


# === 4. A whole run: several pytest processes side by side ===

class Group:
    """Some test modules, and the pytest process that runs them."""

    def __init__(self, number: int) -> None:
        self.modules: List[str] = []
        self.weight = 0.0
        self.coverage = os.path.join(SIDE_BY_SIDE, "coverage.%d" % number)
        self.printed = os.path.join(SIDE_BY_SIDE, "printed.%d.txt" % number)
        self.process: Optional[subprocess.Popen[bytes]] = None

    def start(self, arguments: List[str]) -> None:
        """Start pytest on the modules; what it prints goes to a file, so that outputs are not mixed."""
        # No cache: several processes would each write their own failures over those of the others.
        command = [venv_python(), "-m", "pytest", "-p", "no:cacheprovider", "--cov", "--cov-branch", "--cov-report=",
                   "--cov-config=" + coverage_settings(sys.version_info[:2])]
        with open(self.printed, "wb") as file:
            self.process = subprocess.Popen(command + arguments + self.modules, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=file,
                                            stderr=subprocess.STDOUT, env=dict(os.environ, COVERAGE_FILE=self.coverage))

    def code(self) -> Optional[int]:
        """Return pytest's exit code, or None before it ended."""
        return self.process.poll() if self.process else None

    def output(self) -> str:
        """Return what pytest printed."""
        with open(self.printed, encoding="utf-8", errors="replace") as file:
            return file.read()


def jobs_of(arguments: List[str]) -> Tuple[int, List[str]]:
    """Return how many pytest processes may run at once, and *arguments* without the option that says so.

    Raises: CannotStart, when that is no number.
    """
    said, kept, words = os.environ.get("RUN_TESTS_JOBS") or None, [], iter(arguments)
    for word in words:
        if word == "--jobs":
            said = next(words, "")
        elif word.startswith("--jobs="):
            said = word[len("--jobs="):]
        else:
            kept.append(word)
    if said is None:
        return min(MOST_JOBS, usable_cpus()), kept
    if not re.fullmatch("[1-9][0-9]?", said):
        raise CannotStart("--jobs (or RUN_TESTS_JOBS) takes a number from 1 to 99, not \"%s\"" % said)
    return int(said), kept


def usable_cpus() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def test_modules() -> List[str]:
    """Return the paths of all test modules, relative to the project."""
    return ["tests/" + name for name in sorted(os.listdir(os.path.join(ROOT, "tests"))) if re.fullmatch(r"test_.*\.py", name)]


def only_shows(arguments: List[str]) -> bool:
    """Return whether *arguments* mean the same to several pytest processes as to one."""
    return all(word in SHOWING_OPTIONS or word.startswith(SHOWING_PREFIXES) for word in arguments)


def weight_of(module: str) -> float:
    """Return about how many seconds the test module at that path takes."""
    known = SECONDS.get(module[len("tests/"):-len(".py")])
    return os.path.getsize(os.path.join(ROOT, module)) / BYTES_PER_SECOND if known is None else known


def deal(modules: List[str], count: int) -> List[Group]:
    """Return *modules* in at most *count* groups of about the same weight, the heaviest first."""
    groups = [Group(number) for number in range(count)]
    for module in sorted(modules, key=lambda one: (-weight_of(one), one)):
        lightest = min(groups, key=lambda one: one.weight)
        lightest.modules.append(module)
        lightest.weight += weight_of(module)
    return sorted((group for group in groups if group.modules), key=lambda one: -one.weight)


def run_side_by_side(groups: List[Group], jobs: int, arguments: List[str]) -> int:
    """Run pytest on each group, *jobs* at once; print what each printed when it ends, then coverage and sum.

    Return the exit code of the first group that failed, else 1 when too little is covered.
    Raises: KeyboardInterrupt, when no pytest process is left.
    """
    shutil.rmtree(SIDE_BY_SIDE, ignore_errors=True)     # a process that a killed run left may still write there
    os.makedirs(SIDE_BY_SIDE, exist_ok=True)
    started, waiting, ended = time.monotonic(), list(groups), []  # type: ignore[var-annotated]
    running: List[Group] = []
    say("%d test modules in %d groups, %d at once" % (sum(len(group.modules) for group in groups), len(groups), jobs))
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                running.append(waiting.pop(0))
                running[-1].start(arguments)
            time.sleep(0.1)
            for group in [one for one in running if one.code() is not None]:
                running.remove(group)
                ended.append(group)
                show(group, "group %d of %d" % (len(ended), len(groups)))
    except KeyboardInterrupt as error:
        end(running, told=not isinstance(error, Terminated))
        for group in running:
            show(group, "interrupted")
        raise
    finally:
        end(running)
    covered = report_coverage(groups)
    outputs = [group.output() for group in ended]
    for line in failures(outputs):
        print(line)
    say("%s in %.0f s" % (total(outputs), time.monotonic() - started))
    return overall([group.code() for group in ended]) or covered  # type: ignore[misc]


def show(group: Group, what: str) -> None:
    """Print what pytest printed for *group*, below a line that says what it is."""
    say("%s: %s" % (what, " ".join(name[len("tests/"):-len(".py")] for name in group.modules)))
    print(group.output(), flush=True)


def end(running: List[Group], told: bool = False) -> None:
    """Leave no pytest process behind, after some time to end by themselves. told: the terminal's Ctrl-C has reached them too."""
    deadline = time.monotonic() + GRACE_S
    try:
        for group in running:
            if group.process and group.code() is None and not told and os.name == "posix":
                group.process.send_signal(signal.SIGINT)
        while any(group.code() is None for group in running) and time.monotonic() < deadline:
            time.sleep(0.1)
    finally:
        for group in running:
            if group.process and group.code() is None:
                group.process.kill()
                group.process.wait()


def report_coverage(groups: List[Group]) -> int:
    """Put the coverage of all groups into .coverage and print the report; return 0, or 1 when too little is covered."""
    settings = "--rcfile=" + coverage_settings(sys.version_info[:2])
    data = "--data-file=" + os.path.join(ROOT, ".coverage")
    found = [group.coverage for group in groups if os.path.exists(group.coverage)]
    coverage = [venv_python(), "-m", "coverage"]
    for command in (["combine", "--quiet", settings, data] + found,
                    ["report", settings, data, "--fail-under=%d" % COVERAGE_FLOOR_PERCENT]):
        if subprocess.call(coverage + command, cwd=ROOT, stdin=subprocess.DEVNULL) != 0:
            return 1
    return 0


def overall(codes: List[int]) -> int:
    """Return pytest's exit code for the whole: the first failure's; 5 (nothing collected) only when no group had tests."""
    failed = [code for code in codes if code not in (0, 5)]
    return failed[0] if failed else 0 if 0 in codes else 5


def failures(outputs: List[str]) -> List[str]:
    """Return the lines of the groups' summaries that name what failed."""
    return [line for text in outputs for line in text.splitlines() if re.match(r"(FAILED|ERROR) \S+", line)]


def total(outputs: List[str]) -> str:
    """Return the sum of pytest's last lines, such as "3 failed, 120 passed, 2 skipped"."""
    counts: Dict[str, int] = {}
    for text in outputs:
        closing = [line for line in text.splitlines() if re.search(r"\d+ \w+.* in [0-9.]+s", line)][-1:]
        for number, what in re.findall(r"(\d+) (failed|passed|skipped|deselected|xfailed|xpassed|warnings?|errors?)\b", "".join(closing)):
            what = what.rstrip("s") if what[:4] in ("warn", "erro") else what
            counts[what] = counts.get(what, 0) + int(number)
    return ", ".join("%d %s" % (counts[what], what) for what in
                     ("failed", "passed", "skipped", "deselected", "xfailed", "xpassed", "warning", "error") if what in counts) or "no tests ran"


# === 5. The command ===

class Terminated(KeyboardInterrupt):
    """This process, and no other, was asked to end."""


def on_terminate(number: int, frame: Optional[FrameType]) -> None:
    """Take a request to end as Ctrl-C, so that no pytest process is left behind."""
    raise Terminated


def base_python() -> Optional[str]:
    """Return the interpreter that made .venv when this file runs inside .venv, else None."""
    if os.path.realpath(sys.prefix) != os.path.realpath(VENV):
        return None
    for line in read_text(os.path.join(VENV, "pyvenv.cfg")).splitlines():
        key, _, value = line.partition("=")
        if key.strip() == "home":
            for name in ("python.exe",) if sys.platform == "win32" else ("python%d.%d" % sys.version_info[:2], "python3"):
                path = os.path.join(value.strip(), name)
                if os.path.isfile(path):
                    return path
    return None


def say(line: str) -> None:
    """Print one line of progress, at once: a program started next writes to the same stream."""
    print("run_tests: " + line, flush=True)


def main(arguments: List[str]) -> int:
    """Run the tests with *arguments* for pytest; return the exit code."""
    # A path that the console's encoding does not know must not end the run.
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    base = base_python()
    if base:
        # An activated .venv cannot rebuild itself (Windows locks a running program's file).
        return run([base, os.path.abspath(__file__)] + arguments)
    try:
        jobs, arguments = jobs_of(arguments)
        prepare()
        modules = test_modules()
        if jobs > 1 and len(modules) > 1 and only_shows(arguments):
            signal.signal(signal.SIGTERM, on_terminate)
            return run_side_by_side(deal(modules, jobs * GROUPS_PER_JOB), jobs, arguments)
        command = pytest_command(arguments)
    except KeyboardInterrupt:
        return 130
    except (CannotStart, OSError) as error:
        sys.stdout.flush()
        sys.stderr.write("run_tests: %s\n" % error)
        return EXIT_NOT_STARTED
    return run(command)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
