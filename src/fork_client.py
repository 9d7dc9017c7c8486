"""The runner's side of the fork server: one warm Python for the tasks of one stage, started under the stage's lock.

Above the leaves and program_scan; task_work imports it when the first stage of several Python tasks must run.

    ForkServer.start() -> launch() a task each -> ends() when `descriptor` is readable -> close()

    runner ──requests──> server ──fork──> task
      ^ <───replies──────┘                 │ 1, 2
      └──────────slot pipe─────────────────┘

Output goes through a pipe for each slot, made before the server, whose write end the server holds too: there is no end of file
when a task has ended. Read what is there after its last process is gone, before the slot is given to the next.
"""
from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections import namedtuple

import process_traits
import process_tree
import program_scan

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List, NoReturn, Optional, Sequence, Tuple

    from file_digests import Digests
    Json = Dict[str, Any]

ANSWER_LIMIT_S = 30.0       # a server that does not answer for so long is given up
CLOSE_LIMIT_S = 10.0
READ_BYTES = 1 << 16
SHOWN_BYTES = 2000          # of what a server said before it died
# bin/processor_kit.py as it is shipped: all that executing it does is to define things, so the server does it once for all tasks.
KIT_NAME, KIT_SHA256 = "processor_kit.py", "084c0a03cb4ed6edaf18cefcdee4facaab5e3ea7fb88463837a79a90ce7ba1bb"
# Room for a task's words, and below for its token, in what the system shows of a process (forked_task.Title).
PADDING = " " * 4000
TOKEN_ROOM = 100
PROGRAM = os.path.join(os.path.dirname(os.path.abspath(__file__)), "fork_server.py")
# With these the interpreter does something at each start or end that a forked process would not do, or do otherwise.
START_VARIABLES = frozenset((
    "PYTHONVERBOSE PYTHONPROFILEIMPORTTIME PYTHONTRACEMALLOC PYTHONDUMPREFS PYTHONDUMPREFSFILE PYTHONINSPECT PYTHONSAFEPATH PYTHONMALLOCSTATS "
    "PYTHONEXECUTABLE COVERAGE_PROCESS_START COVERAGE_PROCESS_CONFIG COV_CORE_SOURCE").split())
FIXED_VARIABLES = frozenset(("PIPELINE_ROOT", "PIPELINE_HOOK"))     # the hook reads them when the interpreter starts
SINGLE_VARIABLES = ("PIPELINE_SIMULATED_FAIL", "PIPELINE_RESUME")   # of single tasks; the first has the kit fail at once


class Declined(Exception):
    """The task is to be started as a process of its own; str() says why."""


class ServerDied(Exception):
    """The server is gone and so are its tasks, or will be; str() says what is known."""


class NoAnswer(ServerDied):
    """Likewise, after it was asked for a task: that may have been forked, and may have worked. What there is of it is not known."""


class End(namedtuple("End", "pid status cpu_s max_rss_bytes problem", defaults=(None,))):
    """The end of a task's process; status as wait4() has it. problem: the OSError for which the script was never begun, or None."""

    __slots__ = ()


def why_not(env: Dict[str, str], platform: str = sys.platform) -> str:
    """Return why tasks with this environment are each started as a process of their own, or "".

    On macOS system libraries may refuse to work in a process that was forked and did not start a program.
    """
    if platform in ("darwin", "win32", "cygwin") or not hasattr(os, "fork"):
        return "no fork server on %s" % platform
    found = sorted(name for name in env if name in START_VARIABLES)
    if found:
        return "%s asks for something at each start of Python" % found[0]
    seed = env.get("PYTHONHASHSEED", "random")
    return "" if seed.isdigit() else "PYTHONHASHSEED=%s asks for another seed at each start of Python" % seed


def code_of(digests: Digests, processor: str) -> Tuple[List[str], List[str], List[str]]:
    """Return (files of modules beside a Python processor that it imports, relative to the root; names of what they import; the
    kit, if it is one of the files, and unchanged). What the kit imports is not named then: what most tasks do not need of it is
    left to those that do. Compiled modules are left to the tasks, too."""
    modules = [path for path in program_scan.local_modules(digests, processor) if not path.endswith(program_scan.COMPILED)]
    path = os.path.join(os.path.dirname(processor), KIT_NAME).replace(os.sep, "/")
    kit = [path] if path in modules and digests.of(path)[0] == KIT_SHA256 else []
    names = {name for path in [processor] + modules if path not in kit for name in program_scan.scan_of(digests, path)["imports"]}
    return modules, sorted(name for name in names if not name.startswith(".")), kit


class ForkServer:
    """A server and what the runner holds of it.

    descriptor: readable when ends are reported, when the server has become ready, or has died. readers: for each slot the read
    end of its pipe, not blocking. pid: the server's, a child of the runner that belongs to no task.
    """

    Declined, ServerDied, NoAnswer = Declined, ServerDied, NoAnswer     # for a pool that knows servers only by what they do

    def __init__(self, root: str, script: str, modules: Sequence[str], imports: Sequence[str], kit: Sequence[str] = ()) -> None:
        """*script* absolute as in the tasks' command lines; *modules*, *imports* and *kit* as code_of() returns them."""
        self.root = root
        folder, given = os.path.dirname(os.path.realpath(script)), os.path.dirname(os.path.abspath(script))

        def spelt(paths: Sequence[str]) -> List[str]:
            """As the import system will spell them."""
            found = [os.path.relpath(os.path.join(root, path), given) for path in paths]
            return [os.path.join(folder, path) for path in found if not path.startswith(os.pardir)]

        # The script may be a link: the kit beside what it leads to is another file than the one whose digest was compared.
        same = [path for path in kit if spelt([path]) == [os.path.realpath(os.path.join(root, path))]]
        self.setup: Json = {"script": script, "modules": spelt(modules), "imports": list(imports), "kit": spelt(same)}
        self.fixed: Dict[str, str] = {}
        self.common: Dict[str, str] = {}    # variables of the server
        self.readers: List[int] = []
        self.descriptor = self.requests = self.noise = -1
        self.pid = 0
        self.process: Any = None
        self.pending = b""
        self.state = ""             # "", "ready", "unusable", "dead"
        self.reason = ""
        self.answers: List[List[Any]] = []
        self.ended: List[End] = []
        self.unprepared: Dict[int, OSError] = {}    # by pid, until their ends are told

    def start(self, env: Dict[str, str], token: str, lock_descriptor: int, slots: int) -> None:
        """Start it and return at once. *env*: that of any task of the stage; *token*: the stage lock's. Raises: ServerDied."""
        import subprocess
        ours: List[int] = []
        theirs: List[int] = []

        def pipe(inwards: bool) -> None:
            ends = os.pipe()
            ours.append(ends[0] if inwards else ends[1])
            theirs.append(ends[1] if inwards else ends[0])

        self.fixed = _fixed(env)
        self.common = {name: value for name, value in env.items() if name not in SINGLE_VARIABLES}
        self.common[process_traits.TOKEN_VARIABLE] = token.ljust(len(token) + TOKEN_ROOM, ".")
        try:
            try:
                for inwards in [False, True, True] + [True] * slots:
                    pipe(inwards)
                passed = [theirs[0], theirs[1]] + theirs[3:] + ([lock_descriptor] if lock_descriptor >= 0 else [])
                self.process = subprocess.Popen(
                    [sys.executable, PROGRAM, str(theirs[0]), str(theirs[1]), PADDING], stdin=subprocess.DEVNULL, stdout=theirs[2], stderr=theirs[2],
                    cwd=self.root, env=self.common, pass_fds=passed, start_new_session=True)
            finally:
                for descriptor in theirs:
                    os.close(descriptor)
        except OSError as error:
            for descriptor in ours:
                os.close(descriptor)
            raise ServerDied("cannot start the fork server: %s" % (error.strerror or error)) from None
        self.pid = self.process.pid
        self.requests, self.descriptor, self.noise, self.readers = ours[0], ours[1], ours[2], ours[3:]
        for descriptor in ours[1:]:
            os.set_blocking(descriptor, False)
        self._send(dict(self.setup, slots=theirs[3:]))

    def is_ready(self) -> bool:
        """Tell whether launch() will answer at once: the server has started, or is not to be used. Raises: ServerDied."""
        self._receive()
        self._check()
        return bool(self.state)

    def launch(self, slot: int, argv: Sequence[str], env: Dict[str, str], folder: str) -> int:
        """Fork a task and return its pid; it leads a session of its own, as soon as it runs.

        argv: interpreter, script, arguments. Ends may have come meanwhile: see has_news. Raises: Declined and
        ServerDied, of which nothing was forked; NoAnswer.
        """
        self._check()
        if self.state == "unusable":
            raise Declined(self.reason)
        if list(argv[:1]) != [sys.executable] or _fixed(env) != self.fixed:
            raise Declined("its environment or interpreter is not the stage's")
        own: Dict[str, Optional[str]] = {name: value for name, value in env.items() if self.common.get(name) != value}
        own.update((name, None) for name in self.common if name not in env)
        self._send([slot, list(argv), own, folder])     # a request that is cut short is none
        deadline = time.monotonic() + ANSWER_LIMIT_S
        try:
            while not self.answers:
                self._wait(deadline)
                self._receive()
                self._check()
        except ServerDied as died:
            raise NoAnswer(str(died)) from None
        word, value = self.answers.pop(0)
        if word == "declined":
            raise Declined(value)
        return int(value)

    def ends(self) -> List[End]:
        """Return the ends reported since the last call; never waits. After the server's death (`is_dead`) no more will be
        told."""
        if self.state != "dead":
            self._receive()
        found, self.ended = self.ended, []
        return found

    @property
    def is_dead(self) -> bool:
        return self.state == "dead"

    @property
    def has_news(self) -> bool:
        """Tell whether ends() has something to return, or a death is to be noticed, though `descriptor` may not be readable."""
        return bool(self.ended) or self.is_dead

    def kill(self) -> None:
        """End a server that does not answer; its tasks end with it."""
        if self.state != "dead":
            os.kill(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """End the server and what it still runs, and let go of its pipes. Does nothing the second time."""
        if self.process is None:
            return
        if self.requests >= 0:
            os.close(self.requests)
            self.requests = -1
        self._reap(CLOSE_LIMIT_S)
        for descriptor in [self.descriptor, self.noise] + self.readers:
            os.close(descriptor)
        self.descriptor, self.readers, self.process = -1, [], None

    def _send(self, value: Any) -> None:
        data = memoryview(json.dumps(value).encode("ascii") + b"\n")
        try:
            while data:
                data = data[os.write(self.requests, data):]
        except OSError:
            self._die("")

    def _receive(self) -> None:
        """Take in the replies that are there."""
        while self.state != "dead":
            try:
                data = os.read(self.descriptor, READ_BYTES)
            except BlockingIOError:
                break
            if not data:
                self._mark_dead("")
                break
            *lines, self.pending = (self.pending + data).split(b"\n")
            for line in lines:
                self._take(json.loads(line))
            if len(data) < READ_BYTES:
                break               # the next look tells of what came meanwhile

    def _take(self, words: List[Any]) -> None:
        if words[0] in ("ready", "unusable"):
            self.state, self.reason = words[0], words[-1]
        elif words[0] == "ended":
            self.ended.append(End(*words[1:])._replace(problem=self.unprepared.pop(words[1], None)))
        elif words[0] == "unprepared":
            self.unprepared[words[1]] = OSError(*words[2:])
        else:
            self.answers.append(words)

    def _check(self) -> None:
        if self.state == "dead":
            raise ServerDied(self.reason)

    def _wait(self, deadline: float) -> None:
        import select
        poll = select.poll()
        poll.register(self.descriptor, select.POLLIN)
        if not poll.poll(max(0, int((deadline - time.monotonic()) * 1000))):
            self._die("it does not answer")

    def _die(self, why: str) -> NoReturn:
        self._mark_dead(why)
        raise ServerDied(self.reason)

    def _mark_dead(self, why: str) -> None:
        """Note the death, make sure of it, and put together what is known of its cause; *why*: not told by its exit code."""
        if why:
            process_tree.send([self.pid], signal.SIGKILL)
        code = self._reap(CLOSE_LIMIT_S)
        try:
            said = os.read(self.noise, READ_BYTES)[-SHOWN_BYTES:].decode("utf-8", "replace").strip()
        except OSError:
            said = ""
        self.state = "dead"
        self.reason = "the fork server died: %s" % "; ".join(
            [why or ("ended by signal %d" % -code if code is not None and code < 0 else "exit code %s" % code)] + (said.splitlines()[-1:]))

    def _reap(self, limit_s: float) -> Optional[int]:
        import subprocess
        try:
            return int(self.process.wait(limit_s))
        except subprocess.TimeoutExpired:
            process_tree.send([self.pid], signal.SIGKILL)
            return None


def _fixed(env: Dict[str, str]) -> Dict[str, str]:
    return {name: value for name, value in env.items() if not name.startswith("PIPELINE_") or name in FIXED_VARIABLES}
