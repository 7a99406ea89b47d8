"""How fast images become vectors: each ``speed`` of ours beside timm, transformers and onnxruntime on the same weights.

    python benchmarks/embed_speed.py [--seconds 60] [--model MODEL] [--only forward agreement bare pipeline]

Without --model the weights are random, in the shape of DINOv2-small: the speeds are those of the real one, but how well
faster vectors agree with exact ones says little, since the vectors are untrained. Every ratio is the median over rounds
in which each contender had its turn.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

from vitembed._torchvision import import_torchvision

import_torchvision()  # before timm and transformers

import torch

from embedding.end_to_end import against_bare_forward, against_pipeline
from embedding.speeds import SPEEDS, agreement, forward_speeds, sample_images
from vitembed.config import preset
from vitembed.device import resolve_device
from vitembed.images.preprocess import Preprocess
from vitembed.model.encoder import Encoder, load
from vitembed.model.vit import VisionTransformer

PARTS = ("forward", "agreement", "bare", "pipeline")


def dinov2_small(device: torch.device) -> Encoder:
    """Random weights; LayerScale of 1, as DINOv2's start value would leave the blocks without effect."""
    torch.manual_seed(0)
    vit = VisionTransformer(preset("small", img_size=224, patch_size=14, init_values=1.0))
    return Encoder(vit, Preprocess(crop_pct=0.875), name="DINOv2-small, random", device=device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="for each timed part")
    parser.add_argument("--model", help="as in vitembed embed --model")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--num-images", type=int, default=200, help="whose neighbours are compared")
    parser.add_argument("--num-photos", type=int, default=16, help="of 12 MP")
    parser.add_argument("--speeds", nargs="+", default=list(SPEEDS))
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    args = parser.parse_args()
    encoder = load(args.model, device=args.device) if args.model else dinov2_small(resolve_device(args.device))
    print(f"{encoder.name}, {encoder.preprocess.img_size} px, batches of {args.batch_size}, {encoder.device}", end="")
    print(f", {torch.get_num_threads()} of {os.cpu_count()} cores")

    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        if "forward" in args.only:
            speeds = forward_speeds(encoder, args.speeds, scratch, batch_size=args.batch_size, seconds=args.seconds)
            print("\npixels to vectors      images/s  against exact: wall  processor time")
            for name, speed in speeds.items():
                print(f"{name:20} {args.batch_size / speed.seconds:10.1f} {speed.ratio:20.2f} {speed.cpu_ratio:15.2f}")
        if "agreement" in args.only:
            print(f"\nshare of the 10 nearest that are those of exact vectors, {args.num_images} parts of photos")
            for name, share in agreement(encoder, args.speeds, sample_images(encoder, args.num_images)).items():
                print(f"{name:20} {share:10.3f}")
        if "bare" in args.only:
            speed = against_bare_forward(
                encoder, num_images=args.batch_size, batch_size=args.batch_size, seconds=args.seconds
            )
            print("\nembed of images in memory against the bare forward: ", end="")
            print(
                f"{2 * args.batch_size / speed.seconds:.1f} images/s, wall {speed.ratio:.2f}, cpu {speed.cpu_ratio:.2f}"
            )
        if "pipeline" in args.only:
            speeds, cosine = against_pipeline(
                encoder, scratch, num_photos=args.num_photos, batch_size=args.batch_size, seconds=args.seconds
            )
            print(
                f"\na folder of {args.num_photos} JPEGs of 12 MP (vectors agree to a cosine of {cosine:.5f} at least)"
            )
            for name, speed in speeds.items():
                rate = args.num_photos / speed.seconds
                print(f"{name:20} {rate:8.2f} images/s, wall {speed.ratio:.2f}, cpu {speed.cpu_ratio:.2f}", flush=True)


if __name__ == "__main__":
    main()
