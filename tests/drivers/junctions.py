"""Run the runner as a program to which links of this system look as junctions of Windows look there.

    python junctions.py RUNNER '["link", ...]' ARGUMENT...

To Python a junction is a folder: lstat and scandir say so, islink() denies it; only st_reparse_tag tells. What is no link (yet) is as it is.
"""
import json
import os
import runpy
import stat
import sys
from types import SimpleNamespace

MOUNT_POINT = 0xA0000003


class Entry:
    """An entry of a folder that is a junction."""

    def __init__(self, entry):
        self.name, self.path = entry.name, entry.path

    def is_dir(self, follow_symlinks=True):
        return True

    def is_file(self, follow_symlinks=True):
        return False

    def is_symlink(self):
        return False

    def is_junction(self):
        return True                     # from Python 3.12 on

    def stat(self, follow_symlinks=True):
        return os.stat(self.path) if follow_symlinks else os.lstat(self.path)


class Entries:
    """What scandir() returns."""

    def __init__(self, entries):
        self.entries = iter(entries)

    def __iter__(self):
        return self

    def __next__(self):
        return next(self.entries)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    close = __exit__


class Windows:
    """The module sys, as it is, but for the platform."""

    platform = "win32"

    def __getattr__(self, name):
        return getattr(sys, name)


def pretend(links, set_attribute=setattr):
    """Let *links* look as junctions; set_attribute: as setattr()."""
    import primitives
    lstat, scandir, readlink, is_link, names = os.lstat, os.scandir, os.readlink, os.path.islink, set(map(os.path.abspath, links))

    def is_one(path):
        try:
            return isinstance(path, str) and os.path.abspath(path) in names and stat.S_ISLNK(lstat(path).st_mode)
        except OSError:
            return False

    def look(path, **options):
        found = lstat(path, **options)
        if not is_one(path):
            return found
        values = {name: getattr(found, name) for name in dir(found) if name.startswith("st_")}
        return SimpleNamespace(**dict(values, st_mode=stat.S_IFDIR | 0o777, st_reparse_tag=MOUNT_POINT))

    def entries(path="."):
        with scandir(path) as found:
            return Entries([Entry(one) if isinstance(path, str) and is_one(one.path) else one for one in found])
    set_attribute(os, "lstat", look)
    set_attribute(os, "scandir", entries)
    set_attribute(os, "readlink", lambda path, **options: ("\\\\?\\" if is_one(path) else "") + readlink(path, **options))
    set_attribute(os.path, "islink", lambda path: not is_one(path) and is_link(path))
    set_attribute(primitives, "sys", Windows())


if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.abspath(sys.argv[1])))
    pretend(json.loads(sys.argv[2]))
    sys.argv = [sys.argv[1]] + sys.argv[3:]
    runpy.run_path(sys.argv[0], run_name="__main__")
