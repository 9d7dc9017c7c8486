#!/usr/bin/env python3
"""How the time grows with the number of files: twice as many should take twice as long, not four times.

    python bench/bench_growth.py [--files 1000] [--runs 3] [--folder DIR]

Four stages, each with N and with 2 N small files, from nothing, but for the last, whose output folder is full already:

    chunks    "chunks" with "filter": one chunk each, joined
    tasks     "forEach", the processor a shell script
    copies    copy_files() of the processor kit, one stage of many inputs
    again     the same after one input has changed

Processor time of the runner and all that it started (user and system), for other work on the machine does not show in it.
Prints medians and the ratio of 2 N to N: 2 is linear, 4 is quadratic.
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

from bench_tasks import ENVIRONMENT, RUNNER, write

KIT = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "bin", "processor_kit.py")
FILES = "in/*.txt"
STAGES = {
    "chunks": {"processor": "bin/pass.sh", "inputs": [FILES], "outputs": ["all.txt"], "chunks": {"bytes": 1024, "filter": True}},
    "tasks": {"processor": "bin/touch.sh", "forEach": FILES},
    "copies": {"processor": "bin/copy.py", "inputs": [FILES]},
}


def make_project(folder, count):
    for name in ("in", "bin"):
        os.makedirs(os.path.join(folder, name))
    for number in range(count):
        write(os.path.join(folder, "in", "%06d.txt" % number), "line %d\n" % number)
    write(os.path.join(folder, "bin", "pass.sh"), "#!/bin/sh\nexec cat\n")
    write(os.path.join(folder, "bin", "touch.sh"), "#!/bin/sh\n: > \"$PIPELINE_OUTPUT_DIR/${1##*/}\"\n")
    write(os.path.join(folder, "bin", "copy.py"), "from processor_kit import copy_files\ncopy_files()\n")
    for name in ("pass.sh", "touch.sh"):
        os.chmod(os.path.join(folder, "bin", name), 0o755)
    shutil.copy(KIT, os.path.join(folder, "bin"))
    first = {"name": "first", "processor": "bin/touch.sh", "inputs": ["in/000000.txt"], "outputDir": "out/first"}
    stages = [first] + [dict(stage, name=name, outputDir="out/" + name) for name, stage in STAGES.items()]
    write(os.path.join(folder, "pipeline.json"), json.dumps({"name": "bench", "stages": stages}))


def seconds(folder, stage):
    """Run one stage; return the processor time that it took, in s."""
    before = os.times()
    subprocess.run([sys.executable, RUNNER, "--only", stage], cwd=folder, env=ENVIRONMENT, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def measured(count, where):
    """Return {case: s} for so many files."""
    with tempfile.TemporaryDirectory(prefix="bench-growth-", dir=where) as folder:
        make_project(folder, count)
        seconds(folder, "first")        # scans the runner itself, and remembers that
        taken = {stage: seconds(folder, stage) for stage in STAGES}
        write(os.path.join(folder, "in", "000000.txt"), "another line\n")
        taken["again"] = seconds(folder, "copies")
    return taken


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--folder", help="where to make the projects (its disk counts)")
    args = parser.parse_args()
    rounds = [(measured(args.files, args.folder), measured(2 * args.files, args.folder)) for _ in range(args.runs)]
    for case in [*STAGES, "again"]:
        once, twice = (statistics.median(one[place][case] for one in rounds) for place in (0, 1))
        print("%-8s %6d files %7.2f s   %6d files %7.2f s   %.2f times" % (case, args.files, once, 2 * args.files, twice, twice / once))


if __name__ == "__main__":
    main()
