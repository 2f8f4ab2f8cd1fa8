"""The files of a Sentinel-2 product, in a folder or in a zip; none outside of it is ever opened."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import lzma
import pathlib
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from typing import IO

from data_pipelines.spec import DataError

# The product's own XML: MTD_MSIL1C.xml, or S2A_OPER_MTD_SAFL1C_PDMC_20150818T101237_..._.xml.
PRODUCT_XML = re.compile(r"MTD_MSIL(1C|2A)\.xml|S2[A-D]_(OPER|USER)_MTD_SAFL(1C|2A)_\w+\.xml")
# The largest real ones (old products of 15 tiles) have a few MB; a bomb in a zip has more.
LARGEST_XML = 32 * 2**20
# The largest real images have 0.2 GB, the largest whole products about 8 GB.
LARGEST_MEMBER = 4 * 2**30
# What reading a zip may raise for damaged bytes.
_ZIP_ERRORS: tuple[type[Exception], ...]
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError)
_ZIP_ERRORS += (NotImplementedError, RuntimeError, ValueError, KeyError, struct.error)
_HASHES = {"MD5": "md5", "SHA3-256": "sha3_256", "SHA-256": "sha256"}
_NAME = re.compile(r"[A-Za-z0-9_.+-]+(/[A-Za-z0-9_.+-]+)*")


@dataclasses.dataclass(frozen=True)
class ProductFile:
    """One file of a product. Small, and may travel to other processes."""

    path: str
    """The file, or the zip that holds it."""
    member: str = ""
    """Its name in the zip; empty for a file of its own."""
    digest: tuple[str, str] | None = None
    """Name of a hash and its value (hexadecimal) as manifest.safe has them; None if it has none."""

    def __str__(self) -> str:
        """What errors call it."""
        return f"{self.path}/{self.member}" if self.member else self.path

    @property
    def gdal_name(self) -> str:
        """What GDAL opens. The braces let a zip have any name."""
        return f"/vsizip/{{{self.path}}}/{self.member}" if self.member else self.path

    @contextlib.contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """The file's bytes, forwards; the CRC-32 of a zip's member is checked at its end.

        Raises:
            DataError: missing or damaged, also while it is read.
        """
        try:
            if not self.member:
                with open(self.path, "rb") as file:
                    yield file
            else:
                with zipfile.ZipFile(self.path) as archive, archive.open(self.member) as file:
                    yield file
        except DataError:
            raise
        except _ZIP_ERRORS as error:
            raise DataError(f"{self}: cannot be read: {error}") from error

    def read_xml(self) -> bytes:
        """All bytes of an XML file, checked against the manifest.

        Raises:
            DataError: missing, damaged, too large, or other bytes than the manifest says.
        """
        with self.open() as file:
            data = file.read(LARGEST_XML + 1)
        if len(data) > LARGEST_XML:
            raise DataError(f"{self}: over {LARGEST_XML} bytes; expected the XML of a product")
        if self.digest is not None:
            self.compare(hashlib.new(_HASHES[self.digest[0]], data).hexdigest())
        return data

    def compare(self, found: str) -> None:
        """Hold a hash against the manifest's.

        Raises:
            DataError: they differ.
        """
        if self.digest is not None and found.lower() != self.digest[1].lower():
            raise DataError(
                f"{self}: damaged or changed: {self.digest[0]} {found}; manifest.safe expects "
                f"{self.digest[1]} (a product changed on purpose: remove its manifest.safe)"
            )


@dataclasses.dataclass(frozen=True)
class ProductFiles:
    """The folder or the zip of one product."""

    path: pathlib.Path
    """The folder, or the zip."""
    xml: str
    """Name of the product's XML."""
    prefix: str | None = None
    """Where the product lies in the zip ("S2A_....SAFE/" or ""); None for a folder."""
    members: frozenset[str] = frozenset()
    """Names in the zip."""
    digests: Mapping[str, tuple[str, str]] = dataclasses.field(default_factory=dict)
    """Name -> (hash, value) from manifest.safe."""

    def find(self, *names: str) -> ProductFile | None:
        """The first of these files that exists; names are relative to the product, with "/".

        Raises:
            DataError: a name leads out of the product.
        """
        for name in names:
            check_name(self.path, name)
            if self.prefix is not None:
                if self.prefix + name in self.members:
                    member = self.prefix + name
                    return ProductFile(str(self.path), member, self.digests.get(name))
            elif (self.path / name).is_file():
                return ProductFile(str(self.path / name), digest=self.digests.get(name))
        return None

    def get(self, name: str) -> ProductFile:
        """The file of that name.

        Raises:
            DataError: it is missing.
        """
        file = self.find(name)
        if file is None:
            raise DataError(f"{self.path}: no file {name}, which the product's XML names")
        return file


def check_name(where: object, name: str) -> None:
    """Refuse names that are not plain relative ones of letters, digits, "_", ".", "+", "-".

    Raises:
        DataError: the name leads elsewhere.
    """
    if not _NAME.fullmatch(name) or {".", ".."}.intersection(name.split("/")):
        raise DataError(f"{where}: file name {name!r}; expected one inside of the product")


def is_product(path: pathlib.Path) -> bool:
    """Whether a folder bears the name of a product or holds a product's XML."""
    return path.suffix.upper() == ".SAFE" or any(
        PRODUCT_XML.fullmatch(file.name) for file in path.glob("*.xml")
    )


def list_products(folder: pathlib.Path) -> list[pathlib.Path]:
    """Products in a folder by their names, sorted: NAME.SAFE, NAME.SAFE.zip, S2....zip."""
    patterns = ("*.SAFE", "*.SAFE.zip", "S2*.zip")
    return sorted({path for pattern in patterns for path in folder.glob(pattern)})


def find_product(path: pathlib.Path) -> ProductFiles:
    """The product at a path: folder, zip with that folder inside, or the product's XML.

    Raises:
        DataError: no product, several, or a damaged zip.
    """
    path = path.absolute()
    if not path.exists():
        raise DataError(f"{path}: not found")
    if path.is_file() and path.suffix.lower() == ".zip":
        return _with_digests(_in_zip(path))
    folder = path.parent if path.is_file() else path
    names = [path.name] if path.is_file() else sorted(file.name for file in folder.glob("*.xml"))
    found = [name for name in names if PRODUCT_XML.fullmatch(name)]
    if len(found) != 1:
        raise _not_one(path, names, found)
    return _with_digests(ProductFiles(folder, found[0]))


def _not_one(path: pathlib.Path, names: list[str], found: list[str]) -> DataError:
    what = ", ".join((found or names)[:5]) or "no XML"
    return DataError(
        f"{path}: not a Sentinel-2 product: found {what}; expected one MTD_MSIL1C.xml or "
        "MTD_MSIL2A.xml (before 2016-12: S2A_OPER_MTD_SAFL1C_....xml)"
    )


def _in_zip(path: pathlib.Path) -> ProductFiles:
    """The product inside a zip, whose names are all checked."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except _ZIP_ERRORS as error:
        raise DataError(f"{path}: not readable as zip, or cut short: {error}") from error
    names = set()
    for member in members:
        name = member.filename
        parts = name.rstrip("/").split("/")
        if "\\" in name or {"", ".", ".."}.intersection(parts):
            raise DataError(f"{path}: member {name!r} leads out of the zip's folder")
        if stat.S_ISLNK(member.external_attr >> 16) or member.flag_bits & 1:
            raise DataError(f"{path}: {name} is a link or encrypted; expected plain files")
        if member.file_size > LARGEST_MEMBER:
            raise DataError(
                f"{path}: {name} has {member.file_size} bytes; expected {LARGEST_MEMBER} at most"
            )
        if name in names:
            raise DataError(f"{path}: {name} is there twice; expected each name once")
        names.add(name)
    # At the top, or in one folder: XML further down is that of tiles and data strips.
    found = sorted(n for n in names if n.count("/") < 2 and PRODUCT_XML.fullmatch(n.split("/")[-1]))
    if len(found) != 1:
        raise _not_one(path, sorted(name for name in names if name.endswith(".xml")), found)
    folder, _, xml = found[0].rpartition("/")
    return ProductFiles(path, xml, f"{folder}/" if folder else "", frozenset(names))


def _with_digests(files: ProductFiles) -> ProductFiles:
    """The same files with the hashes of manifest.safe, where there is one."""
    from data_pipelines import safe_xml

    manifest = files.find("manifest.safe")
    if manifest is None:
        return files
    digests = {}
    for element in safe_xml.parse(manifest.read_xml(), manifest).iter("byteStream"):
        place, checksum = element.find("fileLocation"), element.find("checksum")
        if place is None or checksum is None:
            continue
        name = place.get("href", "").removeprefix("./")
        kind = checksum.get("checksumName", "")
        if kind in _HASHES:
            digests[name] = (kind, (checksum.text or "").strip())
    return dataclasses.replace(files, digests=digests)


@functools.lru_cache(maxsize=4096)
def check_bytes(file: ProductFile, size: int, changed: int) -> None:
    """Read a file whole once a process, and hold it against its zip's CRC-32 and the manifest.

    A hash takes about 1 % of the time that decoding takes.

    Args:
        file: which.
        size: bytes on disk of the file or its zip; with `changed` it says that it is the same file.
        changed: time of its last change [ns].

    Raises:
        DataError: damaged.
    """
    kind = file.digest[0] if file.digest else "MD5"
    digest = hashlib.new(_HASHES[kind], usedforsecurity=False)
    with file.open() as stream:
        while block := stream.read(2**20):
            digest.update(block)
    file.compare(digest.hexdigest())
