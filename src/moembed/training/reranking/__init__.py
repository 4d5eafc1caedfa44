"""Training a reranker on pairs and their hard negatives."""
