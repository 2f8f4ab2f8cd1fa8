# Any machine: the environment that `make setup` has made. Horovod goes over its own Gloo (TCP) under plain srun.
source "${VENV:-.venv}/bin/activate"
