"""What a stage's key is made of, which files a glob names, and when a stored digest is believed."""
from __future__ import annotations

import contextlib
import errno
import fnmatch
import io
import json
import os
import py_compile
import random
import shutil
import subprocess
import sys
import time

import pytest
from conftest import RUNNER, Project, wait_until

import file_digests
import file_systems
import index_writer
import pipeline_runner
import primitives
from file_digests import Digests
from reasons import key_changes

POSIX = sys.platform != "win32"
OLD, S = 10**18, 10**9      # ns: a moment long ago, a second; a moment of a whole second would be taken for a coarse clock
STAGE = {"name": "one", "processor": "bin/work.py", "args": ["-v"], "inputs": ["data/input/*.csv", "data/extra.txt"], "outputDir": "data/out",
         "params": {"limit": 10, "nested": {"a": [1], "b": None}}, "env": {"MODE": "fast"}, "passEnv": ["DEMO_*"], "watch": ["conf/*.ini"]}
DEMO = {"DEMO_LEVEL": "7", "DEMO_PIN": "geheim-4711"}
WORK = """import json
import alpha
from pack import inner
from pack.sub import deep
assert (alpha.WORD, inner.WORD, deep.WORD) == ("beta", "inner", "deep")
open(os.path.join(out, "result.txt"), "w").write("result")
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A project whose one stage has everything that enters a key, run once."""
    made = Project(tmp_path_factory.mktemp("keys") / "schlüssel bund")
    made.processor("work", WORK)
    for name, text in {"bin/alpha.py": "from beta import WORD\n", "bin/beta.py": "WORD = 'beta'\n", "bin/other.py": "", "bin/pack/__init__.py": "",
                       "bin/pack/inner.py": "WORD = 'inner'\n", "bin/pack/sub/__init__.py": "", "bin/pack/sub/deep.py": "from . import near\nWORD = near.WORD\n",
                       "bin/pack/sub/near.py": "WORD = 'deep'\n", "data/input/a.csv": "1\n", "data/input/b.csv": "2\n", "data/extra.txt": "x\n",
                       "conf/x.ini": "[x]\n"}.items():
        made.write(name, text)
    made.spec(STAGE)
    made.ok("--run-id", "first", env=DEMO)
    return made


@pytest.fixture
def done(finished, tmp_path):
    """A copy of the finished project of one's own; times are kept, the root's path is not part of any key."""
    shutil.copytree(str(finished.root), str(tmp_path / "kopie"))
    copy = Project.__new__(Project)
    copy.root = tmp_path / "kopie"
    return copy


def planned(project, *arguments, env=None):
    """Return the reason that `plan` gives, without the brackets, after RUN or SKIP."""
    out = project.ok("plan", *arguments, env=dict(DEMO, **(env or {}))).out
    assert out.count("\n") == 1, out
    action, _, rest = out.strip().partition(" ")
    return action + " " + rest[rest.index("(") + 1:-1]


def change_spec(**changes):
    def change(project):
        project.spec(dict(STAGE, **changes))
    return change


def top_spec(**top):
    def change(project):
        project.spec(STAGE, **top)
    return change


def write(name, text):
    return lambda project: project.write(name, text)


def touch(name):
    return lambda project: os.utime(str(project.path(name)), ns=(10 ** 18, 10 ** 18))


def remove(name):
    return lambda project: os.unlink(str(project.path(name)))


def rewrite(name):
    def change(project):
        data = project.path(name).read_bytes()
        os.unlink(str(project.path(name)))
        project.write(name, data)
    return change


def drop(*names):
    def change(project):
        project.spec({key: value for key, value in STAGE.items() if key not in names})
    return change


CHANGES = [
    (write("data/input/a.csv", "9\n"), "RUN input data/input/a.csv changed"),
    (write("data/input/c.csv", "3\n"), "RUN input data/input/c.csv added"),
    (remove("data/input/b.csv"), "RUN input data/input/b.csv removed"),
    (write("data/extra.txt", ""), "RUN input data/extra.txt changed"),
    (change_spec(inputs=["data/extra.txt", "data/input/*.csv"]), "RUN inputs in another order"),
    (write("bin/work.py", "pass\n"), "RUN processor bin/work.py changed; module bin/alpha.py removed; module bin/beta.py removed; "
                                     "module bin/pack/__init__.py removed; module bin/pack/inner.py removed; and 3 more changes"),
    (touch("bin/work.py"), "RUN processor bin/work.py has another modification time"),
    (write("bin/alpha.py", "from beta import WORD \n"), "RUN module bin/alpha.py changed"),
    (write("bin/beta.py", "WORD = 'gamma'\n"), "RUN module bin/beta.py changed"),
    (write("bin/pack/__init__.py", "#\n"), "RUN module bin/pack/__init__.py changed"),
    (write("bin/pack/inner.py", "WORD = 'x'\n"), "RUN module bin/pack/inner.py changed"),
    (write("bin/pack/sub/__init__.py", "#\n"), "RUN module bin/pack/sub/__init__.py changed"),
    (write("bin/pack/sub/deep.py", "from . import near\nWORD = 'y'\n"), "RUN module bin/pack/sub/deep.py changed"),
    (write("bin/pack/sub/near.py", "WORD = 'z'\n"), "RUN module bin/pack/sub/near.py changed"),
    (write("bin/json.py", "from alpha import WORD\n"), "RUN module bin/json.py added"),
    (write("bin/alpha/__init__.py", "from beta import WORD\n"), "RUN module bin/alpha/__init__.py added"),
    *((write(name, b"\x7fELF"), "RUN module %s added" % name) for name in (
        "bin/alpha.so", "bin/alpha.abi3.so", "bin/alpha.cpython-311-x86_64-linux-gnu.so", "bin/alpha.pypy39-pp73-darwin.so", "bin/alpha.pyd",
        "bin/alpha.cp311-win_amd64.pyd", "bin/json.pyc", "bin/pack/__init__.abi3.so", "bin/pack/sub.pyc", "bin/pack/sub/near.so")),
    (write("conf/x.ini", "[y]\n"), "RUN watched conf/x.ini changed"),
    (write("conf/y.ini", ""), "RUN watched conf/y.ini added"),
    (change_spec(args=["-v", "ä"]), 'RUN args ["-v"] -> ["-v", "ä"]'),
    (change_spec(params={"limit": 20, "nested": {"a": [1], "b": None}}), "RUN params.limit 10 -> 20"),
    (change_spec(params={"limit": 10.0, "nested": {"a": [1], "b": None}}), "RUN params.limit 10 -> 10.0"),
    (change_spec(params={"limit": True, "nested": {"a": [1], "b": None}}), "RUN params.limit 10 -> true"),
    (change_spec(params={"limit": 10, "nested": {"a": [2], "b": None}}), 'RUN params.nested {"a": [1], "b": null} -> {"a": [2], "b": null}'),
    (change_spec(params={"limit": 10, "nested": {"a": [1]}}), 'RUN params.nested {"a": [1], "b": null} -> {"a": [1]}'),
    (change_spec(params={"limit": 10}), "RUN params.nested removed"),
    (change_spec(params=dict(STAGE["params"], more=None)), "RUN params.more added"),
    (change_spec(env={"MODE": "slow"}), 'RUN env.MODE "fast" -> "slow"'),
    (change_spec(env={"MODE": "fast", "A": ""}), "RUN env.A added"),
    (change_spec(env={}), "RUN env.MODE removed"),
    (change_spec(passEnv=["DEMO_PIN"]), "RUN passEnv.DEMO_LEVEL removed"),
    (change_spec(outputs=["result.txt"]), 'RUN outputs null -> ["result.txt"]'),
    (change_spec(launcher=["env"]), 'RUN launcher null -> ["env"]'),
    (change_spec(outputDir="data/other"), 'RUN outputDir "data/out" -> "data/other"'),
    (top_spec(name="renamed"), 'RUN pipeline "test" -> "renamed"'),
    (change_spec(name="two"), "RUN no record of an earlier run"),
    (change_spec(processor="bin/other.py"), "RUN processor bin/work.py -> bin/other.py"),
]
NO_CHANGES = [
    lambda project: None,
    touch("data/input/a.csv"), rewrite("data/input/a.csv"), touch("bin/beta.py"), rewrite("bin/alpha.py"), touch("conf/x.ini"),
    write("bin/other.py", "x = 1\n"), write("bin/pack/unused.py", ""), write("data/input/.hidden.csv", "1\n"), write("data/input/c.csv.part", "1\n"),
    write("bin/alpha.pyc", ""), write("bin/pack/sub/__init__.pyc", ""), write("bin/json.cpython-311.pyc", ""), write("bin/alpha.1.2.so", ""), write("bin/other.so", ""),
    write("bin/alphabet.so", ""), write("bin/alpha.so.txt", ""), write("bin/alpha.so/keep", ""), write("bin/__pycache__/json.cpython-311.pyc", ""),
    *(lambda project, name=name: os.symlink("../build/" + name, str(project.path("bin/" + name))) for name in ("alpha.so", "json.py")),     # to Python
    write("bin/json.py/keep", ""),      # neither a link that leads nowhere is a module, nor a folder
    write("data/input/c.txt", ""), top_spec(version="2", description="other"), top_spec(**{"x-note": 1}),
    change_spec(retry={"attempts": 9}), change_spec(timeoutSec=9, graceSec=1), change_spec(lock={"waitSeconds": 0}), change_spec(resources={"nice": 1}),
    change_spec(checkpoint={"enabled": True, "lineInterval": 5}), change_spec(simulateFailAttempts=1), change_spec(**{"x-mine": 1}), change_spec(allowNoInputs=True),
    change_spec(params={"nested": {"b": None, "a": [1]}, "limit": 10}),
]


@pytest.mark.parametrize("change, expected", CHANGES, ids=[expected for _, expected in CHANGES])
def test_what_changes_the_key(done, change, expected):
    change(done)
    found = planned(done)
    assert found == expected or (found.startswith(expected + "; ") and "processor" in expected), found


@pytest.mark.parametrize("change", NO_CHANGES, ids=range(len(NO_CHANGES)))
def test_what_does_not_change_the_key(done, change):
    change(done)
    assert planned(done).startswith("SKIP up to date: key "), planned(done)


def compile_without_source(project, name, text):
    source = project.write("module.py", text)
    py_compile.compile(str(source), str(project.path(name)), doraise=True)
    source.unlink()


@pytest.mark.parametrize("name", ["bin/only.pyc", "bin/only/__init__.pyc"])
def test_a_module_of_which_only_bytecode_is_there_counts(project, name):
    compile_without_source(project, name, "V = 'one'\n")
    project.spec({"processor": project.processor("p", "import only\nopen(out + '/o', 'w').write(only.V)\n")})
    project.ok()
    assert "[SKIP] s1" in project.ok().out
    compile_without_source(project, name, "V = 'two'\n")
    done = project.ok()
    assert project.read("data/s1/o") == "two", done
    assert "[WARNING] %s:1: not a script" % name in project.ok("scan").out


def test_the_processors_time_does_not_count_with_content(project):
    project.write("data/in.txt", "x")
    project.spec({"processor": "bin/stage_copy.py", "inputs": ["data/in.txt"], "idempotency": {"processor": "content"}})
    project.ok()
    touch("bin/stage_copy.py")(project)
    assert planned(project).startswith("SKIP ")
    project.write("bin/stage_copy.py", project.read("bin/stage_copy.py") + "\n")
    assert planned(project) == "RUN processor bin/stage_copy.py changed"


def test_set_overrides_a_param_for_one_run(done):
    assert planned(done, "--set", "limit=20") == "RUN params.limit 10 -> 20"
    assert planned(done, "--set", "limit=ten") == 'RUN params.limit 10 -> "ten"'
    assert planned(done, "--set=limit=[1]") == "RUN params.limit 10 -> [1]"
    assert planned(done, "--set", "limit=10").startswith("SKIP ")
    done.ok("--set", "limit=20", env=DEMO)
    assert planned(done, "--set", "limit=20").startswith("SKIP ")
    assert planned(done) == "RUN params.limit 20 -> 10"


def test_set_of_an_unknown_param_names_the_nearest(done):
    refused = done.run("plan", "--set", "limt=20")
    assert refused.code == 2 and "--set limt: no stage has a param of that name; did you mean limit?" in refused.err, refused


@pytest.mark.parametrize("env, expected", [
    ({"DEMO_LEVEL": "8"}, "RUN passEnv.DEMO_LEVEL changed"),
    ({"DEMO_NEW": ""}, "RUN passEnv.DEMO_NEW added"),
    ({"DEMO_PIN": None}, "RUN passEnv.DEMO_PIN removed"),
    ({"OTHER": "8"}, "SKIP "),
])
def test_variables_that_are_let_through_count_by_value(done, env, expected):
    assert planned(done, env=env).startswith(expected)


def test_passenv_given_where_it_was_not(done):
    drop("passEnv")(done)
    assert planned(done).startswith("RUN passEnv.DEMO_LEVEL removed; passEnv.DEMO_PIN removed; passEnv dropped")


def test_the_values_of_variables_are_nowhere_on_disk(finished):
    """Neither plain nor as a digest that guessing finds: the stored digests are keyed with a secret that only the owner reads."""
    import hashlib
    for path, data in finished.snapshot().items():
        assert b"geheim-4711" not in data, path
        assert hashlib.sha256(b"geheim-4711").hexdigest().encode() not in data, path
    assert len(finished.path("state/env.key").read_bytes()) == 32
    if POSIX:
        assert finished.path("state/env.key").stat().st_mode & 0o077 == 0


def test_the_key_is_the_digest_of_the_stored_parts(finished):
    """Recomputed here from section 5 alone: canonical JSON of the parts, which hold path and SHA-256 of each file."""
    import hashlib
    record = finished.json("state/stage_one.json")
    parts = record["keyParts"]
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert hashlib.sha256(b"stage-key\0" + text.encode("utf-8")).hexdigest() == record["idempotencyKey"]
    assert parts["inputs"] == [[name, hashlib.sha256(finished.path(name).read_bytes()).hexdigest()] for name in ("data/input/a.csv", "data/input/b.csv", "data/extra.txt")]
    assert [path for path, _ in parts["modules"]] == ["bin/alpha.py", "bin/beta.py", "bin/pack/__init__.py", "bin/pack/inner.py", "bin/pack/sub/__init__.py",
                                                      "bin/pack/sub/deep.py", "bin/pack/sub/near.py"]
    assert parts["processor"] == {"path": "bin/work.py", "sha256": hashlib.sha256(finished.path("bin/work.py").read_bytes()).hexdigest(),
                                  "mtimeNs": finished.path("bin/work.py").stat().st_mtime_ns}
    assert (parts["pipeline"], parts["stage"], parts["outputDir"], parts["keyVersion"]) == ("test", "one", "data/out", 1)


# --- the texts

PARTS = {"keyVersion": 1, "pipeline": "p", "stage": "s", "outputDir": "d", "outputs": None, "args": [], "params": {"limit": 10}, "env": {}, "passEnv": None,
         "processor": {"path": "bin/x.py", "sha256": "0", "mtimeNs": 1}, "modules": [], "inputs": [["data/input/a.csv", "0"], ["b", "1"]], "watch": []}


@pytest.mark.parametrize("changes, expected", [
    ({}, []),
    ({"inputs": [["data/input/a.csv", "9"], ["b", "1"]]}, ["input data/input/a.csv changed"]),
    ({"params": {"limit": 20}}, ["params.limit 10 -> 20"]),
    ({"inputs": [["b", "1"], ["data/input/a.csv", "0"]]}, ["inputs in another order"]),
    ({"inputs": [["b", "2"], ["c", "0"]]}, ["input b changed", "input c added", "input data/input/a.csv removed"]),
    ({"modules": [["m", "1"]], "watch": [["w", "1"]]}, ["module m added", "watched w added"]),
    ({"keyVersion": 2}, ["the runner's key version 1 -> 2"]),
    ({"outputs": ["x"]}, ['outputs null -> ["x"]']),
    ({"passEnv": {}}, ["passEnv given"]),
    ({"processor": {"path": "bin/y.py", "sha256": "1", "mtimeNs": 2}}, ["processor bin/x.py -> bin/y.py"]),
    ({"processor": {"path": "bin/x.py", "sha256": "1", "mtimeNs": 2}}, ["processor bin/x.py changed"]),
    ({"processor": {"path": "bin/x.py", "sha256": "0", "mtimeNs": 2}}, ["processor bin/x.py has another modification time"]),
    ({"processor": {"path": "bin/x.py", "sha256": "0"}}, ["processor bin/x.py has another modification time"]),
    ({"params": {"limit": "x" * 100}}, ['params.limit 10 -> "%s...' % ("x" * 56)]),
])
def test_key_changes(changes, expected):
    assert key_changes(PARTS, dict(PARTS, **changes)) == expected


def test_key_changes_bear_an_empty_old_record():
    assert key_changes({}, PARTS)


# --- the public function

def test_compute_idempotency_key(tmp_path):
    first, second, program = (str(tmp_path / name) for name in ("a", "b", "p.py"))
    for path in (first, second, program):
        with open(path, "w", encoding="utf-8") as file:
            file.write(path)
    compute = pipeline_runner.compute_idempotency_key
    key = compute([first, second], program, {"a": 1, "b": 2})
    assert len(key) == 64 and set(key) <= set("0123456789abcdef")
    assert key == compute([first, second], program, {"b": 2, "a": 1}) == compute((one for one in (first, second)), program, {"a": 1, "b": 2})
    assert key == compute([tmp_path / "a", tmp_path / "b"], tmp_path / "p.py", {"a": 1, "b": 2})
    others = [compute([second, first], program, {"a": 1, "b": 2}), compute([first], program, {"a": 1, "b": 2}), compute([first, second], program),
              compute([first, second], first, {"a": 1, "b": 2}), compute([first, second], program, {"a": "1", "b": 2})]
    assert compute([first], program) == compute([first], program, {})
    os.utime(first, ns=(1, 1))
    assert compute([first, second], program, {"a": 1, "b": 2}) == key       # an input's time does not count
    os.utime(program, ns=(1, 1))
    others.append(compute([first, second], program, {"a": 1, "b": 2}))      # a processor's does
    with open(second, "a", encoding="utf-8") as file:
        file.write("x")
    others.append(compute([first, second], program, {"a": 1, "b": 2}))
    assert len(set(others + [key])) == len(others) + 1
    with pytest.raises(OSError):
        compute([str(tmp_path / "none")], program)


def test_no_key_of_a_file_that_changes_while_it_is_read(tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.write_bytes(b"before")

    class Changing:
        def __init__(self, file):
            self.file, self.fileno = file, file.fileno

        def readinto(self, buffer):
            with open(str(path), "ab") as other:
                other.write(b"more")
            self.readinto = self.file.readinto
            return self.file.readinto(buffer)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()
    real = file_digests.open_file
    monkeypatch.setattr(file_digests, "open_file", lambda *given: Changing(real(*given)))
    with pytest.raises(file_digests.FileChanged):
        pipeline_runner.compute_idempotency_key([], str(path))


# --- globs

FILES = ["a.txt", "b.txt", "B.txt", "ä.txt", "a1.csv", "a2.csv", ".hidden", ".dot/x.txt", "c.txt.part", "sub/d.txt", "sub/deeper/e.txt", "sub/deeper/f.csv",
         "sub/.git/g.txt", "with [brackets].txt", "with blank.txt", "[x].txt", "x.txt", "star*.txt"]


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("globs")
    for name in FILES:
        if POSIX or "*" not in name:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(name, encoding="utf-8")
    (root / "empty").mkdir()
    return root


@pytest.mark.parametrize("pattern, expected", [
    ("a.txt", ["a.txt"]),
    ("A.txt", []),
    ("none.txt", []),
    ("sub", []),
    ("empty/*", []),
    ("?.txt", ["B.txt", "a.txt", "b.txt", "x.txt", "ä.txt"]),
    ("a?.csv", ["a1.csv", "a2.csv"]),
    ("a[2-9].csv", ["a2.csv"]),
    ("a[!2].csv", ["a1.csv"]),
    ("[ab].txt", ["a.txt", "b.txt"]),
    ("[x].txt", ["[x].txt", "x.txt"]),              # a file of that very name is meant, too
    ("star*.txt", ["star*.txt"]), ("s*.txt", ["star*.txt"]),
    ("with [brackets].txt", ["with [brackets].txt"]),
    ("with*.txt", ["with [brackets].txt", "with blank.txt"]),
    ("star*.txt", ["star*.txt"]),
    ("*.csv", ["a1.csv", "a2.csv"]),
    ("*", ["B.txt", "[x].txt", "a.txt", "a1.csv", "a2.csv", "b.txt", "star*.txt", "with [brackets].txt", "with blank.txt", "x.txt", "ä.txt"]),
    (".*", [".hidden"]),
    (".dot/*", [".dot/x.txt"]),
    ("*.part", ["c.txt.part"]),
    ("*/*.txt", ["sub/d.txt"]),
    ("s*/d*/*", ["sub/deeper/e.txt", "sub/deeper/f.csv"]),
    ("sub/**", ["sub/d.txt", "sub/deeper/e.txt", "sub/deeper/f.csv"]),
    ("sub/**/*.txt", ["sub/d.txt", "sub/deeper/e.txt"]),
    ("**/e.txt", ["sub/deeper/e.txt"]),
    ("**/*.csv", ["a1.csv", "a2.csv", "sub/deeper/f.csv"]),
    ("**/deeper/*", ["sub/deeper/e.txt", "sub/deeper/f.csv"]),
    ("sub/**/deeper/*.csv", ["sub/deeper/f.csv"]),
    ("**/**/f.csv", ["sub/deeper/f.csv"]),
    ("sub/[", []),
    ("**", ["B.txt", "[x].txt", "a.txt", "a1.csv", "a2.csv", "b.txt", "star*.txt", "sub/d.txt", "sub/deeper/e.txt", "sub/deeper/f.csv",
            "with [brackets].txt", "with blank.txt", "x.txt", "ä.txt"]),
])
def test_globs(tree, pattern, expected):
    if not POSIX:       # there b.txt and B.txt are one file, A.txt is a.txt, and no name has an asterisk
        expected = [pattern] if pattern == "A.txt" else [name for name in expected if name not in ("B.txt", "star*.txt")]
    assert file_digests.expand(str(tree), pattern) == expected


@pytest.mark.skipif(not POSIX, reason="links need a privilege there")
def test_globs_and_links(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "x.txt").write_text("x")
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "real" / "loop").symlink_to("..")
    (tmp_path / "file.txt").symlink_to("real/x.txt")
    (tmp_path / "dead.txt").symlink_to("nowhere")
    expand = file_digests.expand
    assert expand(str(tmp_path), "**/*.txt") == ["file.txt", "real/x.txt"]     # ** does not go through links: they may lead in circles
    assert expand(str(tmp_path), "link/*.txt") == ["link/x.txt"]               # named, it does
    assert expand(str(tmp_path), "l*/*.txt") == ["link/x.txt"]
    assert expand(str(tmp_path), "*.txt") == ["file.txt"]                      # a link to nowhere is no file


def test_globs_and_junctions(tmp_path, junctions):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "x.txt").write_text("x")
    junctions.make(tmp_path / "real", tmp_path / "in" / "j")
    junctions.make(tmp_path / "gone", tmp_path / "in" / "dead")
    expand, seen = file_digests.expand, set()
    assert expand(str(tmp_path), "in/**", seen) == [] and seen >= {"in/j", "in/dead"}
    assert expand(str(tmp_path), "**/*.txt") == ["real/x.txt"]
    assert expand(str(tmp_path), "in/j/*.txt") == expand(str(tmp_path), "in/j*/*.txt") == ["in/j/x.txt"]       # named, it does
    assert file_digests.resolve(str(tmp_path), ["in/*/*.txt"]) == (["in/j/x.txt"], [NOWHERE % "in/dead"])


NOWHERE = "input %s is a link that leads nowhere: mount or make what it names, or remove it"


@pytest.mark.skipif(not POSIX, reason="links need a privilege there")
@pytest.mark.parametrize("target", ["nowhere", "link.txt"])
@pytest.mark.parametrize("pattern, is_meant", [("in/*.txt", True), ("in/**", True), ("in/l*", True), ("in/*/x", True), ("*/link.txt/**", True), ("**/l*/x", True),
                                               ("in/a*", False), ("**/a.txt", False), ("*/a.txt", False)])
def test_a_link_that_leads_nowhere_is_told_where_it_may_be_meant_and_hides_nothing(tmp_path, target, pattern, is_meant):
    """It may be a volume that is not mounted; a link to itself is one, too."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("a")
    (tmp_path / "in" / "link.txt").symlink_to(target)
    files, problems = file_digests.resolve(str(tmp_path), [pattern])
    assert (NOWHERE % "in/link.txt" in problems) == is_meant
    assert files == ([] if pattern in ("in/l*", "in/*/x", "*/link.txt/**", "**/l*/x") else ["in/a.txt"])


@pytest.mark.skipif(not POSIX, reason="links need a privilege there")
@pytest.mark.parametrize("pattern", ["in/*.txt", "in/**", "i*/*.txt", "in/**/*.txt"])
def test_a_folder_that_is_a_link_to_nowhere_is_told(tmp_path, pattern):
    (tmp_path / "in").symlink_to("not mounted")
    assert file_digests.resolve(str(tmp_path), [pattern]) == ([], [NOWHERE % "in", "input %s: no file matches" % pattern])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with names")
def test_what_is_no_file_is_no_input(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("a")
    os.mkfifo(str(tmp_path / "in" / "pipe.txt"))
    for pattern in ("in/*", "in/**", "**/*.txt"):
        assert file_digests.expand(str(tmp_path), pattern) == ["in/a.txt"]
    assert file_digests.resolve(str(tmp_path), ["in/pipe.txt"]) == ([], ["input in/pipe.txt is a pipe or a device, which has no content to compare: let it be a file"])


@pytest.mark.parametrize("error, told", [
    (PermissionError(errno.EACCES, "Permission denied"), "input %s: cannot look at in/deep: Permission denied"),
    (OSError(errno.EIO, "Input/output error"), "input %s: cannot look at in/deep: Input/output error"),
    (FileNotFoundError(errno.ENOENT, "gone"), "input %s: no file matches"),
    (NotADirectoryError(errno.ENOTDIR, "a file by now"), "input %s: no file matches")])
@pytest.mark.parametrize("pattern", ["in/deep/*", "in/**/a*", "*/d*/a*", "in/**"])
def test_files_in_a_folder_that_cannot_be_listed_do_not_pass_for_gone(tmp_path, monkeypatch, error, told, pattern):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "in" / "deep" / "a.txt").write_text("a")
    scandir = os.scandir

    def fail(folder):
        if os.path.basename(folder) == "deep":
            error.filename = folder
            raise error
        return scandir(folder)
    monkeypatch.setattr(os, "scandir", fail)
    assert file_digests.resolve(str(tmp_path), [pattern]) == ([], [told % pattern])


@pytest.mark.parametrize("pattern, name, longest", [("in/**/*.txt", "", 247), ("in/**", "", 247), ("in/*/b.txt", "/b.txt", 259), ("in/%s/b.txt", "/b.txt", 259)])
def test_files_whose_paths_are_too_long_for_windows_do_not_pass_for_gone(tmp_path, too_deep, pattern, name, longest):
    (tmp_path / "in" / "a.txt").write_text("a")
    pattern = pattern.replace("%s", too_deep.name)
    told = "input %s: cannot look at in/%s: the path has %d characters, and Windows takes no more than %d unless LongPathsEnabled is set"
    assert file_digests.resolve(str(tmp_path), [pattern]) == ([], [told % (pattern, too_deep.name + name, len(str(too_deep) + name), longest)])
    assert file_digests.resolve(str(tmp_path), ["in/*.txt"]) == (["in/a.txt"], [])


@pytest.mark.parametrize("number, told", [(errno.EACCES, "input %s: cannot look at in/deep/a.txt: not today"), (errno.EIO, "input %s: cannot look at in/deep/a.txt: not today"),
                                          (errno.ENOENT, None), (errno.ELOOP, None), (errno.ENAMETOOLONG, None), (errno.EINVAL, None)])
@pytest.mark.parametrize("pattern", ["in/deep/a.txt", "in/**/a.txt", "in/*/a.txt"])
def test_a_file_that_cannot_be_looked_at_does_not_pass_for_gone(tmp_path, monkeypatch, number, told, pattern):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "in" / "deep" / "a.txt").write_text("a")
    look = os.stat

    def fail(path, **options):
        if os.path.basename(os.path.dirname(str(path))) == "deep":
            raise OSError(number, "not today", path)
        return look(path, **options)
    monkeypatch.setattr(os, "stat", fail)
    nothing = file_digests.NO_MATCH if "*" in pattern else file_digests.NO_FILE
    assert file_digests.resolve(str(tmp_path), [pattern]) == ([], [told % pattern if told else "input %s: %s" % (pattern, nothing)])


def test_files_keep_the_order_of_the_patterns_each_once(tree):
    files, problems = file_digests.resolve(str(tree), ["a2.csv", "*.csv", "a.txt", "sub/**/*.csv", "a.txt"])
    assert (files, problems) == (["a2.csv", "a1.csv", "a.txt", "sub/deeper/f.csv"], [])


SPELLED = "input %s is %s once more, for upper and lower case are the same here: spell it in one way"


@pytest.mark.parametrize("patterns, told", [
    (["data/in/A.txt", "data/in/*.txt"], [("data/in/a.txt", "data/in/A.txt")]), (["data/in/a.txt", "data/IN/a.txt"], [("data/IN/a.txt", "data/in/a.txt")]),
    (["data/in/a.txt", "data/IN/A.txt", "data/in/b.txt"], [("data/IN/A.txt", "data/in/a.txt")]),
    (["data/IN/*.txt", "data/in/b.txt"], [("data/in/b.txt", "data/IN/b.txt")]), (["data/IN/*.txt"], []), (["data/in/a.txt", "data/in/b.txt"], [])])
def test_one_file_by_two_spellings_is_refused_where_case_does_not_matter(tmp_path, monkeypatch, patterns, told):
    """Where it matters, links and lists that do not show them stand for a file system without it."""
    (tmp_path / "data" / "in").mkdir(parents=True)
    for name in ("a.txt", "b.txt"):
        (tmp_path / "data" / "in" / name).write_text(name)
    if not (tmp_path / "DATA").exists():
        (tmp_path / "data" / "IN").symlink_to("in")
        (tmp_path / "data" / "in" / "A.txt").symlink_to("a.txt")
        scandir, listdir = os.scandir, os.listdir
        monkeypatch.setattr(os, "listdir", lambda folder: [name for name in listdir(folder) if name not in ("IN", "A.txt")])
        monkeypatch.setattr(os, "scandir", lambda folder: contextlib.nullcontext([one for one in scandir(folder) if one.name not in ("IN", "A.txt")]))
    assert file_digests.resolve(str(tmp_path), patterns)[1] == [SPELLED % pair for pair in told]


@pytest.fixture
def on_macos(monkeypatch):
    """Let names be compared as on macOS."""
    for function in (primitives.composed, primitives.folded):
        monkeypatch.setattr(function, "__defaults__", (True,))


TOGETHER, APART = "d\u00e9j\u00e0", "de\u0301ja\u0300"      # one word: accents with their letters, accents as signs of their own


def test_how_an_accent_is_written_tells_nothing_on_macos():
    assert primitives.composed(APART, True) == TOGETHER == primitives.composed(TOGETHER, True) and primitives.composed(APART, False) == APART
    assert primitives.folded("D\u00c9J\u00c0", True) == primitives.folded(APART, True) == TOGETHER != primitives.folded(APART, False)
    assert primitives.folded("Stra\u00dfe", False) == "strasse" and primitives.folded("A\udcff", True) == "a\udcff" and primitives.folded("A.TXT", True) == "a.txt"


def test_globs_and_declared_names_match_however_macos_writes_their_accents(tmp_path, on_macos):
    (tmp_path / (APART + ".txt")).write_text("x")
    assert file_digests.resolve(str(tmp_path), [TOGETHER[:2] + "*.txt"]) == ([APART + ".txt"], [])
    assert file_digests.resolve(str(tmp_path), ["d?j?.txt"]) == ([APART + ".txt"], [])
    assert file_digests.path_matches("a/" + APART, "a/" + TOGETHER) and not file_digests.path_matches("a/" + APART, "a/deja")


@pytest.mark.skipif(not POSIX, reason="links need a privilege there")
def test_one_file_by_two_spellings_of_an_accent_is_refused_on_macos(tmp_path, monkeypatch, on_macos):
    """A link and a list that does not show it stand for its file system."""
    (tmp_path / APART).write_text("x")
    if not (tmp_path / TOGETHER).exists():
        (tmp_path / TOGETHER).symlink_to(APART)
        listdir, scandir = os.listdir, os.scandir
        monkeypatch.setattr(os, "listdir", lambda folder: [name for name in listdir(folder) if name != TOGETHER])
        monkeypatch.setattr(os, "scandir", lambda folder: contextlib.nullcontext([one for one in scandir(folder) if one.name != TOGETHER]))
    assert file_digests.resolve(str(tmp_path), [TOGETHER, "*"])[1] == [
        "input %s is %s once more, for an accent with its letter and by itself are the same here: spell it in one way" % (APART, TOGETHER)]


@pytest.mark.skipif(not POSIX, reason="links need a privilege there")
def test_files_whose_names_differ_in_case_are_two_where_it_matters(tmp_path):
    if (tmp_path.parent / tmp_path.name.upper()).exists():
        return                          # macOS
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("a")
    os.link(str(tmp_path / "in" / "a.txt"), str(tmp_path / "in" / "A.txt"))
    (tmp_path / "IN").symlink_to("in")
    assert file_digests.resolve(str(tmp_path), ["in/A.txt", "in/*", "IN/a.txt"]) == (["in/A.txt", "in/a.txt", "IN/a.txt"], [])


def test_each_pattern_that_finds_nothing_is_named(tree):
    files, problems = file_digests.resolve(str(tree), ["none.txt", "*.xml", "a.txt", "sub", "empty/**"])
    assert files == ["a.txt"]
    assert problems == ["input none.txt: there is no such file", "input *.xml: no file matches",
                        "input sub is a folder: write sub/** for the files in it", "input empty/**: no file matches"]


@pytest.mark.parametrize("path, pattern, expected", [
    ("a/b.txt", "a/*.txt", True), ("a/b.txt", "*.txt", False), ("a/b.txt", "**", True), ("a/b.txt", "**/*.txt", True), ("b.txt", "**/b.txt", True),
    ("[x].txt", "[x].txt", True), ("x.txt", "[x].txt", True), ("a/b/c", "a/**/c", True), ("a/c", "a/**/c", True), ("a/c", "a/*/c", False), ("a", "a/**", False),
    ("B.txt", "b.txt", False), ("result.txt", "result.txt", True), (".x", "*", False),
])
def test_path_matches(path, pattern, expected):
    assert file_digests.path_matches(path, pattern) is expected


def plainly_matches(parts, segments):
    """What path_matches() is to say, part by part, for names of ASCII."""
    if not parts or not segments:
        return not parts and not segments
    if segments[0] == "**":
        return any(plainly_matches(parts[skip:], segments[1:] or ["*"]) for skip in range(len(parts)))
    spelled = parts[0] == segments[0] or fnmatch.fnmatchcase(parts[0], segments[0]) and (
        segments[0].startswith(".") or not parts[0].startswith(".")) and (segments[0].endswith(".part") or not parts[0].endswith(".part"))
    return spelled and plainly_matches(parts[1:], segments[1:])


def random_names(random, pieces, most):
    return ["/".join("".join(random.choice(pieces) for _ in range(random.randint(1, 3))) for _ in range(random.randint(1, 3))) for _ in range(random.randint(0, most))]


def test_many_patterns_at_once_match_what_each_of_them_matches():
    chance = random.Random(29)
    for _ in range(3000):
        patterns = random_names(chance, ["a", "b", ".", "*", "**", "?", "[ab]", "[", "]", ".part"], 5)
        paths = random_names(chance, ["a", "b", ".", ".part"], 5) + chance.sample(patterns, min(1, len(patterns)))
        made = file_digests.Patterns(patterns)
        pairs = {(path, pattern): plainly_matches(path.split("/"), pattern.split("/")) for path in paths for pattern in patterns}
        assert {(path, pattern): file_digests.path_matches(path, pattern) for path, pattern in pairs} == pairs
        assert [path for path in paths if made.matches(path)] == [path for path in paths if any(pairs[path, one] for one in patterns)], (patterns, paths)
        assert made.unmatched(paths) == [one for one in patterns if not any(pairs[path, one] for path in paths)], (patterns, paths)


def test_many_patterns_match_however_macos_writes_their_accents(on_macos):
    made = file_digests.Patterns([TOGETHER, APART + ".txt", "x/d?j?", APART + "*.csv", TOGETHER + "/**", "deja"])
    paths = [APART, TOGETHER + ".txt", "x/" + APART, TOGETHER + "1.csv", APART + "/a/b"]
    assert all(map(made.matches, paths)) and made.unmatched(paths) == ["deja"] and not made.matches("dej\u00e0")
    assert made.unmatched(["deja"]) == [TOGETHER, APART + ".txt", "x/d?j?", APART + "*.csv", TOGETHER + "/**"]


def test_a_glob_is_made_ready_once_and_a_name_never(monkeypatch):
    asked = []
    real = file_digests.segment_matcher
    monkeypatch.setattr(file_digests, "segment_matcher", lambda segment: asked.append(segment) or real(segment))
    names, globs = ["out/%d.txt" % number for number in range(50)], ["*%d.csv" % number for number in range(50)]
    paths = [*names, *("x%d.csv" % number for number in range(50)), "none"]
    made = file_digests.Patterns(names + globs)
    assert [path for path in paths if not made.matches(path)] == ["none"] and made.unmatched(paths) == []
    assert sorted(asked) == sorted(globs)
    assert not file_digests.path_matches("out/1.txt", "out/2.txt") and not file_digests.path_matches("a/1.txt", "b/*.txt") and len(asked) == len(globs)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has such names")
def test_a_name_that_is_not_utf8_is_refused_by_one_clear_line(project):
    project.write("data/in/good.txt", "x")
    try:
        with open(os.fsencode(str(project.path("data/in"))) + b"/bad\xff.txt", "wb") as file:
            file.write(b"x")
    except OSError as error:
        if error.errno == errno.EILSEQ:
            pytest.skip("this file system has no such names either")
        raise
    project.spec({"processor": "bin/stage_copy.py", "inputs": ["data/in/*.txt"]})
    refused = project.run("--run-id", "r")
    assert refused.code == 1, refused
    assert "[FAIL] s1: input 'data/in/bad\\udcff.txt': the name is not UTF-8 text here; rename it\n" in refused.out, refused
    assert "PYTHONUTF8=1" in file_digests._utf8_hint(os.fsdecode("ü".encode("utf-8")))       # as of a locale that reads names otherwise
    assert project.json("state/run_r.json")["stages"][0]["status"] == "failed"
    assert not project.exists("data/s1")
    assert "rename it" in project.ok("plan").out


def test_names_with_everything_else_reach_the_processor(project):
    names = ["with blank.txt", "[x].txt", "größe €.txt", "-rf.txt", "x;y.txt", "日本.txt"] + (["quote\".txt", "star*.txt", "new'line.txt"] if POSIX else [])
    for name in names:
        project.write("data/in/" + name, name)
    project.spec({"processor": "bin/stage_copy.py", "inputs": ["data/in/*"]})
    project.ok()
    assert sorted(one.name for one in project.path("data/s1").iterdir() if one.name[0] != ".") == sorted(names)
    assert all(project.read("data/s1/" + name) == name for name in names)


# --- the stat cache

COUNTER = """
import atexit, os, runpy, sys, traceback
atexit.register(int)    # or the process would end at once
reads = []
watched = sys.argv[1]
sys.addaudithook(lambda event, args: reads.append(traceback.extract_stack()) if event == "open" and isinstance(args[0], str) and args[0].endswith(watched) else None)
sys.argv = sys.argv[2:]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
import durable_files
durable_files.FLUSH_S = float(os.environ.get("FLUSH_S", durable_files.FLUSH_S))
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    print("\\n".join(" ".join(frame.name for frame in stack[-9:-1]) for stack in reads))
    print("reads: %d" % len(reads))
"""


def reads_of(project, name, *arguments):
    """Run the real program; return how often the runner itself opened the file *name*."""
    driver = project.write("counter.txt", COUNTER)
    done = subprocess.run([sys.executable, str(driver), name, str(RUNNER), "--pipeline", str(project.path("pipeline.json")), *arguments],
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=120)
    assert done.returncode == 0, done
    said = done.stdout.decode("utf-8", "replace")
    print(said)                         # where each read came from: pytest shows it when a test fails
    return int(said.rpartition("reads: ")[2])


def settle(path, folder):
    """Wait until a write of now gets a time stamp that *path* cannot have: some ticks of the file system's clock."""
    probe = folder / "probe"
    stat = path.stat()
    deadline = time.monotonic() + 20
    while True:
        probe.write_text("x")
        if probe.stat().st_mtime_ns > max(stat.st_mtime_ns, stat.st_ctime_ns) + file_digests.FRESH_NS:
            break
        assert time.monotonic() < deadline, "the file system's clock stands still"
        time.sleep(0.005)
    probe.unlink()


def test_content_is_hashed_once(project):
    project.write("data/big.bin", b"x" * (3 << 20))
    project.spec({"processor": project.processor("null", "open(out + '/o', 'w').write('o')\n"), "inputs": ["data/big.bin"]})
    assert reads_of(project, "big.bin") == 1
    assert reads_of(project, "big.bin") == 0
    assert reads_of(project, "big.bin", "--rehash") == 1
    assert reads_of(project, "big.bin") == 0
    os.utime(str(project.path("data/big.bin")), ns=(1, 1))
    assert reads_of(project, "big.bin") == 1                # one look for another signature ...
    assert reads_of(project, "big.bin") == 0                # ... which is then known


def test_a_cache_that_cannot_be_written_changes_nothing_about_the_run(project):
    project.write("data/a.txt", "x")
    project.spec({"name": "one", "processor": "bin/stage_copy.py", "inputs": ["data/a.txt"]}, {"name": "many", "processor": "bin/stage_copy.py", "forEach": "data/*.txt", "outputDir": "data/many"})
    for name in ("digests.json", "files_many.bin"):
        project.write("state/%s/in the way" % name, "")
    done = project.ok("--run-id", "r1")
    assert done.out.count("[NOTE] a cache is not written: ") == 2 and os.path.join("state", "digests.json: ") in done.out and "completed (2 ok" in done.out, done
    assert project.json("state/run_r1.json")["state"] == "completed" and project.ok("verify", "--outputs")
    assert "0 ok, 2 skipped" in project.ok().out


@pytest.mark.parametrize("flush_s", ["1e9", "-1"], ids=["at the end", "meanwhile"])
def test_an_output_is_hashed_once_by_its_maker_and_not_again_by_its_user(project, monkeypatch, flush_s):
    monkeypatch.setenv("FLUSH_S", flush_s)
    project.write("data/in.txt", "x")
    project.spec({"processor": project.processor("make", "open(out + '/made.bin', 'wb').write(b'm' * (3 << 20))\n"), "inputs": ["data/in.txt"], "outputDir": "data/a"},
                 {"processor": project.processor("use", "open(out + '/o', 'w').write('o')\n"), "inputs": ["data/a/made.bin"], "outputDir": "data/b"})
    # Twice: for the record, and once more to make it durable (a sync opens the file).
    assert reads_of(project, "made.bin") <= 2
    assert reads_of(project, "made.bin") == 0


def cached(root, boot="boot1", **options):
    (root / "state").mkdir(exist_ok=True)
    return Digests(str(root), boot, **options)


def store(digests):
    with open(digests.path, "wb") as file:
        file.write(digests.to_bytes())


def plant(root, path, digest, boot=""):
    """Store *digest* for the file as it is now: whoever then returns it has believed the cache."""
    stamp = file_digests.signature(os.stat(str(root / path)))
    (root / "state").mkdir(exist_ok=True)
    (root / "state" / "digests.json").write_text(json.dumps({"schema": 1, "files": {path: stamp + [digest, boot]}, "scans": {}}))


def true_digest(path):
    import hashlib
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_stored_digest_is_believed_while_the_signature_is_the_same(tmp_path):
    path = tmp_path / "f"
    path.write_text("abcd")
    plant(tmp_path, "f", "stored")
    assert cached(tmp_path).of("f")[0] == "stored"


@pytest.mark.parametrize("change", [
    lambda path: path.write_text("abcde"),
    lambda path: os.utime(str(path), ns=(path.stat().st_mtime_ns, path.stat().st_mtime_ns + 1000)),
    lambda path: (path.rename(path.with_name("old")), path.write_text("abcd"), os.utime(str(path), ns=(path.with_name("old").stat().st_mtime_ns,) * 2)),
], ids=["size", "time", "inode"])
def test_a_stored_digest_is_not_believed_for_another_signature(tmp_path, change):
    path = tmp_path / "f"
    path.write_text("abcd")
    plant(tmp_path, "f", "stored")
    change(path)
    assert cached(tmp_path).of("f")[0] == true_digest(path)


def test_a_mode_change_alone_is_seen_by_ctime(tmp_path):
    path = tmp_path / "f"
    path.write_text("abcd")
    settle(path, tmp_path)
    plant(tmp_path, "f", "stored")
    path.chmod(0o600 if path.stat().st_mode & 0o077 else 0o644)
    if POSIX:
        assert cached(tmp_path).of("f")[0] == true_digest(path)


def test_rehash_believes_nothing(tmp_path):
    (tmp_path / "f").write_text("abcd")
    plant(tmp_path, "f", "stored")
    assert cached(tmp_path, rehash=True).of("f")[0] == true_digest(tmp_path / "f")


@pytest.mark.parametrize("boot, stored", [("", True), ("boot1", True), ("boot0", False)])
def test_a_digest_of_what_was_not_synced_does_not_outlive_a_restart(tmp_path, boot, stored):
    (tmp_path / "f").write_text("abcd")
    plant(tmp_path, "f", "stored", boot)
    assert (cached(tmp_path, "boot1").of("f")[0] == "stored") is stored


def test_vouching_makes_a_digest_outlive_a_restart(tmp_path, monkeypatch):
    (tmp_path / "f").write_text("abcd")
    monkeypatch.setattr(Digests, "file_system_time", lambda self: (time.time_ns() + 10 ** 12, (tmp_path / "f").stat().st_dev))
    first = cached(tmp_path, "boot1")
    first.of("f")
    assert first.files["f"][6] == "boot1"
    first.vouch("f")
    store(first)
    assert cached(tmp_path, "boot2").files["f"][6] == ""
    first.vouch("never seen")
    assert "never seen" not in first.files


def test_outputs_are_vouched_for_after_they_were_synced_inputs_are_not(project):
    project.write("data/in.txt", b"x" * (2 << 20))
    project.spec({"processor": "bin/stage_copy.py", "inputs": ["data/in.txt"]})
    project.ok()
    files = project.json("state/digests.json")["files"]
    assert files["data/s1/in.txt"][6] == "" and files["data/in.txt"][6] != ""
    # Another boot: the runner finds other boot ids than its own and reads the inputs again.
    changed = json.dumps({"schema": 1, "scans": {}, "files": {"data/in.txt": files["data/in.txt"][:6] + ["another boot"], "data/s1/in.txt": files["data/s1/in.txt"]}})
    project.write("state/digests.json", changed)
    assert reads_of(project, "data/in.txt") == 1
    assert project.json("state/digests.json")["files"]["data/in.txt"][6] == files["data/in.txt"][6]


@pytest.mark.parametrize("age_ns, whole_seconds, kept", [
    (0, False, False), (5_000_000, False, False), (20_000_000, False, False), (20_000_100, False, True), (10 ** 9, False, True),
    (10 ** 9, True, False), (2 * 10 ** 9 + 100, True, True), (-10 ** 9, False, False),
])
def test_entries_too_fresh_to_tell_two_writes_apart_are_not_kept(tmp_path, monkeypatch, age_ns, whole_seconds, kept):
    """git's rule, by the file system's own clock, here injected: a second write could hide behind the same time stamp. Both times count."""
    monkeypatch.setattr(file_systems, "doubt_of", lambda device: file_systems.REMOTE)
    path = tmp_path / "f"
    path.write_text("abcd")
    future = (time.time_ns() // 10 ** 9 + 100) * 10 ** 9 + (0 if whole_seconds else 100)       # so that mtime is newer than ctime; NTFS counts in 100 ns
    os.utime(str(path), ns=(future, future))
    monkeypatch.setattr(Digests, "file_system_time", lambda self: (future + age_ns, path.stat().st_dev))
    digests = cached(tmp_path)
    assert digests.of("f")[0] == true_digest(path)
    assert ("f" in digests.files) is kept


def test_a_fresh_ctime_counts_however_old_mtime_is(tmp_path, monkeypatch):
    path = tmp_path / "f"
    path.write_text("abcd")
    os.utime(str(path), ns=(123, 123))
    monkeypatch.setattr(Digests, "file_system_time", lambda self: (path.stat().st_ctime_ns, path.stat().st_dev))
    digests = cached(tmp_path)
    digests.of("f")
    assert "f" not in digests.files         # Windows: the time of its creation


# Python 3.12 to 3.14 on Windows (python/cpython#157671): by its path, a file has the time of its creation as st_ctime, by its descriptor
# that of the last change.
TWO_TIMES = """
import os, runpy, sys, types
sys.path.insert(0, os.path.dirname(sys.argv[1]))
import file_digests
file_digests.sys = types.SimpleNamespace(platform="win32")
def by_path(look):
    def of(path, **more):
        found = look(path, **more)
        if isinstance(path, int):
            return found
        (numbers, more), earlier = found.__reduce__()[1], 5 * 10 ** 9
        return os.stat_result(numbers, dict(more, st_ctime=found.st_ctime - 5, st_ctime_ns=found.st_ctime_ns - earlier))
    return of
os.stat, os.lstat = by_path(os.stat), by_path(os.lstat)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_path_may_have_another_time_as_ctime_than_its_descriptor(project):
    copy = {"processor": project.processor("copy", "import shutil\nfor one in inputs:\n    shutil.copy(one, out)\n")}
    for name in "ab":
        project.write("in/%s.txt" % name, name + "\n")
    project.spec(dict(copy, inputs=["in/*.txt"]), dict(copy, forEach="in/*.txt"),
                 {"processor": "bin/stage_copy.py", "inputs": ["in/*.txt"], "chunks": {"bytes": 1}})

    def run(*arguments):
        argv = [sys.executable, "-c", TWO_TIMES, str(RUNNER), *arguments, "--pipeline", str(project.path("pipeline.json"))]
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=120)
        return done.returncode, (done.stdout + done.stderr).decode()
    code, told = run()
    assert code == 0 and "changes while it is read" not in told, told
    code, told = run("plan")
    assert code == 0 and told.count("SKIP") == 3, told
    code, told = run("verify", "--outputs")
    assert code == 0, told


def test_another_file_systems_clock_is_not_asked(tmp_path, monkeypatch):
    """A file on another device than state/: the machine's clock and the coarsest granularity count."""
    path = tmp_path / "f"
    path.write_text("abcd")
    monkeypatch.setattr(Digests, "file_system_time", lambda self: (path.stat().st_mtime_ns + 10 ** 12, -1))
    digests = cached(tmp_path)
    digests.of("f")
    assert "f" not in digests.files


def test_rewrites_of_the_same_size_within_one_tick_are_seen(tmp_path):
    """Real writes as quick as they come: whatever the kernel's clock does, the digest is that of the content."""
    path = tmp_path / "f"
    for number in range(300):
        with open(str(path), "r+b" if number else "wb") as file:
            file.write(b"%08d" % number)
        digests = cached(tmp_path)
        assert digests.of("f")[0] == true_digest(path), number
        store(digests)


def test_a_file_that_never_stays_the_same_is_named(tmp_path, monkeypatch):
    path = tmp_path / "f"
    path.write_text("abcd")
    real, count = file_digests.hash_file, []

    def hash_while_somebody_writes(full, heed):
        found = real(full)
        count.append(1)
        path.write_text("x" * len(count))
        return found[0], []

    monkeypatch.setattr(file_digests, "hash_file", hash_while_somebody_writes)
    with pytest.raises(file_digests.FileChanged) as caught:
        cached(tmp_path).of("f")
    assert str(caught.value).endswith("f") and len(count) == 3


@pytest.mark.parametrize("content", [
    b"", b"{", b"null", b"[]", b"7", b"\xff\xfe", b"[" * 100000, b'{"schema": 1}', b'{"schema": 99, "files": {}, "scans": {}}', b'{"schema": 1, "files": [], "scans": []}',
    b'{"schema": 1, "files": {"data/in.txt": 5, "bin/stage_copy.py": []}, "scans": {}}', b'{"schema": 1, "files": {"data/in.txt": null}, "scans": null}',
    b'{"schema": 1, "files": {"data/in.txt": [1, 2, 3, 4, 5, 6]}, "scans": {"x": 5}}',
], ids=range(13))
def test_a_damaged_cache_is_rebuilt(project, content):
    project.write("data/in.txt", "x")
    project.spec({"processor": "bin/stage_copy.py", "inputs": ["data/in.txt"]})
    project.ok()
    project.write("state/digests.json", content)
    assert "[SKIP] s1" in project.ok().out
    stored = project.json("state/digests.json")
    assert stored["schema"] == 1 and "bin/stage_copy.py" in stored["files"] and stored["scans"]


@pytest.mark.skipif(os.name == "nt", reason="links need a right on Windows")
def test_a_damaged_entry_of_an_output_that_is_a_link_is_no_entry(project):
    project.spec({"processor": project.processor("link", "os.symlink('x', os.path.join(out, 'o'))\n")})
    project.ok()
    stored = project.json("state/digests.json")
    stored["files"]["data/s1/o"] = [1]
    project.write("state/digests.json", json.dumps(stored))
    assert "[SKIP] s1" in project.ok().out


@pytest.mark.parametrize("damage", [
    {"refused": 5}, {"refused": [[1, "socket"]]}, {"refused": [["1", "socket", "x"]]}, {"warned": "x"}, {"warned": [5]}, {"imports": None}, {"imports": [1]}], ids=str)
def test_an_entry_of_another_form_in_the_cache_of_scans_is_made_anew(project, damage):
    project.spec({"processor": project.processor("p", "open(out + '/o', 'w')\n")})
    project.ok("plan")
    project.ok()
    stored = project.json("state/digests.json")
    damaged = {"schema": 1, "files": {}, "scans": {digest: dict(scan, **damage) for digest, scan in stored["scans"].items()}}
    project.write("state/digests.json", json.dumps(damaged))
    assert "scan: " in project.ok("scan", str(project.path("bin/p.py"))).out
    assert "[SKIP] s1" in project.ok(env={"PIPELINE_INDEX": "off"}).out
    assert project.json("state/digests.json")["scans"] != damaged["scans"]


def test_a_damaged_scan_in_the_cache_is_made_anew(project):
    project.write("data/in.txt", "x")
    project.spec({"processor": "bin/stage_copy.py", "inputs": ["data/in.txt"]})
    project.ok()
    stored = project.json("state/digests.json")
    stored["scans"] = {digest: 5 for digest in stored["scans"]}
    project.write("state/digests.json", json.dumps(stored))
    assert "[SKIP] s1" in project.ok().out
    assert all(isinstance(scan, dict) for scan in project.json("state/digests.json")["scans"].values())


def test_the_cache_forgets_what_is_no_longer_used(tmp_path):
    (tmp_path / "f").write_text("abcd")
    digests = cached(tmp_path)
    digests.of("f")
    digests.files = {"gone%d" % number: [0, 0, 0, 0, 0, "", ""] for number in range(1005)}
    assert set(json.loads(digests.to_bytes())["files"]) == set()
    digests.files = {"gone": [0, 0, 0, 0, 0, "", ""]}
    assert set(json.loads(digests.to_bytes())["files"]) == {"gone"}


def test_the_probe_of_the_clock_leaves_nothing(tmp_path):
    (tmp_path / "f").write_text("abcd")
    cached(tmp_path).of("f")
    assert os.listdir(str(tmp_path / "state")) == []


@pytest.mark.parametrize("ticks_s, waits, kept", [(0.03, 1, True), (0.1, 4, True), (9, 5, False)], ids=["in time", "late", "too late"])
def test_a_large_file_waits_for_a_clock_that_is_late_but_not_for_ever(tmp_path, monkeypatch, ticks_s, waits, kept):
    path = tmp_path / "f"
    path.write_bytes(b"x" * file_digests.SETTLE_BYTES)
    digests, written, slept = cached(tmp_path), path.stat(), []
    monkeypatch.setattr(file_digests.time, "sleep", slept.append)
    late = lambda self: (max(written.st_mtime_ns, written.st_ctime_ns) + (10 ** 9 if sum(slept) >= ticks_s else 0), written.st_dev)  # noqa: E731
    monkeypatch.setattr(Digests, "file_system_time", late)
    digests.of("f")
    assert len(slept) == waits and ("f" in digests.files) is kept


def test_no_wait_for_a_time_stamp_of_the_future(tmp_path, monkeypatch):
    path = tmp_path / "f"
    path.write_bytes(b"x" * file_digests.SETTLE_BYTES)
    digests, written = cached(tmp_path), path.stat()
    monkeypatch.setattr(Digests, "file_system_time", lambda self: (written.st_ctime_ns - 3600 * 10 ** 9, written.st_dev))    # a clock that was put back
    monkeypatch.setattr(file_digests.time, "sleep", lambda _: pytest.fail("it waits"))
    digests.of("f")
    assert "f" not in digests.files


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere the modification time counts, too")
@pytest.mark.parametrize("size", [4, file_digests.SETTLE_BYTES])
def test_a_file_whose_modification_time_is_of_the_future_is_read_once_and_again_when_it_has_changed(project, size):
    path = project.write("data/in.txt", "x" * size)
    later = (time.time_ns() // 10 ** 9 + 10 ** 8) * 10 ** 9 + 7
    project.spec({"processor": "bin/stage_copy.py", "inputs": ["data/in.txt"]})
    project.ok()
    os.utime(str(path), ns=(later, later))
    settle_change(path)
    assert [reads_of(project, "data/in.txt") for _ in range(3)] == [1, 0, 0]
    path.write_bytes(b"y" * size)
    os.utime(str(path), ns=(later, later))
    assert "[DONE] s1" in project.ok().out and path.stat().st_mtime_ns == later


def settle_change(path):
    """As conftest's settle(), by the time of the last change of status alone."""
    changed, probe = path.stat().st_ctime_ns, path.parent / ".probe"
    wait_until(lambda: probe.write_bytes(b"") == 0 and probe.stat().st_ctime_ns > changed + 50_000_000)
    probe.unlink()


@pytest.mark.parametrize("platform, doubt, mtime_s, ctime_s, settled", [
    ("linux", "", 10 ** 6, -1, True), ("linux", "", -9, 10 ** 6, False), ("linux", file_systems.REMOTE, 10 ** 6, -1, False), ("linux", file_systems.BY_ITS_TIMES, 10 ** 6, -1, False), ("linux", file_systems.LAYERED, 10 ** 6, -1, True),
    ("win32", "", 10 ** 6, -1, False), ("darwin", "", 10 ** 6, -1, False), ("darwin", "", -9, -1, True)])
@pytest.mark.parametrize("ours", [True, False])
def test_a_modification_time_of_the_future_matters_only_where_that_of_the_change_cannot_be_relied_on(monkeypatch, platform, doubt, mtime_s, ctime_s, settled, ours):
    now = time.time_ns() // S * S + 77
    mtime, ctime = now + mtime_s * S, now + ctime_s * S
    monkeypatch.setattr(file_digests, "LINUX", platform == "linux")
    monkeypatch.setattr(file_systems, "doubt_of", lambda device: doubt)
    if not ours:
        mtime, ctime = mtime - 1000 * S, ctime - (1000 * S if ctime_s < 0 else 0)
    assert file_digests.is_settled([1, mtime, ctime, 9, 5], now, 5 if ours else 6) == settled
    assert index_writer.Begin([(now, now, 5 if ours else 6)]).is_settled([mtime, ctime, 1, 9, 5]) == settled


@pytest.mark.parametrize("mtime, ctime, settled", [(7, 7, True), (0, 7, False), (7, 0, False), (0, 0, False)])
def test_times_of_whole_seconds_may_be_those_of_a_coarse_clock(monkeypatch, mtime, ctime, settled):
    monkeypatch.setattr(file_systems, "doubt_of", lambda device: "")
    now = OLD + S
    assert file_digests.is_settled([1, OLD + mtime, OLD + ctime, 9, 5], now, 5) == settled
    assert index_writer.Begin([(now, now, 5)]).is_settled([OLD + mtime, OLD + ctime, 1, 9, 5]) == settled


def test_what_was_hashed_while_it_was_written_is_known_by_the_time_of_its_contents(tmp_path, monkeypatch):
    """The other time is that of its renaming, and fresh."""
    path = tmp_path / "f"
    path.write_text("abcd")
    digests = cached(tmp_path)
    for mtime_s, is_known in ((3600, False), (-3600, True)):
        moment = time.time_ns() // S * S + mtime_s * S + 7
        os.utime(str(path), ns=(moment, moment))
        digests.know("f", true_digest(path))
        assert ("f" in digests.files) is is_known


def test_a_missing_name_is_told_with_the_encoding_where_that_may_be_why(tmp_path, monkeypatch):
    monkeypatch.setattr(file_digests.sys, "getfilesystemencoding", lambda: "iso8859-1")
    assert file_digests.resolve(str(tmp_path), ["gr\u00f6\u00dfe.txt", "plain.txt"])[1] == [
        "input gr\u00f6\u00dfe.txt (file names are iso8859-1 in this locale; if they are UTF-8, run with PYTHONUTF8=1): there is no such file",
        "input plain.txt: there is no such file"]


def test_the_clock_file_is_closed_by_name_and_not_left_to_the_end_of_the_object(tmp_path, monkeypatch):
    """A signal that comes while an object is taken apart is lost, and its traceback printed."""
    closed = []
    (tmp_path / "state").mkdir()
    digests = Digests(str(tmp_path), "boot1")
    assert digests.file_system_time()[1] == (tmp_path / "state").stat().st_dev
    held = digests._probe.descriptor if digests._probe is not None else None     # Windows: closed already
    monkeypatch.setattr(file_digests, "close_quietly", lambda descriptor: (closed.append(descriptor), os.close(descriptor)))
    digests.close()
    digests.close()
    assert closed == ([] if held is None else [held]) and not hasattr(file_digests._Probe, "__del__") and os.listdir(str(tmp_path / "state")) == []


# --- file systems that do not show each change of a file in its times

of_mounts = pytest.mark.skipif(not hasattr(os, "makedev"), reason="mounts, and the numbers that name their devices, are not there on Windows")
MOUNTS = """22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
41 22 8:17 / /media/stick rw,nosuid - exfat /dev/sdb1 rw,uid=1000
42 22 0:44 / /srv/with\\040blank rw - nfs4 server:/export rw
43 22 7:1 / /opt/image ro - squashfs /dev/loop1 ro
44 22 0:51 / /media/ntfs rw master:3 - fuseblk /dev/sdc1 rw
45 22 0:52 / /mnt/far rw - fuse.sshfs me@there:/ rw
46 22 0:53 / /mnt/upper rw - overlay overlay rw,lowerdir=/a,upperdir=/b
47 22 0:54 / /mnt/own rw - fuse.somebodys own rw
"""


@of_mounts
def test_which_mounts_there_is_a_doubt_of():
    of = {os.makedev(8, 17): file_systems.UNTOLD, os.makedev(0, 44): file_systems.REMOTE, os.makedev(7, 1): file_systems.UNTOLD, os.makedev(0, 51): file_systems.BY_ITS_TIMES,
          os.makedev(0, 52): file_systems.UNTOLD, os.makedev(0, 53): file_systems.LAYERED, os.makedev(0, 54): file_systems.BY_ITS_TIMES}
    assert file_systems.doubts(MOUNTS) == of and file_systems.doubts("") == {}


@pytest.mark.parametrize("device, doubt", [(0x1234, ""), (0xAB00000000 + 0x1234, ""), (0xFA7, file_systems.UNTOLD), (0xE0FA7, file_systems.UNTOLD), (0x50B, file_systems.REMOTE), (0x77, file_systems.REMOTE)],
                         ids=["NTFS", "NTFS, 64 bits", "FAT32", "exFAT", "share with a letter", "share without"])
def test_which_drives_of_windows_there_is_a_doubt_of(device, doubt):
    drives = [(0x1234, "NTFS", 0), (0xFA7, "FAT32", 0), (0xE0FA7, "exFAT", 0), (0x50B, "NTFS", file_systems.REMOTE_DRIVE)]
    assert file_systems.doubt_of_drive(device, drives) == doubt


def test_drives_of_windows_are_asked_for_without_a_dialog_and_those_far_away_last(monkeypatch):
    class Api:
        """kernel32: C: is NTFS, D: has no disk, F: is far away, G: is a stick."""

        volumes, modes = {"C:\\": (7, "NTFS"), "F:\\": (8, "NTFS"), "G:\\": (9, "FAT32")}, []

        def GetLogicalDrives(self):
            return 0b1101100

        def SetErrorMode(self, mode):
            self.modes.append(mode)

        def GetDriveTypeW(self, root):
            return 4 if root == "F:\\" else 3

        def GetVolumeInformationW(self, root, label, label_size, serial, longest, flags, name, name_size):
            if root not in self.volumes:
                return 0
            serial._obj.value, name.value = self.volumes[root]
            assert self.modes == [1] and name_size == len(name)
            return 1

    assert list(file_systems._drives(Api())) == [(7, "NTFS", 0), (9, "FAT32", 0), (8, "NTFS", 4)]
    monkeypatch.setattr(file_systems, "_known", {})
    monkeypatch.setattr(file_systems, "_drives", lambda: iter([(9, "FAT32", 0)]))
    monkeypatch.setattr(sys, "platform", "win32")
    assert [file_systems.doubt_of(9), file_systems.doubt_of(5)] == [file_systems.UNTOLD, file_systems.REMOTE]


ORDERS = """22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,discard
23 22 8:1 / /fast rw - ext4 /dev/sda1 rw,data=writeback
24 22 8:2 / /old rw - ext3 /dev/sda2 rw,data=ordered
25 22 8:3 / /none rw - ext4 /dev/sda3 rw
26 22 8:4 /sub /bound rw - xfs /dev/sda4 rw,attr2
27 22 0:44 / /srv/data rw - btrfs /dev/sdb rw,subvol=/
28 22 8:5 / /two rw - ext2 /dev/sda5 rw
29 22 0:53 / /upper rw - overlay overlay rw,upperdir=/b
"""


@of_mounts
def test_which_file_systems_keep_the_order_of_names(monkeypatch):
    """What is said of others is not so: after power cuts btrfs had renamed files and not what had been made before them."""
    monkeypatch.setattr(file_systems, "_mounts", lambda: ORDERS)
    monkeypatch.setattr(file_systems, "_has_journal", lambda device: device != os.makedev(8, 3))
    devices = [os.makedev(*numbers) for numbers in ((254, 0), (8, 2), (8, 4), (8, 1), (8, 3), (0, 44), (8, 5), (0, 53), (9, 9))]
    assert [file_systems.keeps_order(device) for device in devices] == [True] * 3 + [False] * 6
    monkeypatch.setattr(file_systems, "_mounts", lambda: "")
    assert not file_systems.keeps_order(os.makedev(254, 0))


@of_mounts
@pytest.mark.skipif(not os.path.isdir("/sys/dev/block"), reason="block devices as Linux shows them")
def test_a_journal_is_looked_for_under_the_devices_name(monkeypatch):
    seen = []
    monkeypatch.setattr(os.path, "isdir", lambda path: seen.append(path) or True)
    monkeypatch.setattr(os.path, "realpath", lambda path: {"/sys/dev/block/254:3": "/sys/devices/pci/virtio1/block/vda/vda3"}.get(path, path))
    assert file_systems._has_journal(os.makedev(254, 3)) and seen == ["/proc/fs/jbd2/vda3-8"]


@of_mounts
def test_what_is_mounted_later_is_looked_up_then_and_each_device_once(monkeypatch):
    texts = [MOUNTS.splitlines(True)[0].replace("254:0", "0:5"), MOUNTS]
    monkeypatch.setattr(file_systems, "_known", {})
    monkeypatch.setattr(file_systems, "_mounts", lambda: texts.pop(0))
    assert [file_systems.doubt_of(device) for device in (5, 5, os.makedev(8, 17), os.makedev(7, 1), 5)] == ["", "", file_systems.UNTOLD, file_systems.UNTOLD, ""] and texts == []


@of_mounts
@pytest.mark.parametrize("device, mounts, doubt", [(5, MOUNTS, file_systems.LAYERED), (5, "", ""), ("254:0", MOUNTS, "")])
def test_a_file_on_a_device_that_no_mount_tells_of_may_be_one_of_an_image_below(monkeypatch, device, mounts, doubt):
    """So it is in an overlay of layers that lie on several file systems."""
    monkeypatch.setattr(file_systems, "_known", {})
    monkeypatch.setattr(file_systems, "_mounts", lambda: mounts)
    assert file_systems.doubt_of(device if device == 5 else os.makedev(254, 0)) == doubt


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the list of mounts is Linux's")
def test_a_mount_whose_name_is_not_utf_8_is_no_problem(tmp_path, monkeypatch):
    listed = tmp_path / "mountinfo"
    listed.write_bytes(MOUNTS.replace("/media/stick", "/media/gr\u00fcn").encode("latin-1"))
    monkeypatch.setattr(file_systems, "_known", {})
    monkeypatch.setattr(file_systems, "open", lambda path, **how: io.open(str(listed) if path == "/proc/self/mountinfo" else path, **how), raising=False)
    assert file_systems.doubt_of(os.makedev(8, 17)) == file_systems.UNTOLD and file_systems.doubt_of(os.makedev(0, 44)) == file_systems.REMOTE


@pytest.mark.parametrize("doubt, mtime, ctime, ours, settled", [
    ("", OLD, OLD, True, True), ("", OLD, OLD, False, True), (file_systems.UNTOLD, OLD, OLD + S, True, False), (file_systems.BY_ITS_TIMES, OLD, OLD, True, False),
    (file_systems.BY_ITS_TIMES, OLD, OLD + S, True, True), (file_systems.BY_ITS_TIMES, OLD, -7, True, False), (file_systems.LAYERED, OLD, OLD, True, True),
    (file_systems.LAYERED, OLD, OLD - 7, True, False), (file_systems.LAYERED, OLD - 7, OLD - S - 7, False, False), (file_systems.LAYERED, "a minute ago", "a minute ago", False, True),
    (file_systems.REMOTE, OLD, OLD, False, True), (file_systems.REMOTE, "a minute ago", "a minute ago", False, False),
    ("", "a minute ago", "a minute ago", False, True), (file_systems.REMOTE, "a minute ago", "a minute ago", True, True)])
def test_no_digest_is_kept_where_a_change_might_not_show(monkeypatch, doubt, mtime, ctime, ours, settled):
    now = time.time_ns()
    mtime, ctime = [now - 60 * S + 7 if one == "a minute ago" else one + 7 for one in (mtime, ctime)]
    monkeypatch.setattr(file_systems, "doubt_of", lambda device: doubt if device == 5 else "")
    assert file_digests.is_settled([1, mtime, ctime, 9, 5], now, 5 if ours else 6) == settled
    begin = index_writer.Begin([(now, now, 5 if ours else 6)])
    assert begin.is_settled([mtime, ctime, 1, 9, 5]) == settled and begin.is_settled([OLD + 7, OLD + 7, 1, 9, 4])


DOUBTED = """
import os, runpy, sys
sys.path.insert(0, %r)
import file_systems
file_systems.doubt_of = lambda device: %r
sys.addaudithook(lambda event, what: event == "open" and str(what[0]).replace(os.sep, "/").endswith("in/a.txt") and os.write(1, b"read a.txt\\n"))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("stage", [{"inputs": ["in/*.txt"]}, {"forEach": "in/*.txt"}, {"inputs": ["in/*.txt"], "chunks": {"bytes": 1000}}])
@pytest.mark.parametrize("doubt", [file_systems.UNTOLD, ""])
def test_what_may_have_changed_unseen_is_read_in_each_run_and_nothing_else(project, stage, doubt):
    project.write("in/a.txt", "price 100")
    os.utime(str(project.path("in/a.txt")), ns=(OLD + 7, OLD + 7))
    project.spec(dict({"processor": "bin/stage_copy.py", "outputDir": "out"}, **stage))
    argv = [sys.executable, "-c", DOUBTED % (str(RUNNER.parent), doubt), str(RUNNER), "--pipeline", str(project.path("pipeline.json"))]
    for last in ("[DONE] s1", "[SKIP] s1", "[SKIP] s1"):
        out = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=project.environment(), timeout=60).stdout.decode("utf-8")
        assert last in out, out
    assert ("read a.txt" in out) == bool(doubt), out
