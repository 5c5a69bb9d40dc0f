"""The same folder kept in sync by other tools, each as its own documentation does it; see tests.bench.ingest."""
