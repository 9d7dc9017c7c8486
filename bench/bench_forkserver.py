"""What the fork server saves: small tasks of a Python processor, each a fresh `python script.py` or forked by the server.

    python bench/bench_forkserver.py [--tasks 1000] [--jobs 2] [--rounds 5] [--python /path/to/python]

The processor upper-cases a file of some lines with the kit's lines(). Both kinds get the same environment and take turns, a round of
each at a time; the server is started anew for each of its rounds, which counts. Prints medians of the rounds and their ratio.
"""
import argparse
import os
import select
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(ROOT, "src"))

import environment  # noqa: E402
import file_digests  # noqa: E402
import fork_client  # noqa: E402

SCRIPT = "from processor_kit import lines\n\nlines(str.upper, \"result.txt\", one_to_one=True)\n"


def make_project(folder, tasks):
    os.makedirs(os.path.join(folder, "bin"))
    shutil.copy(os.path.join(ROOT, "bin", "processor_kit.py"), os.path.join(folder, "bin"))
    files = {"bin/upper.py": SCRIPT}
    files.update(("in/%d.txt" % number, "a line of task %d\n" % number * 20) for number in range(tasks))
    os.makedirs(os.path.join(folder, "in"))
    for name, text in files.items():
        with open(os.path.join(folder, name), "w", encoding="utf-8", newline="") as file:
            file.write(text)


def environments(folder, tasks, kind):
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COV"))}
    base = environment.base_environment(None, ours)
    for number in range(tasks):
        out = os.path.join(folder, kind, str(number))
        os.makedirs(out)
        yield number, dict(base, PIPELINE_STAGE_NAME="upper", PIPELINE_OUTPUT_DIR=out, PIPELINE_ROOT=folder, PIPELINE_ATTEMPT_TOKEN="bench.%d" % number)


def run_fresh(folder, script, work, jobs):
    living = 0
    for number, env in work:
        if living == jobs:
            check(os.wait()[1])
            living -= 1
        os.posix_spawn(sys.executable, [sys.executable, script, "in/%d.txt" % number], env, file_actions=[(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDWR, 0)])
        living += 1
    for _ in range(living):
        check(os.wait()[1])


def run_forked(folder, script, work, jobs):
    server = fork_client.ForkServer(folder, script, *fork_client.code_of(file_digests.Digests(folder, ""), "bin/upper.py"))
    free, slots = list(range(jobs)), {}
    work = list(work)
    server.start(work[0][1], "bench", -1, jobs)
    while work or slots:
        while work and free:
            number, env = work.pop(0)
            slot = free.pop()
            slots[server.launch(slot, [sys.executable, script, "in/%d.txt" % number], env, folder)] = slot
        for end in server.ends() or wait(server):
            check(end.status)
            free.append(slots.pop(end.pid))
    server.close()


def wait(server):
    select.select([server.descriptor], [], [])
    return server.ends()


def check(status):
    if status:
        sys.exit("a task failed: wait status %d" % status)


def seconds(run, folder, tasks, jobs, kind):
    os.chdir(folder)
    work = list(environments(folder, tasks, kind))
    start = time.perf_counter()
    run(folder, os.path.join(folder, "bin", "upper.py"), work, jobs)
    taken = time.perf_counter() - start
    for number in range(tasks):
        with open(os.path.join(folder, kind, str(number), "result.txt"), "rb") as file:
            if not file.read().startswith(b"A LINE OF TASK %d\n" % number):
                sys.exit("task %d made something else" % number)
    shutil.rmtree(os.path.join(folder, kind))
    return taken


def measure(options):
    taken = {"fresh": [], "forked": []}
    with tempfile.TemporaryDirectory() as folder:
        folder = os.path.realpath(folder)
        make_project(folder, options.tasks)
        for number in range(options.rounds + 1):
            for kind, run in (("fresh", run_fresh), ("forked", run_forked)):
                taken[kind].append(seconds(run, folder, min(options.tasks, 20) if not number else options.tasks, options.jobs, kind))
        os.chdir(ROOT)
    fresh, forked = (statistics.median(taken[kind][1:]) for kind in ("fresh", "forked"))
    print("Python %d.%d, %d tasks, %d at a time: fresh %.2f s (%.2f ms a task)   forked %.2f s (%.2f ms a task)   ratio %.3f (target 0.25)" % (
        sys.version_info[0], sys.version_info[1], options.tasks, options.jobs, fresh, fresh * 1e3 / options.tasks, forked, forked * 1e3 / options.tasks, forked / fresh))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=1000)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--python", help="run with this interpreter")
    options = parser.parse_args()
    if options.python:
        argv = [options.python, os.path.abspath(__file__)] + ["--%s=%d" % (name, getattr(options, name)) for name in ("tasks", "jobs", "rounds")]
        sys.exit(subprocess.call(argv))
    measure(options)


if __name__ == "__main__":
    main()
