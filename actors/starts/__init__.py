"""What happens without a caller: notices about ended executions are sent, and repeated until they arrive.

`Notices` is the actor that sends them, `Outbox` lists and changes them. What a `Post` carries over the network is the
matter of its owner.
"""

from actors.starts.notices import MAX_AT_ONCE, MAX_FOR_ONE, Notices, Post, PostError, delay_after, signature
from actors.starts.outbox import Notice, NoticePage, NoticeQuery, Outbox

__all__ = [
    "MAX_AT_ONCE",
    "MAX_FOR_ONE",
    "Notice",
    "NoticePage",
    "NoticeQuery",
    "Notices",
    "Outbox",
    "Post",
    "PostError",
    "delay_after",
    "signature",
]
