"""A runner for ``polygraphy run``: our models in ONNX Runtime with the session option that fits them.

    polygraphy run small.onnx --dfmpc --save-outputs small.json
    polygraphy run model.onnx --onnxrt --dfmpc --dfmpc-recipe recipe.toml

Polygraphy finds it by itself: `argument_groups` is an entry point of the group ``polygraphy.run.plugins``.
"""

from __future__ import annotations

from typing import Any

import onnx
from polygraphy import mod, util
from polygraphy.backend.base import BaseLoader
from polygraphy.logger import G_LOGGER
from polygraphy.tools.args import ModelArgs, OnnxLoadArgs, OnnxrtSessionArgs
from polygraphy.tools.args.base import BaseRunnerArgs
from polygraphy.tools.script import make_invocable

from onnx_dfmpc import DfmpcError, Recipe, quantize, session_options

onnxruntime = mod.lazy_import("onnxruntime")

__all__ = ["DfmpcRunnerArgs", "DfmpcSession", "argument_groups"]


class DfmpcSession(BaseLoader):
    """An ONNX Runtime session of a quantized model.

    Parameters
    ----------
    model : path, bytes, or a loader of one
    recipe : path, optional
        A recipe file: the model is a float one, which is quantized first.
    providers : sequence of str, optional
        Execution providers, or parts of their names, as Polygraphy takes them; by default the CPU's.
    """

    def __init__(self, model: Any, recipe: str | None = None, providers: list[str] | None = None) -> None:
        self._model = model
        self._recipe = recipe
        self._providers = util.default(providers, ["cpu"])

    def call_impl(self) -> Any:
        """Session; what the model or the recipe cannot is a PolygraphyException."""
        model, _ = util.invoke_if_callable(self._model)
        try:
            if self._recipe is not None:
                model = quantize(model, recipe=Recipe.from_toml(self._recipe), validated=False).model
                model = model.SerializeToString()
            known = onnx.load_from_string(model) if isinstance(model, bytes) else model
            options = session_options(known)
        except DfmpcError as error:
            G_LOGGER.critical(f"{error}\nNote: {error.hint}" if error.hint else str(error))
        available = onnxruntime.get_available_providers()
        providers = [util.find_str_in_iterable(name, available) or name for name in self._providers]
        return onnxruntime.InferenceSession(model, options, providers=providers)


class DfmpcRunnerArgs(BaseRunnerArgs):
    """
    onnx-dfmpc: quantized models in ONNX-Runtime, at float speed

    Depends on:

        - ModelArgs
        - OnnxLoadArgs
        - OnnxrtSessionArgs
    """

    def get_name_opt_impl(self) -> tuple[str, str]:
        """Name of the runner, and its option."""
        return "ONNX-Runtime with the session option for onnx-dfmpc", "dfmpc"

    def add_parser_args_impl(self) -> None:
        """Add the options of the runner."""
        self.group.add_argument(
            "--dfmpc-recipe", default=None, help="Recipe (TOML): quantize the model first, as it says"
        )

    def parse_impl(self, args: Any) -> None:
        """Remember the options."""
        self.recipe = args.dfmpc_recipe

    def add_to_script_impl(self, script: Any) -> None:
        """Add the runner to what Polygraphy is about to run."""
        load = self.arg_groups[OnnxLoadArgs]
        if load.must_use_onnx_loader():
            model = load.add_to_script(script, serialize_model=True)
        else:
            model = self.arg_groups[ModelArgs].path
        script.add_import(imports=["DfmpcSession"], frm="onnx_dfmpc.integrations.polygraphy")
        script.add_import(imports=["OnnxrtRunner"], frm="polygraphy.backend.onnxrt")
        providers = self.arg_groups[OnnxrtSessionArgs].providers
        session = script.add_loader(
            make_invocable("DfmpcSession", model, recipe=self.recipe, providers=providers), "dfmpc_session"
        )
        script.add_runner(make_invocable("OnnxrtRunner", session, name="onnx-dfmpc"))


def argument_groups() -> list[BaseRunnerArgs]:
    """Argument groups that ``polygraphy run`` adds to its own."""
    return [DfmpcRunnerArgs()]
