#!/usr/bin/env python3
"""Stages of many tasks: nothing changed against ninja, one file changed, many Python tasks against fresh interpreters.

    python bench/bench_tasks.py nothing --files 20000 --runs 5
    python bench/bench_tasks.py python --tasks 1000 --runs 3 --jobs 2

Runs take turns; medians and ratios are printed, CPU seconds beside them for a machine that others use, too, and the peak memory.
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

HERE = os.path.dirname(os.path.abspath(__file__))
RUNNER = os.path.join(HERE, "..", "src", "pipeline_runner.py")
COPY = """#include <stdio.h>
#include <stdlib.h>
#include <string.h>
int main(int count, char **words) {
    char path[4096], data[65536];
    const char *folder = getenv("PIPELINE_OUTPUT_DIR"), *name = strrchr(words[1], '/');
    snprintf(path, sizeof path, "%s/%s", count > 2 ? words[2] : folder, name ? name + 1 : words[1]);
    FILE *in = fopen(words[1], "r"), *out = fopen(path, "w");
    size_t got;
    if (!in || !out) return 1;
    while ((got = fread(data, 1, sizeof data, in))) fwrite(data, 1, got, out);
    return fclose(out);
}
"""
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}    # bytecode may be cached, as it is for a user
UPPER = "from processor_kit import lines, output_name\nlines(str.upper, output_name())\n"


def timed(argv, folder):
    """Return (wall seconds, CPU seconds, peak MiB of its largest process) of a command that must succeed."""
    with tempfile.TemporaryFile() as said:
        began = time.perf_counter()
        process = subprocess.Popen(argv, cwd=folder, env=ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - began
        process.returncode = status
        if status:
            said.seek(0)
            sys.exit("%s\n%s" % (argv, said.read().decode("utf-8", "replace")[-2000:]))
    return wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def make_project(folder, count, python):
    for name in ("bin", "in", "made"):
        os.makedirs(os.path.join(folder, name))
    if python:
        shutil.copy(os.path.join(HERE, "..", "bin", "processor_kit.py"), os.path.join(folder, "bin"))
        write(os.path.join(folder, "bin", "work.py"), UPPER)
    else:
        write(os.path.join(folder, "copy.c"), COPY)
        subprocess.run(["cc", "-O2", "-o", os.path.join(folder, "bin", "work"), os.path.join(folder, "copy.c")], check=True)
    for number in range(count):
        write(os.path.join(folder, "in", "f%06d.txt" % number), "hello %d\n" % number)
    stage = {"name": "work", "processor": "bin/work.py" if python else "bin/work", "forEach": "in/*.txt", "outputDir": "out"}
    write(os.path.join(folder, "pipeline.json"), json.dumps({"name": "bench", "stages": [stage]}))


def write(path, text):
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.write(text)


def in_turns(commands, runs, folder):
    times = {name: [] for name in commands}
    for _ in range(runs):
        for name, argv in commands.items():
            times[name].append(timed(argv, folder))
    return {name: (statistics.median(one[0] for one in found), statistics.median(one[1] for one in found), max(one[2] for one in found)) for name, found in times.items()}


def show(found, base):
    for name, (wall, cpu, peak) in found.items():
        print("%-28s %8.3f s  %6.2fx    CPU %8.3f s  %6.2fx    peak %4.0f MiB" % (name, wall, wall / found[base][0], cpu, cpu / found[base][1], peak))


def nothing(folder, args):
    """Nothing changed: a forEach stage against ninja on as many edges."""
    make_project(folder, args.files, False)
    ours = [args.python, RUNNER]
    wall, _, peak = timed(ours, folder)
    print("cold, %d tasks of a C program: %.1f s, %.2f ms each, peak %.0f MiB" % (args.files, wall, wall * 1000 / args.files, peak))
    timed(ours, folder)                             # reads once what was too fresh to be trusted
    commands = {"runner, nothing changed": ours}
    base = "runner, nothing changed"
    if shutil.which("ninja"):
        edges = ["rule copy\n command = bin/work $in made\n"] + ["build made/f%06d.txt: copy in/f%06d.txt\n" % (n, n) for n in range(args.files)]
        write(os.path.join(folder, "build.ninja"), "".join(edges))
        timed(["ninja"], folder)
        commands, base = {"ninja %s" % subprocess.check_output(["ninja", "--version"]).decode().strip(): ["ninja"], **commands}, ""
    else:
        print("ninja is not installed")
    show(in_turns(commands, args.runs, folder), base or next(iter(commands)))
    changed = []
    for number in range(args.runs):
        write(os.path.join(folder, "in", "f%06d.txt" % number), "changed %d\n" % time.time_ns())
        changed.append(timed(ours, folder))
    print("%-28s %8.3f s    CPU %8.3f s    peak %4.0f MiB" % ("runner, one file changed", *(statistics.median(one) for one in zip(*changed))))


FRESH = """import os, subprocess, sys
names, running = sorted(os.listdir("in")), []
for name in names:
    if len(running) == int(sys.argv[2]):
        running.pop(0).wait()
    env = dict(os.environ, PIPELINE_OUTPUT_DIR=os.path.abspath("made"))
    running.append(subprocess.Popen([sys.argv[1], "bin/work.py", "in/" + name], env=env))
for one in running:
    one.wait()
"""


def python_tasks(folder, args):
    """Many Python tasks: with the fork server, without it, and from a bare loop that starts an interpreter for each."""
    make_project(folder, args.tasks, True)
    write(os.path.join(folder, "fresh.py"), FRESH)
    ours = [args.python, RUNNER, "--force", "work", "--jobs", str(args.jobs)]
    timed([args.python, RUNNER, "--jobs", str(args.jobs)], folder)
    commands = {"a fresh python for each": [args.python, "fresh.py", args.python, str(args.jobs)], "runner": ours}
    show(in_turns(commands, args.runs, folder), "a fresh python for each")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["nothing", "python"])
    parser.add_argument("--files", type=int, default=20000)
    parser.add_argument("--tasks", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--folder", help="where to make the project (its disk counts)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-tasks-", dir=args.folder) as folder:
        {"nothing": nothing, "python": python_tasks}[args.what](folder, args)


if __name__ == "__main__":
    main()
