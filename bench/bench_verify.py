"""How long `verify` takes for a long history.

    python bench/bench_verify.py [--runs 10000] [--python /path/to/python]

Writes a history of so many runs of two stages with the runner's own ledger (no processes are started), then times one
`verify` in a fresh process. Prints seconds, runs per second, and the verifier's peak memory where the system tells.
"""
import argparse
import os
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(ROOT, "src"))

import ledger_format  # noqa: E402
import model  # noqa: E402
import run_ledger  # noqa: E402
import stage_locks  # noqa: E402
import state_store  # noqa: E402


def stage_entry(number, run):
    digest = model.sha256(b"%d %d" % (number, run)).hexdigest()
    parts = {"keyVersion": 1, "pipeline": "bench", "stage": "s%d" % number, "outputDir": "data/%d" % number, "outputs": None,
             "processor": {"path": "bin/work.py", "sha256": digest, "mtimeNs": "1700000000000000000"}, "modules": [["bin/processor_kit.py", digest]],
             "args": [], "params": "{}", "env": {}, "passEnv": None, "inputs": [["data/input/a.txt", digest]], "watch": []}
    key = ledger_format.stage_key(dict(parts, params={}, processor=dict(parts["processor"], mtimeNs=1700000000000000000)))
    return {"stage": "s%d" % number, "status": "ok", "reason": "input data/input/a.txt changed", "attempts": 1, "durationMs": 12, "exitCode": 0, "key": key, "bytesIn": 100,
            "bytesOut": 100, "counts": {"read": 10, "written": 10, "rejected": 0}, "outputs": [{"path": "a.txt", "bytes": 100, "sha256": digest}], "keyParts": parts,
            "argv": ["python3", "bin/work.py", "data/input/a.txt"], "inputs": [{"path": "data/input/a.txt", "bytes": 100, "sha256": digest}], "logs": [], "networkRefusals": []}


def write_history(root, runs):
    store = state_store.StateStore(root)
    store.prepare()
    ledger = run_ledger.RunLedger(store, lambda name: stage_locks.FileLock(root, name, model.Clock()))
    for run in range(runs):
        ledger.end({"runId": "r%d" % run, "invocation": 1, "pipeline": "bench", "state": "completed", "stages": [stage_entry(number, run) for number in (1, 2)]})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10000)
    parser.add_argument("--python", default=sys.executable)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        write_history(root, options.runs)
        start = time.perf_counter()
        done = subprocess.run([options.python, os.path.join(ROOT, "src", "pipeline_runner.py"), "verify", "--root", root], stdout=subprocess.PIPE)
        taken = time.perf_counter() - start
    print(done.stdout.decode("utf-8").splitlines()[-1])
    line = "verified %d runs in %.2f s: %.0f runs per second" % (options.runs, taken, options.runs / taken)
    if sys.platform != "win32":
        import resource
        line += ", peak %.0f MiB" % (resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / (1 << (20 if sys.platform == "darwin" else 10)))
    print(line)
    raise SystemExit(done.returncode)


if __name__ == "__main__":
    main()
