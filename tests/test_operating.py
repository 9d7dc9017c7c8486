"""docs/operating.md: every command in it is run in a copy of the demo and prints what it says; its tables name what there is."""
from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

import log_events
import look_commands

TEXT = (ROOT / "docs" / "operating.md").read_bytes().decode("utf-8")
BLOCKS = re.findall(r"```console\n(.*?)```", TEXT, re.S)
# What differs from run to run, or from machine to machine.
VARYING = ((r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?Z", "TIME"), (r"\b\d+ s (ago|old)", r"N s \1"), (r"\b\d+\.\d+ s\b", "N s"), (r"\b[0-9a-f]{12}\b", "DIGEST"),
           (r"(?:[0-9a-f]{4}-){7}[0-9a-f]{4}", "HEAD"), (r'"durationMs": \d+', '"durationMs": N'), (r" +", " "), (r"\b\d,\d{3}\b", "BYTES"), (r"\b4[0-9]\b", "LINES"))


def plain(text):
    for pattern, word in VARYING:
        text = re.sub(pattern, word, text)
    return [line.rstrip() for line in text.splitlines()]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the console blocks are for bash, and name the kernel's way")
def test_every_command_prints_what_the_guide_says(tmp_path):
    root, tools = tmp_path / "a clone", tmp_path / "tools"
    for folder in ("src", "bin", "data/input"):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__", "big.txt"))
    shutil.copy(ROOT / "pipeline.json", root)
    tools.mkdir()
    (tools / "python").write_text('#!/bin/sh\nexec "%s" "$@"\n' % sys.executable, encoding="utf-8")
    (tools / "python").chmod(0o755)
    env = dict(os.environ, PATH="%s%s%s" % (tools, os.pathsep, os.environ["PATH"]), LC_ALL="C.UTF-8")
    for block in BLOCKS:
        commands = [line[2:] for line in block.splitlines() if line.startswith("$ ")]
        shown = "\n".join(line for line in block.splitlines() if not line.startswith("$ "))
        done = subprocess.run(["bash", "-c", "\n".join(commands)], cwd=str(root), env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120)
        assert plain(done.stdout.decode("utf-8")) == plain(shown), block
    assert len(BLOCKS) >= 5


def test_the_tables_name_every_event_and_every_field(project):
    for kind in log_events.FORMS:
        assert "`%s`" % kind.lower() in TEXT, kind
    for form in log_events.FORMS.values():
        for field in re.findall(r"\?P<(\w+)>", form):
            assert "`%s`" % field in TEXT, field
    project.write("in.txt", "x\n")
    project.spec({"processor": "bin/stage_copy.py", "inputs": ["in.txt"], "checkpoint": {"enabled": True}})
    project.ok("--run-id", "r")
    for words in (["status"], ["history"], ["history", "s1"], ["logs", "s1"], ["explain", "s1"]):
        for field in fields_of(json.loads(project.ok(*words, "--json").out)):
            assert "`%s`" % field in TEXT or '`"%s": 1`' % field in TEXT, (words, field)


def fields_of(value):
    """Return the names of all fields in a document; what lies below `counts`, `old` and `new` is not ours."""
    if isinstance(value, list):
        return {name for one in value for name in fields_of(one)}
    if not isinstance(value, dict):
        return set()
    found = set(value)
    for name, one in value.items():
        if name not in ("counts", "old", "new"):
            found |= fields_of(one)
    return found


def test_the_tables_name_every_action_and_every_status():
    source = "".join(path.read_bytes().decode("utf-8") for path in (ROOT / "src").glob("*.py"))
    actions = set(re.findall(r'\bDecision\("([A-Z]+)"', source))
    assert len(actions) > 5 and set(re.findall(r"`([A-Z]+)`", re.search(r"(?m)^\| `action`.*", TEXT).group())) == actions
    plan = re.search(r"(?m)^\| `plan`.*", (ROOT / "docs" / "reference.md").read_bytes().decode("utf-8")).group()
    assert set(re.findall(r"\b[A-Z]{3,}\b", plan)) == actions - {"SEAL"}        # which plan calls SKIP
    records = [None] + [{"lastStatus": status} for status in ("ok", "failed", "interrupted", "running")]
    statuses = {look_commands.status_word(record, problem, action, held) for record in records for problem in ("", "damaged") for action in actions for held in (False, True)}
    table = TEXT[TEXT.index("| status | the stage |"):].split("\n\n")[0]
    named = {word for line in table.splitlines()[2:] for word in re.findall(r"`([^`]+)`", line.split("|")[1])}
    assert named == {look_commands.WORDS.get(status, status) for status in statuses}


def test_links_lead_somewhere():
    anchors = {re.sub(r"[^\w -]", "", line.lstrip("# ").strip().lower()).replace(" ", "-") for line in TEXT.splitlines() if line.startswith("#")}
    targets = re.findall(r"\]\(#([^)]+)\)", TEXT)
    assert targets and [target for target in targets if target not in anchors] == []
