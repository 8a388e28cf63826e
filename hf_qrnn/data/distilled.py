r"""Translations of a teacher as training pairs: their file, and one of several for every epoch.

A file has a line for each translation, "source\ttarget\tscore", and a fourth column where the
teacher was told a language. The score is the natural logarithm of the translation's probability,
end token included. `hf-qrnn distill` writes it, `--distilled_file` reads it.

Kim and Rush (2016, arXiv 1606.07947) train a student on what its teacher's beam search finds. Where
a file has several lines of one source, each epoch draws one of them: line i with the probability
p_i / sum_j p_j, the teacher's own, shared out among the lines that are there. A source then counts
once an epoch, however many lines it has, and what is unlikely is seldom seen.
"""

from __future__ import annotations

import hashlib
import math
from bisect import bisect
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, replace
from itertools import accumulate
from typing import Any, NamedTuple

import torch

from .batching import BucketBatchSampler, EncodedPair
from .flags import typed
from .languages import check_language
from .reading import DataOptions, TextPair, TranslationData, filter_pairs, read_lines

# Columns of a line, by whether it must have a language.
_WIDTHS: dict[bool | None, tuple[int, ...]] = {None: (3, 4), False: (3,), True: (4,)}


@dataclass(frozen=True)
class DistilledPair(TextPair):
    """One translation by a teacher.

    Attributes:
        score: Natural logarithm of its probability.
        group: Number of the source in all files: lines with the same one are alternatives.
    """

    score: float = 0.0
    group: int = 0


class Alternatives(NamedTuple):
    """The lines of one source.

    Attributes:
        indices: Their places among the training pairs.
        bounds: Running sums of their shares; the last is 1 but for rounding.
    """

    indices: list[int]
    bounds: list[float]


def read_distilled(paths: Sequence[str], *, tagged: bool | None = None) -> list[DistilledPair]:
    """Read files of a teacher's translations, in their order.

    Args:
        paths: The files.
        tagged: Whether every line must have a language, or none may; None = as it comes.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a line has not its columns, its score is no logarithm of a probability, or
            its language is none (names file and line).
    """
    groups: dict[tuple[int, str, str], int] = {}
    found = []
    for number, path in enumerate(paths):
        with typed(path="distilled_file"):
            lines = read_lines(path)
        for place, line in enumerate(lines, 1):
            columns = line.split("\t")
            if len(columns) not in _WIDTHS[tagged]:
                raise ValueError(
                    f"line {place} of '{path}' must have {_WIDTHS[tagged][0]} columns (source, "
                    "target, score, and with `language_tag` the language), separated by tabs, but "
                    f"has {len(columns)}."
                )
            source, target, written, language = [*columns, ""][:4]
            # Lines of a source need not be neighbours; two files are two teachers.
            group = groups.setdefault((number, source, language), len(groups))
            score = _score(written, f"line {place} of '{path}'")
            if len(columns) == 4:
                try:
                    check_language(language)
                except ValueError as error:
                    where = f"the last column in line {place} of '{path}'"
                    raise ValueError(f"{where} is no language: {error}") from None
            found.append(DistilledPair(source, target, language=language, score=score, group=group))
    return found


def with_distilled(data: TranslationData, options: DataOptions) -> TranslationData:
    """Add the pairs of `--distilled_file` to the training pairs, filtered as those are.

    They come last and are shuffled with all others; `--limit` does not count them.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a file is not what it should be, or no line of all is left.
    """
    if not options.distilled_file:
        return data
    tagged = options.language_tag is not None
    lines = read_distilled(options.distilled_file, tagged=tagged)
    pairs, report = filter_pairs(lines, max_chars=options.max_chars)
    if not pairs:
        raise ValueError(
            "`distilled_file` must hold a line with text on both sides of at most "
            f"{options.max_chars} characters (`max_chars`), but {report.kept} of its "
            f"{report.total} lines are such."
        )
    both = data.report
    together = replace(
        both,
        total=both.total + report.total,
        kept=both.kept + report.kept,
        too_long=both.too_long + report.too_long,
        empty=both.empty + report.empty,
    )
    return replace(data, train=[*data.train, *pairs], report=together)


def alternatives_of(pairs: Sequence[TextPair]) -> list[Alternatives]:
    """Find the sources with several lines, of which an epoch draws one."""
    groups: dict[int, list[int]] = {}
    for index, pair in enumerate(pairs):
        if isinstance(pair, DistilledPair):
            groups.setdefault(pair.group, []).append(index)
    found = []
    for indices in groups.values():
        scores = [pairs[index].score for index in indices]  # type: ignore[attr-defined]
        if len(indices) > 1:
            # Relative to the best: of a long target the probability itself may be 0 in float64.
            shares = [math.exp(score - max(scores)) for score in scores]
            total = sum(shares)
            found.append(Alternatives(indices, [x / total for x in accumulate(shares)]))
    return found


def describe_distilled(pairs: Iterable[TextPair]) -> dict[str, Any]:
    """Count a teacher's lines and sources among training pairs, and give their hash; {} = none."""
    digest, lines, groups = hashlib.sha256(), 0, set[int]()
    for pair in pairs:
        if isinstance(pair, DistilledPair):
            digest.update(repr(astuple(pair)).encode())
            lines += 1
            groups.add(pair.group)
    if not lines:
        return {}
    return {
        "distilled_lines": lines,
        "distilled_sources": len(groups),
        "distilled_sha256": digest.hexdigest(),
    }


class DrawingSampler(BucketBatchSampler):
    """A planner of epochs that draws one of each source's alternatives for every epoch.

    What is drawn depends on (`seed`, epoch) alone. Every other example occurs exactly once an
    epoch. Without alternatives the plan is that of `BucketBatchSampler`.

    Args:
        pairs: The data set.
        alternatives: Places in it of which an epoch has one.
        options: Those of `BucketBatchSampler`.
    """

    def __init__(
        self,
        pairs: Sequence[EncodedPair],
        alternatives: Sequence[Alternatives],
        **options: Any,
    ) -> None:
        super().__init__(pairs, **options)
        self._alternatives = alternatives
        open_to_chance = {index for group in alternatives for index in group.indices}
        self._certain = [index for index in range(len(pairs)) if index not in open_to_chance]

    def _examples(self, generator: torch.Generator) -> Sequence[int]:
        if not self._alternatives:
            return super()._examples(generator)
        draws = torch.rand(len(self._alternatives), generator=generator, dtype=torch.float64)
        drawn = [
            # Rounding may leave the last bound a little below the largest draw.
            group.indices[min(bisect(group.bounds, draw), len(group.indices) - 1)]
            for group, draw in zip(self._alternatives, draws.tolist(), strict=True)
        ]
        return [*self._certain, *drawn]


def _score(written: str, place: str) -> float:
    try:
        score = float(written)
    except ValueError:
        score = math.nan
    if not -math.inf < score <= 0:
        raise ValueError(
            f"the score in {place} must be the logarithm of a probability, a number of at most 0, "
            f"but is {written!r}."
        )
    return score
