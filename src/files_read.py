"""Whether an output would take the place of a file that its own stage reads, by whatever name it is read.

Above the leaf task_files. A folder may have several names (a link, a bind mount), and so may a file (a link): to write to the one is to write to all.
"""
from __future__ import annotations

import os

from primitives import as_here, folded, is_link, tells_absence
from task_files import POSITIVE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Dict, List, Sequence

MOST_LINKS = 40             # one behind the other, as Linux follows them


class FilesRead:
    """What a stage reads. paths: relative to *root*. inodes: of each; links count as what they lead to."""

    def __init__(self, root: str, output_dir: str, paths: Sequence[str], inodes: Sequence[int]) -> None:
        self.root, self.output_dir, self.paths, self.inodes = root, output_dir, paths, [one & POSITIVE for one in inodes]
        start = as_here(output_dir + "/")
        self._here = {path[len(start):] for path in map(as_here, paths) if path.startswith(start)}
        self._numbers = set(self.inodes)
        self._by_number: Dict[int, List[str]] = {}

    def name_of(self, name: str) -> str:
        """Return by which path the stage reads what lies at *name* below its output folder, "" if it does not."""
        if as_here(name) in self._here:
            return "%s/%s" % (self.output_dir, name)
        full = os.path.join(self.root, self.output_dir, name)
        try:
            number = os.stat(full).st_ino & POSITIVE
        except (OSError, ValueError):
            return ""                   # nothing is there that could have been read
        # A further name (a hard link) of what is read may go.
        return next((path for path in self._paths_of(number) if _leads_by(os.path.join(self.root, path), full)), "")

    def _paths_of(self, number: int) -> List[str]:
        if number not in self._numbers:
            return []
        if not self._by_number:
            for path, one in zip(self.paths, self.inodes):
                self._by_number.setdefault(one, []).append(path)
        return self._by_number[number]


def _leads_by(path: str, place: str) -> bool:
    """Tell whether *path* is *place* under another name, or a link that leads there or farther by it; nobody knows: True."""
    folder, name = os.path.split(place)
    try:
        for _ in range(MOST_LINKS):
            where, called = os.path.split(path)
            if folded(called) == folded(name) and os.path.samefile(where, folder):
                return True
            if not is_link(path):
                return False
            path = os.path.join(where, os.readlink(path))
    except OSError as error:
        return not tells_absence(error)
    return True
