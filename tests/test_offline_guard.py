"""The offline guard's scan: what it refuses, lets pass, and warns of.

The sources in the tables are composed: "@i" stands for the word that imports and "@f" for the one before a module's name,
so that a plain text search of the repository finds no network import.
"""
from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))
import offline_guard  # noqa: E402

Finding = offline_guard.Finding
HOLE = offline_guard.HOLE


def compose(text):
    return text.replace("@i", "imp" + "ort").replace("@f", "fr" + "om")


def scan(text):
    return offline_guard.scan(compose(text).encode("utf-8"), "bin/stage.py")


def places(findings):
    return [(one.line, one.module) for one in findings]


# === Refused: source, then (line, module) of all that is refused ===

REFUSED = [
    # plain imports
    ("@i socket", [(1, "socket")]),
    ("x = 1\n\n@i ssl as s", [(3, "ssl")]),
    ("@i os, socketserver, sys", [(1, "socketserver")]),
    ("@i urllib", [(1, "urllib")]),
    ("@i urllib.parse", [(1, "urllib.parse")]),
    ("@i urllib.request as r", [(1, "urllib.request")]),
    ("@f urllib @i parse", [(1, "urllib")]),
    ("@f urllib.parse @i quote", [(1, "urllib.parse")]),
    ("@i http.client", [(1, "http.client")]),
    ("@f http @i client", [(1, "http.client")]),
    ("@f http @i HTTPStatus, server as s", [(1, "http.server")]),
    ("@f http.client @i HTTPConnection", [(1, "http.client")]),
    ("@i requests", [(1, "requests")]),
    ("@f requests.adapters @i HTTPAdapter", [(1, "requests.adapters")]),
    ("@i httpx\n@i aiohttp\n@i urllib3", [(1, "httpx"), (2, "aiohttp"), (3, "urllib3")]),
    ("@i asyncio", [(1, "asyncio")]),
    ("@f asyncio @i run", [(1, "asyncio")]),
    ("@f asyncio.subprocess @i PIPE", [(1, "asyncio.subprocess")]),
    ("@i ftplib, smtplib, poplib", [(1, "ftplib"), (1, "poplib"), (1, "smtplib")]),
    ("@i imaplib\n@i nntplib\n@i telnetlib", [(1, "imaplib"), (2, "nntplib"), (3, "telnetlib")]),
    ("@f xmlrpc.client @i ServerProxy", [(1, "xmlrpc.client")]),
    ("@i webbrowser", [(1, "webbrowser")]),
    ("@f wsgiref @i simple_server", [(1, "wsgiref.simple_server")]),
    ("@i paramiko; @i boto3; @i botocore.session", [(1, "boto3"), (1, "botocore.session"), (1, "paramiko")]),
    ("@i websocket\n@i websockets\n@i grpc\n@i pycurl", [(1, "websocket"), (2, "websockets"), (3, "grpc"), (4, "pycurl")]),
    ("@i zmq\n@i redis\n@i pymongo\n@i psycopg2", [(1, "zmq"), (2, "redis"), (3, "pymongo"), (4, "psycopg2")]),
    ("@i mysql.connector\n@i tornado.web\n@i twisted", [(1, "mysql.connector"), (2, "tornado.web"), (3, "twisted")]),
    ("@f scapy.all @i *\n@i dns.resolver\n@i fabric\n@i pysftp", [
        (1, "scapy.all"), (2, "dns.resolver"), (3, "fabric"), (4, "pysftp")]),
    ("@f google @i cloud", [(1, "google.cloud")]),
    ("@f google.cloud @i storage", [(1, "google.cloud")]),
    ("@i _socket", [(1, "_socket")]),
    # places
    ("def f():\n    @i socket", [(2, "socket")]),
    ("try:\n    @i requests\nexcept ImportError:\n    requests = None", [(2, "requests")]),
    ("if 0:\n  class A:\n    async def g(self):\n      @i ssl", [(4, "ssl")]),
    ("@f os @i (\n  path)\n@i socket \\\n  as s", [(3, "socket")]),
    # functions that import
    ("__import__('socket')", [(1, "socket")]),
    ("m = __import__('http.client', fromlist=['x'])", [(1, "http.client")]),
    ("__import__('http', None, None, ['client'])", [(1, "http.client")]),
    ("__import__(name='ssl')", [(1, "ssl")]),
    ("@i importlib\nimportlib.import_module('socket')", [(2, "socket")]),
    ("@i importlib as il\nil.import_module(name='urllib.request')", [(2, "urllib.request")]),
    ("@f importlib @i import_module as load\n\nload('requests')", [(3, "requests")]),
    ("@f importlib @i *\nimport_module('ssl')", [(2, "ssl")]),
    ("@i importlib\nimportlib.import_module('.client', 'http')", [(2, "http.client")]),
    ("@i importlib\nimportlib.import_module('.request', package='urllib')", [(2, "urllib.request")]),
    ("load = __import__\nload('socket')", [(2, "socket")]),
    ("@i importlib\nf = importlib.import_module\ndef g():\n    return f('ssl')", [(4, "ssl")]),
    ("def g():\n    return load('ssl')\n@f importlib @i import_module as load", [(2, "ssl")]),
    ("@i builtins\nbuiltins.__import__('socket')", [(2, "socket")]),
    ("__builtins__.__import__('socket')", [(1, "socket")]),
    ("__builtins__.__dict__['__import__']('socket')", [(1, "socket")]),
    ("@i builtins\nvars(builtins)['__imp' + 'ort__']('socket')", [(2, "socket")]),
    ("@i importlib\ngetattr(importlib, 'import_' + 'module')('ssl')", [(2, "ssl")]),
    ("__import__('importlib').import_module('ssl')", [(1, "ssl")]),
    ("list(map(__import__, ['json', 'socket']))", [(1, "socket")]),
    ("@i functools, importlib\nf = functools.partial(importlib.import_module, 'ssl')", [(2, "ssl")]),
    ("for name in ('json', 'ssl'):\n    __import__(name)", [(2, "ssl")]),
    ("mods = [__import__(n) for n in 'json socket'.split()]", [(1, "socket")]),
    ("@i runpy\nrunpy.run_module('http.server')", [(2, "http.server")]),
    ("@i importlib.util\nspec = importlib.util.find_spec('ssl')\nm = importlib.util.module_from_spec(spec)", [(2, "ssl")]),
    ("@i sys\ns = sys.modules['socket']", [(2, "socket")]),
    # folded constants
    ("__import__('soc' + 'ket')", [(1, "socket")]),
    ("__import__('so' 'cket')", [(1, "socket")]),
    ("__import__(''.join(['s', 'ock', 'et']))", [(1, "socket")]),
    ("__import__('.'.join(('http', 'client')))", [(1, "http.client")]),
    ("__import__('tekcos'[::-1])", [(1, "socket")]),
    ("__import__(''.join(reversed('tekcos')))", [(1, "socket")]),
    ("__import__(f\"soc{'ket'}\")", [(1, "socket")]),
    ("part = 'ket'\n__import__(f'soc{part}')", [(2, "socket")]),
    ("name = 'ssl'\n__import__(name)", [(2, "ssl")]),
    ("a, b = 'soc', 'ket'\n__import__(a + b)", [(2, "socket")]),
    ("__import__('%s%s' % ('soc', 'ket'))", [(1, "socket")]),
    ("__import__('soc{}'.format('ket'))", [(1, "socket")]),
    ("__import__('SOCKET'.lower())", [(1, "socket")]),
    ("__import__('xsocketx'.strip('x'))", [(1, "socket")]),
    ("__import__('sxcket'.replace('x', 'o'))", [(1, "socket")]),
    ("__import__(b'socket'.decode())", [(1, "socket")]),
    ("__import__(chr(115) + 'sl')", [(1, "ssl")]),
    ("__import__(['json', 'ssl'][1])", [(1, "ssl")]),
    ("__import__('ssl' if x else 'json')", [(1, "ssl")]),
    ("@i base64\n__import__(base64.b64decode('c29ja2V0').decode())", [(2, "socket")]),
    ("__import__('urllib.' + tail)", [(1, "urllib")]),
    # source inside source
    ("exec('@i socket')", [(1, "socket")]),
    ("\nexec('x = 1\\n@i ' + 'ssl')", [(2, "ssl")]),
    ("eval(\" __import__('socket')\")", [(1, "socket")]),
    ("exec(compile('@i socket', 'x', 'exec'))", [(1, "socket")]),
    ("source = '@i ssl'\nexec(source)", [(2, "ssl")]),
    ("exec(\"exec('@i ssl')\")", [(1, "ssl")]),
    ("exec(f'@i socket as {name}')", [(1, "socket")]),
    ("@i importlib as il\nexec(\"il.import_module('ssl')\")", [(2, "ssl")]),
    # commands
    ("__import__('os.path').system('curl x')", [(1, "curl")]),
    ("@i subprocess\nsubprocess.run(['curl', '-O', url])", [(2, "curl")]),
    ("@i subprocess as sp\nsp.Popen(args=('/usr/bin/wget', 'x'))", [(2, "wget")]),
    ("@f subprocess @i check_output as co\nco(['ssh', host, 'ls'])", [(2, "ssh")]),
    ("@i subprocess\nsubprocess.call('scp a b:c', shell=True)", [(2, "scp")]),
    ("@i subprocess\nsubprocess.getoutput(f'sftp {host}')", [(2, "sftp")]),
    ("@i subprocess\ncmd = ['nc', '-l', '80']\nsubprocess.check_call(cmd)", [(3, "nc")]),
    ("@i subprocess\nsubprocess.run(['C:\\\\Windows\\\\System32\\\\CURL.EXE', 'x'])", [(2, "curl")]),
    ("@i subprocess\nsubprocess.run(['ls; curl x'], shell=True)", [(2, "curl")]),
    ("@i subprocess\nsubprocess.run(['x', 'y'], executable='curl')", [(2, "curl")]),
    ("@i subprocess\nsubprocess.run('curl -s x'.split())", [(2, "curl")]),
    ("@i subprocess, shlex\nsubprocess.run(shlex.split('curl -s x'))", [(2, "curl")]),
    ("@i subprocess\nsubprocess.run(['curl'] + options)", [(2, "curl")]),
    ("@i os\nos.system('ls | ncat host 80')", [(2, "ncat")]),
    ("@i os\nos.popen('telnet %s' % host)", [(2, "telnet")]),
    ("@f os @i system\nsystem('cd x && ftp host')", [(2, "ftp")]),
    ("@f os @i *\nsystem('curl x')", [(2, "curl")]),
    ("@i os\nos.execvp('curl', ['curl', 'x'])", [(2, "curl")]),
    ("@i os\nos.execlp('env', 'env', 'A=b', 'wget', 'x')", [(2, "wget")]),
    ("@i os\nos.spawnlp(os.P_WAIT, 'ssh', 'ssh', 'host')", [(2, "ssh")]),
    ("@i os\nos.spawnv(os.P_WAIT, '/usr/bin/nc', ['nc', 'h'])", [(2, "nc")]),
    ("@i os\nos.posix_spawn('/usr/bin/curl', ['curl'], {})", [(2, "curl")]),
    ("@i subprocess\nsubprocess.run(['rsync', '-a', 'data/', 'host:data/'])", [(2, "rsync")]),
    ("@i subprocess\nsubprocess.run(['rsync', 'rsync://h/m', '.'])", [(2, "rsync")]),
    ("@i subprocess\nsubprocess.run(['git', '-C', 'x', 'clone', url])", [(2, "git")]),
    ("@i os\nos.system('git fetch; git status')", [(2, "git")]),
    ("@i os\nos.system('git -c a=b pull')\nos.system('git push')", [(2, "git"), (3, "git")]),
    ("@i subprocess\nsubprocess.run(['bash', '-c', 'echo a; curl x'])", [(2, "curl")]),
    ("@i subprocess\nsubprocess.run(['/bin/sh', '-ec', 'x=$(wget -q y)'])", [(2, "wget")]),
    ("@i subprocess\nsubprocess.run(['env', '-u', 'A', 'B=c', 'sh', '-c', 'curl x'])", [(2, "curl")]),
    ("@i subprocess\nsubprocess.run(['sudo', '-u', 'me', 'timeout', '5', 'ssh', 'h'])", [(2, "ssh")]),
    ("@i subprocess\nsubprocess.run(['cmd', '/c', 'curl', 'x'])", [(2, "curl")]),
    ("@i subprocess\nsubprocess.run(['powershell', '-Command', 'Invoke-WebRequest x'])", [(2, "invoke-webrequest")]),
    ("@i os\nos.system('find . -exec curl {} +')", [(2, "curl")]),
    ("@i os\nos.system('cat list | xargs -n 1 wget')", [(2, "wget")]),
    ("@i os\nos.system('if true; then curl x; fi')", [(2, "curl")]),
    ("@i os\nos.system('echo \"now $(curl x)\"')", [(2, "curl")]),
    ("@i os\nos.system('echo `curl x`')", [(2, "curl")]),
    ("@i os\nos.system('A=b curl x')", [(2, "curl")]),
    ("@i os\nos.system('exec 3<>/dev/tcp/host/80')", [(2, "/dev/tcp")]),
    ("@i subprocess\nsubprocess.run(['bash', '-c', 'cat </dev/udp/h/1'])", [(2, "/dev/tcp")]),
    ("@i subprocess, sys\nsubprocess.run([sys.executable, '-c', '@i socket'])", [(2, "socket")]),
    ("@i subprocess, sys\nsubprocess.run([sys.executable, '-m', 'http.server'])", [(2, "http.server")]),
]


@pytest.mark.parametrize("text,expected", REFUSED, ids=[row[0][:60] for row in REFUSED])
def test_refused(text, expected):
    result = scan(text)
    assert sorted(places(result.refused)) == expected
    assert all(one.what for one in result.refused)


# === Allowed: nothing refused, and nothing warned of ===

ALLOWED = [
    "@i os, sys, json, re",
    "@i http",
    "@i http.cookies",
    "@f http @i HTTPStatus",
    "@f http @i cookies, HTTPStatus",
    "@i multiprocessing",
    "@f multiprocessing @i Pool, shared_memory",
    "@i concurrent.futures",
    "@f concurrent @i futures",
    "@i importlib, importlib.util",
    "@i google",
    "@f google.protobuf @i message",
    "@i socketio_like, sslx, requestsx",
    "@f . @i socket",
    "@f .socket @i x",
    "@f ..ssl @i y",
    "@i mypackage.socket",
    "# @i socket\nx = 1",
    "'''@i socket'''\nx = '@i requests'",
    "def f():\n    \"\"\"@f urllib @i parse\"\"\"",
    "__import__('json')",
    "load = __import__\ndef f(load):\n    return load('socket')",
    "@i importlib\nimportlib.import_module('xml.' + 'dom')",
    "@i importlib\nimportlib.import_module('.socket', 'mypackage')",
    "exec('x = 1')",
    "eval('1 + 1')",
    "print('curl http://x')",
    "x = ['curl', 'wget']",
    "@i re\nre.compile('@i socket')",
    "self.run(['curl'])",
    "def run(x):\n    pass\nrun(['curl'])",
    "@i subprocess\nsubprocess.run(['ls', 'curl'])",
    "@i subprocess\nsubprocess.run(['echo', 'git clone'])",
    "@i subprocess\nsubprocess.run(['git', 'status'])",
    "@i subprocess\nsubprocess.run(['git', 'log', 'fetch'])",
    "@i subprocess\nsubprocess.run(['rsync', '-a', 'a/', '/b/c:d'])",
    "@i subprocess\nsubprocess.run(['rsync', 'C:\\\\x', 'y'])",
    "@i os\nos.system('echo \"; curl x\"')",
    "@i os\nos.system('echo $(date) curl x')",
    "@i os\nos.system('ls # ; curl x\\nls')",
    "@i subprocess\nsubprocess.run(['bash', 'script.sh', '-c', 'curl'])",
    "@i subprocess, sys\nsubprocess.run([sys.executable, 'bin/x.py', '-m', 'http.server'])",
    "@i subprocess, sys\nsubprocess.run([sys.executable, '-m', 'json.tool'])",
    "@i os\nos.execv('/bin/ls', ['curl'])",
    "@i sys\nif 'socket' in sys.modules:\n    pass",
    "@i sys\nsys.modules['socket'] = None",
    "name = 'socket'\nprint(name)",
    "socket = 1\nsocket.connect()",
    "x = 1",
    "",
    "\ufeffx = 1",
]


@pytest.mark.parametrize("text", ALLOWED, ids=[row[:60] or "empty" for row in ALLOWED])
def test_allowed(text):
    result = scan(text)
    assert (result.refused, result.warned) == ((), ())


# === Warned of: source, line, a part of the message; nothing refused ===

WARNED = [
    ("x = 1\n@i ctypes", 2, "ctypes"),
    ("@f ctypes @i util", 1, "ctypes"),
    ("@i ctypes.util", 1, "ctypes"),
    ("@i cffi", 1, "cffi"),
    ("__import__('ctypes')", 1, "ctypes"),
    ("@i multiprocessing.connection", 1, "multiprocessing.connection"),
    ("@f multiprocessing @i managers", 1, "multiprocessing.managers"),
    ("@f multiprocessing.managers @i BaseManager", 1, "multiprocessing.managers"),
    ("def f(name):\n    return __import__(name)", 2, "computed"),
    ("@i importlib\nimportlib.import_module(name())", 2, "computed"),
    ("@i importlib\nimportlib.import_module('plugins.' + name)", 2, "computed"),
    ("name = 'socket'\ndef f(name):\n    __import__(name)", 3, "computed"),
    ("f = sorted(names, key=__import__)\nmap(__import__, names)", 2, "function that imports"),
    ("@i subprocess\nsubprocess.run(command)", 2, "computed"),
    ("@i subprocess\nsubprocess.run([tool, 'x'])", 2, "computed"),
    ("@i subprocess\nsubprocess.run(['env', tool])", 2, "computed"),
    ("@i subprocess\nsubprocess.run(['sh', '-c', text])", 2, "computed"),
    ("@i subprocess\nsubprocess.run()", 2, "computed"),
    ("@i os\nos.system(line)", 2, "computed"),
    ("@i os\nos.execv(path, [path])", 2, "computed"),
    ("exec(text)", 1, "computed"),
    ("eval(open(x).read())", 1, "computed"),
    ("exec(f'x = {y}')", 1, "run time"),
    ("exec('a b')", 1, "cannot be judged"),
    ("@i importlib.util\nif importlib.util.find_spec('requests'):\n    pass", 2, "looks for"),
    ("x = 1\ny = = 2", 2, "line 2"),
    ("if x:\npass", 2, "cannot be judged"),
    ("x = 1\0", 1, "cannot be judged"),
    ("# coding: nonsense\nx = 1", 1, "nonsense"),
    ("(" * 5000, 1, "cannot be judged"),
    ("-" * 200000 + "1", 1, "nested too deep"),
]


@pytest.mark.parametrize("text,line,part", WARNED, ids=[row[0][:60] for row in WARNED])
def test_warned(text, line, part):
    result = scan(text)
    assert result.refused == ()
    assert [(one.line, part in one.what) for one in result.warned] == [(line, True)]


def test_the_tables_are_as_long_as_promised():
    assert len(REFUSED) >= 60 and len(ALLOWED) >= 30 and len(WARNED) >= 15


# === Encodings ===

def test_bytes_that_are_no_utf8_are_a_warning_with_their_line():
    result = offline_guard.scan(b"x = 1\n\ny = '\xe9'\n", "x.py")
    assert result.refused == () and places(result.warned) == [(3, "")]
    assert "0xe9" in result.warned[0].what


def test_a_coding_cookie_and_a_byte_order_mark_are_respected():
    source = compose("# -*- coding: latin-1 -*-\ny = '\u00e9'\n@i socket\n").encode("latin-1")
    assert places(offline_guard.scan(source, "x.py").refused) == [(3, "socket")]
    source = b"\xef\xbb\xbf" + compose("y = '\u00e9'\n@i socket\n").encode("utf-8")
    assert places(offline_guard.scan(source, "x.py").refused) == [(2, "socket")]


def test_a_coding_that_hides_the_source_is_seen_through():
    source = b"# coding: utf-7\n" + compose("@i socket\n").encode("utf-7").replace(b"socket", b"+AHM-ocket")
    assert places(offline_guard.scan(source, "x.py").refused) == [(2, "socket")]


def test_all_line_ends_count():
    source = compose("x = 1\r\n\r\n@i socket\r@i ssl\n").encode()
    assert places(offline_guard.scan(source, "x.py").refused) == [(3, "socket"), (4, "ssl")]


def test_warnings_of_the_parser_do_not_reach_stderr():
    code = "import sys; sys.path.insert(0, sys.argv[1]); import offline_guard; "
    code += "offline_guard.scan(b\"x = '\\\\d'\\n1 is 1\", 'x.py')"
    done = subprocess.run([sys.executable, "-W", "always", "-c", code, str(ROOT / "src")],
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


# === Hostile sources: bounded, and no exception ===

@pytest.mark.parametrize("text", [
    "x" + ".a" * 20000, "f" + "()" * 20000, "x" + "[0]" * 20000,
    "if 1: pass\n" + "elif 1: pass\n" * 5000, "lambda:" * 5000 + "1",
    "\n".join("x%d = x%d + x%d" % (n, n + 1, n + 1) for n in range(200)) + "\n__import__(x0)",
    "a = a\nb = c\nc = b\n__import__(a)\n__import__(b)\nb('x')\nc.run(a)",
    "a = 'y' * 9\nb = '" + "y" * 90000 + "'\n__import__(b.join([" + "b," * 10000 + "]))",
    "__import__('{:>999999999}'.format('x'))\n__import__('%999999999d' % 1)\n__import__('x' * 10**10)",
    "__import__('abc'[::0])\n__import__('abc'[9])\n__import__(chr(-1))\n__import__(chr(1114112))",
    "__import__()\nexec()\neval(*x)\ncompile()\n''.join()\n''.replace('a')",
    "__import__(''.join())\n__import__('{9} {'.format())",
    "import subprocess, os\nsubprocess.run(**x)\nos.system()\nos.execl()\nos.spawnv()\nos.execv('x')",
    "import subprocess\nsubprocess.run([])\nsubprocess.run('')",
    "import base64\n__import__(base64.b64decode('?'))\n__import__(bytes.fromhex('zz'))\n__import__('')\n__import__('..')",
], ids=lambda text: text[:30])
def test_a_hostile_source_is_judged_or_warned_of(text):
    result = scan(text)
    assert result.refused == ()
    json.dumps(result.to_json(), ensure_ascii=False).encode("utf-8")


def test_a_long_chain_of_constants_is_folded():
    assert places(scan("__import__(" + " + ".join("'%s'" % letter for letter in "socket." + "x" * 150) + ")").refused) == [
        (1, "socket." + "x" * 150)]


def test_source_in_source_has_an_end():
    text = "pass"
    for _ in range(6):
        text = "exec(%r)" % text
    result = scan(text)
    assert result.refused == () and "source within source" in result.warned[0].what


def test_what_a_deep_source_refuses_before_the_parser_gives_up_is_not_needed():
    """A file that cannot be parsed cannot be run either; but its shallow neighbours are judged as ever."""
    assert places(scan("x = " + "[" * 80 + "]" * 80 + "\n@i socket").refused) == [(2, "socket")]


# === Imports, for finding local modules ===

def test_imports_are_named_absolutely_and_relatively():
    result = scan("@i a.b as c, d\n@f e.f @i g, h as i\n@f . @i j\n@f .k @i l\n@f .. @i m\n@f n @i *\n__import__('o.p')\n"
                  "@f .q @i *\n@i importlib\nimportlib.import_module('.r', __package__)")
    assert result.imports == tuple(sorted([
        "a.b", "d", "e.f", "e.f.g", "e.f.h", ".j", ".k", ".k.l", "..m", "n", "o.p", ".q", ".r", "importlib"]))


def test_names_that_are_no_identifiers_are_not_imports():
    assert scan("__import__('../x')\n__import__('\\ud800')\n__import__('a b')\n__import__('ok')").imports == ("ok",)


# === Results ===

def test_a_result_survives_json():
    result = scan("@i socket, ctypes, helper\n__import__(x)")
    value = json.loads(json.dumps(result.to_json()))
    assert value == {"refused": [[1, "socket", "imports the network module socket"]],
                     "warned": [[1, "ctypes", "imports ctypes, which can call what this scan does not see"],
                                [2, "", "imports a module whose name is computed (__import__)"]],
                     "imports": ["ctypes", "helper", "socket"]}
    assert offline_guard.ScanResult.from_json(dict(value, further=1)) == result
    assert isinstance(offline_guard.SCAN_VERSION, int)


def test_findings_are_printable_whatever_the_source():
    result = scan("@i os\nos.system('x\\x1b[31m; git\\x07 clone')\n__import__('urllib.\\ud800')\n__import__('urllib.' + 'x' * 1)")
    for one in result.refused + result.warned:
        assert one.what.isprintable() and len(one.what) < 300
        one.what.encode("utf-8")


@pytest.mark.parametrize("allow,left", [
    ([], ["asyncio.tasks", "http.client", "curl"]), (["asyncio"], ["http.client", "curl"]),
    (["asyncio.tasks", "http"], ["curl"]), (["http.client", "curl", "asyncio"], []),
    (["async", "http.clien", "tasks", "asyncio.tasks.x"], ["asyncio.tasks", "http.client", "curl"])])
def test_allow_lets_through_a_module_or_its_package(allow, left):
    result = scan("@i asyncio.tasks\n@i http.client\n@i os\nos.system('curl x')")
    assert [one.module for one in offline_guard.refusals(result, allow)] == left
    assert all(isinstance(one, Finding) for one in offline_guard.refusals(result, allow))


def test_findings_stand_once_and_in_the_order_of_lines():
    result = scan("def f():\n    __import__('ssl')\n@i socket; @i socket\nclass A:\n    @i ssl")
    assert places(result.refused) == [(2, "ssl"), (3, "socket"), (5, "ssl")]


# === Shell text ===

@pytest.mark.parametrize("text,commands", [
    ("a b  c", [["a", "b", "c"]]), ("a;b&&c||d|e&f\ng", [[one] for one in "abcdefg"]), ("", []), ("a ''", [["a", ""]]),
    ("a 'b c' \"d;e\"", [["a", "b c", "d;e"]]), ("a\\ b c\\;d", [["a b", "c;d"]]), ("a \"b\\\"c\\d\"", [["a", "b\"c\\d"]]),
    ("a 'b", [["a", "b"]]), ("a \\\n b", [["a", "", "b"]]), ("a # b; c\nd", [["a"], ["d"]]), ("a#b", [["a#b"]]),
    ("(a; b) c", [["a"], ["b"], ["c"]]), ("a $(b c) d", [["a", HOLE, "d"], ["b", "c"]]), ("a $(b", [["a", HOLE], ["b"]]),
    ("a \"x $(b 'c)') y\" z", [["a", "x " + HOLE + " y", "z"], ["b", "c)"]]), ("a `b` c", [["a", HOLE, "c"], ["b"]]),
    ("a \"`b c` d\"", [["a", HOLE + " d"], ["b", "c"]]), ("a)b`", [["a"], ["b" + HOLE]]),
    ("a $(b (c; d) e) f", [["a", HOLE, "f"], ["b"], ["c"], ["d"], ["e"]]), ("$((1+2)) a", [[HOLE, "a"], ["1+2"]])])
def test_shell_text_is_split_into_commands(text, commands):
    assert offline_guard.shell_commands(text) == commands


# === The repository itself ===

def own_sources():
    """Return the Python files of the repository, without what git ignores beside them (virtual environments, caches)."""
    found = []
    left_out = ("__pycache__", "state", "locks", "data")
    for folder, names, files in os.walk(str(ROOT)):
        names[:] = sorted(name for name in names if not name.startswith(".") and name not in left_out)
        found += [Path(folder, name) for name in sorted(files) if name.endswith(".py")]
    return found


def test_the_repository_s_own_programs_use_no_network():
    programs = [path for path in own_sources() if path.parent in (ROOT / "src", ROOT / "bin")]
    assert len(programs) >= 4
    for path in programs:
        result = offline_guard.scan(path.read_bytes(), str(path))
        assert (path.name, result.refused) == (path.name, ())
        assert not [one for one in result.warned if "cannot be judged" in one.what]


def test_a_plain_text_search_finds_no_network_import():
    modules = ["socket", "requests", "urllib", r"http\.client", "asyncio", "aiohttp", "urllib3"]
    pattern = re.compile("(%s) (%s)\\b" % ("|".join(["imp" + "ort", "fr" + "om"]), "|".join(modules)))
    assert pattern.search(compose("@i socket")) and pattern.search(compose("@f http.client @i x"))
    found = ["%s: %s" % (path, match.group()) for path in own_sources()
             for match in pattern.finditer(path.read_text(encoding="utf-8"))]
    assert found == []


def test_the_guard_stays_a_cheap_leaf():
    """Importing it and scanning loads neither ast nor any sibling: a run in which nothing changed must start fast."""
    code = """
import sys
sys.path.insert(0, sys.argv[1])
before = set(sys.modules)
import offline_guard
offline_guard.scan(b"x = 1", "x.py")
new = set(sys.modules) - before
print(sorted(new & {"ast", "typing", "pathlib", "dataclasses", "re", "tokenize", "inspect"}))
print(sorted(name for name in new if (getattr(sys.modules[name], "__file__", None) or "").startswith(sys.argv[1])))
"""
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code, str(ROOT / "src")],
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert (done.stdout.decode().split(), done.stderr) == (["[]", "['offline_guard']"], b"")
