"""ResNet-50 on 12 bands of BigEarthNet in large batches: LARS, polynomial decay.

What the classification paper names as the way past a global batch of 8192. The decay is the
optimizer's, inside its trust ratio, and not the model's.
Data: as bigearthnet_ms.
Command: python -m kerass2.fit bigearthnet_ms_lars --strategy horovod --data DIR
    (on few GPUs: --set run.accumulation_steps=N)
"""

from kerass2.config import DataConfig, Experiment, ModelConfig, OptimizerConfig, RunConfig

# Rate, decay and power of You, Gitman and Ginsburg 2017 for ResNet-50: 6.4 at a batch of 4096 in
# their notation is 0.4 at 256; warm-up as in the paper's recipe.
EXPERIMENT = Experiment(
    name="bigearthnet_ms_lars",
    model=ModelConfig("resnet", {"depth": 50, "l2": 0.0}),
    data=DataConfig("bigearthnet"),
    loss="binary_crossentropy",
    optimizer=OptimizerConfig(
        "lars",
        0.4,
        "polynomial",
        256,
        {"warmup_epochs": 5, "power": 2.0},
        {"weight_decay": 5e-4},
    ),
    run=RunConfig(global_batch=8192, epochs=100, precision="auto"),
)
