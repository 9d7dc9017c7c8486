"""Control totals: that counts arrive, and that a stage whose numbers do not add up is not taken as done."""
from __future__ import annotations

import json
import os
import types

import control_totals
import pytest
import task_log
from model import ALL_OF_LOG

COUNTING = """
from processor_kit import Reject, lines
def check(line):
    if line.startswith("bad"):
        raise Reject("it is bad")
    return None if line.startswith("drop") else line
lines(check, "%s.txt")
"""
RESUMING = """
import os, sys
from processor_kit import lines
done = 0
def slow(line):
    global done
    done += 1
    if done == 3 and not os.environ.get("PIPELINE_RESUME"):
        os.kill(os.getpid(), 15)
    return line
lines(slow, "r.txt")
"""


def spec_of(**more):
    return types.SimpleNamespace(**{"name": "s", "reconcile": False, "max_rejects": None, **more})


def counts(read, written, rejected):
    return {"read": read, "written": written, "rejected": rejected}


def kit_stage(project, name, body=None, **more):
    project.write("bin/%s.py" % name, body or COUNTING % name)
    return dict({"name": name, "processor": "bin/%s.py" % name, "outputDir": "data/" + name}, **more)


def entry(project, name, run="r"):
    return next(one for one in project.json("state/run_%s.json" % run)["stages"] if one["stage"] == name)


# --- the arithmetic --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("limit, read, rejected, is_refused", [
    (0, 10, 0, False), (0, 10, 1, True), (3, 10, 3, False), (3, 10, 4, True), ("1%", 100, 1, False), ("1%", 99, 1, True), ("0.1%", 3000, 3, False),
    ("0.1%", 2999, 3, True), ("0%", 5, 0, False), ("0%", 5, 1, True), ("100%", 5, 5, False), (".5%", 200, 1, False), (".5%", 199, 1, True), ("1%", 0, 0, False),
    # what a float would get wrong: 0.07 * 100 is 7.000000000000001
    ("7%", 100, 7, False), ("7%", 100, 8, True), ("0.3%", 1000, 3, False)])
def test_the_limit_of_rejects_is_exact(limit, read, rejected, is_refused):
    text = control_totals.judge(spec_of(max_rejects=limit), counts(read, read - rejected, rejected), None, ["data/o.txt", "data/o.txt.rejects.jsonl"])
    assert bool(text) == is_refused
    if is_refused:
        assert str(limit) in text and str(rejected) in text and "data/o.txt.rejects.jsonl" in text


@pytest.mark.parametrize("found, expected, part", [
    (counts(5, 3, 2), None, ""), (counts(5, 3, 2), 5, ""), (counts(5, 3, 1), None, "1 dropped without a reason"), (counts(2, 3, 1), None, "2 more than there were"),
    (counts(5, 3, 2), 6, "read 5, but the stages that made its inputs wrote 6"), (counts(0, 0, 0), 0, "")])
def test_reconcile(found, expected, part):
    text = control_totals.judge(spec_of(reconcile=True), found, expected, [])
    assert (part in text) if part else text == ""


def test_counts_that_are_missing_are_named():
    assert control_totals.missing_counts(spec_of(reconcile=True), {"read": 1}) == ["written", "rejected"]
    assert control_totals.missing_counts(spec_of(max_rejects=1), {"read": 1}) == ["rejected"]
    assert control_totals.missing_counts(spec_of(max_rejects="1%"), {}) == ["rejected", "read"]
    assert control_totals.missing_counts(spec_of(), {}) == []


def maker(name, outputs, more=None, status="ok"):
    record = {"lastStatus": status, "outputs": [{"path": path, "bytes": 1, "sha256": digest} for path, digest in outputs], "counts": counts(9, 7, 2) if more is None else more}
    return name, "data/" + name, record


@pytest.mark.parametrize("inputs, makers, wanted, why", [
    ([("data/a/x", "1")], [maker("a", [("x", "1")])], 7, ""),
    ([("data/a/x", "1")], [maker("a", [("x", "1"), ("x.rejects.jsonl", "2")])], 7, ""),
    ([("data/a/x", "1"), ("data/a/x.rejects.jsonl", "2")], [maker("a", [("x", "1"), ("x.rejects.jsonl", "2")])], 9, ""),
    ([("data/a/x", "1"), ("data/b/y", "1")], [maker("a", [("x", "1")]), maker("b", [("y", "1")])], 14, ""),
    ([("data/a/x", "1"), ("in", "1")], [maker("a", [("x", "1")])], None, "no finished stage made in"),
    ([("data/a/x", "changed")], [maker("a", [("x", "1")])], None, ""),
    ([("data/a/x", "1")], [maker("a", [("x", "1")], status="failed")], None, ""),
    ([("data/a/x", "1")], [maker("a", [("x", "1"), ("z", "1")])], None, "only a part of what stage a made"),
    ([("data/a/x.rejects.jsonl", "2")], [maker("a", [("x", "1"), ("x.rejects.jsonl", "2")])], None, "only a part of what stage a made"),
    ([("data/a/x", "1")], [maker("a", [("x", "1")], more={})], None, "stage a made data/a/x and reported no counts"),
    ([("data/a/x", "1")], [maker("a", [("x", "1")], more={"written": True})], None, "reported no counts"),
    ([], [], None, "")])
def test_what_the_makers_wrote(inputs, makers, wanted, why):
    found, reason = control_totals.expected_read(inputs, makers)
    assert found == wanted and (why in reason if why else reason == "")


def test_the_counts_of_tasks_are_added():
    assert task_log.sum_counts([counts(1, 1, 0), {"read": 2, "merged": 4}, {}]) == {"read": 3, "written": 1, "rejected": 0, "merged": 4}


@pytest.mark.parametrize("text", ["[]", "{", '{"read": -1}', '{"read": true}', '{"read": 1.5}', '{"read": 9007199254740992}', '{"gr\u00fcn": 1}', "\udcff"])
def test_counts_that_cannot_be_used(tmp_path, text):
    path = tmp_path / "counts.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    found, problem = control_totals.read_counts(str(path))
    assert found is None and problem
    assert control_totals.read_counts(str(tmp_path / "none.json")) == (None, "")


# --- with the real program -------------------------------------------------------------------------------------------

def test_counts_reach_the_records_without_a_checkpoint_and_a_skip_keeps_them(project):
    project.write("data/in.txt", "a\nbad\nb\n")
    project.spec(kit_stage(project, "one", inputs=["data/in.txt"]),
                 kit_stage(project, "own", "from processor_kit import count, open_output\nwith open_output('o.txt') as f:\n    f.write('x')\ncount(read=4)\ncount(written=3, rejected=1)\n"),
                 {"name": "none", "processor": project.processor("none", "open(out + '/o', 'w').close()"), "outputDir": "data/none"})
    project.ok("--run-id", "r")
    assert [entry(project, name)["counts"] for name in ("one", "own", "none")] == [counts(3, 2, 1), counts(4, 3, 1), {}]
    assert project.json("state/stage_one.json")["counts"] == counts(3, 2, 1)
    assert [one["counts"] for one in project.json("state/metrics_r.json")["stages"]] == [counts(3, 2, 1), counts(4, 3, 1), {}]
    assert not project.exists("state/counts_one.json")
    project.ok("--run-id", "again")
    assert entry(project, "one", "again")["status"] == "skipped" and entry(project, "one", "again")["counts"] == counts(3, 2, 1)


def test_the_counts_of_a_resumed_stage_are_of_the_whole(project):
    project.write("data/in.txt", "1\n2\n3\n4\n5\n")
    project.spec(kit_stage(project, "r", RESUMING, inputs=["data/in.txt"], checkpoint={"enabled": True, "lineInterval": 1}, retry={"attempts": 2}, reconcile=True))
    done = project.ok("--run-id", "r")
    assert "[RESUME] r from line" in done.out and entry(project, "r")["counts"] == counts(5, 5, 0)


def test_a_dropped_line_fails_a_stage_that_reconciles_and_what_it_left_is_not_accepted(project):
    project.write("data/in.txt", "a\ndrop\nbad\n")
    project.spec(kit_stage(project, "one", inputs=["data/in.txt"], reconcile=True), {"name": "two", "processor": "bin/stage_copy.py", "inputs": ["data/one/*.txt"], "outputDir": "data/two"})
    done = project.run("--run-id", "r")
    assert done.code == 1 and "read 3, but written 1 + rejected 1 = 2; 1 dropped without a reason" in done.out
    assert entry(project, "one")["counts"] == counts(3, 1, 1) and entry(project, "two")["status"] == "notRun"
    # The files are there to be looked at; no other stage builds on them, also when it alone is asked for.
    assert project.read("data/one/one.txt") == "a\n" and project.exists("data/one/one.txt.rejects.jsonl")
    alone = project.run("--only", "two")
    assert alone.code == 1 and "input data/one/one.txt is not accepted: stage one failed: control totals" in alone.out and not project.exists("data/two/one.txt")
    assert "FAIL    two (input data/one/one.txt is not accepted" in project.ok("plan", "--only", "two").out
    # Who replaces a file answers for it.
    project.write("data/one/one.txt", "by hand\n")
    assert project.ok("--only", "two") and project.read("data/two/one.txt") == "by hand\n"
    project.ok("verify")


@pytest.mark.skipif(os.name == "nt", reason="making links needs rights there")
@pytest.mark.parametrize("link, target, how, reads", [
    ("latest", "data/one", "inputs", "latest/one.txt"), ("in/a.txt", "../data/one/one.txt", "forEach", "in/*.txt"), ("a.txt", "ROOT/data/one/one.txt", "inputs", "a.txt")])
def test_what_is_refused_is_not_accepted_through_a_link_either(project, link, target, how, reads):
    project.write("data/in.txt", "a\nbad\n")
    project.spec(kit_stage(project, "one", inputs=["data/in.txt"], maxRejects=0), {"name": "two", "processor": "bin/stage_copy.py", how: [reads], "outputDir": "data/two"})
    project.path(link).parent.mkdir(exist_ok=True)
    project.path(link).symlink_to(target.replace("ROOT", str(project.root)))
    assert project.run("--only", "one").code == 1
    done = project.run("--only", "two")
    assert done.code == 1 and "two: input data/one/one.txt is not accepted: stage one failed: 1 record rejected" in done.out and not project.exists("data/two"), done
    # A copy is another file: who makes it answers for it.
    project.path(link).unlink()
    project.write(reads.replace("*", "a"), "a\n")
    assert "RUN     two" in project.ok("plan", "--only", "two").out


def test_what_another_run_refuses_meanwhile_is_not_accepted_by_the_stages_that_follow(project):
    """This run has looked at the maker's record already, for the stage before."""
    project.write("data/in.txt", "a\nbad\n")
    one = kit_stage(project, "one", inputs=["data/in.txt"])
    project.write("data/one/more.txt", "of nobody\n")
    stages = [{"name": name, "processor": "bin/stage_copy.py", "inputs": ["data/one/" + read], "outputDir": "data/" + name} for name, read in (("two", "more.txt"), ("three", "one.txt"))]
    project.spec(dict(one, maxRejects=0))
    other = project.argv("--force", "one", "--run-id", "other")
    strict = project.path("strict.json")
    other[other.index("--pipeline") + 1] = str(strict)
    strict.write_bytes(project.path("pipeline.json").read_bytes())
    stages[0]["processor"] = project.processor("two", "import subprocess\nassert subprocess.run(%r, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL).returncode == 1\n" % other)
    project.spec(one, *stages)
    done = project.run("--run-id", "r")
    assert done.code == 1 and "[DONE] two" in done.out and "[FAIL] three: input data/one/one.txt is not accepted: stage one failed: 1 record rejected" in done.out, done


def test_a_stage_that_reads_another_number_than_was_written_before_it_fails(project):
    # It reads its first line only, and says so.
    short = "from processor_kit import count, inputs, open_output\nwith open_output('o.txt') as f:\n    f.write(open(inputs()[0]).readline())\ncount(read=1, written=1)\ncount(rejected=0)\n"
    project.write("data/in.txt", "a\nb\n")
    project.spec(kit_stage(project, "one", inputs=["data/in.txt"], reconcile=True), kit_stage(project, "two", short, inputs=["data/one/*.txt"], reconcile=True))
    done = project.run("--run-id", "r")
    assert done.code == 1 and "[FAIL] two: control totals: read 1, but the stages that made its inputs wrote 2" in done.out
    assert "not compared" not in done.out       # what the first stage reads nobody has counted before


@pytest.mark.skipif(os.name == "nt", reason="making links needs rights there")
@pytest.mark.parametrize("inputs, code, said", [
    (["latest/*.txt"], 1, "[FAIL] two: control totals: read 1, but the stages that made its inputs wrote 2"),
    (["latest/one.txt", "data/one/one.txt"], 0, "no finished stage made latest/one.txt")])
def test_what_was_written_before_is_compared_through_a_link_too(project, inputs, code, said):
    project.path("latest").symlink_to("data/one")
    project.write("data/in.txt", "a\nb\n")
    project.spec(kit_stage(project, "one", inputs=["data/in.txt"]),
                 kit_stage(project, "two", "from processor_kit import count\ncount(read=1, written=1, rejected=0)\n", inputs=inputs, reconcile=True))
    done = project.run()
    assert done.code == code and said in done.out, done


def test_a_file_of_nobody_in_the_folder_of_a_finished_stage_is_refused(project):
    """It would switch off the comparison, and be added to what was counted."""
    project.write("data/in.txt", "a\nb\n")
    project.write("data/table.txt", "c\n")
    two = kit_stage(project, "two", inputs=["data/one/*.txt"], reconcile=True)
    project.spec(kit_stage(project, "one", inputs=["data/in.txt"], reconcile=True), two)
    project.ok()
    project.write("data/one/zz.txt", "by hand\n")
    done = project.run()
    said = "[FAIL] two: control totals: input data/one/zz.txt lies in the output folder of stage one and is not what that stage has recorded: remove it, let that stage declare it, or read only what it makes\n"
    assert done.code == 1 and said in done.out, done
    project.path("data/one/zz.txt").unlink()
    project.ok()
    two["inputs"].append("data/table.txt")      # of no stage, and nothing to be compared with
    project.spec(kit_stage(project, "one", inputs=["data/in.txt"], reconcile=True), two)
    assert "[NOTE] two: what it read is not compared with what was written before: no finished stage made data/table.txt\n" in project.ok().out


def test_files_of_others_in_the_folder_of_a_finished_stage_are_not_compared_and_not_refused(project):
    """Of a stage that shares the folder, and of another pipeline."""
    project.write("data/in.txt", "a\nb\n")
    one = kit_stage(project, "one", inputs=["data/in.txt"], outputDir="data/both", outputs=["one.txt"])
    three = kit_stage(project, "three", inputs=["data/both/*.txt"], reconcile=True)
    other = kit_stage(project, "other", inputs=["data/in.txt"], outputDir="data/both", outputs=["other.txt"])
    project.spec(other, name="another")
    project.ok()
    project.spec(one, three)
    said = "[NOTE] three: what it read is not compared with what was written before: no finished stage made data/both/other.txt\n"
    assert said in project.ok().out
    project.spec(one, dict(other, name="two"), three)
    project.ok()
    project.write("data/both/more.txt", "c\n")
    assert "[NOTE] three: what it read is not compared" in project.ok().out


def test_a_file_of_nobody_is_refused_when_it_is_asked_for_later_too(project):
    project.write("data/in.txt", "a\nb\n")
    two = kit_stage(project, "two", inputs=["data/one/*.txt"])
    project.spec(kit_stage(project, "one", inputs=["data/in.txt"]), two)
    project.ok()
    project.write("data/one/zz.txt", "by hand\n")
    project.ok()
    project.spec(kit_stage(project, "one", inputs=["data/in.txt"]), dict(two, reconcile=True))
    done = project.run()
    assert done.code == 1 and "[FAIL] two: control totals: input data/one/zz.txt lies in the output folder of stage one" in done.out and "recorded by run" in done.out, done


def test_too_many_rejects_fail_the_stage_and_the_message_names_their_file(project):
    project.write("data/in.txt", "a\nbad\nbad too\nb\n")
    stage = kit_stage(project, "one", inputs=["data/in.txt"], maxRejects=1)
    project.spec(stage)
    done = project.run()
    assert done.code == 1 and "2 records rejected, more than maxRejects 1; line and reason of each: data/one/one.txt.rejects.jsonl" in done.out
    rejects = [json.loads(line) for line in project.read("data/one/one.txt.rejects.jsonl").splitlines()]
    assert [(one["line"], one["reason"]) for one in rejects] == [(2, "it is bad"), (3, "it is bad")]
    assert sorted(project.json("state/stage_one.json")["left"]) == ["one.txt", "one.txt.rejects.jsonl"]
    project.spec(dict(stage, maxRejects="50%"))
    project.ok()


def test_a_stricter_limit_is_applied_to_what_was_recorded_and_a_laxer_one_reruns_nothing(project):
    project.write("data/in.txt", "a\nbad\n")
    stage = kit_stage(project, "one", inputs=["data/in.txt"])
    project.spec(dict(stage, maxRejects=1))
    project.ok("--run-id", "first")
    project.spec(dict(stage, maxRejects=0))
    assert "FAIL    one (1 record rejected, more than maxRejects 0" in project.ok("plan").out
    done = project.run()
    assert done.code == 1 and "1 record rejected, more than maxRejects 0" in done.out and "recorded by run first" in done.out and "[START]" not in done.out
    for limits in ({}, {"maxRejects": 5}, {"maxRejects": "50%", "reconcile": True}):
        project.spec(dict(stage, **limits))
        assert "[SKIP] one" in project.ok().out
    project.ok("verify")


def test_a_processor_without_counts_is_told_so_and_counts_that_are_asked_for_later_are_fetched(project):
    copy = {"name": "c", "processor": "bin/stage_copy.py", "inputs": ["data/in.txt"], "outputDir": "data/c"}
    project.write("data/in.txt", "a\n")
    project.spec(copy)
    project.ok()
    project.spec(dict(copy, reconcile=True))
    assert "RUN     c (its record has no count of read and written and rejected, which is asked for now)" in project.ok("plan").out
    done = project.run()
    assert done.code == 1 and "[START] c" in done.out
    assert "reconcile needs the counts of the processor, and it reported no read and no written and no rejected: use the processor kit" in done.out


@pytest.mark.parametrize("counts, why", [
    ("'[1]'", "it is not an object"), ("'{'", "it is not JSON"),
    ("'{\"rejected\": 0, \"gr\\\\u00f6\\\\u00dfe\": 3}'", 'the name "gr\\u00f6\\u00dfe" is not of printable ASCII characters'),
    ("'{\"rejected\": 0, \"a\\\\tb\": 3}'", 'the name "a\\tb" is not of printable ASCII characters'), ("'[' * 200000", "it is not JSON"),
    ("'{\"rejected\": 0%s}' % (' ' * (1 << 20))", "it is larger than 1048576 bytes")], ids=["list", "cut", "other letters", "tab", "deep", "long"])
def test_counts_of_another_form_are_a_note_and_no_reason_to_fail(project, counts, why):
    body = "open(out + '/o', 'w').close()\nopen(os.environ['PIPELINE_COUNTS_FILE'], 'w').write(%s)\n" % counts
    project.spec({"name": "x", "processor": project.processor("x", body)})
    assert "[NOTE] x: the counts that it reported are not used: " + why in project.ok().out
    project.spec({"name": "x", "processor": project.processor("x", body + "# anew\n"), "maxRejects": 3})
    done = project.run()
    said = "x: maxRejects needs the counts of the processor, and the file in which it reported them cannot be used: %s; use the processor kit, or write " % why
    assert done.code == 1 and "[FAIL] " + said in done.out and "reported no" not in done.out, done


def test_a_file_of_counts_may_be_as_long_as_is_said(tmp_path):
    path = tmp_path / "counts.json"
    text = '{"read": 1%s}'
    path.write_text(text % (" " * ((1 << 20) - len(text) + 2)), encoding="ascii")
    assert path.stat().st_size == 1 << 20 and control_totals.read_counts(str(path)) == ({"read": 1}, "")


def test_a_task_whose_file_of_counts_cannot_be_used_is_told_why(project):
    project.write("in/a.txt", "a\n")
    body = "open(out + '/o', 'w').close()\nopen(os.environ['PIPELINE_COUNTS_FILE'], 'w').write('{\"read\": 1' + ' ' * (1 << 20) + '}')\n"
    project.spec({"name": "x", "processor": project.processor("x", body), "forEach": "in/*.txt", "reconcile": True})
    done = project.run()
    assert done.code == 1 and "reconcile needs the counts of the processor, and the file in which it reported them cannot be used: it is larger than 1048576 bytes" in done.out, done


@pytest.mark.parametrize("stage", [{}, {"forEach": "data/in/*.txt"}], ids=["stage", "task"])
def test_counts_of_a_failed_attempt_do_not_count(project, stage):
    project.write("data/in/a.txt", "a\n")
    body = ("path = os.environ['PIPELINE_COUNTS_FILE']\nopen(out + '/o', 'w').close()\n"
            "if os.environ['PIPELINE_ATTEMPT'] == '1':\n    open(path, 'w').write('{\"read\": 7}')\n    sys.exit(1)\nassert not os.path.exists(path)\n")
    project.spec(dict({"name": "x", "processor": project.processor("x", body), "retry": {"attempts": 2, "baseDelayMs": 0}}, **stage))
    project.ok("--run-id", "r")
    assert entry(project, "x")["counts"] == {}


# --- stages of several tasks -----------------------------------------------------------------------------------------

def test_the_counts_of_the_tasks_of_a_stage_are_judged_together(project):
    for name, text in (("a", "1\nbad\n"), ("b", "2\nbad\n"), ("c", "3\n")):
        project.write("data/in/%s.txt" % name, text)
    body = "import os\nfrom processor_kit import Reject, lines\n" + COUNTING.split("import Reject, lines\n")[1] % "x"
    stage = kit_stage(project, "each", body.replace('"x.txt"', "os.path.basename(os.environ['PIPELINE_TASK'])"), forEach="data/in/*.txt", reconcile=True, maxRejects=1)
    after = {"name": "after", "processor": "bin/stage_copy.py", "inputs": ["data/each/a.txt"], "outputDir": "data/after"}
    project.spec(stage, after)
    done = project.run("--run-id", "r")
    assert done.code == 1 and "[FAIL] each: 2 records rejected, more than maxRejects 1; line and reason of each: data/each/a.txt.rejects.jsonl, data/each/b.txt.rejects.jsonl" in done.out, done
    assert entry(project, "each")["counts"] == counts(5, 3, 2)
    assert "input data/each/a.txt is not accepted" in project.run("--only", "after").out
    again = "the tasks stay done and are judged again by the next run: --force each does them anew"
    assert again in done.out and again in project.ok("plan").out
    # No task is done again for another limit.
    project.spec(dict(stage, maxRejects=2), after)
    done = project.ok("--run-id", "q")
    assert "(3 tasks: 0 to do, 3 up to date)" in done.out and entry(project, "each", "q")["counts"] == counts(5, 3, 2) and project.exists("data/after/a.txt")
    project.spec(dict(stage, maxRejects=0), after)
    assert "recorded by run q" in project.run().out


def test_the_counts_of_chunks_are_judged_together_and_compared_with_what_was_written_before(project):
    project.write("data/in.txt", "".join("%d\n" % number for number in range(50)) + "bad\n")
    project.spec(kit_stage(project, "one", inputs=["data/in.txt"], reconcile=True),
                 kit_stage(project, "two", inputs=["data/one/one.txt"], reconcile=True, chunks={"bytes": 40}))
    done = project.ok("--run-id", "r")
    assert entry(project, "two")["counts"] == counts(50, 50, 0) and entry(project, "two")["tasks"]["total"] > 2, done
    assert "[NOTE] two" not in done.out and project.read("data/two/two.txt") == project.read("data/one/one.txt")


# --- of many outputs a record tells only that there are so many ------------------------------------------------------

EACH = "from processor_kit import Reject, lines, output_name\ndef check(line):\n    if line.startswith('bad'):\n        raise Reject('it is bad')\n    return line\nlines(check, output_name('{stem}.o'))\n"


def each_file(project, number, *lines, **more):
    for one in range(number):
        project.write("in/%02d.txt" % one, "".join(lines))
    return kit_stage(project, "each", EACH, forEach="in/*.txt", **more)


def reader(project, **more):
    return kit_stage(project, "reads", inputs=["data/each/*.o"], **more)


@pytest.mark.parametrize("number", [5, 6, 20])
def test_what_is_refused_of_many_outputs_is_not_accepted_either(project, number):
    project.spec(each_file(project, number, "good\n", "bad\n", maxRejects=0), reader(project))
    done = project.run("--run-id", "r1")
    assert done.code == 1 and "line and reason of each: data/each/00.o.rejects.jsonl, data/each/01.o.rejects.jsonl, data/each/02.o.rejects.jsonl, ..." in done.out, done
    done = project.run("--run-id", "r2", "--only", "reads")
    assert done.code == 1 and "input data/each/00.o, data/each/01.o, data/each/02.o is not accepted: stage each failed" in done.out, done
    record = project.json("state/stage_each.json")
    assert len(json.dumps(record)) < 9000 and (record["refused"] == ALL_OF_LOG) == (number > 5), record
    project.spec(each_file(project, number, "good\n", "bad\n", maxRejects="50%"), reader(project))
    project.ok("--run-id", "r3")


@pytest.mark.parametrize("number", [10, 11])
def test_what_is_read_of_many_outputs_is_compared_too(project, number):
    project.write("bin/lie.py", EACH + "from processor_kit import count\ncount(read=5, written=5)\n")
    project.spec(dict(each_file(project, number, "good\n"), processor="bin/lie.py"), reader(project, reconcile=True))
    done = project.run()
    assert done.code == 1 and "[FAIL] reads: control totals: read %d, but the stages that made its inputs wrote %d" % (number, 6 * number) in done.out, done


@pytest.mark.parametrize("number", [10, 11])
@pytest.mark.parametrize("how", ["inputs", "forEach"])
def test_nobody_waits_for_what_a_stage_of_many_outputs_has_made(project, number, how):
    later = reader(project, settleSec=600)
    if how == "forEach":
        later["forEach"] = later.pop("inputs")
        later["processor"] = "bin/each.py"
    project.spec(each_file(project, number, "good\n"), later)
    project.ok()


def test_what_is_kept_of_a_file_that_is_gone_is_read_on_and_counted_there(project):
    project.spec(each_file(project, 3, "one\n", "two\n"), reader(project, reconcile=True))
    project.ok("--run-id", "r1")
    project.path("in/01.txt").unlink()
    project.write("in/00.txt", "one\ntwo\nthree\n")
    project.ok("--run-id", "r2")
    assert entry(project, "each", "r2")["counts"] == counts(5, 5, 0) and entry(project, "reads", "r2")["counts"] == counts(7, 7, 0)
    project.write("data/each/01.o", "spoilt\n")    # of nobody now
    project.write("in/00.txt", "one\n")
    done = project.run("--run-id", "r3")
    assert done.code == 1 and "[FAIL] reads: control totals: input data/each/01.o lies in the output folder of stage each and is not what that stage has recorded" in done.out, done


@pytest.mark.parametrize("kept", ["nothing", "a part"])
def test_what_is_not_kept_of_a_file_that_is_gone_is_not_counted_there(project, kept):
    project.spec(each_file(project, 3, "one\n", *(["bad\n"] if kept == "a part" else []), maxRejects=9), reader(project, reconcile=True))
    project.ok("--run-id", "r1")
    project.path("in/01.txt").unlink()
    project.path("data/each/01.o").unlink()
    done = project.run("--run-id", "r2")
    assert done.code == 0 and entry(project, "reads", "r2")["counts"] == counts(2, 2, 0), done
    assert project.json("state/stage_each.json").get("inOutputs") == ({} if kept == "a part" else None)


@pytest.mark.parametrize("texts, wanted", [
    ({"a": "head\n" + "line\n" * 50, "b": "head\n" + "line\n" * 50}, 101), ({"a": "head\n", "b": "head\n" + "line\n" * 50}, 51),
    ({"a": "head", "b": "head"}, 1), ({"a": "head\n" + "line\n" * 50}, 51)], ids=["two", "a header alone", "short", "one"])
def test_header_lines_that_the_joining_cuts_off_are_not_expected_by_the_next_stage(project, texts, wanted):
    for name, text in texts.items():
        project.write("in/%s.txt" % name, text)
    project.write("bin/cut.py", "from processor_kit import lines\nlines(str.upper, 'r.txt')\n")
    project.spec({"name": "cut", "processor": "bin/cut.py", "inputs": ["in/*.txt"], "outputDir": "data/cut", "chunks": {"bytes": 100, "headerLines": 1}, "reconcile": True},
                 kit_stage(project, "reads", inputs=["data/cut/r.txt"], reconcile=True))
    done = project.run("--run-id", "r")
    assert done.code == 0 and entry(project, "reads")["counts"] == counts(wanted, wanted, 0), done


def test_the_counts_of_finished_chunks_are_told_of_a_stage_that_failed(project):
    project.write("in/a.txt", "line\n" * 60 + "boom\n" + "line\n" * 60)
    project.write("bin/cut.py", "from processor_kit import lines\ndef f(line):\n    if 'boom' in line:\n        raise SystemExit(7)\n    return line\nlines(f, 'o')\n")
    project.spec({"name": "cut", "processor": "bin/cut.py", "inputs": ["in/*.txt"], "outputDir": "data/cut", "chunks": {"bytes": 50}})
    assert project.run("--run-id", "r").code == 1
    found = entry(project, "cut")
    assert found["tasks"]["ok"] == found["tasks"]["total"] - 1 > 5 and found["counts"]["read"] > 5 * found["tasks"]["ok"], found


def test_where_no_task_has_finished_there_is_nothing_to_count(project):
    project.write("bin/each.py", EACH.replace("    if line", "    if line.startswith('fail'):\n        raise SystemExit(3)\n    if line"))
    project.path("in").mkdir()
    project.spec({"name": "each", "processor": "bin/each.py", "forEach": "in/*.txt", "outputDir": "data/each", "reconcile": True, "prune": True,
                  "allowNoInputs": True, "maxFailedTasks": 3})
    project.ok("--run-id", "none")
    assert "[SKIP] each" in project.ok().out
    project.write("in/a.txt", "fail\n")
    assert "1 failed and allowed" in project.ok("--run-id", "failed").out
    project.write("in/a.txt", "good\n")
    project.ok("--run-id", "good")
    project.path("in/a.txt").unlink()
    project.ok("--run-id", "gone")
    assert [entry(project, "each", run)["counts"] for run in ("none", "failed", "good", "gone")] == [counts(0, 0, 0), counts(0, 0, 0), counts(1, 1, 0), counts(0, 0, 0)]
