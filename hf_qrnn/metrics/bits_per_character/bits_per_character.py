"""Bits per character from the loss of each text: models of any tokenizer can be compared."""

import math

import datasets
import evaluate

_DESCRIPTION = """\
nats / ln 2 / characters. Models of characters, bytes and words can be compared by it."""

_CITATION = ""

_INPUTS = """\
predictions: negative log-likelihood of each text, in nats, summed over its tokens.
references: the texts; characters are code points, and an end token is no character."""


class BitsPerCharacter(evaluate.Metric):
    """Bits per character of a whole test set: every character weighs the same."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("string")}
            ),
        )

    def _compute(self, predictions: list[float], references: list[str]) -> dict[str, float]:
        """Compute the bits per character of all texts together."""
        characters = sum(map(len, references))
        if characters == 0:
            raise ValueError("`references` must hold a character, but all are empty.")
        return {"bits_per_character": math.fsum(predictions) / math.log(2) / characters}
