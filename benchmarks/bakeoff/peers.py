"""The peers: lightly's losses, heads and masks around the same backbone as ours."""

from __future__ import annotations

import copy
import math
import warnings

import torch
from lightly.loss import DINOLoss, IBOTPatchLoss, MSNLoss, NTXentLoss, VISRegLoss
from lightly.models.modules import MaskedVisionTransformerDecoderTIMM
from lightly.models.modules.heads import (
    DINOProjectionHead,
    MoCoProjectionHead,
    MSNProjectionHead,
    ProjectionHead,
    SimCLRProjectionHead,
)
from lightly.models.utils import (
    get_at_index,
    normalize_mean_var,
    patchify,
    random_block_mask,
    random_token_mask,
    repeat_token,
    set_at_index,
    update_momentum,
)
from torch import Tensor, nn

from bakeoff.recipes import Recipe
from vitembed.model.vit import VisionTransformer


def cosine(start: float, end: float, progress: float) -> float:
    """From ``start`` to ``end`` along half a cosine."""
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


class Peer(nn.Module):
    """A method around an encoder.

    Args:
        vit: The encoder to train.
        recipe: The method's numbers.
    """

    def __init__(self, vit: VisionTransformer, recipe: Recipe) -> None:
        super().__init__()
        self.vit = vit
        self.recipe = recipe
        self.width = vit.config.embed_dim
        self.pairs: list[tuple[nn.Module, nn.Module]] = []
        """Student and teacher modules, which follow by an exponential moving average."""

    def follow(self, student: nn.Module) -> nn.Module:
        """A teacher of ``student``: a copy that is not trained."""
        teacher = copy.deepcopy(student).requires_grad_(False)
        self.pairs.append((student, teacher))
        return teacher

    def loss(self, views: list[Tensor], progress: float) -> Tensor:
        """The method's loss of one batch."""
        raise NotImplementedError

    def before_step(self, progress: float) -> None:
        """Gradients are there, the optimiser comes next."""

    def after_step(self, progress: float) -> None:
        """The teacher moves."""
        for student, teacher in self.pairs:
            update_momentum(student, teacher, m=cosine(self.recipe.momentum, 1.0, progress))

    def encoders(self) -> dict[str, VisionTransformer]:
        """The networks that may be used afterwards."""
        found = {"student": self.vit}
        for student, teacher in self.pairs:
            if student is self.vit:
                found["teacher"] = teacher
        return found


class SimCLR(Peer):
    def __init__(self, vit: VisionTransformer, recipe: Recipe) -> None:
        super().__init__(vit, recipe)
        self.head = SimCLRProjectionHead(self.width, recipe.head_hidden, recipe.head_dim)
        self.criterion = NTXentLoss(recipe.temperature)

    def loss(self, views: list[Tensor], progress: float) -> Tensor:
        first, second = self.head(self.vit(torch.cat(views)).cls).chunk(2)
        return self.criterion(first, second)


class MoCoV3(Peer):
    def __init__(self, vit: VisionTransformer, recipe: Recipe) -> None:
        super().__init__(vit, recipe)
        hidden, out = recipe.head_hidden, recipe.head_dim
        self.head = MoCoProjectionHead(self.width, hidden, out, num_layers=3, batch_norm=True)
        self.predictor = MoCoProjectionHead(out, hidden, out, num_layers=2, batch_norm=True)
        self.teacher, self.teacher_head = self.follow(vit), self.follow(self.head)
        self.criterion = NTXentLoss(recipe.temperature)

    def loss(self, views: list[Tensor], progress: float) -> Tensor:
        pixels = torch.cat(views)
        q1, q2 = self.predictor(self.head(self.vit(pixels).cls)).chunk(2)
        with torch.no_grad():
            k1, k2 = self.teacher_head(self.teacher(pixels).cls).chunk(2)
        return self.criterion(q1, k2) + self.criterion(q2, k1)


class VISReg(Peer):
    def __init__(self, vit: VisionTransformer, recipe: Recipe) -> None:
        super().__init__(vit, recipe)
        hidden = recipe.head_hidden
        self.head = ProjectionHead(
            [
                (self.width, hidden, nn.BatchNorm1d(hidden), nn.GELU()),
                (hidden, hidden, nn.BatchNorm1d(hidden), nn.GELU()),
                (hidden, recipe.head_dim, None, None),
            ]
        )
        self.criterion = VISRegLoss(lambda_param=recipe.weight, num_slices=2048)

    def loss(self, views: list[Tensor], progress: float) -> Tensor:
        sides = [view.shape[-1] for view in views]
        large = [view for view, side in zip(views, sides, strict=True) if side == max(sides)]
        small = [view for view, side in zip(views, sides, strict=True) if side < max(sides)]
        projected = [
            torch.stack(self.head(self.vit(torch.cat(group)).cls).chunk(len(group)))
            for group in (large, small)
            if group
        ]
        if not small:
            projected.append(projected[0][:0])
        return self.criterion(global_proj=projected[0], local_proj=projected[1])


class DINO(Peer):
    def __init__(self, vit: VisionTransformer, recipe: Recipe) -> None:
        super().__init__(vit, recipe)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # lightly's weight_norm
            self.head = DINOProjectionHead(
                self.width, recipe.head_hidden, output_dim=recipe.head_dim, norm_last_layer=True
            )
            self.teacher_head: nn.Module = DINOProjectionHead(
                self.width, recipe.head_hidden, output_dim=recipe.head_dim, norm_last_layer=True
            ).requires_grad_(False)
        self.teacher_head.load_state_dict(self.head.state_dict())
        self.pairs.append((self.head, self.teacher_head))
        self.teacher = self.follow(vit)
        self.criterion = DINOLoss(recipe.head_dim, student_temp=recipe.temperature)

    def teacher_temp(self, progress: float) -> float:
        start, end = self.recipe.teacher_temp
        return start + (end - start) * min(1.0, progress / self.recipe.teacher_temp_share)

    def loss(self, views: list[Tensor], progress: float) -> Tensor:
        large = torch.cat(views[:2])
        with torch.no_grad():
            targets = self.teacher_head(self.teacher(large).cls)
        student = [self.head(self.vit(large).cls)]
        if views[2:]:
            student.append(self.head(self.vit(torch.cat(views[2:])).cls))
        return self.criterion(
            list(targets.chunk(2)), list(torch.cat(student).chunk(len(views))), teacher_temp=self.teacher_temp(progress)
        )

    def before_step(self, progress: float) -> None:
        if progress < self.recipe.freeze_last_share:
            for parameter in self.head.last_layer.parameters():
                parameter.grad = None


class IBOT(DINO):
    def __init__(self, vit: VisionTransformer, recipe: Recipe) -> None:
        super().__init__(vit, recipe)
        self.patch_criterion = IBOTPatchLoss(recipe.head_dim, student_temp=recipe.temperature)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, self.width))
        side = vit.config.img_size // vit.config.patch_size
        # lightly draws the blocks of one image after the other in Python: a stock of them, drawn before the clock
        # starts, spares the method that time.
        self.masks = random_block_mask(size=(4096, side, side), min_num_masks_per_block=(side // 3) ** 2)

    def loss(self, views: list[Tensor], progress: float) -> Tensor:
        large = torch.cat(views[:2])
        mask = self.masks[torch.randint(len(self.masks), (len(large),))]
        flat = mask.flatten(1)
        with torch.no_grad():
            seen = self.teacher(large)
            cls_targets, patch_targets = self.teacher_head(seen.cls), self.teacher_head(seen.patches[flat])
        hide = self.vit.patch_embed.register_forward_hook(
            lambda module, given, patches: torch.where(flat.unsqueeze(-1), self.mask_token, patches)
        )
        student = self.vit(large)
        hide.remove()
        small = [self.vit(torch.cat(views[2:])).cls] if views[2:] else []
        cls = self.head(torch.cat([student.cls, *small])).chunk(len(views))
        temperature = self.teacher_temp(progress)
        return self.criterion(list(cls_targets.chunk(2)), list(cls), teacher_temp=temperature) + self.patch_criterion(
            patch_targets, self.head(student.patches[flat]), mask, teacher_temp=temperature
        )


class MSN(Peer):
    def __init__(self, vit: VisionTransformer, recipe: Recipe) -> None:
        super().__init__(vit, recipe)
        self.head = MSNProjectionHead(self.width, recipe.head_hidden, recipe.head_dim)
        self.prototypes = nn.Parameter(nn.Linear(recipe.head_dim, 1024, bias=False).weight.detach())
        self.teacher, self.teacher_head = self.follow(vit), self.follow(self.head)
        self.criterion = MSNLoss(recipe.temperature, regularization_weight=recipe.weight)

    def loss(self, views: list[Tensor], progress: float) -> Tensor:
        target, anchor, small = views[0], views[1], views[2:]
        with torch.no_grad():
            targets = self.teacher_head(self.teacher(target).cls)
        num_patches = (anchor.shape[-1] // self.vit.config.patch_size) ** 2
        keep, _ = random_token_mask((len(anchor), num_patches), self.recipe.mask_ratio, mask_class_token=True)
        cls = [self.vit(anchor, keep).cls]
        if small:
            cls.append(self.vit(torch.cat(small)).cls)
        return self.criterion(self.head(torch.cat(cls)), targets, self.prototypes)


class MAE(Peer):
    DECODER_DIM, DECODER_DEPTH = 128, 2

    def __init__(self, vit: VisionTransformer, recipe: Recipe) -> None:
        super().__init__(vit, recipe)
        patch_size, in_chans = vit.config.patch_size, vit.config.in_chans
        self.decoder_embed = nn.Linear(self.width, self.DECODER_DIM)
        self.decoder = MaskedVisionTransformerDecoderTIMM(
            num_patches=vit.config.num_patches, embed_dim=self.DECODER_DIM, depth=self.DECODER_DEPTH, num_heads=4
        )
        self.decoder_pred = nn.Linear(self.DECODER_DIM, patch_size**2 * in_chans)

    def loss(self, views: list[Tensor], progress: float) -> Tensor:
        (pixels,) = views
        patch_size, num_tokens = self.vit.config.patch_size, self.vit.config.num_patches + 1
        keep, hidden = random_token_mask((len(pixels), num_tokens), self.recipe.mask_ratio)
        # lightly counts the cls token as token 0 and keeps it first; our encoder counts patches alone.
        tokens = self.vit(pixels, keep[:, 1:] - 1)
        visible = self.decoder_embed(torch.cat([tokens.cls.unsqueeze(1), tokens.patches], dim=1))
        whole = repeat_token(self.decoder.mask_token, (len(pixels), num_tokens))
        whole = set_at_index(whole, keep, visible)
        predicted = self.decoder_pred(get_at_index(self.decoder(whole), hidden))
        target = normalize_mean_var(get_at_index(patchify(pixels, patch_size), hidden - 1))
        return nn.functional.mse_loss(predicted, target)


PEERS: dict[str, type[Peer]] = {
    "simclr": SimCLR,
    "mocov3": MoCoV3,
    "dino": DINO,
    "ibot": IBOT,
    "msn": MSN,
    "visreg": VISReg,
    "mae": MAE,
}
