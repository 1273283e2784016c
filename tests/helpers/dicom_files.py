"""Radiographs as DICOM files in every encoding that r2gen reads, made from the CC BY pictures of `tests/data`."""

from __future__ import annotations

import copy
import os
import struct
import subprocess
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.sequence import Sequence
from pydicom.uid import UID

CHEST: Final = Path(__file__).parents[1] / "data" / "chest-cr-ap.png"

SYNTAXES: Final = {
    "implicit": "1.2.840.10008.1.2",
    "explicit": "1.2.840.10008.1.2.1",
    "deflated": "1.2.840.10008.1.2.1.99",
    "big": "1.2.840.10008.1.2.2",
    "rle": "1.2.840.10008.1.2.5",
    "jpeg": "1.2.840.10008.1.2.4.50",
    "jpeg12": "1.2.840.10008.1.2.4.51",
    "lossless14": "1.2.840.10008.1.2.4.57",
    "lossless": "1.2.840.10008.1.2.4.70",
    "jls": "1.2.840.10008.1.2.4.80",
    "jls-near": "1.2.840.10008.1.2.4.81",
    "j2k": "1.2.840.10008.1.2.4.90",
    "j2k-lossy": "1.2.840.10008.1.2.4.91",
    "ht": "1.2.840.10008.1.2.4.201",
    "ht-rpcl": "1.2.840.10008.1.2.4.202",
    "ht-lossy": "1.2.840.10008.1.2.4.203",
}
LOSSY: Final = frozenset({"jpeg", "jpeg12", "jls-near"})
"""Whose stored values change. JPEG 2000 is reversible under its lossy UIDs too: dcmtk has no decoder for it."""

CR: Final = "1.2.840.10008.5.1.4.1.1.1"


def levels(rows: int = 40, columns: int = 48) -> NDArray[np.float64]:
    """The chest, small, from 0 to 1 with both ends in it."""
    picture = Image.open(CHEST).convert("L").resize((columns, rows), Image.Resampling.BOX)
    values = np.asarray(picture, np.float64)
    return (values - values.min()) / (values.max() - values.min())


def stored(bits: int, signed: bool, rows: int = 40, columns: int = 48) -> NDArray[Any]:
    """Stored values over the whole range of `bits`: uint8/int8 for up to 8 bits, else uint16/int16."""
    values = np.rint(levels(rows, columns) * ((1 << bits) - 1)).astype(np.int64) - ((1 << (bits - 1)) if signed else 0)
    return values.astype(f"{'i' if signed else 'u'}{1 if bits <= 8 else 2}")


def radiograph(values: NDArray[Any], bits: int, **attributes: Any) -> Dataset:
    """A complete CR image of the chest without pixels; `attributes` replace or add, None removes."""
    dataset = Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 100"
    dataset.SOPClassUID = CR
    dataset.SOPInstanceUID = "1.2.3.4.5.6"
    dataset.StudyDate, dataset.StudyTime, dataset.AccessionNumber = "20200101", "101010", "A1"
    dataset.Modality = "CR"
    dataset.ReferringPhysicianName = "Referrer^Rita"
    dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate = "Doe^Jane", "P1", "19700101"
    dataset.PatientSex = "F"
    dataset.BodyPartExamined, dataset.ViewPosition = "CHEST", "PA"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.3.4", "1.2.3.4.5"
    dataset.StudyID, dataset.SeriesNumber, dataset.InstanceNumber = "S1", 1, 1
    dataset.PatientOrientation = ["L", "F"]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows, dataset.Columns = values.shape
    dataset.BitsAllocated = 8 * values.dtype.itemsize
    dataset.BitsStored, dataset.HighBit = bits, bits - 1
    dataset.PixelRepresentation = int(values.dtype.kind == "i")
    change(dataset, attributes)
    return dataset


def change(dataset: Dataset, attributes: dict[str, Any]) -> Dataset:
    """Set attributes, or remove those whose value is None."""
    for keyword, value in attributes.items():
        if value is not None:
            setattr(dataset, keyword, value)
        elif keyword in dataset:
            delattr(dataset, keyword)
    return dataset


def item(**attributes: Any) -> Sequence:
    """A sequence of one item."""
    return Sequence([change(Dataset(), attributes)])


def lut(first: int, depth: int, entries: NDArray[Any], packed: bool = False, signed: bool = False) -> Sequence:
    """A modality or VOI LUT: LUTData is OW, two entries a word where it is packed."""
    count = len(entries) % 65536
    data = entries.astype(np.uint8).tobytes() if packed else entries.astype("<u2").tobytes()
    table = Dataset()
    table.add_new(0x00283002, "SS" if signed else "US", [count, first, depth])
    table.add_new(0x00283006, "OW", data + b"\0" * (len(data) % 2))
    return Sequence([table])


def frame(values: NDArray[Any], bits: int, syntax: str) -> bytes:
    """One compressed frame."""
    import imagecodecs
    import jpeg_ls

    # Two's complement in the low bits, as every DICOM encoder hands it to its codec.
    unsigned = (values.view(f"u{values.dtype.itemsize}") & ((1 << bits) - 1)).astype(values.dtype.str.replace("i", "u"))
    if syntax == "jpeg":
        return bytes(imagecodecs.jpeg8_encode(unsigned, level=98))
    if syntax == "jpeg12":
        return bytes(imagecodecs.jpeg8_encode(unsigned, level=98, bitspersample=bits))
    if syntax in ("lossless", "lossless14"):
        predictor = 1 if syntax == "lossless" else 6
        return bytes(imagecodecs.jpeg8_encode(unsigned, lossless=True, predictor=predictor, bitspersample=max(bits, 2)))
    if syntax in ("jls", "jls-near"):
        return bytes(jpeg_ls.encode_array(unsigned, lossy_error=int(syntax == "jls-near")))
    if syntax in ("j2k", "j2k-lossy"):
        # OpenJPEG by pylibjpeg encodes no fewer than 32 rows and columns.
        options = {"reversible": True, "resolutions": 3, "codecformat": "J2K", "bitspersample": bits, "level": 0}
        return bytes(imagecodecs.jpeg2k_encode(unsigned, **options))
    if syntax.startswith("ht"):
        return bytes(imagecodecs.htj2k_encode(unsigned, reversible=True))
    assert syntax == "rle"
    return run_lengths(unsigned)


def run_lengths(values: NDArray[Any]) -> bytes:
    """RLE Lossless (PS3.5 annex G): every second run literal, so that both kinds are there."""
    import imagecodecs

    size = values.dtype.itemsize
    planes = values.astype(values.dtype.newbyteorder("<")).view(np.uint8).reshape(*values.shape, size)
    segments = [
        bytes(imagecodecs.packbits_encode(np.ascontiguousarray(planes[:, :, byte]))) for byte in reversed(range(size))
    ]
    segments = [segment + b"\0" * (len(segment) % 2) for segment in segments]
    offsets = [64 + sum(map(len, segments[:number])) for number in range(size)]
    return struct.pack("<16I", size, *offsets, *[0] * (15 - size)) + b"".join(segments)


class Coded(NamedTuple):
    """Bytes of a file, and where its data set and its pixels begin."""

    data: bytes
    dataset_start: int
    pixels_start: int


def encode(dataset: Dataset, values: NDArray[Any], syntax: str, raw: bytes | None = None) -> Coded:
    """A file's bytes. `raw` replaces the pixels of a native syntax, or the frame of a compressed one."""
    uid = SYNTAXES[syntax]
    implicit, little = syntax == "implicit", syntax != "big"
    body = DicomBytesIO()
    body.is_implicit_VR, body.is_little_endian = implicit, little
    write_dataset(body, dataset if little else _swapped(dataset))
    before = body.tell()
    order = "<" if little else ">"
    if syntax in ("implicit", "explicit", "deflated", "big"):
        data = raw if raw is not None else values.astype(values.dtype.newbyteorder(order)).tobytes()
        if syntax == "big" and values.dtype.itemsize == 1 and raw is None:
            padded = data + b"\0" * (len(data) % 2)
            data = np.frombuffer(padded, ">u2").astype("<u2").tobytes()  # OW
        data += b"\0" * (len(data) % 2)
        length = len(data)
    else:
        data = encapsulate([raw if raw is not None else frame(values, dataset.BitsStored, syntax)])
        data += b"\xfe\xff\xdd\xe0\0\0\0\0"
        length = 0xFFFFFFFF
    tag = struct.pack(order + "HH", 0x7FE0, 0x0010)
    kind = b"" if implicit else (b"OW\0\0" if length != 0xFFFFFFFF else b"OB\0\0")
    pixels = tag + kind + struct.pack(order + "I", length) + data
    content = body.getvalue() + pixels
    if syntax == "deflated":
        deflate = zlib.compressobj(wbits=-15)
        content = deflate.compress(content) + deflate.flush()
    head = b"\0" * 128 + b"DICM" + meta_header(dataset, uid)
    return Coded(head + content, len(head), len(head) + before)


def _swapped(dataset: Dataset) -> Dataset:
    """With the words of LUTData in the order of a big endian file; pydicom writes OW as it is."""
    dataset = copy.deepcopy(dataset)
    for keyword in ("ModalityLUTSequence", "VOILUTSequence"):
        for table in dataset.get(keyword, []):
            table[0x00283006].value = np.frombuffer(table[0x00283006].value, "<u2").astype(">u2").tobytes()
    return dataset


def meta_header(dataset: Dataset, syntax: str) -> bytes:
    """Group 2 of a file."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = dataset.get("SOPClassUID", CR)
    meta.MediaStorageSOPInstanceUID = dataset.get("SOPInstanceUID", "1.2.3.4.5.6")
    meta.TransferSyntaxUID = UID(syntax)
    body = DicomBytesIO()
    body.is_implicit_VR, body.is_little_endian = False, True
    write_dataset(body, meta)
    content = body.getvalue()
    return b"\2\0\0\0UL\4\0" + struct.pack("<I", len(content)) + content


def write(
    path: Path, dataset: Dataset, values: NDArray[Any], syntax: str = "explicit", raw: bytes | None = None
) -> Path:
    """`encode` into a file."""
    path.write_bytes(encode(dataset, values, syntax, raw).data)
    return path


def by_dcmtk(path: Path, *options: str, program: str = "dcm2pnm") -> NDArray[np.uint8]:
    """A file's picture by dcmtk: uint8 [H, W]."""
    output = path.with_suffix(".pgm")
    command = [program, "-O", "+op", *options, str(path), str(output)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    picture = np.asarray(Image.open(output).convert("L"))
    output.unlink()
    return picture


def endless(folder: Path) -> Path:
    """A file whose run-length coded pixels hold 64 million bytes that code nothing: seconds of decoding."""
    values = stored(12, False)
    nothing = struct.pack("<16I", 2, 64, 64_000_000, *[0] * 13) + b"\x80" * 64_000_000
    return write(folder / "endless.dcm", radiograph(values, 12), values, "rle", nothing)


def wait(until: Callable[[], object]) -> None:
    """Wait for something that must happen; the test's own limit ends it."""
    while not until():
        time.sleep(0.02)


def has_endless(pid: int) -> bool:
    """Whether a child has the endless file in memory, 64 MB, and so is decoding it."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") > 100_000_000
    except OSError:
        return False
