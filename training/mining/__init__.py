"""Positive-aware hard negative mining (NV-Retriever, arXiv 2407.15831): pure NumPy, no database, no model."""
