"""What can go wrong, said so that a user can act on it.

Every error carries one line (what happened, in which file, at which node) and, where there is one, a hint
(what to do next). The command line turns the class into an exit code; nothing here imports anything.
"""


def printable(text: str) -> str:
    r"""Text that does nothing to a terminal: names come from files that anybody may have written.

    Whatever is not seen is written as an escape: control characters (cursor, colours, title), marks
    that turn the direction of writing, spaces of no width. Line ends and tabs stay.

    >>> print(printable("conv\x1b[2J \u202egpj"))
    conv\x1b[2J \u202egpj
    """
    if text.isprintable():
        return text
    return "".join(
        one if one.isprintable() or one in "\n\t" else one.encode("unicode_escape").decode() for one in text
    )


class DfmpcError(Exception):
    """Base of everything this package raises on purpose.

    Parameters
    ----------
    message : str
        One line: file, node, tensor and what is wrong.
    hint : str, optional
        One line: what the user can do next.

    Examples
    --------
    >>> str(DfmpcError("model.onnx: no graph", hint="export it again"))
    'model.onnx: no graph'
    """

    exit_code = 4

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(printable(message))
        self.hint = printable(hint)


class RecipeError(DfmpcError):
    """A flag, a recipe or a plan that does not make sense (exit code 2)."""

    exit_code = 2


class ModelError(DfmpcError):
    """A file that is not a usable model: unreadable, empty, inconsistent, non-finite (exit code 3)."""

    exit_code = 3


class UnsupportedError(DfmpcError):
    """A sound model that this tool cannot quantize: nothing matched, or a form it does not handle (exit code
    3).
    """

    exit_code = 3


class LayerError(UnsupportedError):
    """One layer that cannot be quantized, whatever the others can: it has to stay float."""

    def __init__(self, layer: str, reason: str) -> None:
        super().__init__(f"{layer}: {reason}", hint="exclude the layer, or export the model in float32")
        self.layer, self.reason = layer, reason


class ValidationFailed(DfmpcError):
    """A gate on the comparison with the float model does not hold (exit code 1)."""

    exit_code = 1
