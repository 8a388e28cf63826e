"""Metrics for the `evaluate` library, loaded from files and never from a network.

    import evaluate
    from hf_qrnn.metrics import metric_path

    bleu = evaluate.load(metric_path("bleu"))
    bleu.compute(predictions=["A dog runs."], references=["A dog is running."])

Each folder is a module of its own that imports nothing of this package, so it also loads from a
copy. `evaluate` reads one module per import line of them.
"""

from __future__ import annotations

from pathlib import Path

METRIC_NAMES = ("bleu", "chrf", "perplexity", "bits_per_character")
"""The metrics, each a folder beside this file."""


def metric_path(name: str) -> str:
    """Return the folder that `evaluate.load` loads the metric `name` from.

    Raises:
        ValueError: If there is no such metric.
    """
    if name not in METRIC_NAMES:
        rule = ", ".join(map(repr, METRIC_NAMES))
        raise ValueError(f"`name` must be one of {rule}, but is {name!r}.")
    return str(Path(__file__).parent / name)
