"""Scores of translations: BLEU, chrF and TER as the `sacrebleu` command gives them.

Every score comes with sacrebleu's signature, without which two numbers cannot be compared
(Post 2018, arXiv 1804.08771).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

METRICS = ("bleu", "chrf", "ter")
"""The metrics in the order they are printed."""

_NAMES = {"bleu": "BLEU", "chrf": "chrF", "ter": "TER"}


@dataclass(frozen=True)
class Score:
    """One score of a whole test set.

    Attributes:
        score: BLEU and chrF in [0, 100], more is better; TER in edits per 100 words of the
            references, less is better.
        signature: sacrebleu's description of how it was computed, as "nrefs:1|case:mixed|...".
    """

    score: float
    signature: str


@dataclass(frozen=True)
class TranslationScores:
    """How close translations are to their references.

    Attributes:
        num_translations: Number of translations scored.
        exact_match: Translations equal to their reference, in per cent; white space at the end of
            a line does not count, as everywhere in sacrebleu.
        bleu: BLEU (Papineni et al. 2002), up to 4-grams of words, or None where not asked for.
        chrf: chrF2 (Popovic 2015), up to 6-grams of characters, or None.
        ter: Translation edit rate (Snover et al. 2006), or None.
    """

    num_translations: int
    exact_match: float
    bleu: Score | None = None
    chrf: Score | None = None
    ter: Score | None = None

    def to_dict(self) -> dict[str, Any]:
        """The same as plain numbers, texts and dictionaries, ready for `json.dumps`."""
        return asdict(self)

    def __str__(self) -> str:
        """A line for each score with its signature, then the exact matches and the count."""
        lines = []
        for metric in METRICS:
            score: Score | None = getattr(self, metric)
            if score is not None:
                lines.append(f"{_NAMES[metric]:<5} {score.score:6.2f}  {score.signature}")
        lines.append(f"exact {self.exact_match:6.2f}  % of {self.num_translations} lines")
        return "\n".join(lines)


def score_translations(
    hypotheses: Sequence[str],
    references: Sequence[str],
    *,
    metrics: Sequence[str] = METRICS,
) -> TranslationScores:
    """Score translations against one reference each, to the digit as the `sacrebleu` command.

    The defaults are sacrebleu's: BLEU with case and its "13a" tokens, chrF without word n-grams,
    TER without case. The texts are plain sentences: neither lower-cased nor split into tokens.

    Args:
        hypotheses: Translations; those that are empty count as wrong.
        references: Reference i belongs to hypothesis i.
        metrics: Which of "bleu", "chrf" and "ter" to compute; TER takes far longer than the rest.

    Raises:
        TypeError: If one of the two is a single string.
        ValueError: If the numbers of texts differ, there is no text, or a metric is unknown.
    """
    for name, texts in (("hypotheses", hypotheses), ("references", references)):
        if isinstance(texts, str):
            raise TypeError(f"`{name}` must be a list of texts, but is one string.")
    if len(hypotheses) != len(references):
        raise ValueError(
            "`hypotheses` and `references` must have the same number of lines, "
            f"but have {len(hypotheses)} and {len(references)}."
        )
    if not hypotheses:
        raise ValueError("`hypotheses` must have at least one line, but is empty.")
    unknown = [metric for metric in metrics if metric not in METRICS]
    if unknown:
        rule = ", ".join(map(repr, METRICS))
        raise ValueError(f"`metrics` must be some of {rule}, but has {unknown[0]!r}.")
    # The command drops the white space at the end of every line before anything else.
    hypotheses = [text.rstrip() for text in hypotheses]
    references = [text.rstrip() for text in references]
    num_equal = sum(map(str.__eq__, hypotheses, references))
    scores = {metric: _corpus_score(metric, hypotheses, references) for metric in metrics}
    return TranslationScores(
        num_translations=len(hypotheses), exact_match=100.0 * num_equal / len(hypotheses), **scores
    )


def _corpus_score(metric: str, hypotheses: list[str], references: list[str]) -> Score:
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF
    from sacrebleu.metrics.ter import TER

    # `force` only silences a warning about lines that end in " .", which a model may well write.
    scorer = BLEU(force=True) if metric == "bleu" else CHRF() if metric == "chrf" else TER()
    score = float(scorer.corpus_score(hypotheses, [references]).score)
    return Score(score, str(scorer.get_signature()))
