"""Runs a function over batches in threads; C++ computes in them at the same time."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

import numpy as np

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class StoppedError(Exception):
    """An error or Ctrl-C has ended the work elsewhere."""


class Stop:
    """Tells threads that nobody wants their results any more.

    Attributes:
        flag: One number, 1 once they are to end; C++ reads it where it is.
    """

    def __init__(self) -> None:
        self.flag = np.zeros(1, np.int32)

    def set(self) -> None:
        """Let every thread end."""
        self.flag[0] = 1

    def check(self) -> None:
        """Raise StoppedError where the work is to end."""
        if self.flag[0]:
            raise StoppedError


def num_cores() -> int:
    """Count the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_all(
    function: Callable[[_Item, Stop], _Result],
    items: Sequence[_Item],
    num_threads: int,
    *,
    is_long: bool = False,
) -> Iterator[tuple[int, _Result]]:
    """Yield the place of every item with its result, as they are done.

    Args:
        function: Called from several threads at once, with an item and what tells it to end.
        items: Those that take longest are the last.
        num_threads: The most threads; 1 is none but the caller's.
        is_long: An item may take seconds in C++, where no thread hears Ctrl-C. So the main thread,
            which Python interrupts, waits for another one.
    """
    stop, is_main = Stop(), threading.current_thread() is threading.main_thread()
    if not items or ((num_threads == 1 or len(items) < 2) and not (is_long and is_main)):
        for place, item in enumerate(items):
            yield place, function(item, stop)
        return
    pool = ThreadPoolExecutor(min(num_threads, len(items)))
    try:
        # The longest first, so that no thread has one left when the others are done.
        places = {pool.submit(function, items[at], stop): at for at in reversed(range(len(items)))}
        for done in as_completed(places):
            yield places[done], done.result()
    finally:
        # After an error nobody wants the rest.
        stop.set()
        pool.shutdown(cancel_futures=True)
