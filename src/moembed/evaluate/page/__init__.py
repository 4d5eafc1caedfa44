"""The page of an evaluation: `data` reads the result, `text` words it, `tables` and `cards` show it."""

from moembed.evaluate.page.layout import write_page
from moembed.evaluate.page.text import summary

__all__ = ["summary", "write_page"]
