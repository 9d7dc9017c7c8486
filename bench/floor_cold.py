"""The least that bench_cold.py's stages cost whoever keeps the files that the guarantees name; run by bench_cold.py in a project's folder.

    python bench/floor_cold.py COUNT JOBS [nosync]

For each stage it makes the files that a run makes (guard, lock folder with owner, folder, record "running", list of inputs, log, record
"ok" with the other one kept beside it, marker), as large as they are, in their order, and starts the program, JOBS at most at once. The record
"running" is synced, after a second and at the end all of the file system (nosync: nothing).
It decides, checks, lists, hashes and guards nothing, knows nothing of what it does, and would be right after no kill: not a runner, but
what a runner in Python that keeps these files can hardly be quicker than.
"""
import ctypes
import fcntl
import os
import sys
import time

TEXT = b"x" * 1000
NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL


def put(path, size, sync=False):
    temporary = path + ".tmp"
    file = os.open(temporary, NEW)
    os.write(file, TEXT[:size])
    if sync:
        os.fsync(file)
    os.close(file)
    os.rename(temporary, path)


def sync_all():
    folder = os.open(".", os.O_RDONLY)
    if ctypes.CDLL(None).syncfs(folder):
        raise OSError("syncfs")
    os.close(folder)


def begin(name, sync):
    """Return (process, what end() needs)."""
    guard = os.open("locks/.%s.guard" % name, os.O_RDWR | os.O_CREAT)
    fcntl.flock(guard, fcntl.LOCK_EX)
    os.write(guard, TEXT[:16])
    os.mkdir("locks/%s.lock" % name)
    put("locks/%s.lock/owner.json" % name, 225)
    os.mkdir("out/" + name)
    put("state/stage_%s.json" % name, 899, sync)
    os.close(os.open("state/inputs_%s.json" % name, NEW))
    os.close(os.open("state/logs/%s.1.log" % name, NEW))
    return os.posix_spawn("bin/copy", ["bin/copy", "in/%s.txt" % name, "out/" + name], os.environ), (name, guard)


def end(name, guard):
    """Return what goes when all this has been synced."""
    kept = "state/.stage_%s.json.before" % name
    os.link("state/stage_%s.json" % name, kept)
    put("state/stage_%s.json" % name, 994)
    put("out/%s/.%s.done" % (name, name), 185)
    os.unlink("locks/%s.lock/owner.json" % name)
    os.rmdir("locks/%s.lock" % name)
    os.unlink("state/inputs_%s.json" % name)
    os.close(guard)
    return kept


def main():
    count, jobs, sync = int(sys.argv[1]), int(sys.argv[2]), "nosync" not in sys.argv
    for folder in ("locks", "out", "state/logs"):
        os.makedirs(folder)
    running, begun, kept, synced = {}, 0, [], time.monotonic()
    while begun < count or running:
        if begun < count and len(running) < jobs:
            process, held = begin("s%05d" % begun, sync)
            running[process] = held
            begun += 1
        else:
            kept.append(end(*running.pop(os.wait()[0])))
        if sync and (time.monotonic() - synced >= 1 or begun == count and not running):
            sync_all()
            synced = time.monotonic()
    for path in kept:
        os.unlink(path)


if __name__ == "__main__":
    main()
