"""Features (B, D) of any module: its output, the output of a layer or method, or a function of it."""

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from acl_plugin.errors import UsageError, unknown

Features = str | Callable[[Any, Tensor], Tensor] | None
"""The ``features`` argument of ``wrap_encoder``."""

ALLOWED = "(B, D), or feature maps (B, C, H, W), which are averaged over H and W"
REMEDY = "pass features=lambda module, x: ... that returns (B, D)"


class FeatureExtractor(nn.Module):
    """Compute features (B, D) of images with any module.

    Args:
        module: any module; its weights are trained.
        features: None for the module's output; a function (module, x) -> features; the name of a layer, whose output
            a forward hook captures; or the name of a method, such as ``forward_features``.

    Raises:
        UsageError: when the module has no layer or method of that name; in the forward pass, when the features are
            neither (B, D) nor (B, C, H, W).
    """

    def __init__(self, module: nn.Module, features: Features = None) -> None:
        super().__init__()
        self.module = module
        self.layer = self.method = ""
        self.function: Callable[[Any, Tensor], Tensor] | None = None
        if isinstance(features, str):
            layers = dict(module.named_modules(remove_duplicate=False))
            if features and features in layers:
                self.layer = features
            elif features and callable(getattr(module, features, None)):
                self.method = features
            else:
                methods = [name for name in ("forward_features", "features") if hasattr(module, name)]
                raise unknown("layer or method", features, {*filter(None, layers), *methods}, parameter="features")
        elif features is not None and not callable(features):
            allowed = "None, a function (module, x), or the name of a layer or method"
            message = f"features {features!r}: allowed is {allowed}"
            raise UsageError(message, parameter="features", given=features, allowed=allowed)
        else:
            self.function = _function(features)

    @property
    def described(self) -> str:
        """Name of the layer, method or function; empty for the module's output."""
        return (
            self.layer
            or self.method
            or getattr(self.function, "__qualname__", type(self.function).__name__ * bool(self.function))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return features: preprocessed images (B, C, H, W) -> (B, D)."""
        output = self._output(x)
        if isinstance(output, Tensor) and output.ndim == 4:
            known = None if self.function is not None else self.module
            _refuse_channels_last(known, x, output)
        return _pooled(output, len(x))

    def _output(self, x: Tensor) -> Any:
        if self.function is not None:
            return self.function(self.module, x)
        if self.method:
            return getattr(self.module, self.method)(x)
        return self._output_of_layer(x) if self.layer else self.module(x)

    def _output_of_layer(self, x: Tensor) -> Any:
        outputs: list[Any] = []
        layer = self.module.get_submodule(self.layer)
        hook = layer.register_forward_hook(lambda _layer, _inputs, output: outputs.append(_copied(output)))
        try:
            self.module(x)
        finally:
            hook.remove()
        if len(outputs) != 1:
            message = f"layer {self.layer!r} runs {len(outputs)} times in a forward pass; {REMEDY}"
            raise UsageError(message, parameter="features", given=self.layer, allowed="a layer that runs once")
        return outputs[0]


def _function(features: Any) -> Any:
    """Refuse a function of the images alone, such as a method of the module, whose copy is trained."""
    try:
        if features is not None:
            inspect.signature(features).bind(None, None)
    except TypeError as error:
        name = getattr(features, "__name__", type(features).__name__)
        hint = f", such as {name!r}" if hasattr(features, "__self__") else ""
        allowed = f"a function (module, x), or the name of a layer or method{hint}"
        message = f"features {name!r} does not take two arguments: allowed is {allowed}"
        raise UsageError(message, parameter="features", given=name, allowed=allowed) from error
    except ValueError:  # no signature is known
        pass
    return features


def _copied(output: Any) -> Any:
    """Return a layer's output as it is now: the next layer may change it in place, as ``nn.ReLU(inplace=True)``."""
    return output.clone() if isinstance(output, Tensor) else output


def _refuse_channels_last(module: nn.Module | None, images: Tensor, maps: Tensor) -> None:
    """Refuse feature maps (B, H, W, C), which an average over the last two axes would not turn into features.

    They are known by a statement of ``module`` (timm's ``output_fmt`` and ``num_features``), unless a function of the
    user made the maps, or by their shape: maps of square images have equal sides.
    """
    _, first, second, last = maps.shape
    stated = str(getattr(module, "output_fmt", "")) == "NHWC"
    width = getattr(module, "num_features", None)
    square = images.shape[-1] == images.shape[-2]
    if stated or width == last != first or (square and first == second != last):
        given = str(tuple(maps.shape))
        remedy = "pass features=lambda module, x: ... .mean((1, 2)), which averages over H and W"
        message = f"features of {len(maps)} images are {given}, with channels last: allowed are {ALLOWED}; {remedy}"
        raise UsageError(message, parameter="features", given=given, allowed=ALLOWED)


def _pooled(output: Any, count: int) -> Tensor:
    """Return features (B, D), with feature maps averaged over positions.

    Tokens (B, T, D) raise an error, as the choice between the class token and their mean depends on the network.
    """
    if isinstance(output, Tensor) and output.ndim in (2, 4) and len(output) == count and output.numel():
        return output.mean((2, 3)) if output.ndim == 4 else output
    if not isinstance(output, Tensor):
        given, remedy = type(output).__name__, REMEDY
    else:
        given, remedy = str(tuple(output.shape)), REMEDY
        if output.ndim == 3:
            remedy += ", such as its tokens[:, 0] (class token) or tokens.mean(1)"
    message = f"features of {count} images are {given}: allowed are {ALLOWED}; {remedy}"
    raise UsageError(message, parameter="features", given=given, allowed=ALLOWED)
