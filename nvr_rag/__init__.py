"""nvr-rag: a self-hosted retrieval backend for RAG that gets better with use."""

__version__ = "0.1.0"
