"""The head while it is trained: on standardised cls vectors, started from the linear probe where it is linear."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitembed.errors import DataError
from vitembed.model.vit import ClassHead
from vitembed.probe.linear import LinearProbe
from vitembed.probe.saving import HiddenLayer


class StandardHead(nn.Module):
    """A ``ClassHead`` behind a fixed standardisation, so that one learning rate suits vectors of any scale.

    Args:
        mean: Of the frozen encoder's vectors of the training images.
        scale: Their standard deviation per feature; none 0.
        num_classes: Classes.
        hidden_dim: Width of the hidden layer; none: linear.
    """

    mean: Tensor
    scale: Tensor

    def __init__(
        self, mean: Float[Tensor, " d"], scale: Float[Tensor, " d"], num_classes: int, hidden_dim: int | None
    ) -> None:
        super().__init__()
        self.register_buffer("mean", mean.float())
        self.register_buffer("scale", scale.float())
        self.head = ClassHead(len(mean), num_classes, hidden_dim)

    def forward(self, cls: Float[Tensor, "b d"]) -> Float[Tensor, "b classes"]:
        """Unnormalised class scores (logits)."""
        logits: Tensor = self.head((cls - self.mean) / self.scale)
        return logits

    @torch.no_grad()
    def start_from(self, probe: LinearProbe) -> None:
        """Begin with the answers of a linear probe.

        Source: Kumar et al. 2022, arXiv:2202.10054 (LP-FT): a random head would first distort the encoder.

        Args:
            probe: Of as many classes.
        """
        layer = self.head.layers
        assert isinstance(layer, nn.Linear)
        coef = torch.from_numpy(probe.coef_)
        bias = torch.from_numpy(probe.intercept_) + coef @ self.mean.double().cpu()
        coef = coef * self.scale.double().cpu()
        if len(coef) == 1:  # of two classes the probe has the difference
            coef, bias = torch.cat([-coef, coef]) / 2, torch.cat([-bias, bias]) / 2
        layer.weight.copy_(coef)
        layer.bias.copy_(bias)

    @torch.no_grad()
    def folded(self) -> ClassHead:
        """The same head without standardisation, which its first layer takes up; on the CPU."""
        layers = self.head.layers
        first = layers if isinstance(layers, nn.Linear) else layers[0]  # type: ignore[index]  # a Sequential
        hidden_dim = None if isinstance(layers, nn.Linear) else first.out_features
        last = first if hidden_dim is None else layers[2]  # type: ignore[index]  # the same
        plain = ClassHead(first.in_features, last.out_features, hidden_dim)
        plain.load_state_dict({name: tensor.cpu() for name, tensor in self.head.state_dict().items()})
        target = plain.layers if isinstance(plain.layers, nn.Linear) else plain.layers[0]  # type: ignore[index]
        weight = first.weight.double().cpu() / self.scale.double().cpu()
        target.weight.copy_(weight)
        target.bias.copy_(first.bias.double().cpu() - weight @ self.mean.double().cpu())
        return plain


def as_arrays(head: ClassHead) -> tuple[np.ndarray, np.ndarray, HiddenLayer | None]:
    """Weights of a head as ``SavedProbe`` takes them: coefficients, intercepts, and the hidden layer if there is one.

    Raises:
        DataError: If the head is of another kind.
    """
    layers = head.layers
    hidden: HiddenLayer | None = None
    if isinstance(layers, nn.Sequential) and len(layers) == 3:
        first, last = layers[0], layers[2]
        assert isinstance(first, nn.Linear)
        hidden = HiddenLayer(*(tensor.detach().double().cpu().numpy() for tensor in (first.weight, first.bias)))
    else:
        last = layers
    if not isinstance(last, nn.Linear):
        raise DataError(f"a head of {type(layers).__name__} cannot be saved: expected one or two linear layers")
    coef, intercept = (tensor.detach().double().cpu().numpy() for tensor in (last.weight, last.bias))
    if len(coef) == 2:  # of two classes a probe has the difference
        coef, intercept = coef[1:] - coef[:1], intercept[1:] - intercept[:1]
    return coef, intercept, hidden
