"""The HTTP service does what its published description says, by schemathesis: valid requests and requests that are not.

`R2GEN_SCHEMA_EXAMPLES` sets the requests made for each operation; `python -m tests.serving.http_fuzz` sends many more.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

httpx = pytest.importorskip("httpx")
for package in ("uvicorn", "starlette", "python_multipart", "prometheus_client", "schemathesis"):
    pytest.importorskip(package)

from tests.serving.http_fuzz import check_afterwards  # noqa: E402
from tests.serving.http_schema import run_schemathesis, with_picture  # noqa: E402
from tests.serving.http_site import KEY, Service, noise, service  # noqa: E402

EXAMPLES = os.environ.get("R2GEN_SCHEMA_EXAMPLES", "10")
LIMITS = ("--batch-size", "4", "--max-body", "2", "--max-views", "2")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with service(tmp_path_factory.mktemp("scratch"), *LIMITS) as running:
        yield running


def described(site: Service) -> dict[str, Any]:
    """Its description."""
    return dict(httpx.get(f"{site.url}/openapi.json").json())


def test_the_service_does_what_it_describes(site: Service, tmp_path: Path) -> None:
    counts = run_schemathesis(site.url, described(site), tmp_path, "--max-examples", EXAMPLES)
    assert counts.keys() <= {200, 400, 405, 413, 415, 422}
    assert min(counts[400], counts[405], counts[422]) > 20
    check_afterwards(site)


def test_settings_are_as_described(site: Service, tmp_path: Path) -> None:
    """With a picture that a report is written for, a setting that the description forbids must not pass."""
    document = with_picture(described(site), noise(tmp_path / "view.png"))
    counts = run_schemathesis(site.url, document, tmp_path, "--max-examples", EXAMPLES)
    assert counts.keys() <= {200, 400, 405, 413, 415, 422}
    assert min(counts[200], counts[400]) > 20
    check_afterwards(site)


def test_a_description_that_is_wrong_is_noticed(site: Service, tmp_path: Path) -> None:
    """The checks see an answer that is not described, and a setting that is not checked."""
    options = ("--include-path", "/v1/chat/completions", "--max-examples", "3")
    document = described(site)
    without = copy.deepcopy(document)
    del without["paths"]["/v1/chat/completions"]["post"]["responses"]["400"]
    with pytest.raises(AssertionError, match="Undocumented status code"):
        run_schemathesis(site.url, without, tmp_path, *options)
    narrower = with_picture(document, noise(tmp_path / "view.png"))
    content = narrower["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]
    content["schema"]["properties"]["max_tokens"]["maximum"] = 3
    with pytest.raises(AssertionError, match="Schema-violating request accepted"):
        run_schemathesis(site.url, narrower, tmp_path, *options)


def test_what_needs_a_key_is_as_described(tmp_path: Path) -> None:
    """Among the checks: with no key, and with a wrong one, everything that the description closes is closed."""
    (tmp_path / "keys").write_text(f"ward {KEY}\n")
    (tmp_path / "keys").chmod(0o600)
    with service(tmp_path, *LIMITS, "--api-key-file", str(tmp_path / "keys")) as closed:
        document = described(closed)
        assert document["security"] == [{"key": []}]
        options = ("--header", f"Authorization: Bearer {KEY}", "--mode", "positive", "--max-examples", "2")
        counts = run_schemathesis(closed.url, document, tmp_path, *options)
        assert counts[200] and counts[401]
        document["paths"]["/health"]["get"].pop("security")
        with pytest.raises(AssertionError, match="authentication"):
            run_schemathesis(closed.url, document, tmp_path, *options, "--include-path", "/health")
        check_afterwards(closed)
        assert KEY not in closed.text
