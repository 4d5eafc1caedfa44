"""Losses: pure functions of tensors. Vectors in, one scalar out: no model, no gather, no coefficient."""
