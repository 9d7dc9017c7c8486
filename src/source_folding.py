"""What the names and expressions of a Python source stand for, worked out without running it: node -> dotted name, texts, words.

On scan_shell. Enough to see through what is written to be hard to find, "sock" + "et" or getattr(builtins, ...), within bounds: a
hostile source can make it neither slow nor large. import_scan walks the tree, fills in what is bound, and judges what is called.
"""
from __future__ import annotations

from scan_shell import HOLE, shell_commands

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, Iterable, List, Optional

MAX_TEXT = 100_000          # characters of a folded constant: bounds what a hostile source can make the scan build
MAX_STEPS = 20_000          # of looking into the expressions of one call
MAX_FOLDING = 60            # levels of an expression that are looked into
# Functions, by their resolved names, that import the module they are given the name of.
IMPORTERS = frozenset((
    "builtins.__import__ importlib.import_module importlib.__import__ importlib.find_loader pkgutil.get_loader "
    "pkgutil.find_loader pkgutil.resolve_name runpy.run_module imp.find_module imp.load_module").split())
# Functions that make text of a constant.
DECODERS = frozenset(("base64.b64decode", "base64.standard_b64decode", "base64.urlsafe_b64decode", "builtins.bytes.fromhex"))
# Names that are resolved though no import binds them.
BUILTINS = frozenset("__import__ exec eval compile getattr vars globals chr bytes str reversed".split())
_PLAIN_METHODS = {
    "lower": str.lower, "upper": str.upper, "strip": str.strip, "lstrip": str.lstrip, "rstrip": str.rstrip,
    "swapcase": str.swapcase, "casefold": str.casefold, "replace": str.replace,
    "decode": lambda text, *codec: text, "encode": lambda text, *codec: text}


class Bindings:
    """What the names of one source are bound to, regardless of scope: enough to follow one that is bound once."""

    def __init__(self) -> None:
        self.aliases: Dict[str, str] = {}           # name -> dotted name that an import bound it to, of ROOTS only
        self.stores: Dict[str, int] = {}            # name -> how often the source binds it, anywhere
        self.bound: Dict[str, Any] = {}             # name -> node of a value that it was bound to
        self.looped: Dict[str, Any] = {}            # name -> node of the iterable whose elements it takes
        self.steps = 0                              # taken for the call at hand

    def _is_too_much(self, depth: int) -> bool:
        """Count one step of looking into an expression; names that stand for one another could make it endless."""
        self.steps += 1
        return depth > MAX_FOLDING or self.steps > MAX_STEPS

    # --- names: node -> dotted name

    def resolve(self, node: Any, depth: int = 0) -> str:
        """Return the dotted name that an expression stands for, as far as it leads to ROOTS; else ""."""
        kind = type(node).__name__
        if self._is_too_much(depth):
            return ""
        if kind == "Name":
            return self._resolve_name(node.id, depth)
        if kind == "Attribute":
            return self._member(self.resolve(node.value, depth + 1), node.attr)
        if kind == "Subscript":
            return self._resolve_lookup(node, depth)
        if kind == "Call":
            return self._resolve_call(node, depth)
        return ""

    def _resolve_name(self, name: str, depth: int) -> str:
        if name in self.aliases:
            return self.aliases[name]
        if self.stores.get(name) == 1 and name in self.bound:
            return self.resolve(self.bound[name], depth + 1)
        if name == "__builtins__":
            return "builtins"
        return "builtins." + name if name in BUILTINS and not self.stores.get(name) else ""

    def _member(self, owner: str, name: str) -> str:
        """Return owner.name; what reaches the same module by another way gets its one name."""
        if not owner:
            return ""
        if name in ("__dict__", "__getattribute__"):
            return owner
        if owner == "builtins" and name in ("builtins", "__builtins__"):
            return owner
        return "%s.%s" % ("os" if owner in ("posix", "nt") else owner, name)

    def _resolve_lookup(self, node: Any, depth: int) -> str:
        """Resolve vars(x)["name"], x.__dict__["name"] and sys.modules["name"]."""
        owner = self.resolve(node.value, depth + 1)
        key = self._one_text(index_node(node), depth + 1) if owner else None
        if key is None:
            return ""
        return key if owner == "sys.modules" else self._member(owner, key)

    def _resolve_call(self, node: Any, depth: int) -> str:
        function = self.resolve(node.func, depth + 1)
        if function == "builtins.getattr" and len(node.args) >= 2:
            name = self._one_text(node.args[1], depth + 1)
            return self._member(self.resolve(node.args[0], depth + 1), name) if name else ""
        if function == "builtins.vars" and len(node.args) == 1:
            return self.resolve(node.args[0], depth + 1)
        if function == "builtins.globals":
            return "builtins"
        if function in IMPORTERS and node.args:
            name = self._one_text(node.args[0], depth + 1) or ""
            return name.partition(".")[0] if function.endswith("__import__") else name
        return ""

    # --- constants: node -> the texts that it can be

    def _one_text(self, node: Any, depth: int = 0) -> Optional[str]:
        texts = self.texts(node, depth)
        return texts[0] if texts is not None and len(texts) == 1 else None

    def texts(self, node: Any, depth: int = 0) -> Optional[List[str]]:
        """Return the texts that an expression can be, with HOLEs for unknown parts; None when nothing is known."""
        if self._is_too_much(depth):
            return None
        kind = type(node).__name__
        if kind == "Constant":
            return _constant_text(node.value)
        if kind == "BinOp":
            return self._fold_operation(node, depth)
        fold: Any = {"JoinedStr": self._fold_pieces, "Name": self._fold_name, "Call": self._fold_call,
                     "Subscript": self._fold_slice, "IfExp": self._fold_choice, "BoolOp": self._fold_any,
                     "NamedExpr": self._fold_named}.get(kind)
        found: Optional[List[str]] = fold(node, depth + 1) if fold else None
        return [one for one in found if len(one) <= MAX_TEXT][:100] if found else None

    def _fold_operation(self, node: Any, depth: int) -> Optional[List[str]]:
        """Fold a + b + c (a loop: chains of hundreds are common) and a % b."""
        if type(node.op).__name__ == "Mod":
            pattern = self._one_text(node.left, depth + 1)
            return None if pattern is None else [self._fill_percent(pattern, node.right, depth + 1)]
        pieces = []
        while type(node).__name__ == "BinOp" and type(node.op).__name__ == "Add":
            pieces.append(node.right)
            node = node.left
        if not pieces:
            return None
        pieces.append(node)
        return self._fold_sequence(reversed(pieces), depth + 1)

    def _fold_sequence(self, nodes: Iterable[Any], depth: int, between: str = "") -> Optional[List[str]]:
        """Return the joined text of nodes, unknown ones as HOLEs; None when all are unknown."""
        texts: List[str] = []
        size, known = 0, 0
        for node in nodes:
            text = self._one_text(node, depth)
            known += text is not None
            texts.append(HOLE if text is None else text)
            size += len(texts[-1]) + len(between)
            if size > MAX_TEXT:
                return None
        return [between.join(texts)] if known else None

    def _fold_pieces(self, node: Any, depth: int) -> Optional[List[str]]:
        return self._fold_sequence([getattr(one, "value", one) if type(one).__name__ == "FormattedValue" and not one.format_spec
                                    else one for one in node.values], depth)

    def _fold_name(self, node: Any, depth: int) -> Optional[List[str]]:
        if self.stores.get(node.id) != 1:
            return None
        if node.id in self.looped:
            return self._elements(self.looped[node.id], depth)
        return self.texts(self.bound[node.id], depth) if node.id in self.bound else None

    def _fold_choice(self, node: Any, depth: int) -> Optional[List[str]]:
        return (self.texts(node.body, depth) or []) + (self.texts(node.orelse, depth) or [])

    def _fold_any(self, node: Any, depth: int) -> Optional[List[str]]:
        return [text for value in node.values for text in self.texts(value, depth) or []]

    def _fold_named(self, node: Any, depth: int) -> Optional[List[str]]:
        return self.texts(node.value, depth)

    def _fold_slice(self, node: Any, depth: int) -> Optional[List[str]]:
        """Fold text[a:b:c] and [...][n] with constant bounds."""
        index = index_node(node)
        if type(index).__name__ == "Slice":
            text = self._one_text(node.value, depth)
            bounds = [_integer(bound) for bound in (index.lower, index.upper, index.step)]
            if text is None or HOLE in text or False in bounds or bounds[2] == 0:
                return None
            return [text[slice(*bounds)]]
        place = _integer(index)
        elements = self._element_nodes(node.value, depth)
        if elements is None or place is None or place is False or not -len(elements) <= place < len(elements):
            return None
        return self.texts(elements[place], depth)

    def _fold_call(self, node: Any, depth: int) -> Optional[List[str]]:
        """Fold chr(n), str(x), methods of text, base64 and compile() of a constant."""
        if type(node.func).__name__ == "Attribute":
            method = getattr(self, "_method_" + node.func.attr, None) or _PLAIN_METHODS.get(node.func.attr)
            if method is not None:
                return self._fold_method(node, method, depth)
        function = self.resolve(node.func, depth)
        if not node.args:
            return None
        if function == "builtins.chr":
            code = _integer(node.args[0])
            return [chr(code)] if code is not None and code is not False and 0 < code < 0x110000 else None
        if function in ("builtins.str", "builtins.bytes", "builtins.compile"):
            return self.texts(node.args[0], depth)
        if function in DECODERS:
            return _decoded(function, self._one_text(node.args[0], depth))
        return None

    def _fold_method(self, node: Any, method: Any, depth: int) -> Optional[List[str]]:
        text = self._one_text(node.func.value, depth)
        if text is None:
            return None
        if getattr(method, "__self__", None) is self:
            found: Optional[List[str]] = method(text, node, depth)
            return found
        arguments = [self._one_text(one, depth) for one in node.args]
        if None in arguments or len(text) > 4096 or any(len(one or "") > 4096 for one in arguments):
            return None
        try:
            return [method(text, *arguments)]
        except TypeError:
            return None

    def _method_join(self, text: str, node: Any, depth: int) -> Optional[List[str]]:
        elements = self._element_nodes(node.args[0], depth) if len(node.args) == 1 else None
        if elements is not None:
            return self._fold_sequence(elements, depth, text)
        whole = self._reversed_text(node.args[0], depth) if len(node.args) == 1 else None
        return None if whole is None or len(text) * len(whole) > MAX_TEXT else [text.join(whole)]

    def _method_format(self, text: str, node: Any, depth: int) -> Optional[List[str]]:
        """Fill plain {} and {0} fields; str.format itself could be told to build gigabytes."""
        pieces = text.replace("{{", "\x01").replace("}}", "\x02").split("{")
        whole, count = pieces[0], 0
        for piece in pieces[1:]:
            field, _, rest = piece.partition("}")
            place = count if not field else int(field) if field.isdecimal() and len(field) < 4 else len(node.args)
            count += 1
            value = self._one_text(node.args[place], depth) if place < len(node.args) else None
            whole += (HOLE if value is None else value) + rest
            if len(whole) > MAX_TEXT:
                return None
        return [whole.replace("\x01", "{").replace("\x02", "}")]

    def _fill_percent(self, text: str, values: Any, depth: int) -> str:
        nodes = list(values.elts) if type(values).__name__ == "Tuple" else [values]
        whole, count, place = "", 0, 0
        while place < len(text) and len(whole) <= MAX_TEXT:
            mark = text[place]
            if mark == "%" and text[place + 1:place + 2] == "%":
                whole += "%"
            elif mark == "%":
                value = self._one_text(nodes[count], depth) if text[place + 1:place + 2] == "s" and count < len(nodes) else None
                whole += HOLE if value is None else value
                count += 1
            else:
                whole += mark
            place += 2 if mark == "%" else 1
        return whole

    def _reversed_text(self, node: Any, depth: int) -> Optional[str]:
        """Return the text that is the only argument of reversed(), backwards; or plain text, whose letters join takes."""
        if type(node).__name__ == "Call" and len(node.args) == 1 and self.resolve(node.func, depth) == "builtins.reversed":
            text = self._one_text(node.args[0], depth)
            return None if text is None else text[::-1]
        return self._one_text(node, depth)

    # --- lists: node -> the nodes or texts of its elements

    def _element_nodes(self, node: Any, depth: int) -> Optional[List[Any]]:
        """Return the nodes of a list, a tuple, a sum of these, or a name bound once to one; None when not known."""
        kind = type(node).__name__
        if self._is_too_much(depth):
            return None
        if kind in ("List", "Tuple", "Set"):
            return list(node.elts)
        if kind == "Name" and self.stores.get(node.id) == 1 and node.id in self.bound:
            return self._element_nodes(self.bound[node.id], depth + 1)
        if kind == "BinOp" and type(node.op).__name__ == "Add":
            left, right = self._element_nodes(node.left, depth + 1), self._element_nodes(node.right, depth + 1)
            return None if left is None else left + (right if right is not None else [node.right])
        if kind == "Call" and len(node.args) == 1 and getattr(node.func, "id", "") in ("list", "tuple", "sorted", "set"):
            return self._element_nodes(node.args[0], depth + 1)
        return None

    def _elements(self, node: Any, depth: int) -> Optional[List[str]]:
        """Return the texts of a list's known elements; None when the list itself is not known."""
        words = self._split_words(node, depth)
        if words is not None:
            return words
        nodes = self._element_nodes(node, depth)
        if nodes is None:
            return None
        return [text for one in nodes[:1000] for text in self.texts(one, depth + 1) or []]

    def _split_words(self, node: Any, depth: int) -> Optional[List[str]]:
        """Return the words of "a b c".split()."""
        if self._is_too_much(depth):
            return None
        if type(node).__name__ == "Name" and self.stores.get(node.id) == 1 and node.id in self.bound:
            return self._split_words(self.bound[node.id], depth + 1)
        if type(node).__name__ != "Call" or type(node.func).__name__ != "Attribute" or node.func.attr != "split":
            return None
        text = self._one_text(node.func.value, depth + 1)
        if not node.args:
            return None if text is None else text.split()
        separator = self._one_text(node.args[0], depth + 1)
        if text is None and type(node.func.value).__name__ == "Name" and node.func.value.id == "shlex":
            return None if separator is None else [word for words in shell_commands(separator) for word in words]
        return None if text is None or not separator else text.split(separator)

    def _argv(self, node: Any) -> Optional[List[str]]:
        """Return the words of a command's list, unknown ones as HOLEs, or None when the list is not known."""
        words = self._split_words(node, 0)
        if words is not None:
            return words
        nodes = self._element_nodes(node, 0)
        return None if nodes is None else [self._word(one) for one in nodes[:1000]]

    def _word(self, node: Any) -> str:
        if self.resolve(node) == "sys.executable":
            return "python"
        text = self._one_text(node)
        return HOLE if text is None else text


def _constant_text(value: Any) -> Optional[List[str]]:
    if isinstance(value, bytes):
        value = value.decode("latin-1")
    return [value] if isinstance(value, str) and len(value) <= MAX_TEXT else None


def _decoded(function: str, text: Optional[str]) -> Optional[List[str]]:
    import binascii
    try:
        if text is None or HOLE in text:
            return None
        if function.endswith("fromhex"):
            return [bytes.fromhex(text).decode("latin-1")]
        return [binascii.a2b_base64(text.replace("-", "+").replace("_", "/")).decode("latin-1")]
    except ValueError:
        return None


def index_node(node: Any) -> Any:
    """Return a subscript's index; before Python 3.9 it is wrapped."""
    return node.slice.value if type(node.slice).__name__ == "Index" else node.slice


def _integer(node: Any) -> Any:
    """Return an integer constant (also negative), None for no node, False for anything else."""
    if node is None:
        return None
    if type(node).__name__ == "UnaryOp" and type(node.op).__name__ == "USub":
        inner = _integer(node.operand)
        return False if inner is None or inner is False else -inner
    value = getattr(node, "value", None) if type(node).__name__ == "Constant" else None
    return value if type(value) is int else False
