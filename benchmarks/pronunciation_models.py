"""The models that are compared in pronunciation: the QRNN, a Transformer and an LSTM.

All are trained by `run_task`: a control is the task of translation with another model in it, of as
many parameters as the QRNN that the same flags describe.

Shapes: B batch, T time, E input channels, H units.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, ClassVar

import torch
from equal_sizes import count_parameters, nearest
from torch import nn
from transformers import MarianConfig, MarianMTModel, PreTrainedModel

from hf_qrnn import QRNNConfig, QRNNForConditionalGeneration
from hf_qrnn.model.layers_qrnn import LayerOutput, LayerState, QRNNLayer
from hf_qrnn.model.losses_qrnn import QRNNSeq2SeqLMOutput, shift_tokens_right, target_loss
from hf_qrnn.model.padding_qrnn import hide_pads
from hf_qrnn.training.processes import Processes
from hf_qrnn.training.translation_task import TranslationTask

ARCHITECTURES = ("qrnn", "transformer", "lstm")
TRANSFORMER_LAYERS, HEADS = 4, 4


# ------------------------------------------------------------------ the Transformer


_LOSS_OPTIONS = {"num_items_in_batch": None, "smoothing": 0.0}


class TransformerPronouncer(MarianMTModel):
    """Marian's Transformer, called with a loss as the training loop calls the QRNN."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model; with labels the loss is that of `hf_qrnn`, smoothing and all."""
        labels = kwargs.pop("labels", None)
        number, smoothing = (kwargs.pop(x, y) for x, y in _LOSS_OPTIONS.items())
        if labels is None:
            return super().forward(*args, **kwargs)
        config: Any = self.config
        start, pad = config.decoder_start_token_id, config.pad_token_id
        kwargs["decoder_input_ids"] = shift_tokens_right(labels, pad, start)
        output = super().forward(*args, **kwargs, use_cache=False)
        loss = target_loss(output.logits, labels, number, smoothing)
        return QRNNSeq2SeqLMOutput(**loss._asdict(), logits=output.logits)


def make_transformer(like: PreTrainedModel) -> TransformerPronouncer:
    """Make a Transformer of about as many parameters as the QRNN `like`, and its dropout.

    As Wu, Cotterell and Hulden (2021) advise for character-level transduction: 4 layers a side, 4
    heads, the feed-forward layers four times as wide as the model, one embedding for all. Theirs
    is 256 wide and has 7.4 million parameters; the width is what is made smaller here.
    """
    config: Any = like.config

    def of(width: int) -> TransformerPronouncer:
        sizes: dict[str, Any] = {
            "d_model": width,
            "max_position_embeddings": 512,
            "scale_embedding": True,
        }
        sizes |= _ids(config)
        for side in ("encoder", "decoder"):
            sizes[f"{side}_layers"], sizes[f"{side}_ffn_dim"] = TRANSFORMER_LAYERS, 4 * width
            sizes[f"{side}_attention_heads"] = HEADS
        return TransformerPronouncer(
            MarianConfig(
                **sizes,
                vocab_size=config.vocab_size,
                dropout=config.dropout,
                attention_dropout=config.dropout,
                activation_dropout=config.dropout,
                activation_function="relu",
                forced_eos_token_id=None,
            )
        )

    return nearest(of, count_parameters(like), step=HEADS)


def _ids(config: Any) -> dict[str, int]:
    names = ("pad_token_id", "eos_token_id", "bos_token_id", "decoder_start_token_id")
    return {name: getattr(config, name) for name in names}


# ------------------------------------------------------------------ the LSTM


class LSTMLayer(nn.Module):
    """One direction of one layer of `nn.LSTM` in the place of a `QRNNLayer`.

    What h~ of Eq. 7 is to the gates, it is to the state here: a decoder's layer begins with
    tanh(V h~), half of it h and half of it c, as is usual for LSTMs.

    Args:
        layer: The layer whose place it takes.
    """

    def __init__(self, layer: QRNNLayer) -> None:
        super().__init__()
        self.hidden_size, self.reverse = layer.hidden_size, layer.reverse
        width = layer.convolution.weight.shape[1] // layer.kernel_size
        self.lstm = nn.LSTM(width, layer.hidden_size, batch_first=True)
        with torch.no_grad():  # a forget gate that begins open, as is usual
            bias = dict(self.lstm.named_parameters())["bias_ih_l0"]  # input, forget, cell, output
            bias[layer.hidden_size : 2 * layer.hidden_size] = 1.0
        self.encoding: nn.Linear | None = None
        if layer.encoding is not None:
            inner = layer.encoding.in_features
            self.encoding = nn.Linear(inner, 2 * layer.hidden_size, bias=False)

    def forward(
        self,
        x: torch.Tensor,
        mask: torch.Tensor | None = None,
        *,
        state: LayerState | None = None,
        gate_bias: torch.Tensor | None = None,
        want_c: bool = False,
        want_o: bool = False,
        want_past: bool = False,
    ) -> LayerOutput:
        """Run over `x` (B, T, E) as `QRNNLayer.forward` does; pads are on the right.

        `state` holds h (B, 1, H) where a QRNN's holds inputs, and c (B, H).
        """
        wants = (want_c, want_o, want_past)
        assert not any(wants), "attention behind every layer asks for h alone"
        start = None
        if state is not None:
            start = (state.inputs.transpose(0, 1).contiguous(), state.c[None].contiguous())
        elif gate_bias is not None:
            h, c = gate_bias.tanh().chunk(2, dim=-1)  # (B, H)
            start = (h[None].contiguous(), c[None].contiguous())
        order = _backwards(x, mask) if self.reverse else None
        out, (h, c) = self.lstm(x if order is None else x.gather(1, order.expand_as(x)), start)
        if order is not None:
            out = out.gather(1, order.expand_as(out))
        out = hide_pads(out, mask)  # (B, T, H)
        return LayerOutput(out, None, None, LayerState(h.transpose(0, 1), c[0]), c[0])


def _backwards(x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Give the places (B, T, 1) that turn each row's real steps round; pads stay behind them."""
    steps = torch.arange(x.shape[1], device=x.device).expand(x.shape[:2])  # (B, T)
    if mask is None:
        return steps.flip(1)[..., None]
    last = mask.sum(1, keepdim=True) - 1
    return torch.where(mask, last - steps, steps)[..., None]


class LSTMPronouncer(QRNNForConditionalGeneration):
    """The QRNN's own model with an LSTM layer in the place of every quasi-recurrent one."""

    # No Auto class knows it, and a folder of it carries no code.
    _auto_class = None

    def __init__(self, config: QRNNConfig) -> None:
        super().__init__(config)
        for layer in self.model.encoder.layers:
            layer.directions = nn.ModuleList(map(LSTMLayer, layer.directions))
        for layer in self.model.decoder.layers:
            layer.layer = LSTMLayer(layer.layer)


def make_lstm(like: PreTrainedModel) -> LSTMPronouncer:
    """Make an LSTM of about as many parameters as the QRNN `like`, equal in all but the width.

    Raises:
        ValueError: If the QRNN's attention needs what an LSTM does not have.
    """
    config: Any = like.config
    if config.attention_layers != "all":
        raise ValueError(
            "`attention_layers` must be 'all' for the LSTM, but is "
            f"{config.attention_layers!r}: Eq. 8 is about the QRNN's gates."
        )

    def of(width: int) -> LSTMPronouncer:
        fields = {**config.to_diff_dict(), "hidden_size": width, "embedding_size": width}
        return LSTMPronouncer(QRNNConfig(**fields))

    # Two directions share the width, and so do the heads.
    step = math.lcm(2, config.num_attention_heads)
    return nearest(of, count_parameters(like), step=step)


# ------------------------------------------------------------------ tasks


class ControlTask(TranslationTask):
    """Translation with another model in it: what is not written here is translation's own."""

    make: ClassVar[Any]
    """Makes the control of the QRNN whose place it takes."""

    def load(self, processes: Processes) -> None:
        """Load the data as translation does, and put the control in the QRNN's place."""
        super().load(processes)
        self.model = type(self).make(self.model)

    def illustrate(self, folder: Path) -> None:
        """Draw nothing: the picture is made by Auto classes, which do not know the model."""


class TransformerTask(ControlTask):
    """Translation by a Transformer."""

    make = staticmethod(make_transformer)


class LSTMTask(ControlTask):
    """Translation by an LSTM."""

    make = staticmethod(make_lstm)


TASKS: dict[str, type[TranslationTask]] = {
    "qrnn": TranslationTask,
    "transformer": TransformerTask,
    "lstm": LSTMTask,
}
"""The task that trains each architecture."""
_CLASSES: dict[str, Any] = {
    "qrnn": QRNNForConditionalGeneration,
    "transformer": TransformerPronouncer,
    "lstm": LSTMPronouncer,
}


def load_model(architecture: str, folder: Path) -> PreTrainedModel:
    """Load the best model of a run."""
    model: PreTrainedModel = _CLASSES[architecture].from_pretrained(folder)
    return model.eval()
