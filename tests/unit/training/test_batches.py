"""What a batch holds: inputs as sentence-transformers makes them, and what each passage is to each query."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from nvr_rag.encoders.model_files import inspect_model
from nvr_rag.encoders.sentence_model import load_model, traits_of
from nvr_rag.encoders.tokens import Tokens
from tests.unit.encoders.conftest import Build
from training.batches import Collator, Inputs, passage_texts, query_texts, relation
from training.data import Example, Passage

TEXTS = {
    "a": "red fox .",
    "b": "green",
    "c": "blue blueish fox fox fox red green . unheard",
    "d": "",
    "e": "red " * 40,
}


def example(query: str, positive: str, negatives: str = "", known: str = "") -> Example:
    """Passages are letters, and say their letter's text."""
    return Example(
        query_key=query,
        query=query,
        positive=Passage(id=positive, text=TEXTS[positive]),
        negatives=[Passage(id=one, text=TEXTS[one]) for one in negatives],
        known=frozenset(known),
    )


def loaded(directory: Path, max_tokens: int) -> tuple[Any, Tokens]:
    model = load_model(inspect_model(directory), "cpu", None)
    return model, Tokens(model.tokenizer.backend_tokenizer.to_str(), traits_of(model), max_tokens=max_tokens)


@pytest.mark.parametrize("prompt", ["", "passage: "])
def test_inputs_are_what_sentence_transformers_makes_of_the_texts(tiny: Build, prompt: str) -> None:
    model, tokens = loaded(tiny("prompts"), 12)
    model.max_seq_length = 12
    keys = ["c", "a", "e", "d"]
    wanted = model.preprocess([TEXTS[key] for key in keys], prompt=prompt or None)
    made = Inputs(TEXTS, tokens, prompt).features(keys)
    tensors = {name: value for name, value in wanted.items() if isinstance(value, torch.Tensor)}
    assert {"input_ids", "attention_mask", "token_type_ids"} <= tensors.keys()
    assert {name for name, value in made.items() if isinstance(value, torch.Tensor)} == tensors.keys()
    for name, value in tensors.items():
        assert torch.equal(made[name], value), name
    assert made.get("prompt_length") == wanted.get("prompt_length")
    assert ("prompt_length" in made) == bool(prompt)


def test_the_relation_knows_own_positives_and_known_ones() -> None:
    examples = [example("one", "a", "bc", known="ad"), example("two", "b", "a", known="bc"), example("three", "d")]
    cells = relation(examples, list("abcd"))
    assert cells.tolist() == [[1, 0, 0, -1], [0, 1, -1, 0], [0, 0, 0, 1]]


def test_a_batch_reads_each_passage_once_in_the_order_of_the_relation(tiny: Build) -> None:
    _, tokens = loaded(tiny("prompts"), 12)
    examples = [example("red", "a", "bce", known="a"), example("red", "b", "ca", known="ab"), example("fox", "d", "a")]
    queries = Inputs(query_texts(examples), tokens, "query: ")
    passages = Inputs(passage_texts(examples), tokens, "")
    batch = Collator(examples, queries, passages, budget=24)([{"row": 0}, {"row": 2}, {"row": 1}])
    prefixes = [name.removesuffix("input_ids") for name in batch if name.endswith("input_ids")]
    assert prefixes == ["query_", "passage0_", "passage1_"]
    # c and e have 12 tokens and fill one group; a has 5, b has 3, d has 2: the special ones
    assert batch["passage0_input_ids"].shape == (2, 12)
    assert batch["passage1_input_ids"].shape == (3, 5)
    assert batch["passage1_attention_mask"].sum(dim=1).tolist() == [5, 3, 2]
    seen = [batch[f"{prefix}input_ids"][:, 1].tolist() for prefix in prefixes[1:]]
    words = tokens.encode(["blue", "red", "green"])
    blue, red, green = (one.ids[1] for one in words)
    assert seen[0] in ([blue, red], [red, blue])
    assert seen[1][:2] == [red, green]
    c, e = (0, 1) if seen[0] == [blue, red] else (1, 0)
    a, b, d = 2, 3, 4
    wanted = torch.zeros(3, 5, dtype=torch.int8)
    wanted[0, a], wanted[1, d], wanted[2, b], wanted[2, a] = 1, 1, 1, -1
    assert torch.equal(batch["label"], wanted)
    assert (c, e) == (0, 1)  # equal lengths keep the order in which the rows name them


def test_a_text_without_any_token_is_read_as_one_token_of_padding(tiny: Build) -> None:
    model, tokens = loaded(tiny("prompts"), 12)
    bare = model.tokenizer.backend_tokenizer
    bare.post_processor = None
    inputs = Inputs(TEXTS, Tokens(bare.to_str(), tokens.traits, max_tokens=12), "")
    made = inputs.features(["d", "b"])
    assert made["input_ids"][0].tolist() == [tokens.traits.pad_id]
    assert made["attention_mask"].tolist() == [[1], [1]]
