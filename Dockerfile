# Training in a container: PyTorch's own image, which brings CUDA, torch and Triton, and this package on top of it.
# docs/install.md says how to build and run it. It hasn't been built yet, since no machine with Docker was at hand:
# hadolint has read it, and its installation was tried in an environment that stood in for the image.

# CUDA 12.8 runs on every driver from 525 on. Another image needs Ubuntu 24.04's Python, as those since torch 2.10 have.
ARG BASE=pytorch/pytorch:2.11.0-cuda12.8-cudnn9-runtime

FROM python:3.12-slim AS wheel
WORKDIR /source
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM ${BASE}
SHELL ["/bin/bash", "-o", "pipefail", "-c"]

# To launch a kernel, Triton compiles a few lines of C, which include Python's headers. The base settles the versions.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

# The environment sees the image's packages, so torch and Triton stay as they are: a constraint of their versions lets
# pip fail rather than replace them, and torch bounds setuptools itself. All others are those of constraints.txt. The
# image's torchrun starts the image's Python, which doesn't see the environment, so the environment has one as well.
RUN python3 -m venv --system-site-packages /opt/clipvil \
    && sed '1s|.*|#!/opt/clipvil/bin/python|' "$(command -v torchrun)" > /opt/clipvil/bin/torchrun \
    && chmod +x /opt/clipvil/bin/torchrun
ENV PATH=/opt/clipvil/bin:$PATH
ARG EXTRAS=data,report
COPY --from=wheel /wheels /wheels
COPY constraints.txt /wheels/
RUN grep -vE '^(torch|triton|setuptools)==' /wheels/constraints.txt > /wheels/kept.txt \
    && pip list --format=freeze | grep -E '^(torch|triton)==' >> /wheels/kept.txt \
    && wheel=$(echo /wheels/*.whl) \
    && pip install --no-cache-dir --constraint /wheels/kept.txt "${wheel}[${EXTRAS}]"

# `docker run --user` may name anybody, so these folders are everybody's, and USER is for libraries that ask for the
# name of somebody whom /etc/passwd doesn't list. Caches don't lie in ~/.cache, which Docker gives to root when it
# mounts CLIP's weights there.
RUN useradd --uid 10001 --create-home clipvil && mkdir -p /workspace && chmod 1777 /home/clipvil /workspace
ENV HOME=/home/clipvil USER=clipvil HF_HOME=/home/clipvil/huggingface TRITON_CACHE_DIR=/home/clipvil/triton
WORKDIR /workspace
USER 10001
CMD ["clipvil-pretrain", "--version"]
