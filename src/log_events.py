"""The stable lines of a run as JSON objects, one for each event, for `--log-format json`.

A leaf. A line and its object are made from the same call, so neither can say what the other does not. The fields that
a line spells are taken apart here, and what it rounds comes beside it; the forms are those of docs/operating.md.
"""
from __future__ import annotations

import json
import re
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict
    Json = Dict[str, Any]

# event -> what its line says after the stage's name; the groups are the fields
FORMS = {
    "START": r"(?: \((?P<text>.*)\))?",
    "RESUME": r" from line (?P<line>\d+)",
    "SKIP": r" \((?P<reason>.*)\)",
    "RETRY": r" attempt (?P<attempt>\d+)/(?P<attempts>\d+): (?P<reason>.*); next in (?P<delayMs>[0-9.]+)s",
    "DONE": r" in (?P<durationMs>[0-9.]+)s(?P<text>.*)",
    "FAIL": r": (?P<reason>.*)",
    "STOP": r": (?P<reason>.*)",
    "NOTE": r": (?P<text>.*)"}
NUMBERS = ("line", "attempt", "attempts")


def subject_of(subject: str) -> Json:
    """Return {"stage"} and, where the line is of one of several tasks ("STAGE TASK"), {"task"}; stages have no blanks in their
    names."""
    stage, blank, task = subject.partition(" ")
    return {"stage": stage, "task": task} if blank else {"stage": stage}


def event_of(kind: str, subject: str, text: str) -> Json:
    """Return the event of a stage's line: "event" in lower case, "stage", "task", and the fields of its form; else "text"."""
    event: Json = dict({"event": kind.lower()}, **subject_of(subject))
    form = FORMS.get(kind)
    match = re.fullmatch(form, text, re.DOTALL) if form is not None else None
    if match is None:
        event["text"] = text.lstrip(": ")
        return event
    for name, value in match.groupdict().items():
        if name in NUMBERS:
            event[name] = int(value)
        elif name.endswith("Ms"):
            event[name] = int(float(value) * 1000 + 0.5)
        elif value:
            event[name] = value.strip() if name == "text" else value
    return event


def event_of_line(text: str) -> Json:
    """Return the event of a line that is of the run, not of a stage: "[LEDGER] head 12: 9f3a-...", "[OFFLINE] ..."."""
    match = re.fullmatch(r"\[([A-Z]+)\] (.*)", text, re.DOTALL)
    if match is None:
        return {"event": "message", "text": text}
    kind, rest = match.group(1).lower(), match.group(2)
    if kind == "ledger" and rest.startswith("head "):
        return {"event": "ledger", "head": rest[len("head "):]}
    return {"event": kind, "text": rest}


def event_line(event: Json, run_id: str, seconds: float) -> str:
    """Return the event as one line of JSON in ASCII, with its time and run; *seconds* since the epoch."""
    whole, thousandths = divmod(int(seconds * 1000), 1000)
    at = "%s.%03dZ" % (time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole)), thousandths)
    return json.dumps(dict({"time": at, "event": event["event"], "run": run_id}, **event), allow_nan=False) + "\n"
