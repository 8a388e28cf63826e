"""Begins a run with a trained model instead of random weights: `--init_from MODEL`.

The model's weights, config and tokenizer are the beginning. A character tokenizer learns the new
data's characters, each of which gets a row in the embedding and the output layer. A run keeps what
it began with, all but the weights, in `base/` of its folder: a resume does not need the old model.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from hf_qrnn.data.flags import typed
from hf_qrnn.data.reading import TextPair
from hf_qrnn.data.symbols import add_symbols, sides_of, with_alphabets, with_spellings
from hf_qrnn.data.tokenization import is_nfc, is_nfd, load_tokenizer, tokenizer_kind
from hf_qrnn.model.modeling_qrnn import QRNNForConditionalGeneration
from hf_qrnn.translation.translator import load_translator

from .checkpoint import CheckpointFolder, find_checkpoint
from .options import CLASSIFIER_FLAGS, MODEL_FLAGS, RunOptions, TokenizerOptions
from .run_files import read_base
from .run_folder import write_lines, writing

# Options that change no weight that is kept. All others of the model are the loaded model's.
_FREE = ("dropout", "embedding_dropout", "locked_dropout", "zoneout", *CLASSIFIER_FLAGS)
# What loading and saving add to a config, and no model depends on.
_NOT_OF_THE_MODEL = (
    "_name_or_path", "architectures", "auto_map", "dtype", "transformers_version", "model_type",
)  # fmt: skip
# New rows: their distance from the mean row, in standard deviations of the known rows.
_NOISE = 0.1
_FOLDER, _RECORD = "base", "base.json"


@dataclass(frozen=True)
class Base:
    """The model and tokenizer that a run begins with.

    Attributes:
        model: The model; of a resumed run without its weights.
        tokenizer: Its tokenizer.
        name: As `--init_from` gave it.
        is_on_hub: Whether that is a name on the Hub.
        num_new: Characters, symbols and tags added to the tokenizer.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    is_on_hub: bool
    num_new: int = 0

    def options(self) -> dict[str, Any]:
        """Return the values of flags that the user does not give."""
        found = {name: getattr(self.model.config, name) for name in MODEL_FLAGS}
        ngram = getattr(_generation(self.model), "no_repeat_ngram_size", None)
        kind, sides = tokenizer_kind(self.tokenizer), sides_of(self.tokenizer)
        source_tokens, target_tokens = sides or ("char", "char")
        return {
            **found,
            "source_tokens": source_tokens,
            "target_tokens": target_tokens,
            "tokenizer": "char" if kind == "symbol" else kind or self.name,
            "nfc": is_nfc(self.tokenizer),
            "source_nfd": is_nfd(self.tokenizer),
            "no_repeat_ngram_size": ngram or 0,
        }

    def record(self) -> dict[str, Any]:
        """Describe the base for run.json and the card."""
        return {
            "init_from": self.name,
            "is_on_hub": self.is_on_hub,
            "new_characters": self.num_new,
        }

    def save(self, folder: Path) -> None:
        """Keep all but the weights in `base/` of a run's folder, for `find_base`.

        Raises:
            RunError: If it cannot be written.
        """
        fresh = folder / f"{_FOLDER}.saving"
        try:
            with writing(folder / _FOLDER):
                shutil.rmtree(fresh, ignore_errors=True)
                # A copy, since saving writes into the config that it saves.
                copy.deepcopy(self.model.config).save_pretrained(fresh)
                generation = _generation(self.model)
                if generation is not None:
                    generation.save_pretrained(fresh)
                self.tokenizer.save_pretrained(fresh)
                # The record is what `has_base` looks for; it comes last, when all else is there.
                write_lines(fresh / _RECORD, [json.dumps(self.record(), indent=2)])
                shutil.rmtree(folder / _FOLDER, ignore_errors=True)
                os.replace(fresh, folder / _FOLDER)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)


def find_base(
    options: RunOptions,
    checkpoints: CheckpointFolder,
    *,
    load: Callable[[str], Base] | None = None,
    head: type[PreTrainedModel] = QRNNForConditionalGeneration,
) -> Base | None:
    """Load what the run begins with: what `--init_from` names, or what a resumed run began with.

    Args:
        options: The run.
        checkpoints: Its checkpoints.
        load: Loads what `--init_from` names; None = a model that translates.
        head: The class of the model.

    Raises:
        ValueError: If there is no such model, it is none of the kind wanted, or the run that is
            resumed began with another.
    """
    resumed = find_checkpoint(options.resume, checkpoints)
    if resumed is not None:
        folder = resumed.resolve().parents[1]  # RUN of RUN/checkpoints/step-00000020
        if has_base(folder):
            return _same_base(_read_base(folder / _FOLDER, head), options.init_from, folder)
        # A checkpoint that was copied elsewhere lies in no run, which could say how it began.
        if options.init_from is not None and (folder / "run.json").is_file():
            raise ValueError(
                f"`init_from` must be left out to resume from '{folder}', a run that began with "
                f"random weights, but is {options.init_from!r}."
            )
    if options.init_from is None:
        return None
    return (load or _load_translator)(options.init_from)


def _load_translator(name: str) -> Base:
    # float32, whatever it was saved in: small steps of the optimiser would be lost in less.
    with typed(name_or_path="init_from"):
        loaded = load_translator(name, device="cpu", dtype=torch.float32)
    if loaded.model.config.model_type != "qrnn":
        raise ValueError(
            "`init_from` must be a QRNN model that translates, but "
            f"{name!r} is a {type(loaded.model).__name__}."
        )
    model = rebuilt(loaded.model, {}, loaded.model.state_dict())
    return Base(model, loaded.tokenizer, name, not Path(name).exists())


def has_base(folder: Path) -> bool:
    """Tell whether a run's folder holds what it began with."""
    return (folder / _FOLDER / _RECORD).is_file()


def begin(
    base: Base,
    model_options: Any,
    tokenizer_options: TokenizerOptions,
    pairs: Sequence[TextPair],
    *,
    seed: int,
) -> Base:
    """Prepare the model and tokenizer to train: new dropout, and rows for new characters.

    Args:
        base: What `find_base` found.
        model_options: What was asked for; the layers must be those of `base`.
        tokenizer_options: The tokenizer must be that of `base`.
        pairs: The training pairs.
        seed: Seed of the noise in new rows.

    Raises:
        ValueError: If an option asks for another model or tokenizer (names it).
    """
    changes = changes_of(base, model_options)
    _check_tokenizer_options(base, tokenizer_options)
    longer = add_symbols(
        base.tokenizer,
        [pair.source for pair in pairs],
        [pair.target for pair in pairs],
        languages=sorted({pair.language for pair in pairs} - {""}),
        min_count=tokenizer_options.min_count,
    )
    sources = [(pair.language, pair.source) for pair in pairs]
    longer = with_spellings(with_alphabets(longer, sources), sources)
    known, new = set(base.tokenizer.get_vocab().values()), set(longer.get_vocab().values())
    new_ids = sorted(new - known)
    # A model may have more rows than its tokenizer has ids; then new ids may have rows already.
    size = max(base.model.config.vocab_size, *(index + 1 for index in new_ids), 0)
    weights = base.model.state_dict()
    if new_ids:
        # `<pad>` and the other special tokens are no characters, and their rows unlike theirs.
        characters = sorted(known - set(base.tokenizer.all_special_ids))
        weights = _with_rows(weights, size, characters, new_ids, seed)
    model = rebuilt(base.model, {**changes, "vocab_size": size}, weights)
    return Base(model, longer, base.name, base.is_on_hub, base.num_new + len(new_ids))


def _read_base(path: Path, head: type[PreTrainedModel]) -> Base:
    """Read what `Base.save` kept; the weights are random, since a checkpoint has the run's.

    Raises:
        ValueError: If a file is missing or damaged.
    """
    try:
        record = read_base(path)
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        model = head(config)
        if _generation(model) is not None:
            model.generation_config = GenerationConfig.from_pretrained(path)
        tokenizer = load_tokenizer(str(path))
    except (OSError, ValueError, TypeError) as error:
        reason = str(error).split("\n", 1)[0].rstrip(".")
        raise ValueError(
            f"`resume` must find in '{path}' what its run began with, but it is damaged: {reason}."
        ) from error
    return Base(
        rebuilt(model, {}, model.state_dict()),
        tokenizer,
        record["init_from"],
        record["is_on_hub"],
        record["new_characters"],
    )


def _same_base(base: Base, wanted: str | None, folder: Path) -> Base:
    """Return the base of the run in `folder`, unless another one was asked for.

    Raises:
        ValueError: If `wanted` is given and is not what the run began with.
    """
    # One folder may be named in several ways; a name on the Hub is compared as a path, too.
    if wanted is None or Path(wanted).resolve() == Path(base.name).resolve():
        return base
    raise ValueError(
        f"`init_from` must be left out or be {base.name!r}, as in '{folder}', to resume from it, "
        f"but is {wanted!r}."
    )


def changes_of(base: Base, options: Any) -> dict[str, Any]:
    """Return the fields of the config that `options`, a dataclass of such fields, changes.

    Raises:
        ValueError: If one must not change, or its value is none that it may have.
    """
    own, changes = base.model.config, {}
    for name, value in asdict(options).items():
        if value == getattr(own, name):
            continue
        # The config's own checks say what is wrong with a value, before it is said to be another.
        changed = copy.deepcopy(own)
        setattr(changed, name, value)
        changed.check()
        changes[name] = value
        # Kernel sizes may be written out or left to a default: those that come out are compared.
        part = name.removesuffix("_kernel_sizes")
        is_same = part != name and changed.kernel_sizes(part) == own.kernel_sizes(part)
        if name not in _FREE and not is_same:
            raise ValueError(
                f"`{name}` must be left out with `init_from`, or be {getattr(own, name)!r} as in "
                f"{base.name!r}, but is {value!r}."
            )
    return {name: value for name, value in changes.items() if name in _FREE}


def _check_tokenizer_options(base: Base, options: TokenizerOptions) -> None:
    own = base.options()
    given = options.tokenizer
    # Another folder may hold the same tokenizer: the vocabularies are compared, not the names.
    if given != own["tokenizer"] and (
        given in ("char", "byte") or load_tokenizer(given).get_vocab() != base.tokenizer.get_vocab()
    ):
        raise ValueError(
            f"`tokenizer` must be left out with `init_from`, or be the one of {base.name!r} "
            f"({own['tokenizer']}), but is {given!r}."
        )
    for name in ("nfc", "source_tokens", "target_tokens", "source_nfd"):
        if getattr(options, name) != own[name]:
            raise ValueError(
                f"`{name}` must be left out with `init_from`, or be {own[name]!r} as in "
                f"{base.name!r}, but is {getattr(options, name)!r}."
            )


def rebuilt(
    model: PreTrainedModel,
    changes: Mapping[str, Any],
    weights: Mapping[str, torch.Tensor],
    *,
    strict: bool = True,
) -> PreTrainedModel:
    """Make the model anew, with other fields of its config: modules read them when made.

    Without `strict` weights may be missing, which stay random.
    """
    given = {k: v for k, v in model.config.to_dict().items() if k not in _NOT_OF_THE_MODEL}
    made = type(model)(type(model.config)(**{**given, **changes}))
    made.load_state_dict(weights, strict=strict)
    generation = _generation(model)
    if generation is not None:
        made.generation_config = generation
    return made


def _generation(model: PreTrainedModel) -> GenerationConfig | None:
    """Return how the model generates; None of a classifier, which does not."""
    return getattr(model, "generation_config", None)


def _with_rows(
    weights: Mapping[str, torch.Tensor],
    size: int,
    characters: list[int],
    new_ids: list[int],
    seed: int,
) -> dict[str, torch.Tensor]:
    """Return the weights with rows for new characters in every tensor that has a row for each id.

    A new row is the mean of the known characters' rows and a little noise. The model then reads an
    average character, which disturbs no state it has learned. It gives it an average logit, so
    that the others' probabilities stay nearly what they were. Random rows, as a new model has,
    would be read as noise, and without a trained bias be written too often.
    """
    # On the CPU and by its own seed: the same on every process, whatever was drawn before.
    noise = torch.Generator().manual_seed(seed)
    longer = dict(weights)
    for name in ("model.shared.weight", "lm_head.weight", "lm_head.bias"):
        old = weights[name]  # (V, E) or, of the bias, (V,)
        rows = old.new_zeros(size, *old.shape[1:])
        rows[: len(old)] = old
        known = old[characters]
        # Without Bessel's correction, which divides by zero for one character.
        deviation = _NOISE * known.std(0, correction=0)  # (E,) or ()
        drawn = torch.randn(len(new_ids), *old.shape[1:], generator=noise)
        rows[new_ids] = known.mean(0) + deviation * drawn
        longer[name] = rows
    # Each has drawn noise of its own, but tied rows are one.
    if "lm_head.weight" in weights and _is_tied(weights):
        longer["lm_head.weight"] = longer["model.shared.weight"]
    return longer


def _is_tied(weights: Mapping[str, torch.Tensor]) -> bool:
    return weights["lm_head.weight"].data_ptr() == weights["model.shared.weight"].data_ptr()
