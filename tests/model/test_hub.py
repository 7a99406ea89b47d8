"""Where the weights of public models are found, fetched and refused; the hub itself is a stand-in."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

from vitembed.errors import ModelError
from vitembed.model import hub
from vitembed.model.names import public_source

COMMIT, OTHER = "0123456789abcdef0123456789abcdef01234567", "f" * 40
PINNED = public_source("dinov2-small").row.revision


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def online(monkeypatch, cache, fake_hub):
    """A hub with ``files`` at ``commit``; what was downloaded is listed."""
    import huggingface_hub

    monkeypatch.delenv("HF_HUB_OFFLINE")
    state = SimpleNamespace(files={}, commit=COMMIT, error=None, fetched=[], asked=[])

    def model_info(self, repo_id, *, revision=None, timeout=None):
        state.asked.append((repo_id, revision))
        if state.error is not None:
            raise state.error
        return SimpleNamespace(sha=state.commit, siblings=[SimpleNamespace(rfilename=name) for name in state.files])

    def hf_hub_download(repo_id, filename, *, revision, cache_dir):
        state.fetched.append(filename)
        folder = fake_hub.put(cache_dir, repo_id, {filename: state.files[filename]}, commit=revision, ref=None)
        return str(folder / filename)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)
    return state


def http_error(kind, status):
    """One of huggingface_hub's errors, as its own code raises it."""
    from huggingface_hub import errors

    error = getattr(errors, kind).__new__(getattr(errors, kind))
    Exception.__init__(error, f"{status} from the hub")
    error.response = None
    return error


def test_the_layout_is_the_one_huggingface_hub_reads(cache, fake_hub):
    # Otherwise the stand-in and the code would agree with each other alone.
    fake_hub.put(cache, "facebook/dinov2-base", {"config.json": b"{}", "model.safetensors": b"x"})
    from huggingface_hub import try_to_load_from_cache

    theirs = try_to_load_from_cache("facebook/dinov2-base", "model.safetensors", cache_dir=cache)
    found = hub.find_cached(public_source("dinov2-base"))
    assert (str(found.weights), found.commit) == (theirs, COMMIT)


def test_the_cache_is_where_huggingface_hub_has_it():
    code = (
        "from huggingface_hub import constants; from vitembed.model.hub import cache_dir; "
        "assert str(cache_dir()) == constants.HF_HUB_CACHE, (cache_dir(), constants.HF_HUB_CACHE); print(cache_dir())"
    )
    for variables in ({}, {"HF_HOME": "/a"}, {"XDG_CACHE_HOME": "/b"}, {"HF_HUB_CACHE": "/c", "HF_HOME": "/a"}):
        subprocess.run([sys.executable, "-c", code], env={"HOME": "/home/x", **variables}, check=True)


def test_what_is_cached_is_used_without_network(cache, fake_hub):
    with pytest.raises(ModelError):
        hub.fetch(public_source("dinov2-base"))
    fake_hub.put(cache, "facebook/dinov2-base", {"model.safetensors": b"x"})
    assert hub.fetch(public_source("dinov2-base")).commit == COMMIT
    assert hub.fetch(public_source(f"dinov2-base@{COMMIT}")).commit == COMMIT
    with pytest.raises(ModelError):
        hub.fetch(public_source(f"dinov2-base@{OTHER}"))  # never other weights than those asked for


def test_the_pinned_commit_goes_before_main(cache, caplog, fake_hub):
    fake_hub.put(cache, "facebook/dinov2-small", {"model.safetensors": b"main"})
    caplog.set_level("INFO", "vitembed")
    assert hub.fetch(public_source("dinov2-small")).commit == COMMIT
    assert "as the pinned one is not there" in caplog.text
    fake_hub.put(cache, "facebook/dinov2-small", {"model.safetensors": b"pinned"}, commit=PINNED, ref=None)
    assert hub.fetch(public_source("dinov2-small")).commit == PINNED


def test_half_a_model_is_not_there(cache, fake_hub):
    source = public_source("org/large")
    index = json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}).encode()
    files = {"model.safetensors.index.json": index, "model-1.safetensors": b"1"}
    fake_hub.put(cache, source.hub_id, files)
    assert hub.find_cached(source) is None
    fake_hub.put(cache, source.hub_id, {"model-2.safetensors": b"2"})
    found = hub.find_cached(source)
    assert [path.name for path in found.shards()] == ["model-1.safetensors", "model-2.safetensors"]
    sums = hub.checksums(found.weights)
    assert sums == {f"model-{n}.safetensors": hashlib.sha256(str(n).encode()).hexdigest() for n in (1, 2)}


@pytest.mark.parametrize("name", ["../../etc/x.safetensors", "/etc/passwd", "sub/dir.safetensors"])
def test_an_index_cannot_point_elsewhere(cache, name, fake_hub):
    index = json.dumps({"weight_map": {"a": name}}).encode()
    fake_hub.put(cache, "org/evil", {"model.safetensors.index.json": index})
    with pytest.raises(ModelError, match="is no index of weight files"):
        hub.fetch(public_source("org/evil"))


def test_a_file_that_was_damaged_in_the_cache_is_refused(cache, fake_hub):
    folder = fake_hub.put(cache, "org/model", {"model.safetensors": b"weights"})
    weights = folder / "model.safetensors"
    assert hub.checksums(weights) == hashlib.sha256(b"weights").hexdigest()
    weights.resolve().write_bytes(b"weightz")
    with pytest.raises(ModelError, match="was damaged after it was fetched"):
        hub.checksums(weights)


def test_offline_says_the_three_ways_on(cache):
    message = (
        r"dinov2-base is not on this machine and the network is switched off \(HF_HUB_OFFLINE\)\. Three ways on: .*"
        r"`hf download facebook/dinov2-base` .*--model FILE; .*`vitembed pretrain IMAGES`"
    )
    with pytest.raises(ModelError, match=message) as caught:
        hub.fetch(public_source("dinov2-base"))
    assert "\n" not in str(caught.value)
    with pytest.raises(ModelError, match=f"hf download facebook/dinov2-small --revision {PINNED}"):
        hub.fetch(public_source("dinov2-small"))


def test_fetching_takes_the_smallest_set_of_files_and_remembers_the_commit(online, monkeypatch, cache):
    online.files = {
        "config.json": b"{}", "README.md": b"", "model.safetensors": b"w", "pytorch_model.bin": b"w", "tf.h5": b"w"
    }  # fmt: skip
    found = hub.fetch(public_source("org/model"))
    assert online.fetched == ["config.json", "README.md", "model.safetensors"]
    assert (found.commit, found.weights.read_bytes()) == (COMMIT, b"w")
    # From then on it is that commit, whatever the hub has, and the hub is not asked.
    online.commit, online.files = OTHER, {"model.safetensors": b"newer"}
    assert hub.fetch(public_source("org/model")).commit == COMMIT
    assert len(online.asked) == 1
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert hub.fetch(public_source("org/model")).commit == COMMIT


def test_the_catalogues_pin_is_what_is_fetched(online):
    online.files, online.commit = {"model.safetensors": b"w"}, PINNED
    hub.fetch(public_source("dinov2-small"))
    assert online.asked == [("facebook/dinov2-small", PINNED)]


def test_no_telemetry(online, monkeypatch):
    monkeypatch.delenv("HF_HUB_DISABLE_TELEMETRY", raising=False)
    online.files = {"model.safetensors": b"w"}
    hub.fetch(public_source("org/model"))
    import os

    assert os.environ["HF_HUB_DISABLE_TELEMETRY"] == "1"


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("dinov3-small", "GatedRepoError", r"is gated: its licence \(DINOv3 License\).*huggingface.co/facebook/dinov3"),
        ("dinov3-small", "GatedRepoError", "hf auth login.*HF_TOKEN.*--model FILE"),
        ("org/nothing", "RepositoryNotFoundError", "the hub has no model org/nothing, or it is private"),
        ("facebook/dinov2-smal", "RepositoryNotFoundError", "Did you mean 'dinov2-small'"),
        ("timm/some_net", "RepositoryNotFoundError", r"end in \.TAG"),
        ("org/model@v9", "RevisionNotFoundError", "has no revision v9"),
        ("org/model", "OfflineModeIsEnabled", "org/model is not on this machine and the hub cannot be reached"),
        ("org/model", "LocalEntryNotFoundError", "the hub cannot be reached"),
        ("org/model", "HfHubHTTPError", "the hub cannot be reached .*503"),
    ],
)
def test_what_the_hub_refuses_is_one_line(online, name, error, message):
    online.error = http_error(error, 503)
    with pytest.raises(ModelError, match=message) as caught:
        hub.fetch(public_source(name))
    assert "\n" not in str(caught.value)


def test_without_network_another_commit_in_the_cache_will_do(online, cache, fake_hub):
    fake_hub.put(cache, "facebook/dinov2-small", {"model.safetensors": b"main"})
    online.error = http_error("OfflineModeIsEnabled", 0)
    assert hub.fetch(public_source("dinov2-small")).commit == COMMIT


def test_a_full_disk_is_said(online):
    online.error = OSError(28, "No space left on device")
    with pytest.raises(ModelError, match="cannot keep org/model in .*No space left on device"):
        hub.fetch(public_source("org/model"))


def test_bugs_keep_their_traceback(online):
    online.error = ZeroDivisionError("ours")
    with pytest.raises(ZeroDivisionError):
        hub.fetch(public_source("org/model"))


def test_a_repository_without_weights(online):
    online.files = {"README.md": b""}
    with pytest.raises(ModelError, match=r"org/data on the hub has none of encoder\.safetensors, model\.safetensors"):
        hub.fetch(public_source("org/data"))
