"""Attentive probe: a classifier that looks at patch tokens, for when the cls vector is not enough."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_array, check_consistent_length, check_is_fitted
from torch import Tensor, nn
from torch.nn import functional as F

from vitembed.embeddings import plain_array
from vitembed.probe.inputs import checked_y, device_name, quiet
from vitembed.probe.targets import check_class_weight, class_weights, encode

LRS = (1e-3, 3e-3, 1e-2)
"""Learning rates to choose from: they are trained side by side, since reading the tokens is what takes time."""
FIRST_QUERY = 0.02
"""Standard deviation of the queries at the start: attention begins almost even, as the mean over tokens."""


@dataclass(frozen=True)
class LrPoint:
    """One learning rate and what it gave on held-out images."""

    lr: float
    log_loss: float
    accuracy: float


class AttentiveProbe(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn ships no types
    """Learned queries attend to an image's tokens; a linear layer tells the class from what they gather.

    Takes tokens ``[n, t, d]``, such as the encoder's patch tokens with the cls token in front. That is why it is no
    plain estimator to scikit-learn, whose inputs are ``[n, d]`` (its tags say so); ``clone``, ``cross_val_score``,
    ``GridSearchCV`` and pipelines of steps that pass tokens on work. Keys and values need no projections of their own:
    with learned queries and a linear layer behind they add no function, only parameters.

    Args:
        num_queries: Places to look at, each with its own weights in the linear layer, >= 1.
        lr: Learning rate of AdamW at the start of its cosine. None chooses from 1e-3, 3e-3, 1e-2 on a stratified fifth
            of the images, and then fits all of them.
        epochs: Passes over the images.
        batch_size: Images per step.
        weight_decay: Of AdamW, on queries and linear layer.
        class_weight: As in scikit-learn: None, ``"balanced"``, or a weight for each label that is not to have 1.
        random_state: Decides the first queries, the order of the images and the hold-out.
        device: ``"auto"`` (CUDA when there, else CPU) or any torch device; tokens are moved to it batch by batch.

    Attributes:
        classes_: Labels, sorted.
        queries_: float32 ``[num_queries, d]``, for tokens as they are given.
        coef_: float32 ``[num_classes, num_queries, d]``, for pooled tokens as they are given.
        intercept_: float32 ``[num_classes]``.
        lr_: The learning rate in force.
        path_: ``LrPoint(lr, log_loss, accuracy)`` of each rate tried; empty when ``lr`` was given.

    Source: the cross-attention probe of Chen et al. 2022, arXiv:2202.03026, section 3.3, without projections, as in
    Psomas et al. 2025, arXiv:2506.10178 ("efficient probing").
    """

    def __init__(
        self,
        num_queries: Any = 4,
        *,
        lr: Any = None,
        epochs: Any = 30,
        batch_size: Any = 64,
        weight_decay: Any = 0.05,
        class_weight: Any = None,
        random_state: Any = 0,
        device: Any = "auto",
    ) -> None:
        # Any: scikit-learn asks that the constructor takes whatever comes and that ``fit`` judges it.
        self.num_queries = num_queries
        self.lr = lr
        self.epochs = epochs
        self.batch_size = batch_size
        self.weight_decay = weight_decay
        self.class_weight = class_weight
        self.random_state = random_state
        self.device = device

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> AttentiveProbe:
        """Fit on tokens ``[n, t, d]`` (float16, float32 or float64, also memory-mapped) and labels ``[n]``.

        Raises:
            ValueError: If the data is not that, holds one class only, or a setting is out of range.
        """
        self._check_settings()
        tokens, y = _checked_tokens(X), checked_y(y)
        check_consistent_length(tokens, y)
        with quiet():
            check_classification_targets(y)
        targets = encode(np.asarray(y))
        if targets.indicator is not None:
            raise ValueError(
                "y is a matrix of several labels a row: the attentive probe takes one label for each image"
            )
        self.classes_, self.n_features_in_ = targets.classes, tokens.shape[2]
        weights = _check_sample_weight(plain_array(sample_weight), tokens, dtype=np.float64, ensure_non_negative=True)
        weights = weights * class_weights(self.class_weight, targets, weights)
        rng = check_random_state(self.random_state)
        seed = int(rng.randint(2**31))
        mean, scale = _token_moments(tokens)
        data = _Data(tokens, targets.codes, (weights / weights.mean()).astype(np.float32), mean, scale)
        everything = np.arange(len(tokens))
        self.path_: list[LrPoint] = []
        if self.lr is None:
            held = _held_out(targets.codes, rng)
            self.lr_ = LRS[len(LRS) // 2]
            if len(held):
                heads = self._train(data, np.setdiff1d(everything, held), LRS, seed)
                self.path_ = [self._judge(head, lr, data, held) for head, lr in zip(heads, LRS, strict=True)]
                self.lr_ = min(self.path_, key=lambda point: point.log_loss).lr
        else:
            self.lr_ = float(self.lr)
        (head,) = self._train(data, everything, [self.lr_], seed)
        self.queries_ = (head.queries.detach().cpu().numpy() / scale).astype(np.float32)
        coef = head.weight.detach().cpu().numpy().reshape(len(self.classes_), self.num_queries, -1) / scale
        self.coef_ = coef.astype(np.float32)
        self.intercept_ = (head.bias.detach().cpu().numpy() - (coef * mean).sum(axis=(1, 2))).astype(np.float32)
        return self

    def attention(self, X: Any) -> Float[np.ndarray, "n h t"]:
        """How much each query takes of each token; sums to 1 over the tokens."""
        check_is_fitted(self)
        queries = torch.from_numpy(self.queries_)
        return np.concatenate([_attend(batch, queries).numpy() for batch in self._batches(_checked_tokens(X))])

    def decision_function(self, X: Any) -> Float[np.ndarray, "n c"]:
        """Logits of tokens ``[n, t, d]``, in the order of ``classes_``, also of two classes."""
        check_is_fitted(self)
        device = device_name(self.device)
        queries, coef, intercept = (
            torch.from_numpy(array).to(device) for array in (self.queries_, self.coef_, self.intercept_)
        )
        logits = []
        for batch in self._batches(_checked_tokens(X)):
            moved = batch.to(device)
            pooled = _attend(moved, queries) @ moved
            logits.append((pooled.flatten(1) @ coef.flatten(1).T + intercept).double().cpu().numpy())
        return np.concatenate(logits)

    def predict_proba(self, X: Any) -> Float[np.ndarray, "n c"]:
        """Probability of each class, in the order of ``classes_``; rows sum to 1."""
        prob: np.ndarray = torch.softmax(torch.from_numpy(self.decision_function(X)), dim=1).numpy()
        return prob

    def predict(self, X: Any) -> np.ndarray:
        """Most probable label of each row."""
        labels: np.ndarray = self.classes_[self.decision_function(X).argmax(axis=1)]
        return labels

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array, tags.input_tags.three_d_array = False, True
        return tags

    def _batches(self, tokens: np.ndarray) -> Iterator[Tensor]:
        if tokens.shape[2] != self.n_features_in_:
            raise ValueError(f"tokens have width {tokens.shape[2]}, the probe was fitted on {self.n_features_in_}")
        for begin in range(0, len(tokens), self.batch_size):
            yield torch.from_numpy(tokens[begin : begin + self.batch_size].astype(np.float32))

    def _train(self, data: _Data, rows: Int64[np.ndarray, " m"], lrs: Sequence[float], seed: int) -> list[_Head]:
        """One head for each learning rate, all from the same start and the same batches."""
        device = torch.device(device_name(self.device))
        heads = [_Head(self.num_queries, data.tokens.shape[2], len(self.classes_), seed).to(device) for _ in lrs]
        groups = [{"params": list(head.parameters()), "lr": lr} for head, lr in zip(heads, lrs, strict=True)]
        optimizer = torch.optim.AdamW(groups, weight_decay=self.weight_decay)
        rng = np.random.default_rng(seed)
        mean, scale = (torch.from_numpy(array).to(device, torch.float32) for array in (data.mean, data.scale))
        num_batches = math.ceil(len(rows) / self.batch_size)
        for step in range(self.epochs * num_batches):
            if step % num_batches == 0:
                order = rng.permutation(rows)
            batch = order[step % num_batches :: num_batches]
            for group, lr in zip(optimizer.param_groups, lrs, strict=True):
                group["lr"] = lr * 0.5 * (1.0 + math.cos(math.pi * step / (self.epochs * num_batches)))
            labels, weights = (torch.from_numpy(array[batch]).to(device) for array in (data.codes, data.weights))
            tokens = torch.from_numpy(data.tokens[batch].astype(np.float32)).to(device)
            # All heads look at the tokens in one product; dividing the queries spares a standardised copy of them.
            queries = torch.cat([head.queries for head in heads]) / scale
            pooled = ((_attend(tokens, queries) @ tokens - mean) / scale).chunk(len(heads), dim=1)
            losses = [
                (F.cross_entropy(head(part), labels, reduction="none") * weights).mean()
                for head, part in zip(heads, pooled, strict=True)
            ]
            optimizer.zero_grad()
            torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        return heads

    @torch.no_grad()
    def _judge(self, head: _Head, lr: float, data: _Data, held: Int64[np.ndarray, " m"]) -> LrPoint:
        device = head.bias.device
        mean, scale = (torch.from_numpy(array).to(device, torch.float32) for array in (data.mean, data.scale))
        logits = []
        for begin in range(0, len(held), self.batch_size):
            rows = held[begin : begin + self.batch_size]
            tokens = torch.from_numpy(data.tokens[rows].astype(np.float32)).to(device)
            logits.append(head((_attend(tokens, head.queries / scale) @ tokens - mean) / scale))
        joined, labels = torch.cat(logits), torch.from_numpy(data.codes[held]).to(device)
        share = torch.from_numpy(data.weights[held] / data.weights[held].sum()).to(device)
        log_loss = F.cross_entropy(joined, labels, reduction="none") @ share
        return LrPoint(lr, float(log_loss), float((joined.argmax(dim=1) == labels).to(share.dtype) @ share))

    def _check_settings(self) -> None:
        for name in ("num_queries", "epochs", "batch_size"):
            value = getattr(self, name)
            if not isinstance(value, (int, np.integer)) or value < 1:
                raise ValueError(f"{name}={value!r}: expected a whole number >= 1")
        if self.lr is not None and not 0 < self.lr < np.inf:
            raise ValueError(f"lr={self.lr!r}: expected a number > 0, or None to choose it")
        if not 0 <= self.weight_decay < np.inf:
            raise ValueError(f"weight_decay={self.weight_decay!r}: expected a number >= 0")
        check_class_weight(self.class_weight)


@dataclass(frozen=True)
class _Data:
    tokens: np.ndarray
    codes: Int64[np.ndarray, " n"]
    weights: Float[np.ndarray, " n"]
    mean: Float[np.ndarray, " d"]
    scale: Float[np.ndarray, " d"]


class _Head(nn.Module):
    """Queries for standardised tokens, and the linear layer on what they gather."""

    def __init__(self, num_queries: int, dim: int, num_classes: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.queries = nn.Parameter(FIRST_QUERY * torch.randn(num_queries, dim, generator=generator))
        self.weight = nn.Parameter(torch.zeros(num_classes, num_queries * dim))
        self.bias = nn.Parameter(torch.zeros(num_classes))

    def forward(self, pooled: Float[Tensor, "b h d"]) -> Float[Tensor, "b c"]:
        return F.linear(pooled.flatten(1), self.weight, self.bias)


def _attend(tokens: Float[Tensor, "b t d"], queries: Float[Tensor, "h d"]) -> Float[Tensor, "b h t"]:
    return torch.softmax(tokens @ queries.T, dim=1).transpose(1, 2)


def _checked_tokens(X: Any) -> np.ndarray:
    X = plain_array(X)
    if getattr(X, "ndim", 3) != 3:
        raise ValueError(f"X has shape {list(X.shape)}: expected tokens [n, t, d]; for vectors [n, d] use LinearProbe")
    tokens: np.ndarray = check_array(X, dtype=[np.float32, np.float16, np.float64], allow_nd=True)
    if tokens.ndim != 3:
        raise ValueError(f"X has shape {list(tokens.shape)}: expected tokens [n, t, d]")
    return tokens


def _token_moments(tokens: Float[np.ndarray, "n t d"]) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, " d"]]:
    """Mean and standard deviation of each feature over all tokens, block by block; 1 for constant features."""
    blocks = [slice(begin, begin + 256) for begin in range(0, len(tokens), 256)]
    count = tokens.shape[0] * tokens.shape[1]
    mean = sum(tokens[block].sum(axis=(0, 1), dtype=np.float64) for block in blocks) / count
    square = sum(((tokens[block] - mean) ** 2).sum(axis=(0, 1)) for block in blocks)
    scale = np.sqrt(square / count)
    return mean, np.where(scale <= 1e-6 * np.abs(mean), 1.0, scale)


def _held_out(codes: Int64[np.ndarray, " n"], rng: np.random.RandomState) -> Int64[np.ndarray, " m"]:
    """A fifth of each class, none of classes with a single image."""
    held = []
    for code in np.unique(codes):
        rows = rng.permutation(np.flatnonzero(codes == code))
        held.append(rows[: max(1, len(rows) // 5)] if len(rows) > 1 else rows[:0])
    return np.sort(np.concatenate(held))
