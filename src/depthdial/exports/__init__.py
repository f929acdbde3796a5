"""Ways out as files: a route as a folder of transformers, a GGUF file, a draft model, or a reference for vLLM."""
