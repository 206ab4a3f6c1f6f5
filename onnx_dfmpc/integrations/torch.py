"""From a torch module to a quantized ONNX file, with batch norm kept on the way.

    from onnx_dfmpc.integrations import torch as dfmpc_torch
    dfmpc_torch.export(model, (x,), "small.onnx", Recipe(target_ratio=8))

Exporters fold batch norm into the convolutions unless told otherwise, and what it learned about the inputs is
gone. The exporter of TorchScript keeps it with ``training=PRESERVE``, and folds constants all the same: with
``do_constant_folding=False`` weights of linear layers would sit behind a Transpose, and stay float. Where it
cannot export a model, the newer one does, with ``optimize=False`` if there is batch norm to keep.
"""

from __future__ import annotations

import inspect
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from onnx_dfmpc.errors import ModelError, RecipeError
from onnx_dfmpc.model.writing import write_whole
from onnx_dfmpc.pipeline.results import QuantizeResult
from onnx_dfmpc.pipeline.run import quantize
from onnx_dfmpc.recipe import Recipe

__all__ = ["export"]


def export(
    model: torch.nn.Module,
    args: tuple[Any, ...] | torch.Tensor,
    path: str | os.PathLike[str],
    recipe: Recipe | None = None,
    *,
    float_path: str | os.PathLike[str] | None = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    dynamic_axes: Mapping[str, Mapping[int, str]] | None = None,
    opset_version: int | None = None,
    overwrite: bool = False,
    validated: bool = True,
) -> QuantizeResult:
    """Export a module in evaluation mode, and quantize what comes out.

    Parameters
    ----------
    model : torch.nn.Module
        Left as it was, in its mode, too.
    args : tuple or Tensor
        Example inputs.
    path : path
        Of the quantized model; not written if a gate of the recipe does not hold.
    recipe : Recipe, optional
        By default a mean of 4 bits.
    float_path : path, optional
        Where to keep the float model, batch norm and all: the reference for `validate`, and what to quantize
        with another recipe.
    input_names, output_names, dynamic_axes, opset_version
        As `torch.onnx.export` takes them.
    overwrite : bool
        Replace existing files.
    validated : bool
        Whether to compare with the float model.

    Returns
    -------
    QuantizeResult

    Raises
    ------
    ModelError
        No exporter of the installed torch can export the module.
    DfmpcError
        What `onnx_dfmpc.quantize` raises.
    """
    if float_path is not None and Path(float_path).exists() and not overwrite:
        raise RecipeError(f"{float_path}: exists already", hint="choose another path, or overwrite=True")
    names = {"input_names": input_names, "output_names": output_names, "opset_version": opset_version}
    given = {name: value for name, value in names.items() if value is not None}
    example = args if isinstance(args, tuple) else (args,)
    with tempfile.TemporaryDirectory() as folder, _evaluating(model):
        exported = Path(folder) / "model.onnx"
        _export(model, example, exported, dynamic_axes, given)
        if float_path is None:
            return quantize(exported, path, recipe, overwrite=overwrite, validated=validated)
        write_whole(Path(float_path), exported.read_bytes())
    return quantize(float_path, path, recipe, overwrite=overwrite, validated=validated)


def _export(
    model: torch.nn.Module,
    args: tuple[Any, ...],
    target: Path,
    dynamic_axes: Mapping[str, Mapping[int, str]] | None,
    given: Mapping[str, Any],
) -> None:
    """Write a float model with batch norm kept, by the first exporter that can."""
    known = inspect.signature(torch.onnx.export).parameters
    script: dict[str, Any] = {"training": torch.onnx.TrainingMode.PRESERVE, "dynamic_axes": dynamic_axes}
    ways = [script | ({"dynamo": False} if "dynamo" in known else {})]
    if "optimize" in known:
        # Not optimizing keeps batch norm, at the price of linear layers behind a Transpose.
        kept = any(isinstance(part, torch.nn.modules.batchnorm._BatchNorm) for part in model.modules())
        newer = {"dynamo": True, "optimize": not kept, "external_data": False}
        ways.append(newer | {"dynamic_axes": dynamic_axes})
    problems = []
    for way in ways:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of deprecation, and of constants in a trace: not the user's
                torch.onnx.export(model, args, str(target), **given, **way)
            return
        except Exception as error:  # UnsupportedOperatorError, RuntimeError of the tracer, ImportError ...
            problems.append(f"{'dynamo' if way.get('dynamo') else 'TorchScript'}: {_first_line(error)}")
            target.unlink(missing_ok=True)
    raise ModelError(
        f"torch {torch.__version__} cannot export the module: {'; '.join(problems)}",
        hint="export it with torch.onnx.export alone first, which says more, then quantize the file",
    )


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"


@contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode, and each part's own mode again."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
