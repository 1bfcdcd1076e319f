"""Teachers that are timm models with pretrained weights, whatever the network of the run."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from acl_plugin.errors import UsageError
from acl_plugin.models.encoder import Encoder
from acl_plugin.models.pretrained import pretrained_spec, pretrained_weights
from acl_plugin.models.spec import ModelSpec
from acl_plugin.validation import check_value

PREFIX = "timm:"
SETTINGS: dict[str, Any] = {
    "timm": str, "file": str | None, "input_size": int | None, "backbone_kwargs": dict[str, Any]
}  # fmt: skip
"""Settings of a teacher that is given as a mapping."""


class Pretrained(NamedTuple):
    """A timm model with pretrained weights.

    Attributes:
        name: timm's name, with a tag or without.
        file: local file of the weights in timm's names; None for timm's hub.
        input_size: side in pixels to which the model resizes its images; None for that of the weights.
        kwargs: arguments of ``timm.create_model``.
    """

    name: str
    file: Path | None = None
    input_size: int | None = None
    kwargs: Mapping[str, Any] = {}

    @classmethod
    def of(cls, value: Any) -> "Pretrained | None":
        """Return the model that the setting ``teacher`` names; None if it is something else, such as a run folder.

        Args:
            value: ``timm:NAME``, or a mapping with ``timm`` and, as needed, ``file``, ``input_size`` and
                ``backbone_kwargs``.

        Raises:
            UsageError: for a mapping with other settings, or values of other types.
        """
        if isinstance(value, str):
            return cls(value.removeprefix(PREFIX)) if value.startswith(PREFIX) else None
        if not isinstance(value, Mapping):
            return None
        if "timm" not in value or not value.keys() <= SETTINGS.keys():
            allowed = f"a run folder, {PREFIX}NAME, or a mapping with timm (a name) and {', '.join([*SETTINGS][1:])}"
            message = f"teacher {dict(value)}: allowed is {allowed}"
            raise UsageError(message, parameter="teacher", given=dict(value), allowed=allowed)
        for setting, given in value.items():
            check_value(f"teacher.{setting}", given, SETTINGS[setting])
        file = value.get("file")
        size, kwargs = value.get("input_size"), value.get("backbone_kwargs", {})
        return cls(value["timm"], None if file is None else Path(file).expanduser(), size, kwargs)

    def load(self, shape: tuple[int, int, int]) -> Encoder:
        """Return the encoder, without a projector and in eval mode.

        Args:
            shape: (C, H, W) of the images, which are resized to the model's input size inside the encoder.

        Raises:
            UsageError: when there are no such weights, they cannot be read, or the model does not take the size.
        """
        plain = ModelSpec(self.name, dict(self.kwargs), "native", shape, (0.5,) * shape[0], (0.5,) * shape[0])
        try:
            spec = pretrained_spec(plain, self.input_size)
            weights, _ = pretrained_weights(self.name, spec, self.file)
            encoder = Encoder(spec, projector="identity")
        except UsageError as error:
            text = re.sub(r"`pretrained_file`", "its `file`", str(error).removeprefix("`pretrained`: "))
            message = f"teacher {self.name}: {text}"
            raise UsageError(message, parameter="teacher", given=self.name, allowed=error.allowed) from error
        encoder.backbone.load_state_dict(weights)
        return encoder.eval()
