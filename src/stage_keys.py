"""What a stage depends on, and its idempotency key.

Above the leaves and below the runner.

    inputs, watched files, processor, the local modules that it imports, settings -> key parts -> key (SHA-256)

The parts are stored beside the key, so that a rerun can say what changed.
"""
from __future__ import annotations

import os

import file_digests
import ledger_format
from file_digests import Digests
from model import Material
from primitives import tells_absence
from program_scan import local_modules

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, Iterable, List, Optional, Sequence, Set, Tuple

    from model import PipelineSpec, StageSpec
    from state_store import StateStore
    Json = Dict[str, Any]

LARGE_BYTES = 4 << 20       # from here on, reading is worth a thread
KEY_VERSION = 1             # part of every key: a change in what keys mean reruns everything, knowingly


def _passed(stage: StageSpec, secret: bytes) -> Optional[Json]:
    if stage.pass_env is None:
        return None
    import environment
    return environment.passed_digests(stage.pass_env, os.environ, secret)


def compute_idempotency_key(inputs: Iterable[str], processor: str, params: Optional[Json] = None) -> str:
    """Return the SHA-256 key (hex) of input files, a processor and its params.

    Inputs enter by path and content, the processor by path, content and modification time; a stage's own key has
    more parts, see key_parts(). Raises: OSError for a file that cannot be read, FileChanged for one that changes meanwhile.
    """
    digest, stamp = _unchanged(os.fspath(processor))
    parts = {"keyVersion": KEY_VERSION, "inputs": [[os.fspath(path).replace(os.sep, "/"), _unchanged(os.fspath(path))[0]] for path in inputs],
             "processor": {"path": os.fspath(processor).replace(os.sep, "/"), "sha256": digest, "mtimeNs": stamp[1]}, "params": params or {}}
    return ledger_format.stage_key(parts)


def _unchanged(path: str) -> Tuple[str, List[int]]:
    digest, stamp = file_digests.hash_file(path)
    if not stamp:
        raise file_digests.FileChanged(path)
    return digest, stamp


def key_parts(spec: PipelineSpec, stage: StageSpec, digests: Digests, inputs: Sequence[str], watched: Sequence[str], secret: bytes) -> Json:
    """Return all that a stage's outcome depends on, as stored beside the key. Raises: OSError, FileChanged."""
    digest, stamp = digests.of(stage.processor)
    processor: Json = {"path": stage.processor, "sha256": digest}
    if stage.processor_mtime:
        processor["mtimeNs"] = stamp[1]
    # Only where there is one: other stages' keys shall stay what they are.
    more: Json = {"launcher": list(stage.launcher)} if stage.launcher else {}
    if stage.chunks is not None:
        more["chunks"] = {"bytes": stage.chunks.size_bytes, "headerLines": stage.chunks.header_lines, "filter": stage.chunks.is_filter}
    return {
        **more, "keyVersion": KEY_VERSION, "pipeline": spec.name, "stage": stage.name, "outputDir": stage.output_dir,
        "outputs": None if stage.outputs is None else list(stage.outputs), "processor": processor,
        "modules": [[path, digests.of(path)[0]] for path in local_modules(digests, stage.processor)],
        "args": list(stage.args), "params": stage.params, "env": stage.env,
        "passEnv": _passed(stage, secret),
        "inputs": [[path, digests.of(path)[0]] for path in inputs],
        "watch": [[path, digests.of(path)[0]] for path in watched]}


def output_problems(digests: Digests, stage: StageSpec, record: Json) -> List[str]:
    """Return which recorded outputs are not what was recorded, a text for each."""
    problems = []
    for output in record["outputs"]:
        path = "%s/%s" % (stage.output_dir, output["path"])
        try:
            size, digest = digests.of_output(path)
        except file_digests.FileChanged:
            problems.append("output %s changed" % output["path"])
            continue
        except OSError as error:
            is_gone = tells_absence(error) or os.path.isdir(os.path.join(digests.root, path))
            problems.append("output %s %s" % (output["path"], "missing" if is_gone else "cannot be read"))
            continue
        if (size, digest) != (output["bytes"], output["sha256"]):
            problems.append("output %s changed" % output["path"])
    return problems


def _read_side_by_side(digests: Digests, paths: Sequence[str]) -> None:
    """Hash the large files that must be read, on all processors at hand."""
    large = [path for path in paths if not digests.is_known(path, LARGE_BYTES)] if len(paths) > 1 else []
    if len(large) > 1:
        import chunk_files
        chunk_files.side_by_side(lambda path, buffer: digests.of(path), large, heed=digests.heed)


def gather_material(spec: PipelineSpec, stage: StageSpec, digests: Digests, store: StateStore) -> Material:
    """Find the stage's inputs and compute its key. What cannot be found or read is told in `missing`, not raised."""
    seen: Set[str] = set()
    inputs, problems = file_digests.resolve(spec.root, stage.inputs, seen)
    watched, watch_problems = file_digests.resolve(spec.root, stage.watch, seen)
    if stage.allow_no_inputs:
        problems = [problem for problem in problems if not problem.endswith((file_digests.NO_MATCH, file_digests.NO_FILE))]
    problems += [problem.replace("input", "watched", 1) for problem in watch_problems]
    if not problems and not inputs and not stage.allow_no_inputs and stage.inputs:
        problems.append("no inputs")
    if problems:
        return Material("", {}, inputs, watched, problems, {}, 0)
    try:
        _read_side_by_side(digests, inputs + watched)
        secret = store.secret() if stage.pass_env is not None else b""
        parts = key_parts(spec, stage, digests, inputs, watched, secret)
    except file_digests.FileChanged as error:
        return Material("", {}, inputs, watched, ["%s changes while it is read; run again when it is complete" % error], {}, 0)
    except OSError as error:
        if error.filename and os.path.abspath(os.fsdecode(error.filename)).startswith(store.folder + os.sep) and store.writable:
            raise
        return Material("", {}, inputs, watched, ["cannot read %s: %s" % (os.fsdecode(error.filename or "?"), error.strerror)], {}, 0)
    files = inputs + watched + [stage.processor] + [path for path, _ in parts["modules"]]
    stamps = {path: digests.of(path)[1] for path in files}
    return Material(ledger_format.stage_key(parts), parts, inputs, watched, [], stamps, sum(stamps[path][0] for path in inputs), seen)
