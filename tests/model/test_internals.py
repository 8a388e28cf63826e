"""hf_qrnn.model.internals_qrnn: what old models do in a torch whose private names have changed."""

import ast
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from sources import MODULES, TRAVELLERS, imports, relative, tree
from transformers import PreTrainedModel

from hf_qrnn import QRNNConfig, QRNNForCausalLM, QRNNForConditionalGeneration
from hf_qrnn.model import convolution_qrnn, internals_qrnn

LOOKED_UP = ("_transforms_at_work", "_num_dispatch_modes", "_global_hooks")


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


# What a tensor, a module or an autograd function's context has.
OF_OBJECTS = {
    name
    for owner in (torch.Tensor, torch.nn.Linear(1, 1), torch.autograd.Function)
    for name in dir(owner)
    if is_private(name)
}


def private_names_of_torch(path: Path) -> list[str]:
    """Private attributes behind `torch` or `nn`, of tensors and modules, and imports of them."""
    found = [
        target
        for level, target in imports(path)
        if level == 0 and target.startswith("torch.") and any(map(is_private, target.split(".")))
    ]
    for node in ast.walk(tree(path)):
        names, root = [], node
        while isinstance(root, ast.Attribute):
            names.append(root.attr)
            root = root.value
        if isinstance(root, ast.Name) and root.id in ("torch", "nn") and names:
            found += [name for name in names if is_private(name)]
        # By a string, or of an object whose type the text does not say.
        found += [name for name in names[:1] if name in OF_OBJECTS]
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr"):
            owner, literal = ast.unparse(node.args[0]), node.args[1]
            name = str(literal.value) if isinstance(literal, ast.Constant) else ""
            if is_private(name) and (owner.split(".")[0] in ("torch", "nn") or name in OF_OBJECTS):
                found.append(name)
    return found


@pytest.mark.parametrize("name", [name for name in TRAVELLERS if name != "model.internals_qrnn"])
def test_traveller_asks_torch_by_public_names(name: str) -> None:
    assert private_names_of_torch(MODULES[name]) == []


def test_private_names_are_seen(tmp_path: Path) -> None:
    # The reader above must not be blind to any way of writing one.
    names = private_names_of_torch(MODULES["model.internals_qrnn"])
    assert {"torch.utils._pytree", "torch._higher_order_ops.scan.scan", "_C"} <= set(names)
    ways = tmp_path / "ways.py"
    ways.write_text('x._version, getattr(m, "_modules"), hasattr(torch.nn, "_new"), self._mine')
    assert sorted(private_names_of_torch(ways)) == ["_modules", "_new", "_version"]
    old = Path(__file__).parents[1] / "saved_by_0_1_0" / "code" / "convolution_qrnn.py"
    assert set(private_names_of_torch(old)) >= {"_C", "_has_any_global_hook"}, relative(old)


def trained_and_generated(kind: Any) -> list[Any]:
    """Loss, gradients and ids: wide enough for steps by pairs, which the names decide on."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 20, "embedding_size": 128, "hidden_size": 128}
    model = kind(QRNNConfig(**sizes, encoder_layers=1, decoder_layers=1))
    ids = torch.randint(3, 20, (32, 20))
    mask = torch.ones_like(ids)
    mask[0, 15:] = 0
    loss = model(ids, attention_mask=mask, labels=ids).loss
    loss.backward()
    made = [
        model.eval().generate(ids[:2], attention_mask=mask[:2], max_new_tokens=5, **call)
        for call in ({}, {"num_beams": 2}, {"cache_implementation": "static"})
    ]
    return [loss.detach(), *(parameter.grad for parameter in model.parameters()), *made]


@pytest.mark.parametrize("kind", [QRNNForCausalLM, QRNNForConditionalGeneration])
@pytest.mark.parametrize("name", [*LOOKED_UP, "_pytree", "_FORWARD_AD"])
def test_one_name_is_gone(monkeypatch: pytest.MonkeyPatch, kind: Any, name: str) -> None:
    monkeypatch.setattr(convolution_qrnn, "prefers_onednn", lambda: False)
    expected = trained_and_generated(kind)
    monkeypatch.setattr(internals_qrnn, name, None)
    got = trained_and_generated(kind)
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


ALL_GONE = """
import torch, transformers
import transformers.cache_utils, transformers.modeling_layers, transformers.modeling_utils
import transformers.generation.utils, transformers.modeling_outputs, transformers.initialization
gone = [
    (torch._C, "_are_functorch_transforms_active"),
    (torch._C, "_len_torch_dispatch_stack"),
    (torch.nn.modules.module, "_has_any_global_hook"),
    (torch.autograd.forward_ad, "_current_level"),
    (torch._dynamo, "mark_static_address"),
    (torch._decomp, "register_decomposition"),
]
kept = [(owner, name, getattr(owner, name)) for owner, name in gone]
for owner, name in gone:
    delattr(owner, name)
from hf_qrnn import QRNNConfig, QRNNForConditionalGeneration
for owner, name, value in kept:  # torch itself needs them
    if name != "mark_static_address":
        setattr(owner, name, value)
from hf_qrnn.model import convolution_qrnn, internals_qrnn
assert internals_qrnn.is_transformed() and internals_qrnn.is_watched()
sizes = {"vocab_size": 20, "embedding_size": 6, "hidden_size": 8}
model = QRNNForConditionalGeneration(QRNNConfig(**sizes, encoder_layers=1, decoder_layers=1))
ids = torch.randint(3, 20, (2, 9))
model(ids, labels=ids).loss.backward()
assert all(parameter.grad is not None for parameter in model.parameters())
model.eval()
for options in ({}, {"num_beams": 2}, {"cache_implementation": "static", "disable_compile": True}):
    assert model.generate(ids, max_new_tokens=4, **options).shape[0] == 2
print("ran")
"""


def test_all_names_are_gone_while_the_code_is_imported() -> None:
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path))
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(ALL_GONE)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "ran"


# ------------------------------------------------------------------ hooks of transformers


def test_load_hook_passes_on_what_it_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    def later(*, target: Any, weights: Any) -> Any:
        return target, weights

    monkeypatch.setattr(PreTrainedModel, "_load_pretrained_model", staticmethod(later))
    assert QRNNForCausalLM._load_pretrained_model(target=1, weights=2) == (1, 2)


class LaterMixin:
    """generate() as a later transformers may have it: more arguments, fewer private attributes."""

    def _prepare_generation_config(self, generation_config: Any, **kwargs: Any) -> Any:
        prepared, rest = super()._prepare_generation_config(generation_config, **kwargs)
        del prepared._has_no_length
        return prepared, rest

    def _prepare_cache_for_generation(self, *args: Any, **kwargs: Any) -> Any:
        return super()._prepare_cache_for_generation(*args, **kwargs, later=True)

    def _prefill(self, *args: Any, **kwargs: Any) -> Any:
        return super()._prefill(*args, **kwargs, later=True)

    def _get_logits_processor(self, *args: Any, **kwargs: Any) -> Any:
        kwargs.pop("encoder_input_ids", None)
        return super()._get_logits_processor(*args, **kwargs)


class LaterLanguageModel(LaterMixin, QRNNForCausalLM):
    pass


class LaterTranslationModel(LaterMixin, QRNNForConditionalGeneration):
    pass


@pytest.mark.parametrize("kind", [LaterLanguageModel, LaterTranslationModel])
@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"guidance_scale": 2.0}], ids=str)
def test_hooks_of_generate_take_what_they_do_not_know(kind: Any, options: Any) -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 20, "embedding_size": 6, "hidden_size": 8}
    model = kind(QRNNConfig(**sizes, encoder_layers=1, decoder_layers=1)).eval()
    ids = torch.randint(3, 20, (2, 5))
    made = model.generate(ids, max_new_tokens=6, **options)
    plain = kind.__bases__[1](model.config).eval()
    plain.load_state_dict(model.state_dict())
    assert torch.equal(made, plain.generate(ids, max_new_tokens=6, **options))
