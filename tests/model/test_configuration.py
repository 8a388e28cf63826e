"""hf_qrnn.model.configuration_qrnn: what is accepted, what is refused and in which words."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import StrictDataclassClassValidationError
from transformers import AutoConfig

from hf_qrnn import QRNNConfig
from hf_qrnn.model.pool_kinds_qrnn import POOL_KINDS

# Nothing here is a default.
OTHER_FIELDS: dict[str, Any] = {
    "vocab_size": 50,
    "embedding_size": 12,
    "hidden_size": 8,
    "encoder_layers": 3,
    "decoder_layers": 2,
    "encoder_kernel_sizes": [4, 1, 3],
    "decoder_kernel_sizes": 3,
    "pooling": "ifo",
    "zoneout": 0.1,
    "dropout": 0.2,
    "embedding_dropout": 0.3,
    "locked_dropout": True,
    "encoder_causal": True,
    "encoder_bidirectional": True,
    "reverse_source": False,
    "residual": True,
    "rms_norm": True,
    "attention_layers": "all",
    "num_attention_heads": 2,
    "attention_scaling": True,
    "feed_forward_size": 24,
    "classifier_pooling": "mean",
    "tie_word_embeddings": True,
    "initializer_range": 0.05,
    "forget_bias": 2.0,
    "use_cache": False,
    "pool_backend": "torch",
    "pad_token_id": 5,
    "eos_token_id": [6, 7],
    "bos_token_id": 8,
    "decoder_start_token_id": 9,
}

WRONG_TYPES = [
    ("vocab_size", 187.0, "an integer"),
    ("vocab_size", "187", "an integer"),
    ("embedding_size", None, "an integer"),
    ("hidden_size", True, "an integer"),
    ("encoder_layers", "4", "an integer"),
    ("decoder_layers", [4], "an integer"),
    ("num_attention_heads", 1.0, "an integer"),
    ("feed_forward_size", None, "an integer"),
    ("encoder_kernel_sizes", "6", "an integer, a list of integers or None"),
    ("encoder_kernel_sizes", [6, 2.0, 2, 2], "an integer, a list of integers or None"),
    ("decoder_kernel_sizes", (2, 2, 2, 2), "an integer, a list of integers or None"),
    ("decoder_kernel_sizes", True, "an integer, a list of integers or None"),
    ("pooling", None, "a string"),
    ("attention_layers", 1, "a string"),
    ("zoneout", "0.1", "a number"),
    ("dropout", None, "a number"),
    ("dropout", True, "a number"),
    ("embedding_dropout", "0.1", "a number or None"),
    ("embedding_dropout", True, "a number or None"),
    ("initializer_range", None, "a number"),
    ("forget_bias", "1", "a number"),
    ("dense_connections", 1, "a boolean"),
    ("encoder_bidirectional", "yes", "a boolean"),
    ("reverse_source", None, "a boolean"),
    ("tie_word_embeddings", 0, "a boolean"),
    ("use_cache", 1, "a boolean"),
    ("pad_token_id", "0", "an integer or None"),
    ("pad_token_id", [0], "an integer or None"),
    ("eos_token_id", 1.0, "an integer, a list of integers or None"),
    ("eos_token_id", [1, None], "an integer, a list of integers or None"),
    ("bos_token_id", True, "an integer or None"),
    ("decoder_start_token_id", 3.0, "an integer or None"),
]
WRONG_VALUES = [
    ("vocab_size", 0, "at least 1"),
    ("embedding_size", -1, "at least 1"),
    ("hidden_size", 0, "at least 1"),
    ("encoder_layers", 0, "at least 1"),
    ("decoder_layers", 0, "at least 1"),
    ("num_attention_heads", 0, "at least 1"),
    ("feed_forward_size", -1, "at least 0"),
    ("encoder_kernel_sizes", 0, "an integer of at least 1 or a list of 4 of them"),
    ("encoder_kernel_sizes", [6, 2], "an integer of at least 1 or a list of 4 of them"),
    ("encoder_kernel_sizes", [], "an integer of at least 1 or a list of 4 of them"),
    ("decoder_kernel_sizes", [2, 2, 0, 2], "an integer of at least 1 or a list of 4 of them"),
    ("pooling", "of", "one of " + ", ".join(map(repr, POOL_KINDS))),
    ("attention_layers", "first", "one of 'last', 'all'"),
    ("classifier_pooling", "sum", "one of 'last', 'mean', 'max', 'mean_max'"),
    ("classifier_dropout", 1.0, "in [0, 1)"),
    ("pool_backend", "cuda", "one of 'auto', 'native', 'triton', 'torch'"),
    ("zoneout", 1.0, "in [0, 1)"),
    ("dropout", -0.1, "in [0, 1)"),
    ("dropout", float("nan"), "in [0, 1)"),
    ("embedding_dropout", 1, "in [0, 1)"),
    ("initializer_range", 0.0, "positive"),
    ("pad_token_id", 187, "None or in [0, `vocab_size`) = [0, 187)"),
    ("bos_token_id", -1, "None or in [0, `vocab_size`) = [0, 187)"),
    ("eos_token_id", [1, 187], "None or in [0, `vocab_size`) = [0, 187)"),
    ("eos_token_id", [], "None or a list of at least one token id"),
    ("decoder_start_token_id", 200, "None or in [0, `vocab_size`) = [0, 187)"),
]


@pytest.mark.parametrize(("name", "value", "rule"), WRONG_TYPES + WRONG_VALUES)
def test_mistake_is_refused_by_name_rule_and_value(name: str, value: Any, rule: str) -> None:
    with pytest.raises(ValueError, match="must be") as error:
        QRNNConfig(**{name: value})
    assert str(error.value) == f"`{name}` must be {rule}, but is {value!r}."


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        (
            {"dense_connections": True, "residual": True},
            "`dense_connections` must be False when `residual` is True, but is True.",
        ),
        (
            {"hidden_size": 5, "encoder_bidirectional": True},
            "`hidden_size` must be even when `encoder_bidirectional` is True, but is 5.",
        ),
        (
            {"hidden_size": 8, "num_attention_heads": 3},
            "`num_attention_heads` must be a divisor of `hidden_size` (8), but is 3.",
        ),
        (
            {"encoder_layers": 2, "decoder_layers": 3},
            "`encoder_layers` must be at least `decoder_layers` (3), but is 2.",
        ),
        (
            {"vocab_size": 3},
            "`bos_token_id` must be None or in [0, `vocab_size`) = [0, 3), but is 3.",
        ),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else "",
)
def test_impossible_combination_is_refused(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match="must be") as error:
        QRNNConfig(**fields)
    assert str(error.value) == sentence


def test_decoder_only_may_be_deeper_than_the_encoder() -> None:
    config = QRNNConfig(encoder_layers=1, decoder_layers=6, is_encoder_decoder=False)
    assert config.decoder_layers == 6


def test_defaults_are_the_papers_translation_model() -> None:
    # PAPER.md section 4: one vocabulary of 187, 4+4 layers x 320 units, no dropout, reversed
    # source, convolutions of the encoder not masked, k = 6 first and 2 elsewhere, Eq. 8 as it is.
    config = QRNNConfig()
    assert config.vocab_size == 187
    assert (config.encoder_layers, config.decoder_layers) == (4, 4)
    assert (config.hidden_size, config.embedding_size) == (320, 320)
    assert (config.kernel_sizes("encoder"), config.kernel_sizes("decoder")) == (
        [6, 2, 2, 2],
        [2, 2, 2, 2],
    )
    assert config.pooling == "fo"
    assert (config.zoneout, config.dropout, config.embedding_dropout) == (0.0, 0.0, None)
    assert config.reverse_source is True
    assert config.attention_layers == "last"
    assert config.num_attention_heads == 1
    assert config.feed_forward_size == 0
    switches = (
        "encoder_causal encoder_bidirectional dense_connections residual rms_norm"
        " attention_scaling tie_word_embeddings"
    )
    assert not any(getattr(config, name) for name in switches.split())
    assert config.is_encoder_decoder is True
    assert config.use_cache is True


@pytest.mark.parametrize(
    ("given", "widths"),
    [(None, [6, 2, 2]), (1, [1, 1, 1]), (4, [4, 4, 4]), ([3, 1, 5], [3, 1, 5])],
)
def test_kernel_sizes_per_layer(given: int | list[int] | None, widths: list[int]) -> None:
    config = QRNNConfig(encoder_layers=3, decoder_layers=3, encoder_kernel_sizes=given)
    assert config.kernel_sizes("encoder") == widths
    assert config.kernel_sizes("decoder") == [2, 2, 2]
    config.kernel_sizes("encoder").append(7)
    assert config.kernel_sizes("encoder") == widths


def test_attribute_map_names_the_depth() -> None:
    config = QRNNConfig(encoder_layers=5)
    assert config.num_hidden_layers == 5
    config.num_hidden_layers = 6
    assert config.encoder_layers == 6
    assert QRNNConfig(num_hidden_layers=7).encoder_layers == 7


def test_token_ids_may_be_none() -> None:
    names = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id")
    config = QRNNConfig(vocab_size=2, **dict.fromkeys(names))
    assert all(getattr(config, name) is None for name in names)
    again = QRNNConfig.from_dict(config.to_dict())
    assert all(getattr(again, name) is None for name in names)


@pytest.mark.parametrize("fields", [{}, OTHER_FIELDS], ids=["defaults", "nothing_default"])
def test_json_and_folder_round_trips_are_equal(fields: dict[str, Any], tmp_path: Path) -> None:
    config = QRNNConfig(**fields)
    for name, value in fields.items():
        assert getattr(config, name) == value != getattr(QRNNConfig(), name), name
    config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "qrnn"
    for again in (
        QRNNConfig.from_dict(json.loads(config.to_json_string(use_diff=False))),
        QRNNConfig.from_dict(json.loads(config.to_json_string())),
        QRNNConfig.from_pretrained(tmp_path),
        AutoConfig.from_pretrained(tmp_path),
    ):
        assert isinstance(again, QRNNConfig)
        for name in ("transformers_version", "_name_or_path"):  # where it was loaded from
            setattr(again, name, getattr(config, name))
        assert again.to_dict() == config.to_dict()


def test_none_survives_a_round_trip_where_the_default_is_a_number(tmp_path: Path) -> None:
    QRNNConfig(pad_token_id=None, eos_token_id=None).save_pretrained(tmp_path)
    again = QRNNConfig.from_pretrained(tmp_path)
    assert (again.pad_token_id, again.eos_token_id) == (None, None)


def test_deepcopy_is_equal_and_apart() -> None:
    config = QRNNConfig(**OTHER_FIELDS)
    twin = copy.deepcopy(config)
    assert twin == config
    assert isinstance(twin.encoder_kernel_sizes, list)
    twin.encoder_kernel_sizes[0] = 9
    twin.hidden_size = 16
    assert config.encoder_kernel_sizes == [4, 1, 3]
    assert config.hidden_size == 8


@pytest.mark.parametrize(
    ("name", "value"), [("pooling", "of"), ("hidden_size", 0), ("encoder_kernel_sizes", [0])]
)
def test_mistake_made_later_is_refused_before_it_is_saved(
    name: str, value: Any, tmp_path: Path
) -> None:
    config = QRNNConfig()
    # Assignments are free (transformers' own classes make many); `strict` looks when saving.
    setattr(config, name, value)
    with pytest.raises(StrictDataclassClassValidationError, match=f"`{name}` must be .* but is"):
        config.save_pretrained(tmp_path)
    assert not (tmp_path / "config.json").exists()
