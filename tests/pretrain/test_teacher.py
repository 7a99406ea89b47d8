"""Slow copies of a network: what they are after some steps, and how their momentum follows run and batch size."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from vitembed.pretrain.teacher import Ema, average_momentum, scaled_momentum, teacher_momentum


def test_the_average_is_that_of_the_formula_and_has_no_gradient():
    torch.manual_seed(0)
    source = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    ema = Ema(source)
    expected = {name: value.clone() for name, value in source.state_dict().items()}
    for step in range(3):
        with torch.no_grad():
            for parameter in source.parameters():
                parameter.add_(torch.randn_like(parameter))
            source(torch.randn(8, 3))  # moves the running statistics, which are copied
        momentum = 0.5 + 0.1 * step
        ema.update(source, momentum)
        for name, parameter in source.named_parameters():
            expected[name] = momentum * expected[name] + (1 - momentum) * parameter.detach()
    for name, buffer in source.named_buffers():
        expected[name] = buffer
    for name, value in ema.module.state_dict().items():
        torch.testing.assert_close(value, expected[name])
    assert not any(parameter.requires_grad for parameter in ema.parameters())


def test_the_teachers_momentum_rises_from_its_start_to_1():
    assert teacher_momentum(0.99, 0.0, effective_batch_size=256) == pytest.approx(0.99)
    assert teacher_momentum(0.99, 0.5, effective_batch_size=256) == pytest.approx(0.995)
    assert teacher_momentum(0.99, 1.0, effective_batch_size=256) == pytest.approx(1.0)


@pytest.mark.parametrize("batch", [32, 256, 1024])
def test_after_as_many_images_the_old_weights_count_as_much_whatever_the_batch(batch):
    images = 8192
    assert scaled_momentum(0.996, batch) ** (images / batch) == pytest.approx(0.996 ** (images / 256))


def test_the_exported_average_forgets_the_start():
    share = math.prod(average_momentum(0.9999, step, effective_batch_size=256) for step in range(1, 200))
    assert share < 1e-8
    assert average_momentum(0.99, 10**6, effective_batch_size=256) == pytest.approx(0.99)
