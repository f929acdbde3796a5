"""Ways to generate text faster or smaller, side by side in one run: `python -m benchmarks.peers --out DIR`."""
