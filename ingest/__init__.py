"""The ingestion worker: folders and texts in, searchable documents out."""
