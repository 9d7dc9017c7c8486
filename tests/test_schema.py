"""pipeline.schema.json says of a pipeline file what the validator says, but for what a schema cannot see.

Both get the same cases: the tables of test_spec, and many values under each key. The checker below knows just the keywords
that the schema uses, and refuses a schema with others: an unknown keyword would be a rule that nobody checks.
"""
from __future__ import annotations

import json
import os
import re

import pytest
import test_spec
from conftest import ROOT

import pipeline_runner
import spec_checks
import spec_values
import starters

SCHEMA = json.loads((ROOT / "pipeline.schema.json").read_bytes().decode("utf-8"))
REMARKS = {"$schema", "$defs", "title", "description", "default"}      # keywords that refuse nothing

# What a schema cannot see: a pattern of "KEY: the validator's message", and why.
UNSEEN = {
    r"no stage is named": "names that must be somewhere else in the file",
    r"makes a cycle": "the same",
    r"is listed later": "the same",
    r"has the name": "names that must not be somewhere else in the file",
    r"is an output of stages": "the same",
    r"differ in case only": "the same",
    r"in the outputDir of stages": "the same",
    r"there is no file": "files",
    r"is not executable": "the same",
    r"goes with forEach": "only where `defaults` has a say in it: objects merged",
    r"needs inputs to cut": "the same",
    r"goes with inputs, not with forEach": "the same",
    r'the key "bytes" is missing': "the same",
    r'with a launcher there is no "filter"': "the same",
    r"uses \{(cpuCores|memoryMB)\}, but has no resources": "the same",
    r"must be an integer .*got -?\d+\.0$": "to JSON Schema 2.0 and 2 are the same number",
    r"list of integers.*got \[\d+\.0\]": "the same",
    r"must be a path without control characters, got .*[\u00a0\u200b]": "patterns have no common name for all that is not printable",
    r"has one of the signs": "what Windows does not allow in names, told there only",
    r'^(processor|0): must be .*, got "(\\\\\\\\|[A-Za-z]:(/|\\\\))': "an absolute path of the other system",
}
ALIKE = [2.0, [2.0], "a\u200bb", "a\u00a0b", "C:/x.py", "C:\\x.py", "\\\\host\\x"]


# --- the checker

def is_equal(one, other):
    return type(one) is type(other) and one == other or is_number(one) and is_number(other) and one == other


def is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)


TYPES = {"object": lambda value: isinstance(value, dict), "array": lambda value: isinstance(value, list), "string": lambda value: isinstance(value, str),
         "boolean": lambda value: isinstance(value, bool), "null": lambda value: value is None, "number": is_number,
         "integer": lambda value: is_number(value) and value == int(value)}


def target_of(reference):
    assert reference.startswith("#/"), reference
    found = SCHEMA
    for part in reference[2:].split("/"):
        found = found[part]
    return found


def members(schema, value):
    """Return the checks of an object's members."""
    if not isinstance(value, dict):
        return
    properties, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
    for key, one in value.items():
        ways = [properties[key]] if key in properties else []
        ways += [patterns[pattern] for pattern in patterns if re.search(pattern, key)]
        for way in ways or [schema.get("additionalProperties", True)]:
            yield accepts(way, one)


def elements(schema, value):
    if isinstance(value, list):
        first = schema.get("prefixItems", [])
        for place, one in enumerate(value):
            yield accepts(first[place] if place < len(first) else schema.get("items", True), one)


RULES = {
    "$ref": lambda rule, value, schema: accepts(target_of(rule), value),
    "type": lambda rule, value, schema: any(TYPES[name](value) for name in ([rule] if isinstance(rule, str) else rule)),
    "enum": lambda rule, value, schema: any(is_equal(value, one) for one in rule),
    "const": lambda rule, value, schema: is_equal(value, rule),
    "pattern": lambda rule, value, schema: not isinstance(value, str) or re.search(rule, value) is not None,
    "minLength": lambda rule, value, schema: not isinstance(value, str) or len(value) >= rule,
    "minimum": lambda rule, value, schema: not is_number(value) or value >= rule,
    "maximum": lambda rule, value, schema: not is_number(value) or value <= rule,
    "exclusiveMinimum": lambda rule, value, schema: not is_number(value) or value > rule,
    "minItems": lambda rule, value, schema: not isinstance(value, list) or len(value) >= rule,
    "contains": lambda rule, value, schema: not isinstance(value, list) or any(accepts(rule, one) for one in value),
    "required": lambda rule, value, schema: not isinstance(value, dict) or set(rule) <= value.keys(),
    "propertyNames": lambda rule, value, schema: not isinstance(value, dict) or all(accepts(rule, key) for key in value),
    "anyOf": lambda rule, value, schema: any(accepts(one, value) for one in rule),
    "allOf": lambda rule, value, schema: all(accepts(one, value) for one in rule),
    "not": lambda rule, value, schema: not accepts(rule, value),
    "if": lambda rule, value, schema: not accepts(rule, value) or accepts(schema["then"], value),
    "then": lambda rule, value, schema: "if" in schema,
    "properties": lambda rule, value, schema: all(members(schema, value)),
    "patternProperties": lambda rule, value, schema: True,        # with properties
    "additionalProperties": lambda rule, value, schema: "properties" in schema or all(members(schema, value)),
    "items": lambda rule, value, schema: all(elements(schema, value)),
    "prefixItems": lambda rule, value, schema: "items" in schema,
}


def accepts(schema, value):
    """Tell whether a value is valid; every keyword of the schema must be known."""
    if isinstance(schema, bool):
        return schema
    assert schema.keys() <= RULES.keys() | REMARKS, schema.keys() - RULES.keys() - REMARKS
    return all(RULES[keyword](rule, value, schema) for keyword, rule in schema.items() if keyword in RULES)


def every_schema(schema):
    """Yield a schema and all that it is made of."""
    yield schema
    if isinstance(schema, dict):
        for keyword, rule in schema.items():
            if keyword in ("properties", "patternProperties", "$defs"):
                inner = list(rule.values())
            elif keyword in ("anyOf", "allOf", "prefixItems"):
                inner = rule
            else:
                inner = [rule] if keyword in ("items", "additionalProperties", "propertyNames", "contains", "not", "if", "then") else []
            for one in inner:
                yield from every_schema(one)


# --- the schema itself

def test_every_keyword_of_the_schema_is_known_to_the_checker_and_right_where_it_stands():
    for schema in every_schema(SCHEMA):
        if isinstance(schema, dict):
            assert schema.keys() <= RULES.keys() | REMARKS, schema
            assert ("if" in schema) == ("then" in schema) and ("prefixItems" not in schema or "items" in schema)
            assert "$ref" not in schema or isinstance(target_of(schema["$ref"]), dict)
            if "pattern" in schema:
                re.compile(schema["pattern"])


def test_the_checker_checks():
    for schema, good, bad in [({"type": "integer", "minimum": 1}, 2, True), ({"enum": ["a"]}, "a", "b"), ({"items": {"type": "null"}}, [None], [0]),
                              ({"properties": {"a": {"const": True}}, "additionalProperties": False}, {"a": True}, {"b": 1}), ({"const": True}, True, 1),
                              ({"if": {"type": "string"}, "then": {"minLength": 2}}, "ab", "a"), ({"prefixItems": [{"const": 1}], "items": {"const": 2}}, [1, 2], [1, 1]),
                              ({"contains": {"const": 1}}, [2, 1], [2]), ({"propertyNames": {"pattern": "^a"}}, {"ab": 1}, {"b": 1}), ({"required": ["a"]}, {"a": 1}, {})]:
        assert accepts(schema, good) and not accepts(schema, bad), schema
    with pytest.raises(AssertionError):
        accepts({"format": "date"}, "x")


def test_the_keys_and_defaults_are_the_validators():
    stage, defaults = SCHEMA["$defs"]["stage"]["properties"], SCHEMA["$defs"]["defaults"]["properties"]
    assert list(stage) == ["name"] + list(defaults) and set(stage) == set(spec_checks.STAGE_CHECKS)
    assert set(SCHEMA["properties"]) == set(spec_checks.PIPELINE_KEYS)
    assert {key: one["default"] for key, one in defaults.items() if "default" in one} == spec_checks.STAGE_DEFAULTS


def test_editors_have_something_to_say_about_every_key():
    for schema in every_schema(SCHEMA):
        for key, one in schema.get("properties", {}).items() if isinstance(schema, dict) and "additionalProperties" in schema else ():
            described = one if isinstance(one, bool) or "description" in one else target_of(one["$ref"])
            assert one is True or described["description"].endswith("."), key


# --- both, on the same cases

def problems_of(value, root):
    found = spec_values.Problems()
    spec_checks.check_pipeline(value, str(root), lambda word, known: None, found)
    return ["%s: %s" % (path[-1] if path else "", message) for path, message in found.found]


def compare(value, root):
    """Assert that validator and schema agree on a spec, or that the validator found only what a schema cannot see."""
    problems = problems_of(value, root)
    if accepts(SCHEMA, value):
        assert [one for one in problems if not any(re.search(pattern, one) for pattern in UNSEEN)] == [], value
    else:
        assert problems, "the schema refuses what is valid: %s" % json.dumps(value)
    return problems


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("schema")
    (root / "bin").mkdir()
    (root / "bin" / "ok.py").write_bytes(b"pass\n")
    return root


def readable(table):
    """Return the specs of a table of test_spec that are JSON at all: the rest no schema ever sees."""
    for marked, _ in table:
        try:
            yield spec_values.strict_json(test_spec.without_marks(marked)[0])
        except (ValueError, RecursionError):
            pass


def test_every_case_of_the_validators_tables(root):
    cases = list(readable(test_spec.TABLE))
    assert len(cases) > 120
    for value in cases:
        compare(value, root)
    for value in readable(test_spec.TOP + test_spec.STAGE + test_spec.NAMES + test_spec.PATHS):
        assert compare(value, root)             # each has a fault


def test_what_a_schema_cannot_see_is_seen_by_the_validator_and_let_through_by_the_schema(root):
    """The list of what is left to `validate` is no excuse for more."""
    two = '{"name": "p", "defaults": {%s}, "stages": [{"name": "a", "processor": "bin/ok.py", "outputDir": "o"%s}, {"name": "b", "processor": "bin/ok.py", "outputDir": "o"%s}]}'
    cases = [("", "", ', "needs": ["c"]'), ("", "", ', "needs": ["b"]'), ("", ', "needs": ["b"]', ""), ("", ', "outputs": ["x"]', ', "outputs": ["x"]'), ("", "", ', "outputDir": "O"'), ("", "", ', "outputDir": "p", "inputs": ["O/*"]'),
             ("", "", ', "name": "A"'.replace('"name": "A"', '"x-name": 1')), ('"prune": true', "", ""), ('"chunks": {"bytes": 9}', "", ""),
             ('"chunks": {"bytes": 9}, "inputs": ["x"]', ', "forEach": "y"', ""), ('"chunks": {"filter": true}, "inputs": ["x"]', "", ""),
             ('"launcher": ["srun"]', ', "inputs": ["x"], "outputs": ["y"], "chunks": {"bytes": 9, "filter": true}', ""), ('"launcher": ["srun", "{memoryMB}"]', "", "")]
    specs = [json.loads(two % case) for case in cases]
    specs += [dict(specs[0], stages=[dict(specs[0]["stages"][0], name="B"), dict(specs[0]["stages"][1], needs=[])]),
              dict(specs[0], stages=[dict(specs[0]["stages"][0], processor="bin/none.py")]), dict(specs[0], stages=[dict(specs[0]["stages"][0], processor="bin/none")])]
    (root / "bin" / "none").write_bytes(b"#!/bin/sh\n")
    seen = [message for spec in specs for message in compare(spec, root) if accepts(SCHEMA, spec)]
    seen += [message for value in ALIKE for _, spec in places(value) if accepts(SCHEMA, spec) for message in compare(spec, root)]
    for pattern in UNSEEN:
        if "signs" not in pattern and (os.name == "posix" or "executable" not in pattern and "processor" not in pattern):
            assert any(re.search(pattern, message) for message in seen), pattern


SCALARS = [None, True, False, 0, 1, -1, 2, 5, 256, 0.5, -0.5, 1.5, "", "a", "A", "many", "strict", "1%", "0%", "100%", "100.0%", "100.5%", "101%", "007%", ".5%", "5.%", ".%", "%", "1.2.3%", "1 %", "１%",
           "fail", "warn", "mtime", "content", "scan", "kernel", "graph", "listed", "bin/ok.py", "data/*.txt", "a/", "a//b", "./a", ".", "./", "./.", "..", "../x", "a/../b", "...", "...x", ".hidden", "a.", "a ", " a",
           "a/b.", "a /b", "/", "/abs", "\\\\host\\x", "a\\b", "c:x", "1:2", "ab:c", "con", "CON", "Con.txt", "a/nul", "a/nul.x/b", "nul/a", "console", "com1", "com", "com10", "lpt\u00b9", "lpt\u00b2.x", "aux.", "prn.a.b", "nul .txt", "a/NUL  .x/b", "CONIN$", "a/conout$.x", "conin", "con in",
           "state", "State/x", "./state", "x/../state", "src", "SRC", "bin", "locks", "loc\u212as", "stateful", "binary/x", "x/state", "a\nb", "a\n", "\n", "a\tb", "a\u0000b", "\u007f", "\u0085", "größe", "日本/語", "x" * 64, "x" * 65,
           "a-b_c.d", "-a", "_a", "a:b", "a*", "{", "}", "{{", "}}", "{cpuCores}", "{memoryMB}M", "{{{cpuCores}}}", "{{cpuCores}", "{memory}", "a}}{{b"]
BOXED = [[], {}, [[]], [{}], [None], [1], [0], [255], [256], [True], [75, 2], ["a"], [""], ["", "a"], ["a", ""], ["a", 1], ["../x"], ["a\u0000"], ["{"], ["a", "{memoryMB}"], ["scan"], ["kernel", "hook"], ["sacn"], [1.5],
         {"a": 1}, {"A": "1"}, {"": "1"}, {"A=B": "1"}, {"PIPELINE_X": "1"}, {"pipeline_x": "1"}, {"P\u0131PELINE_X": "1"}, {"A": "\u0000"}, {"A\u0000": "1"}, {"x-a": 1}, {"x-a": "1"}, {"X-a": 1}, {"enabled": True},
         {"bytes": 9}, {"bytes": 9, "filter": True, "x-note": None}, {"keepChunks": True}, {"waitSeconds": 0.5}]
VALUES = SCALARS + BOXED + ALIKE


def places(value):
    """Yield specs with a value under each key there is."""
    base = {"name": "a", "processor": "bin/ok.py", "outputDir": "o"}
    for key in spec_checks.STAGE_CHECKS:
        yield key, {"name": "p", "stages": [dict(base, **{key: value})]}
        yield key, {"name": "p", "defaults": {key: value}, "stages": [base]}
    for key in spec_checks.PIPELINE_KEYS:
        yield key, dict({"name": "p", "stages": [base]}, **{key: value})
    for outer, schema in SCHEMA["$defs"]["defaults"]["properties"].items():
        for key in schema.get("properties", {}):
            more = {"bytes": 9} if outer == "chunks" else {}
            yield outer + "." + key, {"name": "p", "stages": [dict(base, inputs=["x"], **{outer: dict(more, **{key: value})})]}
    for key in ("allow", "require", "strict", "layers", "networkAttempts"):
        yield "offline." + key, {"name": "p", "offline": {key: value}, "stages": [base]}
        yield "offline." + key, {"name": "p", "offline": dict({"layers": ["scan"]}, **{key: value}), "stages": [base]}
    yield "seal.keyFile", {"name": "p", "seal": {"keyFile": value}, "stages": [base]}


def test_every_key_with_every_kind_of_value(root):
    count = 0
    for value in VALUES:
        for _, spec in places(value):
            compare(spec, root)
            count += 1
    assert count > 10000


@pytest.mark.parametrize("text", [
    '"offline": {"require": "kernel", "layers": ["scan"]}', '"offline": {"strict": true, "layers": ["hook"]}', '"offline": {"strict": true, "require": "scan", "layers": ["hook"]}',
    '"offline": {"strict": true, "layers": ["hook", "kernel"]}', '"offline": {"strict": false, "layers": []}', '"offline": {"require": "kernel"}'])
def test_the_layers_of_the_guard(root, text):
    compare(json.loads(test_spec.whole(text)), root)


@pytest.mark.parametrize("members", [
    '"inputs": ["x"], "chunks": {"bytes": 1}', '"inputs": [], "chunks": {"bytes": 1}', '"chunks": {"bytes": 1}', '"inputs": ["x"], "chunks": {}', '"inputs": ["x"], "chunks": null, "forEach": "y"',
    '"inputs": ["x"], "chunks": {"bytes": 1}, "forEach": "y"', '"forEach": "y", "prune": true, "maxFailedTasks": 3', '"prune": true', '"prune": false', '"maxFailedTasks": 0', '"maxFailedTasks": 1', '"forEach": ["y", "z"]'])
def test_what_goes_with_what(root, members):
    value = json.loads(test_spec.stage(members))
    assert bool(compare(value, root)) == (not accepts(SCHEMA, value))       # without `defaults` a schema sees all of it


@pytest.mark.parametrize("defaults, expected", [('{"processor": "bin/ok.py", "outputDir": "d"}', True), ('{"processor": "bin/ok.py"}', False), ("{}", False)])
def test_required_keys_may_come_from_defaults(root, defaults, expected):
    value = json.loads('{"name": "p", "defaults": %s, "stages": [{"name": "a"}]}' % defaults)
    assert accepts(SCHEMA, value) == expected == (not problems_of(value, root))


def test_the_demo_and_what_init_and_new_stage_write_are_valid():
    demo = json.loads((ROOT / "pipeline.json").read_bytes())
    assert demo["$schema"] == "./pipeline.schema.json" and accepts(SCHEMA, demo)
    begun = starters._project_files("x")["pipeline.json"][0].decode("utf-8")
    assert accepts(SCHEMA, json.loads(begun))
    for kind in ("lines", "shell"):
        begun = starters._with_stage(begun, starters._entry(kind, "stage_%s.py" % kind, kind, ["a/*"], "data/" + kind))
    assert accepts(SCHEMA, json.loads(begun)) and pipeline_runner.VERSION
