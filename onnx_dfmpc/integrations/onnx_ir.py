"""A pass for onnx-ir, to be put among its own.

    import onnx_ir as ir
    from onnx_ir.passes import common
    from onnx_dfmpc.integrations.onnx_ir import QuantizeWeightsPass

    passes = ir.passes.Sequential(common.IdentityEliminationPass(), QuantizeWeightsPass())
    ir.save(passes(ir.load("model.onnx")).model, "small.onnx")

Passes that lift, share or fold constants come before it: behind it they would find codes instead of weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes.common import CheckerPass

from onnx_dfmpc.errors import DfmpcError, ValidationFailed
from onnx_dfmpc.pipeline.results import QuantizeResult
from onnx_dfmpc.pipeline.run import inspect, quantize
from onnx_dfmpc.recipe import Recipe

__all__ = ["QuantizeWeightsPass", "QuantizeWeightsResult"]


@dataclass
class QuantizeWeightsResult(ir.passes.PassResult):
    """What the pass returns.

    Attributes
    ----------
    quantized : QuantizeResult
        The account of every layer, the sizes and the validation.
    """

    quantized: QuantizeResult


class QuantizeWeightsPass(ir.passes.FunctionalPass):
    """Weights in 2 to 8 bits, as `onnx_dfmpc.quantize` makes them.

    External tensors are read; the model that comes out has its tensors in memory.

    Parameters
    ----------
    recipe : Recipe, optional
        Bits, method, gates; by default a mean of 4 bits.
    validated : bool
        Whether to compare with the float model; without it gates are not looked at.
    """

    def __init__(self, recipe: Recipe | None = None, *, validated: bool = True) -> None:
        self.recipe = recipe or Recipe()
        self.validated = validated

    def requires(self, model: ir.Model) -> None:
        """Sound, and with at least one weight that can be quantized."""
        try:
            matched = inspect(model)
        except DfmpcError as error:
            raise ir.passes.PreconditionError(_text(error)) from error
        if not matched.weights:
            reasons = sorted({skipped.reason for skipped in matched.skipped})
            raise ir.passes.PreconditionError(
                "nothing to quantize: " + ("; ".join(reasons) or "no Conv, ConvTranspose, Gemm or MatMul")
            )

    def call(self, model: ir.Model) -> QuantizeWeightsResult:
        """Quantize, whatever that raises; a gate that does not hold is a `ValidationFailed`."""
        result = quantize(model, recipe=self.recipe, validated=self.validated)
        if result.validation is not None and not result.passed:
            missed = [gate.name for gate in result.validation.gates if not gate.passed]
            raise ValidationFailed(
                "validation failed: " + "; ".join((*result.validation.failures, *missed)),
                hint="more bits may help, or other gates",
            )
        return QuantizeWeightsResult(result.to_ir(), True, result)

    def ensures(self, model: ir.Model) -> None:
        """Standard ONNX, with shapes and types that fit."""
        CheckerPass(full_check=True)(model)


def _text(error: DfmpcError) -> str:
    return f"{error} ({error.hint})" if error.hint else str(error)
