"""The offline guard of a run: the network closed before the first processor, and who tried to use it named.

Above the leaves and below the runner.

    kernel    offline_guard.Listener: a refused call stops its caller until it is answered, so nobody ends unseen
    hook      a file that Python processors write: file and line; where the kernel tells nothing, also who tried

What a processor does with the error that it gets does not matter: each attempt is recorded.
"""
from __future__ import annotations

import os

import environment
import hook_log
import node_report
import offline_guard
import process_table
import process_traits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List, Sequence

    from model import Offline
    Json = Dict[str, Any]

HOOK_FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "python_hook")
MAX_REFUSALS = 100          # different ones recorded of an attempt; the rest is one entry
OTHERS = ("(others)", "further kinds", "")


class NetworkWatch:
    """The guard of a run, from the moment the network is closed; irreversible."""

    def __init__(self, offline: Offline, root: str) -> None:
        self.root = root
        self.listener: Any = None
        self.under_way: List[AttemptNetwork] = []
        if "kernel" in offline.layers:
            self.status, self.listener = offline_guard.close_network(offline.strict)
        else:
            self.status = offline_guard.Status("none", False, False, False, "left out by offline.layers")
        self.is_closed = self.status.method != "none"
        self.hook = "" if "hook" not in offline.layers else "report" if self.is_closed else "enforce"

    def isolation(self) -> Json:
        """Return what the run record says."""
        hook = {"report": "reports file and line", "enforce": "advisory: Python processors only", "": "none"}[self.hook]
        return {"kernel": self.status.to_json(), "hook": hook, "asRoot": hasattr(os, "geteuid") and os.geteuid() == 0}

    def text(self) -> str:
        """Return what the user is told."""
        if self.is_closed:
            how = {"outer": "closed already by a runner around this one", "sandbox": "sandbox_init"}.get(self.status.method, self.status.method)
            return "kernel: network closed for this run (%s%s%s)" % (how, ", strict" if self.status.strict else "",
                                                                     ", probed" if self.status.probed else "")
        why = "kernel layer: none (%s)" % self.status.why
        if not self.hook:
            return why + "; nothing refuses the network to a processor"
        return "hook: Python processors are refused the network (advisory: other programs are not); " + why

    def take(self, refusals: Sequence[Any]) -> None:
        """Note refused calls with the attempts that made them; one whose maker cannot be told counts for each attempt under
        way."""
        for refusal in refusals:
            for one in [one for one in self.under_way if one.leader == refusal.owner] or list(self.under_way):
                one.note_refusal(refusal)

    def owner_of(self, pid: int) -> int:
        """Return the leader of the attempt to which a process belongs: by its ancestors, its session, or its token; 0 if none."""
        leaders = {one.leader: one.token for one in self.under_way}
        if len(leaders) == 1:
            return next(iter(leaders))
        current, stat = pid, process_table.read_stat(pid)
        session = stat[2] if stat is not None else 0
        while stat is not None and current > 1:
            if current in leaders:
                return current
            current = stat[1]
            stat = process_table.read_stat(current)
        if session in leaders:
            return session
        try:
            return next((leader for leader, token in leaders.items() if token and process_traits.has_token(pid, token)), 0)
        except OSError:
            return 0                    # the system cannot tell now

    def attempt(self, stage: str, log_path: str, console: Any) -> AttemptNetwork:
        """Return the watch over one attempt; *log_path* is where the hook may write."""
        return AttemptNetwork(self, stage, log_path, console)


class AttemptNetwork:
    """What one attempt tried. `descriptor` is to be polled, `take()` called when it is readable, `finish()` at the end."""

    def __init__(self, watch: NetworkWatch, stage: str, log_path: str, console: Any) -> None:
        self.watch, self.stage, self.log_path, self.console = watch, stage, log_path, console
        self.descriptor: int = watch.listener.descriptor if watch.listener is not None else -1
        self.refusals: Dict[Any, Json] = {}
        self.leader, self.token = 0, ""
        self.notes: List[Any] = []      # what the hook has written, read again when its file has grown
        self.notes_bytes = 0

    def environment(self, own: Dict[str, str]) -> Dict[str, str]:
        """Return the variables that the hook needs; *own* are the stage's."""
        if not self.watch.hook:
            return {}
        path = environment.value_of(own, "PYTHONPATH")
        return {"PYTHONPATH": HOOK_FOLDER + (os.pathsep + path if path else ""), "PIPELINE_HOOK": self.watch.hook, "PIPELINE_HOOK_LOG": self.log_path}

    def began(self, pid: int, token: str) -> None:
        """Say that the attempt's processor has been started."""
        self.leader, self.token = pid, token
        self.watch.under_way.append(self)

    def take(self) -> None:
        """Answer one refused call, whichever attempt made it, note it there, and say it at once."""
        refusal = self.watch.listener.answer(self.watch.owner_of)
        if refusal is not None:
            self.watch.take([refusal])

    def finish(self) -> None:
        """After the processor's end: answer what still waits; where the kernel tells nothing, see what the hook wrote."""
        if self.watch.listener is not None:
            self.watch.take(self.watch.listener.drain(self.watch.owner_of))
        elif self.watch.hook:
            self._note_hooked(self.watch.hook == "enforce")

    def node_report(self) -> str:
        """Return where a launched task is to report."""
        return self.log_path[:-len("network")] + "node"

    def take_node_report(self) -> Any:
        """After the end of a launched task: note what it tells of its machine; return it (node_report.Told)."""
        told = node_report.read(self.node_report())
        for one in told.refusals:
            place = hook_log.place_of(self._read_notes(), one["pid"], one["kind"]) if self.watch.hook else ""
            self._note(one["program"], one["pid"], one["kind"], place, one["counted"], one["count"])
        if self.watch.hook and told.is_whole and told.kernel["method"] == "none":
            self._note_hooked(True)
        return told

    def _note_hooked(self, all_kinds: bool) -> None:
        for note in hook_log.read_notes(self.log_path):
            if all_kinds or note.kind != hook_log.LOOK_UP:      # a look-up may be answered without the network
                self._note(offline_guard.program_of(["python", note.program], self.watch.root), note.pid, note.kind, note.place, True)

    def close(self) -> None:
        """After the end of the last process."""
        self.watch.under_way.remove(self)

    def recorded(self) -> List[Json]:
        """Return what a run record says of it."""
        return list(self.refusals.values())

    def fault(self) -> str:
        """Return why the attempt fails, "" if it did not try to use the network."""
        counted = [one for one in self.refusals.values() if one["counted"]]
        return "it tried to use the network: " + "; ".join(
            "%s: %s%s" % (one["program"], one["kind"], " (%s)" % one["place"] if one["place"] else "") for one in counted[:3]) if counted else ""

    def note_refusal(self, refusal: Any) -> None:
        """Note a refused call that the kernel told of."""
        place = hook_log.place_of(self._read_notes(), refusal.pid, refusal.kind) if self.watch.hook else ""
        self._note(offline_guard.program_of(refusal.argv, self.watch.root), refusal.pid, refusal.kind, place, refusal.counted)

    def _read_notes(self) -> List[Any]:
        try:
            size = os.stat(self.log_path).st_size
        except OSError:
            size = 0
        if size != self.notes_bytes:
            self.notes, self.notes_bytes = hook_log.read_notes(self.log_path), size
        return self.notes

    def _note(self, program: str, pid: int, kind: str, place: str, counted: bool, count: int = 1) -> None:
        key = (program, kind, place)
        if key not in self.refusals and len(self.refusals) >= MAX_REFUSALS:
            key = OTHERS
        known = self.refusals.setdefault(key, {"program": key[0], "pid": pid, "kind": key[1], "place": key[2], "count": 0, "counted": counted})
        known["count"] += count
        known["counted"] = known["counted"] or counted
        if known["count"] == count:
            what = kind if kind == hook_log.LOOK_UP else "to use " + kind if not counted else "to open " + kind
            self.console.line("[OFFLINE] stage %s: %s (pid %d) tried %s: refused%s%s" % (
                self.stage, program, pid, what, " (%s)" % place if place else "", "" if counted
                else " (not counted as an attempt to use the network)"))
