"""Measurements. Each module's `run()` returns figures; ratios are between things timed in one run on one machine."""
