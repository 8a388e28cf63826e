"""Dropout, norms and blocks of whole models: called, changed, copied, checkpointed, padded."""

import copy
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import nn

from hf_qrnn import QRNNConfig, QRNNForConditionalGeneration, use_backend
from hf_qrnn.model.attention_qrnn import AttentionBlock
from hf_qrnn.model.backends_qrnn import unavailable
from hf_qrnn.model.blocks_qrnn import Connection, FeedForward
from hf_qrnn.model.connect_qrnn import Dropout, LockedDropout, join, make_dropout

pytestmark = pytest.mark.usefixtures("nan_memory")

SAVED = Path(__file__).parents[1] / "saved_by_0_1_0"
MODERN: dict[str, Any] = {
    "vocab_size": 12,
    "embedding_size": 8,
    "hidden_size": 8,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "attention_layers": "all",
    "residual": True,
    "rms_norm": True,
    "feed_forward_size": 12,
    "num_attention_heads": 2,
    "dropout": 0.3,
    "zoneout": 0.2,
}
IDS = torch.tensor([[5, 6, 7, 8, 9], [9, 8, 7, 0, 0]])
MASK = IDS.ne(0).long()
TARGETS = torch.tensor([[4, 5, 6, 7], [6, 5, -100, -100]])

needs_native = pytest.mark.skipif(
    unavailable("native", torch.device("cpu")) is not None, reason="the library is not built"
)


@pytest.fixture(params=["torch", "native"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    reason = unavailable(request.param, torch.device("cpu"))
    if reason is not None:
        pytest.skip(reason)
    with use_backend(request.param):
        yield request.param


def make(**changes: Any) -> QRNNForConditionalGeneration:
    torch.manual_seed(0)
    return QRNNForConditionalGeneration(QRNNConfig(**{**MODERN, **changes})).double().train()


def results(
    model: nn.Module,
    ids: torch.Tensor = IDS,
    mask: torch.Tensor = MASK,
    labels: torch.Tensor = TARGETS,
    seed: int = 1,
) -> list[torch.Tensor]:
    """Logits, loss and the gradients of all parameters, with the dropout of a seed."""
    torch.manual_seed(seed)
    output = model(input_ids=ids, attention_mask=mask, labels=labels)
    grads = torch.autograd.grad(output.loss, [p for p in model.parameters() if p.requires_grad])
    return [output.logits.detach(), output.loss.detach(), *grads]


def logits(model: nn.Module, seed: int = 1) -> torch.Tensor:
    torch.manual_seed(seed)
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=IDS, attention_mask=MASK, labels=TARGETS).logits
    return found


def assert_same(got: list[torch.Tensor], wanted: list[torch.Tensor], bits: bool = True) -> None:
    for a, b in zip(got, wanted, strict=True):
        if bits:
            assert a.equal(b)
        else:
            torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


def of_kind(model: nn.Module, kind: type[nn.Module]) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, kind)]


# ------------------------------------------------------------------ Dropout


def test_dropout_is_a_module_of_torchs() -> None:
    module = Dropout(0.5)
    assert isinstance(module, nn.Dropout)
    assert repr(module) == "Dropout(p=0.5, inplace=False)"
    assert not module.state_dict()
    x = torch.ones(3, 4)
    assert module.eval()(x) is x
    module.train()
    module.p = 0.0
    assert module(x) is x
    module.p = 1.0
    assert not module(x).any()
    module.p = 1.5
    with pytest.raises(ValueError, match="`dropout` must be in"):
        module(x)


@pytest.mark.parametrize(
    "shape",
    [(), (70,), (5, 40), (2, 3, 40), (2, 3, 5, 9), (0, 3), (3, 0), (2, 0, 5), (0,)],
    ids=str,
)
def test_dropout_takes_every_shape(backend: str, shape: tuple[int, ...]) -> None:
    x = torch.full(shape, 3.0, requires_grad=True)
    out = Dropout(0.5)(x)
    assert out.shape == x.shape
    assert set(out.unique().tolist()) <= {0.0, 6.0}
    if x.numel() > 50:
        assert 0 < int((out == 0).sum()) < x.numel()
    (grad,) = torch.autograd.grad(out.sum(), x)
    assert (grad == out / 3).all()
    turned = torch.full((4, 6, 5), 1.0).transpose(0, 2)
    assert set(Dropout(0.5)(turned).unique().tolist()) == {0.0, 2.0}


def test_locked_dropout_zeroes_channels_at_all_steps(backend: str) -> None:
    torch.manual_seed(0)
    x = torch.ones(3, 7, 200, requires_grad=True)
    module = make_dropout(0.5, locked=True)
    assert isinstance(module, LockedDropout)
    out = module(x)
    assert set(out.unique().tolist()) == {0.0, 2.0}
    assert (out == out[:, :1]).all()
    # Other rows and other calls draw for themselves; about half of the channels stay.
    assert not torch.equal(out[0, 0], out[1, 0])
    assert not torch.equal(module(x), out)
    assert 0.35 < float((out > 0).float().mean()) < 0.65
    (grad,) = torch.autograd.grad(out.sum(), x)
    assert torch.equal(grad, out.detach())
    assert module.eval()(x) is x
    module.train().p = 1.5
    with pytest.raises(ValueError, match="`dropout` must be in"):
        module(x)


@pytest.mark.parametrize("shape", [(), (70,), (5, 40), (2, 3, 5, 9), (0, 3), (2, 0, 5)], ids=str)
def test_locked_dropout_takes_every_shape(shape: tuple[int, ...]) -> None:
    out = LockedDropout(0.5)(torch.full(shape, 3.0))
    assert out.shape == shape
    assert set(out.unique().tolist()) <= {0.0, 6.0}


def test_locked_dropout_is_joined_as_it_is_called(backend: str) -> None:
    module, norm = LockedDropout(0.5).double(), nn.RMSNorm(8, eps=1e-6).double()
    x, h = torch.randn(2, 3, 5, 8, dtype=torch.float64)
    torch.manual_seed(1)
    fused = join(x, h, module, norm)
    torch.manual_seed(1)
    out = x + module(h)
    torch.testing.assert_close(fused.out, out, rtol=0, atol=1e-12)
    torch.testing.assert_close(fused.normed, norm(out), rtol=0, atol=1e-12)


def test_locked_dropout_is_in_every_part_of_a_model(backend: str) -> None:
    model = make(zoneout=0.0, locked_dropout=True)
    assert not of_kind(model, Dropout)
    assert len(of_kind(model, LockedDropout)) == len(of_kind(make(zoneout=0.0), Dropout)) > 4
    assert torch.equal(logits(model.eval()), logits(make(zoneout=0.0).eval()))
    assert not torch.equal(logits(model.train()), logits(model.eval()))


def test_probabilities_may_change_later(backend: str) -> None:
    model = make(zoneout=0.0)
    plain = logits(model.eval())
    assert not logits(model.train()).equal(plain)
    for module in of_kind(model, nn.Dropout):
        module.p = 0.0
    torch.testing.assert_close(logits(model), plain, rtol=0, atol=1e-12)
    for module in of_kind(model, nn.Dropout):
        module.p = 0.5
    assert not logits(model).equal(plain)


def test_dropout_alone_may_be_on(backend: str) -> None:
    # Monte-Carlo dropout: the model is evaluated, and dropout trains.
    model = make().eval()
    plain = logits(model)
    for module in of_kind(model, nn.Dropout):
        module.train()
    draws = torch.stack([logits(model, seed) for seed in range(4)])
    assert draws[0].equal(logits(model, 0))
    assert not any(draws[i].equal(draws[0]) for i in range(1, 4))
    assert not any(draw.equal(plain) for draw in draws)


class Counted(nn.Module):
    """A dropout of somebody's own, without a rate."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x * 2


@pytest.mark.parametrize("owner", [Connection, AttentionBlock, FeedForward])
def test_another_dropout_is_called(backend: str, owner: type[nn.Module]) -> None:
    model = make()
    before = logits(model.eval())
    replaced = [Counted() for _ in of_kind(model, owner)]
    assert replaced
    for module, dropout in zip(of_kind(model, owner), replaced, strict=True):
        module.dropout = dropout
    assert not logits(model).equal(before)
    assert [dropout.calls for dropout in replaced] == [1] * len(replaced)


# ------------------------------------------------------------------ hooks and wrappers


@pytest.mark.parametrize("kind", [nn.RMSNorm, Dropout, AttentionBlock, FeedForward, nn.Linear])
def test_every_module_is_heard_once_and_nothing_changes(
    backend: str, kind: type[nn.Module]
) -> None:
    model = make()
    wanted = results(model)
    for module in of_kind(model, kind):
        heard: list[nn.Module] = []
        handle = module.register_forward_hook(lambda *call, heard=heard: heard.append(call[0]))
        assert_same(results(model), wanted, bits=False)
        handle.remove()
        assert heard == [module]


@pytest.mark.parametrize("kind", [nn.RMSNorm, Dropout, AttentionBlock, FeedForward])
def test_what_a_hook_returns_is_used(backend: str, kind: type[nn.Module]) -> None:
    model = make()
    wanted = logits(model)
    for module in of_kind(model, kind):

        def doubled(_: nn.Module, __: Any, output: Any) -> Any:
            return (output[0] * 2, *output[1:]) if isinstance(output, tuple) else output * 2

        handle = module.register_forward_hook(doubled)
        assert not logits(model).equal(wanted)
        handle.remove()
    assert logits(model).equal(wanted)


def test_a_hook_that_changes_an_attention_blocks_input_is_obeyed(backend: str) -> None:
    model = make()
    block = of_kind(model, AttentionBlock)[-1]
    x = torch.randn(2, 4, 8, dtype=torch.float64)

    def other(_: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        return (x, *given[1:])

    seen: list[torch.Tensor] = []
    handle = block.register_forward_pre_hook(other)
    inner = block.norm.register_forward_hook(lambda *call: seen.append(call[1][0]))
    logits(model)
    handle.remove()
    inner.remove()
    assert len(seen) == 1
    assert seen[0].equal(x)


class Wrapper(nn.Module):
    """Puts itself in front of a module, as adapters do."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.calls = 0

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        assert "normed" not in kwargs, "a wrapper gets what a block was always called with"
        return self.inner(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)


@pytest.mark.parametrize("kind", [nn.RMSNorm, Dropout, AttentionBlock, FeedForward, nn.Linear])
def test_wrapped_modules_are_called_and_nothing_changes(
    backend: str, kind: type[nn.Module]
) -> None:
    model = make()
    wanted = results(model)
    wrapped = copy.deepcopy(model)
    wrappers = []
    for name, module in list(wrapped.named_modules()):
        if isinstance(module, kind) and "lm_head" not in name:
            parent = wrapped.get_submodule(name.rpartition(".")[0])
            wrappers.append(Wrapper(module))
            setattr(parent, name.rpartition(".")[2], wrappers[-1])
    assert wrappers
    assert_same(results(wrapped), wanted, bits=False)
    assert [wrapper.calls for wrapper in wrappers] == [1] * len(wrappers)


# ------------------------------------------------------------------ copies and keys


def test_copies_give_the_same_bits(backend: str) -> None:
    model = make()
    wanted = results(model)
    assert_same(results(copy.deepcopy(model)), wanted)
    assert_same(results(pickle.loads(pickle.dumps(model))), wanted)
    other = make()
    assert not list(other.load_state_dict(model.state_dict()).missing_keys)
    assert_same(results(other), wanted)


@pytest.mark.parametrize("name", ["modern", "ifo_dense", "paper"])
def test_keys_are_those_of_before(name: str) -> None:
    with safe_open(SAVED / name / "model.safetensors", "pt") as file:
        saved = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
    model = QRNNForConditionalGeneration(QRNNConfig.from_pretrained(SAVED / name))
    ours = {key: list(value.shape) for key, value in model.state_dict().items()}
    tied = set(ours) - set(saved)
    assert all("embed" in key or "lm_head" in key or "shared" in key for key in tied)
    assert {key: ours[key] for key in saved} == saved


# ------------------------------------------------------------------ training


@pytest.mark.parametrize("reentrant", [False, True], ids=["", "reentrant"])
def test_checkpointing_gives_the_same_bits_with_dropout(backend: str, reentrant: bool) -> None:
    model = make()
    wanted = results(model)
    enable = getattr(model, "activation_checkpointing_enable", None)  # the older name below
    (enable or model.gradient_checkpointing_enable)({"use_reentrant": reentrant})
    torch.manual_seed(1)
    model(input_ids=IDS, attention_mask=MASK, labels=TARGETS).loss.backward()
    for parameter, grad in zip(model.parameters(), wanted[2:], strict=True):
        assert parameter.grad is not None
        assert parameter.grad.equal(grad)


@needs_native
def test_both_backends_train_alike_with_dropout() -> None:
    model = make()
    found = []
    for name in ("torch", "native"):
        with use_backend(name):
            found.append(results(model))
    assert_same(found[1], found[0], bits=False)


def test_repeated_it_gives_the_same_bits_and_another_seed_others(backend: str) -> None:
    model = make().float()
    first = results(model)
    assert_same(results(model), first)
    assert not results(model, seed=2)[0].equal(first[0])


@pytest.mark.parametrize("reverse_source", [False, True], ids=["", "reversed"])
def test_pads_and_rows_change_nothing_with_dropout(backend: str, reverse_source: bool) -> None:
    model = make(reverse_source=reverse_source)
    wanted = results(model)
    ids = torch.zeros(4, 9, dtype=torch.long)
    ids[:2, :5] = IDS
    ids[2:] = torch.randint(4, 12, (2, 9))
    labels = torch.full((4, 7), -100)
    labels[:2, :4] = TARGETS
    got = results(model, ids, ids.ne(0).long(), labels)
    # Rows without a label weigh nothing; a label that is none hides its step.
    torch.testing.assert_close(got[0][:2, :4][TARGETS >= 0], wanted[0][TARGETS >= 0])
    assert_same(got[1:], wanted[1:], bits=False)


def test_steps_are_the_parallel_run_of_a_model_that_was_trained_with_dropout(backend: str) -> None:
    model = make().eval()
    targets = torch.tensor([[1, 4, 5, 6, 7], [1, 6, 5, 8, 9]])
    with torch.no_grad():
        whole = model(input_ids=IDS, attention_mask=MASK, decoder_input_ids=targets).logits
        cache, steps = None, []
        for t in range(targets.shape[1]):
            output = model(
                input_ids=IDS,
                attention_mask=MASK,
                decoder_input_ids=targets[:, t : t + 1],
                past_key_values=cache,
                use_cache=True,
            )
            cache = output.past_key_values
            steps.append(output.logits)
    torch.testing.assert_close(torch.cat(steps, 1), whole, rtol=0, atol=1e-12)


def test_compiled_a_training_step_has_the_same_dropout() -> None:
    model = make(zoneout=0.0, encoder_layers=1, decoder_layers=1)
    wanted = results(model)
    compiled = torch.compile(model, backend="aot_eager")
    torch.manual_seed(1)
    output = compiled(input_ids=IDS, attention_mask=MASK, labels=TARGETS)
    grads = torch.autograd.grad(output.loss, list(model.parameters()))
    assert_same([output.logits, output.loss, *grads], wanted, bits=False)


def test_bfloat16_training_is_near_float32(backend: str) -> None:
    model = make().float()
    wanted = results(model)
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(input_ids=IDS, attention_mask=MASK, labels=TARGETS)
    grads = torch.autograd.grad(output.loss, list(model.parameters()))
    got = [output.logits, output.loss, *grads]
    error, size = (
        torch.stack([x.detach().float().norm() for x in tensors]).norm()
        for tensors in ([a - b for a, b in zip(got, wanted, strict=True)], wanted)
    )
    # Half a unit in the last place is 2^-9 of a number, and there are some forty operations; with
    # other bits of dropout the error is as large as the numbers.
    assert error < 0.1 * size
    assert {x.dtype for x in grads} == {torch.float32}


@pytest.mark.parametrize("same", [True, False])
def test_join_is_the_sum_of_its_parts(backend: str, same: bool) -> None:
    x, h = torch.randn(2, 2, 3, 8).unbind(0)
    dropout, norm = Dropout(0.5).train(), nn.RMSNorm(8, eps=1e-6)
    torch.manual_seed(4)
    got = join(x, h, dropout, norm if same else None)
    torch.manual_seed(4)
    wanted = x + dropout(h)
    torch.testing.assert_close(got.out, wanted)
    assert (got.normed is not None) == same
    if got.normed is not None:
        torch.testing.assert_close(got.normed, norm(wanted))
