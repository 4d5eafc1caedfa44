"""An index in a vector database: its rows written there, and asked for again."""
