"""Plans of handlers: which arguments an input becomes, by the parameters of the handler and their type hints.

Standard library only, Python 3.8 and later: this file is a part of the worker program, imported for handlers that are
more than `handler(input)`. The host imports it for handlers in its own process. Types are recognised by name, so that
nothing is imported for types that a handler does not use.
"""

import enum
import sys
import types

from protocol.authors.readers import (
    array,
    choice,
    exactly,
    is_file,
    mapping,
    moment,
    of_decimal,
    of_operato,
    of_path,
    of_uuid,
    of_validator,
    read_bytes,
    read_integer,
    read_integer_key,
    read_number,
    read_text,
    reads,
    row,
    shown,
    structure,
    union,
)
from protocol.values import BadInput

_EMPTY = object()
_POSITIONAL_ONLY, _NORMAL, _REST, _BY_NAME, _REST_BY_NAME = range(5)  # as in `inspect`
_LIBRARY = ("builtins", "typing", "typing_extensions", "collections.abc", "types")
_WRAPPERS = ("Annotated", "Required", "NotRequired", "ReadOnly", "Final")
_LISTS = ("list", "List", "Sequence", "MutableSequence", "Collection", "Iterable")
_DICTS = ("dict", "Dict", "Mapping", "MutableMapping")
_SETS = {"set": set, "Set": set, "MutableSet": set, "AbstractSet": set, "frozenset": frozenset, "FrozenSet": frozenset}
_MAX_DEPTH = 32
"""Levels of nested hints; deeper ones accept everything."""

standard = __import__
"""Imports a module of the standard library; a worker has its own way, which user code cannot mislead."""


class Plain:
    """A handler that takes the whole input, and perhaps the context."""

    def __init__(self, parameter=None, context=None, by_name=False):
        self.read = None if parameter is None else whole(parameter.hint)
        self.name = parameter.name if by_name else None
        self.context = context

    def arguments(self, value, call):
        """Return positional arguments and arguments by name. Raises BadInput."""
        if self.read is not None:
            value = self.read(value, call)
        args, named = ((value,), {}) if self.name is None else ((), {self.name: value})
        if self.context is not None:
            if self.context.kind == _POSITIONAL_ONLY:
                args += (call.context,)
            else:
                named[self.context.name] = call.context
        return args, named


class Typed:
    """A handler whose input is an object with its parameters as keys."""

    def __init__(self, fields, context, more):
        keys = {}
        for each in fields:
            keys[each.name] = each.name, or_null(compiled(each.hint), each.default), each.default is _EMPTY
        text = "the handler has no parameter of this name; it has %s"
        if len(fields) == 1:
            text += "; one that is named `input` takes the whole input"
        self.read = structure(keys, dict, *([] if more is None else [compiled(more.hint)]), unknown=text)
        self.positional = [each for each in fields if each.kind == _POSITIONAL_ONLY]
        self.context = context
        self.names = list(keys)
        self.needed = any(needed for _, _, needed in keys.values())

    def arguments(self, value, call):
        """Return positional arguments and arguments by name. Raises BadInput."""
        if value is None and not self.needed:
            value = {}
        if type(value) is not dict:
            remedy = "; a parameter that is named `input` takes any JSON" if len(self.names) == 1 else ""
            text = "expected an object with the handler's parameters (%s), not %s%s"
            raise BadInput(text % (", ".join(self.names) or "none", shown(value), remedy))
        try:
            named = self.read(value, call)
        except RecursionError:
            raise BadInput("nested too deeply") from None
        if self.context is not None:
            named[self.context.name] = call.context
        args = tuple(named.pop(each.name, each.default) for each in self.positional)
        return args, named


class Parameter:
    """One parameter of a handler; `hint` is resolved when it is needed."""

    def __init__(self, name, kind, default, annotation, scope):
        self.name, self.kind, self.default = name, kind, default
        self.annotation, self.scope = annotation, scope

    @property
    def hint(self):
        """The type that the annotation names; the annotation itself if that cannot be found."""
        return resolved(self.annotation, self.scope)

    def is_context(self):
        """Return whether it takes the context by its name or type."""
        return self.name == "context" or getattr(self.hint, "operato_kind", None) == "Context"


def plan(handler):
    """Return the plan of a handler: `Plain` or `Typed`."""
    parameters = parameters_of(handler)
    if parameters is None:
        return Plain()
    bound = getattr(handler, "keywords", None) if type(handler).__name__ == "partial" else None
    taken = [
        each
        for each in parameters
        if each.kind not in (_REST, _REST_BY_NAME)
        and (each.default is _EMPTY or not (each.name[0] == "_" or each.name in (bound or ())))
    ]
    context = next((each for each in taken if each.is_context()), None)
    taken = [each for each in taken if each is not context]
    more = next((each for each in parameters if each.kind == _REST_BY_NAME), None)
    if not taken and any(each.kind == _REST for each in parameters):
        return Plain(None, context)
    first, second = (taken + [None, None])[:2]
    if first is not None and (first.name == "input" or first.name[0] == "_" or first.kind == _POSITIONAL_ONLY):
        if context is None and len(taken) == 2 and takes_context(second):
            context = second
            taken.remove(second)
        if len(taken) == 1:
            return Plain(first, context, first.kind == _BY_NAME or parameters[0] is context)
    if len(taken) == 1 and more is None and getattr(first.hint, "operato_kind", None) == "Request":
        return Plain(first, context, first.kind == _BY_NAME or parameters[0] is context)
    return Typed(taken, context, more)


def takes_context(second):
    """Return whether the second parameter of a plain handler takes the context, under any name."""
    annotation = second.annotation
    name = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")
    known = annotation is _EMPTY or name.rpartition(".")[2].strip("\"' ") in ("Any", "object", "Context")
    return second.kind <= _NORMAL and second.default is _EMPTY and known


def parameters_of(handler):
    """Return the parameters of a handler, without `self`; None if nothing is known about them."""
    function = getattr(handler, "__func__", handler)
    if isinstance(function, types.FunctionType) and not hasattr(function, "__wrapped__"):
        return parameters_of_function(function)[isinstance(handler, types.MethodType) :]
    inspect = standard("inspect")
    try:
        found = inspect.signature(handler).parameters.values()
    except (TypeError, ValueError):  # some of C code
        return None
    scope = scope_of(handler)
    return [
        Parameter(
            each.name,
            int(each.kind),
            _EMPTY if each.default is each.empty else each.default,
            _EMPTY if each.annotation is each.empty else each.annotation,
            scope,
        )
        for each in found
    ]


def parameters_of_function(function):
    """Return the parameters of a function; `inspect` takes long to import."""
    code = function.__code__
    hints, scope = annotations_of(function), function.__globals__
    last, named = code.co_argcount, code.co_kwonlyargcount
    kinds = [_POSITIONAL_ONLY] * code.co_posonlyargcount + [_NORMAL] * (last - code.co_posonlyargcount)
    kinds += [_BY_NAME] * named + [_REST] * bool(code.co_flags & 4) + [_REST_BY_NAME] * bool(code.co_flags & 8)
    names = code.co_varnames[: len(kinds)]
    defaults = dict(zip(reversed(names[:last]), reversed(function.__defaults__ or ())))
    defaults.update(function.__kwdefaults__ or {})
    return [
        Parameter(name, kind, defaults.get(name, _EMPTY), hints.get(name, _EMPTY), scope)
        for name, kind in zip(names, kinds)
    ]


def annotations_of(thing):
    """Return the annotations of a function or class, also where some of their names are missing."""
    try:
        return thing.__annotations__
    except AttributeError:
        return {}
    except Exception:  # Python 3.14 evaluates them now
        library = standard("annotationlib")
        return library.get_annotations(thing, format=library.Format.FORWARDREF)


def scope_of(handler):
    """Return the names that the annotations of a handler see."""
    for _ in range(_MAX_DEPTH):
        if hasattr(handler, "__wrapped__"):
            handler = handler.__wrapped__
        elif type(handler).__name__ == "partial":
            handler = handler.func
        elif isinstance(handler, type):
            handler = handler.__init__
        elif not hasattr(handler, "__globals__") and not hasattr(handler, "__func__"):
            handler = type(handler).__call__
        else:
            break
    return getattr(getattr(handler, "__func__", handler), "__globals__", {})


def resolved(annotation, scope):
    """Return the type that an annotation names; the annotation itself if that cannot be found."""
    if annotation is None or (isinstance(annotation, type) and not hasattr(annotation, "__origin__")):
        return annotation
    stand_in = types.SimpleNamespace(__annotations__={"it": annotation})
    try:
        for _ in range(2):  # Python 3.8 leaves quoted names within a quoted hint
            stand_in.__annotations__ = standard("typing").get_type_hints(stand_in, scope)
        return stand_in.__annotations__["it"]
    except Exception:  # a name only for type checkers, or an expression that a later Python has
        return annotation


def hints_of(hint):
    """Return the hints of the fields of a class, those of its bases first."""
    found = {}
    for base in reversed(hint.__mro__):
        own = vars(base).get("__annotations__", {}) if sys.version_info < (3, 10) else annotations_of(base)
        scope = dict(vars(sys.modules.get(base.__module__, types)), **{base.__name__: base})
        found.update((name, resolved(annotation, scope)) for name, annotation in own.items())
    return found


# -- hints ----------------------------------------------------------------------------------------------------------


def whole(hint):
    """Return the reader for the whole input of a plain handler: only files and requests are more than JSON."""
    inner = [each for each in members(hint) if each is not type(None)]
    if inner == [str]:
        return lambda value, call: read_text(value, call) if is_file(value) else value
    takes = inner in ([bytes], [bytearray]) or getattr(inner[0], "operato_kind", None) in ("File", "Request")
    return compiled(hint) if takes and len(inner) == 1 else None


def members(hint):
    """Return the members of a union, or the hint alone."""
    is_union = type(hint).__name__ == "UnionType" or name_of(getattr(hint, "__origin__", None)) == "Union"
    return [each for part in hint.__args__ for each in members(part)] if is_union else [hint]


def name_of(hint):
    """Return the name of a type of the standard library, with its module if that is not for hints; empty for others."""
    module = getattr(hint, "__module__", "")
    name = getattr(hint, "__qualname__", None) or getattr(hint, "_name", None) or getattr(hint, "__name__", "")
    return name if module in _LIBRARY else "%s.%s" % (module, name)


def compiled(hint, known=None, depth=0):
    """Return the reader for a hint; None if it takes every value as it is. `known` has the readers of classes."""
    known = {} if known is None else known
    hint = type(None) if hint is None else hint
    if depth > _MAX_DEPTH:
        return None

    def inside(part):
        return compiled(part, known, depth + 1)

    if hasattr(hint, "__supertype__") or hasattr(hint, "__value__"):  # NewType, `type X = ...`
        return inside(getattr(hint, "__supertype__", None) or hint.__value__)
    if type(hint).__name__ == "InitVar":
        return inside(hint.type)
    if hasattr(hint, "__metadata__"):
        return inside(hint.__origin__)
    parts = members(hint)
    if len(parts) > 1:
        return union([inside(part) for part in parts])
    origin, args = getattr(hint, "__origin__", hint), getattr(hint, "__args__", ())
    name = name_of(origin)
    if name == "Literal":
        return choice(args)
    if name in _WRAPPERS and args:
        return inside(args[0])
    if name in _LISTS or name in _SETS:
        return array(inside(args[0]) if args else None, _SETS.get(name, list))
    if name in ("tuple", "Tuple"):
        fixed = args and args[-1] is not Ellipsis
        return row([inside(part) for part in args]) if fixed else array(inside(args[0]) if args else None, tuple)
    if name in _DICTS:
        return mapping(key_reader(inside, args[0]), inside(args[1])) if len(args) == 2 else mapping(None, None)
    if name in _READERS:
        return _READERS[name]
    return of_class(origin, name, known, inside) if isinstance(origin, type) else None


def key_reader(inside, hint):
    """Return the reader of the keys of an object: text, or what text stands for."""
    read = inside(hint)
    return {read_text: None, read_integer: read_integer_key}.get(read, read)


def of_class(hint, name, known, inside):
    """Return the reader for a class; None if it is not one that JSON can be made into."""
    if hint in known:
        return later(known, hint) if known[hint] is _EMPTY else known[hint]
    known[hint] = _EMPTY
    if getattr(hint, "operato_kind", None):
        read = of_operato(hint, hint.operato_kind)
    elif name in _CLASSES:
        read = _CLASSES[name](hint)
    elif issubclass(hint, enum.Enum):
        read = choice(list(hint))
    elif name.startswith("pathlib.") and hasattr(hint, "__fspath__"):
        read = of_path(hint)
    elif hasattr(hint, "__pydantic_validator__") or hasattr(hint, "parse_obj"):
        read = of_validator(hint)
    else:
        read = of_fields(hint, inside)
    known[hint] = read
    return read


def later(known, hint):
    """Return the reader for a class whose own reader is being made."""

    @reads("an object")
    def read(value, call):
        return value if known[hint] is None else known[hint](value, call)

    return read


def of_fields(hint, inside):
    """Return the reader for a class of named fields: a dataclass, a class of attrs, a named tuple, a TypedDict."""
    hints = hints_of(hint)
    if issubclass(hint, dict) and hasattr(hint, "__total__"):
        required = getattr(hint, "__required_keys__", hints if hint.__total__ else ())
        return structure({key: (key, inside(each), key in required) for key, each in hints.items()}, dict, None)
    if issubclass(hint, tuple) and hasattr(hint, "_fields"):
        defaults = hint._field_defaults
        found = [(name, name, defaults.get(name, _EMPTY)) for name in hint._fields]
    elif hasattr(hint, "__dataclass_fields__") and hint.__dataclass_params__.init:
        found = [
            (each.name, each.name, _EMPTY if each.default is each.default_factory else each.default)
            for each in hint.__dataclass_fields__.values()
            if each.init and each._field_type.name != "_FIELD_CLASSVAR"
        ]  # without a default, both are the same mark
    elif hasattr(hint, "__attrs_attrs__"):
        found = [
            (each.name, getattr(each, "alias", None) or each.name.lstrip("_"), each.default)
            for each in hint.__attrs_attrs__
            if each.init
        ]
        found = [(key, name, _EMPTY if repr(default) == "NOTHING" else default) for key, name, default in found]
    else:
        return None
    return structure(
        {key: (name, or_null(inside(hints.get(key)), default), default is _EMPTY) for key, name, default in found}, hint
    )


def or_null(read, default):
    """Return a reader that takes null as well if that is the default."""
    if read is None or default is not None or read.expected.endswith("null"):
        return read
    return union([read, _READERS["NoneType"]])


_READERS = {
    "NoneType": exactly(type(None), "null"),
    "bool": exactly(bool, "true or false"),
    "int": read_integer,
    "float": read_number,
    "str": read_text,
    "bytes": read_bytes,
    "bytearray": reads(read_bytes.expected, takes_file=True)(lambda value, call: bytearray(read_bytes(value, call))),
}
_CLASSES = {
    "datetime.datetime": lambda hint: moment(hint, "datetime"),
    "datetime.date": lambda hint: moment(hint, "date"),
    "datetime.time": lambda hint: moment(hint, "time"),
    "decimal.Decimal": of_decimal,
    "uuid.UUID": of_uuid,
}
