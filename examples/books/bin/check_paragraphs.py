"""Let through what is text; set aside, with line number and reason, what is not."""
from __future__ import annotations

from processor_kit import Reject, lines, params

LONGEST = params().get("longest", 5000)


def check(line):
    fields = line.rstrip("\n").split("\t")
    if len(fields) != 3:
        raise Reject("%d fields instead of 3" % len(fields))
    text = fields[2]
    if not any(c.isalpha() for c in text):
        raise Reject("no letters: an ornament, not text")
    if not text.isprintable():
        raise Reject("control characters")
    if len(text) > LONGEST:
        raise Reject("%d characters, more than %d" % (len(text), LONGEST))
    return line


lines(check, "paragraphs.tsv")
