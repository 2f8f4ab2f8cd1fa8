"""One file an experiment: EXPERIMENT, and a docstring with command, hardware, time and score."""
