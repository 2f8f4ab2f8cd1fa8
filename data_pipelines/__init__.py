"""Pixels on disk to tf.data of dict examples. Imports nothing of ours."""
