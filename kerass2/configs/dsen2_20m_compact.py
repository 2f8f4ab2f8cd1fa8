"""DSen2 in small: 20 m bands to 10 m without attention, at most 500 k parameters.

Data: python -m kerass2.prepare PRODUCT... -o DIR
    (patches of 32 px of 20 m)
Command: python -m kerass2.fit dsen2_20m_compact
"""

from kerass2.config import DataConfig, Experiment, ModelConfig, OptimizerConfig, RunConfig

EXPERIMENT = Experiment(
    name="dsen2_20m_compact",
    model=ModelConfig("dsen2", {"filters": 48, "blocks": 6}),
    data=DataConfig("superres_20m"),
    optimizer=OptimizerConfig("adam", 1e-3, "cosine", 16),
    run=RunConfig(global_batch=16, steps=300, precision="auto"),
)
