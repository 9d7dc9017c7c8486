"""A stage whose inputs are cut into chunks, under its lock: the chunks are tasks, what they made is joined in order.

Above the leaves and below the runner, which imports it for a stage with `chunks` that must run.

    inputs -> chunks -> tasks -> joined outputs (.part) -> synced -> renamed -> stage record -> marker -> chunks removed

A chunk's outputs stay in its private folder until the stage is finished, so a kill loses the chunks in flight and no others. With
`keepChunks` they stay for good; a chunk's key then binds its content and all content before it, so that an input that only
grew keeps them all but the last.
"""
from __future__ import annotations

import os
import shutil
import stat

import attempts
import chunk_files
import durable_files
import file_digests
import program_scan
import stage_outputs
import stage_work
import state_store
import task_files
import task_log
import task_look
import task_work
from ledger_format import stage_key
from model import remedy_of, sha256
from primitives import folded, is_there, remove_quietly
from scheduler import Pause

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Collection, Dict, Iterable, Iterator, List, Optional, Tuple

    from engine import Run
    from model import Decision, Facts, StageSpec
    from scheduler import Flow
    from stage_locks import StageLock
    Json = Dict[str, Any]

BY_SIGNATURE = "signature:"         # what the digest of an output begins with that is told by its signature
JOIN_LOOK_S = 0.01          # between two looks whether the joining has ended
SETTLE_S = 1.5 * file_digests.FRESH_NS / 1e9


def tidy(root: str, stage: StageSpec, store: state_store.StateStore) -> None:
    """Remove the chunks of a finished stage; under its lock."""
    # First: as long as the folder is there, the next run comes here again.
    remove_quietly(store.path(task_log.log_name(stage.name)))
    shutil.rmtree(store.path(task_files.progress_name(stage.name)), ignore_errors=True)
    try:
        durable_files.clear_tree(task_work.staging_root(os.path.join(root, stage.output_dir), stage.name))
    except OSError:
        pass                            # the next run tries again


def _file_and_folder(names: Collection[str]) -> str:
    """Return that one of *names* is another one's folder, or ""."""
    for name in sorted(names):
        for folder in sorted(stage_outputs.folders_of(name), reverse=True):
            if folder in names:
                return "its chunks make %s and %s: a file and a folder of one name" % (folder, name)
    return ""


class ChunkTasksWork(task_work.TasksWork):
    """A stage with `chunks`."""

    def __init__(self, run: Run, stage: StageSpec, lock: StageLock, facts: Facts) -> None:
        super().__init__(run, stage, lock, facts)
        self.chunks = stage.chunks
        self.joiner: Any = None
        self._stamps_of: Dict[str, Dict[str, List[int]]] = {}   # of each input with what all share; "": that alone

    def do(self, decision: Decision) -> Flow:
        """Run the chunks that are not done, join what all have made, record how the stage ended; a flow that returns the
        StageResult."""
        self.reasons = list(decision.reasons)
        self._drop_unsynced(self.facts.record)
        if is_there(self.earlier.lost_path()):
            tidy(self.run.root, self.stage, self.store)     # a sync has failed: no chunk counts
        self._prepare(decision)
        failure, outputs = yield from self._cut_run_join()
        failure = failure or self._judge(outputs)
        if failure:
            return self._give_up(failure, self.is_stopped)
        self.exit_code = 0
        result = self._succeed(outputs)
        self.run.durability.flush()                # the outputs are on the disk before the chunks go
        self._remove_chunks()
        return result

    def _cut_run_join(self) -> Flow:
        """A flow that returns (why the stage fails or "", its outputs)."""
        try:
            try:
                cuts, tasks = self._cut()
            except file_digests.ReadingStopped:
                self.is_stopped = True
                return "interrupted", []
            except OSError as error:        # an input has gone or become shorter since the key was computed, most likely
                return self._changed_inputs() or self._unreadable(error), []
            problem = self._problem()
            if problem:
                return problem, []
            todo, done = self._open_tasks(tasks)
            self.console.event("START", self.stage.name, " (%d chunk%s: %d to do, %d done)" % (
                self.total, "" if self.total == 1 else "s", len(todo), self.up_to_date))
            self.joiner = chunk_files.Joiner(self.folder, self.stage.name, self.lock.token, self.total,
                                             chunk_files.headers(cuts, self.chunks.header_lines) if self.chunks.header_lines else (),
                                             {self._filter_output(path) if self.chunks.is_filter else os.path.basename(path)
                                              for path in self.facts.material.inputs})
            for task in done:
                self._add(task, self.task_log.entries[task.name])
            yield from self._run_tasks(todo)
            failure = self._failure()
            if not self.is_stopped and not self.survivors:
                failure = stage_work.with_change(self._changed_unseen() or self._changed_inputs(), failure)
            self.counts = task_log.sum_counts(entry.counts for entry in self.task_log.entries.values() if entry.status == "ok") or self._none_counted(
                self.total > 0)
            outputs: List[Json] = []
            if not failure:
                failure, outputs = yield from self._join_all(tasks)
            self._close_logs()
        finally:
            if self.joiner is not None and not self.joiner.is_published:
                self.joiner.stop()
        return failure, outputs

    def _join_all(self, tasks: List[task_work.Task]) -> Flow:
        """As _cut_run_join(), once all chunks are done. Those whose output is refused count as done no more: what made it so may
        have passed by the next run."""
        again: List[int] = []
        outputs: List[Json] = []
        try:
            failure = yield from self._join()
        except chunk_files.ChunkError as error:
            failure, again = str(error), error.chunks
        if self.joiner.is_published and not failure:
            failure, outputs = self._check_outputs()
            again = list(range(len(tasks))) if failure else []      # it may be of each of them
        for number in again:
            remove_quietly(self._progress_path(tasks[number]))      # else it would be gone on with, and is complete
            self._enter(self.task_log.entries[tasks[number].name]._replace(key=""))
        return failure, outputs

    def _unreadable(self, error: OSError) -> str:
        """Return that an input cannot be read, for which only this stage fails."""
        return "cannot read %s: %s" % (self._shown(error), error.strerror or error)

    def _shown(self, error: OSError) -> str:
        """Return the path that an error names, as seen from the root."""
        return os.path.relpath(os.fsdecode(error.filename or self.run.root), self.run.root).replace(os.sep, "/")

    # --- cutting

    def _cut(self) -> Tuple[List[Any], List[task_work.Task]]:
        cuts = [chunk_files.cut(os.path.join(self.run.root, path), self.chunks.size_bytes, self.chunks.header_lines, self.run.heed_stop)
                for path in self.facts.material.inputs]
        tasks: List[task_work.Task] = []
        for path, cut in zip(self.facts.material.inputs, cuts):
            keys = self._keys(path, cut)
            for place, (start, end) in enumerate(cut.chunks):
                tasks.append(self._chunk_task(len(tasks), path, place, keys[place], cut.header_end, start, end))
        self.total = len(tasks)
        return cuts, tasks

    def _keys(self, path: str, cut: Any) -> List[str]:
        """Return the key of each chunk of an input."""
        if not self.chunks.keep:
            return [sha256(("chunk\0%s\0%s\0%d\0%d" % (self.key, path, start, end)).encode("utf-8")).hexdigest() for start, end in cut.chunks]
        # What a chunk's processor sees of the place (line numbers) depends on all that is before it: so does the key.
        parts = {name: value for name, value in self.facts.material.parts.items() if name != "inputs"}
        digests = chunk_files.hash_ranges(os.path.join(self.run.root, path), [(0, cut.header_end)] + list(cut.chunks), self.run.heed_stop)
        before, keys = "%s\0%s\0%s" % (stage_key(parts), path, digests[0]), []
        for digest in digests[1:]:
            before = sha256(("chunk\0%s\0%s" % (before, digest)).encode("utf-8")).hexdigest()
            keys.append(before)
        return keys

    def _chunk_task(self, number: int, path: str, place: int, key: str, header_end: int, start: int, end: int) -> task_work.Task:
        name = "%s#%d" % (path, place + 1)
        variables = {"PIPELINE_TASK": path}
        if not self.chunks.is_filter:
            variables.update(PIPELINE_CHUNK_START=str(start), PIPELINE_CHUNK_END=str(end))
            if self.chunks.header_lines:
                variables["PIPELINE_CHUNK_HEADER_END"] = str(header_end)
        return task_work.Task(number, name, key, [] if self.chunks.is_filter else [path], os.path.join(self.staging, task_work.folder_name(name, key)), variables,
                              self._own_stamps(path), end - start, (path, header_end, start, end) if self.chunks.is_filter else None)

    def _own_stamps(self, path: str) -> Dict[str, List[int]]:
        """Return the signatures of what a chunk of *path* depends on: all inputs after each chunk would be too many; they are
        looked at before the joining."""
        stamps = self.facts.material.stamps
        if path not in self._stamps_of:
            if not self._stamps_of:
                inputs = set(self.facts.material.inputs)
                self._stamps_of[""] = {one: stamp for one, stamp in stamps.items() if one not in inputs}
            self._stamps_of[path] = {**self._stamps_of[""], path: stamps[path]}
        return self._stamps_of[path]

    def _stamp_anew(self) -> None:
        super()._stamp_anew()
        for stamps in self._stamps_of.values():     # which the chunks have in hand
            stamps.update((path, self.facts.material.stamps[path]) for path in stamps)

    def _problem(self) -> str:
        """Return why this stage cannot be done in chunks, or ""."""
        if self.chunks.is_filter:
            names: Dict[str, str] = {}
            for path in self.facts.material.inputs:
                other = names.setdefault(folded(self._filter_output(path)), path)
                name = os.path.basename(self._filter_output(path))
                if name.startswith(".") or name.endswith(".part"):
                    return "what is made of %s would be called %s, and names that begin with a dot or end in .part are no outputs; name one in \"outputs\"" % (
                        path, name)
                if other != path and self._single_output() is None:
                    return "%s and %s would both be written to %s; name one output in \"outputs\", or rename one" % (
                        other, path, self._filter_output(path))
            return ""
        code = [self.stage.processor] + program_scan.local_modules(self.run.digests, self.stage.processor)
        return "" if any(map(self._knows_chunks, code)) else ("%s does not look at PIPELINE_CHUNK_START: for each chunk it would work on the whole input; use the kit, or set "
                                    "\"filter\": true in \"chunks\" to give it the chunk on standard input" % self.stage.processor)

    def _knows_chunks(self, path: str) -> bool:
        """Tell whether a file of a processor's code uses the kit, or looks for chunks itself."""
        if "processor_kit" in program_scan.scan_of(self.run.digests, path)["imports"]:
            return True
        with open(os.path.join(self.run.root, path), "rb") as file:
            return b"PIPELINE_CHUNK_START" in file.read()

    def _single_output(self) -> Optional[str]:
        outputs = self.stage.outputs
        return outputs[0] if outputs is not None and len(outputs) == 1 and not file_digests.has_wildcard(outputs[0]) else None

    def _filter_output(self, path: str) -> str:
        """Return the name of the file for a filter's standard output: the one declared output, else the input's own name."""
        return self._single_output() or os.path.basename(path)

    def _open_tasks(self, tasks: List[task_work.Task]) -> Tuple[List[task_work.Task], List[task_work.Task]]:
        """Return the chunks to be done and those that are, after clearing what belongs to none that is done or can be gone on
        with."""
        is_forced = self.stage.name in self.run.options.force
        self.task_log = task_look.load_log(self.store, self.stage.name)
        done = set() if is_forced else {task.name for task in tasks if self._is_done(task)}
        goes_on = self.stage.checkpoint and not is_forced
        kept = {os.path.basename(task.folder) for task in tasks if task.name in done or goes_on and not self._is_spoilt(task)}
        self._clear_folders(kept)
        if self.earlier.has_cleared:
            self._stamp_anew()
        self.task_log.entries = {name: entry for name, entry in self.task_log.entries.items() if name in done}
        self.task_log.compact(self._write_log)
        self._open_log()
        self.up_to_date = len(done)
        return [task for task in tasks if task.name not in done], [task for task in tasks if task.name in done]

    def _is_done(self, task: task_work.Task) -> bool:
        entry = self.task_log.entries.get(task.name)
        if entry is None or entry.key != task.key or entry.status != "ok":
            return False
        return all(self._is_there(os.path.join(task.folder, name), size, digest) for name, size, digest in entry.outputs)

    def _is_spoilt(self, task: task_work.Task) -> bool:
        """Tell whether a chunk that was done is not any more as it was entered: its checkpoint would say that it still is."""
        entry = self.task_log.entries.get(task.name)
        if entry is None or entry.key != task.key or entry.status != "ok":
            return False
        of_now = "%s%s:" % (BY_SIGNATURE, self.run.boot)
        is_known = all(digest.startswith(of_now) or not digest.startswith(BY_SIGNATURE) for _, _, digest in entry.outputs)
        return is_known and not self._is_done(task)

    def _is_there(self, full: str, size: int, digest: str) -> bool:
        """Tell whether a chunk's output is as it was entered: by content, or, for what is not kept, by its signature in this
        boot."""
        if digest.startswith(BY_SIGNATURE):
            return digest == self._signature(full)
        return file_digests.output_content(full) == (size, digest)

    def _signature(self, full: str) -> str:
        try:
            found = os.lstat(full)
        except OSError:
            return ""
        return "%s%s" % (BY_SIGNATURE, ":".join(map(str, (self.run.boot, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino))))

    # --- one chunk

    def _begin_attempt(self, trial: task_work.TaskTrial, slot: int, offset: int, is_resume: bool) -> Any:
        try:
            return super()._begin_attempt(trial, slot, offset, is_resume)
        except OSError as error:
            path = trial.task.stdin[0] if self.chunks.is_filter else ""
            if not path or error.filename != os.path.join(self.run.root, path):
                raise
            trial.network = None        # nothing was started
            return attempts.not_begun(self._unreadable(error))

    def _how(self, trial: task_work.TaskTrial, launch: Any) -> Any:
        if not self.chunks.is_filter:
            return super()._how(trial, launch)
        path, header_end, start, end = trial.task.stdin
        target = os.path.join(trial.folder, self._filter_output(path))
        os.makedirs(os.path.dirname(target), exist_ok=True)
        return launch._replace(feeder=chunk_files.Feeder(os.path.join(self.run.root, path), header_end, start, end), output_path=target)

    def _finish(self, trial: task_work.TaskTrial) -> None:
        """Enter what a chunk has made, and hand it to the joiner."""
        task = trial.task
        self._take_counts(trial)
        for name in self._names(trial):
            full = os.path.join(task.folder, name)
            size, digest = file_digests.output_content(full) if self.chunks.keep else (os.lstat(full).st_size, self._signature(full))
            trial.outputs.append((name, size, digest))
            if self.chunks.keep:
                self.store.commit.files[full] = None
        if not trial.failure:
            self._add(task, self._entry(trial))

    def _names(self, trial: task_work.TaskTrial) -> Iterator[str]:
        names = self._list_made(trial)
        own = self._filter_output(trial.task.stdin[0]) if self.chunks.is_filter else ""
        if own and own not in names:
            trial.failure = "%s, which takes its standard output, is not there any more: it must leave that file alone" % own
        for name in names:
            if not file_digests.is_unicode(name):
                trial.failure = stage_work.NOT_UTF_8 % ascii(name)
            elif not stat.S_ISREG(os.lstat(os.path.join(trial.task.folder, name)).st_mode):
                trial.failure = "output %s is no regular file; the outputs of chunks are joined, so they must be files, not links or pipes" % name
            else:
                yield name

    def _add(self, task: task_work.Task, entry: task_log.Entry) -> None:
        self.joiner.add(task.number, {name: os.path.join(task.folder, name) for name, _, _ in entry.outputs})

    # --- the end

    def _join(self) -> Flow:
        """A flow that joins and publishes, and returns why that failed, or "". Raises: ChunkError."""
        while not self.joiner.is_done():
            yield Pause(JOIN_LOOK_S)
            if self.run.signals.number:
                self.is_stopped = True
                return "interrupted"
        try:
            joined = self.joiner.finish()
        except OSError as error:            # all that it works on is in the output folder
            return task_work.in_the_way(self._shown(error), error) or "the outputs of its chunks cannot be joined: %s: %s%s" % (
                self._shown(error), error.strerror or error, remedy_of(error))
        clash = _file_and_folder(joined)
        if clash:
            return clash
        self.others.look()
        for name in sorted(joined):
            problem = self.others.problem("changed", name) or self._input_problem(name)
            if problem:
                self.joiner.stop()
                return problem
        # Then no later write can have the same time stamp, and what was hashed while it was written needs not be read again.
        yield Pause(SETTLE_S)
        try:
            self.joiner.publish()
        except OSError as error:
            problem = task_work.in_the_way(self._shown(error), error)
            if problem:
                return problem
            raise
        self._remove_old_rejects(joined)
        for name, (digest, _) in joined.items():
            self.run.digests.know("%s/%s" % (self.stage.output_dir, name), digest)
        if "written" in self.counts and self.joiner.cut_lines:
            self._note_in_outputs(dict(self.counts, written=max(0, self.counts["written"] - self.joiner.cut_lines)))
        return ""

    def _remove_old_rejects(self, joined: Iterable[str]) -> None:
        """Remove, durably, what an earlier run set aside beside an output that is joined anew, where nothing is set aside now.

        The kit does so itself where it works on the whole input; in a chunk's private folder it finds nothing to remove. Its
        lines() and blocks() count what they set aside, also that it is nothing: of a processor that does not, a file that is
        called so may be anything. A kill before the stage record leaves what one leaves after the kit's own removal.
        """
        names = {name + chunk_files.REJECTS for name in joined} if "rejected" in self.counts else set()
        for path in stage_outputs.not_among(self.folder, sorted(names.intersection(one["path"] for one in self.earlier.outputs)), joined):
            is_another = self.others.place_of(path) or self._input_problem(path) or stage_outputs.is_folder(os.path.join(self.folder, path))
            if not is_another:
                durable_files.remove_durably(os.path.join(self.folder, path), self.store.commit)
        if self.store.commit.removed:
            self.run.durability.flush()            # before a record says that they are none of its outputs

    def _done_text(self) -> str:
        return " (%d chunk%s)" % (len(self.done), "" if len(self.done) == 1 else "s")

    def _finish_checkpoint(self) -> None:
        """Each chunk has its own."""

    def _remove_chunks(self) -> None:
        """After the marker: the chunks go, or those that are not of today's inputs."""
        if not self.chunks.keep:
            tidy(self.run.root, self.stage, self.store)

    def _write_record(self, status: str, error: str, outputs: Optional[List[Json]] = None) -> None:
        self.more_of_record = dict(self.more_of_record, tasks=self._summary())
        super()._write_record(status, error, outputs)
