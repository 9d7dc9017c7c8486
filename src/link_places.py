"""Where paths of the spec lead to that go through links: an input may be another stage's output by another name.

Above file_digests. Each folder and file is looked at once for one Places; a link may lead elsewhere at any later time.
"""
from __future__ import annotations

import os

from file_digests import fixed_part, has_wildcard
from primitives import is_link

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Dict


class Places:
    """Paths below one root, followed to where they are. What is not there, or leads out of the root, has a place all the same."""

    def __init__(self, root: str) -> None:
        self.root = os.path.realpath(root)      # on Windows the root may go through links itself
        self.folders: Dict[str, str] = {"": ""}
        self.files: Dict[str, str] = {}

    def of(self, pattern: str) -> str:
        """Return where a path, or the folder in which a glob begins, leads to: relative to the root, outside of it absolute."""
        if not has_wildcard(pattern):
            return self.of_file(pattern)
        folder = fixed_part(pattern).rpartition("/")[0]
        real = self.of_folder(folder)
        return pattern if real == folder else joined(real, pattern[len(folder) + 1:])

    def of_folder(self, path: str) -> str:
        """As of(), of a folder."""
        if path not in self.folders:
            if os.path.isabs(path):
                self.folders[path] = self._below(os.path.realpath(path))
            real, done = "", ""
            for name in path.split("/") if not os.path.isabs(path) else ():
                done = joined(done, name)
                if done not in self.folders:
                    self.folders[done] = self._followed(joined(real, name))
                real = self.folders[done]
        return self.folders[path]

    def of_file(self, path: str) -> str:
        """As of(), of a file, whatever signs are in its name."""
        if path not in self.files:
            folder, _, name = path.rpartition("/")
            is_apart = os.path.isabs(path)
            self.files[path] = self._below(os.path.realpath(path)) if is_apart else self._followed(joined(self.of_folder(folder), name))
        return self.files[path]

    def _followed(self, path: str) -> str:
        full = os.path.join(self.root, path)
        return self._below(os.path.realpath(full)) if is_link(full) else path

    def _below(self, full: str) -> str:
        top = os.path.join(self.root, "")
        path = full[len(top):] if full.startswith(top) else "" if full == self.root else full
        return path.replace(os.sep, "/")


def joined(folder: str, name: str) -> str:
    return folder + "/" + name if folder else name
