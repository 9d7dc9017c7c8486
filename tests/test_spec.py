"""The pipeline file: every fault is reported at its line and column, all at once, and nothing is written.

In the tables a § stands where the problem must be reported; it is taken out of the text before the file is written.
"""
from __future__ import annotations

import json
import os
import random
import shutil
import sys
import zipfile

import pytest

import key_gaps
import pipeline_runner
import program_starts
import spec_checks
import spec_loading
import spec_values
import stage_cycles
from model import SpecError, UsageError

# --- how the tables work


def stage(members, name='"name": "a"', rest=""):
    """Return a spec with one stage of these members, which stand on line 4."""
    return ('{"name": "p",\n "stages": [\n  {"processor": "bin/ok.py", "outputDir": "data/out", %s,\n   %s}%s\n ]\n}'
            % (name, members, rest))


def whole(members):
    """Return a spec with these members at the top, which stand on line 2."""
    return '{"name": "p",\n %s,\n "stages": [{"name": "a", "processor": "bin/ok.py", "outputDir": "data/out"}]}' % members


def folder(text):
    """Return a spec whose stage has this output folder, on line 2."""
    return '{"name": "p", "stages": [{"name": "a", "processor": "bin/ok.py",\n "outputDir": %s}]}' % text


def named(text):
    """Return a spec whose stage has this name, on line 2."""
    return '{"name": "p", "stages": [{"processor": "bin/ok.py", "outputDir": "data/out",\n "name": %s}]}' % text


def processor(text):
    """Return a spec whose stage has this processor, on line 2."""
    return '{"name": "p", "stages": [{"name": "a", "outputDir": "data/out",\n "processor": %s}]}' % text


def stages(*members, top=""):
    """Return a spec of several stages, one a line from line 2 on; output folders are their own unless given."""
    lines = ['{"processor": "bin/ok.py", %s%s}' % (one, "" if "outputDir" in one else ', "outputDir": "data/%d"' % place)
             for place, one in enumerate(members)]
    return '{"name": "p", %s"stages": [\n%s]}' % (top, ",\n".join(lines))


def without_marks(text):
    """Return (text without §, [(line, column) of each §])."""
    pieces = text.split("§")
    places, before = [], ""
    for piece in pieces[:-1]:
        before += piece
        places.append((before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1))
    return "".join(pieces), places


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A root with what a valid spec needs, shared: no test in which a spec is refused may change it."""
    root = tmp_path_factory.mktemp("spec") / "würzel haus"
    (root / "bin").mkdir(parents=True)
    (root / "bin" / "ok.py").write_text("pass\n", encoding="utf-8")
    (root / "bin" / "folder.py").mkdir()
    (root / "bin" / "plain").write_text("#!/bin/sh\n", encoding="utf-8")
    (root / "bin" / "runs").write_text("#!/bin/sh\n", encoding="utf-8")
    (root / "bin" / "runs").chmod(0o755)
    return root


def look(root):
    """Return everything below root: names, sizes, times, content."""
    return {str(one): (one.lstat().st_mtime_ns, one.read_bytes() if one.is_file() else None) for one in sorted(root.rglob("*"))}


def refuse(root, capsys, text, name="pipeline.json"):
    """Validate a bad spec; return the lines of the message. Nothing is written, nothing is printed but it, exit 2."""
    path = root / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    before = look(root)
    code = pipeline_runner.main(["validate", "--pipeline", str(path)])
    out, err = capsys.readouterr()
    assert (code, out) == (2, ""), err
    assert "Traceback" not in err and "internal error" not in err
    assert look(root) == before
    assert all(line.startswith(str(path)) for line in err.splitlines()), err
    return [line[len(str(path)) + 1:] for line in err.splitlines()]


# --- one fault: where, and what is said

SYNTAX = [
    ("§", "empty"),
    ("§\n \n", "empty"),
    ("{\n\"name\": \"p\",\n\"stages\": [§}", "] is missing before this }"),
    ("{\"name\": \"p\"§", "add } here"),
    ("{\n \"name\": \"p\",\n \"stages\": [{\"name\": \"a\"§", "add }]} here"),
    (whole('"version": §NaN'), "JSON has no NaN"),
    (whole('"version": §Infinity'), "JSON has no Infinity"),
    (whole('"x-number": §-Infinity'), "JSON has no -Infinity"),
    (whole('"x-number": §1e999'), "the number is too large"),
    (whole('"x-number": §1234567890123456789012345'), "integer of 25 digits, but only 18 are exact everywhere; make it smaller"),
    (stage('"params": {"n": §1234567890123456789}'), "integer of 19 digits, but only 18 are exact everywhere; put it in double quotes"),
    (whole('"x-number": §01'), "remove the leading zeros"),
    (whole('"x-number": §+1'), "remove the plus sign"),
    (whole('"x-number": §.5'), "digits must stand on both sides"),
    (whole('"x-number": §0x10'), "write it in decimal"),
    (whole('"x-flag": §True'), "JSON spells it true"),
    (whole('"x-flag": §None'), "JSON spells it null"),
    (whole('"x-word": §hello'), "text must be in double quotes"),
    (whole("\"x-word\": §'hello'"), "double quotes only"),
    (whole('"x-word": §“hello”'), "use the straight double quote"),
    (whole('"x-list": [1§, ]'), "a comma before the closing ]"),
    (whole('"x-object": {"a": 1§, }'), "a comma before the closing }"),
    (whole('"x-list": [1 §2]'), "a comma is missing before this value"),
    (whole('"x-object": {"a": 1 §"b": 2}'), "a comma is missing before this key"),
    (whole('"x-object": {§a: 1}'), "a key must be in double quotes"),
    (whole('"x-object": {"a" §= 1}'), "a colon must follow the key"),
    (whole('"x-object": {"a":§ }'), "the value of the key \"a\" is missing"),
    (whole('§// remark\n "x-a": 1'), "JSON has no comments"),
    (whole('§# remark\n "x-a": 1'), "JSON has no comments"),
    (whole('"x-a": 1, §"x-a": 2'), 'x-a"]: duplicate key; the first "x-a" is on line 2'),
    (stage('"args": [], §"args": []'), "stages[0].args: duplicate key"),
    (whole('"x-path": "C:§\\data"'), "is no escape in JSON; write \\\\ for a backslash"),
    (whole('"x-text": "a§\tb"'), "a control character (U+0009) in text; write \\t"),
    (whole('"x-text": "§\\ud800"'), "half of a surrogate pair"),
    (whole('"x-text": "§\\u12"'), "four hexadecimal digits"),
    (whole('"x-text": §"abc') , "the text is not closed on its line"),
    (whole('"x-a": 1') + "§}", "this } closes nothing"),
    (whole('"x-a": 1') + "§ more".replace("§ ", " §"), "text after the end of the value"),
    (whole('"x-a": 1') + "§,", "a comma after the end of the value"),
    ("§\ufeff" + whole('"x-a": 1'), "byte-order mark; save it as UTF-8 without one"),
]
TOP = [
    ("§[]", 'must be an object with "name" and "stages", got []'),
    ("§null", "must be an object"),
    ("§7", "must be an object"),
    ('§{"stages": [{"name": "a", "processor": "bin/ok.py", "outputDir": "x"}]}', 'the key "name" is missing'),
    ('§{"name": "p"}', "stages: is missing"),
    ('{"name": "p", "stages": §[]}', "stages: must be a list of at least one stage"),
    ('{"name": "p", "stages": §{}}', "stages: must be a list of at least one stage"),
    ('{"name": "p", "stages": §"a"}', "stages: must be a list of at least one stage"),
    ('{"name": "p", "stages": §null}', "stages"),
    ('{"name": "p", "stages": [§"a"]}', 'stages[0]: must be an object, got "a"'),
    ('{"name": "p", "stages": [§null]}', "stages[0]: must be an object, got null"),
    (whole('§"nmae": "q"'), 'nmae: unknown key; did you mean "name"?'),
    (whole('"seal": §{}'), 'seal: the key "keyFile" is missing; without "seal" the ledger is not sealed'),
    (whole('"seal": {"keyFile": §""}'), 'seal.keyFile: must name the key file; without "seal" the ledger is not sealed'),
    (whole('§"Stages": []'), 'Stages: unknown key; did you mean "stages"?'),
    (whole('§"zzz": 1'), "zzz: unknown key; known keys: name, version,"),
    (whole('"version": §1'), "version: must be text, got 1"),
    (whole('"description": §["a"]'), 'description: must be text, got ["a"]'),
    (whole('"offline": §true'), 'offline: must be an object or "strict", got true'),
    (whole('"offline": {§"alow": []}'), 'offline.alow: unknown key; did you mean "allow"?'),
    (whole('"offline": {"allow": §"asyncio"}'), "offline.allow: must be a list of texts"),
    (whole('"offline": {"allow": [§1]}'), "offline.allow[0]: must be text, got 1"),
    (whole('"offline": {"require": §"strict"}'), 'offline.require: must be one of "scan", "kernel", got "strict"'),
    (whole('"defaults": §[]'), "defaults: must be an object"),
    (whole('"defaults": {§"name": "a"}'), "defaults.name: unknown key"),
    (whole('"defaults": {"retry": {"attempts": §0}}'), "defaults.retry.attempts: must be an integer >= 1, got 0"),
    (whole('"defaults": {§"retrys": {}}'), 'defaults.retrys: unknown key; did you mean "retry"?'),
]
STAGE = [
    (stage('§"inptus": []'), 'stages[0].inptus: unknown key; did you mean "inputs"?'),
    (stage('§"output_dir": "x"'), 'did you mean "outputDir"?'),
    (stage('§"timeoutsec": 1'), 'did you mean "timeoutSec"?'),
    (stage('§"qqqq": 1'), "keys of your own begin with \"x-\""),
    (stage('"args": §"-v"'), "stages[0].args: must be a list of texts, got \"-v\""),
    (stage('"args": ["-v", §1]'), "stages[0].args[1]: must be text, got 1"),
    (stage('"args": [§"a\\u0000b"]'), "stages[0].args[0]: must be text without NUL"),
    (stage('"inputs": §"data/*.txt"'), "stages[0].inputs: must be a list of paths and globs"),
    (stage('"inputs": ["a", §{}]'), "stages[0].inputs[1]: must be text, got {}"),
    (stage('"watch": §null'), "stages[0].watch: must be a list of paths and globs, got null"),
    (stage('"watch": [§"../x"]'), "stages[0].watch[0]: must not leave the root with '..'"),
    (stage('"allowNoInputs": §1'), "stages[0].allowNoInputs: must be true or false, got 1"),
    (stage('"outputs": §[]'), "stages[0].outputs: must name at least one output, or be left out"),
    (stage('"outputs": [§"/tmp/x"]'), "stages[0].outputs[0]: must be relative to the root"),
    (stage('"outputs": ["./a/*", §".hid"]'), 'stages[0].outputs[1]: names that begin with a dot or end in .part are no outputs; give it another name, got ".hid"'),
    (stage('"outputs": [§"a/.b/*.txt"]'), "stages[0].outputs[0]: names that begin with a dot"),
    (stage('"outputs": [§"a/x.part"]'), "stages[0].outputs[0]: names that begin with a dot or end in .part are no outputs"),
    (stage('"params": §[]'), "stages[0].params: must be an object, got []"),
    (stage('"env": §"A=1"'), "stages[0].env: must be an object"),
    (stage('"env": {"A": §1}'), "stages[0].env.A: must be text, got 1"),
    (stage('"env": {"A=B": §"x"}'), "is not a name for an environment variable"),
    (stage('"env": {"": §"x"}'), "is not a name for an environment variable"),
    (stage('"env": {"PIPELINE_X": §"x"}'), "stages[0].env.PIPELINE_X: is the runner's own"),
    (stage('"passEnv": §"PATH"'), "stages[0].passEnv: must be a list of texts"),
    (stage('"idempotency": §true'), 'stages[0].idempotency: must be an object such as {"enabled": false}, got true'),
    (stage('"idempotency": {"enabled": §"yes"}'), "stages[0].idempotency.enabled: must be true or false"),
    (stage('"idempotency": {"processor": §"ctime"}'), 'must be one of "mtime", "content", got "ctime"'),
    (stage('"idempotency": {§"enable": true}'), 'stages[0].idempotency.enable: unknown key; did you mean "enabled"?'),
    (stage('"checkpoint": {"lineInterval": §0}'), "stages[0].checkpoint.lineInterval: must be an integer >= 1, got 0"),
    (stage('"checkpoint": {"lineInterval": §true}'), "must be an integer >= 1, got true"),
    (stage('"checkpoint": {"enabled": §0}'), "must be true or false, got 0"),
    (stage('"retry": §3'), 'stages[0].retry: must be an object such as {"attempts": 3}, got 3'),
    (stage('"checkpoint": §true'), 'stages[0].checkpoint: must be an object such as {"enabled": true}, got true'),
    (stage('"inputs": ["x"], "chunks": §67108864'), 'stages[0].chunks: must be an object such as {"bytes": 67108864}, got 67108864'),
    (stage('"lock": §5'), 'stages[0].lock: must be an object such as {"waitSeconds": 60}, got 5'),
    (stage('"resources": §2'), 'stages[0].resources: must be an object such as {"cpuCores": 2}, got 2'),
    (whole('"seal": §"x.key"'), 'seal: must be an object such as {"keyFile": "/etc/pipeline/seal.key"}, got "x.key"'),
    (stage('§"filter": true'), 'stages[0].filter: unknown key; "filter" belongs in "chunks"'),
    (stage('§"enabled": true'), 'stages[0].enabled: unknown key; "enabled" belongs in "idempotency" or "checkpoint"'),
    (stage('§"order": "graph"'), 'stages[0].order: unknown key; "order" belongs at the top, beside "stages"'),
    (whole('"defaults": {§"stages": []}'), 'defaults.stages: unknown key; "stages" belongs at the top of the file'),
    (stage('"retry": {§"timeoutSec": 9}'), 'stages[0].retry.timeoutSec: unknown key; "timeoutSec" belongs in the stage, beside "retry"'),
    (whole('"defaults": {§"attempts": 3}'), 'defaults.attempts: unknown key; "attempts" belongs in "retry"'),
    (whole('§"allow": ["asyncio"]'), 'allow: unknown key; "allow" belongs in "offline"'),
    (whole('§"keyFile": "k"'), 'keyFile: unknown key; "keyFile" belongs in "seal"'),
    (whole('§"timeoutSec": 3'), 'timeoutSec: unknown key; "timeoutSec" belongs in a stage, or in "defaults"'),
    (stage('"retry": {"attempts": §"many"}'), 'stages[0].retry.attempts: must be an integer >= 1, got "many"'),
    (stage('"retry": {"attempts": §true}'), "stages[0].retry.attempts: must be an integer >= 1, got true"),
    (stage('"retry": {"attempts": §2.0}'), "must be an integer >= 1, got 2.0"),
    (stage('"retry": {"attempts": §-1}'), "must be an integer >= 1, got -1"),
    (stage('"retry": {"baseDelayMs": §-1}'), "stages[0].retry.baseDelayMs: must be an integer >= 0, got -1"),
    (stage('"retry": {"maxDelayMs": §null}'), "stages[0].retry.maxDelayMs: must be an integer >= 0, got null"),
    (stage('"retry": {"jitterMs": §0.5}'), "stages[0].retry.jitterMs: must be an integer >= 0, got 0.5"),
    (stage('"retry": {§"atempts": 2}'), 'stages[0].retry.atempts: unknown key; did you mean "attempts"?'),
    (stage('"retry": {"exitCodes": §[0]}'), "must be null or a list of integers from 1 to 255, got [0]"),
    (stage('"retry": {"exitCodes": §75}'), "must be null or a list of integers from 1 to 255, got 75"),
    (stage('"retry": {"exitCodes": §[true]}'), "must be null or a list of integers from 1 to 255, got [true]"),
    (stage('"timeoutSec": §0'), "stages[0].timeoutSec: must be a number > 0, got 0"),
    (stage('"timeoutSec": §true'), "stages[0].timeoutSec: must be a number > 0, got true"),
    (stage('"timeoutSec": §"5"'), 'stages[0].timeoutSec: must be a number > 0, got "5"'),
    (stage('"graceSec": §-0.1'), "stages[0].graceSec: must be a number >= 0, got -0.1"),
    (stage('"graceSec": §null'), "stages[0].graceSec: must be a number >= 0, got null"),
    (stage('"lock": {"waitSeconds": §false}'), "stages[0].lock.waitSeconds: must be a number >= 0, got false"),
    (stage('"lock": {§"wait": 1}'), "stages[0].lock.wait: unknown key"),
    (stage('"resources": {"cpuCores": §0}'), "stages[0].resources.cpuCores: must be an integer >= 1, got 0"),
    (stage('"resources": {"memoryMB": §"1G"}'), "stages[0].resources.memoryMB: must be an integer >= 1"),
    (stage('"resources": {"minFreeDiskMB": §-5}'), "stages[0].resources.minFreeDiskMB: must be an integer >= 0"),
    (stage('"forEach": §7'), "stages[0].forEach: must be a list of paths and globs, got 7"),
    (stage('"forEach": §[]'), "stages[0].forEach: must name at least one file or glob, or be left out"),
    (stage('"forEach": §"../x"'), "stages[0].forEach: must not leave the root"),
    (stage('"maxFailedTasks": §2'), "stages[0].maxFailedTasks: goes with forEach"),
    (stage('"prune": §true'), "stages[0].prune: goes with forEach"),
    (stage('"inputs": ["x"], "chunks": §{}'), 'stages[0].chunks: the key "bytes" is missing'),
    (stage('"inputs": ["x"], "chunks": {"bytes": §0}'), "stages[0].chunks.bytes: must be an integer >= 1, got 0"),
    (stage('"chunks": §{"bytes": 9}'), "stages[0].chunks: needs inputs to cut"),
    (stage('"inputs": ["x"], "forEach": "y", "chunks": §{"bytes": 9}'), "stages[0].chunks: goes with inputs, not with forEach"),
    (stage('"launcher": §"srun"'), "stages[0].launcher: must be a list of texts, the program first"),
    (stage('"launcher": ["srun", §"--mem={memory}"]'), "stages[0].launcher[1]: knows {cpuCores}, {memoryMB}; a brace is written twice"),
    (stage('"launcher": ["srun"], "inputs": ["x"], "chunks": §{"bytes": 9, "filter": true}'), "stages[0].chunks: with a launcher there is no \"filter\""),
    (stage('"launcher": ["srun", §"-c{cpu}}Cores}"]'), "stages[0].launcher[1]: knows {cpuCores}, {memoryMB}; a brace is written twice"),
    (stage('"launcher": ["srun", §"--mem={memoryMB}", "{{cpuCores}}"], "resources": {"cpuCores": 1}'),
     "stages[0].launcher[1]: stage \"a\" uses {memoryMB}, but has no resources.memoryMB: give it one"),
    (stage('"maxRejects": §"x%"'), 'stages[0].maxRejects: must be an integer >= 0 or a share such as "1%", got "x%"'),
    (stage('"maxRejects": §"101%"'), "stages[0].maxRejects: must be an integer >= 0 or a share"),
    (stage('"settleSec": §-1'), "stages[0].settleSec: must be a number >= 0, got -1"),
    (whole('"order": §"random"'), 'order: must be one of "listed", "graph", got "random"'),
    (whole('"onFailure": §[]'), "onFailure: must be a list of texts, the program first"),
    (stage('"resources": {"nice": §true}'), "stages[0].resources.nice: must be an integer from 0 to 19, got true"),
    (stage('"resources": {"nice": §20}'), "stages[0].resources.nice: must be an integer from 0 to 19, got 20"),
    (stage('"simulateFailAttempts": §true'), "stages[0].simulateFailAttempts: must be an integer >= 0, got true"),
    ('{"name": "p", "stages": [\n §{"name": "a", "outputDir": "x"}]}', 'stages[0]: the key "processor" is missing'),
    ('{"name": "p", "stages": [\n §{"name": "a", "processor": "bin/ok.py"}]}', 'stages[0]: the key "outputDir" is missing'),
    ('{"name": "p", "stages": [\n §{"outputDir": "x", "processor": "bin/ok.py"}]}', 'stages[0]: the key "name" is missing'),
]
NAMES = [
    (named('§""'), "must be 1 to 64 of the characters"),
    (named('§"%s"' % ("n" * 65)), "must be 1 to 64 of the characters"),
    (named('§".hidden"'), "begin with a letter or digit"),
    (named('§"_a"'), "begin with a letter or digit"),
    (named('§"-rf"'), "begin with a letter or digit"),
    (named('§"a b"'), "must be 1 to 64"),
    (named('§"a/b"'), "must be 1 to 64"),
    (named('§"größe"'), "must be 1 to 64"),
    (named('§"a\\n"'), 'must be 1 to 64 of the characters A-Z a-z 0-9 . _ - and begin with a letter or digit, got "a\\n"'),
    (named('§"a."'), "must not end with a dot"),
    (named('§"CON"'), "is a device name on Windows"),
    (named('§"aux.x"'), "is a device name on Windows"),
    (named('§"Com1"'), "is a device name on Windows"),
    (named('§"lpt9.txt"'), "is a device name on Windows"),
    (named("§5"), "must be 1 to 64"),
    (named("§null"), "must be 1 to 64"),
    ('{"name": §"a/b", "stages": [{"name": "a", "processor": "bin/ok.py", "outputDir": "x"}]}', "name: must be 1 to 64"),
    (stages('"name": "Copy"', '"name": §"copy"'), "stages[0] has the name \"Copy\" already, and \"copy\" differs from it in case only; choose another"),
    (stages('"name": "copy"', '"name": §"copy"'), "stages[0] has the name \"copy\" already; choose another"),
    (stages('"name": "a"', '"name": "b"', '"name": §"A"'), 'stages[2].name: stages[0] has the name "a" already, and "A" differs'),
]
PATHS = [
    (folder('§"../x"'), "must not leave the root with '..'"),
    (folder('§"data/../../x"'), "must not leave the root with '..'"),
    (folder('§"/tmp"'), "must be relative to the root"),
    (folder('§"C:/data"'), "must be relative to the root"),
    (folder('§"c:data"'), "must be relative to the root"),
    (folder('§"data\\\\out"'), "must be written with forward slashes"),
    (folder('§""'), "must be a path without control characters"),
    (folder('§"a\\nb"'), "must be a path without control characters"),
    (folder('§"a\\u0001b"'), 'must be a path without control characters, got "a\\u0001b"'),
    (processor('§"bin\\transform.py"'), 'got "bin\\transform.py"; a backslash begins an escape in JSON: write "bin/transform.py"'),
    (processor('"bin§\\ok.py"'), '"\\o" is no escape in JSON; write /o: a path has forward slashes'),
    (folder('"data§\\upper"'), '"\\u" is no escape in JSON; write /u: a path has forward slashes'),
    (stage('"inputs": ["data§\\in.txt"]'), 'stages[0].inputs[0]: "\\i" is no escape in JSON; write /i'),
    (folder('§"data/con"'), "names a Windows device"),
    (folder('§"data/nul.txt/x"'), "names a Windows device"),
    (folder('§"data/nul .txt"'), "names a Windows device"),
    (folder('§"data/CONIN$"'), "names a Windows device"),
    (folder('§"data./x"'), "has a part that ends with a dot or blank"),
    (folder('§"data /x"'), "has a part that ends with a dot or blank"),
    (folder('§"."'), "must be a folder below the root other than state, locks, src, bin"),
    (folder('§"./"'), "must be a folder below the root"),
    (folder('§"state"'), "must be a folder below the root other than state, locks, src, bin, got \"state\""),
    (folder('§"state/x"'), "must be a folder below the root"),
    (folder('§"STATE/x"'), "must be a folder below the root"),
    (folder('§"./locks"'), "must be a folder below the root"),
    (folder('§"src"'), "must be a folder below the root"),
    (folder('§"bin//out"'), "must be a folder below the root"),
    (folder("§null"), "must be text, got null"),
    (processor('§"bin/none.py"'), 'there is no file "bin/none.py"'),
    (processor('§"bin/folder.py"'), 'there is no file "bin/folder.py"'),
    (processor('§"../ok.py"'), "must not leave the root with '..'"),
    (processor('§"bin\\\\ok.py"'), "must be written with forward slashes"),
    (processor("§[]"), "must be text, got []"),
    (processor('§"/nowhere/at/all.py"'), 'there is no file "/nowhere/at/all.py"'),
]
RELATIONS = [
    (stages('"name": "a"', '"name": "b", "needs": [§"aa"]'), 'stages[1].needs[0]: no stage is named "aa"; did you mean "a"?'),
    (stages('"name": "a", "needs": [§"zzz"]'), 'no stage is named "zzz"'),
    (stages('"name": "a", "needs": §"b"', '"name": "b"'), "stages[0].needs: must be a list of texts"),
    (stages('"name": "a", "needs": [§3]'), "stages[0].needs[0]: must be text, got 3"),
    (stages('"name": "a", "needs": [§"a"]'), "makes a cycle: a -> a"),
    (stages('"name": "a", "needs": [§"b"]', '"name": "b"'), 'stages[0].needs[0]: "b" is listed later'),
    (stages('"name": "a", "needs": [§"c"]', '"name": "b", "needs": ["a"]', '"name": "c", "needs": ["b"]'), "makes a cycle: a -> c -> b -> a"),
    (stages('"name": "a", "outputDir": "d", "outputs": ["x.txt"]', '"name": "b", "outputDir": "d", "outputs": [§"x.txt"]'),
     'stages[1].outputs[0]: "d/x.txt" is an output of stages[0] already; a file belongs to one stage'),
    (stages('"name": "a", "outputDir": "d/x"', '"name": "b", "outputDir": §"D/y"'), 'stages[1].outputDir: "D" and "d" differ in case only, and are one folder on Windows and macOS'),
    (stages('"name": "a", "outputDir": "d/a"', '"name": "b", "inputs": [§"D/A/*.txt"]'), 'stages[1].inputs[0]: "D/A" and "d/a", in the outputDir of stages[0], differ in case only, and are one folder on'),
    (stages('"name": "b", "watch": ["w", §"D/x.txt"]', '"name": "a", "outputDir": "d"'), 'stages[0].watch[1]: "D" and "d", in the outputDir of stages[1], differ in case only'),
    (stages('"name": "f", "outputDir": "d", "forEach": [§"D/*.txt"]'), 'stages[0].forEach[0]: "D" and "d", in the outputDir of stages[0], differ in case only'),
    (stages('"name": "a", "outputDir": "d"', '"name": "b", "forEach": §"D/sub/**/x.txt"'), 'stages[1].forEach[0]: "D" and "d"'),
    (stages('"name": "a", "outputDir": "d/a"', '"name": "b", "inputs": [§"D/**"]'), 'stages[1].inputs[0]: "D" and "d", in the outputDir of stages[0]'),
    (stages('"name": "a", "outputDir": "d/a"', '"name": "b", "inputs": [§"D/*/x.txt"]'), 'stages[1].inputs[0]: "D" and "d", in the outputDir of stages[0]'),
    (stages('"name": "a", "outputDir": "d", "outputs": ["X.txt"]', '"name": "b", "outputDir": "d", "outputs": ["y", §"x.TXT"]'), "is an output of stages[0] already"),
    (stages('"name": "a", "outputDir": "d", "outputs": ["e/x"]', '"name": "b", "outputDir": "d/e", "outputs": [§"x"]'), "is an output of stages[0] already"),
]
TABLE = SYNTAX + TOP + STAGE + NAMES + PATHS + RELATIONS


def test_no_way_is_looked_for_where_there_is_no_cycle(root, monkeypatch, capsys):
    """With thousands of stages listed after those that need them, that took longer than all else."""
    asked, real = [], stage_cycles.find_path
    monkeypatch.setattr(spec_checks, "find_path", lambda edges, start, goal: asked.append((start, goal)) or real(edges, start, goal))
    plain = '"name": "s%d", "processor": "bin/ok.py", "outputDir": "data/%d", "needs": ["s%d"]'
    chain = [plain % (number, number, number + 1) for number in range(40)]
    path = root / "chain.json"
    for last, code in (('"name": "s40", "processor": "bin/ok.py", "outputDir": "data/40"', 0), (plain % (40, 40, 39), 2)):
        path.write_text('{"name": "t", "order": "graph", "stages": [{%s}]}' % "}, {".join([*chain, last]), encoding="utf-8")
        assert pipeline_runner.main(["validate", "--pipeline", str(path)]) == code
    path.unlink()
    assert asked == [("s40", "s39")] and "makes a cycle: s39 -> s40 -> s39" in capsys.readouterr().err


@pytest.mark.parametrize("shape, searches", [("ring", 200), ("chain between two", 3)])
@pytest.mark.parametrize("order", ["graph", "listed"])
def test_of_a_long_cycle_the_first_ways_are_looked_for_and_of_a_chain_between_two_none(root, monkeypatch, capsys, shape, searches, order):
    """Each is a search through all of it: of thousands of stages that took minutes."""
    asked, real, count = [], stage_cycles.find_path, 300
    monkeypatch.setattr(spec_checks, "find_path", lambda edges, start, goal: asked.append((start, goal)) or real(edges, start, goal))
    needs = [[(number + 1) % count] for number in range(count)]
    if shape != "ring":
        needs[0], needs[1], needs[-1] = [1, 1], [0, 2], [count - 2]
    path = root / "cycles.json"
    path.write_text(json.dumps({"name": "t", "order": order, "stages": [
        {"name": "s%d" % number, "processor": "bin/ok.py", "outputDir": "data/%d" % number, "needs": ["s%d" % one for one in needed]}
        for number, needed in enumerate(needs)]}, indent=0), encoding="utf-8")
    assert pipeline_runner.main(["validate", "--pipeline", str(path)]) == 2
    path.unlink()
    said = capsys.readouterr().err
    assert len(asked) == searches == said.count("makes a cycle: ")
    if shape == "ring":
        assert said.endswith("stages[200].needs[0]: and more; only the first 200 cycles are looked for\n") and said.count("\n") == 201, said
    else:
        assert "makes a cycle: s0 -> s1 -> s0\n" in said and "makes a cycle: s298 -> s299 -> s298\n" in said
        assert ("stages[150].needs[0]: \"s151\" is listed later" in said) is (order == "listed"), said


def test_what_is_said_of_needs_is_what_each_pair_alone_would_tell():
    chance = random.Random(4)
    for _ in range(2000):
        names = [chance.choice(["", "a", "b", "c", "d", "e"]) for _ in range(chance.randint(1, 6))]
        stages = [(index, {"name": name or None, "needs": [chance.choice(["a", "b", "c", "d", "e", "none"]) for _ in range(chance.choice([0, 1, 1, 3]))]})
                  for index, name in enumerate(names)]
        needs = {merged["name"]: [one for one in merged["needs"] if one in names] for _, merged in stages}
        for is_graph in (True, False):
            problems = spec_values.Problems()
            spec_checks._check_needs(stages, problems, is_graph)
            cycles = {path: text for path, text in problems.found if text.startswith("makes a cycle: ")}
            for index, merged in stages:
                for place, needed in enumerate(merged["needs"]):
                    is_later = needed in names and len(names) - 1 - names[::-1].index(needed) >= index
                    way = stage_cycles.find_path(needs, needed, merged["name"]) if merged["name"] and is_later else []
                    told = [text for path, text in problems.found if path == ("stages", index, "needs", place)]
                    assert (("stages", index, "needs", place) in cycles) is bool(way), stages
                    if way:
                        assert told == ["makes a cycle: %s" % " -> ".join([merged["name"], *way])]
                    else:
                        assert len(told) == (needed not in names or is_later and not is_graph)


def test_the_table_is_large():
    assert len(TABLE) >= 100


@pytest.mark.parametrize("marked, fragment", TABLE, ids=range(len(TABLE)))
def test_one_fault_is_reported_where_it_stands(root, capsys, marked, fragment):
    text, places = without_marks(marked)
    lines = refuse(root, capsys, text)
    (line, column), = places
    assert any(one.startswith("%d:%d: " % (line, column)) and fragment in one for one in lines), (lines, places)


@pytest.mark.parametrize("marked, fragment", TOP + STAGE + NAMES + PATHS + RELATIONS)
def test_one_fault_is_one_line(root, capsys, marked, fragment):
    assert len(refuse(root, capsys, without_marks(marked)[0])) == 1


@pytest.mark.parametrize("read", ["d/a/*.txt", "D/x.txt", "D/*.txt", "D/b/x.txt", "D/b/**", "D", "DA/*", "d/A", "d/A.txt", "d/a/X.txt", "d/**", "*/A/x.txt"])
def test_what_is_read_elsewhere_or_spelled_as_where_it_is_made_is_no_fault_of_case(root, read):
    assert load(root, stages('"name": "a", "outputDir": "d/a"', '"name": "b", "outputDir": "e", "inputs": ["%s"], "watch": ["%s"]' % (read, read)))


def test_what_ten_thousand_stages_read_is_not_compared_with_each_of_their_folders():
    value = {"name": "p", "stages": [{"name": "s%d" % number, "processor": "bin/ok.py", "outputDir": "data/s%d" % number, "inputs": ["data/s%d/*" % (number - 1)]} for number in range(10000)]}
    value["stages"][-1]["inputs"] = ["data/S7/*"]
    problems = spec_values.Problems()
    assert spec_checks.check_pipeline(value, None, lambda word, known: None, problems) is None
    assert [(path, message[:19]) for path, message in problems.found] == [(("stages", 9999, "inputs", 0), '"data/S7" and "data')]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no executable bit")
def test_a_program_without_the_executable_bit(root, capsys):
    text, ((line, column),) = without_marks(processor('§"bin/plain"'))
    assert refuse(root, capsys, text) == ['%d:%d: stages[0].processor: "bin/plain" is not executable; chmod +x it' % (line, column)]


def test_all_faults_at_once_in_the_order_of_the_text(root, capsys):
    marked = """{
  "name": §"a/b",
  §"verison": "1",
  "defaults": {"retry": {"attempts": §0}},
  "stages": [
    {"name": "a", "processor": §"bin/none.py", "outputDir": §"../x", "timeoutSec": §-1},
    §{"name": §"A", "retry": {§"atempts": 1, "jitterMs": §true}, "needs": [§"q"]}
  ]
}"""
    text, places = without_marks(marked)
    lines = refuse(root, capsys, text)
    found = [tuple(map(int, line.split(":")[:2])) for line in lines]
    assert found == sorted(found)
    assert set(found) == set(places)
    assert sum("is missing" in line for line in lines) == 2         # processor and outputDir of the second stage


@pytest.mark.parametrize("named_so, said", [
    ("bin/okk.py", '; did you mean "bin/ok.py"?'), ("bin/OK.Py", '; did you mean "bin/ok.py"?'), ("ok.py", '; did you mean "bin/ok.py"?'),
    ("bin/ok.py --fast x", '; arguments belong in "args": the program is "bin/ok.py"'), ("bin", ": it is a folder; name a file in it"),
    ("no-such-tool-anywhere", "; PATH is not searched: write its path, from the root or absolute"), ("bin/entirely-different.sh", ""), ("nowhere/ok.py", "")])
def test_a_processor_that_is_not_there_is_told_with_what_was_meant(root, capsys, named_so, said):
    if named_so == "bin/OK.Py" and (root / named_so).exists():
        pytest.skip("this file system ignores case")
    text, ((line, column),) = without_marks(processor('§"%s"' % named_so))
    assert refuse(root, capsys, text) == ['%d:%d: stages[0].processor: there is no file "%s"%s' % (line, column, named_so, said)]


def test_of_very_many_processors_that_are_not_there_only_the_first_are_looked_for(root, capsys):
    lines = refuse(root, capsys, json.dumps({"name": "p", "stages": [{"name": "s%d" % one, "outputDir": "d/%d" % one, "processor": "bin/okk.py"} for one in range(60)]}))
    assert len(lines) == 60 and sum('did you mean "bin/ok.py"?' in line for line in lines) == spec_checks.MOST_SEARCHED


@pytest.mark.skipif(sys.platform == "win32", reason="programs of POSIX systems")
def test_a_processor_that_would_be_found_on_the_path_is_told_with_its_path(root, capsys, tmp_path, monkeypatch):
    tool = tmp_path / "awkward"
    tool.write_text("#!/bin/sh\n", encoding="utf-8")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    said = 'there is no file "awkward%s"; PATH is not searched: write "%s"%s'
    assert refuse(root, capsys, processor('"awkward"'))[0].endswith(said % ("", tool, ""))
    assert refuse(root, capsys, processor('"awkward -f x"'))[0].endswith(said % (" -f x", tool, ', and arguments belong in "args"'))
    assert refuse(root, capsys, whole('"onFailure": ["awkward -f"]'))[0].endswith(said % (" -f", tool, ", and arguments belong behind it in the list"))


def test_syntax_and_meaning_together_when_the_text_could_be_read_to_its_end(root, capsys):
    marked = stage('"retry": {"attempts": §"x"}, "x-a": §NaN, "args": [1§, ]'.replace("[1", "[\"1\""))
    text, places = without_marks(marked)
    lines = refuse(root, capsys, text)
    assert [tuple(map(int, line.split(":")[:2])) for line in lines] == places


def test_columns_count_characters_not_bytes(root, capsys):
    lines = refuse(root, capsys, '{"name": "p", "x-ä": "ßßß €", "versoin": "1", "stages": [{"name": "a", "processor": "bin/ok.py", "outputDir": "x"}]}')
    assert lines[0].startswith("1:31: versoin: unknown key")


@pytest.mark.parametrize("end", ["\r\n", "\r", "\n"])
def test_lines_end_in_any_way(root, capsys, end):
    lines = refuse(root, capsys, whole('"version": 1').replace("\n", end))
    assert lines[0].startswith("2:13: version: must be text")


def test_a_nameless_stage_that_needs_a_later_one(root, capsys):
    """What cannot be said for want of a name must not hide the rest, or end in an internal error."""
    lines = refuse(root, capsys, '{"name": "p", "stages": [{"processor": "bin/ok.py", "outputDir": "x", "needs": ["b"]},\n'
                                 '{"name": "b", "processor": "bin/ok.py", "outputDir": "y"}]}')
    assert any('the key "name" is missing' in line for line in lines)
    assert any('"b" is listed later' in line for line in lines)


# --- files that are no spec at all

def test_not_utf8(root, capsys):
    assert refuse(root, capsys, b'{"name":\n "p\xe4"}') == ["2:4: byte 0xe4 is not UTF-8; save the file as UTF-8"]


def test_utf16(root, capsys):
    assert refuse(root, capsys, '{"name": "p"}'.encode("utf-16"))[0].startswith("1:1: ")


def test_nine_mebibytes(root, capsys):
    lines = refuse(root, capsys, b'{"name": "' + b"x" * (9 << 20) + b'"}')
    assert len(lines) == 1 and "larger than 8388608 bytes" in lines[0]


@pytest.mark.parametrize("opening, closing", [("[", "]"), ('{"a":', "}")])
@pytest.mark.parametrize("is_closed", [True, False])
def test_ten_thousand_levels(root, capsys, opening, closing, is_closed):
    deep = opening * 10000 + ("1" + closing * 10000 if is_closed else "")
    lines = refuse(root, capsys, whole('"x-deep": ' + deep) if is_closed else deep)
    assert len(lines) < 5 and any("nested deeper than 64 levels" in line for line in lines), lines[:3]


def test_sixty_levels_are_not_too_deep(root):
    path = root / "deep.json"
    path.write_text(whole('"x-deep": ' + "[" * 60 + "]" * 60), encoding="utf-8")
    assert pipeline_runner.load_pipeline(str(path)).name == "p"


@pytest.mark.parametrize("make, fragment", [
    (lambda path: path.mkdir(), "cannot read the pipeline file: Is a directory"),
    (lambda path: None, "cannot read the pipeline file: No such file or directory"),
])
def test_no_file_there(tmp_path, capsys, make, fragment):
    path = tmp_path / "pipeline.json"
    make(path)
    before = look(tmp_path)
    assert pipeline_runner.main(["validate", "--pipeline", str(path)]) == 2
    out, err = capsys.readouterr()
    assert fragment in err and str(path) in err and "--pipeline FILE" in err and out == "" and err.count("\n") == 1
    assert look(tmp_path) == before


def test_very_many_faults_do_not_flood(root, capsys):
    assert len(refuse(root, capsys, "[" + "a " * 5000 + "]")) <= 202


# --- the real program: every command refuses alike, before anything is written

@pytest.mark.parametrize("words", [[], ["plan"], ["--dry-run"], ["validate"], ["unlock", "a"], ["--run-id", "r1"]])
def test_every_command_refuses_a_bad_spec(project, words):
    project.spec({"name": "a", "processor": "bin/stage_copy.py", "retry": {"attempts": "many"}})
    project.knows_scans = False
    before = look(project.root)
    done = project.run(*words)
    assert done.code == 2 and done.out == "", done
    assert 'stages[0].retry.attempts: must be an integer >= 1, got "many"' in done.err, done
    assert look(project.root) == before


def test_the_real_program_on_hostile_files(project):
    for text in ("", "[" * 100000, "{" * 100000, '{"a":' * 50000, "\0", "9" * 5000, '{"stages": ' + "9" * 5000 + "}", '"' + "\\ud800" * 10 + '"'):
        project.write("pipeline.json", text)
        before = look(project.root)
        done = project.run("validate")
        assert done.code == 2 and "internal error" not in done.err, done
        assert look(project.root) == before


# --- what is allowed

def load(root, spec):
    path = root / "good.json"
    path.write_text(spec if isinstance(spec, str) else json.dumps(spec), encoding="utf-8")
    return pipeline_runner.load_pipeline(str(path))


def test_defaults_of_a_bare_stage(root):
    one, = load(root, stages('"name": "a"')).stages
    assert one._asdict() == dict(
        name="a", processor="bin/ok.py", args=(), inputs=(), allow_no_inputs=False, output_dir="data/0", outputs=None, params={}, env={},
        pass_env=None, watch=(), needs=(), idempotent=True, processor_mtime=True, checkpoint=False, line_interval=1000,
        retry=(1, 100, 30000, 0, None), timeout_s=None, grace_s=5, lock_wait_s=5, resources={}, simulate_fail_attempts=0, network_attempts="fail",
        for_each=(), max_failed_tasks=0, prune=False, chunks=None, launcher=(), fork_server=True, settle_s=0, reconcile=False, max_rejects=None)


def test_defaults_are_merged_one_level_deep(root):
    top = '"defaults": {"retry": {"attempts": 4, "jitterMs": 9}, "params": {"a": {"x": 1}, "b": 2}, "env": {"A": "1"}, "args": ["-q"], "timeoutSec": 7}, '
    first, second = load(root, stages('"name": "a"', '"name": "b", "retry": {"attempts": 2}, "params": {"a": {"y": 2}}, "env": {"B": "2"}, "args": ["-v"], "timeoutSec": null', top=top)).stages
    assert (first.retry.attempts, first.retry.jitter_ms, first.retry.base_delay_ms) == (4, 9, 100)
    assert (second.retry.attempts, second.retry.jitter_ms) == (2, 9)
    assert second.params == {"a": {"y": 2}, "b": 2}                 # one level: what is inside "a" is replaced whole
    assert second.env == {"A": "1", "B": "2"}
    assert (first.args, second.args) == (("-q",), ("-v",))
    assert (first.timeout_s, second.timeout_s) == (7, None)
    assert first.params == {"a": {"x": 1}, "b": 2}                  # one stage's keys do not leak into another's


def test_tasks_and_launchers(root):
    one, = load(root, stages('"name": "a", "forEach": "in/*.csv", "maxFailedTasks": 3, "prune": true, "maxRejects": "0.5%", '
                             '"launcher": ["srun", "--mem={memoryMB}M", "{{x}}"], "resources": {"memoryMB": 1}')).stages
    assert (one.for_each, one.max_failed_tasks, one.prune, one.max_rejects) == (("in/*.csv",), 3, True, "0.5%")
    assert one.launcher == ("srun", "--mem={memoryMB}M", "{{x}}")
    one, = load(root, stages('"name": "a", "inputs": ["x"], "chunks": {"bytes": 100, "filter": true, "headerLines": 1, "keepChunks": true}')).stages
    assert one.chunks._asdict() == dict(size_bytes=100, keep=True, is_filter=True, header_lines=1)
    top = load(root, whole('"order": "graph", "onFailure": ["./bin/ok.py", "-s", "x"]'))
    assert (top.order, top.on_failure, top.on_success) == ("graph", ("bin/ok.py", "-s", "x"), ())


def test_required_keys_may_come_from_defaults(root):
    spec = load(root, '{"name": "p", "defaults": {"processor": "bin/ok.py", "outputDir": "d"}, "stages": [{"name": "a"}, {"name": "b"}]}')
    assert [(one.processor, one.output_dir) for one in spec.stages] == [("bin/ok.py", "d")] * 2


def test_keys_of_the_users_own_and_schema_are_ignored(root):
    spec = load(root, whole('"$schema": 7, "x-note": {"a": [null]}, "defaults": {"x-d": 1}, "offline": {"x-o": 1}'))
    assert spec.name == "p"
    assert load(root, stage('"x-owner": "me", "retry": {"x-why": "flaky"}')).stages[0].retry.attempts == 1


def test_paths_are_made_plain(root):
    one, = load(root, stages('"name": "a", "outputDir": "./data//out/", "inputs": ["./x//y.txt"]')).stages
    assert (one.output_dir, one.inputs) == ("data/out", ("x/y.txt",))


@pytest.mark.parametrize("name", ["a", "0", "a.b-c_d", "A" * 64, "console", "com", "com10", "stateful"])
def test_good_names(root, name):
    assert load(root, named(json.dumps(name))).stages[0].name == name


@pytest.mark.parametrize("good", ["stateful", "data/state", "locksmith/x", "binary", "data/größe ü", "a.b", "...x"])
def test_good_folders(root, good):
    assert load(root, folder(json.dumps(good))).stages[0].output_dir == good


def test_an_absolute_processor(root):
    full = os.path.join(str(root), "bin", "ok.py")
    assert load(root, processor(json.dumps(full))).stages[0].processor == full


def test_needs_of_earlier_stages(root):
    assert load(root, stages('"name": "a"', '"name": "b", "needs": ["a"]')).stages[1].needs == ("a",)


def test_numbers_of_any_form_where_a_number_is_meant(root):
    one, = load(root, stages('"name": "a", "timeoutSec": 0.5, "graceSec": 0, "lock": {"waitSeconds": 1e1}')).stages
    assert (one.timeout_s, one.grace_s, one.lock_wait_s) == (0.5, 0, 10.0)


def test_root_of_its_own(root, tmp_path):
    path = tmp_path / "elsewhere.json"
    path.write_text(stages('"name": "a"'), encoding="utf-8")
    spec = pipeline_runner.load_pipeline(str(path), str(root))
    assert (spec.root, spec.path) == (str(root), str(path))
    with pytest.raises(SpecError, match="there is no file"):
        pipeline_runner.load_pipeline(str(path))


def test_load_pipeline_raises_what_main_reports(tmp_path):
    with pytest.raises(UsageError) as caught:
        pipeline_runner.load_pipeline(str(tmp_path / "none.json"))
    assert caught.value.exit_code == 2
    assert SpecError("").exit_code == 2


# --- validate

def test_validate_runs_nothing_and_says_ok(project):
    project.spec({"name": "a", "processor": project.processor("touch", "open(os.path.join(out, 'x'), 'w')\n")}, {"name": "b", "processor": "bin/stage_copy.py"})
    before = look(project.root)
    done = project.ok("validate")
    assert done.out == "%s: ok (2 stages)\n" % project.path("pipeline.json"), done
    assert look(project.root) == before


def gaps_of(project, stage):
    """Return what key_gaps says of a stage of a project."""
    project.spec(dict({"processor": project.processor("p", "pass\n")}, **stage))
    return key_gaps.find_gaps(str(project.root), pipeline_runner.load_pipeline(str(project.path("pipeline.json"))).stages[0], (), ["pipeline.json"])


FILES = ["conf/table.csv", "conf/é a.sql", "lib/tool.awk", "lib/py/deep/mod.py", "data/in/a.csv", "data/s1/made.csv", "a.tsv",
         "conf/.d/x.cfg"]


@pytest.mark.parametrize("stage, told", [
    ({"args": ["-f", "lib/tool.awk"]}, ["args[1] names lib/tool.awk, "]),
    ({"args": ["--table=./conf/../conf/table.csv"]}, ["args[0] names conf/table.csv, "]),
    ({"args": ["lib/tool.awk"], "watch": ["lib/*"]}, []),
    ({"args": ["data/in/a.csv"], "inputs": ["data/in/*.csv"]}, []),
    ({"args": ["data/in/a.csv"], "forEach": "data/in/*.csv"}, []),
    ({"args": ["data/s1/made.csv", "bin/p.py", "bin", "data", "data/s1", "", ".", "..", "../x", "/etc/passwd", "conf/absent", "table.csv", "x" * 5000]}, []),
    ({"env": {"SQL": "conf/é a.sql"}}, ["env.SQL names conf/é a.sql, "]),
    ({"params": {"a": [1, {"b": "conf/table.csv"}], "c": None}}, ["params.a[1].b names conf/table.csv, "]),
    ({"env": {"PYTHONPATH": "lib%sconf%sabsent" % (os.pathsep, os.pathsep)}}, ["env.PYTHONPATH names lib, "]),
    ({"env": {"PYTHONPATH": "lib"}, "watch": ["lib/**/*.py"]}, []),
    ({"args": ["conf/table.csv%slib/tool.awk" % os.pathsep]}, ["args[0] names conf/table.csv, ", "args[0] names lib/tool.awk, "]),
    ({"args": ["-f=lib/tool.awk,absent,conf/table.csv"], "watch": ["conf/*"]}, ["args[0] names lib/tool.awk, "]),
    ({"env": {"TABLE": "$PIPELINE_ROOT/conf/table.csv"}, "args": ["${PIPELINE_ROOT}/lib/tool.awk", "$HOME/lib/tool.awk"]},
     ["args[0] names lib/tool.awk, ", "env.TABLE names conf/table.csv, "]),
    ({"args": ["conf/*.csv", "conf/*.none", "lib/**/*.py", "*", "[a-z]*/tool.awk"]}, ["args[0] names conf/*.csv, ", "args[2] names lib/**/*.py, "]),
    ({"args": ["conf/*.csv", "data/in/*"], "watch": ["conf/table.csv"], "inputs": ["data/in/*.csv"]}, []),
    ({"params": {"folder": "conf", "more": "lib/py/"}}, ["params.folder names the folder conf, ", "params.more names the folder lib/py, "]),
    ({"args": ["conf", "lib"], "inputs": ["conf/table.csv"], "watch": ["**/*.awk", "lib/**"]}, []),
    ({"args": ["data/in", "empty"]}, ["args[0] names the folder data/in, "]),
    ({"env": {"PATH": "lib"}}, []),
    ({"args": ["conf/.d/x.cfg", "conf/link/b", "conf/table.csv"], "watch": ["conf/**"]}, ["args[0] names conf/.d/x.cfg, ", "args[1] names conf/link/b, "]),
    ({"args": ["conf/.d", "--dir=conf/link"], "watch": ["conf/**"]}, ["args[0] names the folder conf/.d, ", "args[1] names the folder conf/link, "]),
    ({"args": ["conf/.d", "conf/link/b"], "watch": ["conf/.d/**", "conf/*/b"]}, []),
    ({"args": ["--dir=lib/py", "conf,lib", "a,b"]}, ["args[0] names the folder lib/py, ", "args[1] names the folder conf, ", "args[1] names the folder lib, "]),
    ({"args": ["*.tsv", "*.none", "a.*", "*.json"]}, ["args[0] names *.tsv, "]),
    ({"launcher": ["lib/tool.awk", "--chdir=conf"]}, ["launcher[0] names lib/tool.awk, "]),
])
def test_files_that_a_stage_names_and_its_key_does_not_know(project, junctions, stage, told):
    """Else such a file is changed, and the stage skipped: the spec says so in the one place where the runner can see it."""
    for path in FILES:
        project.write(path, "")
    project.path("empty").mkdir()
    project.write("outside/b", "")
    if "conf/link" in str(stage):
        junctions.make(project.path("outside"), project.path("conf/link"))
    gaps = gaps_of(project, stage)
    assert len(gaps) == len(told) and all(line.startswith(start) for line, start in zip(gaps, told)), gaps
    for line in gaps:
        folder = line.partition("the folder ")[2].partition(",")[0]
        assert line.endswith("whose files are not in the key: a change of them runs nothing; add %s/** to watch" % folder if folder else
                             "which is not in the key: a change of it runs nothing; add it to watch, or to inputs" if "PYTHONPATH" not in line else
                             "whose modules are not in the key: a change of them runs nothing; add lib/**/*.py to watch"), line


def test_the_note_on_a_path_of_python_names_the_kinds_of_modules_that_are_there(project):
    for path in ("lib/a.py", "lib/deep/b.so", "lib/c.txt"):
        project.write(path, "")
    told = gaps_of(project, {"env": {"PYTHONPATH": "lib"}, "watch": ["lib/*.py"]})
    assert len(told) == 1 and told[0].endswith("; add lib/**/*.so to watch"), told
    project.write("lib/d.cp311-win_amd64.pyd", "")
    assert gaps_of(project, {"env": {"PYTHONPATH": "lib"}})[0].endswith("; add lib/**/*.py, lib/**/*.so, lib/**/*.pyd to watch")


def test_what_a_note_of_validate_asks_for_puts_the_file_into_the_key(project):
    project.write("lib/mod.py", "WORD = 'one'\n")
    project.write("conf/a.txt", "one")
    project.processor("p", "import mod\nopen(out + '/o', 'w').write(mod.WORD + open(sys.argv[1]).read())\n")
    project.write("tables/deep/t", "t")
    project.write("bin/own.py", "")
    project.write("bin/p.py", "import own\n" + project.read("bin/p.py"))
    stage = {"processor": "bin/p.py", "args": ["conf/a.txt", "tables", "bin/own.py"], "env": {"PYTHONPATH": "lib"}}
    project.spec(stage)
    told = project.ok("validate").out.splitlines()
    assert [line.partition(",")[0] for line in told[:-1]] == ["[NOTE] s1: args[0] names conf/a.txt", "[NOTE] s1: args[1] names the folder tables", "[NOTE] s1: env.PYTHONPATH names lib"], told
    project.spec(dict(stage, watch=["lib/**/*.py", "conf/a.txt", "tables/**"]))
    assert "[NOTE]" not in project.ok("validate").out
    project.ok()
    project.write("lib/mod.py", "WORD = 'two'\n")
    project.ok()
    assert project.read("data/s1/o") == "twoone"
    project.write("conf/a.txt", "two")
    project.ok()
    assert project.read("data/s1/o") == "twotwo"
    project.write("tables/deep/t", "u")
    assert "watched tables/deep/t changed" in project.ok("plan").out


def test_paths_that_mean_something_else_than_they_seem_to_are_noted(project):
    project.write("~real/$X.txt", "x")
    project.write("data/s1/total$EUR.txt", "x")
    project.spec({"processor": "bin/stage_copy.py", "inputs": ["~/in/*.csv", "a/~b.txt", "cost$.txt", "~real/$X.txt"], "watch": ["conf/${HOST}.ini"],
                  "outputs": ["data/s1/a.txt", "a.txt", "$DAY.txt", "total$EUR.txt"]}, {"processor": "bin/stage_copy.py", "outputDir": "$HOME/out", "forEach": "~me/x"})
    assert project.ok("validate").out.splitlines()[:-1] == [
        "[NOTE] s1: %s: ~ and $VARS are not expanded; write the path itself" % one for one in ("inputs[0] is ~/in/*.csv", "watch[0] is conf/${HOST}.ini", "outputs[2] is $DAY.txt")] + [
        "[NOTE] s1: outputs[0] is data/s1/a.txt, which means data/s1/data/s1/a.txt: outputs are relative to outputDir; write a.txt"] + [
        "[NOTE] s2: %s: ~ and $VARS are not expanded; write the path itself" % one for one in ("outputDir is $HOME/out", "forEach[0] is ~me/x")]


CANNOT_START = [
    ("bin/t.py", "x = 1\ndef f(:\n", "line 2 is no Python %d.%d source: " % sys.version_info[:2]), ("bin/t.py", "return 1\n", "'return' outside function"),
    ("bin/t.py", b"x = '\xe4'\n", "is no Python"),
    ("bin/t", "", "it is empty"), ("bin/t.sh", "echo hello\n", "a script needs a first line such as #!/bin/sh"),
    ("bin/t", "\ufeff#!/bin/sh\n", "a byte order mark stands before its first line; save it without"),
    ("bin/t", "#!/bin/sh\r\n:\r\n", "its first line ends with a carriage return (CRLF); save it with plain line ends"),
    ("bin/t", "#!/usr/bin/env sh\r\n:\r\n", "its first line ends with a carriage return"), ("bin/t", "#!/bin/sh -e\r\n:\r\n", "its first line ends with a carriage return"),
    ("bin/t", "#!\n", "its first line names no program"),
    ("bin/t", "#! /no/such/shell -e\n", "its first line names /no/such/shell, which is not there; install it, or name another")]


@pytest.mark.parametrize("name, text, said", CANNOT_START)
@pytest.mark.skipif(sys.platform == "win32", reason="first lines mean nothing there")
def test_a_program_that_cannot_start_is_refused_by_validate_and_fails_in_a_run(project, name, text, said):
    project.write(name, text, executable=True)
    project.spec({"processor": "bin/stage_copy.py"}, {"processor": name})
    done = project.run("validate")
    line, = done.err.splitlines()
    assert done.code == 2 and line.startswith('%s:12:20: stages[1].processor: "%s" cannot start: ' % (project.path("pipeline.json"), name)) and said in line, done
    assert project.run("--only", "s2").code == 1        # as validate says
    project.write("bin/ok", "#!/bin/sh\n", executable=True)
    project.spec({"processor": "bin/ok"}, onFailure=[name])
    assert ': onFailure[0]: "%s" cannot start: ' % name in project.run("validate").err


@pytest.mark.skipif(sys.platform == "win32", reason="first lines mean nothing there")
def test_a_program_that_may_not_start_is_noted_by_validate(project):
    project.write("bin/asks", "#!/usr/bin/env -S VAR=1 no-such-shell -e\n", executable=True)
    project.write("bin/perl", "#!%s -w\r\n" % (shutil.which("perl") or "/bin/true"), executable=True)
    project.write("bin/env", "#!/usr/bin/env -S sh -e\r\n", executable=True)
    assert [is_certain for is_certain, _ in program_starts.judge(str(project.root), "bin/env", "")] == [False]
    project.write("bin/far", "#!/no/such/shell\n", executable=True)
    project.write("data/s4/made", "", executable=True)
    project.spec({"processor": "bin/asks"}, {"processor": "bin/perl"}, {"processor": "bin/far", "launcher": ["srun"]}, {"processor": "data/s4/made"})
    assert project.ok("validate").out.splitlines()[:-1] == [
        '[NOTE] s1: "bin/asks": its first line asks for no-such-shell, which is not on PATH here; install it, or the stage fails',
        '[NOTE] s2: "bin/perl": its first line ends with a carriage return (CRLF); save it with plain line ends',
        '[NOTE] s3: "bin/far" cannot start: its first line names /no/such/shell, which is not there; install it, or name another',
        '[NOTE] s4: "data/s4/made" cannot start: it is empty']
    project.write("tools/no-such-shell", "#!/bin/sh\n", executable=True)
    project.spec({"processor": "bin/asks", "env": {"PATH": str(project.path("tools"))}})
    assert "[NOTE]" not in project.ok("validate").out


@pytest.mark.skipif(sys.platform == "win32", reason="first lines mean nothing there")
def test_programs_that_can_start_are_let_through_by_validate(project):
    project.write("bin/a", "#!/usr/bin/env -S sh -e\n", executable=True)
    project.write("bin/b", "#!/bin/sh", executable=True)
    project.write("bin/c", b"\x7fELF\0", executable=True)
    project.write("bin/d.py", "#!/no/such/python\r\nx = '\\d'\n")        # Python is started with it, and it takes any line end
    project.spec(*({"processor": one} for one in ("bin/a", "bin/b", "bin/c", "bin/d.py", sys.executable)))
    done = project.ok("validate")
    assert "[NOTE]" not in done.out and done.err == "", done
    assert list(program_starts.judge(str(project.root), "bin/none", "")) == []
    project.write("bin/d.py", b"a\0b")
    assert list(program_starts.judge(str(project.root), "bin/d.py", "")) == [(False, '"bin/d.py": it is no Python source, as there is a null byte in it')]
    with zipfile.ZipFile(str(project.path("bin/d.py")), "w") as file:
        file.writestr("__main__.py", "print(1)\n")
    assert not any(is_certain for is_certain, _ in program_starts.judge(str(project.root), "bin/d.py", ""))


@pytest.mark.parametrize("name, data, can_start", [
    ("t.sh", b"#!/bin/sh\n", False), ("t", b"", False), ("t.exe", b"\x7fELF\0", False), ("t.exe", b"MZ\0", True), ("t", b"MZ\0", True),
    ("t.BAT", b"@echo off\r\n", True), ("t.cmd", b"", True), ("t.ps1", b"exit\r\n", True), ("t.py", b"", True)])
def test_what_is_no_program_of_windows_is_refused_there(project, name, data, can_start):
    project.write("bin/" + name, data)
    words = '"bin/%s" cannot start: Windows starts no such file; name an .exe, .bat, .cmd, .py or .ps1 file, or the interpreter by its absolute path with the script as its first argument' % name
    assert list(program_starts.judge(str(project.root), "bin/" + name, "", windows=True)) == ([] if can_start else [(True, words)])


def test_signs_that_windows_does_not_allow_in_names_are_refused_there_only(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    assert spec_values.path_problem("data/12:30.csv") == ""
    monkeypatch.setattr(sys, "platform", "win32")
    assert spec_values.path_problem("data/12:30.csv") == 'has one of the signs : " < > |, which Windows does not allow in names'
    assert spec_values.path_problem("data/[a-c]*?.csv") == ""


def test_a_batch_file_gets_no_argument_that_cmd_exe_would_run_or_replace(monkeypatch, project):
    """It would lose its inputs, end well, and something else would have run."""
    for name in ("a.bat", "b.CMD", "c.exe"):
        project.write("bin/" + name, "@echo %*\n")
        project.path("bin/" + name).chmod(0o755)
    stages = [{"name": "s%d" % place, "processor": "bin/" + name, "outputDir": "o%d" % place, "args": args} for place, (name, args) in enumerate([
        ("a.bat", ["plain", "two words", "x&echo.pwned>pwn.txt"]), ("b.CMD", ["a^b", "%OS%"]), ("c.exe", ["a^b"]), ("a.bat", ["--day=7", "C:/x"])])]
    project.write("pipeline.json", json.dumps({"name": "p", "onFailure": ["bin/a.bat", "fine", "a|b"], "onSuccess": ["bin/c.exe", "a|b"], "stages": stages}))
    path = str(project.path("pipeline.json"))
    monkeypatch.setattr(sys, "platform", "linux")
    spec_loading.load_pipeline(path)
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(SpecError) as raised:
        spec_loading.load_pipeline(path)
    lines = str(raised.value).splitlines()
    assert [line.split(": ")[1:3] for line in lines] == [[place, "cmd.exe would not take %s as it is" % word] for place, word in [
        ("onFailure[2]", '"a|b"'), ("stages[0].args[2]", '"x&echo.pwned>pwn.txt"'), ("stages[1].args[0]", '"a^b"'), ("stages[1].args[1]", '"%OS%"')]]
    assert all(line.endswith("write it without the signs & | < > ^ % ! \" ( ) and line ends, or let the program be no batch file") for line in lines)
    spec_loading.load_pipeline(path, needs_programs=False)


@pytest.mark.parametrize("program, root, works, told", [
    ("bin/a.bat", "C:\\x", False, ""), ("bin/a.CMD", "\\\\srv\\share\\x", False, "cmd.exe works in no folder of a network share"), ("bin/a.bat", "\\\\srv\\share\\x", True, ""),
    ("bin/a.py", "\\\\srv\\share\\x", False, ""), ("bin/%OS%.bat", "C:\\x", False, "cmd.exe may put something else in the place of the %"), ("bin/%OS%.py", "C:\\x", False, "")])
def test_a_batch_file_is_refused_where_cmd_exe_would_run_another_one_or_work_elsewhere(monkeypatch, program, root, works, told):
    """On a share it begins in the folder of Windows: inputs are not found, and what is written lands there."""
    monkeypatch.setattr(sys, "platform", "linux")
    assert spec_checks._untaken_place(program, root) == ""
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(spec_checks, "_cmd_works_on_shares", lambda: works)
    text = spec_checks._untaken_place(program, root)
    assert text.startswith(told) and bool(text) == bool(told)


@pytest.mark.skipif(sys.platform != "win32", reason="the registry is Windows's")
def test_as_windows_comes_cmd_exe_does_not_work_on_shares():
    assert spec_checks._cmd_works_on_shares() is False


def test_what_lies_on_another_drive_is_no_path_below_the_root(monkeypatch, project):
    def relpath(path, start):
        raise ValueError("path is on mount 'D:', start on mount 'C:'")
    monkeypatch.setattr(os.path, "relpath", relpath)
    assert gaps_of(project, {"args": ["D:/x"]}) == []


def test_validate_checks_names_of_stages_on_the_command_line(project):
    project.spec({"name": "stage_one", "processor": "bin/stage_copy.py"})
    done = project.run("validate", "--only", "stage_oen")
    assert done.code == 2 and 'no stage is named "stage_oen"; did you mean stage_one?' in done.err, done


def test_a_processor_that_may_not_be_looked_at_is_not_told_to_be_missing(monkeypatch):
    def refused(path):
        raise PermissionError(13, "Permission denied", path)
    assert spec_checks._no_file_text("/nowhere", "x") == "there is no file x"
    with monkeypatch.context() as patched:      # pytest, too, looks at files
        patched.setattr(spec_checks.os, "stat", refused)
        try:
            text = spec_checks._no_file_text("/nowhere", "x")
        except PermissionError:
            text = "raised"
    assert text == "x cannot be looked at: Permission denied; the runner's user must be allowed to enter its folder"


@pytest.mark.parametrize("name, told", [("python%d%d._pth" % sys.version_info[:2], True), ("python._pth", True), ("python27._pth", False)])
def test_a_python_that_takes_no_other_place_for_modules_runs_no_python_processors(project, monkeypatch, name, told):
    """The embeddable package of Windows: neither the kit nor the hook that refuses the network would be found."""
    project.write("data/in.txt", "x")
    project.spec({"processor": "bin/stage_copy.py"})
    project.write("python/" + name, "Lib\n")
    monkeypatch.setattr(sys, "executable", str(project.path("python/python.exe")))
    monkeypatch.setattr(sys, "platform", "linux")
    spec_loading.load_pipeline(str(project.path("pipeline.json")))
    monkeypatch.setattr(sys, "platform", "win32")
    if not told:
        spec_loading.load_pipeline(str(project.path("pipeline.json")))
        return
    with pytest.raises(SpecError, match=r"stages\[0\].processor: .*%s makes Python ignore PYTHONPATH.*run a full installation" % name.replace(".", r"\.")):
        spec_loading.load_pipeline(str(project.path("pipeline.json")))
