"""Sum up: words.tsv (word, how often) and chapters.tsv (book, chapter, paragraphs, words, different words)."""
from __future__ import annotations

from collections import Counter

from processor_kit import count, inputs, open_output

words, chapters = Counter(), {}
read = 0
for path in inputs():
    with open(path, encoding="utf-8", newline="\n") as file:
        for line in file:
            book, chapter, text = line.rstrip("\n").split("\t")
            found = text.split()
            paragraphs, total, different = chapters.setdefault((book, chapter), [0, 0, set()])
            chapters[book, chapter] = [paragraphs + 1, total + len(found), different.union(found)]
            words.update(found)
            read += 1

with open_output("words.tsv") as out:
    out.writelines("%s\t%d\n" % one for one in sorted(words.items(), key=lambda one: (-one[1], one[0])))
with open_output("chapters.tsv") as out:
    out.writelines("%s\t%s\t%d\t%d\t%d\n" % (key + (paragraphs, total, len(different))) for key, (paragraphs, total, different) in sorted(chapters.items()))
count(read=read, written=len(words) + len(chapters))
