"""The ledger as it is written: chained, healed, sealed; runs that died; calls under one run id."""
from __future__ import annotations

import builtins
import errno
import hashlib
import json
import os
import shutil
import stat
import sys
import threading
from pathlib import Path

import pytest
from conftest import ROOT
from test_files import kill_at_each_call, names

sys.path.insert(0, str(ROOT / "src"))
sys.path.insert(0, str(ROOT / "tests" / "drivers"))

import durable_files  # noqa: E402
import holder  # noqa: E402
import ledger_format  # noqa: E402
import ledger_verify  # noqa: E402
import model  # noqa: E402
import run_ledger  # noqa: E402
import seal_keys  # noqa: E402
import stage_locks  # noqa: E402
import state_store  # noqa: E402
from run_ledger import RunIdTaken, RunLedger  # noqa: E402
from seal_keys import KeyProblem, Sealer  # noqa: E402
from state_store import StateError, StateStore  # noqa: E402

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="POSIX calls")


@pytest.fixture
def store(tmp_path) -> StateStore:
    made = StateStore(str(tmp_path / "root"), now=lambda: 0.0)
    os.mkdir(made.root)
    made.prepare()
    return made


def ledger_of(store, key="") -> RunLedger:
    return RunLedger(store, lambda name: stage_locks.FileLock(store.root, name, model.Clock()), Sealer(store, key) if key else None)


def entries(store):
    path = Path(store.path("ledger.jsonl"))
    return [json.loads(line) for line in path.read_bytes().decode("utf-8").splitlines()] if path.exists() else []


def independent_hash(record) -> str:
    body = {key: value for key, value in record.items() if key != "runHash"}
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(b"run\0" + text.encode("utf-8")).hexdigest()


def independent_entry_hash(entry) -> str:
    body = {key: value for key, value in entry.items() if key not in ("hash", "seal")}
    return hashlib.sha256(b"ledger-entry\0" + json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode("utf-8")).hexdigest()


def begin(store, run_id, key=""):
    """What a run does at its start: heal, number itself, be open, leave its record as running."""
    ledger = ledger_of(store, key)
    ledger.prepare()
    invocation = run_ledger.next_invocation(ledger, run_id)
    ledger.begin(run_id, invocation, "p")
    record = {"runId": run_id, "invocation": invocation, "pipeline": "p", "state": "running", "endedAt": None, "stages": []}
    store.write("run_%s.json" % run_id, record)
    return ledger, record


def run_once(store, run_id, key=""):
    ledger, record = begin(store, run_id, key)
    ledger.end(dict(record, state="completed", endedAt="now"))
    store.commit.flush()
    return store.read("run_%s.json" % run_id)


def skip_once(store, run_id):
    """A run in which nothing had to run: it leaves its end only."""
    ledger = ledger_of(store)
    ledger.prepare()
    invocation = run_ledger.next_invocation(ledger, run_id)
    ledger.end({"runId": run_id, "invocation": invocation, "pipeline": "p", "state": "completed", "endedAt": "now", "stages": []})
    return store.read("run_%s.json" % run_id)


def sealed_records(store):
    records = []
    for name in names(store.folder):
        if name.startswith("run_") and name.endswith(".json"):
            record = store.read(name)
            if "runHash" in record:
                records.append(record)
    return records


def assert_chain_is_whole(store):
    """The entries hang on one another; each end has its record, each sealed record its end, in the same order."""
    found = entries(store)
    assert [one["seq"] for one in found] == list(range(1, len(found) + 1))
    assert [one["prevHash"] for one in found] == [None] + [one["hash"] for one in found[:-1]]
    assert all(one["hash"] == independent_entry_hash(one) for one in found)
    ends = [one for one in found if one["event"] == "end"]
    assert len({(one["runId"], one["invocation"]) for one in ends}) == len(ends)
    records = {record["runHash"]: record for record in sealed_records(store)}
    assert all(independent_hash(record) == digest for digest, record in records.items())
    assert sorted(records) == sorted(one["runHash"] for one in ends)
    assert [records[one["runHash"]]["prevRunHash"] for one in ends] == [None] + [one["runHash"] for one in ends[:-1]]


# --- the chain -------------------------------------------------------------------------------------------------------

def test_each_run_names_the_one_before_it(store):
    first, second, third = run_once(store, "a"), skip_once(store, "b"), run_once(store, "c")
    assert (first["prevRunHash"], second["prevRunHash"], third["prevRunHash"]) == (None, first["runHash"], second["runHash"])
    assert [(one["event"], one["runId"], one["open"]) for one in entries(store)] == [
        ("begin", "a", {"a": 1}), ("end", "a", {}), ("end", "b", {}), ("begin", "c", {"c": 1}), ("end", "c", {})]
    assert entries(store)[-1]["lastRunHash"] == third["runHash"] and entries(store)[3]["lastRunHash"] == second["runHash"]
    assert_chain_is_whole(store)


def test_the_entries_are_canonical_lines(store):
    run_once(store, "ä")
    data = Path(store.path("ledger.jsonl")).read_bytes()
    assert data == b"".join(ledger_format.entry_line(one) for one in entries(store)) and data.endswith(b"\n") and "ä".encode() in data


def test_any_edit_changes_the_hash(store):
    record = run_once(store, "a")
    for key, value in (("state", "failed"), ("runId", "b"), ("invocation", 2), ("prevRunHash", "00"), ("extra", 1)):
        assert ledger_format.run_hash(dict(record, **{key: value})) != record["runHash"]
    entry = entries(store)[-1]
    for key, value in (("state", "failed"), ("seq", 7), ("prevHash", None), ("open", {"x": 1}), ("extra", 1)):
        assert ledger_format.entry_hash(dict(entry, **{key: value})) != entry["hash"]
    assert ledger_format.entry_hash(dict(entry, seal={})) == entry["hash"]      # the seal is over the hash


def test_a_run_that_died_is_closed_as_interrupted_by_the_next(store):
    first = run_once(store, "a")
    begin(store, "dead")
    Path(store.path(".run_dead.json.tmp")).write_bytes(b"half")     # killed while it wrote
    last = skip_once(store, "c")
    dead = store.read("run_dead.json")
    assert (dead["state"], dead["prevRunHash"], last["prevRunHash"]) == ("interrupted", first["runHash"], dead["runHash"])
    assert not os.path.exists(store.path(".run_dead.json.tmp"))
    assert [(one["runId"], one.get("closedBy")) for one in entries(store)[-2:]] == [("dead", "c"), ("c", None)]
    assert entries(store)[-1]["open"] == {}
    assert_chain_is_whole(store)


def test_a_run_that_died_before_it_had_a_record_gets_one(store):
    ledger = ledger_of(store)
    ledger.begin("dead", 1, "p")
    run_once(store, "b")
    assert store.read("run_dead.json")["state"] == "interrupted"
    assert run_once(store, "dead")["invocation"] == 2
    assert_chain_is_whole(store)


def test_the_stages_that_a_dead_run_finished_are_in_its_record(store):
    begin(store, "dead")
    stage = {"stage": "s", "lastStatus": "ok", "idempotencyKey": "k" * 64, "keyParts": {"params": {"x": 0.5}, "env": {"V": "secret"}, "processor": {"path": "p", "mtimeNs": 1 << 60},
             "inputs": [["in.txt", "0" * 64]]}, "outputs": [{"path": "o", "bytes": 3, "sha256": "1" * 64}], "attempts": 2, "lastDurationSec": 0.5, "lastRunId": "dead", "lastInvocation": 1}
    store.write("stage_s.json", stage)
    store.write("stage_other.json", dict(stage, stage="other", lastRunId="before"))
    store.write("stage_bad.json", dict(stage, stage="bad", lastStatus="failed"))
    store.lock = lambda name: stage_locks.FileLock(store.root, name, model.Clock())
    run_once(store, "b")
    entry, = store.read("run_dead.json")["stages"]
    assert (entry["stage"], entry["status"], entry["recovered"], entry["key"], entry["outputs"], entry["durationMs"]) == ("s", "ok", True, "k" * 64, stage["outputs"], 500)
    assert entry["inputs"] == [{"path": "in.txt", "sha256": "0" * 64}]
    assert entry["keyParts"]["params"] == '{"x":0.5}' and entry["keyParts"]["processor"]["mtimeNs"] == str(1 << 60) and "secret" not in json.dumps(entry)
    assert_chain_is_whole(store)


def test_a_run_that_lives_is_left_alone(store):
    lock = stage_locks.FileLock(store.root, "alive.run", model.Clock())
    assert lock.try_acquire()
    begin(store, "alive")
    run_once(store, "b")
    assert store.read("run_alive.json")["state"] == "running" and entries(store)[-1]["open"] == {"alive": 1}
    lock.release()
    run_once(store, "c")
    assert store.read("run_alive.json")["state"] == "interrupted"
    assert_chain_is_whole(store)


RUNS = """
import test_run_ledger
store = state_store.StateStore(os.getcwd())
store.prepare()
test_run_ledger.run_once(store, 'a%d' % point)
test_run_ledger.skip_once(store, 'b%d' % point)
test_run_ledger.run_once(store, 'a%d' % point)
"""
CHECK_RUNS = """
import test_run_ledger
store = state_store.StateStore(os.getcwd())
test_run_ledger.run_once(store, 'a%d' % point)
test_run_ledger.run_once(store, 'last%d' % point)
test_run_ledger.assert_chain_is_whole(store)
assert test_run_ledger.entries(store)[-1]['open'] == {}, test_run_ledger.entries(store)
for name in os.listdir('state'):
    assert not name.endswith('.tmp'), name
    if name.startswith('run_'):
        assert store.read(name)['state'] in ('completed', 'interrupted'), (name, store.read(name))
import shutil
shutil.rmtree('state')
"""


@posix_only
def test_a_kill_at_any_write_leaves_a_chain_that_goes_on(tmp_path):
    """Three calls, killed before and after each step; then two more."""
    head = "sys.path.insert(0, %r)\n" % str(ROOT / "tests")
    kills = kill_at_each_call(tmp_path, head + RUNS, head + CHECK_RUNS, "replace unlink write fsync ftruncate")
    assert kills >= 2 * 3 * 8


# --- healing ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("torn", [b"{", b'{"at":"2026', b"\0" * 70000, b"\n", b"\n \r\n\n{", b"\0" * 300 + b'"version":1}\n', b"\0" * 70000 + b"\n"])
def test_a_torn_last_line_is_cut_off_by_the_next_entry_which_says_so(store, torn):
    run_once(store, "a")
    with open(store.path("ledger.jsonl"), "ab") as file:
        file.write(torn)
    ledger, record = begin(store, "b")
    assert ledger.notes == ["state/ledger.jsonl: a torn last line of %d bytes, left by a crash, is cut off" % len(torn)]
    ledger.end(dict(record, state="completed"))
    assert [one.get("torn") for one in entries(store)] == [None, None, len(torn), None]
    assert_chain_is_whole(store)


def test_a_torn_first_line_is_cut_off_too(store):
    Path(store.path("ledger.jsonl")).write_bytes(b'{"half')
    run_once(store, "a")
    assert entries(store)[0]["torn"] == 6
    assert_chain_is_whole(store)


@pytest.mark.parametrize("change", [{"seq": 5}, {"hash": "0" * 64}, {"open": {"../x": 1}}, {"runId": "a/b"}, {"extra": "x"}], ids=str)
def test_a_last_entry_that_no_crash_leaves_is_damage_and_set_aside(store, change):
    run_once(store, "a")
    found = entries(store)
    found[-1].update(change)
    if "open" in change or "runId" in change:
        found[-1]["hash"] = ledger_format.entry_hash(found[-1])     # well made, and yet nothing to work with
    Path(store.path("ledger.jsonl")).write_bytes(b"".join(map(ledger_format.entry_line, found)))
    with pytest.raises(StateError, match="state/ledger.jsonl: the last entry is damaged.*set aside as state/ledger.jsonl.corrupt-"):
        run_once(store, "b")
    run_once(store, "c")
    assert entries(store)[0]["seq"] == 1 and "ledger.jsonl.corrupt-19700101T000000Z" in names(store.folder)


def test_a_ledger_that_is_gone_is_told_of_when_a_new_one_begins(project):
    project.spec({"processor": project.processor("p", "open(out + '/o', 'w').close()\n")})
    assert "new ledger" not in project.ok("--run-id", "a").out
    project.ok("--run-id", "b")
    project.path("state/ledger.jsonl").unlink()
    said = "[LEDGER] state/ledger.jsonl has no entry, though there are 2 records of earlier runs: a new ledger begins; `verify` tells more\n"
    assert project.ok("--run-id", "c").out.count(said) == 1
    assert "new ledger" not in project.ok("--run-id", "d").out


@pytest.mark.parametrize("harm, told", [
    (lambda ledger, end: (ledger.unlink(), end.unlink()), "has no entry, though there is a record of an earlier run: a new ledger begins"),
    (lambda ledger, end: ledger.write_bytes(ledger.read_bytes() + b"{"), "a torn last line of 1 bytes, left by a crash, is cut off")], ids=["gone", "torn"])
def test_what_a_sealed_run_heals_is_told_once(project, tmp_path, harm, told):
    """It looks at the ledger before the work and again to append."""
    project.spec({"processor": project.processor("p", "open(out + '/o', 'w').close()\n")}, seal={"keyFile": new_key(tmp_path, "hmac")})
    project.ok("--run-id", "a")
    for words in (("--run-id", "b"), ("--run-id", "c", "--force", "s1")):
        harm(project.path("state/ledger.jsonl"), project.path("state/ledger.end"))
        assert project.ok(*words).out.count(told) == 1
        project.path("state/run_%s.json" % words[1]).unlink()


def test_a_long_last_line_is_found_whole(store):
    ledger, record = begin(store, "a")
    ledger.note("accept", "p", {"stage": "s", "changes": ["x" * 300000], "reason": "r"})
    ledger.end(dict(record, state="completed"))
    ledger.note("accept", "p", {"stage": "s", "changes": ["y" * 100000], "reason": "r"})
    run_once(store, "b")
    assert_chain_is_whole(store)


@pytest.mark.parametrize("record", [{"state": "running"}, {"state": "running", "runId": "other", "invocation": 1},
                                    {"state": "running", "runId": "dead", "invocation": "1"}, {"runId": "dead", "invocation": 1, "stages": []},
                                    {"runId": "dead", "invocation": 1, "stages": [], "pipeline": 5}, {"runId": "dead", "invocation": 1, "stages": 5, "pipeline": "p"},
                                    {"runId": "dead", "invocation": 1, "stages": [], "pipeline": "p", "os": "\ud800"},
                                    {"runId": "dead", "invocation": 1, "stages": [], "pipeline": "p", "durationMs": float("nan"), "version": float("nan")}], ids=ascii)
def test_a_damaged_record_of_a_dead_run_is_a_clear_error_and_set_aside(store, record):
    """Else each later run would end at it."""
    begin(store, "dead")
    Path(store.path("run_dead.json")).write_text(json.dumps(dict(record, schema=1)))
    with pytest.raises(StateError, match="state/run_dead.json"):
        run_once(store, "r")
    run_once(store, "r2")
    assert any(name.startswith("run_dead.json.corrupt-") for name in names(store.folder))
    assert_chain_is_whole(store)


@pytest.mark.parametrize("damage", [{"tasks": 5}, {"lastDurationSec": "x"}, {"attempts": float("nan")}, {"lastInvocation": {}}, {"keyParts": {"env": {"A": 5}}},
                                    {"keyParts": {"outputDir": 5}}], ids=str)
def test_a_dead_run_is_closed_though_the_record_of_a_stage_that_it_finished_is_damaged(store, damage):
    _, record = begin(store, "dead")
    store.write("run_dead.json", dict(record, stages=[{"stage": ["x"], "status": "ok"}]))
    stage = {"schema": 1, "stage": "s", "lastStatus": "ok", "lastRunId": "dead", "lastInvocation": 1, "idempotencyKey": "0" * 64, "keyParts": {}, "outputs": []}
    Path(store.path("stage_s.json")).write_text(json.dumps(dict(stage, **damage)))
    run_once(store, "r")
    assert store.read("run_dead.json")["state"] == "interrupted"
    assert_chain_is_whole(store)


def test_a_record_without_its_name_that_cannot_be_read_is_kept(store, monkeypatch):
    run_once(store, "a")
    pending = store.path(".run.json.tmp")
    os.rename(store.path("run_a.json"), pending)

    def failing(real):
        def call(path, *more, **named):
            if path == pending:
                raise OSError(errno.EIO, os.strerror(errno.EIO), path)
            return real(path, *more, **named)
        return call
    with monkeypatch.context() as patch:
        for module, name in ((builtins, "open"), (os, "open")):
            patch.setattr(module, name, failing(getattr(module, name)))
        with pytest.raises(OSError) as caught:
            run_once(store, "b")
    assert caught.value.filename == pending
    run_once(store, "b")
    assert store.read("run_a.json")["state"] == "completed"
    assert_chain_is_whole(store)


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_an_entry_that_cannot_be_written_leaves_the_ledger_as_it_was(store, monkeypatch, call):
    run_once(store, "a")
    ledger, record = begin(store, "b")
    before = Path(store.path("ledger.jsonl")).read_bytes()
    real, failed = getattr(os, call), []

    def fail(descriptor, *more):
        if os.path.samestat(os.fstat(descriptor), os.stat(store.path("ledger.jsonl"))):
            if call == "write":
                real(descriptor, b"half a li")
            failed.append(call)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor, *more)
    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(OSError) as caught:
            ledger.end(dict(record, state="completed"))
    assert failed and caught.value.filename == store.path("ledger.jsonl")
    assert Path(store.path("ledger.jsonl")).read_bytes() == before and not os.path.exists(store.path(".run.json.tmp"))
    assert store.read("run_b.json")["state"] == "running"
    run_once(store, "c")
    assert_chain_is_whole(store)


def test_the_lock_is_released_whatever_happens(store):
    run_once(store, "a")
    with open(store.path("ledger.jsonl"), "ab") as file:
        file.write(b"{}\n")
    with pytest.raises(StateError):
        ledger_of(store).begin("b", 1, "p")
    ledger_of(store).begin("b", 1, "p")


def test_a_ledger_of_a_newer_runner_is_refused_and_left_alone(store):
    run_once(store, "a")
    last = dict(entries(store)[-1], schema=99)
    last["hash"] = ledger_format.entry_hash(last)
    Path(store.path("ledger.jsonl")).write_bytes(ledger_format.entry_line(last))
    with pytest.raises(StateError, match="newer runner .schema 99"):
        run_once(store, "b")
    assert entries(store) == [last]


# --- calls under one run id ------------------------------------------------------------------------------------------

def test_the_same_run_id_is_a_numbered_call_and_the_earlier_record_is_kept(store):
    records = [run_once(store, "a") for _ in range(3)]
    assert [record["invocation"] for record in records] == [1, 2, 3]
    assert store.read("run_a.1.json") == records[0] and store.read("run_a.2.json") == records[1]
    assert_chain_is_whole(store)


def test_a_dead_call_is_closed_before_it_is_kept(store):
    begin(store, "a")
    second = run_once(store, "a")
    kept = store.read("run_a.1.json")
    assert kept["state"] == "interrupted" and second["prevRunHash"] == kept["runHash"]
    assert_chain_is_whole(store)


def test_after_a_kill_between_keeping_and_writing_the_number_goes_on(store):
    run_once(store, "a")
    assert run_ledger.next_invocation(ledger_of(store), "a") == 2
    assert not os.path.exists(store.path("run_a.json"))
    assert run_ledger.next_invocation(ledger_of(store), "a") == 2


def test_a_run_id_that_would_overwrite_another_runs_record_is_refused(store):
    run_once(store, "a")
    run_once(store, "a")                # keeps run_a.1.json, which is where a run of the id a.1 would be
    with pytest.raises(RunIdTaken, match="choose another run id"):
        run_ledger.next_invocation(ledger_of(store), "a.1")
    run_once(store, "b")
    run_once(store, "b.1")
    before = store.read("run_b.1.json")
    with pytest.raises(RunIdTaken, match="choose another run id"):
        run_ledger.next_invocation(ledger_of(store), "b")
    assert store.read("run_b.1.json") == before


def test_find_run_tells_the_calls_apart(store):
    first, second = run_once(store, "a"), run_once(store, "a")
    assert state_store.find_run(store, "a", 1) == first and state_store.find_run(store, "a", 2) == second
    assert state_store.find_run(store, "a", 3) is None and state_store.find_run(store, "b", 1) is None


# --- sealing ---------------------------------------------------------------------------------------------------------

def new_key(tmp_path, mode):
    path = str(tmp_path / "seal.key")
    seal_keys.make_key_file(path, mode)
    return path


def expected_macs(key, mode, found):
    macs = []
    for one in found:
        macs.append(hmac_of(key, b"ledger-seal\0" + one["hash"].encode()))
        key = hashlib.sha256(b"ledger-key\0" + key).digest() if mode == "forward" else key
    return macs, key


def hmac_of(key, message):
    import hmac
    return hmac.new(key, message, "sha256").hexdigest()


@pytest.mark.parametrize("mode", ["hmac", "forward"])
def test_each_entry_is_sealed_and_the_end_is_noted(store, tmp_path, mode):
    path = new_key(tmp_path, mode)
    first = ledger_format.parse_key(Path(path).read_text())[3]
    for run_id in "abc":
        run_once(store, run_id, path)
    found = entries(store)
    macs, key = expected_macs(first, mode, found)
    assert [one["seal"]["mac"] for one in found] == macs
    assert [one["seal"]["index"] for one in found] == (list(range(6)) if mode == "forward" else [0] * 6)
    end = store.read("ledger.end")
    assert (end["seq"], end["hash"], end["mode"]) == (6, found[-1]["hash"], mode)
    assert end["mac"] == hmac_of(key, b"ledger-end\0%d\0" % 6 + found[-1]["hash"].encode())
    kept = Path(path).read_text()
    assert (first.hex() in kept) == (mode == "hmac") and ledger_format.parse_key(kept)[3] == key
    assert names(tmp_path) == ["root", "seal.key"]
    assert_chain_is_whole(store)


def test_the_own_hmac_is_that_of_the_standard_library():
    for size in (0, 1, 32, 64):
        key = bytes(range(size))
        assert ledger_format.hmac_sha256(key, b"message") == hmac_of(key, b"message")


@pytest.mark.parametrize("mode", ["hmac", "forward"])
def test_a_sealed_ledger_is_continued_only_with_its_key(store, tmp_path, mode):
    path = new_key(tmp_path, mode)
    run_once(store, "a", path)
    before = entries(store)
    with pytest.raises(StateError, match="is sealed with key [0-9a-f]{16}; give its key file with --key FILE"):
        run_once(store, "b")
    with pytest.raises(StateError, match="is sealed with key"):
        ledger_of(store).begin("b", 1, "p")
    os.mkdir(str(tmp_path / "other"))
    with pytest.raises(StateError, match="give the right key file"):
        run_once(store, "b", new_key(tmp_path / "other", mode))
    assert entries(store) == before


def keep_lines(store, count):
    path = Path(store.path("ledger.jsonl"))
    path.write_bytes(b"".join(path.read_bytes().splitlines(True)[:count]))


def rewrite_end(store, **changes):
    Path(store.path("ledger.end")).write_text(json.dumps(dict(store.read("ledger.end"), **changes)))


CUTS = {
    "two entries cut": (lambda store: keep_lines(store, 2), "ends with entry 2, but not the one that state/ledger.end tells of, entry 4: it was cut off"),
    "all cut": (lambda store: keep_lines(store, 0), "is empty, or was removed: state/ledger.end tells of entry 4"),
    "the ledger removed": (lambda store: os.unlink(store.path("ledger.jsonl")), "is empty, or was removed: state/ledger.end tells of entry 4"),
    "the end removed, too": (lambda store: (keep_lines(store, 2), os.unlink(store.path("ledger.end"))), "state/ledger.end is not there, which a sealed ledger has"),
    "the end alone removed": (lambda store: os.unlink(store.path("ledger.end")), "state/ledger.end is not there, which a sealed ledger has"),
    "the end made up": (lambda store: (keep_lines(store, 2), rewrite_end(store, seq=2)), "state/ledger.end was not written with the key of "),
    "the end damaged": (lambda store: Path(store.path("ledger.end")).write_text("{"), "state/ledger.end is damaged")}


@pytest.mark.parametrize("case", sorted(CUTS))
def test_a_sealed_ledger_that_was_cut_off_is_not_continued(store, tmp_path, case):
    """Or the next run would write the end anew, and `verify` would find nothing any more."""
    path = new_key(tmp_path, "hmac")
    run_once(store, "a", path)
    run_once(store, "b", path)
    change, message = CUTS[case]
    change(store)
    before = {name: Path(store.path(name)).read_bytes() for name in names(store.folder)}
    for call in (lambda: ledger_of(store, path).prepare(), lambda: run_once(store, "c", path)):
        with pytest.raises(StateError, match=message):
            call()
    assert {name: Path(store.path(name)).read_bytes() for name in names(store.folder)} == before


@pytest.mark.parametrize("mode", ["hmac", "forward"])
@pytest.mark.parametrize("is_begun", [False, True])
def test_a_kill_between_a_sealed_entry_and_its_end_is_no_cut(store, tmp_path, is_begun, mode):
    """Nor is one before the first sealed entry: by then the end is there. is_begun: there are entries without seals."""
    path = new_key(tmp_path, mode)
    first = Path(path).read_bytes()
    if is_begun:
        run_once(store, "plain")
    before = entries(store)
    behind = "state/ledger.end: it is 1 entry behind the ledger: a kill between the two leaves that"
    assert Sealer(store, path).seal({"hash": "0" * 64}, before[-1] if before else None)["index"] == 0
    end = Path(store.path("ledger.end")).read_bytes()
    report = ledger_verify.verify(store.root)
    assert report.findings == [] and (not before or report.notes == ["state/ledger.end was written for the first sealed entry: a kill before that leaves it"])
    for stage in "ab":
        ledger_of(store, path).prepare()
        ledger_of(store, path).note("reset", "p", {"stage": stage})
        newer = Path(store.path("ledger.end")).read_bytes()
        Path(store.path("ledger.end")).write_bytes(end)
        report = ledger_verify.verify(store.root, key=first)
        assert (report.findings, report.notes) == ([], [behind])
        end = newer
    ledger_of(store, path).prepare()
    run_once(store, "c", path)
    assert ledger_verify.verify(store.root, key=first).findings == []
    assert_chain_is_whole(store)


@pytest.mark.parametrize("mode", ["hmac", "forward"])
def test_a_ledger_that_was_cut_to_its_first_sealed_entry_is_no_kill(store, tmp_path, mode):
    """An end that names an entry without a seal, or none at all, is not what a kill leaves."""
    path = new_key(tmp_path, mode)
    first = Path(path).read_bytes()
    run_once(store, "plain")
    run_once(store, "a", path)
    keep_lines(store, 3)
    unsealed = entries(store)[1]
    for more in ({}, {"begins": True}):
        rewrite_end(store, seq=2, hash=unsealed["hash"], mac="0" * 64, **more)
        assert ("EDITED", "state/ledger.end") in [one[:2] for one in ledger_verify.verify(store.root, key=first).findings]
        with pytest.raises(StateError, match="was not written with the key|the ledger was cut off"):
            run_once(store, "b", path)
    os.unlink(store.path("ledger.end"))
    assert ("DELETED", "state/ledger.end") in [one[:2] for one in ledger_verify.verify(store.root, key=first).findings]
    with pytest.raises(StateError, match="state/ledger.end is not there|the ledger was cut off"):
        run_once(store, "b", path)


def test_a_ledger_begun_unsealed_is_sealed_from_then_on(store, tmp_path):
    run_once(store, "a")
    run_once(store, "b", new_key(tmp_path, "forward"))
    assert [one.get("seal", {}).get("index") for one in entries(store)] == [None, None, 0, 1]
    assert_chain_is_whole(store)


def test_a_forward_ledger_that_was_cut_off_is_not_continued(store, tmp_path):
    path = new_key(tmp_path, "forward")
    run_once(store, "a", path)
    run_once(store, "b", path)
    whole = entries(store)
    for left, message in ((whole[:2], "the ledger was cut off"), (whole[:1], "the ledger was cut off"), ([], "was removed")):
        Path(store.path("ledger.jsonl")).write_bytes(b"".join(map(ledger_format.entry_line, left)))
        with pytest.raises(StateError, match=message):
            ledger_of(store, path).begin("c", 1, "p")
    os.unlink(store.path("ledger.end"))
    keep = ledger_format.entry_line(whole[0])
    Path(store.path("ledger.jsonl")).write_bytes(keep)
    with pytest.raises(StateError, match="the ledger was cut off"):
        ledger_of(store, path).begin("c", 1, "p")
    assert Path(store.path("ledger.jsonl")).read_bytes() == keep and not os.path.exists(store.path("ledger.end"))


def test_an_old_copy_of_a_forward_key_is_brought_up_to_the_ledger(store, tmp_path):
    """The copy that everybody is told to make: who has lost the key file puts it back. The old key is gone again afterwards."""
    path = new_key(tmp_path, "forward")
    first = Path(path).read_bytes()
    for run_id in "ab":
        run_once(store, run_id, path)
    newest = Path(path).read_bytes()
    for old in (first, key_at(first, 2)):
        Path(path).write_bytes(old)
        ledger = ledger_of(store, path)
        ledger.prepare()
        assert Path(path).read_bytes() == newest and ledger.notes == [
            "%s was an old copy of the key file, at %d: brought up to 4, as the ledger is (`verify` needs the first key: keep a copy of it)" % (
                path, ledger_format.parse_key(old.decode())[2])]
    Path(path).write_bytes(first)
    run_once(store, "c", path)
    macs, last = expected_macs(ledger_format.parse_key(first.decode())[3], "forward", entries(store))
    assert [one["seal"]["mac"] for one in entries(store)] == macs and ledger_format.parse_key(Path(path).read_text())[3] == last
    assert names(tmp_path) == ["root", "seal.key"]
    assert_chain_is_whole(store)


def key_at(first, index):
    """Return the content that the key file had when it was at *index*."""
    mode, identity, _, key = ledger_format.parse_key(first.decode())
    for _ in range(index):
        key = hashlib.sha256(b"ledger-key\0" + key).digest()
    return ledger_format.key_text(mode, identity, index, key).encode()


@pytest.mark.parametrize("seal", [{"mac": "0" * 64}, {"mac": 5}, {"index": 1}, {"index": 10 ** 15}], ids=str)
def test_an_old_copy_of_a_forward_key_does_not_follow_a_seal_that_it_has_not_made(store, tmp_path, seal):
    path = new_key(tmp_path, "forward")
    first = Path(path).read_bytes()
    for run_id in "ab":
        run_once(store, run_id, path)
    found = entries(store)
    found[-1]["seal"].update(seal)
    Path(store.path("ledger.jsonl")).write_bytes(b"".join(map(ledger_format.entry_line, found)))
    Path(path).write_bytes(first)
    with pytest.raises(StateError, match="no key that follows from .*seal.key, at 0, has made it: somebody without the key wrote it; `verify` tells more; put back"):
        run_once(store, "c", path)
    assert Path(path).read_bytes() == first


def test_an_old_copy_of_a_forward_key_does_not_hide_that_the_ledger_was_cut_off(store, tmp_path):
    path = new_key(tmp_path, "forward")
    first = Path(path).read_bytes()
    for run_id in "ab":
        run_once(store, run_id, path)
    keep_lines(store, 2)
    Path(path).write_bytes(first)
    with pytest.raises(StateError, match="ends with entry 2, but not the one that state/ledger.end tells of, entry 4: it was cut off"):
        run_once(store, "c", path)
    assert Path(path).read_bytes() == first


SEALED_RUNS = """
import test_run_ledger
key = os.path.join(os.path.dirname(os.getcwd()), 'key%d' % point)
store = state_store.StateStore(os.getcwd())
store.prepare()
for run_id in ('a%d' % point, 'b%d' % point):
    test_run_ledger.run_once(store, run_id, key)
    if {is_put_back} and run_id[0] == 'a':
        os.rename(key + '.copy', key)
"""
CHECK_SEALED_RUNS = """
import ledger_format, test_run_ledger
key = os.path.join(os.path.dirname(os.getcwd()), 'key%d') % point
store = state_store.StateStore(os.getcwd())
test_run_ledger.run_once(store, 'last%d' % point, key)
test_run_ledger.assert_chain_is_whole(store)
found = test_run_ledger.entries(store)
first = ledger_format.parse_key(open(key + '.first').read())[3]
macs, last = test_run_ledger.expected_macs(first, {mode!r}, found)
assert [one['seal']['mac'] for one in found] == macs, found
assert store.read('ledger.end')['seq'] == len(found) and ledger_format.parse_key(open(key).read())[3] == last
assert not os.path.exists(key + '.new')
test_run_ledger.key_with_copy(os.path.dirname(os.getcwd()), point + 1, {mode!r})
import shutil
shutil.rmtree('state')
"""


def key_with_copy(folder, number, mode):
    """Make the key file for the next kill, and a copy of the first key."""
    path = os.path.join(str(folder), "key%d" % number)
    seal_keys.make_key_file(path, mode)
    for copy in (path + ".first", path + ".copy"):
        shutil.copy(path, copy)


@posix_only
@pytest.mark.parametrize("mode, is_put_back", [("hmac", False), ("forward", False), ("forward", True)])
def test_a_kill_at_any_step_of_sealing_loses_neither_chain_nor_key(tmp_path, mode, is_put_back):
    """is_put_back: the second run finds the first key in the place of the later one."""
    head = "sys.path.insert(0, %r)\nimport test_run_ledger\n" % str(ROOT / "tests")
    (tmp_path / "root").mkdir()
    key_with_copy(tmp_path, 1, mode)
    kills = kill_at_each_call(tmp_path / "root", head + SEALED_RUNS.format(is_put_back=is_put_back), head + CHECK_SEALED_RUNS.format(mode=mode), "replace unlink write fsync")
    assert kills >= 2 * 2 * 8


@pytest.mark.parametrize("content", [b"", b"x", b"pipeline-seal-key-1 hmac 00 0 abcd", b"0" * 150, b"pipeline-seal-key-1 other 00 0 " + b"ab" * 32])
def test_a_file_that_is_no_key_is_refused(tmp_path, content):
    path = tmp_path / "k"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(KeyProblem, match="is not a key file; if a ledger is sealed with it, put its copy back, else new-key FILE makes one"):
        seal_keys.read_key_file(str(path))


@pytest.mark.skipif(sys.platform != "win32", reason="elsewhere nobody is kept from a file by who has it open")
@pytest.mark.parametrize("share", ["nothing", "reading", "all but removal"])
def test_a_key_file_that_a_scanner_holds_for_a_moment_is_waited_for(store, tmp_path, share):
    key = new_key(tmp_path, "forward")
    run_once(store, "a", key)
    threading.Timer(0.2, holder.hold(key, share)).start()
    run_once(store, "b", key)
    assert_chain_is_whole(store)


@posix_only
def test_a_key_file_is_for_its_owner_only(tmp_path):
    path = new_key(tmp_path, "hmac")
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    for mode in (0o640, 0o604, 0o620):
        os.chmod(path, mode)
        with pytest.raises(KeyProblem, match="mode %o.; chmod 600 it" % mode):
            seal_keys.read_key_file(path)
    assert seal_keys.read_key_file(path, posix=False)


def test_a_key_below_the_root_is_refused(store):
    with pytest.raises(KeyProblem, match="lies below the root"):
        seal_keys.read_key_file(new_key(Path(store.root), "hmac"), store.root)


def test_a_key_that_cannot_be_written_leaves_no_half_of_it(tmp_path, monkeypatch):
    path = str(tmp_path / "k")
    with monkeypatch.context() as patch:
        patch.setattr(durable_files, "sync_file", lambda descriptor: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(OSError) as caught:
            seal_keys.make_key_file(path, "hmac")
    assert caught.value.filename == path and names(tmp_path) == []
    assert seal_keys.make_key_file(path, "hmac")


def test_a_key_file_is_never_overwritten(tmp_path):
    path = new_key(tmp_path, "hmac")
    before = Path(path).read_bytes()
    with pytest.raises(KeyProblem, match="is there already"):
        seal_keys.make_key_file(path, "forward")
    assert Path(path).read_bytes() == before
    with pytest.raises(KeyProblem, match="cannot read the key file"):
        seal_keys.read_key_file(str(tmp_path / "none"))


# --- heads, for people -----------------------------------------------------------------------------------------------

def test_a_head_is_written_in_groups_and_read_back():
    entry = {"seq": 12, "hash": "9f3a77c1" + "0" * 56}
    assert ledger_format.head_text(entry) == "12: 9f3a-77c1-0000-0000-0000-0000-0000-0000"
    assert ledger_format.parse_head(ledger_format.head_text(entry)) == (12, "9f3a77c1" + "0" * 24)
    assert ledger_format.parse_head("9F3A 77C1 0000 0000") == (None, "9f3a77c100000000")
    for text in ("", "12:", "9f3a-77c1", "x" * 20, "a: " + "0" * 32, "0" * 65):
        assert ledger_format.parse_head(text) is None, text


def test_canonical_json_is_one_byte_form():
    assert ledger_format.canonical_json({"b": [1, None, True], "a": "ä\n"}) == '{"a":"ä\\n","b":[1,null,true]}'.encode()
    with pytest.raises(ValueError):
        ledger_format.canonical_json(float("nan"))


# --- through the program ---------------------------------------------------------------------------------------------

def test_two_runs_through_the_program_are_one_chain(project):
    project.write("in.txt", "x\n")
    project.spec({"processor": project.processor("p", "open(out + '/o', 'w').write('x')"), "inputs": ["in.txt"]})
    for run_id in ("a", "b", "a"):
        done = project.ok("--run-id", run_id)
        assert "[LEDGER] head %s" % ledger_format.head_text(entries(StateStore(str(project.root)))[-1]) in done.out
    store = StateStore(str(project.root))
    assert_chain_is_whole(store)
    assert store.read("run_a.json")["prevRunHash"] == store.read("run_b.json")["runHash"]
    assert store.read("run_b.json")["prevRunHash"] == store.read("run_a.1.json")["runHash"]
