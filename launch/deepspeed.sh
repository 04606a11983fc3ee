#!/usr/bin/env bash
# Train Ada-DF using DeepSpeed's launcher; see `launch/deepspeed.sh --help`.
set -euo pipefail

usage() {
    cat <<'END'
usage: [NAME=VALUE ...] launch/deepspeed.sh [--key value ...]

One node, all its GPUs (without GPUs: one process; NPROC=2 for two on the CPU):
    launch/deepspeed.sh --preset affectnet7 --data.shards DIR

The nodes of a hostfile, started from one of them (requires passwordless ssh to the others, and pdsh):
    HOSTFILE=launch/hostfile launch/deepspeed.sh --preset affectnet7 --data.shards DIR --out /shared/runs/affectnet7

All arguments are passed to `python -m adadf_dist.train --engine deepspeed` (see its --help); launch/deepspeed.json is
an example for --deepspeed.config_file. The engine does not require this launcher: launch/torchrun.sh and launch/slurm.sbatch
also accept --engine deepspeed. Environment variables:
    HOSTFILE       nodes and their GPUs, as in launch/hostfile.example (default: /job/hostfile if it exists)
    NPROC          ranks on this node (default: one per GPU, or 1); with a hostfile, its slots determine it
    MASTER_PORT    free port on the first node (default: 29500)
    OMP_NUM_THREADS  threads per rank (default: this node's cores / ranks; set it for other nodes in ~/.deepspeed_env)
    PYTHON         Python interpreter, at the same path on every node (default: python)
DeepSpeed passes NCCL_..., PYTHON... and the lines NAME=VALUE of ~/.deepspeed_env to other nodes.
END
}

fail() {
    echo "deepspeed.sh: error: $*" >&2
    exit 2
}

check_hostfile() { # without it, DeepSpeed would use only this node; an invalid line would cause a traceback
    local host rest
    [[ -f $1 ]] || fail "HOSTFILE: $1: no such file; create it with a line 'HOST slots=GPUS' for each node, as in" \
        "launch/hostfile.example, or unset HOSTFILE to train on this node"
    while read -r host rest; do
        [[ -z $host || $host == \#* || $rest =~ ^slots=[1-9][0-9]*([[:space:]]|$) ]] ||
            fail "HOSTFILE: $1: '$host${rest:+ $rest}' is not 'HOST slots=GPUS'"
    done <"$1"
    grep -qE '^[[:space:]]*[^#[:space:]]' "$1" || fail "HOSTFILE: $1 contains no node; add lines 'HOST slots=GPUS'"
}

if [[ ${1-} == --help || ${1-} == -h ]]; then
    usage
    exit 0
fi
PYTHON=${PYTHON:-python} MASTER_PORT=${MASTER_PORT:-29500}
command -v "$PYTHON" >/dev/null || fail "PYTHON: $PYTHON not found; activate the environment or set PYTHON"
"$PYTHON" -c 'import sys; from importlib.util import find_spec; sys.exit(find_spec("deepspeed") is None)' ||
    fail "PYTHON: DeepSpeed is not installed in $PYTHON; pip install 'adadf_dist[deepspeed]'"
[[ $MASTER_PORT =~ ^[0-9]+$ ]] || fail "MASTER_PORT is $MASTER_PORT; must be the number of a free port"
[[ ${HOSTFILE-} || ! -f /job/hostfile ]] || HOSTFILE=/job/hostfile

where=()
if [[ ${HOSTFILE-} ]]; then
    [[ -z ${NPROC-} ]] || fail "NPROC is $NPROC, but the slots in HOSTFILE=$HOSTFILE set the ranks; unset one of them"
    check_hostfile "$HOSTFILE"
    where=(--hostfile "$HOSTFILE")
else
    [[ -z ${NPROC-} || $NPROC =~ ^[1-9][0-9]*$ ]] || fail "NPROC is $NPROC; must be the number of ranks on this node"
    [[ -z ${NPROC-} || -z ${CUDA_VISIBLE_DEVICES-} ]] ||
        fail "NPROC=$NPROC and CUDA_VISIBLE_DEVICES=$CUDA_VISIBLE_DEVICES both select GPUs; unset one of them"
    gpus=$("$PYTHON" -c 'import torch; print(torch.cuda.device_count())') || fail "PYTHON: no torch in $PYTHON"
    ((gpus)) || export DS_ACCELERATOR=cpu
    ranks=${NPROC:-$((gpus ? gpus : 1))}
    [[ ${CUDA_VISIBLE_DEVICES-} ]] || where=(--num_gpus "$ranks") # also sets the number of ranks on the CPU
    if [[ -z ${OMP_NUM_THREADS-} ]]; then
        OMP_NUM_THREADS=$(($(nproc) / ranks))
        export OMP_NUM_THREADS=$((OMP_NUM_THREADS ? OMP_NUM_THREADS : 1))
    fi
    [[ ! -d /sys/class/net/lo ]] || export GLOO_SOCKET_IFNAME=${GLOO_SOCKET_IFNAME:-lo}
fi

# shellcheck disable=SC2317 # called by the trap
stop() { # DeepSpeed's launcher does not forward signals to its processes on this node
    if [[ ${HOSTFILE-} ]]; then kill -TERM "$launcher" 2>/dev/null; else pkill -TERM -P "$launcher"; fi
}

"$PYTHON" -m deepspeed.launcher.runner "${where[@]}" --master_port "$MASTER_PORT" --no_local_rank \
    --module adadf_dist.train --engine deepspeed "$@" &
launcher=$!
trap stop TERM INT
code=0
wait "$launcher" || code=$?
while kill -0 "$launcher" 2>/dev/null; do # a signal interrupts `wait` while the ranks are still saving
    code=0
    wait "$launcher" || code=$?
done
exit "$code"
