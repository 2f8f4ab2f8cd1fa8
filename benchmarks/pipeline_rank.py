"""One process of `python -m benchmarks pipeline`: a rank that reads, or one whose memory counts."""

from __future__ import annotations

import json
import pathlib
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

# Batches of a source before each of its turns.
WARM_UP = 4


def read(case: dict[str, Any]) -> None:
    """Patches a second of this rank, from each source in turn; written to `case["output"]`."""
    from rasterio.errors import NotGeoreferencedWarning

    from data_pipelines import batching, datasets

    warnings.simplefilter("ignore", NotGeoreferencedWarning)
    iterators = {}
    for name in case["readers"]:
        dataset = batching.build_training_dataset(
            _open(name, case),
            seed=1,
            global_batch=case["batch"],
            rank=case["rank"],
            world_size=case["world_size"],
            start_step=0,
            stop_step=10**6,
            augment=case.get("augment", ()),
        )
        iterators[name] = iter(_enlarge(dataset) if name in case.get("enlarged", ()) else dataset)
    rates: dict[str, list[float]] = {name: [] for name in iterators}
    local = case["batch"] // case["world_size"]
    for _ in range(case["rounds"]):
        for name, batches in iterators.items():
            for _ in range(WARM_UP):
                next(batches)
            begin, count = time.perf_counter(), 0
            while time.perf_counter() - begin < case["seconds"]:
                next(batches)
                count += local
            rates[name].append(count / (time.perf_counter() - begin))
            # What this one reads ahead must not be read in the next one's turn.
            time.sleep(1.2 * datasets.STEPS_AHEAD * local / rates[name][-1])
    pathlib.Path(case["output"]).write_text(json.dumps(rates))


def _enlarge(dataset: Any) -> Iterator[Any]:
    """Its batches, each taken through the part of a classifier that brings bands to 10 m."""
    import keras
    import tensorflow as tf

    from kerass2.models import labels

    model = keras.Model(*labels.open_inputs("native", "all"))
    enlarge = tf.function(lambda inputs: model(inputs))
    return (enlarge(batch["inputs"]) for batch in dataset)


def _open(name: str, case: dict[str, Any]) -> Any:
    """The source of that name."""
    from benchmarks import pipeline_data
    from data_pipelines import cube_source, store

    path = pathlib.Path(case["sources"][name])
    if name == "memory map":
        return pipeline_data.ArraySource(path)
    if name == "geotiff":
        spec = store.read_manifest(case["sources"]["tfrecord"]).spec
        return pipeline_data.GeoTIFFSource(path, spec)
    if name == "cube":
        return cube_source.open_source(path, case["task"], "train", only_split="train")
    return store.open_source(path, "train")


def memory(case: dict[str, Any]) -> None:
    """Write or read a data set; print the peak of anonymous resident memory [MiB].

    Not the pages of mapped files, which Linux takes back when it needs them.
    """
    from benchmarks.pipeline_memory import stream
    from data_pipelines import cube, store

    peak, stop = [0], threading.Event()

    def look() -> None:
        status = pathlib.Path("/proc/self/status").read_text()
        peak[0] = max(peak[0], int(status.split("RssAnon:")[1].split()[0]))

    def watch() -> None:
        while not stop.wait(0.01):
            look()

    thread = threading.Thread(target=watch)
    thread.start()
    if case["kind"] == "write":
        spec = cube.build_spec(cube.TASKS["superres_20m"])
        store.write(case["folder"], spec, stream(case["count"]), file_format=case["format"])
    else:
        source = store.open_source(case["folder"], "train")
        for start in range(0, len(source), 32):
            source.read(np.arange(start, min(start + 32, len(source))))
    stop.set()
    thread.join()
    look()
    print(peak[0] / 1024)


if __name__ == "__main__":
    {"read": read, "memory": memory}[sys.argv[1]](json.loads(sys.argv[2]))
