"""Readers: each takes a value of JSON and the running call, and returns what one type hint of a handler names.

Standard library only, Python 3.8 and later: this file is a part of the worker program, imported for handlers with
parameters of their own. The host imports it for handlers in its own process. `protocol/SPEC.md` has the table.
"""

import enum

from protocol.values import BadInput

_MAX_SHOWN = 40
_MAX_CHOICES = 20
_MAX_DIGITS = 15  # a double has them all
_MAX_WHOLE = 2**53
_MISSING = object()
_NUMBERS = {bool: "true or false", int: "an integer", float: "a number"}

_MOMENTS = {
    "datetime": "a date and time such as 2027-01-31T09:30:00Z",
    "date": "a date such as 2027-01-31",
    "time": "a time such as 09:30:00",
}

standard = __import__
"""Imports a module of the standard library; a worker has its own way, which user code cannot mislead."""


def unfit(expected, value):
    """Return the error for a value of the wrong type."""
    return BadInput("expected %s, not %s" % (expected, shown(value)))


def shown(value):
    """Return a value of JSON as messages name it."""
    if isinstance(value, (dict, list)):
        return "a file" if is_file(value) else "an object" if isinstance(value, dict) else "a list"
    text = standard("json").dumps(value, ensure_ascii=False)
    return text if len(text) <= _MAX_SHOWN else "%s..." % text[:_MAX_SHOWN]


def is_file(value):
    """Return whether a value of JSON stands for a file."""
    return type(value) is dict and len(value) == 1 and "$file" in value


def reads(expected, takes_file=False):
    """Return a decorator that marks a reader with what it expects, for messages, and whether it takes files."""

    def mark(read):
        read.expected, read.takes_file = expected, takes_file
        return read

    return mark


def exactly(kind, expected):
    """Return the reader of values that are what they should be."""

    @reads(expected)
    def read(value, call):
        if type(value) is not kind:
            raise unfit(expected, value)
        return value

    return read


@reads("an integer")
def read_integer(value, call):
    """Return an integer, also from `3.0`."""
    if type(value) is float and value.is_integer() and abs(value) <= _MAX_WHOLE:
        return int(value)
    if type(value) is not int:
        raise unfit("an integer", value)
    return value


@reads("a number")
def read_number(value, call):
    """Return a float, also from an integer that a float can represent."""
    if type(value) is int:
        try:
            number = float(value)
        except OverflowError:
            number = 0.5
        if number != value:
            raise unfit("a number that a float can represent", value)
        return number
    if type(value) is not float:
        raise unfit("a number", value)
    return value


@reads("text", takes_file=True)
def read_text(value, call):
    """Return text, also that of a file."""
    if is_file(value):
        try:
            return content(value, call).decode()
        except UnicodeDecodeError:
            raise BadInput("the file is not text in UTF-8") from None
    if type(value) is not str:
        raise unfit("text", value)
    return value


@reads("text or a file", takes_file=True)
def read_bytes(value, call):
    """Return the bytes of a file, or of text."""
    return content(value, call) if is_file(value) else encoded(value, "text or a file")


def encoded(value, expected):
    """Return the UTF-8 of a text."""
    if type(value) is not str:
        raise unfit(expected, value)
    try:
        return value.encode()
    except UnicodeEncodeError:
        raise BadInput("the text has a lone surrogate, which is not UTF-8") from None


def content(value, call):
    """Return the bytes of a file of the call."""
    with open(path_of(value, call), "rb") as file:
        return file.read()


def path_of(value, call):
    """Return the path of a file of the call."""
    described = value["$file"]
    identity = described.get("id") if type(described) is dict else None
    path = call.files.get(identity) if type(identity) is str else None
    if path is None:
        raise BadInput("the file %.100s is not in this call" % (identity,))
    return path


def of_operato(hint, kind):
    """Return the reader for a class of `operato`."""
    if kind == "File":

        @reads("a file", takes_file=True)
        def read(value, call):
            if not is_file(value):
                return hint(encoded(value, "a file"), "input.txt", "text/plain")
            path_of(value, call)
            return hint(value)

        return read
    if kind == "Request":

        @reads("a request")
        def read_request(value, call):
            try:
                return hint.from_json(value)
            except (TypeError, ValueError) as problem:
                raise BadInput(str(problem)) from None

        return read_request
    return None


def moment(hint, name):
    """Return the reader of a date, a time or both, in ISO 8601."""
    expected = _MOMENTS[name]

    @reads(expected)
    def read(value, call):
        if type(value) is str:
            date, mark, time = value[:10], value[10:11], value[11:]
            try:
                if name == "time":
                    return hint.fromisoformat(precise(value))
                whole = not mark if name == "date" else mark in ("T", "t", " ") and ":" in time
                if whole and date[4:5] + date[7:8] == "--":
                    return hint.fromisoformat(date + ("T" + precise(time) if mark else ""))
            except ValueError:
                pass
        raise unfit(expected, value)

    return read


def precise(time):
    """Return a time as every Python reads it: `Z` and fractions of a second written out. Raises ValueError."""
    if time[-1:] in ("Z", "z"):
        time = time[:-1] + "+00:00"
    head, dot, tail = time.partition(".")
    if not dot:
        return time
    zone = tail.lstrip("0123456789")
    digits = tail[: len(tail) - len(zone)]
    if digits[6:].strip("0"):
        raise ValueError("more precise than a microsecond")
    return "%s.%s%s" % (head, digits[:6].ljust(6, "0"), zone)


def of_decimal(hint):
    """Return the reader of decimal numbers: text, or numbers that JSON carries without loss."""
    expected = "a decimal number, as text if it has more than %d digits" % _MAX_DIGITS

    @reads(expected)
    def read(value, call):
        if type(value) is float:
            value = repr(value)
            if len(value.partition("e")[0].strip("-0").replace(".", "")) > _MAX_DIGITS:
                raise unfit(expected, value)
        try:
            number = hint(value) if type(value) in (int, str) else None
        except ArithmeticError:  # which `InvalidOperation` is
            number = None
        if number is None or not number.is_finite():
            raise unfit(expected, value)
        return number

    return read


def of_uuid(hint):
    """Return the reader of UUIDs in their usual form."""

    @reads("a UUID")
    def read(value, call):
        try:
            found = hint(value) if type(value) is str else None
        except ValueError:
            found = None
        if found is None or str(found) != value.lower():
            raise unfit("a UUID", value)
        return found

    return read


def of_path(hint):
    """Return the reader of paths: text, or a file."""

    @reads("a path as text, or a file", takes_file=True)
    def read(value, call):
        if not is_file(value) and (type(value) is not str or "\0" in value):
            raise unfit("a path as text, or a file", value)
        return hint(path_of(value, call) if is_file(value) else value)

    return read


def of_validator(hint):
    """Return the reader of a class that checks values itself: one of pydantic."""
    validator = getattr(hint, "__pydantic_validator__", None)
    make = hint.parse_obj if validator is None else validator.validate_python

    @reads("an object")
    def read(value, call):
        try:
            return make(value)
        except ValueError as problem:  # which `ValidationError` is
            found = problem.errors()[0] if hasattr(problem, "errors") else {"msg": str(problem)}
        wrong = BadInput(found["msg"])
        for step in reversed(found.get("loc", ())):
            wrong.below(step)
        raise wrong

    return read


def choice(values):
    """Return the reader of `Literal`, and of the members of an enum: values, or members by their value."""
    known = [(each.value if isinstance(each, enum.Enum) else each, each) for each in values]
    names = [shown(value) for value, _ in known if value is None or isinstance(value, (str, int, float))]
    expected = "one of %s" % ", ".join(names[:_MAX_CHOICES] + ["..."] * (len(names) > _MAX_CHOICES))

    @reads(expected)
    def read(value, call):
        for known_value, result in known:
            if value == known_value and isinstance(value, bool) == isinstance(known_value, bool):
                return result
        raise unfit(expected, value)

    return read


def array(item, make, expected="a list"):
    """Return the reader of a list, whose items have one reader; sets refuse items that come twice."""

    @reads(expected)
    def read(value, call):
        if type(value) is not list:
            raise unfit(expected, value)
        items = list(value) if item is None else [at(place, item, each, call) for place, each in enumerate(value)]
        if make is list:
            return items
        try:
            found = make(items)
        except TypeError:
            raise BadInput("the items of a set are text, numbers and the like") from None
        if make is not tuple and len(found) != len(items):
            raise BadInput("an item of the set comes twice")
        return found

    return read


def row(items):
    """Return the reader of a tuple of a fixed length."""
    expected = "a list of %d items" % len(items)

    @reads(expected)
    def read(value, call):
        if type(value) is not list:
            raise unfit(expected, value)
        if len(value) != len(items):
            raise BadInput("expected %s, not of %d" % (expected, len(value)))
        return tuple(at(place, read, value[place], call) for place, read in enumerate(items))

    return read


def mapping(key, item):
    """Return the reader of an object with any keys."""

    @reads("an object")
    def read(value, call):
        if type(value) is not dict:
            raise unfit("an object", value)
        found = {at(name, key, name, call): at(name, item, each, call) for name, each in value.items()}
        if len(found) != len(value):
            raise BadInput("two keys become equal")
        return found

    return read


@reads("a key that is an integer")
def read_integer_key(value, call):
    """Return the integer that a key of an object is the text of."""
    if not value.lstrip("-").isdecimal() or str(int(value)) != value:
        raise unfit("a key that is an integer", value)
    return int(value)


def union(readers):
    """Return the reader of what one of several readers takes: a file or a number the one for it, else the first."""
    known = list(filter(None, readers))
    expected = " or ".join(dict.fromkeys(read.expected for read in known))

    @reads(expected, any(read.takes_file for read in known))
    def read_any(value, call):
        wanted, file, best = _NUMBERS.get(type(value)), is_file(value), None
        for read in sorted(known, key=lambda each: not (each.takes_file if file else each.expected == wanted)):
            try:
                return read(value, call)
            except BadInput as problem:
                best = problem if best is None or len(problem.steps) > len(best.steps) else best
        if None in readers:
            return value
        raise best if best.steps else unfit(expected, value)

    return read_any


def structure(fields, make, more=_MISSING, unknown="unknown; the keys are %s"):
    """Return the reader of an object with known keys.

    `fields` has for each key the name that `make` gets, the reader, and whether it is required. Other keys go through
    the reader `more`, or are refused.
    """
    required = [key for key, (_, _, needed) in fields.items() if needed]

    @reads("an object")
    def read(value, call):
        if type(value) is not dict:
            raise unfit("an object", value)
        given = {}
        for key, item in value.items():
            if key in fields:
                name, reader, _ = fields[key]
                given[name] = at(key, reader, item, call)
            elif more is not _MISSING:
                given[key] = at(key, more, item, call)
            else:
                raise BadInput(unknown % (", ".join(fields) or "none")).below(key)
        for key in required:
            if key not in value:
                reader = fields[key][1]
                raise BadInput("missing" + ("; expected %s" % reader.expected if reader else "")).below(key)
        try:
            return make(**given)
        except (TypeError, ValueError, AssertionError) as problem:  # the class checks values itself
            raise BadInput(str(problem) or type(problem).__name__) from None

    return read


def at(step, read, value, call):
    """Return what a reader makes of a part of a value."""
    try:
        return value if read is None else read(value, call)
    except BadInput as problem:
        raise problem.below(step) from None
