"""Which file systems show every change of a file in its times, whose clock these come from, and which keep the order of names.

A leaf; Linux tells, in /proc/self/mountinfo, see proc(5), and Windows of its drives. A digest is kept for the next run only while no change can hide behind
the file's times. FAT and exFAT keep no time of the last change that a program could not set (the one that stat() tells is that of
the contents), and an image is made with any times, which show through an overlay as well. On Windows the time of a folder on FAT
does not tell that a file has come either.
"""
from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, Iterable, Iterator, List, Tuple

UNTOLD, BY_ITS_TIMES, REMOTE = "no time of change", "only if the times differ", "another machine's clock"
LAYERED = "perhaps of an image below"       # whose files have times of whole seconds
OWN_CLOCK = ("", LAYERED)                   # what is written to gets the time of this machine
KINDS = dict(
    [(name, UNTOLD) for name in "vfat msdos exfat squashfs erofs iso9660 udf cramfs romfs fuse.sshfs fuse.exfat fuse.squashfuse fuse.fuseiso".split()]
    + [(name, LAYERED) for name in "overlay aufs unionfs".split()]
    + [(name, REMOTE) for name in "nfs nfs4 cifs smb3 9p afs ceph lustre gpfs fuse.glusterfs".split()])

_known: Dict[int, str] = {}     # device -> what doubt_of() says of it


def doubt_of(device: int) -> str:
    """Return UNTOLD, BY_ITS_TIMES (of a driver in user space that we do not know), LAYERED or REMOTE for the device of a file
    (st_dev), "" for all others.

    In an overlay a file may lie on a device that no mount tells of, as in a subvolume of btrfs.
    """
    if device not in _known:            # looked up for each anew: it may have been mounted by the first look at it
        if sys.platform == "win32":
            _known[device] = doubt_of_drive(device, _drives())
        else:
            mountinfo = _mounts()
            _known.update(doubts(mountinfo))
            _known.setdefault(device, LAYERED if mountinfo and device not in kinds(mountinfo) else "")
    return _known[device]


def doubts(mountinfo: str) -> Dict[int, str]:
    """Return {device: doubt} of the mounts that a text tells of, as the kernel writes it."""
    found = {device: _doubt(kind) for device, (kind, _) in kinds(mountinfo).items()}
    return {device: doubt for device, doubt in found.items() if doubt}


def _doubt(kind: str) -> str:
    return KINDS.get(kind, BY_ITS_TIMES if kind in ("fuse", "fuseblk") or kind.startswith("fuse.") else "")


def is_one_file(one: str, other: str) -> bool:
    """Tell whether two paths, equal but for the case of letters (or for how accents are written), are one file; both are there.

    Some drivers in user space give each spelling a number of its own: there, names are two only if both are listed.
    """
    first = os.lstat(one)
    if os.path.samestat(first, os.lstat(other)):
        return True
    if not doubt_of(first.st_dev):
        return False
    folder = ""
    for name, second in zip(one.replace(os.sep, "/").split("/"), other.replace(os.sep, "/").split("/")):
        if name != second and {name, second} <= set(os.listdir(folder or os.curdir)):
            return False
        folder += name + "/"
    return True


def mounts_of(root: str, folders: Iterable[str]) -> List[str]:
    """Return where that is mounted on which folders below *root* lie, but for what *root* itself lies on: relative where it is
    below, sorted."""
    real = os.path.realpath(root)
    start = os.path.join(real, "")
    found = {_mount_above(os.path.realpath(os.path.join(root, folder))) for folder in folders} - {_mount_above(real)}
    return sorted(one[len(start):].replace(os.sep, "/") if one.startswith(start) else one for one in found)


def _mount_above(folder: str) -> str:
    while not os.path.ismount(folder) and os.path.dirname(folder) != folder:
        folder = os.path.dirname(folder)
    return folder


def keeps_order(device: int) -> bool:
    """Tell whether a device's names (made, linked, renamed, removed) come to the disk in the order in which this was done,
    whatever is synced meanwhile.

    So do XFS, and ext3 and ext4 with a journal, which have one log for all. Not btrfs: the log of an fsync may have a rename
    without what was created before it. Nor what has no journal; and where nobody tells, it is not assumed.
    """
    if not sys.platform.startswith("linux"):
        return False
    kind, options = kinds(_mounts()).get(device, ("", ""))
    return kind == "xfs" or kind in ("ext3", "ext4") and "data=writeback" not in options.split(",") and _has_journal(device)


def kinds(mountinfo: str) -> Dict[int, Tuple[str, str]]:
    """Return {device: (kind of file system, its options)} of the mounts that a text tells of."""
    found = {}
    for line in mountinfo.splitlines():
        before, _, behind = line.partition(" - ")
        major, _, minor = before.split()[2].partition(":")
        words = behind.split(" ")
        found[os.makedev(int(major), int(minor))] = words[0], words[-1]
    return found


def _has_journal(device: int) -> bool:
    """Tell whether the kernel keeps a journal of an ext3 or ext4; 8 is the journal's inode."""
    name = os.path.basename(os.path.realpath("/sys/dev/block/%d:%d" % (os.major(device), os.minor(device))))
    return os.path.isdir("/proc/fs/jbd2/%s-8" % name)


# --- Windows

REMOTE_DRIVE = 4            # of GetDriveTypeW
UNTOLD_THERE = ("FAT", "EXFAT", "CDFS", "UDF")      # how the names of such file systems begin


def doubt_of_drive(device: int, drives: Iterable[Tuple[int, str, int]]) -> str:
    """As doubt_of(). drives: (serial number, file system, kind of drive) each. What has no letter is a share, as far as anybody can tell."""
    for serial, name, kind in drives:
        if serial == device & 0xFFFFFFFF:       # Python from 3.12 on tells all 64 bits of it
            return REMOTE if kind == REMOTE_DRIVE else UNTOLD if name.upper().startswith(UNTOLD_THERE) else ""
    return REMOTE


def _drives(api: Any = None) -> Iterator[Tuple[int, str, int]]:
    """Yield what Windows tells of its drives, those of other machines last: one that is not at hand may take its time."""
    import ctypes
    api = api if api is not None else getattr(ctypes, "windll").kernel32  # noqa: B009
    roots = ["%c:\\" % (65 + number) for number in range(26) if api.GetLogicalDrives() >> number & 1]
    name, serial = ctypes.create_unicode_buffer(64), ctypes.c_uint32()
    api.SetErrorMode(1)                 # no dialog for a drive without a disk
    for kind, root in sorted((api.GetDriveTypeW(root) == REMOTE_DRIVE, root) for root in roots):
        if api.GetVolumeInformationW(root, None, 0, ctypes.byref(serial), None, None, name, 64):
            yield serial.value, name.value, REMOTE_DRIVE if kind else 0


# --- Linux

def _mounts() -> str:
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
