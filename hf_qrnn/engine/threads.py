"""Runs a function over batches in threads; C++ computes in them at the same time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def num_cores() -> int:
    """Count the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_all(
    function: Callable[[_Item], _Result], items: Sequence[_Item], num_threads: int
) -> Iterator[tuple[int, _Result]]:
    """Yield the place of every item with its result, as they are done.

    Args:
        function: Called from several threads at once.
        items: What it is called with; those that take longest are the last.
        num_threads: The most threads; 1 is none but the caller's.
    """
    if num_threads == 1 or len(items) < 2:
        for place, item in enumerate(items):
            yield place, function(item)
        return
    pool = ThreadPoolExecutor(min(num_threads, len(items)))
    try:
        # The longest first, so that no thread has one left when the others are done.
        places = {pool.submit(function, items[at]): at for at in reversed(range(len(items)))}
        for done in as_completed(places):
            yield places[done], done.result()
    finally:
        # After an error nobody wants the rest.
        pool.shutdown(cancel_futures=True)
