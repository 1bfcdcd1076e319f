import sys
from importlib.metadata import EntryPoint

import pytest

import acl_plugin
from acl_plugin import registry
from acl_plugin.errors import UsageError
from acl_plugin.recipes.simclr import SimCLR


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
        EntryPoint("theirs", "third_party_acl:Theirs", registry.GROUP)._for(Distribution),
        EntryPoint("broken", "third_party_acl.missing:Theirs", registry.GROUP)._for(Distribution),
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
    with pytest.raises(ValueError, match=r"'simclr' is already registered by acl_plugin.recipes.simclr.SimCLR"):
        acl_plugin.register("simclr")(object)
    assert registry.factory_of("simclr") is SimCLR


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
