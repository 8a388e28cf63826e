"""The shared parts of the tests of the benchmarks."""

from types import ModuleType

import pytest


def make_brief(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies of a megabyte, and as many rounds as it takes to see that there are rounds."""
    if hasattr(module, "stream_copy"):
        copy = module.stream_copy
        monkeypatch.setattr(module, "stream_copy", lambda device, *_: copy(device, 1 << 20))
    interleave = module.interleave
    monkeypatch.setattr(
        module, "interleave", lambda calls, **_: interleave(calls, seconds=0.0, min_rounds=2)
    )
