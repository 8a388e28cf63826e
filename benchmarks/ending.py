"""The end of a benchmark's process: its status, also where whoever reads its tables goes away."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import NoReturn

READER_LEFT = 141
"""Status where standard output was closed, as by `| head`: the shell's own, 128 and SIGPIPE."""


def end_process(main: Callable[[], int]) -> NoReturn:
    """End the process with the status of `main`; a reader that left early is no mistake."""
    try:
        status = main()
        # Here, where it can still be caught: Python's last flush would print a traceback.
        sys.stdout.flush()
    except BrokenPipeError:
        # What is left in the buffer goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = READER_LEFT
    sys.exit(status)
