"""The HTML report of a run: `page` lays it out, `reading` reads the run, `text` words it.

`experts` shows the routing, `scores` the evaluations.
"""
