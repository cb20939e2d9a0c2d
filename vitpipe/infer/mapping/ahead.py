"""One step ahead: an iterator whose next item is made in a thread while the last one is used."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

Item = TypeVar("Item")


class _End:
    """Stands behind the last item."""


_END: Final = _End()


def one_ahead(items: Iterator[Item]) -> Iterator[Item]:
    """Give the items of an iterator; one of them waits at most.

    An error of the iterator is raised where its item would have come. All items are made by one thread.
    """
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, items, _END)
        while not isinstance(item := coming.result(), _End):
            coming = pool.submit(next, items, _END)
            yield item
