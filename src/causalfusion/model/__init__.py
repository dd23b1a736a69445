"""The transformer: blocks, embeddings, attention, KV cache, and what they cost."""
