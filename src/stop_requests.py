"""Requests to stop a command (Ctrl-C, SIGTERM, SIGHUP, on Windows SIGBREAK): the first ends it by an exception, later ones change nothing.

A leaf. A run takes them over itself from its first attempt on (attempts.Signals). Two may come at once, as from systemd with
SendSIGHUP=yes: the second must not end what the first has begun to tell.
"""
from __future__ import annotations

import _signal  # type: ignore[import-not-found]

from model import Terminated

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Iterator, List

NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
_over: List[bool] = []      # not empty: the command has been asked, or has come to its end


def heed() -> None:
    """Let each of them raise Terminated in the main thread, once. What is ignored stays so."""
    _over.clear()
    for number in _numbers():
        if _signal.getsignal(number) in (_signal.SIG_DFL, _signal.default_int_handler):
            _signal.signal(number, _stop)


def silence() -> None:
    """What was to be done is done: none of them changes the outcome any more, where heed() has taken them."""
    _over.append(True)


def leave() -> None:
    """All is told, and what is left of the process may be ended as any other."""
    for number in _numbers():
        if callable(_signal.getsignal(number)):
            _signal.signal(number, _signal.SIG_DFL)


def _numbers() -> Iterator[int]:
    return (getattr(_signal, name) for name in NAMES if hasattr(_signal, name))


def _stop(number: int, frame: Any) -> None:
    if not _over:
        _over.append(True)
        raise Terminated(number)
