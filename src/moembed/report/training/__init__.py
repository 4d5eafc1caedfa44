"""The HTML report of a run: `page` lays it out, `data` reads, `text` words.

`experts` shows the routing, `scores` the evaluations.
"""
