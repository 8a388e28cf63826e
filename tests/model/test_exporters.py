"""transformers' exporters, and caches in exported programs: equal to the model at every step."""

import copy
import importlib
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from generating import language_model, seq2seq
from small_models import small

from hf_qrnn import (
    QRNNCache,
    QRNNConfig,
    QRNNForCausalLM,
    QRNNForConditionalGeneration,
    QRNNForSequenceClassification,
    QRNNModel,
)
from hf_qrnn.model import cache_qrnn
from hf_qrnn.model.cache_qrnn import QRNNCacheLayer

pytestmark = pytest.mark.filterwarnings("ignore")  # exporters' own, of many kinds

MODERN = {
    "residual": True, "rms_norm": True, "pooling": "ifo", "decoder_kernel_sizes": 3,
    "attention_layers": "all", "num_attention_heads": 2,
}  # fmt: skip
# ONNX's exporter takes seconds a layer.
SHALLOW = {"encoder_layers": 1, "decoder_layers": 1}
HEADS = [
    QRNNModel, QRNNForConditionalGeneration, QRNNForCausalLM, QRNNForSequenceClassification,
]  # fmt: skip


def config(**changes: Any) -> QRNNConfig:
    return small(vocab_size=13, **changes)


def text(batch: int, length: int, *, left: bool = False) -> dict[str, torch.Tensor]:
    """Ids, and a mask of rows of different lengths, the first one whole."""
    lengths = torch.arange(length, length - batch, -1).clamp(min=1)
    mask = (torch.arange(length) < lengths[:, None]).long()
    return {
        "input_ids": torch.randint(4, 13, (batch, length)),
        "attention_mask": mask.flip(1) if left else mask,
    }


def inputs_of(kind: type, batch: int, length: int, target: int) -> dict[str, torch.Tensor]:
    given = text(batch, length)
    if kind in (QRNNModel, QRNNForConditionalGeneration):
        given["decoder_input_ids"] = torch.randint(4, 13, (batch, target))
    return given


def exporter(name: str) -> Callable[..., Any]:
    """`export` or, for generation, prefill and decoding, with every size dynamic."""
    module = pytest.importorskip(f"transformers.exporters.exporter_{name}")
    if name == "onnx":
        pytest.importorskip("onnxscript", reason="onnxscript is not installed")
        pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    if not hasattr(importlib.import_module("transformers.exporters.base"), "ExportedModel"):
        pytest.skip("this release of transformers has exporters of another form")
    kind = getattr(module, f"{name.capitalize()}Exporter")()
    options = getattr(module, f"{name.capitalize()}Config")(dynamic=True)

    def export(model: torch.nn.Module, given: Any, *, generates: bool = False, **how: Any) -> Any:
        function = kind.export_for_generation if generates else kind.export
        return function(model, copy.deepcopy(given), options, **how)

    return export


def assert_close(got: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def tensors(cache: QRNNCache) -> list[torch.Tensor]:
    return [
        x for layer in cache.layers for x in (*layer.state, *(layer.memory or ())) if x is not None
    ]


# ------------------------------------------------------------------ every head


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("name", ["dynamo", "onnx"])
@torch.no_grad()
def test_every_head_runs_where_it_was_exported_to(name: str, kind: type) -> None:
    export = exporter(name)
    model = kind(config(**(SHALLOW if name == "onnx" else {}))).eval()
    exported = export(model, inputs_of(kind, 3, 7, 4))
    for sizes in [(2, 9, 3), (5, 4, 6)]:
        given = inputs_of(kind, *sizes)
        got, wanted = exported(**given), model(**given)
        assert list(got) == list(wanted)
        part = "last_hidden_state" if kind is QRNNModel else "logits"
        assert_close(got[part], wanted[part])
        if kind is not QRNNForSequenceClassification:
            assert (
                int(got.past_key_values.get_seq_length()) == wanted.past_key_values.get_seq_length()
            )
            for a, b in zip(
                tensors(got.past_key_values), tensors(wanted.past_key_values), strict=True
            ):
                assert_close(a, b)


# ------------------------------------------------------------------ decoding


def calls_of_generate(
    model: Any, given: dict[str, torch.Tensor], steps: int
) -> list[dict[str, Any]]:
    """Return the arguments that generate() hands to the model at every step."""
    calls: list[dict[str, Any]] = []
    hook = model.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(copy.deepcopy(kwargs)), with_kwargs=True
    )
    model.generate(**given, max_new_tokens=steps, min_new_tokens=steps, do_sample=False)
    hook.remove()
    return calls


def follow(exported: Any, model: Any, calls: list[dict[str, Any]]) -> None:
    """Run the exported steps, each from the cache that the one before returned."""
    cache: Any = None
    for index, call in enumerate(calls):
        call.pop("logits_to_keep", None)
        wanted = model(**copy.deepcopy(call)).logits
        runner = exported.runners["decode" if index else "prefill"]
        kwargs = {name: value for name, value in call.items() if name in runner.metadata.kwargs}
        if index:
            kwargs["past_key_values"] = cache
        output = runner(**kwargs)
        cache = output.past_key_values
        assert_close(output.logits[:, -1], wanted[:, -1])
        assert (
            int(cache.get_seq_length())
            == int(call["past_key_values"].get_seq_length()) + (wanted.shape[1])
        )


@pytest.mark.parametrize("kind", [QRNNForConditionalGeneration, QRNNForCausalLM])
@pytest.mark.parametrize(
    ("name", "modern"), [("dynamo", False), ("dynamo", True), ("onnx", False), ("onnx", True)]
)
@torch.no_grad()
def test_exported_steps_are_the_models(name: str, kind: type, modern: bool) -> None:
    export = exporter(name)
    model = kind(config(**(MODERN if modern else {}), **(SHALLOW if name == "onnx" else {}))).eval()
    left = kind is QRNNForCausalLM
    exported = export(model, text(3, 7, left=left), generates=True)
    assert list(exported.components) == ["prefill", "decode"]
    for batch, length in [(3, 7), (2, 11), (5, 6)]:
        follow(exported, model, calls_of_generate(model, text(batch, length, left=left), 5))


@torch.no_grad()
def test_exported_steps_may_be_longer_than_one_token() -> None:
    export, model = exporter("dynamo"), QRNNForCausalLM(config()).eval()
    exported = export(model, text(3, 7, left=True), generates=True, multi_token_decode=True)
    ids = torch.randint(4, 13, (2, 12))
    whole, cache = model(ids).logits, QRNNCache(2)
    model(ids[:, :3], past_key_values=cache)
    start = 3
    for size in (2, 4, 3):
        step = ids[:, start : start + size]
        mask = torch.ones(2, start + size, dtype=torch.long)
        runner = exported.runners["decode"]
        output = runner(input_ids=step, attention_mask=mask, past_key_values=cache)
        assert_close(output.logits, whole[:, start : start + size])
        cache, start = output.past_key_values, start + size
    assert int(cache.get_seq_length()) == 12


@torch.no_grad()
def test_generate_goes_on_from_an_exported_cache() -> None:
    export, model = exporter("dynamo"), QRNNForCausalLM(config()).eval()
    ids = torch.randint(4, 13, (2, 6))
    exported = export(model, {"input_ids": ids})
    cache = exported(input_ids=ids[:, :5]).past_key_values
    got = model.generate(ids, past_key_values=cache, max_new_tokens=4)
    assert torch.equal(got, model.generate(ids, max_new_tokens=4))


@pytest.mark.parametrize("name", ["dynamo", "onnx"])
@torch.no_grad()
def test_saved_export_decodes_after_loading(name: str, tmp_path: Path) -> None:
    export, model = exporter(name), QRNNForCausalLM(config(**SHALLOW)).eval()
    export(model, text(3, 7, left=True), generates=True).save_pretrained(tmp_path)
    kind = importlib.import_module("transformers.exporters.base").ExportedModel
    loaded = kind.from_pretrained(tmp_path)
    follow(loaded, model, calls_of_generate(model, text(2, 5, left=True), 4))


# ------------------------------------------------------------------ torch.export alone


# torch 2.11 warns of its own way to read a saved program.
@pytest.mark.filterwarnings("ignore:The given buffer is not writable")
@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
@pytest.mark.parametrize("model", [language_model, seq2seq])
@torch.no_grad()
def test_torch_export_takes_and_returns_a_cache(
    model: Callable[..., Any], static: bool, tmp_path: Path
) -> None:
    network = model().eval()
    reads = model is seq2seq

    class Step(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, ids: torch.Tensor, cache: QRNNCache, source: Any) -> Any:
            return self.network(
                **(
                    {"input_ids": source, "decoder_input_ids": ids} if reads else {"input_ids": ids}
                ),
                past_key_values=cache,
            )

    def started(batch: int, source: torch.Tensor) -> tuple[QRNNCache, torch.Tensor]:
        cache, ids = QRNNCache(2, static=static), torch.randint(4, 13, (batch, 8))
        given = {"input_ids": source, "decoder_input_ids": ids[:, :3]}
        network(**(given if reads else {"input_ids": ids[:, :3]}), past_key_values=cache)
        return cache, ids

    source = torch.randint(4, 13, (3, 5))
    cache, ids = started(3, source)
    leaves, _ = torch.utils._pytree.tree_flatten(cache)
    auto = torch.export.Dim.AUTO
    shapes = [{0: auto, 2: auto} if x.dim() == 4 else {0: auto} if x.dim() else {} for x in leaves]
    program = torch.export.export(
        Step(),
        (ids[:, 3:4], copy.deepcopy(cache), source),
        dynamic_shapes=({0: auto}, shapes, {0: auto, 1: auto}),
    )
    torch.export.save(program, tmp_path / "step.pt2")
    step = torch.export.load(tmp_path / "step.pt2").module()
    for batch, length in [(3, 5), (2, 9)]:
        source = torch.randint(4, 13, (batch, length))
        cache, ids = started(batch, source)
        given = {"input_ids": source, "decoder_input_ids": ids} if reads else {"input_ids": ids}
        whole = network(**given, use_cache=False).logits
        for t in range(3, 8):
            output = step(ids[:, t : t + 1], cache, source)
            cache = output.past_key_values
            assert_close(output.logits[:, 0], whole[:, t])
        assert int(cache.get_seq_length()) == 8


@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
def test_cache_is_a_pytree_that_loses_nothing(static: bool) -> None:
    cache = QRNNCache(2, static=static)
    if not static:
        cache.layer(0).activate_past_recording()
        cache.layer(1).activate_past_recording()
    with torch.no_grad():
        model, ids = seq2seq(), torch.randint(4, 13, (3, 6))
        source = {"input_ids": torch.randint(4, 13, (3, 5))}
        for part in ids.split([2, 3, 1], 1):
            model(**source, decoder_input_ids=part, past_key_values=cache)
        leaves, spec = torch.utils._pytree.tree_flatten(cache)
        assert all(isinstance(leaf, torch.Tensor) for leaf in leaves)
        dumped = torch.utils._pytree.treespec_dumps(spec)
        assert torch.utils._pytree.treespec_loads(dumped) == spec
        other = torch.utils._pytree.tree_unflatten([x.clone() for x in leaves], spec)
        paths = torch.utils._pytree.tree_flatten_with_path(cache)[0]
        assert [leaf for _, leaf in paths] == leaves
        assert len({str(path) for path, _ in paths}) == len(leaves)
        if not static:
            for one in (cache, other):
                for layer in one.layers:
                    layer.crop(-3)
        step = torch.randint(4, 13, (3, 1))
        results = [
            model(**source, decoder_input_ids=step, past_key_values=one).logits
            for one in (cache, other)
        ]
    assert torch.equal(*results)
    assert int(other.get_seq_length()) == int(cache.get_seq_length()) == (7 if static else 4)


def test_exporters_find_the_leaves_in_the_layers_attributes() -> None:
    # ONNX's inputs are named after a walk through attributes: in the order of the leaves.
    utils = pytest.importorskip("transformers.exporters.utils")
    cache = QRNNCache(2)
    cache.layer(0).activate_past_recording()
    with torch.no_grad():
        seq2seq(attention_layers="all")(
            input_ids=torch.randint(4, 13, (3, 5)),
            decoder_input_ids=torch.randint(4, 13, (3, 4)),
            past_key_values=cache,
        )
    leaves = torch.utils._pytree.tree_leaves(cache)
    found = utils.get_leaf_tensors({"past_key_values": cache})
    assert all(a is b for a, b in zip(found.values(), leaves, strict=True))
    changed = utils.cast_leaf_tensors(copy.deepcopy(cache), torch.float64, torch.device("cpu"))
    assert changed.layer(0).state.c.dtype == torch.float64


def test_second_copy_of_the_class_has_a_name_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = types.ModuleType("a_hub_folder_with_a_cache")
    folder.__path__ = [str(Path(cache_qrnn.__file__).parent)]
    monkeypatch.setitem(sys.modules, folder.__name__, folder)
    theirs = importlib.import_module(f"{folder.__name__}.cache_qrnn").QRNNCache
    assert theirs is not QRNNCache
    names = []
    for kind in (QRNNCache, theirs):
        _, spec = torch.utils._pytree.tree_flatten(kind(1))
        dumped = torch.utils._pytree.treespec_dumps(spec)
        assert torch.utils._pytree.treespec_loads(dumped).type is kind
        names.append(dumped)
    assert names[0] != names[1]


def test_number_of_steps_is_an_int_to_python() -> None:
    layer = QRNNCacheLayer()
    assert type(layer.get_seq_length()) is int
