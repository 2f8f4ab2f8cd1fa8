"""S2x as in the paper: 20 m bands to 10 m, residual blocks with self-attention, 128 filters.

Data: python -m kerass2.prepare PRODUCT... -o DIR
    (patches of 32 px of 20 m)
Ablations: --set model.options.attention=false, model.options.attention_at=end,
    model.options.mean_shift=false, model.options.fusion=branches
Command: python -m kerass2.fit superres_20m --strategy horovod --data DIR
Hardware and score in the paper: 1 to 16 P100 (JURON), 24 h, RMSE 35 to 36 on 45 tiles
(DSen2 35.85, bicubic 125.69).
"""

from kerass2.config import DataConfig, Experiment, ModelConfig, OptimizerConfig, RunConfig

EXPERIMENT = Experiment(
    name="superres_20m",
    model=ModelConfig("s2x", {"filters": 128, "blocks": 6, "block": 32}),
    data=DataConfig("superres_20m"),
    optimizer=OptimizerConfig("adam", 1e-4, "modified_linear", 128),
    run=RunConfig(global_batch=128, epochs=100, precision="auto"),
)
