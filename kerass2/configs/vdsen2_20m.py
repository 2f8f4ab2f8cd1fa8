"""VDSen2 (Lanaras et al. 2018): 20 m bands to 10 m, 32 residual blocks of 256 filters.

Data: python -m kerass2.prepare PRODUCT... -o DIR
    (patches of 32 px of 20 m)
Command: python -m kerass2.fit vdsen2_20m --strategy horovod --data DIR
"""

from kerass2.config import DataConfig, Experiment, ModelConfig, OptimizerConfig, RunConfig

EXPERIMENT = Experiment(
    name="vdsen2_20m",
    model=ModelConfig("vdsen2", {"filters": 256, "blocks": 32}),
    data=DataConfig("superres_20m"),
    optimizer=OptimizerConfig("adam", 1e-4, "modified_linear", 128),
    run=RunConfig(global_batch=128, epochs=100, precision="auto"),
)
