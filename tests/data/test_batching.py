"""hf_qrnn.data.batching: each example once, within limits, alike on all ranks."""

import os
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_qrnn.data.batching import (
    BatchPlan,
    BucketBatchSampler,
    EncodedPair,
    collate_pairs,
    encode_pairs,
    make_loader,
    padded_length,
)
from hf_qrnn.data.reading import TextPair
from hf_qrnn.data.tokenization import make_byte_tokenizer, train_character_tokenizer


def pairs_of(lengths: list[tuple[int, int]]) -> list[EncodedPair]:
    return [EncodedPair([4] * source, [5] * target) for source, target in lengths]


LENGTHS = [(1 + index * 7 % 31, 1 + index * 11 % 29) for index in range(203)]
PAIRS = pairs_of(LENGTHS)
SIZES = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=80)


@settings(max_examples=120, deadline=None)
@given(
    lengths=SIZES,
    max_tokens=st.integers(1, 200),
    world_size=st.integers(1, 5),
    pool_size=st.integers(1, 100),
    seed=st.integers(0, 2**40),
    epoch=st.integers(0, 5),
    shuffle=st.booleans(),
    multiple=st.sampled_from([1, 2, 4, 8]),
)
def test_every_promise_of_the_sampler(
    lengths: list[tuple[int, int]],
    max_tokens: int,
    world_size: int,
    pool_size: int,
    seed: int,
    epoch: int,
    shuffle: bool,
    multiple: int,
) -> None:
    ranks = []
    for rank in range(world_size):
        sampler = BucketBatchSampler(
            pairs_of(lengths),
            max_tokens=max_tokens,
            seed=seed,
            pool_size=pool_size,
            shuffle=shuffle,
            world_size=world_size,
            rank=rank,
            pad_to_multiple_of=multiple,
        )
        sampler.set_epoch(epoch)
        plans = list(sampler)
        assert len(sampler) == len(plans)
        assert plans == list(sampler)
        ranks.append(plans)
    assert len({len(plans) for plans in ranks}) == 1
    counted = [plan for plans in ranks for plan in plans if not plan.is_filler]
    assert sorted(index for plan in counted for index in plan.indices) == list(range(len(lengths)))
    for plan in counted:
        for side in (0, 1):
            longest = max(lengths[index][side] for index in plan.indices)
            padded = len(plan.indices) * padded_length(longest, multiple)
            assert padded <= max_tokens or len(plan.indices) == 1
    fillers = [plan for plans in ranks for plan in plans if plan.is_filler]
    assert len(fillers) < world_size
    assert all(any(plan.indices == real.indices for real in counted) for plan in fillers)
    assert not any(plans[step].is_filler for plans in ranks[:1] for step in range(len(plans)))


def test_batches_have_few_shapes() -> None:
    """Rows and lengths in fours: half the shapes, for little more padding."""

    def batches(multiple: int) -> list[torch.Tensor]:
        options = {"pad_to_multiple_of": multiple}
        sampler = BucketBatchSampler(PAIRS * 4, max_tokens=480, **options)
        loader = make_loader(PAIRS * 4, sampler, pad_token_id=0, **options)
        return [batch.inputs["input_ids"] for batch in loader]

    whole, few = batches(1), batches(4)
    assert all(ids.shape[1] % 4 == 0 for ids in few)
    assert sum(ids.shape[0] % 4 > 0 for ids in few) <= 1  # the last of the sorted examples
    assert len({ids.shape for ids in few}) < 0.6 * len({ids.shape for ids in whole})
    assert sum(ids.numel() for ids in few) < 1.1 * sum(ids.numel() for ids in whole)


def test_padding_to_a_multiple_is_padding() -> None:
    batch = collate_pairs(pairs_of([(3, 5), (6, 2)]), pad_token_id=9, pad_to_multiple_of=4)
    assert {name: tuple(ids.shape) for name, ids in batch.items()} == {
        "input_ids": (2, 8),
        "attention_mask": (2, 8),
        "labels": (2, 8),
    }
    assert batch["input_ids"][0].tolist() == [4] * 3 + [9] * 5
    assert batch["attention_mask"].sum(1).tolist() == [3, 6]
    assert batch["labels"][1].tolist() == [5] * 2 + [-100] * 6


def test_an_example_longer_than_the_limit_is_alone() -> None:
    plans = list(BucketBatchSampler(pairs_of([(2, 2), (50, 3), (2, 2), (3, 50)]), max_tokens=10))
    assert sorted(sorted(plan.indices) for plan in plans) == [[0, 2], [1], [3]]


def test_limit_counts_each_side_by_its_longest_row() -> None:
    lengths = [(4, 4)] * 6
    sampler = BucketBatchSampler(pairs_of(lengths), max_tokens=12)
    assert [len(plan.indices) for plan in sampler] == [3, 3]


def test_order_depends_on_seed_and_epoch_only() -> None:
    def plans(seed: int = 1, epoch: int = 0) -> list[BatchPlan]:
        sampler = BucketBatchSampler(PAIRS, max_tokens=100, seed=seed)
        sampler.set_epoch(epoch)
        torch.manual_seed(seed + epoch)
        return list(sampler)

    assert plans() == plans()
    assert plans(epoch=3) == plans(epoch=3)
    assert plans() != plans(epoch=1)
    assert plans() != plans(seed=2)
    sampler = BucketBatchSampler(PAIRS, max_tokens=100, seed=1)
    for epoch in (3, 0, 3):
        sampler.set_epoch(epoch)
        assert list(sampler) == plans(epoch=epoch)


def test_without_shuffle_epochs_are_equal_and_sorted() -> None:
    sampler = BucketBatchSampler(PAIRS, max_tokens=100, shuffle=False)
    first = list(sampler)
    sampler.set_epoch(1)
    assert list(sampler) == first
    # Sorted by the longer side in steps of 4 tokens.
    steps = [max(max(LENGTHS[index]) for index in plan.indices) // 4 for plan in first]
    assert steps == sorted(steps)


def test_neighbouring_ranks_get_similar_lengths() -> None:
    ranks = [
        list(BucketBatchSampler(PAIRS, max_tokens=60, world_size=4, rank=rank)) for rank in range(4)
    ]
    spreads = []
    for group in zip(*ranks, strict=True):
        longest = [max(max(LENGTHS[index]) for index in plan.indices) for plan in group]
        spreads.append(max(longest) - min(longest))
    assert max(spreads) <= 8
    assert sum(plan.is_filler for rank in ranks for plan in rank) < 4


def test_ragged_last_group_is_filled_by_weightless_batches() -> None:
    pairs = pairs_of([(5, 5)] * 5)
    ranks = [
        list(BucketBatchSampler(pairs, max_tokens=5, world_size=3, rank=rank)) for rank in range(3)
    ]
    assert [len(plans) for plans in ranks] == [2, 2, 2]
    assert [sum(plan.is_filler for plan in plans) for plans in ranks] == [0, 0, 1]


def test_start_resumes_inside_an_epoch() -> None:
    sampler = BucketBatchSampler(PAIRS, max_tokens=100)
    sampler.set_epoch(2)
    whole = list(sampler)
    for start in (0, 3, len(whole), len(whole) + 1):
        sampler.set_epoch(2, start=start)
        assert list(sampler) == whole[start:]
        assert len(sampler) == len(whole[start:])


def test_sorting_keeps_padding_low() -> None:
    generator = torch.Generator().manual_seed(0)
    source = torch.randint(10, 120, (3000,), generator=generator)
    target = (source * 0.9 + 5 * torch.randn(3000, generator=generator)).clamp(2).long()
    lengths = list(zip(source.tolist(), target.tolist(), strict=True))
    real = padded = 0
    for plan in BucketBatchSampler(pairs_of(lengths), max_tokens=4000):
        for side in (0, 1):
            column = [lengths[index][side] for index in plan.indices]
            real, padded = real + sum(column), padded + len(column) * max(column)
    assert 1 - real / padded < 0.12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 0}, "`max_tokens` must be at least 1, but is 0"),
        ({"max_tokens": 1, "pool_size": 0}, "`pool_size` must be at least 1"),
        ({"max_tokens": 1, "world_size": 0}, "`world_size` must be at least 1"),
        ({"max_tokens": 1, "world_size": 2, "rank": 2}, "`rank` must be from 0 to 1"),
        ({"max_tokens": 1, "rank": -1}, "`rank` must be from 0 to 0"),
        ({"max_tokens": 1, "seed": -1}, "`seed` must be at least 0"),
    ],
)
def test_wrong_sampler_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BucketBatchSampler(PAIRS, **options)


def test_wrong_epochs_and_empty_data() -> None:
    with pytest.raises(ValueError, match="`pairs` must hold at least one pair"):
        BucketBatchSampler([], max_tokens=1)
    with pytest.raises(ValueError, match="`pairs` must hold at least one pair"):
        collate_pairs([], pad_token_id=0)
    sampler = BucketBatchSampler(PAIRS, max_tokens=1)
    with pytest.raises(ValueError, match="`epoch` must be at least 0, but is -1"):
        sampler.set_epoch(-1)
    with pytest.raises(ValueError, match="`start` must be at least 0, but is -2"):
        sampler.set_epoch(0, start=-2)


def test_collate_pairs_pads_to_the_longest() -> None:
    batch = collate_pairs(
        [EncodedPair([7, 8, 1], [9, 1]), EncodedPair([7, 1], [9, 9, 9, 1])], pad_token_id=3
    )
    assert list(batch) == ["input_ids", "attention_mask", "labels"]
    assert batch["input_ids"].tolist() == [[7, 8, 1], [7, 1, 3]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["labels"].tolist() == [[9, 1, -100, -100], [9, 9, 9, 1]]
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


def test_collate_pairs_marks_a_real_pad_id_as_real() -> None:
    batch = collate_pairs([EncodedPair([0, 1], [0, 1])], pad_token_id=0)
    assert batch["attention_mask"].tolist() == [[1, 1]]
    assert batch["labels"].tolist() == [[0, 1]]


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(
        st.tuples(
            st.lists(st.integers(0, 300), min_size=1, max_size=9),
            st.lists(st.integers(0, 300), min_size=1, max_size=9),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_collate_pairs_loses_nothing(rows: list[tuple[list[int], list[int]]]) -> None:
    batch = collate_pairs([EncodedPair(*row) for row in rows], pad_token_id=0)
    assert batch["input_ids"].shape == (len(rows), max(len(source) for source, _ in rows))
    assert batch["labels"].shape == (len(rows), max(len(target) for _, target in rows))
    for index, (source, target) in enumerate(rows):
        mask = batch["attention_mask"][index].bool()
        assert batch["input_ids"][index][mask].tolist() == source
        assert mask.tolist() == sorted(mask.tolist(), reverse=True)
        assert batch["labels"][index][batch["labels"][index] != -100].tolist() == target


def test_encode_pairs_encodes_both_sides() -> None:
    texts = [TextPair("\u00fcb", "a"), TextPair("", "ab")]
    character = encode_pairs(train_character_tokenizer(["ab\u00fc"]), texts)
    assert [(p.source_ids, p.target_ids) for p in character] == [
        ([6, 5, 1], [4, 1]),
        ([1], [4, 5, 1]),
    ]
    byte = encode_pairs(make_byte_tokenizer(), texts)
    assert len(byte[0].source_ids) == 4


@pytest.mark.parametrize("num_workers", [0, 2])
def test_loader_yields_the_plans_and_leaves_the_global_generator_alone(num_workers: int) -> None:
    pairs = [EncodedPair([4] * (1 + i % 9) + [1], [5] * (1 + i % 7) + [1]) for i in range(50)]
    sampler = BucketBatchSampler(pairs, max_tokens=40, world_size=2, rank=1)
    loader = make_loader(pairs, sampler, pad_token_id=0, num_workers=num_workers)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    for epoch in range(2):
        sampler.set_epoch(epoch)
        batches, plans = list(loader), list(sampler)
        assert len(loader) == len(batches) == len(plans)
        for batch, plan in zip(batches, plans, strict=True):
            chosen = [pairs[index] for index in plan.indices]
            expected = collate_pairs(chosen, pad_token_id=0)
            assert batch.inputs.keys() == expected.keys()
            assert all(torch.equal(batch.inputs[key], expected[key]) for key in expected)
            assert batch.is_filler == plan.is_filler
            assert batch.indices == tuple(plan.indices)
            assert batch.num_source_tokens == int(batch.inputs["attention_mask"].sum())
            assert batch.num_target_tokens == int((batch.inputs["labels"] != -100).sum())
    assert torch.equal(torch.get_rng_state(), before)


def test_a_signal_to_the_run_does_not_reach_the_workers() -> None:
    pairs = pairs_of([(3, 4)] * 8)
    sampler = BucketBatchSampler(pairs, max_tokens=8)
    batches: Any = iter(make_loader(pairs, sampler, pad_token_id=0, num_workers=2))
    for _ in range(2):  # one of each worker: what has given a batch has left the group
        next(batches)
    groups = {os.getpgid(worker.pid) for worker in batches._workers}
    assert len(groups) == 2
    assert os.getpgid(0) not in groups


def test_loader_takes_any_iterable_of_plans() -> None:
    pairs = [EncodedPair([4, 1], [5, 1]), EncodedPair([6, 1], [7, 1])]
    plans = [BatchPlan([1]), BatchPlan([0, 1], is_filler=True)]
    batches = list(make_loader(pairs, plans, pad_token_id=0))
    assert [batch.inputs["input_ids"].tolist() for batch in batches] == [[[6, 1]], [[4, 1], [6, 1]]]
    assert [batch.is_filler for batch in batches] == [False, True]


def test_collate_pairs_gives_memory_of_its_own() -> None:
    pair = EncodedPair([3, 4], [5])
    first, second = (collate_pairs([pair, pair], pad_token_id=0)["input_ids"] for _ in range(2))
    first.fill_(7)
    assert second.tolist() == [[3, 4], [3, 4]]
    assert pair.source_ids == [3, 4]
    # A side without tokens has no columns.
    assert collate_pairs([EncodedPair([3], [])], pad_token_id=0)["labels"].shape == (1, 0)
