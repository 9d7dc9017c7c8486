"""The Python hook in real interpreters: what it notes, refuses and leaves alone, and the reading of its notes.

Programs are composed: "@i" stands for the word that imports and "@f" for the one before a module's name, so that a plain
text search of the repository finds no network import. The hook itself is never installed in pytest's own process.
"""
from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import os
import stat
import subprocess
import sys
from types import SimpleNamespace

import pytest
from conftest import ROOT, text_of

import hook_log

FOLDER = ROOT / "src" / "python_hook"
HOOK = FOLDER / "sitecustomize.py"
POSIX = os.name == "posix"
MODES = ("report", "enforce")
net = importlib.import_module("soc" + "ket")


def compose(text):
    return text.replace("@i", "imp" + "ort").replace("@f", "fr" + "om")


def load_hook():
    """Return the hook's functions; under another name than start-up's, loading it installs nothing."""
    spec = importlib.util.spec_from_file_location("hook_under_test", str(HOOK))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Bench:
    """A root with programs, and running them under the hook as the runner does."""

    def __init__(self, root):
        self.root = root
        self.log = root.parent / "notes.jsonl"

    def write(self, name, text):
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(compose(text).encode("utf-8"))
        return name

    def environment(self, mode, **more):
        env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PIPELINE_"))}
        env.update(PYTHONPATH=str(FOLDER), PIPELINE_HOOK=mode, PIPELINE_HOOK_LOG=str(self.log), PIPELINE_ROOT=str(self.root))
        env.update(more)
        return {name: value for name, value in env.items() if value is not None}

    def run(self, mode, *words, executable=sys.executable, **more):
        """Run an interpreter with these words in the root; return (exit code, stdout, stderr)."""
        done = subprocess.run([str(executable)] + [str(word) for word in words], cwd=str(self.root), env=self.environment(mode, **more),
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60)
        return done.returncode, text_of(done.stdout), text_of(done.stderr)

    def ok(self, mode, *words, **options):
        code, out, err = self.run(mode, *words, **options)
        assert (code, err) == (0, ""), (code, out, err)
        return out

    def notes(self):
        return hook_log.read_notes(str(self.log))

    def places(self):
        return [(one.kind, one.place) for one in self.notes()]


@pytest.fixture
def bench(tmp_path):
    root = tmp_path / "prüf bereich"
    root.mkdir()
    return Bench(root)


# --- what is refused and noted: a statement, its kind and event

TRY = """@i socket as s, sys
def attempt(do):
    try:
        made = do()
    except Exception as error:
        print(type(error).__name__, error)
    else:
        print("made")
"""
# There making a TCP or UDP socket is let pass, see judge(), so the first use of one stands for it; IPv6 may not be there at all.
WINDOWS_ATTEMPTS = [
    ("s.socket().bind(('', 0))", "IPv4 TCP", "bind"),
    ("s.socket(s.AF_INET, s.SOCK_DGRAM).bind(('0.0.0.0', 0))", "IPv4 UDP", "bind"),
]
ATTEMPTS = ([
    ("s.socket()", "IPv4 TCP", "__new__"),
    ("s.socket(s.AF_INET, s.SOCK_DGRAM)", "IPv4 UDP", "__new__"),
    ("s.socket(s.AF_INET6, s.SOCK_STREAM)", "IPv6 TCP", "__new__"),
    ("s.socket(s.AF_INET6, s.SOCK_DGRAM)", "IPv6 UDP", "__new__"),
] if POSIX else WINDOWS_ATTEMPTS) + [
    ("s.socket(s.AF_INET, s.SOCK_RAW, 1)", "IPv4 raw", "__new__"),
    ("s.getaddrinfo('name.invalid', 80, flags=s.AI_NUMERICHOST)", "a name look-up", "getaddrinfo"),
    ("s.getaddrinfo(b'127.0.0.name', 80, flags=s.AI_NUMERICHOST)", "a name look-up", "getaddrinfo"),
]
LINUX_ATTEMPTS = [
    ("s.socket(s.AF_INET, s.SOCK_STREAM | s.SOCK_CLOEXEC | s.SOCK_NONBLOCK)", "IPv4 TCP", "__new__"),
    ("s.socket(s.AF_PACKET, s.SOCK_RAW)", "packet socket", "__new__"),
    ("s.socket(s.AF_NETLINK, s.SOCK_RAW, 15)", "netlink (protocol 15)", "__new__"),
    ("s.socket(s.AF_VSOCK)", "vsock", "__new__"),
    ("s.socket(s.AF_ALG, s.SOCK_SEQPACKET)", "kernel crypto (AF_ALG)", "__new__"),
    ("s.socket(31, s.SOCK_RAW, 1)", "Bluetooth", "__new__"),
    ("s.socket(44, s.SOCK_RAW)", "family 44", "__new__"),
] if sys.platform.startswith("linux") else []
# Only where they are refused: let be, these would leave the machine.
LOOK_UPS = ["s.gethostbyname('name.invalid')", "s.gethostbyname_ex('name.invalid')", "s.gethostbyaddr('192.0.2.1')",
            "s.getnameinfo(('192.0.2.1', 80), 0)", "s.getaddrinfo('name.invalid', 80)"]


@pytest.mark.parametrize("mode", MODES)
def test_every_kind_is_noted_with_its_line_and_refused_only_where_no_kernel_does_it(bench, mode):
    rows = ATTEMPTS + LINUX_ATTEMPTS + ([(one, "a name look-up", one[2:].split("(")[0].replace("_ex", "")) for one in LOOK_UPS]
                                        if mode == "enforce" else [])
    bench.write("bin/try.py", TRY + "".join("attempt(lambda: %s)\n" % row[0] for row in rows))
    told = bench.ok(mode, "bin/try.py").splitlines()
    places = ["bin/try.py:%d" % number for number, _ in enumerate(rows, TRY.count("\n") + 1)]
    assert [(one.kind, one.event, one.place, one.program) for one in bench.notes()] == [
        (kind, "soc" + "ket." + event, place, "bin/try.py") for (_, kind, event), place in zip(rows, places)]
    refused = ["PermissionError [Errno 13] the offline guard refuses the network: %s (%s)" % (row[1], place) for row, place in zip(rows, places)]
    if mode == "enforce":
        assert told == refused
    else:
        assert len(told) == len(rows) and not set(told) & set(refused) and told[0] == "made"


@pytest.mark.parametrize("mode,arrives", [("report", True), ("enforce", False)])
def test_nothing_arrives_where_it_refuses(bench, mode, arrives):
    """A listener of the test's own on loopback, which on Windows is let pass; what was sent to it has arrived by the time the sender has ended."""
    arrives = arrives or not POSIX
    bench.write("bin/send.py", TRY + """
def stream():
    with s.socket() as one:
        one.connect(("127.0.0.1", int(sys.argv[1])))
        one.sendall(b"stream")
def datagram():
    with s.socket(s.AF_INET, s.SOCK_DGRAM) as one:
        one.sendto(b"datagram", ("127.0.0.1", int(sys.argv[2])))
attempt(stream)
attempt(datagram)
""")
    with net.socket() as stream, net.socket(net.AF_INET, net.SOCK_DGRAM) as datagram:
        for one in (stream, datagram):
            one.bind(("127.0.0.1", 0))
            one.settimeout(10 if arrives else 0)
        stream.listen(1)
        told = bench.ok(mode, "bin/send.py", stream.getsockname()[1], datagram.getsockname()[1]).split()
        if arrives:
            connection, _ = stream.accept()
            with connection:
                assert connection.recv(100) == b"stream"
            assert datagram.recv(100) == b"datagram" and told == ["made", "made"]
        else:
            for receive in (stream.accept, lambda: datagram.recv(100)):
                with pytest.raises(BlockingIOError):
                    receive()
            assert told[0] == "PermissionError"
    assert ({"IPv4 TCP", "IPv4 UDP"} if POSIX else set()) == {one.kind for one in bench.notes()}


@pytest.mark.skipif(not POSIX, reason="descriptors are not inherited as sockets on Windows")
@pytest.mark.parametrize("mode", MODES)
def test_an_inherited_socket_is_judged_when_it_is_used(bench, mode):
    """Wrapping a descriptor whose family is not given is no attempt, connecting it is."""
    code = "@i socket as s, sys\none = s.socket(fileno=0)\ntry:\n one.connect(('127.0.0.1', int(sys.argv[1])))\nexcept PermissionError: print('refused')\n"
    with net.socket() as listener, net.socket() as handed:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        done = subprocess.run([sys.executable, "-c", compose(code), str(listener.getsockname()[1])], stdin=handed.fileno(), stdout=subprocess.PIPE,
                              env=bench.environment(mode), cwd=str(bench.root), timeout=60, check=True)
    assert done.stdout.split() == ([b"refused"] if mode == "enforce" else [])
    assert [(one.event[7:], one.kind, one.place, one.program) for one in bench.notes()] == [("connect", "IPv4 TCP", "<string>:4", "-c")]


def test_an_error_that_nobody_catches_says_where_and_leaves_no_other_trace(bench):
    bench.write("bin/fetch.py", "@i socket\n\nsocket.socket().bind(('', 0))\n")
    code, out, err = bench.run("enforce", "bin/fetch.py")
    assert code == 1 and out == "" and "Exception ignored" not in err
    assert err.splitlines()[-1] == "PermissionError: [Errno 13] the offline guard refuses the network: IPv4 TCP (bin/fetch.py:3)"


# --- whose line is named

# Where making it is let pass, binding it to what is no loopback is not; no packet leaves by it.
OPEN = "@i socket\ndef go():\n    try:\n        socket.socket().bind(('', 0))\n    except OSError:\n        print('refused')\n"
WHOSE = {
    "in the program": ({"bin/p.py": OPEN + "go()\n"}, "bin/p.py:4"),
    "in a module beside it": ({"bin/near.py": "\n\n" + OPEN, "bin/p.py": "@i near\nnear.go()\n"}, "bin/near.py:6"),
    "through the library": ({"bin/p.py": "@f urllib.request @i urlopen\ntry:\n    urlopen('http://192.0.2.1:9/x')\nexcept OSError:\n    print('refused')\n"},
                            "bin/p.py:3"),
    "through the event loop": ({"bin/p.py": "@i asyncio\nasync def go():\n    try:\n        await asyncio.open_connection('192.0.2.1', 9)\n    except OSError:\n"
                                            "        print('refused')\nasyncio.run(go())\n"}, "bin/p.py:4"),
    "in a thread": ({"bin/p.py": OPEN + "@i threading\nt = threading.Thread(target=go)\nt.start()\nt.join()\n"}, "bin/p.py:4"),
    "in a module from elsewhere": ({"../else/far.py": OPEN, "bin/p.py": "@i sys\nsys.path.append('../else')\n@i far\n\nfar.go()\n"}, "bin/p.py:5"),
    "in a package installed below the root": ({
        "env/site-packages/far.py": OPEN, "bin/p.py": "@i sys\nsys.path.append('env/site-packages')\n@i far\nfar.go()\n"}, "bin/p.py:4"),
    "in source given to exec": ({"bin/p.py": "text = open('t.txt').read()\nexec(text)\n", "t.txt": OPEN + "go()\n"}, "bin/p.py:2"),
    "after a change of folder": ({"bin/p.py": "@i os, tempfile\nos.chdir(tempfile.gettempdir())\n" + OPEN + "go()\n"}, "bin/p.py:6"),
}


@pytest.mark.parametrize("name", WHOSE)
def test_the_line_is_that_of_the_user_s_own_code(bench, name):
    files, place = WHOSE[name]
    for path, text in files.items():
        bench.write(path, text)
    assert bench.ok("enforce", "bin/p.py").split() == ["refused"]
    assert bench.places() == [("IPv4 TCP", place)]


def test_a_program_outside_the_root_is_named_by_its_whole_path(bench, tmp_path):
    bench.write("../else/p.py", OPEN + "go()\n")
    bench.ok("enforce", tmp_path / "else" / "p.py")
    assert bench.places() == [("IPv4 TCP", "%s:4" % (tmp_path / "else" / "p.py"))]


@pytest.mark.skipif(not POSIX, reason="links need rights on Windows")
def test_a_root_by_way_of_a_link_is_the_same_root(bench, tmp_path):
    (tmp_path / "link").symlink_to(bench.root, target_is_directory=True)
    bench.write("bin/p.py", OPEN + "go()\n")
    bench.ok("enforce", bench.root / "bin" / "p.py", PIPELINE_ROOT=str(tmp_path / "link"))
    assert bench.places() == [("IPv4 TCP", "bin/p.py:4")]


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"] if POSIX else ["spawn"])
def test_a_child_of_multiprocessing_is_named_by_its_own_number(bench, method):
    bench.write("bin/p.py", OPEN + """
@i multiprocessing, os
def child(sent):
    go()
    sent.send(os.getpid())
if __name__ == "__main__":
    go()
    context = multiprocessing.get_context(%r)
    here, there = context.Pipe()
    process = context.Process(target=child, args=(there,))
    process.start()
    print(os.getpid(), here.recv())
    process.join()
""" % method)
    numbers = [int(word) for word in bench.ok("enforce", "bin/p.py").split() if word != "refused"]
    assert [(one.pid, one.kind, one.place) for one in bench.notes()] == [(pid, "IPv4 TCP", "bin/p.py:4") for pid in numbers] and len(numbers) == 2


def test_a_python_started_by_a_processor_is_under_the_hook_too(bench):
    bench.write("bin/inner.py", OPEN + "go()\n")
    bench.write("bin/p.py", "@i subprocess, sys\nsubprocess.check_call([sys.executable, 'bin/inner.py'])\n")
    assert bench.ok("enforce", "bin/p.py").split() == ["refused"]
    assert [(one.place, one.program) for one in bench.notes()] == [("bin/inner.py:4", "bin/inner.py")]


# --- what goes on as ever, in silence

QUIET = {
    "asyncio": "@i asyncio\nasync def f():\n    await asyncio.sleep(0)\n    return 'ok'\nprint(asyncio.run(f()))",
    "asyncio child": "@i asyncio, sys\nasync def f():\n    p = await asyncio.create_subprocess_exec(sys.executable, '-c', 'pass')\n"
                     "    await p.wait()\nasyncio.run(f())\nprint('ok')",
    "pool": "@i multiprocessing\nif __name__ == '__main__':\n    with multiprocessing.Pool(2) as pool:\n        print('ok' if pool.map(abs, [-1]) == [1] else '')",
    "manager": "@i multiprocessing\nif __name__ == '__main__':\n    with multiprocessing.Manager() as m:\n        print('ok' if m.list([1])[0] == 1 else '')",
    "futures": "@f concurrent.futures @i ProcessPoolExecutor as P\nif __name__ == '__main__':\n    with P(1) as pool:\n        print('ok' if pool.submit(abs, -1).result() == 1 else '')",
    "socketpair": "@i socket\na, b = socket.socketpair()\na.send(b'ok')\nprint(b.recv(2).decode())",
    "sqlite3": "@i sqlite3\nprint(sqlite3.connect(':memory:').execute(\"select 'ok'\").fetchone()[0])",
    "getpass": "@i getpass\nprint('ok' if getpass.getuser() else '')",
    "pipes": "@i subprocess, sys\nprint(subprocess.check_output([sys.executable, '-c', 'print(\"ok\")']).decode().strip())",
    "names of this machine": "@i socket as s\nfor h in (None, '', 'localhost', 'LOCALHOST', b'localhost', '127.0.0.1', '::1', '127.1.2.3'):\n"
                             "    try:\n        s.getaddrinfo(h, 80)\n    except s.gaierror:\n        pass\n"
                             "s.gethostname()\ns.gethostbyname('localhost')\ns.getservbyname('http')\ns.getnameinfo(('127.0.0.1', 80), 0)\nprint('ok')",
    "numbers": "@i socket as s\ns.getaddrinfo('192.0.2.1', 80)\ns.gethostbyname('192.0.2.1')\nprint('ok')",
}
if POSIX:
    QUIET["a socket of Unix"] = ("@i socket as s, os, tempfile\nd = tempfile.mkdtemp()\nl = s.socket(s.AF_UNIX)\nl.bind(d + '/x')\nl.listen(1)\n"
                                 "c = s.socket(s.AF_UNIX)\nc.connect(d + '/x')\nc.send(b'ok')\nprint(l.accept()[0].recv(2).decode())")
    QUIET["the list of interfaces"] = ("@i socket as s\nif hasattr(s, 'AF_NETLINK'):\n    s.socket(s.AF_NETLINK, s.SOCK_RAW, 0).close()\n"
                                       "print('ok' if s.if_nameindex() else '')")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", QUIET)
def test_what_needs_no_network_goes_on_without_a_note(bench, name, mode):
    bench.write("bin/p.py", QUIET[name] + "\n")
    assert bench.ok(mode, "bin/p.py").split() == ["ok"]
    assert not bench.log.exists()


@pytest.mark.parametrize("option,noted", [("-I", False), ("-S", False), ("-E", False), ("-s", True)])
def test_what_goes_past_the_hook(bench, option, noted):
    """Told in its docstring, and a reason to call it advisory."""
    bench.write("bin/p.py", OPEN + "go()\n")
    bench.ok("enforce", option, "bin/p.py")
    assert bench.log.exists() == noted


@pytest.mark.parametrize("more", [
    {"PIPELINE_HOOK": None}, {"PIPELINE_HOOK": ""}, {"PIPELINE_HOOK": "Enforce"}, {"PIPELINE_HOOK_LOG": None}, {"PIPELINE_HOOK_LOG": ""}], ids=str)
def test_nothing_is_set_without_the_variables(bench, more):
    bench.write("bin/p.py", OPEN + "go()\n@i sys\nprint([one for one in sys.path if 'hook' in one])\n")
    assert bench.ok("enforce", "bin/p.py", **more) == "[]\n"
    assert not bench.log.exists()


def test_the_hook_loads_nothing(bench):
    code = "@i sys; print(sorted(set(sys.modules)))"
    assert bench.ok("enforce", "-c", compose(code)) == bench.ok("enforce", "-c", compose(code), PYTHONPATH=None)


# --- the sitecustomize that comes after it

OTHERS = {
    "a good one": "@i sys\nsys.other = 'seen'\n",
    "one that fails": "raise RuntimeError('its own')\n",
    "one that lacks a module": "@i there_is_no_such_module\n",
    "one with bad syntax": "x = = 1\n",
    "one that exits": "raise SystemExit(7)\n",
    "none": None,
}
STATE = ("@i sys\nm = sys.modules.get('sitecustomize')\nprint(getattr(sys, 'other', ''), m and m.__file__, [one for one in sys.path if 'hook' in one])\n"
         "try:\n    @i sitecustomize\n    print(sitecustomize.__file__)\nexcept Exception as error:\n    print(error)\n")


@pytest.mark.parametrize("name", OTHERS)
def test_another_sitecustomize_behaves_as_without_us(bench, tmp_path, name):
    (tmp_path / "site").mkdir()
    if OTHERS[name] is not None:
        bench.write("../site/sitecustomize.py", OTHERS[name])
    bench.write("bin/p.py", STATE)
    alone = bench.run("enforce", "bin/p.py", PYTHONPATH=str(tmp_path / "site"))
    after_us = bench.run("enforce", "bin/p.py", PYTHONPATH=os.pathsep.join((str(FOLDER), str(tmp_path / "site"))))
    if name == "one that exits":        # no Python starts with that; the frames that it tells of are more by ours
        assert alone[0] == after_us[0] != 0 and alone[2].splitlines()[-1] == after_us[2].splitlines()[-1] == "SystemExit: 7"
    else:
        assert after_us == alone and alone[0] == 0
    assert ("seen" in alone[1]) == (name == "a good one")


def test_the_one_of_a_virtual_environment_is_found_and_the_hook_is_set(bench, tmp_path):
    env = tmp_path / "env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(env)], check=True, timeout=60)
    python = env / ("bin/python" if POSIX else "Scripts/python.exe")
    site = subprocess.run([str(python), "-c", "import site; print(site.getsitepackages()[0])"], stdout=subprocess.PIPE, check=True, timeout=60)
    bench.write(os.path.relpath(os.path.join(site.stdout.decode().strip(), "sitecustomize.py"), str(bench.root)), OTHERS["a good one"])
    bench.write("bin/p.py", OPEN + "go()\n@i sys, os\nprint(getattr(sys, 'other', 'unseen'), 'hook' in os.environ['PYTHONPATH'])\n")
    # Some distributions have one beside the standard library, which then is the one.
    plain = subprocess.run([str(python), "-c", "import sys; print(getattr(sys, 'other', 'unseen'))"], stdout=subprocess.PIPE, check=True, timeout=60)
    assert bench.ok("enforce", "bin/p.py", executable=python).split() == ["refused", plain.stdout.decode().strip(), "True"]
    assert bench.places() == [("IPv4 TCP", "bin/p.py:4")]


# --- the notes

@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("log", ["no/such/folder/x", "folder", "file/x", "x" * 5000, "\x01"] + (["/dev/full"] if os.path.exists("/dev/full") else []),
                         ids=lambda text: text[:20].replace("\x01", "control"))
def test_a_log_that_cannot_be_written_breaks_no_program(bench, tmp_path, mode, log):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"")
    bench.write("bin/p.py", OPEN + "go()\nprint('end')\n")
    out = bench.ok(mode, "bin/p.py", PIPELINE_HOOK_LOG=os.path.join(str(tmp_path), log))
    assert out.split() == (["refused", "end"] if mode == "enforce" else ["end"])


def test_a_place_is_noted_once_and_there_is_a_limit(bench):
    """A loop at one place is a line; hundreds of places are 200 lines of a process; a forked child begins anew."""
    lines = "".join("attempt(lambda: s.socket().bind(('', 0)))\n" for _ in range(300))
    fork = "@i os, sys\nsys.stdout.flush()\npid = os.fork()\nfor _ in range(50): attempt(lambda: s.socket().bind(('', 0)))\nif not pid: sys.stdout.flush(); os._exit(0)\nos.waitpid(pid, 0)\n"
    bench.write("bin/p.py", TRY + "for _ in range(500): attempt(lambda: s.socket().bind(('', 0)))\n" + lines + (fork if POSIX else ""))
    told = bench.ok("enforce", "bin/p.py").splitlines()
    assert len(told) == 800 + 100 * POSIX and all(line.startswith("PermissionError") for line in told)
    notes = bench.notes()
    first = TRY.count("\n") + 1
    assert [one.place for one in notes[:200]] == ["bin/p.py:%d" % number for number in range(first, first + 200)]
    assert len({one.pid for one in notes[:200]}) == 1
    assert [(one.place, one.pid != notes[0].pid) for one in notes[200:]] == [("bin/p.py:%d" % (first + 304), True)] * POSIX


@pytest.mark.skipif(not POSIX, reason="rights of files are POSIX's")
def test_only_the_owner_may_read_the_notes(bench):
    bench.write("bin/p.py", OPEN + "go()\n")
    bench.ok("report", "bin/p.py")
    assert stat.S_IMODE(bench.log.stat().st_mode) == 0o600


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere names of files are text")
@pytest.mark.parametrize("name,shown", [
    (b'a "b" \\ c.py', 'a "b" \\ c.py'), (b"a\nb\x1b[1m.py", "a\nb\x1b[1m.py"), ("prüf\U0001f600.py".encode("utf-8"), "prüf\U0001f600.py"),
    (b"\xff.py", "\\udcff.py"), (b"long" * 60 + b".py", "long" * 60 + ".py")], ids=lambda one: repr(one)[:20])
def test_any_name_of_a_file_is_noted_as_one_line(bench, name, shown):
    path = os.path.join(os.fsencode(str(bench.root)), name)
    with open(path, "wb") as file:
        file.write(compose(OPEN + "go()\n").encode())
    done = subprocess.run([sys.executable, path], env=bench.environment("enforce", PYTHONUTF8="1"), stdout=subprocess.PIPE, timeout=60, check=True)
    assert done.stdout.split() == [b"refused"] and bench.places() == [("IPv4 TCP", shown + ":4")]


# --- reading them

GOOD = {"pid": 7, "event": "e", "kind": "IPv4 TCP", "file": "bin/a.py", "line": 3, "program": "bin/a.py"}


def log_of(*rows):
    return b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows)


@pytest.mark.parametrize("row", [
    b"", b"\0", b"garbage", b"\xff\xfe{}", b"[]", b"1", b"null", b"{}", b"[" * 7000, b'{"pid":' * 900, b"9" * 8000, b'{"pid":1e999}',
    dict(GOOD, pid=-1), dict(GOOD, pid=True), dict(GOOD, pid="7"), dict(GOOD, pid=7.0), dict(GOOD, pid=1 << 60), dict(GOOD, line=None), dict(GOOD, line=-3),
    dict(GOOD, kind=["IPv4 TCP"]), dict(GOOD, kind=""), dict(GOOD, file=None), dict(GOOD, program={}), dict(GOOD, file="x" * 9000),
    {name: value for name, value in GOOD.items() if name != "kind"}], ids=lambda row: str(row)[:40])
def test_a_line_that_is_no_note_is_left_out(tmp_path, row):
    (tmp_path / "log").write_bytes(log_of(GOOD, row, dict(GOOD, line=4)))
    assert [one.place for one in hook_log.read_notes(str(tmp_path / "log"))] == ["bin/a.py:3", "bin/a.py:4"]


def test_a_torn_end_and_what_is_beyond_the_limit_are_left_out(tmp_path):
    path = tmp_path / "log"
    path.write_bytes(log_of(GOOD, GOOD) + json.dumps(GOOD).encode()[:-5])
    assert len(hook_log.read_notes(str(path))) == 2
    path.write_bytes(log_of(*[GOOD] * 10))
    assert len(hook_log.read_notes(str(path), size_limit=len(log_of(GOOD)) * 3 + 10)) == 3
    path.write_bytes(log_of(GOOD) * 20000)
    assert len(hook_log.read_notes(str(path))) == (1 << 20) // len(log_of(GOOD))


def test_a_note_s_texts_can_be_stored_and_shown(tmp_path):
    (tmp_path / "log").write_bytes(log_of(dict(GOOD, file="\udcff\ud800", program="\udc80"), dict(GOOD, line=0)))
    first, second = hook_log.read_notes(str(tmp_path / "log"))
    json.dumps(list(first), ensure_ascii=False).encode("utf-8")
    assert (first.place, first.program, second.place) == ("\\udcff\\ud800:3", "\\udc80", "")


def test_what_is_no_plain_file_has_no_notes(tmp_path):
    (tmp_path / "real").write_bytes(log_of(GOOD))
    assert hook_log.read_notes(str(tmp_path / "none")) == hook_log.read_notes(str(tmp_path)) == hook_log.read_notes("\0") == []
    if POSIX:
        (tmp_path / "link").symlink_to(tmp_path / "real")
        os.mkfifo(str(tmp_path / "pipe"))           # a blocking open would wait here for a writer that never comes
        assert hook_log.read_notes(str(tmp_path / "link")) == hook_log.read_notes(str(tmp_path / "pipe")) == []
    assert len(hook_log.read_notes(str(tmp_path / "real"))) == 1


@pytest.mark.parametrize("pid,kind,place", [
    (7, "IPv4 TCP", "b:2"), (7, "IPv6 UDP", "c:3"), (7, "vsock", "d:4"), (8, "IPv4 TCP", "e:5"), (9, "IPv4 TCP", "")])
def test_the_place_is_that_of_the_last_note_of_the_kind(pid, kind, place):
    notes = [
        hook_log.Note(number, its_kind, "e", its_place, "p") for number, its_kind, its_place in (
            (7, "IPv4 TCP", "a:1"), (7, "IPv4 TCP", "b:2"), (7, "IPv6 UDP", "c:3"), (7, hook_log.LOOK_UP, "d:4"), (8, "IPv4 UDP", "e:5"))]
    assert hook_log.place_of(notes, pid, kind) == place


# --- the judgement itself, other systems' included

class Socket:
    def __init__(self, family, type=1, proto=0):
        self.family, self.type, self.proto = family, type, proto

    def __repr__(self):                 # part of a test's name, which must be the same on every worker
        return "Socket%r" % ((self.family, self.type, self.proto),)


def event(name, *args):
    return ("soc" + "ket." + name,) + args


JUDGED = [
    # platform, event and its arguments, kind ("" is let pass)
    ("win32", event("__new__", None, 2, 1, 0), ""),
    ("win32", event("__new__", None, 23, 2, 0), ""),
    ("win32", event("__new__", None, 2, 3, 0), "IPv4 raw"),
    ("win32", event("__new__", None, 32, 1, 3), "Bluetooth"),
    ("win32", event("__new__", None, 34, 1, 1), "family 34"),
    ("win32", event("__new__", None, 1, 1, 0), ""),
    ("win32", event("connect", Socket(2), ("127.0.0.1", 80)), ""),
    ("win32", event("connect", Socket(23), ("::1", 80, 0, 0)), ""),
    ("win32", event("connect", Socket(2), ("localhost", 80)), ""),
    ("win32", event("connect", Socket(2), ("192.0.2.1", 80)), "IPv4 TCP"),
    ("win32", event("connect", Socket(23), ("2001:db8::1", 80)), "IPv6 TCP"),
    ("win32", event("connect", Socket(2), ("127.0.0.1.example", 80)), "IPv4 TCP"),
    ("win32", event("connect", Socket(2), "127.0.0.1"), "IPv4 TCP"),
    ("win32", event("connect", Socket(2), ()), "IPv4 TCP"),
    ("win32", event("bind", Socket(2), ("127.0.0.1", 0)), ""),
    ("win32", event("bind", Socket(2), ("", 0)), "IPv4 TCP"),
    ("win32", event("bind", Socket(2), ("0.0.0.0", 0)), "IPv4 TCP"),
    ("win32", event("bind", Socket(23), ("::", 0)), "IPv6 TCP"),
    ("win32", event("sendto", Socket(2, 2), ("127.0.0.1", 53)), ""),
    ("win32", event("sendto", Socket(2, 2), ("192.0.2.1", 53)), "IPv4 UDP"),
    ("win32", event("sendmsg", Socket(23, 2), ("::ffff:127.0.0.1", 53)), ""),
    ("win32", event("sendmsg", Socket(23, 2), ("::ffff:192.0.2.1", 53)), "IPv6 UDP"),
    ("win32", event("sendmsg", Socket(2, 2), None), "IPv4 UDP"),
    ("win32", event("sendto", Socket(2, 3), ("127.0.0.1", 0)), "IPv4 raw"),
    ("win32", event("getaddrinfo", "name.example", 80, 0, 0, 0), "a name look-up"),
    ("win32", event("getaddrinfo", "localhost", 80, 0, 0, 0), ""),
    ("darwin", event("__new__", None, 30, 1, 0), "IPv6 TCP"),
    ("darwin", event("__new__", None, 2, 1, 0), "IPv4 TCP"),
    ("darwin", event("__new__", None, 16, 3, 0), "family 16"),
    ("darwin", event("__new__", None, 1, 1, 0), ""),
    ("darwin", event("connect", Socket(2), ("127.0.0.1", 80)), "IPv4 TCP"),
    ("freebsd14", event("__new__", None, 28, 2, 0), "IPv6 UDP"),
    ("linux", event("__new__", None, 10, 1 | 0x80800, 0), "IPv6 TCP"),
    ("linux", event("__new__", None, 2, 5, 132), "IPv4 socket"),
    ("linux", event("__new__", None, 16, 3 | 0x80000, 0), ""),
    ("linux", event("__new__", None, 16, 3, 16), "netlink (protocol 16)"),
    ("linux", event("__new__", None, -1, -1, -1), ""),
    ("linux", event("bind", Socket(16, 3, 0), (0, 0)), ""),
    ("linux", event("bind", Socket(1), "/x"), ""),
    ("linux", event("gethostbyaddr", "192.0.2.1"), "a name look-up"),
    ("linux", event("gethostbyaddr", "127.0.0.1"), ""),
    ("linux", event("getnameinfo", ("192.0.2.1", 80)), "a name look-up"),
    ("linux", event("getnameinfo", ("::1", 80)), ""),
    ("linux", event("getaddrinfo", b"name.example", 80), "a name look-up"),
    ("linux", event("getaddrinfo", bytearray(b"::1"), 80), ""),
    ("linux", event("getaddrinfo", "2001:db8::1%eth0", 80), ""),
    ("linux", event("getaddrinfo", "1.2.3.256", 80), "a name look-up"),
    ("linux", event("getaddrinfo", "127.0.0.\u00b2", 80), "a name look-up"),
    ("linux", event("gethostname"), ""), ("linux", event("getservbyname", "http", "tcp"), ""), ("linux", event("sethostname", "x"), ""),
]


@pytest.mark.parametrize("platform,given,kind", JUDGED, ids=lambda one: str(one)[:60])
def test_judgement(platform, given, kind):
    assert load_hook().judge(platform, given[0], given[1:]) == kind


def test_hook_and_kernel_layer_have_the_same_words():
    """A refusal that the kernel tells of finds its line by them."""
    import offline_guard
    for family in range(2, 50):
        for type in range(1, 7):
            assert load_hook().kind_of("linux", family, type, 15) == offline_guard.kind_of_socket(family, type, 15)


def test_an_oldest_python_reads_the_file():
    """Not every syntax has a version that the parser checks; real interpreters down to 2.7 were asked by hand."""
    source = HOOK.read_bytes()
    source.decode("ascii")
    tree = ast.parse(source, str(HOOK), feature_version=(3, 4))
    modern = (ast.JoinedStr, ast.AnnAssign, ast.NamedExpr, ast.Nonlocal, ast.AsyncFunctionDef, ast.Starred, ast.YieldFrom)
    assert not [node for node in ast.walk(tree) if isinstance(node, modern)]
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    assert functions and not [node for node in functions if node.returns or node.args.kwonlyargs or any(one.annotation for one in node.args.args)]
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Raise) and node.cause]


def test_the_hook_imports_only_what_start_up_has_loaded():
    names = {alias.name for node in ast.walk(ast.parse(HOOK.read_bytes())) if isinstance(node, (ast.Import, ast.ImportFrom)) for alias in node.names}
    assert names == {"sys", "os", "sitecustomize"}


# --- the event loop of Windows ---------------------------------------------------------------------------------------

def test_what_the_event_loop_of_windows_does_without_events_is_told_all_the_same():
    """Its own calls, ConnectEx and the like, raise no audit events: the methods above them do."""
    done, told = [], []

    class IocpProactor:
        def connect(self, conn, address):
            done.append(("connect", conn, address))

        def sendto(self, conn, buf, flags=0, addr=None):
            done.append(("sendto", conn, buf, addr))

    def audit(event, *args):
        told.append((event,) + args)
        if args[1][0] != "127.0.0.1":
            raise PermissionError(13, "refused")
    events, hook = SimpleNamespace(IocpProactor=IocpProactor), load_hook()
    for _ in range(2):                  # for each socket; wrapped once
        hook.tell_of_proactor(events, audit)
    hook.tell_of_proactor(None, audit)
    loop, near, far = IocpProactor(), ("127.0.0.1", 9), ("192.0.2.1", 9)
    loop.connect("c", near)
    loop.sendto("c", b"x", addr=near)
    loop.sendto("c", b"y", 0, None)     # of a connected one
    for act in (lambda: loop.connect("c", far), lambda: loop.sendto("c", b"z", 0, far)):
        with pytest.raises(PermissionError):
            act()
    assert done == [("connect", "c", near), ("sendto", "c", b"x", near), ("sendto", "c", b"y", None)]
    assert told == [("socket.connect", "c", near), ("socket.sendto", "c", near), ("socket.connect", "c", far), ("socket.sendto", "c", far)]
