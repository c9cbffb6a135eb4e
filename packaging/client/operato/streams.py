"""What is read piece by piece: an iterator for loops in a thread, and one for loops in an event loop."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Generic, TypeVar

from operato.connection import drive

T = TypeVar("T")


class AsyncStream(Generic[T]):
    """Items for `async for`. Leave it early within `async with`, which closes its connection."""

    def __init__(self, take: Callable[[], Awaitable[T | None]], close: Callable[[], Awaitable[None]]) -> None:
        self._take = take
        self._close = close

    def __aiter__(self) -> AsyncStream[T]:
        return self

    async def __anext__(self) -> T:
        found = await self._take()
        if found is None:
            raise StopAsyncIteration
        return found

    async def close(self) -> None:
        """Close the connection."""
        await self._close()

    async def __aenter__(self) -> AsyncStream[T]:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class Stream(Generic[T]):
    """Items for `for`. Leave it early within `with`, which closes its connection."""

    def __init__(self, inner: AsyncStream[T]) -> None:
        self._inner = inner

    def __iter__(self) -> Stream[T]:
        return self

    def __next__(self) -> T:
        try:
            return drive(self._inner.__anext__())
        except StopAsyncIteration:
            raise StopIteration from None

    def close(self) -> None:
        """Close the connection."""
        drive(self._inner.close())

    def __enter__(self) -> Stream[T]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
