"""How fast texts are cut into chunks, with the bundled encoder's tokenizer, by one thread.

    python -m tests.bench.cutting FOLDER ... [--rounds 5]

Every folder's Markdown and text files, all of them in turn, cold (no word of them was ever counted by this process) and
warm (median of the rounds); then lines without an end of 1, 2, 4 and 5 MB. Time is that of the processor.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from nvr_rag.encoders.base import Encoder
from nvr_rag.types import ParsedText, TextFormat
from tests.bench.common import table

KINDS = {".md": (TextFormat.MARKDOWN, "text/markdown"), ".txt": (TextFormat.PLAIN, "text/plain")}
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
LINES: dict[str, Callable[[int], str]] = {
    "one word, no blank": lambda size: "abcd" * (size // 4),
    "Base64, no blank": lambda size: "".join(random.Random(1).choices(LETTERS, k=size)),
    "Chinese, no blank": lambda size: "".join(map(chr, random.Random(1).choices(range(0x4E00, 0x6200), k=size // 3))),
}
ROW = ("texts", "MB", "chunks", "MB/s cold", "MB/s warm")
LINE_ROW = ("one line of", "1 MB, s", "2 MB, s", "4 MB, s", "5 MB, s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # before the first text: it is read once
    rows = [_folder(folder, arguments.rounds) for folder in arguments.folders]
    if rows:
        table("Cutting, one thread", ROW, rows)
    sizes = (1, 2, 4, 5)
    lines = [[name, *[_seconds([_line(make(size * 10**6))])[0] for size in sizes]] for name, make in LINES.items()]
    table("Cutting a line without an end", LINE_ROW, lines)


def _folder(folder: Path, rounds: int) -> list[object]:
    files = sorted(path for path in folder.rglob("*") if path.suffix in KINDS)
    texts = [_text(path) for path in files]
    size = sum(len(parsed.text.encode()) for parsed in texts) / 1e6
    cold, chunks = _seconds(texts)
    warm = statistics.median(_seconds(texts)[0] for _ in range(rounds))
    return [f"{folder.name}, {len(texts)} files", f"{size:.2f}", chunks, f"{size / cold:.2f}", f"{size / warm:.2f}"]


def _text(path: Path) -> ParsedText:
    format_, media_type = KINDS[path.suffix]
    text = path.read_text("utf-8", "replace")
    return ParsedText(text=text, format=format_, media_type=media_type, title=path.stem)


def _line(text: str) -> ParsedText:
    return ParsedText(text=text, format=TextFormat.PLAIN, media_type="text/plain")


def _seconds(texts: Sequence[ParsedText]) -> tuple[float, int]:
    """What cutting the texts takes, and how many chunks they make."""
    from ingest.chunking import chunk

    encoder = _encoder()
    begun = time.process_time()
    chunks = sum(len(chunk(parsed, encoder)) for parsed in texts)
    return time.process_time() - begun, chunks


@cache
def _encoder() -> Encoder:
    from nvr_rag.encoders.torch import load_encoder

    return load_encoder(device="cpu", threads=1)


if __name__ == "__main__":
    main()
