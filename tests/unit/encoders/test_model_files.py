from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nvr_rag.encoders.model_files import copy_model, fingerprint, inspect_model, weight_hashes
from nvr_rag.encoders.spec import SPEC_FILE, EncoderSpec
from nvr_rag.errors import EncoderError

from .conftest import WIDTH, Build

SPEC = EncoderSpec(dimension=WIDTH, max_tokens=24, pooling="mean", normalize=True)


def edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def identity(directory: Path, spec: EncoderSpec = SPEC) -> str:
    files = inspect_model(directory)
    return fingerprint(files, weight_hashes(files), {"hash": "t"}, spec)


def flip_last_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def add_dense(directory: Path) -> None:
    modules = json.loads((directory / "modules.json").read_text())
    dense = {"idx": 3, "name": "3", "path": "3_Dense", "type": "sentence_transformers.models.Dense"}
    (directory / "modules.json").write_text(json.dumps([*modules, dense]))
    (directory / "3_Dense").mkdir()
    (directory / "3_Dense" / "config.json").write_text('{"in_features": 32, "out_features": 32}')
    (directory / "3_Dense" / "pytorch_model.bin").write_bytes(b"\x80\x04.")


def module(kind: str, path: str = "") -> Callable[[Path], None]:
    entries = [{"idx": 0, "name": "0", "path": path, "type": kind}]
    return lambda directory: void((directory / "modules.json").write_text(json.dumps(entries)))


def void(_: object) -> None:
    """For a step whose value is not wanted."""


def add_onnx(directory: Path) -> None:
    (directory / "onnx").mkdir()
    (directory / "onnx" / "model.onnx").write_bytes(b"x")


def pickle_only(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")


def truncate(directory: Path) -> None:
    os.truncate(directory / "model.safetensors", 5000)


def pointer(directory: Path) -> None:
    (directory / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\nsize 9\n")


def missing_shard(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def escaping_shard(directory: Path) -> None:
    missing_shard(directory)
    edit(directory / "model.safetensors.index.json", weight_map={"a": "../other.safetensors"})


REFUSALS: dict[str, tuple[Callable[[Path], None], str, str]] = {
    # what is done to the directory, the file that the message names, and words of the remedy or reason
    "no config": (lambda d: (d / "config.json").unlink(), "config.json", "is missing; download"),
    "config is no JSON": (lambda d: void((d / "config.json").write_text("{")), "config.json", "cannot be read"),
    "config is a list": (lambda d: void((d / "config.json").write_text("[]")), "config.json", "not a JSON object"),
    "no tokenizer": (lambda d: (d / "tokenizer.json").unlink(), "tokenizer.json", "no tokenizer"),
    "no weights": (lambda d: (d / "model.safetensors").unlink(), "model.safetensors", "is missing"),
    "pickle only": (pickle_only, "pytorch_model.bin", "convert it once"),
    "pickle in a module": (add_dense, "3_Dense/pytorch_model.bin", "is a pickle"),
    "truncated weights": (truncate, "model.safetensors", "damaged or cut off"),
    "pointer instead of weights": (pointer, "model.safetensors", "damaged or cut off"),
    "missing shard": (missing_shard, "model-00001-of-00002.safetensors", "is missing"),
    "shard elsewhere": (escaping_shard, "model.safetensors.index.json", "do not use this model"),
    "remote code": (
        lambda d: edit(d / "config.json", auto_map={"AutoModel": "modeling_x.X"}),
        "config.json",
        "never run",
    ),
    "remote tokenizer": (
        lambda d: edit(d / "tokenizer_config.json", auto_map={"AutoTokenizer": ["t.T", None]}),
        "tokenizer_config.json",
        "never run",
    ),
    "kernel from a hub": (
        lambda d: edit(d / "sentence_bert_config.json", model_kwargs={"attn_implementation": "someone/kernel"}),
        "sentence_bert_config.json",
        "never run",
    ),
    "tokenizer from elsewhere": (
        lambda d: edit(d / "sentence_bert_config.json", tokenizer_name_or_path="/elsewhere"),
        "sentence_bert_config.json",
        "tokenizer_name_or_path",
    ),
    "weights from elsewhere": (
        lambda d: edit(d / "sentence_bert_config.json", model_args={"subfolder": "x"}),
        "sentence_bert_config.json",
        "subfolder",
    ),
    "foreign module": (module("custom_st.Transformer"), "modules.json", "custom_st.Transformer"),
    "look-alike package": (module("sentence_transformers_x.Transformer"), "modules.json", "never run"),
    "unknown module": (module("sentence_transformers.util.misc"), "modules.json", "use another model"),
    "unsupported first module": (module("sentence_transformers.models.Pooling"), "modules.json", "begin"),
    "module outside": (
        module("sentence_transformers.models.Transformer", "../x"),
        "modules.json",
        "outside the model directory",
    ),
    "no modules": (lambda d: void((d / "modules.json").write_text("[]")), "modules.json", "lists no modules"),
    "modules without type": (lambda d: void((d / "modules.json").write_text("[1]")), "modules.json", "without type"),
    "a reranker": (
        lambda d: edit(d / "config_sentence_transformers.json", model_type="CrossEncoder"),
        "config_sentence_transformers.json",
        "CrossEncoder",
    ),
    "an adapter": (
        lambda d: void((d / "adapter_config.json").write_text("{}")),
        "adapter_config.json",
        "merge it",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_an_unusable_directory_is_refused_with_the_file_and_the_remedy(tiny: Build, case: str) -> None:
    spoil, file, words = REFUSALS[case]
    directory = tiny()
    spoil(directory)
    with pytest.raises(EncoderError) as caught:
        inspect_model(directory)
    assert file in str(caught.value)
    assert str(directory) in str(caught.value)
    assert words in str(caught.value)


def test_a_path_that_is_no_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match="not a model directory"):
        inspect_model(tmp_path / "nothing")


def test_all_kinds_of_directories_are_accepted(tiny: Build) -> None:
    for name in ("plain", "prompts", "cls", "dot"):
        assert inspect_model(tiny(name, name)).weights == ["model.safetensors"]


def test_weights_in_shards_are_all_hashed(tiny: Build) -> None:
    directory = tiny()
    for part in ("a.safetensors", "b.safetensors"):
        shutil.copy(directory / "model.safetensors", directory / part)
    (directory / "model.safetensors").unlink()
    places = {"weight_map": {"x": "b.safetensors", "y": "a.safetensors", "z": "b.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(places))
    assert sorted(weight_hashes(inspect_model(directory))) == ["a.safetensors", "b.safetensors"]


UNCHANGED: dict[str, Callable[[Path], None]] = {
    "read-me": lambda d: void((d / "README.md").write_text("new")),
    "onnx": add_onnx,
    "times": lambda d: os.utime(d / "model.safetensors", (1, 1)),
    "versions": lambda d: edit(d / "config_sentence_transformers.json", __version__={"pytorch": "9"}),
    "stamps": lambda d: edit(d / "config.json", transformers_version="9", _name_or_path="elsewhere"),
    "unused weights": lambda d: void((d / "other.safetensors").write_bytes(b"x")),
    "spacing": lambda d: edit(d / "1_Pooling" / "config.json"),
}


@pytest.mark.parametrize("case", UNCHANGED)
def test_what_changes_no_vector_changes_no_fingerprint(tiny: Build, case: str) -> None:
    directory = tiny()
    before = identity(directory)
    UNCHANGED[case](directory)
    assert identity(directory) == before


def test_the_fingerprint_does_not_depend_on_the_place(tiny: Build) -> None:
    assert identity(tiny("cls", "here")) == identity(tiny("cls", "there"))


CHANGED: dict[str, Callable[[Path], None]] = {
    "a weight byte": lambda d: flip_last_byte(d / "model.safetensors"),
    "pooling": lambda d: edit(d / "1_Pooling" / "config.json", pooling_mode="cls"),
    "architecture": lambda d: edit(d / "config.json", layer_norm_eps=1e-6),
    "case": lambda d: edit(d / "sentence_bert_config.json", do_lower_case=True),
}


@pytest.mark.parametrize("case", CHANGED)
def test_what_changes_vectors_changes_the_fingerprint(tiny: Build, case: str) -> None:
    directory = tiny()
    before = identity(directory)
    CHANGED[case](directory)
    assert identity(directory) != before


def test_the_fingerprint_covers_spec_and_tokenizer(tiny: Build) -> None:
    directory = tiny()
    files = inspect_model(directory)
    weights = weight_hashes(files)
    longer = EncoderSpec(dimension=WIDTH, max_tokens=23, pooling="mean", normalize=True)
    prompted = EncoderSpec(dimension=WIDTH, max_tokens=24, pooling="mean", normalize=True, query_prompt="q ")
    prints = [fingerprint(files, weights, {"hash": "t"}, spec) for spec in (SPEC, longer, prompted)]
    prints.append(fingerprint(files, weights, {"hash": "u"}, SPEC))
    assert len(set(prints)) == 4
    assert all(len(print_) == 64 for print_ in prints)


def test_a_copy_holds_what_is_needed_and_nothing_that_could_run(tiny: Build, tmp_path: Path) -> None:
    directory = tiny()
    for name in ("modeling_x.py", "pytorch_model.bin", "optimizer.pt", "other.safetensors"):
        (directory / name).write_bytes(b"x")
    (directory / "LICENSE").write_text("Apache-2.0")
    files = inspect_model(directory)
    copy_model(files, weight_hashes(files), SPEC, tmp_path / "deep" / "copy")
    names = {path.relative_to(tmp_path / "deep" / "copy").as_posix() for path in (tmp_path / "deep").rglob("*.*")}
    assert not names & {"modeling_x.py", "pytorch_model.bin", "optimizer.pt", "other.safetensors"}
    assert {"config.json", "tokenizer.json", "model.safetensors", "1_Pooling/config.json", SPEC_FILE} <= names
    assert (tmp_path / "deep" / "copy" / "LICENSE").is_file()
    assert identity(tmp_path / "deep" / "copy") == identity(directory)


def test_a_copy_never_replaces_what_is_there(tiny: Build, tmp_path: Path) -> None:
    files = inspect_model(tiny())
    (tmp_path / "taken").mkdir()
    with pytest.raises(EncoderError, match="exists already"):
        copy_model(files, weight_hashes(files), SPEC, tmp_path / "taken")


def test_a_copy_that_fails_leaves_nothing(tiny: Build, tmp_path: Path) -> None:
    files = inspect_model(tiny())
    target = tmp_path / "out" / "copy"
    with pytest.raises(EncoderError, match="changed while it was copied"):
        copy_model(files, {"model.safetensors": "0" * 64}, SPEC, target)
    assert list(target.parent.iterdir()) == []


def test_a_copy_to_an_impossible_place_is_an_encoder_error(tiny: Build, tmp_path: Path) -> None:
    files = inspect_model(tiny())
    (tmp_path / "file").write_text("")
    with pytest.raises(EncoderError, match="cannot be written"):
        copy_model(files, weight_hashes(files), SPEC, tmp_path / "file" / "copy")


def test_checking_needs_no_torch() -> None:
    slow = "{'torch', 'transformers', 'huggingface_hub'}"
    script = f"import sys, nvr_rag.encoders.torch; print(sorted({slow} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
