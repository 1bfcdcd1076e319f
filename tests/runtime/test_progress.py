from acl_plugin.runtime.progress import Progress, clock


def test_plain_lines_with_the_time_left(capsys):
    with Progress("work", 100, unit="step") as progress:
        for _ in range(100):
            progress.advance()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("work: 5/100 steps, 0:00:0")
    assert lines[0].endswith("left")
    assert lines[-1].startswith("work: 100/100 steps, 0:00:00 left")
    assert len(lines) <= 13


def test_resumes_from_what_was_done(capsys):
    with Progress("work", 4, done=3) as progress:
        progress.advance()
    assert capsys.readouterr().err.startswith("work: 4/4 steps, 0:00:00 left")


def test_clock():
    assert [clock(s) for s in (0, 59.6, 3600, 90061)] == ["0:00:00", "0:01:00", "1:00:00", "25:01:01"]


def test_nothing_is_written_where_there_is_no_stderr(capsys, monkeypatch):
    """As of a program without a console, or after `2>&-`."""
    monkeypatch.setattr("sys.stderr", None)
    with Progress("probe", 3) as progress:
        progress.advance(3)
    assert capsys.readouterr().out == ""
