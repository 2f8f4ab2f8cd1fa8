"""Measures. Imports everything, nobody imports it.

Records are JSON lines; the README's figures come from them.
"""
