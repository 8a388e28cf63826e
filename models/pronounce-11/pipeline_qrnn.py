"""The pipeline task "qrnn-translation": `pipeline("qrnn-translation", model=...)`.

transformers 5 has no translation task any more and refuses to have one under its old name.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import GenerationConfig, Pipeline, StoppingCriteriaList

from .limits_qrnn import RowLimits, end_ids, target_lengths, target_limits

TASK = "qrnn-translation"
_LENGTHS = ("max_length", "max_new_tokens", "generation_config")


class QRNNTranslationPipeline(Pipeline):
    """A pipeline that translates texts with a sequence-to-sequence model and its tokenizer.

    Keywords that are not the pipeline's own (`batch_size`, `num_workers`), given at construction or
    at a call, go to `model.generate`: `num_beams`, `max_new_tokens`, `num_return_sequences`, ...
    A text without anything but white space has empty translations. Where no keyword says how long a
    translation may be, the model's own rule does (`limits_qrnn.py`), row by row.
    """

    _load_tokenizer = True  # type: ignore[assignment]
    _load_processor = False  # type: ignore[assignment]
    _load_image_processor = False  # type: ignore[assignment]
    _load_feature_extractor = False  # type: ignore[assignment]
    # Keywords are passed on as they are: what transformers does with them otherwise differs
    # between its releases.
    _pipeline_calls_generate = False

    def _sanitize_parameters(
        self, **generate_kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        return {}, generate_kwargs, {}

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Translate.

        Args:
            inputs: A text, a list of texts, or a dataset or generator of texts.
            args: Unused, as in every pipeline.
            kwargs: `batch_size`, and keywords of `model.generate`.

        Returns:
            For a text a list of `{"translation_text": ...}`, one for each returned sequence, best
            first. For a list of texts a list of these dictionaries, or of lists of them when more
            than one sequence is returned a text. An iterator of lists for anything else.

        Raises:
            TypeError: If a text is not a string.
        """
        if isinstance(inputs, list) and not inputs:
            return []
        results = super().__call__(inputs, *args, **kwargs)
        if isinstance(inputs, list) and all(len(result) == 1 for result in results):
            return [result[0] for result in results]
        return results

    def preprocess(self, input_: Any, **kwargs: Any) -> dict[str, Any]:
        """Encode one text as ids and mask (1, S)."""
        if not isinstance(input_, str):
            raise TypeError(f"A text must be a string, but is a {type(input_).__name__}.")
        assert self.tokenizer is not None
        encoded = self.tokenizer(input_, return_tensors="pt")
        names = ("input_ids", "attention_mask")
        return {name: encoded[name] for name in names} | {"is_blank": [not input_.strip()]}

    def _forward(self, input_tensors: Any, **generate_kwargs: Any) -> Any:
        """Generate sequences (B, N, T), N of each of the B texts."""
        names = ("input_ids", "attention_mask")
        inputs = {name: input_tensors[name] for name in names}
        limits = None
        if all(generate_kwargs.get(name) is None for name in _LENGTHS):
            config = self.model.generation_config
            limits = target_limits(config, inputs["attention_mask"].sum(1))  # (B,)
            others = generate_kwargs.get("stopping_criteria") or []
            generate_kwargs |= {
                "max_length": None,
                "max_new_tokens": int(limits.max()),
                "stopping_criteria": StoppingCriteriaList([*others, RowLimits(limits)]),
            }
        sequences = self.model.generate(**inputs, **generate_kwargs)  # type: ignore[operator]
        if not isinstance(sequences, torch.Tensor):  # return_dict_in_generate
            sequences = sequences.sequences
        if limits is not None:
            sequences = _cut(sequences, limits, self.model.generation_config)
        rows = inputs["input_ids"].shape[0]
        return {
            "sequences": sequences.reshape(rows, -1, sequences.shape[-1]),
            "is_blank": input_tensors["is_blank"],
        }

    def postprocess(self, model_outputs: Any, **kwargs: Any) -> list[dict[str, str]]:
        """Make one dictionary for each sequence of one text."""
        assert self.tokenizer is not None
        (is_blank,) = model_outputs["is_blank"]
        texts = self.tokenizer.batch_decode(
            model_outputs["sequences"][0],
            skip_special_tokens=True,
            clean_up_tokenization_spaces=False,
        )
        return [{"translation_text": "" if is_blank else text} for text in texts]


def _cut(
    sequences: torch.Tensor, limits: torch.Tensor, generation_config: GenerationConfig
) -> torch.Tensor:
    """Fill sequences (B * N, T) behind the limit (B,) of their rows."""
    ends = end_ids(generation_config)
    fill = generation_config.pad_token_id if generation_config.pad_token_id is not None else ends[0]
    lengths, _ = target_lengths(sequences[:, 1:], limits, ends)
    steps = torch.arange(sequences.shape[1], device=sequences.device)
    return sequences.masked_fill(steps > lengths[:, None], fill)


__all__ = ["TASK", "QRNNTranslationPipeline"]
