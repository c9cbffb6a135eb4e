"""The operations on modules that start by themselves: schedules."""

from runner.rest.openapi.starts.schedules import SCHEDULES

__all__ = ["SCHEDULES"]
