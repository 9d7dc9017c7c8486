"""Cut each book into chapters: CHAPTERS/<book>-<chapter>.txt, one record a line, `book <tab> chapter <tab> paragraph`.

A paragraph ends at an empty line. What stands before the first chapter is chapter 00.
"""
from __future__ import annotations

import os
import re

from processor_kit import count, fail, inputs, open_output

HEADING = re.compile(r"\s*CHAPTER [IVXLC]+\.?\s*")


def paragraphs(path):
    """Yield (chapter, text) of the paragraphs of a book."""
    chapter, rows = 0, []
    with open(path, encoding="utf-8", newline=None) as file:
        for line in file:
            if HEADING.fullmatch(line.rstrip("\n")):
                if rows:
                    yield chapter, rows
                chapter, rows = chapter + 1, []
            elif line.strip():
                rows.append(line)
            elif rows:
                yield chapter, rows
                rows = []
    if rows:
        yield chapter, rows


def main():
    for path in inputs():
        book = os.path.splitext(os.path.basename(path))[0]
        if "\t" in book:
            fail("%s: a tab in the name of a book would end up in its records" % path)
        chapters = {}
        for chapter, rows in paragraphs(path):
            chapters.setdefault(chapter, []).append("%s\t%02d\t%s\n" % (book, chapter, " ".join(" ".join(rows).split())))
        for chapter, records in chapters.items():
            with open_output("%s-%02d.txt" % (book, chapter)) as out:
                out.writelines(records)
            count(read=len(records), written=len(records))


main()
