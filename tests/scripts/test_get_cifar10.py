"""CIFAR-10 from an archive of the test, downloaded from a server of the test."""

import pickle
import sys
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import CIFAR10
from torchvision.datasets.utils import calculate_md5

from data import DataConfig, open_split
from scripts import get_cifar10


@pytest.fixture
def port(tmp_path):
    """The port of a web server for the files of the test's folder."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def test_cifar10_becomes_class_folders(tmp_path, monkeypatch, port):
    """An archive in the official form, two images a class, from a server of the test."""
    batches = tmp_path / "cifar-10-batches-py"
    batches.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (20, 3 * 32 * 32), dtype=np.uint8)
    labels = [i % 10 for i in range(20)]
    for name in ("data_batch_1", "test_batch"):
        (batches / name).write_bytes(pickle.dumps({"data": pixels, "labels": labels}))
    names = [f"class{i}" for i in range(10)]
    (batches / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    with tarfile.open(tmp_path / "made.tar.gz", "w:gz") as archive:
        archive.add(batches, batches.name)
    md5 = {path.name: calculate_md5(path) for path in (*batches.iterdir(), tmp_path / "made.tar.gz")}
    monkeypatch.setattr(CIFAR10, "url", f"http://127.0.0.1:{port}/made.tar.gz")
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5["made.tar.gz"])
    monkeypatch.setattr(CIFAR10, "train_list", [["data_batch_1", md5["data_batch_1"]]])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", md5["test_batch"]]])
    meta = {"filename": "batches.meta", "key": "label_names", "md5": md5["batches.meta"]}
    monkeypatch.setattr(CIFAR10, "meta", meta)
    monkeypatch.setattr(sys, "argv", ["get_cifar10.py", str(tmp_path / "to")])
    assert get_cifar10.main() == 0
    assert len(open_split(DataConfig(name="cifar10", root=str(tmp_path / "to"), crop=32), "val").source) == 20
    written = np.asarray(Image.open(tmp_path / "to/train/class3/00013.jpg"), dtype=float)
    assert np.abs(written - pixels[13].reshape(3, 32, 32).transpose(1, 2, 0)).mean() < 12  # noise is hard for JPEG
    assert get_cifar10.main() == 2, "the folder is not empty"
    monkeypatch.setattr(CIFAR10, "tgz_md5", "0" * 32)
    monkeypatch.setattr(sys, "argv", ["get_cifar10.py", str(tmp_path / "other")])
    assert get_cifar10.main() == 2
