"""The loops of timm's train and validate scripts with the flags that make them fastest: called by benchmarks/gpu.py.

Channels last, autocast, fused AdamW, torch.compile if requested, pinned memory, persistent workers and, on a GPU,
timm's prefetcher, which copies and normalises the next batch on a side stream. Images are read from files in every
epoch, as in the scripts.
"""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import timm
import torch
from timm.data import ImageDataset, create_loader
from timm.optim import create_optimizer_v2
from torch import nn

from scenes.inference.predict import autocast
from scenes.model.device import synchronise

WARM_UP = 3  # batches that are not timed


class Files:
    """What timm's ImageDataset reads from: open files and their classes."""

    def __init__(self, paths: Sequence[Path], classes: int) -> None:
        self.paths, self.classes = paths, classes

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[BinaryIO, int]:
        return self.paths[index].open("rb"), index % self.classes


class TimmLoops:
    """A network and its files; both loops return images per second."""

    def __init__(
        self, model: str, size: int, batch: int, classes: int, files: Sequence[Path], workers: int, device: torch.device
    ) -> None:
        self.size, self.batch, self.files, self.workers, self.device = size, batch, files, workers, device
        self.classes = classes
        options = {"img_size": size} if "vit" in model else {}
        self.model = timm.create_model(model, num_classes=classes, **options)
        self.model.to(device, memory_format=torch.channels_last)

    def train(self, precision: str, compiled: bool, steps: int) -> float:
        """Forward pass, backward pass and step, as in timm's train.py."""
        self.model.train()
        network = torch.compile(self.model) if compiled else self.model
        criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
        fused = {"fused": True} if self.device.type == "cuda" else {}
        optimizer = create_optimizer_v2(self.model, opt="adamw", lr=1e-4, weight_decay=0.05, **fused)
        scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "fp16")

        def step(images: torch.Tensor, targets: torch.Tensor) -> None:
            with autocast(self.device, precision):
                loss = criterion(network(images), targets)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()

        return self._rate(self._loader(training=True), step, steps)

    def validate(self, precision: str, compiled: bool, steps: int) -> float:
        """Forward and accuracy, as in timm's validate.py."""
        self.model.eval()
        network = torch.compile(self.model) if compiled else self.model
        hits = torch.zeros((), device=self.device)

        def step(images: torch.Tensor, targets: torch.Tensor) -> None:
            with torch.inference_mode(), autocast(self.device, precision):
                hits.add_((network(images).argmax(1) == targets).sum())

        return self._rate(self._loader(training=False), step, steps)

    def _loader(self, training: bool) -> Iterator[Any]:
        loader = create_loader(
            ImageDataset("", reader=Files(self.files, self.classes)),
            (3, self.size, self.size),
            self.batch,
            is_training=training,
            use_prefetcher=self.device.type == "cuda",
            no_aug=False,
            scale=(0.6, 1.0),
            hflip=0.5,
            crop_pct=1.0,
            num_workers=self.workers,
            pin_memory=self.device.type == "cuda",
            persistent_workers=self.workers > 0,
            device=self.device,
        )
        while True:
            yield from loader

    def _rate(self, batches: Iterator[Any], step: Any, steps: int) -> float:
        begun, images = 0.0, 0
        for number in range(WARM_UP + steps):
            if number == WARM_UP:
                synchronise(self.device)
                begun = time.perf_counter()
            inputs, targets = next(batches)
            inputs = inputs.to(self.device, non_blocking=True, memory_format=torch.channels_last)
            step(inputs, targets.to(self.device, non_blocking=True))
            images += len(inputs) * (number >= WARM_UP)
        synchronise(self.device)
        return images / (time.perf_counter() - begun)
