"""Where report, graph, export, evidence and --openlineage may write: never over what the runner or the pipeline lives by."""
from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys

import pytest

import output_places
import seal_keys
import spec_loading
import stage_locks
from conftest import opened_by, run_without_might, wait_until
from model import UsageError

COMMANDS = [("report",), ("graph",), ("export", "r"), ("evidence", "r")]


@pytest.fixture
def made(project):
    project.write("data/in.txt", "x\n")
    project.spec({"processor": "bin/stage_copy.py", "inputs": ["data/*.txt"]})
    project.ok("--run-id", "r")
    return project


def content(project):
    return {name: project.path(name).read_bytes() for name in ("pipeline.json", "state/ledger.jsonl", "bin/stage_copy.py", "data/in.txt")}


@pytest.mark.parametrize("words", COMMANDS + [("--openlineage",)], ids=lambda words: words[0])
@pytest.mark.parametrize("place, message", [
    ("state/ledger.jsonl", "is in a folder of the runner's own"), ("pipeline.json", "is the pipeline file"), ("bin/new.py", "is in a folder of the runner's own"),
    ("link", "is in a folder of the runner's own"), ("data", "is a folder")])
def test_nothing_is_written_over_what_is_needed(made, words, place, message):
    made.path("link").symlink_to("state/ledger.jsonl")
    before = content(made)
    option = words if words == ("--openlineage",) else words + ("-o",)
    done = made.run(*option, str(made.path(place)))
    assert done.code == 2 and done.err.count("\n") == 1 and message in done.err and "; choose another place with %s FILE" % option[-1] in done.err, done
    assert content(made) == before and not made.exists("bin/new.py") and "[START]" not in done.out and "[SKIP]" not in done.out


@pytest.mark.parametrize("words", [("graph", "-o"), ("--openlineage",)], ids=["replaced", "appended to"])
@pytest.mark.parametrize("place, message", [
    ("tools/p.py", "is a program of stage p"), ("tools/wrap", "is a program of stage p"), ("tools/lib/m.py", "lies where stage p has its modules"),
    ("seal.key", "is a key that seals a ledger"), ("tools/link", "is a program of stage p")])
def test_programs_wherever_they_lie_and_keys_stay_as_they_are(project, words, place, message):
    for path in ("tools/p.py", "tools/wrap", "tools/lib/m.py"):
        project.write(path, "#!/bin/sh\n")
    project.path("tools/wrap").chmod(0o755)
    project.path("tools/link").symlink_to("p.py")
    project.ok("new-key", str(project.path("seal.key")))
    project.spec({"name": "p", "processor": "tools/p.py", "launcher": ["tools/wrap"]})
    before = project.path(place).read_bytes()
    done = project.run(*words, str(project.path(place)))
    assert done.code == 2 and done.err.count("\n") == 1 and "%s; choose another place with %s FILE" % (message, words[-1]) in done.err, done
    assert project.path(place).read_bytes() == before and "[START]" not in done.out


@pytest.mark.skipif(not os.path.exists("/dev/stdout"), reason="a name of the standard output")
def test_a_pipe_behind_a_name_of_the_standard_output_is_named_as_it_was_given(made):
    """Where /dev/stdout leads to is no path."""
    done = made.run("graph", "-o", "/dev/stdout")
    assert done.code == 2 and "/dev/stdout is a device or a pipe, no file" in done.err, done


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[0])
@pytest.mark.parametrize("place", ["data/s1/x", "data/x.txt"])
def test_nothing_is_written_where_it_would_be_an_input_or_an_output(made, words, place):
    done = made.run(*words, "-o", str(made.path(place)))
    assert done.code == 2 and not made.exists(place), done


@pytest.mark.parametrize("platform", ["darwin", "win32"])
@pytest.mark.parametrize("place, message", [("Pipeline.JSON", "is the pipeline file"), ("STATE/x", "a folder of the runner's own"), ("Data/S1/x", "in the output folder of stage s1")])
def test_on_systems_where_case_tells_nothing_another_case_is_no_way_round(made, monkeypatch, place, message, platform):
    spec = spec_loading.load_pipeline(str(made.path("pipeline.json")))
    monkeypatch.setattr(sys, "platform", platform)
    with pytest.raises(UsageError, match=message):
        output_places.checked(os.path.join(os.path.realpath(str(made.root)), place), "-o", str(made.root), str(made.path("pipeline.json")), spec.stages)
    # Nor is the root in another case, as somebody may have typed it.
    above, name = os.path.split(os.path.realpath(str(made.root)))
    with pytest.raises(UsageError, match=message):
        output_places.checked(os.path.join(above, name.upper(), place), "-o", str(made.root), str(made.path("pipeline.json")), spec.stages)
    with pytest.raises(seal_keys.KeyProblem, match="the key lies below the root"):
        seal_keys.check_place(os.path.join(above, name.upper(), "seal.key"), str(made.root))


@pytest.mark.parametrize("field", ["inputs", "forEach", "watch"])
def test_nothing_is_written_where_any_field_of_a_stage_would_take_it_for_an_input(made, field):
    made.write("more/a.txt", "x\n")
    made.spec(dict({"processor": "bin/stage_copy.py", "inputs": ["data/*.txt"]}, **{field: ["more/*.txt"]}))
    done = made.run("report", "-o", str(made.path("more/new.txt")))
    assert done.code == 2 and "would be an input of stage s1 (more/*.txt); choose another place with -o FILE" in done.err and not made.exists("more/new.txt"), done


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[0])
def test_the_name_of_a_folder_that_is_not_there_becomes_no_file(made, words):
    done = made.run(*words, "-o", str(made.path("new")) + "/")
    assert done.code == 2 and "new/ names a folder; choose another place with -o FILE" in done.err and not made.exists("new"), done


@pytest.mark.skipif(sys.platform == "win32", reason="named pipes")
@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[0])
def test_a_device_or_a_pipe_is_not_replaced(made, words):
    os.mkfifo(str(made.path("pipe")))
    done = made.run(*words, "-o", str(made.path("pipe")))
    assert done.code == 2 and "is a device or a pipe, no file" in done.err and stat.S_ISFIFO(os.stat(str(made.path("pipe"))).st_mode), done


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[0])
def test_a_link_is_followed(made, words):
    made.write("elsewhere/file", "old")
    made.path("link").symlink_to("elsewhere/file")
    made.ok(*words, "-o", str(made.path("link")))
    assert made.path("link").is_symlink() and made.path("elsewhere/file").read_bytes() not in (b"old", b"")


def test_events_are_appended_where_it_is_allowed(made):
    made.ok("--openlineage", str(made.path("events.jsonl")))
    assert made.read("events.jsonl").startswith("{")


@pytest.mark.skipif(sys.platform == "win32", reason="named pipes")
def test_events_are_not_appended_to_a_pipe_where_nobody_may_read(made):
    os.mkfifo(str(made.path("pipe")))
    done = made.run("--openlineage", str(made.path("pipe")))
    assert done.code == 2 and "is a device or a pipe, no file; choose another place with --openlineage FILE" in done.err and "[SKIP]" not in done.out, done


@pytest.mark.skipif(not os.path.exists("/dev/null"), reason="a device")
def test_a_device_is_appended_to_and_never_replaced(made):
    made.ok("--openlineage", "/dev/null")
    with pytest.raises(UsageError, match="is a device or a pipe, no file"):
        output_places.checked("/dev/null", "-o", str(made.root), str(made.path("pipeline.json")))


# --- writing there ---------------------------------------------------------------------------------------------------

def hidden(folder):
    return sorted(name for name in os.listdir(str(folder)) if name.startswith("."))


def test_of_two_calls_at_once_both_write_whole_files(tmp_path):
    """The second one begins and ends while the first one writes."""
    target = tmp_path / "ü r.html"

    def first(file):
        file.write(b"first, ")
        output_places.write_whole(str(target), lambda other: other.write(b"second"))
        assert target.read_bytes() == b"second"
        file.write(b"whole")
    output_places.write_whole(str(target), first)
    assert target.read_bytes() == b"first, whole" and hidden(tmp_path) == []


def test_what_a_dead_call_has_left_goes_and_what_a_living_one_or_somebody_else_has_stays(tmp_path):
    target = tmp_path / "r.html"
    for name in (".r.html.0123456789abcdef.tmp", ".r.html.tmp", ".r.html.x.tmp", ".other.html.0123456789abcdef.tmp"):
        (tmp_path / name).write_bytes(b"x" * 100)
    others = [".other.html.0123456789abcdef.tmp", ".r.html.tmp", ".r.html.x.tmp"]

    def write(file):
        assert len(hidden(tmp_path)) == 4 and set(others) < set(hidden(tmp_path)) and not (tmp_path / ".r.html.0123456789abcdef.tmp").exists()
        file.write(b"y")
    output_places.write_whole(str(target), write)
    assert target.read_bytes() == b"y" and hidden(tmp_path) == others


def test_a_file_that_another_call_took_for_a_dead_ones_is_not_used(tmp_path, monkeypatch):
    real, seen = stage_locks.try_kernel_lock, []

    def lock(descriptor):
        seen.append(hidden(tmp_path))
        return real(descriptor) and len(seen) > 1
    monkeypatch.setattr(stage_locks, "try_kernel_lock", lock)
    output_places.write_whole(str(tmp_path / "r.html"), lambda file: file.write(b"whole"))
    assert (tmp_path / "r.html").read_bytes() == b"whole" and len(seen[0]) == len(seen[1]) == 1 and seen[0] != seen[1] and hidden(tmp_path) == []


def test_where_no_lock_is_ever_had_a_file_is_written_all_the_same_and_nothing_is_left_beside_it(tmp_path, monkeypatch):
    asked = []

    def lock(descriptor):
        asked.append(descriptor)
        assert len(asked) < 99
        return False
    monkeypatch.setattr(stage_locks, "try_kernel_lock", lock)
    output_places.write_whole(str(tmp_path / "r.html"), lambda file: file.write(b"whole"))
    assert (tmp_path / "r.html").read_bytes() == b"whole" and hidden(tmp_path) == []


@pytest.mark.skipif(sys.platform == "win32", reason="an open file can be removed")
def test_a_file_that_was_removed_as_a_dead_ones_before_it_was_locked_is_made_anew(tmp_path, monkeypatch):
    real, seen = stage_locks.try_kernel_lock, []

    def lock(descriptor):
        seen.append(hidden(tmp_path))
        for name in seen[-1] if len(seen) == 1 else ():
            os.unlink(str(tmp_path / name))
        return real(descriptor)
    monkeypatch.setattr(stage_locks, "try_kernel_lock", lock)
    output_places.write_whole(str(tmp_path / "r.html"), lambda file: file.write(b"whole"))
    assert (tmp_path / "r.html").read_bytes() == b"whole" and hidden(tmp_path) == [] and len(seen) == 2


def test_on_a_file_system_without_locks_a_file_is_written_and_nothing_is_taken_for_a_dead_ones(tmp_path, monkeypatch):
    asked = []

    def lock(descriptor):
        asked.append(descriptor)
        assert len(asked) < 9
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
    monkeypatch.setattr(stage_locks, "try_kernel_lock", lock)
    (tmp_path / ".r.html.0123456789abcdef.tmp").write_bytes(b"perhaps a living one's")
    output_places.write_whole(str(tmp_path / "r.html"), lambda file: file.write(b"whole"))
    assert (tmp_path / "r.html").read_bytes() == b"whole" and hidden(tmp_path) == [".r.html.0123456789abcdef.tmp"]


def test_what_a_dead_call_has_left_is_known_by_its_very_name(tmp_path):
    for name in (".r (1.html.0123456789abcdef.tmp", ".r (1_html.0123456789abcdef.tmp"):
        (tmp_path / name).write_bytes(b"x")
    output_places.write_whole(str(tmp_path / "r (1.html"), lambda file: file.write(b"y"))
    assert hidden(tmp_path) == [".r (1_html.0123456789abcdef.tmp"]


def test_the_content_is_synced_before_its_name_and_the_name_before_the_return(tmp_path, monkeypatch):
    calls = []
    for name in ("sync_file", "replace", "sync_folder"):
        real = getattr(output_places, name)
        monkeypatch.setattr(output_places, name, lambda *rest, name=name, real=real: (calls.append(name), real(*rest))[1])
    output_places.write_whole(str(tmp_path / "r.html"), lambda file: file.write(b"whole"))
    assert calls == ["sync_file", "replace", "sync_folder"] and (tmp_path / "r.html").read_bytes() == b"whole"


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["disk", "ctrl-c"])
def test_what_cannot_be_written_leaves_the_old_file_alone(tmp_path, error):
    target = tmp_path / "r.html"
    target.write_bytes(b"old")

    def write(file):
        file.write(b"new")
        raise error
    with pytest.raises(type(error)) as caught:
        output_places.write_whole(str(target), write)
    assert target.read_bytes() == b"old" and hidden(tmp_path) == []
    assert not isinstance(error, OSError) or caught.value.filename == str(target)


@pytest.mark.skipif(sys.platform == "win32", reason="modes")
@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[0])
def test_what_is_replaced_keeps_its_mode(made, words):
    made.write("out", "old")
    os.chmod(str(made.path("out")), 0o600)
    made.ok(*words, "-o", str(made.path("out")))
    assert stat.S_IMODE(os.stat(str(made.path("out"))).st_mode) == 0o600 and made.path("out").read_bytes() != b"old"


@pytest.mark.skipif(sys.platform == "win32", reason="rights, signals")
@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[0])
def test_a_place_where_nothing_can_be_written_is_told_of_with_a_remedy(made, words):
    made.path("shut").mkdir()
    os.chmod(str(made.path("shut")), 0o555)
    for folder in ("shut", "missing"):
        done = run_without_might(made, *words, "-o", str(made.path(folder + "/x")))
        assert done.returncode == 5 and "/%s/x: " % folder in done.stdout and done.stdout.endswith("; choose another place with -o FILE\n"), done


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="what a process has open")
def test_sigterm_leaves_no_half_of_an_evidence(made):
    with open(str(made.path("data/huge.txt")), "wb") as file:
        file.truncate(64 << 30)         # a log of that size is read for its digest at length, and takes no room
    record = made.json("state/run_r.json")
    log = made.path(record["stages"][0]["logs"][0]["path"])
    with open(str(log), "wb") as file:
        file.truncate(64 << 30)
    run = made.start("evidence", "r", "-o", str(made.path("out.zip")))
    try:
        wait_until(lambda: any(os.path.basename(path) == log.name for path in opened_by(run.pid)))
        run.terminate()
        out, err = run.communicate(timeout=30)
    finally:
        run.kill()
        run.communicate()
    assert run.returncode == 143 and err == b"interrupted\n" and not made.exists("out.zip") and hidden(made.root) == [], (out, err)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device that is always full")
@pytest.mark.parametrize("words, code", [(("status",), 5), (("export", "r"), 5), (("report", "-o"), 0), (("evidence", "r", "-o"), 0)], ids=lambda words: str(words))
def test_what_cannot_be_printed_is_no_failure_of_what_was_done(made, words, code):
    target = made.path("x")
    with open("/dev/full", "w") as full:
        done = subprocess.run(made.argv(*words, *([str(target)] if words[-1] == "-o" else [])), env=made.environment(), stdin=subprocess.DEVNULL,
                              stdout=full, stderr=subprocess.PIPE, universal_newlines=True, encoding="utf-8", timeout=60)
    assert done.returncode == code and "No space left on device" in done.stderr, done
    assert code or target.stat().st_size and "what was asked for was done, and is told of in part" in done.stderr
