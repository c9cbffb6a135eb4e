"""Values between handlers and JSON: inputs are read, results converted or refused. SPEC.md has the table.

Standard library only, Python 3.8 and later: this file is a part of the worker program, beside `guest.py`. The host
imports it as well, for handlers in its own process.
"""

import enum
import gc
import io
import json
import os
from itertools import accumulate

MAX_TEXT = 16 * 1024
MAX_PATH = 200
MAX_DEPTH = 500
MAX_CONTAINERS = 2_000_000
_ENCODE = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
_CONTAINERS = frozenset((dict, list, tuple))
_PLAIN = _CONTAINERS | {str, int, float, bool, type(None)}
_LONG_INTEGER = 14000  # bits: about 4,200 digits
_METHODS = {  # by name, so that nothing is imported
    "datetime.date": "isoformat",
    "datetime.time": "isoformat",
    "uuid.UUID": "__str__",
    "decimal.Decimal": "__str__",
    "numpy.datetime64": "__str__",
    "numpy.timedelta64": None,
    "numpy.generic": "item",
    "numpy.ndarray": "tolist",
}
_DIGITS = bytes.maketrans(b"123456789+E", b"0000000000e")
_NOTHING = ("NaT", "NaN", "-NaN", "sNaN", "Infinity", "-Infinity")
_BUFFERS = (bytes, bytearray, memoryview)
_BINARY = (io.RawIOBase, io.BufferedIOBase)
_REMEDIES = (  # for types that have the attribute
    ("decode", "return value.decode(), or base64.b64encode(value).decode()"),
    ("readlines", 'return a file that was opened with mode "rb"'),
    ("to_records", 'return value.to_dict("records")'),
    ("to_dicts", "return value.to_dicts()"),
    ("to_pylist", "return value.to_pylist()"),
    ("to_list", "return value.to_list()"),
    ("as_integer_ratio", "return float(value)"),
    ("tolist", "return value.tolist()"),
    ("total_seconds", "return value.total_seconds()"),
    ("__await__", "return await value"),
    ("keys", "return dict(value)"),
    ("__iter__", "return list(value)"),
    ("__class__", "return dict, list, str, int, float, bool or None"),
)


def read_json(data):
    """Return the value of a JSON text. Raises OverflowError with a `path` for a number that would become `inf`."""
    digits = data.translate(_DIGITS)
    if b"0e000" not in digits and b"0" * 209 not in digits:  # no exponent of three digits, nothing near 10**308
        return json.loads(data)
    try:
        return json.loads(data, parse_float=finite)
    except OverflowError as problem:
        try:
            converted(json.loads(data))
        except BadOutput as found:
            problem.path = found.path
        raise


def finite(text):
    """Return a number. Raises OverflowError if it is beyond the range of a double."""
    number = float(text)
    if number - number != 0:
        raise OverflowError("%.40s is beyond the range of a double" % text)
    return number


class BadOutput(Exception):
    """JSON cannot represent the handler's value; `path` is the place."""

    kind = "bad_output"

    def __init__(self, path, reason):
        Exception.__init__(self, reason)
        self.path = path


class BadInput(Exception):
    """The input does not fit the handler; `path` is the place."""

    kind = "bad_input"

    def __init__(self, reason):
        Exception.__init__(self, clean(reason[:MAX_TEXT]))
        self.steps = []

    def below(self, step):
        """Return this error as that of a value which has the wrong one at a key or at an index."""
        self.steps.append("[%d]" % step if type(step) is int else ".%.80s" % step)
        return self

    @property
    def path(self):
        """The place of the wrong value."""
        path = "".join(reversed(self.steps))
        return clean("$" + path[: MAX_PATH - 1] + "..." * (len(path) >= MAX_PATH))


def encode_value(value, limit=1 << 30, root="$", store=None):
    """Return strict JSON as at most `limit` bytes. Raises BadOutput with the path, from `root`, of the wrong value.

    `store(source, name, media_type)` stores a buffer or a binary file and returns the object inside of `$file`.
    """
    try:
        data = _ENCODE(value).encode()
        shallow = data.count(b"[") + data.count(b"{") <= MAX_DEPTH or nesting(data) <= MAX_DEPTH
        done = len(data) > limit or (shallow and is_plain(value))
    except (TypeError, ValueError, RecursionError):  # to be converted, or refused with its path
        done = False
    if not done:
        data = _ENCODE(converted(value, root, store)).encode()
    if len(data) > limit:
        raise BadOutput(root, "%d bytes of JSON; the limit is %d" % (len(data), limit))
    if len(data) > 2 * MAX_CONTAINERS and containers(data) > MAX_CONTAINERS:
        remedy = "return fewer and larger ones, such as a list for each column, or text"
        raise BadOutput(root, "more than {:,} lists and dicts; {}".format(MAX_CONTAINERS, remedy))
    return data


def is_plain(value):
    """Return whether json has written a value as `converted` would: without named tuples, enums and equal keys.

    It is also False for other containers, and for keys of several types in one dict. C code reads level after level:
    the collector returns the items of containers, and with them the keys of a dict unless all are text.
    """
    level = [value]
    while True:
        kinds = set(map(type, level))
        for kind in kinds - _PLAIN:
            if not issubclass(kind, (str, int, float)) or issubclass(kind, enum.Enum):
                return False
        if kinds.isdisjoint(_CONTAINERS):
            return True
        if not kinds <= _CONTAINERS:
            level = [node for node in level if type(node) in _CONTAINERS]
        items = gc.get_referents(*level)
        objects = level if len(items) != sum(map(len, level)) else ()
        if any(type(node) is dict and len(set(map(type, node))) > 1 for node in objects):
            return False
        level = items


def containers(data):
    """Return the number of arrays and objects of a JSON text, or more if that is within `MAX_CONTAINERS` too."""
    count = data.count(b"[") + data.count(b"{")
    if count > MAX_CONTAINERS:
        marks = brackets(data)
        count = marks.count(b"[") + marks.count(b"{")
    return count


def brackets(data):
    """Return the brackets of a JSON text outside of strings."""
    if b"\\" in data:
        data = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    marks = data.translate(None, bytes(set(range(256)) - set(b'[]{}"')))
    return b"".join(marks.split(b'"')[::2])


def nesting(data):
    """Return the nesting of a JSON text: brackets outside of strings, counted without a loop in Python."""
    steps = memoryview(brackets(data).translate(bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff"))).cast("b")
    return max(accumulate(steps), default=0)


def converted(value, root="$", store=None):
    """Return a value in the types of JSON; SPEC.md has the table. Raises BadOutput with the first wrong path."""
    top = [value]
    todo = [(top, 0, (None, root, 0, value))]  # container and key of a value; its trail: above, step, depth, the value
    while todo:
        box, slot, trail = todo.pop()
        try:
            node = simplified(trail[3], store)
            if isinstance(node, (dict, list)) and trail[2] == MAX_DEPTH:
                raise BadOutput("", "nested too deeply; the limit is %d levels" % MAX_DEPTH)
            box[slot] = node = with_text_keys(node) if isinstance(node, dict) else node
        except BadOutput as problem:
            raise BadOutput(*located(trail, problem)) from None
        pairs = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        todo += reversed([(node, key, (trail, key, trail[2] + 1, item)) for key, item in pairs if not is_leaf(item)])
    return top[0]


def located(trail, problem):
    """Return path and reason of a bad value: the last one of a trail, or the first in it that contains itself."""
    trails = []
    while trail:
        trails.insert(0, trail)
        trail = trail[0]
    reason, seen = str(problem), []
    for count, (_, _, _, value) in enumerate(trails, 1):
        if id(value) in seen:
            del trails[count:]
            reason = "the value contains itself"
        seen.append(id(value))
    steps = ["[%d]" % step if type(step) is int else ".%.80s" % step for _, step, _, _ in trails[1:]]
    path = "".join(steps)
    path = trails[0][1] + path[: MAX_PATH - 1] + "..." * (len(path) >= MAX_PATH)
    return clean(path), clean(reason[:MAX_TEXT])


def is_leaf(node):
    """Return whether JSON has a value as it is; False, sometimes without need, if it takes a closer look."""
    kind = type(node)
    if kind is str:
        return node.isascii()
    if kind is float:
        return node - node == 0
    return node is None or kind is bool or (kind is int and node.bit_length() < _LONG_INTEGER)


def simplified(node, store=None):
    """Return text, number, boolean, None, a dict of any keys, or a new list; their items are as they were."""
    while not is_leaf(node):
        kind = type(node)
        if store is not None and kind not in _PLAIN and is_binary(node):
            return {"$file": stored(node, store)}
        if isinstance(node, enum.Enum):
            node = node.value
        elif isinstance(node, str):
            try:
                return node.encode().decode()
            except UnicodeEncodeError:
                remedy = 'return value.encode("utf-8", "replace").decode()'
                raise BadOutput("", "text with a lone surrogate cannot be sent as UTF-8; " + remedy) from None
        elif isinstance(node, float):
            node = float(node)
            if node - node != 0:
                raise BadOutput("", "%r is not a JSON number; return None instead" % node)
            return node
        elif isinstance(node, int):
            try:
                int.__repr__(node)
                return int(node)
            except ValueError as problem:  # more digits than this Python formats
                raise BadOutput("", str(problem)) from None
        elif isinstance(node, dict):
            return node
        elif isinstance(node, tuple) and hasattr(kind, "_asdict"):
            return node._asdict()
        elif isinstance(node, (list, tuple)):
            return list(node)
        elif isinstance(node, (set, frozenset)):
            try:
                return sorted(node)
            except TypeError:
                return sorted(node, key=repr)
        elif hasattr(kind, "__dataclass_fields__"):
            fields = kind.__dataclass_fields__.values()
            return {each.name: getattr(node, each.name) for each in fields if each._field_type.name == "_FIELD"}
        elif hasattr(kind, "__attrs_attrs__"):
            return {each.name: getattr(node, each.name) for each in kind.__attrs_attrs__}
        elif hasattr(kind, "__pydantic_fields__"):
            node = node.model_dump(mode="json")
        elif hasattr(kind, "operato_json"):
            return node.operato_json()
        elif hasattr(kind, "__fspath__"):
            node = os.fspath(node)
        else:
            node = by_method(node)
        if type(node) is kind:  # numpy.longdouble
            raise refused(kind)
    return node


def is_binary(node):
    """Return whether a value is bytes, an open binary file, or a file of `operato`."""
    return isinstance(node, _BUFFERS + _BINARY) or is_file(node) or is_temporary(node)


def is_file(node):
    """Return whether a value is a `File` of `operato`."""
    return getattr(type(node), "operato_kind", None) == "File"


def is_temporary(node):
    """Return whether a value is a binary file of `tempfile`, which wraps one."""
    return type(node).__module__ == "tempfile" and isinstance(getattr(node, "file", None), _BINARY)


def stored(node, store):
    """Store a value of `is_binary`; return the object inside of `$file`. Raises BadOutput if it cannot be read."""
    name = media_type = ""
    opened = None
    try:
        if is_file(node):
            name, media_type, node = node.name or "", node.type or "", node.open()
            opened = node
        elif not isinstance(node, _BUFFERS):
            given = getattr(node, "name", "")
            name = os.path.basename(os.fsdecode(given)) if isinstance(given, (str, bytes)) else ""
            if not node.readable():
                raise BadOutput("", 'a file that was opened for writing only; open it with mode "w+b"')
            if node.writable():
                node.flush()
        return store(node, name, media_type)
    except (OSError, ValueError, TypeError) as problem:
        raise BadOutput("", "the file cannot be read: %s" % problem) from None
    finally:
        if opened is not None:
            opened.close()


def pieces_of(source, size):
    """Yield the bytes of a buffer, or of a binary file from its beginning, in pieces of at most `size` bytes."""
    if not hasattr(source, "read"):
        yield from slices(source, size)
        return
    if source.seekable():
        source.seek(0)
    while True:
        part = source.read(size)
        if part is None:
            raise BlockingIOError("it does not block and has no bytes yet")
        if not part:
            return
        yield from slices(part, size)


def slices(buffer, size):
    """Yield the bytes of a buffer in pieces of at most `size` bytes."""
    view = memoryview(buffer)
    view = memoryview(view.tobytes()) if not view.c_contiguous else view.cast("B") if view.nbytes else view
    for at in range(0, view.nbytes, size):
        yield view[at : at + size]


def by_method(node):
    """Return a simpler value for one of a type in `_METHODS`. Raises BadOutput for others."""
    kind = type(node)
    method = None
    for base in kind.__mro__:
        name = name_of(base)
        if name in _METHODS:
            method = _METHODS[name]
            break
    if method is None:
        raise refused(kind)
    if method == "tolist" and node.dtype.kind in "mM":  # which would be numbers without their unit
        return list(node) if node.ndim else node[()]
    simple = getattr(node, method)()
    if type(simple) is str and simple in _NOTHING:
        raise BadOutput("", "%s of type %s is not JSON; return None instead" % (simple, name_of(kind)))
    return simple


def refused(kind):
    """Return the error for a value of this type, with the remedy."""
    remedy = next(text for attribute, text in _REMEDIES if hasattr(kind, attribute))
    return BadOutput("", "%s is not JSON; %s" % (name_of(kind), remedy))


def with_text_keys(node):
    """Return a new dict with the keys as JSON has them. Raises BadOutput if two become equal."""
    if set(map(type, node)) <= {str} and "".join(node).isascii():
        return dict(node)
    result, origins = {}, {}
    for key, item in node.items():
        try:
            text = simplified(key)
        except BadOutput as problem:
            raise BadOutput("", "a key: %s" % problem) from None
        if isinstance(text, (dict, list)):
            raise BadOutput("", "a key is of type %s; JSON keys are strings: return str(key)" % name_of(type(key)))
        text = text if isinstance(text, str) else _ENCODE(text)
        if text in result:
            raise BadOutput("", 'two keys, %.80r and %.80r, become "%.80s"' % (origins[text], key, text))
        result[text], origins[text] = item, key
    return result


def name_of(kind):
    """Return the name of a type with its module: `numpy.bool`."""
    return kind.__qualname__ if kind.__module__ == "builtins" else "%s.%s" % (kind.__module__, kind.__qualname__)


def clean(text):
    """Return text that UTF-8 can encode."""
    return text.encode("utf-8", "backslashreplace").decode()
