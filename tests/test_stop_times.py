"""Windows of time: when --stop-by and --stop-after end a run, and that a run which they end is resumed."""
from __future__ import annotations

import calendar
import json
import subprocess
import time
import types

import attempts
import pytest
import run_signals
import stop_times
from conftest import Done

HOUR = 3600


class FakeClock:
    def __init__(self, wall=0.0, monotonic=0.0):
        self.wall, self.mono = wall, monotonic

    def time(self):
        return self.wall

    def monotonic(self):
        return self.mono


def utc(text):
    return float(calendar.timegm(time.strptime(text, "%Y-%m-%d %H:%M:%S")))


def shown(moment, local):
    return time.strftime("%d %H:%M:%S", local(moment))


def berlin(moment):
    """Central Europe in 2026: UTC+1, from 29 March 01:00 UTC to 25 October 01:00 UTC UTC+2."""
    is_summer = utc("2026-03-29 01:00:00") <= moment < utc("2026-10-25 01:00:00")
    return time.gmtime(moment + (2 if is_summer else 1) * HOUR)


# --- the arithmetic --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("now, wanted, found", [
    ("2026-05-04 05:59:59", "06:00", "04 06:00:00"), ("2026-05-04 06:00:00", "06:00", "05 06:00:00"), ("2026-05-04 06:00:30", "06:00", "05 06:00:00"),
    ("2026-05-04 22:00:00", "6:00", "05 06:00:00"), ("2026-05-04 23:59:30", "00:00", "05 00:00:00"), ("2026-05-04 00:00:00", "23:59", "04 23:59:00"),
    ("2026-05-31 12:00:00", "11:59", "01 11:59:00")])
def test_the_next_time_of_the_day(now, wanted, found):
    assert shown(stop_times.next_time(wanted, utc(now), time.gmtime), time.gmtime) == found
    assert stop_times.next_time(wanted, utc(now) + 0.25, time.gmtime) == stop_times.next_time(wanted, utc(now), time.gmtime)


@pytest.mark.parametrize("now, wanted, found", [
    # 29 March: 01:59 is followed by 03:00; 02:30 is not shown at all
    ("2026-03-28 22:00:00", "02:30", "29 03:00:00"), ("2026-03-28 22:00:00", "02:00", "29 03:00:00"), ("2026-03-28 22:00:00", "03:00", "29 03:00:00"),
    ("2026-03-28 22:00:00", "06:00", "29 06:00:00"),
    # 25 October: 02:30 is shown at 00:30 UTC and at 01:30 UTC
    ("2026-10-24 22:00:00", "02:30", "25 02:30:00"), ("2026-10-24 22:00:00", "06:00", "25 06:00:00")])
def test_days_on_which_the_clocks_change(now, wanted, found):
    assert shown(stop_times.next_time(wanted, utc(now), berlin), berlin) == found


def test_of_a_time_that_comes_twice_the_first_to_come_is_meant():
    first, second = utc("2026-10-25 00:30:00"), utc("2026-10-25 01:30:00")
    assert stop_times.next_time("02:30", utc("2026-10-24 22:00:00"), berlin) == first
    assert stop_times.next_time("02:30", first, berlin) == second
    assert stop_times.next_time("02:30", second, berlin) == utc("2026-10-26 01:30:00")


@pytest.mark.skipif(not hasattr(time, "tzset"), reason="this system cannot set the time zone of a process")
@pytest.mark.parametrize("zone, now, wanted, found", [
    ("CET-1CEST,M3.5.0,M10.5.0/3", "2026-03-28 22:00:00", "02:30", "2026-03-29 01:00:00"),
    ("NST3:30NDT,M3.2.0,M11.1.0", "2026-05-04 05:00:00", "06:00", "2026-05-04 08:30:00")])
def test_the_systems_own_local_time(monkeypatch, zone, now, wanted, found):
    monkeypatch.setenv("TZ", zone)
    try:
        time.tzset()
        assert stop_times.next_time(wanted, utc(now)) == utc(found)
    finally:
        monkeypatch.undo()
        time.tzset()


def test_the_length_of_time_is_measured_by_the_monotonic_clock():
    clock = FakeClock(wall=1000.0, monotonic=50.0)
    stop = stop_times.StopTime(clock, None, 7200.0)
    clock.wall += 10 ** 6
    assert stop.seconds_left() == 7200.0 == stop.pause_s()
    clock.mono += 7199
    assert stop.seconds_left() == 1.0
    clock.mono += 1
    assert stop.seconds_left() == 0.0 and stop.text == "--stop-after 2h"


def test_the_time_of_the_day_is_read_from_the_wall_clock_at_each_look():
    clock = FakeClock(wall=utc("2026-05-04 05:00:00"))
    stop = stop_times.StopTime(clock, "06:00", None, time.gmtime)
    assert stop.seconds_left() == HOUR and stop.pause_s() == stop_times.LOOK_S
    clock.wall = utc("2026-05-04 06:30:00")     # set forward: no second of the monotonic clock has passed
    assert stop.seconds_left() == 0.0 and stop.text == "--stop-by 06:00"
    clock.wall = utc("2026-05-04 05:00:00")     # and set back: what was stopped stays stopped
    assert stop.seconds_left() == 0.0


def test_of_two_ends_the_first_counts():
    clock = FakeClock(wall=utc("2026-05-04 05:00:00"))
    stop = stop_times.StopTime(clock, "06:00", 90.0, time.gmtime)
    assert stop.seconds_left() == 90.0
    clock.mono += 90
    assert stop.seconds_left() == 0.0 and stop.text == "--stop-after 90s"
    assert stop_times.of_options(types.SimpleNamespace(stop_by=None, stop_after_s=None), clock) is None


def test_the_end_of_the_time_looks_like_a_signal_and_does_not_hide_one():
    clock = FakeClock()
    signals = run_signals.Signals(stop_times.StopTime(clock, None, 60.0))
    assert signals.number == 0 and signals.count == 0
    clock.mono = 60.0
    assert signals.number == run_signals.TIME_UP and signals.count == 1 and signals.text() == "stopped by the clock (--stop-after 1m)"
    signals._note(2, None)                      # Ctrl-C after it: the end of the grace
    assert signals.number == run_signals.TIME_UP and signals.count == 2
    first = run_signals.Signals(stop_times.StopTime(clock, None, 60.0))
    first._note(15, None)
    clock.mono = 500.0
    assert first.number == 15 and first.text() == "interrupted"


def test_nobody_sleeps_beyond_the_end(monkeypatch):
    clock, slept = FakeClock(), []
    signals = run_signals.Signals(stop_times.StopTime(clock, None, 0.05))
    monkeypatch.setattr(attempts.time, "sleep", slept.append)
    signals.wait([], None)
    signals.wait([], 0.01)
    assert slept == [0.05, 0.01]


# --- with the real program

# The time is over when the file "over" is there: a processor says when, and no machine is too slow for it.
DRIVER = """
import os, runpy, sys
runner, over = sys.argv[1], sys.argv[2]
sys.path.insert(0, os.path.dirname(runner))
import stop_times
def seconds_left(self):
    if not self.text and not os.path.exists(over):
        return 0.02
    self.text = self.by_text
    return 0.0
stop_times.StopTime.seconds_left = seconds_left
sys.argv[:] = [runner] + sys.argv[3:]
runpy.run_path(runner, run_name="__main__")
"""
SLOW = """
import gc, os, time
from processor_kit import lines
def slow(line):
    if line == "2\\n" and not os.environ.get("PIPELINE_RESUME"):
        open(os.path.join(os.environ["PIPELINE_ROOT"], "over"), "w").close()
        work = next(one for one in gc.get_objects() if type(one).__name__ == "_Work")
        while not work.signal:          # the kit has noted that it is asked to stop, and does after this line
            time.sleep(0.01)
    return line
lines(slow, "r.txt")
"""


def run_until_over(project, *arguments):
    """Run the real program with --stop-by, until the file "over" is there."""
    project.write("driver.py", DRIVER)
    python, runner, *rest = project.argv(*arguments, "--stop-by", "06:00")
    done = subprocess.run([python, str(project.path("driver.py")), runner, str(project.path("over"))] + rest, stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=120, env=project.environment())
    return Done(rest, done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace"))


def results(project, run="r"):
    record = project.json("state/run_%s.json" % run)
    return record["state"], [(one["status"], one["reason"]) for one in record["stages"]]


BY_CLOCK = "stopped by the clock (--stop-by 06:00)"


def test_a_run_is_stopped_at_its_time_and_the_next_goes_on(project):
    project.write("data/in.txt", "1\n2\n3\n")
    project.write("bin/slow.py", SLOW)
    project.spec({"processor": "bin/slow.py", "inputs": ["data/in.txt"], "checkpoint": {"enabled": True, "lineInterval": 1}, "graceSec": 60},
                 {"processor": "bin/stage_copy.py", "inputs": ["data/in.txt"]})
    done = run_until_over(project, "--run-id", "r")
    assert done.code == 7 and "[STOP] s1: " + BY_CLOCK in done.out and "[STOP] " + BY_CLOCK in done.out, done
    assert "[FAIL]" not in done.out and "(0 ok, 0 skipped, 0 failed, 1 interrupted, 1 not run)" in done.out
    (run,) = json.loads(project.ok("history", "--json").out)["runs"]
    assert (run["failed"], run["interrupted"], run["notRun"]) == (0, 1, 1)
    assert results(project) == ("interrupted", [("interrupted", BY_CLOCK), ("notRun", BY_CLOCK)])
    assert project.json("state/stage_s1.json")["lastStatus"] == "interrupted"
    done = project.ok("--run-id", "r")
    assert "[RESUME] s1 from line" in done.out and project.read("data/s1/r.txt") == "1\n2\n3\n"
    project.ok("verify")


def test_who_does_not_stop_is_ended_after_the_grace(project):
    body = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nopen('over', 'w').close()\nwhile True:\n    time.sleep(1)\n"
    project.spec({"processor": project.processor("stubborn", body), "graceSec": 0.1, "retry": {"attempts": 3}})
    assert run_until_over(project, "--run-id", "r").code == 7
    assert project.json("state/run_r.json")["stages"][0]["attempts"] == 1 and results(project)[1] == [("interrupted", BY_CLOCK)]


def test_waits_between_attempts_end_at_the_time(project):
    body = "open('over', 'w').close()\nsys.exit(3)\n"
    project.spec({"processor": project.processor("bad", body), "retry": {"attempts": 2, "baseDelayMs": 600000, "maxDelayMs": 600000}})
    assert run_until_over(project, "--run-id", "r").code == 7
    assert results(project) == ("interrupted", [("interrupted", BY_CLOCK)])


def test_when_the_time_is_over_no_stage_is_started(project):
    project.write("over", "")
    project.spec({"processor": "bin/stage_copy.py", "inputs": ["pipeline.json"]})
    done = run_until_over(project, "--run-id", "r")
    assert done.code == 7 and "[START]" not in done.out and "[STOP] " + BY_CLOCK in done.out, done
    assert results(project) == ("interrupted", [("notRun", BY_CLOCK)]) and not project.exists("state/stage_s1.json")


def test_the_real_clock_stops_what_would_never_end(project):
    project.spec({"processor": project.processor("endless", "while True:\n    time.sleep(1)\n"), "graceSec": 0})
    done = project.run("--run-id", "r", "--stop-after", "1s")
    assert done.code == 7 and "stopped by the clock (--stop-after 1s)" in done.out
    # What is done before its time is over is done.
    project.spec({"processor": "bin/stage_copy.py", "inputs": ["pipeline.json"]})
    assert "state: completed" in project.ok("--stop-after", "2h").out
