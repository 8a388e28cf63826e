"""The ground of every test: one thread, no network, fixed seeds, no bars."""

import os

# Before anything imports transformers or datasets, which read these once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from backend_runs import backend  # noqa: F401  (a fixture)
from hub_fixtures import hub, waits  # noqa: F401  (fixtures)
from hypothesis import settings

if TYPE_CHECKING:
    from cuda_emulation import Emulated

torch.set_num_threads(1)

settings.register_profile("default", deadline=None, max_examples=50)
settings.register_profile("ci", deadline=None, max_examples=50, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests that take minutes")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--slow"):
        return
    skip = pytest.mark.skip(reason="takes minutes; run with --slow")
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(scope="session", autouse=True)
def _no_progress_bars() -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()


@pytest.fixture(scope="session")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> "Emulated":
    """The CUDA kernels on the CPU: one library a run, whatever the number of processes."""
    from cuda_emulation import Emulated, compile_emulated

    folder = tmp_path_factory.getbasetemp()
    # The folder that all processes of pytest-xdist share.
    return Emulated(
        compile_emulated(folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder)
    )


@pytest.fixture(scope="session")
def engine_library() -> Path:
    """The engine's library, built in seconds where it is not there."""
    from hf_qrnn.kernels.build import build_engine

    return build_engine()


@pytest.fixture(autouse=True)
def _environment() -> Iterator[None]:
    """Trainer leaves variables of Accelerate behind, which processes of later tests would read."""
    before = dict(os.environ)
    yield
    for name in set(os.environ) - set(before):
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def transformers_log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """Collect transformers' log, which it keeps from other handlers unless asked."""
    from transformers.utils import logging

    logging.enable_propagation()
    yield caplog
    logging.disable_propagation()


@pytest.fixture(scope="module")
def nan_memory() -> Iterator[None]:
    """`torch.empty` is full of NaN: a result that is not wholly written shows."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all(), "fill_uninitialized_memory is off"
    yield
    torch.use_deterministic_algorithms(before)
