"""txtai: paragraphs upserted under an id made of file and number, content kept, saved at the end. It has no notion of a
folder: what is stored of a file that has changed or gone is the caller's business."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from txtai import Embeddings
from txtai.pipeline import Segmentation


class Txtai:
    def __init__(self, state: Path, model: str) -> None:
        self._state = state / "embeddings"
        self._embeddings = Embeddings(path=model, content=True, gpu=False)
        if self._embeddings.exists(str(self._state)):
            self._embeddings.load(str(self._state))
        self._segments = Segmentation(paragraphs=True)

    def sync(self, folder: Path) -> None:
        self._embeddings.upsert(self._rows(folder))
        self._embeddings.save(str(self._state))

    def _rows(self, folder: Path) -> Iterator[tuple[str, str, None]]:
        for path in sorted(folder.rglob("*.md")):
            for number, text in enumerate(self._segments(path.read_text(encoding="utf-8"))):
                yield f"{path}#{number}", text, None

    def dump(self) -> list[tuple[str, str]]:
        found = self._embeddings.search("select id, text from txtai", limit=1_000_000)
        return [(str(one["id"]).rpartition("#")[0], one["text"]) for one in found]

    def fail_at(self, call: int) -> None:
        raise SystemExit("its store is a part of its process")


def open_tool(state: Path, model: str) -> Txtai:
    return Txtai(state, model)
