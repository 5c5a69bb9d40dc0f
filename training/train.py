"""Fine-tuning an encoder: examples and a base encoder go in, a model directory that serving can open comes out.

Contrastive training by InfoNCE through sentence-transformers' trainer, from the base's weights. Texts are read as they
are when they are served, vectors compared as they are when they are searched. The directory appears whole or not at
all. Knows no judgments, no index, no database; torch is loaded by the first call.
"""

from __future__ import annotations

import contextlib
import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nvr_rag.errors import EncoderError, InvalidInput
from training.data import Example
from training.recipe import Recipe

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from nvr_rag.encoders.spec import EncoderSpec
    from training.batches import Collator

MOST_EPOCHS = 3  # that `min_steps` may raise the epochs to: judgments are few, and more is learning them by heart

_REPORT_SECONDS = 2.0  # between two reports
_GROUP_TOKENS_CPU = 8192  # padded tokens that go through the model at once
_GROUP_TOKENS_GPU = 65536


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingProgress:
    """Where a training stands."""

    step: int  # done, from 1
    steps: int  # in all
    loss: float  # of this step, in nats
    learning_rate: float  # of this step
    seconds: float  # since the first step began


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingResult:
    """What a training made, and how."""

    directory: Path  # a sentence-transformers directory with the spec beside the weights
    fingerprint: str  # of the encoder in it
    examples: int  # trained on
    steps: int  # of the optimiser
    precision: str  # of the matrix products: "float32" or "bfloat16"
    device: str  # "cpu" or "cuda"
    seconds: float  # that the steps took
    curve: Sequence[tuple[int, float]]  # (step from 1, loss in nats) of every step


Report = Callable[[TrainingProgress], None]


def train(
    examples: Sequence[Example],
    base: str,
    recipe: Recipe,
    target: Path,
    *,
    seed: int,
    threads: int,
    report: Report,
) -> TrainingResult:
    """Fine-tune the encoder `base` (as `load_encoder` takes it) and write it to the new directory `target`.

    The first and the last step are reported, and one every few seconds between; what `report` raises ends the training.
    On a CPU equal arguments give equal bytes. Raises InvalidInput without examples, EncoderError when `base` cannot be
    used or `target` exists, NvrError when the loss stops being a number; nothing is written then.
    """
    if not examples:
        raise InvalidInput("there are no examples to train on; collect more judgments", field="examples")
    if target.exists():
        raise EncoderError(f"{target} exists already; choose another directory or remove it")
    from training.losses import InfoNCE
    from training.trainer import arguments_of, run

    device = _device()
    bfloat16 = _bfloat16(recipe.precision, device)
    model, spec = _load(base, device, threads)
    steps = planned_steps(len(examples), recipe)
    watch = _Stopwatch(steps, report)
    with _scratch(target) as folder:
        run(
            model,
            InfoNCE(model, spec, recipe.temperature),
            _collator(examples, model, spec, recipe),
            rows=len(examples),
            arguments=arguments_of(
                recipe, folder / "trainer", steps=steps, seed=seed, device=device, bfloat16=bfloat16
            ),
            on_step=watch.step,
        )
        fingerprint = _save(model, spec, folder / "model", target)
    return TrainingResult(
        directory=target,
        fingerprint=fingerprint,
        examples=len(examples),
        steps=steps,
        precision="bfloat16" if bfloat16 else "float32",
        device=device,
        seconds=watch.seconds,
        curve=watch.curve,
    )


def planned_steps(examples: int, recipe: Recipe) -> int:
    """Steps of the optimiser: the recipe's epochs, or more where that makes fewer than `min_steps`."""
    an_epoch = math.ceil(examples / recipe.batch_size)
    return max(recipe.epochs * an_epoch, min(recipe.min_steps, MOST_EPOCHS * an_epoch))


@contextlib.contextmanager
def _scratch(target: Path) -> Iterator[Path]:
    """A folder beside `target`, gone afterwards. What a killed training left there goes first."""
    folder = target.with_name(f".{target.name}.training")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Stopwatch:
    """Keeps the curve, and reports now and then."""

    def __init__(self, steps: int, report: Report) -> None:
        self.curve: list[tuple[int, float]] = []
        self.seconds = 0.0
        self._steps = steps
        self._report = report
        self._start = self._reported = time.monotonic()

    def step(self, step: int, loss: float, learning_rate: float) -> None:
        now = time.monotonic()
        self.seconds = now - self._start
        self.curve.append((step, loss))
        if step in (1, self._steps) or now - self._reported >= _REPORT_SECONDS:
            self._reported = now
            self._report(
                TrainingProgress(
                    step=step, steps=self._steps, loss=loss, learning_rate=learning_rate, seconds=self.seconds
                )
            )


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _bfloat16(precision: str, device: str) -> bool:
    """Whether the matrix products are done in bfloat16; weights, their updates and the loss stay in float32."""
    import torch

    if precision == "auto":
        return device == "cuda" or bool(torch.cpu.get_capabilities().get("amx_bf16"))
    return precision == "bfloat16"


def _load(base: str, device: str, threads: int) -> tuple[SentenceTransformer, EncoderSpec]:
    from nvr_rag.encoders.sentence_model import load_model
    from nvr_rag.encoders.torch import load_encoder

    encoder = load_encoder(base, device="cpu", threads=threads)  # makes all the checks
    return load_model(encoder.files, device, threads), encoder.spec


def _collator(examples: Sequence[Example], model: SentenceTransformer, spec: EncoderSpec, recipe: Recipe) -> Collator:
    from nvr_rag.encoders.sentence_model import traits_of
    from nvr_rag.encoders.tokens import Tokens
    from training.batches import Collator, Inputs, passage_texts, query_texts

    serialised, traits = model.tokenizer.backend_tokenizer.to_str(), traits_of(model)
    of_queries = Tokens(serialised, traits, max_tokens=min(recipe.max_query_tokens, spec.max_tokens))
    of_documents = Tokens(serialised, traits, max_tokens=min(recipe.max_document_tokens, spec.max_tokens))
    return Collator(
        examples,
        Inputs(query_texts(examples), of_queries, spec.query_prompt),
        Inputs(passage_texts(examples), of_documents, spec.document_prompt),
        budget=_GROUP_TOKENS_CPU if model.device.type == "cpu" else _GROUP_TOKENS_GPU,
    )


def _save(model: SentenceTransformer, spec: EncoderSpec, folder: Path, target: Path) -> str:
    """Write the model to `folder`, open it as serving does, and only then copy it to `target`. The fingerprint."""
    from nvr_rag.encoders.model_files import copy_model
    from nvr_rag.encoders.torch import load_encoder
    from training.trainer import no_bars

    with no_bars():
        model.save(str(folder), create_model_card=False)
    spec.save(folder)
    encoder = load_encoder(str(folder), device="cpu")
    copy_model(encoder.files, encoder.weights, encoder.spec, target)
    return encoder.fingerprint
