"""A Wide ResNet with channel attention on 12 bands of BigEarthNet: cheaper than ResNet-50.

A third of the operations and a thirtieth of the weights of bigearthnet_ms; see
kerass2/models/wide_resnet.py for the source.
Data: as bigearthnet_ms.
Command: python -m kerass2.fit bigearthnet_ms_wide --strategy horovod --data DIR
"""

from kerass2.config import DataConfig, Experiment, ModelConfig, OptimizerConfig, RunConfig

EXPERIMENT = Experiment(
    name="bigearthnet_ms_wide",
    model=ModelConfig("wide_resnet"),
    data=DataConfig("bigearthnet"),
    loss="binary_crossentropy",
    optimizer=OptimizerConfig(
        "sgd", 0.1, "linear", 256, {"warmup_epochs": 5, "drop_epochs": [30, 60, 80]}
    ),
    run=RunConfig(global_batch=256, epochs=100, precision="auto"),
)
