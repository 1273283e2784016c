"""From a bundle to a report: preprocess -> encode -> prefill -> decode -> detokenize, one way, no torch."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from functools import partial
from itertools import count, islice
from time import perf_counter
from typing import Any, Final

from r2gen_export import bundle as layout
from r2gen_export.bundle import Bundle, Manifest
from r2gen_export.candidates import Candidate, Reason
from r2gen_export.errors import R2GenError
from r2gen_export.reporting.report import Report
from r2gen_export.runtime.backends.decoders import is_large
from r2gen_export.runtime.backends.embedding_table import EmbeddingTable
from r2gen_export.runtime.backends.gpu_thread import Worker
from r2gen_export.runtime.backends.ort_providers import ProviderChoice
from r2gen_export.runtime.backends.row_check import rounds_activations
from r2gen_export.runtime.backends.select import may_use_gpu, open_sessions
from r2gen_export.runtime.backends.tuning import workload_of
from r2gen_export.runtime.decoding.sequence import drain
from r2gen_export.runtime.detokenizer import Detokenizer
from r2gen_export.runtime.drafting.store import has_store, open_drafter
from r2gen_export.runtime.loaded_model import LoadedModel, ModelStages
from r2gen_export.runtime.many import Numbered, RunningStudies, Stages, static_batch, with_numbers
from r2gen_export.runtime.outcome import Outcome
from r2gen_export.runtime.pictures import Images, read_pictures
from r2gen_export.runtime.settings import Settings, settings_of
from r2gen_export.runtime.stream import ReportStream
from r2gen_export.studies.dicom.types import DicomSettings
from r2gen_export.system.huge_pages import use_huge_pages

NO_DRAFTS: Final = Candidate(
    "drafts",
    "decoder",
    False,
    Reason.not_exact,
    "8-bit kernels round otherwise in passes over several positions, so tokens could change",
    "--draft of infer, serve and bench",
)
"""Why a bundle's store of reports is not used."""


class Pipeline:
    """A loaded bundle. Safe to use from one thread at a time; a GPU is used from a thread of its own.

    Args:
        model: its parts; `from_bundle` loads them.
    """

    def __init__(self, model: LoadedModel) -> None:
        self.model = model
        self._large = is_large(model.manifest) and model.provider.decodes_on_cpu

    @property
    def manifest(self) -> Manifest:
        """Of the bundle."""
        return self.model.manifest

    @property
    def bundle_id(self) -> str:
        """Of the bundle; reports have it."""
        return self.model.bundle_id

    @property
    def provider(self) -> ProviderChoice:
        """What the bundle runs on, and why."""
        return self.model.provider

    @classmethod
    def from_bundle(
        cls,
        path: str | os.PathLike[str] | Bundle | None = None,
        *,
        device: str = "auto",
        threads: int | None = None,
        draft: bool | None = None,
        learn: bool = True,
        batch: int = 1,
        decoding: Mapping[str, Any] | None = None,
        dicom: DicomSettings | None = None,
    ) -> Pipeline:
        """Check a bundle's hashes and load it.

        Args:
            path: the bundle's folder; the variable `R2GEN_BUNDLE`, else the embedded demo, when None. A `Bundle` that
                was read or checked before is not read or checked again.
            device: `auto`, `cpu`, `openvino`, `cuda` or `tensorrt`; the last two also with a GPU's index, `cuda:1`.
            threads: CPU threads for one graph. When None, the decoder's come from the record of `r2gen tune`, if this
                machine has one; else one for each physical core this process may use.
            draft: propose tokens from earlier reports, which changes how long a report takes. When None, where the
                bundle has a store of them and the tokens stay the same: not on a CPU with quantised weights, whose
                kernels round otherwise in passes over several positions. True: there too.
            learn: save what is written to that store, where there is one.
            batch: studies that `generate_many` will decode together. Any number can be, whatever is said here: with
                `decoding` it chooses between what `r2gen tune` measured for single reports and for batches.
            decoding: settings of the calls to come, as `generate` takes them; the bundle's default preset when None.
            dicom: how DICOM files are read (`r2gen_export.studies.dicom.types`); its defaults when None.

        Raises:
            R2GenError: `R2G-BUNDLE-*`, `R2G-CONFIG-VALUE`, `R2G-DEVICE-UNAVAILABLE`, `R2G-RESOURCE-MEMORY`.
        """
        opened = path if isinstance(path, Bundle) else Bundle(path)
        folder, manifest = opened.folder, opened.verified()
        worker = Worker() if may_use_gpu(device) else None
        expected = settings_of(manifest, **(decoding or {})).decoding
        workload = workload_of(1 if expected.do_sample else batch, expected.num_beams)
        opening = partial(open_sessions, folder, manifest, device=device, threads=threads, workload=workload)
        vision, decoder, provider = worker.run(opening) if worker else opening()
        prompt = manifest.prompt
        stored = has_store(folder) if draft is None else draft
        store = open_drafter(folder, manifest, learn=learn) if stored else None
        drafter = store
        if store is not None and draft is None and provider.decodes_on_cpu and rounds_activations(manifest):
            drafter, provider = None, provider.with_candidates(NO_DRAFTS)
        model = LoadedModel(
            manifest=manifest,
            vision=vision,
            decoder=decoder,
            embed_tokens=EmbeddingTable.of_bundle(folder, manifest.dims),
            detokenizer=Detokenizer(
                folder / layout.TOKENIZER, unk_token_id=prompt.unk_token_id, bos_token_id=prompt.bos_token_id
            ),
            provider=provider,
            drafter=drafter,
            learn=None if store is None else store.learn,
            worker=None if provider.trial is None else worker,
            dicom=dicom,
        )
        return cls(model)

    def generate(
        self,
        images: Images,
        *,
        preset: str | None = None,
        semantics: str | None = None,
        on_text: Callable[[str], None] | None = None,
        **overrides: Any,
    ) -> Report:
        """The draft report of one study.

        Args:
            images: one image or the views of one study, files or uint8 arrays; or a study of `collect_studies`.
            preset: a preset of the bundle, its default when None.
            semantics: `hf-current` or `hf-4.30`, the bundle's when None.
            on_text: called with each new piece of text; with beam search all of them come at the end.
            overrides: fields of `r2gen_export.decoding.Decoding`; None leaves the preset's value.

        Raises:
            R2GenError: `R2G-IMAGE-*` and `R2G-DICOM-*`, which name an image by its number ("view 2"),
                `R2G-CONFIG-VALUE`, `R2G-GENERATE-*`.
        """
        settings = self.settings(preset=preset, semantics=semantics, **overrides)
        started = perf_counter()
        return self.model.run(lambda: drain(self._pieces(images, settings, started, text=on_text is not None), on_text))

    def settings(self, *, preset: str | None = None, semantics: str | None = None, **overrides: Any) -> Settings:
        """The settings a call of `generate` with these arguments would use; a seed is drawn at each call.

        Raises:
            R2GenError: `R2G-CONFIG-VALUE`.
        """
        return settings_of(self.manifest, preset=preset, semantics=semantics, **overrides)

    def stream(self, images: Images, **options: Any) -> ReportStream:
        """`generate`, as an iterator over the pieces of text whose `report` is there when it ends.

        Nothing happens between two pieces: each is generated when it is asked for. The last piece is the notice, behind
        the warnings where there are any, with empty lines before each.

        Raises:
            R2GenError: `R2G-CONFIG-VALUE`; what else `generate` raises, the iterator does.
        """
        pieces = self._pieces(images, self.settings(**options), perf_counter(), text=True)
        return ReportStream(pieces, self.manifest.notice, self.model.run)

    def generate_many(
        self,
        studies: Iterable[Images],
        *,
        batch_size: int = 8,
        preset: str | None = None,
        semantics: str | None = None,
        numbers: Iterable[int] | None = None,
        **overrides: Any,
    ) -> Iterator[Outcome]:
        """Reports of many studies, in their order, at most `batch_size` decoded together.

        Where the decoder's cache keeps a length for each row (`row_lengths`), the next study takes the place of one
        that ends; elsewhere studies begin together, in batches; and one by one where a report would depend on what is
        decoded beside it (`LoadedModel.together`). A study that fails gives an outcome with its error and does not stop
        the others. Sampled studies are decoded one by one, so that a report depends on its seed and not on its
        neighbours. `numbers`: what reports and errors call the studies, each once; counted from 1 when None.

        Raises:
            R2GenError: `R2G-CONFIG-VALUE` before the first study.
            InternalError: a number comes twice, or there are fewer than studies.
        """
        settings = self.settings(preset=preset, semantics=semantics, **overrides)
        if batch_size < 1:
            raise R2GenError("R2G-CONFIG-VALUE", f"batch size {batch_size}", "give 1 or more")
        if self._large:
            use_huge_pages()
            self._large = False
        numbered = with_numbers(count(1) if numbers is None else numbers, studies)
        stages = ModelStages(self.model, settings)
        decoding = settings.decoding
        size = 1 if decoding.do_sample else self.model.together(batch_size, decoding.num_beams)
        if size > 1 and self.model.decoder.row_lengths:
            # With weights on the CPU every core is decoding: reading images meanwhile would take turns with it.
            ahead = 0 if self.provider.decodes_on_cpu else size
            return RunningStudies(stages, numbered, size, self.model.run, ahead=ahead).outcomes()
        return self._generate_batches(stages, numbered, size)

    def _generate_batches(self, stages: Stages, studies: Iterator[Numbered], size: int) -> Iterator[Outcome]:
        while batch := list(islice(studies, size)):
            yield from self.model.run(partial(static_batch, stages, batch))

    def _pieces(
        self, images: Images, settings: Settings, started: float, *, text: bool
    ) -> Generator[str, None, Report]:
        """The report of one study; yields its pieces of text where `text` asks for them."""
        model = self.model
        study = model.encode(model.prepare(1, read_pictures(images, dicom=model.dicom), started))
        (report,) = yield from model.steps([study], settings, started, text=text)
        return report
