"""Proofs too heavy for the test suite, run by hand; each prints one table (see Benchmarks in the README)."""
