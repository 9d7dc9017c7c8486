"""What the record of a stage says (state/stage_NAME.json), and whether it can be worked with.

A leaf: the record is a dict, as state_store reads it.
"""
from __future__ import annotations

from primitives import compact, is_integer, leads_out

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, List, Optional

    Json = Dict[str, Any]

CLEANED = "its outputs were removed by clean"      # why a stage must run whose record says so
SPELLED = "/"               # begins a path that is spelled out: no path below a folder begins so
# What others ask of the record of a stage: who reads what it made, or writes to the same folder.
OF_MAKER = ("stage", "lastStatus", "lastError", "outputs", "refused", "counts", "inOutputs", "tasks")


def with_spelled_paths(record: Json) -> Json:
    """Return a record as it is stored if it names files whose names are not UTF-8, which only `left` and `baseline` may do.

    In text such a name holds halves of surrogate pairs, which strict readers of JSON refuse: \\udcff stands for the byte ff, and a
    backslash is doubled.
    """
    return _with_paths(record, _spelled)


def with_real_paths(record: Json) -> Json:
    """Return a record as it was before it was stored. What earlier versions stored is as it was."""
    return _with_paths(record, _unspelled)


def _with_paths(record: Json, changed: Callable[[str], str]) -> Json:
    left, baseline = record.get("left"), record.get("baseline")
    more: Json = {}
    if isinstance(left, list):
        more["left"] = [changed(path) if isinstance(path, str) else path for path in left]
    if isinstance(baseline, dict):
        more["baseline"] = {changed(path): stamp for path, stamp in baseline.items()}
    return {**record, **more}


def _spelled(path: str) -> str:
    try:
        path.encode("utf-8")
        return path
    except UnicodeEncodeError:
        return SPELLED + path.replace("\\", "\\\\").encode("utf-8", "backslashreplace").decode("utf-8")


def _unspelled(path: str) -> str:
    if not path.startswith(SPELLED):
        return path
    import re                       # loaded for no run in which there is none: it takes longer than all else here
    return re.sub(r"\\(\\|u([0-9a-f]{4}))", lambda found: chr(int(found.group(2), 16)) if found.group(2) else "\\", path[len(SPELLED):])


def made_elsewhere(record: Optional[Json], output_dir: str) -> str:
    """Return the folder in which are the outputs that a stage record tells of, if that is not *output_dir*, the stage's of now;
    else ""."""
    folder = record["keyParts"].get("outputDir") if record is not None else None
    return folder if isinstance(folder, str) and folder != output_dir else ""


def as_maker(record: Json) -> Json:
    """Return of a stage record what others ask of it, without what is long in most: the parts of the key, and how the folder looked
    before."""
    parts = record["keyParts"]
    return {**{key: record[key] for key in OF_MAKER if key in record},
            "keyParts": {key: parts[key] for key in ("outputDir", "tasks") if key in parts}}


def last_run_text(record: Json) -> str:
    """Return how the last run of a stage that is not done came to its end, as a reason to run it."""
    return "last run %s" % {"running": "died", "interrupted": "was interrupted"}.get(record["lastStatus"], "failed: %s" % record.get("lastError"))


def outputs_are_logged(record: Json) -> bool:
    """Tell whether a stage record leaves its outputs to the task log: they are too many for it, or of tasks of a run that has not
    ended well."""
    return is_of_unfinished_tasks(record) or not record["outputs"] and bool((record.get("tasks") or {}).get("outputs"))


def with_listed(record: Json, logged: List[Json]) -> List[Json]:
    """Return what a task log says, with those outputs of the record that it does not name: of an unfinished run these are of before,
    and may be of when the stage had no tasks yet."""
    known = {one["path"] for one in logged} if record["outputs"] else set()
    return logged + [one for one in record["outputs"] if one["path"] not in known]


def is_of_unfinished_tasks(record: Json) -> bool:
    """Tell whether a stage record is of forEach and of a run that has not ended well: what was made, the task log alone tells."""
    return record["lastStatus"] != "ok" and "tasks" in record["keyParts"]


def last_code(record: Optional[Json]) -> Json:
    """Return {path: SHA-256} of the modules and watched files that a stage's last success was made with and whose cached bytecode was
    looked at then; {} where that is not certain, as after an accepted change."""
    if record is None or record["lastStatus"] != "ok" or record.get("bytecodeKey") != record["idempotencyKey"]:
        return {}
    parts = record["keyParts"]
    return dict([*(parts.get("modules") or []), *(parts.get("watch") or [])])


def dead_token(record: Optional[Json]) -> str:
    """Return the token of the attempt that a stage record calls running: under the stage's lock its runner is dead."""
    return str(record.get("token", "")) if record is not None and record["lastStatus"] == "running" else ""


def record_problem(record: Json, stage: str) -> str:
    """Return what in a stage record cannot be worked with, or ""."""
    if record.get("stage") != stage:
        return "it names the stage %s" % compact(record.get("stage"))
    if record.get("lastStatus") not in ("running", "ok", "failed", "interrupted"):
        return "lastStatus is %s" % compact(record.get("lastStatus"))
    if not isinstance(record.get("idempotencyKey"), str) or not isinstance(record.get("keyParts"), dict):
        return "its key is missing"
    if not _are_key_parts(record["keyParts"]):
        return "the parts of its key are of another form"
    if not _is_output_list(record.get("outputs")) or not _is_output_list(record.get("previous", [])):
        return "its outputs are not a list of path, bytes, sha256"
    if not isinstance(record.get("tasks") or {}, dict):
        return "its tasks are of another form"
    return ""


def _are_key_parts(parts: Json) -> bool:
    """Tell whether the parts of a key can be compared with others; what is missing may be missing."""
    for part in ("modules", "inputs", "watch"):
        files = parts.get(part) or []
        if not isinstance(files, list) or not all(isinstance(one, list) and len(one) == 2 and all(isinstance(text, str) for text in one)
                                                  for one in files):
            return False
    folder = parts.get("outputDir")
    if isinstance(folder, str) and leads_out(folder):
        return False
    return all(isinstance(parts.get(part) or {}, dict) for part in ("processor", "params", "env", "passEnv"))


def _is_output_list(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(one, dict) and isinstance(one.get("path"), str) and is_integer(one.get("bytes")) and isinstance(one.get("sha256"), str)
        and not leads_out(one["path"]) and "\0" not in one["path"] for one in value)
