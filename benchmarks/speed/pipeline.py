"""``vitembed pretrain`` against the same step on tensors that are in memory already, in one process, in turn."""

from __future__ import annotations

import time
from pathlib import Path

import torch

import vitembed
from speed.pairs import Pair, summary
from vitembed.config import PretrainConfig
from vitembed.pretrain import fit as fit_module
from vitembed.pretrain.module import PretrainModule, parameter_groups
from vitembed.pretrain.schedule import scaled_weight_decay
from vitembed.pretrain.watch.progress import RunLog
from vitembed.workspace import find_workspace

STEPS = 8


class Bare:
    """Forward, backward, clipping and AdamW on a copy of the run's module, without loop, log, loader or saving."""

    def __init__(self, config: PretrainConfig, module: PretrainModule, batches: list) -> None:
        self.config, self.batches, self.step_number = config, batches, 0
        self.module = PretrainModule(
            config,
            type(module.vit)(config.model.vit()),
            effective_batch_size=module.effective_batch_size,
            clock=module.clock,
        )
        decay = scaled_weight_decay(config.optim, module.effective_batch_size)
        self.optimizer = torch.optim.AdamW(parameter_groups(self.module.objective, decay), lr=1e-4, fused=True)

    def step(self) -> None:
        module, batch = self.module, self.batches[self.step_number % len(self.batches)]
        generator = torch.Generator().manual_seed(self.step_number)
        views = module.views(batch, generator)
        local = module.views(batch, generator, local=True) if self.config.objective.num_local_views else None
        self.optimizer.zero_grad()
        module.objective(views, generator, local).loss.backward()
        torch.nn.utils.clip_grad_norm_(module.objective.parameters(), self.config.optim.grad_clip)
        self.optimizer.step()
        if self.config.objective.teacher:
            module.objective.update_teacher(0.99)
        if module.average is not None:
            module.average.update(module.vit, 0.99)
        self.step_number += 1


def pretrain_against_bare(
    folder: Path, work: Path, settings: list[str], *, steps: int = STEPS, pairs: int = 5
) -> tuple[Pair, Pair, int]:
    """Seconds per ``steps`` steps of both, the same in processor time of all threads, and images per step."""
    times: list[tuple[float, float]] = []
    cpu_times: list[tuple[float, float]] = []
    batch_size = 0

    class PairedLog(RunLog):
        """Lets the run make some steps, then the bare loop as many."""

        bare: Bare | None = None

        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
            nonlocal batch_size
            super().on_train_batch_end(trainer, module, outputs, batch, batch_idx)
            if self.bare is None:
                batch_size = len(batch["images"])
                copies = [{name: tensor.clone() for name, tensor in batch.items()} for _ in range(4)]
                self.bare = Bare(module.config, module, copies)
            done = trainer.global_step
            if done % steps == 0:
                end, cpu_end = time.perf_counter(), time.process_time()
                for _ in range(steps):
                    self.bare.step()
                bare_end, cpu_bare_end = time.perf_counter(), time.process_time()
                if done > steps:  # the first round warms both up
                    times.append((end - self.started, bare_end - end))
                    cpu_times.append((cpu_end - self.cpu_started, cpu_bare_end - cpu_end))
                self.started, self.cpu_started = time.perf_counter(), time.process_time()

    before, fit_module.RunLog = fit_module.RunLog, PairedLog
    try:
        vitembed.pretrain(
            folder,
            config="nano",
            overrides=[
                *settings,
                f"optim.max_steps={steps * (pairs + 1)}",
                "trainer.num_pictures=0",
                "trainer.accelerator=cpu",
            ],
            workspace=find_workspace(work, create=True),
            progress=False,
        )
    finally:
        fit_module.RunLog = before
    return summary(times), summary(cpu_times), batch_size
