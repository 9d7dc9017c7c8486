"""Who runs when: flows of work that wait for attempts, for one another and for the clock, in one thread.

Above the leaves and below the runner. A flow is a generator; what it yields is what it waits for:

    Attempting    a processor to be started when there is room; the flow goes on with its AttemptResult
    Pause         a time; the flow goes on when it is over or a signal came
    Spawn         another flow to be started beside this one; the flow goes on at once
    Next          the end of one of the flows that it spawned; the flow goes on with (flow's name, what it returned)

Flows go on in the order in which what they waited for came; attempts are started by rank. So everything but the
processors happens in one order, and no record has two writers.
"""
from __future__ import annotations

import time
from collections import deque, namedtuple

import attempts
import run_signals

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Deque, Dict, Generator, List, Optional, Tuple
    Flow = Generator[Any, Any, Any]


class Attempting(namedtuple("Attempting", "make rank cores memory_mb group", defaults=(None,))):
    """A wish for an attempt: make(slot) returns (Launch, network) when there is room, or the AttemptResult of one that cannot be
    started; lower ranks come first.

    cores and memory_mb: how much of the limits it takes up while it runs. group: its attempts are started whether or not
    others of it failed. A slot is an attempt's until its flow has gone on: what it left there is taken by then.
    """

    __slots__ = ()


def slots_for(jobs: int) -> int:
    """Return how many slots there are: one for each attempt under way, one for each that has ended and is seen to."""
    return 2 * jobs


class Pause(namedtuple("Pause", "seconds")):
    __slots__ = ()


class Spawn(namedtuple("Spawn", "name flow")):
    __slots__ = ()


class Next(namedtuple("Next", "")):
    __slots__ = ()


class _Running:
    """A flow and what it waits for."""

    def __init__(self, name: Any, flow: Flow, parent: Optional[_Running]) -> None:
        self.name, self.flow, self.parent = name, flow, parent
        self.ended: Deque[Tuple[Any, Optional[BaseException]]] = deque()    # its children's ends that it has not asked for yet
        self.children = 0
        self.waits_for_child = False


class Scheduler:
    """Runs flows on a pool, within limits on processor cores and memory."""

    def __init__(self, pool: attempts.Pool, jobs: int, max_memory_mb: Optional[int] = None) -> None:
        self.pool, self.jobs, self.max_memory_mb = pool, jobs, max_memory_mb
        self.ready: Deque[Tuple[_Running, Any, Optional[BaseException]]] = deque()  # (flow, value or error to go on with)
        self.wishes: List[Tuple[Any, int, _Running, Attempting]] = []
        self.under_way: Dict[attempts.Attempt, Tuple[_Running, Attempting, int]] = {}
        self.pauses: List[Tuple[float, int, _Running]] = []
        self.results: Deque[Tuple[Any, Any]] = deque()      # of flows without a parent
        self.free_slots = list(range(slots_for(jobs)))
        self.taken: List[Tuple[int, Attempting]] = []       # slots of ended attempts whose flows have not gone on yet
        self.count = 0
        self.alive = 0
        self.error: Optional[BaseException] = None

    def start(self, name: Any, flow: Flow, parent: Optional[_Running] = None) -> None:
        """Start a flow; its end is told by ended()."""
        self.ready.append((self._new(name, flow, parent), None, None))

    def take(self, name: Any, flow: Flow, wish: Any) -> None:
        """Take over a flow that has been started and waits for *wish*."""
        running = self._new(name, flow, None)
        if not self._take_wish(running, wish):
            self.ready.append((running, None, None))

    def _new(self, name: Any, flow: Flow, parent: Optional[_Running]) -> _Running:
        self.alive += 1
        if parent is not None:
            parent.children += 1
        return _Running(name, flow, parent)

    def has_room(self, cores: int, memory_mb: int) -> bool:
        """Tell whether so much is left of the limits, when all attempts are under way that are wished for now."""
        wished = [wish for _, _, _, wish in self.wishes]
        return self._is_left(cores, memory_mb, [wish for _, wish, _ in self.under_way.values()] + wished)

    def _is_left(self, cores: int, memory_mb: int, taken: List[Attempting]) -> bool:
        is_wide = sum(one.cores for one in taken) + cores <= self.jobs
        return is_wide and (self.max_memory_mb is None or sum(one.memory_mb for one in taken) + memory_mb <= self.max_memory_mb)

    def ended(self) -> Optional[Tuple[Any, Any]]:
        """Go on until a flow without a parent has ended; return (its name, what it returned), None when none is left.

        Raises what a flow raised, after all others have come to their end.
        """
        while not self.results:
            if not self.ready and not self.alive:
                if self.error is not None:
                    raise self.error
                return None
            self._round()
        return self.results.popleft()

    def step(self) -> None:
        """Let all go on that can, without waiting."""
        if self.taken:
            self._start_early()
        while self.ready:
            self._go_on(*self.ready.popleft())
        self.free_slots = sorted(self.free_slots + [slot for slot, _ in self.taken])
        self.taken.clear()
        self._start_wishes()

    def _start_early(self) -> None:
        """Give the room of ended attempts to the next of the same group before their flows go on: processors need not wait for
        our bookkeeping."""
        groups = {wish.group for _, wish in self.taken}
        if len(groups) == 1 and None not in groups:
            self._start_wishes(groups.pop())

    def _round(self) -> None:
        self.step()
        if self.results or self.ready or not self.alive:
            return
        now = time.monotonic()
        due = [one for one in self.pauses if one[0] <= now or self.pool.signals.number]
        if due:
            self.pauses = [one for one in self.pauses if one not in due]
            self.ready.extend((running, None, None) for _, _, running in sorted(due, key=lambda one: one[:2]))
            return
        until = min([one[0] for one in self.pauses], default=None)
        for attempt in self.pool.wait(None if until is None else max(0.0, until - now)):
            self._attempt_ended(attempt)

    def _attempt_ended(self, attempt: attempts.Attempt) -> None:
        running, wish, slot = self.under_way.pop(attempt)
        self.taken.append((slot, wish))
        self.ready.append((running, attempt.result, None))

    def _start_wishes(self, group: Any = None) -> None:
        """Start what there is room for, by rank; when a signal asks to stop, nothing is started any more. group: only its wishes,
        up to another's."""
        self.wishes.sort(key=lambda one: one[:2])
        while self.wishes and not self.pool.is_draining:
            _, _, running, wish = self.wishes[0]
            if group is not None and wish.group != group:
                return
            if self.pool.signals.number or self.error is not None:
                self.ready.append((running, NOT_STARTED, None))
            elif not self._has_room(wish):
                return
            else:
                self._start_attempt(running, wish)
            self.wishes.pop(0)

    def _has_room(self, wish: Attempting) -> bool:
        taken = [one for _, one, _ in self.under_way.values()]
        return not taken or len(taken) < self.jobs and self._is_left(wish.cores, wish.memory_mb, taken)     # what wants more than there is runs alone

    def _start_attempt(self, running: _Running, wish: Attempting) -> None:
        slot = self.free_slots[0]
        try:
            made = wish.make(slot)
            if isinstance(made, attempts.AttemptResult):        # there is nothing to start
                self.ready.append((running, made, None))
                return
            attempt = self.pool.start(*made)
        except BaseException as error:  # noqa: B902 (it is the flow's: it goes on with it)
            self.ready.append((running, None, error))
        else:
            self.under_way[attempt] = (running, wish, self.free_slots.pop(0))

    def _go_on(self, running: _Running, value: Any, error: Optional[BaseException]) -> None:
        """Let a flow go on, until it waits for something again."""
        while True:
            try:
                wish = running.flow.throw(error) if error is not None else running.flow.send(value)
            except StopIteration as stop:
                return self._flow_ended(running, stop.value, None)
            except BaseException as raised:     # noqa: B902 (raised again when the others have come to their end)
                return self._flow_ended(running, None, raised)
            value, error = None, None
            if isinstance(wish, Next) and running.ended:
                value, error = running.ended.popleft()
            elif not self._take_wish(running, wish):
                continue
            else:
                return None

    def _take_wish(self, running: _Running, wish: Any) -> bool:
        """Note what a flow waits for; False if there is nothing to wait for."""
        self.count += 1
        if isinstance(wish, Spawn):
            self.start(wish.name, wish.flow, running)
            return False
        if isinstance(wish, Attempting):
            self.wishes.append((wish.rank, self.count, running, wish))
        elif isinstance(wish, Pause):
            self.pauses.append((time.monotonic() + wish.seconds, self.count, running))
        else:
            running.waits_for_child = running.children > 0
            return running.waits_for_child
        return True

    def _flow_ended(self, running: _Running, value: Any, error: Optional[BaseException]) -> None:
        self.alive -= 1
        parent = running.parent
        self.error = self.error or error        # from now on nothing is started
        if parent is None:
            if error is None:
                self.results.append((running.name, value))
            return
        parent.children -= 1
        if parent.waits_for_child:
            parent.waits_for_child = False
            self.ready.append((parent, (running.name, value), error))
        else:
            parent.ended.append(((running.name, value), error))


NOT_STARTED = attempts.not_begun(run_signals.INTERRUPTED, stopped=True)
