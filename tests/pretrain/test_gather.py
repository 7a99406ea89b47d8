"""Two gloo processes with half of the images each have the loss and the gradients of one process with all of them."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from vitembed.pretrain.many.gather import SyncedBatchNorm1d, gather_batch, is_distributed

# What every process runs: the same objective on its share of the same images and masks. Alone, the share is all.
SCRIPT = """
import sys
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from vitembed.config import ObjectiveConfig, preset
from vitembed.model.vit import VisionTransformer
from vitembed.pretrain import objective as room
from vitembed.pretrain.many.gather import SyncedBatchNorm1d
from vitembed.pretrain.masking import Mask, random_mask

rank, world, init, out = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
if world > 1:
    dist.init_process_group("gloo", init_method="file://" + init, rank=rank, world_size=world)
b, n = 8, 16
share = slice(rank * b // world, (rank + 1) * b // world)
results = {}
cases = {
    f"{spread} {patch_weight}": dict(spread=spread, patch_weight=patch_weight)
    for spread in ("coding_rate", "info_nce", "visreg")
    for patch_weight in (0.0, 1.0)
}
cases["stem"] = {}
cases["teacher"] = dict(teacher=True, patch_target="latent", cls_regression_weight=1.0)
for case, settings in cases.items():
    config = ObjectiveConfig(head_hidden_dim=12, head_dim=6, decoder_dim=8, **settings)
    torch.manual_seed(0)
    stem = "conv" if case == "stem" else "patch"
    vit = VisionTransformer(preset("nano", img_size=16, patch_size=4, embed_dim=16, depth=1, stem=stem))
    model = room.MaskedViews(vit, config).double()
    views = torch.randn(2, b, 3, 16, 16).double()
    joint = random_mask(2 * b, n, 0.5, generator=torch.Generator().manual_seed(1), device="cpu")
    mine = Mask(*(part.reshape(2, b, -1)[:, share].flatten(0, 1) for part in joint))
    room.random_mask = lambda *args, **kwargs: mine
    step = DistributedDataParallel(model) if world > 1 else model
    result = step(views[:, share], torch.Generator().manual_seed(2))
    result.loss.backward()
    loss = result.loss.detach().clone()
    if world > 1:  # the patch term is each process's own
        dist.all_reduce(loss)
        loss /= world
    results[f"{case} loss"] = loss
    for name in ("info_nce", "align", "spread", "center", "scale", "shape"):  # the joint batch's: the same everywhere
        if name in result.terms:
            results[f"{case} term {name}"] = result.terms[name]
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            results[f"{case} grad {name}"] = parameter.grad
    for name, buffer in model.named_buffers():
        results[f"{case} buffer {name}"] = buffer
torch.manual_seed(3)
norm, x, weight = SyncedBatchNorm1d(5, momentum=None), 20 + torch.randn(8, 5), torch.randn(8, 5)
uneven = slice(0, 8) if world == 1 else (slice(0, 3), slice(3, 8))[rank]
x = x[uneven].requires_grad_()
for _ in range(3):
    y = norm(x)
(y * weight[uneven]).sum().backward()
results.update({f"norm {rank} out": y.detach(), f"norm {rank} grad": x.grad})
results.update({"norm mean": norm.running_mean, "norm var": norm.running_var})
torch.save(results, out)
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What one process and each of two has."""
    directory = tmp_path_factory.mktemp("gather")
    processes = []
    for world, rank in ((1, 0), (2, 0), (2, 1)):
        arguments = [str(rank), str(world), str(directory / "init"), str(directory / f"{world}-{rank}")]
        processes.append(subprocess.Popen([sys.executable, "-c", SCRIPT, *arguments]))
    assert [process.wait(timeout=120) for process in processes] == [0, 0, 0]
    return [torch.load(directory / name, weights_only=True) for name in ("1-0", "2-0", "2-1")]


def close(found, expected):
    """Equal but for the order of summation in the loss, which is computed in fp32."""
    atol = 1e-5 * float(expected.abs().max().clamp(min=0.01))
    torch.testing.assert_close(found, expected, rtol=0, atol=atol, check_dtype=False)


@pytest.mark.parametrize(
    "case",
    [
        *(f"{spread} {weight}" for spread in ("coding_rate", "info_nce", "visreg") for weight in (0.0, 1.0)),
        "teacher",
        "stem",
    ],
)
def test_two_processes_have_the_loss_and_the_gradients_of_one_with_the_joint_batch(results, case):
    one, first, second = results
    names = [name for name in one if name.startswith(f"{case} ")]
    assert sum(" grad " in name for name in names) > 15
    assert sum("running_" in name for name in names) == {"teacher": 8, "stem": 6}.get(case, 4)
    assert sum(" term " in name for name in names) == {"i": 1, "v": 4}.get(case[0], 2)
    for name in names:
        if one[name].dtype.is_floating_point:
            close(first[name], one[name])
        assert torch.equal(first[name], second[name]), name  # else the processes would drift apart


def test_batch_norm_over_uneven_batches_is_that_of_the_joint_batch(results):
    one, first, second = results
    torch.manual_seed(3)
    norm, x, weight = nn.BatchNorm1d(5, momentum=None), 20 + torch.randn(8, 5), torch.randn(8, 5)
    x.requires_grad_()
    for _ in range(3):
        y = norm(x)
    (y * weight).sum().backward()
    close(torch.cat([first["norm 0 out"], second["norm 1 out"]]), y.detach())
    close(torch.cat([first["norm 0 grad"], second["norm 1 grad"]]), x.grad)
    for statistic in ("mean", "var"):
        close(first[f"norm {statistic}"], one[f"norm {statistic}"])


def test_alone_everything_is_as_if_there_were_no_processes():
    assert not is_distributed()
    z = torch.randn(2, 3, 4)
    assert gather_batch(z) is z
    torch.manual_seed(0)
    ours, plain = SyncedBatchNorm1d(6), nn.BatchNorm1d(6)
    plain.load_state_dict(ours.state_dict())
    x = torch.randn(9, 6)
    assert torch.equal(ours(x), plain(x))
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), plain.state_dict().values(), strict=True))
