#!/usr/bin/env bash
# Train Ada-DF on one or several nodes; see `launch/torchrun.sh --help`.
set -euo pipefail

usage() {
    cat <<'END'
usage: [NAME=VALUE ...] launch/torchrun.sh [--key value ...]

One node, all its GPUs (without GPUs: one process; NPROC=2 for two on the CPU):
    launch/torchrun.sh --preset affectnet7 --data.shards DIR

Four nodes, the same command on each except for NODE_RANK (not needed if HOST is the rendezvous node's own hostname):
    NNODES=4 NODE_RANK=0 RDZV_ENDPOINT=HOST:29500 launch/torchrun.sh --preset affectnet7 --data.shards DIR

Elastic: starts with one node, lets up to four join, and continues with the remaining nodes if some leave:
    NNODES=1:4 RDZV_ENDPOINT=HOST:29500 launch/torchrun.sh --preset affectnet7 --data.shards DIR

All arguments are passed to `python -m adadf_dist.train` (see its --help). Environment variables:
    NPROC          ranks on this node (default: one per GPU, or 1)
    NNODES         number of nodes, or MIN:MAX (default: 1)
    RDZV_ENDPOINT  HOST:PORT of the node that hosts the rendezvous; its port must be open to the others
    NODE_RANK      0 on HOST, another number elsewhere; the rendezvous assigns the actual ranks
    RDZV_TIMEOUT_S  seconds to wait for HOST:PORT on the other nodes (default: 120)
    RDZV_ID        distinguishes runs on the same endpoint (default: adadf)
    MAX_RESTARTS   number of restarts of failed ranks (default: 0 on one node, 3 on several)
    OMP_NUM_THREADS  threads per rank (default: this node's cores / ranks)
    PYTHON         Python interpreter (default: python)
END
}

fail() {
    echo "torchrun.sh: error: $*" >&2
    exit 2
}

renamed() { # OLD NEW: take the value of a variable of the last release, for one more release
    [[ ${!1-} && -z ${!2-} ]] || return 0
    echo "torchrun.sh: $1 is now $2" >&2
    export "$2=${!1}"
}

is_whole() { [[ $1 =~ ^(0|[1-9][0-9]*)$ ]]; }

reach() { # wait until something listens at HOST PORT
    local until=$((SECONDS + RDZV_TIMEOUT_S))
    # shellcheck disable=SC2016 # expanded by the inner bash
    until timeout 2 bash -c 'exec 3<>"/dev/tcp/$0/$1"' "$1" "$2" 2>/dev/null; do
        ((SECONDS < until)) || fail "RDZV_ENDPOINT: $1:$2 is not reachable after $RDZV_TIMEOUT_S s; start the node" \
            "that hosts it, open its port, or increase RDZV_TIMEOUT_S"
        sleep 1
    done
}

is_this_node() { # same check as in torch
    case $1 in localhost | 127.* | ::1 | "$(hostname)" | "$(hostname -f 2>/dev/null)") return 0 ;; esac
    [[ " $(hostname -I 2>/dev/null) " == *" $1 "* ]]
}

if [[ ${1-} == --help || ${1-} == -h ]]; then
    usage
    exit 0
fi
renamed RDZV_WAIT RDZV_TIMEOUT_S
PYTHON=${PYTHON:-python} NNODES=${NNODES:-1} RDZV_TIMEOUT_S=${RDZV_TIMEOUT_S:-120}
[[ $NNODES =~ ^[1-9][0-9]*(:[1-9][0-9]*)?$ ]] || fail "NNODES is $NNODES; must be a number of nodes or MIN:MAX"
is_whole "$RDZV_TIMEOUT_S" || fail "RDZV_TIMEOUT_S is $RDZV_TIMEOUT_S; must be an integer number of seconds"
command -v "$PYTHON" >/dev/null || fail "PYTHON: $PYTHON not found; activate the environment or set PYTHON"
if [[ -z ${NPROC-} ]]; then
    NPROC=$("$PYTHON" -c 'import torch; print(torch.cuda.device_count() or 1)') || fail "PYTHON: no torch in $PYTHON"
fi
[[ $NPROC =~ ^[1-9][0-9]*$ ]] || fail "NPROC is $NPROC; must be the number of ranks on this node"
if [[ -z ${OMP_NUM_THREADS-} ]]; then
    OMP_NUM_THREADS=$(($(nproc) / NPROC)) # torchrun would default to 1
    export OMP_NUM_THREADS=$((OMP_NUM_THREADS ? OMP_NUM_THREADS : 1))
fi

if [[ $NNODES == 1 ]]; then
    [[ ! -d /sys/class/net/lo ]] || export GLOO_SOCKET_IFNAME=${GLOO_SOCKET_IFNAME:-lo}
    where=(--standalone)
else
    [[ ${RDZV_ENDPOINT-} =~ ^(.+):([0-9]+)$ ]] ||
        fail "RDZV_ENDPOINT is ${RDZV_ENDPOINT:-not set}; NNODES=$NNODES requires HOST:PORT, the same on every node"
    host=${BASH_REMATCH[1]} port=${BASH_REMATCH[2]}
    # a separate TCP store per rendezvous: with the agents' shared store, a node that joins later waits for an address
    # that it never receives, and brings down the others after a minute (torch 2.15)
    export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=${TORCH_DISABLE_SHARE_RDZV_TCP_STORE:-1}
    where=(--nnodes "$NNODES" --rdzv-backend c10d --rdzv-endpoint "$RDZV_ENDPOINT" --rdzv-id "${RDZV_ID:-adadf}")
    if [[ -n ${NODE_RANK-} ]]; then
        is_whole "$NODE_RANK" || fail "NODE_RANK is $NODE_RANK; must be 0 on $host and another number elsewhere"
        where+=(--rdzv-conf "is_host=$((NODE_RANK == 0 ? 1 : 0))")
    fi
    if [[ -n ${NODE_RANK-} ]] && ((NODE_RANK > 0)) || { [[ -z ${NODE_RANK-} ]] && ! is_this_node "$host"; }; then
        reach "$host" "$port"
    fi
fi
restarts=${MAX_RESTARTS:-$([[ $NNODES == 1 ]] && echo 0 || echo 3)}
is_whole "$restarts" || fail "MAX_RESTARTS is $restarts; must be a number of restarts (0 for none)"
# exec: signals to this process reach torchrun, which forwards them to its ranks
exec "$PYTHON" -m torch.distributed.run "${where[@]}" --nproc-per-node "$NPROC" --max-restarts "$restarts" \
    -m adadf_dist.train "$@"
