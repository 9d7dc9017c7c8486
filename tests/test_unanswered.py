"""A file system that does not answer when the runner looks at a file: what is not known to be absent must not be taken for absent.

Broken at every look of the real program at what its stages make and remember, one after the other, see test_crash.
"""
from __future__ import annotations

import builtins
import errno
import os
import subprocess
import sys
from unittest import mock

import primitives
import pytest
import task_log

from conftest import KILLED, RUNNER, Project, run_without_might
from test_crash import Case, appending, break_at, no_warm_one_stays, noting, results, script, sweep  # noqa: F401

pytestmark = pytest.mark.skipif(os.name == "nt", reason="breaks the runner by signals and compares inodes")

COPY = "#!/bin/sh\ncp \"$1\" \"$PIPELINE_OUTPUT_DIR/\"\n"
JOIN = "#!/bin/sh\ncat \"$@\" > \"$PIPELINE_OUTPUT_DIR/all.txt\"\n"


def noted(project):
    """The same after an attempt that failed behind its checkpoint."""
    noting(project)
    project.write("data/input/.dies", "")
    assert project.run("--run-id", "before").code == 1
    project.path("data/input/.dies").unlink()
    return []


def damaged(project):
    """Somebody has changed what an appending processor had made."""
    appending(project)
    project.ok("--run-id", "before")
    project.write("data/one/list.txt", "bad\n")
    return []


def lost(project):
    """A sync of what an appending processor had made failed."""
    appending(project)
    project.ok("--run-id", "before")
    os.rename(str(project.path("data/one/.one.done")), str(project.path("data/one/.one.lost")))
    return []


def pruned(project):
    """One of the files of a forEach stage is gone, another has changed; a second stage reads what is made of them."""
    for name in "abc":
        project.write("data/input/%s.txt" % name, name + "\n")
    project.spec({"name": "one", "processor": script(project, "copy.sh", COPY), "forEach": "data/input/*.txt", "outputDir": "data/one", "prune": True},
                 {"name": "two", "processor": script(project, "join.sh", JOIN), "inputs": ["data/one/*.txt"], "outputDir": "data/two"})
    project.ok("--run-id", "before")
    project.path("data/input/a.txt").unlink()
    project.write("data/input/b.txt", "new\n")
    return ["--jobs", "1"]


MADE = ["%s data/%s*" % (call, name) for call in ("stat", "lstat") for name in ("one", "two")] + ["%s state/*progress*" % call for call in ("stat", "lstat")]


@pytest.mark.parametrize("make", [noted, damaged, lost, pruned])
def test_where_nobody_knows_whether_a_file_is_there_nothing_wrong_is_made(make, tmp_path):
    case = Case(make, tmp_path)
    expected = outputs(case.expected)

    def check(project, where, done):
        assert "Traceback" not in done.err and "internal error" not in done.err, done
        assert done.code != 0 or outputs(project) == expected, (where, done)
        again = project.ok("--run-id", "again", *case.arguments)
        assert outputs(project) == expected, (where, done, again)

    sweep(case, lambda at: "EIO", check, slack=1000, looks=True, only=MADE)


def outputs(project):
    return {name: data for name, data in results(project).items() if name.startswith("data/") and not name.endswith((".done", ".lost"))}


def test_a_success_whose_sync_failed_is_not_believed_though_its_marker_could_not_be_renamed(tmp_path):
    case = Case(appending, tmp_path)
    project = case.fresh("broken")
    where, done = break_at(project, "EIO+", 1, [], only=["fsync data/one/*", "replace data/one/.one.lost"])
    assert where.startswith("fsync ") and done.code == 5, (where, done)
    again = project.ok("--run-id", "again")
    assert "[START] one" in again.out and outputs(project) == outputs(case.expected), again


@pytest.mark.parametrize("number, of_windows, is_known", [
    (errno.ENOENT, None, True), (errno.ENOTDIR, None, True), (errno.ENAMETOOLONG, None, True), (errno.ELOOP, None, True), (errno.EIO, None, False), (errno.EACCES, None, False),
    (errno.ENOENT, 2, True), (errno.ENOENT, 3, True), (errno.EINVAL, 123, True), (errno.ENOENT, 206, True), (errno.ENOENT, 53, False), (errno.EINVAL, 23, False), (errno.EINVAL, 64, False)])
def test_which_errors_tell_that_nothing_is_there(monkeypatch, number, of_windows, is_known):
    """On Windows a bad sector and a network that is gone (23, 53, 64) have the same errno as names that nothing can have."""
    error = OSError(number, os.strerror(number), "x")
    if of_windows is not None:
        error.winerror = of_windows
    monkeypatch.setattr(os, "lstat", mock.Mock(side_effect=error))
    if is_known:
        assert primitives.is_there("x") is False
    else:
        with pytest.raises(OSError):
            primitives.is_there("x")


def test_the_mark_of_a_stages_end_counts_only_with_its_record(tmp_path):
    """explain tells what the next run does, and its attempt finds the checkpoint as the processor has left it."""
    project = Case(noting, tmp_path).fresh("broken", Project)
    where, done = break_at(project, "kill", 2, [], only=["open state/.stage_one.json.tmp"])
    progress = project.json("state/progress_one.json")
    assert done.code == KILLED and progress.pop("complete") is progress.pop("finished") is True, (where, done)
    told = project.ok("explain", "one").out
    assert "checkpoint: line 2\n" in told and "would resume from line 2: " in told, told
    assert "[RESUME] one from line 2\n" in project.ok("--run-id", "again").out and project.json("found.json") == progress


@pytest.mark.skipif(sys.platform == "win32", reason="rights")
def test_where_only_a_note_is_at_stake_what_cannot_be_looked_at_ends_no_run(project):
    reader = {"name": "n", "processor": project.processor("c", "open(out + '/z', 'w').close()\n"), "inputs": ["data/old/*.txt"]}
    project.spec({"name": "old", "processor": project.processor("m", "os.mkdir(out + '/a')\nfor name in ('a/f', 'g.txt'):\n    open(out + '/' + name, 'w').close()\n"), "outputDir": "data/old"},
                 reader)
    project.ok()
    project.spec(reader)
    project.path("data/old/a").chmod(0)
    try:
        for words in ([], ["validate"]):
            done = run_without_might(project, *words)
            assert done.returncode == 0 and "stage old is not in the pipeline file any more" in done.stdout, done
    finally:
        project.path("data/old/a").chmod(0o755)


@pytest.mark.skipif(sys.platform == "win32", reason="rights")
def test_a_key_that_may_not_be_looked_at_is_the_one_that_is_named(project, tmp_path):
    project.spec({"processor": "bin/stage_copy.py", "allowNoInputs": True})
    folder = tmp_path / "keys"
    folder.mkdir(mode=0)
    done = run_without_might(project, "--key", str(folder / "key"))
    folder.chmod(0o755)
    assert done.returncode == 2 and "%s: cannot read the key file: Permission denied" % (folder / "key") in done.stdout, done


@pytest.mark.skipif(sys.platform == "win32", reason="rights")
def test_a_key_file_that_may_not_be_read_is_not_to_be_made_anew(project, tmp_path):
    project.spec({"processor": "bin/stage_copy.py", "allowNoInputs": True})
    key = tmp_path / "key"
    for is_there, told in ((False, "No such file or directory; if a ledger is sealed with it, put its copy back, else new-key FILE makes one"), (True, "Permission denied; it must belong to the user who runs this, with mode 600")):
        if is_there:
            project.ok("new-key", str(key))
            key.chmod(0)
        done = run_without_might(project, "--key", str(key))
        assert done.returncode == 2 and done.stdout == "error: %s: cannot read the key file: %s\n" % (key, told), done


@pytest.mark.skipif(sys.platform == "win32", reason="rights")
def test_a_key_in_a_folder_that_may_not_be_written_to_is_to_be_made_in_another(project, tmp_path):
    folder = tmp_path / "keys"
    folder.mkdir(mode=0o555)
    done = run_without_might(project, "new-key", str(folder / "key"))
    assert done.returncode == 5 and done.stdout == "error: %s: Permission denied; choose another place for the key\n" % (folder / "key"), done


# --- what is told

UNREAD = """
import io, os, runpy, sys
sys.path.insert(0, %r)
import primitives
real = primitives.open_file
class Unread(io.RawIOBase):
    def fail(self, *given):
        raise OSError(5, os.strerror(5))
    read = readinto = seek = fileno = __next__ = fail
def open_file(path, buffering=-1):
    file = real(path, buffering)
    return Unread() if path.replace(os.sep, "/").endswith(%r) else file
primitives.open_file = open_file
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("path, arguments", [
    ("state/stage_s1.json", ["plan"]), ("state/stage_s1.json", ["clean"]), ("state/stage_s1.json", ["run"]), ("state/ledger.jsonl", ["run"]),
    ("state/ledger.jsonl", ["gc", "--keep-runs", "1"]), ("in.txt", ["run", "--rehash"])], ids=lambda value: value if isinstance(value, str) else value[0])
def test_a_file_that_can_be_opened_and_not_be_read_is_named(project, path, arguments):
    project.write("in.txt", "x")
    project.spec({"processor": "bin/stage_copy.py", "inputs": ["in.txt"]})
    project.ok()
    done = program(project, UNREAD % (str(RUNNER.parent), "/" + path), *arguments)
    told = [line for line in done.stdout.splitlines() if os.strerror(5) in line]
    assert done.returncode == (1 if path == "in.txt" else 5) and told and all(path in line for line in told) and "own files" not in done.stdout, done.stdout


def test_an_output_that_a_bad_disk_does_not_give_is_not_called_missing(project):
    project.write("in.txt", "x")
    project.spec({"processor": "bin/stage_copy.py", "inputs": ["in.txt"]})
    project.ok()
    os.utime(str(project.path("data/s1/in.txt")), (1, 1))
    done = program(project, UNREAD % (str(RUNNER.parent), "/data/s1/in.txt"), "plan")
    assert done.stdout == "RUN     s1 (output in.txt cannot be read)\n", done
    project.path("data/s1/in.txt").unlink()
    assert project.ok("plan").out == "RUN     s1 (output in.txt missing)\n"


def test_a_module_of_python_that_the_system_does_not_load_is_told_of_in_a_line(project):
    project.spec({"processor": "bin/stage_copy.py", "allowNoInputs": True})
    code = ("import runpy, sys\nclass Finder:\n    @staticmethod\n    def find_spec(name, *more):\n        if name == 'select':\n"
            "            raise ImportError('/lib/select.so: cannot open shared object file', name=name, path='/lib/select.so')\n"
            "sys.modules.pop('select', None)\nsys.meta_path.insert(0, Finder)\nsys.argv = sys.argv[1:]\nrunpy.run_path(sys.argv[0], run_name='__main__')\n")
    done = program(project, code)
    assert done.returncode == 5 and "error: a part of Python cannot be loaded, of which the runner needs a working one: /lib/select.so: cannot open" in done.stdout, done.stdout
    assert "Traceback" not in done.stdout and "internal error" not in done.stdout


def program(project, code, *arguments):
    """Run the program by *code*, which changes something in it first."""
    return subprocess.run([sys.executable, "-c", code, str(RUNNER), *arguments, "--pipeline", str(project.path("pipeline.json"))], stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True, env=project.environment(), cwd=str(project.root), timeout=60)


def test_a_request_to_stop_that_comes_as_a_file_is_opened_comes_through(monkeypatch, tmp_path):
    """Python heeds signals when a call returns; then the file is dropped, and has closed its descriptor."""
    (tmp_path / "file").write_bytes(b"x")

    def opened(*given):
        real(*given)
        raise KeyboardInterrupt

    real = builtins.open
    monkeypatch.setattr(builtins, "open", opened)
    with pytest.raises(KeyboardInterrupt):
        primitives.open_file(str(tmp_path / "file"))


def test_a_task_log_that_cannot_be_looked_at_is_not_taken_for_none(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "lstat", mock.Mock(side_effect=OSError(errno.ESTALE, "stale")))
    monkeypatch.setattr(os, "stat", os.lstat)
    with pytest.raises(OSError, match="stale"):
        task_log.find_outputs(str(tmp_path), "s")
