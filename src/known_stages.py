"""The stages of which the index has told that they are up to date, in a run that has others to look at.

Above quick_index and below the engine.

    index -> KnownStages.up_to_date(places)    which of these stages are; the result of each is KNOWN
          -> entries(results)                  entries of such and of other results, in order, as one ready text
          -> spec, needs                       the checked spec, and which stages wait for which, from beside the index
"""
from __future__ import annotations

import marshal
import os
import zlib
from itertools import repeat

import quick_index
from model import Chunks, Offline, PipelineSpec, Retry, StageResult, StageSpec
from primitives import compact, open_file, pretty, ready_array
from state_store import StateError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, List, Optional, Sequence, Set

    from primitives import Ready
    Json = Dict[str, Any]


BLOCK = 20000               # stages looked at again in one go; between two blocks the run may be stopped
FEW = 100                   # stages: their locks are looked for one by one
MANY_KNOWN = 8              # times as many stages are known as looked at: then the metrics file is worth patching
# Of every stage that the index answers for; the rest stands at the stage's place in the index.
KNOWN = StageResult.of("", "skipped", "")


class KnownStages:
    """What the index answers in one run. A stage is looked at again at its turn once something has been run: its inputs may be
    new."""

    def __init__(self, index: quick_index.Index, pipeline: str, root: str) -> None:
        self.index, self.pipeline, self.root = index, pipeline, root
        self.about: Json = index.about
        self.spec: Optional[PipelineSpec] = None
        self.needs: Optional[Dict[str, List[str]]] = None      # of a graph: of the stages that need others, which ones
        self.links: Any = None              # upon which that depends, see stage_waits.Waits.links()
        self._load_spec()
        self.stale: Set[int] = set()        # to be told, before anything is asked

    def up_to_date(self, places: Sequence[int], look_again: bool) -> List[int]:
        """Return which of the stages at *places* (sorted) are up to date; the others must be looked at."""
        known = [place for place in places if place not in self.stale]
        if look_again and known:
            self.stale |= self._changed(known)
            known = [place for place in known if place not in self.stale]
        return known

    def up_to_date_from(self, first: int, look_again: bool) -> int:
        """Return up to which place (itself not included) the stages from place *first* on are up to date, BLOCK at most.

        Nothing may be at work meanwhile: then one look at all of them is as good as one at each in its turn.
        """
        last = first
        while last < len(self.index.names) and last - first < BLOCK and last not in self.stale:
            last += 1
        if look_again and first < last:
            changed = self._changed(range(first, last))
            self.stale |= changed
            last = min(changed, default=last)
        return last

    def _changed(self, places: Sequence[int]) -> Set[int]:
        """Return which of the stages at *places* are not what they were, or held by somebody; all of them, if what all depend on
        (a processor, say, that an earlier stage has made) is not what it was."""
        if self.index.is_void(self.root):
            self.stale.update(range(len(self.index.names)))
            return set(places)
        return self.index.changed_among(self.root, places) | self._held(places)

    def _held(self, places: Sequence[int]) -> Set[int]:
        folder = os.path.join(self.root, "locks")
        if len(places) > FEW:           # the folder has a file for each stage that was ever run
            there = {name for name in os.listdir(folder) if name.endswith(".lock")}
            return {place for place in places if self.index.names[place] + ".lock" in there} if there else set()
        return {place for place in places if os.path.isdir(os.path.join(folder, self.index.names[place] + ".lock"))}

    def looked_at(self, results: Sequence[Optional[StageResult]]) -> Optional[Dict[int, StageResult]]:
        """Return {place: result} of the stages that the index did not answer for; None if they are not the smaller part of all
        stages."""
        found = {place: result for place, result in enumerate(results) if result is not KNOWN and result is not None}
        return found if len(found) <= len(results) // MANY_KNOWN and None not in results else None

    def entries(self, results: Sequence[Optional[StageResult]], entry_of: Callable[[StageResult], Json], is_metrics: bool) -> Ready:
        """Return the entries of a run record, or of metrics, as one text; entry_of() makes those that the index has not.

        results: one for each place, None where there is none yet. Raises: StateError if somebody has written to the index
        meanwhile.
        """
        if self.index.is_damaged:
            raise StateError("state/%s was changed by somebody while this run was at work; run again" % os.path.basename(
                quick_index.index_path(self.root, self.pipeline)))
        shown = self._pieces("metrics" if is_metrics else "pretty", results, lambda result: pretty(entry_of(result), 2))
        return ready_array(shown, () if is_metrics else self._pieces("canonical", results, lambda result: compact(entry_of(result), True)))

    def _pieces(self, kind: str, results: Sequence[Optional[StageResult]], text_of: Callable[[StageResult], str]) -> List[Any]:
        """Return the texts of results; those of neighbours in the index in one piece."""
        pieces: List[Any] = []
        first = 0                       # of the neighbours
        for place, result in enumerate(results):
            if result is not KNOWN:
                if first < place:
                    pieces.append(self.index.piece(kind, first, place))
                if result is not None:
                    pieces.append(text_of(result).encode("utf-8") + quick_index.BETWEEN[kind])
                first = place + 1
        return pieces + [self.index.piece(kind, first, len(results))] if first < len(results) else pieces

    def _load_spec(self) -> None:
        """Take the checked spec of the pipeline file, if it is there, whole."""
        try:
            with open_file(spec_path(self.root, self.pipeline)) as file:
                data = file.read()
            if [len(data), zlib.crc32(data)] == self.index.about["spec"]:
                plain, self.needs, self.links = marshal.loads(data)
                self.spec = spec_from_plain(plain)
        except (OSError, ValueError, EOFError, TypeError, KeyError):
            pass


def spec_path(root: str, pipeline: str) -> str:
    """Return where the checked spec of a pipeline file is kept."""
    return quick_index.index_path(root, pipeline) + ".spec"


def spec_to_plain(spec: PipelineSpec) -> Any:
    """Return a spec as plain values, which marshal can store; of the stages a pair for each field: (value, None) if all have the
    same, (None, values of each) if not. Thousands of stages are soon made of that."""
    stages = [stage._replace(retry=tuple(stage.retry), chunks=None if stage.chunks is None else tuple(stage.chunks)) for stage in spec.stages]
    columns = [(values[0], None) if _are_same(values) else (None, values) for values in map(list, zip(*stages))]
    return tuple(spec._replace(stages=(len(stages), columns), offline=tuple(spec.offline)))


def _are_same(values: Sequence[Any]) -> bool:
    """Tell whether all values are the same, type for type: True is no 1."""
    first, text = values[0], marshal.dumps(values[0])
    return all(value is first or value == first and marshal.dumps(value) == text for value in values)


def spec_from_plain(plain: Any) -> PipelineSpec:
    """Return the spec that spec_to_plain() was given; stages share what is the same for all."""
    spec = PipelineSpec._make(plain)
    count, columns = spec.stages
    columns[StageSpec._fields.index("retry")] = _made(Retry._make, columns[StageSpec._fields.index("retry")])
    columns[StageSpec._fields.index("chunks")] = _made(lambda value: None if value is None else Chunks._make(value),
                                                       columns[StageSpec._fields.index("chunks")])
    rows = zip(*[repeat(value, count) if values is None else values for value, values in columns])
    stages = tuple(map(tuple.__new__, repeat(StageSpec), rows))         # not _make(): there are thousands
    return spec._replace(stages=stages, offline=Offline._make(spec.offline))


def _made(make: Callable[[Any], Any], column: Any) -> Any:
    value, values = column
    return (make(value), None) if values is None else (None, list(map(make, values)))
