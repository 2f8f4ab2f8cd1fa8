"""VDSen2 (Lanaras et al. 2018): 60 m bands to 10 m, 32 residual blocks of 256 filters.

Data: python -m kerass2.prepare PRODUCT... -o DIR --task superres_60m
    (patches of 96 px of 60 m)
Command: python -m kerass2.fit vdsen2_60m --strategy horovod --data DIR
"""

from kerass2.config import DataConfig, Experiment, ModelConfig, OptimizerConfig, RunConfig

EXPERIMENT = Experiment(
    name="vdsen2_60m",
    model=ModelConfig("vdsen2", {"task": "superres_60m", "filters": 256, "blocks": 32}),
    data=DataConfig("superres_60m"),
    optimizer=OptimizerConfig("adam", 1e-4, "modified_linear", 32),
    run=RunConfig(global_batch=32, epochs=100, precision="auto"),
)
