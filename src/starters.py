"""Beginnings: `init` writes a pipeline of one's own, `new-stage` one stage more; what they write passes as it is written.

Above the leaves and below the runner.

    init        folder beside DIR, complete and synced -> one rename    (into an empty DIR: its parts one by one, pipeline.json last)
    new-stage   processor -> test -> entry in the spec

A kill leaves a folder DIR.tmp-..., or a processor and a test that no spec names; the same command then goes on, for a file
that is already what it would write is taken as written. The spec is edited as text: what the user wrote stays as it stands.
"""
from __future__ import annotations

import json
import os
import sys
from collections import namedtuple

import durable_files
import spec_source
import spec_values
import stage_locks
import starter_texts
from model import EXIT_OK, Clock, UsageError, shown_names
from primitives import patiently, remove_quietly
from program_scan import runner_files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, List, Tuple

    from console import Console
    from model import Options, PipelineSpec
    Files = Dict[str, Tuple[bytes, int]]        # path with forward slashes -> content, mode
    Json = Dict[str, Any]

_HERE = os.path.dirname(os.path.abspath(__file__))
_HOME = os.path.dirname(_HERE)
PLAIN, PROGRAM = 0o666, 0o777                   # before the umask
FIRST_STAGE = "clean"
PARTIAL = ".tmp-"           # begins the name of a project's folder that is being made
LOCK_S = 10.0               # how long another new-stage may take


def do(options: Options, console: Console, load: Callable[..., PipelineSpec]) -> int:
    """Do init or new-stage; *load* reads and checks a pipeline file. Raises: UsageError, SpecError; OSError."""
    if options.command == "init":
        return _init(options.operands[0], console)
    return _new_stage(options, console, load)


# === init ===

def _init(folder: str, console: Console) -> int:
    target = os.path.abspath(folder)
    _check_folder(folder, target)
    files = _project_files(_pipeline_name(target))
    try:
        if os.path.isdir(target):
            _move_into(target, files)
        else:
            _make_beside(target, files)
    except (FileNotFoundError, FileExistsError, NotADirectoryError, PermissionError) as error:
        raise UsageError("init %s: it cannot be made there (%s: %s); choose a place where you may write" % (
            folder, os.fsdecode(error.filename or "?"), error.strerror)) from None
    console.line("%s: a pipeline of one stage, its test, and the runner itself" % folder)
    console.line("next: %s %s, then %s src/pipeline_runner.py; README.md says more" % (_change_folder(target, os.getcwd()), _shell_word(folder), _python()))
    return EXIT_OK


def _check_folder(folder: str, target: str) -> None:
    """Refuse what is there already, but for an empty folder (or one that holds an empty repository)."""
    if not os.path.lexists(target):
        return
    if not os.path.isdir(target):
        raise UsageError("init %s: it is not a folder; choose another name" % folder)
    names = sorted(name for name in os.listdir(target) if name != ".git")
    if names:
        remedy = "choose another folder, or move them away"
        if all(name.startswith(PARTIAL) for name in names):
            remedy = "an init that was killed has left that: remove it and run again"
        raise UsageError("init %s: the folder is not empty, it has %s; %s" % (folder, shown_names(names), remedy))


def _pipeline_name(target: str) -> str:
    """Return the folder's name, made a name for a pipeline."""
    kept = "".join(c if c in spec_values.NAME_CHARACTERS else "_" for c in os.path.basename(target)).strip("._-")[:64].rstrip(".")
    return "pipeline" if spec_values.name_problem(kept) else kept


def _project_files(name: str) -> Files:
    """Return all that `init` writes. Raises: UsageError when this copy of the runner is not whole."""
    files: Files = {path: (_read_own(path), PLAIN) for path in ("bin/processor_kit.py", "pipeline.schema.json")}
    for full in runner_files():
        path = os.path.relpath(full, _HOME).replace(os.sep, "/")
        files[path] = (_read_own(path), PLAIN)
    for folder in ("docs", "docs/images"):
        full = os.path.join(_HOME, *folder.split("/"))
        for one in sorted(os.listdir(full)) if os.path.isdir(full) else ():
            if one.endswith((".md", ".png")):
                files["%s/%s" % (folder, one)] = (_read_own("%s/%s" % (folder, one)), PLAIN)
    stage, more = _stage_files(FIRST_STAGE, "lines")
    files.update(more)
    entry = _entry(FIRST_STAGE, stage, "lines", ["data/input/*.txt"], "data/" + FIRST_STAGE)
    words = {"NAME": name, "FILE": stage, "TEST": _test_name(stage), "DOCS": starter_texts.DOCS if "docs/reference.md" in files else ""}
    for path, text in (("README.md", starter_texts.README), (".gitignore", starter_texts.GITIGNORE), (".gitattributes", starter_texts.GITATTRIBUTES),
                       ("data/input/sample.txt", starter_texts.SAMPLE), ("tests/__init__.py", ""), ("state/.gitkeep", ""), ("locks/.gitkeep", "")):
        files[path] = (starter_texts.filled(text, words), PLAIN)
    top = '{\n  "$schema": "./pipeline.schema.json",\n  "name": %s,\n  "stages": [\n    %s\n  ]\n}\n'
    files["pipeline.json"] = ((top % (json.dumps(name), _entry_text(entry, "\n", "    ", "  "))).encode("utf-8"), PLAIN)
    return files


def _read_own(path: str) -> bytes:
    try:
        with open(os.path.join(_HOME, path), "rb") as file:
            return file.read()
    except OSError as error:
        raise UsageError("init: this copy of the runner is not whole: %s: %s; take it from the original" % (
            os.path.join(_HOME, path), error.strerror)) from None


def _make_beside(target: str, files: Files) -> None:
    os.makedirs(os.path.dirname(target), exist_ok=True)
    temporary = "%s.tmp-%s" % (target, os.urandom(4).hex())
    try:
        _write_all(temporary, files)
        _rename(temporary, target)
    except BaseException:                       # Ctrl-C, too
        _remove_tree(temporary)
        raise
    durable_files.sync_folder(os.path.dirname(target))


def _move_into(target: str, files: Files) -> None:
    """Fill an empty folder: renaming over it would leave whoever stands in it in a folder that is gone."""
    temporary = os.path.join(target, PARTIAL + os.urandom(4).hex())
    moved: List[str] = []
    try:
        _write_all(temporary, files)
        for name in sorted(os.listdir(temporary), key=lambda name: name == "pipeline.json"):
            _rename(os.path.join(temporary, name), os.path.join(target, name))
            moved.append(name)
        os.rmdir(temporary)
    except BaseException:
        for path in [temporary] + [os.path.join(target, name) for name in moved]:
            _remove_tree(path)
        raise
    durable_files.sync_folder(target)


def _write_all(folder: str, files: Files) -> None:
    made = durable_files.Commit()
    os.mkdir(folder)
    for path, (data, mode) in files.items():
        full = os.path.join(folder, *path.split("/"))
        durable_files.make_folder(os.path.dirname(full), made)
        durable_files.write_new(full, data, mode=mode)
        made.folders[os.path.dirname(full)] = None
    made.flush()


def _rename(source: str, target: str) -> None:
    patiently(lambda: os.rename(source, target))


def _remove_tree(path: str) -> None:
    import shutil
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        remove_quietly(path)


def _python() -> str:
    import shutil
    return "py" if sys.platform == "win32" else "python" if shutil.which("python") else "python3"


def _change_folder(target: str, current: str) -> str:
    """Return the command that leads to a folder in every shell of this system: cmd.exe's cd stays on its drive."""
    drives = [os.path.splitdrive(path)[0].lower() for path in (target, current)]
    return "pushd" if drives[0] != drives[1] else "cd"


def _shell_word(text: str) -> str:
    import shlex
    if sys.platform != "win32":
        return shlex.quote(text)
    return text if all(one.isalnum() or one in "\\/:._-" for one in text) else '"%s"' % text


# === new-stage ===

class _NewStage(namedtuple("_NewStage", "spec path before after entry files missing")):
    """What new-stage is going to do: files {path: (content, mode)}, of which missing are to be written; before, after: the
    pipeline file at path."""

    __slots__ = ()


def _new_stage(options: Options, console: Console, load: Callable[..., PipelineSpec]) -> int:
    root = _planned_stage(options, load).spec.root      # what is refused leaves nothing behind
    os.makedirs(os.path.join(root, "locks"), exist_ok=True)
    lock = stage_locks.FileLock(root, "new-stage", Clock())
    lock.acquire(LOCK_S, "new-stage: another one is at work below %s; run the command again" % root)
    try:
        new = _planned_stage(options, load)
        for one in new.missing:
            _write_file(root, one, *new.files[one])
        _replace_spec(new.path, new.before, new.after)
    finally:
        lock.release()
    _tell(options, console, new.spec, new.entry, new.files)
    return EXIT_OK


def _planned_stage(options: Options, load: Callable[..., PipelineSpec]) -> _NewStage:
    """Raises: UsageError, SpecError; OSError."""
    name, kind = options.operands[0], options.kind
    problem = spec_values.name_problem(name)
    if problem:
        raise UsageError("new-stage %s: the name %s" % (spec_values.shown_value(name), problem))
    spec = load(options.pipeline, options.root)
    _check_is_new(name, spec)
    path = os.path.realpath(options.pipeline)
    with open(path, "rb") as file:
        before = file.read()
    defaults = json.loads(before.decode("utf-8")).get("defaults", {})
    if "forEach" in defaults:           # no stage can say against it
        raise UsageError("new-stage %s: \"defaults\" has forEach, and what would be made takes all inputs at once; "
                         "write forEach into the stages that it is meant for" % name)
    if kind == "shell" and sys.platform == "win32":
        kind = "powershell"
    processor, files = _stage_files(name, kind)
    if _is_ours(os.path.join(spec.root, "tests"), name):
        files["tests/__init__.py"] = (b"", PLAIN)       # so that plain `python -m unittest` looks there
    if kind in ("lines", "blocks", "files"):
        files.setdefault("bin/processor_kit.py", (_kit(spec.root), PLAIN))
    missing = [one for one in files if not _is_written(spec.root, one, files[one][0])]
    inputs = _inputs_after(spec)
    entry = _entry(name, processor, kind, inputs, _output_folder(name, spec))
    entry.update(_not_inherited(defaults))
    return _NewStage(spec, path, before, _with_stage(before.decode("utf-8"), entry), entry, files, missing)


def _is_ours(tests: str, name: str) -> bool:
    """Tell whether the folder of the tests is not there, or has only what a new-stage for this stage was killed at."""
    try:
        return all(one.startswith(".") or one in ("__init__.py", "test_stage_%s.py" % name) for one in os.listdir(tests))
    except FileNotFoundError:
        return True


def _check_is_new(name: str, spec: PipelineSpec) -> None:
    for stage in spec.stages:
        if stage.name.casefold() == name.casefold():
            raise UsageError("new-stage %s: there is a stage %s already; choose another name" % (name, stage.name))


def _stage_files(name: str, kind: str) -> Tuple[str, Files]:
    """Return (file name of the processor, its files and its test's).

    The file's name begins with "stage_": a module "json.py" beside the processors would be imported in place of the library's.
    """
    ending, text, command, cases = starter_texts.KINDS[kind]
    processor = (name if name.startswith("stage_") else "stage_" + name) + ending
    words = {"CASES": cases, "COMMAND": command, "NAME": name, "FILE": processor, "IMPORTS": "import shutil\n" * ("shutil" in command)}
    return processor, {"bin/" + processor: (starter_texts.filled(text, words), PROGRAM if ending == ".sh" else PLAIN),
                       "tests/" + _test_name(processor): (starter_texts.filled(starter_texts.TEST, words), PLAIN)}


def _test_name(processor: str) -> str:
    """Return the test's file name: unittest imports it, so it must be a Python name."""
    stem = os.path.splitext(processor)[0]
    return "test_%s.py" % "".join(c if c.isalnum() else "_" for c in stem)


def _kit(root: str) -> bytes:
    """Return the kit that stands below *root*, or else the one beside this runner."""
    path = os.path.join(root, "bin", "processor_kit.py")
    if os.path.lexists(path):
        with open(path, "rb") as file:
            return file.read()
    return _read_own("bin/processor_kit.py")


def _is_written(root: str, path: str, data: bytes) -> bool:
    """Tell whether a file is already what it is to be. Raises: UsageError when something else is in its way."""
    full = os.path.join(root, *path.split("/"))
    if not os.path.lexists(full):
        return False
    if os.path.isfile(full):
        with open(full, "rb") as file:
            if file.read() == data:
                return True
    raise UsageError("new-stage: %s is in the way; move it, or choose another name" % path)


def _write_file(root: str, path: str, data: bytes, mode: int) -> None:
    full = os.path.join(root, *path.split("/"))
    made = durable_files.Commit()
    durable_files.make_folder(os.path.dirname(full), made)
    made.flush()
    durable_files.write_atomic(full, data, mode=mode)


def _inputs_after(spec: PipelineSpec) -> List[str]:
    """Return what the last stage makes, as inputs: its declared outputs, else its texts, else all of its files."""
    last = spec.stages[-1]
    if last.outputs is not None:
        return ["%s/%s" % (last.output_dir, one) for one in last.outputs]
    try:
        names = [name for name in os.listdir(os.path.join(spec.root, last.output_dir)) if not name.startswith(".")]
    except OSError:
        names = []
    has_texts = not names or any(name.endswith(".txt") for name in names)
    return ["%s/%s" % (last.output_dir, "*.txt" if has_texts else "*")]


def _output_folder(name: str, spec: PipelineSpec) -> str:
    """Return a folder that no stage has, and in which nothing lies."""
    taken = {stage.output_dir.casefold() for stage in spec.stages}
    folder, number = "data/" + name, 1
    while folder.casefold() in taken or os.path.lexists(os.path.join(spec.root, folder)) and os.listdir(os.path.join(spec.root, folder)):
        number += 1
        folder = "data/%s-%d" % (name, number)
    return folder


def _entry(name: str, processor: str, kind: str, inputs: List[str], folder: str) -> Json:
    entry: Json = {"name": name, "processor": "bin/" + processor, "inputs": inputs, "outputDir": folder}
    if kind in ("lines", "blocks"):
        entry["checkpoint"] = {"enabled": True}
    return entry


def _not_inherited(defaults: Json) -> Json:
    """Return what the entry must say against `defaults` that are meant for stages of another kind."""
    plain: Json = {"args": [], "outputs": None, "chunks": None, "maxFailedTasks": 0, "prune": False}
    return {key: value for key, value in plain.items() if defaults.get(key, value) != value}


# === the spec as text ===

def _entry_text(entry: Json, end: str, indent: str, unit: str) -> str:
    """Return an object with a member on each line; end: how lines end; indent: of the line on which it begins."""
    members = ["%s%s%s: %s" % (indent, unit, json.dumps(key), json.dumps(value, ensure_ascii=False)) for key, value in entry.items()]
    return "{" + end + ("," + end).join(members) + end + indent + "}"


def _with_stage(text: str, entry: Json) -> str:
    """Return the text of a valid spec with one stage more at the end of its list, written as the last one is.

    Raises: RuntimeError, should anything else have changed.
    """
    value = json.loads(text)
    begin = spec_source.parse(text).offset(("stages", len(value["stages"]) - 1))
    end = json.JSONDecoder().raw_decode(text, begin)[1]
    line = max(text.rfind("\n", 0, begin), text.rfind("\r", 0, begin)) + 1
    indent = text[line:begin]
    if indent.strip(" \t") or not line:
        addition = ", " + json.dumps(entry, ensure_ascii=False)         # the list stands on one line
    else:
        line_end = "\r\n" if text[:line].endswith("\r\n") else text[line - 1]
        unit = _unit(text, begin, indent)
        addition = "," + line_end + indent + (_entry_text(entry, line_end, indent, unit) if unit else json.dumps(entry, ensure_ascii=False))
    after = text[:end] + addition + text[end:]
    if json.loads(after) != {**value, "stages": value["stages"] + [entry]}:
        raise RuntimeError("the entry of stage %s does not fit into the pipeline file" % entry["name"])
    return after


def _unit(text: str, begin: int, indent: str) -> str:
    """Return by how much the members of the stage that begins there are indented, "" if it stands on one line."""
    first = text.index('"', begin)
    line = max(text.rfind("\n", 0, first), text.rfind("\r", 0, first)) + 1
    if line <= begin:
        return ""
    start = text[line:first]
    return start[len(indent):] if start.startswith(indent) and not start.strip(" \t") and len(start) > len(indent) else "  "


def _replace_spec(path: str, before: bytes, after: str) -> None:
    with open(path, "rb") as file:
        if file.read() != before:
            raise UsageError("new-stage: %s was changed meanwhile; the processor and its test are written: run the command again" % path)
    mode = os.stat(path).st_mode & 0o7777
    durable_files.write_atomic(path, after.encode("utf-8"), mode=mode)
    if os.stat(path).st_mode & 0o7777 != mode:
        os.chmod(path, mode)                    # the umask took something away


def _tell(options: Options, console: Console, spec: PipelineSpec, entry: Json, files: Files) -> None:
    test = next(path for path in files if path.startswith("tests/test_"))
    runner = os.path.join(_HERE, "pipeline_runner.py")
    try:
        runner = os.path.relpath(runner)
    except ValueError:
        pass                                    # on another drive of Windows
    where = "" if options.pipeline == "pipeline.json" else " --pipeline " + _shell_word(options.pipeline)
    where += "" if options.root is None else " --root " + _shell_word(options.root)
    console.line("%s: the processor; edit it" % entry["processor"])
    console.line("%s: its test; %s -m unittest %s" % (test, _python(), test))
    console.line("%s: stage %s, after %s; it reads %s and writes to %s" % (
        options.pipeline, entry["name"], spec.stages[-1].name, ", ".join(entry["inputs"]), entry["outputDir"]))
    console.line("next: %s %s%s" % (_python(), _shell_word(runner), where))
