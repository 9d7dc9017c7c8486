"""What the sources themselves must keep: who imports whom, sizes, the map of sections, no network, nothing but the standard library."""
from __future__ import annotations

import ast
import re
import statistics
import subprocess
import sys

import pytest
from conftest import ROOT

SRC, BIN = sorted((ROOT / "src").glob("*.py")), sorted((ROOT / "bin").glob("*.py"))
MODULES = {path.stem for path in SRC}
BASES = {"primitives", "model"}      # under all others
EVERY = sorted(path for folder in ("src", "bin", "tests", "bench", "docs", "examples") if (ROOT / folder).is_dir() for path in (ROOT / folder).rglob("*.py"))

# Of the library of Python 3.8, what the runner uses or may come to use; sys.stdlib_module_names is not known there. Modules
# that later versions removed (imp, distutils, cgi, asyncore, ...) are left out on purpose: they are not there in 3.13.
STDLIB_3_8 = frozenset("""
    __future__ abc argparse array ast atexit base64 binascii bisect builtins bz2 calendar codecs collections configparser contextlib copy csv ctypes
    dataclasses datetime decimal difflib dis enum errno fcntl filecmp fileinput fnmatch fractions functools gc getpass glob grp gzip hashlib heapq hmac
    html importlib inspect io itertools json keyword linecache locale logging lzma marshal math mmap msvcrt operator os pathlib pickle pkgutil platform
    posixpath ntpath pprint py_compile pwd queue random re resource runpy secrets select selectors shlex shutil signal sqlite3 stat statistics string struct
    subprocess symtable sys sysconfig syslog tarfile tempfile textwrap threading time timeit token tokenize trace traceback tracemalloc types typing
    unicodedata unittest uuid warnings weakref winreg xml zipfile zipimport zlib""".split())
# The interpreter's own modules, for speed: one digest, asked for by version with hashlib behind it; the node types of ast; a lock.
PRIVATE = {"primitives.py": {"_sha2", "_sha256", "_json", "_hashlib"}, "processor_kit.py": {"_sha2", "_sha256", "_thread"}, "attempts.py": {"_thread"}, "import_scan.py": {"_ast"}, "pipeline_runner.py": {"_signal"}, "stop_requests.py": {"_signal"}, "path_signs.py": {"_signal", "_operator"}}
POSIX_ONLY = frozenset("fcntl resource pwd grp termios tty pty syslog posix".split())
WINDOWS_ONLY = frozenset("msvcrt winreg _winapi nt winsound".split())
# Costly at start-up: not on the way of a run in which nothing changed.
HEAVY = frozenset("typing dataclasses pathlib argparse subprocess inspect logging".split())


def tree_of(path):
    return ast.parse(path.read_bytes(), str(path))


def imports_of(node):
    """Return the (top name, line) of every import below a node, those for type checkers excepted."""
    found = []
    for one in nodes(node):
        if isinstance(one, ast.Import):
            found += [(alias.name.split(".")[0], one.lineno) for alias in one.names]
        elif isinstance(one, ast.ImportFrom):
            assert one.level == 0, "line %d: modules here are no package" % one.lineno
            found.append((one.module.split(".")[0], one.lineno))
    return found


def nodes(node, into_functions=True):
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
            continue
        if not into_functions and isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        yield child
        yield from nodes(child, into_functions)


def at_import_time(path):
    """Return the modules that are imported when the file is, not those that a function imports when it needs them."""
    found = set()
    for one in nodes(tree_of(path), into_functions=False):
        if isinstance(one, ast.Import):
            found |= {alias.name.split(".")[0] for alias in one.names}
        elif isinstance(one, ast.ImportFrom):
            found.add(one.module.split(".")[0])
    return found


def functions_of(path):
    for node in ast.walk(tree_of(path)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node.name, node.end_lineno - node.lineno + 1


# --- the map of pipeline_runner.py

def banners():
    """Return [(number, title)] of the section banners in the order of the file."""
    text = (ROOT / "src" / "pipeline_runner.py").read_bytes().decode("utf-8")
    return [(int(number), title.strip()) for number, title in re.findall(r"(?m)^# === (\d+)\. (.+?) =*$", text)]


def test_the_banners_are_numbered_from_one_upwards():
    numbers = [number for number, _ in banners()]
    assert numbers == list(range(1, len(numbers) + 1)) and len(numbers) >= 3


def test_the_banners_are_those_of_the_docstrings_map():
    docstring = ast.get_docstring(tree_of(ROOT / "src" / "pipeline_runner.py"))
    mapped = sorted((int(number), title.strip()) for line in docstring.splitlines() if re.match(r"\s+\d+ [A-Z]", line)
                    for number, title in re.findall(r"(\d+) ([A-Z][a-z ]+?)(?:  +|$)", line))
    assert mapped == [(number, re.split(r"[:(,]", title)[0].strip()) for number, title in banners()]


def test_every_module_beside_the_runner_is_in_the_docstrings_map():
    docstring = ast.get_docstring(tree_of(ROOT / "src" / "pipeline_runner.py"))
    assert {name for name in MODULES - {"pipeline_runner"} if not re.search(r"\b%s\b" % name, docstring)} == set()


def allowed_by_the_map():
    """Return {module: what it may import of ours}, read from the docstring of pipeline_runner.py."""
    docstring = ast.get_docstring(tree_of(ROOT / "src" / "pipeline_runner.py"))
    section = docstring[docstring.rindex("    leaves"):]
    leaves_text, above_text = section.split("on them", 1)
    leaves = {name for name in MODULES - BASES if re.search(r"\b%s\b" % name, leaves_text)}
    above = [name for name in re.findall(r"\w+", above_text) if name in MODULES - leaves - BASES]
    assert leaves | set(above) == MODULES - BASES - {"pipeline_runner"} and len(above) == len(set(above))
    found = dict([(name, BASES) for name in leaves] + [("primitives", set()), ("model", {"primitives"}), ("pipeline_runner", MODULES - {"pipeline_runner"})])
    return dict(found, **{name: BASES | leaves | set(above[:place]) for place, name in enumerate(above)})


@pytest.mark.parametrize("path", SRC, ids=lambda path: path.name)
def test_modules_import_only_what_the_map_allows(path):
    ours = {name for name, _ in imports_of(tree_of(path)) if name in MODULES}
    assert ours <= allowed_by_the_map()[path.stem], path.name


@pytest.mark.parametrize("path", SRC + BIN, ids=lambda path: path.name)
def test_nothing_imports_the_runner(path):
    assert "pipeline_runner" not in {name for name, _ in imports_of(tree_of(path))}


@pytest.mark.parametrize("path", BIN, ids=lambda path: path.name)
def test_processors_import_nothing_from_src(path):
    names = {name for name, _ in imports_of(tree_of(path))}
    assert names & (MODULES | {"src"}) == set()


# --- the standard library and nothing else

@pytest.mark.parametrize("path", SRC + BIN, ids=lambda path: path.name)
def test_imports_come_from_the_standard_library_of_the_oldest_python(path):
    ours = MODULES if path in SRC else {one.stem for one in BIN}
    strange = {(name, line) for name, line in imports_of(tree_of(path)) if name not in STDLIB_3_8 | ours | PRIVATE.get(path.name, set())}
    assert strange == set()


def test_the_list_of_names_is_right_where_the_interpreter_knows():
    known = getattr(sys, "stdlib_module_names", None)
    if known is None:
        pytest.skip("this Python does not tell")
    assert STDLIB_3_8 <= known


@pytest.mark.parametrize("path", SRC + BIN, ids=lambda path: path.name)
def test_no_module_of_one_system_at_import_time(path):
    assert at_import_time(path) & (POSIX_ONLY | WINDOWS_ONLY) == set()


@pytest.mark.parametrize("path", SRC, ids=lambda path: path.name)
def test_files_are_renamed_and_removed_patiently(path):
    """On Windows a scanner may hold them for moments; launchers and their leases are of POSIX systems."""
    at_once = [line.strip() for line in path.read_text(encoding="utf-8").split("\n")
               if re.search(r"\bos\.(replace|rename|unlink|remove|truncate)\(", line.partition("#")[0]) and "patiently(" not in line and '"""' not in line]
    assert not at_once or path.stem in ("launch_lease", "launch_helper", "node_report"), at_once


@pytest.mark.parametrize("path", SRC, ids=lambda path: path.name)
def test_nothing_heavy_at_import_time(path):
    assert at_import_time(path) & HEAVY == set()


WITHOUT_CHANGES = """
import atexit, sys
atexit.register(int)    # or the process would end at once
before = set(sys.modules)
del sys.argv[0]
try:
    exec(compile(open(sys.argv[0], encoding="utf-8").read(), sys.argv[0], "exec"), {"__name__": "__main__", "__file__": sys.argv[0]})
except SystemExit as end:
    print("loaded:", end.code, *sorted(set(sys.modules) - before))
"""


def test_a_run_in_which_nothing_changed_loads_nothing_heavy(project):
    """Not by reading the sources, but by asking the interpreter what it has loaded in the end."""
    project.write("data/in.txt", "x")
    project.spec({"processor": "bin/stage_copy.py", "inputs": ["data/*.txt"]})
    project.ok()
    argv = [sys.executable, "-S", "-c", WITHOUT_CHANGES, str(ROOT / "src" / "pipeline_runner.py"), "--pipeline", str(project.path("pipeline.json"))]
    out = subprocess.run(argv, stdout=subprocess.PIPE, check=True, timeout=60).stdout.decode("utf-8", "replace")
    assert "[SKIP] s1" in out, out
    code, *loaded = out.rpartition("loaded: ")[2].split()
    heavy = HEAVY | {"hashlib", "ctypes", "shutil", "tempfile", "ast", "stage_work", "attempts", "process_table", "process_tree", "import_scan", "offline_guard", "network_watch", "ledger_verify", "seal_keys", "spec_source", "reasons", "live_view",
                     "log_events", "run_history", "stage_progress", "text_table", "threading"}
    heavy -= {"ctypes"} if sys.platform == "win32" else set()       # by which file systems are told there
    assert code == "0" and set(loaded) & heavy == set(), loaded


@pytest.mark.parametrize("path", SRC + BIN, ids=lambda path: path.name)
def test_the_syntax_is_that_of_the_oldest_python(path):
    ast.parse(path.read_bytes(), str(path), feature_version=(3, 8))
    assert "from __future__ import annotations" in path.read_bytes().decode("utf-8") or path.name.startswith("stage_") or path == ROOT / "src" / "pipeline_runner.py", path


# --- no network

def test_an_older_python_can_read_the_runner_so_far_that_it_can_say_what_it_needs():
    """An interpreter compiles the whole file first: one word of newer syntax, and the user sees a SyntaxError instead of the line."""
    path = ROOT / "src" / "pipeline_runner.py"
    text, newer = path.read_bytes().decode("ascii"), []
    for node in ast.walk(ast.parse(text)):
        syntax = {"annotation": getattr(node, "annotation", None) or getattr(node, "returns", None), "keyword-only": getattr(node, "kwonlyargs", None),
                  "positional-only": getattr(node, "posonlyargs", None), "raise from": getattr(node, "cause", None),
                  "future": isinstance(node, ast.ImportFrom) and node.module == "__future__",
                  "class keyword": isinstance(node, ast.ClassDef) and node.keywords,
                  "statement": isinstance(node, (ast.AnnAssign, ast.Nonlocal, ast.AsyncFunctionDef)),
                  "expression": isinstance(node, (ast.JoinedStr, ast.NamedExpr, ast.YieldFrom, ast.Starred, ast.Await, ast.MatMult)),
                  "number": isinstance(node, ast.Constant) and isinstance(node.value, (int, float)) and "_" in ast.get_source_segment(text, node)}
        newer += ["%s, line %d" % (name, getattr(node, "lineno", 0)) for name, found in syntax.items() if found]
    assert newer == []


def test_no_file_spells_a_network_import():
    """A plain text search finds none, in code, comments or strings; the pattern here is composed for that reason."""
    pattern = re.compile(r"(imp" + r"ort|fr" + r"om) (" + "|".join(("soc" + "ket", "requ" + "ests", "url" + "lib", "http" + r"\.client", "asyn" + "cio", "aio" + "http", "url" + "lib3")) + r")\b")
    found = ["%s:%d: %s" % (path, number, line) for path in EVERY for number, line in enumerate(path.read_bytes().decode("utf-8").splitlines(), 1) if pattern.search(line)]
    assert found == [] and len(EVERY) > 20
    assert pattern.search("imp" + "ort " + "soc" + "ket") and pattern.search("fr" + "om " + "url" + "lib imp" + "ort x")


# --- shape

@pytest.mark.parametrize("path", SRC + BIN, ids=lambda path: path.name)
def test_functions_are_at_most_sixty_lines_long(path):
    assert [(name, length) for name, length in functions_of(path) if length > 60] == []


def test_the_median_function_is_short():
    lengths = [length for path in SRC for _, length in functions_of(path)]
    assert 5 <= statistics.median(lengths) <= 14


def test_no_module_for_everything_else():
    assert MODULES & {"misc", "util", "utils", "helper", "helpers", "common", "tools", "stuff"} == set()
    assert not [title for _, title in banners() if re.search(r"(?i)\b(misc|util|utilities|helpers)\b", title)]


@pytest.mark.parametrize("path", SRC + [path for path in BIN], ids=lambda path: path.name)
def test_every_module_says_what_it_is(path):
    docstring = ast.get_docstring(tree_of(path))
    assert docstring and docstring.splitlines()[0].endswith((".", ":"))


@pytest.mark.parametrize("path", SRC, ids=lambda path: path.name)
def test_public_functions_and_classes_are_documented(path):
    missing = [node.name for node in tree_of(path).body if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")
               and not ast.get_docstring(node) and node.end_lineno - node.lineno > 8]
    assert missing == []


@pytest.mark.parametrize("path", EVERY, ids=lambda path: path.name)
def test_files_are_plain_utf8_with_unix_lines(path):
    data = path.read_bytes()
    assert b"\r" not in data and not data.startswith(b"\xef\xbb\xbf") and (not data or data.endswith(b"\n"))
    data.decode("utf-8")
