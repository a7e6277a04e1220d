# shellcheck shell=bash disable=SC2034
# What is special about your cluster, all of it optional: copy to slurm/site.sh (git ignores it), and take the # away in
# front of the lines that you need. Before that a copy does what no file does. The batch scripts read it on the node.
# Before `sbatch`, read it yourself (`source slurm/site.sh`): sbatch takes its defaults from SBATCH_* variables.

# Where and on whose account jobs run.
# export SBATCH_PARTITION=gpu
# export SBATCH_ACCOUNT=my-project

# The environment with Python and accelerate.
# module load cuda
[ ! -f .venv/bin/activate ] || . .venv/bin/activate

# Or a container, one of the two. Apptainer: a command before the command.
# CONTAINER=(apptainer exec --nv --bind /data image.sif)
# Pyxis: options of srun. Mount everything under the path that it has outside.
# SRUN_OPTIONS=(--container-image=nvcr.io#nvidia/pytorch:25.10-py3 "--container-mounts=$PWD:$PWD,/data:/data" "--container-workdir=$PWD")

# Variables of the ranks. NCCL finds its interfaces by itself on most clusters.
# export NCCL_SOCKET_IFNAME=ib0
# export HF_HUB_OFFLINE=1

# Where the nodes meet, if the first one's address in Slurm or the ports from 15000 to 29999 are closed to the others.
# HEAD_ADDRESS=$(hostname -I | cut -d " " -f 1)
# HEAD_PORT=$((40000 + SLURM_JOB_ID % 1000))

# How often a job may start again, whoever restarts it, before it asks for you.
# MAX_REQUEUES=100
