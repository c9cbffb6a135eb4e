"""Many calls in one worker: its messages are routed to them, and each begins, stores files and ends by itself."""

from actors.workers.shared.running import Running
from actors.workers.shared.seats import Seats
from actors.workers.shared.shared import Owner, Shared

__all__ = ["Owner", "Running", "Seats", "Shared"]
