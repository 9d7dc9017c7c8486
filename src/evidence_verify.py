"""Verify the evidence of a run, on any machine with Python 3.8 or newer and nothing else.

    python verify.py [FILE.zip | FOLDER] [--anchor HEAD]... [--key FILE]

Without a name: the folder in which this file stands. In the zip it is called verify.py and brings what it needs in verifier/;
in the repository it is src/evidence_verify.py. Only reads. Paths in the evidence are never opened but as names of its members.

    evidence.json           every member has the listed bytes; none is missing, none is more
    ledger/ledger.jsonl     each entry's hash, the chain, the head, anchors, seals, ledger.end
    records/                each run record is the one that an entry committed; stage records agree with them
    spec, processors, logs  the digests are those of the run records
    in-toto.json            is the statement that the records make

Exit code 0: nothing was found. 5: findings, a line each. 2: bad usage.
"""
from __future__ import annotations

import json
import os
import sys
from collections import namedtuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple
    Json = Dict[str, Any]
    RunKey = Tuple[str, int]
    Key = Tuple[str, str, int, bytes]

_HERE = os.path.dirname(os.path.abspath(__file__))
for _folder in (_HERE, os.path.join(_HERE, "verifier")):
    if os.path.isdir(_folder) and _folder not in sys.path:
        sys.path.insert(0, _folder)         # also where Python leaves the script's folder out (-I, -P)
if __name__ == "__main__":
    sys.dont_write_bytecode = True          # it would be one more file in the evidence

try:
    from ledger_format import (  # noqa: E402
        MODES, end_mac, entry_hash, entry_line, found_hash, head_text, next_key, parse_head, parse_key, seal_mac)
    from model import sha256  # noqa: E402
    from primitives import open_file, prepare_stream  # noqa: E402
    from provenance import (  # noqa: E402
        DIGEST, LOG_FOLDER, NoStatement, earlier_forms, files_used, fits, involved, makers, member_problem, parse_strictly, pruned_runs, record_problem,
        run_key, skips_without_ground, stage_record_problem, statement, statement_text)
except Exception as _error:         # edited so that it cannot even be loaded
    if __name__ != "__main__":
        raise
    print("[EDITED] verifier: cannot be loaded (%s): unpack the whole zip again, or take the verifier of another copy" % type(_error).__name__)
    print("verify: 1 finding")
    raise SystemExit(5) from None

EXIT_OK, EXIT_USAGE, EXIT_FINDINGS = 0, 2, 5
MANIFEST, LEDGER, LEDGER_END, STATEMENT = "evidence.json", "ledger/ledger.jsonl", "ledger/ledger.end", "in-toto.json"
PLACES = (MANIFEST, LEDGER, LEDGER_END, STATEMENT, "README.txt", "verify.py")
FOLDERS = ("records/run_", "records/stage_", "records/metrics_", "spec/", "processors/", "logs/", "verifier/")
BLOCK_BYTES = 1 << 20
MAX_READ_BYTES = 256 << 20          # of what is read as a whole
MAX_KEYS = 1 << 22                  # that are derived on the way to an excerpt's first seal: seconds, not hours
MISSING = {"path": str, "source": str, "sha256": str, "kind": str, "reason": str}
FORM = {"schema": int, "runId": str, "invocation": int, "head": str, "headHash": DIGEST, "missing": [MISSING],
        "members": [{"path": str, "bytes": int, "sha256": DIGEST, "source?": str}]}
SEAL = {"mode": str, "keyId": str, "index": int, "mac": str}
MAYBE_DIGEST = frozenset([DIGEST, None])
ENTRY = {"schema": int, "seq": int, "prevHash": MAYBE_DIGEST, "event": str, "runId": str, "invocation": int, "pipeline": str,
         "hash": DIGEST, "open": dict, "runHash?": MAYBE_DIGEST, "seal?": SEAL}
END = {"seq": int, "hash": str, "keyId": str, "mode": str, "mac": str}


class Finding(namedtuple("Finding", "kind file detail")):
    """What is wrong, with which member; str() is the line for the user."""

    __slots__ = ()

    def __str__(self) -> str:
        return "[%s] %s: %s" % (self.kind, self.file, self.detail)


class Report(namedtuple("Report", "findings notes run_id head")):
    """The outcome: findings, notes (texts), the run, the head of the excerpt as text."""

    __slots__ = ()


class BadUsage(Exception):
    """What was asked cannot be done; str() says why."""


# --- where the evidence is -------------------------------------------------------------------------------------------

class Folder:
    """Evidence as unpacked."""

    def __init__(self, path: str) -> None:
        self.path = path

    def names(self) -> List[str]:
        found = []
        for folder, folders, files in os.walk(self.path):
            links = [one for one in folders if os.path.islink(os.path.join(folder, one))]
            for name in files + links:
                found.append(os.path.relpath(os.path.join(folder, name), self.path).replace(os.sep, "/"))
        return sorted(found)

    def blocks(self, name: str) -> Iterator[bytes]:
        import stat
        path = os.path.join(self.path, *name.split("/"))
        if not stat.S_ISREG(os.lstat(path).st_mode):
            raise OSError("it is not a plain file")
        with open(path, "rb") as file:
            for block in iter(lambda: file.read(BLOCK_BYTES), b""):
                yield block


class Zip:
    """Evidence as carried."""

    def __init__(self, path: str) -> None:
        import zipfile
        try:
            self.archive = zipfile.ZipFile(open_file(path))
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise BadUsage("%s: cannot be read as a zip (%s)" % (path, error)) from None

    def names(self) -> List[str]:
        return sorted(name for name in self.archive.namelist() if not name.endswith("/"))

    def blocks(self, name: str) -> Iterator[bytes]:
        try:
            with self.archive.open(name) as file:
                for block in iter(lambda: file.read(BLOCK_BYTES), b""):
                    yield block
        except MemoryError:
            raise
        except Exception as error:          # each method of compression has errors of its own
            raise OSError("the zip is damaged here (%s)" % error) from None


def _open(path: str) -> Any:
    if os.path.isdir(path):
        return Folder(path)
    if not os.path.exists(path):
        raise BadUsage("%s: there is no such file or folder" % path)
    return Zip(path)


# --- the check -------------------------------------------------------------------------------------------------------

class Check:
    """One verification: the evidence, and what was found so far."""

    def __init__(self, evidence: Any) -> None:
        self.evidence = evidence
        self.findings: List[Finding] = []
        self.notes: List[str] = []
        names = evidence.names()
        self.names = set(names)
        self.twice = sorted({name for name, after in zip(names, names[1:]) if name == after})
        self.digests: Dict[str, Optional[Tuple[int, str]]] = {}
        self.manifest: Json = {"runId": "?", "members": [], "missing": []}
        self.entries: List[Json] = []
        self.lines: Dict[int, bytes] = {}
        self.records: Dict[RunKey, Json] = {}
        self.files: Dict[RunKey, str] = {}      # SHA-256 of the members that hold the records
        self.places: Dict[RunKey, str] = {}     # the members that hold them
        self.ends: Dict[RunKey, Json] = {}      # the entries with which runs ended
        self.is_complete = False                # all records are there that must be: only then more follows from them

    def find(self, kind: str, file: str, detail: str) -> None:
        if not any(one.kind == kind and one.file == file for one in self.findings):
            self.findings.append(Finding(kind, file, detail))

    def read(self, name: str, size: int = MAX_READ_BYTES) -> Optional[bytes]:
        """Return a member's bytes, None if it is not there or cannot be read, which is then a finding."""
        if name not in self.names:
            return None
        data = bytearray()
        try:
            for block in self.evidence.blocks(name):
                data += block
                if len(data) > size:
                    raise OSError("it is larger than %d bytes" % size)
        except OSError as error:
            self.find("MALFORMED", name, "cannot be read: %s" % (error.strerror or error))
            return None
        return bytes(data)

    def digest(self, name: str, size: int) -> Optional[Tuple[int, str]]:
        """Return (bytes, SHA-256) of a member, None if it cannot be read; a longer one than *size* is not read to its end."""
        if name not in self.digests:
            self.digests[name] = self._digest(name, size)
        return self.digests[name]

    def _digest(self, name: str, size: int) -> Optional[Tuple[int, str]]:
        digest, seen = sha256(size=size), 0
        try:
            for block in self.evidence.blocks(name):
                digest.update(block)
                seen += len(block)
                if seen > size:
                    break
        except OSError as error:
            self.find("MALFORMED", name, "cannot be read: %s" % (error.strerror or error))
            return None
        return seen, digest.hexdigest()

    def parse(self, name: str, data: Optional[bytes]) -> Any:
        """Return the JSON value of a member, None if it has none, which is then a finding."""
        if data is None:
            return None
        try:
            return parse_strictly(data)
        except (ValueError, RecursionError):
            self.find("MALFORMED", name, "is not JSON")
            return None


def verify(path: str, anchors: Sequence[str] = (), key: Optional[Key] = None) -> Report:
    """Check evidence in a zip or a folder; *key* as parse_key() returns it. Raises: BadUsage."""
    heads = []
    for text in anchors:
        parsed = parse_head(text)
        if parsed is None:
            raise BadUsage('--anchor %s: is no head; one looks like "12: 9f3a-77c1-...", 16 digits of the hash at least' % text)
        heads.append((text, parsed))
    check = Check(_open(path))
    manifest = check.parse(MANIFEST, check.read(MANIFEST))
    if manifest is None or not fits(manifest, FORM) or manifest["schema"] != 1:
        if MANIFEST not in check.names:
            check.find("DELETED", MANIFEST, "there is none in %s; name the zip, or the folder in which it was unpacked" % path)
        check.find("MALFORMED", MANIFEST, "is not of the form of this verifier")
        return Report(check.findings[:1], check.notes, "?", "none")
    check.manifest = manifest
    _check_ledger(check)
    proved = _check_head(check, heads)
    is_sealed = _check_seals(check, key)
    _check_records(check)
    _check_skips(check)
    _check_used_files(check)
    _check_stage_records(check)
    _check_statement(check)
    _check_facts(check)
    _check_members(check)
    _note_reach(check, proved, is_sealed)
    head = head_text(check.entries[-1]) if check.entries else "none"
    return Report(check.findings, check.notes, manifest["runId"], head)


def _check_members(check: Check) -> None:
    """Compare the members with the list; what is wrong with one by its content has been told already."""
    told = {one.file.partition(".jsonl:")[0] + (".jsonl" if ".jsonl:" in one.file else "") for one in check.findings}
    listed = {}
    for one in check.manifest["members"]:
        problem = member_problem(one["path"])
        if problem or one["path"] in listed:
            check.find("MALFORMED", MANIFEST, "lists %s, which %s" % (json.dumps(one["path"]), problem or "it lists already"))
            continue
        listed[one["path"]] = one
        if one["path"] not in check.names:
            check.find("DELETED", one["path"], "is listed in %s and not there" % MANIFEST)
        elif one["path"] not in told and check.digest(one["path"], one["bytes"]) not in (None, (one["bytes"], one["sha256"])):
            check.find("EDITED", one["path"], "is not what %s lists" % MANIFEST)
    for name in sorted(check.names - set(listed) - {MANIFEST}):
        check.find("UNLISTED", name, "is not part of the evidence")
    for name in sorted(check.names & set(listed)):
        if name not in PLACES and not name.startswith(FOLDERS):
            check.find("UNLISTED", name, "is listed, and no evidence has a member of that name")
    for name in check.twice:
        check.find("MALFORMED", name, "is in the zip twice")
    for one in check.manifest["missing"]:
        shown = one["source"] or one["path"]
        if one["kind"]:
            check.find(one["kind"], shown, "was left out when the evidence was made: %s" % one["reason"])
        else:
            check.notes.append("%s is not included: %s" % (shown, one["reason"]))


# --- the excerpt of the ledger ---------------------------------------------------------------------------------------

def _check_ledger(check: Check) -> None:
    data = check.read(LEDGER)
    if data is None:
        check.find("DELETED", LEDGER, "is not there: without it nothing is proved")
        return
    *lines, rest = data.split(b"\n")
    if rest:
        check.find("TRUNCATED", LEDGER, "its last line is cut")
    if not lines:
        check.find("DELETED", LEDGER, "has no entry: without it nothing is proved")
    last = None
    for number, line in enumerate(lines, 1):
        entry = _entry(check, line + b"\n", "%s:%d" % (LEDGER, number))
        if entry is None:
            last = None
            continue
        _check_link(check, last, entry, "%s:%d" % (LEDGER, number))
        check.entries.append(entry)
        check.lines[entry["seq"]] = line + b"\n"
        last = entry


def _entry(check: Check, line: bytes, place: str) -> Optional[Json]:
    try:
        entry = parse_strictly(line)
        if fits(entry, ENTRY) and entry_line(entry) == line:
            if entry_hash(entry) != entry["hash"]:
                check.find("EDITED", place, "the entry is not the one whose hash it states")
            return entry        # type: ignore[no-any-return]
    except (ValueError, RecursionError):
        pass
    check.find("MALFORMED", place, "is not an entry of a ledger")
    return None


def _check_link(check: Check, last: Optional[Json], entry: Json, place: str) -> None:
    if last is None:
        if entry["seq"] < 1 or (entry["seq"] == 1) != (entry["prevHash"] is None):
            check.find("EDITED", place, "its number and the entry before it do not fit")
    elif entry["seq"] <= last["seq"]:
        check.find("REORDERED", place, "entry %d stands after entry %d" % (entry["seq"], last["seq"]))
    elif entry["seq"] > last["seq"] + 1:
        check.find("DELETED", place, "entries %d to %d are missing before it" % (last["seq"] + 1, entry["seq"] - 1))
    elif entry["prevHash"] != last["hash"]:
        check.find("EDITED", place, "it does not follow entry %d as that stands here" % last["seq"])


def _check_head(check: Check, heads: List[Tuple[str, Any]]) -> int:
    """Compare the end of the excerpt and the anchors; return the number of the last entry that an anchor vouches for, or 0."""
    if not check.entries:
        return 0
    first, last = check.entries[0], check.entries[-1]
    if last["hash"] != check.manifest["headHash"] or head_text(last) != check.manifest["head"]:
        check.find("TRUNCATED", LEDGER, "ends with %s, and %s names the head %s" % (head_text(last), MANIFEST, check.manifest["head"]))
    proved = 0
    for text, (number, digits) in heads:
        match = [one for one in check.entries if one["hash"].startswith(digits) and number in (None, one["seq"])]
        if match:
            proved = max(proved, match[0]["seq"])
        elif number is not None and number > last["seq"]:
            check.find("TRUNCATED", LEDGER, "ends at %d, the anchor %s is number %d: it was made before, or cut off, or rewritten" % (
                last["seq"], text, number))
        elif number is not None and number < first["seq"]:
            check.find("TRUNCATED", LEDGER, "begins with entry %d: the anchor %s, noted before, proves nothing of this run; give a later one" % (
                first["seq"], text))
        else:
            check.find("EDITED", LEDGER, "no entry is the anchor %s: history was rewritten, or this is that of another folder" % text)
    return proved


def _note_reach(check: Check, proved: int, is_sealed: bool) -> None:
    """Say how far a matching anchor reaches: it vouches for what stands before it, not for what stands behind."""
    if not check.entries:
        return
    ends = [one["seq"] for one in check.entries if one["event"] == "end" and one["runId"] == check.manifest["runId"]]
    if proved and ends and max(ends) > proved:
        check.notes.append("the anchor vouches for entries up to %d; run %s ended with entry %d, for which only a later head does" % (
            proved, check.manifest["runId"], max(ends)))
    elif not proved and not is_sealed and not check.findings:
        check.notes.append("these files agree with one another and with the head %s; that this is the ledger which was kept, only a "
                           "head shows that was noted elsewhere (--anchor), or a seal (--key)" % head_text(check.entries[-1]))


# --- seals -----------------------------------------------------------------------------------------------------------

def _check_seals(check: Check, key: Optional[Key]) -> bool:
    """Check all that a key vouches for; tell whether there was any of it."""
    sealed = [one for one in check.entries if "seal" in one]
    after = sealed[0]["seq"] if sealed else 0
    for one in check.entries:
        if sealed and one["seq"] > after and "seal" not in one:
            check.find("UNSEALED", LEDGER, "entry %d has no seal, and entry %d before it has one" % (one["seq"], after))
    if not sealed:
        if key is not None and check.entries:
            check.find("UNSEALED", LEDGER, "no entry is sealed, and a key was given")
    elif key is None:
        check.notes.append("the ledger is sealed with key %s: not checked, give its key file with --key" % sealed[0]["seal"]["keyId"])
    elif any(one["seal"]["keyId"] != key[1] or one["seal"]["mode"] != key[0] for one in sealed):
        wrong = [one["seal"] for one in sealed if one["seal"]["keyId"] != key[1] or one["seal"]["mode"] != key[0]][0]
        check.find("UNSEALED", LEDGER, "is sealed with key %s (%s), the key given is %s (%s): another key, or the seals were made anew" % (
            wrong["keyId"], wrong["mode"], key[1], key[0]))
    else:
        checked = _check_macs(check, sealed, key)
        return (_check_end(check, sealed, key) or checked) and _is_bound(check, sealed[0], key)
    _check_end(check, sealed, None)
    return False


def _check_macs(check: Check, sealed: List[Json], key: Key) -> bool:
    """Check the seals as far as the key reaches; tell whether it reached any."""
    mode, _, number, secret = key
    unchecked, last = 0, None
    for one in sealed:
        seal = one["seal"]
        if not _is_in_turn(check, one, last):
            check.find("UNSEALED", LEDGER, "entry %d is sealed with key number %d, which is out of order" % (one["seq"], seal["index"]))
            return True
        last = seal["index"]
        if mode == "forward" and seal["index"] < number:
            unchecked += 1
            continue
        if mode == "forward" and seal["index"] - number > len(sealed) + MAX_KEYS:
            check.find("UNSEALED", LEDGER, "entry %d is sealed with key number %d, too far from the key given" % (one["seq"], seal["index"]))
            return True
        while mode == "forward" and number < seal["index"]:
            secret, number = next_key(secret), number + 1
        if seal_mac(secret, one["hash"]) != seal["mac"]:
            check.find("UNSEALED", LEDGER, "the seal of entry %d does not hold: it was not made with this key" % one["seq"])
    if unchecked:
        check.notes.append("the key given is number %d: the seals of %d entries before it are not checked; that needs the first key" % (
            key[2], unchecked))
    return unchecked < len(sealed)


def _is_in_turn(check: Check, entry: Json, last: Optional[int]) -> bool:
    """Tell whether a sealed entry has the number that follows *last*; None: it is the first of the excerpt.

    Each entry has one number at most, from 0 on, and where the one before it is unsealed it has 0: whoever has stolen a later key
    cannot number his seals so that they fit.
    """
    index = entry["seal"]["index"]
    if last is not None and entry["seal"]["mode"] == "forward":
        return bool(index == last + 1)
    return bool(index == 0 or entry["seal"]["mode"] == "forward" and entry is check.entries[0] and 0 < index < entry["seq"])


def _is_bound(check: Check, first: Json, key: Key) -> bool:
    """Tell whether the key with which the first entry here is sealed is bound to that entry; what may be is told.

    Else a thief of a later key may have sealed all of it: so in excerpts of a ledger that was sealed only later, as earlier
    versions made them.
    """
    index = first["seal"]["index"]
    if key[0] == "hmac" or index <= key[2] or index >= first["seq"] - 1:
        return True                         # a greater one is a finding
    check.notes.append("entry %d has seal number %d: if the ledger began with %d entries without a seal, it is its own, and else one that was stolen later; "
                       "only a head can tell (--anchor), or evidence made anew, which begins with seal number 0" % (
                           first["seq"], index, first["seq"] - 1 - index))
    return False


def _check_end(check: Check, sealed: List[Json], key: Optional[Key]) -> bool:
    """Check the file that says which entry is the last; tell whether the key reached it."""
    is_checked = False
    told = check.parse(LEDGER_END, check.read(LEDGER_END))
    if told is None:
        if sealed and LEDGER_END not in check.names and (len(sealed) > 1 or sealed[0]["seal"]["index"] > 0):
            check.find("DELETED", LEDGER_END, "is not there, and the ledger is sealed: its end may be cut off")
        elif sealed and LEDGER_END not in check.names:
            check.notes.append("%s is not there: a kill came before it was written, or the ledger was cut off behind its first sealed entry" % LEDGER_END)
        return False
    if not fits(told, END) or told["mode"] not in MODES:
        check.find("MALFORMED", LEDGER_END, "is not of the form of this verifier")
        return False
    entry = [one for one in check.entries if one["seq"] == told["seq"]]
    if check.entries and told["seq"] > check.entries[-1]["seq"]:
        check.find("TRUNCATED", LEDGER, "ends at %d, and %s knows of entry %d" % (check.entries[-1]["seq"], LEDGER_END, told["seq"]))
    elif not entry or entry[0]["hash"] != told["hash"] or "seal" not in entry[0]:
        check.find("EDITED", LEDGER_END, "entry %d is another one" % told["seq"])
    elif key is not None:
        is_checked = _check_end_mac(check, told, entry[0], key)
    if entry and entry[0] is not check.entries[-1]:
        check.notes.append("%s tells of entry %d, the ledger ends at %d: a kill left it behind, or entries were added without the key" % (
            LEDGER_END, told["seq"], check.entries[-1]["seq"]))
    return is_checked


def _check_end_mac(check: Check, told: Json, entry: Json, key: Key) -> bool:
    mode, _, number, secret = key
    wanted = entry["seal"]["index"] + 1 if mode == "forward" else number
    if number > wanted or wanted - number > MAX_KEYS:
        return False                        # the key is of a later time; it was told already
    for _ in range(wanted - number):
        secret = next_key(secret)
    if end_mac(secret, told["seq"], told["hash"]) != told["mac"]:
        check.find("EDITED", LEDGER_END, "does not hold: it was not made with this key")
    return True


# --- records and files -----------------------------------------------------------------------------------------------

def _check_records(check: Check) -> None:
    ends: Dict[RunKey, Json] = {}
    for one in check.entries:
        if one["event"] == "end":
            if run_key(one) in ends:
                check.find("UNLISTED", LEDGER, "run %s (invocation %d) has ended twice, in entries %d and %d" % (
                    run_key(one) + (ends[run_key(one)]["seq"], one["seq"])))
            ends[run_key(one)] = one
    check.ends = ends
    for name in sorted(check.names):
        if name.startswith("records/run_") and name.endswith(".json"):
            _check_record(check, name, ends)
    if not any(one.file.startswith(LEDGER) for one in check.findings):
        _check_beginning(check)
    run_id = check.manifest["runId"]
    wanted = {key for key in ends if key[0] == run_id and ends[key].get("runHash") is not None}
    if check.entries and not wanted:
        check.find("DELETED", LEDGER, "run %s has no end in it" % run_id)
    latest = max(wanted, default=None)
    pruned = pruned_runs(check.entries).keys()
    wanted -= pruned - {latest}
    wanted |= {key for record in check.records.values() if record["runId"] == run_id for key in makers(record).values()}
    check.is_complete = latest is not None and wanted <= set(check.records)
    told = {one["source"] for one in check.manifest["missing"] if one["kind"]}
    for key in sorted(wanted - set(check.records)):
        shown = "run %s (invocation %d)" % key
        excused = told | {shown} if key in pruned else told         # only the ledger can say that gc has removed one
        names = ["records/run_%s.json" % key[0], "records/run_%s.%d.json" % key]
        if shown not in excused and not any(one.file in names for one in check.findings):
            is_latest = not any(other[0] == key[0] and other[1] > key[1] for other in ends)
            check.find("DELETED", names[0] if is_latest else names[1], "the record of %s is not there" % shown)


def _check_record(check: Check, name: str, ends: Dict[RunKey, Json]) -> None:
    data = check.read(name)
    record = check.parse(name, data)
    if data is None or record is None:
        return
    if not isinstance(record, dict) or found_hash(record) != record.get("runHash"):
        return check.find("EDITED", name, "the record is not the one whose hash it states")
    problem = record_problem(record)
    if problem:
        return check.find("MALFORMED", name, "the record %s" % problem)
    entry = ends.get(run_key(record))
    if entry is None and any(one.file.startswith(LEDGER) for one in check.findings):
        return None                     # its entry may be what is damaged
    if entry is None:
        return check.find("UNLISTED", name, "no entry of the ledger has ended run %s (invocation %d)" % run_key(record))
    if entry.get("runHash") != record["runHash"] or entry.get("state", record["state"]) != record["state"]:
        return check.find("EDITED", name, "the record is not the one that entry %d committed" % entry["seq"])
    if name not in ("records/run_%s.json" % record["runId"], "records/run_%s.%d.json" % run_key(record)):
        check.find("RENAMED", name, "this is the record of run %s (invocation %d)" % run_key(record))
    check.records[run_key(record)] = record
    check.places[run_key(record)] = name
    check.files[run_key(record)] = sha256(data).hexdigest()
    return None


def _check_beginning(check: Check) -> None:
    """The excerpt reaches back to the begin of each run that it brings the record of; one that only skipped has none."""
    begun = {run_key(one) for one in check.entries if one["event"] == "begin"}
    worked = {key for key, record in check.records.items() if any("keyParts" in one for one in record["stages"])}
    for key in sorted(worked - begun):
        check.find("TRUNCATED", LEDGER, "begins with entry %d: the begin of run %s (invocation %d) is not in it" % ((check.entries[0]["seq"],) + key))


def _check_facts(check: Check) -> None:
    """What the list says of the run beside the members is what the records say."""
    if check.findings or not check.is_complete:
        return                          # they are not what made the list
    wanted = _facts(check)
    wrong = [name for name in sorted(wanted) if check.manifest.get(name, wanted[name]) != wanted[name]]
    if wrong:
        check.find("EDITED", MANIFEST, "does not say what the ledger and the records say (%s)" % ", ".join(wrong))


def _facts(check: Check) -> Json:
    latest = max(key for key in check.records if key[0] == check.manifest["runId"])
    record = check.records[latest]
    return {"invocation": latest[1], "pipeline": record["pipeline"], "runHash": record["runHash"],
            "ledger": {"firstSeq": check.entries[0]["seq"], "lastSeq": check.entries[-1]["seq"]},
            "runs": [{"runId": key[0], "invocation": key[1], "record": check.places[key], "seq": check.ends[key]["seq"]}
                     for key in sorted(check.records)]}


def _check_skips(check: Check) -> None:
    """What a run took as up to date had the key of the work, or one that was accepted; who accepted it is told."""
    used = {work["stage"] for _, work in involved(check.manifest["runId"], check.records)}
    for key in sorted(check.records):
        for stage in skips_without_ground(check.records[key], check.records, check.entries):
            check.find("UNLISTED", LEDGER, "run %s skipped stage %s under a key that no run had and nobody accepted" % (key[0], stage))
    for one in check.entries:
        if one["event"] == "accept" and str(one.get("stage")) in used:     # the pipeline may have been called otherwise
            check.notes.append("entry %d: %s accepted another key of stage %s: %s (%s)" % (
                one["seq"], one.get("user"), one.get("stage"), one.get("reason"), one.get("changes")))


def _check_used_files(check: Check) -> None:
    """Each spec, program, log and metrics file that the records name is a member with that digest, or said to be missing."""
    held: Dict[Tuple[str, str], str] = {}
    for one in check.manifest["members"]:
        if one.get("source") and one["path"] in check.names:
            held[(one["source"], (check.digest(one["path"], one["bytes"]) or (0, ""))[1])] = one["path"]
    excused = {(one["source"], one["sha256"]) for one in check.manifest["missing"]}
    rightful = set()
    for record, source, digest in _wanted_files(check):
        if (source, digest) in held:
            rightful.add(held[(source, digest)])
        elif (source, digest) not in excused:
            path = [one["path"] for one in check.manifest["members"] if one.get("source") == source]
            if path and path[0] in check.names:
                check.find("EDITED", path[0], "is not the %s of which run %s recorded the digest" % (source, record["runId"]))
            elif not path:              # else it is listed, and told to be missing when the list is checked
                check.find("DELETED", source, "run %s recorded it; it is neither there nor said to be missing" % record["runId"])
    latest = _latest(check)
    if latest is not None:              # its own spec, though it may have skipped all; older evidence does not have it then
        record = check.records[latest]
        rightful.add(held.get(("spec:" + record["pipeline"], record.get("specSha256", "")), ""))
    told = {one.file for one in check.findings}
    for one in check.manifest["members"] if check.is_complete else ():
        is_recorded = one["path"].startswith(("spec/", "processors/", "logs/", "records/metrics_"))
        if is_recorded and one["path"] in check.names and one["path"] not in rightful | told:
            check.find("UNLISTED", one["path"], "no run record knows it")


def _wanted_files(check: Check) -> Iterator[Tuple[Json, str, str]]:
    run_id = check.manifest["runId"]
    for record, work in involved(run_id, check.records):
        if "specSha256" in record:
            yield record, "spec:" + record["pipeline"], record["specSha256"]
        for role, path, digest in files_used(work):
            if role in ("processor", "module"):
                yield record, path, digest
        for log in work.get("logs") or []:
            if log["path"].startswith(LOG_FOLDER):
                yield record, log["path"], log["sha256"]
            else:
                check.find("MALFORMED", "records", "run %s names a log outside of %s" % (record["runId"], LOG_FOLDER))
    latest = _latest(check)
    if latest is not None and check.records[latest].get("metrics"):
        yield check.records[latest], "state/metrics_%s.json" % run_id, check.records[latest]["metrics"]["sha256"]


def _latest(check: Check) -> Optional[RunKey]:
    """Return the latest call under the run id, None if not all records are there."""
    return max(key for key in check.records if key[0] == check.manifest["runId"]) if check.is_complete else None


def _check_stage_records(check: Check) -> None:
    for name in sorted(check.names):
        if not name.startswith("records/stage_"):
            continue
        stage = check.parse(name, check.read(name))
        if stage is None:
            continue
        problem = stage_record_problem(stage, check.records, check.entries)
        if isinstance(stage, dict) and name != "records/stage_%s.json" % stage.get("stage"):
            problem = "is the record of another stage"
        if problem:
            check.find("EDITED", name, problem)
        elif problem is None:
            check.notes.append("%s names a run that is not in this evidence, or is at work: not checked" % name)
    excused = {one["path"] for one in check.manifest["missing"]}
    for stage in sorted({one["stage"] for key in check.records for one in check.records[key]["stages"] if key[0] == check.manifest["runId"]}):
        name = "records/stage_%s.json" % stage
        if name not in check.names and name not in excused and not member_problem(name):
            check.find("DELETED", name, "is neither there nor said to be missing")


def _check_statement(check: Check) -> None:
    data = check.read(STATEMENT)
    latest = _latest(check)
    if latest is None or data is None and STATEMENT in check.names:
        return                          # what is missing, or cannot be read, was told already
    entry = [one for one in check.entries if one["event"] == "end" and run_key(one) == latest][0]
    try:
        line_digest = sha256(check.lines[entry["seq"]]).hexdigest()
        wanted = statement(check.records[latest], check.records, check.files, entry, line_digest)
    except NoStatement as error:
        if data is not None and not check.findings:
            check.find("UNLISTED", STATEMENT, "the records make no statement: %s" % error)
        return
    if data is not None and statement_text(wanted) == data:
        return
    for difference, earlier in earlier_forms(wanted, check.records[latest]):
        if earlier != wanted and data == (None if earlier is None else statement_text(earlier)):
            check.notes.append("%s, %s" % ("no " + STATEMENT if data is None else STATEMENT, difference))
            return
    if data is None:
        return check.find("DELETED", STATEMENT, "is not there, and the records make one")
    told = check.parse(STATEMENT, data)
    same = isinstance(told, dict) and told.get("subject") == wanted["subject"]
    check.find("EDITED", STATEMENT, "is not what the records say%s" % ("" if same else ": other subjects"))


# --- command line ----------------------------------------------------------------------------------------------------

def main(argv: Sequence[str]) -> int:
    """Verify what the command line names, print the report, return the exit code."""
    try:
        path, anchors, key = _arguments(list(argv))
        report = verify(path, anchors, key)
    except BadUsage as error:
        _print("verify: %s" % error, sys.stderr)
        return EXIT_USAGE
    except OSError as error:
        _print("verify: %s: %s" % (error.filename or path, error.strerror or error), sys.stderr)
        return EXIT_USAGE
    count = len(report.findings)
    outcome = "%d finding%s" % (count, "" if count == 1 else "s") if count else "ok"
    try:
        for one in report.findings:
            _print(str(one))
        for note in report.notes:
            _print("note: %s" % note)
        _print("verify: evidence of run %s: %s (head %s)" % (report.run_id, outcome, report.head))
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        # What it still holds goes nowhere, or the interpreter tells of it at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _print("verify: standard output: %s; the report is not whole" % (error.strerror or error), sys.stderr)
        return EXIT_FINDINGS if count else EXIT_USAGE
    return EXIT_FINDINGS if count else EXIT_OK


def _arguments(words: List[str]) -> Tuple[str, List[str], Optional[Key]]:
    anchors: List[str] = []
    operands, key = [], None
    while words:
        name, equals, value = words.pop(0).partition("=")
        if name in ("--anchor", "--key"):
            if not equals and not words:
                raise BadUsage("%s needs a value" % name)
            value = value if equals else words.pop(0)
            if name == "--anchor":
                anchors.append(value)
            else:
                key = _read_key(value)
        elif name.startswith("-"):
            raise BadUsage("usage: python verify.py [FILE.zip | FOLDER] [--anchor HEAD]... [--key FILE]")
        else:
            operands.append(name + equals + value)
    if len(operands) > 1:
        raise BadUsage("one zip or folder at a time, got: %s" % " ".join(operands))
    return operands[0] if operands else _HERE, anchors, key


def _read_key(path: str) -> Key:
    try:
        with open(path, "r", encoding="ascii") as file:      # a pipe, too: a password store may give it
            key = parse_key(file.read(4096))
    except (OSError, ValueError) as error:
        raise BadUsage("--key %s: cannot be read: %s" % (path, getattr(error, "strerror", None) or "it is no key file")) from None
    if key is None:
        raise BadUsage("--key %s: is no key file" % path)
    return key


def _print(text: str, stream: Any = None) -> None:
    """Print a line; what could steer a terminal or break the line is shown, not sent."""
    stream = stream or sys.stdout
    if stream is None:
        return                              # closed by who asks for the exit code only
    prepare_stream(stream)
    stream.write("".join(c if c.isprintable() else ascii(c)[1:-1] for c in text) + "\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
