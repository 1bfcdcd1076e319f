import inspect
import re
import sys
from importlib.metadata import EntryPoint
from itertools import permutations

import pytest
import torch

import acl_plugin
from acl_plugin import registry
from acl_plugin.attacks.catalogue import attack_names
from acl_plugin.cli.main import main
from acl_plugin.errors import UsageError
from acl_plugin.objectives.simclr import SimCLR
from acl_plugin.registry import OBJECTIVES, create_objective
from acl_plugin.reporting.tables import evaluation


@pytest.fixture
def forget():
    names = []
    yield names.append
    for name in names:
        registry.unregister(name)


@pytest.fixture
def third_party(monkeypatch, tmp_path, forget):
    """Two entry points of another distribution: one that works, one that cannot be imported."""
    (tmp_path / "third_party_acl.py").write_text(
        "import acl_plugin\n\nclass Theirs(acl_plugin.Objective):\n    '''Theirs.'''\n"
    )
    monkeypatch.syspath_prepend(tmp_path)

    class Distribution:
        name = "third-party"

    entries = [
        EntryPoint("not_callable", "third_party_acl:__name__", registry.OBJECTIVES.group)._for(Distribution),
        EntryPoint("theirs", "third_party_acl:Theirs", registry.OBJECTIVES.group)._for(Distribution),
        EntryPoint("broken", "third_party_acl.missing:Theirs", registry.OBJECTIVES.group)._for(Distribution),
    ]
    monkeypatch.setattr(registry, "entry_points", lambda group: entries)
    forget("theirs")
    yield
    sys.modules.pop("third_party_acl", None)


def test_ours_are_registered():
    assert {"simclr", "acl_a2a", "acl_a2s", "acl_ds", "gsa_rsl"} <= set(acl_plugin.available())


def test_register_and_create(forget):
    forget("mine")

    @acl_plugin.register("mine")
    class Mine(acl_plugin.Objective):
        """Mine."""

    assert "mine" in acl_plugin.available()
    assert acl_plugin.create_objective("mine", temperature=0.1).temperature == 0.1
    assert acl_plugin.register("mine")(Mine) is Mine


def test_duplicates_are_refused():
    with pytest.raises(ValueError, match=r"'simclr' is already registered by acl_plugin.objectives.simclr.SimCLR"):
        acl_plugin.register("simclr")(object)
    assert registry.OBJECTIVES.get("simclr") is SimCLR


def test_unknown_names_and_settings_are_reported_with_the_nearest():
    with pytest.raises(UsageError, match="unknown objective 'simcrl'; the nearest: simclr"):
        acl_plugin.create_objective("simcrl")
    with pytest.raises(UsageError, match="setting of objective 'simclr': 'tau'; allowed: projector, temperature"):
        acl_plugin.create_objective("simclr", tau=1)


def test_entry_points_are_named_unloaded_and_loaded_when_requested(third_party):
    assert {"theirs", "broken"} <= set(acl_plugin.available())
    assert "third_party_acl" not in sys.modules
    assert type(acl_plugin.create_objective("theirs")).__name__ == "Theirs"


def test_a_broken_entry_point_is_reported_with_its_distribution(third_party):
    with pytest.raises(UsageError, match="'broken' of third-party cannot be loaded: ModuleNotFoundError"):
        acl_plugin.create_objective("broken")
    assert "simclr" in acl_plugin.available()


def classes(*names):
    return {name: type(name.title(), (acl_plugin.Objective,), {}) for name in names}


@pytest.mark.parametrize("order", list(permutations(("one", "two", "three"))))
def test_the_order_of_registration_does_not_matter(order, forget):
    made = classes("one", "two", "three")
    for name in order:
        forget(name)
        acl_plugin.register(name)(made[name])
    assert acl_plugin.available() == sorted(acl_plugin.available())
    assert set(made) <= set(acl_plugin.available())
    assert all(type(acl_plugin.create_objective(name)) is made[name] for name in made)


ENTRIES = {"a": "third_party_acl:Theirs", "b": "third_party_acl:Other", "c": "third_party_acl:Theirs"}


@pytest.fixture
def several(monkeypatch, tmp_path, forget):
    """Entry points called ``theirs`` of the distributions given, in that order."""
    source = "import acl_plugin\n"
    for name in ("Theirs", "Other"):
        source += f"\nclass {name}(acl_plugin.Objective):\n    pass\n"
    (tmp_path / "third_party_acl.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    forget("theirs")

    def install(order):
        kinds = [type("Distribution", (), {"name": name}) for name in order]
        entries = [EntryPoint("theirs", ENTRIES[k.name], registry.OBJECTIVES.group)._for(k) for k in kinds]
        monkeypatch.setattr(registry, "entry_points", lambda group: entries)

    yield install
    sys.modules.pop("third_party_acl", None)


@pytest.mark.parametrize("order", ["ab", "ba", "abc", "cba"])
def test_a_name_that_two_distributions_take_is_refused(several, order):
    several(order)
    assert acl_plugin.available().count("theirs") == 1
    for _ in range(2):  # the second time as well
        with pytest.raises(UsageError) as error:
            acl_plugin.create_objective("theirs")
        assert (error.value.parameter, error.value.given) == ("objective", "theirs")
        assert "is registered by a and b;" in str(error.value) or "by b and c;" in str(error.value)


@pytest.mark.parametrize("order", ["ac", "ca", "a"])
def test_a_name_that_stands_twice_for_one_class_is_taken(several, order):
    several(order)
    assert type(acl_plugin.create_objective("theirs")).__name__ == "Theirs"


@pytest.mark.parametrize("first", ["entry point", "registered"])
def test_a_name_is_not_taken_from_another_distribution(several, first):
    several("a")
    if first == "entry point":
        acl_plugin.create_objective("theirs")
        with pytest.raises(UsageError, match="is already registered by third_party_acl.Theirs"):
            acl_plugin.register("theirs")(classes("mine")["mine"])
    else:
        acl_plugin.register("theirs")(classes("mine")["mine"])
        with pytest.raises(UsageError, match="is registered by a and "):
            acl_plugin.create_objective("theirs")


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        ("norm_banks", ()), ("norm_banks", ("a", "a")), ("norm_banks", "clean"), ("norm_banks", (1,)),
        ("needs", ("c",)),
        ("needs", ("images",)), ("needs", "a"), ("attack_mode", "both"), ("projector", "four_layer"),
        ("projector", None),        ("strength", 2.0), ("cost", 3), ("temperature", None), ("temperature", -1.0),
    ],
)  # fmt: skip
def test_an_objective_that_breaks_the_contract_is_refused_by_name(attribute, value, forget):
    forget("bad")

    @acl_plugin.register("bad")
    class Bad(acl_plugin.Objective):
        def __init__(self):
            super().__init__()
            setattr(self, attribute, value)

    with pytest.raises(UsageError, match="objective 'bad' is broken") as error:
        acl_plugin.create_objective("bad")
    assert (error.value.parameter, error.value.given) == (attribute, value)
    assert error.value.allowed


@pytest.mark.parametrize("name", [5, None, "", "two words", "a-b", "_a"])
def test_what_is_no_name_is_refused(name):
    with pytest.raises(UsageError, match="objective name .*: allowed are letters, digits and _") as error:
        acl_plugin.register(name)
    assert (error.value.parameter, error.value.given) == ("name", name)


@pytest.mark.parametrize("factory", [object, lambda: None, lambda: torch.nn.Linear(1, 1), dict])
def test_what_is_no_objective_is_refused_by_name(factory, forget):
    forget("bad")
    acl_plugin.register("bad")(factory)
    with pytest.raises(UsageError, match="objective 'bad' ") as error:
        acl_plugin.create_objective("bad")
    assert error.value.parameter in ("objective", "objective_kwargs")


def test_settings_that_are_missing_or_wrong_are_refused_by_name(forget):
    forget("demanding")

    @acl_plugin.register("demanding")
    class Demanding(acl_plugin.Objective):
        def __init__(self, *, size):
            super().__init__()
            self.size = int(size)

    for settings in ({}, {"size": "large"}):
        with pytest.raises(UsageError, match="objective 'demanding' cannot be created") as error:
            acl_plugin.create_objective("demanding", **settings)
        assert (error.value.parameter, error.value.given) == ("objective_kwargs", settings)
    with pytest.raises(UsageError) as error:
        acl_plugin.create_objective("demanding", sise=3)
    assert (error.value.parameter, error.value.given, error.value.allowed) == ("sise", "sise", ("size",))


def forgets(self):
    self.size = 3


def builds_first(self):
    self.layer = torch.nn.Linear(1, 1)


def misses_a_key(self):
    super(acl_plugin.Objective, self).__init__()
    {}["missing"]


@pytest.mark.parametrize("constructor", [forgets, builds_first, misses_a_key])
def test_a_constructor_that_fails_in_any_way_is_named_and_spoils_no_list(constructor, forget, capsys):
    forget("bad")
    acl_plugin.register("bad")(type("Bad", (acl_plugin.Objective,), {"__init__": constructor}))
    with pytest.raises(UsageError, match="objective 'bad' is broken: ") as error:
        acl_plugin.create_objective("bad")
    assert "\n" not in str(error.value)
    assert main(["list", "objectives"]) == 0
    listed = capsys.readouterr().out
    assert re.search(r"^bad +objective 'bad' is broken: ", listed, flags=re.MULTILINE)
    assert "VICReg" in listed


def test_an_entry_point_whose_name_is_not_allowed_is_reported(monkeypatch):
    class Distribution:
        name = "third-party"

    entry = EntryPoint("half-adversarial", "math:pi", registry.OBJECTIVES.group)._for(Distribution)
    monkeypatch.setattr(registry, "entry_points", lambda group: [entry] if group == entry.group else [])
    with pytest.raises(UsageError, match="'half-adversarial' of third-party .* not allowed: .* letters.*; rename"):
        acl_plugin.create_objective("half-adversarial")
    assert "half-adversarial" not in acl_plugin.available()


def test_an_entry_point_that_is_no_class_is_refused(third_party):
    with pytest.raises(UsageError, match="'not_callable' of third-party is str, no class or function"):
        acl_plugin.create_objective("not_callable")


def test_names_that_are_none_are_refused():
    for name in ("1", "1_x", "a b", "../x", "", "a+", "dynacl++"):
        with pytest.raises(UsageError) as error:
            acl_plugin.register(name)
        assert (error.value.parameter, error.value.given) == ("name", name)


REGISTRIES = {name: value for name, value in vars(registry).items() if isinstance(value, registry.Registry)}


@pytest.mark.parametrize("name", REGISTRIES)
def test_every_registry_names_a_third_party_that_is_broken(name, monkeypatch):
    class Distribution:
        name = "third-party"

    one = REGISTRIES[name]
    entries = [
        EntryPoint("missing", "no_such_module:Theirs", one.group)._for(Distribution),
        EntryPoint("constant", "math:pi", one.group)._for(Distribution),
    ]
    monkeypatch.setattr(registry, "entry_points", lambda group: entries if group == one.group else [])
    assert {"missing", "constant"} <= set(one.names())
    for entry, message in (("missing", "cannot be loaded: ModuleNotFoundError"), ("constant", "is float, no class or")):
        with pytest.raises(UsageError, match=f"{one.kind} '{entry}' of third-party {message}") as error:
            one.get(entry)
        assert (error.value.parameter, error.value.given) == (one.parameter, entry)
    with pytest.raises(UsageError, match=f"unknown {one.kind} 'nothing'"):
        one.get("nothing")


def test_every_registry_has_a_group_of_its_own():
    assert len({one.group for one in REGISTRIES.values()}) == len(REGISTRIES) == 7


@pytest.fixture
def half_step():
    """A registered attack: one signed step of half of eps along the gradient of the whole batch."""
    from torchattacks.attack import Attack

    @registry.ATTACKS.register("HalfStep")
    class HalfStep(Attack):
        norms, whole_batch = ("Linf",), True

        def __init__(self, model, eps=8 / 255):
            super().__init__("HalfStep", model)
            self.eps, self.supported_mode = eps, ["default", "targeted"]

        def forward(self, images, labels):
            images = images.clone().detach().requires_grad_()
            loss = torch.nn.functional.cross_entropy(self.get_logits(images), labels)
            (gradient,) = torch.autograd.grad(loss, images)
            return (images + self.eps / 2 * gradient.sign()).clamp(0, 1).detach()

    yield HalfStep
    registry.ATTACKS.unregister("HalfStep")


def test_arguments_that_kwargs_hand_to_a_parent_are_set():
    import torchattacks

    @registry.ATTACKS.register("Mine")
    class Mine(torchattacks.PGD):
        norms, whole_batch = ("Linf",), True

        def __init__(self, model, **kwargs):
            super().__init__(model, **kwargs)

    try:
        torch.manual_seed(0)
        model, images = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3)), torch.rand(4, 3, 2, 2)
        labels, threat = torch.tensor([0, 1, 2, 0]), acl_plugin.ThreatModel("Linf", 0.3)
        found, expected = (
            acl_plugin.InnerAttack(threat, name, steps=20).classifier(
                model, images, labels, generator=torch.Generator().manual_seed(0)
            )
            for name in ("Mine", "PGD")
        )
        assert torch.equal(found, expected)
        with pytest.raises(UsageError, match="argument of attack 'Mine': 'alfa'; the nearest: alpha"):
            acl_plugin.InnerAttack(threat, "Mine", kwargs={"alfa": 1})
    finally:
        registry.ATTACKS.unregister("Mine")


def test_an_attack_without_eps_is_broken():
    from torchattacks.attack import Attack

    @registry.ATTACKS.register("Own")
    class Own(Attack):
        norms, whole_batch = ("Linf",), True

        def __init__(self, model, steps=3):
            super().__init__("Own", model)

    try:
        with pytest.raises(UsageError, match="attack 'Own' is broken: it takes no eps"):
            acl_plugin.InnerAttack(acl_plugin.ThreatModel("Linf", 0.1), "Own")
    finally:
        registry.ATTACKS.unregister("Own")


def test_a_registered_attack_is_one_of_the_inner_attacks(half_step):
    assert "HalfStep" in attack_names("Linf", "pairwise")
    assert "HalfStep" not in attack_names("L2")
    torch.manual_seed(0)
    model, images = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3)), torch.rand(4, 3, 2, 2)
    labels = torch.tensor([0, 1, 2, 0])
    found = acl_plugin.InnerAttack(acl_plugin.ThreatModel("Linf", 0.1), "HalfStep").classifier(model, images, labels)
    images.requires_grad_()
    (gradient,) = torch.autograd.grad(torch.nn.functional.cross_entropy(model(images), labels), images)
    torch.testing.assert_close(found, (images + 0.05 * gradient.sign()).clamp(0, 1).detach())
    assert acl_plugin.preset("digits", attack="HalfStep").objective.attack == "HalfStep"
    with pytest.raises(UsageError, match="attack 'HalfStep' is not for L2"):
        acl_plugin.InnerAttack(acl_plugin.ThreatModel("L2", 0.1), "HalfStep")


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"norms": "Linf"}, r"norms 'Linf'; allowed is a tuple of \('Linf', 'L2'\)"),
        ({"norms": ()}, r"norms \(\); allowed"),
        ({"norms": ("Linf", "linf")}, "norms .*'linf'.*; allowed"),
        ({"norms": None}, "norms None; allowed"),
        ({"whole_batch": "yes"}, "whole_batch 'yes'; allowed is a bool"),
    ],
)
def test_an_attack_that_declares_anything_else_is_named(declared, message, half_step, monkeypatch):
    for name, value in declared.items():
        monkeypatch.setattr(half_step, name, value)
    with pytest.raises(UsageError, match=f"attack 'HalfStep' is broken: {message}") as error:
        acl_plugin.InnerAttack(acl_plugin.ThreatModel("Linf", 0.1), "HalfStep")
    assert error.value.parameter == "attack"
    assert "HalfStep" not in attack_names("Linf")


@pytest.mark.parametrize("wrong", [None, torch.zeros(3), torch.zeros(2, 3, 4, 4)], ids=["none", "rows", "size"])
def test_an_attack_whose_result_is_no_batch_of_images_is_named(wrong, half_step, monkeypatch):
    monkeypatch.setattr(half_step, "forward", lambda *_: wrong)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3))
    attack = acl_plugin.InnerAttack(acl_plugin.ThreatModel("Linf", 0.1), "HalfStep")
    with pytest.raises(UsageError, match=r"attack 'HalfStep': .*; allowed are an output of shape \(2, 3, 2, 2\)"):
        attack.classifier(model, torch.rand(2, 3, 2, 2), torch.tensor([0, 1]))


@pytest.mark.parametrize("wrong", [None, 0.5, [1, 2]])
def test_a_suite_whose_result_has_no_names_is_named(wrong):
    with pytest.raises(UsageError, match="suite 'mine' is broken: it returns .*; allowed is a mapping") as error:
        evaluation("mine", "acl_ds", wrong)
    assert error.value.parameter == "suite"


@pytest.mark.e2e
def test_registered_suites_and_formats_are_those_of_the_command_line(finished_run, tmp_path, capsys):
    @registry.SUITES.register("agreement")
    def agreement(run, config, *, overwrite=False):
        return {"seed": config.machine.seed, "overwrite": overwrite}

    @registry.EXPORTERS.register("listing")
    def listing(run, *, name="listing"):
        (tmp_path / name).write_text(str(run.encoder_file))
        return tmp_path / name

    try:
        assert main(["evaluate", str(finished_run), "--suite", "agreement", "--seed", "3", "--overwrite"]) == 0
        assert capsys.readouterr().out == "seed: 3\noverwrite: True\n"
        assert main(["export", str(finished_run), "--format", "listing", "--name", "files"]) == 0
        assert capsys.readouterr().out == f"exported: {tmp_path / 'files'}\n"
        assert main(["export", str(finished_run), "--format", "listing", "--authors", "A"]) == 2
        assert "--authors A is not used with this --format; allowed are name" in capsys.readouterr().err
        assert main(["evaluate", str(finished_run), "--suite", "agreemint"]) == 2
        assert "unknown suite 'agreemint'; the nearest: agreement" in capsys.readouterr().err
    finally:
        registry.SUITES.unregister("agreement")
        registry.EXPORTERS.unregister("listing")


@pytest.mark.parametrize("name", OBJECTIVES.names())
def test_a_flag_of_an_objective_is_true_or_false(name, settings_of):
    parameters = inspect.signature(OBJECTIVES.get(name)).parameters.values()
    for flag in (p.name for p in parameters if p.annotation in (bool, bool | None)):
        for value in ("maybe", "none", "false", 1, 0.0):
            with pytest.raises(UsageError, match="true or false") as refused:
                create_objective(name, **settings_of(name) | {flag: value})
            assert (refused.value.parameter, refused.value.given) == (flag, value)
