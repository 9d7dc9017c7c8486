"""state/metrics.prom: the last run in Prometheus' text format, for node_exporter's textfile collector.

    run record, metrics record, the file as it was -> text() -> the file, replaced at once

Above the leaves: it imports state_store, which every run has loaded already, and nothing else: a run in which nothing
changed writes this file, too. Several pipelines below one root share the file: what it says of the others is kept, and
so are the times of the last success of stages that did not take part in this run. Who writes it holds the ledger's
lock. The file is not synced: a torn one is written anew by the next run.
Source: Prometheus, exposition formats, text format 0.0.4; metric and label naming.
"""
from __future__ import annotations

import durable_files
from primitives import open_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

    from primitives import Piece
    Json = Dict[str, Any]

NAME = "metrics.prom"
GAUGES = {      # family -> its HELP; all are of the last run, so all are gauges
    "pipeline_info": "Version of the pipeline, and of the runner and Python that ran it; always 1.",
    "pipeline_run_state": "1 for the state in which the last run ended: completed, failed, interrupted or waiting.",
    "pipeline_run_start_timestamp_seconds": "When the last run started, in seconds since the epoch.",
    "pipeline_run_end_timestamp_seconds": "When the last run ended, in seconds since the epoch.",
    "pipeline_run_duration_seconds": "How long the last run took.",
    "pipeline_run_stages": "Stages of the last run by how they ended.",
    "pipeline_last_success_timestamp_seconds": "When a run of all stages last completed, in seconds since the epoch.",
    "pipeline_stage_status": "1 for how the stage ended in the last run: ok, skipped, failed, interrupted, notRun or waiting.",
    "pipeline_stage_duration_seconds": "How long the stage took in the last run; not there if it had nothing to do.",
    "pipeline_stage_attempts": "Attempts that the stage needed in the last run.",
    "pipeline_stage_input_bytes": "Size of the stage's inputs.",
    "pipeline_stage_output_bytes": "Size of the stage's outputs.",
    "pipeline_stage_records": "Records that the stage counted, by kind: read, written, rejected, or the processor's own.",
    "pipeline_stage_cpu_seconds": "Processor time of the stage's processes in the last run.",
    "pipeline_stage_max_resident_memory_bytes": "Largest resident set of one of the stage's processes in the last run.",
    "pipeline_stage_tasks": "Tasks of the stage in the last run by how they ended; only for stages of several tasks.",
    "pipeline_stage_last_success_timestamp_seconds": "When the last run ended in which the stage was done or found up to date, in seconds since the epoch.",
}
PIPELINE_SUCCESS, STAGE_SUCCESS = "pipeline_last_success_timestamp_seconds", "pipeline_stage_last_success_timestamp_seconds"
RUN_START, RUN_END, RUN_DURATION = "pipeline_run_start_timestamp_seconds", "pipeline_run_end_timestamp_seconds", "pipeline_run_duration_seconds"
OUTCOMES = ("ok", "skipped", "failed", "vanished")      # of tasks
SIZES = (("pipeline_stage_input_bytes", "bytesIn"), ("pipeline_stage_output_bytes", "bytesOut"))
EFFORTS = (("pipeline_stage_duration_seconds", "durationSec"), ("pipeline_stage_attempts", "attempts"),
           ("pipeline_stage_cpu_seconds", "cpuSec"), ("pipeline_stage_max_resident_memory_bytes", "maxRssBytes"))
NUMBERS = {"notRun": (), "waiting": (), "skipped": SIZES}       # of a stage that was skipped, zeros would only blur the graphs


def emit(store: Any, record: Json, metrics: Json, spec: Any, console: Any) -> None:
    """Write the metrics of a run that has ended; the caller holds the ledger's lock. What goes wrong is one [NOTE] line.

    record, metrics: as in state/run_<id>.json and state/metrics_<id>.json. spec: a PipelineSpec, or None where it is not
    at hand (then stages that are no longer in it are not forgotten).
    """
    try:
        stages = None if spec is None else {stage.name for stage in spec.stages}
        data = text(record, metrics, _read(store.path(NAME)), stages).encode("utf-8", "backslashreplace")
        durable_files.write_atomic(store.path(NAME), data, durable=False)
    except Exception as error:      # a report about the run must not change its outcome
        console.line("[NOTE] state/%s was not written: %s" % (NAME, getattr(error, "strerror", None) or error))


def _read(path: str) -> str:
    try:
        with open_file(path) as file:
            return str(file.read(), "utf-8", "replace")
    except OSError:
        return ""


def text(record: Json, metrics: Json, earlier: str = "", stages: Optional[Any] = None) -> str:
    """Return the file's new content. earlier: the old one; stages: the names that the pipeline has now, None if not known.
    Pure."""
    pipeline = 'pipeline="%s"' % escaped(record["pipeline"])
    others, successes = _kept(earlier, pipeline)
    found: Dict[str, List[str]] = {family: [] for family in GAUGES}
    is_whole = stages is None or not stages - {one["stage"] for one in metrics["stages"]}
    count: Dict[str, int] = {}
    for one in metrics["stages"]:
        count[one["status"]] = count.get(one["status"], 0) + 1
    success = epoch_text(metrics["timestamp"]) if record["state"] == "completed" and is_whole else successes.get("", "")
    _add_run(found, pipeline, record, metrics, success, count)      # a run of some stages quiets no alarm
    _add_stages(found, pipeline, metrics, epoch_text(metrics["timestamp"]))
    done = {line.partition(" ")[0] for line in found[STAGE_SUCCESS]}
    names = None if stages is None else {escaped(name) for name in stages}
    for name, value in successes.items():
        labels = '%s{%s,stage="%s"}' % (STAGE_SUCCESS, pipeline, name)
        if name and labels not in done and (names is None or name in names):
            found[STAGE_SUCCESS].append("%s %s" % (labels, value))
    return _text_of({family: others.get(family, []) + found[family] for family in GAUGES})


def _text_of(found: Dict[str, List[str]]) -> str:
    return "".join(_head(family) + "\n".join(found[family]) + "\n" for family in GAUGES if found[family])


def refresh(store: Any, record: Json, metrics: Json, stages: List[str]) -> bool:
    """Bring the file up to date after a run that skipped all its *stages*, if the run before it did the same.

    Only times differ then, so nothing is put together anew: for pipelines of very many stages. The caller knows that
    inputs, outputs and counts are those of the last run of each stage, and holds the ledger's lock. False: the file
    tells of another run, call emit(). metrics needs no stages. Raises nothing.
    """
    return _rewrite(store, lambda earlier: refreshed(earlier, record, metrics, stages))


def _rewrite(store: Any, content: Callable[[bytes], List[Piece]]) -> bool:
    """Replace the file by what content() makes of it; tell whether that was something, and could be written."""
    try:
        with open_file(store.path(NAME)) as file:
            pieces = content(file.read())
        if pieces:
            durable_files.write_atomic(store.path(NAME), pieces, durable=False)
        return bool(pieces)
    except Exception:
        return False


def refreshed(earlier: bytes, record: Json, metrics: Json, stages: List[str]) -> List[Piece]:
    """Return the file's new content after such a run in pieces, [] if *earlier* does not tell of one of the same stages. Pure."""
    pipeline = 'pipeline="%s"' % escaped(record["pipeline"])
    place, _ = _find_lines(earlier, "pipeline_stage_status", pipeline, stages, '",status="skipped"} 1')
    if place < 0 or record["state"] != "completed":
        return []
    head = earlier[:place].decode("utf-8")      # what tells of runs; the stages' part may be large
    ends, start = {}, "{%s} " % pipeline
    for family in (PIPELINE_SUCCESS, RUN_START, RUN_END, RUN_DURATION):
        _, line, rest = head.partition("\n" + family + start)
        if not line:
            return []
        ends[family] = rest.partition("\n")[0]
    told = ['\npipeline_run_stages{%s,status="skipped"} %d\n' % (pipeline, len(stages)), "\n%s\n" % _info(pipeline, record),
            '\npipeline_run_state{%s,state="completed"} 1\n' % pipeline]
    told += ['\npipeline_run_stages{%s,status="%s"} 0\n' % (pipeline, status) for status in ("ok", "failed", "interrupted", "waiting", "notRun")]
    first, last = _find_lines(earlier, STAGE_SUCCESS, pipeline, stages, '"} ' + ends[RUN_END], place)
    if first < 0 or _is_torn(earlier, last) or ends[PIPELINE_SUCCESS] != ends[RUN_END] or not all(line in head for line in told):
        return []
    ended = epoch_text(metrics["timestamp"])
    for family, value in ((PIPELINE_SUCCESS, ended), (RUN_START, epoch_text(record["startedAt"])), (RUN_END, ended),
                          (RUN_DURATION, number(metrics["durationSec"]))):
        head = head.replace("\n%s%s%s\n" % (family, start, ends[family]), "\n%s%s%s\n" % (family, start, value), 1)
    view = memoryview(earlier)
    return [head.encode("utf-8"), view[place:first], _stage_lines(STAGE_SUCCESS, pipeline, stages, '"} ' + ended).encode("utf-8"), view[last:]]


def _is_torn(earlier: bytes, last: int) -> bool:
    """Tell whether a power cut, or somebody, has been at the file: it holds zeros, or from *last* on, the newline after a line of
    the last family, anything but lines of that family."""
    mark = (STAGE_SUCCESS + '{pipeline="').encode("ascii")
    return b"\0" in earlier or earlier[-1:] != b"\n" or not all(line.startswith(mark) for line in earlier[last + 1:-1].split(b"\n") if line)


def _find_lines(earlier: bytes, family: str, pipeline: str, stages: Sequence[str], after: str, begin: int = 0) -> Tuple[int, int]:
    """Return where the lines of *stages* stand that all end in *after*, from the first one's begin to the last one's newline;
    (-1, -1) if they are not there, all and in order, or others of this pipeline follow. Looked for from *begin* on."""
    lines = ("\n%s\n" % _stage_lines(family, pipeline, stages, after)).encode("utf-8")
    start = len(earlier) - len(lines)           # most often it is the last family
    if start < begin or not earlier.startswith(lines, start):
        start = earlier.find(lines[:lines.index(b"\n", 1) + 1], begin)
    end = start + len(lines)
    other = _stage_lines(family, pipeline, [""], "").encode("utf-8")
    if not stages or start < 0 or not earlier.startswith(lines, start) or earlier.startswith(other, end):
        return -1, -1
    return start + 1, end - 1


def update(store: Any, record: Json, metrics: Json, stages: Sequence[str], looked_at: Dict[int, Json]) -> bool:
    """Bring the file up to date after a whole run in which few of *stages* were looked at, the others known to be as they were.

    looked_at: {place in stages: entry of the metrics}; metrics needs no stages. False: the file cannot be taken over, call
    emit(). Raises nothing.
    """
    return _rewrite(store, lambda earlier: updated(earlier, record, metrics, stages, looked_at))


def updated(earlier: bytes, record: Json, metrics: Json, stages: Sequence[str], looked_at: Dict[int, Json]) -> List[Piece]:
    """Return the file's new content after such a run in pieces, [] if the lines of *earlier* cannot be taken over: it holds other
    pipelines, or other stages; a stage failed now. Pure."""
    pipeline = 'pipeline="%s"' % escaped(record["pipeline"])
    blocks = _blocks(earlier)
    first, last = blocks.get("pipeline_info", (0, 0))
    if not stages or b"\n" in earlier[first:last] or not earlier.startswith(("pipeline_info{%s," % pipeline).encode("utf-8"), first):
        return []
    if record["state"] != "completed" or any(one["status"] not in ("ok", "skipped") for one in looked_at.values()):
        return []
    places, skipped = sorted(looked_at), '",status="skipped"} 1'
    names = [stages[place] for place in places]
    every = ("\n" + _stage_lines("pipeline_stage_status", pipeline, stages, skipped)).encode("utf-8")
    first, last = blocks.get("pipeline_stage_status", (0, 0))
    if last - first != len(every) - 1 or not earlier.startswith(every, first - 1):      # a newline stands before the block
        was = _with_lines(earlier, (first, last), [_stage_lines("pipeline_stage_status", pipeline, [name], skipped) for name in names], ",status=")
        if b"".join((b"\n", *was)).replace(b'",status="ok"} 1', skipped.encode("ascii")) != every:
            return []                   # other stages, or some whose sizes may be those of a failure
    ended, done = epoch_text(metrics["timestamp"]), sum(one["status"] == "ok" for one in looked_at.values())
    run: Dict[str, List[str]] = {family: [] for family in GAUGES}
    _add_run(run, pipeline, record, metrics, ended, {"ok": done, "skipped": len(stages) - done})
    anew: Dict[str, List[str]] = {family: [] for family in GAUGES}
    _add_stages(anew, pipeline, dict(metrics, stages=[looked_at[place] for place in places]), ended)
    found: Dict[str, List[Piece]] = {family: _pieces(run[family]) for family in GAUGES}
    found["pipeline_stage_status"] = _with_lines(every, (1, len(every)), anew["pipeline_stage_status"], ",status=")
    found[STAGE_SUCCESS] = [_stage_lines(STAGE_SUCCESS, pipeline, stages, '"} ' + ended).encode("utf-8")]
    for family, _ in SIZES:
        first, last = blocks.get(family, (0, 0))
        found[family] = _with_lines(earlier, (first, last), anew[family], "} ")
        if earlier.count(b"\n", first, last) != len(stages) - 1 or not found[family]:
            return []
    for family in ("pipeline_stage_records", "pipeline_stage_tasks"):
        first, last = blocks.get(family, (0, 0))
        lines = earlier[first:last].decode("utf-8").split("\n") if first < last else []
        lines = _exchanged('%s{%s,stage="' % (family, pipeline), lines, anew[family], names)
        if len(lines) < len(anew[family]):
            return []
        found[family] = _pieces(lines)
    found.update((family, _pieces(anew[family])) for family, _ in EFFORTS)       # of those that were skipped there are none
    return [piece for family in GAUGES if found[family] for piece in (_head(family).encode("ascii"), *found[family], b"\n")]


def _pieces(lines: Sequence[str]) -> List[Piece]:
    return ["\n".join(lines).encode("utf-8")] if lines else []


def _stage_lines(family: str, pipeline: str, stages: Sequence[str], after: str) -> str:
    """Return a line for each of *stages*, of which only the names differ; names of stages need no escape."""
    before = '%s{%s,stage="' % (family, pipeline)
    return before + (after + "\n" + before).join(stages) + after


def _with_lines(text: bytes, block: Optional[Tuple[int, int]], anew: Sequence[str], after: str) -> List[Piece]:
    """Return a block of *text* in pieces, with lines exchanged for those *anew* that are the same up to *after*, [] if one is not
    there; both in one order. A newline stands before the block."""
    first, last = block or (0, 0)
    if first >= last:
        return []
    view, place = memoryview(text), first - 1
    pieces: List[Piece] = []
    for line in anew:
        start = text.find(("\n" + line[:line.index(after) + len(after)]).encode("utf-8"), place, last)
        if start < 0:
            return []
        pieces += [view[first:start + 1], line.encode("utf-8")]
        end = text.find(b"\n", start + 1, last)
        first = place = end if end >= 0 else last
    return [*pieces, view[first:last]]


def _exchanged(begin: str, lines: List[str], anew: List[str], stages: Sequence[str]) -> List[str]:
    """Return *lines* with those of each of *stages* exchanged for its lines in *anew*, [] if a stage has lines only now."""
    for stage in stages:
        mark = '%s%s",' % (begin, stage)
        own = [line for line in anew if line.startswith(mark)]
        places = [place for place, line in enumerate(lines) if line.startswith(mark)]
        if places:
            lines = lines[:places[0]] + own + lines[places[-1] + 1:]
        elif own:
            return []
    return lines


def _blocks(text: bytes) -> Dict[str, Tuple[int, int]]:
    """Return {family: where its samples begin, and the newline after the last}; {} if the text is not of our making, or not
    whole."""
    blocks: Dict[str, Tuple[int, int]] = {}
    end = -1
    while end < len(text) - 1:
        begin, following = end + 1, text.find(b"\n# HELP ", end + 1)
        end = following if following >= 0 else len(text) - 1
        family = str(text[begin + len("# HELP "):begin + 80], "ascii", "replace").partition(" ")[0]
        if family not in GAUGES or not text.startswith(_head(family).encode("ascii"), begin) or text[end:end + 1] != b"\n":
            return {}
        blocks[family] = begin + len(_head(family)), end
    return blocks


def _head(family: str) -> str:
    """Return the lines before the samples of a family."""
    return "# HELP %s %s\n# TYPE %s gauge\n" % (family, GAUGES[family], family)


def _info(pipeline: str, record: Json) -> str:
    return 'pipeline_info{%s,version="%s",runner="%s",python="%s"} 1' % (
        (pipeline,) + tuple(escaped(str(record.get(name) or "")) for name in ("version", "runner", "python")))


def _add_run(found: Dict[str, List[str]], pipeline: str, record: Json, metrics: Json, success: str, told: Dict[str, int]) -> None:
    """success: when a run of all stages last completed, "" if never. told: stages by how they ended."""
    ended = epoch_text(metrics["timestamp"])
    found["pipeline_info"].append(_info(pipeline, record))
    found["pipeline_run_state"].append('pipeline_run_state{%s,state="%s"} 1' % (pipeline, escaped(record["state"])))
    for family, value in ((RUN_START, epoch_text(record["startedAt"])), (RUN_END, ended), (RUN_DURATION, number(metrics["durationSec"]))):
        found[family].append("%s{%s} %s" % (family, pipeline, value))
    count = {"ok": 0, "skipped": 0, "failed": 0, "interrupted": 0, "waiting": 0, "notRun": 0, **told}
    found["pipeline_run_stages"] += ['pipeline_run_stages{%s,status="%s"} %d' % (pipeline, escaped(status), count[status])
                                     for status in count]
    if success:
        found[PIPELINE_SUCCESS].append("%s{%s} %s" % (PIPELINE_SUCCESS, pipeline, success))


def _add_stages(found: Dict[str, List[str]], pipeline: str, metrics: Json, ended: str) -> None:
    for one in metrics["stages"]:
        labels = '%s,stage="%s"' % (pipeline, escaped(one["stage"]))
        found["pipeline_stage_status"].append('pipeline_stage_status{%s,status="%s"} 1' % (labels, escaped(one["status"])))
        for family, name in NUMBERS.get(one["status"], SIZES + EFFORTS):
            found[family].append("%s{%s} %s" % (family, labels, number(one[name])))
        for kind, value in (one.get("counts") or {}).items():
            found["pipeline_stage_records"].append('pipeline_stage_records{%s,kind="%s"} %s' % (labels, escaped(kind), number(value)))
        for outcome, value in (one.get("tasks") or {}).items():
            if outcome in OUTCOMES:
                found["pipeline_stage_tasks"].append('pipeline_stage_tasks{%s,outcome="%s"} %s' % (labels, escaped(outcome), number(value)))
        if one["status"] in ("ok", "skipped"):
            found[STAGE_SUCCESS].append("%s{%s} %s" % (STAGE_SUCCESS, labels, ended))


def _kept(earlier: str, pipeline: str) -> Tuple[Dict[str, List[str]], Dict[str, str]]:
    """Return ({family: lines of other pipelines}, {stage, "" for the pipeline itself: time of its last success}).

    The labels stay as escaped in the file. Nothing is kept of a file that is not of our making, or not whole.
    """
    others: Dict[str, List[str]] = {}
    successes: Dict[str, str] = {}
    if earlier[-1:] != "\n":
        return others, successes
    ours, marks = "{" + pipeline, (PIPELINE_SUCCESS, STAGE_SUCCESS)
    for line in earlier.split("\n")[:-1]:
        if line[:1] == "#":
            continue
        place = line.find("{")
        family = line[:place]
        is_ours = line.startswith(ours, place)
        if is_ours and family not in marks:
            continue
        labels, brace, value = line.rpartition("} ")
        if family not in GAUGES or not line.startswith('{pipeline="', place) or not brace or not _is_number(value):
            return {}, {}
        if is_ours:
            successes[labels[place + len(ours) + len(',stage="'):-1] if family == STAGE_SUCCESS else ""] = value
        else:
            others.setdefault(family, []).append(line)
    return others, successes


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return value == value.strip() and "_" not in value


def escaped(value: str) -> str:
    """Return a label's value as it stands between the quotes."""
    if '"' in value or "\\" in value or "\n" in value:
        return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return value


def number(value: Any) -> str:
    """Return a sample's value; what is no number is said to be none."""
    return repr(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else "NaN"


def epoch_text(utc: str) -> str:
    """Return seconds since the epoch of a time as records have it, 2026-01-31T23:59:59.123Z; by hand, as strptime is a dear
    import."""
    year, month, day = int(utc[:4]), int(utc[5:7]), int(utc[8:10])
    year -= month <= 2                          # years that begin in March: the leap day is the last
    days = year * 365 + year // 4 - year // 100 + year // 400 + ((month + 9) % 12 * 153 + 2) // 5 + day - 719469
    seconds = ((days * 24 + int(utc[11:13])) * 60 + int(utc[14:16])) * 60 + int(utc[17:19])
    fraction = utc[19:].rstrip("Z")
    return "%d%s" % (seconds, fraction)
