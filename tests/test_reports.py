"""report and graph: the page is whole, self-contained and escaped, tells what the records tell, and what they no longer do."""
from __future__ import annotations

import calendar
import html.parser
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from conftest import ROOT, run_without_might, wait_until

sys.path.insert(0, str(ROOT / "src"))
import pipeline_graph  # noqa: E402
import report_html  # noqa: E402
import run_history  # noqa: E402
import run_report  # noqa: E402
import stage_order  # noqa: E402
import state_store  # noqa: E402
import svg_shapes  # noqa: E402
import text_table  # noqa: E402
from model import StageSpec  # noqa: E402
from svg_shapes import Edge, Node  # noqa: E402

from src import pipeline_runner  # noqa: E402

VOID = {"meta", "br", "link", "img", "input", "hr"}


class Page(html.parser.HTMLParser):
    """A page taken apart: every element must be closed in order; texts, ids and attributes are collected."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.attributes, self.texts, self.problems, self.heads = [], [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == [] and self.problems == [], (self.open, self.problems)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        names = [name for name, _ in attrs]
        if len(names) != len(set(names)):
            self.problems.append((tag, attrs))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.problems.append(("end", tag, self.getpos()))

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self):
        return "".join(self.texts)


def checked(text):
    """Return the page, having checked that it needs nothing from outside, runs nothing, and can be read aloud."""
    page = Page(text)
    assert set(page.tags) & {"script", "iframe", "object", "embed", "img", "link", "form", "base"} == set()
    for tag, name, value in page.attributes:
        assert not name.startswith("on") and name not in ("src", "srcset", "style", "action", "xlink:href"), (tag, name)
        if name == "href":
            assert value.startswith("#") and ("section", "id", value[1:]) in page.attributes, value
    style = re.search("(?s)<style>(.*?)</style>", text).group(1)
    assert not re.search(r"(?i)url\(|@import|https?:|//", style)
    assert not re.search(r"<th[^>]*></th>", text) and "</a><a" not in text      # a column without a head; links that no narrow screen can break apart
    assert page.tags.count("h1") == 1 and page.tags.count("svg") == sum(1 for tag, name, _ in page.attributes if (tag, name) == ("svg", "aria-label"))
    assert page.tags.count("th") == sum(1 for tag, name, _ in page.attributes if (tag, name) == ("th", "scope"))
    assert ("html", "lang", "en") in page.attributes and "prefers-color-scheme:dark" in style and "@media print" in style
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]", text)
    return page


def report(project, *arguments, notes=None):
    """Make a report with the real program; return the page."""
    path = project.path("out.html")
    done = project.ok("report", "-o", str(path), *arguments)
    found = [line[7:] for line in done.out.splitlines() if line.startswith("[NOTE] ")]
    assert notes is None or len(found) == notes, done
    return checked(path.read_bytes().decode("utf-8"))


def two_stages(project, second="", **more):
    project.write("data/in.txt", "a\nb\n")
    first = project.processor("first", "import shutil; shutil.copy(inputs[0], out)\n")
    project.spec({"name": "first", "processor": first, "inputs": ["data/in.txt"]},
                 dict({"name": "second", "processor": project.processor("second", second or "open(out + '/two.txt', 'w').write('2')\n"), "inputs": ["data/s1/*.txt"]}, **more))


# --- the page

def test_a_report_of_a_run_that_failed_tells_what_and_shows_its_log(project):
    two_stages(project, "print('\\x1b[31mred\\x1b[0m </pre><script>x</script> \\u202e'); sys.stdout.flush(); os.write(1, b'\\xff\\x00\\n'); sys.exit(3)\n",
               retry={"attempts": 2, "baseDelayMs": 1})
    assert project.run("--run-id", "r1").code == 1
    page = report(project, notes=0)
    assert "second failed: exit code 3" in page.text and "red </pre><script>x</script> \\u202e" in page.text and "\x1b" not in page.text
    assert "state/logs/r1/second.2.log" in page.text and "second, attempt 2 of 2" in page.text and "closed by the kernel" in page.text or sys.platform != "linux"
    head = [line for line in project.ok("verify").out.splitlines() if "head" in line]
    assert head and re.search(r"2: [0-9a-f]{4}(-[0-9a-f]{4}){7}", page.text).group() in "\n".join(head)


def test_a_report_of_an_earlier_run_and_the_reasons(project):
    two_stages(project)
    project.ok("--run-id", "r1")
    project.write("data/in.txt", "other\n")
    project.ok("--run-id", "r2")
    assert "no record of an earlier run" in report(project, "r1", notes=0).text
    page = report(project, notes=0)
    assert "Run r2" in page.text and "input data/in.txt changed" in page.text and "Durations of first over 2 runs" in page.text
    project.ok("--run-id", "r3")
    assert "Stages done0 of 2, 2 skipped" in report(project, notes=0).text


def test_the_last_run_is_the_last_of_the_ledger_also_after_the_clock_was_wrong(project):
    two_stages(project)

    def shown():
        page = report(project)
        return re.search("Run (early|ahead|behind|late)", page.text).group(1), re.findall("(early|ahead|behind|late) *completed", page.text.partition("Runs up to this one")[2])

    def written(run_id, day):
        """As if the clock had shown another day in that run."""
        path = project.path("state/run_%s.json" % run_id)
        project.write("state/run_%s.json" % run_id, re.sub('"(startedAt|endedAt)": "2[0-9]{3}-[0-9-]{5}', '"\\1": "%s' % day, path.read_text()))
        seconds = calendar.timegm(time.strptime(day, "%Y-%m-%d"))
        os.utime(str(path), (seconds, seconds))

    for run_id in ("early", "ahead", "late"):
        project.ok("--run-id", run_id)
    written("ahead", "2099-01-01")
    assert shown() == ("late", ["late", "ahead", "early"])
    project.ok("--run-id", "behind")
    written("behind", "1980-01-01")
    assert shown() == ("behind", ["behind", "late", "ahead", "early"])
    project.ok("--run-id", "late")
    assert shown() == ("late", ["late", "behind", "late", "ahead", "early"])
    assert run_history.record_names(str(project.root)) == ["run_%s.json" % name for name in ("late", "behind", "late.1", "ahead", "early")]
    project.path("state/ledger.jsonl").unlink()
    assert run_history.record_names(str(project.root))[0] == "run_ahead.json"       # nothing but the time tells


def test_a_call_under_the_same_id_while_the_report_is_made_is_no_change_after_the_run(project, monkeypatch):
    two_stages(project)
    project.ok("--run-id", "r")
    real, calls = run_report.read_json, [lambda: project.ok("--run-id", "r", "--force", "second")]

    def read(path):
        if calls and path.endswith("metrics_r.json"):
            calls.pop()()
        return real(path)
    monkeypatch.setattr(run_report, "read_json", read)
    found = run_report.gather(pipeline_runner.load_pipeline(str(project.path("pipeline.json"))), "r", 1.8e9)
    assert (found.invocation, found.notes) == (2, []) and not calls


def test_a_report_of_records_that_are_damaged_gone_or_edited(project):
    two_stages(project)
    project.ok("--run-id", "r1")
    path = project.path("state/run_r1.json")
    record = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps(dict(record, host="elsewhere")), "utf-8")
    assert "was changed after the run" in report(project, notes=1).text
    path.write_text(json.dumps(dict(record, stages=[None, 3, {"stage": 7, "status": {}, "counts": [], "tries": "x"}], durationMs="long", startedAt="2026-99-99T00:00:00Z", isolation=[])), "utf-8")
    report(project, "r1")
    path.write_text("{", "utf-8")
    page = report(project, "r1", notes=2)
    assert "is damaged (not JSON)" in page.text and "those of the metrics" in page.text and "second" in page.text
    path.unlink()
    project.path("state/metrics_r1.json").unlink()
    project.path("state/ledger.jsonl").unlink()
    assert "Run r1" in report(project, "r1", notes=3).text
    shutil.rmtree(str(project.path("state/logs")))
    done = project.run("report", "r1")
    assert done.code == 2 and "no record of run r1 is in" in done.err


@pytest.mark.skipif(os.name == "nt", reason="rights")
def test_who_may_not_open_the_lock_of_a_run_is_told_what_status_tells(project):
    """A reader without rights, or on a read-only mount: a dead run is not called running for ever."""
    project.spec({"name": "slow", "processor": project.processor("slow", "open(out + '/begun', 'w').close()\ntime.sleep(60)\n")})

    def told():
        done = run_without_might(project, "report", "r1", "-o", str(project.path("r.html")))
        state = json.loads(project.ok("status", "--json").out)["runs"][0]["state"]
        assert done.returncode == 0 and ("run r1, %s\n" % state) in done.stdout, (state, done)
        return state, done.stdout
    running = project.start("--run-id", "r1")
    try:
        wait_until(lambda: project.exists("data/s1/begun"))
        project.path("locks/.r1.run").chmod(0)
        assert told() == ("running", "%s: run r1, running\n" % project.path("r.html"))
    finally:
        running.kill()
        running.communicate()
    state, text = told()
    assert state == "open" and "[NOTE] no process of this run is found: most likely its runner has died" in text, text
    project.path("locks/.r1.run").chmod(0o600)
    assert "run r1, died" in run_without_might(project, "report", "r1").stdout


def test_a_report_of_a_run_that_runs_and_of_one_whose_runner_died(project):
    project.write("data/in.txt", "x")
    at = {"lineOffset": 3, "inputIndex": 1, "byteOffset": 25, "bytesDone": 75, "bytesTotal": 100}     # in the second input
    body = "json.dump(%r, open(os.environ['PIPELINE_PROGRESS_FILE'], 'w'))\nprint('begun'); sys.stdout.flush(); open(out + '/begun', 'w'); time.sleep(60)\n" % at
    project.spec({"name": "slow", "processor": project.processor("slow", body), "inputs": ["data/in.txt"], "checkpoint": {"enabled": True}})
    running = project.start("--run-id", "r1")
    try:
        deadline = time.monotonic() + 30
        while not project.exists("data/s1/begun"):
            assert time.monotonic() < deadline and running.poll() is None
            time.sleep(0.01)
        page = report(project, notes=0)
        assert "slow: running" in page.text and "begun" in page.text and "line 3, 75 %" in page.text
    finally:
        running.kill()
        running.communicate()
    assert "runner died" in report(project, notes=1).text


def test_what_comes_from_data_is_escaped(project):
    evil = "</script><b onclick=x>&\"'\x1b]0;t\x07\u202e\udc80"
    two_stages(project)
    spec = pipeline_runner.load_pipeline(str(project.path("pipeline.json")))
    spec = spec._replace(name=evil, description=evil, stages=tuple(stage._replace(inputs=stage.inputs + (evil,)) for stage in spec.stages))
    entry = {"stage": evil, "status": "failed", "reason": evil, "attempts": 1, "durationMs": 5, "counts": {"read": 3, "written": 2, evil: 1}, "tasks": {"total": 2, evil: 1},
             "tries": [{"startedAt": evil, "durationMs": 5, "exitCode": evil}], "logs": [{"path": "state/logs/r/../../../etc/passwd"}]}
    record = {"runId": "r", "pipeline": evil, "state": evil, "startedAt": "2026-01-01T00:00:00.000Z", "host": evil, "stages": [entry],
              "isolation": {"scan": {"files": evil, "refused": evil, "allow": [evil]}, "kernel": {"method": evil}, "hook": evil}}
    project.write("state/run_r.json", json.dumps(record))
    project.write("state/ledger.jsonl", json.dumps({"runId": "r", "invocation": 1, "event": "end", "seq": 1, "hash": evil, "runHash": evil}) + "\n")
    text = report_html.page(run_report.gather(spec, "r", 1.8e9))
    page = checked(text)
    assert text.count("<b ") == 0 and "</script>" in page.text and "passwd" not in text and "root:" not in text
    assert Page(pipeline_graph.drawing(*pipeline_graph.graph_of(spec), title=evil, standalone=True)).tags.count("b") == 0


def test_a_report_is_not_written_where_the_pipeline_reads_or_writes(project):
    two_stages(project)
    project.ok("--run-id", "r1")
    for place, why in (("data/in.txt", "an input of stage first"), ("data/s1/x.html", "output folder of stage first"), ("state/x.html", "folder of the runner"), ("pipeline.json", "pipeline file"), ("data", "is a folder")):
        before = project.snapshot()
        done = project.run("report", "-o", str(project.path(place)))
        assert done.code == 2 and why in done.err and project.snapshot() == before, done
    assert project.run("report", "nothere").code == 2
    where = project.path("elsewhere")
    where.mkdir()
    assert project.run("report", "r1", cwd=str(where)).code == 0 and (where / "report_r1.html").is_file()


def test_a_run_of_another_pipeline_below_the_root_is_not_shown_as_one_of_this(project):
    two_stages(project)
    for run_id in "ab":
        project.ok("--run-id", run_id)
    other = dict(project.json("pipeline.json"), name="other")
    other["stages"] = [dict(stage, name="o" + stage["name"], outputDir=stage["outputDir"] + "o") for stage in other["stages"][:1]]
    project.write("other.json", json.dumps(other))
    argv = [sys.executable, str(ROOT / "src" / "pipeline_runner.py"), "--pipeline", str(project.path("other.json"))]
    subprocess.run(argv + ["--run-id", "o"], check=True, stdout=subprocess.DEVNULL, timeout=60)
    spec, own = (pipeline_runner.load_pipeline(str(project.path(name))) for name in ("pipeline.json", "other.json"))
    report, expected = (run_report.gather(one, "o", time.time()) for one in (spec, own))
    note, = set(report.notes) - set(expected.notes)
    assert note == "this is a run of pipeline other, and pipeline.json is that of pipeline test: no graph; give the file of other with --pipeline"
    assert not report.nodes and expected.nodes and report.history == expected.history and [one[0] for one in report.history] == ["o"]
    assert [one.name for one in report.stages] == [one.name for one in expected.stages] == ["ofirst"]
    told = subprocess.run(argv[:3] + [str(project.path("pipeline.json")), "evidence", "o", "-o", str(project.root.parent / "o.zip")],
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60).stdout.decode("utf-8", "replace")
    assert "spec:other is not included: pipeline.json is that of pipeline test; give the file of other with --pipeline" in told, told


def test_tasks_reach_the_report(project):
    two_stages(project)
    spec = pipeline_runner.load_pipeline(str(project.path("pipeline.json")))
    lines = ['{"task": "a.csv", "status": "failed", "error": "old", "run": "r/1"}', "not json", "[]", '{"task": "a.csv", "status": "ok", "run": "r/1"}',
             '{"task": "b.csv", "status": "failed", "error": "14 fields", "run": "r/1"}', '{"task": "c.csv", "status": "failed", "error": "of another run", "run": "q/1"}']
    project.write("state/logs/r/first.tasks.jsonl", "\n".join(lines) + "\n")
    project.write("state/logs/r/first/7.1.log", "field missing")
    logs = [{"path": "state/logs/r/first/7.1.log", "task": "b.csv"}, {"path": "state/logs/r/first.tasks.jsonl"}]
    tasks = {"total": 1200, "ok": 1199, "skipped": 0, "failed": 1, "vanished": 0}
    project.write("state/run_r.json", json.dumps({"runId": "r", "pipeline": "test", "state": "failed", "stages": [{"stage": "first", "status": "failed", "tasks": tasks, "logs": logs}]}))
    page = checked(report_html.page(run_report.gather(spec, None, 1.8e9)))
    assert "1\u202f200" in page.text and "1 failed" in page.text and "b.csv14 fields" in page.text and "a.csv" not in page.text and "c.csv" not in page.text
    assert "field missing" in page.text and "state/logs/r/first/7.1.log" in page.text


@pytest.mark.parametrize("allowed", [0, 12])
def test_the_logs_of_several_failed_tasks_are_shown(project, allowed):
    for number in range(12):
        project.write("in/%02d" % number, "x")
    body = "print('\\n'.join('%s, line %d' % (os.path.basename(inputs[0]), n) for n in range(20)), os.environ['PIPELINE_ATTEMPT'])\nsys.exit(inputs[0].endswith('1') or inputs[0] < 'in/10')\n"
    project.spec({"name": "many", "processor": project.processor("many", body), "forEach": "in/*", "maxFailedTasks": allowed, "retry": {"attempts": 2, "baseDelayMs": 1}})
    assert project.run("--run-id", "r").code == (0 if allowed else 1)
    page = report(project, notes=0)
    assert "many/11." not in page.text and "many/12." not in page.text      # one ended well, one is the eleventh
    for number in range(10):
        assert "state/logs/r/many/%d.2.log" % (number + 1) in page.text and "%02d, line 9\n" % number not in page.text
        assert "%02d, line 10\n" % number in page.text and "%02d, line 19 2" % number in page.text


def test_the_retries_of_tasks_are_counted(project):
    for name in "abc":
        project.write("data/%s.txt" % name, "x")
    project.spec({"name": "many", "processor": project.processor("third", "sys.exit(9 if os.environ['PIPELINE_ATTEMPT'] < '3' else 0)\n"), "forEach": "data/*.txt", "retry": {"attempts": 3, "baseDelayMs": 1}},
                 {"name": "one", "processor": project.processor("second", "sys.exit(9 if os.environ['PIPELINE_ATTEMPT'] < '2' else 0)\n"), "retry": {"attempts": 2, "baseDelayMs": 1}, "outputDir": "data/one"})
    assert project.ok("--run-id", "r").out.count("[RETRY]") == 7
    assert "Retries7" in report(project).text


def test_control_totals_tell_what_fits(project):
    two_stages(project, reconcile=True)
    spec = pipeline_runner.load_pipeline(str(project.path("pipeline.json")))
    stages = [{"stage": "first", "status": "ok", "counts": {"read": 9, "written": 7, "rejected": 2}}, {"stage": "second", "status": "failed", "counts": {"read": 6, "written": 5, "rejected": 0}}]
    project.write("state/run_r.json", json.dumps({"runId": "r", "pipeline": "test", "state": "failed", "stages": stages}))
    found = run_report.gather(spec, None, 1.8e9)
    assert [(one.stage, one.inside, one.before, one.makers, one.is_strict) for one in found.totals] == [("first", 0, None, [], False), ("second", 1, -1, ["first"], True)]
    page = checked(report_html.page(found))
    assert page.text.count("fits") == 1 and "\u22121 to 7 written by first" in page.text


def test_control_totals_are_judged_as_the_run_judges_them(project):
    project.write("bin/each.py", "import json, os\nfrom processor_kit import lines\n"
                  "lines(str.upper, os.path.basename(json.load(open(os.environ['PIPELINE_INPUTS_FILE'], encoding='utf-8'))[0]))\n")
    project.write("bin/keep.py", "from processor_kit import lines\nlines(str.lower, 'o')\n")
    for name in "abc":
        project.write("in/" + name, "x\n" * 10)
    stages = [{"name": "each", "processor": "bin/each.py", "forEach": "in/*", "outputDir": "data/each"},
              {"name": "all", "processor": "bin/keep.py", "inputs": ["data/each/*"], "outputDir": "data/all", "reconcile": True},
              {"name": "part", "processor": "bin/keep.py", "inputs": ["data/each/b"], "outputDir": "data/part", "reconcile": True},
              {"name": "free", "processor": "bin/keep.py", "inputs": ["data/each/*"], "outputDir": "data/free"}]
    project.spec(*stages)
    project.ok("--run-id", "r1")
    project.path("in/c").unlink()
    project.ok("--run-id", "r2")                                # "each" keeps what it made of c
    project.write("in/a", "y\n" * 4)
    project.ok("--run-id", "r3")
    spec = pipeline_runner.load_pipeline(str(project.path("pipeline.json")))

    def totals(run):
        return {one.stage: (one.read, one.expected) for one in run_report.gather(spec, run, 1.8e9).totals}
    assert totals("r3") == {"each": (14, None), "all": (24, 24), "part": (10, None), "free": (24, 24)}
    assert totals("r2") == {"each": (20, None), "all": (30, None), "part": (10, None), "free": (30, None)}      # nobody knows any more
    project.spec(stages[0], dict(stages[1], processor=project.processor("less", "json.dump({'read': 1, 'written': 1, 'rejected': 0}, open(os.environ['PIPELINE_COUNTS_FILE'], 'w'))\n")))
    assert project.run("--run-id", "r4").code == 1
    page = report(project)
    assert "\u221223 to 24 written by each" in page.text and page.text.count("A dash: not compared") == 1


# --- the graph

def big_graph(count):
    nodes = [Node("stage:%d" % number, "stage", "s%d" % number, "t", "") for number in range(count)]
    return nodes, [Edge(nodes[number].name, nodes[later].name, "files") for number in range(count) for later in (number + 1, number + 7) if later < count]


@pytest.mark.parametrize("count", [1, 2, 200])
def test_a_drawing_holds_every_node_and_no_two_overlap(count):
    nodes, edges = big_graph(count)
    text = svg_shapes.graph_svg(nodes, edges, "t", standalone=True)
    boxes = [tuple(map(float, one)) for one in re.findall(r'<rect x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="([\d.]+)"', text)]
    width, height = map(float, re.search(r'viewBox="0 0 (\d+) (\d+)"', text).groups())
    assert len(boxes) == count and width <= 1040
    assert all(x >= 0 and y >= 0 and x + w <= width and y + h <= height for x, y, w, h in boxes)
    assert not any(a[0] < b[0] + b[2] and b[0] < a[0] + a[2] and a[1] < b[1] + b[3] and b[1] < a[1] + a[3] for place, a in enumerate(boxes) for b in boxes[:place])
    Page(text)


@pytest.mark.parametrize("label", ["data/\u5165\u529b/*.csv", "data/" + "\u5165\u529b" * 12 + "/*.csv", "\u5165\u529b" * 10, "\uff21" * 40, "data/" + "long/" * 12 + "*.csv", "e\u0301" * 20])
def test_a_label_of_wide_characters_stays_in_its_box(label):
    """Each of them is as wide as two others; a combining mark takes no room."""
    text = pipeline_graph.drawing([Node("n", "files", label, label, "")], [], "t")
    width, shown = re.search(r'<rect [^>]*width="([\d.]+)".*?<text[^>]*>([^<]*)</text>', text).groups()
    assert text_table.display_width(shown) * svg_shapes.CHARACTER_PX <= float(width) - 8, (width, shown)
    assert shown == label or text_table.display_width(label) > 20 and "\u2026" in shown and (shown[0], shown[-1]) == (label[0], label[-1]) and len(shown) > 10
    timeline = svg_shapes.timeline_svg([(label, label, [])], 1.0, "t", text_table.display_width)
    shown = re.search(r'class="label".*?</title>([^<]*)</text>', timeline).group(1)
    assert text_table.display_width(shown) <= 24 and shown[0] == label[0]


def test_two_hundred_stages_side_by_side_are_drawn_in_columns():
    text = svg_shapes.graph_svg([Node(str(number), "stage", "s%d" % number, "t", "") for number in range(200)], [], "t")
    assert float(re.search(r'viewBox="0 0 (\d+) (\d+)"', text).group(2)) < 1000 and text.count("<rect") == 200


def test_layers_and_what_is_implied():
    nodes = [Node(name, "stage", name, "", "") for name in "abcd"] + [Node("f", "files", "f", "", "")]
    edges = [Edge("a", "b", "files"), Edge("b", "c", "files"), Edge("a", "c", "needs"), Edge("f", "c", "files"), Edge("d", "d", "files")]
    layers = svg_shapes.layers_of(nodes, edges)
    assert layers == [["a", "d"], ["b", "f"], ["c"]]
    assert Edge("a", "c", "needs") not in svg_shapes.without_implied(edges[:4], layers) and len(svg_shapes.without_implied(edges[:4], layers)) == 3
    assert svg_shapes.layers_of(nodes[:2], [Edge("a", "b", ""), Edge("b", "a", "")]) == [["a", "b"]]


def test_the_edges_are_those_of_needs_and_files(project):
    project.write("bin/p.py", "")
    project.spec({"name": "a", "processor": "bin/p.py", "inputs": ["data/in/*.txt"]}, {"name": "b", "processor": "bin/p.py", "inputs": ["data/s1/x.txt", "data/s1/*.csv"]},
                 {"name": "c", "processor": "bin/p.py", "needs": ["a"], "watch": ["data/s2/**"]})
    graph = json.loads(project.ok("graph", "--format", "json").out)
    found = {(one["from"], one["to"], one["kind"]) for one in graph["edges"]}
    assert found == {("files:data/in/*.txt", "stage:a", "files"), ("stage:a", "files:data/s1/x.txt", "files"), ("stage:a", "files:data/s1/*.csv", "files"),
                     ("files:data/s1/x.txt", "stage:b", "files"), ("files:data/s1/*.csv", "stage:b", "files"), ("stage:b", "files:data/s2/**", "files"),
                     ("files:data/s2/**", "stage:c", "files"), ("stage:a", "stage:c", "needs"), ("stage:c", "files:data/s3/*", "files")}
    assert project.ok("graph").out.startswith("flowchart LR\n")
    project.ok("graph", "--format", "svg", "-o", str(project.path("g.svg")))
    assert "xmlns=\"http://www.w3.org/2000/svg\"" in project.read("g.svg") and Page(project.read("g.svg")).tags[0] == "svg"


def random_stage(chance, number):
    fields = dict.fromkeys(StageSpec._fields)
    paths = ["d/%d/a.txt" % chance.randint(0, 5), "d/*/a.txt", "d/0/**", "d/0/x/*.txt", "in.txt", "d/0/tool"]
    inputs, watch, for_each = (tuple(chance.sample(paths, chance.choice([0, 0, 1, 2]))) for _ in range(3))
    fields.update(name="s%d" % number, processor=chance.choice(["bin/p.py", "bin/p.py", "d/0/tool"]), output_dir=chance.choice(["d/%d" % number, "d/0", "d/0/x"]),
                  outputs=chance.choice([None, ("a.txt",), ("*.txt", "tool")]), inputs=inputs, watch=watch, for_each=for_each,
                  needs=tuple("s%d" % other for other in range(6) if other != number and chance.random() < 0.1))
    return StageSpec(**fields)


def test_a_file_of_the_graph_comes_from_those_that_its_reader_would_wait_for_if_it_read_no_other():
    chance = random.Random(5)
    for _ in range(500):
        stages = [random_stage(chance, number) for number in range(6)]
        expected = {}
        for place, stage in enumerate(stages):
            fed = set()
            for pattern in stage.inputs + stage.for_each + stage.watch:
                alone = stage._replace(inputs=(pattern,), watch=(), for_each=(), needs=())
                makers = stage_order.edges([*stages[:place], alone, *stages[place + 1:]])[stage.name]
                fed.update(makers)
                expected.update({Edge("stage:" + maker, "files:" + pattern, "files"): None for maker in makers})
                expected[Edge("files:" + pattern, "stage:" + stage.name, "files")] = None
            expected.update({Edge("stage:" + name, "stage:" + stage.name, "needs"): None for name in stage.needs if name not in fed})
        _, edges = pipeline_graph.graph_of(SimpleNamespace(stages=stages))
        ends = edges[len(expected):]            # what nobody reads
        assert edges[:len(expected)] == list(expected) and not {edge.start for edge in ends} & {edge.start for edge in expected}, stages


def test_a_graph_asks_once_for_each_file_who_makes_it(project, monkeypatch):
    """With stages that read of many others it took time by the third power of their number."""
    count = 12
    project.write("bin/p.py", "")
    project.spec(*[{"processor": "bin/p.py", "inputs": ["data/s%d/x.txt" % other for other in range(1, number)]} for number in range(1, count + 1)])
    spec = pipeline_runner.load_pipeline(str(project.path("pipeline.json")))
    asked, real = [], stage_order.candidates
    monkeypatch.setattr(stage_order, "candidates", lambda folders, pattern: asked.append(pattern) or real(folders, pattern))
    _, edges = pipeline_graph.graph_of(spec)
    pairs = count * (count - 1) // 2
    assert len(asked) == pairs and len(edges) == (count - 1) + pairs + 1


def test_the_forms_of_a_graph_escape_what_they_must(project):
    two_stages(project)
    spec = pipeline_runner.load_pipeline(str(project.path("pipeline.json")))
    evil = 'a"b\\N\\"];x<b>&#35;\n`|end'
    spec = spec._replace(name=evil, stages=tuple(stage._replace(inputs=(evil,)) for stage in spec.stages))
    mermaid = pipeline_graph.graph_text(spec, "mermaid")
    assert all(re.fullmatch(r'flowchart LR|  n\d+(\["[^"<>`|\\;&]*(#\d+;[^"<>`|\\;&]*)*"\]|\(\["[^"<>`|\\;&]*(#\d+;[^"<>`|\\;&]*)*"\]\))|  n\d+ -\.?-*> n\d+', line) for line in mermaid.splitlines()), mermaid
    assert json.loads(pipeline_graph.graph_text(spec, "json"))["pipeline"] == evil
    dot = pipeline_graph.graph_text(spec, "dot")
    for line in dot.splitlines():
        rest = re.sub(r'"(?:[^"\\]|\\.)*"', "Q", line)
        assert re.fullmatch(r"digraph Q \{|\}|  rankdir=LR;|  node \[fontname=Q, fontsize=10\];|  Q \[label=Q, shape=\w+, \w+=\w+\];|  Q -> Q( \[style=dashed\])?;", rest), line
    if shutil.which("dot"):
        drawn = subprocess.run(["dot", "-Tplain"], input=dot.encode("utf-8"), stdout=subprocess.PIPE, check=True, timeout=60).stdout.decode("utf-8")
        assert sum(1 for line in drawn.splitlines() if line.startswith("node ")) == len(pipeline_graph.graph_of(spec)[0])


def test_durations_and_ticks_for_people():
    assert [svg_shapes.seconds_text(one) for one in (0, 0.25, 12.34, 60, 245, 7800)] == ["0 s", "0.25 s", "12.3 s", "1 min", "4 min 05 s", "2 h 10 min"]
    for length in (0.003, 0.4, 7, 100, 5000, 90000, 4e6):
        assert 2 <= len(svg_shapes.ticks(length)) <= 7 and svg_shapes.ticks(length)[-1] <= length


def test_a_run_whose_record_cannot_be_read_is_not_told_to_be_none(project):
    project.spec({"processor": "bin/stage_copy.py", "inputs": ["data/input/*.txt"], "allowNoInputs": True})
    done = project.run("report")
    assert done.code == 2 and "; run it first\n" in done.err, done
    project.ok("--run-id", "r")
    project.write("state/run_r.json", "{")
    done = project.run("report")
    assert done.code == 2 and "; 1 run record cannot be read (run_r.json is damaged" in done.err and "run it first" not in done.err, done


# --- a clock that is set while a run is under way

@pytest.mark.parametrize("before_s", [-20 * 365 * 86400, 36000], ids=["forward", "back"])
def test_the_timeline_is_in_order_though_the_clock_was_set_meanwhile(project, set_clock, before_s):
    set_clock.set(before_s)
    project.spec({"name": "one", "processor": project.processor("tick", "open(%r, 'w').write('0')\nopen(out + '/o', 'w').close()\n" % str(set_clock.file)), "outputDir": "data/one"},
                 {"name": "two", "processor": "bin/tick.py", "outputDir": "data/two"})
    project.ok("--run-id", "r", env=set_clock.env)
    found = run_report.gather(pipeline_runner.load_pipeline(str(project.path("pipeline.json"))), "r", time.time())
    (first,), (second,) = [one.spans for one in found.stages]
    assert 0 <= first[0] <= first[1] <= second[0] <= second[1] <= found.duration_s + 1, (found.duration_s, first, second)
    report(project)
    assert re.search(r"Timeline of the attempts of 2 stages over [0-9.]+ s\"", project.read("out.html"))


@pytest.mark.parametrize("shifts, placed", [((1, 4), (1, 4)), ((-5, 4), (0, 4)), ((1, -5), (1, 3)), ((1, 99), (1, 3)), ((10.5, 4), (10.5, 4))])
def test_what_lies_outside_of_a_run_stands_after_what_was_before_it(shifts, placed):
    times, clock, found = run_report._Times(run_report.epoch("2026-01-01T00:00:00.000Z"), 10.0), 0.0, []
    for shift in shifts:
        entry = {"stage": "s", "status": "ok", "durationMs": 2000, "startedAt": state_store.utc_text(times.started + shift)}
        ((start, clock, _, _),) = run_report._spans(entry, times, clock, None)
        found.append(start)
    assert found == list(placed)


# --- a run under way, and one that died ------------------------------------------------------------------------------

def test_a_run_under_way_is_told_of_with_what_is_done_and_what_is_tried_again(project):
    """The run's own record is written once a second at most, and the stage's before its first attempt: their logs and records tell."""
    body = "print('attempt', os.environ['PIPELINE_ATTEMPT'], flush=True)\nif os.environ['PIPELINE_ATTEMPT'] == '1':\n    sys.exit(75)\nopen(os.environ['PIPELINE_ROOT'] + '/here', 'w').close()\ntime.sleep(600)\n"
    project.spec({"name": "one", "processor": project.processor("quick", "open(out + '/o', 'w').write('12')\n"), "outputDir": "data/one"},
                 {"name": "two", "processor": "bin/quick.py", "outputDir": "data/two"},
                 {"name": "three", "processor": project.processor("again", body), "outputDir": "data/three", "retry": {"attempts": 2, "baseDelayMs": 1}})
    run = project.start("--run-id", "r")
    try:
        wait_until(lambda: project.exists("here"))
        page = report(project)
        assert "Stages done2 of 3" in page.text and "attempt 2" in page.text and "attempt 1" not in page.text, page.text[:900]
        found = json.loads(project.ok("status", "--json").out)
        assert (found["runs"][0]["ok"], found["runs"][0]["state"]) == (2, "running") and found["stages"][2]["attempts"] == 2, found
    finally:
        run.kill()
        run.communicate()
    spec = pipeline_runner.load_pipeline(str(project.path("pipeline.json")))
    first, later = [run_report.gather(spec, "r", time.time() + more, lambda run_id: False) for more in (0, 1e6)]
    assert first.state == later.state == "died" and first.duration_s == later.duration_s < 100 and [one.spans for one in first.stages] == [one.spans for one in later.stages]
    assert any("has died" in note for note in first.notes)


def test_a_run_that_died_is_told_of_alike_when_the_next_one_has_closed_it(project):
    """The stage at work is not running for ever, nor for ever longer. The run that closes it fails that stage before it begins."""
    project.spec({"name": "slow", "processor": project.processor("slow", "print('begun', flush=True)\ntime.sleep(60)\n"), "inputs": ["in.txt"]})
    project.write("in.txt", "x")
    project.kill_once_logged("state/logs/k1/slow.1.log", b"begun", "--run-id", "k1")
    spec = pipeline_runner.load_pipeline(str(project.path("pipeline.json")))

    def told(state):
        first, later = [run_report.gather(spec, "k1", time.time() + more, lambda run_id: False) for more in (0, 1e6)]
        assert first.state == later.state == state and first.duration_s == later.duration_s < 100, (first, later)
        assert first.stages == later.stages and any("sign of life" in note for note in first.notes)
        stage, = first.stages
        assert stage.status == "died" and [(span[2], span[3]) for span in stage.spans] == [("failed", "slow: died")] and "begun" in stage.logs[0][1]
    told("died")
    project.path("in.txt").unlink()
    assert project.run("--run-id", "k2").code == 1
    assert project.json("state/run_k1.json")["state"] == "interrupted"
    moment = time.time() + 1e5              # what the closing run wrote is no sign of life
    os.utime(str(project.path("state/run_k1.json")), (moment, moment))
    told("interrupted")
    page = report(project, "k1")
    assert "runner died" in page.text and "1 died" in page.text and "slow: running" not in page.text, page.text
