"""Options of the training scripts: dataclasses, flags, and YAML files that flags override."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml
from transformers import HfArgumentParser

from hf_qrnn.data.symbols import check_side, check_source_nfd
from hf_qrnn.model.configuration_qrnn import QRNNConfig

_PRECISIONS = ("no", "bf16", "auto")
Options = TypeVar("Options")


@dataclass
class TokenizerOptions:
    """The flags that say how text becomes ids."""

    tokenizer: str = field(default="char", metadata={"help": "char, byte, a Hub id or a folder"})
    min_count: int = field(default=1, metadata={"help": "char: rarer characters become <unk>"})
    nfc: bool = field(
        default=False, metadata={"help": "char, byte: compose characters (Unicode NFC)"}
    )
    source_tokens: str = field(
        default="char",
        metadata={"help": "char: a token is a character; blank: what is between blanks, as phones"},
    )
    target_tokens: str = field(default="char", metadata={"help": "the same of the target"})
    source_nfd: bool = field(
        default=False,
        metadata={"help": "decompose the source's characters (Unicode NFD); the target is blank"},
    )

    def __post_init__(self) -> None:
        check_side(source_tokens=self.source_tokens, target_tokens=self.target_tokens)
        if self.tokenizer == "byte":
            self.check_sides(("char", "char"))
        check_source_nfd(self.source_nfd, self.source_tokens, self.target_tokens)

    def check_sides(self, own: tuple[str, str]) -> None:
        """Raise ValueError where symbols are asked for, and the tokenizer's `own` are others."""
        asked = {"source_tokens": self.source_tokens, "target_tokens": self.target_tokens}
        for (name, side), has in zip(asked.items(), own, strict=True):
            if side not in ("char", has):
                raise ValueError(
                    f"`{name}` must be {has!r} with the tokenizer {self.tokenizer!r}, which has "
                    f"tokens of its own, but is {side!r}."
                )


MODEL_FLAGS = {
    "embedding_size": "width of the embeddings",
    "hidden_size": "units of every layer",
    "encoder_layers": "layers of the encoder",
    "decoder_layers": "layers of the decoder",
    "encoder_kernel_sizes": "filter width of each encoder layer; default 6 2 2 ...",
    "decoder_kernel_sizes": "filter width of each decoder layer; default 2 2 ...",
    "pooling": "f, fo or ifo",
    "zoneout": "probability of keeping a channel (Eq. 6)",
    "dropout": "dropout on every layer's own output",
    "embedding_dropout": "on embeddings; default dropout",
    "locked_dropout": "zero the same channels at all steps of a batch",
    "dense_connections": "concatenate input and output",
    "encoder_causal": "mask the encoder's convolutions",
    "encoder_bidirectional": "half of the units each way",
    "reverse_source": "read the source backwards",
    "residual": "add every layer's input to its output",
    "rms_norm": "RMSNorm before layers and at the end",
    "attention_layers": "last (Eq. 8) or all",
    "num_attention_heads": "heads of the attention",
    "attention_scaling": "scale scores by 1/sqrt(head size)",
    "feed_forward_size": "inner width of gated blocks; 0 = none",
    "tie_word_embeddings": "output layer = embedding",
    "initializer_range": "spread of the embeddings at the beginning",
    "forget_bias": "bias of the forget gates at the beginning; 1 keeps three quarters of the state",
    "classifier_pooling": "last classifies by the last state; mean, max, mean_max by all",
    "classifier_dropout": "dropout on what is classified, once for all steps",
}
"""The fields of QRNNConfig that are flags, with their help; types and defaults are the config's."""

ENCODER_FLAGS = (
    "encoder_layers", "encoder_kernel_sizes", "encoder_causal", "encoder_bidirectional",
    "reverse_source",
)  # fmt: skip
"""Those that a decoder alone does not read."""
DECODER_FLAGS = (
    "decoder_layers", "decoder_kernel_sizes", "tie_word_embeddings", "attention_layers",
    "num_attention_heads", "attention_scaling",
)  # fmt: skip
"""Those that an encoder alone does not read."""
ATTENTION_FLAGS = ("attention_layers", "num_attention_heads", "attention_scaling")
CLASSIFIER_FLAGS = ("classifier_pooling", "classifier_dropout")


def with_model_flags(*, without: Sequence[str] = ()) -> Callable[[type[Options]], type[Options]]:
    """Make a decorator that adds the fields of `MODEL_FLAGS` to a dataclass.

    Args:
        without: Those that the head does not read.
    """
    helps = {name: text for name, text in MODEL_FLAGS.items() if name not in without}

    def add(options: type[Options]) -> type[Options]:
        own = {config_field.name: config_field for config_field in dataclasses.fields(QRNNConfig)}
        written = type("Written", (), {"__annotations__": {k: own[k].type for k in helps}})
        hints = get_type_hints(written)  # not of QRNNConfig: its bases name what they do not import
        flags = [
            (
                name,
                _flag_type(hints[name]),
                field(default=own[name].default, metadata={"help": text}),
            )
            for name, text in helps.items()
        ]
        names = {"__doc__": options.__doc__, "__module__": options.__module__}
        made: type[Options] = make_dataclass(
            options.__name__, flags, bases=(options,), namespace=names
        )
        return made

    return add


def _flag_type(hint: Any) -> Any:
    """Return the type of a field as a flag has it: one type, or one and None.

    An integer stands for a number as well, and for a list of one.
    """
    kinds = [kind for kind in get_args(hint) or (hint,) if kind is not type(None)]
    (kind,) = [kind for kind in kinds if kind is not int] or kinds
    return kind | None if type(None) in get_args(hint) else kind


@with_model_flags(without=CLASSIFIER_FLAGS)
@dataclass
class ModelOptions:
    """A model of sources and targets; every field is one of QRNNConfig."""


@dataclass
class RunOptions:
    """The run itself."""

    output_dir: str = field(default="runs/new", metadata={"help": "where everything goes"})
    init_from: str | None = field(
        default=None,
        metadata={
            "help": "begin with this trained model's weights and tokenizer: a folder or name"
        },
    )
    seed: int = field(default=0, metadata={"help": "of weights, dropout and batch order"})
    cpu: bool = field(
        default=False, metadata={"help": "train on the CPU even where there is a GPU"}
    )
    mixed_precision: str = field(
        default="no",
        metadata={"help": "no (float32), bf16, or auto: bf16 where the machine is fast at it"},
    )
    num_threads: int = field(default=0, metadata={"help": "CPU threads; 0 = torch's choice"})
    num_workers: int = field(default=0, metadata={"help": "processes that pad batches; 0 = none"})
    resume: str = field(
        default="never",
        metadata={"help": "auto (the newest checkpoint, if any), never, or the path of one"},
    )
    overwrite_output_dir: bool = field(
        default=False,
        metadata={"help": "move an earlier run in output_dir aside, to OUTPUT_DIR.replaced"},
    )
    expect_world_size: int = field(
        default=0, metadata={"help": "stop unless there are so many processes; 0 = any number"}
    )
    report_to: str = field(
        default="none", metadata={"help": "trackers beside metrics.jsonl, as tensorboard,wandb"}
    )
    compile: bool = field(default=False, metadata={"help": "run the model through torch.compile"})

    def __post_init__(self) -> None:
        least = {
            "seed": 0, "num_threads": 0, "num_workers": 0, "expect_world_size": 0,
        }  # fmt: skip
        check_at_least(self, least)
        if self.seed >= 2**32:
            raise ValueError(f"`seed` must be below 2**32, but is {self.seed}.")
        if self.mixed_precision not in _PRECISIONS:
            raise ValueError(
                f"`mixed_precision` must be one of {', '.join(_PRECISIONS)}, "
                f"but is {self.mixed_precision!r}."
            )
        if self.overwrite_output_dir and self.resume == "auto":
            raise ValueError("`overwrite_output_dir` must be left out with --resume auto.")


@dataclass
class PublishOptions:
    """The flags of what the model card says, and of whether the run is pushed to the Hub."""

    card_title: str | None = field(default=None, metadata={"help": "heading of the model card"})
    card_about: str | None = field(
        default=None, metadata={"help": "file with text on data and limits, for the card"}
    )
    data_name: str | None = field(default=None, metadata={"help": "what the data are called"})
    data_license: str | None = field(default=None, metadata={"help": "the data's licence"})
    model_license: str = field(default="apache-2.0", metadata={"help": "the weights' licence"})
    push_to_hub: bool = field(default=False, metadata={"help": "push the best model at the end"})
    hub_model_id: str | None = field(default=None, metadata={"help": "user/name to push to"})
    hub_private: bool = field(default=False, metadata={"help": "make a missing repository private"})
    hub_revision: str | None = field(default=None, metadata={"help": "branch to push to (main)"})
    hub_tag: str | None = field(default=None, metadata={"help": "name for the commit, as v1.0"})

    def __post_init__(self) -> None:
        if self.push_to_hub and self.hub_model_id is None:
            raise ValueError("`hub_model_id` must be given with `push_to_hub`, but is not.")
        if self.card_about is not None and not Path(self.card_about).is_file():
            raise FileNotFoundError(
                f"`card_about` must be an existing file, but is {self.card_about!r}."
            )


def check_at_least(options: Any, least: Mapping[str, float]) -> None:
    """Raise ValueError where a field of `options` is below its bound."""
    for name, bound in least.items():
        value = getattr(options, name)
        if not value >= bound:  # NaN is not
            raise ValueError(f"`{name}` must be at least {bound}, but is {value}.")


def parse_options(
    kinds: Sequence[type],
    argv: Sequence[str] | None = None,
    *,
    defaults: Mapping[str, Any] | None = None,
    without: Collection[str] = (),
) -> tuple[Any, ...]:
    """One object of each dataclass from the command line; `--config FILE.yaml` gives defaults.

    A mistake on the command line exits with status 2, as argparse does.

    Args:
        kinds: Dataclasses whose fields are the flags.
        argv: Arguments without the program's name; those of the process when None.
        defaults: Values of flags that neither the command line nor the YAML file gives.
        without: Fields that are no flags here, and keep their defaults.

    Raises:
        ValueError: If the YAML file is not a mapping of known flags to values of their types.
        FileNotFoundError: If there is no such file.
    """
    offered = [_without(kind, without) for kind in kinds]
    parser = _Parser(offered, allow_abbrev=False)  # type: ignore[arg-type]
    parser.add_argument("--config", help="YAML file of flags; flags given here override it")
    parser.set_defaults(**(defaults or {}))
    known, _ = parser.parse_known_args(argv)
    if known.config is not None:
        parser.set_defaults(**_read_yaml(Path(known.config), offered))
    values = vars(parser.parse_args(argv))
    return tuple(
        kind(**{flag.name: values[flag.name] for flag in dataclasses.fields(flags)})
        for kind, flags in zip(kinds, offered, strict=True)
    )


def _without(kind: type, names: Collection[str]) -> type:
    """Make a dataclass with the fields of `kind` but those of `names`."""
    fields = dataclasses.fields(kind)
    if not any(own.name in names for own in fields):
        return kind
    hints = get_type_hints(kind)
    kept = [
        (own.name, hints[own.name], field(default=own.default, metadata=own.metadata))
        for own in fields
        if own.name not in names
    ]
    return make_dataclass(kind.__name__, kept, namespace={"__doc__": kind.__doc__})


def flag_names(kinds: Sequence[type]) -> dict[str, str]:
    """Return what a user types for each field of the dataclasses, for `data.flags.typed`."""
    names = [field.name for kind in kinds for field in dataclasses.fields(kind)]
    return {name: f"--{name}" for name in (*names, "config")}


class _Parser(HfArgumentParser):
    """A parser whose complaints are one sentence, not all of its flags and then the sentence."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")


def _read_yaml(path: Path, kinds: Sequence[type]) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"`config` must be a YAML file, but is {str(path)!r}.")
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(
            f"`config` must be a YAML file, but {str(path)!r} is not: {_yaml_fault(error)}."
        ) from error
    if not isinstance(given, dict):
        raise ValueError(f"`config` must hold a mapping of flags, but {str(path)!r} does not.")
    hints = {name: hint for kind in kinds for name, hint in get_type_hints(kind).items()}
    for name, value in given.items():
        if name not in hints:
            raise ValueError(f"`config` must hold known flags, but {str(path)!r} has {name!r}.")
        given[name] = _as_type(name, value, hints[name])
    return given


def _yaml_fault(error: Exception) -> str:
    """Say what is wrong with a YAML file and where, in half a line."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"{error.problem} in line {mark.line + 1}, column {mark.column + 1}"
    return str(error).split("\n", 1)[0].rstrip(".")


def _as_type(name: str, value: Any, hint: Any) -> Any:
    """Return `value` as a field of type `hint` wants it: an int may stand for a float, no more."""
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    for kind in kinds:
        if kind is float and type(value) in (int, str):
            try:
                return float(value)  # YAML reads 1e-3, without a point, as a string
            except ValueError:
                continue
        if get_origin(kind) is list and type(value) is list:
            (item,) = get_args(kind)
            if all(type(entry) is item for entry in value):
                return value
        # One value is what the flag takes as well.
        elif get_origin(kind) is list and [type(value)] == [*get_args(kind)]:
            return [value]
        elif type(value) is kind:
            return value
    rule = " or ".join(_kind_name(kind) for kind in kinds)
    raise ValueError(f"`{name}` must be {rule} in the YAML file, but is {value!r}.")


def _kind_name(kind: Any) -> str:
    """Return the name of a type as one writes it."""
    if get_origin(kind) is not None:
        return str(kind)
    return "null" if kind is type(None) else str(kind.__name__)
