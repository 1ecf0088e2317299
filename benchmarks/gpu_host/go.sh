#!/usr/bin/env bash
# On the GPU's host, in the root of the clone: install the transferred parts, then run steps of the check.
#   bash .gpu/part-01/go.sh SECONDS STEP...
# RESUME=1 skips the steps that have passed, and continues from the figures of others.
# LIBRARIES=1 adds NVIDIA's wheels to the system loader's path, for hosts where unetrt does not find them.
set -o pipefail
export PYTHONUNBUFFERED=1 XDG_CACHE_HOME=/tmp/cache PYTHONSAFEPATH=1 PYTHONPATH=/tmp/site:$PWD ORT_DISABLE_TELEMETRY=1
if [ -n "$LIBRARIES" ]; then
  nvidia=$(python3 -c "import nvidia, os; print(os.path.abspath(list(nvidia.__path__)[0]))")
  export LD_LIBRARY_PATH=$nvidia/cu13/lib:$nvidia/cudnn/lib:$LD_LIBRARY_PATH
fi
python3 "$(dirname "$0")/unpack.py" || exit 1
seconds=$1
[ $# -lt 2 ] || python3 -m unetrt.benchmarks.gpu_check ${RESUME:+--resume} --seconds "$seconds" --out "${OUT:-/tmp/out}" "${@:2}"
