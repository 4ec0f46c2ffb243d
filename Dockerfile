# llamafactory-embed with all that it needs, for a CPU or an NVIDIA GPU:
#
#   docker build -t llamafactory-embed .                                                    # CPU
#   docker build -t llamafactory-embed --build-arg BASE=nvidia/cuda:13.0.2-cudnn-runtime-ubuntu24.04 .
#
#   docker run --rm -it -v "$PWD:/work" llamafactory-embed llamafactory-embed demo
#   docker run --rm -it --gpus all --shm-size 8g -v "$PWD:/work" llamafactory-embed llamafactory-cli train examples/…
ARG BASE=python:3.12-slim-bookworm

# ------------------------------------------------------------------------------------------------ the wheel
FROM python:3.12-slim-bookworm AS wheel
WORKDIR /source
COPY . .
RUN python -m pip install --no-cache-dir "build>=1.2" "hatchling>=1.27" && \
    python -m build --no-isolation --wheel --outdir /wheel

# ------------------------------------------------------------------------------------------------ the image
FROM ${BASE}
SHELL ["/bin/bash", "-o", "pipefail", "-c"]

# Python of its own for bases that bring none; torch compiles small pieces of C at run time.
RUN apt-get update && \
    DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends gcc libc6-dev git python3 python3-dev python3-venv && \
    rm -rf /var/lib/apt/lists/*

# "cpu" takes torch without CUDA, a tenth of the size; "cuda" takes PyPI's, which brings CUDA's libraries along.
ARG TORCH=cpu
ARG EXTRAS=demo,eval
COPY --from=wheel /wheel /wheel
RUN python3 -m venv /opt/llamafactory-embed && \
    if [ "$TORCH" = cpu ]; then export PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu; fi && \
    /opt/llamafactory-embed/bin/pip install --no-cache-dir "$(echo /wheel/*.whl)[$EXTRAS]"
ENV PATH=/opt/llamafactory-embed/bin:$PATH

# Whoever runs the image is no root, and what it writes belongs to user 1000.
RUN useradd --uid 1001 --create-home embed && mkdir /work && chown embed /work
USER embed
WORKDIR /work
CMD ["llamafactory-embed", "doctor"]
