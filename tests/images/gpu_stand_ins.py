"""Decoders in the place of a GPU's. Loaded by test_decode_gpu.py and by the processes that it starts."""

from __future__ import annotations

import io
import os
import signal
import time

import numpy as np
import torch
from PIL import Image


def right(data):
    """As nvJPEG: in full, RGB, not turned."""
    with Image.open(io.BytesIO(data.numpy().tobytes())) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def reversed_colours(data):
    return right(data).flip(0)


def on_its_side(data):
    return right(data).transpose(1, 2)


class WrongLater:
    """Right for the pictures that it is tried with, and then wrong."""

    def __init__(self, num_right):
        self.num_right = num_right

    def __call__(self, data):
        self.num_right -= 1
        return right(data) if self.num_right >= 0 else 255 - right(data)


class FailsLater(WrongLater):
    def __call__(self, data):
        self.num_right -= 1
        if self.num_right < 0:
            raise RuntimeError("CUDA error: an illegal memory access\nwas encountered")
        return right(data)


class CrashesLater(WrongLater):
    def __call__(self, data):
        self.num_right -= 1
        if self.num_right < 0:
            os.kill(os.getpid(), signal.SIGSEGV)
        return right(data)


class Marking:
    """Leaves a mark once it has loaded some images."""

    def __init__(self, load, mark):
        self.load, self.mark, self.count = load, mark, 0

    def prepare(self):
        self.load.prepare()

    def __call__(self, ref):
        self.count += 1
        if self.count == 4:
            self.mark.touch()
        return self.load(ref)


class Waiting:
    """Loads nothing before the mark is there."""

    def __init__(self, load, mark):
        self.load, self.mark = load, mark

    def __call__(self, ref):
        end = time.monotonic() + 60
        while not self.mark.exists() and time.monotonic() < end:
            time.sleep(0.02)
        return self.load(ref)
