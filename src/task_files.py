"""The files of a stage of many tasks: what is in them, by their signatures, and whether anything changed at all.

A leaf.

    state/files_<stage>.bin     a cache: paths, their signatures as arrays of integers, their digests; rebuilt when lost

Two arrays of signatures are compared as a whole, so that 100,000 files that did not change cost a stat() each and
little else. A signature is kept only if a later write must change it (git's rule for racily clean entries), and believed only
in the boot in which it was taken, unless the file was synced before.
"""
from __future__ import annotations

import json
import os
from array import array

from primitives import open_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List, Optional, Sequence, Tuple

SCHEMA_VERSION = 1
BLOCK = 64                  # signatures that are compared at once
FIELDS = 5                  # size, mtime_ns, ctime_ns, inode, device; a file that is not there has -1 in all
INODE = 3                   # place of that
DIGEST_BYTES = 64
MISSING = (-1,) * FIELDS
POSITIVE = 0x7FFFFFFFFFFFFFFF   # what an array takes


def progress_name(stage: str) -> str:
    """Return the name, below state/, of the folder with the checkpoints of a stage's tasks; no stage has a "~" in its name."""
    return "progress_%s~tasks" % stage


def inputs_name(stage: str, slot: int) -> str:
    """Return the name, below state/, of the file with what a task's processor reads; each slot has its own."""
    return "inputs_%s~%d.json" % (stage, slot)


def names_of_inputs(folder: str, stage: str) -> List[str]:
    """Return the names of all such files in *folder*, sorted. Raises: OSError."""
    begin = "inputs_%s~" % stage
    return sorted(name for name in os.listdir(folder) if name.startswith(begin) and name.endswith(".json") and name[len(begin):-5].isdecimal())


def signatures(root: str, paths: Sequence[str]) -> array[int]:
    """Return the signatures of files below *root*, one after the other; links count as what they lead to."""
    found: List[int] = []
    add, stat = found.extend, os.stat
    start = root + os.sep
    for path in paths:
        try:
            one = stat(start + path)
            add((one.st_size, one.st_mtime_ns & POSITIVE, one.st_ctime_ns & POSITIVE, one.st_ino & POSITIVE, one.st_dev & POSITIVE))
        except OSError:
            add(MISSING)
    return array("q", found)


def plain(signature: Sequence[int]) -> List[int]:
    """Return a signature as it fits into an array: Windows has numbers of files beyond 63 bits, some file systems times before
    1970 and after 2262."""
    return [one & POSITIVE for one in signature]


def signature_at(packed: array[int], place: int) -> List[int]:
    """Return the signature at a place, as a list; size -1 for a file that is not there."""
    return packed[place * FIELDS:(place + 1) * FIELDS].tolist()


class FileTable:
    """Paths, signatures and digests, in one order; a digest "" is not known."""

    def __init__(self, paths: Sequence[str] = (), packed: Optional[array[int]] = None, digests: Optional[List[str]] = None) -> None:
        self.paths = list(paths)
        self.packed = packed if packed is not None else array("q")
        self.digests = digests if digests is not None else []
        self._places: Optional[Dict[str, int]] = None

    def digest_of(self, path: str, signature: List[int]) -> str:
        """Return the digest of *path* if it still has *signature*, else ""."""
        if self._places is None:
            self._places = {one: place for place, one in enumerate(self.paths)}
        place = self._places.get(path, -1)
        return self.digests[place] if place >= 0 and signature_at(self.packed, place) == signature else ""

    def digests_of(self, paths: Sequence[str], packed: array[int]) -> List[str]:
        """Return, of each of *paths*, the digest if the file still has its signature in *packed*, else "".

        Where the table begins with the same paths, as it mostly does, signatures are compared by blocks, and no index is built.
        """
        count = len(paths)
        if self.paths[:count] != paths:
            return [self.digest_of(path, signature_at(packed, place)) for place, path in enumerate(paths)]
        found = self.digests[:count]
        for start in range(0, count, BLOCK):
            end = min(start + BLOCK, count)
            if self.packed[FIELDS * start:FIELDS * end] != packed[FIELDS * start:FIELDS * end]:
                for place in range(start, end):
                    if signature_at(self.packed, place) != signature_at(packed, place):
                        found[place] = ""
        # Of two entries for one path the later counts.
        later = {path: place for place, path in enumerate(self.paths[count:], count)}
        for place, path in enumerate(paths) if later else ():
            if path in later:
                is_same = signature_at(self.packed, later[path]) == signature_at(packed, place)
                found[place] = self.digests[later[path]] if is_same else ""
        return found

    def add(self, path: str, signature: List[int], digest: str) -> None:
        """Add a file; of two entries for one path the later counts."""
        self.paths.append(path)
        self.packed.extend(signature)
        self.digests.append(digest)
        self._places = None

    def joined(self, other: FileTable) -> FileTable:
        """Return a table with what *other* knows over what this one knows."""
        return FileTable(self.paths + other.paths, self.packed + other.packed, self.digests + other.digests)

    def is_unchanged(self, paths: List[str], packed: array[int]) -> bool:
        """Tell whether these are the same paths, all with a known digest and the same signature."""
        return self.paths == paths and self.packed == packed and "" not in self.digests


def save(tables: Sequence[FileTable], about: Dict[str, Any]) -> bytes:
    """Return the bytes of a cache file; *about* is for its reader to compare."""
    import zlib
    parts: List[bytes] = []
    sizes: List[List[int]] = []
    for table in tables:
        blobs = ["\0".join(table.paths).encode("utf-8", "surrogatepass"), table.packed.tobytes(),
                 "".join(one or "-" * DIGEST_BYTES for one in table.digests).encode("ascii")]
        sizes.append([len(table.paths)] + [len(blob) for blob in blobs])
        parts += blobs
    check = 0
    for part in parts:
        check = zlib.crc32(part, check)
    head = dict(about, schema=SCHEMA_VERSION, sizes=sizes, sum=check, item=array("q").itemsize)
    return b"".join([json.dumps(head, separators=(",", ":")).encode("ascii"), b"\n", *parts])


def load(path: str) -> Tuple[Dict[str, Any], List[FileTable]]:
    """Return (what save() was told, the tables); ({}, []) for a file that is not there, or not whole."""
    import zlib
    try:
        with open_file(path) as file:
            head = json.loads(file.readline())
            body = file.read()
        if head["schema"] != SCHEMA_VERSION or head["sum"] != zlib.crc32(body) or head["item"] != array("q").itemsize:
            return {}, []
        tables, place = [], 0
        for count, *lengths in head["sizes"]:
            blobs = []
            for length in lengths:
                blobs.append(body[place:place + length])
                place += length
            packed = array("q")
            packed.frombytes(blobs[1])
            text = blobs[2].decode("ascii")
            digests = [text[start:start + DIGEST_BYTES] for start in range(0, len(text), DIGEST_BYTES)]
            paths = blobs[0].decode("utf-8", "surrogatepass").split("\0") if count else []
            if not len(paths) == len(digests) == count or len(packed) != count * FIELDS:
                return {}, []
            tables.append(FileTable(paths, packed, ["" if one[0] == "-" else one for one in digests]))
        return head, tables
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return {}, []
