"""Threads over batches: the same bits whatever their number, and nothing lost by an error."""

import threading
import time
from pathlib import Path

import pytest
from engine_models import random_sources, saved

from hf_qrnn.engine import Translator
from hf_qrnn.engine.threads import num_cores, run_all

pytestmark = pytest.mark.usefixtures("engine_library")


@pytest.mark.parametrize("backend", ["native", "numpy"])
@pytest.mark.parametrize("options", [{}, {"num_beams": 3, "num_return_sequences": 2}], ids=str)
def test_results_do_not_depend_on_the_number_of_threads(
    options: dict[str, int], backend: str, tmp_path: Path
) -> None:
    saved(tmp_path, 7)
    translator, sources = Translator(tmp_path, backend=backend), random_sources(0, num=41)
    callers: list[threading.Thread] = []
    counted: list[int] = []

    def on_batch(num: int) -> None:
        callers.append(threading.current_thread())
        counted.append(num)

    expected = translator.generate(sources, batch_size=4, num_threads=1, **options)
    for num_threads in (2, 5, None):
        found = translator.generate(
            sources, batch_size=4, num_threads=num_threads, on_batch=on_batch, **options
        )
        assert found == expected
    assert set(callers) == {threading.current_thread()}
    assert sum(counted) == 3 * 41


def test_items_are_computed_at_the_same_time() -> None:
    barrier = threading.Barrier(3)
    done = dict(run_all(lambda item: (barrier.wait(10), item)[1], [3, 4, 5], 3))
    assert done == {0: 3, 1: 4, 2: 5}


def test_one_thread_is_the_callers() -> None:
    found = list(run_all(lambda _: threading.current_thread(), [1, 2], 1))
    found += list(run_all(lambda _: threading.current_thread(), [1], 8))
    assert {thread for _, thread in found} == {threading.current_thread()}


def test_error_of_one_item_ends_all() -> None:
    started: list[int] = []

    def work(item: int) -> None:
        started.append(item)
        if item == 99:
            raise ValueError("no")
        time.sleep(0.01)

    with pytest.raises(ValueError, match="no"):
        list(run_all(work, list(range(100)), 2))
    assert len(started) < 50


def test_number_is_checked_and_that_of_cores_is_the_default(tmp_path: Path) -> None:
    saved(tmp_path, 0)
    with pytest.raises(ValueError, match=r"`num_threads` must be at least 1, but is 0\."):
        Translator(tmp_path).translate(["a"], num_threads=0)
    assert num_cores() >= 1
