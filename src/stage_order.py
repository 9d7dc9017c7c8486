"""Which stages depend on which, which share a folder, and which may start now. Pure.

Above the leaves and below the engine.
"""
from __future__ import annotations

import bisect
import heapq

import file_digests
from model import Decision, shown_names
from stage_cycles import components, find_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import AbstractSet, Callable, Dict, Iterable, Iterator, List, Optional, Sequence, Set, Tuple

    from model import Facts, StageSpec


# --- edges -----------------------------------------------------------------------------------------------------------

MANY = 8                    # so many times as many wait as were skipped: then the heap is not made anew
FEW_QUESTIONS = 8           # each answered by looking at all stages; more are worth an order of their folders


class Folders:
    """The stages by output folder: those that share one, or have one within another's."""

    def __init__(self, stages: Sequence[StageSpec]) -> None:
        self.stages = list(stages)
        self.within: Dict[str, List[int]] = {}
        self.names: List[str] = []
        self.questions = 0

    def _order(self) -> None:
        if not self.within:
            for place, stage in enumerate(self.stages):
                self.within.setdefault(stage.output_dir, []).append(place)
            self.names = sorted(folder + "/" for folder in self.within)

    def _is_seldom_asked(self) -> bool:
        self.questions += 1
        return self.questions <= FEW_QUESTIONS and not self.within

    def at_or_above(self, path: str) -> Iterator[int]:
        """Yield the places of the stages whose output folder is *path* or holds it."""
        self._order()
        for folder in at_or_above(path):
            yield from self.within.get(folder, ())

    def below(self, prefix: str) -> Iterator[int]:
        """Yield the places of the stages whose output folder, with a slash, begins with *prefix*."""
        self._order()
        place = bisect.bisect_left(self.names, prefix)
        while place < len(self.names) and self.names[place].startswith(prefix):
            yield from self.within[self.names[place][:-1]]
            place += 1

    def holders(self, paths: Iterable[str]) -> List[StageSpec]:
        """Return the stages whose output folder is one of *paths* or holds one, in the order listed."""
        if self._is_seldom_asked():
            above = {folder for path in paths for folder in at_or_above(path)}
            return [stage for stage in self.stages if stage.output_dir in above]
        return [self.stages[place] for place in sorted({place for path in paths for place in self.at_or_above(path)})]

    def neighbours(self, stage: StageSpec) -> List[StageSpec]:
        """Return the other stages whose output folder is this one's, lies in it, or holds it, in the order listed."""
        if self._is_seldom_asked():
            below, above = stage.output_dir + "/", set(at_or_above(stage.output_dir))
            found = [other for other in self.stages if other.output_dir in above or other.output_dir.startswith(below)]
        else:
            places = set(self.at_or_above(stage.output_dir)) | set(self.below(stage.output_dir + "/"))
            found = [self.stages[place] for place in sorted(places)]
        return [other for other in found if other.name != stage.name]

    def outermost(self, stage: StageSpec) -> str:
        """Return the outermost output folder of a stage that lies around this one's or is it."""
        folders: List[str] = [stage.output_dir] + [other.output_dir for other in self.holders([stage.output_dir])]
        return min(folders, key=len)


def at_or_above(path: str) -> List[str]:
    """Return *path* and the folders that hold it, the outermost first."""
    parts = path.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]


def edges(stages: Sequence[StageSpec]) -> Dict[str, List[str]]:
    """Return {stage: those that must come before it, in the order listed}.

    By `needs`, and by files: an input, a watched file or a processor that may be what another stage makes. Declared outputs are
    matched as they are; a stage that declares none may make anything in its folder, but only for stages that are listed later.
    """
    folders = Folders(stages)
    place_of = {stage.name: place for place, stage in enumerate(stages)}
    found: Dict[str, List[str]] = {}
    for place, stage in enumerate(stages):
        before = {place_of[name] for name in stage.needs if name in place_of} - {place}
        for pattern in stage.inputs + stage.watch + stage.for_each + program_of(stage):
            before |= makers(folders, place, pattern, before)
        found[stage.name] = [stages[maker].name for maker in sorted(before)]
    return found


def program_of(stage: StageSpec) -> Tuple[str, ...]:
    """Return the processor of a stage, if another stage may make it: in bin/ none makes anything."""
    return () if stage.processor.startswith("bin/") else (stage.processor,)


def makers(folders: Folders, place: int, pattern: str, known: AbstractSet[int] = frozenset()) -> Set[int]:
    """Return the places of the stages that may make what *pattern* names for the stage at *place*; of those *known* nothing is
    asked."""
    return {maker for maker in candidates(folders, pattern) if maker not in known and maker != place
            and _makes(folders.stages[maker], pattern, maker < place)}


def between(stages: Sequence[StageSpec], first: str, last: str, before: Optional[Dict[str, List[str]]] = None) -> Set[str]:
    """Return the names of *first* and all that depends on it; of *last* and all that it depends on; given both, those in both. ""
    for none. before: as edges() returns it."""
    before = edges(stages) if before is None else before
    after: Dict[str, List[str]] = {}
    for name, needed in before.items():
        for one in needed:
            after.setdefault(one, []).append(name)
    found = set(before)
    for start, neighbours in ((first, after), (last, before)):
        if start:
            found &= _reached(start, neighbours)
    return found


def _reached(start: str, neighbours: Dict[str, List[str]]) -> Set[str]:
    found, queue = {start}, [start]
    while queue:
        for name in neighbours.get(queue.pop(), ()):
            if name not in found:
                found.add(name)
                queue.append(name)
    return found


def doubtful_reads(stages: Sequence[StageSpec], is_graph: bool) -> List[Tuple[str, str]]:
    """Return (stage, what is doubtful) of each path that lies where a stage writes, and makes it wait for none."""
    folders, found = Folders(stages), []
    for place, stage in enumerate(stages):
        for pattern in stage.inputs + stage.watch + stage.for_each:
            around = [one for one in sorted(candidates(folders, pattern)) if may_meet(pattern, stages[one].output_dir + "/**")]
            makers = [one for one in around if _makes(stages[one], pattern, one <= place)]
            if place in makers:
                found.append((stage.name, "%s is what the stage may make itself: what it made would be an input of its next run" % pattern))
            elif not is_graph and not any(one < place for one in makers):
                later = [stages[one] for one in around if _makes(stages[one], pattern, True)]
                if later and all(one.outputs for one in later):
                    found.append((stage.name, "%s is what %s makes, and that is listed later: the stage reads what the run before made" % (pattern,
                        shown_names([one.name for one in later]))))
                elif later:
                    found.append((stage.name, "%s lies in the outputDir of %s, listed later: if that makes it, the stage reads what the run before made; declare what it makes in outputs" % (
                        pattern, shown_names([one.name for one in later]))))
            elif is_graph and around and not makers and not set(stage.needs) & {stages[one].name for one in around}:
                names = ", ".join(stages[one].name for one in around if one != place)
                if names:
                    found.append((stage.name, "%s lies in the outputDir of %s, but does not make it wait: no outputs declared there match it; declare them, or add it to needs" % (
                        pattern, names)))
    return found


def candidates(folders: Folders, pattern: str) -> Set[int]:
    """Return the places of the stages in or above whose output folders a path or glob may find something, of a glob also those
    below it."""
    if not file_digests.has_wildcard(pattern):
        return set(folders.at_or_above(pattern.rpartition("/")[0]))
    fixed = file_digests.fixed_part(pattern)
    return set(folders.at_or_above(fixed.rpartition("/")[0])) | set(folders.below(fixed))


def _makes(maker: StageSpec, pattern: str, is_earlier: bool) -> bool:
    """Tell whether what *maker* makes may be among the files of *pattern*."""
    if maker.outputs is None:
        return is_earlier and (not file_digests.has_wildcard(pattern) or may_meet(pattern, maker.output_dir + "/**"))
    return any(may_meet(pattern, "%s/%s" % (maker.output_dir, output)) for output in maker.outputs)


def may_meet(one: str, other: str) -> bool:
    """Tell whether two paths or globs may name one file; for two globs, True unless what is fixed in them parts."""
    if not file_digests.has_wildcard(one):
        return one == other or file_digests.has_wildcard(other) and file_digests.path_matches(one, other)
    if not file_digests.has_wildcard(other):
        return file_digests.path_matches(other, one)
    for mine, theirs in zip(one.split("/"), other.split("/")):
        if "**" in (mine, theirs):
            return True
        if file_digests.has_wildcard(mine) or file_digests.has_wildcard(theirs):
            if not file_digests.has_wildcard(mine) and not file_digests.segment_matcher(theirs)(mine):
                return False
            if not file_digests.has_wildcard(theirs) and not file_digests.segment_matcher(mine)(theirs):
                return False
            if not _ends_may_meet(mine, theirs):
                return False
        elif mine != theirs:
            return False
    return one.count("/") == other.count("/") or "**" in one.split("/") or "**" in other.split("/")


def _ends_may_meet(one: str, other: str) -> bool:
    """Tell whether one name may begin and end as both of two globs do: "a*.csv" and "b*.csv" never name the same file."""
    begins, ends = zip(_fixed_ends(one), _fixed_ends(other))
    return (begins[0].startswith(begins[1]) or begins[1].startswith(begins[0])) and (ends[0].endswith(ends[1]) or ends[1].endswith(ends[0]))


def _fixed_ends(segment: str) -> Tuple[str, str]:
    """Return what each name that a glob part matches begins and ends with."""
    end = max(segment.rfind(sign) for sign in "*?[]")
    return file_digests.fixed_part(segment), segment[end + 1:] if segment.count("[") <= segment.count("]") else ""


def may_make_same(one: StageSpec, other: StageSpec) -> bool:
    """Tell whether two stages that declare their outputs may make one and the same file, or clear it away from one another."""
    return any(may_meet("%s/%s" % (one.output_dir, mine), "%s/%s" % (other.output_dir, theirs)) for mine in one.outputs or ()
               for theirs in other.outputs or ())


def may_share(one: StageSpec, other: StageSpec) -> bool:
    """Tell whether two stages may be at work at once: in one folder, only if what each makes is declared, and is none of the
    other's."""
    mine, theirs = one.output_dir + "/", other.output_dir + "/"
    if not (mine.startswith(theirs) or theirs.startswith(mine)):
        return True
    return one.outputs is not None and other.outputs is not None and not may_make_same(one, other)


def find_cycle(needs: Dict[str, List[str]]) -> List[str]:
    """Return the names along a cycle, the first one again at the end, or [] if there is none."""
    component = components(needs)
    for name, before in needs.items():
        for one in before:
            if component[one] == component[name]:
                return [name] + find_path(needs, one, name)
    return []


# --- what may start now ----------------------------------------------------------------------------------------------

class Order:
    """The stages of a run that are still to be started, and those that cannot be, because of what became of others.

    As listed, one stage after the other; as a graph, each when those before it have ended well. Either way the first
    in the list comes first.
    """

    def __init__(self, stages: Sequence[StageSpec], is_graph: bool, may_share: Callable[[StageSpec, StageSpec], bool],
                 needs: Optional[Dict[str, List[str]]] = None, find_edges: Callable[[Sequence[StageSpec]], Dict[str, List[str]]] = edges) -> None:
        """needs: what find_edges() has said of these very stages, if that is known; stages that need none may be missing."""
        self.stages = stages
        self.names = [stage.name for stage in stages]
        self.place = dict(zip(self.names, range(len(stages))))
        self.is_graph = is_graph
        self.may_share = may_share
        self.waiting = list(range(len(stages)))     # a heap of the places that wait for nothing but room
        self.running: List[str] = []
        self.over: Set[int] = set()                 # that skipped() was told of; the heap may still have them
        self.fresh: Set[int] = set()                # of a graph, the waiting ones that take_fresh() has not returned
        self.left: Dict[str, int] = {}
        self.needs, self.find_edges = needs, find_edges
        self.after: Optional[Dict[str, List[str]]] = None   # see _followers()
        self.blocked: Dict[str, str] = {}           # stage -> the one before it that did not end well
        if is_graph:
            self._wait_for_others()

    def _wait_for_others(self) -> None:
        needs = self._edges()
        self.left = {name: len(before) for name, before in needs.items() if before}
        if self.left:
            self.waiting = [place for place, name in enumerate(self.names) if name not in self.left]
        self.fresh = set(self.waiting)

    def _followers(self) -> Dict[str, List[str]]:
        """Return {stage: those that need it}."""
        if self.after is None:
            self.after = {}
            for name, needed in self._edges().items():
                for before in needed:
                    self.after.setdefault(before, []).append(name)
        return self.after

    def _edges(self) -> Dict[str, List[str]]:
        if self.needs is None:
            self.needs = self.find_edges(self.stages)
        return self.needs

    def next(self) -> Optional[StageSpec]:
        """Return the stage to start next, None if none may start now."""
        if not self.is_graph and self.running:
            return None
        passed = []
        found = None
        while self.waiting and found is None:
            place = heapq.heappop(self.waiting)
            stage = self.stages[place]
            if place in self.over or stage.name in self.blocked:
                continue
            if self._may_start(stage):
                found = stage
            else:
                passed.append(place)
        for place in passed:
            heapq.heappush(self.waiting, place)
        if found is not None:
            self.running.append(found.name)
            self.fresh.discard(place)
        return found

    def take_fresh(self, count: int) -> List[int]:
        """Return the places, *count* at most and sorted, of stages of a graph that may start now, each place but once."""
        # Where nothing is at work, all may: none of these is blocked, as all that they need has ended well.
        free = sorted(self.fresh if not self.running else [place for place in self.fresh if self._may_start(self.stages[place])])[:count]
        self.fresh.difference_update(free)
        return free

    def skipped(self, places: Sequence[int]) -> None:
        """Say that stages at places that next_place() or take_fresh() has named, or that follow them in a list, have ended well,
        not started."""
        self.over.update(places)
        if MANY * len(places) > len(self.waiting):
            self.waiting = sorted(place for place in self.waiting if place not in self.over)    # a heap
        for place in places if self.left else ():       # of a graph, while some wait for others
            self._let_follow(self.names[place])

    def _may_start(self, stage: StageSpec) -> bool:
        return stage.name not in self.blocked and all(self.may_share(stage, self.stages[self.place[other]]) for other in self.running)

    def next_place(self) -> Optional[int]:
        """Return the place of the stage to start next, where all that come after it in the list are still to be started, too;
        else None."""
        while self.waiting and self.waiting[0] in self.over:
            heapq.heappop(self.waiting)
        return None if self.is_graph or self.running or self.blocked or not self.waiting else self.waiting[0]

    def put_back(self, stage: StageSpec) -> None:
        """There is no room for what next() returned."""
        self.running.remove(stage.name)
        heapq.heappush(self.waiting, self.place[stage.name])

    def ended(self, name: str, is_good: bool) -> None:
        """Say that a stage has ended; if not well, what depends on it is blocked."""
        self.running.remove(name)
        if not is_good:
            self._block_after(name)
        elif self.is_graph:
            self._let_follow(name)

    def _let_follow(self, name: str) -> None:
        for later in self._followers().get(name, ()):
            self.left[later] -= 1
            if not self.left[later]:
                heapq.heappush(self.waiting, self.place[later])
                self.fresh.add(self.place[later])

    def _block_after(self, name: str) -> None:
        needs, after = self._edges(), self._followers()
        newly = [name]
        while newly:
            more = {later: next(before for before in needs[later] if before == name or before in self.blocked)
                    for later in dict.fromkeys(later for one in newly for later in after.get(one, ())) if later != name and later not in self.blocked}
            self.blocked.update(more)
            newly = list(more)


# --- the plan --------------------------------------------------------------------------------------------------------

def planned(every: Sequence[StageSpec], chosen: Sequence[StageSpec], look: Callable[[StageSpec], Tuple[Decision, Optional[Facts]]], is_graph: bool,
            needs: Dict[str, List[str]]) -> Iterator[Tuple[StageSpec, Decision, Optional[Facts]]]:
    """Yield (stage, decision, facts) for the chosen stages of *every*, as a run would come to them.

    look(stage) decides. It is not asked where a stage that must run comes first: what that makes is not there yet. needs: as
    edges() returns it.
    """
    if not is_graph:                    # what is listed later is run later, whatever it makes; it may even be a circle
        place = {stage.name: number for number, stage in enumerate(every)}
        needs = {name: [one for one in before if place[one] < place[name]] for name, before in needs.items()}
    busy: Set[str] = set()
    for stage in in_order(chosen, needs):
        makers = [maker for maker in needs[stage.name] if maker in busy]
        facts = None
        if makers:
            decision = Decision("PENDING", ["waits for %s" % shown_names(makers)], 0, "")
        else:
            decision, facts = look(stage)
        if decision.action not in ("SKIP", "SEAL"):
            busy.add(stage.name)
        yield stage, decision, facts


def in_order(stages: Sequence[StageSpec], needs: Dict[str, List[str]]) -> List[StageSpec]:
    """Return the stages so that none stands before one that it needs, else in the order listed."""
    found: List[StageSpec] = []
    unseen = {stage.name: stage for stage in stages}
    for first in stages:
        way = [(first, iter(needs[first.name]))] if unseen.pop(first.name, None) else []     # each on it is needed by the one before it
        while way:
            stage, left = way[-1]
            needed = next((name for name in left if name in unseen), None)
            if needed is None:
                found.append(stage)
                way.pop()
            else:
                way.append((unseen.pop(needed), iter(needs[needed])))
    return found
