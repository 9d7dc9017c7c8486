"""Cycles among stages that wait for one another.

A leaf: edges are {a name: the names it waits for}.
"""
from __future__ import annotations

from collections import deque

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Dict, List, Sequence


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


def components(edges: Dict[str, List[str]]) -> Dict[str, int]:
    """Return {a name: the number of its component}; two names have the same one if along *edges* there is a way from each to the
    other. All that is named is a key of *edges*.

    Source: R. Tarjan, "Depth-first search and linear graph algorithms", SIAM J. Comput. 1 (1972), without recursion.
    """
    number: Dict[str, int] = {}         # in the order in which they are come to
    lowest: Dict[str, int] = {}         # of those that are known to be on a circle with this one
    found: Dict[str, int] = {}
    open_names: List[str] = []          # come to, and not yet of a component
    for first in edges:
        way = [] if first in number else [(first, iter(edges[first]))]
        while way:
            name, left = way[-1]
            if name not in number:
                number[name] = lowest[name] = len(number)
                open_names.append(name)
            for after in left:
                if after not in number:
                    way.append((after, iter(edges[after])))
                    break
                if after not in found:
                    lowest[name] = min(lowest[name], number[after])
            else:
                way.pop()
                if way:
                    lowest[way[-1][0]] = min(lowest[way[-1][0]], lowest[name])
                while lowest[name] == number[name] and name not in found:
                    found[open_names.pop()] = number[name]
    return found
