"""What verify finds, and what it cannot find: the attacks, on histories that the real program made, sealed and not."""
from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import pytest
from conftest import ROOT, RUNNER, Done, Project

sys.path.insert(0, str(ROOT / "src"))
sys.path.insert(0, str(ROOT / "tests" / "drivers"))

import history  # noqa: E402
import ledger_format  # noqa: E402
import ledger_verify  # noqa: E402
from ledger_format import canonical_json, entry_hash, entry_line, head_text, parse_key, run_hash  # noqa: E402
from model import UsageError  # noqa: E402

VERIFIER = ("ledger_verify.py", "ledger_format.py", "model.py")
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
    result = Done(command(*arguments), done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace"))
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

    def rewrite(self, edit=lambda record, entry: None):
        last_run, previous = None, None
        for number, entry in enumerate(self.entries, 1):
            entry.update(seq=number, prevHash=previous["hash"] if previous else None)
            if entry["event"] == "end":
                name = self.names[entry["runHash"]]
                record = record_of(self.root, name)
                edit(record, entry)
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


@pytest.mark.parametrize("with_anchor", (False, True), ids=("", "anchor"))
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_attack(copied, attack, mode, with_anchor):
    past = copied(mode)
    attack(past, past.key)
    row = ATTACKS[attack]
    wanted = row[MODES.index(mode)]
    wanted = (row[0] if wanted == SAME else wanted) or []
    report = check(past.root, anchors=[past.head] if with_anchor else [], key=past.first_key or None, outputs=True)
    assert found(report) == sorted(wanted + (row[3] if with_anchor else [])), report


def test_the_current_forward_key_shows_a_cut_that_an_old_end_hides(copied):
    """Who kept a copy of state/ledger.end can put all back to that day; the key file has counted on."""
    past = copied("forward")
    truncate_with_an_old_end(past, b"")
    assert found(check(past.root, key=past.key)) == [CUT]


def test_the_ledger_alone_cut_off_leaves_records_that_no_entry_has(copied):
    past = copied("plain")
    keep_lines(past, lambda lines: lines[:-2])
    assert found(check(past.root)) == [("UNLISTED", "state/run_e.json")]
