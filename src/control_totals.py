"""Whether the numbers of records that a stage reports add up: its own, and against those of the stages that made its inputs. Pure.

A leaf. Counts are {"read": n, "written": n, "rejected": n}, as processors report them; of a stage of several tasks their
sum. Nothing here changes an output: what is judged is whether the outputs may be taken.
"""
from __future__ import annotations

import json

from model import ALL_OF_LOG
from primitives import is_integer, open_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, Iterable, List, Optional, Sequence, Tuple

    from model import StageSpec
    Json = Dict[str, Any]

REJECTS_ENDING = ".rejects.jsonl"   # of the file in which the processor kit sets bad records aside
MAX_FILE_BYTES = 1 << 20            # of a file of counts
SHOWN_NAMES = 3
NOTHING = {"read": 0, "written": 0, "rejected": 0}      # where there was nothing to count


def counts_problem(value: Any) -> str:
    """Return why *value* cannot be the counts of a processor, or ""."""
    if not isinstance(value, dict):
        return "it is not an object"
    for name, number in value.items():
        if not name.isascii() or not name.isprintable():
            return "the name %s is not of printable ASCII characters" % json.dumps(name)
        if not is_integer(number) or not 0 <= number < 1 << 53:
            return "%s is not a whole number from 0 on" % json.dumps(name)
    return ""


def read_counts(path: str) -> Tuple[Optional[Json], str]:
    """Return (what a processor wrote to PIPELINE_COUNTS_FILE, None without such a file; why it cannot be used, or "")."""
    try:
        with open_file(path) as file:
            data = file.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            return None, "it is larger than %d bytes" % MAX_FILE_BYTES
        counts = json.loads(data.decode("utf-8"))
    except FileNotFoundError:
        return None, ""
    except OSError as error:
        return None, "it cannot be read: %s" % (error.strerror or error)
    except (ValueError, RecursionError):
        return None, "it is not JSON"
    problem = counts_problem(counts)
    return (None, problem) if problem else (counts, "")


def is_judged(stage: StageSpec) -> bool:
    """Tell whether the spec asks for control totals of the stage at all."""
    return stage.reconcile or stage.max_rejects is not None


def judge(stage: StageSpec, counts: Json, expected: Optional[int], outputs: Sequence[str]) -> str:
    """Return why a stage must not be taken as done, "" if it may.

    expected: how many records its makers wrote, None where that is not known (see expected_read). outputs: paths, for the
    name of the file of rejects in the message.
    """
    reasons = [_reconcile_problem(counts, expected)] if stage.reconcile else []
    if stage.max_rejects is not None:
        reasons.append(_rejects_problem(stage.max_rejects, counts, outputs))
    return "; ".join(reason for reason in reasons if reason)


def missing_counts(stage: StageSpec, counts: Json) -> List[str]:
    """Return the names of the counts that the judgement of the stage needs and that are not there."""
    wanted = ["read", "written", "rejected"] if stage.reconcile else ["rejected"] + ["read"] * isinstance(stage.max_rejects, str)
    return [name for name in wanted if name not in counts] if is_judged(stage) else []


def missing_text(stage: StageSpec, missing: Sequence[str], problem: str = "") -> str:
    """Return what is wrong with a stage that reports no counts, or not those that are needed; *problem*: with the file in which it
    did so, see read_counts()."""
    setting = "reconcile" if stage.reconcile else "maxRejects"
    if problem:
        return "%s needs the counts of the processor, and the file in which it reported them cannot be used: %s; use the processor kit, or write an object of whole numbers to PIPELINE_COUNTS_FILE" % (
            setting, problem)
    return "%s needs the counts of the processor, and it reported no %s: use the processor kit (its count() with zeros where there is nothing), or write them to PIPELINE_COUNTS_FILE" % (
        setting, " and no ".join(missing))


def _reconcile_problem(counts: Json, expected: Optional[int]) -> str:
    read, written, rejected = counts["read"], counts["written"], counts["rejected"]
    reasons = []
    if read != written + rejected:
        gap = read - written - rejected
        reasons.append("control totals: read %d, but written %d + rejected %d = %d; %d %s" % (
            read, written, rejected, written + rejected, abs(gap), "dropped without a reason" if gap > 0 else "more than there were"))
    if expected is not None and expected != read:
        reasons.append("control totals: read %d, but the stages that made its inputs wrote %d" % (read, expected))
    return "; ".join(reasons)


def _rejects_problem(limit: Any, counts: Json, outputs: Sequence[str]) -> str:
    rejected = counts["rejected"]
    if isinstance(limit, str):
        # In whole numbers: 0.1% of 3000 is 3, and not a little less.
        whole, _, fraction = limit[:-1].partition(".")
        share, scale = int((whole + fraction) or "0"), 10 ** len(fraction)
        if rejected * 100 * scale <= share * counts["read"]:
            return ""
        text = "%d of %d records rejected, more than maxRejects %s" % (rejected, counts["read"], limit)
    elif rejected <= limit:
        return ""
    else:
        text = "%d record%s rejected, more than maxRejects %d" % (rejected, "" if rejected == 1 else "s", limit)
    files = sorted(path for path in outputs if path.endswith(REJECTS_ENDING))
    more = ", ..." if len(files) > SHOWN_NAMES else ""
    return text + ("; line and reason of each: %s%s" % (", ".join(files[:SHOWN_NAMES]), more) if files else "")


# --- what the makers of the inputs wrote -----------------------------------------------------------------------------

def expected_read(inputs: Sequence[Sequence[str]], makers: Iterable[Tuple[str, str, Json]]) -> Tuple[Optional[int], str]:
    """Return (how many records are in the inputs by what their makers say, None if that cannot be told; why it cannot, or "").

    inputs: (path, SHA-256) of each. makers: (stage, output folder, stage record) of the other stages of the pipeline. It can be
    told when each input is a recorded output of a finished stage, and of each such stage all outputs are read; where none is,
    there is nothing to be told. Files of rejects count as rejected records where they are read, and may be left out.
    """
    left = {path: digest for path, digest in inputs}
    total = 0
    for name, folder, record in makers:
        outputs = {"%s/%s" % (folder, one["path"]): one["sha256"] for one in record["outputs"]}
        taken = [path for path in outputs if left.get(path) == outputs[path]]
        if not taken or record.get("lastStatus") != "ok":
            continue
        counts = record["inOutputs"] if "inOutputs" in record else record.get("counts") or {}
        if counts_problem(counts) or "written" not in counts:
            why = "of what it counted only a part is kept" if "inOutputs" in record else "reported no counts"
            return None, "stage %s made %s and %s" % (name, taken[0], why)
        rejects = {path for path in outputs if path.endswith(REJECTS_ENDING)}
        if not set(outputs) - rejects <= set(taken) or (rejects & set(taken) and not rejects <= set(taken)):
            return None, "only a part of what stage %s made is read" % name
        total += counts["written"] + (counts.get("rejected", 0) if rejects & set(taken) else 0)
        for path in taken:
            del left[path]
    if len(left) == len(inputs):
        return None, ""                 # nothing was written before that could be compared
    return (None, "no finished stage made %s" % sorted(left)[0]) if left else (total, "")


def stray_inputs(inputs: Sequence[Sequence[str]], makers: Iterable[Tuple[str, str, Json]]) -> List[Tuple[str, str]]:
    """Return (path, stage) of the inputs that lie in the output folder of a finished stage, and are not as it has recorded one of
    its outputs."""
    found = []
    for name, folder, record in makers:
        if record.get("lastStatus") == "ok":
            outputs = {"%s/%s" % (folder, one["path"]): one["sha256"] for one in record["outputs"]}
            found += [(path, name) for path, digest in inputs if path.startswith(folder + "/") and outputs.get(path) != digest]
    return found


def refused_inputs(inputs: Sequence[Sequence[str]], makers: Iterable[Tuple[str, str, Json]]) -> List[str]:
    """Return which inputs are outputs of a stage that its control totals refused, a text for each such stage."""
    found = []
    digests = {path: digest for path, digest in inputs}
    for name, folder, record in makers:
        refused = record["outputs"] if record.get("refused") == ALL_OF_LOG else record.get("refused")
        if record.get("lastStatus") != "failed" or not isinstance(refused, list):
            continue
        paths = {"%s/%s" % (folder, one.get("path")): one.get("sha256") for one in refused if isinstance(one, dict)}
        bad = sorted(path for path, digest in paths.items() if digests.get(path) == digest)
        if bad:
            found.append("input %s is not accepted: stage %s failed: %s" % (", ".join(bad[:SHOWN_NAMES]), name, record.get("lastError")))
    return found
