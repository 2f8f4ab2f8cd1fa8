# JURON (Juelich): nodes of 4 P100, NVLink in pairs, POWER8, under LSF: there is no sbatch. Never run there by this
# project's authors; source this file in a script for bsub, and let mpirun (or jsrun) start the ranks:
#   mpirun -np 8 python -m kerass2.fit --strategy horovod ...
source "${VENV:-.venv}/bin/activate"
