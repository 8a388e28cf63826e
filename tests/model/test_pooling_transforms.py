"""torch.func over pooling, layers and models: what a loop over samples or the plain loop gives."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pooling_loop import inputs, loop, weighted
from small_models import small
from torch.autograd import forward_ad
from torch.func import (
    functional_call,
    grad,
    hessian,
    jacfwd,
    jacrev,
    jvp,
    stack_module_state,
    vjp,
    vmap,
)

from hf_qrnn import (
    QRNN,
    QRNNForCausalLM,
    QRNNForConditionalGeneration,
    QRNNForSequenceClassification,
    pool,
    use_backend,
)
from hf_qrnn.model.pool_kinds_qrnn import POOL_KINDS
from hf_qrnn.model.pooling_qrnn import NUM_GATES

pytestmark = [
    pytest.mark.usefixtures("nan_memory"),
    # torch's own, at the first forward-mode derivative and for its attention's missing vmap rule.
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning"),
]

KINDS = tuple(POOL_KINDS)
V, B, T, H = 3, 2, 4, 2
MASKS = torch.tensor(
    [[[1, 1, 1, 0], [1, 1, 1, 1]], [[0, 0, 1, 1], [0, 0, 0, 0]], [[1, 1, 1, 1], [1, 0, 0, 0]]]
).bool()
ROWS = MASKS.int().tolist()


def samples(pooling: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gates (V, B, T, G*H), biases (V, B, G*H) and initial states (V, B, H)."""
    given = inputs(pooling, shape=(V * B, T, H))
    gates, bias, first = (x.detach().unflatten(0, (V, B)) for x in given.values() if x is not None)
    return gates, bias, first


def scalar(
    gates: torch.Tensor,
    bias: torch.Tensor | None = None,
    first: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    seed: torch.Tensor | None = None,
    **options: Any,
) -> torch.Tensor:
    return weighted(
        pool(gates, bias=bias, initial_state=first, mask=mask, seed=seed, return_c=True, **options)
    )


def loop_scalar(row: int, *tensors: torch.Tensor, **options: Any) -> torch.Tensor:
    """The same of sample `row` by the plain loop."""
    gates, bias, first = tensors
    given = {"gates": gates, "bias": bias, "initial_state": first}
    return weighted(loop(**given, mask=ROWS[row], **options))


def assert_same(got: Any, wanted: Any) -> None:
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)


def stacked(results: list[Any]) -> Any:
    """Results of all samples as one, tensor by tensor."""
    flat = [torch.utils._pytree.tree_flatten(result) for result in results]
    tensors = [torch.stack(parts) for parts in zip(*(leaves for leaves, _ in flat), strict=True)]
    return torch.utils._pytree.tree_unflatten(tensors, flat[0][1])


# ------------------------------------------------------------------ the operation


@pytest.mark.parametrize("backend", ["torch", "auto"])
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("pooling", KINDS)
def test_vmap_of_gradients_is_a_loop_over_samples(
    pooling: str, reverse: bool, backend: str
) -> None:
    tensors, options = samples(pooling), {"pooling": pooling, "reverse": reverse}
    function = functools.partial(scalar, **options)
    with use_backend(backend):
        got = vmap(grad(function, argnums=(0, 1, 2)))(*tensors, MASKS)
        outer = grad(lambda *x: vmap(function)(*x, MASKS).sum(), argnums=(0, 1, 2))(*tensors)
    wanted = []
    for v in range(V):
        leaves = [x[v].clone().requires_grad_() for x in tensors]
        wanted.append(torch.autograd.grad(loop_scalar(v, *leaves, **options), leaves))
    assert_same(got, stacked(wanted))
    assert_same(outer, stacked(wanted))


@pytest.mark.parametrize("grads", [False, True], ids=["values", "gradients"])
@pytest.mark.parametrize("batched", range(1, 16))
def test_vmap_over_any_of_the_arguments(batched: int, grads: bool) -> None:
    # Bit i: whether argument i has a sample dimension, and at place i.
    function: Callable[..., Any] = functools.partial(scalar, pooling="ifo")
    if grads:
        function = grad(function, argnums=(0, 1, 2))
    in_dims, given = [], []
    for i, tensor in enumerate((*samples("ifo"), MASKS)):
        has = bool(batched & 2**i)
        dim = min(i, 2)
        in_dims.append(dim if has else None)
        given.append(tensor.movedim(0, dim) if has else tensor[0])
    got = vmap(function, in_dims=tuple(in_dims))(*given)
    wanted = [
        function(*(x if d is None else x.select(d, v) for x, d in zip(given, in_dims, strict=True)))
        for v in range(V)
    ]
    assert_same(got, stacked(wanted))


def test_vmap_of_vmap_and_of_nothing_but_gates() -> None:
    gates = torch.stack([samples("fo")[0], -samples("fo")[0]])
    function = functools.partial(scalar, pooling="fo")
    got = vmap(vmap(grad(function), in_dims=1, out_dims=1), in_dims=0)(gates.transpose(1, 2))
    wanted = [[grad(function)(gates[w, v]) for v in range(V)] for w in range(2)]
    assert_same(got.transpose(1, 2), torch.stack([torch.stack(row) for row in wanted]))


@pytest.mark.parametrize("shape", [(0, T), (B, 0), (B, 1)], ids=["no_rows", "no_steps", "one_step"])
def test_vmap_over_little(shape: tuple[int, int]) -> None:
    gates = torch.randn(V, *shape, 3 * H, dtype=torch.float64)
    function = functools.partial(scalar, pooling="fo")
    assert_same(vmap(function)(gates), torch.stack([function(x) for x in gates]))
    assert_same(vmap(grad(function))(gates), torch.stack([grad(function)(x) for x in gates]))


def test_vmap_in_half_precision_keeps_dtypes() -> None:
    gates = torch.randn(V, B, T, 3 * H).bfloat16()
    got = vmap(lambda x: tuple(pool(x, pooling="fo", return_c=True)))(gates)
    wanted = stacked([tuple(pool(x, pooling="fo", return_c=True)) for x in gates])
    assert [x.dtype for x in got] == [torch.bfloat16, torch.float32, torch.float32]
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


def test_gradients_of_leaves_flow_through_a_vmap() -> None:
    # As in an ensemble trained by an optimiser: autograd outside, vmap inside.
    gates = samples("fo")[0].requires_grad_()
    function = functools.partial(scalar, pooling="fo")
    (got,) = torch.autograd.grad(vmap(function)(gates).sum(), gates)
    (wanted,) = torch.autograd.grad(sum(function(x) for x in gates), gates)
    assert_same(got, wanted)
    with torch.no_grad():
        assert_same(vmap(function)(gates), torch.stack([function(x) for x in gates]))


def test_vjp_can_be_called_outside_its_transform() -> None:
    tensors = [x[0] for x in samples("ifo")]
    function = functools.partial(scalar, pooling="ifo", mask=MASKS[0])
    value, pull = vjp(function, *tensors)
    assert_same(pull(torch.ones_like(value)), grad(function, argnums=(0, 1, 2))(*tensors))
    pulled = vmap(pull)(torch.arange(3.0).double())
    assert_same(pulled[0][2], 2 * grad(function)(*tensors))


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("pooling", KINDS)
def test_jacobians_and_hessians_are_the_loops(pooling: str, reverse: bool) -> None:
    tensors, options = [x[0] for x in samples(pooling)], {"pooling": pooling, "reverse": reverse}
    ours = functools.partial(scalar, mask=MASKS[0], **options)
    theirs = functools.partial(loop_scalar, 0, **options)
    wanted = torch.autograd.functional.jacobian(theirs, tuple(tensors))
    for kind in (jacrev, jacfwd):
        assert_same(kind(ours, argnums=(0, 1, 2))(*tensors), wanted)
    second = torch.autograd.functional.hessian(theirs, tuple(tensors))
    for second_kind in (hessian, lambda *a, **k: jacrev(jacrev(*a, **k), **k)):
        assert_same(second_kind(ours, argnums=(0, 1, 2))(*tensors), second)
    assert_same(jacrev(jacfwd(ours))(*tensors), second[0][0])


def test_per_sample_hessians() -> None:
    gates = samples("fo")[0][:, :1]
    function = functools.partial(scalar, pooling="fo")
    for kind in (hessian, lambda f: jacrev(jacrev(f))):
        assert_same(vmap(kind(function))(gates), torch.stack([kind(function)(x) for x in gates]))


def test_third_derivatives() -> None:
    gates = samples("ifo")[0][0, :1, :3]
    ours = functools.partial(scalar, pooling="ifo")

    def theirs(x: torch.Tensor) -> torch.Tensor:
        return weighted(loop(x, "ifo"))

    wanted = jacrev(jacrev(jacrev(theirs)))(gates)
    assert_same(jacrev(jacrev(jacrev(ours)))(gates), wanted)
    assert_same(jacfwd(hessian(ours))(gates), wanted)


def test_forward_mode_goes_along_eager_calls() -> None:
    gates, direction = samples("fo")[0][:2]
    function = functools.partial(scalar, pooling="fo", mask=MASKS[0])
    wanted = (jacrev(function)(gates) * direction).sum()
    leaf = gates.clone().requires_grad_()
    for given in (gates, leaf):
        with forward_ad.dual_level():
            output = function(forward_ad.make_dual(given, direction))
            assert_same(forward_ad.unpack_dual(output).tangent, wanted)
    assert_same(jvp(function, (gates,), (direction,))[1], wanted)


def test_forward_mode_through_a_backward_pass() -> None:
    # The graph was made outside, its cotangent moves inside.
    gates, direction = samples("fo")[0][0].requires_grad_(), torch.randn(B, T, H).double()
    h = pool(gates, pooling="fo").h
    (wanted,) = torch.autograd.grad(h, gates, direction, retain_graph=True)
    with forward_ad.dual_level():
        moving = forward_ad.make_dual(torch.zeros_like(direction), direction)
        (got,) = torch.autograd.grad(h, gates, moving)
        assert_same(forward_ad.unpack_dual(got).tangent, wanted)


@pytest.mark.parametrize("name", ["vmap", "grad", "vmap_grad", "jacfwd", "hessian"])
def test_transforms_compile(name: str) -> None:
    gates = samples("fo")[0][:, :, :3]

    def one(x: torch.Tensor) -> torch.Tensor:  # Dynamo takes no jacfwd of a functools.partial
        return scalar(x, pooling="fo", reverse=True)

    functions: dict[str, Callable[..., Any]] = {
        "vmap": vmap(one),
        "grad": lambda x: grad(one)(x[0]),
        "vmap_grad": vmap(grad(one)),
        "jacfwd": lambda x: jacfwd(one)(x[0]),
        "hessian": lambda x: hessian(one)(x[0]),
    }
    try:
        compiled = torch.compile(functions[name], fullgraph=True, backend="aot_eager")
        assert_same(compiled(gates), functions[name](gates))
    finally:
        torch._dynamo.reset()


# ------------------------------------------------------------------ zoneout


@pytest.mark.parametrize("grads", [False, True], ids=["values", "gradients"])
@pytest.mark.parametrize("own_seeds", [False, True], ids=["one_seed", "own_seeds"])
@pytest.mark.parametrize("pooling", KINDS)
def test_zoneout_of_a_sample_does_not_depend_on_the_others(
    pooling: str, own_seeds: bool, grads: bool
) -> None:
    gates, bias, first = samples(pooling)
    seeds = torch.tensor([5, 6, 7]) if own_seeds else torch.tensor(5)
    function: Callable[..., Any] = functools.partial(scalar, pooling=pooling, zoneout=0.4)
    if grads:
        function = grad(function, argnums=(0, 1, 2))
    got = vmap(function, in_dims=(0, 0, 0, 0, 0 if own_seeds else None))(
        gates, bias, first, MASKS, seeds
    )
    wanted = [
        function(gates[v], bias[v], first[v], MASKS[v], seeds[v] if own_seeds else seeds)
        for v in range(V)
    ]
    assert_same(got, stacked(wanted))


def test_zoneout_follows_the_randomness_of_vmap() -> None:
    gates = torch.zeros(2, B, 8, 3 * H).double()
    function = functools.partial(scalar, pooling="fo", zoneout=0.5)
    gates[..., :H] = 1.0
    for seed in range(3):
        torch.manual_seed(seed)
        same = vmap(function, randomness="same")(gates)
        assert_same(same[0], same[1])
        torch.manual_seed(seed)
        assert_same(same[0], function(gates[0]))
        different = vmap(function, randomness="different")(gates)
        assert different[0] != different[1]
    with pytest.raises(RuntimeError, match="randomness"):
        vmap(function)(gates)


def test_seed_without_zoneout_may_be_vmapped() -> None:
    gates, seeds = samples("fo")[0], torch.arange(V)
    got = vmap(lambda x, seed: scalar(x, seed=seed, pooling="fo"))(gates, seeds)
    assert_same(got, torch.stack([scalar(x, pooling="fo") for x in gates]))


# ------------------------------------------------------------------ layers and models


def per_sample(
    module: torch.nn.Module, loss: Callable[..., torch.Tensor], *data: torch.Tensor
) -> None:
    """Gradients of each sample's loss by vmap, against backward passes one after the other."""
    parameters = {name: p.detach() for name, p in module.named_parameters()}

    def of_sample(weights: dict[str, torch.Tensor], *sample: torch.Tensor) -> torch.Tensor:
        return loss(functools.partial(functional_call, module, weights), *sample)

    got = vmap(grad(of_sample), in_dims=(None, *(0 for _ in data)))(parameters, *data)
    for v in range(len(data[0])):
        module.zero_grad()
        loss(
            lambda args, kwargs=None: module(*args, **(kwargs or {})), *(x[v] for x in data)
        ).backward()
        for name, parameter in module.named_parameters():
            wanted = parameter.grad
            assert_same(got[name][v], torch.zeros_like(parameter) if wanted is None else wanted)


@pytest.mark.parametrize(
    "options", [{}, {"bidirectional": True, "pooling": "ifo", "kernel_size": 3}]
)
def test_per_sample_gradients_of_a_layer(options: dict[str, Any]) -> None:
    rnn = QRNN(3, 4, 2, batch_first=True, **options).double()
    per_sample(
        rnn, lambda call, x: weighted(call((x[None],))[0][None]), torch.randn(V, T, 3).double()
    )


def test_per_sample_gradients_where_a_cpu_convolves_by_pairs() -> None:
    # Wide enough for the three products that no transform follows.
    rnn = QRNN(128, 96, 1, batch_first=True).double()
    x = torch.randn(2, 520, 128).double() / 8
    per_sample(rnn, lambda call, x: call((x[None],))[0].square().sum(), x)
    leaf, direction = x.clone().requires_grad_(), torch.randn_like(x)
    (wanted,) = torch.autograd.grad(rnn(leaf)[0].square().sum(), leaf)
    with forward_ad.dual_level():
        output = rnn(forward_ad.make_dual(x, direction))[0].square().sum()
        tangent = forward_ad.unpack_dual(output).tangent
    torch.testing.assert_close(tangent, (wanted * direction).sum(), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        (QRNNForSequenceClassification, {"encoder_bidirectional": True}),
        (QRNNForSequenceClassification, {"classifier_pooling": "mean"}),
        (QRNNForCausalLM, {"pooling": "ifo", "residual": True, "rms_norm": True}),
        (QRNNForConditionalGeneration, {"attention_layers": "all", "num_attention_heads": 2}),
        (QRNNForConditionalGeneration, {}),
    ],
)
def test_per_sample_gradients_of_a_model(kind: type, changes: dict[str, Any]) -> None:
    model = kind(small(**changes)).double().eval()
    ids = torch.randint(4, 11, (V, T))
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0]])
    classifies = kind is QRNNForSequenceClassification
    labels = torch.randint(0, 2, (V,)) if classifies else ids.flip(1)

    def loss(call: Callable[..., Any], *sample: torch.Tensor) -> torch.Tensor:
        ids, mask, labels = (x[None] for x in sample)
        given = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        result: torch.Tensor = call((), given).loss
        return result

    per_sample(model, loss, ids, mask, labels)


@pytest.mark.parametrize("trained", [False, True], ids=["inference", "training"])
def test_ensemble_of_models_is_one_vmap(trained: bool) -> None:
    models = [QRNNForSequenceClassification(small()).double() for _ in range(V)]
    ids = torch.randint(4, 11, (B, T))
    parameters, buffers = stack_module_state(models)

    def logits(parameters: Any, buffers: Any) -> torch.Tensor:
        result: torch.Tensor = functional_call(models[0], (parameters, buffers), (ids,)).logits
        return result

    got = vmap(logits)(parameters, buffers)
    assert_same(got, torch.stack([model(ids).logits for model in models]))
    if trained:
        weighted([got]).backward()
        weighted([torch.stack([model(ids).logits for model in models])]).backward()
        for name, stack in parameters.items():
            assert_same(stack.grad, torch.stack([m.get_parameter(name).grad for m in models]))


def test_ensemble_of_layers_over_their_own_inputs() -> None:
    layers = [QRNN(3, 4, 1).double() for _ in range(V)]
    parameters, buffers = stack_module_state(layers)
    x = torch.randn(V, T, B, 3).double()
    got = vmap(lambda p, b, x: functional_call(layers[0], (p, b), (x,))[0])(parameters, buffers, x)
    assert_same(got, torch.stack([layer(x[v])[0] for v, layer in enumerate(layers)]))
    assert NUM_GATES["fo"] * 4 == parameters["l0.convolution.bias"].shape[1]
