"""The files of a cluster: contents in the object store of the engine, notes about them, and large parts of letters."""

from actors.cluster.files.collecting import SharedCollecting
from actors.cluster.files.parts import Parts, ids_of, part_finder
from actors.cluster.files.sharing import SharedFiles

__all__ = ["Parts", "SharedCollecting", "SharedFiles", "ids_of", "part_finder"]
