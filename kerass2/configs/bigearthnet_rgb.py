"""ResNet-50 on red, green and blue of BigEarthNet, as in the classification paper.

Data, options: as bigearthnet_ms, whose data sets fit.
Command: python -m kerass2.fit bigearthnet_rgb --strategy horovod --data DIR
From ImageNet: --init resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5 (of keras.applications)
Hardware and score in the paper: 4 V100 (JUWELS); F1 0.77 (macro 0.574).
"""

from kerass2.config import DataConfig, Experiment, ModelConfig, OptimizerConfig, RunConfig

EXPERIMENT = Experiment(
    name="bigearthnet_rgb",
    model=ModelConfig("resnet", {"depth": 50, "bands": "rgb"}),
    data=DataConfig("bigearthnet"),
    loss="binary_crossentropy",
    optimizer=OptimizerConfig(
        "sgd", 0.1, "linear", 256, {"warmup_epochs": 5, "drop_epochs": [30, 60, 80]}
    ),
    run=RunConfig(global_batch=256, epochs=100, precision="auto"),
)
