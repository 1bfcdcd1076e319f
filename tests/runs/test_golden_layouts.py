"""Checkpoints of the authors' own network classes: what is imported computes what their class computed."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from acl_plugin.models.backbones import create_backbone
from acl_plugin.models.projectors import PROJECTORS
from acl_plugin.runs.layouts import LAYOUTS
from acl_plugin.runs.published import read
from golden_weights import images_of, shown, weights_of

pytestmark = [pytest.mark.numeric, pytest.mark.e2e]

GOLDEN = {
    path.stem: json.loads(path.read_text()) for path in (Path(__file__).parents[1] / "golden").glob("layout_*.json")
}
CHANNELS = {"channels": [8, 8, 16, 16]}
"""Of the authors' classes here, whose blocks were made narrow."""


def outputs_of(published, bank, x):
    """Features, embeddings and logits of an imported checkpoint, in float64."""
    spec = published.spec
    backbone = create_backbone(spec)[0].double().eval()
    backbone.load_state_dict(published.banks[bank])
    mean, std = (torch.tensor(values, dtype=torch.float64).view(-1, 1, 1) for values in (spec.mean, spec.std))
    features = backbone((x - mean) / std)
    found = {"features": F.normalize(features, dim=1) if spec.normalized else features}
    if published.projectors is not None:
        kind, weights = published.projectors
        projector = PROJECTORS[kind](features.shape[1]).double().eval()
        projector.load_state_dict(weights[bank])
        found["embeddings"] = projector(found["features"])
        found["embeddings, normalized"] = F.normalize(found["embeddings"], dim=1)
    if published.head is not None:
        found["logits"] = F.linear(features, published.head.weight.double(), published.head.bias.double())
    return found


def test_every_file_is_of_a_layout():
    assert {golden["layout"] for golden in GOLDEN.values()} <= set(LAYOUTS)


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_an_imported_checkpoint_computes_what_its_authors_class_does(name, tmp_path):
    golden = GOLDEN[name]
    path = tmp_path / "checkpoint.pt"
    torch.save({golden["container"]: weights_of(golden["shapes"], golden["values"])}, path)
    published = read(
        path, backbone=golden["backbone"], backbone_kwargs=CHANNELS, shape=(3, golden["side"], golden["side"])
    )
    assert published.layout == golden["layout"]
    assert list(published.banks) == list(golden["outputs"])
    with torch.no_grad():
        for bank, theirs in golden["outputs"].items():
            ours = outputs_of(published, bank, images_of(golden["side"]))
            assert theirs.keys() <= ours.keys()
            for kind, values in theirs.items():
                pair = [torch.tensor(v, dtype=torch.float64) for v in (shown(ours[kind]), values)]
                torch.testing.assert_close(*pair, rtol=1e-6, atol=1e-6 * pair[1].abs().max().item())
