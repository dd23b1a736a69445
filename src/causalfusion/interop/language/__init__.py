"""Language models of other libraries: their configurations, weights and tokenizers, to ours and back."""
