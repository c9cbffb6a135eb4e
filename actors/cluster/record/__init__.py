"""The record of a cluster: states of executions go into the log of the engine, and from there into every history.

`SharedLog` is the execution log of this runner. `Projection` brings what others write into its history, `Outbox` what
the log lacks of its own; `Repair`, inside of it, fills holes that damage of a server has left.
"""

from actors.cluster.record.mail import Mail
from actors.cluster.record.outbox import Outbox
from actors.cluster.record.positions import POSITIONS_FILE, Position, Positions
from actors.cluster.record.projection import Projection
from actors.cluster.record.sharedlog import SharedLog

__all__ = ["POSITIONS_FILE", "Mail", "Outbox", "Position", "Positions", "Projection", "SharedLog"]
