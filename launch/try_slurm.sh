#!/usr/bin/env bash
# Try slurm.sbatch on a temporary one-node SLURM on this machine, without touching an existing SLURM:
#
#   apt-get install slurm-wlm            # Debian, Ubuntu
#   launch/try_slurm.sh FOLDER          # contains configuration, state, logs and runs; about 6 minutes on two cores
#   launch/try_slurm.sh FOLDER search   # ray_on_slurm.sbatch instead: a search that exceeds its time limit
#
# Two ranks on the CPU train on synthetic faces. Four jobs: the time limit approaches; the finished job is submitted
# again; a job is requeued in mid-epoch; a job is preempted by one of higher priority. The logs are FOLDER/job-*.out.
# Requires root or a separate account, and PYTHON or an active environment; the daemons stop with this script.
set -euo pipefail

fail() {
    echo "try_slurm.sh: error: $*" >&2
    exit 2
}

start_slurm() { # separate daemons without authentication: only for a trusted machine
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
# otherwise a requeued job would wait two minutes
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
        ((SECONDS < until)) || fail "timed out waiting for: $*; see $folder/*.log and job-*.out"
        sleep 0.5
    done
}

submit() { # NAME [--sbatch-option ...]: print the job ID
    local name=$1
    shift
    sbatch --parsable --nodes 1 --ntasks-per-node 2 --cpus-per-task 1 --gpus-per-node 0 --output "$folder/job-$name.out" \
        "$@" launch/slurm.sbatch --preset demo --out "$folder/runs/$name" --data.shards "$folder/faces" \
        --data.synthetic_samples '[1200,100,100]' --data.image_size 32 --data.loader torch --data.num_workers 0 \
        --epochs "$epochs" --runtime.tensorboard false --runtime.log_every_steps 1
}

trained() { # NAME STEPS
    [[ -f $folder/runs/$1/metrics.jsonl ]] && (($(grep -c '"kind": "steps"' "$folder/runs/$1/metrics.jsonl") >= $2))
}

search() { # print the job ID
    sbatch --parsable --nodes 1 --cpus-per-task 2 --gpus-per-node 0 --time 4 --output "$folder/job-search.out" \
        launch/ray_on_slurm.sbatch --preset demo --data.shards "$folder/faces" --data.synthetic_samples '[200,50,50]' \
        --data.image_size 32 --data.loader torch --data.num_workers 0 --epochs 4 --runtime.tensorboard false \
        --num-trials 1 --num-seeds 2 --finalists 1 --scheduler none --out "$folder/search"
}

is_over() { [[ ! $(squeue --noheader --jobs "$1" 2>/dev/null) ]]; }

tell_job() { # JOB NAME: print its log once it has ended
    within 900 is_over "$1"
    cat "$folder/job-$2.out"
    scontrol show job "$1" | grep -oE '(JobId|JobState|Restarts|ExitCode)=[^ ]*' | tr '\n' ' '
    echo
}

tell() { # JOB NAME: print its log and the status of its run
    tell_job "$@"
    echo "status.json: $(tr -d '\n{}"' <"$folder/runs/$2/status.json")"
}

[[ ${1-} && ${1-} != -* ]] || { sed -n '2,/^set /s/^#\( \|$\)//p' "$0" && exit 0; }
command -v slurmctld slurmd sbatch >/dev/null || fail "slurmctld, slurmd or sbatch not found; install slurm-wlm"
mkdir -p "$1"
folder=$(realpath "$1")
cd "$(dirname "$0")/.."
# two ranks on one machine
export GLOO_SOCKET_IFNAME=lo OMP_NUM_THREADS=1
start_slurm

if [[ ${2-} == search ]]; then
    echo "== the time limit of a search approaches"
    export SAVE_GRACE_S=40
    tell_job "$(search)" search
    cut -d , -f 1-4,6- "$folder/search/trials.csv"
    exit 0
fi

echo "== the time limit approaches"
epochs=24
export SAVE_GRACE_S=40
tell "$(submit limit --time 2)" limit

echo "== the finished run is submitted again"
: >"$folder/job-limit.out"
tell "$(submit limit --time 10)" limit

epochs=4
echo "== the job is requeued in mid-epoch"
job=$(submit requeued --time 10)
within 300 trained requeued 30
scontrol requeue "$job"
tell "$job" requeued

echo "== a job of higher priority preempts it in mid-epoch"
job=$(submit preempted --time 10)
within 300 trained preempted 30
sbatch --partition high --ntasks 2 --output "$folder/job-high.out" --wrap "sleep 5"
tell "$job" preempted
