"""Which images are asked about, against blobs whose best answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from vitembed.embeddings import unit_rows
from vitembed.probe.labelling.choosing import (
    COPY_COSINE,
    copy_cosine,
    margin_uncertainty,
    random_order,
    typical,
    unsure_and_different,
    without_copies,
)


def blobs(sizes, d=16, spread=0.02, seed=0):
    rng = np.random.default_rng(seed)
    centres = np.linalg.qr(rng.standard_normal((d, d)))[0][: len(sizes)]
    blob = np.repeat(np.arange(len(sizes)), sizes)
    return unit_rows(centres[blob] + spread * rng.standard_normal((len(blob), d))), blob


def test_typical_images_come_from_every_blob_and_from_its_middle():
    vectors, blob = blobs([40, 30, 20, 10])
    rows = typical(
        vectors, 4, labelled=np.zeros(0, dtype=int), available=np.ones(100, dtype=bool), rng=np.random.default_rng(0)
    )[:4]
    assert blob[rows].tolist() == [0, 1, 2, 3]  # the largest first
    for row in rows:
        members = vectors[blob == blob[row]]
        assert np.linalg.norm(vectors[row] - members.mean(axis=0)) == pytest.approx(
            np.linalg.norm(members - members.mean(axis=0), axis=1).min()
        )


def test_blobs_with_a_label_come_last_and_what_is_not_available_never():
    vectors, blob = blobs([40, 30, 20, 10])
    available = np.ones(100, dtype=bool)
    available[[0, 45]] = False
    available[blob == 3] = False
    rows = typical(vectors, 2, labelled=np.array([0, 45]), available=available, rng=np.random.default_rng(0))
    assert blob[rows[0]] == 2
    assert set(rows.tolist()) == set(np.flatnonzero(available).tolist())


def test_typical_bears_pools_with_fewer_different_images_than_are_asked_for():
    vectors = unit_rows(np.ones((5, 3)))
    rows = typical(
        vectors, 8, labelled=np.zeros(0, dtype=int), available=np.ones(5, dtype=bool), rng=np.random.default_rng(0)
    )
    assert sorted(rows.tolist()) == [0, 1, 2, 3, 4]


def test_the_unsure_are_asked_and_not_all_from_one_place():
    vectors, blob = blobs([60, 60, 60, 60])
    uncertainty = np.where(blob == 0, 0.95, np.where(blob == 1, 0.9, 0.1))
    rows = unsure_and_different(
        vectors, uncertainty, 8, available=np.ones(240, dtype=bool), rng=np.random.default_rng(0)
    )[:8]
    assert set(blob[rows].tolist()) == {0, 1}
    few = unsure_and_different(vectors, uncertainty, 8, available=np.arange(240) < 5, rng=np.random.default_rng(0))
    assert sorted(few.tolist()) == [0, 1, 2, 3, 4]


def test_margin():
    prob = np.array([[0.5, 0.5, 0.0], [0.7, 0.1, 0.2], [0.0, 0.0, 1.0]])
    np.testing.assert_allclose(margin_uncertainty(prob), [1.0, 0.5, 0.0])


def test_random_order_is_a_fair_permutation_that_new_images_do_not_disturb():
    names = [f"/images/{i}.png" for i in range(300)] + ["/images/\udcff.png"]
    order = random_order(names, 0)
    assert sorted(order.tolist()) == list(range(301))
    more = random_order([*names, *(f"/new/{i}.png" for i in range(300))], 0)
    np.testing.assert_array_equal(more[more < 301], order)
    assert 80 < (more[:301] >= 301).sum() < 220
    places = [np.flatnonzero(random_order(names, seed) == 7)[0] for seed in range(200)]
    assert abs(np.mean(places) - 150) < 4 * 301 / np.sqrt(12 * 200)
    assert not np.array_equal(order, random_order(names, 1))


def test_copies_are_told_by_the_pool():
    rng = np.random.default_rng(0)
    assert copy_cosine(unit_rows(rng.standard_normal((500, 32))), rng) == COPY_COSINE
    crowded = unit_rows(np.r_[np.ones(32)] + 0.02 * rng.standard_normal((500, 32)))
    bar = copy_cosine(crowded, rng)
    cosines = (crowded @ crowded.T)[np.triu_indices(500, 1)]
    assert cosines.min() > COPY_COSINE
    assert (cosines >= bar).mean() < 0.025  # ten copies each would be 0.02


def test_without_copies():
    vectors = unit_rows(np.array([[1, 0, 0], [1, 0.01, 0], [0, 1, 0], [0, 1, 0.01], [0, 0, 1]], dtype=float))
    assert without_copies(vectors, np.array([0, 1, 2, 3, 4]), 3, bar=0.98) == [0, 2, 4]
    assert without_copies(vectors, np.array([0, 1, 2, 3, 4]), 2, bar=0.98, beside=[1]) == [2, 4]
