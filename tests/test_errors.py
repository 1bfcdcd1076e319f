from acl_plugin.errors import unknown


def test_nearest_names_ignore_case():
    assert str(unknown("attack", "pgd", ["PGD", "FGSM"])) == "unknown attack 'pgd'; the nearest: PGD"


def test_all_names_when_none_is_near_and_some_of_many():
    assert str(unknown("norm", "xyz", ["Linf", "L2"])) == "unknown norm 'xyz'; allowed: L2, Linf"
    many = [f"name{i}" for i in range(30)]
    assert str(unknown("thing", "?", many)).endswith(", ... (30 in all)")
    assert str(unknown("thing", "?", [])) == "unknown thing '?'; allowed: none"
