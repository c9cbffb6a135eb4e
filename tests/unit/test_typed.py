"""Unit: which arguments an input becomes, by the parameters of a handler and their hints, under every Python."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Annotated

import attrs
import pytest

from protocol.authors import operato
from protocol.authors.operato import Context, File, Request
from protocol.authors.typed import Plain, Typed, plan
from protocol.values import BadInput
from tests.programs import guest
from tests.pythons import PYTHONS

ROOT = Path(__file__).parents[2]
CALL = SimpleNamespace(context="the context", files={})

# -- which handlers are typed ----------------------------------------------------------------------------------------


def decorated(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)

    return wrapper


class Methods:
    def plain(self, input):
        return ["plain", input]

    def two(self, input, context):
        return ["two", input, context]

    @classmethod
    def of_class(cls, input, context):
        return ["of_class", input, context]

    @staticmethod
    def static(input):
        return ["static", input]

    def typed(self, value):
        return ["typed", value]

    def __call__(self, input, context):
        return ["call", input, context]


class Takes:
    def __init__(self, input):
        self.input = input

    def __eq__(self, other):
        return other == ["class", self.input]

    __hash__ = None


def everything(*args, **named):
    return [*args, named] if named else [*args]


def one(input):
    return [input]


def two(input, context):
    return [input, context]


def nothing():
    return []


def with_cache(input, cache):
    return [input, cache]


C = "the context"
PLAIN = {
    "input": (one, ["x"]),
    "input and context": (two, ["x", C]),
    "context of any name": (lambda input, ctx: [input, ctx], ["x", C]),
    "any name and an underscore": (lambda _event: [_event], ["x"]),
    "only an underscore": (lambda _: [_], ["x"]),
    "positional only": (lambda x, /: [x], ["x"]),
    "two positional only": (lambda x, y, /: [x, y], ["x", C]),
    "positional only, and context": (lambda x, /, context: [x, context], ["x", C]),
    "a default": (lambda input=3: [input], ["x"]),
    "context with a default": (lambda input, context=None: [input, context], ["x", C]),
    "a private default": (lambda input, _cache={}: [input, _cache], ["x", {}]),
    "context by name": (lambda input, *, context: [input, context], ["x", C]),
    "input by name": (lambda *, input: [input], ["x"]),
    "context first": (lambda context, input: [input, context], ["x", C]),
    "stars": (everything, ["x"]),
    "input and stars": (lambda input, *more: [input, *more], ["x"]),
    "input and keywords": (lambda input, **more: [input, more], ["x", {}]),
    "decorated": (decorated(one), ["x"]),
    "decorated with context": (decorated(two), ["x", C]),
    "partial": (functools.partial(two, context=1), ["x", 1]),
    "partial of nothing": (functools.partial(two), ["x", C]),
    "partial with a dependency": (functools.partial(with_cache, cache=2), ["x", 2]),
    "method": (Methods().plain, ["plain", "x"]),
    "method with context": (Methods().two, ["two", "x", C]),
    "class method": (Methods.of_class, ["of_class", "x", C]),
    "static method": (Methods.static, ["static", "x"]),
    "object": (Methods(), ["call", "x", C]),
    "class": (Takes, ["class", "x"]),
    "built-in": (len, 1),
    "built-in without a signature": (str, "x"),
}
TYPED = {
    "another name": (lambda value: [value], {"value": 1}, [1]),
    "two": (lambda a, b: [a, b], {"b": 2, "a": 1}, [1, 2]),
    "three": (lambda a, b, c=3: [a, b, c], {"b": 2, "a": 1}, [1, 2, 3]),
    "a default": (lambda a=1: [a], None, [1]),
    "a default and nothing": (lambda a=1: [a], {}, [1]),
    "input and another one": (lambda input, size=3: [input, size], {"input": 1, "size": 2}, [1, 2]),
    "context": (lambda event, context: [event, context], {"event": 1}, [1, C]),
    "context in the middle": (lambda a, context, b: [a, context, b], {"a": 1, "b": 2}, [1, C, 2]),
    "a name": (lambda *, key: [key], {"key": 1}, [1]),
    "nothing": (nothing, {}, []),
    "nothing and null": (nothing, None, []),
    "only the context": (lambda context: [context], {}, [C]),
    "keywords": (lambda **more: [more], {"a": 1}, [{"a": 1}]),
    "positional only": (lambda a, b, c, /: [a, b, c], {"a": 1, "b": 2, "c": 3}, [1, 2, 3]),
    "positional only with defaults": (lambda a=1, b=2, c=3, /: [a, b, c], {"b": 4}, [1, 4, 3]),
    "a star": (lambda a, *more: [a, more], {"a": 1}, [1, ()]),
    "a private default": (lambda a, _b=2: [a, _b], {"a": 1}, [1, 2]),
    "decorated": (decorated(lambda a, b: [a, b]), {"a": 1, "b": 2}, [1, 2]),
    "method": (Methods().typed, {"value": 1}, ["typed", 1]),
    "partial of the first": (functools.partial(two, 1), None, [1, C]),
}


@pytest.mark.parametrize(("handler", "expected"), PLAIN.values(), ids=PLAIN)
def test_a_plain_handler_gets_the_whole_input(handler, expected):
    args, named = plan(handler).arguments("x", CALL)

    assert handler(*args, **named) == expected
    quick = guest.wants_context(handler)
    if quick is not None:
        assert (handler("x", CALL.context) if quick else handler("x")) == expected


@pytest.mark.parametrize(("handler", "value", "expected"), TYPED.values(), ids=TYPED)
def test_a_typed_handler_gets_the_keys_of_the_input(handler, value, expected):
    assert guest.wants_context(handler) is None
    args, named = plan(handler).arguments(value, CALL)

    assert handler(*args, **named) == expected


@pytest.mark.parametrize(
    ("source", "typed"),
    [
        ("def handler(request: Request): ...", False),
        ("def handler(request: 'Request', context): ...", False),
        ("def handler(request: Request, size: int = 3): ...", True),
        ("def handler(input: str, ctx: Context): ...", False),
        ("def handler(input: str, ctx: object): ...", False),
        ("def handler(input: str, language: str): ...", True),
        ("def handler(input: str, language: 'str'): ...", True),
        ("def handler(call: Context): ...", True),
        ("def handler(input: Missing): ...", False),
        ("def handler(value: Missing): ...", True),
    ],
)
@pytest.mark.parametrize("future", ["", "from __future__ import annotations\n"])
def test_hints_decide_too(source, typed, future):
    names = {"Request": Request, "Context": Context}
    if future or "Missing" not in source:
        exec(compile(future + source, "code", "exec", dont_inherit=True), names)
        assert type(plan(names["handler"])) is (Typed if typed else Plain)


@pytest.mark.parametrize(
    ("hint", "quick"),
    [
        *(
            ("dict", True),
            ("typing.Dict[str, typing.Any]", True),
            ("list[str]", True),
            ("None", True),
            ("object", True),
        ),
        *(("str", False), ("bytes", False), ("typing.Optional[dict]", False), ("File", False), ("dict | None", False)),
    ],
)
def test_a_handler_with_a_hint_of_json_needs_no_plan(hint, quick):
    names = {"File": File}
    exec(f"import typing\ndef real(input: {hint}): ...\ndef text(input: {hint!r}): ...", names)

    assert (guest.wants_context(names["real"]), guest.wants_context(names["text"])) == ((False if quick else None),) * 2


# -- the whole input -------------------------------------------------------------------------------------------------


@pytest.fixture
def stored(tmp_path):
    path = tmp_path / "stored"
    path.write_bytes("é".encode())
    return SimpleNamespace(context=None, files={"sha256:1": str(path)})


FILE = {"$file": {"id": "sha256:1", "name": "a.txt"}}


def whole(hint, value, call):
    def handler(input): ...

    handler.__annotations__["input"] = hint
    (read,), _ = plan(handler).arguments(value, call)
    return read


@pytest.mark.parametrize(
    ("hint", "value", "expected"),
    [
        *((bytes, FILE, "é".encode()), (bytes, "é", "é".encode()), (str, FILE, "é"), (str, "é", "é"), (str, 3, 3)),
        *((bytes | None, None, None), (bytes | None, "a", b"a"), (str | None, None, None), (int, "x", "x")),
        *((bytearray, "a", bytearray(b"a")), (dict, FILE, FILE), (list[bytes], ["a"], ["a"])),
        ("bytes | None", FILE, "é".encode()),
    ],
)
def test_the_whole_input_is_converted_to_bytes_text_and_files_only(hint, value, expected, stored):
    assert whole(hint, value, stored) == expected


def test_the_whole_input_as_a_request():
    assert whole(Request, {"$request": {"method": "PUT"}}, CALL).method == "PUT"


@pytest.mark.parametrize(
    ("hint", "value", "reason"),
    [
        (bytes, 3, "expected text or a file, not 3"),
        (bytes, "\ud800", "the text has a lone surrogate, which is not UTF-8"),
        (bytes, {"$file": {"id": "sha256:2"}}, "the file sha256:2 is not in this call"),
        (str, {"$file": 3}, "the file None is not in this call"),
        (File, ["x"], "expected a file, not a list"),
        (Request, {}, "a request is written as"),
        (Request, {"$request": {"headers": 3}}, "'int' object is not iterable"),
    ],
)
def test_a_whole_input_that_does_not_fit(hint, value, reason):
    with pytest.raises(BadInput, match=reason) as caught:
        whole(hint, value, CALL)
    assert caught.value.path == "$"


# -- hints, under every Python ---------------------------------------------------------------------------------------

SETUP = """
import dataclasses, datetime, decimal, enum, pathlib, typing, uuid
from typing import Any, ClassVar, Dict, FrozenSet, List, Literal, Mapping, NamedTuple, NewType, Optional, Sequence, Set
from typing import Tuple, TypedDict, TypeVar, Union

class Color(enum.Enum):
    RED = "red"
    BLUE = 2

@dataclasses.dataclass
class Row:
    price: decimal.Decimal
    when: Optional[datetime.date] = None
    kids: List["Row"] = dataclasses.field(default_factory=list)
    made: int = dataclasses.field(default=0, init=False)
    def __post_init__(self):
        if self.price < 0:
            raise ValueError("a price is not negative")

@dataclasses.dataclass
class Wide(Row):
    width: dataclasses.InitVar[int] = 0
    count: ClassVar[int] = 3
    def __post_init__(self, width):
        self.made = width

class Keys(TypedDict, total=False):
    a: int

class More(Keys):
    b: "Color"

class Point(NamedTuple):
    x: float
    y: float = 0.0

class Odd: ...
UserId = NewType("UserId", int)
T = TypeVar("T")
"""
ID = "01890a5d-ac96-774b-bcce-b302099a8057"
READ = [
    ("int", "3", "3"),
    ("int", "3.0", "3"),
    ("int", "123456789012345678901234567890", "123456789012345678901234567890"),
    ("float", "3", "3.0"),
    ("float", "1.5", "1.5"),
    ("bool", "true", "True"),
    ("str", '"é"', "'é'"),
    ("bytes", '"é"', "b'\\xc3\\xa9'"),
    ("None", "null", "None"),
    ("Any", "[1]", "[1]"),
    ("object", "[1]", "[1]"),
    ("Odd", "[1]", "[1]"),
    ("T", "[1]", "[1]"),
    ("'Unknown'", "[1]", "[1]"),
    ("UserId", "3", "3"),
    ("list", "[1]", "[1]"),
    ("List[int]", "[1, 2.0]", "[1, 2]"),
    ("Sequence[float]", "[1]", "[1.0]"),
    ("List['Color']", '["red"]', "[<Color.RED: 'red'>]"),
    ("Tuple[int, ...]", "[1, 2]", "(1, 2)"),
    ("Tuple[int, str]", '[1, "a"]', "(1, 'a')"),
    ("tuple", "[1]", "(1,)"),
    ("Set[int]", "[1]", "{1}"),
    ("FrozenSet[str]", '["a"]', "frozenset({'a'})"),
    ("dict", '{"a": 1}', "{'a': 1}"),
    ("Dict[str, float]", '{"a": 1}', "{'a': 1.0}"),
    ("Mapping[int, float]", '{"-1": 1}', "{-1: 1.0}"),
    ("Dict[Color, int]", '{"red": 1}', "{<Color.RED: 'red'>: 1}"),
    ("Optional[int]", "null", "None"),
    ("Optional[int]", "1", "1"),
    ("Union[float, int]", "1", "1"),
    ("Union[int, float]", "1.0", "1.0"),
    ("Union[int, bool]", "true", "True"),
    ("Union[str, datetime.date]", '"2027-01-31"', "'2027-01-31'"),
    ("Union[datetime.date, str]", '"2027-01-31"', "datetime.date(2027, 1, 31)"),
    ("Union[datetime.date, str]", '"x"', "'x'"),
    ("Union[Row, List[Row]]", '[{"price": 1}]', "[Row(price=Decimal('1'), when=None, kids=[], made=0)]"),
    ("Union[int, Odd]", '"x"', "'x'"),
    ("Literal['a', 1, None]", "1", "1"),
    ("Literal['a', 1, None]", "null", "None"),
    ("Literal[Color.BLUE]", "2", "<Color.BLUE: 2>"),
    ("Color", '"red"', "<Color.RED: 'red'>"),
    ("Row", '{"price": "1.10"}', "Row(price=Decimal('1.10'), when=None, kids=[], made=0)"),
    (
        "Row",
        '{"price": 1, "when": "2027-01-31", "kids": [{"price": 2, "when": null}]}',
        "Row(price=Decimal('1'), when=datetime.date(2027, 1, 31), "
        "kids=[Row(price=Decimal('2'), when=None, kids=[], made=0)], made=0)",
    ),
    ("Wide", '{"price": 1, "width": 7}', "Wide(price=Decimal('1'), when=None, kids=[], made=7)"),
    ("Keys", '{"z": 1}', "{'z': 1}"),
    ("More", '{"a": 1.0, "b": 2}', "{'a': 1, 'b': <Color.BLUE: 2>}"),
    ("Point", '{"x": 1}', "Point(x=1.0, y=0.0)"),
    (
        "datetime.datetime",
        '"2027-01-31T09:30:00Z"',
        "datetime.datetime(2027, 1, 31, 9, 30, tzinfo=datetime.timezone.utc)",
    ),
    ("datetime.datetime", '"2027-01-31 09:30:00.5"', "datetime.datetime(2027, 1, 31, 9, 30, 0, 500000)"),
    ("datetime.datetime", '"2027-01-31T09:30:00.123456000"', "datetime.datetime(2027, 1, 31, 9, 30, 0, 123456)"),
    ("datetime.date", '"2027-01-31"', "datetime.date(2027, 1, 31)"),
    ("datetime.time", '"09:30"', "datetime.time(9, 30)"),
    ("datetime.time", '"09:30:00Z"', "datetime.time(9, 30, tzinfo=datetime.timezone.utc)"),
    ("uuid.UUID", f'"{ID.upper()}"', f"UUID('{ID}')"),
    ("decimal.Decimal", "1.1", "Decimal('1.1')"),
    ("decimal.Decimal", "-3", "Decimal('-3')"),
    ("pathlib.Path", '"a/b"', "PosixPath('a/b')"),
]
NOT_READ = [
    ("int", '"3"', "$.it", 'expected an integer, not "3"'),
    ("int", "true", "$.it", "expected an integer, not true"),
    ("int", "3.5", "$.it", "expected an integer, not 3.5"),
    ("int", "1e17", "$.it", "expected an integer, not 1e+17"),
    ("int", "null", "$.it", "expected an integer, not null"),
    ("float", "true", "$.it", "expected a number, not true"),
    ("float", "9007199254740993", "$.it", "expected a number that a float can represent, not 9007199254740993"),
    ("bool", "1", "$.it", "expected true or false, not 1"),
    ("str", "3", "$.it", "expected text, not 3"),
    ("bytes", "[1]", "$.it", "expected text or a file, not a list"),
    ("None", "0", "$.it", "expected null, not 0"),
    ("List[int]", '[1, "x"]', "$.it[1]", 'expected an integer, not "x"'),
    ("List[int]", "{}", "$.it", "expected a list, not an object"),
    ("Tuple[int, str]", "[1]", "$.it", "expected a list of 2 items, not of 1"),
    ("Tuple[int, str]", "3", "$.it", "expected a list of 2 items, not 3"),
    ("Tuple[int, str]", "[1, 2]", "$.it[1]", "expected text, not 2"),
    ("Set[int]", "[1, 1.0]", "$.it", "an item of the set comes twice"),
    ("set", "[[1]]", "$.it", "the items of a set are text, numbers and the like"),
    ("Dict[str, int]", '{"a": "x"}', "$.it.a", 'expected an integer, not "x"'),
    ("Dict[int, int]", '{"01": 1}', "$.it.01", 'expected a key that is an integer, not "01"'),
    ("Dict[uuid.UUID, int]", f'{{"{ID}": 1, "{ID.upper()}": 2}}', "$.it", "two keys become equal"),
    ("Optional[int]", '"x"', "$.it", 'expected an integer or null, not "x"'),
    ("Union[Row, List[Row]]", '[{"price": "x"}]', "$.it[0].price", "expected a decimal number, as text if it"),
    ("Literal['a', 1]", "true", "$.it", 'expected one of "a", 1, not true'),
    ("Color", '"green"', "$.it", 'expected one of "red", 2, not "green"'),
    ("Color", "2.5", "$.it", 'expected one of "red", 2, not 2.5'),
    ("Row", "3", "$.it", "expected an object, not 3"),
    ("Row", "{}", "$.it.price", "missing; expected a decimal number"),
    ("Row", '{"price": 1, "prize": 2}', "$.it.prize", "unknown; the keys are price, when, kids"),
    ("Row", '{"price": -1}', "$.it", "a price is not negative"),
    ("Row", '{"price": 1, "kids": [{"price": 1, "when": 3}]}', "$.it.kids[0].when", "expected a date such as"),
    ("More", "{}", "$.it.b", 'missing; expected one of "red", 2'),
    ("Keys", '{"a": "x"}', "$.it.a", 'expected an integer, not "x"'),
    ("Point", "[1, 2]", "$.it", "expected an object, not a list"),
    ("datetime.datetime", '"2027-01-31"', "$.it", "expected a date and time such as 2027-01-31T09:30:00Z, not"),
    ("datetime.datetime", '"2027-01-31T09:30:00.1234567Z"', "$.it", "expected a date and time such as"),
    ("datetime.datetime", "0", "$.it", "expected a date and time such as"),
    ("datetime.date", '"2027-01-31T00:00:00"', "$.it", "expected a date such as 2027-01-31, not"),
    ("datetime.date", '"20270131"', "$.it", "expected a date such as 2027-01-31, not"),
    ("datetime.date", '"2027-02-30"', "$.it", "expected a date such as 2027-01-31, not"),
    ("datetime.time", '"25:00"', "$.it", "expected a time such as 09:30:00, not"),
    ("uuid.UUID", f'"{{{ID}}}"', "$.it", "expected a UUID, not"),
    ("uuid.UUID", "3", "$.it", "expected a UUID, not 3"),
    ("decimal.Decimal", "0.1234567890123456", "$.it", "expected a decimal number, as text if it has more than 15"),
    ("decimal.Decimal", '"NaN"', "$.it", "expected a decimal number"),
    ("decimal.Decimal", '"x"', "$.it", "expected a decimal number"),
    ("decimal.Decimal", "true", "$.it", "expected a decimal number"),
    ("pathlib.Path", "3", "$.it", "expected a path as text, or a file, not 3"),
    ("str", '"' + "x" * 100 + '"', None, None),
    ("int", '"' + "x" * 100 + '"', "$.it", 'expected an integer, not "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx...'),
    ("int", '"\\ud800"', "$.it", 'expected an integer, not "\\ud800"'),
    ("Row", '{"price": 1, "\\ud800": 2}', "$.it.\\ud800", "unknown"),
]
PROGRAM = """
import json, sys
sys.path.insert(0, sys.argv[1])
from types import ModuleType, SimpleNamespace
from protocol.authors.typed import plan
from protocol.values import BadInput
call = SimpleNamespace(context=None, files={})
answers = []
for future, hint, value in json.loads(sys.argv[2]):
    sys.modules["handled"] = ModuleType("handled")
    names = vars(sys.modules["handled"])
    exec(compile(future + sys.argv[3], "code", "exec"), names)
    exec(compile(future + "def handler(it: %s): return it" % hint, "code", "exec"), names)
    try:
        args, named = plan(names["handler"]).arguments({"it": json.loads(value)}, call)
        answers.append([repr(names["handler"](*args, **named)), None])
    except BadInput as problem:
        answers.append([problem.path, str(problem)])
print(json.dumps(answers))
"""


@pytest.fixture
def names(monkeypatch):
    """Return the names of a module in this process that has the classes of `SETUP`."""
    module = ModuleType("handled")
    monkeypatch.setitem(sys.modules, "handled", module)
    exec(compile(SETUP, "code", "exec", dont_inherit=True), vars(module))
    return vars(module)


@pytest.mark.parametrize(("hint", "value", "place"), [row[:3] for row in [*READ, *NOT_READ]])
def test_hints_in_this_process(names, hint, value, place):
    exec(compile(f"def handler(it: {hint}): return it", "code", "exec", dont_inherit=True), names)
    try:
        _, named = plan(names["handler"]).arguments({"it": json.loads(value)}, CALL)
        found = repr(named["it"])
    except BadInput as problem:
        found = problem.path

    assert found == place or place is None


@pytest.mark.parametrize("future", ["", "from __future__ import annotations\n"], ids=["objects", "text"])
@pytest.mark.parametrize("python", PYTHONS)
def test_hints_under_every_python(python, future):
    cases = [(hint, value) for hint, value, *_ in [*READ, *NOT_READ]]
    asked = [PYTHONS[python], "-I", "-W", "error", "-c", PROGRAM, str(ROOT)]
    asked += [json.dumps([(future, *case) for case in cases]), SETUP]
    ran = subprocess.run(asked, check=False, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr

    for case, expected, answer in zip(cases, [*READ, *NOT_READ], json.loads(ran.stdout), strict=True):
        if len(expected) == 3:
            assert answer == [expected[2], None], case
        elif expected[2] is not None:
            assert answer[0] == expected[2], (case, answer)
            assert answer[1].startswith(expected[3]), (case, answer)


# -- files, and classes of libraries ---------------------------------------------------------------------------------


def typed(hint, value, call, **names):
    exec(compile(f"def handler(it: {hint}): return it", "code", "exec", dont_inherit=True), names)
    return plan(names["handler"]).arguments({"it": value}, call)[1]["it"]


def test_files_at_any_depth(stored, monkeypatch):
    monkeypatch.setattr(operato, "_call", stored)
    path = stored.files["sha256:1"]

    file = typed("File", FILE, stored, File=File)
    assert (file.path, file.name, file.read_text()) == (path, "a.txt", "é")
    text = typed("list[File]", ["x"], stored, File=File)[0]
    assert (text.name, text.type, text.read_bytes()) == ("input.txt", "text/plain", b"x")
    assert typed("dict[str, bytes]", {"a": FILE}, stored) == {"a": "é".encode()}
    assert typed("str", FILE, stored) == "é"
    assert typed("Path", FILE, stored, Path=Path) == Path(path)
    assert typed("dict | File", FILE, stored, File=File).id == "sha256:1"
    assert typed("list[Request]", [{"$request": {"path": "/x"}}], stored, Request=Request)[0].path == "/x"


@pytest.mark.parametrize("hint", ["File", "str", "bytes", "Path"])
def test_a_file_that_is_not_in_the_call(hint, stored):
    with pytest.raises(BadInput, match="the file sha256:2 is not in this call") as caught:
        typed(hint, {"$file": {"id": "sha256:2"}}, stored, File=File, Path=Path)
    assert caught.value.path == "$.it"


def test_a_file_that_is_no_text(stored):
    Path(stored.files["sha256:1"]).write_bytes(b"\xff")

    with pytest.raises(BadInput, match="the file is not text in UTF-8"):
        typed("str", FILE, stored)


@attrs.define
class OfAttrs:
    _name: str
    size: int = 0
    _made: int = attrs.field(default=1, init=False)


class OfPydantic:
    class __pydantic_validator__:  # noqa: N801  (the name of the library)
        @staticmethod
        def validate_python(value):
            if value == "odd":
                raise ValueError("odd")
            problem = ValueError("many lines")
            problem.errors = lambda: [{"loc": ("rows", 3, "price"), "msg": "Input should be a valid number"}]
            if value == "wrong":
                raise problem
            return ["made", value]


def test_classes_of_attrs():
    assert typed("OfAttrs", {"_name": "x"}, CALL, OfAttrs=OfAttrs) == OfAttrs("x")
    with pytest.raises(BadInput, match="missing; expected text") as caught:
        typed("OfAttrs", {}, CALL, OfAttrs=OfAttrs)
    assert caught.value.path == "$.it._name"


def test_classes_of_pydantic_check_values_themselves():
    assert typed("OfPydantic", 3, CALL, OfPydantic=OfPydantic) == ["made", 3]
    with pytest.raises(BadInput, match="Input should be a valid number") as caught:
        typed("OfPydantic", "wrong", CALL, OfPydantic=OfPydantic)
    assert caught.value.path == "$.it.rows[3].price"
    with pytest.raises(BadInput, match="odd") as caught:
        typed("OfPydantic", "odd", CALL, OfPydantic=OfPydantic)
    assert caught.value.path == "$.it"


def test_a_real_model_of_pydantic():
    pydantic = pytest.importorskip("pydantic")
    model = pydantic.create_model("Model", rows=(list[int], ...))

    assert typed("Model", {"rows": [1]}, CALL, Model=model) == model(rows=[1])
    with pytest.raises(BadInput, match="Input should be a valid integer") as caught:
        typed("Model", {"rows": [1, "x"]}, CALL, Model=model)
    assert caught.value.path == "$.it.rows[1]"


def test_an_input_that_is_no_object_has_the_remedy():
    with pytest.raises(BadInput) as caught:
        plan(lambda event: event).arguments([1], CALL)
    assert str(caught.value) == (
        "expected an object with the handler's parameters (event), not a list;"
        " a parameter that is named `input` takes any JSON"
    )
    with pytest.raises(BadInput, match=r"has event; one that is named `input` takes the whole input"):
        plan(lambda event: event).arguments({"a": 1}, CALL)


def test_hints_of_many_levels_accept_everything():
    value = functools.reduce(lambda inner, _: [inner], range(40), "x")

    assert typed("list[" * 40 + "int" + "]" * 40, value, CALL) == value


def test_type_aliases_and_annotations():
    class Alias:
        __value__ = int

    assert typed("Alias", 3.0, CALL, Alias=Alias()) == 3
    assert typed("Annotated[int, []]", 3.0, CALL, Annotated=Annotated) == 3
