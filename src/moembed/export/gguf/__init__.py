"""GGUF files that llama.cpp runs."""
