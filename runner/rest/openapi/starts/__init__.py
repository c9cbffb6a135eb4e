"""The operations for what happens without a caller: notices."""

from runner.rest.openapi.starts.notices import NOTICES, NoticeShape

__all__ = ["NOTICES", "NoticeShape"]
