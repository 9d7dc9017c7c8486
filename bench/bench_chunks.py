"""Upper-case one big text by a program that knows nothing of us, plain and in chunks, and print medians and ratios.

    plain      PROGRAM < input > output             one process, no digest, no sync
    runner     a stage with "chunks" and "filter", from nothing: all that the runner does, records and ledger included
    parallel   parallel --pipepart -k --block ...   GNU parallel, if installed: no digest, no sync
    chunks     input hashed, cut, fed to PROGRAM on all cores, outputs joined in order, hashed, synced, renamed
    overlap    the same, but the input is hashed while the chunks run, as is possible when they must run anyway

    python bench/bench_chunks.py --mib 1024 --runs 5 [--block-mib 64] [--jobs 2] [--programs awk tr]

Turns are interleaved, after one round that is not counted; all results are compared byte for byte.
What hashing does is shown beside `openssl dgst -sha256`, for one file and for as many as there are cores.
"""
from __future__ import annotations

import argparse
import filecmp
import json
import os
import select
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [os.path.join(ROOT, "src"), os.path.join(ROOT, "bench")]

from bench_throughput import make_text  # noqa: E402

import chunk_files  # noqa: E402
import durable_files  # noqa: E402
import file_digests  # noqa: E402
from environment import usable_cpus  # noqa: E402

PROGRAMS = {"awk": ["awk", "{print toupper($0)}"], "mawk": ["mawk", "{print toupper($0)}"], "gawk": ["gawk", "{print toupper($0)}"], "tr": ["tr", "a-z", "A-Z"]}


# --- the driver: what the engine does with a stage of one input, without records; tells where the time goes

def drive(program: list, source: str, folder: str, jobs: int, block_bytes: int, sync_chunks: bool, name: str,
          overlap: bool = False) -> dict:
    """Make the file *name* in *folder*; return the seconds that the phases took."""
    marks = [time.perf_counter()]
    hashing = threading.Thread(target=file_digests.hash_file, args=(source,))
    hashing.start()
    if not overlap:
        hashing.join()
    marks.append(time.perf_counter())
    found = chunk_files.cut(source, block_bytes)
    joiner = chunk_files.Joiner(folder, "bench", "token", len(found.chunks))
    _run_all(program, source, folder, found, jobs, joiner, sync_chunks, name)
    marks.append(time.perf_counter())
    hashing.join()
    joiner.finish()
    joiner.publish()
    marks.append(time.perf_counter())
    for number in range(len(found.chunks)):
        os.unlink(os.path.join(folder, "chunk%d" % number))
    marks.append(time.perf_counter())
    return dict(zip(("hash input", "run", "rest of joining", "remove chunks"), (b - a for a, b in zip(marks, marks[1:]))))


def _run_all(program: list, source: str, folder: str, found: chunk_files.Cut, jobs: int, joiner: chunk_files.Joiner,
             sync: bool, name: str) -> None:
    wake, waker = os.pipe()
    os.set_blocking(waker, False)
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.set_wakeup_fd(waker)
    waiting, running, feeders = list(enumerate(found.chunks)), {}, {}
    while waiting or running:
        while waiting and len(running) < jobs:
            number, (start, end) = waiting.pop(0)
            feeder = chunk_files.Feeder(source, found.header_end, start, end)
            with open(os.path.join(folder, "chunk%d" % number), "wb") as output:
                running[number] = subprocess.Popen(program, stdin=feeder.reader, stdout=output)
            feeder.started()
            feeders[feeder.descriptor] = feeder
        poll = select.poll()
        poll.register(wake, select.POLLIN)
        for descriptor in feeders:
            poll.register(descriptor, select.POLLOUT)
        ready = [feeders[descriptor] for descriptor, _ in poll.poll() if descriptor in feeders]
        chunk_files.pump_all(ready)
        feeders = {descriptor: one for descriptor, one in feeders.items() if one.descriptor >= 0}
        try:
            os.read(wake, 64)
        except BlockingIOError:
            continue
        for number, process in list(running.items()):
            if process.poll() is not None:
                if process.returncode:
                    sys.exit("failed: %s" % program)
                del running[number]
                path = os.path.join(folder, "chunk%d" % number)
                if sync:
                    durable_files._sync_path(path)
                joiner.add(number, {name: path})
    signal.set_wakeup_fd(-1)
    os.close(wake)
    os.close(waker)


# --- the others

def run_plain(program: list, source: str, folder: str) -> None:
    with open(source, "rb") as given, open(os.path.join(folder, "plain.txt"), "wb") as output:
        subprocess.run(program, stdin=given, stdout=output, check=True)


def run_runner(program: list, source: str, folder: str, jobs: int, block_bytes: int) -> None:
    """Run a pipeline of one stage in folder/root, with nothing there from an earlier turn; its result becomes runner.txt.

    But for what the runner knows of its own sources: they are scanned in the first night only (state/digests.json).
    """
    root, known = os.path.join(folder, "root"), os.path.join(folder, "digests.json")
    os.makedirs(os.path.join(root, "state"))
    os.link(source, os.path.join(root, "input.txt"))
    if os.path.exists(known):
        shutil.copy(known, os.path.join(root, "state"))     # the input has another change time by now: it is hashed
    stage = {"name": "upper", "processor": shutil.which(program[0]), "args": program[1:], "inputs": ["input.txt"],
             "outputDir": "out", "outputs": ["runner.txt"], "chunks": {"bytes": block_bytes, "filter": True}}
    with open(os.path.join(root, "pipeline.json"), "w", encoding="utf-8") as file:
        json.dump({"name": "bench", "stages": [stage]}, file)
    argv = [sys.executable, os.path.join(ROOT, "src", "pipeline_runner.py"), "--pipeline", os.path.join(root, "pipeline.json"),
            "--jobs", str(jobs)]
    subprocess.run(argv, stdout=subprocess.DEVNULL, check=True)
    os.replace(os.path.join(root, "out", "runner.txt"), os.path.join(folder, "runner.txt"))
    os.replace(os.path.join(root, "state", "digests.json"), known)


def run_parallel(program: list, source: str, folder: str, jobs: int, block_bytes: int) -> None:
    argv = ["parallel", "--will-cite", "--pipepart", "-k", "--block", str(block_bytes), "-j", str(jobs), "-a", source, "-q"]
    with open(os.path.join(folder, "parallel.txt"), "wb") as output:
        subprocess.run(argv + program, stdout=output, check=True)


def measure(name: str, source: str, folder: str, options: argparse.Namespace) -> None:
    program, block = PROGRAMS[name], options.block_mib << 20
    ways = {"plain": lambda: run_plain(program, source, folder),
            "chunks": lambda: drive(program, source, folder, options.jobs, block, options.sync_chunks, "chunks.txt"),
            "overlap": lambda: drive(program, source, folder, options.jobs, block, options.sync_chunks, "overlap.txt", True)}
    ways["runner"] = lambda: run_runner(program, source, folder, options.jobs, block)
    if shutil.which("parallel"):
        ways["parallel"] = lambda: run_parallel(program, source, folder, options.jobs, block)
    times: dict = {way: [] for way in ways}
    cpus: dict = {way: [] for way in ways}
    phases: list = []
    for turn in range(options.runs + 1):        # turn 0 warms the page cache and is not counted
        for way, act in ways.items():
            if os.path.exists(os.path.join(folder, way + ".txt")):
                os.unlink(os.path.join(folder, way + ".txt"))       # freeing an old result is not what is measured
            shutil.rmtree(os.path.join(folder, "root"), ignore_errors=True)
            os.sync()                           # nor is writing back what another way has left
            began, burnt = time.perf_counter(), sum(os.times()[:4])
            done = act()
            if turn:
                times[way].append(time.perf_counter() - began)
                cpus[way].append(sum(os.times()[:4]) - burnt)
                phases += [done] if way == "chunks" else []
    print("%s, %d MiB, chunks of %d MiB, %d jobs, %d runs each" % (
        " ".join(program), os.path.getsize(source) >> 20, options.block_mib, options.jobs, options.runs))
    plain = statistics.median(times["plain"])
    for way, taken in times.items():
        middle = statistics.median(taken)
        print("  %-9s %6.2f s (%.2f to %.2f), %6.2f s CPU  %5.2fx as fast as plain, %5.2fx its time" % (
            way, middle, min(taken), max(taken), statistics.median(cpus[way]), plain / middle, middle / plain), flush=True)
    print("  of chunks: " + ", ".join("%s %.2f s" % (key, statistics.median(one[key] for one in phases)) for key in phases[0]))
    for way in ways:
        if not filecmp.cmp(os.path.join(folder, "plain.txt"), os.path.join(folder, way + ".txt"), shallow=False):
            sys.exit("%s.txt differs from plain.txt" % way)
        os.unlink(os.path.join(folder, way + ".txt")) if way != "plain" else None


def measure_hashing(source: str, runs: int) -> None:
    """Hash the file once, and its chunks on all cores, in turns with openssl: one, and one for each core."""
    cores, size = usable_cpus(), os.path.getsize(source)
    ranges = chunk_files.cut(source, max(1, size // (8 * cores))).chunks
    openssl = ["openssl", "dgst", "-sha256", source]
    ways = {"openssl, 1 process": (1, lambda: subprocess.run(openssl, stdout=subprocess.DEVNULL, check=True)),
            "hash_file, 1 file": (1, lambda: file_digests.hash_file(source)),
            "openssl, %d processes" % cores: (cores, lambda: [one.wait() for one in [
                subprocess.Popen(openssl, stdout=subprocess.DEVNULL) for _ in range(cores)]]),
            "hash_file, %d files" % cores: (cores, lambda: chunk_files.side_by_side(lambda path, _: file_digests.hash_file(path), [source] * cores)),
            "hash_ranges, %d chunks" % len(ranges): (1, lambda: chunk_files.hash_ranges(source, ranges))}
    times: dict = {way: [] for way in ways}
    for turn in range(runs + 1):
        for way, (_, act) in ways.items():
            began = time.perf_counter()
            act()
            if turn:
                times[way].append(time.perf_counter() - began)
    print("SHA-256 of %d MiB" % (size >> 20))
    one = statistics.median(times["openssl, 1 process"])
    for way, (files, _) in ways.items():
        middle = statistics.median(times[way])
        speed = files * (size >> 20) / middle
        print("  %-22s %5.2f s  %5.0f MiB/s  %5.2fx one openssl" % (way, middle, speed, files * one / middle))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mib", type=int, default=256)
    parser.add_argument("--block-mib", type=int, default=64)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=usable_cpus())
    parser.add_argument("--programs", nargs="*", default=["awk", "tr"], choices=sorted(PROGRAMS))
    parser.add_argument("--sync-chunks", action="store_true", help="sync the output of each chunk too, before it counts as done")
    parser.add_argument("--folder", help="where the files are made (four times --mib); a temporary one by default")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        source = os.path.join(folder, "input.txt")
        make_text(source, "ascii", options.mib)
        measure_hashing(source, options.runs)
        for name in options.programs:
            measure(name, source, folder, options)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
