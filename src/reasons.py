"""Why a stage must run: what changed between two keys. Pure.

Above the leaves and below the runner, which imports it when something did change.
"""
from __future__ import annotations

from ledger_format import canonical_json
from spec_values import shown_value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List
    Json = Dict[str, Any]


def key_changes(old: Json, new: Json) -> List[str]:
    """Return what differs between two sets of key parts, one readable text for each difference."""
    changes = []
    if old.get("keyVersion") != new["keyVersion"]:
        changes.append("the runner's key version %s -> %s" % (old.get("keyVersion"), new["keyVersion"]))
    # The last two are not in every key.
    for part in ("pipeline", "stage", "outputDir", "outputs", "args", "chunks", "launcher"):
        if old.get(part) != new.get(part):
            changes.append("%s %s -> %s" % (part, shown_value(old.get(part)), shown_value(new.get(part))))
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
