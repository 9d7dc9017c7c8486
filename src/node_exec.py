"""A launched task on its machine: the network closed there, the processor started, its whole tree ended, a report left.

Above the leaves and below offline_guard, whose `exec --lease` this is; *guard* is that module, handed in because it runs as a
program. It stands where the launcher put it, perhaps on another machine:

    launcher -> offline_guard.py exec --lease FILE -> Held lease -> network closed -> processor -> report

What is to be run stands in the lease, not in the launcher's words: a launcher may hand these to a shell, which reads them anew.
"""
from __future__ import annotations

import os
import signal
import sys
import time

import launch_lease
import node_report
import process_table
import process_tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List, Tuple

EXIT_REFUSED = 6            # nothing was started
EXIT_NOT_STARTED = 126      # the same, for the machine's sake; as shells have it
LOOK_MS = 200               # between two looks at the lease: whether the task shall stop
OWN_SIGNAL_S = 0.3          # how long after the processor's our own signal may come, where an engine signals all of a task


def run_leased(lease: str, guard: Any) -> int:
    """Run what a lease says; return its exit code, 128+n for a signal, 6 if nothing was started."""
    try:
        held = launch_lease.Held(lease)
    except launch_lease.LeaseProblem as problem:
        guard.say("%s; nothing was started" % problem)
        return EXIT_REFUSED
    command: List[str] = held.plan["command"]
    plan, report = held.plan, node_report.NodeReport(held.plan["report"], held.plan["token"])
    status, listener = guard.Status("none", False, False, False, "left out by offline.layers"), None
    if plan["close"] != "no":
        status, listener = guard.close_network(plan["strict"])

    def leave_report(why: str = "", **more: Any) -> None:
        problem = report.end(_host(), status.to_json(), why, **more)
        if problem:
            guard.say(problem)

    if status.method == "none" and plan["close"] == "must":
        guard.say("the network cannot be closed here: %s; nothing was started" % status.why)
        leave_report("the network cannot be closed on %s: %s" % (_host(), status.why), is_unclosed=True)
        return EXIT_REFUSED
    folder = str(plan["environment"].get("PIPELINE_OUTPUT_DIR", ""))
    if not os.path.isdir(os.path.join(plan["root"], folder)):
        why = "cannot start %s: the output folder %s is not there on %s: all machines must see the same files" % (command[0], folder, _host())
        guard.say(why + "; nothing was started")
        leave_report(why)
        return EXIT_NOT_STARTED
    process_tree.become_subreaper()
    import subprocess
    try:
        noted, alarm = guard.note_signals()
        # Engines that end a job by its process group shall reach the processor. Elsewhere than on Linux its session marks its
        # tree.
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, cwd=plan["root"], env=_environment(plan, status.method != "none"),
                                   start_new_session=not process_table.LINUX, pass_fds=(held.descriptor,))
    except OSError as error:
        why = "cannot start %s on %s: %s" % (command[0], _host(), error.strerror or error)
        guard.say(why)
        leave_report(why)
        return 127 if isinstance(error, FileNotFoundError) else 126
    task = Task(held, process, report, guard)
    code = guard.wait_for(process, listener, noted, alarm, task, task.look, LOOK_MS)
    task.await_signal(code, noted, alarm)
    left = task.tree.end()
    launch_lease.ask_to_stop(lease)     # whoever starts it a second time would do the work twice
    for refusal in listener.drain() if listener is not None else ():
        task.tell(refusal)
    exit_code = int(128 - code if code < 0 else code)
    if not left:                        # else no last word: there is somebody who could still do something
        cpu_us, max_rss_bytes = _cost()
        leave_report(cpu_us=cpu_us, max_rss_bytes=max_rss_bytes, exit_code=exit_code, stopped_by=task.stopped_by)
    return exit_code


class Task:
    """The processor that runs: its tree, its end when the lease asks for it, what it tried."""

    def __init__(self, held: launch_lease.Held, process: Any, report: node_report.NodeReport, guard: Any) -> None:
        self.held, self.report, self.guard = held, report, guard
        self.tree = process_tree.Tree(process.pid, str(held.plan["token"]))
        self.stopped_by = 0             # the signal by which somebody else than the runner has ended it: its engine, most likely
        self.stop_at = 0.0              # when the grace of a task that was asked to stop is over

    def look(self) -> None:
        """Ask the processor to stop when the lease does, end it by force after the grace; let what it has orphaned go."""
        process_tree.reap_orphans({self.tree.pid})
        if not self.stop_at:
            if self.held.is_stop_asked():
                self.stop_at = time.monotonic() + float(self.held.plan["graceSec"])
                self.tree.ask_to_stop()
                try:
                    os.write(2, b"[LAUNCH] asked to stop\n")
                except OSError:
                    pass                # a launcher that was killed may have been who read it
        elif time.monotonic() >= self.stop_at:
            self.tree.end()

    def await_signal(self, code: int, noted: List[int], alarm: int) -> None:
        """After an end as by an engine, which signals all of a task in no certain order: give our own signal a moment to come."""
        import select
        poll = select.poll()
        poll.register(alarm, select.POLLIN)
        is_like_that = (-code if code < 0 else code - 128) in (signal.SIGTERM, signal.SIGHUP)
        left_s = OWN_SIGNAL_S if is_like_that and not self.stop_at and not self.held.is_stop_asked() else 0.0
        deadline = time.monotonic() + left_s
        while left_s > 0 and not self.stopped_by:
            if poll.poll(int(left_s * 1000) + 1):
                os.read(alarm, 4096)
            while noted:
                self.signalled(noted.pop(0))
            left_s = deadline - time.monotonic()

    def signalled(self, number: int) -> None:
        """Note a signal that is passed on to the processor, or has come when that was gone."""
        if number in (signal.SIGTERM, signal.SIGHUP) and not self.stop_at and not self.held.is_stop_asked():
            self.stopped_by = int(number)

    def tell(self, refusal: Any) -> None:
        """Report a refused call and say it on stderr, which goes to the attempt's log."""
        program = self.guard.program_of(refusal.argv, self.held.plan["root"])
        if self.report.add(program, refusal.pid, refusal.kind, refusal.counted):
            self.guard.say("%s (pid %d) tried to %s %s: refused" % (program, refusal.pid, "open" if refusal.counted else "use", refusal.kind))

    def end(self) -> None:
        """Nothing is held back that would have to be said."""


def _environment(plan: Dict[str, Any], is_closed: bool) -> Dict[str, str]:
    """Return the processor's variables: what the launcher passed on, and the runner's own."""
    env = {name: value for name, value in os.environ.items() if name != process_tree.LAUNCHER_VARIABLE}
    env.update(plan["environment"])
    if "PIPELINE_HOOK" in plan["environment"]:
        env["PIPELINE_HOOK"] = "report" if is_closed else "enforce"
    return env


def _cost() -> Tuple[int, int]:
    """Return processor time in µs and the largest resident size in bytes of all that has ended here."""
    import resource
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return int((usage.ru_utime + usage.ru_stime) * 1e6), usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _host() -> str:
    """Return the machine's name; where Slurm gives nodes names of their own, that."""
    return os.environ.get("SLURMD_NODENAME") or os.uname().nodename
