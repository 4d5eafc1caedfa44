"""An HTTP server for one model: OpenAI's and TEI's routes, search, a page, and what operators need."""
