"""The pipeline file, read and checked:

    text -> JSON value -> checked value -> PipelineSpec

Where in the text a problem stands is looked up only when there is one.
"""
from __future__ import annotations

import os

import command_line
import spec_checks
import spec_values
import stage_cycles
from file_digests import is_unicode
from model import Chunks, Offline, PipelineSpec, Retry, SpecError, StageSpec, UsageError, sha256
from primitives import in_real_folder, real_folder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List, Optional, Sequence, Tuple

    Json = Dict[str, Any]

MAX_SPEC_BYTES = 8 << 20


def plain_path(path: str) -> str:
    r"""Return a path of Windows without the beginning \\?\, below which a slash parts nothing; any other as it is."""
    if path.startswith("\\\\?\\UNC\\"):
        return "\\\\" + path[8:]
    return path[4:] if path.startswith("\\\\?\\") else path


def load_pipeline(path: str, root: Optional[str] = None, needs_programs: bool = True) -> PipelineSpec:
    """Read and check a pipeline file.

    root defaults to the folder of the file. needs_programs: a processor that is not there, or cannot be started, is a
    problem. Raises: SpecError with every problem that the file has; UsageError when it cannot be read.
    """
    shown = os.fspath(path)
    full = plain_path(in_real_folder(shown))
    try:
        with open(full, "rb") as file:
            data = file.read(MAX_SPEC_BYTES + 1)
    except OSError as error:        # Windows calls it a lack of rights to open a folder
        raise UsageError("%s: cannot read the pipeline file: %s; name it with --pipeline FILE%s" % (
            shown, "Is a directory" if os.path.isdir(full) else error.strerror,
            "; init DIR writes a first one" if isinstance(error, FileNotFoundError) else "")) from None
    root = plain_path(real_folder(root) if root is not None else os.path.dirname(full))
    if not is_unicode(root):
        raise UsageError("%s: the folder's path is not UTF-8 text here; rename it, or run with PYTHONUTF8=1 if it is" % ascii(root))
    if not os.path.isdir(root):
        raise UsageError("--root %s: there is no such folder" % root)
    text = _decode_spec(data, shown)
    value, document = _parse_spec(text)
    problems = spec_values.Problems()
    checked = None
    if document is None or document.complete:
        checked = spec_checks.check_pipeline(value, root if needs_programs else None, command_line.nearest, problems)
    stages = tuple(_build_stage(one) for one in checked["stages"]) if checked is not None else ()
    if checked is not None and checked["order"] == "graph":
        _check_cycles(stages, problems)
    if checked is None or problems.found or document is not None:
        raise SpecError("\n".join(_problem_lines(shown, text, document, problems)))
    offline, key_file = checked["offline"], checked["seal"].get("keyFile", "")
    return PipelineSpec(
        name=checked["name"], version=checked["version"], description=checked["description"],
        offline=Offline(tuple(offline.get("allow", ())), offline.get("require", "scan"), offline.get("strict", False), tuple(offline["layers"])),
        seal_key=os.path.join(root, os.path.expanduser(key_file)) if key_file else "", stages=stages, path=full, root=root,
        sha256=sha256(data).hexdigest(),
        order=checked["order"], on_failure=tuple(checked["onFailure"]), on_success=tuple(checked["onSuccess"]))


def refuse(path: str, problems: spec_values.Problems) -> None:
    """Refuse a pipeline file that was read without complaint, for problems found since. Raises: SpecError; OSError when it is
    gone by now."""
    with open(path, "rb") as file:
        text = _decode_spec(file.read(MAX_SPEC_BYTES), os.fspath(path))
    raise SpecError("\n".join(_problem_lines(os.fspath(path), text, None, problems)))


def _check_cycles(stages: Sequence[StageSpec], problems: spec_values.Problems) -> None:
    """Report a cycle of stages that need one another, by `needs` or by files."""
    import stage_order
    cycle = stage_order.find_cycle(stage_order.edges(stages))
    if cycle:
        place = next(place for place, stage in enumerate(stages) if stage.name == cycle[0])
        problems.add(("stages", place), "needs itself by what it reads or needs: %s" % " <- ".join(stage_cycles.shown_cycle(cycle)))


def _decode_spec(data: bytes, shown: str) -> str:
    if len(data) > MAX_SPEC_BYTES:
        raise SpecError("%s:1:1: larger than %d bytes; split the pipeline" % (shown, MAX_SPEC_BYTES))
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = len(data[data.rfind(b"\n", 0, error.start) + 1:error.start].decode("utf-8", "replace")) + 1
        raise SpecError("%s:%d:%d: byte 0x%02x is not UTF-8; save the file as UTF-8" % (shown, line, column, data[error.start])) from None


def _parse_spec(text: str) -> Tuple[Any, Any]:
    """Return (value, None) for flawless JSON, else (value, Document) from the parser that knows positions."""
    try:
        return spec_values.strict_json(text), None
    except (ValueError, RecursionError, MemoryError):
        pass
    import spec_source
    document = spec_source.parse(text)
    return document.value, document if document.problems else None


def _problem_lines(shown: str, text: str, document: Any, problems: spec_values.Problems) -> List[str]:
    import spec_source
    document = document or spec_source.parse(text)
    lines = [(line, column, path, message) for line, column, path, message in document.problems]
    for path, message in problems.found:
        position = document.key_position(path) if message.startswith("unknown key") else document.position(path)
        lines.append((position[0], position[1], path, message))
    lines.sort(key=lambda one: one[:2])
    return ["%s:%d:%d: %s%s" % (shown, line, column, spec_source.path_text(path) + ": " if path else "", message)
            for line, column, path, message in lines]


def _build_stage(merged: Json) -> StageSpec:
    retry = merged["retry"]
    codes = retry["exitCodes"]
    return StageSpec(
        name=merged["name"], processor=merged["processor"], args=tuple(merged["args"]), inputs=tuple(merged["inputs"]),
        allow_no_inputs=merged["allowNoInputs"],
        output_dir=merged["outputDir"], outputs=None if merged["outputs"] is None else tuple(merged["outputs"]), params=merged["params"],
        env=merged["env"], pass_env=None if merged["passEnv"] is None else tuple(merged["passEnv"]), watch=tuple(merged["watch"]),
        needs=tuple(merged["needs"]),
        idempotent=merged["idempotency"]["enabled"], processor_mtime=merged["idempotency"]["processor"] == "mtime",
        checkpoint=merged["checkpoint"]["enabled"], line_interval=merged["checkpoint"]["lineInterval"],
        retry=Retry(retry["attempts"], retry["baseDelayMs"], retry["maxDelayMs"], retry["jitterMs"], None if codes is None else tuple(codes)),
        timeout_s=merged["timeoutSec"], grace_s=merged["graceSec"], lock_wait_s=merged["lock"]["waitSeconds"], resources=merged["resources"],
        simulate_fail_attempts=merged["simulateFailAttempts"], network_attempts=merged["networkAttempts"],
        for_each=tuple(merged["forEach"]), max_failed_tasks=merged["maxFailedTasks"], prune=merged["prune"], chunks=_build_chunks(merged["chunks"]),
        launcher=tuple(merged["launcher"]), fork_server=merged["forkServer"], settle_s=merged["settleSec"], reconcile=merged["reconcile"],
        max_rejects=merged["maxRejects"])


def _build_chunks(chunks: Optional[Json]) -> Optional[Chunks]:
    if chunks is None:
        return None
    return Chunks(chunks["bytes"], chunks.get("keepChunks", False), chunks.get("filter", False), chunks.get("headerLines", 0))
