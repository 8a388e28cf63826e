"""The engine's C++ on processors that this machine has not: the same numbers as NumPy's.

"generic" is compiled for this machine without any instruction that has a name in the sources.
"aarch64" is compiled by a cross compiler and run by an emulator, where both are on the PATH (of
Debian the packages g++-aarch64-linux-gnu and qemu-user-static).
"""

import platform
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
import torch
from engine_models import network_of, random_sources, save, saved
from sources import ROOT

from hf_qrnn.engine import native
from hf_qrnn.engine.decoder import NumpyDecoder
from hf_qrnn.engine.generation import GenerationSettings
from hf_qrnn.engine.int8 import Int8Matrix
from hf_qrnn.engine.network import Network
from hf_qrnn.engine.quantize import quantize
from hf_qrnn.engine.search import search
from hf_qrnn.kernels import build

DRIVER = ROOT / "tests/support/engine_driver.cpp"
# Of each network: sources, rows of each and steps.
NUM_SOURCES, ROWS_EACH, NUM_STEPS, WIDTH = 4, 2, 3, 12
START, END = 3, 1


class Program(NamedTuple):
    """The driver, and what runs it."""

    command: Sequence[str]


def compiled(folder: Path, machine: str, flags: Sequence[str] = ()) -> Path:
    """Build the library as users of a machine do, and the driver with it."""
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(platform, "machine", lambda: machine)
        patch.setattr(build, "_ENGINE_CXX", (*build._ENGINE_CXX, *flags))
        library = build.build_engine(folder)
    driver = folder / "driver"
    options = ("-std=c++17", "-O1", "-static-libstdc++", "-static-libgcc")
    build._run([build._find_cxx(), *options, str(DRIVER), str(library), "-o", str(driver)])
    return driver


@pytest.fixture(scope="module", params=["generic", "aarch64"])
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Program:
    folder = tmp_path_factory.mktemp(request.param) / "built"
    if request.param == "generic":
        return Program([str(compiled(folder, "generic", ("-U__SSE2__",)))])
    compiler = shutil.which("aarch64-linux-gnu-g++")
    emulator = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
    if compiler is None or emulator is None:
        pytest.skip("there are no aarch64-linux-gnu-g++ and qemu-aarch64")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CXX", compiler)
        driver = compiled(folder, "aarch64")
    asked = [compiler, "-print-file-name=libc.so.6"]
    found = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    return Program([emulator, "-L", str(Path(found).resolve().parents[1]), str(driver)])


def recording(network: Network, halves: bool, sources: list[list[int]], tokens: object) -> bytes:
    """Write what the driver reads; see its head."""
    fields, weights = native._described(network, halves)
    scale = np.array([network.settings.score_scale]).view(np.int64)
    words: list[object] = [0, network.settings.vocab_size, *scale, len(fields), *fields]
    words.append(len(weights))
    for weight in weights:
        content = b"" if weight is None else native._readable(weight).tobytes()
        content += bytes(-len(content) % 8)
        words += [len(content) // 8, *np.frombuffer(content, np.int64)]
    ids = [token for source in sources for token in source]
    words += [len(sources), *map(len, sources), len(ids), *ids, ROWS_EACH, NUM_STEPS]
    words += list(np.ravel(tokens))  # type: ignore[call-overload]
    words += [START, END, *[WIDTH] * len(sources), WIDTH]
    return np.array(words, np.int64).tobytes()


@pytest.mark.parametrize("weights", ["floats", "halves", "int8"])
def test_engine_computes_what_numpy_does(weights: str, program: Program, tmp_path: Path) -> None:
    for seed in range(6):
        folder = tmp_path / f"{seed}"
        model = saved(folder, seed)
        if weights == "halves":
            save(model.to(torch.bfloat16), folder)
        if weights == "int8":
            quantize(folder, tmp_path / f"{seed}-int8")
            folder = tmp_path / f"{seed}-int8"
        network, sources = network_of(folder), random_sources(seed, num=NUM_SOURCES)
        draw = np.random.default_rng(seed)
        rows = NUM_SOURCES * ROWS_EACH
        tokens = draw.integers(1, 30, (NUM_STEPS, rows))
        inside = draw.integers(0, ROWS_EACH, (NUM_STEPS, NUM_SOURCES, ROWS_EACH))
        kept = (inside + np.arange(NUM_SOURCES)[:, None] * ROWS_EACH).reshape(NUM_STEPS, rows)
        given, written = tmp_path / "recording", tmp_path / "written"
        steps = np.stack([tokens, kept], axis=1)
        given.write_bytes(recording(network, weights == "halves", sources, steps))
        subprocess.run([*program.command, str(given), str(written)], check=True)
        check(written.read_bytes(), network, sources, tokens, kept)


def check(
    content: bytes,
    network: Network,
    sources: list[list[int]],
    tokens: npt.NDArray[np.int64],
    kept: npt.NDArray[np.int64],
) -> None:
    """Compare what the driver wrote with the definition."""
    vocab = network.settings.vocab_size
    rows = tokens.shape[1]
    assert np.frombuffer(content[:8], np.int64).tolist() == [1]  # the baseline is all there is
    size = NUM_STEPS * rows * vocab
    logits = np.frombuffer(content, np.float32, size, 8).reshape(NUM_STEPS, rows, vocab)
    reference = NumpyDecoder(network, sources, ROWS_EACH)
    # A float32 that is rounded otherwise can become another integer.
    most = 1e-3 if isinstance(network.output, Int8Matrix) else 1e-4
    for step, found in enumerate(logits):
        np.testing.assert_allclose(found, reference.step(tokens[step]), atol=most, rtol=most)
        reference.select(kept[step])
    place = 8 + 4 * size
    ids = np.frombuffer(content, np.int64, NUM_SOURCES * WIDTH, place).reshape(NUM_SOURCES, -1)
    place += ids.nbytes
    lengths = np.frombuffer(content, np.int64, NUM_SOURCES, place)
    scores = np.frombuffer(content, np.float64, NUM_SOURCES, place + lengths.nbytes)
    assert place + lengths.nbytes + scores.nbytes == len(content)
    settings = GenerationSettings(start=START, ends=(END,))
    expected = search(NumpyDecoder(network, sources, 1), settings, [WIDTH] * NUM_SOURCES, 1, 1)
    for (best,), row, length, score in zip(expected, ids, lengths, scores, strict=True):
        assert [token for token in row[:length] if token != END] == best.ids
        assert score == pytest.approx(best.score, abs=1e-3)
