"""ResNet-50 on 12 bands of BigEarthNet, as in the classification paper.

Data: python -m kerass2.prepare ARCHIVE -o DIR --task bigearthnet
    (native grids, enlarged in the model, or all bands at 10 m; 43 or 19 classes: the data decide)
Command: python -m kerass2.fit bigearthnet_ms --strategy horovod --data DIR
Large batches (from 8192 on the paper's recipe is unstable): bigearthnet_ms_lars
Rare classes: --set loss_options.positive_weights=inverse_sqrt, data.oversample=0.01, loss=focal
Mix-up: --set data.mix_up=0.2 (the paper gives no parameter)
Hardware and score in the paper: 4 V100 (JUWELS), 347 s an epoch; F1 0.79 (macro 0.607).
"""

from kerass2.config import DataConfig, Experiment, ModelConfig, OptimizerConfig, RunConfig

# 0.1 k n / 256 with n = 64 patches on each of k GPUs; a step of the paper's 4 GPUs has 256.
EXPERIMENT = Experiment(
    name="bigearthnet_ms",
    model=ModelConfig("resnet", {"depth": 50}),
    data=DataConfig("bigearthnet"),
    loss="binary_crossentropy",
    optimizer=OptimizerConfig(
        "sgd", 0.1, "linear", 256, {"warmup_epochs": 5, "drop_epochs": [30, 60, 80]}
    ),
    run=RunConfig(global_batch=256, epochs=100, precision="auto"),
)
