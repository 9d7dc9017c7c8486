"""The documents: every command in README.md, and on the pages that promise it, is run in a copy of the repository, and prints what they say.

A page promises it with the comment RUNNABLE near its top. A block that follows `<!-- file: NAME -->` is written to that file first.
"""
from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

RUNNABLE = "<!-- Every command on this page is run by the tests. -->"
FENCE = re.compile(r"(?:<!-- (?P<note>[^>]*) -->\n)?```(?P<kind>\w+)\n(?P<text>.*?)```", re.S)
# What differs from run to run.
VARYING = ((re.compile(r"\d+\.\d+s\b"), "N s"), (re.compile(r"\bkey [0-9a-f]{12}\b"), "key K"), (re.compile(r"from line \d{3,}"), "from line N"),
           (re.compile(r"(?:[0-9a-f]{4}-){7}[0-9a-f]{4}"), "H"), (re.compile(r"pid \d+"), "pid P"))
PAGES = {str(path.relative_to(ROOT)).replace(os.sep, "/"): path.read_bytes().decode("utf-8") for path in [ROOT / "README.md"] + sorted((ROOT / "docs").glob("*.md"))}
README, REFERENCE = PAGES["README.md"], PAGES["docs/reference.md"]
RUN = [name for name, text in PAGES.items() if name == "README.md" or RUNNABLE in text]


def blocks(text):
    return [(match["kind"], match["note"] or "", match["text"]) for match in FENCE.finditer(text)]


def plain(text: str) -> str:
    for pattern, word in VARYING:
        text = pattern.sub(word, text)
    # bash's own word on the job that was killed
    return "\n".join(line.rstrip() for line in text.splitlines() if "Killed" not in line)


@pytest.fixture
def copy(tmp_path):
    """A clean copy of what a clone holds, and an environment in whose PATH `python` is this interpreter."""
    root = tmp_path / "a clone"
    for folder in ("src", "bin", "data/input", "docs"):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__", "big.txt"))
    for folder in ("data/work", "data/output", "state", "locks"):
        (root / folder).mkdir(parents=True)
    for name in ("pipeline.json", "pipeline.schema.json"):
        shutil.copy(ROOT / name, root)
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("python", "python3"):
        (tools / name).write_text('#!/bin/sh\nexec "%s" "$@"\n' % sys.executable, encoding="utf-8")
        (tools / name).chmod(0o755)
    return root, dict(os.environ, PATH="%s%s%s" % (tools, os.pathsep, os.environ["PATH"]), LC_ALL="C.UTF-8")


def run_block(copy, text: str):
    """Run the `$` lines of a console block in one shell; return (what the page shows, what they printed)."""
    root, env = copy
    commands = [line[2:] for line in text.splitlines() if line.startswith("$ ")]
    shown = "\n".join(line for line in text.splitlines() if not line.startswith("$ "))
    done = subprocess.run(["bash", "-c", "\n".join(commands)], cwd=root, env=env, stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120)
    return plain(shown), plain(done.stdout.decode("utf-8"))


@pytest.mark.skipif(sys.platform == "win32", reason="the console blocks are for bash")
@pytest.mark.parametrize("page", RUN)
def test_every_command_prints_what_the_page_says(copy, page):
    root, _ = copy
    ran = 0
    for kind, note, text in blocks(PAGES[page]):
        if note.startswith("file: "):
            (root / note[len("file: "):]).write_bytes(text.encode("utf-8"))
        elif kind == "console":
            expected, printed = run_block(copy, text)
            assert printed == expected, text
            ran += 1
    assert ran
    if page == "README.md":
        # What the interrupted and resumed run has made is what an undisturbed one makes.
        wanted = b"".join((root / "data" / "input" / name).read_bytes() for name in ("big.txt", "sample.txt"))
        assert (root / "data" / "output" / "result.txt").read_bytes().decode("utf-8") == wanted.decode("utf-8").upper()


def test_pages_that_are_run():
    assert {"README.md", "docs/reference.md", "docs/security.md", "docs/guarantees.md"} <= set(RUN)


def test_the_processor_in_the_readme_is_the_one_that_init_writes():
    import starter_texts
    shown = next(text for kind, _, text in blocks(README) if kind == "python")
    written = starter_texts.filled(starter_texts.LINES, {"NAME": "clean"}).decode("utf-8")

    def code(text):
        return [line for line in text.replace("def change(", "def clean(").replace("lines(change,", "lines(clean,").splitlines() if line and not line.lstrip().startswith(("#", '"""'))]
    assert code(shown) == code(written)


def test_the_readme_stays_short():
    assert README.count("\n") <= 160


def test_the_powershell_command_is_the_same_as_the_bash_command():
    bash = next(text for kind, _, text in blocks(README) if kind == "console").splitlines()[0][len("$ python "):]
    powershell = next(text for kind, _, text in blocks(README) if kind == "powershell").splitlines()[0][len("PS> py "):]
    assert powershell.replace("\\", "/") == bash


# --- the reference names all that there is

def section(title):
    """Return the text below a heading of the reference, up to the next of its level or above."""
    level, _, rest = re.search(r"(?m)^(#+) (%s)\n((?:.|\n)*)" % re.escape(title), REFERENCE).groups()
    return re.split(r"(?m)^#{1,%d} " % len(level), rest)[0]


def first_cells(text):
    return " ".join(line.split("|")[1] for line in text.splitlines() if line.startswith("| "))


def named(text):
    """Return the words in backquotes in the first column of a section's tables."""
    return {word for quoted in re.findall(r"`([^`]+)`", first_cells(text)) for word in [quoted.split(" ")[0].split("…")[0]]}


def test_the_reference_has_every_key_of_the_spec():
    import spec_checks
    assert named(section("Top level")) == set(spec_checks.PIPELINE_KEYS) | {"x-"}
    assert named(section("A stage") + section("A stage of several tasks")) == set(spec_checks.STAGE_CHECKS) | {"x-"}


def test_the_reference_has_the_defaults_of_the_program():
    import json

    import spec_checks
    checked = 0
    for line in (section("A stage") + section("A stage of several tasks")).splitlines():
        cells = line.split("|")
        if len(cells) > 3 and re.fullmatch(r" `\w+` ", cells[1]) and cells[2].startswith(" `"):
            assert json.loads(cells[2].strip(" `")) == spec_checks.STAGE_DEFAULTS[cells[1].strip(" `")] or "chunks" in cells[1], line
            checked += 1
    assert checked > 15


def test_the_reference_and_the_help_have_every_command_and_option():
    import command_line
    options = {name for name in command_line.VALUED + command_line.FLAGS if name not in ("-h", "--help", "--version")}
    commands = section("Commands")
    assert named(section("Options")) | {"--dry-run"} == options
    assert named(commands[:commands.index("| `--kind`")]) - {"--dry-run"} == set(command_line.COMMANDS)
    assert named(commands[commands.index("| `--kind`"):]) - {"--kind", "new-stage"} == set(command_line.KINDS)
    for name in options | set(command_line.COMMANDS) | {"--help", "--version"}:
        assert re.search(r"(?m)(^  |, )%s( |,|$)" % re.escape(name), command_line.USAGE), name


def test_the_reference_has_every_exit_code():
    import command_line
    import model
    known = {str(getattr(model, name)) for name in dir(model) if name.startswith("EXIT_")} | {"7", "129", "130", "143"}
    assert set(re.findall(r"\d+", first_cells(section("Exit codes")))) == known
    for code in known:
        assert re.search(r"(?m)^  (.*  )?%s [a-z]" % code, command_line.USAGE[command_line.USAGE.index("exit codes"):]), code


def test_the_reference_has_every_variable_that_a_processor_gets():
    source = "".join(path.read_bytes().decode("utf-8") for path in list((ROOT / "src").rglob("*.py")) + [ROOT / "bin" / "processor_kit.py"])
    constants = set(re.findall(r"(?m)^(PIPELINE_[A-Z_]+)[ ,=]", source))
    found = set(re.findall(r"\bPIPELINE_[A-Z]+(?:_[A-Z]+)*\b(?!_)", source)) - constants
    assert len(found) > 15
    for name in found:
        assert "`%s`" % name in section("The processor's contract"), name


def test_the_reference_has_every_variable_that_the_runner_heeds():
    source = "".join(path.read_bytes().decode("utf-8") for path in list((ROOT / "src").rglob("*.py")) + [ROOT / "bin" / "processor_kit.py"])
    read = set(re.findall(r'environ\.get\("(\w+)"', source)) | set(re.findall(r'(?m)^[A-Z_]+ = "((?:OPENLINEAGE|PIPELINE)_[A-Z_]+)"', source))
    assert {"NO_COLOR", "OPENLINEAGE_NAMESPACE", "PIPELINE_INDEX"} <= read
    for name in read - {"PATH", "COMPUTERNAME", "USERNAME", "SystemRoot"}:        # the system's own, and Python's
        assert name.startswith("PYTHON") or "`%s`" % name in REFERENCE, name


def test_the_reference_has_every_function_of_the_kit():
    import ast
    tree = ast.parse((ROOT / "bin" / "processor_kit.py").read_bytes())
    public = {node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")}
    for name in public:
        assert name in section("The kit"), name


# --- links

@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    anchors = {}

    def anchors_of(name):
        text = re.sub(r"```.*?```", "", PAGES[name], flags=re.S)
        anchors.setdefault(name, {re.sub(r"[^\w -]", "", line.lstrip("# ").strip().lower()).replace(" ", "-") for line in text.splitlines() if line.startswith("#")})
        return anchors[name]

    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", PAGES[page], flags=re.S)):
        path, _, anchor = target.partition("#")
        full = os.path.normpath(os.path.join(os.path.dirname(page), path)).replace(os.sep, "/") if path else page
        assert (ROOT / full).exists(), target
        assert not anchor or full not in PAGES or anchor in anchors_of(full), target


def test_the_tests_that_the_guarantees_name_are_there():
    named_tests = set(re.findall(r"`(test_\w+\.py)`", PAGES["docs/guarantees.md"]))
    assert len(named_tests) > 10 and not [name for name in named_tests if not (ROOT / "tests" / name).exists()]


def test_every_page_can_be_reached_from_the_readme():
    for name in PAGES:
        assert name == "README.md" or "](%s)" % name in README, name
