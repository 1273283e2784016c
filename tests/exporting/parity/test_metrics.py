"""Measures of how far two runs are apart, on arrays whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest

from r2gen_export.bundle import ParityCheck
from r2gen_export.decoding import Decoding
from r2gen_export.exporting.parity.metrics import (
    distribution_metrics,
    first_divergence,
    logits_check,
    tensor_check,
    token_check,
)


def test_smallest_tolerance_that_passes() -> None:
    wanted = np.array([[3.0, 4.0], [0.0, -5.0]], np.float32)
    found = wanted + np.array([[0.0, 0.0], [0.01, 0.0]], np.float32)
    check = tensor_check("x", "encode", found, wanted, 1e-3)
    assert not check.passed
    assert check.observed == pytest.approx(0.01)
    assert check.tolerance == pytest.approx(5e-3)
    assert check.metrics["relative"] == pytest.approx(0.002)
    assert check.metrics["cosine"] == pytest.approx(5 / np.hypot(5, 0.01))
    assert tensor_check("x", "encode", found, wanted, 1.01 * check.observed / 5).passed
    assert not tensor_check("x", "encode", found, wanted, 0.99 * check.observed / 5).passed


@pytest.mark.parametrize("found", [None, np.zeros((2, 3), np.float32), np.full((2, 2), np.nan, np.float32)])
def test_what_cannot_be_compared_fails(found: np.ndarray | None) -> None:
    check = tensor_check("x", "encode", found, np.ones((2, 2), np.float32), 1.0)
    assert (check.passed, check.observed) == (False, float("inf"))


def test_divergence_as_defined() -> None:
    rng = np.random.default_rng(0)
    wanted = rng.normal(0, 3, (4, 7, 50)).astype(np.float32)
    found = wanted + rng.normal(0, 0.4, wanted.shape).astype(np.float32)
    metrics = distribution_metrics(found, wanted)
    left, right = (np.exp(one.astype(float)) for one in (found, wanted))
    left, right = (one / one.sum(-1, keepdims=True) for one in (left, right))
    each = (right * np.log(right / left)).sum(-1)
    assert metrics["kl_mean"] == pytest.approx(each.mean())
    assert metrics["kl_max"] == pytest.approx(each.max())
    assert metrics["top1"] == (found.argmax(-1) == wanted.argmax(-1)).mean()
    assert 0 < metrics["top1"] < 1
    check = logits_check("logits", "decode", found, wanted)
    assert not check.passed
    assert check.metrics["kl_mean"] == metrics["kl_mean"]
    assert "of 28" in check.detail


def test_the_widest_tolerance_of_the_layers_passed_holds() -> None:
    wanted = np.ones((1, 1, 4), np.float32)
    found = wanted + 0.05 * np.eye(4, dtype=np.float32)[:1, None]
    assert not logits_check("logits", "decode", found, wanted, ["fp32", "fp16"]).passed
    assert logits_check("logits", "decode", found, wanted, ["fp32", "int8"]).passed
    assert logits_check("logits", "decode", found, wanted, ["int8", "fp32"]).passed


def test_first_divergent_token() -> None:
    decoding = Decoding(num_beams=1)
    same = token_check("fast", decoding, [(1, 2), (3,)], [(1, 2), (3,)])
    assert same.passed
    later = token_check("fast", decoding, [(1, 2), (3, 4, 5)], [(1, 2), (3, 4, 6)])
    assert (later.passed, later.observed) == (False, 1.0)
    assert "study 2 differs from token 2 on" in later.detail
    shorter = token_check("fast", decoding, [(1,), (3,)], [(1, 2), (3,)])
    assert "study 1 differs from token 1 on" in shorter.detail
    assert not token_check("fast", decoding, None, [(1,)]).passed


def test_the_first_stage_to_part() -> None:
    good = ParityCheck("a", True, 0, 0, stage="encode")
    bad = ParityCheck("b", False, 1, 0, stage="prefill")
    assert first_divergence([good, bad, ParityCheck("c", False, 1, 0, stage="tokens")]) == "prefill: b"
    assert first_divergence([good]) == ""
