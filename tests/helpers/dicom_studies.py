"""Radiographs as DICOM files, made from the pictures of `tests/data`, with the header a test asks for."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian

DATA = Path(__file__).parents[1] / "data"

CR = "1.2.840.10008.5.1.4.1.1.1"
DX_FOR_PROCESSING = "1.2.840.10008.5.1.4.1.1.1.1.1"
BASIC_TEXT_SR = "1.2.840.10008.5.1.4.1.1.88.11"
CT = "1.2.840.10008.5.1.4.1.1.2"

ROOT = "1.2.826.0.1.3680043.10.1099"
"""Of the UIDs of these files."""

SIDE = 128


@functools.cache
def picture(name: str = "chest-dx-pa") -> NDArray[np.uint8]:
    """[128, 128] uint8 of a picture of `tests/data`."""
    with Image.open(DATA / f"{name}.png") as image:
        return np.asarray(image.convert("L").resize((SIDE, SIDE)))


def uid(*parts: int) -> str:
    """A UID of the tests' own root."""
    return ".".join([ROOT, *map(str, parts)])


def radiograph(study: int = 1, instance: int = 1, **attributes: Any) -> Dataset:
    """A CR chest radiograph of patient `study`, one instance a series, frontal; `attributes` replace or add, None
    removes."""
    pixels = picture()
    dataset = Dataset()
    values: dict[str, Any] = {
        "SOPClassUID": CR,
        "SOPInstanceUID": uid(study, instance),
        "StudyInstanceUID": uid(study),
        "SeriesInstanceUID": uid(study, instance, 1),
        "PatientName": f"Test^Number {study}",
        "PatientID": f"T{study}",
        "PatientBirthDate": "19700101",
        "PatientSex": "O",
        "StudyID": str(study),
        "StudyDate": "20260101",
        "StudyTime": "120000",
        "AccessionNumber": f"A{study}",
        "ReferringPhysicianName": "",
        "Modality": "CR",
        "Manufacturer": "r2gen tests",
        "BodyPartExamined": "CHEST",
        "ViewPosition": "PA",
        "SeriesNumber": str(instance),
        "InstanceNumber": "1",
        "PatientOrientation": ["A" if attributes.get("ViewPosition") == "LL" else "L", "F"],
        "PixelSpacing": [0.2, 0.2],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": pixels.shape[0],
        "Columns": pixels.shape[1],
        "BitsAllocated": 16,
        "BitsStored": 12,
        "HighBit": 11,
        "PixelRepresentation": 0,
        "BurnedInAnnotation": "NO",
        "PixelData": (pixels.astype("<u2") * 16).tobytes(),
        **attributes,
    }
    for name, value in values.items():
        if value is not None:
            setattr(dataset, name, value)
    return dataset


def text_object(study: int = 1, instance: int = 90) -> Dataset:
    """A structured report of the same study: an object without pixels."""
    without = ("PixelData", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation")
    absent = {**dict.fromkeys((*without, "PhotometricInterpretation", "SamplesPerPixel"))}
    return radiograph(study, instance, SOPClassUID=BASIC_TEXT_SR, Modality="SR", ViewPosition=None, **absent)


def save(dataset: Dataset, path: Path) -> Path:
    """Write a data set as a DICOM file, with folders; gives its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID(dataset.SOPClassUID)
    meta.MediaStorageSOPInstanceUID = UID(dataset.SOPInstanceUID)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file = FileDataset(path, dataset, file_meta=meta, preamble=bytes(128))
    file.save_as(path, enforce_file_format=True)
    return path


def write(path: Path, study: int = 1, instance: int = 1, **attributes: Any) -> Path:
    """`radiograph`, saved."""
    return save(radiograph(study, instance, **attributes), path)
