"""The records under state/.

On durable_files and stage_records. Names are made durable in groups (durable_files.Commit), and so are the outcomes of
stages, content and name: the record "running" is kept beside them until then.
"""
from __future__ import annotations

import os
import sys
import time

import durable_files
import stage_records
from primitives import (
    BEFORE, GUESSED_BOOT, by_fields, digest_of, is_integer, is_link, is_there, loads, naming, open_file, pretty_bytes, pretty_pieces, remove_quietly,
    replace)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, List, Optional, Tuple

    from primitives import Piece
    Json = Dict[str, Any]

SCHEMA_VERSION = 1          # of every file under state/ ; a newer one is refused, not guessed at
SECRET_BYTES = 32
WAIT_S = 30                 # for locks that are held for moments; a longer wait is a fault of the file system


class StateError(Exception):
    """A record cannot be used; str() names the file, what is wrong, and what to do."""

    exit_code = 5


def record_json(value: Any) -> bytes:
    """Return the readable form in which records are stored: indented UTF-8 with a last newline."""
    return pretty_bytes(value)


def utc_text(seconds: float) -> str:
    """Return seconds since the epoch as ISO 8601 UTC with milliseconds and Z."""
    whole, thousandths = divmod(int(seconds * 1000), 1000)
    return "%s.%03dZ" % (time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole)), thousandths)


def new_run_id() -> str:
    """Return the id of a run that was given none: the UTC time and a random tail."""
    return time.strftime("%Y%m%dT%H%M%SZ-", time.gmtime()) + os.urandom(3).hex()


def boot_id() -> str:
    """Return a text that is another one after each start of the machine.

    Linux and macOS tell. Elsewhere it is guessed, "start-N", from the time of the start in minutes: after a step of the
    clock it is another one, too, and what was not synced before counts as lost: digests are taken anew, checkpoints dropped.
    """
    if sys.platform == "win32":
        import ctypes
        ctypes.windll.kernel32.GetTickCount64.restype = ctypes.c_ulonglong
        up_s = ctypes.windll.kernel32.GetTickCount64() / 1000.0
    else:
        told = _told_boot_id()
        if told:
            return told
        up_s = time.monotonic()         # most often since the start of the machine
    return "%s%d" % (GUESSED_BOOT, round((time.time() - up_s) / 60))


def _told_boot_id() -> str:
    """Return what Linux or macOS calls this start, "" where nobody tells."""
    try:
        with open("/proc/sys/kernel/random/boot_id", "rb") as file:    # a file of text would have its codec looked up and loaded
            return file.read().decode("ascii").strip()
    except OSError:
        return _mac_boot_id() if sys.platform == "darwin" else ""


def _mac_boot_id() -> str:
    """Return what macOS calls this start, a UUID; "" where it tells none. Its monotonic clock stands still while the machine
    sleeps."""
    import ctypes
    text, size = ctypes.create_string_buffer(64), ctypes.c_size_t(64)
    try:
        failed = ctypes.CDLL(None).sysctlbyname(b"kern.bootsessionuuid", text, ctypes.byref(size), None, ctypes.c_size_t(0))
    except (AttributeError, OSError):
        return ""
    return "" if failed else text.value.decode("ascii", "replace").strip()


class StateStore:
    """The records under state/ of one root. Reads refuse what is damaged; writes are atomic and grouped by `commit`."""

    def __init__(self, root: str, writable: bool = True, now: Callable[[], float] = time.time) -> None:
        self.root = root
        self.folder = os.path.join(root, "state")
        self.writable = writable
        self.now = now
        self.memo: Dict[str, Any] = {}      # what need not be found out twice in a run
        self.lock: Optional[Callable[[str], Any]] = None    # makes the kernel lock of a given name, where several runs may write
        self.commit = durable_files.Commit()
        # The content of outcomes, too, is synced with the group; only where the file system keeps the order of names.
        self.in_groups = False

    def path(self, name: str) -> str:
        return os.path.join(self.folder, name)

    def prepare(self) -> None:
        """Create state/ and locks/ where they are missing."""
        durable_files.make_folder(self.folder, self.commit)
        durable_files.make_folder(os.path.join(self.root, "locks"), self.commit)

    def read(self, name: str) -> Optional[Json]:
        """Return a record, None if there is none. Raises: StateError; the damaged file is then set aside."""
        data = self._data(name)
        return None if data is None else self._checked(name, *_parsed(data))

    def _checked(self, name: str, record: Any, problem: str) -> Json:
        if not problem and record["schema"] > SCHEMA_VERSION:
            raise StateError("state/%s was written by a newer runner (schema %d, this one knows %d); use that one" % (name,
                record["schema"], SCHEMA_VERSION))
        if problem:
            raise StateError("state/%s %s; %s" % (name, problem, self.set_aside(name)))
        return record       # type: ignore[no-any-return]

    def _data(self, name: str) -> Optional[bytes]:
        path = self.path(name)
        try:
            with naming(path), open_file(path) as file:
                data: bytes = file.read()
                return data
        except FileNotFoundError:
            return None

    def set_aside(self, name: str) -> str:
        """Rename a damaged file to NAME.corrupt-<time>; return what to tell the user."""
        if not self.writable:
            return "a run would set it aside"
        aside = "%s.corrupt-%s" % (name, time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(self.now())))
        count = 1
        while is_there(self.path(aside)):
            count += 1
            aside = "%s-%d" % (aside.rpartition("Z")[0] + "Z", count)
        replace(self.path(name), self.path(aside))
        durable_files.sync_folder(self.folder)
        return "it was set aside as state/%s; run again to do the work anew without it" % aside

    def write(self, name: str, record: Json, temporary: str = "") -> List[Piece]:
        """Store a record, return its bytes in pieces: on the disk on return, its name when `commit` is flushed. temporary: as in
        write_atomic()."""
        pieces = pretty_pieces(dict({"schema": SCHEMA_VERSION}, **record))
        durable_files.write_atomic(self.path(name), pieces, self.commit, temporary=temporary)
        return pieces

    def write_metrics(self, run_id: str, metrics: Json) -> Json:
        """Store the metrics of a run that ends; return what its record says of them."""
        pieces = self.write("metrics_%s.json" % run_id, metrics, "metrics.json")
        return {"bytes": sum(map(len, pieces)), "sha256": digest_of(pieces)}

    def write_stage(self, stage: str, record: Json) -> None:
        """Store a stage's record, a line for each field.

        "running" is as durable as by write(). An outcome is seen by any reader on return and, where `in_groups`, durable with the
        next flush of `commit`, content and name; if the power goes before, stage() finds "running", as after a kill.
        """
        name = "stage_%s.json" % stage
        stored = dict({"schema": SCHEMA_VERSION}, **record)
        try:
            data = by_fields(stored).encode("utf-8")
        except UnicodeEncodeError:      # it names files whose names are not UTF-8
            data = by_fields(stage_records.with_spelled_paths(stored)).encode("utf-8", "backslashreplace")
        is_kept = self.in_groups and record["lastStatus"] != "running" and self._keep(name)
        durable_files.write_atomic(self.path(name), data, self.commit, durable=not is_kept)
        self.commit.is_timed = True
        if is_kept:
            self.commit.add_file(self.path(name))
        else:
            # Of a run that died: from now on it would tell of what has been done since.
            remove_quietly(self.path(BEFORE % name))

    def _keep(self, name: str) -> bool:
        """Keep a record, which is durable, beside the next one until `commit` is flushed; False where that cannot be: then that
        must be durable at once.

        What a run has kept that died stays as it is, for whether the record itself is durable nobody knows then.
        """
        kept = self.path(BEFORE % name)
        try:
            os.link(self.path(name), kept)
        except OSError:
            return False
        self.commit.keep(kept)
        return True

    def sync_stage(self, stage: str, is_of_earlier_boot: bool = False) -> None:
        """Make a stage record durable with the next flush of `commit` if the run that wrote it may have died, or may die, before
        that did so.

        What was kept beside it stays: if a sync of that run has failed, a second one would tell nothing. is_of_earlier_boot: the
        record has been read, whole, and was written before the machine was started; so it comes from the disk, and what was kept
        is of no use any more.
        """
        name = "stage_%s.json" % stage
        if is_of_earlier_boot:
            remove_quietly(self.path(BEFORE % name))
        elif is_there(self.path(BEFORE % name)):
            self.commit.add_file(self.path(name))

    def stage_names(self) -> List[str]:
        """Return the names of the stages that have a record, sorted."""
        names = os.listdir(self.folder) if os.path.isdir(self.folder) else []
        return sorted(name[len("stage_"):-len(".json")] for name in names if name.startswith("stage_") and name.endswith(".json"))

    def stage(self, stage: str) -> Optional[Json]:
        """Return a stage's record, None if there is none; for an outcome that the power took before it was durable what was kept
        beside it.

        Raises: StateError, as read() does.
        """
        data = self._data("stage_%s.json" % stage)
        return None if data is None else self._stage_of(stage, data)[0]

    def maker(self, stage: str) -> Optional[Json]:
        """Return what others ask of a stage's record (stage_records.as_maker()), None if there is none; it is not to be
        changed. Raises: StateError, as stage() does.

        All that read what the stage makes ask, and again under their locks. Another run may write the record at any time, and then
        its stamp may be what it was: so its bytes are read each time, and parsed only if they are others than the last time.
        """
        data = self._data("stage_%s.json" % stage)
        if data is None:
            return None
        known = self.memo.setdefault("makers", {})      # stage -> its record's bytes, what they say
        if stage in known and known[stage][0] == data:
            return known[stage][1]      # type: ignore[no-any-return]
        record, is_kept = self._stage_of(stage, data)
        found = stage_records.as_maker(record)
        if not is_kept:                 # that is another file's to say
            known[stage] = data, found
        return found

    def _stage_of(self, stage: str, data: bytes) -> Tuple[Json, bool]:
        """Return (a stage's record, *data* being the bytes of its file; whether it is what was kept beside that)."""
        name = "stage_%s.json" % stage
        found, problem = _parsed(data)
        kept = self._data(BEFORE % name) if found is None else None
        record = self._checked(name, *((found, problem) if kept is None else _parsed(kept)))
        problem = stage_records.record_problem(record, stage)
        if problem:
            raise StateError("state/%s is damaged (%s); %s" % (name, problem, self.set_aside(name)))
        return stage_records.with_real_paths(record) if b'"/' in (data if kept is None else kept) else record, kept is not None

    def secret(self) -> bytes:
        """Return the random key for digests of variables' values, made on first use (state/env.key, mode 0600)."""
        path = self.path("env.key")
        try:
            with naming(path), open_file(path) as file:
                secret: bytes = file.read()
            if len(secret) == SECRET_BYTES:
                return secret
            raise StateError("state/env.key is damaged; %s" % self.set_aside("env.key"))    # a short key can be guessed
        except FileNotFoundError:
            if is_link(path):           # it is not replaced: what it leads to may be mounted again
                raise StateError("state/env.key is a link that leads nowhere: mount what it leads to, or remove the link, and run again") from None
            if not self.writable:
                return b""
        except PermissionError as error:
            if not self.writable:
                raise OSError(error.errno,
                              "only who runs the pipeline may read it, so nobody else can tell whether a stage with passEnv is up to date",
                              path) from error
            raise
        guard = self.lock("env.key") if self.lock is not None else None     # not ".guard": that is the guard file of a stage of that name
        if guard is not None:
            guard.acquire(WAIT_S, "state/env.key is held by another run for %d s; run again" % WAIT_S)
        try:
            if not is_there(path):      # of several runs at once, one makes it for all
                # From birth: a kill may come before any chmod.
                durable_files.write_atomic(path, os.urandom(SECRET_BYTES), self.commit, mode=0o600)
        finally:
            if guard is not None:
                guard.release()
        return self.secret()


def _parsed(data: bytes) -> Tuple[Any, str]:
    """Return (what the JSON text of a record says, None if it is none; what is wrong with it or "")."""
    try:
        record = loads(data.decode("utf-8"))
    except (ValueError, RecursionError):
        return None, "is damaged (not JSON)"
    is_record = isinstance(record, dict) and is_integer(record.get("schema"))
    return record, "" if is_record else "is not a record of this runner"


def find_run(store: StateStore, run_id: str, invocation: int) -> Optional[Json]:
    """Return the record of one invocation of a run: the latest, or an earlier one kept beside it. Raises: StateError, as
    StateStore.read(), also where its stages are of another form."""
    for name in ("run_%s.json" % run_id, "run_%s.%d.json" % (run_id, invocation)):
        record = store.read(name)
        if record is not None and record.get("runId") == run_id and record.get("invocation") == invocation:
            stages = record.get("stages")
            if not isinstance(stages, list) or not all(isinstance(one, dict) for one in stages):
                raise StateError("state/%s is damaged (its stages are of another form); %s" % (name, store.set_aside(name)))
            return record
    return None


def died_before_marker(store: StateStore, stage: str, record: Json) -> bool:
    """Tell whether the run that finished the stage came to its end between the stage record and the run record.

    The marker is written between these two: where the run record knows of the success, or that there was a marker when the dead run
    was closed, or a later run has restored it, somebody removed it.
    """
    if record.get("markerRestored") is True:
        return False
    run_id, invocation = str(record.get("lastRunId")), record.get("lastInvocation", 0)
    run = find_run(store, run_id, invocation) if is_integer(invocation) and "\0" not in run_id else None
    return run is not None and not any(
        one.get("stage") == stage and one.get("status") == "ok" and (not one.get("recovered") or one.get("hadMarker") is True) for one in run["stages"])
