"""The engine's C++ under the address, undefined-behaviour and thread sanitizers."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from engine_models import saved
from sources import PACKAGE

from hf_qrnn.kernels import build

# Searches of every kind on every instruction set, by the sanitized library.
PROGRAM = """
import sys, types
from pathlib import Path
import numpy as np
sys.modules.update(torch=None, transformers=None)
package = types.ModuleType("hf_qrnn")
package.__path__ = [sys.argv[1]]
sys.modules["hf_qrnn"] = package
from hf_qrnn.engine import native
from hf_qrnn.engine.network import read_network
from hf_qrnn.engine.quantize import quantize
from hf_qrnn.engine.settings import read_settings
from hf_qrnn.engine.weights import Weights
native.engine_path = lambda: Path(sys.argv[2])
draw = np.random.default_rng(0)
sources = [[*draw.integers(4, 30, length).tolist(), 1] for length in (0, 3, 9, 100, 5)]
def networks():
    for name in native.instruction_sets():
        for halves in (False, True):
            yield native.NativeNetwork(network, name, halves=halves)
        yield native.NativeNetwork(int8, name)
for folder in map(Path, sys.argv[4:]):
    quantize(folder, f"{folder}-int8")
    network, int8 = (
        read_network(read_settings(path)[0], Weights(path))
        for path in (folder, Path(f"{folder}-int8"))
    )
    for packed in networks():
        for rows_each in (1, 2, 7):
            decoder = native.NativeDecoder(packed, sources, rows_each)
            for _ in range(2):
                decoder.step(draw.integers(1, 30, len(sources) * rows_each))
            decoder.select(draw.integers(0, 5 * rows_each, 2 * rows_each), np.array([3, 0]))
            decoder.step(draw.integers(1, 30, 2 * rows_each))
        native.NativeDecoder(packed, sources, 1).greedy(3, [1], [5, 3, 20, 7, 8])
        if sys.argv[3] == "broken":
            decoder = native.NativeDecoder(packed, sources, 1)
            ids, logits = np.full(5, 10**6), np.empty((5, network.settings.vocab_size), np.float32)
            decoder._call("step", ids.ctypes.data, logits.ctypes.data)
print("whole")
"""


# Threads that share a network, each with decoders of its own: as `num_threads` has them.
THREADS = (
    PROGRAM.split("for folder in")[0]
    + """
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
meet = Barrier(4)
def decode(seed, shared):
    draw = np.random.default_rng(seed)
    meet.wait()
    decoder = native.NativeDecoder(packed, sources, 2) if shared is None else shared
    for _ in range(3):
        decoder.step(draw.integers(1, 30, 10))
    decoder.select(np.arange(10))
    if shared is None:
        found = native.NativeDecoder(packed, sources, 1).greedy(3, [1], [5, 3, 20, 7, 8])
        return found[0].tolist(), found[2].tolist()
for folder in map(Path, sys.argv[4:]):
    quantize(folder, f"{folder}-int8")
    network, int8 = (
        read_network(read_settings(path)[0], Weights(path))
        for path in (folder, Path(f"{folder}-int8"))
    )
    for packed in networks():
        shared = None
        if sys.argv[3] == "broken":
            shared = native.NativeDecoder(packed, sources, 2)
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(decode, range(4), [shared] * 4))
        assert found[1:] == found[:-1]
print("whole")
"""
)


def sanitized(folder: Path, kinds: str, *libraries: str) -> tuple[Path, str]:
    """Build the library with sanitizers; it, and the libraries that must be loaded before it."""
    compiler = build._find_cxx()
    preload = []
    for name in libraries:
        asked = [compiler, f"-print-file-name={name}"]
        found = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
        if found == name:
            pytest.skip(f"there is no {name}")
        preload.append(found)
    flags = ("-O1", "-g", f"-fsanitize={kinds}", "-fno-sanitize-recover=all", "-w")
    library = folder / build.ENGINE_NAME
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "_ENGINE_CXX", (*build._ENGINE_CXX, *flags))
        patch.setattr(build, "_ENGINE_LINK", ("-shared", f"-fsanitize={kinds}"))
        build.build_engine(folder)
    return library, ":".join(preload)


@pytest.fixture(scope="module")
def for_bounds(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("bounds")
    return sanitized(folder, "address,undefined", "libasan.so", "libubsan.so")


@pytest.fixture(scope="module")
def for_threads(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    return sanitized(tmp_path_factory.mktemp("threads"), "thread", "libtsan.so")


def run(
    program: str, built: tuple[Path, str], state: str, folders: list[Path], **options: str
) -> subprocess.CompletedProcess[str]:
    """Save models in `folders`, and run a program with them and the sanitized library."""
    library, preload = built
    for seed, folder in enumerate(folders):
        saved(folder, seed)
    command = [sys.executable, "-c", program, str(PACKAGE), str(library), state]
    environment = {**os.environ, "LD_PRELOAD": preload, **options}
    return subprocess.run(
        [*command, *map(str, folders)], env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("state", ["whole", "broken"])
def test_nothing_is_read_or_written_out_of_bounds(
    state: str, for_bounds: tuple[Path, str], tmp_path: Path
) -> None:
    # "broken" shows that it would be seen: a token that is not in the vocabulary, past the checks.
    folders = [tmp_path / str(seed) for seed in (range(10) if state == "whole" else range(1))]
    # Python does not give back all of its own.
    done = run(PROGRAM, for_bounds, state, folders, ASAN_OPTIONS="detect_leaks=0")
    if state == "whole":
        assert done.stdout == "whole\n", done.stderr
        assert done.returncode == 0
    else:
        assert done.returncode != 0
        assert "AddressSanitizer" in done.stderr


@pytest.mark.parametrize("state", ["whole", "broken"])
def test_threads_share_nothing_that_one_of_them_writes(
    state: str, for_threads: tuple[Path, str], tmp_path: Path
) -> None:
    # "broken" shows that it would be seen: a decoder of all threads.
    folders = [tmp_path / str(seed) for seed in (range(4) if state == "whole" else range(1))]
    # Of what Python and NumPy do nothing is known: they were built without.
    options = "ignore_noninstrumented_modules=1 halt_on_error=1"
    done = run(THREADS, for_threads, state, folders, TSAN_OPTIONS=options, OPENBLAS_NUM_THREADS="1")
    if state == "whole":
        assert done.stdout == "whole\n", done.stderr
        assert done.returncode == 0
    else:
        assert done.returncode != 0
        assert "ThreadSanitizer: data race" in done.stderr
