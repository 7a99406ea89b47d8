"""``vitembed finetune`` as users type it, and what the other commands make of what it leaves."""

from __future__ import annotations

import json

import pytest

QUICK = ["optim.max_steps=4", "optim.batch_size=8", "trainer.accelerator=cpu", "data.num_workers=0"]


@pytest.fixture
def tuned(vitembed, workspace, photo_folder):
    return vitembed("finetune", "photos", *QUICK, "--name", "mine", "--html", "r.html", "--seed", 1)


def test_it_prints_the_comparison_and_others_take_the_result(vitembed, workspace, tuned):
    out = " ".join(tuned.stdout.split())
    for words in ("frozen, linear", "fine-tuned", "majority", "against linear:", ".vitembed/models/mine", "tested"):
        assert words in out
    assert "gain" in out or "made it worse" in out
    assert "auto: views" in tuned.stderr
    lines = vitembed("classify", "photos", "--probe", ".vitembed/models/mine/probe.safetensors", "--jsonl").stdout
    answers = [json.loads(line) for line in lines.splitlines()]
    assert len(answers) == 24
    assert {answer["guess"] for answer in answers} <= {"discs", "squares", "stripes"}
    assert "mine" in vitembed("index", "photos", "--model", "mine").stdout + vitembed("info").stdout
    refused = vitembed(
        "classify", "photos", "--model", ".vitembed/model", "--probe", ".vitembed/models/mine/probe.safetensors", code=1
    )
    assert "belongs to another model" in refused.stderr


def test_the_page_is_one_file(workspace, tuned):
    page = (workspace / "r.html").read_text(encoding="utf-8")
    assert page.count("<html") == 1
    assert "<script" not in page
    assert "http" not in page
    for words in ("On images that none has learned from", "Class by class", "stripes", "McNemar"):
        assert words in page


def test_json_is_one_document_also_of_a_run_that_was_complete(vitembed, workspace, tuned):
    again = vitembed("finetune", "photos", *QUICK, "--name", "mine", "--seed", 1, "--json")
    document = json.loads(again.stdout)
    assert "has finished already" in again.stderr
    assert document["finetuned"]["accuracy"] == pytest.approx(
        document["linear"]["accuracy"] + document["tests"][0]["difference"]
    )
    probed = json.loads(vitembed("probe", "photos", "--seed", 1, "--few-shot", 0, "--json").stdout)
    assert document["linear"] == probed["linear"]
    assert document["num_test"] == probed["num_test"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["photos", "photos"], 2, "one folder or CSV file"),
        (["photos", "--time-budget", "soon"], 2, "not a time"),
        (["photos", "--html", "none/r.html"], 1, "there is no folder"),
        (["photos", "model.head=tree"], 1, "model.head must be one of"),
        (["photos", "--test-share", "1.5"], 1, "split.test_share must be"),
        (["photos", "--model", "nowhere"], 1, "nowhere"),
        (["photos", "--name", "model"], 1, "would replace"),
    ],
)
def test_wrong_use_is_one_line(vitembed, workspace, photo_folder, arguments, code, message):
    result = vitembed("finetune", *arguments, code=code)
    assert message in " ".join(result.stderr.replace("│", " ").split())
