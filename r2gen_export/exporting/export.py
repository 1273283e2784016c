"""`r2gen export`: checkpoint + vision encoder + LLM -> bundle, checked against PyTorch before it appears."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from r2gen_export import bundle as layout
from r2gen_export.bundle import Dims, ImageSpec, Manifest, ParityCheck, Prompt, Source, seal
from r2gen_export.decoding import Decoding, Semantics
from r2gen_export.errors import R2GenError
from r2gen_export.evaluation.phantom_findings import record_findings
from r2gen_export.exporting.manifest_parts import (
    bundle_dims,
    bundle_presets,
    bundle_prompt,
    bundle_source,
    tool_versions,
)
from r2gen_export.exporting.settings import ExportSettings
from r2gen_export.precision import TENSOR_PRECISIONS
from r2gen_export.system.files import atomic_dir

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

    from r2gen_export.exporting.own_studies import ChosenStudies, TokenIds
    from r2gen_export.exporting.parity.compare import Reference
    from r2gen_export.exporting.parity.gate import Compared, GatePlan, Probe
    from r2gen_export.exporting.target import Choice
    from r2gen_export.training.model import R2GenGPT


def export_bundle(
    settings: ExportSettings, *, progress: Progress | None = None, say: Callable[[str], None] = lambda line: None
) -> Manifest:
    """Write a bundle, whole or not at all.

    Args:
        settings: sources and target.
        say: told what the checkpoint is.
        progress: a running display to add the stages to; one of its own on stderr when None.

    Returns:
        The manifest as written.

    Raises:
        R2GenError: `R2G-CONFIG-VALUE`, `R2G-CHECKPOINT-*`, `R2G-MODEL-*` before any work; `R2G-PARITY-FAILED` when the
            graphs do not compute what PyTorch computes; `R2G-EVAL-WORSE` when the bundle is not shown to hold the
            margins of `settings.evaluate`; `R2G-EVAL-*`, `R2G-IMAGE-*` of its studies; `R2G-OUTPUT-*`.
    """
    from r2gen_export.exporting.estimate import PeakMemory

    choice, plan = _plan(settings, say)
    with PeakMemory() as memory, atomic_dir(settings.out) as folder, _display(progress) as shown:
        job = _Job(settings, choice, plan, folder, shown, say)
        written = _write_from_pytorch(job)
        compared = _gate(job, written)
        sealed = _seal(job, written, compared)
        sealed = _report_on_phantoms(job, sealed)
        sealed = _compare_on_own_studies(job, written, sealed)
    if memory.peak:
        say(f"peak memory of its own: {memory.peak / 2**30:.2f} GiB (files mapped into memory not counted)")
    return sealed


@dataclass(frozen=True)
class _Job:
    """One export: what was requested, what was decided, the folder it writes and where progress is shown."""

    settings: ExportSettings
    choice: Choice
    plan: GatePlan
    folder: Path
    display: Progress
    say: Callable[[str], None]


@dataclass(frozen=True)
class _Facts:
    """The parts of the manifest that are read from the PyTorch model."""

    image: ImageSpec
    prompt: Prompt
    dims: Dims
    presets: dict[str, Decoding]
    origin: Source


@dataclass(frozen=True)
class _Written:
    """What the gate and the manifest need when every file but the manifest is written.

    `reference` is what PyTorch computed, `llama` the LLM where the gate compares layer by layer (its weights stay in
    their files), `opset` that of each graph, `checks` those of the tokenizer, `own_reports` PyTorch's token ids for
    the studies of `settings.evaluate`.
    """

    facts: _Facts
    opset: dict[str, int]
    checks: tuple[ParityCheck, ...]
    probe: Probe
    reference: Reference
    llama: LlamaForCausalLM | None
    chosen: ChosenStudies | None = None
    own_reports: Sequence[TokenIds] = ()


def _write_from_pytorch(job: _Job) -> _Written:
    """Load the model, run it for the gate, write tokenizer, embeddings and graphs; then let go of the model."""
    model, facts = _load(job)
    probe, reference = _run_pytorch(job, model, facts)
    chosen, own_reports = _own_reports_of_pytorch(job, model, facts)
    checks = _write_tokenizer_and_embeddings(job, model, facts.prompt)
    opset = {"vision": _write_vision(job, model, facts.image), "decoder": _write_decoder(job, model, facts.dims)}
    reference = _round_reference(job, model, reference)
    llama = model.llama_model if job.plan.gate == "layers" else None
    return _Written(facts, opset, checks, probe, reference, llama, chosen, own_reports)


def _load(job: _Job) -> tuple[R2GenGPT, _Facts]:
    from r2gen_export.exporting.parity import gate
    from r2gen_export.exporting.source_model import load_sources

    settings = job.settings
    with _stage(job.display, "loading sources"):
        sources = load_sources(
            settings.checkpoint,
            settings.vision,
            settings.llm,
            overrides=settings.overrides,
            allow_unexpected=settings.allow_unexpected,
            llm_dtype=gate.llm_dtype(job.plan, settings.llm),
            say=job.say,
        )
        prompt = bundle_prompt(sources.model)
        dims = bundle_dims(sources.model, sources.image)
        presets = bundle_presets(settings, sources, dims, prompt)
        return sources.model, _Facts(sources.image, prompt, dims, presets, bundle_source(settings, sources))


def _run_pytorch(job: _Job, model: R2GenGPT, facts: _Facts) -> tuple[Probe, Reference]:
    """The inputs of the parity gate, and what PyTorch makes of them, LoRA unmerged."""
    from r2gen_export.exporting.parity import gate

    settings = job.settings
    probe = gate.Probe.make(facts.image, facts.presets, settings.semantics, settings.parity_max_new_tokens)
    with _stage(job.display, "running PyTorch for the parity gate", len(probe.decodings)) as advance:
        return probe, gate.reference(model, probe, job.plan, dims=facts.dims, prompt=facts.prompt, advance=advance)


def _own_reports_of_pytorch(
    job: _Job, model: R2GenGPT, facts: _Facts
) -> tuple[ChosenStudies | None, Sequence[TokenIds]]:
    """Before anything is rounded or merged: what the model as it was trained says of the user's own studies."""
    own = job.settings.evaluate
    if own is None:
        return None, ()
    from r2gen_export.exporting.own_studies import choose_studies, pytorch_reports

    preset, semantics = job.settings.default_preset, job.settings.semantics
    chosen = choose_studies(own, facts.presets, preset, semantics)
    with _stage(job.display, "reports of PyTorch on your studies", len(chosen.images)) as advance:
        return chosen, pytorch_reports(model, facts.image, chosen, advance.by)


def _write_tokenizer_and_embeddings(job: _Job, model: R2GenGPT, prompt: Prompt) -> tuple[ParityCheck, ...]:
    """The checks are those of the tokenizer. LoRA is merged on the way: what follows exports plain layers."""
    from r2gen_export.exporting.source_model import merge_lora
    from r2gen_export.exporting.tokenizer import check_tokenizer, write_embeddings, write_tokenizer

    assert model.tokenizer is not None
    with _stage(job.display, "writing tokenizer and embeddings"):
        write_tokenizer(model.tokenizer, job.folder / layout.TOKENIZER)
        halves = ((prompt.before, prompt.before_ids), (prompt.after, prompt.after_ids))
        checks = check_tokenizer(model.tokenizer, job.folder / layout.TOKENIZER, halves)
        merge_lora(model, llm=job.plan.gate == "whole")
        write_embeddings(model.embed_tokens, job.folder / layout.EMBED_TOKENS, job.plan.embeddings)
    return checks


def _write_vision(job: _Job, model: R2GenGPT, image: ImageSpec) -> int:
    """Returns the graph's opset."""
    from r2gen_export.exporting.vision import export_vision
    from r2gen_export.exporting.vision_precision import lower_precision

    file = job.folder / layout.VISION
    with _stage(job.display, "exporting the vision encoder"):
        opset = export_vision(model, file, height=image.height, width=image.width)
        lower_precision(file, job.choice.vision_precision)
    return opset


def _write_decoder(job: _Job, model: R2GenGPT, dims: Dims) -> int:
    """Returns the graph's opset."""
    from r2gen_export.exporting.decoder.export import write_decoder

    with _stage(job.display, "exporting the decoder", dims.num_layers) as advance:
        return write_decoder(
            model.llama_model,
            (job.folder / layout.DECODER).parent,
            dialect=job.choice.dialect,
            precision=job.choice.precision,
            head_precision=job.choice.head_precision,
            advance=advance,
        )


def _round_reference(job: _Job, model: R2GenGPT, reference: Reference) -> Reference:
    """`reference` with what the stored, rounded weights give. Changes the model: the graphs must be written before."""
    from r2gen_export.exporting.parity import gate

    with _stage(job.display, "running PyTorch with the stored weights"):
        return gate.round_reference(model, reference, job.plan)


def _gate(job: _Job, written: _Written) -> Compared:
    """Compare ONNX with PyTorch.

    Returns:
        Every check, the tokenizer's included, and the reference logits.

    Raises:
        R2GenError: `R2G-PARITY-FAILED`.
    """
    from r2gen_export.exporting.parity import gate

    candidate = gate.ExportedBundle(job.folder, written.facts.dims, written.facts.prompt, written.facts.image)
    steps = gate.steps(job.plan, written.probe, written.facts.dims)
    with _stage(job.display, "comparing ONNX with PyTorch", steps) as advance:
        compared = gate.compare(
            candidate, written.probe, written.reference, job.plan, llama=written.llama, advance=advance
        )
        checks = (*written.checks, *compared.checks)
        gate.require(checks)
    return replace(compared, checks=checks)


def _seal(job: _Job, written: _Written, compared: Compared) -> Manifest:
    with _stage(job.display, "sealing the bundle"):
        return seal(job.folder, _manifest(job, written, compared))


def _report_on_phantoms(job: _Job, sealed: Manifest) -> Manifest:
    """How well the finished bundle names findings, where the settings ask for it."""
    settings = job.settings
    if not settings.phantom_studies:
        return sealed
    with _stage(job.display, "reporting on phantoms", settings.phantom_studies) as advance:
        return record_findings(job.folder, sealed, settings.phantom_studies, settings.phantom_seed, advance=advance)


def _compare_on_own_studies(job: _Job, written: _Written, sealed: Manifest) -> Manifest:
    """The finished bundle's reports on the user's own studies beside PyTorch's, where the settings ask for it.

    Raises:
        R2GenError: `R2G-EVAL-WORSE`.
    """
    own, chosen = job.settings.evaluate, written.chosen
    if own is None or chosen is None:
        return sealed
    from r2gen_export.evaluation.compare_tables import comparison_markdown
    from r2gen_export.evaluation.gates import refuse_worse
    from r2gen_export.exporting.own_studies import compare_bundle, own_check, record_comparison

    with _stage(job.display, "reports of the bundle on your studies", len(chosen.images)) as advance:
        comparison = compare_bundle(job.folder, chosen, written.own_reports, own.margins, advance.by)
    job.say("A: PyTorch with unrounded weights; B: this bundle")
    job.say(comparison_markdown(comparison))
    refuse_worse(comparison)
    return record_comparison(job.folder, sealed, own_check(comparison))


def _plan(settings: ExportSettings, say: Callable[[str], None]) -> tuple[Choice, GatePlan]:
    """How the bundle is written and checked, after what the export will take was said and found to be there."""
    from transformers import LlamaConfig

    from r2gen_export.exporting.estimate import default_embeddings, estimate, require_room
    from r2gen_export.exporting.own_studies import require_whole
    from r2gen_export.exporting.parity.gate import GatePlan
    from r2gen_export.exporting.source_model import check_files
    from r2gen_export.exporting.target import choose
    from r2gen_export.training.hub import source_config

    _check_settings(settings)
    check_files(settings.vision, settings.llm)
    llm = LlamaConfig(**source_config(settings.llm, "LLM", "llama"))
    choice = choose(settings, llm)
    say(choice.reason)
    embeddings = settings.embeddings or default_embeddings(choice.precision)
    needed = estimate(
        llm,
        dialect=choice.dialect,
        precision=choice.precision,
        embeddings=embeddings,
        gate=settings.gate,
        runs=settings.phantom_studies > 0,
    )
    say(str(needed))
    if settings.evaluate is not None:
        require_whole(needed.gate)
    require_room(needed, Path(settings.out))
    plan = GatePlan(needed.gate, choice.precision, choice.head_precision, choice.vision_precision, embeddings)
    return choice, plan


def _manifest(job: _Job, written: _Written, compared: Compared) -> Manifest:
    settings, choice = job.settings, job.choice
    return Manifest(
        model_id=settings.model_id or Path(settings.out).resolve().name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        source=written.facts.origin,
        semantics=settings.semantics,
        dialect=choice.dialect,  # type: ignore[arg-type]
        dims=written.facts.dims,
        prompt=written.facts.prompt,
        presets=written.facts.presets,
        default_preset=settings.default_preset,
        image=written.facts.image,
        precision={
            "vision": choice.vision_precision,
            "decoder": choice.precision,
            "lm_head": choice.head_precision,
            "embed_tokens": job.plan.embeddings,
        },
        opset=written.opset,
        tools=tool_versions(),
        parity=compared.checks,
        synthetic=settings.synthetic,
        target=choice.target,
        reference=compared.reference,
    )


def _check_settings(settings: ExportSettings) -> None:
    if settings.semantics not in get_args(Semantics):
        message = f"semantics is {settings.semantics!r}"
        raise R2GenError("R2G-CONFIG-VALUE", message, f"choose one of {', '.join(get_args(Semantics))}")
    if settings.target not in (None, "gpu", "cpu"):
        raise R2GenError("R2G-CONFIG-VALUE", f"an export for {settings.target!r}", "choose one of gpu, cpu")
    names = {"paper", "fast", *settings.presets}
    if settings.default_preset not in names:
        message = f"the default preset {settings.default_preset!r} is not one of the presets"
        raise R2GenError("R2G-CONFIG-VALUE", message, f"choose one of {', '.join(sorted(names))}")
    for what, chosen in (("vision encoder", settings.vision_precision), ("embedding table", settings.embeddings)):
        if chosen is not None and chosen not in TENSOR_PRECISIONS:
            message = f"the {what} cannot be written with precision {chosen!r}"
            raise R2GenError("R2G-CONFIG-VALUE", message, f"choose one of {', '.join(TENSOR_PRECISIONS)}")
    if settings.phantom_studies < 0:
        raise R2GenError("R2G-CONFIG-VALUE", f"{settings.phantom_studies} phantoms", "give 0 or more")
    own = settings.evaluate
    if own is not None and own.studies < 1:
        raise R2GenError("R2G-CONFIG-VALUE", f"{own.studies} studies to evaluate on", "give 1 or more")
    if own is not None and not Path(own.annotation).is_file():
        raise R2GenError("R2G-DATA-ANNOTATION", "the annotation of --evaluate is not a file", "name annotation.json")
    limit = settings.parity_max_new_tokens
    if limit is not None and limit < 1:
        raise R2GenError("R2G-CONFIG-VALUE", f"parity_max_new_tokens is {limit}", "give 1 or more, or leave it out")


@contextmanager
def _display(progress: Progress | None) -> Iterator[Progress]:
    if progress is not None:
        yield progress
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(20), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as own:
        yield own


class _Advance:
    """Moves one stage's bar."""

    def __init__(self, progress: Progress, task: object) -> None:
        self._progress, self._task = progress, task

    def __call__(self) -> None:
        self.by(1)

    def by(self, steps: int) -> None:
        """Move by several steps."""
        self._progress.advance(self._task, steps)  # type: ignore[arg-type]


@contextmanager
def _stage(progress: Progress, name: str, steps: int = 1) -> Iterator[_Advance]:
    """One line of the display, running until the block ends."""
    task = progress.add_task(name, total=steps)
    yield _Advance(progress, task)
    progress.update(task, completed=steps)
