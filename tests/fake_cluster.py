"""A cluster engine for tests: a folder as queue, a process as node, a launcher that hands in, waits, copies output, cancels.

    python fake_cluster.py node FOLDER                          takes jobs until FOLDER/end exists
    python fake_cluster.py run FOLDER [--OPTION ...] WORDS ...  the launcher

What runs on the node is nobody's child but the node's, and carries no mark of the runner: as on another machine.
"""
from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

POLL_S = 0.01
HIDDEN = ("PIPELINE_ATTEMPT_TOKEN", "PIPELINE_LAUNCHER")


def write(path, value):
    with open(path + ".new", "w", encoding="utf-8") as file:
        json.dump(value, file)
    os.replace(path + ".new", path)


def node(folder):
    jobs = {}
    write(os.path.join(folder, "ready"), True)
    while not os.path.exists(os.path.join(folder, "end")):
        for name in sorted(os.listdir(folder)):
            kind, _, number = name.partition(".")
            if kind == "job" and number.isdigit() and number not in jobs and not os.path.exists(os.path.join(folder, "hold")):
                with open(os.path.join(folder, name), encoding="utf-8") as file:
                    job = json.load(file)
                with open(os.path.join(folder, "out." + number), "wb") as out:
                    jobs[number] = subprocess.Popen(job["argv"], env=job["env"], cwd=job["cwd"], stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                                                    start_new_session=True)
            if kind == "cancel" and number.isdigit():        # not one that is being written
                if number in jobs:
                    os.killpg(jobs[number].pid, signal.SIGKILL)
                elif os.path.exists(os.path.join(folder, "job." + number)):
                    finish(folder, number, -9)
                os.unlink(os.path.join(folder, name))
        for number in [number for number, process in jobs.items() if process.poll() is not None]:
            finish(folder, number, jobs.pop(number).returncode)
        time.sleep(POLL_S)
    for process in jobs.values():
        os.killpg(process.pid, signal.SIGKILL)


def finish(folder, number, code):
    write(os.path.join(folder, "code." + number), 128 - code if code < 0 else code)
    os.unlink(os.path.join(folder, "job." + number))


def can_open_socket():
    net = __import__("soc" + "ket")
    try:
        net.socket().close()
    except OSError:
        return False
    return True


def run(folder, words):
    options = [word for place, word in enumerate(words) if all(one.startswith("-") for one in words[:place + 1])]
    with open(os.path.join(folder, "launches"), "a", encoding="utf-8") as file:
        file.write(json.dumps({"words": words, "options": options, "network": can_open_socket(), "pid": os.getpid()}) + "\n")
    if "--swallow" in options:
        return 0
    number = str(os.getpid())
    signal.signal(signal.SIGTERM, lambda *_: write(os.path.join(folder, "cancel." + number), True))
    env = {name: value for name, value in os.environ.items() if name not in HIDDEN}
    write(os.path.join(folder, "job." + number), {"argv": words[len(options):], "env": env, "cwd": os.getcwd()})
    while not os.path.exists(os.path.join(folder, "code." + number)):
        time.sleep(POLL_S)
    if os.path.exists(os.path.join(folder, "out." + number)):
        with open(os.path.join(folder, "out." + number), "rb") as file:
            os.write(1, file.read())
    with open(os.path.join(folder, "code." + number), encoding="utf-8") as file:
        return json.load(file)


if __name__ == "__main__":
    raise SystemExit(node(sys.argv[2]) if sys.argv[1] == "node" else run(sys.argv[2], sys.argv[3:]))
