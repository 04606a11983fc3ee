#!/usr/bin/env bash
# Train Ada-DF on one node or many; `launch/torchrun.sh --help` explains.
set -euo pipefail

usage() {
    cat <<'END'
usage: [NAME=VALUE ...] launch/torchrun.sh [--key value ...]

One node, all its GPUs (without any: one process; NPROC=2 for two on the CPU):
    launch/torchrun.sh --preset affectnet7 --data.shards DIR

Four nodes, the same line on each but for its NODE_RANK; or leave NODE_RANK out where HOST is the name by which
that node knows itself:
    NNODES=4 NODE_RANK=0 RDZV_ENDPOINT=HOST:29500 launch/torchrun.sh --preset affectnet7 --data.shards DIR

Elastic: starts with one node, takes in up to four as they come, goes on with those that are left:
    NNODES=1:4 RDZV_ENDPOINT=HOST:29500 launch/torchrun.sh --preset affectnet7 --data.shards DIR

All words go to `python -m adadf_dist.train`, whose --help explains them. The environment decides the rest:
    NPROC          ranks on this node (default: one a GPU, or 1)
    NNODES         nodes, or MIN:MAX (default: 1)
    RDZV_ENDPOINT  HOST:PORT of the node that keeps the rendezvous, its port open to the others
    NODE_RANK      0 on HOST, another number elsewhere; which rank is where is the rendezvous' to say
    RDZV_WAIT      seconds to wait for HOST:PORT on the other nodes (default: 120)
    RDZV_ID        tells two runs on one endpoint apart (default: adadf)
    MAX_RESTARTS   times that failed ranks are started again (default: 0 on one node, 3 on several)
    OMP_NUM_THREADS  threads a rank (default: its share of this node's cores)
    PYTHON         the interpreter (default: python)
END
}

fail() {
    echo "torchrun.sh: error: $*" >&2
    exit 2
}

is_whole() { [[ $1 =~ ^(0|[1-9][0-9]*)$ ]]; }

reach() { # wait until something listens at HOST PORT
    local until=$((SECONDS + RDZV_WAIT))
    # shellcheck disable=SC2016 # expanded by the inner bash
    until timeout 2 bash -c 'exec 3<>"/dev/tcp/$0/$1"' "$1" "$2" 2>/dev/null; do
        ((SECONDS < until)) || fail "RDZV_ENDPOINT: $1:$2 was not reached after $RDZV_WAIT s; start the node that" \
            "keeps it, open its port, or raise RDZV_WAIT"
        sleep 1
    done
}

is_this_node() { # as torch recognises it
    case $1 in localhost | 127.* | ::1 | "$(hostname)" | "$(hostname -f 2>/dev/null)") return 0 ;; esac
    [[ " $(hostname -I 2>/dev/null) " == *" $1 "* ]]
}

if [[ ${1-} == --help || ${1-} == -h ]]; then
    usage
    exit 0
fi
PYTHON=${PYTHON:-python} NNODES=${NNODES:-1} RDZV_WAIT=${RDZV_WAIT:-120}
[[ $NNODES =~ ^[1-9][0-9]*(:[1-9][0-9]*)?$ ]] || fail "NNODES is $NNODES; give a number of nodes, or MIN:MAX"
is_whole "$RDZV_WAIT" || fail "RDZV_WAIT is $RDZV_WAIT; give whole seconds"
command -v "$PYTHON" >/dev/null || fail "PYTHON: $PYTHON is not found; activate the environment, or name its interpreter"
if [[ -z ${NPROC-} ]]; then
    NPROC=$("$PYTHON" -c 'import torch; print(torch.cuda.device_count() or 1)') || fail "PYTHON: $PYTHON has no torch"
fi
[[ $NPROC =~ ^[1-9][0-9]*$ ]] || fail "NPROC is $NPROC; give the number of ranks on this node"
if [[ -z ${OMP_NUM_THREADS-} ]]; then
    OMP_NUM_THREADS=$(($(nproc) / NPROC)) # torchrun itself would say 1
    export OMP_NUM_THREADS=$((OMP_NUM_THREADS ? OMP_NUM_THREADS : 1))
fi

if [[ $NNODES == 1 ]]; then
    [[ ! -d /sys/class/net/lo ]] || export GLOO_SOCKET_IFNAME=${GLOO_SOCKET_IFNAME:-lo}
    where=(--standalone)
else
    [[ ${RDZV_ENDPOINT-} =~ ^(.+):([0-9]+)$ ]] ||
        fail "RDZV_ENDPOINT is ${RDZV_ENDPOINT:-not set}; NNODES=$NNODES needs HOST:PORT, the same on every node"
    host=${BASH_REMATCH[1]} port=${BASH_REMATCH[2]}
    # ranks meet at a store of their own each time: with the agents' one, a node that comes later waits for an address
    # that nobody tells it, and takes the others along after a minute (torch 2.15)
    export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=${TORCH_DISABLE_SHARE_RDZV_TCP_STORE:-1}
    where=(--nnodes "$NNODES" --rdzv-backend c10d --rdzv-endpoint "$RDZV_ENDPOINT" --rdzv-id "${RDZV_ID:-adadf}")
    if [[ -n ${NODE_RANK-} ]]; then
        is_whole "$NODE_RANK" || fail "NODE_RANK is $NODE_RANK; give 0 on $host and other numbers elsewhere"
        where+=(--rdzv-conf "is_host=$((NODE_RANK == 0 ? 1 : 0))")
    fi
    if [[ -n ${NODE_RANK-} ]] && ((NODE_RANK > 0)) || { [[ -z ${NODE_RANK-} ]] && ! is_this_node "$host"; }; then
        reach "$host" "$port"
    fi
fi
restarts=${MAX_RESTARTS:-$([[ $NNODES == 1 ]] && echo 0 || echo 3)}
is_whole "$restarts" || fail "MAX_RESTARTS is $restarts; give a number of restarts, 0 for none"
# exec: a signal to this process is one to torchrun, which hands it to its ranks
exec "$PYTHON" -m torch.distributed.run "${where[@]}" --nproc-per-node "$NPROC" --max-restarts "$restarts" \
    -m adadf_dist.train "$@"
