"""Commands run in this process without loading the same bundle for each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from r2gen_export.runtime.pipeline import Pipeline


@contextmanager
def loaded_once() -> Iterator[None]:
    """Inside the block a bundle is loaded once for the same arguments of `Pipeline.from_bundle`."""
    with pytest.MonkeyPatch.context() as patch:
        load = Pipeline.from_bundle
        loaded: dict[str, Pipeline] = {}

        def once(*arguments: object, **options: object) -> Pipeline:
            key = repr((arguments, options))
            if key not in loaded:
                loaded[key] = load(*arguments, **options)
            return loaded[key]

        patch.setattr(Pipeline, "from_bundle", once)
        yield
