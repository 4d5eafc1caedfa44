"""Scores of several systems, and which of their differences are real."""
