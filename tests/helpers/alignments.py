"""Every kind of model that can be trained, as settings of `ModelConfig`."""

from __future__ import annotations

from typing import Any

CONFIGS: dict[str, dict[str, Any]] = {
    "shallow": {},
    "delta": {"alignment": "delta"},
    "deep": {"alignment": "deep"},
    "global": {"global_only": True},
    "llm-lora": {"llm_lora": True},
    "delta-lora": {"alignment": "delta", "llm_lora": True, "global_only": True},
}
