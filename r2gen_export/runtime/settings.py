"""Decoding settings of one call: a preset of the bundle, then what the caller changed."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, get_args

from r2gen_export.bundle import Manifest
from r2gen_export.decoding import Decoding, Semantics
from r2gen_export.errors import R2GenError

SAMPLING: Final = ("temperature", "top_p", "top_k", "seed")
"""Giving one of these asks for sampling."""

FIELDS: Final = frozenset(field.name for field in dataclasses.fields(Decoding))


@dataclass(frozen=True)
class Settings:
    """What a report records about how it was decoded. `preset` is where `decoding` started from."""

    decoding: Decoding
    preset: str
    semantics: Semantics


def prompt_length(manifest: Manifest) -> int:
    """Positions the prompt takes: BOS, text before, image tokens, text after."""
    return manifest.prompt.length(manifest.dims.image_tokens)


def resolve_settings(
    manifest: Manifest, *, preset: str | None = None, semantics: str | None = None, overrides: Mapping[str, Any]
) -> Settings:
    """Settings in force for one call.

    A value of None counts as not given. Giving one of `SAMPLING` switches sampling on, which takes `num_beams` 1 unless
    a number was given; without a seed one is drawn and recorded. A preset's `min_new_tokens` or `max_new_tokens` gives
    way to the other one when that was given.

    Args:
        manifest: the bundle's.
        preset: name of one of its presets; its `default_preset` when None.
        semantics: `hf-current` or `hf-4.30`; the bundle's when None.
        overrides: fields of `Decoding`.

    Raises:
        R2GenError: `R2G-CONFIG-VALUE` for an unknown preset, field or semantics, settings that exclude each other, and
            more new tokens than the model has positions for.
    """
    name = preset or manifest.default_preset
    if name not in manifest.presets:
        raise _wrong(f"no preset {name!r} in this bundle", f"choose one of {', '.join(sorted(manifest.presets))}")
    wanted = semantics or manifest.semantics
    if wanted not in get_args(Semantics):
        raise _wrong(f"semantics {wanted!r} is unknown", f"choose one of {', '.join(get_args(Semantics))}")
    given = {key: value for key, value in overrides.items() if value is not None}
    if unknown := given.keys() - FIELDS:
        raise _wrong(f"no decoding setting {', '.join(sorted(unknown))}", f"known: {', '.join(sorted(FIELDS))}")
    decoding = _merge(manifest.presets[name], given)
    room = manifest.dims.max_positions - prompt_length(manifest)
    if decoding.max_new_tokens > room:
        raise _wrong(
            f"max_new_tokens {decoding.max_new_tokens}, but this model has room for {room} tokens after the prompt",
            f"--max-new-tokens {room}",
        )
    return Settings(decoding, name, wanted)  # type: ignore[arg-type]


def settings_of(
    manifest: Manifest, *, preset: str | None = None, semantics: str | None = None, **overrides: Any
) -> Settings:
    """`resolve_settings` of the keyword arguments of `Pipeline.generate`."""
    return resolve_settings(manifest, preset=preset, semantics=semantics, overrides=overrides)


def _merge(preset: Decoding, given: dict[str, Any]) -> Decoding:
    asked = [key for key in SAMPLING if key in given]
    if asked and given.get("do_sample") is False:
        raise _wrong(f"{', '.join(asked)} need sampling, but do_sample is false", "leave one of them out")
    changed = dict(given)
    if asked:
        changed["do_sample"] = True
    if changed.get("do_sample", preset.do_sample):
        changed.setdefault("num_beams", 1)
        if changed["num_beams"] != 1:
            raise _wrong(f"sampling with num_beams {changed['num_beams']}", "sample with --num-beams 1")
        if "seed" not in given and preset.seed is None:
            changed["seed"] = secrets.randbits(32)
    least, most = changed.get("min_new_tokens"), changed.get("max_new_tokens")
    if most is not None and least is None:
        changed["min_new_tokens"] = min(preset.min_new_tokens, most)
    if least is not None and most is None:
        changed["max_new_tokens"] = max(preset.max_new_tokens, least)
    return dataclasses.replace(preset, **changed)


def _wrong(message: str, fix: str) -> R2GenError:
    return R2GenError("R2G-CONFIG-VALUE", message, fix)
