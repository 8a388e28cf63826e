"""Reads config.json of a saved translation model.

What the engine cannot do is refused by one sentence that names the field: a field that were passed
over would give other translations than the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any

from hf_qrnn.data.json_files import read_json

NUM_GATES = {"f": 2, "fo": 3, "ifo": 4}
"""Gates of each pooling kind, in the order z, f, o, i (Eqs. 3 to 5 of arXiv 1611.01576)."""

_SIZES = {
    "vocab_size": 187,
    "embedding_size": 320,
    "hidden_size": 320,
    "encoder_layers": 4,
    "decoder_layers": 4,
    "num_attention_heads": 1,
    "feed_forward_size": 0,
}
_SWITCHES = {
    "dense_connections": False,
    "encoder_causal": False,
    "encoder_bidirectional": False,
    "reverse_source": True,
    "residual": False,
    "rms_norm": False,
    "attention_scaling": False,
    "tie_word_embeddings": False,
}
# Fields that change nothing here: of training, of other heads, of transformers.
_IDLE = (
    "encoder_kernel_sizes decoder_kernel_sizes pooling attention_layers classifier_pooling"
    " classifier_dropout zoneout dropout embedding_dropout locked_dropout initializer_range"
    " forget_bias use_cache pool_backend"
    " is_encoder_decoder is_decoder pad_token_id eos_token_id bos_token_id decoder_start_token_id"
    " architectures auto_map model_type dtype torch_dtype transformers_version num_labels id2label"
    " label2id output_attentions output_hidden_states return_dict problem_type tokenizer_class"
    " chunk_size_feed_forward task_specific_params finetuning_task prefix torchscript"
)


@dataclass(frozen=True)
class Settings:
    """The fields of a config that decide what is computed; see `QRNNConfig`.

    Attributes:
        attends_everywhere: Whether every decoder layer has a block of attention behind it
            (`attention_layers="all"`); else the last one attends inside (Eq. 8).
    """

    vocab_size: int
    embedding_size: int
    hidden_size: int
    encoder_kernel_sizes: tuple[int, ...]
    decoder_kernel_sizes: tuple[int, ...]
    num_attention_heads: int
    feed_forward_size: int
    pooling: str
    attends_everywhere: bool
    dense_connections: bool
    encoder_causal: bool
    encoder_bidirectional: bool
    reverse_source: bool
    residual: bool
    rms_norm: bool
    attention_scaling: bool
    tie_word_embeddings: bool

    @property
    def score_scale(self) -> float:
        """The factor on attention's scores."""
        head_size = self.hidden_size // self.num_attention_heads
        return float(head_size**-0.5) if self.attention_scaling else 1.0


def require(name: str, rule: str, value: object, holds: bool) -> None:
    """Raise ValueError with the sentence of a wrong field unless `holds`."""
    if not holds:
        raise ValueError(f"`{name}` must be {rule}, but is {value!r}.")


def check_count(name: str, value: object, *, or_none: bool = False) -> None:
    """Raise ValueError unless `value` is a whole number of at least 1, of Python's or NumPy's."""
    if or_none and value is None:
        return
    if not isinstance(value, Integral) or isinstance(value, bool):
        require(name, "an integer of at least 1", value, False)
    require(name, "at least 1", value, int(value) >= 1)  # type: ignore[call-overload]


def read_settings(folder: Path) -> tuple[Settings, dict[str, Any]]:
    """Read config.json: what it says to compute, and all of its fields.

    Raises:
        ValueError: If it is damaged, or the engine cannot do what a field says.
    """
    # transformers loads another model for it, and what it adds.
    adapter = (folder / "adapter_config.json").is_file()
    require("path", "a model without an adapter for the engine", str(folder), not adapter)
    config = read_json(folder / "config.json")
    return settings_of(config), config


def settings_of(config: Mapping[str, Any]) -> Settings:
    """Read what the fields of a saved config say to compute.

    Raises:
        ValueError: If a field is wrong, or the engine cannot do what it says.
    """
    kind, translates = config.get("model_type"), config.get("is_encoder_decoder", True)
    require("model_type", "'qrnn' for the engine", kind, kind == "qrnn")
    rule = "true for the engine, which translates"
    require("is_encoder_decoder", rule, translates, translates is True)
    for name, value in config.items():
        known = name in _SIZES or name in _SWITCHES or name in _IDLE.split() or name.startswith("_")
        require(name, "absent for the engine, which does not know it", value, known)
    sizes: dict[str, Any] = {name: _size(config, name, default) for name, default in _SIZES.items()}
    switches: dict[str, Any] = {
        name: config.get(name, default) for name, default in _SWITCHES.items()
    }
    for name, switch in switches.items():
        require(name, "a boolean", switch, isinstance(switch, bool))
    pooling = config.get("pooling", "fo")
    kinds = tuple(NUM_GATES)
    require("pooling", f"one of {', '.join(map(repr, kinds))}", pooling, pooling in kinds)
    attention = config.get("attention_layers", "last")
    require("attention_layers", "one of 'last', 'all'", attention, attention in ("last", "all"))
    _check_combinations(sizes, switches)
    kernels = {
        part: _kernel_sizes(config, part, sizes.pop(f"{part}_layers"))
        for part in ("encoder", "decoder")
    }
    return Settings(
        encoder_kernel_sizes=kernels["encoder"],
        decoder_kernel_sizes=kernels["decoder"],
        pooling=pooling,
        attends_everywhere=attention == "all",
        **sizes,
        **switches,
    )


def _size(config: Mapping[str, Any], name: str, default: int) -> int:
    value = config.get(name, default)
    least = 0 if name == "feed_forward_size" else 1
    fits = type(value) is int and least <= value < 2**31
    require(name, f"an integer of at least {least}", value, fits)
    return int(value)


def _kernel_sizes(config: Mapping[str, Any], part: str, num_layers: int) -> tuple[int, ...]:
    name = f"{part}_kernel_sizes"
    given = config.get(name)
    # Section 3.3 of the paper: 6 in the first encoder layer, 2 in all others.
    sizes = [6 if part == "encoder" and not i else 2 for i in range(min(num_layers, 2**16))]
    if given is not None:
        sizes = given if isinstance(given, list) else [given] * len(sizes)
    fits = len(sizes) == num_layers and all(type(k) is int and 1 <= k < 2**16 for k in sizes)
    require(name, f"an integer of at least 1 or a list of {num_layers} of them", given, fits)
    return tuple(sizes)


def _check_combinations(sizes: Mapping[str, int], switches: Mapping[str, bool]) -> None:
    hidden, heads = sizes["hidden_size"], sizes["num_attention_heads"]
    both = switches["dense_connections"] and switches["residual"]
    require("dense_connections", "False when `residual` is True", True, not both)
    odd = switches["encoder_bidirectional"] and hidden % 2 == 1
    require("hidden_size", "even when `encoder_bidirectional` is True", hidden, not odd)
    rule = f"a divisor of `hidden_size` ({hidden})"
    require("num_attention_heads", rule, heads, hidden % heads == 0)
    least = sizes["decoder_layers"]
    depth = sizes["encoder_layers"]
    require("encoder_layers", f"at least `decoder_layers` ({least})", depth, depth >= least)
