#!/bin/bash
# A run on several nodes: sbatch experiments/strategies/slurm.sh BASE.yaml [--key value ...]
# One task per device; Lightning reads ranks and addresses from SLURM. A job that is preempted or reaches its time limit
# is put back into the queue. It continues from its newest checkpoint, as any repeated command does.
#SBATCH --job-name=alitok
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=B:USR1@60
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail
base=$1
shift
trap 'scontrol requeue "$SLURM_JOB_ID"' USR1  # sent to this script alone, a minute before the time limit
srun --kill-on-bad-exit=1 alitok fit -c "$base" -c experiments/strategies/fsdp.yaml \
  --trainer.num_nodes "$SLURM_NNODES" --trainer.devices 8 "$@" &
wait $! || wait $!  # the signal ends the first one early
