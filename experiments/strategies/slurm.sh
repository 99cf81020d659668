#!/bin/bash
# A run on several nodes, from an activated environment: sbatch [--nodes N] experiments/strategies/slurm.sh BASE.yaml [--key value ...]
# One task per device; Lightning reads ranks and addresses from SLURM. A job that reaches its time limit, or that the
# cluster preempts with PreemptMode=REQUEUE, is queued again. It continues from its newest checkpoint, as any repeated
# command does. Without FSDP: --trainer.strategy ddp.
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
base=${1:?usage: sbatch experiments/strategies/slurm.sh BASE.yaml [--key value ...]}
shift
# the signal comes to this script alone, a minute before the time limit
trap 'scontrol requeue "$SLURM_JOB_ID" || echo "slurm.sh: the job was not queued again" >&2' USR1
# srun does not take over sbatch's --cpus-per-task
srun --kill-on-bad-exit=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" alitok fit -c "$base" -c experiments/strategies/fsdp.yaml \
  --trainer.num_nodes "$SLURM_NNODES" --trainer.devices "$SLURM_NTASKS_PER_NODE" "$@" &
wait $! || wait $!  # the signal ends the first one early
