"""The examples: each runs where it is copied to, and its control totals fit."""
from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, RUNNER

BOOKS = ROOT / "examples" / "books"


@pytest.fixture
def books(tmp_path):
    """A copy of the example as somebody has it who copied the folder."""
    folder = tmp_path / "my books"
    shutil.copytree(str(BOOKS), str(folder), ignore=shutil.ignore_patterns("state", "locks", "__pycache__", "alice-*.txt"))
    return folder


def run(folder, *arguments):
    done = subprocess.run([sys.executable, str(RUNNER), *arguments], cwd=str(folder), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=120)
    out = done.stdout.decode("utf-8", "replace")
    assert done.returncode == 0, out + done.stderr.decode("utf-8", "replace")
    return out


def totals(folder, run_id):
    stages = json.loads((folder / "state" / ("run_%s.json" % run_id)).read_text("utf-8"))["stages"]
    return {one["stage"]: tuple(one["counts"][name] for name in ("read", "written", "rejected")) for one in stages}


def test_the_books_run_and_no_record_is_lost(books):
    run(books, "--run-id", "r1")
    found = totals(books, "r1")
    assert found["split"] == (815, 815, 0) and found["check"] == (815, 806, 9) and found["normalise"] == (806, 806, 0) and found["count"][0] == 806
    rejects = [json.loads(line) for line in (books / "data/checked/paragraphs.tsv.rejects.jsonl").read_text("utf-8").splitlines()]
    assert len(rejects) == 9 and all(one["line"] and one["reason"].startswith("no letters") for one in rejects)
    report = (books / "data/report/report.txt").read_text("utf-8")
    assert "alice           386 ########" in report and report.count("\nalice  ") == 14       # 13 chapters, and the word
    assert run(books, "--run-id", "r2", "--set", "top=3").count("[SKIP]") == 4
    page = run(books, "report") and (books / "report_r2.html").read_text("utf-8")
    assert "params.top 20 -&gt; 3" in page and page.count("fits") >= 5


def test_a_larger_input_is_made_and_gives_the_same_words_more_often(books):
    subprocess.run([sys.executable, str(books / "make_larger.py"), "2"], check=True, timeout=60)
    run(books, "--run-id", "r1")
    assert totals(books, "r1")["check"] == (3 * 815, 3 * 806, 3 * 9)
    assert "alice\t%d\n" % (3 * 386) in (books / "data/counted/words.tsv").read_text("utf-8")


def test_the_copy_of_the_kit_is_the_kit():
    ours = (ROOT / "bin" / "processor_kit.py").read_bytes()
    assert (BOOKS / "bin" / "processor_kit.py").read_bytes() == ours, "cp bin/processor_kit.py examples/books/bin/"


def test_the_text_is_small_plain_and_its_source_is_named():
    data = (BOOKS / "data/input/alice.txt").read_bytes()
    assert len(data) < 200_000 and b"\r" not in data and data.isascii() and b"Lewis Carroll" in data[:200]
    about = (BOOKS / "README.md").read_text("utf-8")
    assert "public domain" in about and "alice29.txt" in about
