"""A run in which nothing changed, told from the index alone, before the rest of the runner is loaded.

Above the leaves, run_ledger and quick_index, below the runner, which asks attempt() first of all.

    argv -> the index of the pipeline file -> every path that a skip depends on is what it was
         -> the same lock, invocation, records, ledger entry and lines as by the long way

Whatever is not as usual takes the long way: an option that changes what is done, another interpreter, another start of the
machine, a variable of passEnv, a lock folder of a stage. What has changed in a few stages only is told as Found, and the long way
takes the other stages' answers from it. PIPELINE_INDEX=off turns the index off.
"""
from __future__ import annotations

import os
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, List, Optional, Sequence, Set, Union

    from quick_index import Index
    Json = Dict[str, Any]
    Prepare = Callable[[Index, str, str], Any]

SWITCH = "PIPELINE_INDEX"   # "off": for comparing both ways
PLAIN_OPTIONS = ("--pipeline", "--root", "--run-id", "--jobs")      # they do not change what a run does in which nothing changed
NAME_CHARACTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-")


class Found:
    """What the index says. stale: the stages that must be looked at; prepared: if there are any, what prepare() has returned, see
    attempt()."""

    def __init__(self, index: Index, root: str, stale: List[int], prepared: Any) -> None:
        self.index, self.root, self.stale, self.prepared = index, root, frozenset(stale), prepared


class Clock:
    """Time, for locks that are held for moments; nobody asks this run to stop but by ending it."""

    monotonic, time, wait = staticmethod(time.monotonic), staticmethod(time.time), staticmethod(time.sleep)


def attempt(argv: Sequence[str], prepare: Prepare) -> Union[None, int, BaseException, Found]:
    """Do the run that *argv* asks for, if the index says that nothing changed.

    Returns its exit code; what it ended with; Found if something changed; None if the index says nothing.
    prepare(index, pipeline, root): makes ready for a run in which something changed, once that is known; most often another
    process looks at paths meanwhile.
    """
    started = time.monotonic(), time.time()
    try:
        options = plain_options(argv)
        if options is None or os.environ.get(SWITCH) == "off":
            return None
        from primitives import in_real_folder, real_folder
        pipeline = in_real_folder(options["--pipeline"])
        root = real_folder(options["--root"]) if "--root" in options else os.path.dirname(pipeline)
        found = look(pipeline, root, prepare)
        if found is None or found.stale:
            return found
        return _Quick(found, options.get("--run-id"), started).run()
    except BaseException as error:      # the runner says it as it says all others
        return error


def plain_options(argv: Sequence[str]) -> Optional[Dict[str, str]]:
    """Return the options of a command line that has none but PLAIN_OPTIONS, flawless; None for any other."""
    options: Dict[str, str] = {}
    words = iter(argv)
    for word in words:
        name, equals, value = word.partition("=")
        if name not in PLAIN_OPTIONS or name in options:
            return None
        options[name] = value if equals else next(words, "")
        if not options[name]:
            return None
    jobs, run_id = options.get("--jobs", "1"), options.get("--run-id", "run")
    if not (jobs.isascii() and jobs.isdigit() and len(jobs) < 10 and int(jobs)):
        return None
    if len(run_id) > 64 or run_id[0] in "_-" or not NAME_CHARACTERS.issuperset(run_id) or run_id.lower()[:3] in (
        "con", "prn", "aux", "nul", "com", "lpt"):
        return None                     # a name that the long way may refuse
    options.setdefault("--pipeline", "pipeline.json")
    return options


def look(pipeline: str, root: str, prepare: Prepare) -> Optional[Found]:
    """Return what the index says of a pipeline file now, None if it says nothing. prepare: see attempt()."""
    import quick_index
    if not os.path.isdir(os.path.join(root, "locks")):
        return None                     # the long way makes it
    index = quick_index.load(quick_index.index_path(root, pipeline), mapped=True)
    if index is None or index.about["pipeline"] != pipeline or index.about["root"] != root:
        return None
    locked: Set[str] = set()            # stages that somebody holds, or died with
    fits: List[bool] = []
    prepared: List[Any] = []
    hashed = len(index.canonical) + len(index.metrics)

    def meanwhile() -> None:
        fits.append(index.about["surroundings"] == surroundings(index.about["passEnv"], root))
        locked.update(name[:-len(".lock")] for name in os.listdir(os.path.join(root, "locks")) if name.endswith(".lock"))
        _load(hashed)
        fits.append(index.has_whole_texts())

    def upon_change() -> None:
        prepared.append(prepare(index, pipeline, root))
    stale = index.changed_stages(root, meanwhile, upon_change)
    if stale is None or not all(fits):
        return None
    if locked:
        stale = sorted(set(stale) | {place for place, name in enumerate(index.names) if name in locked})
    if stale and not prepared:
        upon_change()
    return Found(index, root, stale, prepared[0] if stale else None)


def _load(hashed: int) -> None:
    """Load what the run needs for its records, while another process looks at paths. hashed: bytes that will be."""
    from primitives import BULK_BYTES, load_openssl
    if hashed >= BULK_BYTES:
        load_openssl()
    import console  # noqa: F401
    import prometheus_text  # noqa: F401
    import run_ledger  # noqa: F401


def surroundings(patterns: Sequence[str], root: str) -> Json:
    """Return what must be the same for an index to say anything: interpreter, place of the runner, start of the machine, who
    runs, variables let through.

    patterns: of all passEnv; the variables' values are a digest under the key of the root's own (state/env.key).
    """
    import environment
    import stage_locks
    import state_store
    return {"python": sys.version, "runner": os.path.dirname(os.path.abspath(__file__)), "platform": sys.platform, "byteOrder": sys.byteorder, "files": sys.getfilesystemencoding(),
            "boot": state_store.boot_id(), "host": stage_locks.host_name(), "user": environment.user_name(),
            "variables": _variables(patterns, root) if patterns else ""}


def _variables(patterns: Sequence[str], root: str) -> str:
    import environment
    from ledger_format import hmac_sha256
    from primitives import compact, open_file
    try:
        with open_file(os.path.join(root, "state", "env.key")) as file:
            secret = file.read(64)
    except OSError:
        return "no key"
    values = [[name, os.environ[name]] for name in environment.passed_names(patterns, os.environ)]
    return hmac_sha256(secret, b"index\0" + compact(values).encode("utf-8", "surrogateescape"))


class _Quick:
    """The run itself. What it writes and prints, and in which order, is what Run does with stages that are all skipped."""

    def __init__(self, found: Found, run_id: Optional[str], started: Any) -> None:
        import run_ledger
        import stage_locks
        import state_store
        from console import Console
        self.index, self.root = found.index, found.root
        self.run_id = run_id or state_store.new_run_id()
        self.started, self.started_utc = started
        self.console = Console()
        self.store = state_store.StateStore(found.root)
        self.run_lock = stage_locks.FileLock(found.root, self.run_id + ".run", Clock)
        self.store.lock = lambda name: stage_locks.FileLock(found.root, name, Clock)
        self.ledger = run_ledger.RunLedger(self.store, self.store.lock)
        self.metrics: Json = {}             # once they are written

    def run(self) -> int:
        import run_ledger
        import stage_locks
        from primitives import is_there
        self.console.warnings(self.index.about["warnings"])
        is_known = is_there(self.run_lock.path)
        self.run_lock.acquire(stage_locks.CHANGE_S, run_ledger.ID_IN_USE % self.run_id)
        try:
            self.ledger.prepare()
            invocation = run_ledger.next_invocation(self.ledger, self.run_id, is_known)
            self.ledger.tell(self.console.line)
            self.console.lines(self.index.lines_of(0, len(self.index.names)))
            self.store.commit.flush()
            self._end(invocation)
        finally:
            self.run_lock.release()
        return 0

    def _end(self, invocation: int) -> None:
        from state_store import utc_text
        record = self._with(self.index.about["record"], {
            "runId": self.run_id, "invocation": invocation, "state": "completed", "startedAt": utc_text(self.started_utc),
            "endedAt": utc_text(time.time()),
            "durationMs": int((time.monotonic() - self.started) * 1000), "stages": self._ready("pretty", "canonical")})
        self.ledger.end(record, lambda: self._write_metrics(record), lambda: self._tell_monitoring(record))
        self.ledger.tell(self.console.line, with_head=True)
        self.console.counts(self.run_id, "completed", 0, len(self.index.names), 0, time.monotonic() - self.started)

    def _write_metrics(self, record: Json) -> None:
        from state_store import utc_text
        self.metrics = self._with(self.index.about["metrics"], {
            "runId": self.run_id, "invocation": record["invocation"], "timestamp": utc_text(time.time()),
            "durationSec": round(time.monotonic() - self.started, 6), "stages": self._ready("metrics", "")})
        record["metrics"] = self.store.write_metrics(self.run_id, self.metrics)

    def _tell_monitoring(self, record: Json) -> None:
        import prometheus_text
        if not prometheus_text.refresh(self.store, record, self.metrics, self.index.names):
            # The spec's stages are those of the run before.
            prometheus_text.emit(self.store, record, self.metrics, None, self.console)

    def _ready(self, pretty: str, canonical: str) -> Any:
        from primitives import ready_array
        count = len(self.index.names)
        return ready_array([self.index.piece(pretty, 0, count)], [self.index.piece(canonical, 0, count)] if canonical else ())

    @staticmethod
    def _with(fields: Sequence[Any], known: Json) -> Json:
        return {name: known.get(name, value) for name, value in fields}
