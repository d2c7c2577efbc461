"""Paths, and checks of whether they can be written."""

from pathlib import Path

import pytest

from haystack_distill.errors import WriteError
from haystack_distill.utils.files import expand_user, require_writable


def test_a_tilde_is_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expand_user("~/a") == expand_user(Path("~/a")) == tmp_path / "a"
    assert expand_user("~nobody-here/a") == Path("~nobody-here/a")  # pathlib would raise
    assert expand_user("a/~") == Path("a/~")


def test_a_check_leaves_nothing(tmp_path: Path) -> None:
    require_writable(tmp_path / "new" / "directory")
    require_writable(tmp_path / "file", directory=False)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    for path, directory in ((tmp_path / "file", True), (tmp_path / "file" / "x", False), (tmp_path, False)):
        with pytest.raises(WriteError, match="choose another place"):
            require_writable(path, directory=directory)
