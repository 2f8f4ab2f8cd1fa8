"""Fixtures and marks that every test may use."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

with warnings.catch_warnings():
    # TensorFlow's own import warns where JAX is installed beside it; tests turn our warnings into
    # errors.
    warnings.simplefilter("ignore")
    import tensorflow  # noqa: F401

# The one place that names the folder of real Sentinel-2 data, which is not part of the project.
SHARED_DATA = pathlib.Path(os.environ.get("KERASS2_SHARED_DATA", "../shared/data"))


# Files whose tests wait longest for each other: begun first, so that no process is left with one.
LONGEST = (
    "test_equality.py",
    "test_fit_validation.py",
    "test_fit.py",
    "test_label_training.py",
    "test_launchers.py",
    "test_interruption.py",
    "test_elastic.py",
    "test_pipeline.py",
    "test_scaling.py",
    "test_step.py",
)


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest; skip what needs the shared data where that is absent.

    A test of all strategies has the mark `horovod` where its parameter says so.
    """
    order = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))
    for item in items:
        given = getattr(getattr(item, "callspec", None), "params", {}).values()
        if any(isinstance(value, str) and value == "horovod" for value in given):
            item.add_marker("horovod")
    if SHARED_DATA.is_dir():
        return
    skip = pytest.mark.skip(reason=f"no shared data at {SHARED_DATA} (set KERASS2_SHARED_DATA)")
    for item in items:
        if "shared_data" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """The folder of real Sentinel-2 data; mark the test with `shared_data` too."""
    return SHARED_DATA.resolve()


@pytest.fixture(scope="session")
def num_gpus() -> int:
    """GPUs of this machine; skips where there is none. Mark the test with `gpu` too."""
    # Asked in a process of its own: TensorFlow keeps what it has found.
    code = "import tensorflow as tf; print('GPUs', len(tf.config.list_physical_devices('GPU')))"
    command = [sys.executable, "-c", code]
    said = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    number = int(said.rpartition("GPUs ")[2])
    if not number:
        pytest.skip("no GPU here")
    return number


CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
DRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Headless Chromium with a profile of its own, which writes down what it asks the network.

    Mark the test with `chromium` too.
    """
    if not CHROMIUM or not DRIVER:
        pytest.skip(
            "no Chromium with chromedriver (Debian: apt-get install chromium chromium-driver)"
        )
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()
