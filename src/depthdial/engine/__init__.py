"""The engine that runs a model: prompts, decoding, sampling, teacher forcing, and `generate`."""
