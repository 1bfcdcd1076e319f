"""An export format: the classifier as one TorchScript file."""

import torch

from acl_plugin.registry import EXPORTERS
from acl_plugin.runs.models import load_classifier


@EXPORTERS.register("torchscript")
def torchscript(run, *, optimize=False):
    """Trace the classifier."""
    model = load_classifier(run)
    traced = torch.jit.trace(model, torch.rand(1, *model.spec.shape))
    if optimize:
        traced = torch.jit.optimize_for_inference(traced)
    path = run.path / "classifier.torchscript.pt"
    traced.save(str(path))
    return path
