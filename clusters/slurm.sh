#!/usr/bin/env bash
# CoNR on Slurm: a Ray cluster inside one allocation, which runs one command and ends with it.
#
# At most nodes x time below: Slurm then ends the job.
#
#   sbatch clusters/slurm.sh python -m conr_ray.tune --address auto --space search_spaces/cifar10.yaml \
#       --gpus-per-worker 1 --name first
#   sbatch clusters/slurm.sh ... --name first --resume        if it did not finish in time
#
# Run it from the root of a checkout whose .venv is set up (`make .venv/.ready`), on a file system
# that all nodes see. Results go to CONR_RAY_STORAGE, else to runs/ there. To change: the lines below,
# or the same as arguments of sbatch; your site may require --partition and --account. WANDB_API_KEY
# comes from the environment of sbatch, which Slurm passes on.

#SBATCH --job-name=conr_ray
#SBATCH --nodes=3
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-node=1
#SBATCH --time=08:00:00
# The loss of a node ends the trials on it, not the job.
#SBATCH --no-kill
# Time to write checkpoints before the limit.
#SBATCH --signal=B:TERM@120

set -euo pipefail
test $# -gt 0 || { echo "usage: sbatch $0 COMMAND..." >&2; exit 2; }
source .venv/bin/activate
ulimit -n 65536 || echo "only $(ulimit -n) open files" >&2

# Other users run processes on these nodes: only holders of this token may talk to the cluster. It is
# in memory and in the environment of this job, but in no file.
RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')
export RAY_AUTH_TOKEN RAY_AUTH_MODE=token
# At the default, info, Ray writes each job's environment to a log file.
export RAY_LOGGER_LEVEL=warning RAY_USAGE_STATS_ENABLED=0
# Otherwise some connections by ray:// fail (ray-project/ray#63202).
export GRPC_ENABLE_FORK_SUPPORT=0

# Three ports, different for each job since a node may serve several: above Ray's client ports, below
# Linux's ephemeral ports.
port=$((24000 + SLURM_JOB_ID % 2900 * 3))
temp=/tmp/ray-$SLURM_JOB_ID
head=$(hostname --ip-address | awk '{print $1}')
gpus=${SLURM_GPUS_ON_NODE:-0}
start=(ray start --block --num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="$gpus" --disable-usage-stats
    --object-store-memory=2000000000)

# The first node is the cluster's head, and a worker too.
"${start[@]}" --head --node-ip-address="$head" --port="$port" --temp-dir="$temp" \
    --ray-client-server-port=$((port + 1)) --dashboard-host=127.0.0.1 --dashboard-port=$((port + 2)) &
started=($!)
stop() {
    kill "${started[@]}" 2>/dev/null || true
    wait || true
}
trap stop EXIT

export RAY_ADDRESS=$head:$port
others=$((SLURM_JOB_NUM_NODES - 1))
if ((others > 0)); then
    # srun does not inherit these from sbatch: the cores, and surviving the loss of a node.
    srun --nodes="$others" --ntasks="$others" --exclude="$(hostname -s)" --kill-on-bad-exit=0 \
        --no-kill --cpus-per-task="$SLURM_CPUS_PER_TASK" "${start[@]}" --address="$RAY_ADDRESS" &
    started+=($!)
fi

# Wait for all nodes, at most a minute: a search also uses nodes that join later.
for _ in $(seq 60); do
    joined=$(python -c 'import ray; ray.init("auto", log_to_driver=False); print(len(ray.nodes()))' \
        2>/dev/null || echo 0)
    ((joined == SLURM_JOB_NUM_NODES)) && break
    sleep 1
done
echo "$joined of $SLURM_JOB_NUM_NODES nodes"

# In the background and waited for, so that the signal before the limit reaches it: as SIGINT, which
# bash makes background commands ignore.
env --default-signal=INT "$@" &
command=$!
trap 'kill -INT $command' TERM
wait "$command" || { status=$?; wait "$command" || true; exit "$status"; }
