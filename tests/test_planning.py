"""What must run and why: the pure decision, the plan that writes nothing, and what a run does with it."""
from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, RUNNER, Project, run_without_might, text_of

import processor_call
import stage_markers
import stage_order
from model import Checkpoint, Facts, Material, Options, PipelineSpec, StageSpec, UsageError
from planning import decide, override_params, select_stages

KEY = "k" * 64
PARSED = """
import runpy, sys
sys.path.insert(0, %r)
import state_store
real = state_store._parsed
def parsed(data):
    found = real(data)
    print("parsed", *[found[0].get(name) for name in ("stage", "lastStatus")], flush=True)
    return found
state_store._parsed = parsed
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
PARTS = {"keyVersion": 1, "pipeline": "p", "stage": "s", "outputDir": "d", "outputs": None, "args": [], "params": {}, "env": {}, "passEnv": None,
         "processor": {"path": "bin/x.py", "sha256": "0"}, "modules": [], "inputs": [], "watch": []}


def stage(name="s", **changes):
    fields = dict.fromkeys(StageSpec._fields)
    fields.update(name=name, processor="bin/p.py", output_dir="data/" + name, inputs=(), watch=(), needs=(), idempotent=True, checkpoint=False, params={}, outputs=None, for_each=())
    fields.update(changes)
    return StageSpec(**fields)


def material(missing=(), parts=PARTS, key=KEY):
    return Material(key, parts, [], [], list(missing), {}, 0)


def record(status="ok", key=KEY, parts=PARTS, outputs=1, **more):
    return dict({"lastStatus": status, "idempotencyKey": key, "keyParts": parts, "lastError": "exit code 3", "lastRunId": "r7",
                 "outputs": [{"path": "o%d" % number} for number in range(outputs)]}, **more)


def checkpoint(lines=5, problem="", resumable=True, complete=False):
    return Checkpoint(lines, {}, {}, False, complete, problem, resumable)


OTHER = record(key="o" * 64, parts=dict(PARTS, params={"a": 1, "b": 2}))
DECISIONS = {
    "inputs are not there": (Facts(material(["input x: no file matches", "input y: there is no such file"]), record(), KEY, [], None, False), {},
                             ("FAIL", ["input x: no file matches", "input y: there is no such file"], 0, "")),
    "never run": (Facts(material(), None, None, [], None, False), {}, ("RUN", ["no record of an earlier run"], 0, "")),
    "up to date": (Facts(material(), record(), KEY, [], None, False), {}, ("SKIP", ["up to date: key kkkkkkkkkkkk unchanged, 1 output verified"], 0, "")),
    "up to date, two outputs": (Facts(material(), record(outputs=2), KEY, [], None, False), {},
                                ("SKIP", ["up to date: key kkkkkkkkkkkk unchanged, 2 outputs verified"], 0, "")),
    "up to date, an old checkpoint about": (Facts(material(), record(), KEY, [], checkpoint(), False), {},
                                            ("SKIP", ["up to date: key kkkkkkkkkkkk unchanged, 1 output verified"], 0, "")),
    "forced": (Facts(material(), record(), KEY, [], None, False), {"forced": True}, ("RUN", ["forced"], 0, "")),
    "forced with a checkpoint": (Facts(material(), record("failed"), None, [], checkpoint(), False), {"forced": True}, ("RUN", ["forced"], 0, "the stage was forced")),
    "forced with a complete checkpoint": (Facts(material(), record(), KEY, [], checkpoint(complete=True), False), {"forced": True}, ("RUN", ["forced"], 0, "")),
    "forced, inputs are not there": (Facts(material(["input x: no file matches"]), None, None, [], None, False), {"forced": True},
                                     ("FAIL", ["input x: no file matches"], 0, "")),
    "marker removed": (Facts(material(), record(), None, [], None, False), {}, ("RUN", ["marker missing"], 0, "")),
    "marker of another key": (Facts(material(), record(), "x", [], None, False), {}, ("RUN", ["the marker is of another key"], 0, "")),
    "marker that is not ours": (Facts(material(), record(), "", [], None, False), {}, ("RUN", ["the marker is of another key"], 0, "")),
    "outputs gone": (Facts(material(), record(), KEY, ["output a missing", "output b changed"], None, False), {}, ("RUN", ["output a missing", "output b changed"], 0, "")),
    "outputs and marker gone": (Facts(material(), record(), None, ["output a missing"], None, True), {}, ("RUN", ["output a missing", "marker missing"], 0, "")),
    "died before the marker": (Facts(material(), record(), None, [], None, True), {},
                               ("SEAL", ["up to date: finished by run r7, which died before it wrote the marker; marker restored"], 0, "")),
    "died before the marker, and somebody put a checkpoint there": (Facts(material(), record(), None, [], checkpoint(1), True), {}, ("RESUME", ["marker missing"], 1, "")),
    "idempotency disabled": (Facts(material(), record(), KEY, [], None, False), {"idempotent": False}, ("RUN", ["idempotency is disabled"], 0, "")),
    "another key": (Facts(material(), OTHER, KEY, [], None, False), {}, ("RUN", ["params.a removed", "params.b removed"], 0, "")),
    "another key, and idempotency disabled": (Facts(material(), OTHER, KEY, [], None, False), {"idempotent": False}, ("RUN", ["params.a removed", "params.b removed"], 0, "")),
    "another key, nobody knows why": (Facts(material(), record(key="o"), KEY, [], None, False), {}, ("RUN", ["key changed"], 0, "")),
    "many changes": (Facts(material(parts=dict(PARTS, params={c: 1 for c in "abcdefgh"})), record(key="o"), KEY, [], None, False), {},
                     ("RUN", ["params.%s added" % c for c in "abcde"] + ["and 3 more changes"], 0, "")),
    "failed before": (Facts(material(), record("failed"), None, [], None, False), {}, ("RUN", ["last run failed: exit code 3"], 0, "")),
    "interrupted before": (Facts(material(), record("interrupted"), None, [], None, False), {}, ("RUN", ["last run was interrupted"], 0, "")),
    "died": (Facts(material(), record("running"), None, [], None, False), {}, ("RUN", ["last run died"], 0, "")),
    "died, with a checkpoint": (Facts(material(), record("running"), None, [], checkpoint(7), False), {}, ("RESUME", ["last run died"], 7, "")),
    "failed, with a checkpoint": (Facts(material(), record("failed"), None, [], checkpoint(7), False), {}, ("RESUME", ["last run failed: exit code 3"], 7, "")),
    "marker removed, with a checkpoint": (Facts(material(), record(), None, [], checkpoint(1), False), {}, ("RESUME", ["marker missing"], 1, "")),
    "a checkpoint that cannot be used": (Facts(material(), record("running"), None, [], checkpoint(7, "it is damaged", False), False), {},
                                         ("RUN", ["last run died"], 0, "it is damaged")),
    "a checkpoint without work": (Facts(material(), record("running"), None, [], checkpoint(0, "", False), False), {}, ("RUN", ["last run died"], 0, "")),
}


@pytest.mark.parametrize("name", DECISIONS)
def test_decide(name):
    facts, options, expected = DECISIONS[name]
    found = decide(stage(idempotent=options.get("idempotent", True)), facts, options.get("forced", False))
    assert tuple(found) == expected


@pytest.mark.parametrize("maker, user, expected", [
    ({}, {"inputs": ("data/in/*.txt",)}, False),
    ({}, {"inputs": ("data/a/x.txt",)}, True),
    ({}, {"inputs": ("data/a/*.txt",)}, True),
    ({}, {"inputs": ("data/*/x.txt",)}, True),
    ({}, {"inputs": ("**/x.txt",)}, True),
    ({}, {"inputs": ("data/a/sub/x.txt",)}, True),
    ({}, {"inputs": ("data/ab/x.txt",)}, False),
    ({}, {"inputs": ("data/ab/*.txt",)}, False),
    ({}, {"watch": ("data/a/x.txt",)}, True),
    ({}, {"needs": ("a",)}, True),
    ({}, {"needs": ("b",)}, False),
    ({}, {}, False),
    ({"outputs": ("x.txt",)}, {"inputs": ("data/a/x.txt",)}, True),
    ({"outputs": ("*.txt",)}, {"inputs": ("data/a/x.txt",)}, True),
    ({"outputs": ("y.txt",)}, {"inputs": ("data/a/x.txt",)}, False),
    ({"outputs": ("sub/**",)}, {"inputs": ("data/a/sub/deep/x.txt",)}, True),
    ({"output_dir": "data"}, {"inputs": ("data/in/*.txt",)}, True),
    ({"output_dir": "data/in/made"}, {"inputs": ("data/in/*.txt",)}, False),
    ({"output_dir": "data/in/made"}, {"inputs": ("data/in/*/*.txt",)}, True),
    ({"output_dir": "data/in/made"}, {"inputs": ("data/in/**",)}, True),
    ({}, {"for_each": ("data/a/*.txt",)}, True),
    ({"output_dir": "other"}, {"inputs": ("data/[a]/*.txt",)}, False),
])
def test_which_stage_may_make_anothers_inputs(maker, user, expected):
    assert (stage_order.edges([stage("a", **maker), stage("b", **user)])["b"] == ["a"]) is expected


def options(**chosen):
    return Options("run", [], "", None, "r", **dict(dict(force=frozenset(), only=frozenset(), first=None, last=None, params={}, rehash=False, verbose=False), **chosen))


def spec(*names, **params):
    return PipelineSpec("p", "", "", (), "scan", tuple(stage(name, params=params.get(name, {})) for name in names), "", "", "")


@pytest.mark.parametrize("chosen, expected", [
    ({}, "a b c d"), ({"only": frozenset("c")}, "c"), ({"only": frozenset("da")}, "a d"), ({"first": "b"}, "b c d"), ({"last": "b"}, "a b"),
    ({"first": "b", "last": "c"}, "b c"), ({"first": "b", "last": "b"}, "b"), ({"first": "b", "only": frozenset("ac")}, "c"), ({"force": frozenset("b")}, "a b c d"),
])
def test_select_stages(chosen, expected):
    assert [one.name for one in select_stages(spec(*"abcd"), options(**chosen))] == expected.split()


@pytest.mark.parametrize("chosen", [{"only": frozenset(["stage_tow"])}, {"force": frozenset(["stage_tow"])}, {"first": "stage_tow"}, {"last": "stage_tow"}])
def test_unknown_stages_are_named_with_the_nearest(chosen):
    with pytest.raises(UsageError, match='no stage is named "stage_tow"; did you mean stage_two?'):
        select_stages(spec("stage_one", "stage_two"), options(**chosen))


def test_unknown_stage_like_no_other_lists_all():
    with pytest.raises(UsageError, match='no stage is named "qqq"; there are: a, b'):
        select_stages(spec("a", "b"), options(only=frozenset(["qqq"])))


def test_a_selection_that_leaves_no_stage_is_refused(chain):
    for more in ([], ["plan"]):
        done = chain.run(*more, "--only", "copy", "--from", "upper")
        assert done.code == 2 and "--only copy: not among the stages that --from upper leave; leave out" in done.err and "[" not in done.out, done


def test_from_after_until():
    with pytest.raises(UsageError, match="--from c comes after --until a"):
        select_stages(spec(*"abc"), options(first="c", last="a"))


def test_override_params_changes_only_stages_that_have_the_param():
    before = spec("a", "b", "c", a={"day": 1, "x": 2}, b={"day": 5})
    after = override_params(before, {"day": 9})
    assert [one.params for one in after.stages] == [{"day": 9, "x": 2}, {"day": 9}, {}]
    assert [one.params for one in before.stages] == [{"day": 1, "x": 2}, {"day": 5}, {}]


# --- the plan of the real program

def look(root):
    """Return all that can be seen of a folder tree: names, kinds, sizes, modification times, content."""
    found = {".": root.stat().st_mtime_ns}
    for path in sorted(root.rglob("*")):
        stat = path.lstat()
        found[str(path)] = (stat.st_mode, stat.st_size, stat.st_mtime_ns, stat.st_ino, path.read_bytes() if path.is_file() else None)
    return found


def make_chain(project):
    """Two stages, the second upper-cases what the first copies; both count their runs in <outputDir>/.runs."""
    project.write("data/input/a.txt", "eins\nzwei\ndrei\n")
    count = "open(os.path.join(out, '.runs'), 'a').write('x')\n"
    copy = project.processor("copy", count + "for i in inputs:\n    open(os.path.join(out, os.path.basename(i)), 'wb').write(open(i, 'rb').read())\n")
    upper = project.processor("upper", count + "path = os.path.join(out, 'result.txt')\nif os.path.isdir(path):\n    sys.exit('a folder')\n"
                              "open(path, 'w').write(''.join(open(i).read().upper() for i in inputs))\n")
    project.stages = [{"name": "copy", "processor": copy, "inputs": ["data/input/*.txt"], "outputDir": "data/work"},
                      {"name": "upper", "processor": upper, "inputs": ["data/work/*.txt"], "outputDir": "data/output", "outputs": ["result.txt"]}]
    project.spec(*project.stages)
    return project


@pytest.fixture
def chain(project):
    return make_chain(project)


@pytest.fixture(scope="module")
def finished_once(tmp_path_factory):
    made = make_chain(Project(tmp_path_factory.mktemp("planning") / "fertig lauf"))
    made.ok("--run-id", "r1")
    return made


@pytest.fixture
def finished(finished_once, tmp_path):
    """A copy of its own of the chain after one run."""
    shutil.copytree(str(finished_once.root), str(tmp_path / "kopie"))
    copy = Project.__new__(Project)
    copy.root, copy.stages = tmp_path / "kopie", finished_once.stages
    return copy


def runs(project, folder):
    path = project.path(folder + "/.runs")
    return len(path.read_bytes()) if path.exists() else 0


def plan(project, *arguments):
    return project.ok("plan", *arguments).out.splitlines()


@pytest.mark.parametrize("words", [["plan"], ["--dry-run"], ["run", "--dry-run"], ["plan", "--dry-run"]])
def test_plan_before_the_first_run_writes_nothing_at_all(chain, words):
    chain.knows_scans = False
    before = look(chain.root)
    done = chain.ok(*words)
    assert done.out == "RUN     copy (no record of an earlier run)\nPENDING upper (waits for copy)\n", done
    assert done.err == ""
    assert look(chain.root) == before
    assert not chain.exists("state") and not chain.exists("locks")


def test_plan_of_every_kind_writes_nothing_at_all(finished):
    before = look(finished.root)
    lines = plan(finished)
    assert [line[:14] for line in lines] == ["SKIP    copy (", "SKIP    upper "], lines
    assert look(finished.root) == before
    finished.path("data/output/.upper.done").unlink()
    before = look(finished.root)
    assert plan(finished)[1] == "RUN     upper (marker missing)"
    assert plan(finished, "--force", "copy") == ["RUN     copy (forced)", "PENDING upper (waits for copy)"]
    assert plan(finished, "--rehash")[0].startswith("SKIP    copy")
    assert plan(finished, "--only", "upper") == ["RUN     upper (marker missing)"]
    assert plan(finished, "--run-id", "other")[0].startswith("SKIP ")
    assert look(finished.root) == before


def test_plan_says_resume_and_from_which_line(project):
    project.write("data/in.txt", "a\nb\nc\n")
    project.spec({"name": "up", "processor": "bin/stage_upper.py", "inputs": ["data/in.txt"], "checkpoint": {"enabled": True}})
    project.ok()
    project.write("state/progress_up.json", '{"lineOffset": 2}')
    project.path("data/s1/.up.done").unlink()
    before, stamp = look(project.root), project.path("state/progress_up.json").stat().st_mtime_ns
    assert plan(project) == ["RESUME  up from line 2 (marker missing)"]
    assert plan(project, "--force", "up") == ["RUN     up (forced; checkpoint not used: the stage was forced)"]
    project.write("state/progress_up.json", '{"lineOffset": "2"}')
    assert plan(project) == ['RUN     up (marker missing; checkpoint not used: its lineOffset is "2")']
    project.write("state/progress_up.json", '{"lineOffset": 2}')
    os.utime(str(project.path("state/progress_up.json")), ns=(stamp, stamp))
    assert look(project.root) == before


def test_plan_names_missing_inputs(chain):
    chain.path("data/input/a.txt").unlink()
    assert plan(chain)[0] == "FAIL    copy (input data/input/*.txt: no file matches)"


def test_plan_of_a_damaged_record_only_says_so(finished):
    finished.write("state/stage_copy.json", "{")
    before = look(finished.root)
    done = finished.run("plan")
    assert done.code == 5 and "state/stage_copy.json is damaged (not JSON); a run would set it aside" in done.err, done
    assert look(finished.root) == before


def test_plan_names_a_living_holder_without_touching_it(chain):
    gate = chain.path("gate")
    chain.write("bin/copy.py", chain.read("bin/copy.py") + "open(os.path.join(os.environ['PIPELINE_ROOT'], 'inside'), 'w').close()\n"
                "while not os.path.exists(%r):\n    time.sleep(0.01)\n" % str(gate))
    process = chain.start("--run-id", "living")
    try:
        import time
        deadline = time.monotonic() + 60
        while not chain.exists("inside"):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.01)
        line = plan(chain)[0]
        assert "held by pid %d on " % process.pid in line and "(run living, since " in line, line
    finally:
        gate.touch()
        process.communicate(timeout=60)
    assert process.returncode == 0


# --- what a run does

def test_second_run_skips_with_reasons_and_takes_no_lock_and_writes_no_stage_record(chain):
    chain.ok("--run-id", "r1")
    records = [chain.read("state/stage_%s.json" % name) for name in ("copy", "upper")]
    stamps = [chain.path("state/stage_%s.json" % name).stat().st_ino for name in ("copy", "upper")]
    key = chain.json("state/stage_copy.json")["idempotencyKey"]
    done = chain.ok("--run-id", "r2")
    assert "[SKIP] copy (up to date: key %s unchanged, 1 output verified)\n" % key[:12] in done.out, done
    assert "[SKIP] upper (up to date: key " in done.out and "Run r2 state: completed (0 ok, 2 skipped, 0 failed)" in done.out, done
    assert records == [chain.read("state/stage_%s.json" % name) for name in ("copy", "upper")]
    assert stamps == [chain.path("state/stage_%s.json" % name).stat().st_ino for name in ("copy", "upper")]
    assert (runs(chain, "data/work"), runs(chain, "data/output")) == (1, 1)


def test_early_cutoff(finished):
    done = finished.ok("--force", "copy")
    assert "[DONE] copy" in done.out and "[SKIP] upper" in done.out, done
    assert (runs(finished, "data/work"), runs(finished, "data/output")) == (2, 1)


def test_a_change_goes_through(finished):
    finished.write("data/input/a.txt", "vier\n")
    assert plan(finished) == ["RUN     copy (input data/input/a.txt changed)", "PENDING upper (waits for copy)"]
    done = finished.ok()
    assert "[DONE] copy" in done.out and "[DONE] upper" in done.out
    assert finished.read("data/output/result.txt") == "VIER\n"


def test_force_starts_from_zero(project):
    project.write("data/in.txt", "a\nb\nc\n")
    project.spec({"name": "up", "processor": "bin/stage_upper.py", "inputs": ["data/in.txt"], "checkpoint": {"enabled": True}})
    project.ok()
    project.write("state/progress_up.json", '{"lineOffset": 2}')
    project.write("data/s1/result.txt", "no\nno\nno\n")     # a resume would keep two of these lines
    done = project.ok("--force", "up")
    assert "[START] up\n" in done.out and "RESUME" not in done.out, done
    assert "[NOTE] up: checkpoint not used: the stage was forced" in done.out, done
    assert project.read("data/s1/result.txt") == "A\nB\nC\n"


@pytest.mark.parametrize("command", [(), ("plan",), ("status",)])
@pytest.mark.parametrize("selection", [("--only", "copy"), ("--until", "copy")])
def test_a_forced_stage_that_is_left_out_is_refused(chain, command, selection):
    chain.ok()
    before = look(chain.root)
    done = chain.run(*command, "--force", "upper", "--force", "copy", *selection)
    assert done.code == 2 and done.err == "error: --force upper: not among the stages that are run; add it to --only, or leave out what excludes it\n", done
    assert look(chain.root) == before


def test_only_from_until(chain):
    done = chain.run("--only", "upper")
    assert done.code == 1 and "[FAIL] upper: input data/work/*.txt: no file matches" in done.out and "] copy" not in done.out, done
    assert "copy" in chain.ok("--until", "copy").out
    assert not chain.exists("data/output/result.txt")
    done = chain.ok("--from", "upper")
    assert "copy" not in done.out and "[DONE] upper" in done.out
    assert chain.json("state/stage_upper.json")["lastStatus"] == "ok"


@pytest.mark.parametrize("order", ["listed", "graph"])
def test_what_is_to_be_made_anew_may_be_a_processor(project, order):
    project.write("tool.txt", "import os\nopen(os.environ['PIPELINE_OUTPUT_DIR'] + '/o', 'w').write('1')\n")
    project.write("data/tools/tool.py", "")
    making = {"name": "make", "processor": project.processor("make", "open(out + '/tool.py', 'w').write(open(inputs[0]).read())\n"), "inputs": ["tool.txt"],
              "outputDir": "data/tools", "outputs": ["tool.py"]}
    project.spec(making, {"name": "use", "processor": "data/tools/tool.py", "outputDir": "data/use"}, order=order)
    project.ok("--jobs", "2")
    project.write("tool.txt", project.read("tool.txt").replace("'1'", "'2'"))
    assert plan(project) == ["RUN     make (input tool.txt changed)", "PENDING use (waits for make)"]
    project.ok("--jobs", "2")
    assert project.read("data/use/o") == "2" and [line.split()[0] for line in plan(project)] == ["SKIP", "SKIP"]


def test_a_stage_that_is_left_out_and_has_not_ended_well_is_told(chain):
    said = "[NOTE] upper: builds on stage copy, which is left out and %s: what is there now is taken\n"
    assert said % "has not been run" in chain.run("--only", "upper").out
    chain.ok()
    assert "[NOTE]" not in chain.ok("--only", "upper").out + chain.ok("plan", "--only", "upper").out
    record = chain.json("state/stage_copy.json")
    for status, text in (("failed", "failed"), ("interrupted", "was interrupted"), ("running", "was not finished")):
        chain.write("state/stage_copy.json", json.dumps(dict(record, lastStatus=status)))
        assert said % text in chain.ok("--from", "upper").out
        assert said % text in chain.ok("plan", "--only", "upper").out
    chain.write("state/stage_copy.json", json.dumps(record))
    chain.path("data/work/.copy.done").unlink()
    assert said % "has no marker any more" in chain.ok("--only", "upper").out
    assert "[NOTE]" not in chain.ok("plan", "--only", "copy").out       # it takes nothing of a stage's
    chain.write("state/stage_copy.json", "{")
    assert said % "has a damaged record" in chain.ok("plan", "--only", "upper").out


@pytest.mark.parametrize("option", ["--only", "--force", "--from", "--until"])
def test_unknown_stage_on_the_command_line(chain, option):
    chain.knows_scans = False
    before = look(chain.root)
    done = chain.run(option, "uper")
    assert done.code == 2 and 'no stage is named "uper"; did you mean upper?' in done.err, done
    assert look(chain.root) == before


def test_idempotency_disabled_runs_each_time(chain):
    chain.spec(chain.stages[0], dict(chain.stages[1], idempotency={"enabled": False}))
    chain.ok()
    assert plan(chain)[1] == "RUN     upper (idempotency is disabled)"
    chain.ok()
    assert (runs(chain, "data/work"), runs(chain, "data/output")) == (1, 2)


SPOILS = {
    "edited": (lambda path: path.write_bytes(b"EINS\nZWEI\nDREJ\n"), "output result.txt changed"),
    "edited, time restored": (lambda path: (lambda stat: (path.write_bytes(b"EINS\nZWEI\nDREJ\n"), os.utime(str(path), ns=(stat.st_atime_ns, stat.st_mtime_ns))))(path.stat()),
                              "output result.txt changed"),
    "truncated": (lambda path: os.truncate(str(path), 4), "output result.txt changed"),
    "grown": (lambda path: path.write_bytes(path.read_bytes() + b"\n"), "output result.txt changed"),
    "emptied": (lambda path: path.write_bytes(b""), "output result.txt changed"),
    "deleted": (lambda path: path.unlink(), "output result.txt missing"),
    "a folder now": (lambda path: (path.unlink(), path.mkdir()), "output result.txt missing"),
    "marker removed": (lambda path: path.with_name(".upper.done").unlink(), "marker missing"),
    "marker of another key": (lambda path: path.with_name(".upper.done").write_text(json.dumps({"schema": 1, "stage": "upper", "key": "0" * 64})), "the marker is of another key"),
    "marker emptied": (lambda path: path.with_name(".upper.done").write_bytes(b""), "marker missing"),
    "marker of another form": (lambda path: path.with_name(".upper.done").write_bytes(b"[1]"), "the marker is of another key"),
}


@pytest.mark.parametrize("name", [name for name in SPOILS if name != "a folder now"])
def test_a_skip_is_never_wrong(finished, name):
    spoil, reason = SPOILS[name]
    spoil(finished.path("data/output/result.txt"))
    assert plan(finished)[1] == "RUN     upper (%s)" % reason
    assert "[DONE] upper" in finished.ok().out
    assert finished.read("data/output/result.txt") == "EINS\nZWEI\nDREI\n"
    assert "[SKIP] upper" in finished.ok().out


def test_a_folder_in_the_place_of_an_output_is_not_removed(finished):
    spoil, reason = SPOILS["a folder now"]
    spoil(finished.path("data/output/result.txt"))
    assert plan(finished)[1] == "RUN     upper (%s)" % reason
    assert finished.run().code == 1
    assert finished.path("data/output/result.txt").is_dir()


@pytest.mark.parametrize("change", [
    lambda path: os.utime(str(path), ns=(1, 1)),
    lambda path: path.write_bytes(path.read_bytes()),
    lambda path: (lambda data: (path.unlink(), path.write_bytes(data)))(path.read_bytes()),
    lambda path: path.with_name("foreign.txt").write_text("nobody's"),
    lambda path: path.with_name(".hidden").write_text("x"),
], ids=["touched", "rewritten alike", "replaced alike", "a file beside it", "a hidden file beside it"])
def test_what_leaves_a_stage_up_to_date(finished, change):
    change(finished.path("data/output/result.txt"))
    assert plan(finished)[1].startswith("SKIP "), plan(finished)
    assert "[SKIP] upper" in finished.ok().out


def test_several_outputs_each_named(chain):
    chain.processor("copy", "for n in 'abc':\n    open(os.path.join(out, n + '.txt'), 'w').write(n)\n")
    chain.ok()
    chain.path("data/work/a.txt").unlink()
    chain.write("data/work/c.txt", "C")
    assert plan(chain)[0] == "RUN     copy (output a.txt missing; output c.txt changed)"


# --- inputs that change while they are used

@pytest.mark.parametrize("changed, code", [
    ("data/in.txt", "open(inputs[0], 'a').write('more')"),
    ("data/in.txt", "s = os.stat(inputs[0]); os.utime(inputs[0], ns=(s.st_atime_ns, s.st_mtime_ns + 1000))"),
    ("data/in.txt", "d = open(inputs[0]).read(); os.unlink(inputs[0]); open(inputs[0], 'w').write(d)"),
    ("data/in.txt", "os.unlink(inputs[0])"),
    ("conf.ini", "open('conf.ini', 'a').write('more')"),
    ("bin/change.py", "open('bin/change.py', 'a').write('#')"),
    ("bin/near.py", "open('bin/near.py', 'a').write('#')"),
])
def test_inputs_changed_during_the_run_fail_the_stage(project, changed, code):
    project.write("data/in.txt", "x")
    project.write("conf.ini", "x")
    project.write("bin/near.py", "")
    stage_of = {"processor": project.processor("change", "import near\nopen(out + '/o.txt', 'w').write('o')\n%s\n" % code), "inputs": ["data/in.txt"], "watch": ["conf.ini"],
                "retry": {"attempts": 3, "baseDelayMs": 0}}
    project.spec(stage_of, {"processor": "bin/stage_copy.py"})
    done = project.run("--run-id", "r")
    assert done.code == 1 and "[FAIL] s1: input changed during the run: %s\n" % changed in done.out, done
    assert "RETRY" not in done.out                          # the key is another one now: not this run's to go on with
    assert not project.exists("data/s1/.s1.done")
    record = project.json("state/stage_s1.json")
    assert (record["lastStatus"], record["lastError"]) == ("failed", "input changed during the run: %s" % changed)
    assert [one["status"] for one in project.json("state/run_r.json")["stages"]] == ["failed", "notRun"]


@pytest.mark.skipif(sys.platform == "win32", reason="there a link changes nothing that is looked at")
@pytest.mark.parametrize("code", ["os.link(inputs[0], out + '/o.txt')", "os.chmod(inputs[0], 0o600)"])
def test_an_input_that_was_not_written_to_is_said_to_have_changed_otherwise(project, code):
    project.write("data/in.txt", "x")
    project.spec({"processor": project.processor("change", code + "\n"), "inputs": ["data/in.txt"]})
    done = project.run()
    assert done.code == 1 and "[FAIL] s1: input changed during the run: data/in.txt (its rights or the number of its links, or " in done.out, done
    assert "copy an input, not link it)\n" in done.out and not project.exists("data/s1/.s1.done"), done


def test_a_change_is_seen_in_a_failed_attempt_too(project):
    project.write("data/in.txt", "x")
    project.spec({"processor": project.processor("change", "open(inputs[0], 'a').write('more')\nsys.exit(75)\n"), "inputs": ["data/in.txt"], "retry": {"attempts": 2, "baseDelayMs": 0}})
    done = project.run()
    assert done.code == 1, done
    assert not project.exists("data/s1/.s1.done")
    # The second attempt would work on other content than the key tells: that it must not succeed is what counts.
    project.processor("change", "if os.environ['PIPELINE_ATTEMPT'] == '1':\n    open(inputs[0], 'a').write('more')\n    sys.exit(75)\nopen(out + '/o', 'w').write('o')\n")
    done = project.run()
    assert done.code == 1 and "input changed during the run: data/in.txt" in done.out, done


CHANGE_AND_FAIL = "open(%r, 'a').write('more')\nprint('line 3 is none', file=sys.stderr)\nsys.exit(75)\n"
TOLD = "input changed during the run: data/in.txt; exit code 75"


@pytest.mark.parametrize("stage, line", [
    ({"inputs": ["data/in.txt"]}, "[FAIL] s1: %s: line 3 is none\n" % TOLD),
    ({"forEach": "data/in.txt"}, "[FAIL] s1 data/in.txt: %s: line 3 is none\n" % TOLD),
    ({"forEach": "data/in.txt", "inputs": ["data/other.txt"]}, "[FAIL] s1 data/in.txt: %s: line 3 is none\n" % TOLD.replace("in.txt", "other.txt")),
    ({"inputs": ["data/in.txt"], "chunks": {"bytes": 1024}}, "[FAIL] s1 data/in.txt#1: %s: line 3 is none\n" % TOLD),
    ({"inputs": ["data/in.txt"], "chunks": {"bytes": 1024, "filter": True}}, "[FAIL] s1 data/in.txt#1: %s: line 3 is none\n" % TOLD)],
    ids=["stage", "task", "task with another input", "chunk", "filter"])
def test_a_processor_that_fails_since_its_input_has_changed_does_not_hide_that(project, stage, line):
    """It fails in words of its own, of what it has found; another attempt, on other content than the key tells, could not succeed."""
    project.write("data/in.txt", "x\n")
    project.write("data/other.txt", "y\n")
    body = "assert 'PIPELINE_CHUNK_START'\n" + CHANGE_AND_FAIL % ("data/other.txt" if "other" in line else "data/in.txt")
    project.spec(dict(stage, processor=project.processor("change", body), retry={"attempts": 3, "baseDelayMs": 0}))
    done = project.run()
    assert done.code == 1 and line in done.out and "[RETRY]" not in done.out, done
    if "chunks" in stage:
        assert "[FAIL] s1: input changed during the run: data/in.txt; 1 of 1 tasks failed: data/in.txt#1 (%s" % TOLD in done.out, done


def test_chunks_of_an_input_that_was_replaced_fail_for_that(project):
    """What the kit says of the places that it was given, which are those of the old file, would send its user to the wrong place."""
    project.write("data/in.txt", "".join("%d\n" % number for number in range(1000, 2000)))
    body = ("sys.path.insert(0, %r)\nfrom processor_kit import lines\nif os.environ['PIPELINE_CHUNK_START'] == '1000':\n    open('data/new', 'w').write('short\\n')\n"
            "    os.replace('data/new', 'data/in.txt')\nlines(str.upper, 'o.txt')\n" % str(ROOT / "bin"))
    project.spec({"processor": project.processor("upper", body), "inputs": ["data/in.txt"], "chunks": {"bytes": 1000}})
    done = project.run("--jobs", "1")
    assert done.code == 1 and "[FAIL] s1 data/in.txt#1" not in done.out, done
    for number in range(2, 6):
        assert "[FAIL] s1 data/in.txt#%d: input changed during the run: data/in.txt; exit code 1: " % number in done.out, done
    assert "[FAIL] s1: input changed during the run: data/in.txt; 4 of 5 tasks failed: " in done.out, done


UNTOLD = """
import array, os, runpy, sys
sys.path.insert(0, %r)
import file_digests, file_systems, task_files
file_systems.doubt_of = lambda device: file_systems.UNTOLD
def signature(stat):
    renumbered = stat.st_size == 4 and os.path.exists(os.path.join(os.path.dirname(sys.argv[-1]), "renumbered"))
    return [stat.st_size, stat.st_mtime_ns, stat.st_mtime_ns, stat.st_ino + renumbered, stat.st_dev]
file_digests.signature = signature
task_files.signatures = lambda root, paths: array.array("q", [one for path in paths for one in signature(os.stat(os.path.join(root, path)))])
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
ANEW = "s = os.stat(%r); open(%r, 'r+').write('BBBB'); os.utime(%r, ns=(s.st_atime_ns, s.st_mtime_ns))"
SHAPES = pytest.mark.parametrize("shape", [{"inputs": ["in/a.txt"]}, {"forEach": "in/*.txt"}, {"forEach": "in/*.txt", "inputs": ["ref.txt"]},
                                           {"inputs": ["in/a.txt"], "chunks": {"bytes": 1000, "keepChunks": True}}], ids=["stage", "task", "shared", "chunk"])


def run_untold(project, shape, code=""):
    """Return what a run prints on a file system as exFAT and sshfs are: a change need not show, and files of four bytes have other numbers
    once the file "renumbered" is there."""
    project.write("in/a.txt", "AAAA")
    project.write("ref.txt", "AAAA")
    body = "assert 'PIPELINE_CHUNK_START'\nif not os.path.exists('begun'):\n    %s\nopen('begun', 'a').write('.')\nopen(out + '/o.txt', 'w').write('o')\n" % code
    if code:
        project.spec(dict(shape, processor=project.processor("late", body)))
    argv = [sys.executable, "-c", UNTOLD % str(RUNNER.parent), str(RUNNER), "--pipeline", str(project.path("pipeline.json"))]
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=project.environment(), timeout=60)
    return text_of(done.stdout)


@SHAPES
def test_a_change_during_the_run_that_does_not_show_is_found_by_reading(project, shape):
    path = "ref.txt" if "ref.txt" in shape.get("inputs", ()) else "in/a.txt"
    out = run_untold(project, shape, ANEW % (path, path, path))
    assert "[FAIL] s1" in out and ": input changed during the run: %s\n" % path in out, out
    out = run_untold(project, shape)
    assert "[DONE] s1" in out and project.read("begun") == "..", out        # what was made of other content is not kept


@SHAPES
def test_a_driver_that_numbers_files_anew_changes_no_input(project, shape):
    out = run_untold(project, shape, "open('renumbered', 'w').close()")
    assert "[DONE] s1" in out and "changed" not in out and project.exists("renumbered"), out


# --- whose outputs are whose

def test_several_stages_share_an_output_folder(project):
    project.write("data/in.txt", "x")
    project.spec({"processor": project.processor("one", "open(out + '/one.txt', 'w').write('1')\n"), "inputs": ["data/in.txt"], "outputDir": "data/out"},
                 {"processor": project.processor("two", "open(out + '/two.txt', 'w').write('2')\n"), "inputs": ["data/in.txt"], "outputDir": "data/out"},
                 {"processor": project.processor("three", "open(out + '/sub.txt', 'w').write('3')\n"), "inputs": ["data/in.txt"], "outputDir": "data/out/sub"})
    project.ok()
    assert [[one["path"] for one in project.json("state/stage_s%d.json" % number)["outputs"]] for number in (1, 2, 3)] == [["one.txt"], ["two.txt"], ["sub.txt"]]
    assert project.ok().out.count("[SKIP]") == 3
    project.path("data/out/one.txt").unlink()
    done = project.ok()
    assert "[DONE] s1" in done.out and done.out.count("[SKIP]") == 2, done


@pytest.mark.parametrize("folder, target", [("data/out", "one.txt"), ("data", "out/one.txt")])
@pytest.mark.parametrize("act", ["open(out + '/%s', 'w').write('2')", "open(out + '/%s', 'a').write('2')", "os.utime(out + '/%s', ns=(1, 1))"])
def test_a_stage_that_changes_anothers_file_fails_naming_both(project, folder, target, act):
    project.write("input/in.txt", "x")
    project.spec({"name": "first", "processor": project.processor("one", "open(out + '/one.txt', 'w').write('1')\n"), "inputs": ["input/in.txt"], "outputDir": "data/out"},
                 {"name": "second", "processor": project.processor("two", act % target + "\nopen(out + '/two.txt', 'w').write('2')\n"), "inputs": ["input/in.txt"], "outputDir": folder})
    done = project.run()
    assert done.code == 1 and "[FAIL] second: changed %s/%s, which belongs to stage first" % (folder, target) in done.out, done
    assert not project.exists(folder + "/.second.done")


def test_a_stage_that_removes_anothers_file_fails_naming_both(project):
    project.write("input/in.txt", "x")
    project.spec({"name": "first", "processor": project.processor("one", "open(out + '/one.txt', 'w').write('1')\n"), "inputs": ["input/in.txt"], "outputDir": "data/out"},
                 {"name": "second", "processor": project.processor("two", "os.unlink(out + '/one.txt')\nopen(out + '/two.txt', 'w').write('2')\n"), "inputs": ["input/in.txt"], "outputDir": "data/out"})
    done = project.run()
    assert done.code == 1 and "[FAIL] second: removed data/out/one.txt, which belongs to stage first" in done.out, done


# A stage whose name is used again, after another stage took over what it had made. {how: (what the old stage is now, what is told)}
EACH = "for path in [os.environ.get('PIPELINE_TASK')] if 'PIPELINE_TASK' in os.environ else inputs:\n    open(out + '/' + os.path.basename(path) + %r, 'w').write(open(path).read() + %r)\n"
USED_AGAIN = {
    "other outputs": ({"processor": "bin/other.py", "inputs": ["input/*.txt"]}, "[DONE] old in"),
    "failed": ({"processor": "bin/fail.py", "forEach": "input/*.txt", "maxFailedTasks": 2}, "[DONE] old in"),
    "other names": ({"processor": "bin/other.py", "forEach": "input/*.txt"}, "[DONE] old in"),
    "pruned": ({"processor": "bin/each.py", "forEach": "elsewhere/*.txt", "prune": True}, "2 files are gone"),
    "gone": ({"processor": "bin/each.py", "forEach": "elsewhere/*.txt"}, "2 files are gone"),
}


@pytest.mark.parametrize("how", USED_AGAIN)
def test_what_another_stage_took_over_while_the_name_of_its_maker_was_out_of_use_is_left_to_it(project, how):
    now, told = USED_AGAIN[how]
    for name in ("input/a.txt", "input/b.txt", "elsewhere/c.txt"):
        project.write(name, name)
    project.processor("each", EACH % ("", "1"))
    project.processor("anew", EACH % ("", "2" if how == "other outputs" else "1"))
    project.processor("other", EACH % (".other", ""))
    project.processor("fail", "sys.exit(3)\n")
    kind = {"inputs": ["input/*.txt"]} if "inputs" in now else {"forEach": "input/*.txt"}
    new = dict(kind, name="new", processor="bin/anew.py", outputDir="data/out")
    project.spec(dict(new, name="old", processor="bin/each.py", **{key: now[key] for key in now if key in ("maxFailedTasks", "prune")}))
    project.ok()
    project.spec(new)
    project.ok()
    made = {name: project.read("data/out/" + name) for name in ("a.txt", "b.txt")}
    project.spec(new, dict(now, name="old", outputDir="data/out"))
    done = project.ok()
    assert "[SKIP] new" in done.out and told in done.out and ("[NOTE] old: left to stage new, by which it is recorded, too: a.txt, b.txt\n" in done.out), done
    assert {name: project.read("data/out/" + name) for name in made} == made
    project.ok("verify", "--outputs")
    again = project.ok()
    assert "[SKIP] new" in again.out and "left to stage" not in again.out, again
    project.path("data/out/a.txt").unlink()
    found = project.run("verify", "--outputs")
    assert found.code == 5 and "data/out/a.txt" in found.out and "stage new" in found.out, found


def test_a_neighbour_that_was_rightly_remade_meanwhile_is_no_fault_of_a_failed_stage(project):
    """The listing from before the failed attempt is older than the neighbour's new file: it must not be held against the stage."""
    project.write("input/in.txt", "x")
    project.write("input/own.txt", "y")
    project.spec({"name": "first", "processor": project.processor("one", "open(out + '/one.txt', 'w').write(open(inputs[0]).read())\n"), "inputs": ["input/in.txt"], "outputDir": "data/out"},
                 {"name": "second", "processor": project.processor("two", "if not os.path.exists('ready'):\n    sys.exit('not yet')\nopen(out + '/two.txt', 'w').write('2')\n"),
                  "inputs": ["input/own.txt"], "outputDir": "data/out"})
    assert project.run().code == 1
    project.write("input/in.txt", "changed")
    project.write("ready", "")
    done = project.ok()
    assert "[DONE] first" in done.out and "[DONE] second" in done.out, done
    assert [one["path"] for one in project.json("state/stage_second.json")["outputs"]] == ["two.txt"]


def test_a_glob_of_one_stage_does_not_claim_anothers_file(project):
    project.write("input/in.txt", "x")
    project.spec({"processor": project.processor("one", "open(out + '/one.txt', 'w').write('1')\n"), "inputs": ["input/in.txt"], "outputDir": "data/out"},
                 {"processor": project.processor("two", "open(out + '/two.txt', 'w').write('2')\n"), "inputs": ["input/in.txt"], "outputDir": "data/out", "outputs": ["*.txt"]})
    project.ok()
    assert [one["path"] for one in project.json("state/stage_s2.json")["outputs"]] == ["two.txt"]


def test_what_is_no_output_for_its_name_is_named_once_it_is_made_or_changed(project):
    project.write("data/in.txt", "x")
    project.write("data/out/.old", "stands")
    project.write("data/out/old.part", "stands")
    body = "open(out + '/x.txt', 'w').write('x')\nopen(out + '/.hid', 'a').write('x')\nopen(out + '/y.part', 'w').write('y')\nos.makedirs(out + '/sub/.cache', exist_ok=True)\n"
    project.spec({"processor": project.processor("make", body), "inputs": ["data/in.txt"], "outputDir": "data/out"}, {"outputDir": "data/out", "outputs": ["z.txt"],
                 "processor": project.processor("other", "open(out + '/z.txt', 'w').write('z')\n"), "inputs": ["data/out/x.txt"]})
    note = "[NOTE] s1: made .hid, sub/.cache, y.part; names that begin with a dot or end in .part are no outputs: they are neither recorded nor undone after a kill\n"
    done = project.ok()
    assert note in done.out and done.out.count("no outputs") == 1, done
    assert [one["path"] for one in project.json("state/stage_s1.json")["outputs"]] == ["x.txt"]
    assert "[NOTE] s1: made .hid; names" in project.ok("--force", "s1").out       # the others stand as they were, but for the marker


def test_a_recorded_output_that_a_rerun_did_not_remake_stays_recorded_and_is_named(project):
    project.write("data/in.txt", "x")
    project.spec({"processor": project.processor("make", "for n in (json.loads(os.environ['PIPELINE_PARAMS'])['names']):\n    open(out + '/' + n, 'w').write(n)\n"), "inputs": ["data/in.txt"],
                  "params": {"names": ["a.txt", "b.txt"]}})
    project.ok()
    done = project.ok("--set", 'names=["a.txt"]')
    assert "[NOTE] s1: not remade by this run, still recorded: b.txt\n" in done.out, done
    assert [one["path"] for one in project.json("state/stage_s1.json")["outputs"]] == ["a.txt", "b.txt"]
    project.path("data/s1/b.txt").unlink()
    assert "output b.txt missing" in project.ok("plan", "--set", 'names=["a.txt"]').out
    done = project.ok("--set", 'names=["a.txt"]')               # gone, and not remade: no output of this stage any more
    assert "not remade" not in done.out and [one["path"] for one in project.json("state/stage_s1.json")["outputs"]] == ["a.txt"]


@pytest.mark.parametrize("is_checkpointed", [False, True], ids=["plain", "checkpoint"])
def test_what_is_changed_after_a_failure_that_had_left_it_alone_is_not_recorded_as_made(project, is_checkpointed):
    """Nor is it gone on from a checkpoint, which would not make it again."""
    body = ("if not os.path.exists(out + '/kept.txt'):\n    open(out + '/kept.txt', 'w').write('right')\nopen(out + '/o.txt', 'a').write('x')\n"
            "if 'PIPELINE_PROGRESS_FILE' in os.environ:\n    json.dump({'lineOffset': 1, 'outputs': {'o.txt': 1}}, open(os.environ['PIPELINE_PROGRESS_FILE'], 'w'))\n"
            "sys.exit(os.path.exists('bad'))\n")
    project.spec(dict({"processor": project.processor("make", body)}, **({"checkpoint": {"enabled": True}} if is_checkpointed else {})))
    project.ok()
    project.write("bad", "")
    assert project.run("--force", "s1").code == 1
    project.path("bad").unlink()
    project.write("data/s1/kept.txt", "WRONG")
    if is_checkpointed:
        assert "checkpoint not used: output kept.txt changed since" in project.ok("plan").out
    done = project.ok()
    assert "[NOTE] s1: not what was recorded: removed kept.txt; an earlier run had recorded kept.txt\n" in done.out and "[RESUME]" not in done.out, done
    assert project.read("data/s1/kept.txt") == "right"


@pytest.mark.parametrize("declared", ["result.txt", "*.txt"])
def test_a_declared_output_that_is_older_than_the_run_does_not_pass_for_made(project, declared):
    """What an earlier run has made of other inputs must not be recorded as made of today's."""
    project.write("in.txt", "old\n")
    body = "if not os.path.exists('idle'):\n    open(out + '/result.txt', 'w').write(open('in.txt').read())\n"
    project.spec({"processor": project.processor("sometimes", body), "inputs": ["in.txt"], "outputs": [declared]})
    project.ok()
    project.write("in.txt", "new\n")
    project.write("idle", "")
    done = project.run()
    if sys.platform == "win32":         # a file that was written anew may look as it did before: a copy has the time of its original
        assert done.code == 0 and "[DONE] s1" in done.out, done
        return
    assert done.code == 1, done
    assert ("[FAIL] s1: declared output data/s1/%s was not made: what is there is older than this run; "
            "remove it, let the processor write it each time, or do not declare it\n" % declared) in done.out, done
    project.path("idle").unlink()
    project.ok()
    assert project.read("data/s1/result.txt") == "new\n"
    assert "[SKIP] s1" in project.ok().out
    project.write("in.txt", "newer\n")
    project.write("idle", "")
    project.spec({"processor": "bin/sometimes.py", "inputs": ["in.txt"], "outputs": [declared], "launcher": ["env"]})
    assert "[NOTE] s1: not remade by this run, still recorded: result.txt" in project.ok().out     # over a shared file system nobody can tell


def test_outputs_are_what_the_stage_creates_or_changes(project):
    project.write("data/s1/before.txt", "nobody's")
    project.write("data/s1/changed.txt", "old")
    project.spec({"processor": project.processor("make", "os.makedirs(out + '/deep/er')\nfor n in ('new.txt', 'changed.txt', 'deep/er/x.bin', '.hidden', 'scrap.part'):\n"
                                                 "    open(os.path.join(out, n), 'w').write(n)\n"), "allowNoInputs": True})
    project.ok()
    outputs = project.json("state/stage_s1.json")["outputs"]
    import hashlib
    assert outputs == [{"path": name, "bytes": len(name), "sha256": hashlib.sha256(name.encode()).hexdigest()} for name in ("changed.txt", "deep/er/x.bin", "new.txt")]


@pytest.mark.parametrize("declared, made, missing", [
    (["result.txt"], [], "result.txt"), (["a.txt", "b.txt"], ["a.txt"], "b.txt"), (["*.csv"], ["a.txt"], "*.csv"), (["sub/*.txt"], ["x.txt"], "sub/*.txt"),
])
def test_declared_outputs_that_are_missing_fail(project, declared, made, missing):
    project.spec({"processor": project.processor("make", "for n in %r:\n    open(os.path.join(out, n), 'w').write(n)\n" % made), "outputs": declared})
    done = project.run()
    assert done.code == 1 and "[FAIL] s1: declared output data/s1/%s was not made\n" % missing in done.out, done
    assert not project.exists("data/s1/.s1.done")


COUNTED = """
import fnmatch, os, runpy, sys
sys.path.insert(0, %r)
real = fnmatch.translate
def translate(glob):
    os.write(2, b"made ready\\n")
    return real(glob)
fnmatch.translate = translate
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("form", ["one piece", "tasks", "beside another", "after a kill"])
def test_declared_outputs_are_not_made_ready_for_each_file_anew(project, form):
    """With many of both that took minutes, in which no signal was heard."""
    count = 40
    body = ("for number in range(%d):\n    for name in ('a%%02d.txt', 'b%%02d.csv'):\n        open(os.path.join(out, name %% number), 'w').write('x')\n" % count)
    end = "if not os.path.exists('good'):\n    sys.exit(3)\n" if form == "after a kill" else ""
    declared = ["a%02d.txt" % number for number in range(count)] + ["*%02d.csv" % number for number in range(count)]
    stage = {"processor": project.processor("make", body + end), "inputs": ["in.txt"], "outputs": declared, "outputDir": "data/all",
             "checkpoint": {"enabled": form == "after a kill"}}
    project.write("in.txt", "x")
    stages, top = [stage], {}
    if form == "tasks":
        del stage["inputs"]
        stage["forEach"] = ["in.txt"]
    elif form != "one piece":
        top["order"] = "graph"
        stages.append({"processor": project.processor("other", "open(out + '/other.log', 'w').write('x')\n"), "outputs": ["other.log"], "outputDir": "data/all"})
    project.spec(*stages, **top)
    argv = [sys.executable, "-c", COUNTED % str(RUNNER.parent), str(RUNNER), "--pipeline", str(project.path("pipeline.json")), "--jobs", "2"]
    for code in (1, 0) if end else (0,):
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=project.environment(), timeout=120)
        assert done.returncode == code, done
        # Each question has its own, and few are asked.
        assert done.stderr.count(b"made ready") <= 8 * count, done.stderr.count(b"made ready")
        project.write("good", "")
    assert len(project.json("state/stage_s1.json")["outputs"]) == 2 * count or form == "tasks"


def test_declared_outputs_alone_are_recorded(project):
    project.spec({"processor": project.processor("make", "for n in ('a.txt', 'b.log'):\n    open(os.path.join(out, n), 'w').write(n)\n"), "outputs": ["*.txt"]})
    project.ok()
    assert [one["path"] for one in project.json("state/stage_s1.json")["outputs"]] == ["a.txt"]
    project.path("data/s1/b.log").unlink()
    assert plan(project)[0].startswith("SKIP ")


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")
def test_a_link_as_output_is_its_targets_name(project):
    project.write("elsewhere.txt", "x")
    project.spec({"processor": project.processor("link", "p = out + '/link'\nif os.path.lexists(p):\n    os.unlink(p)\nos.symlink('../../elsewhere.txt', p)\n")})
    project.ok()
    project.write("elsewhere.txt", "changed")
    assert plan(project)[0].startswith("SKIP ")
    project.path("data/s1/link").unlink()
    project.path("data/s1/link").symlink_to("../../other.txt")
    assert plan(project) == ["RUN     s1 (output link changed)"]


# --- inputs that are not there

def test_no_match_fails_naming_every_glob(project):
    project.spec({"processor": "bin/stage_copy.py", "inputs": ["data/none/*.csv", "data/gone.txt"], "watch": ["conf/*.ini"]})
    done = project.run("--run-id", "r")
    assert done.code == 1, done
    assert ("[FAIL] s1: input data/none/*.csv: no file matches; input data/gone.txt: there is no such file; watched conf/*.ini: no file matches\n") in done.out, done
    assert "Run r state: failed (0 ok, 0 skipped, 1 failed)" in done.out
    assert not project.exists("data/s1") and not project.exists("state/stage_s1.json")


def test_allow_no_inputs(project):
    project.spec({"processor": project.processor("make", "open(out + '/n', 'w').write(str(len(inputs)))\n"), "inputs": ["data/none/*.csv", "data/gone.txt"], "allowNoInputs": True})
    project.ok()
    assert project.read("data/s1/n") == "0"
    assert plan(project)[0].startswith("SKIP ")
    project.write("data/none/x.csv", "1")
    assert plan(project) == ["RUN     s1 (input data/none/x.csv added)"]


def test_a_stage_without_inputs_needs_no_leave(project):
    project.spec({"processor": project.processor("make", "open(out + '/n', 'w').write(str(len(inputs)))\n")})
    project.ok()
    assert project.read("data/s1/n") == "0"
    assert plan(project)[0].startswith("SKIP ")


def test_a_folder_as_input_says_what_to_write(project):
    project.write("data/in/x.txt", "x")
    project.spec({"processor": "bin/stage_copy.py", "inputs": ["data/in"]})
    done = project.run()
    assert done.code == 1 and "input data/in is a folder: write data/in/** for the files in it" in done.out, done


def test_the_runner_module_plans_purely():
    """decide() takes values only: the same facts give the same decision, with no file anywhere."""
    facts = Facts(material(), record(), KEY, [], None, False)
    assert decide(stage(), facts, False) == decide(stage(), facts, False)
    assert stage_markers.NO_MARKER == "marker missing"


@pytest.mark.skipif(sys.platform != "linux", reason="names that are not UTF-8")
def test_an_output_whose_name_is_not_utf8_fails_the_stage_and_is_cleared_away(project):
    def processor(name):
        project.processor("p", "open(os.path.join(os.fsencode(out), b'%s'), 'w').write('x')\n" % name)

    processor("\\xffx")
    project.spec({"processor": "bin/p.py"})
    project.write("data/s1/there", "x")
    there = os.path.join(os.fsencode(str(project.path("data/s1"))), b"\\udcff\\ \xfe")
    os.close(os.open(there, os.O_CREAT | os.O_WRONLY))      # somebody's own
    for _ in range(2):
        done = project.run()
        assert done.code == 1 and "[FAIL] s1: output '\\udcffx': the name is not valid UTF-8, so no record can name it" in done.out, done
        record = project.json("state/stage_s1.json")
        json.dumps(record, ensure_ascii=False).encode("utf-8")      # strict readers refuse half of a surrogate pair
        assert record["left"] == ["/\\udcffx"] and sorted(record["baseline"]) == ["./", "/\\\\udcff\\\\ \\udcfe", "there"], record
    assert "failed" in project.run("status").out
    processor("good")
    assert "[NOTE] s1: leftovers of an unfinished attempt: removed \\udcffx\n" in project.ok().out
    assert sorted(os.listdir(os.fsencode(str(project.path("data/s1"))))) == [b".s1.done", os.path.basename(there), b"good", b"there"]


LOST_LINK = "os.path.islink(os.path.join(os.fsencode(out), b'../in/\\xff.txt')) or os.symlink('nowhere', os.path.join(os.fsencode(out), b'../in/\\xff.txt'))\n"
LOCKED = "os.path.isdir(os.path.join(os.fsencode(out), b'\\xffd')) or os.mkdir(os.path.join(os.fsencode(out), b'\\xffd'), 0)\n"
PART = "open(os.path.join(os.fsencode(out), b'\\xff.txt~s2~0123456789abcdef.1.part'), 'w')\n"


@pytest.mark.skipif(sys.platform != "linux", reason="names that are not UTF-8")
@pytest.mark.parametrize("first, second, more", [
    (LOST_LINK, "", {"inputs": ["data/in/*.txt"]}), (LOST_LINK, "", {"inputs": ["data/in/a"], "watch": ["data/in/*.txt"]}),
    (LOST_LINK, "", {"forEach": ["data/in/*.txt"]}), ("", PART, {}), ("", LOCKED, {}), ("", PART, {"forEach": ["data/in/a"]})],
    ids=["inputs", "watch", "forEach", "part", "folder", "part of a task"])
def test_a_reason_with_a_name_that_is_not_utf8_can_be_recorded(project, first, second, more):
    """Else the run ends with a traceback, after the work, and its record is never sealed."""
    project.write("data/in/a", "x")
    project.spec({"processor": project.processor("first", first + "open(out + '/o', 'w')\n")}, dict({"processor": project.processor("second", second), "outputDir": "data/t"}, **more))
    for run_id in ("one", "two"):                   # in the second the index answers for the first stage, and lastError is a reason
        done = run_without_might(project, "--run-id", run_id)
        assert done.returncode == 1 and "Traceback" not in done.stdout and "\\udcff" in done.stdout, done.stdout
        for name in ("run_%s.json" % run_id, "stage_s2.json"):
            if project.exists("state/" + name):
                json.dumps(project.json("state/" + name), ensure_ascii=False).encode("utf-8")       # strict readers refuse half of a surrogate pair
        result = project.json("state/run_%s.json" % run_id)["stages"][1]
        assert result["status"] == "failed" and "\\udcff" in result["reason"], result
    project.run("explain", "s2")
    project.ok("verify", "--outputs")
    project.ok("report")


COUNT = """#!/bin/sh
cat "$@" | wc -l > "$PIPELINE_OUTPUT_DIR/count.txt"
"""


@pytest.mark.skipif(os.name == "nt", reason="shell scripts")
def test_inputs_that_do_not_fit_the_command_line_are_not_left_out_unseen(project):
    """A program that knows arguments only would find none, and make a result of nothing."""
    folder = "in/" + "x" * 240
    for number in range(4500):
        project.write("%s/%d.txt" % (folder, number), "line\n")
    stage = {"processor": "bin/count.sh", "inputs": ["in/**"], "outputs": ["count.txt"]}
    project.write("bin/count.sh", COUNT, executable=True)
    project.spec(stage)
    done = project.run()
    assert done.code == 1 and ("[FAIL] s1: 4500 inputs are too many for a command line, and bin/count.sh does not look at PIPELINE_INPUTS_FILE, "
                               "the file that lists them: read them there, use the kit, or make it a stage with forEach\n") in done.out, done
    project.write("bin/count.sh", COUNT + "# PIPELINE_INPUTS_FILE is known\n", executable=True)
    project.ok()
    assert project.read("data/s1/count.txt").strip() == "0"
    project.processor("kit", "import processor_kit\nprocessor_kit.lines(lambda line: line, 'count.txt')\n")
    project.spec(dict(stage, processor="bin/kit.py"))
    project.ok()
    assert project.read("data/s1/count.txt").count("\n") == 4500
    for number in range(2000, 4500):
        project.path("%s/%d.txt" % (folder, number)).unlink()
    project.write("bin/count.sh", COUNT, executable=True)
    project.spec(stage)
    project.ok()                # nearly half of a megabyte of arguments
    assert project.read("data/s1/count.txt").strip() == "2000"


BATCH_COUNT = '@echo off\r\nset n=0\r\nfor %%a in (%*) do set /a n+=1 >nul\r\necho %n%>"%PIPELINE_OUTPUT_DIR%\\count.txt"\r\n'


@pytest.mark.skipif(sys.platform != "win32", reason="batch files")
def test_inputs_that_do_not_fit_cmd_exe_are_not_left_out_unseen(project):
    for number in range(100):
        project.write("in/%s%02d.txt" % ("x" * 70, number), "line\n")
    project.spec({"processor": "bin/count.bat", "inputs": ["in/*"], "outputs": ["count.txt"]})
    project.write("bin/count.bat", BATCH_COUNT)
    done = project.run()
    assert done.code == 1 and "[FAIL] s1: 100 inputs are too many for a command line, and bin/count.bat does not look at PIPELINE_INPUTS_FILE" in done.out, done
    project.write("bin/count.bat", BATCH_COUNT + "rem PIPELINE_INPUTS_FILE is known\r\n")
    project.ok()
    assert project.read("data/s1/count.txt").strip() == "0"
    for number in range(60, 100):
        project.path("in/%s%02d.txt" % ("x" * 70, number)).unlink()
    project.write("bin/count.bat", BATCH_COUNT)
    project.ok()
    assert project.read("data/s1/count.txt").strip() == "60"


def test_what_fits_a_command_line_is_half_of_what_the_system_allows(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "sysconf", lambda name: 2000, raising=False)
    assert processor_call.fits_command_line(["x" * 90] * 10) and not processor_call.fits_command_line(["x" * 90] * 11)
    assert processor_call.fits_command_line(["\u00fc" * 41] * 10) and not processor_call.fits_command_line(["\u00fc" * 91] * 10)
    (tmp_path / "p").write_text("", encoding="utf-8")
    (tmp_path / "m").write_text(" " * (processor_call.MENTION_BYTES - 5) + "PIPELINE_INPUTS_FILE", encoding="utf-8")
    too_many = ["x" * 90] * 11
    assert "11 inputs are too many" in processor_call.overflow_problem(str(tmp_path), "p", ["-v"], ["none"], too_many)
    for args, others in ((["m"], []), ([], ["m"]), (["-c", "cat $PIPELINE_INPUTS_FILE"], [])):
        assert processor_call.overflow_problem(str(tmp_path), "p", args, others, too_many) == ""


# --- how much is read of the stages whose outputs a stage reads

@pytest.mark.parametrize("more", [{}, {"outputDir": "data/all"}, {"reconcile": True}, {"settleSec": 0.001}], ids=["plain", "one folder", "reconcile", "settleSec"])
def test_a_record_is_parsed_once_for_all_that_read_what_its_stage_makes(project, more):
    """Each reads what all before it have made: parsed for each of them, and again under their locks, that grew by the cube."""
    count = 12
    make = project.processor("make", "open(os.path.join(out, sys.argv[1]), 'w').close()\n"
                                     "with open(os.environ['PIPELINE_COUNTS_FILE'], 'w') as file:\n    file.write('{\"read\": 0, \"written\": 0, \"rejected\": 0}')\n")
    names = ["s%d.o" % number for number in range(1, count + 1)]
    made = ["%s/%s" % (more.get("outputDir", "data/" + name[:-2]), name) for name in names]
    project.spec(*[dict({"processor": make, "args": [name], "inputs": made[:place], "outputs": [name]}, **more) for place, name in enumerate(names)])
    argv = project.argv("--run-id", "r")
    done = subprocess.run([argv[0], "-c", PARSED % str(ROOT / "src"), *argv[1:]], env=project.environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, timeout=120)
    said = done.stdout.decode("utf-8").splitlines()
    assert done.returncode == 0, said
    seen = {number: said.count("parsed s%d ok" % number) for number in range(1, count + 1)}
    assert set(seen.values()) <= {0, 1} and sum(seen.values()) >= count - 1, seen
