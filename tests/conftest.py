"""What the tests share: a project in a temporary folder, and running the real program on it."""
from __future__ import annotations

import compileall
import errno
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from drivers import junctions as junction_driver

ROOT = Path(__file__).resolve().parent.parent
RUNNER = ROOT / "src" / "pipeline_runner.py"
PATIENCE_S = 60             # the longest wait for what must happen; a test that needs it has failed
KILLED = -9 if os.name == "posix" else 9       # the exit code of what os.kill(pid, 9) ended
sys.path.insert(0, str(ROOT / "src"))
# Else each of some thousand short processes would compile all that it imports. Processes under test leave none of it: one
# that meets a full disk or a limit would leave it cut short, and older Pythons believe that.
compileall.compile_dir(str(ROOT / "src"), quiet=2)
os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
os.environ.pop("PYTHONUNBUFFERED", None)    # as for most users: what is written and not flushed would be seen with it only
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:       # as in a shell's background: the runner would heed that, and no test could stop it
    signal.signal(signal.SIGINT, signal.default_int_handler)
if sys.platform != "win32" and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:       # as under nohup
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@functools.lru_cache(maxsize=None)
def scans_of_runner() -> str:
    """Return a state/digests.json that remembers what the network scan found in the runner and bin/, and nothing else."""
    import file_digests
    import program_scan
    digests = file_digests.Digests(str(ROOT), "", keep=False)
    for path in program_scan.runner_files() + program_scan.files_in_bin(str(ROOT)):
        program_scan.scan_of(digests, path)
    return json.dumps({"schema": file_digests.SCHEMA_VERSION, "files": {}, "scans": digests.scans})


def wait_until(true, what="it"):
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline, "%s did not happen within %d s" % (what, PATIENCE_S)
        time.sleep(0.005)


def settle(path):
    """Wait until the file system's clock has left *path*'s time stamps behind, so that its digest may be kept."""
    probe, deadline = path.parent / ".probe", time.monotonic() + 30
    while time.monotonic() < deadline:
        probe.write_bytes(b"")
        found = probe.stat()
        if found.st_mtime_ns > path.stat().st_ctime_ns + 50_000_000:
            probe.unlink()
            return
    raise AssertionError("the file system's clock stands still")


def text_of(data: bytes) -> str:
    """Return what a console shows, with the line ends of every system as one."""
    return data.decode("utf-8", "replace").replace(os.linesep, "\n")


class Done:
    """A finished command: code, out, err as text. Its text form shows everything, for the message of a failed assertion."""

    def __init__(self, argv, code, out, err):
        self.argv, self.code, self.out, self.err = argv, code, out, err

    @property
    def steps(self):
        """The lines on stdout but those that frame a run: what guards it, the ledger's head."""
        return [line for line in self.out.splitlines() if not line.startswith(("[OFFLINE] kernel: ", "[OFFLINE] hook: ", "[LEDGER] head "))]

    def __repr__(self):
        return "\n$ %s\nexit code %s\n--- stdout\n%s--- stderr\n%s---" % (" ".join(map(str, self.argv)), self.code, self.out, self.err)


class Project:
    """A root with the repository's bin/, a spec and inputs of the test's own."""

    # A first run that scans all of the runner takes several times as long. False: it does, and no state/ is there before it.
    knows_scans = True

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)
        shutil.copytree(ROOT / "bin", root / "bin", ignore=shutil.ignore_patterns("__pycache__"))

    def path(self, name: str) -> Path:
        return self.root / name

    def write(self, name: str, text, executable: bool = False) -> Path:
        """Write text (UTF-8, line ends as given) or bytes."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
        if executable:
            path.chmod(0o755)
        return path

    def read(self, name: str) -> str:
        """Return a file's text, with the line ends of this system, which most processors of tests write, as one."""
        return (self.root / name).read_bytes().decode("utf-8").replace(os.linesep, "\n")

    def json(self, name: str):
        return json.loads(self.read(name))

    def exists(self, name: str) -> bool:
        return (self.root / name).exists()

    def spec(self, *stages, **top) -> None:
        """Write pipeline.json with these stages (dicts); name and outputDir get defaults."""
        full = [dict({"name": "s%d" % number, "outputDir": "data/s%d" % number}, **stage) for number, stage in enumerate(stages, 1)]
        self.write("pipeline.json", json.dumps(dict({"name": "test"}, stages=full, **top), indent=2))

    def processor(self, name: str, body: str) -> str:
        """Write bin/<name>.py; `out` and `inputs` are at hand in it. Return its path for the spec."""
        head = ("import json, os, sys, time\n"
                "out = os.environ['PIPELINE_OUTPUT_DIR']\n"
                "inputs = json.load(open(os.environ['PIPELINE_INPUTS_FILE'], encoding='utf-8'))\n")
        self.write("bin/%s.py" % name, head + body)
        return "bin/%s.py" % name

    def remember_scans(self, *arguments) -> None:
        """Leave what the runner's own scan found for a run with these arguments; other commands may want no state/.

        A test that looks whether a run writes anything sets knows_scans to False first.
        """
        if self.knows_scans and not str(*arguments[:1])[:1].isalpha() and not self.exists("state"):
            self.write("state/digests.json", scans_of_runner())

    def argv(self, *arguments):
        self.remember_scans(*arguments)
        return [sys.executable, str(RUNNER), *arguments, "--pipeline", str(self.root / "pipeline.json")]

    def environment(self, **more):
        env = dict(os.environ, **more)
        return {name: value for name, value in env.items() if value is not None}

    def run(self, *arguments, env=None, timeout=120, cwd=None) -> Done:
        """Run the real program to its end."""
        argv = self.argv(*arguments)
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              timeout=timeout, env=self.environment(**(env or {})), cwd=cwd)
        result = Done(argv, done.returncode, text_of(done.stdout), text_of(done.stderr))
        assert "Traceback" not in result.err, result
        return result

    def ok(self, *arguments, **options) -> Done:
        """Run, and expect exit code 0."""
        done = self.run(*arguments, **options)
        assert done.code == 0, done
        return done

    def start(self, *arguments, env=None, **options) -> subprocess.Popen:
        """Start the real program and return at once; stdout and stderr are pipes."""
        return subprocess.Popen(self.argv(*arguments), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                env=self.environment(**(env or {})), **options)

    def kill_once_logged(self, log: str, text: bytes, *arguments) -> None:
        """Start the program, and kill it when *text* is in a log."""
        run, path = self.start(*arguments), self.path(log)
        try:
            wait_until(lambda: path.exists() and text in path.read_bytes())
        finally:
            run.kill()
            run.communicate()

    def snapshot(self):
        """Return {path: bytes} of every file below the root."""
        return {path.relative_to(self.root).as_posix(): path.read_bytes() for path in sorted(self.root.rglob("*")) if path.is_file() and not path.is_symlink()}


SET_CLOCK = "import time\nreal = time.time\ndef shifted():\n    with open(%r) as file:\n        return real() + float(file.read())\ntime.time = shifted\n"


class SetClock:
    """A clock that is off by as many seconds as the file says, for the programs that run with *env*: not those that they start."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.file = folder / "shift"
        (folder / "sitecustomize.py").write_text(SET_CLOCK % str(self.file))
        self.env = {"PYTHONPATH": str(folder)}
        self.set(0)

    def set(self, seconds) -> None:
        self.file.write_text(str(seconds))


@pytest.fixture
def set_clock(tmp_path) -> SetClock:
    return SetClock(tmp_path / "clock")


@pytest.fixture
def project(tmp_path) -> Project:
    # The name has what paths of real users have.
    return Project(tmp_path / "prüf bereich")


# Measuring a short process takes longer than running it. These modules start hundreds, and others measure the same lines.
UNMEASURED = (
    "test_arrivals", "test_crash", "test_crash_tasks", "test_graph", "test_housekeeping", "test_late_faults", "test_leftovers", "test_locks", "test_planning",
    "test_quick_run", "test_resume", "test_state", "test_tasks", "test_unanswered", "test_unfinished")
measured = set()


@pytest.fixture(autouse=True)
def unmeasured(request, monkeypatch) -> None:
    """Start the processes of some modules without coverage, and of a test with several sets of values all but the first's."""
    name = request.node.nodeid.partition("[")[0]
    if request.module.__name__ in UNMEASURED or name in measured:
        for variable in list(os.environ):
            if variable.startswith(("COV_CORE_", "COVERAGE_")):
                monkeypatch.delenv(variable)
    measured.add(name)


@pytest.fixture
def too_deep(tmp_path, monkeypatch) -> Path:
    """Return a folder in a folder "in", with a file in it, that is too deep for Windows, and be told so as there: it is not there."""
    scandir, look, folder = os.scandir, os.stat, tmp_path / "in" / ("x" * 240)
    real = ("\\\\?\\" if sys.platform == "win32" else "") + str(folder)
    os.makedirs(real)
    with open(os.path.join(real, "b.txt"), "wb"):
        pass

    def refuse(path, longest):
        if isinstance(path, str) and len(os.path.abspath(path)) > longest:
            raise FileNotFoundError(errno.ENOENT, "The system cannot find the path specified", path)
        return path
    monkeypatch.setattr(os, "scandir", lambda path: scandir(refuse(path, 247)))
    monkeypatch.setattr(os, "stat", lambda path, **options: look(refuse(path, 259), **options))
    monkeypatch.setattr(sys, "platform", "win32")
    return folder


class Junctions:
    """Junctions of Windows; elsewhere links that look like such to the program, see drivers/junctions.py."""

    make_call = "__import__('_winapi').CreateJunction" if sys.platform == "win32" else "os.symlink"     # for a processor: (target, path)

    def __init__(self, monkeypatch) -> None:
        self.monkeypatch, self.paths = monkeypatch, []

    def make(self, target, path) -> None:
        """Make one that is seen in this process, and by the programs that run() starts."""
        os.makedirs(os.path.dirname(str(path)), exist_ok=True)
        if sys.platform == "win32":
            import _winapi
            try:
                _winapi.CreateJunction(str(target), str(path))
            except OSError as error:
                if error.winerror != 50:            # ERROR_NOT_SUPPORTED: never said by NTFS
                    raise
                pytest.skip("no junctions here (Wine)")
        else:
            os.symlink(str(target), str(path))
            self.expect(path)
            junction_driver.pretend([str(path)], self.monkeypatch.setattr)

    def expect(self, path) -> None:
        """Let what a processor makes at *path* be one to the programs that run() starts."""
        self.paths.append(str(path))

    def run(self, project, *arguments) -> Done:
        """As project.run()."""
        argv = project.argv(*arguments)
        if sys.platform != "win32":
            argv[1:2] = [str(ROOT / "tests" / "drivers" / "junctions.py"), argv[1], json.dumps(self.paths)]
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=120, env=project.environment())
        result = Done(argv, done.returncode, text_of(done.stdout), text_of(done.stderr))
        assert "Traceback" not in result.err, result
        return result


@pytest.fixture
def junctions(monkeypatch) -> Junctions:
    return Junctions(monkeypatch)


DROP = "import ctypes, os, sys\n[ctypes.CDLL(None).prctl(24, one, 0, 0, 0) for one in (1, 2)]\nos.execv(sys.executable, [sys.executable] + sys.argv[1:])\n"


def run_without_might(project, *arguments):
    """Run the program by a user whom rights hold back: root without CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH, where this is root."""
    argv = [sys.executable, "-c", DROP] if sys.platform.startswith("linux") else [sys.executable]
    return subprocess.run(argv + project.argv(*arguments)[1:], env=project.environment(), cwd=str(project.root), stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, universal_newlines=True, encoding="utf-8", timeout=60)


# Of no account, and in no group, that a machine has. They may read everything, as src/ and Python may lie in somebody's home, but write only what is theirs.
USERS, GROUP = (54321, 54322), 54320


def as_user(number):
    """Return the words that start a program as one of USERS, in GROUP; the test is skipped where this is not root, or setpriv is not there."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0 or not shutil.which("setpriv"):
        pytest.skip("only root may become somebody else, by setpriv")
    may_read = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    return ["setpriv", "--reuid=%d" % USERS[number], "--regid=%d" % GROUP, "--clear-groups", *may_read]


def without_coverage(env=None):
    """Return an environment without what makes coverage measure a program: it could not write down what it found, and would say so."""
    return {name: value for name, value in (os.environ if env is None else env).items() if not name.startswith("COV")}


def run_as(number, project, *arguments, umask=0o022):
    """Run the program to its end as one of USERS, or as root for None."""
    argv = [*(as_user(number) if number is not None else []), *project.argv(*arguments)]
    done = subprocess.run(argv, cwd=str(project.root), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          env=without_coverage(project.environment()), timeout=120, preexec_fn=lambda: os.umask(umask))
    result = Done(argv, done.returncode, text_of(done.stdout), text_of(done.stderr))
    assert "Traceback" not in result.err, result
    return result


def hand_over(project, number=0):
    """Give all of a project to one of USERS."""
    project.remember_scans()
    for path in [project.root, *project.root.rglob("*")]:
        os.chown(str(path), USERS[number], GROUP)


@pytest.fixture
def shared():
    """A project in a folder that all may enter; what the test has made is root's until hand_over()."""
    as_user(0)
    folder = tempfile.mkdtemp(prefix="shared")
    os.chmod(folder, 0o755)
    project = Project(Path(folder) / "p")
    yield project
    shutil.rmtree(folder)


def opened_by(pid):
    """Return the paths that a process has open."""
    folder = "/proc/%d/fd" % pid
    found = []
    for name in os.listdir(folder):
        try:
            found.append(os.readlink(os.path.join(folder, name)))
        except OSError:
            pass                        # closed since
    return found
