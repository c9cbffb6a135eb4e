"""What the cluster asks of a record: how far executions have come, and which ones the others may lack."""

from actors.history.shared.joining import (
    Ended,
    ended_after,
    is_elsewhere,
    join,
    last_ended,
    open_ones,
    origins,
    own,
    stages,
)

__all__ = ["Ended", "ended_after", "is_elsewhere", "join", "last_ended", "open_ones", "origins", "own", "stages"]
