"""Pixels on disk to tf.data of dict examples. Imports nothing of strategies, kerass2 or benchmarks."""
