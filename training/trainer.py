"""sentence-transformers' trainer, made quiet: no bars, no reports to services, no checkpoints, no model card.

A model, a loss and batches enter; the model leaves with other weights. The only file that knows how the trainer of
transformers is set up.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from torch.overrides import TorchFunctionMode
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging

from nvr_rag.encoders.cores import cores
from nvr_rag.errors import NvrError
from training.batches import Collator
from training.recipe import Recipe

OnStep = Callable[[int, float, float], None]  # step from 1, its loss, its learning rate


class QuietTrainer(SentenceTransformerTrainer):
    """Without a model card, and without dropout: drawing it takes a CPU longer than the forward pass, and so few steps
    give little to guard against."""

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """Do nothing: the card would read the examples, and ask the hub about them."""

    def compute_loss_context_manager(self) -> contextlib.ExitStack:
        """Around the forward pass of every step."""
        self.model.eval()
        stack = super().compute_loss_context_manager()
        if self.args.use_cpu and self.args.bf16:
            stack.enter_context(_Float32Attention())
        return stack


class _Float32Attention(TorchFunctionMode):
    """Leaves attention in float32: its backward pass in bfloat16 takes five times as long on a CPU (measured)."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is not torch.nn.functional.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        with torch.autocast("cpu", enabled=False):
            return func(*map(_float32, args), **{name: _float32(value) for name, value in (kwargs or {}).items()})


def _float32(value: Any) -> Any:
    return value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


class _Watch(TrainerCallback):
    """Hands each step's loss on, and stops where it is no number."""

    def __init__(self, on_step: OnStep) -> None:
        self._on_step = on_step

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        logs = kwargs["logs"]
        if "loss" not in logs:  # the summary after the last step
            return
        if not math.isfinite(logs["loss"]):
            raise NvrError(
                f"the loss is {logs['loss']} at step {state.global_step}: nothing was saved; lower learning_rate or "
                'raise temperature in the recipe, or set precision = "float32"'
            )
        self._on_step(state.global_step, logs["loss"], logs["learning_rate"])


@contextlib.contextmanager
def no_bars() -> Iterator[None]:
    """Without the bars that transformers draws when it saves."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def run(
    model: SentenceTransformer,
    loss: torch.nn.Module,
    collator: Collator,
    *,
    rows: int,
    arguments: SentenceTransformerTrainingArguments,
    on_step: OnStep,
) -> None:
    """Train `model` in place on `rows` examples. Raises NvrError when the loss or a weight stops being a number."""
    trainer = QuietTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_dict({"row": list(range(rows))}),
        loss=loss,
        data_collator=collator,  # type: ignore[arg-type]  # any callable will do
        callbacks=[_Watch(on_step)],
    )
    trainer.remove_callback(PrinterCallback)
    cores(torch.get_num_threads()).rest()  # two threads with several cores each would slow each other down
    trainer.train()
    if not all(bool(torch.isfinite(parameter).all()) for parameter in model.parameters()):
        raise NvrError("the last step made weights that are not numbers: nothing was saved; lower learning_rate")


def arguments_of(
    recipe: Recipe, folder: Path, *, steps: int, seed: int, device: str, bfloat16: bool
) -> SentenceTransformerTrainingArguments:
    """The recipe in the trainer's words. `folder` is one that the trainer may create, and writes nothing into."""
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=recipe.batch_size,
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        warmup_steps=math.ceil(steps * recipe.warmup_ratio),
        seed=seed,
        use_cpu=device == "cpu",
        bf16=bfloat16,
        dataloader_pin_memory=device != "cpu",
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    arguments._n_gpu = min(1, arguments.n_gpu)  # with more, torch would split batches whose parts belong together
    return arguments
