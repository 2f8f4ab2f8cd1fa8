"""S2x in small: 20 m bands to 10 m with self-attention, at most 500 k parameters.

The default of kerass2.fit.
Command: python -m kerass2.fit
"""

from kerass2.config import DataConfig, Experiment, ModelConfig, OptimizerConfig, RunConfig

EXPERIMENT = Experiment(
    name="superres_20m_compact",
    model=ModelConfig("s2x", {"filters": 48, "blocks": 6}),
    data=DataConfig("superres_20m"),
    optimizer=OptimizerConfig("adam", 1e-3, "cosine", 16),
    run=RunConfig(global_batch=16, steps=300, precision="auto"),
)
