"""S6x as in the paper: 60 m bands to 10 m, residual blocks with self-attention, 128 filters.

Data: python -m kerass2.prepare PRODUCT... -o DIR --task superres_60m
    (patches of 96 px of 60 m, as DSen2's; default: a made-up granule in patches of 36 px)
Ablations: as superres_20m.
Command: python -m kerass2.fit superres_60m --strategy horovod --data DIR
Hardware in the paper: 1 to 16 P100 (JURON), 45 tiles; its batch of 32 a GPU is the reference.
"""

from kerass2.config import DataConfig, Experiment, ModelConfig, OptimizerConfig, RunConfig

EXPERIMENT = Experiment(
    name="superres_60m",
    model=ModelConfig("s6x", {"filters": 128, "blocks": 6, "block": 96}),
    data=DataConfig("superres_60m"),
    optimizer=OptimizerConfig("adam", 1e-4, "modified_linear", 32),
    run=RunConfig(global_batch=32, epochs=100, precision="auto"),
)
