"""Which encoder of a run is the best, and that its weights come back."""

from __future__ import annotations

import pytest
import torch

from vitembed.config import preset
from vitembed.images.preprocess import Preprocess
from vitembed.model.checkpoint import read_model
from vitembed.model.vit import VisionTransformer
from vitembed.pretrain.watch.best import Best, judged_by, merit
from vitembed.pretrain.watch.figures import key_figures

CONFIG = preset("nano", img_size=16, patch_size=8, embed_dim=8, depth=1, num_heads=2)


def look(step, *, rankme=10.0, retrieval=0.5, **labelled):
    scores = {"rankme": rankme, "view_retrieval": retrieval, "mean_cosine": 0.5}
    return {"step": step, "progress": step / 100, **scores, **labelled}


def encoder(seed):
    torch.manual_seed(seed)
    return VisionTransformer(CONFIG)


def filled(*looks):
    best = Best(max_rank=20)
    for number, each in enumerate(looks):
        best.add(each, encoder(number), candidate=each["step"] > 0)
    return best


def test_k_nn_decides_where_there_are_labels_else_rank_times_retrieval():
    assert merit(look(1, knn=0.4, linear=0.9), 20) == 0.4
    assert merit(look(1, rankme=10.0, retrieval=0.5), 20) == pytest.approx(0.25)
    assert judged_by(look(1, knn=0.4)) == "k-NN accuracy"
    assert filled(look(0), look(10, retrieval=0.2), look(20, retrieval=0.9), look(30, retrieval=0.8)).step == 20
    noisy = filled(look(0), look(10, rankme=19.0, retrieval=0.1), look(20, rankme=9.0, retrieval=0.6))
    assert noisy.step == 20  # many dimensions alone are noise
    labelled = filled(look(0, knn=0.9), look(10, knn=0.3, retrieval=0.1), look(20, knn=0.2, retrieval=0.9))
    assert labelled.step == 10  # the untrained one is no candidate


def test_of_equals_the_later_one_is_kept_and_its_weights_are_a_copy():
    best = Best(max_rank=20)
    vit = encoder(3)
    assert not best.add(look(0), vit, candidate=False)
    assert best.vit(CONFIG) is None
    assert best.add(look(10), vit, candidate=True)
    expected = {name: tensor.clone() for name, tensor in vit.state_dict().items()}
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in best.vit(CONFIG).state_dict().items())
    assert best.add(look(20), vit, candidate=True)
    assert best.step == 20


def test_a_checkpoint_carries_points_and_weights(tmp_path):
    best = filled(look(0), look(10, retrieval=0.9), look(20))
    torch.save(best.state_dict(), tmp_path / "state.ckpt")
    again = Best(max_rank=20)
    again.load_state_dict(torch.load(tmp_path / "state.ckpt", weights_only=True))
    assert again.looks == best.looks
    assert again.step == 10
    assert all(torch.equal(tensor, again.weights[name]) for name, tensor in best.weights.items())
    # Points that a kill took away are looked at again and stand once.
    again.add(look(20, retrieval=0.95), encoder(7), candidate=True)
    assert [each["step"] for each in again.looks] == [0, 10, 20]
    assert again.step == 20
    assert Best(max_rank=20).state_dict() == {}


def test_the_best_is_a_model_folder_that_says_which_it_is(tmp_path):
    best = filled(look(0, knn=0.1), look(10, knn=0.6), look(20, knn=0.5))
    best.save(tmp_path / "best", best.vit(CONFIG), Preprocess(img_size=16), {"made_by": "test"})
    saved = read_model(tmp_path / "best")
    assert all(torch.equal(tensor, best.weights[name]) for name, tensor in saved.vit.state_dict().items())
    assert saved.provenance["made_by"] == "test"
    assert saved.provenance["which"] == "best"
    assert saved.provenance["judged_by"] == "k-NN accuracy"
    assert saved.provenance["scores"] == best.looks[1]
    assert saved.provenance["scores_at_start"] == best.looks[0]
    assert best.provenance("last")["scores"] == best.looks[2]


def test_key_figures_go_from_start_to_end():
    looks = [look(0, knn=0.238, linear=0.3), look(10, knn=0.46, linear=0.5), look(20, knn=0.45, linear=0.5)]
    rows = dict(key_figures({"looks": looks, "best_step": 10, "majority": 0.1, "exported": "last"}))
    assert rows["k-NN accuracy"] == "23.8 % -> 45.0 % (most common class: 10.0 %)"
    assert rows["RankMe"] == "10.0 -> 10.0"
    assert rows["best"] == "step 10, k-NN accuracy 46.0 %: kept in the run's folder best"
    assert key_figures({}) == []
