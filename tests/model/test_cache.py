"""QRNNCache: what is kept is all that is needed, no more, and can be taken back."""

import copy
from typing import Any

import pytest
import torch
from generating import language_model, seq2seq, source

from hf_qrnn import QRNNCache
from hf_qrnn.model.cache_qrnn import QRNNCacheLayer, QRNNStaticCacheLayer
from hf_qrnn.model.layers_qrnn import LayerPast

VARIANTS: dict[str, dict[str, Any]] = {
    "f k1": {"pooling": "f", "decoder_kernel_sizes": 1},
    "fo k2": {"pooling": "fo"},
    "ifo k3 dense": {"pooling": "ifo", "decoder_kernel_sizes": 3, "dense_connections": True},
    "attends everywhere": {"attention_layers": "all", "residual": True, "rms_norm": True},
}
KINDS = pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
EVERY_VARIANT = pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)


def tokens(length: int, rows: int = 3) -> torch.Tensor:
    return torch.randint(4, 13, (rows, length))


def tensors(cache: QRNNCache) -> list[torch.Tensor]:
    return [x for layer in cache.layers for x in (*layer.state, *layer.memory) if x is not None]


def num_bytes(cache: QRNNCache) -> int:
    """Of everything that the states keep alive."""
    parts = [x for layer in cache.layers for x in layer.state]
    return sum(part.untyped_storage().nbytes() for part in parts)


# ------------------------------------------------------------------ what is kept


@KINDS
@torch.no_grad()
def test_state_is_constant_in_the_target_length(static: bool) -> None:
    model, inputs = seq2seq(), source()
    found = []
    for length in (1, 50):
        cache = QRNNCache(2, static=static)
        model(**inputs, decoder_input_ids=tokens(length), past_key_values=cache)
        shapes = [tuple(x.shape) for layer in cache.layers for x in layer.state]
        found.append((shapes, num_bytes(cache)))
    assert found[0] == found[1] == ([(3, 1, 8), (3, 8)] * 2, 2 * 3 * (8 + 8) * 8)


@KINDS
@EVERY_VARIANT
@torch.no_grad()
def test_chunks_equal_the_whole(changes: dict[str, Any], static: bool) -> None:
    model, inputs, ids = seq2seq(**changes), source(), tokens(9)
    cache = QRNNCache(2, static=static)
    parts = [
        model(**inputs, decoder_input_ids=part, past_key_values=cache).logits
        for part in ids.split([4, 1, 1, 3], dim=1)
    ]
    torch.testing.assert_close(torch.cat(parts, 1), model(**inputs, decoder_input_ids=ids).logits)
    assert int(cache.get_seq_length()) == 9


@KINDS
@pytest.mark.parametrize("change", ["reorder", "repeat", "select"])
@torch.no_grad()
def test_rows_move_with_everything_they_need(change: str, static: bool) -> None:
    model, inputs, ids = seq2seq(attention_layers="all"), source(), tokens(4)
    cache = QRNNCache(2, static=static)
    model(**inputs, decoder_input_ids=ids, past_key_values=cache)
    if change == "repeat":
        rows = torch.tensor([0, 0, 1, 1, 2, 2])
        cache.batch_repeat_interleave(2)
    else:
        rows = torch.tensor([2, 0, 0] if change == "reorder" else [1])
        getattr(cache, "reorder_cache" if change == "reorder" else "batch_select_indices")(rows)
    following = tokens(1, len(rows))
    moved = {name: tensor[rows] for name, tensor in inputs.items()}
    step = model(**moved, decoder_input_ids=following, past_key_values=cache)
    whole = model(**moved, decoder_input_ids=torch.cat([ids[rows], following], dim=1))
    torch.testing.assert_close(step.logits[:, -1], whole.logits[:, -1])
    assert cache.batch_size == len(rows)


@KINDS
@torch.no_grad()
def test_reset_forgets(static: bool) -> None:
    model, cache = seq2seq(), QRNNCache(2, static=static)
    model(**source(), decoder_input_ids=tokens(4), past_key_values=cache)
    cache.reset()
    assert (cache.get_seq_length(), cache.batch_size) == (0, -1)
    for rows in (3, 2):
        inputs = {name: tensor[:rows] for name, tensor in source().items()}
        ids = tokens(4, rows)
        again = model(**inputs, decoder_input_ids=ids, past_key_values=cache)
        torch.testing.assert_close(again.logits, model(**inputs, decoder_input_ids=ids).logits)
        cache.reset()


@KINDS
@torch.no_grad()
def test_copy_goes_its_own_way(static: bool) -> None:
    model, cache, ids, following = (
        language_model(),
        QRNNCache(2, static=static),
        tokens(4),
        tokens(1),
    )
    model(ids, past_key_values=cache)
    other = copy.deepcopy(cache)
    model(tokens(5), past_key_values=cache)
    step = model(following, past_key_values=other).logits
    whole = model(torch.cat([ids, following], 1)).logits
    torch.testing.assert_close(step, whole[:, -1:])
    assert [int(c.get_seq_length()) for c in (cache, other)] == [9, 5]


def test_gradients_flow_through_a_dynamic_cache() -> None:
    model, ids, cache = language_model(), tokens(6), QRNNCache(2)
    parts = [model(part, past_key_values=cache).logits for part in ids.split([4, 2], 1)]
    grads = [
        torch.autograd.grad(logits.square().sum(), model.model.shared.weight)[0]
        for logits in (torch.cat(parts, 1), model(ids).logits)
    ]
    torch.testing.assert_close(*grads)


def test_cache_tells_transformers_what_it_is() -> None:
    cache = QRNNCache(2)
    assert len(cache) == 2
    assert (cache.get_seq_length(), cache.batch_size, cache.get_max_length()) == (0, -1, -1)
    assert cache.get_mask_sizes(3, 0) == (3, 0)
    assert (cache.is_compileable, cache.is_croppable) == (False, True)
    assert cache.is_sliding == [False, False]
    static = QRNNCache(2, static=True)
    assert (static.is_compileable, static.is_croppable) == (True, False)
    language_model()(tokens(4), past_key_values=cache)
    assert (cache.get_seq_length(), cache.batch_size) == (4, 3)
    assert cache.get_mask_sizes(3, 0) == (7, 0)
    assert cache.layer(0).get_max_cache_shape() == -1


def test_keys_and_values_are_refused() -> None:
    with pytest.raises(TypeError, match="A QRNNCache must be given states by `store`"):
        QRNNCache(1).update(torch.zeros(1), torch.zeros(1), 0)


# ------------------------------------------------------------------ crop


def recorded(model: Any, chunks: list[tuple[torch.Tensor, torch.Tensor]]) -> QRNNCache:
    """A cache that saw one unrecorded chunk, then recorded the others."""
    cache = QRNNCache(2)
    for index, (ids, mask) in enumerate(chunks):
        if index == 1:
            cache.activate_past_recording()
        model(ids, attention_mask=mask, past_key_values=cache)
    return cache


def ragged_chunks() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Left pads in the first chunk, right pads in later ones, and a step that is a pad."""
    masks = (
        [[0, 1, 1], [1, 1, 1], [0, 0, 1]],
        [[1, 1, 1], [1, 0, 0], [1, 1, 0]],
        [[1], [1], [0]],
        [[1, 1], [1, 0], [1, 1]],
    )
    return [(tokens(len(mask[0])), torch.tensor(mask)) for mask in masks]


@EVERY_VARIANT
@pytest.mark.parametrize("removed", range(7))
@torch.no_grad()
def test_crop_leaves_what_was_never_there(changes: dict[str, Any], removed: int) -> None:
    model, chunks = language_model(**changes), ragged_chunks()
    cache = recorded(model, chunks)
    cache.crop(-removed)
    fresh, left = QRNNCache(2), 9 - removed
    for ids, mask in chunks:
        if left > 0:
            model(ids[:, :left], attention_mask=mask[:, :left], past_key_values=fresh)
        left -= ids.shape[1]
    assert cache.get_seq_length() == fresh.get_seq_length() == 9 - removed
    following = tokens(3)
    after, expected = (model(following, past_key_values=c).logits for c in (cache, fresh))
    torch.testing.assert_close(after, expected, rtol=0, atol=1e-12)


@torch.no_grad()
def test_crop_of_everything_leaves_an_empty_cache() -> None:
    model, inputs, cache = seq2seq(), source(), QRNNCache(2)
    cache.activate_past_recording()
    model(**inputs, decoder_input_ids=tokens(5), past_key_values=cache)
    cache.crop(-5)
    assert cache.get_seq_length() == 0
    ids = tokens(4)
    again = model(**inputs, decoder_input_ids=ids, past_key_values=cache)
    torch.testing.assert_close(again.logits, model(**inputs, decoder_input_ids=ids).logits)


@torch.no_grad()
def test_rows_of_a_recording_move_too() -> None:
    model, chunks = language_model(), ragged_chunks()
    cache, rows = recorded(model, chunks), torch.tensor([2, 0])
    cache.batch_select_indices(rows)
    cache.crop(-2)
    moved = recorded(model, [(ids[rows], mask[rows]) for ids, mask in chunks])
    moved.crop(-2)
    following = tokens(1, 2)
    torch.testing.assert_close(
        *(model(following, past_key_values=c).logits for c in (cache, moved))
    )


@torch.no_grad()
def test_crop_ends_the_window_and_its_memory() -> None:
    model, cache = language_model(), QRNNCache(2)
    model(tokens(1), past_key_values=cache)
    before = num_bytes(cache)
    cache.activate_past_recording()
    model(tokens(40), past_key_values=cache)
    assert sum(len(layer._window) for layer in cache.layers) == 2
    cache.crop(-3)
    assert num_bytes(cache) == before
    assert not any(layer._window for layer in cache.layers)
    with pytest.raises(ValueError, match=r"must be in \[-0, 0\], the steps recorded since the"):
        cache.crop(-1)


@torch.no_grad()
def test_crop_refuses_what_it_cannot_undo() -> None:
    model, cache = language_model(), QRNNCache(2)
    model(tokens(4), past_key_values=cache)
    cache.crop(0)
    with pytest.raises(ValueError, match=r"^`tokens_to_remove` must be 0 unless the steps are rec"):
        cache.crop(-1)
    cache.activate_past_recording()
    model(tokens(2), past_key_values=cache)
    for removed in (-3, 1):
        with pytest.raises(ValueError, match=rf"must be in \[-2, 0\], .*, but is {removed}\.$"):
            cache.crop(removed)
    assert cache.get_seq_length() == 6
    cache.crop(-2)
    assert cache.get_seq_length() == 4


# ------------------------------------------------------------------ static


@torch.no_grad()
def test_static_cache_keeps_its_addresses() -> None:
    model, inputs, cache = seq2seq(), source(), QRNNCache(2, static=True)
    seen = []
    for _ in range(2):
        for part in tokens(6).split([4, 1, 1], 1):
            model(**inputs, decoder_input_ids=part, past_key_values=cache)
            cache.reorder_cache(torch.tensor([1, 0, 2]))
            seen.append([x.data_ptr() for x in (*tensors(cache), cache.get_seq_length())])
        cache.reset()
    assert all(addresses == seen[0] for addresses in seen)


@torch.no_grad()
def test_static_length_is_a_tensor() -> None:
    model, cache = language_model(), QRNNCache(2, static=True)
    model(tokens(4), past_key_values=cache)
    length = cache.get_seq_length()
    model(tokens(1), past_key_values=cache)
    assert isinstance(length, torch.Tensor)
    assert length.item() == 5


def test_static_cache_survives_autograd() -> None:
    model, cache = language_model(), QRNNCache(2, static=True)
    losses = [model(tokens(2), past_key_values=cache).logits.square().sum() for _ in range(3)]
    sum(losses).backward()
    assert not any(x.requires_grad for layer in cache.layers for x in layer.state)


def test_static_cache_does_not_record() -> None:
    with pytest.raises(ValueError, match="`past_key_values` must be a QRNNCache without `static`"):
        QRNNCache(1, static=True).activate_past_recording()


def test_layers_are_of_their_kind() -> None:
    assert type(QRNNCache(1).layer(0)) is QRNNCacheLayer
    assert type(QRNNCache(1, static=True).layer(0)) is QRNNStaticCacheLayer


def test_past_gives_the_state_after_any_step() -> None:
    inputs, c = torch.arange(5.0)[None, :, None], torch.arange(1.0, 4.0)[None, :, None]
    past = LayerPast(inputs, torch.tensor([[True, True, False]]), torch.zeros(1, 1), c)
    found = [[x.flatten().tolist() for x in past.state_after(n)] for n in range(4)]
    assert found == [[[0, 1], [0]], [[1, 2], [1]], [[2, 3], [2]], [[2, 3], [3]]]
