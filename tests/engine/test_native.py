"""The engine in C++: equal to NumPy's on every instruction set, and there or said not to be."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_models import network_of, random_config, random_model, random_sources, save, saved
from sources import PACKAGE

from hf_qrnn.engine import Translator, native
from hf_qrnn.engine.decoder import NumpyDecoder
from hf_qrnn.engine.native import NativeDecoder, NativeNetwork, instruction_sets
from hf_qrnn.engine.weights import Weights
from hf_qrnn.kernels import build

WITHOUT_TORCH = f"""
import sys, types
sys.modules.update(torch=None, transformers=None)
package = types.ModuleType("hf_qrnn")
package.__path__ = [{str(PACKAGE)!r}]
sys.modules["hf_qrnn"] = package
"""
pytestmark = pytest.mark.usefixtures("engine_library")


@pytest.mark.parametrize("seed", range(16))
def test_steps_equal_those_of_numpy(seed: int, tmp_path: Path) -> None:
    saved(tmp_path, seed)
    network, sources = network_of(tmp_path), random_sources(seed, num=5)
    draw = np.random.default_rng(seed)
    # One to eight rows in a product: whole blocks of six and every rest.
    rows_each = 1 + seed % 4
    tokens = draw.integers(1, 30, (4, len(sources) * rows_each))
    kept = np.array([3, 0])
    rows = draw.integers(0, rows_each, (2, rows_each)) + kept[:, None] * rows_each
    for name in instruction_sets():
        reference = NumpyDecoder(network, sources, rows_each)
        decoder = NativeDecoder(NativeNetwork(network, name), sources, rows_each)
        for step in tokens:
            np.testing.assert_allclose(decoder.step(step), reference.step(step), atol=1e-4)
        for one in (reference, decoder):
            one.select(rows.reshape(-1), kept)
        last = tokens[0, : rows.size]
        np.testing.assert_allclose(decoder.step(last), reference.step(last), atol=1e-4)


@pytest.mark.parametrize("hidden_size", [1, 15, 16, 17, 63, 64, 65, 130])
def test_sizes_around_those_of_vectors_and_panels(hidden_size: int, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"num_attention_heads": 1, "encoder_bidirectional": False}
    sizes = {"hidden_size": hidden_size, "embedding_size": 5, "tie_word_embeddings": True}
    for attention_layers in ("last", "all"):
        folder = tmp_path / attention_layers
        saved(folder, 0, **changes, **sizes, attention_layers=attention_layers)
        network, sources = network_of(folder), random_sources(0, num=2, longest=40)
        reference = NumpyDecoder(network, sources, 1)
        expected = [reference.step(np.array([5, 6])), reference.step(np.array([7, 1]))]
        for name in instruction_sets():
            decoder = NativeDecoder(NativeNetwork(network, name), sources, 1)
            for tokens, logits in zip(([5, 6], [7, 1]), expected, strict=True):
                np.testing.assert_allclose(decoder.step(np.array(tokens)), logits, atol=1e-4)


def test_weights_of_bfloat16_stay_in_it_and_lose_nothing(tmp_path: Path) -> None:
    for seed in range(4):
        folder = tmp_path / str(seed)
        save(random_model(random_config(seed), seed).to(torch.bfloat16), folder)
        assert Weights(folder).are_halves
        network, sources = network_of(folder), random_sources(seed, num=3)
        for name in instruction_sets():
            wide = NativeDecoder(NativeNetwork(network, name), sources, 3)
            half = NativeDecoder(NativeNetwork(network, name, halves=True), sources, 3)
            for tokens in np.random.default_rng(seed).integers(1, 30, (3, 9)):
                # The same numbers in the same order.
                np.testing.assert_array_equal(half.step(tokens), wide.step(tokens))


def test_bfloat16_is_rounded_to_the_nearest(tmp_path: Path) -> None:
    model = saved(tmp_path, 0)
    assert not Weights(tmp_path).are_halves
    network, sources = network_of(tmp_path), random_sources(0, num=2)
    found = NativeDecoder(NativeNetwork(network, halves=True), sources, 1).step(np.array([5, 6]))
    # Matrices alone are rounded: embeddings, norms and biases are not.
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2 and not name.startswith(("model.shared", "lm_head")):
                weight.copy_(weight.bfloat16().float())
    save(model, tmp_path / "rounded")
    rounded = network_of(tmp_path / "rounded")
    output = torch.from_numpy(rounded.output.copy()).bfloat16().float().numpy()
    expected = NumpyDecoder(rounded._replace(output=output), sources, 1).step(np.array([5, 6]))
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("num_sources", [1, 6, 13])
def test_greedy_search_in_one_call_is_that_of_steps(num_sources: int, tmp_path: Path) -> None:
    saved(tmp_path, 3)
    network = NativeNetwork(network_of(tmp_path))
    sources = random_sources(3, num=num_sources)
    limits = [2 + 3 * index for index in range(num_sources)]
    found = NativeDecoder(network, sources, 1).greedy(3, [1], limits)
    assert found is not None
    ids, lengths, _ = found
    for row, (source, limit) in enumerate(zip(sources, limits, strict=True)):
        decoder = NativeDecoder(network, [source], 1)
        tokens = [3]
        while tokens[-1] != 1 and len(tokens) <= limit:
            tokens.append(int(decoder.step(np.array(tokens[-1:])).argmax()))
        assert ids[row, : lengths[row]].tolist() == tokens[1:]


def test_rows_and_ids_that_are_not_there_do_not_reach_c(tmp_path: Path) -> None:
    saved(tmp_path, 0)
    network = NativeNetwork(network_of(tmp_path))
    decoder = NativeDecoder(network, [[5, 1], [6, 1]], 2)
    for rows, sources in (
        ([0, 1, 2, 4], None),
        ([0, 1, 2, -1], None),
        ([0, 1, 2], None),
        ([0, 1], [2]),
        ([0, 1, 2, 3], [0, 0]),
    ):
        with pytest.raises(AssertionError):
            decoder.select(np.array(rows), None if sources is None else np.array(sources))
    for tokens in ([1, 2, 3], [1, 2, 3, 99], [1, 2, 3, -1]):
        with pytest.raises(AssertionError):
            decoder.step(np.array(tokens))
    for source in ([99, 1], [-1], []):
        with pytest.raises((AssertionError, ValueError)):
            NativeDecoder(network, [source], 1)


def test_nan_is_said(tmp_path: Path) -> None:
    saved(tmp_path, 0)
    network = network_of(tmp_path)
    broken = network._replace(output_bias=np.full_like(network.output_bias, np.nan))
    for name in instruction_sets():
        decoder = NativeDecoder(NativeNetwork(broken, name), [[5, 1]], 1)
        assert decoder.greedy(3, [1], [4]) is None


def test_extreme_numbers_are_as_in_numpy(tmp_path: Path) -> None:
    # Saturated gates, scores far apart, a step whose exponentials are 0.
    saved(tmp_path, 0, pooling="ifo", num_attention_heads=1, attention_layers="last")
    network = network_of(tmp_path)
    wide = network._replace(embedding=network.embedding * 300)
    reference = NumpyDecoder(wide, [[5, 9, 1]], 1).step(np.array([4]))
    assert np.isfinite(reference).all()
    for name in instruction_sets():
        found = NativeDecoder(NativeNetwork(wide, name), [[5, 9, 1]], 1).step(np.array([4]))
        np.testing.assert_allclose(found, reference, rtol=1e-4, atol=1e-3)


def test_library_needs_neither_torch_nor_python(engine_library: Path) -> None:
    done = subprocess.run(
        ["nm", "-D", "--undefined-only", str(engine_library)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "memcpy" in done.stdout
    for word in ("torch", "Py", "c10", "_ZSt"):
        assert word not in done.stdout


def test_without_a_library_numpy_computes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path, 0)
    monkeypatch.setattr(native, "engine_path", lambda: tmp_path / "nowhere.so")
    native.library.cache_clear()
    try:
        translator = Translator(tmp_path)
        assert translator.backend == "numpy"
        assert translator.reason is not None
        assert translator.reason.endswith("run `python -m hf_qrnn.kernels.build`")
        with pytest.raises(ValueError, match="but is 'native': the engine's library is not built"):
            Translator(tmp_path, backend="native")
    finally:
        native.library.cache_clear()
    with pytest.raises(ValueError, match="`backend` must be one of 'auto', 'native', 'numpy'"):
        Translator(tmp_path, backend="cuda")


def test_library_is_built_once_and_anew_where_its_sources_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "cache"))
    sources = tmp_path / "engine"
    sources.mkdir()
    (sources / "interface.cpp").write_text('extern "C" int qrnn_number() { return 1; }\n')
    monkeypatch.setattr(build, "ENGINE_SOURCES", sources)
    first = build.build_engine()
    written = first.stat().st_mtime_ns
    assert build.build_engine() == first
    assert first.stat().st_mtime_ns == written
    (sources / "interface.cpp").write_text('extern "C" int qrnn_number() { return 2; }\n')
    assert build.build_engine() != first
    (sources / "interface.cpp").write_text("no C++\n")
    with pytest.raises(build.BuildError, match="does not name a type"):
        build.build_engine()
    assert list(build.engine_path().parent.glob("*.so")) == []
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(build.BuildError, match="there is no C\\+\\+ compiler"):
        build.build_engine()


def test_weights_are_not_in_memory_twice(tmp_path: Path) -> None:
    sizes = {"encoder_layers": 4, "decoder_layers": 4, "hidden_size": 240}
    kernel_sizes = {"encoder_kernel_sizes": 2, "decoder_kernel_sizes": 2}
    saved(tmp_path, 0, **sizes, **kernel_sizes)
    program = (
        "import sys; from hf_qrnn.engine.native import NativeNetwork;"
        "from hf_qrnn.engine.network import read_network;"
        "from hf_qrnn.engine.settings import read_settings;"
        "from hf_qrnn.engine.weights import Weights; from pathlib import Path;"
        "folder = Path(sys.argv[1]); weights = Weights(folder);"
        "network = read_network(read_settings(folder)[0], weights);"
        "peak = lambda: int(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0]);"
        "before = peak();"
        "taken = weights.release if sys.argv[2] == 'released' else (lambda: None);"
        "NativeNetwork(network, taken=taken);"
        "print(peak() - before)"
    )
    peaks = []
    for kind in ("released", "kept"):
        command = [sys.executable, "-c", f"{WITHOUT_TORCH}\n{program}", str(tmp_path), kind]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout) * 1024)
    size = (tmp_path / "model.safetensors").stat().st_size
    # Packed and, for a moment, one weight of the file; else the whole file beside it.
    assert peaks[0] < 1.5 * size
    assert peaks[1] > 1.8 * size


def test_memory_of_many_decoders_is_given_back(tmp_path: Path) -> None:
    saved(tmp_path, 0, hidden_size=64, num_attention_heads=1)
    network = NativeNetwork(network_of(tmp_path))
    sources = [[5] * 400 + [1]] * 8
    for _ in range(5):
        NativeDecoder(network, sources, 8)
    before = kilobytes_in_use()
    for _ in range(40):
        NativeDecoder(network, sources, 8)
    # Each holds about 2 MB.
    assert kilobytes_in_use() - before < 20_000


def kilobytes_in_use() -> int:
    return int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0])
