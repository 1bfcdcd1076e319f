"""A suite: accuracy on darker and brighter images."""

from acl_plugin.evaluation.chunks import read_inputs
from acl_plugin.models.features import predictions
from acl_plugin.registry import SUITES
from acl_plugin.runtime.files import write_json


@SUITES.register("brightness")
def brightness(run, config, *, overwrite=False):
    """Multiply all pixels by 0.5 and by 1.5."""
    config, device = run.resolved(config, None)
    model, _, images = read_inputs(run, config, device)
    found = {}
    for factor in (0.5, 1.5):
        changed = (images.floats() * factor).clamp(0, 1)
        found[f"accuracy at {factor}"] = (predictions(model, changed) == images.labels).float().mean().item()
    write_json(run.path / "brightness.json", found)
    return found
