"""Tests against vLLM itself stand in `engine/`: they are collected where vLLM is installed (`make test-vllm`)."""

from __future__ import annotations

import importlib.util

collect_ignore_glob = [] if importlib.util.find_spec("vllm") else ["engine/*"]
