"""Measures the time of training, without validations, saves and pauses of the process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

TICK = 0.1
"""Seconds between two looks at the clock."""
LIMIT = 1.0
"""Seconds between two looks that only a process which stood still can have let pass."""


class Stopwatch:
    """A counter of the seconds of training, which stands while it is held or the process stopped.

    A process that is stopped (SIGSTOP, Ctrl-Z, a frozen container) finds only a later time when it
    goes on. So a thread looks at the clock every `TICK` seconds, also while the main thread waits
    for a GPU, the data or another process. Looks more than `LIMIT` apart mean that nothing ran
    between them. `time.monotonic` itself leaves out the sleep of the whole machine.

    Args:
        now: The clock, in seconds.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now, self._seen = now, now()
        self._seconds, self._is_held = 0.0, False
        self._lock, self._ended = threading.Lock(), threading.Event()
        # A daemon: it must never keep a process alive that wants to end.
        self._thread = threading.Thread(target=self._tick, name="stopwatch", daemon=True)

    def __enter__(self) -> Stopwatch:
        self._seen = self._now()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def look(self) -> None:
        """Count the time since the last look, unless the process stood still in it."""
        # The main thread looks too, and both add to the same sum.
        with self._lock:
            now = self._now()
            passed, self._seen = now - self._seen, now
            if not self._is_held and passed <= LIMIT:
                self._seconds += passed

    def take(self) -> float:
        """Return the seconds counted since they were last taken."""
        self.look()
        with self._lock:
            seconds, self._seconds = self._seconds, 0.0
        return seconds

    @contextmanager
    def held(self) -> Iterator[None]:
        """Count nothing inside: a validation, a checkpoint."""
        self.look()  # what was before belongs to training
        self._is_held = True
        try:
            yield
        finally:
            # Still held, so that this look leaves out all that was inside.
            self.look()
            self._is_held = False

    def _tick(self) -> None:
        # Unlike a sleep, the wait ends at once when training does.
        while not self._ended.wait(TICK):
            self.look()
