"""JSON with positions: values as json.loads has them, every fault with its line and column, paths as text."""
from __future__ import annotations

import json
import math
import random
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))
from spec_source import MAX_DEPTH, MAX_PROBLEMS, nearest, parse, path_text  # noqa: E402


def faults(text):
    """Return (line, column, path) of each problem, and the messages."""
    document = parse(text)
    return [one[:3] for one in document.problems], [one[3] for one in document.problems]


# === Flawless text: as json.loads ===

STRINGS = ["", "a", "two words", "\u00e9\u00df", "\u4e2d\u6587", "\U0001f600",
           "quote \" and \\ and /", "tab\tnew\nline\r", "\x7f\x80\u2028", "\b\f",
           "{not: [json]} // no comment", "\x00\x1f", "'single'", "\ufeff inside"]
NUMBERS = ["0", "-0", "1", "-17", "999999999999999999", "-999999999999999999",
           "0.0", "-0.0", "1.5", "1e5", "1E-5", "-2.25e+10", "1e308",
           "5e-324", "1e-400", "0.1", "123456789012345678901234567890.0", "0e0", "1.7976931348623157e308"]


def random_space(dice):
    return "".join(dice.choice(" \t\n\r") for _ in range(dice.choice([0, 0, 0, 1, 1, 2, 5])))


def random_string(dice):
    """Return the JSON text of a string, each character escaped or not by chance."""
    codes = [34, 92, 47, 65, 233, 0x20ac, 0x1f600, 10]
    text = dice.choice(STRINGS) + "".join(chr(dice.choice(codes)) for _ in range(dice.randrange(4)))
    pieces = []
    for letter in text:
        plain = json.dumps(letter, ensure_ascii=dice.random() < 0.5)[1:-1]
        code = json.dumps(letter)[1:-1]
        pieces.append(code.upper().replace("\\U", "\\u") if code.startswith("\\u") and dice.random() < 0.3 else plain)
    return "\"%s\"" % "".join(pieces).replace("/", dice.choice(["/", "\\/"]))


def random_json(dice, depth=0):
    kind = dice.randrange(8 if depth < 6 else 5)
    if kind < 2:
        return random_string(dice)
    if kind < 4:
        return dice.choice(NUMBERS)
    if kind == 4:
        return dice.choice(["true", "false", "null"])
    members = []
    for number in range(dice.randrange(5)):
        value = random_space(dice) + random_json(dice, depth + 1) + random_space(dice)
        key = random_space(dice) + random_string(dice)[:-1] + "%d\"" % number + random_space(dice)
        members.append(value if kind == 5 else key + ":" + value)
    inside = ",".join(members) or random_space(dice)
    return "[" + inside + "]" if kind == 5 else "{" + inside + "}"


def all_paths(value, path=()):
    yield path, value
    if isinstance(value, (dict, list)):
        for part, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from all_paths(inner, path + (part,))


def test_values_are_those_of_json_loads():
    dice = random.Random(20240229)
    for _ in range(1500):
        text = random_space(dice) + random_json(dice) + random_space(dice)
        document = parse(text)
        assert document.problems == [], text
        assert repr(document.value) == repr(json.loads(text)), text


def offset_of(text, position):
    """Return the offset of (line, column), counted letter by letter."""
    starts = [0] + [place + 1 for place, mark in enumerate(text)
                    if mark == "\n" or (mark == "\r" and text[place + 1:place + 2] != "\n")]
    return starts[position[0] - 1] + position[1] - 1


def test_each_position_is_where_its_value_can_be_read_again():
    dice = random.Random(7)
    decoder = json.JSONDecoder()
    seen = 0
    for _ in range(500):
        text = random_space(dice) + "[%s,\r\n%s]" % (random_json(dice), random_json(dice)) + random_space(dice)
        document = parse(text)
        for path, value in all_paths(document.value):
            assert repr(decoder.raw_decode(text, offset_of(text, document.position(path)))[0]) == repr(value)
            if path and isinstance(path[-1], str):
                assert decoder.raw_decode(text, offset_of(text, document.key_position(path)))[0] == path[-1]
            seen += 1
    assert seen > 1500


def test_positions_count_lines_and_characters_from_one():
    document = parse("{\n  \"\u00e9\U0001f600\": {\"b\": [1,\r\n 22]},\r\"c\":\ttrue}")
    assert document.problems == []
    assert document.position(()) == (1, 1)
    assert document.key_position(("\u00e9\U0001f600",)) == (2, 3) and document.position(("\u00e9\U0001f600",)) == (2, 9)
    assert document.position(("\u00e9\U0001f600", "b", 0)) == (2, 16)
    assert document.position(("\u00e9\U0001f600", "b", 1)) == (3, 2)
    assert document.position(["c"]) == (4, 6) and document.key_position(("c",)) == (4, 1)


def test_what_is_not_there_has_the_position_of_its_nearest_ancestor():
    document = parse("{\"a\":\n [1, {\"b\": 2}]}")
    assert document.position(("a", 1, "x", "y")) == document.position(("a", 1)) == (2, 6)
    assert document.position(("a", 7)) == (2, 2) and document.position(("nothing", 3)) == (1, 1)
    assert document.key_position(("a", 1)) == (2, 6) and document.key_position(("a", 1, "x")) == (2, 6)
    assert document.key_position(("nothing",)) == (1, 1) and parse("").position(("a",)) == (1, 1)


# === Faults: text, value, then (line, column, path, part of the message) of every problem ===

FAULTS = [
    ("", None, [(1, 1, (), "empty")]),
    (" \n ", None, [(1, 1, (), "empty")]),
    ("{\"a\": 1,\n \"b\": 2,\n \"a\": 3}", {"a": 1, "b": 2}, [(3, 2, ("a",), "first \"a\" is on line 1")]),
    ("{\"a\":1,\"a\":2,\n\"a\":3}", {"a": 1}, [(1, 8, ("a",), "line 1"), (2, 1, ("a",), "line 1")]),
    ("{\"a\":1,\"\\u0061\":2}", {"a": 1}, [(1, 8, ("a",), "duplicate")]),
    ("{\"x\":{\"a\":1},\"x\":{\"b\":1,\"b\":NaN}}", {"x": {"a": 1}},
     [(1, 14, ("x",), "duplicate"), (1, 25, ("x", "b"), "duplicate"), (1, 29, ("x", "b"), "NaN")]),
    ("[NaN, Infinity,\n -Infinity]", [math.nan, math.inf, -math.inf], [
        (1, 2, (0,), "no NaN"), (1, 7, (1,), "no Infinity"), (2, 2, (2,), "no -Infinity")]),
    ("[1e999, -1e999]", [math.inf, -math.inf], [(1, 2, (0,), "too large"), (1, 9, (1,), "too large")]),
    ("[1234567890123456789]", [1234567890123456789], [(1, 2, (0,), "19 digits")]),
    ("-" + "9" * 20, -int("9" * 20), [(1, 1, (), "20 digits")]),
    ("\"\\ud800\"", "\ud800", [(1, 2, (), "surrogate")]),
    ("\"x\\udc00\\ud83d\\ude00\\ud83d\"", "x\udc00\U0001f600\ud83d", [(1, 3, (), "udc00"), (1, 21, (), "ud83d")]),
    ("\"\\ud800\\u0041\"", "\ud800A", [(1, 2, (), "surrogate")]),
    ("\"\ud800\"", "\ud800", [(1, 2, (), "U+D800")]),
    ("\ufeff{\"a\":x}", {"a": "x"}, [(1, 1, (), "byte-order mark"), (1, 6, ("a",), "in double quotes: \"x\"")]),
    ("\ufeff", None, [(1, 1, (), "byte-order mark"), (1, 1, (), "empty")]),
    ("[\"a\tb\x00\"]", ["a\tb\x00"], [(1, 4, (0,), "write \\t"), (1, 6, (0,), "write \\u0000")]),
    ("[\"a\nb c\"]", ["a\nb c"], [(1, 4, (0,), "write \\n")]),
    ("{\"a\": 1,}", {"a": 1}, [(1, 8, (), "comma before the closing }")]),
    ("{\"a\": [1, 2 , ]}", {"a": [1, 2]}, [(1, 13, ("a",), "comma before the closing ]")]),
    ("[1,,2]", [1, 2], [(1, 4, (), "a value is missing before this comma")]),
    ("[,]", [], [(1, 2, (), "a value is missing")]),
    ("{,\"a\":1}", {"a": 1}, [(1, 2, (), "a key is missing")]),
    ("// note\n{\"a\": 1 /* two\nlines */, # three\n\"b\": 2}", {"a": 1, "b": 2}, [
        (1, 1, (), "no comments"), (2, 9, (), "no comments"), (3, 11, (), "no comments")]),
    ("[1 /* open", [1], [(1, 4, (), "no comments"), (1, 11, (), "add ] here")]),
    ("{'a': 'b\"c'}", {"a": "b\"c"}, [(1, 2, (), "double quotes only, not single ones (and 1 more)")]),
    ("{\"a\": 1\n \"b\": 2}", {"a": 1, "b": 2}, [(2, 2, (), "a comma is missing before this key")]),
    ("[1 2\n[3]{}]", [1, 2, [3], {}], [
        (1, 4, (), "comma is missing before this value"), (2, 1, (), "comma"), (2, 4, (), "comma")]),
    ("{\"a\" 1, \"b\" {}}", {"a": 1, "b": {}}, [
        (1, 6, ("a",), "colon is missing"), (1, 13, ("b",), "colon is missing")]),
    ("{\"a\" = 1, \"b\" => 2}", {"a": 1, "b": 2}, [(1, 6, ("a",), "not ="), (1, 15, ("b",), "not =")]),
    ("{a: 1, $b: 2}", {"a": 1, "$b": 2}, [(1, 2, (), "a key must be in double quotes: \"a\""), (1, 8, (), "\"$b\"")]),
    ("{\"a\": , \"b\": }", {"a": None, "b": None}, [
        (1, 6, ("a",), "value of the key \"a\" is missing"), (1, 13, ("b",), "missing")]),
    ("{\"a\", \"b\"}", {"a": None, "b": None}, [(1, 5, ("a",), "colon and a value"), (1, 10, ("b",), "colon and a value")]),
    ("{: 1}", {}, [(1, 2, (), "a key is missing before this colon")]),
    ("[\"a\": 1]", ["a"], [(1, 5, (), "comma is missing"), (1, 5, (1,), "a colon in a list")]),
    ("{\"a\": \"x,\n \"b\": 2}", {"a": "x", "b": 2}, [(1, 7, ("a",), "not closed on its line")]),
    ("{\"a\": [\"x],\n \"b\": 2}", {"a": ["x"], "b": 2}, [(1, 8, ("a", 0), "not closed on its line")]),
    ("[\"abc", ["abc"], [(1, 2, (0,), "not closed"), (1, 6, (), "add ] here")]),
    ("[\"abc\\", ["abc\\"], [(1, 2, (0,), "not closed"), (1, 6, (0,), "no escape"), (1, 7, (), "add ] here")]),
    ("[\"say \"hi\" now\"]", ["say "], [(1, 7, (), "write \\\" for a quote")]),
    ("{\"a\": 1} x", {"a": 1}, [(1, 10, (), "text after the end")]),
    ("{\"a\": 1}}", {"a": 1}, [(1, 9, (), "closes nothing")]),
    ("{\"a\": 1}, {}", {"a": 1}, [(1, 9, (), "a comma after the end")]),
    ("{\"a\": [1, {\"b\": 2", {"a": [1, {"b": 2}]}, [(1, 18, ("a", 1), "add }]} here")]),
    ("{\"a\": [1, 2}", {"a": [1, 2]}, [(1, 12, ("a",), "] is missing before this }")]),
    ("[[1, 2}, 3]", [[1, 2], 3], [(1, 7, (0,), "] is missing before this }")]),
    ("[True, None, undefined]", [True, None, None], [
        (1, 2, (0,), "true, not True"), (1, 8, (1,), "null, not None"), (1, 14, (2,), "null")]),
    ("[01, +1, .5, 1., 0x1F, 1_000, 1.e5, --1, 1a]", [None] * 9, [
        (1, 2, (0,), "leading zeros"), (1, 6, (1,), "plus sign"), (1, 10, (2,), "both sides"), (1, 14, (3,), "both sides"),
        (1, 18, (4,), "decimal"), (1, 24, (5,), "underscores"), (1, 31, (6,), "both sides"), (1, 37, (7,), "double quotes"),
        (1, 42, (8,), "double quotes")]),
    ("[\"C:\\data\", \"\\u12g4\", \"\\x\"]", ["C:\\data", "\\u12g4", "\\x"], [
        (1, 5, (0,), "\"\\d\" is no escape"), (1, 14, (1,), "four hexadecimal digits"), (1, 24, (2,), "no escape")]),
    ("{\u201ca\u201d: 1}", {}, [(1, 2, (), "straight double quote")]),
    ("[1,\u00a02]", [1, 2], [(1, 4, (), "U+00A0")]),
    ("[1, @]", [1], [(1, 5, (1,), "stands where a value should")]),
    ("{@}", {}, [(1, 2, (), "stands where a key in double quotes should")]),
    ("}", None, [(1, 1, (), "stands where a value should")]),
]


def expected_text(value):
    return repr(value)                          # tells nan, inf, -0.0 and the types apart


@pytest.mark.parametrize("text,value,problems", FAULTS, ids=[ascii(row[0])[:50] for row in FAULTS])
def test_every_fault_is_reported_where_it_stands(text, value, problems):
    document = parse(text)
    assert [one[:3] for one in document.problems] == [one[:3] for one in problems]
    for found, wanted in zip(document.problems, problems):
        assert wanted[3] in found[3]
        assert "\n" not in found[3] and found[3].isprintable() and len(found[3]) < 200
    assert expected_text(document.value) == expected_text(value)


def test_positions_in_a_duplicate_s_value_are_those_of_the_first():
    document = parse("{\"a\": {\"b\": 1},\n \"a\": {\"b\": 2, \"c\": 3}}")
    assert document.position(("a", "b")) == (1, 13) and document.key_position(("a",)) == (1, 2)
    assert document.position(("a", "c")) == document.position(("a",)) == (1, 7)


def test_what_json_loads_refuses_is_refused_and_what_it_takes_is_taken():
    """Break flawless texts by one character, at random, and compare verdicts (duplicates and large numbers aside)."""
    dice = random.Random(99)
    broken = 0
    for _ in range(3000):
        text = random_json(dice)
        place = dice.randrange(len(text) + 1)
        marks = ["", ",", "\"", "'", "{", "]", "}", ":", "\\", "/", "#", "\n", "x", "0", "-", "\x01"]
        text = text[:place] + dice.choice(marks) + text[place + 1:]
        try:
            value = json.loads(text, parse_constant=lambda name: 1 / 0)
        except (ValueError, ZeroDivisionError):
            broken += 1
            assert parse(text).problems, text
            continue
        document = parse(text)
        ours = ("duplicate", "digits", "too large", "surrogate")
        odd = [one for one in document.problems if not any(word in one[3] for word in ours)]
        assert odd == [], text
        if not document.problems:
            assert repr(document.value) == repr(value), text
    assert broken > 500


# === Limits ===

@pytest.mark.parametrize("opening,closing", [("[", "]"), ("{\"a\":", "}")])
def test_nesting_to_the_limit_is_fine_and_one_more_is_not(opening, closing):
    inner = "1"
    assert parse(opening * MAX_DEPTH + inner + closing * MAX_DEPTH).problems == []
    found, messages = faults(opening * (MAX_DEPTH + 1) + inner + closing * (MAX_DEPTH + 1))
    assert [one[:2] for one in found] == [(1, len(opening) * MAX_DEPTH + 1)] and "deeper than 64" in messages[0]


def test_what_stands_after_a_value_that_is_too_deep_is_still_read():
    text = "{\"a\": " + "[" * 70 + "\"]\\\"]\"" + "]" * 70 + ",\n\"b\": NaN}"
    document = parse(text)
    assert [(one[0], one[3][:6]) for one in document.problems] == [(1, "nested"), (2, "JSON h")]
    assert math.isnan(document.value["b"])


@pytest.mark.parametrize("text", ["[" * 200000, "{\"a\":" * 200000, "[" * 200000 + "]" * 200000, "{" * 1000,
                                  "\"" + "\\" * 99999, "[\"" * 50000,
                                  "-" * 100000, "/*" * 50000, "'" * 100001, "[1,\n" * 60 + "\"x\n" * 3000, ",".join("\n" * 99)])
def test_no_text_exhausts_the_parser(text):
    document = parse(text)
    assert document.problems and document.problems == sorted(document.problems, key=lambda one: one[:2])


def test_any_text_gets_an_answer():
    dice = random.Random(4)
    for _ in range(4000):
        text = "".join(dice.choice("{}[]:,\"'\\u0dn19-+.eE tfNI/*#\n\r\ufeff\ud800\x01\u00e9") for _ in range(dice.randrange(40)))
        document = parse(text)
        for line, column, path, message in document.problems:
            assert line >= 1 and column >= 1 and message
            path_text(path)
            document.position(path)


def test_problems_have_an_end():
    found, messages = faults("[" + "1 " * 5000 + "]")
    assert len(found) == MAX_PROBLEMS + 1 and "first 200" in messages[-1]


def test_an_integer_of_any_length_is_answered():
    document = parse("[" + "9" * 5000 + ", 1]")
    assert "5000 digits" in document.problems[0][3] and document.value[1] == 1


# === Paths and names ===

@pytest.mark.parametrize("path,text", [
    ((), ""), (("stages",), "stages"), (("stages", 2, "retry", "attempts"), "stages[2].retry.attempts"), ((0, 1), "[0][1]"),
    (("params", "a b"), "params[\"a b\"]"), (("x-note",), "[\"x-note\"]"), (("a", ""), "a[\"\"]"),
    (("a", "q\"\\"), "a[\"q\\\"\\\\\"]"),
    (("\u00e9t\u00e9", "$schema"), "\u00e9t\u00e9[\"$schema\"]"), (("a", "\ud800\x1b\n"), "a[\"\\ud800\\u001b\\n\"]"),
    (("a", "x y" * 50), "a[\"" + ("x y" * 50)[:57] + "...\"]")])
def test_path_text(path, text):
    assert path_text(path) == text


@pytest.mark.parametrize("name,found", [
    ("processer", "processor"), ("output_dir", "outputDir"), ("OUTPUTDIR", "outputDir"), ("output", "outputs"), ("Name", "name"),
    ("retries", "retry"), ("xyz", None), ("", None), ("p" * 5000, None), ("timeout", "timeoutSec")])
def test_nearest(name, found):
    assert nearest(name, ["name", "processor", "outputDir", "outputs", "retry", "timeoutSec"]) == found


def test_nearest_of_nothing_is_nothing():
    assert nearest("name", []) is None


def test_nearest_does_not_compare_long_texts():
    assert nearest("x" * 100, ["x" * 99]) == "x" * 99 and nearest("x" * 101, ["x" * 100]) is None
