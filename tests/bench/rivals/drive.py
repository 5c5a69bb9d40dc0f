"""One run of one tool in a process of its own, with the Python that has it:

    python -m tests.bench.rivals.drive TOOL sync|dump FOLDER STATE MODEL [--fail-at N] [--threads 2]

`sync` brings what is stored in STATE level with FOLDER and prints seconds, texts encoded and peak memory; `dump` prints
what a search could find: pairs of a source and a text. Both print one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

TOOLS = {"nvr-rag": "nvr", "LlamaIndex": "llamaindex", "LangChain": "langchain", "txtai": "txtai"}


class Tool(Protocol):
    """Opened on a folder for its state and a model directory; imports and loading are not timed."""

    def sync(self, folder: Path) -> None:
        """Bring the state level with the folder, as far as the tool does that by itself."""

    def dump(self) -> list[tuple[str, str]]:
        """(path of the file, text) of everything that can be found."""

    def fail_at(self, call: int) -> None:
        """Let the store refuse this write, once; counted from 1."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tool", choices=TOOLS)
    parser.add_argument("what", choices=["sync", "dump"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("state", type=Path)
    parser.add_argument("model")
    parser.add_argument("--fail-at", type=int)
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    import torch

    torch.set_num_threads(asked.threads)
    tool: Tool = import_module(f"tests.bench.rivals.{TOOLS[asked.tool]}").open_tool(asked.state, asked.model)
    if asked.what == "dump":
        print(json.dumps(tool.dump()))
        return
    if asked.fail_at:
        tool.fail_at(asked.fail_at)
    counted = _count()
    started = time.perf_counter()
    error = None
    try:
        tool.sync(asked.folder)
    except Exception as failure:  # what a tool says when its store refuses
        error = f"{type(failure).__name__}: {failure}"[:300]
    seconds = time.perf_counter() - started
    print(json.dumps({"seconds": seconds, "encoded": counted[0], "peak_mb": _peak_mb(), "error": error}))


def _count() -> list[int]:
    """Count texts that go through the model (a BERT), whichever way it is called."""
    from transformers import BertModel

    counted, forward = [0], BertModel.forward

    def counting(self: Any, input_ids: Any = None, *args: Any, **named: Any) -> Any:
        counted[0] += int(input_ids.shape[0])
        return forward(self, input_ids, *args, **named)

    BertModel.forward = counting  # type: ignore[method-assign]
    return counted


def _peak_mb() -> float:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def refuse_once(owner: Any, name: str, call: int, error: Exception) -> None:
    """Let this call of a method fail, and no other."""
    real, calls = getattr(owner, name), [0]

    def method(*args: Any, **named: Any) -> Any:
        calls[0] += 1
        if calls[0] == call:
            raise error
        return real(*args, **named)

    setattr(owner, name, method)


if __name__ == "__main__":
    main()
