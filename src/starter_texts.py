"""The texts of the files that `init` and `new-stage` write: processors, their tests, a README.

A leaf. In a text @NAME@ stands for the name of the stage, @FILE@ for the processor's file, and so on; nothing else in it is
touched.
"""
from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Dict

SAMPLE = "The   first line,  with blanks to spare.\n\nThe third line; the second one is empty.\n"

LINES = '''"""Bring the blanks of each line in order; set empty lines aside."""
from processor_kit import Reject, lines


def change(line):
    # The line comes with its end. What is returned is written; None drops the line, and Reject("why") sets it aside
    # in @NAME@.txt.rejects.jsonl, with its number and the reason.
    if not line.strip():
        raise Reject("empty line")
    return " ".join(line.split()) + "\\n"


lines(change, "@NAME@.txt")
'''

BLOCKS = '''"""Write all text in lower case."""
from processor_kit import blocks


def change(text):
    # Many whole lines at once, which is several times faster than one by one. What is returned is written.
    return text.lower()


blocks(change, "@NAME@.txt", one_to_one=True)
'''

FILES = '''"""Write one line for each input: its name, its lines, its bytes."""
import os

from processor_kit import inputs, open_output

# The file appears under its name when it is complete, and not before.
with open_output("@NAME@.txt") as out:
    for path in inputs():
        lines = size = 0
        with open(path, "rb") as file:
            for line in file:
                lines += 1
                size += len(line)
        out.write("%s\\t%d\\t%d\\n" % (os.path.basename(path), lines, size))
'''

SHELL = '''#!/bin/sh
# Write the lines of all inputs, sorted, each line once.
# Arguments: "args" of the stage, then its inputs. Write below $PIPELINE_OUTPUT_DIR only. Exit 0 is success, 75: another attempt may help.
set -eu
LC_ALL=C
export LC_ALL
sort -u -- "$@" > "$PIPELINE_OUTPUT_DIR/@NAME@.txt"
'''

POWERSHELL = '''# Write the lines of all inputs, sorted, each line once.
# Arguments: "args" of the stage, then its inputs. Write below $env:PIPELINE_OUTPUT_DIR only. Exit 0 is success, 75: another attempt may help.
$ErrorActionPreference = "Stop"
$found = [System.Collections.Generic.List[string]]::new()
foreach ($path in $args) {
    foreach ($line in [IO.File]::ReadAllLines($path)) { $found.Add($line) }
}
$found.Sort([StringComparer]::Ordinal)
$text = [System.Text.StringBuilder]::new()
$last = $null
foreach ($line in $found) {
    if ($line -cne $last) { [void]$text.Append($line).Append("`n") }
    $last = $line
}
[IO.File]::WriteAllText([IO.Path]::Combine($env:PIPELINE_OUTPUT_DIR, "@NAME@.txt"), $text.ToString())
exit 0
'''

TEST = '''"""The stage @NAME@: its processor, run alone on a few lines."""
import os
@IMPORTS@import subprocess
import sys
import tempfile
import unittest

PROCESSOR = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "bin", "@FILE@")


def run(text):
    """Run the processor on a file in.txt of this text; return (exit code, what it printed, {output file: its text})."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = os.path.join(folder, "in.txt"), os.path.join(folder, "out")
        os.mkdir(target)
        with open(source, "w", encoding="utf-8", newline="") as file:
            file.write(text)
        env = {name: value for name, value in os.environ.items() if not name.startswith("PIPELINE_")}
        done = subprocess.run(@COMMAND@ + [PROCESSOR, source], env=dict(env, PIPELINE_OUTPUT_DIR=target),
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        made = {}
        for name in os.listdir(target):
            with open(os.path.join(target, name), encoding="utf-8", newline="") as file:
                made[name] = file.read()
        return done.returncode, done.stdout.decode("utf-8", "replace"), made


class Test(unittest.TestCase):
@CASES@

if __name__ == "__main__":
    unittest.main()
'''

PYTHON_COMMAND = "[sys.executable]"
PROGRAM_COMMAND = "[]"
POWERSHELL_COMMAND = '[shutil.which("pwsh") or "powershell", "-NoProfile", "-NonInteractive", "-ExecutionPolicy", "Bypass", "-File"]'

LINES_CASES = '''    def test_blanks_are_brought_in_order(self):
        code, printed, made = run("  two   words \\none\\n")
        self.assertEqual((code, made.get("@NAME@.txt")), (0, "two words\\none\\n"), printed)

    def test_empty_lines_are_set_aside_with_their_number(self):
        code, printed, made = run("one\\n\\ntwo\\n")
        self.assertEqual((code, made.get("@NAME@.txt")), (0, "one\\ntwo\\n"), printed)
        self.assertIn('"line": 2, "reason": "empty line"', made.get("@NAME@.txt.rejects.jsonl", ""))
'''

BLOCKS_CASES = '''    def test_all_text_is_in_lower_case(self):
        code, printed, made = run("Some TEXT\\nGRÖSSE\\n")
        self.assertEqual((code, made.get("@NAME@.txt")), (0, "some text\\ngrösse\\n"), printed)
'''

FILES_CASES = '''    def test_lines_and_bytes_are_counted(self):
        code, printed, made = run("one\\ntwo\\n")
        self.assertEqual((code, made.get("@NAME@.txt")), (0, "in.txt\\t2\\t8\\n"), printed)
'''

SHELL_CASES = '''    def test_lines_are_sorted_each_once(self):
        code, printed, made = run("b\\na\\nb\\n")
        self.assertEqual((code, made.get("@NAME@.txt")), (0, "a\\nb\\n"), printed)
'''

# kind -> (ending of the processor's file, its text, how the test starts it, the test's cases)
KINDS = {"lines": (".py", LINES, PYTHON_COMMAND, LINES_CASES), "blocks": (".py", BLOCKS, PYTHON_COMMAND, BLOCKS_CASES),
         "files": (".py", FILES, PYTHON_COMMAND, FILES_CASES), "shell": (".sh", SHELL, PROGRAM_COMMAND, SHELL_CASES),
         "powershell": (".ps1", POWERSHELL, POWERSHELL_COMMAND, SHELL_CASES)}

README = '''# @NAME@

A batch pipeline for one machine. All that it needs is in this folder: copying the folder is the installation.

    python src/pipeline_runner.py                   run it: what is up to date is skipped, what was interrupted goes on
    python src/pipeline_runner.py plan              what would a run do, and why? writes nothing
    python -m unittest                              the tests of the processors
    python src/pipeline_runner.py new-stage NAME    one stage more: a processor, its entry in the spec, a test

1. Put your texts into `data/input`; the sample may go.
2. Say in `bin/@FILE@` what is to happen with each line, and in `tests/@TEST@` what must come out.
3. Edit `pipeline.json`. Editors that know JSON Schema complete and check its keys by `pipeline.schema.json`;
   `python src/pipeline_runner.py validate` checks all of it.

Where there is no `python`, write `python3`, on Windows `py`. `python src/pipeline_runner.py --help` lists commands, options and exit codes@DOCS@.
`src/` is the runner. To update it, replace the folder whole, and `bin/processor_kit.py` with it.
'''
DOCS = ", [docs/reference.md](docs/reference.md) explains them"

GITIGNORE = '''# What runs leave behind; the folders themselves are kept by their .gitkeep.
/data/*
!/data/input
/state/*
/locks/*
!/state/.gitkeep
!/locks/.gitkeep
__pycache__/
*.py[cod]
'''

GITATTRIBUTES = '''# LF everywhere, on Windows too: inputs and processors are hashed byte for byte.
* text=auto eol=lf
'''


def filled(text: str, words: Dict[str, str]) -> bytes:
    """Return a text as the bytes of a file, each @WORD@ replaced."""
    for word, value in words.items():
        text = text.replace("@%s@" % word, value)
    return text.encode("utf-8")
