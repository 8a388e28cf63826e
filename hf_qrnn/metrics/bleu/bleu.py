"""BLEU (Papineni et al. 2002) as sacrebleu computes it.

Equal to the `sacrebleu` command to the last digit, white space at the end of a line included.
"""

from itertools import zip_longest
from typing import Any

import datasets
import evaluate
import sacrebleu.metrics.bleu as sacrebleu_bleu

_DESCRIPTION = """\
BLEU (Papineni et al. 2002) as sacrebleu computes it.
Any number of references; plain text, neither lower-cased nor split into tokens."""

_CITATION = """\
@inproceedings{post-2018-call,
  title = "A Call for Clarity in Reporting {BLEU} Scores",
  author = "Post, Matt",
  booktitle = "Proceedings of the Third Conference on Machine Translation",
  year = "2018",
}"""

_INPUTS = """\
predictions: translations.
references: the right translation of each, or a list of several right ones.
num_resamples: test sets drawn by bootstrap for a 95 % interval; 0 for none.
tokenize: sacrebleu's name of a tokenizer, as 13a, zh or char."""


class Bleu(evaluate.Metric):
    """BLEU (Papineni et al. 2002) as sacrebleu computes it."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=[
                datasets.Features({"predictions": text, "references": text}),
                datasets.Features({"predictions": text, "references": datasets.Sequence(text)}),
            ],
        )

    def _compute(
        self,
        predictions: list[str],
        references: list[str] | list[list[str]],
        num_resamples: int = 0,
        tokenize: str = "13a",
    ) -> dict[str, Any]:
        """Score all predictions together: "score", "signature", and the interval asked for."""
        right = []
        for reference in references:
            texts = [reference] if isinstance(reference, str) else reference
            if not texts:
                raise ValueError("`references` must hold a text for each, but one holds none.")
            right.append([text.rstrip() for text in texts])
        if num_resamples < 0 or num_resamples == 1:
            raise ValueError(f"`num_resamples` must be 0 or at least 2, but is {num_resamples}.")
        if tokenize not in sacrebleu_bleu.BLEU.TOKENIZERS:
            rule = ", ".join(sacrebleu_bleu.BLEU.TOKENIZERS)
            raise ValueError(f"`tokenize` must be one of {rule}, but is {tokenize!r}.")
        scorer = sacrebleu_bleu.BLEU(force=True, tokenize=tokenize)
        found = scorer.corpus_score(
            [text.rstrip() for text in predictions],
            list(zip_longest(*right)),  # first references, second ones, ...
            n_bootstrap=max(1, num_resamples),
        )
        result = {"score": float(found.score), "signature": str(scorer.get_signature())}
        if num_resamples:
            result.update(mean=float(found._mean), margin=float(found._ci))
        return result
