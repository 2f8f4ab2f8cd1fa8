"""DSen2 (Lanaras et al. 2018): 20 m bands to 10 m, residual blocks without attention, 128 filters.

Data: python -m kerass2.prepare PRODUCT... -o DIR
    (patches of 32 px of 20 m)
Command: python -m kerass2.fit dsen2_20m --strategy horovod --data DIR
Score in the paper of S2x: RMSE 35.85 after 96 h on one P100, 45 tiles (bicubic 125.69).
"""

from kerass2.config import DataConfig, Experiment, ModelConfig, OptimizerConfig, RunConfig

EXPERIMENT = Experiment(
    name="dsen2_20m",
    model=ModelConfig("dsen2", {"filters": 128, "blocks": 6}),
    data=DataConfig("superres_20m"),
    optimizer=OptimizerConfig("adam", 1e-4, "modified_linear", 128),
    run=RunConfig(global_batch=128, epochs=100, precision="auto"),
)
