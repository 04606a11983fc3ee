#!/usr/bin/env bash
# Train Ada-DF by DeepSpeed's launcher; `launch/deepspeed.sh --help` explains.
set -euo pipefail

usage() {
    cat <<'END'
usage: [NAME=VALUE ...] launch/deepspeed.sh [--key value ...]

One node, all its GPUs (without any: one process; NPROC=2 for two on the CPU):
    launch/deepspeed.sh --preset affectnet7 --data.shards DIR

The nodes of a hostfile, started from one of them, which reaches the others by ssh without a password (and pdsh):
    HOSTFILE=launch/hostfile launch/deepspeed.sh --preset affectnet7 --data.shards DIR --out /shared/runs/affectnet7

All words go to `python -m adadf_dist.train --engine deepspeed`, whose --help explains them; launch/deepspeed.json shows
what --deepspeed.config may set. The engine does not need this launcher: launch/torchrun.sh and launch/slurm.sbatch take
--engine deepspeed as well. The environment decides the rest:
    HOSTFILE       nodes and their GPUs, as in launch/hostfile.example (default: /job/hostfile if there is one)
    NPROC          ranks on this node (default: one a GPU, or 1); with a hostfile its slots say
    MASTER_PORT    free on the first node (default: 29500)
    OMP_NUM_THREADS  threads a rank (default: its share of this node's cores; to other nodes by ~/.deepspeed_env)
    PYTHON         the interpreter, at the same path on every node (default: python)
DeepSpeed hands NCCL_... and PYTHON... on to other nodes, and what a file ~/.deepspeed_env says, NAME=VALUE a line.
END
}

fail() {
    echo "deepspeed.sh: error: $*" >&2
    exit 2
}

check_hostfile() { # DeepSpeed would train on this node alone without one, and answer a wrong line with a traceback
    local host rest
    [[ -f $1 ]] || fail "HOSTFILE: $1: no such file; write a line 'HOST slots=GPUS' for each node into it, as in" \
        "launch/hostfile.example, or leave HOSTFILE out to train on this node"
    while read -r host rest; do
        [[ -z $host || $host == \#* || $rest =~ ^slots=[1-9][0-9]*([[:space:]]|$) ]] ||
            fail "HOSTFILE: $1: '$host${rest:+ $rest}' is not 'HOST slots=GPUS'"
    done <"$1"
    grep -qE '^[[:space:]]*[^#[:space:]]' "$1" || fail "HOSTFILE: $1 names no node; write 'HOST slots=GPUS' for each"
}

if [[ ${1-} == --help || ${1-} == -h ]]; then
    usage
    exit 0
fi
PYTHON=${PYTHON:-python} MASTER_PORT=${MASTER_PORT:-29500}
command -v "$PYTHON" >/dev/null || fail "PYTHON: $PYTHON is not found; activate the environment, or name its interpreter"
"$PYTHON" -c 'import sys; from importlib.util import find_spec; sys.exit(find_spec("deepspeed") is None)' ||
    fail "PYTHON: $PYTHON has no DeepSpeed; install adadf_dist[deepspeed]"
[[ $MASTER_PORT =~ ^[0-9]+$ ]] || fail "MASTER_PORT is $MASTER_PORT; give the number of a free port"
[[ ${HOSTFILE-} || ! -f /job/hostfile ]] || HOSTFILE=/job/hostfile

where=()
if [[ ${HOSTFILE-} ]]; then
    [[ -z ${NPROC-} ]] || fail "NPROC is $NPROC, but the slots in HOSTFILE=$HOSTFILE say how many ranks; give one of them"
    check_hostfile "$HOSTFILE"
    where=(--hostfile "$HOSTFILE")
else
    [[ -z ${NPROC-} || $NPROC =~ ^[1-9][0-9]*$ ]] || fail "NPROC is $NPROC; give the number of ranks on this node"
    [[ -z ${NPROC-} || -z ${CUDA_VISIBLE_DEVICES-} ]] ||
        fail "NPROC=$NPROC and CUDA_VISIBLE_DEVICES=$CUDA_VISIBLE_DEVICES both choose GPUs; give one of them"
    gpus=$("$PYTHON" -c 'import torch; print(torch.cuda.device_count())') || fail "PYTHON: $PYTHON has no torch"
    ((gpus)) || export DS_ACCELERATOR=cpu
    ranks=${NPROC:-$((gpus ? gpus : 1))}
    [[ ${CUDA_VISIBLE_DEVICES-} ]] || where=(--num_gpus "$ranks") # the name it has on the CPU too
    if [[ -z ${OMP_NUM_THREADS-} ]]; then
        OMP_NUM_THREADS=$(($(nproc) / ranks))
        export OMP_NUM_THREADS=$((OMP_NUM_THREADS ? OMP_NUM_THREADS : 1))
    fi
    [[ ! -d /sys/class/net/lo ]] || export GLOO_SOCKET_IFNAME=${GLOO_SOCKET_IFNAME:-lo}
fi

# shellcheck disable=SC2317 # called by the trap
stop() { # DeepSpeed's launcher ends at a signal without a word to what it started on this node
    if [[ ${HOSTFILE-} ]]; then kill -TERM "$launcher" 2>/dev/null; else pkill -TERM -P "$launcher"; fi
}

"$PYTHON" -m deepspeed.launcher.runner "${where[@]}" --master_port "$MASTER_PORT" --no_local_rank \
    --module adadf_dist.train --engine deepspeed "$@" &
launcher=$!
trap stop TERM INT
code=0
wait "$launcher" || code=$?
while kill -0 "$launcher" 2>/dev/null; do # a signal interrupts `wait`, the ranks go on saving
    code=0
    wait "$launcher" || code=$?
done
exit "$code"
