"""Stress tests that need no data: what they ask is made on the spot, from words and sentences of our own."""
