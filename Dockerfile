# llamafactory-embed with all that it needs, for a CPU or an NVIDIA GPU:
#
#   docker build -t llamafactory-embed .
#   docker build -t llamafactory-embed:cuda --build-arg TORCH=cuda --build-arg BASE=nvidia/cuda:12.8.1-base-ubuntu24.04 .
#
#   docker run --rm -it -v "$PWD:/work" --user "$(id -u):$(id -g)" llamafactory-embed llamafactory-embed demo
#   docker run --rm -it -v "$PWD:/work" --user "$(id -u):$(id -g)" --gpus all --shm-size 8g llamafactory-embed:cuda \
#       llamafactory-cli train examples/quickstart/wordnet_lora.yaml bf16=true
ARG BASE=python:3.11-slim-bookworm

# ------------------------------------------------------------------------------------------------ the wheel
FROM python:3.11-slim-bookworm AS wheel
WORKDIR /source
COPY . .
RUN python -m pip install --no-cache-dir "build>=1.2" "hatchling>=1.27" && \
    python -m build --no-isolation --wheel --outdir /wheel

# ------------------------------------------------------------------------------------------------ the image
FROM ${BASE}
SHELL ["/bin/bash", "-o", "pipefail", "-c"]

# A compiler for the kernels that torch writes at run time, and a Python for bases that bring none.
# hadolint ignore=DL3008,SC2046
RUN apt-get update && \
    DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends gcc libc6-dev \
        $(command -v python3 >/dev/null || echo python3 python3-dev python3-venv) && \
    rm -rf /var/lib/apt/lists/*

# `cpu` takes torch without CUDA, a tenth of the size; `cuda` takes PyPI's, which brings CUDA's libraries along.
ARG TORCH=cpu
ARG EXTRAS=demo,eval
COPY --from=wheel /wheel /wheel
RUN python3 -m venv /opt/llamafactory-embed && \
    if [ "$TORCH" = cpu ]; then export PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu; fi && \
    /opt/llamafactory-embed/bin/pip install --no-cache-dir "$(echo /wheel/*.whl)[$EXTRAS]"
ENV PATH=/opt/llamafactory-embed/bin:$PATH

# Nobody is root here, and any user of the host may be the one who runs it: models and caches go where all may write.
ENV HOME=/home/embed
RUN useradd --uid 1001 --create-home embed && mkdir /work && chmod 777 /work /home/embed
USER 1001
WORKDIR /work
CMD ["llamafactory-embed", "doctor"]
