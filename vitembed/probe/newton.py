"""Newton's method for penalised logistic losses, its steps found by preconditioned conjugate gradients.

Why not L-BFGS: along a path of penalties, a start extrapolated from the last two solutions is so near that one Newton
step with one to eight Hessian products is enough, and a product costs as much as one L-BFGS iteration. Two things make
that so. In the principal axes of the inputs a diagonal is a good model of the whole Hessian, which is the
preconditioner; and the model is linear, so the logits along a step are known and a line search costs no product.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from vitembed.probe.logistic import LogisticProblem

FORCING = 0.3
"""Each Newton step's linear system is solved until its residual has fallen to this share (in the preconditioner's
norm), or to half of what the tolerance asks."""
MOST_PRODUCTS = 250
"""Hessian products within a step; a step that is cut short still goes downhill."""


@dataclass(frozen=True)
class Solution:
    """Where a solve ended."""

    params: Float[Tensor, "k r"]
    """Weights on the axes; the last column is the intercept."""
    logits: Float[Tensor, "k n"]
    value: float
    """The objective, divided by ``C`` and the rows' total weight."""
    num_iterations: int
    """Gradients and Hessian products, each of which reads the inputs twice."""
    converged: bool

    def beyond(self, last: Solution, stride: float) -> Start:
        """Go on along the line from ``last`` to here, by ``stride`` of its length."""
        params, logits = (
            torch.lerp(old, new, 1.0 + stride) for old, new in ((last.params, self.params), (last.logits, self.logits))
        )
        return Start(params, logits)


@dataclass(frozen=True)
class Start:
    """Where a solve begins."""

    params: Float[Tensor, "k r"]
    logits: Float[Tensor, "k n"] | None = None
    """Of ``params`` on the problem's rows, when they are known already."""


def solve(
    problem: LogisticProblem,
    C: float,
    *,
    start: Start | None = None,
    tol: float = 1e-6,
    max_iter: int = 1000,
) -> Solution:
    """Minimise ``C * sum_i w_i * loss_i + |W|^2 / 2``; the intercept is not penalised.

    Args:
        problem: Rows, their losses and weights.
        C: Inverse strength of the penalty, as in scikit-learn and LIBLINEAR.
        start: As from a neighbouring ``C``; zeros otherwise.
        tol: Ends when the gradient, measured in the preconditioner's norm, is below it; the mean loss is then within
            about ``tol ** 2`` of its minimum.
        max_iter: Most iterations, counted as in ``Solution``.

    Source: Nocedal & Wright, Numerical Optimization, 2nd ed., algorithm 7.1 (line-search Newton-CG).
    """
    loss, spectrum = problem.loss, problem.spectrum
    penalty = torch.full_like(spectrum, float(1.0 / (C * problem.total)))
    penalty[-1] = 0.0
    eps = torch.finfo(spectrum.dtype).eps
    if start is None:
        start = Start(spectrum.new_zeros(loss.num_outputs, len(spectrum)))
    params = start.params.to(spectrum.dtype)
    logits = problem.logits(params) if start.logits is None else start.logits
    value, prob = loss.value(logits)
    value += 0.5 * _dot(penalty * params, params)
    iterations = 0
    while True:
        iterations += 1
        gradient = problem.pull_back(loss.residual(prob)).addcmul_(penalty, params)
        # The floor keeps the intercept's curvature, which has no penalty beside it, away from 0.
        diagonal = torch.addcmul(penalty, loss.curvature(prob).clamp_min(1e-10)[:, None], spectrum)
        size = _dot(gradient / diagonal, gradient) ** 0.5
        if size <= tol:
            return Solution(params, logits, value, iterations, True)
        if iterations >= max_iter:
            return Solution(params, logits, value, iterations, False)
        budget = min(MOST_PRODUCTS, max_iter - iterations)
        step, change, products = _newton_step(
            problem,
            prob,
            gradient,
            diagonal,
            penalty,
            goal=max(FORCING, 0.5 * tol / size),
            budget=budget,
        )
        iterations += products
        slope = _dot(gradient, step)
        if -slope <= eps * abs(value) * 1e-2:
            return Solution(params, logits, value, iterations, True)  # the value cannot get better in this precision
        length = 1.0
        while True:
            trial, trial_logits = params + length * step, torch.add(logits, change, alpha=length)
            trial_value, trial_prob = loss.value(trial_logits)
            trial_value += 0.5 * _dot(penalty * trial, trial)
            # Armijo's rule; the second term lets steps pass that are smaller than the value's rounding.
            if trial_value - value <= 1e-4 * length * slope + 4 * eps * (1.0 + abs(value)):
                break
            length *= 0.5
            if length < 1e-10:
                return Solution(params, logits, value, iterations, False)
        params, logits, value, prob = trial, trial_logits, trial_value, trial_prob


def _newton_step(
    problem: LogisticProblem,
    prob: Float[Tensor, "k n"],
    gradient: Float[Tensor, "k r"],
    diagonal: Float[Tensor, "k r"],
    penalty: Float[Tensor, " r"],
    *,
    goal: float,
    budget: int,
) -> tuple[Float[Tensor, "k r"], Float[Tensor, "k n"], int]:
    """Step that solves ``H step = -gradient`` roughly, the change of the logits along it, and the products it took."""
    step, change = torch.zeros_like(gradient), torch.zeros_like(prob)
    # Two buffers for all products: fresh arrays of this size cost as much as the arithmetic on them.
    moved, bent = torch.empty_like(prob), torch.empty_like(prob)
    residual = -gradient
    direction = residual / diagonal
    old = first = _dot(residual, direction)
    products = 0
    while products < max(1, budget):
        products += 1
        problem.logits(direction, out=moved)
        problem.loss.bend(prob, moved, bent)
        product = problem.pull_back(bent).addcmul_(penalty, direction)
        bow = _dot(direction, product)
        if not bow > 0.0:  # a direction that rounding took for flat
            break
        length = old / bow
        step.add_(direction, alpha=length)
        change.add_(moved, alpha=length)
        residual.sub_(product, alpha=length)
        scaled = residual / diagonal
        new = _dot(residual, scaled)
        if new <= goal**2 * first:
            break
        direction = scaled.add_(direction, alpha=new / old)
        old = new
    if products == 1 and not bool(step.any()):  # nothing but flat: the preconditioned gradient is all there is
        step = -gradient / diagonal
        change = problem.logits(step)
    return step, change, products


def _dot(left: Tensor, right: Tensor) -> float:
    return float((left * right).sum())
