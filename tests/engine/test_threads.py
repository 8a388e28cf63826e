"""Threads over batches: the same bits whatever their number, and nothing lost by an error."""

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from engine_models import network_of, random_sources, saved

from hf_qrnn.engine import Translator
from hf_qrnn.engine.native import NativeDecoder, NativeNetwork
from hf_qrnn.engine.threads import Stop, StoppedError, num_cores, run_all

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
    done = dict(run_all(lambda item, _: (barrier.wait(10), item)[1], [3, 4, 5], 3))
    assert done == {0: 3, 1: 4, 2: 5}


def test_one_thread_is_the_callers() -> None:
    found = list(run_all(lambda *_: threading.current_thread(), [1, 2], 1))
    found += list(run_all(lambda *_: threading.current_thread(), [1], 8))
    assert {thread for _, thread in found} == {threading.current_thread()}


def test_error_of_one_item_ends_all() -> None:
    started: list[int] = []

    def work(item: int, stop: Stop) -> None:
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


def test_error_ends_what_others_are_in_the_midst_of() -> None:
    is_begun, ends = threading.Event(), []

    def work(item: int, stop: Stop) -> None:
        if item == 1:
            assert is_begun.wait(10)
            raise ValueError("no")
        is_begun.set()
        try:
            for _ in range(1000):
                stop.check()
                time.sleep(0.01)
        except StoppedError:
            ends.append(item)
            raise

    with pytest.raises(ValueError, match="no"):
        list(run_all(work, [0, 1], 2))
    assert ends == [0]


def test_a_long_item_leaves_the_main_thread_free() -> None:
    main = threading.main_thread()
    ((_, found),) = run_all(lambda *_: threading.current_thread(), [1], 1, is_long=True)
    assert found is not main
    # Nobody but the main thread hears Ctrl-C.
    others: list[threading.Thread] = []
    items = run_all(lambda *_: threading.current_thread(), [1], 1, is_long=True)
    other = threading.Thread(target=lambda: others.extend(thread for _, thread in items))
    other.start()
    other.join()
    assert others == [other]


def test_encoder_ends_where_it_is(tmp_path: Path) -> None:
    saved(tmp_path, 7)
    network, stop = NativeNetwork(network_of(tmp_path)), Stop()
    NativeDecoder(network, [[5, 1]], 1, stop)
    stop.set()
    with pytest.raises(StoppedError):
        NativeDecoder(network, [[5, 1]], 1, stop)
    # Whole minutes of work.
    began = time.monotonic()
    with pytest.raises(StoppedError):
        NativeDecoder(network, [[5] * 3_000_000], 1, stop)
    assert time.monotonic() - began < 5


# Long sources with targets that do not end: a minute of work and more, in whatever way.
ENDLESS = """
import signal, sys
from hf_qrnn.engine import Sampling, Translator
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have told us to ignore it
options = dict(eval(sys.argv[2]))
translator = Translator(sys.argv[1])
print("begun", flush=True)
try:
    translator.generate([[5, 6, 7, 8] * 2000 + [1]] * 64, max_new_tokens=10**9, **options)
except KeyboardInterrupt:
    print("stopped")
"""


@pytest.mark.parametrize(
    "options",
    ["[('num_threads', 1)]", "[('num_threads', 3)]", "[('num_threads', 3), ('num_beams', 2)]"],
)
def test_control_c_is_heard(options: str, tmp_path: Path) -> None:
    model = saved(tmp_path, 7)
    model.lm_head.bias.data[1] = -1e9
    model.save_pretrained(tmp_path)
    command = [sys.executable, "-c", ENDLESS, str(tmp_path), options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "begun\n"
            time.sleep(1)
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0
            assert process.stdout.read() == "stopped\n"
        finally:
            process.kill()


@pytest.mark.parametrize("backend", ["native", "numpy"])
def test_batches_of_long_sources_are_small(backend: str, tmp_path: Path) -> None:
    saved(tmp_path, 7)
    counted: list[int] = []
    translator = Translator(tmp_path, backend=backend)
    sources = [[5] * length + [1] for length in (9000, 9000, 3, 20000, 4)]
    options = {"max_new_tokens": 3, "num_threads": 1}
    found = translator.generate(sources, on_batch=counted.append, **options)
    assert sorted(counted) == [1, 1, 3]
    alone = [translator.generate([source], **options)[0] for source in sources]
    # A batch may round otherwise than one source alone.
    assert [some[0].ids for some in found] == [some[0].ids for some in alone]
