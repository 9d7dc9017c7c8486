"""The offline guard's scan: what it refuses, lets pass, and warns of.

The sources in the tables are composed: "@i" stands for the word that imports and "@f" for the one before a module's name,
so that a plain text search of the repository finds no network import.
"""
from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))
import file_digests  # noqa: E402
import import_scan  # noqa: E402
import program_scan  # noqa: E402
import scan_shell  # noqa: E402

Finding = import_scan.Finding
HOLE = import_scan.HOLE


def compose(text):
    return text.replace("@i", "imp" + "ort").replace("@f", "fr" + "om")


def scan(text):
    return import_scan.scan(compose(text).encode("utf-8"), "bin/stage.py")


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
    assert len(SCRIPTS_REFUSED) >= 60 and len(SCRIPTS_ALLOWED) >= 30
    assert len(REFUSED) >= 60 and len(ALLOWED) >= 30 and len(WARNED) >= 15


# === Encodings ===

def test_bytes_that_are_no_utf8_are_a_warning_with_their_line():
    result = import_scan.scan(b"x = 1\n\ny = '\xe9'\n", "x.py")
    assert result.refused == () and places(result.warned) == [(3, "")]
    assert "0xe9" in result.warned[0].what


def test_a_coding_cookie_and_a_byte_order_mark_are_respected():
    source = compose("# -*- coding: latin-1 -*-\ny = '\u00e9'\n@i socket\n").encode("latin-1")
    assert places(import_scan.scan(source, "x.py").refused) == [(3, "socket")]
    source = b"\xef\xbb\xbf" + compose("y = '\u00e9'\n@i socket\n").encode("utf-8")
    assert places(import_scan.scan(source, "x.py").refused) == [(2, "socket")]


def test_a_coding_that_hides_the_source_is_seen_through():
    source = b"# coding: utf-7\n" + compose("@i socket\n").encode("utf-7").replace(b"socket", b"+AHM-ocket")
    assert places(import_scan.scan(source, "x.py").refused) == [(2, "socket")]


def test_all_line_ends_count():
    source = compose("x = 1\r\n\r\n@i socket\r@i ssl\n").encode()
    assert places(import_scan.scan(source, "x.py").refused) == [(3, "socket"), (4, "ssl")]


def test_warnings_of_the_parser_do_not_reach_stderr():
    code = "import sys; sys.path.insert(0, sys.argv[1]); import import_scan; "
    code += "import_scan.scan(b\"x = '\\\\d'\\n1 is 1\", 'x.py')"
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
        "a.b", "d", "e.f", "e.f.g", "e.f.h", ".j", ".k", ".k.l", "..m", "n", "n.*", "o.p", ".q", ".q.*", ".r", "importlib"]))


def test_computed_names_are_imports_if_a_file_may_be_called_so():
    assert scan("__import__('../x')\n__import__('\\ud800')\n__import__('a..b')\n__import__('a\\n')\n__import__('ok')").imports == ("ok",)
    assert scan("__import__('01_load')\n__import__('my-mod.a b')").imports == ("01_load", "my-mod.a b")


@pytest.mark.parametrize("given, name", [
    ("'.b', 'pkg.sub'", "pkg.sub.b"), ("'..b', 'pkg.sub'", "pkg.b"), ("'...b.c', package='pkg.sub.x'", "pkg.b.c"), ("'..b', __package__", "..b"),
    ("'..b', 'pkg'", "..b")])       # beyond the top: Python refuses that
def test_a_relative_name_is_resolved_in_the_package_that_is_given(given, name):
    assert scan("@i importlib\nimportlib.import_module(%s)" % given).imports == tuple(sorted([name, "importlib"]))


def test_a_module_whose_name_is_no_identifier_is_in_the_key_and_is_scanned(project):
    project.write("tools/01_load.py", "WORD = 'one'\n")
    project.write("tools/p.py", "import importlib, os\nWORD = importlib.import_module('01_load').WORD\nopen(os.environ['PIPELINE_OUTPUT_DIR'] + '/o', 'w').write(WORD)\n")
    project.spec({"processor": "tools/p.py"})
    project.ok()
    assert [path for path, _ in project.json("state/stage_s1.json")["keyParts"]["modules"]] == ["tools/01_load.py"]
    project.write("tools/01_load.py", compose("@i socket\n"))
    done = project.run()
    assert done.code == 6 and "[OFFLINE] tools/01_load.py:1: " in done.err, done


def test_what_source_for_another_python_imports_is_found_line_by_line():
    """It goes into the key, though it is not judged: of such source it is not known what is a string."""
    result = scan("@i tables, a.b  # x\nif 1:\n    @f c @i (\n        d)\n@f . @i e, \\\n    f\nno python here\n@i it y\n@f it\n@i socket\n")
    assert result.imports == ("." + "e", "a.b", "c", "c.*", "socket", "tables") and result.refused == ()
    assert places(result.warned) == [(7, "")] and "cannot be judged" in result.warned[0].what


# === Results ===

def test_a_result_survives_json():
    result = scan("@i socket, ctypes, helper\n__import__(x)")
    value = json.loads(json.dumps(result.to_json()))
    assert value == {"refused": [[1, "socket", "imports the network module socket"]],
                     "warned": [[1, "ctypes", "imports ctypes, which can call what this scan does not see"],
                                [2, "", "imports a module whose name is computed (__import__)"]],
                     "imports": ["ctypes", "helper", "socket"]}
    assert import_scan.ScanResult.from_json(dict(value, further=1)) == result


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
    assert [one.module for one in import_scan.refusals(result, allow)] == left
    assert all(isinstance(one, Finding) for one in import_scan.refusals(result, allow))


def test_findings_stand_once_and_in_the_order_of_lines():
    result = scan("def f():\n    __import__('ssl')\n@i socket; @i socket\nclass A:\n    @i ssl")
    assert places(result.refused) == [(2, "ssl"), (3, "socket"), (5, "ssl")]


# === Shell text ===

@pytest.mark.parametrize("text,commands", [
    ("a b  c", [["a", "b", "c"]]), ("a;b&&c||d|e&f\ng", [[one] for one in "abcdefg"]), ("", []), ("a ''", [["a", ""]]),
    ("a 'b c' \"d;e\"", [["a", "b c", "d;e"]]), ("a\\ b c\\;d", [["a b", "c;d"]]), ("a \"b\\\"c\\d\"", [["a", "b\"c\\d"]]),
    ("a 'b", [["a", "b"]]), ("a \\\n b", [["a", "b"]]), ("a # b; c\nd", [["a"], ["d"]]), ("a#b", [["a#b"]]),
    ("(a; b) c", [["a"], ["b"], ["c"]]), ("a $(b c) d", [["a", HOLE, "d"], ["b", "c"]]), ("a $(b", [["a", HOLE], ["b"]]),
    ("a \"x $(b 'c)') y\" z", [["a", "x " + HOLE + " y", "z"], ["b", "c)"]]), ("a `b` c", [["a", HOLE, "c"], ["b"]]),
    ("a \"`b c` d\"", [["a", HOLE + " d"], ["b", "c"]]), ("a)b`", [["a"], ["b" + HOLE]]),
    ("a $(b (c; d) e) f", [["a", HOLE, "f"], ["b"], ["c"], ["d"], ["e"]]), ("$((1+2)) a", [[HOLE, "a"]])])
def test_shell_text_is_split_into_commands(text, commands):
    assert scan_shell.shell_commands(text) == commands


# === Other programs: a file's name, its text, and (line, module) of all that is refused ===

def scan_program(name, text):
    return import_scan.scan_program(compose(text).encode("utf-8"), "bin/" + name)


SCRIPTS_REFUSED = [
    # commands of a shell
    ("x.sh", "curl -s x", [(1, "curl")]),
    ("x.sh", "#!/bin/sh\nset -e\n\n  wget x > y 2>&1\n", [(4, "wget")]),
    ("x.sh", "a; b && ssh h ls || true\nnc -l 1 | cat &\n", [(1, "ssh"), (2, "nc")]),
    ("x.sh", "if ! scp a h:b; then\n  sftp h\nfi", [(1, "scp"), (2, "sftp")]),
    ("x.sh", "while ping -c1 h; do sleep 1; done", [(1, "ping")]),
    ("x.sh", "for h in a b; do\n  telnet $h\ndone\n", [(2, "telnet")]),
    ("x.sh", "for ((i=0; i<3; i++)); do curl $i; done", [(1, "curl")]),
    ("x.sh", "case $1 in\n  a) curl x ;;\n  b|c) : ;;\n  (*) wget x\nesac\nssh h", [(2, "curl"), (4, "wget"), (6, "ssh")]),
    ("x.sh", "case a in a) case b in b) curl x;; esac;; c) wget y;; esac; ssh z", [(1, "curl"), (1, "ssh"), (1, "wget")]),
    ("x.sh", "f() {\n  curl x\n}\nf", [(2, "curl")]),
    ("x.sh", "function f { wget x; }", [(1, "wget")]),
    ("x.sh", "{ curl x; }\n( wget y )\n", [(1, "curl"), (2, "wget")]),
    ("x.sh", "x=$(curl y)\necho \"at `wget z`\"\n", [(1, "curl"), (2, "wget")]),
    ("x.sh", "echo \"${x:-$(curl y)}\" $((1 + $(wget z)))", [(1, "curl"), (1, "wget")]),
    ("x.sh", "while read a; do :; done < <(curl x)\ntee >(nc h 1) <y", [(1, "curl"), (2, "nc")]),
    ("x.sh", "A=b C='d e' curl x", [(1, "curl")]),
    ("x.sh", "\\curl x\n\"wget\" y\n'ssh' z\n/usr/bin/scp a b:c", [(1, "curl"), (2, "wget"), (3, "ssh"), (4, "scp")]),
    ("x.sh", "2>/dev/null curl x\n>log wget y", [(1, "curl"), (2, "wget")]),
    ("x.sh", "echo a \\\n  b; curl \\\n  x\n\nwget y", [(2, "curl"), (5, "wget")]),
    ("x.sh", "echo 'a\nb\nc'; curl x", [(3, "curl")]),
    ("x.sh", "ls\r\ncurl x\r\n", [(2, "curl")]),
    ("x.sh", "trap 'curl x' EXIT", [(1, "curl")]),
    ("x.sh", "coproc nc h 1", [(1, "nc")]),
    ("x.sh", "[[ -f x && -f y ]] && curl x", [(1, "curl")]),
    ("x.sh", "(( n > 1 )) && curl x", [(1, "curl")]),
    ("x.sh", "a=(b c) # d\ncurl x", [(2, "curl")]),
    # behind others
    ("x.sh", "env -u A B=c curl x\nsudo -u me wget y\ntimeout 5 ssh h", [(1, "curl"), (2, "wget"), (3, "ssh")]),
    ("x.sh", "exec curl x\nnohup nc h &\ncommand wget y", [(1, "curl"), (2, "nc"), (3, "wget")]),
    ("x.sh", "bash -c 'a; curl x'\n/bin/sh -ec \"wget $x\"", [(1, "curl"), (2, "wget")]),
    ("x.sh", "eval \"curl $x\"\nxargs -n1 curl <a\nfind . -exec wget {} \\;", [(1, "curl"), (2, "curl"), (3, "wget")]),
    ("x.sh", "busybox wget x\nnice -n 5 time curl y\nwatch -n 2 curl z", [(1, "wget"), (2, "curl"), (3, "curl")]),
    ("x.sh", "TOOL=/usr/bin/curl\n$TOOL x\nsudo \"${TOOL}\" x", [(2, "curl"), (3, "curl")]),
    ("x.sh", "curl() { :; }\ncommand curl x\nenv curl y", [(2, "curl"), (3, "curl")]),
    # other ways out
    ("x.sh", "git clone https://h/x\ngit -C y fetch\ngit push", [(1, "git"), (2, "git"), (3, "git")]),
    ("x.sh", "git clone git@h:x\ngit clone $URL /tmp/x", [(1, "git"), (2, "git")]),
    ("x.sh", "rsync -a x/ host:y/\n!(rsync x host:y)", [(1, "rsync"), (2, "rsync")]),
    ("x.sh", "exec 3<>/dev/tcp/h/80\ncat < /dev/udp/h/1\necho x > \"/dev/tcp/$h/1\"", [(1, "/dev/tcp"), (2, "/dev/tcp"), (3, "/dev/tcp")]),
    ("x.sh", "python3 -c '@i socket'\npython -m http.server\npython3 -c \"x = $y\n@i ssl\"", [(1, "socket"), (2, "http.server"), (3, "ssl")]),
    # here-documents: only what is run
    ("x.sh", "cat <<EOF\na $(curl x) b\nEOF\nwget y", [(1 + 1, "curl"), (4, "wget")]),
    ("x.sh", "cat <<-'EOF' > x; ssh h\n\tcurl x\n\tEOF\nwget y", [(1, "ssh"), (4, "wget")]),
    ("x.sh", "cat <<A <<B\ncurl\nA\nwget\nB\nssh h", [(6, "ssh")]),
    ("x.sh", "bash <<EOF\nls\ncurl x\nEOF", [(3, "curl")]),
    ("x.sh", "python3 - <<'EOF'\nx = 1\n@i socket\nEOF", [(3, "socket")]),
    ("x.sh", "cat <<NEVER\ncurl x", [(2, "curl")]),
    # kinds of files
    ("x", "#!/bin/bash\ncurl x", [(2, "curl")]),
    ("x", "#! /usr/bin/env -S bash -e\ncurl x", [(2, "curl")]),
    ("x", "#!/usr/bin/env A=b dash\ncurl x", [(2, "curl")]),
    ("x", "#!/usr/bin/env zsh\ncurl x", [(2, "curl")]),
    ("x.KSH", "curl x", [(1, "curl")]),
    ("x", "#!/usr/bin/python3\n@i socket", [(2, "socket")]),
    ("x", "#!/usr/bin/env pypy3\n@i socket", [(2, "socket")]),
    ("x", "#!/usr/bin/env -S nice -n 5 python3 -u\n@i socket", [(2, "socket")]),
    ("x", "#!/usr/bin/env -S -u A B=c python3\n@i socket", [(2, "socket")]),
    ("x", "#!/usr/bin/env -Spython3 -S\n@i socket", [(2, "socket")]),
    ("x", "#!/usr/bin/timeout 5 python3\n@i socket", [(2, "socket")]),
    ("x", "#!/bin/busybox sh\ncurl x", [(2, "curl")]),
    ("x", "#!/bin/sh\n'''exec' \"/a b/python3\" \"$0\" \"$@\"\n' '''\n@i socket", [(4, "socket")]),
    ("x", "#!/bin/sh\n\"\"\":\"\nexec pypy3 \"$0\" \"$@\"\n\"\"\"\n@i socket", [(5, "socket")]),
    ("x", "#!/bin/sh\n\"exec\" \"python3\" \"$0\" \"$@\"\n@i socket", [(3, "socket")]),
    ("x", "#!/bin/sh\n\"exec\" \"curl\" \"$0\"", [(2, "curl")]),
    ("x.py", "@i socket", [(1, "socket")]),
    ("x.PY", "#!/bin/sh\n@i socket", [(2, "socket")]),
    ("x.sh", "\ufeffcurl x", [(1, "curl")]),
    ("x.sh", "curl x\nexit 0\n\0\0binary\nwget x\n", [(1, "curl")]),
    # Windows
    ("x.bat", "@echo off\r\ncurl x\r\n  @WGET.exe y\r\n", [(2, "curl"), (3, "wget")]),
    ("x.cmd", "cd x & ssh h && ftp y | more", [(1, "ftp"), (1, "ssh")]),
    ("x.bat", "if exist x (\n  curl x\n) else (\n  wget y\n)", [(2, "curl"), (4, "wget")]),
    ("x.bat", "if not \"%a%\"==\"b\" curl x\nif /i %a% == b wget y\nif errorlevel 1 ssh h\nif %a%==b (scp a b:c) else sftp h", [
        (1, "curl"), (2, "wget"), (3, "ssh"), (4, "scp"), (4, "sftp")]),
    ("x.bat", "for %%i in (a b) do curl %%i\nfor /f %%i in ('wget y') do echo %%i", [(1, "curl"), (2, "wget")]),
    ("x.bat", "call curl x\nstart \"a title\" /b wget y\ncmd /c \"ssh h\"", [(1, "curl"), (2, "wget"), (3, "ssh")]),
    ("x.bat", "\"C:\\Program Files\\curl.exe\" x\nbitsadmin /transfer x\nping -n 1 host\ngit pull", [(1, "curl"), (2, "bitsadmin"), (3, "ping"), (4, "git")]),
    ("x.bat", "echo a ^\n b\ncurl ^\n x", [(3, "curl")]),
    ("x.bat", "powershell -Command Invoke-WebRequest x", [(1, "invoke-webrequest")]),
    ("x.bat", "powershell -NoProfile -ExecutionPolicy Bypass -Command iwr x\npowershell irm x\npwsh -w hidden -c iwr x", [(1, "iwr"), (2, "irm"), (3, "iwr")]),
    ("x.bat", "powershell (New-Object Net.WebClient).DownloadFile('http://x','y')\npwsh -c \"[Net.Dns]::GetHostName()\"", [(1, "net.webclient"), (2, "net.dns")]),
    ("x.bat", ">nul curl x\n2>&1 wget y\n> out.txt ssh h\n;scp a b:c", [(1, "curl"), (2, "wget"), (3, "ssh"), (4, "scp")]),
    ("x.bat", "for /f \"usebackq\" %%i in (`curl x`) do echo y\nstart \"\" /b \"C:\\Program Files\\wget.exe\" x", [(1, "curl"), (2, "wget")]),
    ("x.bat", "py -3 -c \"@i socket\"\npy -3.8 -m http.server".replace("@i", "imp" + "ort"), [(1, "soc" + "ket"), (2, "http.server")]),
    ("x.sh", "bash -o pipefail -c 'curl x'", [(1, "curl")]),
    ("x.ps1", "$x = Invoke-WebRequest y\n$z=iwr y\n(curl y).Content\n& 'C:\\x\\curl.exe' z", [
        (1, "invoke-webrequest"), (2, "iwr"), (3, "curl"), (4, "curl")]),
    ("x.ps1", "if ($a) { wget x } else { ssh h }\n[string] $s = irm x\nls | foreach { curl $_ }", [(1, "ssh"), (1, "wget"), (2, "irm"), (3, "curl")]),
    ("x.ps1", "Invoke-RestMethod `\n -Uri x\nls; Test-NetConnection h", [(1, "invoke-restmethod"), (3, "test-netconnection")]),
    ("x.ps1", "$c = New-Object System.Net.WebClient\n$d = new-object -TypeName 'Net.Sockets.TcpClient'\n[System.Net.Dns]::GetHostName()\n[Net.Http.HttpClient]::new()", [
        (1, "net.webclient"), (2, "net.sockets"), (3, "net.dns"), (4, "net.http")]),
    ("x.ps1", "<# a\n b #>\n@'\ncurl x\n'@\n@\"\nit's\n\"@\ncurl y", [(9, "curl")]),
    ("x", "#!/usr/bin/env pwsh\niwr x", [(2, "iwr")]),
]


@pytest.mark.parametrize("name,text,expected", SCRIPTS_REFUSED, ids=[row[1][:50] for row in SCRIPTS_REFUSED])
def test_refused_in_a_program(name, text, expected):
    result = scan_program(name, text)
    assert sorted(places(result.refused)) == expected
    assert all(one.what and one.what.isprintable() for one in result.refused)


# A false alarm stops somebody's run.
SCRIPTS_ALLOWED = [
    ("x.sh", "echo curl\necho \"curl x\" 'wget y'\nprintf '%s\\n' ssh"),
    ("x.sh", "# curl x\nls # ; curl x\nls; # wget\n"),
    ("x.sh", "nc=5; ssh=$nc\nexport ping=1\nlocal ftp=2\nread -r nc ssh\nunset curl\nnc+=1"),
    ("x.sh", "command -v curl >/dev/null 2>&1\nif command -V wget; then :; fi\nwhich curl && type ssh\nhash nc; whereis scp"),
    ("x.sh", "usage='\ncurl x\nwget y\n'\necho \"\nssh h\n\""),
    ("x.sh", "cat <<EOF\ncurl x\nit's wget \"y\nEOF\ncat <<'A B'\n$(curl x)\nA B\necho ok"),
    ("x.sh", "cat <<EOF\n\\$(curl x) \\`wget\\`\nEOF"),
    ("x.sh", "cat > run.sh <<\\END\n#!/bin/sh\ncurl x\nEND\npython3 x.py - <<END\n@i socket\nEND"),
    ("x.sh", "x=\"$(cat <<EOF\ncurl x\nEOF\n)\"\necho done"),
    ("x.sh", "curl() { echo none; }\ncurl x\nfunction ping { :; }\nping h\nnc () ( : )\nnc -l"),
    ("x.sh", "trap ping EXIT\nping() { :; }"),
    ("x.sh", "case $tool in\n  curl) a=1 ;;\n  wget|ssh) a=2 ;;\n  (nc)\n    a=3 ;;\n  # scp\n  *) ;;\nesac"),
    ("x.sh", "case $1 in ssh) x ;; esac\ncase $2 in\nnc) ;; esac"),
    ("x.sh", "tools=(curl wget\n  ssh # nc\n  scp)\ndeclare -a more=(ping)\nmore+=(ftp)\ndeclare -A m=([curl]=1 [ssh]=2)"),
    ("x.sh", "for nc in curl wget; do echo $nc; done\nselect ssh in a b; do :; done"),
    ("x.sh", "(( nc > 3 ))\nx=$((nc + ssh))\nfor ((nc=0; nc<5; nc++)); do :; done\nwhile (( ping-- )); do :; done\nlet nc+=1"),
    ("x.sh", "[[ $x =~ ^(curl|wget)$ ]]\n[[ $a == b || ssh == $c ]] && :\n[ \"$x\" = curl ] || test -x /usr/bin/ssh"),
    ("x.sh", "ps | grep ssh\nkill $(pgrep nc)\npkill wget\nfind . -name curl\nls ssh/ | sort -u >curl"),
    ("x.sh", "ls *.@(curl|wget) !(ssh|scp)\necho a >ssh\n"),
    ("x.sh", "awk '{ nc = 1; system(\"x\") }'\nsed 's/a/b/;s|curl|ssh|'"),
    ("x.sh", "echo /dev/tcp/x/1\necho \">/dev/tcp/h/1\" '</dev/udp/h/1'\n# exec 3<>/dev/tcp/h/1"),
    ("x.sh", "cp a b 2>&1 | tee curl\nls &>ssh\nls >&2\ncat <<<curl\ncat 0<ssh"),
    ("x.sh", "git status; git log fetch; git clone ./a b\ngit clone -q . x\ngit fetch /mnt/usb/x main\ngit commit -m 'push'"),
    ("x.sh", "rsync -a a/ /b/c\ncurlx; ./curl.sh; sshd_config=1; ssh-keygen -l"),
    ("x.sh", "echo ${x:-curl} ${nc} ${y//(/)} ${#ssh}\necho \"${x:-it's}\"; echo curl"),
    ("x.sh", "echo $'it\\'s; curl x'\necho \"a\\\"; curl x\""),
    ("x.sh", "\"$@\"\n$1 x\n$TOOL\n$(cat x)"),
    ("x.sh", "python3 -c \"print('$x')\"\npython3 -c 'x = = 1'\npython3 -m json.tool <x\npython3 bin/x.py -m http.server"),
    ("x.sh", "ping -c1 localhost\nping6 ::1"),
    ("x.sh", ""), ("x.sh", "#!/bin/sh"),
    ("x.bat", "rem curl x\n:: wget\n@REM ssh\n:curl\ngoto curl\ncall :curl"),
    ("x.bat", "echo curl\necho (ssh) & echo wget ^& curl\nset nc=5\nset \"ssh=a & b\"\nwhere curl\nif exist curl.exe echo yes"),
    ("x.bat", "for %%i in (curl wget) do echo %%i\nping -n 6 127.0.0.1 >nul\nfind \"ssh\" x.txt\ntitle ftp\ntimeout /t 5"),
    ("x.bat", "pwsh curl.ps1\npowershell -ExecutionPolicy Bypass -File curl.ps1 iwr\necho a>&2\n>curl echo a\npy -3 curl.py\ndir >x 2>&1 & echo curl"),
    ("x.bat", "if \"%1\"==\"curl\" goto x\nif %nc% GTR 5 (echo a) else (echo b)\n)"),
    ("x.ps1", "Write-Host curl\n$curl = 1\n$x = 'curl', 'wget'\nGet-Command ssh\n# iwr\n<# curl #>\n\"curl x\""),
    ("x.ps1", "function curl { }\ncurl x\nswitch ($x) { ssh { 1 } wget { 2 } 'nc' { 3 } }\n@{ ssh = 22; nc = 1 }\n@('curl',\n'wget')"),
    ("x.ps1", "if ($x -eq 'curl') { 'ssh' }\n$a.nc = 1\n$s = \"a `\" ; curl x\"\n$t = 'it''s; curl x'\n$internet.dns = 1\nnew-object System.Text.StringBuilder"),
]


@pytest.mark.parametrize("name,text", SCRIPTS_ALLOWED, ids=[row[1][:50] or "empty" for row in SCRIPTS_ALLOWED])
def test_allowed_in_a_program(name, text):
    result = scan_program(name, text)
    assert (result.refused, result.warned, result.imports) == ((), (), ())


@pytest.mark.parametrize("name,data,part", [
    ("x", b"\x7fELF\x02\x01\x01" + bytes(100), "not a script"), ("x", b"", "not a script"), ("x", b"curl x\n", "not a script"),
    ("x.exe", b"MZ", "not a script"), ("x", b"#!\n", "not a script"), ("x.pl", b"#!/usr/bin/perl -w\n", "a perl script"),
    ("x", b"#!/usr/bin/env node\n", "a node script"), ("x", b"#!/usr/bin/\x1b[1m\n", "script")])
def test_other_programs_are_left_to_the_layers_at_run_time(name, data, part):
    result = import_scan.scan_program(data, name)
    assert result.refused == () and result.imports == ()
    assert [(one.line, one.module) for one in result.warned] == [(1, "binary")]
    assert part in result.warned[0].what and "only the runtime guard covers it" in result.warned[0].what and result.warned[0].what.isprintable()


def test_a_doubtful_module_in_a_shell_script_is_a_warning():
    result = scan_program("x.sh", "ls\npython3 -c '@i ctypes'")
    assert result.refused == () and places(result.warned) == [(2, "ctypes")]


def test_a_script_of_powershell_in_utf_16_is_read():
    for codec in ("utf-16-le", "utf-16-be"):
        data = "\ufeffls\niwr x\n".encode(codec)
        assert places(import_scan.scan_program(data, "x.ps1").refused) == [(2, "iwr")]


def test_the_rest_of_an_endless_script_is_a_warning():
    result = import_scan.scan_program(b"curl x\n#" + b"x" * import_scan.MAX_SCRIPT + b"\nwget x\n", "x.sh")
    assert places(result.refused) == [(1, "curl")] and "no further" in result.warned[0].what


@pytest.mark.parametrize("text", [
    "$(" * 20000, "${" * 20000, "`" * 20001, "((" * 20000, "$((" * 20000, "(" * 20000, "\"$(" * 20000, "<(" * 20000, "a=(" * 20000,
    "cat <<A\n" * 20000, "cat <<A" + " <<A" * 20000 + "\n" + "A\n" * 20000, "case x in " * 20000, "[[ " * 20000, "'\"" * 20000, "\\\n" * 40000,
    "f() {\n" * 20000, "a@(" * 20000, "eval " * 20000, "bash -c '" * 20000, "x=y; $x\n" * 20000, "\0" * 10, "\\"], ids=lambda text: repr(text[:12]))
@pytest.mark.parametrize("name", ["x.sh", "x.bat", "x.ps1"])
def test_a_hostile_script_is_judged_in_time(name, text):
    """Some ten thousand repetitions each: what is not linear in the length would take minutes."""
    began = time.monotonic()
    assert scan_program(name, text).refused == ()
    assert time.monotonic() - began < 20


def test_a_run_with_such_a_script_is_refused_with_its_line(project):
    """By the real program; and the same bytes under another ending are another kind of program."""
    name, first, remark = ("bin/fetch.sh", "#!/bin/sh", "# wget x") if os.name == "posix" else ("bin/fetch.bat", "@echo off", "rem wget x")
    project.write(name, first + "\n\nwget x\n", executable=True)
    project.write("bin/notes.py", "x = 1\n")
    project.spec({"processor": name})
    done = project.run()
    assert done.code == 6 and "[OFFLINE] %s:3: runs wget, which uses the network" % name in done.err, done
    project.write(name, "%s\n%s\necho curl\n" % (first, remark), executable=True)
    project.write("bin/same.py", "%s\n%s\necho curl\n" % (first, remark))
    assert "bin/same.py" in project.run().err
    project.path("bin/same.py").unlink()
    done = project.ok()
    assert "binary" not in done.err and "not a script" not in done.err, done


@pytest.mark.parametrize("name, init", [("sub.py", "__all__ = ['sub']\n"), ("sub/__init__.py", "__all__ = ['su' + 'b']\n@f . @i *\n")])
def test_a_module_that_comes_by_a_star_is_in_the_key_and_is_scanned(project, name, init):
    """It comes if `__all__` of its package names it."""
    project.write("tools/rules/__init__.py", compose(init))
    project.write("tools/rules/" + name, "WORD = 'one'\n")
    project.write("tools/rules/__pycache__/old.py", "")
    star = "@f rules @i *" if "*" not in init else "@i rules; sub = rules.sub"
    project.write("tools/p.py", compose("@i os\n%s\nopen(os.environ['PIPELINE_OUTPUT_DIR'] + '/o', 'w').write(sub.WORD)\n" % star))
    project.spec({"processor": "tools/p.py"})
    project.ok()
    modules = [path for path, _ in project.json("state/stage_s1.json")["keyParts"]["modules"]]
    assert project.read("data/s1/o") == "one" and modules == sorted(["tools/rules/__init__.py", "tools/rules/" + name])
    project.write("tools/rules/" + name, compose("@i socket\n"))
    done = project.run()
    assert done.code == 6 and "[OFFLINE] tools/rules/%s:1: " % name in done.err, done


@pytest.mark.parametrize("name, code, own", [("h2.py", "import h2\n", "bin/h2.py"), ("h2/__init__.py", "from h2.frames import x\n", "bin/h2"), ("h3.py", "import h2\n", "")])
def test_a_file_of_ones_own_that_is_called_like_a_network_module_is_named(project, name, code, own):
    project.write("bin/" + name, "")
    project.spec({"processor": project.processor("p", code)})
    done = project.run()
    line = next(line for line in done.err.splitlines() if line.startswith("[OFFLINE] bin/p.py:"))
    assert done.code == 6 and line.endswith(" (%s has the name of a network module; if that is meant, rename it)" % own) is bool(own), done
    assert ("rename" in line) is bool(own), done


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
        result = import_scan.scan(path.read_bytes(), str(path))
        assert (path.name, result.refused) == (path.name, ())
        assert not [one for one in result.warned if "cannot be judged" in one.what]


def test_a_plain_text_search_finds_no_network_import():
    modules = ["socket", "requests", "urllib", r"http\.client", "asyncio", "aiohttp", "urllib3"]
    pattern = re.compile("(%s) (%s)\\b" % ("|".join(["imp" + "ort", "fr" + "om"]), "|".join(modules)))
    assert pattern.search(compose("@i socket")) and pattern.search(compose("@f http.client @i x"))
    found = ["%s: %s" % (path, match.group()) for path in own_sources()
             for match in pattern.finditer(path.read_text(encoding="utf-8"))]
    assert found == []


def test_the_scan_stays_cheap():
    """Importing it and scanning loads neither ast nor a sibling but its own readers: a run in which nothing changed must start fast."""
    code = """
import sys
sys.path.insert(0, sys.argv[1])
before = set(sys.modules)
import import_scan
import_scan.scan(b"x = 1", "x.py")
new = set(sys.modules) - before
print(sorted(new & {"ast", "typing", "pathlib", "dataclasses", "re", "tokenize", "inspect"}))
print(sorted(name for name in new if (getattr(sys.modules[name], "__file__", None) or "").startswith(sys.argv[1])))
"""
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code, str(ROOT / "src")],
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert (done.stdout.decode().split(), done.stderr) == (["[]", "['import_scan',", "'scan_shell',", "'scan_windows',", "'source_folding']"], b"")


@pytest.mark.parametrize("name", ["import_scan.py", "scan_shell.py", "scan_windows.py", "source_folding.py"])
def test_what_was_found_is_found_anew_when_a_part_of_the_scan_has_changed(tmp_path, monkeypatch, name):
    here = tmp_path / "src"
    shutil.copytree(str(ROOT / "src"), str(here), ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(program_scan, "_HERE", str(here))
    (tmp_path / "p.sh").write_bytes(b"#!/bin/sh\ntrue\n")

    def scan(known):
        digests = file_digests.Digests(str(tmp_path), "boot", keep=False)
        digests.scans.update(known)
        program_scan.scan_of(digests, "p.sh")
        (found,) = digests.scans.values()
        return found
    first = scan({})
    again = scan({file_digests.hash_file(str(tmp_path / "p.sh"))[0]: first})
    assert again is first
    with open(str(here / name), "ab") as file:
        file.write(b"# another rule\n")
    assert scan({file_digests.hash_file(str(tmp_path / "p.sh"))[0]: first}) is not first


def test_what_was_found_is_found_anew_by_another_python(tmp_path, monkeypatch):
    """That of before may have been too old to parse it: then nothing is known of what it imports."""
    (tmp_path / "p.py").write_bytes(b"import helper\n")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "version_info", (3, 2, 0))
        patch.setattr(import_scan, "scan_program", lambda source, path: import_scan.ScanResult((), (), ()))
        before = file_digests.Digests(str(tmp_path), "boot", keep=False)
        assert program_scan.local_modules(before, "p.py") == program_scan.scan_of(before, "p.py")["imports"] == []
    now = file_digests.Digests(str(tmp_path), "boot", keep=False)
    now.scans.update(before.scans)
    assert program_scan.scan_of(now, "p.py")["imports"] == ["helper"]


def test_a_scan_is_not_remembered_under_the_digest_of_another_content(tmp_path):
    """An editor saves another version between digest and scan, and then that one again."""
    (tmp_path / "p.py").write_bytes(b"import helper\n")
    digests = file_digests.Digests(str(tmp_path), "boot", keep=False)
    digests.of("p.py")
    (tmp_path / "p.py").write_bytes(b"import sys\n")
    program_scan.scan_of(digests, "p.py")
    (tmp_path / "p.py").write_bytes(b"import helper\n")
    assert program_scan.scan_of(digests, "p.py")["imports"] == ["helper"] and len(digests.scans) == 1


def test_of_a_compiled_module_no_more_is_read_than_is_looked_at(tmp_path, monkeypatch):
    (tmp_path / "large.so").write_bytes(b"\x7fELF" + bytes(1 << 20))
    digests, seen, real = file_digests.Digests(str(tmp_path), "boot", keep=False), [], import_scan.scan_program
    monkeypatch.setattr(import_scan, "scan_program", lambda source, path: seen.append(len(source)) or real(source, path))
    assert program_scan.scan_of(digests, "large.so")["warned"] and seen == [program_scan.BINARY_BYTES]
