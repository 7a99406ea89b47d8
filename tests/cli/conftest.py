"""The app as users get it: from the installed console script."""

from __future__ import annotations

from importlib.metadata import entry_points

import pytest
from typer.testing import CliRunner


@pytest.fixture(scope="session")
def app():
    (script,) = entry_points(group="console_scripts", name="vitembed")
    return script.load()


@pytest.fixture
def vitembed(app):
    """Run ``vitembed ARGUMENTS...``; the result has exit_code, stdout and stderr. A bug is raised as it is."""

    def run(*arguments, code=0):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="vitembed")
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == code, result.output
        return result

    return run


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """A real model of two narrow blocks, untrained."""
    import torch

    from vitembed.config import ViTConfig
    from vitembed.images.preprocess import Preprocess
    from vitembed.model.checkpoint import save_model
    from vitembed.model.vit import VisionTransformer

    torch.manual_seed(0)
    config = ViTConfig(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2)
    return save_model(tmp_path_factory.mktemp("models") / "tiny", VisionTransformer(config), Preprocess(img_size=32))


@pytest.fixture
def other_model_folder(tmp_path):
    """Another one, of another width."""
    from vitembed.config import ViTConfig
    from vitembed.images.preprocess import Preprocess
    from vitembed.model.checkpoint import save_model
    from vitembed.model.vit import VisionTransformer

    config = ViTConfig(img_size=32, patch_size=8, embed_dim=48, depth=1, num_heads=2)
    return save_model(tmp_path / "models" / "other", VisionTransformer(config), Preprocess(img_size=32))


@pytest.fixture
def workspace(tmp_path, model_folder, monkeypatch):
    """A workspace with that model; the current folder is in it."""
    import shutil

    shutil.copytree(model_folder, tmp_path / ".vitembed" / "model")
    monkeypatch.chdir(tmp_path)
    return tmp_path
