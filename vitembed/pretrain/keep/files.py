"""Names of the files in a run folder."""

from __future__ import annotations

RUN_FILE = "run.json"
"""Resolved config, data key, status."""
IMAGES_FILE = "images.jsonl"
"""The images of the run as they were when it began (``image_list.py``)."""
METRICS_FILE = "metrics.jsonl"
"""One JSON object per line: step, speed, losses, monitors."""
CHECKPOINT_FILE = "last.ckpt"
"""Training state for going on; not needed to use the model."""
PREVIOUS_FILE = "previous.ckpt"
"""The state before the last: for the case that the last is damaged."""
NONFINITE_PREFIX = "nonfinite-"
"""Batch and weights of the step at which the loss stopped to be a number (``replay.py``)."""
LOCK_FILE = "run.lock"
"""Held by the process that trains."""
PICTURES_DIR = "pictures"
"""Reconstructions and nearest neighbours during training."""
REPORT_FILE = "report.html"
"""The run on one page, to be opened in a browser."""
BEST_DIR = "best"
"""A model folder: the best encoder of the run so far."""
EVENTS_DIR = "tensorboard"
"""TensorBoard event files, where they were asked for."""
FROZEN_FILE = "frozen.safetensors"
"""Vectors of the unchanged encoder that a fine-tuning run compares with; made again if lost."""
LEFTOVERS = (
    f"{CHECKPOINT_FILE}*",
    PREVIOUS_FILE,
    METRICS_FILE,
    IMAGES_FILE,
    f"{NONFINITE_PREFIX}*",
    f"{PICTURES_DIR}/*.png",
    f"{BEST_DIR}/*",
    EVENTS_DIR,
    BEST_DIR,
    REPORT_FILE,
    FROZEN_FILE,
    ".tmp.*",
)
"""What a new run removes of an old one in its folder."""
