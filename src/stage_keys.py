"""What a stage depends on, and its idempotency key.

Above the leaves and below the runner.

    inputs, watched files, processor, the local modules that it imports, settings -> key parts -> key (SHA-256)

The parts are stored beside the key, so that a rerun can say what changed.
"""
from __future__ import annotations

import os

import file_digests
import spec_checks
import state_store
from file_digests import Digests
from model import Material, sha256

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, Iterable, List, Optional, Sequence, Set

    from model import PipelineSpec, StageSpec
    from state_store import StateStore
    Json = Dict[str, Any]

_HERE = os.path.dirname(os.path.abspath(__file__))
KEY_VERSION = 1             # part of every key: a change in what keys mean reruns everything, knowingly


def scan_of(digests: Digests, path: str) -> Json:
    """Return the offline guard's scan of a program: {"refused", "warned", "imports"}, remembered by content."""
    digest = digests.of(path)[0]
    guard = digests.of(os.path.join(_HERE, "offline_guard.py"))[0]
    known = digests.scans.get(digest)
    if not isinstance(known, dict) or known.get("guard") != guard or not known.keys() >= {"refused", "warned", "imports"}:
        import offline_guard
        with open(os.path.join(digests.root, path), "rb") as file:
            source = file.read()
        is_python = spec_checks.program_kind(path) == "python" or (source[:2] == b"#!" and b"python" in source[:256].split(b"\n")[0])
        known = dict(offline_guard.scan(source if is_python else b"", path).to_json(), guard=guard)
        digests.scans[digest] = known
        digests.changed = True
    return known


def local_modules(digests: Digests, processor: str) -> List[str]:
    """Return the files beside a Python processor that it imports, directly or through one another, sorted."""
    folder = os.path.dirname(processor)
    found: Set[str] = set()
    queue = [processor]
    while queue:
        current = queue.pop()
        for name in scan_of(digests, current)["imports"]:
            for path in _module_files(digests, folder, os.path.dirname(current), name):
                if path not in found and path != processor:
                    found.add(path)
                    queue.append(path)
    return sorted(found)


def _module_files(digests: Digests, folder: str, package: str, name: str) -> List[str]:
    """Return the files that importing *name* may load: the module and the packages that it lies in."""
    dots = len(name) - len(name.lstrip("."))
    base = folder if not dots else package
    for _ in range(dots - 1):
        base = os.path.dirname(base)
    files = []
    for part in name.split(".")[dots:]:
        names = digests.names_in(base)
        stem = base + "/" + part if base else part
        if part + ".py" in names:
            files.append(stem + ".py")
        if part not in names:
            break
        if "__init__.py" in digests.names_in(stem):
            files.append(stem + "/__init__.py")
        base = stem
    return files


def _passed(stage: StageSpec, secret: bytes) -> Optional[Json]:
    if stage.pass_env is None:
        return None
    import environment
    return environment.passed_digests(stage.pass_env, os.environ, secret)


def compute_idempotency_key(inputs: Iterable[str], processor: str, params: Optional[Json] = None) -> str:
    """Return the SHA-256 key (hex) of input files, a processor and its params.

    Inputs enter by path and content, the processor by path, content and modification time; a stage's own key has
    more parts, see key_parts(). Raises: OSError for a file that cannot be read.
    """
    parts = {"keyVersion": KEY_VERSION, "inputs": [[os.fspath(path).replace(os.sep, "/"), file_digests.hash_file(os.fspath(path))[0]] for path in inputs],
             "processor": {"path": os.fspath(processor).replace(os.sep, "/"), "sha256": file_digests.hash_file(os.fspath(processor))[0],
                           "mtimeNs": os.stat(processor).st_mtime_ns}, "params": params or {}}
    return key_of(parts)


def key_of(parts: Json) -> str:
    """Return the key of its parts; the prefix keeps it apart from any other digest of the same bytes."""
    return sha256(b"stage-key\0" + state_store.canonical_json(parts)).hexdigest()


def key_parts(spec: PipelineSpec, stage: StageSpec, digests: Digests, inputs: Sequence[str], watched: Sequence[str], secret: bytes) -> Json:
    """Return all that a stage's outcome depends on, as stored beside the key. Raises: OSError, FileChanged."""
    digest, stamp = digests.of(stage.processor)
    processor: Json = {"path": stage.processor, "sha256": digest}
    if stage.processor_mtime:
        processor["mtimeNs"] = stamp[1]
    return {
        "keyVersion": KEY_VERSION, "pipeline": spec.name, "stage": stage.name, "outputDir": stage.output_dir,
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
        except (OSError, file_digests.FileChanged):
            problems.append("output %s missing" % output["path"])
            continue
        if (size, digest) != (output["bytes"], output["sha256"]):
            problems.append("output %s changed" % output["path"])
    return problems


def gather_material(spec: PipelineSpec, stage: StageSpec, digests: Digests, store: StateStore) -> Material:
    """Find the stage's inputs and compute its key. What cannot be found or read is told in `missing`, not raised."""
    inputs, problems = file_digests.resolve(spec.root, stage.inputs)
    watched, watch_problems = file_digests.resolve(spec.root, stage.watch)
    if stage.allow_no_inputs:
        problems = [problem for problem in problems if not problem.endswith((file_digests.NO_MATCH, file_digests.NO_FILE))]
    problems += [problem.replace("input", "watched", 1) for problem in watch_problems]
    if not problems and not inputs and not stage.allow_no_inputs and stage.inputs:
        problems.append("no inputs")
    if problems:
        return Material("", {}, inputs, watched, problems, {}, 0)
    try:
        secret = store.secret() if stage.pass_env is not None else b""
        parts = key_parts(spec, stage, digests, inputs, watched, secret)
    except file_digests.FileChanged as error:
        return Material("", {}, inputs, watched, ["%s changes while it is read; run again when it is complete" % error], {}, 0)
    except OSError as error:
        if error.filename and os.path.abspath(os.fsdecode(error.filename)).startswith(store.folder + os.sep):
            raise
        return Material("", {}, inputs, watched, ["cannot read %s: %s" % (os.fsdecode(error.filename or "?"), error.strerror)], {}, 0)
    files = inputs + watched + [stage.processor] + [path for path, _ in parts["modules"]]
    stamps = {path: digests.of(path)[1] for path in files}
    return Material(key_of(parts), parts, inputs, watched, [], stamps, sum(stamps[path][0] for path in inputs))
