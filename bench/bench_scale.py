"""How long a run takes in which nothing, or one input, changed among thousands of stages; as a ratio to other tools.

    python bench/bench_scale.py --stages 1000 --runs 9 [--python /path/to/python] [--doit /path/to/doit] [--order graph] [--folder DIR] [--cpu]

N stages with one input and one output each, the processor a shell script. The same graph is written for ninja, GNU make (with its
default rules, and with -rR) and doit; a tool that is not installed is left out, with a line that says so. Each tool first
makes everything, then they take turns (A B C A B C ...). Prints medians and ratios. On a machine that others use, too, --cpu
tells more: processor time instead of time gone by; what two processes do side by side counts twice then.
"""
import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
RUNNER = os.path.join(ROOT, "src", "pipeline_runner.py")
DODO = """import json
DOIT_CONFIG = {"backend": "%s", "dep_file": ".doit.%s", "reporter": "zero"}
def task_s():
    for name, source, target in json.load(open("stages.json")):
        yield {"name": name, "actions": [["cp", source, target]], "file_dep": [source, "bin/proc"], "targets": [target]}
"""


def put(folder, name, text, mode=0o644):
    path = os.path.join(folder, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    os.chmod(path, mode)


def make_project(folder, count, order="listed"):
    """Write inputs, the processor, and the graph for each tool; every tool has its own outputs."""
    stages = [("s%05d" % number, "in/f%05d.txt" % number) for number in range(count)]
    for number, (_, source) in enumerate(stages):
        put(folder, source, "text %d\n" % number)
    put(folder, "bin/proc", '#!/bin/sh\nexec cp "$1" "$PIPELINE_OUTPUT_DIR/out.txt"\n', 0o755)
    put(folder, "pipeline.json", json.dumps({"name": "scale", "order": order, "stages": [
        {"name": name, "processor": "bin/proc", "inputs": [source], "outputDir": "out/" + name} for name, source in stages]}))
    put(folder, "build.ninja", "rule r\n  command = cp $in $out\n" + "".join("build ninja/%s: r %s | bin/proc\n" % stage for stage in stages))
    put(folder, "Makefile", "all: %s\n" % " ".join("make/" + name for name, _ in stages) + "".join("make/%s: %s bin/proc\n\tcp $< $@\n" % stage for stage in stages))
    os.makedirs(os.path.join(folder, "make"))
    os.makedirs(os.path.join(folder, "doit"))
    put(folder, "stages.json", json.dumps([[name, source, "doit/" + name] for name, source in stages]))
    for backend in ("dbm", "json", "sqlite3"):
        put(folder, "dodo_%s.py" % backend, DODO % (backend, backend))


def tools(options):
    """Return {name: argv}; the runner first."""
    found = {"this runner": [options.python, RUNNER]}
    if options.long_way:
        found["this runner, index off"] = ["env", "PIPELINE_INDEX=off"] + found["this runner"]
    for name, argv in (("ninja", ["ninja", "--quiet"]), ("make", ["make", "-s"]), ("make -rR", ["make", "-srR"])):
        if shutil.which(argv[0]):
            found[name] = argv
            print(name, subprocess.run([argv[0], "--version"], stdout=subprocess.PIPE, check=False).stdout.decode().split("\n")[0])
        else:
            print("%s: not installed, left out" % name)
    if options.doit:
        print("doit", subprocess.run([options.doit, "--version"], stdout=subprocess.PIPE, check=False).stdout.decode().split("\n")[0])
        for backend in ("dbm", "json", "sqlite3"):
            found["doit " + backend] = [options.doit, "-v0", "-f", "dodo_%s.py" % backend]
    else:
        print("doit: not given (--doit), left out")
    return found


def cpu_seconds():
    times = resource.getrusage(resource.RUSAGE_CHILDREN)
    return times.ru_utime + times.ru_stime


def seconds(argv, folder, env, clock=time.perf_counter):
    start = clock()
    subprocess.run(argv, cwd=folder, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    return clock() - start


def change(folder, turn, count):
    """Change one input; over the turns they are spread over all stages, as those behind the changed one are looked at again."""
    put(folder, "in/f%05d.txt" % (turn * 6173 % count), "changed %f\n" % time.time())


def measure(title, commands, options, folder, env, before=None):
    taken = {name: [] for name in commands}
    for turn in range(options.runs):
        if before is not None:
            before(turn)            # once for all: every tool finds one change
        for name, argv in commands.items():
            taken[name].append(seconds(argv, folder, env, cpu_seconds if options.cpu else time.perf_counter))
            if before is not None:
                time.sleep(0.1)
                seconds(argv, folder, env)      # not counted: what was made is looked at, and indexed
    print("\n%s, %d stages%s" % (title, options.stages, ", processor time" if options.cpu else ""))
    own = statistics.median(taken["this runner"])
    for name, values in taken.items():
        median = statistics.median(values)
        print("  %-24s median %8.1f ms   min %8.1f ms   this runner is %.2f x" % (name, median * 1e3, min(values) * 1e3, own / median))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--doit", default=shutil.which("doit"))
    parser.add_argument("--order", choices=["listed", "graph"], default="listed")
    parser.add_argument("--long-way", action="store_true", help="the runner without its index, too")
    parser.add_argument("--cpu", action="store_true", help="processor time instead of time gone by")
    parser.add_argument("--folder", help="where to work (default: the folder for temporary files)")
    options = parser.parse_args()
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        make_project(folder, options.stages, options.order)
        commands = tools(options)
        for _ in range(3):                      # make everything; look at it and index it; and once more
            for argv in commands.values():
                seconds(argv, folder, env)
            time.sleep(0.1)
        measure("nothing changed", commands, options, folder, env)
        measure("one input changed", commands, options, folder, env, lambda turn: change(folder, turn, options.stages))
        measure("python -c pass", {"this runner": commands["this runner"], "python -c pass": [options.python, "-c", "pass"]}, options, folder, env)


if __name__ == "__main__":
    main()
