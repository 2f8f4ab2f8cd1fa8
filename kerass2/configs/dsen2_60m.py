"""DSen2 (Lanaras et al. 2018): 60 m bands to 10 m, residual blocks without attention, 128 filters.

Data: python -m kerass2.prepare PRODUCT... -o DIR --task superres_60m
    (patches of 96 px of 60 m)
Command: python -m kerass2.fit dsen2_60m --strategy horovod --data DIR
"""

from kerass2.config import DataConfig, Experiment, ModelConfig, OptimizerConfig, RunConfig

EXPERIMENT = Experiment(
    name="dsen2_60m",
    model=ModelConfig("dsen2", {"task": "superres_60m", "filters": 128, "blocks": 6}),
    data=DataConfig("superres_60m"),
    optimizer=OptimizerConfig("adam", 1e-4, "modified_linear", 32),
    run=RunConfig(global_batch=32, epochs=100, precision="auto"),
)
