"""The verbs for what happens without a caller: notices."""

from runner.api.starts.notices import NoticeVerbs

__all__ = ["NoticeVerbs"]
