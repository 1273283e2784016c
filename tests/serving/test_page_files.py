"""The page's files: nothing from elsewhere, nothing that its policy forbids, all of it in the wheel."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from r2gen_export.bundle import NOTICE
from tests.serving.page_files import PAGE

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(PAGE.glob("*.js"))
TEXTS = [*SCRIPTS, *PAGE.glob("*.html"), *PAGE.glob("*.css")]


def test_no_file_names_another_host() -> None:
    assert len(TEXTS) >= 8
    for path in TEXTS:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"(?i)\b(https?|wss?|ftp):|[\"'(=]\s*//\w|@import|\burl\(|\bimport\(", text), path.name


def test_the_policy_forbids_nothing_that_the_page_does() -> None:
    page = (PAGE / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"(?i)<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)|<form[^>]*action", page)
    for path in SCRIPTS:
        text = path.read_text(encoding="utf-8")
        forbidden = (
            r"innerHTML|outerHTML|insertAdjacentHTML|\beval\(|new Function|document\.write|localStorage|indexedDB"
        )
        assert not re.search(forbidden + r"|document\.cookie|caches\.|serviceWorker", text), path.name


def test_addresses_are_relative() -> None:
    for path in TEXTS:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"(?:src|href)=\"/|send\(\"/|fetch\(\"", text), path.name
        for name in re.findall(r"from \"\./([^\"]+)\"|(?:src|href)=\"([\w.]+)\"", text):
            assert (PAGE / "".join(name)).is_file(), name


def test_the_notice_stands_in_the_page_itself() -> None:
    assert f'<p id="notice-text">{NOTICE}</p>' in (PAGE / "index.html").read_text(encoding="utf-8")


def test_every_sentence_of_the_page_is_in_the_file_of_strings() -> None:
    page = (PAGE / "index.html").read_text(encoding="utf-8")
    strings = (PAGE / "strings.js").read_text(encoding="utf-8")
    names = re.findall(r"data-(?:text|label)=\"(\w+)\"", page)
    assert len(names) > 20
    table = strings.partition("export const text = {")[2].partition("\n};")[0]
    assert set(names) <= set(re.findall(r"^  (\w+):", table, re.MULTILINE))
    for path in SCRIPTS:
        for group, name in re.findall(
            r"(?<![\w.$])(text|say|facts|pageErrors)\.(\w+)", path.read_text(encoding="utf-8")
        ):
            exported = strings.partition(f"export const {group} = {{")[2].partition("\n};")[0]
            assert path.name == "strings.js" or re.search(rf"\b{name}:", exported), (path.name, group, name)


def test_the_page_is_in_the_wheel() -> None:
    data = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["package-data"]
    packaged = {file for pattern in data["r2gen_export"] for file in (ROOT / "r2gen_export").glob(pattern)}
    assert packaged >= set(TEXTS)
