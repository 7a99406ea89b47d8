"""clip-retrieval's own ``inference``, ``index`` and ``filter`` with random weights; runs in its environment.

    python clip_retrieval_run.py SIZE WEIGHTS inference PHOTOS STATE
    python clip_retrieval_run.py SIZE WEIGHTS index STATE
    python clip_retrieval_run.py SIZE WEIGHTS filter QUERY STATE

Replaced is the loading of the model alone (``all_clip.load_clip``, ``clip.load``): open_clip's model of ``weights.py``
with open_clip's own evaluation transform. With it goes the warm-up of ``load_clip``, two batches of images and texts,
which on a CPU takes longer than some of the folders here. Batches are of 32 images, not 256, so that decoding and model
overlap. autofaiss 2.18 ends in an error when it writes its summary (NumPy's numbers are none of JSON's), hence the line
that turns them into Python's.
"""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path

from vitembed._torchvision import import_torchvision

import_torchvision()  # here, so that the processes which clip-retrieval starts have it too


def main(size: str, weights: str, command: str, *arguments: str) -> None:
    from side_by_side.weights import create

    def load(*_: object, **__: object):
        return create(size, Path(weights))

    if command == "inference":
        # By name: in the package, a function hides the sub-package of the same name.
        parts = {name: import_module(f"clip_retrieval.clip_inference.{name}") for name in ("mapper", "worker", "main")}
        parts["mapper"].load_clip = parts["worker"].load_clip = load
        photos, state = arguments
        parts["main"].main(input_dataset=photos, output_folder=f"{state}/embeddings", enable_text=False, batch_size=32)
    elif command == "index":
        from clip_retrieval.clip_index import clip_index

        json.JSONEncoder.default = lambda _, number: number.item()
        [state] = arguments
        clip_index(f"{state}/embeddings", f"{state}/index")
    else:
        import clip
        from clip_retrieval.clip_filter import clip_filter

        clip.load = lambda *_, **__: load()[:2]
        query, state = arguments
        clip_filter(query, f"{state}/found", f"{state}/index", num_results=10)


if __name__ == "__main__":
    main(*sys.argv[1:])
