"""The page of an evaluation: `data` reads the result, `text` words it, `tables` and `cards` show it."""

from moembed.report.comparison.layout import write_page
from moembed.report.comparison.text import summary

__all__ = ["summary", "write_page"]
