# The arguments of `docker run` are those of torchrun, so any command of the README works with "torchrun" replaced by
# "docker run … coldstart". Without train.py or eval.py first, train.py gets them; without options of torchrun, one
# process runs on each GPU that `--gpus` lets in (on each core where there is none). docs/cloud.md: compose, Kubernetes.
#
#   docker build -t coldstart .
#
# All GPUs of this machine:
#   docker run --rm --gpus all --ipc=host --stop-timeout=120 --user "$(id -u):$(id -g)" \
#     -v /path/to/imagenet:/data:ro -v "$PWD/outputs:/outputs" coldstart model=lipsformer_swin_tiny
# The first four GPUs: --gpus 4. Evaluation:
#   … coldstart --nproc-per-node=1 eval.py checkpoint=outputs/NAME/checkpoints/best.pt output=outputs/eval.json
#
# What this machine lacks: docker run --rm --gpus all --ipc=host --entrypoint python coldstart scripts/check_machine.py
#
# Two machines of eight GPUs, the same command on each, HOST being the name of either:
#   docker run --rm --gpus all --ipc=host --network=host --stop-timeout=120 --user "$(id -u):$(id -g)" \
#     -v /path/to/imagenet:/data:ro -v /path/to/shared/outputs:/outputs coldstart \
#     --nnodes=2 --nproc-per-node=8 --rdzv-backend=c10d --rdzv-endpoint=HOST:29400 train.py model=lipsformer_swin_tiny
#
# --ipc=host (or --shm-size=16g): NCCL and, with data.backend=torch, the data workers pass data through /dev/shm, which has
# 64 MB by default.
# --stop-timeout: `docker stop` asks for a checkpoint and then waits this long, not 10 s. Run the command again to resume.
# --user: the files in ./outputs belong to you, not to the user of the image (make the folder first: docker would as root).
# W&B: add -e WANDB_API_KEY, which hands over your shell's variable and leaves nothing in the image.

# PyTorch's wheels carry CUDA and the NVIDIA container toolkit adds the driver, so no CUDA image is needed, and none of
# those has Python 3.11. Any base with apt will do that has a Python 3.11 or offers one, such as Debian bookworm.
ARG BASE_IMAGE=python:3.11-slim-bookworm

# Both stages need the same interpreter at the same place, for a virtual environment points to it.
FROM ${BASE_IMAGE} AS base
# A compiler and Python's headers: torch.compile builds its GPU launchers with them. Certificates: W&B.
# Versions are the distribution's, which keeps only the newest of each package.
# hadolint ignore=DL3008
RUN set -- ca-certificates gcc libc6-dev \
    && if ! command -v python3.11 >/dev/null; then set -- "$@" python3.11-dev python3.11-venv; fi \
    && apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@" \
    && rm -rf /var/lib/apt/lists/*

FROM base AS build
# Only the requirements, so that a change of the code does not install them again.
COPY requirements.lock /tmp/
RUN python3.11 -m venv /opt/venv \
    && /opt/venv/bin/pip install --no-cache-dir --disable-pip-version-check -r /tmp/requirements.lock
# 0.65 GB that no run opens: archives for static linking, the debug symbols of Triton's compiler, and two of CUDA's
# libraries that no other library names (cuSOLVER for several GPUs in one process, and a second build of NVRTC).
RUN find /opt/venv \( -name '*.a' -o -name 'libcusolverMg.so*' -o -name 'libnvrtc*.alt.so*' \) -delete \
    && strip --strip-debug /opt/venv/lib/python3.11/site-packages/triton/_C/libtriton.so

FROM base
# Root has no business in a training run. Any other --user may write to the same two folders: where runs go, and
# the home that caches go to (compiled kernels, the index of a read-only data set).
RUN useradd --uid 10001 --create-home coldstart \
    && mkdir /outputs \
    && chmod 1777 /outputs /home/coldstart
COPY --from=build /opt/venv /opt/venv
WORKDIR /coldstart
COPY . .
RUN ln -s /outputs outputs

# NVIDIA_*: what the container toolkit brings in (video: the driver's part of DALI's decoders).
# HOME, USER: for a --user that has no entry in /etc/passwd. PET_…: torchrun's default for --nproc-per-node.
# TORCH_DISABLE_…: without it, restarts on several machines may connect to the address of the failed attempt.
# TORCH_ELASTIC_SHUTDOWN_TIMEOUT: seconds to write a checkpoint when stopped; keep it below --stop-timeout.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HOME=/home/coldstart \
    USER=coldstart \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility,video \
    IMAGENET_DIR=/data \
    PET_NPROC_PER_NODE=auto \
    TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 \
    TORCH_ELASTIC_SHUTDOWN_TIMEOUT=110
# As a number, so that a cluster can see that it is not root.
USER 10001

ENTRYPOINT ["/bin/sh", "-c", "case ${1-} in -* | *.py) ;; *) set -- train.py \"$@\" ;; esac; exec torchrun \"$@\"", "coldstart"]
