"""Texts through a model, so that the model never waits: texts enter, vectors leave, in the order of the texts.

Texts are tokenised many at a time, sorted by length into batches of so many tokens, sent to the device and fetched
back. On a GPU all of that overlaps: a thread tokenises the next window while the device works on this one, batches go
there from pinned memory and vectors come back into it, and one window is waited for only when the next is on its way.
On a CPU the same steps follow each other, as there is nobody to wait for, and batches go through the model side by
side, one on each core. A query has all cores while it is the only one, and one core beside others. Knows no model
directory and no fingerprint.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from nvr_rag.encoders.base import Vectors
from nvr_rag.encoders.batching import batches, windows
from nvr_rag.encoders.cores import cores
from nvr_rag.encoders.tokens import Tokens

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer
    from tokenizers import Encoding

BATCH_TOKENS_CPU = 1024  # padded tokens of one batch: more is no faster, and lanes would end further apart
BATCH_TOKENS_GPU = 16384  # enough work for a large GPU; of four times as many, a tenth would be padding
_WINDOW_TEXTS = 1024  # tokenised together, so that texts of one length meet
_FIRST_TEXTS = 256  # the same of the first window, for which a GPU has to wait
_WINDOW_CHARACTERS = 2_000_000
_AHEAD = 2  # windows tokenised before they are needed

T = TypeVar("T")
Arrays = Mapping[str, NDArray[np.int64]]  # (B, T) each, by the name that a sentence-transformers model knows


@dataclass(frozen=True, kw_only=True, slots=True)
class _Batch:
    """Texts of about one length, ready for the device."""

    positions: Sequence[int]  # of the texts, among all
    inputs: Mapping[str, torch.Tensor]  # (B, T) each, on the host


@dataclass(frozen=True, kw_only=True, slots=True)
class _Window:
    """What was tokenised at once."""

    batches: Sequence[_Batch]
    texts: int


class Passes:
    """One model on one device. Any number of threads may use it at once."""

    def __init__(self, model: SentenceTransformer, tokens: Tokens, *, dimension: int, normalize: bool) -> None:
        """`dimension` is how much of a vector is kept, `normalize` whether that is brought to length 1."""
        self._model, self._tokens = model, tokens
        self._dimension, self._normalize = dimension, normalize
        self._device = model.device
        self._gpu = model.device.type == "cuda"
        self._budget = BATCH_TOKENS_GPU if self._gpu else BATCH_TOKENS_CPU
        self._ahead = self._gpu  # on a CPU it only takes the cores from the model
        self._cores = None if self._gpu else cores(_threads())

    def encode(self, texts: Sequence[str], prompt: str = "") -> Vectors:
        """(N, D) float32: the vectors of prompt + text, texts over the budget cut."""
        vectors = np.empty((len(texts), self._dimension), dtype=np.float32)  # (N, D)
        length = self._tokens.prompt_length(prompt) if prompt else None
        fetched: _Fetched | None = None
        with closing(self._windows(texts, prompt)) as found:
            for window in found:
                last, fetched = fetched, self._sent(window, length)
                if last is not None:
                    last.store(vectors)
        if fetched is not None:
            fetched.store(vectors)
        return vectors

    def _windows(self, texts: Sequence[str], prompt: str) -> Generator[_Window]:
        first = _FIRST_TEXTS if self._ahead else None
        lengths = [len(text) for text in texts]
        spans = list(windows(lengths, count=_WINDOW_TEXTS, total=_WINDOW_CHARACTERS, first=first))
        found = (self._tokenised(texts, span, prompt) for span in spans)
        return ahead(found, _AHEAD) if self._ahead and len(spans) > 1 else found

    def _tokenised(self, texts: Sequence[str], span: range, prompt: str) -> _Window:
        encodings = self._tokens.encode([texts[i] for i in span], prompt)
        groups = batches([len(encoding) for encoding in encodings], budget=self._budget)
        made = [
            _Batch(positions=[span[i] for i in group], inputs=self._on_host([encodings[i] for i in group]))
            for group in groups
        ]
        return _Window(batches=made, texts=len(span))

    def _on_host(self, encodings: Sequence[Encoding]) -> Mapping[str, torch.Tensor]:
        import torch

        tensors = {name: torch.from_numpy(array) for name, array in self._padded(encodings).items()}
        return {name: tensor.pin_memory() for name, tensor in tensors.items()} if self._gpu else tensors

    def _padded(self, encodings: Sequence[Encoding]) -> Arrays:
        """What a sentence-transformers model reads, padded to the longest input. An input without any token, which
        only tokenizers without special tokens make, is read as one padding token."""
        traits = self._tokens.traits
        width = max(1, *(len(encoding) for encoding in encodings))
        ids = np.full((len(encodings), width), traits.pad_id, dtype=np.int64)  # (B, T)
        types = np.full_like(ids, traits.pad_type_id)
        mask = np.zeros_like(ids)
        for row, encoding in enumerate(encodings):
            length = max(1, len(encoding))
            span = slice(width - length, width) if traits.pad_left else slice(0, length)
            mask[row, span] = 1
            if len(encoding):
                ids[row, span] = encoding.ids
                if traits.type_ids:
                    types[row, span] = encoding.type_ids
        arrays = {"input_ids": ids, "attention_mask": mask}
        return {**arrays, "token_type_ids": types} if traits.type_ids else arrays

    def _sent(self, window: _Window, prompt_length: int | None) -> _Fetched:
        """The window's batches put through the model; on a GPU they are then still on their way."""
        import torch

        host = torch.empty((window.texts, self._dimension), dtype=torch.float32, pin_memory=self._gpu)  # (N, D)
        positions: list[int] = []
        for batch, vectors in zip(window.batches, self._through(window.batches, prompt_length), strict=True):
            rows = slice(len(positions), len(positions) + len(batch.positions))
            positions.extend(batch.positions)
            host[rows].copy_(vectors, non_blocking=self._gpu)
        done = None
        if self._gpu:
            done = torch.cuda.current_stream(self._device).record_event()
        return _Fetched(host=host, positions=positions, done=done)

    def _through(self, found: Sequence[_Batch], prompt_length: int | None) -> Iterator[torch.Tensor]:
        """(B, D) float32 on the device of each batch."""
        step = partial(self._vectors, prompt_length=prompt_length)
        if self._cores is None:
            return map(step, found)
        return iter([self._cores.one(step, found[0])]) if len(found) == 1 else self._cores.many(step, found)

    def _vectors(self, batch: _Batch, prompt_length: int | None) -> torch.Tensor:
        """(B, D) float32 on the device."""
        import torch

        with torch.inference_mode():
            features: dict[str, Any] = {
                name: tensor.to(self._device, non_blocking=self._gpu) for name, tensor in batch.inputs.items()
            }
            if prompt_length is not None:
                features["prompt_length"] = prompt_length
            pooled = self._model(features)["sentence_embedding"].float()[:, : self._dimension]
            return torch.nn.functional.normalize(pooled, dim=1) if self._normalize else pooled


@dataclass(frozen=True, kw_only=True, slots=True)
class _Fetched:
    """Vectors on their way from the device."""

    host: torch.Tensor  # (N, D) float32
    positions: Sequence[int]  # of the rows, among all texts
    done: torch.cuda.Event | None  # when they are there; None = they are

    def store(self, vectors: Vectors) -> None:
        """Put them in their places, once they are there."""
        if self.done is not None:
            self.done.synchronize()
        vectors[self.positions] = self.host.numpy()


def _threads() -> int:
    """Those that torch has."""
    import torch

    return torch.get_num_threads()


def ahead(items: Iterator[T], depth: int) -> Generator[T]:
    """The same items, up to `depth` of them made in a thread before they are asked for."""
    end = object()
    with ThreadPoolExecutor(1, thread_name_prefix="tokenize") as pool:
        coming = deque(pool.submit(next, items, end) for _ in range(depth))
        while (item := coming.popleft().result()) is not end:
            coming.append(pool.submit(next, items, end))
            yield item  # type: ignore[misc]
