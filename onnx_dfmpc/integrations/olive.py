"""A pass for Microsoft Olive, with every setting of a recipe.

    python -m onnx_dfmpc.integrations.olive > packages.json
    olive run --config workflow.json --package-config packages.json

The first command writes the package configuration of the installed Olive with this pass added: Olive takes
one such file, and without its own passes in it these would be gone.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from olive.hardware.accelerator import AcceleratorSpec
from olive.model import ONNXModelHandler
from olive.model.utils import resolve_onnx_path
from olive.package_config import OlivePackageConfig
from olive.passes import Pass
from olive.passes.onnx.common import get_external_data_config, model_proto_to_olive_model
from olive.passes.pass_config import BasePassConfig, PassConfigParam

from onnx_dfmpc.errors import ValidationFailed
from onnx_dfmpc.pipeline.run import quantize
from onnx_dfmpc.recipe import Recipe
from onnx_dfmpc.recipe.recipe import KEYWORDS
from onnx_dfmpc.recipe.values import settings

__all__ = ["DfmpcQuantization", "package_config"]

PACKAGE: dict[str, Any] = {
    "module_path": "onnx_dfmpc.integrations.olive.DfmpcQuantization",
    "supported_providers": ["CPUExecutionProvider"],
    "supported_accelerators": ["cpu"],
    "supported_precisions": ["int4", "int8", "uint4", "uint8"],
    "supported_algorithms": [],
    "supported_quantization_encodings": ["qdq"],
    "dataset": "dataset_optional",
}


class DfmpcQuantization(Pass):
    """Weights in 2 to 8 bits without data, and activations in 8 if asked for, as `onnx_dfmpc.quantize` does.

    Its parameters are the keywords of `onnx_dfmpc.Recipe`. A gate that does not hold fails the pass.
    """

    @classmethod
    def _default_config(cls, accelerator_spec: AcceleratorSpec) -> dict[str, PassConfigParam]:
        del accelerator_spec
        # The recipe checks values itself, with messages that say what is allowed.
        keywords = {
            name: PassConfigParam(
                type_=Any, default_value=None, description=key.metadata["help"] or f"see Recipe.{name}"
            )
            for name, key in settings(Recipe).items()
        }
        return {**keywords, **get_external_data_config()}

    def _run_for_config(
        self, model: ONNXModelHandler, config: BasePassConfig, output_model_path: str
    ) -> ONNXModelHandler:
        given = {name: getattr(config, name) for name in KEYWORDS if getattr(config, name) is not None}
        result = quantize(model.model_path, recipe=Recipe.from_dict(given))
        validation = result.validation
        if validation is not None and not result.passed:
            missed = [str(gate) for gate in validation.gates if not gate.passed]
            raise ValidationFailed("; ".join((*validation.failures, *missed)))
        path = resolve_onnx_path(output_model_path, Path(model.model_path).name)
        return model_proto_to_olive_model(result.model, path, config)


def package_config() -> dict[str, Any]:
    """Olive's own package configuration, with this pass in it."""
    own: dict[str, Any] = json.loads(Path(OlivePackageConfig.get_default_config_path()).read_text("utf-8"))
    return own | {"passes": own["passes"] | {DfmpcQuantization.__name__: PACKAGE}}


if __name__ == "__main__":
    json.dump(package_config(), sys.stdout, indent=2)
    print()
