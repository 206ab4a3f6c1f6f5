"""Train the small residual network that ships with the project and write every file of it.

    make train          or          python -m models.train [DIRECTORY]

Data: the 1,797 8x8 digits that come with scikit-learn; 1,200 to train on, 597 held out (stratified, seed 0).
The network: 15 convolutions with batch norm, six residual blocks of 12, 24 and 48 channels. One thread and
fixed seeds: the same machine and versions write the same bytes. The batch norm of ``digits_resnet_bn.onnx``
is kept, that of ``digits_resnet_folded.onnx`` is folded.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.nn import functional as F

SEED = 0
TEST_IMAGES = 597
WIDTHS = (12, 24, 48)
BLOCKS_PER_STAGE = 2
EPOCHS = 60
BATCH = 48
OPSET = 17


class Block(nn.Module):
    """Two convolutions around a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Identity()
        if inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Any) -> Any:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + self.shortcut(x))


class DigitsResNet(nn.Module):
    """(N, 1, 8, 8) images to (N, 10) logits."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, WIDTHS[0], 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(WIDTHS[0])
        blocks, inputs = [], WIDTHS[0]
        for stage, outputs in enumerate(WIDTHS):
            for block in range(BLOCKS_PER_STAGE):
                blocks.append(Block(inputs, outputs, stride=2 if stage and not block else 1))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(inputs, 10)

    def forward(self, x: Any) -> Any:
        x = self.blocks(F.relu(self.bn(self.conv(x))))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


def digits() -> tuple[Any, Any, Any, Any]:
    """Train and test images, float32 (N, 1, 8, 8) in [-1, 1], and labels, int64 (N,)."""
    images, labels = load_digits(return_X_y=True)
    inputs = (images / 8 - 1).astype(np.float32).reshape(-1, 1, 8, 8)
    train, test, train_labels, test_labels = train_test_split(
        inputs, labels.astype(np.int64), test_size=TEST_IMAGES, random_state=SEED, stratify=labels
    )
    return train, train_labels, test, test_labels


def shifted(images: Any) -> Any:
    """Each image moved by at most one pixel in both directions; the border is background (-1)."""
    padded = F.pad(images, (1, 1, 1, 1), value=-1.0)
    offsets = torch.randint(3, (len(images), 2)).tolist()
    return torch.stack(
        [image[:, y : y + 8, x : x + 8] for image, (y, x) in zip(padded, offsets, strict=True)]
    )


def train(images: Any, labels: Any) -> DigitsResNet:
    """Cosine-annealed SGD with Nesterov momentum on shifted images."""
    network = DigitsResNet()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    for epoch in range(EPOCHS):
        network.train()
        for batch in torch.randperm(len(images)).split(BATCH):
            loss = F.cross_entropy(network(shifted(images[batch])), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        scheduler.step()
        print(f"epoch {epoch + 1:2d}/{EPOCHS}  loss {loss.item():.4f}", file=sys.stderr)
    network.eval()
    return network


def export(network: DigitsResNet, path: Path, *, keep_batch_norm: bool) -> None:
    """Write the network with or without its batch norm, dynamic in the batch."""
    torch.onnx.export(
        network,
        (torch.zeros(1, 1, 8, 8),),
        path,
        dynamo=False,
        opset_version=OPSET,
        input_names=["input"],
        output_names=["logits"],
        dynamic_axes={"input": {0: "N"}, "logits": {0: "N"}},
        training=torch.onnx.TrainingMode.PRESERVE if keep_batch_norm else torch.onnx.TrainingMode.EVAL,
        do_constant_folding=not keep_batch_norm,
    )


def main(directory: Path) -> None:
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    train_images, train_labels, test_images, test_labels = digits()
    network = train(torch.from_numpy(train_images), torch.from_numpy(train_labels))
    with torch.no_grad():
        correct = int((network(torch.from_numpy(test_images)).argmax(1).numpy() == test_labels).sum())
    directory.mkdir(parents=True, exist_ok=True)
    export(network, directory / "digits_resnet_bn.onnx", keep_batch_norm=True)
    export(network, directory / "digits_resnet_folded.onnx", keep_batch_norm=False)
    np.savez_compressed(directory / "digits_test.npz", input=test_images, labels=test_labels)
    facts = {
        "top1": round(correct / len(test_labels), 4),
        "correct": correct,
        "test_images": len(test_labels),
        "train_images": len(train_labels),
        "convolutions": sum(isinstance(m, nn.Conv2d) for m in network.modules()),
        "parameters": sum(p.numel() for p in network.parameters()),
        "epochs": EPOCHS,
        "seed": SEED,
        "torch": torch.__version__,
    }
    (directory / "digits.json").write_text(json.dumps(facts, indent=2) + "\n")
    print(json.dumps(facts, indent=2))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
