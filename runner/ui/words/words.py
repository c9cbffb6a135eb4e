"""`Words`: a text in the language of the reader, and the choice of that language."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Final

from attrs import frozen

from runner.ui.words.ko_executions import EXECUTIONS
from runner.ui.words.ko_frame import FRAME
from runner.ui.words.ko_modules import MODULES
from runner.ui.words.ko_operating import OPERATING
from runner.ui.words.ko_overview import OVERVIEW

LANGUAGES: Final = {"en": "English", "ko": "한국어"}
KO: Final[Mapping[str, str]] = FRAME | OVERVIEW | EXECUTIONS | MODULES | OPERATING
"""All texts in Korean; each area adds its mapping here."""
_TEXTS: Final[Mapping[str, Mapping[str, str]]] = {"en": {}, "ko": KO}


@frozen
class Words:
    """Call it with an English text to get that text in the language; `{name}` stands for the value of that name."""

    language: str
    _texts: Mapping[str, str]

    def __call__(self, text: str, /, **values: object) -> str:
        """Return a text with values. A text without a translation stays English."""
        found = self._texts.get(text, text)
        return found.format(**values) if values else found

    def plural(self, number: int, one: str, many: str, /, **values: object) -> str:
        """Return the text for a number, which is `{n}` in it. The key of a translation is `many`."""
        many = self._texts.get(many, many)
        return (one if number == 1 and self.language == "en" else many).format(n=f"{number:,}", **values)


@lru_cache(maxsize=len(LANGUAGES))
def of(language: str) -> Words:
    """Return the words of one of `LANGUAGES`."""
    return Words(language, _TEXTS[language])


def choose(chosen: str, accepted: str) -> Words:
    """Return the words for a chosen language, else for the header `Accept-Language`, else in English."""
    if chosen in LANGUAGES:
        return of(chosen)
    best, language = 0.0, "en"
    for part in accepted.lower()[:1000].split(","):
        name, _, weight = part.partition(";")
        name = name.strip().partition("-")[0]
        quality = _quality(weight)
        if name in LANGUAGES and quality > best:
            best, language = quality, name
    return of(language)


def _quality(weight: str) -> float:
    """Return the quality of one language, 1 without any, 0 for one that cannot be read."""
    text = weight.strip().removeprefix("q=")
    try:
        return float(text) if text else 1.0
    except ValueError:
        return 0.0
