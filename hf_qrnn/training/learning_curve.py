"""Draws the learning curve of a run from the lines of its metrics.jsonl."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hf_qrnn.metrics.table import RECORDED, Metric
from hf_qrnn.translation.plots import BLUE, INK, decorate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_TRAIN, _VALID = "#8fb3d9", BLUE
_SCORES = ("#b3432b", "#d9952f", "#6a4c93", "#3d8b6e", "#444444")  # in the table's order


def learning_curve_figure(records: Iterable[Mapping[str, Any]]) -> Figure:
    """Loss, and the scores that were measured, over the steps of a training run.

    Args:
        records: The lines of `metrics.jsonl`: `{"kind": "train", "step": int, "loss": float, ...}`
            and `{"kind": "valid", "step": int, "loss": float, "bleu": float, "chrf": float}`.
            The loss is in nats per target token, BLEU and chrF are in [0, 100], error rates are
            drawn in per cent; the best point of each is marked. Other kinds of lines are skipped,
            as are values that are missing, None or not finite.

    Raises:
        ValueError: If no line has a loss.
    """
    from matplotlib.figure import Figure

    lines = list(records)  # gone over once for each kind and metric
    losses = [(kind, _series(lines, kind, "loss")) for kind in ("train", "valid")]
    if not any(steps for _, (steps, _) in losses):
        raise ValueError("`records` must have a train or valid line with a loss, but has none.")
    scores = [
        (metric, color, _series(lines, "valid", metric.name))
        for metric, color in zip(RECORDED, itertools.cycle(_SCORES), strict=False)
    ]
    scores = [found for found in scores if found[2][0]]
    # Losses above, scores below if there are any, over the same steps.
    figure = Figure(figsize=(7.5, 6.0 if scores else 3.6), facecolor="white")
    axes = figure.subplots(2 if scores else 1, 1, sharex=True, squeeze=False)[:, 0]
    figure.subplots_adjust(hspace=0.1)
    for (kind, (steps, values)), color in zip(losses, (_TRAIN, _VALID), strict=True):
        if steps:
            # One point is no line, and would not be seen without a marker.
            marker = "o" if kind == "valid" or len(steps) == 1 else None
            name = {"train": "training", "valid": "validation"}[kind]
            axes[0].plot(steps, values, color=color, marker=marker, markersize=4, label=name)
    axes[0].set_ylabel("loss [nats / target token]", color=INK)
    for metric, color, (steps, values) in scores:
        shown = [metric.scale * value for value in values]
        label = metric.label + (" [%]" if metric.of else "")
        axes[1].plot(steps, shown, color=color, marker="o", markersize=4, label=label)
        _mark_best(axes[1], steps, shown, metric, color)
    if scores:
        axes[1].set_ylabel("validation score", color=INK)
        axes[1].margins(y=0.12)  # room for the number above the best point
        axes[1].set_ylim(bottom=0)
    for panel in axes:
        decorate(panel)
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(color="#e6e6e6", linewidth=0.8)
        panel.set_axisbelow(True)
        panel.legend(frameon=False)
    axes[-1].set_xlabel("step", color=INK)
    return figure


def _series(
    records: Sequence[Mapping[str, Any]], kind: str, name: str
) -> tuple[list[int], list[float]]:
    """Return steps and values of `name` in the lines of `kind` that have it.

    A value that is not finite becomes NaN, which leaves a gap in the line.
    """
    points = [
        (int(record["step"]), float(record[name]))
        for record in records
        if record.get("kind") == kind and record.get(name) is not None
    ]
    steps = [step for step, _ in points]
    return steps, [value if math.isfinite(value) else math.nan for _, value in points]


def _mark_best(
    axes: Axes, steps: Sequence[int], values: Sequence[float], metric: Metric, color: str
) -> None:
    """Write the value of the best point above it; of equal ones the first is the best."""
    finite = [index for index, value in enumerate(values) if math.isfinite(value)]
    if not finite:
        return
    best = max(finite, key=lambda index: metric.signed(values[index]))
    axes.annotate(
        f"{values[best]:.1f}",
        (steps[best], values[best]),
        xytext=(0, 7),
        textcoords="offset points",
        ha="center",
        fontsize=9,
        color=color,
    )
