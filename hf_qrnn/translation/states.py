"""The states of a classifier over a text, and what it says of it: Fig. 3 of 1611.01576."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_qrnn.data.hub_replies import hub_answer, split_revision
from hf_qrnn.data.tokenization import encode_batch, load_tokenizer
from hf_qrnn.model.modeling_qrnn import QRNNForSequenceClassification


@dataclass(frozen=True)
class StatesMap:
    """The states of a classifier over one text.

    Attributes:
        tokens: S tokens, the end token included; one that the model does not know is "<unk>".
        states: (S, H), the states c_t of the last layer, float32 on the CPU.
        label: The label that the model gives the text.
        probability: Its probability.
    """

    tokens: list[str]
    states: torch.Tensor
    label: str
    probability: float


def load_classifier(
    name_or_path: str,
) -> tuple[QRNNForSequenceClassification, PreTrainedTokenizerBase]:
    """Load a classifier and its tokenizer from a folder or the Hub ("user/name@v1").

    Raises:
        ValueError: If there is no such model, or it is no classifier.
    """
    path, revision = name_or_path, None
    if not Path(path).exists():
        path, revision = split_revision(path)
    options: dict[str, Any] = {} if revision is None else {"revision": revision}
    rule = "`name_or_path` must be a folder with a saved QRNN classifier or the name of one"
    try:
        model, report = QRNNForSequenceClassification.from_pretrained(
            path, output_loading_info=True, **options
        )
        tokenizer = load_tokenizer(path)
    except Exception as error:  # `tokenizers` raises plain Exception for a broken file
        answered = None if Path(path).exists() else hub_answer(error, path, revision)
        reason = answered or str(error).strip().split("\n", 1)[0].rstrip(".") + "."
        raise ValueError(f"{rule}, but is {name_or_path!r}: {reason}") from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise ValueError(f"{rule}, but {name_or_path!r} lacks {missing[0]!r}.")
    return model.eval(), tokenizer


@torch.no_grad()
def classifier_states(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str
) -> StatesMap:
    """Classify a text and read the states c_t of the last layer on the way.

    A layer of two directions has the states of both, side by side. With f-pooling the states are
    what it gives (h = c).

    Raises:
        ValueError: If `text` has no text.
    """
    if not text.strip():
        raise ValueError(f"`text` must have text, but is {text!r}.")
    (ids,) = encode_batch(tokenizer, [text])
    seen: list[torch.Tensor] = []

    def read(layer: Any, args: tuple[Any, ...], _: Any) -> None:
        # The layer once more, by the same inputs: nobody else needs all states of a classifier.
        seen.append(layer.forward(*args, want_c=True).c)

    encoder: Any = model.model.encoder
    hooks = [layer.register_forward_hook(read) for layer in encoder.layers[-1].directions]
    try:
        logits = model(torch.tensor([ids], device=model.device)).logits
    finally:
        for hook in hooks:
            hook.remove()
    shares = logits[0].float().softmax(-1)
    best = int(shares.argmax())
    states = torch.cat(seen, dim=-1)[0].float().cpu()  # (S, H)
    names = [str(name) for name in tokenizer.convert_ids_to_tokens(ids)]
    labels: Any = model.config.id2label
    label = str(labels[best])
    return StatesMap(names, states, label, float(shares[best]))
