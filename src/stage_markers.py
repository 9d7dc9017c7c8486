"""The marker of a finished stage, in its output folder: `.STAGE.done`, or `.STAGE.lost` where what it made may not be on the disk.

On durable_files and state_store. A marker says of which key the outputs are; whether it is believed, the stage's record decides.
"""
from __future__ import annotations

import os

import durable_files
from primitives import loads, open_file, remove_quietly, replace
from state_store import SCHEMA_VERSION, record_json, utc_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional


NO_MARKER = "marker missing"
# In place of the key of a marker: it is there and cannot be read; we may not look into its folder, so nobody knows.
UNREADABLE, BARRED = "?", "-"


def marker_bytes(stage: str, key: str, run_id: Optional[str], now: float) -> bytes:
    """Return what a stage's marker holds."""
    return record_json({"schema": SCHEMA_VERSION, "stage": stage, "key": key, "runId": run_id, "at": utc_text(now)})


def read_marker(path: str) -> Optional[str]:
    """Return the key in a stage's marker, "" for a marker that is not ours, UNREADABLE, BARRED, None without one.

    One whose content did not reach the disk whole, as only a power cut leaves it, is none.
    """
    try:
        with open_file(path) as file:
            data = file.read(1 << 16)
        marker = loads(data.decode("utf-8"))
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    except OSError as error:
        if isinstance(error, PermissionError) and not os.path.lexists(path):
            return BARRED
        return "" if os.path.isdir(path) else UNREADABLE
    key = marker.get("key") if isinstance(marker, dict) else None
    return key if isinstance(key, str) else ""


def problem_text(key: Optional[str]) -> str:
    """Return what is wrong with a marker that has not the key of now, as a reason to run the stage. key: as read_marker() has
    it."""
    return {None: NO_MARKER, UNREADABLE: "the marker cannot be read"}.get(key, "the marker is of another key")


def lost_path(root: str, output_dir: str, stage: str) -> str:
    """Return where the marker goes of a stage whose outputs could not be synced."""
    return os.path.join(root, output_dir, ".%s.lost" % stage)


def mark_lost(root: str, output_dir: str, stage: str, is_open: bool) -> None:
    """Take a finished stage's marker away, as far as the file system still lets us; a rename needs no space.

    is_open: it may have none yet, as it is at work, or tasks of it have failed; then an empty file says the same of what is done.
    """
    marker, lost = marker_path(root, output_dir, stage), lost_path(root, output_dir, stage)
    try:
        replace(marker, lost)
    except OSError as error:
        is_refused = not isinstance(error, FileNotFoundError)      # a marker that is only removed counts as one that was not written yet
        if is_open or is_refused:
            try:
                durable_files.write_new(lost, b"", durable=False)
            except OSError:
                pass
        remove_quietly(marker)


def marker_path(root: str, output_dir: str, stage: str) -> str:
    """Return where the marker of a finished stage stands."""
    return os.path.join(root, output_dir, ".%s.done" % stage)
