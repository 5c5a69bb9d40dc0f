"""A sentence-transformers or transformers model directory, seen as files: complete, safe, and with an identity.

A directory enters; what leaves is either a list of exactly the files that decide about vectors, or an EncoderError
that names the file at fault. Reads JSON and safetensors headers only: nothing is executed, no torch is loaded.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from safetensors import SafetensorError, safe_open

from nvr_rag.encoders.spec import EncoderSpec
from nvr_rag.errors import EncoderError
from nvr_rag.ids import sha256_json

# What a model directory may hold for us; asked for at a hub, and kept when a directory is copied.
PATTERNS = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*.md", "LICENSE*", "NOTICE*")

_WEIGHTS = "model.safetensors"
_WEIGHTS_INDEX = "model.safetensors.index.json"
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
_TOKENIZERS = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
)
_TRANSFORMER_CONFIGS = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
_MODULES = ("Transformer", "Pooling", "Normalize", "Dense", "LayerNorm", "Dropout")
_WITH_WEIGHTS = ("Transformer", "Dense", "LayerNorm")
_SAFE_MODEL_ARGUMENTS = {"add_pooling_layer", "attn_implementation", "dtype", "torch_dtype", "trust_remote_code"}
_REFUSED_TRANSFORMER_KEYS = (
    "tokenizer_name_or_path",
    "processing_kwargs",
    "query_expansion",
    "query_length",
    "document_length",
)
_STAMPS = {"_name_or_path", "_commit_hash", "transformers_version"}  # say who wrote a config, not what it means


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFiles:
    """The files of a model directory that decide about vectors; paths are POSIX and relative to `directory`."""

    directory: Path
    modules: Sequence[tuple[str, str]]  # class name and folder, in the order of computation; none = plain transformers
    weights: Sequence[str]  # safetensors, sorted
    configs: Mapping[str, Mapping[str, Any]]  # path -> content without stamps


def inspect_model(directory: Path, *, kind: str = "SentenceTransformer") -> ModelFiles:
    """Check a model directory without loading it. Raises EncoderError: the file and the remedy.

    `kind` is what sentence-transformers has to call it, where the directory says so: also "CrossEncoder".
    """
    if not directory.is_dir():
        raise EncoderError(f"{directory} is not a model directory; give the folder that holds config.json")
    modules = _modules(directory)
    _check_kind(directory, kind)
    root = modules[0][1] if modules else ""
    configs = {_join(root, "config.json"): _model_config(directory / root)}
    configs.update(_transformer_config(directory, root))
    _check_tokenizer(directory / root)
    if kind == "CrossEncoder" and (directory / "config_sentence_transformers.json").is_file():
        own = "config_sentence_transformers.json"  # names the activation; what an encoder has in it is in its spec
        configs[own] = _read_json(directory / own)
    weights = list(_weights(directory, root))
    for name, folder in modules[1:]:
        path = directory / folder / "config.json"
        if path.is_file():
            configs[_join(folder, "config.json")] = _read_json(path)
        if name in _WITH_WEIGHTS:
            weights += _weights(directory, folder)
    for weight in weights:
        _check_safetensors(directory / weight)
    return ModelFiles(directory=directory, modules=modules, weights=sorted(weights), configs=configs)


def weight_hashes(files: ModelFiles) -> dict[str, str]:
    """Hex sha256 of each weight file, by path. Reads all of them: compute it once a load and hand it on."""
    hashes = {}
    for weight in files.weights:
        with (files.directory / weight).open("rb") as file:
            hashes[weight] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes


def fingerprint(files: ModelFiles, weights: Mapping[str, str], tokenizer: Mapping[str, Any], spec: EncoderSpec) -> str:
    """Hex sha256 over everything that decides which vector a text gets, and over nothing else.

    `weights` are the hashes by path, `tokenizer` its hash and traits. What config_sentence_transformers.json says about
    prompts, similarity and dimension is in the spec already.
    """
    return sha256_json(
        {
            "weights": dict(weights),
            "tokenizer": dict(tokenizer),
            "modules": list(files.modules),
            "configs": dict(files.configs),
            "spec": asdict(spec),
        }
    )


def copy_model(files: ModelFiles, weights: Mapping[str, str], spec: EncoderSpec, target: Path) -> None:
    """Make `target` a copy of a model directory with its spec beside the weights, whole or not at all.

    Left behind: pickles, code, exports to other runtimes. Raises EncoderError when `target` exists, cannot be written,
    or the source changed meanwhile.
    """
    if target.exists():
        raise EncoderError(f"{target} exists already; choose another directory or remove it")
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for path in _kept(files):
            copy = partial / path.relative_to(files.directory)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
        spec.save(partial)
        if weight_hashes(inspect_model(partial)) != weights:
            raise EncoderError(f"{files.directory} changed while it was copied; try again")
        _sync(partial)
        partial.rename(target)
    except OSError as error:
        raise EncoderError(f"the model cannot be written to {target}: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _kept(files: ModelFiles) -> Iterator[Path]:
    folders = dict.fromkeys(["", *(folder for _, folder in files.modules)])
    for folder in folders:
        root = files.directory / folder
        for path in sorted(root.iterdir()) if root.is_dir() else ():
            relative = path.relative_to(files.directory).as_posix()
            wanted = any(path.match(pattern) for pattern in PATTERNS)
            if path.is_file() and wanted and (path.suffix != ".safetensors" or relative in files.weights):
                yield path


def _sync(directory: Path) -> None:
    for path in (*directory.rglob("*"), directory):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _modules(directory: Path) -> list[tuple[str, str]]:
    path = directory / "modules.json"
    if not path.is_file():
        return []
    listed = _read_any_json(path)
    if not isinstance(listed, list) or not listed:
        raise EncoderError(f"{path} lists no modules; download or save the model again")
    modules = [_module(path, entry) for entry in listed]
    if modules[0][0] != "Transformer":
        raise EncoderError(
            f"{path} begins with {modules[0][0]}; only models that begin with a Transformer are supported"
        )
    return modules


def _module(path: Path, entry: Any) -> tuple[str, str]:
    kind, folder = (entry.get("type"), entry.get("path")) if isinstance(entry, dict) else (None, None)
    if not isinstance(kind, str) or not isinstance(folder, str):
        raise EncoderError(f"{path} has an entry without type and path; download or save the model again")
    package, _, name = kind.rpartition(".")
    if package.partition(".")[0] != "sentence_transformers":
        raise EncoderError(
            f"{path} names {kind}, code outside sentence_transformers, which is never run; use another model"
        )
    if name not in _MODULES:
        raise EncoderError(f"{path} names the module {name}; supported are {', '.join(_MODULES)}: use another model")
    if PurePosixPath(folder).is_absolute() or ".." in PurePosixPath(folder).parts:
        raise EncoderError(f"{path} points outside the model directory ({folder!r}); do not use this model")
    return name, folder


def _check_kind(directory: Path, wanted: str) -> None:
    path = directory / "config_sentence_transformers.json"
    kind = _read_json(path).get("model_type", "SentenceTransformer") if path.is_file() else wanted
    if kind != wanted:
        what = "an encoder" if wanted == "SentenceTransformer" else "a reranker"
        raise EncoderError(f"{path} says that this is a {kind}; {what} must be a {wanted}")


def _model_config(folder: Path) -> Mapping[str, Any]:
    path = folder / "config.json"
    if (folder / "adapter_config.json").is_file():
        raise EncoderError(
            f"{folder / 'adapter_config.json'} is an adapter; merge it into its base model and save that"
        )
    if not path.is_file():
        raise EncoderError(f"{path} is missing; download or save the model again")
    config = _read_json(path)
    for name in ("config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json"):
        if (folder / name).is_file() and "auto_map" in _read_json(folder / name):
            raise EncoderError(
                f"{folder / name} asks for code that comes with the model (auto_map), which is never run; use a "
                "model whose architecture transformers has, or remove auto_map if it has this one by now"
            )
    _check_attention(path, config)
    return config


def _check_attention(path: Path, arguments: Mapping[str, Any]) -> None:
    for key in ("attn_implementation", "_attn_implementation", "_attn_implementation_internal"):
        if "/" in str(arguments.get(key, "")):  # owner/name: a kernel that would be fetched and run
            raise EncoderError(
                f"{path} asks for code from a hub ({key}: {arguments[key]}), which is never run; remove it"
            )


def _transformer_config(directory: Path, root: str) -> dict[str, Mapping[str, Any]]:
    for name in _TRANSFORMER_CONFIGS:
        path = directory / root / name
        if path.is_file():
            config = _read_json(path)
            _check_transformer_config(path, config)
            return {_join(root, name): config}
    return {}


def _check_transformer_config(path: Path, config: Mapping[str, Any]) -> None:
    refused = [key for key in _REFUSED_TRANSFORMER_KEYS if config.get(key)]
    arguments = {**(config.get("model_args") or {}), **(config.get("model_kwargs") or {})}
    refused += sorted(set(arguments) - _SAFE_MODEL_ARGUMENTS)
    if refused:
        raise EncoderError(
            f"{path} sets {', '.join(refused)}, which an encoder cannot honour; save the model without it"
        )
    _check_attention(path, arguments)


def _check_tokenizer(folder: Path) -> None:
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        raise EncoderError(
            f"{folder} has no tokenizer (tokenizer.json is missing); download the model again, or save its tokenizer "
            "there"
        )


def _weights(directory: Path, folder: str) -> list[str]:
    """The weight files of one module. transformers takes the single file where both forms are there."""
    root = directory / folder
    if (root / _WEIGHTS).is_file():
        return [_join(folder, _WEIGHTS)]
    if (root / _WEIGHTS_INDEX).is_file():
        return _shards(directory, folder)
    pickles = sorted(path.name for path in root.iterdir() if path.suffix in _PICKLES) if root.is_dir() else []
    if pickles:
        raise EncoderError(
            f"{root / pickles[0]} is a pickle, which can run code when it is read; only {_WEIGHTS} is accepted. If you "
            f'trust the model, convert it once: python -c "from sentence_transformers import SentenceTransformer as S; '
            f"S('{directory}').save('{directory}-safetensors')\""
        )
    raise EncoderError(f"{root / _WEIGHTS} is missing; download or save the model again")


def _shards(directory: Path, folder: str) -> list[str]:
    path = directory / folder / _WEIGHTS_INDEX
    places = _read_json(path).get("weight_map")
    names = sorted(set(places.values())) if isinstance(places, dict) else []
    if not names:
        raise EncoderError(f"{path} names no weight files; download or save the model again")
    for name in names:
        if PurePosixPath(name).name != name or not name.endswith(".safetensors"):
            raise EncoderError(f"{path} names {name!r}, which is no safetensors file beside it; do not use this model")
        if not (directory / folder / name).is_file():
            raise EncoderError(f"{directory / folder / name} is missing; download or save the model again")
    return [_join(folder, name) for name in names]


def _check_safetensors(path: Path) -> None:
    try:
        with safe_open(path, framework="numpy"):
            pass
    except (SafetensorError, OSError) as error:
        raise EncoderError(f"{path} is damaged or cut off ({error}); download or save the model again") from error


def _read_json(path: Path) -> dict[str, Any]:
    content = _read_any_json(path)
    if not isinstance(content, dict):
        raise EncoderError(f"{path} is not a JSON object; download or save the model again")
    return {key: value for key, value in content.items() if key not in _STAMPS}


def _read_any_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EncoderError(f"{path} cannot be read ({error}); download or save the model again") from error


def _join(folder: str, name: str) -> str:
    return (PurePosixPath(folder) / name).as_posix()
