"""Key files, and the sealing of the ledger with them.

Above the leaves and below the runner.

    KEY FILE            one line: kind, mode, key id, index, key; for its owner only, outside the root
    state/ledger.end    number and hash of the last sealed entry, under the key that comes next; before the first one, marked
                        `begins`, those of the last unsealed one, 0 and zeros if there is none

Mode "hmac": one key seals all. Mode "forward": each entry has a key of its own, made from the one before, which is
destroyed: who steals today's key cannot rewrite the past. Nobody can compute the first key from a later one; it must be copied to
a place off the machine before the first run, for verification needs it. On disks that move blocks (SSDs) overwriting is
best effort.
"""
from __future__ import annotations

import errno
import os

import durable_files
import state_store
from ledger_format import KEY_BYTES, end_mac, key_id, key_text, next_key, parse_key, seal_mac
from primitives import as_here, is_there, loads, open_file, patiently, remove_quietly, replace
from state_store import StateError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List, Optional, Tuple

    from durable_files import Commit
    from state_store import StateStore
    Json = Dict[str, Any]

END_NAME = "ledger.end"
ANEW = "move the whole of state/ to another folder and run with a new key: all stages run again"
RESTORE = "; `verify` tells more; put back state/ledger.jsonl and state/ledger.end as they were, or " + ANEW
LOST = "; if a ledger is sealed with it, put its copy back, else new-key FILE makes one"
MAX_KEY_FILE = 4096
NOTHING = {"seq": 0, "hash": "0" * 64}  # what ledger.end names before the first entry of all


class KeyProblem(Exception):
    """A key file cannot be used; str() names it, what is wrong, and what to do."""

    exit_code = 2


def make_key_file(path: str, mode: str) -> str:
    """Make a new key file, for its owner only; return its key id. Raises: KeyProblem if it is there, OSError."""
    key = os.urandom(KEY_BYTES)
    identity = key_id(key)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600)
    except FileExistsError:
        is_empty = os.path.isfile(path) and not os.path.getsize(path)
        raise KeyProblem("%s is there already%s" % (path, ", and empty: a new-key that was killed may have left it; remove it and run again" if is_empty
                                                    else "; a key is never overwritten")) from None
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            error.remedy = "; choose another place for the key"     # type: ignore[attr-defined]
        raise
    try:
        try:
            durable_files.write_all(descriptor, key_text(mode, identity, 0, key).encode("ascii"))
            durable_files.sync_file(descriptor)
        finally:
            os.close(descriptor)        # Windows removes no open file
    except OSError as error:
        remove_quietly(path)    # it is ours: half a key would be in the way of a whole one
        raise OSError(error.errno, error.strerror, path) from error
    durable_files.sync_folder(os.path.dirname(os.path.abspath(path)))
    return identity


def check_place(path: str, root: str) -> None:
    """Raises: KeyProblem for a key below the root."""
    if as_here(os.path.realpath(path)).startswith(as_here(os.path.join(os.path.realpath(root), ""))):
        raise KeyProblem("%s: the key lies below the root, and a copy of the folder would carry it; keep it elsewhere" % path)


def read_key_file(path: str, root: str = "", posix: bool = os.name == "posix") -> Tuple[str, str, int, bytes]:
    """Return (mode, key id, index, key).

    With *root*, the file must lie outside it: a copy of the folder would carry the key. Raises: KeyProblem.
    """
    if root:
        check_place(path, root)
    try:
        with patiently(lambda: open(path, "rb")) as file:
            found = os.fstat(file.fileno())
            text = file.read(MAX_KEY_FILE).decode("ascii", "replace")
    except OSError as error:
        remedy = {errno.ENOENT: LOST,
                  errno.EACCES: "; it must belong to the user who runs this, with mode 600" if posix else ""}.get(error.errno or 0, "")
        raise KeyProblem("%s: cannot read the key file: %s%s" % (path, error.strerror, remedy)) from None
    if posix and found.st_mode & 0o077:
        raise KeyProblem("%s: others may read or write the key file (mode %03o); chmod 600 it" % (path, found.st_mode & 0o777))
    parsed = parse_key(text)
    if parsed is None:
        raise KeyProblem("%s: is not a key file%s" % (path, LOST))
    return parsed


class Sealer:
    """Seals the entries of one ledger with the key file at *path*; used only under the ledger's lock. notes: for the user."""

    def __init__(self, store: StateStore, path: str) -> None:
        """Raises: KeyProblem."""
        self.store, self.path = store, os.path.abspath(path)
        self.mode, self.identity, self.index, self.key = "", "", 0, b""
        self.notes: List[str] = []
        if not os.path.lexists(self._new_path()):       # else a replacement goes on, or is completed under the lock
            self._load()

    def _load(self) -> None:
        self.mode, self.identity, self.index, self.key = read_key_file(self.path, self.store.root)

    def prepare(self, last: Optional[Json]) -> None:
        """Before the run: complete what a kill left half done, see that the key fits, and bring an old copy of it up to the
        ledger. Raises: KeyProblem, StateError, OSError."""
        self._finish_evolution()
        self._load()
        if last is not None:
            self.check(last)
        self._check_end(last)
        if last is not None and "seal" in last and self._is_behind(last):
            self._catch_up(last["seal"]["index"] + 1)

    def look(self, last: Optional[Json]) -> None:
        """See whether prepare() would go through, but complete and write nothing. Raises: KeyProblem, StateError, OSError."""
        if is_there(self._new_path()):
            return                          # a kill came into a replacement: the file is to be read when that is completed
        if last is not None:
            self.check(last)
        self._check_end(last)

    def check(self, last: Json) -> None:
        """Raises: StateError if the ledger that ends with *last* cannot be continued with this key."""
        seal = last.get("seal")
        if seal is None:
            if self.mode == "forward" and self.index:
                raise StateError("state/ledger.jsonl ends unsealed, but %s has sealed %d entries: it was cut off or replaced%s" % (
                    self.path, self.index, RESTORE))
            return
        if seal.get("keyId") != self.identity or seal.get("mode") != self.mode:
            raise StateError("state/ledger.jsonl is sealed with key %s (%s), not with %s of %s; give the right key file; if it is lost, %s" % (seal.get("keyId"),
                seal.get("mode"), self.identity, self.path, ANEW))
        if self.mode == "forward" and self.index > seal["index"] + 1:
            raise StateError("state/ledger.jsonl ends with seal %d, but %s is at %d: the ledger was cut off%s" % (
                seal["index"], self.path, self.index, RESTORE))
        if self._is_behind(last) and not self._has_sealed(last):
            raise StateError("state/ledger.jsonl ends with seal %d, and no key that follows from %s, at %d, has made it: somebody without the key wrote it%s" % (
                seal["index"], self.path, self.index, RESTORE))

    def _is_behind(self, last: Json) -> bool:
        """Tell whether the key file is older than the ledger that ends with *last*: a copy of an earlier day was put back."""
        return self.mode == "forward" and bool(self.index < last["seal"]["index"])

    def _has_sealed(self, last: Json) -> bool:
        """Tell whether the key that follows from this one for the seal of *last* has made it."""
        index, key = last["seal"]["index"], self.key
        if index >= self._count_sealed():
            return False                    # made up: one entry, one number; so it costs no hours either
        for _ in range(index - self.index):
            key = next_key(key)
        return bool(seal_mac(key, last["hash"]) == last["seal"].get("mac"))

    def _check_end(self, last: Optional[Json]) -> None:
        """Raises: StateError if ledger.end, which follows each sealed entry, tells of more than the ledger has, or is not what
        was written.

        A kill leaves it one entry behind. Earlier runners wrote it after the first sealed entry only: what a kill left then looks as
        what is left of a ledger that was cut off there, but for the number of a forward key.
        """
        is_sealed, end = last is not None and "seal" in last, self._read_end()
        if end is None:
            if is_sealed and (self.mode == "hmac" or self._count_sealed() > 1):
                raise StateError("state/%s is not there, which a sealed ledger has: nobody can tell whether the ledger was cut off%s" % (
                    END_NAME, RESTORE))
            return
        if not isinstance(end, dict) or not isinstance(end.get("seq"), int) or not isinstance(end.get("hash"), str):
            raise StateError("state/%s is damaged%s" % (END_NAME, RESTORE))
        if end.get("keyId") != self.identity and not is_sealed:
            return                          # a new ledger, under a new key
        if end.get("keyId") != self.identity or self.mode == "hmac" and end.get("mac") != end_mac(self.key, end["seq"], end["hash"]):
            raise StateError("state/%s was not written with the key of %s%s" % (END_NAME, self.path, RESTORE))
        if last is None and end["seq"]:
            raise StateError("state/ledger.jsonl is empty, or was removed: state/%s tells of entry %d%s" % (END_NAME, end["seq"], RESTORE))
        here: Json = last or NOTHING
        seq = here["seq"]
        if end["seq"] > seq or end["seq"] == seq and end["hash"] != here["hash"]:
            raise StateError("state/ledger.jsonl ends with entry %d, but not the one that state/%s tells of, entry %d: it was cut off or replaced%s" % (
                seq, END_NAME, end["seq"], RESTORE))

    def _read_end(self) -> Any:
        """Return what ledger.end holds, None if it is not there."""
        try:
            with open_file(self.store.path(END_NAME)) as file:
                return loads(file.read(MAX_KEY_FILE).decode("utf-8", "replace")) or {}
        except FileNotFoundError:
            return None
        except (ValueError, RecursionError):
            return {}

    def _count_sealed(self) -> int:
        with open_file(self.store.path("ledger.jsonl")) as file:
            return sum(b'"seal":{' in line for line in file)

    def seal(self, entry: Json, last: Optional[Json]) -> Json:
        """Return the seal of a new entry that follows *last*. Raises: StateError, KeyProblem, OSError."""
        self.prepare(last)                  # another run may have used the key meanwhile
        if self.mode == "forward":
            last_index = last["seal"]["index"] if last is not None and "seal" in last else -1
            if last is None and self.index:
                raise StateError(
                    "there is no state/ledger.jsonl, but %s has sealed %d entries: it was removed%s" % (
                        self.path, self.index, RESTORE))
            if self.index == last_index:
                self._evolve()              # a kill came between the last entry and this step
        self._complete_end(last)
        return {"mode": self.mode, "keyId": self.identity, "index": self.index if self.mode == "forward" else 0,
                "mac": seal_mac(self.key, entry["hash"])}

    def sealed(self, entry: Json) -> None:
        """After *entry* stands: destroy its key (forward mode), and note that it is the last. Raises: OSError."""
        if self.mode == "forward":
            self._evolve()
        self._write_end(entry, self.store.commit)

    def _complete_end(self, last: Optional[Json]) -> None:
        """Before an entry: let ledger.end name the one that it follows, for a kill or a full disk may have come between the two.

        So it is never more than one entry behind, and no sealed entry stands without it, the first neither: who cuts a ledger off
        there cannot say that a kill came. prepare() has seen that the ledger was not cut off. Raises: OSError; then no further
        entry is made.
        """
        here, end = last or NOTHING, self._read_end()
        if end is None or (end.get("seq"), end.get("hash"), end.get("keyId")) != (here["seq"], here["hash"], self.identity):
            self._write_end(here, None)         # on the disk before the entry is

    def _write_end(self, entry: Json, commit: Optional[Commit]) -> None:
        end = {"schema": 1, **({} if "seal" in entry else {"begins": True}), "seq": entry["seq"], "hash": entry["hash"], "keyId": self.identity, "mode": self.mode,
               "mac": end_mac(self.key, entry["seq"], entry["hash"])}
        durable_files.write_atomic(self.store.path(END_NAME), state_store.record_json(end), commit)

    # --- the evolution of a forward key

    def _catch_up(self, index: int) -> None:
        """Replace an old copy of the key by the one of number *index*, at once: each later key follows from it."""
        old = self.index
        self._evolve(index - old)
        self.notes.append("%s was an old copy of the key file, at %d: brought up to %d, as the ledger is (`verify` needs the first key: keep a copy of it)" % (
            self.path, old, index))

    def _evolve(self, steps: int = 1) -> None:
        """Replace the key by the next one, or by one that comes later."""
        for _ in range(steps):
            self.key, self.index = next_key(self.key), self.index + 1
        durable_files.write_new(self._new_path(), key_text(self.mode, self.identity, self.index, self.key).encode("ascii"), mode=0o600)
        durable_files.sync_folder(os.path.dirname(self.path))
        self._finish_evolution()

    def _finish_evolution(self) -> None:
        """Complete a replacement, also one that a kill came into: the old key is overwritten in place, its name goes to the
        new."""
        if not is_there(self._new_path()):
            return
        with open_file(self._new_path()) as file:
            is_whole = parse_key(file.read(MAX_KEY_FILE).decode("ascii", "replace")) is not None
        if is_whole:
            with patiently(lambda: open(self.path, "r+b", buffering=0)) as file:
                file.write(b"0" * os.fstat(file.fileno()).st_size)
                durable_files.sync_file(file.fileno())
            replace(self._new_path(), self.path)
            durable_files.sync_folder(os.path.dirname(self.path))
        else:
            remove_quietly(self._new_path())

    def _new_path(self) -> str:
        return self.path + ".new"
