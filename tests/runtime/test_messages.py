import logging

import pytest

from acl_plugin.runtime.messages import on_stderr


@pytest.fixture
def logger():
    return logging.getLogger("acl_plugin.some.module")


def test_messages_are_written_as_they_are_and_once(logger, capsys):
    with on_stderr():  # within that of all tests
        logger.warning("%s is damaged", "a.json")
    logger.info("not worth a line")
    assert capsys.readouterr().err == "a.json is damaged\n"


def test_applications_keep_their_own_handlers(logger):
    package = logging.getLogger("acl_plugin")
    before = list(package.handlers), package.propagate
    with on_stderr():
        assert not package.propagate
    assert (list(package.handlers), package.propagate) == before
