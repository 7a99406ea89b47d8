"""What people hand to the probes: tensors of any kind, tables, odd labels. Each works, or is refused in one line."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

from vitembed.errors import DataError
from vitembed.probe.attentive import AttentiveProbe
from vitembed.probe.evaluation.leakage import copy_groups, same_images
from vitembed.probe.knn import KNNProbe
from vitembed.probe.linear import LinearProbe
from vitembed.probe.report import evaluate
from vitembed.probe.ridge import RidgeProbe

VECTORS = np.random.default_rng(0).standard_normal((40, 6)).astype(np.float32)
LABELS = np.arange(40) % 3
TENSOR = torch.from_numpy(VECTORS)
PROBES = {"ridge": lambda: RidgeProbe(alpha=1.0), "linear": lambda: LinearProbe(C=1.0), "knn": KNNProbe}


class OnDevice:
    """Stands for a tensor on a GPU: no NumPy array before it is on the CPU."""

    def __init__(self, tensor):
        self.tensor, self.shape = tensor, tensor.shape

    def detach(self):
        return self

    def cpu(self):
        return self.tensor

    def __array__(self, *arguments, **settings):
        raise TypeError("can't convert cuda:0 device type tensor to numpy")


@pytest.mark.parametrize("name", PROBES)
@pytest.mark.parametrize(
    ("given", "atol"),
    [
        (TENSOR.bfloat16(), 0.3),
        (TENSOR.half(), 0.03),
        (TENSOR.clone().requires_grad_(), 1e-6),
        (TENSOR.to_sparse(), 1e-6),
        (OnDevice(TENSOR), 1e-6),
        (VECTORS.tolist(), 1e-6),
        (VECTORS.astype(object), 1e-6),
    ],
    ids=["bfloat16", "half", "grad", "sparse", "device", "list", "object"],
)
def test_vectors_of_any_kind(name, given, atol):
    probe, same = PROBES[name]().fit(given, torch.from_numpy(LABELS)), PROBES[name]().fit(VECTORS, LABELS)
    values = [(each.predict_proba if name == "knn" else each.decision_function)(VECTORS) for each in (probe, same)]
    np.testing.assert_allclose(*values, atol=atol)
    assert (probe.predict(given) == probe.predict(VECTORS)).mean() > 0.9
    assert 0 < probe.score(given, torch.from_numpy(LABELS)) <= 1
    weights = torch.ones(40, requires_grad=True)
    if name != "knn":
        PROBES[name]().fit(given, LABELS, sample_weight=weights)


def test_tables_of_pandas():
    pd = pytest.importorskip("pandas")
    table, names = pd.DataFrame(VECTORS, columns=list("abcdef")), LABELS.astype(str)
    for make in PROBES.values():
        expected = make().fit(VECTORS, names).predict(VECTORS)
        for labels in (pd.Series(names), pd.Series(names, dtype="string"), pd.Series(names).astype("category")):
            probe = make().fit(table, labels)
            assert probe.predict(table).tolist() == expected.tolist()
            assert probe.classes_.tolist() == ["0", "1", "2"]
        with pytest.raises(ValueError, match=r"y\[1\] is <NA>: the probe needs a label for each row"):
            make().fit(table, pd.Series(["a", pd.NA, *["b"] * 38], dtype="string"))


@pytest.mark.parametrize("name", PROBES)
@pytest.mark.parametrize(
    ("vectors", "labels", "message"),
    [
        (VECTORS[0], [1], r"X has shape \[6\], expected vectors \[n, d\]"),
        (VECTORS[0].tolist(), [1], "Expected 2D array, got 1D array instead"),
        (VECTORS[None], [1], "dim 3"),
        (VECTORS[:0], [], "0 sample"),
        (np.where(VECTORS > 2, np.nan, VECTORS), LABELS, "Input X contains NaN"),
        (np.where(VECTORS > 2, np.inf, VECTORS), LABELS, "contains infinity"),
        (VECTORS.astype(complex), LABELS, "Complex data not supported"),
        (VECTORS, [None, *LABELS[1:]], r"y\[0\] is None: the probe needs a label for each row"),
        (VECTORS, np.where(LABELS == 1, np.nan, LABELS), r"y\[1\] is NaN: the probe needs a label"),
        (VECTORS, [1, "a"] * 20, r"y holds labels of mixed types \(int, str\)"),
        (VECTORS, LABELS[:5], "inconsistent numbers of samples"),
        (VECTORS, LABELS + 0.5, "continuous"),
        (csr_matrix(VECTORS), LABELS, "dense data is required"),
    ],
)
def test_what_is_refused_in_one_line(name, vectors, labels, message):
    with pytest.raises((ValueError, TypeError), match=message) as raised:
        PROBES[name]().fit(vectors, labels)
    assert "\n" not in str(raised.value)


def test_attentive_probe_takes_the_same():
    tokens = TENSOR.reshape(40, 3, 2)
    for given in (tokens.bfloat16(), tokens.clone().requires_grad_(), tokens.half(), tokens.tolist()):
        probe = AttentiveProbe(epochs=1, lr=0.01).fit(given, torch.from_numpy(LABELS))
        assert probe.predict(given).shape == (40,)
    for labels in ([None, *LABELS[1:]], np.where(LABELS == 1, np.nan, LABELS), [1, "a"] * 20):
        with pytest.raises(ValueError, match=r"y\[|y holds"):
            AttentiveProbe(epochs=1, lr=0.01).fit(tokens, labels)
    with pytest.raises(ValueError, match="expected None, 'balanced' or a dict"):
        AttentiveProbe(epochs=1, class_weight=[1, 2, 3]).fit(tokens, LABELS)


def test_no_warning_of_scikit_learn_where_classes_are_many():
    many = np.arange(40) % 25
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for make in PROBES.values():
            make().fit(VECTORS, many).score(VECTORS, many)
        evaluate(VECTORS, many)
        evaluate(np.repeat(VECTORS, 2, axis=0), np.repeat(many, 2), group_copies=True)


def test_evaluation_takes_tensors_and_refuses_in_one_line():
    assert evaluate(TENSOR.bfloat16(), torch.from_numpy(LABELS)).num_images == 40
    with pytest.raises(DataError, match="a sparse matrix, expected a dense one"):
        evaluate(csr_matrix(VECTORS), LABELS)
    with pytest.raises(DataError, match=r"row 2 \(rows count from 0\) has none"):
        evaluate(VECTORS, ["a", "b", None, *["a"] * 37])


# copies, whatever is left when the mean is taken off


def one_image(kind):
    rng = np.random.default_rng(1)
    one = np.tile(rng.standard_normal(64).astype(np.float32), (24, 1))
    noise = rng.standard_normal(one.shape).astype(np.float32)
    return {
        "equal": one,
        "other batches": one * (1 + 1e-6 * noise),
        "float16": (one * (1 + 3e-4 * noise)).astype(np.float16).astype(np.float32),
        "constant": np.ones_like(one),
        "zero": np.zeros_like(one),
    }[kind]


@pytest.mark.parametrize("kind", ["equal", "other batches", "float16", "constant", "zero"])
def test_one_image_is_a_copy_of_itself(kind):
    vectors, labels = one_image(kind), np.repeat(["a", "b"], 12)
    report = evaluate(vectors, labels)
    assert report.num_near_duplicates == report.num_test == 6
    assert set(copy_groups(vectors, device="cpu").tolist()) == {0}
    if kind != "float16":
        assert [len(rows) for rows in report.fitted.contradictions] == [24]


def test_images_that_hardly_differ_from_the_mean_are_no_copies():
    rng = np.random.default_rng(2)
    vectors = 100.0 + rng.standard_normal((60, 64))  # raw cosines of 0.9999
    assert evaluate(vectors, np.arange(60) % 2).num_near_duplicates == 0
    assert len(set(copy_groups(vectors, device="cpu").tolist())) == 60
    assert same_images(vectors) == []


def test_an_image_under_two_labels_is_named():
    rng = np.random.default_rng(3)
    vectors, labels = rng.standard_normal((80, 16)).astype(np.float32), np.arange(80) % 2
    vectors[11] = vectors[50] * np.float32(1 + 1e-7)
    vectors[20] = vectors[40]  # of one class: no contradiction
    report = evaluate(vectors, labels)
    assert [rows.tolist() for rows in report.fitted.contradictions] == [[11, 50]]
    assert any("1 image is there several times with different labels (2 files" in note for note in report.notes)
