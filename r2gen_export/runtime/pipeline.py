"""From a bundle to a report: preprocess -> encode -> prefill -> decode -> detokenize, one way, no torch."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from itertools import count, islice
from time import perf_counter
from typing import Any, TypeVar

import numpy as np

from r2gen_export import bundle as layout
from r2gen_export.bundle import Bundle, Manifest, bundle_id
from r2gen_export.candidates import Candidate, Reason
from r2gen_export.errors import R2GenError
from r2gen_export.interfaces import Encoder, PrefixDecoder
from r2gen_export.reporting.report import Report, RunnerUp
from r2gen_export.runtime.backends.decoders import is_large
from r2gen_export.runtime.backends.embedding_table import EmbeddingTable
from r2gen_export.runtime.backends.gpu_thread import Worker
from r2gen_export.runtime.backends.ort_providers import ProviderChoice
from r2gen_export.runtime.backends.select import may_use_gpu, open_sessions
from r2gen_export.runtime.decoding.batch import RunningBatch
from r2gen_export.runtime.decoding.batch_studies import Request
from r2gen_export.runtime.decoding.generate import generate_steps
from r2gen_export.runtime.decoding.sequence import Sequence as TokenSequence
from r2gen_export.runtime.decoding.sequence import drain
from r2gen_export.runtime.detokenizer import Detokenizer
from r2gen_export.runtime.drafting.drafter import Drafter
from r2gen_export.runtime.drafting.store import has_store, open_drafter
from r2gen_export.runtime.many import Encoded, Numbered, Prepared, RunningStudies, Stages, static_batch, with_numbers
from r2gen_export.runtime.outcome import Outcome, coded
from r2gen_export.runtime.pictures import Images, Pictures, read_pictures
from r2gen_export.runtime.settings import Settings, expected_workload, prompt_length, resolve_settings
from r2gen_export.runtime.stream import ReportStream
from r2gen_export.studies.dicom.types import DicomSettings
from r2gen_export.studies.images import preprocess
from r2gen_export.system.huge_pages import use_huge_pages
from r2gen_export.system.versions import VERSION

T = TypeVar("T")


class Pipeline:
    """A loaded bundle. Safe to use from one thread at a time; a GPU is used from a thread of its own."""

    def __init__(
        self,
        *,
        manifest: Manifest,
        vision: Encoder,
        decoder: PrefixDecoder,
        embed_tokens: EmbeddingTable,
        detokenizer: Detokenizer,
        provider: ProviderChoice,
        drafter: Drafter | None = None,
        worker: Worker | None = None,
        dicom: DicomSettings | None = None,
    ) -> None:
        self.manifest = manifest
        self.bundle_id = bundle_id(manifest)
        self.provider = provider
        self._vision = vision
        self._decoder = decoder
        self._embed_tokens = embed_tokens
        self._detokenizer = detokenizer
        self._drafter = drafter
        self._worker = worker
        self._dicom = dicom
        self._most = sys.maxsize  # studies decoded together; fewer once memory did not suffice
        self._large = is_large(manifest) and provider.decodes_on_cpu
        prompt = manifest.prompt
        self._before = embed_tokens.lookup(np.array([[prompt.bos_token_id, *prompt.before_ids]]))  # [1, 1+b, d]
        self._run(partial(decoder.share_prefix, self._before))
        self._after = embed_tokens.lookup(np.array([prompt.after_ids], dtype=np.int64))  # [1, a, d]

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
            draft: propose tokens from earlier reports, which changes how long a report takes and not its tokens; when
                None, where the bundle has a store of them.
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
        workload = expected_workload(manifest, batch, decoding or {})
        opening = partial(open_sessions, folder, manifest, device=device, threads=threads, workload=workload)
        vision, decoder, provider = worker.run(opening) if worker else opening()
        prompt = manifest.prompt
        drafts = has_store(folder) if draft is None else draft
        return cls(
            manifest=manifest,
            vision=vision,
            decoder=decoder,
            embed_tokens=EmbeddingTable.of_bundle(folder, manifest.dims),
            detokenizer=Detokenizer(
                folder / layout.TOKENIZER, unk_token_id=prompt.unk_token_id, bos_token_id=prompt.bos_token_id
            ),
            provider=provider,
            drafter=open_drafter(folder, manifest, learn=learn) if drafts else None,
            worker=None if provider.trial is None else worker,
            dicom=dicom,
        )

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
        return self._run(lambda: drain(self._pieces(images, settings, started, text=on_text is not None), on_text))

    def settings(self, *, preset: str | None = None, semantics: str | None = None, **overrides: Any) -> Settings:
        """The settings a call of `generate` with these arguments would use; a seed is drawn at each call.

        Raises:
            R2GenError: `R2G-CONFIG-VALUE`.
        """
        return resolve_settings(self.manifest, preset=preset, semantics=semantics, overrides=overrides)

    def stream(self, images: Images, **options: Any) -> ReportStream:
        """`generate`, as an iterator over the pieces of text whose `report` is there when it ends.

        Nothing happens between two pieces: each is generated when it is asked for. The last piece is the notice, behind
        the warnings where there are any, with empty lines before each.

        Raises:
            R2GenError: `R2G-CONFIG-VALUE`; what else `generate` raises, the iterator does.
        """
        pieces = self._pieces(images, self.settings(**options), perf_counter(), text=True)
        return ReportStream(pieces, self.manifest.notice, self._run)

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
        that ends; elsewhere studies begin together, in batches. A study that fails gives an outcome with its error and
        does not stop the others. Sampled studies are decoded one by one, so that a report depends on its seed and not
        on its neighbours. `numbers`: what reports and errors call the studies, each once; counted from 1 when None.

        Raises:
            R2GenError: `R2G-CONFIG-VALUE` before the first study.
            InternalError: a number comes twice, or there are fewer than studies.
        """
        settings = self.settings(preset=preset, semantics=semantics, **overrides)
        if batch_size < 1:
            raise R2GenError("R2G-CONFIG-VALUE", f"batch size {batch_size}", "give 1 or more")
        size = 1 if settings.decoding.do_sample else batch_size
        if self._large:
            use_huge_pages()
            self._large = False
        numbered = with_numbers(count(1) if numbers is None else numbers, studies)
        stages = _Stages(self, settings)
        if size > 1 and self._decoder.row_lengths:
            # With weights on the CPU every core is decoding: reading images meanwhile would take turns with it.
            ahead = 0 if self.provider.decodes_on_cpu else size
            return RunningStudies(stages, numbered, size, self._run, ahead=ahead).outcomes()
        return self._generate_batches(stages, numbered, size)

    def _run(self, call: Callable[[], T]) -> T:
        """A call, in the thread of the GPU where there is one."""
        return call() if self._worker is None else self._worker.run(call)

    def _generate_batches(self, stages: Stages, studies: Iterator[Numbered], size: int) -> Iterator[Outcome]:
        while batch := list(islice(studies, size)):
            yield from self._run(partial(static_batch, stages, batch))

    def _halve(self, studies: int) -> None:
        """Memory did not suffice for so many studies: later batches are of half as many, and reports say so."""
        self._most = (studies + 1) // 2
        message = f"the GPU's memory does not suffice; {self._most} at a time"
        refused = Candidate(f"batch of {studies}", "decoder", False, Reason.out_of_memory, message)
        self.provider = self.provider.with_candidates(refused)

    def _prepare(self, study: int, read: Pictures, started: float) -> Prepared:
        """The part of a study's work that may be done in another thread than the rest, without the GPU."""
        start = perf_counter()
        pixel_values = preprocess([picture.pixels for picture in read.pictures], self.manifest.image)  # [V, 3, H, W]
        return Prepared(study, read, pixel_values, read.read_ms + (perf_counter() - start) * 1000, started)

    def _encode(self, prepared: Prepared) -> Encoded:
        pictures = prepared.read.pictures
        start = perf_counter()
        image_embeds = self._vision.encode(prepared.pixel_values)  # [1, T, d]
        done = perf_counter()
        return Encoded(
            study=prepared.study,
            views=len(pictures),
            prompt=np.concatenate([self._before, image_embeds, self._after], axis=1),
            preprocess_ms=prepared.preprocess_ms,
            encode_ms=(done - start) * 1000,
            inputs=tuple(picture.sha256 for picture in pictures),
            warnings=prepared.read.warnings,
            started=prepared.started,
        )

    def _pieces(
        self, images: Images, settings: Settings, started: float, *, text: bool
    ) -> Generator[str, None, Report]:
        """The report of one study; yields its pieces of text where `text` asks for them."""
        study = self._encode(self._prepare(1, read_pictures(images, dicom=self._dicom), started))
        (report,) = yield from self._steps([study], settings, started, text=text)
        return report

    def _steps(
        self, studies: Sequence[Encoded], settings: Settings, started: float, *, text: bool
    ) -> Generator[str, None, list[Report]]:
        """Decode studies together; yields the pieces of text of a single one."""
        prompt = self.manifest.prompt
        stream = self._detokenizer.stream(settings.semantics)
        tokens = generate_steps(
            self._decoder,
            self._embed_tokens,
            np.concatenate([study.prompt for study in studies]),  # [B, S, d]
            settings.decoding,
            eos_token_id=prompt.eos_token_id,
            bos_token_id=prompt.bos_token_id,
            semantics=settings.semantics,
            drafter=self._drafter,
        )
        if text:
            sequences = yield from stream.pieces(tokens)
        else:
            sequences = drain(tokens, None)
        reports = [
            self._report(study, sequence, settings, started, len(studies))
            for study, sequence in zip(studies, sequences, strict=True)
        ]
        if text and (rest := stream.finish()):
            yield rest
        if self._drafter is not None:
            for report in reports:
                self._drafter.learn(report.token_ids)
        return reports

    def _report(
        self, study: Encoded, sequence: TokenSequence, settings: Settings, started: float, batch_size: int
    ) -> Report:
        start = perf_counter()
        text = self._detokenizer.text(sequence.token_ids, settings.semantics)
        pieces = self._detokenizer.pieces(sequence.token_ids, settings.semantics)
        runner_up = tuple(
            RunnerUp(token_id, self._detokenizer.piece(token_id), logprob) for token_id, logprob in sequence.others
        )
        done = perf_counter()
        if not text:
            raise R2GenError(
                "R2G-GENERATE-EMPTY",
                f"{len(sequence.token_ids)} tokens without text (finish reason {sequence.finish_reason})",
                "raise --min-new-tokens, or check the bundle with r2gen verify",
            )
        return Report(
            text=text,
            token_ids=sequence.token_ids,
            logprobs=sequence.logprobs,
            score=sequence.score,
            finish_reason=sequence.finish_reason,
            timings_ms={
                "preprocess": study.preprocess_ms,
                "encode": study.encode_ms,
                "prefill": sequence.prefill_ms,
                "decode": sum(sequence.decode_ms),
                "detokenize": (done - start) * 1000,
                "total": (done - started) * 1000,
            },
            decode_steps_ms=sequence.decode_ms,
            batch_size=batch_size,
            decoding=settings.decoding,
            preset=settings.preset,
            semantics=settings.semantics,
            bundle_id=self.bundle_id,
            model_id=self.manifest.model_id,
            execution_provider=self.provider.name,
            provider_steps=tuple(self.provider.steps),
            notice=self.manifest.notice,
            created=datetime.now(UTC).isoformat(timespec="milliseconds"),
            r2gen_version=VERSION,
            inputs=study.inputs,
            drafted=sequence.drafted,
            accepted=sequence.accepted,
            passes=len(sequence.decode_ms),
            study=study.study,
            views=study.views,
            warnings=study.warnings,
            backends=self.provider.candidates,
            pieces=pieces,
            runner_up=runner_up,
        )


class _Stages:
    """`many.Stages` of a pipeline with the settings of one call."""

    def __init__(self, pipeline: Pipeline, settings: Settings) -> None:
        self._pipeline, self._settings = pipeline, settings

    def prepare(self, number: int, images: Images) -> Prepared:
        subject, started = f"study {number}", perf_counter()
        pictures = read_pictures(images, subject, self._pipeline._dicom)
        try:
            return self._pipeline._prepare(number, pictures, started)
        except Exception as error:
            raise coded(error).about(subject) from error

    def encode(self, prepared: Prepared) -> Encoded:
        try:
            return self._pipeline._encode(prepared)
        except Exception as error:
            raise coded(error).about(f"study {prepared.study}") from error

    def decode(self, studies: list[Encoded], started: float) -> list[Report]:
        return drain(self._pipeline._steps(studies, self._settings, started, text=False), None)

    def request(self, study: Encoded) -> Request:
        return Request(study.prompt, self._settings.decoding, self._settings.semantics)

    def open_batch(self, studies: int) -> RunningBatch:
        pipeline, decoding = self._pipeline, self._settings.decoding
        return RunningBatch(
            pipeline._decoder,
            pipeline._embed_tokens,
            rows=studies * decoding.num_beams,
            positions=prompt_length(pipeline.manifest) + decoding.max_new_tokens,
            bos_token_id=pipeline.manifest.prompt.bos_token_id,
            eos_token_id=pipeline.manifest.prompt.eos_token_id,
            drafter=pipeline._drafter,
        )

    def report(self, study: Encoded, sequence: TokenSequence) -> Report:
        report = self._pipeline._report(study, sequence, self._settings, study.started, sequence.together)
        if self._pipeline._drafter is not None:
            self._pipeline._drafter.learn(report.token_ids)
        return report

    def limit(self) -> int:
        return self._pipeline._most

    def halve(self, studies: int) -> None:
        self._pipeline._halve(studies)
