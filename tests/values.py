"""What handlers return, as Python source, and what becomes of it: one table for every Python and kind of worker."""

from __future__ import annotations

SETUP = """
import collections, dataclasses, datetime, decimal, enum, fractions, pathlib, typing, uuid

@dataclasses.dataclass
class Order:
    item: str
    price: object = None
    seen: typing.ClassVar[int] = 0

class Point(typing.NamedTuple):
    x: object
    y: object

class Color(enum.Enum):
    RED = "red"
    PAIR = (1, 2)

class Level(enum.IntEnum):
    LOW = 1

class Mood(str, enum.Enum):
    GOOD = "good"

class Loop:
    pass

UTC = datetime.timezone.utc
"""

CONVERTED = {
    "a tuple": ("(1, (2,))", [1, [2]]),
    "a large integer": ("2 ** 100", 2**100),
    "keys of JSON": ("{None: 1, True: 2, 3: 4, 1.5: 6, 'a': 7}", {"null": 1, "true": 2, "3": 4, "1.5": 6, "a": 7}),
    "subclasses of dict": ("[collections.Counter('aab'), collections.OrderedDict(b=1)]", [{"a": 2, "b": 1}, {"b": 1}]),
    "a dataclass": ("[Order('pen', Order('cap'))]", [{"item": "pen", "price": {"item": "cap", "price": None}}]),
    "a named tuple": ("Point(1, Point(2, 'é'))", {"x": 1, "y": {"x": 2, "y": "é"}}),
    "a named tuple in a dataclass": ("Order('pen', [Point(1, 2)])", {"item": "pen", "price": [{"x": 1, "y": 2}]}),
    "a moment": ("datetime.datetime(2027, 1, 31, 9, 30, tzinfo=UTC)", "2027-01-31T09:30:00+00:00"),
    "a local moment": ("datetime.datetime(2027, 1, 31, 9, 30, 0, 5)", "2027-01-31T09:30:00.000005"),
    "a day and a time": ("[datetime.date(2027, 1, 31), datetime.time(9, 30)]", ["2027-01-31", "09:30:00"]),
    "a UUID": ("uuid.UUID(int=1)", "00000000-0000-0000-0000-000000000001"),
    "enums": ("[Color.RED, Color.PAIR, Level.LOW, Mood.GOOD]", ["red", [1, 2], 1, "good"]),
    "a decimal": ("[decimal.Decimal('1.50'), decimal.Decimal('1E+400')]", ["1.50", "1E+400"]),
    "a path": ("pathlib.Path('/tmp') / 'a'", "/tmp/a"),
    "sets": ("[{3, 1, 2}, frozenset('ba'), set()]", [[1, 2, 3], ["a", "b"], []]),
    "a set of several types": ("{1, 'a', None}", ["a", 1, None]),
    "a set of enums": ("{Color.RED, Color.PAIR}", [[1, 2], "red"]),
    "keys that become text": (
        "{Color.RED: 1, Level.LOW: 2, uuid.UUID(int=0): 3, datetime.date(2027, 1, 31): 4, decimal.Decimal('1.5'): 5}",
        {"red": 1, "1": 2, "00000000-0000-0000-0000-000000000000": 3, "2027-01-31": 4, "1.5": 5},
    ),
}  # fmt: skip
"""Source and the value that callers get."""

REFUSED = {
    "NaN": ("{'rows': [{'price': float('nan')}]}", "$.rows[0].price", "nan is not a JSON number; return None instead"),
    "infinity": ("[1, -float('inf')]", "$[1]", "-inf is not a JSON number"),
    "no decimal number": ("[decimal.Decimal('NaN')]", "$[0]", "NaN of type decimal.Decimal is not JSON; return None"),
    "an infinite decimal": ("decimal.Decimal('-Infinity')", "$", "-Infinity of type decimal.Decimal"),
    "NaN in a dataclass": ("Order('pen', float('nan'))", "$.price", "nan is not a JSON number"),
    "NaN in a named tuple": ("[Point(1, float('nan'))]", "$[0].y", "nan is not a JSON number"),
    "bytes": ("{'a': b'x'}", "$.a", "bytes is not JSON; return value.decode(), or base64.b64encode(value).decode()"),
    "a bytearray": ("[bytearray(1)]", "$[0]", "bytearray is not JSON; return value.decode()"),
    "a duration": ("datetime.timedelta(1)", "$", "datetime.timedelta is not JSON; return value.total_seconds()"),
    "a complex number": ("[1j]", "$[0]", "complex is not JSON; return dict, list, str, int, float, bool or None"),
    "a fraction": ("fractions.Fraction(1, 3)", "$", "fractions.Fraction is not JSON; return float(value)"),
    "keys of a dict": ("{'a': {}.keys()}", "$.a", "dict_keys is not JSON; return list(value)"),
    "an iterator": ("[iter([])]", "$[0]", "list_iterator is not JSON; return list(value)"),
    "a mapping": ("collections.ChainMap()", "$", "collections.ChainMap is not JSON; return dict(value)"),
    "an object": ("[Loop()]", "$[0]", "NAME.Loop is not JSON; return dict, list"),
    "a class": ("[Order]", "$[0]", "type is not JSON; return dict, list"),
    "keys 1 and '1'": ("{1: 'a', '1': 'b'}", "$", "two keys, 1 and '1', become \"1\""),
    "keys True and 'true'": ("[{'true': 'a', True: 'b'}]", "$[0]", "two keys, 'true' and True, become \"true\""),
    "keys None and 'null'": ("{'a': {None: 1, 'null': 2}}", "$.a", "two keys, None and 'null', become \"null\""),
    "keys 1.5 and '1.5'": ("{'a': [{1.5: 1, '1.5': 2}]}", "$.a[0]", "two keys, 1.5 and '1.5', become \"1.5\""),
    "two dates": ("{datetime.date(2027, 1, 31): 1, '2027-01-31': 2}", "$", "two keys, datetime.date(2027, 1, 31) and"),
    "a key that is a tuple": ("{'a': {(1, 2): 3}}", "$.a", "a key is of type tuple; JSON keys are strings: return str"),
    "a key that is bytes": ("{b'a': 1}", "$", "a key: bytes is not JSON"),
    "a key that is NaN": ("{'a': {float('nan'): 1}}", "$.a", "a key: nan is not a JSON number"),
    "a lone surrogate": (r"['a', '\ud800']", "$[1]", "text with a lone surrogate cannot be sent as UTF-8; return val"),
    "a key with a lone surrogate": (r"[{'\ud800': 1}]", "$[0]", "a key: text with a lone surrogate"),
    "itself": ("(lambda x: x.append({'a': x}) or x)([])", "$[0].a", "the value contains itself"),
    "itself in a dataclass": (
        "(lambda x: setattr(x, 'price', [x]) or x)(Order('pen'))", "$.price[0]", "the value contains itself"
    ),
    "a very large integer": ("{'n': 10 ** 5000}", "$.n", "Exceeds the limit"),
    "behind much": ("{'a': list(range(1000)), 'b': {'c': b''}}", "$.b.c", "bytes is not JSON"),
    "the first of two": ("[[1, {'x': 1j}], b'']", "$[0][1].x", "complex is not JSON"),
}  # fmt: skip
"""Source, the path in the refusal, and how its reason begins; NAME is the module of `Loop`."""
