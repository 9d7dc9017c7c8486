"""Where report, graph, export, evidence and --openlineage may write: never over what the runner or the pipeline lives by."""
from __future__ import annotations

import os
import stat
import sys

import pytest

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


@pytest.mark.parametrize("words", COMMANDS[:2], ids=lambda words: words[0])
@pytest.mark.parametrize("place", ["data/s1/x", "data/x.txt"])
def test_nothing_is_written_where_it_would_be_an_input_or_an_output(made, words, place):
    done = made.run(*words, "-o", str(made.path(place)))
    assert done.code == 2 and not made.exists(place), done


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
