"""The checkpoint of a stage or a task: the progress file that its processor writes, and whether it may be resumed from.

On the leaves. A checkpoint resumes only its own work: that of the key under which it was made, from the very files that the key
was made of, for in between another version may have lain in their place. It does not vouch for the work of an attempt that the
runner has refused; and what it names must be there.
"""
from __future__ import annotations

import json
import os
import posixpath

import control_totals
import durable_files
import file_systems
import spec_values
import stage_outputs
import state_store
import task_files
from file_digests import Patterns
from model import Checkpoint, sha256
from primitives import is_integer, is_there, open_file, remove_quietly, replace

MAX_BYTES = 8 << 20          # of a progress file; the kit reads no more either
TOUCHED = "a file that it was made from has been written, replaced or touched since, and may have been another one meanwhile"

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Set, Tuple

    from model import StageSpec
    from state_store import StateStore
    Json = Dict[str, Any]


def progress_path(store: StateStore, stage: str) -> str:
    """Return the path of a stage's progress file."""
    path: str = store.path("progress_%s.json" % stage)
    return path


def whole_path(path: str) -> str:
    """Return the path of the file beside a progress file in which the kit names what it has published in one piece, a JSON text a
    line."""
    return os.path.splitext(path)[0] + ".whole"


def read_checkpoint(store: StateStore, stage: StageSpec, record: Optional[Json], key: str, boot: str,
                    of_others: Callable[[], Set[str]], files: Sequence[str] = ()) -> Optional[Checkpoint]:
    """Return the stage's progress file, with what forbids to resume from it; None without one. of_others(): what other stages
    have made in its folder. files: see checkpoint_at()."""
    return checkpoint_at(progress_path(store, stage.name), os.path.join(store.root, stage.output_dir), record, key, boot, stage.outputs, of_others, files)


def checkpoint_at(path: str, folder: str, record: Optional[Json], key: str, boot: str, declared: Optional[Sequence[str]] = None,
                  of_others: Callable[[], Set[str]] = set, files: Sequence[str] = ()) -> Optional[Checkpoint]:
    """Return a progress file, with what forbids to resume from it; None without one.

    folder: where its outputs are. declared: globs of what in there is the stage's, where others may be at work in it.
    of_others(): what in there is other stages'; asked only where it matters. files: what made_from() says of those of now,
    nothing where they are known to be those of then.
    """
    progress, bad = read_progress(path)
    if progress is None:
        return Checkpoint(0, {}, {}, False, False, bad, False) if bad else None
    found = Checkpoint(progress["lineOffset"], progress.get("outputs", {}), progress.get("publish", {}),
                       progress.get("publishing") is True, _is_complete(progress, record), "", False)
    problem = _binding_problem(progress, record, key, boot) or _files_problem(folder, record or {}, list(files))
    if not problem:
        unknown = _unvouched(folder, progress, record or {}, declared)
        unknown = unknown and sorted(set(unknown) - _published(whole_path(path), folder))
        unknown = unknown and sorted(set(unknown) - of_others())
        # What was open meanwhile a resume begins anew, and without the lines that are done: be it published, discarded or left.
        unknown = sorted(progress.get("open", ())) or unknown
        problem = "it does not say how much of %s it stands for: name each output in its \"outputs\"" % _final_name(unknown[0]) if unknown else ""
    if not problem and not found.complete:
        problem = stage_outputs.cut_problem(folder, found.outputs, found.publishing, found.finals)
    elif not problem and _is_unjudged(record):      # what it names is all that there will be
        named = {found.finals.get(name, name): size for name, size in found.outputs.items()}
        problem = stage_outputs.cut_problem(folder, {**dict.fromkeys(progress.get("whole", ()), 0), **named}, False, {})
    return found._replace(problem=problem, resumable=not problem and _holds_work(found, record))


def made_from(stamps: Mapping[str, Sequence[int]]) -> List[str]:
    """Return what stands for the files of which something is made: a digest of their signatures, and one of that which a copy of
    them has, too.

    A device is called otherwise after a restart, perhaps, and a file by some file systems, see file_systems.doubt_of().
    """
    plain = [(path, task_files.plain(stamp)) for path, stamp in sorted(stamps.items())]
    own = [(path, stamp[:3] if file_systems.doubt_of(stamp[4]) else stamp[:4]) for path, stamp in plain]
    copied = [(path, stamp[:2]) for path, stamp in plain]
    return [sha256(json.dumps(one).encode("ascii")).hexdigest() for one in (own, copied)]


def read_progress(path: str) -> Tuple[Optional[Json], str]:
    """Return (a progress file, ""), (None, what is wrong with it), or (None, "") where there is none."""
    try:
        with open_file(path) as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            return None, "it is larger than %d bytes" % MAX_BYTES
        progress = json.loads(data.decode("utf-8"))
    except FileNotFoundError:
        return None, ""
    except OSError as error:
        return None, "it cannot be read: %s" % error.strerror
    except (ValueError, RecursionError):
        return None, "it is damaged"
    bad = _problem(progress)
    return (None, bad) if bad else (progress, "")


def progress_of(store: StateStore, stage: StageSpec) -> Json:
    """Return the stage's progress file as its processor left it, {} where there is none that can be used."""
    progress = read_progress(progress_path(store, stage.name))[0] if stage.checkpoint else None
    return progress or {}


# --- what becomes of it ----------------------------------------------------------------------------------------------

def finish(store: StateStore, stage: StageSpec, key: str) -> None:
    """Mark the checkpoint of a stage that has ended well, so that nobody resumes from it once the stage record says so.

    Until then it is what it was: of what its processor did after it, the next run knows nothing, and does it again. So the mark is
    not the processor's own "complete", after which there is nothing left to be done.
    """
    progress = progress_of(store, stage)
    if progress and progress.get("complete") is not True:
        progress.update(complete=True, finished=True, key=key)      # complete for earlier versions, too
        durable_files.write_atomic(progress_path(store, stage.name), state_store.record_json(progress), store.commit)


def take_up(store: StateStore, stage: StageSpec) -> None:
    """Take the mark of finish() off a checkpoint that is resumed from, as the run that had set it died before the record: the
    processor may read it."""
    progress = progress_of(store, stage)
    if progress.pop("finished", None) is True:
        del progress["complete"]
        durable_files.write_atomic(progress_path(store, stage.name), state_store.record_json(progress), store.commit)


def set_aside(store: StateStore, stage: StageSpec) -> None:
    """Keep a checkpoint that is not used under another name, where a person finds it."""
    path = progress_path(store, stage.name)
    if is_there(path):
        replace(path, path + ".old")
        store.commit.folders[store.folder] = None


def forget_published(store: StateStore, stage: StageSpec) -> None:
    """What the kit has named as published belongs to the work that is resumed, no other."""
    if stage.checkpoint:
        remove_quietly(whole_path(progress_path(store, stage.name)))


# --- may it be resumed from ------------------------------------------------------------------------------------------

def _is_complete(progress: Json, record: Optional[Json]) -> bool:
    """Tell whether nothing is left to be done behind a checkpoint: by its processor's word, or by the runner's, see finish()."""
    is_believed = progress.get("finished") is not True or record is not None and record.get("lastStatus") == "ok"
    return progress.get("complete") is True and is_believed


def _binding_problem(progress: Json, record: Optional[Json], key: str, boot: str) -> str:
    """Return why a checkpoint is not of this very work, or ""."""
    if record is None:
        return "no record says of which key it is"
    if key != record["idempotencyKey"] or progress.get("key", key) != key:
        return "it was made under another key"
    if progress.get("durable") is not True and record.get("bootId") != boot:
        return "it was not synced and the machine has been restarted since"
    return ""


def _files_problem(folder: str, record: Json, files: List[str]) -> str:
    """Return that a checkpoint was made while the stage's files were not the very ones of now, or "".

    Their content is the same now, or the key were another. But they were written, or others put in their place, and who has read
    them meanwhile has read that. After a success, there is only what somebody has written by hand.
    """
    before, baseline = record.get("madeFrom"), record.get("baseline") or {}
    if not files or before == files or record.get("lastStatus") == "ok":
        return ""
    was_copied = bool(baseline.get(stage_outputs.ITSELF)) and baseline[stage_outputs.ITSELF] != stage_outputs.identity(folder)
    return "" if was_copied and isinstance(before, list) and before[1:] == files[1:] else TOUCHED


def _unvouched(folder: str, progress: Json, record: Json, declared: Optional[Sequence[str]]) -> List[str]:
    """Return the outputs of the attempt of which a progress file says nothing: what is added to such a one again would be
    doubled.

    record: with the `baseline` of the attempt; without it, as after a success, nothing is of the attempt.
    """
    baseline, left = record.get("baseline"), record.get("left")
    if record.get("lastStatus") == "ok" or not isinstance(baseline, dict):
        return []
    there = stage_outputs.list_folder(folder)
    changed = stage_outputs.changed_since(stage_outputs.as_of_now(baseline, there), there.files)
    if isinstance(left, list):
        changed = [path for path in changed if path in left]        # anything else somebody has put there since
    if declared is not None:
        changed = list(filter(Patterns(declared).matches, changed))
    known = {posixpath.normpath(path) for path in (*progress.get("outputs", {}), *progress.get("publish", {}).values(), *progress.get("whole", ()))}
    # What is held open beside the lines of a checkpoint gets its text from those same lines; what is begun after the last one
    # is begun anew. Who does not say what was "open" (an earlier kit, a processor of its own kind) leaves that in doubt; so does
    # what a child process has open, but for rejects, which are begun with the first of them, by those who write the output.
    is_told = "open" in progress
    begun = [] if is_told and _is_complete(progress, record) else stage_outputs.own_parts(there.parts, record["stage"])
    rejects = {final + control_totals.REJECTS_ENDING for final in progress.get("publish", {}).values()} if is_told else set()
    begun = [path for path in begun if _final_name(path) not in rejects]
    return [path for path in (*changed, *begun) if path not in known]


def _final_name(path: str) -> str:
    """Return what a part of the kit, <file>~<stage>~<token>.part, is to be called in the end; another file's own name."""
    return path.rsplit("~", 2)[0] if path.endswith(".part") else path


def _published(path: str, folder: str) -> Set[str]:
    """Return the names in a file of what the kit has published and nobody has changed since; lines cut short by a crash name
    nothing."""
    found = set()
    try:
        with open_file(path) as file:
            for line in file:
                try:
                    name, size, changed_ns = json.loads(line.decode("ascii"))
                    state = os.stat(os.path.join(folder, name))
                except (ValueError, TypeError, RecursionError, FileNotFoundError, NotADirectoryError):
                    continue
                if [state.st_size, state.st_mtime_ns] == [size, changed_ns]:
                    found.add(posixpath.normpath(name))
    except OSError:
        pass
    return found


def _problem(progress: Any) -> str:
    """Return what is wrong with the form of a progress file, or ""."""
    if not isinstance(progress, dict):
        return "it is not an object"
    offset: Any = progress.get("lineOffset")
    if not is_integer(offset) or offset < 0:
        return "its lineOffset is %s" % spec_values.shown_value(offset)
    outputs, finals, counts = progress.get("outputs", {}), progress.get("publish", {}), progress.get("counts", {})
    for name in ("whole", "open"):
        paths = progress.get(name, [])
        if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
            return "its %s outputs are not paths" % name
    for files in (outputs, finals):
        if not isinstance(files, dict) or any(spec_values.path_problem(path) for path in files):
            return "its outputs are not paths below the output folder"
    if not all(is_integer(size) and size >= 0 for size in outputs.values()):
        return "its outputs are not numbers of bytes"
    if not all(isinstance(final, str) and not spec_values.path_problem(final) for final in finals.values()):
        return "its outputs are not paths below the output folder"
    if not isinstance(counts, dict) or not all(is_integer(count) and count >= 0 for count in counts.values()):
        return "its counts are not numbers"
    return ""


def _is_unjudged(record: Optional[Json]) -> bool:
    """Tell whether nobody has recorded yet what became of the work."""
    return (record or {}).get("lastStatus") in ("running", "interrupted")


def _holds_work(found: Checkpoint, record: Optional[Json]) -> bool:
    """Tell whether a valid checkpoint holds work to go on with.

    A complete one does only for a stage whose runner died before it could record the success: after a recorded
    success it is history, and after a recorded failure its result was refused.
    """
    if found.complete:
        return _is_unjudged(record)
    # Within one huge first line no line is done yet, but bytes are.
    return found.line_offset > 0 or bool(found.publishing) or any(found.outputs.values())
