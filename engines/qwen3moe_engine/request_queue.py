"""Requests in the order in which they are served.

Owns: that order, higher priority first, then arrival. Must not know what the requests wait for.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator

from qwen3moe_engine.request import Request


def service_order(request: Request) -> tuple[int, int]:
    """Ids count up as requests arrive."""
    return -request.priority, request.request_id


class RequestQueue:
    """A sorted list: moving a few thousand pointers is cheaper than a heap that can forget none but its first."""

    def __init__(self) -> None:
        self._requests: list[Request] = []

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[Request]:
        """In order; those behind the one at hand may be removed meanwhile."""
        return iter(self._requests)

    def __contains__(self, request: Request) -> bool:
        index = self._index(request)
        return index < len(self._requests) and self._requests[index] is request

    @property
    def first(self) -> Request:
        return self._requests[0]

    @property
    def last(self) -> Request:
        return self._requests[-1]

    def add(self, request: Request) -> None:
        """A request that comes back is again where its arrival puts it."""
        insort(self._requests, request, key=service_order)

    def remove(self, request: Request) -> None:
        assert request in self, request
        del self._requests[self._index(request)]

    def _index(self, request: Request) -> int:
        return bisect_left(self._requests, service_order(request), key=service_order)
