import dataclasses
import json
import shutil
import subprocess
import sys

import pytest
import timm
import torch
from PIL import Image
from torch import nn

from acl_plugin import load_encoder, pretrain, wrap_encoder
from acl_plugin.cli.main import main
from acl_plugin.config import preset
from acl_plugin.data.form import Form
from acl_plugin.errors import UsageError
from acl_plugin.models import norm_banks
from acl_plugin.models.encoder import Encoder
from acl_plugin.registry import EXPORTERS
from acl_plugin.runs.folder import RunDir
from acl_plugin.runs.models import read_model, write_encoder, write_model
from acl_plugin.runs.transfer import transfer, transferred
from acl_plugin.runtime.files import write_json
from conftest import TINY, spec

pytestmark = pytest.mark.e2e
NETWORKS = {
    "changed stem": {},
    "plain": {"stem": "native"},
    "vision transformer": {
        "backbone": "vit_tiny_patch16_224",
        "backbone_kwargs": {"embed_dim": 24, "depth": 2, "num_heads": 3},
    },
    "larger input": {
        "backbone": "vit_tiny_patch16_224",
        "backbone_kwargs": {"embed_dim": 24, "depth": 2, "num_heads": 3, "img_size": 32},
        "stem": "native",
    },
    "wide residual network": {"backbone": "wrn28_10", "backbone_kwargs": {"depth": 10, "width": 1}},
    "normalized": {"objective": "gsa_rsl", "objective_kwargs": {}},
}


@pytest.fixture(scope="module")
def run_of(tmp_path_factory):
    """A run folder with an initial encoder of a network."""
    made = {}

    def of(network):
        if network not in made:
            config = preset("digits", **TINY | NETWORKS[network] | {"epochs": 0, "limit_train": 40})
            made[network] = RunDir(pretrain(config, tmp_path_factory.mktemp("exports") / "run").path)
        return made[network]

    return of


@pytest.mark.parametrize("kind", ["timm", "hub"])
@pytest.mark.parametrize(
    ("resize", "crop"),
    [(None, ("squash", 1.0)), (256, ("center", 0.875)), (8, ("center", 1.0)), (49, ("center", None))],
)
def test_timm_prepares_image_files_as_the_training_does(resize, crop, kind, run_of, tmp_path, created):
    """A tall image is squashed, or cropped, as its pixels were for the encoder."""
    source, size = run_of("plain"), 8 if resize != 256 else 224
    run = RunDir(shutil.copytree(source.path, tmp_path / "run"))
    spec, weights = read_model(run.encoder_file)
    write_model(run.encoder_file, dataclasses.replace(spec, shape=(1, size, size), input_size=None), weights)
    run.record_config(run.read_config().replace(resize=resize, image_size=size))
    folder = EXPORTERS.get(kind)(run)
    pretrained = json.loads((folder / "config.json").read_text())["pretrained_cfg"]
    assert pretrained["crop_mode"] == crop[0]
    assert crop[1] in (None, pretrained["crop_pct"])
    data = timm.data.resolve_data_config(pretrained_cfg=pretrained)
    options = {key: data[key] for key in ("crop_pct", "crop_mode", "interpolation")}
    image = Image.linear_gradient("L").resize((60, 90))
    found = timm.data.create_transform(data["input_size"], **options, mean=(0.0,), std=(1.0,))(image)
    expected = Form(size, size, resize, channels=1).pixels(image)
    assert (255 * found - expected).abs().max() <= 1
    assert ("whatever their aspect ratio" in (folder / "README.md").read_text()) == (resize is None)


def images(encoder, number=3):
    return torch.rand(number, *encoder.spec.shape, generator=torch.Generator().manual_seed(1))


def apart(found, expected):
    return (found - expected).abs().max().item() / expected.abs().max().item()


@pytest.fixture
def created(monkeypatch):
    """Create the network of a folder with timm alone, by its own page's arguments; its module is removed afterwards."""

    def create(folder, **options):
        described = json.loads((folder / "config.json").read_text())
        name = described["architecture"]
        if (folder / f"{name}.py").is_file():
            monkeypatch.syspath_prepend(folder)
            sys.modules.pop(name, None)
            __import__(name)
        return timm.create_model(name, **{"num_classes": 0, **described["model_args"], **options}).eval(), described

    return create


@pytest.mark.parametrize("network", NETWORKS)
def test_timm_creates_the_encoder_from_the_files(network, run_of, created):
    run = run_of(network)
    folder = EXPORTERS.get("timm")(run)
    again, described = created(folder, checkpoint_path=str(folder / "model.safetensors"))
    encoder = load_encoder(run.path)
    x = images(encoder)
    assert apart(again(encoder.preprocess(x)), encoder.backbone(encoder.preprocess(x))) < 1e-4
    assert described["num_features"] == encoder.size
    changed = network in ("changed stem", "wide residual network", "normalized")  # patches are an argument of timm
    assert {p.suffix for p in folder.iterdir()} == {".json", ".md", ".safetensors"} | ({".py"} if changed else set())
    data = timm.data.resolve_data_config(pretrained_cfg=described["pretrained_cfg"])
    assert tuple(data["input_size"]) == (1, *encoder.preprocess.size)
    assert (tuple(data["mean"]), tuple(data["std"])) == (encoder.spec.mean, encoder.spec.std)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("kind", ["timm", "hub"])
def test_the_code_of_the_page_gives_the_features(network, kind, run_of, tmp_path, monkeypatch):
    run = run_of(network)
    folder = tmp_path / "elsewhere"
    shutil.copytree(EXPORTERS.get(kind)(run), folder)
    code = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    serve(folder, monkeypatch)
    parts = {}
    exec(code.replace("  # in [0, 1]", "\ndrawn = images"), parts)
    encoder = load_encoder(run.path)
    assert apart(parts["features"], encoder.features(parts["drawn"])) < 1e-4


def serve(folder, monkeypatch):
    """Let timm find every file of a hub in the folder, without a network."""

    def download(*positional, filename=None, **_):  # timm 1.0.9 gives both names by position
        return str(folder / (filename or positional[1]))

    monkeypatch.setattr("timm.models._hub.hf_hub_download", download)


@pytest.mark.parametrize("network", ["changed stem", "plain"])
def test_a_head_for_other_classes_can_be_added(network, run_of, created, monkeypatch):
    folder = EXPORTERS.get("hub")(run_of(network))
    created(folder)  # registers the network
    serve(folder, monkeypatch)
    model = timm.create_model("hf-hub:someone/encoder", pretrained=True, num_classes=7).eval()
    encoder = load_encoder(run_of(network).path)
    x = images(encoder)
    assert model(x).shape == (3, 7)
    features = model.forward_head(model.forward_features(encoder.preprocess(x)), pre_logits=True)
    assert apart(features, encoder.backbone(encoder.preprocess(x))) < 1e-4


@pytest.fixture
def written(tmp_path):
    """A run folder with a random encoder, with random statistics."""

    def write(backbone, kwargs, shape, stem="native"):
        run = RunDir(tmp_path / "run")
        run.start(preset("digits", objective="simclr"))
        encoder = Encoder(spec(shape, backbone, kwargs, stem=stem))
        for _ in range(5):
            encoder.train()(torch.rand(8, *shape))
        write_encoder(run, encoder.spec, norm_banks.export(encoder.backbone, "clean").state_dict())
        return run

    return write


SWIN = {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 1], "window_size": 2, "img_size": 32}
COAT = {"embed_dims": [8] * 4, "serial_depths": [1] * 4, "parallel_depth": 1, "num_heads": 8, "img_size": 32}


@pytest.mark.parametrize("channels", [1, 2, 4])
@pytest.mark.parametrize("stem", ["cifar", "native"])
def test_a_hub_gives_all_weights_for_any_number_of_channels(channels, stem, written, created, monkeypatch):
    run = written("resnet10t", None, (channels, 8, 8), stem)
    folder = EXPORTERS.get("hub")(run)
    created(folder)  # registers the network
    serve(folder, monkeypatch)
    model = timm.create_model("hf-hub:someone/encoder", pretrained=True).eval()
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in load_encoder(run.path).backbone.state_dict().items())


@pytest.mark.parametrize("backbone", ["swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256"])
def test_a_network_that_timm_does_not_load_from_a_hub_is_refused(backbone, written, created):
    run = written(backbone, SWIN, (3, 32, 32))
    with pytest.raises(
        UsageError, match=f"`format` hub: timm does not load the weights of a hub for {backbone}"
    ) as error:
        EXPORTERS.get("hub")(run)
    assert str(error.value).endswith("; pass `format` timm or torch")
    assert "\n" not in str(error.value)
    assert not run.hub_folder.exists()
    folder = EXPORTERS.get("timm")(run)
    again, _ = created(folder, checkpoint_path=str(folder / "model.safetensors"))
    encoder = load_encoder(run.path)
    x = images(encoder)
    assert apart(again(encoder.preprocess(x)), encoder.backbone(encoder.preprocess(x))) < 1e-4


@pytest.mark.parametrize("kind", ["timm", "hub", "torch"])
def test_layers_that_share_weights_are_exported(kind, written):
    run = written("coat_tiny", COAT, (3, 32, 32))
    assert EXPORTERS.get(kind)(run).exists()


def test_the_name_by_default_is_a_name(run_of, tmp_path):
    run = RunDir(shutil.copytree(run_of("changed stem").path, tmp_path / "run"))
    run.record_config(run.read_config().replace(objective="3sat", objective_kwargs={}, backbone="resnet10t.c3_in1k"))
    assert (EXPORTERS.get("timm")(run) / "model_3sat_resnet10t_c3_in1k.py").is_file()


def test_the_folder_of_a_hub_has_a_card(run_of):
    from huggingface_hub import ModelCard

    folder = EXPORTERS.get("hub")(run_of("changed stem"))
    card = ModelCard.load(folder / "README.md")
    assert card.data.library_name == "timm"
    assert "adversarial-robustness" in card.data.tags
    assert "Pretrained without labels on digits by `acl_ds`" in card.text
    assert "AutoAttack" not in card.text


@pytest.mark.parametrize("network", NETWORKS)
def test_torch_loads_the_program_for_any_number_of_images(network, run_of):
    run = run_of(network)
    file = EXPORTERS.get("torch")(run)
    encoder = load_encoder(run.path)
    program = torch.export.load(str(file)).module()
    for number in (1, 2, 5):
        x = images(encoder, number)
        assert apart(program(x), encoder.features(x)) < 1e-4


def test_the_program_needs_torch_alone(run_of, tmp_path):
    run = run_of("changed stem")
    file = EXPORTERS.get("torch")(run)
    code = (
        "import sys, torch\n"
        f"print(tuple(torch.export.load({str(file)!r}).module()(torch.rand(4, 1, 8, 8)).shape), "
        "[m for m in ('timm', 'acl_plugin') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[0] == f"(4, {load_encoder(run.path).size}) []"


def test_the_results_of_the_probe_are_on_the_card(finished_run, tmp_path):
    run = RunDir(shutil.copytree(finished_run, tmp_path / "run"))
    text = (EXPORTERS.get("hub")(run) / "README.md").read_text()
    assert "After the probe `slf` on digits: " in text
    assert "% under AutoAttack (standard, Linf, eps 0.1), " in text


def test_results_of_an_earlier_classifier_are_not_on_the_card(finished_run, tmp_path):
    run = RunDir(shutil.copytree(finished_run, tmp_path / "run"))
    spec, weights = read_model(run.classifier_file)
    write_model(run.classifier_file, spec, weights | {"head.bias": weights["head.bias"] + 1})
    text = (EXPORTERS.get("hub")(run) / "README.md").read_text()
    assert "Pretrained without labels on digits by" in text
    assert "AutoAttack" not in text


def test_the_card_of_a_transferred_run_tells_of_its_pretraining(run_of, tmp_path):
    source, target = run_of("changed stem"), RunDir(tmp_path / "target")
    transfer(source, target, transferred(source.read_config(), "digits_5_9", eps=0.05))
    text = (EXPORTERS.get("hub")(target) / "README.md").read_text()
    eps = source.read_config().threat.eps
    origin = f"by `acl_ds` with acl_plugin; epochs: 0; threat model: Linf, eps {eps}.\n"
    assert f"Pretrained without labels on digits {origin}" in text
    for of_the_target in ("digits_5_9", "0.05"):
        assert of_the_target not in text
    further = RunDir(tmp_path / "further")
    transfer(target, further, transferred(target.read_config(), "digits_0_4", eps=0.02))
    assert f"Pretrained without labels on digits {origin}" in (EXPORTERS.get("hub")(further) / "README.md").read_text()


def test_the_card_names_the_weights_that_the_pretraining_began_from(run_of, tmp_path):
    run = RunDir(shutil.copytree(run_of("changed stem").path, tmp_path / "run"))
    weights = {"pretrained": {"name": "resnet10t.c3_in1k", "sha256": "0" * 64}}
    write_json(run.pretraining_file, json.loads(run.pretraining_file.read_text()) | weights)
    text = (EXPORTERS.get("hub")(run) / "README.md").read_text()
    assert "; started from the pretrained weights resnet10t.c3_in1k.\n" in text


def test_the_card_of_an_imported_run_names_its_file_alone(run_of, tmp_path):
    run = RunDir(shutil.copytree(run_of("changed stem").path, tmp_path / "run"))
    source = {"file": "theirs.pt", "sha256": "0" * 64, "format": "plain", "methods": ["rocl"]}
    run.record_config(run.read_config().replace(objective="imported", objective_kwargs=source))
    text = (EXPORTERS.get("hub")(run) / "README.md").read_text()
    assert f"from the published checkpoint theirs.pt (format plain, sha256 {'0' * 64}).\n" in text
    for of_the_presets in ("Pretrained", "digits", "epochs", "eps"):
        assert of_the_presets not in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--format", "timm", "--name", "My Net"],
            "--name 'My Net': allowed are up to 100 small letters, digits and _",
        ),
        (["--format", "timm", "--name", "torch"], "but no word or module of Python"),
        (["--format", "hub", "--name", "class"], "but no word or module of Python"),
        (["--format", "timm", "--name", "json"], "but no word or module of Python"),
        (["--format", "torch", "--name", "net"], "--name net is not used with this --format"),
        (["--format", "onnx"], "unknown export format 'onnx'"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(arguments, message, run_of, tmp_path, capsys):
    run = RunDir(shutil.copytree(run_of("plain").path, tmp_path / "run"))
    before = sorted(run.path.rglob("*"))
    assert main(["export", str(run.path), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert sorted(run.path.rglob("*")) == before


def test_a_changed_network_does_not_take_the_name_of_timms(run_of):
    with pytest.raises(UsageError, match="'resnet18': timm has a model of this name"):
        EXPORTERS.get("timm")(run_of("changed stem"), name="resnet18")
    folder = EXPORTERS.get("timm")(run_of("plain"), name="resnet18")
    assert not list(folder.glob("*.py"))  # the name is not used


@pytest.mark.parametrize("kind", ["timm", "hub", "torch"])
def test_an_encoder_of_ones_own_is_refused(kind, tmp_path):
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    encoder = wrap_encoder(network, shape=(1, 8, 8))
    config = preset("digits", **TINY | {"objective": "simclr", "epochs": 0, "limit_train": 40})
    run = RunDir(pretrain(config, tmp_path / "run", encoder=encoder).path)
    with pytest.raises(UsageError, match="its encoder is .*, a module of your own") as error:
        EXPORTERS.get(kind)(run)
    assert "\n" not in str(error.value)
    assert not (run.path / kind).exists()
