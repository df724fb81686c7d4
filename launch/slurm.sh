#!/bin/bash
# Trains on a SLURM cluster, and comes back by itself when it is interrupted:
#
#   sbatch --nodes=2 --gpus-per-node=8 --cpus-per-task=32 launch/slurm.sh \
#     --config configs/imagenet.py --workdir DIR
#
# What stands before launch/slurm.sh is for sbatch and wins over the lines below;
# what stands behind it is for the training. One task per node trains on all its
# GPUs; for one per GPU add --ntasks-per-node=8. $PYTHON is the Python to use,
# DIR a folder that all nodes see.
#
#SBATCH --job-name=alexnet_jax
#SBATCH --ntasks-per-node=1
#SBATCH --output=%x-%j.out
# Two minutes before the time limit the tasks get SIGTERM, and save.
#SBATCH --signal=TERM@120
# If a node fails, or a job of more importance needs it, SLURM starts this
# script again; the output continues in the same file.
#SBATCH --requeue
#SBATCH --open-mode=append

# A signal to the whole job comes here, too (scancel JOB, scancel --full): this
# shell must outlive the tasks.
trap : TERM

# A lost task makes the others end by themselves; srun waits for that. Since
# 22.05 it must be told of the CPUs again.
srun --kill-on-bad-exit=0 --wait=0 \
  ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"} \
  "${PYTHON:-python}" -m alexnet_jax.main "$@"
code=$?

# The greatest exit code of all tasks. The run goes on from the newest checkpoint
# after 75 (interrupted and saved), after a kill (128 + 9 or 15), and after an
# abort (128 + 6): so JAX ends the tasks that have lost another one.
case $code in 75 | 134 | 137 | 143) ;; *) exit "$code" ;; esac
restarts=${SLURM_RESTART_COUNT:-0}
if ((restarts >= ${MAX_RESTARTS:-100})); then
  echo "launch/slurm.sh: $restarts restarts are enough" >&2
  exit "$code"
fi
# A job that scancel ended, or SLURM requeues already, is COMPLETING.
scontrol show job --oneliner "$SLURM_JOB_ID" | grep -q 'JobState=RUNNING' ||
  exit "$code"
echo "launch/slurm.sh: restart $((restarts + 1)) follows (exit code $code)" >&2
scontrol requeue "$SLURM_JOB_ID"
