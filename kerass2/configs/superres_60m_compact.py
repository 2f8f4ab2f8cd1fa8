"""S6x in small: 60 m bands to 10 m with self-attention, at most 500 k parameters.

Patches of 36 px: of a 768 px granule only 128 px of 60 m are left, and 96 px leave too few of them.
Data: python -m kerass2.prepare PRODUCT... -o DIR --task superres_60m --patch-size 36
    (default: a made-up granule, cut like this)
Command: python -m kerass2.fit superres_60m_compact --data DIR
"""

from kerass2.config import DataConfig, Experiment, ModelConfig, OptimizerConfig, RunConfig

EXPERIMENT = Experiment(
    name="superres_60m_compact",
    model=ModelConfig("s6x", {"filters": 48, "blocks": 6, "block": 36}),
    data=DataConfig("superres_60m"),
    optimizer=OptimizerConfig("adam", 1e-3, "cosine", 16),
    run=RunConfig(global_batch=16, steps=300, precision="auto"),
)
