"""The batch of all processes, where a term of the loss looks at the batch as a whole; identities in one process.

Why the gradients are right. Let process r hold the images x_r, let z_r = f(x_r), and let every process compute the same
loss L(z_1, ..., z_W) of the joint batch. One process with the joint batch has the gradient

    dL/dθ = Σ_r (dL/dz_r) (dz_r/dθ)

DDP and FSDP average what the processes have, (1/W) Σ_r g_r, so that process r has to have g_r = W (dL/dz_r) (dz_r/dθ).
The backward pass of a gathering sums over the processes the gradients that each has for z_r. All have the same L, hence
the sum is W (dL/dz_r): the factor is there without being written anywhere. (Where the losses differ, as with random
projections drawn per process, the same sum is the gradient of their mean.) A term that looks at one image at a time,
such as the reconstruction, is a mean over the process's own images; the average over processes of equal batches is
the mean over the joint batch, so such a term is left alone.

The same holds inside a layer: the joint batch's statistics depend on every x_r, and what process r gets for its share
of them is the sum over all processes' gradients.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Shaped
from torch import Tensor, nn


def gather_batch(z: Float[Tensor, "v b d"]) -> Float[Tensor, "v joint d"]:
    """The vectors of all processes' images, in the order of the ranks, differentiable; ``z`` itself in one process.

    Args:
        z: Vectors of this process; as many on every process.
    """
    if not is_distributed():
        return z
    # [world, v, b, d] -> [v, world * b, d]
    return gather(z).transpose(0, 1).flatten(1, 2)


def gather(x: Shaped[Tensor, "..."]) -> Shaped[Tensor, "world ..."]:
    """The tensors of all processes, which are of one shape, stacked; differentiable."""
    joint: Tensor = _Gather.apply(x)  # type: ignore[no-untyped-call]
    return joint


def is_distributed() -> bool:
    """Whether several processes train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


class _Synced(nn.modules.batchnorm._BatchNorm):
    """Batch norm with the statistics of the joint batch; in one process, or when not training, plain batch norm.

    Unlike torch's ``SyncBatchNorm`` it also works on CPUs. Names in the state dict are those of ``BatchNorm1d``.
    Statistics are computed in fp32 or better; the batches of the processes may differ in size.
    """

    def forward(self, input: Float[Tensor, "b d *places"]) -> Float[Tensor, "b d *places"]:
        """Normalise each feature over the joint batch."""
        if not (self.training and is_distributed()):
            out: Tensor = super().forward(input)
            return out
        with torch.autocast(input.device.type, enabled=False):
            x = input.to(torch.promote_types(input.dtype, torch.float32)).movedim(1, -1)
            flat = x.flatten(0, -2)
            var, mean = torch.var_mean(flat, dim=0, correction=0)
            count = mean.new_full((1,), len(flat))
            joint = gather(torch.cat([mean, var, count]))
            means, variances, counts = joint[:, : len(mean)], joint[:, len(mean) : -1], joint[:, -1:]
            total = counts.sum()
            share = counts / total
            joint_mean = (share * means).sum(0)
            # Variance within the processes plus that between their means: no difference of large numbers.
            joint_var = (share * (variances + (means - joint_mean).square())).sum(0)
            self._track(joint_mean.detach(), joint_var.detach() * total / (total - 1))
            out = (x - joint_mean) * (joint_var + self.eps).rsqrt()
            if self.affine:
                out = out * self.weight + self.bias
        return out.movedim(-1, 1).to(input.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, var: Tensor) -> None:
        """Move the running statistics, as ``BatchNorm1d`` does (variance: the unbiased one)."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = self.momentum if self.momentum is not None else 1 / self.num_batches_tracked
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(var, share)


class SyncedBatchNorm1d(_Synced, nn.BatchNorm1d):
    """For vectors [b, d]."""


class SyncedBatchNorm2d(_Synced, nn.BatchNorm2d):
    """For images [b, d, h, w]."""


def sync_batch_norms(module: nn.Module) -> None:
    """Let the batch norms of an encoder's stem look at the joint batch too; weights and names stay."""
    for part in module.modules():
        if type(part) is nn.BatchNorm2d:
            part.__class__ = SyncedBatchNorm2d  # the same attributes: only the forward pass differs


class _Gather(torch.autograd.Function):
    """All processes' tensors; backward: the sum over the processes of the gradients of this one's tensor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous()
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x)
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        # Not reduce_scatter, which gloo lacks; what is gathered is small.
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total[dist.get_rank()]
