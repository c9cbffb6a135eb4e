"""The journal: an execution is recorded here before its end is answered, in space that was reserved before it began.

`Journal` has the files; `Entry` is one state of one execution. `records` is the format, `files` the space.
"""

from actors.journal.files import Journal, Mark, OpenSegment, write_segment
from actors.journal.records import Entry, Segment, cleaned

__all__ = ["Entry", "Journal", "Mark", "OpenSegment", "Segment", "cleaned", "write_segment"]
