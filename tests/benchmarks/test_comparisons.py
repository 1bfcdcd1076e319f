from benchmarks.comparisons import compared


def runs(*values):
    return [{"settings": {"seed": seed}, "value": value} for seed, value in enumerate(values)]


def values(group):
    return [run["value"] for run in group]


def test_rows_are_compared_with_the_best_over_the_same_seeds():
    best = runs(88.0, 84.0, 86.0, 89.0, 85.0)
    by_row = {
        "best": best,
        "a little below on every seed": runs(86.5, 82.4, 84.6, 87.5, 83.4),
        "now above, now below": runs(86.0, 85.0, 88.0, 85.0, 84.0),
        "one seed": runs(88.0),
        "collapsed": [],
    }
    cells = compared(by_row, best, values)
    assert cells["best"] == "best"
    assert cells["a little below on every seed"].startswith("-1.5 [")
    assert cells["a little below on every seed"].endswith("p < 0.001")
    assert cells["now above, now below"].endswith("*tie*")
    assert cells["one seed"] == cells["collapsed"] == ""


def test_one_seed_has_no_best():
    best = runs(88.0)
    assert compared({"highest": best, "other": runs(10.0)}, best, values) == {"highest": "", "other": ""}


def test_p_values_are_corrected_for_the_number_of_rows():
    best, other = runs(10.0, 12.0, 11.0), runs(9.0, 11.5, 10.2)
    (alone,) = (cell for name, cell in compared({"b": best, "x": other}, best, values).items() if name == "x")
    among = compared({"b": best, "x": other, "y": runs(3.0, 9.0, 12.0), "z": runs(9.0, 14.0, 8.0)}, best, values)["x"]
    p = [float(cell.split("p ")[1].split()[0]) for cell in (alone, among)]
    assert abs(p[1] - 3 * p[0]) < 0.002
