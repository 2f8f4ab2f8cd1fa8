"""Measures. Imports everything, nobody imports it. Records are JSON lines; claims in the README come from them."""
