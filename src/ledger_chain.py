"""The ledger as a verifier reads it: lines -> entries -> their order, their links, their seals, and heads noted elsewhere.

Above ledger_format, history_files, model and primitives; goes with ledger_verify to another machine.
"""
from __future__ import annotations

import json
import os
from bisect import bisect_left
from collections import namedtuple

from history_files import (
    ENTRY_SHAPE, EVENT_SHAPES, Unreadable, count_text, decoder, numbers_text, open_regular, parse_object, shape_problem, shown)
from ledger_format import (
    ENTRY_SCHEMA, end_mac, entry_hash, entry_line, is_unwritten, next_key, parse_head, seal_mac)
from model import UsageError
from primitives import is_integer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Set, Tuple
    Json = Dict[str, Any]
    RunKey = Tuple[str, int]        # run id and invocation
    Key = Tuple[str, str, int, bytes]

LEDGER, END = "ledger.jsonl", "ledger.end"
MAX_LINE_BYTES = 16 << 20       # of an entry; the longest are acceptances with many changes
KEY_STEPS = 1 << 20             # as far as a forward key is evolved beyond one step for each entry: forged numbers cost no hours
SHOWN_DIGITS = 12


class Finding(namedtuple("Finding", "kind file detail")):
    """Something that is not as the runs left it.

    kind: EDITED DELETED RENAMED REORDERED UNLISTED TRUNCATED MALFORMED UNSEALED OUTPUT-CHANGED. file: below the root.
    """

    __slots__ = ()

    def __str__(self) -> str:
        return "[%s] %s: %s" % (self.kind, shown(self.file), shown(self.detail))


class Entry(namedtuple("Entry", (
        "line seq event run_id invocation pipeline prev_hash hash last_run_hash open run_hash state closed_by seal accept sound kept_house"))):
    """A line of the ledger; hash as stated. sound: it is the digest of the rest. accept: {stage, old, new} or None.

    kept_house: of gc {run: runHash of the record removed}, of clean (run, stage, paths kept, whether these are more than the
    entry before has), of reset the stage, else None.
    """

    __slots__ = ()

    @property
    def run(self) -> RunKey:
        return self.run_id, self.invocation


# --- the ledger: lines -> entries ------------------------------------------------------------------------------------

def ledger_lines(descriptor: int) -> Iterator[Tuple[int, Optional[bytes], bool]]:
    """Yield (number, line without its end or None if no entry is so long, whether it has an end)."""
    with os.fdopen(descriptor, "rb") as file:
        number = 0
        while True:
            line = file.readline(MAX_LINE_BYTES)
            if not line:
                return
            number += 1
            is_long = False
            while not line.endswith(b"\n") and len(line) == MAX_LINE_BYTES:
                is_long = True
                line = file.readline(MAX_LINE_BYTES)
            yield number, None if is_long else line.rstrip(b"\n"), line.endswith(b"\n")


def read_entry(number: int, line: Optional[bytes], parser: json.JSONDecoder) -> Entry:
    """Return the entry that a line is; sound is False where its hash is not its own. Raises: Unreadable."""
    if line is None:
        raise Unreadable("is longer than any entry")
    if not line.strip():
        raise Unreadable("is an empty line")
    entry = parse_object(line, parser)
    if is_integer(entry.get("schema")) and entry["schema"] > ENTRY_SCHEMA:
        raise Unreadable("was written by a newer runner (schema %d, this verifier knows %d); use that one's" % (
            entry["schema"], ENTRY_SCHEMA))
    name = shape_problem(entry, ENTRY_SHAPE) or shape_problem(entry, EVENT_SHAPES.get(entry["event"], ()))
    if name:
        raise Unreadable("is no entry: its %s is not of the form that runs write" % name)
    try:
        is_canonical, sound = entry_line(entry) == line + b"\n", entry_hash(entry) == entry["hash"]
    except (ValueError, RecursionError):
        raise Unreadable("is no entry: it cannot be hashed") from None
    if sound and not is_canonical:
        raise Unreadable("is not in the form in which entries are written (blanks, order of names)")
    accept = (entry["stage"], entry["oldKey"], entry["newKey"]) if entry["event"] == "accept" else None
    return Entry(number, entry["seq"], entry["event"], entry["runId"], entry["invocation"], entry["pipeline"], entry["prevHash"],
                 entry["hash"], entry["lastRunHash"], entry["open"], entry.get("runHash"), entry.get("state", ""), entry.get("closedBy"),
                 entry.get("seal"), accept, sound, _kept_house(entry))


def _kept_house(entry: Json) -> Any:
    if entry["event"] == "gc":
        return {(one[0], one[1]): one[2] for one in entry["removed"]}
    if entry["event"] == "clean":
        return (entry["madeBy"]["runId"], entry["madeBy"]["invocation"]), entry["stage"], frozenset(entry["kept"]), entry.get("continued") is True
    return entry["stage"] if entry["event"] == "reset" else None


class Chain:
    """The ledger as read: entries in the order of their numbers, and what is wrong with their links."""

    def __init__(self) -> None:
        self.entries: List[Entry] = []
        self.findings: List[Finding] = []
        self.notes: List[str] = []
        self.malformed: List[int] = []      # line numbers
        self.blamed: Set[int] = set()       # numbers of entries that have a finding

    def read(self, path: str) -> None:
        """Read the ledger. Raises: FileNotFoundError, Unreadable."""
        parser = decoder(floats=False)
        torn: List[Tuple[int, Optional[bytes], bool]] = []
        for number, line, is_whole in ledger_lines(open_regular(path, 1 << 62)[0]):
            if not is_whole or line is not None and is_unwritten(line):
                torn.append((number, line, is_whole))       # a crash leaves that at the end, and there only
                continue
            for one in [*torn, (number, line, True)]:
                self._take(one[0], one[1], parser)
            torn = []
        if torn:
            count = sum(len(line) + is_whole for _, line, is_whole in torn if line is not None)
            self.notes.append("state/%s: the last line is torn (%s): a crash leaves that, and the next run cuts it off" % (
                LEDGER, count_text(count, "byte") if all(line is not None for _, line, _ in torn) else "many bytes"))
        self._sort()
        self._walk()

    def _take(self, number: int, line: Optional[bytes], parser: json.JSONDecoder) -> None:
        try:
            entry = read_entry(number, line, parser)
        except Unreadable as error:
            self.malformed.append(number)
            self._find("MALFORMED", number, "the line %s" % error)
            return
        if not entry.sound:
            self._blame("EDITED", entry, "entry %d is not what its hash was taken of" % entry.seq)
        self.entries.append(entry)

    def _find(self, kind: str, line: int, detail: str) -> None:
        self.findings.append(Finding(kind, "state/%s:%d" % (LEDGER, line), detail))

    def _blame(self, kind: str, entry: Entry, detail: str) -> None:
        self.blamed.add(entry.seq)
        self._find(kind, entry.line, detail)

    # --- order

    def _sort(self) -> None:
        """Report lines that stand out of order, twice, or beside another of their number; leave the rest in order."""
        seen: Dict[str, int] = {}
        unique = []
        for entry in self.entries:
            if entry.hash in seen:
                self._find("REORDERED", entry.line, "entry %d once more; it stands in line %d already" % (entry.seq, seen[entry.hash]))
            else:
                seen[entry.hash] = entry.line
                unique.append(entry)
        if any(one.seq >= other.seq for one, other in zip(unique, unique[1:])):
            self._report_moved(unique)
            unique = self._without_rivals(sorted(unique, key=lambda one: one.seq))
        self.entries = unique

    def _report_moved(self, entries: List[Entry]) -> None:
        """Report the fewest entries whose removal would leave the numbers ascending, neighbours together."""
        tails: List[int] = []               # least last number of an ascending choice of each length
        ends: List[int] = []
        before: List[int] = []
        for place, entry in enumerate(entries):
            length = bisect_left(tails, entry.seq)
            before.append(ends[length - 1] if length else -1)
            tails[length:length + 1], ends[length:length + 1] = [entry.seq], [place]
        stays, place = set(), ends[-1]
        while place >= 0:
            stays.add(place)
            place = before[place]
        numbers: Dict[int, int] = {}
        for entry in entries:
            numbers[entry.seq] = numbers.get(entry.seq, 0) + 1
        moved = [place for place, entry in enumerate(entries) if place not in stays and numbers[entry.seq] == 1]
        for first, last in neighbours(moved, lambda place: entries[place].seq):
            low, high = entries[first], entries[last]
            self._blame("REORDERED", low, "%s %s out of order%s" % (
                numbers_text(low.seq, high.seq), "stands" if low is high else "stand",
                "; behind entry %d" % entries[first - 1].seq if first else ", first of all"))

    def _without_rivals(self, entries: List[Entry]) -> List[Entry]:
        """Of entries of one number keep that which is in the chain, and report the others."""
        named = {entry.prev_hash for entry in entries}
        kept: List[Entry] = []
        place = 0
        while place < len(entries):
            rivals = [entries[place]]
            while place + len(rivals) < len(entries) and entries[place + len(rivals)].seq == rivals[0].seq:
                rivals.append(entries[place + len(rivals)])
            place += len(rivals)
            best = max(rivals, key=lambda one: (one.hash in named, not kept or one.prev_hash == kept[-1].hash, -one.line))
            for rival in rivals:
                if rival is not best:
                    self._find("UNLISTED", rival.line, "a second entry of number %d; the chain has the one in line %d" % (rival.seq, best.line))
            kept.append(best)
        return kept

    # --- links

    def _walk(self) -> None:
        previous: Optional[Entry] = None
        for entry in self.entries:
            number = previous.seq if previous is not None else 0
            if entry.seq != number + 1:
                self._report_gap(previous, entry)
            elif previous is None:
                if entry.prev_hash is not None:
                    self._blame("DELETED", entry, "entry 1 follows an entry that is not there")
            elif entry.prev_hash != previous.hash:
                if not {previous.seq, entry.seq} & self.blamed:
                    self._blame("EDITED", previous, "entry %d was changed and its hash made anew: entry %d follows one of hash %s..." % (
                        previous.seq, entry.seq, str(entry.prev_hash)[:SHOWN_DIGITS]))
            elif entry.sound and previous.sound:
                self._check_carried(previous, entry)
            if previous is None and entry.seq == 1 and entry.sound:
                self._check_carried(None, entry)
            previous = entry

    def _report_gap(self, previous: Optional[Entry], entry: Entry) -> None:
        """Report entries that are missing, unless malformed lines stand where they were."""
        first = previous.seq + 1 if previous is not None else 1
        above = previous.line if previous is not None else 0
        damaged = sum(1 for line in self.malformed if above < line < entry.line)
        if entry.seq < first:
            self._blame("MALFORMED", entry, "entries have the numbers from 1 on, not %d" % entry.seq)
        elif entry.seq - first > damaged:
            self._blame("DELETED", entry, "%s %s missing before this line" % (
                numbers_text(first, entry.seq - 1), "is" if first == entry.seq - 1 else "are"))

    def _check_carried(self, previous: Optional[Entry], entry: Entry) -> None:
        """What an entry carries on must follow from the one before: a history made up is rarely made up well."""
        was_open: Json = dict(previous.open) if previous is not None else {}
        last = previous.last_run_hash if previous is not None else None
        if entry.event == "begin":
            was_open[entry.run_id] = entry.invocation
        elif entry.event == "end":
            was_open.pop(entry.run_id, None)
            last = entry.run_hash or last
        for name, is_right in (("open", was_open == entry.open), ("lastRunHash", last == entry.last_run_hash)):
            if not is_right:
                self._blame("MALFORMED", entry, "entry %d does not follow from the one before: its %s" % (entry.seq, name))


def neighbours(places: List[int], number: Callable[[int], int]) -> Iterator[Tuple[int, int]]:
    """Yield (first, last) of places that stand side by side with numbers side by side."""
    start = 0
    for index in range(1, len(places) + 1):
        if index == len(places) or places[index] != places[index - 1] + 1 or number(places[index]) != number(places[index - 1]) + 1:
            yield places[start], places[index - 1]
            start = index


# --- seals and anchors -----------------------------------------------------------------------------------------------

class KeyRing:
    """The keys that follow from the one given, evolved as the entries ask for them."""

    def __init__(self, key: Key) -> None:
        self.mode, self.identity, self.first, self.key = key
        self.index, self.asked = self.first, 0
        self.zero = self.key if self.mode == "hmac" or self.first == 0 else None     # the key before the first seal

    def at(self, index: int) -> Optional[bytes]:
        """Return key number *index*, None if it cannot be had; asked for in ascending order."""
        if self.mode == "hmac":
            return self.key if index == 0 else None
        self.asked += 1
        if not self.index <= index <= self.first + self.asked + KEY_STEPS:
            return None
        while self.index < index:
            self.key, self.index = next_key(self.key), self.index + 1
        return self.key

    def after(self, index: int) -> Optional[bytes]:
        """Return the key that vouches for the ledger's end after the entry sealed with number *index*."""
        if self.mode == "hmac":
            return self.key
        if self.index == index + 1:
            return self.key
        key = self.at(index)
        return next_key(key) if key is not None else None


class Seals:
    """The check of seals over a chain; with no ring only what can be seen without a key."""

    def __init__(self, chain: Chain, ring: Optional[KeyRing], end: Optional[Json]) -> None:
        self.chain, self.ring, self.end = chain, ring, end
        self.findings: List[Finding] = []
        self.notes: List[str] = []
        self.sealed = [entry for entry in chain.entries if entry.seal is not None]
        self.end_key: Optional[bytes] = None

    def check(self, is_end_there: bool) -> None:
        """Check all seals and the end. is_end_there: ledger.end is a file, though perhaps one that cannot be used."""
        if not self.sealed:
            self._check_bare()
            return
        self._check_unsealed()
        if self.ring is not None and not self._is_its_key():
            self.ring = None
        elif self.ring is None:
            self.notes.append("the ledger is sealed with key %s: not checked; give the key file with --key" % self.sealed[0].seal["keyId"])
        self._check_macs()
        self._check_key_number()
        if self.end is not None:
            self._check_end(self.end)
        elif not is_end_there:
            self._find("DELETED", END, "a sealed ledger has it: without it nobody can tell how many entries there were")

    def _check_bare(self) -> None:
        if self.end is not None and self.end.get("begins") is True and not self._is_begin(self.end):
            self._find("TRUNCATED", LEDGER, "its last entry is not the one that state/%s tells of, entry %d" % (END, self.end["seq"]))
        elif self.end is not None and self.end.get("begins") is True and (self.ring is None or not self.chain.entries):
            self.notes.append("state/%s was written for the first sealed entry: a kill before that leaves it" % END)
        elif self.end is not None and self.chain.entries and self.end.get("begins") is not True:
            self._find("UNSEALED", LEDGER, "no entry is sealed, but there is a state/%s: the seals were taken off" % END)
        elif self.end is not None and not self.chain.entries:
            self._find("TRUNCATED", LEDGER, "it is empty, but state/%s says that it ends at entry %d" % (END, self.end["seq"]))
        elif self.ring is not None:
            self._find("UNSEALED", LEDGER, "no entry is sealed, though a key is given: the seals were taken off, or there never were any")

    def _is_begin(self, end: Json) -> bool:
        """Tell whether ledger.end is as it is written before the first sealed entry, which may stand by now, or be cut off again."""
        before = [entry for entry in self.chain.entries if not self.sealed or entry.seq < self.sealed[0].seq]
        named = next((entry for entry in reversed(before) if entry.seq == end["seq"]), None)
        is_there = end["seq"] == 0 and end["hash"] == "0" * 64 if named is None else named.hash == end["hash"]
        zero = self.ring.zero if self.ring is not None else None
        return is_there and end.get("begins") is True and (zero is None or end_mac(zero, end["seq"], end["hash"]) == end["mac"])

    def _find(self, kind: str, name: str, detail: str) -> None:
        self.findings.append(Finding(kind, "state/" + name, detail))

    def _check_unsealed(self) -> None:
        start = self.chain.entries.index(self.sealed[0])
        self._report_bare([place for place in range(start, len(self.chain.entries)) if self.chain.entries[place].seal is None],
                          "entry %d is and all that follow must be" % self.sealed[0].seq)

    def _check_taken_off(self, start: int) -> None:
        """The number of the first seal, which is right, tells how many entries just before it were sealed, too."""
        first = self.chain.entries[start]
        self._report_bare([place for place in range(start) if self.chain.entries[place].seq >= first.seq - first.seal["index"]],
                          "entry %d has seal number %d: the seals were taken off" % (first.seq, first.seal["index"]))

    def _report_bare(self, bare: List[int], though: str) -> None:
        for first, last in neighbours(bare, lambda place: self.chain.entries[place].seq):
            low, high = self.chain.entries[first], self.chain.entries[last]
            self._find("UNSEALED", "%s:%d" % (LEDGER, low.line), "%s %s not sealed, though %s" % (
                numbers_text(low.seq, high.seq), "is" if low is high else "are", though))

    def _is_its_key(self) -> bool:
        assert self.ring is not None
        seal = self.sealed[0].seal
        if (self.ring.identity, self.ring.mode) == (seal["keyId"], seal["mode"]):
            return True
        self._find("UNSEALED", LEDGER, "it is sealed with key %s (%s), the key given is %s (%s): no seal was checked" % (
            seal["keyId"], seal["mode"], self.ring.identity, self.ring.mode))
        return False

    def _check_macs(self) -> None:
        bad, before, index, early = [], 0, -1, 0
        for place, entry in enumerate(self.chain.entries):
            if entry.seal is None:
                continue
            # As many keys may have been used up as entries are missing, or have no seal; which these are is said elsewhere.
            is_right = self._is_in_turn(entry.seal, index, entry.seq - before - 1)
            if is_right and self.ring is not None:
                is_early = entry.seal["index"] < self.ring.first
                early += is_early
                is_right = is_early or self._is_sealed(entry)
                if self.end is not None and entry.seq == self.end["seq"]:
                    self.end_key = self.ring.after(entry.seal["index"])
            if entry is self.sealed[0] and is_right:
                self._check_taken_off(place)
            if not is_right and entry.seq not in self.chain.blamed:
                bad.append(place)
            before, index = entry.seq, entry.seal["index"]
        if early and self.ring is not None:
            self.notes.append("%s not checked by their seals: the key given is number %d, which only tells of later ones; "
                              "the first key tells of all" % (count_text(early, "entry"), self.ring.first))
        for low, high in neighbours(bad, lambda place: self.chain.entries[place].seq):
            self._report_bad(self.chain.entries[low], self.chain.entries[high])

    def _is_in_turn(self, seal: Json, index: int, missing: int) -> bool:
        first = self.sealed[0].seal
        if (seal["keyId"], seal["mode"]) != (first["keyId"], first["mode"]):
            return False
        return bool(seal["index"] == 0 if first["mode"] == "hmac" else index < seal["index"] <= index + 1 + missing)

    def _is_sealed(self, entry: Entry) -> bool:
        key = self.ring.at(entry.seal["index"]) if self.ring is not None else None
        return key is not None and seal_mac(key, entry.hash) == entry.seal["mac"]

    def _report_bad(self, low: Entry, high: Entry) -> None:
        self.chain.blamed.update(range(low.seq, high.seq + 1))
        self._find("EDITED", "%s:%d" % (LEDGER, low.line), "the seal of %s does not fit: written by somebody without the key" % (
            numbers_text(low.seq, high.seq)))

    def _check_key_number(self) -> None:
        """A forward key of number n has sealed n entries: they must be there."""
        count = self.sealed[-1].seal["index"] + 1
        if self.ring is not None and self.ring.mode == "forward" and self.ring.first > count:
            self._find("TRUNCATED", LEDGER, "it ends with seal number %d, but before the key given, number %d, so many were made" % (
                count - 1, self.ring.first))

    def _check_end(self, end: Json) -> None:
        """Compare ledger.end, which the last append replaced, with the ledger: it may be behind, never ahead."""
        last, seal = self.chain.entries[-1], self.sealed[-1].seal
        if end["seq"] > last.seq:
            self._find("TRUNCATED", LEDGER, "it ends at entry %d, state/%s says %d: the rest was cut off" % (
                last.seq, END, end["seq"]))
            return
        named = next((entry for entry in reversed(self.chain.entries) if entry.seq == end["seq"]), None)
        if end["seq"] == self.sealed[0].seq - 1 and self._is_begin(end):
            return self._check_distance(end["seq"], last.seq)
        if named is None and not self.chain.findings:
            self._find("EDITED", END, "it names entry %d, which no ledger has" % end["seq"])
        if named is None or named.seq in self.chain.blamed:
            return                          # what is wrong there was said already
        is_its = (end["keyId"], end["mode"]) == (seal["keyId"], seal["mode"])
        if named.hash != end["hash"]:
            self._find("EDITED", END, "it names another entry %d than the ledger has: one of the two was written anew" % named.seq)
        elif named.seal is None:
            self._find("EDITED", END, "it names entry %d, which has no seal: it is written for sealed ones" % named.seq)
        elif not is_its or self.end_key and end_mac(self.end_key, named.seq, named.hash) != end["mac"]:
            self._find("EDITED", END, "it was not written with the key that sealed the ledger")
        else:
            self._check_distance(named.seq, last.seq)

    def _check_distance(self, named: int, last: int) -> None:
        """A kill leaves ledger.end one entry behind: before the next entry it is completed."""
        text = "it is %s behind the ledger" % count_text(last - named, "entry")
        if last - named > 1:
            self._find("EDITED", END, text + ", which no kill leaves: an older one was put back")
        elif last > named:
            self.notes.append("state/%s: %s: a kill between the two leaves that" % (END, text))


def check_anchors(entries: List[Entry], anchors: Iterable[str]) -> List[Finding]:
    """Return what contradicts heads that were noted elsewhere. Raises: UsageError for a text that is no head."""
    findings = []
    for text in anchors:
        head = parse_head(text)
        if head is None:
            raise UsageError("--anchor %s: is no head; write it as noted, 12: 9f3a-77c1-... (16 digits or more)" % shown(text))
        number, digits = head
        found = [entry.seq for entry in entries if entry.hash.startswith(digits)]
        if number in found or found and number is None:
            continue
        last = entries[-1].seq if entries else 0
        name = "state/" + LEDGER
        if found:
            findings.append(Finding("REORDERED", name, "the anchor %s is entry %d here" % (shown(text), found[0])))
        elif number is None:
            findings.append(Finding("TRUNCATED", name, "no entry has the head %s: cut off or rewritten" % shown(text)))
        elif number > last:
            findings.append(Finding("TRUNCATED", name, "it ends at entry %d, the anchor is number %d: cut off or rewritten" % (last, number)))
        else:
            findings.append(Finding("EDITED", name, "history rewritten: entry %d is not the one of the anchor %s" % (number, shown(text))))
    return findings
