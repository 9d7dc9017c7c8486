#!/usr/bin/env python3
"""A stage with a few large inputs: nothing changed, and all of them touched, beside `openssl dgst -sha256`.

    python bench/bench_inputs.py [--files 10] [--mib 200] [--runs 5] [--folder DIR]

Unchanged inputs are not read. Touched ones (another modification time, the same content) are hashed on all cores, and found to be
the same: the stage is skipped. openssl is given one file at a time on one core, and as many at once as there are cores.
Runs take turns; medians are printed, the time of a run in which nothing changed is taken off that of one that hashes.
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

from bench_tasks import ENVIRONMENT, RUNNER, write

COPY = "import os\nwith open(os.path.join(os.environ['PIPELINE_OUTPUT_DIR'], 'done'), 'w') as file:\n    file.write('done')\n"


def make_project(folder, count, mib):
    for name in ("in", "bin"):
        os.makedirs(os.path.join(folder, name))
    for number in range(count):
        with open(os.path.join(folder, "in", "%02d.bin" % number), "wb") as file:
            for _ in range(mib):
                file.write(os.urandom(1 << 20))
    write(os.path.join(folder, "bin", "work.py"), COPY)
    stage = {"name": "work", "processor": "bin/work.py", "inputs": ["in/*.bin"], "outputDir": "out"}
    write(os.path.join(folder, "pipeline.json"), json.dumps({"name": "bench", "stages": [stage]}))


def seconds(commands, folder):
    """Return how long it takes until all of *commands*, started at once, have ended well."""
    began = time.perf_counter()
    running = [subprocess.Popen(one, cwd=folder, env=ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL) for one in commands]
    if any(one.wait() for one in running):
        sys.exit("failed: %s" % commands)
    return time.perf_counter() - began


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=10)
    parser.add_argument("--mib", type=int, default=200)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--folder", help="where to make the project (its disk counts)")
    args = parser.parse_args()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    ours = [[sys.executable, RUNNER]]
    with tempfile.TemporaryDirectory(prefix="bench-inputs-", dir=args.folder) as folder:
        make_project(folder, args.files, args.mib)
        names = ["in/%02d.bin" % number for number in range(args.files)]
        seconds(ours, folder)
        seconds(ours, folder)
        taken = {"nothing changed": [], "all touched": [], "openssl": [], "openssl, all cores": []}
        for _ in range(args.runs):
            taken["nothing changed"].append(seconds(ours, folder))
            for name in names:
                os.utime(os.path.join(folder, name))
            time.sleep(0.1)             # what is fresh is hashed, but not remembered: this is about what is remembered
            taken["all touched"].append(seconds(ours, folder))
            seconds(ours, folder)       # writes the index anew
            if shutil.which("openssl"):
                taken["openssl"].append(seconds([["openssl", "dgst", "-sha256"] + names], folder))
                taken["openssl, all cores"].append(seconds([["openssl", "dgst", "-sha256"] + names[core::cores] for core in range(cores)], folder))
    mib = args.files * args.mib
    nothing = statistics.median(taken["nothing changed"])
    print("nothing changed      %7.3f s" % nothing)
    hashing = statistics.median(taken["all touched"]) - nothing
    print("all touched, hashing %7.3f s   %6.0f MiB/s, %6.0f a core" % (hashing, mib / hashing, mib / hashing / cores))
    for name, used in (("openssl", 1), ("openssl, all cores", cores)):
        if taken[name]:
            wall = statistics.median(taken[name])
            print("%-20s %7.3f s   %6.0f MiB/s, %6.0f a core   the runner hashes %.2f times as fast a core" % (name, wall, mib / wall, mib / wall / used, wall * used / hashing / cores))


if __name__ == "__main__":
    main()
