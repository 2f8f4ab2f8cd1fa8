"""DSen2 in small: 60 m bands to 10 m without attention, at most 500 k parameters.

Data: python -m kerass2.prepare PRODUCT... -o DIR --task superres_60m --patch-size 36
    (any multiple of 6 px; 36 where the data are few)
Command: python -m kerass2.fit dsen2_60m_compact --data DIR
"""

from kerass2.config import DataConfig, Experiment, ModelConfig, OptimizerConfig, RunConfig

EXPERIMENT = Experiment(
    name="dsen2_60m_compact",
    model=ModelConfig("dsen2", {"task": "superres_60m", "filters": 48, "blocks": 6}),
    data=DataConfig("superres_60m"),
    optimizer=OptimizerConfig("adam", 1e-3, "cosine", 16),
    run=RunConfig(global_batch=16, steps=300, precision="auto"),
)
