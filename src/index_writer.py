"""How the index comes to be: what a run that skipped stages has looked at, signed.

Above quick_run, program_scan and known_stages, below the runner, which loads it when stages were skipped that no index answers
for.

A path is believed only if its newest time stamp is older than the run itself, by the file system's clock: then any later change
gets another stamp. What is younger is left to the next run that skips. That it is what the run has read does not follow from
its age: where a folder above it, or a link to one, is exchanged, old files take the place of others. So files must have the
signatures with which they were read, and all else is looked at once more after it was signed.
"""
from __future__ import annotations

import marshal
import os
import zlib
from array import array
from itertools import accumulate

import durable_files
import file_digests
import file_systems
import known_stages
import path_signs
import program_scan
import quick_index
import quick_run
import stage_markers
from console import printable
from primitives import compact, is_link, pretty
from state_store import StateError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, Iterable, List, Optional, Sequence, Set, Tuple

    from engine import Run
    from model import PipelineSpec, StageResult, StageSpec
    from primitives import Piece
    Json = Dict[str, Any]
    EntryOf = Callable[[StageResult], Json]

# Not the same in each run.
PER_RUN = ("runId", "invocation", "state", "startedAt", "endedAt", "durationMs", "stages", "timestamp", "durationSec")


class Begin:
    """The begin of a run, by the file system's clock where that can be had. A path is settled if it is older."""

    def __init__(self, told: Sequence[Tuple[int, int, int]]) -> None:
        """*told*: (time by the file system's clock, by ours, its device), each reckoned back at another time; a clock may have
        been set meanwhile."""
        self.by_file_system, self.by_clock = min(one[0] for one in told), min(one[1] for one in told)
        self.device = path_signs.in_63_bits(told[0][2])

    def is_settled(self, signs: Sequence[int]) -> bool:
        """Tell whether all of *signs* were so before the run."""
        width = path_signs.WIDTH
        for place in range(0, len(signs), width):
            mtime, ctime, _, _, device = sign = tuple(signs[place:place + width])
            if sign == path_signs.UNKNOWN:
                return False
            doubt = file_systems.doubt_of(device)
            if doubt and file_digests.is_untold(doubt, mtime, ctime):
                return False
            is_ours = device == self.device
            is_coarse = not is_ours or file_digests.may_be_coarse(mtime, ctime)
            is_apart = not is_ours and doubt not in file_systems.OWN_CLOCK
            margin = file_digests.APART_NS if is_apart else file_digests.COARSE_NS if is_coarse else file_digests.FRESH_NS
            newest = file_digests.newest_time(doubt, mtime, ctime)
            if sign != path_signs.ABSENT and newest >= (self.by_file_system if is_ours else self.by_clock) - margin:
                return False
        return True


class _Signed:
    """Paths with their signs, those behind links included.

    needed: that were there when it was decided; others: of which it matters, too, that they are not there.
    """

    def __init__(self, root: str, needed: Sequence[str], others: Iterable[str] = ()) -> None:
        self.needed = frozenset(needed)
        self.paths = list(dict.fromkeys([*needed, *others]))
        full = [os.path.join(root, path) for path in self.paths]
        self.signs = path_signs.sign(full)
        self.followed = [path for path, whole in zip(self.paths, full) if is_link(whole)]
        self.followed_signs = path_signs.sign([os.path.join(root, path) for path in self.followed], look=os.stat)

    def behind(self) -> Dict[str, List[int]]:
        """Return {path: sign}, of a link that of what is behind it."""
        return _signs_of((self.paths, self.signs), (self.followed, self.followed_signs))

    def is_settled(self, begin: Begin) -> bool:
        return begin.is_settled(self.signs) and begin.is_settled(self.followed_signs) and not self._has_lost_some()

    def _has_lost_some(self) -> bool:
        """Tell whether one of those that were there has gone since: it has no time that would show it."""
        return any(path in self.needed and _sign_at(signs, place) == list(path_signs.ABSENT)
                   for paths, signs in ((self.paths, self.signs), (self.followed, self.followed_signs)) for place, path in enumerate(paths))


def is_possible(spec: PipelineSpec, options: Any) -> bool:
    """Tell whether runs like this one can be told from an index: all stages, nothing set or forced, nothing done at their
    ends."""
    return not (options.force or options.only or options.first or options.last or options.params or options.key or spec.seal_key
                or spec.offline.require == "kernel" or spec.on_failure or spec.on_success or os.environ.get(quick_run.SWITCH) == "off")


def save(run: Run, record: Json, entry_of: EntryOf, metrics_entry_of: EntryOf) -> None:
    """Write the index, if there is more to put into it than the last one held. A cache: what goes wrong is not told.

    *run* is the runner's Run at its end, *record* what it has written; the functions make a result's entries in run record and
    metrics.
    """
    try:
        _save(run, record, entry_of, metrics_entry_of)
    except (OSError, ValueError, file_digests.FileChanged, StateError):
        # A full disk, a name too long, a folder that cannot be listed: the next run goes the long way.
        pass


def _save(run: Run, record: Json, entry_of: EntryOf, metrics_entry_of: EntryOf) -> None:
    results = run.results
    if not is_possible(run.spec, run.options) or len(results) != len(run.spec.stages):
        return
    begin = Begin([run.begun, run.process_begin()])
    new = {}
    for place, (stage, result) in enumerate(zip(run.spec.stages, results)):
        if result.status == "skipped" and result is not known_stages.KNOWN and can_be_covered(stage):
            signed = _stage_signed(run, begin, stage, result)
            if signed is not None:
                new[place] = signed
    texts = {place: _texts(results[place], entry_of, metrics_entry_of) for place in new}
    lock = run.store.lock("index.files") if new and run.store.lock is not None else None
    if lock is None or not lock.try_acquire():
        return
    try:
        index = _build(run, begin, new, texts, record)      # which writes the checked spec beside it
        if index is not None:
            durable_files.write_atomic(quick_index.index_path(run.root, run.spec.path), quick_index.to_bytes(index), durable=False)
    finally:
        lock.release()


def can_be_covered(stage: StageSpec) -> bool:
    """Tell whether a skip of this stage depends on nothing but paths: not on tasks, nor on how long ago something was."""
    return not (stage.for_each or stage.chunks or stage.settle_s or stage.reconcile)


def _stage_signed(run: Run, begin: Begin, stage: StageSpec, result: StageResult) -> Optional[_Signed]:
    """Return what the stage's skip depends on, None if that cannot be signed yet, or is not what the decision was made of."""
    looked = run.looked[stage.name]
    own = ["%s/%s" % (stage.output_dir, one["path"]) for one in result.outputs]
    own += ["%s/.%s.done" % (stage.output_dir, stage.name), "state/stage_%s.json" % stage.name]
    signed = _Signed(run.root, looked.files + own, sorted(looked.seen))
    if not signed.is_settled(begin) or not _are_as_read(looked.files, looked.stamps, signed.behind()) or _found(run, stage) != looked[:2]:
        return None
    return signed if _is_made(run, stage, result, signed, looked.stamps) else None


def _found(run: Run, stage: StageSpec) -> Tuple[List[str], Set[str]]:
    """Return which files the stage's globs name now, and what else that depends on."""
    files: Dict[str, None] = {}
    seen: Set[str] = set()
    for pattern in stage.inputs + stage.watch:
        files.update(dict.fromkeys(file_digests.expand(run.root, pattern, seen)))
    return list(files), seen


def _is_made(run: Run, stage: StageSpec, result: StageResult, signed: _Signed, stamps: Dict[str, List[int]]) -> bool:
    """Tell whether outputs, marker and record of a skipped stage are what they were when it was decided; of a link as an output
    the name of its target counts."""
    signs, links = signed.behind(), set(signed.followed)
    for output in result.outputs:
        path = "%s/%s" % (stage.output_dir, output["path"])
        if not (file_digests.output_content(os.path.join(run.root, path)) == (output["bytes"], output["sha256"]) if path in links
                else _are_as_read([path], stamps, signs)):
            return False
    record = run.store.stage(stage.name)
    return (record is not None and record["lastStatus"] == "ok" and not record.get("cleaned")
            and (record["idempotencyKey"], record["outputs"], record.get("counts", {})) == (result.key, result.outputs, result.counts)
            and result.evidence["madeBy"] == {"runId": record.get("lastRunId"), "invocation": record.get("lastInvocation")}
            and stage_markers.read_marker(stage_markers.marker_path(run.root, stage.output_dir, stage.name)) == result.key)


def _are_as_read(paths: Iterable[str], stamps: Dict[str, List[int]], signs: Dict[str, List[int]]) -> bool:
    """Tell whether files have the signatures with which they were read. signs: as of _Signed.behind()."""
    for path in paths:
        size, mtime, ctime, inode, device = stamps.get(path) or path_signs.UNKNOWN
        if signs.get(path) != [mtime, ctime, path_signs.in_63_bits(inode), size, path_signs.in_63_bits(device)]:
            return False
    return True


def _common_signed(run: Run, begin: Begin) -> Optional[_Signed]:
    """Return what all stages depend on, None if that cannot be signed yet, or is not what this run has read of it."""
    common = _found_common(run)
    read, others, folders = common
    signed = _Signed(run.root, read + others, folders)
    if not signed.is_settled(begin) or _found_common(run) != common or not _are_as_read(read, run.scanned, signed.behind()):
        return None
    is_same = set(read) == set(run.scanned) and file_digests.hash_file(run.spec.path)[0] == run.spec.sha256
    return signed if is_same else None


def _found_common(run: Run) -> Tuple[List[str], List[str], List[str]]:
    """Return (all that the scan looks at now, what else all stages depend on, the folders that it is found in)."""
    _look_anew(run)
    seen: Set[str] = set()
    read = program_scan.runner_files() + program_scan.files_in_bin(run.root, seen)
    for processor in dict.fromkeys(stage.processor for stage in run.spec.stages):
        read += [processor] + program_scan.local_modules(run.digests, processor)
    others = [run.spec.path] + program_scan.runner_folders()
    others += ["state/env.key"] if any(stage.pass_env is not None for stage in run.spec.stages) else []
    return read, others, sorted(seen) + sorted(folder or "." for folder in run.digests.folders)


def _look_anew(run: Run) -> None:
    run.digests.used.clear()
    run.digests.folders.clear()


def _has_read(run: Run, stage: StageSpec, signs: Dict[str, List[int]]) -> bool:
    """Tell whether the stage's decision was made of that very processor and these modules that the common part of the index has
    signed."""
    looked = run.looked[stage.name]
    return (looked.modules == program_scan.local_modules(run.digests, stage.processor)
            and _are_as_read([stage.processor] + looked.modules, looked.stamps, signs))


def _build(run: Run, begin: Begin, new: Dict[int, _Signed], texts: Dict[int, List[Piece]], record: Json) -> Optional[quick_index.Index]:
    index, old = quick_index.Index(), run.known.index if run.known is not None else None
    if old is not None:
        _look_anew(run)
        if old.is_void(run.root):
            return None
        index.about, index.common, index.common_signs = old.about, old.common, old.common_signs
        followed = [(-1, path, _sign_at(old.followed_signs, place)) for place, path in enumerate(old.followed) if old.owners[place] == -1]
    else:
        common = _common_signed(run, begin)
        if common is None:
            return None
        index.common, index.common_signs = common.paths, _view(common.signs)
        followed = [(-1, path, _sign_at(common.followed_signs, place)) for place, path in enumerate(common.followed)]
        index.about = _about(run, record)
    signs = _signs_of((index.common, index.common_signs), ([path for _, path, _ in followed], [number for _, _, sign in followed for number in sign]))
    new = {place: signed for place, signed in new.items() if _has_read(run, run.spec.stages[place], signs)}
    if not new:
        return None
    _Sections(run, new, texts, old, followed).put_into(index)
    return index


def _view(numbers: Iterable[int]) -> memoryview:
    return memoryview(array("q", numbers))


def _signs_of(*parts: Tuple[Sequence[str], Sequence[int]]) -> Dict[str, List[int]]:
    """Return {path: sign} of (paths, their signs); of a path that is in several the last one's."""
    return {path: _sign_at(signs, place) for paths, signs in parts for place, path in enumerate(paths)}


def _sign_at(signs: Sequence[int], place: int) -> List[int]:
    return list(signs[path_signs.WIDTH * place:path_signs.WIDTH * (place + 1)])


class _Sections:
    """The sections of an index that hold something of each stage, put together from the last index and from what was signed
    anew."""

    def __init__(self, run: Run, new: Dict[int, _Signed], new_texts: Dict[int, List[Piece]], old: Optional[quick_index.Index],
                 followed: List[Tuple[int, str, List[int]]]) -> None:
        self.run, self.new, self.new_texts, self.old, self.followed = run, new, new_texts, old, followed
        self.paths: List[str] = []
        self.starts, self.signs = array("q", (0,)), array("q")
        self.covered = bytearray()
        self.texts: Dict[str, List[Piece]] = {name: [] for name in quick_index.TEXTS}
        self.ends = {name: array("q", (0,)) for name in quick_index.TEXTS}
        self.kept = {} if old is None else _places_by_owner(old)

    def put_into(self, index: quick_index.Index) -> None:
        results = self.run.results
        place = 0
        while place < len(results):
            first = place
            while place < len(results) and place not in self.new and results[place] is known_stages.KNOWN:
                place += 1
            if first < place:
                self._add_kept(first, place)
            elif place in self.new:
                self._add_new(place)
                place += 1
            else:
                self._end_stage(0, (b"",) * len(quick_index.TEXTS))
                place += 1
        index.names = [stage.name for stage in self.run.spec.stages]
        index.paths, index.cuts = stored_paths(self.paths)
        index.starts, index.signs, index.covered = memoryview(self.starts), memoryview(self.signs), bytes(self.covered)
        self.followed.sort(key=lambda one: one[0])
        index.followed = [path for _, path, _ in self.followed]
        index.owners = _view([owner for owner, _, _ in self.followed])
        index.followed_signs = _view([number for _, _, sign in self.followed for number in sign])
        for name in quick_index.TEXTS:
            setattr(index, name, memoryview(b"".join(self.texts[name])))
            setattr(index, "ends_" + name, memoryview(self.ends[name]))

    def _add_new(self, place: int) -> None:
        signed = self.new[place]
        self.paths += signed.paths
        self.signs.extend(signed.signs)
        self.followed += [(place, path, _sign_at(signed.followed_signs, number)) for number, path in enumerate(signed.followed)]
        self._end_stage(1, self.new_texts[place])

    def _add_kept(self, first: int, last: int) -> None:
        """Take over the stages first ... last-1 from the last index; their places are the same there."""
        old = self.old
        assert old is not None
        begin, end = old.starts[first], old.starts[last]
        self.starts.extend(_moved(old.starts[first + 1:last + 1], len(self.paths) - begin))
        self.paths += old.all_paths()[begin:end]
        self.signs.frombytes(old.signs[path_signs.WIDTH * begin:path_signs.WIDTH * end].tobytes())
        for place in [place for place in self.kept if first <= place < last]:
            self.followed += [(place, old.followed[one], _sign_at(old.followed_signs, one)) for one in self.kept.pop(place)]
        self.covered += b"\1" * (last - first)
        for name in quick_index.TEXTS:
            ends = getattr(old, "ends_" + name)
            self.ends[name].extend(_moved(ends[first + 1:last + 1], self.ends[name][-1] - ends[first]))
            self.texts[name].append(old.piece(name, first, last))

    def _end_stage(self, covered: int, texts: Sequence[Piece]) -> None:
        self.starts.append(len(self.paths))
        self.covered.append(covered)
        for name, data in zip(quick_index.TEXTS, texts):
            self.texts[name].append(data)
            self.ends[name].append(self.ends[name][-1] + len(data))


def stored_paths(paths: Sequence[str]) -> Tuple[memoryview, memoryview]:
    """Return (paths, cuts) as an index has them."""
    groups = ["\0".join(paths[first:first + quick_index.GROUP]) + "\0" for first in range(0, len(paths), quick_index.GROUP)]
    stored = [group.encode("utf-8", "surrogateescape") for group in groups]
    return memoryview(b"".join(stored)), _view(accumulate(map(len, stored), initial=0))


def _moved(numbers: memoryview, by: int) -> List[int]:
    return [number + by for number in numbers.tolist()] if by else numbers.tolist()


def _texts(result: StageResult, entry_of: EntryOf, metrics_entry_of: EntryOf) -> List[Piece]:
    """Return what stands of a skipped stage in the index, in the order of quick_index.TEXTS."""
    entry, line = entry_of(result), "[SKIP] %s (%s)" % (result.name, result.reason)
    texts = pretty(entry, 2), compact(entry, True), pretty(metrics_entry_of(result), 2), printable(line) + "\n"
    return [text.encode("utf-8", "surrogateescape") + quick_index.BETWEEN[name] for name, text in zip(quick_index.TEXTS, texts)]


def _places_by_owner(index: quick_index.Index) -> Dict[int, List[int]]:
    places: Dict[int, List[int]] = {}
    for place, owner in enumerate(index.owners):
        places.setdefault(owner, []).append(place)
    return places


def _about(run: Run, record: Json) -> Json:
    patterns = sorted({pattern for stage in run.spec.stages for pattern in stage.pass_env or ()})
    isolation = dict(record, isolation=run.idle_isolation)
    counts = {"totalStages": len(run.results), "okStages": 0, "skippedStages": len(run.results), "failedStages": 0}
    return {
        "pipeline": run.spec.path, "root": run.root, "passEnv": patterns, "surroundings": quick_run.surroundings(patterns, run.root),
        "warnings": run.console.warned, "spec": _save_spec(run), "record": _fields(isolation), "metrics": _fields({**run.records.metrics, **counts}),
        "scan": run.idle_isolation["scan"], "about": run.about}


def _fields(record: Json) -> List[Any]:
    """Return [name, value] of a record's fields in order; null for what each run fills in."""
    return [[name, None if name in PER_RUN else value]
            for name, value in record.items() if name not in ("schema", "metrics", "prevRunHash", "runHash")]


def _save_spec(run: Run) -> List[int]:
    """Keep the checked spec beside the index, and of a graph which stages wait for which; return its bytes and CRC-32."""
    needs = {name: before for name, before in (run.order.needs or {}).items() if before} if run.spec.order == "graph" else None
    links = run.waits.links() if needs is not None else None
    try:
        data = marshal.dumps((known_stages.spec_to_plain(run.spec), needs, links))
        durable_files.write_atomic(known_stages.spec_path(run.root, run.spec.path), data, durable=False)
        return [len(data), zlib.crc32(data)]
    except (OSError, ValueError):
        return []
