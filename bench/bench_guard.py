"""What the offline guard costs a run: the same stages with the scan alone, with the kernel layer, and with the Python hook too.

    python bench/bench_guard.py [--stages 100] [--runs 7] [--python /path/to/python]

All stages run every time (their idempotency is disabled). Two kinds of processor: `true`, which does nothing, and a Python program
that does nothing. The kinds of guard take turns. Prints medians, and what a guard adds for each stage.
"""
import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
LAYERS = (("scan",), ("scan", "kernel"), ("scan", "kernel", "hook"))


def make_project(folder, stages, processor):
    os.makedirs(os.path.join(folder, "bin"))
    with open(os.path.join(folder, "bin", "nothing.py"), "w", encoding="utf-8", newline="") as file:
        file.write("pass\n")
    listed = [{"name": "s%d" % number, "processor": processor, "outputDir": "out/%d" % number, "idempotency": {"enabled": False}} for number in range(stages)]
    for layers in LAYERS:
        spec = {"name": "bench", "offline": {"layers": list(layers)}, "stages": listed}
        with open(os.path.join(folder, "+".join(layers) + ".json"), "w", encoding="utf-8", newline="") as file:
            json.dump(spec, file)


def seconds(python, folder, layers, env):
    argv = [python, os.path.join(ROOT, "src", "pipeline_runner.py"), "--pipeline", os.path.join(folder, "+".join(layers) + ".json")]
    start = time.perf_counter()
    subprocess.run(argv, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", type=int, default=100)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--python", default=sys.executable)
    options = parser.parse_args()
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    for processor in (shutil.which("true"), "bin/nothing.py"):
        taken = {layers: [] for layers in LAYERS}
        with tempfile.TemporaryDirectory() as folder:
            make_project(folder, options.stages, processor)
            for _ in range(options.runs + 1):
                for layers in LAYERS:
                    taken[layers].append(seconds(options.python, folder, layers, env))
        base = statistics.median(taken[LAYERS[0]][1:])
        for layers, values in taken.items():
            median = statistics.median(values[1:])
            print("%d x %-14s %-18s %8.1f ms   %.2f x   %+.2f ms for each stage" % (
                options.stages, os.path.basename(processor), "+".join(layers), median * 1e3, median / base, (median - base) * 1e3 / options.stages))


if __name__ == "__main__":
    main()
