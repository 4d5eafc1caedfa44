"""The page of an evaluation: `rows` sorts the result, `text` words it, `tables` and `cards` show it."""

from moembed.report.comparison.page import write_comparison
from moembed.report.comparison.text import summary

__all__ = ["summary", "write_comparison"]
