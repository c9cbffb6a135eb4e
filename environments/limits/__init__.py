"""The face of the room."""

from environments.limits.limits import WATCH_SECONDS, Hold, LimitKeeper, Limits

__all__ = ["WATCH_SECONDS", "Hold", "LimitKeeper", "Limits"]
