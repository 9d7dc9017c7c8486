"""The stages of which the index has told that they are up to date, in a run that has others to look at.

Above quick_index and below the runner, which loads it only then.

    Found -> KnownStages.answer(stage) -> KnownResult      the stage's result; its entry's texts stand in the index
          -> entries()                                     entries of such and of other results, in order, as one ready text
          -> spec                                          the checked spec, from beside the index
"""
from __future__ import annotations

import marshal
import os
import zlib
from itertools import repeat
from operator import itemgetter

import quick_index
from model import Chunks, Offline, PipelineSpec, Retry, StageResult, StageSpec
from primitives import compact, pretty, ready_array

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, List, Optional, Sequence, Set

    from primitives import Ready
    from quick_run import Found
    Json = Dict[str, Any]


BLOCK = 20000               # stages looked at again in one go; between two blocks the run may be stopped
MANY_KNOWN = 8              # times as many stages are known as looked at: then the metrics file is worth patching


class KnownResult(StageResult):
    """The result of a stage that the index answers for: name and status are true, the rest stands at *place* in the index."""

    __slots__ = ()
    place = property(itemgetter(len(StageResult._fields)))      # one item more than a result has: there are thousands, and none has a dict


class KnownStages:
    """What the index answers in one run. A stage is looked at again at its turn once something has been run: its inputs may be new."""

    def __init__(self, found: Found) -> None:
        self.index: quick_index.Index = found.index
        self.root, self.stale = found.root, set(found.stale)
        self.pipeline = found.pipeline
        self.places: Dict[str, int] = {name: place for place, name in enumerate(found.index.names)}
        self.about: Json = found.index.about
        self.spec = self._load_spec()

    def not_covered(self, stages: Sequence[StageSpec]) -> List[StageSpec]:
        """Return which of *stages* the index does not answer for, as far as is known by now."""
        names = self.index.names
        if len(stages) == len(names):
            return [stages[place] for place in sorted(self.stale)]
        return [stage for stage in stages if self.places.get(stage.name, -1) in self.stale or stage.name not in self.places]

    def answer(self, stage: str, look_again: bool) -> Optional[KnownResult]:
        """Return the result of *stage*, None if it must be looked at."""
        place = self.places.get(stage, -1)
        if place < 0 or place in self.stale:
            return None
        if look_again and self._changed_from(place, place + 1):
            self.stale.add(place)
            return None
        return self._results(place, place + 1)[0]

    def answers(self, first: int, look_again: bool) -> List[KnownResult]:
        """Return the results of the stages from place *first* on, BLOCK at most, up to one that must be looked at.

        Nothing may be at work meanwhile: then one look at all of them is as good as one at each in its turn.
        """
        last = first
        while last < len(self.index.names) and last - first < BLOCK and last not in self.stale:
            last += 1
        if look_again and first < last:
            changed = self._changed_from(first, last)
            self.stale |= changed
            last = min(changed, default=last)
        return self._results(first, last)

    def _changed_from(self, first: int, last: int) -> Set[int]:
        """Return which of the stages first ... last-1 are not what they were, or held by somebody."""
        found = self.index.changed_between(self.root, first, last)
        for place in range(first, last) if self._has_locks() else ():
            if os.path.isdir(os.path.join(self.root, "locks", self.index.names[place] + ".lock")):
                found.add(place)
        return found

    def _has_locks(self) -> bool:
        return any(name.endswith(".lock") for name in os.listdir(os.path.join(self.root, "locks")))

    def _results(self, first: int, last: int) -> List[KnownResult]:
        rest: Sequence[Any] = ("skipped", "", 0, 0.0, 0.0, 0, 0, 0, {}, "", [], None, {}, False)  # shared, as nobody changes a result
        columns = [self.index.names[first:last], *map(repeat, rest), range(first, last)]
        return list(map(tuple.__new__, repeat(KnownResult), zip(*columns)))

    def lines(self, results: Sequence[KnownResult]) -> str:
        """Return the [SKIP] lines of the results of neighbours, with their ends."""
        return self.index.lines_of(results[0].place, results[-1].place + 1)

    def looked_at(self, results: Sequence[StageResult]) -> Optional[Dict[int, StageResult]]:
        """Return {place: result} of the stages that the index did not answer for; None if they are not the smaller part of all stages."""
        found = {place: result for place, result in enumerate(results) if type(result) is not KnownResult}
        return found if len(results) == len(self.index.names) and len(found) <= len(results) // MANY_KNOWN else None

    def entries(self, results: Sequence[StageResult], entry_of: Callable[[StageResult], Json], is_metrics: bool) -> Ready:
        """Return the entries of a run record, or of metrics, as one text; entry_of() makes those that the index has not."""
        shown = self._pieces("metrics" if is_metrics else "pretty", results, lambda result: pretty(entry_of(result), 2))
        return ready_array(shown, () if is_metrics else self._pieces("canonical", results, lambda result: compact(entry_of(result), True)))

    def _pieces(self, kind: str, results: Sequence[StageResult], text_of: Callable[[StageResult], str]) -> List[Any]:
        """Return the texts of results, which stand in the order of their places; those of neighbours in the index in one piece."""
        pieces: List[Any] = []
        others = [at for at, result in enumerate(results) if type(result) is not KnownResult]
        for begin, end in zip([-1] + others, others + [len(results)]):
            if begin >= 0:
                pieces.append(text_of(results[begin]).encode("utf-8") + quick_index.BETWEEN[kind])
            pieces += self._pieces_of_known(kind, results[begin + 1:end])   # type: ignore[arg-type]
        return pieces

    def _pieces_of_known(self, kind: str, results: Sequence[KnownResult]) -> List[Any]:
        if not results:
            return []
        first, last = results[0].place, results[-1].place + 1
        if last - first == len(results):
            return [self.index.piece(kind, first, last)]
        return [self.index.piece(kind, result.place, result.place + 1) for result in results]    # some are still at work

    def _load_spec(self) -> Optional[PipelineSpec]:
        """Return the checked spec of the pipeline file, None if it is not there, whole."""
        try:
            with open(spec_path(self.root, self.pipeline), "rb") as file:
                data = file.read()
            if [len(data), zlib.crc32(data)] != self.index.about["spec"]:
                return None
            return spec_from_plain(marshal.loads(data))
        except (OSError, ValueError, EOFError, TypeError, KeyError):
            return None


def spec_path(root: str, pipeline: str) -> str:
    """Return where the checked spec of a pipeline file is kept."""
    return quick_index.index_path(root, pipeline) + ".spec"


def spec_to_plain(spec: PipelineSpec) -> Any:
    """Return a spec as plain values, which marshal can store; of the stages a pair for each field: (value, None) if all have the same,
    (None, values of each) if not. Thousands of stages are soon made of that."""
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
    columns[StageSpec._fields.index("chunks")] = _made(lambda value: None if value is None else Chunks._make(value), columns[StageSpec._fields.index("chunks")])
    rows = zip(*[repeat(value, count) if values is None else values for value, values in columns])
    stages = tuple(map(tuple.__new__, repeat(StageSpec), rows))         # not _make(): there are thousands
    return spec._replace(stages=stages, offline=Offline._make(spec.offline))


def _made(make: Callable[[Any], Any], column: Any) -> Any:
    value, values = column
    return (make(value), None) if values is None else (None, list(map(make, values)))
