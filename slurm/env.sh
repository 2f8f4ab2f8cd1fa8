# Sourced by the batch files, which are submitted from the folder above. What differs between machines stands in
# env.SITE.sh: KERASS2_SITE=juwels sbatch ... chooses one; sbatch passes the variable on.
source "$(dirname "${BASH_SOURCE[0]}")/env.${KERASS2_SITE:-generic}.sh"

export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"
# From Slurm 22.05 on srun does not take --cpus-per-task over from sbatch.
[ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"

# After a rank has failed with this code: the job back into the queue while it has been started again less than
# RESTARTS times. Not where the command refuses its arguments (2) or has saved and said what is next (75, 143).
restart() {
    case $1 in
        2 | 75 | 143) ;;
        *) [ "${SLURM_RESTART_COUNT:-0}" -ge "${RESTARTS:-0}" ] || scontrol requeue "$SLURM_JOB_ID" ;;
    esac
    exit "$1"
}
