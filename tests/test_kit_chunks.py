"""The processor kit on chunks, in this process: the outputs of the chunks together are what the whole input gives."""
from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sys
import threading
from pathlib import Path

import pytest

import chunk_files
import durable_files

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "bin"))

import processor_kit as kit  # noqa: E402


class Desk:
    """A folder with one input, and calls of the kit on all of it or on a chunk, each with an output folder of its own."""

    def __init__(self, folder, monkeypatch):
        self.folder, self.patch, self.made = folder, monkeypatch, 0
        self.input = folder / "in.txt"
        monkeypatch.setattr(sys, "argv", ["processor.py", "in.txt"])
        monkeypatch.setenv("PIPELINE_STAGE_NAME", "demo")
        monkeypatch.setenv("PIPELINE_LINE_INTERVAL", "100")
        for module, name in ((kit, "_sync"), (kit, "_sync_folder"), (durable_files, "sync_file"), (durable_files, "sync_folder")):
            monkeypatch.setattr(module, name, lambda *rest: None)       # thousands of calls, and nobody pulls the plug
        monkeypatch.chdir(folder)

    def call(self, act, chunk=None, header_end=0, again=False, checkpoint=True, **more):
        """Call *act* with the runner's environment; return (exit code, output folder, progress or None)."""
        self.made += not again
        out, progress = self.folder / ("out%d" % self.made), self.folder / ("progress%d.json" % self.made)
        bounds = {} if chunk is None else {"PIPELINE_CHUNK_START": str(chunk[0]), "PIPELINE_CHUNK_END": str(chunk[1])}
        if header_end:
            bounds["PIPELINE_CHUNK_HEADER_END"] = str(header_end)
        with self.patch.context() as patch:
            found = dict({"PIPELINE_OUTPUT_DIR": str(out), "PIPELINE_RESUME": "1" if again else "", **bounds}, **more)
            if checkpoint:
                found["PIPELINE_PROGRESS_FILE"] = str(progress)
            for name, value in found.items():
                patch.setenv(name, value)
            patch.setattr(kit, "_calls", {})     # as in a process of its own
            code = 0
            try:
                act()
            except SystemExit as end:
                code = end.code
        return code, out, json.loads(progress.read_bytes()) if progress.exists() else None

    def parts_of(self, act, size, header_lines=0, **more):
        """Call *act* on each chunk; return (cut, [output folder], [progress])."""
        found = chunk_files.cut(str(self.input), size, header_lines)
        done = [self.call(act, chunk, found.header_end, **more) for chunk in found.chunks]
        assert [code for code, _, _ in done] == [0] * len(done)
        return found, [out for _, out, _ in done], [progress for _, _, progress in done]

    def join(self, found, outs, name, header_lines=0):
        target = self.folder / ("joined%d" % self.made)
        joiner = chunk_files.Joiner(str(target), "demo", "token", len(outs), chunk_files.headers([found], header_lines))
        for index, out in enumerate(outs):
            joiner.add(index, {name: str(out / name)} if (out / name).exists() else {})
        joiner.finish()
        joiner.publish()
        return read(target / name)


def read(path):
    return path.read_bytes() if path.exists() else b""


@pytest.fixture
def desk(tmp_path, monkeypatch):
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield Desk(tmp_path, monkeypatch)
    for number, handler in before.items():
        signal.signal(number, handler)


def random_text(source, most=30):
    """Return bytes with CRLF, empty lines, long lines, not only ASCII, rejects and drops, and often no last line end."""
    starts = ["", "plain", "bad", "drop", "größe", "\u2028", "😀\r"]
    rows = [source.choice(starts) + "x" * source.choice([0, 1, 5, 5, 300]) + source.choice(["\n", "\n", "\r\n"])
            for _ in range(source.randint(0, most))]
    text = "".join(rows).encode()
    return text[:-1] if source.random() < 0.4 else text


def pick(line):
    if line.startswith("bad"):
        raise kit.Reject("starts with bad")
    return None if line.startswith("drop") else "a longer " + line.upper()


def pick_but_header(line):
    return line.upper() if line.startswith(("head", "HEAD")) else pick(line)


def pick_lines():
    kit.lines(pick, "result.txt")


def pick_lines_but_header():
    kit.lines(pick_but_header, "result.txt")


def upper_lines():
    kit.lines(str.upper, "result.txt", one_to_one=True)


def upper_blocks():
    kit.blocks(str.upper, "result.txt")


def check(desk, act, size, header_lines=0, **more):
    code, whole, whole_progress = desk.call(act)
    assert code == 0
    found, outs, progresses = desk.parts_of(act, size, header_lines, **more)
    assert desk.join(found, outs, "result.txt", header_lines) == read(whole / "result.txt")
    assert b"".join(read(out / "result.txt.rejects.jsonl") for out in outs) == read(whole / "result.txt.rejects.jsonl")
    for name in ("read", "written", "rejected"):
        assert sum(one["counts"][name] for one in progresses) == whole_progress["counts"][name], name
    for progress, (start, end) in zip(progresses, found.chunks):
        assert progress["bytesTotal"] == progress["bytesDone"] == found.header_end + end - start
    return found


@pytest.mark.parametrize("act", [pick_lines, upper_lines, upper_blocks], ids=lambda act: act.__name__)
@pytest.mark.parametrize("seed", range(12))
def test_the_chunks_give_what_the_whole_input_gives(desk, act, seed, monkeypatch):
    """Reads of a few bytes put every boundary of a block against every boundary of a chunk."""
    source = random.Random(seed)
    monkeypatch.setattr(kit, "READ_BYTES", source.choice([7, 64, 64 << 10]))
    desk.input.write_bytes(random_text(source) if seed else b"")
    check(desk, act, source.choice([1, 10, 60, 200, 5000]))


@pytest.mark.parametrize("act", [pick_lines_but_header, upper_lines, upper_blocks], ids=lambda act: act.__name__)
@pytest.mark.parametrize("seed", range(12))
def test_with_header_lines_the_joined_output_has_one_header(desk, act, seed, monkeypatch):
    source = random.Random(100 + seed)
    monkeypatch.setattr(kit, "READ_BYTES", source.choice([7, 64, 64 << 10]))
    body = random_text(source) if seed else b""
    rows = source.randint(1, 3)
    desk.input.write_bytes(b"".join(b"head %d %s\r\n" % (n, b"h" * source.choice([0, 90])) for n in range(rows)) + body)
    check(desk, act, source.choice([1, 10, 60, 200, 5000]), source.randint(1, rows))


@pytest.mark.parametrize("text", [b"", b"head", b"head\n", b"head\nx"], ids=repr)
@pytest.mark.parametrize("header_lines", [0, 1, 2])
def test_an_input_without_lines_is_one_chunk_with_an_output(desk, text, header_lines):
    desk.input.write_bytes(text)
    assert len(check(desk, upper_blocks, 3, header_lines).chunks) in (1, 2)


def test_a_line_of_several_reads_and_chunks(desk):
    desk.input.write_bytes(b"short\n" + "größe ".encode() * 50000 + b"\nshort\n" + b"y" * 200000)
    for act in (upper_lines, upper_blocks):
        check(desk, act, 70000)


def test_line_numbers_are_those_of_the_whole_input(desk, capfd):
    desk.input.write_bytes(b"head\n" + b"1\n" * 10 + b"bad\n" + b"2\n" * 5 + b"boom\n" + b"3\n")

    def explode(line):
        if line == "boom\n":
            raise ValueError("no")
        return pick(line)
    start = desk.input.read_bytes().index(b"bad")
    code, out, _ = desk.call(lambda: kit.lines(explode, "result.txt"), (start, start + 14), header_end=5)
    assert code == 0 and json.loads(read(out / "result.txt.rejects.jsonl"))["line"] == 12
    code, out, _ = desk.call(lambda: kit.lines(explode, "result.txt"), (start, len(desk.input.read_bytes())), header_end=5)
    assert code == 1 and capfd.readouterr().err.startswith("in.txt:18: the processor failed here: ValueError: no")
    code, out, _ = desk.call(lambda: kit.lines(explode, "result.txt", encoding="ascii"), (start, start + 14), header_end=5)
    assert code == 0


def test_line_ends_before_the_chunk_are_counted_only_when_needed(desk, monkeypatch):
    counted = []
    real = kit._count_ends
    monkeypatch.setattr(kit, "_count_ends", lambda path, length: (counted.append(length), real(path, length))[1])
    desk.input.write_bytes(b"1\n" * 10 + b"bad\nbad\n" * 300)
    desk.call(pick_lines, (10, 20))
    assert counted == []
    monkeypatch.setattr(kit, "READ_BYTES", 16)
    desk.call(pick_lines, (20, 420))
    assert counted == [20]


def stopping(act_line, count):
    """Return a line function that asks the process to stop when it sees line *count* of this attempt."""
    seen = [0]

    def function(line):
        seen[0] += 1
        if seen[0] == count:
            signal.raise_signal(signal.SIGTERM)
        return act_line(line)
    return function


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 20, 39])
def test_a_chunk_goes_on_where_it_was_stopped(desk, count, capfd):
    header = b"head 1\nhead 2\nhead 3\n"
    kinds = [random.Random(n).choice([b"line", b"bad", b"drop"]) for n in range(100)]
    desk.input.write_bytes(header + b"".join(b"%s %d\n" % (kind, n) for n, kind in enumerate(kinds)))
    found = chunk_files.cut(str(desk.input), 400, 3)
    chunk = found.chunks[1]
    _, whole, whole_progress = desk.call(pick_lines_but_header, chunk, found.header_end)
    code, out, progress = desk.call(lambda: kit.lines(stopping(pick_but_header, count), "result.txt"), chunk, found.header_end)
    assert code == 143 and progress["complete"] is False and progress["bytesTotal"] == found.header_end + chunk[1] - chunk[0]
    offset = progress["byteOffset"]
    assert 0 < offset <= found.header_end if progress["inputIndex"] == 0 else chunk[0] <= offset <= chunk[1]
    called = []
    code, out, progress = desk.call(lambda: kit.lines(lambda line: (called.append(line), pick_but_header(line))[1], "result.txt"),
                                    chunk, found.header_end, again=True)
    assert code == 0 and "resuming from line " in capfd.readouterr().out
    assert "".join(called).encode() == (header[offset:] + desk.input.read_bytes()[slice(*chunk)] if offset < chunk[0]
                                        else desk.input.read_bytes()[offset:chunk[1]])
    assert progress["counts"] == whole_progress["counts"]
    for name in ("result.txt", "result.txt.rejects.jsonl"):
        assert read(out / name) == read(whole / name)


def test_the_checkpoint_of_another_chunk_is_not_used(desk, capfd):
    desk.input.write_bytes(b"line\n" * 40)
    assert desk.call(lambda: kit.lines(stopping(str.upper, 4), "result.txt"), (0, 100))[0] == 143
    code, out, progress = desk.call(upper_lines, (100, 200), again=True)
    assert code == 0 and "starting from zero: the checkpoint is of another chunk" in capfd.readouterr().out
    assert read(out / "result.txt") == b"LINE\n" * 20
    code, out, _ = desk.call(upper_lines, again=True)
    assert code == 0 and "starting from zero: the inputs are not those" in capfd.readouterr().out
    assert read(out / "result.txt") == b"LINE\n" * 40


def test_a_checkpoint_that_stands_before_its_chunk_is_not_used(desk, capfd):
    desk.input.write_bytes(b"line\n" * 40)
    assert desk.call(lambda: kit.lines(stopping(str.upper, 4), "result.txt"), (100, 200))[0] == 143
    progress = desk.folder / ("progress%d.json" % desk.made)
    progress.write_text(json.dumps(dict(json.loads(progress.read_bytes()), byteOffset=50)), encoding="utf-8")
    code, out, _ = desk.call(upper_lines, (100, 200), again=True)
    assert code == 0 and "starting from zero: the checkpoint stands before the chunk" in capfd.readouterr().out
    assert read(out / "result.txt") == b"LINE\n" * 20


def test_a_header_line_that_is_refused_is_set_aside_once(desk):
    desk.input.write_bytes(b"bad header\n" + b"line\n" * 40)
    found, outs, progresses = desk.parts_of(pick_lines, 100, header_lines=1)
    assert len(found.chunks) > 1
    assert [(out / "result.txt.rejects.jsonl").exists() for out in outs] == [True] + [False] * (len(outs) - 1)
    assert sum(one["counts"]["rejected"] for one in progresses) == 1 and sum(one["counts"]["read"] for one in progresses) == 41


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks here")
def test_a_forked_child_waits_for_no_thread_that_it_does_not_have(tmp_path, monkeypatch):
    """The parent's thread is in the middle of writing a progress file when the child comes into the world, and will never end there."""
    real, is_in, may_go = kit._replace_progress, threading.Event(), threading.Event()
    monkeypatch.setattr(kit, "_replace_progress", lambda *rest: (is_in.set(), may_go.wait(60)))
    thread = threading.Thread(target=kit._write_progress, args=(str(tmp_path / "parents"), {}))
    thread.start()
    assert is_in.wait(60)
    child = os.fork()
    if not child:
        signal.alarm(30)
        kit._replace_progress = real
        kit._write_progress(str(tmp_path / "childs"), {"lineOffset": 1}, durable=False)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    may_go.set()
    thread.join()
    assert status == 0 and (tmp_path / "childs").exists()


def test_a_copy_that_a_signal_cuts_short_is_not_published(desk, monkeypatch):
    desk.input.write_bytes(b"line\n" * 40)

    def first_bytes(source, target, count):
        """Copy a little, as a kernel may, and be asked to stop meanwhile."""
        signal.raise_signal(signal.SIGTERM)
        return os.write(target, os.read(source, 7))
    monkeypatch.setattr(os, "copy_file_range", first_bytes, raising=False)
    code, out, _ = desk.call(kit.copy_files, checkpoint=False)
    assert code == 143 and os.listdir(str(out)) == []


def test_the_thread_that_writes_a_part_has_ended_before_the_parts_descriptor_is_free(tmp_path):
    """Else what it still has to write goes into whatever file gets that number next."""
    for end in ("leave", "discard"):
        part = kit._Part(str(tmp_path), "x.part", "x")
        part.write(b"x" * (1 << 20))
        thread = part.writer.thread
        getattr(part, end)()
        assert not thread.is_alive()
        assert (tmp_path / "x.part").exists() == (end == "leave")
        (tmp_path / "x.part").exists() and (tmp_path / "x.part").unlink()


def test_a_line_number_alone_is_not_resumed_in_a_chunk(desk, capfd):
    desk.input.write_bytes(b"a\nb\nc\nd\n")
    code, out, _ = desk.call(upper_lines, (4, 8), PIPELINE_LINE_OFFSET="1", checkpoint=False)
    assert code == 0 and read(out / "result.txt") == b"C\nD\n"
    assert "starting from zero: a line number alone cannot be resumed in a chunk" in capfd.readouterr().out


@pytest.mark.parametrize("bounds, problem", [
    ({"START": "1", "END": "4"}, "PIPELINE_CHUNK_START: byte 1 of in.txt is not the end of a line"),
    ({"START": "2", "END": "5"}, "PIPELINE_CHUNK_END: byte 5 of in.txt is not the end of a line"),
    ({"START": "4", "HEADER_END": "1"}, "PIPELINE_CHUNK_HEADER_END: byte 1 of in.txt is not the end of a line"),
    ({"START": "2", "END": "99"}, "in.txt has 7 bytes: the chunk from 2 to 99 with a header of 0 is not in it"),
    ({"START": "4", "END": "2"}, "in.txt has 7 bytes: the chunk from 4 to 2 "),
    ({"START": "2", "HEADER_END": "4"}, "in.txt has 7 bytes: the chunk from 2 to 7 with a header of 4 "),
    ({"START": "-2"}, "PIPELINE_CHUNK_START must be a whole number from 0, got '-2'"),
], ids=repr)
def test_a_chunk_that_is_none_is_refused(desk, bounds, problem, capfd):
    desk.input.write_bytes(b"a\nb\nc\nd")
    for act in (upper_lines, kit.copy_files, kit.chunk):
        assert desk.call(act, **{"PIPELINE_CHUNK_" + name: value for name, value in bounds.items()})[0] == 1
        error = capfd.readouterr().err
        assert error.startswith(problem) and len(error.splitlines()) == 1


def test_a_chunk_is_of_one_input(desk, monkeypatch, capfd):
    desk.input.write_bytes(b"a\nb\n")
    monkeypatch.setattr(sys, "argv", ["processor.py", "in.txt", "in.txt"])
    assert desk.call(upper_lines, (0, 2))[0] == 1
    assert capfd.readouterr().err == "PIPELINE_CHUNK_START: a chunk is a part of one input, got 2 inputs\n"


@pytest.mark.parametrize("has_kernel", [True, False])
@pytest.mark.parametrize("header_lines", [0, 1])
def test_copy_files_copies_the_chunk(desk, header_lines, has_kernel, monkeypatch):
    if not has_kernel:
        monkeypatch.delattr(os, "copy_file_range", raising=False)
        monkeypatch.setattr(kit, "COPY_BYTES", 10)
    data = b"head\n" + b"".join(b"%d\n" % n for n in range(100)) + b"end"
    desk.input.write_bytes(data)
    found, outs, _ = desk.parts_of(kit.copy_files, 50, header_lines)
    assert [read(out / "in.txt") for out in outs] == [data[:found.header_end] + data[a:b] for a, b in found.chunks]
    assert desk.join(found, outs, "in.txt", header_lines) == data and len(outs) > 3


def test_a_processor_of_its_own_kind_can_ask(desk):
    desk.input.write_bytes(b"a\nb\nc\n")
    seen = []
    for chunk, header_end in ((None, 0), ((2, 4), 0), ((4, 6), 2)):
        desk.call(lambda: seen.append((kit.chunk(), kit.inputs())), chunk, header_end)
    assert seen == [(None, ["in.txt"]), ((2, 4, 0), ["in.txt"]), ((4, 6, 2), ["in.txt"])]
    with contextlib.suppress(SystemExit):
        desk.call(lambda: seen.append(kit.chunk()), PIPELINE_CHUNK_END="4")
    assert seen[-1] == (0, 4, 0)
