"""Proving that a model helps: retrieval metrics, honest intervals, a BM25 baseline and BEIR-layout tasks."""
