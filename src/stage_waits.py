"""Which stages wait for which, with what the disk tells beside the spec: where links lead, which modules a processor imports.

Above stage_order, link_places and program_scan. It reads programs and links, and writes nothing. Another stage may make a module
that is not there yet: then its place counts. What a module imports that is not there nobody knows.
"""
from __future__ import annotations

import os

import stage_order
from file_digests import Digests, FileChanged, has_wildcard
from link_places import Places, joined
from primitives import is_link
from program_scan import imported_places, local_modules, script_folder
from stage_cycles import components

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Dict, List, Optional, Sequence, Tuple

    from model import PipelineSpec, StageSpec
    Needs = Dict[str, List[str]]
    Links = Tuple[Dict[str, str], Dict[str, str]]

MODULE_ENDINGS = (".py", ".so", ".pyd")


def edges_of(spec: PipelineSpec, digests: Optional[Digests] = None) -> Needs:
    """Return {stage: those that must come before it, in the order listed}."""
    return Waits(spec, digests).edges(spec.stages)


class Waits:
    """What the disk tells of the order of a pipeline's stages; it is looked at once."""

    def __init__(self, spec: PipelineSpec, digests: Optional[Digests] = None) -> None:
        """digests: of this run or command, as all programs are scanned in it anyway."""
        self.spec = spec
        self.is_graph = spec.order == "graph"
        self._digests = digests
        self.places = Places(spec.root)
        self.led: Dict[str, str] = {}                   # patterns of the spec that lead elsewhere by links -> where to
        self.written = {stage.output_dir for stage in spec.stages}
        self.programs: Dict[str, Tuple[str, ...]] = {}  # processor -> what is read with it
        self.crossed: Dict[str, bool] = {}              # folder -> see _may_take_made()
        self.above = {""}                               # the folders at or above one that is written to, once asked for

    @property
    def digests(self) -> Digests:
        if self._digests is None:
            import state_store
            self._digests = Digests(self.spec.root, state_store.boot_id(), keep=False)
        return self._digests

    def edges(self, stages: Sequence[StageSpec]) -> Needs:
        """Return {stage: those of *stages* that must come before it}. In a graph none that only the disk tells of makes a cycle:
        of these all are left out that lie in one."""
        reading = [self._with_found(stage) for stage in stages]
        if all(one is other for one, other in zip(reading, stages)):
            return stage_order.edges(stages)
        found = stage_order.edges(reading)
        if not self.is_graph or not stage_order.find_cycle(found):
            return found
        known, part = stage_order.edges(stages), components(found)
        return {name: [one for one in before if part[one] != part[name] or one in known[name]] for name, before in found.items()}

    def doubtful_reads(self, stages: Sequence[StageSpec]) -> List[Tuple[str, str]]:
        """As stage_order.doubtful_reads(), with where links lead, with the modules that are there, and with cycles that are not
        heeded."""
        reading = [stage._replace(watch=stage.watch + self._led_by_links(stage) + self._made_modules(stage.processor)) for stage in stages]
        found = stage_order.doubtful_reads(reading, self.is_graph)
        all_needs = stage_order.edges([self._with_found(stage) for stage in stages]) if self.is_graph else {}
        heeded = self.edges(stages) if self.is_graph else {}
        return found + [(name, "reads, through a link or as a module, what %s makes, which in turn waits for it: it gets what the run before made" % one)
                        for name, before in all_needs.items() for one in before if one not in heeded[name]]

    def links(self) -> Links:
        """Return which folders and patterns of the spec lead elsewhere, as far as edges() has asked: ({path: where to}, ...)."""
        return {path: place for path, place in self.places.folders.items() if place != path}, self.led

    def has_same_links(self, links: Links, stages: Sequence[StageSpec]) -> bool:
        """Tell whether links() would be as it was. stages: what of a file itself leads elsewhere is looked at for these only."""
        folders, led = links
        return all(self.places.of_folder(path) == place for path, place in folders.items()) and all(
            self.places.of(pattern) == led.get(pattern, pattern) for stage in stages for pattern in stage.inputs + stage.watch + stage.for_each)

    def _with_found(self, stage: StageSpec) -> StageSpec:
        more = self._led_by_links(stage) + self._of_program(stage.processor)
        return stage._replace(watch=stage.watch + more) if more else stage

    def _led_by_links(self, stage: StageSpec) -> Tuple[str, ...]:
        found = []
        for pattern in stage.inputs + stage.watch + stage.for_each:
            place = self.places.of(pattern)
            if place != pattern:
                self.led[pattern] = place
                found += [place] if self._may_be_made(place) else []
        return tuple(found)

    def _may_be_made(self, path: str) -> bool:
        return has_wildcard(path) or not self.written.isdisjoint(stage_order.at_or_above(path.rpartition("/")[0]))

    def _of_program(self, processor: str) -> Tuple[str, ...]:
        """Return what else than itself is read when a processor starts, and may be what a stage makes."""
        if processor not in self.programs:
            place = self.places.of_file(processor)
            script = place if os.path.isabs(processor) else processor
            modules = self._modules_there(script)
            paths = [place, *map(self.places.of_file, modules), *self._imported(script, modules)]
            self.programs[processor] = tuple(dict.fromkeys(path for path in paths if path != processor and self._may_be_made(path)))
        return self.programs[processor]

    def _made_modules(self, processor: str) -> Tuple[str, ...]:
        return tuple(path for path in map(self.places.of_file, self._modules_there(processor)) if self._may_be_made(path))

    def _modules_there(self, script: str) -> List[str]:
        try:
            return local_modules(self.digests, script) if self._may_take_made(script) else []
        except (OSError, FileChanged):
            return []                   # it is not there, or cannot be read: the scan before a run tells

    def _imported(self, script: str, modules: Sequence[str]) -> List[str]:
        """Return where the modules are, or would be, that a script imports."""
        found = []
        try:
            for folder, name in sorted(set(imported_places(self.digests, script, modules))) if self._may_take_made(script) else ():
                for file in [name + ending for ending in MODULE_ENDINGS]:
                    is_there = file in self.digests.names_in(folder)        # it may be a link, to what is not there yet
                    found.append(self.places.of_file(joined(folder, file)) if is_there else joined(self.places.of_folder(folder), file))
        except (OSError, FileChanged):
            pass
        return found

    def _may_take_made(self, script: str) -> bool:
        """Tell whether a script may import what a stage makes: one writes around or below its folder, or a link leads on from there."""
        folder = self.places.of_folder(script_folder(self.spec.root, script))
        if folder not in self.crossed:
            if not self.crossed:
                self.above.update(one for path in self.written for one in stage_order.at_or_above(path))
            is_near = folder in self.above or not self.written.isdisjoint(stage_order.at_or_above(folder))
            self.crossed[folder] = is_near or _has_links(os.path.join(self.spec.root, folder))
        return self.crossed[folder]


def _has_links(folder: str) -> bool:
    """Tell whether a folder, or one in it from which Python would take modules, has a link in it."""
    try:
        with os.scandir(folder) as entries:
            return any(is_link(entry.path) or entry.is_dir() and entry.name.isidentifier() and _has_links(entry.path) for entry in entries)
    except OSError:
        return False
