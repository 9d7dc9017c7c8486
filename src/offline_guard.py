"""The kernel layer of the offline guard: the network closed for this process and all that it will start.

Also a program of its own: `python src/offline_guard.py exec [--strict] -- COMMAND ...`, and, put there by a launcher,
`exec --lease FILE` (node_exec). As a module it needs nothing else of ours.

    close_network() -> Status, Listener      once per process, irreversible, then probed: nothing is claimed that was not seen
    Listener.answer() -> Refusal             who tried what, told by the kernel while the caller is held
    program_of(argv, root) -> text           how to name that program to people

Linux: a seccomp filter refuses to open sockets; it is inherited by everything that is started and cannot be taken off. macOS:
sandbox_init. Elsewhere there is nothing to be had, which is said.

What stays possible: sockets that were open before and are handed on, Unix sockets unless strict (so whatever a daemon behind
one does on request), and what a root user or a debugger of other processes of the same user can do.

Source of the rules: seccomp(2), seccomp_unotify(2), linux/seccomp.h, linux/audit.h and the tables of system calls in the kernel.
"""
from __future__ import annotations

import errno
import os
import struct
import sys
import time
from collections import namedtuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, List, Optional, Sequence, Set, Tuple, Union
    Instruction = Tuple[int, int, int, int]                             # code, jump if true, jump if false, constant
    Line = Union[str, Tuple[int, int, Optional[str], Optional[str]]]    # a label, or code, constant, label if true, if false

PR_SET_NO_NEW_PRIVS = 38
SECCOMP_SET_MODE_FILTER = 1
FLAG_TSYNC = 1              # all threads of this process, not just the one that calls
FLAG_SPEC_ALLOW = 4         # without it, kernels before 5.16 slow down every process that has a filter
FLAG_NEW_LISTENER = 8
FLAG_TSYNC_ESRCH = 16       # TSYNC together with a listener (5.7)
FLAG_WAIT_KILLABLE = 32     # a held caller is not taken back by a mere signal (5.19), which would tell of its call twice
RET_KILL_PROCESS, RET_ERRNO, RET_USER_NOTIF, RET_ALLOW = 0x80000000, 0x00050000, 0x7FC00000, 0x7FFF0000
LOAD, JUMP_EQUAL, JUMP_AT_LEAST, JUMP_ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
IOCTL_RECEIVE, IOCTL_SEND = 0xC0502100, 0xC0182101
NOTIFICATION = struct.Struct("=QIIiIQ6Q")       # id, pid, flags, number, arch, instruction pointer, six arguments
ANSWER = struct.Struct("=QqiI")                 # id, value, error, flags

AF_UNIX, AF_INET, AF_INET6, AF_NETLINK = 1, 2, 10, 16           # of Linux
SOCK_STREAM, SOCK_DGRAM, SOCK_RAW, SOCK_TYPE_MASK = 1, 2, 3, 0xF
IO_URING = (425, 426, 427)  # setup, enter, register: a ring opens sockets without the system call; the numbers are the same on
PIDFD_GETFD = 438           # ... every ABI, also this one, which takes a socket out of another process
X32_BIT = 0x40000000
# No protocol has this number: without a guard the kernel answers "invalid", whatever the privileges. A runner inside another
# one asks with it, and the outer one knows that this was no attempt to use the network.
PROBE_PROTOCOL = 0x6F6666
PROBE_S = 5.0
DRAIN_LIMIT = 256           # refusals taken at once: somebody who tries without end must not hold up everything else
ARGV_BYTES, ARGV_WORDS = 4096, 8


class Abi(namedtuple("Abi", "arch socket socketpair seccomp socketcall x32 word_bytes")):
    """One way to call the kernel: AUDIT_ARCH and numbers of calls; socketcall is None where there is none."""

    __slots__ = ()


ABIS = {
    "x86_64": Abi(0xC000003E, 41, 53, 317, None, True, 8),
    "i386": Abi(0x40000003, 359, 360, 354, 102, False, 4),
    "aarch64": Abi(0xC00000B7, 198, 199, 277, None, False, 8),
    "arm": Abi(0x40000028, 281, 288, 383, 102, False, 4),
    "riscv64": Abi(0xC00000F3, 198, 199, 277, None, False, 8),
    "ppc64le": Abi(0xC0000015, 326, 333, 358, 102, False, 8),
    "s390x": Abi(0x80000016, 359, 360, 348, 102, False, 8)}
ABI_OF_ARCH = {abi.arch: abi for abi in ABIS.values()}


class Status(namedtuple("Status", "method reports probed strict why")):
    """What came of closing the network.

    method: "seccomp", "outer" (a runner around this one has closed it), "sandbox" (macOS) or "none". reports: refused calls
    are told to the Listener. probed: seen to be closed. strict: Unix sockets too. why: of "none", one clause; else "".
    """

    __slots__ = ()
    if TYPE_CHECKING:
        method: str
        reports: bool
        probed: bool
        strict: bool
        why: str

    def to_json(self) -> Dict[str, Any]:
        """Return the status as it stands in run records."""
        value = {"method": self.method, "reports": self.reports, "probed": self.probed, "strict": self.strict}
        return dict(value, why=self.why) if self.why else value


class Refusal(namedtuple("Refusal", "pid argv kind counted owner", defaults=(0,))):
    """A call that was refused.

    pid: of the process (not the thread). argv: at most 8 words, [] when the caller was gone before they could be trusted.
    kind: "IPv4 TCP", "packet socket", "io_uring" ... counted: it was an attempt to open a way out; False for what programs also
    do without meaning the network (io_uring, pidfd_getfd, in strict mode Unix sockets). owner: what the asker of
    Listener.answer() said of the pid.
    """

    __slots__ = ()
    if TYPE_CHECKING:
        pid: int
        argv: List[str]
        kind: str
        counted: bool
        owner: int


def close_network(strict: bool = False) -> Tuple[Status, Optional[Listener]]:
    """Close the network for this process and all that it will start, irreversibly, and probe that it is closed.

    Call it once, before any thread is started. With a Listener, every refused call waits for its answer: this process must keep
    answering, or close it (then refused calls fail at once, with "no such call"). So this process itself must try none
    from then on, for it would wait for itself: no name look-ups, and in strict mode no pwd, grp or getpass either, whose C
    functions ask a daemon through a Unix socket.
    Never raises for what the system cannot do: the method is "none" then, and why says what is missing.
    """
    if sys.platform.startswith("linux"):
        return close_linux(strict)
    if sys.platform == "darwin":
        return close_macos(strict), None
    return _none(strict, "%s has no such call" % ("Windows" if sys.platform == "win32" else "this system")), None


def _none(strict: bool, why: str) -> Status:
    return Status("none", False, False, strict, why)


# --- the filter (pure) -----------------------------------------------------------------------------------------------

def abis_of(machine: str, pointer_bytes: int) -> Tuple[str, ...]:
    """Return the names of the ABIs that programs on *machine* (as uname says) can use, this program's own first; () if unknown.

    uname may say the 32-bit name to a 64-bit program (setarch) and the other way round, so both siblings are always covered.
    """
    if machine == "x86_64" or (machine[:1] == "i" and machine[2:] == "86"):
        siblings: Tuple[str, ...] = ("x86_64", "i386")
    elif machine == "aarch64" or (machine.startswith("armv") and machine.endswith("l")):
        siblings = ("aarch64", "arm")
    else:
        return (machine,) if machine in ABIS else ()
    return siblings if pointer_bytes == 8 else siblings[::-1]


def build_filter(abis: Sequence[str], refuse: int, strict: bool, byteorder: str = sys.byteorder) -> List[Instruction]:
    """Return the program that the kernel asks about every system call.

    refuse: its verdict on calls that could open a way to the network. With RET_USER_NOTIF, a further listener below this one is
    refused with EBUSY: after our death it could answer "go on" to calls that we would have refused.
    """
    program: List[Instruction] = []
    for name in abis:
        section = _assemble(_abi_rules(ABIS[name], refuse, strict, byteorder))
        program += [(LOAD, 0, 0, 4), (JUMP_EQUAL, 0, len(section), ABIS[name].arch)] + section
    return program + [(RETURN, 0, 0, RET_KILL_PROCESS)]     # of a way to call the kernel that nobody has thought of


def _abi_rules(abi: Abi, refuse: int, strict: bool, byteorder: str) -> List[Line]:
    """Return the rules for one ABI, with labels; a call is looked at by number first."""
    low = 16 if byteorder == "little" else 20       # of the first argument: the kernel, too, looks at its lower half only
    lines: List[Line] = [(LOAD, 0, None, None)]
    if abi.x32:
        lines.append((JUMP_AT_LEAST, X32_BIT, "refuse", None))
    for number in IO_URING + (PIDFD_GETFD,) + (() if abi.socketcall is None else (abi.socketcall,)):
        lines.append((JUMP_EQUAL, number, "refuse", None))  # the arguments of socketcall are out of the filter's sight
    if refuse == RET_USER_NOTIF:
        lines.append((JUMP_EQUAL, abi.seccomp, "seccomp", None))
    lines += [(JUMP_EQUAL, abi.socket, "socket", None), (JUMP_EQUAL, abi.socketpair, "socketpair", "allow")]
    lines += ["socket", (LOAD, low, None, None)]
    if not strict:
        lines.append((JUMP_EQUAL, AF_UNIX, "allow", None))
    # Netlink's protocol 0 tells about network interfaces and carries no packets; programs ask it when they start.
    lines += [(JUMP_EQUAL, AF_NETLINK, None, "refuse"), (LOAD, low + 16, None, None), (JUMP_EQUAL, 0, "allow", "refuse"),
              "socketpair", (LOAD, low, None, None), (JUMP_EQUAL, AF_UNIX, "allow", "refuse")]
    if refuse == RET_USER_NOTIF:
        lines += ["seccomp", (LOAD, low + 8, None, None), (JUMP_ANY_BIT, FLAG_NEW_LISTENER, None, "allow"),
                  (RETURN, RET_ERRNO | errno.EBUSY, None, None)]
    return lines + ["allow", (RETURN, RET_ALLOW, None, None), "refuse", (RETURN, refuse, None, None)]


def _assemble(lines: Sequence[Line]) -> List[Instruction]:
    """Replace labels by distances; jumps lead forward only."""
    places: Dict[str, int] = {}
    plain: List[Tuple[int, int, Optional[str], Optional[str]]] = []
    for line in lines:
        if isinstance(line, str):
            places[line] = len(plain)
        else:
            plain.append(line)

    def distance(label: Optional[str], position: int) -> int:
        return 0 if label is None else places[label] - position - 1

    return [(code, distance(if_true, at), distance(if_false, at), constant) for at, (code, constant, if_true, if_false) in enumerate(plain)]


# --- Linux: installing it, and looking whether it holds --------------------------------------------------------------

def close_linux(strict: bool, libc: Any = None) -> Tuple[Status, Optional[Listener]]:
    """Do it with seccomp: with reports if it can be had, else without."""
    import ctypes
    machine = os.uname().machine
    abis = abis_of(machine, struct.calcsize("P"))
    if not abis:
        return _none(strict, "no filter is written for the processor %s" % machine), None
    libc = libc or ctypes.CDLL(None, use_errno=True)
    one, zero = ctypes.c_ulong(1), ctypes.c_ulong(0)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, one, zero, zero, zero):
        return _none(strict, "the system refuses PR_SET_NO_NEW_PRIVS: %s" % os.strerror(ctypes.get_errno())), None
    threads = FLAG_TSYNC | FLAG_TSYNC_ESRCH if _has_threads() else 0
    result, error = _install(libc, abis, RET_USER_NOTIF, strict, FLAG_NEW_LISTENER | threads)
    if result >= 0:
        return _probed(libc, strict, Listener(result))
    if error == errno.EBUSY and all(one in (errno.EACCES, errno.EPERM) for one in _try(libc, strict, PROBE_PROTOCOL)):
        # A filter of ours on top would refuse before the outer runner could be told.
        return Status("outer", False, True, strict, ""), None
    result, error = _install(libc, abis, RET_ERRNO | errno.EACCES, strict, FLAG_TSYNC)
    if result == 0:
        return _probed(libc, strict, None)
    return _none(strict, "a thread has a filter of its own" if result > 0 else _refusal_text(error)), None


def _refusal_text(error: int) -> str:
    if error in (errno.ENOSYS, errno.EINVAL):
        return "this kernel has no seccomp filters"
    return "the system refuses a seccomp filter: %s" % os.strerror(error)


def _has_threads() -> bool:
    try:
        return len(os.listdir("/proc/self/task")) > 1
    except OSError:
        return True


def _install(libc: Any, abis: Sequence[str], refuse: int, strict: bool, flags: int) -> Tuple[int, int]:
    """Install the filter; return what the system call returned (negative: refused; a listener's descriptor, 0, or a thread) and
    errno."""
    import ctypes
    program = build_filter(abis, refuse, strict)
    code = b"".join(struct.pack("=HBBI", *one) for one in program)
    code_memory = ctypes.create_string_buffer(code, len(code))
    header = ctypes.create_string_buffer(struct.pack("HP", len(program), ctypes.addressof(code_memory)))
    killable = FLAG_WAIT_KILLABLE if flags & FLAG_NEW_LISTENER else 0
    libc.syscall.restype = ctypes.c_long
    result, error = -1, errno.EINVAL
    for extra in (FLAG_SPEC_ALLOW | killable, FLAG_SPEC_ALLOW, 0):
        result = libc.syscall(ctypes.c_long(ABIS[abis[0]].seccomp), ctypes.c_ulong(SECCOMP_SET_MODE_FILTER),
                              ctypes.c_ulong(flags | extra), ctypes.byref(header))
        error = ctypes.get_errno()
        if result >= 0 or error != errno.EINVAL:        # EINVAL: a flag that this kernel does not know
            break
    return result, error


def _try(libc: Any, strict: bool, protocol: int = 0) -> List[int]:
    """Try to open one socket of each kind; return the errors, 0 for each that could be opened."""
    import ctypes
    found = []
    for family, kind in ((AF_INET, SOCK_STREAM), (AF_INET6, SOCK_DGRAM), (AF_INET, SOCK_RAW), (AF_UNIX, SOCK_STREAM))[:4 if strict else 3]:
        descriptor = libc.socket(family, kind, protocol)
        found.append(ctypes.get_errno() if descriptor < 0 else 0)
        if descriptor >= 0:
            os.close(descriptor)
    return found


def _probed(libc: Any, strict: bool, listener: Optional[Listener]) -> Tuple[Status, Optional[Listener]]:
    """Return the status that the probe allows to claim; without success the listener is closed."""
    try:
        errors, told = (_try(libc, strict), 0) if listener is None else _try_in_child(libc, strict, listener)
    except OSError as error:
        errors, told, why = [], 0, "the probe could not be made: %s" % (error.strerror or error)
    else:
        why = "the probe found it open" if errors else "the probe did not end"
    # A call that failed in another way, and of which we were not told, was refused by a filter around ours.
    strange = [one for one in errors if one != errno.EACCES]
    others = len(errors) - told if listener is not None else 0
    if errors and len(strange) <= others and all(one in (errno.EPERM, errno.EAFNOSUPPORT) for one in strange):
        return Status("seccomp", listener is not None and told == len(errors), True, strict, ""), listener
    if listener is not None:
        listener.close()
    return _none(strict, why), None


def _try_in_child(libc: Any, strict: bool, listener: Listener) -> Tuple[List[int], int]:
    """Let a child try, for who answers cannot also be held; return its errors ([] if it did not end) and how many were told.

    Raises: OSError when there can be no child.
    """
    import select
    reader, writer = os.pipe()
    child = -1
    try:
        child = os.fork()
        if child == 0:                  # in the child
            try:
                os.close(listener.descriptor)
                os.write(writer, bytes(min(error, 255) for error in _try(libc, strict)))
            finally:
                os._exit(0)
        os.close(writer)                # in the parent: now the pipe ends with the child
        writer, found, told = -1, b"", 0
        poll = select.poll()
        poll.register(reader, select.POLLIN)
        poll.register(listener.descriptor, select.POLLIN)
        deadline = time.monotonic() + PROBE_S
        while time.monotonic() < deadline:
            ready = [descriptor for descriptor, _ in poll.poll(max(1, int((deadline - time.monotonic()) * 1000)))]
            if listener.descriptor in ready:
                refusal = listener.answer()
                told += int(refusal is not None and refusal.pid == child)
            if reader in ready:
                data = os.read(reader, 64)
                if not data:
                    return list(found), told
                found += data
        return [], told
    finally:
        os.close(reader)
        if writer >= 0:
            os.close(writer)
        if child > 0:
            _end(child)


def _end(child: int) -> None:
    """End a child that has nothing left to do, and take its exit status."""
    import signal
    try:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    except OSError:
        pass                            # where SIGCHLD is ignored, the kernel has taken it


# --- Linux: who tried ------------------------------------------------------------------------------------------------

class Listener:
    """The kernel's reports of refused calls: each caller is held until it is answered.

    descriptor becomes readable when there is one. It is closed on exec; a forked child that lives on must close its copy, for
    as long as any copy is open the kernel waits for an answer.
    """

    def __init__(self, descriptor: int) -> None:
        import select
        self.descriptor = descriptor
        self.poll = select.poll()
        self.poll.register(descriptor, select.POLLIN)

    def answer(self, owner_of: Optional[Callable[[int], int]] = None) -> Optional[Refusal]:
        """Refuse one pending call and tell who made it; None if there is none (any more), or it was only an inner runner's probe.

        owner_of(pid) is asked while the caller is held: afterwards it may be gone.
        """
        call = self._receive()
        if call is None:
            return None
        ident, thread, _flags, number, arch, _at, *arguments = call
        owner = 0
        try:                            # whatever happens here, nobody is left waiting
            kind, counted = kind_of_call(arch, number & 0xFFFFFFFF, arguments, thread)
            pid, argv = _caller(thread)
            owner = owner_of(pid) if owner_of is not None else 0
        finally:
            was_there = self._refuse(ident)
        if kind == "":
            return None
        if not was_there:               # what was read may be about another process with the same number
            pid, argv, owner = thread, [], 0
        return Refusal(pid, argv, kind, counted, owner)

    def drain(self, owner_of: Optional[Callable[[int], int]] = None) -> List[Refusal]:
        """Refuse all pending calls (a bounded number: poll again) and tell who made them."""
        found = []
        for _ in range(DRAIN_LIMIT):
            if not self._is_pending():
                break
            refusal = self.answer(owner_of)
            if refusal is not None:
                found.append(refusal)
        return found

    def close(self) -> None:
        """Stop listening: calls that would be told fail with ENOSYS from now on, in all processes."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def _is_pending(self) -> bool:
        import select
        return self.descriptor >= 0 and any(event & select.POLLIN for _, event in self.poll.poll(0))

    def _receive(self) -> Optional[Tuple[int, ...]]:
        import fcntl
        while self._is_pending():       # else the call would wait
            buffer = bytearray(NOTIFICATION.size)   # the kernel insists on zeros
            try:
                fcntl.ioctl(self.descriptor, IOCTL_RECEIVE, buffer)
                return NOTIFICATION.unpack(buffer)
            except InterruptedError:
                continue
            except OSError:
                return None             # ENOENT: the caller was killed meanwhile
        return None

    def _refuse(self, ident: int) -> bool:
        """Answer EACCES; tell whether the caller was still there to hear it."""
        import fcntl
        while True:
            try:
                fcntl.ioctl(self.descriptor, IOCTL_SEND, ANSWER.pack(ident, 0, -errno.EACCES, 0))
                return True
            except InterruptedError:
                continue
            except OSError:
                return False


def _caller(thread: int) -> Tuple[int, List[str]]:
    """Return the process of the thread that is being held, and its words; what cannot be read is left out."""
    pid = thread
    argv: List[str] = []
    try:
        with open("/proc/%d/status" % thread, "rb") as file:
            for line in file:
                if line.startswith(b"Tgid:"):
                    pid = int(line[5:])
                    break
        with open("/proc/%d/cmdline" % thread, "rb") as file:
            words = file.read(ARGV_BYTES).rstrip(b"\0").split(b"\0")
        argv = [word.decode("utf-8", "backslashreplace") for word in words[:ARGV_WORDS]] if words != [b""] else []
    except (OSError, ValueError):
        pass
    return pid, argv


def kind_of_call(arch: int, number: int, arguments: Sequence[int], thread: int = 0) -> Tuple[str, bool]:
    """Return what a refused call was for, in words, and whether it counts as an attempt; "" for an inner runner's probe.

    thread: who made it and is being held, to look up what lies behind a pointer; 0: nobody.
    """
    abi = ABI_OF_ARCH[arch]             # the filter kills callers of any other
    if number in IO_URING:
        return "io_uring", False
    if number == PIDFD_GETFD:
        return "another process's descriptor (pidfd_getfd)", False
    if abi.x32 and number >= X32_BIT:
        if number ^ X32_BIT in (abi.socket, abi.socketpair):
            return "a socket (x32)", True
        return "a call of the x32 kind", False
    if number == abi.socketcall:
        family = _family_behind(abi, arguments, thread)
        return "a socket (%ssocketcall)" % ("32-bit " if abi.word_bytes == 4 else ""), family != AF_UNIX
    family, kind, protocol = (one & 0xFFFFFFFF for one in arguments[:3])
    if protocol == PROBE_PROTOCOL and number == abi.socket:
        return "", False
    return kind_of_socket(family, kind & SOCK_TYPE_MASK, protocol), family != AF_UNIX


def kind_of_socket(family: int, kind: int, protocol: int) -> str:
    """Return words for a socket of Linux."""
    if family in (AF_INET, AF_INET6):
        word = {SOCK_STREAM: "TCP", SOCK_DGRAM: "UDP", SOCK_RAW: "raw"}.get(kind, "socket")
        return "%s %s" % ("IPv4" if family == AF_INET else "IPv6", word)
    if family == AF_NETLINK:
        return "netlink (protocol %d)" % protocol
    names = {AF_UNIX: "Unix socket", 17: "packet socket", 31: "Bluetooth", 38: "kernel crypto (AF_ALG)", 40: "vsock"}
    return names.get(family, "family %d" % family)


def _family_behind(abi: Abi, arguments: Sequence[int], thread: int) -> int:
    """Return the family that a socketcall names, -1 when it cannot be seen. It decides on the wording only, never on the
    refusal."""
    try:
        with open("/proc/%d/mem" % thread, "rb", buffering=0) as file:
            file.seek(arguments[1])     # the words of socket (1) and socketpair (8) begin with it
            return int.from_bytes(file.read(abi.word_bytes), sys.byteorder) if arguments[0] in (1, 8) else -1
    except (OSError, ValueError, OverflowError):
        return -1


# --- how to name a program -------------------------------------------------------------------------------------------

# Interpreter -> its short options that take the program's text (or a module) and those that take the next word.
INTERPRETERS = {
    "python": ("cm", "WXQ"), "pypy": ("cm", "WX"), "perl": ("eE", ""), "ruby": ("e", "rIC"), "node": ("ep", "rC"), "sh": ("c", "oO"),
    "bash": ("c", "oO"), "dash": ("c", "o"), "zsh": ("c", "o"), "ksh": ("c", "o"), "php": ("r", "dc"), "Rscript": ("e", ""), "lua": ("e", "l")}


def program_of(argv: Sequence[str], root: str) -> str:
    """Return how to name a program: its script or file, relative to *root* when below it; never its arguments, which may be
    secret."""
    if not argv or not argv[0]:
        return "a program"
    name = os.path.basename(argv[0]).lstrip("-") or argv[0]     # a login shell begins with "-"
    stem = name[:-4] if name.lower().endswith(".exe") else name
    options = INTERPRETERS.get(stem.rstrip("0123456789."))
    if options is not None:
        return _script_of(argv[1:], name, options, root)
    return _shown(argv[0], root) if "/" in argv[0] or os.sep in argv[0] else name


def _script_of(words: Sequence[str], name: str, options: Tuple[str, str], root: str) -> str:
    """Return the script among an interpreter's words, or how the interpreter was told what to run."""
    texts, values = options
    rest = iter(words)
    for word in rest:
        if word == "--":
            word = next(rest, "")
        elif word in ("--eval", "--print"):
            return name + " -e"
        elif word.startswith("--") or word.startswith("+"):
            continue
        elif word.startswith("-") and word != "-":
            letter = next((one for one in word[1:] if one in texts or one in values), "")
            if letter and letter in texts:
                module = (word.partition("m")[2] or next(rest, "")) if letter == "m" else ""
                return " ".join(filter(None, (name, "-" + letter, module)))
            if letter and word.endswith(letter):
                next(rest, "")
            continue
        # What is no file may be the value of an option that is not known here, or a program given in words.
        return _shown(word, root) if word and os.path.isfile(os.path.join(root, word)) else name
    return name


def _shown(path: str, root: str) -> str:
    full, top = os.path.realpath(os.path.join(root, path)), os.path.realpath(root)
    below = os.path.relpath(full, top) if os.path.splitdrive(full)[0] == os.path.splitdrive(top)[0] else os.pardir
    if below.split(os.sep)[0] == os.pardir:
        return os.path.basename(path)
    return below.replace(os.sep, "/")


# --- macOS -----------------------------------------------------------------------------------------------------------
# From the documentation; it runs only there. Every call goes through `libc`, which tests replace.

SANDBOX_NAMED = 1
RUNNER_VARIABLE = "PIPELINE_ATTEMPT_TOKEN"      # whatever a runner starts has it


def close_macos(strict: bool, libc: Any = None) -> Status:
    """Do it with the sandbox profile "no-network", then see that loopback, too, is out of reach.

    Who is in a sandbox gets no other (forbidden-sandbox-reinit): below another runner's attempt, what that has closed is probed.
    Source: sandbox_init(3); deprecated since 10.8, still there.
    """
    import ctypes
    libc = libc or ctypes.CDLL(None, use_errno=True)
    try:
        sandbox_init = libc.sandbox_init
    except AttributeError:
        return _none(strict, "this system has no sandbox_init")
    message = ctypes.c_char_p()
    if sandbox_init(b"no-network", ctypes.c_uint64(SANDBOX_NAMED), ctypes.byref(message)):
        if RUNNER_VARIABLE in os.environ and _macos_is_closed(libc, strict):
            return Status("outer", False, True, strict, "")
        return _none(strict, "sandbox_init refuses: %s" % (message.value or b"no reason given").decode("utf-8", "replace"))
    if not _macos_is_closed(libc, strict):
        return _none(strict, "the probe found it open")
    return Status("sandbox", False, True, strict, "")


def _macos_is_closed(libc: Any, strict: bool) -> bool:
    """Tell whether connecting and sending to loopback (strict: to a Unix socket that is not there) is refused with EPERM."""
    loopback = struct.pack(">BBH4s8x", 16, 2, 9, b"\x7f\0\0\1")     # length, AF_INET, port 9 (discard), 127.0.0.1
    nowhere = struct.pack("BB104s", 106, 1, b"/nonexistent/offline-guard")
    answers = [_macos_try(libc, 2, 1, lambda one: libc.connect(one, loopback, len(loopback))),
               _macos_try(libc, 2, 2, lambda one: libc.sendto(one, b"\0", 1, 0, loopback, len(loopback)))]
    if strict:
        answers.append(_macos_try(libc, 1, 1, lambda one: libc.connect(one, nowhere, len(nowhere))))
    return all(error == errno.EPERM for error in answers)


def _macos_try(libc: Any, family: int, kind: int, act: Any) -> int:
    """Return the error with which a socket, or what is done with it, is refused; 0 if it is not."""
    import ctypes
    descriptor = libc.socket(family, kind, 0)
    if descriptor < 0:
        return ctypes.get_errno()
    try:
        return ctypes.get_errno() if act(descriptor) < 0 else 0
    finally:
        libc.close(descriptor)


# --- as a program of its own -----------------------------------------------------------------------------------------

USAGE = ("usage: python offline_guard.py exec [--strict] -- COMMAND ...   (runs COMMAND without network and tells who tried)\n"
         "       python offline_guard.py exec --lease FILE                 (the runner's own, for tasks that a launcher starts)")
SHOWN_LIMIT = 100           # different refusals shown; the others are counted


class Reports:
    """What `exec` has told on stderr: each program and kind once per process, within a limit."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.shown: Set[Tuple[str, int, str]] = set()
        self.more = 0

    def tell(self, refusal: Refusal) -> None:
        """Say who tried what, unless it has been said."""
        key = (program_of(refusal.argv, self.root), refusal.pid, refusal.kind)
        if key in self.shown or len(self.shown) >= SHOWN_LIMIT:
            self.more += 1
            return
        self.shown.add(key)
        say("%s (pid %d) tried to %s %s: refused" % (key[0], key[1], "open" if refusal.counted else "use", key[2]))

    def signalled(self, number: int) -> None:
        """Nobody is told of the signals that came."""

    def end(self) -> None:
        """Say how many were not shown."""
        if self.more:
            say("%d further calls refused" % self.more)


def say(text: str) -> None:
    """Write a line to stderr; what programs call themselves must not steer the terminal."""
    line = "[OFFLINE] %s\n" % "".join(one if one.isprintable() else "?" for one in text)
    try:
        os.write(2, line.encode("utf-8", "backslashreplace"))
    except OSError:
        pass


def run_closed(command: List[str], strict: bool) -> int:
    """Run *command* with the network closed; return its exit code, 128+n for a signal, 6 if the network cannot be closed."""
    status, listener = close_network(strict)
    if status.method == "none":
        say("the network cannot be closed here: %s; nothing was started" % status.why)
        return 6
    import subprocess
    noted, alarm = note_signals()
    try:
        process = subprocess.Popen(command)
    except OSError as error:
        say("cannot start %s: %s" % (command[0], error.strerror or error))
        return 127 if isinstance(error, FileNotFoundError) else 126
    code = wait_for(process, listener, noted, alarm, Reports(_here()))
    return 128 - code if code < 0 else code


def note_signals() -> Tuple[List[int], int]:
    """Take over the signals that are for the command; return the list of those to pass on, and what becomes readable at each."""
    import signal
    noted: List[int] = []
    alarm, ring = os.pipe()
    for descriptor in (alarm, ring):
        os.set_blocking(descriptor, False)
    signal.set_wakeup_fd(ring, warn_on_full_buffer=False)
    # SIGINT and SIGQUIT come from a terminal, which sends them to the command as well.
    for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGQUIT):
        if number == signal.SIGCHLD or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda number, frame: None)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        if signal.getsignal(number) != signal.SIG_IGN:      # nohup and the like
            signal.signal(number, lambda number, frame: noted.append(number))
    return noted, alarm


def _here() -> str:
    try:
        return os.getcwd()
    except OSError:
        return os.sep                   # it has been deleted


def wait_for(process: Any, listener: Optional[Listener], noted: List[int], alarm: int, reports: Any,
             look: Optional[Callable[[], None]] = None, look_ms: Optional[int] = None) -> int:
    """Answer refused calls and pass signals on until the command ends; return its code as subprocess has it.

    look is called at least every *look_ms* milliseconds.
    """
    import select
    poll = select.poll()
    for descriptor in (alarm,) if listener is None else (alarm, listener.descriptor):
        poll.register(descriptor, select.POLLIN)
    while True:
        code = process.poll()
        for refusal in listener.drain() if listener is not None else ():
            reports.tell(refusal)
        if code is not None:
            while noted:                # it came together with the end, for there is nobody any more to pass it on to
                reports.signalled(noted.pop(0))
            reports.end()
            return int(code)
        while noted:
            number = noted.pop(0)
            reports.signalled(number)
            process.send_signal(number)
        if look is not None:
            look()
        if alarm in [descriptor for descriptor, _ in poll.poll(look_ms)]:
            os.read(alarm, 4096)


def main(arguments: List[str]) -> int:
    """Be the program; return its exit code (2: usage)."""
    if arguments[:2] == ["exec", "--lease"] and len(arguments) == 3:
        import node_exec
        return node_exec.run_leased(arguments[2], sys.modules[__name__])
    strict = arguments[1:2] == ["--strict"]
    head = ["exec", "--strict", "--"] if strict else ["exec", "--"]
    if arguments[:len(head)] != head or len(arguments) == len(head):
        print(USAGE, file=sys.stderr)
        return 2
    return run_closed(arguments[len(head):], strict)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
