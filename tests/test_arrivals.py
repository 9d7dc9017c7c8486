"""Inputs that are still arriving: what counts as settled, and what a run does with a stage that waits."""
from __future__ import annotations

import ctypes
import os
import sys
import time
import types

import arrivals
import pytest

SECOND = 10 ** 9


def age(path, seconds, now=None):
    """Make a file look as if it had been changed so many seconds ago."""
    moment = (time.time() if now is None else now) - seconds
    os.utime(str(path), (moment, moment))


def clock_at(path, seconds):
    """Return a clock that stands so many seconds after the last change of a file's content."""
    stat = os.stat(str(path))
    return lambda device: stat.st_mtime_ns + int(seconds * SECOND)


@pytest.mark.parametrize("seconds, settle_s, waits", [(0, 30, True), (29.9, 30, True), (30, 30, False), (31, 30, False), (0.4, 0.5, True), (0.5, 0.5, False), (5, 0, False)])
def test_a_file_is_settled_after_so_many_seconds(tmp_path, seconds, settle_s, waits):
    (tmp_path / "a").write_bytes(b"x")
    found = arrivals.unsettled(str(tmp_path), ["a"], settle_s, clock_at(tmp_path / "a", seconds))
    assert found == ([("a", "a changed %d s ago" % seconds)] if waits else [])


def test_a_time_in_the_future_says_nothing_and_that_of_the_entry_is_asked(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"x")
    age(path, -10 ** 6)
    written = os.stat(str(path)).st_ctime_ns
    assert arrivals.unsettled(str(tmp_path), ["a"], 30, lambda device: written + 31 * SECOND) == []
    assert arrivals.unsettled(str(tmp_path), ["a"], 30, lambda device: written + 29 * SECOND) == [("a", "a changed 29 s ago")]
    (_, why), = arrivals.unsettled(str(tmp_path), ["a"], 30, lambda device: written - 5 * SECOND)
    assert "in the future" in why


def test_files_that_are_gone_are_left_to_whoever_reads_them_and_each_device_is_asked_once(tmp_path):
    for name in "ab":
        (tmp_path / name).write_bytes(b"x")
    asked = []
    found = arrivals.unsettled(str(tmp_path), ["b", "gone", "a"], 30, lambda device: asked.append(device) or os.stat(str(tmp_path / "a")).st_mtime_ns)
    assert [path for path, _ in found] == ["b", "a"] and len(asked) == 1


@pytest.mark.parametrize("handle, error, waits", [(-1, 32, True), (-1, 5, False), (77, 32, False)])
def test_on_windows_nothing_is_settled_that_another_program_has_open_for_writing(tmp_path, monkeypatch, handle, error, waits):
    """There the time of modification may be old until the file is closed."""
    calls = []

    class Api:
        def CreateFileW(self, path, access, share, security, disposition, flags, template):
            calls.append((path, access, share, security, disposition, flags, template))
            return ctypes.c_void_p(handle).value

        def CloseHandle(self, handle):
            calls.append(handle.value)

        def last_error(self):
            return error
    path = tmp_path / "a"
    path.write_bytes(b"half")
    monkeypatch.setattr(arrivals, "_windows_api", Api)
    monkeypatch.setattr(sys, "platform", "win32")
    later = clock_at(path, 99)
    assert arrivals.unsettled(str(tmp_path), ["a"], 30, later) == ([("a", "a: another program is still writing it")] if waits else [])
    assert calls == [(str(path), 0x80000000, 5, None, 3, 0, None)] + [77] * (handle == 77)
    assert arrivals.unsettled(str(tmp_path), ["a"], 0, later) == [] and len(calls) <= 2


def test_what_a_stage_has_recorded_is_not_waited_for_while_it_is_as_long(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "x").write_bytes(b"12345")
    stage, now = types.SimpleNamespace(settle_s=30), clock_at(tmp_path / "data" / "x", 3)
    def maker(size, status="ok"):
        return [("one", "data", {"lastStatus": status, "outputs": [{"path": "x", "bytes": size}]})]
    assert arrivals.still_arriving(str(tmp_path), stage, ["data/x"], maker(5), now) == []
    waits = [("data/x", "data/x changed 3 s ago")]
    assert arrivals.still_arriving(str(tmp_path), stage, ["data/x"], maker(4), now) == waits
    assert arrivals.still_arriving(str(tmp_path), stage, ["data/x"], maker(5, "failed"), now) == waits
    assert arrivals.waiting_text(stage, waits) == "inputs not settled: data/x changed 3 s ago; settleSec 30"


def test_of_many_files_some_are_named(tmp_path):
    names = ["f%d" % number for number in range(9)]
    for name in names:
        (tmp_path / name).write_bytes(b"")
    stage = types.SimpleNamespace(settle_s=600)
    text = arrivals.waiting_text(stage, arrivals.still_arriving(str(tmp_path), stage, names, [], lambda device: time.time_ns()))
    assert "f2 changed" in text and "f3" not in text and text.endswith("; and 6 more; settleSec 600")


# --- with the real program -------------------------------------------------------------------------------------------

def four_stages(project):
    """wait: its input arrives; after: reads what it makes; further: needs that; apart: has nothing to do with them."""
    for name in ("in.txt", "other.txt"):
        age(project.write("data/" + name, "x\n"), 10 ** 6)
    copy = {"processor": "bin/stage_copy.py"}
    project.spec(dict(copy, name="wait", inputs=["data/in.txt"], outputDir="data/wait", settleSec=3600),
                 dict(copy, name="after", inputs=["data/wait/*.txt"], outputDir="data/after"),
                 dict(copy, name="apart", inputs=["data/other.txt"], outputDir="data/apart", settleSec=3600),
                 dict(copy, name="further", inputs=["data/other.txt"], outputDir="data/further", needs=["after"]))


def test_a_stage_waits_with_those_that_it_feeds_and_the_others_run(project):
    four_stages(project)
    age(project.path("data/in.txt"), 3)
    plan = project.ok("plan").out.splitlines()
    assert plan[0].startswith("WAITING wait (inputs not settled: data/in.txt changed ") and plan[0].endswith("settleSec 3600)")
    assert plan[1] == "PENDING after (waits for wait)"
    done = project.run("--run-id", "r")
    assert done.code == 7 and "[WAIT] wait: inputs not settled: data/in.txt changed " in done.out and "1 ok, 0 skipped, 0 failed, 1 waiting" in done.out, done
    record = project.json("state/run_r.json")
    assert record["state"] == "waiting" and [(one["stage"], one["status"]) for one in record["stages"]] == [
        ("wait", "waiting"), ("after", "notRun"), ("apart", "ok"), ("further", "notRun")]
    assert [one["reason"] for one in record["stages"]][1::2] == ["waits for wait", "waits for after"]
    assert not project.exists("state/stage_wait.json") and not project.exists("data/wait") and "outputs" not in record["stages"][0]
    age(project.path("data/in.txt"), 7200)
    assert "3 ok, 1 skipped" in project.ok().out
    project.ok("verify")


def test_a_run_in_which_all_is_done_or_waits_touches_nothing(project):
    four_stages(project)
    project.ok()
    age(project.path("data/in.txt"), 3)
    def kept():
        return {name: data for name, data in project.snapshot().items() if not name.startswith(("state", "locks")) or "stage_" in name}

    before = kept()
    done = project.run("--run-id", "r")
    assert done.code == 7 and "[SKIP] apart" in done.out and kept() == before
    project.ok("verify")


def test_what_an_earlier_stage_of_the_run_made_is_settled(project):
    age(project.write("data/in.txt", "x\n"), 10 ** 6)
    project.spec({"processor": "bin/stage_copy.py", "inputs": ["data/in.txt"]}, {"processor": "bin/stage_copy.py", "inputs": ["data/s1/*"], "settleSec": 3600})
    assert "2 ok" in project.ok().out


def test_a_failed_stage_counts_more_than_one_that_waits(project):
    project.write("data/in.txt", "x\n")
    project.spec({"processor": "bin/stage_copy.py", "inputs": ["data/in.txt"], "settleSec": 3600}, {"processor": project.processor("bad", "sys.exit(3)\n")})
    assert project.run("--run-id", "r").code == 1 and project.json("state/run_r.json")["state"] == "failed"


def two_done(project, **more):
    """Make the files a and b, both settled, and a stage `up` of them that is done."""
    for name in "ab":
        project.write("in/%s.txt" % name, name)
        age(project.path("in/%s.txt" % name), 3600)
    project.spec(dict({"name": "up", "processor": "bin/stage_copy.py", "forEach": "in/*.txt", "outputDir": "out", "settleSec": 600}, **more))
    project.ok()


def test_of_the_files_of_foreach_the_settled_ones_are_taken(project):
    two_done(project, prune=True)
    project.write("in/b.txt", "b, growing")
    project.write("in/c.txt", "c, arriving")
    done = project.ok()
    assert "left for a later run: in/b.txt changed 0 s ago, in/c.txt changed 0 s ago" in done.out and "gone" not in done.out, done
    assert project.read("out/b.txt") == "b" and not project.exists("out/c.txt"), "what b made before stays, and c is not touched"
    for name in "bc":
        age(project.path("in/%s.txt" % name), 3600)
    project.ok()
    assert (project.read("out/b.txt"), project.read("out/c.txt")) == ("b, growing", "c, arriving")
    for name in "abc":
        project.write("in/%s.txt" % name, "again " + name)
    done = project.run()
    assert done.code == 7 and "inputs not settled: in/a.txt changed 0 s ago" in done.out, done


@pytest.mark.parametrize("is_left_already", [False, True])
@pytest.mark.parametrize("spoil", [lambda path: path.write_text("tampered"), lambda path: path.unlink()], ids=["changed", "gone"])
def test_what_was_made_of_a_file_that_is_left_for_a_later_run_is_verified_too(project, spoil, is_left_already):
    two_done(project)
    project.write("in/a.txt", "a, growing")
    if is_left_already:
        project.ok()
    spoil(project.path("out/a.txt"))
    assert "outputs of 1 file left for a later run are not what was recorded" in project.ok("plan").out
    done = project.ok()
    assert "[NOTE] up: not what was recorded, removed, and made again when the files left for a later run have settled: a.txt" in done.out, done
    assert "[DONE] up" in done.out and not project.exists("out/a.txt") and project.read("out/b.txt") == "b"
    assert "[SKIP] up (up to date: " in project.ok().out
    project.ok("verify", "--outputs")
    age(project.path("in/a.txt"), 3600)
    project.ok()
    assert project.read("out/a.txt") == "a, growing"


@pytest.mark.parametrize("prune", [False, True])
def test_a_file_that_was_left_for_a_later_run_and_is_gone_by_then_is_seen_to_be_gone(project, prune):
    two_done(project, prune=prune)
    project.write("in/b.txt", "b, growing")
    assert "left for a later run: in/b.txt" in project.ok().out
    project.path("in/b.txt").unlink()
    assert "1 file gone (in/b.txt)" in project.ok("plan").out
    assert "1 file is gone" in project.ok().out and project.exists("out/b.txt") != prune
    assert "[SKIP] up (up to date: " in project.ok().out


def test_a_stage_that_is_up_to_date_but_for_files_that_are_arriving_says_which(project):
    project.write("in/a.txt", "a")
    age(project.path("in/a.txt"), 3600)
    project.spec({"name": "up", "processor": "bin/stage_copy.py", "forEach": "in/*.txt", "outputDir": "out", "settleSec": 600})
    project.ok()
    project.write("in/b.txt", "b, arriving")
    done = project.ok()
    assert "[SKIP] up (up to date: " in done.out and "1 task, 1 output verified; left for a later run: in/b.txt changed " in done.out, done


@pytest.mark.parametrize("then", ["growing", "new outputs"])
def test_a_file_that_was_done_and_is_arriving_again_is_named_as_the_cause(project, then):
    two_done(project)
    project.write("in/a.txt", "a, growing")
    if then == "new outputs":
        project.path("out/b.txt").unlink()
    out = project.ok("plan").out
    why = "1 file left for a later run: in/a.txt changed " if then == "growing" else "1 task with outputs that are not what was recorded)"
    assert "RUN     up (" + why in out and "marker" not in out, out
    project.ok()
    assert "SKIP    up (up to date: " in project.ok("plan").out
