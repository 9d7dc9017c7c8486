#!/usr/bin/env python3
"""Many stages that have never run, each a small C program; as a ratio to other tools that run the same programs.

    python bench/bench_cold.py [--stages 1000] [--runs 3] [--jobs 2] [--folder DIR]

Every turn begins with a fresh copy of the project, and the tools take turns; copies are kept to the end, since an ext4 without
a journal is slow to make files while many have just been removed. The runner is measured with stages in the order
given, one at a time, and with "order": "graph"; records, ledger and syncs are the default ones. ninja and make sync nothing.
"floor" is a bare loop that makes the same files, syncs as seldom and starts the same programs, see floor_cold.py.
Its own sources have been scanned before (state/digests.json is kept), as on any night but the first.
"""
from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

from bench_tasks import COPY, ENVIRONMENT, RUNNER, write


def make_project(folder, count):
    for name in ("bin", "in", "ninja", "make", "state"):
        os.makedirs(os.path.join(folder, name))
    write(os.path.join(folder, "copy.c"), COPY)
    subprocess.run(["cc", "-O2", "-o", os.path.join(folder, "bin", "copy"), os.path.join(folder, "copy.c")], check=True)
    names = ["s%05d" % number for number in range(count)]
    for name in names:
        write(os.path.join(folder, "in", name + ".txt"), "text of %s\n" % name)
    stages = [{"name": name, "processor": "bin/copy", "inputs": ["in/%s.txt" % name], "outputDir": "out/" + name} for name in names]
    for order in ("listed", "graph"):
        write(os.path.join(folder, order + ".json"), json.dumps({"name": "cold", "order": order, "stages": stages}))
    write(os.path.join(folder, "build.ninja"), "rule copy\n  command = bin/copy $in ninja\n" + "".join("build ninja/%s.txt: copy in/%s.txt | bin/copy\n" % (name, name) for name in names))
    write(os.path.join(folder, "Makefile"), "all: %s\n" % " ".join("make/%s.txt" % name for name in names) + "".join(
        "make/%s.txt: in/%s.txt bin/copy\n\tbin/copy $< make\n" % (name, name) for name in names))


def seconds(argv, template, folder):
    copy = os.path.join(folder, "turn%d" % len(os.listdir(folder)))
    shutil.copytree(template, copy)
    os.sync()
    began = time.perf_counter()
    subprocess.run(argv, cwd=copy, env=ENVIRONMENT, stdout=subprocess.DEVNULL, check=True)
    taken = time.perf_counter() - began
    if os.path.exists(os.path.join(copy, "state", "digests.json")) and not os.path.exists(os.path.join(template, "state", "digests.json")):
        with open(os.path.join(copy, "state", "digests.json"), encoding="utf-8") as file:
            known = dict(json.load(file), files={})
        write(os.path.join(template, "state", "digests.json"), json.dumps(known))
    return taken


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--folder", help="where to make the projects (its disk counts)")
    args = parser.parse_args()
    ours = [sys.executable, RUNNER, "--jobs", str(args.jobs)]
    commands = {"listed": ours + ["--pipeline", "listed.json"], "graph": ours + ["--pipeline", "graph.json"]}
    floor = [sys.executable, os.path.join(os.path.dirname(os.path.abspath(__file__)), "floor_cold.py"), str(args.stages), str(args.jobs)]
    commands.update({"floor": floor, "floor, no sync": floor + ["nosync"]})
    commands.update((name, argv) for name, argv in (("ninja", ["ninja", "--quiet", "-j", str(args.jobs)]), ("make -rR", ["make", "-srR", "-j", str(args.jobs)])) if shutil.which(argv[0]))
    with tempfile.TemporaryDirectory(prefix="bench-cold-", dir=args.folder) as folder:
        template = os.path.join(folder, "template")
        make_project(template, args.stages)
        seconds(commands["listed"], template, folder)
        taken = {name: [] for name in commands}
        for _ in range(args.runs):
            for name, argv in commands.items():
                taken[name].append(seconds(argv, template, folder))
    medians = {name: statistics.median(values) for name, values in taken.items()}
    for name, median in medians.items():
        print("%-14s %7.3f s  %6.2f ms a stage   %s" % (name, median, median * 1000 / args.stages, "   ".join("%.2fx %s" % (median / medians[other], other) for other in ("ninja", "make -rR") if other in medians)))


if __name__ == "__main__":
    main()
