"""The endpoints of what happens without a caller: schedules and notices."""

from runner.rest.starts import notices, schedules

ENDPOINTS = (*schedules.ENDPOINTS, *notices.ENDPOINTS)

__all__ = ["ENDPOINTS"]
