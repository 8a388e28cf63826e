"""A translator of sentences: a model and its tokenizer behind one `translate`.

Shapes: S source tokens, T target tokens, H units.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from hf_qrnn.data.box import box_names, locate
from hf_qrnn.data.flags import typed
from hf_qrnn.data.hub_replies import hub_answer, split_revision
from hf_qrnn.data.symbols import encode_sources, languages
from hf_qrnn.data.texts import list_of_texts
from hf_qrnn.data.tokenization import check_tokenizer, decode_batch
from hf_qrnn.data.translations import Translation, token_pieces

from .ensemble import Ensemble, check_same_tokenizers
from .search import generate_hypotheses

# Of an owner. A mistyped path or name of the box does not fit: the Hub is not asked for it.
_HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*(@[\w./-]+)?")


@dataclass(frozen=True)
class AttentionMap:
    """Attention weights of one translation.

    Attributes:
        source_tokens: S texts: what each token adds to the sentence, end token included; a token
            that ends inside a character is "", the character belongs to the one that completes it.
        target_tokens: T texts, the same of the translation; its end token only if the model
            wrote one.
        weights: (T, S) float32 on the CPU, the mean over heads and attending layers; a row adds
            up to 1.
    """

    source_tokens: list[str]
    target_tokens: list[str]
    weights: torch.Tensor


class Translator:
    """A translation model with its tokenizer, in evaluation mode.

    Args:
        model: A sequence-to-sequence model, or an `Ensemble` of several.
        tokenizer: The tokenizer it was trained with.

    Raises:
        ValueError: If the tokenizer has no end token.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model = model.train(False)
        self.tokenizer = check_tokenizer(tokenizer)

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages whose tags the model knows; none where it needs no language."""
        return languages(self.tokenizer)

    def check_language(self, language: str | None) -> None:
        """Find out whether `translate` would take a language, before anything is written.

        Raises:
            ValueError: If it is missing, unknown or too much.
        """
        encode_sources(self.tokenizer, [""], language)

    def translate(
        self,
        texts: Iterable[str],
        *,
        language: str | Sequence[str] | None = None,
        num_beams: int = 1,
        num_return_sequences: int = 1,
        max_new_tokens: int | None = None,
        batch_size: int = 32,
        on_batch: Callable[[int], None] | None = None,
    ) -> list[list[Translation]]:
        """Translate texts; a result does not depend on the batch it was computed in.

        Args:
            texts: Sentences. One without anything but white space gives empty translations.
            language: The language of all texts, or of each, for a model that has `languages`.
            num_beams: Beams; 1 is greedy search.
            num_return_sequences: Translations a text, best first; at most `num_beams`.
            max_new_tokens: The most tokens of a translation, its end token included; None = what
                the model's generation config says (`limits_qrnn.py`).
            batch_size: Texts a batch.
            on_batch: Called with a number of texts whenever they are done.

        Returns:
            For every text its `num_return_sequences` translations.

        Raises:
            TypeError: If `texts` is one string, or gives something else than strings.
            ValueError: If a number is out of range, a text is not valid Unicode, or a language is
                missing, unknown or too much.
        """
        texts = list_of_texts(texts)
        rows = encode_sources(self.tokenizer, texts, language)
        # A model makes up a sentence for an empty source.
        filled = [index for index, text in enumerate(texts) if text.strip()]
        results = [[Translation("", 0.0)] * num_return_sequences for _ in texts]
        if on_batch is not None and len(filled) < len(texts):
            on_batch(len(texts) - len(filled))
        hypotheses = generate_hypotheses(
            self.model,
            [rows[index] for index in filled],
            num_beams=num_beams,
            num_return_sequences=num_return_sequences,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            on_batch=on_batch,
        )
        unknown = self.tokenizer.unk_token_id  # None is in no list of ids
        for index, found in zip(filled, hypotheses, strict=True):
            outputs = decode_batch(self.tokenizer, [hypothesis.ids for hypothesis in found])
            results[index] = [
                Translation(text, one.score, one.is_cut, one.log_probability, unknown in one.ids)
                for text, one in zip(outputs, found, strict=True)
            ]
        return results

    @torch.no_grad()
    def attention(
        self, source: str, *, language: str | None = None, num_beams: int = 1
    ) -> AttentionMap:
        """Translate `source` and read the attention (Eq. 8 of 1611.01576) along the translation.

        The model is run a second time over its own translation, all steps at once. An ensemble's
        weights are the mean of its members'.

        Raises:
            ValueError: If `source` has no text, `num_beams` is below 1, the model returns no
                attention weights, or the language is missing, unknown or too much.
        """
        ids = self._encode(source, language)
        best = generate_hypotheses(self.model, [ids], num_beams=num_beams)[0][0]
        start = self.model.generation_config.decoder_start_token_id
        # A translation that was cut has no end token, so none is looked at.
        targets = list(best.ids)
        if not best.is_cut:
            targets.append(int(self.tokenizer.eos_token_id))
        device = self.model.device
        output = self.model(
            input_ids=torch.tensor([ids], device=device),
            # Step t reads target t - 1 and predicts, with the weights of row t, target t.
            decoder_input_ids=torch.tensor([[start, *targets[:-1]]], device=device),
            output_attentions=True,
            use_cache=False,
        )
        # Not every model gives weights for all of its layers.
        layers = [layer for layer in output.cross_attentions or () if layer is not None]
        if not layers:
            raise ValueError("`model` must return cross-attentions, but returns none.")
        weights = torch.stack([layer[0].float().mean(0) for layer in layers]).mean(0)  # (T, S)
        return AttentionMap(self._pieces(ids), self._pieces(targets), weights.cpu())

    @torch.no_grad()
    def hidden_states_map(
        self, text: str, *, language: str | None = None
    ) -> tuple[list[str], torch.Tensor]:
        """Return the states of the encoder's last layer over `text`: Fig. 3 of 1611.01576.

        Paper: the cell states c_t of a classifier. Here: the encoding h_t, which is what the
        decoder sees.

        Returns:
            S tokens as in `AttentionMap`, and states (S, H), float32 on the CPU.

        Raises:
            ValueError: If `text` has no text, the language is missing, unknown or too much, or the
                model is an ensemble.
        """
        if isinstance(self.model, Ensemble):
            raise ValueError(
                "`model` must be one model to show its states, but is an ensemble of "
                f"{len(self.model.members)}."
            )
        ids = self._encode(text, language)
        encoder: Any = self.model.get_encoder()
        output = encoder(input_ids=torch.tensor([ids], device=self.model.device))
        return self._pieces(ids), output.last_hidden_state[0].float().cpu()

    def _encode(self, text: str, language: str | None) -> list[int]:
        if not text.strip():
            raise ValueError(f"The sentence must have text, but is {text!r}.")
        return encode_sources(self.tokenizer, [text], language)[0]

    def _pieces(self, ids: Sequence[int]) -> list[str]:
        return token_pieces(
            lambda own: str(self.tokenizer.decode(own, clean_up_tokenization_spaces=False)), ids
        )


def load_translator(
    name_or_path: str,
    *others: str,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    revision: str | None = None,
) -> Translator:
    """Load a translation model and its tokenizer from a folder or the Hub, or several as one.

    No code that lies beside the weights is run: QRNN models use the code of this package.

    Args:
        name_or_path: A folder with a saved model, the name of one in the box like "de-en", or a
            name on the Hub like "someone/qrnn-de-en" or "someone/qrnn-de-en@v1.0".
        others: More of them, whose log-probabilities are averaged at every step (`ensemble.py`);
            all must have the same tokenizer.
        device: Where to compute; None is the GPU if there is one, else the CPU.
        dtype: Precision of the weights; None is the one they were saved in, and float32 on a CPU
            where that is a half precision, as the engine computes.
        revision: Branch, tag or commit on the Hub, where the name has none.

    Raises:
        ValueError: If there is no such model, the Hub cannot be reached, it is not a model that
            translates, the device is not there, or tokenizers differ.
    """
    # Before a download of a gigabyte that would find no device.
    place = _device(device)
    names = [str(name) for name in (name_or_path, *others)]
    loaded = [_load_model(name, place, dtype, revision) for name in names]
    with typed(tokenizer="name_or_path"):
        members = [Translator(model, tokenizer) for model, tokenizer in loaded]
    if not others:
        return members[0]
    check_same_tokenizers([member.tokenizer for member in members], names)
    return Translator(Ensemble([member.model for member in members]), members[0].tokenizer)


def _load_model(
    name: str, place: torch.device, dtype: torch.dtype | None, revision: str | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load one model and its tokenizer."""
    kind = "a folder with a saved translation model or the name of one on the Hub"
    found = locate(name)
    if not Path(found).exists():
        if not _HUB_NAME.fullmatch(found):
            box = f" (in the box are {', '.join(box_names())})" if "/" not in found else ""
            raise ValueError(f"`name_or_path` must be {kind}, but {found!r} is not there{box}.")
        found, named = split_revision(found)
        revision = named or revision
    # False, not None: None asks the user whether to run the code beside the weights.
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": False}
    try:
        model, report = AutoModelForSeq2SeqLM.from_pretrained(
            found,
            dtype="auto" if dtype is None else dtype,
            output_loading_info=True,
            **options,
        )
        tokenizer = AutoTokenizer.from_pretrained(found, **options)
    except Exception as error:  # `tokenizers` raises plain Exception for a broken file
        answered = None if Path(found).exists() else hub_answer(error, found, revision)
        raise ValueError(
            f"`name_or_path` must be {kind}, but is {name!r}: {answered or _reason(error)}"
        ) from error
    # A language model or classifier loads too, with random weights for what it lacks.
    missing = sorted(report["missing_keys"])
    if missing:
        saved = (model.config.architectures or [type(model).__name__])[0]
        is_other = "" if saved == type(model).__name__ else f"is a {saved}, which "
        raise ValueError(
            f"`name_or_path` must be {kind}, but {name!r} {is_other}lacks "
            f"{len(missing)} of its weights, {missing[0]!r} for one."
        )
    return _placed(model, place, keep=dtype is not None), tokenizer


def _placed(model: Any, place: torch.device, *, keep: bool) -> PreTrainedModel:
    """Move a model to its device; on a CPU half precision becomes float32, unless it is to stay."""
    is_half = model.dtype in (torch.bfloat16, torch.float16)
    # What is quantized has a precision of its own, and must not be cast.
    if keep or place.type != "cpu" or not is_half or getattr(model, "is_quantized", False):
        return model.to(place)
    return model.to(place, torch.float32)


def _device(given: str | torch.device | None) -> torch.device:
    if given is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(given)
        # "cuda:7" is a device to torch until something is put there.
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built for CUDA
        raise ValueError(
            f"`device` must be a device of this machine such as 'cpu', but is {str(given)!r}."
        ) from error
    return device


def _reason(error: Exception) -> str:
    """Return the first sentence of transformers' error, which may fill a page."""
    first = str(error).strip().split("\n", 1)[0].split(". ", 1)[0]
    return first.rstrip(".") + "."
