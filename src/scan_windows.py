"""Scripts of Windows, batch files and PowerShell, as the scan for network uses reads them: statement by statement.

On scan_shell, which judges their commands; text in, verdicts out.
"""
from __future__ import annotations

from scan_shell import DOTNET, judge_words

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import List, Sequence, Tuple


# === Scripts of Windows: lines -> commands ===

def judge_batch(text: str) -> List[Tuple[int, Tuple[str, str]]]:
    """Judge the commands of a batch file; return (line, verdict) of each."""
    found = []
    rows = text.replace("\r\n", "\n").split("\n")
    number = 0
    while number < len(rows):
        line, row = number + 1, rows[number].strip()
        number += 1
        if row.lstrip("@ \t")[:4].lower().rstrip() == "rem" or row.startswith(":"):
            continue
        pieces = [row]
        while pieces[-1].endswith("^") and number < len(rows):
            pieces[-1] = pieces[-1][:-1]
            pieces.append(rows[number].strip())
            number += 1
        found += [(line, judge_words(words)) for words in _batch_commands(" ".join(pieces))]
    return found


def _batch_commands(row: str) -> List[List[str]]:
    """Split a line of a batch file at & and |, and at the parentheses of if, else and for."""
    commands: List[List[str]] = [[]]
    word, quoted, level = "", False, 0
    for mark in row + "\n":
        if mark == "\"":
            quoted = not quoted
        is_literal = quoted and mark != "\n" or word[-1:] == "^" or mark == "&" and word[-1:] == ">"
        is_group = mark == "(" and not quoted and not word and not _batch_bare(commands[-1]) and commands[-1][-1:] != ["in"]
        is_end = mark == ")" and not quoted and level > 0
        if is_literal or not (mark in " \t&|\n" or is_group or is_end):
            word += mark
            continue
        if word:
            commands[-1].append(word)
            word = ""
        if mark not in " \t":
            commands.append([])
            level += is_group - is_end
    inner = [words for command in commands for words in _batch_loops(command)]
    return [[word.strip("\"") for word in words] for words in [_batch_bare(command) for command in commands] + inner if words]


def _batch_loops(words: List[str]) -> List[List[str]]:
    """Return the command that for /f runs: for /f %%i in ('command') do ..., with usebackq in (`command`)."""
    whole = " ".join(words).replace("(`", "('").replace("`)", "')")
    start, end = whole.find("('"), whole.find("')")
    return [_batch_bare(whole[start + 2:end].split())] if words[:1] and words[0].lower().lstrip("@") == "for" and 0 <= start < end else []


def _batch_bare(words: Sequence[str]) -> List[str]:
    """Return a command's words from its name on: without if, for, call and their like."""
    words = list(words)
    while words:
        first = words[0].lower().lstrip("@(,;=")
        if first in ("else", "call", "do", ""):
            del words[0]
        elif first == "for":
            places = [place for place, word in enumerate(words) if word.lower() == "do"]
            words = words[places[0] + 1:] if places else []
        elif first == "start":
            del words[0]
            if words and words[0][:1] == "\"":
                del words[0]                # the window's title
            while words and words[0][:1] == "/":
                del words[0]
        elif first.lstrip("0123456789")[:1] in ("<", ">"):
            del words[:2 if first[-1] in "<>" else 1]       # a redirection, before the command as after it
        elif first == "if":
            words = _after_condition(words[1:])
        else:
            return [words[0].lstrip("@(,;=")] + words[1:]
    return words


def _after_condition(words: List[str]) -> List[str]:
    """Return what follows the condition of a batch file's if."""
    while words and words[0].lower() in ("/i", "not"):
        words = words[1:]
    first = words[0].lower() if words else ""
    if first in ("exist", "defined", "errorlevel", "cmdextversion"):
        return words[2:]
    if "==" in first and not first.endswith("=="):
        return words[1:]
    second = words[1].lower() if len(words) > 1 else ""
    return words[3:] if second in ("==", "equ", "neq", "lss", "leq", "gtr", "geq") else words[2:]


def judge_powershell(text: str) -> List[Tuple[int, Tuple[str, str]]]:
    """Judge the commands of a PowerShell script, and the .NET classes that it names; return (line, verdict) of each."""
    found = []
    commands = _powershell_commands(text)
    functions = {words[1].lower() for _, words in commands if len(words) > 1 and words[0].lower() == "function"}
    for line, words in commands:
        for word in words:
            for name in DOTNET:
                start = word.lower().find(name)
                if start >= 0 and word[start - 1:start] in "[.'" and (word[0] != "'" or words[0].lower() == "new-object"):
                    found.append((line, ("tool", name.strip("."))))
        called = words[1:] if words[0] in ("&", ".") else words
        if called and (called is not words or called[0][:1] != "'") and called[0].lower() not in functions:
            found.append((line, judge_words([word[1:] if word[:1] == "'" else word for word in called])))
    return found


def _powershell_commands(text: str) -> List[Tuple[int, List[str]]]:
    """Split a PowerShell script into commands, (line, words); a quoted word has a "'" before it.

    A name before "=" is a key or a variable, one before "{" a keyword or a case of switch: neither is a command.
    """
    commands: List[Tuple[int, List[str]]] = []
    words: List[str] = []
    place, line, begun = 0, 1, 1
    while place < len(text):
        mark, start = text[place], place
        begun = begun if words else line
        closing = {"<#": "#>", "@'": "\n'@", "@\"": "\n\"@"}.get(text[place:place + 2])
        if closing or mark == "#":
            end = text.find(closing or "\n", place + 2 if closing else place)
            place = len(text) if end < 0 else end + (len(closing) if closing else 0)
            words += ["'"] if mark == "@" else []
        elif mark in "'\"":
            word, place = _powershell_quoted(text, place)
            words.append("'" + word)
        elif mark == "`":
            place += 3 if text.startswith("\r\n", place + 1) else 2
        elif mark in " \t\r":
            place += 1
        elif mark in "\n;|(){}&" or text.startswith("= ", place) or (mark == "." and text[place + 1:place + 2] in " "):
            is_name = len(words) == 1 and mark in "{="
            is_argument = mark == "=" and not is_name and words[:1] != [] and words[0][:1] not in "$["
            if words and not is_name and not is_argument:
                commands.append((begun, words))
            if not is_argument:
                words = [mark] if mark in "&." else []
            place += 1
        else:
            while place < len(text) and text[place] not in " \t\r\n;|(){}&'\"`":
                place += 1
            name, equals, value = text[start:place].partition("=")
            words.append(value if equals and value and not words and name[:1] == "$" else text[start:place])
        line += text.count("\n", start, place)
    return commands + ([(begun, words)] if words else [])


def _powershell_quoted(text: str, place: int) -> Tuple[str, int]:
    """Return the quoted text that begins at a place, and where the script goes on."""
    mark, start = text[place], place + 1
    place = start
    while place < len(text):
        if text[place] == "`" and mark == "\"":
            place += 2
        elif text[place] != mark:
            place += 1
        elif text[place + 1:place + 2] == mark:
            place += 2                  # doubled, it is one in the text
        else:
            break
    return text[start:place], place + 1
