"""Requests to stop a command (Ctrl-C, SIGTERM, SIGHUP, on Windows SIGBREAK): the first ends it by an exception, later ones change nothing.

A leaf. A run takes them over itself from its first attempt on (run_signals.Signals). Two may come at once, as from systemd with
SendSIGHUP=yes: the second must not end what the first has begun to tell.
"""
from __future__ import annotations

import time

import _signal  # type: ignore[import-not-found]

from model import Terminated

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Iterator, List

NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
AT_ONCE_S = 1.0             # requests that come closer than this are one
_over: List[bool] = []      # not empty: the command is about to end
_asked_at: List[float] = [] # by time.monotonic(): when the last request came that was raised


def heed() -> None:
    """Let each of them raise Terminated in the main thread, once. What is ignored stays so."""
    _over.clear()
    _asked_at.clear()
    for number in _numbers():
        if _signal.getsignal(number) in (_signal.SIG_DFL, _signal.default_int_handler):
            _signal.signal(number, _stop)


def silence() -> None:
    """What was to be done is done, or a request has arrived: no other changes the outcome any more, where heed() has taken
    them."""
    _over.append(True)


def leave() -> None:
    """All is told, and what is left of the process may be ended as any other."""
    for number in _numbers():
        if callable(_signal.getsignal(number)):
            _signal.signal(number, _signal.SIG_DFL)


def _numbers() -> Iterator[int]:
    return (getattr(_signal, name) for name in NAMES if hasattr(_signal, name))


def _stop(number: int, frame: Any) -> None:
    """An exception that is raised in a callback or in __del__ is lost, so a later request is raised again until silence() says
    that one has arrived."""
    now = time.monotonic()
    if not _over and not (_asked_at and now - _asked_at[0] < AT_ONCE_S):
        _asked_at[:] = [now]
        raise Terminated(number)
