"""Files that are whole and durable after a kill or a power cut: writing, syncing, removing.

A leaf. Everything here is written so that a kill at any instruction leaves the old or the new, whole, and so that what
is durable is durable in order: first the content, then the name. Names are made durable in groups (Commit), and so is the
content of what is added to one.
"""
from __future__ import annotations

import errno
import os
import stat
import sys
import time

from primitives import HELD_BEGINS, close_quietly, is_junction, is_link, open_descriptor, refuse_too_long, remove_quietly, replace, rmtree, unlink

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, Iterable, List, Optional, Tuple, Union

    from primitives import Piece
    Data = Union[Piece, List[Piece]]

GROUP_FILES = 512           # names and files that are made durable together, at most
MANY_FILES = 64             # from here on, by one call for the whole file system
FLUSH_S = 1.0
# Of opening what is to be synced: it is gone, its folder a file now, a link (its name is the folder's, what it leads to none of
# ours), a socket.
NO_CONTENT = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO)


def sync_file(descriptor: int) -> None:
    """Flush a file to the device; on macOS fsync stops at the drive's cache, F_FULLFSYNC does not.

    A failure is never retried: the kernel may have marked the lost pages clean.
    """
    _flush(descriptor)


def _flush(descriptor: int) -> None:
    if sys.platform == "darwin":
        import fcntl
        try:
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
            return
        except OSError:
            pass                        # file systems without it: plain fsync is all there is
    os.fsync(descriptor)


def sync_folder(path: str) -> None:
    """Make names in a folder durable (POSIX; Windows has no such call and needs none for NTFS metadata)."""
    if sys.platform == "win32":
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _sync_as_far_as_it_can(path, descriptor, _flush)
    finally:
        close_quietly(descriptor)


def held_as(path: str) -> str:
    """Return the one spelling by which a Commit holds a file, as Windows takes both slashes."""
    return path.replace("/", os.sep)


class Commit:
    """Names and files that must be durable before the run may end, flushed in groups.

    What it holds is already in place for any reader and survives a kill; only a power cut could undo it, and then
    the older state is found, complete.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.folders: Dict[str, None] = {}
        self.files: Dict[str, None] = {}
        self.removed: Dict[str, None] = {}      # folders out of which something went
        self.kept: Dict[str, Any] = {}          # what is of no use any more once all this is durable, and what it looked like
        self.is_timed = False                   # it must not wait for the end of whatever is at work
        self.clock = clock
        self.since = clock()

    def add_file(self, path: str) -> None:
        """Let a file's content be made durable, and its name. It is held once, however its path is put together on Windows."""
        path = held_as(path)
        self.files[path] = self.folders[os.path.dirname(path)] = None

    def keep(self, path: str) -> None:
        """Let a file go once all this is durable."""
        self.kept[path] = stamp_of(path)

    def is_due(self) -> bool:
        return len(self.folders) + len(self.removed) + len(self.files) >= GROUP_FILES or self.clock() - self.since >= FLUSH_S

    def seconds_left(self) -> Optional[float]:
        """Return when to flush while nothing else happens, None for not at all."""
        return max(0.0, self.since + FLUSH_S - self.clock()) if self.is_timed else None

    def flush(self) -> None:
        """Sync all folders out of which something went, then all files, then the other folders. Raises: OSError, with what failed
        still held.

        In this order, as a file may say that something is gone: btrfs brings a removal to the disk with its folder only. What was
        kept for the case that the power goes before is removed then; after a failure it stays.
        """
        kept, self.kept = self.kept, {}
        self._sync()
        for path, stamp in kept.items():
            if stamp_of(path) == stamp:        # another run may have kept its own there since
                remove_quietly(path)
        self.since, self.is_timed = self.clock(), False

    def _sync(self) -> None:
        folders = {*self.folders, *self.removed}
        if len(self.files) + len(folders) > MANY_FILES and sync_file_systems({os.path.dirname(path) for path in self.files} | folders):
            self.files.clear()          # far cheaper than one call for each of very many
            self.folders.clear()
            self.removed.clear()
        for paths, sync in ((self.removed, sync_folder_if_there), (self.files, _sync_path), (self.folders, sync_folder_if_there)):
            if sys.platform == "darwin":
                _sync_on_mac(paths)
            else:
                for path in paths:
                    sync(path)
            paths.clear()


def sync_file_systems(folders: Iterable[str]) -> bool:
    """Make all that was written on the file systems of *folders* durable, names included; False where there is no such call.

    Source: syncfs(2), Linux; from 5.8 on it reports errors. Raises: OSError.
    """
    if not sys.platform.startswith("linux") or _kernel() < [5, 8]:
        return False
    import ctypes
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "syncfs"):
        return False
    done = set()
    for folder in sorted(folders):
        try:
            descriptor = os.open(folder or ".", os.O_RDONLY | os.O_NONBLOCK)
        except (FileNotFoundError, NotADirectoryError):
            continue                    # removed since
        try:
            device = os.fstat(descriptor).st_dev
            if device not in done and libc.syncfs(descriptor):
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), folder)
            done.add(device)
        finally:
            close_quietly(descriptor)
    return True


def _kernel() -> List[int]:
    """Return the first two numbers of the release of the kernel, [] if they cannot be told."""
    return [int(part) for part in os.uname().release.split("-")[0].split(".")[:2] if part.isdigit()]


def _open_to_sync(path: str, windows: bool = sys.platform == "win32") -> int:
    """Open a file whose content is to be flushed: on Windows for writing, and the attribute of one that may only be read goes for
    that moment.

    Elsewhere a pipe that has come in its place is opened as well, without waiting for who writes into it: see _is_to_sync().
    """
    if not windows:
        return os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    if is_link(path):
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)     # as O_NOFOLLOW has it
    mode = os.stat(path).st_mode
    if mode & 0o200:
        return open_descriptor(path, os.O_RDWR)
    os.chmod(path, 0o600)
    try:
        return open_descriptor(path, os.O_RDWR)
    finally:
        os.chmod(path, mode & 0o777)


def _is_to_sync(descriptor: int) -> bool:
    """Tell whether an open file has content on a disk; a pipe or a device that has come in the place of an output has none, and
    is no output."""
    mode = os.fstat(descriptor).st_mode
    return stat.S_ISREG(mode) or stat.S_ISDIR(mode)


def sync_folder_if_there(path: str) -> None:
    """As sync_folder(), but for a folder that is gone."""
    try:
        sync_folder(path)
    except (FileNotFoundError, NotADirectoryError):
        pass                            # removed since: whoever counts on what was in it looks for it


def _sync_on_mac(paths: Iterable[str]) -> None:
    """Flush files and folders to their drives one by one, then each drive once: asked to, it writes all that it holds.

    Source: fsync(2) and fcntl(2) of macOS, F_FULLFSYNC. Raises: OSError.
    """
    drives: Dict[int, Tuple[str, int]] = {}
    try:
        for path in paths:
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | (0 if os.path.isdir(path) else os.O_NOFOLLOW))
            except OSError as error:
                if error.errno in NO_CONTENT or isinstance(error, PermissionError):
                    continue            # as in _sync_path()
                raise
            if not _is_to_sync(descriptor):
                close_quietly(descriptor)
            elif drives.setdefault(os.fstat(descriptor).st_dev, (path, descriptor))[1] != descriptor:
                try:
                    _sync_as_far_as_it_can(path, descriptor, os.fsync)
                finally:
                    close_quietly(descriptor)
        for path, descriptor in drives.values():
            _sync_as_far_as_it_can(path, descriptor, _flush)
    finally:
        for _, descriptor in drives.values():
            close_quietly(descriptor)


def _sync_as_far_as_it_can(path: str, descriptor: int, sync: Callable[[int], None]) -> None:
    try:
        sync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):        # some network file systems cannot sync folders
            raise OSError(error.errno, error.strerror, path) from error


def _sync_path(path: str) -> None:
    try:
        descriptor = _open_to_sync(path)
    except OSError as error:
        if error.errno in NO_CONTENT or isinstance(error, PermissionError):
            return                      # removed since, or not readable by us: the record's own check will tell
        raise
    try:
        if _is_to_sync(descriptor):
            sync_file(descriptor)
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from error
    finally:
        close_quietly(descriptor)


def write_atomic(path: str, data: Data, commit: Optional[Commit] = None, durable: bool = True, temporary: str = "",
                 mode: int = 0o666) -> None:
    """Replace *path* with *data*, bytes or pieces of them, so that a reader sees all of the old or all of the new.

    Durable on return: file and folder are synced (folder: POSIX only); with *commit*, the folder when it flushes.
    durable=False is for files that mean nothing after a restart. The temporary file has one fixed name beside the
    target, because each target has one writer at a time (its lock's owner): a dead writer's is simply replaced. Targets
    that are written but once share a *temporary* name under a common lock, or a dead writer's would stay for ever.
    Raises: OSError; then no temporary file is left, and *path* is unchanged, unless only the last step failed, the sync
    of the folder: then it is replaced, and whether that outlives a power cut is open.
    """
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, ".%s.tmp" % (temporary or name))
    try:
        write_new(temporary, data, durable, mode)
        replace(temporary, path)
        if durable and commit is None:
            sync_folder(folder or ".")
        elif durable and commit is not None:
            commit.folders[folder] = None
    except OSError as error:
        remove_quietly(temporary)
        if os.path.isdir(temporary):    # systems tell of it by several numbers
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), temporary) from error
        raise OSError(error.errno, error.strerror, path) from error


def write_new(path: str, data: Data, durable: bool = True, mode: int = 0o666) -> None:
    """Write a new file, replacing a dead writer's of the same name; with *durable* its content is on the disk on return."""
    try:
        descriptor = _create_new(path, mode)
        try:
            write_all(descriptor, data)
            if durable:
                sync_file(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from error     # the calls on descriptors name no file


def _create_new(path: str, mode: int) -> int:
    """Open a new file for writing; never follow or overwrite what somebody planted under its name."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    try:
        return os.open(path, flags, mode)
    except FileExistsError:
        unlink(path)
        return open_descriptor(path, flags, mode)


def write_all(descriptor: int, data: Data) -> None:
    """Write bytes, or a list of pieces one after the other, to an open file, whole. Raises: OSError; then a part may be
    written."""
    for piece in data if isinstance(data, list) else [data]:
        view = memoryview(piece)
        while view:
            view = view[os.write(descriptor, view):]


def remove_tree(path: str) -> None:
    """Remove a folder and all in it, folders that may not be written in, too.

    Raises: OSError that names the folder; of what is in it the system tells the last name only.
    """
    try:
        rmtree(path)
    except FileNotFoundError as error:
        refuse_too_long(os.fsdecode(error.filename or path))
        raise
    except PermissionError:
        _open_folders(path)
        try:
            rmtree(path)
        except OSError as error:
            raise OSError(error.errno, error.strerror, path) from error


def clear_tree(path: str) -> None:
    """As remove_tree(), but what somebody has open on NFS or FUSE stays there under a hidden name, and its folder with it, until
    the next run removes that. No output has such a name."""
    try:
        remove_tree(path)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.EBUSY):
            raise
        import shutil
        shutil.rmtree(path, ignore_errors=True)     # this one goes on with the rest
        left = [name for _, _, names in os.walk(path) for name in names]
        if not left or not all(name.startswith(HELD_BEGINS) for name in left):
            raise


def _open_folders(path: str) -> None:
    """Give ourselves all rights on a folder and those in it, as far as they are ours, on Windows on the files, too."""
    folders = [path]
    while folders:
        current = folders.pop()
        try:
            os.chmod(current, 0o700)
            with os.scandir(current) as entries:
                for entry in entries:
                    if is_junction(entry):
                        continue        # what lies behind it is not ours
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    elif sys.platform == "win32":
                        os.chmod(entry.path, 0o600)     # what may only be read is not removed there
        except OSError:
            pass                        # removing it says what is wrong


def remove_durably(path: str, commit: Commit) -> bool:
    """Remove *path* if it is there; tell whether it was."""
    try:
        unlink(path)
    except FileNotFoundError:
        return False
    commit.removed[os.path.dirname(path)] = None
    return True


def remove_empty_folder(path: str, commit: Commit, remove: Optional[Callable[[str], Any]] = None) -> bool:
    """Remove a folder if nothing is in it; tell whether it is gone. remove: in place of os.rmdir()."""
    try:
        (remove or os.rmdir)(path)
    except OSError:
        return False
    commit.folders.pop(path, None)          # what was to be synced there is gone with it
    commit.removed[os.path.dirname(path)] = None
    return True


def make_folder(path: str, commit: Commit) -> None:
    """Create *path* and its parents where they are missing."""
    if os.path.isdir(path):
        return
    parent = os.path.dirname(path)
    if parent and parent != path:
        make_folder(parent, commit)
    try:
        os.mkdir(path)
    except FileExistsError:
        if os.path.isdir(path):
            return
        if not os.path.islink(path):
            os.stat(path)               # a mount that does not answer any more says so itself
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path) from None
    commit.folders[parent or "."] = None


def stamp_of(path: str) -> Any:
    """Return what tells a file from another one of its name, None where there is none."""
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
