"""What of the files in one stage's output folder is another stage's: a file belongs to one stage.

Above recorded_outputs; for the stages at work (stage_work, task_work).
"""
from __future__ import annotations

import os

import file_digests
import file_systems
import recorded_outputs
import stage_outputs
import stage_records
from primitives import as_here, composed, folded, is_there

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, Set

    from engine import Run
    from model import StageSpec


NOT_LOOKED: Any = None      # who asks before look() must not be told that all is nobody's


def but_for(name: str, theirs: str) -> str:
    """Return, as the end of a message, in what two names differ that folded() takes for equal; "" if in nothing."""
    if name == theirs:
        return ""
    return ", but for %s, which many systems do not tell apart" % ("the case of letters" if composed(theirs) != composed(name)
                                                                   else "how an accent is written")


class ForeignOutputs:
    """What others have in the output folder of *stage*. All paths are below that folder."""

    def __init__(self, run: Run, stage: StageSpec, folder: str) -> None:
        self.run, self.stage, self.folder = run, stage, folder
        self.beside: Set[str] = set()       # stages that are or were at work at the same time
        self.seen: Dict[str, str] = NOT_LOOKED      # {path: stage} when look() was called last
        self._seen_alike: Dict[str, str] = {}   # the same path, case folded -> the path

    def owners(self) -> Dict[str, str]:
        """Return {path: stage} for what other stages of the pipeline have recorded as theirs.

        Of a stage that is or was at work beside us, which is only one with declared outputs, what matches these is its, too.
        """
        owners: Dict[str, str] = {}
        ours, store = self.stage.output_dir + "/", self.run.store
        for other in self.run.places.neighbours(self.stage):
            record = store.maker(other.name)
            theirs = (stage_records.made_elsewhere(record, other.output_dir) or other.output_dir) + "/"
            found = [theirs + path for path in recorded_outputs.believed_paths(store, record)]
            if other.name in self.beside:
                declared = file_digests.Patterns(other.outputs or ())
                found += ["%s/%s" % (other.output_dir, path) for path in stage_outputs.list_folder(os.path.join(self.run.root, other.output_dir)).files
                          if declared.matches(path)]
            owners.update({path[len(ours):]: other.name for path in found if path.startswith(ours)})
        return owners

    def are_beside(self) -> bool:
        """Tell whether another stage is or was at work in the folder at the same time."""
        return any(other.name in self.beside for other in self.run.places.neighbours(self.stage))

    def possible(self, there: stage_outputs.Folder) -> Set[str]:
        """Return what of *there*, the folder as it was listed, is another's or may be: an attempt that did not finish must leave it
        alone, and so must who clears up after it."""
        return set(self.owners()) | self._undeclared(there) | self._of_strangers()

    def _of_strangers(self) -> Set[str]:
        """Return what is recorded by stages that are not in this spec: removed or renamed since, or of another pipeline."""
        return recorded_outputs.outputs_of_others(self.run.root, self.stage.output_dir, {stage.name for stage in self.run.spec.stages})

    def _undeclared(self, there: stage_outputs.Folder) -> Set[str]:
        """Return what is none of our declared outputs, if others may be at work in the folder beside us: it may be theirs."""
        if not self.run.places.may_be_beside(self.stage):
            return set()
        declared = file_digests.Patterns(self.stage.outputs or ())
        return {path for path in there.files if not declared.matches(path)}

    def text(self, done: str, path: str, owner: str, but: str = "") -> str:
        """Return why what was done with another stage's output is a failure, and what to do."""
        return "%s %s/%s, which belongs to stage %s%s; a file belongs to one stage (if %s makes it no more: reset %s)" % (
            done, self.stage.output_dir, path, owner, but, owner, owner)

    # --- as last seen

    def look(self) -> None:
        """Note the owners as of now, for the questions that follow; tasks ask for each of their outputs."""
        self.seen = self.owners()
        self._seen_alike = {folded(path): path for path in self.seen}

    def place_of(self, name: str) -> str:
        """Return which output of another stage *name* would take the place of, "" for none: the file of that name, or one that is
        the same but for the case."""
        other = name if name in self.seen else self._seen_alike.get(folded(name), "")
        return other if other == name or other and self._is_one_file(name, other) else ""

    def _is_one_file(self, name: str, other: str) -> bool:
        """Tell whether two names that folded() takes for equal are one file here: what is there of *other* tells, else what this
        system is known for."""
        one, two = os.path.join(self.folder, name), os.path.join(self.folder, other)
        if not is_there(two):
            return as_here(name) == as_here(other)
        return is_there(one) and file_systems.is_one_file(one, two)

    def problem(self, done: str, name: str) -> str:
        """Return why *name* may not be an output, as it is another stage's, or ""."""
        theirs = self.place_of(name)
        return self.text(done, name, self.seen[theirs], but_for(name, theirs)) if theirs else ""
