# JUWELS (Juelich): nodes of 4 V100. Never run there by this project's authors: module names change with the stage.
#   sbatch --account=PROJECT --partition=gpus --gres=gpu:4 --ntasks-per-node=4 --cpus-per-task=10 slurm/fit_horovod.sbatch ...
module load GCC OpenMPI CUDA cuDNN NCCL
source "${VENV:-.venv}/bin/activate"

# Horovod built with MPI and NCCL needs no TCP between nodes.
export SLURM_MPI_TYPE=pmix
# For multiworker: gRPC, over IP on InfiniBand where that is there.
export KERASS2_INTERFACE="${KERASS2_INTERFACE:-ib0}"
