"""Plots: figures show the numbers and labels given, in any script, without a warning."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from hf_qrnn.metrics.table import Metric
from hf_qrnn.training.learning_curve import learning_curve_figure
from hf_qrnn.translation.plots import (
    attention_figure,
    hidden_states_figure,
    save_figure,
    token_label,
)

SOURCE = [*"Zwei Büsche.", "</s>"]
TARGET = [*"two bushes", "</s>"]
TRAIN: list[dict[str, Any]] = [
    {"kind": "train", "step": step, "loss": 1 / step, "bits_per_char": 0.1} for step in (1, 2, 4)
]
VALID: list[dict[str, Any]] = [
    {"kind": "valid", "step": 2, "loss": 0.9, "bleu": None, "chrf": 11.0},
    {"kind": "valid", "step": 4, "loss": 0.7, "bleu": 20.25, "chrf": 31.0},
]


def _weights(num_rows: int, num_columns: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(num_rows, num_columns, generator=generator).softmax(-1)


def _labels(figure: Figure, axis: str) -> list[str]:
    ticks = getattr(figure.axes[0], f"get_{axis}ticklabels")()
    return [tick.get_text() for tick in ticks]


def test_attention_figure_shows_weights_and_tokens() -> None:
    weights = _weights(len(TARGET), len(SOURCE))
    figure = attention_figure(SOURCE, TARGET, weights)
    axes = figure.axes[0]
    assert np.allclose(np.asarray(axes.images[0].get_array()), weights.numpy())
    assert _labels(figure, "x") == [*"Zwei", "\u2423", *"Büsche.", "</s>"]
    assert _labels(figure, "y") == [*"two", "\u2423", *"bushes", "</s>"]
    assert axes.get_ylim() == (len(TARGET) - 0.5, -0.5)  # the first target is the top row


def test_hidden_states_figure_shows_channels_over_time() -> None:
    states = torch.linspace(-1, 1, len(SOURCE) * 7).view(len(SOURCE), 7)
    figure = hidden_states_figure(SOURCE, states)
    image = figure.axes[0].images[0]
    assert np.allclose(np.asarray(image.get_array()), states.numpy().T)
    assert image.get_clim() == (-1.0, 1.0)
    assert len(_labels(figure, "x")) == len(SOURCE)
    wide = hidden_states_figure(SOURCE, 3 * states)
    assert wide.axes[0].images[0].get_clim() == pytest.approx((-3.0, 3.0))


def test_figures_grow_with_their_texts_up_to_a_limit() -> None:
    sizes = []
    for length in (1, 20, 60, 160):
        figure = attention_figure(["a"] * length, ["b"] * length, np.eye(length))
        sizes.append(figure.get_size_inches().tolist())
    assert sizes == sorted(sizes)
    assert sizes[2][0] > 2 * sizes[1][0]
    assert max(sizes[-1]) < 33


@pytest.mark.parametrize(
    ("token", "label"),
    [
        (" ", "\u2423"),
        ("\t", "\u21e5"),
        ("\n", "\u23ce"),
        ("\r", "\\r"),
        ("\xa0", "\u237d"),
        (" the", "\u2423the"),
        ("</s>", "</s>"),
        ("\u0301", "\u25cc\u0301"),
        ("\u200b", "U+200B"),
        ("\x00", "U+0000"),
        ("\U0010ffff", "U+10FFFF"),
        ("", ""),
    ],
    ids=ascii,
)
def test_every_character_can_be_seen(token: str, label: str) -> None:
    assert token_label(token) == label


def test_any_script_is_drawn_without_a_warning(tmp_path: Path) -> None:
    tokens = ["中", "문", "😀", "א", "$x$", "$", "\\frac", "_", "ü", "\u0301", "\ufffd", "<unk>"]
    figure = attention_figure(tokens, tokens, np.eye(len(tokens)))
    save_figure(figure, tmp_path / "scripts.png")
    assert _labels(figure, "x")[4:8] == ["$x$", "$", "\\frac", "_"]


def test_learning_curve_shows_every_number() -> None:
    figure = learning_curve_figure([*TRAIN, *VALID, {"kind": "test", "bleu": 1.0}])
    losses, scores = figure.axes
    train, valid = losses.get_lines()
    assert np.asarray(train.get_xydata()).tolist() == [[1, 1], [2, 0.5], [4, 0.25]]
    assert np.asarray(valid.get_xydata()).tolist() == [[2, 0.9], [4, 0.7]]
    bleu, chrf = scores.get_lines()
    assert np.asarray(bleu.get_xydata()).tolist() == [[4, 20.25]]
    assert np.asarray(chrf.get_xydata()).tolist() == [[2, 11], [4, 31]]
    assert [text.get_text() for text in scores.texts] == ["20.2", "31.0"]  # the best of each
    assert "nats / target token" in losses.get_ylabel()


def test_learning_curve_marks_the_lowest_error_rate() -> None:
    rates = [(2, 0.5, 1.0), (4, 0.125, 90.0), (6, 0.25, math.nan)]
    records = [
        {"kind": "valid", "step": step, "loss": 1.0, "char_error_rate": rate, "exact_match": exact}
        for step, rate, exact in rates
    ]
    _, scores = learning_curve_figure(records).axes
    errors, exact = scores.get_lines()
    assert np.asarray(errors.get_xydata()).tolist() == [[2, 50], [4, 12.5], [6, 25]]
    assert [errors.get_label(), exact.get_label()] == ["CER [%]", "exact [%]"]
    assert [text.get_text() for text in scores.texts] == ["12.5", "90.0"]


@pytest.mark.parametrize(
    ("records", "num_panels"),
    [
        (TRAIN, 1),
        (TRAIN[:1], 1),
        (VALID, 2),
        ([{"kind": "train", "step": 1, "loss": float("nan")}], 1),
        ([*TRAIN, {"kind": "train", "step": 5, "loss": float("inf")}], 1),
    ],
    ids=["train", "one_point", "valid", "nan", "inf"],
)
def test_learning_curve_of_any_part_of_a_run(
    records: list[dict[str, Any]], num_panels: int, tmp_path: Path
) -> None:
    figure = learning_curve_figure(records)
    assert len(figure.axes) == num_panels
    save_figure(figure, tmp_path / "curve.png")


@pytest.mark.parametrize(
    ("suffix", "start"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".PDF", b"%PDF")]
)
def test_save_figure_writes_each_kind(suffix: str, start: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"map{suffix}"
    save_figure(attention_figure(SOURCE, TARGET, _weights(len(TARGET), len(SOURCE))), path)
    assert path.read_bytes().startswith(start)


@pytest.mark.parametrize("name", ["map.jpg", "map", "png"])
def test_save_figure_refuses_other_kinds(name: str, tmp_path: Path) -> None:
    figure = learning_curve_figure(TRAIN)
    with pytest.raises(ValueError, match=r"one of \.png, \.svg, \.pdf, but is '.*'"):
        save_figure(figure, tmp_path / name)
    assert not (tmp_path / name).exists()


def test_shapes_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match=r"`weights` must be of shape \(2, 3\).*is \(3, 2\)"):
        attention_figure(["a"] * 3, ["b"] * 2, np.zeros((3, 2)))
    with pytest.raises(ValueError, match=r"`weights` must be .* at least one"):
        attention_figure([], [], np.zeros((0, 0)))
    with pytest.raises(ValueError, match=r"`states` must be of shape \(2, any\).*is \(3, 5\)"):
        hidden_states_figure(["a"] * 2, np.zeros((3, 5)))


def test_learning_curve_needs_a_loss() -> None:
    with pytest.raises(ValueError, match="must have a train or valid line with a loss"):
        learning_curve_figure([{"kind": "test", "bleu": 1.0}])


def test_learning_curve_has_a_colour_for_every_metric(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"score{number}" for number in range(7)]
    metrics = tuple(Metric(name, name.upper()) for name in names)
    monkeypatch.setattr("hf_qrnn.training.learning_curve.RECORDED", metrics)
    record = {"kind": "valid", "step": 1, "loss": 1.0, **dict.fromkeys(names, 50.0)}
    figure = learning_curve_figure([record])
    assert set(figure.axes[1].get_legend_handles_labels()[1]) == {name.upper() for name in names}
