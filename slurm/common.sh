# shellcheck shell=bash
# Functions shared by the scripts in this folder. They run in ZeroTune's folder, from which they were submitted.
if declare -F launch >/dev/null; then
    return # already read: sweep.sh reads this file, and then runs job.sh
fi

# Defaults that slurm/site.sh may change (slurm/site.example.sh). Its modules and activations may fail under `set -u`.
CONTAINER=()
SRUN_OPTIONS=()
MAX_REQUEUES=${MAX_REQUEUES:-100}
if [ -n "${ZEROTUNE_SITE-}" ]; then
    [ -r "$ZEROTUNE_SITE" ] || { echo "slurm: ZEROTUNE_SITE: cannot read $ZEROTUNE_SITE" >&2; exit 64; }
    # shellcheck source=slurm/site.example.sh
    . "$ZEROTUNE_SITE"
elif [ -f slurm/site.sh ]; then
    # shellcheck source=slurm/site.example.sh
    . slurm/site.sh
elif [ -f .venv/bin/activate ]; then
    # shellcheck disable=SC1091
    . .venv/bin/activate
fi
set -euo pipefail

NOT_FINISHED=75 # exit code of a job that can be submitted again as it is

say() {
    printf 'slurm: %s\n' "$*" >&2
}

refuse() {
    say "$*"
    exit 64
}

[ -n "${SLURM_JOB_ID-}" ] || [ "${0##*/}" = chain.sh ] ||
    refuse "this is not a SLURM job: start the script with sbatch $0, not with bash"

[[ $MAX_REQUEUES =~ ^[0-9]{1,9}$ ]] || refuse "MAX_REQUEUES must be a whole number, not '$MAX_REQUEUES'"
# Counts restarts by anyone: a job that crashes its nodes is requeued by Slurm and never reaches the end of its script.
if [ "${SLURM_RESTART_COUNT:-0}" -gt "$MAX_REQUEUES" ]; then
    say "this is restart $SLURM_RESTART_COUNT, more than MAX_REQUEUES ($MAX_REQUEUES) allows." \
        "The same command resumes from there"
    exit "$NOT_FINISHED"
fi

# In a job array, the bare job number would mean all its tasks.
job() {
    printf '%s' "${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}"
}

# Sets ACCELERATE to NAME of a leading --accelerate NAME or --accelerate=NAME, and WORDS to the remaining arguments.
# shellcheck disable=SC2034 # for the caller
take_accelerate() {
    ACCELERATE=
    case ${1-} in
        --accelerate=*) ACCELERATE=${1#*=} && shift ;;
        --accelerate) ACCELERATE=${2-} && shift "$(($# > 1 ? 2 : 1))" ;;
        *) WORDS=("$@") && return ;;
    esac
    [ -n "$ACCELERATE" ] || refuse "--accelerate needs a name from accelerate_configs/, or a file"
    WORDS=("$@")
}

# srun inherits these from sbatch, and would give the single launcher of a node only one task's share of the node.
step() (
    unset SLURM_CPUS_PER_TASK SRUN_CPUS_PER_TASK SLURM_GPUS_PER_TASK SLURM_TRES_PER_TASK SLURM_NTASKS_PER_GPU
    exec srun --export=ALL --input=none --ntasks-per-node=1 "$@"
)

on_every_node() {
    local gpus=()
    # With --gpus-per-task, a step with one task per node would get the GPUs of one task.
    [ -z "${SLURM_GPUS_PER_TASK-}" ] ||
        gpus=(--gres="gpu:$((${SLURM_GPUS_PER_TASK##*:} * SLURM_NTASKS / SLURM_JOB_NUM_NODES))")
    step --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" "${gpus[@]}" "$@"
}

# Runs a command on the first node, without GPUs, in the environment that has Python.
on_first_node() (
    unset SLURM_GPUS SLURM_GPUS_PER_NODE SLURM_GPUS_PER_SOCKET SLURM_NTASKS
    step --nodes=1 --ntasks=1 --relative=0 --gres=none "${SRUN_OPTIONS[@]}" "${CONTAINER[@]}" "$@"
)

# shellcheck disable=SC2034 # for the caller
# Sets ANSWER to what a command prints between the marks; ignores output of a site's prolog, $BASH_ENV or a container.
ask() {
    local said
    said=$("$@") || return
    [[ $said == *"[zerotune: "*" :zerotune]"* ]] || refuse "unexpected output: $said"
    said=${said#*"[zerotune: "}
    ANSWER=${said%" :zerotune]"*}
}

# Sets RANKS, RANKS_PER_NODE and GPUS_PER_NODE: one rank per GPU, or per task where the job has no GPUs.
count_ranks() {
    local said gpus tasks=1
    [ -z "${SLURM_NTASKS-}" ] || tasks=$SLURM_TASKS_PER_NODE # if no tasks were asked for, these are cores
    case $tasks in
        *,*) refuse "the nodes have different numbers of tasks ($tasks): use --ntasks-per-node=N" ;;
    esac
    # shellcheck disable=SC2016 # expands on each node
    said=$(on_every_node bash -c 'echo "[zerotune: ${SLURM_GPUS_ON_NODE:-0} :zerotune]"') || node_lost
    gpus=$(grep -o '\[zerotune: [0-9]* :zerotune\]' <<<"$said" | tr -cd '0-9\n' | sort -nu) ||
        refuse "unexpected output: $said"
    case $gpus in
        *[!0-9]*) refuse "the nodes have different numbers of GPUs (${gpus//$'\n'/, }), but every node needs the same" \
            "number: use --gpus-per-node=N instead of --gpus" ;;
    esac
    RANKS_PER_NODE=${tasks%%(*}
    GPUS_PER_NODE=$gpus
    if [ "$gpus" != 0 ]; then
        case $RANKS_PER_NODE in
            1 | "$gpus") RANKS_PER_NODE=$gpus ;;
            *) refuse "$RANKS_PER_NODE tasks but $gpus GPUs on each node: every rank needs one GPU. Omit" \
                "--ntasks-per-node, or use --gpus-per-node=$RANKS_PER_NODE" ;;
        esac
    elif [ -n "${SLURM_GPUS_ON_NODE-}" ]; then
        refuse "the job has $SLURM_GPUS_ON_NODE GPUs per node (--exclusive?), but did not ask for them:" \
            "use --gpus-per-node=$SLURM_GPUS_ON_NODE"
    fi
    RANKS=$((SLURM_JOB_NUM_NODES * RANKS_PER_NODE))
    export RANKS RANKS_PER_NODE
}

# Finds the file of an accelerate config from a name, a path, or nothing.
accelerate_config() {
    local name=$1 file known single="^distributed_type: *[\"']?(NO|MULTI_CPU)[\"']? *(#|\$)"
    if [ -z "$name" ]; then
        name=ddp
        [ "$GPUS_PER_NODE" != 0 ] || name=cpu_ddp
        if [ "$RANKS" = 1 ]; then
            name=one_gpu
            [ "$GPUS_PER_NODE" != 0 ] || name=cpu
        fi
    fi
    file=$name
    [ -f "$file" ] || file=accelerate_configs/$name.yaml
    if [ ! -f "$file" ]; then
        known=$(cd accelerate_configs && printf '%s ' *.yaml)
        refuse "--accelerate: there is no $name; known are ${known//.yaml/}or any file"
    fi
    if [ "$RANKS" != 1 ] && grep -Eq "$single" "$file"; then
        refuse "--accelerate: $file starts one process, but this job has $RANKS ranks ($SLURM_JOB_NUM_NODES nodes with" \
            "$RANKS_PER_NODE each): use ddp, zero2 or another, or ask for one GPU"
    fi
    printf '%s' "$file"
}

# One launcher on each node: launch CONFIG SCRIPT ARGUMENTS... In a folder of `zerotune init`, the installed script.
launch() {
    local config=$1 script=("$2") head address several=()
    [ -f "$2" ] || script=(--module "$(dirname "$2").main")
    shift 2
    if [ "$SLURM_JOB_NUM_NODES" != 1 ]; then
        head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
        address=$(scontrol show node "$head" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p') # a node name may not resolve
        several=(--main_process_ip "${HEAD_ADDRESS:-$address}" --same_network
            --main_process_port "${HEAD_PORT:-$((15000 + SLURM_JOB_ID % 15000))}"
            --rdzv_backend static --deepspeed_multinode_launcher standard)
    fi
    # No --wait limit: the first rank may still be merging long after the others have ended.
    on_every_node --label --kill-on-bad-exit=1 --wait=0 "${SRUN_OPTIONS[@]}" "${CONTAINER[@]}" \
        bash slurm/node.sh --config_file "$config" --num_processes "$RANKS" --num_machines "$SLURM_JOB_NUM_NODES" \
        "${several[@]}" "${script[@]}" "$@"
}

# Sets CODE to the exit code of the background process $1. `wait` also returns after a trap, which sets INTERRUPTED.
# shellcheck disable=SC2034 # CODE is for the caller
await() {
    while :; do
        INTERRUPTED=
        CODE=0
        wait "$1" || CODE=$?
        [ -n "$INTERRUPTED" ] || break
    done
}

# Slurm requeues a job when it notices that a node is down. An earlier requeue could get the same node again.
node_lost() {
    local patience
    patience=$(scontrol show config | sed -n 's/^SlurmdTimeout *= \([0-9]*\).*/\1/p') || patience=300
    say "not every node answers (see the line of srun above);" \
        "waiting $((patience + 60)) s for Slurm to notice a lost node and requeue this job"
    sleep "$((patience + 60))"
    say "Slurm reports no lost node; not requeued. The same command resumes from the last checkpoint"
    exit "$NOT_FINISHED"
}

# The state of this job. The controller may be busy or restarting.
state_of_job() {
    local pause
    for pause in 2 4 8 16; do
        squeue --noheader --jobs="$(job)" --format=%T && return
        sleep "$pause"
    done
    squeue --noheader --jobs="$(job)" --format=%T
}

# Requeues this job, which resumes where it stopped; $1 is the reason.
requeue() {
    local restarts=${SLURM_RESTART_COUNT:-0} state
    if ! state=$(state_of_job); then
        say "$1; not requeued: Slurm does not answer. The same command resumes from there"
    elif [ "$state" != RUNNING ]; then # a requeue would revive a cancelled job
        say "$1; not requeued: the job is ${state:-gone}. The same command resumes from there"
    elif [ "$restarts" -ge "$MAX_REQUEUES" ]; then
        say "$1; not requeued: it was restarted $restarts times already (MAX_REQUEUES)." \
            "The same command resumes from there"
    else
        say "$1; requeued, restart $((restarts + 1))"
        scontrol requeue "$(job)" && exit 0
        say "Slurm refuses to requeue this job. The same command resumes from there"
    fi
    exit "$NOT_FINISHED"
}

# Ends a job that was warned by its time limit before it made progress: requeued, it would be warned again, for ever.
# Does nothing if the warning is a preemption, or came with more than an hour left. $1 is the least work it must do.
refuse_short_limit() {
    local shown end
    shown=$(SLURM_TIME_FORMAT=standard scontrol --oneliner show job "$(job)") || return 0
    [[ $shown == *" PreemptTime=None "* ]] || return 0
    end=$(date +%s --date="$(sed -n 's/.* EndTime=\([^ ]*\) .*/\1/p' <<<"$shown")" 2>/dev/null) || return 0 # no limit
    [ "$((end - $(date +%s)))" -ge 3600 ] ||
        refuse "the time limit is too short for the warning (--signal), the start and $1: ask for more --time"
}
