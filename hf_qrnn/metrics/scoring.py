"""Scores of translations: BLEU, chrF and TER as the `sacrebleu` command gives them, error rates.

Every score comes with sacrebleu's signature, without which two numbers cannot be compared
(Post 2018, arXiv 1804.08771). How far chance could move a score, and whether two systems differ by
more than chance, is sacrebleu's bootstrap over the lines of the test set (Koehn 2004).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from typing import Any

from .table import BY_NAME, TABLE, Metric, check_bleu_tokenizer

SACREBLEU_METRICS = tuple(metric.name for metric in TABLE if metric.scorer is not None)
"""The metrics that sacrebleu computes, with signatures and intervals, in the order of printing."""

METRICS = tuple(
    metric.name for metric in TABLE if metric.needs_translations and metric.name != "exact_match"
)
"""The metrics to ask for, in the order of printing; exact matches always come with them."""

References = Sequence[str] | Sequence[Sequence[str]]
"""The right translation of each text, or a list of several for each."""


@dataclass(frozen=True)
class Confidence:
    """The interval that holds the scores of 95 in 100 test sets drawn from the lines of this one.

    Attributes:
        mean: Mean score of the drawn test sets.
        margin: Half the width of the interval that holds 95 of 100 of them.
    """

    mean: float
    margin: float


@dataclass(frozen=True)
class Score:
    """One score of a whole test set.

    Attributes:
        score: BLEU and chrF in [0, 100], more is better; TER in edits per 100 words of the
            references, less is better.
        signature: sacrebleu's description of how it was computed, as "nrefs:1|case:mixed|...".
        confidence: The interval by bootstrap, or None where not asked for.
    """

    score: float
    signature: str
    confidence: Confidence | None = None

    def __str__(self) -> str:
        """Return the score with its interval, where there is one, and its signature."""
        margin = "" if self.confidence is None else f" +- {self.confidence.margin:.2f}"
        return f"{self.score:6.2f}{margin}  {self.signature}"


@dataclass(frozen=True)
class TranslationScores:
    """Scores of translations against their references.

    Attributes:
        num_translations: Number of translations scored.
        exact_match: Translations equal to a reference, in per cent; white space at the end of
            a line does not count, as everywhere in sacrebleu.
        bleu: BLEU (Papineni et al. 2002), up to 4-grams of words, or None where not asked for.
        chrf: chrF2 (Popovic 2015), up to 6-grams of characters, or None.
        ter: Translation edit rate (Snover et al. 2006), or None.
        char_error_rate: Edits per character of the references, 0.07 is 7 %, or None.
        token_error_rate: Edits per token between blanks, or None.
        word_error_rate: Share of the lines that equal no reference, token by token, or None.
    """

    num_translations: int
    exact_match: float
    bleu: Score | None = None
    chrf: Score | None = None
    ter: Score | None = None
    char_error_rate: float | None = None
    token_error_rate: float | None = None
    word_error_rate: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the same as plain numbers, texts and dictionaries, ready for `json.dumps`."""
        return _plain(self)

    def __str__(self) -> str:
        """Write a line for each metric, with its signature or with what it is in per cent of."""
        lines = []
        for metric in TABLE:
            found: Score | float | None = getattr(self, metric.name, None)
            if isinstance(found, Score):
                lines.append(f"{_column(metric)} {found}")
            elif found is not None:
                of = metric.of.format(lines=self.num_translations)
                unit = f"  % of {of}" if of else ""
                lines.append(f"{_column(metric)} {metric.scale * found:6.2f}{unit}")
        return "\n".join(lines)


def score_translations(
    hypotheses: Sequence[str],
    references: References,
    *,
    metrics: Sequence[str] = METRICS,
    num_resamples: int = 0,
    bleu_tokenize: str = "13a",
) -> TranslationScores:
    """Score translations against their references, to the digit as the `sacrebleu` command.

    The defaults are sacrebleu's: BLEU with case and its "13a" tokens, chrF without word n-grams,
    TER without case. The texts are plain sentences: neither lower-cased nor split into tokens.

    Args:
        hypotheses: Translations; those that are empty count as wrong.
        references: Reference i belongs to hypothesis i; or several, as a list, for each.
        metrics: Those of `METRICS` to compute; TER takes far longer than the rest.
        num_resamples: Test sets drawn for the confidence intervals, as sacrebleu's
            `--confidence-n`; 0 for no intervals.
        bleu_tokenize: sacrebleu's name of the tokenizer for BLEU, as "zh" or "char".

    Raises:
        TypeError: If one of the two is a single string.
        ValueError: If the numbers of texts differ, there is no text, a text has no reference, a
            metric or tokenizer is unknown, or `num_resamples` is 1 or negative.
    """
    texts, right = _checked(hypotheses, references, metrics, METRICS)
    check_bleu_tokenizer(bleu_tokenize)
    if num_resamples < 0 or num_resamples == 1:
        raise ValueError(f"`num_resamples` must be 0 or at least 2, but is {num_resamples}.")
    found: dict[str, Any] = {}
    for name in (*metrics, "exact_match"):
        rate = BY_NAME[name].rate
        if rate is not None:
            found[name] = rate(texts, right)
        else:
            scorer = _scorer(name, bleu_tokenize)
            found[name] = _corpus_score(scorer, texts, _streams(right), num_resamples)
    return TranslationScores(num_translations=len(texts), **found)


@dataclass(frozen=True)
class PairedScore:
    """One score of two systems on the same test set.

    Attributes:
        baseline: Score of the one system.
        system: Score of the other.
        p_value: About the probability that chance alone makes a difference as large as theirs.
    """

    baseline: Score
    system: Score
    p_value: float


@dataclass(frozen=True)
class Comparison:
    """Two systems by paired bootstrap, one entry for each metric asked for."""

    num_translations: int
    num_resamples: int
    scores: dict[str, PairedScore]

    def to_dict(self) -> dict[str, Any]:
        """Return the same as plain numbers, texts and dictionaries, ready for `json.dumps`."""
        return _plain(self)

    def __str__(self) -> str:
        """Write two lines for each metric, the baseline first, and what was drawn."""
        lines = []
        for metric, pair in self.scores.items():
            name = _column(BY_NAME[metric])
            lines.append(f"{name} baseline {pair.baseline}")
            lines.append(f"{name} system   {pair.system}  p = {pair.p_value:.4f}")
        lines.append(
            f"paired bootstrap: {self.num_resamples} test sets drawn from "
            f"{self.num_translations} lines; p < 0.05 is a difference hardly due to chance"
        )
        return "\n".join(lines)


def compare_translations(
    baseline: Sequence[str],
    hypotheses: Sequence[str],
    references: References,
    *,
    metrics: Sequence[str] = SACREBLEU_METRICS,
    num_resamples: int = 1000,
    bleu_tokenize: str = "13a",
) -> Comparison:
    """Test whether two systems differ, to the digit as `sacrebleu --paired-bs`.

    Args:
        baseline: Translations of the system to compare with.
        hypotheses: Translations of the system in question.
        references: Reference i belongs to translation i of both; or several, as a list.
        metrics: Those of "bleu", "chrf" and "ter" to compute.
        num_resamples: Test sets drawn with replacement from the lines.
        bleu_tokenize: sacrebleu's name of the tokenizer for BLEU.

    Raises:
        TypeError: If one of the three is a single string.
        ValueError: If the numbers of texts differ, there is no text, a text has no reference, a
            metric or tokenizer is unknown, or `num_resamples` is below 2.
    """
    from sacrebleu.significance import PairedTest

    baseline, _ = _checked(baseline, references, metrics, SACREBLEU_METRICS, name="baseline")
    hypotheses, right = _checked(hypotheses, references, metrics, SACREBLEU_METRICS)
    check_bleu_tokenizer(bleu_tokenize)
    if num_resamples < 2:
        raise ValueError(f"`num_resamples` must be at least 2, but is {num_resamples}.")
    signatures, found = PairedTest(
        [("baseline", baseline), ("system", hypotheses)],
        {name: _scorer(name, bleu_tokenize) for name in metrics},
        _streams(right),
        test_type="bs",
        n_samples=num_resamples,
    )()
    # sacrebleu names results as it prints them ("chrF2"), in the order of the metrics given.
    names = [name for name in found if name != "System"]
    scores = {}
    for metric, name in zip(metrics, names, strict=True):
        results: list[Any] = list(found[name])
        both = [
            Score(
                float(result.score),
                str(signatures[name]),
                Confidence(float(result.mean), float(result.ci)),
            )
            for result in results
        ]
        scores[metric] = PairedScore(both[0], both[1], float(results[1].p_value))
    return Comparison(len(right), num_resamples, scores)


def _column(metric: Metric) -> str:
    """Return the label of a metric, as wide as the widest of the table."""
    return metric.label.ljust(max(len(other.label) for other in TABLE))


def _plain(scores: Any) -> dict[str, Any]:
    """Return a dataclass as dictionaries, without confidences that nobody asked for."""

    def without_none(items: list[tuple[str, Any]]) -> dict[str, Any]:
        return {name: x for name, x in items if not (name == "confidence" and x is None)}

    plain: dict[str, Any] = asdict(scores, dict_factory=without_none)
    return plain


def _checked(
    hypotheses: Sequence[str],
    references: References,
    metrics: Sequence[str],
    allowed: Sequence[str],
    name: str = "hypotheses",
) -> tuple[list[str], list[list[str]]]:
    """Return the texts, and the references of each, as sacrebleu's command reads them."""
    for label, texts in ((name, hypotheses), ("references", references)):
        if isinstance(texts, str):
            raise TypeError(f"`{label}` must be a list of texts, but is one string.")
    if len(hypotheses) != len(references):
        raise ValueError(
            f"`{name}` and `references` must have the same number of lines, "
            f"but have {len(hypotheses)} and {len(references)}."
        )
    if not hypotheses:
        raise ValueError(f"`{name}` must have at least one line, but is empty.")
    unknown = [metric for metric in metrics if metric not in allowed]
    if unknown:
        rule = ", ".join(map(repr, allowed))
        raise ValueError(f"`metrics` must be some of {rule}, but has {unknown[0]!r}.")
    right = [[texts] if isinstance(texts, str) else list(texts) for texts in references]
    if not all(right):
        raise ValueError(
            "`references` must hold at least one text for each translation, "
            f"but has none for number {right.index([]) + 1}."
        )
    # The command drops the white space at the end of every line before anything else.
    stripped = [[text.rstrip() for text in several] for several in right]
    return [text.rstrip() for text in hypotheses], stripped


def _streams(references: list[list[str]]) -> list[Any]:
    """List first references, second ones and so on, as sacrebleu wants them; None for none."""
    return [list(stream) for stream in zip_longest(*references)]


def _scorer(name: str, bleu_tokenize: str) -> Any:
    make = BY_NAME[name].scorer
    assert make is not None, "sacrebleu does not know this metric"
    scorer = make(bleu_tokenize)
    if name in ("chrf", "ter"):
        compute = scorer._compute_score_from_stats

        def compute_of_one_type(stats: Any) -> Any:
            found = compute(stats)
            # Of drawn test sets NumPy's, but a float where nothing is common or all references are
            # empty: the mean of the bootstrap refuses a mixture.
            if hasattr(stats, "dtype"):
                found.score = stats.dtype.type(found.score)
            return found

        scorer._compute_score_from_stats = compute_of_one_type
    return scorer


def _corpus_score(
    scorer: Any, hypotheses: list[str], streams: list[Any], num_resamples: int
) -> Score:
    found = scorer.corpus_score(hypotheses, streams, n_bootstrap=max(1, num_resamples))
    confidence = None
    if num_resamples:
        # sacrebleu keeps the interval under these names and shows it as text only.
        confidence = Confidence(float(found._mean), float(found._ci))
    return Score(float(found.score), str(scorer.get_signature()), confidence)
