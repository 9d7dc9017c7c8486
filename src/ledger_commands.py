"""The commands about the ledger that need no pipeline file: verify, export, evidence, new-key.

Above the leaves and below the runner. They work on a copy of the folder, on another machine.
"""
from __future__ import annotations

import os

from model import EXIT_OK, SpecError, UsageError
from primitives import real_folder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Sequence

    from console import Console
    from model import Options, StageSpec


def do(options: Options, console: Console) -> int:
    """Do one of the commands; return the exit code. Raises: errors with exit_code; OSError."""
    return {"verify": _verify, "export": _export, "evidence": _evidence, "new-key": _new_key}[options.command](options, console)


def _root(options: Options) -> str:
    return real_folder(options.root if options.root is not None else os.path.dirname(options.pipeline) or os.curdir)


def _stages(options: Options) -> Sequence[StageSpec]:
    """Return the stages of the pipeline, whose inputs and outputs must not be overwritten; none without a pipeline file, or with
    a faulty one."""
    import spec_loading
    try:
        stages: Sequence[StageSpec] = spec_loading.load_pipeline(options.pipeline, options.root, needs_programs=False).stages
        return stages
    except (UsageError, SpecError):
        return ()


def _verify(options: Options, console: Console) -> int:
    import ledger_verify
    arguments = list(options.operands) + ["--root", _root(options)] + [word for head in options.anchors for word in ("--anchor", head)]
    arguments += (["--key", options.key] if options.key else []) + (["--outputs"] if options.outputs else [])
    return ledger_verify.main(arguments)


def _export(options: Options, console: Console) -> int:
    import ledger_export
    return ledger_export.cmd_export(_root(options), options.operands[0], options.output, options.pipeline, console,
                                    _stages(options) if options.output else ())


def _evidence(options: Options, console: Console) -> int:
    import ledger_export
    return ledger_export.cmd_evidence(_root(options), options.operands[0], options.output, options.pipeline, console, _stages(options))


def _new_key(options: Options, console: Console) -> int:
    import seal_keys
    path, mode = options.operands[0], "forward" if options.forward else "hmac"
    if options.root is not None or os.path.exists(options.pipeline):     # else there is no root here
        seal_keys.check_place(path, _root(options))
    identity = seal_keys.make_key_file(path, mode)
    console.line("%s: key %s (%s)" % (path, identity, mode))
    if options.forward:
        console.line("copy it to a place off this machine before the first run: from then on it changes, and verify needs the first one")
    return EXIT_OK
