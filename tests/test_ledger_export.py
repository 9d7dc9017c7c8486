"""Export of a run as an in-toto statement, and its evidence in a zip: made by the real program, carried away, verified, attacked."""
from __future__ import annotations

import hashlib
import io
import json
import os
import random
import re
import shutil
import subprocess
import sys
import threading
import tracemalloc
import zipfile

import pytest
from conftest import ROOT, Project, run_without_might

import evidence_verify
import ledger_export
import ledger_verify
import provenance
from console import Console
from ledger_format import end_mac, entry_hash, entry_line, head_text, next_key, run_hash, seal_mac
from state_store import StateStore

sys.path.insert(0, str(ROOT / "tests" / "drivers"))

import history as long_history  # noqa: E402
from holder import hold  # noqa: E402

STAGES = ({"processor": "bin/stage_copy.py", "inputs": ["data/in/*.txt"], "args": ["--x", "ä b"], "params": {"rate": 1.5, "words": ["größer"]}},
          {"processor": "bin/stage_upper.py", "inputs": ["data/s1/*.txt"], "watch": ["data/watched.csv"]})


def new_history(root) -> Project:
    """Runs a (makes all), b (skips all), b again (makes s2), c (skips all), in a folder with names of real life."""
    project = Project(root)
    project.write("data/in/ä b.txt", "grüße\n")
    project.write("data/watched.csv", "1;2\n")
    project.spec(*STAGES, version="2.1")
    for arguments in (["--run-id", "a"], ["--run-id", "b"], ["--run-id", "b", "--force", "s2"], ["--run-id", "c"]):
        project.ok(*arguments)
    return project


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return new_history(tmp_path_factory.mktemp("export") / "prüf bereich")


def copy_of(project: Project, folder) -> Project:
    shutil.copytree(project.root, folder, copy_function=shutil.copy2)
    copy = Project.__new__(Project)
    copy.root = folder
    return copy


@pytest.fixture
def history(original, tmp_path):
    """The history, for this test alone."""
    return copy_of(original, tmp_path / "prüf bereich")


def make_zip(project, run_id="b", name="evidence.zip"):
    out = project.root.parent / name
    ledger_export.write_evidence(str(project.root), run_id, str(out), str(project.path("pipeline.json")))
    return out


@pytest.fixture(scope="module")
def zipped(original):
    """The evidence of run b."""
    return make_zip(original)


@pytest.fixture
def unpacked(zipped, tmp_path):
    """The same, unpacked."""
    folder = tmp_path / "fern ö"
    with zipfile.ZipFile(zipped) as archive:
        archive.extractall(folder)
    return folder


def found_in(path, anchors=(), key=None):
    """Return the findings as {(kind, file)} and the notes as one text."""
    report = evidence_verify.verify(str(path), anchors, key)
    return {(one.kind, one.file) for one in report.findings}, "\n".join(report.notes)


def command(*argv, **options):
    done = subprocess.run([str(one) for one in argv], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60, **options)
    out, err = done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace")
    assert "Traceback" not in err, err
    return done.returncode, out.replace("\r\n", "\n"), err


def digest_of(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def entries_of(path):
    return [json.loads(line) for line in path.read_bytes().decode("utf-8").splitlines()]


# --- the statement

TEXT, OBJECT = str, dict
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")
RESOURCE = ({}, {"uri": TEXT, "digest": "digests", "name": TEXT, "downloadLocation": TEXT, "mediaType": TEXT, "content": TEXT, "annotations": "annotations"})
# in-toto attestation framework, spec v1.0 (statement, resource_descriptor) and SLSA v1.0 (provenance): required fields, optional fields.
LEVELS = {
    "statement": ({"_type": TEXT, "subject": ["subject"], "predicateType": TEXT, "predicate": "predicate"}, {}),
    "subject": ({"name": TEXT, "digest": "digests"}, {"annotations": "annotations"}),     # a ResourceDescriptor
    "predicate": ({"buildDefinition": "definition", "runDetails": "details"}, {}),
    "definition": ({"buildType": TEXT, "externalParameters": OBJECT}, {"internalParameters": OBJECT, "resolvedDependencies": ["resource"]}),
    "details": ({"builder": "builder"}, {"metadata": "metadata", "byproducts": ["resource"]}),
    "builder": ({"id": TEXT}, {"version": "texts", "builderDependencies": ["resource"]}),
    "metadata": ({}, {"invocationId": TEXT, "startedOn": TIME, "finishedOn": TIME}),
    "resource": RESOURCE,
}


def problems_of(value, level, place):
    """Return what in a JSON value is not as the specifications have it."""
    if isinstance(level, list):
        return [text for number, one in enumerate(value) for text in problems_of(one, level[0], "%s[%d]" % (place, number))]
    if level in (TEXT, OBJECT):
        return [] if isinstance(value, level) else ["%s is %r" % (place, value)]
    if level is TIME:
        return [] if TIME.fullmatch(value) else ["%s is no time: %r" % (place, value)]
    if level == "digests":
        return [] if set(value) == {"sha256"} and re.fullmatch("[0-9a-f]{64}", value["sha256"]) else ["%s is %r" % (place, value)]
    if level == "texts":
        return [] if value and all(isinstance(one, str) for one in value.values()) else ["%s is %r" % (place, value)]
    if level == "annotations":      # spec v1.0: objects by name
        return [] if value and all(isinstance(one, dict) for one in value.values()) else ["%s is %r" % (place, value)]
    required, optional = LEVELS[level]
    found = ["%s lacks %s" % (place, name) for name in required if name not in value]
    found += ["%s has %s" % (place, name) for name in value if name not in required and name not in optional]
    if level == "resource" and not {"uri", "digest", "content"} & set(value):
        found.append("%s describes nothing" % place)
    known = dict(optional, **required)
    return found + [text for name in value if name in known for text in problems_of(value[name], known[name], place + "." + name)]


def statement_of(project, run_id):
    return json.loads(ledger_export.export_text(StateStore(str(project.root), writable=False), run_id).decode("ascii"))


@pytest.mark.parametrize("run_id", ["a", "b", "c"])
def test_a_statement_has_the_fields_of_the_specifications_and_no_others(original, run_id):
    value = statement_of(original, run_id)
    assert problems_of(value, "statement", "statement") == []
    assert (value["_type"], value["predicateType"]) == ("https://in-toto.io/Statement/v1", "https://slsa.dev/provenance/v1")
    names = [one["name"] for one in value["subject"]]
    assert names == sorted(set(names))
    for uri in (value["predicate"]["buildDefinition"]["buildType"], value["predicate"]["runDetails"]["builder"]["id"]):
        assert re.fullmatch(r"urn:[a-z0-9-]+:[a-z]+:1", uri)


def test_the_table_of_fields_finds_what_does_not_belong(original):
    value = statement_of(original, "a")
    value["predicate"]["runDetails"]["metadata"]["startedOn"] = "2026-01-01 10:00"
    value["predicate"]["buildDefinition"]["resolvedDependencies"].append({"name": "x", "sha256": "y"})
    del value["predicate"]["runDetails"]["builder"]["id"]
    assert len(problems_of(value, "statement", "statement")) == 4


@pytest.mark.parametrize("run_id", ["a", "b", "c"])
def test_a_statement_tells_what_is_on_the_disk(original, run_id):
    """Also of a run that skipped: its outputs are those of the run that made them."""
    value = statement_of(original, run_id)
    assert {one["name"]: one["digest"]["sha256"] for one in value["subject"]} == {
        name: digest_of(original.path(name)) for name in ("data/s1/ä b.txt", "data/s2/result.txt")}
    definition, details = value["predicate"]["buildDefinition"], value["predicate"]["runDetails"]
    used = {one["name"]: (one["digest"]["sha256"], one["annotations"]["offlinePipelineRunner_use"]["roles"]) for one in definition["resolvedDependencies"]}
    wanted = {"bin/processor_kit.py": "module", "bin/stage_copy.py": "processor", "bin/stage_upper.py": "processor", "data/in/ä b.txt": "input",
              "data/s1/ä b.txt": "input", "data/watched.csv": "watched"}
    assert {name: one for name, one in used.items() if name != "spec:test"} == {name: (digest_of(original.path(name)), [role]) for name, role in wanted.items()}
    made = [one["name"] for one in definition["resolvedDependencies"] if one["annotations"]["offlinePipelineRunner_use"].get("subject")]
    assert made == ["data/s1/ä b.txt"]      # it was read, and it was made: said, not hidden
    assert used["spec:test"] == (digest_of(original.path("pipeline.json")), ["spec"])
    assert definition["externalParameters"] == {"pipeline": "test", "runId": run_id, "stages": {
        "s1": {"args": ["--x", "ä b"], "params": {"rate": 1.5, "words": ["größer"]}}, "s2": {"args": [], "params": {}}}}
    record = original.json("state/run_%s.json" % run_id)
    inside = definition["internalParameters"]
    assert {name: inside[name] for name in ("python", "os", "host", "state")} == {name: record[name] for name in ("python", "os", "host", "state")}
    assert (details["metadata"]["startedOn"], details["metadata"]["finishedOn"]) == (record["startedAt"], record["endedAt"])
    assert details["metadata"]["invocationId"].endswith(record["runHash"])
    assert details["builder"]["version"] == {"offline-pipeline-runner": record["runner"]}
    byproducts = {one["name"]: one["digest"]["sha256"] for one in details["byproducts"]}
    assert byproducts["run-record:%s/%d" % (run_id, record["invocation"])] == digest_of(original.path("state/run_%s.json" % run_id))
    assert {name: digest for name, digest in byproducts.items() if name.startswith("state/logs/")} == {
        name: digest_of(original.path(name)) for name in ("state/logs/a/s1.1.log", "state/logs/b/2/s2.1.log" if run_id != "a" else "state/logs/a/s2.1.log")}
    end = [one for one in entries_of(original.path("state/ledger.jsonl")) if one["event"] == "end" and one["runId"] == run_id][-1]
    assert byproducts["ledger-entry:%d" % end["seq"]] == hashlib.sha256(entry_line(end)).hexdigest()


def test_the_program_prints_and_writes_the_same_statement(history):
    done = history.ok("export", "b")
    assert done.out.replace("\r\n", "\n").encode("ascii") == ledger_export.export_text(StateStore(str(history.root), writable=False), "b")
    before = history.snapshot()
    path = history.root.parent / "x.json"
    told = history.ok("export", "b", "--format", "in-toto", "-o", str(path)).out
    assert told == "%s: %d bytes, SHA-256 %s\n" % (path, path.stat().st_size, digest_of(path))
    assert (history.root.parent / "x.json").read_bytes() == done.out.replace("\r\n", "\n").encode("ascii")
    assert history.snapshot() == before


def test_a_failed_run_has_a_statement_on_what_it_finished(project):
    project.write("data/in.txt", "x")
    fails = project.processor("fails", "open(out + '/half.txt', 'w').write('x'); sys.exit(3)\n")
    project.spec({"processor": "bin/stage_copy.py", "inputs": ["data/in.txt"]}, {"processor": fails, "inputs": ["data/s1/*.txt"]})
    assert project.run("--run-id", "f").code == 1
    value = statement_of(project, "f")
    assert [one["name"] for one in value["subject"]] == ["data/s1/in.txt"]
    assert value["predicate"]["buildDefinition"]["internalParameters"]["state"] == "failed"
    assert "bin/fails.py" in {one["name"] for one in value["predicate"]["buildDefinition"]["resolvedDependencies"]}
    out = make_zip(project, "f")
    assert found_in(out)[0] == set()


# --- what is not exported

def edit(path, old, new):
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new, 1))


def leave_open(project):
    ledger = project.path("state/ledger.jsonl")
    last = entries_of(ledger)[-1]
    begin = {"schema": 1, "seq": last["seq"] + 1, "prevHash": last["hash"], "event": "begin", "at": last["at"], "runId": "b", "invocation": 3,
             "pipeline": "test", "lastRunHash": last["lastRunHash"], "open": {"b": 3}}
    begin["hash"] = entry_hash(begin)
    ledger.write_bytes(ledger.read_bytes() + entry_line(begin))


def reopen_maker(project):
    """As if run a, which made what run b skipped, had not ended yet."""
    ledger = project.path("state/ledger.jsonl")
    entries = [one for one in entries_of(ledger) if one["event"] != "end" or one["runId"] != "a"]
    before, data = None, b""
    for number, entry in enumerate(entries, 1):
        entry.update(seq=number, prevHash=before, open=dict(entry["open"], a=1))
        entry["hash"] = before = entry_hash(entry)
        data += entry_line(entry)
    ledger.write_bytes(data)


REFUSED = {
    "a run of which the maker goes on": (reopen_maker, "b", 2, "run a (invocation 1), which made what this one skipped, has not ended"),
    "an unknown run": (lambda p: None, "nobody", 2, "run nobody is not in state/ledger.jsonl"),
    "a path": (lambda p: None, "../b", 2, "not in state/ledger.jsonl"),
    "a run that goes on": (leave_open, "b", 2, "run b has not ended (invocation 3)"),
    "no ledger": (lambda p: p.path("state/ledger.jsonl").unlink(), "b", 5, "state/ledger.jsonl is not there"),
    **({"a pipe": (lambda p: (p.path("state/ledger.jsonl").unlink(), os.mkfifo(str(p.path("state/ledger.jsonl")))), "b", 5, "it is a pipe or a device, no file")}
       if hasattr(os, "mkfifo") else {}),
    "an empty ledger": (lambda p: p.write("state/ledger.jsonl", ""), "b", 5, "has no entry"),
    "an edited record": (lambda p: edit(p.path("state/run_b.json"), b'"completed"', b'"Completed"'), "b", 5,
                         "state/run_b.json: the record is not the one that entry"),
    "a record that is no JSON": (lambda p: p.write("state/run_b.json", "{"), "b", 5, "state/run_b.json: the record is not the one"),
    "a deep record": (lambda p: p.write("state/run_b.json", "[" * 100000), "b", 5, "state/run_b.json: the record is not the one"),
    "a missing record": (lambda p: p.path("state/run_b.json").unlink(), "b", 5, "the record of run b (invocation 2) is missing"),
    "a folder in its place": (lambda p: (p.path("state/run_b.json").unlink(), p.path("state/run_b.json").mkdir()), "b", 5, "is missing"),
    "a missing earlier call": (lambda p: p.path("state/run_b.1.json").unlink(), "b", 5, "the record of run b (invocation 1) is missing"),
    "an edited entry": (lambda p: edit(p.path("state/ledger.jsonl"), b'"runId":"a"', b'"runId":"x"'), "b", 5,
                        "state/ledger.jsonl:1: the entry is not what was written"),
    "a ledger that is no JSON": (lambda p: edit(p.path("state/ledger.jsonl"), b"{", b"["), "b", 5, "state/ledger.jsonl:1: the entry is not JSON"),
    "a removed entry": (lambda p: edit(p.path("state/ledger.jsonl"), p.path("state/ledger.jsonl").read_bytes().splitlines(True)[1], b""), "b", 5,
                        ":2: the entry does not follow"),
}


@pytest.mark.parametrize("case", sorted(REFUSED))
def test_nothing_is_exported_that_does_not_verify(history, case):
    damage, run_id, code, message = REFUSED[case]
    damage(history)
    before = history.snapshot()
    for words in (["export", run_id, "-o", "x.json"], ["evidence", run_id, "-o", "x.zip"]):
        done = history.run(*words, cwd=str(history.root))
        assert done.code == code and message in done.err and len(done.err.splitlines()) == 1 and done.out == "", done
    assert history.snapshot() == before


def test_the_record_of_the_maker_is_needed_for_a_statement(history):
    history.path("state/run_a.json").unlink()
    done = history.run("export", "c")
    assert done.code == 5 and "the record of run a (invocation 1) is missing" in done.err and done.out == ""


def test_the_spec_of_a_run_that_skipped_all_is_there(project, tmp_path):
    project.write("data/in.txt", "x")
    stage = {"processor": "bin/stage_copy.py", "inputs": ["data/in.txt"]}
    project.spec(stage)
    project.ok("--run-id", "a")
    project.spec(stage, description="another file, the same work")
    assert "[SKIP]" in project.ok("--run-id", "b").out
    out = make_zip(project, "b")
    with zipfile.ZipFile(str(out)) as box:
        assert box.read("spec/test.json") == project.path("pipeline.json").read_bytes()
    findings, notes = found_in(out)
    assert findings == set() and "spec:test is not included: the file of that name is another one by now" in notes


def test_a_run_without_outputs_has_no_statement(project):
    project.write("data/in.txt", "x")
    project.spec({"processor": project.processor("fails", "sys.exit(3)\n"), "inputs": ["data/in.txt"]})
    project.run("--run-id", "f")
    done = project.run("export", "f")
    assert done.code == 2 and "run f has no outputs" in done.err and done.out == ""
    out = make_zip(project, "f")
    findings, notes = found_in(out)
    assert findings == set() and "in-toto.json is not included: run f has no outputs" in notes


def test_a_statement_of_a_run_that_has_none_is_found(project, zipped, tmp_path):
    project.spec({"processor": project.processor("fails", "sys.exit(3)\n")})
    project.run("--run-id", "f")
    folder = tmp_path / "evidence"
    with zipfile.ZipFile(make_zip(project, "f")) as archive, zipfile.ZipFile(zipped) as another:
        archive.extractall(str(folder))
        (folder / "in-toto.json").write_bytes(another.read("in-toto.json"))
    rewrite(folder / "evidence.json", lambda one: one.update(missing=[]))
    relist(folder)
    assert found_in(folder)[0] == {("UNLISTED", "in-toto.json")}


@pytest.mark.parametrize("count", [10, 11])
def test_the_files_of_many_tasks_are_in_the_statement_by_one_digest(project, tmp_path, count):
    for number in range(count):
        project.write("in/%d.txt" % number, "x%d" % number)
    project.spec({"name": "many", "processor": "bin/stage_copy.py", "forEach": "in/*.txt", "outputDir": "data/many"})
    project.ok("--run-id", "m")
    value = statement_of(project, "m")
    assert problems_of(value, "statement", "") == []
    stage, = project.json("state/run_m.json")["stages"]
    dependencies = {one["name"]: one for one in value["predicate"]["buildDefinition"]["resolvedDependencies"]}
    assert dependencies["inputs:many"]["digest"]["sha256"] == stage["keyParts"]["tasks"]["sha256"]
    if count == 10:
        assert [one["name"] for one in value["subject"]] == ["data/many/%d.txt" % number for number in range(10)]
    else:
        listed = sorted("%s\0%d\0%s" % (name, len(data), hashlib.sha256(data).hexdigest()) for name, data in ((path.name, path.read_bytes()) for path in project.path("data/many").glob("*.txt")))
        found, = value["subject"]
        assert found["name"] == "outputs:many" and "of 11 files in data/many" in found["annotations"]["offlinePipelineRunner_use"]["digestOf"]
        assert found["digest"]["sha256"] == hashlib.sha256(b"outputs\0" + "\n".join(listed).encode()).hexdigest()
    whole = make_zip(project, "m")
    assert found_in(whole)[0] == set()
    early = repacked(whole, tmp_path / "early.zip", lambda name, data: in_early_form(data) if name == "in-toto.json" else data)
    with zipfile.ZipFile(early) as archive:
        archive.extractall(str(tmp_path / "early"))
    relist(tmp_path / "early")
    findings, notes = found_in(tmp_path / "early")
    assert findings == set() and ("no in-toto.json, as" if count == 11 else "in-toto.json, as") in notes, (findings, notes)
    record = project.json("state/stage_many.json")
    record["tasks"]["outputsSha256"] = "0" * 64
    project.write("state/stage_many.json", json.dumps(record))
    assert ("EDITED", "state/stage_many.json") in found_in(make_zip(project, "m", "edited.zip"))[0]
    assert any("state/stage_many.json: tasks: by the record of run m they made other outputs" in str(one) for one in ledger_verify.verify(str(project.root)).findings)


def in_early_form(data):
    """Return a statement as runners made it that did not name the files of many tasks, None where there was nothing else to name."""
    value = json.loads(data)
    definition = value["predicate"]["buildDefinition"]
    for holder, name in ((value, "subject"), (definition, "resolvedDependencies")):
        holder[name] = [one for one in holder[name] if not one["name"].startswith(("inputs:", "outputs:"))]
    return (json.dumps(value, indent=2, ensure_ascii=True) + "\n").encode("ascii") if value["subject"] else None


@pytest.mark.parametrize("before_s", [-20 * 365 * 86400, 36000], ids=["forward", "back"])
def test_a_run_ends_in_its_statement_as_long_after_its_start_as_it_took_where_the_clock_was_set(project, set_clock, tmp_path, before_s):
    set_clock.set(before_s)
    project.spec({"processor": project.processor("tick", "open(%r, 'w').write('0')\nopen(out + '/o', 'w').close()\n" % str(set_clock.file))})
    project.ok("--run-id", "r", env=set_clock.env)
    record, metadata = project.json("state/run_r.json"), statement_of(project, "r")["predicate"]["runDetails"]["metadata"]
    assert (metadata["startedOn"], metadata["finishedOn"]) == (record["startedAt"], provenance.later(record["startedAt"], record["durationMs"]))
    assert record["endedAt"] != metadata["finishedOn"] and ledger_verify.verify(str(project.root)).findings == []
    whole = make_zip(project, "r")
    assert found_in(whole)[0] == set()

    def as_made_before(name, data):
        return data.replace(metadata["finishedOn"].encode(), record["endedAt"].encode()) if name == "in-toto.json" else data

    with zipfile.ZipFile(repacked(whole, tmp_path / "early.zip", as_made_before)) as archive:
        archive.extractall(str(tmp_path / "early"))
    relist(tmp_path / "early")
    findings, notes = found_in(tmp_path / "early")
    assert findings == set() and "in-toto.json, as runners made it before: it ends when the clock said" in notes, (findings, notes)


@pytest.mark.parametrize("ended, took, found", [
    ("2026-01-01T10:00:05.000Z", 5000, "2026-01-01T10:00:05.000Z"), ("2026-01-01T09:59:59.000Z", 5000, "2026-01-01T10:00:05.000Z"),
    ("2026-01-01T10:59:30.000Z", 3600000, "2026-01-01T10:59:30.000Z"),      # set right in small steps
    ("2026-01-01T10:50:00.000Z", 3600000, "2026-01-01T11:00:00.000Z"),
    ("2026-01-01T18:00:00.000Z", 5000, "2026-01-01T18:00:00.000Z"),         # the machine slept
    ("2026-01-03T10:00:00.000Z", 5000, "2026-01-01T10:00:05.000Z"), (None, 5000, None), ("2026-01-03T10:00:00.000Z", None, "2026-01-03T10:00:00.000Z"),
    ("2026-99-01T10:00:00.000Z", 5000, "2026-99-01T10:00:00.000Z"), ("2026-01-03T10:00:00.000Z", 10 ** 30, "2026-01-03T10:00:00.000Z")])
def test_when_a_run_ended(ended, took, found):
    assert provenance.finished_at({"startedAt": "2026-01-01T10:00:00.000Z", "endedAt": ended, "durationMs": took}) == found


# --- the zip

MEMBERS = """README.txt evidence.json in-toto.json ledger/ledger.jsonl logs/a/s1.1.log logs/a/s2.1.log logs/b/2/s2.1.log
    processors/bin/processor_kit.py processors/bin/stage_copy.py processors/bin/stage_upper.py records/metrics_b.json records/run_a.json records/run_b.1.json
    records/run_b.json records/stage_s1.json records/stage_s2.json spec/test.json verifier/ledger_format.py verifier/model.py verifier/primitives.py verifier/provenance.py
    verify.py""".split()


def test_the_zip_holds_what_proves_the_run(original, zipped):
    with zipfile.ZipFile(zipped) as archive:
        assert archive.namelist() == MEMBERS
        assert archive.read("records/run_b.json") == original.path("state/run_b.json").read_bytes()
        assert archive.read("ledger/ledger.jsonl") == original.path("state/ledger.jsonl").read_bytes()
        assert archive.read("spec/test.json") == original.path("pipeline.json").read_bytes()
        assert archive.read("verify.py") == (ROOT / "src" / "evidence_verify.py").read_bytes()
        manifest = json.loads(archive.read("evidence.json").decode("utf-8"))
        listed = {one["path"]: (one["bytes"], one["sha256"]) for one in manifest["members"]}
        assert listed == {name: (len(archive.read(name)), hashlib.sha256(archive.read(name)).hexdigest()) for name in MEMBERS if name != "evidence.json"}
        assert b"python -I verify.py" in archive.read("README.txt")
    last = entries_of(original.path("state/ledger.jsonl"))[-1]
    assert (manifest["runId"], manifest["invocation"], manifest["head"], manifest["headHash"]) == ("b", 2, head_text(last), last["hash"])
    assert manifest["missing"] == []


def test_no_path_of_this_machine_is_in_the_lists(original, zipped):
    with zipfile.ZipFile(zipped) as archive:
        for name in ("evidence.json", "in-toto.json", "README.txt"):
            assert original.root.parent.name.encode() not in archive.read(name), name


def test_the_excerpt_begins_with_the_first_entry_that_concerns_the_run(history, tmp_path):
    history.ok("--run-id", "d", "--force", "s1")
    with zipfile.ZipFile(make_zip(history, "d")) as archive:
        whole = history.path("state/ledger.jsonl").read_bytes().splitlines(True)
        lines = archive.read("ledger/ledger.jsonl").splitlines(True)
    assert 2 <= len(lines) < len(whole) and whole[-len(lines):] == lines
    first = json.loads(lines[0])
    assert (first["runId"], first["invocation"]) in (("b", 2), ("d", 1))
    assert found_in(tmp_path / "evidence.zip")[0] == set()


def test_the_same_state_gives_the_same_bytes(original, tmp_path):
    for folder in ("one", "two"):
        copy = copy_of(original, tmp_path / folder)
        for path in copy.root.rglob("*"):
            os.utime(path, (1, 1))
        make_zip(copy, "b", folder + ".zip")
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes() == make_zip(original, "b", "again.zip").read_bytes()


def test_the_bytes_of_a_zip_are_the_same_on_every_python(tmp_path):
    """The digest was taken from the zip of each Python from 3.8 to 3.13; a compressor or a time would not survive that."""
    box = ledger_export.Box(str(tmp_path))
    for name in ("a.txt", "ordner/ä b.txt"):
        box.add(name, name.encode("utf-8") * 3)
    with open(str(tmp_path / "x.zip"), "w+b") as file:
        ledger_export._write_zip(file, [box.members[name] for name in sorted(box.members)])
    assert digest_of(tmp_path / "x.zip") == "9dc894eb0e6bffe375ac09e1bf78cc940dd415731c6ac57f968cddd06df61261"
    with zipfile.ZipFile(tmp_path / "x.zip") as archive:
        kept = {(one.date_time, one.create_system, one.compress_type, one.external_attr >> 16) for one in archive.infolist()}
        assert kept == {((1980, 1, 1, 0, 0, 0), 3, 0, 0o100644)}


def test_the_program_names_the_zip_after_the_run_and_tells_its_digest(history, tmp_path):
    done = history.ok("evidence", "b", cwd=str(tmp_path))
    assert digest_of(tmp_path / "evidence_b.zip") in done.out and "evidence_b.zip: %d files" % len(MEMBERS) in done.out
    assert done.out.splitlines()[-1] == "[LEDGER] head " + head_text(entries_of(history.path("state/ledger.jsonl"))[-1])


def test_what_cannot_be_written_leaves_what_was_there(history, tmp_path):
    target = tmp_path / "there.zip"
    target.write_bytes(b"old")
    history.path("state/run_a.json").write_bytes(b"{}")
    history.path("state/run_b.json").write_bytes(b"{}")
    assert history.run("evidence", "b", "-o", str(target)).code == 5
    done = history.run("evidence", "c", "-o", str(tmp_path / "no folder" / "x.zip"))
    assert done.code == 5 and "no folder" in done.err, done
    assert target.read_bytes() == b"old" and not [name for name in os.listdir(tmp_path) if name.endswith(".tmp")]


@pytest.mark.skipif(sys.platform == "win32", reason="limits of this kind are POSIX's")
def test_a_disk_that_fills_up_is_a_clear_error_and_leaves_nothing(history, tmp_path):
    limited = ("import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000)); "
               "sys.path.insert(0, sys.argv[1]); import pipeline_runner; sys.exit(pipeline_runner.main(sys.argv[2:]))")
    # Not measured: the limit would meet the measurements, too.
    env = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    code, _, err = command(sys.executable, "-c", limited, ROOT / "src", "evidence", "b", "-o", tmp_path / "x.zip", "--pipeline", history.path("pipeline.json"), env=env)
    assert code == 5 and "x.zip" in err, err
    assert sorted(os.listdir(tmp_path)) == ["prüf bereich"]


# --- carried away and verified there

def test_it_is_verified_by_itself_on_the_other_side_of_an_air_gap(unpacked, tmp_path):
    """From another folder, without environment, isolated, twice: the second time nothing of the first may be in the way."""
    before = sorted(str(path) for path in unpacked.rglob("*"))
    for words in (["-I", unpacked / "verify.py"], [unpacked / "verify.py"], ["-I", unpacked / "verify.py", unpacked]):
        env = {name: os.environ[name] for name in ("SYSTEMROOT",) if name in os.environ}
        code, out, err = command(sys.executable, *words, env=env, cwd=str(tmp_path))
        last = out.splitlines()[-1]
        assert code == 0 and err == "" and re.fullmatch(r"verify: evidence of run b: ok \(head \d+: [0-9a-f-]+\)", last), out + err
        assert "only a head shows that was noted elsewhere" in out
    assert sorted(str(path) for path in unpacked.rglob("*")) == before


def test_the_zip_is_verified_without_unpacking_it(zipped, unpacked):
    for verifier in (unpacked / "verify.py", ROOT / "src" / "evidence_verify.py"):
        code, out, _ = command(sys.executable, verifier, zipped)
        assert code == 0 and out.splitlines()[-1].startswith("verify: evidence of run b: ok (head "), out


def test_a_zip_packed_anew_by_another_program_is_the_same_evidence(unpacked, tmp_path):
    shutil.make_archive(str(tmp_path / "again"), "zip", str(unpacked))
    with zipfile.ZipFile(tmp_path / "again.zip") as archive:
        assert any(name.endswith("/") for name in archive.namelist())
    assert found_in(tmp_path / "again.zip")[0] == set()


def test_a_verifier_that_cannot_be_loaded_is_a_finding(unpacked):
    for damage in (lambda path: path.write_bytes(b"("), lambda path: path.unlink()):
        damage(unpacked / "verifier" / "ledger_format.py")
        code, out, _ = command(sys.executable, "-I", unpacked / "verify.py")
        assert code == 5 and out.startswith("[EDITED] verifier: cannot be loaded"), out


USAGE = {
    "no such file": (["nowhere.zip"], "nowhere.zip: there is no such file or folder"),
    "not a zip": ([str(ROOT / "README.md")], "cannot be read as a zip"),
    "two names": (["a.zip", "b.zip"], "one zip or folder at a time"),
    "a strange option": (["--frob"], "usage: python verify.py"),
    "no value": (["--anchor"], "--anchor needs a value"),
    "a head that is none": (["--anchor", "12: xyz"], "is no head"),
    "a short head": (["--anchor", "12: 1234-5678"], "is no head"),
    "a head of no number": (["--anchor", "²: " + "0" * 32], "is no head"),
    "a key that is not there": (["--key", "nowhere.key"], "--key nowhere.key: cannot be read"),
    "a key that is none": (["--key", str(ROOT / "README.md")], "is no key file"),
}


@pytest.mark.parametrize("case", sorted(USAGE))
def test_bad_usage_is_told_in_a_line(case, unpacked):
    words, message = USAGE[case]
    code, out, err = command(sys.executable, unpacked / "verify.py", *words)
    assert code == 2 and message in err and len(err.splitlines()) == 1 and out == "", out + err


def test_a_folder_without_evidence_is_told(tmp_path):
    code, out, _ = command(sys.executable, ROOT / "src" / "evidence_verify.py", tmp_path)
    assert code == 5 and out.startswith("[DELETED] evidence.json: there is none in "), out


# --- attacks on the evidence: plain ones, which the list of members finds

def repacked(zipped, target, change):
    """Write the zip anew with change(name, data) -> data, or None to leave it out."""
    with zipfile.ZipFile(zipped) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            data = change(name, old.read(name))
            if data is not None:
                new.writestr(name, data)
    return target


def files_named(findings):
    """Return the members that findings name, a line of the ledger as the ledger."""
    return {re.sub(r":\d+$", "", file) for _, file in findings}


@pytest.mark.parametrize("name", MEMBERS)
def test_each_edited_member_is_found(name, zipped, tmp_path):
    for change in (lambda data: data + b" ", lambda data: data[:-1] + bytes([(data or b"\0")[-1] ^ 1]), lambda data: b""):
        with zipfile.ZipFile(zipped) as archive:
            data = archive.read(name)
        if change(data) == data:
            continue
        edited = repacked(zipped, tmp_path / "edited.zip", lambda one, data, change=change: change(data) if one == name else data)
        findings, _ = found_in(edited)
        if name == "evidence.json" and change(data) == data + b" ":
            assert findings == set()        # a blank behind the list says nothing else
        else:
            assert name in files_named(findings) and {kind for kind, _ in findings} <= {"EDITED", "MALFORMED", "TRUNCATED", "DELETED"}, (name, findings)


@pytest.mark.parametrize("name", MEMBERS)
def test_each_missing_member_is_found(name, zipped, tmp_path):
    edited = repacked(zipped, tmp_path / "edited.zip", lambda one, data: None if one == name else data)
    findings, _ = found_in(edited)
    assert ("DELETED", name) in findings and files_named(findings) == {name}


@pytest.mark.parametrize("name", ["notes.txt", "records/run_x.json", "logs/a/s1.2.log", "verifier/json.py", "ledger/ledger.end", ".hidden", "deep/er/ü.txt"])
def test_each_further_member_is_found(name, unpacked):
    (unpacked / name).parent.mkdir(parents=True, exist_ok=True)
    (unpacked / name).write_bytes(b"{}")
    findings, _ = found_in(unpacked)
    assert files_named(findings) == {name}


def test_a_renamed_member_is_found(unpacked):
    (unpacked / "records" / "run_a.json").rename(unpacked / "records" / "run_z.json")
    assert found_in(unpacked)[0] == {("DELETED", "records/run_a.json"), ("RENAMED", "records/run_z.json"), ("UNLISTED", "records/run_z.json")}


def test_two_swapped_records_are_found(unpacked):
    one, two = (unpacked / "records" / name for name in ("run_a.json", "run_b.json"))
    content = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(content)
    assert {("RENAMED", "records/run_a.json"), ("RENAMED", "records/run_b.json")} <= found_in(unpacked)[0]


def test_a_link_and_a_folder_in_place_of_a_member_are_found(unpacked, tmp_path):
    log = unpacked / "logs" / "a" / "s1.1.log"
    log.unlink()
    log.mkdir()
    assert ("DELETED", "logs/a/s1.1.log") in found_in(unpacked)[0]
    log.rmdir()
    (tmp_path / "elsewhere").write_bytes(b"")
    try:
        log.symlink_to(tmp_path / "elsewhere")
    except OSError:
        return                          # Windows without the privilege
    assert ("MALFORMED", "logs/a/s1.1.log") in found_in(unpacked)[0]


def test_a_damaged_zip_is_told(zipped, tmp_path):
    data = zipped.read_bytes()
    cut = tmp_path / "cut.zip"
    cut.write_bytes(data[:-100])
    with pytest.raises(evidence_verify.BadUsage):
        evidence_verify.verify(str(cut))
    with zipfile.ZipFile(zipped) as archive:
        place = data.index(archive.read("records/run_a.json"))
    cut.write_bytes(data[:place] + b"X" + data[place + 1:])
    assert found_in(cut)[0] == {("MALFORMED", "records/run_a.json")}
    shutil.copy(zipped, cut)
    with zipfile.ZipFile(cut, "a") as archive, pytest.warns(UserWarning):
        archive.writestr("README.txt", b"another")
    assert ("MALFORMED", "README.txt") in found_in(cut)[0]


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_damaged_member_is_told_however_it_is_compressed(zipped, tmp_path, method):
    packed = tmp_path / "packed.zip"
    with zipfile.ZipFile(zipped) as archive, zipfile.ZipFile(packed, "w", method) as other:
        for name in archive.namelist():
            other.writestr(name, archive.read(name))
    with zipfile.ZipFile(packed) as archive:
        place = archive.getinfo("records/run_a.json").header_offset + 30 + len("records/run_a.json")
    data = bytearray(packed.read_bytes())
    data[place + 12:place + 60] = b"\xff" * 48
    packed.write_bytes(bytes(data))
    assert ("MALFORMED", "records/run_a.json") in found_in(packed)[0]


def test_a_member_that_unpacks_to_gigabytes_is_not_read_to_its_end(zipped, tmp_path):
    class Endless:
        def names(self):
            return ["x"]

        def blocks(self, name):
            for count in range(1000):
                assert count < 3, "read on"
                yield b"0" * 1000

    assert evidence_verify.Check(Endless()).digest("x", 1500)[0] == 2000


# --- attacks with care: the list of members is corrected, too

def relist(folder, with_head=True):
    """Correct evidence.json as somebody would who has read evidence_verify.py."""
    path = folder / "evidence.json"
    manifest = json.loads(path.read_bytes().decode("utf-8"))
    sources = {one["path"]: one["source"] for one in manifest["members"]}
    names = sorted(str(one.relative_to(folder)).replace(os.sep, "/") for one in folder.rglob("*") if one.is_file())
    manifest["members"] = [{"path": name, "bytes": (folder / name).stat().st_size, "sha256": digest_of(folder / name), "source": sources.get(name, "state/" + name)}
                           for name in names if name != "evidence.json"]
    last = entries_of(folder / "ledger" / "ledger.jsonl")[-1]
    if with_head:
        manifest["head"], manifest["headHash"] = head_text(last), last["hash"]
        check = read_check(folder, manifest)
        if check.is_complete:
            manifest.update(evidence_verify._facts(check))
    path.write_bytes(json.dumps(manifest).encode("utf-8"))


def read_check(folder, manifest):
    """Return what evidence_verify finds out from the ledger and the records alone."""
    check = evidence_verify.Check(evidence_verify.Folder(str(folder)))
    check.manifest = manifest
    evidence_verify._check_ledger(check)
    evidence_verify._check_records(check)
    return check


def rewrite(path, change):
    value = json.loads(path.read_bytes().decode("utf-8"))
    change(value)
    path.write_bytes(json.dumps(value, indent=1, ensure_ascii=False).encode("utf-8"))


def change_record(folder, fix_hash=False):
    def change(record):
        record["host"] = "another"
        if fix_hash:
            record["runHash"] = run_hash(record)
    rewrite(folder / "records" / "run_b.json", change)


def drop_line(folder, number):
    lines = (folder / "ledger" / "ledger.jsonl").read_bytes().splitlines(True)
    del lines[number]
    (folder / "ledger" / "ledger.jsonl").write_bytes(b"".join(lines))


def swap_lines(folder):
    lines = (folder / "ledger" / "ledger.jsonl").read_bytes().splitlines(True)
    lines[1], lines[2] = lines[2], lines[1]
    (folder / "ledger" / "ledger.jsonl").write_bytes(b"".join(lines))


def edit_entry(folder, fix_hash):
    lines = entries_of(folder / "ledger" / "ledger.jsonl")
    lines[1]["state"] = "failed"
    if fix_hash:
        lines[1]["hash"] = entry_hash(lines[1])
    (folder / "ledger" / "ledger.jsonl").write_bytes(b"".join(map(entry_line, lines)))


def remove_listed(folder, name):
    (folder / name).unlink()


CAREFUL = {
    "a record": (change_record, {("EDITED", "records/run_b.json")}),
    "a record with its hash": (lambda f: change_record(f, True), {("EDITED", "records/run_b.json")}),
    "a log": (lambda f: (f / "logs/a/s1.1.log").write_bytes(b"all is well\n"), {("EDITED", "logs/a/s1.1.log")}),
    "a processor": (lambda f: edit(f / "processors/bin/stage_upper.py", b"upper", b"lower"), {("EDITED", "processors/bin/stage_upper.py")}),
    "a module": (lambda f: edit(f / "processors/bin/processor_kit.py", b"def ", b"def  "), {("EDITED", "processors/bin/processor_kit.py")}),
    "the spec": (lambda f: edit(f / "spec/test.json", b"2.1", b"2.2"), {("EDITED", "spec/test.json")}),
    "the metrics": (lambda f: edit(f / "records/metrics_b.json", b'"okStages": 1', b'"okStages": 2'), {("EDITED", "records/metrics_b.json")}),
    "a stage's key": (lambda f: rewrite(f / "records/stage_s1.json", lambda one: one.update(idempotencyKey="0" * 64)), {("EDITED", "records/stage_s1.json")}),
    "the parts of a stage's key": (lambda f: rewrite(f / "records/stage_s1.json", lambda one: one["keyParts"]["processor"].update(sha256="0" * 64)), {("EDITED", "records/stage_s1.json")}),
    "a stage's status": (lambda f: rewrite(f / "records/stage_s1.json", lambda one: one.update(lastStatus="failed")), {("EDITED", "records/stage_s1.json")}),
    "a stage's output": (lambda f: rewrite(f / "records/stage_s1.json", lambda one: one["outputs"][0].update(bytes=1)), {("EDITED", "records/stage_s1.json")}),
    "a subject": (lambda f: edit(f / "in-toto.json", b"data/s2/result.txt", b"data/s2/resalt.txt"), {("EDITED", "in-toto.json")}),
    "a parameter": (lambda f: edit(f / "in-toto.json", b"1.5", b"1.6"), {("EDITED", "in-toto.json")}),
    "a removed log": (lambda f: remove_listed(f, "logs/a/s1.1.log"), {("DELETED", "state/logs/a/s1.1.log")}),
    "a removed processor": (lambda f: remove_listed(f, "processors/bin/stage_copy.py"), {("DELETED", "bin/stage_copy.py")}),
    "a removed maker": (lambda f: remove_listed(f, "records/run_a.json"), {("DELETED", "records/run_a.json")}),
    "a removed earlier call": (lambda f: remove_listed(f, "records/run_b.1.json"), {("DELETED", "records/run_b.1.json")}),
    "a further log": (lambda f: (f / "logs/a/s1.2.log").write_bytes(b"x"), {("UNLISTED", "logs/a/s1.2.log")}),
    "a further record": (lambda f: shutil.copy(str(f / "records/run_a.json"), str(f / "records/run_q.json")), {("RENAMED", "records/run_q.json")}),
    "a removed entry": (lambda f: drop_line(f, 2), {("DELETED", "ledger/ledger.jsonl:3")}),
    "the first entry removed": (lambda f: drop_line(f, 0), {("TRUNCATED", "ledger/ledger.jsonl")}),
    "a stage record in another's place": (lambda f: shutil.copy(str(f / "records/stage_s1.json"), str(f / "records/stage_s2.json")), {("EDITED", "records/stage_s2.json")}),
    "a removed stage record": (lambda f: remove_listed(f, "records/stage_s1.json"), {("DELETED", "records/stage_s1.json")}),
    "a removed statement": (lambda f: remove_listed(f, "in-toto.json"), {("DELETED", "in-toto.json")}),
    "a file of no kind": (lambda f: (f / "approval.txt").write_bytes(b"all is well"), {("UNLISTED", "approval.txt")}),
    "a record with a name twice": (lambda f: edit(f / "records/run_b.json", b'"host"', b'"state": "completed", "host"'), {("MALFORMED", "records/run_b.json")}),
    "swapped entries": (swap_lines, {("REORDERED", "ledger/ledger.jsonl:3")}),
    "an entry": (lambda f: edit_entry(f, False), {("EDITED", "ledger/ledger.jsonl:2")}),
    "an entry with its hash": (lambda f: edit_entry(f, True), {("EDITED", "ledger/ledger.jsonl:3")}),
    "the tail removed": (lambda f: drop_line(f, -1), set()),
}


@pytest.mark.parametrize("case", sorted(CAREFUL))
def test_what_stands_in_the_ledger_cannot_be_edited_along_with_the_list(case, unpacked):
    attack, expected = CAREFUL[case]
    attack(unpacked)
    relist(unpacked)
    findings, _ = found_in(unpacked)
    assert expected <= findings and bool(expected) == bool(findings), findings


@pytest.mark.parametrize("excuse", [False, True])
def test_only_the_ledger_can_say_that_gc_has_removed_a_record(unpacked, excuse):
    (unpacked / "records/run_a.json").unlink()
    relist(unpacked)
    if excuse:
        missing = {"path": "", "source": "run a (invocation 1)", "sha256": "", "kind": "", "reason": "its record was pruned by gc, as the ledger says"}
        rewrite(unpacked / "evidence.json", lambda one: one["missing"].append(missing))
    assert ("DELETED", "records/run_a.json") in found_in(unpacked)[0]


@pytest.mark.parametrize("name, value", [("invocation", 1), ("pipeline", "other"), ("runHash", "0" * 64), ("runs", []), ("ledger", {"firstSeq": 2, "lastSeq": 3})])
def test_what_the_list_says_of_the_run_is_what_the_records_say(unpacked, name, value):
    rewrite(unpacked / "evidence.json", lambda one: one.update({name: value}))
    assert found_in(unpacked)[0] == {("EDITED", "evidence.json")}


@pytest.mark.parametrize("closed", ["pipe"] + ["full"] * os.path.exists("/dev/full"))
@pytest.mark.parametrize("more, code", [(0, 2), (300, 5)])
def test_a_report_that_cannot_be_printed_is_told_in_a_line(unpacked, closed, more, code):
    for number in range(more):
        (unpacked / ("more%d" % number)).touch()
    words = [sys.executable, "-I", str(ROOT / "src" / "evidence_verify.py"), str(unpacked)]     # whatever PYTHONUNBUFFERED says
    if closed == "pipe":
        reader, writer = os.pipe()
        os.close(reader)
    else:
        writer = os.open("/dev/full", os.O_WRONLY)
    done = subprocess.run(words, stdout=writer, stderr=subprocess.PIPE, timeout=60)
    os.close(writer)
    told = done.stderr.decode("utf-8")
    assert done.returncode == code and told.startswith("verify: standard output: ") and told.count("\n") == 1, told


def test_the_head_that_the_list_names_is_that_of_the_excerpt(unpacked):
    drop_line(unpacked, -1)
    relist(unpacked, with_head=False)
    assert found_in(unpacked)[0] == {("TRUNCATED", "ledger/ledger.jsonl")}


def test_the_head_that_the_list_shows_is_that_of_its_hash(unpacked):
    """People note the text."""
    rewrite(unpacked / "evidence.json", lambda one: one.update(head=one["head"][:-1] + ("0" if one["head"][-1] != "0" else "1")))
    assert found_in(unpacked)[0] == {("TRUNCATED", "ledger/ledger.jsonl")}


def rehash(folder, key=None):
    """Make everything consistent again, as somebody can who has it all."""
    ledger = folder / "ledger" / "ledger.jsonl"
    if not ledger.exists():
        ledger, where = folder / "state" / "ledger.jsonl", folder / "state"
    else:
        where = folder / "records"
    records = {}
    for path in where.glob("run_*.json"):
        record = json.loads(path.read_bytes().decode("utf-8"))
        records[(record["runId"], record["invocation"])] = (path, record)
    lines, last = [], None
    for entry in entries_of(ledger):
        if last is not None:
            entry.update(seq=last["seq"] + 1, prevHash=last["hash"], lastRunHash=last["lastRunHash"])
        if entry["event"] == "end" and (entry["runId"], entry["invocation"]) in records:
            path, record = records[(entry["runId"], entry["invocation"])]
            if last is not None:
                record["prevRunHash"] = last["lastRunHash"]
            record["runHash"] = run_hash(record)
            path.write_bytes((json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode("utf-8"))
            entry.update(runHash=record["runHash"], lastRunHash=record["runHash"], state=record["state"])
        entry["hash"] = entry_hash(entry)
        if key is not None:
            entry["seal"]["mac"] = seal_mac(key, entry["hash"])
        lines.append(entry)
        last = entry
    ledger.write_bytes(b"".join(map(entry_line, lines)))


def restate(folder):
    """Make in-toto.json anew from the records."""
    check = read_check(folder, json.loads((folder / "evidence.json").read_bytes().decode("utf-8")))
    latest = max(key for key in check.records if key[0] == check.manifest["runId"])
    entry = [one for one in check.entries if one["event"] == "end" and (one["runId"], one["invocation"]) == latest][0]
    value = evidence_verify.statement(check.records[latest], check.records, check.files, entry, hashlib.sha256(check.lines[entry["seq"]]).hexdigest())
    (folder / "in-toto.json").write_bytes(evidence_verify.statement_text(value))


def test_an_entry_that_says_of_a_run_what_its_record_does_not_is_found(unpacked):
    ledger = unpacked / "ledger" / "ledger.jsonl"
    lines = entries_of(ledger)
    for before, one in zip([{"hash": lines[0]["prevHash"]}, *lines], lines):
        state = {"state": "failed"} if (one["event"], one["runId"]) == ("end", "b") else {}
        one.update(state, prevHash=before["hash"])
        one["hash"] = entry_hash(one)
    ledger.write_bytes(b"".join(map(entry_line, lines)))
    relist(unpacked)
    assert ("EDITED", "records/run_b.json") in found_in(unpacked)[0]


def test_a_history_made_up_in_full_is_told_only_by_a_head_noted_elsewhere(unpacked):
    """What no chain can: said in the report, and found with an anchor."""
    head = head_text(entries_of(unpacked / "ledger" / "ledger.jsonl")[-1])
    change_record(unpacked)
    rehash(unpacked)
    restate(unpacked)
    relist(unpacked)
    findings, notes = found_in(unpacked)
    assert findings == set() and "only a head shows that was noted elsewhere" in notes
    assert found_in(unpacked, [head])[0] == {("EDITED", "ledger/ledger.jsonl")}
    rewrite(unpacked / "records" / "run_b.json", lambda record: record.update(host="a third"))     # found, and then nothing agrees
    findings, notes = found_in(unpacked)
    assert findings and "agree with one another" not in notes


# --- anchors

def heads(project):
    return [head_text(one) for one in entries_of(project.path("state/ledger.jsonl"))]


def test_every_head_of_the_excerpt_is_an_anchor(original, zipped):
    every = heads(original)
    for number, head in enumerate(every, 1):
        findings, notes = found_in(zipped, [head])
        ended = max(one["seq"] for one in entries_of(original.path("state/ledger.jsonl")) if one["event"] == "end" and one["runId"] == "b")
        assert findings == set() and ("only a later head does" in notes) == (number < ended), (head, notes)
    assert found_in(zipped, every)[0] == set()
    digits = every[-1].partition(": ")[2].replace("-", "")
    for text in (digits, digits[:16], digits.upper(), "%d:%s" % (len(every), digits)):
        assert found_in(zipped, [text])[0] == set()


ANCHORS = {
    "another hash under the number": (lambda every: "2: " + "0" * 32, "EDITED"),
    "a hash that is nowhere": (lambda every: "f" * 32, "EDITED"),
    "a hash under another number": (lambda every: "1: " + every[-1].partition(": ")[2], "EDITED"),
    "a number behind the end": (lambda every: "99: " + "0" * 32, "TRUNCATED"),
}


@pytest.mark.parametrize("case", sorted(ANCHORS))
def test_an_anchor_that_is_not_there_is_a_finding(case, original, zipped, unpacked):
    make, kind = ANCHORS[case]
    text = make(heads(original))
    assert found_in(zipped, [heads(original)[-1], text])[0] == {(kind, "ledger/ledger.jsonl")}
    code, out, _ = command(sys.executable, unpacked / "verify.py", "--anchor", text, "--anchor=" + heads(original)[-1])
    assert code == 5 and out.startswith("[%s] ledger/ledger.jsonl: " % kind) and "verify: evidence of run b: 1 finding (head" in out, out


def test_an_anchor_before_the_excerpt_proves_nothing_and_is_told(history):
    first = heads(history)[0]
    history.ok("--run-id", "d", "--force", "s1")
    assert found_in(make_zip(history, "d"), [first])[0] == {("TRUNCATED", "ledger/ledger.jsonl")}


def test_a_cut_tail_is_found_with_an_anchor(original, unpacked):
    drop_line(unpacked, -1)
    relist(unpacked)
    assert found_in(unpacked, [heads(original)[-1]])[0] == {("TRUNCATED", "ledger/ledger.jsonl")}


# --- seals

class Sealed:
    """A sealed history: an unsealed run first, then runs under a key; `first` is the key file as made, `now` as it is after."""

    def __init__(self, folder, forward):
        self.project = Project(folder / "prüf bereich")
        self.project.write("data/in.txt", "x\n")
        self.project.spec({"processor": "bin/stage_copy.py", "inputs": ["data/in.txt"]})
        self.now, self.first, self.other = folder / "now.key", folder / "first.key", folder / "other.key"
        for path in (self.now, self.other):
            self.project.ok("new-key", str(path), *(["--forward"] if forward else []))
        shutil.copy(self.now, self.first)
        self.project.ok("--run-id", "plain")
        for run_id in ("a", "b", "c"):
            self.project.ok("--run-id", run_id, "--force", "s1", "--key", str(self.now))
        self.zip = make_zip(self.project, "b")

    def unpack(self, folder):
        with zipfile.ZipFile(self.zip) as archive:
            archive.extractall(folder)
        return folder

    def key(self, name):
        return evidence_verify._read_key(str(getattr(self, name)))


@pytest.fixture(scope="module", params=["hmac", "forward"])
def sealed(request, tmp_path_factory):
    return Sealed(tmp_path_factory.mktemp(request.param), request.param == "forward")


def test_seals_hold_under_the_right_key_and_are_said_to_be_unchecked_without(sealed):
    findings, notes = found_in(sealed.zip)
    assert findings == set() and "not checked, give its key file with --key" in notes
    for name in ("first", "now"):
        findings, notes = found_in(sealed.zip, (), sealed.key(name))
        assert findings == set() and "only a head shows" not in notes
    later = sealed.first.read_bytes() != sealed.now.read_bytes()
    assert ("seals of 6 entries before it are not checked" in notes) == later


def test_the_wrong_key_is_one_finding(sealed):
    findings, _ = found_in(sealed.zip, (), sealed.key("other"))
    assert findings == {("UNSEALED", "ledger/ledger.jsonl")}


def test_the_excerpt_of_a_sealed_ledger_may_begin_in_its_middle(sealed):
    """But with forward keys, where it began unsealed: from the first seal on only are keys bound to entries."""
    with zipfile.ZipFile(sealed.zip) as archive:
        first = json.loads(archive.read("ledger/ledger.jsonl").splitlines()[0])
        assert "ledger/ledger.end" in archive.namelist()
    assert first["seq"] == {"hmac": 5, "forward": 3}[first["seal"]["mode"]] and first["seal"]["index"] == 0


def test_of_a_ledger_sealed_from_the_start_the_excerpt_begins_with_the_run(project, tmp_path):
    key = tmp_path / "k"
    project.write("data/in.txt", "x\n")
    project.spec({"processor": "bin/stage_copy.py", "inputs": ["data/in.txt"]})
    project.ok("new-key", "--forward", str(key))
    first = key.read_bytes()
    for run_id in "ab":
        project.ok("--run-id", run_id, "--force", "s1", "--key", str(key))
    made = make_zip(project, "b")
    with zipfile.ZipFile(made) as archive:
        assert json.loads(archive.read("ledger/ledger.jsonl").splitlines()[0])["seq"] == 3
    key.write_bytes(first)
    assert found_in(made, (), evidence_verify._read_key(str(key))) == (set(), "")


def test_an_excerpt_that_does_not_show_to_which_entries_its_keys_belong_is_told(sealed, tmp_path):
    """As earlier versions made it of a ledger that began unsealed."""
    folder = sealed.unpack(tmp_path / "x")
    while entries_of(folder / "ledger" / "ledger.jsonl")[0]["seq"] < 5:
        drop_line(folder, 0)
    relist(folder)
    findings, notes = found_in(folder, (), sealed.key("first"))
    is_forward = sealed.key("first")[0] == "forward"
    assert findings == set() and ("entry 5 has seal number 2: " in notes, "only a head shows" in notes) == (is_forward, is_forward)


def strip_seals(folder):
    lines = entries_of(folder / "ledger" / "ledger.jsonl")
    for one in lines:
        one.pop("seal", None)
    (folder / "ledger" / "ledger.jsonl").write_bytes(b"".join(map(entry_line, lines)))


def strip_last_seal(folder):
    lines = entries_of(folder / "ledger" / "ledger.jsonl")
    del lines[-1]["seal"]
    (folder / "ledger" / "ledger.jsonl").write_bytes(b"".join(map(entry_line, lines)))


def remake(folder):
    change_record(folder)
    rehash(folder)


def change_seals(folder, change):
    """No hash covers what change(seal) does."""
    ledger = folder / "ledger" / "ledger.jsonl"
    lines = entries_of(ledger)
    for one in lines:
        if "seal" in one:
            change(one["seal"])
    ledger.write_bytes(b"".join(map(entry_line, lines)))


def far_keys(folder):
    """Number the seals as if very many entries were between them and the key given."""
    change_seals(folder, lambda seal: seal.update(index=seal["index"] + (1 << 50)))


def other_mode(folder):
    change_seals(folder, lambda seal: seal.update(mode={"hmac": "forward", "forward": "hmac"}[seal["mode"]]))


# attack -> what is found without a key, and with the first key
SEAL_ATTACKS = {
    "made up in full": (remake, {("EDITED", "ledger/ledger.end")}, {("UNSEALED", "ledger/ledger.jsonl"), ("EDITED", "ledger/ledger.end")}),
    "all seals removed": (strip_seals, {("EDITED", "ledger/ledger.end")}, {("UNSEALED", "ledger/ledger.jsonl"), ("EDITED", "ledger/ledger.end")}),
    "the last seal removed": (strip_last_seal, {("UNSEALED", "ledger/ledger.jsonl"), ("EDITED", "ledger/ledger.end")},
                              {("UNSEALED", "ledger/ledger.jsonl"), ("EDITED", "ledger/ledger.end")}),
    "numbers of keys that nobody derives": (far_keys, set(), {("UNSEALED", "ledger/ledger.jsonl")}),
    "another kind of seals": (other_mode, set(), {("UNSEALED", "ledger/ledger.jsonl")}),
    "the tail removed": (lambda f: drop_line(f, -1), {("TRUNCATED", "ledger/ledger.jsonl")}, {("TRUNCATED", "ledger/ledger.jsonl")}),
    "the end removed": (lambda f: remove_listed(f, "ledger/ledger.end"), {("DELETED", "ledger/ledger.end")}, {("DELETED", "ledger/ledger.end")}),
    "another mac at the end": (lambda f: rewrite(f / "ledger/ledger.end", lambda one: one.update(mac="0" * 64)), set(), {("EDITED", "ledger/ledger.end")}),
    "an end that is none": (lambda f: (f / "ledger/ledger.end").write_bytes(b'{"seq": 1}'), {("MALFORMED", "ledger/ledger.end")},
                            {("MALFORMED", "ledger/ledger.end")}),
}


@pytest.mark.parametrize("case", sorted(SEAL_ATTACKS))
def test_attacks_on_sealed_evidence(case, sealed, tmp_path):
    attack, without, with_key = SEAL_ATTACKS[case]
    folder = sealed.unpack(tmp_path / "x")
    attack(folder)
    if case in ("made up in full", "all seals removed", "numbers of keys that nobody derives", "another kind of seals"):
        restate(folder)
    relist(folder)
    assert found_in(folder)[0] == without
    assert found_in(folder, (), sealed.key("first"))[0] == with_key


def test_a_seal_is_asked_for_where_there_is_none(zipped, sealed):
    assert found_in(zipped, (), sealed.key("first"))[0] == {("UNSEALED", "ledger/ledger.jsonl")}


def test_a_thief_of_todays_hmac_key_is_stopped_by_an_anchor_and_one_of_a_forward_key_by_the_key(sealed, tmp_path):
    """The thief rewrites the past and seals it with what lies on the machine now."""
    folder = sealed.unpack(tmp_path / "x")
    head = head_text(entries_of(folder / "ledger" / "ledger.jsonl")[-1])
    mode, _, _, stolen = sealed.key("now")
    change_record(folder)
    rehash(folder, stolen)
    restate(folder)
    last = entries_of(folder / "ledger" / "ledger.jsonl")[-1]
    rewrite(folder / "ledger/ledger.end", lambda one: one.update(hash=last["hash"], mac=end_mac(stolen, last["seq"], last["hash"])))
    relist(folder)
    assert found_in(folder, (), sealed.key("first"))[0] == (set() if mode == "hmac" else {("UNSEALED", "ledger/ledger.jsonl")})
    assert ("EDITED", "ledger/ledger.jsonl") in found_in(folder, [head])[0]


def sealed_anew(folder, first_seal):
    """Write the evidence anew with another record of its run; first_seal: (number, key) of the seal of its first entry."""
    change_record(folder)
    rehash(folder)
    ledger = folder / "ledger" / "ledger.jsonl"
    lines = entries_of(ledger)
    first, key = first_seal
    for number, one in enumerate(lines, first):
        one["seal"].update(index=number, mac=seal_mac(key, one["hash"]))
        key = next_key(key)
    ledger.write_bytes(b"".join(map(entry_line, lines)))
    last = lines[-1]
    rewrite(folder / "ledger/ledger.end", lambda one: one.update(hash=last["hash"], mac=end_mac(key, last["seq"], last["hash"])))
    restate(folder)
    relist(folder)


@pytest.mark.parametrize("who", ["with today's key", "without a key"])
def test_seals_of_other_numbers_do_not_make_a_history_written_anew_hold(tmp_path, who):
    """Each key is bound to one entry, by its number."""
    sealed = Sealed(tmp_path / "past", True)
    folder = sealed.unpack(tmp_path / "x")
    _, _, number, stolen = sealed.key("now")
    sealed_anew(folder, (number, stolen) if who == "with today's key" else (-7, b"guess" * 8))
    assert ("UNSEALED", "ledger/ledger.jsonl") in found_in(folder, (), sealed.key("first"))[0]


# --- what has changed since the run

def test_what_changed_for_good_reason_is_said_to_be_missing(history):
    edit(history.path("bin/stage_upper.py"), b"upper", b"lower")
    history.write("pipeline.json", history.read("pipeline.json") + "\n")
    history.path("state/logs/a/s1.1.log").unlink()
    done = history.ok("evidence", "b", "-o", str(history.root.parent / "evidence.zip"))
    assert "note: bin/stage_upper.py is not included: the file has changed since" in done.out and "state/logs/a/s1.1.log is not included" in done.out
    assert "spec:test is not included: pipeline.json is not what that run was given: it has changed since, or is another file (--pipeline)" in done.out
    findings, notes = found_in(history.root.parent / "evidence.zip")
    assert findings == set()
    for source in ("bin/stage_upper.py", "spec:test", "state/logs/a/s1.1.log"):
        assert source + " is not included" in notes
    with zipfile.ZipFile(history.root.parent / "evidence.zip") as archive:
        assert not {"processors/bin/stage_upper.py", "spec/test.json", "logs/a/s1.1.log"} & set(archive.namelist())


TAMPERED = {
    "a log": (lambda p: p.write("state/logs/a/s1.1.log", "all is well\n"), "[EDITED] state/logs/a/s1.1.log: "),
    "the metrics": (lambda p: edit(p.path("state/metrics_b.json"), b'"okStages": 1', b'"okStages": 2'), "[EDITED] state/metrics_b.json: "),
    "no metrics": (lambda p: p.path("state/metrics_b.json").unlink(), "[DELETED] state/metrics_b.json: "),
    "a stage record": (lambda p: rewrite(p.path("state/stage_s1.json"), lambda one: one.update(idempotencyKey="0" * 64)), "[EDITED] state/stage_s1.json: "),
    "a stage record that is none": (lambda p: p.write("state/stage_s1.json", "[]"), "[EDITED] state/stage_s1.json: "),
    "the maker's record": (lambda p: edit(p.path("state/run_a.json"), b'"completed"', b'"Completed"'), "[EDITED] run a (invocation 1): "),
    "no record of the maker": (lambda p: p.path("state/run_a.json").unlink(), "[DELETED] run a (invocation 1): "),
}


@pytest.mark.parametrize("case", sorted(TAMPERED))
def test_what_was_tampered_with_is_left_out_and_a_finding_here_and_there(case, history):
    damage, line = TAMPERED[case]
    damage(history)
    done = history.run("evidence", "b", "-o", str(history.root.parent / "evidence.zip"))
    assert done.code == 5 and done.out.startswith(line), done
    code, out, _ = command(sys.executable, ROOT / "src" / "evidence_verify.py", history.root.parent / "evidence.zip")
    assert code == 5 and line in out, out


def test_a_record_that_a_kill_kept_from_its_name_is_in_the_evidence_under_it(history):
    """The entry stands, the record is still .run.json.tmp; the next run would complete the rename."""
    shutil.copy(str(history.path("state/run_b.json")), str(history.path("state/.run.json.tmp")))
    rewrite(history.path("state/run_b.json"), lambda record: (record.update(state="running"), record.pop("runHash")))
    out = make_zip(history)
    with zipfile.ZipFile(out) as archive:
        assert archive.read("records/run_b.json") == history.path("state/.run.json.tmp").read_bytes()
    assert found_in(out)[0] == set()


def test_a_torn_last_line_is_left_out(history):
    with open(str(history.path("state/ledger.jsonl")), "ab") as file:
        file.write(b'{"at":"20')
    with zipfile.ZipFile(make_zip(history)) as archive:
        assert archive.read("ledger/ledger.jsonl").endswith(b"}\n")


def test_an_accepted_key_stands_in_the_evidence_with_who_and_why(history):
    with open(str(history.path("bin/stage_upper.py")), "ab") as file:
        file.write(b"# a comment\n")
    history.ok("accept", "s2", "--reason", "only a comment")
    history.ok("--run-id", "d")
    findings, notes = found_in(make_zip(history, "d"))
    assert findings == set() and "accepted another key of stage s2: only a comment" in notes
    with zipfile.ZipFile(history.root.parent / "evidence.zip") as archive:
        archive.extractall(history.root.parent / "x")
    folder = history.root.parent / "x"
    lines = [one for one in entries_of(folder / "ledger" / "ledger.jsonl") if one["event"] != "accept"]
    (folder / "ledger" / "ledger.jsonl").write_bytes(b"".join(map(entry_line, lines)))
    rehash(folder)
    restate(folder)
    relist(folder)
    assert found_in(folder)[0] == {("UNLISTED", "ledger/ledger.jsonl"), ("EDITED", "records/stage_s2.json")}


def test_a_stage_record_of_a_later_run_is_not_judged(history):
    history.ok("--run-id", "d", "--force", "s2")
    findings, notes = found_in(make_zip(history))
    assert findings == set() and "records/stage_s2.json names a run that is not in this evidence" in notes


def test_processors_by_absolute_path_are_in_it_also_two_of_one_name(project, tmp_path):
    stages = []
    for number, folder in enumerate(("eins ü", "zwei"), 1):
        path = tmp_path / folder / "tool.py"
        path.parent.mkdir()
        path.write_bytes(b"import os\nopen(os.environ['PIPELINE_OUTPUT_DIR'] + '/out.txt', 'w').write('%d')\n" % number)
        stages.append({"processor": str(path), "inputs": ["data/in.txt"]})
    project.write("data/in.txt", "x")
    project.spec(*stages)
    project.ok("--run-id", "a")
    out = make_zip(project, "a")
    with zipfile.ZipFile(out) as archive:
        names = [name for name in archive.namelist() if name.startswith("processors/")]
        assert "processors/_absolute/tool.py" in names and len(names) == 2 and all(name.endswith("/tool.py") for name in names)
        assert {archive.read(name)[-4:-1] for name in names} == {b"1')", b"2')"}
    assert found_in(out)[0] == set()


# --- hostile records: consistent in every hash, hostile in what they say

def set_log(path):
    return lambda record: record["stages"][0]["logs"][0].update(path=path)


def set_processor(path):
    return lambda record: record["stages"][0]["keyParts"]["processor"].update(path=path)


HOSTILE = {
    "a log above": set_log("state/logs/../../../secret.txt"),
    "a log elsewhere": set_log("state/env.key"),
    "an absolute log": set_log("/etc/hostname"),
    "a log outside of its folder": set_log("data/secret.txt"),
    "a log on a drive": set_log("C:\\secret.txt"),
    "a log with a backslash": set_log("state/logs/a\\..\\x"),
    "a log with NUL": set_log("state/logs/a\0b"),
    "a log with a line end": set_log("state/logs/a\nb"),
    "a log that is a folder": set_log("state/logs/a"),
    "a processor above": set_processor("../secret.txt"),
    "a processor far above": set_processor("bin/../../secret.txt"),
    "a processor on a drive": set_processor("C:secret.txt"),
    "a processor with NUL": set_processor("bin/\0"),
    "a processor without a name": set_processor("/"),
    "no path": set_processor(""),
    "a pipeline above": lambda record: record.update(pipeline="../../x"),
    "a stage above": lambda record: record["stages"][0].update(stage="../../secret"),
    "a stage with NUL": lambda record: record["stages"][0].update(stage="a\0b"),
    "a maker of another form": lambda record: record["stages"].append({"stage": "x", "status": "skipped", "madeBy": {"runId": "../x", "invocation": 1}}),
    "stages that are none": lambda record: record.update(stages=[1]),
    "parts that are none": lambda record: record["stages"][0].update(keyParts=[]),
    "outputs that are none": lambda record: record["stages"][0].update(outputs={"a": 1}),
    "digests that are none": lambda record: record["stages"][0]["logs"][0].update(sha256="../x"),
    "numbers that are none": lambda record: record["stages"][0]["logs"][0].update(bytes=True),
    "metrics that are none": lambda record: record.update(metrics="x"),
    "a time that is none": lambda record: record.update(startedAt="yesterday"),
    "a newer form": lambda record: record.update(schema=2),
}


@pytest.mark.parametrize("case", sorted(HOSTILE))
def test_a_hostile_record_gets_no_path_into_the_zip_and_no_traceback(case, history):
    secret = history.root.parent / "secret.txt"
    secret.write_bytes(b"secret")
    history.write("data/secret.txt", "secret")

    def change(record):
        if record["stages"][0].get("logs"):
            record["stages"][0]["logs"][0].update(sha256=digest_of(secret), bytes=6)
        record["stages"][0]["keyParts"]["processor"]["sha256"] = digest_of(secret)
        HOSTILE[case](record)
    rewrite(history.path("state/run_a.json"), change)
    rehash(history.root)
    target = history.root.parent / "evidence.zip"
    out, err = io.StringIO(), io.StringIO()
    codes = [ledger_export.cmd_evidence(str(history.root), "a", str(target), str(history.path("pipeline.json")), Console(out, err)),
             ledger_export.cmd_export(str(history.root), "a", None, "pipeline.json", Console(out, err))]
    assert set(codes) <= {0, 2, 5}, err.getvalue()
    if target.exists():
        with zipfile.ZipFile(target) as archive:
            assert all(not name.startswith("/") and not {"..", "."} & set(name.split("/")) and "\\" not in name and ":" not in name for name in archive.namelist())
            assert not any(archive.read(name) == b"secret" for name in archive.namelist())
        evidence_verify.verify(str(target))


@pytest.mark.parametrize("name, is_good", [
    ("bin/ä b.py", True), ("a", True), ("..a/b..", True), ("a/.hidden", True), ("", False), ("/a", False), ("a//b", False), ("a/", False), (".", False),
    ("a/../b", False), ("..", False), ("a/./b", False), ("a\\b", False), ("\\a", False), ("C:a", False), ("a/C:b", False), ("a\0", False), ("a\nb", False)])
def test_which_paths_may_become_names_of_members(name, is_good):
    assert (provenance.member_problem(name) == "") == is_good


HOSTILE_LISTS = {
    "a member above": lambda one: one["members"].append({"path": "../../etc/passwd", "bytes": 1, "sha256": "0" * 64}),
    "an absolute member": lambda one: one["members"].append({"path": "/etc/passwd", "bytes": 1, "sha256": "0" * 64}),
    "a member twice": lambda one: one["members"].append(one["members"][0]),
    "a member with NUL": lambda one: one["members"].append({"path": "a\0", "bytes": 1, "sha256": "0" * 64}),
    "no list": lambda one: one.update(members={}),
    "numbers as texts": lambda one: one["members"][0].update(bytes="1"),
    "no run": lambda one: one.pop("runId"),
    "another run": lambda one: one.update(runId="zz"),
    "another form": lambda one: one.update(schema=7),
}


@pytest.mark.parametrize("case", sorted(HOSTILE_LISTS))
def test_a_hostile_list_is_a_finding(case, unpacked):
    rewrite(unpacked / "evidence.json", HOSTILE_LISTS[case])
    findings, _ = found_in(unpacked)
    assert findings and {kind for kind, _ in findings} <= {"MALFORMED", "DELETED", "UNLISTED", "EDITED"}


def test_control_characters_do_not_reach_the_terminal(unpacked):
    rewrite(unpacked / "evidence.json", lambda one: one["missing"].append(
        {"path": "x", "source": "x\u001b[2J\n[EDITED] y", "sha256": "", "kind": "", "reason": "\u202e\r"}))
    _, out, _ = command(sys.executable, unpacked / "verify.py")
    assert "\u001b" not in out and "\r" not in out and "\u202e" not in out and "\\x1b[2J\\n[EDITED] y" in out


def mutated(value, chance):
    """Return the value with one thing in it replaced, removed or doubled."""
    if isinstance(value, dict) and value and chance.random() < 0.8:
        name = chance.choice(sorted(value))
        if chance.random() < 0.15:
            return {key: one for key, one in value.items() if key != name}
        return dict(value, **{name: mutated(value[name], chance)})
    if isinstance(value, list) and value and chance.random() < 0.8:
        place = chance.randrange(len(value))
        return value[:place] + [mutated(value[place], chance)] + value[place + chance.randrange(2):]
    return chance.choice([None, True, -1, 0, 10 ** 30, 1.5, "", "\ud800", "\0", "../x", [], {}, [[]], {"a": None}, "0" * 64])


@pytest.mark.parametrize("name", ["evidence.json", "records/run_a.json", "records/run_b.json", "records/stage_s1.json", "in-toto.json", "ledger/ledger.jsonl"])
def test_no_content_of_any_kind_breaks_the_verifier(name, unpacked):
    """Each made consistent as far as it can be, so that the checks behind the first one are reached, too."""
    chance = random.Random(name)
    originals = {path: path.read_bytes() for path in unpacked.rglob("*") if path.is_file()}
    path = unpacked / name
    for _ in range(40):
        for one, data in originals.items():
            one.write_bytes(data)
        if name.endswith(".jsonl"):
            lines = path.read_bytes().splitlines()
            place = chance.randrange(len(lines))
            lines[place] = json.dumps(mutated(json.loads(lines[place]), chance), sort_keys=True, separators=(",", ":")).encode("ascii")
            path.write_bytes(b"\n".join(lines) + b"\n")
        else:
            path.write_bytes(json.dumps(mutated(json.loads(path.read_bytes().decode("utf-8")), chance)).encode("ascii"))
        for fix in (rehash, relist) if name != "evidence.json" else ():
            try:
                fix(unpacked)
            except (ValueError, TypeError, KeyError, AttributeError, IndexError):
                pass                    # too odd to be made consistent
        report = evidence_verify.verify(str(unpacked))
        assert isinstance(report.findings, list)


FORMS = {
    "tasks of a stage": lambda one: one.update(tasks=[1]),
    "tasks of a key": lambda one: one["keyParts"].update(tasks="none"),
    "a parameter that is no number": lambda one: one["keyParts"].update(params='{"rate": 1e999}'),
}


@pytest.mark.parametrize("case", sorted(FORMS))
def test_records_of_another_form_are_told_in_a_line(case, unpacked):
    rewrite(unpacked / "records/run_a.json", lambda record: [FORMS[case](one) for one in record["stages"] if "keyParts" in one])
    rehash(unpacked)
    relist(unpacked)
    kinds = {kind for kind, _ in found_in(unpacked)[0]}
    assert kinds and kinds <= {"MALFORMED", "EDITED", "DELETED", "UNLISTED"}


@pytest.mark.parametrize("entry", [{"event": "accept", "stage": [1]}, {"event": "gc", "removed": 5}])
def test_entries_of_another_form_are_no_crash(unpacked, entry):
    ledger = unpacked / "ledger/ledger.jsonl"
    last = entries_of(ledger)[-1]
    new = dict(last, seq=last["seq"] + 1, prevHash=last["hash"], **entry)
    new.pop("runHash", None)
    new["hash"] = entry_hash(new)
    ledger.write_bytes(ledger.read_bytes() + entry_line(new))
    relist(unpacked)
    found_in(unpacked)


# --- while others work

def meanwhile(monkeypatch, function, act, suffix=""):
    """Let act() happen when the export first calls one of its functions, with a path that ends so."""
    real, acts = getattr(ledger_export, function), [act]

    def slow(*arguments):
        if acts and str(arguments[0]).endswith(suffix):
            acts.pop()()
        return real(*arguments)
    monkeypatch.setattr(ledger_export, function, slow)


def test_evidence_while_a_call_of_the_same_run_id_is_made_is_that_of_the_new_call(history, monkeypatch):
    meanwhile(monkeypatch, "_digest_of", lambda: history.ok("--run-id", "c", "--force", "s2"), "metrics_c.json")
    out = make_zip(history, "c")
    with zipfile.ZipFile(out) as archive:
        facts = json.loads(archive.read("evidence.json"))
    assert facts["invocation"] == 2 and facts["missing"] == [] and found_in(out)[0] == set()


@pytest.mark.parametrize("what, function, suffix", [("evidence", "_digest_of", "s1.1.log"), ("evidence", "_digest_of", "metrics_a.json"),
                                                    ("evidence", "_write_zip", ""), ("evidence", "_read_small", "run_a.json"), ("export", "_read_small", "run_a.json")])
def test_what_gc_removes_meanwhile_is_pruned_and_not_missing(history, monkeypatch, what, function, suffix):
    history.ok("--run-id", "d", "--force", "s1,s2")
    meanwhile(monkeypatch, function, lambda: history.ok("gc", "--keep-runs", "1", "--yes"), suffix)
    with pytest.raises(ledger_export.RecordPruned, match="was pruned by gc, as entry"):
        make_zip(history, "a") if what == "evidence" else statement_of(history, "a")
    assert not (history.root.parent / "evidence.zip").exists()


@pytest.mark.parametrize("name", ["run_c.json", "run_c.1.json"])
def test_a_record_that_gets_its_name_while_it_is_looked_for_is_found(history, monkeypatch, name):
    """Its entry stands, and it gets its name just before it is looked for under the other one."""
    state = history.path("state")
    (state / "run_c.json").rename(state / ledger_export.PENDING)
    meanwhile(monkeypatch, "_read_small", lambda: (state / ledger_export.PENDING).rename(state / name), ledger_export.PENDING)
    assert statement_of(history, "c")["predicateType"]


# --- what is there and cannot be read --------------------------------------------------------------------------------

@pytest.mark.parametrize("name", ["bin/stage_copy.py", "state/logs/a/s1.1.log", "state/metrics_a.json"])
@pytest.mark.parametrize("how", ["held"] if sys.platform == "win32" else ["rights", "pipe"])
def test_evidence_that_lacks_what_is_there_is_no_success_and_accuses_nobody(history, name, how):
    path = history.path(name)
    assert path.is_file()
    if how == "rights":
        os.chmod(str(path), 0)
    elif how == "pipe":
        path.unlink()
        os.mkfifo(str(path))
    release = hold(path) if how == "held" else lambda: None
    done = run_without_might(history, "evidence", "a", "-o", str(history.path("out.zip")))
    release()
    assert done.returncode == 5 and "[MALFORMED] %s: not included: the file cannot be read: " % name in done.stdout and "[DELETED]" not in done.stdout, done


@pytest.mark.skipif(sys.platform != "win32", reason="elsewhere nobody is kept from a file by who has it open")
def test_a_record_that_a_scanner_holds_for_a_moment_is_waited_for(history):
    threading.Timer(0.2, hold(history.path("state/run_b.json"))).start()
    assert json.loads(ledger_export.export_text(StateStore(str(history.root), writable=False), "b"))


# --- a long history

@pytest.mark.parametrize("what", ["export", "evidence"])
def test_of_a_long_ledger_little_more_is_held_than_its_lines(tmp_path, what):
    """All entries as values take eight times as much: of a hundred thousand runs, more than a small machine has."""
    long_history.make(tmp_path, 500)
    size = (tmp_path / "state/ledger.jsonl").stat().st_size

    def work():
        if what == "export":
            return ledger_export.export_text(StateStore(str(tmp_path), writable=False), "r000499")
        return ledger_export.write_evidence(str(tmp_path), "r000499", str(tmp_path / "e.zip"), str(tmp_path / "pipeline.json"))
    work()                  # what it loads is loaded
    tracemalloc.start()
    try:
        work()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 6 * size, (peak, size)
