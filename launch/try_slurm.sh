#!/usr/bin/env bash
# Try slurm.sbatch on a real SLURM of one node, this machine, without touching one that is installed:
#
#   apt-get install slurm-wlm            # Debian, Ubuntu
#   launch/try_slurm.sh FOLDER          # configuration, state, logs and runs lie there; about 6 minutes on two cores
#   launch/try_slurm.sh FOLDER search   # ray_on_slurm.sbatch instead: a search that is longer than its time limit
#
# Two ranks on the CPU train on drawn faces. Four jobs: the time limit nears; somebody requeues it in mid-epoch; a job
# of higher priority preempts it; the finished one is submitted again. FOLDER/job-*.out says what happened. Needs root
# or an account of its own, and PYTHON or an active environment; the daemons end with this script.
set -euo pipefail

fail() {
    echo "try_slurm.sh: error: $*" >&2
    exit 2
}

start_slurm() { # daemons of our own, their only secret an agreement to trust each other: for a machine that you trust
    local host
    host=$(hostname -s)
    mkdir -p "$folder/state" "$folder/spool"
    cat >"$folder/cgroup.conf" <<END
CgroupPlugin=cgroup/v1
CgroupAutomount=no
END
    cat >"$folder/slurm.conf" <<END
ClusterName=trial
SlurmctldHost=$host(127.0.0.1)
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/none
CredType=cred/none
# or a requeued job would wait two minutes
AuthInfo=cred_expire=5
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=sched_interval=5,bf_interval=10
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldPort=16817
SlurmdPort=16818
NodeName=$host NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=low Nodes=$host Default=YES PriorityTier=1 GraceTime=60
PartitionName=high Nodes=$host PriorityTier=10 PreemptMode=OFF
END
    export SLURM_CONF=$folder/slurm.conf
    trap 'kill $(jobs -p) 2>/dev/null; wait' EXIT
    slurmctld -D -c &>"$folder/slurmctld.log" &
    slurmd -D -c &>"$folder/slurmd.log" &
    within 30 node_is_idle
}

node_is_idle() { [[ $(sinfo --noheader --partition low --format %t 2>/dev/null) == idle ]]; }

within() { # SECONDS COMMAND...: wait until it succeeds
    local until=$((SECONDS + $1))
    shift
    until "$@"; do
        ((SECONDS < until)) || fail "waited too long for: $*; see $folder/*.log and job-*.out"
        sleep 0.5
    done
}

submit() { # NAME [--sbatch-option ...]: the job's number
    local name=$1
    shift
    sbatch --parsable --nodes 1 --ntasks-per-node 2 --cpus-per-task 1 --gpus-per-node 0 --output "$folder/job-$name.out" \
        "$@" launch/slurm.sbatch --preset demo --out "$folder/runs/$name" --data.shards "$folder/faces" \
        --data.embedded_faces '[1200,100,100]' --data.image_size 32 --data.loader torch --data.workers 0 \
        --epochs "$epochs" --runtime.tensorboard false --runtime.log_every 1
}

trained() { # NAME STEPS
    [[ -f $folder/runs/$1/metrics.jsonl ]] && (($(grep -c '"kind": "steps"' "$folder/runs/$1/metrics.jsonl") >= $2))
}

search() { # the job's number
    sbatch --parsable --nodes 1 --cpus-per-task 2 --gpus-per-node 0 --time 4 --output "$folder/job-search.out" \
        launch/ray_on_slurm.sbatch --preset demo --data.shards "$folder/faces" --data.embedded_faces '[200,50,50]' \
        --data.image_size 32 --data.loader torch --data.workers 0 --epochs 4 --runtime.tensorboard false \
        --trials 1 --seeds 2 --finalists 1 --scheduler none --out "$folder/search"
}

is_over() { [[ ! $(squeue --noheader --jobs "$1" 2>/dev/null) ]]; }

tell_job() { # JOB NAME: what it said, once it is over
    within 900 is_over "$1"
    cat "$folder/job-$2.out"
    scontrol show job "$1" | grep -oE '(JobId|JobState|Restarts|ExitCode)=[^ ]*' | tr '\n' ' '
    echo
}

tell() { # JOB NAME: how its run went
    tell_job "$@"
    echo "status.json: $(tr -d '\n{}"' <"$folder/runs/$2/status.json")"
}

[[ ${1-} && ${1-} != -* ]] || { sed -n '2,/^set /s/^#\( \|$\)//p' "$0" && exit 0; }
command -v slurmctld slurmd sbatch >/dev/null || fail "slurmctld, slurmd and sbatch are not all here: install slurm-wlm"
mkdir -p "$1"
folder=$(realpath "$1")
cd "$(dirname "$0")/.."
# this SLURM only: two ranks on one machine
export GLOO_SOCKET_IFNAME=lo OMP_NUM_THREADS=1
start_slurm

if [[ ${2-} == search ]]; then
    echo "== the time limit of a search nears"
    export SAVE_S=40
    tell_job "$(search)" search
    cut -d , -f 1-4,6- "$folder/search/trials.csv"
    exit 0
fi

echo "== the time limit nears"
epochs=24
export SAVE_S=40
tell "$(submit limit --time 2)" limit

echo "== the finished run is submitted again"
: >"$folder/job-limit.out"
tell "$(submit limit --time 10)" limit

epochs=4
echo "== somebody requeues it in mid-epoch"
job=$(submit requeued --time 10)
within 300 trained requeued 30
scontrol requeue "$job"
tell "$job" requeued

echo "== a job of higher priority preempts it in mid-epoch"
job=$(submit preempted --time 10)
within 300 trained preempted 30
sbatch --partition high --ntasks 2 --output "$folder/job-high.out" --wrap "sleep 5"
tell "$job" preempted
