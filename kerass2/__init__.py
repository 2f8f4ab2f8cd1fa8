"""kerass2: train Sentinel-2 models with Keras 3, on one core or on a cluster."""

from kerass2 import registration

__version__ = "0.1.0"

registration.register_with_keras()
