"""The models of bench_decoding.py in their folders, and everybody who can search with one.

All weights are random, and the end token is never chosen: how long a target becomes is the
benchmark's choice. Output layers are made so that targets are no one token for ever, and that the
likeliest tokens are far apart, where the weights that models begin with make them nearly equal:
another order of additions would find other targets. A decoder is a function from sources and a
`Task` to the ids of the targets.
"""

from __future__ import annotations

import contextlib
import importlib
import io
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from bench_training import VOCABULARY, Sizes, marian, modern, paper
from equal_sizes import count_parameters
from pronunciation_models import make_lstm
from torch import nn
from transformers import GenerationMixin, MarianConfig, MarianMTModel, PreTrainedModel

from hf_qrnn import QRNNConfig, QRNNForConditionalGeneration, train_character_tokenizer
from hf_qrnn.cli.main import main as hf_qrnn_command
from hf_qrnn.engine import Translator

PAD, EOS = 0, 1
NEVER = -1e4  # the bias of what must not be chosen
SPREAD = 3.0  # standard deviation of logits
DTYPES = ("float32", "bfloat16", "int8")
ENGINES = tuple(f"engine {dtype}" for dtype in DTYPES)
GENERATE, REFERENCE, MARIAN, LSTM = "generate()", "reference", "Marian", "nn.LSTM"
CT2 = ("CTranslate2 float32", "CTranslate2 int8")
KINDS = ("paper", "modern", "fast")
# 196 characters, of which German is written.
CHARACTERS = "".join(map(chr, (*range(0x20, 0x7F), *range(0xA1, 0xA1 + VOCABULARY - 99))))

Ids = list[list[int]]


class Task(NamedTuple):
    """A size of what is decoded: rows of as many beams, characters of a source and of a target."""

    rows: int
    beams: int
    source: int
    target: int


Decode = Callable[[Ids, Task], Ids]


class MissingError(Exception):
    """Somebody who is not installed, or not there yet."""


class Reference(QRNNForConditionalGeneration):
    """`generate()` as it was before decoding steps were fused and sources shared by beams.

    A listener sits at every decoder layer, so that each must be called as a module, and every
    beam gets a copy of its source, as transformers makes one.

    Attributes:
        num_heard: Calls of layers so far.
    """

    _auto_class = None
    _expand_inputs_for_generation: Any = GenerationMixin._expand_inputs_for_generation

    def __init__(self, config: QRNNConfig) -> None:
        super().__init__(config)
        self.num_heard = 0
        for layer in self.model.decoder.layers:
            layer.register_forward_pre_hook(self._hear)
            layer.layer.register_forward_pre_hook(self._hear)

    def _hear(self, module: nn.Module, arguments: Any) -> None:
        self.num_heard += 1


# ------------------------------------------------------------------ our models


def make_model(kind: str, sizes: Sizes, depths: tuple[int, int]) -> QRNNForConditionalGeneration:
    """Make the paper's or the modern model, or "fast", the modern one with `depths` layers."""
    torch.manual_seed(0)
    made: Any = (paper if kind == "paper" else modern)(sizes)
    if kind == "fast":
        encoder, decoder = depths
        fields = {**made.config.to_diff_dict(), "encoder_layers": encoder}
        fields |= {"decoder_layers": decoder, "encoder_kernel_sizes": [4, *[2] * (encoder - 1)]}
        made = QRNNForConditionalGeneration(QRNNConfig(**fields))
    return spread_out(made.eval())


@torch.no_grad()
def spread_out(model: Any) -> Any:
    """Scale an output layer so that logits are spread as those of trained models, and none ends."""
    ids = torch.arange(4, VOCABULARY)[None]
    logits = model(input_ids=ids, decoder_input_ids=ids).logits
    model.lm_head.weight.mul_(SPREAD / logits.std())
    model.lm_head.bias[EOS] = NEVER
    return model


def step_numbers(model: QRNNForConditionalGeneration) -> int:
    """Count the weights that a decoding step must read: not those that are read once a source."""
    once = ("encoding.weight", "key_value.weight")
    names = dict(model.model.decoder.named_parameters())
    layers = sum(p.numel() for name, p in names.items() if not name.endswith(once))
    return layers + sum(p.numel() for p in model.lm_head.parameters())


def save(model: QRNNForConditionalGeneration, folder: Path, dtype: str) -> None:
    """Save a model in a dtype, with its tokenizer.

    Raises:
        MissingError: If this version has no int8.
    """
    if dtype == "int8":
        whole = folder.with_name(f"{folder.name}-whole")
        save(model, whole, "float32")
        words = ["quantize", str(whole), "-o", str(folder)]
        said = io.StringIO()
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            status = hf_qrnn_command(words)
        if "invalid choice: 'quantize'" in said.getvalue():
            raise MissingError("this version has no `hf-qrnn quantize`")
        if status:
            raise RuntimeError(f"`hf-qrnn quantize` failed: {said.getvalue().strip()}")
        return
    # Of a copy: the model is used in float32 too.
    copy = type(model)(model.config)
    copy.load_state_dict(model.state_dict())
    copy.to(getattr(torch, dtype)).save_pretrained(folder)
    train_character_tokenizer([CHARACTERS]).save_pretrained(folder)


# ------------------------------------------------------------------ who decodes


def by_engine(translator: Translator, sources: Ids, task: Task) -> Ids:
    """Search by the engine."""
    found = translator.generate(
        sources, num_beams=task.beams, max_new_tokens=task.target, batch_size=task.rows
    )
    return [list(row[0].ids) for row in found]


@torch.no_grad()
def by_generate(model: PreTrainedModel, sources: Ids, task: Task) -> Ids:
    """Search by `generate()`, whoever's model it is."""
    ids = torch.tensor(sources)
    found = model.generate(  # type: ignore[operator]
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        num_beams=task.beams,
        do_sample=False,
        max_length=None,
        max_new_tokens=task.target,
    )
    rows: Ids = found[:, 1:].tolist()
    return rows


def by_ctranslate2(translator: Any, sources: Ids, task: Task) -> Ids:
    """Search by CTranslate2, whose tokens are named by our ids."""
    found = translator.translate_batch(
        [list(map(str, source)) for source in sources],
        beam_size=task.beams,
        max_decoding_length=task.target,
        min_decoding_length=task.target,
        max_input_length=0,
    )
    return [list(map(int, row.hypotheses[0])) for row in found]


def make_marian(sizes: Sizes, parameters: int) -> MarianMTModel:
    """Make a Transformer with `parameters` that are trained; its tables of positions are none."""
    torch.manual_seed(0)
    positions = 2 * 2048 * sizes.hidden
    model: Any = marian(sizes, parameters + positions)
    with torch.no_grad():
        model.final_logits_bias[0, [PAD, EOS]] = NEVER
        # One table for both ends would make the likeliest token that which was read last.
        last = model.model.decoder.layers[-1].final_layer_norm
        last.weight.mul_(-SPREAD / model.config.init_std / sizes.hidden**0.5)
    return model.eval()


class _Names:
    """The tokenizer that CTranslate2's converter asks: every token is called by our id."""

    eos_token, unk_token = str(EOS), "2"

    def __init__(self, size: int) -> None:
        self.size = size

    def get_vocab(self) -> dict[str, int]:
        """Return the new ids of the tokens."""
        return {"<pad>" if new == self.size - 1 else str(new + 1): new for new in range(self.size)}


def convert(model: MarianMTModel, folder: Path) -> None:
    """Write a Transformer in CTranslate2's form.

    Its converter takes the pad to be the last token and drops it, so the first goes there.
    """
    fields = {"pad_token_id": VOCABULARY - 1, "decoder_start_token_id": VOCABULARY - 1}
    turned = MarianMTModel(MarianConfig(**{**model.config.to_dict(), **fields, "eos_token_id": 0}))
    state = model.state_dict()
    for name, values in state.items():
        if name.endswith(("shared.weight", "embed_tokens.weight", "lm_head.weight", "logits_bias")):
            state[name] = values.roll(-1, 1 if name.endswith("bias") else 0)
    turned.load_state_dict(state)
    turned.eval()
    turned.config.save_pretrained(folder)
    converter = importlib.import_module("ctranslate2.converters").TransformersConverter(str(folder))
    converter.load_model = lambda *_, **__: turned
    converter.load_tokenizer = lambda *_, **__: _Names(VOCABULARY)
    converter.convert(str(folder), force=True)


class Decoders:
    """Everybody who decodes, made when first asked for.

    Args:
        folder: Where models are saved.
        sizes: Of each kind of model.
        depths: Layers of the sides of "fast".
    """

    def __init__(self, folder: Path, sizes: dict[str, Sizes], depths: tuple[int, int]) -> None:
        self._folder, self._sizes, self._depths = folder, sizes, depths
        self._models: dict[str, QRNNForConditionalGeneration] = {}
        self._saved: dict[str, Path | MissingError] = {}
        self._made: dict[tuple[str, str], Decode] = {}

    def model(self, kind: str) -> QRNNForConditionalGeneration:
        """Return our model of a kind."""
        if kind not in self._models:
            self._models[kind] = make_model(kind, self._sizes[kind], self._depths)
        return self._models[kind]

    def folder(self, kind: str, dtype: str) -> Path:
        """Return the folder of our model in a dtype."""
        name = f"{kind}-{dtype}"
        if name not in self._saved:
            self._saved[name] = self._folder / name
            try:
                save(self.model(kind), self._folder / name, dtype)
            except MissingError as error:
                self._saved[name] = error
        found = self._saved[name]
        if isinstance(found, MissingError):
            raise found
        return found

    def get(self, kind: str, by: str) -> Decode:
        """Return who decodes.

        Raises:
            MissingError: If it is not here.
        """
        if (kind, by) not in self._made:
            self._made[kind, by] = self._make(kind, by)
        return self._made[kind, by]

    def truth(self, kind: str, by: str) -> Decode | None:
        """Return who computes the same otherwise; None of those who are alone."""
        if by in (GENERATE, ENGINES[0]):
            return self.get(kind, REFERENCE)
        if by in ENGINES:
            return self.get(kind, f"generate() of {by.removeprefix('engine ')}")
        return self.get(kind, MARIAN) if by in CT2 else None

    def _make(self, kind: str, by: str) -> Decode:
        if by in ENGINES:
            folder = self.folder(kind, by.removeprefix("engine "))
            return partial(by_engine, Translator(folder, backend="native"))
        if by in CT2:
            return partial(by_ctranslate2, self._ctranslate2(by.split()[1]))
        return partial(by_generate, self._torch_model(kind, by))

    def _torch_model(self, kind: str, by: str) -> PreTrainedModel:
        ours = self.model(kind)
        if by == GENERATE:
            return ours
        if by == REFERENCE:
            reference = Reference(ours.config)
            reference.load_state_dict(ours.state_dict())
            return reference.eval()
        if by == MARIAN:
            assert kind == "modern", "one Transformer is compared, that of the modern model's size"
            return self._marian
        if by == LSTM:
            torch.manual_seed(0)
            lstm: PreTrainedModel = spread_out(make_lstm(ours).eval())
            return lstm
        folder = self.folder(kind, by.removeprefix("generate() of "))
        model = QRNNForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
        return model.eval()

    @cached_property
    def _marian(self) -> MarianMTModel:
        return make_marian(self._sizes["modern"], count_parameters(self.model("modern")))

    def _ctranslate2(self, dtype: str) -> Any:
        try:
            package = importlib.import_module("ctranslate2")
        except ImportError as error:
            raise MissingError("not installed") from error
        folder = self._folder / "ctranslate2"
        if not (folder / "model.bin").is_file():
            convert(self._marian, folder)
        one = {"inter_threads": 1, "intra_threads": 1}
        return package.Translator(str(folder), compute_type=dtype, **one)


def agreement(found: Sequence[Sequence[int]], wanted: Sequence[Sequence[int]]) -> float:
    """Return the share of tokens that are those wanted, place by place."""
    pairs = [(a, b) for x, y in zip(found, wanted, strict=True) for a, b in zip(x, y, strict=True)]
    return sum(a == b for a, b in pairs) / len(pairs)
