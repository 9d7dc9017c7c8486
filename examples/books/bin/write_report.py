"""Write report.txt: the chapters with their sizes, and the words that are used most."""
from __future__ import annotations

from processor_kit import count, inputs, open_output, params

TOP, LETTERS = params()["top"], params()["letters"]


def rows(name):
    path = next(path for path in inputs() if path.endswith("/" + name))
    with open(path, encoding="utf-8", newline="\n") as file:
        return [line.rstrip("\n").split("\t") for line in file]


chapters, words = rows("chapters.tsv"), rows("words.tsv")
shown = [(word, int(number)) for word, number in words if len(word) >= LETTERS][:TOP]
report = ["%-16s %7s %10s %8s %10s" % ("book", "chapter", "paragraphs", "words", "different")]
report += ["%-16s %7s %10s %8s %10s" % tuple(row) for row in chapters]
report += ["", "words of at least %d letters that are used most" % LETTERS]
report += ["%-12s %6d %s" % (word, number, "#" * max(1, round(40 * number / shown[0][1]))) for word, number in shown]
with open_output("report.txt") as out:
    out.write("\n".join(report) + "\n")
count(read=len(chapters) + len(words), written=len(report))
