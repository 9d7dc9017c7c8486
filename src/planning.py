"""Decide what must be done with each stage, and why: what is observed, what follows from it.

Nothing here writes. observe() and look_at() read files and records; decide() and reasons_to_run() are pure.
Raises: StateError for damaged state, UsageError for a stage or param that is not there, OSError.
"""
from __future__ import annotations

import os

import command_line
import spec_values
import stage_locks
import stage_markers
import stage_records
import state_store
from file_digests import Digests, resolve
from model import ALL_OF_LOG, EXIT_OK, Clock, Decision, Facts, Material, Options, PipelineSpec, StageSpec, UsageError
from primitives import is_there
from program_scan import check_offline
from stage_keys import gather_material, output_problems
from state_store import StateError, StateStore

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, List, Optional, Sequence, Set, Tuple

    from console import Console
    Json = Dict[str, Any]

SHOWN_CHANGES = 5           # of the reasons why a stage runs, on one line


# --- what is observed

def observe(spec: PipelineSpec, stage: StageSpec, digests: Digests, store: StateStore, boot: str, left: Sequence[Tuple[str, str]] = (),
            is_brief: bool = False) -> Facts:
    """Look at all that the decision about a stage depends on; write nothing. Raises: StateError.

    left: (path, why) of files of `forEach` that are left for a later run. is_brief: of a stage of many tasks, that it must run is
    enough.
    """
    if stage.for_each:
        import task_look
        return task_look.observe_tasks(spec, stage, digests, store, boot, left, is_brief)
    material = gather_material(spec, stage, digests, store)
    record = store.stage(stage.name)
    if material.missing:
        return Facts(material, record, None, [], None, False)
    marker = stage_markers.read_marker(stage_markers.marker_path(spec.root, stage.output_dir, stage.name))
    problems = output_problems(digests, stage, record) if record is not None and record["lastStatus"] == "ok" else []
    is_lost = marker is None and is_there(stage_markers.lost_path(spec.root, stage.output_dir, stage.name))
    if is_lost:
        problems.append("the outputs could not be brought to the disk")
    facts = Facts(material, record, marker, problems, None, False)
    if marker == stage_markers.BARRED or not reasons_to_run(stage, facts):
        return facts
    if stage.checkpoint and is_there(store.path("progress_%s.json" % stage.name)):
        import checkpoints
        import recorded_outputs
        facts = facts._replace(checkpoint=checkpoints.read_checkpoint(
            store, stage, record, material.key, boot, lambda: recorded_outputs.outputs_of_others(spec.root, stage.output_dir, {stage.name}),
            checkpoints.made_from(material.stamps)))
        if is_lost and facts.checkpoint is not None:
            facts = facts._replace(checkpoint=facts.checkpoint._replace(problem="what it stands for may not be on the disk: a sync has failed", resumable=False))
        changed = _changed_since(digests, stage, record) if facts.checkpoint is not None and facts.checkpoint.resumable else ""
        if changed:
            facts = facts._replace(checkpoint=facts.checkpoint._replace(problem=changed, resumable=False))
    if record is not None and record["lastStatus"] == "ok" and marker is None and not problems:
        facts = facts._replace(sealable=state_store.died_before_marker(store, stage.name, record))
    return facts


def _changed_since(digests: Digests, stage: StageSpec, record: Optional[Json]) -> str:
    """Return which recorded output that the attempt had left alone somebody has changed after its end, or "": to resume would not make
    it again."""
    left = record.get("left") if record is not None else None
    if record is None or record["lastStatus"] == "ok" or not isinstance(left, list) or stage_records.made_elsewhere(record, stage.output_dir):
        return ""
    alone = [one for one in record["outputs"] if one["path"] not in left and is_there(os.path.join(digests.root, stage.output_dir, one["path"]))]
    return "; ".join("%s since" % problem for problem in output_problems(digests, stage, dict(record, outputs=alone))[:1])


def folders_of(spec: PipelineSpec, store: StateStore) -> Any:
    """Return the stages by output folder, made once in a run."""
    if "folders" not in store.memo:
        import stage_order
        store.memo["folders"] = stage_order.Folders(spec.stages)
    return store.memo["folders"]


def makers_of(spec: PipelineSpec, stage: StageSpec, inputs: Sequence[str], store: StateStore) -> List[Tuple[str, str, Json]]:
    """Return (name, output folder, what is asked of its record) of the other stages in whose folders *inputs* lie. Raises:
    StateError."""
    found = []
    for other in folders_of(spec, store).holders({path.rpartition("/")[0] for path in inputs}):
        record = store.maker(other.name) if other.name != stage.name else None
        if record is not None:
            found.append((other.name, other.output_dir, record))
    return found


def with_all_outputs(makers: Sequence[Tuple[str, str, Json]], store: StateStore) -> List[Tuple[str, str, Json]]:
    """Return makers whose records list all outputs: of very many only the task log tells. Raises: StateError, OSError."""
    found, looking = [], state_store.StateStore(store.root, writable=False)     # under the locks of these stages others may write
    for name, folder, record in makers:
        if stage_records.outputs_are_logged(record) or record.get("refused") == ALL_OF_LOG:
            import task_look
            record = dict(record, outputs=stage_records.with_listed(record, task_look.logged_outputs(looking, name)))
        found.append((name, folder, record))
    return found


def _inputs(facts: Facts) -> List[Sequence[str]]:
    """Return (path, SHA-256) of all that the stage reads, those of its tasks included."""
    inputs: List[Sequence[str]] = list(facts.material.parts["inputs"])
    if facts.tasks is not None:
        inputs += zip(facts.tasks.paths, facts.tasks.digests)
    return inputs


def refused_inputs(spec: PipelineSpec, stage: StageSpec, facts: Facts, store: StateStore) -> List[str]:
    """Return which inputs a stage's control totals refused, see control_totals.refused_inputs(). Links are followed to them, where
    a stage of the pipeline has such totals: each input is looked at once more for that."""
    import control_totals
    inputs = _inputs(facts)
    if "judged" not in store.memo:
        store.memo["judged"] = any(map(control_totals.is_judged, spec.stages))
    if store.memo["judged"]:
        import link_places
        places = link_places.Places(spec.root)
        inputs += [(place, digest) for path, digest in inputs for place in [places.of_file(path)] if place != path]
    makers = makers_of(spec, stage, [path for path, _ in inputs], store)
    return control_totals.refused_inputs(inputs, with_all_outputs([one for one in makers if one[2].get("refused")], store))


def expected_read(spec: PipelineSpec, stage: StageSpec, facts: Facts, store: StateStore) -> Tuple[Optional[int], str, str]:
    """Return (how many records the stage reads by what the makers of its inputs say, why that is not known: see
    control_totals.expected_read(); why its inputs are refused, or ""); only where that is asked for."""
    import control_totals
    if not stage.reconcile:
        return None, "", ""
    import link_places
    read, places = _inputs(facts), link_places.Places(spec.root)
    led = {places.of_file(path): digest for path, digest in read}
    if len(led) == len(read):           # else a file is read twice, by different names
        read = list(led.items())
    makers = with_all_outputs(makers_of(spec, stage, [path for path, _ in read], store), store)
    expected, why = control_totals.expected_read(read, makers)
    folders = folders_of(spec, store)
    # Where folders are shared, it may be another stage's.
    strays = [(path, name) for path, name in control_totals.stray_inputs(read, makers)
              if [one.name for one in folders.holders([path.rpartition("/")[0]]) if one.name != stage.name] == [name]]
    if strays:
        import recorded_outputs
        folder_of, names = {name: folder for name, folder, _ in makers}, {one.name for one in spec.stages}
        # Of other pipelines.
        others = {folder: recorded_outputs.outputs_of_others(spec.root, folder, names) for folder in folder_of.values()}
        strays = [(path, name) for path, name in strays if path[len(folder_of[name]) + 1:] not in others[folder_of[name]]]
    return expected, why, ("control totals: input %s lies in the output folder of stage %s and is not what that stage has recorded: "
                           "remove it, let that stage declare it, or read only what it makes" % strays[0]) if strays else ""


def look_at(spec: PipelineSpec, stage: StageSpec, digests: Digests, store: StateStore, boot: str, forced: bool, now_ns: Any,
            is_brief: bool = False) -> Tuple[Decision, Facts]:
    """Observe and decide, inputs that are still arriving and control totals included. now_ns: see arrivals.unsettled(); is_brief:
    see observe()."""
    left: List[Tuple[str, str]] = []
    if stage.settle_s:
        import arrivals
        inputs, files = resolve(spec.root, stage.inputs)[0], resolve(spec.root, stage.for_each)[0]
        makers = with_all_outputs(makers_of(spec, stage, files + inputs, store), store)
        left = arrivals.still_arriving(spec.root, stage, files, makers, now_ns)
        waiting = arrivals.still_arriving(spec.root, stage, inputs, makers, now_ns)
        if waiting or left and len(left) == len(files):
            nothing = Facts(Material("", {}, [], [], [], {}, 0), None, None, [], None, False)
            return Decision("WAITING", [arrivals.waiting_text(stage, waiting + left)], 0, ""), nothing
    facts = observe(spec, stage, digests, store, boot, left, is_brief)
    decision = decide(stage, facts, forced)
    if decision.action in ("RUN", "RESUME"):
        refused = refused_inputs(spec, stage, facts, store)
        return (Decision("FAIL", refused, 0, "") if refused else decision), facts
    if decision.action in ("SKIP", "SEAL") and (stage.reconcile or stage.max_rejects is not None):
        decision = judge_again(spec, stage, decision, facts, store)
    return decision, facts


def judge_again(spec: PipelineSpec, stage: StageSpec, decision: Decision, facts: Facts, store: StateStore) -> Decision:
    """Judge the recorded counts of a stage that is up to date: what the spec asks of them may have become stricter since."""
    missing, why = totals_again(spec, stage, facts, store)
    if missing:
        return Decision("RUN", [missing], 0, "")
    return Decision("FAIL", [why], 0, "") if why else decision


def totals_again(spec: PipelineSpec, stage: StageSpec, facts: Facts, store: StateStore) -> Tuple[str, str]:
    """Return (which of the counts that are asked for the record of a finished stage has not, or ""; why these are refused with
    the inputs of now, or "")."""
    import control_totals
    if not control_totals.is_judged(stage):
        return "", ""
    counts = facts.record.get("counts") or {}
    missing = ["usable counts"] if control_totals.counts_problem(counts) else control_totals.missing_counts(stage, counts)
    if missing:
        return "its record has no count of %s, which is asked for now" % " and ".join(missing), ""
    expected, _, refused = expected_read(spec, stage, facts, store)
    (_, _, record), = with_all_outputs([(stage.name, stage.output_dir, facts.record)], store)
    paths = ["%s/%s" % (stage.output_dir, one["path"]) for one in record["outputs"]]
    why = refused or control_totals.judge(stage, counts, expected, paths)
    remedy = "" if refused else "; --force %s makes it again" % stage.name      # it would be refused again
    return "", "%s; recorded by run %s%s" % (why, facts.record.get("lastRunId"), remedy) if why else ""


# --- what follows from it (pure)

def decide(stage: StageSpec, facts: Facts, forced: bool) -> Decision:
    """Decide what to do with a stage from what was observed; the reasons are for people."""
    if facts.material.missing:
        return Decision("FAIL", facts.material.missing, 0, "")
    if facts.marker_key == stage_markers.BARRED:
        return Decision("FAIL", ["cannot look into its output folder %s: the rights for that are missing" % stage.output_dir], 0, "")
    if facts.tasks is not None:
        import task_look
        return task_look.decide_tasks(stage, facts, forced)
    found = facts.checkpoint
    if forced:
        return Decision("RUN", ["forced"], 0, "the stage was forced" if found is not None and not found.complete else "")
    reasons = reasons_to_run(stage, facts)
    if not reasons:
        return Decision("SKIP", ["up to date: key %s unchanged, %d output%s verified" % (
            facts.material.key[:12], len(facts.record["outputs"]), "" if len(facts.record["outputs"]) == 1 else "s")], 0, "")
    if facts.sealable and reasons == [stage_markers.NO_MARKER] and not (found is not None and found.resumable):
        return Decision(
            "SEAL", ["up to date: finished by run %s, which died before it wrote the marker; marker restored" % facts.record.get("lastRunId")], 0, "")
    if found is None:
        return Decision("RUN", reasons, 0, "")
    if found.problem:
        is_history = found.complete and str((facts.record or {}).get("lastStatus")) not in ("running", "interrupted")
        return Decision("RUN", reasons, 0, "" if is_history else found.problem)
    if found.resumable:
        return Decision("RESUME", reasons, found.line_offset, "")
    return Decision("RUN", reasons, 0, "")


def reasons_to_run(stage: StageSpec, facts: Facts) -> List[str]:
    """Return why the stage is not up to date, [] if it is; the first kind of reason hides the others."""
    record = facts.record
    if record is None:
        return ["no record of an earlier run"]
    if record["idempotencyKey"] != facts.material.key:
        import reasons
        changes = reasons.key_changes(record["keyParts"], facts.material.parts) or ["key changed"]
        more = len(changes) - SHOWN_CHANGES
        return changes[:SHOWN_CHANGES] + (["and %d more changes" % more] if more > 0 else [])
    if record["lastStatus"] != "ok":
        return [stage_records.last_run_text(record)]
    if record.get("cleaned"):
        return [stage_records.CLEANED]
    if not stage.idempotent:
        return ["idempotency is disabled"]
    found = list(facts.output_problems)
    if facts.marker_key != facts.material.key:
        found.append(stage_markers.problem_text(facts.marker_key))
    return found


# --- what the command line leaves of the spec

def select_stages(spec: PipelineSpec, options: Options) -> List[StageSpec]:
    """Return the stages that --only, --from and --until leave. Raises: UsageError for an unknown name, or if they leave none, or
    not a forced one."""
    names = [stage.name for stage in spec.stages]
    for name in sorted(options.force | options.only) + [one for one in (options.first, options.last) if one]:
        if name not in names:
            near = command_line.nearest(name, names)
            raise UsageError("no stage is named %s%s" % (spec_values.shown_value(name), "; did you mean %s?" % near if near
                                                         else "; there are: %s" % ", ".join(names)))
    if not (options.only or options.first or options.last):
        return list(spec.stages)
    span = _span(spec, names, options)
    selected = [stage for stage in spec.stages if stage.name in span and (not options.only or stage.name in options.only)]
    if not selected:
        raise UsageError("--only %s: not among the stages that %s; leave out --from and --until, or --only" % (
            ",".join(sorted(options.only)),
            " and ".join(["--from %s" % options.first] * bool(options.first) + ["--until %s" % options.last] * bool(options.last)) + " leave"))
    for name in sorted(options.force - {stage.name for stage in selected}):
        raise UsageError("--force %s: not among the stages that are run; add it to --only, or leave out what excludes it" % name)
    return selected


def _span(spec: PipelineSpec, names: List[str], options: Options) -> Set[str]:
    """Return what --from and --until leave: in the order listed a part of the list, in a graph what depends on the one, and what
    the other depends on."""
    if spec.order == "graph":
        import stage_order
        import stage_waits
        found = stage_order.between(spec.stages, options.first or "", options.last or "", stage_waits.edges_of(spec))
        if not found:
            raise UsageError("--until %s does not depend on --from %s" % (options.last, options.first))
        return found
    first = names.index(options.first) if options.first else 0
    last = names.index(options.last) if options.last else len(names) - 1
    if first > last:
        raise UsageError("--from %s comes after --until %s" % (options.first, options.last))
    return set(names[first:last + 1])


def unfinished_makers(spec: PipelineSpec, selected: Sequence[StageSpec], digests: Digests) -> List[Tuple[str, str]]:
    """Return (stage, what to say) for each selected stage that takes what a stage left out makes, where that one has not ended
    well."""
    if len(selected) == len(spec.stages):
        return []
    import stage_waits
    makers, names = stage_waits.edges_of(spec, digests), {stage.name for stage in selected}
    wanted = {maker for stage in selected for maker in makers[stage.name]} - names
    unfinished = {stage.name: _unfinished(spec.root, stage) for stage in spec.stages if stage.name in wanted}
    return [(stage.name, "builds on stage %s, which is left out and %s: what is there now is taken" % (maker, unfinished[maker]))
            for stage in selected for maker in makers[stage.name] if unfinished.get(maker)]


def _unfinished(root: str, stage: StageSpec) -> str:
    """Return in what way a stage has not ended well, as its record and its marker tell, "" if it has; its files are not looked
    at."""
    try:
        record = StateStore(root, writable=False).stage(stage.name)
    except StateError:
        return "has a damaged record"
    if record is None:
        return "has not been run"
    if record["lastStatus"] == "ok":
        marker = stage_markers.read_marker(stage_markers.marker_path(root, stage.output_dir, stage.name))
        if marker in (stage_markers.UNREADABLE, stage_markers.BARRED):
            return "has a marker that cannot be read"
        return "" if marker else "has no marker any more"
    return {"running": "was not finished", "interrupted": "was interrupted"}.get(str(record["lastStatus"]), "failed")


def override_params(spec: PipelineSpec, params: Json) -> PipelineSpec:
    """Return the spec with --set values in each stage that has such a param. Raises: UsageError if none has."""
    known = sorted({name for stage in spec.stages for name in stage.params})
    for name in params:
        if name not in known:
            near = command_line.nearest(name, known)
            raise UsageError("--set %s: no stage has a param of that name; %s" % (
                name, "did you mean %s?" % near if near else "there are: %s" % ", ".join(known) if known
                else "give it a value in the params of a stage first"))
    stages = [stage._replace(params={**stage.params, **{name: value for name, value in params.items() if name in stage.params}})
              for stage in spec.stages]
    return spec._replace(stages=tuple(stages))


# --- the plan: the same decisions, nothing written

def print_plan(spec: PipelineSpec, options: Options, console: Console, clock: Clock) -> int:
    """Print what a run would do with each stage, and why; write nothing at all."""
    import stage_order
    import stage_waits
    boot = state_store.boot_id()
    digests = Digests(spec.root, boot, keep=False, rehash=options.rehash)
    check_offline(spec, digests, console)
    selected = select_stages(spec, options)
    for name, doubt in unfinished_makers(spec, selected, digests):
        console.line("[NOTE] %s: %s" % (name, doubt))
    needs = stage_waits.edges_of(spec, digests)
    for stage, decision, _ in stage_order.planned(spec.stages, selected, looker(spec, options, digests), spec.order == "graph", needs):
        holder = holder_text(spec, stage, boot, clock)
        console.plan(stage.name, decision._replace(reasons=["running now"]) if holder and decision.reasons == ["last run died"] else decision, holder)
    return EXIT_OK


def looker(spec: PipelineSpec, options: Options, digests: Optional[Digests] = None) -> Callable[[StageSpec], Tuple[Decision, Facts]]:
    """Return what decides about a stage as a run would now, and writes nothing. What it returns raises: StateError, OSError."""
    boot = state_store.boot_id()
    store = StateStore(spec.root, writable=False)
    known = digests if digests is not None else Digests(spec.root, boot, keep=False, rehash=options.rehash)

    def look(stage: StageSpec) -> Tuple[Decision, Facts]:
        return look_at(spec, stage, known, store, boot, stage.name in options.force, lambda device: int(Clock().time() * 1e9))
    return look


def holder_text(spec: PipelineSpec, stage: StageSpec, boot: str, clock: Clock) -> str:
    """Return who holds the stage now, or ""."""
    if not os.path.isdir(os.path.join(spec.root, "locks", stage.name + ".lock")):
        return ""
    import process_tree
    owner = stage_locks.StageLock(spec.root, stage.name, "", boot, clock, process_tree).holder()
    return "held by " + stage_locks.owner_text(owner) if owner else ""
