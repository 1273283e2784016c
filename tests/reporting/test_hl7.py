"""HL7 ORU^R01 2.5.1, by hl7apy's message structures and by reading its fields back."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from r2gen_export.bundle import NOTICE
from r2gen_export.reporting.source import Source
from r2gen_export.reporting.writers import render
from tests.helpers.documents import BUNDLE, SOURCES, STUDY, WORDS, bare, full


def parsed(source: Source, report: Any = WORDS) -> Any:
    """The message as hl7apy reads it, strictly: unknown fields, wrong lengths and missing segments are errors."""
    pytest.importorskip("hl7apy", reason="hl7apy comes with the extra dev")
    from hl7apy.consts import VALIDATION_LEVEL
    from hl7apy.parser import parse_message

    text = render("hl7", report, source).decode("utf-8")
    message = parse_message(text, validation_level=VALIDATION_LEVEL.TOLERANT)
    assert message.validate()
    return message


def segments(source: Source, report: Any = WORDS) -> list[list[str]]:
    text = render("hl7", report, source).decode("utf-8")
    assert text.endswith("\r")
    assert "\n" not in text
    return [segment.split("|") for segment in text.removesuffix("\r").split("\r")]


def unescaped(text: str) -> str:
    for sequence, character in (("F", "|"), ("S", "^"), ("T", "&"), ("R", "~"), ("E", "\\")):
        text = text.replace(f"\\{sequence}\\", character)
    return text


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_the_message_is_valid(source: Callable[[], Source]) -> None:
    known = {"PatientID": ("LO", "7"), "PatientName": ("PN", {"Alphabetic": "Doe^J"})}
    if source is bare:  # HL7 requires an identifier and a name of the patient, which nobody can invent
        with pytest.raises(Exception, match=r"Missing required child PID\.PID_3"):
            parsed(bare())
    message = parsed(bare(**known) if source is bare else source())
    assert message.msh.msh_9.value == "ORU^R01^ORU_R01"
    assert message.msh.msh_12.value == "2.5.1"
    assert message.msh.msh_18.value == "UNICODE UTF-8"
    assert len(message.msh.msh_10.value) == 20
    observation = message.oru_r01_patient_result.oru_r01_order_observation
    assert observation.obr.obr_25.value == "P"
    texts = [group.obx for group in observation.oru_r01_observation]
    assert {obx.obx_11.value for obx in texts} == {"P"}
    assert [obx.obx_1.value for obx in texts] == [str(number) for number in range(1, len(texts) + 1)]
    first = texts[0]
    assert (first.obx_3.value.split("^")[0], first.obx_5.value) == ("NOTICE", WORDS.notice)
    lines = [obx.obx_5.value for obx in texts if obx.obx_3.value.startswith("18748-4")]
    assert lines == WORDS.text.split("\n")


def test_fields_of_patient_and_order() -> None:
    msh, pid, obr, *_ = segments(full())
    assert msh[6] == "20260131173000+0530"  # MSH-1 is the separator itself
    assert pid[3] == "ID\\R\\1^^^Clinic \\T\\ Co&1.2.840.99&ISO^MR"
    alphabetic, ideographic, phonetic = pid[5].split("~")
    # DICOM: family, given, middle, prefix, suffix. HL7: family, given, middle, suffix, prefix.
    assert alphabetic == "Mü\\F\\ler^Anna^M^PhD^Dr.^^L^A"
    assert ideographic == "山田^花子^^^^^L^I"
    assert phonetic == "やまだ^はなこ^^^^^L^P"
    assert pid[7:9] == ["19400305", "F"]
    assert obr[2] == "PLACER\\T\\1"
    assert obr[7] == "20260131101112+0530"
    assert unescaped(obr[18]) == "ACC|1^2"
    assert obr[24:26] == ["RAD", "P"]


def test_the_filler_number_is_our_own_and_that_of_the_study() -> None:
    """Receivers replace a result by its filler number: the order's would replace the radiologist's report."""
    numbers = {
        name: segments(source(), report)[2][3]
        for name, source, report in (
            ("first", full, WORDS),
            ("revised", full, dataclasses.replace(WORDS, text="Other words.", bundle_id="f" * 12)),
            ("other study", SOURCES["radiograph"], WORDS),
        )
    }
    assert numbers["first"] == numbers["revised"] != numbers["other study"]
    assert numbers["first"].startswith("R2GEN-")
    assert numbers["first"].endswith("^R2GEN")
    for part in ("ACC", "PLACER", STUDY):
        assert part not in numbers["first"]
    controls = {segments(full(), report)[0][9] for report in (WORDS, dataclasses.replace(WORDS, text="Other words."))}
    assert len(controls) == 2


@pytest.mark.parametrize("text", ["a|b^c&d~e\\f", "\\.br\\", "one\r\ntwo\n\nthree", "MSH|^~\\&|x", "≥ 3 cm, ü, 心"])
def test_text_comes_back(text: str) -> None:
    lines = [fields[5] for fields in segments(full(), dataclasses.replace(WORDS, text=text)) if fields[0] == "OBX"]
    words = [unescaped(line) for line in lines]
    assert words[2:-1] == [line for line in text.splitlines() if line]
    assert words[0] == WORDS.notice
    assert words[-1] == STUDY


def test_what_is_not_known_is_empty() -> None:
    _, pid, obr, *_ = segments(bare())
    assert pid == ["PID", "1", "", "", "", "", "", "", ""]
    assert (obr[2], obr[7], obr[18]) == ("", "", "")


def test_the_model_and_its_training() -> None:
    msh, _, _, obx, *_ = segments(full())
    assert msh[10] == "T", "a model of phantoms is no routine"
    assert obx[17] == "tiny^r2gen 0.1.0^99R2GEN"
    assert obx[18] == f"{BUNDLE[:16]}^R2GEN"
    assert segments(full(), dataclasses.replace(WORDS, notice=NOTICE))[0][10] == "P"
