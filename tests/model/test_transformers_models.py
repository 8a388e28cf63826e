"""transformers' own common tests on the config and all heads; see docs/ for the changes."""

import inspect
import unittest
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import torch
import upstream
import upstream_table
from transformers.models.auto import modeling_auto
from upstream_table import GENERATORS, MODELS, OTHERS

from hf_qrnn import QRNNConfig, QRNNForSequenceClassification
from hf_qrnn.model.modeling_qrnn import HEADS

modeling = upstream.load("test_modeling_common")
configuration = upstream.load("test_configuration_common")

VOCAB_SIZE = 99
# Where transformers keeps which class has which task; its tests make labels by that.
TASKS = {kind.registration.names or "MODEL_MAPPING_NAMES": kind for kind in HEADS}
MODEL_NAMES = [kind.__name__ for kind in HEADS]
WITH_DECODER_INPUTS = [
    kind for kind in HEADS if "decoder_input_ids" in inspect.signature(kind.forward).parameters
]
STACKS: dict[str, dict[str, Any]] = {
    "Paper": {},
    "Modern": {
        "encoder_bidirectional": True,
        "reverse_source": False,
        "residual": True,
        "rms_norm": True,
        "attention_layers": "all",
        "attention_scaling": True,
        "feed_forward_size": 24,
    },
}
RECORD = upstream.Record()


@pytest.fixture(autouse=True, scope="module")
def _tasks() -> Iterator[None]:
    patches = [
        mock.patch.dict(getattr(modeling_auto, names), {"qrnn": kind.__name__})
        for names, kind in TASKS.items()
    ]
    for patch in patches:
        patch.start()
    yield
    for patch in patches:
        patch.stop()


class ModelTester:
    """Small configs and inputs, under the names the common tests look for."""

    batch_size = 3
    seq_length = encoder_seq_length = decoder_seq_length = 7
    hidden_size = 32
    num_hidden_layers = 2
    num_attention_heads = 4
    is_training = True

    def __init__(self, kind: type, fields: dict[str, Any]) -> None:
        self.has_decoder_inputs = kind in WITH_DECODER_INPUTS
        self.fields = {"is_encoder_decoder": self.has_decoder_inputs, **fields}

    def get_config(self) -> QRNNConfig:
        sizes = {"vocab_size": VOCAB_SIZE, "embedding_size": 32, "hidden_size": 32}
        layers = {"encoder_layers": 2, "decoder_layers": 2, "num_attention_heads": 4}
        return QRNNConfig(**sizes, **layers, **self.fields)

    def prepare_config_and_inputs_for_common(self) -> tuple[QRNNConfig, dict[str, Any]]:
        shape = [self.batch_size, self.seq_length]
        input_ids = modeling.ids_tensor(shape, VOCAB_SIZE)
        inputs = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
        if self.has_decoder_inputs:
            inputs["decoder_input_ids"] = modeling.ids_tensor(shape, VOCAB_SIZE)
            inputs["decoder_attention_mask"] = torch.ones_like(input_ids)
        return self.get_config(), inputs


class CommonTests(modeling.ModelTesterMixin):  # type: ignore[name-defined,misc]
    """The settings and overrides of upstream_table, and the config's own tests."""

    has_attentions = False
    test_can_init_all_missing_weights_before_2023 = True
    fields: dict[str, Any]

    def setUp(self) -> None:
        (kind,) = self.all_model_classes
        self.model_tester = ModelTester(kind, self.fields)
        self.config_tester = configuration.ConfigTester(
            self, config_class=QRNNConfig, hidden_size=32
        )

    def test_config(self) -> None:
        self.config_tester.run_common_tests()


class ClassifierTests(CommonTests):
    def test_load_with_mismatched_shapes(self) -> None:
        self.is_encoder_decoder = True  # asked only about what AutoModel gives
        super().test_load_with_mismatched_shapes()


def _classes() -> Iterator[tuple[str, type]]:
    """A test class for every model and stack; the modern ones run in `make test-matrix`."""
    for kind in HEADS:
        bases: tuple[type, ...] = (CommonTests, unittest.TestCase)
        if kind is QRNNForSequenceClassification:
            bases = (ClassifierTests, unittest.TestCase)
        if kind.can_generate():
            bases = (modeling.GenerationTesterMixin, *bases)
        for stack, fields in STACKS.items():
            name = f"{kind.__name__}{stack}Test"
            contents = {
                "all_model_classes": (kind,),
                "is_encoder_decoder": kind in WITH_DECODER_INPUTS,
                "fields": fields,
                "__module__": __name__,
            }
            counted = GENERATORS if kind.can_generate() else OTHERS
            tests = RECORD.watch(type(name, bases, contents), MODELS, counted)
            yield name, tests if stack == "Paper" else pytest.mark.slow(tests)


globals().update(_classes())


# ------------------------------------------------------------------ the table


def test_overrides_and_settings_are_in_the_table() -> None:
    # transformers wraps every inherited test of a class: what is ours comes from this file.
    written = {
        name
        for tests in (CommonTests, ClassifierTests)
        for name, value in vars(tests).items()
        if hasattr(modeling.ModelTesterMixin, name) and not name.startswith("__")
        if not callable(value) or value.__module__ == __name__
    }
    listed = {
        change.name.split(" = ")[0]
        for change in upstream_table.TABLE
        if change.classes.split(", ")[0] in (MODELS, *MODEL_NAMES) and change.kind != "skip"
        if not change.name.startswith("is_encoder_decoder")
    }
    # Older releases do not know every setting.
    assert written == {name for name in listed if hasattr(modeling.ModelTesterMixin, name)}


@pytest.mark.parametrize("name", [name for name, _ in _classes()])
def test_number_passed(name: str, request: pytest.FixtureRequest) -> None:
    RECORD.check(name, request.session)
