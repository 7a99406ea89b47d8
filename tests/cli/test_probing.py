"""probe with all its options, and classify, as users type them."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil

import numpy as np
import pytest

from vitembed.probe.saving import SavedProbe


@pytest.fixture
def saved(vitembed, workspace, photo_folder):
    vitembed("probe", "photos", "--few-shot", 0, "--save", "p.safetensors")
    return workspace / "p.safetensors"


def test_probe_writes_one_page_with_everything_inside(vitembed, workspace, photo_folder):
    shutil.copy(photo_folder / "discs" / "discs_0.png", photo_folder / "discs" / "copy of it.png")
    shutil.copy(photo_folder / "discs" / "discs_1.png", photo_folder / "squares" / "<b>odd & wrong.png")
    document = json.loads(vitembed("probe", "photos", "--few-shot", 2, "--html", "r.html", "--json").stdout)
    assert document["num_images"] == 26
    assert [point["shots"] for point in document["few_shot"]] == [1, 2, 4]
    assert len(document["confusion"]) == 3
    page = (workspace / "r.html").read_text(encoding="utf-8")
    assert page.count("<html") == 1
    assert "<script" not in page
    assert "http" not in page
    assert "<b>odd" not in page
    for heading in ("What the vectors are worth", "How many labels it takes", "When to abstain", "Class by class"):
        assert heading in page


def test_copies_are_kept_on_one_side_when_asked(vitembed, workspace, photo_folder):
    for path in sorted(photo_folder.glob("*/*.png")):
        shutil.copy(path, path.with_name(f"copy_{path.name}"))
    leaks = json.loads(vitembed("probe", "photos", "--json", "--few-shot", 0).stdout)["leaks"]
    assert leaks
    assert all(os.path.basename(leak["test"]) != os.path.basename(leak["train"]) for leak in leaks)
    grouped = json.loads(vitembed("probe", "photos", "--json", "--few-shot", 0, "--group-copies").stdout)
    assert grouped["leaks"] == []
    rows = [
        f"{path},{path.parent.name},{'test' if i % 4 == 0 else 'train'}"
        for i, path in enumerate(sorted(photo_folder.glob("*/*.png")))
    ]
    (workspace / "l.csv").write_text("\n".join(["path,label,split", *rows]))
    assert "comes with its own" in vitembed("probe", "l.csv", "--group-copies", code=1).stderr


def test_groups_of_a_csv_stay_together(vitembed, workspace, photo_folder):
    rows = [f"{path},{path.parent.name},{path.stem[-1]}" for path in sorted(photo_folder.glob("*/*.png"))]
    (workspace / "l.csv").write_text("\n".join(["path,label,group", *rows]))
    document = json.loads(vitembed("probe", "l.csv", "--json", "--few-shot", 0).stdout)
    assert document["num_test"] % 3 == 0  # each group holds one image of each kind


def test_compare(vitembed, workspace, photo_folder, other_model_folder):
    document = json.loads(
        vitembed(
            "probe", "photos", "--compare", other_model_folder, "--few-shot", 1, "--html", "c.html", "--json"
        ).stdout
    )
    first, second = document["encoders"]
    assert first["num_test"] == second["num_test"]
    (test,) = document["comparison"]["linear"]
    assert (test["first"], test["second"]) == (first["model"], second["model"])
    assert test["difference"] == pytest.approx(second["linear"]["accuracy"] - first["linear"]["accuracy"])
    assert "Side by side" in (workspace / "c.html").read_text(encoding="utf-8")
    table = vitembed("probe", "photos", "--compare", ".vitembed/model", other_model_folder, "--few-shot", 0).stdout
    assert "p (Holm)" in table
    assert "--compare" in vitembed("probe", "photos", other_model_folder, code=2).stderr
    vitembed("probe", "photos", "--compare", other_model_folder, "--save", "p.safetensors", code=2)
    assert "there is no folder" in vitembed("probe", "photos", "--html", "none/r.html", code=1).stderr


def test_an_attentive_probe_beside_the_others(vitembed, workspace, photo_folder):
    from vitembed.model.encoder import load
    from vitembed.probe.labels import read_labelled
    from vitembed.probe.patch_tokens import tokens_of

    (photo_folder / "discs" / "broken.png").write_bytes(b"")
    document = json.loads(vitembed("probe", "photos", "--attentive", "--few-shot", 0, "--json").stdout)
    assert document["attentive"]["accuracy"] > document["majority"]["accuracy"]
    encoder = load(workspace / ".vitembed" / "model")
    refs = read_labelled(photo_folder).refs
    tokens = tokens_of(encoder, refs)
    assert tokens.shape == (24, 17, 32)
    np.testing.assert_allclose(tokens[:, 0], encoder.embed([ref.path for ref in refs]).vectors, atol=1e-5)


def test_classify_prints_the_same_answers_in_every_form(vitembed, workspace, photo_folder, saved):
    lines = vitembed("classify", "photos", "--probe", saved, "--jsonl").stdout.splitlines()
    found = [json.loads(line) for line in lines]
    assert len(found) == 24
    threshold = SavedProbe.load(saved).threshold
    right = 0
    for each in found:
        sure = threshold is not None and each["probability"] >= threshold
        assert each["label"] == (each["guess"] if sure else None)
        right += each["guess"] == os.path.basename(os.path.dirname(each["path"]))
    assert right >= 20
    document = json.loads(vitembed("classify", "photos", "--probe", saved, "--json").stdout)
    assert document["results"] == found
    rows = list(csv.DictReader(io.StringIO(vitembed("classify", "photos", "--probe", saved, "--csv").stdout)))
    assert [(row["path"], row["label"] or None, row["guess"]) for row in rows] == [
        (each["path"], each["label"], each["guess"]) for each in found
    ]
    table = vitembed("classify", "photos", "--probe", saved, "--threshold", 1)
    assert all(line.startswith("unsure") for line in table.stdout.splitlines())
    assert "24 images: 0 labelled, 24 unsure" in table.stderr


def test_classify_is_what_probe_saw(vitembed, workspace, photo_folder, saved):
    from vitembed.model.encoder import load

    embeddings = load(workspace / ".vitembed" / "model").embed(str(photo_folder))
    expected = SavedProbe.load(saved).predict_proba(embeddings.vectors).max(axis=1)
    found = json.loads(vitembed("classify", "photos", "--probe", saved, "--json").stdout)["results"]
    assert [each["path"] for each in found] == embeddings.ids
    assert [each["probability"] for each in found] == pytest.approx(expected.tolist(), abs=1e-5)


def test_classify_sorts_into_folders_and_moves_nothing(vitembed, workspace, photo_folder, saved):
    before = sorted(photo_folder.rglob("*"))
    for extra in ([], [], ["--link"]):
        folder = "linked" if extra else "sorted"
        vitembed("classify", "photos", "--probe", saved, "--threshold", 0, "--copy-to", folder, *extra)
        files = [path for path in (workspace / folder).rglob("*") if path.is_file()]
        assert len(files) == 24
        assert all(path.is_symlink() is bool(extra) for path in files)
    assert sorted(photo_folder.rglob("*")) == before
    assert {path.name for path in (workspace / "sorted").iterdir()} <= {"discs", "stripes", "squares"}
    assert "lies in" in vitembed("classify", "photos", "--probe", saved, "--copy-to", "photos/s", code=1).stderr
    vitembed("classify", "photos", "--probe", saved, "--link", code=2)
    vitembed("classify", "photos", "--probe", saved, "--csv", "--json", code=2)


def test_classify_lists_bad_images(vitembed, workspace, photo_folder, saved):
    (photo_folder / "broken.png").write_bytes(b"")
    result = vitembed("classify", "photos", "--probe", saved, "--jsonl", "--report", "bad.jsonl")
    assert len(result.stdout.splitlines()) == 24
    assert "broken.png: zero bytes" in result.stderr
    assert json.loads((workspace / "bad.jsonl").read_text())["reason"] == "zero bytes"
    vitembed("classify", "photos", "--probe", saved, "--strict", code=3)
    (workspace / "empty").mkdir()
    assert "no readable image in empty" in vitembed("classify", "empty", "--probe", saved, code=1).stderr


def test_classify_refuses_other_models_and_files(vitembed, workspace, photo_folder, saved, other_model_folder):
    result = vitembed("classify", "photos", "--probe", saved, "--model", other_model_folder, code=1)
    assert "Error: the probe belongs to another model" in result.stderr
    assert result.stdout == ""
    (workspace / "no.safetensors").write_bytes(b"nonsense")
    result = vitembed("classify", "photos", "--probe", "no.safetensors", code=1)
    assert result.stderr.startswith("Error: no.safetensors: not a probe file")
    # The model lies elsewhere by now: the workspace's own is taken where it is the same.
    probe = SavedProbe.load(saved)
    from dataclasses import replace

    replace(probe, meta={**probe.meta, "model": "/gone/model"}).save(saved)
    assert len(vitembed("classify", "photos", "--probe", saved, "--jsonl").stdout.splitlines()) == 24
