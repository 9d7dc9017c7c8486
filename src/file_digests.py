"""Which files a glob names, and what is in them.

Above the leaf file_systems: paths and globs -> files -> SHA-256. Content is read once: a digest is kept with the file's signature and believed
while the signature is the same, unless the file was so fresh that a second write could have hidden behind the same
time stamp, or the machine was restarted since (pages that nobody synced may have been lost).
"""
from __future__ import annotations

import errno
import json
import os
import stat
import sys
import time
from collections import namedtuple

import file_systems
from model import sha256
from primitives import (
    LONGEST_PATH, close_quietly, composed, folded, go_on, is_junction, is_link, naming, open_file, refuse_too_long, remove_quietly)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Sequence, Set, Tuple

LINUX = sys.platform.startswith("linux")
SCHEMA_VERSION = 1
HASH_BLOCK_BYTES = 1 << 20
FRESH_NS = 20_000_000       # two writes closer than this may carry one time stamp (kernel ticks are 1 to 10 ms)
COARSE_NS = 2_000_000_000   # the same for file systems that keep whole seconds (FAT: two)
APART_NS = 300_000_000_000  # clocks of machines that share files may be so far apart
SETTLE_BYTES = 1 << 20      # files this large are worth waiting out FRESH_NS, so that their digest can be kept
SETTLE_WAITS = 5            # how often that is tried, for a busy machine's clock may be late


NO_MATCH = "no file matches"
NO_FILE = "there is no such file"
# EINVAL: no name that Windows has, as of a glob.
NOTHING_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL)


class FileChanged(Exception):
    """A file changed while it was being read; str() is its path."""


class ReadingStopped(Exception):
    """Raised by whoever was asked, between two blocks of a file, whether to go on reading, see Digests.heed."""


def has_wildcard(pattern: str) -> bool:
    return "*" in pattern or "?" in pattern or "[" in pattern


def is_hidden(name: str) -> bool:
    """Tell whether a name is a dot file, a marker or a part: neither input nor output."""
    return name.startswith(".") or name.endswith(".part")


def expand(root: str, pattern: str, seen: Optional[Set[str]] = None, skipped: str = "") -> List[str]:
    """Return the files below *root* that a path or glob names, relative, sorted by code point.

    *seen* gets what else the answer depends on: the folders that were listed, the links in them, what was not there.

    `*`, `?` and `[]` stay within a folder, `**` spans folders (not through links); hidden names match only where
    the pattern spells them. A file whose name is the pattern itself ("[x].txt") is meant, too, never alone: the file "*.txt" that
    a shell makes by mistake must not hide all others. Raises: OSError where it cannot be told what is there: a file that cannot
    be looked at must not pass for gone; but folders of the name *skipped*, which are left out where we may not list them.
    """
    found = {pattern} if stat.S_ISREG(_mode(os.path.join(root, pattern))) else set()
    if not found and not has_wildcard(pattern):
        refuse_too_long(os.path.join(root, pattern), LONGEST_PATH)
    if seen is not None and not found and (not has_wildcard(pattern) or "[" in pattern):
        seen.add(pattern)
    if has_wildcard(pattern):
        _walk(root, "", pattern.split("/"), found, seen, skipped)
    return sorted(found)


def _walk(folder: str, prefix: str, segments: List[str], found: Set[str], seen: Optional[Set[str]], skipped: str) -> None:
    first, rest = segments[0], segments[1:]
    if first == "**" and rest:
        _walk(folder, prefix, rest, found, seen, skipped)
    elif not has_wildcard(first):
        full = os.path.join(folder, first)
        mode = _mode(full)
        if not mode:
            refuse_too_long(full, LONGEST_PATH)
        _step(full, prefix + first, rest, stat.S_ISDIR(mode), stat.S_ISREG(mode), found, seen, skipped)
        return
    if seen is not None:
        seen.add(prefix[:-1] or ".")
    matches = segment_matcher(first)
    try:
        with os.scandir(folder) as entries:
            found_there = list(entries)
    except FileNotFoundError:
        refuse_too_long(folder)         # for a moment ago it was there
        return
    except NotADirectoryError:
        return
    except PermissionError:
        if os.path.basename(folder) != skipped:
            raise
        return
    for name, is_folder, is_file, is_linked in map(_kind, found_there):
        if is_linked and seen is not None:
            seen.add(prefix + name)
        if first == "**":
            if is_folder and not is_linked and not is_hidden(name):
                _walk(os.path.join(folder, name), prefix + name + "/", segments, found, seen, skipped)
            elif not rest and is_file and not is_hidden(name):
                found.add(prefix + name)
        elif matches(name):
            _step(os.path.join(folder, name), prefix + name, rest, is_folder, is_file, found, seen, skipped)


def _step(full: str, relative: str, rest: List[str], is_folder: bool, is_file: bool, found: Set[str], seen: Optional[Set[str]],
          skipped: str) -> None:
    if rest and is_folder:
        _walk(full, relative + "/", rest, found, seen, skipped)
    elif not rest and is_file:
        found.add(relative)
    elif seen is not None:
        seen.add(relative)


def _mode(path: str) -> int:
    """Return what kind of thing is at *path*, as st_mode has it, 0 for nothing. Raises: OSError."""
    try:
        return os.stat(path).st_mode
    except ValueError:
        return 0
    except OSError as error:
        if error.errno in NOTHING_THERE:
            return 0
        raise


def _kind(entry: os.DirEntry[str]) -> Tuple[str, bool, bool, bool]:
    """Return (name, is a folder, is a file, is a link), most often without a look at the file itself."""
    try:
        is_folder = entry.is_dir()
        return entry.name, is_folder, entry.is_file(), entry.is_symlink() or is_folder and is_junction(entry)
    except OSError:
        if not entry.is_symlink():
            raise
        return entry.name, False, False, True       # a link that leads to itself


def segment_matcher(segment: str) -> Callable[[str], bool]:
    """Return a test of one path part against a glob part; case counts on every system."""
    import fnmatch
    import re
    match = re.compile(fnmatch.translate(composed(segment))).match
    spelled = segment.startswith("."), segment.endswith(".part")
    return lambda name: match(composed(name)) is not None and (spelled[0] or not name.startswith(".")) and (spelled[1] or not name.endswith(".part"))


def path_matches(path: str, pattern: str) -> bool:
    """Tell whether a relative path matches a glob, part by part, `**` for any number of parts. Many of them: see Patterns."""
    return _match(composed(path).split("/"), composed(pattern).split("/"), {})


def _match(parts: List[str], segments: List[str], matchers: Dict[str, Callable[[str], bool]]) -> bool:
    """*matchers* keeps what segment_matcher() has made of the glob parts that were asked for."""
    if not segments:
        return not parts
    first = segments[0]
    if first == "**":
        return any(_match(parts[skip:], segments[1:] or ["*"], matchers) for skip in range(len(parts)))
    if not parts:
        return False
    if parts[0] != first:
        if not has_wildcard(first):
            return False
        if first not in matchers:
            matchers[first] = segment_matcher(first)
        if not matchers[first](parts[0]):
            return False
    return _match(parts[1:], segments[1:], matchers)


def fixed_part(pattern: str) -> str:
    """Return what stands before the first wildcard."""
    return pattern.split("*")[0].split("?")[0].split("[")[0]


class Patterns:
    """Relative paths and globs that many paths are to be compared with, as path_matches() does: each is made ready once, and of
    the globs only those are tried that begin as the path does."""

    def __init__(self, patterns: Sequence[str]) -> None:
        self.patterns = patterns
        self._names = set(map(composed, patterns))      # a file whose name is the pattern itself is meant, wildcard and all
        self._globs: Dict[str, List[Tuple[str, List[str]]]] = {}     # fixed part -> [(glob, its parts)]
        for pattern in filter(has_wildcard, self._names):
            self._globs.setdefault(fixed_part(pattern), []).append((pattern, pattern.split("/")))
        self._lengths = sorted(set(map(len, self._globs)))
        self._matchers: Dict[str, Callable[[str], bool]] = {}

    def matches(self, path: str) -> bool:
        """Tell whether one of the patterns, at least, matches a path."""
        path = composed(path)
        return path in self._names or bool(self._globs) and any(
            _match(path.split("/"), segments, self._matchers) for _, segments in self._near(path))

    def unmatched(self, paths: Iterable[str]) -> List[str]:
        """Return the patterns that match none of the paths, in their order."""
        left = set(self._names)
        for path in map(composed, paths):
            left.discard(path)
            left.difference_update([glob for glob, segments in self._near(path) if glob in left and _match(path.split("/"), segments, self._matchers)])
        return [pattern for pattern in self.patterns if composed(pattern) in left]

    def _near(self, path: str) -> Iterator[Tuple[str, List[str]]]:
        """Yield (glob, its parts) for those that begin as the path does."""
        for length in self._lengths:
            yield from self._globs.get(path[:length], ())


def _encoding_hint(pattern: str) -> str:
    """Return what to say of a name that this locale writes with other bytes than most systems do."""
    encoding = sys.getfilesystemencoding()
    return "" if pattern.isascii() or encoding.lower().replace("-",
        "") == "utf8" else " (file names are %s in this locale; if they are UTF-8, run with PYTHONUTF8=1)" % encoding


class Found(namedtuple("Found", "files problems unfit")):
    """What globs found: files in their order, each once; what is wrong with the globs, texts; {file: what is wrong with that one
    alone}."""

    __slots__ = ()


def resolve(root: str, patterns: Sequence[str], seen: Optional[Set[str]] = None) -> Tuple[List[str], List[str]]:
    """Return (files in the order of *patterns*, each once; what is wrong: one text for each pattern or name). seen: as in
    expand()."""
    found = look_for(root, patterns, seen)
    return [path for path in found.files if path not in found.unfit], [*found.problems, *found.unfit.values()]


def look_for(root: str, patterns: Sequence[str], all_seen: Optional[Set[str]] = None) -> Found:
    """Return what the globs find. A file whose name is not UTF-8 stands there by a name that can be written down. all_seen: as
    `seen` in expand()."""
    files: Dict[str, None] = {}
    unfit: Dict[str, str] = {}
    problems = []
    for pattern in patterns:
        seen: Set[str] = set()
        try:
            found = expand(root, pattern, seen)
        except OSError as error:
            problems.append("input %s: cannot look at %s: %s" % (pattern, _below(root, error.filename), error.strerror))
            continue
        if all_seen is not None:
            all_seen |= seen
        for path in sorted(path for path in seen if _leads_nowhere(os.path.join(root, path)) and _is_on_the_way(path, pattern)):
            why = "input %s is a link that leads nowhere: mount or make what it names, or remove it" % path
            if is_unicode(path) and path_matches(path, pattern):
                files[path], unfit[path] = None, why
            else:
                problems.append(why)
        if not found and not any(path_matches(path, pattern) for path in unfit):
            problems.append(_nothing_found(root, pattern))
        for path in found:
            if not is_unicode(path):
                named = path.encode("utf-8", "backslashreplace").decode("utf-8")
                unfit[named] = "input %s: the name is not UTF-8 text here; rename it%s" % (ascii(path), _utf8_hint(path))
                path = named
            files[path] = None
    if len(patterns) > 1:               # one alone spells each of its files in one way
        problems += _spelled_twice(root, [path for path in files if path not in unfit])
    return Found(list(files), problems, unfit)


def _spelled_twice(root: str, paths: List[str]) -> List[str]:
    """Return what is wrong with files that are named in two ways, which differ in case (macOS: or in how accents are written), on
    a file system that does not tell these apart."""
    if len(set(map(folded, paths))) == len(paths):
        return []
    problems: List[str] = []
    alike: Dict[str, List[str]] = {}
    listed: Dict[str, Set[str]] = {}
    for path in paths:
        others = alike.setdefault(folded(path), [])
        first = next((one for one in others if _is_one_file(root, one, path, listed)), None)
        if first is None:
            others.append(path)
        else:
            same = "upper and lower case are the same" if composed(path) != composed(
                first) else "an accent with its letter and by itself are the same"
            problems.append("input %s is %s once more, for %s here: spell it in one way" % (path, first, same))
    return problems


def _is_one_file(root: str, one: str, other: str, listed: Dict[str, Set[str]]) -> bool:
    """Tell whether two paths that folded() takes for equal name one file; not if each is a name of its own, as that of a link or
    a hard link.

    Of two such names both stand in the list of their folder. *listed* keeps the lists.
    """
    folder = root
    try:
        for name, second in zip(one.split("/"), other.split("/")):
            if name != second:
                if folder not in listed:
                    listed[folder] = set(os.listdir(folder))
                if name in listed[folder] and second in listed[folder]:
                    return False
            folder = os.path.join(folder, name)
        return os.path.samefile(os.path.join(root, one), os.path.join(root, other))
    except OSError:
        return False                    # nobody can tell


def _nothing_found(root: str, pattern: str) -> str:
    """Return what is said of a glob that finds no file."""
    if os.path.isdir(os.path.join(root, pattern)):
        return "input %s is a folder: write %s/** for the files in it" % (pattern, pattern)
    if os.path.exists(os.path.join(root, pattern)) and not os.path.isfile(os.path.join(root, pattern)):
        return "input %s is a pipe or a device, which has no content to compare: let it be a file" % pattern
    return "input %s%s: %s" % (pattern, _encoding_hint(pattern), NO_MATCH if has_wildcard(pattern) else NO_FILE)


def _utf8_hint(path: str) -> str:
    try:
        os.fsencode(path).decode("utf-8")
    except UnicodeDecodeError:
        return ""
    return ", or run with PYTHONUTF8=1"


def _is_on_the_way(path: str, pattern: str) -> bool:
    """Tell whether a link, or what is below it, is meant by a pattern; `**` alone goes through none."""
    segments = pattern.split("/")
    parts = [segments[:count] for count, last in enumerate(segments, 1) if last != "**" or count == len(segments)]
    return any(path_matches(path, "/".join(part)) for part in parts)


def _below(root: str, folder: Optional[str]) -> str:
    return "a folder" if folder is None else os.path.relpath(folder, root).replace(os.sep, "/")


def _leads_nowhere(path: str) -> bool:
    return is_link(path) and not os.path.exists(path)


def is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def signature(stat: os.stat_result) -> List[int]:
    """Return what changes when a file changes: size, times, inode, device."""
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, stat.st_dev]


def _signature_of(file: Any, path: str) -> List[int]:
    """Return the signature of a file that is open, as its path gives it. Raises: OSError.

    On Windows the path is asked: there os.fstat() may give another time as st_ctime than os.stat() (python/cpython#157671: that of
    the last change, not of the creation), and the two would never be equal. A file that Python has open cannot be replaced there.
    """
    return signature(os.stat(path) if sys.platform == "win32" else os.fstat(file.fileno()))


def is_same_but_status(before: List[int], after: List[int]) -> bool:
    """Tell whether two signatures differ in the time of the last change of status alone, which a write changes, too."""
    return after != before and [*after[:2], *after[3:]] == [*before[:2], *before[3:]]


def is_unsure(before: List[int], now: List[int]) -> bool:
    """Tell whether only its content tells if a file has changed: on file systems that show no change in its times, and those whose
    driver numbers its files anew when it likes."""
    doubt = file_systems.doubt_of(now[4])
    if before == now:
        return bool(doubt) and is_untold(doubt, now[1], now[2])
    return doubt in (file_systems.UNTOLD, file_systems.BY_ITS_TIMES) and [*before[:3], before[4]] == [*now[:3], now[4]]


class Digests:
    """SHA-256 of files, remembered across runs in state/digests.json; a cache only, rebuilt when lost or damaged.

    keep=False (planning) believes what is stored but stores nothing. boot is the id of this start of the machine.
    """

    def __init__(self, root: str, boot: str, keep: bool = True, rehash: bool = False) -> None:
        self.root, self.boot, self.keep = root, boot, keep
        self.trusts_stored = not rehash     # also what others have stored by signature
        self.path = os.path.join(root, "state", "digests.json")
        self.files: Dict[str, List[Any]] = {}
        self.scans: Dict[str, Any] = {}
        self.guard = ""                     # what stands for the rules by which these were made, once it is known
        self.used: Dict[str, Tuple[str, List[int]]] = {}
        # Asked between blocks, from any thread: raises ReadingStopped when a run is to stop.
        self.heed: Callable[[], None] = go_on
        self.folders: Dict[str, Set[str]] = {}
        self.changed = False
        self.unsaved_bytes = 0
        self._probe: Optional[_Probe] = None
        self._load(rehash)

    def _load(self, rehash: bool) -> None:
        try:
            with open_file(self.path) as file:
                stored = json.loads(file.read())
            if stored["schema"] == SCHEMA_VERSION and isinstance(stored["files"], dict) and isinstance(stored["scans"], dict):
                self.files = {} if rehash else stored["files"]
                self.scans = {digest: scan for digest, scan in stored["scans"].items() if _is_scan(scan)}
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            self.changed = True

    def of(self, path: str) -> Tuple[str, List[int]]:
        """Return (SHA-256, signature) of the file at *path*, relative to the root or absolute.

        Each file is looked at once in a run, unless forgotten. Raises: OSError; FileChanged when the file does not stay
        the same while it is read.
        """
        if path in self.used:
            return self.used[path]
        full = os.path.join(self.root, path)
        now = signature(os.stat(full))
        digest = self._stored(path, now)
        if not digest:
            digest, now, settled = self._take(full, now)
            self.changed = self.changed or self.keep
            self.unsaved_bytes += now[0]
            if settled:
                self.files[path] = now + [digest, self.boot]
            else:
                self.files.pop(path, None)
        self.used[path] = (digest, now)
        return self.used[path]

    def is_known(self, path: str, least_bytes: int) -> bool:
        """Tell whether of() would not have to read the file at *path*, or it is smaller than *least_bytes*, or not there."""
        if path in self.used:
            return True
        try:
            now = signature(os.stat(os.path.join(self.root, path)))
        except OSError:
            return True
        return now[0] < least_bytes or bool(self._stored(path, now))

    def _stored(self, path: str, now: List[int]) -> str:
        """Return the digest that is stored for a file of signature *now*, "" if there is none to be believed."""
        entry = self._entry(path)
        return str(entry[5]) if entry is not None and entry[:5] == now and entry[6] in ("", self.boot) else ""

    def _entry(self, path: str) -> Optional[List[Any]]:
        """Return what is kept of the file at *path*: its signature, its digest and a boot id; None if that is nothing of use."""
        entry = self.files.get(path)
        return entry if isinstance(entry, list) and len(entry) == 7 else None

    def of_output(self, path: str) -> Tuple[int, str]:
        """Return (bytes, SHA-256) of an output; a link is its target's name, not the file behind it. Raises: as of()."""
        full = os.path.join(self.root, path)
        if is_link(full):
            return _link_content(full)
        digest, stamp = self.of(path)
        return stamp[0], digest

    def know(self, path: str, digest: str) -> None:
        """Take the digest of a file that was hashed while it was written, unless a later write could have the same time stamp."""
        stamp = signature(os.stat(os.path.join(self.root, path)))
        now, device = self.file_system_time()
        # The change time is that of its renaming: that of the contents stands in for it.
        if is_settled([stamp[0], stamp[1], stamp[1], stamp[3], stamp[4]], now, device):
            self.files[path] = stamp + [digest, self.boot]
            self.changed = True

    def names_in(self, folder: str) -> Set[str]:
        """Return the names in a folder below the root (or absolute), listed once; none if there is no folder that we may list.
        Raises: OSError."""
        if folder not in self.folders:
            try:
                self.folders[folder] = set(os.listdir(os.path.join(self.root, folder)))
            except (FileNotFoundError, NotADirectoryError, PermissionError):
                self.folders[folder] = set()
        return self.folders[folder]

    def is_vouched(self, path: str) -> bool:
        """Tell whether the digest of *path* needs no sync of the file: it outlives a restart, or is not kept at all."""
        entry = self._entry(path)
        return entry is None or entry[6] == ""

    def vouch(self, path: str) -> None:
        """Say that the file at *path* has been synced: its digest outlives a restart."""
        entry = self._entry(path)
        if entry is not None and entry[6]:
            entry[6] = ""
            self.changed = True

    def stamps(self) -> Dict[str, List[int]]:
        """Return {path: signature} of all that was looked at."""
        return {path: stamp for path, (_, stamp) in self.used.items()}

    def forget(self, path: str) -> None:
        """Look again at *path* the next time."""
        self.used.pop(path, None)

    def _take(self, full: str, before: List[int]) -> Tuple[str, List[int], bool]:
        for _ in range(3):
            settled = self.keep and self._is_settled(before)
            if self.keep and not settled and before[0] >= SETTLE_BYTES:
                settled = self._wait_until_settled(before)
            digest, after = hash_file(full, self.heed)
            if after == before:
                return digest, after, settled
            before = signature(os.stat(full))
        raise FileChanged(full)

    def _wait_until_settled(self, stamp: List[int]) -> bool:
        """Wait some ticks of the file system's clock, which is cheaper than to read a large file again next time."""
        doubt = file_systems.doubt_of(stamp[4])
        if newest_time(doubt, stamp[1], stamp[2]) > self.file_system_time()[0] + COARSE_NS:
            return False                            # a time stamp of the future: waiting does not help
        if is_untold(doubt, stamp[1], stamp[2]):
            return False
        for _ in range(SETTLE_WAITS):
            time.sleep(1.5 * FRESH_NS / 1e9)        # half as long again, for the clock moves in ticks
            if self._is_settled(stamp):
                return True
        return False

    def _is_settled(self, stamp: List[int]) -> bool:
        """Tell whether a write from now on must get another time stamp than *stamp* has.

        Asked of the file system's own clock where that can be had: it may lag behind or be on another machine.
        Source: git's rule for racily clean entries.
        """
        now, device = self.file_system_time()
        return is_settled(stamp, now, device)

    def file_system_time(self) -> Tuple[int, int]:
        """Return (time in ns, device) by the clock of the file system of state/; nothing is settled by what planning gets."""
        if not self.keep:
            return 0, -1
        try:
            if self._probe is None:
                self._probe = _Probe(os.path.join(os.path.dirname(self.path), ".clock.tmp"))
            found = self._probe.time()
            if self._probe.is_named:
                self.close()            # Windows may write a file's time when it is closed
            return found
        except OSError:
            self.close()
            return 0, -1                # state/ not there or not writable yet, or full: nothing is settled by it

    def close(self) -> None:
        """Give back what file_system_time() holds open."""
        probe, self._probe = self._probe, None
        if probe is not None:
            probe.close()

    def to_bytes(self) -> bytes:
        """Return what to store; what this run did not use is dropped when it has become the most."""
        if len(self.files) > 1000 + 4 * len(self.used):
            self.files = {path: entry for path, entry in self.files.items() if path in self.used}
        self.unsaved_bytes = 0
        data = {"schema": SCHEMA_VERSION, "files": self.files, "scans": self.scans}
        return json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogateescape")


def _is_scan(scan: Any) -> bool:
    """Tell whether a value has the form of what program_scan remembers of a program: others work with it unseen."""
    def is_list(name: str, is_one: Callable[[Any], bool]) -> bool:
        return isinstance(scan.get(name), list) and all(map(is_one, scan[name]))

    def is_finding(one: Any) -> bool:
        return isinstance(one, list) and list(map(type, one)) == [int, str, str]
    return isinstance(scan, dict) and is_list("refused", is_finding) and is_list("warned", is_finding) and is_list(
        "imports", lambda name: isinstance(name, str))


class _Probe:
    """A file that tells the time of its file system: what is written to it gets that. Its name is gone at once, where the system
    can."""

    def __init__(self, path: str) -> None:
        """Raises: OSError."""
        self.path, self.is_named = path, sys.platform == "win32"
        self.descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_NOFOLLOW", 0), 0o600)
        if not self.is_named:
            remove_quietly(path)       # another run may have done it already

    def time(self) -> Tuple[int, int]:
        """Return (time in ns, device). Raises: OSError."""
        os.lseek(self.descriptor, 0, os.SEEK_SET)
        os.write(self.descriptor, b".")
        stat = os.fstat(self.descriptor)
        return stat.st_mtime_ns, stat.st_dev

    def close(self) -> None:
        """Called, not left to __del__: there a signal's exception would be lost, with a traceback for the user."""
        close_quietly(self.descriptor)
        if self.is_named:
            remove_quietly(self.path)


def is_untold(doubt: str, mtime_ns: int, ctime_ns: int) -> bool:
    """Tell whether a change of a file might not show in its times, on a file system of which there is a doubt."""
    if doubt == file_systems.BY_ITS_TIMES:
        return mtime_ns >= ctime_ns         # a driver may leave the time of the change at 0
    return doubt == file_systems.UNTOLD or doubt == file_systems.LAYERED and ctime_ns % 1_000_000_000 == 0


def newest_time(doubt: str, mtime_ns: int, ctime_ns: int) -> int:
    """Return the time that a later write must get another than, so that it shows.

    Where Linux has no doubt about a file system, that is ctime: each write sets it, and no program can set it to another time. A
    modification time, which may be of the future for years, does not matter beside it. Elsewhere ctime may be another thing (on Windows
    the time of the creation), or another machine's: there both count.
    """
    return ctime_ns if LINUX and doubt in file_systems.OWN_CLOCK else max(mtime_ns, ctime_ns)


def may_be_coarse(mtime_ns: int, ctime_ns: int) -> bool:
    """Tell whether the times of a file may be those of a file system that keeps whole seconds."""
    return mtime_ns % 1_000_000_000 == 0 or ctime_ns % 1_000_000_000 == 0


def is_settled(stamp: List[int], now: int, device: int) -> bool:
    """Tell whether a write after *now*, a time of the file system on *device*, must get another time stamp than *stamp* has."""
    doubt = file_systems.doubt_of(stamp[4])
    newest = newest_time(doubt, stamp[1], stamp[2])
    if doubt and is_untold(doubt, stamp[1], stamp[2]):
        return False
    if device != stamp[4]:
        return newest < time.time_ns() - (COARSE_NS if doubt in file_systems.OWN_CLOCK else APART_NS)
    return newest < now - (COARSE_NS if may_be_coarse(stamp[1], stamp[2]) else FRESH_NS)


def output_content(full: str, heed: Callable[[], None] = go_on) -> Tuple[int, str]:
    """Return (bytes, SHA-256) of an output, (-1, "") if it cannot be read; a link is its target's name, not the file behind
    it."""
    try:
        return read_content(full, heed)
    except OSError:
        return -1, ""


def read_content(full: str, heed: Callable[[], None] = go_on) -> Tuple[int, str]:
    """As output_content(), but for (-1, ""): that is a file which changed meanwhile. Raises: OSError."""
    if is_link(full):
        return _link_content(full)
    digest, stamp = hash_file(full, heed)
    return (stamp[0], digest) if stamp else (-1, "")


def _link_content(full: str) -> Tuple[int, str]:
    """Return (bytes, SHA-256) of a link as an output: of its target's name."""
    target = os.fsencode(os.readlink(full))
    return len(target), sha256(b"link\0" + target).hexdigest()


def hash_file(path: str, heed: Callable[[], None] = go_on) -> Tuple[str, List[int]]:
    """Return (SHA-256, signature of what was read), of a file that changed meanwhile the signature is [].

    heed: called after each block. Raises: OSError, for a pipe or device, too; what heed() raises.
    """
    with naming(path), open_file(path, 0) as file:
        before = _signature_of(file, path)
        digest = sha256(size=before[0])
        buffer = bytearray(max(1, min(before[0] + 1, HASH_BLOCK_BYTES)))
        view = memoryview(buffer)
        while True:
            count = file.readinto(buffer)
            if not count:
                break
            digest.update(view[:count])
            heed()
        after = _signature_of(file, path)
    return digest.hexdigest(), after if after == before else []


def hash_prefix(path: str, size: int) -> str:
    """Return the SHA-256 of the first *size* bytes of a file."""
    digest = sha256(size=size)
    with naming(path), open_file(path, 0) as file:
        while size > 0:
            block = file.read(min(size, HASH_BLOCK_BYTES))
            if not block:
                break
            digest.update(block)
            size -= len(block)
    return digest.hexdigest()
