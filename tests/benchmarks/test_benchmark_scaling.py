import pytest
from processes import ended, started

from acl_plugin.config import preset
from benchmarks import compact, scaling

SCRIPT = """
import sys
from pathlib import Path
import benchmarks.__main__ as main
from benchmarks import scaling

main.HERE, main.RESULTS = Path(sys.argv[1]), Path(sys.argv[1]) / "results"
start = scaling.start_processes
scaling.start_processes = lambda *given, **options: start(*given, **options | {"start_method": "fork"})
sys.exit(main.main(sys.argv[2:]))
"""
"""The ranks are forks of a process that has imported everything."""


def test_what_is_sent_is_counted_from_shapes():
    config = preset("cifar10", batch_size=10)
    assert set(scaling.sent(config, 1, 2, 128, 1000).values()) == {0}
    told = scaling.sent(config, 4, 2, 128, 1000)
    assert told["bytes_of_embeddings"] == 2 * 2 * 10 * 128 * 4 * 3  # streams, views, images, P, bytes, others
    assert told["bytes_of_their_gradients"] == 2 * told["bytes_of_embeddings"]
    assert told["bytes_of_weight_gradients"] == 2 * 4000 * 3 // 4  # a ring


@pytest.mark.e2e
def test_on_paper_grows_with_the_batch():
    small, large = scaling.on_paper(16), scaling.on_paper(32)
    assert large["seconds_of_encoder"] == 2 * small["seconds_of_encoder"]
    assert large["seconds_of_joint_losses"] == 4 * small["seconds_of_joint_losses"]
    assert large["bytes_of_weight_gradients"] == small["bytes_of_weight_gradients"]


@pytest.mark.ddp
def test_ranks_are_measured_and_become_a_table(results):
    (results / "scaling.py").write_text(SCRIPT)
    arguments = [results, "scaling", "--batches", "[4]", "--repeats", "2"]
    measured = started(arguments, err=results / "err", script=results / "scaling.py")
    assert ended(measured) == 0, (results / "err").read_text()
    kept = compact.read(results / "results" / "scaling_acl_ds.json")
    assert [(row["batch_size"], row["ranks"]) for row in kept["rows"]] == [(4, 1), (4, 2)]
    one, two = kept["rows"]
    assert one["seconds_of_exchange"] == 0 < two["seconds_of_exchange"] < two["seconds_per_step"]
    assert two["bytes_of_embeddings"] == 2 * 2 * 4 * 128 * 4
    table = (results / "RESULTS.md").read_text()
    assert "## How a step of acl_ds grows" in table
    assert "On paper, not measured: ResNet-18 under ACL(DS) on 8 x 8 GPUs" in table
