"""Whatever names a model gives an encoder: its vectors against transformers and timm, and what travels along."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import vitembed
from vitembed.errors import ConfigError, ModelError
from vitembed.model import timm_encoder
from vitembed.model.checkpoint import read_model, save_model
from vitembed.model.opening import open_model, open_trainable

IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (67, 91, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def dinov2(fake_hub):
    return fake_hub.dinov2_model()


@pytest.fixture(scope="module")
def expected(dinov2, fake_hub):
    """The vector of IMAGE by transformers alone, its processor and its model."""
    from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil

    settings = {key: value for key, value in fake_hub.BIT.items() if key != "image_processor_type"}
    pixels = torch.as_tensor(BitImageProcessorPil(**settings)(IMAGE, return_tensors="np")["pixel_values"])
    with torch.no_grad():
        return dinov2(pixels).pooler_output[0].numpy()


@pytest.fixture
def cached(dinov2, fake_hub, tmp_path, monkeypatch):
    """dinov2-small in the cache, at what main was."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    card = "---\ntags:\n- dino\nlicense: apache-2.0\n---\n# A card\nlicense: none of this\n"
    files = fake_hub.files_of(dinov2, tmp_path / "made", card=card)
    return fake_hub.put(tmp_path / "hub", "facebook/dinov2-small", files)


@pytest.fixture
def hf_folder(dinov2, fake_hub, tmp_path):
    for name, content in fake_hub.files_of(dinov2, tmp_path / "made").items():
        (tmp_path / "folder").mkdir(exist_ok=True)
        (tmp_path / "folder" / name).write_bytes(content)
    return tmp_path / "folder"


def test_a_public_name_gives_the_vectors_of_transformers(cached, expected, fake_hub):
    encoder = vitembed.load("dinov2-small", device="cpu")
    np.testing.assert_allclose(encoder.embed(IMAGE).vectors[0], expected, atol=1e-4)
    assert encoder.licence == "Apache-2.0"
    facts = encoder.provenance
    assert (facts["hub_id"], facts["revision"]) == ("facebook/dinov2-small", fake_hub.COMMIT)
    assert facts["sha256"] == (cached / "model.safetensors").readlink().name
    assert facts["preprocess_from"] == "preprocessor_config.json"
    assert "dinov2" in facts["family"]
    assert encoder.reference == f"dinov2-small@{fake_hub.COMMIT}"
    again = vitembed.load(encoder.reference, device="cpu")
    by_repository = vitembed.load("facebook/dinov2-small", device="cpu")
    assert again.fingerprint == encoder.fingerprint == by_repository.fingerprint


def test_a_repository_without_a_row_has_the_licence_of_its_card(cached, tmp_path, fake_hub):
    files = {path.name: path.read_bytes() for path in cached.iterdir()}
    fake_hub.put(tmp_path / "hub", "some-one/dino.v2", files)
    assert vitembed.load("some-one/dino.v2", device="cpu").licence == "apache-2.0"


def test_a_folder_and_a_file_of_transformers(hf_folder, expected, tmp_path, monkeypatch):
    by_folder = vitembed.load(hf_folder, device="cpu")
    np.testing.assert_allclose(by_folder.embed(IMAGE).vectors[0], expected, atol=1e-4)
    by_file = vitembed.load(hf_folder / "model.safetensors", device="cpu")
    assert by_file.fingerprint == by_folder.fingerprint  # what lies beside a lone file belongs to it
    monkeypatch.chdir(tmp_path)
    relative = vitembed.load("folder", device="cpu")
    assert relative.reference == str(tmp_path / "folder")
    assert relative.provenance["source"] == "file"


def test_a_file_among_others_does_not_take_their_config(hf_folder, tmp_path):
    shutil.copy(hf_folder / "model.safetensors", hf_folder / "another.safetensors")
    with_config, without = (read_facts(hf_folder / name) for name in ("model.safetensors", "another.safetensors"))
    assert "default of the family" in with_config == without


def read_facts(path):
    """Where the preprocessing of a lone file is from, or what is missing for it."""
    try:
        return open_model(path).provenance["preprocess_from"]
    except ModelError as error:
        return f"default of the family: {error}".replace("another", "model")


def test_saved_as_our_own_everything_travels(cached, expected, tmp_path, fake_hub):
    opened = open_trainable("dinov2-small")
    folder = save_model(
        tmp_path / "own", opened.vit, opened.preprocess, pool=opened.pool, provenance=opened.provenance,
        licence=opened.licence,
    )  # fmt: skip
    own = vitembed.load(folder, device="cpu")
    np.testing.assert_allclose(own.embed(IMAGE).vectors[0], expected, atol=1e-4)
    assert own.fingerprint == vitembed.load("dinov2-small", device="cpu").fingerprint
    assert own.licence == "Apache-2.0"
    assert own.provenance["revision"] == fake_hub.COMMIT
    assert own.reference == str(folder)


def test_names_of_the_workspace_go_before_public_ones(cached, tmp_path, monkeypatch):
    opened = open_trainable("dinov2-small")
    own = save_model(tmp_path / ".vitembed" / "models" / "dinov2-small", opened.vit, opened.preprocess)
    monkeypatch.chdir(tmp_path)
    assert open_model("dinov2-small").reference == str(own)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dinov2-smal", "no model at dinov2-smal: expected .* Did you mean 'dinov2-small'"),
        ("dinov2-base", "is not on this machine"),
        ("/no/where", "no model at /no/where"),
        ("no.safetensors", r"no model at no\.safetensors"),
    ],
)
def test_what_is_not_there(cached, name, message):
    for opening in (open_model, open_trainable):
        with pytest.raises(ModelError, match=message) as caught:
            opening(name)
        assert "\n" not in str(caught.value)


def test_a_flipped_bit_in_the_cache_is_refused(cached):
    blob = (cached / "model.safetensors").resolve()
    content = bytearray(blob.read_bytes())
    content[-5] ^= 1
    blob.write_bytes(content)
    with pytest.raises(ModelError, match="was damaged after it was fetched"):
        vitembed.load("dinov2-small")


@pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff\xfe", b" " * (2 << 20)])
def test_side_files_that_are_no_config(hf_folder, content):
    (hf_folder / "preprocessor_config.json").write_bytes(content)
    with pytest.raises(ModelError, match=r"preprocessor_config\.json"):
        vitembed.load(hf_folder)


def test_continuing_trains_at_the_size_that_the_model_is_shown(cached, photo_folder, tmp_path, fake_hub):
    result = vitembed.pretrain(
        photo_folder,
        model="dinov2-small",
        overrides=[
            *("objective.head_hidden_dim=16", "objective.head_dim=8", "objective.decoder_dim=32", "optim.max_steps=2"),
            *("optim.batch_size=8", "trainer.accelerator=cpu", "data.holdout=24", "adapt.num_checks=1"),
        ],
        workspace=tmp_path / "work",
        name="mine",
        progress=False,
    )
    made = read_model(result.model_dir)
    assert (made.preprocess.img_size, made.preprocess.crop_offset) == (28, "floor")
    assert made.licence == "Apache-2.0"
    assert made.provenance["parent"]["provenance"]["revision"] == fake_hub.COMMIT


# What our ViT does not run, by timm


@pytest.fixture
def timm_folder(tmp_path):
    """A small CNN as timm saves it for the hub, with the classifier that it was trained with."""
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=7).eval()
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.add_(0.05 * torch.rand_like(tensor))
    folder = tmp_path / "cnn"
    folder.mkdir()
    timm.models.save_for_hf(model, folder, safe_serialization=True)
    return model, folder


def test_a_cnn_of_timm_gives_its_own_pooled_feature(timm_folder):
    model, folder = timm_folder
    encoder = vitembed.load(folder, device="cpu")
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    with torch.no_grad():
        expected = model.forward_head(model.forward_features(transform(IMAGE)[None]), pre_logits=True)
    np.testing.assert_allclose(encoder.embed(IMAGE).vectors, expected.numpy(), rtol=1e-5)
    assert encoder.embed_dim == model.num_features
    assert encoder.provenance["family"] == "timm test_resnet"
    with pytest.raises(ConfigError, match="pool 'mean' needs patch tokens, which test_resnet does not give: use cls"):
        vitembed.load(folder, pool="mean")


def test_its_fingerprint_knows_the_weights(timm_folder):
    _, folder = timm_folder
    before = vitembed.load(folder).fingerprint
    assert vitembed.load(folder).fingerprint == before
    weights = load_file(folder / "model.safetensors")
    weights[next(name for name, tensor in weights.items() if tensor.is_floating_point())] += 0.01
    save_file(weights, folder / "model.safetensors")
    assert vitembed.load(folder).fingerprint != before


def test_a_collection_of_it(timm_folder, photo_folder, tmp_path):
    encoder = vitembed.load(timm_folder[1], device="cpu")
    with vitembed.Collection.create(
        tmp_path / "index", fingerprint=encoder.fingerprint, dim=encoder.embed_dim
    ) as collection:
        assert collection.update(encoder, [str(photo_folder)]).added == 24


def test_it_cannot_be_trained(timm_folder):
    with pytest.raises(ModelError, match="it cannot be trained here"):
        open_trainable(timm_folder[1])
    with pytest.raises(ModelError, match="is no vision transformer: it cannot be trained here"):
        vitembed.ViTClassifier.from_encoder(vitembed.load(timm_folder[1], device="cpu"), 3)


def test_without_timm_the_command_is_named(timm_folder, monkeypatch):
    monkeypatch.setattr("vitembed.model.opening.is_installed", lambda: False)
    with pytest.raises(ModelError, match=re.escape(timm_encoder.INSTALL)):
        vitembed.load(timm_folder[1])


def test_its_weights_have_to_fit(timm_folder):
    _, folder = timm_folder
    weights = load_file(folder / "model.safetensors")
    first = next(iter(weights))
    del weights[first]
    save_file({**weights, "stranger.weight": torch.zeros(2)}, folder / "model.safetensors")
    with pytest.raises(ModelError, match=f"weights do not fit test_resnet: missing {first}, unknown stranger.weight"):
        vitembed.load(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architecture": "net_of_next_year"}))
    with pytest.raises(ModelError, match="has no architecture net_of_next_year: update timm"):
        vitembed.load(folder)


def test_a_name_without_tag_is_that_of_timms_default_weights(timm_folder, fake_hub, tmp_path, monkeypatch):
    tagged = timm.models.get_pretrained_cfg("test_resnet").hf_hub_id
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    files = {path.name: path.read_bytes() for path in timm_folder[1].iterdir()}
    fake_hub.put(tmp_path / "hub", tagged, files)
    encoder = vitembed.load("timm/test_resnet", device="cpu")
    assert encoder.reference == f"{tagged}@{fake_hub.COMMIT}"
    assert encoder.fingerprint == vitembed.load(timm_folder[1], device="cpu").fingerprint


def test_timms_own_vits_run_in_ours(tmp_path):
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=5).eval()
    (tmp_path / "vit").mkdir()
    timm.models.save_for_hf(model, tmp_path / "vit", safe_serialization=True)
    encoder = vitembed.load(tmp_path / "vit", device="cpu")
    assert isinstance(encoder.vit, vitembed.VisionTransformer)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    with torch.no_grad():
        expected = model.forward_features(transform(IMAGE)[None])[:, 0]
    np.testing.assert_allclose(encoder.embed(IMAGE).vectors, expected.numpy(), atol=1e-4)


def test_the_authors_name_tells_dino_from_other_files_with_timms_keys(tmp_path, caplog):
    weights = timm.create_model("vit_small_patch16_224", num_classes=0, depth=1, img_size=32).state_dict()
    torch.save(weights, tmp_path / "dino_deitsmall16_pretrain.pth")
    torch.save(weights, tmp_path / "other.pth")
    with caplog.at_level("INFO", "vitembed"):
        dino = vitembed.load(tmp_path / "dino_deitsmall16_pretrain.pth", device="cpu")
        other = vitembed.load(tmp_path / "other.pth", device="cpu")
    assert (dino.provenance["family"], other.provenance["family"]) == ("dino", "timm-vit")
    assert dino.preprocess.mean == pytest.approx((0.485, 0.456, 0.406))  # as Meta's eval_knn.py
    assert (dino.preprocess.crop_pct, other.preprocess.mean) == (0.875, (0.5, 0.5, 0.5))
    assert "other.pth: nothing beside it says how images are prepared: default of the family timm-vit" in caplog.text
