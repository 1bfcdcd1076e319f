import sys
from importlib.metadata import EntryPoint
from itertools import permutations

import pytest
import torch

import acl_plugin
from acl_plugin import registry
from acl_plugin.errors import UsageError
from acl_plugin.objectives.simclr import SimCLR


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


def test_unknown_names_and_settings_are_told_with_the_nearest():
    with pytest.raises(UsageError, match="unknown objective 'simcrl'; the nearest: simclr"):
        acl_plugin.create_objective("simcrl")
    with pytest.raises(UsageError, match="setting of objective 'simclr': 'tau'; allowed: temperature"):
        acl_plugin.create_objective("simclr", tau=1)


def test_entry_points_are_named_unloaded_and_loaded_when_asked_for(third_party):
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
        ("routes", ()), ("routes", ("a", "a")), ("routes", "clean"), ("routes", (1,)), ("needs", ("c",)),
        ("needs", ("images",)), ("needs", "a"), ("attack_view", "both"), ("projector", "four_layer"),
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


def test_an_entry_point_that_is_no_class_is_refused(third_party):
    with pytest.raises(UsageError, match="'not_callable' of third-party is str, no class or function"):
        acl_plugin.create_objective("not_callable")


def test_names_that_are_none_are_refused():
    for name in ("1x", "a b", "../x", "", "a+", "dynacl++"):
        with pytest.raises(UsageError) as error:
            acl_plugin.register(name)
        assert (error.value.parameter, error.value.given) == ("name", name)
