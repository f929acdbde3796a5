"""How a model runs: prompts, decoding, sampling, teacher forcing, and `generate`."""
