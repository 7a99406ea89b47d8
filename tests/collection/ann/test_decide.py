"""The choice between exact and a family, on machines of any speed, and what it says."""

from __future__ import annotations

import numpy as np
import pytest

from vitembed.collection.ann import AnnSettings
from vitembed.collection.ann.bandwidth import Speed, measure_speed
from vitembed.collection.ann.decide import NUM_HELD_OUT, decide, estimate, size
from vitembed.collection.ann.families import _BY_COUNT, CODECS, MIN_POINTS_PER_LIST, families_for, parse_family
from vitembed.errors import CollectionError, ConfigError

GB, TB = 10**9, 10**12
LAPTOP = Speed(bytes_per_second=3.2e9, flops_per_second=1e11)


def chosen(num, settings=None, *, dim=384, speed=LAPTOP, memory=64 * GB, disk=TB, **options):
    return decide(
        num,
        dim,
        2 * dim,
        settings or AnnSettings(),
        measure=lambda: speed,
        free_memory=memory,
        free_disk=disk,
        **options,
    )


def test_a_hundred_thousand_are_compared_with_all():
    decision = chosen(100_000)
    assert decision.exact
    assert decision.reason == (
        "exact: comparing all 100,000 vectors (76.8 MB) takes about 24 ms at 3.2 GB/s, within the target of 100 ms"
    )
    # Even where four others are busy on the machine.
    assert chosen(100_000, speed=Speed(bytes_per_second=0.8e9, flops_per_second=1e10)).exact


@pytest.mark.parametrize(
    ("num", "first"),
    [
        (1_000_000, "IVF4096,SQ8"),
        (10_000_000, "IVF65536_HNSW32,SQ8"),
        (100_000_000, "IVF262144_HNSW32,RaBitQ"),
        (1_000_000_000, "IVF1048576_HNSW32,RaBitQ"),
    ],
)
def test_families_by_count(num, first):
    decision = chosen(num, memory=10 * TB, disk=10 * TB)
    assert decision.families[0].name == first
    # Then the more faithful codes over the same lists.
    rates = [CODECS[family.codec].bytes_per_dim for family in decision.families]
    assert rates == sorted(rates)
    assert len({family.num_lists for family in decision.families}) == 1


def test_words_and_estimates_of_a_million():
    decision = chosen(1_000_000)
    assert decision.reason == (
        "IVF4096,SQ8: comparing all 1,000,000 vectors (768 MB) takes about 240 ms at 3.2 GB/s, "
        "over the target of 100 ms"
    )
    cost = decision.estimate
    assert cost.disk_bytes == 1_000_000 * (384 + 8) + 4096 * 384 * 4
    assert 0.4 * GB < cost.memory_bytes < 2 * GB
    # By hand: 10 rounds over 64 x 4096 points and 2 x 64 centroids, then a million against 4,096 lists and 500 queries.
    flops = 2 * 384 * (10 * 64 * 4096 * 128 + 1_000_000 * (4096 + 500))
    assert cost.seconds == pytest.approx(flops / 1e11 + 5, rel=0.01)


def test_the_target_decides_not_the_number():
    assert chosen(1_000_000, AnnSettings(target_ms=300.0)).exact
    assert not chosen(100_000, AnnSettings(target_ms=20.0)).exact
    assert chosen(1_000_000, speed=Speed(bytes_per_second=1e10, flops_per_second=1e11)).exact


def test_small_ones_are_not_even_measured():
    decision = decide(
        20_000, 384, 768, AnnSettings(), measure=pytest.fail, free_memory=0, free_disk=0
    )  # fmt: skip
    assert decision.exact
    assert decision.exact_ms is None


def test_an_index_that_stands_is_kept_until_exact_takes_half_the_target():
    assert chosen(300_000).exact  # 72 ms
    assert not chosen(300_000, standing=True).exact
    assert chosen(200_000, standing=True).exact  # 48 ms


def test_memory_and_disk_are_asked_before():
    decision = chosen(10_000_000, memory=4 * GB)
    assert decision.exact
    assert "but building IVF65536_HNSW32,SQ8 takes" in decision.reason
    assert "of memory and 4 GB are free" in decision.reason
    assert "on disk and 1 GB are free" in chosen(10_000_000, disk=GB).reason
    named = AnnSettings(family="IVF4096,SQ8")
    with pytest.raises(CollectionError, match=r"takes .* of memory and 100 MB are free: name another family"):
        chosen(1_000_000, named, memory=10**8)
    assert chosen(1_000_000, named).families[0].name == "IVF4096,SQ8"


def test_too_few_vectors():
    slow = Speed(bytes_per_second=1e6, flops_per_second=1e9)
    decision = chosen(10_000, AnnSettings(target_ms=1.0), speed=slow)
    assert decision.exact
    assert decision.reason.endswith("but too few vectors to train an index")
    with pytest.raises(CollectionError, match=r"IVF1024,SQ8 needs 40,436 vectors at least, the index has 40,000"):
        chosen(40_000, AnnSettings(family="IVF1024,SQ8"))


@pytest.mark.parametrize("least", [row[0] for row in _BY_COUNT])
def test_centroids_have_points_enough_at_each_step(least):
    for family in families_for(least):
        assert family.num_train(least - NUM_HELD_OUT) >= MIN_POINTS_PER_LIST * family.num_lists
        assert parse_family(family.name) == family
    assert families_for(10_499) == []


@pytest.mark.parametrize(
    "name", ["", "Flat", "HNSW32", "IVF0,SQ8", "IVF16,PQ8", "IVF16,SQ8,RFlat", "ivf16,sq8", "IVF16"]
)
def test_other_families_are_refused_by_name(name):
    with pytest.raises(ConfigError, match=r"index family is .*expected auto, exact, or IVF<lists>"):
        AnnSettings(family=name)


def test_settings_out_of_range_are_all_named():
    with pytest.raises(ConfigError, match=r"target_ms is 0, .*; min_recall is 1.5, "):
        AnnSettings(target_ms=0.0, min_recall=1.5)
    with pytest.raises(ConfigError, match="target_ms is nan"):
        AnnSettings(target_ms=float("nan"))


def test_estimates_grow_with_what_is_built():
    costs = [estimate(parse_family("IVF4096,SQ8"), num, 384, LAPTOP) for num in (10**6, 2 * 10**6)]
    assert costs[0].seconds < costs[1].seconds < 2 * costs[0].seconds
    finer = estimate(parse_family("IVF4096,SQfp16"), 10**6, 384, LAPTOP)
    assert finer.disk_bytes - costs[0].disk_bytes == 10**6 * 384


def test_speed_is_of_this_machine():
    speed = measure_speed(np.eye(64, dtype=np.float16), "float16")
    assert 1e7 < speed.bytes_per_second < 1e12
    assert 1e8 < speed.flops_per_second < 1e14


def test_sizes_in_words():
    assert [size(number) for number in (1_500, 76_800_000, 3 * GB, 2 * TB)] == ["1.5 kB", "76.8 MB", "3 GB", "2 TB"]
