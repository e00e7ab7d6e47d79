"""A bucket on the disk, which the code takes for object storage."""

import pytest

from unrain.cluster import storage


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """The folder behind s3://, where a put without overwriting fails as in object storage."""
    dirfs = pytest.importorskip("fsspec.implementations.dirfs", reason="needs fsspec")
    local = pytest.importorskip("fsspec.implementations.local")
    root = tmp_path / "storage"
    root.mkdir()

    class Buckets(dirfs.DirFileSystem):
        def put_file(self, path, name, callback=None, mode="overwrite", **options):
            if mode == "create" and self.exists(name):
                raise FileExistsError(name)
            super().put_file(path, name, **options)

    made = Buckets(str(root), local.LocalFileSystem(auto_mkdir=True), skip_instance_cache=True)
    monkeypatch.setattr(storage, "_system", lambda scheme: made)
    return root
