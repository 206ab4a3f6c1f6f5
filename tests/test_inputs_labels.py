"""Labels of samples: folders, files, and what does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from onnx_dfmpc.errors import RecipeError
from onnx_dfmpc.inputs.samples import from_data
from tests.samples import IMAGE, SIGNAL, signals


def test_numbers_of_folders_are_labels(tmp_path: Path) -> None:
    for name in ("7", "12"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (6, 4)).save(tmp_path / name / "a.png")
    found = from_data([IMAGE], tmp_path)
    assert found.labels is not None
    assert found.labels.tolist() == [12, 7]


def test_labels_of_an_npz_with_other_arrays(tmp_path: Path) -> None:
    np.savez(tmp_path / "y.npz", other=np.zeros(3), labels=np.arange(3))
    found = from_data([SIGNAL], signals(3), tmp_path / "y.npz")
    np.testing.assert_array_equal(found.labels, np.arange(3))


@pytest.mark.filterwarnings("ignore:Stored array in format 3")
@pytest.mark.parametrize(
    ("name", "content", "words", "hint"),
    [
        (
            "y.npz",
            {"first": np.arange(5), "second": np.arange(5)},
            "has first, second, none of them",
            "5 integers",
        ),
        ("y.npy", np.arange(4), "expected 5 integers", "counted from 0"),
        ("y.txt", b"1\n2\n3\n4\n5\n", "not an .npz or .npy", "numpy.save"),
        ("no.npy", None, "no such labels file", ""),
        (".", None, "cannot read labels", ""),
        ("y.npy", np.zeros(5, [("\u03c0", int)]), "not an .npz or .npy", "numpy.save"),  # version 3
    ],
)
def test_label_files_that_do_not_fit(tmp_path: Path, name: str, content: Any, words: str, hint: str) -> None:
    file = tmp_path / name
    if isinstance(content, dict):
        np.savez(file, **content)
    elif isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        np.save(file, content)
    with pytest.raises(RecipeError, match=words) as caught:
        from_data([SIGNAL], signals(5), file)
    assert hint in caught.value.hint
