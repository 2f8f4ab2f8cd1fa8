"""A small ResNet on 12 bands of BigEarthNet, by the paper's schedule in 20 epochs.

What two cores train: 18 layers of a fifth of the width, 0.4 million parameters.
Data: as bigearthnet_ms.
Command: python -m kerass2.fit bigearthnet_ms_compact --data DIR
"""

from kerass2.config import DataConfig, Experiment, ModelConfig, OptimizerConfig, RunConfig

EXPERIMENT = Experiment(
    name="bigearthnet_ms_compact",
    model=ModelConfig("resnet", {"depth": 18, "width": 12}),
    data=DataConfig("bigearthnet"),
    loss="binary_crossentropy",
    optimizer=OptimizerConfig(
        "sgd", 0.1, "linear", 256, {"warmup_epochs": 1, "drop_epochs": [6, 12, 16]}
    ),
    run=RunConfig(global_batch=64, epochs=20, precision="auto"),
)
