"""Bring each paragraph to plain words: lower case, one blank between, no punctuation but the apostrophe within a word."""
from __future__ import annotations

import re

from processor_kit import lines

WORD = re.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)*")


def normalise(line):
    book, chapter, text = line.rstrip("\n").split("\t")
    words = WORD.findall(text.lower().replace("\u2019", "'"))
    return "%s\t%s\t%s\n" % (book, chapter, " ".join(words))


lines(normalise, "words.tsv", one_to_one=True)
