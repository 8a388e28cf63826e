#!/usr/bin/env python
"""Models to compare with, and the training scripts with such a model in them.

    python benchmarks/controls.py language_model --arch lstm --config scripts/configs/FILE.yaml ...
    python benchmarks/controls.py classifier --arch lstm --config ...
    python benchmarks/controls.py translation --arch transformer --config ...

TASK is the script scripts/train_TASK.py, whose own `main` runs with the flags behind --arch: the
same data, loop and updates. The model has about as many parameters as the QRNN of those flags.

As classes: a QRNN that pools in a Python loop, and a translator of LSTM layers.

Shapes: B batch, T (target) time, S source length, E input channels, H units, V vocabulary.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from stored_rows import OneSentenceParser
from torch import nn

from hf_qrnn import QRNN
from hf_qrnn.training.stopping import end_process

SCRIPTS = Path(__file__).parents[1] / "scripts"
ARCHITECTURES = ("lstm", "transformer")


@dataclass(frozen=True)
class Control:
    """The controls of a script.

    Attributes:
        task: The name of its task's class, in the script.
        module: The module beside this one that has the controls' tasks.
        classes: Their names in it, by architecture.
    """

    task: str
    module: str
    classes: dict[str, str]


_CLASSES = {"lstm": "LSTMTask", "transformer": "TransformerTask"}
CONTROLS = {
    "language_model": Control("LanguageModelTask", "language_model_controls", _CLASSES),
    "classifier": Control("ClassificationTask", "classifier_controls", _CLASSES),
    "translation": Control("TranslationTask", "pronunciation_models", _CLASSES),
}
"""The scripts that there are controls for, by TASK."""


def load_script(task: str) -> ModuleType:
    """Load the training script of a task as a module of its own."""
    path = SCRIPTS / f"train_{task}.py"
    spec = importlib.util.spec_from_file_location(f"control_of_{path.stem}", path)
    assert spec is not None, path
    assert spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def control_task(task: str, arch: str) -> type:
    """Return the task that has the control in the place of the QRNN."""
    control = CONTROLS[task]
    found: type = getattr(importlib.import_module(control.module), control.classes[arch])
    return found


def run_control(task: str, arch: str, argv: Sequence[str]) -> int:
    """Run the script's own `main` with the control in the place of the QRNN."""
    script = load_script(task)
    setattr(script, CONTROLS[task].task, control_task(task, arch))
    status: int = script.main(argv)
    return status


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; flags that are not this program's are the script's."""
    parser = OneSentenceParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        epilog="The other flags are those of scripts/train_TASK.py.",
    )
    parser.add_argument("task", metavar="TASK", choices=tuple(CONTROLS))
    parser.add_argument("--arch", required=True, choices=ARCHITECTURES)
    options, flags = parser.parse_known_args(argv)
    return run_control(options.task, options.arch, flags)


class LoopQRNN(nn.Module):
    """A layer of k = 2 and fo-pooling, computed as torchqrnn does on a CPU.

    Written from its description: time-major; the previous inputs concatenated to the inputs and one
    linear layer for all gates; each activation an operation of its own; a loop over time of
    elementwise operations that autograd records; a stack of the results. Its gate f writes where
    the paper's keeps, c_t = f_t . z_t + (1 - f_t) . c_{t-1}.

    Args:
        layer: A `QRNN` of one layer whose function this one has too.
    """

    def __init__(self, layer: QRNN) -> None:
        super().__init__()
        given = (layer.num_layers, layer.bidirectional, layer.kernel_size, layer.pooling)
        if given != (1, False, 2, "fo") or not layer.bias:
            raise ValueError(
                "`layer` must have one layer, one direction, a bias, `kernel_size` 2 and `pooling` "
                f"'fo', but has {given}, and `bias` {layer.bias}."
            )
        size, convolution = layer.hidden_size, layer.l0.convolution
        self.linear = nn.Linear(2 * layer.input_size, 3 * size, dtype=convolution.weight.dtype)
        with torch.no_grad():
            for name, parameter in self.linear.named_parameters():
                values = getattr(convolution, name).detach().clone()
                values[size : 2 * size].neg_()  # 1 - sigmoid(x) = sigmoid(-x)
                parameter.copy_(values)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Map (T, B, E) to h (T, B, H) and the last c (B, H)."""
        previous = torch.cat([torch.zeros_like(x[:1]), x[:-1]])  # (T, B, E)
        gates = self.linear(torch.cat([previous, x], dim=2))  # (T, B, 3H)
        z, f, o = gates.chunk(3, dim=2)
        z, f, o = z.tanh(), f.sigmoid(), o.sigmoid()
        c: torch.Tensor | None = None
        states = []
        for written, f_t in zip((f * z).unbind(0), f.unbind(0), strict=True):
            c = written if c is None else written + (1 - f_t) * c
            states.append(c)
        return o * torch.stack(states), states[-1]


class TranslatorOutput(NamedTuple):
    """Loss in nats per token, and logits (T, B, V)."""

    loss: torch.Tensor
    logits: torch.Tensor


class LSTMTranslator(nn.Module):
    """The paper's translation model with LSTM layers in place of quasi-recurrent ones.

    As in section 3.3 of 1611.01576: one embedding, the source reversed, as many decoder layers as
    encoder layers, each starting from the final state of its encoder layer, and the attention of
    Eq. 8 behind the last one: dot product, h = W_k k + W_c d with d the decoder's output. Both
    stacks are one call of `nn.LSTM` over the whole sequence, time first, as it likes it.
    """

    def __init__(self, vocab_size: int = 187, hidden_size: int = 320, num_layers: int = 4) -> None:
        super().__init__()
        self.shared = nn.Embedding(vocab_size, hidden_size)
        self.encoder = nn.LSTM(hidden_size, hidden_size, num_layers)
        self.decoder = nn.LSTM(hidden_size, hidden_size, num_layers)
        self.context = nn.Linear(hidden_size, hidden_size, bias=False)  # W_k
        self.cell = nn.Linear(hidden_size, hidden_size, bias=False)  # W_c
        self.lm_head = nn.Linear(hidden_size, vocab_size)

    def forward(
        self, input_ids: torch.Tensor, labels: torch.Tensor, **unused: Any
    ) -> TranslatorOutput:
        """Train on ids (B, S) and labels (B, T); the decoder reads the labels shifted right."""
        source = self.shared(input_ids.flip(1).t())  # (S, B, H)
        start = torch.zeros_like(labels[:, :1])
        # A pad's label is -100, which the loss passes by and an embedding has no row for.
        shifted = torch.cat([start, labels[:, :-1]], dim=1).clamp(min=0)  # (B, T)
        states, final = self.encoder(source)
        d, _ = self.decoder(self.shared(shifted.t()), final)  # (T, B, H)
        keys, query = states.transpose(0, 1), d.transpose(0, 1)
        k = nn.functional.scaled_dot_product_attention(
            query[:, None], keys[:, None], keys[:, None], scale=1.0
        )[:, 0]  # (B, T, H)
        logits = self.lm_head(self.context(k.transpose(0, 1)) + self.cell(d))  # (T, B, V)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels.t().flatten())
        return TranslatorOutput(loss, logits)


if __name__ == "__main__":
    end_process(main)
