"""A processor is started in a session of its own (Windows: in a job), or it is said why it cannot be.

Above windows_jobs. *launch* is an attempts.Launch.
"""
from __future__ import annotations

import os
import sys

from model import FOR_WINDOWS, remedy_of
from primitives import is_for_cmd, open_descriptor, open_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List, Tuple, Union

NOT_STARTED = "cannot start"        # how a failure begins whose program never ran
CMD_SPLITS = frozenset(" \t,;=")    # at these cmd.exe takes a new word to begin
CREATE_NEW_PROCESS_GROUP = 0x200    # Windows: so that CTRL_BREAK reaches the processor and not the runner


def start(launch: Any) -> Tuple[Any, int, Any]:
    """Start the processor in a session (Windows: job) of its own; return it, the end of its output, and the job."""
    import subprocess       # here, as it takes its time to load
    reader, writer = os.pipe()
    job, process, output = None, None, -1
    options: Dict[str, Any] = {}
    try:
        if sys.platform == "win32":
            import windows_jobs
            job = windows_jobs.Job(memory_bytes=launch.resources.get("memoryMB", 0) << 20)
            options["creationflags"] = CREATE_NEW_PROCESS_GROUP | windows_jobs.CREATE_SUSPENDED
        else:
            options["start_new_session"] = True
            options["pass_fds"] = (launch.lock_descriptor,) if launch.lock_descriptor >= 0 else ()
        if launch.output_path:
            output = open_descriptor(launch.output_path,
                                     os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0), 0o666)
        given = subprocess.DEVNULL if launch.stdin is None else launch.stdin
        process = subprocess.Popen(as_started(launch.argv), stdin=given if launch.feeder is None else launch.feeder.reader,
                                   stdout=output if launch.output_path else writer, stderr=writer,
                                   cwd=launch.folder, env=launch.env, close_fds=True, **options)
        if launch.feeder is not None:
            launch.feeder.started()
        if job is not None:
            job.take(int(process._handle))
    except BaseException:
        os.close(reader)
        if process is not None:
            process.kill()              # on Windows it is suspended, and in no job that would end it
        if job is not None:
            job.close()
        raise
    finally:
        os.close(writer)
        if output >= 0:
            os.close(output)
    return process, reader, job


def as_started(argv: List[str]) -> Union[str, List[str]]:
    """Return the command as Popen takes it: of a batch file of Windows the line for cmd.exe, in which words are quoted at which
    it would split them.

    That is at , ; = too, which list2cmdline() leaves bare; and a path with & would be two commands. What no quotes help against
    is refused before, see spec_checks.taken_by_cmd(). Source: the form of the line is that of Rust's standard library
    (std::process, for CVE-2024-24576).
    """
    if not is_for_cmd(argv[0]):
        return argv
    shell = os.path.join(os.environ.get("SystemRoot", "C:\\Windows"), "System32", "cmd.exe")
    words = [_quoted(argv[0])] + [_quoted(word) if CMD_SPLITS.intersection(word) or not word else word for word in argv[1:]]
    return '"%s" /e:ON /v:OFF /d /c "%s"' % (shell, " ".join(words))


def _quoted(word: str) -> str:
    """Return a word in quotes; programs of Windows take a backslash before the last one for part of it."""
    return '"%s%s"' % (word, "\\" * (len(word) - len(word.rstrip("\\"))))


def not_started_text(launch: Any, error: OSError) -> str:
    """Return why nothing was started, and what to do about it."""
    name, where, path = launch.argv[0], "", os.path.join(launch.folder, launch.argv[0])
    if launch.launcher is not None:
        where = ": %s" % error.filename if error.filename else ""       # the lease, or the pipe for its output
        path = "" if where else _launcher_path(launch)
        name = "the launcher " + name
    elif launch.output_path and error.filename == launch.output_path:
        where, path = ": %s" % os.path.relpath(launch.output_path, launch.folder).replace(os.sep, "/"), ""
    hint, first = "", _first_line(path)
    if getattr(error, "winerror", None) and error.errno == 8:
        hint = "; Windows starts no such file: %s" % FOR_WINDOWS
    elif getattr(error, "errno", None) == 8:    # ENOEXEC
        hint = "; a byte order mark stands before its first line: save it without" if first.startswith(
            b"\xef\xbb\xbf") else "; a script needs a first line such as #!/bin/sh"
    elif isinstance(error, FileNotFoundError) and (launch.launcher is None and not where or os.path.exists(path)):
        hint = missing_hint(first, launch.folder)
    elif launch.launcher is not None and isinstance(error, PermissionError) and os.path.isfile(path) and not os.access(path, os.X_OK):
        hint = "; chmod +x it"
    return "%s %s%s: %s%s" % (NOT_STARTED, name, where, error.strerror or str(error), hint or remedy_of(error))


def not_prepared_text(launch: Any, error: OSError) -> str:
    """Return why a script was not begun in the process that was forked for it, and what to do about it."""
    return "%s %s: its process cannot be prepared: %s%s" % (NOT_STARTED, launch.argv[1], error.strerror, remedy_of(error))


def _launcher_path(launch: Any) -> str:
    """Return the file that a launcher's first word means, "" if there is none on its PATH."""
    import shutil
    word = launch.argv[0]
    return os.path.join(launch.folder, word) if "/" in word else shutil.which(word, path=launch.env.get("PATH")) or ""


def missing_hint(first_line: bytes, folder: str, windows: bool = sys.platform == "win32") -> str:
    """Return why a program that is there may not be found. folder: the working folder, of which Windows takes no more than 258
    characters."""
    if windows:
        return "; the path of the root is too long for a working folder: let it be shorter" if len(folder) >= 258 else ""
    if first_line.endswith(b"\r\n"):
        return "; its first line ends with a carriage return (CRLF): save it with plain line ends"
    name = interpreter_of(first_line)
    if not name:
        return "; the program, or a loader that it needs, may be missing"
    is_there = os.path.exists(os.path.join(folder, name))
    return "; its first line names %s, which %s" % (name, "cannot be started itself" if is_there else "is not there: install it, or name another")


def interpreter_of(first_line: bytes) -> str:
    """Return the program that a script's first line names (#!), "" if none."""
    words = first_line[2:].split() if first_line.startswith(b"#!") else []
    return os.fsdecode(words[0]) if words else ""


def _first_line(path: str) -> bytes:
    try:
        with open_file(path) as file:
            return bytes(file.readline(1000))
    except OSError:
        return b""
