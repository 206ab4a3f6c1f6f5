"""Train a small convolutional text classifier, which tells the language of a single word letter by letter.

    make train-words          or          python -m models.words [--output build/trained]

Data: the word lists of ten languages that the package ``wordfreq`` bundles (Apache-2.0; lists CC BY-SA 4.0).
Words that two lists have are left out; every tenth of the others is held out. The network reads int64 numbers
of letters, 0 behind the end: Embedding, four Conv1d with batch norm and ReLU, maximum over the word, Gemm.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from wordfreq import top_n_list

from models.cifar import BATCH, OPSET, SEED, train

LANGUAGES = ("de", "en", "es", "fi", "fr", "it", "nl", "pl", "pt", "sv")
WORDS = 20000  # of every language, the most frequent first
SHORTEST, LONGEST = 4, 16
LETTERS = 47  # the most frequent ones; another is number 48
EMBEDDING, CHANNELS = 32, (64, 64, 96, 96)
EPOCHS = 6
NAME = "words"


def words() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Numbers of letters (N, 16) and languages (N,), shuffled."""
    lists = {language: top_n_list(language, WORDS) for language in LANGUAGES}
    lists = {
        language: [w for w in found if w.isalpha() and SHORTEST <= len(w) <= LONGEST]
        for language, found in lists.items()
    }
    count = Counter(word for found in lists.values() for word in set(found))
    pairs = [(w, i) for i, found in enumerate(lists.values()) for w in found if count[w] == 1]
    letters = Counter(letter for word, _ in pairs for letter in word).most_common(LETTERS)
    number = {letter: i for i, (letter, _) in enumerate(letters, 1)}
    inputs = np.zeros((len(pairs), LONGEST), np.int64)
    for row, (word, _) in zip(inputs, pairs, strict=True):
        row[: len(word)] = [number.get(letter, LETTERS + 1) for letter in word]
    order = np.random.default_rng(SEED).permutation(len(pairs))
    return inputs[order], np.array([language for _, language in pairs])[order]


class Batches:
    """Training words in random order."""

    def __init__(self, inputs: NDArray[np.int64], labels: NDArray[np.int64]) -> None:
        self.inputs, self.labels = torch.from_numpy(inputs), torch.from_numpy(labels)

    def batches(self, seed: int) -> Iterator[tuple[Any, Any]]:
        """One epoch of inputs and labels, whole batches only."""
        order = torch.randperm(len(self.labels), generator=torch.Generator().manual_seed(seed))
        for chosen in order[: len(order) // BATCH * BATCH].split(BATCH):
            yield self.inputs[chosen], self.labels[chosen]


class WordNetwork(nn.Module):
    """(N, 16) numbers of letters to (N, 10) scores."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(LETTERS + 2, EMBEDDING)
        layers: list[nn.Module] = []
        channels = EMBEDDING
        for outputs in CHANNELS:
            layers += [
                nn.Conv1d(channels, outputs, 3, padding=1, bias=False),
                nn.BatchNorm1d(outputs),
                nn.ReLU(),
            ]
            channels = outputs
        self.layers = nn.Sequential(*layers)
        self.linear = nn.Linear(channels, len(LANGUAGES))

    def forward(self, letters: Any) -> Any:
        return self.linear(self.layers(self.embedding(letters).transpose(1, 2)).amax(2))


def main() -> None:
    """Train the network, where it is missing, and write its test words beside it."""
    parser = argparse.ArgumentParser(prog="python -m models.words", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("build/trained"), metavar="DIRECTORY")
    output = parser.parse_args().output
    if (output / f"{NAME}.onnx").is_file():
        return
    output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED)
    inputs, labels = words()
    test = np.arange(len(labels)) % 10 == 0
    network = WordNetwork()
    cost = train(network, Batches(inputs[~test], labels[~test]), EPOCHS, output / f"{NAME}.checkpoint")
    with torch.no_grad():
        found = network(torch.from_numpy(inputs[test])).argmax(1).numpy()
    facts = {
        "top1": round(float((found == labels[test]).mean()), 4),
        "train_words": int((~test).sum()),
        "test_words": int(test.sum()),
        "parameters": sum(p.numel() for p in network.parameters()),
        **cost,
        "seed": SEED,
        "torch": torch.__version__,
    }
    (output / f"{NAME}.json").write_text(json.dumps(facts, indent=2) + "\n")
    np.savez_compressed(output / f"{NAME}_test.npz", input=inputs[test], labels=labels[test])
    torch.onnx.export(
        network,
        (torch.from_numpy(inputs[:1]),),
        output / f"{NAME}.onnx",
        dynamo=False,
        opset_version=OPSET,
        input_names=["letters"],
        output_names=["scores"],
        dynamic_axes={"letters": {0: "N"}, "scores": {0: "N"}},
        training=torch.onnx.TrainingMode.PRESERVE,
    )
    print(NAME, json.dumps(facts))


if __name__ == "__main__":
    main()
