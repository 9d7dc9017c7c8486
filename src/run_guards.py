"""What guards the processes of a run: the network closed around them, and somebody who ends them if the runner dies.

Above network_watch, launch_helper and process_tree, below the engine, whose Run has one RunGuards once something may be started.

    close_network() -> watch_processes() -> attempts ... -> close()
"""
from __future__ import annotations

import network_watch
import guardian
import process_table
import process_tree
from model import OfflineError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, List, Optional

    import launch_helper
    from engine import Run


LATER: Any = None


class RunGuards:
    """The guards of one run, each set up once.

    network: watches over the use of the network; launches: starts the launchers, none if no stage has one; guardian: ends what
    the runner leaves behind if it is killed; others: children of this process that are none of the run's.
    """

    def __init__(self, run: Run) -> None:
        """*run*: the engine's Run."""
        self.run = run
        self.network: network_watch.NetworkWatch = LATER
        self.launches: launch_helper.LaunchHelper = LATER
        self.guardian: Optional[guardian.Guardian] = None
        self.others: List[int] = []

    def close_network(self) -> None:
        """Close the network for this process and all that it will start, and say how in the run's isolation. Raises: OfflineError
        where it must be had."""
        if self.network is not None:
            return
        run = self.run
        if any(stage.launcher for stage in run.selected):
            import launch_helper
            self.launches = launch_helper.LaunchHelper()        # before the network is closed: launchers need it
            run.isolation["launcher"] = launch_helper.ISOLATION
        self.network = network_watch.NetworkWatch(run.spec.offline, run.root)
        run.isolation.update(self.network.isolation())
        if self.launches is not None and self.network.status.method == "outer":
            run.isolation["launcher"] += "; a runner around this one has closed the network for the launchers, too"
        if run.spec.offline.require == "kernel" and not self.network.is_closed:
            raise OfflineError("\"offline\": the kernel must close the network, and cannot here: %s; nothing was run" % self.network.status.why)
        run.console.line("[OFFLINE] " + self.network.text())

    def watch_processes(self) -> None:
        """Start the guardian, adopt orphans from now on."""
        if self.guardian is not None:
            return
        self.others = process_table.own_children() if process_table.LINUX else []
        self.guardian = guardian.Guardian(lambda text: self.run.console.line("[NOTE] " + text))
        self.guardian.start()
        process_tree.become_subreaper()

    def close(self) -> None:
        """End the guards' own processes."""
        if self.guardian is not None:
            self.guardian.close()
        if self.launches is not None:
            self.launches.close()
