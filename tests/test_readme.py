"""The README: every command in it is run in a copy of the repository, and prints what the README says."""
from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

README = (ROOT / "README.md").read_bytes().decode("utf-8")
FENCE = re.compile(r"(?:<!-- (?P<note>[^>]*) -->\n)?```(?P<kind>\w+)\n(?P<text>.*?)```", re.S)
BLOCKS = [(match["kind"], match["note"] or "", match["text"]) for match in FENCE.finditer(README)]
# What differs from run to run.
VARYING = ((re.compile(r"\d+\.\d+s\b"), "N s"), (re.compile(r"\bkey [0-9a-f]{12}\b"), "key K"), (re.compile(r"from line \d+"), "from line N"),
           (re.compile(r"(?:[0-9a-f]{4}-){7}[0-9a-f]{4}"), "H"), (re.compile(r"pid \d+"), "pid P"))


def plain(text: str) -> str:
    for pattern, word in VARYING:
        text = pattern.sub(word, text)
    # bash's own word on the job that was killed
    return "\n".join(line.rstrip() for line in text.splitlines() if "Killed" not in line)


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A clean copy of what a clone holds, and a PATH on which `python` is this interpreter."""
    base = tmp_path_factory.mktemp("readme")
    root = base / "a clone"
    for folder in ("src", "bin", "data/input"):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__", "big.txt"))
    for folder in ("data/work", "data/output", "state", "locks"):
        (root / folder).mkdir(parents=True)
    shutil.copy(ROOT / "pipeline.json", root)
    tools = base / "tools"
    tools.mkdir()
    (tools / "python").write_text('#!/bin/sh\nexec "%s" "$@"\n' % sys.executable, encoding="utf-8")
    (tools / "python").chmod(0o755)
    return root, dict(os.environ, PATH="%s%s%s" % (tools, os.pathsep, os.environ["PATH"]), LC_ALL="C.UTF-8")


def add_stage(root, text: str) -> None:
    spec = json.loads((root / "pipeline.json").read_bytes())
    spec["stages"].append(json.loads(text))
    (root / "pipeline.json").write_bytes(json.dumps(spec, indent=2).encode("utf-8"))


def run_block(copy, text: str):
    """Run the `$` lines of a console block in one shell; return (what the README shows, what they printed)."""
    root, env = copy
    commands = [line[2:] for line in text.splitlines() if line.startswith("$ ")]
    shown = "\n".join(line for line in text.splitlines() if not line.startswith("$ "))
    done = subprocess.run(["bash", "-c", "\n".join(commands)], cwd=root, env=env, stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120)
    return plain(shown), plain(done.stdout.decode("utf-8"))


@pytest.mark.skipif(sys.platform == "win32", reason="the console blocks are for bash")
def test_every_command_prints_what_the_readme_says(copy):
    root, _ = copy
    ran = 0
    for kind, note, text in BLOCKS:
        if note.startswith("file: "):
            (root / note[len("file: "):]).write_bytes(text.encode("utf-8"))
        elif note == "stage":
            add_stage(root, text)
        elif kind == "console":
            expected, printed = run_block(copy, text)
            assert printed == expected, text
            ran += 1
    assert ran >= 6
    # What the interrupted and resumed run has made is what an undisturbed one makes.
    wanted = b"".join((root / "data" / "input" / name).read_bytes() for name in ("big.txt", "sample.txt"))
    assert (root / "data" / "output" / "result.txt").read_bytes().decode("utf-8") == wanted.decode("utf-8").upper()


def test_the_powershell_command_is_the_same_as_the_bash_command():
    bash = next(text for kind, _, text in BLOCKS if kind == "console").splitlines()[0][len("$ python "):]
    powershell = next(text for kind, _, text in BLOCKS if kind == "powershell").splitlines()[0][len("PS> py "):]
    assert powershell.replace("\\", "/") == bash


def test_the_tables_name_what_the_program_knows():
    import command_line
    import spec_checks
    for name in spec_checks.STAGE_CHECKS:
        assert "`%s`" % name in README, name
    for name in spec_checks.PIPELINE_KEYS:
        assert "`%s`" % name in README, name
    for name in command_line.VALUED + tuple(flag for flag in command_line.FLAGS if flag not in ("-h", "--help", "--version")):
        assert "`%s" % name in README, name
    for name in set(command_line.COMMANDS) - {"run"}:
        assert "`%s" % name in README, name


def test_every_variable_that_a_processor_gets_is_in_the_readme():
    source = "".join((ROOT / "src" / name).read_text(encoding="utf-8") for name in ("stage_work.py", "network_watch.py"))
    for name in set(re.findall(r"PIPELINE_[A-Z_]+", source)):
        assert "`%s`" % name in README, name


def test_links_lead_somewhere():
    anchors = {re.sub(r"[^\w -]", "", line.lstrip("# ").strip().lower()).replace(" ", "-") for line in README.splitlines() if line.startswith("#")}
    for target in re.findall(r"\]\(([^)]+)\)", README):
        if target.startswith("#"):
            assert target[1:] in anchors, target
        else:
            assert (ROOT / target).exists(), target
