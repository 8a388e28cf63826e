"""What the benchmarks' tests share."""

from collections.abc import Iterator

import pytest
from accelerate.state import AcceleratorState


@pytest.fixture(autouse=True)
def own_processes() -> Iterator[None]:
    """Let a run choose its own precision, whatever ran in this process before."""
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)
