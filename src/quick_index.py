"""The index: what a skip of each stage depends on, and what a run in which nothing changed has to write. A cache only.

Above path_signs and below the runner. One file for each pipeline file, state/index_<its name>; index_writer makes it.

    first line       kind and format, CRC-32 of all that follows but the texts, CRC-32 of the texts, bytes of each section
    about            JSON: what must be as it was (interpreter, start of the machine, user, ...), and the records' fields
    common           paths that all stages depend on: the pipeline file, the runner, bin/, processors, their modules, folders
    paths, starts    paths of each stage below the root: inputs, watched files, folders that a glob looks into, outputs, marker, stage record
    cuts             where in paths each group of GROUP paths begins, and the end: who looks at some of them makes no list of all
    followed         paths that are links, looked at through the link, each with its stage (-1: all stages)
    covered          a byte for each stage: 1 if its skip can be told from its paths
    pretty canonical metrics lines     each stage's entry in run record (as stored, as hashed) and metrics, and its [SKIP] line

Lost, damaged, of another format or of another start of the machine, it is ignored, and made anew by the next run that skips.
"""
from __future__ import annotations

import os
import sys
import zlib

import path_signs
from primitives import COMPACT_END, PRETTY_END, compact, loads, open_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    import mmap
    from typing import Any, Callable, Dict, List, Optional, Sequence, Set, Tuple, Union
    Json = Dict[str, Any]

KIND = b"pipeline-index"
FORMAT = 3
GROUP = path_signs.BLOCK    # paths
MAP_FROM = 1 << 20          # bytes
TEXTS = ("pretty", "canonical", "metrics", "lines")
LISTS = ("names", "common", "followed")
NUMBERS = ("common_signs", "starts", "cuts", "signs", "owners", "followed_signs") + tuple("ends_" + name for name in TEXTS)
SECTIONS = ("about", "covered", "paths") + LISTS + NUMBERS + TEXTS
VIEWS = ("paths",) + NUMBERS + TEXTS
BETWEEN = {"pretty": PRETTY_END, "canonical": COMPACT_END, "metrics": PRETTY_END, "lines": b""}     # after each entry's text


def index_path(root: str, pipeline: str) -> str:
    """Return where the index of the pipeline file at *pipeline* stands."""
    return os.path.join(root, "state", "index_%s" % os.path.basename(pipeline))


class Paths:
    """Paths as they are stored, each with a zero byte behind it; a slice of them is a list."""

    def __init__(self, stored: memoryview, cuts: memoryview) -> None:
        self.stored, self.cuts = stored, cuts

    def __getitem__(self, places: slice) -> List[str]:
        first, last = places.start, places.stop
        if first >= last:
            return []
        group = first // GROUP
        end = self.cuts[(last + GROUP - 1) // GROUP]
        paths = _text(self.stored[self.cuts[group]:end]).split("\0")
        return paths[first - group * GROUP:last - group * GROUP]


class Index:
    """One index in memory: lists of names; paths, numbers and texts are views of the bytes that were read."""

    source: Union[bytes, mmap.mmap]     # what all of it is read from
    sizes: List[int]            # bytes of its sections
    is_damaged = False          # somebody has written to the file while it was mapped
    texts_check: int            # CRC-32 that the texts must have
    about: Json
    covered: bytes
    names: List[str]
    common: List[str]
    paths: memoryview
    cuts: memoryview
    followed: List[str]
    common_signs: memoryview
    starts: memoryview
    signs: memoryview
    owners: memoryview
    followed_signs: memoryview
    ends_pretty: memoryview
    ends_canonical: memoryview
    ends_metrics: memoryview
    ends_lines: memoryview
    pretty: memoryview
    canonical: memoryview
    metrics: memoryview
    lines: memoryview

    def piece(self, kind: str, first: int, last: int) -> memoryview:
        """Return the texts of kind *kind* of the stages first ... last-1, each with what stands between it and the next,
        UTF-8."""
        ends = getattr(self, "ends_" + kind)
        found: memoryview = getattr(self, kind)[ends[first]:ends[last]]
        return found

    def lines_of(self, first: int, last: int) -> str:
        """Return the [SKIP] lines of the stages first ... last-1."""
        return str(self.piece("lines", first, last), "utf-8", "surrogateescape")

    def changed_stages(self, root: str, meanwhile: Callable[[], Any] = lambda: None,
                       upon_change: Callable[[], Any] = lambda: None) -> Optional[List[int]]:
        """Return which stages cannot be told to be up to date, sorted; None if what all depend on has changed.

        meanwhile, upon_change: see path_signs.changed_shared().
        """
        if self._has_common_changed(root):
            return None
        found = {place for place, is_covered in enumerate(self.covered) if not is_covered} if 0 in self.covered else set()
        behind = path_signs.changed([os.path.join(root, path) for path in self.followed], self.followed_signs, look=os.stat)
        owners = {self.owners[place] for place in behind}
        if -1 in owners:
            return None
        found |= owners
        for place in path_signs.changed_shared(self.all_paths(), self.signs, root, meanwhile, upon_change=upon_change):
            found.add(self.stage_at(place))
        return sorted(found)

    def keep(self) -> None:
        """Make it fit for longer: its bytes are copied, if they are mapped, and the texts are checked once more."""
        if not isinstance(self.source, bytes):
            self.source = bytes(self.source)
            self.is_damaged = not self.has_whole_texts()
            parts = _parts(self.source, self.sizes)
            for name in VIEWS:
                setattr(self, name, parts[name])

    def has_whole_texts(self) -> bool:
        """Tell whether the texts are as they were stored. To be asked once before they are used; it takes a while."""
        return zlib.crc32(memoryview(self.source)[_texts_begin(self.source, self.sizes):]) == self.texts_check

    def all_paths(self) -> Paths:
        """Return the paths of all stages, relative to the root."""
        return Paths(self.paths, self.cuts)

    def stage_at(self, place: int) -> int:
        """Return the stage whose path stands at *place* of all paths."""
        low, high = 0, len(self.starts) - 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.starts[middle] <= place else (low, middle)
        return low

    def is_void(self, root: str) -> bool:
        """Look again at what all stages depend on; tell whether it has changed, and the index says nothing any more."""
        from bisect import bisect_left
        common = bisect_left(self.owners, 0)        # links of all stages stand first
        return self._has_common_changed(root) or bool(
            path_signs.changed([os.path.join(root, path) for path in self.followed[:common]], self.followed_signs, 0, common, os.stat))

    def _has_common_changed(self, root: str) -> bool:
        return bool(path_signs.changed([os.path.join(root, path) for path in self.common], self.common_signs))

    def changed_among(self, root: str, places: Sequence[int]) -> Set[int]:
        """Look at the paths of the stages at *places* (sorted) again; return which of these have changed."""
        from bisect import bisect_left
        prefix = os.path.join(root, "")
        found: Set[int] = set()
        for first, last in ranges(places):
            changed = path_signs.changed_shared(self.all_paths(), self.signs, root, first=self.starts[first], last=self.starts[last])
            found.update(map(self.stage_at, changed))
            begin, end = bisect_left(self.owners, first), bisect_left(self.owners, last)
            found.update(self.owners[place] for place in path_signs.changed(self.followed, self.followed_signs, begin, end, os.stat, prefix))
        return found


def ranges(places: Sequence[int]) -> List[Tuple[int, int]]:
    """Return sorted numbers as ranges (first, last + 1)."""
    found: List[Tuple[int, int]] = []
    for place in places:
        if found and found[-1][1] == place:
            found[-1] = found[-1][0], place + 1
        else:
            found.append((place, place + 1))
    return found


def to_bytes(index: Index) -> bytes:
    """Return an index as it is stored."""
    parts: List[Any] = [compact(index.about).encode("utf-8", "surrogateescape"), index.covered, index.paths]
    parts += ["\0".join(getattr(index, name)).encode("utf-8", "surrogateescape") for name in LISTS]
    parts += [getattr(index, name).tobytes() for name in NUMBERS]
    texts = [getattr(index, name) for name in TEXTS]
    body, told = b"".join(parts), b"".join(texts)
    sizes = b" ".join(b"%d" % len(part) for part in parts + texts)
    return b"%s %d %d %d %s\n" % (KIND, FORMAT, zlib.crc32(body), zlib.crc32(told), sizes) + body + told


def load(path: str, mapped: bool = False) -> Optional[Index]:
    """Return the index stored at *path*, None if there is none that is whole and of this format; its texts may be damaged.

    mapped: a large one is not copied until keep(); whoever cuts the file short before that ends the process.
    """
    try:
        with open_file(path, 0) as file:
            data = _mapped(file) if mapped else file.read()
        return from_bytes(data)
    except (OSError, ValueError, TypeError, AttributeError, IndexError):
        return None


def _mapped(file: Any) -> Union[bytes, mmap.mmap]:
    """Return the content of an open file, mapped where that saves time, and where a mapped file can be replaced."""
    size = os.fstat(file.fileno()).st_size
    if size < MAP_FROM or not sys.platform.startswith("linux"):
        whole: bytes = file.read()
        return whole
    import mmap
    return mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)


def from_bytes(data: Union[bytes, mmap.mmap]) -> Optional[Index]:
    """Return the index that *data* holds, None if it is damaged (but for its texts) or of another format. Raises: ValueError for
    some damage."""
    end = data.find(b"\n")
    if end < 0:
        return None
    kind, form, check, texts_check, *lengths = data[:end].split(b" ")
    sizes = [int(one) for one in lengths]
    if kind != KIND or int(form) != FORMAT or len(sizes) != len(SECTIONS) or min(sizes) < 0 or end + 1 + sum(sizes) != len(data):
        return None
    if zlib.crc32(memoryview(data)[end + 1:_texts_begin(data, sizes)]) != int(check):
        return None
    index, parts = Index(), _parts(data, sizes)
    index.source, index.sizes, index.texts_check = data, sizes, int(texts_check)
    index.covered = bytes(parts["covered"])
    index.about = loads(_text(parts["about"]))
    for name in LISTS:
        setattr(index, name, _text(parts[name]).split("\0") if parts[name] else [])
    for name in VIEWS:
        setattr(index, name, parts[name])
    return index if _is_consistent(index) else None


def _texts_begin(data: Union[bytes, mmap.mmap], sizes: Sequence[int]) -> int:
    return len(data) - sum(sizes[-len(TEXTS):])


def _parts(data: Union[bytes, mmap.mmap], sizes: Sequence[int]) -> Dict[str, memoryview]:
    """Return {section: view of it in *data*}; its first line is not looked at."""
    view, start, parts = memoryview(data), len(data) - sum(sizes), {}
    for name, size in zip(SECTIONS, sizes):
        part = view[start:start + size]
        start += size
        parts[name] = part.cast("q") if name in NUMBERS else part
    return parts


def _text(part: memoryview) -> str:
    return str(part, "utf-8", "surrogateescape")


def _is_consistent(index: Index) -> bool:
    """Tell whether the sections belong together; by then damage is ruled out, a fault of ours may be not."""
    stages = len(index.names)
    width = path_signs.WIDTH
    return (len(index.covered) == stages and len(index.starts) == stages + 1 and len(index.signs) == width * index.starts[stages]
            and index.starts[0] == 0 and len(index.cuts) == (index.starts[stages] + GROUP - 1) // GROUP + 1 and index.cuts[0] == 0
            and index.cuts[-1] == len(index.paths) and len(index.common_signs) == width * len(index.common)
            and len(index.owners) == len(index.followed) and len(index.followed_signs) == width * len(index.followed)
            and all(len(getattr(index, "ends_" + name)) == stages + 1 for name in TEXTS) and isinstance(index.about, dict))
