"""Durable files, groups of durable names, records under state/ and what damages them, the chain of runs."""
from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "bin")]

import durable_files  # noqa: E402
import primitives  # noqa: E402
import process_start  # noqa: E402
import processor_call  # noqa: E402
import processor_kit  # noqa: E402
import spec_loading  # noqa: E402
import stage_markers  # noqa: E402
import stage_records  # noqa: E402
import state_store  # noqa: E402
from durable_files import Commit, write_atomic# noqa: E402
from state_store import StateError, StateStore  # noqa: E402

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="POSIX calls")


def names(folder) -> list:
    return sorted(os.listdir(str(folder)))


def noting(monkeypatch, *calls):
    """Let os.<call> go through, and return the list of (call, path or first argument) in order."""
    seen = []
    for call in calls:
        real = getattr(os, call)

        def wrapped(*args, _call=call, _real=real, **options):
            what = args[0]
            if isinstance(what, int) and _call != "close":
                what = os.readlink("/proc/self/fd/%d" % what) if sys.platform.startswith("linux") else what
            seen.append((_call, what))
            return _real(*args, **options)
        monkeypatch.setattr(os, call, wrapped)
    return seen


def failing(monkeypatch, call, code):
    """Let os.<call> fail with *code*."""
    def fail(*args, **options):
        raise OSError(code, os.strerror(code))
    monkeypatch.setattr(os, call, fail)


# --- one file --------------------------------------------------------------------------------------------------------

def test_write_atomic_replaces_and_leaves_nothing_beside(tmp_path):
    path = tmp_path / "a.json"
    write_atomic(str(path), b"old")
    write_atomic(str(path), b"new")
    assert path.read_bytes() == b"new" and names(tmp_path) == ["a.json"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="names of descriptors")
def test_content_is_durable_before_the_name_and_the_name_before_the_return(tmp_path, monkeypatch):
    seen = noting(monkeypatch, "fsync", "replace")
    write_atomic(str(tmp_path / "a"), b"x")
    temporary = str(tmp_path / ".a.tmp")
    assert seen == [("fsync", temporary), ("replace", temporary), ("fsync", str(tmp_path))]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="names of descriptors")
def test_with_a_commit_the_folder_is_synced_once_for_all_its_names(tmp_path, monkeypatch):
    commit = Commit()
    seen = noting(monkeypatch, "fsync")
    for name in "abc":
        write_atomic(str(tmp_path / name), b"x", commit)
    assert [what for _, what in seen] == [str(tmp_path / (".%s.tmp" % name)) for name in "abc"]
    commit.flush()
    assert [what for _, what in seen[3:]] == [str(tmp_path)]
    commit.flush()
    assert len(seen) == 4


def test_what_means_nothing_after_a_restart_is_not_synced(tmp_path, monkeypatch):
    seen = noting(monkeypatch, "fsync")
    write_atomic(str(tmp_path / "a"), b"x", durable=False)
    assert seen == [] and (tmp_path / "a").read_bytes() == b"x"


@pytest.mark.parametrize("call, code", [("open", errno.EACCES), ("open", errno.EROFS), ("write", errno.ENOSPC), ("fsync", errno.EIO),
                                        ("replace", errno.EACCES)])
def test_a_failed_write_names_the_target_keeps_the_old_and_leaves_no_temporary(tmp_path, monkeypatch, call, code):
    path = tmp_path / "a.json"
    path.write_bytes(b"old")
    with monkeypatch.context() as patch:
        failing(patch, call, code)
        with pytest.raises(OSError) as caught:
            write_atomic(str(path), b"new")
    assert (caught.value.errno, caught.value.filename) == (code, str(path))
    assert path.read_bytes() == b"old" and names(tmp_path) == ["a.json"]


def test_a_failed_fsync_is_not_tried_again(tmp_path, monkeypatch):
    calls = []

    def fsync(descriptor):
        calls.append(descriptor)
        raise OSError(errno.EIO, "I/O error")
    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError):
        write_atomic(str(tmp_path / "a"), b"x")
    assert len(calls) == 1


def test_short_writes_are_completed(tmp_path, monkeypatch):
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, bytes(data[:3])))
    write_atomic(str(tmp_path / "a"), b"0123456789")
    assert (tmp_path / "a").read_bytes() == b"0123456789"


@posix_only
@pytest.mark.parametrize("planted", [".a.tmp", "a"])
def test_a_planted_link_is_replaced_and_its_victim_untouched(tmp_path, planted):
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (tmp_path / planted).symlink_to(victim)
    write_atomic(str(tmp_path / "a"), b"new")
    assert victim.read_bytes() == b"precious"
    assert not (tmp_path / "a").is_symlink() and (tmp_path / "a").read_bytes() == b"new"
    assert names(tmp_path) == ["a", "victim"]


def test_the_temporary_file_of_a_dead_writer_is_replaced(tmp_path):
    (tmp_path / ".a.tmp").write_bytes(b"half a rec")
    write_atomic(str(tmp_path / "a"), b"whole")
    assert names(tmp_path) == ["a"] and (tmp_path / "a").read_bytes() == b"whole"


# A driver kills a forked copy of itself before (odd) or after (even) each call in turn; {body} does the work once.
KILLED_AT_EACH_CALL = """
import os, sys
sys.path.insert(0, {src!r})
import durable_files, model, stage_locks, state_store
left = [0]

def deadly(module, name):
    real = getattr(module, name)
    def call(*args, **options):
        left[0] -= 1
        if left[0] == 0:
            os._exit(9)
        result = real(*args, **options)
        left[0] -= 1
        if left[0] == 0:
            os._exit(9)
        return result
    setattr(module, name, call)

def work(point):
{body}

def check(point):
{check}

point, died = 0, True
while died:
    point += 1
    pid = os.fork()
    if pid == 0:
        try:
            left[0] = point
            for name in {calls!r}.split():
                deadly(os, name)
            work(point)
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(3)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) if hasattr(os, "waitstatus_to_exitcode") else os.waitpid(pid, 0)[1] >> 8
    assert code in (0, 9), code
    died = code == 9
    check(point)
print(point)
"""


def indented(text: str) -> str:
    return "\n".join("    " + line for line in text.strip("\n").split("\n"))


def kill_at_each_call(folder, body, check, calls="open write fsync replace unlink") -> int:
    """Return the number of kills that the driver went through."""
    text = KILLED_AT_EACH_CALL.format(src=str(ROOT / "src"), body=indented(body), check=indented(check), calls=calls)
    done = subprocess.run([sys.executable, "-c", text], cwd=str(folder), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, timeout=300)
    assert done.returncode == 0, done.stderr.decode()
    return int(done.stdout) - 1


@posix_only
def test_a_kill_at_any_call_leaves_the_old_or_the_new_whole(tmp_path):
    (tmp_path / "a").write_bytes(b"0" * 4000)
    kills = kill_at_each_call(
        tmp_path,
        "durable_files.write_atomic('a', b'%d' % (point % 10) * 4000)",
        "data = open('a', 'rb').read()\n"
        "assert len(data) == 4000 and len(set(data)) == 1 and data[:1] in (b'0', b'%d' % (point % 10)), data\n"
        "durable_files.write_atomic('a', b'0' * 4000)\n"
        "assert sorted(os.listdir('.')) == ['a'], os.listdir('.')")
    assert kills >= 10      # open, write, fsync, replace, open and fsync of the folder: before and after each


# --- Windows: other programs hold files for moments ------------------------------------------------------------------

def sharing_violation(code):
    error = PermissionError(errno.EACCES, "in use")
    error.winerror = code
    return error


class Busy:
    """An action that fails *times* times with *error*, then returns "done"."""

    def __init__(self, times, error):
        self.times, self.error, self.calls = times, error, 0

    def __call__(self):
        self.calls += 1
        if self.calls <= self.times:
            raise self.error
        return "done"


@pytest.mark.parametrize("code", [5, 32, 33, None])     # None: of a call of the C library, as os.open() is
def test_a_sharing_violation_is_waited_out_on_windows(code):
    waits, act = [], Busy(4, sharing_violation(code))
    assert primitives.patiently(act, waits.append, windows=True) == "done"
    assert waits == [0.01, 0.02, 0.04, 0.08]


def test_patience_ends_after_some_two_seconds():
    waits, act = [], Busy(10 ** 9, sharing_violation(32))
    with pytest.raises(PermissionError):
        primitives.patiently(act, waits.append, windows=True)
    assert 2.0 <= sum(waits) <= 2.3 and act.calls == len(waits) + 1


@pytest.mark.parametrize("error, windows", [(sharing_violation(32), False), (sharing_violation(1314), True),
                                            (FileNotFoundError(errno.ENOENT, "gone"), True), (PermissionError(errno.EPERM, "no"), True)])
def test_other_errors_and_other_systems_are_not_waited_for(error, windows):
    waits, act = [], Busy(1, error)
    with pytest.raises(type(error)):
        primitives.patiently(act, waits.append, windows=windows)
    assert waits == [] and act.calls == 1


def refusing(monkeypatch, name, is_refused, times=10 ** 9):
    """Let a function of os refuse, as Windows does, while is_refused(its arguments), *times* times at most; returns the calls."""
    real, calls = getattr(os, name), []

    def act(*arguments):
        calls.append(arguments)
        if is_refused(*arguments) and len(calls) <= times:
            error = PermissionError(errno.EACCES, "Permission denied", arguments[0])
            error.winerror = None if name == "open" else 5
            raise error
        return real(*arguments)
    monkeypatch.setattr(os, name, act)
    return calls


def test_a_file_that_is_held_is_opened_in_the_end_and_a_folder_is_not_waited_for(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"x")
    calls = refusing(monkeypatch, "open", lambda *_: True, times=3)
    os.close(primitives.open_descriptor(str(tmp_path / "file"), os.O_RDONLY, windows=True))
    assert len(calls) == 4
    calls = refusing(monkeypatch, "open", lambda *_: True)
    with pytest.raises(IsADirectoryError):
        primitives.open_descriptor(str(tmp_path), os.O_RDONLY, windows=True)
    assert len(calls) == 1


def test_what_a_processor_has_written_is_read_though_a_scanner_holds_it(tmp_path, monkeypatch):
    """Else its attempts to reach the network were told to nobody."""
    (tmp_path / "notes").write_bytes(b"told\n")
    calls = refusing(monkeypatch, "open", lambda *_: True, times=2)
    assert primitives.read_hostile(str(tmp_path / "notes"), 4, windows=True) == b"told" and len(calls) == 3
    assert primitives.read_hostile(str(tmp_path / "none"), 4, windows=True) == primitives.read_hostile(str(tmp_path), 4, windows=True) == b""


def test_what_may_only_be_read_is_replaced_and_removed_on_windows_too(tmp_path, monkeypatch, junctions):
    def is_read_only(*paths):
        return os.path.exists(paths[-1]) and not os.lstat(paths[-1]).st_mode & 0o200
    for name in ("replace", "unlink"):
        refusing(monkeypatch, name, is_read_only)
    (tmp_path / "new").write_bytes(b"new")
    (tmp_path / "old").write_bytes(b"old")
    os.chmod(str(tmp_path / "old"), 0o444)
    primitives.replace(str(tmp_path / "new"), str(tmp_path / "old"), windows=True)
    assert (tmp_path / "old").read_bytes() == b"new"
    os.chmod(str(tmp_path / "old"), 0o444)
    primitives.unlink(str(tmp_path / "old"), windows=True)
    assert os.listdir(str(tmp_path)) == []
    (tmp_path / "made").write_bytes(b"made")
    os.chmod(str(tmp_path / "made"), 0o444)
    asked = []
    monkeypatch.setattr(durable_files, "open_descriptor", lambda path, flags: asked.append((flags & os.O_RDWR, os.stat(path).st_mode & 0o200)))
    durable_files._open_to_sync(str(tmp_path / "made"), windows=True)
    junctions.make(tmp_path, tmp_path / "to" / "j")
    with pytest.raises(OSError) as error:
        durable_files._open_to_sync(str(tmp_path / "to" / "j"), windows=True)
    assert error.value.errno in durable_files.NO_CONTENT          # what it leads to is none of ours
    assert asked == [(os.O_RDWR, 0o200)] and os.stat(str(tmp_path / "made")).st_mode & 0o777 == 0o444


def test_a_new_file_that_is_held_gets_its_name_in_the_end(tmp_path, monkeypatch):
    """A scanner holds it; of the target that is not there yet nothing can be said."""
    (tmp_path / "new").write_bytes(b"new")
    calls = refusing(monkeypatch, "replace", lambda *_: True, times=3)
    primitives.replace(str(tmp_path / "new"), str(tmp_path / "made"), windows=True)
    assert len(calls) == 4 and (tmp_path / "made").read_bytes() == b"new"


@pytest.mark.parametrize("processor, names, is_refused", [
    ("bin/x.bat", ["a&calc&b.txt"], True), ("bin/x.CMD", ["ok.txt", "100%.txt"], True), ("bin/x.bat", ["plain name.txt", "ü.txt"], False), ("C:/x.bat. .", ["a&calc.txt"], True),
    ("bin/x.exe", ["a&b.txt"], False), ("bin/x.py", ["a&b.txt"], False)])
def test_a_batch_file_gets_no_name_that_cmd_exe_would_run(monkeypatch, processor, names, is_refused):
    monkeypatch.setattr(sys, "platform", "linux")
    assert processor_call.cmd_problem(processor, names) == ""
    monkeypatch.setattr(sys, "platform", "win32")
    text = processor_call.cmd_problem(processor, names)
    assert bool(text) == is_refused and (not text or names[-1] in text)


def test_a_folder_in_the_place_of_a_file_is_told_as_that_at_once_on_windows(tmp_path, monkeypatch):
    """It says the same of a file that another program holds."""
    (tmp_path / "new").write_bytes(b"new")
    (tmp_path / "out").mkdir()
    calls = [refusing(monkeypatch, name, lambda *paths: os.path.isdir(paths[-1])) for name in ("replace", "unlink")]
    new, out = str(tmp_path / "new"), str(tmp_path / "out")
    for act in (lambda: primitives.replace(new, out, windows=True), lambda: primitives.unlink(out, windows=True)):
        with pytest.raises(IsADirectoryError):
            act()
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(processor_kit._Problem, match="cannot publish .*: Is a directory$"):
        processor_kit._replace(new, out)
    assert list(map(len, calls)) == [2, 1]


@pytest.mark.parametrize("platform, error, told", [("win32", PermissionError, True), ("win32", IsADirectoryError, False), ("linux", PermissionError, False)])
def test_the_kit_tells_that_another_program_may_hold_an_output_on_windows(monkeypatch, platform, error, told):
    monkeypatch.setattr(sys, "platform", platform)
    text = str(processor_kit._trouble("publish", "x", error(13, "Access denied", "x")))
    assert text.startswith("cannot publish x: Access denied") and ("another program may have it open: close it there" in text) is told


CMD = '"C:\\Windows\\System32\\cmd.exe" /e:ON /v:OFF /d /c "%s"'.replace("\\System32\\", os.sep.join(["", "System32", ""]))


@pytest.mark.parametrize("words, line", [
    (["D:\\x\\p.bat"], CMD % '"D:\\x\\p.bat"'), (["D:\\x\\p.bat.", "a,b"], CMD % '"D:\\x\\p.bat." "a,b"'),
    (["D:\\R&D\\p.CMD", "in/a,b.txt", "plain"], CMD % '"D:\\R&D\\p.CMD" "in/a,b.txt" plain'),
    (["p.bat", "x=1", "a;b", "a b\\", "", "\u00fc"], CMD % '"p.bat" "x=1" "a;b" "a b\\\\" "" \u00fc'),
    (["p.exe", "a,b"], ["p.exe", "a,b"]), (["python", "p.bat", "a,b"], ["python", "p.bat", "a,b"])])
def test_a_batch_file_gets_each_word_as_one(monkeypatch, words, line):
    """cmd.exe splits at , ; = too, and would run what comes after an & in the path."""
    monkeypatch.setattr(sys, "platform", "linux")
    assert process_start.as_started(words) == words
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("SystemRoot", "C:\\Windows")
    assert process_start.as_started(words) == line


def test_below_a_root_with_a_percent_sign_a_batch_file_is_named_from_the_root(monkeypatch):
    """cmd.exe puts a variable's value in the place of its name between two of them, in quotes, too."""
    root, stage = os.path.join(os.sep + "x", "%PATH%"), SimpleNamespace(processor="bin/p.cmd", args=["one"])
    monkeypatch.setattr(sys, "platform", "win32")
    assert processor_call.command_line(root, stage, []) == [os.path.join(".", "bin", "p.cmd"), "one"]
    assert processor_call.command_line(os.sep + "x", stage, []) == [os.path.join(os.sep + "x", "bin", "p.cmd"), "one"]


def test_a_batch_file_gets_no_more_than_cmd_exe_takes(monkeypatch):
    names = ["x" * 90] * 100
    monkeypatch.setattr(sys, "platform", "linux")
    assert processor_call.fits_command_line(names, "bin/p.bat")
    monkeypatch.setattr(sys, "platform", "win32")
    assert processor_call.fits_command_line(names, "bin/p.exe") and not processor_call.fits_command_line(names, "bin/p.BAT")
    assert processor_call.fits_command_line(names[:60], "bin/p.bat")


@pytest.mark.parametrize("path, plain", [
    ("\\\\?\\C:\\data\\x", "C:\\data\\x"), ("\\\\?\\UNC\\host\\share\\x", "\\\\host\\share\\x"), ("C:\\data", "C:\\data"), ("/a/\\?\\b", "/a/\\?\\b")])
def test_the_beginning_of_long_paths_of_windows_is_left_out(path, plain):
    assert spec_loading.plain_path(path) == plain


@pytest.mark.parametrize("first, folder, windows, word", [
    (b"#!/bin/sh\r\n", "/x", False, "carriage return"), (b"#! /bin/nix -e\n", "/x", False, "first line names /bin/nix, which is not there"),
    (b"#!/bin/sh\n", "/x", False, "which cannot be started itself"), (b"\x7fELF", "/x", False, "may be missing"), (b"#!/bin/sh\n", "C:\\" + "x" * 300, True, "too long"), (b"MZ", "C:\\x", True, "")])
def test_why_a_program_that_is_there_may_not_be_found(first, folder, windows, word):
    hint = process_start.missing_hint(first, folder, windows)
    assert word in hint and bool(hint) == bool(word)


@pytest.mark.parametrize("is_terminal, environ, windows, encoding", [
    (False, {}, True, "utf-8"), (True, {}, True, None), (False, {"PYTHONIOENCODING": "cp850"}, True, None), (False, {}, False, None)])
def test_what_windows_redirects_is_utf_8(is_terminal, environ, windows, encoding):
    assert primitives.stream_settings(is_terminal, environ, windows).get("encoding") == encoding


# --- groups of durable names -----------------------------------------------------------------------------------------

def test_a_commit_is_due_by_number_or_by_age():
    now = [100.0]
    commit = Commit(lambda: now[0])
    for number in range(durable_files.GROUP_FILES - 1):
        commit.files["f%d" % number] = None
    assert not commit.is_due()
    commit.folders["d"] = None
    assert commit.is_due()
    young = Commit(lambda: now[0])
    assert not young.is_due()
    now[0] += durable_files.FLUSH_S
    assert young.is_due()
    young.flush()
    assert not young.is_due()


def test_a_failed_flush_still_holds_what_it_could_not_sync(tmp_path, monkeypatch):
    (tmp_path / "f").write_bytes(b"x")
    commit = Commit()
    commit.files[str(tmp_path / "f")] = None
    commit.folders[str(tmp_path)] = None
    with monkeypatch.context() as patch:
        failing(patch, "fsync", errno.EIO)
        with pytest.raises(OSError) as caught:
            commit.flush()
    assert caught.value.filename == str(tmp_path / "f")
    assert list(commit.files) == [str(tmp_path / "f")] and list(commit.folders) == [str(tmp_path)]
    commit.flush()
    assert not commit.files and not commit.folders


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="names of descriptors")
def test_files_are_synced_before_folders_and_vanished_files_are_passed_over(tmp_path, monkeypatch):
    (tmp_path / "f").write_bytes(b"x")
    commit = Commit()
    commit.folders[str(tmp_path)] = None
    commit.files[str(tmp_path / "gone")] = None
    commit.files[str(tmp_path / "f")] = None
    seen = noting(monkeypatch, "fsync")
    commit.flush()
    assert [what for _, what in seen] == [str(tmp_path / "f"), str(tmp_path)]


def test_very_many_files_are_synced_by_one_call(tmp_path, monkeypatch):
    commit = Commit()
    for number in range(durable_files.MANY_FILES + 1):
        path = tmp_path / ("f%d" % number)
        path.write_bytes(b"")
        commit.files[str(path)] = None
    syncs = []
    monkeypatch.setattr(durable_files, "sync_file_systems", lambda folders: syncs.append(sorted(folders)) or True)
    seen = noting(monkeypatch, "fsync")
    commit.flush()
    assert syncs == [[str(tmp_path)]] and seen == [] and not commit.files


def test_where_there_is_no_such_call_each_is_synced(tmp_path, monkeypatch):
    commit = Commit()
    for number in range(durable_files.MANY_FILES + 1):
        commit.files[str(tmp_path / str(number))] = None
        (tmp_path / str(number)).write_bytes(b"")
    monkeypatch.setattr(durable_files, "sync_file_systems", lambda folders: False)
    seen = noting(monkeypatch, "fsync")
    commit.flush()
    assert len(seen) == durable_files.MANY_FILES + 1 and not commit.files


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a call of Linux")
def test_the_call_for_a_whole_file_system_is_there_and_passes_over_what_is_gone(tmp_path):
    assert durable_files.sync_file_systems([str(tmp_path), str(tmp_path / "gone")]) is True


@posix_only
def test_a_file_system_that_cannot_sync_folders_is_accepted_other_faults_are_not(tmp_path, monkeypatch):
    for number in (errno.EINVAL, errno.ENOTSUP):
        failing(monkeypatch, "fsync", number)
        durable_files.sync_folder(str(tmp_path))
    failing(monkeypatch, "fsync", errno.EIO)
    with pytest.raises(OSError) as caught:
        durable_files.sync_folder(str(tmp_path))
    assert caught.value.filename == str(tmp_path)


def test_make_folder_notes_each_parent_that_got_a_name(tmp_path):
    commit = Commit()
    durable_files.make_folder(str(tmp_path / "a" / "b"), commit)
    assert (tmp_path / "a" / "b").is_dir()
    assert set(commit.folders) == {str(tmp_path), str(tmp_path / "a")}
    again = Commit()
    durable_files.make_folder(str(tmp_path / "a" / "b"), again)
    assert not again.folders


def test_make_folder_says_what_is_in_the_way(tmp_path):
    (tmp_path / "a").write_bytes(b"")
    with pytest.raises(NotADirectoryError) as caught:
        durable_files.make_folder(str(tmp_path / "a"), Commit())
    assert caught.value.filename == str(tmp_path / "a")


def test_remove_durably_tells_whether_there_was_something(tmp_path):
    commit = Commit()
    assert not durable_files.remove_durably(str(tmp_path / "a"), commit) and not commit.removed
    (tmp_path / "a").write_bytes(b"")
    assert durable_files.remove_durably(str(tmp_path / "a"), commit)
    assert list(commit.removed) == [str(tmp_path)] and names(tmp_path) == []


# --- texts -----------------------------------------------------------------------------------------------------------

def test_records_are_readable_utf_8_with_a_last_newline():
    assert state_store.record_json({"a": "ä"}) == '{\n "a": "ä"\n}\n'.encode()


OTHER_JSON = """
import sys, types
sys.path.insert(0, %r)
def asks_for_more(*arguments):
    %s
import json, _json        # the module has taken its own by now
for name in %r:
    setattr(_json, name, asks_for_more)
import primitives
value = {"b": [1, {"x": "\u00e4\\n"}], "a": None}
assert primitives.loads('{"b": [1, {"x": "\u00e4\\\\n"}], "a": null}') == value
assert primitives.compact(value) == '{"b":[1,{"x":"\u00e4\\\\n"}],"a":null}' and primitives.compact(value, True).startswith('{"a":null')
assert primitives.pretty(value) == '{\\n "b": [\\n  1,\\n  {\\n   "x": "\u00e4\\\\n"\\n  }\\n ],\\n "a": null\\n}'
for bad, error in ((float("nan"), ValueError), (object(), TypeError)):
    try:
        primitives.compact([bad])
    except error:
        continue
    raise AssertionError(bad)
"""


@pytest.mark.parametrize("names", [["make_scanner"], ["make_encoder"], ["make_scanner", "make_encoder"]], ids=str)
@pytest.mark.parametrize("how", ["raise AttributeError('array_hook')", "raise TypeError('one argument more')"])
def test_an_interpreter_whose_own_json_wants_something_else_is_served(names, how):
    """Python 3.15 asks for a hook that no earlier version knew."""
    done = subprocess.run([sys.executable, "-c", OTHER_JSON % (str(Path(primitives.__file__).parent), how, names)], stderr=subprocess.PIPE, timeout=60)
    assert done.returncode == 0, done.stderr.decode("utf-8")


def test_utc_text():
    assert state_store.utc_text(0) == "1970-01-01T00:00:00.000Z"
    assert state_store.utc_text(951782400.25) == "2000-02-29T00:00:00.250Z"


@pytest.mark.skipif(sys.platform == "win32" or not os.path.exists("/proc/sys/kernel/random/boot_id"), reason="no boot id here")
def test_the_boot_id_is_the_kernels():
    assert state_store.boot_id() == Path("/proc/sys/kernel/random/boot_id").read_text().strip()


@pytest.mark.skipif(sys.platform != "win32", reason="asks Windows")
def test_windows_tells_how_long_it_has_been_on():
    """Not a file of that name, which anybody may have written there."""
    kind, _, minute = state_store.boot_id().partition("-")
    later = state_store.boot_id().partition("-")[2]
    assert kind == "start" and 0 < int(minute) * 60 <= state_store.time.time() and abs(int(later) - int(minute)) <= 1


@pytest.mark.parametrize("failed, told", [(0, "5F0E-8D"), (-1, ""), (AttributeError, ""), (OSError, "")])
def test_macos_tells_its_boot_id(monkeypatch, failed, told):
    """Not its monotonic clock, which stands still while the machine sleeps."""
    import ctypes

    class Library:
        def __init__(self, name):
            if failed is OSError:
                raise OSError("no library")
            if failed is not AttributeError:
                self.sysctlbyname = self.tell

        def tell(self, name, text, size, new, new_size):
            assert name == b"kern.bootsessionuuid" and new is None and not new_size.value
            text.value = b"5F0E-8D"
            return failed

    def no_proc(*args, **options):
        raise FileNotFoundError(errno.ENOENT, "no /proc")
    monkeypatch.setattr(ctypes, "CDLL", Library)
    monkeypatch.setattr(state_store, "open", no_proc, raising=False)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert state_store.boot_id() == told or not told and state_store.boot_id().startswith("start-")


def test_without_the_kernels_boot_id_the_time_of_the_start_stands_for_it(monkeypatch):
    def no_proc(*args, **options):
        raise FileNotFoundError(errno.ENOENT, "no /proc")
    now = [1_000_000.0, 4_000.0]
    monkeypatch.setattr(state_store, "open", no_proc, raising=False)
    monkeypatch.setattr(state_store.time, "time", lambda: now[0])
    monkeypatch.setattr(state_store.time, "monotonic", lambda: now[1])
    monkeypatch.setattr(state_store, "_mac_boot_id", lambda: "")
    monkeypatch.setattr(sys, "platform", "darwin")
    first = state_store.boot_id()
    now[:] = [1_005_000.0, 9_000.0]
    assert state_store.boot_id() == first == "start-%d" % (996_000 // 60)
    now[1] = 10.0       # started again since
    assert state_store.boot_id() != first


@posix_only
def test_macos_asks_the_drive_and_falls_back_to_fsync(tmp_path, monkeypatch):
    import fcntl
    asked = []
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", lambda descriptor, command: asked.append(command))
    seen = []
    monkeypatch.setattr(os, "fsync", seen.append)
    durable_files.sync_file(7)
    assert (asked, seen) == ([51], [])

    def refuse(descriptor, command):
        raise OSError(errno.ENOTTY, "not here")
    monkeypatch.setattr(fcntl, "fcntl", refuse)
    durable_files.sync_file(7)
    assert seen == [7]


@posix_only
@pytest.mark.parametrize("number", [0, errno.ENOTSUP])
def test_macos_asks_the_drive_for_names_too_as_far_as_a_folder_can_be_synced(number, tmp_path, monkeypatch):
    import fcntl
    asked = []

    def full(descriptor, command):
        asked.append((command, os.fstat(descriptor).st_ino))
        if number:
            raise OSError(number, "not here")
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", full)
    failing(monkeypatch, "fsync", errno.ENOTSUP)
    monkeypatch.setenv("PIPELINE_SYNC", "")
    for sync in (durable_files.sync_folder, processor_kit._sync_folder):
        sync(str(tmp_path))
    assert asked == [(51, os.stat(str(tmp_path)).st_ino)] * 2


@posix_only
def test_of_a_group_macos_asks_each_drive_once_after_all_is_with_it(tmp_path, monkeypatch):
    """Asked for one file, a drive writes all that it holds, and takes milliseconds for it."""
    import fcntl
    done, commit = [], Commit()
    inodes = {}
    for name in ("a", "b", "c", "gone"):
        (tmp_path / name).write_bytes(b"x")
        commit.files[str(tmp_path / name)] = None
        inodes[os.stat(str(tmp_path / name)).st_ino] = name
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        commit.folders[str(tmp_path / name)] = None
        inodes[os.stat(str(tmp_path / name)).st_ino] = name
    (tmp_path / "gone").unlink()
    commit.removed[str(tmp_path / "one")] = None
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", lambda descriptor, command: done.append("drive"))
    monkeypatch.setattr(os, "fsync", lambda descriptor: done.append(inodes[os.fstat(descriptor).st_ino]))
    before = len(os.listdir("/dev/fd"))
    commit.flush()
    assert done == ["drive", "b", "c", "drive", "two", "drive"] and len(os.listdir("/dev/fd")) == before
    assert not (commit.files or commit.folders or commit.removed)


@posix_only
def test_of_a_group_macos_names_the_file_that_cannot_be_synced(tmp_path, monkeypatch):
    commit = Commit()
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"x")
        commit.files[str(tmp_path / name)] = None
    monkeypatch.setattr(sys, "platform", "darwin")
    failing(monkeypatch, "fsync", errno.EIO)
    with pytest.raises(OSError) as caught:
        commit.flush()
    assert (caught.value.errno, caught.value.filename) == (errno.EIO, str(tmp_path / "b")) and commit.files


@posix_only
@pytest.mark.parametrize("platform", ["linux", "darwin"])
@pytest.mark.parametrize("kind", ["pipe", "socket", "link to a pipe"])
def test_what_has_come_in_the_place_of_an_output_and_has_no_content_is_not_synced(tmp_path, monkeypatch, platform, kind):
    """To open a pipe may take for ever, and to sync it is an error."""
    import fcntl
    output, pipe, synced, commit = tmp_path / "output", tmp_path / "pipe", [], Commit()
    os.mkfifo(str(pipe))
    end = os.open(str(pipe), os.O_RDWR)         # who opens it as if it were a file need not wait
    if kind == "socket":
        os.mknod(str(output), stat.S_IFSOCK | 0o600)
    elif kind == "pipe":
        os.rename(str(pipe), str(output))
    else:
        output.symlink_to("pipe")
    (tmp_path / "b").write_bytes(b"x")
    commit.files.update({str(output): None, str(tmp_path / "b"): None})
    real, before = os.fsync, len(os.listdir("/dev/fd"))
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", lambda descriptor, command: synced.append(os.fstat(descriptor).st_ino) or real(descriptor))
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_ino) or real(descriptor))
    commit.flush()
    assert set(synced) == {os.stat(str(tmp_path / "b")).st_ino} and not commit.files and len(os.listdir("/dev/fd")) == before
    os.close(end)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks the kernel of Linux")
@pytest.mark.parametrize("by", ["file", "pipe"])
def test_a_folder_that_is_something_else_by_now_is_no_reason_not_to_sync_the_others(tmp_path, monkeypatch, by):
    """Of many files all that is on the file system is synced; of few, each."""
    folder, other = tmp_path / "folder", tmp_path / "other"
    other.mkdir()
    folder.write_bytes(b"") if by == "file" else os.mkfifo(str(folder))
    end = os.open(str(folder), os.O_RDWR)
    for many in (1, durable_files.MANY_FILES):
        monkeypatch.setattr(durable_files, "MANY_FILES", many)
        commit = Commit()
        for path in (folder / "x", folder, other):
            commit.folders[str(path)] = commit.removed[str(path)] = None
        commit.flush()
        assert not commit.folders and not commit.removed
    os.close(end)


# --- records under state/ --------------------------------------------------------------------------------------------

@pytest.fixture
def store(tmp_path) -> StateStore:
    made = StateStore(str(tmp_path), now=lambda: 0.0)
    made.prepare()
    return made


def test_a_record_comes_back_with_its_schema(store):
    store.write("x.json", {"a": 1})
    assert store.read("x.json") == {"schema": 1, "a": 1}
    assert store.read("y.json") is None


DAMAGED = [b"", b"{", b"\xff\xfe", b"[]", b"null", b'"x"', b"{}", b'{"schema": "1"}', b'{"schema": true}', b'{"schema": null}',
           b'{"schema": 1', b"[" * 100_000, b'{"schema": 1}\0']


def test_a_folder_in_the_place_of_a_temporary_file_is_named_itself(tmp_path):
    """Its remedy, to move the folder away, said of the target would cost the record."""
    (tmp_path / ".r.json.tmp").mkdir()
    (tmp_path / "r.json").write_bytes(b"old")
    with pytest.raises(IsADirectoryError) as caught:
        durable_files.write_atomic(str(tmp_path / "r.json"), b"new")
    assert caught.value.filename == str(tmp_path / ".r.json.tmp") and caught.value.errno == errno.EISDIR
    assert (tmp_path / "r.json").read_bytes() == b"old"


@pytest.mark.parametrize("data", DAMAGED, ids=[repr(data[:16]) for data in DAMAGED])
def test_a_damaged_record_is_refused_and_set_aside_unchanged(store, data):
    path = Path(store.path("x.json"))
    path.write_bytes(data)
    with pytest.raises(StateError) as caught:
        store.read("x.json")
    assert "state/x.json" in str(caught.value) and "state/x.json.corrupt-19700101T000000Z" in str(caught.value)
    assert not path.exists() and Path(store.path("x.json.corrupt-19700101T000000Z")).read_bytes() == data
    assert store.read("x.json") is None


def test_what_was_set_aside_before_is_never_overwritten(store):
    for number in range(3):
        Path(store.path("x.json")).write_bytes(b"%d" % number)
        with pytest.raises(StateError):
            store.read("x.json")
    aside = "x.json.corrupt-19700101T000000Z"
    assert {name: Path(store.path(name)).read_bytes() for name in names(store.folder)} == {aside: b"0", aside + "-2": b"1", aside + "-3": b"2"}


def test_the_record_of_a_newer_runner_is_refused_and_left_where_it_is(store):
    Path(store.path("x.json")).write_bytes(b'{"schema": 2}')
    with pytest.raises(StateError, match="newer runner"):
        store.read("x.json")
    assert names(store.folder) == ["x.json"]


def test_a_plan_moves_nothing(tmp_path):
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "x.json").write_bytes(b"{")
    reader = StateStore(str(tmp_path), writable=False)
    with pytest.raises(StateError, match="a run would set it aside"):
        reader.read("x.json")
    assert reader.secret() == b"" and names(tmp_path / "state") == ["x.json"]


GOOD = {"stage": "s", "lastStatus": "ok", "idempotencyKey": "k", "keyParts": {}, "outputs": [{"path": "a/b", "bytes": 1, "sha256": "00"}]}


@pytest.mark.parametrize("change, said", [
    ({"stage": "t"}, "it names the stage"), ({"stage": None}, "it names the stage"),
    ({"lastStatus": "fine"}, "lastStatus"), ({"lastStatus": None}, "lastStatus"), ({"lastStatus": ["ok"]}, "lastStatus"),
    ({"idempotencyKey": 1}, "key"), ({"keyParts": []}, "key"), ({"outputs": None}, "outputs"), ({"outputs": {}}, "outputs"),
    ({"outputs": ["a"]}, "outputs"), ({"outputs": [{"path": "a"}]}, "outputs"),
    ({"outputs": [{"path": "../x", "bytes": 1, "sha256": "0"}]}, "outputs"),
    ({"outputs": [{"path": "a/../../x", "bytes": 1, "sha256": "0"}]}, "outputs"),
    ({"outputs": [{"path": "/etc/passwd", "bytes": 1, "sha256": "0"}]}, "outputs"),
    ({"outputs": [{"path": "a", "bytes": True, "sha256": "0"}]}, "outputs"),
    ({"outputs": [{"path": "a", "bytes": "1", "sha256": "0"}]}, "outputs"),
    ({"outputs": [{"path": "a", "bytes": 1, "sha256": None}]}, "outputs")])
def test_a_stage_record_that_cannot_be_worked_with_is_set_aside(store, change, said):
    store.write("stage_s.json", dict(GOOD, **change))
    with pytest.raises(StateError, match=said):
        store.stage("s")
    assert names(store.folder) == ["stage_s.json.corrupt-19700101T000000Z"]


@pytest.mark.parametrize("path, elsewhere, windows", [
    ("/x", True, True), ("../x", True, True), ("a/..", True, True), ("..\\..\\x", False, True), ("\\x", False, True), ("\\\\host\\x", False, True), ("C:\\x", False, True),
    ("C:x", False, True), ("a/b:x", False, True), ("a/b", False, False), ("..a/b..", False, False)])
def test_a_stage_record_leads_nowhere_out_of_its_folder(monkeypatch, path, elsewhere, windows):
    """A backslash and a colon are signs of names where they part or open nothing."""
    for platform, is_refused in (("linux", elsewhere), ("darwin", elsewhere), ("win32", windows)):
        monkeypatch.setattr(sys, "platform", platform)
        outputs = [{"path": path, "bytes": 1, "sha256": "0"}]
        assert bool(stage_records.record_problem(dict(GOOD, outputs=outputs), "s")) == is_refused
        assert bool(stage_records.record_problem(dict(GOOD, previous=outputs), "s")) == is_refused
        assert bool(stage_records.record_problem(dict(GOOD, keyParts={"outputDir": path}), "s")) == is_refused


def test_a_good_stage_record_is_returned(store):
    store.write("stage_s.json", GOOD)
    assert store.stage("s") == dict(GOOD, schema=1) and store.stage("t") is None


OF_GOOD = {name: value for name, value in GOOD.items() if name != "idempotencyKey"}


def test_what_others_ask_of_a_stage_record_is_as_its_file_says_now_whatever_the_stamp(store):
    path = os.path.join(store.folder, "stage_s.json")
    store.write_stage("s", dict(GOOD, keyParts={"outputDir": "d", "inputs": [["a", "0"]]}, baseline={"b": [1]}))
    stamp = os.stat(path)
    assert store.maker("t") is None
    assert store.maker("s") == store.maker("s") == dict(OF_GOOD, keyParts={"outputDir": "d"})
    with open(path, "r+b") as file:     # in place, as long as before, and as old
        data = file.read()
        file.seek(0)
        file.write(data.replace(b'"00"', b'"11"'))
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    now = os.stat(path)
    assert (now.st_size, now.st_mtime_ns, now.st_ino) == (stamp.st_size, stamp.st_mtime_ns, stamp.st_ino)
    assert store.maker("s")["outputs"][0]["sha256"] == "11"


def test_what_others_ask_of_a_record_that_the_power_took_is_what_was_kept_now(store):
    path = os.path.join(store.folder, "stage_s.json")
    for status in ("running", "failed"):
        store.write_stage("s", dict(GOOD, lastStatus=status))
        os.replace(path, os.path.join(store.folder, ".stage_s.json.before"))
        with open(path, "wb") as file:
            file.write(bytes(9))
        assert store.maker("s") == dict(OF_GOOD, lastStatus=status) and store.stage("s")["lastStatus"] == status
    os.remove(os.path.join(store.folder, ".stage_s.json.before"))
    with pytest.raises(StateError, match="not JSON"):
        store.maker("s")


def test_the_secret_is_made_once(store):
    secret = store.secret()
    assert len(secret) == 32 and store.secret() == secret and StateStore(store.root, writable=False).secret() == secret


@posix_only
def test_the_secret_is_readable_by_its_owner_alone_at_every_moment(store, monkeypatch):
    modes = []
    real = os.replace

    def replace(source, target):
        modes.append(stat.S_IMODE(os.stat(source).st_mode))
        real(source, target)
    monkeypatch.setattr(os, "replace", replace)
    old = os.umask(0)
    try:
        store.secret()
    finally:
        os.umask(old)
    assert modes == [0o600] and stat.S_IMODE(os.stat(store.path("env.key")).st_mode) == 0o600


def test_damaged_state_stops_the_run_before_any_work_and_the_next_run_works(project):
    project.write("in.txt", "x\n")
    project.spec({"processor": project.processor("p", "open(out + '/o', 'a').write('x')"), "inputs": ["in.txt"]},
                 {"processor": "bin/p.py", "inputs": ["in.txt"]})
    project.write("state/stage_s2.json", "{")
    done = project.run("--run-id", "r")
    assert done.code == 5 and "state/stage_s2.json" in done.err and "set aside" in done.err, done
    assert "[START]" not in done.out and not project.exists("data/s1/o")
    project.ok("--run-id", "r2")
    assert project.read("data/s1/o") == "x" and project.read("data/s2/o") == "x"


MARKERS = [(None, None), (b"", None), (bytes(9), None), (b"{", None), (b'{"key": "ab', None), (b"[]", ""), (b"{}", ""), (b'{"key": 1}', ""), (b'{"key": "abc"}', "abc"), (b"\xff", None), (b"[" * 60000, None)]


@pytest.mark.parametrize("data, key", MARKERS)
def test_read_marker(tmp_path, data, key):
    path = tmp_path / ".s.done"
    if data is not None:
        path.write_bytes(data)
    assert stage_markers.read_marker(str(path)) == key


def test_a_folder_in_a_markers_place_is_not_a_marker(tmp_path):
    (tmp_path / ".s.done").mkdir()
    assert stage_markers.read_marker(str(tmp_path / ".s.done")) == ""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a call of Linux")
@pytest.mark.parametrize("release, used", [("5.7.19-generic", False), ("4.18.0-553.el8", False), ("5.8.0", True), ("6.1.0-13-amd64", True), ("odd", False)])
def test_all_is_synced_at_once_only_where_the_kernel_tells_of_errors(tmp_path, monkeypatch, release, used):
    monkeypatch.setattr(os, "uname", lambda: type("Names", (), {"release": release}))
    assert durable_files.sync_file_systems([str(tmp_path)]) is used
