"""Perplexity from the loss of each text."""

import math

import datasets
import evaluate

_DESCRIPTION = """\
exp(nats / tokens): the number of equally likely tokens that would be as hard to predict."""

_CITATION = ""

_INPUTS = """\
predictions: negative log-likelihood of each text, in nats, summed over its tokens.
references: the number of tokens of each text; end tokens count if the sum holds them."""


class Perplexity(evaluate.Metric):
    """Perplexity of a whole test set: every token weighs the same, not every text."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions: list[float], references: list[int]) -> dict[str, float]:
        """Compute the perplexity of all texts together, and the nats per token it comes from."""
        if min(references) < 0 or sum(references) == 0:
            raise ValueError("`references` must be numbers of tokens, some above 0.")
        nats = math.fsum(predictions) / sum(references)
        return {"perplexity": math.exp(nats), "nats_per_token": nats}
