"""The words of model cards that depend on the task; `cards.py` has those of every card.

A head's task has its words in `WORDS`, by the head's pipeline tag. Another task writes its own as
`words`, which run.json keeps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class CardWords:
    """The words of one task; each may be left out.

    Attributes:
        does: "a network that ...": `{pair}` is " from de to en" where that is known, `{unit}` what
            a token of the source is, `{target_unit}` one of the target.
        usage: Python that uses `model` and `tokenizer`, with `{sentence}`, which has a tag where
            the model needs one, and `{num_beams}`; empty = that of the head.
        counted: The entry of test.json that counts the test set, which it is called by too.
        rows: A name for the rows of data.
        loss: The unit of the loss.
        speed: The unit of the speed, a second.
        results: A paragraph below the results.
        validations: A sentence above the table of validations.
        limits: More of what the model cannot do, a line each.
    """

    does: str = "encodes texts"
    usage: str = ""
    counted: str = "sentences"
    rows: str = "rows"
    loss: str = "nats per target"
    speed: str = "characters"
    results: str = ""
    validations: str = "Minutes of training alone."
    limits: Sequence[str] = ()


WORDS = {
    "translation": CardWords(
        does="translates{pair}, {unit} in and {target_unit} out",
        usage="""\
inputs = tokenizer(["{sentence}"], return_tensors="pt")
outputs = model.generate(**inputs, num_beams={num_beams})
print(tokenizer.batch_decode(outputs, skip_special_tokens=True))""",
        rows="pairs",
        loss="nats per target token",
        speed="source and target characters",
        results="""\
BLEU and chrF are sacrebleu's on plain text; a number without its signature cannot be compared. For
orientation only: on another data set (IWSLT German-English, TED.tst2014) the paper reports BLEU
19.41 for its character-level QRNN and 16.53 for an LSTM of the same size.""",
        validations=("Greedy search on the first validation sentences; minutes of training alone."),
        limits=(
            "Wrong translations may be fluent.",
            "It translates sentences. Longer texts must be split first.",
        ),
    ),
    "text-generation": CardWords(
        does="continues texts",
        usage="""\
inputs = tokenizer(["{sentence}"], add_special_tokens=False, return_tensors="pt")
outputs = model.generate(**inputs, max_new_tokens=50)
print(tokenizer.batch_decode(outputs, skip_special_tokens=True))""",
        counted="tokens",
        rows="tokens",
        loss="nats per token",
        results="""\
Every token of the test set is predicted once, from all before it. The end of a line is a token,
and a character too. Perplexities can be compared only where the tokens are the same.""",
        limits=("What it writes is likely, not true.",),
    ),
    "text-classification": CardWords(
        does="classifies texts",
        usage="""\
inputs = tokenizer(["{sentence}"], return_tensors="pt")
shares = model(**inputs).logits.softmax(-1)[0].tolist()
print({model.config.id2label[index]: share for index, share in enumerate(shares)})""",
        counted="texts",
        rows="texts",
        loss="nats per text",
        limits=("It knows its labels alone: every text gets one of them.",),
    ),
    "feature-extraction": CardWords(
        usage="""\
inputs = tokenizer(["{sentence}"], return_tensors="pt")
print(model.get_encoder()(**inputs).last_hidden_state)""",
    ),
}
"""The words of each pipeline tag."""

_ANY_USAGE = """\
inputs = tokenizer(["{sentence}"], return_tensors="pt")
print(model(**inputs))"""


def usage_of(words: CardWords, pipeline: str) -> str:
    """Return the program of the card: the task's own, else that of the head."""
    of_head = WORDS.get(pipeline, CardWords()).usage
    return words.usage or of_head or _ANY_USAGE
