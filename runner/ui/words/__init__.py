"""The words of the dashboard: English text is the key, and each other language has one mapping for each area."""

from runner.ui.words.words import LANGUAGES, Words, choose, of

__all__ = ["LANGUAGES", "Words", "choose", "of"]
