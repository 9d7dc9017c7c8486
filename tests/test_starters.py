"""init and new-stage: what they write runs, is skipped the second time, and passes its tests; what they refuse, and what stays as it was."""
from __future__ import annotations

import json
import ntpath
import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT, RUNNER, Done

import durable_files
import pipeline_runner
import spec_values
import starter_texts
import starters
from console import Console
from model import Options, UsageError

POSIX = sys.platform != "win32"


def command(*arguments, cwd, runner=None):
    """Run a runner (this one, unless told) in a folder, with arguments of its own."""
    argv = [sys.executable, str(runner or RUNNER), *map(str, arguments)]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=120, cwd=str(cwd))
    result = Done(argv, done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace"))
    assert "Traceback" not in result.err, result
    return result


def begin(folder, capsys):
    """init in this process; return what it printed."""
    assert pipeline_runner.main(["init", str(folder)]) == 0
    return capsys.readouterr().out


def files_of(folder):
    return {str(path.relative_to(folder)).replace(os.sep, "/"): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- init

@pytest.mark.parametrize("word, posix, windows", [
    ("../R&D", "'../R&D'", '"../R&D"'), ("meine nächte", "'meine nächte'", '"meine nächte"'), ("C:\\data\\x-1_2.d", None, "C:\\data\\x-1_2.d")])
def test_what_is_to_be_typed_is_one_word_for_the_shell(monkeypatch, word, posix, windows):
    monkeypatch.setattr(sys, "platform", "linux")
    assert posix is None or starters._shell_word(word) == posix
    monkeypatch.setattr(sys, "platform", "win32")
    assert starters._shell_word(word) == windows


def test_init_writes_what_runs_by_itself_is_skipped_and_passes_its_tests(tmp_path, capsys):
    """All with the copy of the runner that it wrote: nothing else is needed on the machine."""
    mine = tmp_path / "meine nächte"
    assert "next: cd " in begin(mine, capsys)
    own = mine / "src" / "pipeline_runner.py"
    first = command("--run-id", "a", cwd=mine, runner=own)
    assert first.code == 0 and "[DONE] clean" in first.out, first
    assert (mine / "data/clean/clean.txt").read_bytes() == b"The first line, with blanks to spare.\nThe third line; the second one is empty.\n"
    assert b'"line": 2, "reason": "empty line"' in (mine / "data/clean/clean.txt.rejects.jsonl").read_bytes()
    second = command(cwd=mine, runner=own)
    assert second.code == 0 and "(0 ok, 1 skipped, 0 failed)" in second.out, second
    tests = subprocess.run([sys.executable, "-m", "unittest"], cwd=str(mine), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60)
    assert tests.returncode == 0 and b"Ran 2 tests" in tests.stdout, tests.stdout
    # And that copy can begin another one.
    again = command("init", tmp_path / "another", cwd=mine, runner=own)
    assert again.code == 0 and files_of(tmp_path / "another").keys() == {path for path in files_of(mine) if not re.search(r"__pycache__|^state/[^.]|^locks/\.[^g]|^data/clean", path)}, again


def test_init_writes_the_runner_whole_and_the_folders_that_git_would_forget(tmp_path, capsys):
    begin(tmp_path / "mine", capsys)
    made = files_of(tmp_path / "mine")
    own = {"src/" + path for path in files_of(ROOT / "src") if path.endswith(".py")}
    assert own <= made.keys() and all(made[path] == (ROOT / path).read_bytes() for path in own)
    assert {"pipeline.json", "pipeline.schema.json", "bin/processor_kit.py", "bin/stage_clean.py", "data/input/sample.txt", "state/.gitkeep", "locks/.gitkeep",
            ".gitignore", "README.md", "tests/__init__.py", "tests/test_stage_clean.py"} <= made.keys()
    assert made["bin/processor_kit.py"] == (ROOT / "bin" / "processor_kit.py").read_bytes()
    assert json.loads(made["pipeline.json"])["$schema"] == "./pipeline.schema.json"
    assert not [path for path, data in made.items() if not path.endswith(".png") and b"\r" in data or re.search(rb"@[A-Z]+@", data) and not path.startswith("src/starter")]
    assert made["README.md"].count(b"\n") <= 20


@pytest.mark.skipif(not POSIX, reason="names that Windows does not allow")
@pytest.mark.parametrize("name, expected", [("nightly", "nightly"), ("Über Nacht", "ber_Nacht"), ("日本", "pipeline"), ("con", "pipeline"), (".x.", "x"), ("a" * 80, "a" * 64),
                                            ("a" * 63 + ".b", "a" * 63)])
def test_the_pipeline_has_the_folders_name_where_that_is_a_name(name, expected):
    found = starters._pipeline_name("/somewhere/" + name)
    assert found == expected and not spec_values.name_problem(found)


@pytest.mark.parametrize("names, message", [
    (["a"], "the folder is not empty, it has a; choose another folder, or move them away"),
    ([".hidden", "b"], "it has .hidden, b; "),
    (list("gfedcba"), "it has a, b, c, d, e and 2 more; "),
])
def test_init_refuses_a_folder_that_is_not_empty_and_names_what_is_in_the_way(tmp_path, capsys, names, message):
    for name in names:
        (tmp_path / name).write_bytes(b"mine")
    assert pipeline_runner.main(["init", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and message in err and err.count("\n") == 1
    assert files_of(tmp_path) == {name: b"mine" for name in names}


def test_all_links_of_the_documents_that_init_writes_lead_to_a_file(tmp_path, capsys):
    assert pipeline_runner.main(["init", str(tmp_path / "made")]) == 0
    pages = sorted((tmp_path / "made").glob("**/*.md"))
    links = [(page, target) for page in pages for target in re.findall(r"\]\(([^)#\s]+)", re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S))]
    assert len(links) > 10 and [(page.name, target) for page, target in links if not (page.parent / target).is_file()] == []


def test_init_refuses_a_file(tmp_path, capsys):
    (tmp_path / "x").write_bytes(b"mine")
    assert pipeline_runner.main(["init", str(tmp_path / "x")]) == 2
    assert "it is not a folder" in capsys.readouterr().err and files_of(tmp_path) == {"x": b"mine"}


def test_init_where_nobody_may_write_says_so(tmp_path, capsys):
    (tmp_path / "x").write_bytes(b"mine")
    assert pipeline_runner.main(["init", str(tmp_path / "x" / "y" / "z")]) == 2
    err = capsys.readouterr().err
    assert "it cannot be made there (" in err and "choose a place where you may write" in err and err.count("\n") == 1 and files_of(tmp_path) == {"x": b"mine"}


def test_init_fills_an_empty_folder_that_holds_a_repository_and_stays_in_it(tmp_path, capsys, monkeypatch):
    (tmp_path / ".git").mkdir()
    monkeypatch.chdir(str(tmp_path))
    before = os.stat(".").st_ino
    assert pipeline_runner.main(["init", "."]) == 0
    assert os.stat(str(tmp_path)).st_ino == before
    assert "pipeline.json" in os.listdir(".") and not [name for name in os.listdir(".") if name.startswith(".tmp")]


@pytest.mark.parametrize("is_there", [False, True], ids=["new folder", "empty folder"])
def test_an_init_that_fails_leaves_nothing(tmp_path, capsys, monkeypatch, is_there):
    target = tmp_path / "mine"
    if is_there:
        target.mkdir()
    write, count = durable_files.write_new, [0]

    def full_disk(path, data, durable=True, mode=0o666):
        count[0] += 1
        if count[0] == 20:
            raise OSError(28, "No space left on device", path)
        write(path, data, durable, mode)

    monkeypatch.setattr(durable_files, "write_new", full_disk)
    assert pipeline_runner.main(["init", str(target)]) == 5
    assert "No space left on device" in capsys.readouterr().err
    assert [str(path) for path in tmp_path.rglob("*")] == ([str(target)] if is_there else [])


def test_init_from_half_a_copy_says_what_is_missing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(starters, "_HOME", str(tmp_path / "half"))
    assert pipeline_runner.main(["init", str(tmp_path / "mine")]) == 2
    assert "this copy of the runner is not whole: " in capsys.readouterr().err and not (tmp_path / "mine").exists()


# --- new-stage

KINDS = ["lines", "blocks", "files", pytest.param("shell", marks=pytest.mark.skipif(not POSIX, reason="writes PowerShell there"))]


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_stage_runs_is_skipped_and_passes_its_test(project, kind):
    project.write("data/in.txt", "Eins  zwei\nDREI\n")
    project.spec({"name": "first", "processor": "bin/stage_copy.py", "inputs": ["data/in.txt"]})
    done = project.ok("new-stage", "neu-1", "--kind", kind, cwd=str(project.root))
    entry = project.json("pipeline.json")["stages"][1]
    assert entry["inputs"] == ["data/s1/*.txt"] and entry["outputDir"] == "data/neu-1", entry
    assert "stage neu-1, after first; it reads data/s1/*.txt and writes to data/neu-1" in done.out, done
    assert "[DONE] neu-1" in project.ok().out
    expected = {"lines": "Eins zwei\nDREI\n", "blocks": "eins  zwei\ndrei\n", "files": "in.txt\t2\t16\n", "shell": "DREI\nEins  zwei\n"}
    assert project.read("data/neu-1/neu-1.txt") == expected[kind]
    assert "(0 ok, 2 skipped, 0 failed)" in project.ok().out
    # Both ways in which the test may be called: by its name, as the command says, and found.
    named = re.search(r" -m (unittest .*)", done.out).group(1).split()
    for words in (named, ["unittest"]):
        tests = subprocess.run([sys.executable, "-m", *words], cwd=str(project.root), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60)
        assert tests.returncode == 0 and re.search(rb"Ran [12] tests?", tests.stdout), tests.stdout


@pytest.mark.parametrize("kind", [kind for kind in starter_texts.KINDS if kind not in ("shell", "powershell")])
def test_the_tests_fail_when_the_processor_does_something_else(tmp_path, kind):
    processor, files = starters._stage_files("x", kind)
    for path, (data, _) in files.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(data)
    (tmp_path / "bin" / processor).write_bytes(b"import os\nopen(os.path.join(os.environ['PIPELINE_OUTPUT_DIR'], 'x.txt'), 'w').close()\n")
    test = next(path for path in files if path.startswith("tests/"))
    assert subprocess.run([sys.executable, "-m", "unittest", test], cwd=str(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60).returncode == 1


def test_on_windows_a_shell_stage_is_powershell(tmp_path, capsys, monkeypatch):
    root = a_spec(tmp_path, '{"name": "p", "stages": [{"name": "a", "processor": "bin/a.py", "outputDir": "o"}]}')
    monkeypatch.setattr(starters.sys, "platform", "win32")
    monkeypatch.setattr(starters.stage_locks, "try_kernel_lock", lambda descriptor: True)
    assert starters.do(Options("new-stage", ["b"], str(root / "pipeline.json"), None, "r", frozenset(), frozenset(), None, None, {}, False, False, kind="shell"),
                       Console(), pipeline_runner.load_pipeline) == 0
    monkeypatch.undo()
    assert json.loads((root / "pipeline.json").read_bytes())["stages"][1]["processor"] == "bin/stage_b.ps1"
    assert b"$env:PIPELINE_OUTPUT_DIR" in (root / "bin" / "stage_b.ps1").read_bytes() and b'"-File"] + [PROCESSOR' in (root / "tests" / "test_stage_b.py").read_bytes()
    assert b'[shutil.which("pwsh") or "powershell"' in (root / "tests" / "test_stage_b.py").read_bytes()    # as the runner does: 5.1 started from 7 misses its modules
    compile((root / "tests" / "test_stage_b.py").read_bytes(), "test", "exec")
    assert b"\nimport os\nimport shutil\nimport subprocess\n" in (root / "tests" / "test_stage_b.py").read_bytes()


def test_what_leads_to_a_new_pipeline_leads_to_its_drive(monkeypatch):
    """cd of cmd.exe stays on the drive that it is on."""
    monkeypatch.setattr(starters.os, "path", ntpath)
    assert starters._change_folder("D:\\nightly", "C:\\runner") == "pushd"
    assert starters._change_folder("c:\\nightly", "C:\\runner") == "cd"


def a_spec(root, text):
    (root / "bin").mkdir(exist_ok=True)
    (root / "bin" / "a.py").write_bytes(b"pass\n")
    (root / "pipeline.json").write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
    return root


def new_stage(root, name, *more):
    return pipeline_runner.main(["new-stage", name, "--pipeline", str(root / "pipeline.json"), *more])


ONE = '{"name": "a", "processor": "bin/a.py", "outputDir": "o"}'
ENTRY = '{"name": "b", "processor": "bin/stage_b.py", "inputs": ["o/*.txt"], "outputDir": "data/b"}'
TEXTS = {
    "all on one line": ('{"name": "p", "stages": [%s]}' % ONE, '{"name": "p", "stages": [%s, %s]}' % (ONE, ENTRY)),
    "a line a stage": ('{"name": "p",\n "stages": [\n   %s\n ]}\n' % ONE, '{"name": "p",\n "stages": [\n   %s,\n   %s\n ]}\n' % (ONE, ENTRY)),
    "tabs": ('{\n\t"stages": [\n\t\t{\n\t\t\t"outputDir": "o",\n\t\t\t"name": "a", "processor": "bin/a.py"}\n\t], "name": "p"\n}',
             '{\n\t"stages": [\n\t\t{\n\t\t\t"outputDir": "o",\n\t\t\t"name": "a", "processor": "bin/a.py"},\n\t\t{\n\t\t\t"name": "b",\n\t\t\t"processor": "bin/stage_b.py",\n'
             '\t\t\t"inputs": ["o/*.txt"],\n\t\t\t"outputDir": "data/b"\n\t\t}\n\t], "name": "p"\n}'),
    "odd blanks and lines of Windows": ('{ "x-ü" : "\u2028" ,\r\n "stages" :[\r\n   {\r\n     "name":"a" , "processor":"bin/a.py", "x-]": "}]", \r\n     "outputDir":"o"}   \r\n]   , "name":"p" }\r\n',
                                        '{ "x-ü" : "\u2028" ,\r\n "stages" :[\r\n   {\r\n     "name":"a" , "processor":"bin/a.py", "x-]": "}]", \r\n     "outputDir":"o"},\r\n   {\r\n     "name": "b",\r\n'
                                        '     "processor": "bin/stage_b.py",\r\n     "inputs": ["o/*.txt"],\r\n     "outputDir": "data/b"\r\n   }   \r\n]   , "name":"p" }\r\n'),
    "the bracket and the brace on one line": ('{"name": "p", "stages": [{\n  "name": "a",\n  "processor": "bin/a.py", "outputDir": "o"\n}]}',
                                              '{"name": "p", "stages": [{\n  "name": "a",\n  "processor": "bin/a.py", "outputDir": "o"\n}, %s]}' % ENTRY),
}


@pytest.mark.parametrize("before, after", TEXTS.values(), ids=TEXTS.keys())
def test_the_spec_is_edited_as_text(tmp_path, capsys, before, after):
    root = a_spec(tmp_path, before)
    assert new_stage(root, "b", "--kind", "files") == 0, capsys.readouterr().err
    assert (root / "pipeline.json").read_bytes().decode("utf-8") == after


def test_inputs_are_what_the_last_stage_makes(tmp_path, capsys):
    root = a_spec(tmp_path, '{"name": "p", "stages": [{"name": "a", "processor": "bin/a.py", "outputDir": "o", "outputs": ["x/*.csv", "y"]}]}')
    (root / "data" / "b").mkdir(parents=True)
    (root / "data" / "b" / "users.txt").write_bytes(b"a file of the user's")
    (root / "data" / "b-2").mkdir()
    (root / "data" / "b-2" / "result.csv").write_bytes(b"1")
    assert new_stage(root, "b", "--kind", "files") == 0 and new_stage(root, "c") == 0
    _, b, c = json.loads((root / "pipeline.json").read_bytes())["stages"]
    assert b["inputs"] == ["o/x/*.csv", "o/y"] and b["outputDir"] == "data/b-3"             # not among files that are somebody's
    assert c["inputs"] == ["data/b-3/*.txt"]
    (root / "data" / "c").mkdir()
    (root / "data" / "c" / "only.csv").write_bytes(b"1")
    assert new_stage(root, "d") == 0 and json.loads((root / "pipeline.json").read_bytes())["stages"][3]["inputs"] == ["data/c/*"]


def test_defaults_that_are_meant_for_other_stages_do_not_get_into_the_new_one(project):
    project.write("data/in.txt", "b\na\n")
    project.spec({"name": "first", "processor": "bin/stage_copy.py", "inputs": ["data/in.txt"]}, defaults={"outputs": ["in.txt"], "args": ["-v"], "retry": {"attempts": 2}, "chunks": None})
    kind = "shell" if POSIX else "lines"
    project.ok("new-stage", "two", "--kind", kind)
    entry = project.json("pipeline.json")["stages"][1]
    assert entry["outputs"] is None and entry["args"] == [] and "chunks" not in entry and entry["inputs"] == ["data/s1/in.txt"]
    assert "[DONE] two" in project.ok().out


@pytest.mark.parametrize("defaults", [{"maxFailedTasks": 2}, {"prune": True}], ids=str)
def test_a_stage_that_is_made_under_defaults_for_stages_of_tasks_is_valid(project, defaults):
    project.write("data/in.txt", "b\na\n")
    project.spec({"name": "first", "processor": "bin/stage_copy.py", "forEach": "data/in.txt"}, defaults=defaults)
    project.ok("new-stage", "two", "--kind", "files")
    project.ok("validate")
    assert "[DONE] two" in project.ok().out


def test_under_defaults_with_tasks_for_all_stages_none_is_made(project):
    """It would make the same file in each task, and "defaults" is the place of a forEach that a stage cannot do without."""
    project.write("data/in.txt", "b\na\n")
    project.spec({"name": "first", "processor": "bin/stage_copy.py"}, defaults={"forEach": "data/*.txt"})
    before = project.snapshot()
    done = project.run("new-stage", "two")
    assert done.code == 2 and done.err == ("error: new-stage two: \"defaults\" has forEach, and what would be made takes all inputs at once; "
                                           "write forEach into the stages that it is meant for\n"), done
    assert project.snapshot() == before


@pytest.mark.parametrize("words, in_the_way, message", [
    (["a"], None, "new-stage a: there is a stage a already; choose another name"),
    (["A"], None, "there is a stage a already"),
    (["a b"], None, 'new-stage "a b": the name must be 1 to 64 of the characters'),
    (["nul"], None, "is a device name on Windows"),
    (["b"], "bin/stage_b.py", "new-stage: bin/stage_b.py is in the way; move it, or choose another name"),
    (["b"], "tests/test_stage_b.py", "tests/test_stage_b.py is in the way"),
    (["a.b"], "tests/test_stage_a_b.py", "tests/test_stage_a_b.py is in the way"),
])
def test_what_new_stage_refuses_changes_nothing(tmp_path, capsys, words, in_the_way, message):
    root = a_spec(tmp_path, TEXTS["tabs"][0])
    if in_the_way:
        (root / in_the_way).parent.mkdir(exist_ok=True)
        (root / in_the_way).write_bytes(b"mine")
    before = files_of(root)
    assert new_stage(root, *words) == 2
    out, err = capsys.readouterr()
    assert out == "" and message in err and err.count("\n") == 1 and files_of(root) == before


def test_a_spec_that_is_not_valid_is_not_touched_and_all_its_problems_are_told(tmp_path, capsys):
    root = a_spec(tmp_path, '{"name": "p", "stages": [{"name": "a", "procesor": "x", "outputDir": 7}]}')
    before = files_of(root)
    assert new_stage(root, "b") == 2
    err = capsys.readouterr().err
    assert 'did you mean "processor"?' in err and "outputDir: must be text" in err and "the key \"processor\" is missing" in err and files_of(root) == before


def test_a_stage_never_hides_a_module_of_the_library(tmp_path, capsys):
    root = a_spec(tmp_path, TEXTS["tabs"][0])
    assert new_stage(root, "json") == 0 and not (root / "bin" / "json.py").exists() and (root / "bin" / "stage_json.py").exists()
    assert new_stage(root, "stage_two") == 0 and (root / "bin" / "stage_two.py").exists()


def test_the_spec_is_written_last_and_a_killed_command_goes_on(tmp_path, capsys, monkeypatch):
    root = a_spec(tmp_path, TEXTS["tabs"][0])
    before, write, order = (root / "pipeline.json").read_bytes(), durable_files.write_atomic, []

    def until_the_spec(path, data, *more, **named):
        order.append(os.path.basename(path))
        if path.endswith("pipeline.json") and len(order) < 6:
            raise OSError(28, "No space left on device", path)
        write(path, data, *more, **named)

    monkeypatch.setattr(durable_files, "write_atomic", until_the_spec)
    assert new_stage(root, "b") == 5
    assert order == ["stage_b.py", "test_stage_b.py", "__init__.py", "processor_kit.py", "pipeline.json"]
    assert (root / "pipeline.json").read_bytes() == before and pipeline_runner.main(["validate", "--pipeline", str(root / "pipeline.json")]) == 0
    capsys.readouterr()
    assert new_stage(root, "b") == 0 and order[5:] == ["pipeline.json"]         # what is already written is not in the way


def test_a_spec_that_was_changed_meanwhile_is_left_alone(tmp_path, monkeypatch):
    root = a_spec(tmp_path, TEXTS["tabs"][0])
    with pytest.raises(UsageError, match="was changed meanwhile"):
        starters._replace_spec(str(root / "pipeline.json"), b"something else", "x")
    assert (root / "pipeline.json").read_bytes().decode("utf-8") == TEXTS["tabs"][0]


@pytest.mark.skipif(not POSIX, reason="links and modes")
def test_a_linked_spec_stays_a_link_and_keeps_its_mode(tmp_path, capsys):
    root = a_spec(tmp_path, TEXTS["tabs"][0])
    (root / "pipeline.json").rename(root / "real.json")
    (root / "real.json").chmod(0o660)
    (root / "pipeline.json").symlink_to("real.json")
    assert new_stage(root, "b") == 0
    assert (root / "pipeline.json").is_symlink() and (root / "real.json").stat().st_mode & 0o777 == 0o660
    assert len(json.loads((root / "real.json").read_bytes())["stages"]) == 2


def test_the_texts_are_those_of_the_processors_kit():
    """Each template names what it writes, and nothing is left unfilled."""
    for kind in starter_texts.KINDS:
        _, files = starters._stage_files("some.name", kind)
        for data, _ in files.values():
            assert b"@" not in data.replace(b'"$@"', b"") and b"some.name" in data


def test_several_new_stages_at_once_are_all_in_the_file(project):
    project.write("data/in.txt", "x")
    project.spec({"processor": project.processor("p", ""), "inputs": ["data/in.txt"]})
    started = [project.start("new-stage", "n%d" % number) for number in range(6)]
    for process in started:
        with process:
            assert process.communicate(timeout=60)[1] == b"" and process.returncode == 0
    assert sorted(one["name"] for one in project.json("pipeline.json")["stages"][1:]) == ["n%d" % number for number in range(6)]


def test_what_a_killed_init_has_left_is_told_as_that(tmp_path, capsys):
    (tmp_path / "new" / ".tmp-be212b8c").mkdir(parents=True)
    with pytest.raises(UsageError, match="it has .tmp-be212b8c; an init that was killed has left that: remove it and run again"):
        starters.do(Options("init", [str(tmp_path / "new")], "pipeline.json", None, "r", frozenset(), frozenset(), None, None, {}, False, False), Console(), None)
