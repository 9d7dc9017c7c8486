"""clean, reset and gc: what they remove, what they keep, what the ledger says, and what a kill between two steps leaves."""
from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time

import housekeeping
import ledger_chain
import ledger_format
import ledger_verify
import pytest
import pipeline_runner
import run_ledger
import run_pruning
import stage_locks
from conftest import GROUP, KILLED, ROOT, RUNNER, USERS, Done, hand_over, run_as, run_without_might, wait_until
from primitives import account_name

FAULT = ROOT / "tests" / "drivers" / "fault.py"
MAKER = """os.makedirs(out + '/sub/deep', exist_ok=True)
open(out + '/a.txt', 'w').write('a')
open(out + '/sub/deep/b.txt', 'w').write('b')
"""


def copying(project, settings=None):
    """A stage that makes two files, one in folders of its own, and one that copies the first."""
    project.write("data/in.txt", "x")
    project.spec(dict({"name": "one", "processor": project.processor("make", MAKER), "outputDir": "data/one"}, **(settings or {})),
                 {"name": "two", "processor": "bin/stage_copy.py", "inputs": ["data/one/a.txt"], "outputDir": "data/two"})


def test_clean_keeps_what_another_pipeline_below_the_root_has_recorded(project):
    copying(project)
    project.ok()
    spec = project.json("pipeline.json")
    project.write("pipeline.json", json.dumps(dict(spec, name="another")))
    done = project.ok("clean", "--yes")
    assert "data/two/a.txt" in done.out and "recorded by pipeline %s" % spec["name"] in done.out and project.exists("data/two/a.txt"), done
    project.write("pipeline.json", json.dumps(spec))
    project.ok("clean", "--yes")
    assert not project.exists("data/two/a.txt")


def findings(project, outputs=True):
    return [str(one) for one in ledger_verify.verify(str(project.root), outputs=outputs).findings]


def notes(project):
    return ledger_verify.verify(str(project.root), outputs=True).notes


def entries(project, event):
    return [one for one in map(json.loads, project.path("state/ledger.jsonl").read_bytes().splitlines()) if one["event"] == event]


def held_by_us(project, name):
    """Hold the kernel lock of a stage, as a living runner does, until the returned descriptor is closed."""
    descriptor = os.open(str(project.path("locks/." + name)), os.O_RDWR | os.O_CREAT)
    assert stage_locks.try_kernel_lock(descriptor)
    return descriptor


# --- clean -----------------------------------------------------------------------------------------------------------

def test_clean_keeps_what_was_changed_while_it_looked_at_the_others(project, monkeypatch, capsys):
    """It looks at all, which may take minutes, before the first is removed. A second name of a file that is removed does not count as changed."""
    body = "for name in 'abc':\n    open(out + '/' + name, 'w').write(name)\nos.link(out + '/a', out + '/d')\n"
    project.spec({"name": "one", "processor": project.processor("make", body), "outputDir": "data/one"})
    project.ok()
    note = run_ledger.RunLedger.note
    monkeypatch.setattr(run_ledger.RunLedger, "note", lambda *given: [project.write("data/one/b", "of somebody"), project.path("data/one/c").unlink(), note(*given)])
    assert pipeline_runner.main(["clean", "--yes", "--pipeline", str(project.path("pipeline.json"))]) == 0
    out = capsys.readouterr().out
    assert "kept data/one/b: it is not what the stage made\n" in out and "removed data/one/b" not in out and "removed data/one/a (1 byte)\nremoved data/one/c (1 byte)\nremoved data/one/d" in out, out
    assert [path.name for path in project.path("data/one").iterdir()] == ["b"] and project.read("data/one/b") == "of somebody"


def test_what_clean_keeps_stands_in_as_many_entries_as_it_needs(project, monkeypatch):
    """`verify` calls a line of more than 16 MiB malformed, for ever; 82,000 changed files with long names would make one."""
    project.spec({"name": "one", "processor": project.processor("make", "for number in range(7):\n    open(out + '/%d' % number, 'w').close()\n"), "outputDir": "data/one"})
    project.ok("--run-id", "r")
    for number in range(1, 6):
        project.write("data/one/%d" % number, "changed")
    assert run_ledger.LIST_BYTES < ledger_chain.MAX_LINE_BYTES // 2
    monkeypatch.setattr(run_ledger, "LIST_BYTES", 2 * len('"data/one/1",'))
    for _ in range(2):                  # the second time there is only what it kept
        project.write("data/one/.one.done", "{}")
        assert pipeline_runner.main(["clean", "--yes", "--pipeline", str(project.path("pipeline.json"))]) == 0
    assert [(one["kept"], one["removed"]) for one in entries(project, "clean")[:3]] == [
        (["data/one/1", "data/one/2"], 2), (["data/one/3", "data/one/4"], 0), (["data/one/5"], 0)]
    assert len(entries(project, "clean")) == 6 and sorted(re.findall(r"data/one/\d", " ".join(findings(project)))) == ["data/one/%d" % number for number in range(1, 6)]
    project.path("data/one/1").unlink()
    project.path("data/one/5").unlink()
    assert sorted(re.findall(r"(\S+): missing;", " ".join(findings(project)))) == ["data/one/1", "data/one/5"], findings(project)


def test_clean_lists_and_touches_nothing_without_yes(project):
    copying(project)
    project.ok()
    before = project.snapshot()
    done = project.ok("clean", "one")
    assert done.out.splitlines() == ["would remove data/one/a.txt (1 byte)", "would remove data/one/sub/deep/b.txt (1 byte)", "clean: nothing was done: give --yes"]
    assert project.snapshot() == before


def test_clean_removes_what_the_records_say_and_the_next_run_makes_it_again(project):
    copying(project)
    project.ok("--run-id", "r")
    project.write("data/one/mine.txt", "mine")
    project.write("data/one/sub/note", "mine")
    done = project.ok("clean", "one", "--yes")
    assert "removed data/one/a.txt (1 byte)" in done.out and "[LEDGER] head " in done.out
    # Folders that hold something of others stay, the emptied one goes, the marker is gone, the other stage untouched.
    assert sorted(name for name in project.snapshot() if name.startswith("data/one")) == ["data/one/mine.txt", "data/one/sub/note"]
    assert not project.exists("data/one/sub/deep") and project.exists("data/two/a.txt")
    entry, = entries(project, "clean")
    assert (entry["stage"], entry["madeBy"], entry["removed"], entry["kept"]) == ("one", {"runId": "r", "invocation": 1}, 2, []) and {"user", "host", "at"} <= set(entry)
    assert project.json("state/stage_one.json")["cleaned"]["user"] == entry["user"]
    assert findings(project) == [] and "2 outputs were removed by clean, as the ledger says" in notes(project)
    assert "RUN     one (its outputs were removed by clean)" in project.ok("plan").out
    done = project.ok()
    assert "[DONE] one" in done.out and "[SKIP] two" in done.out and "cleaned" not in project.json("state/stage_one.json")
    assert findings(project) == [] and "nothing was removed" not in project.ok("clean", "--yes").out


READ_ONLY = """for folder in ('a/deep', 'b'):
    os.makedirs(out + '/' + folder, exist_ok=True)
    open(out + '/' + folder + '/f', 'w').close()
for folder in ('a/deep', 'a', 'b'):
    os.chmod(out + '/' + folder, 0o555)
"""


@pytest.mark.skipif(os.name == "nt", reason="rights")
@pytest.mark.parametrize("of_another", [False, True])
def test_clean_removes_what_lies_in_folders_that_the_stage_has_made_for_reading_only(project, of_another):
    project.spec({"name": "one", "processor": project.processor("make", READ_ONLY), "outputDir": "data/one"},
                 {"name": "two", "processor": project.processor("none", ""), "outputDir": "data/one/b" if of_another else "data/two"})
    assert run_without_might(project, "--only", "one").returncode == 0
    done = run_without_might(project, "clean", "one", "--yes")
    assert not project.exists("data/one/a/deep/f"), done
    if of_another:              # the rights on that folder are not this stage's to change
        assert done.returncode == 5 and "data/one/b/f: Permission denied" in done.stdout and project.path("data/one/b").stat().st_mode & 0o777 == 0o555, done
        project.path("data/one/b").chmod(0o755)
        done = run_without_might(project, "clean", "one", "--yes")
    assert done.returncode == 0 and "removed data/one/b/f (0 bytes)" in done.stdout and not project.exists("data/one/b"), done
    assert not project.exists("data/one/a") and findings(project) == [] and run_without_might(project, "clean", "one", "--yes").returncode == 0


def test_clean_keeps_and_names_what_was_changed_since(project):
    copying(project)
    project.ok()
    project.write("data/one/a.txt", "changed")
    done = project.ok("clean", "one", "--yes")
    assert "kept data/one/a.txt: it is not what the stage made" in done.out and project.read("data/one/a.txt") == "changed" and not project.exists("data/one/sub")
    assert entries(project, "clean")[0]["kept"] == ["data/one/a.txt"]
    assert ["data/one/a.txt" in one for one in findings(project)] == [True]      # still a change that somebody made


@pytest.mark.skipif(os.name == "nt", reason="symbolic links")
def test_clean_follows_no_link_that_somebody_planted(project, tmp_path):
    copying(project)
    project.ok()
    # A folder of the output replaced by a link to one outside, with files of the very same content.
    outside = tmp_path / "outside"
    shutil.move(str(project.path("data/one/sub")), str(outside))
    os.symlink(str(outside), str(project.path("data/one/sub")))
    done = project.ok("clean", "one", "--yes")
    assert "kept data/one/sub/deep/b.txt: data/one/sub is a symbolic link" in done.out
    assert (outside / "deep" / "b.txt").read_text() == "b" and project.path("data/one/sub").is_symlink() and not project.exists("data/one/a.txt")
    project.ok("--force", "two", "--only", "one", "--only", "two")
    moved = tmp_path / "moved"
    shutil.move(str(project.path("data/two")), str(moved))
    os.symlink(str(moved), str(project.path("data/two")))
    assert "kept data/two/a.txt: data/two is a symbolic link" in project.ok("clean", "two", "--yes").out and (moved / "a.txt").exists() and (moved / ".two.done").exists()


def test_clean_goes_through_no_junction_that_somebody_planted(project, tmp_path, junctions):
    copying(project)
    project.ok()
    outside = tmp_path / "outside"
    shutil.move(str(project.path("data/one/sub")), str(outside))
    junctions.make(outside, project.path("data/one/sub"))
    done = junctions.run(project, "clean", "one", "--yes")
    assert done.code == 0 and "kept data/one/sub/deep/b.txt: data/one/sub is a junction" in done.out, done
    assert (outside / "deep" / "b.txt").read_text() == "b" and not project.exists("data/one/a.txt")


def test_a_junction_that_a_stage_made_is_an_output_as_a_link_is(project, tmp_path, junctions):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "x.txt").write_bytes(b"theirs")
    project.write("data/in.txt", "x")
    body = "%s(%r, os.path.join(out, 'j'))\n" % (junctions.make_call, str(tmp_path / "theirs"))
    project.spec({"name": "one", "processor": project.processor("make", body), "inputs": ["data/in.txt"], "outputDir": "data/one"})
    junctions.expect(project.path("data/one/j"))
    done = junctions.run(project)
    assert done.code == 0 and [one["path"] for one in project.json("state/stage_one.json")["outputs"]] == ["j"], done
    for arguments, said in (((), "[SKIP] one"), (("verify", "--outputs"), ""), (("clean", "--yes"), "removed data/one/j")):
        done = junctions.run(project, *arguments)
        assert done.code == 0 and said in done.out, done
    assert not os.path.lexists(str(project.path("data/one/j"))) and (tmp_path / "theirs" / "x.txt").read_bytes() == b"theirs"


def test_reset_removes_no_marker_behind_a_link(project, tmp_path):
    copying(project)
    project.ok()
    shutil.move(str(project.path("data/one")), str(tmp_path / "theirs"))
    os.symlink(str(tmp_path / "theirs"), str(project.path("data/one")))
    (tmp_path / "theirs/x~one~1.1.part").write_bytes(b"theirs")
    assert "forgot state/stage_one.json" in project.ok("reset", "one", "--yes").out
    assert sorted(os.listdir(str(tmp_path / "theirs"))) == [".one.done", "a.txt", "sub", "x~one~1.1.part"]


def test_clean_removes_no_empty_folder_behind_a_link(project, tmp_path):
    copying(project)
    project.ok()
    shutil.move(str(project.path("data/one/sub")), str(tmp_path / "theirs"))
    (tmp_path / "theirs/deep/b.txt").unlink()
    os.symlink(str(tmp_path / "theirs"), str(project.path("data/one/sub")))
    project.ok("clean", "one", "--yes")
    assert not project.exists("data/one/a.txt") and (tmp_path / "theirs/deep").is_dir()


def test_clean_is_refused_while_a_run_is_at_work_of_which_no_record_tells_yet(project):
    copying(project)
    project.ok()
    descriptor = held_by_us(project, "new.run")
    done = project.run("clean", "one", "--yes")
    os.close(descriptor)
    assert done.code == 4 and "run new is at work" in done.err and project.exists("data/one/a.txt")


def test_clean_of_a_link_that_the_stage_made_removes_the_link(project):
    project.write("data/in.txt", "x")
    project.spec({"name": "one", "processor": project.processor("link", "os.symlink('../../data/in.txt', out + '/l')\n"), "outputDir": "data/one"})
    project.ok()
    project.ok("clean", "one", "--yes")
    assert not os.path.lexists(str(project.path("data/one/l"))) and project.read("data/in.txt") == "x"


@pytest.mark.parametrize("arguments, guard", [(("clean", "one", "--yes"), "one.guard"), (("clean", "one", "--yes"), "two.guard"), (("reset", "one", "--yes"), "one.guard")])
def test_a_held_stage_or_one_that_may_be_reading_is_left_alone(project, arguments, guard):
    copying(project)
    project.ok()
    before = {name: data for name, data in project.snapshot().items() if not name.startswith("locks")}
    descriptor = held_by_us(project, guard)
    done = project.run(*arguments)
    assert done.code == 4 and "stage %s is held by" % guard[:3] in done.err
    assert list(project.path("locks").glob("*.lock")) == []        # what was taken before is given back
    assert {name: data for name, data in project.snapshot().items() if not name.startswith("locks")} == before
    os.close(descriptor)
    project.ok(*arguments)


def test_clean_and_reset_know_stages_by_the_spec_only(project):
    copying(project)
    project.ok()
    for command in ("clean", "reset"):
        done = project.run(command, "on", "--yes")
        assert done.code == 2 and 'no stage is named "on"; did you mean one?' in done.err
    assert project.run("reset", "--yes").code == 2


def reading_all(project, *makers):
    """Stages that make data/up/NAME.up of their name, and one that reads all of them."""
    project.processor("up", "open(out + '/' + os.environ['PIPELINE_STAGE_NAME'] + '.up', 'w').write('x!')\n")
    project.spec(*[{"name": name, "processor": "bin/up.py", "outputDir": "data/up"} for name in makers],
                 {"name": "all", "processor": "bin/stage_copy.py", "inputs": ["data/up/*.up"], "outputDir": "data/all"})


def test_what_a_stage_left_that_the_spec_has_no_more_is_named_where_it_is_read_and_cleaned(project):
    reading_all(project, "a", "b")
    project.ok()
    reading_all(project, "a")
    note = '[NOTE] stage b is not in the pipeline file any more; what it made is still there, and all reads it: data/up/b.up; "clean b" removes it\n'
    assert note in project.ok("validate").out and note in project.ok().out
    assert "would remove data/up/b.up (2 bytes)\n" in project.ok("clean", "b").out
    done = project.ok("clean", "b", "--yes")
    assert "removed data/up/b.up (2 bytes)\n" in done.out and project.exists("data/up/a.up") and not project.exists("data/up/b.up"), done
    project.ok("verify", "--outputs")
    done = project.ok()
    assert "[DONE] all" in done.out and "pipeline file" not in done.out + project.ok("validate").out
    project.ok("reset", "b", "--yes")
    project.ok("verify", "--outputs")


def test_what_the_good_tasks_of_a_failed_stage_made_is_the_stages(project):
    """Its record lists none of it; its task log does."""
    for name in "12":
        project.write("data/in/" + name, name)
    bad = project.processor("bad", "if inputs[0].endswith('2'): sys.exit(3)\nopen(out + '/1.up', 'w').close()\n")
    reader = {"name": "all", "processor": "bin/stage_copy.py", "inputs": ["data/up/*.up"], "outputDir": "data/all"}
    project.spec({"name": "a", "processor": bad, "forEach": "data/in/*", "outputDir": "data/up"}, reader)
    assert project.run().code == 1 and project.json("state/stage_a.json")["outputs"] == []
    assert [one["path"] for one in json.loads(project.ok("explain", "a", "--json").out)["outputs"]] == ["1.up"]
    project.spec(reader)
    assert '[NOTE] stage a is not in the pipeline file any more; what it made is still there, and all reads it: data/up/1.up; "clean a" removes it\n' in project.ok().out
    assert "removed data/up/1.up (0 bytes)\n" in project.ok("clean", "a", "--yes").out


def test_what_a_stage_of_now_makes_or_none_reads_is_not_called_left(project):
    reading_all(project, "a", "b")
    project.ok()
    reading_all(project, "b")
    project.processor("up", "open(out + '/a.up', 'w').close()\nopen(out + '/b.up', 'w').close()\n")
    project.path("data/up/a.up").unlink()
    assert "NOTE" not in project.ok().out           # a.up is of b now
    spec = project.json("pipeline.json")
    spec["stages"][1]["inputs"] = ["data/up/b.up"]
    project.write("pipeline.json", json.dumps(dict(spec, stages=spec["stages"][1:])))
    project.write("state/stage_a.json", "{")        # nobody knows what it made
    done = project.ok()
    assert "[NOTE] stage b is not" in done.out and "stage a" not in done.out
    project.write("pipeline.json", json.dumps(dict(spec, name="another", stages=spec["stages"][1:])))
    assert "is not in the pipeline file" not in project.ok().out


@pytest.mark.parametrize("way", ["a folder", "garbage"])
def test_a_record_of_a_former_stage_that_cannot_be_read_is_passed_over(project, way):
    reading_all(project, "a")
    project.ok()
    project.path("state/stage_old.json").mkdir() if way == "a folder" else project.write("state/stage_old.json", "{")
    done = project.ok("--force", "a")
    assert "[LEDGER] head" in done.out and "state: completed" in done.out, done
    project.ok("validate")


def test_outputs_of_former_stages_are_compared_with_the_patterns_only_that_look_there(project, monkeypatch):
    reading_all(project, "a", "b")
    project.ok()
    spec = project.json("pipeline.json")
    spec["stages"] = [{"name": "other", "processor": "bin/stage_copy.py", "inputs": ["in/*.txt", "data/up2/*.up"], "allowNoInputs": True, "outputDir": "data/other"}]
    project.write("pipeline.json", json.dumps(spec))
    monkeypatch.setattr(housekeeping, "_paths_made", None)          # it would read task logs
    assert housekeeping.notes_on_former(pipeline_runner.load_pipeline(str(project.path("pipeline.json")))) == []
    monkeypatch.undo()
    spec["stages"][0]["inputs"] = ["data/u*/b.up"]
    project.write("pipeline.json", json.dumps(spec))
    (note,) = housekeeping.notes_on_former(pipeline_runner.load_pipeline(str(project.path("pipeline.json"))))
    assert note.startswith("stage b is not in the pipeline file any more; what it made is still there, and other reads it: data/up/b.up, data/up") or "reads it: data/up/b.up;" in note, note


def test_clean_near_a_damaged_task_log_says_so(project):
    for number in range(11):
        project.write("data/in/%d.up" % number, "x\n")
    project.spec({"name": "one", "processor": "bin/stage_copy.py", "inputs": ["data/in/0.up"], "outputDir": "data/up"},
                 {"name": "many", "processor": "bin/stage_copy.py", "forEach": "data/in/*.up", "outputDir": "data/up/many"})
    project.ok()
    lines = project.path("state/tasks_many.jsonl").read_bytes().splitlines(True)
    project.path("state/tasks_many.jsonl").write_bytes(b"".join(lines[:4] + [lines[4].replace(b'"ok"', b'"OK"')] + lines[5:]))
    done = project.run("clean", "one", "--yes")
    assert done.code == 5 and "state/tasks_many.jsonl is damaged" in done.err and project.exists("data/up/0.up"), done


def test_clean_keeps_what_a_stage_of_many_tasks_has_recorded_too(project):
    for number in range(11):                        # more than a record lists
        project.write("data/in/%d.up" % number, "x\n")
    one, many = ({"name": name, "processor": "bin/stage_copy.py", "outputDir": "data/up"} for name in ("one", "many"))
    project.spec(dict(one, inputs=["data/in/0.up"]))
    project.ok()
    project.path("data/up/0.up").unlink()
    project.spec(dict(many, forEach="data/in/*.up"))
    project.ok()
    done = project.ok("clean", "one", "--yes")
    assert "kept data/up/0.up: stage many has recorded it, too\n" in done.out and project.exists("data/up/0.up"), done


@pytest.mark.parametrize("outer", ["data", "data/up"])
def test_clean_keeps_what_a_stage_of_a_folder_around_or_below_has_recorded_too(project, outer):
    """A file that two stages have made in turn, of which one writes further out."""
    inner = "data" if outer != "data" else "data/up"
    stages = [{"name": name, "processor": project.processor(name, "path = %r + '/data/up/x'\nos.makedirs(os.path.dirname(path), exist_ok=True)\nopen(path, 'w').write('same')\n" % str(project.root)),
               "outputDir": folder} for name, folder in (("one", outer), ("two", inner))]
    for stage in stages:
        project.spec(stage)
        project.ok()
        project.path("data/up/x").unlink()
    project.write("data/up/x", "same")
    project.spec(*stages)
    assert "kept data/up/x: stage two has recorded it, too\n" in project.ok("clean", "one", "--yes").out and project.exists("data/up/x")


def test_clean_of_a_damaged_record_removes_nothing_and_reset_forgets_it(project):
    copying(project)
    project.ok()
    project.write("state/stage_one.json", "{")
    done = project.run("clean", "one")
    assert done.code == 5 and "state/stage_one.json is damaged" in done.err and project.exists("state/stage_one.json")
    project.ok("reset", "one", "--yes")
    assert not project.exists("state/stage_one.json") and project.exists("data/one/a.txt")
    assert "[DONE] one" in project.ok().out


@pytest.mark.parametrize("folder, path", [("..", "victim.txt"), ("data/one/../../..", "victim.txt"), ("data/one", "../../../victim.txt"), ("data/one", "..\\..\\..\\victim.txt")])
def test_clean_removes_nothing_outside_the_root_that_a_record_names(project, junctions, folder, path):
    """As it may be damaged, or come from elsewhere; run as on Windows, where a backslash parts names, too."""
    copying(project)
    project.ok()
    victim = project.root.parent / "victim.txt"
    victim.write_bytes(b"theirs")
    record = project.json("state/stage_one.json")
    output = {"path": path, "bytes": 6, "sha256": hashlib.sha256(b"theirs").hexdigest()}
    project.write("state/stage_one.json", json.dumps(dict(record, outputs=[output], keyParts=dict(record["keyParts"], outputDir=folder))))
    done = junctions.run(project, "clean", "one", "--yes")
    assert done.code == 5 and "state/stage_one.json" in done.err and victim.read_bytes() == b"theirs", done


def test_clean_before_any_run(project):
    copying(project)
    assert "stage one: no record" in project.ok("clean").out
    assert "no run has left anything" in project.ok("clean", "--yes").out and not project.exists("state")


# --- reset -----------------------------------------------------------------------------------------------------------

def test_reset_forgets_checkpoint_and_record_and_keeps_the_outputs(project):
    project.write("data/in.txt", "1\n2\n3\n")
    project.write("bin/stops.py", "import signal\nfrom processor_kit import lines\ndef f(line):\n    if line == '2\\n':\n        signal.raise_signal(15)\n    return line\nlines(f, 'r.txt')\n")
    stage = {"name": "one", "processor": "bin/stops.py", "inputs": ["data/in.txt"], "outputDir": "data/one", "checkpoint": {"enabled": True, "lineInterval": 1}}
    project.spec(stage)
    assert project.run().code == 1 and project.exists("state/progress_one.json")
    project.write("data/one/keep.txt", "k")
    listed = project.ok("reset", "one").out
    assert "would forget state/stage_one.json" in listed and "would forget state/progress_one.json" in listed and ".part" in listed and project.exists("state/stage_one.json")
    assert "RESUME" in project.ok("plan").out
    project.ok("reset", "one", "--yes")
    assert [name for name in project.snapshot() if "one" in name and name.startswith(("state", "data")) and "logs" not in name] == ["data/one/keep.txt"]
    assert entries(project, "reset")[0]["stage"] == "one" and findings(project) == []
    assert "RUN     one (no record of an earlier run)" in project.ok("plan").out
    assert "nothing is known of it" in project.ok("reset", "one", "--yes").out and len(entries(project, "reset")) == 1


def test_reset_after_a_success(project):
    copying(project)
    project.ok()
    project.ok("reset", "one", "--yes")
    assert project.exists("data/one/a.txt") and not project.exists("data/one/.one.done") and findings(project) == []
    assert "[DONE] one" in project.ok().out and findings(project) == []


def test_clean_and_reset_work_where_a_stage_was_at_work_though_the_spec_has_moved_it_since(project):
    copying(project)
    project.ok()
    spec = project.json("pipeline.json")
    spec["stages"][0]["outputDir"] = "data/new"
    project.write("pipeline.json", json.dumps(spec))
    project.path("data/new/sub/deep").mkdir(parents=True)         # no record tells of these
    project.ok("clean", "one", "--yes")
    assert list(project.path("data/one").iterdir()) == [] and project.exists("data/new/sub/deep"), sorted(project.path("data/one").rglob("*"))
    spec["stages"][1]["outputDir"] = "data/other"
    project.write("pipeline.json", json.dumps(spec))
    project.ok("reset", "two", "--yes")
    assert [path.name for path in project.path("data/two").iterdir()] == ["a.txt"] and findings(project) == []


def test_reset_removes_the_part_files_where_a_stage_was_at_work_though_the_spec_has_moved_it_since(project):
    project.write("data/in.txt", "1\n2\n3\n")
    project.write("bin/stops.py", "import signal\nfrom processor_kit import lines\ndef f(line):\n    if line == '2\\n':\n        signal.raise_signal(15)\n    return line\nlines(f, 'r.txt')\n")
    stage = {"name": "one", "processor": "bin/stops.py", "inputs": ["data/in.txt"], "outputDir": "data/one", "checkpoint": {"enabled": True, "lineInterval": 1}}
    project.spec(stage)
    assert project.run().code == 1 and [path.suffix for path in project.path("data/one").iterdir()] == [".part"]
    project.spec(dict(stage, outputDir="data/new"))
    assert ".part" in project.ok("reset", "one").out
    project.ok("reset", "one", "--yes")
    assert list(project.path("data/one").iterdir()) == []


# --- what an attempt left that did not finish -----------------------------------------------------------------------

HALF = """names = [os.environ["PIPELINE_TASK"]] if "PIPELINE_TASK" in os.environ else sys.argv[1:]
for name in names:
    with open(os.path.join(out, os.path.basename(name) + ".r"), "w") as file:
        file.write("first half\\n")
        file.flush()
        if "bad" in open(name).read():
            %s
        file.write("second half\\n")
"""


def halves(project, how):
    """Stage one has failed or died in the middle of a.txt, which is taken away then; stage two reads what it has made."""
    project.write("in/a.txt", "bad")
    project.write("in/b.txt", "2")
    one = {"name": "one", "processor": project.processor("half", HALF % how), "inputs": ["in/*.txt"], "outputDir": "out/one"}
    two = {"name": "two", "processor": project.processor("all", "open(out + '/all', 'w').writelines(open(name).read() for name in inputs)\n"), "inputs": ["out/one/*.r"], "outputDir": "out/two"}
    project.spec(one, two)
    return one, two


@pytest.mark.parametrize("how", ["sys.exit(3)", "os.kill(os.getppid(), 9); time.sleep(60)"])
@pytest.mark.parametrize("edit", ["none", "reset", "tasks"])
def test_what_is_half_written_is_cleared_whatever_becomes_of_its_stage(project, how, edit):
    one, two = halves(project, how)
    assert project.run().code in (1, KILLED)
    assert project.read("out/one/a.txt.r") == "first half\n"
    project.path("in/a.txt").unlink()
    if edit == "reset":
        assert "would clear what an attempt left that did not finish: out/one/a.txt.r\n" in project.ok("reset", "one").out and project.exists("out/one/a.txt.r")
        assert "leftovers of an unfinished attempt of stage one: removed a.txt.r\n" in project.ok("reset", "one", "--yes").out
        assert not project.exists("out/one/a.txt.r")
    if edit == "tasks":
        project.spec(dict({name: value for name, value in one.items() if name != "inputs"}, forEach="in/*.txt"), two)
    project.ok()
    assert project.read("out/two/all") == "first half\nsecond half\n"
    assert "note" not in project.ok("verify", "--outputs").out


@pytest.mark.parametrize("how", ["sys.exit(3)", "os.kill(os.getppid(), 9); time.sleep(60)"])
@pytest.mark.parametrize("edit", ["renamed", "gone"])
def test_what_is_half_written_of_a_former_stage_is_named_and_cleaned(project, how, edit):
    one, two = halves(project, how)
    assert project.run().code in (1, KILLED)
    project.path("in/a.txt").unlink()
    project.spec(*([dict(one, name="uno")] if edit == "renamed" else []), dict(two, allowNoInputs=True))
    assert '[NOTE] stage one is not in the pipeline file any more; what it made is still there, and two reads it: out/one/a.txt.r; "clean one" removes it\n' in project.ok().out
    assert "would clear what an attempt left that did not finish: out/one/a.txt.r\n" in project.ok("clean", "one").out
    assert "leftovers of an unfinished attempt of stage one: removed a.txt.r\n" in project.ok("clean", "one", "--yes").out
    done = project.ok()
    assert "[DONE] two" in done.out and "NOTE" not in done.out and "first half\n" * 2 not in project.read("out/two/all")
    project.ok("verify", "--outputs")


@pytest.mark.skipif(os.name == "nt", reason="a filter of POSIX")
def test_clean_of_a_former_stage_removes_what_was_never_an_output_too(project):
    project.write("data/in.txt", "1\n2\n3\n")
    project.write("bin/stops.py", "import signal\nfrom processor_kit import lines\ndef f(line):\n    if line == '2\\n':\n        signal.raise_signal(15)\n    return line\nlines(f, 'r.txt')\n")
    up = {"name": "up", "processor": shutil.which("tr"), "args": ["0-9", "a-j"], "inputs": ["data/in.txt"], "outputDir": "data/up", "chunks": {"bytes": 2, "filter": True, "keepChunks": True}}
    stops = {"name": "stops", "processor": "bin/stops.py", "inputs": ["data/in.txt"], "outputDir": "data/stops", "checkpoint": {"enabled": True, "lineInterval": 1}}
    last = {"name": "last", "processor": "bin/stage_copy.py", "inputs": ["data/in.txt"], "outputDir": "data/last"}
    project.spec(up, stops, last)
    assert project.run().code == 1 and project.exists("data/up/.up.tasks")
    project.spec(last)
    part, = project.path("data/stops").iterdir()
    for word, yes in (("would remove", []), ("removed", ["--yes"])):
        told = project.ok("clean", "up", "stops", *yes).out
        assert "%s data/up/.up.tasks\n" % word in told and "%s data/stops/%s\n" % (word, part.name) in told, told
    assert list(project.path("data/up").iterdir()) == list(project.path("data/stops").iterdir()) == []
    project.write("bin/stops.py", "from processor_kit import lines\nlines(str, 'r.txt')\n")
    project.spec(up, stops, last)
    project.ok()
    assert project.read("data/up/in.txt") == "b\nc\nd\n" and project.read("data/stops/r.txt") == "1\n2\n3\n" and findings(project) == []


def test_what_is_half_written_in_the_folder_from_which_a_stage_has_moved_is_named(project):
    one, two = halves(project, "sys.exit(3)")
    assert project.run().code == 1
    project.path("in/a.txt").unlink()
    project.spec(dict(one, outputDir="out/new"), two)
    done = project.ok()
    assert "[NOTE] one: an attempt there that did not finish has left files that may be half written: out/one/a.txt.r; see whether they may go\n" in done.out


def test_what_was_there_before_and_may_be_half_written_is_named(project):
    one, two = halves(project, "sys.exit(3)")
    project.write("out/one/a.txt.r", "made by hand\n")
    assert project.run().code == 1
    project.path("in/a.txt").unlink()
    assert "[NOTE] one: leftovers of an unfinished attempt: a.txt.r, which was there before and is of no stage, may be half written, and stays\n" in project.ok().out


def test_leftovers_are_not_cleared_by_hand_where_a_run_is_at_work(project):
    one, two = halves(project, "sys.exit(3)")
    assert project.run().code == 1
    beside = {"name": "beside", "processor": project.processor("wait", "open(out + '/w', 'w').close()\nwhile not os.path.exists('go'):\n    time.sleep(0.01)\n"), "outputDir": "out/one"}
    project.write("other.json", json.dumps({"name": "other", "stages": [beside]}))
    other = subprocess.Popen([sys.executable, str(RUNNER), "--pipeline", str(project.path("other.json"))], stdout=subprocess.DEVNULL, env=project.environment())
    wait_until(lambda: project.exists("out/one/w"), "the other pipeline's start")
    done = project.run("reset", "one", "--yes")
    assert done.code == 4 and "a run is at work in out/one" in done.err and project.exists("out/one/a.txt.r") and project.exists("state/stage_one.json"), done
    project.spec(dict(two, allowNoInputs=True))
    done = project.run("clean", "one", "--yes")
    assert done.code == 4 and "a run is at work in out/one" in done.err and project.exists("out/one/a.txt.r") and "cleaned" not in project.json("state/stage_one.json"), done
    project.spec(one, two)
    project.write("go", "")
    assert other.wait(60) == 0
    project.ok("reset", "one", "--yes")
    assert not project.exists("out/one/a.txt.r") and project.exists("out/one/w")


# --- gc --------------------------------------------------------------------------------------------------------------

def make_runs(project, count=4):
    """A history: run r0 makes the stages, the others force the second one; r1 is called twice."""
    copying(project)
    project.ok("--run-id", "r0")
    for number in range(1, count):
        project.ok("--run-id", "r%d" % number, "--force", "two")
    project.ok("--run-id", "r1", "--force", "two")


def left(project):
    return sorted(name[6:] for name in project.snapshot() if name.startswith("state/") and not name.startswith(("state/stage_", "state/ledger", "state/metrics.prom", "state/digests", "state/inputs_", "state/env")))


def test_gc_lists_then_prunes_and_verify_accepts_exactly_that(project):
    make_runs(project)
    before = project.snapshot()
    done = project.ok("gc", "--keep-runs", "1")
    assert "would remove run r1 (ended " in done.out and "would remove run r2 " in done.out and "gc: 3 of 5 runs may go; nothing was removed: give --yes" in done.out
    assert project.snapshot() == before
    done = project.ok("gc", "--keep-runs", "1", "--yes")
    # r0 made what stage one has, r1's second call is the newest; both stay.
    assert left(project) == ["logs/r0/one.1.log", "logs/r0/two.1.log", "logs/r1/2/two.1.log", "metrics_r0.json", "metrics_r1.json", "run_r0.json", "run_r1.json"], done
    assert "gc: 3 runs pruned, " in done.out and not project.exists("state/logs/r2")
    entry, = entries(project, "gc")
    ends = {(one["runId"], one["invocation"]): one["runHash"] for one in entries(project, "end")}
    assert entry["removed"] == [[run, 1, ends[run, 1]] for run in ("r1", "r2", "r3")] and entry["keepRuns"] == 1 and entry["user"]
    assert findings(project) == [] and "3 run records were pruned by gc, as the ledger says" in notes(project)
    assert "gc: 0 runs pruned" in project.ok("gc", "--keep-runs", "1", "--yes").out and len(entries(project, "gc")) == 1
    # What gc did not remove is still missed, and the numbers of calls go on.
    shutil.move(str(project.path("state/run_r0.json")), str(project.path("away")))
    assert ["[DELETED] state/run_r0.json" in one for one in findings(project)] == [True]
    shutil.move(str(project.path("away")), str(project.path("state/run_r0.json")))
    project.ok("--run-id", "r2")
    assert project.json("state/run_r2.json")["invocation"] == 2 and findings(project) == []


def test_gc_by_age_and_what_both_limits_keep():
    ends = {("r%d" % day, 1): {"at": "2026-05-%02dT12:00:00.000Z" % day, "runHash": "h%d" % day} for day in range(1, 11)}
    history = run_pruning.History(ends, frozenset(["r2"]), {("r1", 1): "h1"}, {})
    now = run_pruning._seconds("2026-05-11T11:59:59Z")

    def gone(keep_runs, keep_days, needed=()):
        return [run[0] for run in run_pruning.choose(history, set(needed), keep_runs, keep_days, now)]

    assert gone(3, None) == ["r3", "r4", "r5", "r6", "r7"]          # r1 is pruned already, r2 is open
    assert gone(None, 3) == ["r3", "r4", "r5", "r6", "r7"]
    assert gone(0, 5) == gone(None, 5) == ["r3", "r4", "r5"]
    assert gone(6, 1) == ["r3", "r4"] and gone(1, 8) == []
    assert [gone(number, None) for number in (9, 10, 11, 14, 19, 1000)] == [[]] * 6
    assert gone(0, 0, [("r9", 1)]) == ["r3", "r4", "r5", "r6", "r7", "r8", "r10"]
    assert run_pruning._seconds("nonsense") > now


YEAR_S = 365 * 86400


def test_gc_by_age_goes_by_the_order_of_the_ledger_where_the_clock_was_wrong(project, set_clock):
    project.spec({"processor": project.processor("fail", "sys.exit(1)\n")})
    for run, shift in (("monday", 0), ("tuesday", -20 * YEAR_S), ("thursday", 20 * YEAR_S), ("friday", 0)):
        set_clock.set(shift)
        assert project.run("--run-id", run, env=set_clock.env).code == 1
    assert "gc: 0 of 4 runs may go" in project.ok("gc", "--keep-days", "30").out
    set_clock.set(40 * 86400)
    done = project.ok("gc", "--keep-days", "30", env=set_clock.env)
    # The last one is the maker of the stage's record.
    assert re.findall("would remove run ([a-z]+)", done.out) == ["monday", "tuesday", "thursday"], done


@pytest.mark.parametrize("days, gone", [
    ((5, 1, 9), "ab"), ((30, 5, 9), "ab"), ((5, 30, 30), "abc"), ((1, 9, 5), "a"), ((30, 9, 1), ""), ((9, 30, 1), ""), ((30, 30, 30), ""), ((1, 9, 30), "a")])
def test_a_run_is_as_old_as_the_ledger_lets_it_be(days, gone):
    """days: of May; it is the tenth, and three days are kept."""
    ends = {(run, 1): {"at": "2026-05-%02dT12:00:00.000Z" % day, "runHash": run} for run, day in zip("abc", days)}
    history = run_pruning.History(ends, frozenset(), {}, {})
    chosen = run_pruning.choose(history, set(), None, 3, run_pruning._seconds("2026-05-10T12:00:00Z"))
    assert "".join(run for run, _ in chosen) == gone


def test_gc_that_is_to_keep_more_runs_than_there_are_keeps_them_all(project):
    make_runs(project)
    before = project.snapshot()
    for number in ("4", "5", "6", "9", "1000"):
        assert "gc: 0 of 5 runs may go" in project.ok("gc", "--keep-runs", number).out, number
    assert "gc: 0 runs pruned, 0 files removed" in project.ok("gc", "--keep-runs", "7", "--yes").out and project.snapshot() == before


def test_gc_wants_a_limit_and_an_undamaged_ledger(project):
    make_runs(project, 2)
    assert "gc needs --keep-runs N or --keep-days D" in project.run("gc", "--yes").err
    lines = project.read("state/ledger.jsonl").splitlines(True)
    project.write("state/ledger.jsonl", "".join(lines[:1] + lines[2:]))
    done = project.run("gc", "--keep-runs", "0", "--yes")
    assert done.code == 5 and "state/ledger.jsonl:2: " in done.err and project.exists("state/run_r0.json")


def make_runs_of_one_result(project, count):
    """Make runs r0, r1, ... of which the first has made all, and the others have nothing to do."""
    project.write("data/in.txt", "x")
    project.spec({"processor": "bin/stage_copy.py", "inputs": ["data/in.txt"]})
    for number in range(count):
        project.ok("--run-id", "r%d" % number)


def test_gc_reads_each_record_once_however_many_runs_there_are(project, monkeypatch, capsys):
    make_runs_of_one_result(project, 8)
    reads, read = [], run_pruning._read
    monkeypatch.setattr(run_pruning, "_read", lambda store, name: (reads.append(name), read(store, name))[1])
    assert pipeline_runner.main(["gc", "--keep-runs", "4", "--pipeline", str(project.path("pipeline.json"))]) == 0
    assert "gc: 3 of 8 runs may go" in capsys.readouterr().out
    assert max(map(reads.count, reads)) == 1


def test_gc_reads_each_entry_of_the_ledger_once_however_many_batches_there_are(project, monkeypatch, capsys):
    make_runs_of_one_result(project, 7)
    read, entry_hash = [], run_pruning.entry_hash
    monkeypatch.setattr(run_pruning, "entry_hash", lambda entry: read.append(entry["seq"]) or entry_hash(entry))
    monkeypatch.setattr(run_pruning, "BATCH_RUNS", 1)
    assert pipeline_runner.main(["gc", "--keep-runs", "1", "--yes", "--pipeline", str(project.path("pipeline.json"))]) == 0
    assert "gc: 5 runs pruned" in capsys.readouterr().out
    entries = [json.loads(line) for line in project.path("state/ledger.jsonl").read_bytes().splitlines()]
    assert [entry["event"] for entry in entries].count("gc") == 5
    assert read == [entry["seq"] for entry in entries[:-1]]      # the last is entered after the last look


def test_gc_keeps_a_record_that_has_no_canonical_form(project):
    make_runs(project)
    project.write("state/run_r2.json", '{"a": 1e999}')
    done = project.ok("gc", "--keep-runs", "1", "--yes")
    assert "kept run r2: no file holds the record that the ledger committed" in done.out, done


def test_gc_keeps_what_is_in_use_or_not_what_was_committed_and_follows_no_link(project, tmp_path):
    make_runs(project, 5)
    record = project.json("state/run_r2.json")
    project.write("state/run_r2.json", json.dumps(dict(record, user="somebody else")))
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "precious.log").write_bytes(b"p")
    shutil.rmtree(str(project.path("state/logs/r4")))
    os.symlink(str(tmp_path / "logs"), str(project.path("state/logs/r4")))
    descriptor = held_by_us(project, "r3.run")
    done = project.ok("gc", "--keep-runs", "1", "--yes")
    os.close(descriptor)
    assert "kept run r2: no file holds the record that the ledger committed" in done.out and "kept run r3: its id is in use" in done.out
    assert [run[0] for run in entries(project, "gc")[0]["removed"]] == ["r1", "r4"] and (tmp_path / "logs" / "precious.log").exists()
    assert ["run_r2.json" in one for one in findings(project)] == [True]


@pytest.mark.parametrize("place", ["r2", "r2/s1"])
def test_gc_goes_through_no_junction_that_somebody_planted(project, tmp_path, junctions, place):
    make_runs(project)
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "precious.log").write_bytes(b"p")
    if place == "r2":
        shutil.rmtree(str(project.path("state/logs/r2")))
    junctions.make(tmp_path / "logs", project.path("state/logs/" + place))
    done = junctions.run(project, "gc", "--keep-runs", "1", "--yes")
    assert done.code == 0 and not project.exists("state/run_r2.json") and (tmp_path / "logs" / "precious.log").exists(), done.out


@pytest.mark.parametrize("is_former", [False, True])
def test_what_reset_has_forgotten_verify_does_not_ask_for(project, is_former):
    """The outputs are nobody's then: not those of many tasks, whose log is gone, nor those of a stage that left the pipeline file."""
    for number in range(15):
        project.write("data/%d.txt" % number, "x")
    stages = [{"name": "keep", "processor": "bin/stage_copy.py", "inputs": ["data/1.txt"], "outputDir": "data/keep"}, {"name": "many", "processor": "bin/stage_copy.py", "forEach": "data/*.txt", "outputDir": "data/many"},
              {"name": "one", "processor": "bin/stage_copy.py", "inputs": ["data/1.txt"], "outputDir": "data/one"}]
    project.spec(*stages)
    project.ok("--run-id", "r1")
    if is_former:
        project.spec(stages[0])
    assert findings(project) == []
    assert project.run("reset", "many", "nobody", "--yes").code == 2
    assert "would forget state/tasks_many.jsonl" in project.ok("reset", "many").out
    project.ok("reset", "many", "one", "--yes")
    shutil.rmtree(str(project.path("data/one")))
    shutil.rmtree(str(project.path("data/many")))
    assert findings(project) == [] and "outputs not compared, for reset has forgotten them, as the ledger says: many, one" in notes(project)
    project.write("data/keep/1.txt", "y")
    assert ["data/keep/1.txt" in one for one in findings(project)] == [True]


def test_gc_removes_the_logs_of_tasks_and_leaves_those_of_other_calls(project):
    for name in ("a", "b"):
        project.write("data/%s.txt" % name, "x")
    loud = project.processor("loud", "print('a long log')\nopen(out + '/' + os.path.basename(os.environ['PIPELINE_TASK']), 'w').write('x')\n")
    project.spec({"name": "2", "processor": loud, "forEach": "data/*.txt"}, {"name": "many", "processor": loud, "forEach": "data/*.txt", "outputDir": "data/many"})
    project.ok("--run-id", "r0", "--force", "2", "--force", "many")
    project.ok("--run-id", "r0", "--force", "2", "--force", "many")
    assert project.exists("state/logs/r0/many/1.1.log") and project.exists("state/logs/r0/2/many/1.1.log"), project.snapshot()
    project.ok("gc", "--keep-runs", "1", "--yes")
    assert project.exists("state/logs/r0/2/many.tasks.jsonl")
    assert not project.exists("state/logs/r0/many") and project.exists("state/logs/r0/2/many/1.1.log") and project.exists("state/logs/r0/2/2~tasks/1.1.log")
    assert findings(project) == []
    project.ok("--run-id", "r1", "--force", "2", "--force", "many")
    project.ok("gc", "--keep-runs", "1", "--yes")
    assert not project.exists("state/logs/r0") and project.exists("state/logs/r1/many/1.1.log")


@pytest.mark.parametrize("folder", ["2~tasks", "2"], ids=["now", "earlier version"])
def test_gc_of_a_later_call_leaves_the_logs_of_a_stage_of_the_first_that_is_named_as_that_is_numbered(project, folder):
    project.write("data/a.txt", "x")
    loud = project.processor("loud", "print('a long log')\nopen(out + '/a.txt', 'w').write('x')\n")
    project.spec({"name": "2", "processor": loud, "forEach": "data/*.txt", "outputDir": "data/2"}, {"name": "last", "processor": loud, "outputDir": "data/last"})
    project.ok("--run-id", "r0")
    project.path("state/logs/r0/2~tasks").rename(project.path("state/logs/r0/" + folder))
    assert "a long log" in project.ok("logs", "2").out
    project.ok("--run-id", "r0", "--force", "last")
    project.ok("--run-id", "r1", "--force", "last")
    project.ok("gc", "--keep-runs", "1", "--yes")
    assert [one["removed"][0][:2] for one in entries(project, "gc")] == [["r0", 2]]
    assert project.exists("state/logs/r0/%s/1.1.log" % folder) and not project.exists("state/logs/r0/2/last.1.log")
    assert "0 files removed" in project.ok("gc", "--keep-runs", "1", "--yes").out
    project.ok("--run-id", "r2", "--force", "2", "--force", "last")
    project.ok("gc", "--keep-runs", "1", "--yes")
    project.ok("gc", "--keep-runs", "1", "--yes")
    assert not project.exists("state/logs/r0") and findings(project) == []


@pytest.mark.parametrize("many", ["s.1.log", "s.tasks.jsonl"])
def test_a_stage_named_like_another_ones_file_among_the_logs_has_a_folder_of_its_own(project, many):
    project.write("data/a.txt", "x")
    loud = project.processor("loud", "print('stage', os.environ['PIPELINE_STAGE_NAME'])\nopen(out + '/o', 'w').close()\n")
    project.spec({"name": "s", "processor": loud, "forEach": "data/*.txt"} if many.endswith(".jsonl") else {"name": "s", "processor": loud},
                 {"name": many, "processor": loud, "forEach": "data/*.txt"})
    project.ok("--run-id", "r")
    shown = project.ok("logs", many, "--run", "r").out
    assert "stage " + many in shown and "stage s\n" not in shown and findings(project) == []


def test_stages_whose_names_are_numbers_have_logs_of_their_own(project):
    """The log of stage 1 in the second call, and that of the first task of stage 2 in the first, had one path."""
    project.write("data/a.txt", "x")
    loud = project.processor("loud", "print('stage', os.environ['PIPELINE_STAGE_NAME'])\nopen(out + '/o', 'w').close()\n")
    project.spec({"name": "1", "processor": loud}, {"name": "2", "processor": loud, "forEach": "data/*.txt"})
    project.ok("--run-id", "r")
    project.ok("--run-id", "r", "--force", "1")
    assert findings(project) == []
    assert project.read("state/logs/r/2/1.1.log") == "stage 1\n" and project.read("state/logs/r/2~tasks/1.1.log") == "stage 2\n"
    shown = project.ok("logs", "2", "--run", "r").out
    assert "stage 2" in shown and "stage 1" not in shown, shown
    project.ok("--run-id", "last", "--force", "1", "--force", "2")
    project.ok("gc", "--keep-runs", "1", "--yes")
    assert not project.exists("state/logs/r") and findings(project) == []


def test_what_gc_has_pruned_of_a_run_id_does_not_keep_its_last_call_from_being_proved(project, tmp_path):
    make_runs(project)
    project.ok("gc", "--keep-runs", "1", "--yes")
    assert project.exists("state/run_r1.json") and not project.exists("state/run_r1.1.json")
    done = project.ok("evidence", "r1", "-o", str(tmp_path / "e.zip"))
    assert "note: run r1 (invocation 1) is not included: its record was pruned by gc, as the ledger says" in done.out, done
    checked = subprocess.run([sys.executable, str(ROOT / "src" / "evidence_verify.py"), str(tmp_path / "e.zip")], stdout=subprocess.PIPE, timeout=60)
    assert checked.returncode == 0 and b"is not included: its record was pruned by gc" in checked.stdout, checked
    assert json.loads(project.ok("export", "r1").out)["subject"]
    box = tmp_path / "box"
    shutil.unpack_archive(str(tmp_path / "e.zip"), str(box), "zip")
    (box / "logs" / "r1" / "made-up.log").write_bytes(b"x")
    listed = json.loads((box / "evidence.json").read_text(encoding="utf-8"))
    listed["members"].append({"path": "logs/r1/made-up.log", "bytes": 1, "sha256": hashlib.sha256(b"x").hexdigest(), "source": "state/logs/r1/made-up.log"})
    (box / "evidence.json").write_text(json.dumps(listed), encoding="utf-8")
    checked = subprocess.run([sys.executable, str(ROOT / "src" / "evidence_verify.py"), str(box)], stdout=subprocess.PIPE, timeout=60)
    assert checked.returncode == 5 and b"[UNLISTED] logs/r1/made-up.log: no run record knows it" in checked.stdout, checked      # all that must be there is
    done = project.run("evidence", "r2", "-o", str(tmp_path / "f.zip"))
    assert done.code == 5 and "the record of run r2 (invocation 1) was pruned by gc, as entry " in done.err and not (tmp_path / "f.zip").exists(), done


def test_gc_keeps_the_makers_of_what_the_kept_runs_skipped(project):
    copying(project)
    project.ok("--run-id", "old")
    project.ok("--run-id", "skips")
    project.ok("--run-id", "new", "--force", "one", "--force", "two")
    assert "gc: 2 of 3 runs may go" in project.ok("gc", "--keep-runs", "1").out
    assert "gc: 0 of 3 runs may go" in project.ok("gc", "--keep-runs", "2").out


def test_a_stage_record_that_was_put_back_after_its_run_was_pruned_is_found(project):
    copying(project)
    project.ok("--run-id", "old")
    record = project.path("state/stage_two.json").read_bytes()
    project.ok("--run-id", "new", "--force", "one", "--force", "two")
    project.ok("gc", "--keep-runs", "1", "--yes")
    assert findings(project, outputs=False) == []
    project.path("state/stage_two.json").write_bytes(record)
    assert ["put back" in one for one in findings(project, outputs=False)] == [True]


def forge_pruned(project, run_id):
    """Let the last entry, which is of gc, say that it has pruned another record, too."""
    lines = project.path("state/ledger.jsonl").read_bytes().splitlines()
    forged = json.loads(lines[-1])
    forged["removed"].append([run_id, 1, "0" * 64])
    forged["hash"] = ledger_format.entry_hash(forged)
    project.path("state/ledger.jsonl").write_bytes(b"\n".join(lines[:-1]) + b"\n" + ledger_format.entry_line(forged))


def test_a_gc_entry_that_prunes_what_nobody_committed_is_found(project):
    make_runs(project, 3)
    project.ok("gc", "--keep-runs", "1", "--yes")
    forge_pruned(project, "r0")
    assert any("prunes a record of run r0 that no entry before it committed" in one for one in findings(project))


@pytest.mark.parametrize("with_hash", [False, True])
def test_gc_prunes_nothing_by_an_entry_that_was_edited(project, with_hash):
    make_runs(project, 3)
    path = project.path("state/ledger.jsonl")
    lines = path.read_bytes().splitlines(True)
    edited = dict(json.loads(lines[1]), at="2001-01-01T00:00:00.000Z")
    edited["hash"] = ledger_format.entry_hash(edited) if with_hash else edited["hash"]
    path.write_bytes(b"".join([lines[0], ledger_format.entry_line(edited), *lines[2:]]))
    before = project.snapshot()
    done = project.run("gc", "--keep-days", "1", "--yes")
    assert done.code == 5 and "state/ledger.jsonl:%d: " % (3 if with_hash else 2) in done.err and project.snapshot() == before, done


def test_gc_after_an_entry_that_prunes_a_run_that_never_ended_is_no_crash(project):
    make_runs(project, 3)
    project.ok("gc", "--keep-runs", "1", "--yes")
    forge_pruned(project, "nobody")
    for more in ((), ("--yes",)):
        assert "Traceback" not in project.ok("gc", "--keep-runs", "1", *more).err


def test_of_a_stage_that_was_one_of_many_tasks_no_edited_output_is_taken_over(project):
    for number in range(11):                        # more than a record lists
        project.write("data/in/%d.up" % number, "x\n")
    project.spec({"name": "up", "processor": "bin/stage_copy.py", "outputDir": "data/up", "forEach": "data/in/*.up"})
    project.ok()
    project.write("data/up/3.up", "edited\n")
    project.spec({"name": "up", "processor": project.processor("one", "open(out + '/o', 'w').close()\n"), "outputDir": "data/up"})
    assert "[NOTE] up: not what was recorded: removed 3.up; run " in project.ok().out
    assert "3.up" not in [one["path"] for one in project.json("state/stage_up.json")["outputs"]] and project.exists("data/up/4.up")


def test_housekeeping_is_sealed_where_the_ledger_is(project, tmp_path):
    key = str(tmp_path / "key")
    project.ok("new-key", key)
    copying(project)
    for run in ("a", "b"):
        project.ok("--run-id", run, "--key", key, "--force", "one", "--force", "two")
    assert project.run("gc", "--keep-runs", "1", "--yes").code == 5 and project.exists("state/run_a.json")
    project.ok("gc", "--keep-runs", "1", "--yes", "--key", key)
    project.ok("clean", "--yes", "--key", key)
    project.ok("reset", "one", "--yes", "--key", key)
    assert not project.exists("state/run_a.json") and project.ok("verify", "--key", key, "--outputs")


# --- killed between two steps ----------------------------------------------------------------------------------------

def kill_at(project, at, *arguments):
    """Run a command and kill it before its N-th step; return what the step was, "" if it came through."""
    hit, settings = project.path("hit"), project.path("settings.json")
    settings.write_text(json.dumps({"runner": str(RUNNER), "root": str(project.root), "action": "kill", "at": at, "hit": str(hit), "boot": None, "outputs": [],
                                    "only": ["replace *", "unlink *", "rmdir *", "write state/ledger.jsonl", "fsync state/ledger.jsonl"]}), encoding="utf-8")
    argv = [sys.executable, str(FAULT), str(settings), "--pipeline", str(project.path("pipeline.json")), *arguments]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=120)
    where = hit.read_text(encoding="utf-8") if hit.exists() else ""
    settings.unlink()
    if where:
        hit.unlink()
    assert (done.returncode == KILLED) == bool(where), Done(argv, done.returncode, done.stdout.decode(), done.stderr.decode())
    return where


def each_kill(project, tmp_path, *arguments):
    """Yield what was killed, for each step of a command in turn, the project as it was before it each time."""
    saved = tmp_path / "saved"
    shutil.copytree(str(project.root), str(saved), symlinks=True)
    at = 0
    while True:
        at += 1
        where = kill_at(project, at, *arguments)
        if not where:
            break
        yield where
        shutil.rmtree(str(project.root))
        shutil.copytree(str(saved), str(project.root), symlinks=True)
    assert at > 5


def test_clean_killed_at_any_step_is_finished_by_the_next(project, tmp_path):
    copying(project)
    project.ok("--run-id", "r")
    for where in each_kill(project, tmp_path, "clean", "one", "--yes"):
        assert findings(project) == [], where
        project.ok("clean", "one", "--yes")
        assert findings(project) == [] and not project.exists("data/one/a.txt") and not project.exists("data/one/sub") and not project.exists("data/one/.one.done"), where


def test_reset_killed_at_any_step_is_finished_by_the_next_and_a_run_works_in_between(project, tmp_path):
    copying(project)
    project.ok("--run-id", "r")
    for number, where in enumerate(each_kill(project, tmp_path, "reset", "one", "--yes")):
        assert findings(project) == [], where
        if number % 2:
            project.ok("reset", "one", "--yes")
            assert not project.exists("state/stage_one.json") and not project.exists("data/one/.one.done") and project.exists("data/one/a.txt"), where
        else:
            project.ok("--run-id", "next")
            assert project.exists("data/one/.one.done") and project.exists("data/two/a.txt"), where
        assert findings(project) == [], where


def test_gc_killed_at_any_step_is_finished_by_the_next(project, tmp_path):
    make_runs(project, 3)
    for where in each_kill(project, tmp_path, "gc", "--keep-runs", "1", "--yes"):
        assert findings(project) == [], where
        if where.startswith("rmdir"):
            assert "has left of run" in project.ok("gc", "--keep-runs", "1").out, where
        project.ok("gc", "--keep-runs", "1", "--yes")
        assert [folder for folder, names, files in os.walk(str(project.path("state/logs"))) if not names + files] == [], where
        assert left(project) == ["logs/r0/one.1.log", "logs/r0/two.1.log", "logs/r1/2/two.1.log", "metrics_r0.json", "metrics_r1.json", "run_r0.json", "run_r1.json"], where
        assert findings(project) == [], where


@pytest.mark.parametrize("is_former", [False, True])
def test_reset_of_a_checkpoint_killed_at_any_step_is_finished_by_the_next(project, tmp_path, is_former):
    """Also of a stage that is not in the pipeline any more: until the last step its record tells that there is something to forget."""
    body = "import signal\nfrom processor_kit import lines\ndef f(line):\n    if line == 'stop\\n':\n        signal.raise_signal(15)\n    return line\nlines(f, 'o.txt')\n"
    project.write("data/in.txt", "x\n" * 5 + "stop\n" + "x\n" * 5)
    project.write("bin/k.py", body)
    stage = {"name": "one", "processor": "bin/k.py", "inputs": ["data/in.txt"], "outputDir": "data/one", "checkpoint": {"enabled": True, "lineInterval": 1}}
    project.spec(stage, {"name": "two", "processor": "bin/stage_copy.py", "inputs": ["data/in.txt"], "outputDir": "data/two"})
    assert project.run().code == 1
    if is_former:
        project.spec({"name": "two", "processor": "bin/stage_copy.py", "inputs": ["data/in.txt"], "outputDir": "data/two"})

    def of_one():
        return sorted(str(path.relative_to(project.root)) for path in [*project.path("state").iterdir(), *project.path("data/one").iterdir()] if "one" in path.name or ".part" in path.name)
    assert any(name.endswith(".part") for name in of_one()) and len(of_one()) >= 3, of_one()
    for where in each_kill(project, tmp_path, "reset", "one", "--yes"):
        had = of_one()
        assert not had or "state/stage_one.json" in had, (where, had)
        done = project.run("reset", "one", "--yes")
        assert of_one() == [] and (done.code == 0 or not had), (where, done)


@pytest.mark.skipif(os.name == "nt", reason="rights")
def test_gc_without_yes_tells_what_an_interrupted_gc_has_left(project, tmp_path):
    make_runs(project, 3)
    for where in each_kill(project, tmp_path, "gc", "--keep-runs", "1", "--yes"):
        told = project.ok("gc", "--keep-runs", "1").out
        done = project.ok("gc", "--keep-runs", "1", "--yes").out
        assert ("would remove" in told) == ("0 files removed" not in done or "(empty folders)" in told), (where, told, done)


@pytest.mark.skipif(os.name == "nt", reason="rights")
def test_gc_removes_nothing_while_a_record_cannot_be_read(project):
    copying(project)
    project.ok("--run-id", "makes")
    project.ok("--run-id", "skips")
    project.write("data/in.txt", "y")
    project.ok("--run-id", "last", "--force", "one")
    os.chmod(str(project.path("state/run_skips.json")), 0)
    before = left(project)
    done = run_without_might(project, "gc", "--keep-runs", "2", "--yes")
    assert done.returncode == 5 and "state/run_skips.json: Permission denied; nothing more is pruned" in done.stdout and left(project) == before, done
    os.chmod(str(project.path("state/run_skips.json")), 0o644)
    assert "0 runs pruned" in project.ok("gc", "--keep-runs", "2", "--yes").out


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="becomes other users")
@pytest.mark.parametrize("mode", [0o755, 0o700])
def test_gc_keeps_the_runs_whose_lock_or_logs_are_another_accounts_and_prunes_the_others(shared, mode):
    """As a run by sudo leaves them; an earlier version left its lock file so, too."""
    shared.write("data/in.txt", "0")
    shared.spec({"name": "s", "processor": shared.processor("p", "print('logged')\n"), "inputs": ["data/in.txt"], "outputDir": "data/s"})
    hand_over(shared)
    for number, run_id in enumerate(("r1", "lock", "logs", "r2", "r3", "r4")):
        shared.write("data/in.txt", str(number))
        assert run_as(0, shared, "--run-id", run_id).code == 0
    lock, logs = shared.path("locks/.lock.run"), shared.path("state/logs/logs")
    for path in (lock, logs):
        os.chown(str(path), 0, 0)
    os.chmod(str(logs), mode)
    assert run_as(0, shared, "gc", "--keep-runs", "1").code == 0
    done = run_as(0, shared, "gc", "--keep-runs", "1", "--yes")
    remedy = "belongs to %s; as root: chown %s%d %s"
    told = ["kept run lock: locks/.lock.run " + remedy % (account_name(0), "", USERS[0], lock), "kept run logs: state/logs/logs " + remedy % (account_name(0), "-R ", USERS[0], logs)]
    assert done.code == 5 and done.out.splitlines()[:2] == told and "gc: 3 runs pruned" in done.out and done.err == "", done
    assert sorted(path.name for path in shared.path("state").glob("run_*")) == ["run_lock.json", "run_logs.json", "run_r4.json"]
    assert run_as(0, shared, "verify").code == 0
    for path in (lock, logs):
        os.chown(str(path), USERS[0], GROUP)
    done = run_as(0, shared, "gc", "--keep-runs", "1", "--yes")
    assert done.code == 0 and "gc: 2 runs pruned" in done.out, done
    os.chown(str(lock), 0, 0)               # of a run of which nothing is left
    assert run_as(0, shared, "gc", "--keep-runs", "1", "--yes").code == 0


# --- stages of several tasks -----------------------------------------------------------------------------------------

@pytest.mark.skipif(os.name == "nt", reason="a filter of POSIX")
def test_clean_names_the_chunks_that_are_kept_and_reset_removes_them(project):
    project.write("data/in.txt", "one\ntwo\n")
    project.spec({"name": "up", "processor": shutil.which("tr"), "args": ["a-z", "A-Z"], "inputs": ["data/in.txt"], "outputDir": "data/up",
                  "chunks": {"bytes": 4, "filter": True, "keepChunks": True}})
    project.ok()
    said = "kept data/up/.up.tasks: keepChunks: an input that grew redoes its tail only; `reset up` removes it"
    assert said in project.ok("clean").out.splitlines() and said in project.ok("clean", "--yes").out.splitlines()
    assert not project.exists("data/up/in.txt") and project.exists("data/up/.up.tasks")
    assert "[DONE] up" in project.ok().out and project.path("data/up/in.txt").read_bytes() == b"ONE\nTWO\n"
    text = project.read("pipeline.json")
    project.write("pipeline.json", text.replace("data/up", "data/new"))     # until the next run they are where they were
    assert said in project.ok("clean").out.splitlines()
    project.ok("reset", "up", "--yes")
    assert not project.exists("data/up/.up.tasks") and said not in project.ok("clean").out.splitlines()


def test_clean_and_reset_of_a_stage_of_tasks(project):
    for name in "ab":
        project.write("data/in/%s.txt" % name, name)
    project.spec({"name": "each", "processor": "bin/stage_copy.py", "forEach": "data/in/*.txt", "outputDir": "data/each"})
    project.ok("--run-id", "r")
    project.ok("clean", "each", "--yes")
    assert not project.exists("data/each/a.txt") and not project.exists("data/each/b.txt") and findings(project) == []
    assert "RUN     each (its outputs were removed by clean)\n" in project.ok("plan").out
    assert "2 to do" in project.ok().out and project.read("data/each/b.txt") == "b" and findings(project) == []
    # Of very many tasks the record lists no outputs; their log does.
    record = project.json("state/stage_each.json")
    project.write("state/stage_each.json", json.dumps(dict(record, outputs=[])))
    assert "would remove data/each/a.txt (1 byte)" in project.ok("clean", "each").out
    done = project.ok("reset", "each", "--yes")
    assert "forgot state/tasks_each.jsonl" in done.out and project.exists("data/each/a.txt") and not [name for name in project.snapshot() if "each" in name and name.startswith("state/") and "/logs/" not in name and "/inputs_" not in name]
    assert "2 to do" in project.ok().out


def test_clean_is_refused_while_a_run_is_at_work_that_counts_on_the_outputs(project):
    project.write("data/in.txt", "x\n")
    project.processor("copy", "open(os.path.join(out, 'o.txt'), 'w').close()\n")
    project.processor("slow", "open('begun', 'w').close()\nwhile not os.path.exists('gate'):\n    time.sleep(0.01)\n")
    stages = [{"name": "a", "processor": "bin/copy.py", "inputs": ["data/in.txt"], "outputDir": "data/a"}, {"name": "slow", "processor": "bin/slow.py"},
              {"name": "sum", "processor": "bin/copy.py", "inputs": ["data/a/*.txt"], "allowNoInputs": True}]
    project.spec(*stages)
    with project.start("--run-id", "r") as process:
        try:
            while not project.exists("begun"):
                assert process.poll() is None
                time.sleep(0.01)
            done = project.run("clean", "a", "--yes")
        finally:
            project.write("gate", "")
        process.communicate(timeout=60)
    assert done.code == 4 and done.err == "error: run r is at work, and may still count on what is to be removed; run clean again when it has ended\n", done
    assert process.returncode == 0 and project.exists("data/a/o.txt") and project.exists("data/a/.a.done")
    project.ok("clean", "a", "--yes")
    assert not project.exists("data/a/o.txt")


def test_a_file_in_the_place_of_a_cleaned_output_is_compared(project):
    copying(project)
    project.ok()
    was = project.read("data/one/a.txt")
    project.ok("clean", "one", "--yes")
    project.write("data/one/a.txt", was)
    assert project.run("verify", "--outputs").code == 0
    project.write("data/one/a.txt", "made up")
    done = project.run("verify", "--outputs")
    assert done.code == 5 and "[OUTPUT-CHANGED] data/one/a.txt" in done.out and "1 output was removed by clean" in done.out, done


def test_what_a_later_run_left_in_the_place_of_a_cleaned_output_is_no_finding(project):
    copying(project)
    project.ok()
    project.ok("clean", "one", "--yes")
    spec = project.json("pipeline.json")
    project.write("pipeline.json", json.dumps(dict(spec, name="another")))
    project.write("bin/make.py", project.read("bin/make.py") + "open(out + '/a.txt', 'w').write('half')\nopen('begun', 'w').close()\ntime.sleep(60)\n")
    run = project.start()
    try:
        wait_until(lambda: project.exists("begun"))
        project.ok("verify", "--outputs")
    finally:
        run.kill()
        run.communicate()
    project.ok("verify", "--outputs")


def with_entry(project, **values):
    """Change the last entry of the ledger as somebody would who knows how its hash is made."""
    path = project.path("state/ledger.jsonl")
    *lines, last = path.read_bytes().splitlines(True)
    entry = dict(json.loads(last.decode("utf-8")), **values)
    entry["hash"] = ledger_format.entry_hash(entry)
    path.write_bytes(b"".join(lines) + ledger_format.entry_line(entry))


@pytest.mark.parametrize("values", [{"event": "gc", "removed": 5}, {"event": "gc", "removed": [[1]]}, {"event": "gc"}, {"open": 5}, {"runId": [1]}, {"invocation": "x"}])
def test_gc_prunes_nothing_of_a_ledger_of_another_form(project, values):
    copying(project)
    project.ok("--run-id", "r")
    with_entry(project, **values)
    done = project.run("gc", "--keep-runs", "0")
    assert done.code == 5 and "state/ledger.jsonl:2: " in done.err and "Traceback" not in done.err, done


@pytest.mark.parametrize("values", [{"lastDurationSec": float("nan")}, {"lastDurationSec": float("inf")}])
def test_a_stage_record_with_odd_numbers_is_no_crash(project, values):
    copying(project)
    project.ok("--run-id", "r")
    project.write("state/stage_one.json", json.dumps(dict(project.json("state/stage_one.json"), **values)))
    for command in (("gc", "--keep-runs", "1"), ("status", "--json"), ("status",), ("plan",), ("history",)):
        done = project.run(*command)
        assert done.code in (0, 2, 5) and "Traceback" not in done.out + done.err, done


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "x"])
def test_a_stage_record_with_odd_numbers_of_a_run_that_died_is_no_crash(project, value):
    copying(project)
    project.spec(*project.json("pipeline.json")["stages"], {"name": "three", "processor": project.processor("kill", "if os.path.exists('deadly'):\n    os.kill(os.getppid(), 9)\n")})
    project.write("deadly", "")
    assert project.run("--run-id", "r").code == KILLED
    project.path("deadly").unlink()
    project.write("state/stage_one.json", json.dumps(dict(project.json("state/stage_one.json"), lastDurationSec=value)))
    for command in (("status",), ("history",), ("report",)):
        assert "Traceback" not in project.ok(*command, cwd=str(project.root)).err
    project.ok()


@pytest.mark.parametrize("stages", [5, [5], [{"madeBy": {"invocation": "x"}}], [{"madeBy": {"invocation": [1]}}]])
def test_gc_of_a_record_of_another_form_is_no_crash(project, stages):
    copying(project)
    project.ok("--run-id", "r")
    record = dict(project.json("state/run_r.json"), stages=stages)
    record["runHash"] = ledger_format.run_hash(record)
    project.write("state/run_r.json", json.dumps(record))
    with_entry(project, runHash=record["runHash"])
    done = project.run("gc", "--keep-runs", "1")
    assert done.code in (0, 5) and "Traceback" not in done.out + done.err, done
