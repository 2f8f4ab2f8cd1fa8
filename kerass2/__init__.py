"""kerass2: train Sentinel-2 models with Keras 3, on one core or on a cluster."""

__version__ = "0.1.0"
