"""The recipes of docs/scheduling.md: taken from the page as they stand, and run or checked as far as this system can."""
from __future__ import annotations

import os
import plistlib
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import pytest
from conftest import ROOT, RUNNER

import command_line

PAGE = (ROOT / "docs" / "scheduling.md").read_bytes().decode("utf-8")
RECIPES = re.findall(r"<!-- recipe: (\S+) -->\n```\w*\n(.*?)```", PAGE, re.S)
POOR = {"HOME": "/nonexistent", "LOGNAME": "batch", "PATH": "/usr/bin:/bin", "SHELL": "/bin/sh"}
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="cron and systemd")


def recipes(name):
    found = [text for one, text in RECIPES if one == name]
    assert found, name
    return found


def cron_commands():
    """Return the command lines of the cron recipes, without times and user."""
    found = [re.fullmatch(r"(?:\S+ ){5}batch (.+)", line) for text in recipes("cron") for line in text.splitlines()]
    return [match.group(1) for match in found if match]


RUNNER_LINK = "@RUNNER@"


def plain_python(folder):
    """Return a link to this interpreter whose path, other than perhaps its own, has no blank."""
    link = folder / "python3"
    if not link.exists():
        link.symlink_to(os.path.realpath(sys.executable))
    return str(link)


def moved(text, project):
    """Return a recipe for a project, with this interpreter, and with the clock far away."""
    text = text.replace("/srv/nightly/src/pipeline_runner.py", RUNNER_LINK).replace(" src/pipeline_runner.py", " " + RUNNER_LINK)
    text = text.replace("/srv/nightly", "'%s'" % project.root).replace("/usr/bin/python3", plain_python(project.root.parent)).replace(RUNNER_LINK, "'%s'" % RUNNER)
    return re.sub(r" --stop-by \d\d:\d\d", "", text)


def by_cron(command):
    """Run a command as cron does: by sh, in a poor environment, with no terminal; return (exit code, what would be mailed)."""
    done = subprocess.run(["/bin/sh", "-c", command], env=POOR, cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60)
    return done.returncode, done.stdout.decode("utf-8", "replace")


@pytest.fixture
def nightly(project):
    project.write("data/in.txt", "eins\n")
    project.write("state/.gitkeep", "")
    project.spec({"processor": "bin/stage_upper.py", "inputs": ["data/in.txt"]})
    return project


@linux
def test_the_plain_line_runs_appends_to_its_log_and_keeps_the_exit_code(nightly):
    command = moved(cron_commands()[0], nightly)
    shutil.rmtree(str(nightly.path("state")))       # the first night
    assert by_cron(command) == (0, "")
    assert nightly.read("data/s1/result.txt") == "EINS\n"
    assert by_cron(command) == (0, "")
    log = nightly.read("state/cron.log")
    assert "[DONE] s1" in log and "[SKIP] s1" in log
    nightly.processor("bad", "sys.exit(3)\n")
    nightly.spec({"processor": "bin/bad.py"})
    assert by_cron(command)[0] == 1 and "[FAIL] s1" in nightly.read("state/cron.log")


@linux
def test_the_other_line_is_silent_on_good_nights_and_tells_all_on_bad_ones(nightly):
    command = moved(cron_commands()[1], nightly)
    shutil.rmtree(str(nightly.path("state")))
    assert by_cron(command) == (0, "")
    nightly.processor("bad", "print('what went wrong'); sys.exit(3)\n")
    nightly.spec({"processor": "bin/bad.py"})
    code, mail = by_cron(command)
    assert code == 1 and "what went wrong" in mail and "[FAIL] s1" in mail
    log = nightly.read("state/cron.log")
    assert "[DONE] s1" in log and "what went wrong" in log


@linux
@pytest.mark.parametrize("code, mailed", [(0, False), (7, False), (129, False), (130, False), (143, False), (1, True), (2, True), (3, True), (4, True), (5, True), (6, True)])
def test_which_exit_codes_are_mailed(nightly, code, mailed):
    """With a runner that only ends so: by the table, 7 is a good night, and a run that was stopped needs nobody."""
    fake = nightly.write("fake.py", "import sys\nprint('the end')\nsys.exit(%d)\n" % code)
    got, mail = by_cron(moved(cron_commands()[1], nightly).replace(str(RUNNER), str(fake)))
    assert (got, mail) == ((code, "the end\n") if mailed else (0, ""))


@linux
def test_runs_that_overlap_end_with_4_and_do_no_harm(nightly):
    nightly.processor("slow", "open(os.path.join(out, 'began'), 'w').close()\nwhile not os.path.exists('go'):\n    time.sleep(0.01)\n")
    nightly.spec({"processor": "bin/slow.py", "lock": {"waitSeconds": 0}})
    first = nightly.start()
    while not nightly.exists("data/s1/began") and first.poll() is None:
        pass
    code, mail = by_cron(moved(cron_commands()[1], nightly))
    nightly.write("go", "")
    first.communicate(timeout=60)
    assert code == 4 and "is held by" in mail and first.returncode == 0


@linux
def test_every_line_that_the_page_calls_parses_as_options(nightly):
    """A renamed option must not survive here."""
    words = re.findall(r"pipeline_runner\.py((?: --[a-z-]+ [^\s;&>]+)*)", PAGE)
    assert len(words) >= 4
    for one in words:
        command_line.parse_command_line(one.split())


@linux
@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_accepts_the_units(tmp_path, nightly):
    """verify wants the programs to be there, and the unit files under their names."""
    names = [name for name, _ in RECIPES if name.startswith("nightly.") and name != "nightly.xml" or name == "nightly-failed.service"]
    assert sorted(names) == ["nightly-failed.service", "nightly.service", "nightly.timer"]
    for name in names:
        (tmp_path / name).write_text(recipes(name)[0].replace("/usr/bin/logger", "/bin/echo").replace("/usr/bin/python3", plain_python(tmp_path)), encoding="utf-8")
    done = subprocess.run(["systemd-analyze", "verify", "--man=no"] + [str(tmp_path / name) for name in names], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60)
    told = [line for line in done.stdout.decode("utf-8", "replace").splitlines() if str(tmp_path) in line or line.startswith("nightly")]
    assert done.returncode == 0 and told == [], done.stdout
    broken = tmp_path / "nightly.service"
    broken.write_text(broken.read_text(encoding="utf-8").replace("[Service]", "[Service]\nNoSuchKey=1"), encoding="utf-8")
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", str(broken)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60)
    assert b"NoSuchKey" in done.stdout          # it looks at all


@linux
def test_what_the_service_starts_runs(nightly):
    unit = dict(line.split("=", 1) for line in recipes("nightly.service")[0].splitlines() if "=" in line and not line.startswith("#"))
    assert unit["SuccessExitStatus"] == "7 143" and unit["Type"] == "oneshot" and unit["WorkingDirectory"] == unit["ReadWritePaths"] == "/srv/nightly"
    done = subprocess.run(["/bin/sh", "-c", moved(unit["ExecStart"], nightly)], cwd=str(nightly.root), env=POOR, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=60)
    assert done.returncode == 0 and b"[DONE] s1" in done.stdout


@linux
@pytest.mark.skipif(shutil.which("logrotate") is None, reason="logrotate is not installed")
def test_logrotate_accepts_its_recipe(tmp_path):
    conf = tmp_path / "nightly"
    conf.write_text(recipes("logrotate")[0].replace("su batch batch", "su root root"), encoding="utf-8")
    done = subprocess.run(["logrotate", "--debug", "--state", str(tmp_path / "state"), str(conf)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60)
    assert done.returncode == 0 and b"error" not in done.stdout, done.stdout


def test_the_job_of_launchd_is_well_formed_and_what_it_starts_runs(nightly):
    job = plistlib.loads(recipes("local.nightly.plist")[0].encode("utf-8"))
    words = job["ProgramArguments"]
    assert words == ["/usr/bin/python3", "src/pipeline_runner.py", "--stop-by", "06:00"] and job["StartCalendarInterval"] == {"Hour": 1, "Minute": 30}
    assert job["StandardOutPath"] == job["StandardErrorPath"] == job["WorkingDirectory"] + "/state/launchd.log" and job["UserName"] == "batch"
    argv = [sys.executable, os.path.join(str(ROOT), words[1])]        # with no clock that might stop it now
    env = dict(POOR, **{name: os.environ[name] for name in ("SYSTEMROOT", "PATHEXT") if name in os.environ})
    done = subprocess.run(argv, cwd=str(nightly.root), env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=60)
    assert done.returncode == 0 and b"[DONE] s1" in done.stdout, done


def test_the_task_of_windows_is_well_formed_and_says_what_the_others_say():
    root = ElementTree.fromstring(recipes("nightly.xml")[0])
    space = re.match(r"\{.*\}", root.tag).group()

    def text_of(name):
        return root.find(".//%s%s" % (space, name)).text
    assert root.tag == space + "Task" and text_of("MultipleInstancesPolicy") == "IgnoreNew" and text_of("StartWhenAvailable") == "true"
    assert text_of("Command") == "cmd.exe" and text_of("WorkingDirectory") == "C:\\nightly"
    inner = re.fullmatch(r'/c "md state 2>nul & py (.+) >> state\\task\.log 2>&1"', text_of("Arguments")).group(1)
    assert inner.replace("\\", "/") == "src/pipeline_runner.py --stop-by 06:00" and text_of("StartBoundary").endswith("T01:30:00")
    assert [one.tag[len(space):] for one in root] == ["RegistrationInfo", "Triggers", "Settings", "Actions"]       # the order counts there
    assert os.path.basename(RUNNER) in inner


def test_every_exit_code_of_the_page_is_one_of_the_runners():
    table = PAGE[PAGE.index("| exit code |"):PAGE.index("`--stop-by 06:00` keeps")]
    told = {int(code) for line in table.splitlines()[2:] if line.startswith("|") for code in re.findall(r"\d+", line.split("|")[1])}
    assert told == {0, 1, 2, 3, 4, 5, 6, 7, 129, 130, 143}
