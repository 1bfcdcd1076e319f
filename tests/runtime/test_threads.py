from threadpoolctl import threadpool_info, threadpool_limits

from acl_plugin.runtime import threads
from acl_plugin.runtime.threads import one_thread


def _threads():
    return {library["filepath"]: library["num_threads"] for library in threadpool_info()}


def test_every_library_has_one_thread_and_then_as_many_as_before():
    threads._controller.cache_clear()  # tests before this one may have loaded others since the search
    with one_thread():
        pass  # loads the libraries
    with threadpool_limits(2):
        before = _threads()
        for _ in range(2):
            with one_thread():
                assert set(_threads().values()) == {1}
            assert _threads() == before
