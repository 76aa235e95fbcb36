# luna-monai in a container, for the CPU or, with a build argument, for NVIDIA GPUs:
#
#   docker build --tag luna-monai .
#   docker build --tag luna-monai:cuda --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 .
#   mkdir -p results
#   docker run --rm --user "$(id -u):$(id -g)" --volume "$PWD/scan.nii.gz:/in/scan.nii.gz:ro" \
#       --volume "$PWD/results:/out" luna-monai predict /in --output /out/scan.json
#
# The first stage installs into a virtual environment; the second stage copies this environment.

ARG PYTHON_VERSION=3.12

FROM python:${PYTHON_VERSION}-slim AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /src
# torch is installed first, so that no other package selects its build.
RUN python -m venv /opt/luna-monai && \
    /opt/luna-monai/bin/pip install --no-cache-dir --index-url "${TORCH_INDEX}" torch==2.13.0
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY bundle bundle
COPY configs configs
COPY luna_monai luna_monai
RUN /opt/luna-monai/bin/pip install --no-cache-dir --constraint constraints.txt '.[dicom]'

FROM python:${PYTHON_VERSION}-slim
LABEL org.opencontainers.image.title="luna-monai" \
      org.opencontainers.image.description="Lung-nodule classifier for chest CT. Research software. Not for clinical use." \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/luna-monai /opt/luna-monai
RUN useradd --create-home --uid 1000 luna && mkdir /in /out && chown luna:luna /out
# MONAI looks up the name of the user, which --user with another number does not have.
ENV USER=luna
USER 1000
WORKDIR /home/luna
ENV PATH=/opt/luna-monai/bin:$PATH
ENTRYPOINT ["luna-monai"]
CMD ["--help"]
