"""A sentence-transformers model, loaded and questioned: is it whole, what is its spec, how does it tokenize.

A directory that `model_files` has checked comes in. Weights are safetensors, code that comes with a model is never run.
Beside `cross_encoder` the only file that knows how the attributes of sentence-transformers and transformers are
called.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from nvr_rag.encoders.model_files import ModelFiles
from nvr_rag.encoders.spec import SPEC_FILE, EncoderSpec
from nvr_rag.encoders.tokens import TokenizerTraits
from nvr_rag.errors import EncoderError

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer

UNLIMITED_TOKENS = 512  # the budget of a model that names none


def load_model(files: ModelFiles, device: str | None, threads: int | None) -> SentenceTransformer:
    """Load a checked directory in float32. Raises EncoderError when the libraries cannot, or when the parts do not fit.

    `device` is a torch device, by default the fastest there is; `threads` sets torch's CPU threads for the process.
    """
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.util import get_device_name

    if threads is not None:
        torch.set_num_threads(threads)
    try:
        with quiet():
            model = SentenceTransformer(
                str(files.directory),
                device="cpu",
                trust_remote_code=False,
                local_files_only=True,
                model_kwargs={"use_safetensors": True, "dtype": torch.float32},
            )
        _check_model(model, files)
        return model.to(device or get_device_name()).eval()
    except EncoderError:
        raise
    except Exception as error:  # whatever the libraries raise about a model: it cannot be used
        raise EncoderError(f"the model in {files.directory} cannot be loaded: {error}") from error


def spec_of(model: SentenceTransformer, files: ModelFiles) -> EncoderSpec:
    """The spec beside the weights, or else the one that the model's own configuration amounts to. Raises EncoderError
    when the file is damaged or promises what the model does not do."""
    if not (files.directory / SPEC_FILE).exists():
        return _derived_spec(model, files)
    spec = EncoderSpec.load(files.directory)
    _check_spec(spec, model, files)
    return spec


def traits_of(model: SentenceTransformer) -> TokenizerTraits:
    """How the model wants its tokens."""
    tokenizer = model.tokenizer
    return TokenizerTraits(
        pad_id=tokenizer.pad_token_id or 0,
        pad_type_id=tokenizer.pad_token_type_id,
        pad_left=tokenizer.padding_side == "left",
        cut_left=tokenizer.truncation_side == "left",
        type_ids="token_type_ids" in tokenizer.model_input_names,
        plain_special=bool(tokenizer.split_special_tokens),
    )


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bar and no report from transformers: what matters in them is checked, and raised, by us."""
    from transformers.utils import logging

    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.set_verbosity(50)  # critical
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _check_model(model: SentenceTransformer, files: ModelFiles) -> None:
    """Raise EncoderError when the parts do not make a text encoder, which the libraries let pass."""
    transformer: Any = model[0]
    where = files.directory
    if "text" not in transformer.modality_config or "message" in transformer.modality_config:
        raise EncoderError(f"the model in {where} does not read plain text; use a text encoder")
    if not getattr(model.tokenizer, "is_fast", False):
        raise EncoderError(f"the tokenizer in {where} has no fast form; save it as tokenizer.json")
    missing = made_up(transformer.auto_model, but="pooler")
    if missing:
        raise EncoderError(
            f"the weights in {where} lack {missing[0]} ({len(missing)} missing); download the model again"
        )
    rows = transformer.auto_model.get_input_embeddings().weight.shape[0]
    words = model.tokenizer.backend_tokenizer.get_vocab_size(with_added_tokens=True)
    if words > rows:
        raise EncoderError(
            f"the tokenizer in {where} has {words} tokens, its model {rows}; they do not belong together"
        )


def made_up(network: torch.nn.Module, *, but: str = "") -> list[str]:
    """Parameters that the weight files did not hold, so that transformers made them up, `but` those of a part that
    nothing reads, as sentence vectors do not read poolers."""
    loaded = {name: getattr(value, "_is_hf_initialized", False) for name, value in network.named_parameters()}
    return [name for name, found in loaded.items() if not found and but not in name.split(".")]


def _derived_spec(model: SentenceTransformer, files: ModelFiles) -> EncoderSpec:
    """The spec of a model that has none beside its weights, from its sentence-transformers configuration."""
    max_tokens = model.max_seq_length or UNLIMITED_TOKENS
    limit = positions(model)
    if limit is not None:
        max_tokens = min(max_tokens, limit)
    elif max_tokens > 1_000_000:  # how tokenizers write "no limit"
        max_tokens = UNLIMITED_TOKENS
    return EncoderSpec(
        dimension=model.get_embedding_dimension() or 0,
        max_tokens=max_tokens,
        pooling=_pooling(model),
        normalize=_normalizes(model, files),
        query_prompt=_prompt(model, "query"),
        document_prompt=_prompt(model, "document", "passage", "corpus"),
        context_bytes=min(192, max_tokens * 3 // 4),
    )


def _normalizes(model: SentenceTransformer, files: ModelFiles) -> bool:
    """Indexes compare by inner product: that of unit vectors is the cosine, and ranks as Euclidean distance does."""
    if type(model[-1]).__name__ == "Normalize" or model.similarity_fn_name == "cosine":
        return True
    if model.similarity_fn_name == "dot":
        return False
    raise EncoderError(
        f"the model in {files.directory} compares vectors by {model.similarity_fn_name} distance; indexes compare by "
        "inner product or cosine: use another model"
    )


def _prompt(model: SentenceTransformer, *names: str) -> str:
    """The first prompt under these names that is not empty: sentence-transformers adds empty ones by itself."""
    return next((prompt for name in names if (prompt := model.prompts.get(name))), "")


def _pooling(model: SentenceTransformer) -> str:
    from sentence_transformers.sentence_transformer.modules import Pooling

    modes = [module.pooling_mode for module in model if isinstance(module, Pooling)]
    return "+".join(mode if isinstance(mode, str) else "+".join(mode) for mode in modes) or "none"


def positions(model: torch.nn.Module) -> int | None:
    """How many tokens fit into the table of positions; None where positions are computed, not looked up."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and hasattr(module, "num_embeddings"):
            padding = module.padding_idx  # tables of the RoBERTa family count from behind it
            return int(module.num_embeddings) - (0 if padding is None else int(padding) + 1)
    return None


def _check_spec(spec: EncoderSpec, model: SentenceTransformer, files: ModelFiles) -> None:
    """Raise EncoderError when a spec promises what the model beside it does not do."""
    path = files.directory / SPEC_FILE
    dimension, limit, pooling = model.get_embedding_dimension() or 0, positions(model), _pooling(model)
    if spec.dimension > dimension or spec.dimension < 1:
        raise EncoderError(
            f"{path} says dimension {spec.dimension}, the model makes {dimension}; export the model again"
        )
    if limit is not None and spec.max_tokens > limit:
        raise EncoderError(f"{path} says max_tokens {spec.max_tokens}, the model reads {limit}; lower it")
    if spec.pooling != pooling:
        raise EncoderError(f"{path} says pooling {spec.pooling!r}, the model has {pooling!r}; export the model again")
