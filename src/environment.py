"""What a processor gets of the runner's environment, and which of it is part of its key.

A leaf.
"""
from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, Iterable, List, Optional, Sequence

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
    "APPDATA LOCALAPPDATA PROGRAMDATA PROGRAMFILES NUMBER_OF_PROCESSORS PROCESSOR_ARCHITECTURE").split())
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


def user_name() -> str:
    """Return the name of the account that this process runs under, or its number where it has none."""
    if os.name != "posix":
        return os.environ.get("USERNAME", "")
    import pwd
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def is_dropped(name: str) -> bool:
    """Tell whether a variable defeats isolation or repeatability: proxies, agents, sockets, preloads, start-up files."""
    upper = name.upper()
    return upper in DROPPED_VARIABLES or upper.startswith(DROPPED_PREFIXES) or upper.endswith("_PROXY")


def passed_names(patterns: Sequence[str], environ: Iterable[str], windows: bool = sys.platform == "win32") -> List[str]:
    """Return the names of variables that passEnv lets through, sorted; never those of a runner around this one. On Windows case tells nothing."""
    import fnmatch
    if windows:
        patterns = [pattern.upper() for pattern in patterns]
    return sorted(name for name in environ if not name.upper().startswith("PIPELINE_")
                  and any(fnmatch.fnmatchcase(name.upper() if windows else name, pattern) for pattern in patterns))


def passed_digests(patterns: Sequence[str], environ: Any, secret: bytes) -> Dict[str, str]:
    """Return {name: keyed digest of the value}: a record must not give a short secret away to guessing."""
    import hmac
    return {name: hmac.new(secret, os.fsencode(environ[name]), "sha256").hexdigest() for name in passed_names(patterns, environ)}
