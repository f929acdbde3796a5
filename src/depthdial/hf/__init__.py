"""The only room that knows transformers: loading, checkpoints, tokenizers, architectures, adapters."""
