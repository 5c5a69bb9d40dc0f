"""Tiny models for the trainer: the ones that the encoders are tested with."""

from tests.unit.encoders.conftest import saved_models, tiny

__all__ = ["saved_models", "tiny"]
