# shellcheck shell=bash disable=SC2034
# Settings of your cluster, all optional. Copy this file to slurm/site.sh (ignored by git) and uncomment the lines that
# you need. An unchanged copy has no effect. The batch scripts read it on the node. Before `sbatch`, run
# `source slurm/site.sh` in your shell: sbatch takes its defaults from SBATCH_* variables.

# Partition and account.
# export SBATCH_PARTITION=gpu
# export SBATCH_ACCOUNT=my-project

# The environment that contains Python and accelerate.
# module load cuda
[ ! -f .venv/bin/activate ] || . .venv/bin/activate

# Or a container; choose one of the two. Apptainer: a command in front of the command.
# CONTAINER=(apptainer exec --nv --bind /data image.sif)
# Pyxis: options of srun. Mount everything under the same path as outside.
# SRUN_OPTIONS=(--container-image=nvcr.io#nvidia/pytorch:25.10-py3 "--container-mounts=$PWD:$PWD,/data:/data" "--container-workdir=$PWD")

# Environment variables of the ranks. On most clusters NCCL finds its network interfaces by itself.
# export NCCL_SOCKET_IFNAME=ib0
# export HF_HUB_OFFLINE=1

# Address and port of the first node, if its address in Slurm, or ports 15000 to 29999, cannot be reached by the others.
# HEAD_ADDRESS=$(hostname -I | cut -d " " -f 1)
# HEAD_PORT=$((40000 + SLURM_JOB_ID % 1000))

# The maximum number of restarts of a job, whatever their cause.
# MAX_REQUEUES=100
