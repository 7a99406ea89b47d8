"""Names of the files in a run folder."""

from __future__ import annotations

RUN_FILE = "run.json"
"""Resolved config, data key, status."""
METRICS_FILE = "metrics.jsonl"
"""One JSON object per line: step, speed, losses, monitors."""
CHECKPOINT_FILE = "last.ckpt"
"""Training state for going on; not needed to use the model."""
LOCK_FILE = "run.lock"
"""Held by the process that trains."""
PICTURES_DIR = "pictures"
"""Reconstructions and nearest neighbours during training."""
