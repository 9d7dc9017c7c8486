"""One owner per stage and per run id: contention, kills, takeover, strangers, unlock."""
from __future__ import annotations

import json
import errno
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
from conftest import GROUP, KILLED, PATIENCE_S, RUNNER, USERS, as_user, hand_over, run_as, wait_until

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))

import model  # noqa: E402
import primitives  # noqa: E402
import process_table  # noqa: E402
import process_traits  # noqa: E402
import process_tree  # noqa: E402
import run_history  # noqa: E402
import stage_locks  # noqa: E402
import state_store  # noqa: E402
from stage_locks import FileLock, LockHeld, StageLock  # noqa: E402

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="owners, rights, pipes, signals or inherited descriptors of POSIX")
linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")

BOOT = state_store.boot_id()


class FakeClock:
    """Time that passes only by waiting; after_wait is called each time."""

    def __init__(self, after_wait=lambda clock: None):
        self.now, self.waits, self.after_wait = 1000.0, [], after_wait

    def monotonic(self):
        return self.now

    def time(self):
        return 0.0

    def wait(self, seconds):
        self.now += seconds
        self.waits.append(seconds)
        self.after_wait(self)


def is_gone(pid: int) -> bool:
    return process_table.start_time(pid) is None


@pytest.fixture
def root(tmp_path) -> Path:
    (tmp_path / "locks").mkdir()
    return tmp_path


def stage_lock(root, clock=None, run_id="r1", stage="s1") -> StageLock:
    return StageLock(str(root), stage, run_id, BOOT, clock or model.Clock(), process_tree)


DRIVER = """
import json, os, random, signal, subprocess, sys, time
sys.path.insert(0, %r)
import model, process_table, process_tree, stage_locks, state_store
BOOT = state_store.boot_id()
def stage_lock(run_id="driver", stage="s1"):
    return stage_locks.StageLock(os.getcwd(), stage, run_id, BOOT, model.Clock(), process_tree)
""" % str(ROOT / "src")


def driver(root, body, *arguments) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", DRIVER + body, *map(str, arguments)], cwd=str(root), stdin=subprocess.PIPE,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def drive(root, body, *arguments) -> str:
    process = driver(root, body, *arguments)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, (process.returncode, out.decode(), err.decode())
    return out.decode()


def listing(folder) -> list:
    return sorted(os.listdir(str(folder)))


# --- one lock --------------------------------------------------------------------------------------------------------

def test_while_held_the_folder_names_the_owner_and_afterwards_it_is_gone(root):
    lock = stage_lock(root, FakeClock())
    lock.acquire(0)
    owner = json.loads((root / "locks" / "s1.lock" / "owner.json").read_text())
    assert owner == {"schema": 1, "pid": os.getpid(), "processStart": process_table.start_time(os.getpid()), "host": stage_locks.host_name(),
                     "pidNamespace": stage_locks.pid_namespace(), "bootId": BOOT, "runId": "r1", "token": lock.token, "since": "1970-01-01T00:00:00Z"}
    assert len(lock.token) == 16 and (root / "locks" / ".s1.guard").read_text() == lock.token
    assert listing(root / "locks" / "s1.lock") == ["owner.json"]
    lock.release()
    assert listing(root / "locks") == [".s1.guard"] and (root / "locks" / ".s1.guard").read_bytes() == b""
    lock.release()          # a second time does nothing


def test_each_owner_has_a_token_of_its_own(root):
    tokens = set()
    for _ in range(5):
        lock = stage_lock(root)
        lock.acquire(0)
        tokens.add(lock.token)
        lock.release()
    assert len(tokens) == 5


def test_a_held_stage_is_waited_for_as_long_as_asked_then_its_owner_is_named(root):
    held = stage_lock(root, FakeClock())
    held.acquire(0)
    clock = FakeClock()
    with pytest.raises(LockHeld) as caught:
        stage_lock(root, clock, "r2").acquire(1.0)
    assert str(caught.value) == "stage s1 is held by pid %d on %s (run r1, since 1970-01-01T00:00:00Z)" % (os.getpid(), stage_locks.host_name())
    assert caught.value.exit_code == 4
    assert 1.0 <= sum(clock.waits) <= 1.0 + 2 * stage_locks.LOCK_POLL_S
    held.release()


def test_who_waits_gets_the_stage_when_it_is_released(root):
    held = stage_lock(root)
    held.acquire(0)
    clock = FakeClock(lambda clock: held.release() if len(clock.waits) == 3 else None)
    late = stage_lock(root, clock, "r2")
    late.acquire(5)
    assert len(clock.waits) == 3 and stage_locks.read_owner(late.folder)["runId"] == "r2"
    late.release()


def test_a_failed_acquire_leaves_no_descriptor_open(root):
    held = stage_lock(root)
    held.acquire(0)
    before = listing("/proc/self/fd") if sys.platform.startswith("linux") else []
    late = stage_lock(root)
    with pytest.raises(LockHeld):
        late.acquire(0)
    assert late.descriptor == -1
    assert before == (listing("/proc/self/fd") if before else [])
    held.release()


def test_a_signal_ends_the_wait(root):
    held = stage_lock(root)
    held.acquire(0)
    clock = FakeClock()
    clock.signals = types.SimpleNamespace(number=0)
    clock.after_wait = lambda clock: setattr(clock.signals, "number", signal.SIGINT if len(clock.waits) == 2 else 0)
    with pytest.raises(stage_locks.WaitStopped):
        stage_lock(root, clock).acquire(1000)
    assert len(clock.waits) == 2
    held.release()


def test_holder_names_the_living_only(root):
    lock = stage_lock(root)
    assert lock.holder() is None
    lock.acquire(0)
    assert stage_lock(root).holder()["runId"] == "r1"
    lock.release()
    assert stage_lock(root).holder() is None
    drive(root, "stage_lock().acquire(0); os._exit(0)")
    assert (root / "locks" / "s1.lock").is_dir() and stage_lock(root).holder() is None


def test_is_free_takes_nothing_and_clears_what_a_dead_owner_left(root):
    held = stage_lock(root)
    held.acquire(0)
    assert not stage_lock(root).is_free()
    assert stage_locks.read_owner(held.folder)["token"] == held.token
    held.release()
    drive(root, "stage_lock().acquire(0); os._exit(0)")
    assert stage_lock(root).is_free() and not (root / "locks" / "s1.lock").exists()


@posix_only
def test_an_abandoned_lock_stays_held_while_a_process_of_the_stage_lives(root):
    drive(root, """
lock = stage_lock()
lock.acquire(0)
child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE, pass_fds=(lock.descriptor,))
lock.abandon()
try:
    stage_lock("second").acquire(0)
except stage_locks.LockHeld as error:
    assert "pid %d" % os.getpid() in str(error), error
else:
    raise SystemExit("two owners")
child.communicate()
third = stage_lock("third")         # the child is gone; the folder is still ours, by the nonce
third.acquire(0)
third.release()
assert os.listdir("locks") == [".s1.guard"], os.listdir("locks")
""")


@posix_only
@pytest.mark.parametrize("is_root", [True, False])
def test_a_lock_file_that_root_makes_belongs_to_the_owner_of_the_folder(root, monkeypatch, is_root):
    given = []
    monkeypatch.setattr(os, "geteuid", lambda: 0 if is_root else 1000)
    monkeypatch.setattr(os, "fchown", lambda descriptor, user, group: given.append((os.fstat(descriptor).st_ino, user, group)))
    (root / "locks" / ".there.guard").touch()
    for name in ("there", "new", "new"):
        os.close(stage_locks.open_guard(str(root / "locks" / (".%s.guard" % name))))
    folder, new = (root / "locks").stat(), (root / "locks" / ".new.guard").stat()
    assert given == ([(new.st_ino, folder.st_uid, folder.st_gid)] if is_root else []) and new.st_mode & 0o777 == 0o600


@posix_only
@pytest.mark.parametrize("umask", [0o002, 0o022, 0o077])
@pytest.mark.parametrize("folder, mode", [(0o755, 0o600), (0o700, 0o600), (0o2755, 0o600), (0o775, 0o660), (0o2775, 0o660), (0o770, 0o660)])
def test_a_lock_file_is_the_groups_only_where_the_folder_is(root, folder, mode, umask):
    os.chmod(str(root / "locks"), folder)
    before = os.umask(umask)
    try:
        lock, byte_locks = stage_lock(root), stage_locks.FolderLocks(str(root))
        lock.acquire(0)
        assert FileLock(str(root), "r.run", FakeClock()).try_acquire() and byte_locks.try_acquire("data/a")
    finally:
        os.umask(before)
    lock.release()
    byte_locks.close()
    files = {path.name: path.stat().st_mode & 0o777 for path in (root / "locks").iterdir()}
    assert files == {name: mode for name in (".s1.guard", ".r.run", ".folders")}
    os.chmod(str(root / "locks" / ".s1.guard"), 0o640)       # what was there stays as somebody has set it
    os.close(stage_locks.open_guard(lock.guard))
    assert (root / "locks" / ".s1.guard").stat().st_mode & 0o777 == 0o640


@posix_only
def test_a_lock_file_of_another_group_than_the_folders_is_opened_for_nobody_else(root, monkeypatch):
    def refuse(descriptor, user, group):
        raise PermissionError(1, "Operation not permitted")
    os.chmod(str(root / "locks"), 0o775)
    real = os.stat
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(os, "fchown", refuse)
    monkeypatch.setattr(os, "stat", lambda path: os.stat_result([*real(path)[:5], real(path).st_gid + 1, *real(path)[6:]]))
    os.close(stage_locks.open_guard(str(root / "locks" / ".s1.guard")))
    monkeypatch.undo()
    assert (root / "locks" / ".s1.guard").stat().st_mode & 0o777 == 0o600


@linux_only
def test_operators_of_one_group_take_turns(shared):
    """In folders that are the group's, with a umask that leaves them to it, as docs/operating.md has it; each may be killed at work."""
    waiting_project(shared)
    shared.spec({"name": "s1", "processor": "bin/p.py", "inputs": ["in.txt"], "passEnv": ["LANG"]},
                {"name": "many", "processor": "bin/stage_copy.py", "forEach": ["data/many/*.txt"], "outputDir": "data/s2"})
    for number in range(3):
        shared.write("data/many/%d.txt" % number, "x")
    shared.write("go", "")
    hand_over(shared)
    for path in [shared.root, *shared.root.rglob("*")]:
        os.chmod(str(path), 0o2775 if path.is_dir() else 0o664)
    assert run_as(0, shared, "--run-id", "a", umask=0o002).code == 0
    assert shared.path("state/env.key").stat().st_mode & 0o777 == 0o600
    shared.path("state/env.key").chmod(0o640)
    for number, run_id in enumerate(("b", "c", "a"), 1):
        shared.write("in.txt", run_id)
        shared.write("data/many/%d.txt" % number, "changed by %s" % run_id)
        done = run_as(number % 2, shared, "--run-id", run_id, umask=0o002)
        assert done.code == 0 and "2 ok" in done.out, done
    shared.path("go").unlink()
    shared.path("data/s1/pid").unlink()
    shared.write("in.txt", "to be killed")
    argv = [*as_user(0), *shared.argv("--run-id", "killed")]
    with subprocess.Popen(argv, cwd=str(shared.root), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=shared.environment(),
                          preexec_fn=lambda: os.umask(0o002)) as process:
        wait_until(lambda: shared.exists("data/s1/pid") or process.poll() is not None, "the processor's start")
        pid = int(shared.read("data/s1/pid"))
        process.kill()
    wait_until(lambda: is_gone(pid), "the end of the processor")
    shared.write("go", "")
    done = run_as(1, shared, "--run-id", "after", umask=0o002)
    assert done.code == 0 and "[DONE] s1" in done.out and shared.json("state/run_killed.json")["state"] == "interrupted", done
    assert run_as(0, shared, "clean", "--yes", umask=0o002).code == run_as(1, shared, "gc", "--keep-runs", "1", "--yes", umask=0o002).code == 0
    assert run_as(0, shared, "verify", umask=0o002).code == 0
    assert {path.name for path in shared.path("locks").iterdir() if path.stat().st_mode & 0o777 != 0o660 or path.stat().st_gid != GROUP} == set()


@posix_only
def test_a_lock_file_that_cannot_be_given_away_is_used_all_the_same(root, monkeypatch):
    def refuse(*about):
        raise PermissionError(1, "Operation not permitted")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "fchown", refuse)
    lock = stage_lock(root)
    lock.acquire(0)
    lock.release()


@linux_only
def test_after_one_run_by_root_the_folders_owner_can_go_on_and_tidy_up(shared):
    shared.write("in.txt", "x")
    shared.spec({"processor": "bin/stage_copy.py", "inputs": ["in.txt"]})
    hand_over(shared)
    assert run_as(0, shared, "--run-id", "a").code == 0
    shared.write("in.txt", "y")
    assert run_as(None, shared, "--run-id", "byroot").code == 0
    assert {path.name: path.stat().st_uid for path in shared.path("locks").iterdir() if path.stat().st_uid != USERS[0]} == {}
    shared.write("in.txt", "z")
    assert run_as(0, shared, "--run-id", "b").code == 0 and run_as(0, shared, "--run-id", "byroot").code == 0
    cleaned = run_as(0, shared, "clean", "--yes")
    assert cleaned.code == 0 and "removed" in cleaned.out, cleaned


def killed_run_of_root(project, run_id):
    """Let root begin a run at which its only stage is at work, and kill it with all that it has started."""
    with project.start("--run-id", run_id, cwd=str(project.root)) as process:
        wait_until(lambda: project.exists("data/s1/pid") or process.poll() is not None, "the processor's start")
        pid = int(project.read("data/s1/pid"))
        process.kill()
        process.communicate()
    wait_until(lambda: is_gone(pid), "the end of the processor")


@linux_only
def test_a_dead_run_whose_lock_is_another_accounts_is_left_open_and_told_of(shared):
    """As an earlier version, or a file system that knows no other owner, leaves it: only root may open it."""
    waiting_project(shared)
    shared.spec(*(stage for stage in shared.json("pipeline.json")["stages"]), {"name": "other", "processor": "bin/stage_copy.py", "inputs": ["in.txt"]})
    hand_over(shared)
    assert run_as(0, shared, "--run-id", "first", "--only", "other").code == 0
    killed_run_of_root(shared, "night")
    os.chown(str(shared.path("locks/.night.run")), 0, 0)
    remedy = "belongs to %s; as root: chown %d %s" % (primitives.account_name(0), USERS[0], shlex.quote(str(shared.path("locks/.night.run"))))
    shared.write("in.txt", "y")
    done = run_as(0, shared, "--run-id", "next", "--only", "other")
    note = "[LEDGER] run night is not closed, for nobody can tell whether it lives: locks/.night.run " + remedy
    assert done.code == 0 and done.out.splitlines().count(note) == 1 and "[DONE] other" in done.out, done
    for words in (["--run-id", "night", "--only", "other"], ["clean", "other", "--yes"]):
        done = run_as(0, shared, *words)
        assert done.code == 5 and done.err == "error: %s: Permission denied; it %s\n" % (shared.path("locks/.night.run"), remedy), done
    os.chown(str(shared.path("locks/.night.run")), USERS[0], GROUP)
    assert run_as(0, shared, "--run-id", "last", "--only", "other", "--force", "other").code == 0
    assert shared.json("state/run_night.json")["state"] == "interrupted"


@linux_only
@pytest.mark.parametrize("mode", [0o755, 0o700])
def test_a_lock_folder_that_a_dead_run_of_another_account_left_is_named_with_owner_and_remedy(shared, mode):
    waiting_project(shared)
    hand_over(shared)
    os.mkdir(str(shared.path("locks")))
    os.chown(str(shared.path("locks")), USERS[0], GROUP)
    killed_run_of_root(shared, "night")
    subprocess.run(["chown", "-R", "%d:%d" % (USERS[0], GROUP), str(shared.root)], check=True)
    folder, owner = shared.path("locks/s1.lock"), shared.json("locks/s1.lock/owner.json")
    for path in (folder, folder / "owner.json"):
        os.chown(str(path), 0, 0)
    os.chmod(str(folder), mode)
    left = "was left by %s, and belongs to %s; as root: chown -R %d %s" % (stage_locks.owner_text(owner), primitives.account_name(0), USERS[0], shlex.quote(str(folder)))
    for run_id in ("night", "next"):
        done = run_as(0, shared, "--run-id", run_id)
        assert done.code == 4 and "error: stage s1: %s %s\n" % (folder, left) in done.err, done
    unlock = run_as(0, shared, "unlock", "s1")
    assert unlock.code == 5 and unlock.err == "error: %s: Permission denied; it %s\n" % (folder, left), unlock
    os.chown(str(folder), USERS[0], GROUP)
    shared.write("go", "")
    done = run_as(0, shared, "--run-id", "last")
    assert done.code == 0 and not folder.exists(), done


@posix_only
def test_a_planted_guard_link_is_refused(root):
    victim = root / "victim"
    victim.write_text("precious")
    (root / "locks" / ".s1.guard").symlink_to(victim)
    with pytest.raises(OSError):
        stage_lock(root).acquire(0)
    assert victim.read_text() == "precious"


def test_windows_locks_one_byte_behind_the_content(tmp_path, monkeypatch):
    calls, answers = [], [None, OSError(36, "deadlock")]

    def locking(descriptor, mode, count):
        calls.append((os.lseek(descriptor, 0, os.SEEK_CUR), mode, count))
        answer = answers.pop(0)
        if answer is not None:
            raise answer
    monkeypatch.setitem(sys.modules, "msvcrt", types.SimpleNamespace(locking=locking, LK_NBLCK=2))
    descriptor = stage_locks.open_guard(str(tmp_path / "g"))
    with monkeypatch.context() as patch:
        patch.setattr(sys, "platform", "win32")
        got = [stage_locks.try_kernel_lock(descriptor), stage_locks.try_kernel_lock(descriptor)]
    os.close(descriptor)
    assert got == [True, False] and calls == [(1 << 30, 2, 1)] * 2


@pytest.mark.parametrize("number, is_held", [(errno.EACCES, True), (36, True), (errno.EINVAL, False), (errno.EBADF, False)])
def test_windows_tells_a_lock_that_is_held_from_a_file_system_without_locks(tmp_path, monkeypatch, number, is_held):
    def locking(descriptor, mode, count):
        raise OSError(number, "told by the system")
    monkeypatch.setitem(sys.modules, "msvcrt", types.SimpleNamespace(locking=locking, LK_NBLCK=2, LK_UNLCK=0))
    (tmp_path / "locks").mkdir()
    lock = stage_lock(tmp_path, FakeClock())
    descriptor = stage_locks.open_guard(str(tmp_path / "g"))
    with monkeypatch.context() as patch:
        patch.setattr(sys, "platform", "win32")
        with pytest.raises(stage_locks.LockHeld if is_held else OSError, match=None if is_held else "No locks available.*\\.s1\\.guard"):
            lock.acquire(0)
        if is_held:
            assert not stage_locks.try_lock_bytes(descriptor, 5, 2)
        else:
            with pytest.raises(OSError, match="No locks available"):
                stage_locks.try_lock_bytes(descriptor, 5, 2)
    os.close(descriptor)


def test_windows_locks_the_bytes_that_stand_for_a_folder_below_2_gib(tmp_path, monkeypatch):
    held = []

    def locking(descriptor, mode, count):
        wanted = set(range(os.lseek(descriptor, 0, os.SEEK_CUR), os.lseek(descriptor, 0, os.SEEK_CUR) + count))
        assert max(wanted) < 1 << 31
        if mode == 0:
            held.remove(wanted)         # the very bytes that were locked
        elif any(wanted & other for other in held):
            raise OSError(36, "deadlock")
        else:
            held.append(wanted)
    monkeypatch.setitem(sys.modules, "msvcrt", types.SimpleNamespace(locking=locking, LK_NBLCK=2, LK_UNLCK=0))
    (tmp_path / "locks").mkdir()
    one, two = stage_locks.FolderLocks(str(tmp_path)), stage_locks.FolderLocks(str(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(sys, "platform", "win32")
        assert one.try_acquire("data/a") and not two.try_acquire("data/A") and not two.try_acquire("data/a/b/c") and not two.try_acquire("data")
        assert two.try_acquire("data/b") and one.try_acquire("data/c/d")
        one.release("data/a")
        assert two.try_acquire("data/a/b/c") and not one.try_acquire("data")
        two.release("data/b")
        two.release("data/a/b/c")
        one.release("data/c/d")
        assert held == [] and two.try_acquire("data")
    one.close()
    two.close()


def test_as_many_runs_as_a_folder_has_bytes_are_at_work_below_it(tmp_path, monkeypatch):
    taken = set()
    monkeypatch.setattr(stage_locks, "try_lock_bytes", lambda descriptor, first, count: first not in taken and not taken.add(first))
    (tmp_path / "locks").mkdir()
    runs = [stage_locks.FolderLocks(str(tmp_path)) for _ in range(stage_locks.FOLDER_BYTES + 1)]
    assert [run.try_acquire("data/%d" % number) for number, run in enumerate(runs)] == [True] * stage_locks.FOLDER_BYTES + [False]
    for run in runs:
        run.close()


# --- owners ----------------------------------------------------------------------------------------------------------

OWNER = {"pid": 1, "token": "t", "bootId": "b"}


@pytest.mark.parametrize("text, is_owner", [
    (json.dumps(OWNER), True), ("", False), ("{", False), ("[]", False), ("{}", False), ('{"pid": 7}', False),
    (json.dumps(dict(OWNER, pid="1")), False), (json.dumps(dict(OWNER, token="")), False), (json.dumps(dict(OWNER, token=5)), False),
    (json.dumps(dict(OWNER, bootId=None)), False), ("\ud800".encode("utf-8", "surrogatepass").decode("latin-1"), False),
    ("[" * 60000, False)])
def test_read_owner_believes_only_what_this_runner_writes(tmp_path, text, is_owner):
    (tmp_path / "owner.json").write_bytes(text.encode("latin-1"))
    assert bool(stage_locks.read_owner(str(tmp_path))) is is_owner


@posix_only
@pytest.mark.parametrize("command", [(), ("status",), ("plan",), ("unlock", "s1")])
def test_an_owner_that_is_a_pipe_is_not_waited_for(project, command):
    project.write("data/in.txt", "x")
    project.spec({"processor": "bin/stage_copy.py", "inputs": ["data/in.txt"]})
    project.path("locks/s1.lock").mkdir(parents=True)
    os.mkfifo(str(project.path("locks/s1.lock/owner.json")))
    done = project.run(*command)
    assert done.code == (0 if command else 4) and ("unlock s1" in done.out or command), done


def test_owner_text():
    assert stage_locks.owner_text({}) == "an owner that has not said who it is"
    owner = {"pid": 12, "host": "h", "runId": "r", "since": "then"}
    assert stage_locks.owner_text(owner) == "pid 12 on h (run r, since then)"
    owner.update(host=stage_locks.host_name(), pidNamespace="pid:[1]")
    assert stage_locks.owner_text(owner) == "pid 12 of another container or pid namespace on %s (run r, since then)" % owner["host"]


def test_who_is_certainly_dead():
    alive = {"pid": os.getpid(), "processStart": process_table.start_time(os.getpid()), "host": stage_locks.host_name(), "bootId": BOOT}
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for change, dead in (({}, False), ({"processStart": None}, False), ({"processStart": "another"}, True), ({"pid": gone.pid}, True),
                         ({"bootId": "another"}, True), ({"host": "another", "pid": gone.pid}, False), ({"host": "another", "bootId": "x"}, False)):
        assert stage_locks.owner_is_dead(dict(alive, **change), BOOT, process_tree) is dead, change
    assert not stage_locks.owner_is_dead({}, BOOT, process_tree)
    guessed = dict(alive, bootId="start-28333333")      # by a clock that was slewed since
    assert not stage_locks.owner_is_dead(guessed, "start-28333334", process_tree) and stage_locks.owner_is_dead(guessed, BOOT, process_tree)
    assert stage_locks.owner_is_dead(dict(guessed, processStart="another"), "start-28333334", process_tree)


@linux_only
@pytest.mark.parametrize("ours, theirs, is_here", [
    ("pid:[1]", "pid:[1]", True), ("pid:[1]", "pid:[2]", False), ("", "pid:[2]", False), ("pid:[1]", "", True), ("pid:[1]", None, True), ("", None, True)])
def test_an_owner_in_another_pid_namespace_is_judged_like_one_on_another_host(root, monkeypatch, ours, theirs, is_here):
    """Its pid is a stranger's here, or nobody's."""
    drive(root, "stage_lock().acquire(0); os._exit(0)")
    monkeypatch.setattr(stage_locks, "pid_namespace", lambda: ours)
    path, lock = root / "locks" / "s1.lock" / "owner.json", stage_lock(root)
    owner = dict(json.loads(path.read_text()), pidNamespace=theirs)
    if theirs is None:
        del owner["pidNamespace"]
    path.write_text(json.dumps(owner))
    assert stage_locks.owner_is_dead(owner, BOOT, process_tree) is is_here
    assert stage_locks.owner_is_dead(dict(owner, bootId="another"), BOOT, process_tree) is is_here
    living = dict(owner, pid=os.getppid(), processStart=process_table.start_time(os.getppid()))
    assert stage_locks.lives_here(living, BOOT, process_tree) is is_here
    # Where pids tell nothing the kernel lock does.
    assert stage_locks.was_left_by_another_host(str(root), "s1", owner) is not is_here
    assert lock.holder() is None and run_history.holders(str(root)) == {}
    held = stage_locks.open_guard(lock.guard)
    assert stage_locks.try_kernel_lock(held)
    assert not stage_locks.was_left_by_another_host(str(root), "s1", owner)
    assert (lock.holder() is None) is is_here and (run_history.living_runs(str(root)) == []) is is_here
    os.close(held)
    lock.acquire(0)
    lock.release()
    assert listing(root / "locks") == [".s1.guard"]


# --- the dead --------------------------------------------------------------------------------------------------------

def test_an_owner_of_whom_the_system_tells_nothing_is_not_dead_and_holds_nothing_without_its_lock(monkeypatch):
    """On Windows another account's process: it may be the owner, or one that has its pid since."""
    owner = {"pid": 12345, "processStart": "1", "host": stage_locks.host_name(), "bootId": BOOT, "token": "x"}
    monkeypatch.setattr(process_table, "start_time", lambda pid: process_table.UNTOLD)
    assert not stage_locks.owner_is_dead(owner, BOOT, process_tree) and not stage_locks.lives_here(owner, BOOT, process_tree)
    monkeypatch.setattr(process_table, "start_time", lambda pid: "1")
    assert not stage_locks.owner_is_dead(owner, BOOT, process_tree) and stage_locks.lives_here(owner, BOOT, process_tree)


def test_a_dead_owners_folder_is_taken_over_at_once(root):
    drive(root, "stage_lock().acquire(0); os._exit(0)")
    assert listing(root / "locks" / "s1.lock") == ["owner.json"]
    lock = stage_lock(root, FakeClock())
    lock.acquire(0)
    assert stage_locks.read_owner(lock.folder)["pid"] == os.getpid() and lock.clock.waits == []
    lock.release()


@pytest.mark.parametrize("change", [{"bootId": "an earlier start"}, {"host": "a name from before"}, {"processStart": "0"}], ids=str)
def test_the_kernel_lock_decides_whatever_the_folder_says(root, change):
    """The folder is ours by its nonce: a restart, a renamed machine or a reused pid does not hold the stage."""
    drive(root, "stage_lock().acquire(0); os._exit(0)")
    path = root / "locks" / "s1.lock" / "owner.json"
    path.write_text(json.dumps(dict(json.loads(path.read_text()), **change)))
    lock = stage_lock(root)
    lock.acquire(0)
    lock.release()
    assert listing(root / "locks") == [".s1.guard"]


def test_a_living_owner_is_believed_where_its_lock_is_not_seen(root, monkeypatch):
    """As through a second mount that does not share locks: what it works at is neither ended nor taken."""
    process = driver(root, "stage_lock().acquire(0); print('held', flush=True); sys.stdin.read()")
    try:
        assert process.stdout.readline().strip() == b"held"
        monkeypatch.setattr(stage_locks, "try_kernel_lock", lambda descriptor: True)
        ended = []
        monkeypatch.setattr(process_tree, "end_of_dead_owner", lambda *arguments: ended.append(arguments))
        with pytest.raises(LockHeld, match="stage s1 is held by pid %d .*another path" % process.pid):
            stage_lock(root).acquire(0)
        with pytest.raises(LockHeld, match="held by pid %d .*not removed" % process.pid):
            stage_locks.unlock(str(root), "s1", BOOT, model.Clock(), process_tree)
        assert stage_lock(root).is_free() and ended == []           # a skip is no business of its owner
        assert stage_locks.read_owner(str(root / "locks" / "s1.lock"))["pid"] == process.pid
    finally:
        process.communicate(timeout=PATIENCE_S)


@pytest.mark.parametrize("is_killed", [False, True])
@pytest.mark.parametrize("name", [".DS_Store", "Thumbs.db", "desktop.ini", "._owner.json", ".nfs0000000000a1b2c300000001", ".fuse_hidden0000000300000001"])
def test_what_a_look_into_the_folder_of_a_lock_leaves_there_is_in_nobodys_way(project, name, is_killed):
    """Finder and Explorer write into a folder that somebody opens; who only looks must not keep the stage from running ever after."""
    body = "open('locks/s1.lock/%s', 'w').write('view')\n%sopen(out + '/o', 'w').close()\n" % (
        name, "os.kill(os.getppid(), 9) if not os.path.exists('killed') and not open('killed', 'w').close() else None\n" if is_killed else "")
    project.spec({"processor": project.processor("look", body)})
    if is_killed:
        assert project.run(cwd=str(project.root)).code == KILLED and project.exists("locks/s1.lock/" + name)
    else:
        project.ok()
        assert not project.exists("locks/s1.lock")
    project.ok("--force", "s1", "--run-id", "again")
    assert not project.exists("locks/s1.lock")


def test_what_somebody_put_into_a_dead_owners_folder_is_not_removed(root):
    drive(root, "stage_lock().acquire(0); os._exit(0)")
    (root / "locks" / "s1.lock" / "notes.txt").write_text("mine")
    with pytest.raises(LockHeld, match="unlock s1"):
        stage_lock(root).acquire(0)
    assert (root / "locks" / "s1.lock" / "notes.txt").read_text() == "mine"


KILL_POINTS = """
left = [0]

def deadly(module, name, real):
    def call(*arguments, **options):
        left[0] -= 1
        if left[0] == 0:
            os._exit(9)
        result = real(*arguments, **options)
        left[0] -= 1
        if left[0] == 0:
            os._exit(9)
        return result
    setattr(module, name, call)

def owner(point):
    for name in "mkdir replace write rmdir unlink ftruncate lseek".split():
        deadly(os, name, getattr(os, name))
    deadly(stage_locks, "open", open)
    left[0] = point
    lock = stage_lock()
    lock.acquire(0)
    lock.release()

def next_owner():
    lock = stage_lock("next")
    lock.acquire(0)
    assert stage_locks.read_owner(lock.folder)["runId"] == "next"
    lock.release()
    assert os.listdir("locks") == [".s1.guard"], os.listdir("locks")

def in_child(work, *arguments):
    pid = os.fork()
    if pid == 0:
        try:
            work(*arguments)
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(3)
        os._exit(0)
    return os.waitpid(pid, 0)[1] >> 8

point, first, second = 0, 9, 9
while first == 9:
    point += 1
    first = in_child(owner, point)
    assert first in (0, 9), (point, first)
    assert in_child(next_owner) == 0, "after a kill at call %d" % point
    if first == 9 and point % 4 == 0:   # killed twice in a row, the second time while taking over what the first left
        second, twice = 9, 0
        while second == 9 and twice < 40:
            twice += 1
            assert in_child(owner, point) == 9
            second = in_child(owner, twice)
            assert second in (0, 9)
            assert in_child(next_owner) == 0, "after kills at calls %d and %d" % (point, twice)
print(point - 1)
"""


@posix_only
def test_a_kill_at_any_call_of_acquire_and_release_never_blocks_the_next_owner(root):
    kills = int(drive(root, KILL_POINTS))
    assert kills >= 20


# --- strangers -------------------------------------------------------------------------------------------------------

def make_nothing(folder):
    folder.mkdir()


def make_content(folder):
    folder.mkdir()
    (folder / "data.txt").write_text("mine")


def make_owner(text):
    def make(folder):
        folder.mkdir()
        (folder / "owner.json").write_text(text)
    return make


def make_file(folder):
    folder.write_text("mine")


def make_link(folder):
    (folder.parent.parent / "elsewhere").mkdir()
    (folder.parent.parent / "elsewhere" / "data.txt").write_text("mine")
    folder.symlink_to(folder.parent.parent / "elsewhere")


STRANGERS = {
    "empty": make_nothing, "content": make_content, "file": make_file, "link": make_link,
    "other owner": make_owner('{"owner": "me"}'), "only a pid": make_owner(json.dumps({"pid": 4194305, "host": stage_locks.host_name()})),
    "empty token": make_owner(json.dumps({"pid": os.getpid(), "token": "", "host": stage_locks.host_name()})),
    "other host": make_owner(json.dumps(dict(OWNER, host="elsewhere", pid=4194305)))}


def everything_below(folder):
    return {str(path.relative_to(folder)): "link" if path.is_symlink() else "folder" if path.is_dir() else path.read_bytes()
            for path in sorted(Path(str(folder)).rglob("*"))}


@pytest.mark.parametrize("make", [pytest.param(make, id=name, marks=[posix_only] if name == "link" else []) for name, make in STRANGERS.items()])
def test_a_strangers_folder_is_waited_for_then_named_and_never_removed(root, make):
    make(root / "locks" / "s1.lock")
    (root / "locks" / ".s1.guard").write_bytes(b"")
    before = everything_below(root)
    clock = FakeClock()
    with pytest.raises(LockHeld) as caught:
        stage_lock(root, clock).acquire(0.5)
    assert "locks/s1.lock" in str(caught.value) and "unlock s1" in str(caught.value)
    assert 0.5 <= sum(clock.waits) <= 0.5 + 2 * stage_locks.LOCK_POLL_S
    assert everything_below(root) == before


@pytest.mark.parametrize("make", [pytest.param(make, id=name, marks=[posix_only] if name == "link" else []) for name, make in STRANGERS.items()])
def test_unlock_removes_what_a_stranger_left_and_nothing_else(root, make):
    make(root / "locks" / "s1.lock")
    said = stage_locks.unlock(str(root), "s1", BOOT, FakeClock(), process_tree)
    assert said.startswith("removed locks/s1.lock") and listing(root / "locks") == [".s1.guard"]
    if (root / "elsewhere").exists():
        assert (root / "elsewhere" / "data.txt").read_text() == "mine"
    lock = stage_lock(root)
    lock.acquire(0)
    lock.release()


def test_a_stranger_that_leaves_in_time_lets_us_in(root):
    folder = root / "locks" / "s1.lock"
    folder.mkdir()
    lock = stage_lock(root, FakeClock(lambda clock: folder.rmdir() if len(clock.waits) == 4 else None))
    lock.acquire(10)
    assert len(lock.clock.waits) == 4
    lock.release()


def test_unlock_of_what_is_not_locked(root):
    assert stage_locks.unlock(str(root), "s1", BOOT, FakeClock(), process_tree) == "stage s1 is not locked"
    assert listing(root / "locks") == []


# --- run ids and the head --------------------------------------------------------------------------------------------

def test_a_file_lock_has_one_owner_and_a_message(root):
    first, clock = FileLock(str(root), "r.run", FakeClock()), FakeClock()
    assert first.try_acquire()
    second = FileLock(str(root), "r.run", clock)
    assert not second.try_acquire()
    with pytest.raises(LockHeld, match="^it is in use$"):
        second.acquire(0.1, "it is in use")
    assert 0.1 <= sum(clock.waits) <= 0.1 + 2 * stage_locks.LOCK_POLL_S
    first.release()
    first.release()
    second.acquire(0, "it is in use")
    second.release()


def test_where_the_file_system_has_no_locks_the_file_is_named_and_closed(root, monkeypatch):
    def refuse(descriptor):
        raise OSError(errno.ENOLCK, "No locks available")
    monkeypatch.setattr(stage_locks, "try_kernel_lock", refuse)
    lock = FileLock(str(root), "r.run", FakeClock())
    with pytest.raises(OSError) as caught:
        lock.try_acquire()
    assert caught.value.filename == lock.path and lock.descriptor == -1


def test_a_dead_process_holds_no_file_lock(root):
    drive(root, "assert stage_locks.FileLock(os.getcwd(), 'r.run', model.Clock()).try_acquire(); os._exit(0)")
    assert FileLock(str(root), "r.run", FakeClock()).try_acquire()


# --- contention ------------------------------------------------------------------------------------------------------
# Forked contenders: each one that is inside makes the file "inside" with O_EXCL and writes begin and end to a log. The
# driver kills them at random, notes each kill before it is done, and starts others; everything is bounded by counts.

CONTENTION = """
CONTENDERS, KILLS, BEGINS, SEED = map(int, sys.argv[1:])
choose = random.Random(SEED)
log = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

def note(*words):
    os.write(log, (" ".join(map(str, words)) + "\\n").encode())

def living(pid):
    return process_table.start_time(pid) is not None

def inside_pid():
    try:
        return int(open("inside").read() or 0)
    except (OSError, ValueError):
        return 0

def enter():
    # A file that is there belongs to a killed owner: it must be dead for user code, though the kernel may still bury it.
    for _ in range(4000):
        try:
            descriptor = os.open("inside", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
            os.write(descriptor, b"%d" % os.getpid())
            os.close(descriptor)
            return
        except FileExistsError:
            before = inside_pid()
            if before and living(before):
                time.sleep(0.001)
                if inside_pid() != before:
                    break
                continue
            os.unlink("inside")
    note("OVERLAP", os.getpid(), inside_pid())
    os._exit(7)

def processor(owner):
    # Keeps the stage's descriptor, and works on until it is ended.
    os.setsid()
    while True:
        note("work", owner)
        time.sleep(0.002)

def contend():
    choice = random.Random(os.getpid() * 1000003 + SEED)
    while True:
        lock = stage_lock("r%d" % os.getpid())
        lock.acquire(1000)
        enter()
        note("begin", os.getpid())
        owner, child = os.getpid(), 0
        if choice.random() < 0.1:
            child = os.fork()
            if child == 0:
                processor(owner)
        for _ in range(choice.randrange(3)):
            note("middle", os.getpid())
            os.sched_yield() if hasattr(os, "sched_yield") else None
        if child:
            time.sleep(0.01)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        note("end", os.getpid())
        os.unlink("inside")
        lock.release()

def start():
    pid = os.fork()
    if pid == 0:
        try:
            contend()
        except BaseException:
            import traceback
            traceback.print_exc()
        os._exit(8)
    return pid

def begins():
    return open("log").read().count("begin")

def progress(more):
    wanted, deadline = begins() + more, time.monotonic() + 60
    while begins() < wanted:
        if time.monotonic() > deadline:
            raise SystemExit("no progress after %d begins" % begins())
        check()
        time.sleep(0.0005)

def check():
    for pid in list(alive):
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            raise SystemExit("contender %d ended by itself with status %d" % (pid, status))

def clean_up():
    while process_table.own_children():
        for pid in process_table.own_children():
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)

def main():
    kills = 0
    while kills < KILLS or begins() < BEGINS:
        progress(choose.randrange(3))
        if kills >= KILLS:
            continue
        # More than every other kill aims at who is inside: the others mostly wait.
        victim = inside_pid() if choose.random() < 0.6 else 0
        if victim not in alive:
            victim = choose.choice(sorted(alive))
        for _ in range(choose.randrange(400)):
            pass
        note("kill", victim)
        os.kill(victim, signal.SIGKILL)
        os.waitpid(victim, 0)
        alive.discard(victim)
        alive.add(start())
        kills += 1
    progress(5)                     # always progress, also after the last kill
    for pid in alive:
        note("kill", pid)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    last = stage_lock("last")
    last.acquire(60)
    last.release()
    assert sorted(os.listdir("locks")) == [".s1.guard"], os.listdir("locks")
    print(kills, begins())

process_tree.become_subreaper()
alive = {start() for _ in range(CONTENDERS)}
try:
    main()
finally:
    clean_up()
"""


def check_log(text):
    """Go through the log: nobody begins while another is inside, unless that one was killed; the killed stay silent."""
    killed, inside, taken_over, replaced = set(), None, 0, set()
    for number, line in enumerate(text.splitlines(), 1):
        word, pid = line.split()[:2]
        assert word != "OVERLAP", (number, line)
        if word == "kill":
            killed.add(pid)
            continue
        assert pid not in replaced, (number, line)
        if word == "begin":
            if inside is not None:
                assert inside in killed, "line %d: %s is inside, %s begins" % (number, inside, pid)
                replaced.add(inside)
                taken_over += 1
            inside = pid
        else:                           # middle, end, and work of the processor that is known by its owner
            assert inside == pid, (number, line)
            if word == "end":
                inside = None
    return taken_over


@linux_only
def test_thirty_processes_contend_under_random_kills_and_never_two_are_inside(root):
    kills, begins = map(int, drive(root, CONTENTION, 30, 40, 150, 20).split())
    assert kills == 40 and begins >= 150
    assert check_log((root / "log").read_text()) >= 5      # kills that hit an owner inside


def test_the_check_of_the_log_finds_what_it_must():
    check_log("begin 1\nend 1\nbegin 2\nkill 2\nbegin 3\nmiddle 3\nend 3\n")
    for bad in ("begin 1\nbegin 2\n", "begin 1\nkill 1\nbegin 2\nmiddle 1\n", "begin 1\nend 1\nend 1\n", "begin 1\nkill 2\nbegin 2\n",
                "begin 1\nend 1\nwork 1\n", "begin 1\nkill 1\nbegin 2\nwork 1\n", "OVERLAP 1 2\n"):
        with pytest.raises(AssertionError):
            check_log(bad)


# --- leftovers are told from owners and contenders -------------------------------------------------------------------

HOLDER = """
guard = stage_locks.open_guard("locks/.s1.guard")
assert stage_locks.try_kernel_lock(guard)
heir = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE, pass_fds=(guard,))
stranger = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
contender = subprocess.Popen([sys.executable, "-c", "import os, sys; os.open('locks/.s1.guard', os.O_RDWR); print(1, flush=True); sys.stdin.read()"],
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE)
contender.stdout.readline()
print(os.getpid(), heir.pid, stranger.pid, contender.pid, flush=True)
sys.stdin.read()
for one in (heir, stranger, contender):
    one.kill()
"""


@linux_only
def test_only_who_inherited_a_dead_owners_lock_is_a_leftover(root):
    process = driver(root, HOLDER)
    owner, heir, stranger, contender = map(int, process.stdout.readline().split())
    guard = str(root / "locks" / ".s1.guard")
    try:
        assert [process_traits.holds_lock(pid, guard, owner) for pid in (heir, owner, stranger, contender)] == [True, False, False, False]
        # For whoever asks about another owner's death, this owner and its heirs are no leftovers.
        assert not any(process_traits.holds_lock(pid, guard, 4194305) for pid in (heir, owner, stranger, contender))
        assert process_traits.members([process_traits.Traits("", 0, guard, owner)]) == [heir]
        assert not process_traits.holds_lock(heir, str(root / "locks" / "missing"), owner)
    finally:
        process.communicate(timeout=30)


@pytest.mark.parametrize("data, code", [(b"", 0), (b"\0" * 40, 0), (b"mine", 4)])
def test_a_lock_folder_of_which_a_power_cut_left_the_names_only_is_ours(project, data, code):
    """btrfs can bring the names of owner and guard to the disk without what is in them."""
    project.spec({"processor": project.processor("p", "pass")})
    project.write("locks/s1.lock/owner.json", "")
    project.path("locks/s1.lock/owner.json").write_bytes(data)
    project.write("locks/.s1.guard", "")
    assert project.run().code == code


@linux_only
def test_files_that_strangers_have_open_are_not_looked_at(root, monkeypatch):
    """They may lie on a server that does not answer: to look at one would wait for it, and nothing would be ended."""
    process = driver(root, HOLDER)
    owner, heir, stranger = map(int, process.stdout.readline().split()[:3])
    looked, real = [], os.stat
    monkeypatch.setattr(os, "stat", lambda path, *more, **options: (looked.append(path), real(path, *more, **options))[1])
    try:
        guard = str(root / "locks" / ".s1.guard")
        assert process_traits.holds_lock(heir, guard, owner) and not process_traits.holds_lock(stranger, guard, owner)
    finally:
        monkeypatch.undo()
        process.communicate(timeout=30)
    assert [path for path in looked if str(path).startswith("/proc/%d/" % stranger)] == [] and looked.count(guard) == 2
    assert len([path for path in looked if str(path).startswith("/proc/%d/" % heir)]) == 1


@linux_only
def test_a_descriptor_closed_while_we_look_hides_no_other(root, monkeypatch):
    process = driver(root, HOLDER)
    owner, heir = map(int, process.stdout.readline().split()[:2])
    real = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: ["99999"] + real(path))
    try:
        assert process_traits.holds_lock(heir, str(root / "locks" / ".s1.guard"), owner)
    finally:
        monkeypatch.undo()
        process.communicate(timeout=30)


# --- through the program ---------------------------------------------------------------------------------------------

WAITING = """
open(out + "/pid.tmp", "w").write(str(os.getpid()))
os.replace(out + "/pid.tmp", out + "/pid")
while not os.path.exists("go"):
    time.sleep(0.01)
"""


def waiting_project(project, **stage):
    project.write("in.txt", "x\n")
    project.spec(dict({"processor": project.processor("p", WAITING), "inputs": ["in.txt"], "lock": {"waitSeconds": 0.3}}, **stage))
    return project


def started(project, *arguments, **options):
    """Start the program and return it when its processor is at work."""
    process = project.start(*arguments, **options)
    wait_until(lambda: project.exists("data/s1/pid") or process.poll() is not None, "the processor's start")
    assert process.poll() is None, process.communicate()
    return process


def finish(process):
    out, err = (text.decode() for text in process.communicate(timeout=PATIENCE_S))
    return process.returncode, out, err


def test_a_living_owner_is_named_and_cannot_be_unlocked(project):
    waiting_project(project)
    first = started(project, "--run-id", "one")
    owner = project.json("locks/s1.lock/owner.json")
    begun = time.monotonic()
    second = project.run("--run-id", "two")
    assert second.code == 4 and time.monotonic() - begun >= 0.3, second
    assert "stage s1 is held by pid %d on %s (run one, since %s)" % (first.pid, stage_locks.host_name(), owner["since"]) in second.err, second
    assert (owner["pid"], owner["runId"]) == (first.pid, "one")
    unlock = project.run("unlock", "s1")
    assert unlock.code == 4 and "pid %d" % first.pid in unlock.err, unlock
    assert project.json("locks/s1.lock/owner.json") == owner
    assert "pid %d" % first.pid in project.ok("plan").out
    project.write("go", "")
    assert finish(first)[0] == 0
    assert not project.exists("locks/s1.lock")
    assert "[SKIP] s1" in project.ok("--run-id", "two").out


def test_who_waited_long_enough_finds_the_work_done(project):
    waiting_project(project, lock={"waitSeconds": PATIENCE_S})
    first = started(project, "--run-id", "one")
    second = project.start("--run-id", "two")
    wait_until(lambda: project.exists("state/run_two.json"), "the second run's start")
    project.write("go", "")
    assert finish(first)[0] == 0
    code, out, err = finish(second)
    assert code == 0 and "[SKIP] s1" in out and "[START]" not in out, (out, err)


def test_a_stage_that_somebody_is_about_to_do_is_not_skipped(project):
    """Its marker still stands; a moment later it may be gone, and the outputs other ones."""
    spec = {"name": "s1", "processor": project.processor("p", "open(out + '/o', 'w').close()\n"), "lock": {"waitSeconds": 0}}
    project.spec(spec, {"name": "s2", "processor": "bin/p.py"})
    project.ok()
    lock = stage_lock(project.root)
    lock.acquire(0)
    done = project.run("--keep-going")
    lock.release()
    assert done.code == 4 and "[FAIL] s1: stage s1 is held by pid %d" % os.getpid() in done.out and "[SKIP] s2" in done.out, done
    assert "[SKIP] s1" in project.ok().out


def test_a_run_id_in_use_is_refused(project):
    waiting_project(project)
    first = started(project, "--run-id", "one")
    second = project.run("--run-id", "one")
    assert second.code == 4 and "run id one is in use" in second.err, second
    project.write("go", "")
    assert finish(first)[0] == 0


UNSHARED = """
import runpy, sys
sys.path.insert(0, %r)
import stage_locks
stage_locks.try_kernel_lock = lambda descriptor: True
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
""" % str(ROOT / "src")


@pytest.mark.parametrize("run_id", ["one", "two"])
def test_a_run_by_a_path_that_does_not_share_locks_is_refused_while_another_lives(project, run_id):
    waiting_project(project)
    first = started(project, "--run-id", "one")
    argv = [sys.executable, "-c", UNSHARED, str(ROOT / "src" / "pipeline_runner.py"), "--pipeline", str(project.path("pipeline.json"))]
    second = subprocess.run([*argv, "--run-id", run_id], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=project.environment(), timeout=PATIENCE_S)
    text = second.stdout.decode("utf-8")
    assert second.returncode == 4 and "run one is at work: pid %d on " % first.pid in text and "use one path" in text and "Traceback" not in text, text
    shown = subprocess.run([*argv[:4], "report", *argv[4:], "one"], cwd=str(project.root), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                           env=project.environment(), timeout=PATIENCE_S)
    assert b"run one, running" in shown.stdout, shown
    project.write("go", "")
    code, out, err = finish(first)
    assert code == 0 and "1 ok" in out, (out, err)
    assert project.ok("verify").code == 0


def in_namespace():
    """Return the words that start a program in a pid namespace of its own, as a container does; [] where that may not be."""
    for words in (["unshare", "-p", "-f", "--mount-proc"], ["unshare", "-r", "-p", "-f", "--mount-proc"]):
        if shutil.which("unshare") and subprocess.run([*words, "true"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0:
            return words
    return []


@linux_only
@pytest.mark.parametrize("is_first_inside", [True, False], ids=["first inside", "first outside"])
def test_a_run_in_a_container_and_one_outside_leave_each_other_alone(project, is_first_inside):
    """They share folder and host name, and neither can tell by the other's pid whether it lives."""
    words = in_namespace() or pytest.skip("no pid namespace may be made here")
    waiting_project(project)
    inside, outside = words, []
    ours, theirs = (inside, outside) if is_first_inside else (outside, inside)

    def argv(before, *arguments):
        return [*before, *project.argv(*arguments)]

    def run(before, *arguments):
        return subprocess.run(argv(before, *arguments), cwd=str(project.root), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              env=project.environment(), timeout=PATIENCE_S)
    with subprocess.Popen(argv(ours, "--run-id", "one"), cwd=str(project.root), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          env=project.environment()) as first:
        wait_until(lambda: project.exists("data/s1/pid") or first.poll() is not None, "the processor's start")
        try:
            held = b"held by pid %d of another container or pid namespace on " % project.json("locks/s1.lock/owner.json")["pid"]
            status, second = run(theirs, "status", "--json"), run(theirs, "--run-id", "two")
            unlock, clean = run(theirs, "unlock", "s1"), run(theirs, "clean", "--yes")
            report = run(theirs, "report", "one", "-o", str(project.path("report.html")))
        finally:
            project.write("go", "")
        out = first.communicate(timeout=PATIENCE_S)[0]
    assert first.returncode == 0 and b"1 ok" in out, out
    shown = json.loads(status.stdout)
    assert shown["stages"][0]["status"] == shown["runs"][0]["state"] == "running", shown
    assert second.returncode == unlock.returncode == clean.returncode == 4 and all(held in one.stdout for one in (second, unlock, clean)), (second, unlock, clean)
    assert b"run one, running" in report.stdout, report
    project.ok("verify", "--outputs")


@linux_only
def test_what_a_dead_container_held_is_taken_over(project):
    words = in_namespace() or pytest.skip("no pid namespace may be made here")
    waiting_project(project)
    with subprocess.Popen([*words, "--kill-child", *project.argv("--run-id", "one")], cwd=str(project.root), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                          env=project.environment()) as first:
        wait_until(lambda: project.exists("data/s1/pid") or first.poll() is not None, "the processor's start")
        first.kill()
    guard = stage_locks.open_guard(str(project.path("locks/.s1.guard")))
    wait_until(lambda: stage_locks.try_kernel_lock(guard), "the end of the container")
    os.close(guard)
    assert project.exists("locks/s1.lock/owner.json")
    shown = json.loads(project.ok("status", "--json").out)
    assert (shown["stages"][0]["status"], shown["runs"][0]["state"]) == ("died", "open"), shown
    project.write("go", "")
    project.ok("--run-id", "two", cwd=str(project.root))
    assert not project.exists("locks/s1.lock")


@posix_only
def test_ctrl_c_ends_the_wait_for_a_lock(project):
    waiting_project(project, lock={"waitSeconds": 10 * PATIENCE_S})
    first = started(project, "--run-id", "one")
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        run_id = "wait%d" % code
        second = project.start("--run-id", run_id)
        wait_until(lambda run_id=run_id: project.exists("state/run_%s.json" % run_id), "the second run's start")
        second.send_signal(number)
        got, out, err = finish(second)
        assert got == code and "[STOP] s1: interrupted while waiting for the lock" in out, (out, err)
        assert project.json("state/run_%s.json" % run_id)["state"] == "interrupted"
    project.write("go", "")
    assert finish(first)[0] == 0 and project.json("state/stage_s1.json")["lastStatus"] == "ok"


def test_a_strangers_folder_through_the_program(project):
    project.write("in.txt", "x\n")
    project.spec({"processor": project.processor("p", "open(out + '/o', 'w').write('x')"), "inputs": ["in.txt"], "lock": {"waitSeconds": 0.3}})
    project.write("locks/s1.lock/theirs.txt", "mine")
    begun = time.monotonic()
    done = project.run()
    assert done.code == 4 and time.monotonic() - begun >= 0.3, done
    assert "locks/s1.lock" in done.err and "unlock s1" in done.err, done
    assert project.read("locks/s1.lock/theirs.txt") == "mine" and not project.exists("data/s1/o")
    assert "removed locks/s1.lock" in project.ok("unlock", "s1").out
    assert not project.exists("locks/s1.lock")
    assert "not locked" in project.ok("unlock", "s1").out
    project.ok()
    assert project.run("unlock", "nosuch").code == 2 and project.run("unlock").code == 2


def test_stages_and_run_ids_of_any_name_do_not_meet_in_a_lock_file(project):
    """A stage named like one of the runner's own locks is held for long; runs of other stages must not wait for it."""
    project.write("in.txt", "x\n")
    waits = {"processor": project.processor("p", WAITING), "inputs": ["in.txt"]}
    project.processor("q", "open(out + '/o', 'w').write('x')")
    for name in ("head", "head.chain", "quick.run", "head.guard"):
        project.spec(dict(waits, name=name, outputDir="data/s1"), {"name": "other", "processor": "bin/q.py", "inputs": ["in.txt"]})
        first = started(project, "--only", name, "--run-id", "r." + name)
        begun = time.monotonic()
        project.ok("--only", "other", "--force", "other", "--run-id", "quick")
        assert time.monotonic() - begun < 20
        project.write("go", "")
        assert finish(first)[0] == 0
        for path in ("go", "data/s1/pid"):
            project.path(path).unlink()


# --- a runner and its guardian are dead, the processor lives ---------------------------------------------------------

def guardian_of(runner: int) -> int:
    """Return the guardian: the other process with the runner's command line, found before the runner dies."""
    command = Path("/proc/%d/cmdline" % runner).read_bytes()
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != runner:
            try:
                if Path("/proc/%s/cmdline" % name).read_bytes() == command:
                    return int(name)
            except OSError:
                pass
    raise AssertionError("the runner %d has no guardian" % runner)


LEFT_BEHIND = {
    # Both traits, only the lock's descriptor (the environment is cleared), only the token (the descriptor is closed).
    "as it was started": "exec \"$PY\" loop.py",
    "without its environment": "exec env -i PIPELINE_OUTPUT_DIR=\"$PIPELINE_OUTPUT_DIR\" \"$PY\" loop.py",
    "without the descriptor": "exec \"$PY\" loop.py close",
}
LOOP = """
import os, sys, time
out = os.environ["PIPELINE_OUTPUT_DIR"]
if sys.argv[1:] == ["close"]:
    os.closerange(3, 1000)
open(out + "/pid.tmp", "w").write(str(os.getpid()))
os.replace(out + "/pid.tmp", out + "/pid")
while not os.path.exists("go"):
    open(out + "/o", "a").write("x")
    time.sleep(0.01)
open(out + "/o", "w").write("whole")
os.unlink(out + "/pid")
"""


@linux_only
@pytest.mark.parametrize("how", LEFT_BEHIND.values(), ids=LEFT_BEHIND.keys())
def test_the_next_run_ends_what_a_dead_runner_and_guardian_left_behind(project, how):
    project.write("in.txt", "x\n")
    project.write("loop.py", LOOP)
    project.write("bin/p.sh", "#!/bin/sh\nPY='%s'\n%s\n" % (sys.executable, how), executable=True)
    project.spec({"processor": "bin/p.sh", "inputs": ["in.txt"], "outputs": ["o"], "lock": {"waitSeconds": 20}})
    first = started(project)
    orphan = int(project.read("data/s1/pid"))
    guardian = guardian_of(first.pid)
    for pid in (guardian, first.pid):
        os.kill(pid, signal.SIGKILL)
    first.communicate()
    wait_until(lambda: is_gone(guardian), "the guardian's end")
    assert not is_gone(orphan)
    guard = stage_locks.open_guard(str(project.path("locks/.s1.guard")))
    is_free = stage_locks.try_kernel_lock(guard)
    os.close(guard)
    # While an orphan has the descriptor, the stage is held for everybody; unlock refuses.
    assert is_free is ("close" in how)
    if not is_free:
        refused = project.run("unlock", "s1")
        assert refused.code == 4 and project.exists("locks/s1.lock/owner.json"), refused
        assert "its owner, pid %d on " % first.pid in refused.err and "is dead, but something that it started still works" in refused.err, refused
    second = project.start("--run-id", "second")
    wait_until(lambda: is_gone(orphan), "the orphan's end")
    project.write("go", "")
    code, out, err = finish(second)
    assert code == 0, (out, err)
    assert project.read("data/s1/o") == "whole" and not project.exists("locks/s1.lock")


@linux_only
def test_a_dead_runners_processor_is_ended_also_when_somebody_removed_the_lock_folder(project):
    """The stage record still knows the token of the attempt that it calls running."""
    project.write("in.txt", "x\n")
    project.write("loop.py", LOOP)
    project.write("bin/p.sh", "#!/bin/sh\nexec '%s' loop.py close\n" % sys.executable, executable=True)
    project.spec({"processor": "bin/p.sh", "inputs": ["in.txt"], "outputs": ["o"]})
    first = started(project)
    orphan = int(project.read("data/s1/pid"))
    for pid in (guardian_of(first.pid), first.pid):
        os.kill(pid, signal.SIGKILL)
    first.communicate()
    project.path("locks/s1.lock/owner.json").unlink()
    project.path("locks/s1.lock").rmdir()
    second = project.start("--run-id", "second")
    wait_until(lambda: is_gone(orphan), "the orphan's end")
    project.write("go", "")
    code, out, err = finish(second)
    assert code == 0 and project.read("data/s1/o") == "whole", (out, err)


@pytest.mark.parametrize("pause_s", ["1e9", "0"])     # between two records of a run that goes on
def test_a_run_that_another_has_closed_as_dead_does_not_end_a_second_time(project, pause_s):
    """Whoever removes locks/ makes that happen; `verify` must not accuse anybody of editing afterwards."""
    code = ("import runpy, sys\nsys.path.insert(0, %r)\nimport run_records\nrun_records.RECORD_S = run_records.RECORD_SHARE = %s\n"
            "sys.argv = sys.argv[1:]\nrunpy.run_path(sys.argv[0], run_name='__main__')\n" % (str(RUNNER.parent), pause_s))
    project.spec({"name": "s", "processor": project.processor("slow", "open('begun', 'w').close()\nwhile not os.path.exists('go'): time.sleep(0.01)\n"), "outputDir": "data/out"},
                 {"name": "t", "processor": project.processor("quick", ""), "outputDir": "data/t"})
    with subprocess.Popen([sys.executable, "-c", code, *project.argv("--run-id", "r1")[1:]], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, env=project.environment()) as process:
        wait_until(lambda: project.exists("begun"))
        shutil.rmtree(str(project.path("locks")))
        project.ok("--only", "t", "--run-id", "r2")
        project.write("go", "")
        _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 5 and b"run r1 is not open in it any more: another run has closed it as dead" in err, err
    assert project.json("state/run_r1.json")["state"] == "interrupted"
    done = project.run("verify", "--outputs")
    assert done.code == 5 and [line for line in done.out.splitlines() if line.startswith("[")] == ["[EDITED] state/stage_s.json: lastRunId: run r1 did not make this stage"], done
    project.ok("--run-id", "r3", "--force", "s")
    project.ok("verify", "--outputs")


def test_a_folder_is_let_go_of_after_all_were_given_up(tmp_path):
    """Stages that an error has cut short are closed after the run has ended."""
    (tmp_path / "locks").mkdir()
    one, two = stage_locks.FolderLocks(str(tmp_path)), stage_locks.FolderLocks(str(tmp_path))
    assert one.try_acquire("data/a")
    one.close()
    one.release("data/a")
    assert two.try_acquire("data/a")
    two.close()


UNENDED = """
import os, runpy, sys
sys.path.insert(0, %r)
import process_tree
process_tree.Tree.end = lambda self: [int(open("data/s1/pid").read())]
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
""" % str(ROOT / "src")


@linux_only
def test_the_lock_of_a_stage_stays_while_a_process_of_it_would_not_end(project):
    """Which is a process that hangs in the kernel; here nobody tries to end it, and it keeps nothing but its environment."""
    project.processor("p", """
if os.environ["PIPELINE_RUN_ID"] != "first":
    sys.exit()
if os.fork() == 0:
    os.closerange(0, 1000)
    os.setsid()
    with open(out + "/pid.tmp", "w") as file:
        file.write(str(os.getpid()))
    os.replace(out + "/pid.tmp", out + "/pid")
    while True:
        time.sleep(0.01)
while not os.path.exists(out + "/pid"):
    time.sleep(0.01)
""")
    project.spec({"processor": "bin/p.py"})
    argv = [sys.executable, "-c", UNENDED, str(ROOT / "src" / "pipeline_runner.py"), "--pipeline", str(project.path("pipeline.json")), "--run-id", "first"]
    first = subprocess.run(argv, cwd=str(project.root), env=project.environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=PATIENCE_S)
    orphan = int(project.read("data/s1/pid"))
    assert first.returncode == 1 and b"[FAIL] s1: processes would not end: %d" % orphan in first.stdout, first
    assert project.exists("locks/s1.lock/owner.json")
    project.ok("--run-id", "second")        # it ends what is left before it takes the stage
    assert is_gone(orphan) and not project.exists("locks/s1.lock")


@linux_only
@pytest.mark.parametrize("more", [{}, {"forEach": ["in.txt"]}], ids=["one", "tasks"])
def test_a_process_that_would_not_end_is_named_also_where_a_signal_has_stopped_the_stage(project, more):
    """Its lock stays, and whoever is asked why must find it in the records."""
    project.write("in.txt", "x")
    project.spec({"processor": project.processor("p", "open('started', 'w').close()\ntime.sleep(120)\n"), "graceSec": 1, **more})
    unended = UNENDED.replace("process_tree.Tree.end =", "ended = process_tree.Tree.end\nprocess_tree.Tree.end = lambda self: ended(self) or [4194304]\nunused =")
    argv = [sys.executable, "-c", unended, str(ROOT / "src" / "pipeline_runner.py"), "--pipeline", str(project.path("pipeline.json"))]
    with subprocess.Popen(argv, cwd=str(project.root), env=project.environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        wait_until(lambda: project.exists("started"))
        process.send_signal(signal.SIGTERM)
        out = process.communicate(timeout=PATIENCE_S)[0].decode("utf-8", "replace")
    assert process.returncode == 143 and "[STOP] s1: interrupted; processes would not end: 4194304" in out, out
    record = project.json("state/stage_s1.json")
    assert (record["lastStatus"], record["lastError"]) == ("interrupted", "interrupted; processes would not end: 4194304") and project.exists("locks/s1.lock/owner.json")


@linux_only
def test_a_stage_that_is_up_to_date_and_whose_dead_owners_processes_do_not_end_fails_alone(project):
    project.spec({"name": "s1", "processor": "bin/stage_copy.py"}, {"name": "s2", "processor": "bin/stage_copy.py"})
    project.ok()
    owner = {"schema": 1, "pid": 4194305, "processStart": "1", "host": stage_locks.host_name(), "bootId": "another", "token": "0123456789abcdef", "runId": "r", "since": "s"}
    project.write("locks/s1.lock/owner.json", json.dumps(owner))
    done = subprocess.run([sys.executable, "-c", UNENDED.replace("process_tree.Tree.end =", "process_tree.end_of_dead_owner = lambda *about: [123]\nunused ="), str(ROOT / "src" / "pipeline_runner.py"),
                           "--pipeline", str(project.path("pipeline.json")), "--keep-going"],
                          cwd=str(project.root), env=project.environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=PATIENCE_S)
    assert done.returncode == 4 and b"[FAIL] s1: stage s1: processes of a dead run would not end: [123]" in done.stdout and b"[SKIP] s2" in done.stdout, done


@pytest.mark.skipif(sys.platform == "win32", reason="no process is looked for by its token there")
def test_a_run_on_a_copy_of_the_folder_ends_no_process_of_the_original(project, tmp_path):
    """A copy taken during a run says that this very attempt is under way."""
    body = ("root = os.environ['PIPELINE_ROOT']\nopen(root + '/begun', 'w').close()\nend = time.monotonic() + %d\n"
            "while not os.path.exists(root + '/go'):\n    time.sleep(0.01)\n    assert time.monotonic() < end\n"
            "open(out + '/o', 'w').close()\n" % PATIENCE_S)
    project.spec({"processor": project.processor("waits", body)})
    run = project.start("--run-id", "night")
    wait_until(project.path("begun").exists)
    copy = tmp_path / "copy"
    shutil.copytree(str(project.root), str(copy), ignore=shutil.ignore_patterns("locks"))
    (copy / "go").touch()
    done = subprocess.run([sys.executable, str(RUNNER), "--pipeline", str(copy / "pipeline.json")], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, timeout=PATIENCE_S)
    project.path("go").touch()
    out = run.communicate(timeout=PATIENCE_S)[0]
    assert (done.returncode, run.returncode) == (0, 0), (done.stdout, out)
    assert b"[DONE] s1" in done.stdout and b"[DONE] s1" in out and (copy / "data/s1/o").exists() and project.path("data/s1/o").exists()
