"""What a processor gets of the runner's environment, and which of it is part of its key.

A leaf.
"""
from __future__ import annotations

import os
import posixpath
import sys

from primitives import account_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, Iterable, List, Optional, Sequence

# Variables of the runner's own environment that defeat isolation (agents, daemons) or repeatability (code that is
# loaded by name of a variable), and so never reach a processor.
DROPPED_VARIABLES = frozenset((
    "SSH_AUTH_SOCK SSH_AGENT_PID SSH_ASKPASS GPG_AGENT_INFO DOCKER_HOST DOCKER_CONTEXT CONTAINER_HOST XDG_RUNTIME_DIR "
    "LD_PRELOAD LD_AUDIT LD_LIBRARY_PATH BASH_ENV ENV CDPATH GLOBIGNORE SHELLOPTS BASHOPTS PS4 PROMPT_COMMAND "
    "PYTHONPATH PYTHONHOME PYTHONSTARTUP PYTHONSAFEPATH PYTHONINSPECT PYTHONUSERBASE PYTHONEXECUTABLE "
    "PYTHONPLATLIBDIR PYTHONBREAKPOINT PYTHONCASEOK PYTHONOPTIMIZE PYTHONWARNINGS PYTHONHASHSEED PYTHONIOENCODING "
    "NODE_OPTIONS PERL5OPT PERL5LIB RUBYOPT RUBYLIB JAVA_TOOL_OPTIONS _JAVA_OPTIONS CLASSPATH").split())
DROPPED_PREFIXES = ("DBUS_", "DYLD_", "BASH_FUNC_", "PIPELINE_")
BASIC_VARIABLES = frozenset((
    "PATH HOME LANG TZ TMP TEMP TMPDIR USER LOGNAME SHELL SYSTEMROOT SYSTEMDRIVE WINDIR COMSPEC PATHEXT USERPROFILE "
    "USERNAME HOMEDRIVE HOMEPATH APPDATA LOCALAPPDATA ALLUSERSPROFILE PROGRAMDATA PROGRAMFILES PROGRAMFILES(X86) PROGRAMW6432 "
    "COMMONPROGRAMFILES OS NUMBER_OF_PROCESSORS PROCESSOR_ARCHITECTURE").split())
BASIC_PREFIXES = ("LC_", "COV_", "COVERAGE_")


def base_environment(pass_env: Optional[Sequence[str]], environ: Any) -> Dict[str, str]:
    """Return what a processor gets of *environ*; pass_env as in the spec."""
    if pass_env is None:
        kept = {name: value for name, value in environ.items() if not is_dropped(name)}
    else:
        passed = set(passed_names(pass_env, environ))
        kept = {name: value for name, value in environ.items()
                if name in passed or name.upper() in BASIC_VARIABLES or name.upper().startswith(BASIC_PREFIXES)}
    kept.update(PYTHONHASHSEED="0", PYTHONIOENCODING="utf-8:backslashreplace")
    return kept


def with_own(env: Dict[str, str], own: Dict[str, str], windows: bool = sys.platform == "win32") -> Dict[str, str]:
    """Return *env* with the stage's own variables over it; on Windows names that differ in case only are one."""
    names = {name.upper() for name in own} if windows else set()
    return {**{name: value for name, value in env.items() if name.upper() not in names}, **own}


def value_of(env: Dict[str, str], name: str, windows: bool = sys.platform == "win32") -> str:
    """Return the value of a variable, "" without one; *name* in capitals, as it may be spelled in any way on Windows."""
    return next((value for one, value in env.items() if (one.upper() if windows else one) == name), "")


def _text_of(path: str) -> str:
    """Return what stands in a small file of the system, "" if it is not there."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def user_name() -> str:
    """Return the name of the account that this process runs under, or its number where it has none."""
    return account_name(os.geteuid()) if os.name == "posix" else os.environ.get("USERNAME", "")


def usable_cpus() -> int:
    """Return how many processors this process may use: by its affinity, and by the quota of its control group (Linux), rounded
    up."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    count = len(os.sched_getaffinity(0))
    quota = cpu_quota()
    return count if quota is None else max(1, min(count, -int(-quota // 1)))


def cpu_quota(read: Callable[[str], str] = _text_of) -> Optional[float]:
    """Return of how many processors the time is granted to this process's control group or one above it, None without a limit.

    Set by `CPUQuota=` of systemd and by the limits of containers, which do not show in the affinity. Files: cpu.max
    (version 2), cpu.cfs_quota_us and cpu.cfs_period_us (version 1), see the kernel's cgroup-v2.rst and sched-bwc.rst.
    """
    granted = []
    for line in read("/proc/self/cgroup").splitlines():
        _, controllers, group = line.split(":", 2)
        if not controllers or "cpu" in controllers.split(","):
            mount = "/sys/fs/cgroup" + ("/cpu" if controllers else "")
            parts = group.strip("/").split("/")
            places = [posixpath.join(mount, *parts[:count]) for count in range(len(parts) + 1)]
            granted += [_granted(read, place, bool(controllers)) for place in places]
    return min((one for one in granted if one is not None), default=None)


def _granted(read: Callable[[str], str], place: str, is_first_version: bool) -> Optional[float]:
    """Return the quota of one control group, None if it has none or cannot be seen: in a container those above it cannot."""
    names = ("cpu.cfs_quota_us", "cpu.cfs_period_us") if is_first_version else ("cpu.max",)
    words = " ".join(read(posixpath.join(place, name)) for name in names).split()
    if len(words) != 2 or not all(word.isdigit() for word in words) or int(words[1]) == 0:      # "max" and -1: no limit
        return None
    return int(words[0]) / int(words[1])


def is_dropped(name: str) -> bool:
    """Tell whether a variable defeats isolation or repeatability: proxies, agents, sockets, preloads, start-up files."""
    upper = name.upper()
    return upper in DROPPED_VARIABLES or upper.startswith(DROPPED_PREFIXES) or upper.endswith("_PROXY")


def passed_names(patterns: Sequence[str], environ: Iterable[str], windows: bool = sys.platform == "win32") -> List[str]:
    """Return the names of variables that passEnv lets through, sorted; never those of a runner around this one. On Windows case
    tells nothing."""
    import fnmatch
    if windows:
        patterns = [pattern.upper() for pattern in patterns]
    return sorted(name for name in environ if not name.upper().startswith("PIPELINE_")
                  and any(fnmatch.fnmatchcase(name.upper() if windows else name, pattern) for pattern in patterns))


def passed_digests(patterns: Sequence[str], environ: Any, secret: bytes) -> Dict[str, str]:
    """Return {name: keyed digest of the value}: a record must not give a short secret away to guessing."""
    import hmac
    return {name: hmac.new(secret, os.fsencode(environ[name]), "sha256").hexdigest() for name in passed_names(patterns, environ)}
