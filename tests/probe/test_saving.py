"""Saved probes: what comes back is what was measured, and what is no probe is refused in one line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save

from vitembed.embeddings import Embeddings
from vitembed.errors import DataError, MismatchError
from vitembed.probe.evaluation.study import study
from vitembed.probe.saving import HiddenLayer, SavedProbe


def studied(classes=3, names=("ant", "bee", "cat"), n=120):
    rng = np.random.default_rng(0)
    labels = np.arange(n) % classes
    vectors = (2 * rng.standard_normal((classes, 8))[labels] + rng.standard_normal((n, 8))).astype(np.float32)
    return study(Embeddings(vectors, [str(i) for i in range(n)], "f" * 64, np.array(names)[labels]), num_draws=0)


@pytest.mark.parametrize(("classes", "names"), [(3, ("ant", "bee", "cat")), (2, ("yes", "no")), (3, (7, 5, 9))])
def test_a_probe_comes_back_to_the_bit(tmp_path, classes, names):
    found = studied(classes, names)
    saved = SavedProbe.of(found, {"model": "m"})
    saved.save(tmp_path / "probe.safetensors")
    back = SavedProbe.load(tmp_path / "probe.safetensors")
    vectors = found.fitted.vectors
    assert np.array_equal(back.predict_proba(vectors), saved.predict_proba(vectors))
    np.testing.assert_allclose(
        back.predict_proba(vectors), found.fitted.linear.predict_proba(vectors), rtol=1e-9, atol=1e-12
    )
    answers = np.array(back.classes)[back.predict_proba(vectors).argmax(axis=1)]
    expected = np.array(found.fitted.names)[found.fitted.linear.predict(vectors)]
    assert answers.tolist() == expected.tolist()
    assert (back.fingerprint, back.threshold) == ("f" * 64, found.abstain.threshold)
    assert back.meta["scores"] == found.report.linear.to_dict()
    assert type(back.classes[0]) is (str if isinstance(names[0], str) else int)


def test_another_encoder_is_refused():
    saved = SavedProbe.of(studied(), {"model": "models/mine"})
    saved.check_fingerprint("f" * 64, "mine")
    with pytest.raises(MismatchError, match="made for models/mine .*this is other") as raised:
        saved.check_fingerprint("e" * 64, "other")
    assert "\n" not in str(raised.value)
    with pytest.raises(DataError, match="takes 8-d vectors"):
        saved.predict_proba(np.zeros((2, 9)))
    assert saved.predict_proba(np.zeros((0, 8))).shape == (0, 3)


def test_vectors_of_unknown_origin_make_no_probe():
    with pytest.raises(DataError, match="with a fingerprint"):
        SavedProbe.of(replace(studied(), fingerprint=""), {})


def test_weights_beyond_all_measure_are_refused():
    huge = SavedProbe(
        classes=["a", "b", "c"], coef=np.full((3, 4), 1e308), intercept=np.zeros(3), fingerprint="f", threshold=0.5
    )
    with pytest.raises(DataError, match="too large"):
        huge.predict_proba(np.full((1, 4), 10.0))


def test_a_file_of_the_first_format_still_loads():
    old = SavedProbe.load(Path(__file__).parent / "data" / "probe_format_1.safetensors")
    assert (old.classes, old.fingerprint, old.threshold) == (["ant", "bee", "cat"], "0123abcd" * 8, 0.625)
    assert old.meta == {"model": "models/mine", "pool": "cls", "speed": "exact"}
    np.testing.assert_allclose(
        old.predict_proba(np.array([[1.0, 0.0]])), [[0.7053845, 0.2594965, 0.0351190]], atol=1e-6
    )


@pytest.mark.parametrize("num_classes", [2, 3])
def test_an_mlp_comes_back_to_the_bit_and_says_what_torch_says(tmp_path, num_classes):
    import torch

    torch.manual_seed(0)
    layers = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.GELU(), torch.nn.Linear(4, num_classes)).double()
    first, last = layers[0], layers[2]
    coef, intercept = last.weight.detach().numpy(), last.bias.detach().numpy()
    if num_classes == 2:
        coef, intercept = coef[1:] - coef[:1], intercept[1:] - intercept[:1]
    saved = SavedProbe(
        classes=["ant", "bee", "cat"][:num_classes],
        coef=coef,
        intercept=intercept,
        hidden=HiddenLayer(first.weight.detach().numpy(), first.bias.detach().numpy()),
        fingerprint="f" * 64,
        threshold=None,
    )
    saved.save(tmp_path / "p.safetensors")
    back = SavedProbe.load(tmp_path / "p.safetensors")
    vectors = np.random.default_rng(0).standard_normal((9, 6))
    expected = layers(torch.from_numpy(vectors)).softmax(dim=1).detach().numpy()
    np.testing.assert_allclose(back.predict_proba(vectors), expected, atol=1e-12)
    assert np.array_equal(back.predict_proba(vectors), saved.predict_proba(vectors))
    assert (back.kind, back.dim) == ("mlp", 6)
    with pytest.raises(DataError, match="takes 6-d vectors"):
        back.predict_proba(np.zeros((2, 4)))


def test_a_linear_probe_is_written_as_the_first_format_and_an_mlp_of_the_second_still_loads(tmp_path):
    SavedProbe.of(studied(), {}).save(tmp_path / "p.safetensors")
    with safe_open(tmp_path / "p.safetensors", framework="numpy") as file:
        assert json.loads(file.metadata()["vitembed_probe"])["format_version"] == 1
    old = SavedProbe.load(Path(__file__).parent / "data" / "probe_format_2.safetensors")
    assert (old.kind, old.classes, old.threshold) == ("mlp", ["ant", "bee", "cat"], 0.75)
    np.testing.assert_allclose(
        old.predict_proba(np.array([[1.0, -0.5]])), [[0.633815, 0.2714652, 0.0947198]], atol=1e-6
    )


GOOD = {
    "format_version": 1,
    "kind": "linear",
    "classes": ["a", "b", "c"],
    "fingerprint": "f",
    "threshold": 0.5,
    "meta": {},
}
ARRAYS = {"coef": np.zeros((3, 4)), "intercept": np.zeros(3)}
MLP = GOOD | {"format_version": 2, "kind": "mlp"}
MLP_ARRAYS = ARRAYS | {"hidden_coef": np.zeros((4, 6)), "hidden_intercept": np.zeros(4)}


def written(path, header=GOOD, arrays=ARRAYS, key="vitembed_probe"):
    path.write_bytes(save(arrays, metadata={key: header if isinstance(header, str) else json.dumps(header)}))
    return path


@pytest.mark.parametrize(
    ("header", "arrays", "message"),
    [
        (GOOD | {"format_version": 3}, ARRAYS, "format 3 .* upgrade vitembed"),
        (GOOD | {"format_version": 2}, ARRAYS, "format 2 of kind 'linear' .* upgrade vitembed"),
        (GOOD | {"kind": "mlp"}, ARRAYS, "format 1 of kind 'mlp'"),
        (MLP, ARRAYS, "expected coef and intercept and hidden_coef and hidden_intercept"),
        (GOOD, MLP_ARRAYS, "expected coef and intercept"),
        (MLP, MLP_ARRAYS | {"hidden_coef": np.zeros((5, 6))}, "hidden weights .* do not fit"),
        (MLP, MLP_ARRAYS | {"hidden_coef": np.zeros((4, 0))}, "hidden weights .* do not fit"),
        (MLP, MLP_ARRAYS | {"hidden_intercept": np.zeros(5)}, "hidden weights .* do not fit"),
        (MLP, MLP_ARRAYS | {"hidden_intercept": np.full(4, np.inf)}, "NaN or infinity"),
        (MLP, MLP_ARRAYS | {"hidden_coef": np.zeros((4, 6), np.float32)}, "float64"),
        (GOOD | {"format_version": "1"}, ARRAYS, "upgrade"),
        (GOOD | {"kind": "tree"}, ARRAYS, "kind 'tree'"),
        (GOOD | {"classes": ["a", "b"]}, ARRAYS, "do not fit 2 classes"),
        (GOOD | {"classes": ["a", "b", 3]}, ARRAYS, "all text or all whole"),
        (GOOD | {"classes": ["a", "b", "b"]}, ARRAYS, "same name"),
        (GOOD | {"classes": "abc"}, ARRAYS, "classes"),
        (GOOD | {"classes": [["a"], ["b"], ["c"]]}, ARRAYS, "all text"),
        (GOOD | {"classes": []}, ARRAYS, "two or more"),
        (GOOD | {"threshold": 7}, ARRAYS, "threshold 7"),
        (GOOD | {"threshold": float("nan")}, ARRAYS, "threshold nan"),
        (GOOD | {"threshold": True}, ARRAYS, "threshold"),
        (GOOD | {"fingerprint": None}, ARRAYS, "fingerprint"),
        (GOOD | {"meta": 5}, ARRAYS, "meta"),
        ("[1]", ARRAYS, "no JSON object"),
        ("{", ARRAYS, "not a readable probe file"),
        ("[" * 100_000, ARRAYS, "not a readable probe file"),
        (GOOD, {"coef": np.full((3, 4), np.nan), "intercept": np.zeros(3)}, "NaN or infinity"),
        (GOOD, {"coef": np.zeros((3, 4), np.float32), "intercept": np.zeros(3)}, "float64"),
        (GOOD, {"coef": np.zeros((3, 4))}, "expected coef and intercept"),
        (GOOD, {"coef": np.zeros((3, 0)), "intercept": np.zeros(3)}, "do not fit"),
        (GOOD, {"coef": np.zeros(12), "intercept": np.zeros(3)}, "do not fit"),
    ],
)
def test_hostile_files_give_one_line(tmp_path, header, arrays, message):
    path = written(tmp_path / "p.safetensors", header, arrays)
    with pytest.raises(DataError, match=message) as raised:
        SavedProbe.load(path)
    assert "\n" not in str(raised.value)
    assert str(path) in str(raised.value)


def test_damaged_and_foreign_files_give_one_line(tmp_path):
    path = written(tmp_path / "p.safetensors")
    SavedProbe.load(path)
    whole = path.read_bytes()
    bad = tmp_path / "bad.safetensors"
    cut = [whole[:size] for size in range(0, len(whole), 7)]
    foreign = [b"\x80\x04K\x01.", b"\xff" * 64, (2**60).to_bytes(8, "little") + b"{}", b"PK\x03\x04" + b"0" * 60]
    for data in [*cut, *foreign]:
        bad.write_bytes(data)
        with pytest.raises(DataError) as raised:
            SavedProbe.load(bad)
        assert "\n" not in str(raised.value)
    with pytest.raises(DataError, match="safetensors of another kind"):
        SavedProbe.load(written(bad, key="other"))
    with pytest.raises(DataError, match="no such file"):
        SavedProbe.load(tmp_path)
    with pytest.raises(DataError, match="cannot write"):
        SavedProbe.of(studied(), {}).save(tmp_path / "none" / "p.safetensors")
