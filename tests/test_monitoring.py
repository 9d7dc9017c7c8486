"""state/metrics.prom and --openlineage: the formats by their own grammars, what is kept between runs, and that neither can fail a run."""
from __future__ import annotations

import datetime
import json
import re
import sys
import uuid
from collections import namedtuple

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "src"))
import open_lineage  # noqa: E402
import prometheus_text  # noqa: E402
import state_store  # noqa: E402

# --- a strict reader of Prometheus' text format 0.0.4, by its grammar and naming conventions

NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\[\\"n])*)"')
VALUE = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?|NaN|[+-]Inf")
UNESCAPED = {"\\\\": "\\", '\\"': '"', "\\n": "\n"}
Sample = namedtuple("Sample", "name labels value")


def read_metrics(text):
    """Return the samples of a file as {(name, labels): value}; every fault is an AssertionError."""
    assert text.endswith("\n") and "\r" not in text
    samples, kinds, helped, family, closed = {}, {}, set(), None, set()
    for line in text[:-1].split("\n"):
        comment = re.fullmatch(r"# (HELP|TYPE) (\S+) (.*)", line)
        if comment:
            word, name, rest = comment.groups()
            assert NAME.fullmatch(name)
            if name != family:
                assert name not in closed, "%s stands in two groups" % name
                closed.add(name)
                family = name
            if word == "HELP":
                assert name not in helped and not re.search(r"\\[^\\n]", rest) and rest
                helped.add(name)
            else:
                assert name not in kinds and rest in ("gauge", "counter", "untyped", "summary", "histogram")
                kinds[name] = rest
            continue
        name = NAME.match(line).group()
        assert name == family and name in kinds and name in helped, line
        labels, rest = {}, line[len(name):]
        if rest.startswith("{"):
            rest = rest[1:]
            while not rest.startswith("}"):
                label = LABEL.match(rest)
                assert label and label.group(1) not in labels, line
                labels[label.group(1)] = re.sub(r'\\[\\"n]', lambda found: UNESCAPED[found.group()], label.group(2))
                rest = rest[label.end():]
                rest = rest[1:] if rest.startswith(",") else rest
            rest = rest[1:]
        assert rest.startswith(" ") and VALUE.fullmatch(rest[1:]), line       # no time stamp, one blank
        key = (name, tuple(sorted(labels.items())))
        assert key not in samples, "%s twice" % line
        samples[key] = float(rest)
    for name, kind in kinds.items():
        assert (kind == "counter") == name.endswith("_total"), name
        assert not re.search(r"_(milliseconds|ms|kb|mb|kilobytes|megabytes|minutes|hours|percent)(_|$)", name) and "timestamp" not in name or name.endswith("timestamp_seconds"), name
    return samples


def value(samples, metric, **labels):
    return samples.get((metric, tuple(sorted(labels.items()))))


RECORD = {"runId": "r", "invocation": 1, "pipeline": "p", "version": "1", "runner": "0.1.0", "python": "cpython 3.8.1", "state": "completed",
          "startedAt": "2026-01-31T23:59:58.000Z", "endedAt": "2026-02-01T00:00:00.500Z", "durationMs": 2500, "host": "h", "stages": []}


def metrics(*stages, when="2026-02-01T00:00:00.500Z"):
    """stages: (name, status)."""
    entries = [{"stage": name, "status": status, "durationSec": 1.5, "attempts": 2, "cpuSec": 0.25, "maxRssBytes": 4096, "bytesIn": 10, "bytesOut": 20,
                "counts": {"read": 3, "rejected": 1}} for name, status in stages]
    return {"runId": "r", "invocation": 1, "timestamp": when, "durationSec": 2.5, "stages": entries}


def test_the_file_after_a_run_is_of_the_format_and_tells_of_run_and_stages(project):
    project.write("data/in.txt", "x\ny\n")
    project.spec({"processor": "bin/stage_upper.py", "inputs": ["data/in.txt"], "checkpoint": {"enabled": True}},
                 {"processor": project.processor("bad", "sys.exit(3)\n"), "inputs": ["data/s1/result.txt"]}, {"processor": "bin/stage_copy.py", "inputs": ["data/in.txt"]})
    assert project.run("--run-id", "r1").code == 1
    found = read_metrics(project.read("state/metrics.prom"))
    told = project.json("state/metrics_r1.json")["stages"]
    assert value(found, "pipeline_run_state", pipeline="test", state="failed") == 1
    assert [value(found, "pipeline_stage_status", pipeline="test", stage=name, status=status) for name, status in (("s1", "ok"), ("s2", "failed"), ("s3", "notRun"))] == [1, 1, 1]
    assert value(found, "pipeline_stage_records", pipeline="test", stage="s1", kind="read") == 2
    assert value(found, "pipeline_stage_cpu_seconds", pipeline="test", stage="s1") == told[0]["cpuSec"] > 0
    assert value(found, "pipeline_stage_max_resident_memory_bytes", pipeline="test", stage="s1") == told[0]["maxRssBytes"]
    assert value(found, "pipeline_stage_duration_seconds", pipeline="test", stage="s3") is None
    assert value(found, "pipeline_last_success_timestamp_seconds", pipeline="test") is None
    assert value(found, "pipeline_stage_last_success_timestamp_seconds", pipeline="test", stage="s1") == value(found, "pipeline_run_end_timestamp_seconds", pipeline="test")
    assert not list(project.path("state").glob(".metrics.prom*"))


def test_a_run_in_which_nothing_changed_refreshes_the_file(project):
    project.write("data/in.txt", "x\n")
    project.spec({"processor": "bin/stage_copy.py", "inputs": ["data/in.txt"]})
    project.ok()
    first = read_metrics(project.read("state/metrics.prom"))
    project.ok()
    second = read_metrics(project.read("state/metrics.prom"))
    for name, labels in (("pipeline_last_success_timestamp_seconds", {}), ("pipeline_run_end_timestamp_seconds", {}), ("pipeline_stage_last_success_timestamp_seconds", {"stage": "s1"})):
        assert value(second, name, pipeline="test", **labels) > value(first, name, pipeline="test", **labels)
    assert value(second, "pipeline_stage_status", pipeline="test", stage="s1", status="skipped") == 1
    assert value(second, "pipeline_stage_output_bytes", pipeline="test", stage="s1") == 2 and value(first, "pipeline_stage_attempts", pipeline="test", stage="s1") == 1
    assert value(second, "pipeline_stage_attempts", pipeline="test", stage="s1") is None


def test_last_successes_and_other_pipelines_are_kept():
    first = prometheus_text.text(RECORD, metrics(("a", "ok"), ("b", "failed"), ("gone", "ok")))
    later = "2026-02-02T00:00:00.000Z"
    other = prometheus_text.text(dict(RECORD, pipeline='q"\\\n', state="failed"), metrics(("a", "failed"), when=later), first, {"a"})
    again = prometheus_text.text(dict(RECORD, state="failed"), metrics(("a", "failed"), ("b", "skipped"), when=later), other, {"a", "b"})
    found = read_metrics(again)
    assert value(found, "pipeline_last_success_timestamp_seconds", pipeline="p") == 1769904000.5
    assert value(found, "pipeline_stage_last_success_timestamp_seconds", pipeline="p", stage="a") == 1769904000.5
    assert value(found, "pipeline_stage_last_success_timestamp_seconds", pipeline="p", stage="b") == 1769990400
    assert value(found, "pipeline_stage_last_success_timestamp_seconds", pipeline="p", stage="gone") is None
    assert value(found, "pipeline_run_state", pipeline='q"\\\n', state="failed") == 1 and value(found, "pipeline_run_state", pipeline="p", state="completed") is None
    assert prometheus_text.text(dict(RECORD, state="failed"), metrics(("a", "failed"), ("b", "skipped"), when=later), again, {"a", "b"}) == again


def test_a_run_that_skips_the_same_stages_again_changes_only_the_times():
    other = prometheus_text.text(dict(RECORD, pipeline="q"), metrics(("a", "ok"), when="2026-01-01T00:00:00.000Z"))
    first = prometheus_text.text(RECORD, metrics(("a", "skipped"), ("b", "skipped")), other, {"a", "b"})
    later, record = metrics(("a", "skipped"), ("b", "skipped"), when="2026-03-01T00:00:00.250Z"), dict(RECORD, startedAt="2026-03-01T00:00:00.000Z")
    later["durationSec"] = 0.25

    def refreshed(earlier, told=record, names=("a", "b")):
        return b"".join(prometheus_text.refreshed(earlier.encode(), told, dict(later, stages=None), list(names))).decode()

    again = refreshed(first)
    assert again == prometheus_text.text(record, later, first, {"a", "b"}) != first
    for wrong in (dict(record, version="2"), dict(record, state="failed"), dict(record, pipeline="x")):
        assert refreshed(first, wrong) == ""
    for names in (["a"], ["a", "b", "c"], ["a", "c"], ["b", "a"], []):
        assert refreshed(first, names=names) == refreshed("", names=names) == ""
    at_once = prometheus_text.text(dict(RECORD, pipeline="q"), metrics(("a", "ok")), first)
    assert refreshed(at_once) != refreshed(first)       # the other's times are not ours to change
    assert sorted(refreshed(at_once).split("\n")) == sorted(prometheus_text.text(record, later, at_once, {"a", "b"}).split("\n"))
    before = prometheus_text.text(RECORD, metrics(("a", "skipped"), ("b", "skipped")), prometheus_text.text(dict(RECORD, pipeline="q"), metrics(("a", "ok"))), {"a", "b"})
    assert refreshed(before) == prometheus_text.text(record, later, before, {"a", "b"})
    gone = prometheus_text.text(RECORD, metrics(("a", "skipped"), ("b", "skipped")), prometheus_text.text(RECORD, metrics(("c", "ok"))), {"a", "b", "c"})
    assert 'stage="c"' in gone and refreshed(gone) == ""
    worked = prometheus_text.text(RECORD, metrics(("a", "ok"), ("b", "skipped")), other, {"a", "b"})
    assert refreshed(worked) == refreshed(worked, names=["b"]) == ""
    for torn in (first + "x", first + "x\n", first[:-1], first.replace("pipeline_stage_input_bytes{", "\0ipeline_stage_input_bytes{", 1)):
        assert refreshed(torn) == "", torn          # a power cut, or somebody, has been at it


@pytest.mark.parametrize("before, now", [
    ((("a", "skipped"), ("b", "skipped"), ("c", "skipped")), (("a", "skipped"), ("b", "ok"), ("c", "skipped"))),
    ((("a", "skipped"), ("b", "ok"), ("c", "ok")), (("a", "skipped"), ("b", "skipped"), ("c", "skipped"))),
    ((("a", "ok"), ("b", "failed"), ("c", "skipped")), (("a", "ok"), ("b", "ok"), ("c", "skipped")))])
def test_a_run_that_looked_at_few_stages_exchanges_their_lines(before, now):
    def updated(earlier, *told):
        return b"".join(prometheus_text.updated(earlier.encode(), *told)).decode()

    first, later = metrics(*before), metrics(*now, when="2026-03-01T00:00:00.250Z")
    for number, one in enumerate(first["stages"] + later["stages"]):
        one["bytesOut"] = 7 if one["stage"] == "c" else number
        one["counts"] = {"read": 5, "odd": 1} if one["stage"] == "c" else {"read": number}
        one["bytesIn"] = 3 if one["stage"] == "c" else number + 20
    looked_at = {place: one for place, one in enumerate(later["stages"]) if one["stage"] != "c"}
    whole = prometheus_text.text(RECORD, first, "", {"a", "b", "c"})
    record = dict(RECORD, startedAt="2026-03-01T00:00:00.000Z")
    again = updated(whole, record, dict(later, stages=None), ["a", "b", "c"], looked_at)
    assert again == prometheus_text.text(record, later, whole, {"a", "b", "c"})
    only_a = {0: looked_at[0]}          # what the others' lines say is taken over
    assert (updated(whole, record, later, ["a", "b", "c"], only_a) == "") == (dict(before)["b"] == "failed")
    for names in (["a", "b"], ["a", "b", "c", "d"], ["a", "c", "b"], []):
        assert updated(whole, record, later, names, {0: looked_at[0]}) == ""
    with_other = prometheus_text.text(dict(RECORD, pipeline="q"), first, whole)
    torn = whole[:-1]
    foreign = whole.replace("# TYPE pipeline_run_state gauge\n", "")
    short = "".join(line for line in whole.splitlines(True) if not line.startswith('pipeline_stage_input_bytes{pipeline="%s",stage="c"' % RECORD["pipeline"]))
    assert short != whole
    for earlier in (with_other, torn, foreign, short, ""):
        assert updated(earlier, record, later, ["a", "b", "c"], looked_at) == ""
    assert updated(whole, dict(record, state="failed"), later, ["a", "b", "c"], looked_at) == ""
    looked_at[0]["status"] = "failed"
    assert updated(whole, record, later, ["a", "b", "c"], looked_at) == ""


def test_a_run_of_some_stages_is_no_success_of_the_pipeline():
    found = read_metrics(prometheus_text.text(RECORD, metrics(("a", "ok")), "", {"a", "b"}))
    assert value(found, "pipeline_last_success_timestamp_seconds", pipeline="p") is None and value(found, "pipeline_run_state", pipeline="p", state="completed") == 1


@pytest.mark.parametrize("earlier", ["", "\0\0\0\n", "pipeline_run_state{pip", 'pipeline_run_state{pipeline="q"} 1 17\n', 'x{pipeline="q"} 1\n', "hello\n"])
def test_a_file_that_is_torn_or_somebody_elses_is_written_anew(earlier):
    text = prometheus_text.text(RECORD, metrics(("a", "ok")), earlier)
    assert text == prometheus_text.text(RECORD, metrics(("a", "ok"))) and read_metrics(text)


def test_tasks_strange_names_and_values_that_are_no_numbers():
    told = metrics(("a", "ok"))
    told["stages"][0].update(tasks={"total": 5, "ok": 4, "failed": 1}, counts={'k"\\\n': 7, "read": None})
    found = read_metrics(prometheus_text.text(RECORD, told))
    assert value(found, "pipeline_stage_tasks", pipeline="p", stage="a", outcome="failed") == 1
    assert value(found, "pipeline_stage_tasks", pipeline="p", stage="a", outcome="total") is None
    assert value(found, "pipeline_stage_records", pipeline="p", stage="a", kind='k"\\\n') == 7


@pytest.mark.parametrize("seconds", [0, 951782399, 951782400, 951868800, 1709164800, 1709251199, 4102444799])
def test_times_are_those_of_the_calendar(seconds):
    assert float(prometheus_text.epoch_text(state_store.utc_text(seconds + 0.25))) == seconds + 0.25


# --- OpenLineage 2, RunEvent: the required fields of the schema and of the facets that are used

REQUIRED = {"parent": {"run": dict, "job": dict}, "errorMessage": {"message": str, "programmingLanguage": str}, "processing_engine": {"version": str},
            "jobType": {"processingType": str, "integration": str}, "version": {"datasetVersion": str}}
URI = re.compile(r"[a-z][a-z0-9+.-]*:\S+")


def check_facets(facets, *allowed):
    assert set(facets) <= set(allowed)
    for name, facet in facets.items():
        assert URI.fullmatch(facet["_producer"]) and re.fullmatch(r"https://openlineage\.io/spec/facets/\d+-\d+-\d+/(\w+)\.json#/\$defs/\1", facet["_schemaURL"])
        assert all(isinstance(facet[field], kind) for field, kind in REQUIRED[name].items())


def check_event(event):
    """Check what the schema of RunEvent requires, and that nothing else is there."""
    assert set(event) == {"eventType", "eventTime", "run", "job", "inputs", "outputs", "producer", "schemaURL"}
    assert event["eventType"] in ("START", "RUNNING", "COMPLETE", "ABORT", "FAIL", "OTHER")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", event["eventTime"])
    assert URI.fullmatch(event["producer"]) and event["schemaURL"] == "https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs/RunEvent"
    assert set(event["run"]) <= {"runId", "facets"} and set(event["job"]) <= {"namespace", "name", "facets"}
    assert str(uuid.UUID(event["run"]["runId"])) == event["run"]["runId"] and uuid.UUID(event["run"]["runId"]).variant == uuid.RFC_4122
    assert event["job"]["namespace"] and event["job"]["name"]
    check_facets(event["run"]["facets"], "parent", "errorMessage", "processing_engine")
    check_facets(event["job"]["facets"], "jobType")
    for dataset in event["inputs"] + event["outputs"]:
        assert set(dataset) <= {"namespace", "name", "facets"} and dataset["namespace"] == "file" and dataset["name"].startswith("/") and ".." not in dataset["name"].split("/")
        check_facets(dataset["facets"], "version")


def check_pairs(events):
    """Each run starts once and ends once, not before it started; each parent is a run that is told of."""
    runs = {}
    for event in events:
        check_event(event)
        runs.setdefault(event["run"]["runId"], []).append(event)
    for found in runs.values():
        assert [one["eventType"] == "START" for one in found] == [True, False] and found[0]["eventTime"] <= found[1]["eventTime"] and found[0]["job"] == found[1]["job"]
    for event in events:
        parent = event["run"]["facets"].get("parent")
        assert parent is None or runs[parent["run"]["runId"]][0]["job"]["name"] == parent["job"]["name"]
    return runs


def test_the_events_of_a_run_are_appended_as_lines(project):
    project.write("data/in.txt", "x\n")
    project.spec({"processor": "bin/stage_copy.py", "inputs": ["data/in.txt"]}, {"processor": project.processor("bad", "sys.exit(3)\n"), "inputs": ["data/s1/in.txt"]})
    path = project.path("lineage.ndjson")
    path.write_bytes(b'{"half a line')
    assert project.run("--run-id", "r1", "--openlineage", str(path), env={"OPENLINEAGE_NAMESPACE": "plant 7"}).code == 1
    project.run("--run-id", "r2", "--openlineage", str(path), env={"OPENLINEAGE_NAMESPACE": "plant 7"})
    lines = path.read_bytes().decode("ascii").split("\n")
    assert lines[0] == '{"half a line' and lines[-1] == ""
    events = [json.loads(line) for line in lines[1:-1]]
    runs = check_pairs(events)
    assert [(one["job"]["name"], one["eventType"]) for one in events[:6]] == [
        ("test", "START"), ("test.s1", "START"), ("test.s1", "COMPLETE"), ("test.s2", "START"), ("test.s2", "FAIL"), ("test", "FAIL")]
    assert len(runs) == 5 and {one["job"]["namespace"] for one in events} == {"plant 7"}       # s1 is up to date in the second run
    copied = events[2]
    assert [one["name"] for one in copied["inputs"] + copied["outputs"]] == ["/" + str(project.path(name)).replace("\\", "/").lstrip("/") for name in ("data/in.txt", "data/s1/in.txt")]
    assert events[4]["run"]["facets"]["errorMessage"]["message"] == "exit code 3" and events[4]["outputs"] == []
    assert copied["outputs"][0]["facets"]["version"]["datasetVersion"] == "sha256:" + project.json("state/run_r1.json")["stages"][0]["outputs"][0]["sha256"]


def stage(name, **more):
    return dict({"stage": name, "status": "ok", "reason": "", "durationMs": 100, "keyParts": {"outputDir": "data/x"}, "inputs": [], "outputs": []}, **more)


def test_ids_are_the_same_for_the_same_and_times_are_in_order():
    record = dict(RECORD, stages=[stage("a", startedAt="2026-01-31T23:59:59.950Z"), stage("b", startedAt="2026-01-31T23:59:59.000Z", durationMs=3000), stage("c", status="skipped"), stage("d", status="interrupted")])
    events = open_lineage.events(record, "2026-02-01T00:00:00.500Z", "/r", "n")
    assert events == open_lineage.events(record, "2026-02-01T00:00:00.500Z", "/r", "n") and check_pairs(events)
    inside = [one["eventTime"] for one in events[1:-1]]
    assert inside == sorted(inside) and [one["job"]["name"] for one in events[1:3]] == ["p.b", "p.a"] and not [one for one in events if one["job"]["name"] == "p.c"]
    assert [one["eventType"] for one in events if one["job"]["name"] == "p.d"] == ["START", "ABORT"]
    ids = {open_lineage.run_uuid(*parts) for parts in (("n", "/r", "x", 1, ""), ("n", "/r", "x", 2, ""), ("n", "/r", "x", 1, "a"), ("n", "/q", "x", 1, ""), ("m", "/r", "x", 1, ""))}
    assert len(ids) == 5


@pytest.mark.parametrize("before_s", [-20 * 365 * 86400, 36000], ids=["forward", "back"])
def test_the_events_are_in_order_though_the_clock_was_set_meanwhile(project, set_clock, before_s):
    set_clock.set(before_s)
    project.spec({"processor": project.processor("tick", "open(%r, 'w').write('0')\nopen(out + '/o', 'w').close()\n" % str(set_clock.file))}, {"processor": "bin/tick.py"})
    project.ok("--run-id", "r", "--openlineage", str(project.path("events.jsonl")), env=set_clock.env)
    events = [json.loads(line) for line in project.read("events.jsonl").splitlines()]
    assert check_pairs(events)
    record = project.json("state/run_r.json")
    assert [(one["eventType"], one["job"]["name"]) for one in events] == [
        ("START", "test"), ("START", "test.s1"), ("COMPLETE", "test.s1"), ("START", "test.s2"), ("COMPLETE", "test.s2"), ("COMPLETE", "test")]
    assert (events[0]["eventTime"], events[-1]["eventTime"]) == (record["startedAt"], open_lineage.later(record["startedAt"], record["durationMs"]))
    assert [one["eventTime"] for one in events] == sorted(one["eventTime"] for one in events)


def test_a_time_some_milliseconds_later():
    assert open_lineage.later("2026-02-28T23:59:59Z", 1000) == "2026-03-01T00:00:00.000Z"
    assert open_lineage.later("2026-02-28T23:59:59.990Z", 15) == "2026-03-01T00:00:00.005Z"
    assert datetime.timezone.utc        # the module is there in the oldest Python


# --- neither fails a run

def test_what_cannot_be_written_is_a_note_and_the_run_stands(project):
    project.write("data/in.txt", "x\n")
    project.spec({"processor": "bin/stage_copy.py", "inputs": ["data/in.txt"]})
    project.path("state/metrics.prom").mkdir(parents=True)
    done = project.ok("--run-id", "r1", "--openlineage", str(project.path("no/such/folder")))
    notes = [line for line in done.out.splitlines() if line.startswith("[NOTE]")]
    assert len(notes) == 2 and "state/metrics.prom was not written" in notes[0] and "--openlineage" in notes[1]
    assert project.json("state/run_r1.json")["state"] == "completed" and project.ok("verify")


def test_strange_records_are_a_note_too(project, tmp_path):
    class Told:
        found = []

        def line(self, text):
            self.found.append(text)

    project.path("state").mkdir(parents=True, exist_ok=True)
    store = state_store.StateStore(str(project.root))
    prometheus_text.emit(store, {}, {}, None, Told())
    open_lineage.emit(store, {}, {}, str(tmp_path / "x"), Told())
    assert len(Told.found) == 2 and not (tmp_path / "x").exists() and not project.exists("state/metrics.prom")


def test_the_files_of_tasks_are_told_of_by_their_globs_and_who_waits_is_no_failure(project):
    project.write("data/in/a.txt", "x")
    project.write("late.txt", "x")
    project.spec({"name": "each", "processor": "bin/stage_copy.py", "forEach": "data/in/*.txt", "outputDir": "data/each"},
                 {"name": "waits", "processor": "bin/stage_copy.py", "inputs": ["late.txt"], "outputDir": "data/waits", "settleSec": 600})
    assert project.run("--run-id", "r", "--openlineage", str(project.path("events.jsonl"))).code == 7
    events = [json.loads(line) for line in project.read("events.jsonl").splitlines()]
    assert [(one["eventType"], one["job"]["name"].rpartition(".")[2]) for one in events] == [("START", "test"), ("START", "each"), ("COMPLETE", "each"), ("ABORT", "test")]
    assert [one["name"].endswith("/data/in/*.txt") for one in events[1]["inputs"]] == [True] and "error" not in str(events[3]["run"]["facets"]).lower()
