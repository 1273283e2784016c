"""Studies to write reports of, and the tools of others that judge what was written."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.data import get_testdata_file

from r2gen_export.reporting.source import Source
from r2gen_export.studies.identity import Identity, SourceImage
from tests.helpers.reports import REPORT

ROOT = Path(__file__).parents[2]
BUNDLE = "0123456789ab" + "cd" * 26
CR_IMAGE = "1.2.840.10008.5.1.4.1.1.1"
STUDY = "1.2.826.0.1.3680043.8.498.1"

WORDS = dataclasses.replace(
    REPORT,
    text="The lungs are clear.\nThere is no pleural effusion, no pneumothorax.",
    warnings=("view 1: it holds only 3 grey levels",),
)
"""A report of two lines, with a warning."""

DICOM_FORMS = ("sr", "dicom-pdf", "kos")

JAVA_OPTIONS = " ".join(
    (
        # Without these, the validator stops on Java 17 with JAXP0801003.
        *(f"-Djdk.xml.{name}=0" for name in ("xpathExprOpLimit", "xpathTotalOpLimit", "xpathExprGrpLimit")),
        # A process that ends after seconds: without the optimizing compiler it takes 5 s of a core in place of 12.
        "-XX:TieredStopAtLevel=1",
        "-XX:+UseSerialGC",
    )
)


def pictures() -> tuple[np.ndarray, ...]:
    """A frontal view and another, [H, W] uint8."""
    names = ("chest-dx-pa.png", "phantom.png")
    return tuple(np.asarray(Image.open(ROOT / "tests/data" / name).convert("L")) for name in names)


def element(vr: str, *values: Any) -> dict[str, Any]:
    """An element of the DICOM JSON Model."""
    return {"vr": vr, "Value": list(values)}


def bare(**more: Any) -> Source:
    """A study with nothing but its UID and one image, and elements by their keywords, (VR, values)."""
    attributes = {"0020000D": element("UI", STUDY)}
    for keyword, (vr, *values) in more.items():
        tag = pydicom.datadict.tag_for_keyword(keyword)
        assert tag is not None, keyword
        attributes[f"{tag:08X}"] = element(vr, *values)
    return Source(Identity(attributes, (), (SourceImage(CR_IMAGE, f"{STUDY}.2.1", f"{STUDY}.2"),)), pictures(), BUNDLE)


def full() -> Source:
    """A study of two series with all that an order and a patient can have, characters that separate fields included."""
    issuer = {
        "00400032": element("UT", "1.2.840.99"),
        "00400033": element("CS", "ISO"),
    }
    order = {
        "00401001": element("SH", "RP-7"),
        "00080050": element("SH", "ACC|1^2"),
        "00402016": element("LO", "PLACER&1"),
        "00321064": element("SQ", {"00080100": element("SH", "399208008"), "00080102": element("SH", "SCT"),
                                   "00080104": element("LO", "Chest X-ray"), "00080005": element("CS", "ISO_IR 100")}),
    }  # fmt: skip
    name = {
        "Alphabetic": "Mü|ler^Anna^M^Dr.^PhD",
        "Ideographic": "山田^花子",
        "Phonetic": "やまだ^はなこ",
    }
    source = bare(
        PatientName=("PN", name),
        PatientID=("LO", "ID~1"),
        IssuerOfPatientID=("LO", "Clinic & Co"),
        IssuerOfPatientIDQualifiersSequence=("SQ", issuer),
        PatientBirthDate=("DA", "19400305"),
        PatientSex=("CS", "F"),
        StudyDate=("DA", "20260131"),
        StudyTime=("TM", "101112.5"),
        TimezoneOffsetFromUTC=("SH", "+0530"),
        StudyID=("SH", "S1"),
        StudyDescription=("LO", "Thorax in zwei Ebenen"),
        AccessionNumber=("SH", "ACC|1^2"),
        ReferringPhysicianName=("PN", {"Alphabetic": "Ärztin^Erika"}),
        QualityControlSubject=("CS", "YES"),
        RequestAttributesSequence=("SQ", order),
    )
    assert source.identity is not None
    more = SourceImage("1.2.840.10008.5.1.4.1.1.1.1", f"{STUDY}.3.1", f"{STUDY}.3")
    return dataclasses.replace(
        source, identity=dataclasses.replace(source.identity, images=(*source.identity.images, more))
    )


def identity_of(path: str) -> Identity:
    """The identity of a DICOM file, as reading it gives it."""
    dataset = pydicom.dcmread(path, stop_before_pixels=True, force=True)
    attributes = dataset.to_json_dict()
    attributes.setdefault("0020000D", element("UI", STUDY))
    image = SourceImage(
        dataset.get("SOPClassUID", CR_IMAGE),
        dataset.get("SOPInstanceUID", "1.2"),
        dataset.get("SeriesInstanceUID", "1.3"),
    )
    return Identity(attributes, (), (image,))


def radiograph() -> Source:
    """A chest radiograph of pydicom-data."""
    path = get_testdata_file("RG1_UNCI.dcm")
    assert isinstance(path, str)
    return Source(identity_of(path), pictures(), BUNDLE)


SOURCES = {"bare": bare, "full": full, "radiograph": radiograph}


def tool(name: str, package: str) -> str:
    """The path of a program; the test is skipped where it is not installed."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed (Debian package {package})")
    return path


def run(*command: object, **variables: str) -> subprocess.CompletedProcess[str]:
    """A program's answer."""
    return subprocess.run(
        [*map(str, command)],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        timeout=300,
        env={**os.environ, **variables},
    )


def dciodvfy_errors(file: Path) -> list[str]:
    """What David Clunie's validator finds wrong with a DICOM file. Its exit status alone does not say it."""
    done = run(tool("dciodvfy", "dicom3tools"), "-new", file)
    lines = (done.stdout + done.stderr).splitlines()
    errors = [line for line in lines if re.match(r"(Error|Abort)", line)]
    assert done.returncode == 0 or errors, lines
    return errors


def page_text(pdf: bytes, tmp_path: Path) -> str:
    """The words of a PDF in reading order, with form feeds between its pages."""
    file = tmp_path / "page.pdf"
    file.write_bytes(pdf)
    return run(tool("pdftotext", "poppler-utils"), "-layout", file, "-").stdout
