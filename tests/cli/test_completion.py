import os

import pytest

from acl_plugin import available
from acl_plugin.cli.main import main
from acl_plugin.cli.parser import COMMANDS
from acl_plugin.registry import DATASETS


def completed(line, tmp_path):
    """What the shell would offer after ``line``, as bash asks for it."""
    asked = {
        "_ARGCOMPLETE": "1",
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
        "_ARGCOMPLETE_IFS": "\n",
        "COMP_TYPE": "9",
    }
    asked["_ARGCOMPLETE_STDOUT_FILENAME"] = str(tmp_path / "offered")
    child = os.fork()  # argcomplete ends its process
    if not child:
        os.environ.update(asked)
        os.chdir(tmp_path)
        os._exit(main())
    assert os.waitpid(child, 0)[1] == 0
    return [word.strip() for word in (tmp_path / "offered").read_text().split("\n") if word.strip()]


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("acl-plugin ", list(COMMANDS)),
        ("acl-plugin pr", ["pretrain", "probe"]),
        ("acl-plugin run --obj", ["--objective", "--objective-kwargs"]),
        ("acl-plugin run --objective dyn", ["dynacl", "dynacl_air"]),
        ("acl-plugin run --compare ", available()),
        ("acl-plugin run --attack MIF", ["MIFGSM"]),
        ("acl-plugin run --backbone vit_tiny_p", ["vit_tiny_patch16_224", "vit_tiny_patch16_384"]),
        ("acl-plugin run --data ", DATASETS.names()),
        ("acl-plugin probe run --probe-protocol aff", ["aff_trades", "aff_pgd", "aff_autolora"]),
        ("acl-plugin evaluate run --limit-test ", []),
        ("acl-plugin evaluate ru", ["run/"]),
        ("acl-plugin benchmark run --board ", ["robustssl"]),
        ("acl-plugin pretrain --data-dir ru", ["run/"]),
    ],
)
def test_what_is_offered(line, offered, tmp_path):
    (tmp_path / "run").mkdir()
    assert sorted(completed(line, tmp_path)) == sorted(offered)
