"""How long a run takes in which nothing changed, as a ratio to an empty interpreter.

    python bench/bench_noop.py [--runs 31] [--python /path/to/python] [--cpu]

Copies the demo to a temporary folder, runs it once, then takes turns: `python -c pass`, a run, `plan`. Prints medians
and ratios. Bytecode may be cached, as it is for a user.
"""
import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def copy_demo(folder):
    for name in ("src", "bin", os.path.join("data", "input")):
        shutil.copytree(os.path.join(ROOT, name), os.path.join(folder, name), ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(os.path.join(ROOT, "pipeline.json"), folder)


def cpu_seconds():
    times = resource.getrusage(resource.RUSAGE_CHILDREN)
    return times.ru_utime + times.ru_stime


def seconds(argv, folder, env, clock=time.perf_counter):
    start = clock()
    subprocess.run(argv, cwd=folder, env=env, stdout=subprocess.DEVNULL, check=True)
    return clock() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=31)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--cpu", action="store_true", help="processor time instead of time gone by")
    options = parser.parse_args()
    clock = cpu_seconds if options.cpu else time.perf_counter
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    runner = [options.python, os.path.join("src", "pipeline_runner.py")]
    with tempfile.TemporaryDirectory() as folder:
        copy_demo(folder)
        seconds(runner + ["--run-id", "first"], folder, env)
        seconds(runner + ["--run-id", "second"], folder, env)
        taken = {"python -c pass": [], "run, nothing changed, 2 stages": [], "plan": []}
        for turn in range(options.runs):
            taken["python -c pass"].append(seconds([options.python, "-c", "pass"], folder, env, clock))
            taken["run, nothing changed, 2 stages"].append(seconds(runner + ["--run-id", "n%d" % turn], folder, env, clock))
            taken["plan"].append(seconds(runner + ["plan"], folder, env, clock))
    base = statistics.median(taken["python -c pass"])
    for name, values in taken.items():
        median = statistics.median(values)
        print("%-34s median %6.1f ms   %.2f x" % (name, median * 1e3, median / base))


if __name__ == "__main__":
    main()
