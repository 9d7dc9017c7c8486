"""The processor kit and the two processors, driven as real programs with the runner's environment and without it."""
from __future__ import annotations

import hashlib
import importlib.util
import json
import marshal
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import stale_bytecode
from conftest import run_without_might, settle

BIN = Path(__file__).resolve().parent.parent / "bin"
UPPER, COPY = BIN / "stage_upper.py", BIN / "stage_copy.py"
POSIX_ONLY = pytest.mark.skipif(sys.platform == "win32", reason="signals and rights of POSIX")
KIT = "import sys, time\nsys.path.insert(0, %r)\nfrom processor_kit import *\nimport processor_kit\n" % str(BIN)
SHOUT = KIT + "lines(lambda line: line.upper(), 'result.txt', one_to_one=True)\n"
# Slow enough to be killed in the middle, and it rejects and drops lines.
PICKY = KIT + """
def pick(line):
    if PAUSE:
        time.sleep(PAUSE)
    if line.startswith("bad"):
        raise Reject("starts with bad")
    return None if line.startswith("drop") else line.upper()
lines(pick, "result.txt")
"""
# Counts the calls that change what is on disk; at the n-th it dies like a kill, or the call fails with an error.
DRIVER = """
import os, runpy, sys, threading
limit, how, script = int(sys.argv[1]), sys.argv[2], sys.argv[3]
del sys.argv[:3]
calls, guard = [0], threading.Lock()
def wrapped(name):
    real = getattr(os, name)
    def call(*args, **more):
        with guard:
            calls[0] += 1
            hit = calls[0] == limit
        if hit and how == "die":
            os._exit(99)
        if hit:
            raise OSError(int(how), os.strerror(int(how)))
        return real(*args, **more)
    setattr(os, name, call)
for each in ("replace", "fsync", "unlink"):
    wrapped(each)
sys.path.insert(0, os.path.dirname(os.path.abspath(script)))
runpy.run_path(script, run_name="__main__")
"""

# Tells on stdout what is brought to the disk and what gets its name, in order.
TELLER = """
import os, runpy, sys
del sys.argv[0]
names, opened, synced, renamed = {}, os.open, os.fsync, os.replace
def note_open(path, *rest, **more):
    descriptor = opened(path, *rest, **more)
    names[descriptor] = os.path.basename(path)
    return descriptor
def note_sync(descriptor):
    os.write(1, ("sync %s\\n" % names[descriptor]).encode())
    synced(descriptor)
def note_name(source, target):
    os.write(1, ("name %s\\n" % os.path.basename(target)).encode())
    renamed(source, target)
os.open, os.fsync, os.replace = note_open, note_sync, note_name
if sys.platform == "darwin":
    import fcntl
    def refuse(*rest):
        raise OSError("another file system: fsync must do")
    fcntl.fcntl = refuse
sys.path.insert(0, os.path.dirname(os.path.abspath(sys.argv[0])))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


class Stage:
    """A root with inputs, the runner's environment for one stage, and the means to run a processor in it."""

    def __init__(self, root: Path) -> None:
        self.root, self.out = root, root / "out"
        self.progress = root / "progress_demo.json"
        self.result, self.rejects = self.out / "result.txt", self.out / "result.txt.rejects.jsonl"
        self.names: list = []
        self.attempts = 0

    def write(self, *contents: bytes) -> "Stage":
        for content in contents:
            self.names.append("in%d.txt" % len(self.names))
            (self.root / self.names[-1]).write_bytes(content)
        return self

    def script(self, text: str, name: str = "processor.py") -> Path:
        path = self.root / name
        path.write_text(text, encoding="utf-8")
        return path

    def environment(self, offset: int = 0, resume: bool = False, interval: int = 1, checkpoint: bool = True, **more: str) -> dict:
        self.attempts += 1
        found = {name: value for name, value in os.environ.items() if not name.startswith("PIPELINE_")}
        listed = self.root / "inputs.json"
        listed.write_text(json.dumps(self.names), encoding="utf-8")
        found.update(PIPELINE_STAGE_NAME="demo", PIPELINE_OUTPUT_DIR=str(self.out), PIPELINE_LINE_OFFSET=str(offset),
                     PIPELINE_KEY="abc123", PIPELINE_ATTEMPT_TOKEN="%08x.%d" % (self.attempts, self.attempts),
                     PIPELINE_INPUTS_FILE=str(listed), PIPELINE_PARAMS='{"limit": 10}')
        if checkpoint:
            found.update(PIPELINE_PROGRESS_FILE=str(self.progress), PIPELINE_LINE_INTERVAL=str(interval))
        if resume:
            found["PIPELINE_RESUME"] = "1"
        found.update(more)
        return found

    def start(self, script: Path, *arguments: str, **how: object) -> subprocess.Popen:
        return subprocess.Popen([sys.executable, str(script), *arguments, *self.names], cwd=str(self.root),
                                env=self.environment(**how), stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def run(self, script: Path, *arguments: str, code: int = 0, **how: object) -> subprocess.CompletedProcess:
        process = self.start(script, *arguments, **how)
        out, error = process.communicate(timeout=60)
        done = subprocess.CompletedProcess(process.args, process.returncode, out.decode(), error.decode())
        assert done.returncode == code, "exit %d\nstdout: %s\nstderr: %s" % (done.returncode, done.stdout, done.stderr)
        return done

    def again(self) -> dict:
        """Return how the runner would start the next attempt, judging by the progress file."""
        try:
            offset = json.loads(self.progress.read_bytes())["lineOffset"]
        except FileNotFoundError:
            return {}
        return {"offset": offset, "resume": True}

    def record(self) -> dict:
        while True:
            try:
                return json.loads(self.progress.read_bytes())
            except PermissionError:
                if os.name == "posix":          # on Windows it is just being replaced
                    raise

    def leftovers(self) -> list:
        return sorted(name for name in os.listdir(str(self.out)) if name.endswith((".part", ".tmp"))) if self.out.exists() else []


@pytest.fixture
def stage(tmp_path):
    return Stage(tmp_path)


def picky(stage, pause=0.0):
    return stage.script(PICKY.replace("PAUSE", str(pause)))


def numbered(count, seed=1):
    source = random.Random(seed)
    starts = ["line", "bad", "drop", "zeile ü"]
    return "".join("%s %d %s\n" % (source.choice(starts), i, "x" * source.randint(0, 60)) for i in range(count)).encode()


def expected_of_picky(content, name="in0.txt"):
    kept, refused = [], []
    for number, line in enumerate(content.decode().split("\n")[:-1], 1):
        if line.startswith("bad"):
            refused.append({"input": name, "line": number, "reason": "starts with bad", "record": line + "\n"})
        elif not line.startswith("drop"):
            kept.append(line.upper() + "\n")
    return "".join(kept).encode(), refused


def read_rejects(stage):
    return [json.loads(line) for line in stage.rejects.read_text(encoding="utf-8").splitlines()]


# --- what comes out --------------------------------------------------------------------------------------------------

TEXTS = {
    "plain": b"one\ntwo\n",
    "crlf": b"one\r\ntwo\r\n",
    "lone cr": b"one\rtwo\n",
    "other line ends": "a\u2028b\x0bc\x85d\n".encode(),
    "no end": b"one\ntwo",
    "empty": b"",
    "only ends": b"\n\n\n",
    "nul": b"a\0b\n\0\n",
    "letters": "straße été ñandú ŉ 😀\n".encode(),
    "sparse": b"plain ascii line\n" * 9000 + "é\n".encode() + b"more\n" * 20000 + "ß😀\n".encode() + b"end",
    "dense": "größe über été\nplain\n".encode() * 9000,
    "long line": "ab😀é".encode() * 180000 + b"\nshort\n",
}


@pytest.mark.parametrize("name", sorted(TEXTS))
@pytest.mark.parametrize("kind", ["lines", "blocks"])
def test_text_comes_out_upper_case_and_otherwise_unchanged(stage, name, kind):
    stage.write(TEXTS[name])
    stage.run(stage.script(SHOUT) if kind == "lines" else UPPER)
    assert stage.result.read_bytes() == TEXTS[name].decode().upper().encode()
    assert stage.leftovers() == []
    total = len(TEXTS[name].split(b"\n")) - (TEXTS[name].endswith(b"\n") or not TEXTS[name])
    record = stage.record()
    assert record["counts"] == {"read": total, "written": total, "rejected": 0}
    assert (record["lineOffset"], record["complete"], record["durable"]) == (total, True, True)
    assert record["bytesDone"] == record["bytesTotal"] == len(TEXTS[name])


def test_bytes_that_are_not_utf8_pass_stage_upper_unchanged(stage):
    stage.write(b"ok\n\xff\xfe caf\xe9 \xe2\x82\n" + "é\n".encode())
    stage.run(UPPER)
    assert stage.result.read_bytes() == b"OK\n\xff\xfe CAF\xe9 \xe2\x82\n" + "É\n".encode()


@pytest.mark.parametrize("kind", ["lines", "blocks"])
def test_bytes_that_are_not_utf8_are_an_error_that_names_the_line(stage, kind):
    stage.write("é\n".encode(), b"good\n" * 3 + "gut é\n".encode() * 3 + b"caf\xe9\n")
    done = stage.run(stage.script(KIT + "%s(str.upper, 'result.txt')\n" % kind), code=1)
    assert done.stderr.startswith("in1.txt:7: byte 0xe9 is not utf-8: ") and "surrogateescape" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not stage.result.exists()


def test_other_encodings_are_read_and_written(stage):
    stage.write("größe\n".encode("latin-1"))
    stage.run(stage.script(KIT + "lines(str.upper, 'result.txt', encoding='latin-1')\n"))
    assert stage.result.read_bytes() == "GRÖSSE\n".encode("latin-1")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-7", "no-such"])
def test_an_encoding_that_cannot_work_is_refused(stage, encoding):
    stage.write(b"x\n")
    done = stage.run(stage.script(KIT + "lines(str.upper, 'result.txt', encoding=%r)\n" % encoding), code=1)
    assert encoding in done.stderr and "Traceback" not in done.stderr


def test_several_inputs_are_joined_byte_for_byte(stage):
    stage.write(b"a\nb", b"", b"c\n")
    stage.run(stage.script(SHOUT))
    assert stage.result.read_bytes() == b"A\nBC\n"
    assert stage.record()["counts"]["read"] == 3


def test_pieces_of_a_long_line_are_cut_between_characters(stage):
    text = "é😀x" * 400000 + "\nend\n"
    stage.write(text.encode())
    script = (KIT + "seen = []\nblocks(lambda text: seen.append(text) or text, 'result.txt')\n"
              "print([len(text.encode()) for text in seen])\n")
    sizes = json.loads(stage.run(stage.script(script)).stdout)
    assert stage.result.read_bytes() == text.encode()
    assert max(sizes) <= 1 << 20 and len(sizes) > 2


@pytest.mark.skipif(not hasattr(os, "wait4"), reason="peak memory is read with wait4")
def test_memory_stays_small_for_one_huge_line(stage):
    with open(str(stage.root / "big.txt"), "wb") as file:
        for _ in range(40):
            file.write("😀é".encode() * 170000)
    stage.names.append("big.txt")
    # Through a small process of its own: what a child once was before it became another program counts for its peak,
    # and pytest is large. Without coverage, which needs memory too.
    env = {name: value for name, value in stage.environment().items() if not name.startswith(("COV_CORE_", "COVERAGE_"))}
    code = "import os, sys; p = os.spawnv(os.P_NOWAIT, sys.executable, sys.argv[1:]); s, u = os.wait4(p, 0)[1:]; print(s, u.ru_maxrss)"
    done = subprocess.run([sys.executable, "-c", code, sys.executable, str(UPPER), "big.txt"], cwd=str(stage.root), env=env,
                          stdout=subprocess.PIPE, timeout=60)
    status, peak = map(int, done.stdout.split()[-2:])
    assert status == 0
    assert peak / (1 << 20 if sys.platform == "darwin" else 1 << 10) < 64


def test_a_line_too_long_for_lines_names_the_way_out(stage):
    stage.write(b"short\n" + b"x" * (5 << 20) + b"\n")
    done = stage.run(stage.script(SHOUT), code=1)
    assert done.stderr.startswith("in0.txt:2: line longer than ") and "blocks()" in done.stderr
    assert len(done.stderr.splitlines()) == 1


# --- records ---------------------------------------------------------------------------------------------------------

def test_rejects_and_drops_are_counted_and_set_aside(stage):
    content = numbered(500)
    stage.write(content)
    stage.run(picky(stage))
    kept, refused = expected_of_picky(content)
    assert stage.result.read_bytes() == kept
    assert read_rejects(stage) == refused
    assert stage.record()["counts"] == {"read": 500, "written": kept.count(b"\n"), "rejected": len(refused)}


def test_line_numbers_of_rejects_count_within_each_input(stage):
    stage.write(b"a\nb", b"bad\n", b"c\nbad 2")
    stage.run(picky(stage))
    assert [(each["input"], each["line"], each["record"]) for each in read_rejects(stage)] == \
        [("in1.txt", 1, "bad\n"), ("in2.txt", 2, "bad 2")]


def test_rejects_of_an_earlier_run_go_when_there_are_none_now(stage):
    stage.write(b"bad\n")
    stage.run(picky(stage))
    assert stage.rejects.exists()
    (stage.root / "in0.txt").write_bytes(b"good\n")
    stage.run(picky(stage))
    assert not stage.rejects.exists()


FAILURES = {
    "1 / 0": ("in0.txt:3: the processor failed here: ZeroDivisionError", "Traceback"),
    "7": ("in0.txt:3: the line function returned int, not str or None", ""),
    "'\\udcff'": ("in0.txt:3: the result cannot be written as utf-8", ""),
}


@pytest.mark.parametrize("expression", sorted(FAILURES))
def test_an_error_in_the_function_names_the_line(stage, expression):
    first, later = FAILURES[expression]
    stage.write(b"a\nb\nHERE\nc\n")
    script = KIT + "lines(lambda line: %s if line.startswith('HERE') else line, 'result.txt')\n" % expression
    done = stage.run(stage.script(script), code=1)
    assert done.stderr.startswith(first)
    assert later in done.stderr if later else "Traceback" not in done.stderr
    assert not stage.result.exists()


def test_an_error_in_a_block_function_names_the_place(stage):
    stage.write(b"a\n")
    done = stage.run(stage.script(KIT + "blocks(lambda text: None, 'result.txt')\n"), code=1)
    assert done.stderr == "in0.txt:1: the block function returned NoneType, not str\n"
    done = stage.run(stage.script(KIT + "blocks(lambda text: 1 / 0, 'result.txt')\n"), code=1)
    assert done.stderr.startswith("in0.txt:1: the processor failed here: ZeroDivisionError") and "Traceback" in done.stderr


def test_a_dropped_line_breaks_the_promise_of_one_to_one(stage):
    stage.write(b"a\nb\n")
    done = stage.run(stage.script(KIT + "lines(lambda line: None, 'result.txt', one_to_one=True)\n"), code=1)
    assert "one_to_one" in done.stderr


def test_a_simulated_failure_is_the_first_thing(stage):
    stage.write(b"a\n")
    done = stage.run(UPPER, code=75, PIPELINE_SIMULATED_FAIL="1")
    assert done.stderr == "simulated failure (PIPELINE_SIMULATED_FAIL=1)\n"
    assert not stage.out.exists()


@pytest.mark.parametrize("script", [UPPER, COPY])
def test_a_missing_input_is_one_clear_line(stage, script):
    stage.names.append("nowhere.txt")
    done = stage.run(script, code=1)
    assert "nowhere.txt" in done.stderr and len(done.stderr.splitlines()) == 1
    assert not stage.out.exists()


def test_an_input_that_is_the_output_is_refused(stage):
    stage.out.mkdir()
    stage.result.write_bytes(b"keep me\n")
    stage.names.append("out/result.txt")
    assert "both input and output" in stage.run(UPPER, code=1).stderr
    assert stage.result.read_bytes() == b"keep me\n"


@pytest.mark.parametrize("name", ["10:30.txt", "a\\b.txt"])
@pytest.mark.skipif(os.name == "nt", reason="such names are none there")
def test_what_is_no_name_on_windows_is_one_elsewhere(stage, name):
    check = "assert processor_kit._check_output_name('sub' + chr(92) + 'x', 'win32') == 'sub/x'\nlines(str.upper, processor_kit._check_output_name(%r, %r))\n"
    stage.write(b"a\n")
    assert stage.run(stage.script(KIT + check % (name, "linux"))).returncode == 0 and (stage.out / name).read_bytes() == b"A\n"
    assert "output name 'c:x'" in stage.run(stage.script(KIT + check % ("c:x", "win32")), code=1).stderr


NO_NAMES = ["nul", "NUL.txt", "nul .txt", "sub/con", "aux.csv", "CONIN$", "com1", "LPT\u00b2.x", "a.txt.", "a ", "sub./a", "a?b", 'a"b', "a\x1fb"]


@pytest.mark.parametrize("name", ["ok.txt", *NO_NAMES])
def test_names_of_devices_and_what_windows_would_change_are_no_output_names_there(stage, name):
    stage.write(b"a\n")
    script = stage.script(KIT + "name = processor_kit._checked(lambda: processor_kit._check_output_name(%r, 'win32'))\nlines(str.upper, name)\n" % name)
    done = stage.run(script, code=int(name in NO_NAMES))
    assert ("is none on Windows" in done.stderr and len(done.stderr.splitlines()) == 1) == (name in NO_NAMES)
    assert stage.out.exists() == (name not in NO_NAMES)


def test_an_output_does_not_take_the_place_of_one_that_differs_in_case_only(stage):
    stage.write(b"a\n").out.mkdir()
    begin = KIT + "lines(str.upper, 'Name.txt')\nfolder = os.environ['PIPELINE_OUTPUT_DIR']\n"
    one_file = "" if (stage.out.parent / stage.out.name.upper()).exists() else "os.link(os.path.join(folder, 'Name.txt'), os.path.join(folder, 'name.txt'))\n"
    second = "with processor_kit.open_output('name.txt') as file:\n    file.write('other')\n"
    done = stage.run(stage.script("import os\n" + begin + one_file + second), code=1)
    assert "Name.txt and " in done.stderr and "are one file here" in done.stderr and (stage.out / "Name.txt").read_bytes() == b"A\n"
    if one_file:
        stage.run(stage.script("import os\n" + begin + second))


# What may only be read is neither replaced nor removed, and of what has too long a path nothing is there.
AS_WINDOWS = KIT + """
import os
def refusing(name):
    real = getattr(os, name)
    def call(*arguments):
        if name == "open" and len(arguments[0]) > 259:
            raise FileNotFoundError(2, "No such file or directory", arguments[0])
        if name != "open" and os.path.exists(arguments[-1]) and not os.stat(arguments[-1]).st_mode & 0o200:
            error = PermissionError(13, "Access is denied", arguments[-1])
            error.winerror = 5
            raise error
        return real(*arguments)
    setattr(os, name, call)
for each in ("open", "replace", "unlink"):
    refusing(each)
sys.platform = "win32"
"""


def test_what_may_only_be_read_is_replaced_and_removed_as_on_other_systems(stage):
    stage.out.mkdir()
    for name in OLD:
        (stage.out / name).write_bytes(OLD[name])
        (stage.out / name).chmod(0o444)
    stage.write(b"a\n").run(stage.script(AS_WINDOWS + "lines(str.upper, 'result.txt')\n"), checkpoint=False)
    assert {path.name: path.read_bytes() for path in stage.out.iterdir()} == {"result.txt": b"A\n"}


def test_a_path_that_is_too_long_for_windows_is_told_with_the_remedy(stage):
    told = stage.write(b"a\n").run(stage.script(AS_WINDOWS + "lines(str.upper, %r)\n" % ("x" * 220 + "/result.txt")), code=1).stderr
    assert told.startswith("cannot create ") and "characters, and Windows takes no more than 259, of a folder 247: let the root or the name be shorter" in told
    stage.names.append("none.txt")
    assert "Windows" not in stage.run(stage.script(AS_WINDOWS + "lines(str.upper, 'result.txt')\n"), code=1).stderr


@pytest.mark.parametrize("name", ["../up.txt", "", "/abs.txt", "a//b"])
def test_an_output_name_that_escapes_is_refused(stage, name):
    stage.write(b"a\n")
    assert "output name" in stage.run(stage.script(KIT + "lines(str.upper, %r)\n" % name), code=1).stderr


@pytest.mark.parametrize("name,value", [("PIPELINE_LINE_OFFSET", "-1"), ("PIPELINE_LINE_INTERVAL", "0"),
                                        ("PIPELINE_LINE_OFFSET", "x")])
def test_bad_numbers_in_the_environment_are_named(stage, name, value):
    stage.write(b"a\n")
    assert name in stage.run(UPPER, code=1, **{name: value}).stderr


@pytest.mark.parametrize("content", [b"{", b"{}", b"[1]"])
def test_a_bad_list_of_inputs_is_named(stage, content):
    (stage.root / "broken.json").write_bytes(content)
    done = stage.run(UPPER, code=1, PIPELINE_INPUTS_FILE=str(stage.root / "broken.json"))
    assert "broken.json" in done.stderr and len(done.stderr.splitlines()) == 1


# --- kills -----------------------------------------------------------------------------------------------------------

def wait_for_lines(stage, process, least):
    """Poll the progress file until it vouches for *least* lines or the process ends."""
    deadline = time.monotonic() + 30
    while process.poll() is None and time.monotonic() < deadline:
        try:
            if stage.record()["lineOffset"] >= least:
                return True
        except FileNotFoundError:
            pass
        time.sleep(0.001)
    return False


def test_twenty_kills_in_a_row_lose_nothing_and_double_nothing(stage):
    content = numbered(3000)
    stage.write(content)
    script = picky(stage, 0.0003)
    source, kills = random.Random(7), 0
    for _ in range(20):
        how = stage.again()
        process = stage.start(script, **how)
        if wait_for_lines(stage, process, how.get("offset", 0) + source.randint(1, 120)):
            process.kill()
            kills += 1
        process.communicate()
    assert kills >= 10
    stage.run(script, **stage.again())
    kept, refused = expected_of_picky(content)
    assert stage.result.read_bytes() == kept
    assert read_rejects(stage) == refused
    assert stage.record()["counts"] == {"read": 3000, "written": kept.count(b"\n"), "rejected": len(refused)}
    assert stage.leftovers() == []


def test_a_resume_does_not_do_the_vouched_lines_again(stage):
    stage.write(numbered(2000))
    script = picky(stage, 0.001)
    process = stage.start(script)
    assert wait_for_lines(stage, process, 50)
    process.kill()
    process.communicate()
    offset = stage.record()["lineOffset"]
    noting = PICKY.replace("PAUSE", "0").replace("def pick(line):", "seen = []\ndef pick(line):\n    seen.append(line)")
    trace = stage.script(noting + "print(len(seen))\n")
    done = stage.run(trace, **stage.again())
    assert done.stdout.splitlines() == ["resuming from line %d" % offset, str(2000 - offset)]


@POSIX_ONLY
@pytest.mark.parametrize("number,code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_stops_with_a_checkpoint(stage, number, code):
    content = numbered(2000)
    stage.write(content)
    script = picky(stage, 0.001)
    process = stage.start(script, interval=10)
    assert wait_for_lines(stage, process, 20)
    process.send_signal(number)
    out, error = process.communicate()
    assert (process.returncode, error) == (code, b"")
    offset = stage.record()["lineOffset"]
    assert out.decode() == "stopped at line %d, checkpoint written\n" % offset
    assert 20 <= offset < 2000
    stage.run(picky(stage), **stage.again())
    assert stage.result.read_bytes() == expected_of_picky(content)[0]


@POSIX_ONLY
def test_without_a_progress_file_a_stop_leaves_no_part(stage):
    stage.write(numbered(2000))
    process = stage.start(picky(stage, 0.001), checkpoint=False)
    while process.poll() is None and not stage.leftovers():
        time.sleep(0.001)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 143
    process.communicate()
    assert os.listdir(str(stage.out)) == []


def test_a_slow_function_is_checkpointed_about_every_interval(stage):
    stage.write(b"x\n" * 30)
    process = stage.start(picky(stage, 0.02), interval=3)
    seen = set()
    while process.poll() is None:
        try:
            seen.add(stage.record()["lineOffset"])
        except FileNotFoundError:
            pass
        time.sleep(0.002)
    process.communicate()
    steps = sorted(seen)
    assert len(steps) >= 6 and steps[0] <= 6


def test_a_killed_middle_of_one_long_line_resumes_in_it(stage):
    text = "é😀x" * 900000
    stage.write(text.encode())
    script = stage.script(KIT + "processor_kit.PAUSE_MIN_S = 0\nprocessor_kit._Saver.is_due = lambda *rest: True\n"
                          "calls = []\ndef slow(text):\n    calls.append(1)\n    if len(calls) > 3 and %r: time.sleep(60)\n"
                          "    return text.upper()\nblocks(slow, 'result.txt')\n" % True)
    process = stage.start(script)
    while process.poll() is None and not (stage.progress.exists() and stage.record()["byteOffset"] > 2 << 20):
        time.sleep(0.002)
    process.kill()
    process.communicate()
    assert stage.record()["lineOffset"] == 0
    done = stage.run(UPPER, **stage.again())
    assert done.stdout == "resuming from line 0\n"
    assert stage.result.read_bytes() == text.upper().encode()
    assert stage.record()["counts"]["read"] == 1


# --- every step, by a driver that dies or fails there ----------------------------------------------------------------

def sweep(stage, how, script, old):
    """Yield (n, finished process) with the n-th changing call hit, until a run is no longer hit."""
    driver = stage.script(DRIVER, "driver.py")
    for number in range(1, 60):
        reset(stage, old)
        process = stage.start(driver, str(number), how, str(script), interval=1)
        out, error = process.communicate()
        yield number, process.returncode, error.decode()
        if process.returncode == 0:
            return
    raise AssertionError("still hit after 60 calls")


def reset(stage, old):
    """Make the output folder one of an earlier run with other results."""
    if stage.progress.exists():
        stage.progress.unlink()
    stage.out.mkdir(exist_ok=True)
    for name in os.listdir(str(stage.out)):
        os.unlink(str(stage.out / name))
    for name, content in old.items():
        (stage.out / name).write_bytes(content)


OLD = {"result.txt": b"OLD\n", "result.txt.rejects.jsonl": b"{}\n", "result.txt~demo~aa.1.part": b"stale"}


@pytest.mark.parametrize("content", [b"one\nbad\ntwo\n", b"one\ntwo\n"])
def test_a_death_before_any_step_is_made_good_by_a_resume(stage, content):
    stage.write(content)
    script = picky(stage)
    kept, refused = expected_of_picky(content)
    states = set()
    for number, code, _ in sweep(stage, "die", script, OLD):
        assert code in (0, 99)
        assert stage.result.read_bytes() in (b"OLD\n", kept), number
        if stage.progress.exists():
            states.add((stage.record()["publishing"], stage.record()["complete"]))
        stage.run(script, **stage.again())
        assert stage.result.read_bytes() == kept, number
        assert (read_rejects(stage) if stage.rejects.exists() else []) == refused, number
        assert stage.leftovers() == [], number
        assert stage.record()["complete"] is True
    assert states >= {(False, False), (True, False), (False, True)}


def test_counts_are_of_all_calls_before_whichever_step_the_last_attempt_died(stage):
    """The runner takes what is in the file of counts: a call that had already published must be in there, too."""
    stage.write(b"one\ntwo\n")
    script = stage.script(KIT + "lines(str.upper, 'a.txt')\nlines(str.lower, 'b.txt')\n")
    counts = stage.root / "counts.json"
    outcomes = set()
    for number, _, _ in sweep(stage, "die", script, {}):
        counts.exists() and counts.unlink()
        done = stage.run(script, PIPELINE_COUNTS_FILE=str(counts), **stage.again())
        outcomes.update(word for word in ("completed the publishing of a.txt", "already complete") if word in done.stdout)
        assert json.loads(counts.read_bytes()) == {"read": 4, "written": 4, "rejected": 0}, number
    assert outcomes == {"completed the publishing of a.txt", "already complete"}


@pytest.mark.parametrize("name", ["ENOSPC", "EIO"])
def test_an_error_at_any_step_is_one_line_and_then_a_clean_run(stage, name):
    import errno
    stage.write(b"one\nbad\ntwo\n")
    script = picky(stage)
    kept, refused = expected_of_picky(b"one\nbad\ntwo\n")
    for number, code, error in sweep(stage, str(getattr(errno, name)), script, OLD):
        if code == 0:
            assert error == ""
        else:
            assert code == 1 and error.startswith("cannot ") and len(error.splitlines()) == 1, (number, error)
            assert "bytes free" in error if name == "ENOSPC" else "bytes free" not in error
        stage.run(script, **stage.again())
        assert (stage.result.read_bytes(), read_rejects(stage), stage.leftovers()) == (kept, refused, []), number


def test_copies_survive_a_death_before_any_step(stage):
    stage.write(b"first\n", b"\0\xff second")
    for number, code, _ in sweep(stage, "die", COPY, {"in0.txt": b"old", "in0.txt~demo~aa.1.part": b"stale"}):
        assert code in (0, 99)
        assert (stage.out / "in0.txt").read_bytes() in (b"old", b"first\n"), number
        stage.run(COPY)
        assert (stage.out / "in0.txt").read_bytes() == b"first\n" and (stage.out / "in1.txt").read_bytes() == b"\0\xff second"
        assert stage.leftovers() == [], number


@POSIX_ONLY
@pytest.mark.parametrize("body, steps", [
    ("lines(str.upper, 'result.txt')", ["sync result.txt.part", "sync out", "sync .progress_demo.json.tmp", "name progress_demo.json", "sync ROOT",
                                        "name result.txt", "sync out", "sync .progress_demo.json.tmp", "name progress_demo.json", "sync ROOT"]),
    ("copy_files()", ["sync in0.txt.part", "name in0.txt", "sync in1.txt.part", "name in1.txt", "sync out"]),
    ("with open_output('more.txt') as file:\n    file.write('more')", ["sync more.txt.part", "sync out", "name more.txt", "sync out"])])
@pytest.mark.parametrize("syncs", ["", "runner"])
def test_what_gets_its_name_is_on_the_disk_and_the_name_is_before_the_end(stage, body, steps, syncs):
    """A progress file may count on its parts; and the runner says that it syncs only where there is none."""
    stage.write(b"a\n", b"b\n").script(KIT + body + "\n")
    done = stage.run(stage.script(TELLER, "teller.py"), str(stage.root / "processor.py"), interval=1000, PIPELINE_SYNC=syncs)
    told = [re.sub("[.][0-9a-f]{16}[.]tmp$", ".tmp", re.sub("~demo~.*[.]part$", ".part", line)).replace(stage.root.name, "ROOT") for line in done.stdout.splitlines()]
    assert told == steps


@POSIX_ONLY
def test_without_a_progress_file_all_syncing_is_left_to_a_runner_that_does_it(stage):
    stage.write(b"a\n").script(KIT + "lines(str.upper, 'result.txt')\ncopy_files()\n")
    done = stage.run(stage.script(TELLER, "teller.py"), str(stage.root / "processor.py"), checkpoint=False, PIPELINE_SYNC="runner")
    assert done.stdout.splitlines() == ["name result.txt", "name in0.txt"]


def test_an_error_while_copying_leaves_no_part(stage):
    import errno
    stage.write(b"first\n")
    for number, code, error in sweep(stage, str(errno.ENOSPC), COPY, {"in0.txt": b"old"}):
        assert (code, len(error.splitlines())) in ((0, 0), (1, 1)), error
        assert stage.leftovers() == [], number


@POSIX_ONLY
@pytest.mark.parametrize("kind", ["lines", "blocks"])
def test_a_refused_write_in_the_middle_is_one_line_and_then_a_clean_run(stage, kind):
    content = b"some text of a line\n" * 400000
    stage.write(content)
    work = "%s(str.upper, 'result.txt', one_to_one=True)\n" % kind
    limit = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (3500000, 3500000))\n"
    done = stage.run(stage.script(KIT + limit + work), code=1)
    assert done.stderr.startswith("cannot write ") and "result.txt~demo~" in done.stderr and len(done.stderr.splitlines()) == 1
    assert not stage.result.exists()
    stage.run(stage.script(KIT + work), **stage.again())
    assert stage.result.read_bytes() == content.upper()
    assert stage.leftovers() == []


@pytest.mark.parametrize("length", [187, 188, 250])
def test_an_output_may_have_all_the_bytes_that_a_name_may_have(stage, length):
    """Its part is called by a digest of it where name and stage together leave no room for a token."""
    name = "x" * length
    stage.write(numbered(2000))
    script = stage.script(KIT + "import time\n\ndef slow(line):\n    time.sleep(0.001)\n    return line.upper()\n\nlines(slow, %r)\n" % name)
    process = stage.start(script)
    assert wait_for_lines(stage, process, 30)
    process.kill()
    process.communicate()
    part, = stage.record()["outputs"]
    assert part.startswith(name + "~demo~") is (length + 4 <= 191) and (stage.out / part).exists()
    done = stage.run(script, **stage.again())
    assert "resuming from line" in done.stdout and (stage.out / name).read_bytes() == numbered(2000).decode("utf-8").upper().encode("utf-8") and os.listdir(str(stage.out)) == [name]


# --- resumes that cannot be --------------------------------------------------------------------------------------

def stopped(stage, content=None):
    """Leave a stage killed in the middle, with a checkpoint; return its progress."""
    stage.write(content or numbered(2000))
    process = stage.start(picky(stage, 0.001))
    assert wait_for_lines(stage, process, 30)
    process.kill()
    process.communicate()
    return stage.record()


@pytest.fixture(scope="module")
def a_stop(tmp_path_factory):
    """A killed stage; tests copy it, because making one takes a moment."""
    made = Stage(tmp_path_factory.mktemp("stopped"))
    stopped(made)
    return made


@pytest.fixture
def killed(a_stop, tmp_path):
    import shutil
    shutil.copytree(str(a_stop.root), str(tmp_path / "copy"))
    copy = Stage(tmp_path / "copy")
    copy.names = list(a_stop.names)
    return copy


def first_output(record, value):
    return {name: value for name in record["outputs"]}


BAD = {
    "negative offset": lambda record: {"byteOffset": -1},
    "bool offset": lambda record: {"byteOffset": True},
    "float index": lambda record: {"inputIndex": 0.5},
    "text size": lambda record: {"outputs": first_output(record, "10")},
    "negative size": lambda record: {"outputs": first_output(record, -1)},
    "outputs no object": lambda record: {"outputs": [1]},
    "publish no object": lambda record: {"publish": None},
    "no digests": lambda record: {"digests": None},
    "no digest of a part": lambda record: {"digests": {}},
    "another digest": lambda record: {"digests": dict.fromkeys(record["digests"], "0" * 64)},
    "published, with another digest": lambda record: {"publishing": True, "digests": dict.fromkeys(record["digests"], "0" * 64)},
    "no counts": lambda record: {"counts": None},
    "bool count": lambda record: {"counts": {"read": 1, "written": True, "rejected": 0}},
    "part shorter than vouched": lambda record: {"outputs": first_output(record, 1 << 30)},
    "missing part": lambda record: {"outputs": {"result.txt~demo~ff.part": 0},
                                    "publish": {"result.txt~demo~ff.part": "result.txt"}},
    "foreign part": lambda record: {"outputs": {"in0.txt": 0}, "publish": {"in0.txt": "result.txt"}},
    "escaping part": lambda record: {"outputs": {"result.txt~demo~/../../in0.txt~.part": 0},
                                     "publish": {"result.txt~demo~/../../in0.txt~.part": "result.txt"}},
    "foreign final": lambda record: {"publish": {name: "../in0.txt" for name in record["publish"]}},
    "no outputs left": lambda record: {"outputs": {}, "publish": {}},
    "other key": lambda record: {"key": "other"},
    "other stage": lambda record: {"stage": "other"},
    "other schema": lambda record: {"schema": 2},
    "other inputs": lambda record: {"bytesTotal": record["bytesTotal"] + 1},
    "behind the end": lambda record: {"byteOffset": record["bytesTotal"] + 1},
    "another output was open": lambda record: {"open": ["side.txt"]},
    "no such input": lambda record: {"inputIndex": 2},
    "no such input, at its beginning": lambda record: {"inputIndex": 2, "byteOffset": 0},
    "behind the last input": lambda record: {"inputIndex": 1},
    "published but not there": lambda record: {"publishing": True, "outputs": first_output(record, 1 << 30)},
    "complete but not there": lambda record: {"complete": True},
}


@pytest.mark.parametrize("name", sorted(BAD))
def test_a_checkpoint_that_cannot_be_trusted_starts_from_zero(killed, name):
    record = killed.record()
    record.update(BAD[name](record))
    killed.progress.write_text(json.dumps(record), encoding="utf-8")
    done = killed.run(picky(killed), **killed.again())
    assert done.stdout.startswith("starting from zero: ") and len(done.stdout.splitlines()) == 1
    content = (killed.root / "in0.txt").read_bytes()
    assert killed.result.read_bytes() == expected_of_picky(content)[0]
    assert content == numbered(2000)
    assert killed.leftovers() == []


def test_what_a_part_has_behind_the_vouched_bytes_is_not_published(killed):
    """As after a kill, if the function then gives less than it did before."""
    name = next(name for name, final in killed.record()["publish"].items() if final == "result.txt")
    with open(killed.out / name, "ab") as file:
        file.write(b"of the last attempt\n" * 100000)
    assert killed.run(picky(killed), **killed.again()).stdout.startswith("resuming from line ")
    assert killed.result.read_bytes() == expected_of_picky((killed.root / "in0.txt").read_bytes())[0]


def test_a_file_of_the_user_that_a_checkpoint_calls_a_part_is_neither_cut_nor_renamed(killed):
    (killed.out / "notes.txt").write_bytes(b"do not lose this\n")
    record = killed.record()
    record.update(outputs={"notes.txt": 0}, publish={"notes.txt": "result.txt"}, digests={"notes.txt": hashlib.sha256(b"").hexdigest()})
    killed.progress.write_text(json.dumps(record), encoding="utf-8")
    assert killed.run(picky(killed), **killed.again()).stdout.startswith("starting from zero: the checkpoint names a foreign part file: notes.txt")
    assert (killed.out / "notes.txt").read_bytes() == b"do not lose this\n"


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff", b"null", b'{"lineOffset": true}', b'{"lineOffset": -4}',
                                     b"[" * 100000], ids=range(7))
def test_a_damaged_progress_file_starts_from_zero(killed, content):
    killed.progress.write_bytes(content)
    done = killed.run(picky(killed), offset=30)
    assert done.stdout.startswith("starting from zero: ") and done.stderr == ""
    assert killed.result.read_bytes() == expected_of_picky(numbered(2000))[0]


def test_a_part_that_was_changed_starts_from_zero(killed):
    """An older copy was put back, or a disk lost what it had said to have written: the length alone tells nothing."""
    name, = [name for name, size in killed.record()["outputs"].items() if size and ".rejects." not in name]
    with open(str(killed.out / name), "r+b") as part:
        part.write(b"\0" * 4)
    done = killed.run(picky(killed), **killed.again())
    assert "part file %s is not what it was at the checkpoint" % name in done.stdout
    assert killed.result.read_bytes() == expected_of_picky(numbered(2000))[0]


def assert_digests_are_of_the_parts(stage):
    record = stage.record()
    assert set(record["digests"]) == set(record["outputs"])
    for name, size in record["outputs"].items():
        assert record["digests"][name] == hashlib.sha256((stage.out / name).read_bytes()[:size]).hexdigest(), name


def test_each_checkpoint_has_the_digests_of_its_parts_also_after_a_resume(killed):
    before = killed.record()["lineOffset"]
    assert_digests_are_of_the_parts(killed)
    process = killed.start(picky(killed, 0.001), **killed.again())
    assert wait_for_lines(killed, process, before + 30)
    process.kill()
    out, _ = process.communicate()
    assert_digests_are_of_the_parts(killed)
    assert killed.record()["lineOffset"] >= before + 30
    done = killed.run(picky(killed), **killed.again())
    assert "resuming from line" in done.stdout and killed.result.read_bytes() == expected_of_picky(numbered(2000))[0]


def test_a_part_of_many_groups_has_its_digest(stage):
    stage.write(b"".join(b"%d %s\n" % (number, b"x" * 1000) for number in range(6000)))
    stage.run(stage.script(KIT + "lines(str.upper, 'result.txt')\n"))
    record = stage.record()
    assert record["complete"] and list(record["digests"].values()) == [hashlib.sha256(stage.result.read_bytes()).hexdigest()]


def test_a_part_cut_short_starts_from_zero(killed):
    for name in killed.record()["outputs"]:
        os.truncate(str(killed.out / name), 1)
    done = killed.run(picky(killed), **killed.again())
    assert "is shorter than the checkpoint says" in done.stdout
    assert killed.result.read_bytes() == expected_of_picky(numbered(2000))[0]


@POSIX_ONLY
def test_a_part_that_became_a_link_is_not_followed(killed):
    victim = killed.root / "victim.txt"
    victim.write_bytes(b"v" * 100000)
    for name in killed.record()["outputs"]:
        os.unlink(str(killed.out / name))
        os.symlink(str(victim), str(killed.out / name))
    assert "starting from zero" in killed.run(picky(killed), **killed.again()).stdout
    assert victim.read_bytes() == b"v" * 100000


def test_another_offset_than_the_checkpoint_starts_from_zero(killed):
    done = killed.run(picky(killed), offset=killed.record()["lineOffset"] + 1)
    assert "starting from zero" in done.stdout
    assert killed.result.read_bytes() == expected_of_picky(numbered(2000))[0]


def test_offset_zero_starts_afresh_whatever_the_progress_says(killed):
    done = killed.run(picky(killed))
    assert done.stdout == ""
    assert killed.result.read_bytes() == expected_of_picky(numbered(2000))[0]
    assert killed.leftovers() == []


def test_a_complete_stage_does_nothing_on_resume(stage):
    stage.write(b"a\nb\n")
    stage.run(picky(stage))
    before = os.stat(str(stage.result)).st_mtime_ns, stage.progress.read_bytes()
    done = stage.run(picky(stage), **stage.again())
    assert done.stdout == "already complete\n"
    assert (os.stat(str(stage.result)).st_mtime_ns, stage.progress.read_bytes()) == before


def test_an_empty_complete_stage_does_nothing_on_resume(stage):
    stage.write(b"")
    stage.run(picky(stage))
    assert stage.run(picky(stage), **stage.again()).stdout == "already complete\n"


def test_a_complete_stage_whose_output_changed_runs_again(stage):
    stage.write(b"a\nb\n")
    stage.run(picky(stage))
    stage.result.write_bytes(b"tampered\n")
    assert "starting from zero" in stage.run(picky(stage), **stage.again()).stdout
    assert stage.result.read_bytes() == b"A\nB\n"


# --- a line number written by hand -----------------------------------------------------------------------------------

HAND = [
    # inputs, lines, old output, what stdout says
    ([b"a\nb\nc\n"], 1, b"KEPT\nB\nC\n", "resuming from line 1"),
    ([b"a\nb\nc\n"], 2, b"KEPT\nB\nC", "resuming from line 2"),
    ([b"a\n", b"b\nc\n"], 2, b"KEPT\nB\n", "resuming from line 2"),
    ([b"a\nb\nc"], 3, b"A\nB\nC", "starting from zero"),
    ([b"a\nb\nc\n"], 3, b"KEPT\nB\nC\n", "resuming from line 3"),
    ([b"a\nb\nc\n"], 2, b"OLD\ncut", "starting from zero"),
    ([b"a\nb\nc\n"], 1, None, "starting from zero"),
    ([b"a\nb\nc\n"], 4, b"A\nB\nC\nD\n", "starting from zero"),
    ([b"a", b"b\nc\n"], 1, b"AB\nC\n", "starting from zero"),
    ([b"a", b"b\nc\n"], 2, b"AB\nC\n", "starting from zero"),
]


@pytest.mark.parametrize("contents,count,old,said", HAND)
@pytest.mark.parametrize("kind", ["lines", "blocks"])
def test_a_line_number_by_hand_keeps_the_first_lines(stage, kind, contents, count, old, said):
    stage.write(*contents)
    if old is not None:
        stage.out.mkdir()
        stage.result.write_bytes(old)
    stage.progress.write_text(json.dumps({"lineOffset": count}), encoding="utf-8")
    done = stage.run(stage.script(SHOUT) if kind == "lines" else UPPER, offset=count)
    assert done.stdout.startswith(said) and len(done.stdout.splitlines()) == 1
    expected = b"".join(contents).upper()
    # KEPT stands for a first line of the old output: only a resume keeps it.
    assert stage.result.read_bytes() == (b"KEPT" + expected[1:] if said.startswith("resuming") else expected)
    total = sum(len(content.splitlines()) for content in contents)
    assert stage.record()["counts"] == {"read": total, "written": total, "rejected": 0}


def test_a_line_number_by_hand_far_into_a_big_file(stage):
    content = numbered(30000)
    stage.write(content)
    stage.out.mkdir()
    full = content.decode().upper().encode()
    stage.result.write_bytes(full[:len(full) // 2])
    count = stage.result.read_bytes().count(b"\n") - 5
    stage.progress.write_text(json.dumps({"lineOffset": count}), encoding="utf-8")
    done = stage.run(UPPER, offset=count)
    assert done.stdout.startswith("resuming from line %d" % count)
    assert stage.result.read_bytes() == full


def test_where_no_checkpoints_are_kept_the_line_number_alone_will_do(stage):
    stage.write(b"a\nb\n")
    stage.out.mkdir()
    stage.result.write_bytes(b"KEPT\n")
    assert stage.run(UPPER, offset=1, checkpoint=False).stdout.startswith("resuming from line 1")
    assert stage.result.read_bytes() == b"KEPT\nB\n"


def test_a_call_whose_checkpoint_another_has_removed_takes_no_lines_of_an_earlier_run(stage):
    """Of two threads each, after a kill: one begins anew, and the other then finds nothing but the line number."""
    stage.write(b"a\nb\n")
    stage.out.mkdir()
    for name in ("o.txt", "p.txt"):
        (stage.out / name).write_bytes(b"OLD\nOLD\n")
    stage.progress.write_text('{"lineOffset": 1, "key": "another"}', encoding="utf-8")
    done = stage.run(stage.script(KIT + """
import threading
open_parts = processor_kit._Work._open_parts
def late(work, *given):
    if work.output == "o.txt":
        other = threading.Thread(target=lines, args=(str.upper, "p.txt"), kwargs={"one_to_one": True})
        other.start()
        other.join()
    open_parts(work, *given)
processor_kit._Work._open_parts = late
lines(str.upper, "o.txt", one_to_one=True)
"""), offset=1, resume=True)
    assert [(stage.out / name).read_bytes() for name in ("o.txt", "p.txt")] == [b"A\nB\n"] * 2
    assert done.stdout == "starting from zero: the checkpoint belongs to another key\nstarting from zero: there is no checkpoint any more\n"


def test_a_line_number_by_hand_needs_one_line_per_line(stage):
    stage.write(b"a\nb\n")
    stage.out.mkdir()
    stage.result.write_bytes(b"A\nB\n")
    stage.progress.write_text('{"lineOffset": 1}', encoding="utf-8")
    assert "one_to_one" in stage.run(picky(stage), offset=1).stdout
    stage.progress.write_text('{"lineOffset": 1}', encoding="utf-8")
    stage.rejects.write_bytes(b"{}\n")
    assert "rejects" in stage.run(UPPER, offset=1).stdout


# --- copies ----------------------------------------------------------------------------------------------------------

def test_copies_have_the_content_and_the_base_names(stage):
    (stage.root / "sub").mkdir()
    (stage.root / "sub" / "big.bin").write_bytes(os.urandom(3 << 20) + b"tail")
    stage.write(b"", b"\0\xff\r\n")
    stage.names.append("sub/big.bin")
    stage.run(COPY)
    for name in stage.names:
        assert (stage.out / os.path.basename(name)).read_bytes() == (stage.root / name).read_bytes()
    assert sorted(os.listdir(str(stage.out))) == ["big.bin", "in0.txt", "in1.txt"]


def test_copies_work_where_the_kernel_does_not_help(stage):
    content = os.urandom(3 << 20)
    stage.write(content)
    refuse = "import os\ndef refuse(*rest):\n    raise OSError(18, 'cross-device')\nos.copy_file_range = refuse\n"
    stage.run(stage.script(KIT + refuse + "copy_files()\n"))
    assert (stage.out / "in0.txt").read_bytes() == content


def test_two_names_that_differ_only_in_case_are_refused(stage):
    for folder, name in (("one", "Data.csv"), ("two", "data.CSV")):
        (stage.root / folder).mkdir()
        (stage.root / folder / name).write_bytes(b"x")
        stage.names.append("%s/%s" % (folder, name))
    done = stage.run(COPY, code=1)
    assert "one/Data.csv" in done.stderr and "two/data.CSV" in done.stderr
    assert not stage.out.exists()


def test_a_file_is_not_copied_onto_itself(stage):
    stage.out.mkdir()
    (stage.out / "a.txt").write_bytes(b"keep")
    stage.names.append("out/a.txt")
    assert "already in the output directory" in stage.run(COPY, code=1).stderr
    assert (stage.out / "a.txt").read_bytes() == b"keep"


def test_two_inputs_that_would_be_one_file_on_macos_are_not_copied_one_over_the_other(stage):
    for name in ("a/e\u0301.txt", "b/\u00e9.txt"):
        (stage.root / name).parent.mkdir()
        (stage.root / name).write_text(name, encoding="utf-8")
        stage.names.append(name)
    script = stage.script(KIT + "processor_kit._folded.__defaults__ = (True,)\ncopy_files()\n")
    assert "would both be copied to" in stage.run(script, code=1).stderr and not list(stage.out.glob("*"))


# --- processors of another kind, and life without the runner ---------------------------------------------------------

AD_HOC = KIT + """
with open_output("sub/table.csv") as file:
    file.write("ü,%d\\r\\n" % params()["limit"])
    if arguments() == ["--break"]:
        raise KeyError("broken")
with open_output("raw.bin", binary=True) as file:
    file.write(b"\\0\\xff")
count(read=3, written=2)
count(rejected=1)
print(inputs(), arguments())
"""


def test_open_output_publishes_and_counts_are_reported_while_a_checkpoint_is_left_alone(stage):
    stage.write(b"a\n")
    stage.progress.write_bytes(b"a checkpoint of the processor's own")
    counted = stage.root / "counts.json"
    (stage.out / "sub").mkdir(parents=True)
    (stage.out / "sub" / "table.csv~demo~aa.part").write_bytes(b"stale")
    done = stage.run(stage.script(AD_HOC), "--strict", PIPELINE_COUNTS_FILE=str(counted))
    assert done.stdout.splitlines() == ["['in0.txt'] ['--strict']"]
    assert (stage.out / "sub" / "table.csv").read_bytes() == "ü,10\r\n".encode()
    assert (stage.out / "raw.bin").read_bytes() == b"\0\xff"
    assert os.listdir(str(stage.out / "sub")) == ["table.csv"]
    assert json.loads(counted.read_bytes()) == {"read": 3, "written": 2, "rejected": 1}
    assert stage.progress.read_bytes() == b"a checkpoint of the processor's own"


def test_open_output_changes_nothing_when_its_block_fails(stage):
    (stage.out / "sub").mkdir(parents=True)
    (stage.out / "sub" / "table.csv").write_bytes(b"old")
    done = stage.run(stage.script(AD_HOC), "--break", code=1)
    assert "KeyError" in done.stderr
    assert (stage.out / "sub" / "table.csv").read_bytes() == b"old"
    assert os.listdir(str(stage.out / "sub")) == ["table.csv"]


def test_an_error_in_open_output_is_one_line(stage):
    import errno
    script = stage.script(KIT + "with open_output('a.txt') as file:\n    file.write('new')\n")
    for number, code, error in sweep(stage, str(errno.EIO), script, {"a.txt": b"old"}):
        assert (code, len(error.splitlines())) in ((0, 0), (1, 1)), error
        assert (stage.out / "a.txt").read_bytes() in (b"old", b"new")
        assert stage.leftovers() == [], number


@pytest.mark.parametrize("value", ["{", "[]"])
def test_params_that_are_no_object_are_refused(stage, value):
    assert "PIPELINE_PARAMS" in stage.run(stage.script(AD_HOC), code=1, PIPELINE_PARAMS=value).stderr


def test_fail_prints_one_line_and_exits_with_one(stage):
    assert stage.run(stage.script(KIT + "fail('no such customer: 7')\n"), code=1).stderr == "no such customer: 7\n"


@pytest.mark.parametrize("body", ["print('so far so good')\nfail('no such customer: 7')\n",
                                  "def each(line):\n    print('so far so good')\n    fail('no such customer: 7')\nlines(each, 'o.txt')\n"], ids=["fail", "function"])
def test_the_reason_of_a_failure_is_not_what_was_printed_before_it(project, body):
    project.write("data/in.txt", "x\n")
    project.spec({"processor": project.processor("p", "from processor_kit import *\n" + body), "forEach": "data/in.txt"})
    done = project.run()
    assert done.code == 1 and "so far so good" in done.err and "exit code 1: no such customer: 7\n" in done.out, done


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks here")
def test_a_forked_child_that_fails_does_not_print_again_what_its_parent_has(stage):
    done = stage.run(stage.script("import os\n" + KIT + "print('once')\nif not os.fork():\n    try:\n        fail('no')\n    finally:\n        os._exit(1)\nos.wait()\n"))
    assert (done.stdout, done.stderr) == ("once\n", "no\n")


def by_hand(folder, script, *arguments):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PIPELINE_")}
    done = subprocess.run([sys.executable, str(script), *arguments], cwd=str(folder), env=environment,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (0, b""), done
    return done.stdout.decode()


def test_processors_work_without_the_runner(tmp_path):
    (tmp_path / "in.txt").write_bytes(b"a\nb")
    by_hand(tmp_path, UPPER, "in.txt")
    assert (tmp_path / "result.txt").read_bytes() == b"A\nB"
    assert sorted(os.listdir(str(tmp_path))) == ["in.txt", "result.txt"]


@pytest.mark.parametrize("given,found", [
    (["a", "-b"], [[], ["a", "-b"]]),
    (["-v", "--x=1", "a"], [["-v", "--x=1"], ["a"]]),
    (["-o", "word", "--", "-a", "b"], [["-o", "word"], ["-a", "b"]]),
    ([], [[], []]),
])
def test_by_hand_options_come_before_the_inputs(tmp_path, given, found):
    script = tmp_path / "show.py"
    script.write_text(KIT + "import json\nprint(json.dumps([arguments(), inputs()]))\n", encoding="utf-8")
    assert json.loads(by_hand(tmp_path, script, *given)) == found


def test_inputs_that_did_not_fit_the_command_line_come_from_the_list(stage):
    stage.write(b"a\n")
    process = subprocess.run([sys.executable, str(stage.script(AD_HOC)), "--only"], cwd=str(stage.root), env=stage.environment(),
                             stdout=subprocess.PIPE)
    assert process.stdout.decode().splitlines() == ["['in0.txt'] ['--only']"]


@pytest.mark.parametrize("body", ["with open_output('o') as file:\n    file.write('x')\n", "lines(str.upper, 'o')\n"], ids=["open_output", "lines"])
def test_an_error_that_comes_when_the_file_is_closed_is_one_line_and_nothing_is_published(project, body):
    project.write("data/in.txt", "x\n")
    project.write("bin/processor_kit.py", (BIN / "processor_kit.py").read_text(encoding="utf-8"))
    code = ("real = os.close\ndef close(descriptor):\n    real(descriptor)\n    raise OSError(28, 'No space left on device')\n"
            "from processor_kit import lines, open_output\nos.close = close\n" + body)
    project.spec({"processor": project.processor("p", code), "forEach": "data/in.txt"})
    done = project.run("--run-id", "r")
    assert done.code == 1 and "No space left on device" in done.err and "File " not in done.err and not project.exists("data/s1/o"), done


NO_THREADS = KIT + """
import threading
def start(self):
    raise RuntimeError("can't start new thread")
threading.Thread.start = start
"""


def test_where_no_thread_can_be_started_checkpoints_are_written_all_the_same(stage):
    stage.write(b"a\nb\nc\n")
    script = stage.script(NO_THREADS + """
def up(line):
    if line.startswith("c"):
        print(open(os.environ["PIPELINE_PROGRESS_FILE"]).read())
    return line.upper()
import os
lines(up, "result.txt")
""")
    done = stage.run(script)
    assert stage.result.read_bytes() == b"A\nB\nC\n" and json.loads(done.stdout)["lineOffset"] in (1, 2) and done.stderr == ""


def test_where_no_thread_can_be_started_a_large_output_is_refused_in_one_line(stage):
    stage.write(b"a\n" * 10)
    done = stage.run(stage.script(NO_THREADS + "lines(lambda line: 'x' * (1 << 20), 'result.txt')\n"), code=1)
    assert done.stderr.strip().endswith("can't start new thread; allow this user more processes (ulimit -u)") and "Traceback" not in done.stderr, done


def test_a_file_of_rejects_of_the_processors_own_stays(stage):
    stage.write(b"a\n")
    (stage.out / "sub").mkdir(parents=True)
    (stage.out / "sub" / "o.txt.rejects.jsonl").write_bytes(b"of an earlier run")
    stage.run(stage.script(KIT + "with open_output('o.txt.rejects.jsonl') as file:\n    file.write('own')\nlines(str.upper, 'o.txt')\nlines(str.upper, 'sub/o.txt')\n"), checkpoint=False)
    assert (stage.out / "o.txt.rejects.jsonl").read_bytes() == b"own" and not (stage.out / "sub" / "o.txt.rejects.jsonl").exists()


@pytest.mark.parametrize("before", [None, b"of an earlier run"])
@pytest.mark.parametrize("call", ["lines", "blocks"])
def test_rejects_that_the_function_itself_writes_stay(stage, call, before):
    stage.write(b"a\n")
    stage.out.mkdir()
    if before is not None:
        (stage.out / "o.txt.rejects.jsonl").write_bytes(before)
    stage.run(stage.script("import os\n" + KIT + "def each(text):\n    with open(os.path.join(output_dir(), 'o.txt.rejects.jsonl'), 'w') as file:\n        file.write('own')\n    return text\n"
                           "%s(each, 'o.txt')\n" % call), checkpoint=False)
    assert (stage.out / "o.txt.rejects.jsonl").read_bytes() == b"own"


def test_rejects_of_an_earlier_call_for_the_same_output_go(stage):
    stage.write(b"a\n")
    stage.run(stage.script(KIT + "from processor_kit import Reject\ndef refuse(line):\n    raise Reject('no')\nlines(refuse, 'o.txt')\nlines(str.upper, 'o.txt')\n"), checkpoint=False)
    assert sorted(os.listdir(str(stage.out))) == ["o.txt"] and (stage.out / "o.txt").read_bytes() == b"A\n"


@pytest.mark.parametrize("name, pattern, found", [
    ("{ext}.csv", "{name}", "{ext}.csv"), ("{stem}{name}.gz", "{stem}|{name}|{ext}", "{stem}{name}|{stem}{name}.gz|.gz"), ("a.csv", "{{name}}{no}{stem", "{a.csv}{no}{stem"), ("a.csv", "x", "x")])
def test_an_output_is_named_after_the_input_as_it_is_called(stage, name, pattern, found):
    (stage.root / name).write_bytes(b"")
    stage.names.append(name)
    assert stage.run(stage.script(KIT + "print(output_name(%r))\n" % pattern)).stdout.splitlines() == [found]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere that encoding is UTF-8 always")
def test_a_name_that_the_file_systems_encoding_has_not_is_told_with_the_remedy(stage):
    kit = "import os, sys\nsys.path.insert(0, os.fsdecode(%r))\nfrom processor_kit import *\n" % os.fsencode(str(BIN))        # may have no name then, either
    done = stage.run(stage.script(kit + "with open_output('\u00e9') as file:\n    pass\n"), code=1, PYTHONUTF8="0", LC_ALL="C", PYTHONCOERCECLOCALE="0")
    # Python itself, and what measures coverage, may complain of paths of their own that have no name then.
    said = [line for line in done.stderr.splitlines() if line.startswith("output name ")]
    assert len(said) == 1 and said[0].startswith("output name '\u00e9' cannot be written in the file system's encoding, ") and "UTF-8 locale" in said[0], done


def test_replaced_bytes_are_question_marks_where_the_encoding_has_nothing_better(stage):
    stage.write(b"a\x81\n")
    stage.run(stage.script(KIT + "lines(str, 'result.txt', encoding='cp1252', errors='replace')\n"))
    assert stage.result.read_bytes() == b"a?\n"


# --- outputs that are under way ---------------------------------------------------------------------------------------

TWICE = {
    "two open_output": ("with open_output('o.txt') as file:\n    with open_output('./o.txt') as other:\n        pass\n", "o.txt"),
    "lines in open_output": ("with open_output('o.txt') as file:\n    lines(str.upper, 'o.txt')\n", "o.txt"),
    "open_output in lines": ("def each(line):\n    with open_output('o.txt') as file:\n        pass\nlines(each, 'o.txt')\n", "o.txt"),
    "lines in lines": ("def each(line):\n    lines(str.upper, 'o.txt')\nlines(each, 'o.txt')\n", "o.txt"),
    "a copy": ("with open_output('in0.txt') as file:\n    copy_files()\n", "in0.txt"),
    "rejects": ("def each(line):\n    raise Reject('no')\nwith open_output('o.txt.rejects.jsonl') as file:\n    lines(each, 'o.txt')\n", "o.txt.rejects.jsonl"),
    "in a thread": ("from concurrent.futures import ThreadPoolExecutor\ndef one():\n    with open_output('o.txt') as file:\n        pass\nwith open_output('o.txt') as file:\n"
                    "    with ThreadPoolExecutor(1) as pool:\n        pool.submit(one).result()\n", "o.txt"),
}


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("how", sorted(TWICE))
def test_an_output_that_is_under_way_is_not_opened_again(stage, how, checkpoint):
    body, name = TWICE[how]
    stage.write(b"a\n")
    done = stage.run(stage.script(KIT + "from processor_kit import Reject\n" + body), code=1, checkpoint=checkpoint)
    assert done.stderr == "%s is being written already by this processor: name another output\n" % name
    assert [one for one in os.listdir(str(stage.out)) if not one.endswith(".part")] == [] and (checkpoint or os.listdir(str(stage.out)) == [])


@POSIX_ONLY
def test_a_forked_child_does_not_open_what_its_parent_has_under_way(stage):
    body = ("import os\ndef one():\n    with open_output('o.txt') as file:\n        file.write('of a child')\nwith open_output('o.txt') as file:\n    file.write('of the parent')\n"
            "    if not os.fork():\n        try:\n            one()\n        finally:\n            os._exit(0)\n    os.wait()\nif not os.fork():\n    one()\n    os._exit(0)\n"
            "print(open(os.path.join(output_dir(), 'o.txt')).read())\nos.wait()\n")
    done = stage.run(stage.script(KIT + body), checkpoint=False)
    assert done.stderr == "o.txt is being written already by this processor: name another output\n" and done.stdout == "of the parent\n"
    assert (stage.out / "o.txt").read_bytes() == b"of a child" and os.listdir(str(stage.out)) == ["o.txt"]


@pytest.mark.parametrize("call", ["blocks(str.upper, 'o.txt')", "lines(str.upper, 'o.txt')"])
def test_rejects_that_the_processor_holds_open_around_the_call_are_its_own(stage, call):
    stage.write(b"a\n")
    stage.out.mkdir()
    (stage.out / "o.txt.rejects.jsonl").write_bytes(b"of an earlier run")
    stage.run(stage.script(KIT + "with open_output('o.txt.rejects.jsonl') as file:\n    file.write('own')\n    %s\n" % call), checkpoint=False)
    assert (stage.out / "o.txt.rejects.jsonl").read_bytes() == b"own" and (stage.out / "o.txt").read_bytes() == b"A\n" and len(os.listdir(str(stage.out))) == 2


def test_a_folder_is_listed_once_however_many_outputs_it_gets(stage):
    (stage.out / "sub").mkdir(parents=True)
    for name in ("7~demo~aa.part", "7~other~aa.part", "sub/7~demo~aa.part", "x~demo~aa.part"):
        (stage.out / name).write_bytes(b"stale")
    body = """
import os
listed, real = [], os.listdir
def note(path):
    listed.append(path)
    return real(path)
os.listdir = note
for folder in ("", "sub/"):
    for number in range(20):
        with open_output("%s%d" % (folder, number)) as file:
            file.write("x")
print(len(listed))
"""
    assert stage.run(stage.script(KIT + body), checkpoint=False).stdout.split() == ["2"]
    assert sorted(one for one in os.listdir(str(stage.out)) if "~" in one) == ["7~other~aa.part", "x~demo~aa.part"] and len(os.listdir(str(stage.out / "sub"))) == 20


@pytest.mark.parametrize("how", ["generator", "thread", pytest.param("child", marks=POSIX_ONLY)])
def test_a_part_that_the_processor_has_left_itself_goes_when_its_output_is_made_anew(stage, how):
    body = """
import os, threading
def one(*rest):
    with open_output("o.txt") as file:
        yield from rest
        raise ValueError("no")
def all(*rest):
    list(one(*rest))
with open_output("other.txt") as file:
    file.write("the folder has been listed")
"""
    body += {"generator": "half = one(1)\nnext(half)\nhalf.close()\n", "thread": "threading.excepthook = lambda args: None\nother = threading.Thread(target=all)\nother.start()\nother.join()\n",
             "child": "if not os.fork():\n    try:\n        all()\n    finally:\n        os._exit(0)\nos.wait()\n"}[how]
    body += "assert [name for name in os.listdir(output_dir()) if name.endswith('.part')]\nwith open_output('o.txt') as file:\n    file.write('whole')\n"
    stage.run(stage.script(KIT + body), checkpoint=False)
    assert sorted(os.listdir(str(stage.out))) == ["o.txt", "other.txt"] and (stage.out / "o.txt").read_bytes() == b"whole"


# --- counts of threads and children

# Each begins to count in another thread where count() is in the middle; it may have to wait there.
REGISTERED = """
import atexit, threading
register, others = atexit.register, []
def late(*rest):
    atexit.register = register
    others.append(threading.Thread(target=count, args=(1,)))
    others[0].start()
    others[0].join(1)
    return register(*rest)
atexit.register = late
count(read=1)
others[0].join()
"""
ADDED = """
import threading
others = []
class Slow(int):
    def __int__(self):
        others.append(threading.Thread(target=count, args=(1,)))
        others[0].start()
        others[0].join(1)
        return 1
count()
count(read=Slow(1))
others[0].join()
"""
REPORTED = """
import threading
write, others = processor_kit._write_progress, []
def late(path, record, *more, **named):
    if not others:
        found = dict(record)
        others.append(threading.Thread(target=lines, args=(str.upper, 'p.txt')))
        others[0].start()
        others[0].join(1)
        record = found
    write(path, record, *more, **named)
processor_kit._write_progress = late
lines(str.upper, 'o.txt')
others[0].join()
"""


@pytest.mark.parametrize("script", [REGISTERED, ADDED, REPORTED], ids=["first", "added", "reported"])
def test_no_count_of_a_thread_is_lost_or_doubled(stage, script):
    stage.write(b"a\n")
    counted = stage.root / "counts.json"
    stage.run(stage.script(KIT + script), checkpoint=False, PIPELINE_COUNTS_FILE=str(counted))
    assert json.loads(counted.read_bytes())["read"] == 2


CHILDREN = {"forked": "if not os.fork():\n    %s\n    sys.exit()\nos.wait()\n",
            "fork": "import multiprocessing\ndef child():\n    %s\nif __name__ == '__main__':\n    other = multiprocessing.get_context('fork').Process(target=child)\n    other.start()\n    other.join()\n",
            "spawn": "import multiprocessing\ndef child():\n    %s\nif __name__ == '__main__':\n    other = multiprocessing.get_context('spawn').Process(target=child)\n    other.start()\n    other.join()\n"}


@pytest.mark.parametrize("act", ["count(read=7)", "lines(str.upper, 'p.txt')"])
@pytest.mark.parametrize("how", [pytest.param("forked", marks=POSIX_ONLY), pytest.param("fork", marks=POSIX_ONLY), "spawn"])
def test_what_a_child_counts_does_not_replace_what_its_parent_has_counted(stage, how, act):
    stage.write(b"a\nb\n")
    counted = stage.root / "counts.json"
    first = "if __name__ == '__main__':\n    lines(str.upper, 'o.txt')\n    lines(str.lower, 'o.txt')\n"
    stage.run(stage.script("import os\n" + KIT + first + CHILDREN[how] % act), checkpoint=False, PIPELINE_COUNTS_FILE=str(counted))
    assert json.loads(counted.read_bytes())["read"] == 4 and (stage.out / "p.txt").exists() is ("lines" in act)


# --- calls that cannot be meant ---------------------------------------------------------------------------------------

@pytest.mark.parametrize("call, said", [
    ("lines('o.txt', str.upper)", "lines() and blocks() take the function first, then the name of the output; got 'o.txt'"),
    ("lines(str.upper, b'o.txt')", "output name b'o.txt' must be text"), ("lines(str.upper, None)", "output name None must be text"),
    ("open_output('.').__enter__()", "output name '.' must be a path below the output directory"),
    ("open_output('sub/.').__enter__()", "output name 'sub/.' must be a path below the output directory"),
    ("open_output('\\ud800').__enter__()", r"output name '\ud800' cannot be written in the file system's encoding, utf-8: name it otherwise"),
    ("lines(str.upper, 'o.txt', encoding=None)", "encoding None, errors 'strict': "),
    ("lines(str.upper, 'o.txt', errors='xmlcharrefreplace')", "encoding 'utf-8', errors 'xmlcharrefreplace': "),
    ("count(read=2.5)", "count(read=2.5): must be a whole number"), ("count(written='3')", "count(written='3'): must be a whole number")])
def test_a_call_that_cannot_be_meant_is_one_line(stage, call, said):
    stage.write(b"a\xff\n")
    done = stage.run(stage.script(KIT + call + "\n"), code=1, checkpoint=False)
    assert done.stderr.startswith(said) and done.stderr.count("\n") == 1, done.stderr
    assert not stage.out.exists() or os.listdir(str(stage.out)) == []


def test_a_way_to_handle_errors_that_cannot_read_is_one_line_in_a_piece_of_a_long_line_too(stage):
    stage.write(b"a" * (1 << 20) + b"\xff" + b"a" * (1 << 20))
    done = stage.run(stage.script(KIT + "blocks(str.upper, 'o.txt', encoding='ascii', errors='xmlcharrefreplace')\n"), code=1, checkpoint=False)
    assert done.stderr.startswith("encoding 'ascii', errors 'xmlcharrefreplace': ") and done.stderr.count("\n") == 1, done.stderr


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize("call", ["lines(str.upper, 'o.txt')", "blocks(str.upper, 'o.txt')", "copy_files()"])
def test_signals_are_the_processors_own_again_when_the_kits_work_is_done(stage, call):
    stage.write(b"a\n")
    body = "import signal, time\nsignal.signal(signal.SIGINT, print)\n%s\nassert signal.getsignal(signal.SIGINT) is print\nos.kill(os.getpid(), signal.SIGTERM)\ntime.sleep(60)\n" % call
    stage.run(stage.script("import os\n" + KIT + body), code=-signal.SIGTERM)


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_a_forked_child_inside_the_function_can_be_ended(stage):
    """As a pool of processes ends its own; the parent goes on."""
    stage.write(b"a\n")
    body = ("import signal, time\ndef each(line):\n    ready, ring = os.pipe()\n    child = os.fork()\n    if not child:\n        os.write(ring, b'x')\n        time.sleep(60)\n"
            "        os._exit(0)\n    os.read(ready, 1)\n    os.kill(child, signal.SIGTERM)\n"
            "    return '%d\\n' % os.WTERMSIG(os.waitpid(child, 0)[1])\nlines(each, 'o.txt')\n")
    stage.run(stage.script("import os\n" + KIT + body))
    assert (stage.out / "o.txt").read_bytes() == b"%d\n" % signal.SIGTERM


# --- bytecode of an earlier text of a module

FIXED = 1767225600      # what archives with fixed times give each file
CACHING = {"PYTHONDONTWRITEBYTECODE": None}


def rated(project, rate):
    """As another file: Windows does not tell when one was last changed whose time is set."""
    unpacked = project.write("bin/unpacked", "RATE = '%s'\n" % rate)
    os.utime(str(unpacked), (FIXED, FIXED))
    unpacked.replace(project.path("bin/rates.py"))


def with_rates(project, **stage):
    rated(project, "0.10")
    project.write("data/in.txt", "x\n")
    project.spec(dict({"processor": project.processor("rate", "import rates\nopen(out + '/rate', 'w').write(rates.RATE)\n"), "inputs": ["data/in.txt"]}, **stage))
    project.ok(env=CACHING)
    (cached,) = project.path("bin/__pycache__").glob("rates.*.pyc")
    return cached


@pytest.mark.parametrize("stage", [{}, {"inputs": [], "forEach": "data/in.txt"}, {"inputs": [], "forEach": "data/in.txt", "forkServer": False}])
def test_a_module_of_the_same_size_and_time_is_not_taken_from_the_cache_of_the_old_one(project, stage):
    with_rates(project, **stage)
    rated(project, "0.15")
    project.ok(env=CACHING)
    assert project.read("data/s1/rate") == "0.15"


def looks_newer(cached, module):
    """Let bytecode be of a moment after its module's last change: as made by a clock that was ahead, after which the time has come."""
    settle(module)
    os.utime(str(cached))


OF_TASKS = {"inputs": [], "forEach": "data/in.txt"}


@pytest.mark.parametrize("stage", [{}, OF_TASKS, {"forkServer": False, **OF_TASKS}])
def test_bytecode_that_a_wrong_clock_makes_newer_than_another_text_is_not_used(project, stage):
    cached = with_rates(project, **stage)
    rated(project, "0.15")
    looks_newer(cached, project.path("bin/rates.py"))
    project.ok(env=CACHING)
    assert project.read("data/s1/rate") == "0.15"


def test_a_new_stage_does_not_use_bytecode_of_which_nothing_tells_the_text(project):
    cached = with_rates(project)
    rated(project, "0.15")
    looks_newer(cached, project.path("bin/rates.py"))
    project.spec({"name": "other", "processor": "bin/rate.py", "inputs": ["data/in.txt"]})
    project.ok(env=CACHING)
    assert project.read("data/s1/rate") == "0.15"


def test_bytecode_of_a_text_that_was_accepted_is_not_taken_for_that_of_a_run(project):
    cached = with_rates(project)
    rated(project, "0.15")
    looks_newer(cached, project.path("bin/rates.py"))
    project.ok("accept", "s1", "--reason", "as I say")
    project.write("data/in.txt", "y\n")
    project.ok(env=CACHING)
    assert project.read("data/s1/rate") == "0.15"


def test_bytecode_is_looked_at_where_a_success_had_no_attempt(project):
    rated(project, "0.10")
    project.write("data/in/a.txt", "x\n")
    project.spec({"processor": project.processor("rate", "import rates\nopen(out + '/rate', 'w').write(rates.RATE)\n"), "forEach": "data/in/*.txt",
                  "allowNoInputs": True})
    project.ok(env=CACHING)
    (cached,) = project.path("bin/__pycache__").glob("rates.*.pyc")
    project.path("data/in/a.txt").unlink()
    rated(project, "0.15")
    looks_newer(cached, project.path("bin/rates.py"))
    project.ok(env=CACHING)
    project.write("data/in/a.txt", "y\n")
    project.ok(env=CACHING)
    assert project.read("data/s1/rate") == "0.15"


def test_a_folder_of_the_same_times_that_takes_anothers_place_is_not_run_with_the_bytecode_of_that(project):
    """And is put back: the stage that did not run meanwhile knows the text."""
    caching = dict(CACHING, PYTHONPYCACHEPREFIX=str(project.path("kept")))
    project.write("data/in.txt", "x\n")
    body = "import rates\nopen(out + '/rate', 'w').write(rates.RATE)\n"
    project.spec({"processor": project.processor("rate", body), "inputs": ["data/in.txt"]}, {"processor": "bin/rate.py"})
    rated(project, "0.10")
    shutil.copytree(str(project.path("bin")), str(project.path("bin.new")))
    project.write("bin.new/rates.py", "RATE = '0.15'\n")
    os.utime(str(project.path("bin.new/rates.py")), (FIXED, FIXED))
    project.ok(env=caching)
    swap(project)
    project.ok("--only", "s2", env=caching)
    assert (project.read("data/s1/rate"), project.read("data/s2/rate")) == ("0.10", "0.15")
    swap(project)
    project.write("data/in.txt", "y\n")
    project.ok("--only", "s1", env=caching)
    assert project.read("data/s1/rate") == "0.10"


def swap(project):
    """Let bin and bin.new change places, once the bytecode is settled."""
    (cached,) = project.path("kept").rglob("rates.*.pyc")
    settle(cached)
    for old, new in (("bin", "bin.old"), ("bin.new", "bin"), ("bin.old", "bin.new")):
        project.path(old).rename(project.path(new))


def test_what_one_stage_of_a_run_has_cached_the_next_one_uses(project):
    rated(project, "0.10")
    body = "import importlib.util as u, os\nspec = u.find_spec('rates')\nopen(out + '/had', 'w').write(str(os.path.exists(spec.cached)))\nimport rates\n"
    project.spec({"processor": project.processor("one", body)}, {"processor": project.processor("two", body)})
    project.ok(env=CACHING)
    assert (project.read("data/s1/had"), project.read("data/s2/had")) == ("False", "True")


@pytest.mark.parametrize("stage, cache", [
    ({"env": {"PYTHONPATH": "lib"}, "watch": ["lib/*.py"]}, None), ({"env": {"PYTHONPATH": "lib", "PYTHONPYCACHEPREFIX": "kept"}, "watch": ["lib/*.py"]}, None),
    ({"env": {"PYTHONPATH": "lib"}, "watch": ["lib/*.py"]}, "kept")])
def test_bytecode_of_watched_modules_is_looked_at_too_wherever_it_is_kept(project, stage, cache):
    caching = dict(CACHING, PYTHONPYCACHEPREFIX=str(project.path(cache)) if cache else None)
    for rate in ("0.10", "0.15"):
        project.write("lib/watched_rates.py", "RATE = '%s'\n" % rate)
        os.utime(str(project.path("lib/watched_rates.py")), (FIXED, FIXED))
        project.spec(dict({"processor": project.processor("rate", "import watched_rates\nopen(out + '/rate', 'w').write(watched_rates.RATE)\n")}, **stage))
        project.ok(env=caching)
        assert project.read("data/s1/rate") == rate


@POSIX_ONLY
def test_bytecode_that_may_not_be_read_is_not_used_by_python_either(project):
    cached = with_rates(project)
    os.chmod(str(cached), 0)
    os.chmod(str(cached.parent), 0o555)
    try:
        rated(project, "0.15")
        done = run_without_might(project)
        assert done.returncode == 0 and project.read("data/s1/rate") == "0.15", done.stdout
    finally:
        os.chmod(str(cached.parent), 0o755)


@POSIX_ONLY
@pytest.mark.parametrize("name, code", [("__pycache__", 0), ("mine", 5)])
def test_a_folder_of_bytecode_that_may_not_be_read_stops_nothing_unlike_any_other(project, name, code):
    """Of somebody else who ran a processor with umask 077."""
    project.write("data/in.txt", "x\n")
    project.spec({"processor": "bin/stage_copy.py", "inputs": ["data/in.txt"]})
    project.ok()
    project.path("bin/" + name).mkdir()
    project.path("bin/" + name).chmod(0)
    settle(project.path("bin/" + name))
    try:
        for words in (["--run-id", "looked"], ["plan"], ["validate"], ["scan"]):
            done = run_without_might(project, *words)
            assert done.returncode == code and ("Permission denied" in done.stdout) == bool(code), done.stdout
        assert project.exists("state/index_pipeline.json") == (not code)      # the run has skipped the stage, and would be quick now
    finally:
        project.path("bin/" + name).chmod(0o755)


def test_cached_bytecode_that_is_newer_than_the_module_stays(project):
    cached = with_rates(project)
    before = os.stat(str(cached))
    project.write("data/in.txt", "y\n")
    assert "[DONE] s1" in project.ok(env=CACHING).out
    after = os.stat(str(cached))
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@POSIX_ONLY
def test_old_bytecode_that_cannot_be_removed_fails_the_stage_unless_it_is_what_the_module_gives(project):
    cached = with_rates(project)
    os.chmod(str(cached.parent), 0o555)
    try:
        rated(project, "0.10")                  # older than the module, but right
        project.write("data/in.txt", "y\n")
        done = run_without_might(project)
        assert done.returncode == 0 and "[DONE] s1" in done.stdout, done.stdout
        rated(project, "0.15")
        done = run_without_might(project)
        name = cached.relative_to(project.root).as_posix()
        assert done.returncode == 1 and "[FAIL] s1: Python would take %s for bin/rates.py, but it is of an earlier text of it, and cannot be removed (Permission denied): remove it" % name in done.stdout, done.stdout
    finally:
        os.chmod(str(cached.parent), 0o755)
    project.ok()
    assert project.read("data/s1/rate") == "0.15"


def test_what_python_would_not_use_or_refuses_itself_is_no_problem(tmp_path, monkeypatch):
    module, folder = tmp_path / "m.py", tmp_path / "__pycache__"
    folder.mkdir()
    module.write_text("x = 1\n")
    held = {"m.cpython-27.pyc": b"of another version", os.path.basename(importlib.util.cache_from_source(str(module))): importlib.util.MAGIC_NUMBER + b"torn"}
    for name, data in held.items():
        (folder / name).write_bytes(data)
        os.utime(str(folder / name), (0, 0))

    def refuse(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(stale_bytecode, "unlink", refuse)
    assert stale_bytecode.drop(str(tmp_path), ["m.py", "gone.py"]) == "" and len(list(folder.iterdir())) == 2
    monkeypatch.undo()
    assert stale_bytecode.drop(str(tmp_path), ["m.py", "gone.py"]) == "" and list(folder.iterdir()) == []


def test_bytecode_of_the_very_moment_of_a_change_or_of_the_future_goes_and_later_one_stays(tmp_path):
    (tmp_path / "m.py").write_text("x = 1\n")
    (tmp_path / "__pycache__").mkdir()
    cached, changed = tmp_path / "__pycache__" / "m.cpython-27.pyc", stale_bytecode._changed_ns(str(tmp_path / "m.py"))
    settle(tmp_path / "m.py")
    for moment, stays in ((changed + 100, True), (changed, False), (changed + 3600 * 10 ** 9, False)):      # Windows has steps of 100 ns
        cached.write_bytes(b"x")
        os.utime(str(cached), ns=(moment, moment))
        assert stale_bytecode.drop(str(tmp_path), ["m.py"]) == "" and cached.exists() is stays


@pytest.mark.parametrize("source, stays", [("x = 1\n", True), ("x = 2\n", False)])
def test_on_windows_which_does_not_tell_when_a_module_was_changed_its_text_decides(tmp_path, monkeypatch, source, stays):
    module = tmp_path / "m.py"
    module.write_text("x = 1\n")
    cached = importlib.util.cache_from_source(str(module))
    os.makedirs(os.path.dirname(cached))
    with open(cached, "wb") as file:
        file.write(importlib.util.MAGIC_NUMBER + bytes(12) + marshal.dumps(compile(source, str(module), "exec", dont_inherit=True)))
    settle(module)
    os.utime(cached)
    monkeypatch.setattr(sys, "platform", "win32")
    assert stale_bytecode.drop(str(tmp_path), ["m.py"]) == "" and os.path.exists(cached) is stays


@POSIX_ONLY
def test_bytecode_of_what_a_link_led_to_before_goes(tmp_path):
    for name in "ab":
        (tmp_path / (name + ".py")).write_text("x = '%s'\n" % name)
    (tmp_path / "m.py").symlink_to("a.py")
    settle(tmp_path / "b.py")
    cached = tmp_path / "__pycache__" / "m.cpython-27.pyc"
    cached.parent.mkdir()
    cached.write_bytes(b"x")
    assert stale_bytecode.drop(str(tmp_path), ["m.py"]) == "" and cached.exists()
    settle(cached)
    (tmp_path / "m.py").unlink()
    (tmp_path / "m.py").symlink_to("b.py")
    assert stale_bytecode.drop(str(tmp_path), ["m.py"]) == "" and not cached.exists()


def test_bytecode_that_cannot_be_removed_is_told_of_only_where_this_python_would_use_it(tmp_path, monkeypatch):
    module = tmp_path / "m.py"
    module.write_text("x = 1\n")
    cached = importlib.util.cache_from_source(str(module))
    os.makedirs(os.path.dirname(cached))
    monkeypatch.setattr(stale_bytecode, "unlink", lambda path: os.close(os.open(path + "/", os.O_RDONLY)))     # fails: it is no folder
    for magic, source, told in ((importlib.util.MAGIC_NUMBER, "x = 2\n", True), (importlib.util.MAGIC_NUMBER, "x = 1\n", False), (b"\0\0\r\n", "x = 2\n", False)):
        with open(cached, "wb") as file:
            file.write(magic + bytes(12) + marshal.dumps(compile(source, str(module), "exec", dont_inherit=True)))
        os.utime(cached, (0, 0))
        assert ("but it is of an earlier text of it" in stale_bytecode.drop(str(tmp_path), ["m.py"])) is told
