"""Which file systems show every change of a file in its times, and whose clock these come from (Linux, by /proc/self/mountinfo; see proc(5)).

A leaf. A digest is kept for the next run only while no change can hide behind the file's times. FAT and exFAT keep no time of the last
change that a program could not set (the one that stat() tells is that of the contents), and an image is made with any times.
"""
from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Dict

UNTOLD, BY_ITS_TIMES, REMOTE = "no time of change", "only if the times differ", "another machine's clock"
KINDS = dict(
    [(name, UNTOLD) for name in "vfat msdos exfat squashfs erofs iso9660 udf cramfs romfs fuse.sshfs fuse.exfat fuse.squashfuse fuse.fuseiso".split()]
    + [(name, REMOTE) for name in "nfs nfs4 cifs smb3 9p afs ceph lustre gpfs fuse.glusterfs".split()])

_known: Dict[int, str] = {}     # device -> what doubt_of() says of it


def doubt_of(device: int) -> str:
    """Return UNTOLD, BY_ITS_TIMES (of a driver in user space that we do not know) or REMOTE for the device of a file (st_dev), "" for all others."""
    if device not in _known:            # looked up for each anew: it may have been mounted by the first look at it
        _known.update(doubts(_mounts()))
        _known.setdefault(device, "")
    return _known[device]


def doubts(mountinfo: str) -> Dict[int, str]:
    """Return {device: doubt} of the mounts that a text tells of, as the kernel writes it."""
    found = {}
    for line in mountinfo.splitlines():
        before, _, behind = line.partition(" - ")
        kind = _doubt(behind.partition(" ")[0])
        if kind:
            major, _, minor = before.split()[2].partition(":")
            found[os.makedev(int(major), int(minor))] = kind
    return found


def _doubt(kind: str) -> str:
    return KINDS.get(kind, BY_ITS_TIMES if kind in ("fuse", "fuseblk") or kind.startswith("fuse.") else "")


def _mounts() -> str:
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
