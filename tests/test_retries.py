"""When an attempt is made again, after how long, and from where."""
from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))

import attempts  # noqa: E402
import model  # noqa: E402
import plain_work  # noqa: E402
import run_signals  # noqa: E402
import scheduler  # noqa: E402
import work_places  # noqa: E402
from console import Console  # noqa: E402
from model import Facts, Material, Retry  # noqa: E402
from stage_work import is_worth_retrying, retry_delay_ms  # noqa: E402


def retry(attempts=5, base=100, most=30000, jitter=0, codes=None) -> Retry:
    return Retry(attempts, base, most, jitter, codes)


# --- how long --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("base, most, delays", [
    (100, 30000, [100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 30000, 30000]),
    (1, 10, [1, 2, 4, 8, 10, 10]),
    (0, 30000, [0, 0, 0]),
    (100, 0, [0, 0]),
    (500, 100, [100, 100]),
    (250, 1000, [250, 500, 1000, 1000]),
    (3, 10 ** 9, [3, 6, 12, 24, 48])])
def test_the_delay_doubles_up_to_its_limit(base, most, delays):
    assert [retry_delay_ms(retry(base=base, most=most), "p", "s", attempt) for attempt in range(1, len(delays) + 1)] == delays


def test_attempt_numbers_of_any_size_cost_nothing():
    assert retry_delay_ms(retry(), "p", "s", 10 ** 9) == 30000
    assert retry_delay_ms(retry(base=0), "p", "s", 10 ** 9) == 0


def jitter(pipeline, stage, attempt, most) -> int:
    return int(hashlib.sha256(("%s\0%s\0%d" % (pipeline, stage, attempt)).encode("utf-8")).hexdigest()[:16], 16) % (most + 1)


JITTERS = [("p", "s", 1, 50, 141), ("p", "s", 2, 50, 238), ("p", "s", 3, 50, 401), ("demo", "stage_upper", 1, 1000, 393), ("größe", "s", 1, 9, 107)]


@pytest.mark.parametrize("pipeline, stage, attempt, most, delay", JITTERS)
def test_the_jitter_is_a_pure_function_of_names_and_attempt(pipeline, stage, attempt, most, delay):
    """The numbers are fixed here: a change would make a rerun differ from what a log foretold."""
    assert retry_delay_ms(retry(jitter=most), pipeline, stage, attempt) == delay
    assert delay == 100 * 2 ** (attempt - 1) + jitter(pipeline, stage, attempt, most)


def test_the_jitter_is_within_its_range_and_reaches_both_ends():
    seen = {retry_delay_ms(retry(base=0, jitter=7), "p", "s%d" % number, 1) for number in range(500)}
    assert seen == set(range(8))


def test_the_jitter_comes_on_top_of_the_limit():
    delays = [retry_delay_ms(retry(base=1000, most=1000, jitter=100), "p", "s", attempt) for attempt in range(1, 60)]
    assert min(delays) >= 1000 and 1000 < max(delays) <= 1100


def test_names_do_not_run_into_each_other():
    assert len({retry_delay_ms(retry(base=0, jitter=10 ** 12), *names) for names in (("a", "b", 11), ("a", "b1", 1), ("ab", "", 11), ("", "ab", 11))}) == 4


def test_the_jitter_is_the_same_in_another_process():
    text = "import sys; sys.path.insert(0, %r); import stage_work, model; print(stage_work.retry_delay_ms(model.Retry(3, 0, 0, 10**9, None), 'p', 's', 1))"
    outputs = {subprocess.check_output([sys.executable, "-c", text % str(ROOT / "src")], env=dict(os.environ, PYTHONHASHSEED=seed)) for seed in ("1", "2")}
    assert outputs == {b"%d" % retry_delay_ms(retry(base=0, most=0, jitter=10 ** 9), "p", "s", 1) + os.linesep.encode()}


# --- whether ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("attempt, of, codes, exit_code, again", [
    (1, 1, None, 1, False), (1, 2, None, 1, True), (2, 2, None, 1, False), (3, 2, None, 1, False),
    (1, 2, None, 75, True), (1, 2, None, -9, True), (1, 2, None, 255, True),
    (1, 2, None, None, False),                                  # it never started: it would not start again either
    (1, 2, (75,), 75, True), (1, 2, (75,), 1, False), (1, 2, (1, 2), 2, True),
    (1, 2, (1,), 75, False),                                    # 75 asks for a retry, the list leaves it out
    (1, 2, (), 75, False), (1, 2, (1,), -15, False), (2, 2, (1,), 1, False), (1, 2, (1,), None, False)])
def test_is_worth_retrying(attempt, of, codes, exit_code, again):
    assert is_worth_retrying(retry(attempts=of, codes=codes), attempt, exit_code) is again


# --- the loop, with time that passes only by waiting -----------------------------------------------------------------

class FakeClock:
    def __init__(self):
        self.waits, self.after_wait = [], lambda: None

    def monotonic(self):
        return 5.0 + sum(self.waits)

    def time(self):
        return 0.0

    def wait(self, seconds):
        self.waits.append(seconds)
        self.after_wait()


def ended(code, failure=None, **more):
    values = dict(exit_code=code, failure=attempts.exit_text(code) if failure is None else failure, stopped=False, duration_s=1.0, cpu_s=0.5, max_rss_bytes=10,
                  tail=b"", notes=[], survivors=[])
    return attempts.AttemptResult(**dict(values, **more))


class Work(plain_work.PlainWork):
    """A stage whose attempts end as listed, instead of starting processors; all else is real."""

    def _begin_attempt(self, trial, slot, offset, is_resume):
        trial.attempts += 1
        self._make_ready(trial, slot, offset, is_resume)
        self.starts.append((trial.attempts, offset, is_resume))
        return self.results.pop(0)

    def attempts_to_their_end(self):
        """Let the flow of attempts go on until it returns; its pauses are the clock's waits. Return (why it failed, whether it was stopped)."""
        self.trial = self._new_trial()
        flow, value = self._try(self.trial, 0, False), None
        try:
            while True:
                wish = flow.send(value)
                value = wish.make(0) if isinstance(wish, scheduler.Attempting) else self.run.clock.wait(wish.seconds)
        except StopIteration:
            return self.trial.failure, self.trial.stopped


def work(project, results, **stage):
    """Return the stage's work and its clock, console text at work.console.out."""
    import pipeline_runner
    project.write("in.txt", "x\n")
    project.spec(dict({"processor": project.processor("p", ""), "inputs": ["in.txt"]}, **stage))
    spec = pipeline_runner.load_pipeline(str(project.path("pipeline.json")))
    store = pipeline_runner.StateStore(str(project.root))
    store.prepare()
    project.path("data/s1").mkdir(parents=True)
    run = types.SimpleNamespace(spec=spec, root=str(project.root), store=store, console=Console(io.StringIO(), io.StringIO()), clock=FakeClock(),
                                signals=run_signals.Signals(), boot="boot", options=types.SimpleNamespace(run_id="r"), invocation=1, log_folder=lambda: "logs")
    run.places = work_places.WorkPlaces(run)
    facts = Facts(Material("key", {}, ["in.txt"], [], [], {}, 2), None, None, [], None, False)
    made = Work(run, spec.stages[0], types.SimpleNamespace(token="t"), facts)
    made.results, made.starts = list(results), []
    return made, run.clock


def lines(made):
    return made.console.out.getvalue().splitlines()


def test_the_delays_of_a_stage_that_fails_to_the_end(project):
    made, clock = work(project, [ended(1)] * 5, retry={"attempts": 5, "baseDelayMs": 100, "maxDelayMs": 450, "jitterMs": 50})
    assert made.attempts_to_their_end() == ("exit code 1", False)
    delays = [base + jitter("test", "s1", attempt, 50) for attempt, base in enumerate((100, 200, 400, 450), 1)]
    assert clock.waits == [delay / 1000.0 for delay in delays]
    assert [line for line in lines(made) if "RETRY" in line] == [
        "[RETRY] s1 attempt %d/5: exit code 1; next in %.2fs" % (attempt, delay / 1000.0) for attempt, delay in enumerate(delays, 1)]
    assert made.attempts == 5 and made.results == [] and made.starts == [(attempt, 0, False) for attempt in (1, 2, 3, 4, 5)]


def test_a_success_ends_the_loop_and_what_was_used_is_summed(project):
    made, clock = work(project, [ended(75), ended(-15, max_rss_bytes=99), ended(0)], retry={"attempts": 9, "baseDelayMs": 100})
    assert made.attempts_to_their_end() == ("", False)
    assert clock.waits == [0.1, 0.2] and made.attempts == 3 and made.cpu_s == 1.5 and made.max_rss == 99 and made.trial.exit_code == 0
    assert lines(made) == ["[START] s1", "[RETRY] s1 attempt 1/9: exit code 75; next in 0.10s", "[START] s1",
                           "[RETRY] s1 attempt 2/9: ended by SIGTERM; next in 0.20s", "[START] s1"]


@pytest.mark.parametrize("result, outcome", [
    (ended(3), ("exit code 3", False)),                                                             # not in the list of codes
    (ended(None, "cannot start x"), ("cannot start x", False)),
    (ended(-15, "interrupted", stopped=True), ("interrupted", True)),
    (ended(75, survivors=[4711]), ("processes would not end: 4711", False))], ids=["other code", "not started", "stopped", "survivors"])
def test_what_is_not_tried_again(project, result, outcome):
    made, clock = work(project, [result], retry={"attempts": 5, "baseDelayMs": 100, "exitCodes": [75]})
    assert made.attempts_to_their_end() == outcome and clock.waits == []


def test_a_signal_during_the_delay_ends_the_loop(project):
    made, clock = work(project, [ended(75)], retry={"attempts": 5, "baseDelayMs": 100})
    clock.after_wait = lambda: setattr(made.run.signals, "came", signal.SIGINT)
    assert made.attempts_to_their_end() == ("interrupted", True) and made.attempts == 1


@pytest.mark.parametrize("has_pool", [False, True])
def test_the_real_clock_waits_to_the_end_though_a_signal_has_come(has_pool):
    """Else whoever waits for a lock would ask for it thousands of times a second, and the attempts be looked after by nobody."""
    clock = model.Clock(run_signals.Signals())
    clock.signals.came = signal.SIGINT
    if has_pool:
        clock.pool = attempts.Pool(clock.signals, None)
    began = time.monotonic()
    clock.wait(0.05)
    assert time.monotonic() - began > 0.05 - time.get_clock_info("monotonic").resolution - 0.001


# --- through the program ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize("more", [{}, {"forEach": ["in.txt"]}], ids=["one", "tasks"])
def test_logs_that_somebody_tidies_away_meanwhile_cost_no_attempt(project, more):
    project.write("in.txt", "x\n")
    project.spec({"processor": project.processor("p", "import shutil\nshutil.rmtree('state/logs', ignore_errors=True)\nprint('said')\nsys.exit(os.environ['PIPELINE_ATTEMPT'] == '1')\n"),
                  "retry": {"attempts": 2, "baseDelayMs": 1}, **more})
    done = project.run("--run-id", "r", cwd=str(project.root))
    assert done.code == 0 and "[RETRY] s1" in done.out and "[DONE] s1" in done.out, done


def test_the_line_of_a_retry_and_the_record_of_attempts(project):
    project.write("in.txt", "x\n")
    project.spec({"processor": project.processor("p", "open(out + '/o', 'w').write(os.environ['PIPELINE_ATTEMPT'])\n"
                                                 "sys.exit(75 if 'PIPELINE_SIMULATED_FAIL' in os.environ else 0)"),
                  "inputs": ["in.txt"], "simulateFailAttempts": 2, "retry": {"attempts": 3, "baseDelayMs": 100}})
    done = project.ok("--run-id", "r")
    assert [line for line in done.steps if not line.startswith("[NOTE]")][:5] == ["[START] s1", "[RETRY] s1 attempt 1/3: exit code 75; next in 0.10s", "[START] s1",
                                         "[RETRY] s1 attempt 2/3: exit code 75; next in 0.20s", "[START] s1"], done
    assert project.json("state/stage_s1.json")["attempts"] == 3 and project.json("state/metrics_r.json")["stages"][0]["attempts"] == 3
    assert project.read("data/s1/o") == "3"
    assert sorted(os.listdir(str(project.path("state/logs/r")))) == ["s1.1.log", "s1.2.log", "s1.3.log"]
    assert project.json("state/run_r.json")["durationMs"] >= 300


def test_a_stage_that_never_succeeds_fails_after_its_last_attempt(project):
    project.write("in.txt", "x\n")
    project.spec({"processor": project.processor("p", "sys.exit(4)"), "inputs": ["in.txt"], "retry": {"attempts": 3, "baseDelayMs": 0}},
                 {"processor": "bin/p.py", "inputs": ["in.txt"]})
    done = project.run("--run-id", "r")
    assert done.code == 1 and done.out.count("[RETRY]") == 2 and "[FAIL] s1: exit code 4" in done.out and "s2" not in done.out.split("Run")[0], done
    record = project.json("state/stage_s1.json")
    assert (record["lastStatus"], record["attempts"], record["lastError"]) == ("failed", 3, "exit code 4")


def test_only_listed_codes_are_tried_again(project):
    project.write("in.txt", "x\n")
    project.spec({"processor": project.processor("p", "sys.exit(75)"), "inputs": ["in.txt"], "retry": {"attempts": 3, "baseDelayMs": 0, "exitCodes": [9]}})
    done = project.run()
    assert done.code == 1 and "[RETRY]" not in done.out, done


def test_without_a_checkpoint_each_attempt_starts_from_nothing(project):
    project.write("in.txt", "x\n")
    project.spec({"processor": project.processor("p", "open(out + '/o', 'a').write('x')\nos.makedirs(out + '/sub', exist_ok=True)\n"
                                                 "open(out + '/sub/' + os.environ['PIPELINE_ATTEMPT'], 'w').write('x')\n"
                                                 "sys.exit(os.environ['PIPELINE_ATTEMPT'] != '3')"),
                  "inputs": ["in.txt"], "retry": {"attempts": 3, "baseDelayMs": 0}})
    project.ok()
    assert project.read("data/s1/o") == "x"
    assert [one["path"] for one in project.json("state/stage_s1.json")["outputs"]] == ["o", "sub/3"]


RESUMABLE = """
# Copies one line for each attempt, with a checkpoint after it, and a half line that no checkpoint vouches for.
offset = int(os.environ["PIPELINE_LINE_OFFSET"])
lines = open(inputs[0]).read().splitlines(True)
with open(out + "/o", "a") as file:
    file.write(lines[offset])
size = os.path.getsize(out + "/o")
progress = os.environ["PIPELINE_PROGRESS_FILE"]
open(progress + ".x", "w").write(json.dumps({"lineOffset": offset + 1, "outputs": {"o": size}, "durable": True}))
os.replace(progress + ".x", progress)
if offset + 1 < len(lines):
    open(out + "/o", "a").write("half")
    sys.exit(75)
"""


def test_a_retry_resumes_from_the_checkpoint(project):
    project.write("in.txt", "one\ntwo\nthree\n")
    project.spec({"processor": project.processor("p", RESUMABLE), "inputs": ["in.txt"], "checkpoint": {"enabled": True}, "retry": {"attempts": 3, "baseDelayMs": 0}})
    done = project.ok("--run-id", "r")
    assert [line for line in done.out.splitlines() if line.startswith(("[START]", "[RESUME]"))] == [
        "[START] s1", "[RESUME] s1 from line 1", "[RESUME] s1 from line 2"], done
    assert project.read("data/s1/o") == "one\ntwo\nthree\n"


def test_a_retry_does_not_resume_from_what_the_outputs_contradict(project):
    project.write("in.txt", "one\n")
    project.spec({"processor": project.processor("p", """
progress = os.environ["PIPELINE_PROGRESS_FILE"]
assert not os.path.exists(progress)         # set aside: whoever reads it takes it for its own work
open(out + "/o", "w").write("12")
open(progress, "w").write(json.dumps({"lineOffset": 1, "outputs": {"o": 3}}))
sys.exit(75 if os.environ["PIPELINE_ATTEMPT"] == "1" else 0)
"""), "inputs": ["in.txt"], "checkpoint": {"enabled": True}, "retry": {"attempts": 2, "baseDelayMs": 0}})
    done = project.ok()
    assert done.out.count("[START] s1") == 2 and "[NOTE] s1: checkpoint not used" in done.out and "[RESUME]" not in done.out, done


@pytest.mark.parametrize("end", ["", "\nsys.exit(75)"], ids=["well", "failed"])
def test_a_changed_input_is_not_worth_a_retry(project, end):
    project.write("in.txt", "x\n")
    project.spec({"processor": project.processor("p", "open('in.txt', 'a').write('more')\nopen(out + '/o', 'w').write('x')" + end),
                  "inputs": ["in.txt"], "retry": {"attempts": 3, "baseDelayMs": 0}})
    done = project.run()
    assert done.code == 1 and "[FAIL] s1: input changed during the run: in.txt" in done.out and "[RETRY]" not in done.out, done


def test_the_delays_that_a_log_tells_can_be_foretold(project):
    project.write("in.txt", "x\n")
    project.spec({"processor": project.processor("p", "sys.exit(75)"), "inputs": ["in.txt"],
                  "retry": {"attempts": 3, "baseDelayMs": 10, "maxDelayMs": 15, "jitterMs": 40}}, name="nightly")
    said = [line.rpartition(" in ")[2] for line in project.run().out.splitlines() if "[RETRY]" in line]
    assert said == ["%.2fs" % ((base + jitter("nightly", "s1", attempt, 40)) / 1000.0) for attempt, base in ((1, 10), (2, 15))]
    assert json.loads(project.read("state/stage_s1.json"))["attempts"] == 3
