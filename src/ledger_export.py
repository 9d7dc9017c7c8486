"""Carrying out what the ledger proves of a run: an in-toto statement, and a zip of evidence with its own verifier.

Above the leaves and below the runner.

    ledger (chain checked) -> end entries of the run -> their records (runHash checked) -> records of the makers of what
    was skipped -> statement | zip

Nothing is exported that does not verify here. The zip is one fixed sequence of bytes for one state of the ledger: no time of
its own, sorted names, stored without compression (what a compressor makes depends on its version).
"""
from __future__ import annotations

import errno
import itertools
import os
import stat
import sys
from collections import namedtuple

import output_places
import provenance
from console import describe_os_error
from ledger_format import entry_hash, entry_line, found_hash, head_text, without_torn_end
from model import EXIT_OK, EXIT_STATE, UsageError, sha256
from primitives import BEFORE, naming, open_file
from provenance import NoStatement, fits, member_problem, record_problem, run_key
from state_store import StateError, StateStore, record_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Set, Tuple

    from console import Console
    from model import StageSpec
    Json = Dict[str, Any]
    RunKey = Tuple[str, int]

_HERE = os.path.dirname(os.path.abspath(__file__))
LEDGER, LEDGER_END = "ledger.jsonl", "ledger.end"
PENDING = ".run.json.tmp"           # of a record whose entry stands and which a kill kept from its name
EVIDENCE_SCHEMA = 1
NOTHING = "; nothing is exported of it; `verify` tells more"
COPY_BYTES = 1 << 20
MAX_RECORD_BYTES = 256 << 20
ZIP_TIME = (1980, 1, 1, 0, 0, 0)    # the earliest that the format knows
UNIX, PLAIN_FILE = 3, 0o100644      # of a member: as if made on a system with permissions
CHANGED = "the file has changed since"
TRIES = 3                           # so often runs and gc may change what is read
VERIFIER = ("primitives", "model", "ledger_format", "provenance")     # the modules that evidence_verify imports
ENTRY = {"schema": int, "seq": int, "event": str, "runId": str, "invocation": int, "pipeline": str, "hash": str, "open": dict}

README = """\
Evidence of run %(run)s of the pipeline %(pipeline)s

Verify it, offline, with Python 3.8 or newer and nothing else:

    python -I verify.py                    in this folder, unpacked
    python -I verify.py evidence.zip       on the zip itself, if unpacking changed names
    python -I verify.py --anchor "HEAD"    against a head of the ledger that was noted elsewhere
    python -I verify.py --key FILE         check the seals too, with the key file

The head of the ledger when this was made: %(head)s

What it proves: these files belong together, and the run recorded what its record says. Whoever made this zip could have
made up all of it, the verifier included. That the ledger is the one that was kept then, only a head shows that was
noted elsewhere at the time, or a seal, checked with a key that the maker of the zip does not have. Whoever does
not trust the maker takes verify.py and verifier/ from a copy of the runner (src/evidence_verify.py is the same file).

evidence.json lists every file with its SHA-256, and what is missing and why. Inputs and outputs are not in here: their
digests are, in records/; of a stage with tasks of many files one digest over all of them.
"""


class Line(namedtuple("Line", "seq event run_id invocation data")):
    """A line of the ledger (data), and what is looked for in all of them: as values, all entries would take several times as much
    memory."""

    __slots__ = ()

    @property
    def entry(self) -> Json:
        """Return the entry, parsed anew."""
        return provenance.parse_strictly(self.data)     # type: ignore[no-any-return]


class Found(namedtuple("Found", "name data record entry line")):
    """A sealed run record: the name under which it is exported, its bytes, its value, its end entry and that entry's line."""

    __slots__ = ()


class Member(namedtuple("Member", "path data file bytes sha256 source")):
    """What goes into the zip: its content (data), or the file that holds it; source: the path that records know it by."""

    __slots__ = ()


class Evidence(namedtuple("Evidence", "run_id head members missing bytes sha256")):
    """A zip as written. missing: [{"path", "source", "sha256", "kind", "reason"}]; a kind makes it a finding."""

    __slots__ = ()


class RecordMissing(StateError):
    """A record that an entry committed is not there."""


class RecordPruned(RecordMissing):
    """It is not there because gc has removed it, as the ledger says."""


# --- the ledger and the records --------------------------------------------------------------------------------------

def read_ledger(root: str) -> List[Line]:
    """Return the lines of a ledger whose chain holds; a torn last line is left out. Raises: StateError, OSError."""
    found: List[Line] = []
    last: Json = {"seq": 0, "hash": None}
    try:
        with open_file(os.path.join(root, "state", LEDGER)) as file:
            whole = itertools.takewhile(lambda line: line.endswith(b"\n"), file)       # a run may go on with the last one meanwhile
            for number, line in enumerate(without_torn_end(line[:-1] for line in whole), 1):
                last = _linked_entry(line + b"\n", last, number)
                found.append(Line(last["seq"], sys.intern(last["event"]), sys.intern(last["runId"]), last["invocation"], line + b"\n"))
    except FileNotFoundError:
        raise StateError("state/%s is not there: no run has ended yet, or it was removed; nothing can be proved without it" % LEDGER) from None
    if not found:
        raise StateError("state/%s has no entry: nothing to export" % LEDGER)
    return found


def _settled(store: StateStore, make: Callable[[], Any], is_whole: Callable[[Any], bool]) -> Any:
    """Return make().

    Where that misses something, or finds it changed, and the ledger has grown meanwhile, a run or gc was at work: it is made
    again, by what the ledger says now.
    """
    for is_last in [False] * (TRIES - 1) + [True]:
        size = _ledger_size(store)
        try:
            made = make()
            if is_last or is_whole(made) or _ledger_size(store) == size:
                return made
        except (StateError, OSError):
            if is_last or _ledger_size(store) == size:
                raise


def _ledger_size(store: StateStore) -> int:
    try:
        return os.path.getsize(store.path(LEDGER))
    except OSError:
        return -1                       # read_ledger() tells


def _linked_entry(line: bytes, last: Json, number: int) -> Json:
    try:
        entry = provenance.parse_strictly(line)
        if not fits(entry, ENTRY):
            problem = "is not an entry"
        elif entry["schema"] != 1:
            problem = "is of a newer form (schema %d)" % entry["schema"]
        elif entry_line(entry) != line or entry_hash(entry) != entry["hash"]:
            problem = "is not what was written"
        elif (entry["seq"], entry.get("prevHash")) != (last["seq"] + 1, last["hash"]):
            problem = "does not follow the entry before it"
        else:
            return entry        # type: ignore[no-any-return]
    except (ValueError, RecursionError):
        problem = "is not JSON"
    raise StateError("state/%s:%d: the entry %s%s" % (LEDGER, number, problem, NOTHING))


def _entries(ledger: List[Line], event: str) -> Iterator[Json]:
    """Yield the entries of one event."""
    return (line.entry for line in ledger if line.event == event)


def find_sealed(store: StateStore, ledger: List[Line], run_id: str) -> List[Found]:
    """Return the sealed records of all calls under a run id, the latest last, the dead that left none omitted, and those that gc
    has pruned.

    Raises: UsageError for a run that is unknown or has not ended; StateError for a record that is not the one that
    its entry committed, or is not there; OSError.
    """
    ends = sorted([line for line in ledger if line.event == "end" and line.run_id == run_id], key=lambda line: int(line.invocation))
    still_open = ledger[-1].entry["open"]
    if run_id in still_open:
        raise UsageError("run %s has not ended (invocation %s): it is still running, or died and the next run closes it" % (
            run_id, still_open[run_id]))
    if not ends:
        raise UsageError("run %s is not in state/%s: no run of that id has ended below %s" % (run_id, LEDGER, store.root))
    if len({line.invocation for line in ends}) < len(ends):
        raise StateError("state/%s: run %s has ended twice under one number%s" % (LEDGER, run_id, NOTHING))
    found: List[Found] = []
    pruned = None
    for line in ends:
        try:
            if line.entry.get("runHash") is not None:
                found.append(_found(store, ledger, line))
                pruned = None
        except RecordPruned as error:
            pruned = error
    if pruned is not None:              # the latest call is what an export is about
        raise pruned
    if not found:
        raise UsageError("run %s died and left no record: there is nothing to export" % run_id)
    return found


def _found(store: StateStore, ledger: List[Line], line: Line) -> Found:
    """Read the record that an end entry committed, whatever name it has by now; its own is that which it has after the last
    entry."""
    entry, run_id, invocation = line.entry, line.run_id, line.invocation
    plain, kept = "run_%s.json" % run_id, "run_%s.%d.json" % (run_id, invocation)
    seen = ""
    for name in (plain, kept, PENDING, plain, kept):     # twice: it may get its name, or the next call may keep it, in between
        data = _read_small(store.path(name)) if not member_problem(name) else None
        record = _parsed(data)
        if data is None or not isinstance(record, dict):
            seen = seen or (name if data is not None else "")
            continue
        if found_hash(record) == entry["runHash"] == record.get("runHash"):
            if record_problem(record) or run_key(record) != (run_id, invocation):
                raise StateError("state/%s: the record %s" % (name, record_problem(record) or "is that of another run"))
            is_latest = not any(other.event == "end" and other.run_id == run_id and other.invocation > invocation for other in ledger)
            return Found(plain if is_latest else kept, data, record, entry, line.data)
        if (record.get("runId"), record.get("invocation")) == (run_id, invocation) and name != PENDING:
            seen = name
    if seen:
        raise StateError("state/%s: the record is not the one that entry %d of the ledger committed%s" % (seen, entry["seq"], NOTHING))
    seq = provenance.pruned_runs(_entries(ledger, "gc")).get((run_id, invocation))
    if seq is not None:
        raise RecordPruned("the record of run %s (invocation %d) was pruned by gc, as entry %d of the ledger says: nothing can be exported of it" % (
            run_id, invocation, seq))
    raise RecordMissing("the record of run %s (invocation %d) is missing: state/%s or state/%s%s" % (run_id, invocation, plain, kept, NOTHING))


def _read_small(path: str) -> Optional[bytes]:
    """Return the bytes of a plain file, None if there is none."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode) or os.path.getsize(path) > MAX_RECORD_BYTES:
            return None
        with open_file(path) as file:
            return bytes(file.read())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


def _parsed(data: Optional[bytes]) -> Any:
    try:
        return provenance.parse_strictly(data or b"")
    except (ValueError, RecursionError):
        return None


def _with_makers(store: StateStore, ledger: List[Line], own: List[Found]) -> Tuple[Dict[RunKey, Found], Dict[RunKey, StateError]]:
    """Return the records of a run with those of the makers of what it skipped, and {maker: why its record is not there}. Raises:
    UsageError while a maker has not ended."""
    found = {run_key(one.record): one for one in own}
    makers = {key for one in own for key in provenance.makers(one.record).values()} - set(found)
    ends = {(line.run_id, line.invocation): line for line in ledger if line.event == "end" and (line.run_id, line.invocation) in makers}
    absent: Dict[RunKey, StateError] = {}
    for key in sorted(makers):
        if key not in ends and ledger[-1].entry["open"].get(key[0]) == key[1]:
            raise UsageError("run %s (invocation %d), which made what this one skipped, has not ended: it is still running, or died and "
                             "the next run closes it" % key)
        try:
            if key not in ends or ends[key].entry.get("runHash") is None:
                raise RecordMissing("the record of run %s (invocation %d) is missing: no entry of the ledger has it" % key)
            found[key] = _found(store, ledger, ends[key])
        except StateError as error:
            absent[key] = error
    return found, absent


# --- in-toto ---------------------------------------------------------------------------------------------------------

def export_text(store: StateStore, run_id: str) -> bytes:
    """Return the in-toto statement of the latest call under a run id as text.

    Raises: UsageError for a run that is unknown, has not ended, or has no outputs; StateError for what does not verify.
    """
    def make() -> bytes:
        ledger = read_ledger(store.root)
        return provenance.statement_text(_statement(store, ledger, find_sealed(store, ledger, run_id)[-1]))
    text: bytes = _settled(store, make, lambda text: True)
    return text


def _statement(store: StateStore, ledger: List[Line], one: Found) -> Json:
    found, absent = _with_makers(store, ledger, [one])
    if absent:
        raise absent[min(absent)]
    try:
        return _statement_of(one, found)
    except NoStatement as error:
        raise UsageError(str(error)) from None


def _statement_of(one: Found, found: Dict[RunKey, Found]) -> Json:
    digests = {key: sha256(other.data).hexdigest() for key, other in found.items()}
    return provenance.statement(one.record, {key: other.record for key, other in found.items()}, digests, one.entry, sha256(one.line).hexdigest())


# --- what goes into the zip ------------------------------------------------------------------------------------------

class Box:
    """What goes into one zip, and what should and cannot."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.members: Dict[str, Member] = {}
        self.missing: List[Json] = []

    def add(self, path: str, data: bytes, source: str = "") -> None:
        if path in self.members:
            raise StateError("two files would be %s in the zip: the names of the records do not fit the ledger; `verify` tells more" % path)
        self.members[path] = Member(path, data, "", len(data), sha256(data).hexdigest(), source)

    def lack(self, path: str, source: str, digest: str, kind: str, reason: str) -> None:
        """Note that something is not in the zip; with a kind it is a finding."""
        one = {"path": path, "source": source, "sha256": digest, "kind": kind, "reason": reason}
        if one not in self.missing:
            self.missing.append(one)

    def add_file(self, path: str, source: str, digest: str, edited: str, gone: str, file: str = "", changed: str = CHANGED) -> None:
        """Add the file that records know as *source*, if it is still what they recorded.

        *edited* and *gone* are the kinds of finding that another content and no file are; "" for none. *file* is where
        it is, if not at *source* below the root, *changed* what is said of another content.
        """
        problem = member_problem(path)
        if problem:
            return self.lack("", source, digest, "MALFORMED", "its path %s" % problem)
        other = self.members.get(path)
        if other is not None:
            if other.sha256 != digest:
                self.lack(path, source, digest, edited, "the file of that name is another one by now")
            return None
        file = file or os.path.join(self.root, source)
        try:
            size, found = _digest_of(file)
        except OSError as error:
            # There is one: evidence without it is not whole.
            kind = gone if error.errno in (errno.ENOENT, errno.ENOTDIR) else "MALFORMED"
            return self.lack(path, source, digest, kind, "the file cannot be read: %s" % (error.strerror or error))
        if found != digest:
            return self.lack(path, source, digest, edited, changed)
        self.members[path] = Member(path, None, file, size, digest, source)
        return None


def _digest_of(path: str) -> Tuple[int, str]:
    """Return (bytes, SHA-256) of a plain file. Raises: OSError."""
    with naming(path), open_file(path) as file:
        return _read_through(file)


def _read_through(file: Any) -> Tuple[int, str]:
    digest, size = sha256(size=os.fstat(file.fileno()).st_size), 0
    for block in iter(lambda: file.read(COPY_BYTES), b""):
        digest.update(block)
        size += len(block)
    return size, digest.hexdigest()


def _add_spec(box: Box, record: Json, spec_path: str) -> None:
    """Add the pipeline file of a run, if the one that is there is still what it was; of another pipeline, say so."""
    path, source = "spec/%s.json" % record["pipeline"], "spec:" + record["pipeline"]
    try:
        given = _parsed(_read_small(spec_path))
    except OSError:
        given = None                    # told below
    name = given.get("name") if isinstance(given, dict) else None
    if isinstance(name, str) and name != record["pipeline"] and path not in box.members:
        box.lack(path, source, record["specSha256"], "", "%s is that of pipeline %s; give the file of %s with --pipeline" % (
            os.path.basename(spec_path), name, record["pipeline"]))
    else:
        box.add_file(path, source, record["specSha256"], "", "", os.path.abspath(spec_path),
                     "%s is not what that run was given: it has changed since, or is another file (--pipeline)" % os.path.basename(spec_path))


def _add_program(box: Box, path: str, digest: str) -> None:
    """Put in a processor or module that records know as *path*."""
    is_absolute = path.startswith(("/", "\\")) or provenance.DRIVE.match(path) is not None
    name = path.replace("\\", "/").rpartition("/")[2]
    member = "processors/" + ("_absolute/" + name if is_absolute else path)
    if member in box.members and box.members[member].source != path:        # two folders, one name
        member = "processors/_absolute/%s/%s" % (sha256(path.encode("utf-8")).hexdigest()[:16], name)
    box.add_file(member, path, digest, "", "")


def _fill(box: Box, own: List[Found], found: Dict[RunKey, Found], spec_path: str) -> None:
    """Put in the files that the records speak of."""
    records = {key: one.record for key, one in found.items()}
    for one in found.values():
        box.add("records/" + one.name, one.data)
    involved = provenance.involved(own[0].record["runId"], records)
    for record in [own[-1].record] + [record for record, _ in involved]:        # the run's own may have skipped all
        if "specSha256" in record:
            _add_spec(box, record, spec_path)
    for _, work in involved:
        for role, path, digest in provenance.files_used(work):
            if role in ("processor", "module"):
                _add_program(box, path, digest)
        for log in work.get("logs") or []:
            if log["path"].startswith(provenance.LOG_FOLDER):
                box.add_file(log["path"][len("state/"):], log["path"], log["sha256"], "EDITED", "")
            else:
                box.lack("", log["path"], log["sha256"], "MALFORMED", "it does not lie in %s" % provenance.LOG_FOLDER)
    metrics = own[-1].record.get("metrics")
    if metrics:
        name = "metrics_%s.json" % own[-1].record["runId"]
        box.add_file("records/" + name, "state/" + name, metrics["sha256"], "EDITED", "DELETED")


def _stage_records(store: StateStore) -> Dict[str, bytes]:
    """Return {name: content} of the stage records, whole: they are replaced, never changed."""
    found = {}
    for name in sorted(os.listdir(store.folder)) if os.path.isdir(store.folder) else ():
        data = _read_small(store.path(name)) if name.startswith("stage_") and name.endswith(".json") else None
        kept = _read_small(store.path(BEFORE % name)) if data is not None and _parsed(data) is None else None
        if data is not None:
            found[name] = data if kept is None else kept
    return found


def _add_stages(box: Box, stages: Dict[str, bytes], own: List[Found], found: Dict[RunKey, Found], entries: List[Json]) -> None:
    records = {key: one.record for key, one in found.items()}
    for stage in sorted({stage["stage"] for one in own for stage in one.record["stages"]}):
        name = "stage_%s.json" % stage
        if member_problem(name) or "/" in name:
            box.lack("", "state/" + name, "", "MALFORMED", "its name is none of a stage")
            continue
        data = stages.get(name)
        if data is None:
            box.lack("records/" + name, "state/" + name, "", "", "there is no such record")
            continue
        problem = provenance.stage_record_problem(_parsed(data), records, entries)
        if problem:
            box.lack("records/" + name, "state/" + name, "", "EDITED", problem)
        else:
            box.add("records/" + name, data)


def _add_ledger(box: Box, ledger: List[Line], end: Optional[bytes], keys: Set[RunKey]) -> int:
    """Put in the ledger from the first entry that concerns the included runs; return that entry's number."""
    first = min(line.seq for line in ledger if (line.run_id, line.invocation) in keys)
    told = _parsed(end)
    if end is not None and not (isinstance(told, dict) and told.get("begins") is True):     # it is written for a sealed entry that is to come
        if fits(told, {"seq": int}) and 0 < told["seq"] < first:
            first = told["seq"]         # a kill may have left it behind; the entry that it names must be there to be checked
        box.add("ledger/" + LEDGER_END, end)
    first = min(first, _first_seal(ledger[-1].entry, first))
    box.add("ledger/" + LEDGER, b"".join(line.data for line in ledger if line.seq >= first))
    return int(first)


def _first_seal(head: Json, otherwise: int) -> int:
    """Return the number of the first sealed entry of a ledger that was sealed only later, with forward keys: only there is a key
    bound to its entry. Else each entry's number tells of its key."""
    seal: Any = head.get("seal")
    if fits(seal, {"mode": str, "index": int}) and seal["mode"] == "forward" and 0 <= seal["index"] < head["seq"] - 1:
        return int(head["seq"] - seal["index"])
    return otherwise


def gather(store: StateStore, run_id: str, spec_path: str) -> Tuple[Box, Json]:
    """Return what goes into the evidence of a run, and the value of its evidence.json without the lists of files.

    Raises: UsageError, StateError, OSError.
    """
    # Before the ledger: what is read later could be ahead of it.
    end, stages = _read_small(store.path(LEDGER_END)), _stage_records(store)
    ledger = read_ledger(store.root)
    own = find_sealed(store, ledger, run_id)
    found, absent = _with_makers(store, ledger, own)
    box = Box(store.root)
    for key in sorted(absent):
        kind = "" if isinstance(absent[key], RecordPruned) else "DELETED" if isinstance(absent[key], RecordMissing) else "EDITED"
        box.lack("", "run %s (invocation %d)" % key, "", kind, str(absent[key]))
    for key in sorted(key for key in provenance.pruned_runs(_entries(ledger, "gc")).keys() - found.keys() if key[0] == run_id):
        box.lack("", "run %s (invocation %d)" % key, "", "", "its record was pruned by gc, as the ledger says")
    _fill(box, own, found, spec_path)
    _add_stages(box, stages, own, found, list(_entries(ledger, "accept")))
    first = _add_ledger(box, ledger, end, set(found).union((line.run_id, line.invocation) for line in ledger if line.run_id == run_id))
    try:
        box.add("in-toto.json", provenance.statement_text(_statement_of(own[-1], found)))
    except NoStatement as error:
        box.lack("in-toto.json", "", "", "", str(error))
    head, latest = ledger[-1].entry, own[-1].record
    runs = [{"runId": key[0], "invocation": key[1], "record": "records/" + found[key].name, "seq": found[key].entry["seq"]}
            for key in sorted(found)]
    facts = {"schema": EVIDENCE_SCHEMA, "runId": run_id, "invocation": latest["invocation"], "pipeline": latest["pipeline"],
             "runHash": latest["runHash"], "head": head_text(head), "headHash": head["hash"],
             "ledger": {"firstSeq": first, "lastSeq": head["seq"]}, "runs": runs}
    for name in VERIFIER:
        box.add("verifier/%s.py" % name, _source(name))
    box.add("verify.py", _source("evidence_verify"))
    box.add("README.txt", (README % {"run": run_id, "pipeline": latest["pipeline"], "head": facts["head"]}).encode("utf-8"))
    return box, facts


def _source(module: str) -> bytes:
    with open(os.path.join(_HERE, module + ".py"), "rb") as file:
        return file.read()


# --- the zip ---------------------------------------------------------------------------------------------------------

def write_evidence(root: str, run_id: str, out_path: str, spec_path: str) -> Evidence:
    """Write the evidence of a run as one zip; the same ledger and files give the same bytes.

    *out_path* is replaced as a whole, and durable on return. What could not be included is in `missing`.
    Raises: UsageError, StateError; OSError, then *out_path* is unchanged and no temporary file is left.
    """
    store = StateStore(root, writable=False)

    def make() -> Evidence:
        box, facts = _settled(store, lambda: gather(store, run_id, spec_path), lambda made: not made[0].missing)
        return _written(box, facts, out_path)
    made: Evidence = _settled(store, make, lambda made: True)     # gc may also come while the files are copied
    return made


def _written(box: Box, facts: Json, out_path: str) -> Evidence:
    shown = [{"path": one.path, "bytes": one.bytes, "sha256": one.sha256, "source": one.source} for _, one in sorted(box.members.items())]
    missing = sorted(box.missing, key=lambda one: (one["path"], one["source"], one["sha256"]))
    box.add("evidence.json", record_json(dict(facts, members=shown, missing=missing)))
    written: List[Tuple[int, str]] = []

    def write(file: Any) -> None:
        _write_zip(file, [box.members[path] for path in sorted(box.members)])
        file.seek(0)
        written.append(_read_through(file))
    output_places.write_whole(out_path, write)
    (size, digest), = written
    return Evidence(facts["runId"], facts["head"], len(box.members), missing, size, digest)


def _write_zip(file: Any, members: List[Member]) -> None:
    import zipfile
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for one in members:
            info = zipfile.ZipInfo(one.path, ZIP_TIME)
            info.create_system, info.external_attr, info.file_size = UNIX, PLAIN_FILE << 16, one.bytes
            with archive.open(info, "w") as out:
                _copy(one, out)


def _copy(one: Member, out: Any) -> None:
    """Write a member's content. Raises: StateError, if its file is no longer what was listed."""
    if one.data is not None:
        out.write(one.data)
        return
    digest = sha256(size=one.bytes)
    with open_file(one.file) as file:
        for block in iter(lambda: file.read(COPY_BYTES), b""):
            digest.update(block)
            out.write(block)
    if digest.hexdigest() != one.sha256:
        raise StateError("%s changes while it is read; run again when nothing works on it" % one.source)


# --- commands --------------------------------------------------------------------------------------------------------

def cmd_export(root: str, run_id: str, out_path: Optional[str], spec_path: str, console: Console, stages: Sequence[StageSpec] = ()) -> int:
    """Write a run's statement to a file, or to stdout; return the exit code."""
    try:
        place = output_places.checked(out_path, "-o", root, spec_path, stages) if out_path is not None else ""
        text = export_text(StateStore(root, writable=False), run_id)
        if place:
            output_places.write_whole(place, lambda file: file.write(text))
            console.line("%s: %d bytes, SHA-256 %s" % (out_path, len(text), sha256(text).hexdigest()))
        else:
            console.put_bytes(text)
    except (UsageError, StateError) as error:
        console.error("export: %s" % error)
        return int(error.exit_code)
    except OSError as error:
        console.error("export: " + describe_os_error(error))
        return EXIT_STATE
    return EXIT_OK


def cmd_evidence(root: str, run_id: str, out_path: Optional[str], spec_path: str, console: Console, stages: Sequence[StageSpec] = ()) -> int:
    """Write a run's evidence; return the exit code: EXIT_STATE if something that belongs to it was tampered with."""
    try:
        if out_path is None:
            if member_problem(run_id) or "/" in run_id:
                raise UsageError("%s is no run id" % run_id)
            out_path = "evidence_%s.zip" % run_id
        made = write_evidence(root, run_id, output_places.checked(out_path, "-o", root, spec_path, stages), spec_path)
    except (UsageError, StateError) as error:
        console.error("evidence: %s" % error)
        return int(error.exit_code)
    except OSError as error:
        console.error("evidence: " + describe_os_error(error))
        return EXIT_STATE
    for one in made.missing:
        shown = one["source"] or one["path"]
        if one["kind"]:
            console.line("[%s] %s: not included: %s" % (one["kind"], shown, one["reason"]))
        else:
            console.line("note: %s is not included: %s" % (shown, one["reason"]))
    console.line("%s: %d files, %d bytes, SHA-256 %s" % (out_path, made.members, made.bytes, made.sha256))
    console.line("[LEDGER] head " + made.head)
    return EXIT_STATE if any(one["kind"] for one in made.missing) else EXIT_OK
