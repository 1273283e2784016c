"""The parts of a loaded bundle, and what they do for studies. `pipeline.py` and `requests.py` both work with it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Sequence
from datetime import UTC, datetime
from functools import partial
from time import perf_counter
from typing import TypeVar

import numpy as np

from r2gen_export.bundle import Manifest, bundle_id
from r2gen_export.candidates import Candidate, Reason
from r2gen_export.errors import R2GenError
from r2gen_export.interfaces import Encoder, PrefixDecoder
from r2gen_export.reporting.report import Report, RunnerUp
from r2gen_export.runtime.backends.embedding_table import EmbeddingTable
from r2gen_export.runtime.backends.gpu_thread import Worker
from r2gen_export.runtime.backends.ort_providers import ProviderChoice
from r2gen_export.runtime.backends.row_check import MOST_ROWS, rounds_activations, rows_agree
from r2gen_export.runtime.decoding.batch import RunningBatch
from r2gen_export.runtime.decoding.batch_studies import Request
from r2gen_export.runtime.decoding.generate import generate_steps
from r2gen_export.runtime.decoding.sequence import Sequence as TokenSequence
from r2gen_export.runtime.decoding.sequence import drain
from r2gen_export.runtime.detokenizer import Detokenizer, TextStream
from r2gen_export.runtime.drafting.drafter import Drafter
from r2gen_export.runtime.many import Encoded, Prepared
from r2gen_export.runtime.outcome import coded
from r2gen_export.runtime.pictures import Images, Pictures, read_pictures
from r2gen_export.runtime.settings import Settings, prompt_length
from r2gen_export.studies.dicom.types import DicomSettings
from r2gen_export.studies.images import preprocess
from r2gen_export.system.versions import VERSION

T = TypeVar("T")


class LoadedModel:
    """A loaded bundle. Safe to use from one thread at a time, but for `prepare`.

    A GPU is used from a thread of its own, where `run` makes its calls.

    Args:
        manifest: the bundle's.
        vision, decoder, embed_tokens, detokenizer: its parts.
        provider: what they run on.
        drafter: drafts from earlier reports, where they are used.
        learn: see below.
        worker: the thread of the GPU.
        dicom: how DICOM files are read.

    Attributes:
        bundle_id: of the bundle.
        most: studies that the memory suffices for together, as far as is known.
        learn: told the tokens of each report; None where they are not kept.
    """

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
        learn: Callable[[Sequence[int]], None] | None = None,
        worker: Worker | None = None,
        dicom: DicomSettings | None = None,
    ) -> None:
        self.manifest = manifest
        self.bundle_id = bundle_id(manifest)
        self.provider = provider
        self.vision, self.decoder, self.embed_tokens = vision, decoder, embed_tokens
        self.detokenizer, self.drafter, self.learn = detokenizer, drafter, learn
        self.dicom = dicom
        self.most = sys.maxsize
        self._tested = 0
        self._apart = False
        self._worker = worker
        prompt = manifest.prompt
        self._before = embed_tokens.lookup(np.array([[prompt.bos_token_id, *prompt.before_ids]]))  # [1, 1+b, d]
        self.run(partial(decoder.share_prefix, self._before))
        self._after = embed_tokens.lookup(np.array([prompt.after_ids], dtype=np.int64))  # [1, a, d]

    def run(self, call: Callable[[], T]) -> T:
        """A call, in the thread of the GPU where there is one."""
        return call() if self._worker is None else self._worker.run(call)

    def together(self, studies: int, beams: int) -> int:
        """Of so many studies with so many beams each, how many may be decoded together.

        A report must not depend on what is decoded beside it. Kernels that round activations to 8 bits are tested for
        it before the first batch (`row_check`); where one would, or where the test fails, the answer is 1 from then
        on, and reports say so. It has nothing to do with memory (`most`).
        """
        if studies == 1 or not (self.provider.decodes_on_cpu and rounds_activations(self.manifest)):
            return studies
        studies = min(studies, max(1, MOST_ROWS // beams))
        if not self._apart and studies * beams > self._tested:
            if reason := self._why_apart(studies * beams):
                self._apart = True
                refused = Candidate("batches", "decoder", False, Reason.not_exact, reason)
                self.provider = self.provider.with_candidates(refused)
            self._tested = studies * beams
        return 1 if self._apart else studies

    def _why_apart(self, rows: int) -> str:
        """Why studies are decoded one at a time; empty where they need not be."""
        vocab_size = self.manifest.dims.vocab_size
        try:
            if self.run(partial(rows_agree, self.decoder, self.embed_tokens, vocab_size, rows=rows)):
                return ""
        except Exception as error:
            return f"the test of a batch failed ({coded(error).code}), so studies are decoded one at a time"
        return "beside others a study gets other logits here, so studies are decoded one at a time"

    def halve(self, studies: int) -> None:
        """Memory did not suffice for so many studies: later batches are of half as many, and reports say so."""
        self.most = (studies + 1) // 2
        message = f"the GPU's memory does not suffice; {self.most} at a time"
        refused = Candidate(f"batch of {studies}", "decoder", False, Reason.out_of_memory, message)
        self.provider = self.provider.with_candidates(refused)

    def prepare(self, study: int, read: Pictures, started: float) -> Prepared:
        """The part of a study's work that may be done in another thread than the rest, without the GPU."""
        start = perf_counter()
        pixel_values = preprocess([picture.pixels for picture in read.pictures], self.manifest.image)  # [V, 3, H, W]
        return Prepared(study, read, pixel_values, read.read_ms + (perf_counter() - start) * 1000, started)

    def encode(self, prepared: Prepared) -> Encoded:
        """The study's prompt: its image tokens between those of the instruction."""
        pictures = prepared.read.pictures
        start = perf_counter()
        image_embeds = self.vision.encode(prepared.pixel_values)  # [1, T, d]
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

    def steps(
        self, studies: Sequence[Encoded], settings: Settings, started: float, *, text: bool
    ) -> Generator[str, None, list[Report]]:
        """Decode studies together; yields the pieces of text of a single one."""
        prompt = self.manifest.prompt
        stream = self.detokenizer.stream(settings.semantics)
        tokens = generate_steps(
            self.decoder,
            self.embed_tokens,
            np.concatenate([study.prompt for study in studies]),  # [B, S, d]
            settings.decoding,
            eos_token_id=prompt.eos_token_id,
            bos_token_id=prompt.bos_token_id,
            semantics=settings.semantics,
            drafter=self.drafter,
        )
        if text:
            sequences = yield from stream.pieces(tokens)
        else:
            sequences = drain(tokens, None)
        reports = [
            self.report(study, sequence, settings, started, len(studies))
            for study, sequence in zip(studies, sequences, strict=True)
        ]
        if text and (rest := stream.finish()):
            yield rest
        if self.learn is not None:
            for report in reports:
                self.learn(report.token_ids)
        return reports

    def report(
        self, study: Encoded, sequence: TokenSequence, settings: Settings, started: float, batch_size: int
    ) -> Report:
        """The report that tokens say.

        Raises:
            R2GenError: `R2G-GENERATE-EMPTY`.
        """
        start = perf_counter()
        text = self.detokenizer.text(sequence.token_ids, settings.semantics)
        pieces = self.detokenizer.pieces(sequence.token_ids, settings.semantics)
        runner_up = tuple(
            RunnerUp(token_id, self.detokenizer.piece(token_id), logprob) for token_id, logprob in sequence.others
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


class ModelStages:
    """`many.Stages` of a model with the settings of a call or of one request.

    All but `prepare` are called inside `LoadedModel.run`.

    Args:
        model: the model.
        settings: in force.
        dicom: how DICOM files are read; as the model's say when None.
    """

    def __init__(self, model: LoadedModel, settings: Settings, dicom: DicomSettings | None = None) -> None:
        self._model, self.settings, self._dicom = model, settings, dicom or model.dicom

    def prepare(self, number: int, images: Images) -> Prepared:
        """Read the images of a study, in any thread; see `many.Stages`, here and below."""
        subject, started = f"study {number}", perf_counter()
        pictures = read_pictures(images, subject, self._dicom)
        try:
            return self._model.prepare(number, pictures, started)
        except Exception as error:
            raise coded(error).about(subject) from error

    def encode(self, prepared: Prepared) -> Encoded:
        """The prompt of a study."""
        try:
            return self._model.encode(prepared)
        except Exception as error:
            raise coded(error).about(f"study {prepared.study}") from error

    def decode(self, studies: list[Encoded], started: float) -> list[Report]:
        """Reports of studies that begin together."""
        return drain(self._model.steps(studies, self.settings, started, text=False), None)

    def request(self, study: Encoded) -> Request:
        """What a running batch is asked for."""
        return Request(study.prompt, self.settings.decoding, self.settings.semantics)

    def open_batch(self, studies: int) -> RunningBatch:
        """A running batch with room for so many studies."""
        model, decoding = self._model, self.settings.decoding
        return RunningBatch(
            model.decoder,
            model.embed_tokens,
            rows=studies * decoding.num_beams,
            positions=prompt_length(model.manifest) + decoding.max_new_tokens,
            bos_token_id=model.manifest.prompt.bos_token_id,
            eos_token_id=model.manifest.prompt.eos_token_id,
            drafter=model.drafter,
        )

    def report(self, study: Encoded, sequence: TokenSequence) -> Report:
        """The report of a study that left the running batch."""
        report = self._model.report(study, sequence, self.settings, study.started, sequence.together)
        if self._model.learn is not None:
            self._model.learn(report.token_ids)
        return report

    def limit(self) -> int:
        """Most studies that the memory suffices for."""
        return self._model.most

    def halve(self, studies: int) -> None:
        """Remember that memory did not suffice for so many."""
        self._model.halve(studies)

    def pieces(self, study: Encoded) -> Generator[str, None, list[Report]]:
        """Decode one study by itself, with drafts where the bundle has them; yields its pieces of text."""
        return self._model.steps([study], self.settings, study.started, text=True)

    def text_stream(self) -> TextStream:
        """For the tokens of one report."""
        return self._model.detokenizer.stream(self.settings.semantics)
