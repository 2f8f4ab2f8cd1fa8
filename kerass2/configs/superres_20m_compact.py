"""S2x in small: 20 m bands to 10 m with self-attention, at most 500 k parameters.

The default of kerass2.fit, and what `make demo` trains.
Data: python -m kerass2.prepare PRODUCT... -o DIR
    (patches of 32 px of 20 m)
Ablations: --set model.options.attention=false, model.options.attention_at=end,
    model.options.mean_shift=false, model.options.fusion=branches
Command: python -m kerass2.fit --strategy horovod
Hardware, time: 2 ranks on 2 cores of a Xeon with AMX, 39 s of training (bfloat16).
Score: RMSE 118.1 DN on the sample's 4 test patches, bicubic 190.6; the same by multiworker.
"""

from kerass2.config import DataConfig, Experiment, ModelConfig, OptimizerConfig, RunConfig

EXPERIMENT = Experiment(
    name="superres_20m_compact",
    model=ModelConfig("s2x", {"filters": 48, "blocks": 6, "block": 32}),
    data=DataConfig("superres_20m"),
    optimizer=OptimizerConfig("adam", 1e-3, "cosine", 16),
    run=RunConfig(global_batch=16, steps=300, precision="auto"),
)
