"""Shell text and commands, as the scan for network uses reads them: which command is started, in which line, and what it means.

A leaf: text in, verdicts out; it starts nothing and opens no file.

    text -> _ShellText: commands, each with its line -> judge_words -> ("tool", name), ("python", source), ("module", name), COMPUTED, HARMLESS
"""
from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Dict, Iterable, List, Optional, Sequence, Set, Tuple

MAX_SOURCES = 4             # levels of source inside source
MAX_NESTING = 40            # levels of $( ), ` ` and ${ } in shell text that are looked into
MAX_ARITHMETIC = 2000       # characters of one $(( ))
MAX_SCRIPT = 1 << 20        # characters of a script; what is behind them is most likely a payload
HOLE = "\0"                 # stands in folded text for a part that is known only at run time
NETWORK_TOOLS = frozenset((
    "curl wget wget2 aria2c ssh scp sftp sshfs autossh mosh slogin ssh-copy-id nc ncat netcat nc.openbsd nc.traditional socat "
    "telnet ftp tftp lftp ncftp rsh rlogin rcp nmap ping ping6 dig nslookup traceroute tracert whois bitsadmin "
    "invoke-webrequest invoke-restmethod start-bitstransfer iwr irm test-connection test-netconnection resolve-dnsname "
    "send-mailmessage new-pssession enter-pssession").split())
# Harmless when they look at this machine: a pause in batch files.
LOOKERS = frozenset("ping ping6 test-connection test-netconnection".split())
SYNC_TOOLS = {              # tool -> its subcommands that talk to another machine
    "git": frozenset("clone fetch pull push ls-remote".split()), "hg": frozenset("clone pull push incoming outgoing".split()),
    "svn": frozenset("checkout co update up commit ci export import list ls".split())}
OPTIONS_WITH_VALUE = {      # tool -> its options that take the next word; needed to find the word that matters
    "git": ("-C", "-c", "--git-dir", "--work-tree", "--namespace"), "hg": ("-R", "--cwd", "--config"), "svn": (),
    "env": ("-u", "--unset", "-C", "--chdir"), "sudo": ("-u", "-g", "-h", "-p", "-C", "-D", "-U"), "doas": ("-u", "-C"),
    "nice": ("-n",), "ionice": ("-c", "-n", "-p"), "timeout": ("-s", "-k", "--signal", "--kill-after"),
    "xargs": ("-I", "-n", "-P", "-L", "-d", "-a", "-s", "-E"), "stdbuf": ("-i", "-o", "-e"), "time": ("-f", "-o"),
    "exec": ("-a",), "chroot": (), "nohup": (), "setsid": (), "command": (), "builtin": (), "busybox": (), "eval": (),
    "strace": ("-o", "-e", "-p"), "unshare": (), "start": (), "winpty": (), "taskset": (), "chrt": (), "watch": ("-n", "--interval"),
    "parallel": ("-j", "-a", "--jobs"), "trap": ()}
WRAPPERS = frozenset(OPTIONS_WITH_VALUE) - frozenset(SYNC_TOOLS)
TAKE_A_WORD = frozenset("timeout taskset chrt chroot".split())      # the duration, the processors, the priority, the folder
SHELLS = frozenset("sh bash dash zsh ksh mksh ash fish cmd powershell pwsh".split())
# Options of shells that take the next word, of PowerShell in small letters.
SHELL_VALUES = frozenset("-o +o --rcfile --init-file -executionpolicy -ep -ex -version -inputformat -outputformat -windowstyle -w -workingdirectory -wd".split())
DOTNET = ("net.webclient", "net.webrequest", "net.httpwebrequest", "net.sockets.", "net.http.", "net.mail.", "net.dns")
POWERSHELLS = ("powershell", "pwsh")
SHELL_WORDS = frozenset("{ } ! if then elif else fi while until do done case in esac coproc".split())
LOOSE = frozenset(" \t\r")            # between words of a shell's text
ENDS_WORD = frozenset(" \t\r\n;&|()<>")
DEVICES = ("/dev/tcp/", "/dev/udp/")


# === Shell text: characters -> commands and where they stand ===

class _Command:
    """A command of a shell's text: its words without their quotes, unknown parts being HOLEs.

    line is that of the first word, 0 before it; heads counts the words that stand before a command's name, like if and then.
    """

    __slots__ = ("line", "heads", "words")

    def __init__(self) -> None:
        self.line, self.heads = 0, 0
        self.words: List[str] = []

    def add(self, line: int, word: str) -> None:
        if not self.words:
            self.line = line
        if self.is_unnamed() and word in SHELL_WORDS:
            self.heads += 1
        self.words.append(word)

    def is_unnamed(self) -> bool:
        """Tell whether the next word would be the command's name."""
        return self.heads == len(self.words)

    def is_case(self) -> bool:
        """Tell whether patterns follow: case WORD in."""
        return len(self.words) == self.heads + 2 and self.words[-1] == "in" and self.words[-3:-2] == ["case"]


class _ShellText:
    """The reading of a shell's text, once from its beginning to its end.

    What only looks like a command is none: comments, here-documents, patterns of case, arrays, arithmetic, conditions in
    [[ ]], definitions of functions. Redirections are left out of the words, one to a network device counts as a command.
    """

    def __init__(self, text: str, line: int = 1, depth: int = 0) -> None:
        self.text = text
        self.place = 0
        self.depth = depth
        self.commands: List[_Command] = []
        self.functions: Set[str] = set()
        self.documents: List[Tuple[int, _Command, str]] = []    # of here-documents: first line, whose input, body
        self._pending: List[Tuple[_Command, str, bool, bool]] = []
        self._last: Optional[Dict[str, int]] = None             # row of the text -> where it stands last
        self._counted, self._line = 0, line
        self._ahead = MAX_SCRIPT            # characters that may be looked at twice

    def _line_here(self) -> int:
        self._line += self.text.count("\n", self._counted, self.place)
        self._counted = self.place
        return self._line

    def _new(self) -> _Command:
        self.commands.append(_Command())
        return self.commands[-1]

    # --- commands

    def read_commands(self, closing: str = "") -> None:
        """Read commands to the end of the text, or past the ")" that closes them."""
        command, cases = self._new(), 0
        while self.place < len(self.text):
            mark = self.text[self.place]
            if mark in LOOSE:
                self.place += 1
            elif self.text.startswith("\\\n", self.place):
                self.place += 2
            elif mark == "#":
                self._skip_comment()
            elif mark == "\n":
                self.place += 1
                self._skip_documents()
                command = self._new()
            elif mark == ")" and closing:
                self.place += 1
                return
            elif mark in ";&|)":
                is_clause_end = self.text[self.place:self.place + 2] in (";;", ";&")
                self.place += 3 if self.text.startswith(";;&", self.place) else 2 if is_clause_end else 1
                if cases and is_clause_end:
                    cases -= self._skip_patterns()
                if mark != "&" or self.text[self.place:self.place + 1] != ">":      # else &> redirects and the command goes on
                    command = self._new()
            elif mark == "(":
                command = self._read_parenthesis(command)
            elif mark in "<>":
                self._read_redirection(command)
            else:
                is_first = self._read_word(command)
                if is_first and command.words[-1] == "esac":
                    cases = max(0, cases - 1)
                elif command.is_case():
                    cases += 1 - self._skip_patterns()
                    command = self._new()
                elif len(command.words) == 2 and command.words[0] == "function":
                    self.functions.add(command.words[-1])
                    command = self._new()

    def _read_word(self, command: _Command) -> bool:
        """Read a word of a command; tell whether a command begins with it."""
        line, is_first = self._line_here(), command.is_unnamed()
        word = self._word(is_first)
        if word.isdigit() and self.text[self.place:self.place + 1] in ("<", ">"):
            return False                    # the descriptor that is redirected
        command.add(line, word)
        if word == "[[" and is_first:
            self._skip_condition()
        return is_first

    def _read_parenthesis(self, command: _Command) -> _Command:
        """Read on at "(": arithmetic, the definition of a function, or a shell of its own."""
        end = self._arithmetic_end(self.place + 2) if self.text.startswith("((", self.place) else 0
        if end and (command.words == ["for"] or command.is_unnamed()):
            self._skip_arithmetic(end)
            return command
        self.place += 1
        if len(command.words) == 1:
            rest = self.place
            while self.text[rest:rest + 1] in (" ", "\t"):
                rest += 1
            if self.text[rest:rest + 1] == ")":
                self.place = rest + 1
                self.functions.add(command.words.pop())
                return self._new()
        self._read_nested()
        return self._new()

    def _read_nested(self) -> None:
        """Read what stands in parentheses, from behind the first; beyond a depth it counts as what stands around it."""
        if self.depth < MAX_NESTING:
            self.depth += 1
            self.read_commands(")")
            self.depth -= 1

    def _read_redirection(self, command: _Command) -> None:
        if self.text[self.place + 1:self.place + 2] == "(":
            self.place += 2
            self._read_nested()
            return command.add(self._line_here(), HOLE)
        start = self.place
        while self.text[self.place:self.place + 1] in ("<", ">") and self.place - start < 3:
            self.place += 1
        is_document = self.text[start:self.place] == "<<"
        strip = is_document and self.text[self.place:self.place + 1] == "-"
        if strip or self.text[self.place:self.place + 1] in ("|", "&"):
            self.place += 1
        while self.text[self.place:self.place + 1] in (" ", "\t"):
            self.place += 1
        begin, line = self.place, self._line_here()
        if begin == len(self.text) or self.text[begin] in ENDS_WORD:
            return
        target = self._word()
        if is_document:
            is_quoted = any(mark in self.text[begin:self.place] for mark in "'\"\\")
            self._pending.append((command, target, strip, is_quoted))
        elif target.startswith(DEVICES):
            self._new().add(line, target)

    # --- what is no command

    def _skip_comment(self) -> None:
        end = self.text.find("\n", self.place)
        self.place = len(self.text) if end < 0 else end

    def _skip_documents(self) -> None:
        """Skip the here-documents of the line that has ended; in one whose end is not quoted, $( ) is run."""
        pending, self._pending = self._pending, []
        for command, end, strip, is_quoted in pending:
            if self._last is None:
                self._last, place = {}, 0
                for row in self.text.split("\n"):
                    self._last[row.strip("\t\r")] = place
                    place += len(row) + 1
            if self._last.get(end, -1) < self.place:
                continue                    # it has no end, so most likely it is none
            start, line, row_start = self.place, self._line_here(), self.place
            while self.place < len(self.text):
                row_start, row_end = self.place, self.text.find("\n", self.place)
                row_end = len(self.text) if row_end < 0 else row_end
                self.place = min(len(self.text), row_end + 1)
                row = self.text[row_start:row_end].rstrip("\r")
                if (row.lstrip("\t") if strip else row) == end:
                    break
            body = self.text[start:row_start]
            self.documents.append((line, command, body))
            if not is_quoted:
                inner = _ShellText(body, line, self.depth + 1)
                inner._quoted("")
                self.commands += inner.commands

    def _skip_patterns(self) -> int:
        """Skip the patterns of a clause of case, past their ")"; return 1 when there is none, but esac."""
        return int(self._skip_to_parenthesis("esac"))

    def _skip_to_parenthesis(self, last: Optional[str] = None) -> bool:
        """Skip words and comments, past a ")"; tell whether the word *last* has come before it."""
        while self.place < len(self.text):
            mark = self.text[self.place]
            if mark == "#":
                self._skip_comment()
            elif mark in ENDS_WORD:
                self.place += 1
                if mark == ")":
                    return False
            elif self._word() == last:
                return True
        return False

    def _skip_condition(self) -> None:
        while self.place < len(self.text):
            if self.text.startswith("]]", self.place):
                self.place += 2
                return
            if self.text[self.place] in ENDS_WORD:
                self.place += 1
            else:
                self._word()

    def _arithmetic_end(self, place: int) -> int:
        """Return where the arithmetic ends whose "((" is before a place; 0 when it is none, but a shell in a shell."""
        level = 2
        for index in range(place, min(len(self.text), place + MAX_ARITHMETIC)):
            self._ahead -= 1
            if self._ahead < 0:
                return 0
            level += {"(": 1, ")": -1}.get(self.text[index], 0)
            if level == 1:
                return index + 2 if self.text[index + 1:index + 2] == ")" else 0
        return 0

    def _skip_arithmetic(self, end: int) -> None:
        while self.place < end:
            if self.text.startswith(("`", "$("), self.place) and not self.text.startswith("$((", self.place):
                self._piece(True)
            else:
                self.place += 1

    # --- words

    def _word(self, is_first: bool = False) -> str:
        """Read the word that begins here, which is no mark that ends one; `!(x)` is a pattern but where a command begins."""
        pieces: List[str] = []
        while self.place < len(self.text):
            mark = self.text[self.place]
            if mark == "(" and pieces and pieces[-1][-1:] == "=" and self.depth < MAX_NESTING:
                self.place += 1
                self.depth += 1
                self._skip_to_parenthesis()          # an array
                self.depth -= 1
                pieces.append("()")
            elif mark == "(" and pieces and pieces[-1] in ("?", "*", "+", "@", "" if is_first else "!"):
                while self.place < len(self.text) and self.text[self.place] not in ")\n":
                    self.place += 1
                self.place += 1
            elif mark in ENDS_WORD:
                break
            else:
                pieces.append(self._piece(False))
        return "".join(pieces)

    def _piece(self, quoted: bool) -> str:
        """Read a piece of a word: a letter, an escape, quoted text, or what is put in its place at run time."""
        two = self.text[self.place:self.place + 2]
        mark = two[0]
        if mark == "\\":
            self.place += 2
            kept = mark if quoted and two[1:] not in ("\"", "\\", "$", "`", "\n") else ""
            return kept + two[1:].replace("\n", "")
        if self.depth < MAX_NESTING and (mark == "`" or two in ("$(", "${")):
            self.depth += 1
            text = self._backticks() if mark == "`" else self._braces(quoted) if two == "${" else self._substitution()
            self.depth -= 1
            return text
        if not quoted and two in ("$'", "$\""):
            self.place += 1
            mark = two[1]
        self.place += 1
        if not quoted and mark == "\"":
            return self._quoted("\"")
        if quoted or mark != "'":
            return mark
        start = self.place
        end = self.text.find("'", start)
        while two == "$'" and end > 0 and self.text[end - 1] == "\\":
            end = self.text.find("'", end + 1)
        self.place = len(self.text) if end < 0 else end + 1
        return self.text[start:end if end >= 0 else len(self.text)]

    def _quoted(self, closing: str) -> str:
        pieces = []
        while self.place < len(self.text):
            if self.text[self.place] == closing:
                self.place += 1
                break
            pieces.append(self._piece(True))
        return "".join(pieces)

    def _braces(self, quoted: bool) -> str:
        self.place += 2
        pieces = ["${"]
        while self.place < len(self.text) and self.text[self.place] != "}":
            pieces.append(self._piece(quoted))
        self.place += 1
        return "".join(pieces) + "}"

    def _substitution(self) -> str:
        end = self._arithmetic_end(self.place + 3) if self.text.startswith("$((", self.place) else 0
        self.place += 2
        if end:
            self._skip_arithmetic(end)
        else:
            self._read_nested()
        return HOLE

    def _backticks(self) -> str:
        self.place += 1
        line, pieces = self._line_here(), []
        while self.place < len(self.text) and self.text[self.place] != "`":
            two = self.text[self.place:self.place + 2]
            pieces.append(two[1] if two in ("\\`", "\\\\", "\\$") else two[0])
            self.place += 2 if two in ("\\`", "\\\\", "\\$") else 1
        self.place += 1
        inner = _ShellText("".join(pieces), line, self.depth)
        inner.read_commands()
        self.commands += inner.commands
        self.functions |= inner.functions
        return HOLE


def shell_commands(text: str) -> List[List[str]]:
    """Split shell text into commands, each a list of words without their quotes.

    $(...) and `...` are commands too, and a HOLE in the word where they stand.
    """
    reader = _ShellText(text)
    reader.read_commands()
    return [one.words for one in reader.commands if one.words]


# === Commands: words and shell text -> (verdict, tool) ===

COMPUTED = ("computed", "")
HARMLESS = ("", "")


def judge_words(words: Sequence[str], depth: int = 0) -> Tuple[str, str]:
    """Judge a command given as words, unknown parts being HOLEs.

    Returns ("tool", name), ("python", source) for source to scan, ("module", name) for python -m, COMPUTED or HARMLESS.
    """
    words = _bare(words)
    if not words or depth > MAX_SOURCES:
        return HARMLESS
    tool = tool_name(words[0])
    if words[0].startswith(DEVICES):
        return ("tool", "/dev/tcp")
    if tool in NETWORK_TOOLS:
        return HARMLESS if tool in LOOKERS and any(map(_is_this_machine, words[1:])) else ("tool", tool)
    if tool in SYNC_TOOLS:
        rest = _skip_options(words[1:], OPTIONS_WITH_VALUE[tool])
        return ("tool", "%s %s" % (tool, rest[0])) if rest and rest[0] in SYNC_TOOLS[tool] and not _is_local(rest[1:]) else HARMLESS
    if tool == "rsync":
        return ("tool", tool) if any(_is_remote(word) for word in words[1:]) else HARMLESS
    if tool == "find":
        places = [index for index, word in enumerate(words) if word in ("-exec", "-execdir", "-ok")]
        return judge_words(words[places[0] + 1:], depth + 1) if places else HARMLESS
    if tool in WRAPPERS:
        return _judge_wrapped(tool, words[1:], depth)
    if tool in SHELLS:
        return _judge_shell(tool, words[1:], depth)
    if is_python(tool):
        return _judge_python(words[1:])
    return COMPUTED if HOLE in tool or not tool else HARMLESS


def judge_shell_text(text: str, depth: int = 0) -> Tuple[str, str]:
    """Judge a shell's command line or script: the first of its commands that uses the network counts."""
    found = HARMLESS
    for _, (kind, what) in judge_script(text, depth):
        if kind not in ("", "computed"):
            return ("python" if kind == "document" else kind, what)
        found = (kind, what) if kind else found
    return found


def judge_script(text: str, depth: int = 0, first_line: int = 1) -> List[Tuple[int, Tuple[str, str]]]:
    """Judge all commands of a shell's text; return (line, verdict) of each.

    Verdicts are those of judge_words, and ("document", source) for Python source that begins in this line.
    """
    reader = _ShellText(text, first_line)
    reader.read_commands()
    values = _constants_of(reader.commands)
    found = []
    for command in reader.commands:
        words = _bare([word for one in command.words for word in values.get(one, [one])])
        if words and words[0] not in reader.functions:
            verdict = judge_words(words, depth)
            if verdict[1] not in reader.functions or words[0] not in ("trap", "eval"):
                found.append((command.line, verdict))
    for line, command, body in reader.documents:
        words = _bare(command.words)
        if not words or depth > MAX_SOURCES or any(word[:1] != "-" or word[-1:] in "cm" for word in words[1:] if word != "-"):
            continue                        # what it reads there is data, not a program
        tool = tool_name(words[0])
        if tool in SHELLS:
            found += judge_script(body, depth + 1, line)
        elif is_python(tool):
            found.append((line, ("document", body)))
    return found


def _constants_of(commands: Iterable[_Command]) -> Dict[str, List[str]]:
    """Return {"$NAME": words, "${NAME}": words} of variables that are set once, and to a text that is known."""
    values: Dict[str, List[str]] = {}
    for command in commands:
        is_declared = command.words[:1] and command.words[0] in ("export", "readonly", "local", "declare", "typeset")
        words = command.words[1:] if is_declared else command.words
        for word in words if all(is_assignment(one) for one in words) else ():
            name, _, value = word.partition("=")
            known = [] if "$" + name in values or "$" in value or HOLE in value else value.split()
            values["$" + name] = values["${%s}" % name] = known
    return {name: words for name, words in values.items() if words}


def _bare(words: Iterable[str]) -> List[str]:
    """Return a command's words from its name on: without if, then and their like, and assignments."""
    bare = list(words)
    place = 0
    while place < len(bare) and (bare[place] in SHELL_WORDS or is_assignment(bare[place])):
        place += 1
    return bare[place:]


def started(words: Iterable[str]) -> List[str]:
    """Return a command's words from the name of the program on that env, nice and their like start at last."""
    words = _bare(words)
    while words and tool_name(words[0]) in WRAPPERS:
        tool = tool_name(words[0])
        # The words behind -S are env's as if they stood by themselves.
        rest = [word[2:] if tool == "env" and word[:2] == "-S" else word for word in words[1:]]
        words = _bare(_skip_options([word for word in rest if word], OPTIONS_WITH_VALUE[tool]))
        words = words[1:] if tool in TAKE_A_WORD else words
    return words


def _is_this_machine(word: str) -> bool:
    return word.lower() in ("localhost", "::1") or (word.startswith("127.") and not word.strip("0123456789."))


def _is_local(words: Iterable[str]) -> bool:
    """Tell whether the arguments of git and its like name a folder of this machine, and nothing that may be another's."""
    places = [word for word in words if not word.startswith("-")]
    return any(word in (".", "..") or word.startswith(("/", "./", "../", "~/", "file://")) for word in places) and not any(
        HOLE in word or "$" in word or ("://" in word and not word.startswith("file://")) or _is_remote(word) for word in places)


def tool_name(word: str) -> str:
    """Return the bare name of a program: /usr/bin/X, X.exe -> x; HOLE in it when it is not known."""
    name = word.replace("\\", "/").rpartition("/")[2].lower()
    for ending in (".exe", ".cmd", ".bat", ".com"):
        name = name[:-len(ending)] if name.endswith(ending) else name
    return name


def is_python(tool: str) -> bool:
    """Tell whether a program is Python: py is how Windows starts one."""
    return tool == "py" or tool.startswith(("python", "pypy"))


def is_assignment(word: str) -> bool:
    name, equals, _ = word.partition("=")
    return bool(equals) and name.isidentifier()


def _is_remote(word: str) -> bool:
    """Tell whether an argument of rsync names another machine: host:path, host::module, rsync://; not C:\\x."""
    host, colon, _ = word.partition(":")
    return bool(colon) and not word.startswith("-") and "/" not in host and (len(host) > 1 or host == HOLE)


def _skip_options(words: Sequence[str], with_value: Sequence[str]) -> Sequence[str]:
    place = 0
    while place < len(words) and words[place].startswith("-"):
        place += 2 if words[place] in with_value else 1
    return words[place:]


def _judge_wrapped(tool: str, words: Sequence[str], depth: int) -> Tuple[str, str]:
    """Judge what env, sudo, timeout and their like start."""
    if tool == "env":
        for place, word in enumerate(words):
            for option in ("--split-string=", "--split-string", "-S"):
                if word.startswith(option):
                    return judge_shell_text(" ".join([word[len(option):]] + list(words[place + 1:])), depth + 1)
            if not word.startswith("-") and not is_assignment(word):
                break
    if tool == "eval":
        return judge_shell_text(" ".join(words), depth + 1)
    if tool == "trap":
        return judge_shell_text(words[0], depth + 1) if words and words[0][:1] != "-" else HARMLESS
    if tool == "command" and words and words[0][:1] == "-" and words[0].strip("-pvV") == "" and "v" in words[0].lower():
        return HARMLESS                 # it only asks where the command is
    words = _skip_options(words, OPTIONS_WITH_VALUE[tool])
    return judge_words(words[1:] if tool in TAKE_A_WORD else words, depth + 1)


def _judge_shell(tool: str, words: Sequence[str], depth: int) -> Tuple[str, str]:
    """Judge the words after a shell's name: its script is what follows -c, /c or -Command, or no option of Windows PowerShell."""
    for place, word in enumerate(words):
        option = word.lower()
        if place and words[place - 1].lower() in SHELL_VALUES:
            continue
        if tool == "powershell" and option[:1] not in ("-", "/"):
            return _judge_given(tool, " ".join(words[place:]), depth)
        if option == "-file":
            return HARMLESS
        joined = option in ("/c", "/k", "-command") or option == "-c" and tool in POWERSHELLS       # here all further words make up the script
        if joined or (option[:1] == "-" and option[:2] != "--" and option.endswith("c")):
            script = words[place + 1:] if joined else words[place + 1:place + 2]
            return _judge_given(tool, " ".join(script), depth)
        if option[:1] not in ("-", "/", "+"):
            return HARMLESS             # a script file
    return HARMLESS


def _judge_given(tool: str, text: str, depth: int) -> Tuple[str, str]:
    """Judge the text that a shell is given to run."""
    name = next((one for one in DOTNET if one in text.lower()), "") if tool in POWERSHELLS else ""
    return ("tool", name.strip(".")) if name else judge_shell_text(text, depth + 1)


def _judge_python(words: Sequence[str]) -> Tuple[str, str]:
    for place, word in enumerate(words):
        if not word.startswith("-") or word == "-":
            return HARMLESS             # a program file, or standard input
        if word[-1:] in "cm" and not word.startswith("--") and place + 1 < len(words):
            return ("python" if word[-1] == "c" else "module", words[place + 1])
    return HARMLESS
