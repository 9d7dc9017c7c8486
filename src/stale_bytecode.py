"""Bytecode that Python has cached of a module's earlier text: removed before a processor is given it.

A leaf. Python takes a cached file for that of a module whose size and modification time, in whole seconds, it bears (PEP 3147,
`importlib`). Two edits of one length within a second, and archives with fixed times, deceive it: a stage would run because its
key knows the text, and would use the old one. Times alone do not tell: the clock may have been wrong for a while, and a folder that
is put in another's place brings its files with theirs. So who calls says of which modules the text is another than before.
"""
from __future__ import annotations

import os
import sys
import time

from primitives import open_file, unlink

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Container, Dict, Iterable, List

CODE_AT = 16                # in a cached file: behind magic number, flags, time and size


def drop(root: str, modules: Iterable[str], prefix: str = "", doubted: Container[str] = ()) -> str:
    """Remove the cached bytecode that may be older than its module; return why a module cannot be relied on, or "".

    modules: paths below *root*. prefix: PYTHONPYCACHEPREFIX of who imports them, "" without one. doubted: modules of which all
    goes. Of the others stays what was cached after the last change of the module, and not in the future; Windows does not tell
    when that was, so there the text is compiled and compared. What cannot be removed stays, too, if it is what compiling the
    module gives, or cannot be read.
    """
    listed: Dict[str, List[str]] = {}
    moved: Dict[str, int] = {}
    for path in modules:
        full = os.path.join(root, path)
        try:
            changed_ns = max(_changed_ns(full), _moved_ns(root, os.path.dirname(path), moved) if prefix else 0)
        except OSError:
            continue                    # it is not there any more; the attempt says so
        for cached in _cached(full, os.path.join(root, prefix) if prefix else "", listed):
            try:
                if path in doubted or _is_untimely(cached, changed_ns) or sys.platform == "win32" and _is_of_other_text(cached, full):
                    unlink(cached)
            except OSError as error:
                if _is_of_other_text(cached, full):
                    return "Python would take %s for %s, but it is of an earlier text of it, and cannot be removed (%s): remove it" % (
                        os.path.relpath(cached, root).replace(os.sep, "/"), path, error.strerror)
    return ""


def _is_untimely(cached: str, changed_ns: int) -> bool:
    """Tell whether a cached file was not made after its module's change, or by a clock that has been put back since. Raises: OSError."""
    found = os.stat(cached)
    return found.st_mtime_ns <= changed_ns or max(found.st_mtime_ns, found.st_ctime_ns) > time.time_ns()


def _moved_ns(root: str, folder: str, known: Dict[str, int]) -> int:
    """Return when a folder, or one between it and *root*, was changed or put there: what is cached elsewhere does not move with it.
    Raises: OSError."""
    if not folder:
        return 0
    if folder not in known:
        full = os.path.join(root, folder)
        above = "" if os.path.isabs(folder) else os.path.dirname(folder)
        known[folder] = max(os.stat(full).st_ctime_ns, os.lstat(full).st_ctime_ns, _moved_ns(root, above, known))
    return known[folder]


def _changed_ns(path: str) -> int:
    """Return when a file, or the link that stands for it, was changed or put there; on Windows its ctime is that of its making.
    Raises: OSError."""
    found, link = os.stat(path), os.lstat(path)
    return max(found.st_mtime_ns, found.st_ctime_ns, link.st_ctime_ns)


def _cached(path: str, prefix: str, listed: Dict[str, List[str]]) -> List[str]:
    """Return the cached files of a module, of all versions of Python. prefix: as importlib has it. listed: folders that are
    known."""
    place, name = os.path.split(os.path.abspath(path))
    folder = os.path.join(prefix, os.path.splitdrive(place)[1].lstrip("/\\")) if prefix else os.path.join(place, "__pycache__")
    if folder not in listed:
        try:
            listed[folder] = os.listdir(folder)
        except OSError:
            listed[folder] = []         # not there; or not to be read, by who imports the module neither
    begin = os.path.splitext(name)[0] + "."
    return [os.path.join(folder, one) for one in listed[folder] if one.startswith(begin) and one.endswith(".pyc")]


def _is_of_other_text(cached: str, path: str) -> bool:
    """Tell whether this interpreter would use a cached file, and get something else from it than from the module."""
    import marshal
    from importlib.util import MAGIC_NUMBER
    if os.path.basename(cached) != "%s.%s.pyc" % (os.path.splitext(os.path.basename(path))[0], sys.implementation.cache_tag):
        return False
    try:
        with open_file(cached) as file:
            data = file.read()
        with open_file(path) as file:
            source = file.read()
        return data.startswith(MAGIC_NUMBER) and bool(marshal.loads(data[CODE_AT:]) != compile(source, path, "exec", dont_inherit=True))
    except (OSError, ValueError, EOFError, TypeError, SyntaxError):
        return False                    # Python will say what is wrong
