"""How long a run takes in which nothing changed, against another checkout of this repository: what a change has cost.

    git worktree add ../before COMMIT
    python bench/bench_against.py ../before [--stages 2 --stages 1000] [--runs 21] [--python /path/to/python]

Each checkout runs the same pipeline in a root of its own, in turns, the other first every other time. Prints medians, their
difference in milliseconds, and the ratio.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def make_project(folder, stages):
    os.makedirs(os.path.join(folder, "bin"))
    with open(os.path.join(folder, "bin", "copy.sh"), "w", encoding="utf-8", newline="") as file:
        file.write("#!/bin/sh\ncp \"$1\" \"$PIPELINE_OUTPUT_DIR/out\"\n")
    os.chmod(os.path.join(folder, "bin", "copy.sh"), 0o755)
    with open(os.path.join(folder, "in.txt"), "w", encoding="utf-8", newline="") as file:
        file.write("one line\n")
    spec = {"name": "bench", "stages": [
        {"name": "s%d" % number, "processor": "bin/copy.sh", "inputs": ["in.txt"], "outputDir": "out/%d" % number} for number in range(stages)]}
    with open(os.path.join(folder, "pipeline.json"), "w", encoding="utf-8", newline="") as file:
        json.dump(spec, file)


def seconds(python, checkout, folder, run_id, env):
    argv = [python, os.path.join(checkout, "src", "pipeline_runner.py"), "--run-id", run_id]
    start = time.perf_counter()
    subprocess.run(argv, cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def compare(options, stages, env):
    sides = {"other": os.path.abspath(options.other), "this": ROOT}
    taken = {name: [] for name in sides}
    with tempfile.TemporaryDirectory() as folder:
        for name, checkout in sides.items():
            make_project(os.path.join(folder, name), stages)
            for run_id in ("first", "second"):
                seconds(options.python, checkout, os.path.join(folder, name), run_id, env)
        for turn in range(options.runs):
            for name in sorted(sides, reverse=bool(turn % 2)):
                taken[name].append(seconds(options.python, sides[name], os.path.join(folder, name), "n%d" % turn, env))
    other, this = statistics.median(taken["other"]), statistics.median(taken["this"])
    print("%5d stages unchanged: other %7.1f ms   this %7.1f ms   difference %+6.1f ms   %.2f x" % (stages, other * 1e3, this * 1e3, (this - other) * 1e3, this / other))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", help="the other checkout")
    parser.add_argument("--stages", type=int, action="append")
    parser.add_argument("--runs", type=int, default=21)
    parser.add_argument("--python", default=sys.executable)
    options = parser.parse_args()
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    for stages in options.stages or [2, 1000]:
        compare(options, stages, env)


if __name__ == "__main__":
    main()
