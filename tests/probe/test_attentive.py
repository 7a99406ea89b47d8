"""The attentive probe against plain loops, and on images whose class only one token tells."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import check_estimator
from torch.nn import functional as F

from vitembed.probe.attentive import LRS, AttentiveProbe
from vitembed.probe.linear import LinearProbe


def images(n=160, t=9, d=8, classes=3, seed=0):
    """One token carries a mark and the class; the others are noise that drowns it in the mean."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    tokens = 2.0 * rng.standard_normal((n, t, d))
    tokens[:, :, 0] = rng.normal(0.0, 0.3, (n, t))
    place = rng.integers(0, t, size=n)
    tokens[np.arange(n), place, 0] = 4.0
    tokens[np.arange(n), place, 1 : 1 + classes] = 4.0 * np.eye(classes)[labels]
    return (tokens * 3.0 + 7.0).astype(np.float32), labels, place


def test_it_finds_the_token_that_tells_the_class():
    tokens, labels, place = images(n=400)
    train, test = slice(0, 240), slice(240, 400)
    probe = AttentiveProbe(num_queries=2, epochs=25).fit(tokens[train], labels[train])
    mean = LinearProbe().fit(tokens[train].mean(axis=1), labels[train])
    assert probe.score(tokens[test], labels[test]) > 0.9
    assert mean.score(tokens[test].mean(axis=1), labels[test]) < 0.8
    attention = probe.attention(tokens[test])
    assert (attention.mean(axis=1).argmax(axis=1) == place[test]).mean() > 0.9
    np.testing.assert_allclose(attention.sum(axis=2), 1.0, rtol=1e-5)
    assert [point.lr for point in probe.path_] == list(LRS)
    assert probe.lr_ == min(probe.path_, key=lambda point: point.log_loss).lr


def test_logits_equal_a_loop_over_images_and_tokens():
    tokens, labels, _ = images(n=30)
    probe = AttentiveProbe(num_queries=3, lr=1e-2, epochs=3, batch_size=7).fit(tokens, labels)
    expected = np.zeros((30, 3))
    for i in range(30):
        for c in range(3):
            expected[i, c] = probe.intercept_[c]
            for h in range(3):
                scores = [float(token.astype(np.float64) @ probe.queries_[h]) for token in tokens[i]]
                shares = np.exp(np.array(scores) - max(scores))
                pooled = sum(
                    s * token.astype(np.float64) for s, token in zip(shares / shares.sum(), tokens[i], strict=True)
                )
                expected[i, c] += pooled @ probe.coef_[c, h]
    np.testing.assert_allclose(probe.decision_function(tokens), expected, atol=1e-4)
    prob = np.exp(expected) / np.exp(expected).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(probe.predict_proba(tokens), prob, atol=1e-4)
    assert (probe.predict(tokens) == expected.argmax(axis=1)).all()


def test_training_equals_a_plain_loop_on_standardised_tokens():
    tokens, labels, _ = images(n=40)
    weights = np.random.default_rng(1).uniform(0.5, 2.0, size=40)
    settings = {"num_queries": 2, "lr": 3e-3, "epochs": 6, "weight_decay": 0.1}
    probe = AttentiveProbe(batch_size=40, **settings).fit(tokens, labels, sample_weight=weights)
    flat = tokens.astype(np.float64).reshape(-1, 8)
    inputs = torch.tensor((tokens - flat.mean(axis=0)) / flat.std(axis=0), dtype=torch.float32)
    seed = int(np.random.RandomState(0).randint(2**31))
    queries = (0.02 * torch.randn(2, 8, generator=torch.Generator().manual_seed(seed))).requires_grad_()
    linear = torch.nn.Linear(16, 3)
    torch.nn.init.zeros_(linear.weight)
    torch.nn.init.zeros_(linear.bias)
    optimizer = torch.optim.AdamW([queries, *linear.parameters()], weight_decay=0.1)
    share = torch.tensor(weights / weights.sum(), dtype=torch.float32)
    for step in range(6):
        optimizer.param_groups[0]["lr"] = 3e-3 * (1 + math.cos(math.pi * step / 6)) / 2
        pooled = F.scaled_dot_product_attention(queries.expand(40, 2, 8), inputs, inputs, scale=1.0)
        loss = F.cross_entropy(linear(pooled.flatten(1)), torch.tensor(labels), reduction="none") @ share
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    pooled = F.scaled_dot_product_attention(queries.expand(40, 2, 8), inputs, inputs, scale=1.0)
    expected = linear(pooled.flatten(1)).detach().numpy()
    assert np.abs(expected).max() > 0.02
    np.testing.assert_allclose(probe.decision_function(tokens), expected, atol=2e-5)


def test_labels_weights_and_half_precision():
    tokens, labels, _ = images(n=60)
    names = np.array(["b", "ä", "c d"])[labels]
    settings = {"num_queries": 1, "lr": 1e-2, "epochs": 4}
    probe = AttentiveProbe(**settings).fit(tokens, names)
    assert set(probe.predict(tokens)) <= set(names)
    again = AttentiveProbe(**settings).fit(tokens, names)
    assert (again.decision_function(tokens) == probe.decision_function(tokens)).all()
    half = AttentiveProbe(**settings).fit(tokens.astype(np.float16), names)
    np.testing.assert_allclose(half.decision_function(tokens), probe.decision_function(tokens), atol=0.1)
    heavy = AttentiveProbe(class_weight={"b": 50.0}, **settings).fit(tokens, names)
    assert (heavy.predict(tokens) == "b").mean() > (probe.predict(tokens) == "b").mean()
    assert AttentiveProbe(epochs=1).fit(tokens[:3], names[:3]).path_ == []  # nothing can be held out


def test_works_in_scikit_learn_tools():
    tokens, labels, _ = images(n=60)
    probe = AttentiveProbe(num_queries=1, epochs=2)
    assert 0 <= cross_val_score(make_pipeline(FunctionTransformer(), probe), tokens, labels, cv=2).mean() <= 1
    search = GridSearchCV(AttentiveProbe(epochs=1, lr=1e-2), {"num_queries": [1, 2]}, cv=2).fit(tokens, labels)
    assert search.best_params_["num_queries"] in (1, 2)
    assert clone(AttentiveProbe(7)).get_params()["num_queries"] == 7
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns that its checks are for [n, d], and runs the few others
        check_estimator(AttentiveProbe())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_queries": 0}, "num_queries=0: expected"),
        ({"epochs": 1.5}, "epochs=1.5: expected"),
        ({"lr": 0.0}, "lr=0.0: expected a number > 0"),
        ({"weight_decay": -1.0}, "weight_decay=-1.0"),
        ({"class_weight": "equal"}, "class_weight='equal'"),
    ],
)
def test_settings_out_of_range(settings, message):
    tokens, labels, _ = images(n=12)
    with pytest.raises(ValueError, match=message):
        AttentiveProbe(**settings).fit(tokens, labels)


def test_wrong_data():
    tokens, labels, _ = images(n=12)
    with pytest.raises(ValueError, match=r"shape \[12, 9\]: expected tokens \[n, t, d\]; for vectors"):
        AttentiveProbe().fit(tokens[:, :, 0], labels)
    with pytest.raises(ValueError, match="at least 2 classes"):
        AttentiveProbe().fit(tokens, np.zeros(12))
    with pytest.raises(ValueError, match="one label for each image"):
        AttentiveProbe().fit(tokens, np.eye(3, dtype=int)[labels])
    probe = AttentiveProbe(1, lr=1e-2, epochs=1).fit(tokens, labels)
    with pytest.raises(ValueError, match="width 5, the probe was fitted on 8"):
        probe.predict(tokens[:, :, :5])
    tokens[3, 2, 1] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        probe.predict(tokens)
