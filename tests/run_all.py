"""Make or reuse .venv, install requirements-dev.txt into it, and run all tests with coverage.

The one piece of logic behind run_tests.sh and run_tests.ps1, which only look for a Python and start this file:

    interpreter -> .venv usable? -> (discard, create) -> installed? -> (install, stamp) -> pytest's exit code

    .venv/run_tests.stamp      the interpreter and the requirements' text that were installed, compared as content
    .venv/run_tests.unfinished stands while .venv is being made: a run that finds it starts over
    .venv.old                  a discarded .venv on its way out
"""
from __future__ import annotations

import os
import shutil
import subprocess
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import List, Optional, Tuple

COVERAGE_FLOOR_PERCENT = 90
EXIT_NOT_STARTED = 70           # no pytest code (0 to 5) and no shell code: the tests were not started
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
VENV = os.path.join(ROOT, ".venv")
DISCARDED = os.path.join(ROOT, ".venv.old")
STAMP = os.path.join(VENV, "run_tests.stamp")
UNFINISHED = os.path.join(VENV, "run_tests.unfinished")
REQUIREMENTS = os.path.join(ROOT, "requirements-dev.txt")
SETTINGS = os.path.join(ROOT, "pyproject.toml")

# Options that neither choose nor leave out tests, so that the coverage floor still means something.
NEUTRAL_OPTIONS = ("-v", "-q", "-x", "-s", "-l", "--verbose", "--quiet", "--exitfirst", "--showlocals")
NEUTRAL_PREFIXES = ("-vv", "-r", "--tb=", "--durations=", "--maxfail=", "--color=", "--cov")

# Printed by the interpreter that runs this file and by the one in .venv; equal when one was made from the other.
IDENTITY_CODE = (
    "import os, platform, sys; print(ascii(' '.join((platform.python_implementation(), platform.python_version(),"
    " platform.machine(), os.path.normcase(os.path.realpath(sys.base_prefix)))))[1:-1])"
)


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
        prepare()
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
