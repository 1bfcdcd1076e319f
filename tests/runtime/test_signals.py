import os
import signal
import threading
import time

import pytest

from acl_plugin.runtime.signals import deferred


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_kept_for_who_requests_and_raised_at_the_end(number):
    before = signal.getsignal(number)
    reached = False
    with pytest.raises(KeyboardInterrupt), deferred() as interrupted:
        assert not interrupted()
        os.kill(os.getpid(), number)
        assert interrupted()
        reached = True
    assert reached
    assert signal.getsignal(number) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_a_second_signal_is_raised_at_once():
    with pytest.raises(KeyboardInterrupt), deferred():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10)
        raise AssertionError("the second signal was lost")


def test_a_step_that_takes_too_long_is_broken_off():
    with pytest.raises(KeyboardInterrupt), deferred(patience=0.01):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)
        raise AssertionError("the signal was lost")


def test_without_a_signal_nothing_happens_and_another_thread_is_not_reported():
    with deferred() as interrupted:
        pass
    assert not interrupted()
    found = []

    def elsewhere():
        with deferred() as interrupted:
            found.append(interrupted())

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert found == [False]
