"""Make more input of what is there: python make_larger.py 100 writes data/input/alice-001.txt to alice-100.txt (15 MB)."""
from __future__ import annotations

import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
LIMIT = 999


def main(arguments):
    if len(arguments) != 1 or not arguments[0].isdigit() or not 1 <= int(arguments[0]) <= LIMIT:
        print("usage: python make_larger.py NUMBER   (1 to %d copies)" % LIMIT, file=sys.stderr)
        return 2
    folder = os.path.join(HERE, "data", "input")
    with open(os.path.join(folder, "alice.txt"), "rb") as file:
        text = file.read()
    for number in range(1, int(arguments[0]) + 1):
        with open(os.path.join(folder, "alice-%03d.txt" % number), "wb") as file:
            file.write(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
