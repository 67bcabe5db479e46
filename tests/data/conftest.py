import pytest


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The folder in which all sets have an index, also of folders that have just changed."""
    monkeypatch.setattr("ddpm_unet.data.collection.CACHE", tmp_path / "cache")
    monkeypatch.setattr("ddpm_unet.data.collection.Index.smallest", 1)
    monkeypatch.setattr("ddpm_unet.data.folder.RACE", -(10**15))
    return tmp_path / "cache"
