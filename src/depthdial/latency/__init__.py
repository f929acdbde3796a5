"""The latency model: measured passes on one machine, as a cost that every room above can read; numpy and scipy."""
