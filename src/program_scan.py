"""Which programs are scanned for the network, and what the scan found: the runner, bin/, processors, what they import.

Above the leaves and below the runner. Scans are remembered by content; import_scan is loaded only for what is new.
"""
from __future__ import annotations

import json
import os
import sys

import file_digests
from file_digests import Digests
from ledger_format import canonical_json
from model import EXIT_OFFLINE, EXIT_OK, OfflineError, UsageError, sha256, shown_names

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, Iterator, List, Optional, Sequence, Set, Tuple

    from console import Console
    from import_scan import Finding
    from model import PipelineSpec
    Json = Dict[str, Any]

# What they find is remembered until one of them changes, or the Python does, which may parse what another cannot.
SCANNERS = ("import_scan.py", "scan_shell.py", "scan_windows.py", "source_folding.py")
COMPILED = (".so", ".pyd", ".pyc")      # endings of modules that are no source ...
BINARY_BYTES = 256          # ... and of which no more is looked at
_HERE = os.path.dirname(os.path.abspath(__file__))


def scan_of(digests: Digests, path: str) -> Json:
    """Return the offline guard's scan of a program: {"refused", "warned", "imports"}, remembered by content."""
    digest = digests.of(path)[0]
    digests.guard = guard = digests.guard or sha256(
        ("".join(digests.of(os.path.join(_HERE, name))[0] for name in SCANNERS) + "%d.%d" % sys.version_info[:2]).encode("ascii")).hexdigest()
    known = digests.scans.get(digest)
    ending = os.path.splitext(path)[1].lower()      # it tells the kind of program before the content does
    wanted = {"refused", "warned", "imports"}
    if not isinstance(known, dict) or (known.get("guard"), known.get("ending")) != (guard, ending) or not known.keys() >= wanted:
        import import_scan
        with open(os.path.join(digests.root, path), "rb") as file:
            source = file.read(BINARY_BYTES if ending in COMPILED else -1)
        known = dict(import_scan.scan_program(source, path).to_json(), guard=guard, ending=ending)
        if ending in COMPILED or sha256(source).hexdigest() == digest:      # else it was exchanged since its digest was taken
            digests.scans[digest] = known
            digests.changed = True
    return known


def local_modules(digests: Digests, processor: str) -> List[str]:
    """Return the files beside a Python processor that it imports, directly or through one another, sorted. What is compiled is
    among them, but not looked into."""
    folder = script_folder(digests.root, processor)
    found: Set[str] = set()
    compiled: Dict[str, Dict[str, List[str]]] = {}
    queue = [processor]
    while queue:
        current = queue.pop()
        for name in scan_of(digests, current)["imports"]:
            for path in _module_files(digests, compiled, folder, os.path.dirname(current), name):
                if path not in found and path != processor:
                    found.add(path)
                    queue += [] if path.endswith(COMPILED) else [path]
    return sorted(found)


def script_folder(root: str, script: str, windows: bool = sys.platform == "win32") -> str:
    """Return the folder in which a script's imports are looked for first: that of the file which a link leads to, but on Windows.

    Relative to *root* where it lies below it. Source: sys.path[0], Python's documentation ("The initialization of the sys.path").
    """
    full = os.path.join(root, script)
    if windows or not os.path.islink(full):
        return os.path.dirname(script)
    folder, top = os.path.dirname(os.path.realpath(full)), os.path.join(os.path.realpath(root), "")
    return folder[len(top):].replace(os.sep, "/") if os.path.join(folder, "").startswith(top) else folder


def _module_files(digests: Digests, compiled: Dict[str, Dict[str, List[str]]], folder: str, package: str, name: str) -> List[str]:
    """Return the files that importing *name* may load: the module and the packages that it lies in; of "*", all modules of the
    package, for its `__all__` may be put together at run time. compiled: what is known of folders."""
    files = []
    for base, part in _steps(folder, package, name):
        parts = [part] if part != "*" else {one.partition(".")[0] for one in digests.names_in(base)} - {"", "__pycache__"}
        for one in sorted(parts):
            files += _files_of(digests, compiled, base, one)
            if one in digests.names_in(base):
                files += _files_of(digests, compiled, base + "/" + one if base else one, "__init__")
        if part not in digests.names_in(base):
            break
    return files


def _steps(folder: str, package: str, name: str) -> Iterator[Tuple[str, str]]:
    """Yield (folder, part) of each part of a dotted name: where that is looked for."""
    dots = len(name) - len(name.lstrip("."))
    base = folder if not dots else package
    for _ in range(dots - 1):
        base = os.path.dirname(base)
    for part in name.split(".")[dots:]:
        yield base, part
        base = base + "/" + part if base else part


def imported_places(digests: Digests, processor: str, modules: Sequence[str]) -> Iterator[Tuple[str, str]]:
    """Yield (folder, name without its ending) of each module that a Python processor or one of its local modules imports, there or
    not ("*": all of the folder); of what is not below the script's folder, as most of Python's own, where it would be if it were."""
    folder = script_folder(digests.root, processor)
    for current in [processor] + [path for path in modules if not path.endswith(COMPILED)]:
        for name in scan_of(digests, current)["imports"]:
            for base, part in _steps(folder, os.path.dirname(current), name):
                yield base, part
                yield base + "/" + part if base else part, "__init__"


def _files_of(digests: Digests, compiled: Dict[str, Dict[str, List[str]]], folder: str, part: str) -> List[str]:
    """Return the files in *folder* that may be the module *part*: extension modules, which Python takes before the source; this;
    bytecode only where this is not there."""
    if folder not in compiled:
        compiled[folder] = _compiled_in(digests, folder)
    files = [part + ".py"] if part + ".py" in digests.names_in(folder) and _is_file(digests, folder, part + ".py") else []
    files += [name for name in compiled[folder].get(part, ()) if not (files and name.endswith(".pyc"))]
    return [folder + "/" + name if folder else name for name in files]


def _compiled_in(digests: Digests, folder: str) -> Dict[str, List[str]]:
    """Return {name of a module: its compiled files in *folder*}, for any Python: told by their form, of which an extension module's
    may have a tag of its Python in the middle.

    Source: PEP 3149; importlib.machinery.EXTENSION_SUFFIXES and BYTECODE_SUFFIXES.
    """
    found: Dict[str, List[str]] = {}
    for name in digests.names_in(folder):
        dots = name.count(".") if name.endswith(COMPILED) else 0
        if (dots == 1 or dots == 2 and not name.endswith(".pyc")) and _is_file(digests, folder, name):
            found.setdefault(name.partition(".")[0], []).append(name)
    return found


def _is_file(digests: Digests, folder: str, name: str) -> bool:
    """Tell whether Python would take *name* for a module: it passes over a folder, and a link that leads nowhere. Such a path is
    noted as looked at: that link may lead to a file later, which does not show in *folder*."""
    path = folder + "/" + name if folder else name
    is_file = os.path.isfile(os.path.join(digests.root, path))
    if not is_file:
        digests.folders.setdefault(path, set())
    return is_file


def runner_folders() -> List[str]:
    """Return the folders of the runner's own sources."""
    return [_HERE, os.path.join(_HERE, "python_hook")]


def runner_files() -> List[str]:
    """Return the paths of the runner's own sources, sorted."""
    return [os.path.join(folder, name) for folder in runner_folders() for name in sorted(os.listdir(folder)) if name.endswith(".py")]


def runner_digest(digests: Digests) -> str:
    """Return one SHA-256 (hex) over the names and contents of the runner's sources."""
    listing = [[path[len(_HERE) + 1:].replace(os.sep, "/"), digests.of(path)[0]] for path in runner_files()]
    return sha256(b"runner\0" + canonical_json(listing)).hexdigest()


def scan_files(spec: PipelineSpec, digests: Digests) -> List[str]:
    """Return what the scan looks at: the runner, bin/, every processor (and what is run after the run), the modules beside
    these."""
    return list(dict.fromkeys(runner_files() + files_in_bin(spec.root) + _used_files(spec, digests)))


def files_in_bin(root: str, seen: Optional[Set[str]] = None) -> List[str]:
    """Return the Python files below bin/; *seen* as in file_digests.expand(). A folder of bytecode that we may not read, somebody
    else's, is left out: a Python that may not read it takes nothing from it. Raises: OSError."""
    return file_digests.expand(root, "bin/**/*.py", seen, skipped="__pycache__")


def _used_files(spec: PipelineSpec, digests: Digests) -> List[str]:
    """Return every processor (and what is run after the run) and the modules beside these."""
    paths = []
    for program in [stage.processor for stage in spec.stages] + list(spec.on_failure[:1] + spec.on_success[:1]):
        paths += [program] + local_modules(digests, program)
    return paths


def find_uses(paths: Sequence[str], digests: Digests, allow: Sequence[str], with_binaries: bool = False) -> Tuple[List[str], List[str]]:
    """Return (refused, warned) uses of the network in programs, as lines "file:line: what".

    What cannot be read as a script is a warning only when asked for: the layers at run time cover it.
    """
    refused, warned = [], []
    for path in paths:
        scan = scan_of(digests, path)
        refused += ["%s:%d: %s%s" % (path, one.line, one.what, _namesake(digests, path, one.module)) for one in _refused_in(scan, allow)]
        if not path.startswith(_HERE + os.sep):
            warned += ["%s:%d: %s" % (path, line, what) for line, module, what in scan["warned"] if with_binaries or module != "binary"]
    return refused, warned


def _refused_in(scan: Json, allow: Sequence[str]) -> List[Finding]:
    if not scan["refused"]:
        return []
    import import_scan
    return import_scan.refusals(import_scan.ScanResult.from_json(scan), allow)


def _namesake(digests: Digests, path: str, module: str) -> str:
    """Return what to say where a file of the user's beside a program has the name of the network module that it imports."""
    top, folder = module.partition(".")[0], os.path.dirname(path)
    own = next((name for name in (top + ".py", top) if name in digests.names_in(folder)), "")
    return " (%s/%s has the name of a network module; if that is meant, rename it)" % (folder, own) if own else ""


def check_offline(spec: PipelineSpec, digests: Digests, console: Console) -> Json:
    """Scan the runner, bin/ and every processor for the network; return what the run record says of it. Raises: OfflineError."""
    paths = scan_files(spec, digests)
    refused, warned = find_uses(paths, digests, spec.offline.allow)
    if refused and "scan" in spec.offline.layers:
        raise OfflineError("\n".join("[OFFLINE] " + line for line in refused) + "\n" + _refusal_text(spec, digests, paths))
    console.warnings(refused + warned)
    return {"files": len(paths), "refused": len(refused), "allow": list(spec.offline.allow)}


def _refusal_text(spec: PipelineSpec, digests: Digests, paths: Sequence[str]) -> str:
    """Return what to do about the refused uses in *paths*."""
    found = {path: [one.module for one in _refused_in(scan_of(digests, path), spec.offline.allow)] for path in paths}
    allow = dict.fromkeys(list(spec.offline.allow) + sorted(module for modules in found.values() for module in modules))
    used = set(runner_files() + _used_files(spec, digests))
    idle = [path for path in paths if found[path] and path not in used]
    return "nothing was run; remove what uses the network%s, or let it through with \"offline\": {\"allow\": %s}" % (
        " (no stage uses %s, but all Python files below bin/ are scanned)" % shown_names(idle) if idle else "",
        json.dumps(list(allow), ensure_ascii=False))


def print_scan(spec: PipelineSpec, digests: Digests, paths: Sequence[str], console: Console) -> int:
    """Print what the scan finds in *paths* (none: in all that a run scans); return 6 if a run would be refused, else 0."""
    paths = [os.path.abspath(path) for path in paths] or scan_files(spec, digests)
    try:
        refused, warned = find_uses(paths, digests, spec.offline.allow, with_binaries=True)
    except OSError as error:
        raise UsageError("scan: cannot read %s: %s" % (os.fsdecode(error.filename or "?"), error.strerror)) from None
    for line in refused:
        console.line("[REFUSED] " + line)
    for line in warned:
        console.line("[WARNING] " + line)
    console.line("scan: %d file%s, %d refused, %d warning%s" % (len(paths), "" if len(paths) == 1 else "s", len(refused), len(warned),
                                                                "" if len(warned) == 1 else "s"))
    return EXIT_OFFLINE if refused else EXIT_OK
