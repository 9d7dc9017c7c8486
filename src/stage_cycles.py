"""Cycles among stages that wait for one another.

A leaf: edges are {a name: the names it waits for}.
"""
from __future__ import annotations

from collections import deque

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Dict, List, Sequence, Set



def shown_cycle(names: Sequence[str]) -> List[str]:
    """Return the stages of a cycle, of a long one the first and the last few."""
    most = 10
    return list(names) if len(names) <= most else [*names[:most - 3], "(%d more)" % (len(names) - most + 1), *names[-2:]]


def find_path(edges: Dict[str, List[str]], start: str, goal: str) -> List[str]:
    """Return the names from *start* to *goal* along *edges*, or [] if there is no way."""
    before = {start: start}
    queue = deque([start])
    while queue:
        name = queue.popleft()
        if name == goal:
            way = [name]
            while way[-1] != start:
                way.append(before[way[-1]])
            return way[::-1]
        for after in edges.get(name, []):
            if after not in before:
                before[after] = name
                queue.append(after)
    return []


def in_cycles(edges: Dict[str, List[str]]) -> Set[str]:
    """Return the names that are in a cycle along *edges*, and those between two cycles; all that is named is a key of *edges*."""
    left = _not_before_an_end(edges)
    back: Dict[str, List[str]] = {name: [] for name in left}
    for name in left:
        for after in edges[name]:
            if after in left:
                back[after].append(name)
    return _not_before_an_end(back)


def _not_before_an_end(edges: Dict[str, List[str]]) -> Set[str]:
    """Return the names from which a way along *edges* goes on for ever."""
    before: Dict[str, List[str]] = {}
    for name, others in edges.items():
        for after in others:
            before.setdefault(after, []).append(name)
    ways = {name: len(others) for name, others in edges.items()}
    ended = [name for name, count in ways.items() if not count]
    for name in ended:                  # grows as it is read
        for one in before.get(name, ()):
            ways[one] -= 1
            if not ways[one]:
                ended.append(one)
    return set(edges).difference(ended)
