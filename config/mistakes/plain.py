"""Mistakes in YAML in the words of an author: what is wrong in which line, and what to write instead.

The parser names the place where it cannot continue, in its own terms. What a person must change is often elsewhere: at
the quote that was opened, at the key that has no colon, at the text that has no `|`. The tokens before that place and
the lines around it tell which.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeAlias

import yaml
from attrs import field, frozen

_Found: TypeAlias = tuple[str, int] | None
"""The message and the line, counted from 0."""

_BREAKS = re.compile("\r\n|[\n\r\x85\u2028\u2029]")
_PAIRS = {"[": "]", "{": "}"}
_FIELD = re.compile(r"(?:- +)?(?P<name>[A-Za-z_][\w.-]*)(?P<colon>:?)(?P<space>\s*)(?P<value>.*)")
_CODE = re.compile(
    r"(?:async |await |assert |class |def |del |elif |else:|except|finally:|for |from |global |if |import |lambda|"
    r"pass\b|print\b|raise\b|return\b|try:|while |with |yield\b|@\w|[\w.\[\]'\"]+ *[-+*/|&]?= *\S|[\w.]+\()"
)
_SHOWN = 40


@frozen
class _Place:
    """The place where the parser stopped, and what is around it."""

    lines: list[str]
    problem: str
    context: str
    line: int
    column: int
    began: yaml.Mark | None
    """Where the parser began with what it could not finish."""
    tokens: list[yaml.Token] = field(factory=list)
    """The tokens before the place."""

    @property
    def text(self) -> str:
        """The line."""
        return self.lines[self.line] if self.line < len(self.lines) else ""

    @property
    def last(self) -> yaml.ScalarToken | None:
        """The last value or key before the place."""
        return next((token for token in reversed(self.tokens) if isinstance(token, yaml.ScalarToken)), None)

    @property
    def opened(self) -> list[yaml.Token]:
        """The brackets that are open at the place."""
        stack: list[yaml.Token] = []
        for token in self.tokens:
            if isinstance(token, yaml.FlowSequenceStartToken | yaml.FlowMappingStartToken):
                stack.append(token)
            elif isinstance(token, yaml.FlowSequenceEndToken | yaml.FlowMappingEndToken) and stack:
                stack.pop()
        return stack

    def key_of(self, value: yaml.ScalarToken) -> yaml.ScalarToken | None:
        """Return the key whose value begins with a token."""
        at = self.tokens.index(value)
        before = self.tokens[max(at - 2, 0) : at]
        if len(before) == 2 and isinstance(before[0], yaml.ScalarToken) and isinstance(before[1], yaml.ValueToken):
            return before[0]
        return None

    @property
    def offending(self) -> int:
        """The line that the parser could not read: where a key began that has no colon, else where it stopped."""
        return self.began.line if "expected ':'" in self.problem and self.began is not None else self.line


def explain(text: str, error: yaml.MarkedYAMLError) -> tuple[str, int | None]:
    """Return the mistake in plain words with its remedy, and its line counted from 1."""
    mark = error.problem_mark or error.context_mark
    if mark is None:
        return _DEFAULT, None
    place = _Place(
        _BREAKS.split(text),
        error.problem or "",
        error.context or "",
        mark.line,
        mark.column,
        error.context_mark,
        _tokens_before(text, mark),
    )
    for rule in _RULES:
        found = rule(place)
        if found is not None:
            return found[0], found[1] + 1
    return _DEFAULT, mark.line + 1


def lost_code(text: str, line: int) -> bool:
    """Return whether code follows from a line on (counted from 1): it was meant to belong to the empty text above."""
    following = (each.strip() for each in _BREAKS.split(text)[line - 1 :] if each.strip())
    return _CODE.match(next(following, "")) is not None


def _tokens_before(text: str, mark: yaml.Mark) -> list[yaml.Token]:
    tokens: list[yaml.Token] = []
    try:
        for token in yaml.scan(text, Loader=yaml.SafeLoader):
            if token.start_mark.index >= mark.index:
                break
            tokens.append(token)
    except yaml.YAMLError:
        pass  # the mistake itself
    return tokens


# -- characters --------------------------------------------------------------------------------------------------------


def _tab(place: _Place) -> _Found:
    if r"'\t' that cannot start" not in place.problem:
        return None
    before = place.text[: place.column].strip()
    if before:
        return f"this line has a tab after {_shown(before)}; write a space instead", place.line
    return "this line begins with a tab; indent with spaces instead", place.line


def _first_character(place: _Place) -> _Found:
    found = re.search(r"found character '(.)' that cannot start", place.problem)
    if found is not None:
        return f"a value cannot begin with {found[1]}; put it in quotes", place.line
    if place.text.startswith("%"):
        return "a line cannot begin with %; put the value in quotes", place.line
    if place.context in {"while scanning an alias", "while scanning an anchor"}:
        began = place.line if place.began is None else place.began.line
        sign = "*" if "alias" in place.context else "&"
        return f"a value cannot begin with {sign}; put it in quotes", began
    alias = re.search(r"found undefined alias '(.*)'", place.problem)
    if alias is not None:
        return f"*{alias[1]} repeats the value marked &{alias[1]}, which does not exist; put it in quotes", place.line
    return None


def _after_the_bar(place: _Place) -> _Found:
    if place.context != "while scanning a block scalar":
        return None
    if "indent" in place.problem or "comment" in place.problem:
        return "there is text behind `|`; write it on the lines below, indented", place.line
    return None


# -- quotes and brackets -----------------------------------------------------------------------------------------------


def _quote(place: _Place) -> _Found:
    if place.context == "while scanning a quoted scalar" and place.began is not None:
        return _unclosed_quote(place, place.began)
    last = place.last
    if last is None or last.style not in {"'", '"'}:
        return None
    if last.start_mark.line < last.end_mark.line == place.line:
        return _unclosed_quote(place, last.start_mark)
    if last.end_mark.line == place.line and last.end_mark.column <= place.column and ":" not in place.problem:
        twice = "; within ' write an apostrophe as ''" if last.style == "'" else '; within " write \\" for a quote'
        return f"there is text after the closing {last.style}{twice}", place.line
    return None


def _unclosed_quote(place: _Place, mark: yaml.Mark) -> _Found:
    opened = place.lines[mark.line][mark.column : mark.column + 1]
    return f"the quote {opened} in column {mark.column + 1} is not closed; close it in this line", mark.line


def _escape(place: _Place) -> _Found:
    if place.context != "while scanning a double-quoted scalar":
        return None
    return (
        r'within " a backslash has a meaning of its own; write it as \\, or put the text in single quotes',
        place.line,
    )


def _bracket(place: _Place) -> _Found:
    if place.opened:
        mark = place.opened[-1].start_mark
        sign = place.lines[mark.line][mark.column]
        end = _PAIRS.get(sign)
        if end is None:  # the parser does not count a byte order mark
            return None
        return f"the {sign} in column {mark.column + 1} has no {end}; add it, or a comma between the entries", mark.line
    found = re.search(r"found '([\]}])'", place.problem)
    return None if found is None else (f"this line has a {found[1]} that closes nothing; remove it", place.line)


# -- colons and blocks of text -----------------------------------------------------------------------------------------


def _under_text(place: _Place) -> _Found:
    """Find a line of code that is indented less than the code above it."""
    above = next((t for t in reversed(place.tokens) if t.start_mark.line < place.offending and _is_word(t)), None)
    if not isinstance(above, yaml.ScalarToken) or above.style not in {"|", ">"}:
        return None
    key = place.key_of(above)
    line = place.lines[place.offending]
    if key is None or not _CODE.match(line.strip()):
        return None
    return (
        f"this line is indented less than the first line below `{key.value}: |`; indent all of it alike",
        place.offending,
    )


def _is_word(token: yaml.Token) -> bool:
    return isinstance(token, yaml.ScalarToken | yaml.BlockEntryToken)


def _no_colon(place: _Place) -> _Found:
    if "could not find expected ':'" not in place.problem or place.began is None:
        return None
    line = place.began.line
    return _colon_in(place.lines[line].strip()) or _lone_words(place.lines[line]), line


def _colon_in(text: str) -> str | None:
    """Return the mistake in a line without a colon and a space after its name, or None if it has both."""
    found = _FIELD.fullmatch(text)
    if found is None or (found["colon"] and (found["space"] or not found["value"])):
        return None
    name, value = found["name"], found["value"]
    right = f"{name}: {value}".rstrip() if value else f"{name}:"
    if found["colon"]:
        return f"this line has no space after the colon; write {_shown(right)}"
    if value and not found["space"]:
        return None
    return f"this line has no colon after {_shown(name)}; write {_shown(right)}"


def _lone_words(text: str) -> str:
    return f"{_shown(text.strip())} is no `name: value`; text of several lines begins with `|` behind its name"


def _too_many_colons(place: _Place) -> _Found:
    """Find out why a colon is where no name can be: in a value, or because the value did not end."""
    if not place.problem.startswith("mapping values are not allowed"):
        return None
    value = place.last
    if value is None:
        return None
    key = place.key_of(value)
    first = place.lines[value.start_mark.line]
    if key is None:
        return (_colon_in(first.strip()) or _lone_words(first)), value.start_mark.line
    return _in_value(place, key, value)


def _in_value(place: _Place, key: yaml.ScalarToken, value: yaml.ScalarToken) -> _Found:
    if key.value.startswith("-"):
        right = f"- {key.value.lstrip('-')}: {value.value.split()[0]}"
        return f"this line has no space after the dash; write {_shown(right)}", key.start_mark.line
    if key.start_mark.line < value.start_mark.line or _CODE.match(value.value):
        text = f"`{key.value}` has text of several lines"
        return f"{text}; write `{key.value}: |` and the text below it, indented", key.start_mark.line
    if value.start_mark.line < place.line:
        spaces, column = _spaces(place.text), key.start_mark.column
        text = f"this line is indented by {spaces}, so it continues the value of `{key.value}`"
        return f"{text}; indent it by {column}, or put the whole value in quotes", place.line
    return f"the value of `{key.value}` has a colon and a space in it; put it in quotes", place.line


# -- indentation and lists ---------------------------------------------------------------------------------------------


def _list(place: _Place) -> _Found:
    if place.problem.startswith("sequence entries are not allowed"):
        return "a list cannot begin in the line of its name; write it below, or as [a, b]", place.line
    if place.problem.startswith("expected <block end>") and place.problem.endswith("'-'"):
        text = "this line is an entry of a list (`- `) among names with values"
        return f"{text}; indent it below the name that it belongs to, or remove the dash", place.line
    return None


def _indentation(place: _Place) -> _Found:
    if not place.problem.startswith(("expected <block end>", "expected '<document start>'")):
        return None
    return _fits(place, place.line), place.line


def _fits(place: _Place, line: int) -> str:
    """Return the levels of indentation that a line could have."""
    spaces = _spaces(place.lines[line])
    levels: list[int] = []
    for above in reversed(place.lines[:line]):
        bare = above.lstrip(" ")
        if bare and not bare.startswith("#"):
            found = [_spaces(above)]
            dash = re.match(r"-( +)\S", bare)
            if dash is not None:
                found.append(found[0] + len(dash[0]) - 1)
            levels += [level for level in reversed(found) if not levels or level < levels[-1]]
    more, less = [level for level in levels if level > spaces], [level for level in levels if level < spaces]
    fitting = " or ".join(str(level) for level in (*more[-1:], *less[:1]))
    hint = f"; indent it by {fitting}" if fitting else ""
    return f"this line is indented by {spaces} spaces, which fits no line above{hint}"


def _documents(place: _Place) -> _Found:
    if "another document" not in place.problem:
        return None
    return "this line begins a second document; remove the line ---", place.line


def _spaces(line: str) -> int:
    return len(line) - len(line.lstrip(" "))


def _shown(text: str) -> str:
    return f"`{text if len(text) <= _SHOWN else text[: _SHOWN - 3] + '...'}`"


_DEFAULT = "this line cannot be read; check indentation, colons, quotes and brackets, here and in the line above"
_RULES: tuple[Callable[[_Place], _Found], ...] = (
    _tab,
    _first_character,
    _after_the_bar,
    _escape,
    _quote,
    _bracket,
    _under_text,
    _no_colon,
    _too_many_colons,
    _list,
    _documents,
    _indentation,
)
