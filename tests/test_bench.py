"""The benchmarks still run: each once, with next to nothing to do. What they print is for people; no time is judged here."""
from __future__ import annotations

import os
import subprocess
import sys

import pytest

from conftest import ROOT

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="they measure there: forks, shell scripts, /proc")

SMALL = [
    "bench_throughput.py --mib 1 --runs 1", "bench_noop.py --runs 1", "bench_guard.py --stages 2 --runs 1", "bench_forkserver.py --tasks 3 --jobs 2 --rounds 1",
    "bench_tasks.py nothing --files 5 --runs 1", "bench_tasks.py python --tasks 3 --runs 1 --jobs 2", "bench_inputs.py --files 2 --mib 1 --runs 1",
    "bench_growth.py --files 5 --runs 1", "bench_verify.py --runs 3", "bench_scale.py --stages 3 --runs 1", "bench_against.py ROOT --stages 2 --runs 1"]


@pytest.mark.parametrize("words", SMALL, ids=lambda words: words.split(".")[0] + words.partition("py ")[2].split(" ")[0])
def test_a_benchmark_runs(words, tmp_path):
    script, *arguments = [word.replace("ROOT", str(ROOT)) for word in words.split(" ")]
    env = dict(os.environ, TMPDIR=str(tmp_path), PYTHONDONTWRITEBYTECODE="1")
    done = subprocess.run([sys.executable, str(ROOT / "bench" / script), *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          universal_newlines=True, encoding="utf-8", env=env, timeout=300)
    assert done.returncode == 0 and "Traceback" not in done.stdout, done.stdout
