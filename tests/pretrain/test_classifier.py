"""The supervised ViT: works on batches, learns, starts from an encoder."""

from __future__ import annotations

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import vitembed
from vitembed.config import ViTConfig
from vitembed.images.preprocess import Preprocess
from vitembed.model.encoder import Encoder
from vitembed.model.vit import VisionTransformer

CONFIG = ViTConfig(img_size=16, patch_size=4, embed_dim=32, depth=2, num_heads=2)


def data(num: int, seed: int) -> TensorDataset:
    """A bright spot somewhere: class 0 in the first channel, class 1 in the last, class 2 has none."""
    generator = torch.Generator().manual_seed(seed)
    pixels = 0.3 * torch.randn(num, 3, 16, 16, generator=generator)
    labels = torch.randint(0, 3, (num,), generator=generator)
    for image, label in zip(pixels, labels.tolist(), strict=True):
        top, left = torch.randint(0, 12, (2,), generator=generator).tolist()
        if label < 2:
            image[(0, 2)[label], top : top + 4, left : left + 4] += 2
    return TensorDataset(pixels, labels)


def test_it_learns_and_reports_held_out_accuracy():
    torch.manual_seed(0)
    model = vitembed.ViTClassifier(CONFIG, num_classes=3, hidden_dim=32, lr=3e-3)
    trainer = pl.Trainer(
        max_epochs=10, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(model, DataLoader(data(256, 0), batch_size=32, shuffle=True), DataLoader(data(128, 1), batch_size=64))
    assert trainer.callback_metrics["val_accuracy"] > 0.95
    pixels, labels = data(128, 2).tensors
    with torch.no_grad():
        assert (model.eval()(pixels).argmax(1) == labels).float().mean() > 0.95


def test_an_image_is_judged_by_itself_whatever_else_is_in_the_batch():
    model = vitembed.ViTClassifier(CONFIG, num_classes=5).eval()
    pixels = torch.randn(6, 3, 16, 16)
    with torch.no_grad():
        together = model(pixels)
        alone = torch.cat([model(image.unsqueeze(0)) for image in pixels])
    assert together.shape == (6, 5)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


def test_patches_have_a_place():
    # Without position embeddings an image and its patches in another order would be the same.
    model = vitembed.ViTClassifier(CONFIG, num_classes=2).eval()
    pixels = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        assert not torch.allclose(model(pixels), model(pixels.roll(4, dims=2)), atol=1e-5)


def test_the_head_reads_the_cls_vector_of_the_encoder_it_came_from():
    torch.manual_seed(0)
    encoder = Encoder(VisionTransformer(CONFIG), Preprocess(img_size=16))
    model = vitembed.ViTClassifier.from_encoder(encoder, num_classes=4).eval()
    pixels = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(model(pixels), model.head(encoder.vit(pixels).cls))
        model.vit.cls_token += 1
        assert not torch.equal(model.vit.cls_token, encoder.vit.cls_token)


def trainer(tmp_path, **settings):
    return pl.Trainer(
        default_root_dir=tmp_path, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, **settings,
    )  # fmt: skip


def test_lightning_saves_loads_goes_on_tests_and_predicts(tmp_path):
    train, held_out = DataLoader(data(32, 0), batch_size=16), DataLoader(data(20, 1), batch_size=16)
    model = vitembed.ViTClassifier(CONFIG, num_classes=3, hidden_dim=8, lr=2e-3, label_smoothing=0.1)
    first = trainer(tmp_path, max_epochs=1)
    first.fit(model, train)
    path = first.checkpoint_callback.best_model_path
    kinds = {type(value) for value in torch.load(path, weights_only=True)["hyper_parameters"].values()}
    assert kinds <= {dict, int, float, type(None)}
    again = vitembed.ViTClassifier.load_from_checkpoint(path, weights_only=True)
    assert (again.vit.config, again.lr, again.label_smoothing) == (CONFIG, 2e-3, 0.1)
    pixels, labels = data(20, 1).tensors
    with torch.no_grad():
        expected = model.eval()(pixels)
        assert torch.equal(again.eval()(pixels), expected)
    judged = trainer(tmp_path, max_epochs=1)
    [scores] = judged.test(again, held_out, verbose=False)
    assert abs(scores["test_accuracy"] - (expected.argmax(1) == labels).float().mean().item()) < 1e-6
    for loader in (held_out, DataLoader(pixels, batch_size=16)):  # with labels and without
        torch.testing.assert_close(torch.cat(judged.predict(again, loader)), expected, atol=1e-5, rtol=1e-4)
    assert vitembed.ViTClassifier.load_from_checkpoint(path, lr=1.0).lr == 1.0
    onward = trainer(tmp_path, max_epochs=3)
    onward.fit(again, train, ckpt_path=path)
    assert onward.global_step == 6
    # One put together from parts has the parts' shapes.
    joined = vitembed.ViTClassifier.of(model.vit, model.head)
    assert (joined.hparams["hidden_dim"], joined.hparams["num_classes"]) == (8, 3)


def test_the_rate_follows_steps_epochs_or_time_whichever_ends_the_run(tmp_path):
    class Endless(IterableDataset):
        def __iter__(self):
            pixels, labels = data(16, 0).tensors
            while True:
                yield from zip(pixels, labels, strict=True)

    class Rates(pl.Callback):
        def __init__(self):
            self.seen = []

        def on_train_batch_end(self, trainer, module, *args):
            self.seen.append(trainer.optimizers[0].param_groups[0]["lr"])

    def rates(loader, **settings):
        watch = Rates()
        model = vitembed.ViTClassifier(CONFIG, num_classes=3, lr=1.0, weight_decay=0.0)
        trainer(tmp_path, enable_checkpointing=False, callbacks=[watch], **settings).fit(model, loader)
        return watch.seen

    finite, endless = DataLoader(data(32, 0), batch_size=8), DataLoader(Endless(), batch_size=8)
    for settings in ({"max_steps": 8}, {"max_epochs": 2}):
        seen = rates(finite, **settings)
        assert len(seen) == 8
        assert max(seen) > 0.8
        assert seen[-1] < 0.05
    seen = rates(endless, max_time={"seconds": 1.5})
    assert len(seen) > 5
    assert max(seen) > 0.5
    assert seen[-1] < 0.2
    # Passes of a stream.
    seen = rates(endless, max_epochs=3, limit_train_batches=2)
    assert seen[-1] < seen[1]
    assert len(seen) == 6
