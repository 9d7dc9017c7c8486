"""The ledger: an append-only line for each run that begins and each that ends, chained, and sealed where a key is given.

Above the leaves and below the runner.

    state/ledger.jsonl      the entries; what is hashed stands in ledger_format
    state/.run.json.tmp     a sealed run record between its entry and its name

The entry is the commitment, and it is written once: first the sealed record under a temporary name, synced, then the entry,
synced, then the rename. A kill before the entry leaves a run that died; a kill after it leaves a rename, which the next
run completes. A torn last line, which only a crash leaves, is cut off by the next entry, which says so.

All changes are made under one kernel lock: runs of several pipelines below one root append to one chain.
"""
from __future__ import annotations

import os

import durable_files
import state_store
from ledger_format import ENTRY_SCHEMA, canonical_json, entry_hash, entry_line, found_hash, head_text, is_unwritten, run_hash
from primitives import (
    close_quietly, is_integer, is_there, leads_out, loads, milliseconds, naming, open_descriptor, open_file, pretty_pieces, remove_quietly, replace,
    whose_text)
from state_store import StateError, utc_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, List, Optional, Sequence, Set, Sized, Tuple

    from state_store import StateStore
    Json = Dict[str, Any]

NAME = "ledger.jsonl"
PENDING = ".run.json.tmp"   # of a sealed record, until its entry stands and it gets its name
LIST_BYTES = 4 << 20        # of a list of texts in an entry: `verify` reads lines of 16 MiB
BLOCK_BYTES = 1 << 16       # read from the ledger's end to find its last line
CLOSED = ("state/%s: run %s is not open in it any more: another run has closed it as dead (was locks/ removed?), or an older ledger was put back; "
          "its end is not entered; `verify` names the stages that it has finished since: run these again, with --force")
ID_IN_USE = "run id %s is in use, by a living run or by gc; wait for it or choose another --run-id"
SHOWN_INPUT_KEYS = ("path", "bytes", "sha256")
MOST_KEPT = 100             # logs and refusals that a stage record keeps: it is read each time that the stage is looked at


class RunIdTaken(Exception):
    """The record of another run stands where this one's would."""

    exit_code = 2


# --- what a run record says of a stage -------------------------------------------------------------------------------

def recorded_parts(store: StateStore, parts: Json) -> Json:
    """Return key parts as run records hold them.

    Canonical JSON wants no floats and no integers beyond 2^53: params are JSON text, a time in ns is text. Variables are keyed
    digests.
    """
    processor = parts.get("processor") or {}
    shown = dict(parts, params=canonical_json(parts.get("params") or {}).decode("utf-8"),
                 processor={name: str(value) if name == "mtimeNs" else value for name, value in processor.items()})
    if parts.get("env"):
        import environment
        shown["env"] = environment.passed_digests(sorted(parts["env"]), parts["env"], store.secret())
    return shown


def output_bytes(record: Json) -> int:
    """Return how many bytes a stage's outputs have by its record, which does not list very many."""
    made = (record.get("tasks") or {}).get("outputBytes")
    return int(sum(one["bytes"] for one in record["outputs"]) if made is None else made)


def kept_evidence(logs: List[Json], refusals: List[Json]) -> Json:
    """Return what a stage record keeps of what the run record tells of a stage that ended well, for a run that does not live to write that;
    {} for what is too much, with which the run record is written at once."""
    return {} if is_much(logs, refusals) else {name: value for name, value in (("logs", logs), ("networkRefusals", refusals)) if value}


def is_much(logs: Sized, refusals: Sized) -> bool:
    return len(logs) + len(refusals) > MOST_KEPT


def _recovered_evidence(store: StateStore, record: Json) -> Json:
    """Return what kept_evidence() has left in a stage record; of the logs, after a restart of the machine, those that the power has not
    taken. Durable with the next flush of the store's `commit`."""
    found: Json = {name: record[name] for name in ("networkRefusals",) if isinstance(record.get(name), list)}
    logs: Any = record.get("logs")
    for log in logs if isinstance(logs, list) else []:
        if not isinstance(log, dict) or not isinstance(log.get("path"), str) or leads_out(log["path"]):
            continue                    # not as this runner writes it
        path = os.path.join(store.root, log["path"])
        if os.path.isfile(path):
            store.commit.add_file(path)
        if record.get("bootId") == state_store.boot_id() or _is_as_written(path, log):
            found.setdefault("logs", []).append(log)
    return found


def _is_as_written(path: str, log: Json) -> bool:
    import file_digests
    try:
        return os.path.isfile(path) and file_digests.read_content(path) == (log.get("bytes"), log.get("sha256"))
    except OSError:
        return False


def recovered_entry(store: StateStore, record: Json) -> Json:
    """Return what a run record says of a stage that its run finished and did not live to write down.

    hadMarker: it had written the marker, too; durable with the next flush of the store's `commit`. Who removes it then means it.
    """
    import stage_markers
    key, marker = record["idempotencyKey"], stage_markers.marker_path(store.root, record["keyParts"].get("outputDir") or ".", record["stage"])
    had_marker = stage_markers.read_marker(marker) == key
    if had_marker:
        store.commit.add_file(marker)
    parts = recorded_parts(store, record["keyParts"])
    outputs = [{name: one[name] for name in SHOWN_INPUT_KEYS} for one in record["outputs"]]
    seconds: Any = record.get("lastDurationSec")
    return {"stage": record["stage"], "status": "ok", "reason": "finished by a run that died", "attempts": record.get("attempts", 0),
            "durationMs": milliseconds(seconds) or 0, "exitCode": 0, "key": key,
            "keyParts": parts, "inputs": [{"path": path, "sha256": digest} for path, digest in parts.get("inputs") or []],
            "outputs": outputs, "bytesIn": record.get("bytesIn", 0),
            "bytesOut": output_bytes(record), "counts": record.get("counts") or {},
            "recovered": True, "hadMarker": had_marker, **_recovered_evidence(store, record), **({"tasks": record["tasks"]} if record.get("tasks") else {})}


# --- the ledger ------------------------------------------------------------------------------------------------------

class RunLedger:
    """The ledger of one root."""

    def __init__(self, store: StateStore, lock: Callable[[str], Any], sealer: Any = None) -> None:
        """*lock* makes the kernel lock of a given name (stage_locks.FileLock); *sealer* is a seal_keys.Sealer, or None."""
        self.store, self.lock, self.sealer = store, lock, sealer
        self.notes: List[str] = sealer.notes if sealer is not None else []      # what was healed, for the user
        self.noted: Set[str] = set()    # what was found by Held, and told of or about to be
        self.last: Optional[Json] = None    # the last entry that this object has seen
        self.begun: Optional[Tuple[str, int]] = None    # the call that this object has entered as begun

    def prepare(self) -> None:
        """Before any work: complete what a dead run left half done, and refuse a seal that this run cannot continue.

        Raises: StateError.
        """
        if self.sealer is not None or is_there(self.store.path(PENDING)):
            with Held(self) as held:
                if self.sealer is not None:
                    self.sealer.prepare(held.last)
        if self.sealer is None:
            _refuse_unsealed(last_entry(self.store)[0])

    def look(self) -> None:
        """See whether prepare() would go through, and write nothing. Raises: StateError, KeyProblem, OSError."""
        last = last_entry(self.store)[0]
        if self.sealer is not None:
            self.sealer.look(last)
        else:
            _refuse_unsealed(last)

    def begin(self, run_id: str, invocation: int, pipeline: str) -> None:
        """Note durably that a run is about to touch its first stage."""
        with Held(self) as held:
            held.close_ended(run_id)
            held.open[run_id] = invocation
            held.append("begin", run_id, invocation, pipeline)
            self.begun = run_id, invocation

    def end(self, record: Json, write_before: Optional[Callable[[], None]] = None, write_after: Optional[Callable[[], None]] = None) -> None:
        """Give *record* its prevRunHash and runHash, enter it, write it as state/run_<id>.json.

        write_before is called first, write_after last, both under the lock of the ledger; write_after raises nothing.
        Raises: OSError, StateError; then nothing is entered.
        """
        with Held(self) as held:
            held.close_ended(record["runId"])
            if self.begun is not None and held.last is not None and held.open.get(self.begun[0]) != self.begun[1]:
                raise StateError(CLOSED % (NAME, self.begun[0]))
            if write_before is not None:
                write_before()
            held.end(record)
            if write_after is not None:
                write_after()

    def note(self, event: str, pipeline: str, facts: Json) -> None:
        """Enter that a person has done something to what runs left, or has accepted another key, and who; *facts* are the entry's
        own fields."""
        with Held(self) as held:
            held.append(event, event, 0, pipeline, **who(), **facts)

    def head_text(self) -> str:
        """Return the head that this object has appended, for people."""
        return head_text(self.last) if self.last is not None else ""

    def tell(self, say: Callable[[str], None], with_head: bool = False) -> None:
        """Tell what was healed since the last time and, if asked for, the head."""
        for note in self.notes:
            say("[LEDGER] " + note)
        self.notes.clear()
        if with_head:
            say("[LEDGER] head " + self.head_text())

    def found(self, note: str) -> None:
        """Keep a note for the user, once: until the next entry stands, each look at the ledger finds the same."""
        if note not in self.noted:
            self.noted.add(note)
            self.notes.append(note)

    def close_own(self, run_id: str, invocation: int) -> None:
        """Close the earlier call under a run id, whose lock the caller holds."""
        with Held(self) as held:
            held.close(run_id, invocation, run_id)


class Held:
    """The ledger while its lock is held: healed on entry, then appended to."""

    def __init__(self, ledger: RunLedger) -> None:
        self.ledger, self.store = ledger, ledger.store
        self.lock = ledger.lock("ledger.chain")     # not ".guard": that is the guard file of a stage of that name
        self.torn = 0
        self.is_uncertain = False       # whether the last line that could not be written stands there all the same
        self.size = 0
        self.last: Optional[Json] = None
        self.open: Json = {}

    def __enter__(self) -> Held:
        self.lock.acquire(state_store.WAIT_S, "state/%s is held by another run for %d s; run again" % (NAME, state_store.WAIT_S))
        try:
            self.last, self.size, self.torn = last_entry(self.store)
            self.open = dict(self.last["open"]) if self.last is not None else {}
            if self.torn:
                self.ledger.found("state/%s: a torn last line of %d bytes, left by a crash, is cut off" % (NAME, self.torn))
            if self.last is None:
                self._note_loss()
            self._complete_rename()
        except BaseException:
            self.lock.release()
            raise
        return self

    def __exit__(self, *_: Any) -> None:
        self.ledger.last = self.last
        self.lock.release()

    def _note_loss(self) -> None:
        """Say that a new chain begins, where there are records of runs that another has entered."""
        count = sum(name.startswith("run_") and name.endswith(".json") for name in os.listdir(self.store.folder))
        if count:
            self.ledger.found("state/%s has no entry, though there %s: a new ledger begins; `verify` tells more" % (
                NAME, "is a record of an earlier run" if count == 1 else "are %d records of earlier runs" % count))

    def _complete_rename(self) -> None:
        """Give the last entry's record its name, if a kill came between; without an entry the run counts as died. Raises: OSError:
        what cannot be read may be the entry's, and the only copy."""
        path = self.store.path(PENDING)
        if not is_there(path):
            return
        with naming(path), open_file(path) as file:
            data = file.read()
        try:
            record = loads(data.decode("utf-8"))
            is_its_record = self.last is not None and self.last["event"] == "end" and run_hash(record) == self.last["runHash"]
        except (ValueError, TypeError, AttributeError, RecursionError):
            is_its_record = False
        if is_its_record and self.last is not None:
            self._name_record(self.last["runId"])
        else:
            remove_quietly(path)

    def _name_record(self, run_id: str) -> None:
        replace(self.store.path(PENDING), self.store.path("run_%s.json" % run_id))

    def append(self, event: str, run_id: str, invocation: int, pipeline: str, **more: Any) -> None:
        """Append an entry; on the disk on return. Raises: OSError; then the ledger is as it was."""
        last = self.last
        entry: Json = {"schema": ENTRY_SCHEMA, "seq": last["seq"] + 1 if last else 1, "prevHash": last["hash"] if last else None, "event": event,
                       "at": utc_text(self.store.now()), "runId": run_id, "invocation": invocation, "pipeline": pipeline,
                       "lastRunHash": last["lastRunHash"] if last else None, "open": dict(self.open)}
        entry.update(more)
        if self.torn:
            entry["torn"] = self.torn
        if event == "end":
            entry["lastRunHash"] = entry["runHash"]
        entry["hash"] = entry_hash(entry)
        if self.ledger.sealer is not None:
            entry["seal"] = self.ledger.sealer.seal(entry, last)
        else:
            _refuse_unsealed(last)
        if event != "end":              # there it is done with all that the entry vouches for
            # The name of the last run's record: only where its entry is the last one can it be given again.
            durable_files.sync_folder(self.store.folder)
        line = entry_line(entry)
        self._append_line(line)
        self.last, self.size, self.torn = entry, self.size + len(line), 0
        if self.ledger.sealer is not None:
            self.ledger.sealer.sealed(entry)

    def _append_line(self, line: bytes) -> None:
        path = self.store.path(NAME)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        try:
            descriptor = open_descriptor(path, flags, 0o666)
            try:
                if self.torn:
                    os.ftruncate(descriptor, self.size)
                try:
                    durable_files.write_all(descriptor, line)
                    durable_files.sync_file(descriptor)
                except OSError:
                    self.is_uncertain = True
                    os.ftruncate(descriptor, self.size)     # half a line, or one of which nobody knows whether it lasts
                    self.is_uncertain = False
                    raise
            finally:
                close_quietly(descriptor)
        except OSError as error:
            raise OSError(error.errno, error.strerror, path) from error
        if not self.size:
            durable_files.sync_folder(self.store.folder)

    def end(self, record: Json, **more: Any) -> None:
        """Seal a run record, enter it, give it its name."""
        record["schema"] = state_store.SCHEMA_VERSION
        record["prevRunHash"] = self.last["lastRunHash"] if self.last else None
        record["runHash"] = run_hash(record)
        pending, before = self.store.path(PENDING), self.last
        try:
            durable_files.write_new(pending, pretty_pieces(record))
            self.store.commit.folders[self.store.folder] = None
            self.store.commit.flush()       # what the entry vouches for is on the disk before it
            self.open.pop(record["runId"], None)
            self.append("end", record["runId"], record["invocation"], record["pipeline"], state=record["state"], runHash=record["runHash"], **more)
        except OSError as error:
            if self.last is before and not self.is_uncertain:
                remove_quietly(pending)
            raise OSError(error.errno, error.strerror, error.filename if error.filename is not None else pending) from error
        self._name_record(record["runId"])      # not synced: after a power cut the next run names it again

    def close_ended(self, own_id: str) -> None:
        """Close the runs that have begun and died. One whose lock is another account's may live: it is left as it is."""
        for run_id in sorted(self.open):
            lock = self.ledger.lock(run_id + ".run")
            try:
                if run_id == own_id or not lock.try_acquire():
                    continue                # it lives
            except PermissionError:
                self.ledger.found("run %s is not closed, for nobody can tell whether it lives: locks/.%s.run %s" % (
                    run_id, run_id, whose_text(lock.path) or "may not be opened"))
                continue
            try:
                self.close(run_id, self.open[run_id], own_id)
            finally:
                lock.release()

    def close(self, run_id: str, invocation: int, closer: str) -> None:
        """Enter a dead run as interrupted, with the stages that it finished and did not live to record. Raises: LockHeld where it
        lives all the same."""
        _refuse_living(self.store.root, run_id)
        name = "run_%s.json" % run_id
        record = self.store.read(name)
        if record is None:                  # it died before it had one; every end has one
            record = {"runId": run_id, "invocation": invocation, "pipeline": "", "stages": []}
        is_its = (record.get("runId"), record.get("invocation")) == (run_id, invocation) and isinstance(record.get("pipeline"), str)
        if not is_its or not isinstance(record.get("stages"), list) or not found_hash(record):
            raise StateError("state/%s is damaged; %s" % (name, self.store.set_aside(name)))
        record.pop("runHash", None)
        record.pop("selected", None)
        for stage in self.store.stage_names():
            self.store.sync_stage(stage)    # of which this entry may say that the dead run has finished it
        record.update(state="interrupted", endedAt=None, durationMs=None, stages=self._with_recovered(record))
        self.end(record, closedBy=closer)
        remove_quietly(self.store.path(".%s.tmp" % name))

    def _with_recovered(self, record: Json) -> List[Json]:
        stages = [one for one in record["stages"] if isinstance(one, dict)]
        known = [one.get("stage") for one in stages if one.get("status") == "ok"]
        # What is damaged is left for the run that needs it, which will say so.
        store = state_store.StateStore(self.store.root, writable=False)
        for name in store.stage_names():
            if name in known:
                continue
            try:
                stage = store.stage(name)
                is_its = stage is not None and (stage.get("lastRunId"), stage.get("lastInvocation"), stage["lastStatus"]) == (
                    record["runId"], record["invocation"], "ok")
                entry = recovered_entry(self.store, stage) if stage is not None and is_its else None
            except (StateError, TypeError, ValueError, AttributeError):
                continue
            if entry is not None and found_hash(entry):
                stages = [one for one in stages if one.get("stage") != name] + [entry]
        return stages


def in_parts(texts: Sequence[str]) -> List[List[str]]:
    """Return texts in lists, one at least, of which none makes an entry longer than `verify` reads."""
    parts: List[List[str]] = [[]]
    size = 0
    for text in texts:
        size += len(canonical_json(text)) + 1
        if size > LIST_BYTES and parts[-1]:
            parts.append([])
            size = len(canonical_json(text)) + 1
        parts[-1].append(text)
    return parts


def who() -> Json:
    """Return who does something now, as entries and records have it."""
    import environment
    import stage_locks
    return {"user": environment.user_name(), "host": stage_locks.host_name()}


def works_unseen(root: str, run_id: str) -> Optional[Json]:
    """Return what the runner of a run says of itself if it lives, for use where the lock of its run id is free; None if it is
    dead."""
    import process_tree
    import stage_locks
    owner = stage_locks.read_owner_file(os.path.join(root, "locks", ".%s.run" % run_id))
    return owner if stage_locks.lives_here(owner, state_store.boot_id(), process_tree) else None


def _refuse_living(root: str, run_id: str) -> None:
    owner = works_unseen(root, run_id)
    if owner is not None:
        import stage_locks
        raise stage_locks.LockHeld("run %s is at work: pid %s on %s, since %s%s" % (run_id, owner["pid"], owner["host"], owner.get("since"),
                                                                                    stage_locks.UNSHARED))


def _refuse_unsealed(last: Optional[Json]) -> None:
    """Raises: StateError if *last* is sealed: what follows it must be, too."""
    if last is not None and "seal" in last:
        raise StateError("state/%s is sealed with key %s; give its key file with --key FILE, or \"seal\": {\"keyFile\": ...} in the pipeline file" % (
            NAME, last["seal"].get("keyId")))


def last_entry(store: StateStore) -> Tuple[Optional[Json], int, int]:
    """Return (last entry or None, bytes of whole lines, bytes of a torn last line). Raises: StateError, OSError."""
    line, size, torn = _read_tail(store.path(NAME))
    if not line:
        return None, size, torn
    try:
        entry = loads(line.decode("utf-8"))
        is_whole = isinstance(entry, dict) and entry.get("hash") == entry_hash(entry) and _is_entry(entry)
    except (ValueError, TypeError, RecursionError):
        is_whole = False
    if not is_whole:
        raise StateError("state/%s: the last entry is damaged, and not by a crash; `verify` tells more; %s" % (NAME, store.set_aside(NAME)))
    if entry["schema"] > ENTRY_SCHEMA:
        raise StateError("state/%s was written by a newer runner (schema %d, this one knows %d); use that one" % (
            NAME, entry["schema"], ENTRY_SCHEMA))
    return entry, size, torn


def _is_entry(entry: Json) -> bool:
    """Tell whether an entry can be worked with; names in it become file names."""
    runs = entry.get("open")
    return (is_integer(entry.get("schema")) and is_integer(entry.get("seq")) and isinstance(entry.get("event"), str) and "lastRunHash" in entry
            and is_file_stem(entry.get("runId")) and isinstance(entry.get("pipeline"), str)
            and (entry["event"] != "end" or isinstance(entry.get("runHash"), str))
            and isinstance(entry.get("seal", {"keyId": "", "index": 0}).get("index"), int)
            and isinstance(runs, dict) and all(is_file_stem(run_id) and is_integer(number) for run_id, number in runs.items()))


def is_file_stem(name: Any) -> bool:
    """Tell whether a run's id, as found, may become a part of file names."""
    return isinstance(name, str) and name != "" and not set(name) & set("/\\:\0")


def _read_tail(path: str) -> Tuple[bytes, int, int]:
    """Return (the last whole line without its end, bytes up to its end, bytes behind it); lines that were not written to their
    end do not count."""
    try:
        file = open_file(path)
    except FileNotFoundError:
        return b"", 0, 0
    with naming(path), file:
        size = file.seek(0, os.SEEK_END)
        block = BLOCK_BYTES
        while True:
            start = max(0, size - block)
            file.seek(start)
            data = file.read(size - start)
            begin, end = _last_line(data)
            if start == 0 or begin > 0:
                break
            block *= 4
    return data[begin:max(end - 1, 0)], start + end, len(data) - end


def _last_line(data: bytes) -> Tuple[int, int]:
    """Return where the last line that was written to its end begins and ends in *data*, (0, 0) for none."""
    end = data.rfind(b"\n") + 1
    while end:
        begin = data.rfind(b"\n", 0, end - 1) + 1
        if not is_unwritten(data[begin:end - 1]):
            return begin, end
        end = begin
    return 0, 0


# --- runs by id ------------------------------------------------------------------------------------------------------

def next_invocation(ledger: RunLedger, run_id: str, is_known: bool = True) -> int:
    """Return the number of this call under *run_id*, after keeping the last call's record as run_<id>.<n>.json.

    The caller holds the run id. is_known: the id may have been used before, so that the ledger must be asked when there is no
    record (it was damaged and set aside, or removed). A call that died is closed first. Raises: RunIdTaken, StateError, OSError.
    """
    store, name = ledger.store, "run_%s.json" % run_id
    last = last_entry(store)[0]
    record = store.read(name)
    if record is not None and (record.get("runId") != run_id or not is_integer(record.get("invocation"))):
        raise RunIdTaken("run id %s: state/%s belongs to run %s; choose another run id" % (run_id, name, record.get("runId")))
    if record is not None:
        kept = "run_%s.%d.json" % (run_id, record["invocation"])
        if is_there(store.path(kept)):
            raise RunIdTaken("run id %s: state/%s is there already; choose another run id" % (run_id, kept))
    died = last["open"].get(run_id) if last is not None else None
    if died is None and record is not None and record.get("state") == "running":
        died = record["invocation"]         # begun under a ledger that is no more
    if died is not None:
        ledger.close_own(run_id, died)
        record = store.read(name)
    if record is None:
        # Also after a kill between keeping the old record and writing the new one.
        count = 1 + (_last_invocation(store, run_id) if is_known else 0)
        while is_there(store.path("run_%s.%d.json" % (run_id, count))):
            count += 1
        return count
    replace(store.path(name), store.path("run_%s.%d.json" % (run_id, record["invocation"])))
    store.commit.folders[store.folder] = None
    return int(record["invocation"]) + 1


def _last_invocation(store: StateStore, run_id: str) -> int:
    """Return the highest invocation of a run that the ledger knows, 0 if none."""
    mark, found = b'"runId":' + canonical_json(run_id), 0
    try:
        with naming(store.path(NAME)), open_file(store.path(NAME)) as file:
            for line in file:
                if mark in line and line.endswith(b"\n"):
                    entry = loads(line.decode("utf-8"))
                    found = max(found, entry["invocation"] if entry["runId"] == run_id else 0)
    except FileNotFoundError:
        pass
    except (ValueError, KeyError, TypeError):
        pass                                # `verify` says which line; the numbers before it are taken
    return found
