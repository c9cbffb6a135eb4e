"""The operations on what happens without a caller: schedules and notices."""

from runner.rest.openapi.starts.notices import NOTICES, NoticeShape
from runner.rest.openapi.starts.schedules import SCHEDULES

__all__ = ["NOTICES", "SCHEDULES", "NoticeShape"]
