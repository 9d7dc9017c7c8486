"""The scan for network uses: which programs would use the network, told from their sources before anything runs.

This is layer 1 of the offline guard: an early and readable message, not an enforcement: whoever wants to can get past it. The
layers that enforce stand in offline_guard.

On scan_shell, scan_windows and source_folding; bytes in, findings out: it opens no file and changes nothing.

    scan_program: which kind of program it is, by its name and first line
      Python -> syntax tree -> _Scan.walk: one pass that notes imports, bindings and calls
                            -> _Scan.judge_calls: names resolved and constants folded, each call judged
      shell  -> scan_shell: commands, each with its line       -> judge_words
      .bat .cmd .ps1 -> scan_windows: statements, line by line -> judge_words
                            -> ScanResult(refused, warned, imports)

Refused: imports of network modules in any spelling that can be worked out, also inside literal source given to exec, and
network tools started as commands. Warned of: what cannot be judged. Comments and plain strings do not count, and of a
script neither do here-documents, names that are only asked for, and functions of its own that bear a tool's name.
"""
from __future__ import annotations

from collections import namedtuple

from scan_shell import (COMPUTED, HOLE, MAX_SCRIPT, MAX_SOURCES, SHELLS, judge_script, judge_shell_text, judge_words, started,
                        tool_name)
from scan_windows import judge_batch, judge_powershell
from source_folding import BUILTINS, IMPORTERS, Bindings, index_node

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, Iterable, List, Optional, Set, Tuple


# Names of network modules; each stands for itself and all below it.
NETWORK_MODULES = frozenset((
    # the standard library, past versions included
    "socket _socket ssl _ssl socketserver urllib http.client http.server asyncio _asyncio asyncore asynchat ftplib smtplib "
    "smtpd poplib imaplib nntplib telnetlib xmlrpc webbrowser wsgiref.simple_server "
    # clients and servers of the web
    "requests requests_toolbelt requests_oauthlib grequests httpx httpcore httplib2 aiohttp urllib3 treq mechanize pycurl "
    "websocket websockets wsproto h11 h2 aioquic uvicorn hypercorn gunicorn waitress scrapy selenium playwright pyppeteer "
    # event loops that bring sockets along
    "tornado twisted trio anyio curio gevent eventlet uvloop "
    # shells, files and mail of other machines
    "paramiko asyncssh fabric fabric2 pysftp netmiko ncclient winrm rpyc smbclient smbprotocol impacket aiosmtpd aioftp "
    # services
    "boto boto3 botocore aiobotocore s3fs gcsfs adlfs google.cloud google.api_core google.auth googleapiclient azure minio "
    "swiftclient keystoneclient docker kubernetes hvac consul etcd3 kazoo sentry_sdk slack_sdk twilio "
    # databases, queues, remote calls
    "redis aioredis pymongo motor psycopg psycopg2 asyncpg pg8000 mysql MySQLdb pymysql aiomysql mariadb pymssql oracledb "
    "cx_Oracle cassandra elasticsearch opensearchpy influxdb influxdb_client neo4j memcache pymemcache pylibmc "
    "kafka confluent_kafka pika aio_pika kombu amqp celery nats stomp paho zmq nanomsg pynng grpc thrift Pyro4 Pyro5 zeep suds "
    # the network itself
    "scapy dns ldap ldap3 pysnmp easysnmp nmap ntplib whois speedtest zeroconf "
    # the same under other names: Python 2, and packages that carry a copy
    "urllib2 httplib xmlrpclib SocketServer BaseHTTPServer SimpleXMLRPCServer six.moves.urllib six.moves.http_client "
    "six.moves.xmlrpc_client six.moves.BaseHTTPServer pip._vendor.requests pip._vendor.urllib3").split())

DOUBTFUL_MODULES = {
    "ctypes": "can call what this scan does not see", "_ctypes": "can call what this scan does not see",
    "cffi": "can call what this scan does not see", "_cffi_backend": "can call what this scan does not see",
    "multiprocessing.connection": "can listen on and connect to addresses",
    "multiprocessing.managers": "can listen on and connect to addresses"}

SHELL_ENDINGS = (".sh", ".bash", ".dash", ".zsh", ".ksh")

# Resolved names of functions -> how a call of them is judged; those of IMPORTERS import the module that they name.
FINDERS = frozenset(("importlib.util.find_spec", "importlib.machinery.PathFinder.find_spec", "pkgutil.find_spec"))
RUNNERS = frozenset(("builtins.exec", "builtins.eval", "builtins.compile"))
LOADS = frozenset(("module_from_spec", "exec_module", "load_module"))
COMMANDS = {                # function -> form of its arguments
    "subprocess.run": "argv", "subprocess.call": "argv", "subprocess.check_call": "argv", "subprocess.check_output": "argv",
    "subprocess.Popen": "argv", "subprocess.getoutput": "shell", "subprocess.getstatusoutput": "shell",
    "os.system": "shell", "os.popen": "shell", "pty.spawn": "argv", "os.posix_spawn": "path+argv", "os.posix_spawnp": "path+argv",
    "os.execl": "path+words", "os.execle": "path+words", "os.execlp": "path+words", "os.execlpe": "path+words",
    "os.execv": "path+argv", "os.execve": "path+argv", "os.execvp": "path+argv", "os.execvpe": "path+argv",
    "os.spawnl": "mode+path+words", "os.spawnle": "mode+path+words", "os.spawnlp": "mode+path+words",
    "os.spawnlpe": "mode+path+words", "os.spawnv": "mode+path+argv", "os.spawnve": "mode+path+argv",
    "os.spawnvp": "mode+path+argv", "os.spawnvpe": "mode+path+argv"}
JUDGED = IMPORTERS | FINDERS | RUNNERS | frozenset(COMMANDS)
# Modules whose functions matter to the scan; other names are not followed.
ROOTS = frozenset("builtins importlib pkgutil runpy imp subprocess os pty base64 sys posix nt".split())
LAST_NAMES = frozenset(name.rpartition(".")[2] for name in JUDGED)

# Fields of tree nodes that hold no node worth a visit.
_BARE_FIELDS = frozenset("ctx op ops id attr kind type_comment lineno names module level n s name rest simple conversion".split())


# === Results ===

class Finding(namedtuple("Finding", "line module what")):
    """One place: *line* from 1, *module* the dotted name or the tool (what "allow" names), *what* a clause for people."""

    __slots__ = ()
    if TYPE_CHECKING:
        line: int
        module: str
        what: str


_Place = namedtuple("_Place", "lineno")     # stands for a node of a tree where there is none


class ScanResult(namedtuple("ScanResult", "refused warned imports")):
    """What a scan found: findings by line, and all imported names (".name" when relative; "name.*" for all that the package lists in
    `__all__`), sorted."""

    __slots__ = ()
    if TYPE_CHECKING:
        refused: Tuple[Finding, ...]
        warned: Tuple[Finding, ...]
        imports: Tuple[str, ...]

    def to_json(self) -> Dict[str, Any]:
        """Return the result as JSON values, free of lone surrogates: findings are [line, module, what]."""
        return {"refused": [list(one) for one in self.refused], "warned": [list(one) for one in self.warned],
                "imports": list(self.imports)}

    @staticmethod
    def from_json(value: Dict[str, Any]) -> ScanResult:
        """Return the result that to_json() made; further keys are ignored. Raises: KeyError, TypeError."""
        return ScanResult(tuple(Finding(*one) for one in value["refused"]), tuple(Finding(*one) for one in value["warned"]),
                          tuple(value["imports"]))


def refusals(result: ScanResult, allow: Iterable[str]) -> List[Finding]:
    """Return the refused findings but those whose module, or a package that it lies in, is in *allow*."""
    allowed = frozenset(allow)
    return [one for one in result.refused if not any(name in allowed for name in _packages(one.module))]


def scan(source: bytes, filename: str) -> ScanResult:
    """Search Python source for uses of the network, by its syntax tree.

    *filename* enters the parser's messages only. Whatever cannot be parsed, or is nested too deep to be looked at,
    becomes a warning, never an exception.
    """
    run = _Scan(filename)
    run.scan_source(source)
    # A computed name can be any text; the runner makes JSON of names. That of a file may be no identifier: 01_load.
    names = sorted(name for name in run.imports if "/" not in name and all(
        part and part.isprintable() for part in name.lstrip(".").split(".")))
    return ScanResult(_ordered(run.refused), _ordered(run.warned), tuple(names))


def scan_program(data: bytes, path: str) -> ScanResult:
    """Search any program for uses of the network: Python by its syntax tree, shells' and Windows' scripts by their commands.

    *path* tells the kind by its ending, else the first line does. Other programs get one warning, of the module "binary".
    """
    kind = program_language(data, path)
    if kind == "python":
        return scan(data, path)
    if kind not in ("shell", "batch", "powershell"):
        what = "a %s script, which is not judged" % _printable(kind) if kind else "not a script"
        return ScanResult((), (Finding(1, "binary", what + ": only the runtime guard covers it"),), ())
    text = _script_text(data)
    run = _Scan(path)
    judge = {"shell": judge_script, "batch": judge_batch, "powershell": judge_powershell}[kind]
    for line, (how, given) in judge(text[:MAX_SCRIPT]):
        run.note_command(_Place(line), (how, given.replace("$", HOLE) if how == "python" else given))
    if len(text) > MAX_SCRIPT:
        run.warned.append(Finding(text.count("\n", 0, MAX_SCRIPT) + 1, "", "cannot be judged: the scan reads no further"))
    # Source between the quotes of a shell often holds variables of the shell: what cannot be parsed is no news.
    return ScanResult(_ordered(run.refused), _ordered(one for one in run.warned if one.module or "no further" in one.what), ())


def program_language(data: bytes, path: str) -> str:
    """Return python, shell, batch, powershell, the name of another interpreter, or "" for what is no script."""
    ending = path[path.rfind("."):].lower()
    known = {".py": "python", ".pyw": "python", ".bat": "batch", ".cmd": "batch", ".ps1": "powershell", ".psm1": "powershell"}.get(ending)
    if known or ending in SHELL_ENDINGS:
        return known or "shell"
    words = started(data[2:256].split(b"\n")[0].decode("latin-1").split()) if data[:2] == b"#!" else []
    name = tool_name(words[0]) if words else ""
    if name.startswith(("python", "pypy")) or name in SHELLS and _is_for_python(data):
        return "python"
    return {"pwsh": "powershell", "powershell": "powershell"}.get(name, "shell" if name in SHELLS - {"fish", "cmd"} else name)


def _is_for_python(data: bytes) -> bool:
    """Tell whether a shell's script hands itself to Python, to which that command is a string: pip writes such where the path of its
    Python is too long for a first line, or has blanks."""
    head = data[:1024]
    second = head.partition(b"\n")[2]
    return second.startswith((b"'''", b"\"\"\"", b"'exec'", b"\"exec\"")) and (b"python" in head or b"pypy" in head)


def _script_text(data: bytes) -> str:
    """Return a script's text up to a zero byte, where a payload begins; tools' names are ASCII in every encoding but UTF-16."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data.decode("utf-16", "replace").partition("\0")[0]
    return data[3 if data[:3] == b"\xef\xbb\xbf" else 0:].partition(b"\0")[0].decode("latin-1")


def _ordered(findings: Iterable[Finding]) -> Tuple[Finding, ...]:
    """Return findings by line, one for each line and module."""
    first: Dict[Tuple[int, str], Finding] = {}
    for one in findings:
        first.setdefault((one.line, one.module), Finding(one.line, _printable(one.module), _printable(one.what)))
    return tuple(first[place] for place in sorted(first))


def _printable(text: str) -> str:
    """Return text that any terminal and any UTF-8 file takes."""
    short = text if len(text) <= 200 else text[:197] + "..."
    return "".join(one if one.isprintable() else "\\u%04x" % ord(one) for one in short)


def _packages(module: str) -> List[str]:
    """Return a dotted name and the packages that it lies in: a.b.c, a.b, a."""
    names = [module]
    while "." in module:
        module = module.rpartition(".")[0]
        names.append(module)
    return names


def network_module(name: str) -> bool:
    """Tell whether a dotted name is, or lies in, a network module."""
    return any(one in NETWORK_MODULES for one in _packages(name))


# === The scan of one source ===

class _Scan(Bindings):
    """The findings of one file, and the calls of the source at hand. Lives for one scan()."""

    def __init__(self, filename: str) -> None:
        super().__init__()
        self.filename = filename
        self.refused: List[Finding] = []
        self.warned: List[Finding] = []
        self.imports: Set[str] = set()
        self.calls: List[Any] = []
        self.lookups: List[Any] = []                # subscripts that are read
        self.loads_by_hand = False                  # a found module is also loaded somewhere
        self.line = 0                               # of the outermost source, while one inside it is scanned
        self.depth = 0
        self.prefix = ""

    # --- findings

    def _refuse(self, node: Any, module: str, what: str) -> None:
        self.refused.append(Finding(self.line or node.lineno, module, self.prefix + what))

    def _warn(self, line: int, module: str, what: str) -> None:
        self.warned.append(Finding(self.line or line, module, self.prefix + what))

    def _note_import(self, node: Any, name: str, how: str) -> None:
        """Judge one absolute name that an import spells, and remember it."""
        self.imports.add(name)
        if network_module(name):
            self._refuse(node, name, "imports the network module %s%s" % (name, how))
        for one in _packages(name):
            if one in DOUBTFUL_MODULES:
                self._warn(node.lineno, one, "imports %s, which %s" % (one, DOUBTFUL_MODULES[one]))

    # --- source -> tree -> findings

    def scan_source(self, source: Any) -> None:
        """Scan source (bytes, or the text of an exec) into the findings."""
        tree = self._parse(source)
        if tree is None:
            return self._note_lines(source) if isinstance(source, bytes) else None
        try:
            self.walk(tree)
            self.judge_calls()
        except (RecursionError, MemoryError):
            self._warn(1, "", "cannot be judged: nested too deep")

    def _parse(self, source: Any) -> Any:
        import warnings
        from _ast import PyCF_ONLY_AST  # what ast.parse uses; ast itself takes longer to import than many a scan
        try:
            with warnings.catch_warnings():         # an invalid escape is the author's matter, not a line on our stderr
                warnings.simplefilter("ignore")
                return compile(source, self.filename or "<source>", "exec", PyCF_ONLY_AST, True)
        except SyntaxError as error:
            line, what = _syntax_fault(source, error)
            self._warn(line, "", "cannot be judged: %s" % what)
        except (RecursionError, MemoryError):
            self._warn(1, "", "cannot be judged: nested too deep")
        except (ValueError, OverflowError) as error:
            self._warn(1, "", "cannot be judged: %s" % error)
        return None

    def _note_lines(self, source: bytes) -> None:
        """Note the imports on lines of their own in source that this Python cannot parse: its first line may name another Python.
        They are not judged: the lines may be text."""
        for line in source.decode("utf-8", "replace").splitlines():
            line = line.strip()
            if line.startswith("import ") or line.startswith("from ") and " import" in line:
                inner = _Scan(self.filename)
                tree = inner._parse(line.rstrip("\\, ")) or inner._parse(line.partition(" import")[0] + " import *")     # of a list in ( )
                if tree is not None:
                    inner.walk(tree)
                    self.imports |= inner.imports

    def _scan_inside(self, node: Any, text: str, where: str) -> None:
        """Scan source text that the source at hand runs; its findings get the line of the call."""
        if self.depth >= MAX_SOURCES:
            return self._warn(node.lineno, "", "cannot be judged: source within source within source")
        inner = _Scan(self.filename)
        inner.aliases = dict(self.aliases)
        inner.line, inner.depth = self.line or node.lineno, self.depth + 1
        inner.prefix = "%s%s " % (self.prefix, where)
        inner.scan_source(text.replace(HOLE, "_").lstrip(" \t"))
        if HOLE in text and not inner.refused:
            self._warn(node.lineno, "", "runs source that is put together at run time")
        self.refused += inner.refused
        self.warned += [one for one in inner.warned if HOLE not in text]
        self.imports |= inner.imports

    def walk(self, tree: Any) -> None:
        """Visit every node once, with a stack of our own: depth is the source's choice, the stack's is not."""
        visit: Dict[str, Callable[[Any], None]] = {
            "Import": self._see_import, "ImportFrom": self._see_from, "Call": self._see_call, "Name": self._see_name,
            "Attribute": self._see_attribute, "Subscript": self._see_subscript, "arg": self._see_arg,
            "Assign": self._see_assign, "AnnAssign": self._see_value, "NamedExpr": self._see_value,
            "For": self._see_loop, "AsyncFor": self._see_loop, "comprehension": self._see_loop}
        fields: Dict[str, Tuple[str, ...]] = {"Constant": ()}
        stack = [tree]
        while stack:
            node = stack.pop()
            kind = type(node).__name__
            see = visit.get(kind)
            if see is not None:
                see(node)
            names = fields.get(kind)
            if names is None:
                names = fields[kind] = tuple(name for name in node._fields if name not in _BARE_FIELDS)
            for name in names:
                child = getattr(node, name, None)
                if type(child) is list:
                    stack.extend([one for one in child if hasattr(one, "_fields")])
                elif hasattr(child, "_fields"):
                    stack.append(child)

    # --- what the walk notes

    def _see_import(self, node: Any) -> None:
        for alias in node.names:
            self._note_import(node, alias.name, "")
            name = alias.name if alias.asname else alias.name.partition(".")[0]
            self._bind_alias(alias.asname or name, name)

    def _see_from(self, node: Any) -> None:
        module = "." * node.level + (node.module or "")
        if node.level:
            self.imports.update(module + ("." if node.module else "") + alias.name for alias in node.names)
            if node.module:
                self.imports.add(module)
            return
        self.imports.add(module)
        self.imports.update("%s.%s" % (module, alias.name) for alias in node.names)
        names = [alias.name for alias in node.names if alias.name != "*"]
        # Below a network module it is the module that is named, else the name may be one: `client` of `http`.
        for name in [module] if network_module(module) else [module] + ["%s.%s" % (module, one) for one in names]:
            if network_module(name):
                self._refuse(node, name, "imports the network module %s" % name)
            elif name in DOUBTFUL_MODULES or (name == module and name.partition(".")[0] in DOUBTFUL_MODULES):
                self._note_import(node, name, "")
        for alias in node.names:
            if alias.name == "*":
                self._bind_all(module)
            else:
                self._bind_alias(alias.asname or alias.name, "%s.%s" % (module, alias.name))

    def _bind_alias(self, name: str, target: str) -> None:
        self.stores[name] = self.stores.get(name, 0) + 1
        root, dot, rest = target.partition(".")
        if root in ROOTS:
            self.aliases[name] = "os" + dot + rest if root in ("posix", "nt") else target

    def _bind_all(self, module: str) -> None:
        for target in JUDGED:
            package, _, name = target.rpartition(".")
            if package == module:
                self.aliases.setdefault(name, target)

    def _see_call(self, node: Any) -> None:
        self.calls.append(node)

    def _see_name(self, node: Any) -> None:
        if type(node.ctx).__name__ == "Store":
            self.stores[node.id] = self.stores.get(node.id, 0) + 1

    def _see_arg(self, node: Any) -> None:
        self.stores[node.arg] = self.stores.get(node.arg, 0) + 1

    def _see_attribute(self, node: Any) -> None:
        if node.attr in LOADS:
            self.loads_by_hand = True

    def _see_subscript(self, node: Any) -> None:
        if type(node.ctx).__name__ == "Load":
            self.lookups.append(node)

    def _see_assign(self, node: Any) -> None:
        for target in node.targets:
            self._bind(target, node.value)

    def _see_value(self, node: Any) -> None:
        if node.value is not None:
            self._bind(node.target, node.value)

    def _bind(self, target: Any, value: Any) -> None:
        if type(target).__name__ == "Name":
            self.bound[target.id] = value
        elif hasattr(target, "elts") and hasattr(value, "elts") and len(target.elts) == len(value.elts):
            for one, part in zip(target.elts, value.elts):
                if type(one).__name__ == "Name":
                    self.bound[one.id] = part

    def _see_loop(self, node: Any) -> None:
        if type(node.target).__name__ == "Name":
            self.looped[node.target.id] = node.iter

    # --- calls

    def judge_calls(self) -> None:
        """Judge what the walk gathered: only now are all names of the file known."""
        for node in self.lookups:
            self._judge_lookup(node)
        for node in self.calls:
            self.steps = 0
            function = self._judged_function(node.func)
            if function:
                self._judge_call(function, node)
            for argument in node.args:
                if type(argument).__name__ in ("Name", "Attribute") and self._judged_function(argument) in IMPORTERS:
                    self._judge_given_importer(node, argument)

    def _judge_lookup(self, node: Any) -> None:
        """Judge sys.modules["name"]: it takes a module that something else has imported."""
        self.steps = 0
        if getattr(node.value, "attr", getattr(node.value, "id", "")) == "modules" and self.resolve(node.value) == "sys.modules":
            name = self._one_text(index_node(node))
            if name and network_module(name):
                self._refuse(node, name, "takes the network module %s from sys.modules" % name)

    def _judged_function(self, node: Any) -> str:
        """Return the resolved name of a function in JUDGED, else ""; most calls end at a look at their last name."""
        kind = type(node).__name__
        if kind == "Attribute" and node.attr not in LAST_NAMES:
            return ""
        if kind == "Name" and node.id not in self.aliases and node.id not in BUILTINS and node.id not in self.bound:
            return ""
        name = self.resolve(node)
        return name if name in JUDGED else ""

    def _judge_call(self, function: str, node: Any) -> None:
        if function in COMMANDS:
            self._judge_command(function, node)
        elif function in IMPORTERS:
            self._judge_import(function, node)
        elif function in FINDERS:
            self._judge_finder(node)
        else:
            self._judge_source(function, node)

    def _judge_import(self, function: str, node: Any) -> None:
        short = function.rpartition(".")[2]
        names = self.texts(_argument(node, 0, "name"))
        package = _argument(node, 1, "package")
        if not names:
            return self._warn(node.lineno, "", "imports a module whose name is computed (%s)" % short)
        for name in names:
            if name.startswith(".") and package is not None:
                name = _absolute(name, self._one_text(package))
            self._note_computed(node, name, short)
        for part in self._elements(_argument(node, 3, "fromlist"), 0) or [] if short == "__import__" else []:
            if not network_module(names[0]):
                self._note_computed(node, "%s.%s" % (names[0], part), short)

    def _note_computed(self, node: Any, name: str, how: str) -> None:
        """Judge a folded module name; of "urllib.HOLE" the part before the hole is judged."""
        known = name.partition(HOLE)[0]
        if HOLE in name and not network_module(known.rpartition(".")[0]):
            return self._warn(node.lineno, "", "imports a module whose name is computed (%s)" % how)
        name = known.rpartition(".")[0] if HOLE in name else name.partition(":")[0]
        if name.startswith("."):
            self.imports.add(name)
        elif name:
            self._note_import(node, name, " (by %s)" % how)

    def _judge_given_importer(self, node: Any, importer: Any) -> None:
        """Judge map(__import__, [...]), partial(import_module, "...") and their like: every constant may be a name."""
        names: List[str] = []
        for argument in node.args:
            if argument is not importer:
                names += self.texts(argument) or self._elements(argument, 0) or []
        for name in names:
            self._note_computed(node, name, "a function that imports")
        if not names:
            self._warn(node.lineno, "", "hands on a function that imports")

    def _judge_finder(self, node: Any) -> None:
        """Judge find_spec: by itself it only asks whether a module is there."""
        for name in self.texts(_argument(node, 0, "name")) or []:
            if HOLE not in name and network_module(name):
                if self.loads_by_hand:
                    self._refuse(node, name, "loads the network module %s (by find_spec)" % name)
                else:
                    self._warn(node.lineno, name, "looks for the network module %s" % name)

    def _judge_source(self, function: str, node: Any) -> None:
        short = function.rpartition(".")[2]
        given = _argument(node, 0, "source")
        texts = self.texts(given) if given is not None else []
        for text in texts or []:
            self._scan_inside(node, text, "in the source given to %s:" % short)
        is_compiled = type(given).__name__ == "Call" and self.resolve(given.func) == "builtins.compile"
        if not texts and short != "compile" and not is_compiled:
            self._warn(node.lineno, "", "runs source that is computed (%s)" % short)

    def _judge_command(self, function: str, node: Any) -> None:
        verdict = self._verdict(COMMANDS[function], node)
        if verdict == COMPUTED:
            self._warn(node.lineno, "", "starts a command that is computed (%s)" % function)
        else:
            self.note_command(node, verdict)

    def note_command(self, node: Any, verdict: Tuple[str, str]) -> None:
        """Refuse a command that was judged to use the network, or scan the source that it is given."""
        kind, what = verdict
        if kind == "tool":
            self._refuse(node, what.partition(" ")[0], "runs %s, which uses the network" % what)
        elif kind == "python":
            self._scan_inside(node, what, "in the source given to python -c:")
        elif kind == "module":
            if HOLE not in what and network_module(what):
                self._refuse(node, what, "runs python -m %s, a network module" % what)
        elif kind == "document":
            inner = scan(what.encode("utf-8", "replace"), self.filename)
            where = self.prefix + "in the source given to python: "
            self.refused += [Finding(node.lineno - 1 + line, module, where + clause) for line, module, clause in inner.refused]
            self.warned += [Finding(node.lineno - 1 + line, module, where + clause) for line, module, clause in inner.warned]

    def _verdict(self, form: str, node: Any) -> Tuple[str, str]:
        arguments = list(node.args)[1:] if form.startswith("mode+") else list(node.args)
        form = form.replace("mode+", "")
        if form.startswith("path+"):
            first = self._word(arguments[0]) if arguments else HOLE
            if form == "path+words":
                return judge_words([first] + [self._word(one) for one in arguments[2:]])
            return judge_words([first] + (self._argv(arguments[1]) or [])[1:] if len(arguments) > 1 else [first])
        named = [one for one in (_argument(node, None, name) for name in ("args", "cmd", "command")) if one is not None]
        command = (arguments + named + [None])[0]
        return COMPUTED if command is None else self._verdict_of_command(command, node)

    def _verdict_of_command(self, command: Any, node: Any) -> Tuple[str, str]:
        """Judge the command that subprocess and os.system take: a list of words, or a line."""
        argv = self._argv(command)
        if argv is not None:
            shell, executable = _argument(node, None, "shell"), _argument(node, None, "executable")
            if getattr(shell, "value", None) is True and argv:
                return judge_shell_text(argv[0])
            if executable is not None:
                argv[:1] = [self._word(executable)]
            return judge_words(argv) if argv else COMPUTED
        found = COMPUTED
        for text in self.texts(command) or []:      # a text is a command line: with a shell, and on Windows always
            verdict = judge_shell_text(text)
            if verdict[0] not in ("", "computed"):
                return verdict
            found = verdict
        return found


# === Small readers of nodes ===

def _absolute(name: str, package: Optional[str]) -> str:
    """Return what a relative name means in a package, as importlib resolves it; the name itself where that is not known."""
    rest = name.lstrip(".")
    above = len(name) - len(rest) - 1           # dots: one stands for the package, each further one for that which it lies in
    owners = package.split(".") if package else []
    return ".".join(owners[:len(owners) - above] + [rest]) if above < len(owners) else name


def _argument(node: Any, place: Optional[int], name: str) -> Any:
    """Return the node of a call's argument by place or keyword, or None."""
    if place is not None and place < len(node.args):
        return node.args[place]
    for keyword in node.keywords:
        if keyword.arg == name:
            return keyword.value
    return None


def _syntax_fault(source: Any, error: SyntaxError) -> Tuple[int, str]:
    """Return (line, text) of why source is not Python; bytes that are no UTF-8 are named as such."""
    told = str(error).lower()
    if isinstance(source, bytes) and ("codec" in told or "utf-8" in told or "unicode" in told):
        try:
            source.decode("utf-8")
        except UnicodeDecodeError as fault:
            line = source.count(b"\n", 0, fault.start) + 1
            return line, "line %d holds the byte 0x%02x, which is not text in the file's encoding" % (line, source[fault.start])
    line = error.lineno or 1
    return line, "line %d is no Python %s source: %s" % (line, _python_version(), error.msg)


def _python_version() -> str:
    import sys
    return "%d.%d" % sys.version_info[:2]
