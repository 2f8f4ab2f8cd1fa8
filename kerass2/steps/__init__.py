"""One compiled training step for each Keras backend; train.py calls it."""
