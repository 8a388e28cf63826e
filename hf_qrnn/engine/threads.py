"""Runs a function over batches in threads; C++ computes in them at the same time."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

Check = Callable[[], None]
"""Raises `StoppedError` where nobody wants the result any more."""
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class StoppedError(Exception):
    """An error or Ctrl-C has ended the work elsewhere."""


def num_cores() -> int:
    """Count the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_all(
    function: Callable[[_Item, Check], _Result], items: Sequence[_Item], num_threads: int
) -> Iterator[tuple[int, _Result]]:
    """Yield the place of every item with its result, as they are done.

    Args:
        function: Called from several threads at once, with an item and a function that it calls
            now and then, lest an error or Ctrl-C waits until all of an item is done.
        items: Those that take longest are the last.
        num_threads: The most threads; 1 is none but the caller's.
    """
    if num_threads == 1 or len(items) < 2:
        for place, item in enumerate(items):
            yield place, function(item, lambda: None)
        return
    stopped = threading.Event()

    def check() -> None:
        if stopped.is_set():
            raise StoppedError

    pool = ThreadPoolExecutor(min(num_threads, len(items)))
    try:
        # The longest first, so that no thread has one left when the others are done.
        places = {pool.submit(function, items[at], check): at for at in reversed(range(len(items)))}
        for done in as_completed(places):
            yield places[done], done.result()
    finally:
        # After an error nobody wants the rest.
        stopped.set()
        pool.shutdown(cancel_futures=True)
