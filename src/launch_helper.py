"""Launchers: programs such as srun that start a stage's processor somewhere else, and need the network for it.

Above the leaves and below the runner. The runner closes the network for itself and all that it starts, so launchers start
from a process that was forked before:

    runner --commands--> helper --fork--> a minder for each launch --> launcher (its own session) ~~> offline_guard exec (node_exec)
       ^------------------answers-----------'      '--output through a named pipe--> runner

The helper and its minders are nobody's children and hold nothing of the runner but their ends of pipes. A minder does what the
runner does for processors: it ends the launcher's whole tree, whatever the exit. Through two more pipes nothing is sent; they tell
by closing who has died, however it dies: the runner, upon which each minder ends its launcher by itself; and the helper, after
whose death nothing more can be started. What is under way does not need it: minders are told by signals to end their launchers.

A launcher is never killed at first sight: killed with -9, srun leaves its job in the queue. It is asked with SIGTERM, upon which
it cancels the job, and killed only when it has not gone after process_tree.LAUNCHER_S. To let the processor itself end in order
comes before that, by the lease (launch_lease), through which the task also is known to be gone when its launcher did not live to
tell.
"""
from __future__ import annotations

import json
import os
import signal
import sys
import time

import guardian
import launch_lease
import process_table
import process_tree
import stage_locks
from model import EXIT_STATE, RunnerError, UsageError
from primitives import naming, remove_quietly

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List, NoReturn, Optional, Sequence, Set, Tuple
    Json = Dict[str, Any]

TASK_S = 15.0               # how long a task may live on after its launcher
START_S = 30.0              # how long the helper may take to start a launcher
START_LOOK_S = 1.0          # between two looks whether it has
ASK, FORCE = signal.SIGTERM, getattr(signal, "SIGUSR1", 0)      # what the runner tells a minder
ISOLATION = ("launchers are started outside the kernel layer, by a process forked before it; where the task runs, offline_guard exec "
             "closes the network and reports it: see launcher.nodes of the stages")
SETTLE_POLL_S = 0.05
DEAD = "the helper that starts launchers has died; run again: a new one must be started before the network is closed"
UNSTARTED = "what watched the launcher ended before it had started; run again"
FOLDER_PREFIX = "pipeline-launch-"
NEW_FOLDER_S = 60.0
TASK = "the task on its machine"    # among the survivors of an attempt
HOOK_VARIABLES = ("PIPELINE_HOOK", "PIPELINE_HOOK_LOG", "PYTHONPATH")


# --- the words (pure) ------------------------------------------------------------------------------------------------

def launcher_words(words: Sequence[str], resources: Dict[str, int]) -> List[str]:
    """Return a launcher's words with {cpuCores} and {memoryMB} filled in and doubled braces made single."""
    # Both names are there, or the spec would not have passed.
    return [word.format_map({name: str(value) for name, value in resources.items()}) for word in words]


def task_words(source_folder: str, lease: str) -> List[str]:
    """Return the words that a launcher has to run: they close the network where the task runs, and start what its lease says.

    The processor's own words are not among them: a launcher may hand its words to a shell, for which a file's name can be a
    command.
    """
    # -E, -S: nothing that a variable or a site package names runs beside the guard; and it starts in half the time.
    return [sys.executable, "-E", "-S", os.path.join(source_folder, "offline_guard.py"), "exec", "--lease", lease]


def launcher_environment(env: Dict[str, str], own: Dict[str, str]) -> Dict[str, str]:
    """Return a launcher's environment: the processor's without the Python hook, which is for processors; *own* are the
    stage's."""
    kept = {name: value for name, value in env.items() if name not in HOOK_VARIABLES}
    kept[process_tree.LAUNCHER_VARIABLE] = "1"
    return dict(kept, PYTHONPATH=own["PYTHONPATH"]) if "PYTHONPATH" in own else kept


def task_plan(stage: Any, launch: Any, root: str, offline: Any, report: str) -> Json:
    """Return what the lease tells the task. The runner's own variables and the stage's are in it: not every launcher passes its
    environment on.

    launch: attempts.Launch of the processor.
    """
    close = "no" if "kernel" not in offline.layers else "must" if offline.require == "kernel" else "try"
    own = {name: value for name, value in launch.env.items() if name.startswith("PIPELINE_") or name in HOOK_VARIABLES or name in stage.env}
    return {"stage": stage.name, "token": launch.token, "command": list(launch.argv), "root": root, "close": close, "strict": offline.strict, "graceSec": stage.grace_s,
            "report": report, "environment": own}


# --- in the runner ---------------------------------------------------------------------------------------------------

class NoTemporaryFolder(RunnerError):
    """There is no place for the named pipes; str() says what to do."""

    exit_code = EXIT_STATE


class LaunchHelper:
    """The helper, seen from the runner. Make it before the network is closed; several launches may be under way at once.

    descriptor: becomes readable when a launch has ended; then any Launched.take_end() takes the answers of all. alive: closes with
    this process. vital: readable when the helper is dead.
    Raises: OSError; NoTemporaryFolder; UsageError on Windows.
    """

    def __init__(self) -> None:
        if sys.platform == "win32":
            raise UsageError("\"launcher\" needs fork(2), which Windows does not have; run on the cluster's own system, or leave it out")
        import tempfile
        try:
            temporary = tempfile.gettempdir()
        except FileNotFoundError as error:
            raise NoTemporaryFolder("launcher: %s; set TMPDIR to a folder that this user may write to, on this machine" % error.strerror) from None
        remove_abandoned(temporary)
        self.folder = tempfile.mkdtemp(prefix=FOLDER_PREFIX)            # for the named pipes; on this machine
        self.hold = os.open(self.folder, os.O_RDONLY)                   # locked as long as this process lives
        try:
            stage_locks.try_kernel_lock(self.hold)
        except OSError:
            pass                        # a file system without locks: then nobody removes it for us either
        commands, self.commands = os.pipe()
        self.descriptor, answers = os.pipe()
        runner, self.alive = os.pipe()
        self.vital, vital = os.pipe()
        for descriptor in (self.descriptor, self.vital):
            os.set_blocking(descriptor, False)
        self.launched: Dict[int, Launched] = {}
        self.count = 0
        self.pending = b""
        pid = os.fork()
        if pid == 0:                    # in the child: leave the session, then leave the family
            try:
                os.setsid()
                if os.fork() == 0:
                    Helper(commands, answers, runner, vital, self.folder).serve()
            finally:
                os._exit(0)
        for descriptor in (commands, answers, runner, vital):
            os.close(descriptor)
        os.waitpid(pid, 0)

    def start(self, argv: Sequence[str], env: Dict[str, str], folder: str, token: str, lease: str) -> Launched:
        """Start a launcher; its lease must be there. Raises: OSError when it cannot be started; the lease is gone then, unless
        somebody holds it."""
        try:
            return self._start(argv, env, folder, token, lease)
        except OSError:
            try:
                if launch_lease.take_back(lease, 0):
                    launch_lease.take_back(launch_lease.here_path(lease), 0)
            except OSError:
                pass                    # the first cause says more
            raise

    def _start(self, argv: Sequence[str], env: Dict[str, str], folder: str, token: str, lease: str) -> Launched:
        self.count += 1
        path = os.path.join(self.folder, "%d.output" % self.count)
        os.mkfifo(path, 0o600)
        launched = Launched(self, self.count, os.open(path, os.O_RDONLY | os.O_NONBLOCK), token, lease)
        self.launched[self.count] = launched
        try:
            self._tell(number=self.count, argv=list(argv), env=env, folder=folder, token=token, lease=lease, output=path)
            left_s = START_S
            while not launched.is_answered:
                began = time.monotonic()
                self._wait(min(left_s, START_LOOK_S))
                is_dead = self.is_dead()        # before the answers are read: later it gives none
                self.take_answers()
                if is_dead and not launched.is_answered:
                    launched.lose(DEAD)
                # For longer it was this process that stood still, or the machine.
                left_s -= min(time.monotonic() - began, START_LOOK_S)
                if left_s <= 0 and not launched.is_answered:
                    launched.error = OSError("the helper that starts launchers does not answer")
        finally:
            os.unlink(path)
            if launched.pid == 0:
                self.launched.pop(launched.number, None)
                os.close(launched.output)
        if launched.error is not None:
            raise launched.error
        return launched

    def is_dead(self) -> bool:
        """Tell whether the helper is gone; its minders live on."""
        try:
            return not os.read(self.vital, 1)
        except BlockingIOError:
            return False

    def _tell(self, **command: Any) -> None:
        """Have a launcher started. Raises: OSError when the helper is dead."""
        data = json.dumps(command).encode("ascii") + b"\n"
        try:
            while data:
                data = data[os.write(self.commands, data):]
        except BrokenPipeError:
            raise OSError(DEAD) from None

    def take_answers(self) -> None:
        """Read what the minders have said and give it to the launches that it is about."""
        try:
            data = os.read(self.descriptor, 1 << 16)
        except BlockingIOError:
            return
        if not data:                    # helper and minders are gone: nobody will tell of an end any more
            lost = list(self.launched.values())
            for launched in lost:
                launch_lease.ask_to_stop(launched.lease)        # all, before one is waited for
            for launched in lost:
                launched.lose(DEAD)
        *lines, self.pending = (self.pending + data).split(b"\n")
        for line in lines:
            answer = json.loads(line.decode("ascii"))
            if answer["number"] in self.launched:
                self.launched[answer["number"]].hear(answer)

    def _wait(self, seconds: float) -> None:
        import select
        poll = select.poll()
        for descriptor in (self.descriptor, self.vital):
            poll.register(descriptor, select.POLLIN)
        poll.poll(max(1, int(seconds * 1000)))

    def close(self) -> None:
        """Let the helper go; what still runs is ended by the minders, which is not waited for."""
        if self.commands < 0:
            return
        if self.is_dead():              # else it removes its folder itself
            import shutil
            shutil.rmtree(self.folder, ignore_errors=True)
        for descriptor in (self.commands, self.descriptor, self.alive, self.vital, self.hold):
            os.close(descriptor)
        self.commands = self.descriptor = self.alive = self.vital = self.hold = -1


def remove_abandoned(parent: str) -> None:
    """Remove folders for named pipes that runs have left whose helper was killed: of this user, not new, and locked by nobody."""
    import shutil
    try:
        names = [name for name in os.listdir(parent) if name.startswith(FOLDER_PREFIX)]
    except OSError:
        return                          # others' names are nobody's business on a hardened machine
    for path in (os.path.join(parent, name) for name in names):
        try:
            found = os.lstat(path)
            if found.st_uid != os.geteuid() or time.time() - found.st_mtime < NEW_FOLDER_S:
                continue                # one that is being made is locked in a moment
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY)
        except OSError:
            continue
        try:
            if stage_locks.try_kernel_lock(descriptor):
                shutil.rmtree(path, ignore_errors=True)
        except OSError:
            pass                        # a file system without locks: nobody knows
        finally:
            os.close(descriptor)


class Launched:
    """A launcher that was started, and the processes below it; to the runner what a process and its Tree are.

    output: the readable end of its output, which whoever reads it closes. After the end: code (negative for a signal), cpu_s,
    max_rss_bytes (the launcher's own; the task's are in its report), survivors, held: the task may still run.
    """

    def __init__(self, helper: LaunchHelper, number: int, output: int, token: str, lease: str) -> None:
        self.helper, self.number, self.output = helper, number, output
        self.token, self.lease = token, lease
        self.descriptor = helper.descriptor
        self.pid = 0
        self.minder, self.minder_started = 0, None
        self.error: Optional[OSError] = None
        self.code: Optional[int] = None
        self.cpu_s, self.max_rss_bytes = 0.0, 0
        self.survivors: List[Any] = []
        self.held = False
        self.is_lost = False                # who watched it was killed
        self.is_begun = True                # False: it is known that the task never started
        self.was_cut = False                # the launcher did not cancel in time, and was killed
        self.unclear: List[int] = []        # of a Tree: here all is known
        self.leader_is_gone = False

    @property
    def is_answered(self) -> bool:
        """Tell whether it is known that it was started, or could not be."""
        return self.pid != 0 or self.error is not None

    def hear(self, answer: Json) -> None:
        """Take in what the minder says."""
        if "pid" in answer:
            self.pid, self.minder, self.minder_started = answer["pid"], answer["minder"], answer["started"]
            return
        self.helper.launched.pop(self.number, None)
        if "error" in answer:
            self.error = OSError(answer["errno"], answer["error"], answer["path"])
        elif "code" in answer and self.pid:
            self.code, self.cpu_s, self.max_rss_bytes = answer["code"], answer["cpuUs"] / 1e6, answer["maxRssBytes"]
            self.survivors, self.held = answer["survivors"], answer["held"]
            self.is_begun, self.was_cut = answer.get("begun", True), answer.get("cut", False)
        else:
            self.lose(UNSTARTED)

    def lose(self, why: str) -> None:
        """Whoever watched it was killed: it cannot be started, for the reason *why*; if it has been, end() does what that would
        have done."""
        self.helper.launched.pop(self.number, None)
        if self.pid:
            self.code, self.held, self.is_lost = -signal.SIGKILL, True, True
        else:
            self.error = OSError(why)

    def take_end(self) -> Optional[int]:
        """Return the exit code if the launcher and its tree have ended, else None; waits for nothing."""
        if self.code is None:
            self.helper.take_answers()
        return self.code

    def ask_to_stop(self) -> None:
        """Let the task end in order; a launcher whose task has not begun cancels it."""
        self._tell(ASK)

    def end(self) -> List[Any]:
        """Have it end: the launcher cancels, and is killed if it does not. The end is yet to come, or has come: survivors.

        Returns at once; but of one that nobody watches any more the end is seen to here, which may take as long as a task may
        live on.
        """
        if self.code is None:
            self._tell(FORCE)
        elif self.is_lost:
            self.is_lost = False
            self.survivors, self.held = end_unwatched(self.token, self.lease)
        return self.survivors + ([TASK] if self.held else [])

    def _tell(self, number: int) -> None:
        """Signal the minder. Where that was killed the helper sees to the rest, or if it is dead, too, end() does."""
        self.helper.take_answers()
        is_dead = self.helper.is_dead()
        if self.code is not None or self._signal(number):
            return
        self.helper.take_answers()      # it may have told of the end before it went
        if self.code is None and is_dead:
            launch_lease.ask_to_stop(self.lease)
            self.lose(DEAD)

    def _signal(self, number: int) -> bool:
        """Signal the minder; False if it is gone. Without /proc it did not know when it was started: then its number must do."""
        if self.minder_started is not None and not process_table.is_alive(self.minder, self.minder_started):
            return False
        try:
            os.kill(self.minder, number)
        except OSError:
            return False
        return True


# --- in the helper ---------------------------------------------------------------------------------------------------

class Helper:
    """Starts a minder for each launch, and cleans up after one that was killed.

    commands, answers: pipes; runner: a pipe that closes with the runner; vital: one that closes with this process.
    """

    def __init__(self, commands: int, answers: int, runner: int, vital: int, folder: str) -> None:
        self.commands, self.answers, self.runner, self.vital, self.folder = commands, answers, runner, vital, folder
        self.minders: Dict[int, Json] = {}                  # pid -> the command that it sees through
        self.cleaners: Set[int] = set()                     # those that clean up
        let_go(commands, answers, runner, vital)
        self.alarm = take_signals((signal.SIGCHLD,))
        # Blocked here and let in by the minder when it is ready: one that came before would kill it.
        signal.pthread_sigmask(signal.SIG_BLOCK, (ASK, FORCE))
        process_tree.become_subreaper()     # what a killed minder leaves behind stays in sight

    def serve(self) -> NoReturn:
        """Do what the runner says until it is gone and the last launch has ended."""
        import select
        pending, is_open = b"", True
        poll = select.poll()
        poll.register(self.alarm, select.POLLIN)
        poll.register(self.commands, select.POLLIN)
        while is_open or self.minders or self.cleaners:
            ready = [descriptor for descriptor, _ in poll.poll()]
            if self.commands in ready:
                data = os.read(self.commands, 1 << 16)
                if not data:            # each minder sees this, too
                    is_open = False
                    poll.unregister(self.commands)
                *lines, pending = (pending + data).split(b"\n")
                for line in lines:
                    self._do(json.loads(line.decode("ascii")))
            if self.alarm in ready:
                empty(self.alarm)
                self._reap()
        import shutil
        shutil.rmtree(self.folder, ignore_errors=True)
        os._exit(0)

    def _fork(self) -> int:
        """As os.fork(). The child lets go of what only the helper may hold: else nobody would see that the helper is dead, and the
        runner would wait for ever for a pipe to be read."""
        pid = os.fork()
        if pid == 0:
            os.close(self.commands)
            os.close(self.vital)
        return pid

    def _do(self, command: Json) -> None:
        try:
            pid = self._fork()
        except OSError as error:        # too many processes, for a moment perhaps
            decline(self.answers, command, error)
            return
        if pid == 0:                    # in the child
            try:
                Minder(command, self.answers, self.runner).mind()
            finally:
                os._exit(1)
        self.minders[pid] = command

    def _reap(self) -> None:
        """Take the exit status of minders that have ended, and clean up after one that was killed."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self.cleaners.discard(pid)
            command = self.minders.pop(pid, None)
            if command is not None and status:
                self._clean_up(command)

    def _clean_up(self, command: Json) -> None:
        """In a child, for it may take a while: end what a killed minder watched."""
        try:
            pid = self._fork()
        except OSError:
            answer(self.answers, command["number"], lost=True)      # the runner does it itself
            return
        if pid:
            self.cleaners.add(pid)
            return
        try:                            # in the child
            left, held = end_unwatched(command["token"], command["lease"])
            answer(self.answers, command["number"], code=-signal.SIGKILL, cpuUs=0, maxRssBytes=0, survivors=left, held=held)
        except BaseException:
            answer(self.answers, command["number"], lost=True)      # the runner would wait for it for ever
        finally:
            os._exit(0)


class Minder:
    """Starts one launcher, ends it when told so or when the runner is gone, and says how it ended."""

    def __init__(self, command: Json, answers: int, runner: int) -> None:
        self.command, self.answers, self.runner = command, answers, runner
        self.lease: str = command["lease"]
        self.is_asked = self.is_forced = False
        self.was_cut = False                # the launcher did not end in time, and was killed
        self.kill_at: Optional[float] = None
        self.alarm = self.here = -1

    def _note(self, number: int, frame: Any) -> None:
        self.is_asked = True
        self.is_forced = self.is_forced or number == FORCE

    def mind(self) -> None:
        """See the launch through."""
        try:
            self._get_ready()
            process = self._start()
        except OSError as error:
            decline(self.answers, self.command, error)
            os._exit(0)
        self._say(pid=process.pid, minder=os.getpid(), started=process_table.start_time(os.getpid()))
        tree = process_tree.Tree(process.pid, self.command["token"])
        code, usage = self._wait(process.pid, tree)
        if code < 0 and not self.is_forced:
            self._settle(tree)
        survivors = tree.end()
        is_begun = launch_lease.has_begun(self.lease)
        held = launch_lease.is_left(self.lease, TASK_S)
        if not held and not survivors:
            remove_quietly(launch_lease.here_path(self.lease))
        self._say(code=code, cpuUs=int((usage.ru_utime + usage.ru_stime) * 1e6), survivors=survivors[:20], held=held, begun=is_begun, cut=self.was_cut,
                  maxRssBytes=usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024))
        os._exit(0)

    def _get_ready(self) -> None:
        self.alarm = take_signals((signal.SIGCHLD,))
        signal.signal(ASK, self._note)
        signal.signal(FORCE, self._note)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (ASK, FORCE))
        process_tree.become_subreaper()
        # Until this process is gone, so is not the launcher: the next run looks at this lock before it starts the stage anew.
        path = launch_lease.here_path(self.lease)
        with naming(path):
            self.here = stage_locks.open_guard(path)
            stage_locks.try_kernel_lock(self.here)

    def _settle(self, tree: Any) -> None:
        """A launcher was killed: what it left behind may be there to cancel its job, as srun's second process is; give it time
        for that."""
        launch_lease.ask_to_stop(self.lease)
        deadline = time.monotonic() + process_tree.LAUNCHER_S
        while tree.living() and time.monotonic() < deadline:
            time.sleep(SETTLE_POLL_S)

    def _start(self) -> Any:
        import subprocess
        command = self.command
        # Not to wait for a reader: the runner that opened the other end may be dead.
        output = os.open(command["output"], os.O_WRONLY | os.O_NONBLOCK)
        os.set_blocking(output, True)
        try:
            return subprocess.Popen(command["argv"], stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=command["folder"],
                                    env=command["env"], close_fds=True, start_new_session=True)
        finally:
            os.close(output)

    def _wait(self, pid: int, tree: Any) -> Tuple[int, Any]:
        """Return the launcher's exit code and what it used."""
        import select
        poll = select.poll()
        poll.register(self.alarm, select.POLLIN)
        poll.register(self.runner, select.POLLIN)       # there is never anything to read: only that nobody can write any more
        was_asked = False
        while True:
            done, status, usage = os.wait4(pid, os.WNOHANG)
            if done:
                return os.WEXITSTATUS(status) if os.WIFEXITED(status) else -os.WTERMSIG(status), usage
            if self.is_forced:
                self._cancel(pid, tree)
            elif self.is_asked and not was_asked:
                was_asked = True
                self._ask(pid)
            left = None if self.kill_at is None else max(10, int((self.kill_at - time.monotonic()) * 1000))
            ready = [descriptor for descriptor, _ in poll.poll(left)]
            if self.alarm in ready:
                empty(self.alarm)
                process_tree.reap_orphans({pid})
            if self.runner in ready:
                poll.unregister(self.runner)
                self.is_forced = True

    def _ask(self, pid: int) -> None:
        is_asked = launch_lease.ask_to_stop(self.lease)
        try:
            is_asked = is_asked and launch_lease.is_held(self.lease)
        except OSError:
            is_asked = False
        if not is_asked:                # nobody can be, or the task has not begun: it may wait in a queue for hours
            process_tree.send([pid], signal.SIGTERM)

    def _cancel(self, pid: int, tree: Any) -> None:
        """Have the launcher cancel what it started; when its time for that is over, end it by force."""
        if self.kill_at is None:
            launch_lease.ask_to_stop(self.lease)
            process_tree.send([pid], signal.SIGTERM)
            self.kill_at = time.monotonic() + process_tree.LAUNCHER_S
        elif time.monotonic() >= self.kill_at:
            self.was_cut = True
            tree.end()

    def _say(self, **what: Any) -> None:
        answer(self.answers, self.command["number"], **what)


def answer(descriptor: int, number: int, **what: Any) -> None:
    """Tell the runner, if it is there, in one write: several minders write to the same pipe."""
    try:
        os.write(descriptor, json.dumps(dict(what, number=number)).encode("ascii") + b"\n")
    except OSError:
        pass


def decline(descriptor: int, command: Json, error: OSError) -> None:
    """Tell the runner why a launcher cannot be started; a path is named where it is not the launcher's."""
    here = launch_lease.here_path(command["lease"])
    remove_quietly(here)
    answer(descriptor, command["number"], error=error.strerror or str(error), errno=error.errno or 0, path=here if error.filename == here else None)


def end_unwatched(token: str, lease: str) -> Tuple[List[int], bool]:
    """End what a killed minder watched; return which processes here would not go (some of them), and whether the task may still
    run.

    First the task, which may end in order; then what is left of it and of its launcher here. A task that cannot be asked is the
    launcher's to cancel.
    """
    is_asked = launch_lease.ask_to_stop(lease)
    held = launch_lease.is_left(lease, TASK_S if is_asked else 0)
    left = process_tree.end_of_dead_owner(token, "", 0)[:20]
    held = held and launch_lease.is_left(lease, 0 if is_asked else TASK_S)
    if not left and not held:
        launch_lease.is_left(launch_lease.here_path(lease), 0)
    return left, held


def let_go(*kept: int) -> None:
    """Hold nothing of the runner's but *kept*: a lock's descriptor would keep its stage held."""
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    start = 3
    for descriptor in sorted(kept) + [guardian.highest_descriptor() + 1]:
        os.closerange(start, descriptor)
        start = descriptor + 1


def take_signals(numbers: Sequence[int]) -> int:
    """Let no signal that a terminal sends end this process, nor be ignored by what it starts; return what is readable after each
    of *numbers*."""
    alarm, ring = os.pipe()
    for descriptor in (alarm, ring):
        os.set_blocking(descriptor, False)
    signal.set_wakeup_fd(ring, warn_on_full_buffer=False)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, *numbers):
        if number in numbers or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda number, frame: None)
    return alarm


def empty(descriptor: int) -> None:
    try:
        os.read(descriptor, 4096)
    except BlockingIOError:
        pass
