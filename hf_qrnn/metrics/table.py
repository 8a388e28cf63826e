"""The table of all metrics: what computes each, what is better, how it is shown.

Scores, validations, the choice of the best model, cards and pictures read it; beside it a metric
has a field in `TranslationScores` (scoring.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .edits import char_error_rate, exact_match, token_error_rate, word_error_rate


@dataclass(frozen=True)
class Metric:
    """One way to say how good a model is.

    Attributes:
        name: Its name in options, records and files.
        label: Its name where it is shown.
        higher_is_better: False for losses and error rates.
        scale: Factor from the number in the records to the number shown.
        of: The whole that the shown number is a percentage of; empty for a number without a unit.
        on_card: A sentence of the model card, for `scale` times the number; empty where the card
            has the metric in its table of results.
        hub_name: Its name on the Hub.
        is_slow: Too slow for every validation.
        scorer: Makes sacrebleu's object for it, of BLEU's tokenizer; or
        rate: computes it from hypotheses and the references of each. Neither: it needs no
            translations.
    """

    name: str
    label: str
    higher_is_better: bool = True
    scale: float = 1.0
    of: str = ""
    on_card: str = ""
    hub_name: str = ""
    is_slow: bool = False
    scorer: Callable[[str], Any] | None = None
    rate: Callable[[Sequence[str], Sequence[Sequence[str]]], float] | None = None

    @property
    def needs_translations(self) -> bool:
        """True if it is computed from translations, not by the model alone."""
        return self.scorer is not None or self.rate is not None

    def signed(self, value: float) -> float:
        """Return `value` such that more is better."""
        return value if self.higher_is_better else -value


def _bleu(tokenize: str) -> Any:
    from sacrebleu.metrics.bleu import BLEU

    # `force` only silences a warning about lines that end in " .", which a model may well write.
    return BLEU(force=True, tokenize=tokenize)


def _chrf(tokenize: str) -> Any:
    from sacrebleu.metrics.chrf import CHRF

    return CHRF()


def _ter(tokenize: str) -> Any:
    from sacrebleu.metrics.ter import TER

    return TER()


TABLE = (
    Metric("bleu", "BLEU", hub_name="bleu", scorer=_bleu),
    Metric("chrf", "chrF", hub_name="chrf", scorer=_chrf),
    Metric("ter", "TER", higher_is_better=False, hub_name="ter", is_slow=True, scorer=_ter),
    Metric(
        "char_error_rate", "CER", higher_is_better=False, scale=100.0,
        of="the references' characters",
        on_card="edits for every 100 characters of the references (CER): {:.2f}",
        hub_name="cer", rate=char_error_rate,
    ),
    Metric(
        "token_error_rate", "TokER", higher_is_better=False, scale=100.0,
        of="the references' tokens between blanks",
        on_card="edits for every 100 tokens between blanks (TokER): {:.2f}",
        hub_name="token_error_rate", rate=token_error_rate,
    ),
    Metric(
        "word_error_rate", "WER", higher_is_better=False, scale=100.0, of="{lines} lines",
        on_card="{:.2f} % of the lines are wrong (WER, where a line is a word)",
        hub_name="word_error_rate", rate=word_error_rate,
    ),
    Metric(
        "exact_match", "exact", of="{lines} lines",
        on_card="{:.1f} % of the translations equal their reference",
        hub_name="exact_match", rate=exact_match,
    ),
    Metric("loss", "loss", higher_is_better=False),
)  # fmt: skip
"""Every metric, in the order they are shown."""

OF_MODELS = (
    Metric("perplexity", "perplexity", higher_is_better=False, hub_name="perplexity"),
    Metric(
        "bits_per_character", "bits per character", higher_is_better=False,
        hub_name="bits_per_character",
    ),
    Metric("accuracy", "accuracy", scale=100.0, of="the texts", hub_name="accuracy"),
)  # fmt: skip
"""The metrics of language models and classifiers, in the order they are shown."""

BY_NAME = {metric.name: metric for metric in (*TABLE, *OF_MODELS)}
VALIDATED = tuple(metric for metric in TABLE if metric.needs_translations and not metric.is_slow)
"""The metrics of every validation with translations."""
RECORDED = (*VALIDATED, *OF_MODELS)
"""The metrics that records of runs may have, whatever the task."""


def check_bleu_tokenizer(name: str) -> None:
    """Find out whether BLEU can split texts into the tokens that `name` means.

    Raises:
        ValueError: If sacrebleu has no such tokenizer, or needs what is not installed.
    """
    from sacrebleu.metrics.bleu import BLEU

    if name not in BLEU.TOKENIZERS:
        rule = ", ".join(BLEU.TOKENIZERS)
        raise ValueError(f"`bleu_tokenize` must be one of {rule}, but is {name!r}.")
    try:
        _bleu(name)
    except (ImportError, RuntimeError, AssertionError, OSError) as error:
        text = " ".join(str(error).split())
        package = re.search(r"pip install (\S+)", text)
        cure = f"it needs `pip install '{package[1]}'`" if package else text.rstrip(".")
        raise ValueError(
            f"`bleu_tokenize` must be a tokenizer that works here, but is {name!r}: {cure}."
        ) from error
