"""Which model of a run is the best: by which metric, in which direction, and what breaks ties.

`--metric auto` decides before the first update, from the validation references alone, so that no
model, however bad, can decide it: BLEU, where at least half of them have the four tokens it counts
together; else chrF, where one of them has a character; else the loss. Equal scores, as BLEU 0.0 at
every validation of a model that has learnt little, are ordered by the loss. A checkpoint says what
was decided, and a resumed run goes on with it.
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
"""What `--metric` may be."""

_LEAST_TOKENS = 4  # of a text, for BLEU's longest n-gram


class Standing(NamedTuple):
    """What the order of models knows of one.

    Attributes:
        score: By the metric of the run, higher is better.
        loss: Validation loss, which orders models of equal scores; None = not known.
    """

    score: float
    loss: float | None = None

    @property
    def rank(self) -> tuple[float, float]:
        """Greater is better; what is not a number, or not known, is worst."""
        loss = math.nan if self.loss is None else self.loss
        first, second = (x if math.isfinite(x) else -math.inf for x in (self.score, -loss))
        return first, second

    def beats(self, other: Standing | None) -> bool:
        """Whether this model takes the other's place; of two equal ones the earlier stays."""
        return other is None or self.rank > other.rank


class HasBest(Protocol):
    """The part of a run's state that is about its best model."""

    best: float | None
    best_loss: float | None
    best_by: str
    since_best: int


def best_standing(state: HasBest) -> Standing | None:
    """Where the best model so far stands; None before the first validation."""
    return None if state.best is None else Standing(state.best, state.best_loss)


def forget_best(state: HasBest) -> None:
    """Let the next validation be the best."""
    state.best, state.best_loss, state.since_best = None, None, 0


def is_same_order(written: str, score: float, own: str) -> bool:
    """Whether a score that was written with the order `written` can be compared with ours.

    Before there were orders, a score was BLEU by 13a, or, where nothing was translated, minus the
    loss.
    """
    if written or not own:
        return written == own
    return f"{own}|".startswith(f"{legacy_order(score)}|")


def legacy_order(score: float) -> str:
    """The order of a score that was written without one."""
    return "loss" if score < 0 else "bleu|tok:13a"


@dataclass(frozen=True)
class Choice:
    """The metric by which a run's best model is chosen.

    Attributes:
        metric: Its name in the records of validations.
        reason: Why this one.
        best_by: The order of models, as "bleu|tok:13a|sentences:200|data:1f3a9c2e": only scores
            with the same one can be compared.
    """

    metric: str
    reason: str
    best_by: str

    def score(self, record: Mapping[str, Any]) -> float:
        """The score of a validation's record, higher is better."""
        return BY_NAME[self.metric].signed(record[self.metric])


def order_by(state: HasBest, choice: Choice) -> str:
    """Order the models of a run by `choice` from here on, and say so.

    A best that was found by another order is forgotten, which is said too.
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
) -> Choice:
    """Decide by which metric the best model of a run is chosen.

    Args:
        wanted: One of `METRIC_CHOICES`.
        valid: The validation pairs.
        num_shown: The first so many are translated at every validation.
        bleu_tokenize: sacrebleu's name of the tokenizer for BLEU.
        before: The order in the checkpoint that the run goes on from; "" = none.

    Raises:
        ValueError: If the metric is unknown, or needs translations and there are none.
    """
    check_metric(wanted, num_shown)
    name, reason = wanted, "asked for"
    if wanted == "auto":
        references = [pair.target for pair in valid[:num_shown]]
        written = before.split("|")[0]
        if not references:
            name, reason = "loss", "nothing is translated"
        elif written in METRIC_CHOICES:
            name, reason = written, "as before"
        else:
            name, reason = _fitting(references, bleu_tokenize)
    parts = [name]
    if name == "bleu":
        parts.append(f"tok:{bleu_tokenize}")
    if BY_NAME[name].needs_translations:
        parts.append(f"sentences:{num_shown}")
    parts.append(f"data:{fingerprint(valid)}")
    return Choice(name, reason, "|".join(parts))


def check_metric(wanted: str, num_shown: int) -> None:
    """Raise ValueError unless `--metric` is one there is, and can be computed."""
    if wanted not in METRIC_CHOICES:
        rule = ", ".join(METRIC_CHOICES)
        raise ValueError(f"`metric` must be one of {rule}, but is {wanted!r}.")
    if num_shown == 0 and wanted not in ("auto", "loss"):
        raise ValueError(
            f"`eval_sentences` must not be 0 with the metric {wanted!r}, which needs translations, "
            "but is 0."
        )


def _fitting(references: Sequence[str], bleu_tokenize: str) -> tuple[str, str]:
    check_bleu_tokenizer(bleu_tokenize)
    make = BY_NAME["bleu"].scorer
    assert make is not None, "BLEU is sacrebleu's"
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
    """Eight digits for the validation pairs, in `Choice.best_by`."""
    digest = hashlib.sha256()
    for pair in pairs:
        digest.update(f"{pair.source}\n{pair.target}\n\n".encode(errors="surrogatepass"))
    return digest.hexdigest()[:8]
