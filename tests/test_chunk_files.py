"""Huge files as chunks: where they are cut, their digests, feeding a filter, joining what came out."""
from __future__ import annotations

import errno
import functools
import hashlib
import os
import random
import select
import subprocess
import sys
import threading

import pytest
from conftest import PATIENCE_S, wait_until

import chunk_files
import durable_files
from chunk_files import ChunkError, Cut, Feeder, Header, Joiner, cut, hash_ranges, headers, pump_all, side_by_side

POSIX_ONLY = pytest.mark.skipif(sys.platform == "win32", reason="pipes that can be waited for")


@pytest.fixture
def file(tmp_path):
    def write(data, name="in.txt"):
        path = tmp_path / name
        path.write_bytes(data)
        return str(path)
    return write


def random_text(source, most=40):
    """Return bytes with CRLF, empty lines, long lines, several bytes to a letter, and often no last line end."""
    rows = [source.choice(["", "a", "b,c", "é" * source.randint(1, 9), "x" * source.randint(0, 200), "\r", "\u2028"])
            + source.choice(["\n", "\n", "\r\n"]) for _ in range(source.randint(0, most))]
    text = "".join(rows).encode()
    return text[:-1] if source.random() < 0.4 else text


# --- cutting

def boundaries_by_definition(data, header_end, size):
    """Boundary k is the first line end at or after byte header_end + k * size; the last is the end of the file."""
    line_ends = [at + 1 for at in range(len(data)) if data[at:at + 1] == b"\n"] + [len(data)]
    found = [header_end]
    for least in range(header_end + size, len(data) + size, size):
        found.append(min(end for end in line_ends if end >= min(least, len(data))))
    return sorted(set(found))


@pytest.mark.parametrize("seed", range(20))
def test_boundaries_are_those_of_the_definition(file, seed, monkeypatch):
    source = random.Random(seed)
    monkeypatch.setattr(chunk_files, "SEEK_BYTES", 1 + seed % 7)
    for _ in range(10):
        data, size, lines = random_text(source), source.randint(1, 90), source.randint(0, 3)
        found = cut(file(data), size, lines)
        rows = data.split(b"\n")
        header = b"\n".join(rows[:lines]) + b"\n" * (0 < lines < len(rows))
        assert data.startswith(header) and found.header_end == len(header)
        assert found.header_ends == header.count(b"\n")
        assert found.header_lines == found.header_ends + (header[-1:] not in (b"", b"\n"))
        ends = boundaries_by_definition(data, len(header), size)
        assert found.chunks == (list(zip(ends, ends[1:])) or [(len(header), len(header))])


@pytest.mark.parametrize("data, size, lines, expected", [
    (b"", 5, 0, Cut(0, 0, 0, [(0, 0)])),
    (b"", 5, 2, Cut(0, 0, 0, [(0, 0)])),
    (b"h\n", 5, 1, Cut(2, 1, 1, [(2, 2)])),
    (b"h", 5, 1, Cut(1, 1, 0, [(1, 1)])),
    (b"h\nx", 5, 3, Cut(3, 2, 1, [(3, 3)])),
    (b"h\nx\ny\n", 2, 1, Cut(2, 1, 1, [(2, 4), (4, 6)])),
    (b"a\r\nb\r\n", 2, 0, Cut(0, 0, 0, [(0, 3), (3, 6)])),
    (b"a\r\nb\r\n", 1, 0, Cut(0, 0, 0, [(0, 3), (3, 6)])),
    (b"xxxxxxxxxxxxxxx\na\n", 4, 0, Cut(0, 0, 0, [(0, 16), (16, 18)])),
    (b"no end", 2, 0, Cut(0, 0, 0, [(0, 6)])),
    (b"\n\n\n", 1, 0, Cut(0, 0, 0, [(0, 1), (1, 2), (2, 3)])),
], ids=repr)
def test_small_files_are_cut(file, data, size, lines, expected):
    assert cut(file(data), size, lines) == expected


@pytest.mark.parametrize("seed", range(10))
def test_a_file_that_grew_keeps_all_boundaries_but_the_last(file, seed):
    source = random.Random(seed)
    data, more = random_text(source), random_text(source)
    before, after = cut(file(data), 30).chunks, cut(file(data + more), 30).chunks
    assert after[:len(before) - 1] == before[:-1]


def test_boundaries_are_found_by_seeking(tmp_path):
    """A file that could not be read in the time of a test."""
    path, size = tmp_path / "sparse", 1 << 40
    try:
        with open(path, "wb") as file:
            for k in range(1, 5):
                file.seek(k * size // 4 + 100000)
                file.write(b"\n")
    except OSError:
        pytest.skip("no sparse files of this size here")
    ends = [k * size // 4 + 100001 for k in range(5)]
    found = cut(str(path), size // 4).chunks
    assert found == list(zip([0, *ends[1:]], ends[1:]))


# --- digests

def test_ranges_have_their_digests(file):
    data = os.urandom(3 << 20)
    path, ranges = file(data), [(0, 1), (1, 1), (1, 3 << 20), (5, 1 << 20), (0, 3 << 20)]
    assert hash_ranges(path, ranges) == [hashlib.sha256(data[a:b]).hexdigest() for a, b in ranges]
    assert hash_ranges(path, []) == []


def test_a_range_that_is_not_there_is_an_error_that_names_the_file(file):
    path = file(b"short")
    with pytest.raises(OSError, match="became shorter") as caught:
        hash_ranges(path, [(0, 2), (0, 9)])
    assert caught.value.filename == path
    with pytest.raises(FileNotFoundError):
        hash_ranges(path + ".gone", [(0, 1)])


def test_several_threads_work_at_once_and_the_first_error_is_told():
    meeting = threading.Barrier(2, timeout=20)
    assert side_by_side(lambda item, buffer: (meeting.wait(), item)[1], [1, 2], 2) == [1, 2]

    begun = []

    def fail(item, buffer):
        begun.append(item)
        raise ValueError(item)
    with pytest.raises(ValueError, match="^1$"):
        side_by_side(fail, [1, 2, 3], 1)
    assert begun == [1]                         # the others are left
    with pytest.raises(ValueError, match="^1$"):
        side_by_side(lambda item, buffer: (meeting.wait(), fail(item, buffer)), [1, 2], 2)


def test_who_waits_for_the_threads_looks_after_others_meanwhile_and_may_be_told_to_stop():
    waiting, looked = threading.get_ident(), threading.Event()
    assert side_by_side(lambda item, buffer: looked.wait(20), [1, 2], 2, lambda: looked.set() if threading.get_ident() == waiting else None) == [True] * 2

    told, stopped = [], threading.Event()

    def stop():
        told.append(threading.get_ident())
        stopped.set()
        raise ValueError("stop")
    with pytest.raises(ValueError, match="^stop$"):
        side_by_side(lambda item, buffer: stopped.wait(20), [1, 2, 3], 2, stop)
    assert told == [waiting]


# --- feeding

def read_all(feeder):
    """Read what the filter would, pumping whenever there is nothing; the feeder must never block."""
    reader = os.dup(feeder.reader)
    feeder.started()
    os.set_blocking(reader, False)
    found, done = [], False
    while True:
        done = done or feeder.pump()
        try:
            data = os.read(reader, 1 << 16)
        except BlockingIOError:
            continue
        if not data:
            break
        found.append(data)
    os.close(reader)
    assert done or feeder.thread is not None
    return b"".join(found)


def no_sendfile(*rest, number=errno.ENOTSOCK):
    raise OSError(number, "not here")


@POSIX_ONLY
@pytest.mark.parametrize("how", ["sendfile", "no sendfile", "no sendfile from this file", "a thread"])
def test_a_filter_is_given_header_and_chunk(file, how, monkeypatch):
    data = bytes(range(256)) * 20000            # five times what the pipe takes
    if how.startswith("no sendfile"):
        number = errno.ENOTSOCK if how == "no sendfile" else errno.EINVAL
        monkeypatch.setattr(os, "sendfile", functools.partial(no_sendfile, number=number), raising=False)
    for header_end, start, end in ((0, 0, len(data)), (7, 7, 300), (700, 5000, len(data) - 3), (3, 3, 3), (0, 0, 0)):
        feeder = Feeder(file(data), header_end, start, end, threaded=how == "a thread")
        assert read_all(feeder) == data[:header_end] + data[start:end]
        if how == "a thread":
            feeder.thread.join(20)
            assert feeder.pump()
        assert feeder.descriptor == -1 and feeder.file.closed


@POSIX_ONLY
@pytest.mark.parametrize("how", ["sendfile", "no sendfile", "a thread"])
def test_a_filter_that_stops_reading_is_no_error(file, how, monkeypatch):
    if how == "no sendfile":
        monkeypatch.setattr(os, "sendfile", no_sendfile, raising=False)
    feeder = Feeder(file(b"x" * (4 << 20)), 0, 0, 4 << 20, threaded=how == "a thread")
    process = subprocess.Popen([sys.executable, "-S", "-c", "import os; os.read(0, 10)"], stdin=feeder.reader)
    feeder.started()
    while not feeder.pump():
        select.select([], [feeder.descriptor] if feeder.descriptor >= 0 else [], [], 20 if feeder.descriptor >= 0 else 0.01)
    assert process.wait(20) == 0


@POSIX_ONLY
@pytest.mark.parametrize("threaded", [False, True])
def test_an_input_that_became_shorter_is_an_error_that_names_it(file, threaded):
    path = file(b"x" * 100)
    feeder = Feeder(path, 0, 50, 200, threaded)
    reader = os.dup(feeder.reader)
    feeder.started()
    with pytest.raises(OSError, match="became shorter") as caught:
        while not feeder.pump():
            pass
    assert caught.value.filename == path and feeder.descriptor == -1
    assert os.read(reader, 100) == b"x" * 50 and os.read(reader, 1) == b""
    os.close(reader)


class BadFile:
    """Reads once; is closed when it may be."""

    def __init__(self):
        self.reads, self.may_close = 0, threading.Event()

    def seek(self, place):
        self.reads += 1
        if self.reads > 1:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def read(self, count):
        return b"x" * 100

    def close(self):
        self.may_close.wait(PATIENCE_S)


@POSIX_ONLY
def test_a_filter_sees_no_end_of_input_before_it_is_known_that_the_file_could_not_be_read(file):
    feeder = Feeder(file(b"x" * 200), 0, 0, 200, threaded=True)
    feeder.file.close()
    bad = feeder.file = BadFile()
    reader = os.dup(feeder.reader)
    os.set_blocking(reader, False)
    feeder.started()
    wait_until(lambda: feeder.problem is not None)
    assert os.read(reader, 200) == b"x" * 100
    with pytest.raises(OSError, match="Input/output"):
        feeder.pump()
    with pytest.raises(BlockingIOError):
        os.read(reader, 200)
    bad.may_close.set()
    feeder.thread.join(PATIENCE_S)
    assert os.read(reader, 200) == b""
    os.close(reader)


@POSIX_ONLY
def test_the_loop_naps_only_while_all_pipes_are_nearly_full(file):
    path, naps = file(b"x" * (8 << 20)), []
    feeders = [Feeder(path, 0, 0, 8 << 20) for _ in range(2)]
    assert pump_all(feeders, naps.append) == [] and naps == []          # both pipes were empty
    assert pump_all(feeders, naps.append) == [] and len(naps) == 1      # both are full
    taken = 0
    while taken < feeders[0].pipe_bytes * 3 // 4:
        taken += len(os.read(feeders[0].reader, 1 << 16))
    assert pump_all(feeders, naps.append) == [] and len(naps) == 1      # there was room in one
    for _ in range(20):
        pump_all(feeders, naps.append)
    assert naps[0] < naps[-1] == chunk_files.NAP_MOST_S
    for one in feeders:
        one.close()
    assert pump_all([], naps.append) == []


# --- joining

class Chunks:
    """Files with chunk outputs, and a Joiner over them."""

    def __init__(self, folder):
        self.folder, self.made = folder, 0

    def file(self, data):
        self.made += 1
        path = self.folder / ("chunk%d" % self.made)
        path.write_bytes(data)
        return str(path)

    def joiner(self, total, headers=(), **more):
        return Joiner(str(self.folder / "out"), "stage", "token", total, headers, **more)

    def join(self, outputs, headers=(), order=None, name="all.txt"):
        joiner = self.joiner(len(outputs), headers)
        for index in order or range(len(outputs)):
            joiner.add(index, {name: self.file(outputs[index])})
        found = joiner.finish()
        joiner.publish()
        data = (self.folder / "out" / name).read_bytes()
        assert found == {name: (hashlib.sha256(data).hexdigest(), len(data))}
        assert os.listdir(str(self.folder / "out")) == [name]
        return data

    def left(self):
        return os.listdir(str(self.folder / "out")) if (self.folder / "out").exists() else []


@pytest.fixture
def chunks(tmp_path):
    return Chunks(tmp_path)


def test_outputs_are_joined_in_order_whatever_comes_first(chunks):
    outputs = [os.urandom(random.Random(n).choice([0, 10, 1 << 20, 3000000])) for n in range(8)]
    assert chunks.join(outputs, order=[3, 7, 0, 1, 6, 5, 4, 2]) == b"".join(outputs)
    assert chunks.join([b"no end", b"next\n", b"", b"last"]) == b"no endnext\nlast"
    assert chunks.join([b""]) == b""


def test_a_name_of_all_bytes_that_a_name_may_have_is_joined(chunks):
    name = "sub/" + "ü" * 125 + ".text"
    joiner = chunks.joiner(1)
    joiner.add(0, {name: chunks.file(b"1")})
    joiner.finish()
    part, = os.listdir(str(chunks.folder / "out" / "sub"))
    assert part.endswith("~stage~token.part") and len(os.fsencode(part)) < 255
    joiner.publish()
    assert (chunks.folder / "out" / name).read_bytes() == b"1" and os.listdir(str(chunks.folder / "out" / "sub")) == [name[4:]]


def test_each_name_is_joined_for_itself_and_may_be_missing(chunks):
    joiner = chunks.joiner(3)
    joiner.add(1, {"a.txt": chunks.file(b"2"), "sub/b.txt": chunks.file(b"x")})
    joiner.add(0, {"a.txt": chunks.file(b"1")})
    joiner.add(2, {"sub/b.txt": chunks.file(b"y")})
    assert {name: size for name, (_, size) in joiner.finish().items()} == {"a.txt": 2, "sub/b.txt": 2}
    assert sorted(chunks.left()) == ["a.txt~stage~token.part", "sub"]       # nothing is final before publish()
    joiner.publish()
    assert (chunks.folder / "out" / "sub" / "b.txt").read_bytes() == b"xy" and sorted(chunks.left()) == ["a.txt", "sub"]


def test_an_older_file_stays_whole_until_the_new_one_is(chunks):
    (chunks.folder / "out").mkdir()
    old = chunks.folder / "out" / "all.txt"
    old.write_bytes(b"old")
    joiner = chunks.joiner(1)
    joiner.add(0, {"all.txt": chunks.file(b"new")})
    joiner.finish()
    assert old.read_bytes() == b"old"
    joiner.publish()
    assert old.read_bytes() == b"new"


def test_the_parts_are_synced_before_they_are_renamed_and_the_folder_after(chunks, monkeypatch):
    calls = []
    for module, name in ((os, "replace"), (durable_files, "sync_file"), (durable_files, "sync_folder")):
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *rest, name=name, real=real: (calls.append(name), real(*rest))[1])
    (chunks.folder / "out").mkdir()
    chunks.join([b"a", b"b"])
    assert calls == ["sync_file", "replace", "sync_folder"]


ONE = Header(0, 1, 1, True)
NONE = Header(0, 0, 0, False)


@pytest.mark.parametrize("outputs, headers_, expected", [
    ([b"H\na\n", b"H\nb\n", b"H\nc"], [ONE] * 3, b"H\na\nb\nc"),
    ([b"H\nI\na\n", b"H\nI\n"], [Header(0, 2, 2, True)] * 2, b"H\nI\na\n"),
    ([b"H\r\na\r\n", b"H\r\nb\r\n"], [ONE] * 2, b"H\r\na\r\nb\r\n"),
    ([b"", b"H\na\n"], [NONE, Header(1, 1, 1, True)], b"H\na\n"),                           # the first input is empty
    ([b"H", b"H\na\n"], [Header(0, 1, 0, False), Header(1, 1, 1, True)], b"H\na\n"),        # a header without a line end
    ([b"K\na\n", b"H\nb\n"], [Header(0, 1, 1, True), Header(1, 1, 1, True)], b"K\na\nb\n"), # inputs may differ in it
    ([b"H\na\n", b""], [Header(0, 1, 1, True), Header(1, 0, 0, False)], b"H\na\n"),
    ([b"H"], [Header(0, 1, 0, False)], b"H"),
    ([b"H\n"], [Header(0, 1, 0, False)], b"H\n"),                                           # as awk completes it
    ([b"H", b"H\nI", b"H\n", b"J\nK"], [Header(0, 1, 0, False), Header(1, 2, 1, False), Header(2, 1, 1, False), Header(3, 2, 1, False)], b"H\nI"),
    ([b"H\nend\n", b"H\nI\na\n"], [Header(0, 1, 1, False), Header(1, 2, 2, True)], b"H\nend\na\n"),     # lines behind it need one
], ids=repr)
def test_one_header_stays(chunks, outputs, headers_, expected):
    assert chunks.join(outputs, headers_) == expected


def test_each_name_has_a_header_of_its_own(chunks):
    joiner = chunks.joiner(3, [Header(0, 1, 0, False), Header(1, 1, 1, True), Header(2, 1, 1, False)])
    for number, (name, data) in enumerate([("a", b"H"), ("b", b"H\nx\n"), ("c", b"K\n")]):
        joiner.add(number, {name: chunks.file(data)})
    assert {name: size for name, (_, size) in joiner.finish().items()} == {"a": 1, "b": 4, "c": 2}
    joiner.publish()
    assert [(chunks.folder / "out" / name).read_bytes() for name in "abc"] == [b"H", b"H\nx\n", b"K\n"]


def test_a_long_header_is_cut_off_whole(chunks):
    header = (b"h" * 700000 + b"\n") * 3
    assert chunks.join([header + b"a\n", header + b"b\n"], [Header(0, 3, 3, True)] * 2) == header + b"a\nb\n"


def test_rejects_have_no_header(chunks):
    assert chunks.join([b'{"line": 1}\n', b'{"line": 2}\n'], [ONE] * 2, name="x.rejects.jsonl") == b'{"line": 1}\n{"line": 2}\n'


@pytest.mark.parametrize("second, problem", [
    (b"H", "has 1 of the 2 header lines"),
    (b"", "has 0 of the 2 header lines"),
    (b"a\nb\nc\n", "its first 2 lines are not those of the chunks before"),
], ids=repr)
def test_an_output_without_its_header_is_refused(chunks, second, problem):
    joiner = chunks.joiner(2, [Header(0, 2, 2, True)] * 2)
    joiner.add(0, {"all.txt": chunks.file(b"H\nI\na\n")})
    joiner.add(1, {"all.txt": chunks.file(second)})
    with pytest.raises(ChunkError) as caught:
        joiner.finish()
    assert "chunk 2 of 2, %s: " % (chunks.folder / "chunk2") in str(caught.value) and problem in str(caught.value)
    assert chunks.left() == []


@pytest.mark.parametrize("texts, lines, expected", [
    ([b"h\na\n", b"h\nb\n"], 1, [Header(0, 1, 1, True), Header(1, 1, 1, True)]),
    ([b"", b"h", b"h\nb\nc\n"], 1, [NONE, Header(1, 1, 0, False), Header(2, 1, 1, True), Header(2, 1, 1, True)]),
    ([b"h\n", b"h\ni"], 2, [Header(0, 1, 1, False), Header(1, 2, 1, False)]),
], ids=repr)
def test_the_headers_of_all_chunks(file, texts, lines, expected):
    assert headers([cut(file(text), 2, lines) for text in texts], lines) == expected


def test_a_full_disk_names_the_part_and_leaves_none(chunks, monkeypatch):
    room, write_all = [5], durable_files.write_all

    def fill(descriptor, data):
        room[0] -= len(data)
        if room[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_all(descriptor, data)

    monkeypatch.setattr(durable_files, "write_all", fill)
    joiner = chunks.joiner(2)
    joiner.add(0, {"all.txt": chunks.file(b"1234")})
    joiner.add(1, {"all.txt": chunks.file(b"5678")})
    with pytest.raises(OSError) as caught:
        joiner.finish()
    assert caught.value.errno == errno.ENOSPC and caught.value.filename.endswith("all.txt~stage~token.part")
    assert chunks.left() == [] and joiner.is_done()


def test_a_part_that_is_there_already_is_not_added_to(chunks):
    (chunks.folder / "out").mkdir()
    part = chunks.folder / "out" / "all.txt~stage~token.part"
    part.write_bytes(b"of somebody else")
    joiner = chunks.joiner(1)
    joiner.add(0, {"all.txt": chunks.file(b"1")})
    with pytest.raises(FileExistsError) as caught:
        joiner.finish()
    assert caught.value.filename == str(part) and part.read_bytes() == b"of somebody else"


def test_what_is_in_the_way_of_a_joined_file_is_named(chunks):
    (chunks.folder / "out" / "all.txt" / "full").mkdir(parents=True)
    joiner = chunks.joiner(1)
    joiner.add(0, {"all.txt": chunks.file(b"1")})
    joiner.finish()
    with pytest.raises(OSError) as caught:
        joiner.publish()
    assert caught.value.filename == str(chunks.folder / "out" / "all.txt") and caught.value.filename2 is None
    joiner.stop()
    assert chunks.left() == ["all.txt"]


def test_folders_that_the_joiner_made_are_on_the_disk_or_gone(chunks, monkeypatch):
    synced, sync_folder = [], durable_files.sync_folder
    monkeypatch.setattr(durable_files, "sync_folder", lambda path: (synced.append(os.path.relpath(path, str(chunks.folder))), sync_folder(path)))
    for is_published in (False, True):
        joiner = chunks.joiner(1)
        joiner.add(0, {"a/b/all.txt": chunks.file(b"1")})
        joiner.finish()
        if is_published:
            joiner.publish()
        joiner.stop()
        assert (chunks.folder / "out" / "a").exists() == is_published
    assert {os.path.normpath(path) for path in synced} >= {"out", os.path.join("out", "a"), os.path.join("out", "a", "b")}


def test_a_chunk_that_is_gone_names_itself(chunks):
    joiner = chunks.joiner(1)
    joiner.add(0, {"all.txt": "no-such"})
    with pytest.raises(FileNotFoundError) as caught:
        joiner.finish()
    assert caught.value.filename == "no-such"


def test_giving_up_leaves_nothing(chunks):
    joiner = chunks.joiner(3)
    joiner.add(0, {"all.txt": chunks.file(b"1")})
    joiner.add(2, {"all.txt": chunks.file(b"3")})
    assert not joiner.is_done()
    joiner.stop()
    assert joiner.is_done() and chunks.left() == []
