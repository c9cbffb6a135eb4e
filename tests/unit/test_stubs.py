"""Unit: typed functions for the modules of a server: mypy accepts them in strict mode, also with hostile names."""

from __future__ import annotations

import ast
import asyncio
from types import SimpleNamespace

import pytest

from runner.client.stubs import Described, write_stubs
from tests.operato_package import checked, imported

FILE = {
    "type": "object",
    "properties": {"$file": {"type": "object", "properties": {"id": {"type": "string"}}, "required": ["id"]}},
    "required": ["$file"],
}
ROW = {
    "type": "object",
    "description": "One row.",
    "properties": {"name": {"type": "string"}, "price": {"type": "number"}, "unit": {"enum": ["piece", "kg"]}},
    "required": ["name"],
}
INVOICE = {
    "type": "object",
    "properties": {
        "rows": {"type": "array", "items": ROW, "description": "What was ordered."},
        "times": {"type": "integer", "default": 2},
        "mode": {"enum": ["fast", "slow"], "default": "fast"},
        "note": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None},
        "client": {"type": "boolean", "default": True},
        "picture": {"anyOf": [{"type": "string"}, FILE]},
        "wrong": {"type": "integer", "default": "x"},
    },
    "required": ["rows"],
    "additionalProperties": False,
}
TREE = {
    "$ref": "#/$defs/node",
    "$defs": {
        "node": {
            "type": "object",
            "properties": {"value": {"type": "integer"}, "inner": {"type": "array", "items": {"$ref": "#/$defs/node"}}},
            "required": ["value"],
        }
    },
}
LOOP = {
    "$ref": "#/$defs/a",
    "$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}, {"type": "array", "items": {"$ref": "#"}}]}},
}


def taking(properties, *required):
    """Return the schema of an object."""
    return {"type": "object", "properties": properties, "required": [*required]}


NUMBERS = {"type": "object", "additionalProperties": {"type": "number"}}
FRIENDLY = [
    Described("invoice", 'Add up an order. It\'s "quoted" \\ here.', INVOICE, NUMBERS),
    Described("tree", "", TREE, {"type": ["array", "null"], "items": ROW}),
    Described("size-of", "", {"type": "string"}, {"type": "integer"}),
    Described("plain"),
    Described("picture", "", None, FILE),
]
NASTY_TEXT = '"""\nimport os; os.abort()\n"""\\\u202e\x00\ud800\N{ZERO WIDTH SPACE}\r\'\'\' \\N{DASH} é 한글 {x} %s'
NASTY_KEYS = ["class", "a-b", "", "1st", "__x", "_t", "self", "é", '"', "\n", "a b", "\ud800", "None", "$file", "str"]
NUMBER, TEXT = {"type": "integer"}, {"type": "string"}
DEFAULTS = {
    "a": {"type": "number", "default": float("inf")},
    "b": {"default": [1]},
    "c": {"type": "string", "default": NASTY_TEXT},
    "d": {"type": "integer", "default": True},
    "e": {"enum": [1], "default": True},
    "f": 7,
    "g": {"type": "string", "default": None},
}
NAMES = ["class", "none", "str", "0day", "a-b", "a.b", "a_b", "a-b.async", "list"]
MORE_NAMES = ["type", "int", "client", "operato", "import", "a--b", "a_b_2", "object", "print"]
HOSTILE = [
    *(Described(name, NASTY_TEXT) for name in NAMES),
    *(Described(name) for name in MORE_NAMES),
    Described("keys", NASTY_TEXT, taking(dict.fromkeys(NASTY_KEYS, NUMBER), *NASTY_KEYS[:5])),
    Described("hides", "", taking({"str": TEXT, "x": {**TEXT, "description": NASTY_TEXT}}), TEXT),
    Described("names", "", taking({"input": {}, "client": {}, "client_": {}, "int": NUMBER}, "client"), ROW),
    Described("inner", "", taking({"o": taking({"int": TEXT, "other": NUMBER, "InnerO": ROW})})),
    Described("choices", "", {"enum": ["'", '"', "\\", "\n", "\ud800", "\u202e", True, 1, None, -5, NASTY_TEXT]}),
    Described("floats", "", {"enum": [1.5, {"a": 1}]}, {"const": [1]}),
    Described("loop", "", LOOP, LOOP),
    Described("lost", "", {"$ref": "#/$defs/none"}, {"$ref": "https://example.org/x"}),
    Described("allowed", "", {"allOf": [{"type": "object"}, ROW]}, {"allOf": [ROW]}),
    Described("false", "", False, True),
    Described("wild", "", {"type": {"x": 1}, "properties": 3, "required": "abc"}, {"type": [], "enum": []}),
    Described("defaults", "", taking(DEFAULTS)),
    Described(
        "tuples", "", {"type": "array", "prefixItems": [TEXT, ROW], "items": False}, {"type": "array", "items": [ROW]}
    ),
    Described("deep", "", {"type": "array", "items": {}}),
    Described("required-missing", "", taking({"a": {}}, "b")),
]
deep = HOSTILE[-2].input_schema
for _ in range(60):
    deep["items"] = deep = {"type": "array", "items": {}}
USE = """

def use(client: _o.Client) -> None:
    reveal_type(invoice(client, rows=[{'name': 'tea', 'unit': 'kg'}], mode='slow', picture=_o.File(b'x')))
    invoice(client, rows=[{'name': 'tea', 'unit': 'ton'}])  # E1
    invoice(client, rows=[], mode='quick')  # E2
    invoice(client)  # E3
    reveal_type(tree(client, {'value': 1, 'inner': [{'value': 2}]}))
    tree(client, {'value': 1, 'inner': [{'value': '2'}]})  # E4
    reveal_type(size_of(client, 'x', _how={'key': 'k'}))


async def wait(client: _o.AsyncClient) -> None:
    reveal_type(await invoice_async(client, rows=[]))
    reveal_type(await picture_async(client))
"""


def test_mypy_accepts_it_and_finds_the_mistakes_of_callers(tmp_path, tmp_path_factory):
    text = write_stubs([*FRIENDLY, *HOSTILE])
    file = tmp_path / "stubs.py"
    file.write_bytes((text + USE).encode())  # it is UTF-8, with any names

    lines = checked(file, tmp_path_factory.getbasetemp() / "mypy", "3.10").splitlines()

    errors = {int(line.split(":")[1]) for line in lines if ": error:" in line}
    wanted = {at for at, line in enumerate((text + USE).split("\n"), 1) if "# E" in line}
    assert errors == wanted, "\n".join(lines)
    shown = [line.partition("Revealed type is ")[2] for line in lines if "Revealed type" in line]
    assert shown[0] == '"dict[str, float]"', shown
    assert "TypedDict" in shown[1]
    assert "None" in shown[1]
    assert shown[2:] == ['"int"', '"dict[str, float]"', '"dict[str, Any]"']


def test_its_functions_call_the_module_with_what_was_given():
    sent = []

    def call(name, value, **how):
        sent.append((name, value, how))
        return "answer"

    async def wait(name, value, **how):
        return call(name, value, **how)

    with imported():
        made = {}
        exec(compile(write_stubs([*FRIENDLY, *HOSTILE]), "stubs.py", "exec"), made)
    client, waiting = SimpleNamespace(call=call), SimpleNamespace(call=wait)

    assert made["invoice"](client, rows=[], note="x") == "answer"
    assert made["size_of"](client, "x", _how={"version": "3"}) == "answer"
    assert asyncio.run(made["size_of_async"](waiting, "y")) == "answer"
    made["a_b"](client)
    made["a_b_2"](client)
    made["module_0day"](client, None)

    assert sent == [
        ("invoice", {"rows": [], "times": 2, "mode": "fast", "note": "x", "client": True}, {}),
        ("size-of", "x", {"version": "3"}),
        ("size-of", "y", {}),
        ("a-b", None, {}),
        ("a.b", None, {}),
        ("0day", None, {}),
    ]


def test_descriptions_are_docstrings_and_nothing_else():
    text = write_stubs([*FRIENDLY, *HOSTILE])
    tree = ast.parse(text)
    docs = {node.name: ast.get_docstring(node) for node in tree.body if isinstance(node, ast.FunctionDef)}

    assert docs["invoice"].startswith('Add up an order. It\'s "quoted" \\ here.\n\nArgs:\n    rows: What was ordered.')
    assert docs["plain"] == "Call the module plain."
    assert "os.abort" in docs["class_2"]
    assert {type(node) for node in tree.body} <= {
        *(
            ast.Expr,
            ast.Import,
            ast.ImportFrom,
            ast.Assign,
            ast.AnnAssign,
            ast.ClassDef,
            ast.FunctionDef,
            ast.AsyncFunctionDef,
        )
    }
    assert len([node for node in tree.body if isinstance(node, ast.Expr)]) == 1
    assert all(character.isprintable() or character == "\n" for character in text)


@pytest.mark.parametrize("module", [*FRIENDLY, *HOSTILE], ids=lambda module: module.name)
def test_each_module_has_two_functions_and_the_old_python_can_parse_them(module):
    tree = ast.parse(write_stubs([module]), feature_version=(3, 9))
    functions = [node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]

    assert len(functions) == 3  # one is a helper
    assert functions[2].name == f"{functions[1].name}_async"
