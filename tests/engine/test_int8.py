"""Products of int8 are the same integers everywhere; models of int8 answer as those of floats."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from engine_models import floats_of_the_box, network_of, random_sources, saved
from sources import ROOT

from hf_qrnn.engine import Translator, native
from hf_qrnn.engine.decoder import NumpyDecoder
from hf_qrnn.engine.int8 import MOST_INNER, Int8Matrix, quantize_matrix, round_rows, times
from hf_qrnn.engine.native import NativeDecoder, NativeNetwork, instruction_sets, library
from hf_qrnn.engine.network import Network
from hf_qrnn.engine.quantize import quantize
from hf_qrnn.engine.weights import Weights
from hf_qrnn.kernels import build

pytestmark = pytest.mark.usefixtures("engine_library")
Floats = npt.NDArray[Any]


def native_product(instruction_set: int, x: Floats, matrix: Int8Matrix) -> Floats:
    """The product in C++."""
    (rows, inner), outer = x.shape, len(matrix.scales)
    y = np.full((rows, outer), np.nan, np.float32)
    library().qrnn_int8_product(
        instruction_set, x.ctypes.data, rows, inner, matrix.numbers.ctypes.data,
        matrix.scales.ctypes.data, outer, y.ctypes.data,
    )  # fmt: skip
    return y


def every_product(x: Floats, matrix: Int8Matrix) -> list[Floats]:
    """The product by NumPy and on every instruction set."""
    sets = range(len(instruction_sets()))
    return [times(x, matrix), *(native_product(index, x, matrix) for index in sets)]


# ------------------------------------------------------------------ products


@pytest.mark.parametrize(
    ("rows", "inner", "outer"),
    [
        (1, 1, 1), (2, 5, 17), (3, 64, 64), (4, 15, 16), (5, 31, 33), (6, 1025, 3), (7, 130, 65),
        (100, 33, 130), (1, 4096, 200), (3, MOST_INNER, 9),
    ],
)  # fmt: skip
def test_sums_are_the_same_exact_integers_everywhere(rows: int, inner: int, outer: int) -> None:
    draw = np.random.default_rng(inner)
    numbers = draw.integers(-127, 128, (rows, inner))
    numbers[:, 0] = 127  # so that a row's scale is 1
    numbers[-1] = 127  # as far from 0 as a sum gets
    weights = draw.integers(-127, 128, (outer, inner)).astype(np.int8)
    weights[0], weights[-1] = 127, -128
    expected = (numbers @ weights.astype(np.int64).T).astype(np.float32)
    matrix = Int8Matrix(weights, np.ones(outer, np.float32))
    for found in every_product(numbers.astype(np.float32), matrix):
        np.testing.assert_array_equal(found, expected)


def test_rows_are_rounded_alike_everywhere() -> None:
    draw = np.random.default_rng(0)
    for inner in (3, 16, 67, 300):
        x = (draw.standard_normal((40, inner)) * draw.exponential(1, (40, 1))).astype(np.float32)
        matrix = quantize_matrix(draw.standard_normal((19, inner)).astype(np.float32))
        first, *others = every_product(x, matrix)
        for other in others:
            np.testing.assert_array_equal(other, first)
        np.testing.assert_allclose(first, x @ matrix.dense().T, atol=0.02 * inner * np.abs(x).max())


def test_a_row_is_rounded_to_the_nearest_and_ties_to_even() -> None:
    x = np.array([[-127, -63.5, 0.5, 1.5, 2.5, 0.499, -126.5, 80.51, 3]], np.float32)
    expected = [-127, -64, 0, 2, 2, 0, -126, 81, 3]
    identity = Int8Matrix(np.eye(9, dtype=np.int8), np.ones(9, np.float32))
    for found in every_product(x, identity):
        assert found[0].tolist() == expected
    for found in every_product(x * 8, identity):
        assert found[0].tolist() == [8 * number for number in expected]


def test_rows_of_zeros_of_next_to_nothing_and_of_no_numbers() -> None:
    x = np.zeros((5, 20), np.float32)
    x[1, 3], x[2, 4], x[3, 5], x[4, 6] = 1e-38, np.nan, np.inf, -1e38
    matrix = Int8Matrix(np.full((3, 20), 2, np.int8), np.ones(3, np.float32))
    for found in every_product(x, matrix):
        assert found[:2].tolist() == [[0, 0, 0]] * 2
        # A number that is too large must be seen, not end as a translation.
        assert np.isnan(found[2:4]).all()
        np.testing.assert_allclose(found[4], -2e38, rtol=1e-5)


def test_a_matrix_is_wrong_by_half_a_step_at_most() -> None:
    weight = np.random.default_rng(0).standard_normal((7, 30)).astype(np.float32)
    weight[2], weight[3] = 0, 1e-44
    matrix = quantize_matrix(weight)
    assert matrix.numbers.dtype == np.int8
    assert np.abs(matrix.numbers[[0, 1, 4]]).max(axis=1).tolist() == [127, 127, 127]
    assert not matrix.numbers[[2, 3]].any()
    assert (np.abs(matrix.dense() - weight) <= 0.5001 * matrix.scales[:, None]).all()
    above, below = quantize_matrix(weight[:6]).split()
    np.testing.assert_array_equal(
        np.concatenate([above.dense(), below.dense()]), matrix.dense()[:6]
    )


def test_rounded_rows_of_any_rank_are_those_of_two() -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 5)).astype(np.float32)
    deep, flat = round_rows(x), round_rows(x.reshape(6, 5))
    np.testing.assert_array_equal(deep.numbers.reshape(6, 5), flat.numbers)
    np.testing.assert_array_equal(deep.scales.reshape(6, 1), flat.scales)


def test_processors_of_no_known_kind_compute_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As for ARM, say: by vectors alone, no instruction by name.
    monkeypatch.setattr(build, "_ENGINE_CXX", (*build._ENGINE_CXX, "-U__SSE2__", "-O0"))
    path = build.build_engine(tmp_path)
    monkeypatch.setattr(native, "engine_path", lambda: path)
    draw = np.random.default_rng(0)
    x = draw.standard_normal((8, 67)).astype(np.float32)
    matrix = quantize_matrix(draw.standard_normal((19, 67)).astype(np.float32))
    library.cache_clear()
    try:
        np.testing.assert_array_equal(native_product(0, x, matrix), times(x, matrix))
    finally:
        library.cache_clear()


# ------------------------------------------------------------------ models


def both(folder: Path, seed: int, **changes: Any) -> tuple[Network, Network]:
    """A network of floats and the same of int8."""
    saved(folder / "floats", seed, **changes)
    quantize(folder / "floats", folder / "int8")
    return network_of(folder / "floats"), network_of(folder / "int8")


@pytest.mark.parametrize("seed", range(10))
def test_steps_in_c_equal_those_of_numpy(seed: int, tmp_path: Path) -> None:
    _, network = both(tmp_path, seed)
    sources, draw = random_sources(seed, num=5), np.random.default_rng(seed)
    rows_each = 1 + seed % 4
    tokens = draw.integers(1, 30, (4, len(sources) * rows_each))
    for name in instruction_sets():
        reference = NumpyDecoder(network, sources, rows_each)
        decoder = NativeDecoder(NativeNetwork(network, name), sources, rows_each)
        for step in tokens:
            # Where a number lies between two integers the last digit may decide, hence the few.
            wrong = ~np.isclose(decoder.step(step), reference.step(step), atol=1e-4)
            assert wrong.mean() < 0.02


@pytest.mark.parametrize(
    ("pooling", "attention_layers"),
    [*itertools.product(("f", "fo", "ifo"), ("last", "all"))],
)
def test_logits_are_near_those_of_floats(
    pooling: str, attention_layers: str, tmp_path: Path
) -> None:
    changes = {"pooling": pooling, "attention_layers": attention_layers, "hidden_size": 48}
    floats, int8 = both(tmp_path, 1, **changes)
    sources = random_sources(1, num=4)
    decoders = [NumpyDecoder(floats, sources, 1)]
    decoders.append(NumpyDecoder(int8, sources, 1))
    decoders += [NativeDecoder(NativeNetwork(int8, n), sources, 1) for n in instruction_sets()]
    for tokens in np.random.default_rng(1).integers(1, 30, (5, 4)):
        expected, *others = (decoder.step(tokens) for decoder in decoders)
        for found in others:
            error = float(np.sqrt(np.mean(np.square(found - expected))) / expected.std())
            # Not none: the weights are others.
            assert 1e-4 < error < 0.05


def test_trained_model_gives_the_answers_of_its_floats(tmp_path: Path) -> None:
    folder = floats_of_the_box("pronounce-en", tmp_path / "floats")
    sizes = quantize(folder, tmp_path / "int8")
    assert sizes.after < 0.3 * sizes.before  # of float32
    lines = (
        (ROOT / "models" / "pronounce-en" / "sample.tsv").read_text(encoding="utf-8").splitlines()
    )
    words = sorted({line.split("\t")[0] for line in lines})[:200]
    int8 = Translator(tmp_path / "int8", backend="native")
    answers = [
        [best.text for best, *_ in translator.translate(words, num_beams=3, max_new_tokens=60)]
        for translator in (Translator(folder, backend="native"), int8)
    ]
    same = sum(one == other for one, other in zip(*answers, strict=True))
    assert len(words) == 200
    assert 0.97 * 200 <= same < 200


def test_results_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    both(tmp_path, 3)
    sources = random_sources(3, num=9)
    for backend in ("native", "numpy"):
        translator = Translator(tmp_path / "int8", backend=backend)
        alone = translator.generate(sources, batch_size=1, max_new_tokens=20)
        assert [row[0].ids for row in alone] == [
            row[0].ids for row in translator.generate(sources, max_new_tokens=20)
        ]


def test_rows_too_long_for_exact_sums_are_computed_as_floats(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    inner = MOST_INNER + 1
    numbers, scales = np.ones((2, inner), np.int8), np.array([1, 2], np.float32)
    save_file({"x": numbers, "x_scale": scales}, tmp_path / "model.safetensors")
    found = Weights(tmp_path).take_matrix("x", 2, inner)
    assert isinstance(found, np.ndarray)
    assert found[:, -1].tolist() == [1, 2]
