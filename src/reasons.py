"""Why a stage must run: what changed between two keys, and which stage may make another's inputs. Pure.

Above the leaves and below the runner, which imports it when something did change.
"""
from __future__ import annotations

import file_digests
from ledger_format import canonical_json
from model import Decision
from spec_checks import shown_value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Tuple

    from model import Facts, StageSpec
    Json = Dict[str, Any]


def key_changes(old: Json, new: Json) -> List[str]:
    """Return what differs between two sets of key parts, one readable text for each difference."""
    changes = []
    if old.get("keyVersion") != new["keyVersion"]:
        changes.append("the runner's key version %s -> %s" % (old.get("keyVersion"), new["keyVersion"]))
    for part in ("pipeline", "stage", "outputDir", "outputs", "args"):
        if old.get(part) != new[part]:
            changes.append("%s %s -> %s" % (part, shown_value(old.get(part)), shown_value(new[part])))
    changes += _processor_changes(old.get("processor") or {}, new["processor"])
    for part, word in (("modules", "module"), ("inputs", "input"), ("watch", "watched")):
        changes += _file_changes(word, old.get(part) or [], new[part])
    for part in ("params", "env"):
        changes += _value_changes(part, old.get(part) or {}, new[part], True)
    changes += _value_changes("passEnv", old.get("passEnv") or {}, new["passEnv"] or {}, False)
    if (old.get("passEnv") is None) != (new["passEnv"] is None):
        changes.append("passEnv %s" % ("dropped" if new["passEnv"] is None else "given"))
    return changes


def _processor_changes(old: Json, new: Json) -> List[str]:
    if old.get("path") != new["path"]:
        return ["processor %s -> %s" % (old.get("path"), new["path"])]
    if old.get("sha256") != new["sha256"]:
        return ["processor %s changed" % new["path"]]
    if old.get("mtimeNs") != new.get("mtimeNs"):
        return ["processor %s has another modification time" % new["path"]]
    return []


def _file_changes(word: str, old: List[List[str]], new: List[List[str]]) -> List[str]:
    before, after = {path: digest for path, digest in old}, {path: digest for path, digest in new}
    changes = ["%s %s %s" % (word, path, "changed" if path in before else "added")
               for path, digest in after.items() if before.get(path) != digest]
    changes += ["%s %s removed" % (word, path) for path in before if path not in after]
    if not changes and old != new:
        changes.append("%ss in another order" % word)
    return changes


def _value_changes(part: str, old: Json, new: Json, shown: bool) -> List[str]:
    changes = []
    for name in sorted(set(old) | set(new)):
        if name not in old:
            changes.append("%s.%s added" % (part, name))
        elif name not in new:
            changes.append("%s.%s removed" % (part, name))
        elif canonical_json(old[name]) != canonical_json(new[name]):
            changes.append("%s.%s %s" % (part, name, "%s -> %s" % (shown_value(old[name]), shown_value(new[name])) if shown else "changed"))
    return changes


def may_feed(maker: StageSpec, user: StageSpec) -> bool:
    """Tell whether *maker*'s outputs can be among *user*'s inputs, or *user* says that it needs it."""
    if maker.name in user.needs:
        return True
    folder = maker.output_dir + "/"
    for pattern in user.inputs + user.watch:
        if not file_digests.has_wildcard(pattern):
            outside = not pattern.startswith(folder)
            declared = maker.outputs is None or any(file_digests.path_matches(pattern[len(folder):], one) for one in maker.outputs)
            if not outside and declared:
                return True
            continue
        fixed = pattern.split("*")[0].split("?")[0].split("[")[0]
        if fixed.startswith(folder) or folder.startswith(fixed):
            return True
    return False


def planned(stages: Iterable[StageSpec], look: Callable[[StageSpec], Tuple[Decision, Optional[Facts]]]) -> Iterator[Tuple[StageSpec, Decision, Optional[Facts]]]:
    """Yield (stage, decision, facts) in the order of a run; without facts where an earlier stage that must run may feed it."""
    busy: List[StageSpec] = []
    for stage in stages:
        makers = [maker.name for maker in busy if may_feed(maker, stage)]
        facts = None
        if makers:
            decision = Decision("PENDING", ["waits for %s" % ", ".join(makers)], 0, "")
        else:
            decision, facts = look(stage)
        if decision.action not in ("SKIP", "SEAL"):
            busy.append(stage)
        yield stage, decision, facts
