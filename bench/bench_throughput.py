"""Upper-case one big text three ways, interleaved, and print medians, ratios and peak memory.

    bare     for line in f: out.write(line.upper())        no checkpoint, no sync, no rename
    lines    processor_kit.lines()  with durable checkpoints, interval 1000
    blocks   processor_kit.blocks() with durable checkpoints, interval 1000 (what bin/stage_upper.py does)

    python bench/bench_throughput.py --mib 1024 --runs 3 [--python PATH ...] [--text ascii|sparse|dense|line ...]

Each is a fresh process; its time is that of the whole process. All three results are compared byte for byte.
Peak memory is ru_maxrss as os.wait4 reports it (Linux, macOS).
"""
from __future__ import annotations

import argparse
import filecmp
import os
import random
import statistics
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
WORDS = "alpha over stage record value 2024 x pipeline transfer the of and package depends version".split()
DENSE_WORDS = WORDS + "größe über straße être año".split()
SAMPLE_LINES = 20000

BARE = """
import sys
with open(sys.argv[1], encoding="utf-8", newline="\\n") as f, open(sys.argv[2], "w", encoding="utf-8", newline="\\n") as out:
    for line in f:
        out.write(line.upper())
"""
LINES = """
import sys
sys.path.insert(0, {bin!r})
from processor_kit import lines
def shout(line):
    return line.upper()
lines(shout, "lines.txt", one_to_one=True)
"""
BLOCKS = """
import sys
sys.path.insert(0, {bin!r})
from processor_kit import blocks
blocks(str.upper, "blocks.txt", one_to_one=True, errors="surrogateescape")
"""


def make_text(path: str, kind: str, mib: int) -> None:
    """Write *mib* MiB: "ascii", "sparse" (one line in 500 is not ASCII), "dense" (most are not), "line" (one line)."""
    source = random.Random(1)
    words = DENSE_WORDS if kind == "dense" else WORDS
    rows = []
    for _ in range(SAMPLE_LINES):
        end = " é" if kind == "sparse" and source.random() < 0.002 else ""
        rows.append(" ".join(source.choice(words) for _ in range(source.randint(3, 18))) + end + "\n")
    text = "".join(rows)
    if kind == "line":
        text = text.replace("\n", " \U0001f600 ")
    sample = text.encode("utf-8")
    with open(path, "wb") as file:
        while file.tell() + len(sample) <= mib << 20:
            file.write(sample)


def run_once(command: list, environment: dict) -> tuple:
    """Return (seconds, CPU seconds, peak MiB) of one process; exit when it fails."""
    began = time.perf_counter()
    if hasattr(os, "wait4"):
        pid = os.posix_spawn(command[0], command, environment)
        _, status, usage = os.wait4(pid, 0)
        took, cpu = time.perf_counter() - began, usage.ru_utime + usage.ru_stime
        peak = usage.ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)
    else:
        import subprocess
        status = subprocess.call(command, env=environment)
        took, cpu, peak = time.perf_counter() - began, float("nan"), float("nan")
    if status:
        sys.exit("failed: %s" % " ".join(command[:2]))
    return took, cpu, peak


def commands(python: str, source: str, folder: str) -> dict:
    found = {"bare": [python, "-c", BARE, source, os.path.join(folder, "bare.txt")]}
    for name, text in (("lines", LINES), ("blocks", BLOCKS)):
        script = os.path.join(folder, "run_%s.py" % name)
        with open(script, "w", encoding="utf-8") as file:
            file.write(text.format(bin=os.path.join(ROOT, "bin")))
        found[name] = [python, script, source]
    return found


def environment_of(name: str, folder: str) -> dict:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PIPELINE_")}
    if name != "bare":
        environment.update(PIPELINE_STAGE_NAME=name, PIPELINE_OUTPUT_DIR=folder, PIPELINE_LINE_INTERVAL="1000",
                           PIPELINE_PROGRESS_FILE=os.path.join(folder, "progress_%s.json" % name))
    return environment


def measure(python: str, kind: str, source: str, folder: str, runs: int) -> None:
    wanted = commands(python, source, folder)
    if kind == "line":
        del wanted["lines"], wanted["bare"]         # one line: lines() refuses it, the bare loop holds it in memory
    times: dict = {name: [] for name in wanted}
    cpus: dict = {name: [] for name in wanted}
    peaks: dict = {name: 0.0 for name in wanted}
    for turn in range(runs + 1):                    # turn 0 warms the page cache and is not counted
        for name, command in wanted.items():
            if os.path.exists(os.path.join(folder, name + ".txt")):
                os.unlink(os.path.join(folder, name + ".txt"))      # freeing an old result is not what is measured
            took, cpu, peak = run_once(command, environment_of(name, folder))
            if turn:
                times[name].append(took)
                cpus[name].append(cpu)
                peaks[name] = max(peaks[name], peak)
    size = os.path.getsize(source) / (1 << 20)
    print("%s, %s text, %d MiB, %d runs each" % (python, kind, size, runs))
    for name, found in times.items():
        middle = statistics.median(found)
        burnt = statistics.median(cpus[name])
        ratio = ""
        if "bare" in times:
            bare, bare_cpu = statistics.median(times["bare"]), statistics.median(cpus["bare"])
            ratio = "%5.2fx bare, %5.2fx by CPU" % (bare / middle, bare_cpu / burnt)
        print("  %-7s %6.2f s  %6.2f s CPU  %5.0f MiB/s  peak %3.0f MiB  %s"
              % (name, middle, burnt, size / middle, peaks[name], ratio), flush=True)
    for name in wanted:
        one, other = (os.path.join(folder, each + ".txt") for each in ("bare", name))
        if "bare" in wanted and not filecmp.cmp(one, other, shallow=False):
            sys.exit("%s.txt differs from the bare loop's result" % name)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--python", nargs="+", default=[sys.executable])
    parser.add_argument("--text", nargs="+", default=["sparse"], choices=["ascii", "sparse", "dense", "line"])
    parser.add_argument("--folder", help="where the files are made (four times --mib); a temporary one by default")
    options = parser.parse_args()
    for kind in options.text:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            source = os.path.join(folder, "input.txt")
            make_text(source, kind, options.mib)
            for python in options.python:
                measure(os.path.abspath(python), kind, source, folder, options.runs)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
