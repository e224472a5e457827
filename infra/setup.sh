#!/bin/sh
# A virtual environment with this package, its extras for development and S3, and the versions of requirements.lock:
#   PYTHON=python3.12 sh infra/setup.sh .venv
# by uv, which PyPI has, or by pip where it cannot be had.
set -eu
venv=$1
"${PYTHON:-python3}" -m venv "$venv"
python="$venv/bin/python"
export PIP_DISABLE_PIP_VERSION_CHECK=1
export UV_FIND_LINKS="${UV_FIND_LINKS:-${PIP_FIND_LINKS:-}}" # where a machine keeps its own build of PyTorch
# Python compiles a module when it is first imported, and most never are; where it may not keep what it compiles, all of
# them are compiled now.
export UV_COMPILE_BYTECODE="${PYTHONDONTWRITEBYTECODE:+1}"

with_uv() {
    "$venv/bin/uv" pip install --quiet --python "$python" --constraint requirements.lock "$@" --editable '.[dev,s3]'
}

if "$python" -m pip install --quiet --constraint requirements.lock uv; then
    # PyTorch's own index has builds for this machine's GPU, or for none; PyPI's bring 2.5 GB of CUDA wherever they go.
    UV_HTTP_TIMEOUT=5 UV_HTTP_RETRIES=0 with_uv --torch-backend auto 2>"$venv/torch-backend.log" || with_uv
else
    echo "setup: there is no uv here, so pip installs, which takes minutes" >&2
    "$python" -m pip install --quiet --constraint requirements.lock --editable '.[dev,s3]'
fi

# What decodes in its jail cannot keep what it compiles, and would compile anew each time that it starts.
"$python" -c 'import pipelines.reading.sandbox.child, av, h5netcdf, pandas, PIL.Image, pillow_heif, torch'
