"""Fields that are not written in a modules file: those of the block in the code (PEP 723), and of files beside it."""

from config.completing.fields import REQUIREMENTS, Completed, completed, passed_over
from config.completing.script import KIND, Block, blocks, read_block

__all__ = ["KIND", "REQUIREMENTS", "Block", "Completed", "blocks", "completed", "passed_over", "read_block"]
