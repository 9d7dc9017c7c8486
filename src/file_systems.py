"""Which file systems show every change of a file in its times, whose clock these come from, and which keep the order of names.

A leaf; Linux tells, in /proc/self/mountinfo, see proc(5). A digest is kept for the next run only while no change can hide behind
the file's times. FAT and exFAT keep no time of the last change that a program could not set (the one that stat() tells is that of
the contents), and an image is made with any times.
"""
from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Dict, Tuple

UNTOLD, BY_ITS_TIMES, REMOTE = "no time of change", "only if the times differ", "another machine's clock"
KINDS = dict(
    [(name, UNTOLD) for name in "vfat msdos exfat squashfs erofs iso9660 udf cramfs romfs fuse.sshfs fuse.exfat fuse.squashfuse fuse.fuseiso".split()]
    + [(name, REMOTE) for name in "nfs nfs4 cifs smb3 9p afs ceph lustre gpfs fuse.glusterfs".split()])

_known: Dict[int, str] = {}     # device -> what doubt_of() says of it


def doubt_of(device: int) -> str:
    """Return UNTOLD, BY_ITS_TIMES (of a driver in user space that we do not know) or REMOTE for the device of a file (st_dev), ""
    for all others."""
    if device not in _known:            # looked up for each anew: it may have been mounted by the first look at it
        _known.update(doubts(_mounts()))
        _known.setdefault(device, "")
    return _known[device]


def doubts(mountinfo: str) -> Dict[int, str]:
    """Return {device: doubt} of the mounts that a text tells of, as the kernel writes it."""
    found = {device: _doubt(kind) for device, (kind, _) in kinds(mountinfo).items()}
    return {device: doubt for device, doubt in found.items() if doubt}


def _doubt(kind: str) -> str:
    return KINDS.get(kind, BY_ITS_TIMES if kind in ("fuse", "fuseblk") or kind.startswith("fuse.") else "")


def keeps_order(device: int) -> bool:
    """Tell whether a device's names (made, linked, renamed, removed) come to the disk in the order in which this was done,
    whatever is synced meanwhile.

    So do XFS, and ext3 and ext4 with a journal, which have one log for all. Not btrfs: the log of an fsync may have a rename
    without what was created before it. Nor what has no journal; and where nobody tells, it is not assumed.
    """
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


def _mounts() -> str:
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
