"""Chooses the best model of a run: the metric, its direction, and what breaks ties.

`--metric auto` decides before the first update, from the validation references alone, so that no
model, however bad, can decide it. It takes BLEU if at least half of them have the four tokens that
BLEU counts together, else chrF if one of them has a character, else the loss. Equal scores are
ordered by the loss: a model that has learnt little has BLEU 0.0 at every validation. A checkpoint
holds what was decided, and a resumed run goes on with it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from hf_qrnn.data.reading import TextPair
from hf_qrnn.metrics.table import BY_NAME, VALIDATED, check_bleu_tokenizer

METRIC_CHOICES = ("auto", *(metric.name for metric in VALIDATED), "loss")
"""The values of `--metric`."""

_LEAST_TOKENS = 4  # of a text, for BLEU's longest n-gram


class Standing(NamedTuple):
    """The score and loss of a model, by which models are ordered.

    Attributes:
        score: By the metric of the run, higher is better.
        loss: Validation loss, which orders models of equal scores; None = not known.
    """

    score: float
    loss: float | None = None

    @property
    def rank(self) -> tuple[float, float]:
        """The pair to compare: greater is better; what is not finite, or not known, is worst."""
        # No comparison with NaN is true, so its place would depend on the order of comparisons.
        loss = math.nan if self.loss is None else self.loss
        first, second = (x if math.isfinite(x) else -math.inf for x in (self.score, -loss))
        return first, second

    def beats(self, other: Standing | None) -> bool:
        """Tell whether this model takes the other's place; of two equal ones the earlier stays."""
        return other is None or self.rank > other.rank


class HasBest(Protocol):
    """The part of a run's state that is about its best model."""

    best: float | None
    best_loss: float | None
    best_by: str
    since_best: int


def best_standing(state: HasBest) -> Standing | None:
    """Return the standing of the best model so far, or None before the first validation."""
    return None if state.best is None else Standing(state.best, state.best_loss)


def forget_best(state: HasBest) -> None:
    """Let the next validation be the best."""
    state.best, state.best_loss, state.since_best = None, None, 0


def is_same_order(written: str, score: float, own: str) -> bool:
    """Tell whether a score that was written by the order `written` can be compared with ours.

    Args:
        written: The order, as `Choice.best_by`; "" = of a version that had no orders.
        score: The score, which tells BLEU from minus the loss where `written` is "".
        own: The order of this run; "" = none.
    """
    if written or not own:
        return written == own
    # Without an order, all that is known is the metric: the number of sentences and the data are
    # taken to be the same.
    return f"{own}|".startswith(f"{legacy_order(score)}|")


def legacy_order(score: float) -> str:
    """Return the order of a score that was written without one."""
    # Such a version had BLEU by 13a, which is never negative, or minus the loss.
    return "loss" if score < 0 else "bleu|tok:13a"


@dataclass(frozen=True)
class Choice:
    """The metric by which a run's best model is chosen.

    Attributes:
        metric: Its name in the records of validations.
        reason: The reason for it, in words.
        best_by: The order of models, as "bleu|tok:13a|sentences:200|data:1f3a9c2e": only scores
            with the same one can be compared.
    """

    metric: str
    reason: str
    best_by: str

    def score(self, record: Mapping[str, Any]) -> float:
        """Return the score of a validation's record, higher is better.

        A metric that the table does not know is better where it is more.

        Raises:
            ValueError: If the record does not have the metric.
        """
        if self.metric not in record:
            raise ValueError(
                f"`metric` must be one of what the task measures, {', '.join(record)}, "
                f"but is {self.metric!r}."
            )
        value: float = record[self.metric]
        return BY_NAME[self.metric].signed(value) if self.metric in BY_NAME else value


def order_by(state: HasBest, choice: Choice) -> str:
    """Order the models of a run by `choice` from here on; return a line for the log.

    A best that was found by another order is forgotten, and the line says so.
    """
    before, state.best_by = state.best_by, choice.best_by
    text = f"the best model is chosen by {choice.metric}: {choice.reason}"
    if state.best is None or is_same_order(before, state.best, choice.best_by):
        return text
    written = before or legacy_order(state.best)
    forget_best(state)
    return (
        f"{text}; the best so far was chosen by {written}, not {choice.best_by}: "
        "it is forgotten, and the next validation takes its place"
    )


def choose_metric(
    wanted: str,
    valid: Sequence[TextPair],
    num_shown: int,
    *,
    bleu_tokenize: str = "13a",
    before: str = "",
    has_symbols: bool = False,
) -> Choice:
    """Decide by which metric the best model of a run is chosen.

    Args:
        wanted: One of `METRIC_CHOICES`.
        valid: The validation pairs.
        num_shown: Number of them, from the first, that are translated at every validation.
        bleu_tokenize: sacrebleu's name of the tokenizer for BLEU.
        before: The order in the checkpoint that the run goes on from; "" = none.
        has_symbols: Whether targets are symbols between blanks, as phones are.

    Raises:
        ValueError: If the metric is unknown, or needs translations and there are none.
    """
    check_metric(wanted, num_shown)
    name, reason = wanted, "asked for"
    if wanted == "auto":
        references = [pair.target for pair in valid[:num_shown]]
        written = before.split("|")[0]  # the metric of the checkpoint's order
        if not references:
            name, reason = "loss", "nothing is translated"
        elif written in METRIC_CHOICES:
            name, reason = written, "as before"
        elif has_symbols:
            name, reason = "word_error_rate", "targets are symbols between blanks"
        else:
            name, reason = _fitting(references, bleu_tokenize)
    # All that a score depends on, beside the model: with another part it cannot be compared.
    parts = [name]
    if name == "bleu":
        parts.append(f"tok:{bleu_tokenize}")
    if BY_NAME[name].needs_translations:
        parts.append(f"sentences:{num_shown}")
    parts.append(f"data:{fingerprint(valid)}")
    return Choice(name, reason, "|".join(parts))


def check_metric(wanted: str, num_shown: int) -> None:
    """Raise ValueError unless the metric is known and can be computed."""
    if wanted not in METRIC_CHOICES:
        rule = ", ".join(METRIC_CHOICES)
        raise ValueError(f"`metric` must be one of {rule}, but is {wanted!r}.")
    if num_shown == 0 and wanted not in ("auto", "loss"):
        raise ValueError(
            f"`eval_sentences` must not be 0 with the metric {wanted!r}, which needs translations, "
            "but is 0."
        )


def _fitting(references: Sequence[str], bleu_tokenize: str) -> tuple[str, str]:
    """Choose the metric that fits the references; return it with the reason."""
    check_bleu_tokenizer(bleu_tokenize)
    make = BY_NAME["bleu"].scorer
    assert make is not None, "BLEU is sacrebleu's"
    # sacrebleu's own tokenizer, whose tokens are counted as BLEU counts them. A shorter reference
    # has no n-gram of four, so BLEU is 0 for it, however good a translation is.
    split = make(bleu_tokenize).tokenizer
    enough = sum(len(split(text.rstrip()).split()) >= _LEAST_TOKENS for text in references)
    counted = (
        f"{enough} of {len(references)} validation references have the {_LEAST_TOKENS} tokens "
        f"({bleu_tokenize}) that BLEU counts together"
    )
    if 2 * enough >= len(references):
        return "bleu", counted
    if any(text.strip() for text in references):
        return "chrf", f"{counted}, --bleu_tokenize gives others"
    return "loss", "every validation reference is empty"


def fingerprint(pairs: Sequence[TextPair]) -> str:
    """Hash the validation pairs to eight hexadecimal digits, for `Choice.best_by`."""
    digest = hashlib.sha256()
    for pair in pairs:
        # Half a surrogate pair is refused where texts are read, in a sentence of its own.
        tag = pair.language and f"{pair.language}\n"
        digest.update(f"{pair.source}\n{pair.target}\n{tag}\n".encode(errors="surrogatepass"))
    return digest.hexdigest()[:8]
