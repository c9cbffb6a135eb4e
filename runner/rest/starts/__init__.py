"""The endpoints of modules that start by themselves: schedules."""

from runner.rest.starts.schedules import ENDPOINTS

__all__ = ["ENDPOINTS"]
