"""What verify finds, and what it cannot find: the attacks, on histories that the real program made, sealed and not."""
from __future__ import annotations

import functools
import json
import os
import random
import re
import shutil
import subprocess
import sys
import zlib
import time
from collections import namedtuple
from pathlib import Path

import pytest
from conftest import ROOT, RUNNER, Done, Project, text_of, wait_until

sys.path.insert(0, str(ROOT / "src"))
sys.path.insert(0, str(ROOT / "tests" / "drivers"))

import history  # noqa: E402
import ledger_chain  # noqa: E402
import ledger_format  # noqa: E402
import ledger_verify  # noqa: E402
import task_log  # noqa: E402
import verify_outputs  # noqa: E402
from ledger_format import entry_hash, entry_line, head_text, parse_key, run_hash  # noqa: E402
from model import UsageError  # noqa: E402

VERIFIER = {"ledger_verify.py", *re.findall(r"\w+\.py", ledger_verify.__doc__.split("another machine needs,")[1])}     # as its docstring names them
MODES = ("plain", "hmac", "forward")
DEADLINE_S = 60

# root: after the last run. earlier: a copy from before it. first_key, key: contents of the key file, before the first and after
# the last run; b"" for an unsealed ledger. head: as the last run printed it.
Past = namedtuple("Past", "root earlier first_key key head")


# --- histories made by the real program

def command(*arguments):
    return [sys.executable, str(RUNNER), *map(str, arguments)]


def go(*arguments, code=0):
    """Run the real program and expect an exit code."""
    done = subprocess.run(command(*arguments), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=120)
    result = Done(command(*arguments), done.returncode, text_of(done.stdout), text_of(done.stderr))
    assert result.code == code, result
    return result


def wait_for(path):
    deadline = time.monotonic() + DEADLINE_S
    while not path.exists():
        assert time.monotonic() < deadline, "%s did not appear" % path
        time.sleep(0.01)


def write_pipelines(project):
    """Three pipelines in one root: two that copy, one of whose stages fails at will, and one that waits to be killed."""
    project.processor("flaky", "open(out + '/f.txt', 'w').write('made')\nsys.exit(0 if os.path.exists('data/good') else 3)\n")
    project.processor("slow", "open(out + '/started', 'w').close()\nwhile not os.path.exists('data/go'):\n    time.sleep(0.01)\n")
    shutil.copy(str(project.path("bin/stage_upper.py")), str(project.path("bin/upper.py")))
    for name, stages in (
            ("one", [{"name": "s1", "processor": "bin/stage_copy.py", "inputs": ["data/in/*.txt"], "outputDir": "data/s1", "params": {"rate": 0.5}},
                     {"name": "s2", "processor": "bin/upper.py", "inputs": ["data/s1/*.txt"], "outputDir": "data/s2"}]),
            ("two", [{"name": "t1", "processor": "bin/stage_copy.py", "inputs": ["data/in/*.txt"], "outputDir": "data/t1", "env": {"COLOUR": "red"}},
                     {"name": "t2", "processor": "bin/flaky.py", "outputDir": "data/t2", "watch": ["data/in/*.txt"]}]),
            ("three", [{"name": "w", "processor": "bin/slow.py", "outputDir": "data/w"}])):
        project.write(name + ".json", json.dumps({"name": name, "stages": stages}))


def make_past(base, mode):
    """Several runs of several pipelines: done, failed, repeated under its id, killed, accepted, and one more."""
    project = Project(base / "prüf bereich")
    root, key = project.root, base / "seal.key"
    project.write("data/in/a.txt", "one\ntwo\n")
    write_pipelines(project)
    seal = ["--key", key] if mode != "plain" else []
    if seal:
        go("new-key", key, *(["--forward"] if mode == "forward" else []))
    first_key = key.read_bytes() if seal else b""

    def run(name, run_id, code=0):
        return go("--pipeline", root / (name + ".json"), "--run-id", run_id, *seal, code=code)
    run("one", "a")
    run("two", "b", code=1)
    run("one", "a")
    killed = subprocess.Popen(command("--pipeline", root / "three.json", "--run-id", "k", *seal), stdin=subprocess.DEVNULL,
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(root / "data/w/started")
    killed.kill()
    killed.wait()
    project.write("data/in/a.txt", "three\n")
    run("one", "c")
    with open(str(root / "bin/upper.py"), "a") as file:
        file.write("# a comment\n")
    go("accept", "s2", "--reason", "a comment only", "--pipeline", root / "one.json", *seal)
    run("one", "d")
    shutil.copytree(str(root), str(base / "earlier"))
    project.write("data/good", "")
    head = run("two", "e").out.split("[LEDGER] head ")[1].split("\n")[0]
    return Past(root, base / "earlier", first_key, key.read_bytes() if seal else b"", head)


@pytest.fixture(scope="module")
def pasts(tmp_path_factory):
    made = {}

    def past(mode):
        if mode not in made:
            made[mode] = make_past(tmp_path_factory.mktemp(mode), mode)
        return made[mode]
    return past


@pytest.fixture
def copied(pasts, tmp_path):
    """Return a function of a mode: that past, its root a copy which the test may spoil."""
    def copy(mode):
        past = pasts(mode)
        shutil.copytree(str(past.root), str(tmp_path / "copy"))
        return past._replace(root=tmp_path / "copy")
    return copy


def check(root, *runs, **options):
    return ledger_verify.verify(str(root), runs, **options)


def found(report):
    """Return the findings as (kind, file), sorted."""
    return sorted((one.kind, one.file) for one in report.findings)


def entries_of(root):
    return [json.loads(line) for line in (root / "state/ledger.jsonl").read_bytes().decode("utf-8").splitlines()]


def record_of(root, name):
    return json.loads((root / "state" / name).read_bytes().decode("utf-8"))


def store(root, name, record):
    (root / "state" / name).write_bytes(json.dumps(record, indent=1, ensure_ascii=False).encode("utf-8"))


def number_of(root, event, run_id, invocation=1):
    return next(one["seq"] for one in entries_of(root) if (one["event"], one["runId"], one["invocation"]) == (event, run_id, invocation))


# --- nothing was done to it

@pytest.mark.parametrize("mode", MODES)
def test_a_real_history_verifies(pasts, mode):
    past = pasts(mode)
    assert [(one["event"], one["runId"], one.get("state")) for one in entries_of(past.root)] == [
        ("begin", "a", None), ("end", "a", "completed"), ("begin", "b", None), ("end", "b", "failed"), ("end", "a", "completed"), ("begin", "k", None),
        ("end", "k", "interrupted"), ("begin", "c", None), ("end", "c", "completed"), ("accept", "accept", None), ("end", "d", "completed"),
        ("begin", "e", None), ("end", "e", "completed")]
    report = check(past.root, anchors=[past.head], key=past.first_key or None, outputs=True)
    assert (report.findings, report.entries, report.runs, report.head) == ([], 13, 7, past.head)
    assert report.notes == []


def test_each_head_that_was_ever_printed_is_an_anchor(pasts):
    past = pasts("plain")
    heads = [head_text(one) for one in entries_of(past.root)]
    assert check(past.root, anchors=heads).findings == []
    assert check(past.root, anchors=[heads[3].split(": ")[1].replace("-", "")[:16]]).findings == []


def test_verify_writes_nothing(copied):
    past = copied("forward")

    def stamps():
        return {str(path): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"") for path in sorted(past.root.rglob("*"))}
    before = stamps()
    done = go("verify", "--root", past.root, "--outputs")
    assert stamps() == before and done.out.endswith("%s: ok\n" % past.head), done


# --- the attacks. A thief has the key file as it is after the last run.

class Forger:
    """Writes a history anew after a change, as far as its keys go."""

    def __init__(self, root, key=b""):
        self.root, self.key = root, parse_key(key.decode()) if key else None
        self.entries = entries_of(root)
        self.names = {}                     # runHash -> file
        for path in (root / "state").glob("run_*.json"):
            self.names[record_of(root, path.name).get("runHash")] = path.name

    def rewrite(self, edit=lambda record, entry: None, relink=True):
        last_run, previous = None, None
        for number, entry in enumerate(self.entries, 1):
            entry.update(seq=number, prevHash=previous["hash"] if previous else None)
            if entry["event"] == "end":
                name = self.names[entry["runHash"]]
                record = record_of(self.root, name)
                edit(record, entry)
                if relink:
                    record["prevRunHash"] = last_run
                record["runHash"] = entry["runHash"] = last_run = run_hash(record)
                store(self.root, name, record)
            entry["lastRunHash"] = last_run
            entry["hash"] = entry_hash(entry)
            self.seal(entry)
            previous = entry
        self.write()

    def seal(self, entry):
        """Seal with the stolen key; one of an earlier number cannot be had, so that one serves for all."""
        if self.key is not None:
            index = entry["seq"] - 1 if self.key[0] == "forward" else 0
            key = self.key[3]
            for _ in range(index - self.key[2]):
                key = ledger_format.next_key(key)
            entry["seal"] = {"mode": self.key[0], "keyId": self.key[1], "index": index, "mac": ledger_format.seal_mac(key, entry["hash"])}

    def write(self):
        (self.root / "state/ledger.jsonl").write_bytes(b"".join(map(entry_line, self.entries)))
        if "seal" in self.entries[-1]:
            end = record_of(self.root, "ledger.end")
            end.update(seq=len(self.entries), hash=self.entries[-1]["hash"])
            if self.key is not None:
                end["mac"] = ledger_format.end_mac(self.key[3], end["seq"], end["hash"])
            store(self.root, "ledger.end", end)


def edit_field(past, key):
    path = past.root / "state/run_b.json"
    path.write_bytes(path.read_bytes().replace(b'"state": "failed"', b'"state": "completed"', 1))


def swap_files(past, key):
    one, other = past.root / "state/run_b.json", past.root / "state/run_c.json"
    one.rename(past.root / "aside")
    other.rename(one)
    (past.root / "aside").rename(other)


def replace_output(past, key):
    (past.root / "data/s2/result.txt").write_bytes(b"FOUR!\n")


def remove_output(past, key):
    (past.root / "data/t1/a.txt").unlink()


def edit_and_fix_run_hash(past, key):
    record = record_of(past.root, "run_b.json")
    record["state"] = "completed"
    record["runHash"] = run_hash(record)
    store(past.root, "run_b.json", record)


def delete_record(past, key):
    (past.root / "state/run_c.json").unlink()


def delete_run(past, key):
    """The record of a run and its entry; nothing else is made to fit."""
    (past.root / "state/run_a.json").unlink()
    keep_lines(past, lambda lines: lines[:4] + lines[5:])


def reorder_entries(past, key):
    keep_lines(past, lambda lines: lines[:3] + [lines[4], lines[3]] + lines[5:])


def edit_entry(past, key):
    keep_lines(past, lambda lines: lines[:3] + [lines[3].replace(b'"state":"failed"', b'"state":"completed"')] + lines[4:])


def edit_entry_and_fix_its_hash(past, key):
    entry = entries_of(past.root)[3]
    entry["at"] = "2020-01-01T00:00:00.000Z"
    entry["hash"] = entry_hash(entry)
    keep_lines(past, lambda lines: lines[:3] + [entry_line(entry)] + lines[4:])


def keep_lines(past, change):
    path = past.root / "state/ledger.jsonl"
    path.write_bytes(b"".join(change(path.read_bytes().splitlines(True))))


def truncate(past, key):
    """The whole root as it was before the last run, but for the ledger's end, of which no copy was kept."""
    end = past.root / "state/ledger.end"
    kept = end.read_bytes() if end.exists() else None
    shutil.rmtree(str(past.root))
    shutil.copytree(str(past.earlier), str(past.root))
    if kept is not None:
        end.write_bytes(kept)


def truncate_with_an_old_end(past, key):
    shutil.rmtree(str(past.root))
    shutil.copytree(str(past.earlier), str(past.root))


def truncate_and_remove_the_end(past, key):
    truncate(past, key)
    if (past.root / "state/ledger.end").exists():
        (past.root / "state/ledger.end").unlink()


def truncate_with_the_stolen_key(past, key):
    truncate(past, key)
    forger = Forger(past.root, key)
    forger.write()


def rehash_everything(past, key):
    """A failed run becomes a good one, and everything after it is made to fit; seals are left as they are."""
    Forger(past.root).rewrite(forge_success)


def rehash_with_the_stolen_key(past, key):
    Forger(past.root, key).rewrite(forge_success)


def delete_with_the_stolen_key(past, key):
    """A run goes without a trace, and what came after it is made to fit."""
    forger = Forger(past.root, key)
    del forger.entries[4]
    forger.rewrite()
    (past.root / "state/run_a.json").unlink()


def strip_the_seals(past, key):
    forger = Forger(past.root)
    for entry in forger.entries:
        entry.pop("seal", None)
    forger.rewrite(forge_success)
    if (past.root / "state/ledger.end").exists():
        (past.root / "state/ledger.end").unlink()


def forge_success(record, entry):
    if record["runId"] == "b":
        record["state"] = entry["state"] = "completed"
        record["stages"][1].update(status="skipped", reason="not due")
        del record["stages"][1]["keyParts"]


# What is found without an anchor, in the modes plain, HMAC and forward; and with the anchor besides. None: nothing is found,
# and that is part of what we promise to know. Where a cell is better than the general table of such schemes (docs: a chain
# sealed with HMAC does not show a truncation), that is the merit of state/ledger.end; the two rows below it show how far it goes.
LEDGER, CUT, NEW = "state/ledger.jsonl", ("TRUNCATED", "state/ledger.jsonl"), ("EDITED", "state/ledger.jsonl")
SAME = "as in plain"
ATTACKS = {
    edit_field: ([("EDITED", "state/run_b.json")], SAME, SAME, []),
    swap_files: ([("RENAMED", "state/run_b.json"), ("RENAMED", "state/run_c.json")], SAME, SAME, []),
    replace_output: ([("OUTPUT-CHANGED", "data/s2/result.txt")], SAME, SAME, []),
    remove_output: ([("OUTPUT-CHANGED", "data/t1/a.txt")], SAME, SAME, []),
    edit_and_fix_run_hash: ([("EDITED", "state/run_b.json")], SAME, SAME, []),
    delete_record: ([("DELETED", "state/run_c.json")], SAME, SAME, []),
    delete_run: ([("DELETED", LEDGER + ":5")], SAME, SAME, []),
    reorder_entries: ([("REORDERED", LEDGER + ":4")], SAME, SAME, []),
    edit_entry: ([("EDITED", LEDGER + ":4")], SAME, SAME, []),
    edit_entry_and_fix_its_hash: ([("EDITED", LEDGER + ":4")], SAME, SAME, []),
    truncate: (None, [CUT], [CUT], [CUT]),
    truncate_with_an_old_end: (None, None, None, [CUT]),
    truncate_and_remove_the_end: (None, [("DELETED", "state/ledger.end")], [("DELETED", "state/ledger.end")], [CUT]),
    truncate_with_the_stolen_key: (None, None, [("EDITED", "state/ledger.end")], [CUT]),
    rehash_everything: (None, [("EDITED", LEDGER + ":4")], [("EDITED", LEDGER + ":4")], [NEW]),
    rehash_with_the_stolen_key: (None, None, [("EDITED", LEDGER + ":1")], [NEW]),
    delete_with_the_stolen_key: (None, None, [("EDITED", LEDGER + ":1")], [CUT]),
    strip_the_seals: (None, [("UNSEALED", LEDGER)], [("UNSEALED", LEDGER)], [NEW]),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_attack(copied, attack, mode):
    past = copied(mode)
    attack(past, past.key)
    row = ATTACKS[attack]
    wanted = row[MODES.index(mode)]
    wanted = (row[0] if wanted == SAME else wanted) or []
    key = past.first_key or None
    assert found(check(past.root, key=key, outputs=True)) == sorted(wanted), check(past.root, key=key, outputs=True)
    assert found(check(past.root, anchors=[past.head], key=key, outputs=True)) == sorted(wanted + row[3])


def test_the_current_forward_key_shows_a_cut_that_an_old_end_hides(copied):
    """Who kept a copy of state/ledger.end can put all back to that day; the key file has counted on."""
    past = copied("forward")
    truncate_with_an_old_end(past, b"")
    assert found(check(past.root, key=past.key)) == [CUT]


def test_the_ledger_alone_cut_off_leaves_records_that_no_entry_has(copied):
    past = copied("plain")
    keep_lines(past, lambda lines: lines[:-2])
    assert found(check(past.root)) == [("UNLISTED", "state/run_e.json")]


# --- the ledger's lines: one finding for one fault, whatever follows

def moved(lines, first, last, to):
    block = lines[first:last]
    rest = lines[:first] + lines[last:]
    return rest[:to] + block + rest[to:]


def rival(lines, number):
    """Another entry of this number, not in the chain, behind the true one."""
    entry = json.loads(lines[number - 1].decode())
    entry["at"] = "2020-01-01T00:00:00.000Z"
    entry["hash"] = entry_hash(entry)
    return entry_line(entry)


def changed(line, **fields):
    entry = json.loads(line.decode())
    entry.update(fields)
    entry["hash"] = entry_hash(entry)
    return entry_line(entry)


LINES = {
    "an entry twice": (lambda lines: lines[:6] + [lines[2]] + lines[6:], [("REORDERED", 7, "entry 3 once more; it stands in line 3 already")]),
    "the last entry twice": (lambda lines: lines + [lines[-1]], [("REORDERED", 14, "entry 13 once more; it stands in line 13 already")]),
    "two neighbours swapped": (lambda lines: moved(lines, 7, 8, 8), [("REORDERED", 8, "entry 9 stands out of order; behind entry 7")]),
    "one moved far": (lambda lines: moved(lines, 2, 3, 10), [("REORDERED", 11, "entry 3 stands out of order; behind entry 11")]),
    "a block moved": (lambda lines: moved(lines, 2, 5, 9), [("REORDERED", 10, "entries 3 to 5 stand out of order; behind entry 12")]),
    "the last first": (lambda lines: moved(lines, 12, 13, 0), [("REORDERED", 1, "entry 13 stands out of order, first of all")]),
    "an acceptance gone": (lambda lines: lines[:9] + lines[10:], [("DELETED", 10, "entry 10 is missing before this line")]),
    "the beginning gone": (lambda lines: lines[2:], [("DELETED", 1, "entries 1 to 2 are missing before this line")]),
    "another entry of a number": (lambda lines: lines[:9] + [lines[9], rival(lines, 10)] + lines[10:],
                                  [("UNLISTED", 11, "a second entry of number 10; the chain has the one in line 10")]),
    "its rival first": (lambda lines: lines[:9] + [rival(lines, 10), lines[9]] + lines[10:],
                        [("UNLISTED", 10, "a second entry of number 10; the chain has the one in line 11")]),
    "a line of nonsense put in": (lambda lines: lines[:5] + [b"nonsense\n"] + lines[5:], [("MALFORMED", 6, "the line is not JSON: Expecting value in line 1")]),
    "nonsense in place of an entry": (lambda lines: lines[:9] + [b"nonsense\n"] + lines[10:], [("MALFORMED", 10, "the line is not JSON: Expecting value in line 1")]),
    "an empty line": (lambda lines: lines[:5] + [b"\n"] + lines[5:], [("MALFORMED", 6, "the line is an empty line")]),
    "blanks in an entry": (lambda lines: lines[:5] + [lines[5].replace(b'","', b'", "')] + lines[6:],
                           [("MALFORMED", 6, "the line is not in the form in which entries are written (blanks, order of names)")]),
    "Windows line ends": (lambda lines: lines[:5] + [lines[5].replace(b"\n", b"\r\n")] + lines[6:],
                          [("MALFORMED", 6, "the line is not in the form in which entries are written (blanks, order of names)")]),
    "a name twice": (lambda lines: lines[:9] + [lines[9].replace(b'{"at"', b'{"at":"x","at"')] + lines[10:], [("MALFORMED", 10, "the line is no record: a name stands in an object twice")]),
    "a fraction": (lambda lines: lines[:9] + [lines[9].replace(b'"seq":10', b'"seq":10.0')] + lines[10:], [("MALFORMED", 10, "the line is no record: 10.0 is not a number that records hold")]),
    "not a number": (lambda lines: lines[:9] + [lines[9].replace(b'"seq":10', b'"seq":NaN')] + lines[10:], [("MALFORMED", 10, "the line is no record: NaN is not a number that records hold")]),
    "a list": (lambda lines: lines[:9] + [b"[1]\n"] + lines[10:], [("MALFORMED", 10, "the line is not a JSON object")]),
    "not UTF-8": (lambda lines: lines[:9] + [b'{"a":"\xff"}\n'] + lines[10:], [("MALFORMED", 10, "the line is not UTF-8")]),
    "a lone surrogate": (lambda lines: lines[:9] + [lines[9].replace(b'"a comment only"', b'"\\ud800"')] + lines[10:], [("MALFORMED", 10, "the line is no entry: it cannot be hashed")]),
    "very deep": (lambda lines: lines[:9] + [b'{"a":' + b"[" * 200000 + b"]" * 200000 + b"}\n"] + lines[10:], [("MALFORMED", 10, "the line is no record: nested too deeply")]),
    "zero bytes": (lambda lines: lines[:9] + [b"\0" * 500 + b"\n"] + lines[10:], [("MALFORMED", 10, "the line is not JSON: Expecting value in line 1")]),
    "a word for a number": (lambda lines: lines[:9] + [lines[9].replace(b'"seq":10', b'"seq":"10"')] + lines[10:],
                            [("MALFORMED", 10, "the line is no entry: its seq is not of the form that runs write")]),
    "true for a number": (lambda lines: lines[:9] + [lines[9].replace(b'"seq":10', b'"seq":true')] + lines[10:],
                          [("MALFORMED", 10, "the line is no entry: its seq is not of the form that runs write")]),
    "of a newer runner": (lambda lines: lines[:9] + [lines[9].replace(b'"schema":1', b'"schema":2')] + lines[10:],
                          [("MALFORMED", 10, "the line was written by a newer runner (schema 2, this verifier knows 1); use that one's")]),
    "what is open made up": (lambda lines: lines[:12] + [changed(lines[12], open={"z": 1})], [("MALFORMED", 13, "entry 13 does not follow from the one before: its open")]),
    "two faults": (lambda lines: [lines[0].replace(b'"pipeline":"one"', b'"pipeline":"two"')] + lines[1:9] + lines[10:],
                   [("EDITED", 1, "entry 1 is not what its hash was taken of"), ("DELETED", 10, "entry 10 is missing before this line")]),
}


# A line that held the acceptance is gone: then nothing explains the key of s2. All other faults leave the records explained.
ACCEPTANCE_LOST = ("an acceptance gone", "nonsense in place of an entry", "a name twice", "a fraction", "not a number", "a list", "not UTF-8", "a lone surrogate",
                   "very deep", "zero bytes", "a word for a number", "true for a number", "of a newer runner", "two faults")


@pytest.mark.parametrize("name", LINES)
def test_lines(copied, name):
    """Each fault is told once: not again of what follows in the chain, nor of the records."""
    past = copied("plain")
    change, wanted = LINES[name]
    keep_lines(past, change)
    findings = check(past.root, outputs=True).findings
    assert [(one.kind, one.file, one.detail) for one in findings if one.file.startswith(LEDGER)] == [
        (kind, "%s:%d" % (LEDGER, line), detail) for kind, line, detail in wanted]
    others = [(one.kind, one.file) for one in findings if not one.file.startswith(LEDGER)]
    assert others == ([("EDITED", "state/stage_s2.json")] if name in ACCEPTANCE_LOST else [])


def test_no_byte_of_the_ledger_can_be_changed_unseen(copied):
    """Anywhere, to anything; but that a lost last byte, and zeros in the last line, are what a crash leaves, too: then the run's record is found without its entry."""
    past = copied("plain")
    path = past.root / "state/ledger.jsonl"
    data = path.read_bytes()
    chosen = random.Random(3)
    last = data.rfind(b"\n", 0, -1) + 1
    for place in chosen.sample(range(len(data) - 1), 200):
        other = chosen.choice([byte for byte in b'0afz{}", :\n\x00\xff' if byte != data[place]])
        path.write_bytes(data[:place] + bytes([other]) + data[place + 1:])
        found = LEDGER if other or place < last else "state/run_"
        assert any(one.file.startswith(found) for one in check(past.root).findings), (place, data[place - 20:place + 20], other)


def test_a_long_line_is_refused_in_bounded_memory(copied):
    past = copied("plain")
    with open(str(past.root / "state/ledger.jsonl"), "r+b") as file:
        file.seek(0, os.SEEK_END)
        file.truncate(file.tell() + (200 << 20))        # zeros that take no space on the disk
        file.seek(0, os.SEEK_END)
        file.write(b"\n")
    # Linux counts in ru_maxrss what the process was before it became this program: a copy of the tests, which may be large.
    peak = {"linux": "int(open('/proc/self/status').read().partition('VmHWM:')[2].split()[0]) >> 10", "win32": "0"}.get(
        sys.platform, "__import__('resource').getrusage(0).ru_maxrss >> 20")
    code = "import sys; sys.path.insert(0, %r); import ledger_verify; report = ledger_verify.verify(%r); print(*report.findings); print(" + peak + ")"
    out = subprocess.run([sys.executable, "-c", code % (str(ROOT / "src"), str(past.root))], stdout=subprocess.PIPE, check=True, timeout=60).stdout.decode().splitlines()
    assert out[0] == "[MALFORMED] state/ledger.jsonl:14: the line is longer than any entry" and int(out[1]) < 120, out


# --- run records

def test_a_record_under_another_name(copied):
    past = copied("plain")
    (past.root / "state/run_c.json").rename(past.root / "state/run_z.json")
    assert list(map(str, check(past.root).findings)) == ["[RENAMED] state/run_z.json: holds the record of run c, which belongs in state/run_c.json"]


def test_a_record_overwritten_by_another_is_one_finding(copied):
    past = copied("plain")
    shutil.copy(str(past.root / "state/run_c.json"), str(past.root / "state/run_b.json"))
    assert list(map(str, check(past.root).findings)) == [
        "[DELETED] state/run_b.json: the record of run b that entry 4 committed is gone; a copy of the record of run c stands in its place"]


def test_a_copy_of_a_record(copied):
    past = copied("plain")
    shutil.copy(str(past.root / "state/run_c.json"), str(past.root / "state/run_c.9.json"))
    assert list(map(str, check(past.root).findings)) == ["[UNLISTED] state/run_c.9.json: a copy of state/run_c.json"]


def test_two_calls_under_one_run_id_swapped(copied):
    past = copied("plain")
    state = past.root / "state"
    (state / "run_a.json").rename(state / "run_a.2.json")
    (state / "run_a.1.json").rename(state / "run_a.json")
    assert list(map(str, check(past.root).findings)) == ["[RENAMED] state/run_a.json: invocation 1 stands in place of the newest, which is in state/run_a.2.json"]


def test_a_record_that_no_run_wrote(copied):
    past = copied("plain")
    record = record_of(past.root, "run_c.json")
    record["runId"] = "never"
    record["runHash"] = run_hash(record)
    store(past.root, "run_never.json", record)
    assert list(map(str, check(past.root).findings)) == ["[UNLISTED] state/run_never.json: no entry commits this record of run never"]


def test_a_record_that_says_running_though_the_run_ended(copied):
    past = copied("plain")
    record = record_of(past.root, "run_c.json")
    record["state"] = "running"
    del record["runHash"]
    store(past.root, "run_c.json", record)
    assert list(map(str, check(past.root).findings)) == ["[EDITED] state/run_c.json: it says running, but entry 9 ended run c"]


def test_the_run_hash_alone_changed(copied):
    past = copied("plain")
    store(past.root, "run_c.json", dict(record_of(past.root, "run_c.json"), runHash="0" * 64))
    assert list(map(str, check(past.root).findings)) == ["[EDITED] state/run_c.json: its runHash is not the one that entry 9 committed; the rest of it is"]


def test_how_a_record_was_edited_is_said(copied):
    past = copied("plain")
    edit_field(past, b"")
    assert check(past.root).findings[0].detail == "the record is not the one that entry 4 committed"
    edit_and_fix_run_hash(past, b"")
    assert check(past.root).findings[0].detail == "the record is not the one that entry 4 committed (its runHash was made anew)"


@pytest.mark.parametrize("data, detail", (
    (b"", "is not JSON: Expecting value in line 1"), (b"{}", "the record is not the one that entry 9 committed"), (b"[]", "is not a JSON object"),
    (b'{"a":1', "is not JSON: "), (b"\xff\xfe", "is not UTF-8"), (b'{"a":1,"a":2}', "a name stands in an object twice"), (b'{"a":1e5}', "1e5 is not a number that records hold"),
    (b'{"a":' + b"[" * 100000, "nested too deeply"), (b'{"a":"\\udfff"}', "it cannot be hashed"), (b"\0", "is not JSON")))
def test_a_damaged_record(copied, data, detail):
    past = copied("plain")
    (past.root / "state/run_c.json").write_bytes(data)
    report = check(past.root)
    assert [one.file for one in report.findings] == ["state/run_c.json"] and detail in report.findings[0].detail, report


def test_run_ids_that_end_in_a_number_are_told_apart_by_content(tmp_path):
    """run_a.1.json is the first call of run a, kept, or the only call of run a.1: never is one taken for the other."""
    project = Project(tmp_path / "root")
    project.write("data/in.txt", "x")
    project.spec({"processor": "bin/stage_copy.py", "inputs": ["data/*.txt"]})
    project.ok("--run-id", "a")
    project.ok("--run-id", "a")
    project.ok("--run-id", "b.1")
    project.ok("--run-id", "b")
    assert project.run("--run-id", "a.1").code == 2         # the runner refuses what would collide
    report = check(project.root, outputs=True)
    assert (report.findings, report.runs) == ([], 4)
    assert [project.json("state/run_%s.json" % name)["runId"] for name in ("a", "a.1", "b", "b.1")] == ["a", "a", "b", "b.1"]
    os.replace(str(project.path("state/run_b.1.json")), str(project.path("state/run_b.json")))
    assert [str(one) for one in check(project.root).findings] == [
        "[RENAMED] state/run_b.json: holds the record of run b.1, which belongs in state/run_b.1.json",
        "[DELETED] state/run_b.json: the record of run b (invocation 2) that entry 5 committed is gone; the record of run b.1 stands in its place"]


# --- metrics, logs

def test_the_newest_record_under_the_name_of_an_earlier_call_hides_no_edit_of_its_metrics(project):
    """It has that name where the next call died before it began, and perhaps had written its metrics."""
    project.spec({"processor": project.processor("p", "open(out + '/o', 'w').close()\n")})
    project.ok("--run-id", "r")
    project.path("state/run_r.json").rename(project.path("state/run_r.1.json"))
    told = "state/run_r.1.json is the record of the newest call of run r: the next one died before it began, or somebody has renamed it"
    assert (check(project.root).findings, check(project.root).notes) == ([], [told])
    metrics = record_of(project.root, "metrics_r.json")
    store(project.root, "metrics_r.json", dict(metrics, okStages=7))
    assert found(check(project.root)) == [("EDITED", "state/metrics_r.json")]
    store(project.root, "metrics_r.json", dict(metrics, invocation=2))
    assert check(project.root).notes == ["state/metrics_r.json is of a call that died before its end was entered", told]


@pytest.mark.parametrize("path, data, wanted", (
    ("state/metrics_b.json", b"{}", [("EDITED", "state/metrics_b.json")]), ("state/metrics_b.json", None, [("DELETED", "state/metrics_b.json")]),
    ("state/logs/c/s1.1.log", b"other", [("EDITED", "state/logs/c/s1.1.log")]), ("state/logs/c/s1.1.log", None, [])))
def test_metrics_and_logs(copied, path, data, wanted):
    past = copied("plain")
    if data is None:
        (past.root / path).unlink()
    else:
        (past.root / path).write_bytes(data)
    report = check(past.root)
    assert (found(report), report.notes) == (wanted, ["1 log is no longer there"] if not wanted else [])


# --- stage records

def put_field(name, value):
    def edit(record):
        record[name] = value
    return edit


def test_edits_of_a_stage_record_are_named(copied):
    past = copied("plain")
    edits = {
        "lastStatus: it says failed, the record of run c says ok": put_field("lastStatus", "failed"),
        "lastStatus: it says running, the record of run c says ok": put_field("lastStatus", "running"),
        "keyParts: they are not those of its idempotencyKey": lambda record: record["keyParts"].update(args=["-v"]),
        "outputs: the record of run c has others": lambda record: record["outputs"][0].update(sha256="0" * 64),
        "lastRunId: run d did not make this stage": put_field("lastRunId", "d"),
        "pipeline: run c ran one": put_field("pipeline", "two")}
    for detail, edit in edits.items():
        record = record_of(past.root, "stage_s1.json")
        edit(record)
        store(past.root, "stage_s1.json", record)
        assert [str(one) for one in check(past.root).findings] == ["[EDITED] state/stage_s1.json: " + detail]
        shutil.copy(str(past.earlier / "state/stage_s1.json"), str(past.root / "state/stage_s1.json"))
    assert check(past.root).findings == []


def test_a_stage_record_with_a_key_of_its_own(copied):
    """As somebody would write it who wants a changed processor to pass without `accept`."""
    past = copied("plain")
    record = record_of(past.root, "stage_s1.json")
    record["keyParts"]["args"] = ["-v"]
    record["idempotencyKey"] = ledger_format.stage_key(record["keyParts"])
    store(past.root, "stage_s1.json", record)
    assert [str(one) for one in check(past.root).findings] == ["[EDITED] state/stage_s1.json: idempotencyKey: the record of run c has another"]


def test_without_the_acceptance_the_accepted_key_is_an_edit(copied):
    past = copied("plain")
    keep_lines(past, LINES["an acceptance gone"][0])
    assert ("EDITED", "state/stage_s2.json") in found(check(past.root))


def test_a_stage_record_of_an_unknown_run(copied):
    past = copied("plain")
    record = record_of(past.root, "stage_s1.json")
    record["lastRunId"] = "never"
    store(past.root, "stage_s1.json", record)
    assert [str(one) for one in check(past.root).findings] == ["[UNLISTED] state/stage_s1.json: it says that run never made it, which no entry has"]


def test_an_older_stage_record_put_back(copied):
    past = copied("plain")
    shutil.copy(str(past.earlier / "state/stage_t2.json"), str(past.root / "state/stage_t2.json"))
    assert [str(one) for one in check(past.root).findings] == [
        "[EDITED] state/stage_t2.json: an older record was put back: it is of run b, and run e made the stage later"]


@pytest.mark.parametrize("later", ["skipped it", "was of another stage", "did not reach it", "failed before it"])
def test_a_stage_record_that_names_a_run_which_did_not_make_the_stage_hides_no_output(project, later):
    """Else one edit of it would say that nobody knows what lies there."""
    body = "open(out + '/' + os.path.basename(inputs[0]), 'w').write('x')\n"
    project.write("data/in/a.txt", "a")
    project.write("data/other.txt", "b")
    project.spec({"processor": project.processor("flaky", "sys.exit(os.path.exists('data/bad'))\n"), "watch": ["data/other.txt"]},
                 {"processor": project.processor("p", body), "forEach": "data/in/*.txt", "outputDir": "data/s2"})
    project.ok("--run-id", "r1")
    project.write("data/other.txt", "c")
    if later == "did not reach it":
        project.write("data/bad", "")
    elif later == "failed before it":
        project.path("data/in/a.txt").rename(project.path("data/a.txt"))
    project.run("--run-id", "r2", *(["--only", "s1"] if later == "was of another stage" else ["--jobs", "1"]))
    if later == "failed before it":
        project.path("data/a.txt").rename(project.path("data/in/a.txt"))
    assert "data/s2" not in project.ok("verify", "--outputs").out
    record = project.json("state/stage_s2.json")
    assert record["lastRunId"] == "r1"
    project.write("data/s2/a.txt", "forged")
    for status in ("failed", "running"):
        store(project.root, "stage_s2.json", dict(record, lastRunId="r2", lastStatus=status))
        report = [str(one) for one in check(project.root, outputs=True).findings]
        assert ("[EDITED] state/stage_s2.json: lastRunId: run r2 did not make this stage" in report) == (later != "failed before it"), report
        assert "[OUTPUT-CHANGED] data/s2/a.txt: it is not what stage s2 of run r1 made" in report, report


@pytest.mark.parametrize("is_killed", [True, False])
def test_a_run_that_could_not_tell_of_a_stage_is_not_taken_for_one_that_did_not_make_it(project, is_killed, tmp_path):
    """Its record was written last before the stage failed; and the next run has failed before the stage began."""
    project.processor("slow", "open('data/started', 'w').close()\nwhile not os.path.exists('data/go'):\n    time.sleep(0.01)\n")
    project.write("data/in.txt", "x")
    project.spec({"processor": project.processor("p", "open(out + '/o', 'w').close()\n")}, {"processor": project.processor("bad", "sys.exit(3)\n"), "inputs": ["data/in.txt"]},
                 {"processor": "bin/slow.py"})
    run = project.start("--run-id", "k", "--keep-going", "--jobs", "1")
    wait_until(project.path("data/started").exists)
    project.write("data/go", "")
    if is_killed:
        run.kill()
    run.communicate()
    project.path("data/in.txt").unlink()
    project.run("--run-id", "n", "--keep-going")
    assert project.json("state/stage_s2.json")["lastRunId"] == "k"
    done = project.ok("verify", "--outputs")
    assert "stage_s2.json" not in done.out, done
    done = project.run("evidence", "n", "-o", str(tmp_path / "n.zip"))
    assert done.code == 0 and "[EDITED]" not in done.out, done
    assert subprocess.run([sys.executable, str(ROOT / "src/evidence_verify.py"), str(tmp_path / "n.zip")], stdout=subprocess.DEVNULL, timeout=60).returncode == 0


def test_a_stage_record_under_another_name_and_a_damaged_one(copied):
    past = copied("plain")
    (past.root / "state/stage_s1.json").rename(past.root / "state/stage_x.json")
    (past.root / "state/stage_t1.json").write_bytes(b"{")
    assert found(check(past.root)) == [("MALFORMED", "state/stage_t1.json"), ("RENAMED", "state/stage_x.json")]


def test_a_missing_stage_record_is_a_note(copied):
    past = copied("plain")
    (past.root / "state/stage_s1.json").unlink()
    report = check(past.root)
    assert (report.findings, report.notes) == ([], ["no stage record of s1: reset, or removed; the run records tell all the same"])


# --- what a crash leaves is no tampering

@pytest.mark.parametrize("torn", [b'{"at":"20', b"\0\0\0\0\0\0\0}\n", b"\n\n \r\n{\"at"])
def test_a_torn_last_line_is_a_note_until_the_next_run_cuts_it(copied, torn):
    past = copied("plain")
    with open(str(past.root / "state/ledger.jsonl"), "ab") as file:
        file.write(torn)
    report = check(past.root)
    assert (report.findings, report.head) == ([], past.head) and "torn (9 bytes)" in report.notes[0]
    go("--pipeline", past.root / "two.json", "--run-id", "healer")
    report = check(past.root)
    assert (report.findings, report.notes, report.entries, entries_of(past.root)[-1]["torn"]) == ([], [], 14, 9)


def test_a_kill_between_the_entry_and_the_name_of_the_record(copied):
    past = copied("plain")
    record = record_of(past.root, "run_e.json")
    (past.root / "state/run_e.json").rename(past.root / "state/.run.json.tmp")
    del record["runHash"]
    store(past.root, "run_e.json", dict(record, state="running"))
    report = check(past.root, outputs=True)
    assert (report.findings, report.notes) == ([], ["state/.run.json.tmp is the record of run e: a kill came before it got its name, the next run gives it"])
    go("--pipeline", past.root / "two.json", "--run-id", "healer")
    report = check(past.root, outputs=True)
    assert (report.findings, report.notes, record_of(past.root, "run_e.json")["state"]) == ([], [], "completed")


@pytest.mark.parametrize("mode", MODES)
def test_a_run_that_goes_on_dies_and_is_closed(copied, mode):
    past = copied(mode)
    seal = past.root.parent / "seal.key"
    seal.write_bytes(past.key)
    seal.chmod(0o600)
    more = ["--key", seal] if past.key else []
    argv = command("--pipeline", past.root / "three.json", "--run-id", "slow", *more)
    running = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    note = "run slow has begun and not ended: it is going on, or it died and the next run closes it"
    try:
        (past.root / "data/w/started").unlink()     # it was left by the run that was killed
        wait_for(past.root / "data/w/started")
        report = check(past.root, key=past.first_key or None, outputs=True)
        assert (report.findings, report.notes) == ([], [note])
    finally:
        running.kill()
        running.wait()
    report = check(past.root, key=past.first_key or None, outputs=True)
    assert (report.findings, report.notes) == ([], [note])
    (past.root / "data/go").write_bytes(b"")
    go("--pipeline", past.root / "three.json", "--run-id", "after", *more)
    report = check(past.root, key=past.first_key or None, outputs=True)
    assert (report.findings, report.notes, report.runs) == ([], [], 9)


def test_while_runs_are_written_nothing_is_taken_for_tampering(copied):
    """Verified over and over while the real program appends; a half-made change must not show."""
    past = copied("plain")
    script = ("import subprocess, sys\n"
              "for number in range(5):\n"
              "    subprocess.run(sys.argv[1:] + ['--force', 's1', '--run-id', 'n%d' % number], check=True, stdout=subprocess.DEVNULL)\n")
    writer = subprocess.Popen([sys.executable, "-c", script] + command("--pipeline", past.root / "one.json"))
    count = 0
    try:
        while writer.poll() is None:
            assert check(past.root, outputs=False).findings == []
            count += 1
    finally:
        writer.kill()
        writer.wait()
    assert writer.returncode == 0 and count > 5 and check(past.root).runs == 12


def test_a_change_while_reading_makes_it_read_again(copied, monkeypatch):
    past = copied("plain")
    whole = (past.root / "state/run_c.json").read_bytes()
    (past.root / "state/run_c.json").write_bytes(b"{}")
    passes = []

    class Watched(ledger_verify.Verification):
        def run(self, *arguments):
            super().run(*arguments)
            passes.append(len(self.book.findings))
            (past.root / "state/aside").write_bytes(whole)
            os.replace(str(past.root / "state/aside"), str(past.root / "state/run_c.json"))
    monkeypatch.setattr(ledger_verify, "Verification", Watched)
    assert check(past.root).findings == [] and passes == [1, 0]


@pytest.mark.parametrize("maker", ("short", "long"))
def test_two_runs_at_once_that_share_a_stage_name(copied, maker):
    """The stage record is of the run that made the stage last; neither the order of beginnings nor that of ends tells which."""
    past = copied("plain")
    (past.root / "data/w/started").unlink()
    stages = [{"name": "s1", "processor": "bin/stage_copy.py", "inputs": ["data/in/*.txt"], "outputDir": "data/x1"},
              {"name": "w", "processor": "bin/slow.py", "outputDir": "data/w"}]
    (past.root / "four.json").write_text(json.dumps({"name": "four", "stages": stages[::-1] if maker == "long" else stages}))
    longer = subprocess.Popen(command("--pipeline", past.root / "four.json", "--run-id", "long"), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        wait_for(past.root / "data/w/started")
        go("--pipeline", past.root / "one.json", "--run-id", "short", "--force", "s1")
        (past.root / "data/go").write_bytes(b"")
        assert longer.wait(DEADLINE_S) == 0
    finally:
        longer.kill()
        longer.wait()
    assert [one["runId"] for one in entries_of(past.root)[-4:]] == ["long", "short", "short", "long"]
    assert record_of(past.root, "stage_s1.json")["lastRunId"] == maker
    report = check(past.root, outputs=True)
    assert (report.findings, report.notes) == ([], [])


# --- hostile content: never a traceback, never outside the root

def with_hostile(past, edit):
    """Change the record of run c and make all fit, as an attacker would who can write everything."""
    Forger(past.root).rewrite(lambda record, entry: edit(record) if record["runId"] == "c" else None)


@pytest.mark.parametrize("path", ("../outside.log", "/etc/hostname", "state/../../outside.log", "state/logs/../../../outside.log", "a\0b", "", "state/logs/"))
def test_a_log_path_that_leads_outside(copied, path):
    past = copied("plain")
    (past.root.parent / "outside.log").write_bytes(b"secret")
    with_hostile(past, lambda record: record["stages"][0]["logs"][0].update(path=path))
    report = check(past.root)
    assert [(one.kind, one.file) for one in report.findings] == [("MALFORMED", "state/run_c.json"), ("UNLISTED", "state/logs/c/s1.1.log")], report
    assert str(report.findings[0]).endswith("is no path below the root; it was not opened") and "\0" not in str(report.findings[0])


def test_what_a_sloppy_forger_forgets(copied):
    """All digests and links fit; the content of the records does not."""
    past = copied("plain")

    def of(run_id, edit):
        return lambda record, entry: edit(record, entry) if record["runId"] == run_id else None
    skip = "stage s1 was skipped "
    for edit, relink, wanted in (
            (of("d", lambda record, entry: record["stages"][0]["madeBy"].update(runId="never")), True,
             "[UNLISTED] state/run_d.json: " + skip + "as made by run never, which no entry has"),
            (of("d", lambda record, entry: record["stages"][0].update(key="0" * 64)), True,
             "[EDITED] state/run_d.json: " + skip + "under another key than that under which run c made it"),
            (of("k", lambda record, entry: record.update(host="elsewhere")), False,
             "[EDITED] state/run_c.json: its prevRunHash is not the digest of the record that was sealed before it"),
            (of("b", lambda record, entry: entry.update(state="completed")), True,
             "[EDITED] state/ledger.jsonl:4: entry 4 says run b, completed; its record state/run_b.json says run b, failed")):
        shutil.rmtree(str(past.root))
        shutil.copytree(str(past.earlier), str(past.root))
        Forger(past.root).rewrite(edit, relink)
        assert [str(one) for one in check(past.root).findings] == [wanted]


def test_a_run_that_ends_twice(copied):
    past = copied("plain")
    last = entries_of(past.root)[-1]
    keep_lines(past, lambda lines: lines + [changed(lines[-1], seq=14, prevHash=last["hash"])])
    assert [str(one) for one in check(past.root).findings] == ["[MALFORMED] state/ledger.jsonl:14: entry 14 ends run e a second time; entry 13 did"]


def test_the_record_of_an_earlier_call_is_missed_while_a_later_one_goes_on(copied):
    """state/run_b.json is of the call that goes on; the earlier record was kept as state/run_b.1.json, and removed."""
    past = copied("plain")
    (past.root / "three.json").write_text((past.root / "three.json").read_text().replace('"three"', '"two"'))
    (past.root / "data/w/started").unlink()
    running = subprocess.Popen(command("--pipeline", past.root / "three.json", "--run-id", "b"), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        wait_for(past.root / "data/w/started")
        assert check(past.root).findings == []
        (past.root / "state/run_b.1.json").unlink()
        assert [str(one) for one in check(past.root).findings] == ["[DELETED] state/run_b.1.json: the record of run b that entry 4 committed is gone"]
    finally:
        running.kill()
        running.wait()


def test_a_rewritten_history_in_which_key_and_parts_disagree(copied):
    past = copied("plain")
    with_hostile(past, lambda record: record["stages"][0]["keyParts"].update(args=["-v"]))
    assert [str(one) for one in check(past.root).findings] == ["[EDITED] state/run_c.json: stage s1: its key is not that of its parts"]


@pytest.mark.parametrize("path", ("../outside.txt", "/etc/hostname"))
def test_an_output_path_that_leads_outside(copied, path):
    past = copied("plain")

    def edit(record):
        record["stages"][0]["outputs"][0]["path"] = path
        record["stages"][0]["keyParts"]["outputDir"] = ".."
        record["stages"][0]["keyParts"]["env"] = {"NO": "key to compute"}
    with_hostile(past, edit)
    (past.root / "state/stage_s1.json").unlink()
    report = check(past.root, outputs=True)
    assert [(one.kind, one.detail.split(": it ")[1]) for one in report.findings] == [("MALFORMED", "is no path below the root; it was not opened")], report


def test_links_pipes_and_folders_in_place_of_files(copied):
    past = copied("plain")
    state, outside = past.root / "state", past.root.parent / "outside"
    outside.mkdir()
    shutil.copy(str(state / "run_b.json"), str(outside / "run_b.json"))
    for name, make in (("state/run_b.json", lambda path: path.symlink_to(outside / "run_b.json")), ("state/run_k.json", Path.mkdir),
                       ("state/run_d.json", lambda path: os.mkfifo(str(path))), ("state/stage_s1.json", Path.mkdir), ("state/metrics_e.json", Path.mkdir),
                       ("state/logs/e/t2.1.log", lambda path: path.symlink_to("/dev/zero")), ("data/s2/result.txt", lambda path: os.mkfifo(str(path))),
                       ("data/t2/f.txt", lambda path: path.symlink_to(outside / "run_b.json"))):
        if make is Path.mkdir or sys.platform != "win32":      # links need a right there, and pipes are no files
            (past.root / name).unlink()
            make(past.root / name)
    assert [str(one) for one in sorted(check(past.root, outputs=True).findings, key=lambda one: one.file)] == [text for text in (
        "[OUTPUT-CHANGED] data/s2/result.txt: it is not a regular file; stage s2 of run c made it",
        "[OUTPUT-CHANGED] data/t2/f.txt: an output of stage t2, run e: it leads out of the root by a symbolic link; it was not opened",
        "[MALFORMED] state/metrics_e.json: is a folder, not a file",
        "[MALFORMED] state/run_b.json: is a symbolic link, not a file; entry 4 committed another record",
        "[MALFORMED] state/run_d.json: is not a regular file; entry 11 committed another record",
        "[MALFORMED] state/run_e.json: stage t2: its log state/logs/e/t2.1.log leads out of the root by a symbolic link; it was not opened",
        "[MALFORMED] state/run_k.json: is a folder, not a file; entry 7 committed another record",
        "[MALFORMED] state/stage_s1.json: is a folder, not a file") if "is a folder" in text or sys.platform != "win32"]


def test_a_folder_that_is_a_link_out_of_the_root(copied, junctions):
    past = copied("plain")
    shutil.move(str(past.root / "data/s2"), str(past.root.parent / "elsewhere"))
    if sys.platform == "win32":
        junctions.make(past.root.parent / "elsewhere", past.root / "data/s2")
    else:
        (past.root / "data/s2").symlink_to(past.root.parent / "elsewhere")
    assert [one.detail for one in check(past.root, outputs=True).findings] == ["an output of stage s2, run c: it leads out of the root by a symbolic link; it was not opened"]


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="names there are Unicode")
def test_a_file_name_that_is_not_unicode(copied):
    past = copied("plain")
    with open(os.fsencode(str(past.root)) + b"/state/run_\xff\x1b.json", "wb") as file:
        file.write(b"{}")
    done = go("verify", "--root", past.root, code=5)
    assert done.out.split("\n")[0] == "[MALFORMED] state/run_\\udcff\\x1b.json: is not the record of a run", done


SHAPES = ("stages", "state", "prevRunHash", "metrics", "runId", "invocation", "pipeline", "schema")


@pytest.mark.parametrize("value", (None, True, -1, "", "\x1b[2J", [], [[]], {}, [{"stage": 1}], [{"stage": "s", "status": "ok", "logs": [{}]}],
                                   [{"stage": "s", "status": "ok", "outputs": 7}], [{"stage": "s", "status": "ok", "keyParts": {}, "key": "k"}],
                                   [{"stage": "s", "status": "skipped", "madeBy": {"runId": "a"}}]), ids=ascii)
def test_a_record_of_another_shape_that_all_else_fits(copied, value):
    """Whatever a rewritten history holds, verify ends with findings, or with none where the value may be."""
    past = copied("plain")
    for name in SHAPES:
        shutil.rmtree(str(past.root))
        shutil.copytree(str(past.earlier), str(past.root))
        with_hostile(past, put_field(name, value))
        for report in (check(past.root, outputs=True), check(past.root, "c", outputs=True)):
            assert all("\x1b" not in str(one) for one in report.findings)


@pytest.mark.parametrize("name", ("stage", "lastStatus", "idempotencyKey", "keyParts", "outputs", "lastRunId", "lastInvocation", "pipeline", "schema"))
def test_a_stage_record_of_another_shape(copied, name):
    past = copied("plain")
    for value in (None, True, 0.5, [], {}, [{}], {"env": 5}):
        record = record_of(past.earlier, "stage_s1.json")
        record[name] = value
        store(past.root, "stage_s1.json", record)
        assert {one.file for one in check(past.root, outputs=True).findings} == {"state/stage_s1.json"}, (name, value)


# --- keys

@pytest.mark.parametrize("mode", ("hmac", "forward"))
def test_a_sealed_ledger_without_a_key_says_that_seals_were_not_checked(pasts, mode):
    report = check(pasts(mode).root)
    assert report.findings == [] and len(report.notes) == 1 and report.notes[0].endswith(": not checked; give the key file with --key")


@pytest.mark.parametrize("mode, other", (("hmac", "forward"), ("forward", "hmac"), ("plain", "hmac")))
def test_another_key_is_one_finding(pasts, mode, other):
    assert [(one.kind, one.file) for one in check(pasts(mode).root, key=pasts(other).first_key).findings] == [("UNSEALED", LEDGER)]


def test_a_later_forward_key_vouches_for_the_end_and_says_what_it_does_not_check(copied):
    past = copied("forward")
    report = check(past.root, key=past.key)
    assert (report.findings, report.notes) == ([], ["13 entries not checked by their seals: the key given is number 13, which only tells of later ones; the first key tells of all"])
    rehash_everything(past, b"")
    assert [(one.kind, one.file) for one in check(past.root, key=past.key).findings] == [("EDITED", "state/ledger.end")]


def test_an_unsealed_entry_after_sealed_ones(copied):
    """Without any key: an entry was appended by somebody who had none."""
    past = copied("hmac")
    last = entries_of(past.root)[-1]
    entry = dict(last, seq=14, prevHash=last["hash"], event="accept", runId="accept", invocation=0, stage="s1", oldKey="0", newKey="1")
    del entry["seal"]
    entry["hash"] = entry_hash(entry)
    keep_lines(past, lambda lines: lines + [entry_line(entry)])
    assert [str(one) for one in check(past.root).findings] == ["[UNSEALED] state/ledger.jsonl:14: entry 14 is not sealed, though entry 1 is and all that follow must be"]


def without_seals(lines, numbers):
    entries = [json.loads(line.decode()) for line in lines]
    return [entry_line({name: value for name, value in one.items() if name != "seal" or one["seq"] not in numbers}) for one in entries]


@pytest.mark.parametrize("with_key", (True, False))
def test_a_seal_taken_off_the_first_entries_of_a_forward_ledger(copied, with_key):
    """The number of the first seal that is left tells how many there were; the entry that has it was not touched."""
    past = copied("forward")
    key = past.first_key if with_key else None
    for numbers, said in (((1,), "1: entry 1 is not sealed, though entry 2 has seal number 1"),
                          ((1, 2, 3), "1: entries 1 to 3 are not sealed, though entry 4 has seal number 3")):
        keep_lines(past, functools.partial(without_seals, numbers=numbers))
        assert [str(one) for one in check(past.root, key=key).findings] == ["[UNSEALED] state/ledger.jsonl:%s: the seals were taken off" % said]


def test_a_ledger_begun_unsealed_and_then_sealed_with_a_forward_key(project, tmp_path):
    """Its first seal has number 0, and nothing before it is missed; one that is taken off later is."""
    key = tmp_path / "seal.key"
    go("new-key", key, "--forward")
    first_key = key.read_bytes()
    project.spec({"processor": project.processor("p", "open(out + '/o', 'w').close()\n")})
    for words in (("a",), ("b", "--key", str(key), "--force", "s1"), ("c", "--key", str(key))):
        project.ok("--run-id", *words)
    past = Past(project.root, None, first_key, b"", "")
    assert [one.get("seal", {}).get("index") for one in entries_of(past.root)] == [None, None, 0, 1, 2]
    assert found(check(past.root, key=first_key)) == []
    keep_lines(past, lambda lines: without_seals(lines, (3,)))
    assert [str(one) for one in check(past.root, key=first_key).findings] == [
        "[UNSEALED] state/ledger.jsonl:3: entry 3 is not sealed, though entry 4 has seal number 1: the seals were taken off"]
    assert found(check(past.root)) == [("UNSEALED", LEDGER + ":3")]


@pytest.mark.parametrize("index", (1, 2, 3, 10 ** 15))
def test_a_first_seal_whose_number_was_made_up(copied, index):
    """It tells nothing of the entries before it."""
    past = copied("forward")

    def forged(lines):
        bare = without_seals(lines, (1, 2))
        third = json.loads(bare[2].decode())
        third["seal"]["index"] = index
        return bare[:2] + [entry_line(third)] + bare[3:]
    keep_lines(past, forged)
    wanted = [("UNSEALED", LEDGER + ":1")] if index == 2 else [("EDITED", LEDGER + ":3")]
    assert found(check(past.root, key=past.first_key)) == wanted


def test_a_damaged_first_line_does_not_make_the_seal_behind_it_doubtful(copied):
    past = copied("forward")
    keep_lines(past, lambda lines: [b"nonsense\n"] + lines[1:])
    assert [one for one in found(check(past.root, key=past.first_key)) if one[1].startswith(LEDGER)] == [("MALFORMED", LEDGER + ":1")]


@pytest.mark.parametrize("mode", ("hmac", "forward"))
def test_an_end_that_is_further_behind_than_a_kill_leaves_it(copied, mode):
    past = copied(mode)
    shutil.copy(str(past.earlier / "state/ledger.end"), str(past.root / "state/ledger.end"))
    assert [str(one) for one in check(past.root, key=past.first_key).findings] == [
        "[EDITED] state/ledger.end: it is 2 entries behind the ledger, which no kill leaves: an older one was put back"]


@pytest.mark.parametrize("content", (b"", b"{", b"{}", b"[]", b'{"schema":1,"seq":true,"hash":"","keyId":"","mode":"","mac":""}'))
def test_a_damaged_end(copied, content):
    past = copied("hmac")
    (past.root / "state/ledger.end").write_bytes(content)
    assert found(check(past.root, key=past.first_key)) == [("MALFORMED", "state/ledger.end")]


def test_seals_of_forged_numbers_cost_no_time(copied):
    past = copied("forward")

    last = entries_of(past.root)[-1]
    last["seal"]["index"] = 10 ** 15 - 1     # as many keys as entries, so that only the number is absurd
    keep_lines(past, lambda lines: lines[:-1] + [entry_line(last)])
    assert ("EDITED", LEDGER + ":13") in found(check(past.root, key=past.first_key))
    keep_lines(past, lambda lines: lines[:-1] + [changed(entry_line(last), seq=10 ** 15)])
    assert ("DELETED", LEDGER + ":13") in found(check(past.root, key=past.first_key))


def test_numbers_of_seals_forged_in_each_entry_cost_no_more_than_one(monkeypatch):
    steps = []
    monkeypatch.setattr(ledger_chain, "next_key", lambda key: steps.append(1) or key)
    monkeypatch.setattr(ledger_chain, "KEY_STEPS", 100)
    ring = ledger_chain.KeyRing(("forward", "0" * 16, 5, b"k"))
    assert sum(ring.at(5 + 101 * number) is not None for number in range(50)) == 2 and len(steps) == 101
    assert all(ring.at(107 + number) for number in range(200))


def test_an_end_of_another_hash(copied):
    """Without any key: two files that contradict each other."""
    past = copied("hmac")
    store(past.root, "ledger.end", dict(record_of(past.root, "ledger.end"), hash="0" * 64))
    assert [str(one) for one in check(past.root).findings] == [
        "[EDITED] state/ledger.end: it names another entry 13 than the ledger has: one of the two was written anew"]


def test_a_damaged_line_does_not_make_the_seals_behind_it_doubtful(copied):
    past = copied("forward")
    keep_lines(past, LINES["nonsense in place of an entry"][0])
    assert [one for one in found(check(past.root, key=past.first_key)) if one[1].startswith(LEDGER)] == [("MALFORMED", LEDGER + ":10")]


def test_an_end_that_names_no_entry(copied):
    past = copied("hmac")
    store(past.root, "ledger.end", dict(record_of(past.root, "ledger.end"), seq=0))
    assert [str(one) for one in check(past.root).findings] == ["[EDITED] state/ledger.end: it names entry 0, which no ledger has"]


# --- the command

def test_the_command_prints_findings_notes_and_one_closing_line(copied):
    past = copied("plain")
    done = go("verify", "--root", past.root, "--anchor", past.head)
    assert done.out == "verify: 13 entries, 7 runs, head %s: ok\n" % past.head and done.err == "", done
    edit_field(past, b"")
    (past.root / "state/stage_s1.json").unlink()
    done = go("verify", "--root", past.root, code=5)
    assert done.out == ("[EDITED] state/run_b.json: the record is not the one that entry 4 committed\n"
                        "note: no stage record of s1: reset, or removed; the run records tell all the same\n"
                        "verify: 1 finding in 13 entries, 7 runs\n"), done


@pytest.mark.parametrize("arguments, message", (
    (["nobody"], "no run is named nobody"), (["--anchor", "12: xyz"], "--anchor 12: xyz: is no head"), (["--anchor", "²: " + "0" * 32], "is no head"), (["--anchor", "9f3a"], "is no head"),
    (["--key", "{root}/none.key"], "none.key: cannot be read"), (["--key", "{root}/one.json"], "it is no key file"), (["--outputz"], "unknown option --outputz")))
def test_bad_usage_is_one_clear_line(pasts, arguments, message):
    root = pasts("plain").root
    argv = [sys.executable, str(ROOT / "src/ledger_verify.py"), "--root", str(root)] + [one.replace("{root}", str(root)) for one in arguments]
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60)
    err = done.stderr.decode("utf-8")
    assert (done.returncode, done.stdout, err.count("\n")) == (2, b"", 1) and message in err and err.startswith("error: "), err


def test_a_damaged_key_is_bad_usage(pasts):
    with pytest.raises(UsageError):
        check(pasts("hmac").root, key=pasts("hmac").first_key.replace(b"hmac ", b"hmac 0", 1)[:-3])
    words = pasts("hmac").first_key.split()
    words[4] = words[4][::-1]               # another key under the same key id
    with pytest.raises(UsageError):
        check(pasts("hmac").root, key=b" ".join(words))


def test_runs_named_narrow_the_records_and_not_the_ledger(copied):
    past = copied("plain")
    edit_field(past, b"")
    replace_output(past, b"")
    (past.root / "state/logs/c/s1.1.log").write_bytes(b"other")
    assert found(check(past.root, "a", outputs=True)) == []
    assert found(check(past.root, "b", outputs=True)) == [("EDITED", "state/run_b.json")]
    assert found(check(past.root, "c", "a", outputs=True)) == [("EDITED", "state/logs/c/s1.1.log"), ("OUTPUT-CHANGED", "data/s2/result.txt")]
    keep_lines(past, LINES["a line of nonsense put in"][0])
    assert found(check(past.root, "a")) == [("MALFORMED", LEDGER + ":6")]


def test_no_ledger(copied, tmp_path):
    past = copied("hmac")
    (past.root / "state/ledger.jsonl").unlink()
    assert [str(one) for one in check(past.root, key=past.first_key).findings] == ["[DELETED] state/ledger.jsonl: there is none, but 7 run records"]
    (tmp_path / "empty").mkdir()
    done = go("verify", "--root", tmp_path / "empty")
    assert done.out.startswith("note: nothing to verify: ") and done.out.endswith("verify: 0 entries, 0 runs: ok\n")
    assert found(check(tmp_path / "empty", anchors=[past.head])) == [CUT]
    assert "no run is named r1" in go("verify", "--root", tmp_path / "empty", "r1", code=2).err


def test_no_ledger_and_no_run_record(copied):
    past = copied("forward")
    for path in [past.root / "state/ledger.jsonl", past.root / "state/ledger.end", *(past.root / "state").glob("run_*.json")]:
        path.unlink()
    stages = sorted((past.root / "state").glob("stage_*.json"))
    assert [str(one) for one in check(past.root).findings] == ["[DELETED] state/ledger.jsonl: there is none, but %d records of stages that runs have made" % len(stages)]
    for path in stages:
        path.unlink()
    assert found(check(past.root)) == found(check(past.root, key=past.first_key)) == []
    sealed = parse_key(past.key.decode())[2]
    assert [str(one) for one in check(past.root, key=past.key).findings] == ["[DELETED] state/ledger.jsonl: there is none, but the key given has sealed %d entries" % sealed]


def test_a_ledger_that_was_set_aside_is_named_and_moving_the_whole_of_state_closes_the_matter(project):
    """As docs/troubleshooting.md says."""
    project.write("data/in.txt", "x\n")
    project.spec({"processor": "bin/stage_copy.py", "inputs": ["data/in.txt"]})
    project.ok("--run-id", "a")
    ledger = project.path(LEDGER)
    assert b'"seq":2' in ledger.read_bytes()
    ledger.write_bytes(ledger.read_bytes().replace(b'"seq":2', b'"sex":2'))
    assert project.run("--run-id", "b").code == 5
    aside, = [path.name for path in project.path("state").glob("ledger.jsonl.corrupt-*")]
    note = "note: state/%s was set aside as damaged: the entries of earlier runs stand there\n" % aside
    done = project.run("verify")
    assert done.code == 5 and "[DELETED] " + LEDGER in done.out and note in done.out, done
    project.ok("--run-id", "c")
    done = project.run("verify")
    assert done.code == 5 and "[UNLISTED] state/run_a.json" in done.out and note in done.out, done
    project.path("old").mkdir()
    project.path("state").rename(project.path("old/state"))
    assert "[DONE] s1" in project.ok("--run-id", "d").out
    assert "corrupt" not in project.ok("verify", "--outputs").out


def test_an_emptied_ledger(copied):
    past = copied("hmac")
    (past.root / "state/ledger.jsonl").write_bytes(b"")
    kinds = found(check(past.root))
    assert CUT in kinds and ("UNLISTED", "state/run_c.json") in kinds


def test_the_verifier_alone_works_elsewhere(copied, tmp_path):
    """A few files and a Python, from another folder, on a copy of the root that has another path; nothing from the environment."""
    past = copied("hmac")
    (tmp_path / "vérifier").mkdir()
    for name in VERIFIER:
        shutil.copy(str(ROOT / "src" / name), str(tmp_path / "vérifier" / name))
    (tmp_path / "seal.key").write_bytes(past.first_key)
    environment = {name: value for name, value in os.environ.items() if name.upper() in ("SYSTEMROOT", "PATH")} if sys.platform == "win32" else {}

    def verify(*arguments):
        argv = [sys.executable, "-I", "-S", "-B", str(tmp_path / "vérifier/ledger_verify.py"), "--root", str(past.root), "--key", str(tmp_path / "seal.key"), "--outputs"]
        done = subprocess.run(argv + list(arguments), cwd=str(tmp_path), env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60)
        assert done.stderr == b""
        return done.returncode, text_of(done.stdout)
    assert verify("--anchor", past.head) == (0, "verify: 13 entries, 7 runs, head %s: ok\n" % past.head)
    replace_output(past, b"")
    assert verify("c")[0] == 5 and "[OUTPUT-CHANGED] data/s2/result.txt" in verify("c")[1]


# --- ten thousand runs in seconds: shown by counting, which a busy machine does not change

def test_each_file_is_read_once(tmp_path, monkeypatch):
    history.make(tmp_path, 30)
    opened = []
    true_open = os.open

    def counting(path, *arguments):
        opened.append(os.path.basename(os.path.dirname(path)) + "/" + os.path.basename(path))
        return true_open(path, *arguments)
    monkeypatch.setattr(ledger_verify.os, "open", counting)
    report = check(tmp_path, outputs=True)
    assert (report.findings, report.runs) == ([], 30)
    assert len(opened) == len(set(opened)) == 2 + 30 * 4 + 2 + 2        # ledger and its end; record, metrics, two logs each; stage records; their outputs


def calls(root):
    count = 0

    def profile(frame, event, argument):
        nonlocal count
        count += event in ("call", "c_call")
    sys.setprofile(profile)
    try:
        ledger_verify.verify(str(root))
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize("spoil", (None, "records", "order"))
def test_the_work_grows_with_the_number_of_runs_and_no_faster(tmp_path, spoil):
    """Also where everything is wrong: a quadratic search would show as four times the calls for twice the runs."""
    counts = []
    for runs in (40, 80):
        root = tmp_path / str(runs)
        history.make(root, runs)
        if spoil == "records":
            for path in (root / "state").glob("run_*.json"):
                path.write_bytes(path.read_bytes().replace(b'"completed"', b'"failed"'))
        if spoil == "order":
            path = root / "state/ledger.jsonl"
            path.write_bytes(b"".join(reversed(path.read_bytes().splitlines(True))))
        counts.append(calls(root))
    assert counts[1] < 2.3 * counts[0], counts


def test_a_link_among_the_outputs_is_what_was_recorded_while_it_leads_there(project):
    if sys.platform == "win32":
        pytest.skip("links need a privilege")
    project.write("data/in.txt", "x")
    body = "open(out + '/real', 'w').close()\nos.path.lexists(out + '/name') or os.symlink('real', out + '/name')\nos.path.lexists(out + '/away') or os.symlink('/nowhere/else', out + '/away')\n"
    project.spec({"name": "s1", "processor": project.processor("p", body), "inputs": ["data/in.txt"], "outputDir": "data/s1"})
    project.ok()
    project.ok("verify", "--outputs")
    for name in ("name", "away"):
        os.unlink(str(project.path("data/s1/" + name)))
        os.symlink("other", str(project.path("data/s1/" + name)))
        done = project.run("verify", "--outputs")
        assert done.code == 5 and "[OUTPUT-CHANGED] data/s1/%s: " % name in done.out and "Traceback" not in done.out, done


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege")
def test_a_link_in_place_of_an_output_is_found_whatever_it_leads_to(project):
    project.write("data/in.txt", "x")
    project.spec({"processor": "bin/stage_copy.py", "inputs": ["data/in.txt"]})
    project.ok()
    os.rename(str(project.path("data/s1/in.txt")), str(project.path("data/there")))
    os.symlink("../there", str(project.path("data/s1/in.txt")))
    assert found(check(project.root, outputs=True)) == [("OUTPUT-CHANGED", "data/s1/in.txt")]


def test_what_lies_where_clean_has_removed_an_output_is_compared_whatever_ran_since(project):
    project.write("data/in.txt", "x")
    project.spec({"processor": "bin/stage_copy.py", "inputs": ["data/in.txt"]}, {"processor": "bin/stage_copy.py", "inputs": ["data/in.txt"]})
    project.ok()
    project.ok("clean", "s1", "--yes")
    project.ok("--only", "s2", "--force", "s2")
    assert check(project.root, outputs=True).notes == ["1 output was removed by clean, as the ledger says"]
    project.write("data/s1/in.txt", "forged")
    assert found(check(project.root, outputs=True)) == [("OUTPUT-CHANGED", "data/s1/in.txt")]


def tasks_of(project):
    """A stage of two tasks, run twice; the second time one of them."""
    project.write("data/in/a.txt", "a")
    project.write("data/in/b.txt", "b")
    project.spec({"name": "s1", "processor": project.processor("p", "open(out + '/' + os.path.basename(inputs[0]), 'w').write(open(inputs[0]).read())\n"),
                  "forEach": "data/in/*.txt", "outputDir": "data/s1"})
    project.ok("--run-id", "r1")
    project.write("data/in/b.txt", "bb")
    project.ok("--run-id", "r2")


def many_tasks_of(project, count=12):
    """A stage of more tasks than a record lists outputs of, if it is not of fewer."""
    for number in range(count):
        project.write("data/in/%02d.txt" % number, "x")
    project.spec({"name": "s1", "processor": project.processor("p", "open(out + '/' + os.path.basename(inputs[0]), 'w').close()\n"),
                  "forEach": "data/in/*.txt", "outputDir": "data/s1"})
    project.ok("--run-id", "r1")


def verify_alone(folder, project, *arguments):
    """Return exit code and output of the verifier in *folder*, which sees nothing of the runner beside it."""
    argv = [sys.executable, "-I", "-B", str(folder / "ledger_verify.py"), "--root", str(project.root), *arguments]
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60)
    return done.returncode, text_of(done.stdout)


def whole_line(body):
    """Return a line with a sum that fits."""
    return body + task_log.SUM % zlib.crc32(body) + b"\n"


def change_task(project, task, **values):
    """Change the lines of a task in the log as somebody would who has read task_log.py."""
    path = "state/tasks_s1.jsonl"
    head, *lines = project.path(path).read_bytes().splitlines(True)
    entries = [json.loads(line) for line in lines]
    for one in entries:
        one.pop("sum")
        one.update(values if one["task"] == task else {})
    project.path(path).write_bytes(head + b"".join(task_log.line_of(task_log.Entry(**one)) for one in entries))


@pytest.mark.parametrize("values", [{"key": "0" * 64}, {"counts": {"read": 9}}, {"status": "failed"}, {"run": "nobody/1"}, {"outputs": ()}])
def test_a_line_of_the_task_log_is_what_its_run_wrote(project, values):
    tasks_of(project)
    assert "0 findings" in project.ok("verify").out or "ok" in project.ok("verify").out
    change_task(project, "data/in/a.txt", **values)
    told = ("[UNLISTED] state/tasks_s1.jsonl: the line of 1 task is of run nobody/1, which is not in the ledger: data/in/a.txt\n" if "run" in values
            else "[EDITED] state/tasks_s1.jsonl: the line of task data/in/a.txt is not what run")
    done = project.run("verify")
    assert done.code == 5 and told in done.out, done


def test_a_file_beside_outputs_that_no_last_success_has_made_is_named(project):
    tasks_of(project)
    assert "beside outputs" not in project.ok("verify", "--outputs").out
    folder = project.json("pipeline.json")["stages"][0].get("outputDir", "data/s1")
    for name in ("zz.txt", ".hidden", "x.part"):
        project.write("%s/%s" % (folder, name), "by hand\n")
    done = project.ok("verify", "--outputs")
    assert "note: 1 file beside outputs that no stage's last success has made: %s/zz.txt\n" % folder in done.out, done
    assert "beside outputs" not in project.ok("verify").out + project.ok("verify", "r2", "--outputs").out


def test_what_a_stage_made_before_it_moved_is_not_said_to_be_of_no_run(project):
    project.write("data/in.txt", "x")
    stages = [{"name": name, "processor": project.processor(name, "open(out + '/%s.txt', 'w').close()\n" % name), "inputs": ["data/in.txt"], "outputDir": "data/d"} for name in ("b", "c")]
    project.spec(*stages)
    project.ok()
    assert "note: " not in project.ok("verify", "--outputs").out
    project.spec(dict(stages[0], outputDir="data/e"), stages[1])
    project.ok()
    assert "note: 1 file beside outputs that no stage's last success has made: data/d/b.txt\n" in project.ok("verify", "--outputs").out


@pytest.mark.parametrize("how", ["deleted", "written anew"])
@pytest.mark.parametrize("run_id", ["r1", "r2"])
def test_the_end_of_a_run_that_is_missing_puts_no_blame_on_what_the_run_has_made(project, run_id, how):
    """The run after it has made nothing, so that no entry but its end is left to name what was before."""
    tasks_of(project)
    project.ok("--run-id", "r3")
    path, number = project.path("state/ledger.jsonl"), number_of(project.root, "end", run_id)
    lines = path.read_bytes().splitlines(True)
    lines[number - 1] = b"" if how == "deleted" else lines[number - 1].replace(b'":', b'": ')
    path.write_bytes(b"".join(lines))
    done = project.run("verify", "--outputs")
    told = [line for line in done.out.splitlines() if line.startswith("[")]
    assert done.code == 5 and len(told) == 1 and told[0].startswith("[%s] state/ledger.jsonl:%d: " % ("DELETED" if how == "deleted" else "MALFORMED", number)), done
    assert "note: state/run_%s.json: its own entry is missing from the ledger, later ones vouch for it\n" % run_id in done.out, done
    project.write("data/s1/b.txt", "made up")
    done = project.run("verify", "--outputs")
    assert done.code == 5 and ("data/s1/b.txt" in done.out if run_id == "r1" else "no later success is recorded of s1" in done.out), done


def test_tasks_of_a_run_whose_entry_is_gone_are_not_blamed(project):
    """The log is as it was written: what is wrong is the ledger."""
    tasks_of(project)
    ledger = project.path("state/ledger.jsonl").read_bytes().splitlines(True)
    project.path("state/ledger.jsonl").write_bytes(b"".join(ledger[2:]))       # without the first run
    done = project.run("verify")
    assert done.code == 5 and "[EDITED]" not in done.out and "[DELETED]" in done.out, done
    assert "state/tasks_s1.jsonl" not in done.out, done


def test_keys_that_were_accepted_or_taken_back_are_no_edits_of_the_task_log(project):
    tasks_of(project)
    change_task(project, "data/in/a.txt", key="")
    project.ok("verify")
    tasks_of(project)
    edited = project.path("bin/p.py").read_text(encoding="utf-8") + "# a comment\n"
    project.write("bin/p.py", edited)
    project.ok("accept", "s1", "--reason", "a comment")
    project.ok("verify", "--outputs")
    change_task(project, "data/in/a.txt", status="failed")
    assert project.run("verify").code == 5
    project.ok("reset", "s1", "--yes")
    project.ok("verify")


DAMAGES = {"edited": (lambda lines: [lines[0], lines[1].replace(b'"attempts":1', b'"attempts":2')] + lines[2:], "MALFORMED", "line 2 is not as it was written"),
           "line lost": (lambda lines: lines[:1] + lines[2:], "EDITED", "its outputs are not those that run r1 recorded of stage s1"),
           "end lost": (lambda lines: lines[:-1] + [lines[-1][:-1]], "EDITED", "its outputs are not those that run r1 recorded of stage s1"),
           "head lost": (lambda lines: lines[1:], "MALFORMED", "it begins with what this runner does not write: "),
           "emptied": (lambda lines: [], "EDITED", "its outputs are not those that run r1 recorded of stage s1"),
           "removed": (None, "DELETED", "it is gone; run r1 recorded that tasks of stage s1 have made outputs")}


@pytest.mark.parametrize("count", [2, 12], ids=["recorded", "logged"])
@pytest.mark.parametrize("how", DAMAGES)
def test_a_task_log_that_is_not_whole_is_found(project, how, count):
    many_tasks_of(project, count)
    change, kind, told = DAMAGES[how]
    path = project.path("state/tasks_s1.jsonl")
    lines = path.read_bytes().splitlines(True)
    path.unlink()
    if change is not None:
        path.write_bytes(b"".join(change(lines)))
    for more in ((), ("--outputs",), ("r1",)):
        done = project.run("verify", *more)
        assert done.code == 5 and done.out.count("\n[") + done.out.startswith("[") == 1, done
        assert done.out.startswith("[%s] state/tasks_s1.jsonl: %s" % (kind, told)), done
    project.run("--run-id", "r2")       # may only set it aside
    project.ok("--run-id", "r3")
    project.ok("verify", "--outputs")


def test_what_runs_do_to_a_task_log_is_no_finding(project):
    many_tasks_of(project, 3)
    stage = {"name": "s1", "processor": project.processor("p", "open(out + '/' + os.path.basename(inputs[0]), 'w').close()\nsys.exit(os.path.exists('data/bad') and '00' in inputs[0])\n"),
             "forEach": "data/in/*.txt", "outputDir": "data/s1"}
    project.path("data/in/01.txt").unlink()

    def run(code, **changes):
        project.spec(dict(stage, **changes))
        assert project.run().code == code
        project.ok("verify")
        project.ok("verify", "--outputs")
    run(0)                              # one kept, the others anew
    project.write("data/in/01.txt", "x")
    run(0)                              # it is back
    project.write("data/bad", "")
    project.write("data/in/00.txt", "changed")
    run(1)
    run(0, maxFailedTasks=1)
    project.path("data/bad").unlink()
    project.path("data/in/02.txt").unlink()
    run(0, prune=True)
    run(0, outputDir="data/other")
    project.ok("clean", "s1", "--yes")
    project.ok("verify", "--outputs")
    del stage["forEach"]
    run(0, inputs=["data/in/*.txt"])
    run(0, forEach="data/in/*.txt")


def test_a_task_log_may_be_ahead_of_its_record_while_a_run_is_at_work_or_has_died(project):
    """A kill may come between what a run writes to the log and its first record of the stage."""
    tasks_of(project)
    spec = project.json("pipeline.json")
    stages = spec["stages"] + [{"name": "s2", "processor": project.processor("slow", "open('data/waiting', 'w').close()\nwhile not os.path.exists('data/go'):\n    time.sleep(0.01)\n"),
                                "outputDir": "data/s2"}]
    path = project.path("state/tasks_s1.jsonl")
    before = path.read_bytes()
    project.spec(*stages)
    run = project.start("--run-id", "r3")
    try:
        wait_until(lambda: project.exists("data/waiting"))
        change_task(project, "data/in/b.txt", key="", outputs=())       # as a run does whose outputDir is another
        project.ok("verify")
    finally:
        run.kill()
        run.communicate()
    project.ok("verify")
    project.write("data/go", "")
    project.ok("--only", "s2", "--run-id", "r4")
    project.ok("verify")
    path.write_bytes(before)
    assert "[SKIP] s1" in project.ok("--run-id", "r5").out             # which has looked at it
    project.ok("verify")
    change_task(project, "data/in/b.txt", key="", outputs=())
    done = project.run("verify")
    assert done.code == 5 and "[EDITED] state/tasks_s1.jsonl: its outputs are not those that run r2 recorded of stage s1\n" in done.out, done


# --- logs that no run wrote

def talkative(project):
    """A plain stage and one of tasks: both are tried twice, and print something."""
    for name in ("a", "b"):
        project.write("data/in/%s.txt" % name, name)
    body = "print('attempt')\nopen(out + '/' + os.path.basename(inputs[0]), 'w').close()\nsys.exit(os.environ['PIPELINE_ATTEMPT'] == '1')\n"
    shared = {"processor": project.processor("p", body), "retry": {"attempts": 2, "baseDelayMs": 0}}
    project.processor("bad", "print('no')\nsys.exit(os.path.exists('data/bad'))\n")
    stages = [dict(shared, inputs=["data/in/a.txt"]), dict(shared, forEach="data/in/*.txt"), {"processor": "bin/bad.py", "inputs": ["data/in/a.txt"]}]
    project.write("data/tell.py", "print('told')\n")
    project.spec(*stages, onSuccess=["data/tell.py"], onFailure=["data/tell.py"])


def added(project, *names):
    """Add such logs, run verify, and return its findings."""
    for name in names:
        assert not project.exists(name)
        project.write(name, "all well\n")
    done = project.run("verify")
    assert done.code == (5 if "[" in done.out else 0), done
    return [line for line in done.out.splitlines() if line.startswith("[")]


def test_a_log_that_was_added_to_a_stage_that_ended_well_is_found(project):
    talkative(project)
    project.ok("--run-id", "r")
    assert added(project, "state/logs/r/notes.log", "state/logs/r/s1.log", "state/logs/r/s1.x.log", "state/logs/r/other.1.log", "state/logs/r/s2/notes.log", "state/logs/r/s1.3.log.gz",
                 "state/logs/r/5/s1.9.log", "state/logs/elsewhere/s1.1.log") == []
    told = "the log is none of those of stage %s that state/run_r.json names"
    names = {"state/logs/r/s1.3.log": "s1", "state/logs/r/s1.tasks.jsonl": "s1", "state/logs/r/s1/1.1.log": "s1", "state/logs/r/s2.1.log": "s2", "state/logs/r/s2/2.3.log": "s2"}
    assert added(project, *names) == ["[UNLISTED] %s: %s" % (name, told % names[name]) for name in sorted(names)]
    assert project.run("verify", "r").code == 5
    for name in names:
        project.path(name).unlink()
    project.path("data/in/a.txt").write_bytes(b"more")
    project.ok("--run-id", "r")
    assert added(project) == []
    assert added(project, "state/logs/r/2/s2/1.7.log") == ["[UNLISTED] state/logs/r/2/s2/1.7.log: %s" % (told % "s2")]
    project.path("state/logs/r/2/s2/1.7.log").write_bytes(b"")      # as a full disk leaves one
    assert added(project) == []


def test_a_log_of_a_stage_that_did_not_end_well_need_not_be_named(project):
    talkative(project)
    project.write("data/bad", "")
    assert project.run("--run-id", "r").code == 1
    assert added(project, "state/logs/r/s3.2.log", "state/logs/r/s3/1.1.log") == []
    project.path("data/bad").unlink()
    project.ok("--run-id", "s")         # skips the others
    assert len(added(project, "state/logs/s/s1.1.log")) == 1
    assert "attempt 1 (not in the run record): state/logs/s/s1.1.log" in project.ok("logs", "s1", "--run", "s").out
    assert len(added(project, "state/logs/s/s3.2.log")) == 2


def test_a_stage_that_is_called_as_a_call_is_numbered_has_no_unnamed_logs(project):
    project.write("data/in/a.txt", "a")
    project.spec({"name": "2", "processor": project.processor("p", "print('x')\nopen(out + '/' + os.path.basename(inputs[0]), 'w').close()\n"), "forEach": "data/in/*.txt"},
                 {"name": "1", "processor": "bin/p.py", "inputs": ["data/in/*.txt"]})
    project.ok("--run-id", "r")
    project.write("data/in/a.txt", "b")
    project.write("data/in/b.txt", "b")
    project.ok("--run-id", "r")
    assert added(project) == []


def test_a_run_that_was_closed_may_have_left_logs_that_nobody_named(project):
    talkative(project)
    spec = project.json("pipeline.json")
    stages = spec["stages"] + [{"name": "s4", "processor": project.processor("slow", "open('data/waiting', 'w').close()\nwhile not os.path.exists('data/go'):\n    time.sleep(0.01)\n"),
                                "outputDir": "data/s4"}]
    project.spec(*stages)
    run = project.start("--run-id", "r")
    try:
        wait_until(lambda: project.exists("data/waiting"))
    finally:
        run.kill()
        run.communicate()
    project.write("data/go", "")
    assert added(project, "state/logs/r/s1.3.log") == []
    project.ok("--run-id", "s")
    assert added(project) == []
    project.write("state/metrics_r.json", json.dumps(dict(project.json("state/metrics_s.json"), runId="r")))
    assert check(project.root).notes[:1] == ["nothing vouches for state/metrics_r.json: state/run_r.json does not name it; a run that died may have written it"]
    assert "metrics_r.json is not named by the run record" in project.ok("report", "r", "-o", str(project.path("r.html"))).out + project.read("r.html")


def test_what_is_kept_of_a_file_that_is_gone_is_no_edit_of_the_task_log(project):
    tasks_of(project)
    project.path("data/in/a.txt").unlink()
    project.ok("--run-id", "r3")
    project.ok("verify", "--outputs")
    project.ok("verify", "r1")
    shutil.rmtree(str(project.path("state/logs/r3")))
    project.ok("verify")
    change_task(project, "data/in/a.txt", key="0" * 64)
    assert project.run("verify").code == 5


def test_the_verifier_alone_tells_that_it_cannot_compare_task_logs(project, tmp_path):
    many_tasks_of(project)
    for name in VERIFIER - {"task_log.py"}:
        shutil.copy(str(ROOT / "src" / name), str(tmp_path / name))
    for more in ([], ["--outputs"]):
        code, text = verify_alone(tmp_path, project, *more)
        assert code == 0 and text.count("task logs are not compared") == 1 and "Traceback" not in text, text


def test_the_files_that_the_verifier_names_are_all_that_it_needs(project, tmp_path):
    many_tasks_of(project)
    assert len(VERIFIER) == 11
    for name in VERIFIER:
        shutil.copy(str(ROOT / "src" / name), str(tmp_path / name))
    code, text = verify_alone(tmp_path, project, "--outputs")
    assert code == 0 and text.startswith("verify: 2 entries, 1 run, head "), text
    project.write("data/s1/11.txt", "made up")
    code, text = verify_alone(tmp_path, project, "--outputs")
    assert code == 5 and text.startswith("[OUTPUT-CHANGED] data/s1/11.txt: "), text


@pytest.mark.parametrize("is_killed", [True, False])
def test_a_stage_may_be_accepted_before_the_run_that_made_it_has_ended(project, is_killed):
    tasks_of(project)
    spec = project.json("pipeline.json")
    project.write("bin/wait.py", "import os, time\nopen('data/waiting', 'w').close()\nwhile not os.path.exists('data/go'):\n    time.sleep(0.01)\n")
    spec["stages"].append({"name": "between", "processor": project.processor("between", "time.sleep(1.5)\n"), "outputDir": "data/between"})
    spec["stages"].append({"name": "s2", "processor": "bin/wait.py", "outputDir": "data/s2"})
    project.write("pipeline.json", json.dumps(spec))
    project.write("data/in/c.txt", "c")
    run = project.start("--run-id", "r3")
    try:
        # Its record, which is written from time to time, has the stage under the key that it had.
        wait_until(lambda: project.exists("data/waiting") and any("keyParts" in one for one in project.json("state/run_r3.json")["stages"]))
        if is_killed:
            run.kill()
            run.communicate()
        project.write("bin/p.py", project.read("bin/p.py") + "# a comment\n")
        project.ok("accept", "s1", "--reason", "a comment")
    finally:
        project.write("data/go", "")
        run.communicate()
    project.ok("--run-id", "r4")
    project.ok("verify", "--outputs")


@pytest.mark.parametrize("body", [b'{"task":[1]', b'{"task":"x","status":"ok","run":"r","key":"","outputs":5,"counts":{},"bytes_in":0,"attempts":1,"duration_ms":1,"error":""'])
def test_a_task_log_of_another_form_is_told_in_a_line(project, body):
    tasks_of(project)
    head = project.path("state/tasks_s1.jsonl").read_bytes().splitlines(True)[0]
    project.path("state/tasks_s1.jsonl").write_bytes(head + body + task_log.SUM % zlib.crc32(body) + b"\n")
    for command in (("verify",), ("plan",), ("--run-id", "r3")):
        done = project.run(*command)
        assert done.code in (0, 5) and "Traceback" not in done.out + done.err, done


@pytest.mark.parametrize("how, told", [
    (lambda lines: lines[:2] + [lines[2].replace(b'"attempts":1', b'"attempts":2')] + lines[3:], "line 3 is not as it was written"),
    (lambda lines: lines[:2] + [lines[2].replace(b"\n", b"*")] + lines[3:], "line 3 is not as it was written"),
    (lambda lines: lines[:2] + [whole_line(b"{")] + lines[2:], "a line is no JSON, though its sum fits"),
    (lambda lines: [whole_line(b"{")] + lines[1:], "a line is no JSON, though its sum fits")], ids=["edited", "joined", "forged", "forged head"])
def test_a_damaged_task_log_is_told_of_in_the_words_of_the_log(project, how, told):
    many_tasks_of(project)
    path = project.path("state/tasks_s1.jsonl")
    path.write_bytes(b"".join(how(path.read_bytes().splitlines(True))))
    done = project.run("verify", "--outputs")
    assert done.code == 5 and "[MALFORMED] state/tasks_s1.jsonl: %s\n" % told in done.out, done


def test_a_last_line_of_the_task_log_without_its_end_is_no_line(project):
    many_tasks_of(project)
    path = project.path("state/tasks_s1.jsonl")
    path.write_bytes(path.read_bytes()[:-1] + b"*")
    done = project.run("verify", "--outputs")
    assert done.code == 5 and done.out.count("state/tasks_s1.jsonl") == 1, done
    assert "[EDITED] state/tasks_s1.jsonl: its outputs are not those that run r1 recorded of stage s1\n" in done.out, done


def test_what_was_accepted_under_another_name_of_the_pipeline_verifies(project):
    project.write("data/in.txt", "x")
    stage = {"name": "s1", "processor": project.processor("p", "open(out + '/o', 'w').close()\n"), "inputs": ["data/in.txt"], "outputDir": "data/s1"}
    project.spec(stage)
    project.ok("--run-id", "r1")
    project.spec(stage, name="other")
    project.ok("accept", "s1", "--reason", "the name alone")
    project.ok("verify", "--outputs")
    assert "[SKIP] s1" in project.ok("--run-id", "r2").out
    project.ok("verify", "--outputs")
    project.ok("evidence", "r2", "-o", str(project.path("e.zip")))
    done = subprocess.run([sys.executable, str(ROOT / "src" / "evidence_verify.py"), str(project.path("e.zip"))], check=True, stdout=subprocess.PIPE, timeout=60)
    assert b"accepted another key of stage s1: the name alone" in done.stdout


@pytest.mark.parametrize("how", ["prune", "reset"])
def test_outputs_that_went_after_the_pipeline_was_renamed_are_not_missed(project, how):
    project.write("data/in/a.txt", "x")
    project.write("data/in/b.txt", "x")
    stage = {"name": "s1", "processor": project.processor("p", "open(out + '/' + os.path.basename(inputs[0]), 'w').close()\n"), "forEach": "data/in/*.txt", "outputDir": "data/s1", "prune": True}
    project.spec(stage)
    project.ok("--run-id", "r1")
    project.spec(stage, name="other")
    if how == "prune":
        project.path("data/in/b.txt").unlink()
        project.ok("--run-id", "r2")
    else:
        project.ok("reset", "s1", "--yes")
        shutil.rmtree(str(project.path("data/s1")))
    project.ok("verify", "--outputs")


def test_while_runs_write_only_what_lasts_is_reported(project, monkeypatch):
    tasks_of(project)
    project.write("state/run_r1.json", project.read("state/run_r1.json") + " ")        # lasts, and is none
    project.write("state/logs/r1/s1.tasks.jsonl", "made up")
    moments, run = iter(range(100)), ledger_verify.Verification.run

    def run_beside_runs(check, *arguments):
        run(check, *arguments)
        check.book.find("OUTPUT-CHANGED", "o", "by run %d" % next(moments), ("r1", 1))
    monkeypatch.setattr(ledger_verify.Verification, "run", run_beside_runs)
    monkeypatch.setattr(ledger_verify, "_stamp", lambda root: [next(moments)])
    report = ledger_verify.verify(str(project.root), outputs=True)
    assert [one.kind for one in report.findings] == ["EDITED"] and "1 finding that did not last was left out" in " ".join(map(str, report.notes)), report
    monkeypatch.setattr(ledger_verify, "_stamp", lambda root: [0])
    assert {one.kind for one in ledger_verify.verify(str(project.root)).findings} == {"EDITED", "OUTPUT-CHANGED"}


def test_a_file_in_the_place_of_an_outputs_folder_is_told_in_a_line(project):
    tasks_of(project)
    shutil.rmtree(str(project.path("data/s1")))
    project.write("data/s1", "no folder")
    done = project.run("verify", "--outputs")
    assert done.code == 5 and "[OUTPUT-CHANGED] data/s1/a.txt" in done.out, done


def test_an_output_with_the_same_signature_is_read_once_however_often_verify_tries(project, monkeypatch):
    tasks_of(project)
    outputs = ledger_verify.Verification(str(project.root), [], True).outputs
    path = str(project.path("data/s1/a.txt"))
    assert outputs._digest_of(path)[0] == 1
    monkeypatch.setattr(verify_outputs, "digest_of", lambda full: (0, "read again"))
    assert outputs._digest_of(path)[0] == 1
    project.write("data/s1/a.txt", "more")
    assert outputs._digest_of(path) == (0, "read again")


def test_a_task_log_is_compared_with_the_run_that_left_it_whatever_the_pipeline_was_called_before(project):
    for number in range(12):                # more than a record lists
        project.write("data/in/%d.txt" % number, "x")
    stage = {"name": "s1", "processor": project.processor("p", "open(out + '/' + os.path.basename(inputs[0]), 'w').close()\n"), "forEach": "data/in/*.txt", "outputDir": "data/s1"}
    project.spec(stage)
    project.ok("--run-id", "r1")
    project.spec(stage, name="other")
    project.write("data/in/more.txt", "x")
    project.ok("--run-id", "r2")
    project.ok("verify", "--outputs")
    project.write("data/s1/more.txt", "made up")
    assert project.run("verify", "--outputs").code == 5


def renamed(project, stage):
    """Give the stage another name; each of its tasks, or the stage, is done anew under it."""
    project.spec(dict(stage, name="new"))


@pytest.mark.parametrize("count", [2, 12], ids=["recorded", "logged"])
@pytest.mark.parametrize("how", ["prune", "clean"])
def test_what_went_after_its_stage_was_renamed_is_not_missed(project, how, count):
    """The former stage has made it, but a later success of the new one has, too, and no more than that one's last is expected."""
    for number in range(count):             # of 12 the record lists none
        project.write("data/in/%02d.txt" % number, "x")
    stage = {"name": "old", "processor": project.processor("p", "open(out + '/' + os.path.basename(inputs[0]), 'w').close()\n"), "forEach": "data/in/*.txt",
             "outputDir": "data/s1", "prune": how == "prune"}
    project.spec(stage)
    project.ok("--run-id", "r1")
    renamed(project, stage)
    project.ok("--run-id", "r2")
    if how == "clean":
        project.ok("clean", "new", "--yes")
    project.path("data/in/00.txt").unlink()
    project.ok("--run-id", "r3")
    assert not project.exists("data/s1/00.txt")
    project.ok("verify", "--outputs")
    project.ok("verify", "r1", "--outputs")
    project.path("data/s1/01.txt").unlink()
    done = project.run("verify", "--outputs")
    told = [line for line in done.out.splitlines() if line.startswith("[")]
    assert done.code == 5 and told == ["[OUTPUT-CHANGED] data/s1/01.txt: missing; stage new of run r3 made it"], done


@pytest.mark.parametrize("between", [True, False], ids=["a run between", "at once"])
def test_what_was_set_aside_before_a_stage_was_renamed_is_not_missed(project, between):
    """The kit removes it, as the output beside it is made anew; who removes it where nobody has made that anew is told."""
    project.write("bin/sort.py", "from processor_kit import Reject, lines\n\n\ndef sort(line):\n    if line.startswith('bad'):\n        raise Reject('bad')\n    return line\n\n\n"
                                 "lines(sort, 'all.o')\n")
    project.write("data/in/a.txt", "one\nbad\n")
    stage = {"name": "old", "processor": "bin/sort.py", "inputs": ["data/in/*.txt"], "outputDir": "data/s1"}
    project.spec(stage)
    project.ok("--run-id", "r1")
    rejects = project.path("data/s1/all.o.rejects.jsonl").read_bytes()
    project.path("data/s1/all.o.rejects.jsonl").unlink()
    done = project.run("verify", "--outputs")
    assert done.code == 5 and "all.o.rejects.jsonl: missing; stage old of run r1 made it" in done.out, done
    project.write("data/s1/all.o.rejects.jsonl", rejects)
    renamed(project, stage)
    if between:
        project.ok("--run-id", "r2")
    project.write("data/in/a.txt", "one\nfixed\n")
    project.ok("--run-id", "r3")
    assert not project.exists("data/s1/all.o.rejects.jsonl")
    project.ok("verify", "--outputs")
    project.path("data/s1/all.o").unlink()
    assert project.run("verify", "--outputs").code == 5


def renamed_without_first(project, names):
    """Run a stage `old` over files of these names, then, without the first file, as `new`."""
    for name in names:
        project.write("data/in/" + name, "x")
    stage = {"name": "old", "processor": project.processor("p", "open(out + '/' + os.path.basename(inputs[0]), 'w').close()\n"), "forEach": "data/in/*.txt", "outputDir": "data/s1"}
    project.spec(stage)
    project.ok("--run-id", "r1")
    renamed(project, stage)
    project.path("data/in/" + names[0]).unlink()
    project.ok("--run-id", "r2")


def test_what_the_former_stage_alone_has_made_is_still_expected(project):
    """Its file is gone when the stage is renamed: no success of the new one has ever made the output."""
    renamed_without_first(project, ["a.txt", "b.txt"])
    project.ok("verify", "--outputs")
    project.path("data/s1/a.txt").unlink()
    done = project.run("verify", "--outputs")
    assert done.code == 5 and "data/s1/a.txt: missing; stage old of run r1 made it" in done.out, done
    project.write("data/s1/a.txt", "")
    project.ok("verify", "--outputs")


def test_a_list_of_tasks_that_was_changed_passes_no_output_on(project):
    renamed_without_first(project, ["%02d.txt" % number for number in range(12)])
    project.path("data/s1/00.txt").unlink()
    path = "state/logs/r2/new.tasks.jsonl"
    project.write(path, project.read(path).replace("11.txt", "00.txt"))
    done = project.run("verify", "--outputs")
    assert done.code == 5 and "[EDITED] %s" % path in done.out and "data/s1/00.txt: missing; stage old of run r1 made it" in done.out, done
