"""Readers of values: text, numbers, durations, sizes, lists, names.

Every reader takes one value from YAML or JSON and returns the program's value. It raises `Wrong`, or an
`ExceptionGroup` of them each with its place, with the allowed values.
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from enum import StrEnum
from typing import Any, TypeVar

from attrs import frozen

from config.mistakes import Wrong, did_you_mean
from config.shapes import Values, accepting, bounded, nullable, shape_of, shaped

T = TypeVar("T")
E = TypeVar("E", bound=StrEnum)

WEEK = 7 * 86400.0
DURATIONS = {"ms": Decimal("0.001"), "s": Decimal(1), "m": Decimal(60), "h": Decimal(3600), "d": Decimal(86400)}
"""Seconds in each unit of time."""
SIZES = {"": 1, "b": 1} | {
    prefix + suffix: base**power
    for power, prefix in enumerate("kmgt", start=1)
    for suffix, base in (("", 1000), ("b", 1000), ("i", 1024), ("ib", 1024))
}
"""Bytes in each unit of size, in lower case: `k` and `kb` are 1000, `ki` and `kib` are 1024."""
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

_HOST = r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?"
_ORIGIN = re.compile(rf"[a-z][a-z0-9+.-]*://{_HOST}")
_WEB_ADDRESS = re.compile(rf"https?://{_HOST}(?:/[A-Za-z0-9._~-]+)*")
_HOST_NAME = re.compile(r"(?:\*\.)?[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?")
_NUMBERS = re.compile(r"[0-9.]+")
_LONG = 18
"""Digits of a 64-bit number; a longer duration is not written in units."""
_QUANTITY = re.compile(r"(\d{1,30}(?:\.\d{1,30})?)\s*([A-Za-z]*)", re.ASCII)


def show(value: object) -> str:
    """Return a value for a message, recognisable to its author, cut to 60 characters."""
    match value:
        case None:
            return "nothing"
        case bool():
            return str(value).lower()
        case Mapping():
            return "a mapping"
        case list() | tuple():
            return "a list"
    try:
        shown = repr(value)
    except ValueError:  # Python formats no integer of more than 4300 digits
        return "a very large number"
    return shown if len(shown) <= 60 else shown[:57] + "..."


@accepting(Values.TEXT)
def text(value: Any) -> str:
    """Read text that can be passed to a process: no null characters, no lone surrogates."""
    if not isinstance(value, str):
        raise Wrong(f"{show(value)} is not text{_quotes(value)}", allowed="text")
    if "\0" in value:
        raise Wrong("contains a null character", allowed="text without null characters")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Wrong("contains half of a character (a lone surrogate)", allowed="text") from None
    return value


def _quotes(value: Any) -> str:
    """Return the remedy for a word that YAML reads as another type."""
    if isinstance(value, bool):
        read = "yes, on and true" if value else "no, off and false"
        return f"; YAML reads {read} as {show(value)}: write the word in quotes"
    return "; write it in quotes" if isinstance(value, (int, float)) else ""


@accepting(Values.FILLED)
def filled(value: Any) -> str:
    """Read text that is not blank."""
    if not text(value).strip():
        raise Wrong("is empty", allowed="text that is not empty")
    return text(value)


@accepting(Values.FLAG)
def flag(value: Any) -> bool:
    """Read a boolean."""
    if not isinstance(value, bool):
        raise Wrong(f"{show(value)} is neither true nor false", allowed="true, false")
    return value


@accepting(Values.WHOLE)
def whole(value: Any) -> int:
    """Read a whole number."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise Wrong(f"{show(value)} is not a whole number", allowed="a whole number")
    return value


@accepting(Values.NUMBER)
def number(value: Any) -> float:
    """Read a finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not _finite(value):
        raise Wrong(f"{show(value)} is not a number", allowed="a number")
    return float(value)


def decimal(text: str) -> int | None:
    """Return the number that ASCII digits write, 18 at most, as a 64-bit counter holds it; None for any other text."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _LONG else None


@accepting(Values.DURATION)
def duration(value: Any) -> float:
    """Read seconds: a number, or text such as `30s`, `5m`, `1.5h`, `250ms`, `7d`."""
    if isinstance(value, str) and (match := _QUANTITY.fullmatch(value.strip())):
        unit = DURATIONS.get(match[2] or "s")
        if unit is not None:
            return float(Decimal(match[1]) * unit)
    elif not isinstance(value, (str, bool)) and isinstance(value, (int, float)) and _finite(value):
        return float(value)
    allowed = "a number of seconds, or text such as 30s, 5m, 1.5h, 250ms, 7d"
    raise Wrong(f"{show(value)} is not a duration; write {allowed}", allowed=allowed)


@accepting(Values.SIZE)
def size(value: Any) -> int:
    """Read bytes: a whole number, or text such as `256MB` (decimal) or `1GiB` (binary)."""
    if isinstance(value, str) and (match := _QUANTITY.fullmatch(value.strip())):
        unit = SIZES.get(match[2].lower())
        if unit is not None and (amount := Decimal(match[1]) * unit) == int(amount):
            return int(amount)
    elif isinstance(value, int) and not isinstance(value, bool):
        return value
    allowed = "a whole number of bytes, or text such as 256MB, 1GiB, 512k"
    raise Wrong(f"{show(value)} is not a size; write {allowed}", allowed=allowed)


def format_duration(seconds: float) -> str:
    """Return `5m`, `1.5s`: text that `duration` reads as the same number."""
    exact = Decimal(repr(float(seconds)))
    if exact.adjusted() > _LONG:  # Decimal cannot divide it exactly
        return f"{seconds:g} seconds"
    for name in ("d", "h", "m", "s", "ms"):
        if exact and exact % DURATIONS[name] == 0:
            return f"{int(exact / DURATIONS[name])}{name}"
    return f"{exact:f}s" if exact else "0s"


def format_size(amount: int) -> str:
    """Return `16MiB`, `1500B`: text that `size` reads as the same number."""
    units = (("TiB", 1024**4), ("GiB", 1024**3), ("MiB", 1024**2), ("KiB", 1024))
    return next((f"{amount // unit}{name}" for name, unit in units if amount and amount % unit == 0), f"{amount}B")


@frozen
class Range:
    """Allowed numbers; `above` instead of `low` excludes the bound itself."""

    low: float | None = None
    high: float | None = None
    above: float | None = None

    def check(self, value: float, render: Callable[[Any], str] = str) -> None:
        """Raise `Wrong` unless `value` is in the range; `render` formats the bounds in the unit of the field."""
        low, high, above = self.low, self.high, self.above
        inside = (low is None or value >= low) and (high is None or value <= high) and (above is None or value > above)
        if inside:
            return
        if high is None:
            words = f"more than {render(above)}" if above is not None else f"{render(low)} or more"
        elif above is not None:
            words = f"more than {render(above)} and at most {render(high)}"
        else:
            words = f"at most {render(high)}" if low is None else f"from {render(low)} to {render(high)}"
        raise Wrong(f"{render(value)} is out of range; it must be {words}", allowed=words)

    @property
    def keywords(self) -> dict[str, float]:
        """The range in the words of JSON Schema."""
        given = {"minimum": self.low, "maximum": self.high, "exclusiveMinimum": self.above}
        return {name: value for name, value in given.items() if value is not None}


def ranged(read: Callable[[Any], T], limits: Range, render: Callable[[Any], str] = str) -> Callable[[Any], T]:
    """Return a reader of numbers within limits."""

    def checked(value: Any) -> T:
        result: Any = read(value)
        limits.check(result, render)
        return result  # type: ignore[no-any-return]

    return shaped(checked, bounded(shape_of(read), limits.keywords))


def seconds(limits: Range) -> Callable[[Any], float]:
    """Return a reader of durations within limits."""
    return ranged(duration, limits, format_duration)


def count(low: float, high: float | None = None) -> Callable[[Any], int]:
    """Return a reader of whole numbers within limits."""
    return ranged(whole, Range(low, high))


def real(limits: Range) -> Callable[[Any], float]:
    """Return a reader of numbers within limits."""
    return ranged(number, limits, "{:g}".format)


def bytes_from(low: int) -> Callable[[Any], int]:
    """Return a reader of sizes that a 64-bit counter can hold."""
    return ranged(size, Range(low, 2**62), format_size)


def one_of(kind: type[E]) -> Callable[[Any], E]:
    """Return a reader of one member of an enumeration."""
    names = [str(member) for member in kind]
    words = names + [value for word, value in (("on", True), ("off", False)) if word in names]
    return shaped(lambda value: kind(choose(value, names)), {"enum": words})


def choose(value: Any, names: Sequence[str]) -> str:
    """Read one word of a list. The words `on` and `off` are booleans in YAML."""
    allowed = ", ".join(names)
    word = ("on" if value else "off") if isinstance(value, bool) else value
    if isinstance(word, str) and word in names:
        return word
    if value is None:
        raise Wrong(f"is missing; it is one of {allowed}", allowed=allowed)
    hint = did_you_mean(value, names) if isinstance(value, str) else _quotes(value) if isinstance(value, bool) else ""
    raise Wrong(f"{show(value)} is not one of {allowed}{hint}", allowed=allowed)


def matching(pattern: str, allowed: str) -> Callable[[Any], str]:
    """Return a reader of text that matches a pattern, which `allowed` describes."""
    compiled = re.compile(pattern)

    def read(value: Any) -> str:
        if not compiled.fullmatch(text(value)):
            raise Wrong(f"{show(value)} is not {allowed}", allowed=allowed)
        return text(value)

    return shaped(read, {"type": "string", "pattern": f"^(?:{pattern})$"})


def optional(read: Callable[[Any], T]) -> Callable[[Any], T | None]:
    """Return a reader that also accepts None."""
    return shaped(lambda value: None if value is None else read(value), nullable(shape_of(read)))


def items(read: Callable[[Any], T]) -> Callable[[Any], tuple[T, ...]]:
    """Return a reader of lists, which reports every wrong item; None is the empty list."""

    def read_all(value: Any) -> tuple[T, ...]:
        if not isinstance(value, (list, tuple)) and value is not None:
            raise Wrong(f"{show(value)} is not a list", allowed="a list")
        return tuple(all_of(enumerate(value or ()), read).values())

    return shaped(read_all, nullable({"type": "array", "items": shape_of(read)}))


def all_of(entries: Any, read: Callable[[Any], T], check_key: Callable[[Any], Any] | None = None) -> dict[Any, T]:
    """Read every entry (key and value); raise all mistakes together, each under its key."""
    result: dict[Any, T] = {}
    wrongs: list[Wrong] = []
    for key, value in entries:
        try:
            if check_key is not None:
                check_key(key)
            result[key] = read(value)
        except Wrong as wrong:
            wrongs.append(wrong.under((key,)))
    if wrongs:
        raise ExceptionGroup("wrong entries", wrongs)
    return result


@accepting(Values.WORDS)
def words(value: Any) -> tuple[str, ...]:
    """Read a list of words, or text with commas or blanks between them, as a command line gives it."""
    if isinstance(value, str):
        return tuple(word for word in re.split(r"[\s,]+", value) if word)
    if not isinstance(value, (list, tuple)) and value is not None:
        raise Wrong(f"{show(value)} is not a list", allowed="a list, or text with commas between its items")
    return tuple(map(filled, value or ()))


@accepting(Values.WORDS)
def origins(value: Any) -> tuple[str, ...]:
    """Read origins of web pages, `https://app.example.org`, in lower case; `*` means all of them."""
    return tuple(map(_origin, words(value)))


def _origin(value: str) -> str:
    origin = value.lower().removesuffix("/")
    if origin != "*" and not _ORIGIN.fullmatch(origin):
        allowed = "a scheme and a host, such as https://app.example.org, or *"
        raise Wrong(f"{show(value)} is not an origin: write {allowed}", allowed=allowed)
    return origin


@accepting(Values.WORDS)
def networks(value: Any) -> tuple[str, ...]:
    """Read networks and addresses of IPv4 and IPv6: `10.0.0.0/8`, `::1`."""
    return tuple(map(_network, words(value)))


@accepting(Values.WORDS)
def destinations(value: Any) -> tuple[str, ...]:
    """Read networks, addresses and names of hosts: `10.0.0.0/8`, `hooks.internal`, `*.example.org`."""
    return tuple(map(_destination, words(value)))


def _destination(value: str) -> str:
    if _HOST_NAME.fullmatch(value) and not _NUMBERS.fullmatch(value):
        return value.lower()
    try:
        return str(ipaddress.ip_network(value, strict=False))
    except ValueError:
        allowed = "a network, an address or the name of a host, such as 10.0.0.0/8, hooks.internal or *.example.org"
        raise Wrong(f"{show(value)} is not {allowed}", allowed=allowed) from None


def _network(value: str) -> str:
    try:
        return str(ipaddress.ip_network(value, strict=False))
    except ValueError:
        allowed = "a network or an address, such as 10.0.0.0/8 or 127.0.0.1"
        raise Wrong(f"{show(value)} is not {allowed}", allowed=allowed) from None


@accepting(Values.TEXT)
def web_address(value: Any) -> str:
    """Read the address of a web server, `https://example.org/runner`, without a slash at its end."""
    address = filled(value).strip().rstrip("/")
    if not _WEB_ADDRESS.fullmatch(address):
        allowed = "http:// or https://, a host and, if needed, a port and a path, such as https://example.org/runner"
        raise Wrong(f"{show(value)} is not an address of a web server: write {allowed}", allowed=allowed)
    return address


def module_name(value: Any) -> str:
    """Read text that has the form of the name of a module."""
    return _MODULE_NAME(value)


@accepting(Values.VARIABLES)
def variables(value: Any) -> dict[str, str]:
    """Read environment variables: a mapping of names to text, numbers or booleans; None is the empty mapping."""
    if value is not None and not isinstance(value, Mapping):
        hint = "; write lines `NAME: value` without dashes" if isinstance(value, list) else ""
        raise Wrong(f"{show(value)} is not a mapping of names to values{hint}", allowed="a mapping")
    return all_of((value or {}).items(), _variable, check_key=variable_name)


@accepting(Values.VARIABLE_NAME)
def variable_name(name: Any) -> str:
    """Read the name of a variable for user code; names with `OPERATO_` are reserved for the runner."""
    if not VARIABLE.fullmatch(text(name)):
        allowed = "letters, digits and _, not beginning with a digit"
        raise Wrong(f"{show(name)} is not the name of a variable: {allowed}", allowed=allowed)
    if name.upper().startswith("OPERATO_"):
        raise Wrong(f"{name} is reserved: variables of modules cannot begin with OPERATO_")
    return str(name)


def _variable(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)) and _finite(value):
        return str(value)
    if not isinstance(value, str):
        raise Wrong(f"{show(value)} is not text, a number or a boolean", allowed="text, a number, true, false")
    return text(value)


def _finite(value: float) -> bool:
    """Return whether a number is a finite float; very large integers are not."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


_MODULE_NAME = matching(
    r"[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?",
    "a name: 1 to 64 of a-z, 0-9, '.', '_' and '-', a letter or digit first and last",
)
shaped(module_name, shape_of(_MODULE_NAME))
