"""The Python hook: notes, and where no kernel layer can be had refuses, what a Python processor does with the network.

Python's start-up imports this file, for its folder stands first on the PYTHONPATH of every processor, and then, as if
this file were not there, the sitecustomize that comes after it. Asked for by variables, else nothing happens:

    PIPELINE_HOOK       report: write it down and let it be, the kernel refuses; enforce: write it down and refuse
    PIPELINE_HOOK_LOG   the file for one line of JSON per place (hook_log reads them), made by the first of them
    PIPELINE_ROOT       below it lies the user's own code, whose lines are named

It is advisory: `python -I` and `-S`, ctypes and other programs go past it. Every Python started by a processor reads it,
an old one too: hence syntax that Python 2.7 reads, and nothing imported that is not loaded already.
"""
import sys

# mypy: ignore-errors

MAX_LINES = 200             # of one process; who tries in a loop is known by then
MAX_TEXT = 1000             # characters of a path: keeps a line within one write
DENIED = 13                 # EACCES, as socket(2) and the kernel layer have it
UNIX, IPV4 = 1, 2           # families of the same number everywhere
STREAM, DATAGRAM, RAW = 1, 2, 3
LOOK_UP = "a name look-up"
FORWARD = ("socket.getaddrinfo", "socket.gethostbyname")        # of a number these look nothing up
REVERSE = ("socket.gethostbyaddr", "socket.getnameinfo")
ATTEMPT = "pipeline.attempt"    # the fork server's word for: this process now is the attempt that writes to this file
USES = ("socket.connect", "socket.bind", "socket.sendto", "socket.sendmsg")


def families(platform):
    """Return {number: name} of the address families that are told by name."""
    if platform.startswith("linux"):
        return {IPV4: "IPv4", 10: "IPv6", 16: "netlink", 17: "packet socket", 31: "Bluetooth", 38: "kernel crypto (AF_ALG)", 40: "vsock"}
    if platform == "win32":
        return {IPV4: "IPv4", 23: "IPv6", 32: "Bluetooth"}
    return {IPV4: "IPv4", {"darwin": 30, "freebsd": 28}.get(platform.rstrip("0123456789."), 24): "IPv6"}


def kind_of(platform, family, type, protocol):
    """Return the words for a socket, the same as the kernel layer's."""
    name = families(platform).get(family)
    if name in ("IPv4", "IPv6"):
        type &= 0xF                 # beside the type, Linux takes SOCK_CLOEXEC and SOCK_NONBLOCK
        return "%s %s" % (name, {STREAM: "TCP", DATAGRAM: "UDP", RAW: "raw"}.get(type, "socket"))
    return "netlink (protocol %d)" % protocol if name == "netlink" else name or "family %d" % family


def judge(platform, event, args):
    """Return the kind of an event that is to be noted or refused, "" for one that is let pass in silence.

    Let pass: Unix sockets, wrapping a descriptor whose family is not given (-1), the netlink that lists interfaces, look-ups
    of this machine's own name "localhost" and of numbers. On Windows also what the event loop's self-pipe needs: making a
    TCP or UDP socket, and loopback addresses.
    """
    if event in FORWARD or event in REVERSE:
        host = args[0] if args else None
        if event == "socket.getnameinfo":
            host = host[0] if host else None
        return "" if not host or is_loopback(host) or (event in FORWARD and is_number(host)) else LOOK_UP
    if event == "socket.__new__":
        family, type, protocol = [int(one) for one in args[1:4]]
    elif event in USES:
        family, type, protocol = int(args[0].family), int(args[0].type), int(args[0].proto)
    else:
        return ""
    kind = kind_of(platform, family, type, protocol)
    if family in (UNIX, -1) or kind == "netlink (protocol 0)":
        return ""
    if platform == "win32" and kind[:4] in ("IPv4", "IPv6") and kind[5:] in ("TCP", "UDP"):
        if event == "socket.__new__" or (isinstance(args[1], tuple) and args[1] and is_loopback(args[1][0])):
            return ""
    return kind


def _text(host):
    return host.decode("latin-1") if isinstance(host, (bytes, bytearray)) else str(host)


def is_number(host):
    """Tell whether a host is given as an IPv4 or IPv6 address; names hold no colon."""
    host = _text(host)
    parts = host.split(".")
    if len(parts) == 4 and all(0 < len(part) < 4 and not part.strip("0123456789") and int(part) < 256 for part in parts):
        return True
    return ":" in host and not host.partition("%")[0].strip("0123456789abcdefABCDEF:.")


def is_loopback(host):
    """Tell whether a host is this machine: "localhost", 127.x.x.x or ::1."""
    host = _text(host).lower()
    if host.startswith("::ffff:"):
        host = host[7:]
    return host in ("localhost", "::1", "0:0:0:0:0:0:0:1") or (host.startswith("127.") and is_number(host))


def quoted(text):
    """Return text as a JSON string in ASCII; json itself is not loaded in every processor."""
    short = text if len(text) <= MAX_TEXT else "..." + text[3 - MAX_TEXT:]
    return '"%s"' % "".join(one if " " <= one <= "~" and one not in '"\\' else _escaped(ord(one)) for one in short)


def _escaped(code):
    return "\\u%04x" % code if code < 0x10000 else "\\u%04x\\u%04x" % (0xD7C0 + (code >> 10), 0xDC00 + (code & 0x3FF))


def make_places(os, root):
    """Return place(frame) -> (file, line) of the innermost frame of the user's own code, below *root* if there is one."""
    known = {}
    start = os.getcwd()             # before Python 3.9 a program's own path may be relative to it
    library = os.path.dirname(os.__file__) + os.sep

    def below(path):
        for real in (lambda one: one, os.path.realpath):
            whole, folder = real(path), real(root).rstrip(os.sep) + os.sep
            if os.path.normcase(whole).startswith(os.path.normcase(folder)):
                return whole[len(folder):].replace(os.sep, "/")
        return ""

    def rank(name):
        """Return (0 below the root, 1 elsewhere, 2 library; name to show) of a code object's file name."""
        if name.startswith("<"):
            return 2 if name.startswith("<frozen") else 1, name
        path = os.path.abspath(os.path.join(start, name))
        if path.startswith(library) or os.sep + "site-packages" + os.sep in path or os.sep + "dist-packages" + os.sep in path:
            return 2, path
        shown = below(path) if root else ""
        return (0, shown) if shown else (1, path)

    def place(frame):
        best = (3, "?", 0)
        while frame is not None and best[0]:
            name = frame.f_code.co_filename
            if name not in known:
                known[name] = rank(name)
            if known[name][0] < best[0]:
                best = known[name] + (frame.f_lineno,)
            frame = frame.f_back
        return best[1:]

    return place


def tell_of_proactor(events, audit):
    """Let the event loop of asyncio on Windows raise the events of a plain socket: its own calls (ConnectEx, WSAConnect, WSASendTo) raise none.

    events: the module asyncio.windows_events, or None.
    """
    proactor = getattr(events, "IocpProactor", None)
    if proactor is None or "told_of" in proactor.__dict__:
        return
    connect, sendto = proactor.connect, proactor.sendto

    def told_connect(self, conn, address):
        audit("socket.connect", conn, address)
        return connect(self, conn, address)

    def told_sendto(self, conn, buf, flags=0, addr=None):
        if addr is not None:
            audit("socket.sendto", conn, addr)
        return sendto(self, conn, buf, flags, addr)
    proactor.connect, proactor.sendto, proactor.told_of = told_connect, told_sendto, True


def make_hook(os, log, root, enforce):
    """Return the audit hook; nothing that goes wrong inside it reaches the program, but its own refusal."""
    place_of = make_places(os, root)
    noted = {}                      # process -> places that it has noted: after a fork the child notes again
    logs = [log]                    # the last one is written to
    first = os.getpid()

    def note(event, kind, place):
        mine = noted.setdefault(os.getpid(), set())
        if len(mine) >= MAX_LINES or (event, kind, place) in mine:
            return
        mine.add((event, kind, place))
        program = (getattr(sys, "argv", None) or [""])[0] or "-c"
        line = '{"pid":%d,"event":%s,"kind":%s,"file":%s,"line":%d,"program":%s}\n' % (
            os.getpid(), quoted(event), quoted(kind), quoted(place[0]), place[1], quoted(program))
        descriptor = os.open(logs[-1], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, line.encode("ascii"))
        finally:
            os.close(descriptor)

    def hook(event, args):
        if event[:7] != "socket.":
            if event == ATTEMPT and len(logs) == 1 and os.getpid() != first:
                logs.append(args[0] or log)
            return
        kind, place = "", ("?", 0)
        try:
            if sys.platform == "win32" and event == "socket.__new__":       # which its use begins with
                tell_of_proactor(sys.modules.get("asyncio.windows_events"), sys.audit)
            kind = judge(sys.platform, event, args)
            if kind:
                place = place_of(sys._getframe(1))
                note(event, kind, place)
        except Exception:
            pass
        if kind and enforce:
            raise PermissionError(DENIED, "the offline guard refuses the network: %s (%s:%d)" % ((kind,) + place))

    return hook


def install():
    """Set the hook that the variables ask for. Before Python 3.8 there is none to set."""
    import os
    mode, log = os.environ.get("PIPELINE_HOOK"), os.environ.get("PIPELINE_HOOK_LOG")
    if mode in ("report", "enforce") and log and hasattr(sys, "addaudithook"):
        sys.addaudithook(make_hook(os, log, os.environ.get("PIPELINE_ROOT", ""), mode == "enforce"))


def give_way(own_file):
    """Import the next sitecustomize in the place of this one. Raises: what that raises; ImportError if there is none.

    Both is what start-up would have met without this file, and so deals with as ever.
    """
    import os
    here = os.path.dirname(own_file)
    sys.path[:] = [one for one in sys.path if one != here]
    kept = sys.modules.pop("sitecustomize")         # Python 2 empties a module that nobody holds
    import sitecustomize  # noqa: F401
    return kept


if __name__ == "sitecustomize":
    try:
        install()
    except Exception:               # a processor starts all the same
        pass
    give_way(__file__)
