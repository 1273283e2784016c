"""The HTTP service against its own description: requests that schemathesis makes from /openapi.json, valid and not."""

from __future__ import annotations

import base64
import copy
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

# Valid settings may exclude each other, and random bytes are no picture: 400 and 422 are right for what the schema
# allows. 413 is right for what it forbids: a limit may be met first.
CONFIG = """
[checks]
negative_data_rejection.expected-statuses = [400, 401, 413, 415, 422]
positive_data_acceptance.expected-statuses = ["2xx", 400, 413, 422]
"""


def with_picture(document: dict[str, Any], picture: Path) -> dict[str, Any]:
    """The description with one picture for all images, as JSON only, and without settings that exclude each other: what
    is wrong with a setting then decides what the answer is."""
    changed = copy.deepcopy(document)
    url = {"enum": ["data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode()]}
    reports, chat = (changed["paths"][path]["post"]["requestBody"]["content"]
                     for path in ("/v1/reports", "/v1/chat/completions"))  # fmt: skip
    del reports["multipart/form-data"]
    reports["application/json"]["schema"]["properties"]["images"]["items"] = url
    properties = chat["application/json"]["schema"]["properties"]
    content = properties["messages"]["items"]["properties"]["content"]
    content["items"]["properties"]["image_url"]["properties"]["url"] = url
    del properties["max_new_tokens"], properties["max_completion_tokens"]
    properties["temperature"]["minimum"] = 0.5  # 0 excludes top_p
    return changed


def run_schemathesis(url: str, document: dict[str, Any], folder: Path, *options: str) -> Counter[int]:
    """All checks of schemathesis on requests that are the same in every run.

    Args:
        url: of the service.
        document: its description, or a narrower one.
        folder: for the reports of schemathesis.
        options: further ones of its command line.

    Returns:
        How many answers had which status.

    Raises:
        AssertionError: a check failed; the text is what schemathesis printed.
    """
    (folder / "openapi.json").write_text(json.dumps(document))
    (folder / "schemathesis.toml").write_text(CONFIG)
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", "schemathesis.toml", "run", "openapi.json",
               "--url", url, "--phases", "examples,coverage,fuzzing", "--mode", "all", "--checks", "all",
               "--generation-deterministic", "--no-shrink", "--continue-on-failure",
               "--warnings", "off", "--no-color", "--request-timeout", "120",
               "--report", "ndjson", "--report-ndjson-path", "events.ndjson", *options]  # fmt: skip
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    return statuses(folder / "events.ndjson")


def statuses(path: Path) -> Counter[int]:
    """How many answers had which status, by schemathesis' report of events."""
    counts: Counter[int] = Counter()
    for line in path.read_text().splitlines():
        for kind, event in json.loads(line).items():
            if kind == "ScenarioFinished":
                for interaction in event["recorder"].get("interactions", {}).values():
                    counts[interaction["response"]["status_code"]] += 1
    return counts
