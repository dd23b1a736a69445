"""CausalFusion: causal diffusion transformers, between autoregression and diffusion (arXiv 2412.12095)."""

__version__ = "0.1.0"
