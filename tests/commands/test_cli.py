"""The command line as a user meets it: help, completion, exit statuses, one study and many, terminals and pipes."""

from __future__ import annotations

import pytest

from tests.command import run_cli, run_here

COMMANDS = (
    *(
        "infer",
        "node",
        "mercure",
        "bench",
        "doctor",
        "phantom",
        "demo",
        "train",
        "export",
        "verify",
        "inspect",
        "build",
        "tune",
    ),
    *("evaluate", "label", "rexrank"),
)


def test_every_command_has_help():
    for command in COMMANDS:
        assert f"r2gen {command} [OPTIONS]" in run_here(command, "--help").stdout


def test_help_lists_the_commands():
    shown = run_cli("--help").stdout
    assert [name for name in COMMANDS if f"\n  {name} " not in shown] == []
    assert "not for diagnosis" in shown


@pytest.mark.parametrize(
    ("words", "completions"),
    [
        ("r2gen infer --num", {"--num-beams"}),
        ("r2gen infer --preset fast --format ", {"text", "json", "sr", "pdf", "dicom-pdf", "kos", "fhir", "hl7"}),
        ("r2gen inf", {"infer"}),
    ],
)
def test_bash_completes(words, completions):
    count = len(words.split(" ")) - 1
    shown = run_cli(_R2GEN_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=str(count))
    assert shown.returncode == 0
    assert set(shown.stdout.split()) == completions


def test_completion_is_shown_for_bash():
    shown = run_cli("--show-completion", "bash")
    assert "_R2GEN_COMPLETE=complete_bash" in shown.stdout


def test_unknown_options_are_the_users(tmp_path):
    assert run_here("infer", "x.png", "--no-such-option").returncode == 2
