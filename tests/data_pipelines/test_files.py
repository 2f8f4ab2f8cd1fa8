"""files.replacing: the old stays until the new is complete, and nothing temporary is left."""

from __future__ import annotations

import pathlib

import pytest

from data_pipelines import files


def make(path: pathlib.Path, kind: str, text: str) -> None:
    """A file, or a folder with one file."""
    if kind == "folder":
        path.mkdir()
        path = path / "inside"
    path.write_text(text)


def text_of(path: pathlib.Path) -> str:
    """What make wrote."""
    return (path / "inside" if path.is_dir() else path).read_text()


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("exists", [False, True])
def test_the_new_takes_the_place_at_the_end(
    tmp_path: pathlib.Path, kind: str, exists: bool
) -> None:
    path = tmp_path / "parent" / "it.keras"
    if exists:
        path.parent.mkdir()
        make(path, kind, "old")
    with files.replacing(path) as temporary:
        assert temporary.suffix == ".keras"
        make(temporary, kind, "new")
        assert path.exists() == exists
    assert text_of(path) == "new"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_after_an_error_the_old_stands(tmp_path: pathlib.Path, kind: str) -> None:
    path = tmp_path / "it"
    make(path, kind, "old")
    with pytest.raises(KeyboardInterrupt), files.replacing(path) as temporary:
        make(temporary, kind, "new")
        raise KeyboardInterrupt
    assert text_of(path) == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("failing", [1, 2])
def test_when_a_rename_fails_the_old_folder_comes_back(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    path, rename, calls = tmp_path / "it", pathlib.Path.rename, []

    def fail_once(self: pathlib.Path, target: pathlib.Path) -> pathlib.Path:
        calls.append(target)
        if len(calls) == failing:
            raise OSError(5, "I/O error")
        return rename(self, target)

    make(path, "folder", "old")
    with (
        monkeypatch.context() as patch,
        pytest.raises(OSError, match="I/O error"),
        files.replacing(path) as temporary,
    ):
        make(temporary, "folder", "new")
        patch.setattr(pathlib.Path, "rename", fail_once)
    assert len(calls) == (1, 3)[failing - 1]
    assert text_of(path) == "old"
    assert list(tmp_path.iterdir()) == [path]
