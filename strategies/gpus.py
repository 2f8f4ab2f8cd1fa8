"""Which GPU a rank computes on."""

from __future__ import annotations


def pin(local_rank: int) -> bool:
    """Give this process one GPU of its host, and let it take memory as it needs it.

    TensorFlow would take all memory of all GPUs: ranks that share one could not start, and nothing
    would be left for NCCL. Call it before any other use of TensorFlow.

    Returns:
        True if this host has GPUs.
    """
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        return False
    own = gpus[local_rank % len(gpus)]
    tf.config.set_visible_devices(own, "GPU")
    tf.config.experimental.set_memory_growth(own, True)
    return True
