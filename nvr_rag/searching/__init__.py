"""The steps of a search, one module each; `nvr_rag.retriever` puts them together."""
