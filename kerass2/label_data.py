"""What training on labels needs to know of all of them: frequencies, and which patches are rare."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from data_pipelines.spec import DataError
from kerass2.config import LABEL_TASK, ConfigError, Experiment

if TYPE_CHECKING:
    from data_pipelines.spec import DatasetSpec, Source
    from kerass2.label_losses import Counts
    from strategies.base import Strategy

TARGET = "labels"


def resolve(experiment: Experiment, spec: DatasetSpec) -> Experiment:
    """The experiment with the model's inputs and classes as the data have them, where it says none.

    Raises:
        ConfigError: settings for labels, and the experiment has none.
    """
    data = experiment.data
    if data.task != LABEL_TASK:
        settings = {"data.mix_up": data.mix_up, "data.oversample": data.oversample}
        for name, value in settings.items():
            if value:
                raise ConfigError(f"{name} = {value} is for labels; {experiment.name} has none")
        return experiment
    if TARGET not in spec.targets:
        raise DataError(f"data of task {spec.task} without {TARGET}: {spec.describe()}")
    found = {
        "inputs": "bands" if "bands" in spec.inputs else "native",
        "classes": len(spec.targets[TARGET].bands),
    }
    model = dataclasses.replace(experiment.model, options={**found, **experiment.model.options})
    return dataclasses.replace(experiment, model=model)


def prepare_training(
    experiment: Experiment, source: Source, strategy: Strategy
) -> tuple[Source, Counts | None]:
    """The training split with rare classes repeated, and its counts where the loss asks for them.

    Ranks read the labels together, each a part. Every rank calls it.

    Raises:
        ConfigError: a loss for images where there are labels, or the other way round.
        DataError: a damaged record.
    """
    from data_pipelines import oversampling
    from kerass2 import label_losses

    labelled = experiment.data.task == LABEL_TASK
    if labelled != (experiment.loss in label_losses.LABEL_LOSSES):
        there = ", ".join(label_losses.LABEL_LOSSES)
        raise ConfigError(
            f"loss {experiment.loss!r} with data of {experiment.data.task}: labels, and nothing "
            f"else, are for {there}"
        )
    threshold = experiment.data.oversample
    counted = labelled and label_losses.needs_counts(dict(experiment.loss_options))
    if not threshold and not counted:
        return source, None
    rank, ranks = strategy.rank, strategy.world_size
    own = oversampling.read_labels(source, TARGET, first=rank, step=ranks)
    labels = _sum_bytes(strategy, own) if ranks > 1 else own
    # Of the split as it is: repetitions are a remedy of their own.
    counts = (labels.sum(axis=0, dtype=np.int64), len(labels)) if counted else None
    if threshold:
        times = oversampling.repeats(labels, threshold, experiment.run.seed)
        source = oversampling.Oversampled(source, times)
    return source, counts


def _sum_bytes(strategy: Strategy, table: Any) -> Any:
    """Sum of 0 and 1 over ranks, 48 labels in one number: the sum of disjoint rows is exact."""
    flat = table.ravel()
    bits = np.zeros(-(-flat.size // 48) * 48, np.float64)
    bits[: flat.size] = flat
    packed = bits.reshape(-1, 48) @ (2.0 ** np.arange(48))
    total = strategy.sum(packed).astype(np.int64)
    summed = (total[:, None] >> np.arange(48)) & 1
    return summed.ravel()[: flat.size].reshape(table.shape).astype(np.uint8)
