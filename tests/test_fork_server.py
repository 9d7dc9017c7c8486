"""The fork server, on its own and in runs: a forked task against a fresh process of the same script, ends of all kinds, isolation, deaths.

`Bench` plays the pool: it launches, waits for ends and reads the slots' pipes. One server serves most tests of this module.
"""
from __future__ import annotations

import hashlib
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
from conftest import PATIENCE_S, ROOT, wait_until

import attempts
import environment
import file_digests
import fork_client
import fork_server
import forked_task
import hook_log
import process_table
import process_traits
import run_signals

resource = pytest.importorskip("resource")      # there is no fork server without it either

# Composed, so that a plain text search of the repository finds no network import.
NETWORK = "soc" + "ket"
pytestmark = pytest.mark.skipif(bool(fork_client.why_not({"PYTHONHASHSEED": "0"})), reason="no fork server on this system")
LIMIT_S = 30
IMPORTS = ["atexit", "json", "logging", "random", "re", "shutil", "signal", "subprocess", "tempfile", "threading", "time", "traceback", "warnings", "decimal", "cgi", "imp"]


class Bench:
    """A root with scripts, the server of one stage, and fresh processes to compare with."""

    def __init__(self, root: Path, slots=2, script="bin/x.py", modules=(), imports=IMPORTS, kit=(), own=None, start=True):
        self.root = root
        (root / "bin").mkdir(parents=True, exist_ok=True)
        own = dict({"TZ": "Asia/Tokyo"}, **(own or {}))
        ours = {name: value for name, value in os.environ.items() if not name.startswith(("COV", "COVERAGE", "PYTHON"))}
        self.env = environment.with_own(environment.base_environment(None, ours), own)
        self.env.update(PIPELINE_ROOT=str(root), PIPELINE_ATTEMPT_TOKEN="lock.token.1", PIPELINE_STAGE_NAME="s")
        self.lock = os.open(str(root / "guard"), os.O_RDWR | os.O_CREAT, 0o600)
        self.server = fork_client.ForkServer(str(root), str(root / script), list(modules), list(imports), list(kit))
        self.slots = slots
        if start:
            self.start()

    def start(self):
        self.server.start(self.env, "lock.token", self.lock, self.slots)
        return self

    def close(self):
        self.server.close()
        os.close(self.lock)

    def write(self, name, text, settled=True):
        """Write a file below bin/; settled: long ago, as most files are when a run starts."""
        path = self.root / "bin" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
        if settled:
            time.sleep(forked_settle_s())
        return str(path)

    def argv(self, script, *arguments):
        return [sys.executable, script, *arguments]

    def forked(self, script, *arguments, slot=0, **more):
        """Run it through the server; return (wait status, output)."""
        pid = self.server.launch(slot, self.argv(script, *arguments), dict(self.env, **more), str(self.root))
        end = self.wait(pid)
        return end.status, self.output(slot)

    def fresh(self, script, *arguments, **more):
        """Run it as the runner does without a server; return (wait status, output)."""
        reader, writer = os.pipe()
        process = subprocess.Popen(self.argv(script, *arguments), stdin=subprocess.DEVNULL, stdout=writer, stderr=writer, cwd=str(self.root),
                                   env=dict(self.env, **more), pass_fds=(self.lock,), start_new_session=True)
        os.close(writer)
        with open(reader, "rb") as file:
            out = file.read()
        _, status, _ = os.wait4(process.pid, 0)
        process.returncode = 0
        return status, out.decode("utf-8", "replace")

    def wait(self, pid, limit_s=LIMIT_S):
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline:
            for end in self.server.ends():
                if end.pid == pid:
                    return end
            select.select([self.server.descriptor], [], [], 1)
        raise AssertionError("no end of %d was told" % pid)

    def output(self, slot=0):
        found = b""
        try:
            while True:
                found += os.read(self.server.readers[slot], 1 << 16)
        except BlockingIOError:
            return found.decode("utf-8", "replace")


def forked_settle_s():
    return 0.06         # above fork_server.RACY_NS: not for luck, but so that the cache is what is tested


def until(what, limit_s=LIMIT_S):
    deadline = time.monotonic() + limit_s
    while not what():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.005)


def is_gone(pid):
    stat = process_table.read_stat(pid)
    return stat is None or stat[0] in "ZX"


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    made = Bench(tmp_path_factory.mktemp("fork") / "prüf bereich")
    yield made
    made.close()


@pytest.fixture
def own(tmp_path):
    """A maker of benches of the test's own."""
    made = []

    def make(**options):
        made.append(Bench(tmp_path / "prüf bereich", **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


# --- what a process sees

PROBE = r'''"""A docstring."""
import sys
early = sorted(sys.modules)
main = sys.modules["__main__"]
own = {name: repr(value) for name, value in vars(main).items() if name not in ("early", "main", "sys", "__builtins__", "__loader__")}
builtins_kind = type(__builtins__).__name__
loader = [type(__loader__).__name__, __loader__.name, __loader__.path]
import decimal, faulthandler, fcntl, gc, json, locale, logging, os, random, resource, signal, stat, threading, time, warnings
def stream(one):
    raw = one.buffer.raw
    return [one.encoding, one.errors, one.line_buffering, one.write_through, one.name, one.mode, one.newlines, one.seekable(), type(one.buffer).__name__,
            type(raw).__name__, raw.fileno(), raw.mode, raw.closefd, raw.name, one.isatty(), raw.seekable()]
def descriptor(number):        # but O_LARGEFILE, which a pipe that was opened by its name has
    found = os.fstat(number)
    return [number, stat.S_IFMT(found.st_mode), fcntl.fcntl(number, fcntl.F_GETFL) & ~0o100000, fcntl.fcntl(number, fcntl.F_GETFD)]
listed = []
for name in os.listdir("/proc/self/fd"):
    try:
        if not os.path.basename(os.readlink("/proc/self/fd/" + name)).startswith("libffi"):     # a newer one, on which ctypes stands, keeps its file open
            listed.append(descriptor(int(name)))
    except OSError:
        pass
seen = {
    "argv": sys.argv, "orig_argv": getattr(sys, "orig_argv", None), "path": sys.path, "main": own, "builtins": builtins_kind, "loader": loader,
    "environ": dict(os.environ), "environb": len(os.environb), "getenv": os.popen("env | grep -c PIPELINE").read(), "cwd": os.getcwd(), "umask": os.umask(0o22),
    "handlers": {int(one): str(signal.getsignal(one)) for one in signal.Signals if one not in (signal.SIGKILL, signal.SIGSTOP)},
    "mask": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])), "wakeup": signal.set_wakeup_fd(-1), "descriptors": sorted(listed),
    "leads session": os.getsid(0) == os.getpid() == os.getpgid(0), "nice": os.getpriority(os.PRIO_PROCESS, 0),
    "limits": {name: resource.getrlimit(getattr(resource, name)) for name in dir(resource) if name.startswith("RLIMIT_")},
    "hash": hash("text"), "flags": str(sys.flags), "streams": [stream(one) for one in (sys.stdin, sys.stdout, sys.stderr)],
    "same streams": [sys.stdin is sys.__stdin__, sys.stdout is sys.__stdout__], "input": sys.stdin.read(), "recursion": sys.getrecursionlimit(),
    "gc": [gc.isenabled(), gc.get_threshold(), gc.get_debug()], "warnings": str(warnings.filters), "options": [sys.warnoptions, sys._xoptions],
    "locale": [locale.setlocale(one) for one in (locale.LC_CTYPE, locale.LC_NUMERIC, locale.LC_TIME)], "encoding": locale.getpreferredencoding(),
    "zone": [time.tzname, time.timezone, time.strftime("%Z", time.gmtime(0))], "decimal": str(decimal.getcontext()),
    "thread": [threading.main_thread() is threading.current_thread(), threading.get_ident() == threading.main_thread().ident,
               threading.main_thread().native_id == threading.get_native_id(), threading.active_count()],
    "hooks": [sys.excepthook is sys.__excepthook__, sys.displayhook is sys.__displayhook__, faulthandler.is_enabled(), sys.gettrace(), sys.getprofile()],
    "finders": [str(one).partition(" at 0x")[0] for one in sys.meta_path] + [len(sys.path_hooks)], "bytecode": sys.dont_write_bytecode, "switch": sys.getswitchinterval(),
    "affinity": sorted(os.sched_getaffinity(0)), "cmdline": open("/proc/self/cmdline").read().rstrip("\0").split("\0"),
    "token": [one for one in open("/proc/self/environ", errors="replace").read().split("\0") if one.startswith("PIPELINE_ATTEMPT_TOKEN=")],
    "timers": signal.getitimer(signal.ITIMER_REAL), "comm": open("/proc/self/comm").read(), "exe": os.readlink("/proc/self/exe"),
    "own modules": [name for name in early if name in ("fork_server", "forked_task", "fork_client", "process_table", "process_traits", "process_tree", "model")],
    "logging": 0 <= time.time() - (logging._startTime if logging._startTime < 1e12 else logging._startTime / 1e9) < 60}
print(json.dumps({"seen": seen, "early": early, "random": random.random(), "started": logging._startTime}))
'''


def test_a_task_sees_what_a_fresh_process_sees(bench):
    script = bench.write("probe.py", PROBE)
    results = [run(script, "a b", "ü", "", PIPELINE_PARAMS="{}", PIPELINE_X="ü\udc80") for run in (bench.fresh, bench.forked, bench.forked)]
    assert [status for status, _ in results] == [0, 0, 0], results
    fresh, forked, again = (json.loads(out) for _, out in results)
    assert {name: (value, forked["seen"][name]) for name, value in fresh["seen"].items() if forked["seen"][name] != value} == {}
    assert forked["seen"] == again["seen"] and len(fresh["seen"]) > 40
    assert forked["random"] != again["random"] != fresh["random"]
    assert forked["started"] < again["started"]
    # More is loaded, all of it from the standard library; the processor's script comes in the same place.
    more = set(forked["early"]) - set(fresh["early"])
    assert not set(fresh["early"]) - set(forked["early"])
    names = {name.partition(".")[0] for name in more} - {"_missing_stdlib_info"}       # of 3.15, which does not count it
    assert names <= getattr(sys, "stdlib_module_names", names)


def test_the_stages_own_variables_of_python_are_in_force(own):
    bench = own(own={"PYTHONPATH": "lib", "PYTHONWARNINGS": "error::UserWarning", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONIOENCODING": "ascii:replace", "LC_ALL": "C"}, start=False)
    (bench.root / "lib").mkdir()
    (bench.root / "lib" / "beside.py").write_bytes(b"print('beside', __file__)\n")
    script = bench.write("x.py", "import beside, sys, locale, warnings\nprint(sys.path[:2], sys.stdout.encoding, sys.flags, sys.warnoptions, locale.setlocale(0), '\\xe9')\nwarnings.warn('x')\n")
    bench.start()
    assert bench.forked(script) == bench.fresh(script)
    assert "UserWarning" in bench.forked(script)[1]


# --- ends of all kinds

HEAD = "import sys, os, atexit, threading, time, signal\n"
ENDS = {
    "nothing": "",
    "output": "print('é \\udc80')\nsys.stderr.write('x')\nsys.stdout.write('no end of line')",
    "exit 0": "sys.exit()", "exit 3": "sys.exit(3)", "exit -1": "sys.exit(-1)", "exit 256": "sys.exit(256)", "exit huge": "sys.exit(1 << 70)", "exit true": "sys.exit(True)",
    "exit text": "sys.exit('what was wrong')", "exit tuple": "raise SystemExit(1, 2)", "quit": "quit(4)",
    "error": "def deep():\n    raise ValueError('é')\ndeep()",
    "error of error": "try:\n    1 / 0\nexcept Exception as one:\n    raise KeyError('k') from one",
    "error in context": "try:\n    1 / 0\nexcept Exception:\n    undefined",
    "recursion": "def down():\n    down()\ntry:\n    down()\nexcept RecursionError as error:\n    print(type(error))",
    "missing module": "import not_there_at_all",
    "interrupt": "raise KeyboardInterrupt", "sigint": "os.kill(os.getpid(), signal.SIGINT); time.sleep(9)",
    "os._exit": "print('lost'); os._exit(7)", "sigterm": "os.kill(os.getpid(), signal.SIGTERM)", "sigkill": "os.kill(os.getpid(), 9)", "abort": "os.abort()",
    "exit handlers": "atexit.register(print, 'first')\natexit.register(print, 'second')\nprint('main')",
    "exit handlers after an error": "atexit.register(print, 'handler')\n1 / 0",
    "exit handler fails": "atexit.register(lambda: 1 / 0)\natexit.register(print, 'other')",
    "exit handler exits": "atexit.register(lambda: sys.exit(5))\natexit.register(print, 'other')",
    "said before a thread ends": "def late():\n    time.sleep(0.05); os.write(1, b'late')\nthreading.Thread(target=late).start()\nprint('main')",
    "said before an exit handler ends it": "import atexit\natexit.register(os._exit, 3)\nprint('main'); print('problem', file=sys.stderr)",
    "thread": "def late():\n    time.sleep(0.05); print('late', threading.main_thread().is_alive())\nthreading.Thread(target=late).start()\nprint('main')",
    "thread fails": "threading.Thread(target=lambda: 1 / 0, name='T').start()",
    "daemon thread": "started = threading.Event()\ndef spin():\n    started.set()\n    while True:\n        time.sleep(0.001)\nthreading.Thread(target=spin, daemon=True).start()\nstarted.wait()\nprint('main')",
    "thread exits": "threading.Thread(target=sys.exit, args=(3,)).start()",
    "file left open": "left = open(os.environ['PIPELINE_OUT'], 'w')\nleft.write('content')",
    "file left open in a list": "import json\njson.kept = [open(os.environ['PIPELINE_OUT'], 'w')]\njson.kept[0].write('content')",
    "file left open, binary": "left = open(os.environ['PIPELINE_OUT'], 'wb', 1 << 20)\nleft.write(b'content' * 999)\nsys.exit(2)",
    "finaliser": "class One:\n    def __del__(self):\n        print('gone', sys is not None, other)\nother = 1\none = One()",
    "finaliser in a cycle": "class One:\n    def __del__(self):\n        print('gone')\none = One()\none.self = one\ndel one",
    "generator": "def walk():\n    try:\n        yield 1\n    finally:\n        print('closed')\nwalking = walk()\nnext(walking)",
    "generator that opens a file": "def walk():\n    try:\n        yield 1\n    finally:\n        open(os.environ['PIPELINE_OUT'], 'w').write('closed')\nwalking = walk()\nnext(walking)",
    "coroutine that opens a file": "class Pause:\n    def __await__(self):\n        yield\nasync def walk():\n    try:\n        await Pause()\n    finally:\n"
                                   "        open(os.environ['PIPELINE_OUT'], 'w').write('closed')\nwalking = walk()\nwalking.send(None)",
    "finaliser that opens a file": "class One:\n    def __del__(self):\n        open(os.environ['PIPELINE_OUT'], 'w').write('gone')\none = One()",
    "finaliser of what the collector does not know": "class One:\n    __slots__ = ()\n    def __del__(self):\n        open(os.environ['PIPELINE_OUT'], 'w').write('gone')\none = One()",
    "finaliser by name": "def end(self):\n    open(os.environ['PIPELINE_OUT'], 'w').write('gone')\nclass One(__import__('tempfile').SpooledTemporaryFile):\n    __del__ = end\none = One()",
    "finaliser of C that calls the script": "import io\nclass One(io.RawIOBase):\n    def close(self):\n        open(os.environ['PIPELINE_OUT'], 'w').write('gone')\none = One()",
    "finaliser of a module's that opens a file": "import module_of_ends\nleft = module_of_ends.Writer()",
    "finaliser held by the library": "import json\nclass One:\n    def __del__(self):\n        open(os.environ['PIPELINE_OUT'], 'w').write('gone')\njson.kept = [One()]",
    "class like no other": "class Kind(type):\n    __module__ = property(lambda kind: [])\nclass One(metaclass=Kind):\n    def __del__(self):\n        print('gone')\none = One()",
    "weakref finalize": "import weakref\nclass One: pass\none = One()\nweakref.finalize(one, print, 'finalized')",
    "temporary folder": "import tempfile\nfolder = tempfile.TemporaryDirectory()\natexit.register(lambda: print(os.path.isdir(folder.name)))",
    "unwritable": "sys.stdout = open('/dev/full', 'w')\nprint('x')",
    "closed stdout": "sys.stdout.close()", "no stdout": "sys.stdout = None", "closed descriptor": "print('x')\nsys.stdout.flush()\nos.close(1)",
    "excepthook": "sys.excepthook = lambda kind, error, trace: print('hook', kind.__name__, trace.tb_lineno, trace.tb_frame.f_code.co_name)\n1 / 0",
    "last": "atexit.register(lambda: print(sys.last_type, sys.last_traceback.tb_frame.f_globals['__name__']))\n1 / 0",
    "excepthook with traceback": "import traceback\nsys.excepthook = lambda *one: print(traceback.format_exception(*one))\n1 / 0",
    "caught": "import traceback\ntry:\n    1 / 0\nexcept Exception:\n    traceback.print_exc()",
    "warning": "import warnings\nwarnings.warn('old', DeprecationWarning)\nwarnings.warn('odd')",
    "compile warning": "if 1 is 1:\n    print('x')",
    "deprecated module": "try:\n    import cgi\nexcept ImportError as error:\n    print(error)",
    "unraisable": "class One:\n    def __del__(self):\n        1 / 0\nOne()",
    "logging": "import logging, logging.handlers\nfile = logging.FileHandler(os.environ['PIPELINE_OUT'])\nlogging.getLogger().addHandler(logging.handlers.MemoryHandler(99, 50, file))\nlogging.warning('kept')",
    "exec": "os.execv('/bin/sh', ['sh', '-c', 'echo other; exit 6'])",
    "subprocess": "import subprocess\nsubprocess.run([sys.executable, '-c', 'import os; print(os.environ[\"PIPELINE_STAGE_NAME\"])'], check=True)",
    "child of its own": "if os.fork() == 0:\n    print('child')\n    sys.exit(0)\nos.wait()\nprint('parent')",
    "pickle": "import pickle\nclass One: pass\nprint(type(pickle.loads(pickle.dumps(One()))) is One, pickle.dumps(One)[:99])",
    "main": "import __main__\nHERE = 1\nprint(__main__.HERE, __name__ == '__main__', __main__.__file__ == sys.argv[0], vars(__main__) is globals())",
    "relative": "print(os.path.relpath(__file__, os.getcwd()), __file__ == os.path.abspath(__file__))",
    "module": "import module_of_ends\nprint(module_of_ends.__file__, getattr(module_of_ends, '__cached__', None), module_of_ends.__spec__, module_of_ends.__loader__.path)",
    "module fails": "import failing_module",
    "module left open": "import module_of_ends\nmodule_of_ends.left = open(os.environ['PIPELINE_OUT'], 'w')\nmodule_of_ends.left.write('content')",
    "trace": "sys.settrace(lambda *one: None)\nprint('x')",
    "limit": "import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))\nresource.setrlimit(resource.RLIMIT_CORE, (0, 0))",
    "source": "import inspect\nclass One:\n    pass\nprint(inspect.getsource(One))",
}
MODULE = "class Held:\n    def __del__(self):\n        print('held', __name__)\nheld = Held()\n" \
         "class Writer:\n    def __del__(self):\n        open(__import__('os').environ['PIPELINE_OUT'], 'w').write('gone')\n"


@pytest.fixture(scope="module")
def scripts(bench):
    for name, body in ENDS.items():
        bench.write("end %s.py" % name, HEAD + body + "\n", settled=False)
    bench.write("module_of_ends.py", MODULE, settled=False)
    bench.write("failing_module.py", "def fail():\n    raise OSError(2, 'no such thing')\nfail()\n")
    return bench


@pytest.mark.parametrize("name", ENDS)
def test_a_task_ends_as_a_fresh_process_does(scripts, tmp_path, name):
    results = []
    for run, out in ((scripts.fresh, tmp_path / "fresh"), (scripts.forked, tmp_path / "forked"), (scripts.forked, tmp_path / "again")):
        status, text = run(str(scripts.root / "bin" / ("end %s.py" % name)), PIPELINE_OUT=str(out))
        results.append((status, re.sub("0x[0-9a-f]+", "0x", text), out.read_bytes() if out.exists() else None))
    assert results[1] == results[0] and results[2] == results[0]


# A callback that holds nothing of the script tells who has let go of the script's object.
TELLS = """import atexit, io, json, sys, threading, weakref
class Told:
    pass
space, told = {"sys": sys}, Told()
exec("def tell(gone):\\n    print(sys._getframe(1).f_code.co_name, flush=True)", space)
json.kept = weakref.ref(told, space["tell"])
left = open(__file__)
walked = (one for one in ())
list(walked)
"""


@pytest.mark.parametrize("more, is_quick", [
    ("", True), ("import processor_kit\n", True), ("import tempfile\nleft = tempfile.TemporaryFile(), tempfile.NamedTemporaryFile()\n", True),
    ("made = type(sys)('made')\nmade.__file__ = 'made.so'\nsys.modules['made'] = made\n", False),        # an extension module from elsewhere
    ("class End:\n    def __del__(self):\n        pass\n", True), ("class End:\n    def __del__(self):\n        pass\nend = End()\n", False),
    ("walking = (one for one in 'ab')\nnext(walking)\n", False)])
def test_every_end_that_nothing_forbids_is_the_quick_one(bench, more, is_quick):
    """Else the tests above compare the interpreter's own end with itself."""
    shutil.copy(str(ROOT / "bin" / "processor_kit.py"), str(bench.root / "bin"))
    script = bench.write("quick.py", TELLS + more)
    status, told = bench.forked(script)
    assert status == 0 and (told == "_drop_modules\n") == is_quick, told


# --- sources

SOURCES = {
    "latin": "# -*- coding: latin-1 -*-\nprint('\xe9', ascii('\xe9'))\n".encode("latin-1"),
    "mark": b"\xef\xbb\xbfprint('\xc3\xa9')\n",
    "windows": b"if True:\r\n    print('x')\r\n",
    "old mac": b"x = 1\rprint(x)\r",
    "no end of line": b"print(__file__)",
    "future": b"from __future__ import annotations\ndef f(x: nowhere): pass\nprint(f.__annotations__)\n",
    "no future": b"def f(x: int): pass\nprint(f.__annotations__)\n",
    "empty": b"",
    "assert": b"assert 0, 'as asserted'\n",
}
DECLINED = {"syntax": b"def :\n", "not utf-8": b"print('\xe9')\n", "zero": b"print('\0')\n"}


@pytest.mark.parametrize("name", SOURCES)
def test_sources_of_every_kind(bench, name):
    script = bench.write("source %s.py" % name, SOURCES[name])
    assert bench.forked(script) == bench.fresh(script) == bench.forked(script)


@pytest.mark.parametrize("name", DECLINED)
def test_a_source_that_does_not_compile_is_left_to_a_fresh_process(bench, name):
    script = bench.write("source %s.py" % name, DECLINED[name])
    with pytest.raises(fork_client.Declined, match="source %s.py" % name):
        bench.forked(script)
    assert bench.fresh(script)[0] == 256


def test_a_link_to_a_script_finds_its_modules_where_the_script_is(own):
    bench = own(script="here/link.py", start=False)
    (bench.root / "here").mkdir()
    bench.write("real.py", "import near, sys\nprint(near.__name__, __file__, sys.path[0], sys.argv)\n")
    bench.write("near.py", "")
    (bench.root / "here" / "link.py").symlink_to("../bin/real.py")
    bench.start()
    link = str(bench.root / "here" / "link.py")
    assert bench.forked(link) == bench.fresh(link)
    assert bench.forked(link)[0] == 0


def test_multiprocessing_works_with_every_method(bench):
    script = bench.write("many.py", """import multiprocessing, sys
def double(x):
    return 2 * x
if __name__ == "__main__":
    for method in ("fork", "spawn"):
        with multiprocessing.get_context(method).Pool(2) as pool:
            print(method, pool.map(double, [1, 2, 3]))
""")
    results = [run(script) for run in (bench.fresh, bench.forked)]
    assert results[0] == results[1] == (0, "fork [2, 4, 6]\nspawn [2, 4, 6]\n")


# --- what changes while the stage runs

def test_a_script_that_changes_is_seen_at_once(bench):
    script = bench.write("changing.py", "print(1)\n")
    assert [bench.forked(script)[1], bench.forked(script)[1]] == ["1\n", "1\n"]
    seen = []
    for number in (2, 3, 4):                    # as quickly as can be, same size
        bench.write("changing.py", "print(%d)\n" % number, settled=False)
        seen.append(bench.forked(script)[1])
    assert seen == ["2\n", "3\n", "4\n"]
    other = bench.write("other.py", "print(9)\n", settled=False)
    os.replace(other, script)
    assert bench.forked(script)[1] == "9\n"


def test_a_module_is_run_anew_by_each_task_and_seen_to_change(own):
    bench = own(modules=["bin/part.py", "bin/pack/__init__.py", "bin/pack/inner.py", "bin/not_imported.py"], start=False)
    bench.write("x.py", "import part\nfrom pack import inner\npart.count += 1\nprint(part.count, part.VALUE, inner.__file__, getattr(inner, '__cached__', None), part.__spec__.loader.path)\n", settled=False)
    bench.write("not_imported.py", "", settled=False)
    bench.write("pack/__init__.py", "", settled=False)
    bench.write("pack/inner.py", "", settled=False)
    bench.write("part.py", "count = 0\nVALUE = 1\n")
    bench.start()
    script = str(bench.root / "bin" / "x.py")
    first = bench.forked(script)
    caches = sorted(path.name.partition(".")[0] for path in (bench.root / "bin").rglob("*.pyc"))
    assert caches == ["__init__", "inner", "part"]              # what was imported, as a fresh process writes it
    assert first[1].startswith("1 1 ") and bench.forked(script) == first == bench.fresh(script) == bench.forked(script)
    bench.write("part.py", "count = 0\nVALUE = 22\n")
    assert bench.forked(script)[1].startswith("1 22 ")
    bench.write("pack/added.py", "print('added')\n")
    bench.write("x.py", "import pack.added\n")
    assert bench.forked(script)[1] == "added\n"


@pytest.mark.parametrize("text", ["V = (((\n", "V = '\0'\n", "# coding: nonsense\n", "import absent_module\n", "1 / 0\n"])
def test_a_broken_module_is_told_of_as_by_a_fresh_process(own, text):
    """The traceback names the user's own lines, and nobody's in between."""
    bench = own(modules=["bin/part.py"], start=False)
    bench.write("x.py", "import part\n", settled=False)
    bench.write("part.py", text)
    bench.start()
    script = str(bench.root / "bin" / "x.py")
    found = bench.forked(script)
    assert found == bench.fresh(script) and found[0] == 256 and "fork_server" not in str(found) and "importlib" not in str(found), found


def test_cached_code_is_what_a_task_imports(own):
    """Else the tests of changes prove nothing: a file whose signature says that nothing changed is not read."""
    bench = own(modules=["bin/part.py"], start=False)
    bench.write("x.py", "import part\nprint(part.VALUE)\n", settled=False)
    path = bench.write("part.py", "VALUE = 1\n")
    bench.start()
    script = str(bench.root / "bin" / "x.py")
    assert [bench.forked(script)[1] for _ in range(3)] == ["1\n"] * 3
    for cached in (bench.root / "bin" / "__pycache__").iterdir():
        cached.unlink()
    bench.forked(script)
    assert list((bench.root / "bin" / "__pycache__").iterdir()) == [] and os.path.exists(path)     # neither read nor compiled


def test_a_file_that_hides_a_module_of_the_library_makes_tasks_fresh_processes(own):
    bench = own(imports=["decimal"])
    script = bench.write("x.py", "import decimal\nprint(hasattr(decimal, 'Decimal'))\n")
    assert bench.forked(script) == (0, "True\n")
    hiding = bench.write("decimal.py", "")
    with pytest.raises(fork_client.Declined, match="hides modules of the standard library: decimal"):
        bench.forked(script)
    assert bench.fresh(script) == (0, "False\n")
    os.unlink(hiding)
    assert bench.forked(script) == (0, "True\n")


def test_a_module_of_the_users_own_with_a_name_of_the_library_is_not_loaded_ahead(own):
    bench = own(imports=["pickle", "shelve"], start=False)
    bench.write("pickle.py", "print('own')\n")
    script = bench.write("x.py", "import pickle\n")
    bench.start()
    with pytest.raises(fork_client.Declined, match="pickle"):      # shelve has brought the library's
        bench.forked(script)
    other = Bench(bench.root, imports=["pickle"])
    try:
        assert other.forked(script) == (0, "own\n")
    finally:
        other.close()


def test_an_environment_that_is_not_the_stages_is_declined(bench):
    script = bench.write("nothing.py", "")
    for more in ({"LANG": "x"}, {"PYTHONUTF8": "1"}, {"PIPELINE_HOOK": "enforce"}):
        with pytest.raises(fork_client.Declined, match="environment"):
            bench.forked(script, **more)


@pytest.mark.parametrize("env, why", [
    ({"PYTHONHASHSEED": "0"}, ""), ({}, "PYTHONHASHSEED"), ({"PYTHONHASHSEED": "random"}, "another seed"), ({"PYTHONHASHSEED": "0", "PYTHONVERBOSE": "1"}, "PYTHONVERBOSE asks"),
    ({"PYTHONHASHSEED": "0", "PYTHONSAFEPATH": "1"}, "PYTHONSAFEPATH asks")])
def test_variables_that_forbid_a_server(env, why):
    assert why in fork_client.why_not(env, "linux") and bool(why) == bool(fork_client.why_not(env, "linux"))


@pytest.mark.parametrize("platform", ["darwin", "win32", "cygwin"])
def test_systems_without_a_server(platform):
    assert platform in fork_client.why_not({"PYTHONHASHSEED": "0"}, platform)


# --- one task and the next

def test_what_a_task_does_to_itself_is_gone_with_it(bench):
    spoil = bench.write("spoil.py", """import os, random, resource, signal, sys, time
os.set_blocking(1, False); os.set_blocking(0, False); os.umask(0); os.nice(3); os.chdir('/'); os.environ['LANG'] = 'x'; os.environ['TZ'] = 'UTC'; time.tzset()
resource.setrlimit(resource.RLIMIT_NOFILE, (16, 16)); signal.signal(signal.SIGTERM, signal.SIG_IGN); sys.path.append('x'); sys.setrecursionlimit(99)
import json; json.spoilt = True
os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
""")
    script = bench.write("probe.py", PROBE)
    before = json.loads(bench.forked(script)[1])["seen"]
    assert bench.forked(spoil)[0] == 0
    assert json.loads(bench.forked(script)[1])["seen"] == before


def test_limits_set_from_outside_do_not_stick(bench):
    script = bench.write("limits.py", "import os, resource, time\nwhile not os.path.exists(os.environ['PIPELINE_GO']):\n    time.sleep(0.01)\nprint(resource.getrlimit(resource.RLIMIT_AS)[0], os.getpriority(os.PRIO_PROCESS, 0))\n")
    go = bench.root / "go"
    env = dict(bench.env, PIPELINE_GO=str(go))
    pids = [bench.server.launch(slot, bench.argv(script), env, str(bench.root)) for slot in (0, 1)]
    resource.prlimit(pids[0], resource.RLIMIT_AS, (1 << 30, 1 << 30))
    os.setpriority(os.PRIO_PROCESS, pids[0], 5)
    go.write_bytes(b"")
    assert sorted(one.status for one in ends_of(bench, pids)) == [0, 0]
    usual = "%d %d\n" % (resource.RLIM_INFINITY, os.getpriority(os.PRIO_PROCESS, 0))
    assert [bench.output(0), bench.output(1)] == ["%d 5\n" % (1 << 30), usual]
    assert bench.forked(script, PIPELINE_GO=str(go))[1] == usual
    go.unlink()


def ends_of(bench, pids):
    found = []
    while {one.pid for one in found} != set(pids):
        select.select([bench.server.descriptor], [], [], LIMIT_S)
        found += bench.server.ends()
    return found


def test_ends_say_what_a_task_used(bench):
    script = bench.write("use.py", "import time\nheld = b'x' * (64 << 20)\nwhile time.process_time() < 0.2:\n    pass\n")
    end = bench.wait(bench.server.launch(0, bench.argv(script), bench.env, str(bench.root)))
    assert end.cpu_s >= 0.2 and 64 << 20 < end.max_rss_bytes < 256 << 20
    small = bench.wait(bench.server.launch(0, bench.argv(bench.write("nothing.py", "")), bench.env, str(bench.root)))
    assert small.cpu_s < 0.2 and small.max_rss_bytes < 64 << 20


def test_more_output_than_the_pipe_holds_waits_for_its_reader(bench):
    script = bench.write("much.py", "import sys\nsys.stdout.write('x' * 300000 + '\\n')\n")
    pid = bench.server.launch(1, bench.argv(script), bench.env, str(bench.root))
    found, ends = "", []
    while not ends:
        select.select([bench.server.descriptor, bench.server.readers[1]], [], [], LIMIT_S)
        ends = bench.server.ends()
        found += bench.output(1)
    assert (ends[0].pid, ends[0].status, len(found)) == (pid, 0, 300001)


def test_arguments_longer_than_what_the_system_shows(bench):
    script = bench.write("long.py", "import sys\nprint(len(sys.argv), sum(map(len, sys.argv[1:])))\nprint(len(open('/proc/self/cmdline').read()))\n")
    words = ["x" * 99] * 800
    status, out = bench.forked(script, *words)
    assert status == 0 and out.splitlines()[0] == "801 79200"


# --- the kit

def test_the_kit_is_loaded_once_and_run_by_each_task(own):
    bench = own(script="bin/upper.py", modules=["bin/processor_kit.py"], imports=["json", "threading", "queue"], start=False)
    bench.write("processor_kit.py", (ROOT / "bin" / "processor_kit.py").read_bytes())
    script = bench.write("upper.py", "from processor_kit import lines\nimport processor_kit\nassert not processor_kit._counts\nprocessor_kit.count(1)\nlines(str.upper, 'out.txt')\n")
    bench.start()
    (bench.root / "in.txt").write_bytes(b"one\ntwo\n")
    for number in (1, 2):
        out = bench.root / ("out%d" % number)
        out.mkdir()
        assert bench.forked(script, "in.txt", PIPELINE_OUTPUT_DIR=str(out))[0] == 0
        assert (out / "out.txt").read_bytes() == b"ONE\nTWO\n"
    status, text = bench.forked(script, "in.txt", PIPELINE_OUTPUT_DIR=str(out), PIPELINE_SIMULATED_FAIL="1")
    assert (os.WEXITSTATUS(status), text) == (75, "simulated failure (PIPELINE_SIMULATED_FAIL=1)\n")


TOLD = """import os, sys
early, ran = "processor_kit" in sys.modules, []
sys.addaudithook(lambda event, args: ran.append(1) if event == "exec" and args[0].co_filename.endswith("processor_kit.py") and args[0].co_names else None)
import processor_kit
processor_kit.count(1)
print(not ran, early, processor_kit.__file__, getattr(processor_kit, '__cached__', 'none'), processor_kit.__spec__.loader, "queue" in sys.modules,
      sorted(name for name in os.environ if name.startswith("PIPELINE_")), os.environ["PIPELINE_KEY"])
"""


def test_the_kit_is_executed_once_as_long_as_it_is_what_it_was(own):
    bench = own(script="bin/x.py", modules=["bin/processor_kit.py"], imports=[], kit=["bin/processor_kit.py"], start=False)
    shipped = (ROOT / "bin" / "processor_kit.py").read_bytes()
    path = bench.write("processor_kit.py", shipped)
    script = bench.write("x.py", TOLD)
    bench.env.update(PIPELINE_KEY="0", PIPELINE_FIRST="only", PIPELINE_SIMULATED_FAIL="1")
    bench.start()
    bench.forked(script, PIPELINE_KEY="1")              # writes the bytecode
    for name in ("PIPELINE_FIRST", "PIPELINE_SIMULATED_FAIL"):
        del bench.env[name]
    for key in ("2", "3"):
        status, told = bench.forked(script, PIPELINE_KEY=key)
        fresh = bench.fresh(script, PIPELINE_KEY=key)[1]
        assert status == 0 and told.startswith("True False ") and fresh.startswith("False False ") and "PIPELINE_FIRST" not in told
        assert re.sub(" at 0x[0-9a-f]+", "", told[5:]) == re.sub(" at 0x[0-9a-f]+", "", fresh[6:])
    status, told = bench.forked(script, PIPELINE_SIMULATED_FAIL="1")
    assert (os.WEXITSTATUS(status), told) == (75, "simulated failure (PIPELINE_SIMULATED_FAIL=1)\n")
    bench.write("processor_kit.py", shipped + b"\ncount = print\n")
    assert bench.forked(script)[1].startswith("1\nFalse False " + path)
    bench.write("processor_kit.py", b"1 / 0\n")
    assert "ZeroDivisionError" in bench.forked(script)[1]
    bench.write("processor_kit.py", MODULE + "def count(number):\n    pass\n")
    ends = [end[1].splitlines()[-1] for end in (bench.forked(script), bench.fresh(script))]
    assert ends[0] == ends[1] and ends[0].startswith("held "), ends         # as any module of its own, at its end
    bench.write("processor_kit.py", shipped)            # once it has changed, each task executes it
    assert bench.forked(script)[1].startswith("False ")


OWN_COUNTS = """from processor_kit import *
count(read=1)
lines(str.upper, "out.txt")
try:
    with open_output("other.txt") as file:
        1 / 0
except ZeroDivisionError:
    pass
"""


def test_a_task_that_gets_the_kit_from_the_server_is_no_child_to_it(own):
    bench = own(script="bin/x.py", modules=["bin/processor_kit.py"], imports=[], kit=["bin/processor_kit.py"], start=False)
    bench.write("processor_kit.py", (ROOT / "bin" / "processor_kit.py").read_bytes())
    script = bench.write("x.py", OWN_COUNTS)
    bench.start()
    (bench.root / "in.txt").write_bytes(b"one\n")
    for number in range(3):                             # the first writes the bytecode
        out, counted = bench.root / ("out%d" % number), bench.root / ("counts%d.json" % number)
        out.mkdir()
        status, told = bench.forked(script, "in.txt", PIPELINE_OUTPUT_DIR=str(out), PIPELINE_COUNTS_FILE=str(counted))
        assert status == 0 and sorted(os.listdir(str(out))) == ["out.txt"], told
        assert json.loads(counted.read_bytes()) == {"read": 2, "written": 1, "rejected": 0}


OWN_PATH = """import os, sys
sys.path.insert(0, os.path.join(os.environ["PIPELINE_ROOT"], "lib"))
import processor_kit
print(os.path.relpath(processor_kit.__file__, os.environ["PIPELINE_ROOT"]), hasattr(processor_kit, "lines"))
"""
AGAIN = """import importlib, sys
import processor_kit as first
first.mine = 1
del sys.modules["processor_kit"]
import processor_kit as second
second.mine = 2
print(first.mine, first is second, importlib.reload(second) is second, second.mine, second._counts is first._counts, first.__spec__.name, first.__loader__.path == first.__file__)
"""


@pytest.mark.parametrize("text", [OWN_PATH, AGAIN], ids=["another kit first", "imported again"])
def test_the_kit_that_a_task_finds_is_that_of_a_fresh_process(own, text):
    bench = own(script="bin/x.py", modules=["bin/processor_kit.py"], imports=[], kit=["bin/processor_kit.py"], start=False)
    bench.write("processor_kit.py", (ROOT / "bin" / "processor_kit.py").read_bytes())
    (bench.root / "lib").mkdir()
    (bench.root / "lib" / "processor_kit.py").write_text("OTHER = 1\n")
    script = bench.write("x.py", text)
    bench.start()
    told = [bench.forked(script) for _ in range(4)]     # the first writes the bytecode, from the third on it would be executed ahead
    assert told == [bench.fresh(script)] * 4, told


def test_what_a_processor_imports_is_worked_out(project):
    import file_digests
    project.write("bin/x.py", "import json, helper\nfrom xml.etree import ElementTree\n")
    project.write("bin/helper.py", "import decimal\nfrom . import nothing\n")
    digests = file_digests.Digests(str(project.root), "")
    modules, names, kit = fork_client.code_of(digests, "bin/x.py")
    assert modules == ["bin/helper.py"] and {"json", "helper", "decimal"} <= set(names) and not [name for name in names if name.startswith(".")]
    assert kit == []
    for name in ("bin/helper.so", "bin/nothing.pyc"):       # nothing in them can be read ahead
        project.write(name, b"\0")
    assert fork_client.code_of(file_digests.Digests(str(project.root), ""), "bin/x.py") == (modules, names, kit)


def test_only_the_kit_as_it_is_shipped_is_executed_ahead(project):
    import file_digests
    shipped = (ROOT / "bin" / "processor_kit.py").read_bytes()
    assert hashlib.sha256(shipped).hexdigest() == fork_client.KIT_SHA256, "the kit has changed: does executing it still only define things? then name its new digest"
    project.write("bin/x.py", "import fractions, processor_kit\n")
    project.write("bin/processor_kit.py", shipped)
    digests = file_digests.Digests(str(project.root), "")
    modules, names, kit = fork_client.code_of(digests, "bin/x.py")
    assert modules == kit == ["bin/processor_kit.py"] and "fractions" in names and "queue" not in names
    project.write("bin/processor_kit.py", shipped + b"\n")
    modules, names, kit = fork_client.code_of(file_digests.Digests(str(project.root), ""), "bin/x.py")
    assert modules == ["bin/processor_kit.py"] and kit == [] and "queue" in names


# --- the Python hook

def test_refused_calls_are_written_to_the_attempts_own_file(own):
    hook = str(ROOT / "src" / "python_hook")
    bench = own(own={"PYTHONPATH": hook, "PIPELINE_HOOK": "enforce"}, start=False)
    bench.env.update(PIPELINE_HOOK="enforce", PIPELINE_HOOK_LOG=str(bench.root / "server.network"), PYTHONPATH=hook)
    script = bench.write("x.py", "import os\nnet = __import__('%s')\n\ntry:\n    net.%s()\nexcept OSError as error:\n    print(os.getpid(), error)\n" % (NETWORK, NETWORK))
    bench.start()
    for number in (1, 2):
        log = bench.root / ("%d.network" % number)
        status, out = bench.forked(script, PIPELINE_HOOK_LOG=str(log))
        assert status == 0 and "IPv4 TCP (bin/x.py:5)" in out, out
        assert [(one.pid, one.place, one.kind, one.program) for one in hook_log.read_notes(str(log))] == [(int(out.split()[0]), "bin/x.py:5", "IPv4 TCP", script)]
    assert not (bench.root / "server.network").exists()
    assert bench.fresh(script, PIPELINE_HOOK_LOG=str(log))[0] == 0 and len(hook_log.read_notes(str(log))) == 2


# --- deaths

SLEEPS = "import os, subprocess, sys, time\nopen(os.environ['PIPELINE_TOLD'], 'w').close()\ntime.sleep(99)\n"
BREEDS = """import os, subprocess, sys, time
other = subprocess.Popen(['sleep', '98'])
if os.fork() == 0:
    os.setpgid(0, 0)
    os.environ.clear()
    with open(os.environ.get('x', sys.argv[1] + '.part'), 'w') as file:
        file.write('%d %d %d' % (other.pid, os.getpid(), os.getppid()))
    os.rename(sys.argv[1] + '.part', sys.argv[1])
time.sleep(98)
"""


def test_the_death_of_the_server_ends_its_tasks_and_is_told(own):
    bench = own()
    script, told = bench.write("sleeps.py", SLEEPS), bench.root / "told"
    pid = bench.server.launch(0, bench.argv(script), dict(bench.env, PIPELINE_TOLD=str(told)), str(bench.root))
    until(told.exists)
    os.kill(bench.server.pid, signal.SIGKILL)
    until(lambda: is_gone(pid))
    select.select([bench.server.descriptor], [], [], LIMIT_S)
    assert bench.server.ends() == [] and bench.server.is_dead
    with pytest.raises(fork_client.ServerDied, match="the fork server died: ended by signal 9"):
        bench.server.launch(0, bench.argv(script), bench.env, str(bench.root))
    bench.server.close()
    bench.server.close()


def test_a_task_carries_its_token_and_the_lock_from_its_first_moment(own):
    bench = own()
    script, told = bench.write("sleeps.py", SLEEPS), bench.root / "told"
    pid = bench.server.launch(0, bench.argv(script), dict(bench.env, PIPELINE_TOLD=str(told)), str(bench.root))
    assert process_traits.has_token(pid, "lock.token") and process_traits.has_token(bench.server.pid, "lock.token")
    until(told.exists)
    assert process_traits.has_token(pid, "lock.token.1") and not process_traits.has_token(pid, "lock.token.2")
    assert not process_traits.has_token(bench.server.pid, "lock.token.1")
    here = os.stat(str(bench.root / "guard"))
    assert any((there.st_dev, there.st_ino) == (here.st_dev, here.st_ino) for there in (os.stat("/proc/%d/fd/%s" % (pid, name)) for name in os.listdir("/proc/%d/fd" % pid)))
    os.killpg(pid, signal.SIGTERM)
    end = bench.wait(pid)
    assert os.WIFSIGNALED(end.status) and os.WTERMSIG(end.status) == signal.SIGTERM


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_meant_for_all_ends_the_task_and_not_the_server(own, number):
    bench = own()
    script, told = bench.write("sleeps.py", SLEEPS), bench.root / "told"
    pid = bench.server.launch(0, bench.argv(script), dict(bench.env, PIPELINE_TOLD=str(told)), str(bench.root))
    until(told.exists)
    for one in (bench.server.pid, pid):
        os.kill(one, number)
    assert os.WTERMSIG(bench.wait(pid).status) == number
    assert bench.forked(bench.write("x.py", "print(1)\n"))[0] == 0


def test_a_signal_right_after_the_launch_is_not_lost(bench):
    script = bench.write("sleeps long.py", "import time\ntime.sleep(99)\n")
    for _ in range(30):
        pid = bench.server.launch(0, bench.argv(script), bench.env, str(bench.root))
        os.kill(pid, signal.SIGTERM)
        assert os.WTERMSIG(bench.wait(pid).status) == signal.SIGTERM
    bench.output(0)


RUNNER = """import json, os, sys, time
sys.path.insert(0, sys.argv[1])
import fork_client
import run_signals
root, script, told = sys.argv[2:5]
env = dict(os.environ, PYTHONHASHSEED="0", PIPELINE_ATTEMPT_TOKEN="t.1")
server = fork_client.ForkServer(root, script, [], [])
server.start(env, "t", -1, 1)
pid = server.launch(0, [sys.executable, script, told], env, root)
print(server.pid, pid, flush=True)
time.sleep(99)
"""


def test_the_death_of_the_runner_ends_the_server_and_all_sessions(bench):
    script, told = bench.write("breeds.py", BREEDS), bench.root / "bred"
    env = {name: value for name, value in bench.env.items() if not name.startswith("PIPELINE_")}
    runner = subprocess.Popen([sys.executable, "-c", RUNNER, str(ROOT / "src"), str(bench.root), script, str(told)], stdout=subprocess.PIPE, env=env)
    pids = [int(one) for one in runner.stdout.readline().split()]
    until(told.exists)
    pids += [int(one) for one in told.read_bytes().split()]
    assert not any(is_gone(pid) for pid in pids) and len(pids) == 5
    runner.kill()
    runner.wait()
    runner.stdout.close()
    until(lambda: all(is_gone(pid) for pid in pids))


def test_a_server_that_cannot_start_says_why(own):
    bench = own(start=False)
    bench.env.update(PYTHONHOME="/nowhere")
    script = bench.write("x.py", "")
    with pytest.raises(fork_client.ServerDied, match="the fork server died: exit code 1"):
        bench.start()               # may already find that nobody reads
        bench.forked(script)
    assert bench.server.is_dead


def test_close_leaves_no_descriptor_and_no_process(own):
    before = len(os.listdir("/proc/self/fd"))
    bench = own(slots=5)
    bench.forked(bench.write("x.py", ""))
    pid = bench.server.pid
    bench.server.close()
    assert is_gone(pid) and len(os.listdir("/proc/self/fd")) == before + 1      # the lock


def test_readiness_can_be_waited_for(own):
    bench = own()
    while not bench.server.is_ready():
        select.select([bench.server.descriptor], [], [], LIMIT_S)
    assert bench.server.state == "ready" and bench.server.ends() == []


# --- parts, in this process

def settled(path, text):
    """Write a file whose last change is long ago, for whoever looks at its signature."""
    path.write_bytes(text)
    until(lambda: fork_server.is_settled(fork_server.signature(str(path))))
    return str(path)


def test_a_script_is_compiled_once_while_it_is_what_it_was(tmp_path):
    codes, path = fork_server.Codes([]), settled(tmp_path / "x.py", b"x = 1\n")
    code, source = codes.script(path)
    assert codes.script(path)[0] is code and source == b"x = 1\n"
    (tmp_path / "x.py").write_bytes(b"x = 2\n")
    again = codes.script(path)[0]
    assert again is not code and again.co_consts != code.co_consts
    assert codes.script(path)[0] is not again                   # changed a moment ago: not kept yet
    assert codes.script(settled(tmp_path / "warns.py", b"1 is 1\n"))[0] is None      # the task is to warn
    for name, text in (("none.py", None), ("bad.py", b"def :"), ("zero.py", b"\0")):
        if text is not None:
            settled(tmp_path / name, text)
        with pytest.raises(fork_server.Declined, match=name):
            codes.script(str(tmp_path / name))


@pytest.mark.parametrize("writes", [True, False])
def test_modules_are_read_when_their_bytecode_is_there(tmp_path, monkeypatch, writes):
    monkeypatch.setattr(sys, "dont_write_bytecode", not writes)
    path = settled(tmp_path / "part.py", b"x = 1\n")
    codes = fork_server.Codes([path, str(tmp_path / "nowhere.py"), settled(tmp_path / "bad.py", b"def :")])
    codes.refresh()
    assert list(codes.known) == ([] if writes else [path])      # the first task writes it
    codes.refresh()
    assert list(codes.known) == [path] and sorted(one.name for one in tmp_path.iterdir()) == ["bad.py", "part.py"]
    kept = codes.known[path]
    codes.refresh()
    assert codes.known[path] is kept
    settled(tmp_path / "part.py", b"x = 22\n")
    codes.refresh()
    codes.refresh()
    assert codes.known[path] is not kept


def test_a_module_that_warns_or_fails_is_left_to_the_task(tmp_path, monkeypatch):
    (tmp_path / "warning.py").write_bytes(b"import warnings\nwarnings.warn('old', DeprecationWarning)\n")
    (tmp_path / "failing.py").write_bytes(b"1 / 0\n")
    (tmp_path / "quiet.py").write_bytes(b"")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(fork_server, "LOADABLE", frozenset(("warning", "failing", "quiet", "os", "xml")))
    modules = fork_server.Modules("/nowhere/x.py")
    modules.load(["warning", "failing", "quiet", "os.path.join", "xml.dom.minidom", "this"])
    assert "quiet" in sys.modules and not {"warning", "failing", "this"} & set(sys.modules)
    del sys.modules["quiet"]


def test_names_beside_the_script_are_looked_at_again_when_the_folder_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(fork_server, "STARTUP", frozenset(name for name in sys.modules if name.partition(".")[0] != "json"))
    modules = fork_server.Modules(str(tmp_path / "x.py"))
    modules.folders = [str(tmp_path), str(tmp_path / "nowhere")]
    assert modules.problem() == ""
    (tmp_path / "json").mkdir()
    assert modules.problem().endswith("hides modules of the standard library: json")
    (tmp_path / "json").rmdir()
    assert modules.problem() == ""


def test_a_fork_that_fails_is_a_task_declined(tmp_path, monkeypatch):
    script = settled(tmp_path / "x.py", b"")
    server = object.__new__(fork_server.Server)
    reader, server.replies = os.pipe()
    server.codes, server.modules, server.slots, server.living = fork_server.Codes([]), fork_server.Modules(script), [1], set()
    server.modules.folders = server.modules.folders[:1]
    server.kit = fork_server.Kit(server.codes, [], ())
    server.before = forked_task.Before({signal.SIGUSR1: signal.SIG_DFL}, set(), [], -1, os.getpid(), frozenset(), (), None, None)
    here, mask = os.getcwd(), signal.pthread_sigmask(signal.SIG_BLOCK, [])

    def fail():
        assert signal.SIGUSR1 in signal.pthread_sigmask(signal.SIG_BLOCK, [])
        raise BlockingIOError(11, "no more processes")

    monkeypatch.setattr(os, "fork", fail)
    try:
        assert server._launch([0, [sys.executable, script], {}, str(tmp_path)]) is None
    finally:
        os.chdir(here)
    assert json.loads(os.read(reader, 1000)) == ["declined", "[Errno 11] no more processes"] and server.living == set()
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == mask
    os.close(reader)
    os.close(server.replies)


def test_a_server_that_is_not_to_be_used_forks_nothing_whoever_asks(own):
    bench = own(own={"PYTHONPATH": "lib"}, start=False)
    (bench.root / "lib").mkdir()
    (bench.root / "lib" / "sitecustomize.py").write_bytes(b"import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\n")
    script = bench.write("x.py", "")
    bench.start()
    bench.server._send([0, bench.argv(script), {"PIPELINE_ATTEMPT_TOKEN": "lock.token.1"}, str(bench.root)])
    until(lambda: bench.server._receive() or bench.server.answers)
    assert bench.server.state == "unusable" and bench.server.answers == [["declined", "the interpreter starts with 2 threads"]]
    with pytest.raises(fork_client.Declined, match="starts with 2 threads"):
        bench.forked(script)


def test_a_script_in_another_folder_is_declined(bench):
    bench.write("sub/x.py", "")
    with pytest.raises(fork_client.Declined, match="another folder"):
        bench.forked(str(bench.root / "bin" / "sub" / "x.py"))
    with pytest.raises(fork_client.Declined, match="interpreter"):
        bench.server.launch(0, ["/bin/sh", "x.py"], bench.env, str(bench.root))


def test_what_belongs_to_the_library():
    library = ("/usr/lib/python3/",)
    assert forked_task.in_library("/usr/lib/python3/json/__init__.py", library)
    for path in ("/usr/lib/python3/site-packages/x.py", "/usr/lib/python3/dist-packages/x.so", "/usr/lib/python31/x.py", "bin/x.py"):
        assert not forked_task.in_library(path, library)


def test_ends_that_came_with_an_answer_are_news(bench):
    """Nothing may come to be read any more: whoever waits for the descriptor would wait for ever."""
    script = bench.write("nothing.py", "")
    first = bench.server.launch(0, bench.argv(script), bench.env, str(bench.root))
    until(lambda: bench.server._receive() or bench.server.has_news)      # as launch() does it
    assert not select.select([bench.server.descriptor], [], [], 0)[0]
    assert [end.pid for end in bench.server.ends()] == [first] and not bench.server.has_news


# --- in runs of the program

# The first task is started in the usual way, for the server is not ready yet; it holds the others back until it is (from then on the
# server ignores SIGHUP). Each says whether its parent is the server.
IN_RUNS = """
def servers():
    for pid in filter(str.isdigit, os.listdir('/proc')):
        try:
            if b'fork_server.py' in open('/proc/%s/cmdline' % pid, 'rb').read() and open('/proc/%s/environ' % pid, 'rb').read().count(os.environ['PIPELINE_ROOT'].encode()):
                for line in open('/proc/%s/status' % pid):
                    if line.startswith('SigIgn:') and int(line.split()[1], 16) & 1:
                        yield int(pid)
        except OSError:
            pass
name = os.path.basename(inputs[0])
number = int(name.partition('.')[0])
while number == 0 and SERVED and not any(servers()) and not os.path.exists('other/flag'):     # which a server makes that is about to end
    time.sleep(0.01)
forked = b'fork_server.py' in open('/proc/%d/cmdline' % os.getppid(), 'rb').read()
print('forked' if forked else 'by itself', number, flush=True)
"""
UNMEASURED = {name: None for name in os.environ if name.startswith(("COV", "COVERAGE"))}     # coverage asks for something at each start: no server
MAKE = "with open(inputs[0]) as file, open(os.path.join(out, name), 'w') as to:\n    to.write(file.read().upper())\n"


def tasks(project, body, served=True, count=5, layers=("scan", "kernel", "hook"), **stage):
    """Write a stage of *count* tasks; forkServer is the default's unless given."""
    processor = project.processor("work", "SERVED = %r\n" % served + IN_RUNS + body)
    for number in range(count):
        project.write("data/in/%d.txt" % number, "task %d\n" % number)
    project.spec(dict({"processor": processor, "forEach": "data/in/*.txt"}, **stage), offline={"layers": list(layers)})


def logs(project, run="r"):
    found = "".join(path.read_bytes().decode("utf-8") for path in sorted((project.root / "state" / "logs" / run).rglob("*.log")))
    return sorted(line for line in found.splitlines() if line.startswith(("forked", "by itself")))


def outputs(project):
    return {path.name: path.read_bytes() for path in project.path("data/s1").glob("*.txt")}


LATE = "def walk():\n    try:\n        yield 1\n    finally:\n        open(os.path.join(out, 'late.' + name), 'w').write('late')\nwalking = walk()\nnext(walking)\n"


def test_what_the_end_of_python_does_is_the_same_in_all_tasks_of_a_run(project):
    """The first are started fresh until the server is ready, all others are forked."""
    tasks(project, MAKE + LATE, count=12)
    project.ok("--run-id", "r", "--jobs", "2", env=UNMEASURED)
    said, made = logs(project), outputs(project)
    assert {one.partition(" ")[0] for one in said} == {"forked", "by"}, said
    assert len([name for name in made if not name.startswith("late.")]) == 12 and len([name for name in made if name.startswith("late.")]) in (0, 12), sorted(made)


@pytest.mark.parametrize("jobs", ["1", "3"])
def test_a_stage_of_tasks_is_served_and_its_switch_turns_that_off(project, jobs):
    tasks(project, MAKE, count=12)
    project.ok("--run-id", "r", "--jobs", jobs, env=UNMEASURED)
    said, made = logs(project), outputs(project)
    assert len(said) == 12 == len(made) and "by itself 0" in said and len([one for one in said if one.startswith("forked")]) >= 12 - 2 * int(jobs), said
    tasks(project, MAKE, served=False, count=12, forkServer=False)
    project.ok("--run-id", "off", "--jobs", jobs, env=UNMEASURED)
    assert logs(project, "off") == sorted("by itself %d" % number for number in range(12)) and outputs(project) == made


def test_forked_tasks_fail_time_out_and_are_tried_again(project):
    tasks(project, MAKE + """
if number == 2:
    import subprocess
    subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], start_new_session=True)
    time.sleep(60)
if number == 3 and os.environ['PIPELINE_ATTEMPT'] == '1':
    sys.exit('not yet')
if number == 4:
    os.kill(os.getpid(), 11)
""", count=6, timeoutSec=2, retry={"attempts": 2, "baseDelayMs": 1, "maxDelayMs": 1, "jitterMs": 0})
    done = project.run("--run-id", "r", "--jobs", "1", env=UNMEASURED)
    assert done.code == 1 and "timeout after 2 s" in done.out + done.err and "SIGSEGV" in done.out + done.err, done
    assert "forked 2" in logs(project) and "forked 5" in logs(project)
    assert not left_of(project)


def left_of(project):
    """Return the processes that show this root in their environment."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open("/proc/%s/environ" % name, "rb") as file:
                    if b"PIPELINE_ROOT=" + os.fsencode(str(project.root)) + b"\0" in file.read() and not is_gone(int(name)):
                        found.append(int(name))
            except OSError:
                pass
    return found


def test_a_task_that_kills_the_server_fails_with_it_and_the_next_has_a_new_one(project):
    # Not one that runs by itself, as the first ones do until the server says that it is ready: its parent is the runner.
    tasks(project, MAKE + "if forked and not os.path.exists('killed'):\n    open('killed', 'w').write(str(number))\n    os.kill(os.getppid(), 9)\n    time.sleep(60)\n",
          count=30, retry={"attempts": 2, "baseDelayMs": 1, "maxDelayMs": 1, "jitterMs": 0})
    done = project.run("--run-id", "r", "--jobs", "1", env=UNMEASURED)
    assert done.code == 0 and "the fork server died: ended by signal 9" in done.out, done
    number = project.read("killed")
    assert len([one for one in logs(project) if one.endswith(" " + number)]) == 2 and "forked " + number in logs(project) and len(outputs(project)) == 30
    assert not left_of(project)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_end_of_the_runner_ends_its_server_and_forked_tasks(project, number):
    tasks(project, MAKE + "if number == 3:\n    os.mkdir(os.path.join(os.environ['PIPELINE_ROOT'], 'told forked' if forked else 'told'))\n    time.sleep(60)\n", count=5, graceSec=1)
    runner = project.start("--run-id", "r", "--jobs", "1", env=UNMEASURED)
    until(project.path("told forked").exists)
    assert len(left_of(project)) >= 2
    runner.send_signal(number)
    out, err = runner.communicate(timeout=LIMIT_S)
    assert runner.returncode == (-9 if number == signal.SIGKILL else 128 + number), (out, err)
    until(lambda: not left_of(project))


def test_a_forked_task_that_tries_the_network_is_named_by_its_script(project):
    tasks(project, MAKE + "if number == 2:\n    try:\n        net = __import__('soc' + 'ket')\n        net.__dict__['soc' + 'ket']()\n    except OSError:\n        pass\n", count=4, layers=("kernel", "hook"))
    done = project.run("--run-id", "r", "--jobs", "1", env=UNMEASURED)
    assert done.code != 0 and "forked 2" in logs(project), done
    assert "bin/work.py (pid" in done.out and "tried to open IPv4 TCP: refused (bin/work.py:" in done.out, done
    assert "fork_server.py" not in done.out + done.err


def lay_link(project, shipped, own):
    project.write("lib/x.py", TASK_OF_KIT)
    project.write("lib/processor_kit.py", own)
    project.write("bin/processor_kit.py", shipped)
    os.symlink(os.path.join(os.pardir, "lib", "x.py"), str(project.path("bin/x.py")))


def lay_package(project, shipped, own):
    project.write("bin/x.py", TASK_OF_KIT)
    project.write("bin/processor_kit.py", shipped)
    project.write("bin/processor_kit/__init__.py", own)


def lay_path(project, shipped, own):
    project.write("bin/x.py", "import os, sys\nsys.path.insert(0, os.path.join(os.environ['PIPELINE_ROOT'], 'lib'))\n" + TASK_OF_KIT)
    project.write("bin/processor_kit.py", shipped)
    project.write("lib/processor_kit.py", own)


TASK_OF_KIT = """import os
import processor_kit
with open(os.path.join(os.environ["PIPELINE_OUTPUT_DIR"], os.environ["PIPELINE_TASK"][3:]), "w") as file:
    file.write(getattr(processor_kit, "TASK", "none"))
"""


@pytest.mark.parametrize("lay", [lay_link, lay_package, lay_path], ids=lambda one: one.__name__[4:])
def test_no_kit_but_the_shipped_one_is_executed_ahead(project, lay):
    lay(project, (ROOT / "bin" / "processor_kit.py").read_bytes().decode("utf-8"), "import os\nTASK = os.environ['PIPELINE_TASK']\n")
    for number in range(8):
        project.write("in/f%d.txt" % number, "")
    time.sleep(3 * file_digests.FRESH_NS / 1e9)         # what is younger is not kept
    project.spec({"name": "each", "processor": "bin/x.py", "forEach": "in/*.txt", "outputDir": "out"})
    assert "fork server" not in project.ok("--jobs", "1").out
    assert [project.read("out/f%d.txt" % number) for number in range(8)] == ["in/f%d.txt" % number for number in range(8)]


@pytest.mark.parametrize("server", [True, False], ids=["fork server", "none"])
def test_a_run_goes_on_and_can_be_ended_though_who_started_it_had_signals_blocked(project, server):
    """A mask outlives exec; a supervisor that reads its signals by signalfd leaves all of them blocked."""
    for name in "abcd":
        project.write("data/%s.txt" % name, "x")
    body = "open(out + '/' + os.path.basename(inputs[0]), 'w').write('x')\nopen('begun', 'w').close()\nwhile os.path.exists('hold'): time.sleep(0.01)\n"
    project.spec({"processor": project.processor("some", body), "forEach": "data/*.txt", "forkServer": server})
    project.write("hold", "")
    with started_with_all_blocked(project) as process:
        wait_until(lambda: project.exists("begun"))
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 143
    project.path("hold").unlink()
    with started_with_all_blocked(project) as process:
        process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0


def started_with_all_blocked(project):
    return project.start(preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals)))


STOPS_SERVER = """
if forked and not os.path.exists('data/stopped'):
    import signal
    signal.signal(signal.SIGTERM, lambda number, frame: open('data/asked', 'w').close())
    while open('/proc/%d/stat' % os.getppid()).read().rpartition(')')[2].split()[0] != 'S':
        time.sleep(0.005)       # it has not answered yet that this task was started
    open('data/stopped', 'w').close()
    os.kill(os.getppid(), signal.SIGSTOP)
    while True:
        time.sleep(60)
"""


def attempt_of(made, script, log):
    """Run the script as an attempt that may be forked; return it when it has ended."""
    guardian = types.SimpleNamespace(watch=lambda traits: None, release=lambda traits: None)
    signals = run_signals.Signals()
    signals.pipe = os.pipe()            # nobody writes to it
    pool = attempts.Pool(signals, guardian, process_table.own_children())
    attempt = pool.start(attempts.Launch(made.argv(script), made.env, str(made.root), str(log), "lock.token.1", -1, "", None, 1, {}, None, server=made.server))
    until(lambda: attempt.result is not None or pool.wait(0.05))
    for descriptor in signals.pipe:
        os.close(descriptor)
    return attempt


def test_nobody_who_has_the_number_of_a_task_after_it_is_taken_for_the_task(bench, tmp_path):
    until(bench.server.is_ready)
    attempt = attempt_of(bench, bench.write("x.py", "print('done')\n"), tmp_path / "log")
    assert attempt.server is not None and attempt.result.failure == ""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        tree = attempt.tree
        tree.pid = other.pid
        tree.others.add(other.pid)
        assert tree.living() == []
        tree.leader_is_gone = False
        assert tree.living() == [other.pid]
        other.communicate(b"\n")


def test_a_server_that_has_died_unseen_is_done_without(tmp_path):
    made = Bench(tmp_path / "root")
    until(made.server.is_ready)
    script = made.write("x.py", "print('done')\n", settled=False)
    os.kill(made.server.pid, signal.SIGKILL)
    os.waitid(os.P_PID, made.server.pid, os.WEXITED | os.WNOWAIT)
    attempt = attempt_of(made, script, tmp_path / "log")
    assert attempt.server is None and attempt.result.failure == "" and (tmp_path / "log").read_bytes() == b"done\n"
    made.close()


@pytest.mark.parametrize("how", ["time limit", "signal", "two signals"])
def test_a_server_that_its_task_has_stopped_is_killed(project, how):
    tasks(project, STOPS_SERVER + MAKE, graceSec=1, **({"timeoutSec": 2} if how == "time limit" else {}))
    run = project.start("--jobs", "1", env=UNMEASURED)
    try:
        wait_until(lambda: project.exists("data/stopped"))
        if how != "time limit":
            run.terminate()
            wait_until(lambda: project.exists("data/asked"))
        if how == "two signals":
            run.terminate()
        out = run.communicate(timeout=60)[0]
    finally:
        run.kill()
    assert run.returncode == (1 if how == "time limit" else 143), out
    assert how != "time limit" or "timeout after 2 s" in str(out), out


# A fork server of which one thing is otherwise. FLAG is a file below the root that says that it has been so once.
OTHER_SERVER = """import os, resource, signal, sys, time
sys.path.insert(0, %r)
import fork_server
FLAG = %r
def is_first():
    try:
        os.close(os.open(FLAG, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True
%s
fork_server.main(int(sys.argv[1]), int(sys.argv[2]))
"""
WITH_OTHER_SERVER = """import runpy, sys
sys.path.insert(0, %r)
import fork_client
fork_client.PROGRAM, fork_client.ANSWER_LIMIT_S = %r, 3.0
sys.argv = sys.argv[1:]
sys.path.pop(0)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run_with_other_server(project, change, *arguments):
    """Run the program to its end with a fork server of which *change* (source) makes something otherwise."""
    program = project.write("other/fork_server.py", OTHER_SERVER % (str(ROOT / "src"), str(project.path("other/flag")), change))
    driver = project.write("other/driver.py", WITH_OTHER_SERVER % (str(ROOT / "src"), str(program)))
    python, *words = project.argv(*arguments)
    done = subprocess.run([python, str(driver), *words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True,
                          encoding="utf-8", timeout=PATIENCE_S, env=project.environment(**UNMEASURED))
    assert "Traceback" not in done.stdout, done
    return done


# Of the first task it does not say that it was started: when that has done its work, it ends, or does nothing any more.
ANSWERS_LATE = """
real = fork_server.Server.tell
def tell(server, *words):
    if words[0] == "started" and is_first():
        while not os.path.exists(FLAG + ".worked"):
            time.sleep(0.005)
        %s
    real(server, *words)
fork_server.Server.tell = tell
"""
# What a task starts outlives it, and goes on with the file; the task itself may do so, too.
APPENDS = """
with open(os.path.join(out, name), "a") as file:
    file.write("one line of " + name)
if forked and not os.path.exists("other/flag.worked"):
    import subprocess
    subprocess.Popen([sys.executable, "-c", "import sys, time\\nwhile True:\\n    open(sys.argv[1], 'a').write('more')\\n    time.sleep(0.01)",
                      os.path.join(out, name)], start_new_session=True)
    open("other/flag.worked", "w").close()
    while IS_LIVING:
        time.sleep(60)
"""


@pytest.mark.parametrize("then, is_living, jobs, reason", [
    ("os.kill(os.getpid(), signal.SIGKILL)", False, "1", "ended by signal 9"), ("os._exit(3)", True, "3", "exit code 3"),
    ("time.sleep(600)", False, "3", "it does not answer"), ("time.sleep(600)", True, "1", "it does not answer")])
def test_a_task_that_may_have_been_forked_is_not_done_again_beside_itself(project, then, is_living, jobs, reason):
    """The server ends, or stalls, between the fork and its answer: the task may have worked, and may still do."""
    tasks(project, "IS_LIVING = %r\n" % is_living + APPENDS, count=12, retry={"attempts": 2, "baseDelayMs": 1, "maxDelayMs": 1, "jitterMs": 0})
    done = run_with_other_server(project, ANSWERS_LATE % then, "--run-id", "r", "--jobs", jobs)
    assert outputs(project) == {"%d.txt" % number: b"one line of %d.txt" % number for number in range(12)}
    assert done.returncode == 0 and "attempt 1/2: the fork server died: " + reason in done.stdout, done
    assert len(logs(project)) == 13 and not left_of(project), (logs(project), left_of(project))


ALLOWED = {"maxFailedTasks": 99}
NOT_ALLOWED = "failed for what maxFailedTasks does not allow, as it may be no fault of their files"
CANNOT_OPEN = """
real = os.fork
def fork():
    pid = real()
    if not pid and is_first():
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
    return pid
os.fork = fork
"""


def test_tasks_that_die_with_their_server_are_not_allowed_as_those_of_bad_files(project):
    tasks(project, MAKE + "if forked and not os.path.exists('killed'):\n    open('killed', 'w').close()\n    os.kill(os.getppid(), 9)\n    time.sleep(60)\n", count=12, **ALLOWED)
    done = project.run("--jobs", "1", env=UNMEASURED)
    assert done.code == 1 and NOT_ALLOWED in done.out + done.err and "the fork server died: ended by signal 9" in done.out, done


def test_nor_is_one_that_may_have_been_forked(project):
    tasks(project, "IS_LIVING = False\n" + APPENDS, count=12, **ALLOWED)
    done = run_with_other_server(project, ANSWERS_LATE % "os._exit(3)", "--jobs", "1")
    assert done.returncode == 1 and NOT_ALLOWED in done.stdout and len(outputs(project)) == 11, done


def test_nor_is_one_whose_process_cannot_be_prepared(project):
    tasks(project, MAKE, count=12, retry={"attempts": 2, "baseDelayMs": 1, "maxDelayMs": 1, "jitterMs": 0}, **ALLOWED)
    done = run_with_other_server(project, CANNOT_OPEN, "--jobs", "1")
    assert done.returncode == 1 and NOT_ALLOWED in done.stdout and len(outputs(project)) == 11, done
    line, = {one.partition(": ")[2] for one in done.stdout.splitlines() if one.startswith("[FAIL] s1 data/in/")}
    assert re.fullmatch("cannot start .*work.py: its process cannot be prepared: Too many open files; allow this user more open files .*", line), line


def test_a_task_that_ends_with_the_same_code_by_itself_is_allowed(project):
    tasks(project, MAKE + "if forked and number == 9:\n    os.write(2, b'fork server: cannot prepare the process')\n    os._exit(%d)\n" % forked_task.EXIT_NOT_RESTORED,
          count=12, **ALLOWED)
    done = project.ok("--run-id", "r", "--jobs", "1", env=UNMEASURED)
    assert "exit code 70" in done.out and "forked 9" in logs(project) and len(outputs(project)) == 11


def test_a_task_whose_time_was_over_when_its_server_was_killed_for_it_is_allowed(project):
    tasks(project, STOPS_SERVER + MAKE, graceSec=1, timeoutSec=2, **ALLOWED)
    done = project.ok("--jobs", "1", env=UNMEASURED)
    assert "timeout after 2 s" in done.out and len(outputs(project)) == 4, done
