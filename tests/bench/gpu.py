"""What a build costs beside the model on a GPU: tokens a second, for a small and a large encoder with random weights.

    python -m tests.bench.gpu [--device cuda] [--documents 4000] [--rounds 3] [--tiny]

Three ways to the same vectors, in one process and in turn; medians. "model": batches that lie on the device already go
through the model, nothing else. "encoder": the texts as an index hands them over, tokenised, sent and fetched. "build":
documents in the log are cut, encoded and written to an index on Edge. Tokens are those of the texts, without padding.
The models are of the sizes of all-MiniLM-L6-v2 and of 0.5 billion parameters; `--tiny` takes two that any CPU computes
in seconds, to see that all of it works. It has been run in that way only, never on a GPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ingest.chunking import chunk
from nvr_rag import corpus
from nvr_rag.encoders.bundled import bundled_directory
from nvr_rag.encoders.torch import TorchEncoder, load_encoder
from nvr_rag.settings import Settings
from nvr_rag.upkeep import indexing
from nvr_rag.workspace import Workspace
from tests.bench.common import table
from tests.support import document

Sizes = dict[str, int]
MODELS: dict[str, Sizes] = {
    "MiniLM": {"layers": 6, "width": 384, "heads": 12, "inner": 1536, "tokens": 256},
    "0.5 billion": {"layers": 24, "width": 1280, "heads": 20, "inner": 5120, "tokens": 512},
}
TINY: dict[str, Sizes] = {
    "tiny": {"layers": 1, "width": 32, "heads": 2, "inner": 64, "tokens": 64},
    "tiny, deeper": {"layers": 4, "width": 64, "heads": 2, "inner": 128, "tokens": 128},
}
ROW = (
    "encoder",
    "parameters, million",
    "computes in",
    "tokens",
    "way",
    "tokens/s",
    "of the model's",
    "of the encoder's",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default=None, help="a torch device; default: the fastest there is")
    parser.add_argument("--documents", type=int, default=None, help="default: 4000, with --tiny 40")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    count = arguments.documents or (40 if arguments.tiny else 4000)
    rows: list[list[object]] = []
    for name, sizes in (TINY if arguments.tiny else MODELS).items():
        with tempfile.TemporaryDirectory() as work:
            encoder = load_encoder(str(make(Path(work) / "model", sizes)), device=arguments.device)
            rows += measured(name, encoder, Path(work) / "home", count, arguments.rounds)
    device = arguments.device or str(encoder._passes._device)
    table(f"{count} documents on {device}, {arguments.rounds} rounds", ROW, rows)


def make(directory: Path, sizes: Sizes) -> Path:
    """A BERT of these sizes with random weights and the bundled tokenizer."""
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=sizes["width"],
        num_hidden_layers=sizes["layers"],
        num_attention_heads=sizes["heads"],
        intermediate_size=sizes["inner"],
        max_position_embeddings=sizes["tokens"],
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(directory)  # type: ignore[no-untyped-call]
    for path in bundled_directory().glob("*"):
        if path.name.startswith(("tokenizer", "vocab", "special_tokens")):
            shutil.copy(path, directory)
    return directory


def measured(name: str, encoder: TorchEncoder, home: Path, count: int, rounds: int) -> list[list[object]]:
    with Workspace(Settings(home=home), encoder=encoder) as workspace:
        workspace.create_collection("default")
        with workspace.database.write() as connection:
            corpus.put(connection, "default", [document(f"d{i}", text(i)) for i in range(count)])
        indexing.catch_up(workspace.database, workspace.index(1), chunk)  # cuts the documents, and warms everything
        inputs = inputs_of(workspace, encoder)
        workspace.close_index(1)
        tokens = sum(encoder.count_tokens(inputs))
        bare, seconds = alone(encoder, inputs), dict[str, list[float]]()
        ways: dict[str, Callable[[int], object]] = {
            "model": lambda _: bare(),
            "encoder": lambda _: encoder.encode_documents(inputs),
            "build": lambda number: build(workspace, encoder, number, len(inputs)),
        }
        for number in range(rounds):
            for way, work in ways.items():
                begun = time.perf_counter()
                work(number)
                seconds.setdefault(way, []).append(time.perf_counter() - begun)
    rates = {way: tokens / statistics.median(found) for way, found in seconds.items()}
    model: Any = encoder._passes._model
    parameters = sum(one.numel() for one in model.parameters()) / 1e6
    precision = str(next(model.parameters()).dtype).removeprefix("torch.")
    return [
        [name, parameters, precision, tokens, way, f"{rate:,.0f}", rate / rates["model"], rate / rates["encoder"]]
        for way, rate in rates.items()
    ]


def alone(encoder: TorchEncoder, inputs: Sequence[str]) -> Callable[[], None]:
    """The model on batches that are there already."""
    import torch

    passes = encoder._passes
    batches = [
        dataclasses.replace(batch, inputs={name: tensor.to(passes._device) for name, tensor in batch.inputs.items()})
        for window in passes._windows(inputs, "")
        for batch in window.batches
    ]

    def run() -> None:
        for batch in batches:
            vectors = passes._vectors(batch, None)
        if passes._device.type == "cuda":
            torch.cuda.synchronize(passes._device)
        del vectors

    return run


def build(workspace: Workspace, encoder: TorchEncoder, number: int, chunks: int) -> None:
    """An index of its own for each round, which takes no vectors from those before."""
    index_id = workspace.propose("default", encoder.fingerprint, run=f"round-{number}").index_id
    index = workspace.index(index_id)
    index.others = tuple
    done = indexing.catch_up(workspace.database, index, chunk)
    assert done.encoded == chunks, done
    workspace.close_index(index_id)


def inputs_of(workspace: Workspace, encoder: TorchEncoder) -> list[str]:
    """What the encoder is given for every chunk."""
    from nvr_rag import chunks, indexes

    with workspace.database.read() as connection:
        info = indexes.get(connection, 1)
        found = chunks.all_chunks(connection, info.collection_id or 0, info.chunking_id, info.applied_seq)
        return [encoder.spec.render(title=one.title, headings=one.headings, text=one.text) for one in found]


def text(number: int) -> str:
    """Paragraphs of sentences of words of one token, of many lengths; no two documents share one."""
    drawn = random.Random(number)
    words = ("index", "query", "document", "model", "score", "vector", "search", "answer", "system", "result")
    sentences = [
        f"{number} {sentence} {' '.join(drawn.choices(words, k=drawn.randint(4, 24)))}."
        for sentence in range(drawn.randint(8, 80))
    ]
    return "\n\n".join(" ".join(sentences[i : i + 8]) for i in range(0, len(sentences), 8))


if __name__ == "__main__":
    main()
