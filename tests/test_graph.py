"""Stages side by side: what comes before what, what may run at once, and what a failure stops."""
from __future__ import annotations

import collections
import json
import os
import random
import subprocess
import sys
import time
import types

import pytest
from conftest import RUNNER, wait_until

import run_signals
import scheduler
import stage_cycles
import stage_locks
import stage_order
import stage_waits
from model import SpecError, StageSpec

posix_only = pytest.mark.skipif(os.name == "nt", reason="shell scripts")

# Tools of the processors below, which run on every system.
TOOLS = """import os, sys, time
root, out, name = (os.environ["PIPELINE_" + one] for one in ("ROOT", "OUTPUT_DIR", "STAGE_NAME"))
def put(path, text="", mode="w"):
    with open(path, mode, encoding="utf-8", newline="") as file:
        file.write(text)
def trace(what):
    put(root + "/trace", what + " " + name + "\\n", "a")
def wait_for(path):
    for _ in range(1500):
        if os.path.exists(path):
            return
        time.sleep(0.02)
    sys.exit(9)
"""
JOIN = TOOLS + """
trace("begin")
if sys.argv[1:]:
    put(out + "/" + name + ".txt", "".join(open(path, encoding="utf-8", newline="").read() for path in sys.argv[1:]))
if os.path.exists(root + "/fail." + name):
    sys.exit(3)
trace("end")
"""
# Ends only when the other one has begun, too.
MEETS = TOOLS + """
put(root + "/here." + name)
wait_for(root + "/here." + sys.argv[1])
"""


# --- edges and order (pure) ------------------------------------------------------------------------------------------

def stage(name, **changes):
    fields = dict.fromkeys(StageSpec._fields)
    fields.update(name=name, processor="bin/p.py", output_dir="data/" + name, inputs=(), watch=(), needs=(), outputs=None, for_each=(), resources={})
    fields.update(changes)
    return StageSpec(**fields)


def test_undeclared_outputs_make_edges_from_earlier_stages_only():
    one, two = stage("one", inputs=("data/two/x",)), stage("two", inputs=("data/one/x",))
    assert stage_order.edges([one, two]) == {"one": [], "two": ["one"]}
    assert stage_order.edges([stage("one", inputs=("data/one/x",))]) == {"one": []}


def test_a_processor_that_a_stage_makes_is_waited_for():
    maker, user = stage("maker"), stage("user", processor="data/maker/tool.py")
    assert stage_order.edges([maker, user]) == {"maker": [], "user": ["maker"]} and stage_order.edges([user, maker])["user"] == []
    assert stage_order.edges([user, maker._replace(outputs=("tool.py",))])["user"] == ["maker"]


def test_declared_outputs_make_edges_whatever_the_order():
    user, maker = stage("user", inputs=("data/maker/*.txt",)), stage("maker", outputs=("a.txt",))
    assert stage_order.edges([user, maker])["user"] == ["maker"]
    assert stage_order.edges([user, maker._replace(outputs=("a.csv",))])["user"] == []


@pytest.mark.parametrize("one, other, expected", [
    ("a/b.txt", "a/b.txt", True), ("a/b.txt", "a/c.txt", False), ("a/*.txt", "a/b.txt", True), ("a/b.csv", "a/*.txt", False),
    ("a/*.txt", "a/b*", True), ("a/*.txt", "b/*.txt", False), ("a/*/x", "a/b/*", True), ("a/*", "a/b/c", False), ("a/**", "a/b/*.txt", True),
    ("a/*.txt", "a/b/*.txt", False), ("*/x.txt", "a/x.txt", True), ("a/[bc]/*.txt", "a/d/*.txt", False),
    ("a/x.*", "a/*.txt", True), ("a/x*", "a/y*", False), ("a/*.csv", "a/*.txt", False), ("a/x*", "a/xy*", True), ("a/*y", "a/*xy", True), ("a/x?b", "a/x?c", False),
    ("a/[xy]b", "a/x?", True), ("a/x[b]", "a/x?c", True), ("a/x[", "a/x*b", True), ("a/x*/1", "a/y*/1", False)])
def test_paths_and_globs_that_may_meet(one, other, expected):
    assert stage_order.may_meet(one, other) is stage_order.may_meet(other, one) is expected


def test_ten_thousand_stages_are_no_hundred_million_pairs():
    stages = [stage("s%05d" % number, inputs=("data/s%05d/x" % (number - 1),)) for number in range(10000)]
    found = stage_order.edges(stages)
    assert found["s09999"] == ["s09998"] and stage_order.find_cycle(found) == []


@pytest.mark.parametrize("needs, expected", [
    ({"a": [], "b": ["a"]}, []), ({"a": ["b"], "b": ["a"]}, ["a", "b", "a"]), ({"x": ["a"], "a": ["b"], "b": ["c"], "c": ["a"]}, ["a", "b", "c", "a"])])
def test_a_cycle_is_found_and_named(needs, expected):
    found = stage_order.find_cycle(needs)
    assert found == expected or found and set(found) == set(expected) and found[0] == found[-1]


class Counted(list):
    """A list that tells how many of its items have been looked at, of all such lists together."""

    looked_at = 0

    def __iter__(self):
        for one in list.__iter__(self):
            Counted.looked_at += 1
            yield one


def random_needs(chance, is_acyclic):
    """Return {stage: those that it needs}, a few of each, as edges() does, in a random order of the list."""
    names = "abcdefg"[:chance.randint(1, 7)]
    share = chance.choice([0.1, 0.3, 0.6])
    needs = {name: [other for other in names if (other < name if is_acyclic else other != name or share > 0.5) and chance.random() < share] for name in names}
    return {name: chance.sample(needs[name], len(needs[name])) for name in chance.sample(names, len(names))}


def plain_reach(needs):
    """Return {stage: all that it needs, directly or not}."""
    reach = {name: set(before) for name, before in needs.items()}
    for _ in reach:
        reach = {name: found.union(*(reach[one] for one in found)) for name, found in reach.items()}
    return reach


def test_cycles_and_ways_are_found_where_there_are_some():
    chance = random.Random(1)
    for _ in range(3000):
        needs = random_needs(chance, False)
        reach = plain_reach(needs)
        circling = [name for name in needs if name in reach[name]]
        found = stage_order.find_cycle(needs)
        assert found[:1] == circling[:1] and all(one in needs[name] for name, one in zip(found, found[1:])) and (not found or found[-1] == found[0]), needs
        component = stage_cycles.components(needs)
        assert set(component) == set(needs) and all((component[one] == component[other]) == (one == other or one in reach[other] and other in reach[one])
                                                    for one in needs for other in needs), needs
        start, goal = chance.choice(list(needs)), chance.choice(list(needs))
        way, steps, level = stage_cycles.find_path(needs, start, goal), 0, {start}
        while level and goal not in level and steps <= len(needs):
            level, steps = {one for name in level for one in needs[name]}, steps + 1
        if goal in level:
            assert way[0] == start and way[-1] == goal and len(way) == steps + 1 and all(one in needs[name] for name, one in zip(way, way[1:]))
        else:
            assert way == []


def test_the_planned_order_is_that_of_the_list_with_what_is_needed_first():
    chance = random.Random(2)

    def plainly(name, chosen, needs, done):
        for one in needs[name]:
            if one in chosen and one not in done:
                plainly(one, chosen, needs, done)
        if name not in done:
            done.append(name)
        return done
    for _ in range(2000):
        needs = random_needs(chance, True)
        chosen = [name for name in needs if chance.random() < 0.8]
        expected = []
        for name in chosen:
            plainly(name, chosen, needs, expected)
        assert [one.name for one in stage_order.in_order([stage(name) for name in chosen], needs)] == expected, needs


def test_what_is_blocked_is_told_with_the_one_before_it_that_did_not_end_well():
    chance = random.Random(3)
    for _ in range(2000):
        needs = random_needs(chance, True)
        bad = [name for name in needs if chance.random() < 0.3]
        known = dict(needs) if chance.random() < 0.5 else {name: before for name, before in needs.items() if before}
        started, blocked = run_order([stage(name) for name in needs], bad=bad, known=known)
        reach = plain_reach(needs)
        assert set(blocked) == {name for name in needs if reach[name] & set(bad)} and sorted(started) == sorted(set(needs) - set(blocked))
        assert all(one in needs[name] and (one in blocked or one in bad) for name, one in blocked.items()), (needs, bad, blocked)


def test_each_that_is_needed_is_looked_at_a_few_times_however_many_there_are():
    count = 60
    needs = {"s%d" % number: Counted("s%d" % one for one in range(number + 1, count)) for number in range(count)}
    in_all = sum(map(len, needs.values()))
    stages = [stage(name) for name in needs]
    circle = dict({name: Counted([*before, "x"]) for name, before in needs.items()}, x=Counted("y"), y=Counted("x"))
    for ask in (lambda: stage_order.in_order(stages, needs), lambda: stage_order.find_cycle(needs), lambda: stage_order.find_cycle(circle),
                lambda: run_order(stages, bad=["s59"], known=needs)):
        Counted.looked_at = 0
        ask()
        assert 0 < Counted.looked_at <= 6 * in_all
    chain = {"s%d" % number: Counted(["s%d" % (number + 1)] if number + 1 < count else []) for number in range(count)}
    Counted.looked_at = 0
    assert len(run_order([stage(name) for name in chain], bad=["s59"], known=chain)[1]) == count - 1 and Counted.looked_at <= 6 * count


def run_order(stages, is_graph=True, bad=(), share=lambda one, other: True, at_once=1, known=None):
    """Return the order in which stages are started when at most so many run at once and the first started ends first."""
    order = stage_order.Order(stages, is_graph, share, known)
    started, running = [], []
    while True:
        found = order.next() if len(running) < at_once else None
        if found is not None:
            started.append(found.name)
            running.append(found.name)
        elif running:
            name = running.pop(0)
            order.ended(name, name not in bad)
        else:
            return started, order.blocked


def test_the_order_is_that_of_the_list_as_far_as_the_edges_allow():
    stages = [stage("d", needs=("b", "c")), stage("c", needs=("a",)), stage("b", needs=("a",)), stage("a"), stage("z")]
    assert run_order(stages)[0] == ["a", "c", "b", "d", "z"]
    assert run_order(stages, is_graph=False)[0] == ["d", "c", "b", "a", "z"]


def test_what_depends_on_a_failure_is_blocked_and_nothing_else():
    stages = [stage("a"), stage("b", needs=("a",)), stage("c", needs=("b",)), stage("z")]
    for is_graph in (True, False):
        assert run_order(stages, is_graph, bad=("a",)) == (["a", "z"], {"b": "a", "c": "b"})


def test_edges_that_are_known_are_not_looked_for_again():
    """Those of stages that need others are enough."""
    stages = [stage("a"), stage("b"), stage("c"), stage("z")]
    known = {"a": ["b"], "b": ["c"]}
    assert run_order(stages, known=known) == (["c", "b", "a", "z"], {})
    assert run_order(stages, bad=("c",), known=known) == (["c", "z"], {"b": "c", "a": "b"})


def test_stages_that_may_not_share_wait_for_each_other_and_let_others_by():
    stages = [stage("a"), stage("b"), stage("c")]
    started, _ = run_order(stages, share=lambda one, other: {one.name, other.name} != {"a", "b"}, at_once=2)
    assert started == ["a", "c", "b"]


def test_stages_that_need_not_be_started_let_others_follow():
    stages = [stage("d", needs=("b", "c")), stage("c", needs=("a",)), stage("b", needs=("a",)), stage("a"), stage("z")]
    order = stage_order.Order(stages, True, lambda one, other: True)
    assert order.take_fresh(10) == [3, 4] and order.take_fresh(10) == []
    order.skipped([3])
    assert order.take_fresh(1) == [1] and order.take_fresh(10) == [2]
    order.skipped([1])
    assert order.next().name == "b"         # it was named, and not skipped
    assert order.next().name == "z" and order.next() is None
    order.ended("b", True)
    assert order.take_fresh(10) == [0]
    order.skipped([0])
    assert order.next() is None and not order.waiting


@pytest.mark.parametrize("is_graph", [False, True])
def test_one_of_very_many_need_not_be_started(is_graph):
    order = stage_order.Order([stage("s%03d" % number) for number in range(100)], is_graph, lambda one, other: True)
    order.skipped(order.take_fresh(1) if is_graph else [order.next_place()])
    assert order.next_place() == (None if is_graph else 1)
    assert order.next().name == "s001"
    order.ended("s001", True)
    order.skipped([2])
    assert order.next().name == "s003"


def test_stages_that_may_not_start_are_not_named_before_they_may():
    stages = [stage("a"), stage("b"), stage("c"), stage("d", needs=("c",))]
    order = stage_order.Order(stages, True, lambda one, other: {one.name, other.name} != {"a", "b"})
    assert order.next().name == "a"
    assert order.take_fresh(10) == [2]
    order.ended("a", True)
    assert order.take_fresh(10) == [1] and order.next().name == "b" and order.next().name == "c"
    order.ended("c", False)
    assert order.take_fresh(10) == [] and order.blocked == {"d": "c"}


def test_of_a_list_the_next_ones_need_not_be_started():
    order = stage_order.Order([stage(name) for name in "abcdefg"], False, lambda one, other: True)
    assert order.next().name == "a" and order.next_place() is None
    order.ended("a", True)
    assert order.next_place() == 1
    order.skipped(range(1, 4))
    assert order.next_place() == 4 and order.next().name == "e"


# --- edges that only the disk tells of -------------------------------------------------------------------------------

def waits(root, *stages, order="graph"):
    return stage_waits.Waits(types.SimpleNamespace(root=str(root), order=order, stages=stages))


@posix_only
@pytest.mark.parametrize("link, target, user, made", [
    ("latest", "data/maker", {"inputs": ("latest/a.txt",)}, True), ("latest", "data/maker", {"for_each": ("latest/*.txt",)}, True),
    ("latest", "data/maker", {"watch": ("latest/b.txt",)}, False), ("latest", "data/other", {"inputs": ("latest/a.txt",)}, False),
    ("latest", "ROOT/data", {"inputs": ("latest/maker/a.txt",)}, True), ("in/x.txt", "../data/maker/a.txt", {"inputs": ("in/x.txt",)}, True),
    ("in/x.txt", "/nowhere/a.txt", {"inputs": ("in/x.txt",)}, False), ("bin/p.sh", "../data/maker/a.txt", {"processor": "bin/p.sh"}, True)])
def test_an_input_or_processor_is_waited_for_where_links_lead(tmp_path, link, target, user, made):
    (tmp_path / link).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / link).symlink_to(target.replace("ROOT", str(tmp_path)))
    stages = stage("user", **user), stage("maker", outputs=("a.txt",))
    assert waits(tmp_path, *stages).edges(stages) == {"user": ["maker"] * made, "maker": []}


@pytest.mark.parametrize("script, text, maker, made", [
    ("tools/use.py", "from lib import a", {"output_dir": "tools/lib", "outputs": ("a.py",)}, True),
    ("tools/use.py", "import lib.a", {"output_dir": "tools/lib", "outputs": ("b.py", "a.csv")}, False),
    ("tools/use.py", "import lib.a", {"output_dir": "tools/lib"}, False),              # undeclared, and listed later
    ("tools/use.py", "from lib import *", {"output_dir": "tools/lib", "outputs": ("a.py",)}, True),
    ("tools/use.py", "from lib import *", {"output_dir": "tools/lib", "outputs": ("a.csv",)}, False),
    ("tools/use.py", "import fast", {"output_dir": "tools", "outputs": ("*.so",)}, True),
    ("tools/use.py", "import there", {"output_dir": "tools/lib", "outputs": ("c.py",)}, True),
    ("use.py", "import lib", {"output_dir": "lib", "outputs": ("__init__.py",)}, True),
    ("use.py", "import lib.sub.a", {"output_dir": "lib/sub", "outputs": ("__init__.py",)}, True),
    ("tools/use.py", "import json, os.path", {"output_dir": "tools/out", "outputs": ("json.py",)}, False)])
def test_a_module_that_another_stage_makes_is_waited_for_before_it_is_there(tmp_path, script, text, maker, made):
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "there.py").write_text("from lib import c\n")
    (tmp_path / script).write_text(text + "\n")
    stages = stage("user", processor=script), stage("maker", **maker)
    assert waits(tmp_path, *stages).edges(stages)["user"] == ["maker"] * made
    earlier = stages[::-1]
    assert waits(tmp_path, *earlier).edges(earlier)["user"] == ["maker"] * (made or "outputs" not in maker)


@posix_only
def test_modules_beside_a_script_may_be_made_through_a_link(tmp_path):
    for folder in ("bin", "gen"):
        (tmp_path / folder).mkdir()
    (tmp_path / "bin/lib").symlink_to("../gen")
    (tmp_path / "bin/use.py").write_text("from lib import a\nimport one\n")
    stages = stage("user", processor="bin/use.py"), stage("maker", output_dir="gen", outputs=("a.py",)), stage("two", output_dir="gen/two", outputs=("x.py",))
    assert waits(tmp_path, *stages).edges(stages)["user"] == ["maker"]
    (tmp_path / "bin/one.py").symlink_to("../gen/two/x.py")     # which is not there yet
    assert waits(tmp_path, *stages).edges(stages)["user"] == ["maker", "two"]


@posix_only
def test_what_only_the_disk_tells_makes_no_cycle_in_a_graph_and_validate_tells_of_it(tmp_path):
    (tmp_path / "before").symlink_to("data/b")
    stages = stage("a", inputs=("before/x.txt", "in.txt")), stage("b", inputs=("data/a/y.txt",), outputs=("x.txt",)), stage("c", inputs=("before/x.txt",))
    found = waits(tmp_path, *stages)
    assert found.edges(stages) == {"a": [], "b": ["a"], "c": ["b"]}
    assert [(name, text[:42]) for name, text in found.doubtful_reads(stages)] == [("a", "reads, through a link or as a module, what")]
    listed = waits(tmp_path, *stages, order="listed")
    assert listed.edges(stages)["a"] == ["b"]
    assert [name for name, text in listed.doubtful_reads(stages) if text.startswith("data/b/x.txt is what b makes, and that is listed later")] == ["a"]


def test_ten_thousand_processors_in_one_folder_are_not_scanned_where_none_of_it_is_made(tmp_path, monkeypatch):
    (tmp_path / "tools").mkdir()
    monkeypatch.setattr(stage_waits, "local_modules", None)
    stages = [stage("s%05d" % number, processor="tools/p%d.py" % number) for number in range(10000)]
    found = waits(tmp_path, *stages)
    assert found.edges(stages)["s09999"] == [] and found.links() == ({}, {})


GENERATES = """#!/bin/sh
[ ! -e "$PIPELINE_ROOT/fail" ] || exit 3
printf 'V = "%s"\\n' "$(cat "$1")" > "$PIPELINE_OUTPUT_DIR/a.py"
"""


@posix_only
@pytest.mark.parametrize("order", ["graph", "listed"])
def test_a_stage_follows_the_module_that_another_one_makes(project, order):
    project.write("in/a.txt", "old")
    project.write("bin/gen.sh", GENERATES, executable=True)
    project.write("tools/use.py", "import os\nfrom lib import a\nopen(os.environ['PIPELINE_OUTPUT_DIR'] + '/r.txt', 'w').write(a.V)\n")
    stages = [{"name": "gen", "processor": "bin/gen.sh", "inputs": ["in/a.txt"], "outputDir": "tools/lib", "outputs": ["a.py"]},
              {"name": "use", "processor": "tools/use.py", "outputDir": "out"}]
    project.spec(*(stages if order == "listed" else stages[::-1]), order=order)
    project.ok()
    assert project.read("out/r.txt") == "old" and "[SKIP] use" in project.ok().out
    project.write("in/a.txt", "new one")
    assert "PENDING use (waits for gen)" in project.ok("plan").out and json.loads(project.ok("explain", "use", "--json").out)["waitsFor"] == ["waits for gen"]
    assert '"stage:gen" -> "stage:use"' in project.ok("graph", "--format", "dot").out
    project.write("fail", "")
    done = project.run("--keep-going")
    assert done.code == 1 and "[DONE] use" not in done.out and "[SKIP] use" not in done.out, done
    assert "[NOTE] use: builds on stage gen, which is left out and failed" in project.ok("plan", "--only", "use").out
    project.path("fail").unlink()
    project.ok()
    assert project.read("out/r.txt") == "new one"


# --- the scheduler, on a pool that starts nothing --------------------------------------------------------------------

class Started:
    def __init__(self, launch):
        self.launch, self.result = launch, "result of %s" % launch


class FakePool:
    """Attempts end in the order in which they were started, one at each wait."""

    def __init__(self):
        self.signals = types.SimpleNamespace(number=0)
        self.is_draining = False
        self.running, self.log = [], []

    def start(self, launch, network=None):
        self.running.append(Started(launch))
        self.log.append("start " + launch)
        return self.running[-1]

    def wait(self, seconds=None):
        self.log.append("end " + self.running[0].launch)
        return [self.running.pop(0)]


def attempt(name, log, cores=1, rank=0, memory=0, group=None, slots=None):
    def make(slot):
        if slots is not None:
            slots[name] = slot
        return name, None
    result = yield scheduler.Attempting(make, (rank,), cores, memory, group)
    log.append(result)
    return name


def run_flows(flows, jobs=2, memory=None):
    pool, log = FakePool(), []
    made = scheduler.Scheduler(pool, jobs, memory)
    for name, options in flows:
        made.start(name, attempt(name, log, **options))
    ends = list(iter(made.ended, None))
    return pool.log, ends


@pytest.mark.parametrize("flows, jobs, memory, expected", [
    ([("a", {}), ("b", {}), ("c", {})], 2, None, ["start a", "start b", "end a", "start c", "end b", "end c"]),
    ([("a", {}), ("b", {"cores": 2}), ("c", {})], 2, None, ["start a", "end a", "start b", "end b", "start c", "end c"]),
    ([("a", {"rank": 2}), ("b", {"rank": 1})], 1, None, ["start b", "end b", "start a", "end a"]),
    ([("a", {"memory": 60}), ("b", {"memory": 60})], 2, 100, ["start a", "end a", "start b", "end b"]),
    ([("a", {"cores": 9})], 2, None, ["start a", "end a"]),
    ([("a", {"memory": 900})], 2, 100, ["start a", "end a"])], ids=["slots", "cores", "rank", "memory", "too many cores", "too much memory"])
def test_attempts_are_started_by_rank_within_the_limits(flows, jobs, memory, expected):
    log, ends = run_flows(flows, jobs, memory)
    assert log == expected and [value for _, value in ends] == [name for name, _ in sorted(ends, key=lambda one: log.index("end " + one[0]))]


def test_the_next_of_a_group_is_started_before_the_flow_of_one_that_ended_goes_on():
    """In a slot of its own: what the ended one left in its slot is not taken yet."""
    pool, slots = FakePool(), {}
    made = scheduler.Scheduler(pool, 1)
    for name, rank, group in (("a", 1, "g"), ("b", 2, "g"), ("c", 3, "h"), ("d", 4, None), ("e", 5, None)):
        made.start(name, attempt(name, pool.log, rank=rank, group=group, slots=slots))
    assert [name for name, _ in iter(made.ended, None)] == list("abcde")
    assert pool.log == ["start a", "end a", "start b", "result of a", "end b", "result of b", "start c", "end c", "result of c", "start d", "end d",
                        "result of d", "start e", "end e", "result of e"]
    assert slots["a"] != slots["b"] and set(slots.values()) <= set(range(scheduler.slots_for(1)))


def test_when_a_signal_came_none_of_a_group_is_started_early():
    pool, log = FakePool(), []
    made = scheduler.Scheduler(pool, 1)
    wait = pool.wait

    def interrupted(seconds=None):
        pool.signals.number = 2
        return wait(seconds)
    pool.wait = interrupted
    for name in "ab":
        made.start(name, attempt(name, log, group="g"))
    assert [name for name, _ in iter(made.ended, None)] == ["a", "b"] and log == ["result of a", scheduler.NOT_STARTED] and "start b" not in pool.log


def test_a_flow_waits_for_those_that_it_spawned():
    pool, log = FakePool(), []
    made = scheduler.Scheduler(pool, 2)

    def parent():
        yield scheduler.Spawn("x", attempt("x", log))
        yield scheduler.Spawn("y", attempt("y", log))
        first = yield scheduler.Next()
        second = yield scheduler.Next()
        return [first, second]
    made.start("parent", parent())
    assert made.ended() == ("parent", [("x", "x"), ("y", "y")]) and made.ended() is None


def test_an_error_comes_up_when_the_others_have_ended_and_nothing_new_is_started():
    pool, log = FakePool(), []
    made = scheduler.Scheduler(pool, 2)

    def fails():
        yield scheduler.Attempting(lambda slot: ("bad", None), (0,), 1, 0)
        raise OSError("no more")
    made.start("fails", fails())
    made.start("long", attempt("long", log))
    made.start("late", attempt("late", log))
    assert made.ended() == ("late", "late") and log == [scheduler.NOT_STARTED]
    assert made.ended() == ("long", "long")
    with pytest.raises(OSError, match="no more"):
        made.ended()
    assert "start late" not in pool.log


def test_an_error_of_a_child_goes_through_its_parent():
    made = scheduler.Scheduler(FakePool(), 1)

    def child():
        yield scheduler.Attempting(lambda slot: 1 // 0, (0,), 1, 0)

    def parent():
        yield scheduler.Spawn("child", child())
        try:
            yield scheduler.Next()
        except ZeroDivisionError:
            return "seen"
    made.start("parent", parent())
    assert made.ended() == ("parent", "seen")


def test_when_a_signal_came_nothing_is_started():
    pool, log = FakePool(), []
    pool.signals.number = 15
    made = scheduler.Scheduler(pool, 1)
    made.start("a", attempt("a", log))
    assert made.ended() == ("a", "a") and log == [scheduler.NOT_STARTED] and log[0].stopped and log[0].failure == run_signals.INTERRUPTED


# --- through the program ---------------------------------------------------------------------------------------------

@pytest.fixture
def joins(project):
    project.write("bin/join.py", JOIN)
    project.write("bin/meets.py", MEETS)
    project.write("in/a.txt", "a\n")
    return project


def make(project, *stages, **top):
    project.spec(*[dict({"processor": "bin/join.py"}, **one) for one in stages], order="graph", **top)


def trace(project):
    return project.read("trace").splitlines()


@pytest.mark.parametrize("user, maker, is_graph, told", [
    ({"inputs": ("data/maker/x.rejects",)}, {"outputs": ("x",)}, True, "data/maker/x.rejects lies in the outputDir of maker, but does not make it wait"),
    ({"inputs": ("data/maker/*.rejects",)}, {"outputs": ("x",)}, True, "data/maker/*.rejects lies in the outputDir of maker, but"),
    ({"watch": ("data/maker/x.rejects",), "needs": ("maker",)}, {"outputs": ("x",)}, True, ""),
    ({"inputs": ("data/maker/x.rejects",)}, {"outputs": ("x", "*.rejects")}, True, ""),
    ({"inputs": ("data/maker/x",)}, {}, True, "data/maker/x lies in the outputDir of maker, but"),      # undeclared, and listed later
    ({"inputs": ("data/maker/x",)}, {}, False, "data/maker/x lies in the outputDir of maker, listed later: if that makes it, the stage reads what the run before made"),
    ({"for_each": ("data/maker/*.txt",)}, {"outputs": ("a.txt",)}, False, "data/maker/*.txt is what maker makes, and that is listed later"),
    ({"inputs": ("data/maker/x",)}, {"outputs": ("y",)}, False, ""),
    ({"inputs": ("in/a.txt", "data/*.txt")}, {"outputs": ("x",)}, True, ""),
    ({"for_each": ("data/user/**",)}, {}, False, "data/user/** is what the stage may make itself"),
    ({"inputs": ("data/user/a.txt",), "outputs": ("a.txt",)}, {}, True, "data/user/a.txt is what the stage may make itself"),
    ({"inputs": ("data/user/a.txt",), "outputs": ("b.txt",)}, {}, False, "")])
def test_what_lies_where_a_stage_writes_and_waits_for_none_is_told(user, maker, is_graph, told):
    found = stage_order.doubtful_reads([stage("user", **user), stage("maker", **maker)], is_graph)
    assert [(name, text.startswith(told)) for name, text in found] == [("user", True)] * bool(told), found


def test_validate_tells_of_what_waits_for_none(joins):
    make(joins, {"name": "user", "inputs": ["data/maker/x.rejects"]}, {"name": "maker", "outputs": ["x"], "outputDir": "data/maker"})
    assert "[NOTE] user: data/maker/x.rejects lies in the outputDir of maker, but does not make it wait: " in joins.ok("validate").out


def test_stages_that_are_ready_run_together(joins):
    make(joins, {"name": "one", "processor": "bin/meets.py", "args": ["two"]}, {"name": "two", "processor": "bin/meets.py", "args": ["one"]})
    done = joins.ok("--jobs", "2")
    assert [line.split(" in ")[0] for line in done.steps[:2]] == ["[START] one", "[START] two"], done
    assert [one["stage"] for one in joins.json(sorted(str(path.relative_to(joins.root)) for path in joins.path("state").glob("run_*"))[0])["stages"]] == ["one", "two"]


def test_with_one_job_they_run_one_by_one_in_the_order_of_the_list_and_the_edges(joins):
    make(joins, {"name": "last", "inputs": ["data/first/*.txt"], "needs": ["first"], "outputDir": "data/last"},
         {"name": "other", "inputs": ["in/a.txt"]}, {"name": "first", "inputs": ["in/a.txt"], "outputDir": "data/first"})
    plan = joins.ok("plan")
    assert [line.split(" (")[0].split()[1] for line in plan.steps] == ["first", "last", "other"] and "PENDING last" in plan.out, plan
    joins.ok("--jobs", "1")
    assert [line for line in trace(joins) if "begin" in line] == ["begin other", "begin first", "begin last"]
    assert joins.read("data/last/last.txt") == "a\n"
    assert joins.ok().out.count("[SKIP]") == 3


@pytest.mark.parametrize("first, last, expected", [
    ("", "d", "abcd"), ("b", "", "bd"), ("a", "", "abcd"), ("", "a", "a"), ("a", "b", "ab"), ("b", "c", ""), ("d", "a", ""), ("e", "", "e"), ("", "", "abcde"), ("b", "b", "b")])
def test_between_two_stages_is_what_depends_on_the_one_and_what_the_other_depends_on(first, last, expected):
    stages = [stage("d", needs=("b", "c")), stage("c", needs=("a",)), stage("e"), stage("b", needs=("a",)), stage("a")]
    assert "".join(sorted(stage_order.between(stages, first, last))) == expected


def test_from_and_until_go_by_the_graph_not_by_the_list(joins):
    make(joins, {"name": "last", "inputs": ["data/mid/mid.txt"], "outputDir": "data/last"}, {"name": "other", "inputs": ["in/a.txt"]},
         {"name": "mid", "inputs": ["data/first/first.txt"], "outputDir": "data/mid", "outputs": ["mid.txt"]},
         {"name": "first", "inputs": ["in/a.txt"], "outputDir": "data/first", "outputs": ["first.txt"]})
    joins.ok("--until", "mid")
    assert [line for line in trace(joins) if "begin" in line] == ["begin first", "begin mid"]
    joins.ok()
    joins.path("trace").unlink()
    joins.write("in/a.txt", "b\n")
    assert [line.split()[1] for line in joins.ok("plan", "--from", "mid").steps] == ["mid", "last"]
    joins.ok("--until", "last")
    assert joins.read("data/last/last.txt") == "b\n" and "begin other" not in trace(joins)
    done = joins.run("--from", "other", "--until", "last")
    assert done.code == 2 and done.err == "error: --until last does not depend on --from other\n", done
    done = joins.run("--only", "other", "--from", "first", "--until", "mid")
    assert done.code == 2 and "--only other: not among the stages that --from first and --until mid leave; leave out" in done.err, done


def test_stages_that_share_a_folder_without_declared_outputs_never_overlap(joins):
    common = {"inputs": ["in/a.txt"], "outputDir": "data/all"}
    make(joins, dict(common, name="x"), dict(common, name="y"), dict(common, name="z", outputDir="data/all/sub"))
    joins.ok("--jobs", "3")
    assert trace(joins) == ["begin x", "end x", "begin y", "end y", "begin z", "end z"]


def test_with_declared_outputs_they_may_and_each_keeps_its_own(joins):
    common = {"processor": "bin/both.py", "outputDir": "data/all"}
    joins.write("bin/both.py", MEETS + 'put(out + "/" + name + ".txt", os.environ["PIPELINE_RUN_ID"] + "\\n")\n')
    make(joins, dict(common, name="x", args=["y"], outputs=["x.txt"]), dict(common, name="y", args=["x"], outputs=["y.txt"]))
    joins.ok("--jobs", "2")
    for name in "xy":
        assert [one["path"] for one in joins.json("state/stage_%s.json" % name)["outputs"]] == [name + ".txt"]
        joins.path("here." + name).unlink()
    joins.ok("--jobs", "2", "--force", "x,y", "--run-id", "again")
    assert joins.read("data/all/x.txt") == joins.read("data/all/y.txt") == "again\n"


@pytest.mark.parametrize("mine, theirs", [(["x.*"], ["*.txt"]), (["*.txt"], ["x*"]), (["**"], ["b.csv"])])
def test_stages_whose_declared_outputs_may_be_the_same_file_never_overlap(joins, mine, theirs):
    """Each takes what matches for its own: at once, the one would take what the other makes, and both be 'up to date' without it."""
    joins.write("bin/late.py", JOIN.replace('trace("end")', 'time.sleep(0.2); put(out + "/" + os.environ["OUT"]); os.utime(out + "/" + os.environ["OUT"]); trace("end")'))
    common = {"processor": "bin/late.py", "outputDir": "data/all"}
    make(joins, dict(common, name="x", outputs=mine, env={"OUT": "x.txt"}), dict(common, name="y", outputs=theirs, env={"OUT": "b.csv" if "b.csv" in theirs else "x.txt"}))
    done = joins.run("--jobs", "2")
    assert trace(joins)[:2] == ["begin x", "end x"], done
    same = "b.csv" not in theirs
    assert done.code == same and ("changed data/all/x.txt, which belongs to stage x" in done.out) is same, done


@posix_only
def test_what_a_stage_at_work_beside_has_made_and_not_declared_is_not_cleared_away(joins):
    """An attempt that failed is undone: what it declared, and not what may be its neighbour's, which is still at work."""
    joins.write("bin/a.sh", '#!/bin/sh\ntouch "$PIPELINE_OUTPUT_DIR/a.txt"\nfor step in $(seq 1500); do [ -e "$PIPELINE_OUTPUT_DIR/tmp/b" ] && break; sleep 0.02; done\n'
                '[ "$PIPELINE_ATTEMPT" = 2 ] && touch "$PIPELINE_ROOT/gate" || exit 3\n', executable=True)
    joins.write("bin/b.sh", '#!/bin/sh\nmkdir "$PIPELINE_OUTPUT_DIR/tmp"; touch "$PIPELINE_OUTPUT_DIR/tmp/b"\n'
                'for step in $(seq 1500); do [ -e "$PIPELINE_ROOT/gate" ] && break; sleep 0.02; done\nmv "$PIPELINE_OUTPUT_DIR/tmp/b" "$PIPELINE_OUTPUT_DIR/b.txt"\n', executable=True)
    make(joins, {"name": "a", "processor": "bin/a.sh", "outputDir": "data/all", "outputs": ["a.txt"], "retry": {"attempts": 2, "baseDelayMs": 1}},
         {"name": "b", "processor": "bin/b.sh", "outputDir": "data/all", "outputs": ["b.txt"]})
    done = joins.ok("--jobs", "2")
    assert "[NOTE] a: leftovers of an unfinished attempt: removed a.txt\n" in done.out and joins.exists("data/all/b.txt"), done


@posix_only
def test_what_a_stage_at_work_beside_has_made_under_a_hidden_name_is_nobody_elses(joins):
    wait = "for step in $(seq 1500); do [ -e \"$PIPELINE_OUTPUT_DIR/%s\" ] && break; sleep 0.02; done\n"
    joins.write("bin/a.sh", '#!/bin/sh\ntouch "$PIPELINE_OUTPUT_DIR/.a.tmp"\n' + wait % ".b.done" + 'mv "$PIPELINE_OUTPUT_DIR/.a.tmp" "$PIPELINE_OUTPUT_DIR/a.txt"\n', executable=True)
    joins.write("bin/b.sh", "#!/bin/sh\n" + wait % ".a.tmp" + 'touch "$PIPELINE_OUTPUT_DIR/b.txt"\n', executable=True)
    make(joins, *({"name": name, "processor": "bin/%s.sh" % name, "outputDir": "data/all", "outputs": [name + ".txt"]} for name in "ab"))
    done = joins.ok("--jobs", "2")
    assert "made .a.tmp" not in done.out and joins.exists("data/all/a.txt"), done


KEEPS = """#!/bin/sh
out="$PIPELINE_OUTPUT_DIR/$PIPELINE_STAGE_NAME.txt"
echo "line $PIPELINE_LINE_OFFSET" >> "$out"
if [ "$PIPELINE_LINE_OFFSET" = 0 ] && [ -n "$PIPELINE_PROGRESS_FILE" ]; then
  echo '{"lineOffset": 1, "outputs": {"a.txt": 7}}' > "$PIPELINE_ROOT/made"; mv "$PIPELINE_ROOT/made" "$PIPELINE_PROGRESS_FILE"
fi
touch "$PIPELINE_ROOT/begun.$PIPELINE_STAGE_NAME"
for step in $(seq 1500); do [ -e "$PIPELINE_ROOT/gate" ] && break; sleep 0.02; done
"""


@posix_only
@pytest.mark.parametrize("needs", [[], ["b"]], ids=["beside", "after"])
def test_after_a_kill_what_a_stage_at_work_beside_has_made_is_not_cleared_away(joins, needs):
    """Which stages were at work at once is known to no record: what one has made for its checkpoint is not another's to clear away."""
    joins.write("bin/keeps.sh", KEEPS, executable=True)
    make(joins, {"name": "b", "processor": "bin/keeps.sh", "outputDir": "data/all", "outputs": ["b.txt"]},
         {"name": "a", "processor": "bin/keeps.sh", "outputDir": "data/all", "outputs": ["a.txt"], "checkpoint": {"enabled": True}, "needs": needs})
    with joins.start("--jobs", "2") as process:
        wait_until(lambda: joins.exists("begun.b") and (needs or joins.exists("begun.a")))
        joins.write("data/all/nobodys.txt", "")
        process.kill()
    joins.write("gate", "")
    done = joins.ok("--jobs", "2")
    if needs:           # never at once: all that is new is of the attempt that was killed
        assert "[NOTE] b: leftovers of an unfinished attempt: removed b.txt; removed nobodys.txt\n" in done.out, done
    else:
        assert "[NOTE] b: leftovers of an unfinished attempt: removed b.txt\n" in done.out and joins.exists("data/all/nobodys.txt"), done
        assert "[RESUME] a from line 1\n" in done.out and joins.read("data/all/a.txt") == "line 0\nline 1\n", done


@posix_only
def test_reset_does_not_clear_away_what_a_stage_at_work_beside_has_made(joins):
    joins.write("bin/keeps.sh", KEEPS, executable=True)
    make(joins, {"name": "b", "processor": "bin/keeps.sh", "outputDir": "data/all", "outputs": ["b.txt"]},
         {"name": "a", "processor": "bin/keeps.sh", "outputDir": "data/all", "outputs": ["a.txt"], "checkpoint": {"enabled": True}})
    with joins.start("--jobs", "2") as process:
        wait_until(lambda: joins.exists("begun.b") and joins.exists("begun.a"))
        joins.write("data/all/nobodys.txt", "")
        process.kill()
    joins.write("gate", "")
    assert "did not finish: data/all/b.txt, data/all/nobodys.txt\n" in joins.ok("reset", "b").out
    assert "leftovers of an unfinished attempt of stage b: removed b.txt; removed nobodys.txt\n" in joins.ok("reset", "b", "--yes").out
    assert "[RESUME] a from line 1\n" in joins.ok("--jobs", "2").out and joins.read("data/all/a.txt") == "line 0\nline 1\n"


GATE = TOOLS + """
trace("begin")
put(out + "/" + name + ".txt")
wait_for(root + "/gate")
if name + os.environ["PIPELINE_ATTEMPT"] == "a1":
    sys.exit(3)
put(out + "/" + name + ".txt")
trace("end")
"""


def share(joins, order, outputs, wait_s):
    """Make stages a and b in one folder, and c beside them; start a run of a, and return it once it is at work. What a made first is undone, then made anew."""
    joins.write("bin/gate.py", GATE)
    common = {"processor": "bin/gate.py", "lock": {"waitSeconds": wait_s}}
    stages = [dict(common, name=name, outputDir=folder, **({"outputs": [name + ".txt"]} if outputs else {})) for name, folder in (("a", "data/all"), ("b", "data/all/b" if outputs is None else "data/all"))]
    stages[0]["retry"] = {"attempts": 2, "baseDelayMs": 1}
    joins.spec(*stages, dict(common, name="c", processor="bin/join.py", outputDir="data/c"), order=order)
    process = joins.start("--only", "a", "--run-id", "one")
    wait_until(lambda: joins.exists("trace"))
    return process


@pytest.mark.parametrize("order", ["listed", "graph"])
@pytest.mark.parametrize("outputs", [False, True, None], ids=["undeclared", "declared", "one within the other"])
def test_a_folder_that_stages_share_is_one_runs_at_a_time(joins, order, outputs):
    """Of another run nobody knows what it has just made: it would be cleared away, or taken for the own."""
    with share(joins, order, outputs, 0) as process:
        done = joins.run("--only", "b", "--run-id", "two")
        assert done.code == 4 and "[FAIL] b: stage b: another run is at work in, around or below data/all, where this stage writes; wait, or raise lock.waitSeconds\n" in done.out, done
        assert not joins.exists("locks/b.lock")         # given back
        assert "[START] c" in joins.ok("--only", "c").out               # its folder is its own
        joins.write("gate", "")
        process.communicate(timeout=60)
    assert process.returncode == 0
    joins.ok("--only", "b", "--run-id", "three")
    assert [one["path"] for one in joins.json("state/stage_a.json")["outputs"]] == ["a.txt"] and [one["path"] for one in joins.json("state/stage_b.json")["outputs"]] == ["b.txt"]
    assert joins.ok("--run-id", "four").out.count("[SKIP]") == 3


def test_who_waits_for_a_shared_folder_goes_on_when_it_is_free(joins):
    with share(joins, "graph", False, 60) as first, joins.start("--only", "b", "--run-id", "two") as second:
        wait_until(lambda: joins.exists("locks/b.lock"))        # b is taken, its folder is not yet
        assert trace(joins) == ["begin a"]
        joins.write("gate", "")
        for process in (first, second):
            process.communicate(timeout=60)
    assert (first.returncode, second.returncode) == (0, 0) and trace(joins) == ["begin a", "begin a", "end a", "begin b", "end b"]


def test_a_shared_folder_is_free_again_when_the_last_stage_in_it_has_ended(joins):
    joins.write("bin/gate.py", GATE)
    common = {"processor": "bin/join.py", "outputDir": "data/all", "lock": {"waitSeconds": 0}}
    joins.spec(dict(common, name="a"), dict(common, name="b"), dict(common, name="c", processor="bin/gate.py", outputDir="data/c"))
    with joins.start("--only", "a,c", "--run-id", "one") as process:
        wait_until(lambda: joins.exists("trace") and "begin c" in trace(joins))
        joins.ok("--only", "b", "--run-id", "two")
        joins.write("gate", "")
        process.communicate(timeout=60)
    assert process.returncode == 0


def test_a_shared_folder_is_held_until_the_last_stage_in_it_has_ended(joins):
    joins.write("bin/gate.py", GATE)
    common = {"outputDir": "data/all", "lock": {"waitSeconds": 0}}
    joins.spec(dict(common, name="x", processor="bin/join.py", inputs=["in/a.txt"], outputs=["x.txt"]), dict(common, name="y", processor="bin/gate.py", outputs=["y.txt"]), order="graph")
    joins.write("other.json", json.dumps({"name": "other", "stages": [dict(common, name="z", processor="bin/join.py")]}))
    with joins.start("--jobs", "2", "--run-id", "one") as process:
        wait_until(lambda: joins.exists("data/all/.x.done") and not joins.exists("locks/x.lock") and "begin y" in trace(joins))
        done = subprocess.run([sys.executable, str(RUNNER), "--pipeline", str(joins.path("other.json"))], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=60)
        joins.write("gate", "")
        process.communicate(timeout=60)
    assert done.returncode == 4 and b"another run is at work in, around or below data/all" in done.stdout and process.returncode == 0, done


def test_a_killed_run_holds_no_shared_folder(joins):
    with share(joins, "graph", False, 0) as process:
        process.kill()
        process.communicate(timeout=60)
    joins.write("gate", "")
    joins.ok("--only", "b", "--run-id", "two")


@pytest.mark.parametrize("folder", ["data/all", "data/all/deep/er", "data", "data/beside"])
def test_in_an_output_folder_one_run_is_at_work_whatever_pipeline_it_is_of(joins, folder):
    with share(joins, "listed", True, 0) as process:
        stage = {"name": "other", "processor": "bin/join.py", "outputDir": folder, "lock": {"waitSeconds": 0}}
        joins.write("other.json", json.dumps({"name": "other", "stages": [stage]}))
        argv = [sys.executable, str(RUNNER), "--pipeline", str(joins.path("other.json"))]
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60)
        is_beside = folder == "data/beside"
        assert done.returncode == (0 if is_beside else 4) and (b"another run is at work in, around or below " + folder.encode() in done.stdout) is not is_beside, done
        joins.write("gate", "")
        process.communicate(timeout=60)
    assert process.returncode == 0
    assert subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=60).returncode == 0


@pytest.mark.parametrize("order", ["listed", "graph"])
def test_keep_going_goes_on_without_a_stage_that_another_run_has(joins, order):
    with share(joins, order, False, 0) as process:
        done = joins.run("--keep-going", "--run-id", "two")
        assert done.code == 4 and "[FAIL] a: stage a is held by pid" in done.out and "[FAIL] b: stage b: another run" in done.out and "[DONE] c" in done.out, done
        assert {one["stage"]: one["status"] for one in joins.json("state/run_two.json")["stages"]} == {"a": "failed", "b": "failed", "c": "ok"}
        joins.write("gate", "")
        process.communicate(timeout=60)
    assert joins.run("--run-id", "three").code == 0


def test_what_is_at_work_comes_to_its_end_though_the_runner_cannot_go_on_with_another_stage(joins):
    joins.write("bin/gate.py", GATE)
    joins.spec({"name": "b", "processor": "bin/gate.py"}, {"name": "held", "processor": "bin/join.py", "lock": {"waitSeconds": 0}}, order="graph")
    joins.path("locks").mkdir(exist_ok=True)
    with open(joins.path("locks/.held.guard"), "w") as file:
        assert stage_locks.try_kernel_lock(file.fileno())
        with joins.start("--jobs", "2", "--run-id", "r") as process:
            wait_until(lambda: joins.exists("trace"))
            joins.write("gate", "")
            process.communicate(timeout=60)
    assert process.returncode == 4 and joins.json("state/stage_b.json")["lastStatus"] == "ok" and trace(joins) == ["begin b", "end b"]


@pytest.mark.parametrize("names, code", [(["fails", "held"], 1), (["held", "fails"], 4)])
def test_with_keep_going_the_first_cause_decides(joins, names, code):
    joins.write("fail.fails", "")
    joins.spec(*[{"name": name, "processor": "bin/join.py", "lock": {"waitSeconds": 0}} for name in names])
    joins.path("locks").mkdir(exist_ok=True)
    with open(joins.path("locks/.held.guard"), "w") as file:
        assert stage_locks.try_kernel_lock(file.fileno())
        assert joins.run("--keep-going", "--run-id", "r").code == code
    assert [one["status"] for one in joins.json("state/run_r.json")["stages"]] == ["failed", "failed"]


def test_cores_count_against_jobs(joins):
    common = {"inputs": ["in/a.txt"], "resources": {"cpuCores": 2}}
    make(joins, dict(common, name="x"), dict(common, name="y"))
    joins.ok("--jobs", "3")
    assert trace(joins) == ["begin x", "end x", "begin y", "end y"]


def test_memory_counts_against_its_limit(joins):
    common = {"inputs": ["in/a.txt"], "resources": {"memoryMB": 600}}
    make(joins, dict(common, name="x"), dict(common, name="y"))
    joins.ok("--jobs", "3", "--max-memory", "1000")
    assert trace(joins) == ["begin x", "end x", "begin y", "end y"]


@posix_only
def test_a_failure_lets_the_running_ones_end_and_starts_no_others(joins):
    joins.write("fail.bad", "")
    joins.write("bin/slow.sh", "#!/bin/sh\nfor step in $(seq 1500); do grep -qs 'begin bad' \"$PIPELINE_ROOT/trace\" && break; sleep 0.02; done\nsleep 0.3\n"
                "echo ok > \"$PIPELINE_OUTPUT_DIR/x\"\n", executable=True)
    stages = [{"name": "bad", "inputs": ["in/a.txt"]}, {"name": "slow", "processor": "bin/slow.sh"}, {"name": "later", "inputs": ["data/s2/x"], "needs": ["slow"]},
              {"name": "after", "inputs": ["data/s1/bad.txt"]}]
    make(joins, *stages)
    done = joins.run("--jobs", "2", "--run-id", "r")
    assert done.code == 1, done
    assert {one["stage"]: one["status"] for one in joins.json("state/run_r.json")["stages"]} == {"bad": "failed", "slow": "ok", "later": "notRun", "after": "notRun"}
    joins.path("trace").unlink()
    joins.write("trace", "begin bad\n")
    done = joins.run("--jobs", "2", "--run-id", "k", "--keep-going")
    found = {one["stage"]: (one["status"], one["reason"]) for one in joins.json("state/run_k.json")["stages"]}
    assert done.code == 1 and found["later"][0] == "ok" and found["after"] == ("notRun", "stage bad did not end well"), done


def test_keep_going_in_the_listed_order(joins):
    joins.write("fail.bad", "")
    joins.spec(*[dict(one, processor="bin/join.py") for one in (
        {"name": "bad", "inputs": ["in/a.txt"]}, {"name": "after", "inputs": ["data/s1/*.txt"]}, {"name": "other", "inputs": ["in/a.txt"]})])
    done = joins.run("--keep-going", "--run-id", "r")
    assert done.code == 1 and [line for line in trace(joins) if "begin" in line] == ["begin bad", "begin other"], done


def test_a_cycle_is_a_fault_of_the_spec_and_is_named(joins):
    make(joins, {"name": "x", "inputs": ["data/y/*.txt"], "outputDir": "data/x", "outputs": ["x.txt"]},
         {"name": "y", "inputs": ["data/x/x.txt"], "outputDir": "data/y", "outputs": ["y.txt"]})
    done = joins.run()
    assert done.code == 2 and "stages[0]: needs itself by what it reads or needs: x <- y <- x" in done.err, done
    with pytest.raises(SpecError):
        import pipeline_runner
        pipeline_runner.load_pipeline(str(joins.path("pipeline.json")))


@posix_only
def test_ctrl_c_stops_all_that_run(joins):
    import signal
    joins.write("bin/wait.sh", "#!/bin/sh\ntouch \"$PIPELINE_ROOT/here.$PIPELINE_STAGE_NAME\"\nexec sleep 600\n", executable=True)
    make(joins, {"name": "x", "processor": "bin/wait.sh"}, {"name": "y", "processor": "bin/wait.sh"}, {"name": "z", "processor": "bin/wait.sh"})
    run = joins.start("--jobs", "2", "--run-id", "r")
    deadline = time.monotonic() + 60
    while not (joins.exists("here.x") and joins.exists("here.y")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    run.send_signal(signal.SIGINT)
    run.communicate(timeout=60)
    assert run.returncode == 130 and not joins.exists("here.z")
    assert [one["status"] for one in joins.json("state/run_r.json")["stages"]] == ["interrupted", "interrupted", "notRun"]


# Prints more than a pipe holds, once the runner reads the huge file.
TALKS = """
def leads_to(link):
    try:
        return os.readlink(link)
    except OSError:
        return ""           # closed since
def is_read():
    folder = "/proc/%d/fd/" % os.getppid()
    return any(leads_to(folder + one).endswith("/huge") for one in os.listdir(folder))
while not is_read():
    time.sleep(0.01)
sys.stdout.write("y" * (1 << 20) + "\\n")
sys.stdout.flush()
open(os.environ["PIPELINE_ROOT"] + ("/written" if is_read() else "/late"), "w").close()
time.sleep(600)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="what a process has open")
@pytest.mark.parametrize("is_input", [True, False], ids=["input", "output"])
def test_processors_go_on_while_the_runner_reads_a_huge_file(project, is_input):
    project.write("data/in/huge", "")
    make_huge = "os.truncate(%s, 200 << 30)\n"      # it takes no room, but time
    if is_input:
        os.truncate(str(project.path("data/in/huge")), 200 << 30)
    reads = {"processor": project.processor("reads", "" if is_input else "open(out + '/huge', 'w').close()\n" + make_huge % "out + '/huge'"),
             "inputs": ["data/in/*"] if is_input else []}
    project.spec({"name": "talks", "outputDir": "data/talks", "processor": project.processor("talks", TALKS)},
                 dict(reads, name="reads", outputDir="data/reads"), order="graph")
    run = project.start("--jobs", "2")
    try:
        wait_until(lambda: project.exists("written") or project.exists("late"))
    finally:
        run.kill()
        run.communicate()
    assert project.exists("written")


STRAY = """
import subprocess
# A daemon that sheds session, token and descriptors; it writes when the stage that left it has long ended.
if os.environ["PIPELINE_STAGE_NAME"] == "x":
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.closerange(3, 256)
            os.execve("/bin/sh", ["sh", "-c", "touch '%s/stray'; sleep 600; touch '%s/late'" % (os.environ["PIPELINE_ROOT"], out)], {"PATH": os.environ["PATH"]})
        os._exit(0)
    while not os.path.exists(os.environ["PIPELINE_ROOT"] + "/stray"):
        time.sleep(0.01)
    open(os.environ["PIPELINE_ROOT"] + "/x.over", "w")
else:
    while not os.path.exists(os.environ["PIPELINE_ROOT"] + "/x.over"):
        time.sleep(0.01)
    time.sleep(0.3)
"""


@posix_only
def test_an_orphan_that_carries_nobodys_sign_is_ended_before_anything_else_is_started(joins):
    if os.uname().sysname != "Linux":
        pytest.skip("other systems cannot find it")
    path = joins.processor("stray", STRAY)
    make(joins, {"name": "x", "processor": path}, {"name": "y", "processor": path})
    joins.ok("--jobs", "2")
    found = [pid for pid in os.listdir("/proc") if pid.isdigit() and str(joins.root).encode() in _command_of(pid)]
    assert found == []


def _command_of(pid):
    try:
        with open("/proc/%s/cmdline" % pid, "rb") as file:
            return file.read()
    except OSError:
        return b""


def test_few_questions_about_folders_have_the_answers_of_many():
    stage = collections.namedtuple("stage", "name output_dir")
    stages = [stage("s%d" % number, folder) for number, folder in enumerate(["a", "a/b", "ab", "a/b/c", "c", "a", "a/bc", "c/a/b"])]
    few, many = stage_order.Folders(stages), stage_order.Folders(stages)
    many.questions = stage_order.FEW_QUESTIONS
    for one in stages:
        few.questions = 0
        assert few.neighbours(one) == many.neighbours(one)
        assert few.holders({one.output_dir + "/x", "c"}) == many.holders({one.output_dir + "/x", "c"})
    assert [one.name for one in few.neighbours(stages[1])] == ["s0", "s3", "s5"] and not few.within and many.within


def test_stages_listed_in_a_circle_of_files_are_planned_as_they_run(project):
    """Each reads what the other makes: as listed, the first takes what is there."""
    project.write("B/all.txt", "x")
    project.processor("p", "open(out + '/all.txt', 'w').close()\n")
    each = {"processor": "bin/p.py", "outputs": ["all.txt"], "allowNoInputs": True}
    project.spec(dict(each, name="one", inputs=["B/*.txt"], outputDir="A"), dict(each, name="two", inputs=["A/*.txt"], outputDir="B"))
    done = project.run("plan", timeout=30)
    assert done.out == "RUN     one (no record of an earlier run)\nPENDING two (waits for one)\n", done
    for words in (("status",), ("explain", "two")):
        assert project.run(*words, timeout=30).code == 0
    project.ok()
