"""L2-penalised multinomial logistic regression, solved by preconditioned L-BFGS on the linear predictor.

Two things make it quick. The inputs are rotated once into their principal axes: the penalty does not notice, and there
a diagonal is a good model of the whole Hessian, so that correlated vectors need tens of iterations and not hundreds.
And the model is linear, so a step's logits are known along the whole search direction: an iteration costs two matrix
products, whatever the line search tries.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

HISTORY = 10
"""Pairs of steps and gradient changes that L-BFGS remembers; 10 is scikit-learn's (SciPy's) as well."""
MAX_GRAM = 4096
"""Largest side of the matrix whose eigenvectors are the axes; wider inputs are not rotated (minutes, gigabytes)."""
SMALL_PRODUCT = 2**26
"""Multiply-adds (about 5 ms of one core) below which a matrix product is not worth a second thread."""


@contextmanager
def threads_for(product: int) -> Iterator[None]:
    """Run the block on one CPU thread if its matrix products are small (``product`` multiply-adds), then restore.

    A product split over threads waits for the last of them: on a busy 2-core machine a fit of 5,000 x 384 vectors with
    10 classes took 37 s so, and 3 s on one thread. The setting is torch's and holds for the process.
    """
    before = torch.get_num_threads()
    if product < SMALL_PRODUCT:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class Axes:
    """Inputs in their principal axes, for any number of solves."""

    inputs: Float[Tensor, "n r"]
    rotation: Float[Tensor, "d r"] | None
    """Orthonormal columns; None when the inputs are as they were."""
    spectrum: Float[Tensor, " r"]
    """Weighted mean square of each column."""

    def to_features(self, weight: Float[Tensor, "r k"]) -> Float[Tensor, "d k"]:
        """Weights on the axes as weights on the original features."""
        return weight if self.rotation is None else self.rotation @ weight


def principal_axes(inputs: Float[Tensor, "n d"], weights: Float[Tensor, " n"]) -> Axes:
    """Rotate centred inputs into the eigenvectors of their weighted covariance.

    Directions without variance are dropped: the penalty alone sets their weights, to 0. With fewer rows than
    features this leaves at most ``n`` columns.
    """
    share = (weights / weights.sum()).sqrt()[:, None]
    n, d = inputs.shape
    if min(n, d) > MAX_GRAM:
        return Axes(inputs, None, (inputs * share).square().sum(dim=0))
    scaled = inputs * share
    if n >= d:
        spectrum, rotation = torch.linalg.eigh(scaled.T @ scaled)
        kept = spectrum > spectrum[-1] * d * torch.finfo(inputs.dtype).eps
        rotation = rotation[:, kept]
    else:
        # The same axes from the n x n side: scaled = U S V^T, so V = scaled^T U / S.
        spectrum, left = torch.linalg.eigh(scaled @ scaled.T)
        kept = spectrum > spectrum[-1] * n * torch.finfo(inputs.dtype).eps
        rotation = scaled.T @ (left[:, kept] / spectrum[kept].sqrt())
    return Axes(inputs @ rotation, rotation, spectrum[kept])


@dataclass(frozen=True)
class Solution:
    """Where a solve ended."""

    params: Float[Tensor, "r_plus_1 k"]
    """Weights on the axes; the last row is the intercept."""
    num_iterations: int
    converged: bool


@dataclass(frozen=True)
class LogisticProblem:
    """Rows, their classes and weights; ``solve`` fits one penalty.

    With two classes there is one column of logits (the second class against the first), with more there is one per
    class: the parametrisation decides what the penalty means, and this is scikit-learn's.
    """

    inputs: Float[Tensor, "n r"]
    spectrum: Float[Tensor, " r"]
    targets: Int[Tensor, " n"]
    weights: Float[Tensor, " n"]
    num_classes: int

    @property
    def num_outputs(self) -> int:
        """Columns of logits."""
        return 1 if self.num_classes == 2 else self.num_classes

    def rows(self, chosen: Int[np.ndarray, " m"]) -> LogisticProblem:
        """Give the same problem on some of the rows, by number."""
        index = torch.from_numpy(chosen).to(self.targets.device)
        return replace(self, inputs=self.inputs[index], targets=self.targets[index], weights=self.weights[index])

    def solve(
        self, C: float, *, start: Float[Tensor, "r_plus_1 k"] | None = None, tol: float = 1e-6, max_iter: int = 1000
    ) -> Solution:
        """Minimise ``C * sum_i w_i * loss_i + |W|^2 / 2``; the intercept is not penalised.

        Args:
            C: Inverse strength of the penalty, as in scikit-learn and LIBLINEAR.
            start: Parameters to begin with, as from a neighbouring ``C``; zeros otherwise.
            tol: Ends when the gradient, measured in the preconditioner's norm, is below it; the mean loss is then
                within about ``tol ** 2`` of its minimum.
            max_iter: Most iterations.

        Source: Nocedal & Wright, Numerical Optimization, 2nd ed., algorithm 7.4, with a diagonal initial Hessian.
        """
        total = self.weights.sum()
        share = self.weights / total
        # The objective is divided by C * total, so that tolerances do not depend on the number of rows.
        penalty = self.spectrum.new_full((len(self.spectrum) + 1, 1), float(1.0 / (C * total)))
        penalty[-1] = 0.0
        squares = torch.cat([self.spectrum, self.spectrum.new_ones(1)])[:, None]
        shape = (len(self.spectrum) + 1, self.num_outputs)
        params = self.inputs.new_zeros(shape) if start is None else start.clone()
        logits = self._logits(params)
        value, residual, curvature = self._loss(logits, share)
        value = value + 0.5 * (penalty * params.square()).sum()
        gradient = self._gradient(residual) + penalty * params
        steps: list[tuple[Tensor, Tensor, Tensor]] = []
        eps = torch.finfo(params.dtype).eps
        for iteration in range(max_iter + 1):
            inverse_hessian = 1.0 / (curvature * squares + penalty)
            if float((gradient.square() * inverse_hessian).sum()) <= tol**2:
                return Solution(params, iteration, True)
            if iteration == max_iter:
                break
            direction = -_two_loop(gradient, steps, inverse_hessian)
            slope = float((gradient * direction).sum())
            if not slope < 0.0:  # rounding spoilt the memory: begin anew with the preconditioned gradient
                steps, direction = [], -inverse_hessian * gradient
                slope = float((gradient * direction).sum())
            if -slope <= eps * abs(float(value)) * 1e-2:
                return Solution(params, iteration, True)  # the value cannot get better in this precision
            change = self._logits(direction)
            size = 1.0
            while True:
                trial = params + size * direction
                trial_logits = logits + size * change
                trial_value, residual, curvature = self._loss(trial_logits, share)
                trial_value = trial_value + 0.5 * (penalty * trial.square()).sum()
                # Armijo's rule; the second term lets steps pass that are smaller than the value's rounding.
                if float(trial_value - value) <= 1e-4 * size * slope + 4 * eps * abs(float(value)):
                    break
                size *= 0.5
                if size < 1e-10:
                    return Solution(params, iteration, False)
            trial_gradient = self._gradient(residual) + penalty * trial
            step, bend = trial - params, trial_gradient - gradient
            product = (step * bend).sum()
            if float(product) > 0.0:
                steps = [*steps[-HISTORY + 1 :], (step, bend, product)]
            params, logits, value, gradient = trial, trial_logits, trial_value, trial_gradient
        return Solution(params, max_iter, False)

    def log_loss_and_accuracy(self, params: Float[Tensor, "r_plus_1 k"]) -> tuple[float, float]:
        """Weighted mean log loss (nats) and weighted accuracy of given parameters on these rows."""
        share = self.weights / self.weights.sum()
        logits = self._logits(params)
        guess = (logits[:, 0] > 0).long() if self.num_outputs == 1 else logits.argmax(dim=1)
        return float(self._loss(logits, share)[0]), float(share[guess == self.targets].sum())

    def _logits(self, params: Tensor) -> Tensor:
        return torch.addmm(params[-1:], self.inputs, params[:-1])

    def _gradient(self, residual: Tensor) -> Tensor:
        return torch.cat([self.inputs.T @ residual, residual.sum(dim=0, keepdim=True)])

    def _loss(self, logits: Tensor, share: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean loss, its derivative by the logits ``[n, k]``, and the mean second derivative per output ``[k]``."""
        if self.num_outputs == 1:
            logit = logits[:, 0]
            sign = self.targets.to(logits.dtype)
            value = (share * (F.softplus(logit) - sign * logit)).sum()
            prob = torch.sigmoid(logit)[:, None]
            residual = prob - sign[:, None]
        else:
            log_prob = torch.log_softmax(logits, dim=1)
            value = -(share * log_prob.gather(1, self.targets[:, None])[:, 0]).sum()
            prob = log_prob.exp_()
            residual = prob.scatter_add(1, self.targets[:, None], -torch.ones_like(share)[:, None])
        # The floor keeps the intercept's curvature, which has no penalty beside it, away from 0.
        curvature = (share @ (prob - prob.square())).clamp_min(1e-10)
        return value, residual.mul_(share[:, None]), curvature


def _two_loop(
    gradient: Tensor, steps: list[tuple[Tensor, Tensor, Tensor]], inverse_hessian: Tensor
) -> Float[Tensor, "r_plus_1 k"]:
    """Multiply the inverse Hessian's estimate with the gradient (Nocedal & Wright, algorithm 7.4)."""
    q = gradient.clone()
    alphas = []
    for step, bend, product in reversed(steps):
        alpha = (step * q).sum() / product
        alphas.append(alpha)
        q -= alpha * bend
    q *= inverse_hessian
    if steps:
        _, bend, product = steps[-1]
        q *= product / (bend.square() * inverse_hessian).sum()
    for (step, bend, product), alpha in zip(steps, reversed(alphas), strict=True):
        q += (alpha - (bend * q).sum() / product) * step
    return q
