"""Train small networks on CIFAR-10 for the studies in benchmarks/, and export them with batch norm kept.

    make train-cifar          or          python -m models.cifar [NAME ...] [--output build/trained]

Data: ``cifar10_jpeg_train`` and ``cifar10_jpeg_test`` in ``$DFMPC_SHARED/data`` (or ``../shared/data``). A
checkpoint is kept after every epoch, and the same command goes on from there; a network that has its
``.onnx`` is left alone. Every epoch has its own seed, so an interrupted training ends as one that was not.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from torch.nn import functional as F

from models.architectures import ARCHITECTURES
from models.zoo import dataset, shared_dir

TRAIN, TEST = "cifar10_jpeg_train", ("cifar10_jpeg_test", "cifar10_test")
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # as the ResNets of the manifest have it
SEED = 0
BATCH = 128
RATE, MOMENTUM, DECAY = 0.1, 0.9, 5e-4
WARM_UP = 0.1  # share of the steps in which the rate rises
MARGIN = 4  # pixels of padding that a random crop moves in
OPSET = 17


def training_images() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Every training picture, uint8 (50000, 32, 32, 3), and its class."""
    with np.load(shared_dir() / "data" / f"{TRAIN}.npz") as arrays:
        stream, offsets, labels = arrays["jpeg"], arrays["offsets"], arrays["labels"]
    parts = (stream[start:stop].tobytes() for start, stop in pairwise(offsets))
    images = np.stack([np.asarray(Image.open(io.BytesIO(part))) for part in parts])
    return images, labels.astype(np.int64)


def normalized(images: Any) -> Any:
    """Pictures, uint8 (N, height, width, 3), as the float input (N, 3, height, width) of a network."""
    x = (images.float() / 255 - torch.tensor(MEAN)) / torch.tensor(DEVIATION)
    return x.permute(0, 3, 1, 2)  # a view: in memory the channels stay last, which is faster


class Data(Protocol):
    """What a network is trained on."""

    labels: Any

    def batches(self, seed: int) -> Iterator[tuple[Any, Any]]: ...


class Crops:
    """Training pictures in random order, each cut at random from its padded self, and flipped at random."""

    def __init__(self, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
        self.size = images.shape[1]
        border = (MARGIN, MARGIN)
        self.images = torch.from_numpy(np.pad(images, ((0, 0), border, border, (0, 0))))
        self.labels = torch.from_numpy(labels)

    def batches(self, seed: int) -> Iterator[tuple[Any, Any]]:
        """One epoch of inputs and labels, whole batches only."""
        draw = torch.Generator().manual_seed(seed)
        side = torch.arange(self.size)
        order = torch.randperm(len(self.labels), generator=draw)
        for chosen in order[: len(order) // BATCH * BATCH].split(BATCH):
            shift = torch.randint(2 * MARGIN + 1, (2, BATCH, 1), generator=draw)
            flipped = torch.randint(2, (BATCH, 1), generator=draw).bool()
            rows, columns = shift[0] + side, shift[1] + torch.where(flipped, side.flip(0), side)
            cut = self.images[chosen[:, None, None], rows[:, :, None], columns[:, None, :]]
            yield normalized(cut), self.labels[chosen]


def rate(step: int, steps: int, highest: float = RATE) -> float:
    """Learning rate: up on a line, then down on half a cosine."""
    rising = WARM_UP * steps
    if step < rising:
        return highest * (step + 1) / rising
    return highest * 0.5 * (1 + math.cos(math.pi * (step - rising) / (steps - rising)))


def train(
    network: nn.Module, data: Data, epochs: int, checkpoint: Path, *, highest: float = RATE
) -> dict[str, float]:
    """Train in place; goes on from a checkpoint where there is one. Returns what it cost."""
    network.to(memory_format=torch.channels_last)
    matrices = [p for p in network.parameters() if p.ndim > 1]
    vectors = [p for p in network.parameters() if p.ndim <= 1]
    optimizer = torch.optim.SGD(
        [{"params": matrices, "weight_decay": DECAY}, {"params": vectors, "weight_decay": 0.0}],
        lr=highest,
        momentum=MOMENTUM,
        nesterov=True,
    )
    start, seconds = 0, 0.0
    if checkpoint.is_file():
        kept = torch.load(checkpoint)
        network.load_state_dict(kept["network"])
        optimizer.load_state_dict(kept["optimizer"])
        start, seconds = kept["epoch"], kept["cpu_seconds"]
    per_epoch = len(data.labels) // BATCH
    for epoch in range(start, epochs):
        network.train()
        began, loss = time.process_time(), torch.zeros(())
        for index, (inputs, labels) in enumerate(data.batches(SEED + 1000 * (epoch + 1))):
            for group in optimizer.param_groups:
                group["lr"] = rate(epoch * per_epoch + index, epochs * per_epoch, highest)
            with torch.autocast("cpu", torch.bfloat16):  # three times as fast where the processor has it
                scores = network(inputs)
            loss = F.cross_entropy(scores.float(), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        seconds += time.process_time() - began
        keep = {"network": network.state_dict(), "optimizer": optimizer.state_dict()}
        partial = checkpoint.with_suffix(".partial")
        torch.save({**keep, "epoch": epoch + 1, "cpu_seconds": seconds}, partial)
        partial.replace(checkpoint)
        print(
            f"{checkpoint.stem}: epoch {epoch + 1}/{epochs}, loss {loss.item():.3f}, {seconds:.0f} CPU s",
            file=sys.stderr,
        )
    network.eval()
    return {"epochs": epochs, "cpu_seconds": round(seconds, 1)}


def top1(network: nn.Module, data: str) -> float:
    """Share of the pictures of a data set whose class is right."""
    images, labels = dataset(data)
    with torch.no_grad():
        scores = [network(normalized(part)) for part in torch.from_numpy(images).split(500)]
    return float((torch.cat(scores).argmax(1).numpy() == labels).mean())


def export(network: nn.Module, path: Path) -> None:
    """Write a network with its batch norm, dynamic in the batch."""
    partial = path.with_suffix(".partial")
    torch.onnx.export(
        network.eval().to(memory_format=torch.contiguous_format),
        (torch.zeros(1, 3, 32, 32),),
        partial,
        dynamo=False,
        opset_version=OPSET,
        input_names=["input"],
        output_names=["logits"],
        dynamic_axes={"input": {0: "N"}, "logits": {0: "N"}},
        training=torch.onnx.TrainingMode.PRESERVE,
    )
    partial.replace(path)


def main() -> None:
    """Train what is missing."""
    parser = argparse.ArgumentParser(prog="python -m models.cifar", description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"of {', '.join(ARCHITECTURES)}; default: all"
    )
    parser.add_argument("--output", type=Path, default=Path("build/trained"), metavar="DIRECTORY")
    options = parser.parse_args()
    unknown = set(options.names) - set(ARCHITECTURES)
    if unknown:
        parser.error(f"no such network: {', '.join(sorted(unknown))}")
    options.output.mkdir(parents=True, exist_ok=True)
    names = [n for n in options.names or ARCHITECTURES if not (options.output / f"{n}.onnx").is_file()]
    data = Crops(*training_images()) if names else None
    for name in names:
        assert data is not None
        torch.manual_seed(SEED)
        network = ARCHITECTURES[name].make()
        cost = train(network, data, ARCHITECTURES[name].epochs, options.output / f"{name}.checkpoint")
        facts = {
            "parameters": sum(p.numel() for p in network.parameters()),
            "top1": {data: round(top1(network, data), 4) for data in TEST},
            **cost,
            "seed": SEED,
            "torch": torch.__version__,
        }
        (options.output / f"{name}.json").write_text(json.dumps(facts, indent=2) + "\n")
        export(network, options.output / f"{name}.onnx")
        print(name, json.dumps(facts))


if __name__ == "__main__":
    main()
