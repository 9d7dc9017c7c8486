"""What a valid pipeline file is: checks of the parsed JSON, collecting every problem at its path.

On spec_values and stage_cycles: the runner gives the value in and gets clean values and problems out; nothing here reads a
file but the look whether a processor is there. Nothing stops at the first problem. Where in the text a path stands is a matter
of spec_source.
"""
from __future__ import annotations

import json
import os
import sys

from primitives import is_for_cmd
from spec_values import (
    Problems, check_boolean, check_command, check_exit_codes, check_launcher, check_max_rejects, check_name,
    check_object, check_output_folder, check_output_globs, check_path_or_paths, check_paths, check_processor, check_text,
    check_texts, check_variables, launcher_names, number_from_zero, one_of, shown_value, whole_number)
from stage_cycles import components, find_path, shown_cycle

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Container, Dict, List, Optional, Sequence, Tuple
    Json = Dict[str, Any]
    Path = Tuple[Any, ...]

MOST_SEARCHED = 50          # problems, after which files that were meant are not looked for any more: each search takes a while
MOST_CYCLES = 200           # that are looked for: in a long cycle each `needs` makes one, and is a search through all of it
CMD_TAKES = frozenset("&|<>^%!\"()\r\n")
RETRY_DEFAULTS = {"attempts": 1, "baseDelayMs": 100, "maxDelayMs": 30000, "jitterMs": 0, "exitCodes": None}
STAGE_DEFAULTS: Json = {
    "args": [], "inputs": [], "allowNoInputs": False, "outputs": None, "params": {}, "env": {}, "passEnv": None,
    "watch": [], "needs": [], "idempotency": {"enabled": True, "processor": "mtime"},
    "checkpoint": {"enabled": False, "lineInterval": 1000}, "retry": RETRY_DEFAULTS, "timeoutSec": None, "graceSec": 5,
    "lock": {"waitSeconds": 5}, "resources": {}, "simulateFailAttempts": 0, "networkAttempts": "fail",
    "forEach": [], "maxFailedTasks": 0, "prune": False, "chunks": None, "launcher": [], "forkServer": True, "settleSec": 0,
    "reconcile": False, "maxRejects": None}
PIPELINE_KEYS = ("name", "version", "description", "defaults", "offline", "seal", "order", "onFailure", "onSuccess", "stages", "$schema")
LAYERS = ("scan", "kernel", "hook")


# --- checks of one value: (value, path, problems) -> clean value or None

def fields(example: str, checks: Dict[str, Callable[..., Any]]) -> Callable[..., Any]:
    """Return a check of an object with just these keys; *example* is one, for who wrote something else."""
    def check(value: Any, path: Path, problems: Problems) -> Any:
        if check_object(value, path, problems, example) is None:
            return None
        _check_keys(value, tuple(checks), path, problems)
        return {key: checks[key](one, path + (key,), problems) for key, one in value.items() if key in checks}
    return check


def _check_seal(value: Any, path: Path, problems: Problems) -> Any:
    """Check `seal`: one without a key file would leave the ledger unsealed without a word."""
    found = fields('{"keyFile": "/etc/pipeline/seal.key"}', {"keyFile": check_text})(value, path, problems)
    if found is None or "keyFile" not in found:
        return found if found is None else problems.add(path, "the key \"keyFile\" is missing; without \"seal\" the ledger is not sealed")
    return found if found["keyFile"] != "" else problems.add(path + ("keyFile",), "must name the key file; without \"seal\" the ledger is not sealed")


# The objects of a stage: an example for who wrote something else, and a check of each key.
OBJECTS: Dict[str, Tuple[str, Dict[str, Callable[..., Any]]]] = {
    "idempotency": ('{"enabled": false}', {"enabled": check_boolean, "processor": one_of("mtime", "content")}),
    "checkpoint": ('{"enabled": true}', {"enabled": check_boolean, "lineInterval": whole_number(1)}),
    "retry": ('{"attempts": 3}', {"attempts": whole_number(1), "baseDelayMs": whole_number(0), "maxDelayMs": whole_number(0),
                                  "jitterMs": whole_number(0), "exitCodes": check_exit_codes}),
    "lock": ('{"waitSeconds": 60}', {"waitSeconds": number_from_zero()}),
    "resources": ('{"cpuCores": 2}', {"cpuCores": whole_number(1), "memoryMB": whole_number(1), "minFreeDiskMB": whole_number(0),
                                      "nice": whole_number(0, 19)}),
    "chunks": ('{"bytes": 67108864}', {"bytes": whole_number(1), "keepChunks": check_boolean, "filter": check_boolean,
                                       "headerLines": whole_number(0)})}

STAGE_CHECKS: Dict[str, Callable[..., Any]] = {
    "name": check_name, "processor": check_processor, "args": check_texts, "inputs": check_paths,
    "allowNoInputs": check_boolean, "outputDir": check_output_folder, "outputs": check_output_globs, "params": check_object,
    "env": check_variables, "passEnv": check_texts, "watch": check_paths, "needs": check_texts,
    "idempotency": fields(*OBJECTS["idempotency"]), "checkpoint": fields(*OBJECTS["checkpoint"]), "retry": fields(*OBJECTS["retry"]),
    "timeoutSec": number_from_zero(exclusive=True), "graceSec": number_from_zero(),
    "lock": fields(*OBJECTS["lock"]), "resources": fields(*OBJECTS["resources"]),
    "simulateFailAttempts": whole_number(0), "networkAttempts": one_of("fail", "warn"),
    "forEach": check_path_or_paths, "maxFailedTasks": whole_number(0), "prune": check_boolean, "chunks": fields(*OBJECTS["chunks"]),
    "launcher": check_launcher, "forkServer": check_boolean, "settleSec": number_from_zero(), "reconcile": check_boolean,
    "maxRejects": check_max_rejects}


def _checked(value: Json, key: str, check: Callable[..., Any], path: Path, problems: Problems, required: bool = False) -> Any:
    if key in value:
        return check(value[key], path + (key,), problems)
    if required:
        problems.add(path, "the key \"%s\" is missing" % key)
    return None


def _check_keys(value: Json, known: Sequence[str], path: Path, problems: Problems) -> None:
    for key in value:
        if key not in known and not key.startswith("x-"):
            owners, near = _owners_of(key, path), problems.nearest(key, known)
            hint = "\"%s\" belongs %s" % (key,
                                          owners) if owners else "did you mean \"%s\"?" % near if near else "known keys: %s; keys of your own begin with \"x-\"" % ", ".join(known)
            problems.add(path + (key,), "unknown key; " + hint)


def _owners_of(key: str, path: Path) -> str:
    """Return where a key belongs that stands at the wrong level of the file, or ""."""
    if not path:
        owner = "offline" if key in OFFLINE_CHECKS else "seal" if key == "keyFile" else ""
        return "in \"%s\"" % owner if owner else "in a stage, or in \"defaults\"" if key in STAGE_CHECKS else ""
    if path == ("defaults",) or path[0] == "stages" and len(path) == 2:
        owners = ["\"%s\"" % name for name, (_, checks) in OBJECTS.items() if key in checks]
        at_top = "at the top of the file" if key == "stages" else "at the top, beside \"stages\"" if key in PIPELINE_KEYS and key != "name" else ""
        return "in " + " or ".join(owners) if owners else at_top
    return "in the stage, beside \"%s\"" % path[-1] if path[0] in ("defaults", "stages") and key in STAGE_CHECKS else ""


def _check_stage_keys(value: Any, path: Path, problems: Problems, is_defaults: bool = False) -> Json:
    """Check the keys that are there; what is missing is a matter of the merged stage."""
    if not isinstance(value, dict):
        problems.add(path, "must be an object, got %s" % shown_value(value))
        return {}
    known = tuple(key for key in STAGE_CHECKS if not (is_defaults and key == "name"))
    _check_keys(value, known, path, problems)
    nullable = ("outputs", "passEnv", "timeoutSec", "chunks", "maxRejects")
    return {key: None if one is None and key in nullable else STAGE_CHECKS[key](one, path + (key,), problems)
            for key, one in value.items() if key in known}


def _check_required(stages: List[Tuple[int, Json]], value: List[Any], defaults: Json, problems: Problems) -> None:
    for index, _ in stages:
        for key in ("name", "processor", "outputDir"):
            if key not in value[index] and key not in defaults:
                problems.add(("stages", index), "the key \"%s\" is missing" % key)


def _check_tasks(stages: List[Tuple[int, Json]], problems: Problems) -> None:
    """Check what only a stage of several tasks may have, and what it may not have."""
    for index, merged in stages:
        path: Path = ("stages", index)
        chunks, has_tasks = merged.get("chunks"), bool(merged.get("forEach"))
        if chunks is not None and "bytes" not in chunks:
            problems.add(path + ("chunks",), "the key \"bytes\" is missing")
        if chunks is not None and has_tasks:
            problems.add(path + ("chunks",), "goes with inputs, not with forEach: a stage has one kind of tasks")
        elif chunks is not None and not merged.get("inputs"):
            problems.add(path + ("chunks",), "needs inputs to cut")
        for key in ("maxFailedTasks", "prune"):
            if merged.get(key) and not has_tasks:
                problems.add(path + (key,), "goes with forEach")


def _check_launchers(stages: List[Tuple[int, Json]], problems: Problems) -> None:
    """Check that a stage has the resources that its launcher's words name."""
    for index, merged in stages:
        resources = merged.get("resources") or {}
        if merged.get("launcher") and (merged.get("chunks") or {}).get("filter"):
            problems.add(("stages", index, "chunks"), "with a launcher there is no \"filter\": what this machine reads, another one does not get; "
                         "use the kit, or leave out one of them")
        for place, word in enumerate(merged.get("launcher") or []):
            for name in (launcher_names(word) or []) if isinstance(word, str) else []:
                if name not in resources:
                    problems.add(("stages", index, "launcher", place), "stage %s uses {%s}, but has no resources.%s: give it one" % (
                        shown_value(merged.get("name")), name, name))


def _check_names(stages: List[Tuple[int, Json]], problems: Problems) -> None:
    seen: Dict[str, Tuple[int, str]] = {}
    for index, merged in stages:
        name = merged.get("name")
        if isinstance(name, str):
            first, other = seen.setdefault(name.casefold(), (index, name))
            if first != index:
                problems.add(("stages", index, "name"), "stages[%d] has the name %s already%s; choose another" % (
                    first, shown_value(other), "" if other == name else ", and %s differs from it in case only" % shown_value(name)))


def _check_needs(stages: List[Tuple[int, Json]], problems: Problems, is_graph: bool) -> None:
    order: Dict[str, int] = {merged.get("name") or "": index for index, merged in stages}
    needs: Dict[str, List[str]] = {}
    every: Dict[str, List[str]] = {}        # with what is needed by others of the same name, which is a problem of its own
    for _, merged in stages:
        needs[merged.get("name") or ""] = known = [one for one in merged["needs"] or [] if one in order]
        every.setdefault(merged.get("name") or "", []).extend(known)
    component, searches = components(every), 0
    for index, merged in stages:
        for place, needed in enumerate(merged["needs"] or []):
            path = ("stages", index, "needs", place)
            if needed is None:
                continue
            if needed not in order:
                near = problems.nearest(needed, [name for name in order if name])
                problems.add(path, "no stage is named %s%s" % (shown_value(needed), "; did you mean \"%s\"?" % near if near else ""))
            elif order[needed] >= index:
                name, cycle = merged.get("name") or "", []
                if name and component[needed] == component[name]:
                    searches += 1
                    if searches > MOST_CYCLES:
                        if searches == MOST_CYCLES + 1:
                            problems.add(path, "and more; only the first %d cycles are looked for" % MOST_CYCLES)
                        continue
                    cycle = find_path(needs, needed, name)
                if cycle:
                    problems.add(path, "makes a cycle: %s" % " -> ".join(shown_cycle([name] + cycle)))
                elif not is_graph:
                    problems.add(path, "%s is listed later; stages run in the order listed: list it first, or set \"order\": \"graph\"" %
                                 shown_value(needed))


def _check_processors(stages: List[Tuple[int, Json]], root: Optional[str], problems: Problems) -> None:
    for index, merged in stages:
        processor = merged.get("processor")
        if isinstance(processor, str):
            _check_program(processor, ("stages", index, "processor"), root, problems)
            _check_for_cmd(processor, merged.get("args"), ("stages", index, "args"), 0, root, problems)


def _check_for_cmd(program: str, words: Any, path: Path, first: int, root: Optional[str], problems: Problems) -> None:
    """Refuse what a batch file could not be given; words[0] is number *first* of the list at *path*."""
    for number, word in enumerate(words if root is not None and isinstance(words, list) else []):
        if isinstance(word, str) and taken_by_cmd(program, [word]):
            problems.add((*path, number + first), "cmd.exe would not take %s as it is: write it without the signs & | < > ^ %% ! \" ( ) and line ends, or let the program be no batch file" %
                         shown_value(word))


def _untaken_place(program: str, root: str) -> str:
    """Return why cmd.exe would run another file than this batch file, or run it in another folder than the root, or "".

    Source: Microsoft's KB 156276, "CMD does not support UNC paths as current directories": it begins in Windows's own folder then.
    """
    if not is_for_cmd(program):
        return ""
    if "%" in program:
        return "cmd.exe may put something else in the place of the %% in %s: rename the file or folder" % shown_value(program)
    if root.startswith("\\\\") and not _cmd_works_on_shares():
        return "cmd.exe works in no folder of a network share such as %s: run it by a drive letter (net use), or let the program be no batch file" % shown_value(root)
    return ""


def _cmd_works_on_shares() -> bool:
    """Tell whether this system's administrator, or the user, has told cmd.exe to begin in such folders, too."""
    import winreg
    for top in (winreg.HKEY_CURRENT_USER, winreg.HKEY_LOCAL_MACHINE):       # type: ignore[attr-defined]
        try:
            with winreg.OpenKey(top, "Software\\Microsoft\\Command Processor") as key:     # type: ignore[attr-defined]
                if winreg.QueryValueEx(key, "DisableUNCCheck")[0]:          # type: ignore[attr-defined]
                    return True
        except OSError:
            pass
    return False


def taken_by_cmd(program: str, words: Sequence[str]) -> List[str]:
    """Return those of *words* of which, on Windows, cmd.exe would run a part as a command, or put something else in its place, as
    *program* is a batch file.

    Source: "BatBadBut", CVE-2024-24576.
    """
    return [word for word in words if CMD_TAKES.intersection(word)] if is_for_cmd(program) else []


def _check_program(program: str, path: Path, root: Optional[str], problems: Problems) -> None:
    if root is None:
        return
    untaken = _untaken_place(program, root)
    if untaken:
        problems.add(path, untaken)
    full = os.path.join(root, program)
    if not os.path.isfile(full):
        text = _no_file_text(full, shown_value(program))
        problems.add(path, text + (_no_file_remedy(program, path, root, problems) if text.startswith("there is no file") else ""))
    elif program_kind(program) == "python" and _path_file():
        problems.add(path, "%s makes Python ignore PYTHONPATH and a script's own folder, so no processor finds its modules, nor is it refused the network: run a full installation of Python, "
                     "or remove that file" % _path_file())
    elif program_kind(program) == "program" and sys.platform != "win32" and not os.access(full, os.X_OK):
        is_marked = os.stat(full).st_mode & 0o111
        problems.add(path, "%s is not executable%s" % (
            shown_value(program), " by this user, or lies on a file system that runs no programs (noexec)" if is_marked else "; chmod +x it"))


def _path_file() -> str:
    """Return the ._pth file beside the interpreter by which a Python of Windows (its embeddable package has one) takes no other
    place for modules, or "".

    Source: Python's documentation, "Finding modules", pybuilddir and ._pth files.
    """
    if sys.platform != "win32":
        return ""
    folder, name = os.path.split(sys.executable)
    files = [os.path.join(folder, one + "._pth") for one in ("python%d%d" % sys.version_info[:2], os.path.splitext(name)[0])]
    return next((path for path in files if os.path.isfile(path)), "")


def _no_file_text(full: str, shown: str) -> str:
    try:
        os.stat(full)
    except PermissionError as error:
        return "%s cannot be looked at: %s; the runner's user must be allowed to enter its folder" % (shown, error.strerror)
    except (OSError, ValueError):
        pass
    return "there is no file %s" % shown


def _no_file_remedy(program: str, path: Path, root: str, problems: Problems) -> str:
    """Return what was meant, most likely, by a program that is not there, or ""."""
    full = os.path.join(root, program)
    if os.path.isdir(full):
        return ": it is a folder; name a file in it"
    first, blank, _ = program.partition(" ")
    belongs = "arguments belong %s" % ("in \"args\"" if path[0] == "stages" else "behind it in the list")
    if blank and os.path.isfile(os.path.join(root, first)):
        return "; %s: the program is %s" % (belongs, shown_value(first))
    import shutil
    found = shutil.which(first) if "/" not in first else None
    if found:
        return "; PATH is not searched: write %s%s" % (json.dumps(os.path.abspath(found), ensure_ascii=False), ", and " + belongs if blank else "")
    near = _near_file(program, root, problems) if len(problems.found) < MOST_SEARCHED else None
    if near:
        return "; did you mean \"%s\"?" % near
    return "" if "/" in program else "; PATH is not searched: write its path, from the root or absolute"


def _near_file(program: str, root: str, problems: Problems) -> Optional[str]:
    """Return the file whose path is most like that of *program*, in the same folder; for a mere name in bin/, too."""
    folder, name = os.path.split(program)
    for place in (folder,) if folder else ("", "bin"):
        try:
            near = problems.nearest(name, os.listdir(os.path.join(root, place)))
        except OSError:
            continue
        near = near if near and os.path.isfile(os.path.join(root, place, near)) else None
        if near:
            return "%s/%s" % (place.rstrip("/"), near) if place else near
    return None


def _check_after(value: Json, key: str, root: Optional[str], problems: Problems) -> List[str]:
    """Return the command that is run after the run, [] for none; its program is found as a processor is."""
    words = _checked(value, key, check_command, (), problems) or []
    if words and isinstance(words[0], str):
        path = (key, 0)
        program = check_processor(words[0], path, problems)
        if program is not None:
            _check_program(program, path, root, problems)
            _check_for_cmd(program, words[1:], (key,), 1, root, problems)
            words = [program] + words[1:]
    return words


def program_kind(processor: str) -> str:
    """Return python, powershell or program, by the file's ending."""
    ending = os.path.splitext(processor)[1].lower()
    return {".py": "python", ".ps1": "powershell"}.get(ending, "program")


def _check_output_folders(stages: List[Tuple[int, Json]], problems: Problems) -> Dict[str, Tuple[str, int]]:
    """Names that differ in case only are one folder on Windows and macOS: there two stages would be at work in it at once.

    Return {an output folder or one that holds it, case folded: (as it is spelled, the index of the first stage that spells it)}.
    """
    spelled: Dict[str, Tuple[str, int]] = {}
    for index, merged in stages:
        parts = str(merged.get("outputDir") or "").split("/")
        for count in range(1, len(parts) + 1):
            folder = "/".join(parts[:count])
            first, _ = spelled.setdefault(folder.casefold(), (folder, index))
            if first != folder:
                problems.add(("stages", index, "outputDir"), "%s and %s differ in case only, and are one folder on Windows and macOS; write them alike, or choose another name" % (
                    shown_value(folder), shown_value(first)))
                break
    return spelled


def _check_folders_read(stages: List[Tuple[int, Json]], spelled: Dict[str, Tuple[str, int]], problems: Problems) -> None:
    """What is read where a stage writes must be spelled as there: else no stage waits for that one, and a task may write over its
    own input."""
    owned = {str(merged.get("outputDir") or "").casefold() for _, merged in stages}
    for index, merged in stages:
        for key in ("inputs", "forEach", "watch"):
            for place, pattern in enumerate(merged.get(key) or []):
                folder = _folder_spelled_otherwise(pattern or "", spelled, owned)
                if folder:
                    first, owner = spelled[folder.casefold()]
                    problems.add(("stages", index, key, place), "%s and %s, in the outputDir of stages[%d], differ in case only, and are one folder on Windows and macOS; write them alike, or choose another name" % (
                        shown_value(folder), shown_value(first), owner))


def _folder_spelled_otherwise(pattern: str, spelled: Dict[str, Tuple[str, int]], owned: Container[str]) -> str:
    """Return the folder that a path or glob spells otherwise than the output folder that it leads into, or as a glob may lead
    into; "" for none."""
    parts = pattern.split("/")
    count = next((number for number, part in enumerate(parts[:-1]) if set("*?[") & set(part)), len(parts) - 1)
    leads_deeper = count < len(parts) - 1 or parts[-1] == "**"
    for number in range(1, count + 1):
        folder = "/".join(parts[:number])
        alike = folder.casefold()
        if alike not in spelled:
            break
        if spelled[alike][0] != folder and (alike in owned or number == count and leads_deeper):
            return folder
    return ""


def _check_output_owners(stages: List[Tuple[int, Json]], problems: Problems) -> None:
    owners: Dict[str, int] = {}
    for index, merged in stages:
        for place, output in enumerate(merged.get("outputs") or []):
            if output is None or merged.get("outputDir") is None:
                continue
            full = "%s/%s" % (merged["outputDir"], output)
            first = owners.setdefault(full.casefold(), index)
            if first != index:
                problems.add(("stages", index, "outputs", place),
                             "%s is an output of stages[%d] already; a file belongs to one stage" % (shown_value(full), first))


# --- the whole

def check_pipeline(value: Any, root: Optional[str], nearest: Callable[[str, Sequence[str]], Optional[str]], problems: Problems) -> Optional[Json]:
    """Check a whole spec; return name, version, description, offline, seal, order, onFailure, onSuccess and the stages with
    defaults filled in.

    Relative processors are looked for below *root*, none at all if it is None; *nearest* finds the known word most like an
    unknown one. None, with problems added, when the spec is not valid.
    """
    problems.nearest = nearest
    if not isinstance(value, dict):
        problems.add((), "must be an object with \"name\" and \"stages\", got %s" % shown_value(value))
        return None
    _check_keys(value, PIPELINE_KEYS, (), problems)
    name = _checked(value, "name", check_name, (), problems, required=True)
    version = _checked(value, "version", check_text, (), problems)
    description = _checked(value, "description", check_text, (), problems)
    offline = _check_offline(value.get("offline", {}), problems)
    seal = _checked(value, "seal", _check_seal, (), problems) or {}
    defaults = _check_stage_keys(value.get("defaults", {}), ("defaults",), problems, is_defaults=True)
    if "networkAttempts" in offline:
        defaults.setdefault("networkAttempts", offline["networkAttempts"])
    order = _checked(value, "order", one_of("listed", "graph"), (), problems) or "listed"
    after = {key: _check_after(value, key, root, problems) for key in ("onFailure", "onSuccess")}
    stages = _check_stages(value.get("stages"), defaults, root, problems, order == "graph")
    if problems.found:
        return None
    return dict(after, name=name, version=version or "", description=description or "", offline=offline, seal=seal, order=order, stages=stages)


def _check_offline(value: Any, problems: Problems) -> Json:
    """Return the offline guard's settings, defaults filled in; networkAttempts only if it was given."""
    path = ("offline",)
    if value == "strict":
        value = {"strict": True}
    if not isinstance(value, dict):
        problems.add(path, "must be an object or \"strict\", got %s" % shown_value(value))
        return {}
    found = {key: one for key, one in (OFFLINE_CHECK(value, path, problems) or {}).items() if one is not None}
    layers = found.setdefault("layers", list(LAYERS))
    if found.get("strict"):
        found.setdefault("require", "kernel")       # only the kernel can be strict
    if found.get("require") == "kernel" and "kernel" not in layers:
        problems.add(path + ("layers",), "must have \"kernel\" where %s" % ("require says so" if not found.get("strict") else "strict is asked for"))
    return found


def check_layers(value: Any, path: Path, problems: Problems) -> Any:
    if not isinstance(value, list) or not all(one in LAYERS for one in value):
        return problems.add(path, "must be a list of %s, got %s" % (", ".join(map(shown_value, LAYERS)), shown_value(value)))
    return value


OFFLINE_CHECKS: Dict[str, Callable[..., Any]] = {"allow": check_texts, "require": one_of("scan", "kernel"), "strict": check_boolean, "layers": check_layers,
                                                 "networkAttempts": one_of("fail", "warn")}
OFFLINE_CHECK = fields("", OFFLINE_CHECKS)


def _check_stages(value: Any, defaults: Json, root: Optional[str], problems: Problems, is_graph: bool) -> List[Json]:
    if not isinstance(value, list) or not value:
        problems.add(("stages",), "must be a list of at least one stage" if value is not None
                     else "is missing: a list of at least one stage is required")
        return []
    stages = []
    for index, one in enumerate(value):
        own = _check_stage_keys(one, ("stages", index), problems)
        if isinstance(one, dict):
            stages.append((index, _merge_defaults(defaults, own)))
    _check_required(stages, value, defaults, problems)
    _check_tasks(stages, problems)
    _check_launchers(stages, problems)
    _check_names(stages, problems)
    _check_needs(stages, problems, is_graph)
    _check_processors(stages, root, problems)
    _check_folders_read(stages, _check_output_folders(stages, problems), problems)
    _check_output_owners(stages, problems)
    return [merged for _, merged in stages]


def _merge_defaults(defaults: Json, own: Json) -> Json:
    """Lay a stage's own keys over `defaults` over the built-in ones; objects are merged one level deep."""
    merged = dict(STAGE_DEFAULTS)
    for layer in (defaults, own):
        for key, value in layer.items():
            inner = merged.get(key)
            merged[key] = {**inner, **value} if isinstance(inner, dict) and isinstance(value, dict) else value
    return merged
